//! A second decoder, unlike Llama in everything that the toolkit must not depend on: LayerNorm,
//! learned positions, biases everywhere, a GELU feed-forward block, other names, an untied head.

use std::marker::PhantomData;

use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::prelude::*;
use burn::tensor::activation::{gelu, softmax};
use burn_lti::blueprint::Rules;
use burn_lti::decoder::{
    CausalLm, DecoderError, FeatureTap, Head, LayeredDecoder, LearnToInitDecoderLayer, LtiSpec,
    Project, Projection, TokenBatch, learn_to_init,
};
use burn_lti::geometry::{Axes, HeadGrid, Role, Site};
use burn_lti::inject::AwaitingTeacher;
use burn_lti::tensors::TensorSet;

use crate::numbers::{Numbers, int_tensor, tensor};
use crate::params::fill_random;

/// Sizes of a toy.
#[derive(Clone, Copy, Debug)]
pub struct ToyConfig {
    /// Attention.
    pub geometry: Axes,
    /// Number of layers.
    pub layers: usize,
    /// Number of tokens.
    pub vocab: usize,
    /// Longest document.
    pub positions: usize,
}

impl ToyConfig {
    /// Three layers of width 12 with `heads` query and `kv_heads` key/value heads of 4 features.
    pub const fn new(heads: usize, kv_heads: usize) -> Self {
        Self {
            geometry: Axes {
                hidden: 24,
                ..Axes::of_attention(12, HeadGrid::new(heads, 4), HeadGrid::new(kv_heads, 4))
            },
            layers: 3,
            vocab: 23,
            positions: 16,
        }
    }

    /// A plain toy, not yet allocated.
    pub fn init<B: Backend>(&self, device: &B::Device) -> PlainToy<B> {
        let d_model = self.geometry.d_model;
        Toy {
            axes: self.geometry,
            token_table: EmbeddingConfig::new(self.vocab, d_model).init(device),
            place_table: EmbeddingConfig::new(self.positions, d_model).init(device),
            blocks: (0..self.layers)
                .map(|_| ToyBlock::init(&self.geometry, device))
                .collect(),
            last_norm: LayerNormConfig::new(d_model).init(device),
            unembed: LinearConfig::new(d_model, self.vocab)
                .with_bias(false)
                .init(device),
        }
    }

    /// A plain toy of random weights, the same on every backend.
    pub fn random<B: Backend>(&self, seed: u64, device: &B::Device) -> PlainToy<B> {
        fill_random(self.init(device), seed)
    }

    /// A learning toy whose teacher is `teacher`, a toy of geometry `spec.teacher`.
    ///
    /// # Panics
    ///
    /// If it cannot be made.
    pub fn learning<B: Backend>(
        &self,
        teacher: &TensorSet<B>,
        spec: &LtiSpec,
        device: &B::Device,
    ) -> LearningToy<B> {
        let awaiting = self.init(device).learn_to_init(spec).expect("a swap");
        let injected = awaiting.inject(teacher, &Rules::by_name());
        injected.expect("an injection").0
    }

    /// Random packed documents: two rows, each of two documents and, in the second, padding.
    pub fn batch<B: Backend>(&self, seed: u64, device: &B::Device) -> TokenBatch<B> {
        packed_batch(self.vocab, seed, device)
    }
}

/// Two rows of 12 tokens: documents of 5 and 7 tokens, and of 6 and 4 with 2 of padding. The last
/// token of a document has no target.
pub fn packed_batch<B: Backend>(vocab: usize, seed: u64, device: &B::Device) -> TokenBatch<B> {
    let mut numbers = Numbers::new(seed);
    let (mut segments, mut positions, mut mask) = (Vec::new(), Vec::new(), Vec::new());
    for (segment, length) in [(1, 5), (2, 7), (1, 6), (2, 4), (0, 2)] {
        for position in 0..length {
            segments.push(segment);
            positions.push(if segment == 0 { 0 } else { position });
            mask.push(f32::from(segment != 0 && position + 1 < length));
        }
    }
    let shape = [2, 12];
    TokenBatch {
        tokens: int_tensor(&numbers.ids(24, vocab), shape, device),
        positions: int_tensor(&positions, shape, device),
        segments: int_tensor(&segments, shape, device),
        targets: int_tensor(&numbers.ids(24, vocab), shape, device),
        mask: tensor(&mask, shape, device),
        rows: Vec::new(),
    }
}

