//! The whole model.

use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::prelude::*;
use burn::tensor::DType;
use burn_lti::decoder::{
    CausalLm, DecoderError, FeatureTap, Head, LayeredDecoder, LtiSpec, Project, Projection,
    TokenBatch, learn_to_init,
};
use burn_lti::geometry::Site;
use burn_lti::inject::AwaitingTeacher;

use super::layer::normed;
use super::rotary::rotary_features;
use super::{AttentionMask, KvCache, LlamaLayer, Rotary};
use crate::config::{LlamaConfig, site_name};

/// A Llama with ordinary projections: what is imported and exported.
pub type PlainLlama<B> = Llama<B, Linear<B>, Embedding<B>>;

/// A Llama whose weights may be maps of a teacher's.
pub type LearningLlama<B> = Llama<B, Projection<B>, Projection<B>>;

/// A Llama of projections of type `P`, with an embedding of type `E`.
#[derive(Module, Debug)]
pub struct Llama<B: Backend, P: Module<B>, E: Module<B>> {
    model: Body<B, P, E>,
    /// Absent where the head is the embedding transposed.
    lm_head: Option<P>,
    #[module(skip)]
    config: LlamaConfig,
}

/// Everything below the head. A module of its own because Hugging Face names it `model`.
#[derive(Module, Debug)]
struct Body<B: Backend, P: Module<B>, E: Module<B>> {
    embed_tokens: E,
    layers: Vec<LlamaLayer<B, P>>,
    norm: RmsNorm<B>,
}

impl<B: Backend> PlainLlama<B> {
    /// A model of this configuration, randomly initialised when first used.
    pub fn init(config: &LlamaConfig, device: &B::Device) -> Self {
        let (vocab, d_model) = (config.vocab_size, config.hidden_size);
        Self {
            model: Body {
                // The scale of Hugging Face's Llama; Burn's default of 1 makes a tied head diverge.
                embed_tokens: EmbeddingConfig::new(vocab, d_model)
                    .with_initializer(burn::nn::Initializer::Normal {
                        mean: 0.0,
                        std: 0.02,
                    })
                    .init(device),
                layers: (0..config.num_hidden_layers)
                    .map(|_| LlamaLayer::init(config, device))
                    .collect(),
                norm: RmsNormConfig::new(d_model)
                    .with_epsilon(config.rms_norm_eps)
                    .init(device),
            },
            lm_head: (!config.tie_word_embeddings).then(|| {
                LinearConfig::new(d_model, vocab)
                    .with_bias(false)
                    .init(device)
            }),
            config: config.clone(),
        }
    }

    /// Swaps the weights that `spec` names for maps of a teacher's, which is still to come.
    ///
    /// # Errors
    ///
    /// As [`learn_to_init`] and [`LtiSpec::swap`].
    pub fn learn_to_init(
        self,
        spec: &LtiSpec,
    ) -> Result<AwaitingTeacher<LearningLlama<B>>, DecoderError> {
        let axes = self.config.axes();
        let table = Linear {
            weight: self.model.embed_tokens.weight,
            bias: None,
        };
        let head = self.lm_head;
        let head = head.map(|head| spec.swap(&axes, Site::HEAD, head));
        Ok(AwaitingTeacher::new(Llama {
            model: Body {
                embed_tokens: spec.swap(&axes, Site::EMBEDDING, table)?,
                layers: learn_to_init(self.model.layers, spec)?,
                norm: self.model.norm,
            },
            lm_head: head.transpose()?,
            config: self.config,
        }))
    }
}

impl<B: Backend, P: Module<B>, E: Module<B>> Llama<B, P, E> {
    /// The model's configuration.
    pub const fn config(&self) -> &LlamaConfig {
        &self.config
    }
}

impl<B: Backend, P: Project<B>, E: Project<B>> Llama<B, P, E> {
    /// Logits of a batch, `[batch, tokens, vocab]`. For comparisons and short texts: the loss never
    /// makes these.
    pub fn logits(&self, batch: &TokenBatch<B>) -> Tensor<B, 3> {
        self.apply_head(self.hidden_states(batch))
    }

    /// Logits of tokens that continue sequences of one length: `tokens [batch, new] -> [batch, new,
    /// vocab]`. The cache holds what the sequences had before.
    pub fn continue_logits(
        &self,
        tokens: Tensor<B, 2, Int>,
        cache: &mut KvCache<B>,
    ) -> Tensor<B, 3> {
        self.apply_head(self.continue_hidden(tokens, cache))
    }

    /// Logits of what follows the last of the tokens: `tokens [batch, new] -> [batch, vocab]`. Those of
    /// a long prompt's other tokens are never made.
    pub(super) fn next_logits(
        &self,
        tokens: Tensor<B, 2, Int>,
        cache: &mut KvCache<B>,
    ) -> Tensor<B, 2> {
        let [_, new] = tokens.dims();
        let hidden = self.continue_hidden(tokens, cache);
        self.apply_head(hidden.narrow(1, new - 1, 1)).flatten(0, 1)
    }

