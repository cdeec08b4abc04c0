//! The gated feed-forward block (SwiGLU and GEGLU, Shazeer 2020).

use std::marker::PhantomData;

use burn::nn::{Linear, LinearConfig};
use burn::prelude::*;
use burn::tensor::activation::{gelu_approximate, sigmoid};
use burn_lti::decoder::{GatedUnits, PackedProjection, Project, Projection};
use burn_lti::geometry::Role;
use burn_lti::kernels::gated_silu;

use crate::config::{Activation, LlamaConfig};

/// `down(activation(gate(x)) * up(x))`
#[derive(Module, Debug)]
pub struct Mlp<B: Backend, P: Module<B>> {
    gate_proj: P,
    up_proj: P,
    down_proj: P,
    #[module(skip)]
    activation: Activation,
    #[module(skip)]
    _backend: PhantomData<B>,
}

impl<B: Backend> Mlp<B, Linear<B>> {
    /// Projections of the configured widths, not yet allocated.
    pub fn init(config: &LlamaConfig, device: &B::Device) -> Self {
        let linear = |d_input, d_output| {
            LinearConfig::new(d_input, d_output)
                .with_bias(config.mlp_bias)
                .init(device)
        };
        let (narrow, wide) = (config.hidden_size, config.intermediate_size);
        Self {
            gate_proj: linear(narrow, wide),
            up_proj: linear(narrow, wide),
            down_proj: linear(wide, narrow),
            activation: config.activation,
            _backend: PhantomData,
        }
    }

    /// The block with each projection replaced by what `swap` makes of it.
    pub(super) fn swap_weights<E>(
        self,
        swap: &mut impl FnMut(Role, Linear<B>) -> Result<Projection<B>, E>,
    ) -> Result<Mlp<B, Projection<B>>, E> {
        Ok(Mlp {
            gate_proj: swap(Role::Gate, self.gate_proj)?,
            up_proj: swap(Role::Up, self.up_proj)?,
            down_proj: swap(Role::Down, self.down_proj)?,
            activation: self.activation,
            _backend: PhantomData,
        })
    }
}

impl<B: Backend, P: Project<B>> Mlp<B, P> {
    /// `x [batch, tokens, d_model] -> [batch, tokens, d_model]`
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, tokens, d_model] = x.dims();
        let gated = self.gated(x.reshape([batch * tokens, d_model]));
        let output = self.down_proj.project(gated);
        output.reshape([batch, tokens, d_model])
    }

    /// What the last projection reads: `[rows, d_model] -> [rows, intermediate]`.
    pub(super) fn gated(&self, rows: Tensor<B, 2>) -> Tensor<B, 2> {
        let (gate, up) = (
            self.gate_proj.project(rows.clone()),
            self.up_proj.project(rows),
        );
        match self.activation {
            Activation::Silu => gated_silu(gate, up),
            Activation::GeluTanh => gelu_approximate(gate) * up,
        }
    }

    /// What goes on inside, of `rows [rows, d_model]`.
    pub(super) fn units(&self, rows: Tensor<B, 2>) -> GatedUnits<B> {
        let product = self.gate_proj.project(rows.clone());
        let (gate, slope) = match self.activation {
            Activation::Silu => silu_and_slope(product),
            Activation::GeluTanh => gelu_and_slope(product),
        };
        GatedUnits {
            gate,
            slope,
            up: self.up_proj.project(rows.clone()),
            input: rows,
        }
    }

    /// The block with each projection laid out for many products.
    pub(super) fn packed(self) -> Mlp<B, PackedProjection<B>> {
        Mlp {
            gate_proj: self.gate_proj.packed(),
            up_proj: self.up_proj.packed(),
            down_proj: self.down_proj.packed(),
            activation: self.activation,
            _backend: PhantomData,
        }
    }
}

/// `x s` and its derivative `s + x s (1 - s)`, with `s = 1 / (1 + exp(-x))`.
fn silu_and_slope<B: Backend>(x: Tensor<B, 2>) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let s = sigmoid(x.clone());
    let value = x * s.clone();
    let slope = s.clone() + value.clone() * (s.neg() + 1.0);
    (value, slope)
}

/// `x (1 + t) / 2` and its derivative `(1 + t) / 2 + x (1 - t^2) u' / 2`, with `t = tanh(u)` and
/// `u = sqrt(2 / pi) (x + 0.044715 x^3)`.
fn gelu_and_slope<B: Backend>(x: Tensor<B, 2>) -> (Tensor<B, 2>, Tensor<B, 2>) {
    const CUBIC: f64 = 0.044715;
    let root = (2.0 / std::f64::consts::PI).sqrt();
    let square = x.clone().powi_scalar(2);
    let t = (x.clone() * (square.clone() * CUBIC + 1.0) * root).tanh();
    let half = (t.clone() + 1.0) * 0.5;
    let slope_of_u = (square * (3.0 * CUBIC) + 1.0) * root;
    let slope = half.clone() + x.clone() * (t.powi_scalar(2).neg() + 1.0) * slope_of_u * 0.5;
    (x * half, slope)
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::*;

    #[test]
    fn slopes_are_those_of_the_activations() {
        let device = Default::default();
        let at = |shift: f32| {
            let x = [-4.0, -1.3, -0.2, 0.0, 0.7, 2.5].map(|x: f32| x + shift);
            Tensor::<Flex, 2>::from_floats([x], &device)
        };
        for activation in [silu_and_slope::<Flex>, gelu_and_slope::<Flex>] {
            let (value, slope) = activation(at(0.0));
            let step = 1e-2;
            let secant = (activation(at(step)).0 - activation(at(-step)).0) / (2.0 * step);
            let off = (secant - slope).abs().max().into_scalar();
            // The secant is off by step^2 / 6 times a third derivative below 2, and by rounding.
            assert!(off < 1e-4, "{off}");
            assert_eq!(value.dims(), [1, 6]);
        }
        let gelu = gelu_and_slope(at(0.0)).0 - gelu_approximate(at(0.0));
        assert!(gelu.abs().max().into_scalar() < 1e-6);
    }
}
