//! The gated feed-forward block (SwiGLU and GEGLU, Shazeer 2020).

use std::marker::PhantomData;

use burn::nn::{Linear, LinearConfig};
use burn::prelude::*;
use burn::tensor::activation::gelu_approximate;
use burn_lti::decoder::{PackedProjection, Project, Projection};
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
