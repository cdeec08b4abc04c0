//! What can end a run.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use burn_lti::blueprint::BlueprintError;
use burn_lti::calibration::{CalibrationError, StartFileError};
use burn_lti::collapse::CollapseError;
use burn_lti::decoder::DecoderError;
use burn_lti::files::FileError;
use burn_lti::loss::LossError;
use burn_lti::top_k::CacheError;
use burn_lti::train::{CheckpointError, TrainError};

use super::{ManifestError, MetricsError};
use crate::config::ConfigError;
use crate::corpus::CorpusError;
use crate::data::DataError;
use crate::eval::EvalError;
use crate::hashes::HashError;
use crate::hf::HfError;
use crate::model::{GenerationError, NotFinite};
use crate::plan::PlanError;
use crate::recipe::RecipeError;
use crate::tokenizer::TokenizerError;

/// A run that did not come to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DistillError {
    /// The recipe, checked against the teacher.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The run is not the one that is to go on.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A part of the run: what it reads, the start, the training, the collapse, what it writes.
    #[error(transparent)]
    Part(Box<dyn Error + Send + Sync>),
    /// The folder holds something that is no run.
    #[error("{dir} holds files and no run: give the --out of the run that is to go on")]
    NoRun {
        /// The folder.
        dir: PathBuf,
    },
    /// A file does not hold what this program writes there.
    #[error("{file} {reason}")]
    Foreign {
        /// The file, or the checkpoint.
        file: PathBuf,
        /// What it lacks, and the way out.
        reason: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The output folder cannot be used.
    #[error("cannot use {path} for output")]
    Output {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A folder, a text, a teacher's saved top tokens or an exported student is not as the run needs it.
    #[error("{0}")]
    Refused(String),
}

passes_on!(
    DistillError: CacheError, CalibrationError, CheckpointError, CollapseError, ConfigError, CorpusError,
    DataError, DecoderError, EvalError, FileError, GenerationError, HashError, HfError, BlueprintError, LossError, MetricsError,
    NotFinite,     RecipeError, StartFileError, TokenizerError, TrainError,
);
