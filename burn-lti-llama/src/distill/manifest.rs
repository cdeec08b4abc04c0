//! `manifest.json`: what a run is made of, so that it can be made again, and resumed with nothing
//! else.
//!
//! Together with `recipe.toml` it says all that a run depends on: the program, the backend, and the
//! contents of everything read. Paths are not compared, contents are: a teacher may move.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use burn::tensor::backend::Backend;
use burn_lti::files::{FileError, write_atomically};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use toml::{Table, Value};

use crate::hashes::{HashError, hash_file, hash_teacher};
use crate::recipe::{Recipe, RecipeError};
use crate::tokenizer;

/// The version of the format that is written, and the only one that is read.
const SCHEMA: u32 = 1;
/// The Burn that the lock file names.
const BURN: &str = "0.21.0";
/// The model's configuration in a Hugging Face folder.
const CONFIG: &str = "config.json";
/// Keys of the recipe that change nothing in what is learned, so that a resumed run may change them.
pub const MAY_CHANGE: [&str; 4] = [
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.log_every",
    "train.tensorboard",
];
/// Keys of the recipe that name what is read: what counts is what it holds.
const BY_CONTENT: [&str; 3] = ["teacher.path", TRAIN, VALID];
const TRAIN: &str = "data.train";
const VALID: &str = "data.valid";

/// Why a run has no manifest, or cannot be resumed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The manifest cannot be read.
    #[error("cannot read {file}: give the folder of a run that was begun")]
    Read {
        /// The manifest.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{file} is no manifest of a run: give the folder of a run that was begun")]
    Syntax {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The manifest was written by a program that writes other manifests.
    #[error(
        "{file} has schema {found}, and this program knows {SCHEMA}: resume with the version of \
         the program that began the run"
    )]
    Schema {
        /// The manifest.
        file: PathBuf,
        /// Its schema.
        found: u32,
    },
    /// The manifest has a path that JSON cannot hold.
    #[error("cannot write {file}: rename the text file whose path is no Unicode")]
    Unicode {
        /// The manifest.
        file: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The manifest cannot be written.
    #[error(transparent)]
    Write(#[from] FileError),
    /// What the run reads cannot be hashed.
    #[error(transparent)]
    Hash(#[from] HashError),
    /// A recipe that cannot be compared, because TOML cannot hold it.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// A file of the teacher is another.
    #[error("the teacher's {file} {change}: {}", resume_with("teacher"))]
    TeacherFile {
        /// The file, by its name in the teacher's folder.
        file: String,
        /// What happened to it.
        change: Change,
    },
    /// A tensor of the teacher is another.
    #[error("the teacher's tensor {tensor} {change}: {}", resume_with("teacher"))]
    TeacherTensor {
        /// The tensor.
        tensor: String,
        /// What happened to it.
        change: Change,
    },
    /// A text is another, or stands in another place.
    #[error(
        "the text {file} of `{key}` {change}: {}",
        resume_with("texts, in their order")
    )]
    Text {
        /// The key of the recipe.
        key: &'static str,
        /// The file.
        file: PathBuf,
        /// What happened to it.
        change: Change,
    },
    /// The recipe is another.
    #[error(
        "`{key}` was {} and is now {}: {}",
        or_absent(then),
        or_absent(now),
        resume_with("recipe")
    )]
    Key {
        /// Section and key.
        key: String,
        /// The value with which the run began.
        then: Option<Value>,
        /// The value now.
        now: Option<Value>,
    },
}

/// What happened to something since a run began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is another.
    Replaced,
    /// It is no longer there.
    Removed,
    /// It was not there.
    Added,
}

impl Change {
    fn between<T: PartialEq>(then: Option<&T>, now: Option<&T>) -> Option<Self> {
        match (then, now) {
            (Some(then), Some(now)) if then != now => Some(Self::Replaced),
            (Some(_), None) => Some(Self::Removed),
            (None, Some(_)) => Some(Self::Added),
            _ => None,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Replaced => "is not the one that this run began with",
            Self::Removed => "was there when this run began, and is no longer",
            Self::Added => "was not there when this run began",
        })
    }
}

