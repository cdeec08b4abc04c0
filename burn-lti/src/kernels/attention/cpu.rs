//! The loops of a CPU: a few queries of one head at a time against the keys from the first that one of them
//! sees to the last.

use std::ops::Range;

use burn::prelude::*;
use burn::tensor::TensorData;
use pulp::{Arch, Simd, WithSimd};

use super::mask::Spans;
use super::shape::Shape;
use crate::kernels::cpu::{Left, Rows, RowsMut, ThreadPool, dot, exponential, floats, product};
use crate::kernels::soft_cap::{cap_all, through_cap};

/// Queries that a thread takes at a time. Fewer see fewer keys that the first of them does not see, and
/// share each key between fewer.
const QUERIES: usize = 32;

/// The most lanes that a vector has, and a row of transposed keys more than it needs.
const LANES: usize = 16;

/// Fewer queries than these are not worth transposed keys.
const FEW: usize = 8;

/// What the backward pass needs to make the weights again.
#[derive(Debug)]
pub(super) struct Saved {
    /// Queries, keys and values.
    inputs: [TensorData; 3],
    sums: Vec<Sum>,
}

pub(super) fn forward<B: Backend>(
    inputs: [Tensor<B, 3>; 3],
    shape: Shape,
    spans: &Spans,
) -> (Tensor<B, 3>, Saved) {
    let device = inputs[0].device();
    let inputs = inputs.map(<Tensor<B, 3>>::into_data);
    let pool = ThreadPool::of(&device);
    let (output, sums) = output_and_sums(pool, inputs.each_ref().map(floats), shape, spans);
    let output = TensorData::new(output, [shape.batch, shape.queries, shape.width()]);
    (Tensor::from_data(output, &device), Saved { inputs, sums })
}

/// Those of queries, keys and values that are wanted.
pub(super) fn gradients<B: Backend>(
    saved: &Saved,
    gradient: Tensor<B, 3>,
    shape: Shape,
    spans: &Spans,
    wanted: [bool; 3],
) -> [Option<Tensor<B, 3>>; 3] {
    let device = gradient.device();
    let gradient = gradient.into_data();
    let backward = Backward {
        pool: ThreadPool::of(&device),
        inputs: saved.inputs.each_ref().map(floats),
        sums: &saved.sums,
        gradient: floats(&gradient),
        shape,
        spans,
    };
    let mut shapes = saved.inputs.iter().map(|input| input.shape.clone());
    backward.gradients(wanted).map(|gradient| {
        let shape = shapes.next()?;
        let data = TensorData::new(gradient?, shape);
        Some(Tensor::from_data(data, &device))
    })
}

/// The softmax of a row of scores is `exp(score - most) * scale`. Apart, since far from zero the logarithm of the
/// sum would be rounded to what matters.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    most: f32,
    scale: f32,
}

/// Outputs `[batch, queries, heads * head_dim]`, and what makes weights of scores, `[batch, queries, heads]`.
fn output_and_sums(
    pool: ThreadPool,
    [q, k, v]: [&[f32]; 3],
    shape: Shape,
    spans: &Spans,
) -> (Vec<f32>, Vec<Sum>) {
    let Shape {
        batch,
        queries,
        heads,
        ..
    } = shape;
    let width = shape.width();
    let mut output = vec![0.0; batch * queries * width];
    let mut sums = vec![Sum::default(); batch * queries * heads];
    if output.is_empty() {
        return (output, sums);
    }
    let transposed = (queries >= FEW).then(|| all_transposed(pool, k, shape));
    let pieces = output
        .chunks_mut(queries * width)
        .zip(sums.chunks_mut(queries * heads))
        .enumerate()
        .flat_map(|(batch, (output, sums))| {
            output
                .chunks_mut(QUERIES * width)
                .zip(sums.chunks_mut(QUERIES * heads))
                .enumerate()
                .map(move |(piece, places)| (batch, piece, places))
        });
    pool.for_each(
        pieces.collect(),
        Vec::new,
        |scores, (batch, piece, (output, sums))| {
            let first = piece * QUERIES;
            let queries = first..first + output.len() / width;
            Arch::new().dispatch(Forward {
                q,
                k,
                transposed: transposed.as_deref(),
                v,
                shape,
                spans,
                batch,
                queries,
                scores,
                output,
                sums,
            });
        },
    );
    (output, sums)
}

/// Numbers from a feature of transposed keys to the next: whole vectors, and so many more that the same
/// token of all features is not in the same set of the first cache.
const fn step(keys: usize) -> usize {
    keys.next_multiple_of(LANES) + LANES
}

