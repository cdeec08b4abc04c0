//! The recipe of a distillation: what a TOML file says, with every default filled in.
//!
//! A recipe is read strictly. Unknown keys are errors with a suggestion, numbers are checked for
//! their range, relative paths are resolved against the folder of the file. What needs the
//! teacher's configuration to be checked (head counts, layers, lengths) is the business of
//! [`Plan`](crate::plan::Plan).

mod choice;
mod overrides;
mod suggest;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf, absolute};
use std::slice;

use burn_lti::dense::KernelPrecision;
use burn_lti::start::Start;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use toml::Table;

pub use choice::{Layers, MapChoice, Trained};
use suggest::UnknownName;

use crate::hf::WeightType;

/// A recipe, checked as far as it can be without the teacher.
///
/// ```
/// # use std::path::Path;
/// # use burn_lti_llama::recipe::Recipe;
/// let text = r#"
///     [teacher]
///     path = "../teachers/stories260k"
///     [student]
///     heads = 4
///     kv_heads = 2
///     [train]
///     steps = 200
///     [data]
///     train = ["train.txt"]
///     valid = ["valid.txt"]
/// "#;
/// let recipe = Recipe::parse(text, Path::new("/recipes/half.toml"), &["train.seed=7".into()])?;
/// assert_eq!(recipe.train.seed, 7);
/// assert_eq!(recipe.train.batch_size, 16);
/// assert_eq!(recipe.data.train, [Path::new("/recipes/train.txt")]);
/// # Ok::<(), burn_lti_llama::recipe::RecipeError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The model to learn from.
    pub teacher: TeacherSection,
    /// The attention geometry of the model to make.
    pub student: StudentSection,
    /// How the student's attention is made out of the teacher's.
    #[serde(default)]
    pub lti: LtiSection,
    /// What the student is trained towards.
    #[serde(default)]
    pub loss: LossSection,
    /// How it is trained.
    pub train: TrainSection,
    /// On what it is trained and measured.
    pub data: DataSection,
}

/// `[teacher]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherSection {
    /// Folder of the teacher in Hugging Face layout. Required.
    pub path: PathBuf,
    /// The float type in which the teacher is held and computes, and with it the student's tensors
    /// that do not train, `C` among them; the student is exported in it. Maps train in float32
    /// whatever it is. Default: `float32`, also for a teacher whose file has another.
    #[serde(default)]
    pub dtype: WeightType,
}

/// `[student]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudentSection {
    /// Query heads. Required.
    pub heads: usize,
    /// Key/value heads; divides `heads`. Required.
    pub kv_heads: usize,
    /// Features of a head. Default: the teacher's.
    pub head_dim: Option<usize>,
}

/// `[lti]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LtiSection {
    /// Where the maps begin. Default: `grouped`.
    pub start: Start,
    /// The form of the maps. Default: `factored` for every projection.
    pub map: MapChoice,
    /// The layers that have maps. Default: `all`.
    pub layers: Layers,
    /// What training changes. Default: `maps`.
    pub train: Trained,
    /// Precision of the contraction of map and teacher kernel. Default: `default`.
    pub precision: KernelPrecision,
}

impl Default for LtiSection {
    fn default() -> Self {
        Self {
            start: Start::Grouped,
            map: MapChoice::default(),
            layers: Layers::default(),
            train: Trained::default(),
            precision: KernelPrecision::default(),
        }
    }
}

/// `[loss]`: `alpha * temperature^2 * KL(teacher || student) + (1 - alpha) * cross-entropy`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossSection {
    /// Weight of the teacher's distribution against the text itself, 0 to 1. Default: 1.
    pub alpha: f64,
    /// Divides the logits of both models in the KL term. Default: 1.
    pub temperature: f64,
    /// Tokens for which logits exist at a time. Default: 512.
    pub chunk_tokens: usize,
}

impl Default for LossSection {
    fn default() -> Self {
        Self {
            alpha: 1.0,
            temperature: 1.0,
            chunk_tokens: 512,
        }
    }
}

