//! The tensors of a student and what they cost.

use std::collections::{BTreeMap, HashSet};

use burn_lti::geometry::{HeadGrid, Role};
use burn_lti::map::{ContractionCost, MapKind, ProjectionKind, contraction_cost, kernel_shape};
use burn_lti::start::calibrated::FeedForward;
use burn_lti::start::{MapSpec, Start};
use regex::Regex;

use super::cost::Costs;
use super::weights::projections;
use super::{
    Origin, PhasePlan, PlanError, PlannedTensor, StepCosts, StepFlops, Totals, WeightPlan,
};
use crate::config::{LlamaConfig, feed_forward_name};
use crate::hf::WeightType;
use crate::recipe::{Phase2Section, Recipe, TrainSection, Trained, WeightsSection};

/// The patterns of what does not train, each of which the recipe has found to be one.
pub(super) fn frozen(weights: &WeightsSection) -> Vec<Regex> {
    let patterns = weights.freeze.iter();
    patterns
        .filter_map(|pattern| Regex::new(pattern).ok())
        .collect()
}

/// What the tensors and totals of a phase follow from.
#[derive(Clone, Copy)]
pub(super) struct Planner<'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) teacher: &'a LlamaConfig,
    pub(super) student: &'a LlamaConfig,
    pub(super) layers: &'a [usize],
    pub(super) weights: &'a WeightPlan,
    /// Tensors whose names match one of these anywhere do not train.
    pub(super) frozen: &'a [Regex],
    pub(super) trained: Trained,
}

