//! A plain model becomes a Hugging Face folder.

use std::path::Path;

use burn::prelude::*;
use burn_lti::tensors::TensorSet;

use super::names::{Naming, transpose};
use super::weights::WEIGHTS;
use super::{HfError, NewTensor, write_weights};
use crate::files::write_atomically;
use crate::model::PlainLlama;
use crate::tokenizer::copy_files;

/// Writes `model` to `dir` as float32: `config.json`, `model.safetensors`, and the tokenizer's files
/// as they are in `tokenizer_dir`. The weights come last, so that a folder with weights is whole.
///
/// # Errors
///
/// [`HfError`] naming the file; a file that was there before is left as it was.
pub fn export<B: Backend>(
    model: &PlainLlama<B>,
    tokenizer_dir: &Path,
    dir: &Path,
) -> Result<(), HfError> {
    let config = model.config();
    let tensors = TensorSet::collect(model);
    let mut files = Vec::new();
    for (name, shape) in config.tensors() {
        let naming = Naming::of(&name);
        let unreadable = |detail: String| HfError::Device {
            name: naming.burn.clone(),
            detail,
        };
        let named = tensors
            .get(&naming.burn)
            .ok_or_else(|| unreadable("the model does not hold it".to_owned()))?;
        let mut values = named.tensor.to_f32().map_err(unreadable)?;
        if let (true, &[rows, columns]) = (naming.transposed, shape.as_slice()) {
            values = transpose(&values, columns, rows);
        }
        files.push(NewTensor::new(name, shape, move || values));
    }

    copy_files(tokenizer_dir, dir)?;
    let config = format!("{:#}\n", config.to_json());
    write_atomically(&dir.join("config.json"), config.as_bytes())?;
    write_weights(&dir.join(WEIGHTS), files)?;
    Ok(())
}
