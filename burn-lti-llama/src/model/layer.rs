//! One decoder layer.

use burn::nn::{Linear, RmsNorm, RmsNormConfig};
use burn::prelude::*;
use burn_lti::decoder::{
    FeatureTap, GatedUnits, LearnToInitDecoderLayer, PackedProjection, Project, Projection,
};
use burn_lti::geometry::{Axes, Role};
use burn_lti::kernels::rms_norm;

use super::{Attention, AttentionMask, Mlp, Rotary, Seen};
use crate::config::LlamaConfig;

/// Attention and feed-forward, each after a norm, before one, or between two, and with a residual connection. `h` is
/// the residual stream, `[batch, tokens, d_model]`.
#[derive(Module, Debug)]
pub struct LlamaLayer<B: Backend, P: Module<B>> {
    self_attn: Attention<B, P>,
    mlp: Mlp<B, P>,
    /// Of what the attention reads, where that is normed.
    input_layernorm: Option<RmsNorm<B>>,
    /// Of what the feed-forward block reads.
    post_attention_layernorm: Option<RmsNorm<B>>,
    /// Of what the attention adds, where that is normed.
    attention_output_layernorm: Option<RmsNorm<B>>,
    /// Of what the feed-forward block adds.
    feed_forward_output_layernorm: Option<RmsNorm<B>>,
}

impl<B: Backend> LlamaLayer<B, Linear<B>> {
    /// A layer of the configured widths, not yet allocated.
    pub fn init(config: &LlamaConfig, device: &B::Device) -> Self {
        let norm = RmsNormConfig::new(config.hidden_size).with_epsilon(config.rms_norm_eps);
        Self {
            self_attn: Attention::init(config, device),
            mlp: Mlp::init(config, device),
            input_layernorm: config.input_norms.then(|| norm.init(device)),
            post_attention_layernorm: config.input_norms.then(|| norm.init(device)),
            attention_output_layernorm: config.output_norms.then(|| norm.init(device)),
            feed_forward_output_layernorm: config.output_norms.then(|| norm.init(device)),
        }
    }
}

impl<B: Backend, P: Project<B>> LlamaLayer<B, P> {
    /// What the attention adds to `h`.
    pub fn attention(
        &self,
        h: Tensor<B, 3>,
        rotary: &Rotary<B>,
        seen: Seen<'_, B>,
    ) -> Tensor<B, 3> {
        let output = self.attention_output(h, rotary, seen);
        if_normed(&self.attention_output_layernorm, output)
    }

    /// What the attention puts out, before the norm of it.
    pub(super) fn attention_output(
        &self,
        h: Tensor<B, 3>,
        rotary: &Rotary<B>,
        seen: Seen<'_, B>,
    ) -> Tensor<B, 3> {
        let normed = self.read_by_attention(h);
        self.self_attn.forward(normed, rotary, seen)
    }

    /// The gain of that norm, if there is one.
    pub(super) fn attention_output_gain(&self) -> Option<Tensor<B, 1>> {
        let norm = self.attention_output_layernorm.as_ref()?;
        Some(norm.gamma.val())
    }

    /// What query, key and value read of `h`.
    pub(super) fn read_by_attention(&self, h: Tensor<B, 3>) -> Tensor<B, 3> {
        if_normed(&self.input_layernorm, h)
    }

    /// What gate and up read of `h`, the stream that the attention has added to.
    pub(super) fn read_by_feed_forward(&self, h: Tensor<B, 3>) -> Tensor<B, 3> {
        if_normed(&self.post_attention_layernorm, h)
    }

    /// How much each head looks at each token: `[batch, heads, tokens, tokens]`.
    pub fn attention_weights(
        &self,
        h: Tensor<B, 3>,
        rotary: &Rotary<B>,
        mask: &AttentionMask<B>,
    ) -> Tensor<B, 4> {
        let normed = self.read_by_attention(h);
        self.self_attn.weights(normed, rotary, mask)
    }

    /// What the projections of the attention read: the normed stream, and what the heads put out.
    pub fn attention_inputs(
        &self,
        h: Tensor<B, 3>,
        rotary: &Rotary<B>,
        mask: &AttentionMask<B>,
    ) -> [Tensor<B, 3>; 2] {
        let normed = self.read_by_attention(h);
        let mixed = self
            .self_attn
            .mixed(normed.clone(), rotary, Seen::Batch(mask));
        [normed, mixed]
    }

