//! A plain model becomes a Hugging Face folder.

use std::path::Path;

use burn::prelude::*;
use burn_lti::files::write_atomically;
use burn_lti::tensors::TensorSet;

use super::names::{Naming, transpose};
use super::{HfError, NewTensor, WeightType, WeightsError, write_weights_to_folder};
use crate::config::LlamaConfig;
use crate::family::FileTensor;
use crate::model::PlainLlama;
use crate::tokenizer::{TokenizerFiles, copy_files};

/// How weights are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportForm {
    /// The type of the file's numbers.
    pub dtype: WeightType,
    /// The most bytes of a file; one file if there is none.
    pub max_shard_size: Option<u64>,
}

/// In one file.
impl From<WeightType> for ExportForm {
    fn from(dtype: WeightType) -> Self {
        Self {
            dtype,
            max_shard_size: None,
        }
    }
}

/// Writes `model` to `dir`: `config.json`, `model.safetensors` or several files of weights, and the tokenizer's files
/// as they are in the folder or file `tokenizer`, cut if it says so. The weights come last, so that a folder with
/// weights is whole.
///
/// # Errors
///
/// [`HfError`] naming the file; a file that was there before is left as it was.
pub fn export<'a, B: Backend>(
    model: &PlainLlama<B>,
    form: impl Into<ExportForm>,
    tokenizer: impl Into<TokenizerFiles<'a>>,
    dir: &Path,
) -> Result<(), HfError> {
    let config = model.config();
    let tensors = TensorSet::collect(model);
    let layout = config.family.file_tensors(config);
    let files = layout.into_iter().map(|tensor| weights(&tensors, tensor));
    write_folder(config, form.into(), tokenizer.into(), dir, files)
}

/// Writes a folder of tensors as they lie in its file.
pub(crate) fn write_folder<'a>(
    config: &LlamaConfig,
    form: ExportForm,
    tokenizer: TokenizerFiles<'_>,
    dir: &Path,
    files: impl Iterator<Item = NewTensor<'a>>,
) -> Result<(), HfError> {
    let ExportForm {
        dtype,
        max_shard_size,
    } = form;
    copy_files(tokenizer, dir)?;
    let mut config = config.to_json();
    for key in ["dtype", "torch_dtype"] {
        config[key] = dtype.name().into();
    }
    let config = format!("{config:#}\n");
    write_atomically(&dir.join("config.json"), config.as_bytes())?;
    write_weights_to_folder(dir, dtype, max_shard_size, files)?;
    Ok(())
}

/// A tensor of a file, read from the device when it is written.
fn weights<B: Backend>(tensors: &TensorSet<B>, tensor: FileTensor) -> NewTensor<'_> {
    let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
    NewTensor::new(name, shape, move || {
        let mut numbers = Vec::new();
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
            let of_part = part.write(values);
            match numbers.is_empty() {
                true => numbers = of_part,
                false => numbers.extend(of_part),
            }
        }
        Ok(numbers)
    })
}
