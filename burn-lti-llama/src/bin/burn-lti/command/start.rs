//! `burn-lti start`

use anyhow::Result;
use burn::tensor::backend::AutodiffBackend;
use burn_lti_llama::distill::{Job, OutputDir, StartSummary};
use burn_lti_llama::recipe::Recipe;

use super::report::page_of;
use super::with_shape;
use crate::args::StartArgs;
use crate::backend::on_backend;
use crate::progress::{self, number, percent};
use crate::signals::interrupted_by_signals;
use crate::streams::{command_line, say, say_on};

/// How a start that was interrupted is made after all.
const WAY_ON: &str = "`distill --resume` goes on from here, and the same command with --overwrite makes the start again";

pub(crate) fn run(args: &StartArgs) -> Result<()> {
    let recipe = args.recipe.load()?;
    if recipe.student.target.is_none() {
        burn_lti_llama::distill::plan_of_config(&recipe)?; // what is found fast, before the run reads the rest
    }
    let out = OutputDir::prepare(&args.out, args.overwrite)?;
    out.check_apart_from_file(&args.recipe.recipe)?;
    let summary = on_backend!(args.backend, on(&recipe, &out))?;
    let page = recipe.report.then(|| page_of(&args.out)).flatten();
    if args.json.json {
        say!("{:#}", summary.to_json());
        return Ok(());
    }
    say_on!("{summary}");
    say!(
        "KL {} nats/token, top-1 agreement {}, {:.1} s",
        number(summary.evaluation.kl),
        percent(summary.evaluation.top1_agreement),
        summary.seconds,
    );
    say!("student: {}", args.out.join("student").display());
    if let Some(page) = page {
        say!("report:  {}", page.display());
    }
    Ok(())
}

fn on<A: AutodiffBackend>(
    device: &A::Device,
    recipe: &Recipe,
    out: &OutputDir,
) -> Result<StartSummary> {
    let interrupt = interrupted_by_signals(WAY_ON)?;
    let (recipe, searched) = with_shape::<A>(recipe, out, &interrupt, device)?;
    let job = Job::new(&recipe, out)
        .with_listener(progress::listener())
        .with_interrupt(interrupt)
        .with_command(command_line())
        .with_searched(searched);
    Ok(job.start::<A>(device)?)
}