/// `[train]`: AdamW, with a linear warm-up and a cosine decay of the learning rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSection {
    /// Optimizer steps. Required.
    pub steps: usize,
    /// Sequences in a step. Default: 16.
    #[serde(default = "defaults::batch_size")]
    pub batch_size: usize,
    /// Tokens in a sequence. Default: 128.
    #[serde(default = "defaults::seq_len")]
    pub seq_len: usize,
    /// Highest learning rate, reached at the end of the warm-up. Default: 3e-3.
    #[serde(default = "defaults::learning_rate")]
    pub learning_rate: f64,
    /// Part of the steps spent on the warm-up, 0 to 1. Default: 0.1.
    #[serde(default = "defaults::warmup_fraction")]
    pub warmup_fraction: f64,
    /// Last learning rate as a part of the highest, 0 to 1. Default: 0.1.
    #[serde(default = "defaults::final_lr_fraction")]
    pub final_lr_fraction: f64,
    /// Decay of the running means of gradient and squared gradient. Default: `[0.9, 0.95]`.
    #[serde(default = "defaults::betas")]
    pub betas: [f64; 2],
    /// Added to the root of the squared gradient's mean. Default: 1e-8.
    #[serde(default = "defaults::eps")]
    pub eps: f64,
    /// Decoupled weight decay. Default: 0.
    #[serde(default = "defaults::weight_decay")]
    pub weight_decay: f64,
    /// Largest global norm of the gradient of all trained parameters; `inf` for no clipping.
    /// Default: 1.
    #[serde(default = "defaults::grad_clip")]
    pub grad_clip: f64,
    /// Seed of everything random. Default: 0.
    #[serde(default = "defaults::seed")]
    pub seed: u64,
    /// Steps from one line of metrics to the next. Default: 1.
    #[serde(default = "defaults::log_every")]
    pub log_every: usize,
    /// The most held-out sequences that an evaluation reads. Default: 200.
    #[serde(default = "defaults::eval_sequences")]
    pub eval_sequences: usize,
}

/// The defaults of a section that also has required keys. (The others have a `Default`.)
mod defaults {
    macro_rules! defaults {
        ($($key:ident: $type:ty = $value:expr;)*) => {
            $(pub(super) const fn $key() -> $type { $value })*
        };
    }

    defaults! {
        batch_size: usize = 16;
        seq_len: usize = 128;
        learning_rate: f64 = 3e-3;
        warmup_fraction: f64 = 0.1;
        final_lr_fraction: f64 = 0.1;
        betas: [f64; 2] = [0.9, 0.95];
        eps: f64 = 1e-8;
        weight_decay: f64 = 0.0;
        grad_clip: f64 = 1.0;
        seed: u64 = 0;
        log_every: usize = 1;
        eval_sequences: usize = 200;
    }
}

/// `[data]`: text files, one document a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// Files to train on. Required.
    pub train: Vec<PathBuf>,
    /// Files to measure on. Required.
    pub valid: Vec<PathBuf>,
}

impl Recipe {
    /// Reads the recipe at `path`, changed by `overrides` of the form `section.key=value`.
    ///
    /// # Errors
    /// [`RecipeError::Read`] if the file cannot be read, else as [`Self::parse`].
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, RecipeError> {
        let read = || Ok((fs::read_to_string(path)?, absolute(path)?));
        let (text, path) = read().map_err(|source| RecipeError::Read {
            path: path.to_path_buf(),
            source,
        })?;
        Self::parse(&text, &path, overrides)
    }

    /// Reads the text of a recipe. `path` is the file that errors name, and its folder is that
    /// against which relative paths are resolved, those in `overrides` too.
    ///
    /// # Errors
    /// Every variant of [`RecipeError`] but [`RecipeError::Read`] and [`RecipeError::Write`].
    pub fn parse(text: &str, path: &Path, overrides: &[String]) -> Result<Self, RecipeError> {
        let mut table: Table = text.parse().map_err(|source| RecipeError::Syntax {
            path: path.to_path_buf(),
            source: Box::new(source),
        })?;
        for text in overrides {
            overrides::apply(&mut table, text)?;
        }
        let mut recipe: Self = table
            .try_into()
            .map_err(|source| RecipeError::from_toml(path, source))?;
        recipe.check(path)?;
        recipe.resolve_paths(path.parent().unwrap_or(Path::new("")));
        Ok(recipe)
    }

    /// The recipe as TOML, every default written out.
    ///
    /// # Errors
    /// [`RecipeError::Write`] for a path that is no Unicode, which TOML cannot hold.
    pub fn to_toml(&self) -> Result<String, RecipeError> {
        toml::to_string(self).map_err(|source| RecipeError::Write { source })
    }

