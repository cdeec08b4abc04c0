//! [`Whole`]: what is not whole in an output.

use std::path::Path;

use anyhow::Result;

use super::inspect::{files_in, is_final, wrong_beside, wrong_in, wrong_in_log};
use super::job::{Job, Made};

/// What is not whole in an output.
pub(super) struct Whole {
    /// Files under a final name, and what is wrong with them.
    pub(super) half: Vec<String>,
    /// Folders of a model without some of its files.
    pub(super) broken_folders: Vec<String>,
}

impl Whole {
    /// Of the output of a job, which makes `made` where nothing happens.
    pub(super) fn of(out: &Path, made: &Made, job: &Job) -> Result<Self> {
        let files = files_in(out)?;
        let mut half = Vec::new();
        for (file, bytes) in files.iter().filter(|(file, _)| is_final(file)) {
            let path = if file.as_os_str().is_empty() {
                out
            } else {
                file
            };
            let wrong = match job.is_a_log(path) {
                true => wrong_in_log(bytes),
                false => wrong_in(path, bytes).or_else(|| wrong_beside(file, bytes, &files)),
            };
            let is_gguf = path
                .extension()
                .is_some_and(|extension| extension == "gguf");
            let is_cut = is_gguf && made.length_of(file) != Some(bytes.len());
            let wrong = wrong.or_else(|| is_cut.then(|| "it is cut off".to_owned()));
            half.extend(wrong.map(|wrong| format!("{}: {wrong}", path.display())));
        }
        let mut broken_folders = Vec::new();
        for (folder, wanted) in made.models() {
            let has_any = files
                .keys()
                .any(|file| file.parent() == Some(folder) && is_final(file));
            let missing = wanted.iter().find(|file| !files.contains_key(**file));
            if let Some(missing) = missing.filter(|_| has_any) {
                broken_folders.push(format!("a model without {}", missing.display()));
            }
        }
        Ok(Self {
            half,
            broken_folders,
        })
    }
}