/// What a run is made of.
///
/// ```
/// # use burn_lti_llama::distill::{Compute, Manifest, ManifestError};
/// # use burn_lti_llama::recipe::Recipe;
/// # use std::path::Path;
/// # fn example(recipe: &Recipe, out: &Path) -> Result<(), ManifestError> {
/// let compute = Compute { backend: "flex".into(), device: "cpu".into() };
/// let manifest = Manifest::new(recipe, std::env::args().collect(), compute)?;
/// manifest.write(&out.join("manifest.json"))?;
///
/// let then = Manifest::read(&out.join("manifest.json"))?;
/// for note in then.check_resumable(&manifest, recipe, recipe)? {
///     eprintln!("{note}");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    schema: u32,
    /// The command line.
    pub command: Vec<String>,
    /// The program that ran.
    pub program: Program,
    /// On what it ran.
    pub compute: Compute,
    /// What the teacher's folder held.
    pub teacher: TeacherHashes,
    /// What the texts held.
    pub data: DataHashes,
}

/// A program and what it was built from. What is unknown is absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// Version of this crate.
    #[serde(rename = "burn-lti-llama")]
    pub burn_lti_llama: String,
    /// Version of Burn.
    pub burn: String,
    /// What the compiler says of its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rustc: Option<String>,
    /// The sources; unknown where they were built outside their repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
}

/// Sources in a git repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The commit.
    pub revision: String,
    /// Whether the sources differed from it.
    pub uncommitted_changes: bool,
}

/// On what a program computes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compute {
    /// The backend.
    pub backend: String,
    /// Its device.
    pub device: String,
}

/// SHA-256 of the parts of a Hugging Face folder, in hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherHashes {
    /// `config.json` and those files of the tokenizer that are there, by name.
    pub files: BTreeMap<String, String>,
    /// Every tensor by name, as [`hash_teacher`] says.
    pub tensors: BTreeMap<String, String>,
}

/// The texts, in the recipe's order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataHashes {
    /// Those to train on.
    pub train: Vec<TextHash>,
    /// Those to measure on.
    pub valid: Vec<TextHash>,
}

/// A text file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextHash {
    /// Where it was. Another place with the same contents is as good.
    pub path: PathBuf,
    /// SHA-256 of its bytes, in hexadecimal digits.
    pub sha256: String,
}

/// Something that does not keep a run from being resumed, but may show in the last bits of what it
/// computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// What is another.
    pub what: &'static str,
    /// What it was; `None` if unknown.
    pub then: Option<String>,
    /// What it is; `None` if unknown.
    pub now: Option<String>,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = |value: &Option<String>| value.clone().unwrap_or_else(|| "unknown".into());
        let (what, then, now) = (self.what, known(&self.then), known(&self.now));
        write!(
            f,
            "{what} was {then} when this run began and is now {now}: the curve may differ in the \
             last bits"
        )
    }
}

impl Compute {
    /// The device `device` of the backend `B`.
    pub fn of<B: Backend>(device: &B::Device) -> Self {
        Self {
            backend: B::name(device),
            device: format!("{device:?}"),
        }
    }
}

impl Manifest {
    /// The manifest of a run of this program: hashes all that the recipe names.
    ///
    /// # Errors
    ///
    /// [`ManifestError::Hash`].
    pub fn new(
        recipe: &Recipe,
        command: Vec<String>,
        compute: Compute,
    ) -> Result<Self, ManifestError> {
        Ok(Self {
            schema: SCHEMA,
            command,
            program: Program::this(),
            compute,
            teacher: TeacherHashes::of(&recipe.teacher.path)?,
            data: DataHashes {
                train: text_hashes(&recipe.data.train)?,
                valid: text_hashes(&recipe.data.valid)?,
            },
        })
    }

    /// Writes the manifest, whole or not at all.
    ///
    /// # Errors
    ///
    /// [`ManifestError::Unicode`], [`ManifestError::Write`].
    pub fn write(&self, path: &Path) -> Result<(), ManifestError> {
        let text = serde_json::to_string_pretty(self).map_err(|source| ManifestError::Unicode {
            file: path.to_owned(),
            source,
        })?;
        Ok(write_atomically(path, format!("{text}\n").as_bytes())?)
    }

