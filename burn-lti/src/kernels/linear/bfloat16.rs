//! Products of matrices in a CPU's memory in bfloat16, whichever backend's they are.
//!
//! The left factor, of which there are as many rows as tokens, is laid out once, as much of it at a time as is
//! read again and again out of a core's second cache. Of the right one, a weight as a rule, some panels at a time are
//! laid out by the thread that multiplies them with all rows, and stay in that core's caches meanwhile.

use std::cell::Cell;
use std::ops::Range;

use super::cpu::{Output, even};
use crate::kernels::cpu::pairs::{Instructions, Pairs, Place, WHOLE, laid_out, panels};
use crate::kernels::cpu::{Numbers, ThreadPool, fetch, panel_width};

/// Numbers of the left factor that are multiplied with all panels before the next are, at most.
const OF_LEFT: usize = 1 << 19;
/// How far a piece is summed up, at least: putting sums away and taking them up again costs little beside it.
const LEAST_DEPTH: usize = 256;
/// Panels that a tile is multiplied with before the next one is: rows of the output lie far apart, and are written
/// faster some lines at a time.
const GROUP: usize = 4;
/// Multiply-adds below which a second thread would wait longer than it worked.
const WORTH_SHARING: usize = 1 << 18;
/// Multiply-adds beside which it costs little to hand a piece to a thread.
const WORTH_A_PIECE: usize = 1 << 22;

thread_local! {
    /// Where this thread lays out the left factors that it multiplies, and panels of right ones.
    static SCRATCH: [Cell<Pairs>; 2] = const { [Cell::new(Pairs::new()), Cell::new(Pairs::new())] };
}

/// Does `work` with this thread's scratch, which keeps its memory from one product to the next.
fn with_scratch<T>(which: usize, work: impl FnOnce(&mut Pairs) -> T) -> T {
    let mut scratch = SCRATCH.with(|scratch| scratch[which].take());
    let result = work(&mut scratch);
    SCRATCH.with(|all| all[which].set(scratch));
    result
}

/// A right factor.
#[derive(Clone, Copy)]
pub(super) enum Right<'a> {
    /// Where it is.
    Numbers(Numbers),
    /// Laid out in panels, all of its rows.
    LaidOut(&'a Pairs),
}

/// Writes a product of factors that are where they are, as [`cpu::product`](super::cpu::product) asks for it.
///
/// # Safety
///
/// As of [`multiply`].
pub(super) unsafe fn of_factors(
    pool: ThreadPool,
    [left, right]: [Numbers; 2],
    shape: [usize; 3],
    output: Output,
) {
    // SAFETY: the caller's promise.
    unsafe { multiply(pool, left, Right::Numbers(right), shape, output) }
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
    let instructions = Instructions::of_processor();
    let height = instructions.tile_height(m);
    let depth = even(k, (OF_LEFT / m).max(LEAST_DEPTH)).next_multiple_of(WHOLE);
    with_scratch(0, |tiles| {
        for from in (0..k).step_by(depth) {
            let depth = depth.min(k - from);
            // SAFETY: the caller's promise: there are these columns.
            let tiles = unsafe {
                let left = left.from([0, from]).turned();
                lay_out_all(
                    pool,
                    left,
                    [depth, m],
                    height,
                    tiles,
                    |left, shape, tile| {
                        instructions.lay_out_tile(left, shape, height, tile);
                    },
                )
            };
            let piece = Piece {
                instructions,
                tiles,
                height,
                right,
                shape: [m, k, n],
                rows: from..from + depth,
                output,
            };
            let columns: Vec<Range<usize>> = panels(n, panel_width()).collect();
            match pieces(pool, m * depth * n, columns.len()) {
                // No need to wake other threads.
                1 => with_scratch(1, |scratch| piece.multiply(scratch, &columns)),
                pieces => {
                    let of_each = columns.len().div_ceil(pieces);
                    let all = columns.chunks(of_each).collect();
                    pool.for_each(
                        all,
                        || (),
                        |(), columns| {
                            with_scratch(1, |scratch| piece.multiply(scratch, columns));
                        },
                    );
                }
            }
        }
    });
}

/// Of the numbers that are summed over, those of one go.
struct Piece<'a> {
    instructions: Instructions,
    /// All of the left factor's.
    tiles: &'a [u32],
    height: usize,
    right: Right<'a>,
    /// Of the whole product.
    shape: [usize; 3],
    /// Of the right factor.
    rows: Range<usize>,
    output: Output,
}

