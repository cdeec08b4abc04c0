//! The recipe of a distillation: what a TOML file says, with every default filled in.
//!
//! A recipe is read strictly. Unknown keys are errors with a suggestion, numbers are checked for
//! their range, relative paths are resolved against the folder of the file. What needs the
//! teacher's configuration to be checked (head counts, layers, lengths) is the business of
//! [`Plan`](crate::plan::Plan).

mod check;
mod choice;
pub(crate) mod divergence;
mod error;
mod overrides;
mod precision;
mod rate;
pub(crate) mod schedule;
mod sections;
mod seq_lens;
mod shard_size;
pub(crate) mod suggest;
mod weights;

use std::path::{Path, absolute};

use burn_lti::calibration::Budget;
use burn_lti::files::read_text_at_most;
use serde::{Deserialize, Serialize};
use toml::Table;

use crate::config::{ConfigError, LlamaConfig, hub_repository, model_folder};
use crate::data::with_home;
use crate::hf::WeightType;

pub use choice::{
    AxisMaps, CalibrationText, Coordinates, KeptLayers, KeptVocabulary, LayerPairs, Layers,
    MapChoice, OfText, Optimizer, Phase2Trained, Rotary, Trained,
};
pub use error::RecipeError;
pub use precision::Precision;
pub use rate::LearningRate;
pub use sections::{
    CalibrationSection, DataSection, ExportSection, FeatureSection, GrowSection, LossSection,
    LtiSection, Phase2Section, Plateau, StudentSection, Target, TeacherSection, TrainSection,
};
pub use seq_lens::SeqLens;
pub use shard_size::ShardSize;
pub use weights::WeightsSection;

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
    /// Whether the command makes a page of the run at its end.
    #[serde(default = "has_report")]
    pub report: bool,
    /// The model to learn from.
    pub teacher: TeacherSection,
    /// The attention geometry of the model to make.
    pub student: StudentSection,
    /// How the student's attention is made out of the teacher's.
    #[serde(default)]
    pub lti: LtiSection,
    /// How a calibrated start is calculated.
    #[serde(default)]
    pub calibration: CalibrationSection,
    /// What the student is trained towards.
    #[serde(default)]
    pub loss: LossSection,
    /// How it is trained.
    pub train: TrainSection,
    /// How its training goes on once the maps are folded away. Default: it does not.
    pub phase2: Option<Phase2Section>,
    /// What is frozen, copied and shared otherwise than by default.
    #[serde(default)]
    pub weights: WeightsSection,
    /// How the student is written.
    #[serde(default)]
    pub export: ExportSection,
    /// On what it is trained and measured.
    pub data: DataSection,
}

impl Recipe {
    /// The longest file of one.
    const MOST_BYTES: u64 = 1 << 20;

    /// A short training has at least a token for so many parameters.
    const PARAMETERS_A_TOKEN: usize = 10;

    /// The configuration of its teacher, read over the fields that `teacher.accept` names.
    ///
    /// # Errors
    /// [`ConfigError`] of what `config.json` says, or of a field that needs no acceptance.
    pub fn teacher_config(&self) -> Result<LlamaConfig, ConfigError> {
        let TeacherSection { path, accept, .. } = &self.teacher;
        let config = LlamaConfig::from_dir_accepting(path, accept)?;
        LlamaConfig::check_accepted(accept, &[&config])?;
        Ok(config)
    }

    /// What its training changes: see [`LtiSection::train`].
    pub fn trained(&self) -> Trained {
        let has_maps = self.phase2.is_some()
            || self.lti.grow.is_some()
            || self.lti.coordinates.is_some()
            || self.lti.map.has_other_axes()
            || self.teacher.dtype != WeightType::F32;
        self.lti.train.unwrap_or(match has_maps {
            true => Trained::Maps,
            false => Trained::All,
        })
    }

    /// Where the steps of a phase go that trains this at that rate: unless the recipe says so, weights take
    /// balanced steps where their rates are measured.
    pub fn optimizer(&self, trained: Trained, learning_rate: LearningRate) -> Optimizer {
        let is_balanced = trained != Trained::Maps && learning_rate == LearningRate::Auto;
        self.train.optimizer.unwrap_or(match is_balanced {
            true => Optimizer::Balanced,
            false => Optimizer::Adam,
        })
    }

    /// For how much training the start is calibrated: unless it says so, where all of the student's `parameters`
    /// train, for a long one on at least a token each, and for a short one on at least a tenth of that.
    pub fn budget(&self, parameters: usize) -> Budget {
        let tokens = self
            .train
            .steps
            .saturating_mul(self.train.tokens_per_step());
        let follows = match self.trained() {
            Trained::All if tokens >= parameters => Budget::Long,
            Trained::All if tokens.saturating_mul(Self::PARAMETERS_A_TOKEN) >= parameters => {
                Budget::Short
            }
            _ => Budget::None,
        };
        self.calibration.budget.unwrap_or(follows)
    }

    /// In which coordinates its maps learn.
    pub fn coordinates(&self) -> Coordinates {
        self.lti
            .coordinates
            .unwrap_or(match self.train.learning_rate {
                LearningRate::Auto => Coordinates::Whitened,
                LearningRate::Number(_) => Coordinates::Plain,
            })
    }

    /// Reads the recipe at `path`, changed by `overrides` of the form `section.key=value`.
    ///
    /// # Errors
    /// [`RecipeError::Read`] if the file cannot be read, else as [`Self::parse`].
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, RecipeError> {
        let read = || Ok((read_text_at_most(path, Self::MOST_BYTES)?, absolute(path)?));
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
        check::check(&recipe, path)?;
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

    fn resolve_paths(&mut self, folder: &Path) {
        let Self { teacher, data, .. } = self;
        let files = data.train.iter_mut().chain(&mut data.valid);
        let model = model_folder(&teacher.path);
        let is_of_hub = model != teacher.path || hub_repository(&model).is_some();
        teacher.path = match is_of_hub {
            true => model,
            false => folder.join(with_home(&model)),
        };
        for path in files.chain(&mut teacher.cache) {
            *path = folder.join(with_home(path));
        }
    }
}

const fn has_report() -> bool {
    true
}

#[cfg(test)]
mod tests;
