//! What can be wrong with weights, in files or on their way there.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use burn_lti::files::FileError;
use safetensors::tensor::SafeTensorError;

use super::{WEIGHTS, WEIGHTS_INDEX};
use crate::gguf::GgufError;

/// How many names an error lists.
const LISTED: usize = 10;

/// Why weights could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The folder has no weights in the safetensors format.
    #[error(
        "neither {WEIGHTS} nor {WEIGHTS_INDEX} in {folder}: save the model there with \
         transformers' `save_pretrained`"
    )]
    Missing {
        /// The folder.
        folder: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read {file}")]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not what it should be: cut off, no safetensors file, an index that does not fit.
    #[error("{file} {reason}")]
    Broken {
        /// The file, or the folder.
        file: PathBuf,
        /// How, and the way out.
        reason: String,
        /// What is wrong with its JSON.
        source: Option<serde_json::Error>,
    },
    /// A GGUF file.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A tensor cannot be read, or written.
    #[error("{tensor} {reason}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// Why, and the way out.
        reason: String,
    },
    /// There is no tensor of this name.
    #[error("no tensor {tensor} in {folder}")]
    NoTensor {
        /// The folder.
        folder: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// The tensors are not those of the model.
    #[error(
        "the weights in {folder} do not fit the model of its configuration{}{}{}",
        Listed("\n  missing", missing),
        Listed("\n  unused", unused),
        Listed("\n  of another shape", shapes)
    )]
    Mismatch {
        /// The folder.
        folder: PathBuf,
        /// Tensors that the model has and the folder lacks.
        missing: Vec<String>,
        /// Tensors that the folder has and the model lacks.
        unused: Vec<String>,
        /// Tensors that both have, in different shapes.
        shapes: Vec<ShapeMismatch>,
    },
    /// The tensors to be written do not fit the format.
    #[error("the tensors for {file} cannot be laid out")]
    Layout {
        /// The file that was to be written.
        file: PathBuf,
        /// What is wrong with them.
        source: SafeTensorError,
    },
    /// The file cannot be written or does not read back as it was written.
    #[error(transparent)]
    Write(#[from] FileError),
}

/// A tensor whose shape in the folder is not that in the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeMismatch {
    /// The tensor.
    pub tensor: String,
    /// Its shape in the folder.
    pub found: Vec<usize>,
    /// Its shape in the model.
    pub expected: Vec<usize>,
}

impl fmt::Display for ShapeMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            tensor,
            found,
            expected,
        } = self;
        write!(f, "{tensor} (is {found:?}, should be {expected:?})")
    }
}

/// A heading and the first few of some items; nothing at all if there is no item.
struct Listed<'a, T>(&'static str, &'a [T]);

impl<T: fmt::Display> fmt::Display for Listed<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(heading, items) = self;
        let mut separator = ": ";
        for item in items.iter().take(LISTED) {
            if separator == ": " {
                f.write_str(heading)?;
            }
            write!(f, "{separator}{item}")?;
            separator = ", ";
        }
        match items.len().saturating_sub(LISTED) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

impl WeightsError {
    pub(in crate::hf) fn broken(file: &Path, reason: impl Into<String>) -> Self {
        Self::Broken {
            file: file.to_owned(),
            reason: reason.into(),
            source: None,
        }
    }

    pub(in crate::hf) fn tensor(tensor: &str, reason: impl Into<String>) -> Self {
        Self::Tensor {
            tensor: tensor.to_owned(),
            reason: reason.into(),
        }
    }
}