impl Piece<'_> {
    /// Some columns of it, a panel at a time.
    fn multiply(&self, scratch: &mut Pairs, panels: &[Range<usize>]) {
        let Self {
            instructions,
            tiles,
            height,
            right,
            shape: [m, k, n],
            rows: Range { start: from, .. },
            output,
        } = *self;
        let width = panel_width();
        let pairs = instructions.pairs_of(self.rows.len());
        let lanes = pairs * width;
        let ready = instructions.ready();
        for group in panels.chunks(GROUP) {
            let first = group[0].start;
            // Their lanes, and how far panels are apart.
            let (laid_out, apart) = match right {
                Right::LaidOut(all) => {
                    let of_panel = instructions.pairs_of(k) * width;
                    (
                        &all.lanes()[first / width * of_panel + from / 2 * width..],
                        of_panel,
                    )
                }
                Right::Numbers(right) => {
                    let room = scratch.room(group.len() * lanes);
                    for (columns, panel) in group.iter().zip(room.chunks_exact_mut(lanes)) {
                        // SAFETY: there are these rows and columns.
                        unsafe {
                            let right = right.from([from, columns.start]);
                            let shape = [self.rows.len(), columns.len()];
                            instructions.lay_out_panel(right, shape, panel);
                        }
                    }
                    (&*room, lanes)
                }
            };
            let tiles = tiles.chunks_exact(pairs * height);
            // What is laid out already is fetched while this is multiplied.
            let mut next = match right {
                Right::LaidOut(_) => laid_out.get(group.len() * apart..).unwrap_or_default(),
                Right::Numbers(_) => &[],
            };
            let share = (group.len() * lanes).div_ceil(tiles.len().max(1));
            for (tile, row) in tiles.zip((0..m).step_by(height)) {
                let (soon, later) = next.split_at(next.len().min(share));
                if m > height {
                    fetch(soon);
                }
                next = later;
                for (index, columns) in group.iter().enumerate() {
                    // SAFETY: the output has these rows and columns, and no other piece the same.
                    unsafe {
                        let place = Place {
                            first: output.at(row * n + columns.start),
                            step: n,
                            rows: height.min(m - row),
                            columns: columns.len(),
                            goes_on: output.adds || from > 0,
                        };
                        let panel = &laid_out[index * apart..][..lanes];
                        ready.multiply(tile, height, panel, &place);
                    }
                }
            }
        }
    }
}

/// A whole weight, in panels.
///
/// # Safety
///
/// `numbers` must have `shape`.
pub(super) unsafe fn panels_of(pool: ThreadPool, numbers: Numbers, shape: [usize; 2]) -> Pairs {
    let mut pairs = Pairs::new();
    let instructions = Instructions::of_processor();
    // SAFETY: the caller's promise.
    unsafe {
        let lay_out =
            |numbers, shape, panel: &mut _| instructions.lay_out_panel(numbers, shape, panel);
        lay_out_all(pool, numbers, shape, panel_width(), &mut pairs, lay_out);
    }
    pairs
}

/// The numbers of [`panels_of`], row by row.
pub(super) fn numbers_of(pairs: &Pairs, [k, n]: [usize; 2]) -> Vec<f32> {
    let width = panel_width();
    let of_panel = Instructions::of_processor().pairs_of(k) * width;
    let panels = |row: usize| {
        (0..n).map(move |column| {
            let panel = &pairs.lanes()[column / width * of_panel..];
            laid_out(panel, [row, column % width])
        })
    };
    (0..k).flat_map(panels).collect()
}

/// All columns of `numbers [depth, others]`, `width` of them at a time, each as `lay_out` does it.
///
/// # Safety
///
/// There must be so many rows and columns.
unsafe fn lay_out_all(
    pool: ThreadPool,
    numbers: Numbers,
    [depth, others]: [usize; 2],
    width: usize,
    pairs: &mut Pairs,
    lay_out: impl Fn(Numbers, [usize; 2], &mut [u32]) + Sync + Send,
) -> &[u32] {
    let of_panel = Instructions::of_processor().pairs_of(depth) * width;
    let lanes = pairs.room(others.div_ceil(width) * of_panel);
    let panels = lanes.chunks_exact_mut(of_panel).zip(panels(others, width));
    let work = |(): &mut (), (lanes, columns): (&mut [u32], Range<usize>)| {
        // SAFETY: the caller's promise.
        let numbers = unsafe { numbers.from([0, columns.start]) };
        lay_out(numbers, [depth, columns.len()], lanes);
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