    /// The values of all key/value heads side by side: `[batch, tokens, kv_heads * head_dim]`.
    pub fn values(&self, h: Tensor<B, 3>) -> Tensor<B, 3> {
        self.self_attn.values(self.read_by_attention(h))
    }

    /// What the feed-forward block adds to `h`, the stream that the attention has added to.
    pub fn feed_forward(&self, h: Tensor<B, 3>) -> Tensor<B, 3> {
        let output = self.mlp.forward(self.read_by_feed_forward(h));
        if_normed(&self.feed_forward_output_layernorm, output)
    }

    /// What the last projection of the feed-forward block reads: `[batch, tokens, intermediate]`.
    pub fn feed_forward_features(&self, h: Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, tokens, d_model] = h.dims();
        let normed = self.read_by_feed_forward(h);
        let gated = self.mlp.gated(normed.reshape([batch * tokens, d_model]));
        let width = gated.dims()[1];
        gated.reshape([batch, tokens, width])
    }

    /// What goes on inside the feed-forward block, if what it puts out is added as it is.
    pub(super) fn gated_units(&self, h: Tensor<B, 3>) -> Option<GatedUnits<B>> {
        if self.feed_forward_output_layernorm.is_some() {
            return None;
        }
        let normed = self.read_by_feed_forward(h);
        Some(self.mlp.units(normed.flatten::<2>(0, 1)))
    }

    /// The layer's output. Shows `tap` what the attention puts out.
    pub fn forward(
        &self,
        h: Tensor<B, 3>,
        rotary: &Rotary<B>,
        seen: Seen<'_, B>,
        tap: &mut FeatureTap<'_, B>,
    ) -> Tensor<B, 3> {
        let attention = self.attention(h.clone(), rotary, seen);
        tap.attention(&attention);
        let h = h + attention;
        h.clone() + self.feed_forward(h)
    }

    /// The layer with each projection laid out for many products.
    pub(super) fn packed(self) -> LlamaLayer<B, PackedProjection<B>> {
        LlamaLayer {
            self_attn: self.self_attn.packed(),
            mlp: self.mlp.packed(),
            input_layernorm: self.input_layernorm,
            post_attention_layernorm: self.post_attention_layernorm,
            attention_output_layernorm: self.attention_output_layernorm,
            feed_forward_output_layernorm: self.feed_forward_output_layernorm,
        }
    }
}

/// What `norm` makes of `h`, or `h` itself where there is none.
fn if_normed<B: Backend>(norm: &Option<RmsNorm<B>>, h: Tensor<B, 3>) -> Tensor<B, 3> {
    match norm {
        Some(norm) => normed(norm, h),
        None => h,
    }
}

/// What `norm` makes of `h [batch, tokens, d_model]`, in one operation.
pub(super) fn normed<B: Backend>(norm: &RmsNorm<B>, h: Tensor<B, 3>) -> Tensor<B, 3> {
    let [batch, tokens, d_model] = h.dims();
    rms_norm(
        h.reshape([batch * tokens, d_model]),
        norm.gamma.val(),
        norm.epsilon,
    )
    .reshape([batch, tokens, d_model])
}

impl<B: Backend> LearnToInitDecoderLayer<B> for LlamaLayer<B, Linear<B>> {
    type Learning = LlamaLayer<B, Projection<B>>;

    fn axes(&self) -> Axes {
        self.self_attn.axes()
    }

    fn swap_weights<E>(
        self,
        mut swap: impl FnMut(Role, Linear<B>) -> Result<Projection<B>, E>,
    ) -> Result<Self::Learning, E> {
        Ok(LlamaLayer {
            self_attn: self.self_attn.swap_weights(&mut swap)?,
            mlp: self.mlp.swap_weights(&mut swap)?,
            input_layernorm: self.input_layernorm,
            post_attention_layernorm: self.post_attention_layernorm,
            attention_output_layernorm: self.attention_output_layernorm,
            feed_forward_output_layernorm: self.feed_forward_output_layernorm,
        })
    }
}
