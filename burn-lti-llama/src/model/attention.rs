//! Grouped-query attention over packed documents.

use burn::nn::{Linear, LinearConfig};
use burn::prelude::*;
use burn_lti::decoder::{AttentionGeometry, Project, Projection};
use burn_lti::dense::{HeadGrid, Slot};
use burn_lti::fused::masked_softmax;

use super::{LayerCache, Rotary};
use crate::config::LlamaConfig;

/// Which tokens see which, as a term added to the scores.
#[derive(Clone, Debug)]
pub struct AttentionMask<B: Backend> {
    /// `[batch, 1, queries, keys]`: 0 where a query sees a key, minus infinity where not; one for all heads
    /// and layers.
    scores: Tensor<B, 4>,
}

impl<B: Backend> AttentionMask<B> {
    /// Each token sees the earlier tokens of its own document, and itself. `segments [batch, tokens]`.
    pub fn packed(segments: &Tensor<B, 2, Int>) -> Self {
        let [batch, tokens] = segments.dims();
        let segments = segments.clone().float();
        let queries = segments.clone().reshape([batch, tokens, 1]);
        let keys = segments.reshape([batch, 1, tokens]);
        let other_document = queries
            .repeat_dim(2, tokens)
            .not_equal(keys.repeat_dim(1, tokens));
        let scores = Tensor::<B, 3>::zeros([batch, tokens, tokens], &other_document.device())
            .mask_fill(other_document, f32::NEG_INFINITY);
        let causal = causal(0, tokens, &scores.device()).unsqueeze();
        let scores = scores + causal;
        Self {
            scores: scores.unsqueeze_dim(1),
        }
    }

    /// Tokens that continue one document: query `i` sees all `past` keys and the first `i + 1` of its
    /// own.
    pub fn continuing(past: usize, tokens: usize, device: &B::Device) -> Self {
        Self {
            scores: causal(past, tokens, device).unsqueeze(),
        }
    }
}

/// Minus infinity where a key comes after a query, else 0: `[tokens, past + tokens]`, the queries
/// being the last `tokens`.
fn causal<B: Backend>(past: usize, tokens: usize, device: &B::Device) -> Tensor<B, 2> {
    let keys = past + tokens;
    let later = Tensor::<B, 2, Bool>::tril_mask([tokens, keys], past as i64, device);
    Tensor::zeros([tokens, keys], device).mask_fill(later, f32::NEG_INFINITY)
}

/// The attention block of a layer.
#[derive(Module, Debug)]
pub struct Attention<B: Backend, P: Module<B>> {
    q_proj: P,
    k_proj: P,
    v_proj: P,
    o_proj: P,
    #[module(skip)]
    geometry: AttentionGeometry,
    #[module(skip)]
    _backend: std::marker::PhantomData<B>,
}

impl<B: Backend> Attention<B, Linear<B>> {
    /// Projections of the configured widths, not yet allocated.
    pub fn init(config: &LlamaConfig, device: &B::Device) -> Self {
        let geometry = config.geometry();
        let linear = |slot| {
            let width = geometry.grid(slot).width();
            let (d_input, d_output) = match slot {
                Slot::Out => (width, geometry.d_model),
                _ => (geometry.d_model, width),
            };
            LinearConfig::new(d_input, d_output)
                .with_bias(config.attention_bias)
                .init(device)
        };
        Self {
            q_proj: linear(Slot::Query),
            k_proj: linear(Slot::Key),
            v_proj: linear(Slot::Value),
            o_proj: linear(Slot::Out),
            geometry,
            _backend: std::marker::PhantomData,
        }
    }

    /// The block with each projection replaced by what `swap` makes of it.
    pub(super) fn swap_projections<E>(
        self,
        mut swap: impl FnMut(Slot, Linear<B>) -> Result<Projection<B>, E>,
    ) -> Result<Attention<B, Projection<B>>, E> {
        Ok(Attention {
            q_proj: swap(Slot::Query, self.q_proj)?,
            k_proj: swap(Slot::Key, self.k_proj)?,
            v_proj: swap(Slot::Value, self.v_proj)?,
            o_proj: swap(Slot::Out, self.o_proj)?,
            geometry: self.geometry,
            _backend: self._backend,
        })
    }
}

impl<B: Backend, P: Module<B>> Attention<B, P> {
    /// The block's grids.
    pub const fn geometry(&self) -> AttentionGeometry {
        self.geometry
    }
}

