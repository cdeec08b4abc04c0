//! Maps that grow: pairs of factors that join a training one after another.
//!
//! All pairs of a sum are there from the first step, so that the tensors of a training, the optimizer's
//! moments and its checkpoints keep their shapes. A pair that has not joined has no gradient: but for
//! weight decay it stays as it began, which is nothing where a start left it empty. Joining changes
//! neither the function nor what the optimizer knows of the others, and who has joined follows from the
//! step alone.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use burn::module::{AutodiffModule, ModuleVisitor, Param};
use burn::optim::{GradientsParams, MultiGradientsParams, Optimizer};
use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::backend::AutodiffBackend;

use super::StepClock;
use super::optimizer::sum_of_devices;
use crate::map::{LtiParts, MapTensor, lti_parts};
use crate::tensors::ModulePath;

/// When the pairs of a [`MapKind::Kronecker`](crate::map::MapKind::Kronecker) map begin to learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    /// Pairs that learn from the first step.
    pub from: NonZeroUsize,
    /// Steps after which one more joins.
    pub every: NonZeroUsize,
}

impl Growth {
    /// Pairs that learn in the step after `taken` steps.
    pub const fn joined(&self, taken: usize) -> usize {
        self.from.get().saturating_add(taken / self.every.get())
    }

    /// Steps after which all of `pairs` learn.
    pub const fn steps(&self, pairs: usize) -> usize {
        pairs
            .saturating_sub(self.from.get())
            .saturating_mul(self.every.get())
    }
}

/// An optimizer of maps that grow. Without a [`Growth`] it is the optimizer alone.
///
/// ```
/// use std::num::NonZeroUsize;
/// use burn::backend::{Autodiff, Flex};
/// use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
/// use burn::tensor::{Distribution, Tensor};
/// use burn_lti::geometry::{Axes, HeadGrid, Role};
/// use burn_lti::map::{LtiDense, LtiDenseConfig, MapKind, Side};
/// use burn_lti::train::{Growing, Growth, StepClock};
///
/// type B = Autodiff<Flex>;
/// # fn main() -> Result<(), burn_lti::map::DenseError> {
/// let device = Default::default();
/// let c = Tensor::<B, 2>::random([16, 4 * 4], Distribution::Default, &device);
/// let axes = |heads| Axes::of_attention(16, HeadGrid::new(heads, 4), HeadGrid::new(heads, 4));
/// let (teacher, student) = (axes(4), axes(2));
/// let map = MapKind::Kronecker(2);
/// let query = LtiDenseConfig::new(Role::Query, &teacher, &student, map).init(c)?;
///
/// let adamw = AdamWConfig::new().init::<B, LtiDense<B>>();
/// let two = NonZeroUsize::MIN.saturating_add(1);
/// let growth = Growth { from: NonZeroUsize::MIN, every: two };
/// let clock = StepClock::new(); // the training's; nobody has advanced it
/// let mut optimizer = Growing::new(adamw, Some(growth), clock);
/// let loss = query.kernel().powi_scalar(2).sum();
/// let gradients = GradientsParams::from_grads(loss.backward(), &query);
/// let query = optimizer.step(1e-2, query, gradients);
/// let b = query.map_on(Side::Right).and_then(|map| map.b()).unwrap();
/// assert_eq!(b.slice_dim(0, 4..8).abs().sum().into_scalar(), 0.0); // has not joined yet
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Growing<O> {
    optimizer: O,
    growth: Option<Growth>,
    clock: StepClock,
}

impl<O> Growing<O> {
    /// Grows the maps that `optimizer` steps, by the steps that `clock` says were taken. Clip behind it:
    /// what has not joined then counts nothing in the norm.
    pub const fn new(optimizer: O, growth: Option<Growth>, clock: StepClock) -> Self {
        Self {
            optimizer,
            growth,
            clock,
        }
    }
}

impl<M, B, O> Optimizer<M, B> for Growing<O>
where
    B: AutodiffBackend,
    M: AutodiffModule<B>,
    O: Optimizer<M, B>,
{
    type Record = O::Record;

    fn step(&mut self, lr: f64, module: M, mut grads: GradientsParams) -> M {
        if let Some(growth) = self.growth {
            module.visit(&mut Mask {
                joined: growth.joined(self.clock.taken()),
                maps: lti_parts(&module),
                path: ModulePath::default(),
                grads: &mut grads,
            });
        }
        self.optimizer.step(lr, module, grads)
    }

    fn step_multi(&mut self, lr: f64, module: M, grads: MultiGradientsParams) -> M {
        let grads = sum_of_devices::<B, M>(&module, grads);
        self.step(lr, module, grads)
    }

    fn to_record(&self) -> Self::Record {
        self.optimizer.to_record()
    }

    fn load_record(mut self, record: Self::Record) -> Self {
        self.optimizer = self.optimizer.load_record(record);
        self
    }
}

/// Takes the gradients of pairs that have not joined away.
struct Mask<'a, B: AutodiffBackend> {
    joined: usize,
    maps: BTreeMap<String, LtiParts<B>>,
    path: ModulePath,
    grads: &'a mut GradientsParams,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Mask<'_, B> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let Some(tensor) = MapTensor::at(&self.path) else {
            return;
        };
        let Some((side, "a" | "b")) = tensor.factor() else {
            return;
        };
        let parts = self.maps.get(&tensor.projection);
        let pairs = parts.map_or(1, |parts| parts.pairs(side));
        if pairs <= self.joined {
            return;
        }
        let Some(grad) = self.grads.remove::<B::InnerBackend, D>(param.id) else {
            return;
        };
        // The pairs stand one below the other.
        let rows = grad.dims()[0];
        let learn = rows / pairs * self.joined;
        let mask = (0..rows).map(|row| f32::from(u8::from(row < learn)));
        let mask = TensorData::new(mask.collect(), [rows, 1]);
        let mask = Tensor::<B::InnerBackend, 2>::from_data(mask, &grad.device());
        let mask = mask.cast(grad.dtype()).unsqueeze();
        self.grads
            .register::<B::InnerBackend, D>(param.id, grad * mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pair_joins_after_so_many_steps() {
        let number = |n| NonZeroUsize::new(n).unwrap();
        let growth = Growth {
            from: number(2),
            every: number(10),
        };
        let joined = [0, 9, 10, 25].map(|taken| growth.joined(taken));
        assert_eq!(joined, [2, 2, 3, 4]);
        assert_eq!([1, 2, 5].map(|pairs| growth.steps(pairs)), [0, 0, 30]);
    }
}
