//! The files of a run, read: nothing is worked out of them but what differs from a recipe's defaults.

use std::error::Error as StdError;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use toml::Table;

use super::ReportError;
use crate::recipe::Recipe;

/// A finished run.
#[derive(Debug, Serialize)]
pub(super) struct Run {
    /// Its folder's name.
    pub(super) name: String,
    /// Its folder.
    folder: PathBuf,
    /// `summary.json`, of a run that trained.
    summary: Option<Value>,
    /// `start.json`, of a student at its start.
    start: Option<Value>,
    /// `evaluation.json`
    evaluation: Option<Value>,
    /// `manifest.json`
    manifest: Option<Value>,
    /// The student's `config.json`.
    student: Option<Value>,
    /// Bytes of the student's weights on the disk.
    weights_bytes: Option<u64>,
    /// `recipe.toml`, key by key.
    recipe: Vec<Key>,
    /// `metrics.jsonl`, line by line.
    #[serde(skip)]
    pub(super) metrics: Vec<Value>,
}

/// A key of the resolved recipe.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Key {
    section: String,
    name: String,
    value: String,
    /// Whether a recipe that does not say it has another value.
    differs: bool,
}

impl Run {
    pub(super) fn read(folder: &Path) -> Result<Self, ReportError> {
        let summary = json(&folder.join("summary.json"))?;
        // Beside a summary it is that of an earlier command.
        let start = match summary {
            Some(_) => None,
            None => json(&folder.join("start.json"))?,
        };
        if summary.is_none() && start.is_none() {
            let folder = folder.to_owned();
            return Err(ReportError::NoRun { folder });
        }
        let name = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
        let name = name.file_name().unwrap_or(name.as_os_str());
        Ok(Self {
            name: name.to_string_lossy().into_owned(),
            folder: folder.to_owned(),
            summary,
            start,
            evaluation: json(&folder.join("evaluation.json"))?,
            manifest: json(&folder.join("manifest.json"))?,
            student: json(&folder.join("student/config.json"))?,
            weights_bytes: weights_bytes(&folder.join("student")),
            recipe: recipe(&folder.join("recipe.toml"))?,
            metrics: lines(&folder.join("metrics.jsonl"))?,
        })
    }
}

/// The text of a file; `None` where there is none.
fn text(file: &Path) -> Result<Option<String>, ReportError> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ReportError::Read {
            file: file.to_owned(),
            source,
        }),
    }
}

fn damaged<E: StdError + Send + Sync + 'static>(file: &Path) -> impl Fn(E) -> ReportError {
    move |source| ReportError::Damaged {
        file: file.to_owned(),
        source: Box::new(source),
    }
}

fn json(file: &Path) -> Result<Option<Value>, ReportError> {
    let read = |text: String| serde_json::from_str(&text).map_err(damaged(file));
    text(file)?.map(read).transpose()
}

fn lines(file: &Path) -> Result<Vec<Value>, ReportError> {
    let text = text(file)?.unwrap_or_default();
    let lines = text.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().map_err(damaged(file))
}

/// All shards of a model; `None` where there is no student.
fn weights_bytes(student: &Path) -> Option<u64> {
    let mut bytes = None;
    for entry in fs::read_dir(student).ok()?.flatten() {
        if entry
            .path()
            .extension()
            .is_some_and(|end| end == "safetensors")
        {
            bytes = Some(bytes.unwrap_or(0) + entry.metadata().ok()?.len());
        }
    }
    bytes
}

fn recipe(file: &Path) -> Result<Vec<Key>, ReportError> {
    let Some(text) = text(file)? else {
        return Ok(Vec::new());
    };
    let whole: Table = toml::from_str(&text).map_err(damaged(file))?;
    let defaults = defaults(&whole, file);
    let mut keys = Vec::new();
    for (section, values) in &whole {
        for (name, value) in values.as_table().into_iter().flatten() {
            let default = defaults.as_ref().map(|defaults| {
                let section = defaults.get(section).and_then(|it| it.as_table());
                section.and_then(|it| it.get(name)) == Some(value)
            });
            keys.push(Key {
                section: section.clone(),
                name: name.clone(),
                value: value.to_string(),
                differs: is_said(section, name) || default == Some(false),
            });
        }
    }
    Ok(keys)
}

/// What the same recipe would be if it said no more than it has to; `None` if it would be none.
fn defaults(whole: &Table, file: &Path) -> Option<Table> {
    let mut least = whole.clone();
    for (section, values) in &mut least {
        if let Some(values) = values.as_table_mut() {
            values.retain(|name, _| is_said(section, name));
        }
    }
    least.retain(|_, values| values.as_table().is_none_or(|it| !it.is_empty()));
    let least = toml::to_string(&least).ok()?;
    let least = Recipe::parse(&least, file, &[]).ok()?.to_toml().ok()?;
    toml::from_str(&least).ok()
}

/// Whether every recipe has to say it.
fn is_said(section: &str, name: &str) -> bool {
    section == "student"
        || name == "steps"
        || matches!(
            (section, name),
            ("teacher", "path") | ("data", "train" | "valid")
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_run_or_is_damaged_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = Run::read(folder.path()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("neither summary.json nor start.json")
        );
        fs::write(folder.path().join("summary.json"), "{").unwrap();
        let error = Run::read(folder.path()).unwrap_err();
        assert!(
            error.to_string().contains("summary.json is damaged"),
            "{error}"
        );
        fs::write(folder.path().join("summary.json"), "{}").unwrap();
        fs::create_dir(folder.path().join("recipe.toml")).unwrap();
        let error = Run::read(folder.path()).unwrap_err();
        assert!(
            error.to_string().contains("cannot read") && error.to_string().contains("recipe.toml")
        );
    }

    #[test]
    fn a_key_differs_if_its_recipe_had_to_say_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("recipe.toml");
        let said = "[teacher]\npath = 't'\n[student]\nheads = 2\nkv_heads = 1\n[train]\nsteps = 3\nbatch_size = 7\n\
                    [data]\ntrain = ['a']\nvalid = ['b']\n";
        let resolved = Recipe::parse(said, &file, &[]).unwrap().to_toml().unwrap();
        fs::write(&file, resolved).unwrap();
        let keys = recipe(&file).unwrap();
        let differs = |name: &str| keys.iter().find(|key| key.name == name).unwrap().differs;
        assert!(differs("heads") && differs("batch_size") && differs("path"));
        assert!(!differs("seed") && !differs("betas") && !differs("chunk_tokens"));
    }
}
