//! The output folder of a comparison.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use burn_lti::files::{FolderLock, LOCK, write_atomically};
use burn_lti::map::Start;

use super::{CompareError, Comparison};
use crate::distill::{DistillError, OutputDir};

/// A folder that a comparison may write to.
#[derive(Clone, Debug)]
pub struct CompareDir {
    dir: PathBuf,
    existing: Existing,
}

/// What becomes of the runs that are in the folder already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Existing {
    /// There are none.
    Refuse,
    /// They are taken over, or go on.
    Resume,
}

const JSON: &str = "compare.json";
const RUNS_CSV: &str = "compare.csv";
const CURVES_CSV: &str = "curves.csv";
const CHART: &str = "compare.svg";
const PAGE: &str = "compare.html";

/// What a comparison writes besides the folders of its runs; `compare.json` last, so that what stands
/// beside it is of the same comparison, but for the page, which the command makes of all others.
const FILES: [&str; 5] = [JSON, RUNS_CSV, CURVES_CSV, CHART, PAGE];

impl CompareDir {
    /// The folder `dir`, which is made when the first run begins. One that holds anything is refused.
    ///
    /// # Errors
    ///
    /// [`CompareError::Refused`] or [`CompareError::Output`].
    pub fn prepare(dir: &Path) -> Result<Self, CompareError> {
        match entries(dir)?.is_empty() {
            true => Ok(Self::with(dir, Existing::Refuse)),
            false => Err(CompareError::Refused(format!(
                "{} already holds files: choose another --out, or add --resume to go on with the \
                 comparison in it",
                dir.display()
            ))),
        }
    }

    /// The folder `dir` of a comparison that is to go on. Runs in it that are finished will be taken
    /// over, others go on from their newest checkpoint. One that holds nothing is taken for a
    /// comparison that was stopped before it wrote anything.
    ///
    /// # Errors
    ///
    /// [`CompareError::Refused`] if it holds files and none of a comparison, or
    /// [`CompareError::Output`].
    pub fn resume(dir: &Path) -> Result<Self, CompareError> {
        let entries = entries(dir)?;
        let ours = |name: &PathBuf| {
            let name = name.file_name().and_then(OsStr::to_str).unwrap_or_default();
            FILES.contains(&name) || is_run_name(name)
        };
        match entries.is_empty() || entries.iter().any(ours) {
            true => Ok(Self::with(dir, Existing::Resume)),
            false => Err(CompareError::Refused(format!(
                "{} holds files and no comparison: give the --out of the one that is to go on",
                dir.display()
            ))),
        }
    }

    fn with(dir: &Path, existing: Existing) -> Self {
        let dir = dir.to_owned();
        Self { dir, existing }
    }

    /// The chart.
    pub fn chart_path(&self) -> PathBuf {
        self.dir.join(CHART)
    }

    /// All numbers.
    pub fn json_path(&self) -> PathBuf {
        self.dir.join(JSON)
    }

    /// The page of its runs beside each other.
    pub fn page_path(&self) -> PathBuf {
        self.dir.join(PAGE)
    }

    /// Where the run from this start with this seed lies.
    pub fn run_dir(&self, start: Start, seed: u64) -> PathBuf {
        self.dir.join(run_name(start, seed))
    }

    pub(super) fn is_resumed(&self) -> bool {
        self.existing == Existing::Resume
    }

    pub(super) fn run_output(&self, start: Start, seed: u64) -> Result<OutputDir, DistillError> {
        let dir = self.run_dir(start, seed);
        match self.existing {
            Existing::Refuse => OutputDir::prepare(&dir, false),
            Existing::Resume => OutputDir::resume(&dir),
        }
    }

    /// Takes the folder for this comparison, if it is there.
    pub(super) fn lock(&self) -> Result<Option<FolderLock>, CompareError> {
        match self.dir.is_dir() {
            true => Ok(Some(FolderLock::take(&self.dir)?)),
            false => Ok(None),
        }
    }

