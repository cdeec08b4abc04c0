//! What became of a run, as one HTML page: no script, nothing that is fetched, light and dark.
//!
//! Every figure on the page stands in a file of the run. What the run did not write is not on the page.
//!
//! | where to look | |
//! |---|---|
//! | `data` | the files of a run, read |
//! | `curves` | lines of `metrics.jsonl` as SVG |
//! | `page` | the template, and how it writes numbers |
//! | `page.html`, `page.css` | what it looks like |

mod curves;
mod data;
mod error;
mod page;

use std::path::Path;

pub use error::ReportError;

use data::Run;

/// What became of one run, or of several, read from their folders.
#[derive(Debug)]
pub struct Report {
    runs: Vec<Run>,
}

impl Report {
    /// Reads what `distill` or `start` has left in each of these folders.
    ///
    /// # Errors
    ///
    /// [`ReportError`], naming the folder that holds no finished run, or the file that cannot be read.
    pub fn read<P: AsRef<Path>>(folders: &[P]) -> Result<Self, ReportError> {
        let runs = folders.iter().map(|folder| Run::read(folder.as_ref()));
        Ok(Self {
            runs: runs.collect::<Result<_, _>>()?,
        })
    }

    /// The page, whole in itself.
    ///
    /// # Errors
    ///
    /// [`ReportError::Chart`] and [`ReportError::Page`], if what draws or writes it fails.
    pub fn to_html(&self) -> Result<String, ReportError> {
        page::html(&self.runs)
    }
}
