//! `cargo xtask`: the set-up, the tests and the checks of this repository, each as one command.
//!
//! | module | what it holds |
//! |---|---|
//! | `setup` | what `cargo xtask setup` fetches: libtorch, a Vulkan driver, peers, teachers |
//! | `cache` | the folder that all of it goes into |
//! | `programs` | programs of the system, and how to get those that are missing |
//! | `environment` | the variables of everything that is started |
//! | `kernels` | kernels of wgpu, kept from one run of the tests to the next |
//! | `backend` | the backends: features, names of tests, whether they are set up |
//! | `suite`, `check`, `ci` | what runs, as steps |
//! | `bench` | the benches, ours against the peers, how cost grows |
//! | `figures` | what the documents claim about quality |
//! | `licences` | under which licences the crates are that a build holds |
//! | `fuzz` | files that nobody wrote, for every parser |
//! | `chaos` | kills, full disks and what else happens to a command that writes |
//! | `step`, `libtest` | one command, and the tests that it ran |
//! | `report` | the run of all steps, and the table at its end |
//!
//! Every command is printed before it runs and its output is left as it is. What is left out is
//! named at the end. A failure ends with a status other than 0.
//!
//! It is plain clap and xshell, not tracel-xtask, which Burn uses. That would bring its own commands
//! and its own choice of environments and features; the backends and suites here would have to be
//! written beside it all the same.

#![allow(clippy::print_stdout, clippy::print_stderr)] // a command prints

mod backend;
mod bench;
mod cache;
mod chaos;
mod check;
mod ci;
mod environment;
mod figures;
mod fuzz;
mod kernels;
mod libtest;
mod licences;
mod programs;
mod report;
mod setup;
mod step;
mod suite;

use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use xshell::Shell;

use backend::Backend;
use bench::BenchArgs;
use cache::Cache;
use chaos::ChaosArgs;
use environment::Environment;
use figures::FiguresArgs;
use fuzz::FuzzArgs;
use libtest::Counts;
use setup::libtorch::Libtorch;
use setup::{Component, Installed};
use step::Step;
use suite::Suite;

/// The set-up, the tests and the checks of burn-lti.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fetch what a backend or a comparison needs beyond this repository.
    ///
    /// It goes into $BURN_LTI_CACHE, else burn-lti in $XDG_CACHE_HOME or ~/.cache. What is there
    /// already is left as it is.
    Setup {
        /// What to set up. If absent: tch and wgpu.
        #[arg(value_enum)]
        components: Vec<Component>,
    },
    /// Kill every command that writes, again and again, fill its disk, lock its folder, start it twice at once,
    /// close its streams; and look each time whether everything is still there and whole.
    ///
    /// A table of counts ends it. It fails where a promise was broken: `docs/reliability.md` has them.
    Chaos(ChaosArgs),
    /// Check that every crate that a build may hold is under a licence that this project can be given away with.
    Licences,
    #[command(flatten)]
    Run(Run),
}

/// What comes to a series of cargo commands.
#[derive(Debug, Subcommand)]
enum Run {
    /// Run tests, suite by suite and backend by backend, with one build for all of them.
    ///
    /// A table of suites and backends ends it, and then the line `N passed, M failed`; in M, whatever
    /// failed that is no test counts as one.
    Test(TestArgs),
    /// Check format, spelling, lints, documents, and every feature alone.
    Check(CheckArgs),
    /// Run all checks, then all suites on all backends that need no GPU.
    ///
    /// A backend that is not set up is an error. It ends as `test` does.
    Ci(CiArgs),
    /// Run the benches; or hold ours against the peers, or measure how cost grows.
    Bench(BenchArgs),
    /// Carry out again what the documents claim about quality: `benches/figures`.
    ///
    /// Results go to `docs/results`, run by run, and from there into the tables of the documents. What has a
    /// result is not carried out again, and a run that was stopped goes on.
    Figures(FiguresArgs),
    /// Give each parser many files that nobody wrote.
    ///
    /// A million for each, where `cargo xtask test` gives two thousand. What makes one panic, or
    /// allocate too much, or break a promise is printed, made as small as it can be.
    Fuzz(FuzzArgs),
}

