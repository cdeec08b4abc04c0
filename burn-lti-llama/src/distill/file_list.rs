//! `files.json`: which files of an output folder a run wrote, with sizes and hashes, so that nothing else is
//! ever removed or replaced by one.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use burn_lti::files::{UNFINISHED, sha256, write_atomically};
use serde::{Deserialize, Serialize};

use super::DistillError;
use super::tensorboard::is_event_file;
use crate::hashes::hash_file;

/// The list's own name.
pub(super) const LIST: &str = "files.json";
/// The names under which a run writes, in its folder; each a file or a folder.
pub(super) const PLACES: [&str; 14] = [
    "summary.json",
    "start.safetensors",
    "start.partial.safetensors",
    "start.json",
    "evaluation.json",
    "report.html",
    METRICS,
    "manifest.json",
    "recipe.toml",
    "student",
    "student.unchecked",
    "student.replaced",
    "checkpoints",
    "tensorboard",
];
const METRICS: &str = "metrics.jsonl";
/// What a checkpoint's folder holds.
const OF_A_CHECKPOINT: [&str; 3] = ["trained.safetensors", "optimizer.bin", "state.json"];
/// The version of the format.
const SCHEMA: u32 = 1;

/// The files that a run wrote, by their paths in its folder, with `/` between names.
///
/// An entry is there before its file is, so that a run that is killed has written nothing unlisted. Checkpoints
/// and events of TensorBoard come and go, and are known by their names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileList {
    schema: u32,
    /// Of a file that is being written, or grows, nothing is known yet.
    files: BTreeMap<String, Option<Written>>,
}

/// A file as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    bytes: u64,
    sha256: String,
}

/// Something in the place of a run's files that is not what the run wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Foreign {
    pub(super) path: PathBuf,
    pub(super) what: &'static str,
}

const UNLISTED: &str = "was not written by a run";
const CHANGED: &str = "is not as the run wrote it";

impl Default for FileList {
    fn default() -> Self {
        Self {
            schema: SCHEMA,
            files: BTreeMap::new(),
        }
    }
}

impl FileList {
    /// The list of the run in `dir`; `None` if it has none.
    pub(super) fn read(dir: &Path) -> Result<Option<Self>, DistillError> {
        let file = dir.join(LIST);
        let text = match fs::read(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(DistillError::Output { path: file, source }),
        };
        match serde_json::from_slice(&text) {
            Ok(list) => Ok(Some(list)),
            Err(source) => Err(DistillError::Foreign {
                file,
                reason: "is no list of a run's files: delete it; the run still goes on with --resume, and for \
                         another run choose another --out",
                source: Box::new(source),
            }),
        }
    }

    pub(super) fn write(&self, dir: &Path) -> Result<(), DistillError> {
        let text = serde_json::to_string_pretty(self).unwrap_or_default(); // names and numbers alone
        Ok(write_atomically(
            &dir.join(LIST),
            format!("{text}\n").as_bytes(),
        )?)
    }

    /// A file that will hold this text.
    pub(super) fn add_text(&mut self, name: &str, text: &[u8]) {
        let written = Written {
            bytes: text.len() as u64,
            sha256: sha256(text),
        };
        self.files.insert(name.to_owned(), Some(written));
    }

    /// A file that is going to be written, or grows.
    pub(super) fn add_unfinished(&mut self, name: &str) {
        self.files.insert(name.to_owned(), None);
    }

    /// A file of `dir` that is finished, if it is there.
    pub(super) fn add_file(&mut self, dir: &Path, name: &str) -> Result<(), DistillError> {
        match written(&dir.join(name))? {
            Some(written) => self.files.insert(name.to_owned(), Some(written)),
            None => self.files.remove(name),
        };
        Ok(())
    }

    /// All files below the folder `from`, as those of the folder `name`.
    pub(super) fn add_folder(&mut self, from: &Path, name: &str) -> Result<(), DistillError> {
        for path in files_below(from)? {
            let Some(below) = relative(from, &path) else {
                continue;
            };
            if let Some(written) = written(&path)? {
                self.files.insert(format!("{name}/{below}"), Some(written));
            }
        }
        Ok(())
    }

    /// Files of the folder `from` are in the folder `to` from now on; those that were listed there are not.
    pub(super) fn move_folder(&mut self, from: &str, to: &str) {
        self.forget_folder(to);
        let moved = self.files.iter().filter_map(|(path, written)| {
            let below = path.strip_prefix(from)?.strip_prefix('/')?;
            Some((format!("{to}/{below}"), written.clone()))
        });
        let moved: Vec<_> = moved.collect();
        self.forget_folder(from);
        self.files.extend(moved);
    }

    pub(super) fn forget_folder(&mut self, name: &str) {
        let is_below = |path: &str| {
            path.strip_prefix(name)
                .is_some_and(|it| it.starts_with('/'))
        };
        self.files.retain(|path, _| !is_below(path));
    }

