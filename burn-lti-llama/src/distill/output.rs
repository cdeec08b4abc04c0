//! The output folder of a run.
//!
//! A run writes in the folder itself, or, where there is an earlier run that it is to replace, in a folder
//! inside, until it is finished. Then the two change places by renaming:
//!
//! | folder | what it holds |
//! |---|---|
//! | `run.unfinished` | the run that is to replace the one around it; `--resume` goes on with it |
//! | `run.accepted` | that run, finished, whose files are just being moved up |
//! | `run.replaced` | the earlier run, moved there to be removed |
//! | `run.kept-N`, `student.kept-N` | what of it no run wrote, or somebody changed since |
//!
//! Each list of files moves last, so that wherever this is cut off, the next run can end it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use burn_lti::files::{FolderLock, LOCK, remove_unfinished, write_atomically};
use serde_json::Value;

use super::file_list::{FileList, Foreign, LIST, PLACES, files_below};
use super::metrics::{LoggedEvaluation, evaluations};
use super::{DistillError, Manifest, PhaseEnd, StartSummary, Summary};
use crate::data::text_files;
use crate::eval::DocumentEvaluation;
use crate::recipe::Recipe;

/// A folder that a run may write to.
#[derive(Clone, Debug)]
pub struct OutputDir {
    /// The folder that was asked for.
    root: PathBuf,
    /// Where the run writes: the same, or a folder inside while it has yet to replace another.
    dir: PathBuf,
    existing: Existing,
}

/// What becomes of a run that is in the folder already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Existing {
    /// There is none.
    Refuse,
    /// It is replaced.
    Overwrite,
    /// It is taken up again.
    Resume,
}

/// What a run's `summary.json` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SummaryState {
    /// There is none.
    Absent,
    /// It cannot be read.
    Damaged,
    /// The run ended so, after so many steps.
    Ended(PhaseEnd, usize),
}

const SUMMARY: &str = "summary.json";
const RECIPE: &str = "recipe.toml";
const MANIFEST: &str = "manifest.json";
const METRICS: &str = "metrics.jsonl";
/// The tensors of a calculated start.
const START: &str = "start.safetensors";
/// Those of the layers that are calculated, while others are not.
const PARTIAL_START: &str = "start.partial.safetensors";
const START_SUMMARY: &str = "start.json";
/// What the exported student is worth, by document and position too.
const EVALUATION: &str = "evaluation.json";
/// The page of a run that has ended well.
const PAGE: &str = "report.html";
const STUDENT: &str = "student";
/// Where the student is written, until it has been read back and compared.
const UNCHECKED: &str = "student.unchecked";
/// Where an earlier one is while the new one takes its place.
const REPLACED_STUDENT: &str = "student.replaced";
const CHECKPOINTS: &str = "checkpoints";
const TENSORBOARD: &str = "tensorboard";

const UNFINISHED_RUN: &str = "run.unfinished";
const ACCEPTED_RUN: &str = "run.accepted";
const REPLACED_RUN: &str = "run.replaced";

impl OutputDir {
    /// The folder `dir`, which is made when the first file is written. One that holds anything is
    /// refused, unless `overwrite`: then a run that is there is replaced once the new one is finished. Only what
    /// a run wrote is ever removed.
    ///
    /// # Errors
    ///
    /// [`DistillError::Refused`] or [`DistillError::Output`].
    pub fn prepare(dir: &Path, overwrite: bool) -> Result<Self, DistillError> {
        if !overwrite {
            Self::check_empty(dir, Self::way_out(dir))?;
            return Ok(Self::with(dir, dir.to_owned(), Existing::Refuse));
        }
        let has_earlier = dir.join(LIST).exists() || is_being_accepted(dir);
        let inside = match has_earlier {
            true => dir.join(UNFINISHED_RUN),
            false => dir.to_owned(),
        };
        Ok(Self::with(dir, inside, Existing::Overwrite))
    }

