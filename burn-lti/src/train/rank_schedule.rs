//! [`RankSchedule`]: the ranks of a map become active one after another.
//!
//! All pairs of factors of a sum are there from the first step, so that the tensors of a training, the
//! optimizer's moments and its checkpoints keep their shapes. A rank that is not active has no gradient:
//! but for weight decay its pair stays as it began, which is nothing where a start left it empty. To
//! become active changes neither the function nor what the optimizer knows of the others, and which
//! ranks are active follows from the step alone.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use burn::module::{AutodiffModule, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::backend::AutodiffBackend;

use crate::map::{LtiParts, MapTensor, lti_parts};
use crate::tensors::ModulePath;

/// How many pairs of a [`MapKind::Kronecker`](crate::map::MapKind::Kronecker) map learn in which step.
/// Rank `r`, counted from 1, is active once `(r - from) * every` steps were taken.
///
/// ```
/// use std::num::NonZeroUsize;
/// use burn::backend::{Autodiff, Flex};
/// use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
/// use burn::tensor::{Distribution, Tensor};
/// use burn_lti::geometry::{Axes, HeadGrid, Role};
/// use burn_lti::map::{LtiDense, LtiDenseConfig, MapKind, Side};
/// use burn_lti::train::{RankSchedule, StudentOptimizer};
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
/// let ranks = RankSchedule { from: NonZeroUsize::MIN, every: two };
/// let mut optimizer = StudentOptimizer::new(adamw).with_ranks(Some(ranks));
/// let loss = query.kernel().powi_scalar(2).sum();
/// let gradients = GradientsParams::from_grads(loss.backward(), &query);
/// let query = optimizer.step(1e-2, query, gradients);
/// let b = query.map_on(Side::Right).and_then(|map| map.b()).unwrap();
/// assert_eq!(b.slice_dim(0, 4..8).abs().sum().into_scalar(), 0.0); // not active yet
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankSchedule {
    /// Ranks that are active from the first step.
    pub from: NonZeroUsize,
    /// Steps after which one more is.
    pub every: NonZeroUsize,
}

impl RankSchedule {
    /// Ranks that are active in the step after `taken` steps.
    pub const fn active(&self, taken: usize) -> usize {
        self.from.get().saturating_add(taken / self.every.get())
    }

    /// Steps after which all of `ranks` are active.
    pub const fn steps(&self, ranks: usize) -> usize {
        ranks
            .saturating_sub(self.from.get())
            .saturating_mul(self.every.get())
    }

    /// Sets the gradients of the ranks of `module`'s maps to zero that are not active after `taken` steps.
    pub(super) fn mask<B: AutodiffBackend, M: AutodiffModule<B>>(
        self,
        taken: usize,
        module: &M,
        grads: &mut GradientsParams,
    ) {
        module.visit(&mut Mask {
            active: self.active(taken),
            maps: lti_parts(module),
            path: ModulePath::default(),
            grads,
        });
    }
}

struct Mask<'a, B: AutodiffBackend> {
    active: usize,
    maps: BTreeMap<String, LtiParts<B>>,
    path: ModulePath,
    grads: &'a mut GradientsParams,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Mask<'_, B> {
    crate::tensors::follow_path!();

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let Some(tensor) = MapTensor::at(&self.path) else {
            return;
        };
        let Some((side, "a" | "b")) = tensor.factor() else {
            return;
        };
        let parts = self.maps.get(&tensor.projection);
        let pairs = parts.map_or(1, |parts| parts.pairs(side));
        if pairs <= self.active {
            return;
        }
        let Some(grad) = self.grads.remove::<B::InnerBackend, D>(param.id) else {
            return;
        };
        // The pairs stand one below the other.
        let rows = grad.dims()[0];
        let active = rows / pairs * self.active;
        let mask = (0..rows).map(|row| f32::from(row < active));
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
    fn one_rank_becomes_active_after_so_many_steps() {
        let number = |n| NonZeroUsize::new(n).unwrap();
        let ranks = RankSchedule {
            from: number(2),
            every: number(10),
        };
        let active = [0, 9, 10, 25].map(|taken| ranks.active(taken));
        assert_eq!(active, [2, 2, 3, 4]);
        assert_eq!([1, 2, 5].map(|all| ranks.steps(all)), [0, 0, 30]);
    }
}
