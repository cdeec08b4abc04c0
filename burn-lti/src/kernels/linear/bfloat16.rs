//! Products of matrices in a CPU's memory in bfloat16, whichever backend's they are.
//!
//! The left factor, of which there are as many rows as tokens, is laid out once, as much of it at a time as is
//! read again and again out of a core's second cache. Of the right one, a weight as a rule, each panel is laid out
//! by the thread that multiplies it with all rows, and stays in that core's caches meanwhile.

use std::ops::Range;

use burn::prelude::*;
use burn::tensor::DType;

use super::cpu::{Output, even, written};
use crate::kernels::cpu::pairs::{
    self, Number, Pairs, Place, laid_out, lay_out, pairs_of, panels, tile_height,
};
use crate::kernels::cpu::{Matrix, Numbers, ThreadPool, panel_width};

/// Numbers of the left factor that are multiplied with all panels before the next are, at most.
const OF_LEFT: usize = 1 << 19;
/// How far a piece is summed up, at least: putting sums away and taking them up again costs little beside it.
const LEAST_DEPTH: usize = 256;
/// Multiply-adds below which a second thread would wait longer than it worked.
const WORTH_SHARING: usize = 1 << 18;
/// Multiply-adds beside which it costs little to hand a piece to a thread.
const WORTH_A_PIECE: usize = 1 << 22;

/// A right factor.
#[derive(Clone, Copy)]
pub(super) enum Right<'a> {
    /// Where it is.
    Numbers(Numbers),
    /// Laid out in panels, all of its rows.
    LaidOut(&'a Pairs),
}

/// The product, if both factors are float32 in a CPU's memory and it can be.
pub(super) fn product<B: Backend>(
    left: &Tensor<B, 2>,
    right: &Tensor<B, 2>,
) -> Option<Tensor<B, 2>> {
    let device = left.device();
    let (left, right) = (Matrix::of(left)?, Matrix::of(right)?);
    let ([m, k], [of_right, n]) = (left.shape, right.shape);
    if k != of_right {
        return None; // the backend has a message
    }
    if m * k * n == 0 {
        return Some(Tensor::zeros([m, n], (&device, DType::F32)));
    }
    let pool = ThreadPool::of(&device);
    written(&left.memory, &device, [m, n], |output| {
        // SAFETY: the factors are of these shapes and kept until here; the output has room for as many
        // numbers, all of which are written.
        unsafe {
            let right = Right::Numbers(right.numbers);
            multiply(pool, left.numbers, right, [m, k, n], output);
        }
    })
}

/// Writes a product, row by row.
///
/// # Safety
///
/// `left` and `right` must have `[m, k]` and `[k, n]` numbers, more than none, `output` room for `[m, n]`.
pub(super) unsafe fn multiply(
    pool: ThreadPool,
    left: Numbers,
    right: Right<'_>,
    [m, k, n]: [usize; 3],
    output: Output,
) {
    let (height, width) = (tile_height(m), panel_width());
    // Pieces are of whole pairs.
    let depth = even(k, (OF_LEFT / m).max(LEAST_DEPTH)).next_multiple_of(2);
    let mut tiles = Pairs::new();
    for from in (0..k).step_by(depth) {
        let depth = depth.min(k - from);
        let pairs = pairs_of(depth);
        // SAFETY: the caller's promise: there is such a column.
        let left = unsafe { left.from([0, from]) }.turned();
        let tiles = lay_out_all(pool, left, [depth, m], height, &mut tiles);
        let work = |scratch: &mut Pairs, columns: &[Range<usize>]| {
            for columns in columns {
                let panel = match right {
                    Right::LaidOut(all) => {
                        let first = (columns.start / width * pairs_of(k) + from / 2) * width;
                        &all.lanes()[first..][..pairs * width]
                    }
                    Right::Numbers(right) => {
                        let lanes = scratch.room(pairs * width);
                        // SAFETY: the caller's promise: there are these rows and columns.
                        unsafe {
                            let right = right.from([from, columns.start]);
                            lay_out(right, [depth, columns.len()], width, lanes);
                        }
                        &*lanes
                    }
                };
                for (tile, row) in tiles
                    .chunks_exact(pairs * height)
                    .zip((0..m).step_by(height))
                {
                    // SAFETY: the output has these rows and columns, and no other piece the same.
                    unsafe {
                        let place = Place {
                            first: output.at(row * n + columns.start),
                            step: n,
                            rows: height.min(m - row),
                            columns: columns.len(),
                            goes_on: from > 0,
                        };
                        pairs::multiply(tile, height, panel, &place);
                    }
                }
            }
        };
        let columns: Vec<Range<usize>> = panels(n, width).collect();
        let pieces = pieces(pool, m * depth * n, columns.len());
        if pieces == 1 {
            work(&mut Pairs::new(), &columns); // no need to wake other threads
        } else {
            let of_piece = columns.len().div_ceil(pieces);
            pool.for_each(columns.chunks(of_piece).collect(), Pairs::new, work);
        }
    }
}

/// A whole weight, in panels. `numbers` must have `shape`.
pub(super) unsafe fn panels_of(pool: ThreadPool, numbers: Numbers, shape: [usize; 2]) -> Pairs {
    let mut pairs = Pairs::new();
    lay_out_all(pool, numbers, shape, panel_width(), &mut pairs);
    pairs
}

/// The numbers of [`panels_of`], row by row.
pub(super) fn numbers_of(pairs: &Pairs, [k, n]: [usize; 2]) -> Vec<f32> {
    let width = panel_width();
    let panels = |row: usize| {
        (0..n).map(move |column| {
            let panel = &pairs.lanes()[column / width * pairs_of(k) * width..];
            laid_out(panel, width, [row, column % width])
        })
    };
    (0..k).flat_map(panels).collect()
}

/// All columns of `numbers [depth, others]`, `width` of them at a time.
fn lay_out_all<'a, N: Number>(
    pool: ThreadPool,
    numbers: Numbers<N>,
    [depth, others]: [usize; 2],
    width: usize,
    pairs: &'a mut Pairs,
) -> &'a [u32] {
    let of_panel = pairs_of(depth) * width;
    let lanes = pairs.room(others.div_ceil(width) * of_panel);
    let panels = lanes.chunks_exact_mut(of_panel).zip(panels(others, width));
    let work = |(): &mut (), (lanes, columns): (&mut [u32], Range<usize>)| {
        // SAFETY: the caller's promise.
        unsafe {
            let numbers = numbers.from([0, columns.start]);
            lay_out(numbers, [depth, columns.len()], width, lanes);
        }
    };
    match depth * others < WORTH_SHARING {
        true => panels.for_each(|panel| work(&mut (), panel)),
        false => pool.for_each(panels.collect(), || (), work),
    }
    lanes
}

/// Into how many a product of so many multiply-adds and panels is cut: some for each thread, so that one that is
/// held up leaves work to others.
fn pieces(pool: ThreadPool, work: usize, panels: usize) -> usize {
    let threads = pool.threads();
    match threads == 1 || work < WORTH_SHARING {
        true => 1,
        false => (threads * (work / (threads * WORTH_A_PIECE)).clamp(1, 4)).min(panels),
    }
}