    /// Makes the folder and takes away what an earlier comparison came to, before runs are added to it.
    pub(super) fn begin(&self) -> Result<(), CompareError> {
        fs::create_dir_all(&self.dir).map_err(|source| CompareError::Output {
            path: self.dir.clone(),
            source,
        })?;
        for file in FILES {
            let path = self.dir.join(file);
            if fs::symlink_metadata(&path).is_ok_and(|found| !found.is_file()) {
                return Err(CompareError::Refused(format!(
                    "{} is no regular file, and is not replaced: move it away",
                    path.display()
                )));
            }
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(CompareError::Output { path, source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn write(&self, comparison: &Comparison) -> Result<(), CompareError> {
        let write = |name: &str, text: String| {
            write_atomically(&self.dir.join(name), text.as_bytes()).map_err(CompareError::from)
        };
        write(RUNS_CSV, comparison.runs_csv())?;
        write(CURVES_CSV, comparison.curves_csv())?;
        write(CHART, comparison.chart()?)?;
        write(JSON, format!("{:#}\n", comparison.to_json()))
    }
}

/// What lies in a folder, but for its lock. In one that is not there lies nothing.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, CompareError> {
    let problem = |source| CompareError::Output {
        path: dir.to_owned(),
        source,
    };
    match fs::read_dir(dir) {
        Ok(entries) => {
            let paths = entries.map(|entry| Ok(entry.map_err(problem)?.path()));
            let mut paths = paths.collect::<Result<Vec<_>, CompareError>>()?;
            paths.retain(|path| !path.ends_with(LOCK));
            Ok(paths)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(problem(source)),
    }
}

/// The name of the folder of a run.
pub(super) fn run_name(start: Start, seed: u64) -> String {
    format!("{start}-seed{seed}")
}

fn is_run_name(name: &str) -> bool {
    name.rsplit_once("-seed").is_some_and(|(start, seed)| {
        let starts = Start::ALL.iter().map(Start::to_string);
        starts.into_iter().any(|known| known == start) && seed.parse::<u64>().is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::super::report::fixture::comparison;
    use super::*;

    #[test]
    fn a_folder_with_anything_in_it_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        assert!(CompareDir::prepare(folder.path()).is_ok());
        assert!(CompareDir::prepare(&folder.path().join("absent")).is_ok());
        let file = folder.path().join("notes.txt");
        fs::write(&file, "mine").unwrap();
        let error = CompareDir::prepare(folder.path()).unwrap_err();
        assert!(error.to_string().contains("already holds files"), "{error}");
        assert!(error.to_string().contains("--resume"), "{error}");
        let error = CompareDir::prepare(&file).unwrap_err();
        assert!(matches!(error, CompareError::Output { .. }));
    }

    #[test]
    fn what_holds_no_comparison_cannot_go_on() {
        let folder = tempfile::tempdir().unwrap();
        assert!(CompareDir::resume(folder.path()).is_ok());
        fs::write(folder.path().join("notes.txt"), "mine").unwrap();
        fs::create_dir(folder.path().join("other-seed3")).unwrap();
        let error = CompareDir::resume(folder.path()).unwrap_err();
        assert!(
            error.to_string().contains("holds files and no comparison"),
            "{error}"
        );
        fs::create_dir(folder.path().join(run_name(Start::Lecun, 3))).unwrap();
        assert!(CompareDir::resume(folder.path()).is_ok());
    }

    #[test]
    fn results_are_written_whole_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let run = [Some(2.0), Some(1.0)];
        let comparison = comparison(&[(Start::Lecun, &[&run])]);
        let out = CompareDir::prepare(&folder.path().join("out")).unwrap();
        let error = out.write(&comparison).unwrap_err();
        assert!(matches!(error, CompareError::File(_)));
        out.begin().unwrap();
        out.write(&comparison).unwrap();
        let written = entries(&folder.path().join("out")).unwrap();
        assert_eq!(written.len(), FILES.len() - 1); // all but the page
        let json: serde_json::Value =
            serde_json::from_slice(&fs::read(out.json_path()).unwrap()).unwrap();
        assert_eq!(json, comparison.to_json());
    }

    #[test]
    fn a_comparison_that_goes_on_takes_its_old_results_away_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        for name in FILES.iter().chain(&["notes.txt"]) {
            fs::write(folder.path().join(name), "old").unwrap();
        }
        let dir = CompareDir::resume(folder.path()).unwrap();
        dir.begin().unwrap();
        let left = entries(folder.path()).unwrap();
        assert_eq!(left, [folder.path().join("notes.txt")]);
        fs::create_dir(dir.json_path()).unwrap();
        let error = dir.begin().unwrap_err();
        assert!(error.to_string().contains("is no regular file"), "{error}");
    }
}
