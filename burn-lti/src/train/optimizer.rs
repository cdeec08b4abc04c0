//! Optimizers around optimizers: clipping by the norm of all gradients together, and one that its
//! caller can still read while Burn's Learner owns it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::module::{AutodiffModule, ModuleVisitor, Param, ParamId};
use burn::optim::{GradientsParams, MultiGradientsParams, Optimizer};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;

use super::StepClock;
use crate::compat;
use crate::compat::at_least_float32;

/// The norm of the last step's gradients, before clipping. Clones read the same value.
#[derive(Clone, Debug, Default)]
pub struct GradNorm(Arc<Mutex<Option<f64>>>);

impl GradNorm {
    /// The norm; `None` before the first step.
    pub fn last(&self) -> Option<f64> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, norm: f64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(norm);
    }
}

/// An optimizer whose gradients are scaled down together when their global norm exceeds a bound.
///
/// Burn's own clipping is per parameter, which changes the direction of the step. A step whose norm
/// is not finite is not taken: the module comes back as it was, and [`GradNorm`] tells.
#[derive(Clone)]
pub struct GlobalNormClip<O> {
    optimizer: O,
    max_norm: f64,
    norm: GradNorm,
    clock: StepClock,
}

impl<O> GlobalNormClip<O> {
    /// Clips for `optimizer`. `max_norm` may be infinite: then the norm is only measured.
    pub fn new(optimizer: O, max_norm: f64) -> Self {
        Self {
            optimizer,
            max_norm,
            norm: GradNorm::default(),
            clock: StepClock::new(),
        }
    }

    /// Advances `clock` with every step taken. One that is refused does not count, as the optimizer's
    /// own count of steps does not change either.
    pub fn with_clock(mut self, clock: StepClock) -> Self {
        self.clock = clock;
        self
    }

    /// A handle on the norm of each step.
    pub fn norm(&self) -> GradNorm {
        self.norm.clone()
    }
}

impl<M, B, O> Optimizer<M, B> for GlobalNormClip<O>
where
    B: AutodiffBackend,
    M: AutodiffModule<B>,
    O: Optimizer<M, B>,
{
    type Record = O::Record;

    fn step(&mut self, lr: f64, module: M, mut grads: GradientsParams) -> M {
        let mut squares = SquareSum::<B> {
            grads: &grads,
            seen: HashSet::new(),
            sum: None,
        };
        module.visit(&mut squares);
        let norm = squares
            .sum
            .as_ref()
            .map_or(0.0, |sum| sum.clone().into_scalar().elem::<f64>().sqrt());
        self.norm.set(norm);
        if !norm.is_finite() {
            return module;
        }
        if let Some(sum) = squares.sum
            && norm > self.max_norm
        {
            let factor = Tensor::full([1], self.max_norm / norm, &sum.device());
            scale_gradients(&module, &mut grads, factor);
        }
        self.clock.advance();
        self.optimizer.step(lr, module, grads)
    }

    /// The norm of a joint step is that of the sum over its devices, so the sum comes first.
    fn step_multi(&mut self, lr: f64, module: M, grads: MultiGradientsParams) -> M {
        let sum = sum_of_devices::<B, M>(&module, grads);
        self.step(lr, module, sum)
    }

    fn to_record(&self) -> Self::Record {
        self.optimizer.to_record()
    }

    fn load_record(mut self, record: Self::Record) -> Self {
        self.optimizer = self.optimizer.load_record(record);
        self
    }
}

/// An optimizer whose clones are handles on the same state.
///
/// Burn's Learner does not give its optimizer away while it trains. With a clone of this one, a
/// [`StepHook`](super::StepHook) saves the state in a [`CheckpointDir`](super::CheckpointDir).
#[derive(Debug)]
pub struct SharedOptimizer<O>(Arc<Mutex<O>>);

impl<O> SharedOptimizer<O> {
    /// Shares `optimizer`.
    pub fn new(optimizer: O) -> Self {
        Self(Arc::new(Mutex::new(optimizer)))
    }

    fn lock(&self) -> MutexGuard<'_, O> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<O> Clone for SharedOptimizer<O> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M, B, O> Optimizer<M, B> for SharedOptimizer<O>
where
    B: AutodiffBackend,
    M: AutodiffModule<B>,
    O: Optimizer<M, B>,
{
    type Record = O::Record;

    fn step(&mut self, lr: f64, module: M, grads: GradientsParams) -> M {
        self.lock().step(lr, module, grads)
    }

    fn step_multi(&mut self, lr: f64, module: M, grads: MultiGradientsParams) -> M {
        self.lock().step_multi(lr, module, grads)
    }

    fn to_record(&self) -> Self::Record {
        self.lock().to_record()
    }

    /// Every handle goes on from `record`.
    fn load_record(self, record: Self::Record) -> Self {
        let mut optimizer = self.lock();
        *optimizer = optimizer.clone().load_record(record);
        drop(optimizer);
        self
    }
}

/// The sum of the squares of all gradients, left on the device. A shared parameter has one.
struct SquareSum<'a, B: AutodiffBackend> {
    grads: &'a GradientsParams,
    seen: HashSet<ParamId>,
    sum: Option<Tensor<B::InnerBackend, 1>>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for SquareSum<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if !self.seen.insert(param.id) {
            return;
        }
        let Some(grad) = self.grads.get::<B::InnerBackend, D>(param.id) else {
            return;
        };
        // The square of a small half-precision number would be zero.
        let wide = at_least_float32(grad.dtype());
        let square = compat::total(grad.cast(wide).square());
        self.sum = Some(match self.sum.take() {
            Some(sum) => sum + square,
            None => square,
        });
    }
}

/// Multiplies the gradients of `module`'s parameters by `factor [1]`, which stays on its device.
pub(super) fn scale_gradients<B: AutodiffBackend, M: AutodiffModule<B>>(
    module: &M,
    grads: &mut GradientsParams,
    factor: Tensor<B::InnerBackend, 1>,
) {
    module.visit(&mut Scale::<B> {
        grads,
        seen: HashSet::new(),
        factor,
    });
}

struct Scale<'a, B: AutodiffBackend> {
    grads: &'a mut GradientsParams,
    seen: HashSet<ParamId>,
    factor: Tensor<B::InnerBackend, 1>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Scale<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if !self.seen.insert(param.id) {
            return;
        }
        if let Some(grad) = self.grads.remove::<B::InnerBackend, D>(param.id) {
            let factor = self.factor.clone().cast(grad.dtype()).unsqueeze();
            self.grads
                .register::<B::InnerBackend, D>(param.id, grad * factor);
        }
    }
}

/// The gradients of all devices, added.
pub(super) fn sum_of_devices<B: AutodiffBackend, M: AutodiffModule<B>>(
    module: &M,
    mut grads: MultiGradientsParams,
) -> GradientsParams {
    let mut sum = GradientsParams::new();
    module.visit(&mut Sum {
        from: &mut grads,
        into: &mut sum,
    });
    sum
}

/// Adds each parameter's gradients of all devices, on the parameter's own device.
struct Sum<'a> {
    from: &'a mut MultiGradientsParams,
    into: &'a mut GradientsParams,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Sum<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some((grad, _)) = self.from.remove::<B::InnerBackend, D>(param.id) {
            let grad = grad.to_device(&param.device());
            self.into.register::<B::InnerBackend, D>(param.id, grad);
        }
    }
}
