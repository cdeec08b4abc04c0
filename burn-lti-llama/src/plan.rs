//! What a recipe means for a teacher, worked out from configurations alone.
//!
//! A [`Plan`] says for each tensor of the student where it comes from and whether it is trained,
//! and what the whole costs. No tensor is made for it, so it is there at once, and behind it
//! nothing about the recipe can be wrong any more.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use burn_lti::dense::{ContractionCost, HeadGrid, MapKind, Slot, contraction_cost, kernel_shape};
use burn_lti::loss::{Divergence, FeatureDistance, Schedule};
use burn_lti::start::{MapSpec, Start};
use burn_lti::train::LayerPair;
use regex::Regex;
use serde::Serialize;
use thiserror::Error;

use crate::config::{ConfigError, LlamaConfig, divisors, list, projection_name};
use crate::hf::WeightType;
use crate::recipe::{
    FeatureSection, LayerPairs, Layers, MapChoice, Phase2Section, Phase2Trained, Plateau, Recipe,
    TrainSection, Trained, WeightsSection, divergence, schedule,
};

/// The checked plan of a distillation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// The teacher.
    pub teacher: LlamaConfig,
    /// The student: the teacher with the recipe's heads.
    pub student: LlamaConfig,
    /// The layers with learned attention, ascending.
    pub layers: Vec<usize>,
    /// The form of the maps.
    pub map: MapChoice,
    /// Where the maps begin.
    pub start: Start,
    /// What training changes.
    pub trained: Trained,
    /// What the student is trained towards.
    pub loss: LossPlan,
    /// How training goes on.
    pub training: TrainingPlan,
    /// The training after the maps are folded away, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase2: Option<PhasePlan>,
    /// Every tensor of the student while it is trained, in the order of the forward pass.
    pub tensors: Vec<PlannedTensor>,
    /// Sizes and costs.
    pub totals: Totals,
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
    /// Sequences in a step.
    pub batch_size: usize,
    /// Tokens in a sequence.
    pub seq_len: usize,
    /// Micro-batches in which a step's sequences are read.
    pub accumulate: usize,
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
    /// Evaluations, one at each, without a better held-out KL before training ends early, if it may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<usize>,
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
    /// `model.layers.0.self_attn.q_proj.a`.
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
    /// Computed once, by the start's map, from the teacher's tensor; no map is kept.
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
}

/// Sizes and costs of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Totals {
    /// Parameters of the teacher.
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
/// `tokens = batch_size * seq_len` tokens.
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
    /// With `d` = `d_model`, `x, y` = teacher heads and head size, `u, v` = student's, in
    /// multiply-adds: a general map costs `d x y u v`, and its gradient the same. A factored map
    /// takes the cheaper order: heads first, `d x y u + d u y v`; head size first,
    /// `d x y v + d x v u`. The first product's gradient costs it once again (`C` needs none),
    /// the second's twice.
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
    /// Checks `recipe` against the configuration of its teacher and works out what it means.
    ///
    /// # Errors
    /// Any variant of [`PlanError`]; the message names the key of the recipe and what it may be.
    pub fn new(recipe: &Recipe, teacher: &LlamaConfig) -> Result<Self, PlanError> {
        let student = student_config(recipe, teacher)?;
        check_start(recipe.lti.start, &student, teacher)?;
        let (seq_len, max) = (recipe.train.seq_len, teacher.max_position_embeddings);
        if seq_len > max {
            return Err(PlanError::SeqLen { seq_len, max });
        }
        let layers = resolve_layers(&recipe.lti.layers, teacher.num_hidden_layers)?;
        let frozen = frozen(&recipe.weights);
        let planner = Planner {
            recipe,
            teacher,
            student: &student,
            layers: &layers,
            frozen: &frozen,
            trained: recipe.lti.train,
        };
        let tensors = planner.tensors();
        check_frozen(&frozen, &tensors)?;
        check_trained_type(recipe.teacher.dtype, recipe.lti.train, &tensors)?;
        let totals = planner.totals(&tensors);
        let loss = &recipe.loss;
        let feature = loss.feature.as_ref();
        let feature = feature.map(|feature| plan_feature(feature, &student, teacher));
        let phase2 = recipe.phase2.as_ref().map(|phase2| planner.phase2(phase2));
        Ok(Self {
            teacher: teacher.clone(),
            layers: layers.clone(),
            map: recipe.lti.map,
            start: recipe.lti.start,
            trained: recipe.lti.train,
            loss: LossPlan {
                divergence: loss.divergence,
                alpha: loss.alpha,
                temperature: loss.temperature,
                feature: feature.transpose()?,
            },
            training: plan_training(&recipe.train),
            phase2: phase2.transpose()?,
            tensors,
            totals,
            student,
        })
    }

    /// A report for people; what [`fmt::Display`] prints.
    pub fn render(&self) -> String {
        self.to_string()
    }

    /// The tensors that start at random because nothing of the teacher fits.
    pub fn new_tensors(&self) -> impl Iterator<Item = &PlannedTensor> {
        self.tensors
            .iter()
            .filter(|tensor| tensor.origin == Origin::New)
    }
}

