//! What a recipe means for a teacher, worked out from configurations alone.
//!
//! A [`Plan`] says for each tensor of the student where it comes from and whether it is trained,
//! and what the whole costs. No tensor is made for it, so it is there at once, and every mistake of the
//! recipe is found by it.

mod check;
mod cost;
mod error;
mod expectation;
mod planner;
mod prediction;
pub(crate) mod report;
mod student;
mod text;
mod vocabulary;

use burn_lti::blueprint::Blueprint;
use burn_lti::decoder::LtiSpec;
use burn_lti::loss::{Divergence, FeatureDistance, Schedule};
use burn_lti::map::Start;
use burn_lti::train::LayerPair;
use serde::Serialize;

use crate::config::LlamaConfig;
use crate::recipe::{
    CalibrationSection, GrowSection, KeptLayers, MapChoice, Phase2Trained, Plateau, Precision,
    Recipe, Rotary, SeqLens, TrainSection, Trained, divergence, schedule,
};

pub use cost::{PartCost, StepCosts, StepMemory};
pub use error::PlanError;
pub use expectation::Expectation;
pub use prediction::{DeviceSpeed, PredictedPart, Prediction};

use check::{
    check_nothing_new, check_other_axes, check_ranks, check_refit, check_seq_len, check_shape,
    check_shape_is_found, check_start, check_trained_type, check_vocabulary,
    check_weights_of_start, kept_layers, plan_feature, resolve_layers, student_config,
};
use cost::Costs;
use planner::Planner;
use student::{Blueprints, lti_spec, planned};
pub(crate) use student::{map_name, sites};
pub use text::TextPlan;
pub use vocabulary::VocabularyPlan;

/// The checked plan of a distillation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// The teacher, on the tokens that its student keeps.
    pub teacher: LlamaConfig,
    /// The student: the teacher with the recipe's heads.
    pub student: LlamaConfig,
    /// The teacher's layers that the student's stand for, ascending, if it has fewer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept_layers: Option<Vec<usize>>,
    /// Whether they are still to be chosen, and those here only stand in for as many.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub chooses_layers: bool,
    /// The student's layers with learned attention, ascending.
    pub layers: Vec<usize>,
    /// The form of the maps.
    pub map: MapChoice,
    /// Whether maps of query and key keep apart what the rotary embedding keeps apart.
    pub rotary: Rotary,
    /// How their pairs join, if not from the first step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grow: Option<GrowSection>,
    /// Where the maps begin.
    pub start: Start,
    /// How that is calculated from text, if it is, and for how much training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationSection>,
    /// What training changes.
    pub trained: Trained,
    /// What the student is trained towards.
    pub loss: LossPlan,
    /// How training goes on.
    pub training: TrainingPlan,
    /// The training after the maps are folded away, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase2: Option<PhasePlan>,
    /// What a smaller vocabulary keeps and saves, if it was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vocabulary: Option<VocabularyPlan>,
    /// How much text there is, if it was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<TextPlan>,
    /// What the training may bring, if any like it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expectation: Option<Expectation>,
    /// How the student learns, for the toolkit.
    #[serde(skip)]
    pub spec: LtiSpec,
    /// What becomes of each tensor of the student while it has maps.
    #[serde(skip)]
    pub with_maps: Blueprint,
    /// The same once they are folded away.
    #[serde(skip)]
    pub without_maps: Blueprint,
    /// Every tensor of the student while it is trained, in the order of the forward pass.
    pub tensors: Vec<PlannedTensor>,
    /// Sizes and costs.
    pub totals: Totals,
    /// What a training step costs, part by part; of phase 1, if there are two.
    pub costs: StepCosts,
}

/// What a student is trained towards.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LossPlan {
    /// How the distributions of both models are compared.
    #[serde(serialize_with = "divergence::serialize")]
    pub divergence: Divergence,
    /// Weight of the teacher's distribution against the text itself.
    #[serde(serialize_with = "schedule::serialize")]
    pub alpha: Schedule,
    /// Divides the logits of both models.
    #[serde(serialize_with = "schedule::serialize")]
    pub temperature: Schedule,
    /// The loss between layers of both models, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feature: Option<FeaturePlan>,
}

