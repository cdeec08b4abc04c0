//! Grouped-query attention: scores, softmax and the mixing of values.

mod cache;
mod cached_cpu;
mod cpu;
mod mask;
mod shape;

use std::sync::Arc;

use burn::prelude::*;

pub use cache::{KvCache, Place, Step};
pub use mask::AttentionMask;
use mask::Spans;
use shape::Shape;

use super::form::{Form, is_cpu};
use super::graph::{Operation, apply};
use super::soft_cap::soft_cap;
use super::softmax::masked_softmax;
use crate::geometry::Axes;

/// `softmax(q k^T + mask) v` for each head (Vaswani et al. 2017; several query heads to one of keys and
/// values by Ainslie et al. 2023). `q` is scaled already. Where the mask has a
/// [cap](AttentionMask::capped), scores go through it before the mask is added.
///
/// In float32 and on a CPU, if each document's tokens lie together, this is one operation, which has the scores
/// of a few queries in memory at a time and makes them again for the gradient (Dao et al. 2022); keys that none
/// of these queries sees are passed over. Else it is made of tensor operations, and the weights are kept.
///
/// # Shapes
///
/// `q` and the result: `[batch, queries, heads * head_dim]`; `k` and `v`:
/// `[batch, keys, kv_heads * head_dim]`. The queries belong to the last keys.
///
/// # Panics
///
/// If they have other shapes than the geometry, the mask and each other ask for, or query heads do not come in
/// equal groups of the keys' head size.
pub fn grouped_attention<B: Backend>(
    q: Tensor<B, 3>,
    k: Tensor<B, 3>,
    v: Tensor<B, 3>,
    geometry: &Axes,
    mask: &AttentionMask<B>,
) -> Tensor<B, 3> {
    let shape = Shape::of(&q, &k, geometry, mask);
    assert_eq!(v.dims(), k.dims(), "there is a value for each key");
    match (mask.spans(), Form::of(is_cpu, [&q, &k, &v])) {
        (Some(spans), form @ Form::Cpu) => {
            let spans = spans.clone();
            apply(GroupedAttention { shape, spans }, form, [q, k, v])
        }
        _ => in_tensor_operations(q, k, v, shape, mask.scores()),
    }
}

/// How much each query looks at each key: `softmax(q k^T + mask)`, `[batch, heads, queries, keys]`, rows
/// summing to one. Shapes are those of [`grouped_attention`].
///
/// # Panics
///
/// As [`grouped_attention`].
pub fn attention_weights<B: Backend>(
    q: Tensor<B, 3>,
    k: Tensor<B, 3>,
    geometry: &Axes,
    mask: &AttentionMask<B>,
) -> Tensor<B, 4> {
    let shape = Shape::of(&q, &k, geometry, mask);
    weights(q, k, shape, mask.scores()).reshape([
        shape.batch,
        shape.heads,
        shape.queries,
        shape.keys,
    ])
}

fn in_tensor_operations<B: Backend>(
    q: Tensor<B, 3>,
    k: Tensor<B, 3>,
    v: Tensor<B, 3>,
    shape: Shape,
    mask: Tensor<B, 4>,
) -> Tensor<B, 3> {
    weights(q, k, shape, mask)
        .matmul(by_head(v, shape.kv_heads))
        .reshape([shape.batch, shape.heads, shape.queries, shape.head_dim])
        .swap_dims(1, 2)
        .reshape([shape.batch, shape.queries, shape.width()])
}

/// `[batch, kv_heads, group * queries, keys]`: query heads of one group are rows of one product with their
/// shared key head, so that keys and values are never repeated.
fn weights<B: Backend>(
    q: Tensor<B, 3>,
    k: Tensor<B, 3>,
    shape: Shape,
    mask: Tensor<B, 4>,
) -> Tensor<B, 4> {
    let Shape {
        batch,
        queries,
        keys,
        heads,
        kv_heads,
        head_dim,
        cap,
    } = shape;
    let rows = heads / kv_heads * queries;
    let scores = by_head(q, heads)
        .reshape([batch, kv_heads, rows, head_dim])
        .matmul(by_head(k, kv_heads).swap_dims(2, 3))
        .reshape([batch, heads, queries, keys]);
    // In the default float type, as transformers does: half-precision exponentials of long rows would not
    // sum to one.
    let dtype = scores.dtype();
    let scores = scores.cast(mask.dtype());
    let scores = match cap {
        Some(cap) => soft_cap(scores, cap),
        None => scores,
    };
    masked_softmax(scores, mask)
        .cast(dtype)
        .reshape([batch, kv_heads, rows, keys])
}

/// `x [batch, tokens, heads * head_dim] -> [batch, heads, tokens, head_dim]`
fn by_head<B: Backend>(x: Tensor<B, 3>, heads: usize) -> Tensor<B, 4> {
    let [batch, tokens, width] = x.dims();
    x.reshape([batch, tokens, heads, width / heads])
        .swap_dims(1, 2)
}

/// With `p` the weights of a head and `g` the gradient of its output: `d v = p^T g`,
/// `d scores = p (g v^T - sum(p g v^T))`, `d q = d scores k`, `d k = d scores^T q`. Of scores that were capped
/// `d scores` is `1 - (capped / cap)^2` of that. On a CPU alone.
#[derive(Clone, Debug)]
struct GroupedAttention {
    shape: Shape,
    spans: Arc<Spans>,
}

impl Operation<3, 3> for GroupedAttention {
    /// What makes the weights again.
    type Saved<B: Backend> = Arc<cpu::Saved>;

    fn forward<B: Backend>(
        &self,
        form: Form,
        [q, k, v]: [Tensor<B, 3>; 3],
        _: [bool; 3],
    ) -> (Tensor<B, 3>, Option<Self::Saved<B>>) {
        match form {
            Form::Tensors => {
                let mask = self.spans.scores(&q.device());
                (in_tensor_operations(q, k, v, self.shape, mask), None)
            }
            Form::Cpu => {
                let (output, saved) = cpu::forward([q, k, v], self.shape, &self.spans);
                (output, Some(Arc::new(saved)))
            }
        }
    }

    fn backward<B: Backend>(
        &self,
        _: Form,
        saved: Self::Saved<B>,
        gradient: Tensor<B, 3>,
        wanted: [bool; 3],
    ) -> [Option<Tensor<B, 3>>; 3] {
        cpu::gradients(&saved, gradient, self.shape, &self.spans, wanted)
    }
}
