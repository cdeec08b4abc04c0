//! What a step of an optimizer is made of: moments and direction of a tensor, a step along it, and the square
//! of a gradient's norm.
//!
//! These are no operations of a model: they are on no graph, and nobody asks for their gradient.

mod balanced;
mod cpu;

use burn::prelude::*;

use super::form::{Form, is_rust};
use crate::compat::{at_least_float32, total};
use balanced::balanced;

/// The numbers of one step of Adam (Kingma and Ba 2015).
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdamStep {
    /// Decay of the running means of gradient and squared gradient.
    pub(crate) betas: [f64; 2],
    /// Added to the root of the squared gradient's mean.
    pub(crate) epsilon: f64,
    /// Which step it is, from 1.
    pub(crate) step: usize,
}

/// A tensor's moments after a step, `[elements]` each, and where the step goes.
pub(crate) struct Moments<B: Backend> {
    pub(crate) first: Tensor<B, 1>,
    /// None where the direction needs none.
    pub(crate) second: Option<Tensor<B, 1>>,
    /// The step at a rate of 1, against which a value goes.
    pub(crate) direction: Tensor<B, 1>,
    /// `[<g, d(g)>, <g, direction>]`, as far as they are wanted: what a first step along this gradient, and one
    /// along the direction, promise to take off the loss. `d(g)` is its sign for Adam, or the balanced gradient.
    pub(crate) promises: Option<Tensor<B, 1>>,
}

/// Which promises are wanted of a tensor's step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Promises {
    /// None.
    None,
    /// That of its direction: the other is any number.
    Direction,
    /// Both.
    Both,
}

impl AdamStep {
    /// `[s, e]` of the direction `m / (s sqrt(v) + e)`, which is `(m / c1) / (sqrt(v / c2) + epsilon)` with
    /// the corrections `c = 1 - beta^step` of moments that began at zero.
    fn denominator(&self) -> [f64; 2] {
        let correction = |beta: f64| 1.0 - beta.powf(self.step as f64);
        let [c1, c2] = self.betas.map(correction);
        [c1 / c2.sqrt(), self.epsilon * c1]
    }

    /// The mean of a matrix's gradients, `first` being the one before, and that mean with the newest gradient
    /// ahead of it (Nesterov's), balanced, as a direction.
    ///
    /// # Shapes
    ///
    /// `[rows, columns]`, all of `[rows * columns]` in a row but the gradient.
    pub(crate) fn balanced_momentum<B: Backend>(
        &self,
        gradient: Tensor<B, 2>,
        first: Option<Tensor<B, 1>>,
        promises: Promises,
    ) -> Moments<B> {
        let shape = gradient.dims();
        let [beta, _] = self.betas;
        let newest = gradient.clone().mul_scalar(1.0 - beta);
        let first = match first {
            Some(first) => first.reshape(shape).mul_scalar(beta) + newest.clone(),
            None => newest.clone(),
        };
        let direction = balanced(first.clone().mul_scalar(beta) + newest);
        let promises = (promises != Promises::None).then(|| {
            let wide = at_least_float32(gradient.dtype());
            let gradient = gradient.cast(wide);
            let along = |direction: Tensor<B, 2>| total(gradient.clone() * direction.cast(wide));
            let of_direction = along(direction.clone());
            let of_first_step = match promises {
                Promises::Both => along(balanced(gradient.clone())),
                _ => of_direction.zeros_like(),
            };
            Tensor::cat(vec![of_first_step, of_direction], 0)
        });
        Moments {
            first: first.flatten(0, 1),
            second: None,
            direction: direction.flatten(0, 1),
            promises,
        }
    }

    /// The moments and the direction of a tensor with this gradient, `moments` being those before; zero
    /// before its first step.
    ///
    /// # Shapes
    ///
    /// All `[elements]`.
    pub(crate) fn moments<B: Backend>(
        &self,
        gradient: Tensor<B, 1>,
        moments: Option<[Tensor<B, 1>; 2]>,
        promises: Promises,
    ) -> Moments<B> {
        let [first, second] =
            moments.unwrap_or_else(|| [gradient.zeros_like(), gradient.zeros_like()]);
        match Form::of(is_rust, [&gradient, &first, &second]) {
            Form::Cpu => cpu::moments(self, gradient, first, second, promises),
            Form::Tensors => {
                let [beta_1, beta_2] = self.betas;
                let [scale, added] = self.denominator();
                let square = gradient.clone().square().mul_scalar(1.0 - beta_2);
                let added_first = gradient.clone().mul_scalar(1.0 - beta_1);
                let first = first.mul_scalar(beta_1) + added_first;
                let second = second.mul_scalar(beta_2) + square;
                let size = second.clone().sqrt().mul_scalar(scale);
                let direction = first.clone() / size.add_scalar(added);
                let promises = (promises != Promises::None).then(|| {
                    let wide = at_least_float32(gradient.dtype());
                    let gradient = gradient.cast(wide);
                    let along = total(gradient.clone() * direction.clone().cast(wide));
                    Tensor::cat(vec![total(gradient.abs()), along], 0)
                });
                Moments {
                    first,
                    second: Some(second),
                    direction,
                    promises,
                }
            }
        }
    }
}

/// `value - rate (direction + weight_decay value)`.
pub(crate) fn descended<B: Backend, const D: usize>(
    value: Tensor<B, D>,
    direction: Tensor<B, D>,
    rate: f64,
    weight_decay: f64,
) -> Tensor<B, D> {
    let kept = 1.0 - rate * weight_decay;
    match Form::of(is_rust, [&value, &direction]) {
        Form::Cpu => cpu::descended(value, direction, rate as f32, kept as f32),
        Form::Tensors => {
            let value = match kept {
                1.0 => value,
                kept => value.mul_scalar(kept),
            };
            value - direction.mul_scalar(rate)
        }
    }
}

/// The sum `[1]` of the squares of all elements, at least in float32, and the tensor.
pub(crate) fn square_sum<B: Backend, const D: usize>(
    tensor: Tensor<B, D>,
) -> (Tensor<B, D>, Tensor<B, 1>) {
    match Form::of(is_rust, [&tensor]) {
        Form::Cpu => cpu::square_sum(tensor),
        Form::Tensors => {
            // The square of a small half-precision number would be zero.
            let wide = at_least_float32(tensor.dtype());
            let sum = total(tensor.clone().cast(wide).square());
            (tensor, sum)
        }
    }
}
