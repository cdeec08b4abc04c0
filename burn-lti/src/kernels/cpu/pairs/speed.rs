//! How fast instructions are on this processor: what its maker calls one is no promise. `vdpbf16ps` takes as long as
//! two multiply-adds of float32 on some, and half as long as one on others.

use std::time::{Duration, Instant};

use pulp::{Arch, Simd, WithSimd};

use super::{Instructions, Numbers, Pairs, Place};
use crate::kernels::cpu::{LeftRows, Panel, multiply, panel_width, store, width};

/// Along the axis that is summed over: few enough that both factors stay in the first cache.
const DEPTH: usize = 192;
/// Products of a round, and rounds, of which the fastest counts: others may have been disturbed.
const PRODUCTS: usize = 32;
const ROUNDS: usize = 12;
/// Of float32, as many as all processors have registers for.
const ROWS: usize = 6;

/// How many times as many multiply-adds they do as float32's in the same time.
pub(super) fn beside_float32(instructions: Instructions) -> f64 {
    let width = panel_width();
    let numbers = vec![1.0f32; 2 * ROWS.max(width) * DEPTH];
    let mut sums = vec![0.0f32; width * width];

    let rows = instructions.tile_height(width);
    let pairs = instructions.pairs_of(DEPTH);
    let [mut tile, mut panel] = [Pairs::new(), Pairs::new()];
    let factor = |steps| Numbers {
        first: numbers.as_ptr(),
        steps,
    };
    let place = Place {
        first: sums.as_mut_ptr(),
        step: width,
        rows,
        columns: width,
        goes_on: false,
    };
    // SAFETY: there are as many numbers, and as much room for sums as a panel is wide, which no tile is higher than.
    let of_pairs = unsafe {
        let [left, right] = [factor([1, DEPTH as isize]), factor([width as isize, 1])];
        instructions.lay_out_tile(left, [DEPTH, rows], rows, tile.room(rows * pairs));
        instructions.lay_out_panel(right, [DEPTH, width], panel.room(width * pairs));
        let ready = instructions.ready();
        fastest(|| ready.multiply(tile.lanes(), rows, panel.lanes(), &place))
    };
    let of_float32 = fastest(|| {
        Arch::new().dispatch(OfFloat32 {
            numbers: &numbers,
            sums: &mut sums,
        });
    });
    of_float32.as_secs_f64() / ROWS as f64 / (of_pairs.as_secs_f64() / rows as f64)
}

fn fastest(mut product: impl FnMut()) -> Duration {
    let round = |_| {
        let begun = Instant::now();
        for _ in 0..PRODUCTS {
            product();
        }
        begun.elapsed()
    };
    (0..ROUNDS).map(round).min().unwrap_or_default()
}

/// [`ROWS`] rows with a panel.
struct OfFloat32<'a> {
    numbers: &'a [f32],
    sums: &'a mut [f32],
}

impl WithSimd for OfFloat32<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = width::<S>();
        let left = LeftRows {
            first: self.numbers.as_ptr(),
            step: DEPTH,
        };
        let panel = Panel {
            first: self.numbers.as_ptr(),
            step: width,
        };
        let zeros = [[simd.splat_f32s(0.0); 2]; ROWS];
        // SAFETY: there are as many numbers.
        let sums = unsafe { multiply::<S, ROWS>(simd, left, panel, DEPTH, zeros) };
        for (places, sums) in self.sums.chunks_exact_mut(width).zip(sums) {
            store(simd, places, sums);
        }
    }
}