/// Keys with tokens side by side: `[batch, kv_heads, head_dim, step]`, zeros after the last.
fn all_transposed(pool: ThreadPool, k: &[f32], shape: Shape) -> Vec<f32> {
    let head = shape.head_dim * step(shape.keys);
    let mut transposed = vec![0.0; shape.batch * shape.kv_heads * head];
    let heads = transposed.chunks_mut(head).enumerate().collect();
    pool.for_each(
        heads,
        || (),
        |(), (index, transposed)| {
            let (batch, head) = (index / shape.kv_heads, index % shape.kv_heads);
            transpose(transposed, kv_head(k, shape, batch, head), shape);
        },
    );
    transposed
}

/// From the first number of a head of keys or values of a batch.
fn kv_head(kv: &[f32], shape: Shape, batch: usize, head: usize) -> &[f32] {
    &kv[batch * shape.keys * shape.kv_width() + head * shape.head_dim..]
}

/// One head of keys or values to `[head_dim, step]`.
fn transpose(transposed: &mut [f32], kv: &[f32], shape: Shape) {
    let step = step(shape.keys);
    // As many tokens as are a line of memory.
    for from in (0..shape.keys).step_by(LANES) {
        let tokens = from..(from + LANES).min(shape.keys);
        for (feature, places) in transposed.chunks_exact_mut(step).enumerate() {
            for (token, place) in tokens.clone().zip(&mut places[tokens.clone()]) {
                *place = kv[token * shape.kv_width() + feature];
            }
        }
    }
}

/// The keys that any of these queries sees.
fn seen(spans: &Spans, batch: usize, queries: Range<usize>) -> Range<usize> {
    let mut seen = spans.of(batch, queries.start);
    for query in queries {
        let span = spans.of(batch, query);
        seen = seen.start.min(span.start)..seen.end.max(span.end);
    }
    seen
}

/// All heads of some queries.
struct Forward<'a> {
    q: &'a [f32],
    k: &'a [f32],
    /// As of [`all_transposed`].
    transposed: Option<&'a [f32]>,
    v: &'a [f32],
    shape: Shape,
    spans: &'a Spans,
    batch: usize,
    queries: Range<usize>,
    scores: &'a mut Vec<f32>,
    output: &'a mut [f32],
    sums: &'a mut [Sum],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Shape {
            heads, head_dim, ..
        } = self.shape;
        let (width, step) = (self.shape.width(), step(self.shape.keys));
        let (batch, rows) = (self.batch, self.queries.len());
        let seen = seen(self.spans, batch, self.queries.clone());
        let wide = seen.len().next_multiple_of(S::F32_LANES);
        self.scores.resize(rows * wide, 0.0);
        let q = &self.q[(batch * self.shape.queries + self.queries.start) * width..];
        for head in 0..heads {
            let kv = self.shape.kv_of(head);
            let scores = &mut RowsMut(self.scores, wide);
            let q = &q[head * head_dim..];
            match self.transposed {
                Some(transposed) => {
                    let keys = &transposed[(batch * self.shape.kv_heads + kv) * head_dim * step..];
                    let keys = Rows(&keys[seen.start..], step);
                    let left = Left::Rows(q, width);
                    product::<S, false>(simd, scores, left, keys, [rows, wide, head_dim]);
                }
                None => {
                    let keys = kv_head(self.k, self.shape, batch, kv);
                    let keys = &keys[seen.start * self.shape.kv_width()..];
                    for (row, places) in scores.0.chunks_exact_mut(wide).enumerate() {
                        let q = &q[row * width..][..head_dim];
                        for (key, place) in places[..seen.len()].iter_mut().enumerate() {
                            let k = &keys[key * self.shape.kv_width()..][..head_dim];
                            *place = dot(simd, q, k);
                        }
                    }
                }
            }
            for row in 0..rows {
                let span = self.spans.of(batch, self.queries.start + row);
                let scores = &mut self.scores[row * wide..][..wide];
                if let Some(cap) = self.shape.cap {
                    cap_all(simd, scores, cap as f32);
                }
                scores[..span.start - seen.start].fill(f32::NEG_INFINITY);
                scores[span.end - seen.start..].fill(f32::NEG_INFINITY);
                let (most, sum) = exponentials(simd, scores);
                self.sums[row * heads + head] = Sum {
                    most,
                    scale: 1.0 / sum,
                };
            }
            let values = kv_head(self.v, self.shape, batch, kv);
            product::<S, false>(
                simd,
                &mut RowsMut(&mut self.output[head * head_dim..], width),
                Left::Rows(self.scores, wide),
                Rows(
                    &values[seen.start * self.shape.kv_width()..],
                    self.shape.kv_width(),
                ),
                [rows, head_dim, seen.len()],
            );
            for row in 0..rows {
                let scale = self.sums[row * heads + head].scale;
                for place in &mut self.output[row * width + head * head_dim..][..head_dim] {
                    *place *= scale;
                }
            }
        }
    }
}

