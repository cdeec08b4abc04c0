//! What can be wrong with weights, in files or on their way there.

use std::fmt;
use std::io;
use std::path::PathBuf;

use burn_lti::files::FileError;
use safetensors::tensor::SafeTensorError;

use super::{MAX_HEADER, WEIGHTS, WEIGHTS_INDEX};

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
    /// The file is shorter or longer than it says.
    #[error("{file} should have {expected} bytes and has {found}: download or save it again")]
    Size {
        /// The file.
        file: PathBuf,
        /// The least size that fits what the file says of itself.
        expected: u64,
        /// The size it has.
        found: u64,
    },
    /// The header is longer than the format allows.
    #[error(
        "{file} claims a header of {length} bytes, more than {MAX_HEADER}: no safetensors file"
    )]
    HeaderLength {
        /// The file.
        file: PathBuf,
        /// The length it claims.
        length: u64,
    },
    /// The header is not that of a safetensors file, or its tensors overlap, leave gaps or do not
    /// have the size of their shapes.
    #[error("{file} has a broken header: download or save it again")]
    Header {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The index of a sharded model is broken.
    #[error("{file} is not an index of safetensors shards: download or save it again")]
    Index {
        /// The index.
        file: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The index names a shard outside its folder.
    #[error("{file} names the shard {shard:?}: a shard has to lie in the index's own folder")]
    ShardName {
        /// The index.
        file: PathBuf,
        /// The name.
        shard: String,
    },
    /// The index names a tensor that is not in the shard it names.
    #[error("{file} should hold {tensor}, says the index, and does not: download or save it again")]
    NotInShard {
        /// The shard.
        file: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// Two shards hold the same tensor.
    #[error("{tensor} is in {first} and in {second}: remove one of them")]
    TwoShards {
        /// The tensor.
        tensor: String,
        /// A shard that holds it.
        first: PathBuf,
        /// Another one.
        second: PathBuf,
    },
    /// A tensor's numbers are of a type that we do not read.
    #[error(
        "{tensor} in {file} is {found}, which is not supported: save the model in F32, F16 or BF16"
    )]
    DataType {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type, as the file names it.
        found: String,
    },
    /// A tensor holds infinity or no number at all.
    #[error("{tensor} of {file} holds {value}: the model diverged, or the file is damaged")]
    NotFinite {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The first such value.
        value: f32,
    },
    /// The values of a tensor to be written cannot be had.
    #[error("`{tensor}` cannot be read from the device: {detail}")]
    Device {
        /// The tensor.
        tensor: String,
        /// What the backend says.
        detail: String,
    },
    /// The head of a tied model is written a second time, and differs.
    #[error(
        "{folder} says tie_word_embeddings, but its lm_head.weight is not its embedding: set \
         tie_word_embeddings to false in config.json if the head is its own"
    )]
    TiedHead {
        /// The folder.
        folder: PathBuf,
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
        "the weights in {folder} do not fit the model of its config.json{}{}{}",
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
    /// A tensor to be written has not as many values as its shape.
    #[error("{tensor} of shape {shape:?} was given {values} values to write")]
    Values {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// The number of values given.
        values: usize,
    },
    /// Two tensors to be written have the same name.
    #[error("two tensors to be written are called {tensor}")]
    SameName {
        /// The name.
        tensor: String,
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
