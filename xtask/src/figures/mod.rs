//! `cargo xtask figures`: carries out again what the documents claim about quality.
//!
//! | file | what |
//! |---|---|
//! | `part` | a table of runs, as a file of `benches/figures` says it |
//! | `results` | what its runs came to: `docs/results` |
//! | `table` | the table in the documents, between its markers |
//!
//! A part may have rows of rivals, students by other methods: `benches/peers/rivals.py` makes them of the same
//! recipe and leaves what a run of the command leaves.
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
use crate::cache::Cache;
use crate::programs::cargo;
use crate::setup::Installed;
use crate::setup::peers::PEERS;

use part::{Part, Run};
use results::{Outcome, Results};

/// The documents that have tables.
const DOCUMENTS: [&str; 2] = ["README.md", "docs/figures.md"];
/// The program of the rivals.
const RIVALS: &str = "benches/peers/rivals.py";
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
    pub(crate) fn run(
        &self,
        shell: &Shell,
        root: &Path,
        cache: &Cache,
        installed: &Installed,
    ) -> Result<()> {
        let parts = Part::all(root)?;
        for name in &self.parts {
            let known = parts.iter().any(|part| part.name == *name);
            ensure!(known, "there is no part `{name}` in benches/figures");
        }
        if !self.write {
            let asked = |part: &&Part| self.parts.is_empty() || self.parts.contains(&part.name);
            self.carry_out(shell, root, cache, installed, parts.iter().filter(asked))?;
        }
        write(root, &parts)
    }

    fn carry_out<'a>(
        &self,
        shell: &Shell,
        root: &Path,
        cache: &Cache,
        installed: &Installed,
        parts: impl Iterator<Item = &'a Part>,
    ) -> Result<()> {
        backend::require(&[self.backend], installed)?;
        let program = match &self.command {
            Some(program) => program.clone(),
            None => build(shell, self.backend)?,
        };
        let commit = cmd!(shell, "git rev-parse --short HEAD").quiet().read()?;
        let mut checked = None;
        for part in parts {
            let path = Results::path(root, &part.name);
            let runs = part.runs();
            let mut results = Results::read(&path)?;
            results.keep(&runs);
            let folder = root.join("target/figures").join(&part.name);
            // What rivals have learned of their rates.
            let lines = folder.with_extension("jsonl");
            if self.again && lines.exists() {
                fs::remove_file(&lines)?;
            }
            for (index, run) in runs.iter().enumerate() {
                if results.of(run).is_some() && !self.again {
                    continue;
                }
                println!("{}, run {} of {}", part.name, index + 1, runs.len());
                let out = folder.join(index.to_string());
                match &run.by {
                    None => self.distill(shell, &program, run, &out)?,
                    Some(_) => {
                        let python = match &checked {
                            Some(python) => python,
                            None => checked.insert(check_rivals(shell, cache, run)?),
                        };
                        let args = run.args();
                        let rival = cmd!(shell, "{python} {RIVALS} {args...} --program {program}");
                        rival
                            .args([Path::new("--out"), &out, Path::new("--results"), &lines])
                            .run()?;
                    }
                }
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

/// The Python that carries rivals out, once they are what they say: on the teacher of `run`'s recipe.
fn check_rivals(shell: &Shell, cache: &Cache, run: &Run) -> Result<PathBuf> {
    let python = PEERS.find(shell, cache)?.interpreter;
    let recipe = &run.recipe;
    cmd!(shell, "{python} {RIVALS} {recipe} --self-check").run()?;
    Ok(python)
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

    #[test]
    fn rivals_know_the_methods_of_every_part() {
        let root = crate::repository().unwrap();
        let rivals = fs::read_to_string(root.join(RIVALS)).unwrap();
        let parts = Part::all(&root).unwrap();
        let rows = parts.iter().flat_map(|part| &part.rows);
        let mut methods: Vec<_> = rows.filter_map(|row| row.by.as_ref()).collect();
        methods.dedup();
        assert!(methods.len() > 3);
        for method in methods {
            let known = rivals
                .lines()
                .filter(|line| line.starts_with("FOR_") || line.starts_with("METHODS"));
            let name = format!("\"{method}\"");
            assert!(
                known.into_iter().any(|line| line.contains(&name)),
                "{RIVALS} knows no method {method}"
            );
        }
    }

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
