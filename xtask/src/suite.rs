//! The suites of `cargo xtask test`.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use xshell::Shell;

use crate::step::{Step, step};

/// The file in `tests/tests` that is the suite `parity`.
const PARITY: &str = "reference_parity";
/// The file in `tests/tests` that is the suite `real`.
const REAL: &str = "real_teacher";
/// What the suite `real` reads, beside the repository.
const REAL_INPUT: [&str; 2] = ["../shared/teachers/stories260k", "../shared/data/stories"];

/// A part of the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Suite {
    /// The tests inside the crates, and the examples in their documents.
    Unit,
    /// The laws that hold on every backend.
    Laws,
    /// The comparison with what the reference computed.
    Parity,
    /// A trained teacher; needs `../shared` beside the repository.
    Real,
    /// All of these.
    All,
}

/// What needs nothing but this repository.
pub(crate) const DEFAULT: [Suite; 3] = [Suite::Unit, Suite::Laws, Suite::Parity];

/// The steps of several suites.
pub(crate) fn steps(shell: &Shell, suites: &[Suite]) -> Result<Vec<Step>> {
    let steps: Vec<_> = suites
        .iter()
        .map(|suite| suite.steps(shell))
        .collect::<Result<_>>()?;
    Ok(steps.into_iter().flatten().collect())
}

impl Suite {
    pub(crate) fn steps(self, shell: &Shell) -> Result<Vec<Step>> {
        let integration = ["test", "--package", "burn-lti-tests"];
        let step = match self {
            Self::Unit => step("unit", ["test", "--package", "burn-lti"])
                .with_args(["--package", "burn-lti-llama"]),
            Self::Laws => {
                let laws = laws(shell)?;
                let selected = laws.iter().flat_map(|law| ["--test", law]);
                step("laws", integration)
                    .with_args(["--lib"])
                    .with_args(selected)
            }
            Self::Parity => step("parity", integration).with_args(["--test", PARITY]),
            Self::Real => {
                check_real_input(shell)?;
                step("real", integration).with_args(["--test", REAL])
            }
            Self::All => {
                let mut all = steps(shell, &DEFAULT)?;
                all.extend(Self::Real.steps(shell)?);
                return Ok(all);
            }
        };
        Ok(vec![step])
    }
}

/// Every integration test that is no suite of its own, by name: a new file is a new law.
fn laws(shell: &Shell) -> Result<Vec<String>> {
    let folder = Path::new("tests/tests");
    let mut laws = Vec::new();
    for path in shell.read_dir(folder)? {
        let is_test = path.extension().is_some_and(|extension| extension == "rs")
            || shell.path_exists(path.join("main.rs"));
        let name = path.file_stem().and_then(|name| name.to_str());
        let name = name.with_context(|| format!("{} has no name", path.display()))?;
        if is_test && name != PARITY && name != REAL {
            laws.push(name.to_owned());
        }
    }
    ensure!(!laws.is_empty(), "{} holds no law", folder.display());
    Ok(laws)
}

/// Found out before anything is built for it.
fn check_real_input(shell: &Shell) -> Result<()> {
    for input in REAL_INPUT {
        ensure!(
            shell.path_exists(input),
            "the suite `real` needs {input}, counted from the repository, and it is not there; \
             `cargo xtask ci --without-real` leaves the suite out"
        );
    }
    Ok(())
}
