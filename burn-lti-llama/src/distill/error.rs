//! What can end a run.

use std::io;
use std::path::PathBuf;

use burn_lti::collapse::CollapseError;
use burn_lti::decoder::DecoderError;
use burn_lti::inject::InjectError;
use burn_lti::loss::LossError;
use burn_lti::train::TrainError;
use thiserror::Error;

use crate::config::ConfigError;
use crate::data::DataError;
use crate::files::FileError;
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
    /// The recipe, held against the teacher.
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
    /// A file of the output.
    #[error(transparent)]
    File(#[from] FileError),
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
    /// The output folder cannot be used.
    #[error("cannot use {path} for output")]
    Output {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}
