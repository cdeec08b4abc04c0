//! `burn-lti report`, and the page at the end of a run.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn_lti::files::write_atomically;
use burn_lti_llama::distill::OutputDir;
use burn_lti_llama::report::Report;

use super::check_replaceable;
use crate::args::ReportArgs;
use crate::streams::{say, tell};

/// The page in the folder of a run.
const PAGE: &str = "report.html";

pub(crate) fn run(args: &ReportArgs) -> Result<()> {
    let report = Report::read(&args.runs)?;
    let page = match (&args.out, args.runs.as_slice()) {
        (Some(page), _) => {
            check_replaceable(page, args.overwrite)?;
            write_atomically(page, report.to_html()?.as_bytes())?;
            page.clone()
        }
        (None, [run]) => {
            check_replaceable(&run.join(PAGE), args.overwrite)?;
            OutputDir::write_page(run, &report.to_html()?, args.overwrite)?
        }
        (None, _) => bail!("of several runs there is no folder for the page: name a file by --out"),
    };
    say!("report: {}", page.display());
    Ok(())
}

/// The page of a run that has ended well. A run is as good without one: what keeps it from being written is told, and
/// no more.
pub(super) fn page_of(run: &Path) -> Option<PathBuf> {
    let write = || -> Result<PathBuf> {
        let html = Report::read(&[run])?.to_html()?;
        Ok(OutputDir::write_page(run, &html, false)?)
    };
    told(run, write())
}

/// The page of runs beside each other, likewise, in a file that is replaced.
pub(super) fn page_of_all(runs: &[PathBuf], page: &Path) -> Option<PathBuf> {
    let write = || -> Result<PathBuf> {
        write_atomically(page, Report::read(runs)?.to_html()?.as_bytes())?;
        Ok(page.to_owned())
    };
    told(page, write())
}

fn told(of: &Path, written: Result<PathBuf>) -> Option<PathBuf> {
    let written = written.with_context(|| format!("no page was written of {}", of.display()));
    written
        .inspect_err(|error| {
            tell!("warning: {error:#}; the results are whole, and `burn-lti report` makes a page of them");
        })
        .ok()
}
