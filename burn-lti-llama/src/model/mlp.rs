//! The gated feed-forward block (SwiGLU).

use burn::nn::{Linear, LinearConfig};
use burn::prelude::*;
use burn_lti::kernels::{gated_silu, linear};

use crate::config::LlamaConfig;

/// `down(silu(gate(x)) * up(x))`
#[derive(Module, Debug)]
pub struct Mlp<B: Backend> {
    gate_proj: Linear<B>,
    up_proj: Linear<B>,
    down_proj: Linear<B>,
}

impl<B: Backend> Mlp<B> {
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
        }
    }

    /// `x [batch, tokens, d_model] -> [batch, tokens, d_model]`
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, tokens, d_model] = x.dims();
        let gated = self.gated(x.reshape([batch * tokens, d_model]));
        linear(gated, &self.down_proj).reshape([batch, tokens, d_model])
    }

    /// What the last projection reads: `[rows, d_model] -> [rows, intermediate]`.
    pub(super) fn gated(&self, rows: Tensor<B, 2>) -> Tensor<B, 2> {
        gated_silu(
            linear(rows.clone(), &self.gate_proj),
            linear(rows, &self.up_proj),
        )
    }
}