impl<B: Backend, P: Project<B>> Attention<B, P> {
    /// `x [batch, tokens, d_model] -> [batch, tokens, d_model]`. With a cache, the keys and values of
    /// earlier tokens are in it, and those of `x` are added.
    pub fn forward(
        &self,
        x: Tensor<B, 3>,
        rotary: &Rotary<B>,
        mask: &AttentionMask<B>,
        cache: Option<&mut LayerCache<B>>,
    ) -> Tensor<B, 3> {
        let [batch, tokens, _] = x.dims();
        let (query, kv) = (self.geometry.query, self.geometry.key_value);
        // Burn's gradient of a product with more than two axes is batched and summed afterwards.
        let rows = x.reshape([batch * tokens, self.geometry.d_model]);
        let (q, k) = self.turned(rows.clone(), rotary, [batch, tokens]);
        let v = heads(self.v_proj.project(rows), [batch, tokens], kv);
        let (k, v) = match cache {
            Some(cache) => cache.extend(k, v),
            None => (k, v),
        };
        let mixed = self
            .grouped_weights(q, k, mask)
            .matmul(v)
            .reshape([batch, query.heads, tokens, query.head_dim])
            .swap_dims(1, 2)
            .reshape([batch * tokens, query.width()]);
        self.o_proj
            .project(mixed)
            .reshape([batch, tokens, self.geometry.d_model])
    }

    /// How much each head looks at each token: `x [batch, tokens, d_model] ->
    /// [batch, heads, tokens, tokens]`, rows summing to one.
    pub(super) fn weights(
        &self,
        x: Tensor<B, 3>,
        rotary: &Rotary<B>,
        mask: &AttentionMask<B>,
    ) -> Tensor<B, 4> {
        let [batch, tokens, d_model] = x.dims();
        let rows = x.reshape([batch * tokens, d_model]);
        let (q, k) = self.turned(rows, rotary, [batch, tokens]);
        self.grouped_weights(q, k, mask)
            .reshape([batch, self.geometry.query.heads, tokens, tokens])
    }

    /// The values of all key/value heads side by side: `x [batch, tokens, d_model] ->
    /// [batch, tokens, kv_heads * head_dim]`.
    pub(super) fn values(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, tokens, d_model] = x.dims();
        self.v_proj
            .project(x.reshape([batch * tokens, d_model]))
            .reshape([batch, tokens, self.geometry.key_value.width()])
    }

    /// Queries, scaled, and keys, both turned by their positions, of `rows [batch * tokens, d_model]`:
    /// `[batch, heads, tokens, head_dim]` and `[batch, kv_heads, tokens, head_dim]`.
    fn turned(
        &self,
        rows: Tensor<B, 2>,
        rotary: &Rotary<B>,
        batch_tokens: [usize; 2],
    ) -> (Tensor<B, 4>, Tensor<B, 4>) {
        let (query, kv) = (self.geometry.query, self.geometry.key_value);
        let q = rotary.scaled_queries(self.q_proj.project(rows.clone()));
        let q = heads(q, batch_tokens, query);
        let k = self.k_proj.project(rows);
        let k = heads(rotary.turn_keys(k), batch_tokens, kv);
        (q, k)
    }

    /// `q [batch, heads, tokens, head_dim]` against `k [batch, kv_heads, keys, head_dim]`:
    /// `[batch, kv_heads, group * tokens, keys]`. Query heads of one group are rows of one product with
    /// their shared key head, so keys and values are never repeated.
    fn grouped_weights(
        &self,
        q: Tensor<B, 4>,
        k: Tensor<B, 4>,
        mask: &AttentionMask<B>,
    ) -> Tensor<B, 4> {
        let [batch, query_heads, tokens, head_dim] = q.dims();
        let kv_heads = self.geometry.key_value.heads;
        let group = query_heads / kv_heads;
        let scores = q
            .reshape([batch, kv_heads, group * tokens, head_dim])
            .matmul(k.swap_dims(2, 3));
        let keys = scores.dims()[3];
        let scores = scores.reshape([batch, query_heads, tokens, keys]);
        // In the default float type, as transformers does: half-precision exponentials of long rows
        // would not sum to one.
        let dtype = scores.dtype();
        masked_softmax(scores.cast(mask.scores.dtype()), mask.scores.clone())
            .cast(dtype)
            .reshape([batch, kv_heads, group * tokens, keys])
    }
}

/// `rows [batch * tokens, heads * head_dim] -> [batch, heads, tokens, head_dim]`
fn heads<B: Backend>(
    rows: Tensor<B, 2>,
    [batch, tokens]: [usize; 2],
    grid: HeadGrid,
) -> Tensor<B, 4> {
    rows.reshape([batch, tokens, grid.heads, grid.head_dim])
        .swap_dims(1, 2)
}