    /// Every range in one place. A comparison with NaN is false, so NaN passes nowhere.
    fn check(&self, path: &Path) -> Result<(), RecipeError> {
        let Self {
            teacher,
            student: _,
            lti,
            loss,
            train,
            data,
        } = self;
        let check = |key, value: &dyn fmt::Debug, passed, rule| {
            if passed {
                return Ok(());
            }
            let (path, value) = (path.to_path_buf(), format!("{value:?}"));
            Err(RecipeError::OutOfRange {
                path,
                key,
                value,
                rule,
            })
        };
        let count = |key, value: usize| check(key, &value, value >= 1, "must be at least 1");
        let fraction = |key, value: f64| {
            check(
                key,
                &value,
                (0.0..=1.0).contains(&value),
                "must be from 0 to 1",
            )
        };
        let positive = |key, value: f64| {
            check(
                key,
                &value,
                value > 0.0 && value.is_finite(),
                "must be positive and finite",
            )
        };
        let paths = |key, paths: &[PathBuf]| {
            let passed = !paths.is_empty() && paths.iter().all(|path| !path.as_os_str().is_empty());
            check(
                key,
                &paths,
                passed,
                "must name at least one path, and none may be empty",
            )
        };

        paths("teacher.path", slice::from_ref(&teacher.path))?;
        if let Layers::These(layers) = &lti.layers {
            let repeated = |(i, layer)| layers[..i].contains(layer);
            let passed = !layers.iter().enumerate().any(repeated);
            check("lti.layers", &layers, passed, "must name no layer twice")?;
        }
        fraction("loss.alpha", loss.alpha)?;
        positive("loss.temperature", loss.temperature)?;
        count("loss.chunk_tokens", loss.chunk_tokens)?;
        count("train.steps", train.steps)?;
        count("train.batch_size", train.batch_size)?;
        let predicts = train.seq_len >= 2;
        check(
            "train.seq_len",
            &train.seq_len,
            predicts,
            "must be at least 2, to predict a token",
        )?;
        positive("train.learning_rate", train.learning_rate)?;
        fraction("train.warmup_fraction", train.warmup_fraction)?;
        fraction("train.final_lr_fraction", train.final_lr_fraction)?;
        let decay = train.betas.iter().all(|beta| (0.0..1.0).contains(beta));
        check(
            "train.betas",
            &train.betas,
            decay,
            "must hold numbers from 0 to below 1",
        )?;
        positive("train.eps", train.eps)?;
        let decay = train.weight_decay >= 0.0 && train.weight_decay.is_finite();
        check(
            "train.weight_decay",
            &train.weight_decay,
            decay,
            "must be at least 0 and finite",
        )?;
        let clip = train.grad_clip > 0.0;
        check(
            "train.grad_clip",
            &train.grad_clip,
            clip,
            "must be positive (inf: no clipping)",
        )?;
        count("train.log_every", train.log_every)?;
        count("train.eval_sequences", train.eval_sequences)?;
        paths("data.train", &data.train)?;
        paths("data.valid", &data.valid)
    }

    fn resolve_paths(&mut self, folder: &Path) {
        let Self { teacher, data, .. } = self;
        let files = data.train.iter_mut().chain(&mut data.valid);
        for path in files.chain([&mut teacher.path]) {
            *path = folder.join(&*path);
        }
    }
}