/// A loss between layers of both models.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FeaturePlan {
    /// Its weight in the loss.
    #[serde(serialize_with = "schedule::serialize")]
    pub weight: Schedule,
    /// How two layers are compared.
    pub kind: FeatureDistance,
    /// The layers compared, all of which there are.
    pub pairs: Vec<LayerPair>,
    /// Whether the student's side goes through a linear map first, which is learned and thrown away.
    /// It is no part of the student, and counted nowhere here.
    pub projector: bool,
}

/// How training goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TrainingPlan {
    /// Optimizer steps, if none ends it before.
    pub steps: usize,
    /// Sequences in a step, of the shortest length.
    pub batch_size: usize,
    /// Tokens in a sequence, a number or the lengths that take turns.
    pub seq_len: SeqLens,
    /// In which projections are multiplied.
    pub precision: Precision,
    /// Micro-batches in which a step's sequences are read.
    pub accumulate: usize,
    /// Steps from one evaluation on held-out text to the next.
    pub eval_every: usize,
    /// Evaluations without a better held-out KL before training ends early, if it may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<usize>,
    /// Checkpoints, if any are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoints: Option<CheckpointPlan>,
}

/// Which checkpoints are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CheckpointPlan {
    /// Steps from one to the next.
    pub every: usize,
    /// The most that are kept.
    pub keep: usize,
}

/// The training after the maps are folded away: that of an ordinary model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PhasePlan {
    /// What it changes.
    pub train: Phase2Trained,
    /// Optimizer steps.
    pub steps: usize,
    /// When phase 1 ends early, if it may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plateau: Option<Plateau>,
    /// The tensors that it trains, by the Hugging Face names of the student without maps, in the
    /// order of the forward pass: the projections that had maps and what else phase 1 trained, or all.
    pub trained: Vec<String>,
    /// Their parameters.
    pub trainable_parameters: usize,
    /// Cost of a step.
    pub step_flops: StepFlops,
}

/// A tensor of the student while it is trained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedTensor {
    /// Its Hugging Face name; the tensors of a map take the place of `weight` in it, as in
    /// `model.layers.0.self_attn.q_proj.right.a`.
    pub name: String,
    /// Its shape: that of Hugging Face (`Linear` weights are `[out, in]`), and for `a`, `b`, `w`
    /// and `c` that of the map.
    pub shape: Vec<usize>,
    /// Where its first values come from.
    pub origin: Origin,
    /// Whether training changes it.
    pub trained: bool,
}

impl PlannedTensor {
    /// Number of elements.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Where the first values of a tensor come from. `from` is the name of a teacher tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Origin {
    /// Part of a map: its values are the start's.
    Map,
    /// The teacher's own kernel, `C`, which the map is applied to.
    TeacherKernel {
        /// The teacher's projection.
        from: String,
    },
    /// Computed once, by the start, from the teacher's tensor; it is no map.
    Start {
        /// The teacher's tensor.
        from: String,
    },
    /// The teacher's tensor, unchanged.
    Copied {
        /// The teacher's tensor.
        from: String,
    },
    /// Nothing of the teacher fits: random.
    New,
    /// It is one variable with another tensor of the student.
    Shared {
        /// The student's tensor.
        with: String,
    },
}

/// Sizes and costs of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Totals {
    /// Parameters of the teacher, all of its vocabulary among them.
    pub teacher_parameters: usize,
    /// Parameters of the student once its maps are folded away.
    pub student_parameters: usize,
    /// Parameters of the maps, with the biases learned beside them.
    pub map_parameters: usize,
    /// Parameters that training changes.
    pub trained_parameters: usize,
    /// Parameters of the student, teacher kernels included, that training leaves alone.
    pub frozen_parameters: usize,
    /// Key/value cache of the teacher, bytes per token in float32.
    pub teacher_kv_cache_bytes_per_token: usize,
    /// Key/value cache of the student, bytes per token in float32.
    pub student_kv_cache_bytes_per_token: usize,
    /// Cost of a training step; of phase 1, if there are two.
    pub step_flops: StepFlops,
}