/// A toy with ordinary projections.
pub type PlainToy<B> = Toy<B, Linear<B>>;

/// A toy whose projections may be maps.
pub type LearningToy<B> = Toy<B, Projection<B>>;

/// A decoder of projections of type `P`.
#[derive(Module, Debug)]
pub struct Toy<B: Backend, P: Module<B>> {
    token_table: Embedding<B>,
    place_table: Embedding<B>,
    blocks: Vec<ToyBlock<B, P>>,
    last_norm: LayerNorm<B>,
    unembed: P,
    #[module(skip)]
    axes: Axes,
}

impl<B: Backend> PlainToy<B> {
    /// Swaps the projections of the chosen blocks for maps.
    ///
    /// # Errors
    ///
    /// As [`learn_to_init`].
    pub fn learn_to_init(
        self,
        spec: &LtiSpec,
    ) -> Result<AwaitingTeacher<LearningToy<B>>, DecoderError> {
        Ok(AwaitingTeacher::new(Toy {
            token_table: self.token_table,
            place_table: self.place_table,
            blocks: learn_to_init(self.blocks, spec)?,
            last_norm: self.last_norm,
            unembed: spec.swap(&self.axes, Site::HEAD, self.unembed)?,
            axes: self.axes,
        }))
    }
}

impl<B: Backend, P: Project<B>> CausalLm<B> for Toy<B, P> {
    fn forward(&self, batch: &TokenBatch<B>, tap: &mut FeatureTap<'_, B>) -> Tensor<B, 3> {
        let hidden = hidden_keys(&batch.segments);
        let states = self.blocks.iter().fold(self.embed(batch), |states, block| {
            block.forward(states, &hidden, tap)
        });
        self.last_norm.forward(states)
    }

    fn layers(&self) -> usize {
        self.blocks.len()
    }

    fn head(&self) -> Head<B> {
        Head {
            weight: self.unembed.weight(),
            trains: self.unembed.trains(),
            cap: None,
        }
    }
}

/// Which keys a query must not see, `[batch, 1, queries, keys]`: later ones and other documents'.
fn hidden_keys<B: Backend>(segments: &Tensor<B, 2, Int>) -> Tensor<B, 4, Bool> {
    let [batch, tokens] = segments.dims();
    let shape = [batch, 1, tokens, tokens];
    let queries = segments
        .clone()
        .reshape([batch, 1, tokens, 1])
        .expand(shape);
    let keys = segments
        .clone()
        .reshape([batch, 1, 1, tokens])
        .expand(shape);
    let order = Tensor::<B, 1, Int>::arange(0..tokens as i64, &segments.device());
    let later = order
        .clone()
        .reshape([1, 1, tokens, 1])
        .expand(shape)
        .lower(order.reshape([1, 1, 1, tokens]).expand(shape));
    queries.not_equal(keys).bool_or(later)
}

impl<B: Backend, P: Project<B>> LayeredDecoder<B> for Toy<B, P> {
    /// Which keys a query must not see.
    type Context = Tensor<B, 4, Bool>;

    fn context(&self, batch: &TokenBatch<B>) -> Self::Context {
        hidden_keys(&batch.segments)
    }

    fn embed(&self, batch: &TokenBatch<B>) -> Tensor<B, 3> {
        let tokens = self.token_table.forward(batch.tokens.clone());
        tokens + self.place_table.forward(batch.positions.clone())
    }

    fn attention_weights(
        &self,
        layer: usize,
        h: Tensor<B, 3>,
        hidden: &Self::Context,
    ) -> Tensor<B, 4> {
        self.blocks[layer].weights(h, hidden)
    }

    fn values(&self, layer: usize, h: Tensor<B, 3>) -> Tensor<B, 3> {
        self.blocks[layer].values(h)
    }

    fn attention_inputs(
        &self,
        layer: usize,
        h: Tensor<B, 3>,
        hidden: &Self::Context,
    ) -> [Tensor<B, 3>; 2] {
        let block = &self.blocks[layer];
        let normed = block.norm_before.forward(h);
        let mixed = block.attention.mixed(normed.clone(), hidden);
        [normed, mixed]
    }

