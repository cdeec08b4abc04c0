//! What can be wrong with a cache, or with what is to go into one.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::Fault;
use crate::files::{FileError, LockError};

/// A cache that cannot be written or read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CacheError {
    /// There is no cache in the folder.
    #[error("no index.json in {folder}: write the cache with `burn-lti cache-teacher`")]
    Missing {
        /// The folder.
        folder: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read {file}: bring it back, or {AGAIN}")]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system reported.
        source: io::Error,
    },
    /// A file cannot be written; what was there before still is.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another writer has the folder.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The index is broken, or another version's.
    #[error("{what}")]
    Index {
        /// The index, what is wrong with it, and the way out.
        what: String,
        /// Where it is no JSON.
        source: Option<serde_json::Error>,
    },
    /// A shard is not the one that was written, or does not hold its rows.
    #[error("{what}; {AGAIN}")]
    Shard {
        /// The shard, and what is wrong with it.
        what: String,
        /// Where its header is no JSON of tensors.
        source: Option<serde_json::Error>,
    },
    /// There is no such cache, the folder is of something else, the cache is another or unfinished, or
    /// it has no such rows. The message names what it is and the way out.
    #[error("{0}")]
    Mismatch(String),
    /// What was to be written, or was read, is no distribution of a teacher.
    #[error("{what}")]
    Token {
        /// The row, counted in the whole cache, the token, and the way out.
        what: String,
        /// What is wrong with it.
        source: Fault,
    },
}

/// The way out of a shard that was finished and is so no longer.
pub(super) const AGAIN: &str = "run `burn-lti cache-teacher` again as it was run, with this folder as --out: it \
                                writes this shard and those after it anew";

impl CacheError {
    /// Names the file of an input/output error: `map_err(CacheError::reading(path))`.
    pub(super) fn reading(file: &Path) -> impl Fn(io::Error) -> Self + '_ {
        move |source| Self::Read {
            file: file.to_owned(),
            source,
        }
    }

    /// A shard of which this is wrong.
    pub(super) const fn shard(what: String) -> Self {
        Self::Shard { what, source: None }
    }

    /// Not all rows are there.
    pub(super) fn incomplete(folder: &Path, found: usize, rows: usize) -> Self {
        Self::Mismatch(format!(
            "{} has {found} of its {rows} rows: run `burn-lti cache-teacher` again to finish it",
            folder.display()
        ))
    }
}
