//! Attention to keys and values of earlier tokens in loops: one token and one head of keys at a time.

use std::ops::Range;

use burn::prelude::*;
use burn::tensor::TensorData;
use pulp::{Arch, Simd, WithSimd};

use super::cpu::exponentials;
use super::shape::Shape;
use crate::kernels::cpu::{
    LeftRows, Panel, ThreadPool, Tile, floats, in_tiles, multiply, panel_width, store, width,
};
use crate::kernels::soft_cap::cap_all;

/// Keys and values of one sequence.
#[derive(Clone, Debug, Default)]
pub(super) struct Sequence {
    /// `[blocks, kv_heads, head_dim, width]`: tokens lie side by side, as many in a block as a panel is wide;
    /// zeros after the last.
    keys: Vec<f32>,
    /// `[blocks, kv_heads, panels, width, width]`: a panel is of as many tokens as features, which lie side by
    /// side, so that memory is read from end to end; zeros after the last.
    values: Vec<f32>,
    tokens: usize,
}

/// Tokens of a sequence, one after another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) sequence: usize,
    /// The position of the first.
    pub(super) first: usize,
    pub(super) tokens: usize,
}

/// Numbers of a block of values.
fn of_block(shape: Shape, width: usize) -> usize {
    shape.kv_heads * shape.head_dim.div_ceil(width) * width * width
}

impl Sequence {
    /// Forgets all tokens. Their memory is kept for others.
    pub(super) fn clear(&mut self) {
        self.keys.clear();
        self.values.clear();
        self.tokens = 0;
    }

    /// Adds a token: its `k` and `v`, `[kv_heads * head_dim]`.
    fn push(&mut self, k: &[f32], v: &[f32], shape: Shape, width: usize) {
        let lane = self.tokens % width;
        if lane == 0 {
            let length = self.keys.len() + shape.kv_width() * width;
            self.keys.resize(length, 0.0);
            let length = self.values.len() + of_block(shape, width);
            self.values.resize(length, 0.0);
        }
        let block = self.keys.len() - shape.kv_width() * width;
        let places = self.keys[block..].chunks_exact_mut(width);
        for (places, number) in places.zip(k) {
            places[lane] = *number;
        }
        let block = self.values.len() - of_block(shape, width);
        let panels = self.values[block..].chunks_exact_mut(width * width);
        let features = v
            .chunks_exact(shape.head_dim)
            .flat_map(|head| head.chunks(width));
        for (panel, features) in panels.zip(features) {
            panel[lane * width..][..features.len()].copy_from_slice(features);
        }
        self.tokens += 1;
    }
}

/// Adds the new keys and values to their sequences, and attends to what each new token sees: the last `window`
/// tokens up to its own, or all.
///
/// `q [tokens, 1, heads * head_dim]`, `k` and `v [tokens, 1, kv_heads * head_dim]`, those of all runs.
pub(super) fn attend<B: Backend>(
    sequences: &mut [Sequence],
    qkv: [Tensor<B, 3>; 3],
    runs: &[Run],
    shape: Shape,
    window: Option<usize>,
) -> Tensor<B, 3> {
    let device = qkv[0].device();
    let data = qkv.map(<Tensor<B, 3>>::into_data);
    let [q, k, v] = data.each_ref().map(floats);
    let (heads, kv_width, width) = (shape.kv_heads, shape.kv_width(), shape.width());
    let wide = panel_width();
    let pool = ThreadPool::of(&device);
    let rows = runs.iter().map(|run| run.tokens).sum::<usize>();
    let mut output = vec![0.0; rows * width];
    let push = |sequence: &mut Sequence, row: usize, run: &Run| {
        let of = row * kv_width..(row + run.tokens) * kv_width;
        let k = k[of.clone()].chunks_exact(kv_width);
        for (k, v) in k.zip(v[of].chunks_exact(kv_width)) {
            sequence.push(k, v, shape, wide);
        }
    };
    let see = |scratch: &mut Scratch,
               sequence: &Sequence,
               piece: usize,
               own: usize,
               output: &mut [f32]| {
        Arch::new().dispatch(Attend {
            sequence,
            seen: window.map_or(0, |window| (own + 1).saturating_sub(window))..own + 1,
            head: piece % heads,
            q: &q[piece * output.len()..][..output.len()],
            shape,
            scratch,
            output,
        });
    };
    let group = width / heads;
    // Its run's sequence and first row, and what is put out for it.
    let mut left = output.as_mut_slice();
    let mut row = 0;
    let mut sequences: Vec<Option<&mut Sequence>> = sequences.iter_mut().map(Some).collect();
    let mut jobs = Vec::with_capacity(runs.len());
    for run in runs {
        let (output, after) = left.split_at_mut(run.tokens * width);
        left = after;
        if let Some(sequence) = sequences[run.sequence].take() {
            jobs.push((sequence, row, run, output));
        }
        row += run.tokens;
    }
    if jobs.len() >= 2 * pool.threads() {
        // Keys of a sequence are not in any cache since the last pass: who adds to them reads them too.
        pool.for_each(
            jobs,
            Scratch::default,
            |scratch, (sequence, row, run, output)| {
                push(sequence, row, run);
                for (index, output) in output.chunks_exact_mut(group).enumerate() {
                    let own = run.first + index / heads;
                    see(scratch, sequence, row * heads + index, own, output);
                }
            },
        );
    } else {
        let mut pieces = Vec::with_capacity(rows * heads);
        for (sequence, row, run, output) in jobs {
            push(sequence, row, run);
            let sequence: &Sequence = sequence;
            for (index, output) in output.chunks_exact_mut(group).enumerate() {
                let own = run.first + index / heads;
                pieces.push((sequence, row * heads + index, own, output));
            }
        }
        pool.for_each(
            pieces,
            Scratch::default,
            |scratch, (sequence, piece, own, output)| {
                see(scratch, sequence, piece, own, output);
            },
        );
    }
    let [batch, queries] = [shape.batch, shape.queries];
    let output = TensorData::new(output, [batch, queries, shape.width()]);
    Tensor::from_data(output, &device)
}

