//! Why a run cannot be resumed.

use std::fmt;
use std::io;
use std::path::PathBuf;

use burn_lti::files::FileError;
use thiserror::Error;

use super::SCHEMA;
use crate::hashes::HashError;
use crate::recipe::RecipeError;

/// Why a run has no manifest, or cannot be resumed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The manifest cannot be read.
    #[error("cannot read {file}: give the folder of a run that was begun")]
    Read {
        /// The manifest.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file holds something else.
    #[error(
        "{file} is no manifest of a run: put the run's own back, or delete it, and --resume takes the teacher \
         and the texts for those of the run"
    )]
    Syntax {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The manifest was written by a program that writes other manifests.
    #[error(
        "{file} has schema {found}, and this program knows {SCHEMA}: resume with the version of \
         the program that began the run"
    )]
    Schema {
        /// The manifest.
        file: PathBuf,
        /// Its schema.
        found: u32,
    },
    /// The manifest has a path that JSON cannot hold.
    #[error("cannot write {file}: rename the text file whose path is no Unicode")]
    Unicode {
        /// The manifest.
        file: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The manifest cannot be written.
    #[error(transparent)]
    Write(#[from] FileError),
    /// What the run reads cannot be hashed.
    #[error(transparent)]
    Hash(#[from] HashError),
    /// A recipe that cannot be compared, because TOML cannot hold it.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The teacher, a text or the recipe is another.
    #[error(
        "{what} {change}: resume with the run's own {own}, or begin a new run in another folder"
    )]
    Changed {
        /// What is another.
        what: String,
        /// What happened to it.
        change: String,
        /// What the run has to be given.
        own: &'static str,
    },
}

/// What happened to something since a run began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It is another.
    Replaced,
    /// It is no longer there.
    Removed,
    /// It was not there.
    Added,
}

impl Change {
    pub(super) fn between<T: PartialEq>(then: Option<&T>, now: Option<&T>) -> Option<Self> {
        match (then, now) {
            (Some(then), Some(now)) if then != now => Some(Self::Replaced),
            (Some(_), None) => Some(Self::Removed),
            (None, Some(_)) => Some(Self::Added),
            _ => None,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Replaced => "is not the one that this run began with",
            Self::Removed => "was there when this run began, and is no longer",
            Self::Added => "was not there when this run began",
        })
    }
}
