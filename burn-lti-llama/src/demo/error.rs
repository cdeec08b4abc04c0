//! What can end a demo.

use std::io;
use std::path::PathBuf;

use burn_lti::files::FileError;
use thiserror::Error;

use super::vocabulary::VocabularyError;
use crate::data::DataError;
use crate::distill::DistillError;
use crate::hf::HfError;
use crate::recipe::RecipeError;
use crate::tokenizer::TokenizerError;

/// A demo that did not come to its end.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DemoError {
    /// The folder cannot be made.
    #[error("cannot make the folder {dir}")]
    Folder {
        /// The folder.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The stories' tokenizer.
    #[error(transparent)]
    Vocabulary(#[from] VocabularyError),
    /// The stories' tokenizer, read back.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The stories, read back.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The teacher's folder.
    #[error(transparent)]
    Teacher(#[from] HfError),
    /// The recipe of the students.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// A student.
    #[error(transparent)]
    Student(#[from] DistillError),
}