    /// The folder `dir` of a run that is to go on from its newest checkpoint: the one that was begun last, if it
    /// has yet to replace another. A folder that holds nothing is taken for that of a run that was stopped before
    /// it wrote anything.
    ///
    /// # Errors
    ///
    /// [`DistillError::NoRun`] if it holds files and none of a run, or [`DistillError::Output`].
    pub fn resume(dir: &Path) -> Result<Self, DistillError> {
        let out = Self::of_run(dir);
        let inside = Self::with(dir, dir.join(UNFINISHED_RUN), Existing::Resume);
        // It is there as soon as the run is, which may have been stopped before it wrote anything.
        if inside.dir.is_dir() {
            return Ok(inside);
        }
        match out.has_run() || is_being_accepted(dir) || out.holds_only_a_beginning()? {
            true => Ok(out),
            false => Err(DistillError::NoRun {
                dir: dir.to_owned(),
            }),
        }
    }

    fn with(root: &Path, dir: PathBuf, existing: Existing) -> Self {
        let root = root.to_owned();
        Self {
            root,
            dir,
            existing,
        }
    }

    /// Whether there is nothing but what a run may have written before its list of files.
    fn holds_only_a_beginning(&self) -> Result<bool, DistillError> {
        let names = names_in(&self.dir)?;
        // A file that is being written has a name that begins with a dot.
        let mut names = names.iter();
        Ok(names.all(|name| name == UNCHECKED || name.starts_with('.')))
    }

    /// The folder of a run that is only read.
    pub(super) fn of_run(dir: &Path) -> Self {
        Self::with(dir, dir.to_owned(), Existing::Resume)
    }

    pub(super) const fn existing(&self) -> Existing {
        self.existing
    }

    /// Where the run writes.
    pub(super) fn path(&self) -> &Path {
        &self.dir
    }

    /// The folder that was asked for.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Whether the run has yet to take the place of another.
    pub(super) fn is_inside(&self) -> bool {
        self.dir != self.root
    }

    /// The recipe of the run that is to go on here, if there is one.
    pub fn begun_recipe(&self) -> Option<PathBuf> {
        let is_there = self.existing == Existing::Resume && self.recipe_path().is_file();
        is_there.then(|| self.recipe_path())
    }

    /// Whether a run has begun here.
    pub(super) fn has_run(&self) -> bool {
        self.dir.join(LIST).is_file() || self.manifest_path().is_file()
    }

