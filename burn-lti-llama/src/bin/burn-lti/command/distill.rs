//! `burn-lti distill`

use anyhow::{Result, bail};
use burn::tensor::backend::AutodiffBackend;
use burn_lti_llama::distill::{Job, OutputDir, PhaseEnd, Summary};
use burn_lti_llama::recipe::Recipe;

use super::interrupted_by_ctrl_c;
use crate::args::DistillArgs;
use crate::backend::on_backend;
use crate::progress::{self, number, percent};

pub(crate) fn run(args: &DistillArgs) -> Result<()> {
    let recipe = Recipe::load(&args.recipe.recipe, &args.recipe.set)?;
    burn_lti_llama::distill::plan(&recipe)?; // every mistake of the recipe before the folder is made
    let out = match args.resume {
        true => OutputDir::resume(&args.out)?,
        false => OutputDir::prepare(&args.out, args.overwrite)?,
    };
    let summary = on_backend!(args.backend, on(&recipe, &out))?;
    if args.json.json {
        println!("{:#}", summary.to_json());
    } else {
        print(&summary, args);
    }
    match summary.ending {
        PhaseEnd::Interrupted => bail!(
            "interrupted after step {}: the same command with --resume goes on from there",
            summary.steps
        ),
        PhaseEnd::Finished | PhaseEnd::Plateau | PhaseEnd::Patience => Ok(()),
    }
}

fn on<A: AutodiffBackend>(device: &A::Device, recipe: &Recipe, out: &OutputDir) -> Result<Summary> {
    let job = Job::new(recipe, out)
        .with_listener(progress::listener())
        .with_interrupt(interrupted_by_ctrl_c()?)
        .with_command(std::env::args().collect());
    Ok(job.run::<A>(device)?)
}

fn print(summary: &Summary, args: &DistillArgs) {
    println!(
        "KL {} -> {} nats/token, top-1 agreement {}, {} steps in {:.1} s ({:.0} tokens/s)",
        number(summary.kl_start),
        number(summary.kl_end),
        percent(summary.top1_agreement),
        summary.steps,
        summary.seconds,
        summary.tokens_per_second,
    );
    println!("student: {}", args.out.join("student").display());
}
