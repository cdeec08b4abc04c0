//! The command `burn-lti`.

#![allow(clippy::print_stdout, clippy::print_stderr)] // a command prints

mod args;
mod backend;
mod command;
mod device;
mod memory;
mod progress;
mod signals;
mod streams;

use std::process::ExitCode;

use clap::Parser;

use args::{Arguments, Command};
use streams::tell;

fn main() -> ExitCode {
    memory::set_up();
    let arguments = Arguments::parse();
    let result = match &arguments.command {
        Command::Plan(args) => command::plan::run(args),
        Command::Start(args) => command::start::run(args),
        Command::Distill(args) => command::distill::run(args),
        Command::Compare(args) => command::compare::run(args),
        Command::Report(args) => command::report::run(args),
        Command::Collapse(args) => command::collapse::run(args),
        Command::CacheTeacher(args) => command::cache::write(args),
        Command::VerifyCache(args) => command::cache::verify(args),
        Command::Eval(args) => command::eval::run(args),
        Command::Generate(args) => command::generate::run(args),
        Command::SampleCorpus(args) => command::sample_corpus::run(args),
        Command::Convert(args) => command::convert::run(args),
        Command::Logits(args) => command::logits::run(args),
        Command::Demo(args) => command::demo::run(args),
        Command::Devices(args) => command::devices::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
