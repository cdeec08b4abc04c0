//! One command: what it is called in the table, how it is started and what it must do.

use std::io::{Read, Write};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail, ensure};
use xshell::Shell;

use crate::libtest::{Counts, Tally};
use crate::programs;

/// A command with its place in the table.
#[derive(Debug)]
pub(crate) struct Step {
    /// The suite or the check.
    pub(crate) part: String,
    /// The backend that it tests, `any` for what belongs to none; empty for what is no test.
    pub(crate) backend: &'static str,
    program: &'static str,
    args: Vec<String>,
    env: Vec<(&'static str, String)>,
    goal: Goal,
}

/// What a step must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    /// End without an error.
    Succeed,
    /// Run tests, all of which pass.
    Test {
        /// That no test is there is an error.
        required: bool,
    },
    /// End with an error that says this.
    Refuse { saying: &'static str },
}

/// The step `part` that calls cargo with `args`.
pub(crate) fn cargo<A: Into<String>>(
    part: impl Into<String>,
    args: impl IntoIterator<Item = A>,
) -> Step {
    let step = Step {
        part: part.into(),
        backend: "",
        program: "cargo",
        args: Vec::new(),
        env: Vec::new(),
        goal: Goal::Succeed,
    };
    step.with_args(args)
}

impl Step {
    pub(crate) fn with_args<A: Into<String>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub(crate) fn with_env(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.env.push((key, value.into()));
        self
    }

    /// The same with another program than cargo.
    pub(crate) fn of_program(mut self, program: &'static str) -> Self {
        self.program = program;
        self
    }

    /// It runs tests of `backend`, and must run at least one if `required`.
    pub(crate) fn testing(mut self, backend: &'static str, required: bool) -> Self {
        self.backend = backend;
        self.goal = Goal::Test { required };
        self
    }

    /// It must fail, and say this.
    pub(crate) fn refused(mut self, saying: &'static str) -> Self {
        self.goal = Goal::Refuse { saying };
        self
    }

    /// Its name in messages.
    pub(crate) fn title(&self) -> String {
        format!("{} {}", self.part, self.backend)
            .trim_end()
            .to_owned()
    }

    /// Whether it runs tests.
    pub(crate) fn is_test(&self) -> bool {
        matches!(self.goal, Goal::Test { .. })
    }

    /// Whether its having run no test is nothing to report.
    pub(crate) fn may_be_empty(&self) -> bool {
        self.goal == Goal::Test { required: false }
    }

    /// The command as one would type it.
    pub(crate) fn line(&self) -> Result<String> {
        let args = shlex::try_join(self.args.iter().map(String::as_str))?;
        let mut line = String::new();
        for (key, value) in &self.env {
            line += &format!("{key}={} ", shlex::try_quote(value)?);
        }
        line += &format!("{} {args}", self.program);
        if let Goal::Refuse { saying } = self.goal {
            line += &format!("  # must fail and say: {saying}");
        }
        Ok(line)
    }

    /// Runs the command in the folder and with the environment of `shell`. The command and what its
    /// tests print go to `terminal`. The counts are those of the tests that ran, also where the
    /// result is an error.
    pub(crate) fn run(&self, shell: &Shell, terminal: &mut impl Write) -> (Counts, Result<()>) {
        let mut counts = Counts::default();
        let result = self.run_counting(shell, terminal, &mut counts);
        (counts, result)
    }

    fn run_counting(
        &self,
        shell: &Shell,
        terminal: &mut impl Write,
        counts: &mut Counts,
    ) -> Result<()> {
        let line = self.line()?;
        writeln!(terminal, "$ {line}")?;
        let command = self.command(shell);
        match self.goal {
            Goal::Succeed => self.check(start(command)?.wait()?),
            Goal::Test { required } => {
                let (status, found) = run_tests(command, terminal)?;
                *counts = found;
                ensure!(
                    !status.success() || !required || found.passed > 0,
                    "no test ran on {}: `{line}` found none",
                    self.backend
                );
                self.check(status)
            }
            Goal::Refuse { saying } => check_refused(command, saying),
        }
    }

