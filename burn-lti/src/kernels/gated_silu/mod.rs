//! `silu(gate) * up`

mod cpu;

use burn::prelude::*;
use burn::tensor::activation::{sigmoid, silu};

use super::form::{Form, is_rust};
use super::graph::{Operation, apply};

/// `silu(gate) * up`, element by element, where `silu(x) = x / (1 + exp(-x))`: what is between the
/// projections of a gated feed-forward block (Shazeer 2020, SwiGLU).
///
/// Equal to the tensor operations up to rounding, in the float type of its inputs.
///
/// # Shapes
///
/// `gate`, `up` and the result: `[rows, features]`.
///
/// # Panics
///
/// If they have other shapes.
pub fn gated_silu<B: Backend>(gate: Tensor<B, 2>, up: Tensor<B, 2>) -> Tensor<B, 2> {
    assert_eq!(gate.dims(), up.dims(), "gate and up have one shape");
    let form = Form::of(is_rust, [&gate, &up]);
    apply(GatedSilu, form, [gate, up])
}

/// With `s = 1 / (1 + exp(-gate))`: `d up = d gate s`, `d gate = d up s (1 + gate (1 - s))`, each times
/// the gradient of the output.
#[derive(Clone, Copy, Debug)]
struct GatedSilu;

impl Operation<2, 2> for GatedSilu {
    /// Both inputs.
    type Saved<B: Backend> = [Tensor<B, 2>; 2];

    fn forward<B: Backend>(
        &self,
        form: Form,
        inputs: [Tensor<B, 2>; 2],
        wanted: [bool; 2],
    ) -> (Tensor<B, 2>, Option<Self::Saved<B>>) {
        let saved = wanted.contains(&true).then(|| inputs.clone());
        let [gate, up] = inputs;
        let output = match form {
            Form::Tensors => silu(gate) * up,
            Form::Cpu => cpu::forward(gate, up),
        };
        (output, saved)
    }

    fn backward<B: Backend>(
        &self,
        form: Form,
        [gate, up]: Self::Saved<B>,
        gradient: Tensor<B, 2>,
        _: [bool; 2],
    ) -> [Option<Tensor<B, 2>>; 2] {
        let gradients = match form {
            Form::Tensors => {
                let s = sigmoid(gate.clone());
                let weighted = gradient * s.clone();
                let slope = gate.clone() * (s.neg() + 1.0) + 1.0;
                [weighted.clone() * up * slope, weighted * gate]
            }
            Form::Cpu => cpu::gradients(gate, up, gradient),
        };
        gradients.map(Some)
    }
}
