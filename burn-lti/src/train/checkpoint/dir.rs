//! [`CheckpointDir`]: the folder of a run's checkpoints.

use std::fs::{self, File};
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use burn::module::AutodiffModule;
use burn::optim::Optimizer;
use burn::tensor::backend::AutodiffBackend;

use super::{Checkpoint, CheckpointError, RunState};

/// What the name of a checkpoint begins with.
const STEP: &str = "step-";
/// What it begins with until the checkpoint is whole.
const WRITING: &str = "writing-step-";

/// The folder of one run's checkpoints: the newest ones, and the one with the best score.
#[derive(Debug)]
pub struct CheckpointDir {
    dir: PathBuf,
    keep: NonZeroUsize,
    /// By step.
    whole: Vec<Checkpoint>,
    broken: Vec<Broken>,
}

/// A checkpoint that is passed over.
#[derive(Debug)]
pub struct Broken {
    /// Its folder.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: CheckpointError,
}

impl CheckpointDir {
    /// Takes stock of `dir`, which need not be there yet: every checkpoint in it is read and compared
    /// with its hashes. Nothing is changed.
    ///
    /// The newest `keep` checkpoints will be kept.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Io`] if something there cannot be read, [`CheckpointError::Refused`] if it
    /// is another version's. What is merely broken is no error: see [`Self::broken`].
    pub fn open(dir: impl Into<PathBuf>, keep: NonZeroUsize) -> Result<Self, CheckpointError> {
        let mut found = Self {
            dir: dir.into(),
            keep,
            whole: Vec::new(),
            broken: Vec::new(),
        };
        for path in paths_in(&found.dir)? {
            match read(&path) {
                Some(Ok(checkpoint)) => found.whole.push(checkpoint),
                Some(Err(reason)) if reason.is_damage() => {
                    found.broken.push(Broken { path, reason });
                }
                Some(Err(error)) => return Err(error),
                None => {} // not ours
            }
        }
        found.whole.sort_by_key(|checkpoint| checkpoint.run().step);
        Ok(found)
    }

    /// The newest whole checkpoint.
    pub fn latest(&self) -> Option<&Checkpoint> {
        self.whole.last()
    }

    /// The checkpoint with the lowest score, the first of these if there are several. `None` if none has
    /// a score.
    pub fn best(&self) -> Option<&Checkpoint> {
        let scored = self.whole.iter().filter_map(|checkpoint| {
            let score = checkpoint.run().score?;
            Some((score, checkpoint))
        });
        let best = scored.min_by(|(one, _), (other, _)| one.total_cmp(other));
        best.map(|(_, checkpoint)| checkpoint)
    }

    /// The checkpoints that were found broken: cut off while they were saved, or damaged since. The next
    /// [`Self::save`] removes them.
    pub fn broken(&self) -> &[Broken] {
        &self.broken
    }

    /// Saves what trains in `module`, the state of `optimizer` and `run` as a checkpoint, reads it
    /// back, and removes what need not be kept: broken checkpoints first, and then all but the newest and
    /// the best.
    ///
    /// # Errors
    ///
    /// - [`CheckpointError::Refused`]: the score is not finite, there is a checkpoint of that step or a
    ///   later one, or a parameter does not train in the device's float type.
    /// - [`CheckpointError::Io`], [`CheckpointError::Damaged`]: the system failed. Earlier checkpoints are
    ///   untouched.
    pub fn save<B, M, O>(
        &mut self,
        module: &M,
        optimizer: &O,
        run: RunState,
    ) -> Result<Checkpoint, CheckpointError>
    where
        B: AutodiffBackend,
        M: AutodiffModule<B>,
        O: Optimizer<M, B>,
    {
        self.check(&run)?;
        fs::create_dir_all(&self.dir).map_err(CheckpointError::at(&self.dir))?;
        for broken in std::mem::take(&mut self.broken) {
            retire(&broken.path)?;
        }

        let temporary = self.dir.join(format!("{WRITING}{:08}", run.step));
        let path = self.dir.join(format!("{STEP}{:08}", run.step));
        remove(&temporary)?;
        fs::create_dir(&temporary).map_err(CheckpointError::at(&temporary))?;
        let written = Checkpoint::write(&temporary, module, optimizer, run).and_then(|written| {
            sync_folder(&temporary)?;
            written.rename(path)
        });
        let checkpoint = match written {
            Ok(checkpoint) => checkpoint,
            Err(error) => {
                // What stopped the writing is the error to tell; what is left goes next time.
                let _ = remove(&temporary);
                return Err(error);
            }
        };
        sync_folder(&self.dir)?;

        self.whole.push(checkpoint.clone());
        self.prune()?;
        Ok(checkpoint)
    }