    /// How the run here ended, if it says so.
    pub(super) fn summary_state(&self) -> Result<SummaryState, DistillError> {
        match fs::read(self.dir.join(SUMMARY)) {
            Ok(text) => Ok(match Summary::ending_in(&text) {
                Some((ending, steps)) => SummaryState::Ended(ending, steps),
                None => SummaryState::Damaged,
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(SummaryState::Absent),
            Err(source) => Err(self.problem(SUMMARY, source)),
        }
    }

    /// The figures of the run here, if it came to its end.
    pub(super) fn summary(&self) -> Result<Option<Summary>, DistillError> {
        match self.summary_state()? {
            SummaryState::Ended(ending, _) if ending != PhaseEnd::Interrupted => {}
            _ => return Ok(None),
        }
        let file = self.dir.join(SUMMARY);
        let text = fs::read(&file).map_err(|source| self.problem(SUMMARY, source))?;
        match serde_json::from_slice(&text) {
            Ok(summary) => Ok(Some(summary)),
            Err(source) => Err(DistillError::Foreign {
                file,
                reason: "does not hold what this program writes there: take it away, then resume the \
                         run, which writes it again",
                source: Box::new(source),
            }),
        }
    }

    /// What the run here found on held-out text on its way, as its `metrics.jsonl` says.
    ///
    /// # Errors
    ///
    /// [`DistillError::Part`] if the file cannot be read.
    pub fn evaluations(&self) -> Result<Vec<LoggedEvaluation>, DistillError> {
        Ok(evaluations(&self.metrics_path())?)
    }

    /// Whether the student here may be one at its start, and of no training.
    pub(super) fn has_start_summary(&self) -> bool {
        self.dir.join(START_SUMMARY).exists()
    }

    /// Whether the run here has written its metrics.
    pub fn has_metrics(&self) -> bool {
        self.metrics_path().exists()
    }

    pub(super) fn recipe_path(&self) -> PathBuf {
        self.dir.join(RECIPE)
    }

    pub(super) fn manifest_path(&self) -> PathBuf {
        self.dir.join(MANIFEST)
    }

    pub(super) fn start_path(&self) -> PathBuf {
        self.dir.join(START)
    }

    pub(super) fn partial_start_path(&self) -> PathBuf {
        self.dir.join(PARTIAL_START)
    }

    pub(super) fn checkpoints_path(&self) -> PathBuf {
        self.dir.join(CHECKPOINTS)
    }

    pub(super) fn tensorboard_path(&self) -> PathBuf {
        self.dir.join(TENSORBOARD)
    }

    /// What to do about a folder that is not empty. Work is not to be lost for want of a word about it.
    fn way_out(dir: &Path) -> &'static str {
        let inside = Self::of_run(&dir.join(UNFINISHED_RUN));
        match Self::of_run(dir).has_run() || inside.has_run() {
            true => {
                "`distill --resume` goes on with the run in it; or choose another --out, or add --overwrite \
                     to replace it as soon as another is finished"
            }
            false => {
                "choose another --out, or add --overwrite to replace the results of an earlier run, and \
                     nothing else"
            }
        }
    }

    /// Refuses a folder that holds anything, and says `way_out`. One that is not there holds nothing.
    ///
    /// # Errors
    ///
    /// [`DistillError::Refused`] or [`DistillError::Output`].
    pub fn check_empty(dir: &Path, way_out: &str) -> Result<(), DistillError> {
        match names_in(dir)?.iter().all(|name| name == LOCK) {
            true => Ok(()),
            false => Err(DistillError::Refused(format!(
                "{} already holds files: {way_out}",
                dir.display()
            ))),
        }
    }

    /// Where the student ends up, of a run that is not to replace another or has yet to.
    pub fn student_dir(&self) -> PathBuf {
        self.dir.join(STUDENT)
    }

    /// Where the student of a run with this end is.
    pub fn student_after(&self, ending: PhaseEnd) -> PathBuf {
        match Self::is_accepted(ending) {
            true => self.root.join(STUDENT),
            false => self.student_dir(),
        }
    }

    /// Whether a run that ends so takes the place of the one before.
    pub(super) const fn is_accepted(ending: PhaseEnd) -> bool {
        match ending {
            PhaseEnd::Finished | PhaseEnd::Plateau | PhaseEnd::Patience => true,
            PhaseEnd::Interrupted | PhaseEnd::NotFinite => false,
        }
    }

    pub(super) fn unchecked_student_dir(&self) -> PathBuf {
        self.dir.join(UNCHECKED)
    }

    /// Checks what a run checks before it reads anything: that nobody else writes here, and that nothing is replaced
    /// but what a run wrote.
    ///
    /// # Errors
    ///
    /// [`DistillError::Refused`], [`DistillError::Part`] of a folder that another has.
    pub fn check_free(&self, recipe: &Recipe) -> Result<(), DistillError> {
        let _lock = self.lock()?;
        self.check(recipe)
    }

    /// Takes the folder for this run, if it is there.
    pub(super) fn lock(&self) -> Result<Option<FolderLock>, DistillError> {
        match self.root.is_dir() {
            true => Ok(Some(FolderLock::take(&self.root)?)),
            false => Ok(None),
        }
    }

    /// Makes the folder and takes it, without what a run that was killed left half written.
    pub(super) fn make(&self) -> Result<FolderLock, DistillError> {
        fs::create_dir_all(&self.root).map_err(|source| DistillError::Output {
            path: self.root.clone(),
            source,
        })?;
        let lock = FolderLock::take(&self.root)?;
        remove_unfinished(&self.root)?;
        Ok(lock)
    }

    /// Checks that the folder is still there, and the one that was taken.
    pub(super) fn check_in_place(&self, lock: &FolderLock) -> Result<(), DistillError> {
        match lock.is_in_place() && self.dir.is_dir() {
            true => Ok(()),
            false => Err(DistillError::Gone {
                dir: self.dir.clone(),
            }),
        }
    }

    /// A new folder beside the run's own, for the student of a run whose folder is gone.
    pub(super) fn rescue_dir(&self) -> PathBuf {
        let name = self.root.file_name().unwrap_or_default();
        let beside = self.root.with_file_name("");
        let is_there = beside.as_os_str().is_empty() || beside.is_dir();
        let folder = match is_there {
            true => beside,
            false => std::env::temp_dir(),
        };
        free_name(&folder, &format!("{}.rescued", name.to_string_lossy()))
    }

    /// Checks, before anything is computed, that nothing is replaced but what a run wrote, and nothing that
    /// this one reads.
    pub(super) fn check(&self, recipe: &Recipe) -> Result<(), DistillError> {
        self.check_apart_from(recipe)?;
        if self.existing != Existing::Overwrite {
            return Ok(());
        }
        for dir in [&self.root, &self.dir] {
            let list = FileList::read(dir)?.unwrap_or_default();
            if let Some(foreign) = list.foreign_in(dir)? {
                return Err(refused(&foreign));
            }
        }
        Ok(())
    }

    /// Makes the folder of a run that is to replace another, so that it is this one that goes on if it is stopped.
    pub(super) fn make_inside(&self) -> Result<(), DistillError> {
        if !self.is_inside() {
            return Ok(());
        }
        fs::create_dir_all(&self.dir).map_err(|source| self.problem("", source))
    }

    /// Takes that folder away again, if nothing came of the run.
    pub(super) fn forget_inside(&self) {
        if self.is_inside() {
            // What holds anything stays, and what ended the run is the error to tell.
            let _ = fs::remove_dir(&self.dir);
        }
    }

    /// The student is no longer one at its start.
    pub(super) fn remove_start_summary(&self) -> Result<(), DistillError> {
        let path = self.dir.join(START_SUMMARY);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(DistillError::Output { path, source })
            }
            _ => Ok(()),
        }
    }

    /// Makes the folder, takes away what an earlier attempt of this run left and writes `recipe.toml` and
    /// `manifest.json`.
    pub(super) fn begin(&self, recipe: &Recipe, manifest: &Manifest) -> Result<(), DistillError> {
        if self.existing == Existing::Refuse {
            Self::check_empty(&self.root, Self::way_out(&self.root))?; // it has been a while
        }
        fs::create_dir_all(&self.dir).map_err(|source| self.problem("", source))?;
        let mut list = FileList::read(&self.dir)?.unwrap_or_default();
        // A run that is taken up goes on from the start that was calculated for it, and its student stays until
        // there is another.
        let kept: &[&str] = match self.existing {
            Existing::Resume => &[START, PARTIAL_START, START_SUMMARY, STUDENT],
            Existing::Refuse | Existing::Overwrite => &[],
        };
        let places: Vec<&str> = PLACES.into_iter().filter(|it| !kept.contains(it)).collect();
        if let Some(path) = list.remove(&self.dir, &places)?.into_iter().next() {
            let what = "was not written by this run";
            return Err(refused(&Foreign { path, what }));
        }
        if kept.is_empty() {
            list = FileList::default();
        }
        let (recipe, manifest) = (recipe.to_toml()?, manifest.to_text(&self.manifest_path())?);
        list.add_text(RECIPE, recipe.as_bytes());
        list.add_text(MANIFEST, manifest.as_bytes());
        list.add_unfinished(METRICS);
        list.write(&self.dir)?;
        // What cannot be written is found out before the training.
        let path = self.unchecked_student_dir();
        fs::create_dir_all(&path).map_err(|source| DistillError::Output { path, source })?;
        write_atomically(&self.recipe_path(), recipe.as_bytes())?;
        Ok(write_atomically(
            &self.manifest_path(),
            manifest.as_bytes(),
        )?)
    }

    /// Writes `recipe.toml` anew: the run goes on by another, or lost it.
    pub(super) fn write_recipe(&self, recipe: &Recipe) -> Result<(), DistillError> {
        let text = recipe.to_toml()?;
        self.update(|list| {
            list.add_text(RECIPE, text.as_bytes());
            Ok(())
        })?;
        Ok(write_atomically(&self.recipe_path(), text.as_bytes())?)
    }

    /// Writes `manifest.json` anew, which the run lost.
    pub(super) fn write_manifest(&self, manifest: &Manifest) -> Result<(), DistillError> {
        let text = manifest.to_text(&self.manifest_path())?;
        self.update(|list| {
            list.add_text(MANIFEST, text.as_bytes());
            Ok(())
        })?;
        Ok(write_atomically(&self.manifest_path(), text.as_bytes())?)
    }

    /// The SHA-256 with which the run wrote its `recipe.toml`, if that is known.
    pub(super) fn recipe_hash(&self) -> Result<Option<String>, DistillError> {
        let list = FileList::read(&self.dir)?;
        Ok(list.and_then(|list| list.hash_of(RECIPE).map(str::to_owned)))
    }

    /// Puts a student back that an interrupted exchange left aside, and takes away what was being written, and the
    /// page, which is of the run as it was.
    pub(super) fn take_up(&self) -> Result<Option<PathBuf>, DistillError> {
        let list = FileList::read(&self.dir)?.unwrap_or_default();
        let replaced = self.dir.join(REPLACED_STUDENT);
        if replaced.is_dir() && !self.student_dir().exists() {
            fs::rename(&replaced, self.student_dir())
                .map_err(|source| self.problem(STUDENT, source))?;
        }
        let kept = self.remove_replaced_student()?;
        list.remove(&self.dir, &[UNCHECKED, PAGE])?;
        // It grows again.
        self.update(|list| {
            list.add_unfinished(METRICS);
            Ok(())
        })?;
        let path = self.unchecked_student_dir();
        fs::create_dir_all(&path).map_err(|source| DistillError::Output { path, source })?;
        Ok(kept)
    }

    /// The student was compared with what was trained: gives it its name. An earlier one goes, and what of it no
    /// run wrote is left in the folder that is returned.
    pub(super) fn accept_student(&self) -> Result<Option<PathBuf>, DistillError> {
        let (unchecked, student) = (self.unchecked_student_dir(), self.student_dir());
        self.update(|list| {
            list.move_folder(STUDENT, REPLACED_STUDENT);
            list.add_folder(&unchecked, STUDENT)
        })?;
        if fs::symlink_metadata(&student).is_ok() {
            fs::rename(&student, self.dir.join(REPLACED_STUDENT))
                .map_err(|source| self.problem(REPLACED_STUDENT, source))?;
        }
        fs::rename(unchecked, student).map_err(|source| self.problem(STUDENT, source))?;
        self.remove_replaced_student()
    }

    fn remove_replaced_student(&self) -> Result<Option<PathBuf>, DistillError> {
        let replaced = self.dir.join(REPLACED_STUDENT);
        if fs::symlink_metadata(&replaced).is_err() {
            return Ok(None);
        }
        let list = FileList::read(&self.dir)?.unwrap_or_default();
        list.remove(&self.dir, &[REPLACED_STUDENT])?;
        let kept = set_aside(&replaced, &self.dir, "student.kept")?;
        self.update(|list| {
            list.forget_folder(REPLACED_STUDENT);
            Ok(())
        })?;
        Ok(kept)
    }

    /// A student was written into the run's folder `student` from outside of a run: from now on it is the run's.
    pub(super) fn adopt_student(&self) -> Result<(), DistillError> {
        self.update(|list| {
            list.forget_folder(STUDENT);
            list.add_folder(&self.student_dir(), STUDENT)
        })
    }

    /// The start is going to be written, layer by layer and then as a whole.
    pub(super) fn list_unfinished_start(&self) -> Result<(), DistillError> {
        self.update(|list| {
            list.add_unfinished(START);
            list.add_unfinished(PARTIAL_START);
            Ok(())
        })
    }

    /// The start was written: its parts are needed no longer.
    pub(super) fn list_start(&self) -> Result<(), DistillError> {
        let path = self.partial_start_path();
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(DistillError::Output { path, source });
            }
            _ => {}
        }
        self.update(|list| {
            list.add_file(&self.dir, PARTIAL_START)?;
            list.add_file(&self.dir, START)
        })
    }

    /// The run is over: what grew is as it will stay.
    fn list_metrics(&self) -> Result<(), DistillError> {
        self.update(|list| list.add_file(&self.dir, METRICS))
    }

    fn update(
        &self,
        change: impl FnOnce(&mut FileList) -> Result<(), DistillError>,
    ) -> Result<(), DistillError> {
        let mut list = FileList::read(&self.dir)?.unwrap_or_default();
        change(&mut list)?;
        list.write(&self.dir)
    }

    /// The run is finished: it takes the place of the one before, if there is one. What of that no run wrote is
    /// left in the folder that is returned.
    pub(super) fn accept_run(&self) -> Result<Option<PathBuf>, DistillError> {
        if !self.is_inside() {
            return Ok(None);
        }
        fs::rename(&self.dir, self.root.join(ACCEPTED_RUN))
            .map_err(|source| self.problem("", source))?;
        self.settle()
    }

    /// Ends an exchange of two runs, wherever it was cut off.
    pub(super) fn settle(&self) -> Result<Option<PathBuf>, DistillError> {
        let [accepted, replaced] = [ACCEPTED_RUN, REPLACED_RUN].map(|name| self.root.join(name));
        let names = || PLACES.into_iter().chain([LIST]);
        if is_being_accepted(&self.root) {
            // Its list moves last: where that is there, all else is.
            if !replaced.join(LIST).exists() {
                fs::create_dir_all(&replaced)
                    .map_err(|source| self.problem(REPLACED_RUN, source))?;
                names().try_for_each(|name| move_up(name, &self.root, &replaced))?;
            }
            // What somebody put beside the run's files goes with them, if it does not have to make room.
            let others = names_in(&accepted)?.into_iter();
            let others = others.filter(|name| !self.root.join(name).exists());
            let others: Vec<String> = others.filter(|name| name != LIST).collect();
            let others = others.iter().map(String::as_str);
            let mut all = PLACES.into_iter().chain(others).chain([LIST]);
            all.try_for_each(|name| move_up(name, &accepted, &self.root))?;
        }
        set_aside(&accepted, &self.root, "run.kept")?;
        if fs::symlink_metadata(&replaced).is_err() {
            return Ok(None);
        }
        if let Some(list) = FileList::read(&replaced)? {
            list.remove(&replaced, &PLACES)?;
            let path = replaced.join(LIST);
            fs::remove_file(&path).map_err(|source| DistillError::Output { path, source })?;
        }
        set_aside(&replaced, &self.root, "run.kept")
    }

    /// Refuses to replace a file that is read, such as the recipe.
    ///
    /// # Errors
    ///
    /// [`DistillError::Refused`] if the file is where an earlier run is replaced.
    pub fn check_apart_from_file(&self, file: &Path) -> Result<(), DistillError> {
        match self.existing {
            Existing::Overwrite => self.check_apart([file]),
            Existing::Refuse | Existing::Resume => Ok(()),
        }
    }

    /// A run that took away what it reads would have nothing left to learn from.
    fn check_apart_from(&self, recipe: &Recipe) -> Result<(), DistillError> {
        let mut texts = Vec::new();
        for paths in [&recipe.data.train, &recipe.data.valid] {
            texts.extend(text_files(paths)?);
        }
        let read = [&recipe.teacher.path]
            .into_iter()
            .chain(&recipe.teacher.cache)
            .chain(&texts);
        self.check_apart(read.map(PathBuf::as_path))
    }

    fn check_apart<'a>(
        &self,
        read: impl IntoIterator<Item = &'a Path>,
    ) -> Result<(), DistillError> {
        let inside = [UNFINISHED_RUN, ACCEPTED_RUN, REPLACED_RUN];
        let replaced = PLACES.into_iter().chain(inside);
        let replaced = replaced.filter_map(|name| fs::canonicalize(self.root.join(name)).ok());
        let replaced: Vec<PathBuf> = replaced.collect();
        for path in read {
            let found = fs::canonicalize(path).ok();
            let is_replaced = |found: PathBuf| replaced.iter().any(|it| found.starts_with(it));
            if found.is_some_and(is_replaced) {
                return Err(DistillError::Refused(format!(
                    "{} lies in {}, where this run would replace it: choose another --out",
                    path.display(),
                    self.root.display()
                )));
            }
        }
        Ok(())
    }

    fn problem(&self, name: &str, source: io::Error) -> DistillError {
        DistillError::Output {
            path: self.dir.join(name),
            source,
        }
    }

    pub(super) fn write_summary(&self, summary: &Summary) -> Result<(), DistillError> {
        self.list_metrics()?;
        self.write_json(SUMMARY, &summary.to_json())
    }

    pub(super) fn write_start(&self, summary: &StartSummary) -> Result<(), DistillError> {
        self.write_json(START_SUMMARY, &summary.to_json())
    }

    pub(super) fn write_evaluation(&self, found: &DocumentEvaluation) -> Result<(), DistillError> {
        // A struct of numbers always serializes.
        self.write_json(EVALUATION, &serde_json::to_value(found).unwrap_or_default())
    }

    /// Writes the page of the run in `dir`, which is over, and gives its path. One that the run has is replaced, another
    /// only if `overwrite`.
    ///
    /// # Errors
    ///
    /// [`DistillError::Refused`] of a page that is not as the run wrote it, [`DistillError::Part`] of a folder that
    /// another process has, or [`DistillError::Output`].
    pub fn write_page(dir: &Path, html: &str, overwrite: bool) -> Result<PathBuf, DistillError> {
        let out = Self::of_run(dir);
        let _lock = out.lock()?;
        let mut list = FileList::read(dir)?.unwrap_or_default();
        if overwrite {
            list.add_file(dir, PAGE)?;
        }
        if let Some(path) = list.remove(dir, &[PAGE])?.into_iter().next() {
            let what = "was not written by this run";
            return Err(refused(&Foreign { path, what }));
        }
        out.write_text(PAGE, html)?;
        Ok(dir.join(PAGE))
    }

    fn write_json(&self, name: &str, value: &Value) -> Result<(), DistillError> {
        self.write_text(name, &format!("{value:#}\n"))
    }

    fn write_text(&self, name: &str, text: &str) -> Result<(), DistillError> {
        self.update(|list| {
            list.add_text(name, text.as_bytes());
            Ok(())
        })?;
        Ok(write_atomically(&self.dir.join(name), text.as_bytes())?)
    }

    pub(super) fn metrics_path(&self) -> PathBuf {
        self.dir.join(METRICS)
    }
}