/// Why a recipe does not suit its teacher.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A size of the student is zero.
    #[error("{key} is 0: give the student at least one")]
    Zero {
        /// The key of the recipe.
        key: &'static str,
    },
    /// The query heads cannot be shared out among the key/value heads.
    #[error(
        "student.heads is {heads}, no multiple of student.kv_heads, which is {kv_heads}: set \
         student.kv_heads to one of {}",
        list(allowed)
    )]
    KvHeads {
        /// Query heads of the student.
        heads: usize,
        /// Key/value heads of the student.
        kv_heads: usize,
        /// The key/value heads that would do.
        allowed: Vec<usize>,
    },
    /// The rotary embedding turns pairs of features.
    #[error("student.head_dim is {head_dim}: make it even, for rotary pairs")]
    OddHeadDim {
        /// Head size of the student.
        head_dim: usize,
    },
    /// The student is no Llama that could be saved.
    #[error("[student] makes no valid Llama: choose sizes nearer to the teacher's")]
    Student {
        /// What is wrong with it.
        source: ConfigError,
    },
    /// The grouped start shares the teacher's heads out evenly among the student's.
    #[error(
        "{key} is {student}, which does not divide the teacher's {teacher}: with lti.start = \
         \"grouped\", set it to one of {}; any number goes with lti.start = \"lecun\"",
        list(allowed)
    )]
    GroupedHeads {
        /// The key of the recipe.
        key: &'static str,
        /// Heads of the student.
        student: usize,
        /// Heads of the teacher.
        teacher: usize,
        /// The heads that would do.
        allowed: Vec<usize>,
    },
    /// The grouped start keeps the features of a head as they are.
    #[error(
        "student.head_dim is {student}, but lti.start = \"grouped\" keeps the teacher's \
         {teacher}: set student.head_dim = {teacher}, or lti.start = \"lecun\""
    )]
    GroupedHeadDim {
        /// Head size of the student.
        student: usize,
        /// Head size of the teacher.
        teacher: usize,
    },
    /// What trains would be held in half precision, in which small steps are lost.
    #[error(
        "teacher.dtype is \"{dtype}\", but {tensor} would train in it, and an optimizer's small steps \
         are lost in half precision: set teacher.dtype = \"float32\", or let only maps train \
         (lti.train = \"maps\" with lti.layers = \"all\")"
    )]
    TrainedInHalf {
        /// The float type.
        dtype: WeightType,
        /// The first tensor that would train in it.
        tensor: String,
    },
    /// A second phase would train in half precision.
    #[error(
        "teacher.dtype is \"{dtype}\", but [phase2] would train {tensor} in it, and an optimizer's \
         small steps are lost in half precision: set teacher.dtype = \"float32\", or leave [phase2] out"
    )]
    Phase2InHalf {
        /// The float type.
        dtype: WeightType,
        /// The first tensor that would train in it.
        tensor: String,
    },
    /// The sequences are longer than the teacher can read.
    #[error(
        "train.seq_len is {seq_len}, but the teacher's max_position_embeddings is {max}: set \
         train.seq_len to {max} or less"
    )]
    SeqLen {
        /// Tokens in a sequence.
        seq_len: usize,
        /// The most that the teacher reads.
        max: usize,
    },
    /// No layer is to have maps.
    #[error("lti.layers is empty: name at least one layer, or set lti.layers = \"all\"")]
    NoLayers,
    /// The teacher has no such layer.
    #[error(
        "lti.layers names layer {layer}, but the teacher has {layers}: use numbers from 0 to {}",
        layers - 1
    )]
    LayerOutOfRange {
        /// The layer named.
        layer: usize,
        /// Layers of the teacher.
        layers: usize,
    },
    /// A pattern of what does not train matches no tensor.
    #[error(
        "weights.freeze: no tensor of the student has `{pattern}` in its name: `burn-lti plan` lists the \
         names"
    )]
    FreezesNothing {
        /// The pattern.
        pattern: String,
    },
    /// Everything is frozen.
    #[error("weights.freeze leaves nothing to train: take a pattern out")]
    NothingTrains,
    /// A feature loss names a layer that is not there.
    #[error(
        "loss.feature.pairs names layer {layer} of the {model}, which has {layers}: use numbers from 0 \
         to {}, as [student, teacher]",
        layers - 1
    )]
    FeatureLayer {
        /// The model: teacher or student.
        model: &'static str,
        /// The layer named.
        layer: usize,
        /// Layers of the model.
        layers: usize,
    },
}

/// The teacher with the recipe's heads.
fn student_config(recipe: &Recipe, teacher: &LlamaConfig) -> Result<LlamaConfig, PlanError> {
    let (heads, kv_heads) = (recipe.student.heads, recipe.student.kv_heads);
    let head_dim = recipe.student.head_dim.unwrap_or(teacher.head_dim);
    let sizes = [
        ("student.heads", heads),
        ("student.kv_heads", kv_heads),
        ("student.head_dim", head_dim),
    ];
    if let Some((key, _)) = sizes.into_iter().find(|(_, size)| *size == 0) {
        return Err(PlanError::Zero { key });
    }
    if !head_dim.is_multiple_of(2) {
        return Err(PlanError::OddHeadDim { head_dim });
    }
    let student = LlamaConfig {
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        ..teacher.clone()
    };
    match student.check(Path::new("the student")) {
        Ok(()) => Ok(student),
        Err(ConfigError::KvHeads {
            heads,
            kv_heads,
            allowed,
            ..
        }) => Err(PlanError::KvHeads {
            heads,
            kv_heads,
            allowed,
        }),
        Err(source) => Err(PlanError::Student { source }),
    }
}

/// Maps train in float32 beside any teacher, and so do the biases beside them; nothing else does.
fn check_trained_type(
    dtype: WeightType,
    trained: Trained,
    tensors: &[PlannedTensor],
) -> Result<(), PlanError> {
    let beside_maps = |tensor: &PlannedTensor| {
        trained == Trained::Maps && matches!(tensor.origin, Origin::Map | Origin::Copied { .. })
    };
    let in_half = |tensor: &&PlannedTensor| tensor.trained && !beside_maps(tensor);
    match tensors.iter().find(in_half) {
        Some(tensor) if dtype != WeightType::F32 => Err(PlanError::TrainedInHalf {
            dtype,
            tensor: tensor.name.clone(),
        }),
        _ => Ok(()),
    }
}

/// The grouped start needs heads that share out evenly and a head size that stays.
fn check_start(
    start: Start,
    student: &LlamaConfig,
    teacher: &LlamaConfig,
) -> Result<(), PlanError> {
    if start != Start::Grouped {
        return Ok(());
    }
    for (key, student, teacher) in [
        (
            "student.heads",
            student.num_attention_heads,
            teacher.num_attention_heads,
        ),
        (
            "student.kv_heads",
            student.num_key_value_heads,
            teacher.num_key_value_heads,
        ),
    ] {
        if !teacher.is_multiple_of(student) {
            let allowed = divisors(teacher);
            return Err(PlanError::GroupedHeads {
                key,
                student,
                teacher,
                allowed,
            });
        }
    }
    let (student, teacher) = (student.head_dim, teacher.head_dim);
    if student != teacher {
        return Err(PlanError::GroupedHeadDim { student, teacher });
    }
    Ok(())
}

fn resolve_layers(choice: &Layers, layers: usize) -> Result<Vec<usize>, PlanError> {
    let mut chosen = match choice {
        Layers::All => (0..layers).collect(),
        Layers::These(chosen) => chosen.clone(),
    };
    chosen.sort_unstable();
    match chosen.last() {
        None => Err(PlanError::NoLayers),
        Some(&layer) if layer >= layers => Err(PlanError::LayerOutOfRange { layer, layers }),
        Some(_) => Ok(chosen),
    }
}

fn plan_feature(
    feature: &FeatureSection,
    student: &LlamaConfig,
    teacher: &LlamaConfig,
) -> Result<FeaturePlan, PlanError> {
    let pairs = match &feature.pairs {
        LayerPairs::Same => (0..student.num_hidden_layers)
            .map(|layer| LayerPair::from([layer, layer]))
            .collect(),
        LayerPairs::These(pairs) => pairs.clone(),
    };
    for pair in &pairs {
        for (model, layer, layers) in [
            ("student", pair.student, student.num_hidden_layers),
            ("teacher", pair.teacher, teacher.num_hidden_layers),
        ] {
            if layer >= layers {
                return Err(PlanError::FeatureLayer {
                    model,
                    layer,
                    layers,
                });
            }
        }
    }
    Ok(FeaturePlan {
        weight: feature.weight,
        kind: feature.kind,
        pairs,
        projector: feature.projector,
    })
}

fn plan_training(train: &TrainSection) -> TrainingPlan {
    TrainingPlan {
        steps: train.steps,
        batch_size: train.batch_size,
        seq_len: train.seq_len,
        accumulate: train.accumulate,
        checkpoints: train.checkpoint_every.map(|every| CheckpointPlan {
            every,
            keep: train.keep_checkpoints,
            patience: train.patience,
        }),
    }
}

