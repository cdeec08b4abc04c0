//! Which parameters train.

use burn::module::{ModuleMapper, Param};
use burn::prelude::*;

use super::tie;
use crate::map::Part;
use crate::tensors::ModulePath;

/// A parameter as seen by the rule that decides whether it trains.
#[derive(Clone, Debug)]
pub struct TrainableParameter<'a> {
    /// Dotted name.
    pub name: &'a str,
    /// Whether it is part of a learn-to-init map: `A`, `B`, `W`, or the bias beside them.
    pub in_map: bool,
}

/// Sets for every float parameter whether it trains. `C` never does, whatever `trains` says. Parameters
/// of one id are [tied](tie) and train as `trains` says of the first of them in the module.
///
/// Call it again after a model was loaded or moved on an inner backend: Burn forgets there which
/// parameters are frozen.
pub fn set_trainable<B: Backend, M: Module<B>>(
    module: M,
    trains: impl FnMut(&TrainableParameter<'_>) -> bool,
) -> M {
    // Each parameter is frozen or freed on its own, which would leave a shared one on several nodes.
    tie(module.map(&mut Freezer {
        path: ModulePath::default(),
        trains,
    }))
}

struct Freezer<F> {
    path: ModulePath,
    trains: F,
}

impl<B: Backend, F: FnMut(&TrainableParameter<'_>) -> bool> ModuleMapper<B> for Freezer<F> {
    crate::tensors::follow_path!();

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let name = self.path.name();
        let part = Part::at(&self.path);
        let trains = part != Part::TeacherKernel
            && (self.trains)(&TrainableParameter {
                name: &name,
                in_map: part != Part::Plain,
            });
        // The value exists from here on: a lazy parameter would forget the flag.
        param.map(|value| value.set_require_grad(trains))
    }
}
