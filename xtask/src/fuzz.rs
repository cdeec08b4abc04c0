//! `cargo xtask fuzz`: many files for each parser, where the tests have few. `fuzz/src/lib.rs` says what must
//! hold.

use clap::Args;

use crate::step::{Step, cargo};

/// The package, and the test program in it that has a test for each target.
const PACKAGE: &str = "burn-lti-fuzz";
const PROGRAM: &str = "targets";
/// The variables that the package reads.
const EXECUTIONS: &str = "BURN_LTI_FUZZ_EXECUTIONS";
const SEED: &str = "BURN_LTI_FUZZ_SEED";

#[derive(Debug, Args)]
pub(crate) struct FuzzArgs {
    /// The targets, as `config` or `json_lines`: `fuzz/tests/targets.rs` lists them. If absent: all.
    targets: Vec<String>,
    /// Files for each target.
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    executions: u32,
    /// Another number brings other files.
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
}

impl FuzzArgs {
    /// One step for each target, or one for all. The checks for overflow are those of a development build.
    pub(crate) fn steps(&self) -> Vec<Step> {
        let step = |part: &str| {
            cargo(
                part,
                [
                    "test",
                    "--package",
                    PACKAGE,
                    "--test",
                    PROGRAM,
                    "--",
                    "--nocapture",
                ],
            )
            .with_env(EXECUTIONS, self.executions.to_string())
            .with_env(SEED, self.seed.to_string())
            .with_env("RUST_BACKTRACE", "0")
            .testing("any", true)
        };
        let targets = self.targets.iter();
        let steps: Vec<Step> = targets
            .map(|target| step(target).with_args(["--exact", target]))
            .collect();
        match steps.is_empty() {
            true => vec![step("fuzz")],
            false => steps,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_test_of_its_own() {
        let lines = |targets: &[&str]| -> Vec<String> {
            let args = FuzzArgs {
                targets: targets.iter().map(|target| (*target).to_owned()).collect(),
                executions: 9,
                seed: 1,
            };
            args.steps()
                .iter()
                .map(|step| step.line().unwrap())
                .collect()
        };
        let common = "BURN_LTI_FUZZ_EXECUTIONS=9 BURN_LTI_FUZZ_SEED=1 RUST_BACKTRACE=0 cargo test --package burn-lti-fuzz \
                      --test targets -- --nocapture";
        assert_eq!(lines(&[]), [common]);
        assert_eq!(
            lines(&["config", "start"]),
            [
                format!("{common} --exact config"),
                format!("{common} --exact start")
            ]
        );
    }

    /// They are read by another package, which does not know this one.
    #[test]
    fn the_variables_are_those_that_are_read() {
        let source = include_str!("../../fuzz/src/lib.rs");
        for variable in [EXECUTIONS, SEED] {
            assert!(source.contains(&format!("\"{variable}\"")), "{variable}");
        }
    }
}
