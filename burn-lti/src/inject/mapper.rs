//! The mapper that carries tensors into a module by name.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{ModuleMapper, Param};
use burn::prelude::*;

use super::InjectError;
use super::error::nearest_name;
use super::rules::{Entries, Entry, InjectRules, Part};
use super::share::Shares;
use crate::collapse::{LtiParts, lti_parts};
use crate::compat;
use crate::dense::{KernelPrecision, ProjectionKind, calculate_attn_weight};
use crate::tensors::{AnyTensor, ModulePath, TensorSet, split_name};

/// What an injection did.
#[derive(Clone, Debug)]
pub struct Injection {
    /// Student tensor and the teacher tensor that filled it.
    pub filled: BTreeMap<String, String>,
    /// Student tensor and the student tensor that it is one variable with.
    pub shared: BTreeMap<String, String>,
    /// Teacher tensors that nothing asked for.
    pub unused: Vec<String>,
}

/// Fills `student` with the teacher's tensors.
///
/// Every tensor of the student is filled by exactly one rule, declared new in `rules`, or part of a
/// map. The bias of a query, key or value map begins as the teacher's bias sent through the map, as
/// its kernel is. Whether a parameter trains is left as it was.
///
/// Tensors that `rules` share become one variable before any is filled: the destination has the
/// source's id and value and trains if the source does, and what fills the one fills the other. For
/// what keeps them one see [`tie`](super::tie).
///
/// A filled parameter has the teacher's float type, except the bias beside a map, which has the map's.
///
/// # Errors
///
/// [`InjectError`], before anything is changed.
pub fn inject<B: Backend, M: Module<B>>(
    student: M,
    teacher: &TensorSet<B>,
    rules: &InjectRules,
) -> Result<(M, Injection), InjectError> {
    let entries = Entries::of(&student);
    let (shares, targets) = rules.resolve(&entries, teacher)?;
    let student = with_calculated_maps(student, &entries, &shares, &targets, teacher)?;
    let maps = lti_parts(&student);

    let (mut filled, mut values) = (BTreeMap::new(), BTreeMap::new());
    for (target, source) in &targets {
        let entry = &entries.0[target];
        let Some(named) = teacher.get(source) else {
            continue; // `resolve` only names tensors of the teacher
        };
        let value = match mapped_bias(target, entry, &maps, source, &named.tensor)? {
            Some(bias) => bias,
            None => {
                check_shape(target, entry, source, &named.tensor)?;
                named.tensor.clone()
            }
        };
        let value = in_trained_type(target, entry, &maps, value);
        for name in shares.names(shares.variable(target)) {
            filled.insert(name.to_owned(), source.clone());
            values.insert(name.to_owned(), value.clone());
        }
    }

    let used: BTreeSet<&String> = filled.values().collect();
    let unused = teacher
        .names()
        .filter(|name| !used.contains(&(*name).to_owned()))
        .map(str::to_owned)
        .collect();
    let student = shares.make(fill(student, values));
    let injection = Injection {
        filled,
        shared: shares.0,
        unused,
    };
    Ok((student, injection))
}

/// `student`, which was injected, with the values that `changed` has for some of its tensors, by their
/// names in it.
///
/// The bias beside a changed query, key or value map is again the one that `teacher` has under its name,
/// sent through the map. Ids, and whether a parameter trains, stay. A tensor that is one variable with
/// others must be changed with all of them.
///
/// # Errors
///
/// [`InjectError::UnknownTarget`], [`InjectError::Shape`].
pub(crate) fn refill<B: Backend, M: Module<B>>(
    student: M,
    changed: &TensorSet<B>,
    teacher: &TensorSet<B>,
) -> Result<M, InjectError> {
    let entries = Entries::of(&student);
    let mut values = BTreeMap::new();
    for (name, named) in changed.iter() {
        let entry = entries
            .0
            .get(name)
            .ok_or_else(|| InjectError::UnknownTarget {
                pattern: name.to_owned(),
                teacher: name.to_owned(),
                student: name.to_owned(),
                suggestion: nearest_name(name, entries.names()),
            })?;
        check_shape(name, entry, name, &named.tensor)?;
        values.insert(name.to_owned(), named.tensor.clone());
    }
    let student = fill(student, values);
    let maps = lti_parts(&student);
    let changed: BTreeSet<&str> = changed.names().map(|name| split_name(name).0).collect();
    let mut biases = BTreeMap::new();
    for (name, entry) in &entries.0 {
        if let (true, Some(named)) = (changed.contains(split_name(name).0), teacher.get(name))
            && let Some(bias) = mapped_bias(name, entry, &maps, name, &named.tensor)?
        {
            biases.insert(name.clone(), in_trained_type(name, entry, &maps, bias));
        }
    }
    Ok(fill(student, biases))
}

/// Maps that wait for their values come first: biases go through them.
fn with_calculated_maps<B: Backend, M: Module<B>>(
    student: M,
    entries: &Entries,
    shares: &Shares,
    targets: &BTreeMap<String, String>,
    teacher: &TensorSet<B>,
) -> Result<M, InjectError> {
    let mut values = BTreeMap::new();
    for (target, source) in targets {
        let entry = &entries.0[target];
        if let (Part::Map, Some(named)) = (entry.part, teacher.get(source)) {
            check_shape(target, entry, source, &named.tensor)?;
            for name in shares.names(shares.variable(target)) {
                values.insert(name.to_owned(), named.tensor.clone());
            }
        }
    }
    Ok(fill(student, values))
}

