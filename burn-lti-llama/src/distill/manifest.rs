//! `manifest.json`: what a run is made of, so that it can be made again, and resumed with nothing
//! else.
//!
//! Together with `recipe.toml` it says all that a run depends on: the program, the backend, and the
//! contents of everything read. Paths are not compared, contents are: a teacher may move.

mod error;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::backend::Backend;
use burn_lti::files::write_atomically;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use error::Change;
pub use error::ManifestError;

use crate::data::text_files;
use crate::gguf::is_gguf;
use crate::hashes::{HashError, hash_file, hash_teacher};
use crate::recipe::{Recipe, RecipeError, StudentSection};
use crate::tokenizer::{self, KeptTokens};

/// The version of the format that is written, and the only one that is read.
const SCHEMA: u32 = 1;
/// The Burn that the lock file names.
const BURN: &str = "0.21.0";
/// What is another where a run goes on on another backend.
const BACKEND: &str = "the backend";
/// The model's configuration in a Hugging Face folder.
const CONFIG: &str = "config.json";
/// What a GGUF file is called in the record of a run, whatever its name.
const GGUF: &str = "model.gguf";
/// Keys of the recipe that change nothing in what is learned, so that a resumed run may change them.
pub const MAY_CHANGE: [&str; 7] = [
    "export.dtype",
    "export.max_shard_size",
    "report",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.log_every",
    "train.tensorboard",
];
/// Keys of the recipe that name what is read: what counts is what it holds.
const BY_CONTENT: [&str; 3] = ["teacher.path", TRAIN, VALID];
const TRAIN: &str = "data.train";
const VALID: &str = "data.valid";

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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// The layers of the teacher that the student's stand for, if it has fewer: those that were chosen, where the
    /// recipe has their number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_layers: Option<Vec<usize>>,
    /// Which of the teacher's tokens the student has, if it has fewer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_tokens: Option<TokensHash>,
    /// What of the student's shape the recipe gave, where the rest was searched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub searched: Option<StudentSection>,
}

/// Which tokens of the teacher a student has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokensHash {
    /// How many.
    pub count: usize,
    /// SHA-256 of their ids, ascending, four bytes each, the lowest first; in hexadecimal digits.
    pub sha256: String,
}

