//! `cargo xtask`: the tests and checks of this repository, each as one command.
//!
//! Every command is printed before it runs and its output is left as it is. The first failure ends
//! the run with a status other than 0.

#![allow(clippy::print_stdout, clippy::print_stderr)] // a command prints

mod ci;
mod step;
mod suite;

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use xshell::Shell;

use step::{Step, step};
use suite::Suite;

/// The tests and checks of burn-lti.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the tests that need nothing but this repository, or one suite.
    Test {
        /// Which tests. If absent: unit, laws and parity.
        #[arg(long, value_enum)]
        suite: Option<Suite>,
    },
    /// Check the format, run clippy and build the documents, with warnings denied.
    Check(CheckArgs),
    /// Run all checks, then all tests, and print how long each part took.
    Ci(CiArgs),
    /// Run the benches.
    Bench {
        /// Handed on to the benches: a filter, or options of criterion.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

#[derive(Clone, Copy, Debug, Args)]
struct CheckArgs {
    /// Also run clippy with each backend alone, which compiles Burn again for each.
    #[arg(long)]
    features_matrix: bool,
}

#[derive(Clone, Copy, Debug, Args)]
struct CiArgs {
    #[command(flatten)]
    check: CheckArgs,
    /// Leave out the suite `real`, where its teacher and texts are not at hand.
    #[arg(long)]
    without_real: bool,
    /// Leave out what `cargo xtask test` runs, because it has just passed.
    #[arg(long)]
    tested: bool,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    let shell = Shell::new()?;
    shell.change_dir(repository()?);
    match command {
        Command::Test { suite: None } => run_all(&shell, &suite::steps(&shell, &suite::DEFAULT)?),
        Command::Test { suite: Some(suite) } => run_all(&shell, &suite.steps(&shell)?),
        Command::Check(args) => run_all(&shell, &check_steps(args)),
        Command::Ci(args) => ci::run(&shell, args),
        Command::Bench { arguments } => {
            // The benches by pattern: the package's library has none, and another harness.
            let bench = step("bench", ["bench", "--package", "burn-lti-benches"]);
            let bench = bench.with_args(["--bench", "*", "--"]);
            bench.with_args(arguments).run(&shell)
        }
    }
}

fn run_all(shell: &Shell, steps: &[Step]) -> Result<()> {
    steps.iter().try_for_each(|step| step.run(shell))
}

fn check_steps(args: CheckArgs) -> Vec<Step> {
    let deny_warnings = ["--", "-D", "warnings"];
    let mut steps = vec![
        step("format", ["fmt", "--all", "--check"]),
        step("clippy", ["clippy", "--workspace", "--all-targets"]).with_args(deny_warnings),
        // The libraries alone: the program `burn-lti` and the crate `burn_lti` would be documented in
        // the same folder.
        step("documents", ["doc", "--workspace", "--no-deps", "--lib"])
            .with_env("RUSTDOCFLAGS", "-D warnings"),
    ];
    if args.features_matrix {
        steps.extend(["flex", "ndarray"].map(|backend| {
            step(
                format!("{backend} alone"),
                ["clippy", "--no-default-features"],
            )
            .with_args(["--package", "burn-lti", "--package", "burn-lti-llama"])
            .with_args(["--features", backend])
            .with_args(deny_warnings)
        }));
    }
    steps
}

/// The root of the repository: the folder above this package.
fn repository() -> Result<PathBuf> {
    let package = env::var("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").to_owned());
    let root = PathBuf::from(package).parent().map(PathBuf::from);
    root.context("the package xtask has no folder above it")
}
