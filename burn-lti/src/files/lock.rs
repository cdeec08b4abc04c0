//! [`FolderLock`]: one program at a time writes into a folder, and notices if the folder goes away.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process;

use super::FileError;

/// The file in a folder that its writer holds. It stays there, empty or with the number of a process that has
/// ended: what counts is who holds it.
pub const LOCK: &str = ".lock";

/// Why a folder is not for this program to write into.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another program writes into it.
    #[error(
        "{dir} is being written to by {holder}: wait until that has ended, or choose another folder"
    )]
    Held {
        /// The folder.
        dir: PathBuf,
        /// Which process, as far as it says.
        holder: String,
    },
    /// What is in it, or the folder itself, cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The system refused the lock.
    #[error("cannot lock {file}: check that the folder exists and is writable")]
    System {
        /// The file.
        file: PathBuf,
        /// What the system reported.
        source: io::Error,
    },
}

/// The right to write into a folder, until it is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct FolderLock {
    file: File,
    path: PathBuf,
}

impl FolderLock {
    /// Takes the folder `dir`, which has to be there.
    ///
    /// # Errors
    ///
    /// [`LockError::Held`] if another process, or another part of this one, has it; [`LockError::System`].
    pub fn take(dir: &Path) -> Result<Self, LockError> {
        let path = dir.join(LOCK);
        let system = |source| LockError::System {
            file: path.clone(),
            source,
        };
        // What another holds is not to be emptied.
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&path).map_err(system)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let dir = dir.to_owned();
                let holder = holder(&mut file);
                return Err(LockError::Held { dir, holder });
            }
            // There are file systems without locks: one run, one folder is then the user's own business.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(source)) => return Err(system(source)),
        }
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", process::id()))
            .and_then(|()| file.flush());
        written.map_err(system)?;
        Ok(Self { file, path })
    }

    /// Whether the folder is still the one that was taken: neither deleted nor put in its place again.
    pub fn is_in_place(&self) -> bool {
        let (Ok(held), Ok(there)) = (self.file.metadata(), fs::metadata(&self.path)) else {
            return false;
        };
        is_same(&held, &there)
    }
}

/// The process that holds the lock, as far as it says.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    // A number of a few digits; where it cannot be read, nobody is named.
    let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
    match read.ok().and_then(|_| text.trim().parse::<u32>().ok()) {
        Some(id) => format!("the process {id}"),
        None => "another process".to_owned(),
    }
}

#[cfg(unix)]
fn is_same(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;

    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Without numbers of files: that there is one has to do.
#[cfg(not(unix))]
fn is_same(_one: &fs::Metadata, _other: &fs::Metadata) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_writer_who_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let lock = FolderLock::take(folder.path()).unwrap();
        let error = FolderLock::take(folder.path()).unwrap_err();
        assert!(matches!(&error, LockError::Held { dir, .. } if dir == folder.path()));
        let process = format!("the process {}:", process::id());
        assert!(error.to_string().contains(&process), "{error}");
        drop(lock);
        let lock = FolderLock::take(folder.path()).unwrap();
        assert!(lock.is_in_place());
    }

    #[test]
    fn a_folder_that_is_not_there_cannot_be_taken() {
        let folder = tempfile::tempdir().unwrap();
        let error = FolderLock::take(&folder.path().join("absent")).unwrap_err();
        assert!(matches!(error, LockError::System { .. }));
        assert!(error.to_string().contains("check that the folder exists"));
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_was_deleted_or_made_again_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("out");
        fs::create_dir(&dir).unwrap();
        let lock = FolderLock::take(&dir).unwrap();
        assert!(lock.is_in_place());
        fs::remove_dir_all(&dir).unwrap();
        assert!(!lock.is_in_place());
        fs::create_dir(&dir).unwrap();
        assert!(!lock.is_in_place());
        let _other = FolderLock::take(&dir).unwrap();
        assert!(!lock.is_in_place());
    }
}
