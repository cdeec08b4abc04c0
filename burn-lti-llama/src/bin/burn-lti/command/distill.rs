//! `burn-lti distill`

use std::path::Path;

use anyhow::{Result, bail};
use burn::tensor::backend::AutodiffBackend;
use burn_lti_llama::distill::{Job, Kept, OutputDir, PhaseEnd, Summary};
use burn_lti_llama::recipe::Recipe;

use super::{interrupted_by_ctrl_c, with_shape};
use crate::args::DistillArgs;
use crate::backend::on_backend;
use crate::progress::{self, number, percent};
use crate::streams::{command_line, say};

pub(crate) fn run(args: &DistillArgs) -> Result<()> {
    let recipe = args.recipe.load()?;
    if recipe.student.target.is_none() {
        burn_lti_llama::distill::plan_of_config(&recipe)?; // what is found fast, before the run reads the rest
    }
    let out = match args.resume {
        true => OutputDir::resume(&args.out)?,
        false => OutputDir::prepare(&args.out, args.overwrite)?,
    };
    let resumed = args.resume.then_some(args.out.as_path());
    let summary = on_backend!(args.backend, on(&recipe, &out, resumed, args.keep_last))?;
    if args.json.json {
        say!("{:#}", summary.to_json());
    } else {
        print(&summary, args);
    }
    match summary.ending {
        PhaseEnd::Interrupted => bail!(
            "interrupted after step {}: the same command with --resume goes on from there",
            summary.steps
        ),
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
    resumed: Option<&Path>,
    keep_last: bool,
) -> Result<Summary> {
    let recipe = with_shape::<A>(recipe, resumed, device)?;
    let job = Job::new(&recipe, out)
        .with_listener(progress::listener())
        .with_interrupt(interrupted_by_ctrl_c()?)
        .with_keep_last(keep_last)
        .with_command(command_line());
    Ok(job.run::<A>(device)?)
}

fn print(summary: &Summary, args: &DistillArgs) {
    say!(
        "KL {} -> {} nats/token, top-1 agreement {}, {} steps in {:.1} s ({:.0} tokens/s)",
        number(summary.kl_start),
        number(summary.kl_end),
        percent(summary.top1_agreement),
        summary.steps,
        summary.seconds,
        summary.tokens_per_second,
    );
    let student = args.out.join("student");
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