impl From<&KeptTokens> for TokensHash {
    fn from(kept: &KeptTokens) -> Self {
        Self {
            count: kept.ids().len(),
            sha256: kept.sha256(),
        }
    }
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
    /// `config.json` and those files of the tokenizer that are there, by name; of a GGUF file that file.
    pub files: BTreeMap<String, String>,
    /// Every tensor by name, as [`hash_teacher`] says.
    pub tensors: BTreeMap<String, String>,
    /// Fields of `config.json` that were read over although they may change what the teacher computes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accepted: Vec<String>,
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
    /// Where it was. Another path with the same contents is as good.
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
        let follows = match what {
            BACKEND => {
                "its sums are in another order, so the numbers will differ in the last bits from those of a \
                 run that stayed"
            }
            _ => "the curve may differ in the last bits",
        };
        write!(
            f,
            "{what} was {then} when this run began and is now {now}: {follows}"
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
            teacher: TeacherHashes {
                accepted: recipe.teacher.accept.clone(),
                ..TeacherHashes::of(&recipe.teacher.path)?
            },
            data: DataHashes {
                train: text_hashes(&recipe.data.train)?,
                valid: text_hashes(&recipe.data.valid)?,
            },
            kept_layers: None,
            kept_tokens: None,
            searched: None,
        })
    }

    /// Writes the manifest, whole or not at all.
    ///
    /// # Errors
    ///
    /// [`ManifestError::Unicode`], [`ManifestError::Write`].
    pub fn write(&self, path: &Path) -> Result<(), ManifestError> {
        Ok(write_atomically(path, self.to_text(path)?.as_bytes())?)
    }

    /// What is written to the file `path`.
    pub(super) fn to_text(&self, path: &Path) -> Result<String, ManifestError> {
        let text = serde_json::to_string_pretty(self).map_err(|source| ManifestError::Unicode {
            file: path.to_owned(),
            source,
        })?;
        Ok(format!("{text}\n"))
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
    /// - [`ManifestError::Changed`]: the first difference.
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
            Some((key, then, now)) => {
                let [then, now] = [then, now].map(or_absent);
                Err(ManifestError::Changed {
                    what: format!("`{key}`"),
                    change: format!("was {then} and is now {now}"),
                    own: "recipe",
                })
            }
            None => {
                self.check_tokens(now.kept_tokens.as_ref())?;
                self.check_searched(now.searched.as_ref())?;
                Ok(self.notes(now))
            }
        }
    }

    /// Checks that a shape was searched by what it is asked for now. A recipe that gives the shape which was found asks
    /// for nothing.
    fn check_searched(&self, now: Option<&StudentSection>) -> Result<(), ManifestError> {
        let Some(now) = now else {
            return Ok(());
        };
        let of = |section: &StudentSection| {
            let table = Table::try_from(section);
            table.map_err(|source| ManifestError::from(RecipeError::Write { source }))
        };
        let then = self.searched.as_ref().map_or(Ok(Table::new()), of)?;
        match first_changed_key("student", &then, &of(now)?) {
            None => Ok(()),
            Some((key, then, now)) => Err(ManifestError::Changed {
                what: format!("`{key}`, by which the student's shape was searched,"),
                change: format!("was {} and is now {}", or_absent(then), or_absent(now)),
                own: "recipe, or with the shape that its recipe.toml has in [student]",
            }),
        }
    }

    /// Checks that the student has the tokens that it began with, where both are known.
    pub(super) fn check_tokens(&self, now: Option<&TokensHash>) -> Result<(), ManifestError> {
        match (&self.kept_tokens, now) {
            (Some(then), Some(now)) if then != now => Err(ManifestError::Changed {
                what: "the student's vocabulary (student.vocabulary)".to_owned(),
                change: format!(
                    "has other tokens of the teacher's than when this run began, {} where it had {}",
                    now.count, then.count
                ),
                own: "texts and program",
            }),
            _ => Ok(()),
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
            (BACKEND, Some(backend.clone())),
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
    /// Hashes what the Hugging Face folder `dir`, or GGUF file, holds.
    ///
    /// # Errors
    ///
    /// [`HashError`]: the weights, or a file, cannot be read; `config.json` has to be there.
    pub fn of(dir: &Path) -> Result<Self, HashError> {
        if is_gguf(dir) {
            return Ok(Self {
                files: BTreeMap::from([(GGUF.to_owned(), hash_file(dir)?)]),
                tensors: hash_teacher(dir)?,
                accepted: Vec::new(),
            });
        }
        let tokenizer = tokenizer::FILES.into_iter();
        let files = tokenizer
            .filter(|name| dir.join(name).exists())
            .chain([CONFIG])
            .map(|name| Ok((name.to_owned(), hash_file(&dir.join(name))?)))
            .collect::<Result<_, HashError>>()?;
        Ok(Self {
            files,
            tensors: hash_teacher(dir)?,
            accepted: Vec::new(),
        })
    }

    /// Checks that `now` is the same teacher.
    ///
    /// # Errors
    ///
    /// [`ManifestError::Changed`]: the first difference, in the order of the names.
    pub fn check(&self, now: &Self) -> Result<(), ManifestError> {
        for (kind, then, now) in [
            ("", &self.files, &now.files),
            ("tensor ", &self.tensors, &now.tensors),
        ] {
            if let Some((name, change)) = first_change(then, now) {
                return Err(ManifestError::Changed {
                    what: format!("the teacher's {kind}{name}"),
                    change: change.to_string(),
                    own: "teacher",
                });
            }
        }
        Ok(())
    }
}

fn text_hashes(paths: &[PathBuf]) -> Result<Vec<TextHash>, HashError> {
    let hash = |path: &PathBuf| {
        Ok(TextHash {
            path: path.clone(),
            sha256: hash_file(path)?,
        })
    };
    // What names no file is an error of those who read it.
    let files = text_files(paths).unwrap_or_else(|_| paths.to_vec());
    files.par_iter().map(hash).collect()
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
    for index in 0..then.len().max(now.len()) {
        let (then, now) = (then.get(index), now.get(index));
        let hash = |text: Option<&TextHash>| text.map(|text| text.sha256.clone());
        let change = Change::between(hash(then).as_ref(), hash(now).as_ref());
        if let (Some(change), Some(text)) = (change, now.or(then)) {
            return Err(ManifestError::Changed {
                what: format!("the text {} of `{key}`", text.path.display()),
                change: change.to_string(),
                own: "texts, in their order",
            });
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

fn or_absent(value: Option<Value>) -> String {
    value.map_or_else(|| "absent".into(), |value| value.to_string())
}

#[cfg(test)]
mod tests;
