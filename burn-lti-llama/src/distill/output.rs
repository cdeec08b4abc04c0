//! The output folder of a run.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use burn_lti::files::write_atomically;
use serde_json::Value;

use super::metrics::{LoggedEvaluation, evaluations};
use super::{DistillError, Manifest, StartSummary, Summary};
use crate::data::text_files;
use crate::recipe::Recipe;

/// A folder that a run may write to.
#[derive(Clone, Debug)]
pub struct OutputDir {
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

/// What a run writes besides folders; `summary.json` first: while it is there, what stands beside it
/// is one finished run.
const FILES: [&str; 6] = [
    "summary.json",
    START,
    "start.json",
    "metrics.jsonl",
    "manifest.json",
    "recipe.toml",
];

/// The tensors of a calculated start.
const START: &str = "start.safetensors";

impl OutputDir {
    /// The folder `dir`, which is made when the first file is written. One that holds anything is
    /// refused, unless `overwrite`: then the files that a run writes and the folder `student` are
    /// replaced, and nothing else is touched.
    ///
    /// # Errors
    ///
    /// [`DistillError::Refused`] or [`DistillError::Output`].
    pub fn prepare(dir: &Path, overwrite: bool) -> Result<Self, DistillError> {
        let existing = match overwrite {
            true => Existing::Overwrite,
            false => {
                Self::check_empty(dir, Self::way_out(dir))?;
                Existing::Refuse
            }
        };
        let dir = dir.to_owned();
        Ok(Self { dir, existing })
    }

    /// The folder `dir` of a run that is to go on from its newest checkpoint. One that holds nothing is
    /// taken for a run that was stopped before it wrote anything.
    ///
    /// # Errors
    ///
    /// [`DistillError::NoRun`] if it holds files and none of a run, or [`DistillError::Output`].
    pub fn resume(dir: &Path) -> Result<Self, DistillError> {
        let out = Self {
            dir: dir.to_owned(),
            existing: Existing::Resume,
        };
        match out.has_run() || out.holds_only_a_beginning()? {
            true => Ok(out),
            false => Err(DistillError::NoRun {
                dir: dir.to_owned(),
            }),
        }
    }