/// Memory that is used again for the next token.
#[derive(Default)]
struct Scratch {
    /// `[group, seen]`, rows of whole panels.
    scores: Vec<f32>,
    /// One over the sum of each row.
    scales: Vec<f32>,
}

/// The query heads of one token that share a head of keys and values.
struct Attend<'a> {
    sequence: &'a Sequence,
    /// Keys that it sees.
    seen: Range<usize>,
    /// Of keys and values.
    head: usize,
    /// `[group, head_dim]`
    q: &'a [f32],
    shape: Shape,
    scratch: &'a mut Scratch,
    /// `[group, head_dim]`
    output: &'a mut [f32],
}

impl WithSimd for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Shape {
            kv_heads, head_dim, ..
        } = self.shape;
        let width = width::<S>();
        let group = self.q.len() / head_dim;
        let Scratch { scores, scales } = self.scratch;
        // From the first of a block on, since keys lie in blocks.
        let base = self.seen.start / width * width;
        let seen = self.seen.start - base..self.seen.end - base;
        let wide = seen.end.next_multiple_of(width);
        scores.clear();
        scores.resize(group * wide, 0.0);
        scales.clear();
        for block in 0..wide / width {
            let keys = ((base / width + block) * kv_heads + self.head) * head_dim * width;
            let mut scores = Scores {
                q: self.q,
                keys: &self.sequence.keys[keys..][..head_dim * width],
                head_dim,
                scores,
                from: block * width,
                wide,
            };
            in_tiles(simd, group, &mut scores);
        }
        for scores in scores.chunks_exact_mut(wide) {
            if let Some(cap) = self.shape.cap {
                cap_all(simd, scores, cap as f32);
            }
            scores[..seen.start].fill(f32::NEG_INFINITY);
            scores[seen.end..].fill(f32::NEG_INFINITY);
            let (_, sum) = exponentials(simd, scores);
            scales.push(1.0 / sum);
        }
        let of_block = of_block(self.shape, width);
        let panels = head_dim.div_ceil(width);
        for panel in 0..panels {
            let first = (self.head * panels + panel) * width * width;
            let feature = panel * width;
            let mut mixed = Mixed {
                weights: scores,
                wide,
                seen: seen.end,
                scales,
                values: &self.sequence.values[base / width * of_block + first..],
                of_block,
                output: self.output,
                head_dim,
                features: feature..(feature + width).min(head_dim),
            };
            in_tiles(simd, group, &mut mixed);
        }
    }
}

/// Scores of a block of keys.
struct Scores<'a> {
    q: &'a [f32],
    /// `[head_dim, width]`
    keys: &'a [f32],
    head_dim: usize,
    scores: &'a mut [f32],
    /// Where the block begins in a row.
    from: usize,
    wide: usize,
}

impl<S: Simd> Tile<S> for Scores<'_> {
    #[inline(always)]
    fn rows<const ROWS: usize>(&mut self, simd: S, row: usize) {
        let q = &self.q[row * self.head_dim..][..ROWS * self.head_dim];
        let left = LeftRows {
            first: q.as_ptr(),
            step: self.head_dim,
        };
        let panel = Panel {
            first: self.keys.as_ptr(),
            step: width::<S>(),
        };
        let zeros = [[simd.splat_f32s(0.0); 2]; ROWS];
        // SAFETY: both are as long as is said here.
        let sums = unsafe { multiply::<S, ROWS>(simd, left, panel, self.head_dim, zeros) };
        for (high, sums) in sums.into_iter().enumerate() {
            let from = (row + high) * self.wide + self.from;
            store(simd, &mut self.scores[from..][..width::<S>()], sums);
        }
    }
}

/// Values of some features, mixed by their weights.
struct Mixed<'a> {
    /// `[group, wide]`
    weights: &'a [f32],
    wide: usize,
    /// Of these, how many there are.
    seen: usize,
    scales: &'a [f32],
    /// From the first panel on, each `of_block` after the one before.
    values: &'a [f32],
    of_block: usize,
    /// `[group, head_dim]`
    output: &'a mut [f32],
    head_dim: usize,
    features: std::ops::Range<usize>,
}

impl<S: Simd> Tile<S> for Mixed<'_> {
    #[inline(always)]
    fn rows<const ROWS: usize>(&mut self, simd: S, row: usize) {
        let weights = &self.weights[row * self.wide..][..ROWS * self.wide];
        let width = width::<S>();
        let mut sums = [[simd.splat_f32s(0.0); 2]; ROWS];
        for (block, from) in (0..self.seen).step_by(width).enumerate() {
            let tokens = width.min(self.seen - from);
            let left = LeftRows {
                first: weights[from..].as_ptr(),
                step: self.wide,
            };
            let panel = &self.values[block * self.of_block..][..tokens * width];
            let panel = Panel {
                first: panel.as_ptr(),
                step: width,
            };
            // SAFETY: both are as long as is said here.
            sums = unsafe { multiply::<S, ROWS>(simd, left, panel, tokens, sums) };
        }
        for (high, sums) in sums.into_iter().enumerate() {
            let scale = simd.splat_f32s(self.scales[row + high]);
            let sums = sums.map(|sum| simd.mul_f32s(sum, scale));
            let from = (row + high) * self.head_dim;
            let features = from + self.features.start..from + self.features.end;
            store(simd, &mut self.output[features], sums);
        }
    }
}
