//! The student at its start.

use std::collections::HashSet;

use burn::module::AutodiffModule;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::collapse::collapse;
use burn_lti::decoder::{LayerSelection, LtiSpec, SlotMaps};
use burn_lti::dense::Slot;
use burn_lti::inject::set_trainable;
use burn_lti::tensors::TensorSet;

use super::DistillError;
use crate::hf::burn_name;
use crate::model::{LearningLlama, PlainLlama};
use crate::plan::Plan;
use crate::recipe::Recipe;

/// The student as maps of the teacher's projections, its trained parameters those of the plan.
///
/// # Errors
///
/// [`DistillError`] if a projection cannot be swapped or a tensor does not fit.
pub fn learning_student<A: AutodiffBackend>(
    recipe: &Recipe,
    plan: &Plan,
    teacher: &TensorSet<A::InnerBackend>,
    device: &A::Device,
) -> Result<LearningLlama<A>, DistillError> {
    let learning = start::<A>(recipe, plan, &TensorSet::from_inner(teacher), device)?;
    Ok(with_trained(learning, plan))
}

/// The student with the start's kernels folded into ordinary projections, which train freely.
///
/// # Errors
///
/// As [`learning_student`].
pub fn free_student<A: AutodiffBackend>(
    recipe: &Recipe,
    plan: &Plan,
    teacher: &TensorSet<A::InnerBackend>,
    device: &A::Device,
) -> Result<PlainLlama<A>, DistillError> {
    let learning = start::<A::InnerBackend>(recipe, plan, teacher, device)?;
    let collapsed = collapse(&learning, recipe.lti.precision)?;
    let tensors = TensorSet::from_inner(collapsed.tensors());
    let plain = crate::hf::plain_from_tensors::<A>(&plan.student, &tensors, device)?;
    Ok(with_trained(plain, plan))
}

/// The student without maps, with those parameters training that the plan's second phase trains.
pub(super) fn thawed<A: AutodiffBackend>(student: PlainLlama<A>, plan: &Plan) -> PlainLlama<A> {
    let names = plan.phase2.iter().flat_map(|phase| &phase.trained);
    let trained: HashSet<String> = names.map(|name| burn_name(name)).collect();
    set_trainable(student, |parameter| trained.contains(parameter.name))
}

/// A learning student whose maps stand at their start and whose teacher has arrived.
fn start<B: Backend>(
    recipe: &Recipe,
    plan: &Plan,
    teacher: &TensorSet<B>,
    device: &B::Device,
) -> Result<LearningLlama<B>, DistillError> {
    let spec = LtiSpec {
        teacher: plan.teacher.geometry(),
        layers: LayerSelection::Only(plan.layers.clone()),
        maps: SlotMaps {
            query: plan.map.kind(Slot::Query),
            key: plan.map.kind(Slot::Key),
            value: plan.map.kind(Slot::Value),
            out: plan.map.kind(Slot::Out),
        },
        start: plan.start,
        precision: recipe.lti.precision,
        seed: recipe.train.seed,
    };
    let awaiting = PlainLlama::<B>::init(&plan.student, device).learn_to_init(&spec)?;
    let new = plan.new_tensors().map(|tensor| burn_name(&tensor.name));
    let rules = awaiting.rules_by_name(new)?;
    let (learning, _) = awaiting.inject(teacher, &rules)?;
    Ok(learning)
}

/// The model with exactly those parameters training that the plan says.
fn with_trained<A: AutodiffBackend, M: AutodiffModule<A>>(model: M, plan: &Plan) -> M {
    let trained: HashSet<String> = plan
        .tensors
        .iter()
        .filter(|tensor| tensor.trained)
        .map(|tensor| burn_name(&tensor.name))
        .collect();
    set_trainable(model, |parameter| trained.contains(parameter.name))
}
