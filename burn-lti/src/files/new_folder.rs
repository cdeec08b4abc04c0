//! [`NewFolder`]: a folder that is written beside its place, and gets its name when it is whole.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{FileError, FolderLock, LOCK, LockError};

/// A folder to be, and a hidden one beside it, `.NAME.unfinished`, in which it is written. Nobody else writes there
/// meanwhile. What is not accepted is taken away again.
#[derive(Debug)]
pub struct NewFolder {
    target: PathBuf,
    unfinished: PathBuf,
    lock: Arc<FolderLock>,
    is_accepted: bool,
}

impl NewFolder {
    /// For a folder `target`, whose last part is a name. What an earlier attempt left beside it goes.
    ///
    /// # Errors
    ///
    /// [`LockError`]: another writes it, or the system.
    pub fn new(target: &Path) -> Result<Self, LockError> {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let unfinished = target.with_file_name(format!(".{name}.unfinished"));
        let problem = || FileError::writing(&unfinished);
        fs::create_dir_all(&unfinished).map_err(problem())?;
        let lock = Arc::new(FolderLock::take(&unfinished)?);
        for entry in fs::read_dir(&unfinished).map_err(problem())? {
            let path = entry.map_err(problem())?.path();
            let removed = match path.is_dir() {
                true => fs::remove_dir_all(&path),
                false if path.ends_with(LOCK) => Ok(()),
                false => fs::remove_file(&path),
            };
            removed.map_err(FileError::writing(&path))?;
        }
        Ok(Self {
            target: target.to_owned(),
            unfinished,
            lock,
            is_accepted: false,
        })
    }

    /// Where it is written.
    pub fn path(&self) -> &Path {
        &self.unfinished
    }

    /// The right to write there.
    pub fn lock(&self) -> Arc<FolderLock> {
        self.lock.clone()
    }

    /// It is whole, and gets its name. A folder that is there and holds nothing makes room; one that holds anything
    /// stays.
    ///
    /// # Errors
    ///
    /// [`FileError`].
    pub fn accept(mut self) -> Result<(), FileError> {
        let problem = || FileError::writing(&self.target);
        let lock = self.target.join(LOCK);
        if self.target.is_dir() {
            if lock.exists() {
                fs::remove_file(&lock).map_err(problem())?;
            }
            fs::remove_dir(&self.target).map_err(problem())?;
        }
        fs::rename(&self.unfinished, &self.target).map_err(problem())?;
        // Until here nobody else might write there.
        let removed = fs::remove_file(&lock).map_err(problem());
        self.is_accepted = true;
        removed
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        if !self.is_accepted {
            // What ended the writing is the error to tell; what is left goes next time.
            let _ = fs::remove_dir_all(&self.unfinished);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_there_as_a_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("student");
        let new = NewFolder::new(&target).unwrap();
        fs::write(new.path().join("config.json"), "{").unwrap();
        assert!(!target.exists());
        drop(new); // it failed
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        // It was killed.
        let beside = folder.path().join(".student.unfinished");
        fs::create_dir_all(beside.join("templates")).unwrap();
        fs::write(beside.join("half"), "").unwrap();
        fs::create_dir(&target).unwrap();
        let new = NewFolder::new(&target).unwrap();
        let error = NewFolder::new(&target).unwrap_err();
        assert!(error.to_string().contains("the process "), "{error}");
        fs::write(new.path().join("config.json"), "{}").unwrap();
        new.accept().unwrap();
        let names = fs::read_dir(&target)
            .unwrap()
            .map(|it| it.unwrap().file_name());
        assert_eq!(names.collect::<Vec<_>>(), ["config.json"]);
        assert!(!beside.exists());
        // By now it holds something.
        let new = NewFolder::new(&target).unwrap();
        assert!(new.accept().is_err() && target.join("config.json").exists());
    }
}
