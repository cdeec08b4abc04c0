//! What can be wrong with a `config.json`.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::list;
use crate::gguf::GgufError;

/// Why a `config.json` is refused.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: give the folder of a Hugging Face model, which holds config.json", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A repository of the Hub is not on this machine.
    #[error(
        "{id} is not in {}: fetch it with `hf download {id} --revision {revision}`",
        cache.display()
    )]
    NotFetched {
        /// The repository.
        id: String,
        /// The revision.
        revision: String,
        /// Where it would be.
        cache: PathBuf,
    },
    /// The folder holds something else than a model.
    #[error("{} {reason}", folder.display())]
    NoModel {
        /// The folder.
        folder: PathBuf,
        /// What it holds, and the way out.
        reason: &'static str,
    },
    /// A GGUF file.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The file is not JSON, or no JSON object.
    #[error("{} is no JSON object: save the model's config.json again", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A required field is not there.
    #[error("{} has no field `{field}`: add it, it has no default", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
    },
    /// A field holds a value of another type.
    #[error("{}: `{field}` has the wrong type: correct its value", path.display())]
    WrongType {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// What was expected.
        source: serde_json::Error,
    },
    /// The query heads cannot be shared out among the key/value heads.
    #[error(
        "{}: `num_attention_heads` is {heads}, no multiple of `num_key_value_heads`, which is \
         {kv_heads}: set `num_key_value_heads` to one of {}",
        path.display(), list(allowed)
    )]
    KvHeads {
        /// The file.
        path: PathBuf,
        /// Query heads.
        heads: usize,
        /// Key/value heads.
        kv_heads: usize,
        /// The key/value heads that would do.
        allowed: Vec<usize>,
    },
    /// A field that was to be accepted needs no acceptance.
    #[error(
        "config.json has no field `{field}` that is not known here, so there is nothing to accept: take it out of \
         --accept and of teacher.accept"
    )]
    NothingToAccept {
        /// The field.
        field: String,
    },
    /// A field asks for what this crate does not compute, or for what no Llama has.
    #[error("{}: `{field}` {reason}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// Its value, what it may be, and the way out.
        reason: String,
    },
}

impl ConfigError {
    pub(crate) fn refused(path: &Path, field: &str, reason: String) -> Self {
        Self::Refused {
            path: path.to_path_buf(),
            field: field.to_owned(),
            reason,
        }
    }
}
