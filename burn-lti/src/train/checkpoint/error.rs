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
    /// The trained tensors cannot be laid out in a file, or read from it.
    #[error("the tensors of {path} are no safetensors file")]
    Tensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with them.
        source: SafeTensorError,
    },
    /// The state of the optimizer cannot be written or read.
    #[error(
        "the optimizer's state cannot be recorded or read: go on with the optimizer that was saved"
    )]
    Optimizer {
        /// What Burn's recorder reported.
        source: RecorderError,
    },
    /// The checkpoint is another version's or another model's. The message names what differs.
    #[error("{0}")]
    Mismatch(String),
    /// The run cannot be saved as it is, or not in this folder. The message says why.
    #[error("{0}")]
    Refused(String),
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
        move |source| Self::Tensors {
            path: path.to_owned(),
            source,
        }
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
