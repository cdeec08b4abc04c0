//! Python and its package installer, which fetches what is published as wheels.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use xshell::{Shell, cmd};

use crate::programs::{Missing, succeeds};

/// The interpreter of the system.
pub(crate) const PYTHON: &str = if cfg!(windows) { "python" } else { "python3" };

/// Versions for which every package in `requirements/peers*.txt` is published.
const VERSIONS: &str = "(3, 11) <= sys.version_info[:2] <= (3, 13)";

const PIP: Missing = Missing {
    what: "Python with pip",
    debian: &["python3", "python3-pip"],
    elsewhere: "install Python 3 with its package installer pip",
};

const VENV: Missing = Missing {
    what: "Python's module venv",
    debian: &["python3", "python3-venv"],
    elsewhere: "install Python 3.11 to 3.13 with its modules venv and ensurepip",
};

/// Sees to it that `python3 -m pip` works.
pub(super) fn require_pip(shell: &Shell) -> Result<()> {
    let is_there = || succeeds(cmd!(shell, "{PYTHON} -m pip --version"));
    match is_there() {
        true => Ok(()),
        false => PIP.install(shell, is_there),
    }
}

/// Sees to it that an environment can be made, of a version that fits.
pub(super) fn require_venv(shell: &Shell) -> Result<()> {
    let is_there = || succeeds(cmd!(shell, "{PYTHON} -c 'import ensurepip, venv'"));
    if !is_there() {
        VENV.install(shell, is_there)?;
    }
    let fits = format!("import sys; sys.exit(not {VERSIONS})");
    ensure!(
        succeeds(cmd!(shell, "{PYTHON} -c {fits}")),
        "`{PYTHON}` has a version that the peers are not published for: put Python 3.11, 3.12 or \
         3.13 first on the PATH"
    );
    Ok(())
}

/// The interpreter of the virtual environment in `folder`.
pub(super) fn in_venv(folder: &Path) -> PathBuf {
    match cfg!(windows) {
        true => folder.join("Scripts").join("python.exe"),
        false => folder.join("bin").join("python"),
    }
}

/// Fetches the wheels of a file in `xtask/requirements` into `folder`; `options` are pip's. Wheels
/// that are there already are not fetched again, if they have the right hash.
pub(super) fn download(
    shell: &Shell,
    requirements: &str,
    folder: &Path,
    options: &[&str],
) -> Result<()> {
    require_pip(shell)?;
    // Without the cache: the wheels are unpacked once and not wanted again.
    cmd!(
        shell,
        "{PYTHON} -m pip download --no-cache-dir --no-deps --only-binary=:all: --require-hashes
         {options...} --dest {folder} --requirement xtask/requirements/{requirements}"
    )
    .run()?;
    Ok(())
}
