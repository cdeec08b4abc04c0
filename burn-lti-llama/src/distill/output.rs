//! The output folder of a run.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::{DistillError, Summary};
use crate::files::write_atomically;
use crate::recipe::Recipe;

/// A folder that a run may write to.
#[derive(Clone, Debug)]
pub struct OutputDir {
    dir: PathBuf,
}

impl OutputDir {
    /// The folder `dir`, which is made when the first file is written. One that holds anything is
    /// refused, unless `overwrite`: then the files that a run writes and the folder `student` are
    /// replaced, and nothing else is touched.
    ///
    /// # Errors
    ///
    /// [`DistillError::OutputExists`] or [`DistillError::Output`].
    pub fn prepare(dir: &Path, overwrite: bool) -> Result<Self, DistillError> {
        if !overwrite {
            Self::check_empty(dir)?;
        }
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// Refuses a folder that holds anything. One that is not there holds nothing.
    ///
    /// # Errors
    ///
    /// [`DistillError::OutputExists`] or [`DistillError::Output`].
    pub fn check_empty(dir: &Path) -> Result<(), DistillError> {
        match fs::read_dir(dir) {
            Ok(mut entries) => match entries.next() {
                None => Ok(()),
                Some(_) => Err(DistillError::OutputExists {
                    dir: dir.to_owned(),
                }),
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

    /// Makes the folder, takes away the results of an earlier run and writes `recipe.toml`.
    ///
    /// `summary.json` goes first: while it is there, what stands beside it is one finished run.
    pub(super) fn begin(&self, recipe: &Recipe) -> Result<(), DistillError> {
        self.check_apart_from(&recipe.teacher.path)?;
        fs::create_dir_all(&self.dir).map_err(|source| self.problem("", source))?;
        for file in ["summary.json", "metrics.jsonl", "recipe.toml"] {
            removed(fs::remove_file(self.dir.join(file)))
                .map_err(|source| self.problem(file, source))?;
        }
        for dir in [self.student_dir(), self.unchecked_student_dir()] {
            removed(fs::remove_dir_all(&dir))
                .map_err(|source| DistillError::Output { path: dir, source })?;
        }
        let unchecked = self.unchecked_student_dir();
        fs::create_dir(&unchecked).map_err(|source| DistillError::Output {
            path: unchecked,
            source,
        })?;
        let text = recipe.to_toml()?;
        Ok(write_atomically(
            &self.dir.join("recipe.toml"),
            text.as_bytes(),
        )?)
    }

    /// The student was compared with what was trained: gives it its name.
    pub(super) fn accept_student(&self) -> Result<(), DistillError> {
        fs::rename(self.unchecked_student_dir(), self.student_dir())
            .map_err(|source| self.problem("student", source))
    }

    /// A run that took its teacher's own folder away would have nothing left to learn from.
    fn check_apart_from(&self, teacher: &Path) -> Result<(), DistillError> {
        let is_teacher = |dir: &Path| match (fs::canonicalize(dir), fs::canonicalize(teacher)) {
            (Ok(dir), Ok(teacher)) => teacher.starts_with(dir),
            _ => false,
        };
        let replaced = [self.student_dir(), self.unchecked_student_dir()];
        match replaced.iter().any(|dir| is_teacher(dir)) {
            true => Err(DistillError::OutputIsTeacher {
                dir: self.dir.clone(),
            }),
            false => Ok(()),
        }
    }

    fn problem(&self, name: &str, source: io::Error) -> DistillError {
        DistillError::Output {
            path: self.dir.join(name),
            source,
        }
    }

    pub(super) fn write_summary(&self, summary: &Summary) -> Result<(), DistillError> {
        let text = format!("{:#}\n", summary.to_json());
        Ok(write_atomically(
            &self.dir.join("summary.json"),
            text.as_bytes(),
        )?)
    }

    /// `metrics.jsonl`, empty and open for writing.
    pub(super) fn metrics_file(&self) -> Result<File, DistillError> {
        File::create(self.metrics_path()).map_err(|source| self.problem("metrics.jsonl", source))
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
