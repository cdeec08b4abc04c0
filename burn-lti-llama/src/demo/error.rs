//! What can end a demo.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use burn_lti::files::FileError;

use super::vocabulary::VocabularyError;
use crate::data::DataError;
use crate::distill::DistillError;
use crate::hf::HfError;
use crate::recipe::RecipeError;
use crate::tokenizer::TokenizerError;

/// A demo that did not come to its end.
#[derive(Debug, thiserror::Error)]
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
    /// A part of the way, from the stories to the students.
    #[error(transparent)]
    Part(Box<dyn Error + Send + Sync>),
}

passes_on!(
    DemoError: DataError, DistillError, FileError, HfError, RecipeError, TokenizerError, VocabularyError,
);
