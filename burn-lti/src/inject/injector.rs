//! The mappers that carry tensors into a module by name.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::prelude::*;
use burn::tensor::container::TensorContainer;

use crate::blueprint::Blueprint;
use crate::compat;
use crate::map::Part;
use crate::tensors::{AnyTensor, ModulePath};

/// `module` with these values in the parameters of these names, which keep their ids and whether they
/// train. They must have as many axes; whether they are as long is for the caller to know.
pub(crate) fn with_values<B: Backend, M: Module<B>>(
    module: M,
    values: BTreeMap<String, AnyTensor<B>>,
) -> M {
    match values.is_empty() {
        true => module,
        false => module.map(&mut Injector {
            path: ModulePath::default(),
            values,
        }),
    }
}

/// `student` with each tensor of the `wanted` parts that its blueprint shares given the id and the very value of its
/// source.
pub(super) fn shared<B: Backend, M: Module<B>>(
    student: M,
    blueprint: &Blueprint,
    wanted: impl Fn(Part) -> bool,
) -> M {
    let tensors = blueprint.tensors.iter().filter(|it| wanted(it.part));
    let sources = tensors.filter_map(|tensor| {
        let source = tensor.shared_with.as_ref()?;
        Some((tensor.name.as_str(), source.as_str()))
    });
    let sources: BTreeMap<&str, &str> = sources.collect();
    if sources.is_empty() {
        return student;
    }
    let mut found = Sources {
        path: ModulePath::default(),
        wanted: sources.values().copied().collect(),
        ids: BTreeMap::new(),
        values: TensorContainer::new(),
    };
    student.visit(&mut found);
    student.map(&mut Sharer {
        path: ModulePath::default(),
        sources,
        ids: found.ids,
        values: found.values,
    })
}

struct Injector<B: Backend> {
    path: ModulePath,
    values: BTreeMap<String, AnyTensor<B>>,
}

impl<B: Backend> ModuleMapper<B> for Injector<B> {
    crate::tensors::follow_path!();

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        match self.values.remove(&self.path.name()) {
            Some(value) => {
                let (own, id) = (value.shape(), param.id);
                let shape: [usize; D] = std::array::from_fn(|axis| own[axis]);
                // Detached, so that two parameters filled from one tensor are two to autodiff.
                let value = compat::detached(value.to_rank(shape));
                param.transform_for_load(value, id)
            }
            None => param,
        }
    }
}

/// The ids and values that others share, by name.
struct Sources<'a> {
    path: ModulePath,
    wanted: BTreeSet<&'a str>,
    ids: BTreeMap<String, ParamId>,
    values: TensorContainer<String>,
}

impl<B: Backend> ModuleVisitor<B> for Sources<'_> {
    crate::tensors::follow_path!();

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let name = self.path.name();
        if self.wanted.contains(name.as_str()) {
            self.ids.insert(name.clone(), param.id);
            self.values
                .register::<B>(name, param.val().into_primitive());
        }
    }
}

struct Sharer<'a> {
    path: ModulePath,
    sources: BTreeMap<&'a str, &'a str>,
    ids: BTreeMap<String, ParamId>,
    values: TensorContainer<String>,
}

impl<B: Backend> ModuleMapper<B> for Sharer<'_> {
    crate::tensors::follow_path!();

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let source = self.sources.get(self.path.name().as_str()).copied();
        let shared = source.and_then(|source| {
            Some((
                self.ids.get(source)?,
                self.values.get::<B>(&source.to_owned())?,
            ))
        });
        match shared {
            Some((id, value)) => {
                let (_, _, mapper) = param.consume();
                Param::from_mapped_value(*id, Tensor::from_primitive(value), mapper)
            }
            None => param,
        }
    }
}