    fn attention(&self, layer: usize, h: Tensor<B, 3>, hidden: &Self::Context) -> Tensor<B, 3> {
        self.blocks[layer].attend(h, hidden)
    }

    fn feed_forward_features(&self, layer: usize, h: Tensor<B, 3>) -> Tensor<B, 3> {
        self.blocks[layer].expanded(h)
    }

    fn feed_forward(&self, layer: usize, h: Tensor<B, 3>) -> Tensor<B, 3> {
        self.blocks[layer].contracted(h)
    }

    /// No rotary embedding: features keep their places.
    fn query_key_features(&self, head_dim: usize) -> Vec<Option<usize>> {
        (0..head_dim).map(Some).collect()
    }

    fn site_name(&self, site: Site) -> Option<String> {
        let name = match site.role {
            Role::Query => "attention.query",
            Role::Key => "attention.key",
            Role::Value => "attention.value",
            Role::Out => "attention.output",
            Role::Up => "expand",
            Role::Down => "contract",
            Role::Head => return Some("unembed".to_owned()),
            _ => return None,
        };
        Some(format!("blocks.{}.{name}", site.layer))
    }
}

/// Attention, then a feed-forward block, each behind a norm and around a residual.
#[derive(Module, Debug)]
pub struct ToyBlock<B: Backend, P: Module<B>> {
    attention: ToyAttention<B, P>,
    norm_before: LayerNorm<B>,
    norm_between: LayerNorm<B>,
    expand: P,
    contract: P,
}

impl<B: Backend> ToyBlock<B, Linear<B>> {
    /// A block with biases in every projection, not yet allocated.
    pub fn init(geometry: &Axes, device: &B::Device) -> Self {
        let d_model = geometry.d_model;
        let norm = LayerNormConfig::new(d_model);
        Self {
            attention: ToyAttention::init(geometry, device),
            norm_before: norm.init(device),
            norm_between: norm.init(device),
            expand: LinearConfig::new(d_model, geometry.hidden).init(device),
            contract: LinearConfig::new(geometry.hidden, d_model).init(device),
        }
    }
}

/// `states` are `[batch, tokens, d_model]`.
impl<B: Backend, P: Project<B>> ToyBlock<B, P> {
    /// What the attention adds.
    fn attend(&self, states: Tensor<B, 3>, hidden: &Tensor<B, 4, Bool>) -> Tensor<B, 3> {
        self.attention
            .forward(self.norm_before.forward(states), hidden)
    }

    /// How much each head looks at each token.
    fn weights(&self, states: Tensor<B, 3>, hidden: &Tensor<B, 4, Bool>) -> Tensor<B, 4> {
        self.attention
            .weights(self.norm_before.forward(states), hidden)
    }

    /// What the value projection makes.
    fn values(&self, states: Tensor<B, 3>) -> Tensor<B, 3> {
        self.attention
            .value
            .project(self.norm_before.forward(states))
    }

    /// What the second half of the feed-forward block reads.
    fn expanded(&self, states: Tensor<B, 3>) -> Tensor<B, 3> {
        gelu(self.expand.project(self.norm_between.forward(states)))
    }

    /// What the feed-forward block adds.
    fn contracted(&self, states: Tensor<B, 3>) -> Tensor<B, 3> {
        self.contract.project(self.expanded(states))
    }

    /// The block's output.
    fn forward(
        &self,
        states: Tensor<B, 3>,
        hidden: &Tensor<B, 4, Bool>,
        tap: &mut FeatureTap<'_, B>,
    ) -> Tensor<B, 3> {
        let attention = self.attend(states.clone(), hidden);
        tap.attention(&attention);
        let states = states + attention;
        states.clone() + self.contracted(states)
    }
}

impl<B: Backend> LearnToInitDecoderLayer<B> for ToyBlock<B, Linear<B>> {
    type Learning = ToyBlock<B, Projection<B>>;

    fn axes(&self) -> Axes {
        self.attention.geometry
    }