#[derive(Debug, Args)]
struct TestArgs {
    /// A backend to test, which must be set up. If absent: flex, ndarray, and of tch and wgpu what is
    /// set up.
    #[arg(long = "backend", value_name = "BACKEND", value_enum)]
    backends: Vec<Backend>,
    /// Which tests. If absent: unit, laws and parity.
    #[arg(long = "suite", value_name = "SUITE", value_enum)]
    suites: Vec<Suite>,
    /// Print the commands and run none.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// Also check the feature `cpu`, whose build script downloads LLVM.
    #[arg(long)]
    with_cpu: bool,
    /// Print the commands and run none.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
struct CiArgs {
    /// A backend to test. If absent: flex, ndarray, tch and wgpu.
    #[arg(long = "backend", value_name = "BACKEND", value_enum)]
    backends: Vec<Backend>,
    /// Leave out the suite `real`, where its teacher and texts are not at hand.
    #[arg(long)]
    without_real: bool,
    /// Also check the feature `cpu`, whose build script downloads LLVM.
    #[arg(long)]
    with_cpu: bool,
    /// Print the commands and run none.
    #[arg(long)]
    dry_run: bool,
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    let runs_tests = matches!(&command, Command::Run(run) if run.runs_tests());
    let mut counts = Counts::default();
    let result = execute(command, &mut counts);
    if let Err(error) = &result {
        eprintln!("error: {error:#}");
        counts.failed = counts.failed.max(1);
    }
    if runs_tests {
        println!("{} passed, {} failed", counts.passed, counts.failed);
    }
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Does what `command` says. `counts` become those of the tests that ran, also where the result is
/// an error.
fn execute(command: Command, counts: &mut Counts) -> Result<()> {
    let shell = Shell::new()?;
    let root = repository()?;
    shell.change_dir(&root);
    let cache = Cache::find()?;
    let run = match command {
        Command::Setup { components } => return setup::run(&shell, &cache, &components),
        Command::Chaos(args) => return args.run(&shell, &root),
        Command::Licences => return licences::run(&shell),
        Command::Run(run) => run,
    };

    let libtorch = Libtorch::find(&shell, &cache)?;
    let installed = Installed::find(libtorch.as_ref());
    let is_set = |variable: &str| env::var_os(variable).is_some();
    let kernels = match installed.wgpu && run.runs_tests() {
        true => kernels::runner(&shell, &cache, &root, is_set)?,
        false => None,
    };
    let environment = Environment::new(libtorch.as_ref())?.with(kernels);
    let (steps, left_out) = run.steps(&installed, &root)?;
    print!("{environment}");
    if run.is_dry() {
        return report::print(&steps, &left_out);
    }
    let _runtime_dir = environment.apply(&shell)?;
    if let Run::Bench(args) = &run
        && args.measures()
    {
        return args.measure(&shell, &cache, &installed);
    }
    if let Run::Figures(args) = &run {
        return args.run(&shell, &root, &cache, &installed);
    }
    let terminal = &mut io::stdout();
    report::run(&shell, &steps, run.title(), &left_out, terminal, counts)
}

impl Run {
    /// The commands, and what is left out.
    fn steps(&self, installed: &Installed, root: &Path) -> Result<(Vec<Step>, Vec<String>)> {
        match self {
            Self::Test(args) => {
                let (backends, left_out) = match args.backends.as_slice() {
                    [] => backend::set_up(installed),
                    some => (backend::require(some, installed)?, Vec::new()),
                };
                let suites: &[Suite] = match args.suites.as_slice() {
                    [] => &suite::DEFAULT,
                    some => some,
                };
                Ok((suite::steps(suites, &backends, root)?, left_out))
            }
            Self::Check(args) => {
                // What is left out of the tests, its feature alone names again.
                let (backends, _) = backend::set_up(installed);
                Ok(check::steps(&backends, installed, args.with_cpu))
            }
            Self::Ci(args) => ci::steps(args, installed, root),
            Self::Bench(args) => Ok((args.commands(), Vec::new())),
            Self::Figures(_) => Ok((Vec::new(), Vec::new())),
            Self::Fuzz(args) => Ok((args.steps(), Vec::new())),
        }
    }

    /// Of the first column of the table.
    fn title(&self) -> &'static str {
        match self {
            Self::Test(_) => "suite",
            Self::Check(_) | Self::Ci(_) | Self::Bench(_) | Self::Figures(_) | Self::Fuzz(_) => {
                "part"
            }
        }
    }

    fn is_dry(&self) -> bool {
        match self {
            Self::Test(args) => args.dry_run,
            Self::Check(args) => args.dry_run,
            Self::Ci(args) => args.dry_run,
            Self::Bench(_) | Self::Figures(_) | Self::Fuzz(_) => false,
        }
    }

    fn runs_tests(&self) -> bool {
        matches!(self, Self::Test(_) | Self::Ci(_) | Self::Fuzz(_)) && !self.is_dry()
    }
}

/// The root of the repository: the folder above this package.
fn repository() -> Result<PathBuf> {
    let package = env::var("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").to_owned());
    let root = PathBuf::from(package).parent().map(PathBuf::from);
    root.context("the package xtask has no folder above it")
}