/// Leaves `exp(scores - most)` in the place of the scores, which are whole vectors, and returns the most and
/// the sum.
#[inline(always)]
pub(super) fn exponentials<S: Simd>(simd: S, scores: &mut [f32]) -> (f32, f32) {
    let (scores, _) = S::as_mut_simd_f32s(scores);
    let mut most = simd.splat_f32s(f32::NEG_INFINITY);
    for score in &*scores {
        most = simd.max_f32s(most, *score);
    }
    let most = simd.reduce_max_f32s(most);
    let shift = simd.splat_f32s(most);
    let mut sums = simd.splat_f32s(0.0);
    for score in scores {
        *score = exponential(simd, simd.sub_f32s(*score, shift));
        sums = simd.add_f32s(sums, *score);
    }
    (most, simd.reduce_sum_f32s(sums))
}

/// All that gradients are made of.
struct Backward<'a> {
    pool: ThreadPool,
    /// Queries, keys and values.
    inputs: [&'a [f32]; 3],
    sums: &'a [Sum],
    /// Of the output.
    gradient: &'a [f32],
    shape: Shape,
    spans: &'a Spans,
}

impl Backward<'_> {
    /// Those of queries, keys and values that are wanted.
    fn gradients(&self, wanted: [bool; 3]) -> [Option<Vec<f32>>; 3] {
        let Shape {
            batch,
            queries,
            keys,
            heads,
            kv_heads,
            head_dim,
            ..
        } = self.shape;
        let sizes = [queries, keys, keys].map(|tokens| tokens * head_dim);
        if self.gradient.is_empty() {
            return self.inputs.map(|input| Some(vec![0.0; input.len()]));
        }
        // Of each query head apart, so that each has a thread: `[batch, heads, tokens, head_dim]`.
        let [mut of_q, mut of_k, mut of_v] = sizes.map(|size| vec![0.0; batch * heads * size]);
        let of_heads = of_q
            .chunks_mut(sizes[0])
            .zip(of_k.chunks_mut(sizes[1]))
            .zip(of_v.chunks_mut(sizes[2]))
            .enumerate();
        self.pool.for_each(
            of_heads.collect(),
            Scratch::default,
            |scratch, (index, ((of_q, of_k), of_v))| {
                Arch::new().dispatch(OfHead {
                    all: self,
                    batch: index / heads,
                    head: index % heads,
                    wanted,
                    scratch,
                    gradients: [of_q, of_k, of_v],
                });
            },
        );
        let gather = |wanted: bool, of_heads: &[f32], into: usize, tokens: usize| {
            wanted.then(|| gathered(self.pool, of_heads, [batch, heads, into, tokens, head_dim]))
        };
        [
            gather(wanted[0], &of_q, heads, queries),
            gather(wanted[1], &of_k, kv_heads, keys),
            gather(wanted[2], &of_v, kv_heads, keys),
        ]
    }
}

/// `[batch, heads, tokens, head_dim] -> [batch, tokens, into, head_dim]`, heads of one group added.
fn gathered(
    pool: ThreadPool,
    of_heads: &[f32],
    [batch, heads, into, tokens, head_dim]: [usize; 5],
) -> Vec<f32> {
    let (group, width) = (heads / into, into * head_dim);
    let mut all = vec![0.0; batch * tokens * width];
    let pieces = all.chunks_mut(QUERIES * width).enumerate().collect();
    let gather = |(piece, places): (usize, &mut [f32])| {
        for (row, places) in places.chunks_exact_mut(width).enumerate() {
            let row = piece * QUERIES + row;
            let (batch, token) = (row / tokens, row % tokens);
            for (index, places) in places.chunks_exact_mut(head_dim).enumerate() {
                for head in index * group..(index + 1) * group {
                    let begins = ((batch * heads + head) * tokens + token) * head_dim;
                    for (place, number) in places.iter_mut().zip(&of_heads[begins..]) {
                        *place += number;
                    }
                }
            }
        }
    };
    pool.for_each(pieces, || (), |(), piece| gather(piece));
    all
}

/// Memory that is used again for the next head.
#[derive(Default)]
struct Scratch {
    keys: Vec<f32>,
    values: Vec<f32>,
    weights: Vec<f32>,
    gradients: Vec<f32>,
    /// A row of scores after their cap, if there is one.
    capped: Vec<f32>,
}

