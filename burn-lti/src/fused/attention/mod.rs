//! Grouped-query attention: scores, softmax and the mixing of values.

mod cpu;
mod mask;

use std::sync::Arc;

use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::ops::FloatTensor;

pub use mask::AttentionMask;
use mask::Spans;

use super::lanes::{self, floats};
use super::masked_softmax;
use super::operation::{Operation, apply, primitive, tensor};
use crate::geometry::Axes;
use crate::host::Team;

/// `softmax(q k^T + mask) v` for each head (Vaswani et al. 2017; several query heads to one of keys and
/// values by Ainslie et al. 2023). `q` is scaled already.
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
    match mask.spans() {
        Some(spans) if lanes::suit_copied([&q, &k, &v]) => {
            let device = q.device();
            let attention = GroupedAttention {
                shape,
                spans: spans.clone(),
            };
            let inputs = [primitive(q), primitive(k), primitive(v)];
            tensor(apply::<B, _, 3>(attention, &device, inputs))
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
    } = shape;
    let rows = heads / kv_heads * queries;
    let scores = by_head(q, heads)
        .reshape([batch, kv_heads, rows, head_dim])
        .matmul(by_head(k, kv_heads).swap_dims(2, 3))
        .reshape([batch, heads, queries, keys]);
    // In the default float type, as transformers does: half-precision exponentials of long rows would not
    // sum to one.
    let dtype = scores.dtype();
    masked_softmax(scores.cast(mask.dtype()), mask)
        .cast(dtype)
        .reshape([batch, kv_heads, rows, keys])
}

/// `x [batch, tokens, heads * head_dim] -> [batch, heads, tokens, head_dim]`
fn by_head<B: Backend>(x: Tensor<B, 3>, heads: usize) -> Tensor<B, 4> {
    let [batch, tokens, width] = x.dims();
    x.reshape([batch, tokens, heads, width / heads])
        .swap_dims(1, 2)
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Shape {
    /// Of what is asked of an attention.
    fn of<B: Backend>(
        q: &Tensor<B, 3>,
        k: &Tensor<B, 3>,
        geometry: &Axes,
        mask: &AttentionMask<B>,
    ) -> Self {
        let ([batch, queries, _], [_, keys, _]) = (q.dims(), k.dims());
        let (query, kv) = (geometry.query, geometry.key_value);
        assert!(
            kv.heads > 0 && query.heads.is_multiple_of(kv.heads) && query.head_dim == kv.head_dim,
            "query heads come in equal groups, of the head size of their keys"
        );
        assert_eq!(
            (q.dims(), k.dims()),
            ([batch, queries, query.width()], [batch, keys, kv.width()]),
            "queries and keys are of the geometry"
        );
        let [of, ..] = mask.dims();
        assert!(
            mask.dims() == [of, queries, keys] && (of == 1 || of == batch),
            "the mask is for these queries and keys"
        );
        Self {
            batch,
            queries,
            keys,
            heads: query.heads,
            kv_heads: kv.heads,
            head_dim: query.head_dim,
        }
    }

    const fn width(self) -> usize {
        self.heads * self.head_dim
    }

    const fn kv_width(self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The key/value head of a query head.
    const fn kv_of(self, head: usize) -> usize {
        head / (self.heads / self.kv_heads)
    }
}

/// With `p` the weights of a head and `g` the gradient of its output: `d v = p^T g`,
/// `d scores = p (g v^T - sum(p g v^T))`, `d q = d scores k`, `d k = d scores^T q`.
#[derive(Clone, Debug)]
struct GroupedAttention {
    shape: Shape,
    spans: Arc<Spans>,
}

/// What the backward pass needs to make the weights again.
#[derive(Debug)]
struct Kept {
    q: TensorData,
    k: TensorData,
    v: TensorData,
    sums: Vec<cpu::Sum>,
}

impl GroupedAttention {
    fn output<I: Backend>(&self, inputs: [FloatTensor<I>; 3]) -> (FloatTensor<I>, Kept) {
        let device = tensor::<I, 3>(inputs[0].clone()).device();
        let [q, k, v] = inputs.map(|input| tensor::<I, 3>(input).into_data());
        let (output, sums) = cpu::forward(
            Team::of(&device),
            [&q, &k, &v].map(floats),
            self.shape,
            &self.spans,
        );
        let shape = [self.shape.batch, self.shape.queries, self.shape.width()];
        let output = Tensor::<I, 3>::from_data(TensorData::new(output, shape), &device);
        (primitive(output), Kept { q, k, v, sums })
    }
}

impl Operation<3> for GroupedAttention {
    type Kept<I: Backend> = Arc<Kept>;

    fn forward<I: Backend>(self, inputs: [FloatTensor<I>; 3]) -> FloatTensor<I> {
        self.output::<I>(inputs).0
    }

    fn forward_keeping<I: Backend>(
        self,
        inputs: [FloatTensor<I>; 3],
        _: [bool; 3],
    ) -> (FloatTensor<I>, Self::Kept<I>) {
        let (output, kept) = self.output::<I>(inputs);
        (output, Arc::new(kept))
    }

    fn backward<I: Backend>(
        self,
        kept: Self::Kept<I>,
        gradient: FloatTensor<I>,
        wanted: [bool; 3],
    ) -> [Option<FloatTensor<I>>; 3] {
        let gradient = tensor::<I, 3>(gradient);
        let device = gradient.device();
        let gradient = gradient.into_data();
        let inputs = [&kept.q, &kept.k, &kept.v];
        let (shape, spans) = (self.shape, &self.spans);
        let gradients = cpu::Backward {
            team: Team::of(&device),
            inputs: inputs.map(floats),
            sums: &kept.sums,
            gradient: floats(&gradient),
            shape,
            spans,
        }
        .gradients(wanted);
        let mut shapes = inputs.map(|input| input.shape.clone()).into_iter();
        gradients.map(|gradient| {
            let shape = shapes.next()?;
            let data = TensorData::new(gradient?, shape);
            Some(primitive(Tensor::<I, 3>::from_data(data, &device)))
        })
    }

    fn plain<B: Backend>(self, [q, k, v]: [FloatTensor<B>; 3]) -> FloatTensor<B> {
        let [q, k, v] = [q, k, v].map(tensor::<B, 3>);
        let mask = self.spans.scores(&q.device());
        primitive(in_tensor_operations(q, k, v, self.shape, mask))
    }
}