    /// Hidden states after the last norm, `[batch, new, d_model]`.
    fn continue_hidden(&self, tokens: Tensor<B, 2, Int>, cache: &mut KvCache<B>) -> Tensor<B, 3> {
        let device = tokens.device();
        let [batch, new] = tokens.dims();
        let past = cache.tokens;
        let positions = Tensor::arange(past as i64..(past + new) as i64, &device);
        let rotary = self.rotary(&positions.unsqueeze::<2>().repeat_dim(0, batch));
        let mask = AttentionMask::continuing(past, new, &device);
        let mut h = self.model.embed_tokens.lookup(tokens);
        for (layer, cache) in self.model.layers.iter().zip(&mut cache.layers) {
            h = layer.forward(h, &rotary, &mask, Some(cache), &mut FeatureTap::nothing());
        }
        cache.tokens += new;
        normed(&self.model.norm, h)
    }

    /// The float type of the weights, and so of what the layers compute.
    pub fn dtype(&self) -> DType {
        self.model.embed_tokens.weight().dtype()
    }

    fn rotary(&self, positions: &Tensor<B, 2, Int>) -> Rotary<B> {
        let LlamaConfig {
            head_dim,
            rope_theta,
            ..
        } = self.config;
        Rotary::new(positions, head_dim, rope_theta, self.dtype())
    }

    fn head_weight(&self) -> Tensor<B, 2> {
        match &self.lm_head {
            Some(head) => head.weight(),
            None => self.model.embed_tokens.weight().transpose(),
        }
    }

    fn apply_head(&self, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, tokens, d_model] = hidden.dims();
        let logits = hidden
            .reshape([batch * tokens, d_model])
            .matmul(self.head_weight());
        let vocab = logits.dims()[1];
        logits.reshape([batch, tokens, vocab])
    }
}

impl<B: Backend, P: Project<B>, E: Project<B>> CausalLm<B> for Llama<B, P, E> {
    fn forward(&self, batch: &TokenBatch<B>, tap: &mut FeatureTap<'_, B>) -> Tensor<B, 3> {
        let LlamaContext { rotary, mask } = self.context(batch);
        let mut h = self.embed(batch);
        for layer in &self.model.layers {
            h = layer.forward(h, &rotary, &mask, None, tap);
        }
        normed(&self.model.norm, h)
    }

    fn layers(&self) -> usize {
        self.model.layers.len()
    }

    fn head(&self) -> Head<B> {
        let trains = match &self.lm_head {
            Some(head) => head.trains(),
            None => self.model.embed_tokens.trains(),
        };
        Head {
            weight: self.head_weight(),
            trains,
        }
    }
}

/// What the layers of a Llama share while they read a batch.
#[derive(Clone, Debug)]
pub struct LlamaContext<B: Backend> {
    rotary: Rotary<B>,
    mask: AttentionMask<B>,
}

impl<B: Backend, P: Project<B>, E: Project<B>> LayeredDecoder<B> for Llama<B, P, E> {
    type Context = LlamaContext<B>;

    fn context(&self, batch: &TokenBatch<B>) -> LlamaContext<B> {
        LlamaContext {
            rotary: self.rotary(&batch.positions),
            mask: AttentionMask::packed(&batch.segments),
        }
    }

    fn embed(&self, batch: &TokenBatch<B>) -> Tensor<B, 3> {
        self.model.embed_tokens.lookup(batch.tokens.clone())
    }

    fn attention_weights(
        &self,
        layer: usize,
        h: Tensor<B, 3>,
        context: &LlamaContext<B>,
    ) -> Tensor<B, 4> {
        self.model.layers[layer].attention_weights(h, &context.rotary, &context.mask)
    }

    fn values(&self, layer: usize, h: Tensor<B, 3>) -> Tensor<B, 3> {
        self.model.layers[layer].values(h)
    }

    fn attention_inputs(
        &self,
        layer: usize,
        h: Tensor<B, 3>,
        context: &LlamaContext<B>,
    ) -> [Tensor<B, 3>; 2] {
        self.model.layers[layer].attention_inputs(h, &context.rotary, &context.mask)
    }

    fn attention(&self, layer: usize, h: Tensor<B, 3>, context: &LlamaContext<B>) -> Tensor<B, 3> {
        self.model.layers[layer].attention(h, &context.rotary, &context.mask, None)
    }

    fn feed_forward_features(&self, layer: usize, h: Tensor<B, 3>) -> Tensor<B, 3> {
        self.model.layers[layer].feed_forward_features(h)
    }

    fn feed_forward(&self, layer: usize, h: Tensor<B, 3>) -> Tensor<B, 3> {
        self.model.layers[layer].feed_forward(h)
    }

    fn query_key_features(&self, head_dim: usize) -> Vec<Option<usize>> {
        rotary_features(self.config.head_dim, head_dim)
    }

    fn site_name(&self, site: Site) -> Option<String> {
        let is_there = site != Site::HEAD || self.lm_head.is_some();
        is_there.then(|| site_name(site))
    }
}
