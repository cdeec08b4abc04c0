//! A plain model becomes a Hugging Face folder.

use std::path::Path;

use burn::prelude::*;
use burn_lti::files::write_atomically;
use burn_lti::tensors::TensorSet;

use super::names::{Naming, transpose};
use super::weights::WEIGHTS;
use super::{HfError, NewTensor, WeightType, WeightsError, write_weights};
use crate::family::FileTensor;
use crate::model::PlainLlama;
use crate::tokenizer::copy_files;

/// Writes `model` to `dir` with weights of `dtype`: `config.json`, `model.safetensors`, and the
/// tokenizer's files as they are in `tokenizer_dir`. The weights come last, so that a folder with
/// weights is whole.
///
/// # Errors
///
/// [`HfError`] naming the file; a file that was there before is left as it was.
pub fn export<B: Backend>(
    model: &PlainLlama<B>,
    dtype: WeightType,
    tokenizer_dir: &Path,
    dir: &Path,
) -> Result<(), HfError> {
    let config = model.config();
    let tensors = TensorSet::collect(model);
    let layout = config.family.file_tensors(config);
    let files = layout.into_iter().map(|tensor| weights(&tensors, tensor));

    copy_files(tokenizer_dir, dir)?;
    let mut config = config.to_json();
    for key in ["dtype", "torch_dtype"] {
        config[key] = dtype.name().into();
    }
    let config = format!("{config:#}\n");
    write_atomically(&dir.join("config.json"), config.as_bytes())?;
    write_weights(&dir.join(WEIGHTS), dtype, files)?;
    Ok(())
}

/// A tensor of a file, read from the device when it is written.
fn weights<B: Backend>(tensors: &TensorSet<B>, tensor: FileTensor) -> NewTensor<'_> {
    let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
    NewTensor::new(name, shape, move || {
        let mut numbers = Vec::with_capacity(tensor.shape.iter().product());
        for part in &tensor.parts {
            let naming = Naming::of(&part.name);
            let unreadable = |detail: String| {
                let reason = format!("cannot be read from the device: {detail}");
                WeightsError::tensor(&naming.burn, reason)
            };
            let named = tensors
                .get(&naming.burn)
                .ok_or_else(|| unreadable("the model does not hold it".to_owned()))?;
            let values = named.tensor.to_f32().map_err(unreadable)?;
            let values = match (naming.transposed, part.shape.as_slice()) {
                (true, &[rows, columns]) => transpose(&values, columns, rows),
                _ => values,
            };
            numbers.extend(part.write(values));
        }
        Ok(numbers)
    })
}