/// Whether an exchange of two runs was cut off.
fn is_being_accepted(root: &Path) -> bool {
    root.join(ACCEPTED_RUN).join(LIST).is_file()
}

/// Moves what has this name in one folder into another, if it is there.
fn move_up(name: &str, from: &Path, to: &Path) -> Result<(), DistillError> {
    let path = from.join(name);
    match fs::rename(&path, to.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(DistillError::Output { path, source }),
        Ok(()) => Ok(()),
    }
}

/// Gives a folder that still holds something a name under which it stays, and removes one that holds nothing.
fn set_aside(path: &Path, dir: &Path, name: &str) -> Result<Option<PathBuf>, DistillError> {
    let problem = |source| DistillError::Output {
        path: path.to_owned(),
        source,
    };
    if fs::symlink_metadata(path).is_err() {
        return Ok(None);
    }
    if files_below(path)?.is_empty() {
        fs::remove_dir_all(path).map_err(problem)?;
        return Ok(None);
    }
    let kept = free_name(dir, name);
    fs::rename(path, &kept).map_err(problem)?;
    Ok(Some(kept))
}

/// `NAME-1` in a folder, or the first number that is free.
fn free_name(dir: &Path, name: &str) -> PathBuf {
    let mut paths = (1..).map(|number: usize| dir.join(format!("{name}-{number}")));
    let free = paths.find(|path| fs::symlink_metadata(path).is_err());
    free.unwrap_or_else(|| dir.join(name))
}

/// The names of what is in a folder. In one that is not there is nothing.
fn names_in(dir: &Path) -> Result<Vec<String>, DistillError> {
    let problem = |source| DistillError::Output {
        path: dir.to_owned(),
        source,
    };
    match fs::read_dir(dir) {
        Ok(entries) => entries
            .map(|entry| {
                Ok(entry
                    .map_err(problem)?
                    .file_name()
                    .to_string_lossy()
                    .into_owned())
            })
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(problem(source)),
    }
}

fn refused(foreign: &Foreign) -> DistillError {
    DistillError::Refused(format!(
        "{} {}: move it away, or choose another --out",
        foreign.path.display(),
        foreign.what
    ))
}

#[cfg(test)]
mod tests;
