//! One decoder layer.

use burn::module::ModuleDisplay;
use burn::nn::{Linear, RmsNorm, RmsNormConfig};
use burn::prelude::*;
use burn_lti::decoder::{
    AttentionBlock, AttentionGeometry, LearnToInitDecoderLayer, Project, Projection, Watch,
};
use burn_lti::dense::Slot;

use super::{Attention, AttentionMask, LayerCache, Mlp, Rotary};
use crate::config::LlamaConfig;

/// A decoder layer as the model sees it, whatever its projections are.
pub trait Block<B: Backend>: Module<B> + ModuleDisplay {
    /// `h [batch, tokens, d_model] -> [batch, tokens, d_model]`. Shows `watch` what the attention puts
    /// out.
    fn forward(
        &self,
        h: Tensor<B, 3>,
        rotary: &Rotary<B>,
        mask: &AttentionMask<B>,
        cache: Option<&mut LayerCache<B>>,
        watch: &mut Watch<'_, B>,
    ) -> Tensor<B, 3>;
}

/// Attention and feed-forward, each behind a norm and around a residual.
#[derive(Module, Debug)]
pub struct LlamaLayer<B: Backend, P: Module<B>> {
    self_attn: Attention<B, P>,
    mlp: Mlp<B>,
    input_layernorm: RmsNorm<B>,
    post_attention_layernorm: RmsNorm<B>,
}

impl<B: Backend> LlamaLayer<B, Linear<B>> {
    /// A layer of the configured widths, not yet allocated.
    pub fn init(config: &LlamaConfig, device: &B::Device) -> Self {
        let norm = RmsNormConfig::new(config.hidden_size).with_epsilon(config.rms_norm_eps);
        Self {
            self_attn: Attention::init(config, device),
            mlp: Mlp::init(config, device),
            input_layernorm: norm.init(device),
            post_attention_layernorm: norm.init(device),
        }
    }
}

impl<B: Backend, P: Project<B>> Block<B> for LlamaLayer<B, P> {
    fn forward(
        &self,
        h: Tensor<B, 3>,
        rotary: &Rotary<B>,
        mask: &AttentionMask<B>,
        cache: Option<&mut LayerCache<B>>,
        watch: &mut Watch<'_, B>,
    ) -> Tensor<B, 3> {
        let normed = self.input_layernorm.forward(h.clone());
        let attention = self.self_attn.forward(normed, rotary, mask, cache);
        watch.attention(&attention);
        let h = h + attention;
        let normed = self.post_attention_layernorm.forward(h.clone());
        h + self.mlp.forward(normed)
    }
}

impl<B: Backend, L: Block<B>> Block<B> for LearnToInitDecoderLayer<B, L> {
    fn forward(
        &self,
        h: Tensor<B, 3>,
        rotary: &Rotary<B>,
        mask: &AttentionMask<B>,
        cache: Option<&mut LayerCache<B>>,
        watch: &mut Watch<'_, B>,
    ) -> Tensor<B, 3> {
        (**self).forward(h, rotary, mask, cache, watch)
    }
}

impl<B: Backend> AttentionBlock<B> for LlamaLayer<B, Linear<B>> {
    type Learning = LlamaLayer<B, Projection<B>>;

    fn geometry(&self) -> AttentionGeometry {
        self.self_attn.geometry()
    }

    fn swap_projections<E>(
        self,
        swap: impl FnMut(Slot, Linear<B>) -> Result<Projection<B>, E>,
    ) -> Result<Self::Learning, E> {
        Ok(LlamaLayer {
            self_attn: self.self_attn.swap_projections(swap)?,
            mlp: self.mlp,
            input_layernorm: self.input_layernorm,
            post_attention_layernorm: self.post_attention_layernorm,
        })
    }
}
