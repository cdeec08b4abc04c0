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

    /// Ends a search for a shape, if there is one: removes what it has written so far, in the system's folder for
    /// temporary files, and calls `end`, which may end the program. The search does not go on meanwhile, and ends after it.
    pub fn end_search(&self, end: impl FnOnce()) {
        let mut scratch = self.scratch();
        let Some(folder) = scratch.take() else {
            return;
        };
        self.ask();
        // Whoever writes there at this moment may be faster, but not for long.
        for _ in 0..100 {
            match fs::remove_dir_all(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                _ => sleep(Duration::from_millis(2)),
            }
        }
        end();
    }

    /// Whether the search is to go on; if it is [being ended](Self::end_search), that is waited for.
    pub(super) fn is_search_wanted(&self) -> bool {
        let scratch = self.scratch();
        scratch.is_some() && !self.is_asked()
    }

    pub(super) fn set_work(&self, has_work: bool) {
        self.0.has_work.store(has_work, Ordering::Relaxed);
    }

    /// A folder for what a search writes, which is removed with what is returned, or by
    /// [`end_search`](Self::end_search).
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
        interrupt.end_search(|| panic!("there is none"));
        assert!(!interrupt.is_asked());
        let scratch = interrupt.make_scratch().unwrap();
        let folder = scratch.path().to_owned();
        fs::create_dir(folder.join("shape")).unwrap();
        assert!(interrupt.is_search_wanted());
        drop(scratch);
        assert!(!folder.exists() && !interrupt.is_search_wanted());
        interrupt.end_search(|| panic!("it is over"));

        let scratch = interrupt.make_scratch().unwrap();
        let folder = scratch.path().to_owned();
        fs::create_dir(folder.join("shape")).unwrap();
        // By the handler of a signal, which has a clone.
        let mut is_ended = false;
        interrupt.clone().end_search(|| is_ended = !folder.exists());
        assert!(is_ended && interrupt.is_asked() && !interrupt.is_search_wanted());
        drop(scratch);
        interrupt.end_search(|| panic!("it is over"));
    }
}
