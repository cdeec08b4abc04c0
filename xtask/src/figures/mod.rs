//! `cargo xtask figures`: carries out again what the documents claim about quality.
//!
//! | file | what |
//! |---|---|
//! | `part` | a table of runs, as a file of `benches/figures` says it |
//! | `results` | what its runs came to: `docs/results` |
//! | `table` | the table in the documents, between its markers |
//!
//! A run that has a result is not carried out again, and one that was stopped goes on, so a part may be made
//! in several goes. A test has every table be the one that its results make.

mod part;
mod results;
mod table;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use xshell::{Shell, cmd};

use crate::backend::{self, Backend, feature_args_of};
use crate::programs::cargo;
use crate::setup::Installed;

use part::{Part, Run};
use results::{Outcome, Results};

/// The documents that have tables.
const DOCUMENTS: [&str; 2] = ["README.md", "docs/figures.md"];
/// The package of the command.
const PACKAGE: &str = "burn-lti-llama";

#[derive(Debug, Args)]
pub(crate) struct FiguresArgs {
    /// The parts to carry out: names of files in `benches/figures`. If absent: all.
    parts: Vec<String>,
    /// Carry nothing out: put the tables of what there is into the documents.
    #[arg(long, conflicts_with_all = ["parts", "again", "command"])]
    write: bool,
    /// Carry out again what has a result already.
    #[arg(long)]
    again: bool,
    /// The backend to compute on, which must be set up.
    #[arg(long, value_enum, default_value_t = Backend::Flex)]
    backend: Backend,
    /// A `burn-lti` that was built already, with that backend.
    #[arg(long, value_name = "PROGRAM")]
    command: Option<PathBuf>,
}

impl FiguresArgs {
    /// `shell` is in the repository and has the environment of what is started.
    pub(crate) fn run(&self, shell: &Shell, root: &Path, installed: &Installed) -> Result<()> {
        let parts = Part::all(root)?;
        for name in &self.parts {
            let known = parts.iter().any(|part| part.name == *name);
            ensure!(known, "there is no part `{name}` in benches/figures");
        }
        if !self.write {
            let asked = |part: &&Part| self.parts.is_empty() || self.parts.contains(&part.name);
            self.carry_out(shell, root, installed, parts.iter().filter(asked))?;
        }
        write(root, &parts)
    }

    fn carry_out<'a>(
        &self,
        shell: &Shell,
        root: &Path,
        installed: &Installed,
        parts: impl Iterator<Item = &'a Part>,
    ) -> Result<()> {
        backend::require(&[self.backend], installed)?;
        let program = match &self.command {
            Some(program) => program.clone(),
            None => build(shell, self.backend)?,
        };
        let commit = cmd!(shell, "git rev-parse --short HEAD").quiet().read()?;
        for part in parts {
            let path = Results::path(root, &part.name);
            let runs = part.runs();
            let mut results = Results::read(&path)?;
            results.keep(&runs);
            for (index, run) in runs.iter().enumerate() {
                if results.of(run).is_some() && !self.again {
                    continue;
                }
                println!("{}, run {} of {}", part.name, index + 1, runs.len());
                let out = root
                    .join("target/figures")
                    .join(&part.name)
                    .join(index.to_string());
                self.distill(shell, &program, run, &out)?;
                results.push(Outcome::read(run, &commit, &out)?);
                results.write(&path)?;
                // What was measured is kept; a student is not.
                fs::remove_dir_all(&out)?;
            }
        }
        Ok(())
    }

    /// Carries `run` out in the folder `out`, or on where it was stopped there.
    fn distill(&self, shell: &Shell, program: &Path, run: &Run, out: &Path) -> Result<()> {
        let line = run.args().join(" ");
        let told = out.with_extension("run");
        let goes_on = fs::read_to_string(&told).is_ok_and(|of| of == line)
            && out.join("checkpoints").is_dir();
        if !goes_on && out.exists() {
            fs::remove_dir_all(out)?;
        }
        fs::create_dir_all(out.parent().context("it is in a folder")?)?;
        fs::write(&told, &line)?;
        let resume = goes_on.then_some("--resume");
        let (args, backend) = (run.args(), self.backend.name());
        cmd!(
            shell,
            "{program} distill {args...} --out {out} --backend {backend} {resume...}"
        )
        .run()?;
        fs::remove_file(&told)?;
        Ok(())
    }
}

/// The command as it is released.
fn build(shell: &Shell, backend: Backend) -> Result<PathBuf> {
    let features = feature_args_of(PACKAGE, &[backend]);
    let messages = cargo(shell)
        .args([
            "build",
            "--release",
            "--package",
            PACKAGE,
            "--bin",
            "burn-lti",
        ])
        .args(features)
        .arg("--message-format=json-render-diagnostics")
        .read()?;
    let executables = crate::bench::executables(&messages);
    let program = executables.get("burn-lti").cloned();
    program.context("cargo built no program burn-lti")
}

/// Puts the tables of all parts that are whole into the documents.
fn write(root: &Path, parts: &[Part]) -> Result<()> {
    for name in DOCUMENTS {
        let path = root.join(name);
        let found = fs::read_to_string(&path).with_context(|| name.to_owned())?;
        let filled = table::fill(&found, |of, old| {
            table_of(root, parts, of).or_else(|error| {
                println!("{name}: the table `{of}` stays: {error:#}");
                Ok(old.to_owned())
            })
        });
        let filled = filled.with_context(|| name.to_owned())?;
        if found != filled {
            fs::write(&path, filled)?;
        }
    }
    Ok(())
}

fn table_of(root: &Path, parts: &[Part], name: &str) -> Result<String> {
    let part = parts.iter().find(|part| part.name == name);
    let part = part.with_context(|| format!("there is no part `{name}` in benches/figures"))?;
    table::table(part, &Results::read(&Results::path(root, name))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is published has results, and is what they say.
    #[test]
    fn every_table_is_the_one_that_its_results_make() {
        let root = crate::repository().unwrap();
        let parts = Part::all(&root).unwrap();
        for name in DOCUMENTS {
            let found = fs::read_to_string(root.join(name)).unwrap();
            let filled = table::fill(&found, |of, _| table_of(&root, &parts, of)).unwrap();
            assert!(
                found == filled,
                "{name}: a table is not what docs/results says: `cargo xtask figures --write`"
            );
        }
    }
}
