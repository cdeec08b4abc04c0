//! What training costs, and the sizes that a plan tells.

use burn_lti::decoder::RoleMaps;
use burn_lti::geometry::{HeadGrid, Role, Site};
use burn_lti::map::{ContractionCost, MapKind, contraction_cost};

use super::{Origin, PhasePlan, PlanError, PlannedTensor, StepFlops, Totals};
use crate::config::LlamaConfig;
use crate::hf::WeightType;
use crate::recipe::{Phase2Section, Recipe, Trained};

/// What the tensors and totals of a phase follow from.
#[derive(Clone, Copy)]
pub(super) struct Planner<'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) teacher: &'a LlamaConfig,
    pub(super) student: &'a LlamaConfig,
    pub(super) layers: &'a [usize],
    pub(super) maps: &'a RoleMaps,
    pub(super) trained: Trained,
}

impl Planner<'_> {
    /// What phase 2 trains is what would train without maps, where they were.
    pub(super) fn in_phase2(&self, section: &Phase2Section) -> Self {
        Self {
            trained: section.train.into(),
            ..*self
        }
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
            (dtype, Some(tensor)) => Err(PlanError::refused(
                "teacher.dtype",
                format!(
                    "is \"{dtype}\", but [phase2] would train {} in it, and an optimizer's small steps \
                     are lost in half precision: set teacher.dtype = \"float32\", or leave [phase2] out",
                    tensor.name
                ),
            )),
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

    pub(super) fn step_flops(&self, tensors: &[PlannedTensor]) -> StepFlops {
        let (teacher, student) = (self.teacher, self.student);
        let train = &self.recipe.train;
        let tokens = train.tokens_per_step();
        let forward = |config: &LlamaConfig| {
            let of_one = |seq_len| config.forward_flops(tokens, seq_len);
            train.seq_len.mean(of_one)
        };
        let linear = student.linear_flops(tokens);
        let attention = |seq_len| student.attention_flops(tokens, seq_len);
        let is_cached = self.recipe.teacher.cache.is_some() && self.recipe.loss.feature.is_none();
        StepFlops {
            teacher_forward: match is_cached {
                true => 0.0,
                false => forward(teacher),
            },
            student_forward: forward(student),
            student_backward: linear
                + 2.0 * train.seq_len.mean(attention)
                + 2.0 * tokens as f64 * self.kernels_with_gradient(tensors) as f64,
            kernel_contraction: train.accumulate as f64 * self.contraction_flops(),
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
                .map(|role| self.student.axes().grid(role).width())
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

    /// [`StepFlops::kernel_contraction`] of one micro-batch.
    fn contraction_flops(&self) -> f64 {
        if self.trained != Trained::Maps {
            return 0.0;
        }
        let maps = self.mapped().map(|(map, teacher, student)| {
            contraction_with_gradients(map, teacher, student, self.teacher.hidden_size)
        });
        // From zero on: `Iterator::sum` makes -0 of nothing.
        2.0 * maps.fold(0.0, |sum, map| sum + map)
    }

    /// All maps, with the grids of teacher and student that they are between.
    pub(super) fn mapped(&self) -> impl Iterator<Item = (MapKind, HeadGrid, HeadGrid)> + '_ {
        let layers = self.layers.iter();
        let sites = layers.flat_map(|layer| Role::ATTENTION.map(|role| Site::new(*layer, role)));
        sites.filter_map(|site| {
            let grid = |config: &LlamaConfig| config.axes().grid(site.role);
            let map = self.maps.at(site)?;
            Some((map, grid(self.teacher), grid(self.student)))
        })
    }
}

/// Elements of those tensors, a variable of several names counted once.
pub(super) fn count(tensors: &[PlannedTensor], wanted: impl Fn(&PlannedTensor) -> bool) -> usize {
    tensors
        .iter()
        .filter(|tensor| wanted(tensor) && !matches!(tensor.origin, Origin::Shared { .. }))
        .map(PlannedTensor::num_elements)
        .sum()
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
