//! The student at its start.

use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::collapse::collapse;
use burn_lti::decoder::CausalLm;
use burn_lti::inject::{fill, trained};
use burn_lti::tensors::TensorSet;

use super::DistillError;
use crate::hf::burn_name;
use crate::model::{LearningLlama, PlainLlama};
use crate::plan::Plan;
use crate::recipe::Recipe;

/// The student as maps of the teacher's projections, its trained parameters those of the plan. With the
/// calibrated start, `teacher` holds its tensors beside the teacher's.
///
/// # Errors
///
/// [`DistillError`] if a projection cannot be swapped or a tensor does not fit.
pub fn learning_student<A: AutodiffBackend>(
    plan: &Plan,
    teacher: &TensorSet<A::InnerBackend>,
    device: &A::Device,
) -> Result<LearningLlama<A>, DistillError> {
    let teacher = TensorSet::from_inner(teacher);
    let learning = learning::<A>(plan, &teacher, device)?;
    Ok(trained(learning, &plan.with_maps.renamed(burn_name)))
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
    let learning = learning::<A::InnerBackend>(plan, teacher, device)?;
    without_maps(recipe, plan, &learning, device)
}

/// What `learning` learned without its maps, with those parameters training that the plan says of the phase
/// that has none.
///
/// # Errors
///
/// [`DistillError`] if it cannot be collapsed.
pub(super) fn without_maps<A: AutodiffBackend>(
    recipe: &Recipe,
    plan: &Plan,
    learning: &impl CausalLm<A::InnerBackend>,
    device: &A::Device,
) -> Result<PlainLlama<A>, DistillError> {
    let collapsed = collapse(learning, recipe.lti.precision)?;
    let tensors = TensorSet::<A>::from_inner(collapsed.tensors());
    let blueprint = plan.without_maps.of_its_own().renamed(burn_name);
    let plain = PlainLlama::init(&plan.student, device);
    Ok(trained(fill(plain, &tensors, &blueprint)?, &blueprint))
}

/// A learning student whose maps stand at their start and whose teacher has arrived. With the calibrated
/// start, `teacher` holds the maps too.
pub(super) fn learning<B: Backend>(
    plan: &Plan,
    teacher: &TensorSet<B>,
    device: &B::Device,
) -> Result<LearningLlama<B>, DistillError> {
    let awaiting = PlainLlama::<B>::init(&plan.student, device).learn_to_init(&plan.spec)?;
    Ok(awaiting.fill(teacher, &plan.with_maps.renamed(burn_name))?)
}
