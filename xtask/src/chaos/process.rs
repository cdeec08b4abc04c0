//! A command that is started, and killed or left to end.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// The program `burn-lti`, and the folder in which it is called.
pub(super) struct Program {
    command: PathBuf,
    folder: PathBuf,
}

/// How a process ended.
pub(super) struct Ended {
    status: ExitStatus,
    pub(super) time: Duration,
    /// What it said on the standard error.
    said: String,
}

impl Program {
    pub(super) fn new(command: PathBuf, folder: &Path) -> Self {
        Self {
            command,
            folder: folder.to_owned(),
        }
    }

    /// What it prints, if it succeeds.
    pub(super) fn output(&self, args: &[&str]) -> Result<String> {
        let output = Command::new(&self.command).args(args).output();
        let output = output.with_context(|| format!("cannot start {}", self.command.display()))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub(super) fn run(&self, args: &[String]) -> Result<Ended> {
        self.run_for(args, Duration::MAX)
    }

    /// As [`kill_after`](Self::kill_after), for what takes longer than anybody waits.
    pub(super) fn run_for(&self, args: &[String], longest: Duration) -> Result<Ended> {
        self.kill_after(args, longest)
    }

    /// Starts it, and kills it at that moment unless it was faster. The signal is SIGKILL, which no program sees.
    pub(super) fn kill_after(&self, args: &[String], moment: Duration) -> Result<Ended> {
        let began = Instant::now();
        let mut child = self.start(args)?;
        let said = read_all(&mut child);
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if began.elapsed() >= moment {
                child.kill()?;
                break child.wait()?;
            }
            thread::sleep(Duration::from_micros(500));
        };
        Ok(Ended {
            status,
            time: began.elapsed(),
            said: said.join().unwrap_or_default(),
        })
    }

    /// Twice at the same time.
    pub(super) fn run_both(&self, args: &[String]) -> Result<(Ended, Ended)> {
        thread::scope(|scope| {
            let first = scope.spawn(|| self.run(args));
            let second = self.run(args);
            let first = first.join().ok().context("a thread ended by a panic")?;
            Ok((first?, second?))
        })
    }

    /// With both streams closed at once on the other side.
    pub(super) fn run_unread(&self, args: &[String]) -> Result<()> {
        let mut command = self.command(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start the command")?;
        drop(child.stdout.take());
        drop(child.stderr.take());
        child.wait()?;
        Ok(())
    }

    fn start(&self, args: &[String]) -> Result<Child> {
        let mut command = self.command(args);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let started = command.spawn();
        started.with_context(|| format!("cannot start {}", self.command.display()))
    }

    fn command(&self, args: &[String]) -> Command {
        let mut command = Command::new(&self.command);
        // Tiny models: more threads would only wait for one another.
        command
            .args(args)
            .current_dir(&self.folder)
            .env("RAYON_NUM_THREADS", "1");
        command.stdin(Stdio::null());
        command
    }
}

/// Reads what a process says, so that it never waits for a reader.
fn read_all(child: &mut Child) -> thread::JoinHandle<String> {
    let stderr = child.stderr.take();
    thread::spawn(move || {
        let mut said = Vec::new();
        // What cannot be read was not said.
        let _ = stderr.map(|mut stderr| stderr.read_to_end(&mut said));
        String::from_utf8_lossy(&said).into_owned()
    })
}

impl Ended {
    pub(super) fn succeeded(&self) -> bool {
        self.status.success()
    }

    /// Whether a signal ended it.
    pub(super) fn was_killed(&self) -> bool {
        self.status.code().is_none()
    }

    /// Whether it failed as a command should: with an error, and no panic.
    pub(super) fn is_told(&self) -> bool {
        let panicked = self.said.contains("panicked") || self.status.code() == Some(101);
        !self.was_killed() && !panicked && self.says("error")
    }

    pub(super) fn says(&self, words: &str) -> bool {
        self.said.contains(words)
    }
}

/// The status and the last line that was said.
impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<&str> = self
            .said
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        let from = lines
            .iter()
            .position(|line| line.contains("panicked") || line.starts_with("error"));
        let said = &lines[from.unwrap_or(lines.len().saturating_sub(1))..];
        write!(f, "{}, {:?}", self.status, said.join(" / "))
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn sh(script: &str) -> Vec<String> {
        ["-c", script].map(str::to_owned).to_vec()
    }

    fn shell() -> Program {
        Program::new("/bin/sh".into(), Path::new("/"))
    }

    #[test]
    fn a_kill_an_error_and_a_panic_are_told_apart() {
        let killed = shell()
            .kill_after(&sh("exec sleep 30"), Duration::from_millis(20))
            .unwrap();
        assert!(killed.was_killed() && !killed.succeeded() && !killed.is_told());
        assert!(killed.time < Duration::from_secs(20));
        let told = shell()
            .run(&sh("echo 'error: no room' >&2; exit 1"))
            .unwrap();
        assert!(
            told.is_told() && told.to_string().contains("no room"),
            "{told}"
        );
        let panicked = shell()
            .run(&sh("echo 'error: it panicked at' >&2; exit 101"))
            .unwrap();
        assert!(!panicked.is_told());
        let silent = shell().run(&sh("exit 1")).unwrap();
        assert!(
            !silent.is_told(),
            "a failure without a word is none that was told"
        );
    }

    #[test]
    fn nobody_reads_what_is_printed() {
        let dir = tempfile::tempdir().unwrap();
        let status = dir.path().join("status");
        let script = format!(
            "sleep 0.1; (echo line) 2>/dev/null; echo $? > {}",
            status.display()
        );
        shell().run_unread(&sh(&script)).unwrap();
        assert_ne!(std::fs::read_to_string(status).unwrap().trim(), "0");
    }
}