    /// The hash with which a file was written, if that is known.
    pub(super) fn hash_of(&self, name: &str) -> Option<&str> {
        let written = self.files.get(name)?.as_ref()?;
        Some(&written.sha256)
    }

    /// The first thing in the places of `dir` that is not what the run wrote there.
    pub(super) fn foreign_in(&self, dir: &Path) -> Result<Option<Foreign>, DistillError> {
        for place in PLACES {
            for path in files_below(&dir.join(place))? {
                if let Some(what) = self.is_foreign(dir, &path)? {
                    return Ok(Some(Foreign { path, what }));
                }
            }
        }
        Ok(None)
    }

    /// Removes from the places of `dir`, or from one of them, what the run wrote there, and gives what is left.
    pub(super) fn remove(&self, dir: &Path, places: &[&str]) -> Result<Vec<PathBuf>, DistillError> {
        let mut left = Vec::new();
        for place in places {
            let place = dir.join(place);
            for path in files_below(&place)? {
                match self.is_foreign(dir, &path)? {
                    Some(_) => left.push(path),
                    None => fs::remove_file(&path)
                        .map_err(|source| DistillError::Output { path, source })?,
                }
            }
            remove_empty_folders(&place)?;
        }
        Ok(left)
    }

    /// What keeps a file from being what the run wrote, if anything does.
    fn is_foreign(&self, dir: &Path, path: &Path) -> Result<Option<&'static str>, DistillError> {
        let system = |source| DistillError::Output {
            path: path.to_owned(),
            source,
        };
        let Some(name) = relative(dir, path) else {
            return Ok(Some(UNLISTED));
        };
        if !fs::symlink_metadata(path).map_err(system)?.is_file() {
            return Ok(Some(UNLISTED)); // a run writes no links and no devices
        }
        match self.files.get(&name) {
            Some(Some(listed)) => {
                let written = written(path)?;
                // Where a student was about to give way to the next, the list says so before it is so.
                let given_way = name
                    .strip_prefix("student/")
                    .and_then(|rest| self.files.get(&format!("student.replaced/{rest}")));
                let is_same = written.as_ref() == Some(listed)
                    || given_way.is_some_and(|replaced| written.as_ref() == replaced.as_ref());
                Ok((!is_same).then_some(CHANGED))
            }
            Some(None) if name == METRICS => {
                let text = fs::read(path).map_err(system)?;
                Ok((!is_metrics(&text)).then_some(CHANGED))
            }
            Some(None) => Ok(None),
            None => Ok((!self.is_known_by_name(&name)).then_some(UNLISTED)),
        }
    }

    /// Files that come and go.
    fn is_known_by_name(&self, name: &str) -> bool {
        let parts: Vec<&str> = name.split('/').collect();
        if self.files.is_empty() {
            return false;
        }
        match parts.as_slice() {
            [.., last] if last.starts_with(UNFINISHED) => true,
            ["student.unchecked", ..] => true,
            ["checkpoints", folder, file] => {
                let step = folder.strip_prefix("writing-").unwrap_or(folder);
                let step = step.strip_prefix("step-");
                let is_step = step.is_some_and(|step| step.parse::<usize>().is_ok());
                is_step && OF_A_CHECKPOINT.contains(file)
            }
            ["tensorboard", file] => is_event_file(file),
            _ => false,
        }
    }
}

/// Whether these are lines of metrics, the last of which may have been cut off.
fn is_metrics(text: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Stepped {
        #[serde(rename = "step")]
        _step: usize,
    }

    let whole = text.split_inclusive(|byte| *byte == b'\n');
    let mut whole = whole.filter(|line| line.ends_with(b"\n"));
    whole.all(|line| serde_json::from_slice::<Stepped>(line).is_ok())
}

/// Size and hash of a file; `None` if it is not there.
fn written(path: &Path) -> Result<Option<Written>, DistillError> {
    match fs::metadata(path) {
        Ok(found) => Ok(Some(Written {
            bytes: found.len(),
            sha256: hash_file(path)?,
        })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DistillError::Output {
            path: path.to_owned(),
            source,
        }),
    }
}

/// `path` in `dir`, with `/` between names; `None` for what is no Unicode, which no run writes.
fn relative(dir: &Path, path: &Path) -> Option<String> {
    let parts = path.strip_prefix(dir).ok()?.components();
    let parts: Option<Vec<&str>> = parts.map(|part| part.as_os_str().to_str()).collect();
    Some(parts?.join("/"))
}

