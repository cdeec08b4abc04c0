//! What can be wrong with a Hugging Face folder.

use std::error::Error;

use burn_lti::blueprint::BlueprintError;
use burn_lti::files::FileError;

use super::{WeightType, WeightsError};
use crate::config::ConfigError;
use crate::tokenizer::TokenizerError;

/// A folder that cannot be read as a model, or a model that cannot be written as one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HfError {
    /// A device that cannot compute in a float type.
    #[error(
        "{backend} cannot compute in {dtype}: take float32, or a backend that can; `burn-lti devices` \
         shows which"
    )]
    FloatType {
        /// The backend, with its device.
        backend: String,
        /// What was asked for.
        dtype: WeightType,
    },
    /// One of its files.
    #[error(transparent)]
    Part(Box<dyn Error + Send + Sync>),
    /// Tensors that do not make up a model of this configuration.
    #[error("the tensors do not make up the configured model")]
    Model(#[from] BlueprintError),
}

passes_on!(HfError: ConfigError, FileError, TokenizerError, WeightsError);