/// Floating-point operations of one training step, two for each multiply-add, over
/// `tokens = batch_size * seq_len` tokens; with several lengths the mean over them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepFlops {
    /// The teacher's forward pass: [`LlamaConfig::forward_flops`], or 0 where a step reads the
    /// teacher's cached top-k and no layer of the teacher.
    pub teacher_forward: f64,
    /// The student's forward pass, with its kernels ready: [`LlamaConfig::forward_flops`].
    pub student_forward: f64,
    /// The student's backward pass: as much as the forward pass for the gradient of the input of
    /// every `Linear`, twice the forward pass for scores and values (both factors have a
    /// gradient), and `2 * tokens * elements` for the gradient of every kernel that is trained or
    /// made by a map. (What is saved where no trained tensor lies below is not subtracted.)
    pub student_backward: f64,
    /// Making the kernels out of their maps, and the gradients of the maps, once for each
    /// micro-batch; 0 without maps.
    ///
    /// With `d` the features of the weight's other side, `d_model` for a map of heads or units, `x, y` = teacher heads
    /// and head size, `u, v` = student's, in multiply-adds: a general map costs `d x y u v`, and its gradient the same. A factored map
    /// takes the cheaper order: heads first, `d x y u + d u y v`; head size first,
    /// `d x y v + d x v u`. The first product's gradient costs it once again (`C` needs none),
    /// the second's twice. Each pair of a sum costs as much; where all together cost more than a general
    /// map, they are summed up to one first, for `x y u v` a pair, and twice that for the gradient. A rotary
    /// map costs `4 d x u` for each pair that turns, `d x i u j` for `i` and `j` features that do not, and its
    /// gradient the same. Where both
    /// sides of a weight are mapped, that comes first after which less is left to do, and what the other is applied
    /// to has a gradient too, for the cost of its first product.
    pub kernel_contraction: f64,
}

impl StepFlops {
    /// Of the whole step.
    pub fn total(&self) -> f64 {
        let Self {
            teacher_forward,
            student_forward,
            student_backward,
            kernel_contraction,
        } = self;
        teacher_forward + student_forward + student_backward + kernel_contraction
    }
}

impl Plan {
    /// Checks `recipe` against the configuration of its teacher and works out what it means. With a smaller vocabulary
    /// that is its teacher's [on the tokens that are kept](LlamaConfig::with_vocabulary), which
    /// [`distill::plan`](crate::distill::plan) finds.
    ///
    /// # Errors
    /// Any variant of [`PlanError`]; the message names the key of the recipe and what it may be.
    pub fn new(recipe: &Recipe, teacher: &LlamaConfig) -> Result<Self, PlanError> {
        Self::with_layers(recipe, teacher, None)
    }