/// The patterns of what does not train, each of which the recipe has found to be one.
fn frozen(weights: &WeightsSection) -> Vec<Regex> {
    let patterns = weights.freeze.iter();
    patterns
        .filter_map(|pattern| Regex::new(pattern).ok())
        .collect()
}

/// A pattern that freezes nothing is mistyped, and without a tensor that trains there is nothing to do.
fn check_frozen(frozen: &[Regex], tensors: &[PlannedTensor]) -> Result<(), PlanError> {
    let matches = |pattern: &&Regex| tensors.iter().any(|tensor| pattern.is_match(&tensor.name));
    if let Some(pattern) = frozen.iter().find(|pattern| !matches(pattern)) {
        return Err(PlanError::FreezesNothing {
            pattern: pattern.to_string(),
        });
    }
    match tensors.iter().any(|tensor| tensor.trained) {
        true => Ok(()),
        false => Err(PlanError::NothingTrains),
    }
}

/// What the tensors and totals of a phase follow from.
#[derive(Clone, Copy)]
struct Planner<'a> {
    recipe: &'a Recipe,
    teacher: &'a LlamaConfig,
    student: &'a LlamaConfig,
    layers: &'a [usize],
    /// Tensors whose names match one of these anywhere do not train.
    frozen: &'a [Regex],
    trained: Trained,
}

impl Planner<'_> {
    /// Each tensor of the student; the weights of learned projections turn into their maps.
    fn tensors(&self) -> Vec<PlannedTensor> {
        let slots: HashMap<String, (usize, Slot)> = (0..self.student.num_hidden_layers)
            .flat_map(|layer| Slot::ALL.map(|slot| (projection_name(layer, slot), (layer, slot))))
            .collect();
        let mut tensors = Vec::new();
        for (name, shape) in self.student.tensors() {
            let (module, leaf) = name.rsplit_once('.').unwrap_or(("", &name));
            match slots.get(module) {
                Some((layer, slot)) if self.layers.contains(layer) => {
                    self.plan_learned(module, leaf, shape, *slot, &mut tensors);
                }
                Some((_, slot)) if leaf == "weight" || *slot != Slot::Out => {
                    tensors.push(self.plan_kept(name, shape, *slot));
                }
                _ => tensors.push(copied(name, shape, self.trained == Trained::All)),
            }
        }
        for tensor in &mut tensors {
            let is_frozen = self.frozen.iter().any(|name| name.is_match(&tensor.name));
            tensor.trained &= !is_frozen;
        }
        tensors
    }

    /// A tensor of a projection that is learned from the teacher's.
    fn plan_learned(
        &self,
        module: &str,
        leaf: &str,
        shape: Vec<usize>,
        slot: Slot,
        tensors: &mut Vec<PlannedTensor>,
    ) {
        let name = format!("{module}.{leaf}");
        let keeps_map = self.trained == Trained::Maps;
        if leaf == "bias" && slot == Slot::Out {
            // It is as wide as the residual stream, which the student shares with the teacher.
            tensors.push(copied(name, shape, true));
        } else if !keeps_map {
            let origin = Origin::Start { from: name.clone() };
            tensors.push(PlannedTensor {
                name,
                shape,
                origin,
                trained: true,
            });
        } else if leaf == "bias" {
            tensors.push(PlannedTensor {
                name,
                shape,
                origin: Origin::Map,
                trained: true,
            });
        } else {
            let spec = MapSpec {
                kind: slot.kind(),
                map: self.recipe.lti.map.kind(slot),
                teacher: self.teacher.grid(slot),
                student: self.student.grid(slot),
            };
            tensors.push(PlannedTensor {
                name: format!("{module}.c"),
                shape: kernel_shape(spec.kind, self.teacher.hidden_size, spec.teacher).into(),
                origin: Origin::TeacherKernel { from: name },
                trained: false,
            });
            tensors.extend(
                map_shapes(&spec)
                    .into_iter()
                    .map(|(letter, shape)| PlannedTensor {
                        name: format!("{module}.{letter}"),
                        shape,
                        origin: Origin::Map,
                        trained: true,
                    }),
            );
        }
    }

    /// A tensor of a projection in a layer without maps: the teacher's, if its heads fit.
    ///
    /// Heads are compared, not shapes: 4 heads of 16 are as wide as 8 of 8, and something else.
    fn plan_kept(&self, name: String, shape: Vec<usize>, slot: Slot) -> PlannedTensor {
        if self.student.grid(slot) == self.teacher.grid(slot) {
            copied(name, shape, self.trained == Trained::All)
        } else {
            PlannedTensor {
                name,
                shape,
                origin: Origin::New,
                trained: true,
            }
        }
    }

    /// What phase 2 trains is what would train without maps, where they were.
    fn phase2(&self, section: &Phase2Section) -> Result<PhasePlan, PlanError> {
        let planner = Self {
            trained: section.train.into(),
            ..*self
        };
        let tensors = planner.tensors();
        let trained: Vec<_> = tensors.iter().filter(|tensor| tensor.trained).collect();
        match (self.recipe.teacher.dtype, trained.first()) {
            (WeightType::F32, _) | (_, None) => Ok(PhasePlan {
                train: section.train,
                steps: section.steps,
                plateau: section.plateau,
                trained: trained.iter().map(|tensor| tensor.name.clone()).collect(),
                trainable_parameters: trained.iter().map(|tensor| tensor.num_elements()).sum(),
                step_flops: planner.step_flops(&tensors),
            }),
            (dtype, Some(tensor)) => Err(PlanError::Phase2InHalf {
                dtype,
                tensor: tensor.name.clone(),
            }),
        }
    }

    fn totals(&self, tensors: &[PlannedTensor]) -> Totals {
        let count = |wanted: &dyn Fn(&PlannedTensor) -> bool| {
            tensors
                .iter()
                .filter(|t| wanted(t))
                .map(PlannedTensor::num_elements)
                .sum()
        };
        let (teacher, student) = (self.teacher, self.student);
        Totals {
            teacher_parameters: teacher.num_parameters(),
            student_parameters: student.num_parameters(),
            map_parameters: count(&|tensor| tensor.origin == Origin::Map),
            trained_parameters: count(&|tensor| tensor.trained),
            frozen_parameters: count(&|tensor| !tensor.trained),
            teacher_kv_cache_bytes_per_token: teacher.kv_cache_bytes_per_token(),
            student_kv_cache_bytes_per_token: student.kv_cache_bytes_per_token(),
            step_flops: self.step_flops(tensors),
        }
    }

    fn step_flops(&self, tensors: &[PlannedTensor]) -> StepFlops {
        let (teacher, student) = (self.teacher, self.student);
        let TrainSection {
            batch_size,
            seq_len,
            accumulate,
            ..
        } = self.recipe.train;
        let tokens = batch_size.saturating_mul(seq_len);
        let is_cached = self.recipe.teacher.cache.is_some() && self.recipe.loss.feature.is_none();
        StepFlops {
            teacher_forward: match is_cached {
                true => 0.0,
                false => teacher.forward_flops(tokens, seq_len),
            },
            student_forward: student.forward_flops(tokens, seq_len),
            student_backward: student.linear_flops(tokens)
                + 2.0 * student.attention_flops(tokens, seq_len)
                + 2.0 * tokens as f64 * self.kernels_with_gradient(tensors) as f64,
            kernel_contraction: accumulate as f64 * self.contraction_flops(),
        }
    }

    /// Elements of the kernels whose gradient is computed.
    fn kernels_with_gradient(&self, tensors: &[PlannedTensor]) -> usize {
        // As a lookup the embedding costs nothing; as a tied head it does.
        let is_lookup =
            |name: &str| name == "model.embed_tokens.weight" && !self.student.tie_word_embeddings;
        let is_kernel = |t: &&PlannedTensor| {
            t.trained && t.shape.len() == 2 && t.name.ends_with(".weight") && !is_lookup(&t.name)
        };
        let own: usize = tensors
            .iter()
            .filter(is_kernel)
            .map(PlannedTensor::num_elements)
            .sum();
        let made: usize = match self.trained {
            Trained::Maps => Slot::ALL
                .map(|slot| self.student.grid(slot).width())
                .iter()
                .sum(),
            Trained::Projections | Trained::All => 0,
        };
        own + self.layers.len() * self.student.hidden_size * made
    }

    /// [`StepFlops::kernel_contraction`] of one micro-batch.
    fn contraction_flops(&self) -> f64 {
        if self.trained != Trained::Maps {
            return 0.0;
        }
        let layer: f64 = Slot::ALL
            .map(|slot| {
                let (teacher, student) = (self.teacher.grid(slot), self.student.grid(slot));
                contraction_with_gradients(self.recipe.lti.map.kind(slot), teacher, student)
            })
            .iter()
            .sum();
        2.0 * self.layers.len() as f64 * self.teacher.hidden_size as f64 * layer
    }
}

