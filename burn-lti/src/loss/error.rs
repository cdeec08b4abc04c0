//! Losses that make no sense.

use thiserror::Error;

/// A loss that cannot be. The message names what is wrong and what to choose instead.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum LossError {
    /// A setting is out of its range.
    #[error("{0}")]
    Setting(String),
    /// Student and teacher cannot be compared, or not in these layers.
    #[error("{0}")]
    Models(String),
}
