//! Hugging Face folders in and out.
//!
//! A folder holds `config.json`, `model.safetensors` (or shards with an index) and the tokenizer's
//! files. [`load`] makes a [`PlainLlama`] of one, [`export`] writes one that transformers and any
//! other reader of the format can load.

mod error;
mod export;
mod import;
mod model_files;
mod names;
mod weight_type;
mod weights;

#[cfg(doc)]
use crate::model::PlainLlama;
pub use error::HfError;
pub(crate) use export::write_folder;
pub use export::{ExportForm, export};
pub(crate) use import::checked_weights;
pub use import::{check_weights, load, load_as, load_of_config, load_tensors, plain_from_tensors};
pub use model_files::ModelFiles;
pub(crate) use names::{burn_name, file_layout, file_name, kept_name, source_name};
pub use weight_type::WeightType;
pub use weights::{
    NewTensor, TensorInfo, WeightFiles, WeightsError, write_weights, write_weights_to_folder,
};