/// A tensor that begins as the teacher's of the same name.
fn copied(name: String, shape: Vec<usize>, trained: bool) -> PlannedTensor {
    PlannedTensor {
        origin: Origin::Copied { from: name.clone() },
        name,
        shape,
        trained,
    }
}

/// The tensors of a map, by letter.
fn map_shapes(spec: &MapSpec) -> Vec<(char, Vec<usize>)> {
    match spec.map {
        MapKind::Factored => vec![('a', spec.a_shape().into()), ('b', spec.b_shape().into())],
        MapKind::General => vec![('w', spec.w_shape().into())],
    }
}

/// Multiply-adds of a contraction and of its gradients, for each of the model's features.
fn contraction_with_gradients(map: MapKind, teacher: HeadGrid, student: HeadGrid) -> f64 {
    let ContractionCost { first, second } = contraction_cost(map, teacher, student);
    2.0 * first as f64 + 3.0 * second as f64
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layers = self.teacher.num_hidden_layers;
        writeln!(f, "teacher  {}", describe(&self.teacher))?;
        writeln!(f, "student  {}", describe(&self.student))?;
        writeln!(f, "maps     {}, start {}", self.map, self.start)?;
        writeln!(
            f,
            "layers   {} of {layers}: {}",
            self.layers.len(),
            runs(&self.layers)
        )?;
        writeln!(f, "train    {}", self.trained)?;
        self.write_training(f)?;
        writeln!(f)?;
        write_table(f, &self.rows())?;
        writeln!(f)?;
        let mut totals = self.totals.rows();
        totals.extend(self.phase2.iter().flat_map(PhasePlan::rows));
        write_table(f, &totals)?;
        self.write_new(f)
    }
}

impl Plan {
    /// Towards what, how long, and what is left behind on the way.
    fn write_training(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LossPlan {
            divergence,
            alpha,
            temperature,
            feature,
        } = &self.loss;
        write!(f, "loss     ")?;
        if *divergence != Divergence::ForwardKl {
            write!(f, "{}, ", divergence::describe(divergence))?;
        }
        let (alpha, temperature) = (schedule::describe(alpha), schedule::describe(temperature));
        writeln!(f, "alpha {alpha}, temperature {temperature}")?;
        if let Some(feature) = feature {
            let (weight, pairs) = (schedule::describe(&feature.weight), feature.pairs.len());
            write!(f, "feature  {}, weight {weight}, ", feature.kind)?;
            write!(f, "{} of layers", count(pairs, "pair", "pairs"))?;
            writeln!(f, "{}", if feature.projector { ", projector" } else { "" })?;
        }

        let TrainingPlan {
            steps,
            batch_size,
            seq_len,
            accumulate,
            checkpoints,
        } = self.training;
        write!(
            f,
            "steps    {} of {batch_size} x {seq_len} tokens",
            thousands(steps)
        )?;
        match accumulate {
            1 => writeln!(f)?,
            _ => writeln!(
                f,
                ", in {accumulate} micro-batches of {}",
                batch_size / accumulate
            )?,
        }
        if let Some(CheckpointPlan {
            every,
            keep,
            patience,
        }) = checkpoints
        {
            write!(
                f,
                "keeps    a checkpoint every {}, ",
                count(every, "step", "steps")
            )?;
            write!(f, "the last {keep}")?;
            match patience {
                None => writeln!(f)?,
                Some(evaluations) => writeln!(
                    f,
                    "; ends after {} without a better held-out KL",
                    count(evaluations, "evaluation", "evaluations")
                )?,
            }
        }
        match &self.phase2 {
            None => Ok(()),
            Some(phase) => writeln!(f, "phase 2  {phase}"),
        }
    }

    /// A row for each tensor, with those that differ only in their layer in one.
    fn rows(&self) -> Vec<Vec<String>> {
        let mut groups: Vec<(Vec<usize>, &str, &PlannedTensor)> = Vec::new();
        let mut known: HashMap<_, usize> = HashMap::new();
        for tensor in &self.tensors {
            let (layer, rest) = split_layer(&tensor.name);
            let origin = self.describe_origin(&tensor.origin);
            let index = *known
                .entry((rest, origin, tensor.trained))
                .or_insert_with(|| {
                    groups.push((Vec::new(), rest, tensor));
                    groups.len() - 1
                });
            groups[index].0.extend(layer);
        }
        let head = ["tensor", "shape", "parameters", "origin", "training"].map(String::from);
        let mut rows = vec![head.to_vec()];
        for (layers, rest, tensor) in groups {
            rows.push(vec![
                match layers.as_slice() {
                    [] => rest.to_owned(),
                    [layer] => format!("model.layers.{layer}.{rest}"),
                    layers => format!("model.layers.{{{}}}.{rest}", runs(layers)),
                },
                format!("{:?}", tensor.shape),
                thousands(tensor.num_elements() * layers.len().max(1)),
                self.describe_origin(&tensor.origin),
                if tensor.trained { "trained" } else { "frozen" }.to_owned(),
            ]);
        }
        rows
    }

    fn describe_origin(&self, origin: &Origin) -> String {
        match origin {
            Origin::Map => format!("map ({})", self.start),
            Origin::TeacherKernel { .. } => "teacher kernel".to_owned(),
            Origin::Start { .. } => format!("start ({})", self.start),
            Origin::Copied { .. } => "copied".to_owned(),
            Origin::New => "NEW (random)".to_owned(),
        }
    }

