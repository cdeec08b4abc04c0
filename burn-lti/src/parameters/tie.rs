//! Parameters of one id are one variable.

use std::collections::HashSet;

use burn::module::{ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::prelude::*;
use burn::tensor::container::TensorContainer;

/// Makes parameters of one id one variable: each has the value of the first of them in the module,
/// on the same node of the autodiff graph.
///
/// Burn knows a parameter by its id, but keeps a value beside each use of it, and moves, loads,
/// freezes and trains these one by one. [`inject`](mod@crate::inject) ties what
/// [`ShareRule`](crate::blueprint::ShareRule)s share. What keeps the tie, and what needs this function after it:
///
/// | operation | ids | values | one node, so that gradients add up |
/// |---|---|---|---|
/// | `clone`, `valid` | kept | kept | kept (`valid` has none) |
/// | [`set_trainable`](super::set_trainable) | kept | kept | kept: it ties |
/// | a step of [`StudentOptimizer`](crate::train::StudentOptimizer) | kept | kept | kept: it ties |
/// | a step of any other optimizer | kept | only the first is updated | lost |
/// | `fork`, `to_device`, `from_inner`, `load_record` of a file | kept | kept | lost |
///
/// A gradient by [`collect_gradients`](crate::train::collect_gradients), as
/// [`Distiller`](crate::train::Distiller) collects it, is right in every row.
///
/// Whether the variable trains is the first parameter's to say. On an inner backend Burn forgets of
/// the others whether they do: use [`set_trainable`](super::set_trainable) afterwards, as after any
/// change there.
pub fn tie<B: Backend, M: Module<B>>(module: M) -> M {
    let mut finder = RepeatFinder::default();
    module.visit(&mut finder);
    if finder.repeated.is_empty() {
        return module;
    }
    module.map(&mut Tie {
        repeated: finder.repeated,
        first: TensorContainer::new(),
    })
}

#[derive(Default)]
struct RepeatFinder {
    seen: HashSet<ParamId>,
    repeated: HashSet<ParamId>,
}

impl<B: Backend> ModuleVisitor<B> for RepeatFinder {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if !self.seen.insert(param.id) {
            self.repeated.insert(param.id);
        }
    }
}

struct Tie {
    repeated: HashSet<ParamId>,
    first: TensorContainer<ParamId>,
}

impl<B: Backend> ModuleMapper<B> for Tie {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        if !self.repeated.contains(&param.id) {
            return param;
        }
        match self.first.get::<B>(&param.id) {
            Some(first) => param.map(|_| Tensor::from_primitive(first)),
            None => {
                let value = param.val().into_primitive();
                self.first.register::<B>(param.id, value);
                param
            }
        }
    }
}