/// Why a recipe is refused.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// The file cannot be read.
    #[error("cannot read the recipe {}: give the path of a TOML file", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{} is not valid TOML: correct the line shown", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// An override does not have the form `section.key=value`.
    #[error("cannot use the override `{text}`: write it as section.key=value")]
    Override {
        /// The override.
        text: String,
    },
    /// A section that recipes do not have.
    #[error(
        "{}: there is no section [{section}]: {}",
        path.display(), way_out(suggestion, "sections", known)
    )]
    UnknownSection {
        /// The file.
        path: PathBuf,
        /// The section.
        section: String,
        /// The sections that there are.
        known: Vec<String>,
        /// The nearest of them.
        suggestion: Option<String>,
    },
    /// A key that its section does not have.
    #[error(
        "{}: there is no key `{key}` in [{section}]: {}",
        path.display(), way_out(suggestion, "keys", known)
    )]
    UnknownKey {
        /// The file, also if the key came from an override.
        path: PathBuf,
        /// The section, or the path of a table inside one.
        section: String,
        /// The key.
        key: String,
        /// The keys that there are.
        known: Vec<String>,
        /// The nearest of them.
        suggestion: Option<String>,
    },
    /// A word that its key does not accept.
    #[error(
        "{}: `{key}` cannot be \"{value}\": {}",
        path.display(), way_out(suggestion, "values", known)
    )]
    UnknownValue {
        /// The file, also if the value came from an override.
        path: PathBuf,
        /// Section and key.
        key: String,
        /// The word.
        value: String,
        /// The words that would do.
        known: Vec<String>,
        /// The nearest of them.
        suggestion: Option<String>,
    },
    /// A required section or key is not there.
    #[error("{}: `{key}` is missing: add it, it has no default", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// Section and key, or section.
        key: String,
    },
    /// A value has the wrong type.
    #[error("{}: `{key}` has the wrong type: correct its value", path.display())]
    WrongType {
        /// The file, also if the value came from an override.
        path: PathBuf,
        /// Section and key, or section.
        key: String,
        /// What was expected.
        source: Box<toml::de::Error>,
    },
    /// A value is outside its range.
    #[error("{}: `{key}` is {value}: it {rule}", path.display())]
    OutOfRange {
        /// The file, also if the value came from an override.
        path: PathBuf,
        /// Section and key.
        key: &'static str,
        /// The value.
        value: String,
        /// What holds for it.
        rule: &'static str,
    },
    /// The recipe holds a value that TOML cannot.
    #[error("cannot write the recipe as TOML: correct the value named")]
    Write {
        /// The value and why.
        source: toml::ser::Error,
    },
}

impl RecipeError {
    /// Sorts what serde says into the variants above.
    fn from_toml(path: &Path, source: toml::de::Error) -> Self {
        let path = path.to_path_buf();
        let message = source.message();
        let place = place(&source);
        if let Some(unknown) = UnknownName::from_message(message, "field") {
            let (suggestion, UnknownName { name, known }) = (unknown.nearest(), unknown);
            return if place.is_empty() {
                Self::UnknownSection {
                    path,
                    section: name,
                    known,
                    suggestion,
                }
            } else {
                Self::UnknownKey {
                    path,
                    section: place,
                    key: name,
                    known,
                    suggestion,
                }
            };
        }
        if let Some(unknown) = UnknownName::from_message(message, "variant") {
            let (suggestion, UnknownName { name, known }) = (unknown.nearest(), unknown);
            return Self::UnknownValue {
                path,
                key: place,
                value: name,
                known,
                suggestion,
            };
        }
        let missing = message
            .strip_prefix("missing field `")
            .and_then(|m| m.strip_suffix('`'));
        if let Some(name) = missing {
            let key = if place.is_empty() {
                name.into()
            } else {
                format!("{place}.{name}")
            };
            return Self::Missing { path, key };
        }
        Self::WrongType {
            path,
            key: place,
            source: Box::new(source),
        }
    }
}

/// The dotted path at which reading stopped; empty at the top. `toml` only prints it, as
/// "message\nin `section.key`".
fn place(error: &toml::de::Error) -> String {
    let text = error.to_string();
    text.rsplit_once("\nin `")
        .and_then(|(_, place)| place.trim_end().strip_suffix('`'))
        .unwrap_or_default()
        .to_owned()
}

