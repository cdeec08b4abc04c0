//! The environment of everything that xtask starts.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;
use xshell::Shell;

use crate::setup::libtorch::{LIBRARY_PATH, Libtorch};

/// The folder for a user's sockets and pipes.
const RUNTIME_DIR: &str = "XDG_RUNTIME_DIR";

/// Variables that differ from those of this process.
///
/// `LIBTORCH` must be the same in every cargo call of a build with the feature `tch`: cargo compiles
/// the bindings again when it changes.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    variables: Vec<(String, OsString)>,
    needs_runtime_dir: bool,
}

impl Environment {
    pub(crate) fn new(libtorch: Option<&Libtorch>) -> Result<Self> {
        let mut variables = Vec::new();
        if let Some(libtorch) = libtorch {
            if let Some(root) = &libtorch.root {
                variables.push(("LIBTORCH".to_owned(), root.into()));
            }
            let path = prepended(&libtorch.lib, env::var_os(LIBRARY_PATH))?;
            variables.extend(path.map(|path| (LIBRARY_PATH.to_owned(), path)));
        }
        // The software device of Vulkan complains where it is not set.
        let needs_runtime_dir = cfg!(target_os = "linux") && env::var_os(RUNTIME_DIR).is_none();
        Ok(Self {
            variables,
            needs_runtime_dir,
        })
    }

    /// The same with a variable more.
    pub(crate) fn with(mut self, variable: Option<(String, OsString)>) -> Self {
        self.variables.extend(variable);
        self
    }

    /// Gives the variables to all that `shell` starts, until the returned value is dropped.
    pub(crate) fn apply(&self, shell: &Shell) -> Result<Option<TempDir>> {
        for (name, value) in &self.variables {
            shell.set_var(name, value);
        }
        if !self.needs_runtime_dir {
            return Ok(None);
        }
        let dir = tempfile::tempdir().context("cannot make a temporary folder")?;
        shell.set_var(RUNTIME_DIR, dir.path());
        Ok(Some(dir))
    }
}

/// As lines of a shell script.
impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.variables {
            let value = value.to_string_lossy();
            let value = shlex::try_quote(&value).map_err(|_| fmt::Error)?;
            writeln!(f, "export {name}={value}")?;
        }
        if self.needs_runtime_dir {
            writeln!(f, "export {RUNTIME_DIR}=\"$(mktemp -d)\"")?;
        }
        Ok(())
    }
}

/// The search path `old` with `folder` before it, or nothing if it begins with it already.
fn prepended(folder: &Path, old: Option<OsString>) -> Result<Option<OsString>> {
    let old = old.filter(|old| !old.is_empty());
    let old: Vec<PathBuf> = old.iter().flat_map(env::split_paths).collect();
    if old.first().is_some_and(|first| first == folder) {
        return Ok(None);
    }
    let path = env::join_paths([folder.to_owned()].into_iter().chain(old));
    let path = path.with_context(|| format!("{} cannot be in {LIBRARY_PATH}", folder.display()))?;
    Ok(Some(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_search_path_is_kept_behind_the_new_folder() {
        let path = |old: Option<&str>| {
            let path = prepended(Path::new("/torch/lib"), old.map(OsString::from)).unwrap();
            path.map(|path| path.into_string().unwrap())
        };
        assert_eq!(path(None).unwrap(), "/torch/lib");
        assert_eq!(path(Some("")).unwrap(), "/torch/lib");
        assert_eq!(path(Some("/a:/b")).unwrap(), "/torch/lib:/a:/b");
        assert_eq!(path(Some("/torch/lib:/a")), None);
    }

    #[test]
    fn the_variables_reach_what_is_started() {
        let shell = Shell::new().unwrap();
        let environment = Environment {
            variables: Vec::new(),
            needs_runtime_dir: true,
        };
        let environment = environment.with(Some(("LIBTORCH".to_owned(), "/a folder".into())));
        let dir = environment.apply(&shell).unwrap().unwrap();
        assert_eq!(shell.var("LIBTORCH").unwrap(), "/a folder");
        assert_eq!(shell.var_os(RUNTIME_DIR).unwrap(), dir.path());
        let lines = "export LIBTORCH='/a folder'\nexport XDG_RUNTIME_DIR=\"$(mktemp -d)\"\n";
        assert_eq!(environment.to_string(), lines);
    }
}
