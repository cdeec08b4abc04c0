//! The suites of `cargo xtask test`.

use anyhow::{Result, ensure};
use clap::ValueEnum;
use xshell::Shell;

use crate::step::{Step, step};

/// The folder in `tests/tests` that is the suite `laws`.
const LAWS: &str = "laws";
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
            Self::Laws => step("laws", integration).with_args(["--lib", "--test", LAWS]),
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
