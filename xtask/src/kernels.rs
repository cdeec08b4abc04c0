//! What cubecl, below wgpu, compiles for Vulkan, kept from one run of the tests to the next.
//!
//! On a software device more than a third of the tests' time went into compiling kernels anew: first by
//! cubecl to SPIR-V, then by the driver, whose own cache misses many of them, because cubecl writes the same
//! kernel in another order in every process. cubecl can keep its SPIR-V, and the driver then finds what it has
//! compiled from it. It does so where it is told to by a `cubecl.toml` in the folder that a program runs
//! in, or in one above; so the tests run in a folder that has one.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use xshell::{Shell, cmd};

use crate::cache::Cache;

/// Where cubecl reads its settings from.
const SETTINGS: &str = "cubecl.toml";
/// "local" is the folder that the program runs in.
const KEEP: &str = "[compilation]\ncache = \"local\"\n";

/// The variable that has cargo start tests in the folder of kernels, which is made here, and its value.
///
/// cubecl knows a kernel by its name, settings and device, but not by its code: each state of
/// `Cargo.lock` has a folder of its own, so that no kernel outlives the release that it belongs to.
///
/// Nothing where that cannot be: on another system than Linux, which has no `env -C`; with a runner of the
/// user's own, if `is_set` says so of the variable; in a folder with a space in its name, at which cargo
/// would split the command.
pub(crate) fn runner(
    shell: &Shell,
    cache: &Cache,
    root: &Path,
    is_set: impl Fn(&str) -> bool,
) -> Result<Option<(String, OsString)>> {
    if !cfg!(target_os = "linux") {
        return Ok(None);
    }
    let host = cmd!(shell, "rustc --print host-tuple").quiet().read()?;
    let variable = format!(
        "CARGO_TARGET_{}_RUNNER",
        host.to_uppercase().replace('-', "_")
    );
    let lock = root.join("Cargo.lock");
    let lock = fs::read(&lock).with_context(|| format!("cannot read {}", lock.display()))?;
    let folder = cache
        .path("kernels")
        .join(format!("{:x}", Sha256::digest(lock)));
    let folder_name = folder
        .to_str()
        .filter(|name| !name.contains(char::is_whitespace));
    let Some(folder_name) = folder_name.filter(|_| !is_set(&variable)) else {
        return Ok(None);
    };
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    cache.write(&folder.join(SETTINGS), KEEP)?;
    Ok(Some((variable, format!("env -C {folder_name}").into())))
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    fn kept(shell: &Shell, cache: &Cache, root: &Path) -> Option<(String, OsString)> {
        runner(shell, cache, root, |_| false).unwrap()
    }

    #[test]
    fn a_lock_file_has_its_own_folder_with_settings() {
        let shell = Shell::new().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let folder = |lock: &str| {
            fs::write(dir.path().join("Cargo.lock"), lock).unwrap();
            let cache = Cache::at(dir.path().join("cache"));
            let (variable, command) = kept(&shell, &cache, dir.path()).unwrap();
            assert!(
                variable.starts_with("CARGO_TARGET_") && variable.ends_with("_LINUX_GNU_RUNNER")
            );
            let command = command.into_string().unwrap();
            command.strip_prefix("env -C ").unwrap().to_owned()
        };
        let first = folder("one");
        let settings = fs::read_to_string(Path::new(&first).join(SETTINGS)).unwrap();
        assert_eq!(settings, KEEP);
        assert_eq!(folder("one"), first);
        assert_ne!(folder("two"), first);
    }

    #[test]
    fn a_folder_that_cargo_would_split_and_a_runner_of_ones_own_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("Cargo.lock"), "").unwrap();
        let cache = Cache::at(dir.path().join("a folder"));
        let shell = Shell::new().unwrap();
        assert_eq!(kept(&shell, &cache, dir.path()), None);
        assert!(!dir.path().join("a folder").exists());
        let cache = Cache::at(dir.path().join("cache"));
        let own = runner(&shell, &cache, dir.path(), |name| name.ends_with("_RUNNER"));
        assert_eq!(own.unwrap(), None);
        assert!(!dir.path().join("cache").exists());
    }
}
