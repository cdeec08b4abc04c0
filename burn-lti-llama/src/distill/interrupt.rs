//! [`Interrupt`]: how a run is asked to stop, and what a program that ends in the middle of one has to remove.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use tempfile::TempDir;

/// Asks a run to stop after the step under way. Clones ask the same run.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<Asked>);

#[derive(Debug, Default)]
struct Asked {
    is_asked: AtomicBool,
    /// Whether the run has taken steps that are not saved.
    has_work: AtomicBool,
    /// A folder that nobody needs once the program ends.
    scratch: Mutex<Option<PathBuf>>,
}

impl Interrupt {
    /// Asks.
    pub fn ask(&self) {
        self.0.is_asked.store(true, Ordering::Relaxed);
    }

    /// Whether someone has asked.
    pub fn is_asked(&self) -> bool {
        self.0.is_asked.load(Ordering::Relaxed)
    }

    /// Whether the run would lose something if its program ended now. While it reads and calculates its start, and
    /// when it is over, it would not.
    pub fn has_work(&self) -> bool {
        self.0.has_work.load(Ordering::Relaxed)
    }

    /// Removes what a search for a shape has written so far, in the system's folder for temporary files, and says
    /// whether there is such a search: to be called before its program ends in the middle of it.
    pub fn remove_scratch(&self) -> bool {
        let Some(folder) = self.scratch().take() else {
            return false;
        };
        // Whoever writes there at this moment may be faster, but not for long.
        for _ in 0..100 {
            match fs::remove_dir_all(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                _ => sleep(Duration::from_millis(2)),
            }
        }
        true
    }

    pub(super) fn set_work(&self, has_work: bool) {
        self.0.has_work.store(has_work, Ordering::Relaxed);
    }

    /// A folder for what a search writes, which is removed with what is returned, or by
    /// [`remove_scratch`](Self::remove_scratch).
    pub(super) fn make_scratch(&self) -> io::Result<Scratch> {
        // Whoever is to remove it waits until there is one.
        let mut scratch = self.scratch();
        let folder = tempfile::tempdir()?;
        *scratch = Some(folder.path().to_owned());
        drop(scratch);
        Ok(Scratch {
            path: folder.path().to_owned(),
            folder: Some(folder),
            interrupt: self.clone(),
        })
    }

    fn scratch(&self) -> MutexGuard<'_, Option<PathBuf>> {
        self.0
            .scratch
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A folder of temporary files that a program which is interrupted removes.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
    folder: Option<TempDir>,
    interrupt: Interrupt,
}

impl Scratch {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It is gone before nobody knows of it.
        drop(self.folder.take());
        self.interrupt.scratch().take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_leaves_no_folder_however_it_ends() {
        let interrupt = Interrupt::default();
        assert!(!interrupt.remove_scratch());
        let scratch = interrupt.make_scratch().unwrap();
        let folder = scratch.path().to_owned();
        fs::create_dir(folder.join("shape")).unwrap();
        drop(scratch);
        assert!(!folder.exists() && !interrupt.remove_scratch());

        let scratch = interrupt.make_scratch().unwrap();
        let folder = scratch.path().to_owned();
        fs::create_dir(folder.join("shape")).unwrap();
        // By the handler of a signal, which has a clone.
        assert!(interrupt.clone().remove_scratch());
        assert!(!folder.exists());
        drop(scratch);
        assert!(!interrupt.remove_scratch());
    }
}
