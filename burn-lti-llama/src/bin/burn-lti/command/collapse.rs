//! `burn-lti collapse`

use std::path::Path;

use anyhow::Result;
use burn::tensor::backend::AutodiffBackend;
use burn_lti_llama::distill::{Which, collapse_run};
use burn_lti_llama::eval::Evaluation;
use serde_json::json;

use crate::args::CollapseArgs;
use crate::backend::on_backend;
use crate::progress::{self, number, percent};
use crate::streams::say;

pub(crate) fn run(args: &CollapseArgs) -> Result<()> {
    let out = match &args.out {
        Some(out) => out.clone(),
        None => args.run.join("student"),
    };
    let (step, evaluation) = on_backend!(args.backend, on(args, &out))?;
    if args.json.json {
        say!("{:#}", json!({ "step": step, "evaluation": evaluation }));
    } else {
        say!(
            "step {step}: KL {} nats/token, top-1 agreement {}",
            number(evaluation.kl),
            percent(evaluation.top1_agreement)
        );
        say!("student: {}", out.display());
    }
    Ok(())
}

fn on<A: AutodiffBackend>(
    device: &A::Device,
    args: &CollapseArgs,
    out: &Path,
) -> Result<(usize, Evaluation)> {
    let which = match args.best {
        true => Which::Best,
        false => Which::Latest,
    };
    let listener = progress::listener();
    Ok(collapse_run::<A>(&args.run, which, out, device, &listener)?)
}
