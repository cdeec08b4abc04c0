//! One projection, forward and backward, a few times. Prints a line of JSON.

#![allow(clippy::print_stdout)] // a program prints

use anyhow::{Context, Result};
use burn::tensor::backend::AutodiffBackend;
use burn_lti_benches::backend::BackendName;
use burn_lti_benches::measurement::Measurement;
use burn_lti_benches::projection::{CASES, Case};
use burn_lti_benches::{memory, on_backend};
use clap::Parser;

/// One projection, forward and backward. Prints a line of JSON: losses, seconds, peaks of memory.
#[derive(Debug, Parser)]
struct Arguments {
    /// Which one, by its name.
    #[arg(long)]
    case: String,
    /// How often.
    #[arg(long, default_value_t = 8)]
    steps: usize,
    /// The backend to compute on.
    #[arg(long, value_enum)]
    backend: BackendName,
}

fn main() -> Result<()> {
    memory::as_in_the_command();
    let arguments = Arguments::parse();
    let case = CASES.iter().find(|case| case.name == arguments.case);
    let names = CASES.map(|case| case.name).join(", ");
    let case = case.with_context(|| format!("no case `{}`: there are {names}", arguments.case))?;
    let measured = on_backend!(arguments.backend, measure(case, arguments.steps))?;
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}

fn measure<A: AutodiffBackend>(case: &Case, steps: usize) -> Result<Measurement> {
    let device = A::Device::default();
    let task = case.task::<A>(&device)?;
    Measurement::of_steps::<A>(steps, &device, || task.step())
}
