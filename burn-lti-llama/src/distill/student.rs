//! The student at its start.

use std::collections::{BTreeMap, HashSet};

use burn::module::AutodiffModule;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::collapse::collapse;
use burn_lti::decoder::CausalLm;
use burn_lti::geometry::Role;
use burn_lti::inject::{InjectError, ShareRule, set_trainable};
use burn_lti::tensors::TensorSet;

use super::DistillError;
use super::start::lti_spec;
use crate::config::projection_name;
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
    recipe: &Recipe,
    plan: &Plan,
    teacher: &TensorSet<A::InnerBackend>,
    device: &A::Device,
) -> Result<LearningLlama<A>, DistillError> {
    let shares = shares(&plan.weights.shared)?;
    let learning = learning::<A>(
        recipe,
        plan,
        &TensorSet::from_inner(teacher),
        shares,
        device,
    )?;
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
    let learning = learning::<A::InnerBackend>(recipe, plan, teacher, Vec::new(), device)?;
    Ok(with_trained(folded(recipe, plan, &learning, device)?, plan))
}

/// `learning` with its maps folded away, what the plan shares one variable.
fn folded<A: AutodiffBackend>(
    recipe: &Recipe,
    plan: &Plan,
    learning: &impl CausalLm<A::InnerBackend>,
    device: &A::Device,
) -> Result<PlainLlama<A>, DistillError> {
    let collapsed = collapse(learning, recipe.lti.precision)?;
    let tensors = TensorSet::from_inner(collapsed.tensors());
    let shares = shares(&plan.weights.shared_without_maps)?;
    let plain = crate::hf::plain_with_shares::<A>(&plan.student, &tensors, shares, device)?;
    Ok(plain)
}

/// The student of the second phase: what `learning` learned without its maps, with those parameters
/// training that the plan's second phase trains.
///
/// # Errors
///
/// [`DistillError`] if it cannot be collapsed.
pub(super) fn second_phase_student<A: AutodiffBackend>(
    recipe: &Recipe,
    plan: &Plan,
    learning: &impl CausalLm<A::InnerBackend>,
    device: &A::Device,
) -> Result<PlainLlama<A>, DistillError> {
    Ok(thawed(folded(recipe, plan, learning, device)?, plan))
}

/// The student without maps, with those parameters training that the plan's second phase trains.
pub(super) fn thawed<A: AutodiffBackend>(student: PlainLlama<A>, plan: &Plan) -> PlainLlama<A> {
    let names = plan.phase2.iter().flat_map(|phase| &phase.trained);
    let trained: HashSet<String> = names.map(|name| burn_name(name)).collect();
    set_trainable(student, |parameter| trained.contains(parameter.name))
}

/// A learning student whose maps stand at their start and whose teacher has arrived. With the calibrated
/// start, `teacher` holds the maps too.
pub(super) fn learning<B: Backend>(
    recipe: &Recipe,
    plan: &Plan,
    teacher: &TensorSet<B>,
    shares: Vec<ShareRule>,
    device: &B::Device,
) -> Result<LearningLlama<B>, DistillError> {
    let spec = lti_spec(recipe, plan);
    let awaiting = PlainLlama::<B>::init(&plan.student, device).learn_to_init(&spec)?;
    let new = plan.new_tensors().map(|tensor| burn_name(&tensor.name));
    let mut rules = awaiting.rules_by_name(new)?.with_shares(shares);
    for (name, from) in &plan.weights.copied {
        rules = rules.with_source(&learning_name(plan, name), &burn_name(from))?;
    }
    let (learning, _) = awaiting.inject(teacher, &rules)?;
    Ok(learning)
}

/// The name of a tensor of the student, given without maps, in the model that has them.
fn learning_name(plan: &Plan, name: &str) -> String {
    let is_learned = |module: &&str| {
        let roles = |layer: &usize| Role::ATTENTION.map(|role| projection_name(*layer, role));
        plan.layers
            .iter()
            .flat_map(roles)
            .any(|role| role == **module)
    };
    match name.strip_suffix(".weight").filter(is_learned) {
        Some(module) => format!("{module}.c"),
        None => burn_name(name),
    }
}

fn shares(shares: &BTreeMap<String, String>) -> Result<Vec<ShareRule>, InjectError> {
    let rule = |(to, from): (&String, &String)| ShareRule::exact(&burn_name(from), &burn_name(to));
    shares.iter().map(rule).collect()
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
