//! What can be wrong with a GGUF file.

use std::io;
use std::path::{Path, PathBuf};

use burn_lti::files::FileError;
use thiserror::Error;

/// Why a GGUF file could not be read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The file cannot be read.
    #[error("cannot read {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is cut off, damaged, or no GGUF file at all.
    #[error("{} {reason}: download or convert it again", file.display())]
    Broken {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file holds what is not read here, or what was to be written has no place in such a file.
    #[error("{} {reason}", file.display())]
    Refused {
        /// The file, or the folder.
        file: PathBuf,
        /// What it holds, and the way out.
        reason: String,
    },
    /// Its tokenizer is not known here.
    #[error(
        "{} {reason}; put the model's tokenizer.json beside the file, and it is read in its place",
        file.display()
    )]
    Tokenizer {
        /// The file.
        file: PathBuf,
        /// What it is.
        reason: String,
    },
    /// The file cannot be written or does not read back as it was written.
    #[error(transparent)]
    Write(#[from] FileError),
}

impl GgufError {
    pub(super) fn broken(file: &Path, reason: impl Into<String>) -> Self {
        Self::Broken {
            file: file.to_owned(),
            reason: reason.into(),
        }
    }

    pub(crate) fn refused(file: &Path, reason: impl Into<String>) -> Self {
        Self::Refused {
            file: file.to_owned(),
            reason: reason.into(),
        }
    }

    pub(super) fn tokenizer(file: &Path, reason: impl Into<String>) -> Self {
        Self::Tokenizer {
            file: file.to_owned(),
            reason: reason.into(),
        }
    }
}
