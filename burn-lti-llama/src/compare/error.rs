//! What can end a comparison.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

use burn_lti::files::FileError;
use burn_lti::map::Start;
use thiserror::Error;

use crate::distill::DistillError;
use crate::recipe::way_out;

/// A comparison that did not come to its end.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CompareError {
    /// No start has this name.
    #[error("there is no start `{name}`: {}", way_out(suggestion, "starts", known))]
    UnknownStart {
        /// The name.
        name: String,
        /// The names that there are.
        known: Vec<String>,
        /// The nearest of them.
        suggestion: Option<String>,
    },
    /// There is nothing to compare.
    #[error("no start is named: name at least one of {}", known.join(", "))]
    NoStart {
        /// The names that there are.
        known: Vec<String>,
    },
    /// A start has one folder for each seed.
    #[error("the start `{start}` is named twice: name it once")]
    Twice {
        /// The start.
        start: Start,
    },
    /// There is nothing to run.
    #[error("0 seeds make no run: ask for at least 1, which is one run from each start")]
    NoSeeds,
    /// A recipe could not hold the last seed.
    #[error(
        "train.seed is {first}, from where {seeds} seeds go beyond {}, the largest that a recipe \
         holds: set train.seed lower, or ask for fewer",
        i64::MAX
    )]
    Seeds {
        /// The recipe's seed.
        first: u64,
        /// Seeds asked for.
        seeds: usize,
    },
    /// The recipe would do from another start.
    #[error(
        "the start `{start}` does not suit the recipe: change the recipe as said, or compare without \
         `{start}`"
    )]
    Start {
        /// The start.
        start: Start,
        /// Why, and what would suit.
        source: DistillError,
    },
    /// The recipe would do from no start; or what a run reads, or has written, cannot be read.
    #[error(transparent)]
    Distill(#[from] DistillError),
    /// What lies in the folder of a run is another run, or none.
    #[error(
        "what is in {} is no run of this comparison: choose another --out, or compare what was compared \
         there",
        dir.display()
    )]
    Foreign {
        /// The folder of the run.
        dir: PathBuf,
        /// In what it differs.
        source: DistillError,
    },
    /// A run failed.
    #[error(
        "the run in {} did not come to its end: correct what is said; if the recipe stays as it is, \
         --resume goes on",
        dir.display()
    )]
    Run {
        /// The folder of the run.
        dir: PathBuf,
        /// What went wrong.
        source: DistillError,
    },
    /// Someone asked a run to stop.
    #[error(
        "interrupted in {} after step {step}: the same command with --resume goes on from there",
        dir.display()
    )]
    Interrupted {
        /// The folder of the run.
        dir: PathBuf,
        /// Its last step.
        step: usize,
    },
    /// Someone asked to stop when one run was over and the next had not begun.
    #[error(
        "interrupted before the run in {} began: the same command with --resume goes on with it",
        dir.display()
    )]
    InterruptedBetween {
        /// The folder of the run.
        dir: PathBuf,
    },
    /// The output folder already holds something.
    #[error(
        "{} already holds files: choose another --out, or add --resume to go on with the comparison \
         in it",
        dir.display()
    )]
    OutputExists {
        /// The folder.
        dir: PathBuf,
    },
    /// The folder holds something that is no comparison.
    #[error(
        "{} holds files and no comparison: give the --out of the one that is to go on",
        dir.display()
    )]
    NoComparison {
        /// The folder.
        dir: PathBuf,
    },
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
    /// The chart.
    #[error("cannot draw the chart: the runs are whole, and curves.csv has its numbers")]
    Chart {
        /// What the drawing library said.
        source: Box<dyn StdError + Send + Sync>,
    },
}