    fn check(&self, run: &RunState) -> Result<(), CheckpointError> {
        let step = run.step;
        if let Some(score) = run.score.filter(|score| !score.is_finite()) {
            return Err(CheckpointError::refused(format!(
                "the score of step {step} is {score}, which compares with no other: give none instead"
            )));
        }
        match self.latest().map(|latest| latest.run().step) {
            Some(newest) if newest >= step => Err(CheckpointError::refused(format!(
                "{} holds a checkpoint of step {newest}, so none of step {step} goes there: go on from \
                 the newest, or give the run a folder of its own",
                self.dir.display()
            ))),
            _ => Ok(()),
        }
    }

    fn prune(&mut self) -> Result<(), CheckpointError> {
        let best = self.best().map(|best| best.run().step);
        let old = self.whole.len().saturating_sub(self.keep.get());
        let mut kept = self.whole.split_off(old);
        for checkpoint in std::mem::take(&mut self.whole) {
            if Some(checkpoint.run().step) == best {
                kept.insert(0, checkpoint);
            } else {
                retire(checkpoint.path())?;
            }
        }
        self.whole = kept;
        Ok(())
    }
}

/// Removes a checkpoint: first its name, so that what is left where this is cut off is none.
fn retire(path: &Path) -> Result<(), CheckpointError> {
    let name = path.file_name().and_then(|name| name.to_str());
    let digits = name.and_then(|name| name.strip_prefix(STEP));
    let Some(digits) = digits else {
        return remove(path);
    };
    let nameless = path.with_file_name(format!("{WRITING}{digits}"));
    remove(&nameless)?;
    fs::rename(path, &nameless).map_err(CheckpointError::at(path))?;
    remove(&nameless)
}

/// The checkpoint in a folder. `None` if its name is not that of a checkpoint.
fn read(path: &Path) -> Option<Result<Checkpoint, CheckpointError>> {
    let name = path.file_name()?.to_str()?;
    let is_number = |digits: &str| digits.parse::<usize>().is_ok();
    if name.strip_prefix(WRITING).is_some_and(is_number) {
        return Some(Err(CheckpointError::Damaged {
            path: path.to_owned(),
            what: "a checkpoint that was never finished",
            source: None,
        }));
    }
    let is_step = name.strip_prefix(STEP).is_some_and(is_number);
    is_step.then(|| Checkpoint::open(path))
}

fn paths_in(dir: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let io = CheckpointError::at(dir);
    match fs::read_dir(dir) {
        Ok(entries) => entries
            .map(|entry| Ok(entry.map_err(&io)?.path()))
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(io(error)),
    }
}

/// Removes a folder. One that is not there needs no removing.
fn remove(path: &Path) -> Result<(), CheckpointError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(CheckpointError::at(path)(error))
        }
        _ => Ok(()),
    }
}

/// Brings the names in a folder to the disk, where a folder can be opened for that.
fn sync_folder(path: &Path) -> Result<(), CheckpointError> {
    if cfg!(unix) {
        let synced = File::open(path).and_then(|folder| folder.sync_all());
        synced.map_err(CheckpointError::at(path))?;
    }
    Ok(())
}