    /// Reads a manifest.
    ///
    /// # Errors
    ///
    /// [`ManifestError::Read`], [`ManifestError::Syntax`], [`ManifestError::Schema`].
    pub fn read(path: &Path) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Version {
            schema: u32,
        }

        let file = || path.to_owned();
        let syntax = |source| ManifestError::Syntax {
            file: file(),
            source,
        };
        let bytes = fs::read(path).map_err(|source| ManifestError::Read {
            file: file(),
            source,
        })?;
        // Another schema may have other fields, and is to be named all the same.
        let Version { schema } = serde_json::from_slice(&bytes).map_err(syntax)?;
        match schema {
            SCHEMA => serde_json::from_slice(&bytes).map_err(syntax),
            found => Err(ManifestError::Schema {
                file: file(),
                found,
            }),
        }
    }

    /// Checks that the run of this manifest, which began with the recipe `recipe_then`, can be
    /// resumed by what `now` and `recipe_now` say: the same teacher, the same texts, the same recipe
    /// but for the keys [`MAY_CHANGE`]. Another program or backend is no obstacle and is noted.
    ///
    /// # Errors
    ///
    /// - [`ManifestError::TeacherFile`], [`ManifestError::TeacherTensor`], [`ManifestError::Text`],
    ///   [`ManifestError::Key`]: the first difference.
    /// - [`ManifestError::Recipe`]: a recipe cannot be compared.
    pub fn check_resumable(
        &self,
        now: &Self,
        recipe_then: &Recipe,
        recipe_now: &Recipe,
    ) -> Result<Vec<Note>, ManifestError> {
        self.teacher.check(&now.teacher)?;
        check_texts(TRAIN, &self.data.train, &now.data.train)?;
        check_texts(VALID, &self.data.valid, &now.data.valid)?;
        match first_changed_key("", &table(recipe_then)?, &table(recipe_now)?) {
            Some((key, then, now)) => Err(ManifestError::Key { key, then, now }),
            None => Ok(self.notes(now)),
        }
    }

    fn notes(&self, now: &Self) -> Vec<Note> {
        let (then, now) = (self.facts(), now.facts());
        let pairs = then.into_iter().zip(now);
        pairs
            .filter(|((_, then), (_, now))| then != now)
            .map(|((what, then), (_, now))| Note { what, then, now })
            .collect()
    }

    /// What may be another when a run is resumed.
    fn facts(&self) -> [(&'static str, Option<String>); 6] {
        let Program {
            burn_lti_llama,
            burn,
            rustc,
            source,
        } = &self.program;
        let Compute { backend, device } = &self.compute;
        [
            ("burn-lti-llama", Some(burn_lti_llama.clone())),
            ("burn", Some(burn.clone())),
            ("rustc", rustc.clone()),
            (
                "the revision of the program",
                source.as_ref().map(Source::to_string),
            ),
            ("the backend", Some(backend.clone())),
            ("the device", Some(device.clone())),
        ]
    }
}

impl Program {
    /// The running program.
    pub fn this() -> Self {
        let revision = option_env!("BURN_LTI_REVISION");
        Self {
            burn_lti_llama: env!("CARGO_PKG_VERSION").to_owned(),
            burn: BURN.to_owned(),
            rustc: option_env!("BURN_LTI_RUSTC").map(str::to_owned),
            source: revision.map(|revision| Source {
                revision: revision.to_owned(),
                uncommitted_changes: option_env!("BURN_LTI_UNCOMMITTED_CHANGES") != Some("false"),
            }),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.revision)?;
        match self.uncommitted_changes {
            true => f.write_str(" with changes"),
            false => Ok(()),
        }
    }
}

impl TeacherHashes {
    /// Hashes what the Hugging Face folder `dir` holds.
    ///
    /// # Errors
    ///
    /// [`HashError`]: the weights, or a file, cannot be read; `config.json` has to be there.
    pub fn of(dir: &Path) -> Result<Self, HashError> {
        let tokenizer = tokenizer::FILES.into_iter();
        let files = tokenizer
            .filter(|name| dir.join(name).exists())
            .chain([CONFIG])
            .map(|name| Ok((name.to_owned(), hash_file(&dir.join(name))?)))
            .collect::<Result<_, HashError>>()?;
        Ok(Self {
            files,
            tensors: hash_teacher(dir)?,
        })
    }

