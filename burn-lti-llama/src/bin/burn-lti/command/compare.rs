//! `burn-lti compare`

use anyhow::Result;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::map::Start;
use burn_lti_llama::compare::{CompareDir, CompareError, CompareJob, Comparison, start_named};

use super::report::page_of_all;
use crate::args::CompareArgs;
use crate::backend::on_backend;
use crate::progress;
use crate::signals::interrupted_by_signals;
use crate::streams::{command_line, say};

pub(crate) fn run(args: &CompareArgs) -> Result<()> {
    let recipe = args.recipe.load()?;
    // Every mistake before the folder is made.
    let job = CompareJob::new(&recipe, &starts(args)?, args.seeds)?;
    let out = match args.resume {
        true => CompareDir::resume(&args.out)?,
        false => CompareDir::prepare(&args.out)?,
    };
    let comparison = on_backend!(args.backend, on(job, &out))?;
    let page = || {
        let runs = comparison.starts.iter().flat_map(|start| &start.runs);
        let runs: Vec<_> = runs.map(|run| args.out.join(&run.folder)).collect();
        page_of_all(&runs, &out.page_path())
    };
    let page = recipe.report.then(page).flatten();
    if args.json.json {
        say!("{:#}", comparison.to_json());
    } else {
        say!("{comparison}");
        say!("chart:   {}", out.chart_path().display());
        say!("numbers: {}", out.json_path().display());
        if let Some(page) = page {
            say!("report:  {}", page.display());
        }
    }
    Ok(())
}

fn on<A: AutodiffBackend>(
    device: &A::Device,
    job: CompareJob,
    out: &CompareDir,
) -> Result<Comparison> {
    let job = job
        .with_listener(progress::listener())
        .with_interrupt(interrupted_by_signals(
            "the same command with --resume goes on",
        )?)
        .with_command(command_line());
    Ok(job.run::<A>(out, device)?)
}

/// The starts named, or all.
fn starts(args: &CompareArgs) -> Result<Vec<Start>, CompareError> {
    match args.starts.as_slice() {
        [] => Ok(Start::ALL.to_vec()),
        names => names.iter().map(|name| start_named(name.trim())).collect(),
    }
}
