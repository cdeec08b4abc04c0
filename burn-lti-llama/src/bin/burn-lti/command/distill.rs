//! `burn-lti distill`

use anyhow::{Result, bail};
use burn::tensor::backend::AutodiffBackend;
use burn_lti_llama::distill::{Job, Kept, OutputDir, PhaseEnd, Summary};
use burn_lti_llama::recipe::Recipe;

use super::report::page_of;
use super::with_shape;
use crate::args::DistillArgs;
use crate::backend::on_backend;
use crate::progress::{self, number, percent};
use crate::signals::interrupted_by_signals;
use crate::streams::{command_line, say};

/// How a run that was interrupted goes on.
const WAY_ON: &str =
    "the same command goes on from there with --resume, in place of --overwrite if that was given";

pub(crate) fn run(args: &DistillArgs) -> Result<()> {
    let recipe = args.recipe.load()?;
    if recipe.student.target.is_none() {
        burn_lti_llama::distill::plan_of_config(&recipe)?; // what is found fast, before the run reads the rest
    }
    let out = match args.resume {
        true => OutputDir::resume(&args.out)?,
        false => OutputDir::prepare(&args.out, args.overwrite)?,
    };
    out.check_apart_from_file(&args.recipe.recipe)?;
    let summary = on_backend!(args.backend, on(&recipe, &out, args.keep_last))?;
    let page = match summary.ending {
        PhaseEnd::Finished | PhaseEnd::Plateau | PhaseEnd::Patience if recipe.report => {
            page_of(&args.out)
        }
        _ => None,
    };
    if args.json.json {
        say!("{:#}", summary.to_json());
    } else {
        print(&summary, &out);
        if let Some(page) = page {
            say!("report:  {}", page.display());
        }
    }
    match summary.ending {
        PhaseEnd::Interrupted => bail!("interrupted after step {}: {WAY_ON}", summary.steps),
        PhaseEnd::NotFinite => bail!(
            "the loss was no longer a number after step {}: the student is that of step {}; lower \
             train.rate or train.learning_rate, or look at the text of that step",
            summary.steps,
            summary.student_step
        ),
        PhaseEnd::Finished | PhaseEnd::Plateau | PhaseEnd::Patience => Ok(()),
    }
}

fn on<A: AutodiffBackend>(
    device: &A::Device,
    recipe: &Recipe,
    out: &OutputDir,
    keep_last: bool,
) -> Result<Summary> {
    let interrupt = interrupted_by_signals(WAY_ON)?;
    let (recipe, searched) = with_shape::<A>(recipe, out, &interrupt, device)?;
    let job = Job::new(&recipe, out)
        .with_listener(progress::listener())
        .with_interrupt(interrupt)
        .with_keep_last(keep_last)
        .with_command(command_line())
        .with_searched(searched);
    Ok(job.run::<A>(device)?)
}

fn print(summary: &Summary, out: &OutputDir) {
    say!(
        "KL {} -> {} nats/token, top-1 agreement {}, {} steps in {:.1} s ({:.0} tokens/s)",
        number(summary.kl_start),
        number(summary.kl_end),
        percent(summary.top1_agreement),
        summary.steps,
        summary.seconds,
        summary.tokens_per_second,
    );
    let student = out.student_after(summary.ending);
    say!("student: {}, {}", student.display(), which(summary));
}

/// Which student of its run was exported, and why.
fn which(summary: &Summary) -> String {
    let (step, last) = (summary.student_step, summary.steps);
    match (summary.kept, step) {
        (Kept::Last, _) => format!("of the last step, {last}, as asked for"),
        (Kept::Best, 0) => "the start: no step had a lower held-out KL".to_owned(),
        (Kept::Best, _) if step == last => format!("of the last step, {last}, the best there was"),
        (Kept::Best, _) => format!("of step {step} of {last}, which had the lowest held-out KL"),
    }
}