    /// Checks that `now` is the same teacher.
    ///
    /// # Errors
    ///
    /// [`ManifestError::TeacherFile`], [`ManifestError::TeacherTensor`]: the first difference, in
    /// the order of the names.
    pub fn check(&self, now: &Self) -> Result<(), ManifestError> {
        if let Some((file, change)) = first_change(&self.files, &now.files) {
            return Err(ManifestError::TeacherFile { file, change });
        }
        match first_change(&self.tensors, &now.tensors) {
            Some((tensor, change)) => Err(ManifestError::TeacherTensor { tensor, change }),
            None => Ok(()),
        }
    }
}

fn text_hashes(paths: &[PathBuf]) -> Result<Vec<TextHash>, HashError> {
    let hash = |path: &PathBuf| {
        Ok(TextHash {
            path: path.clone(),
            sha256: hash_file(path)?,
        })
    };
    paths.par_iter().map(hash).collect()
}

fn first_change(
    then: &BTreeMap<String, String>,
    now: &BTreeMap<String, String>,
) -> Option<(String, Change)> {
    let names: BTreeSet<&String> = then.keys().chain(now.keys()).collect();
    names.into_iter().find_map(|name| {
        let change = Change::between(then.get(name), now.get(name))?;
        Some((name.clone(), change))
    })
}

/// Checks that both are the same texts in the same order.
fn check_texts(
    key: &'static str,
    then: &[TextHash],
    now: &[TextHash],
) -> Result<(), ManifestError> {
    for place in 0..then.len().max(now.len()) {
        let (then, now) = (then.get(place), now.get(place));
        let hash = |text: Option<&TextHash>| text.map(|text| text.sha256.clone());
        let change = Change::between(hash(then).as_ref(), hash(now).as_ref());
        if let (Some(change), Some(text)) = (change, now.or(then)) {
            let file = text.path.clone();
            return Err(ManifestError::Text { key, file, change });
        }
    }
    Ok(())
}

fn table(recipe: &Recipe) -> Result<Table, RecipeError> {
    Table::try_from(recipe).map_err(|source| RecipeError::Write { source })
}

/// The first key, below `path`, whose values differ and which may not change; with both values.
fn first_changed_key(
    path: &str,
    then: &Table,
    now: &Table,
) -> Option<(String, Option<Value>, Option<Value>)> {
    let names: BTreeSet<&String> = then.keys().chain(now.keys()).collect();
    names.into_iter().find_map(|name| {
        let key = match path {
            "" => name.clone(),
            path => format!("{path}.{name}"),
        };
        if MAY_CHANGE.contains(&key.as_str()) || BY_CONTENT.contains(&key.as_str()) {
            return None;
        }
        match (then.get(name), now.get(name)) {
            (Some(Value::Table(then)), Some(Value::Table(now))) => {
                first_changed_key(&key, then, now)
            }
            (then, now) if then == now => None,
            (then, now) => Some((key, then.cloned(), now.cloned())),
        }
    })
}

/// The way out of a difference.
fn resume_with(what: &str) -> String {
    format!("resume with the run's own {what}, or begin a new run in another folder")
}

