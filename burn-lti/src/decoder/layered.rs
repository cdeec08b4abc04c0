//! What a decoder offers to be walked layer by layer.

use burn::prelude::*;

use super::{CausalLm, TokenBatch};
use crate::geometry::Site;

/// What goes on inside a feed-forward block whose features are `activation(gate) * up`, a row a token.
#[derive(Clone, Debug)]
pub struct GatedUnits<B: Backend> {
    /// What gate and up read, `[rows, d_model]`.
    pub input: Tensor<B, 2>,
    /// The activation of what the gate projection puts out, `[rows, hidden]`.
    pub gate: Tensor<B, 2>,
    /// The activation's derivative there.
    pub slope: Tensor<B, 2>,
    /// What the up projection puts out.
    pub up: Tensor<B, 2>,
}

/// Who reads the residual stream, by the number of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Query, key and value of the layer.
    Attention(usize),
    /// Gate and up of the layer's feed-forward block.
    FeedForward(usize),
    /// The head.
    Head,
}

/// A decoder whose layers can be run one at a time, and whose attention can be taken apart.
///
/// This is what the [`calibrated`](crate::calibration) start needs beyond [`CausalLm`]: it fits
/// a student layer after layer, on the hidden states that the student itself has by then.
///
/// In all shapes `h` is the residual stream that the layer reads, `[batch, tokens, d_model]`.
pub trait LayeredDecoder<B: Backend>: CausalLm<B> {
    /// What all layers share while they read a batch: rotary tables, masks.
    type Context;

    /// The context of `batch`.
    fn context(&self, batch: &TokenBatch<B>) -> Self::Context;

    /// The residual stream that the first layer reads.
    fn embed(&self, batch: &TokenBatch<B>) -> Tensor<B, 3>;

    /// How much each head of `layer` looks at each token: `[batch, heads, tokens, tokens]`, rows
    /// summing to one, queries before keys.
    fn attention_weights(
        &self,
        layer: usize,
        h: Tensor<B, 3>,
        context: &Self::Context,
    ) -> Tensor<B, 4>;

    /// What the value projection of `layer` makes of every token:
    /// `[batch, tokens, kv_heads * head_dim]`.
    fn values(&self, layer: usize, h: Tensor<B, 3>) -> Tensor<B, 3>;

    /// What the projections of the attention of `layer` read: query, key and value
    /// `[batch, tokens, d_model]`, and out `[batch, tokens, heads * head_dim]`.
    fn attention_inputs(
        &self,
        layer: usize,
        h: Tensor<B, 3>,
        context: &Self::Context,
    ) -> [Tensor<B, 3>; 2];

    /// What the attention of `layer` adds to the residual stream: `[batch, tokens, d_model]`.
    fn attention(&self, layer: usize, h: Tensor<B, 3>, context: &Self::Context) -> Tensor<B, 3>;

    /// What the output projection of the attention of `layer` puts out: what the attention adds to the residual
    /// stream, unless there is a norm between.
    fn attention_output(
        &self,
        layer: usize,
        h: Tensor<B, 3>,
        context: &Self::Context,
    ) -> Tensor<B, 3> {
        self.attention(layer, h, context)
    }

    /// The gain of the norm between what [`attention_output`](Self::attention_output) gives and what the attention of
    /// `layer` adds, `[d_model]`. None, as it is unless a decoder says otherwise, if there is no such norm.
    fn attention_output_gain(&self, _layer: usize) -> Option<Tensor<B, 1>> {
        None
    }

    /// What the last projection of the feed-forward block of `layer` reads, `h` being the stream
    /// after the attention: `[batch, tokens, intermediate]`.
    fn feed_forward_features(&self, layer: usize, h: Tensor<B, 3>) -> Tensor<B, 3>;

    /// What the feed-forward block of `layer` adds to the residual stream, `h` being the stream after
    /// the attention: `[batch, tokens, d_model]`.
    fn feed_forward(&self, layer: usize, h: Tensor<B, 3>) -> Tensor<B, 3>;

    /// What goes on inside the gated feed-forward block of `layer`, `h` being the stream after the attention.
    /// `None`, as it is unless a decoder says otherwise, where there is no gate: then a calibrated start fits the
    /// block's last projection alone.
    fn gated_units(&self, _layer: usize, _h: Tensor<B, 3>) -> Option<GatedUnits<B>> {
        None
    }

    /// What `reader` reads of the residual stream `h`: what the norm before it makes of that. `None`, as it is unless
    /// a decoder says otherwise, where that is not known: then a calibrated start has no other width.
    fn normed(&self, _reader: Reader, _h: Tensor<B, 3>) -> Option<Tensor<B, 3>> {
        None
    }

    /// For each feature of a query or key head of `head_dim` features, the feature of this decoder's heads
    /// that it may begin as; `None` if there is none. Features that a rotary embedding rotates together
    /// stay together, at the nearest frequency.
    fn query_key_features(&self, head_dim: usize) -> Vec<Option<usize>>;

    /// The two features of a query or key head that the rotary embedding turns together, of each pair: the head
    /// may be multiplied there by any complex number, the first feature being the real part, and turns as
    /// before. None, as it is unless a decoder says otherwise, if there is no such embedding.
    fn rotary_pairs(&self) -> Vec<[usize; 2]> {
        Vec::new()
    }

    /// Whether queries and keys of several heads may be mixed, and turned: not if they are normed.
    fn mixes_heads(&self) -> bool {
        true
    }

    /// Tensors that have a number for each output of a projection, as the gain of a norm of all heads at once, each
    /// with that projection, by their dotted names. They follow the map of its outputs, as
    /// [`Rules::with_gains`](crate::blueprint::Rules::with_gains) has it. None unless a decoder says otherwise.
    fn gains(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// The dotted name of the weight at `site`, without its leaf, as its tensors are named:
    /// `model.layers.0.self_attn.q_proj`. `None` if the decoder has no such weight.
    fn site_name(&self, site: Site) -> Option<String>;
}
