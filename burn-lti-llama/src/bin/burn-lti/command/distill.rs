//! `burn-lti distill`

use anyhow::Result;
use burn::tensor::backend::AutodiffBackend;
use burn_lti_llama::distill::{OutputDir, Summary, distill};
use burn_lti_llama::recipe::Recipe;

use crate::args::DistillArgs;
use crate::backend::on_backend;
use crate::progress::{self, number, percent};

pub(crate) fn run(args: &DistillArgs) -> Result<()> {
    let recipe = Recipe::load(&args.recipe.recipe, &args.recipe.set)?;
    burn_lti_llama::distill::plan(&recipe)?; // every mistake of the recipe before the folder is made
    let out = OutputDir::prepare(&args.out, args.overwrite)?;
    let summary = on_backend!(args.backend, on(&recipe, &out))?;
    if args.json.json {
        println!("{:#}", summary.to_json());
    } else {
        print(&summary, args);
    }
    Ok(())
}

fn on<A: AutodiffBackend>(device: &A::Device, recipe: &Recipe, out: &OutputDir) -> Result<Summary> {
    Ok(distill::<A>(recipe, out, device, &progress::listener())?)
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
