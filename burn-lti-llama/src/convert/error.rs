//! Why a model could not be converted.

use std::error::Error;

use burn_lti::files::{FileError, LockError};
use thiserror::Error;

use crate::config::ConfigError;
use crate::gguf::GgufError;
use crate::hf::{HfError, WeightsError};
use crate::tokenizer::TokenizerError;

/// Why a model could not be converted.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// One of its files cannot be read or written, or has no place in the other form.
    #[error(transparent)]
    Part(Box<dyn Error + Send + Sync>),
}

passes_on!(
    ConvertError: ConfigError, FileError, GgufError, HfError, LockError, TokenizerError, WeightsError
);
