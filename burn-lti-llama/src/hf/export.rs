//! A plain model becomes a Hugging Face folder.

use std::path::Path;

use burn::prelude::*;
use burn_lti::files::write_atomically;
use burn_lti::tensors::TensorSet;

use super::names::{Naming, transpose};
use super::weights::WEIGHTS;
use super::{HfError, NewTensor, WeightType, WeightsError, write_weights};
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
    let files = config
        .tensors()
        .into_iter()
        .map(|(name, shape)| weights(&tensors, name, shape));

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

/// A tensor in Hugging Face's name and layout, read from the device when it is written.
fn weights<B: Backend>(tensors: &TensorSet<B>, name: String, shape: Vec<usize>) -> NewTensor<'_> {
    let (naming, turned) = (Naming::of(&name), shape.clone());
    NewTensor::new(name, shape, move || {
        let unreadable = |detail: String| {
            let reason = format!("cannot be read from the device: {detail}");
            WeightsError::tensor(&naming.burn, reason)
        };
        let named = tensors
            .get(&naming.burn)
            .ok_or_else(|| unreadable("the model does not hold it".to_owned()))?;
        let values = named.tensor.to_f32().map_err(unreadable)?;
        Ok(match (naming.transposed, turned.as_slice()) {
            (true, &[rows, columns]) => transpose(&values, columns, rows),
            _ => values,
        })
    })
}
