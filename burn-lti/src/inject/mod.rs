//! The teacher's tensors come into the student.
//!
//! A student begins as a skeleton: its maps exist, its `C` and copied weights do not. A [`Blueprint`] says
//! which teacher tensor fills which student tensor; a Burn [`ModuleMapper`](burn::module::ModuleMapper)
//! carries them in, and knows nothing of any model.

mod awaiting;
mod injector;

use std::collections::{BTreeMap, BTreeSet};

use burn::prelude::*;
use burn::tensor::DType;

pub use awaiting::AwaitingTeacher;

use crate::blueprint::{Blueprint, BlueprintError, Listed, Rules, Source, StudentTensor};
use crate::map::{LtiParts, Part, Side, lti_parts};
use crate::parameters::set_trainable;
use crate::tensors::{AnyTensor, TensorSet, join_name};
use injector::shared;
pub(crate) use injector::with_values;

/// Fills `student` with the teacher's tensors as `rules` say: [`Blueprint::of`], then [`fill`].
///
/// # Errors
///
/// [`BlueprintError`], before anything is changed.
pub fn inject<B: Backend, M: Module<B>>(
    student: M,
    teacher: &TensorSet<B>,
    rules: &Rules,
) -> Result<(M, Blueprint), BlueprintError> {
    let blueprint = Blueprint::of(&student, &teacher.shapes(), rules)?;
    let student = fill(student, teacher, &blueprint)?;
    Ok((student, blueprint))
}

/// Fills `student` by its blueprint. `teacher` holds the teacher's tensors and, by the student's own names,
/// what a start calculated. Whether a parameter trains is left as it was: see [`trained`].
///
/// The bias beside a map of outputs begins as the teacher's sent through the map, as the kernel is, and a gain of
/// its outputs as the means of what the map makes them of. What the
/// blueprint shares becomes one variable before any is filled: it has the id and value of its source and
/// trains if that does. For what keeps it one see [`tie`](crate::parameters::tie). A filled parameter has
/// the teacher's float type, except the bias beside a map, which has the map's.
///
/// # Errors
///
/// [`BlueprintError`], before anything is changed.
pub fn fill<B: Backend, M: Module<B>>(
    student: M,
    teacher: &TensorSet<B>,
    blueprint: &Blueprint,
) -> Result<M, BlueprintError> {
    check_same(&Listed::all(&student), blueprint)?;
    let mut values = BTreeMap::new();
    for tensor in of_part(blueprint, |part| matches!(part, Part::Map(_))) {
        if let Some(named) = teacher.get(tensor.variable()) {
            values.insert(tensor.name.clone(), named.tensor.clone());
        }
    }
    // Maps come first, those that are one too: biases go through them.
    let student = with_values(student, values);
    check_started(&student)?;
    let student = shared(student, blueprint, |part| matches!(part, Part::Map(_)));
    let maps = lti_parts(&student);
    let mut values = BTreeMap::new();
    for tensor in of_part(blueprint, |part| !matches!(part, Part::Map(_))) {
        if tensor.source == Source::Start {
            let name = tensor.variable();
            let named = teacher.get(name).ok_or_else(|| BlueprintError::Missing {
                student: tensor.name.clone(),
                from: None,
            })?;
            let value = filling(tensor, name, &maps, &named.tensor)?;
            values.insert(tensor.name.clone(), value);
        }
        if let Some(source) = tensor.source.teacher() {
            let named = teacher.get(source).ok_or_else(|| BlueprintError::Missing {
                student: tensor.name.clone(),
                from: Some(source.to_owned()),
            })?;
            let value = filling(tensor, source, &maps, &named.tensor)?;
            values.insert(tensor.name.clone(), value);
        }
    }
    Ok(shared(with_values(student, values), blueprint, |part| {
        !matches!(part, Part::Map(_))
    }))
}