/// The start of an `LtiDense` bias: the teacher's bias as a kernel of width one through the map.
///
/// `None` where the tensor is no such bias, and for the output projection, whose bias has the
/// teacher's own shape.
fn mapped_bias<B: Backend>(
    name: &str,
    entry: &Entry,
    maps: &BTreeMap<String, LtiParts<B>>,
    source: &str,
    teacher_bias: &AnyTensor<B>,
) -> Result<Option<AnyTensor<B>>, InjectError> {
    let (prefix, _) = split_name(name);
    if entry.part != Part::MapBias {
        return Ok(None);
    }
    let Some((ProjectionKind::Qkv, (heads, head_dim), map)) = maps
        .get(prefix)
        .and_then(|parts| Some((parts.kind()?, parts.teacher_grid()?, parts.map()?)))
    else {
        return Ok(None);
    };
    let misfit = || InjectError::Shape {
        teacher: source.to_owned(),
        found: teacher_bias.shape(),
        student: name.to_owned(),
        expected: vec![heads * head_dim],
    };
    if teacher_bias.num_elements() != heads * head_dim {
        return Err(misfit());
    }
    let bias = calculate_attn_weight(
        ProjectionKind::Qkv,
        teacher_bias.to_rank([1, heads, head_dim]),
        map,
        KernelPrecision::Default,
    )
    .map_err(|_| misfit())?;
    Ok(AnyTensor::erase(compat::detached(bias).flatten::<1>(0, 2)))
}

/// The bias beside a map trains as the map does, in the map's float type; all other values keep the
/// teacher's.
fn in_trained_type<B: Backend>(
    name: &str,
    entry: &Entry,
    maps: &BTreeMap<String, LtiParts<B>>,
    value: AnyTensor<B>,
) -> AnyTensor<B> {
    let (prefix, _) = split_name(name);
    match maps.get(prefix).and_then(LtiParts::map) {
        Some(map) if entry.part == Part::MapBias => value.cast(map.dtype()),
        _ => value,
    }
}

/// The shapes must be equal up to splitting or joining axes in order.
fn check_shape<B: Backend>(
    student: &str,
    entry: &Entry,
    teacher: &str,
    tensor: &AnyTensor<B>,
) -> Result<(), InjectError> {
    let found = tensor.shape();
    if refines(&found, &entry.shape) || refines(&entry.shape, &found) {
        return Ok(());
    }
    Err(InjectError::Shape {
        teacher: teacher.to_owned(),
        found,
        student: student.to_owned(),
        expected: entry.shape.clone(),
    })
}

/// Whether `fine` is `coarse` with axes split: every boundary of `coarse` is one of `fine`.
fn refines(fine: &[usize], coarse: &[usize]) -> bool {
    let boundaries = |shape: &[usize]| -> Vec<usize> {
        shape
            .iter()
            .scan(1, |product, axis| {
                *product *= axis;
                Some(*product)
            })
            .collect()
    };
    let (fine, coarse) = (boundaries(fine), boundaries(coarse));
    fine.last() == coarse.last() && coarse.iter().all(|boundary| fine.contains(boundary))
}

fn fill<B: Backend, M: Module<B>>(module: M, values: BTreeMap<String, AnyTensor<B>>) -> M {
    module.map(&mut Injector {
        path: ModulePath::default(),
        values,
    })
}

struct Injector<B: Backend> {
    path: ModulePath,
    values: BTreeMap<String, AnyTensor<B>>,
}

impl<B: Backend> ModuleMapper<B> for Injector<B> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        match self.values.remove(&self.path.name()) {
            Some(value) => {
                let (shape, id) = (param.lazy_shape().dims(), param.id);
                // Detached, so that two parameters filled from one tensor are two to autodiff.
                let value = compat::detached(value.to_rank(shape));
                param.transform_for_load(value, id)
            }
            None => param,
        }
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
            let linear = super::super::set_trainable(linear, |_| trains);
            let refilled = |name: &str, columns: usize| {
                let mut changed = TensorSet::<A>::new();
                changed.insert(name, "Linear", Tensor::<A, 2>::ones([2, columns], &device));
                refill(linear.clone(), &changed, &TensorSet::new())
            };
            let found = refilled("weight", 3).unwrap();
            assert_eq!(found.weight.id, linear.weight.id);
            assert_eq!(found.weight.is_require_grad(), trains);
            assert_eq!(found.weight.val().sum().into_scalar(), 6.0);
            let error = refilled("weights", 3).unwrap_err();
            assert!(
                matches!(error, InjectError::UnknownTarget { .. }),
                "{error}"
            );
            let error = refilled("weight", 4).unwrap_err();
            assert!(matches!(error, InjectError::Shape { .. }), "{error}");
        }
    }

    #[test]
    fn axes_may_be_split_and_joined_but_not_rearranged() {
        assert!(refines(&[64, 8, 8], &[64, 64]));
        assert!(refines(&[8, 8, 64], &[64, 64]));
        assert!(refines(&[64, 64], &[64, 64]));
        assert!(!refines(&[64, 8, 8], &[8, 512]));
        assert!(!refines(&[4, 16], &[16, 4]));
        assert!(!refines(&[4, 16], &[4, 15]));
    }
}
