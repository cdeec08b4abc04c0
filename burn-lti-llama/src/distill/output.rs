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
    /// refused, unless `overwrite`: then the files a run writes are replaced, and no other is
    /// touched.
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

    /// Where the student goes.
    pub fn student_dir(&self) -> PathBuf {
        self.dir.join("student")
    }

    /// Makes the folder and writes `recipe.toml`.
    pub(super) fn begin(&self, recipe: &Recipe) -> Result<(), DistillError> {
        fs::create_dir_all(self.student_dir()).map_err(|source| DistillError::Output {
            path: self.dir.clone(),
            source,
        })?;
        let text = recipe.to_toml()?;
        Ok(write_atomically(
            &self.dir.join("recipe.toml"),
            text.as_bytes(),
        )?)
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
        let path = self.dir.join("metrics.jsonl");
        File::create(&path).map_err(|source| DistillError::Output { path, source })
    }
}
