//! `cap * tanh(x / cap)`

mod cpu;

use burn::prelude::*;

pub(super) use cpu::{cap_all, through_cap};

use super::form::{Form, is_rust};
use super::graph::{Operation, apply};

/// `cap * tanh(x / cap)`, element by element: nearly `x` where that is small beside the cap, and never beyond
/// it. Some models hold their scores and logits so (Gemma 2).
///
/// Equal to the tensor operations up to rounding, in the float type of `x`.
///
/// # Panics
///
/// If the cap is not positive and finite.
pub fn soft_cap<B: Backend, const D: usize>(x: Tensor<B, D>, cap: f64) -> Tensor<B, D> {
    assert_cap(cap);
    let form = Form::of(is_rust, [&x]);
    apply(SoftCap { cap }, form, [x])
}

/// # Panics
///
/// If a cap is not positive and finite.
pub(super) fn assert_cap(cap: f64) {
    assert!(
        cap > 0.0 && cap.is_finite(),
        "a cap of {cap} is not positive and finite"
    );
}

/// By how much a gradient is less before a cap than after it, by what came out of the cap:
/// `1 - (capped / cap)^2`.
pub(crate) fn slope_of_cap<B: Backend, const D: usize>(
    capped: Tensor<B, D>,
    cap: f64,
) -> Tensor<B, D> {
    let part = capped.div_scalar(cap);
    (part.clone() * part).neg().add_scalar(1.0)
}

/// `d x = g (1 - (y / cap)^2)` with `y` the output and `g` its gradient.
#[derive(Clone, Copy, Debug)]
struct SoftCap {
    cap: f64,
}

impl<const D: usize> Operation<1, D> for SoftCap {
    /// The output.
    type Saved<B: Backend> = Tensor<B, D>;

    fn forward<B: Backend>(
        &self,
        form: Form,
        [x]: [Tensor<B, D>; 1],
        [wanted]: [bool; 1],
    ) -> (Tensor<B, D>, Option<Self::Saved<B>>) {
        let output = match form {
            Form::Tensors => x.div_scalar(self.cap).tanh().mul_scalar(self.cap),
            Form::Cpu => cpu::forward(x, self.cap as f32),
        };
        let saved = wanted.then(|| output.clone());
        (output, saved)
    }

    fn backward<B: Backend>(
        &self,
        form: Form,
        output: Self::Saved<B>,
        gradient: Tensor<B, D>,
        _: [bool; 1],
    ) -> [Option<Tensor<B, D>>; 1] {
        [Some(match form {
            Form::Tensors => gradient * slope_of_cap(output, self.cap),
            Form::Cpu => cpu::gradient(output, gradient, self.cap as f32),
        })]
    }
}