/// The gradients of one query head: `[tokens, head_dim]` each.
struct OfHead<'a> {
    all: &'a Backward<'a>,
    batch: usize,
    head: usize,
    wanted: [bool; 3],
    scratch: &'a mut Scratch,
    gradients: [&'a mut [f32]; 3],
}

impl WithSimd for OfHead<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Backward {
            inputs: [q, k, v],
            sums,
            gradient,
            shape,
            spans,
            ..
        } = *self.all;
        let Shape {
            queries,
            heads,
            head_dim,
            ..
        } = shape;
        let (width, kv_width) = (shape.width(), shape.kv_width());
        let (batch, head) = (self.batch, self.head);
        let kv = shape.kv_of(head);
        let [k, v] = [k, v].map(|of| kv_head(of, shape, batch, kv));
        let of_head = batch * queries * width + head * head_dim;
        let (q, gradient) = (&q[of_head..], &gradient[of_head..]);
        let [of_q, of_k, of_v] = self.gradients;
        let [q_wanted, k_wanted, v_wanted] = self.wanted;
        let Scratch {
            keys,
            values,
            weights,
            gradients,
            capped,
        } = self.scratch;
        let step = step(shape.keys);
        for (transposed, of) in [(&mut *keys, k), (&mut *values, v)] {
            transposed.resize(head_dim * step, 0.0);
            transpose(transposed, of, shape);
        }
        for first in (0..queries).step_by(QUERIES) {
            let rows = QUERIES.min(queries - first);
            let seen = seen(spans, batch, first..first + rows);
            let wide = seen.len().next_multiple_of(S::F32_LANES);
            weights.resize(rows * wide, 0.0);
            gradients.resize(rows * wide, 0.0);
            let (q, gradient) = (&q[first * width..], &gradient[first * width..]);
            for (scores, left, right) in [
                (&mut *weights, q, &*keys),
                (&mut *gradients, gradient, &*values),
            ] {
                product::<S, false>(
                    simd,
                    &mut RowsMut(scores, wide),
                    Left::Rows(left, width),
                    Rows(&right[seen.start..], step),
                    [rows, wide, head_dim],
                );
            }
            for row in 0..rows {
                let span = spans.of(batch, first + row);
                let weights = &mut weights[row * wide..][..wide];
                if let Some(cap) = shape.cap {
                    cap_all(simd, weights, cap as f32);
                    capped.clear();
                    capped.extend_from_slice(weights);
                }
                weights[..span.start - seen.start].fill(f32::NEG_INFINITY);
                weights[span.end - seen.start..].fill(f32::NEG_INFINITY);
                let sum = sums[(batch * queries + first + row) * heads + head];
                let gradients = &mut gradients[row * wide..][..wide];
                of_scores(simd, weights, gradients, sum);
                if let Some(cap) = shape.cap {
                    through_cap(simd, gradients, capped, cap as f32);
                }
            }
            let of_seen = seen.start * head_dim..seen.end * head_dim;
            if v_wanted {
                product::<S, true>(
                    simd,
                    &mut RowsMut(&mut of_v[of_seen.clone()], head_dim),
                    Left::Columns(weights, wide),
                    Rows(gradient, width),
                    [seen.len(), head_dim, rows],
                );
            }
            if k_wanted {
                product::<S, true>(
                    simd,
                    &mut RowsMut(&mut of_k[of_seen], head_dim),
                    Left::Columns(gradients, wide),
                    Rows(q, width),
                    [seen.len(), head_dim, rows],
                );
            }
            if q_wanted {
                product::<S, false>(
                    simd,
                    &mut RowsMut(&mut of_q[first * head_dim..], head_dim),
                    Left::Rows(gradients, wide),
                    Rows(&k[seen.start * kv_width..], kv_width),
                    [rows, head_dim, seen.len()],
                );
            }
        }
    }
}

/// Leaves weights in the place of the scores, and the gradients of the scores in that of the weights'.
#[inline(always)]
fn of_scores<S: Simd>(simd: S, scores: &mut [f32], gradients: &mut [f32], sum: Sum) {
    let (shift, scale) = (simd.splat_f32s(sum.most), simd.splat_f32s(sum.scale));
    for score in S::as_mut_simd_f32s(scores).0 {
        let shifted = simd.sub_f32s(*score, shift);
        *score = simd.mul_f32s(exponential(simd, shifted), scale);
    }
    let sum = simd.splat_f32s(dot(simd, scores, gradients));
    let weights = S::as_simd_f32s(scores).0;
    for (gradient, weight) in S::as_mut_simd_f32s(gradients).0.iter_mut().zip(weights) {
        *gradient = simd.mul_f32s(*weight, simd.sub_f32s(*gradient, sum));
    }
}
