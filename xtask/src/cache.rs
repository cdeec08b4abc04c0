//! The folder outside the repository that holds everything `cargo xtask setup` fetches.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf, absolute};

use anyhow::{Context, Result};
use tempfile::NamedTempFile;

/// Where the folder is, if this is set.
const VARIABLE: &str = "BURN_LTI_CACHE";

/// The cache folder. It need not exist before something is set up.
#[derive(Debug)]
pub(crate) struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `$BURN_LTI_CACHE`, else `burn-lti` in `$XDG_CACHE_HOME`, else in `~/.cache`.
    pub(crate) fn find() -> Result<Self> {
        let root = choose(|name| env::var_os(name), env::home_dir());
        let root = root.with_context(|| {
            format!("there is no home folder to keep the set-up in: set {VARIABLE} to a folder")
        })?;
        // A relative path would mean another folder to each program that is started.
        let root = absolute(&root).with_context(|| format!("{VARIABLE}={}", root.display()))?;
        Ok(Self { root })
    }

    #[cfg(test)]
    pub(crate) fn at(root: PathBuf) -> Self {
        Self { root }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Makes the folder and keeps other runs of `cargo xtask setup` waiting until the returned file
    /// is dropped.
    pub(crate) fn lock(&self) -> Result<File> {
        let name = self.path("lock");
        let lock = || {
            fs::create_dir_all(&self.root)?;
            let file = File::create(&name)?;
            file.lock()?;
            Ok::<_, std::io::Error>(file)
        };
        lock().with_context(|| format!("cannot lock {}", name.display()))
    }

    /// Writes the file `path` whole or not at all.
    pub(crate) fn write(&self, path: &Path, content: &str) -> Result<()> {
        let write = || {
            let mut file = NamedTempFile::new_in(&self.root)?;
            file.write_all(content.as_bytes())?;
            file.persist(path)?;
            Ok::<_, std::io::Error>(())
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Removes `path` and all in it; it is no error if there is nothing.
pub(crate) fn remove_dir(path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// Gives the complete folder `from` its name `to`, in place of whatever has that name.
pub(crate) fn rename_dir(from: &Path, to: &Path) -> Result<()> {
    remove_dir(to)?;
    fs::rename(from, to)
        .with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))
}

fn choose(variable: impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> Option<PathBuf> {
    let set = |name| variable(name).filter(|value| !value.is_empty());
    let own = set(VARIABLE).map(PathBuf::from);
    // The XDG base directory specification has relative paths ignored.
    let xdg = set("XDG_CACHE_HOME").map(PathBuf::from);
    let xdg = xdg.filter(|path| path.is_absolute());
    own.or_else(|| Some(xdg.or_else(|| Some(home?.join(".cache")))?.join("burn-lti")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(variables: &[(&str, &str)], home: Option<&str>) -> Option<PathBuf> {
        let find = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        };
        choose(find, home.map(PathBuf::from))
    }

    #[test]
    fn the_folder_follows_the_variables_in_order() {
        let both = [("BURN_LTI_CACHE", "/own"), ("XDG_CACHE_HOME", "/xdg")];
        assert_eq!(chosen(&both, Some("/home/me")), Some("/own".into()));
        assert_eq!(
            chosen(&both[1..], Some("/home/me")),
            Some("/xdg/burn-lti".into())
        );
        let home = Some("/home/me/.cache/burn-lti".into());
        assert_eq!(chosen(&[], Some("/home/me")), home);
        assert_eq!(chosen(&[], None), None);
    }

    #[test]
    fn what_is_empty_or_relative_does_not_count() {
        let home = Some("/home/me/.cache/burn-lti".into());
        let empty = [("BURN_LTI_CACHE", ""), ("XDG_CACHE_HOME", "")];
        assert_eq!(chosen(&empty, Some("/home/me")), home);
        assert_eq!(chosen(&[("XDG_CACHE_HOME", "xdg")], Some("/home/me")), home);
    }

    #[test]
    fn a_folder_takes_the_place_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        for (folder, file) in [(&from, "new"), (&to, "old")] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join(file), file).unwrap();
        }
        rename_dir(&from, &to).unwrap();
        assert!(to.join("new").exists() && !to.join("old").exists() && !from.exists());
    }
}