/// `student`, which was injected, with the values that `changed` has for some of its tensors, by their
/// names in it. The `weight` of a projection that is a map is its `C`.
///
/// The bias beside a changed map of outputs is again the one that `teacher` has under its name, sent through the map,
/// and of those `gains` (pairs of a tensor and its projection) that lie along one the means. Ids, and whether a
/// parameter trains, stay. A tensor that is one variable with others must be changed with all of them.
///
/// # Errors
///
/// [`BlueprintError::UnknownTarget`], [`BlueprintError::Shape`].
pub(crate) fn refill<B: Backend, M: Module<B>>(
    student: M,
    changed: &TensorSet<B>,
    teacher: &TensorSet<B>,
    gains: &[(String, String)],
) -> Result<M, BlueprintError> {
    let tensors = Listed::all(&student);
    let mut values = BTreeMap::new();
    for (name, named) in changed.iter() {
        let is_kernel_of = |projection: &String| join_name(projection, "weight") == name;
        let is_named = |tensor: &&Listed| match tensor.part {
            Part::TeacherKernel => tensor.projection.as_ref().is_some_and(is_kernel_of),
            _ => tensor.name == name,
        };
        let tensor = tensors.iter().find(is_named);
        let tensor = tensor.ok_or_else(|| BlueprintError::unknown(name, &tensors))?;
        if tensor.shape != named.tensor.shape() {
            return Err(BlueprintError::Shape {
                teacher: name.to_owned(),
                found: named.tensor.shape(),
                student: name.to_owned(),
                expected: tensor.shape.clone(),
            });
        }
        values.insert(tensor.name.clone(), named.tensor.clone());
    }
    let student = with_values(student, values);
    let maps = lti_parts(&student);
    let of_outputs = tensors.iter().filter(|tensor| {
        tensor.part == Part::Map(Side::Right) && changed.get(&tensor.name).is_some()
    });
    let of_outputs: BTreeSet<&str> = of_outputs
        .filter_map(|tensor| tensor.projection.as_deref())
        .collect();
    let is_changed = |projection: &str| of_outputs.contains(projection);
    let mut along = BTreeMap::new();
    for tensor in tensors.iter().filter(|it| it.part == Part::Bias) {
        let parts = tensor.projection.as_ref().and_then(|name| maps.get(name));
        if tensor.projection.as_deref().is_some_and(is_changed)
            && let (Some(parts), Some(named)) = (parts, teacher.get(&tensor.name))
            && let Some(bias) = parts.mapped_bias(&named.tensor)
            && let Some(bias) = AnyTensor::erase(bias)
        {
            let dtype = parts.trained_dtype().unwrap_or(DType::F32);
            along.insert(tensor.name.clone(), bias.cast(dtype));
        }
    }
    for (name, projection) in gains.iter().filter(|(_, of)| is_changed(of)) {
        if let (Some(parts), Some(named)) = (maps.get(projection), teacher.get(name))
            && let Some(gain) = parts.mean_gain(&named.tensor)
            && let Some(gain) = AnyTensor::erase(gain)
        {
            along.insert(name.clone(), gain.cast(named.tensor.dtype()));
        }
    }
    Ok(with_values(student, along))
}

/// `student` with exactly those parameters training that its blueprint says.
pub fn trained<B: Backend, M: Module<B>>(student: M, blueprint: &Blueprint) -> M {
    let trained: BTreeSet<&str> = blueprint.trained().collect();
    set_trainable(student, |parameter| trained.contains(parameter.name))
}

fn of_part(
    blueprint: &Blueprint,
    wanted: impl Fn(Part) -> bool,
) -> impl Iterator<Item = &StudentTensor> {
    let tensors = blueprint.tensors.iter();
    tensors.filter(move |tensor| wanted(tensor.part))
}

