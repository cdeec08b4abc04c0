//! `burn-lti report`

use anyhow::{Result, bail};
use burn_lti::files::write_atomically;
use burn_lti_llama::report::Report;

use super::check_replaceable;
use crate::args::ReportArgs;
use crate::streams::say;

/// The page in the folder of a run.
const PAGE: &str = "report.html";

pub(crate) fn run(args: &ReportArgs) -> Result<()> {
    let report = Report::read(&args.runs)?;
    let page = match (&args.out, args.runs.as_slice()) {
        (Some(page), _) => page.clone(),
        (None, [run]) => run.join(PAGE),
        (None, _) => bail!("of several runs there is no folder for the page: name a file by --out"),
    };
    check_replaceable(&page, args.overwrite)?;
    write_atomically(&page, report.to_html()?.as_bytes())?;
    say!("report: {}", page.display());
    Ok(())
}
