//! What can go wrong between a training and its folder of checkpoints.

use std::io;
use std::path::{Path, PathBuf};

use burn::record::RecorderError;
use burn::tensor::DType;
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
        /// What the system said.
        source: io::Error,
    },
    /// The folder was still being written when its program ended.
    #[error("{path} is a checkpoint that was never finished: go on from an earlier one")]
    Unfinished {
        /// The folder.
        path: PathBuf,
    },
    /// `state.json` is not what a checkpoint has there.
    #[error("{path} is no state of a checkpoint: go on from an earlier one")]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The checkpoint was written by a version that lays it out otherwise.
    #[error("{path} has schema {found}, this version reads {known}: use the version that wrote it")]
    Schema {
        /// The file.
        path: PathBuf,
        /// The schema it names.
        found: u32,
        /// The schema of this version.
        known: u32,
    },
    /// A file does not hold the bytes that were saved.
    #[error(
        "{path} is not the file that was saved, its SHA-256 differs: go on from an earlier one"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The trained tensors cannot be laid out in a file, or read from it.
    #[error("the tensors of {path} are no safetensors file")]
    Tensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with them.
        source: SafeTensorError,
    },
    /// The file does not say which of Burn's parameters a tensor was.
    #[error(
        "{path} names no parameter id for `{tensor}`: save with this library, not another program"
    )]
    ParamId {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// The state of the optimizer cannot be written or read.
    #[error(
        "the optimizer's state cannot be recorded or read: go on with the optimizer that was saved"
    )]
    Optimizer {
        /// What Burn's recorder said.
        source: RecorderError,
    },
    /// A parameter trains that the checkpoint has no tensor for.
    #[error(
        "{path} has no tensor `{tensor}`, which trains: let train what was trained when it was saved"
    )]
    Missing {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// The checkpoint has a tensor that no parameter which trains asks for.
    #[error(
        "{path} holds `{tensor}`, which does not train: let train what was trained when it was saved"
    )]
    Unused {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor has another shape than its parameter.
    #[error(
        "`{tensor}` is {found:?} in {path} and {expected:?} in the model: make the model that was saved"
    )]
    Shape {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape in the checkpoint.
        found: Vec<usize>,
        /// Its shape in the model.
        expected: Vec<usize>,
    },
    /// A tensor has another type than its parameter.
    #[error(
        "`{tensor}` is {found} in {path} and {expected} in the model: make the model that was saved"
    )]
    FloatType {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type in the checkpoint, as safetensors names it.
        found: String,
        /// Its type in the model, as safetensors names it.
        expected: String,
    },
    /// A parameter trains in a type in which its moments would not come back.
    #[error(
        "`{tensor}` trains in {found:?}, but Burn brings an optimizer's state back in {kept:?}: train \
         it in {kept:?}"
    )]
    StateType {
        /// The parameter.
        tensor: String,
        /// Its type.
        found: DType,
        /// The float type of the device.
        kept: DType,
    },
    /// The folder holds checkpoints of this step or later ones.
    #[error(
        "{dir} holds a checkpoint of step {newest}, so none of step {step} goes there: go on from the \
         newest, or give the run a folder of its own"
    )]
    NotNewer {
        /// The folder.
        dir: PathBuf,
        /// The step that was to be saved.
        step: usize,
        /// The newest step in the folder.
        newest: usize,
    },
    /// A score that cannot be compared.
    #[error("the score of step {step} is {score}, which compares with no other: give none instead")]
    Score {
        /// The step.
        step: usize,
        /// The score.
        score: f64,
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

    /// Whether the checkpoint itself is broken. Otherwise it may well be whole, and must be left alone.
    pub(super) fn is_damage(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Unfinished { .. } | Self::State { .. } | Self::Damaged { .. } => true,
            _ => false,
        }
    }
}