    /// New tensors are rarely meant.
    fn write_new(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.new_tensors().count();
        if count == 0 {
            return Ok(());
        }
        let parameters: usize = self.new_tensors().map(PlannedTensor::num_elements).sum();
        writeln!(
            f,
            "\nattention: {count} tensors ({} parameters) are NEW: they start at random, because \
             the teacher's\nheads do not fit the student's in layers without maps. To learn them \
             from the teacher, add\ntheir layers to lti.layers.",
            thousands(parameters)
        )
    }
}

/// One line: `projections, 50 steps: 20 tensors, 30,720 parameters`.
impl fmt::Display for PhasePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {}: {}, {} parameters",
            self.train,
            count(self.steps, "step", "steps"),
            count(self.trained.len(), "tensor", "tensors"),
            thousands(self.trainable_parameters)
        )?;
        match self.plateau {
            None => Ok(()),
            Some(Plateau {
                window,
                improvement,
            }) => write!(
                f,
                "; phase 1 ends early once {} improve its loss by less than {improvement}",
                count(window, "step", "steps")
            ),
        }
    }
}

impl PhasePlan {
    fn rows(&self) -> Vec<Vec<String>> {
        [
            (
                "parameters, trained in phase 2",
                thousands(self.trainable_parameters),
            ),
            (
                "a step of phase 2, student backward",
                gflop(self.step_flops.student_backward),
            ),
        ]
        .map(|(name, value)| vec![name.to_owned(), value])
        .to_vec()
    }
}

impl Totals {
    fn rows(&self) -> Vec<Vec<String>> {
        let parameters = |count| thousands(count);
        let flops = &self.step_flops;
        [
            ("parameters, teacher", parameters(self.teacher_parameters)),
            (
                "parameters, student once collapsed",
                parameters(self.student_parameters),
            ),
            ("parameters, maps", parameters(self.map_parameters)),
            ("parameters, trained", parameters(self.trained_parameters)),
            ("parameters, frozen", parameters(self.frozen_parameters)),
            (
                "key/value cache, teacher",
                cache(self.teacher_kv_cache_bytes_per_token),
            ),
            (
                "key/value cache, student",
                cache(self.student_kv_cache_bytes_per_token),
            ),
            ("a step, teacher forward", gflop(flops.teacher_forward)),
            ("a step, student forward", gflop(flops.student_forward)),
            ("a step, student backward", gflop(flops.student_backward)),
            (
                "a step, kernels out of maps",
                gflop(flops.kernel_contraction),
            ),
        ]
        .map(|(name, value)| vec![name.to_owned(), value])
        .to_vec()
    }
}

fn describe(config: &LlamaConfig) -> String {
    format!(
        "{} layers, width {}, {}, {} key/value heads, vocabulary {}",
        config.num_hidden_layers,
        config.hidden_size,
        config.query_grid(),
        config.num_key_value_heads,
        config.vocab_size
    )
}

/// `model.layers.3.mlp.up_proj.weight` -> 3 and the rest; other names have no layer.
fn split_layer(name: &str) -> (Option<usize>, &str) {
    name.strip_prefix("model.layers.")
        .and_then(|rest| rest.split_once('.'))
        .and_then(|(layer, rest)| Some((Some(layer.parse().ok()?), rest)))
        .unwrap_or((None, name))
}

/// Ascending numbers with runs drawn together: `0..2, 4`.
fn runs(numbers: &[usize]) -> String {
    numbers
        .chunk_by(|a, b| a + 1 == *b)
        .map(|run| match run {
            [first, .., last] => format!("{first}..{last}"),
            run => list(run),
        })
        .collect::<Vec<_>>()
        .join(", ")
}

/// `1234567` as `1,234,567`.
fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<&[u8]> = digits.as_bytes().rchunks(3).rev().collect();
    String::from_utf8_lossy(&groups.join(&b',')).into_owned()
}

/// `1 step`, `2,000 steps`.
fn count(number: usize, one: &str, many: &str) -> String {
    let noun = if number == 1 { one } else { many };
    format!("{} {noun}", thousands(number))
}

fn cache(bytes_per_token: usize) -> String {
    format!("{} bytes a token", thousands(bytes_per_token))
}

fn gflop(flops: f64) -> String {
    format!("{:.3} GFLOP", flops / 1e9)
}

