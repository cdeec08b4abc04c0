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

/// The cargo that runs this program, as if a user called it.
///
/// Cargo tells a program that it runs of the program's own package. Build scripts read these
/// variables too, that of `ring` below torch-sys among them: where they stay, this cargo and one
/// called by hand make each other's builds stale.
pub(crate) fn cargo(shell: &Shell) -> Cmd<'_> {
    let program = env::var_os("CARGO").unwrap_or("cargo".into());
    let names = env::vars_os().map(|(name, _)| name);
    names
        .filter(|name| is_of_a_package(&name.to_string_lossy()))
        .fold(shell.cmd(program), Cmd::env_remove)
}

/// Whether cargo sets this variable for programs of a package.
fn is_of_a_package(variable: &str) -> bool {
    variable.starts_with("CARGO_MANIFEST_") || variable.starts_with("CARGO_PKG_")
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
    fn cargo_is_told_of_no_package() {
        let shell = Shell::new().unwrap();
        assert!(
            env::var_os("CARGO_MANIFEST_DIR").is_some(),
            "cargo runs this"
        );
        let command = std::process::Command::from(cargo(&shell));
        let changes: Vec<_> = command.get_envs().collect();
        for name in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "CARGO_PKG_VERSION"] {
            assert!(changes.contains(&(name.as_ref(), None)), "{name}");
        }
        for kept in ["CARGO_TARGET_DIR", "CARGO_INCREMENTAL", "CARGO_HOME"] {
            assert!(!is_of_a_package(kept), "{kept}");
        }
    }

    #[test]
    fn a_program_is_found_by_its_name() {
        let shell = Shell::new().unwrap();
        assert!(on_path("cargo") && succeeds(cmd!(shell, "cargo --version")));
        assert!(!on_path("no-such-program") && !succeeds(cmd!(shell, "no-such-program")));
        assert!(!succeeds(cmd!(shell, "cargo no-such-command")));
    }
}
