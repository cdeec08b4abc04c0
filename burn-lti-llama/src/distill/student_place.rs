//! [`StudentPlace`]: where a student goes that is no run's, written beside it until it is whole.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn_lti::files::{FolderLock, LOCK};

use super::{DistillError, OutputDir};

/// A folder for a student, and one beside it in which the student is written. Nothing is at the first before all
/// of it is.
pub(super) struct StudentPlace {
    target: PathBuf,
    unchecked: PathBuf,
    lock: Arc<FolderLock>,
    is_accepted: bool,
}

impl StudentPlace {
    /// The place of a student at `target`, where nothing is yet. What an earlier attempt left beside it goes.
    pub(super) fn new(target: &Path) -> Result<Self, DistillError> {
        if fs::symlink_metadata(target).is_ok_and(|found| !found.is_dir()) {
            return Err(DistillError::Refused(format!(
                "{} is no folder, and is not replaced: choose another --out",
                target.display()
            )));
        }
        OutputDir::check_empty(target, "choose another --out, or take them away")?;
        let Some(name) = target.file_name() else {
            return Err(DistillError::Refused(format!(
                "{} is no name for a new folder: choose another --out",
                target.display()
            )));
        };
        let unchecked = target.with_file_name(format!(".{}.unchecked", name.to_string_lossy()));
        fs::create_dir_all(&unchecked).map_err(problem(&unchecked))?;
        let lock = Arc::new(FolderLock::take(&unchecked)?);
        for entry in fs::read_dir(&unchecked).map_err(problem(&unchecked))? {
            let path = entry.map_err(problem(&unchecked))?.path();
            let removed = match path.is_dir() {
                true => fs::remove_dir_all(&path),
                false if path.ends_with(LOCK) => Ok(()),
                false => fs::remove_file(&path),
            };
            removed.map_err(problem(&path))?;
        }
        Ok(Self {
            target: target.to_owned(),
            unchecked,
            lock,
            is_accepted: false,
        })
    }

    /// Where it is written.
    pub(super) fn unchecked(&self) -> &Path {
        &self.unchecked
    }

    /// The right to write there.
    pub(super) fn lock(&self) -> Arc<FolderLock> {
        self.lock.clone()
    }

    /// The student is whole: it gets its name.
    pub(super) fn accept(mut self) -> Result<(), DistillError> {
        if self.target.is_dir() {
            // It holds nothing, or by now it does: then it stays.
            let lock = self.target.join(LOCK);
            if lock.exists() {
                fs::remove_file(&lock).map_err(problem(&lock))?;
            }
            fs::remove_dir(&self.target).map_err(problem(&self.target))?;
        }
        fs::rename(&self.unchecked, &self.target).map_err(problem(&self.target))?;
        self.is_accepted = true;
        // Until here nobody else may write there.
        let lock = self.target.join(LOCK);
        fs::remove_file(&lock).map_err(problem(&lock))?;
        Ok(())
    }
}

impl Drop for StudentPlace {
    fn drop(&mut self) {
        if !self.is_accepted {
            // What ended the writing is the error to tell; what is left goes next time.
            let _ = fs::remove_dir_all(&self.unchecked);
        }
    }
}

fn problem(path: &Path) -> impl FnOnce(std::io::Error) -> DistillError {
    let path = path.to_owned();
    |source| DistillError::Output { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_student_is_there_as_a_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("student");
        let place = StudentPlace::new(&target).unwrap();
        fs::write(place.unchecked().join("config.json"), "{").unwrap();
        assert!(!target.exists());
        drop(place); // it failed
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        // It was killed.
        let beside = folder.path().join(".student.unchecked");
        fs::create_dir_all(beside.join("templates")).unwrap();
        fs::write(beside.join("half"), "").unwrap();
        fs::create_dir(&target).unwrap();
        let place = StudentPlace::new(&target).unwrap();
        fs::write(place.unchecked().join("config.json"), "{}").unwrap();
        place.accept().unwrap();
        let names = fs::read_dir(&target)
            .unwrap()
            .map(|it| it.unwrap().file_name());
        assert_eq!(names.collect::<Vec<_>>(), ["config.json"]);
        assert!(!beside.exists());
    }

    #[test]
    fn what_is_there_is_refused_and_two_do_not_write_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("student");
        let place = StudentPlace::new(&target).unwrap();
        let error = StudentPlace::new(&target).err().unwrap();
        assert!(error.to_string().contains("the process "), "{error}");
        place.accept().unwrap();
        fs::write(target.join("mine"), "").unwrap();
        let error = StudentPlace::new(&target).err().unwrap();
        assert!(error.to_string().contains("already holds files"), "{error}");
        let error = StudentPlace::new(&target.join("mine")).err().unwrap();
        assert!(error.to_string().contains("is no folder"), "{error}");
        let error = StudentPlace::new(Path::new("..")).err().unwrap();
        assert!(
            error.to_string().contains("choose another --out"),
            "{error}"
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("student");
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), &target).unwrap();
        let error = StudentPlace::new(&target).err().unwrap();
        assert!(error.to_string().contains("is no folder"), "{error}");
    }
}
