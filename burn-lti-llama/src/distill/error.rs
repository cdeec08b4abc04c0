//! What can end a run.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use burn_lti::blueprint::BlueprintError;
use burn_lti::calibration::{CalibrationError, StartFileError};
use burn_lti::collapse::CollapseError;
use burn_lti::decoder::DecoderError;
use burn_lti::files::{FileError, LockError};
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
        source: Box<dyn Error + Send + Sync>,
    },
    /// The output folder was deleted, or another put in its place, while the run wrote into it.
    #[error(
        "{dir} was deleted or replaced while the run wrote into it: choose an --out that stays, and run again"
    )]
    Gone {
        /// The folder.
        dir: PathBuf,
    },
    /// The run failed that was to replace another.
    #[error("the run in {kept} is as it was, and what the new one left is in {left}")]
    NotReplaced {
        /// The folder of the run that is there still.
        kept: PathBuf,
        /// That of the run that failed.
        left: PathBuf,
        /// Why it did.
        source: Box<DistillError>,
    },
    /// The run that is to replace another is not the one that is to go on.
    #[error(
        "the run that goes on in {outer} is the one in {inner}, which is to replace it: move {inner} away to \
         go on with the other"
    )]
    OtherInside {
        /// The folder.
        outer: PathBuf,
        /// That of the newer run.
        inner: PathBuf,
        /// What differs.
        source: Box<DistillError>,
    },
    /// The recipe of a run is lost, and the one that it is resumed with is another.
    #[error(
        "{file} is not as the run wrote it, and the recipe given now is not the one that the run began with: \
         put the file back, or give that recipe, with every --set, and the file is written again"
    )]
    Recipe {
        /// The file.
        file: PathBuf,
        /// Why it cannot be read, if it cannot.
        source: Option<Box<dyn Error + Send + Sync>>,
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
    DataError, DecoderError, EvalError, FileError, GenerationError, HashError, HfError, BlueprintError, LockError,
    LossError, MetricsError,
    NotFinite, RecipeError, StartFileError, TokenizerError, TrainError,
);
