//! What can end a comparison.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

use burn_lti::files::{FileError, LockError};
use thiserror::Error;

use crate::distill::DistillError;

/// A comparison that did not come to its end.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CompareError {
    /// This cannot be compared, or not in this folder; or someone asked to stop.
    #[error("{0}")]
    Refused(String),
    /// One of the starts does not suit the recipe, what lies in the folder of a run is another run, or a
    /// run failed.
    #[error("{what}")]
    Run {
        /// Which start or run, and the way out.
        what: String,
        /// Why.
        source: DistillError,
    },
    /// The recipe would do from no start; or what a run reads, or has written, cannot be read.
    #[error(transparent)]
    Distill(#[from] DistillError),
    /// The output folder cannot be used.
    #[error("cannot use {} for output", path.display())]
    Output {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the output.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another comparison writes into the folder.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The chart.
    #[error("cannot draw the chart: the runs are whole, and curves.csv has its numbers")]
    Chart {
        /// What the drawing library said.
        source: Box<dyn StdError + Send + Sync>,
    },
}
