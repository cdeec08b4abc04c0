//! Runs steps in their order, and the table of what became of them.

use std::io::Write;
use std::time::Instant;

use anyhow::{Result, ensure};
use xshell::Shell;

use crate::libtest::Counts;
use crate::step::Step;

/// Runs `steps`, then prints a table whose first column is called `title`, and what was left out.
///
/// The tests of one backend say nothing about those of another, so that the tests go on where some
/// have failed. After anything else that fails, nothing more runs. `counts` become those of all tests
/// that ran, also where the result is an error; a step that failed without a failed test counts as
/// one.
pub(crate) fn run(
    shell: &Shell,
    steps: &[Step],
    title: &str,
    left_out: &[String],
    terminal: &mut impl Write,
    counts: &mut Counts,
) -> Result<()> {
    let began = Instant::now();
    let mut lines = Vec::new();
    let mut failed = Vec::new();
    let mut rest = steps.iter();
    for step in rest.by_ref() {
        let began = Instant::now();
        let (found, result) = step.run(shell, terminal);
        let passed = result.is_ok();
        *counts += found;
        if let Err(error) = result {
            eprintln!("error: {error:#}");
            // A build that failed, or a test program that crashed, has counted none.
            counts.failed += usize::from(found.failed == 0);
            failed.push(step.title());
        }
        if !passed || found != Counts::default() || !step.may_be_empty() {
            let tests = step.is_test().then_some(found);
            lines.push(line(&step.part, step.backend, tests, began, passed));
        }
        if !passed && !step.is_test() {
            break;
        }
    }
    lines.extend(rest.map(|step| format!("{:<20} {:<8}  not run", step.part, step.backend)));
    let tests = steps.iter().any(Step::is_test).then_some(*counts);
    lines.push(line("all", "", tests, began, failed.is_empty()));

    let head = format!(
        "{title:<20} {:<8} {:>6} {:>8}",
        "backend", "tests", "seconds"
    );
    writeln!(terminal, "\n{head}\n{}", lines.join("\n"))?;
    for what in left_out {
        writeln!(terminal, "left out: {what}")?;
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// Prints what `run` would run.
pub(crate) fn print(steps: &[Step], left_out: &[String]) -> Result<()> {
    for step in steps {
        println!("{}", step.line()?);
    }
    left_out
        .iter()
        .for_each(|what| println!("# left out: {what}"));
    Ok(())
}

fn line(part: &str, backend: &str, tests: Option<Counts>, began: Instant, passed: bool) -> String {
    let seconds = began.elapsed().as_secs_f64();
    let count = tests.map(|tests| tests.passed.to_string());
    let mut line = format!(
        "{part:<20} {backend:<8} {:>6} {seconds:>8.1}",
        count.unwrap_or_default()
    );
    let Counts {
        failed, ignored, ..
    } = tests.unwrap_or_default();
    if ignored > 0 {
        line += &format!("   {ignored} ignored");
    }
    if failed > 0 {
        line += &format!("   {failed} failed");
    }
    if !passed {
        line += "   FAILED";
    }
    line
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;
    use crate::step::cargo;

    fn sh(part: &str, script: &str) -> Step {
        cargo(part, ["-c", script]).of_program("sh")
    }

    fn results(passed: usize, failed: usize) -> String {
        let result =
            format!("test result: ok. {passed} passed; {failed} failed; 0 ignored; 0 measured");
        format!("echo '{result}'; exit {failed}")
    }

    /// The table without its times, the counts and the error.
    fn run_all(steps: &[Step]) -> (Vec<String>, Counts, Option<String>) {
        let (mut output, mut counts) = (Vec::new(), Counts::default());
        let shell = Shell::new().unwrap();
        let left_out = ["the backend x: y".to_owned()];
        let result = run(&shell, steps, "suite", &left_out, &mut output, &mut counts);
        let output = String::from_utf8(output).unwrap();
        let table = output
            .lines()
            .skip_while(|line| !line.starts_with("suite "));
        let cells = table.map(|line| {
            let cells = line
                .split_whitespace()
                .filter(|cell| cell.parse::<f64>().is_err() || !cell.contains('.'));
            cells.collect::<Vec<_>>().join(" ")
        });
        (
            cells.collect(),
            counts,
            result.err().map(|error| error.to_string()),
        )
    }

    #[test]
    fn a_row_for_each_step_that_ran_tests() {
        let steps = [
            sh("build", "true"),
            sh("laws", &results(5, 0)).testing("tch", true),
            sh("laws", &results(0, 0)).testing("any", false),
        ];
        let (table, counts, error) = run_all(&steps);
        let expected = [
            "suite backend tests seconds",
            "build",
            "laws tch 5",
            "all 5",
            "left out: the backend x: y",
        ];
        assert_eq!(table, expected);
        assert_eq!((counts.passed, counts.failed, error), (5, 0, None));
    }

    #[test]
    fn tests_go_on_after_those_of_another_backend_failed() {
        let steps = [
            sh("laws", &results(3, 2)).testing("tch", true),
            sh("laws", "kill -SEGV $$").testing("flex", true),
            sh("laws", &results(0, 0)).testing("wgpu", true),
            sh("laws", &results(4, 0)).testing("any", false),
        ];
        let (table, counts, error) = run_all(&steps);
        assert_eq!(table[1], "laws tch 3 2 failed FAILED");
        assert_eq!(
            table[2..5],
            ["laws flex 0 FAILED", "laws wgpu 0 FAILED", "laws any 4"]
        );
        assert_eq!((counts.passed, counts.failed), (7, 4));
        assert_eq!(error.unwrap(), "failed: laws tch, laws flex, laws wgpu");
    }

    #[test]
    fn nothing_runs_after_a_build_that_failed() {
        let steps = [
            sh("build", "exit 1"),
            sh("laws", &results(4, 0)).testing("any", false),
        ];
        let (table, counts, error) = run_all(&steps);
        assert_eq!(
            table[1..4],
            ["build FAILED", "laws any not run", "all 0 1 failed FAILED"]
        );
        assert_eq!((counts.passed, counts.failed), (0, 1));
        assert_eq!(error.unwrap(), "failed: build");
    }
}
