//! [`StudentOptimizer`]: an optimizer, and what is done before and after each of its steps.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::module::AutodiffModule;
use burn::optim::{GradientsParams, MultiGradientsParams, Optimizer};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;

use super::gradients::{scale, square_sum, sum_of_devices};
use super::{RankSchedule, StepClock, StepMeasures};
use crate::parameters::tie;

/// An optimizer as a student needs it. Its record is that of the optimizer in it. In each step it
///
/// 1. adds the gradients of several devices,
/// 2. masks those of ranks that are not active yet, if there is a [`RankSchedule`],
/// 3. measures the norm of all gradients together. Where it is not finite no step is taken: the module
///    comes back as it was, and [`StepMeasures`] tell,
/// 4. scales them down together where that norm is above its bound. Burn's own clipping is per
///    parameter, which changes the direction of the step,
/// 5. advances its [`StepClock`] and has the optimizer take the step,
/// 6. [ties](tie) the parameters of one id. Burn updates the first of them in the module alone, with the
///    one gradient and the one state of their id; here the others take its value.
///
/// The gradient of parameters of one id is the sum over all uses if the module was tied before its
/// `backward`, or if [`collect_gradients`](super::collect_gradients) collected it.
///
/// Clones are handles on the same state. Burn's Learner does not give its optimizer away while it
/// trains: with a clone of it, a [`StepHook`](super::StepHook) saves the state in a
/// [`CheckpointDir`](super::CheckpointDir).
///
/// ```
/// use burn::backend::{Autodiff, Flex};
/// use burn::nn::{Linear, LinearConfig};
/// use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
/// use burn::tensor::{Distribution, Tensor};
/// use burn_lti::parameters::tie;
/// use burn_lti::train::StudentOptimizer;
///
/// type B = Autodiff<Flex>;
/// let device = Default::default();
/// let mut layers: Vec<Linear<B>> = (0..2).map(|_| LinearConfig::new(4, 4).init(&device)).collect();
/// layers[1].weight.id = layers[0].weight.id;
/// let mut layers = tie(layers);
///
/// let adamw = AdamWConfig::new().init::<B, Vec<Linear<B>>>();
/// let mut optimizer = StudentOptimizer::new(adamw).with_max_norm(1.0);
/// let x = Tensor::<B, 2>::random([3, 4], Distribution::Default, &device);
/// let loss = layers[1].forward(layers[0].forward(x)).sum();
/// let gradients = GradientsParams::from_grads(loss.backward(), &layers);
/// layers = optimizer.step(1e-2, layers, gradients);
/// assert!(optimizer.measures().last().is_some());
/// assert_eq!(layers[0].weight.to_data(), layers[1].weight.to_data());
/// ```
#[derive(Debug)]
pub struct StudentOptimizer<O> {
    optimizer: Arc<Mutex<O>>,
    ranks: Option<RankSchedule>,
    max_norm: f64,
    measures: StepMeasures,
    clock: StepClock,
}

impl<O> StudentOptimizer<O> {
    /// Steps with `optimizer`, all ranks active and the norm only measured.
    pub fn new(optimizer: O) -> Self {
        Self {
            optimizer: Arc::new(Mutex::new(optimizer)),
            ranks: None,
            max_norm: f64::INFINITY,
            measures: StepMeasures::new(),
            clock: StepClock::new(),
        }
    }

    /// Clips the norm of all gradients together at `max_norm`.
    pub fn with_max_norm(mut self, max_norm: f64) -> Self {
        self.max_norm = max_norm;
        self
    }

    /// Activates the ranks of maps by this schedule, if there is one. Those that are not active count
    /// nothing in the norm.
    pub fn with_ranks(mut self, ranks: Option<RankSchedule>) -> Self {
        self.ranks = ranks;
        self
    }

    /// Advances `clock` with every step taken. One that is refused does not count, as the optimizer's
    /// own count of steps does not change either.
    pub fn with_clock(mut self, clock: StepClock) -> Self {
        self.clock = clock;
        self
    }

    /// Tells `measures` the norm of each step, as an [`Adam`](super::Adam) in it does its rates.
    pub fn with_measures(mut self, measures: StepMeasures) -> Self {
        self.measures = measures;
        self
    }

    /// A handle on what is measured of each step.
    pub fn measures(&self) -> StepMeasures {
        self.measures.clone()
    }

    fn lock(&self) -> MutexGuard<'_, O> {
        self.optimizer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl<O> Clone for StudentOptimizer<O> {
    fn clone(&self) -> Self {
        Self {
            optimizer: self.optimizer.clone(),
            ranks: self.ranks,
            max_norm: self.max_norm,
            measures: self.measures.clone(),
            clock: self.clock.clone(),
        }
    }
}

impl<M, B, O> Optimizer<M, B> for StudentOptimizer<O>
where
    B: AutodiffBackend,
    M: AutodiffModule<B>,
    O: Optimizer<M, B>,
{
    type Record = O::Record;

    fn step(&mut self, lr: f64, module: M, mut grads: GradientsParams) -> M {
        if let Some(ranks) = self.ranks {
            ranks.mask(self.clock.taken(), &module, &mut grads);
        }
        let (mut grads, sum) = square_sum::<B, M>(&module, grads);
        let norm = sum
            .as_ref()
            .map_or(0.0, |sum| sum.clone().into_scalar().elem::<f64>().sqrt());
        self.measures.set_grad_norm(norm);
        if !norm.is_finite() {
            return tie(module);
        }
        if let Some(sum) = sum
            && norm > self.max_norm
        {
            let factor = Tensor::full([1], self.max_norm / norm, &sum.device());
            grads = scale::<B, M>(&module, grads, factor);
        }
        self.clock.advance();
        tie(self.lock().step(lr, module, grads))
    }

    /// What comes before and after a joint step is done with the sum over its devices, so the sum comes first.
    fn step_multi(&mut self, lr: f64, module: M, grads: MultiGradientsParams) -> M {
        let sum = sum_of_devices::<B, M>(&module, grads);
        self.step(lr, module, sum)
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
