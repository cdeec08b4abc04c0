//! [`Adam`]: AdamW, with one rate for all tensors or a measured one for each.

use std::collections::HashMap;

use burn::module::{AutodiffModule, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::{GradientsParams, MultiGradientsParams, Optimizer};
use burn::prelude::*;
use burn::record::Record;
use burn::tensor::backend::AutodiffBackend;

use super::gradients::sum_of_devices;
use super::{RateRange, StepMeasures};
use crate::calibration::Whitening;
use crate::kernels::adam::{AdamStep, Moments, Promises, descended};
use crate::tensors::ModulePath;

/// The numbers of AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamConfig {
    /// Decay of the running means of gradient and squared gradient.
    pub betas: [f64; 2],
    /// Added to the root of the squared gradient's mean.
    pub epsilon: f64,
    /// Decoupled weight decay: a step multiplies a weight by `1 - rate * weight_decay`.
    pub weight_decay: f64,
}

impl Default for AdamConfig {
    /// Decays of 0.9 and 0.95, no weight decay, and an epsilon below every gradient there is.
    fn default() -> Self {
        Self {
            betas: [0.9, 0.95],
            epsilon: 1e-12,
            weight_decay: 0.0,
        }
    }
}

/// Rates that are measured, so that one number fits every model.
///
/// The first step of Adam goes along the sign of the gradient `g_t` of each tensor `t`: at a rate of
/// `r` it promises to take `r |g_t|_1` off the loss. (One along the balanced gradient `d`, see
/// [`Adam::with_balanced`], promises `r <g_t, d>`, which stands for `|g_t|_1` then.) With `n` tensors and the
/// mean `rho_t` of `|g_t|_1 / loss` over the first `warmup` steps, the rate of a tensor is
///
/// ```text
/// r_t = lr / (n rho_t)
/// ```
///
/// so that at `lr = 1` one such step of all tensors together promises the whole loss, each tensor the same
/// part of it. After `warmup` steps `rho_t` stays what it is. `lr` is what the optimizer is called with: a
/// schedule whose peak is 1, or a multiple.
///
/// What a step promises beyond `cap`, as a part of the loss, is cut off by making the whole step shorter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MeasuredRates {
    /// Steps over which the gradients are measured, at least 1.
    pub warmup: usize,
    /// The most that a step may promise, as a part of the loss.
    pub cap: f64,
}

impl MeasuredRates {
    /// The fewest steps that make a mean of gradients.
    pub const LEAST_WARMUP: usize = 5;
    /// A step that promises half of the loss believes a slope far beyond where it was measured.
    pub const CAP: f64 = 0.5;

    /// Measures over `warmup` steps, at least [`Self::LEAST_WARMUP`], capped at [`Self::CAP`].
    pub fn new(warmup: usize) -> Self {
        Self {
            warmup: warmup.max(Self::LEAST_WARMUP),
            cap: Self::CAP,
        }
    }
}

/// AdamW (Loshchilov and Hutter 2019) over all parameters that have a gradient.
///
/// Its record holds moments and measured rates: a training that goes on from it takes the same steps,
/// bit for bit.
#[derive(Clone, Debug)]
pub struct Adam<B: AutodiffBackend> {
    config: AdamConfig,
    measured: Option<(MeasuredRates, StepMeasures)>,
    whitening: Option<Whitening<B::InnerBackend>>,
    /// By their names, the matrices that take balanced steps.
    balances: fn(&str) -> bool,
    states: HashMap<ParamId, TensorState<B::InnerBackend>>,
}

/// What [`Adam`] knows of one parameter.
#[derive(Record, Clone, Debug)]
pub struct TensorState<B: Backend> {
    parameter: u64,
    /// Running means of the gradient and of its square, in one row. Balanced steps need the first alone.
    first: Tensor<B, 1>,
    second: Option<Tensor<B, 1>>,
    steps: usize,
    /// The mean of what a first step along the gradient promises, as a part of the loss.
    rho: f64,
}

