//! What can keep a report from being written.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// No report.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The folder holds no finished run.
    #[error(
        "{} holds neither summary.json nor start.json: it is no finished run of `distill` or `start`; name the \
         folder that was given to --out, or finish the run by --resume", folder.display()
    )]
    NoRun {
        /// The folder.
        folder: PathBuf,
    },
    /// A file of the run cannot be read.
    #[error("cannot read {}: put it back into the run's folder", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the run is not what a run writes.
    #[error("{} is damaged: put back the file that the run wrote", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// A curve.
    #[error(
        "cannot draw the curves of the report: the run is whole, and metrics.jsonl has its numbers"
    )]
    Chart {
        /// What the drawing library said.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The page.
    #[error(
        "cannot write the page of the report: the run is whole, and summary.json has its numbers"
    )]
    Page(#[from] minijinja::Error),
}
