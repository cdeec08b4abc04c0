//! The whole model.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Param, ParamId};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::prelude::*;
use burn::tensor::DType;
use burn_lti::decoder::{
    CausalLm, DecoderError, FeatureTap, GatedUnits, Head, LayeredDecoder, LtiSpec,
    PackedProjection, Project, Projection, Reader, TokenBatch, learn_to_init,
};
use burn_lti::geometry::Site;
use burn_lti::inject::AwaitingTeacher;
use burn_lti::kernels::{KvCache, Step, soft_cap};

use super::layer::normed;
use super::rotary::{Rotaries, rotary_features};
use super::{AttentionMask, LlamaLayer, Rotary, Seen};
use crate::config::{LlamaConfig, QkNorm, site_name};

/// A Llama with ordinary projections: what is imported and exported.
pub type PlainLlama<B> = Llama<B, Linear<B>, Embedding<B>>;

/// A Llama whose weights may be maps of a teacher's.
pub type LearningLlama<B> = Llama<B, Projection<B>, Projection<B>>;

/// A Llama whose weights are laid out for generation: see [`Llama::packed`].
pub type PackedLlama<B> = Llama<B, PackedProjection<B>, Embedding<B>>;

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

    /// The model laid out for generation: maps are folded, and on a CPU, in float32, weights are copied into
    /// the order in which products read them ([`PackedProjection`]), the embedding beside a head that is tied to
    /// it. Then what a row of a batch is does not depend on those beside it. A weight that nobody else has is
    /// freed as soon as its copy is there.
    pub fn packed(self) -> PackedLlama<B> {
        let Body {
            embed_tokens,
            layers,
            norm,
        } = self.model;
        let table = embed_tokens.weight();
        drop(embed_tokens);
        let head = match self.lm_head {
            Some(head) => head.packed(),
            None => PackedProjection::new(table.clone().transpose(), None),
        };
        Llama {
            model: Body {
                embed_tokens: Embedding {
                    weight: Param::initialized(ParamId::new(), table),
                },
                layers: layers.into_iter().map(LlamaLayer::packed).collect(),
                norm,
            },
            lm_head: Some(head),
            config: self.config,
        }
    }

    /// An empty cache for so many sequences.
    pub fn cache(&self, sequences: usize) -> KvCache<B> {
        KvCache::new(
            self.model.layers.len(),
            sequences,
            self.config.axes(),
            self.dtype(),
            &self.devices()[0],
        )
        .with_windows(self.config.windows.clone())
        .with_cap(self.config.attention_cap)
    }

    /// Logits of new tokens of all sequences of a cache, as many of each: `tokens [sequences, new] ->
    /// [sequences, new, vocab]`. The cache holds what the sequences had before.
    ///
    /// # Panics
    ///
    /// If the tokens are not of all sequences, or not as many of each.
    pub fn continue_logits(&self, tokens: &[&[u32]], cache: &mut KvCache<B>) -> Tensor<B, 3> {
        let new = tokens.first().map_or(0, |tokens| tokens.len());
        let alike = tokens.iter().all(|tokens| tokens.len() == new);
        assert!(
            alike && tokens.len() == cache.sequences(),
            "there are as many new tokens of each sequence of the cache"
        );
        let tokens: Vec<(usize, &[u32])> = tokens.iter().copied().enumerate().collect();
        let hidden = self.continue_hidden(&tokens, cache, |_| true);
        let [rows, d_model] = hidden.dims();
        self.apply_head(hidden.reshape([rows / new, new, d_model]))
    }

    /// Logits of what follows the last new token of some sequences: `new` has pairs of a sequence of the cache
    /// and its tokens, and the result is `[new, vocab]`. Those of a long prompt's other tokens are never
    /// made.
    pub fn next_logits(&self, new: &[(usize, &[u32])], cache: &mut KvCache<B>) -> Tensor<B, 2> {
        let hidden =
            self.continue_hidden(new, cache, |(index, token)| token + 1 == new[index].1.len());
        self.apply_head(hidden.unsqueeze_dim(1)).flatten(0, 1)
    }

    /// Hidden states after the last norm of those new tokens that are `wanted`, by the index of their sequence
    /// in the list and theirs among its tokens, in this order: `[wanted, d_model]`. They must be in the last
    /// step.
    fn continue_hidden(
        &self,
        new: &[(usize, &[u32])],
        cache: &mut KvCache<B>,
        wanted: impl Fn((usize, usize)) -> bool,
    ) -> Tensor<B, 2> {
        let counts: Vec<(usize, usize)> = new
            .iter()
            .map(|(sequence, tokens)| (*sequence, tokens.len()))
            .collect();
        let mut steps = cache.steps(&counts);
        let last = steps.pop();
        for step in &steps {
            self.read(new, step, cache);
        }
        let Some(step) = last else {
            unreachable!("there is a step");
        };
        let h: Tensor<B, 2> = self.read(new, &step, cache).flatten(0, 1);
        let mut places: Vec<((usize, usize), i64)> = (0..)
            .zip(step.places())
            .filter_map(|(place, of)| Some((of.token?, place)))
            .filter(|(token, _)| wanted(*token))
            .collect();
        places.sort_unstable();
        let places: Vec<i64> = places.into_iter().map(|(_, place)| place).collect();
        let all = h.dims()[0] == places.len() && places.is_sorted();
        let h = match all {
            true => h,
            false => h
                .clone()
                .select(0, Tensor::from_data(places.as_slice(), &h.device())),
        };
        normed(&self.model.norm, h.unsqueeze_dim(1)).flatten(0, 1)
    }

    /// The stream after the last layer: `[batch, tokens, d_model]` of the step.
    fn read(
        &self,
        new: &[(usize, &[u32])],
        step: &Step<B>,
        cache: &mut KvCache<B>,
    ) -> Tensor<B, 3> {
        let device = self.devices()[0].clone();
        let ints = |numbers: Vec<i64>| {
            Tensor::<B, 2, Int>::from_data(TensorData::new(numbers, step.dims()), &device)
        };
        let places = step.places();
        let id = |(index, token): (usize, usize)| i64::from(new[index].1[token]);
        let tokens = places.iter().map(|place| place.token.map_or(0, id));
        let positions = places.iter().map(|place| place.position as i64);
        let rotaries = self.rotaries(&ints(positions.collect()));
        let mut h = self.model.embed_tokens.lookup(ints(tokens.collect()));
        for (index, layer) in self.model.layers.iter().enumerate() {
            let seen = Seen::Cache(cache, index, step);
            h = layer.forward(h, rotaries.of(index), seen, &mut FeatureTap::nothing());
        }
        h
    }

    /// The float type of the weights, and so of what the layers compute.
    pub fn dtype(&self) -> DType {
        // That of an embedding with a map would be made for it.
        self.model.norm.gamma.val().dtype()
    }

    fn rotaries(&self, positions: &Tensor<B, 2, Int>) -> Rotaries<B> {
        Rotaries::new(positions, &self.config, self.dtype())
    }

    /// Hidden states as the head takes them, of the stream after the last layer, `[batch, tokens, d_model]`.
    pub fn finished(&self, h: Tensor<B, 3>) -> Tensor<B, 3> {
        normed(&self.model.norm, h)
    }

    fn head_weight(&self) -> Tensor<B, 2> {
        match &self.lm_head {
            Some(head) => head.weight(),
            None => self.model.embed_tokens.weight().transpose(),
        }
    }

    fn apply_head(&self, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, tokens, d_model] = hidden.dims();
        let logits = match &self.lm_head {
            Some(head) => head.project(hidden),
            None => {
                let rows = hidden.reshape([batch * tokens, d_model]);
                let logits = rows.matmul(self.head_weight());
                let vocab = logits.dims()[1];
                logits.reshape([batch, tokens, vocab])
            }
        };
        match self.config.logit_cap {
            Some(cap) => soft_cap(logits, cap),
            None => logits,
        }
    }
}