    fn command(&self, shell: &Shell) -> Command {
        let command = match self.program {
            "cargo" => programs::cargo(shell),
            other => shell.cmd(other),
        };
        command
            .args(&self.args)
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .into()
    }

    fn check(&self, status: ExitStatus) -> Result<()> {
        ensure!(status.success(), "{}: {status}", self.title());
        Ok(())
    }
}

fn start(mut command: Command) -> Result<std::process::Child> {
    command
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().display()))
}

/// Passes the output of `command` on as it comes, and counts the tests in it.
fn run_tests(mut command: Command, terminal: &mut impl Write) -> Result<(ExitStatus, Counts)> {
    command.stdout(Stdio::piped());
    let mut child = start(command)?;
    let mut output = child
        .stdout
        .take()
        .context("the output of cargo is not piped")?;
    let mut tally = Tally::default();
    let mut buffer = [0; 8192];
    loop {
        let length = output.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        terminal.write_all(&buffer[..length])?;
        terminal.flush()?;
        tally.feed(&buffer[..length]);
    }
    Ok((child.wait()?, tally.finish()))
}

/// The output is kept back: it is an error message, which nobody should take for one.
fn check_refused(mut command: Command, saying: &str) -> Result<()> {
    let output = command.output().context("cannot start cargo")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        bail!("what must be refused was accepted; expected an error with the words: {saying}");
    }
    ensure!(
        said.contains(saying),
        "refused, but not with the words `{saying}`:\n{said}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_can_be_pasted_into_a_shell() {
        let step = cargo("documents", ["bench", "--bench", "*"]).with_env("FLAGS", "-D warnings");
        assert_eq!(
            step.line().unwrap(),
            "FLAGS='-D warnings' cargo bench --bench '*'"
        );
        let step = cargo("spelling", ["--config", "x"]).of_program("typos");
        assert_eq!(step.line().unwrap(), "typos --config x");
        let step = cargo("refused", ["check"]).refused("no");
        assert_eq!(step.line().unwrap(), "cargo check  # must fail and say: no");
    }

    #[cfg(unix)]
    mod on_unix {
        use super::*;

        fn sh(script: &str) -> Step {
            cargo("part", ["-c", script]).of_program("sh")
        }

        const RESULT: &str = "echo 'test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured'";
        const NONE: &str = "echo 'test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured'";

        fn run(step: &Step) -> (usize, Result<(), String>) {
            let (counts, result) = step.run(&Shell::new().unwrap(), &mut std::io::sink());
            (counts.passed, result.map_err(|error| format!("{error:#}")))
        }

        #[test]
        fn tests_are_counted_also_when_the_command_fails() {
            assert_eq!(run(&sh(RESULT).testing("tch", true)), (2, Ok(())));
            let failing = format!("{RESULT}; exit 3");
            let (passed, result) = run(&sh(&failing).testing("tch", true));
            assert_eq!(passed, 2);
            assert!(result.unwrap_err().contains("exit status: 3"));
        }

        #[test]
        fn a_backend_without_a_test_is_an_error() {
            let error = run(&sh(NONE).testing("tch", true)).1.unwrap_err();
            assert!(error.starts_with("no test ran on tch"), "{error}");
            assert_eq!(run(&sh(NONE).testing("any", false)), (0, Ok(())));
        }

        #[test]
        fn a_refusal_must_have_its_words() {
            let refused = |script: &str| run(&sh(script).refused("only one")).1;
            assert_eq!(refused("echo enable only one >&2; exit 1"), Ok(()));
            let other = refused("echo something else >&2; exit 1").unwrap_err();
            assert!(other.contains("something else"), "{other}");
            let accepted = refused("echo only one >&2").unwrap_err();
            assert!(accepted.contains("was accepted"), "{accepted}");
        }
    }
}
