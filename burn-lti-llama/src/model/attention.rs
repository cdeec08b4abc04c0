//! Grouped-query attention over packed documents.

use burn::nn::{Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::prelude::*;
use burn_lti::decoder::{PackedProjection, Project, Projection};
use burn_lti::geometry::{Axes, Role};
use burn_lti::kernels::{
    AttentionMask, KvCache, Step, attention_weights, grouped_attention, rms_norm,
};

use super::Rotary;
use crate::config::LlamaConfig;

/// What the tokens of a forward pass see.
#[derive(Debug)]
pub enum Seen<'a, B: Backend> {
    /// Tokens beside them.
    Batch(&'a AttentionMask<B>),
    /// What their sequences had before, in this layer of a cache.
    Cache(&'a mut KvCache<B>, usize, &'a Step<B>),
}

/// The attention block of a layer.
#[derive(Module, Debug)]
pub struct Attention<B: Backend, P: Module<B>> {
    q_proj: P,
    k_proj: P,
    v_proj: P,
    o_proj: P,
    /// Of each head's queries, or of all heads' at once, where there is one.
    q_norm: Option<RmsNorm<B>>,
    /// Of keys.
    k_norm: Option<RmsNorm<B>>,
    #[module(skip)]
    axes: Axes,
    #[module(skip)]
    _backend: std::marker::PhantomData<B>,
}

impl<B: Backend> Attention<B, Linear<B>> {
    /// Projections of the configured widths, not yet allocated.
    pub fn init(config: &LlamaConfig, device: &B::Device) -> Self {
        let axes = config.axes();
        let linear = |role| {
            let width = axes.grid(role).width();
            let (d_input, d_output) = match role {
                Role::Out => (width, axes.d_model),
                _ => (axes.d_model, width),
            };
            LinearConfig::new(d_input, d_output)
                .with_bias(config.has_bias(role))
                .init(device)
        };
        let norm = |grid| {
            let width = config.qk_norm_width(grid)?;
            let norm = RmsNormConfig::new(width).with_epsilon(config.rms_norm_eps);
            Some(norm.init(device))
        };
        Self {
            q_proj: linear(Role::Query),
            k_proj: linear(Role::Key),
            v_proj: linear(Role::Value),
            o_proj: linear(Role::Out),
            q_norm: norm(axes.query),
            k_norm: norm(axes.key_value),
            axes,
            _backend: std::marker::PhantomData,
        }
    }

    /// The block with each projection replaced by what `swap` makes of it.
    pub(super) fn swap_weights<E>(
        self,
        swap: &mut impl FnMut(Role, Linear<B>) -> Result<Projection<B>, E>,
    ) -> Result<Attention<B, Projection<B>>, E> {
        Ok(Attention {
            q_proj: swap(Role::Query, self.q_proj)?,
            k_proj: swap(Role::Key, self.k_proj)?,
            v_proj: swap(Role::Value, self.v_proj)?,
            o_proj: swap(Role::Out, self.o_proj)?,
            q_norm: self.q_norm,
            k_norm: self.k_norm,
            axes: self.axes,
            _backend: self._backend,
        })
    }
}

impl<B: Backend, P: Module<B>> Attention<B, P> {
    /// The axes of its layer.
    pub const fn axes(&self) -> Axes {
        self.axes
    }
}

impl<B: Backend, P: Project<B>> Attention<B, P> {
    /// `x [batch, tokens, d_model] -> [batch, tokens, d_model]`
    pub fn forward(&self, x: Tensor<B, 3>, rotary: &Rotary<B>, seen: Seen<'_, B>) -> Tensor<B, 3> {
        let [batch, tokens, d_model] = x.dims();
        // Burn's gradient of a product with more than two axes is batched and summed afterwards.
        let mixed = self.mixed(x, rotary, seen).flatten::<2>(0, 1);
        let output = self.o_proj.project(mixed);
        output.reshape([batch, tokens, d_model])
    }

    /// What the heads put out, side by side: `[batch, tokens, heads * head_dim]`.
    pub(super) fn mixed(
        &self,
        x: Tensor<B, 3>,
        rotary: &Rotary<B>,
        seen: Seen<'_, B>,
    ) -> Tensor<B, 3> {
        let [batch, tokens, d_model] = x.dims();
        let rows = x.reshape([batch * tokens, d_model]);
        let (q, k) = self.turned(rows.clone(), rotary, [batch, tokens]);
        let v = by_batch(self.v_proj.project(rows), [batch, tokens]);
        match seen {
            Seen::Batch(mask) => grouped_attention(q, k, v, &self.axes, mask),
            Seen::Cache(cache, layer, step) => cache.attend(layer, [q, k, v], step),
        }
    }

    /// The block with each projection laid out for many products.
    pub(super) fn packed(self) -> Attention<B, PackedProjection<B>> {
        Attention {
            q_proj: self.q_proj.packed(),
            k_proj: self.k_proj.packed(),
            v_proj: self.v_proj.packed(),
            o_proj: self.o_proj.packed(),
            q_norm: self.q_norm,
            k_norm: self.k_norm,
            axes: self.axes,
            _backend: self._backend,
        }
    }

    /// How much each head looks at each token: `x [batch, tokens, d_model] ->
    /// [batch, heads, tokens, tokens]`, rows summing to one.
    pub(super) fn weights(
        &self,
        x: Tensor<B, 3>,
        rotary: &Rotary<B>,
        mask: &AttentionMask<B>,
    ) -> Tensor<B, 4> {
        let [batch, tokens, _] = x.dims();
        let (q, k) = self.turned(x.flatten::<2>(0, 1), rotary, [batch, tokens]);
        attention_weights(q, k, &self.axes, mask)
    }

    /// The values of all key/value heads side by side: `x [batch, tokens, d_model] ->
    /// [batch, tokens, kv_heads * head_dim]`.
    pub(super) fn values(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, tokens, _] = x.dims();
        by_batch(self.v_proj.project(x.flatten::<2>(0, 1)), [batch, tokens])
    }

    /// Queries, scaled, and keys, both normed if they are to be and turned by their positions, of `rows [batch * tokens, d_model]`:
    /// `[batch, tokens, heads * head_dim]` and `[batch, tokens, kv_heads * head_dim]`.
    fn turned(
        &self,
        rows: Tensor<B, 2>,
        rotary: &Rotary<B>,
        batch_tokens: [usize; 2],
    ) -> (Tensor<B, 3>, Tensor<B, 3>) {
        let q = parts_normed(&self.q_norm, self.q_proj.project(rows.clone()));
        let k = parts_normed(&self.k_norm, self.k_proj.project(rows));
        let (q, k) = (rotary.scaled_queries(q), rotary.turn_keys(k));
        (by_batch(q, batch_tokens), by_batch(k, batch_tokens))
    }
}

/// Each part of `x [rows, heads * head_dim]` that is as long as the norm by itself, if there is one: each head, or
/// all of them.
fn parts_normed<B: Backend>(norm: &Option<RmsNorm<B>>, x: Tensor<B, 2>) -> Tensor<B, 2> {
    let Some(norm) = norm else {
        return x;
    };
    let (gamma, [rows, width]) = (norm.gamma.val(), x.dims());
    let [part] = gamma.dims();
    let parts = x.reshape([rows * width / part, part]);
    rms_norm(parts, gamma, norm.epsilon).reshape([rows, width])
}

/// `rows [batch * tokens, width] -> [batch, tokens, width]`
fn by_batch<B: Backend>(rows: Tensor<B, 2>, [batch, tokens]: [usize; 2]) -> Tensor<B, 3> {
    let [_, width] = rows.dims();
    rows.reshape([batch, tokens, width])
}