impl<B: Backend, P: Project<B>, E: Project<B>> CausalLm<B> for Llama<B, P, E> {
    fn forward(&self, batch: &TokenBatch<B>, tap: &mut FeatureTap<'_, B>) -> Tensor<B, 3> {
        let context = self.context(batch);
        let mut h = self.embed(batch);
        for (index, layer) in self.model.layers.iter().enumerate() {
            let (rotary, mask) = self.of_layer(index, &context);
            h = layer.forward(h, rotary, Seen::Batch(mask), tap);
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
            cap: self.config.logit_cap,
        }
    }
}

/// What the layers of a Llama share while they read a batch.
#[derive(Clone, Debug)]
pub struct LlamaContext<B: Backend> {
    rotaries: Rotaries<B>,
    /// For each window that a layer has.
    masks: BTreeMap<Option<usize>, AttentionMask<B>>,
}

impl<B: Backend, P: Module<B>, E: Module<B>> Llama<B, P, E> {
    fn of_layer<'a>(
        &self,
        layer: usize,
        context: &'a LlamaContext<B>,
    ) -> (&'a Rotary<B>, &'a AttentionMask<B>) {
        let window = self.config.windows[layer];
        (context.rotaries.of(layer), &context.masks[&window])
    }
}

impl<B: Backend, P: Project<B>, E: Project<B>> LayeredDecoder<B> for Llama<B, P, E> {
    type Context = LlamaContext<B>;

