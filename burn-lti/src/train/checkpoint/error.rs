//! What can go wrong between a training and its folder of checkpoints.

use std::io;
use std::path::{Path, PathBuf};

use burn::record::RecorderError;
use safetensors::SafeTensorError;
use thiserror::Error;

/// A checkpoint that could not be saved, read or put in place.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The system refused a file or a folder.
    #[error("cannot use {path}: check that it exists, may be read and written, and has room")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system reported.
        source: io::Error,
    },
    /// The checkpoint was cut off while it was written, or changed since.
    #[error("{path} is {what}: go on from an earlier one")]
    Damaged {
        /// The file, or the folder.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
        /// Where it is no JSON.
        source: Option<serde_json::Error>,
    },
    /// The checkpoint is another version's or another model's, or the run cannot be saved as it is, or not
    /// in this folder.
    #[error("{what}")]
    Refused {
        /// What differs or cannot be, and the way out.
        what: String,
        /// What was reported, if anything was.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

impl CheckpointError {
    /// Names the path of an input/output error: `map_err(CheckpointError::at(path))`.
    pub(super) fn at(path: &Path) -> impl Fn(io::Error) -> Self + '_ {
        move |source| Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    /// Names the path of a broken JSON file: `map_err(CheckpointError::state(path))`.
    pub(super) fn state(path: &Path) -> impl Fn(serde_json::Error) -> Self + '_ {
        move |source| Self::Damaged {
            path: path.to_owned(),
            what: "no state of a checkpoint",
            source: Some(source),
        }
    }

    /// Names the path of a broken safetensors file: `map_err(CheckpointError::tensors(path))`.
    pub(super) fn tensors(path: &Path) -> impl Fn(SafeTensorError) -> Self + '_ {
        move |source| Self::Refused {
            what: format!("the tensors of {} are no safetensors file", path.display()),
            source: Some(Box::new(source)),
        }
    }

    /// Where the optimizer's state cannot be written or read.
    pub(super) fn optimizer(source: RecorderError) -> Self {
        let what = "the optimizer's state cannot be recorded or read: go on with the optimizer that was saved";
        Self::Refused {
            what: what.to_owned(),
            source: Some(Box::new(source)),
        }
    }

    pub(super) const fn refused(what: String) -> Self {
        Self::Refused { what, source: None }
    }

    /// Whether the checkpoint itself is broken. Otherwise it may well be whole, and must be left alone.
    pub(super) fn is_damage(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Damaged { .. } => true,
            _ => false,
        }
    }
}
