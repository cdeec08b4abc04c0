//! `burn-lti start`

use anyhow::Result;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::start::calibrated::LayerReport;
use burn_lti_llama::distill::{Job, OutputDir, Started};
use burn_lti_llama::recipe::Recipe;

use crate::args::StartArgs;
use crate::backend::on_backend;
use crate::progress::{self, number, percent};

pub(crate) fn run(args: &StartArgs) -> Result<()> {
    let recipe = Recipe::load(&args.recipe.recipe, &args.recipe.set)?;
    burn_lti_llama::distill::plan(&recipe)?; // every mistake of the recipe before the folder is made
    let out = OutputDir::prepare(&args.out, args.overwrite)?;
    let started = on_backend!(args.backend, on(&recipe, &out))?;
    if args.json.json {
        println!("{:#}", started.to_json());
    } else {
        print(&started, args);
    }
    Ok(())
}

fn on<A: AutodiffBackend>(device: &A::Device, recipe: &Recipe, out: &OutputDir) -> Result<Started> {
    let job = Job::new(recipe, out)
        .with_listener(progress::listener())
        .with_command(std::env::args().collect());
    Ok(job.start::<A>(device)?)
}

fn print(started: &Started, args: &StartArgs) {
    let title = [
        "layer",
        "output",
        "rounds",
        "residual",
        "ridge",
        "strength",
        "seconds",
        "key/value heads",
        "query heads",
    ];
    let rows: Vec<Vec<String>> = started.layers.iter().map(row).collect();
    if !rows.is_empty() {
        let title: Vec<String> = title.iter().map(ToString::to_string).collect();
        let rows: Vec<Vec<String>> = [title].into_iter().chain(rows).collect();
        for line in progress::columns(&rows) {
            println!("{line}");
        }
    }
    println!(
        "KL {} nats/token, top-1 agreement {}, {:.1} s",
        number(started.evaluation.kl),
        percent(started.evaluation.top1_agreement),
        started.seconds,
    );
    println!("student: {}", args.out.join("student").display());
}

fn row(report: &LayerReport) -> Vec<String> {
    vec![
        report.layer.to_string(),
        format!("{:.4}", report.residual_of_output),
        report.rounds.to_string(),
        format!("{:.4}", report.residual),
        report
            .ridge
            .map_or_else(|| "-".to_owned(), |ridge| ridge.to_string()),
        report.strength.to_string(),
        format!("{:.1}", report.seconds),
        format!("{:?}", report.heads.key_value),
        format!("{:?}", report.heads.query),
    ]
}
