//! The visitor that tells maps from everything else.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::prelude::*;

use super::CollapseError;
use crate::compat;
use crate::dense::{AttnMap, KernelPrecision, ProjectionKind, calculate_attn_weight};
use crate::tensors::{ModulePath, TensorSet, split_name};

/// The tensors of one `LtiDense`, gathered field by field.
#[derive(Clone, Debug)]
pub(crate) struct LtiParts<B: Backend> {
    kind: Option<ProjectionKind>,
    c_shape: Vec<usize>,
    c: Option<Tensor<B, 3>>,
    a: Option<Tensor<B, 2>>,
    b: Option<Tensor<B, 2>>,
    w: Option<Tensor<B, 4>>,
    pub(crate) bias: Option<Tensor<B, 1>>,
}

impl<B: Backend> Default for LtiParts<B> {
    fn default() -> Self {
        Self {
            kind: None,
            c_shape: Vec::new(),
            c: None,
            a: None,
            b: None,
            w: None,
            bias: None,
        }
    }
}

impl<B: Backend> LtiParts<B> {
    pub(crate) fn kind(&self) -> Option<ProjectionKind> {
        self.kind
    }

    pub(crate) fn map(&self) -> Option<AttnMap<B>> {
        match (&self.a, &self.b, &self.w) {
            (None, None, Some(w)) => Some(AttnMap::General { w: w.clone() }),
            (Some(a), Some(b), None) => {
                let (heads, _) = self.teacher_grid()?;
                Some(AttnMap::of_stacked_pairs(a.clone(), b.clone(), heads))
            }
            _ => None,
        }
    }

    /// Pairs of factors; 0 for a general map.
    pub(crate) fn pairs(&self) -> usize {
        match self.map() {
            Some(AttnMap::Factored { .. }) => 1,
            Some(AttnMap::Kronecker { a, .. }) => a.dims()[0],
            Some(AttnMap::General { .. }) | None => 0,
        }
    }

    /// Heads and head size of the teacher.
    pub(crate) fn teacher_grid(&self) -> Option<(usize, usize)> {
        let &[first, second, third] = self.c_shape.as_slice() else {
            return None;
        };
        Some(match self.kind? {
            ProjectionKind::Qkv => (second, third),
            ProjectionKind::Output => (first, second),
        })
    }

    /// The student's kernel.
    pub(super) fn kernel(
        &self,
        name: &str,
        precision: KernelPrecision,
    ) -> Result<Tensor<B, 3>, CollapseError> {
        let not_a_map = || CollapseError::NotAMap {
            name: name.to_owned(),
        };
        let kind = self.kind.ok_or_else(not_a_map)?;
        let map = self.map().ok_or_else(not_a_map)?;
        let c = self
            .c
            .clone()
            .ok_or_else(|| CollapseError::MissingTeacher {
                name: name.to_owned(),
            })?;
        calculate_attn_weight(kind, c, map, precision).map_err(|source| {
            CollapseError::Contraction {
                name: name.to_owned(),
                source,
            }
        })
    }

    /// Keeps one field. Ranks other than the field's own belong to no `LtiDense` of ours.
    fn keep<const D: usize>(
        &mut self,
        field: &str,
        variant: Option<(&str, &str)>,
        param: &Param<Tensor<B, D>>,
    ) {
        if field == "c" {
            self.kind = match variant {
                Some(("TeacherKernel", "Qkv")) => Some(ProjectionKind::Qkv),
                Some(("TeacherKernel", "Output")) => Some(ProjectionKind::Output),
                _ => None,
            };
            self.c_shape = param.lazy_shape().to_vec();
            // A teacher that has not arrived must not be allocated by looking for it.
            if param.is_initialized() {
                self.c = to_rank(param.val());
            }
            return;
        }
        let value = compat::detached(param.val());
        match field {
            "a" => self.a = to_rank(value),
            "b" => self.b = to_rank(value),
            "w" => self.w = to_rank(value),
            "bias" => self.bias = to_rank(value),
            _ => {}
        }
    }
}

/// A tensor whose rank is `E` in fact but `D` to the compiler.
fn to_rank<B: Backend, const D: usize, const E: usize>(
    value: Tensor<B, D>,
) -> Option<Tensor<B, E>> {
    let shape: [usize; E] = value.dims().to_vec().try_into().ok()?;
    Some(value.reshape(shape))
}

/// The maps of a module by the name of their projection.
pub(crate) fn lti_parts<B: Backend, M: Module<B>>(module: &M) -> BTreeMap<String, LtiParts<B>> {
    let mut finder = MapFinder {
        path: ModulePath::default(),
        maps: BTreeMap::new(),
        others: None,
    };
    module.visit(&mut finder);
    finder.maps
}

/// All tensors of a module that belong to no map, and all maps.
pub(super) fn visit<B: Backend, M: Module<B>>(
    module: &M,
) -> (TensorSet<B>, BTreeMap<String, LtiParts<B>>) {
    let mut finder = MapFinder {
        path: ModulePath::default(),
        maps: BTreeMap::new(),
        others: Some(TensorSet::new()),
    };
    module.visit(&mut finder);
    (finder.others.unwrap_or_default(), finder.maps)
}

struct MapFinder<B: Backend> {
    path: ModulePath,
    maps: BTreeMap<String, LtiParts<B>>,
    others: Option<TensorSet<B>>,
}

impl<B: Backend> ModuleVisitor<B> for MapFinder<B> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let name = self.path.name();
        if self.path.owner() == "LtiDense" {
            let (prefix, field) = split_name(&name);
            self.maps
                .entry(prefix.to_owned())
                .or_default()
                .keep(field, self.path.variant(), param);
        } else if let Some(others) = &mut self.others {
            others.insert(&name, self.path.owner(), compat::detached(param.val()));
        }
    }
}