/// Columns as wide as their widest cell, two blanks apart.
fn write_table(f: &mut fmt::Formatter<'_>, rows: &[Vec<String>]) -> fmt::Result {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
        .collect();
    for row in rows {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The teacher of the repository's recipe.
    fn teacher() -> LlamaConfig {
        let text = r#"{ "model_type": "llama", "vocab_size": 512, "hidden_size": 64,
            "intermediate_size": 172, "num_hidden_layers": 5, "num_attention_heads": 8,
            "num_key_value_heads": 4, "max_position_embeddings": 512,
            "tie_word_embeddings": true }"#;
        LlamaConfig::from_json_str(text, Path::new("config.json")).unwrap()
    }

    fn recipe(overrides: &[&str]) -> Recipe {
        let text = "teacher.path = 't'\nstudent = { heads = 4, kv_heads = 2 }\ntrain.steps = 9\n\
            data = { train = ['a'], valid = ['b'] }";
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        Recipe::parse(text, Path::new("/r.toml"), &overrides).unwrap()
    }

    fn plan(overrides: &[&str]) -> Plan {
        Plan::new(&recipe(overrides), &teacher()).unwrap()
    }

    fn refused(overrides: &[&str]) -> PlanError {
        Plan::new(&recipe(overrides), &teacher()).unwrap_err()
    }

    fn tensor<'a>(plan: &'a Plan, name: &str) -> &'a PlannedTensor {
        let tensor = plan.tensors.iter().find(|tensor| tensor.name == name);
        tensor.unwrap_or_else(|| panic!("no tensor {name}"))
    }

    fn q_proj(leaf: &str) -> String {
        format!("model.layers.0.self_attn.q_proj.{leaf}")
    }

    #[test]
    fn maps_are_trained_and_the_rest_is_frozen() {
        let plan = plan(&[]);
        assert_eq!(plan.layers, [0, 1, 2, 3, 4]);
        assert_eq!(
            (plan.student.query_grid(), plan.student.kv_grid()),
            (HeadGrid::new(4, 8), HeadGrid::new(2, 8))
        );
        for (name, shape) in [("q_proj", [8, 4]), ("k_proj", [4, 2]), ("v_proj", [4, 2])] {
            let a = tensor(&plan, &format!("model.layers.4.self_attn.{name}.a"));
            assert_eq!(
                (a.shape.as_slice(), &a.origin, a.trained),
                (&shape[..], &Origin::Map, true)
            );
        }
        let c = tensor(&plan, &q_proj("c"));
        let from = q_proj("weight");
        assert_eq!((c.shape.as_slice(), c.trained), (&[64, 8, 8][..], false));
        assert_eq!(c.origin, Origin::TeacherKernel { from });
        assert_eq!(
            tensor(&plan, "model.layers.0.self_attn.o_proj.c").shape,
            [8, 8, 64]
        );
        for tensor in &plan.tensors {
            assert_eq!(
                tensor.trained,
                tensor.origin == Origin::Map,
                "{}",
                tensor.name
            );
        }
        let norm = "model.layers.2.input_layernorm.weight".to_owned();
        assert_eq!(tensor(&plan, &norm).origin, Origin::Copied { from: norm });
    }

    #[test]
    fn the_maps_have_the_shapes_of_the_method() {
        let overrides = [
            "student.head_dim=6",
            "lti.start=lecun",
            "lti.map={ key = 'general' }",
        ];
        let plan = plan(&overrides);
        for (name, shape) in [
            ("q_proj.b", &[8, 6][..]),
            ("k_proj.w", &[4, 8, 2, 6]),
            ("v_proj.b", &[8, 6]),
            ("o_proj.a", &[8, 4]),
            ("o_proj.b", &[6, 8]),
        ] {
            assert_eq!(
                tensor(&plan, &format!("model.layers.0.self_attn.{name}")).shape,
                shape
            );
        }
        let maps = Slot::ALL.map(|slot| {
            let (teacher, student) = (plan.teacher.grid(slot), plan.student.grid(slot));
            plan.map.kind(slot).num_params(teacher, student)
        });
        assert_eq!(plan.totals.map_parameters, 5 * maps.iter().sum::<usize>());
    }

    #[test]
    fn biases_go_through_the_map_but_for_that_of_out() {
        let teacher = LlamaConfig {
            attention_bias: true,
            ..teacher()
        };
        for (train, q) in [
            ("maps", Origin::Map),
            (
                "projections",
                Origin::Start {
                    from: q_proj("bias"),
                },
            ),
        ] {
            let recipe = recipe(&[&format!("lti.train={train}"), "lti.layers=[0]"]);
            let plan = Plan::new(&recipe, &teacher).unwrap();
            let bias = tensor(&plan, &q_proj("bias"));
            assert_eq!(
                (bias.shape.as_slice(), &bias.origin, bias.trained),
                (&[32][..], &q, true)
            );
            let out = |layer| format!("model.layers.{layer}.self_attn.o_proj.bias");
            let bias = tensor(&plan, &out(0));
            assert_eq!(bias.origin, Origin::Copied { from: out(0) });
            assert_eq!((bias.shape.as_slice(), bias.trained), (&[64][..], true));
            // In a layer without maps it fits, whatever becomes of the heads.
            assert_eq!(
                tensor(&plan, &out(1)).origin,
                Origin::Copied { from: out(1) }
            );
            assert!(!tensor(&plan, &out(1)).trained);
        }
    }

    #[test]
    fn projections_are_trained_without_maps() {
        for (train, all) in [("projections", false), ("all", true)] {
            let plan = plan(&[&format!("lti.train={train}")]);
            let weight = tensor(&plan, &q_proj("weight"));
            assert_eq!(
                (weight.shape.as_slice(), weight.trained),
                (&[32, 64][..], true)
            );
            assert_eq!(
                weight.origin,
                Origin::Start {
                    from: q_proj("weight")
                }
            );
            assert_eq!(tensor(&plan, "model.norm.weight").trained, all);
            let names: Vec<_> = plan.tensors.iter().map(|t| (&t.name, &t.shape)).collect();
            let student = plan.student.tensors();
            assert_eq!(
                names,
                student.iter().map(|(n, s)| (n, s)).collect::<Vec<_>>()
            );
            assert_eq!(
                (
                    plan.totals.map_parameters,
                    plan.totals.step_flops.kernel_contraction
                ),
                (0, 0.0)
            );
        }
    }

    #[test]
    fn layers_without_maps_are_copied_or_new() {
        let layer_1 = |name: &str| format!("model.layers.1.self_attn.{name}_proj.weight");
        let with = |overrides: &[&str]| plan(&[overrides, &["lti.layers=[2, 0]"]].concat());
        let same_heads = with(&["student.heads=8"]);
        assert_eq!(same_heads.layers, [0, 2]);
        for (name, fits) in [("q", true), ("k", false), ("v", false), ("o", true)] {
            let tensor = tensor(&same_heads, &layer_1(name));
            assert_eq!(
                (tensor.origin != Origin::New, !tensor.trained),
                (fits, fits)
            );
        }
        assert_eq!(same_heads.new_tensors().count(), 3 * 2);
        // Half the heads of twice the size: the shape fits, the heads do not.
        let overrides = [
            "student.kv_heads=4",
            "student.head_dim=16",
            "lti.start=lecun",
        ];
        let plan = with(&overrides);
        let weight = tensor(&plan, &layer_1("q"));
        assert_eq!(
            (weight.shape.as_slice(), &weight.origin),
            (&[64, 64][..], &Origin::New)
        );
        assert!(
            plan.render()
                .contains("12 tensors (49,152 parameters) are NEW"),
            "{plan}"
        );
    }

    #[test]
    fn totals_add_up() {
        let plan = plan(&[]);
        let totals = &plan.totals;
        assert_eq!(totals.teacher_parameters, 260_032);
        let halved = 5 * 64 * (32 + 16 + 16 + 32);
        assert_eq!(
            totals.student_parameters,
            totals.teacher_parameters - halved
        );
        assert_eq!(totals.map_parameters, 5 * (2 * (32 + 64) + 2 * (8 + 64)));
        assert_eq!(totals.trained_parameters, totals.map_parameters);
        // What is frozen is the whole teacher: its kernels as C, the rest as copies.
        assert_eq!(totals.frozen_parameters, totals.teacher_parameters);
        assert_eq!(totals.teacher_kv_cache_bytes_per_token, 1280);
        assert_eq!(totals.student_kv_cache_bytes_per_token, 640);
    }

    #[test]
    fn flops_follow_the_formulas() {
        let plan = plan(&["train.batch_size=2", "train.seq_len=3", "lti.layers=[0]"]);
        let Plan {
            teacher, student, ..
        } = &plan;
        let flops = &plan.totals.step_flops;
        assert_eq!(flops.teacher_forward, teacher.forward_flops(6, 3));
        assert_eq!(flops.student_forward, student.forward_flops(6, 3));
        // Five layers of kernels, made by maps in one and new in four.
        let kernels = 5 * 64 * (32 + 16 + 16 + 32);
        let linear = kernels + 5 * 3 * 64 * 172 + 512 * 64;
        let attention = 2 * (4 * 6 * 5 * 32 * 2);
        assert_eq!(
            flops.student_backward,
            (2 * 6 * (linear + kernels) + attention) as f64
        );
        // Query and out: 8x8 to 4x8, heads first; key and value: 4x8 to 2x8, heads first.
        let maps = 2 * (2 * 256 + 3 * 256) + 2 * (2 * 64 + 3 * 128);
        assert_eq!(flops.kernel_contraction, (2 * 64 * maps) as f64);
    }

    #[test]
    fn the_contraction_takes_the_cheaper_order() {
        let (teacher, student) = (HeadGrid::new(2, 10), HeadGrid::new(2, 4));
        // Heads first 40 + 80, head size first 80 + 16.
        let cost = contraction_with_gradients(MapKind::Factored, teacher, student);
        assert_eq!(cost, 2.0 * 80.0 + 3.0 * 16.0);
        assert_eq!(
            contraction_with_gradients(MapKind::General, teacher, student),
            2.0 * 160.0
        );
    }

    #[test]
    fn training_all_counts_every_kernel() {
        let gradient = |teacher: LlamaConfig| {
            let recipe = recipe(&["lti.train=all", "train.batch_size=1"]);
            let plan = Plan::new(&recipe, &teacher).unwrap();
            let (flops, student) = (&plan.totals.step_flops, &plan.student);
            let given = student.linear_flops(128) + 2.0 * student.attention_flops(128, 128);
            assert_eq!(flops.student_backward - given, student.linear_flops(128));
        };
        gradient(teacher());
        gradient(LlamaConfig {
            tie_word_embeddings: false,
            ..teacher()
        });
    }

    #[test]
    fn the_report_groups_layers_and_aligns() {
        let text = plan(&[]).render();
        let line = |part: &str| text.lines().find(|line| line.contains(part)).unwrap();
        let a = line("q_proj.a");
        for part in [
            "model.layers.{0..4}.self_attn.q_proj.a",
            "[8, 4]",
            "160",
            "map (grouped)",
        ] {
            assert!(a.contains(part), "{a}");
        }
        assert_eq!(a.find("trained"), line("q_proj.c").find("frozen"));
        assert!(line("teacher  ").contains("8 heads x 8, 4 key/value heads"));
        assert!(line("parameters, teacher").contains("260,032"));
        assert!(!text.contains("NEW"));

        let some = plan(&["lti.layers=[0, 1, 3]"]).render();
        assert!(
            some.contains("model.layers.{0..1, 3}.self_attn.q_proj.a"),
            "{some}"
        );
        assert!(
            some.contains("model.layers.{2, 4}.self_attn.q_proj.weight"),
            "{some}"
        );
    }

    #[test]
    fn serializes() {
        let json = serde_json::to_value(plan(&["lti.map=general"])).unwrap();
        assert_eq!(json["start"], "grouped");
        assert_eq!(json["tensors"][0]["origin"]["kind"], "copied");
        assert_eq!(json["totals"]["teacher_parameters"], 260_032);
        assert_eq!(json["student"]["num_attention_heads"], 4);
    }

    #[test]
    fn the_report_says_how_training_goes_on() {
        let text = plan(&[]).render();
        let short =
            "train    maps\nloss     alpha 1, temperature 1\nsteps    9 of 16 x 128 tokens\n\n";
        assert!(text.contains(short), "{text}");

        let text = plan(&[
            "loss.divergence={ skewed_kl = 0.1 }",
            "loss.alpha={ start = 0.9, end = 0.5, schedule = 'linear' }",
            "loss.temperature={ start = 4, end = 1, schedule = 'cosine' }",
            "loss.feature={ weight = 0.5, kind = 'l2', projector = true }",
            "train.steps=2000",
            "train.accumulate=4",
            "train.checkpoint_every=500",
            "train.patience=3",
            "phase2.steps=100",
            "phase2.plateau={}",
        ])
        .render();
        for line in [
            "loss     skewed_kl 0.1, alpha 0.9 -> 0.5 (linear), temperature 4 -> 1 (cosine)",
            "feature  l2, weight 0.5, 5 pairs of layers, projector",
            "steps    2,000 of 16 x 128 tokens, in 4 micro-batches of 4",
            "keeps    a checkpoint every 500 steps, the last 2; ends after 3 evaluations without a \
             better held-out KL",
            "phase 2  projections, 100 steps: 20 tensors, 30,720 parameters; phase 1 ends early once \
             50 steps improve its loss by less than 0.01",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        for part in [
            "parameters, trained in phase 2",
            "a step of phase 2, student backward",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn serializes_how_training_goes_on() {
        let json = serde_json::to_value(plan(&[])).unwrap();
        assert_eq!(json["loss"]["divergence"], "forward_kl");
        assert_eq!(json["loss"]["alpha"], 1.0);
        assert_eq!(json["training"]["accumulate"], 1);
        for absent in [
            &json["loss"]["feature"],
            &json["training"]["checkpoints"],
            &json["phase2"],
        ] {
            assert!(absent.is_null());
        }
        let json = serde_json::to_value(plan(&[
            "loss.divergence={ jensen_shannon = 0.5 }",
            "loss.alpha={ start = 0.9, end = 0.5, schedule = 'linear' }",
            "loss.feature={ weight = 1, pairs = [[0, 1]] }",
            "train.checkpoint_every=3",
            "phase2.steps=4",
            "phase2.train=all",
        ]))
        .unwrap();
        assert_eq!(json["loss"]["divergence"]["jensen_shannon"], 0.5);
        assert_eq!(json["loss"]["alpha"]["end"], 0.5);
        assert_eq!(json["loss"]["feature"]["pairs"][0][1], 1);
        assert_eq!(json["training"]["checkpoints"]["keep"], 2);
        assert_eq!(json["phase2"]["train"], "all");
        assert_eq!(json["phase2"]["trained"][0], "model.embed_tokens.weight");
    }

    #[test]
    fn same_pairs_every_layer() {
        let pairs = |choice: &str| {
            let feature = format!("loss.feature={{ weight = 1, pairs = {choice} }}");
            let feature = plan(&[&feature]).loss.feature.unwrap();
            feature
                .pairs
                .into_iter()
                .map(Into::into)
                .collect::<Vec<[usize; 2]>>()
        };
        assert_eq!(pairs("'same'"), [[0, 0], [1, 1], [2, 2], [3, 3], [4, 4]]);
        assert_eq!(pairs("[[4, 0], [1, 4]]"), [[4, 0], [1, 4]]);
        for (choice, expected) in [("[[0, 5]]", "teacher"), ("[[0, 0], [7, 9]]", "student")] {
            let error = refused(&[&format!("loss.feature={{ weight = 1, pairs = {choice} }}")]);
            assert!(
                matches!(&error, PlanError::FeatureLayer { model, layers: 5, .. }
                if *model == expected)
            );
            assert!(error.to_string().contains("from 0 to 4"), "{error}");
        }
    }

    #[test]
    fn phase_2_trains_what_would_train_without_maps() {
        let teacher = LlamaConfig {
            attention_bias: true,
            ..teacher()
        };
        let with = |overrides: &[&str]| Plan::new(&recipe(overrides), &teacher).unwrap();
        // Layer 0 has maps, the others have heads that do not fit: all of these are new.
        let layers = "lti.layers=[0]";
        for train in ["projections", "all"] {
            let phase2 = ["phase2.steps=3", &format!("phase2.train={train}")];
            let plan = with(&[&[layers], &phase2[..]].concat());
            let alone = with(&[layers, &format!("lti.train={train}")]);
            let phase = plan.phase2.as_ref().unwrap();
            let expected = alone.tensors.iter().filter(|tensor| tensor.trained);
            let expected: Vec<_> = expected.map(|tensor| tensor.name.as_str()).collect();
            assert_eq!(phase.trained, expected);
            assert_eq!(phase.trainable_parameters, alone.totals.trained_parameters);
            assert_eq!(phase.step_flops, alone.totals.step_flops);
            assert_eq!(phase.step_flops.kernel_contraction, 0.0);

            // No name is that of a map, and what phase 1 trained trains on.
            let student = plan.student.tensors();
            for name in &phase.trained {
                assert!(student.iter().any(|(known, _)| known == name), "{name}");
            }
            let in_phase_1 = plan.tensors.iter().filter(|tensor| tensor.trained);
            for tensor in in_phase_1.filter(|tensor| tensor.origin != Origin::Map) {
                assert!(phase.trained.contains(&tensor.name), "{}", tensor.name);
            }
            let all = phase.trained.len() == student.len();
            assert_eq!(all, train == "all");
        }
        let phase = with(&[layers, "phase2.steps=3"]).phase2.unwrap();
        let of_layer_0 = ["q_proj", "k_proj", "v_proj", "o_proj"].map(|projection| {
            ["weight", "bias"].map(|leaf| format!("model.layers.0.self_attn.{projection}.{leaf}"))
        });
        for name in of_layer_0.as_flattened() {
            assert!(phase.trained.contains(name), "{name}");
        }
        // Of the others everything but the bias of the output projection, which fits.
        assert_eq!(phase.trained.len(), 8 + 4 * 7);
    }

    #[test]
    fn a_step_without_its_teacher_or_in_parts() {
        let flops = |overrides: &[&str]| plan(overrides).totals.step_flops;
        let whole = flops(&[]);
        let parts = flops(&["train.accumulate=4"]);
        assert_eq!(parts.kernel_contraction, 4.0 * whole.kernel_contraction);
        assert_eq!(parts.student_backward, whole.student_backward);
        let cached = flops(&["teacher.cache=k"]);
        assert_eq!(cached.teacher_forward, 0.0);
        assert_eq!(cached.student_forward, whole.student_forward);
        let with_layers = flops(&["teacher.cache=k", "loss.feature={ weight = 1 }"]);
        assert_eq!(with_layers.teacher_forward, whole.teacher_forward);
    }

    #[test]
    fn phase_2_needs_a_teacher_in_float32() {
        for (train, first) in [
            ("projections", q_proj("weight")),
            ("all", "model.embed_tokens.weight".to_owned()),
        ] {
            let phase2 = ["phase2.steps=3", &format!("phase2.train={train}")];
            for dtype in ["bfloat16", "float16"] {
                let error = refused(&[&phase2[..], &[&format!("teacher.dtype={dtype}")]].concat());
                let PlanError::Phase2InHalf { tensor, .. } = &error else {
                    panic!("{error}");
                };
                assert_eq!(*tensor, first);
                for part in ["teacher.dtype = \"float32\"", "leave [phase2] out"] {
                    assert!(error.to_string().contains(part), "{error}");
                }
            }
            plan(&phase2);
        }
    }

    #[test]
    fn small_words() {
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(thousands),
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(runs(&[0, 1, 2, 4, 6, 7]), "0..2, 4, 6..7");
        let steps = [1, 2000].map(|number| count(number, "step", "steps"));
        assert_eq!(steps, ["1 step", "2,000 steps"]);
    }

    #[test]
    fn refuses_layers_that_are_not_there() {
        let error = refused(&["lti.layers=[0, 5]"]);
        assert!(matches!(
            error,
            PlanError::LayerOutOfRange {
                layer: 5,
                layers: 5
            }
        ));
        assert!(error.to_string().contains("from 0 to 4"), "{error}");
        assert!(matches!(refused(&["lti.layers=[]"]), PlanError::NoLayers));
    }

    #[test]
    fn refuses_heads_that_make_no_llama() {
        for key in ["student.heads", "student.kv_heads", "student.head_dim"] {
            let error = refused(&[&format!("{key}=0")]);
            assert!(matches!(error, PlanError::Zero { key: k } if k == key));
        }
        let error = refused(&["student.kv_heads=3"]);
        assert!(matches!(
            error,
            PlanError::KvHeads {
                heads: 4,
                kv_heads: 3,
                ..
            }
        ));
        assert!(error.to_string().contains("1, 2, 4"), "{error}");
        assert!(matches!(
            refused(&["student.head_dim=7"]),
            PlanError::OddHeadDim { head_dim: 7 }
        ));
        let huge = ["student.heads=4611686018427387904", "lti.start=lecun"];
        assert!(matches!(refused(&huge), PlanError::Student { .. }));
    }

    #[test]
    fn refuses_heads_that_do_not_group() {
        let error = refused(&["student.heads=6"]);
        assert!(matches!(
            error,
            PlanError::GroupedHeads {
                key: "student.heads",
                ..
            }
        ));
        assert!(error.to_string().contains("1, 2, 4, 8"), "{error}");
        let error = refused(&["student.heads=8", "student.kv_heads=8"]);
        assert!(matches!(
            error,
            PlanError::GroupedHeads {
                key: "student.kv_heads",
                ..
            }
        ));
        let error = refused(&["student.head_dim=4"]);
        assert!(matches!(
            error,
            PlanError::GroupedHeadDim {
                student: 4,
                teacher: 8
            }
        ));
        plan(&["student.heads=6", "student.head_dim=4", "lti.start=lecun"]);
    }

    #[test]
    fn only_maps_train_beside_a_teacher_in_half_precision() {
        for dtype in ["bfloat16", "float16"] {
            let dtype = format!("teacher.dtype={dtype}");
            plan(&[&dtype]);
            for (set, first) in [
                ("lti.train=projections", q_proj("weight")),
                ("lti.train=all", "model.embed_tokens.weight".to_owned()),
                ("lti.layers=[1]", q_proj("weight")),
            ] {
                let starts_anywhere = ["lti.start=lecun", "student.heads=2", "student.kv_heads=1"];
                let error = refused(&[&starts_anywhere[..], &[&dtype, set]].concat());
                let PlanError::TrainedInHalf { tensor, .. } = &error else {
                    panic!("{set}: {error}");
                };
                assert_eq!(*tensor, first, "{set}");
                assert!(
                    error.to_string().contains("teacher.dtype = \"float32\""),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn what_is_frozen_by_name_does_not_train() {
        let plan = plan(&[
            "weights.freeze=['layers.0.', 'q_proj.b$']",
            "phase2.steps=3",
        ]);
        assert!(!tensor(&plan, &q_proj("a")).trained);
        assert!(tensor(&plan, "model.layers.1.self_attn.q_proj.a").trained);
        assert!(!tensor(&plan, "model.layers.1.self_attn.q_proj.b").trained);
        let second = plan.phase2.unwrap().trained;
        assert!(!second.contains(&q_proj("weight")));
        assert!(second.contains(&"model.layers.1.self_attn.q_proj.weight".to_owned()));

        let error = refused(&["weights.freeze=['q_prj']"]);
        assert!(matches!(&error, PlanError::FreezesNothing { pattern } if pattern == "q_prj"));
        assert!(matches!(
            refused(&["weights.freeze=['']"]),
            PlanError::NothingTrains
        ));
    }

    #[test]
    fn refuses_sequences_beyond_the_teacher() {
        let error = refused(&["train.seq_len=513"]);
        assert!(matches!(
            error,
            PlanError::SeqLen {
                seq_len: 513,
                max: 512
            }
        ));
        plan(&["train.seq_len=512"]);
    }
}