/// What a teacher's tensor becomes in the place of the student's.
fn filling<B: Backend>(
    tensor: &StudentTensor,
    source: &str,
    maps: &BTreeMap<String, LtiParts<B>>,
    value: &AnyTensor<B>,
) -> Result<AnyTensor<B>, BlueprintError> {
    let projection = match &tensor.source {
        Source::Along { projection, .. } => Some(projection),
        _ => tensor.projection.as_ref(),
    };
    let parts = projection.and_then(|name| maps.get(name));
    let misfit = || BlueprintError::Shape {
        teacher: source.to_owned(),
        found: value.shape(),
        student: tensor.name.clone(),
        expected: tensor.shape.clone(),
    };
    let value = match (&tensor.source, parts) {
        (Source::Mapped(_), Some(parts)) => parts.mapped_bias(value).and_then(AnyTensor::erase),
        (Source::Along { .. }, Some(parts)) => {
            let gain = parts.mean_gain(value).and_then(AnyTensor::erase);
            gain.map(|gain| gain.cast(value.dtype()))
        }
        _ => Some(value.clone()),
    };
    let value = value.filter(|value| value.shape() == tensor.shape);
    let value = value.ok_or_else(misfit)?;
    // A bias beside maps trains as they do.
    let dtype = parts.and_then(LtiParts::trained_dtype);
    Ok(match dtype.filter(|_| tensor.part == Part::Bias) {
        Some(dtype) => value.cast(dtype),
        None => value,
    })
}

/// The blueprint must be of this student, by every name and shape.
fn check_same(student: &[Listed], blueprint: &Blueprint) -> Result<(), BlueprintError> {
    let describe = |shape: Option<&Vec<usize>>| match shape {
        Some(shape) => format!("{shape:?}"),
        None => "no tensor".to_owned(),
    };
    let found: BTreeMap<_, _> = student.iter().map(|it| (&it.name, &it.shape)).collect();
    let tensors = blueprint.tensors.iter();
    let expected: BTreeMap<_, _> = tensors.map(|it| (&it.name, &it.shape)).collect();
    let names = found.keys().chain(expected.keys());
    match names
        .copied()
        .find(|name| found.get(name) != expected.get(name))
    {
        None => Ok(()),
        Some(name) => Err(BlueprintError::OtherStudent {
            name: name.clone(),
            expected: describe(expected.get(name).copied()),
            found: describe(found.get(name).copied()),
        }),
    }
}

/// Every map must stand at values by now.
fn check_started<B: Backend, M: Module<B>>(student: &M) -> Result<(), BlueprintError> {
    let waits = |tensor: &Listed| matches!(tensor.part, Part::Map(_)) && tensor.dtype.is_none();
    match Listed::all(student).into_iter().find(waits) {
        None => Ok(()),
        Some(tensor) => Err(BlueprintError::Missing {
            student: tensor.name,
            from: None,
        }),
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Flex};
    use burn::nn::LinearConfig;

    use super::*;

    #[test]
    fn a_refilled_parameter_keeps_its_id_and_whether_it_trains() {
        type A = Autodiff<Flex>;
        let device = Default::default();
        for trains in [true, false] {
            let linear = LinearConfig::new(2, 3).init::<A>(&device);
            let linear = set_trainable(linear, |_| trains);
            let refilled = |name: &str, columns: usize| {
                let mut changed = TensorSet::<A>::new();
                changed.insert(name, "Linear", Tensor::<A, 2>::ones([2, columns], &device));
                refill(linear.clone(), &changed, &TensorSet::new(), &[])
            };
            let found = refilled("weight", 3).unwrap();
            assert_eq!(found.weight.id, linear.weight.id);
            assert_eq!(found.weight.is_require_grad(), trains);
            assert_eq!(found.weight.val().sum().into_scalar(), 6.0);
            let error = refilled("weights", 3).unwrap_err();
            assert!(
                matches!(error, BlueprintError::UnknownTarget { .. }),
                "{error}"
            );
            let error = refilled("weight", 4).unwrap_err();
            assert!(matches!(error, BlueprintError::Shape { .. }), "{error}");
        }
    }
}