impl Planner<'_> {
    /// Each tensor of the student; the weights of learned projections turn into their maps.
    pub(super) fn tensors(&self) -> Vec<PlannedTensor> {
        let roles = projections(self.student);
        let mut tensors = Vec::new();
        for (name, shape) in self.student.tensors() {
            let (module, leaf) = name.rsplit_once('.').unwrap_or(("", &name));
            match roles.get(module) {
                Some((layer, role)) if self.layers.contains(layer) => {
                    self.plan_learned(module, leaf, shape, *role, &mut tensors);
                }
                Some((_, role)) if leaf == "weight" || *role != Role::Out => {
                    tensors.push(self.plan_kept(name, shape, *role));
                }
                _ => tensors.push(self.copied(name, shape, self.trained == Trained::All)),
            }
        }
        self.freeze(&mut tensors);
        self.share(&mut tensors);
        tensors
    }

    /// What freezes one name of a variable freezes the variable.
    fn freeze(&self, tensors: &mut [PlannedTensor]) {
        let found = |tensor: &&PlannedTensor| self.frozen.iter().any(|p| p.is_match(&tensor.name));
        let frozen: HashSet<String> = tensors
            .iter()
            .filter(found)
            .map(|tensor| self.variable(&tensor.name).to_owned())
            .collect();
        for tensor in tensors {
            tensor.trained &= !frozen.contains(self.variable(&tensor.name));
        }
    }

    fn share(&self, tensors: &mut [PlannedTensor]) {
        for tensor in tensors {
            if let Some(with) = self.shared().get(&tensor.name) {
                tensor.origin = Origin::Shared { with: with.clone() };
            }
        }
    }

    /// The tensor that `name` is one variable with.
    fn variable<'b>(&'b self, name: &'b str) -> &'b str {
        self.shared().get(name).map_or(name, String::as_str)
    }

    fn shared(&self) -> &BTreeMap<String, String> {
        match self.trained {
            Trained::Maps => &self.weights.shared,
            Trained::Projections | Trained::All => &self.weights.shared_without_maps,
        }
    }

    /// A pattern that freezes nothing in any phase is mistyped, and without a tensor that trains there
    /// is nothing to do. `tensors` are those of the first phase, `second` of the second if there is one.
    pub(super) fn check_frozen(
        &self,
        tensors: &[PlannedTensor],
        second: Option<&[PlannedTensor]>,
    ) -> Result<(), PlanError> {
        let all = tensors.iter().chain(second.unwrap_or_default());
        for pattern in self.frozen {
            let mut all = all.clone();
            if !all.any(|tensor| pattern.is_match(&tensor.name)) {
                return Err(PlanError::FreezesNothing {
                    pattern: pattern.to_string(),
                });
            }
        }
        let trains = |tensors: &[PlannedTensor]| tensors.iter().any(|tensor| tensor.trained);
        match trains(tensors) && second.is_none_or(trains) {
            true => Ok(()),
            false => Err(PlanError::NothingTrains),
        }
    }

    /// What phase 2 trains is what would train without maps, where they were.
    pub(super) fn in_phase2(&self, section: &Phase2Section) -> Self {
        Self {
            trained: section.train.into(),
            ..*self
        }
    }

    /// A tensor of a projection that is learned from the teacher's.
    fn plan_learned(
        &self,
        module: &str,
        leaf: &str,
        shape: Vec<usize>,
        role: Role,
        tensors: &mut Vec<PlannedTensor>,
    ) {
        let name = format!("{module}.{leaf}");
        let keeps_map = self.trained == Trained::Maps;
        if leaf == "bias" && role == Role::Out {
            // It is as wide as the residual stream, which the student shares with the teacher.
            tensors.push(self.copied(name, shape, true));
        } else if !keeps_map {
            let from = self.weights.source(self.variable(&name)).to_owned();
            let origin = Origin::Start { from };
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
                kind: ProjectionKind::of(role),
                map: self.recipe.lti.map.kind(role),
                teacher: self.teacher.grid(role),
                student: self.student.grid(role),
            };
            tensors.push(PlannedTensor {
                name: format!("{module}.c"),
                shape: kernel_shape(spec.kind, self.teacher.hidden_size, spec.teacher).into(),
                origin: Origin::TeacherKernel {
                    from: self.weights.source(&name).to_owned(),
                },
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
    fn plan_kept(&self, name: String, shape: Vec<usize>, role: Role) -> PlannedTensor {
        if self.student.grid(role) == self.teacher.grid(role) {
            self.copied(name, shape, self.trained == Trained::All)
        } else {
            PlannedTensor {
                name,
                shape,
                origin: Origin::New,
                trained: true,
            }
        }
    }

    /// A tensor that begins as the teacher's of the same name, or of the one that the recipe names.
    fn copied(&self, name: String, shape: Vec<usize>, trained: bool) -> PlannedTensor {
        let from = self.weights.source(&name).to_owned();
        let origin = match self.refitted().any(|weight| weight == name) {
            true => Origin::Start { from },
            false => Origin::Copied { from },
        };
        PlannedTensor {
            origin,
            name,
            shape,
            trained,
        }
    }

    /// The weights of feed-forward blocks that the start fits.
    fn refitted(&self) -> impl Iterator<Item = String> {
        let lti = &self.recipe.lti;
        let refits = lti.start == Start::Calibrated
            && self.recipe.calibration.feed_forward == FeedForward::Refit;
        let layers = self.layers.iter().filter(move |_| refits);
        layers.map(|layer| format!("{}.weight", feed_forward_name(*layer)))
    }

    /// The second phase, whose `tensors` are those of [`Self::in_phase2`], which this planner is.
    pub(super) fn phase2(
        &self,
        section: &Phase2Section,
        tensors: &[PlannedTensor],
    ) -> Result<PhasePlan, PlanError> {
        let trained: Vec<_> = tensors.iter().filter(|tensor| tensor.trained).collect();
        match (self.recipe.teacher.dtype, trained.first()) {
            (WeightType::F32, _) | (_, None) => Ok(PhasePlan {
                train: section.train,
                steps: section.steps,
                plateau: section.plateau,
                trained: trained.iter().map(|tensor| tensor.name.clone()).collect(),
                trainable_parameters: count(tensors, |tensor| tensor.trained),
                step_flops: self.step_flops(tensors),
            }),
            (dtype, Some(tensor)) => Err(PlanError::Phase2InHalf {
                dtype,
                tensor: tensor.name.clone(),
            }),
        }
    }

    pub(super) fn totals(&self, tensors: &[PlannedTensor]) -> Totals {
        let count = |wanted: fn(&PlannedTensor) -> bool| count(tensors, wanted);
        let (teacher, student) = (self.teacher, self.student);
        Totals {
            teacher_parameters: teacher.num_parameters(),
            student_parameters: student.num_parameters(),
            map_parameters: count(|tensor| tensor.origin == Origin::Map),
            trained_parameters: count(|tensor| tensor.trained),
            frozen_parameters: count(|tensor| !tensor.trained),
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
        let own: usize = tensors
            .iter()
            .filter(|tensor| self.has_kernel_gradient(tensor))
            .map(PlannedTensor::num_elements)
            .sum();
        let made: usize = match self.trained {
            Trained::Maps => Role::ATTENTION
                .map(|role| self.student.grid(role).width())
                .iter()
                .sum(),
            Trained::Projections | Trained::All => 0,
        };
        own + self.layers.len() * self.student.hidden_size * made
    }

    /// Whether the gradient of the tensor itself, no map, is a product.
    pub(super) fn has_kernel_gradient(&self, tensor: &PlannedTensor) -> bool {
        // As a lookup the embedding costs nothing; as a tied head it does.
        let is_lookup =
            tensor.name == "model.embed_tokens.weight" && !self.student.tie_word_embeddings;
        let is_kernel = tensor.shape.len() == 2 && tensor.name.ends_with(".weight");
        tensor.trained && is_kernel && !is_lookup
    }

    /// What a step costs, part by part.
    pub(super) fn costs(&self, tensors: &[PlannedTensor]) -> StepCosts {
        Costs::new(self, tensors, &self.step_flops(tensors)).step()
    }

    /// [`StepFlops::kernel_contraction`] of one micro-batch.
    fn contraction_flops(&self) -> f64 {
        if self.trained != Trained::Maps {
            return 0.0;
        }
        let layer: f64 = Role::ATTENTION
            .map(|role| {
                let (teacher, student) = (self.teacher.grid(role), self.student.grid(role));
                let map = self.recipe.lti.map.kind(role);
                contraction_with_gradients(map, teacher, student, self.teacher.hidden_size)
            })
            .iter()
            .sum();
        2.0 * self.layers.len() as f64 * layer
    }
}

/// Elements of those tensors, a variable of several names counted once.
pub(super) fn count(tensors: &[PlannedTensor], wanted: fn(&PlannedTensor) -> bool) -> usize {
    tensors
        .iter()
        .filter(|tensor| wanted(tensor) && !matches!(tensor.origin, Origin::Shared { .. }))
        .map(PlannedTensor::num_elements)
        .sum()
}

/// The tensors of a map, by letter.
fn map_shapes(spec: &MapSpec) -> Vec<(char, Vec<usize>)> {
    match spec.map {
        MapKind::Factored | MapKind::Kronecker(_) => {
            vec![('a', spec.a_shape().into()), ('b', spec.b_shape().into())]
        }
        MapKind::General => vec![('w', spec.w_shape().into())],
    }
}

/// Multiply-adds of a contraction and of its gradients in a model of so many features. `C` has no
/// gradient.
pub(super) fn contraction_with_gradients(
    map: MapKind,
    teacher: HeadGrid,
    student: HeadGrid,
    features: usize,
) -> f64 {
    let ContractionCost {
        first,
        second,
        once,
        ..
    } = contraction_cost(map, teacher, student);
    features as f64 * (2.0 * first as f64 + 3.0 * second as f64) + 3.0 * once as f64
}