impl<B: AutodiffBackend> Adam<B> {
    /// An optimizer whose rate is what it is called with, for all tensors.
    pub fn new(config: AdamConfig) -> Self {
        Self {
            config,
            measured: None,
            whitening: None,
            balances: |_| false,
            states: HashMap::new(),
        }
    }

    /// Measures the rate of each tensor, and tells `measures`. Where nobody has told `measures` a
    /// loss, it counts as 1.
    pub fn with_measured_rates(mut self, rates: MeasuredRates, measures: StepMeasures) -> Self {
        self.measured = Some((rates, measures));
        self
    }

    /// Moves the maps that `whitening` names in its coordinates. Moments and measured rates are in them
    /// too, so that a training that goes on needs the same.
    pub fn with_whitening(mut self, whitening: Whitening<B::InnerBackend>) -> Self {
        self.whitening = Some(whitening);
        self
    }

    /// Has the matrices whose names `balances` accepts move along their balanced momentum: the running mean of
    /// their gradients with the newest ahead of it (Nesterov's), each row and then each column divided by its
    /// root mean square (Scetbon et al. 2025, SinkGD, without momentum). They need one moment where Adam needs two. The decay of the mean is
    /// the first of [`AdamConfig::betas`]; the other numbers but the weight decay are for all else.
    pub fn with_balanced(mut self, balances: fn(&str) -> bool) -> Self {
        self.balances = balances;
        self
    }

    /// The factors of each direction: one rate, or measured ones.
    fn rates(&mut self, lr: f64, directions: &mut [Direction<B>]) {
        let Some((rates, measures)) = &self.measured else {
            directions.iter_mut().for_each(|step| step.rate = lr);
            return;
        };
        let loss = measures.loss().unwrap_or(1.0).abs().max(LEAST_LOSS);
        // All numbers of all tensors in one reading.
        let promises = directions
            .iter_mut()
            .filter_map(|step| step.promises.take());
        let promises: Vec<_> = promises.collect();
        let read: Vec<f64> = match promises.is_empty() {
            true => Vec::new(),
            false => Tensor::cat(promises, 0).into_data().iter::<f64>().collect(),
        };
        let parts = directions.len() as f64;
        let mut promise = 0.0;
        for (step, sums) in directions.iter_mut().zip(read.chunks_exact(2)) {
            let &[size, along] = sums else { continue };
            let Some(state) = self.states.get_mut(&step.id) else {
                continue;
            };
            if state.steps <= rates.warmup {
                state.rho += (size / loss - state.rho) / state.steps as f64;
            }
            // A tensor that never had a gradient has no direction either.
            step.rate = match state.rho > 0.0 {
                true => lr / (parts * state.rho),
                false => 0.0,
            };
            promise += step.rate * along / loss;
        }
        let factor = match promise > rates.cap {
            true => rates.cap / promise,
            false => 1.0,
        };
        directions.iter_mut().for_each(|step| step.rate *= factor);
        let taken = directions.iter().map(|step| step.rate).collect();
        if let Some(range) = RateRange::of(taken) {
            measures.set_rates(promise, range);
        }
    }
}

/// A loss below this is no loss.
const LEAST_LOSS: f64 = 1e-12;

/// Where a step takes one parameter.
struct Direction<B: AutodiffBackend> {
    id: ParamId,
    /// In one row.
    values: Tensor<B::InnerBackend, 1>,
    /// See [`Moments`]; where rates are measured.
    promises: Option<Tensor<B::InnerBackend, 1>>,
    rate: f64,
}

impl<B: AutodiffBackend, M: AutodiffModule<B>> Optimizer<M, B> for Adam<B> {
    type Record = Vec<TensorState<B>>;

    fn step(&mut self, lr: f64, module: M, grads: GradientsParams) -> M {
        let mut seen = Directions {
            adam: self,
            grads,
            path: ModulePath::default(),
            found: Vec::new(),
        };
        module.visit(&mut seen);
        let mut directions = seen.found;
        self.rates(lr, &mut directions);
        module.map(&mut Stepper {
            directions: directions.into_iter().map(|step| (step.id, step)).collect(),
            weight_decay: self.config.weight_decay,
        })
    }

