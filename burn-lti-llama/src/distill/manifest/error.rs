//! Why a run cannot be resumed.

use std::fmt;
use std::io;
use std::path::PathBuf;

use burn_lti::files::FileError;
use thiserror::Error;
use toml::Value;

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
    #[error("{file} is no manifest of a run: give the folder of a run that was begun")]
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
    /// A file of the teacher is another.
    #[error("the teacher's {file} {change}: {}", resume_with("teacher"))]
    TeacherFile {
        /// The file, by its name in the teacher's folder.
        file: String,
        /// What happened to it.
        change: Change,
    },
    /// A tensor of the teacher is another.
    #[error("the teacher's tensor {tensor} {change}: {}", resume_with("teacher"))]
    TeacherTensor {
        /// The tensor.
        tensor: String,
        /// What happened to it.
        change: Change,
    },
    /// A text is another, or stands in another place.
    #[error(
        "the text {file} of `{key}` {change}: {}",
        resume_with("texts, in their order")
    )]
    Text {
        /// The key of the recipe.
        key: &'static str,
        /// The file.
        file: PathBuf,
        /// What happened to it.
        change: Change,
    },
    /// The recipe is another.
    #[error(
        "`{key}` was {} and is now {}: {}",
        or_absent(then),
        or_absent(now),
        resume_with("recipe")
    )]
    Key {
        /// Section and key.
        key: String,
        /// The value with which the run began.
        then: Option<Value>,
        /// The value now.
        now: Option<Value>,
    },
}

/// What happened to something since a run began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
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

/// The way out of a difference.
fn resume_with(what: &str) -> String {
    format!("resume with the run's own {what}, or begin a new run in another folder")
}

fn or_absent(value: &Option<Value>) -> String {
    value
        .as_ref()
        .map_or_else(|| "absent".into(), Value::to_string)
}