    fn swap_weights<E>(
        self,
        mut swap: impl FnMut(Role, Linear<B>) -> Result<Projection<B>, E>,
    ) -> Result<Self::Learning, E> {
        let plain = self.attention;
        Ok(ToyBlock {
            attention: ToyAttention {
                query: swap(Role::Query, plain.query)?,
                key: swap(Role::Key, plain.key)?,
                value: swap(Role::Value, plain.value)?,
                output: swap(Role::Out, plain.output)?,
                geometry: plain.geometry,
                _backend: PhantomData,
            },
            norm_before: self.norm_before,
            norm_between: self.norm_between,
            expand: swap(Role::Up, self.expand)?,
            contract: swap(Role::Down, self.contract)?,
        })
    }
}

/// Grouped-query attention, keys and values repeated for the queries that share them.
#[derive(Module, Debug)]
pub struct ToyAttention<B: Backend, P: Module<B>> {
    query: P,
    key: P,
    value: P,
    output: P,
    #[module(skip)]
    geometry: Axes,
    #[module(skip)]
    _backend: PhantomData<B>,
}

impl<B: Backend> ToyAttention<B, Linear<B>> {
    fn init(geometry: &Axes, device: &B::Device) -> Self {
        let into =
            |role| LinearConfig::new(geometry.d_model, geometry.grid(role).width()).init(device);
        Self {
            query: into(Role::Query),
            key: into(Role::Key),
            value: into(Role::Value),
            output: LinearConfig::new(geometry.query.width(), geometry.d_model).init(device),
            geometry: *geometry,
            _backend: PhantomData,
        }
    }
}

impl<B: Backend, P: Project<B>> ToyAttention<B, P> {
    fn forward(&self, states: Tensor<B, 3>, hidden: &Tensor<B, 4, Bool>) -> Tensor<B, 3> {
        self.output.project(self.mixed(states, hidden))
    }

    /// What the heads put out, side by side.
    fn mixed(&self, states: Tensor<B, 3>, hidden: &Tensor<B, 4, Bool>) -> Tensor<B, 3> {
        let [batch, tokens, _] = states.dims();
        let v = self.shared(self.value.project(states.clone()));
        self.weights(states, hidden)
            .matmul(v)
            .swap_dims(1, 2)
            .reshape([batch, tokens, self.geometry.query.width()])
    }

    fn weights(&self, states: Tensor<B, 3>, hidden: &Tensor<B, 4, Bool>) -> Tensor<B, 4> {
        let [batch, tokens, _] = states.dims();
        let query = self.geometry.query;
        let q = split(self.query.project(states.clone()), query);
        let k = self.shared(self.key.project(states));
        let scores = q.matmul(k.swap_dims(2, 3)) / (query.head_dim as f64).sqrt();
        let hidden = hidden.clone().expand([batch, query.heads, tokens, tokens]);
        softmax(scores.mask_fill(hidden, f32::NEG_INFINITY), 3)
    }

    /// Keys or values, repeated for the queries that share them: `[batch, heads, tokens, head_dim]`.
    fn shared(&self, states: Tensor<B, 3>) -> Tensor<B, 4> {
        let (query, kv) = (self.geometry.query, self.geometry.key_value);
        let [batch, tokens, _] = states.dims();
        let group = query.heads / kv.heads;
        split(states, kv)
            .reshape([batch, kv.heads, 1, tokens, kv.head_dim])
            .repeat_dim(2, group)
            .reshape([batch, query.heads, tokens, kv.head_dim])
    }
}

/// `[batch, tokens, heads * head_dim] -> [batch, heads, tokens, head_dim]`
fn split<B: Backend>(states: Tensor<B, 3>, grid: HeadGrid) -> Tensor<B, 4> {
    let [batch, tokens, _] = states.dims();
    states
        .reshape([batch, tokens, grid.heads, grid.head_dim])
        .swap_dims(1, 2)
}

/// Logits of a batch, `[batch * tokens, vocab]`.
pub fn logits<B: Backend>(model: &impl CausalLm<B>, batch: &TokenBatch<B>) -> Tensor<B, 2> {
    let states = model.hidden_states(batch);
    let [rows, tokens, d_model] = states.dims();
    states
        .reshape([rows * tokens, d_model])
        .matmul(model.head().weight)
}
