//! What can end a run.

use std::io;
use std::path::PathBuf;

use burn_lti::cache::CacheError;
use burn_lti::collapse::CollapseError;
use burn_lti::decoder::DecoderError;
use burn_lti::files::FileError;
use burn_lti::inject::InjectError;
use burn_lti::loss::LossError;
use burn_lti::start::calibrated::{CalibrationError, StartFileError};
use burn_lti::train::{CheckpointError, TrainError};
use thiserror::Error;

use super::{ManifestError, MetricsError};
use crate::config::ConfigError;
use crate::corpus::CorpusError;
use crate::data::DataError;
use crate::hashes::HashError;
use crate::hf::HfError;
use crate::plan::PlanError;
use crate::recipe::RecipeError;
use crate::tokenizer::TokenizerError;

/// A run that did not come to its end.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DistillError {
    /// The teacher's configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The recipe.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The recipe, checked against the teacher.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A Hugging Face folder, read or written.
    #[error(transparent)]
    Folder(#[from] HfError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The text.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The swap of the projections.
    #[error(transparent)]
    Decoder(#[from] DecoderError),
    /// The teacher's way into the student.
    #[error(transparent)]
    Inject(#[from] InjectError),
    /// The loss.
    #[error(transparent)]
    Loss(#[from] LossError),
    /// The training.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The collapse.
    #[error(transparent)]
    Fold(#[from] CollapseError),
    /// The run is not the one that is to go on.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The calculation of the start.
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
    /// The text that the teacher writes for it.
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    /// The file of a calculated start.
    #[error(transparent)]
    StartFile(#[from] StartFileError),
    /// A teacher's saved top tokens.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A file that could not be hashed.
    #[error(transparent)]
    Hash(#[from] HashError),
    /// A file of the output.
    #[error(transparent)]
    File(#[from] FileError),
    /// The metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// A text of the recipe is not there.
    #[error("there is no text file {file}: correct the paths in [data] of the recipe")]
    NoText {
        /// The file.
        file: PathBuf,
    },
    /// The exported student does not compute what was trained.
    #[error(
        "the reloaded student's logits differ from the trained model's by {difference}, where \
         rounding allows {allowed}: do not use this export; please report the recipe"
    )]
    Collapse {
        /// The largest difference found.
        difference: f64,
        /// What rounding allows.
        allowed: f64,
    },
    /// The output folder already holds something.
    #[error(
        "{dir} already holds files: choose another --out, or add --overwrite to replace the \
         results of an earlier run"
    )]
    OutputExists {
        /// The folder.
        dir: PathBuf,
    },
    /// The output folder would be written over the teacher.
    #[error("the teacher lies in {dir}, where its student would replace it: choose another --out")]
    OutputIsTeacher {
        /// The output folder.
        dir: PathBuf,
    },
    /// The folder holds something that is no run.
    #[error("{dir} holds files and no run: give the --out of the run that is to go on")]
    NoRun {
        /// The folder.
        dir: PathBuf,
    },
    /// The run has nothing left to do.
    #[error(
        "the run in {dir} is finished: its student is in {}; for another run choose another --out, \
         or --overwrite",
        dir.join("student").display()
    )]
    AlreadyFinished {
        /// The folder.
        dir: PathBuf,
    },
    /// The figures of a finished run cannot be read.
    #[error(
        "{file} does not hold what this program writes there: take it away, then resume the run, which \
         writes it again"
    )]
    Summary {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The run saved no checkpoint, or none that is whole.
    #[error("there is no whole checkpoint in {dir}: train with `train.checkpoint_every`")]
    NoCheckpoint {
        /// The folder of the run.
        dir: PathBuf,
    },
    /// A checkpoint is not of this program.
    #[error("{checkpoint} does not say where its run stood: it was saved by another program")]
    Progress {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The saved teacher knows other tokens.
    #[error(
        "the teacher's top tokens in {dir} are of a vocabulary of {found}, and the teacher's has \
         {teacher}: write them again with `burn-lti cache-teacher`"
    )]
    CacheVocabulary {
        /// The folder of the cache.
        dir: PathBuf,
        /// Tokens that it knows.
        found: usize,
        /// Tokens that the teacher knows.
        teacher: usize,
    },
    /// The saved teacher read another text.
    #[error(
        "the teacher's top tokens in {dir} are not of this text: sequence {row} differs; write them again \
         with `burn-lti cache-teacher`, for these [data] and this train.seq_len"
    )]
    CacheOfOtherText {
        /// The folder of the cache.
        dir: PathBuf,
        /// The first sequence that differs.
        row: usize,
    },
    /// The saved teacher is another.
    #[error(
        "the teacher's top tokens were written by another teacher: its tensor {tensor} differs; write \
         them again with `burn-lti cache-teacher`"
    )]
    CacheOfOtherTeacher {
        /// The first tensor that differs.
        tensor: String,
    },
    /// The saved teacher says something else than the teacher.
    #[error(
        "the log-probabilities in {dir} differ from the teacher's by up to {difference:.1e}, where \
         rounding allows {allowed:.0e}: write them again with `burn-lti cache-teacher`"
    )]
    CacheDiffers {
        /// The folder of the cache.
        dir: PathBuf,
        /// The largest difference, in nats.
        difference: f64,
        /// What rounding allows.
        allowed: f64,
    },
    /// The output folder cannot be used.
    #[error("cannot use {path} for output")]
    Output {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}
