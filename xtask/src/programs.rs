//! Programs of the system: whether they are there, and how to get those that are not.

use std::env;

use anyhow::{Result, bail, ensure};
use xshell::{Cmd, Shell, cmd};

/// Whether a program of this name can be started.
pub(crate) fn on_path(name: &str) -> bool {
    let file = format!("{name}{}", env::consts::EXE_SUFFIX);
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(&file).is_file())
}

/// Whether `command` can be started and ends without an error. Prints nothing.
pub(crate) fn succeeds(command: Cmd<'_>) -> bool {
    let command = command.quiet().ignore_stdout().ignore_stderr();
    command.run().is_ok()
}

/// Something of the system that is not there, and where it comes from.
#[derive(Debug)]
pub(crate) struct Missing {
    pub(crate) what: &'static str,
    /// The packages of Debian and what is made of it.
    pub(crate) debian: &'static [&'static str],
    /// What to do on another system.
    pub(crate) elsewhere: &'static str,
}

impl Missing {
    /// Installs it if that takes no more than to be root on Debian; otherwise the error says how.
    /// Afterwards `is_there` must hold.
    pub(crate) fn install(&self, shell: &Shell, is_there: impl Fn() -> bool) -> Result<()> {
        let (what, packages) = (self.what, self.debian);
        if !on_path("apt-get") {
            bail!("{what} is missing: {}; then run this again", self.elsewhere);
        }
        if !is_root(shell) {
            bail!(
                "{what} is missing; run this again after\n  sudo apt-get update && \
                 sudo apt-get install -y --no-install-recommends {}",
                packages.join(" ")
            );
        }
        cmd!(shell, "apt-get update").run()?;
        cmd!(
            shell,
            "apt-get install -y --no-install-recommends {packages...}"
        )
        .env("DEBIAN_FRONTEND", "noninteractive")
        .run()?;
        ensure!(
            is_there(),
            "{what} is missing even with the packages {}",
            packages.join(" ")
        );
        Ok(())
    }
}

fn is_root(shell: &Shell) -> bool {
    cmd!(shell, "id -u")
        .quiet()
        .read()
        .is_ok_and(|id| id == "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_by_its_name() {
        let shell = Shell::new().unwrap();
        assert!(on_path("cargo") && succeeds(cmd!(shell, "cargo --version")));
        assert!(!on_path("no-such-program") && !succeeds(cmd!(shell, "no-such-program")));
        assert!(!succeeds(cmd!(shell, "cargo no-such-command")));
    }
}