    /// Whether there is nothing but what a run may have written before its manifest.
    fn holds_only_a_beginning(&self) -> Result<bool, DistillError> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(source) => return Err(self.problem("", source)),
        };
        for entry in entries {
            let name = entry
                .map_err(|source| self.problem("", source))?
                .file_name();
            let name = name.to_string_lossy();
            // A file that is being written has a name that begins with a dot.
            if name != "recipe.toml" && name != "student.unchecked" && !name.starts_with('.') {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The folder of a run that is only read.
    pub(super) fn of_run(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            existing: Existing::Resume,
        }
    }

    pub(super) const fn existing(&self) -> Existing {
        self.existing
    }

    pub(super) fn path(&self) -> &Path {
        &self.dir
    }

    /// Whether a run has begun here. Its manifest is the last that it writes before it trains.
    pub(super) fn has_run(&self) -> bool {
        self.manifest_path().is_file()
    }

    /// Whether the run here came to its end.
    pub(super) fn is_finished(&self) -> Result<bool, DistillError> {
        match fs::read(self.dir.join("summary.json")) {
            Ok(text) => Ok(Summary::is_of_a_finished_run(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(self.problem("summary.json", source)),
        }
    }

    /// The figures of the run here, if it came to its end.
    pub(super) fn summary(&self) -> Result<Option<Summary>, DistillError> {
        if !self.is_finished()? {
            return Ok(None);
        }
        let file = self.dir.join("summary.json");
        let text = fs::read(&file).map_err(|source| self.problem("summary.json", source))?;
        match serde_json::from_slice(&text) {
            Ok(summary) => Ok(Some(summary)),
            Err(source) => Err(DistillError::Foreign {
                file,
                reason: "does not hold what this program writes there: take it away, then resume the \
                         run, which writes it again",
                source,
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

    pub(super) fn recipe_path(&self) -> PathBuf {
        self.dir.join("recipe.toml")
    }

    pub(super) fn manifest_path(&self) -> PathBuf {
        self.dir.join("manifest.json")
    }

    pub(super) fn start_path(&self) -> PathBuf {
        self.dir.join(START)
    }

    pub(super) fn checkpoints_path(&self) -> PathBuf {
        self.dir.join("checkpoints")
    }

    pub(super) fn tensorboard_path(&self) -> PathBuf {
        self.dir.join("tensorboard")
    }

    /// What to do about a folder that is not empty. Work is not to be lost for want of a word about it.
    fn way_out(dir: &Path) -> &'static str {
        match Self::of_run(dir).has_run() {
            true => {
                "add --resume to go on with the run in it, choose another --out, or add --overwrite to \
                     replace its results"
            }
            false => {
                "choose another --out, or add --overwrite to replace the results of an earlier run"
            }
        }
    }

    /// Refuses a folder that holds anything, and says `way_out`. One that is not there holds nothing.
    ///
    /// # Errors
    ///
    /// [`DistillError::Refused`] or [`DistillError::Output`].
    pub fn check_empty(dir: &Path, way_out: &str) -> Result<(), DistillError> {
        match fs::read_dir(dir) {
            Ok(mut entries) => match entries.next() {
                None => Ok(()),
                Some(_) => Err(DistillError::Refused(format!(
                    "{} already holds files: {way_out}",
                    dir.display()
                ))),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(DistillError::Output {
                path: dir.to_owned(),
                source,
            }),
        }
    }

    /// Where the student ends up.
    pub fn student_dir(&self) -> PathBuf {
        self.dir.join("student")
    }

    /// Where the student is written, until it has been read back and compared.
    pub(super) fn unchecked_student_dir(&self) -> PathBuf {
        self.dir.join("student.unchecked")
    }

    /// Makes the folder, takes away an earlier run and writes `recipe.toml` and `manifest.json`.
    pub(super) fn begin(&self, recipe: &Recipe, manifest: &Manifest) -> Result<(), DistillError> {
        self.check_apart_from(recipe)?;
        fs::create_dir_all(&self.dir).map_err(|source| self.problem("", source))?;
        // A run that is taken up goes on from the start that was calculated for it.
        let keeps = |file: &str| file == START && self.existing == Existing::Resume;
        for file in FILES.into_iter().filter(|file| !keeps(file)) {
            removed(fs::remove_file(self.dir.join(file)))
                .map_err(|source| self.problem(file, source))?;
        }
        for dir in [self.checkpoints_path(), self.tensorboard_path()] {
            removed(fs::remove_dir_all(&dir))
                .map_err(|source| DistillError::Output { path: dir, source })?;
        }
        self.remove_students()?;
        // What cannot be written is found out before the training.
        let path = self.unchecked_student_dir();
        fs::create_dir_all(&path).map_err(|source| DistillError::Output { path, source })?;
        let text = recipe.to_toml()?;
        write_atomically(&self.recipe_path(), text.as_bytes())?;
        Ok(manifest.write(&self.manifest_path())?)
    }

    /// Takes away what an interrupted run left as its result.
    pub(super) fn take_up(&self) -> Result<(), DistillError> {
        removed(fs::remove_file(self.dir.join("summary.json")))
            .map_err(|source| self.problem("summary.json", source))?;
        self.remove_students()
    }

    fn remove_students(&self) -> Result<(), DistillError> {
        for dir in [self.student_dir(), self.unchecked_student_dir()] {
            removed(fs::remove_dir_all(&dir))
                .map_err(|source| DistillError::Output { path: dir, source })?;
        }
        Ok(())
    }

    /// The student was compared with what was trained: gives it its name.
    pub(super) fn accept_student(&self) -> Result<(), DistillError> {
        fs::rename(self.unchecked_student_dir(), self.student_dir())
            .map_err(|source| self.problem("student", source))
    }

    /// A run that took away what it reads would have nothing left to learn from.
    fn check_apart_from(&self, recipe: &Recipe) -> Result<(), DistillError> {
        let folders = [
            self.student_dir(),
            self.unchecked_student_dir(),
            self.checkpoints_path(),
            self.tensorboard_path(),
        ];
        let files = FILES.into_iter().map(|file| self.dir.join(file));
        let replaced: Vec<PathBuf> = folders
            .into_iter()
            .chain(files)
            .filter_map(|path| fs::canonicalize(path).ok())
            .collect();
        let mut texts = Vec::new();
        for paths in [&recipe.data.train, &recipe.data.valid] {
            texts.extend(text_files(paths)?);
        }
        let read = [&recipe.teacher.path]
            .into_iter()
            .chain(&recipe.teacher.cache)
            .chain(&texts);
        for path in read {
            let found = fs::canonicalize(path).ok();
            let is_replaced = |found: PathBuf| replaced.iter().any(|it| found.starts_with(it));
            if found.is_some_and(is_replaced) {
                return Err(DistillError::Refused(format!(
                    "{} lies in {}, where this run would replace it: choose another --out",
                    path.display(),
                    self.dir.display()
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
        self.write_json("summary.json", &summary.to_json())
    }

    pub(super) fn write_start(&self, summary: &StartSummary) -> Result<(), DistillError> {
        self.write_json("start.json", &summary.to_json())
    }

    fn write_json(&self, name: &str, value: &Value) -> Result<(), DistillError> {
        let text = format!("{value:#}\n");
        Ok(write_atomically(&self.dir.join(name), text.as_bytes())?)
    }

    pub(super) fn metrics_path(&self) -> PathBuf {
        self.dir.join("metrics.jsonl")
    }
}

/// What was not there needs no removing.
fn removed(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_finished_run_has_figures() {
        let folder = tempfile::tempdir().unwrap();
        let out = OutputDir::of_run(folder.path());
        assert!(out.summary().unwrap().is_none());
        let path = folder.path().join("summary.json");
        for text in ["", r#"{"ending": "interrupted"}"#] {
            fs::write(&path, text).unwrap();
            assert!(out.summary().unwrap().is_none(), "{text}");
        }
        // It was written by a program that knew other figures.
        fs::write(&path, r#"{"ending": "finished"}"#).unwrap();
        let error = out.summary().unwrap_err();
        assert!(matches!(&error, DistillError::Foreign { file, .. } if *file == path));
        assert!(error.to_string().contains("summary.json"), "{error}");
    }
}