/// All that is no folder at or below `path`, in the order of the names. No link is followed.
pub(super) fn files_below(path: &Path) -> Result<Vec<PathBuf>, DistillError> {
    let system = |source| DistillError::Output {
        path: path.to_owned(),
        source,
    };
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(system(source)),
    };
    if !found.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).and_then(|entries| {
        let paths = entries.map(|entry| Ok(entry?.path()));
        paths.collect::<io::Result<Vec<_>>>()
    });
    let mut entries = entries.map_err(system)?;
    entries.sort();
    let mut files = Vec::new();
    for entry in entries {
        files.extend(files_below(&entry)?);
    }
    Ok(files)
}

/// Removes a folder and those in it, as far as they hold nothing.
fn remove_empty_folders(path: &Path) -> Result<(), DistillError> {
    if !fs::symlink_metadata(path).is_ok_and(|found| found.is_dir()) {
        return Ok(());
    }
    let system = |source| DistillError::Output {
        path: path.to_owned(),
        source,
    };
    for entry in fs::read_dir(path).map_err(system)? {
        remove_empty_folders(&entry.map_err(system)?.path())?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => Err(system(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder in which a run has written a student, metrics, a checkpoint and its recipe.
    fn run() -> (tempfile::TempDir, FileList) {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        let mut list = FileList::default();
        list.add_text("recipe.toml", b"[teacher]");
        list.add_unfinished(METRICS);
        for (name, text) in [
            ("recipe.toml", "[teacher]"),
            (METRICS, "{\"step\": 1}\n{\"st"),
            ("student/config.json", "{}"),
            ("student/templates/a.jinja", "a"),
            ("student.unchecked/config.json", "{"),
            ("checkpoints/step-00000002/state.json", "{}"),
            ("checkpoints/writing-step-00000004/optimizer.bin", "o"),
            ("tensorboard/events.out.tfevents.0000000001", "e"),
            ("student/.writing-abc", "half"),
        ] {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        list.add_file(dir, "student/config.json").unwrap();
        list.add_file(dir, "student/templates/a.jinja").unwrap();
        list.write(dir).unwrap();
        (folder, list)
    }

    #[test]
    fn all_that_a_run_wrote_goes_and_it_alone() {
        let (folder, list) = run();
        let dir = folder.path();
        fs::write(dir.join("notes.txt"), "mine").unwrap();
        assert_eq!(FileList::read(dir).unwrap().unwrap(), list);
        assert_eq!(list.foreign_in(dir).unwrap(), None);
        assert!(list.remove(dir, &PLACES).unwrap().is_empty());
        let left = files_below(dir).unwrap();
        assert_eq!(left, [dir.join(LIST), dir.join("notes.txt")]);
        assert!(!dir.join("student").exists() && !dir.join("checkpoints").exists());
    }

    #[test]
    fn what_a_run_did_not_write_is_named_and_stays() {
        for (name, text, what) in [
            ("student/notes.md", "mine", UNLISTED),
            ("student/config.json", "{ }", CHANGED),
            (METRICS, "my list\n{\"step\": 2}\n", CHANGED),
            ("recipe.toml", "[student]", CHANGED),
            ("start.json", "{}", UNLISTED),
            ("report.html", "<html>", UNLISTED),
            ("checkpoints/teacher/config.json", "{}", UNLISTED),
            ("checkpoints/step-00000002/notes.md", "mine", UNLISTED),
            ("tensorboard/events.out.tfevents.1.host.7.0", "e", UNLISTED),
        ] {
            let (folder, list) = run();
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            let foreign = list.foreign_in(folder.path()).unwrap().unwrap();
            assert_eq!((&foreign.path, foreign.what), (&path, what));
            let left = list.remove(folder.path(), &PLACES).unwrap();
            assert_eq!(left.as_slice(), std::slice::from_ref(&path));
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_never_followed() {
        let (folder, list) = run();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("config.json"), "{}").unwrap();
        let student = folder.path().join("student");
        fs::remove_dir_all(&student).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), &student).unwrap();
        let foreign = list.foreign_in(folder.path()).unwrap().unwrap();
        assert_eq!((&foreign.path, foreign.what), (&student, UNLISTED));
        list.remove(folder.path(), &PLACES).unwrap();
        assert!(elsewhere.path().join("config.json").exists());
    }

    #[test]
    fn a_folder_that_moves_takes_its_entries_along() {
        let (_folder, mut list) = run();
        list.add_text("student.replaced/old", b"old");
        list.move_folder("student", "student.replaced");
        assert_eq!(list.hash_of("student/config.json"), None);
        assert_eq!(list.hash_of("student.replaced/old"), None);
        assert_eq!(
            list.hash_of("student.replaced/config.json"),
            Some(&*sha256(b"{}"))
        );
    }

    #[test]
    fn a_damaged_list_is_named_with_the_way_out() {
        let (folder, _) = run();
        fs::write(folder.path().join(LIST), "{").unwrap();
        let error = FileList::read(folder.path()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(LIST) && text.contains("--resume"), "{text}");
        assert!(!text.contains("--overwrite"), "{text}");
    }
}
