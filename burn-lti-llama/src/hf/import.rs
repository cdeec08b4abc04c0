//! A Hugging Face folder becomes a model.

use std::path::Path;

use burn::prelude::*;
use burn::tensor::TensorData;
use burn_lti::blueprint::Rules;
use burn_lti::inject::inject;
use burn_lti::tensors::TensorSet;

use super::names::{Naming, transpose};
use super::{HfError, WeightFiles, WeightType, WeightsError};
use crate::config::LlamaConfig;
use crate::family::FileTensor;
use crate::model::PlainLlama;

/// Loads the model in `dir`, its weights cast to float32.
///
/// # Errors
///
/// [`HfError`] naming the file and the field or tensor, before anything large is allocated.
pub fn load<B: Backend>(dir: &Path, device: &B::Device) -> Result<PlainLlama<B>, HfError> {
    load_as(dir, WeightType::F32, device)
}

/// Loads the model in `dir` to compute in `dtype`, to which its weights are cast.
///
/// # Errors
///
/// As [`load`], and [`HfError::FloatType`] if the device cannot compute in `dtype`.
pub fn load_as<B: Backend>(
    dir: &Path,
    dtype: WeightType,
    device: &B::Device,
) -> Result<PlainLlama<B>, HfError> {
    load_of_config(dir, &LlamaConfig::from_dir(dir)?, dtype, device)
}

/// As [`load_as`], of a configuration that was read before.
///
/// # Errors
///
/// As [`load_as`].
pub fn load_of_config<B: Backend>(
    dir: &Path,
    config: &LlamaConfig,
    dtype: WeightType,
    device: &B::Device,
) -> Result<PlainLlama<B>, HfError> {
    let tensors = load_tensors(dir, config, dtype, device)?;
    plain_from_tensors(config, &tensors, device)
}

/// The weights in `dir` under Burn's names and in Burn's layout, cast to `dtype`: nothing missing,
/// nothing unused, every shape as `config` says.
///
/// # Errors
///
/// As [`load_as`].
pub fn load_tensors<B: Backend>(
    dir: &Path,
    config: &LlamaConfig,
    dtype: WeightType,
    device: &B::Device,
) -> Result<TensorSet<B>, HfError> {
    load_tensors_of(dir, config, None, dtype, device)
}

/// The same; of what has a row for each token, those of the tokens that are `kept`, if some are gone.
pub(super) fn load_tensors_of<B: Backend>(
    dir: &Path,
    config: &LlamaConfig,
    kept: Option<&[u32]>,
    dtype: WeightType,
    device: &B::Device,
) -> Result<TensorSet<B>, HfError> {
    if !B::supports_dtype(device, dtype.dtype()) {
        let backend = B::name(device);
        return Err(HfError::FloatType { backend, dtype });
    }
    let layout = config.family.file_tensors(config);
    let files = checked_weights(dir, config)?;

    let options = (device, dtype.dtype());
    let mut tensors = TensorSet::new();
    for file_tensor in &layout {
        let numbers = files.read_f32(&file_tensor.name)?;
        for (part, values) in file_tensor.read(numbers) {
            let naming = Naming::of(&part.name);
            let (values, shape) = match kept {
                Some(kept) if OF_TOKENS.contains(&part.name.as_str()) => {
                    (rows(&values, &part.shape, kept), of_rows(&part.shape, kept))
                }
                _ => (values, part.shape.clone()),
            };
            match *shape.as_slice() {
                [rows, columns] if naming.transposed => {
                    let data = TensorData::new(transpose(&values, rows, columns), [columns, rows]);
                    let tensor = Tensor::<B, 2>::from_data(data, options);
                    tensors.insert(&naming.burn, naming.owner, tensor);
                }
                [rows, columns] => {
                    let data = TensorData::new(values, [rows, columns]);
                    let tensor = Tensor::<B, 2>::from_data(data, options);
                    tensors.insert(&naming.burn, naming.owner, tensor);
                }
                _ => {
                    let length = values.len();
                    let data = TensorData::new(values, [length]);
                    let tensor = Tensor::<B, 1>::from_data(data, options);
                    tensors.insert(&naming.burn, naming.owner, tensor);
                }
            }
        }
    }
    Ok(tensors)
}

/// Checks from their headers that the weights in `dir` are those of a model: nothing missing, nothing unused, every
/// shape as `config` says.
///
/// # Errors
///
/// [`HfError`] naming the file and the tensor.
pub fn check_weights(dir: &Path, config: &LlamaConfig) -> Result<(), HfError> {
    checked_files(dir, config, &config.family.file_tensors(config)).map(drop)
}

/// The weights in `dir`, which are those of the model; a head that is there beside the embedding it is tied to is that
/// embedding.
pub(crate) fn checked_weights(dir: &Path, config: &LlamaConfig) -> Result<WeightFiles, HfError> {
    let files = checked_files(dir, config, &config.family.file_tensors(config))?;
    check_tied_head(&files, dir, tied(config))?;
    Ok(files)
}

fn checked_files(
    dir: &Path,
    config: &LlamaConfig,
    layout: &[FileTensor],
) -> Result<WeightFiles, HfError> {
    let files = WeightFiles::open(dir)?;
    let named = |tensor: &FileTensor| (tensor.name.clone(), tensor.shape.clone());
    let expected: Vec<(String, Vec<usize>)> = layout.iter().map(named).collect();
    files.check(&expected, tied(config))?;
    Ok(files)
}

/// Tensors of a file that have a row for each token.
const OF_TOKENS: [&str; 2] = ["model.embed_tokens.weight", "lm_head.weight"];

/// The shape of so many rows of a tensor.
fn of_rows(shape: &[usize], kept: &[u32]) -> Vec<usize> {
    let rest = shape.iter().skip(1).copied();
    [kept.len()].into_iter().chain(rest).collect()
}

/// Some rows of a tensor.
fn rows(values: &[f32], shape: &[usize], kept: &[u32]) -> Vec<f32> {
    let width: usize = shape.iter().skip(1).product();
    let row = |id: &u32| &values[*id as usize * width..][..width];
    kept.iter().flat_map(row).copied().collect()
}

/// Some tools write the head of a tied model a second time.
const fn tied(config: &LlamaConfig) -> &'static [&'static str] {
    match config.tie_word_embeddings {
        true => &["lm_head.weight"],
        false => &[],
    }
}

/// A head that is written beside the embedding it is tied to must be that embedding.
fn check_tied_head(files: &WeightFiles, dir: &Path, tied: &[&str]) -> Result<(), HfError> {
    for head in tied.iter().filter(|head| files.info(head).is_some()) {
        if files.read_f32(head)? != files.read_f32("model.embed_tokens.weight")? {
            let reason = "says tie_word_embeddings, but its lm_head.weight is not its embedding: set \
                          tie_word_embeddings to false in config.json if the head is its own";
            return Err(WeightsError::broken(dir, reason).into());
        }
    }
    Ok(())
}

/// A plain model of this configuration over `tensors`, sharing their data.
///
/// # Errors
///
/// [`HfError::Model`] if a tensor is missing or has another shape.
pub fn plain_from_tensors<B: Backend>(
    config: &LlamaConfig,
    tensors: &TensorSet<B>,
    device: &B::Device,
) -> Result<PlainLlama<B>, HfError> {
    let (model, _) = inject(PlainLlama::init(config, device), tensors, &Rules::by_name())?;
    Ok(model)
}