    fn context(&self, batch: &TokenBatch<B>) -> LlamaContext<B> {
        let all = AttentionMask::packed(&batch.segments);
        let all = match self.config.attention_cap {
            Some(cap) => all.capped(cap),
            None => all,
        };
        let windows: BTreeSet<Option<usize>> = self.config.windows.iter().copied().collect();
        let masks = windows.into_iter().map(|window| {
            let mask = window.map(|window| all.within(window));
            (window, mask.unwrap_or_else(|| all.clone()))
        });
        LlamaContext {
            rotaries: self.rotaries(&batch.positions),
            masks: masks.collect(),
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
        let (rotary, mask) = self.of_layer(layer, context);
        self.model.layers[layer].attention_weights(h, rotary, mask)
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
        let (rotary, mask) = self.of_layer(layer, context);
        self.model.layers[layer].attention_inputs(h, rotary, mask)
    }

    fn attention(&self, layer: usize, h: Tensor<B, 3>, context: &LlamaContext<B>) -> Tensor<B, 3> {
        let (rotary, mask) = self.of_layer(layer, context);
        self.model.layers[layer].attention(h, rotary, Seen::Batch(mask))
    }

    fn attention_output(
        &self,
        layer: usize,
        h: Tensor<B, 3>,
        context: &LlamaContext<B>,
    ) -> Tensor<B, 3> {
        let (rotary, mask) = self.of_layer(layer, context);
        self.model.layers[layer].attention_output(h, rotary, Seen::Batch(mask))
    }

    fn attention_output_gain(&self, layer: usize) -> Option<Tensor<B, 1>> {
        self.model.layers[layer].attention_output_gain()
    }

    fn feed_forward_features(&self, layer: usize, h: Tensor<B, 3>) -> Tensor<B, 3> {
        self.model.layers[layer].feed_forward_features(h)
    }

    fn feed_forward(&self, layer: usize, h: Tensor<B, 3>) -> Tensor<B, 3> {
        self.model.layers[layer].feed_forward(h)
    }

    fn gated_units(&self, layer: usize, h: Tensor<B, 3>) -> Option<GatedUnits<B>> {
        self.model.layers[layer].gated_units(h)
    }

    fn normed(&self, reader: Reader, h: Tensor<B, 3>) -> Option<Tensor<B, 3>> {
        Some(match reader {
            Reader::Attention(layer) => self.model.layers[layer].read_by_attention(h),
            Reader::FeedForward(layer) => self.model.layers[layer].read_by_feed_forward(h),
            Reader::Head => self.finished(h),
        })
    }

    fn query_key_features(&self, head_dim: usize) -> Vec<Option<usize>> {
        let turning =
            [self.config.head_dim, head_dim].map(|size| self.config.rope.turned(size) / 2);
        rotary_features(self.config.head_dim, head_dim, turning)
    }

    fn rotary_pairs(&self) -> Vec<[usize; 2]> {
        let half = self.config.head_dim / 2;
        (0..half).map(|pair| [pair, pair + half]).collect()
    }

    fn mixes_heads(&self) -> bool {
        self.config.qk_norm == QkNorm::Nothing
    }

    fn gains(&self) -> Vec<(String, String)> {
        let gains = self.config.gains().into_iter();
        gains
            .map(|(norm, site)| (format!("{norm}.gamma"), site_name(site)))
            .collect()
    }

    fn site_name(&self, site: Site) -> Option<String> {
        let is_there = site != Site::HEAD || self.lm_head.is_some();
        is_there.then(|| site_name(site))
    }
}