fn or_absent(value: &Option<Value>) -> String {
    value
        .as_ref()
        .map_or_else(|| "absent".into(), Value::to_string)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;
    use crate::hf::{NewTensor, WeightType, write_weights};

    const RECIPE: &str = r#"
        [teacher]
        path = "teacher"
        [student]
        heads = 4
        kv_heads = 2
        [train]
        steps = 200
        [data]
        train = ["1.txt", "2.txt"]
        valid = ["3.txt"]
    "#;

    /// A folder with all that the recipe names.
    struct Workshop(TempDir);

    impl Workshop {
        fn new() -> Self {
            let workshop = Self(TempDir::new().unwrap());
            fs::create_dir(workshop.path("teacher")).unwrap();
            workshop.write("teacher/config.json", "{}");
            workshop.write("teacher/tokenizer.json", "words");
            workshop.write_tensors(&["a", "b"], 0.5);
            for text in ["1.txt", "2.txt", "3.txt"] {
                workshop.write(text, text);
            }
            workshop
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.path(name), text).unwrap();
        }

        /// The value is that of the last tensor.
        fn write_tensors(&self, names: &[&str], last: f32) {
            let tensors = names.iter().enumerate().map(|(index, name)| {
                let value = if index + 1 == names.len() { last } else { 1.0 };
                NewTensor::new(*name, [1], move || Ok(vec![value]))
            });
            let path = self.path("teacher/model.safetensors");
            write_weights(&path, WeightType::F32, tensors).unwrap();
        }

        fn recipe(&self, overrides: &[&str]) -> Recipe {
            let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
            Recipe::parse(RECIPE, &self.path("recipe.toml"), &overrides).unwrap()
        }

        fn manifest_of(&self, overrides: &[&str]) -> Manifest {
            let command = ["burn-lti", "distill"].map(str::to_owned).into();
            Manifest::new(&self.recipe(overrides), command, on_flex()).unwrap()
        }

        fn manifest(&self) -> Manifest {
            self.manifest_of(&[])
        }

        /// What comes of a resumption after `change`, with these overrides.
        fn resume(
            &self,
            overrides: &[&str],
            change: impl FnOnce(&Self),
        ) -> Result<Vec<Note>, ManifestError> {
            let then = self.manifest();
            change(self);
            let now = self.manifest_of(overrides);
            then.check_resumable(&now, &self.recipe(&[]), &self.recipe(overrides))
        }
    }

    /// What happens to a workshop between a run and its resumption.
    type Edit = fn(&Workshop);

    fn on_flex() -> Compute {
        Compute {
            backend: "flex".to_owned(),
            device: "cpu".to_owned(),
        }
    }

    /// The error of a resumption after a change.
    fn refused(overrides: &[&str], change: impl FnOnce(&Workshop)) -> ManifestError {
        Workshop::new().resume(overrides, change).unwrap_err()
    }

    #[test]
    fn reads_what_it_writes() {
        let workshop = Workshop::new();
        let path = workshop.path("manifest.json");
        let manifest = workshop.manifest();
        manifest.write(&path).unwrap();
        assert_eq!(Manifest::read(&path).unwrap(), manifest);
        let names: Vec<&String> = manifest.teacher.files.keys().collect();
        assert_eq!(names, ["config.json", "tokenizer.json"]);
        assert_eq!(manifest.data.train[1].path, workshop.path("2.txt"));
    }

    #[test]
    fn what_is_unknown_is_absent() {
        let workshop = Workshop::new();
        let path = workshop.path("manifest.json");
        let mut manifest = workshop.manifest();
        manifest.program.rustc = None;
        manifest.program.source = None;
        manifest.write(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            !text.contains("rustc") && !text.contains("source"),
            "{text}"
        );
        assert_eq!(Manifest::read(&path).unwrap(), manifest);
    }

    #[test]
    fn burn_is_that_of_the_lock_file() {
        let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.lock");
        let lock: Table = fs::read_to_string(lock).unwrap().parse().unwrap();
        let packages = lock["package"].as_array().unwrap();
        let burn = packages
            .iter()
            .find(|package| package["name"].as_str() == Some("burn"))
            .unwrap();
        assert_eq!(burn["version"].as_str(), Some(BURN));
    }

    #[test]
    fn the_program_says_what_it_was_built_from() {
        let program = Program::this();
        assert!(program.rustc.unwrap().starts_with("rustc 1."));
        if let Some(source) = program.source {
            let is_hash =
                |text: &str| text.len() >= 40 && text.chars().all(|c| c.is_ascii_hexdigit());
            assert!(is_hash(&source.revision), "{source}");
        }
    }

    #[test]
    fn an_unchanged_run_can_be_resumed_without_a_note() {
        let notes = Workshop::new().resume(&[], |_| {}).unwrap();
        assert_eq!(notes, []);
    }

    #[test]
    fn what_has_moved_is_the_same_and_what_is_logged_may_change() {
        let overrides = [
            "teacher.path=elsewhere",
            "data.train=['1.txt', 'moved.txt']",
            "train.log_every=7",
        ];
        let notes = Workshop::new().resume(&overrides, |workshop| {
            for (from, to) in [("teacher", "elsewhere"), ("2.txt", "moved.txt")] {
                fs::rename(workshop.path(from), workshop.path(to)).unwrap();
            }
        });
        assert_eq!(notes.unwrap(), []);
    }

    #[test]
    fn another_file_of_the_teacher_is_named() {
        let changes: [(&str, Change, Edit); 4] = [
            ("config.json", Change::Replaced, |workshop| {
                workshop.write("teacher/config.json", "{ }");
            }),
            ("tokenizer.json", Change::Replaced, |workshop| {
                workshop.write("teacher/tokenizer.json", "other words");
            }),
            ("tokenizer.json", Change::Removed, |workshop| {
                fs::remove_file(workshop.path("teacher/tokenizer.json")).unwrap();
            }),
            ("tokenizer_config.json", Change::Added, |workshop| {
                workshop.write("teacher/tokenizer_config.json", "{}");
            }),
        ];
        for (name, what, change) in changes {
            let error = refused(&[], change);
            let text = error.to_string();
            assert!(
                text.contains(name) && text.contains("begin a new run"),
                "{text}"
            );
            assert!(
                matches!(error, ManifestError::TeacherFile { file, change }
                    if file == name && change == what),
                "{text}"
            );
        }
    }

    #[test]
    fn another_tensor_of_the_teacher_is_named() {
        let changes: [(&str, Change, Edit); 3] = [
            ("b", Change::Replaced, |workshop| {
                workshop.write_tensors(&["a", "b"], 0.75);
            }),
            ("a", Change::Removed, |workshop| {
                workshop.write_tensors(&["b"], 0.5);
            }),
            ("c", Change::Added, |workshop| {
                let path = workshop.path("teacher/model.safetensors");
                let tensors = [("a", 1.0), ("b", 0.5), ("c", 2.0)]
                    .map(|(name, value)| NewTensor::new(name, [1], move || Ok(vec![value])));
                write_weights(&path, WeightType::F32, tensors).unwrap();
            }),
        ];
        for (name, what, change) in changes {
            let error = refused(&[], change);
            assert!(
                matches!(&error, ManifestError::TeacherTensor { tensor, change }
                    if tensor == name && *change == what),
                "{error}"
            );
            let text = error.to_string();
            assert!(
                text.contains(&format!("the teacher's tensor {name} ")),
                "{text}"
            );
        }
    }

    #[test]
    fn another_text_is_named() {
        let error = refused(&[], |workshop| workshop.write("3.txt", "other"));
        let text = error.to_string();
        assert!(
            text.contains("3.txt of `data.valid` is not the one"),
            "{text}"
        );
        for (train, name, what) in [
            ("['2.txt', '1.txt']", "2.txt", Change::Replaced),
            ("['1.txt']", "2.txt", Change::Removed),
            ("['1.txt', '2.txt', '3.txt']", "3.txt", Change::Added),
        ] {
            let error = refused(&[&format!("data.train={train}")], |_| {});
            assert!(
                matches!(&error, ManifestError::Text { key: "data.train", file, change }
                    if file.ends_with(name) && *change == what),
                "{error}"
            );
        }
    }

    #[test]
    fn another_key_of_the_recipe_is_named_with_both_values() {
        for (overrides, expected) in [
            (
                "train.learning_rate=1e-3",
                "`train.learning_rate` was 0.003 and is now 0.001: ",
            ),
            (
                "student.head_dim=6",
                "`student.head_dim` was absent and is now 6: ",
            ),
            (
                "train.betas=[0.9, 0.99]",
                "`train.betas` was [0.9, 0.95] and is now [0.9, 0.99]: ",
            ),
            (
                "lti.start=lecun",
                "`lti.start` was \"calibrated\" and is now \"lecun\": ",
            ),
        ] {
            let error = refused(&[overrides], |_| {});
            let text = error.to_string();
            assert!(text.starts_with(expected), "{text}");
            assert!(matches!(error, ManifestError::Key { .. }));
        }
    }

    #[test]
    fn keys_are_compared_at_any_depth() {
        let parse = |text: &str| text.parse::<Table>().unwrap();
        let then = parse("[a]\nb = { c = 1, d = 2 }\n[train]\ntensorboard = true");
        let now = parse("[a]\nb = { c = 1, d = 3 }\n[train]\nkeep_checkpoints = 3");
        let (key, was, is) = first_changed_key("", &then, &now).unwrap();
        assert_eq!(key, "a.b.d");
        assert_eq!((was, is), (Some(2.into()), Some(3.into())));
    }

    #[test]
    fn another_program_or_backend_is_noted() {
        let workshop = Workshop::new();
        let (then, mut now) = (workshop.manifest(), workshop.manifest());
        now.program.burn_lti_llama = "9.0.0".to_owned();
        now.program.rustc = None;
        now.compute.backend = "tch".to_owned();
        let recipe = workshop.recipe(&[]);
        let notes = then.check_resumable(&now, &recipe, &recipe).unwrap();
        let what: Vec<&str> = notes.iter().map(|note| note.what).collect();
        assert_eq!(what, ["burn-lti-llama", "rustc", "the backend"]);
        let text = notes[2].to_string();
        assert!(text.starts_with("the backend was flex"), "{text}");
        assert!(
            notes[1].to_string().contains("is now unknown"),
            "{}",
            notes[1]
        );
    }

    #[test]
    fn other_sources_are_noted() {
        let workshop = Workshop::new();
        let mut then = workshop.manifest();
        then.program.source = Some(Source {
            revision: "abc".to_owned(),
            uncommitted_changes: false,
        });
        let mut now = then.clone();
        now.program.source = Some(Source {
            revision: "abc".to_owned(),
            uncommitted_changes: true,
        });
        let recipe = workshop.recipe(&[]);
        let notes = then.check_resumable(&now, &recipe, &recipe).unwrap();
        assert_eq!(notes.len(), 1);
        assert_eq!(notes[0].now.as_deref(), Some("abc with changes"));
    }

    #[test]
    fn what_is_no_manifest_is_refused_by_name() {
        let workshop = Workshop::new();
        let path = workshop.path("manifest.json");
        let error = Manifest::read(&path).unwrap_err();
        assert!(matches!(&error, ManifestError::Read { file, .. } if *file == path));

        for text in [
            "[".to_owned(),
            json!({}).to_string(),
            json!({"schema": 1}).to_string(),
        ] {
            fs::write(&path, text).unwrap();
            let error = Manifest::read(&path).unwrap_err();
            assert!(matches!(&error, ManifestError::Syntax { file, .. } if *file == path));
        }

        fs::write(&path, json!({"schema": 2, "new": true}).to_string()).unwrap();
        let error = Manifest::read(&path).unwrap_err();
        assert!(matches!(&error, ManifestError::Schema { file, found: 2 } if *file == path));
    }

    #[test]
    fn what_cannot_be_hashed_ends_in_an_error() {
        let workshop = Workshop::new();
        fs::remove_file(workshop.path("3.txt")).unwrap();
        let error = Manifest::new(&workshop.recipe(&[]), Vec::new(), on_flex()).unwrap_err();
        assert!(
            matches!(&error, ManifestError::Hash(HashError::Read { file, .. })
                if file.ends_with("3.txt"))
        );
    }

    #[test]
    fn a_folder_that_is_not_there_cannot_be_written_to() {
        let workshop = Workshop::new();
        let error = workshop
            .manifest()
            .write(&workshop.path("nowhere/manifest.json"));
        assert!(matches!(error, Err(ManifestError::Write(_))));
    }

    #[test]
    #[cfg(unix)]
    fn a_path_that_is_no_unicode_is_refused() {
        use std::os::unix::ffi::OsStringExt;

        let workshop = Workshop::new();
        let path = PathBuf::from(std::ffi::OsString::from_vec(vec![0xff]));
        let mut manifest = workshop.manifest();
        let good = manifest.clone();
        manifest.data.train[0].path.clone_from(&path);
        let error = manifest.write(&workshop.path("manifest.json")).unwrap_err();
        assert!(matches!(error, ManifestError::Unicode { .. }));

        let recipe = workshop.recipe(&[]);
        let mut odd = recipe.clone();
        odd.teacher.path = path;
        let error = good.check_resumable(&good, &recipe, &odd).unwrap_err();
        assert!(matches!(
            error,
            ManifestError::Recipe(RecipeError::Write { .. })
        ));
    }
}