    fn step_multi(&mut self, lr: f64, module: M, grads: MultiGradientsParams) -> M {
        let sum = sum_of_devices::<B, M>(&module, grads);
        self.step(lr, module, sum)
    }

    fn to_record(&self) -> Self::Record {
        let mut states: Vec<_> = self.states.values().cloned().collect();
        states.sort_by_key(|state| state.parameter);
        let states = states.into_iter().map(|state| TensorState {
            parameter: state.parameter,
            first: Tensor::from_inner(state.first),
            second: state.second.map(Tensor::from_inner),
            steps: state.steps,
            rho: state.rho,
        });
        states.collect()
    }

    fn load_record(mut self, record: Self::Record) -> Self {
        let states = record.into_iter().map(|state| {
            let inner = TensorState {
                parameter: state.parameter,
                first: state.first.inner(),
                second: state.second.map(Tensor::inner),
                steps: state.steps,
                rho: state.rho,
            };
            (ParamId::from(state.parameter), inner)
        });
        self.states = states.collect();
        self
    }
}

/// Brings the moments of all parameters up to date and finds where to go.
struct Directions<'a, B: AutodiffBackend> {
    adam: &'a mut Adam<B>,
    grads: GradientsParams,
    path: ModulePath,
    found: Vec<Direction<B>>,
}

impl<B: AutodiffBackend> Directions<'_, B> {
    /// A gradient or a step of the parameter here, from its coordinates into whitened ones, or back.
    fn turned<const D: usize>(
        &self,
        values: Tensor<B::InnerBackend, 1>,
        shape: [usize; D],
    ) -> Tensor<B::InnerBackend, 1> {
        match &self.adam.whitening {
            Some(whitening) => whitening.apply(&self.path.name(), values, &shape),
            None => values,
        }
    }
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Directions<'_, B> {
    crate::tensors::follow_path!();

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let Some(grad) = self.grads.remove::<B::InnerBackend, D>(param.id) else {
            return;
        };
        let shape = grad.dims();
        let grad = self.turned(grad.flatten(0, D - 1), shape);
        let (before, taken, rho) = match self.adam.states.remove(&param.id) {
            None => (None, 0, 0.0),
            Some(state) => (Some((state.first, state.second)), state.steps, state.rho),
        };
        let AdamConfig { betas, epsilon, .. } = self.adam.config;
        let promises = match &self.adam.measured {
            None => Promises::None,
            Some((rates, _)) if taken < rates.warmup => Promises::Both,
            Some(_) => Promises::Direction,
        };
        let step = AdamStep {
            betas,
            epsilon,
            step: taken + 1,
        };
        let Moments {
            first,
            second,
            direction,
            promises,
        } = match shape.as_slice() {
            &[rows, columns] if (self.adam.balances)(&self.path.name()) => {
                let first = before.map(|(first, _)| first);
                step.balanced_momentum(grad.reshape([rows, columns]), first, promises)
            }
            _ => {
                let before = before.and_then(|(first, second)| Some([first, second?]));
                step.moments(grad, before, promises)
            }
        };
        self.found.push(Direction {
            id: param.id,
            values: self.turned(direction, shape),
            promises,
            rate: 0.0,
        });
        let state = TensorState {
            parameter: param.id.val(),
            first,
            second,
            steps: step.step,
            rho,
        };
        self.adam.states.insert(param.id, state);
    }
}

/// Goes there.
struct Stepper<B: AutodiffBackend> {
    directions: HashMap<ParamId, Direction<B>>,
    weight_decay: f64,
}

impl<B: AutodiffBackend> ModuleMapper<B> for Stepper<B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (id, tensor, mapper) = param.consume();
        let Some(step) = self.directions.remove(&id) else {
            return Param::from_mapped_value(id, tensor, mapper);
        };
        let trains = tensor.is_require_grad();
        let value = tensor.inner();
        let direction = step.values.reshape(value.shape());
        let value = descended(value, direction, step.rate, self.weight_decay);
        let value = Tensor::from_inner(value);
        let value = if trains { value.require_grad() } else { value };
        Param::from_mapped_value(id, value, mapper)
    }
}