fn way_out(suggestion: &Option<String>, what: &str, known: &[String]) -> String {
    match suggestion {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("the {what} are {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use burn_lti::dense::{MapKind, Slot};

    use super::*;

    /// The recipe of issue 2 in short, and the least that a recipe can say.
    const LEAST: &str = r#"
        [teacher]
        path = "../teacher"
        [student]
        heads = 4
        kv_heads = 2
        [train]
        steps = 200
        [data]
        train = ["train.txt", "/abs/more.txt"]
        valid = ["../valid.txt"]
    "#;

    const FULL: &str = r#"
        [teacher]
        path = "../../shared/teachers/stories260k"
        [student]
        heads = 4
        kv_heads = 2
        head_dim = 6
        [lti]
        start = "lecun"
        map = { default = "general", query = "factored" }
        layers = [0, 2]
        train = "projections"
        precision = "high"
        [loss]
        alpha = 0.5
        temperature = 2
        chunk_tokens = 64
        [train]
        steps = 200
        batch_size = 8
        seq_len = 64
        learning_rate = 1e-3
        warmup_fraction = 0.2
        final_lr_fraction = 0
        betas = [0.8, 0.99]
        eps = 1e-6
        weight_decay = 0.1
        grad_clip = inf
        seed = 5
        log_every = 10
        eval_sequences = 20
        [data]
        train = ["train.txt"]
        valid = ["valid.txt"]
    "#;

    fn parse(text: &str, overrides: &[&str]) -> Result<Recipe, RecipeError> {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        Recipe::parse(text, Path::new("/recipes/half.toml"), &overrides)
    }

    /// The error of the least recipe with one override.
    fn refused(setting: &str) -> RecipeError {
        parse(LEAST, &[setting]).unwrap_err()
    }

    #[test]
    fn fills_in_the_defaults() {
        let recipe = parse(LEAST, &[]).unwrap();
        assert_eq!(recipe.student.head_dim, None);
        assert_eq!(recipe.lti.start, Start::Grouped);
        assert_eq!(recipe.lti.map, MapChoice::uniform(MapKind::Factored));
        assert_eq!(
            (recipe.lti.layers, recipe.lti.train),
            (Layers::All, Trained::Maps)
        );
        let LossSection {
            alpha,
            temperature,
            chunk_tokens,
        } = recipe.loss;
        assert_eq!((alpha, temperature, chunk_tokens), (1.0, 1.0, 512));
        assert_eq!(
            recipe.train,
            TrainSection {
                steps: 200,
                batch_size: 16,
                seq_len: 128,
                learning_rate: 3e-3,
                warmup_fraction: 0.1,
                final_lr_fraction: 0.1,
                betas: [0.9, 0.95],
                eps: 1e-8,
                weight_decay: 0.0,
                grad_clip: 1.0,
                seed: 0,
                log_every: 1,
                eval_sequences: 200,
            }
        );
    }

    #[test]
    fn reads_every_key() {
        let recipe = parse(FULL, &[]).unwrap();
        assert_eq!(recipe.student.head_dim, Some(6));
        assert_eq!(recipe.lti.map.kind(Slot::Query), MapKind::Factored);
        assert_eq!(recipe.lti.map.kind(Slot::Out), MapKind::General);
        assert_eq!(recipe.lti.layers, Layers::These(vec![0, 2]));
        assert_eq!(recipe.lti.train, Trained::Projections);
        assert_eq!(recipe.lti.precision, KernelPrecision::High);
        assert_eq!(recipe.loss.temperature, 2.0);
        assert_eq!(recipe.train.grad_clip, f64::INFINITY);
        assert_eq!(recipe.train.betas, [0.8, 0.99]);
    }

    #[test]
    fn resolves_paths_against_the_folder_of_the_file() {
        let recipe = parse(LEAST, &["data.valid=['v.txt']"]).unwrap();
        assert_eq!(recipe.teacher.path, Path::new("/recipes/../teacher"));
        assert_eq!(
            recipe.data.train,
            [Path::new("/recipes/train.txt"), Path::new("/abs/more.txt")]
        );
        assert_eq!(recipe.data.valid, [Path::new("/recipes/v.txt")]);
    }

    #[test]
    fn reads_what_it_writes() {
        for text in [LEAST, FULL] {
            let recipe = parse(text, &[]).unwrap();
            assert_eq!(parse(&recipe.to_toml().unwrap(), &[]).unwrap(), recipe);
        }
    }

    #[test]
    #[cfg(unix)]
    fn cannot_write_a_path_that_is_no_unicode() {
        use std::os::unix::ffi::OsStringExt;

        let mut recipe = parse(LEAST, &[]).unwrap();
        recipe.teacher.path = std::ffi::OsString::from_vec(vec![0xff]).into();
        assert!(matches!(recipe.to_toml(), Err(RecipeError::Write { .. })));
    }

    #[test]
    fn overrides_win_over_the_file() {
        let overrides = [
            "lti.start=lecun",
            "loss.alpha=0.5",
            "train.steps = 7",
            "train.steps=8",
        ];
        let recipe = parse(LEAST, &overrides).unwrap();
        assert_eq!(recipe.lti.start, Start::Lecun);
        assert_eq!((recipe.loss.alpha, recipe.train.steps), (0.5, 8));
        assert!(matches!(refused("steps=3"), RecipeError::Override { .. }));
    }

    #[test]
    fn loads_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("half.toml");
        assert!(matches!(
            Recipe::load(&path, &[]),
            Err(RecipeError::Read { .. })
        ));
        fs::write(&path, LEAST).unwrap();
        let recipe = Recipe::load(&path, &[]).unwrap();
        assert_eq!(recipe.data.train[0], dir.path().join("train.txt"));
        fs::write(&path, "[teacher").unwrap();
        assert!(matches!(
            Recipe::load(&path, &[]),
            Err(RecipeError::Syntax { .. })
        ));
    }

    #[test]
    fn names_unknown_keys_and_the_nearest_known() {
        let text = refused("train.batchsize=3").to_string();
        for part in [
            "/recipes/half.toml",
            "`batchsize`",
            "[train]",
            "`batch_size`",
        ] {
            assert!(text.contains(part), "{text}");
        }
        let text = refused("lti.zzz=3").to_string();
        assert!(
            text.contains("the keys are start, map, layers, train, precision"),
            "{text}"
        );
        // Known, but in another section.
        assert!(
            matches!(refused("loss.steps=3"), RecipeError::UnknownKey { section, .. }
            if section == "loss")
        );
        assert!(matches!(refused("lti.map={ quer = 'general' }"),
            RecipeError::UnknownKey { section, suggestion: Some(name), .. }
            if section == "lti.map" && name == "query"));
        assert!(matches!(refused("trian.steps=3"),
            RecipeError::UnknownSection { suggestion: Some(name), .. } if name == "train"));
    }

    #[test]
    fn names_unknown_values() {
        for (setting, key, nearest) in [
            ("lti.start=group", "lti.start", Some("grouped")),
            ("lti.map=factord", "lti.map", Some("factored")),
            ("lti.train=everything", "lti.train", None),
            ("lti.layers=al", "lti.layers", Some("all")),
            ("lti.precision=hi", "lti.precision", Some("high")),
        ] {
            match refused(setting) {
                RecipeError::UnknownValue {
                    key: k, suggestion, ..
                } => {
                    assert_eq!((k.as_str(), suggestion.as_deref()), (key, nearest));
                }
                error => panic!("{error}"),
            }
        }
    }

    #[test]
    fn names_missing_keys() {
        for (line, expected) in [
            ("path = \"../teacher\"", "teacher.path"),
            ("heads = 4\n", "student.heads"),
            ("kv_heads = 2", "student.kv_heads"),
            ("steps = 200", "train.steps"),
            ("valid = [\"../valid.txt\"]", "data.valid"),
        ] {
            let error = parse(&LEAST.replacen(line, "\n", 1), &[]).unwrap_err();
            assert!(matches!(&error, RecipeError::Missing { key, .. } if key == expected));
        }
        assert!(
            matches!(parse("", &[]), Err(RecipeError::Missing { key, .. }) if key == "teacher")
        );
    }

    #[test]
    fn names_values_of_the_wrong_type() {
        for (setting, expected) in [
            ("train.steps=many", "train.steps"),
            ("train.steps=-1", "train.steps"),
            ("train.betas=[0.9]", "train.betas"),
            ("lti.layers=3", "lti.layers"),
            ("data.train=train.txt", "data.train"),
        ] {
            let error = refused(setting);
            assert!(matches!(&error, RecipeError::WrongType { key, .. } if key == expected));
        }
    }

    #[test]
    fn checks_every_range() {
        for setting in [
            "teacher.path=",
            "lti.layers=[1, 0, 1]",
            "loss.alpha=1.1",
            "loss.alpha=-0.1",
            "loss.alpha=nan",
            "loss.temperature=0",
            "loss.temperature=inf",
            "loss.temperature=nan",
            "loss.chunk_tokens=0",
            "train.steps=0",
            "train.batch_size=0",
            "train.seq_len=1",
            "train.learning_rate=0",
            "train.learning_rate=inf",
            "train.warmup_fraction=1.5",
            "train.final_lr_fraction=nan",
            "train.betas=[0.9, 1.0]",
            "train.betas=[nan, 0.9]",
            "train.eps=0",
            "train.eps=nan",
            "train.weight_decay=-1",
            "train.weight_decay=inf",
            "train.grad_clip=0",
            "train.grad_clip=nan",
            "train.log_every=0",
            "train.eval_sequences=0",
            "data.train=[]",
            "data.valid=['']",
        ] {
            let error = refused(setting);
            let (expected, _) = setting.split_once('=').unwrap();
            assert!(
                matches!(&error, RecipeError::OutOfRange { key, .. } if *key == expected),
                "{setting}: {error}"
            );
        }
    }
}