    /// The same student with maps of heads alone, where `recipe`, of which this is the plan, has others; `None` where it
    /// has none.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(crate) fn with_maps_of_heads(&self, recipe: &Recipe) -> Result<Option<Self>, PlanError> {
        if !recipe.lti.map.has_other_axes() {
            return Ok(None);
        }
        let mut recipe = recipe.clone();
        recipe.lti.map = recipe.lti.map.of_heads();
        recipe.lti.train = Some(Trained::Maps);
        // What they freeze may be no part of it, and nothing trains here.
        recipe.weights.freeze.clear();
        Self::with_layers(&recipe, &self.teacher, self.kept_layers.as_deref()).map(Some)
    }

    /// The same, with those layers of the teacher's that were chosen where the recipe has only their number.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_layers(
        recipe: &Recipe,
        teacher: &LlamaConfig,
        chosen: Option<&[usize]>,
    ) -> Result<Self, PlanError> {
        check_shape_is_found(recipe)?;
        check_vocabulary(recipe, teacher)?;
        let kept = kept_layers(recipe, teacher, chosen)?;
        let student = student_config(recipe, teacher, &kept)?;
        check_shape(recipe, teacher, &student)?;
        check_start(recipe.lti.start, &student, teacher)?;
        check_ranks(&recipe.lti.map, &student, teacher)?;
        check_seq_len(&recipe.train.seq_len, teacher)?;
        let layers = resolve_layers(&recipe.lti.layers, student.num_hidden_layers)?;
        check_weights_of_start(recipe)?;
        check_refit(recipe, teacher)?;
        check_other_axes(recipe, teacher, &student)?;
        let spec = lti_spec(recipe, teacher, &student, &layers);
        let Blueprints {
            with_maps,
            without_maps,
        } = Blueprints::new(recipe, teacher, &student, &kept, &spec)?;
        let tensors_of = |trained| match trained {
            Trained::Maps => planned(recipe, &layers, &kept, &with_maps, teacher, &student),
            Trained::Projections | Trained::All => {
                planned(recipe, &layers, &kept, &without_maps, teacher, &student)
            }
        };
        let planner = Planner {
            recipe,
            teacher,
            student: &student,
            spec: &spec,
            trained: recipe.trained(),
        };
        let tensors = tensors_of(recipe.trained());
        check_trained_type(recipe.teacher.dtype, recipe.trained(), &tensors)?;
        check_nothing_new(recipe.lti.start, &tensors)?;
        let (totals, flops) = (planner.totals(&tensors), planner.step_flops(&tensors));
        let costs = Costs::new(&planner, &tensors, &flops).step();
        let loss = &recipe.loss;
        let feature = loss.feature.as_ref();
        let feature = feature.map(|feature| plan_feature(feature, &student, teacher, &kept));
        let phase2 = recipe.phase2.as_ref().map(|section| {
            let planner = planner.in_phase2(section);
            planner.phase2(section, &tensors_of(planner.trained))
        });
        Ok(Self {
            teacher: teacher.clone(),
            chooses_layers: chosen.is_none()
                && matches!(recipe.student.layers, Some(KeptLayers::Count(count)) if count != teacher.num_hidden_layers),
            kept_layers: (kept.len() != teacher.num_hidden_layers).then_some(kept),
            layers: layers.clone(),
            map: recipe.lti.map,
            rotary: recipe.lti.rotary,
            grow: recipe.lti.grow,
            start: recipe.lti.start,
            calibration: (recipe.lti.start == Start::Calibrated).then_some(CalibrationSection {
                budget: Some(recipe.budget(totals.student_parameters)),
                ..recipe.calibration
            }),
            trained: recipe.trained(),
            loss: LossPlan {
                divergence: loss.divergence,
                alpha: loss.alpha,
                temperature: loss.temperature,
                feature: feature.transpose()?,
            },
            training: plan_training(&recipe.train),
            phase2: phase2.transpose()?,
            vocabulary: None,
            text: None,
            expectation: Expectation::of(recipe).filter(|_| student.is_as_deep_and_wide(teacher)),
            spec,
            with_maps,
            without_maps,
            tensors,
            totals,
            costs,
            student,
        })
    }

    /// The tensors that start at random because nothing of the teacher fits.
    pub fn new_tensors(&self) -> impl Iterator<Item = &PlannedTensor> {
        self.tensors
            .iter()
            .filter(|tensor| tensor.origin == Origin::New)
    }
}

fn plan_training(train: &TrainSection) -> TrainingPlan {
    TrainingPlan {
        steps: train.steps,
        batch_size: train.batch_size,
        seq_len: train.seq_len.clone(),
        precision: train.precision,
        accumulate: train.accumulate,
        eval_every: train.eval_every(train.steps),
        patience: train.patience,
        checkpoints: train.checkpoint_every.map(|every| CheckpointPlan {
            every,
            keep: train.keep_checkpoints,
        }),
    }
}

#[cfg(test)]
mod tests;
