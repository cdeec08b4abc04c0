//! Products in bfloat16: the factors are rounded to it, sums are float32.
//!
//! Processors with such an instruction (`vdpbf16ps`) multiply *pairs* of numbers: each lane of 32 bits has two
//! neighbours along the axis that is summed over. So that is how a factor is laid out, and one layout serves
//! every processor: without the instruction, the two halves of a lane are widened and multiplied in turn.
//!
//! Every number of a product is one chain of sums in the order of that axis, of which `vdpbf16ps` takes two at a
//! time; it does not depend on which rows or columns are computed together, nor on how many threads there are.

use std::ops::Range;

use half::bf16;
use pulp::{Arch, Simd, WithSimd};

use super::matrix::Numbers;
use super::tile::{load, panel_width, store, width};

/// Lanes of a line of memory.
const LINE: usize = 16;
/// Numbers that are laid out beside one another before they are turned.
const BLOCK: usize = 16;
/// Rows that are multiplied together, at most, where there are 32 registers of 16 lanes, and where there are 16.
const HEIGHTS: [usize; 2] = [14, 6];

/// A number of 32 or of 16 bits, as the upper half of one of 32.
pub(crate) trait Number: Copy + Send + Sync + 'static {
    /// The nearest number of bfloat16, of two the even one; none that is finite becomes none, but for the
    /// greatest.
    fn bits(self) -> u32;
}

impl Number for f32 {
    #[inline(always)]
    fn bits(self) -> u32 {
        let bits = self.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        let quiet = bits | 0x0040_0000; // what is no number stays none
        (if self.is_nan() { quiet } else { rounded }) >> 16
    }
}

impl Number for bf16 {
    #[inline(always)]
    fn bits(self) -> u32 {
        self.to_bits().into()
    }
}

/// A line of memory, so that no vector lies in two.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; LINE]);

/// A factor in pairs: `[others / width][depth / 2][width]`, where `depth` is summed over. Zeros beyond the last.
pub(crate) struct Pairs {
    lines: Vec<Line>,
    /// Lanes in use.
    lanes: usize,
}

impl Pairs {
    pub(crate) const fn new() -> Self {
        Self {
            lines: Vec::new(),
            lanes: 0,
        }
    }

    /// Room for so many lanes, whatever they hold.
    pub(crate) fn room(&mut self, lanes: usize) -> &mut [u32] {
        let lines = lanes.div_ceil(LINE);
        if self.lines.len() < lines {
            self.lines.resize(lines, Line([0; LINE]));
        }
        self.lanes = lanes;
        let first = self.lines.as_mut_ptr().cast();
        // SAFETY: there are these lines, and a line is as many lanes and nothing else.
        unsafe { std::slice::from_raw_parts_mut(first, lanes) }
    }

    pub(crate) fn lanes(&self) -> &[u32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lanes) }
    }
}

/// Pairs of so many numbers.
pub(crate) const fn pairs_of(numbers: usize) -> usize {
    numbers.div_ceil(2)
}

/// Lays out a panel, `[depth / 2][width]` lanes, of `others` columns, at most as many as the panel is wide.
///
/// `numbers` has `depth` rows; a left factor is handed over turned.
///
/// # Safety
///
/// `numbers` must have so many rows and columns.
pub(crate) unsafe fn lay_out<N: Number>(
    numbers: Numbers<N>,
    [depth, others]: [usize; 2],
    width: usize,
    panel: &mut [u32],
) {
    struct LayOut<'a, N>(Numbers<N>, [usize; 2], usize, &'a mut [u32]);

    impl<N: Number> WithSimd for LayOut<'_, N> {
        type Output = ();

        /// Plain loops, compiled for this processor.
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) {
            let Self(numbers, shape, width, panel) = self;
            // SAFETY: the caller's promise.
            unsafe {
                match numbers.steps {
                    [_, 1] => side_by_side(numbers, shape, width, panel),
                    [1, _] => turned(numbers, shape, width, panel),
                    _ => one_by_one(numbers, shape, width, 0, panel),
                }
            }
        }
    }
    Arch::new().dispatch(LayOut(numbers, [depth, others], width, panel));
}

/// Of numbers whose columns lie side by side.
#[inline(always)]
unsafe fn side_by_side<N: Number>(
    numbers: Numbers<N>,
    [depth, others]: [usize; 2],
    width: usize,
    panel: &mut [u32],
) {
    // SAFETY: the caller's promise: there is such a row.
    let row = |index: usize| unsafe {
        std::slice::from_raw_parts(numbers.from([index, 0]).first, others)
    };
    for (pair, lanes) in panel.chunks_exact_mut(width).enumerate() {
        let (lanes, rest) = lanes.split_at_mut(others);
        rest.fill(0);
        let lower = row(2 * pair);
        if 2 * pair + 1 == depth {
            for (lane, lower) in lanes.iter_mut().zip(lower) {
                *lane = lower.bits();
            }
            continue;
        }
        for ((lane, lower), upper) in lanes.iter_mut().zip(lower).zip(row(2 * pair + 1)) {
            *lane = lower.bits() | upper.bits() << 16;
        }
    }
}

/// Of numbers whose rows lie side by side.
#[inline(always)]
unsafe fn turned<N: Number>(
    numbers: Numbers<N>,
    [depth, others]: [usize; 2],
    width: usize,
    panel: &mut [u32],
) {
    let whole = depth / (2 * BLOCK);
    for block in 0..whole {
        let lanes = &mut panel[block * BLOCK * width..][..BLOCK * width];
        for column in 0..width {
            let mut pairs = [0; BLOCK];
            if column < others {
                // SAFETY: the caller's promise: the column has these rows.
                let column = unsafe {
                    let first = numbers.from([block * 2 * BLOCK, column]).first;
                    std::slice::from_raw_parts(first, 2 * BLOCK)
                };
                for (pair, numbers) in pairs.iter_mut().zip(column.chunks_exact(2)) {
                    *pair = numbers[0].bits() | numbers[1].bits() << 16;
                }
            }
            for (lanes, pair) in lanes.chunks_exact_mut(width).zip(pairs) {
                lanes[column] = pair;
            }
        }
    }
    // SAFETY: the caller's promise.
    unsafe { one_by_one(numbers, [depth, others], width, whole * BLOCK, panel) }
}

/// From a pair on, wherever the numbers lie.
#[inline(always)]
unsafe fn one_by_one<N: Number>(
    numbers: Numbers<N>,
    [depth, others]: [usize; 2],
    width: usize,
    from: usize,
    panel: &mut [u32],
) {
    for (pair, lanes) in panel.chunks_exact_mut(width).enumerate().skip(from) {
        for (column, lane) in lanes.iter_mut().enumerate() {
            let bits = |row: usize| match row < depth && column < others {
                // SAFETY: the caller's promise, and there is this place.
                true => unsafe { (*numbers.from([row, column]).first).bits() },
                false => 0,
            };
            *lane = bits(2 * pair) | bits(2 * pair + 1) << 16;
        }
    }
}

/// The number of a row and a column that was laid out, in float32.
pub(crate) fn laid_out(panel: &[u32], width: usize, [row, column]: [usize; 2]) -> f32 {
    let lane = panel[row / 2 * width + column];
    f32::from_bits(match row % 2 {
        0 => lane << 16,
        _ => lane & 0xffff_0000,
    })
}

/// How a left factor of so many rows is cut into tiles of rows that are multiplied together: how high each is.
/// The last may have rows of zeros.
pub(crate) fn tile_height(rows: usize) -> usize {
    let tallest = HEIGHTS[usize::from(panel_width() < 2 * LINE)];
    let height = rows.div_ceil(rows.div_ceil(tallest).max(1));
    // One of those that there is a loop for.
    (height..=tallest)
        .find(|height| *height == 1 || height.is_multiple_of(2))
        .unwrap_or(1)
}

/// Where a tile of a product is, `[rows, columns]`, and how far its rows are apart.
pub(crate) struct Place {
    pub(crate) first: *mut f32,
    pub(crate) step: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Whether it has the sum over what came before; else it is written over.
    pub(crate) goes_on: bool,
}

/// Multiplies a tile of a left factor, `[pairs][height]` lanes, with a panel of a right one,
/// `[pairs][panel_width()]`.
///
/// # Safety
///
/// There must be this place, and nobody else at it; `height` must be one that [`tile_height`] gives.
pub(crate) unsafe fn multiply(tile: &[u32], height: usize, panel: &[u32], place: &Place) {
    macro_rules! of_height {
        ($($height:literal)*) => {
            match height {
                // SAFETY: the caller's promise, and both have as many pairs.
                $($height => unsafe { of_tile::<$height>(tile, panel, place) },)*
                _ => unreachable!("no tile is so high"),
            }
        };
    }
    of_height!(1 2 4 6 8 10 12 14);
}

unsafe fn of_tile<const ROWS: usize>(tile: &[u32], panel: &[u32], place: &Place) {
    #[cfg(target_arch = "x86_64")]
    if panel_width() == 2 * LINE && std::arch::is_x86_feature_detected!("avx512bf16") {
        // SAFETY: the caller's promise; this processor has the instructions.
        return unsafe { avx512::of_tile::<ROWS>(tile, panel, place) };
    }
    // SAFETY: the caller's promise.
    unsafe { widened::<ROWS>(tile, panel, place) }
}

/// On any processor.
unsafe fn widened<const ROWS: usize>(tile: &[u32], panel: &[u32], place: &Place) {
    struct OfTile<'a, const ROWS: usize>(&'a [u32], &'a [u32], &'a Place);

    impl<const ROWS: usize> WithSimd for OfTile<'_, ROWS> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let Self(tile, panel, place) = self;
            // SAFETY: the caller's promise.
            let rows = |row: usize| unsafe {
                let first = place.first.add(row * place.step);
                std::slice::from_raw_parts_mut(first, place.columns)
            };
            let mut sums = [[simd.splat_f32s(0.0); 2]; ROWS];
            if place.goes_on {
                for (row, sums) in sums.iter_mut().enumerate().take(place.rows) {
                    *sums = load(simd, rows(row));
                }
            }
            let (sixteen, upper) = (simd.splat_u32s(16), simd.splat_u32s(0xffff_0000));
            let float = |lanes| simd.transmute_f32s_u32s(lanes);
            for (tile, panel) in tile
                .chunks_exact(ROWS)
                .zip(panel.chunks_exact(width::<S>()))
            {
                let ([first, second], _) = S::as_simd_u32s(panel) else {
                    return; // a panel is as wide as two vectors
                };
                let lower = [first, second].map(|v| float(simd.wrapping_dyn_shl_u32s(*v, sixteen)));
                for (sums, lane) in sums.iter_mut().zip(tile) {
                    let number = simd.splat_f32s(f32::from_bits(lane << 16));
                    for (sum, lower) in sums.iter_mut().zip(lower) {
                        *sum = simd.mul_add_e_f32s(number, lower, *sum);
                    }
                }
                let upper = [first, second].map(|v| float(simd.and_u32s(*v, upper)));
                for (sums, lane) in sums.iter_mut().zip(tile) {
                    let number = simd.splat_f32s(f32::from_bits(lane & 0xffff_0000));
                    for (sum, upper) in sums.iter_mut().zip(upper) {
                        *sum = simd.mul_add_e_f32s(number, upper, *sum);
                    }
                }
            }
            for (row, sums) in sums.into_iter().enumerate().take(place.rows) {
                store(simd, rows(row), sums);
            }
        }
    }
    Arch::new().dispatch(OfTile::<ROWS>(tile, panel, place));
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_load_si512, _mm512_mask_storeu_ps,
        _mm512_maskz_loadu_ps, _mm512_set1_epi32, _mm512_setzero_ps,
    };
    use std::mem::transmute;

    use super::{LINE, Place};

    /// As the other, by the instruction that multiplies pairs.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(super) unsafe fn of_tile<const ROWS: usize>(tile: &[u32], panel: &[u32], place: &Place) {
        let mask = |from: usize| ((1u32 << (place.columns.max(from) - from).min(LINE)) - 1) as u16;
        let masks = [mask(0), mask(LINE)];
        // SAFETY: the caller's promise: there is such a row, and a mask has its columns alone.
        let at = |row: usize, half: usize| unsafe {
            place.first.add(row * place.step).wrapping_add(half * LINE)
        };
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        if place.goes_on {
            for (row, sums) in sums.iter_mut().enumerate().take(place.rows) {
                for (half, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: as above.
                    *sum = unsafe { _mm512_maskz_loadu_ps(masks[half], at(row, half)) };
                }
            }
        }
        let pairs = (tile.len() / ROWS).min(panel.len() / (2 * LINE));
        let (mut tile, mut panel) = (tile.as_ptr(), panel.as_ptr());
        for _ in 0..pairs {
            // SAFETY: both have as many pairs; lines lie where vectors may, and vectors are of the same bits.
            unsafe {
                let [first, second] = [0, LINE].map(|from| {
                    transmute::<__m512i, __m512bh>(_mm512_load_si512(panel.add(from).cast()))
                });
                // By index: the sums have to be in registers, which no iterator promises.
                #[allow(clippy::needless_range_loop)]
                for row in 0..ROWS {
                    let pair = _mm512_set1_epi32((*tile.add(row)).cast_signed());
                    let pair = transmute::<__m512i, __m512bh>(pair);
                    sums[row][0] = _mm512_dpbf16_ps(sums[row][0], pair, first);
                    sums[row][1] = _mm512_dpbf16_ps(sums[row][1], pair, second);
                }
                tile = tile.add(ROWS);
                panel = panel.add(2 * LINE);
            }
        }
        for (row, sums) in sums.into_iter().enumerate().take(place.rows) {
            for (half, sum) in sums.into_iter().enumerate() {
                // SAFETY: as above.
                unsafe { _mm512_mask_storeu_ps(at(row, half), masks[half], sum) };
            }
        }
    }
}

/// Panels of a right factor, or tiles of a left one, of so many columns or rows.
pub(crate) fn panels(others: usize, width: usize) -> impl Iterator<Item = Range<usize>> {
    (0..others)
        .step_by(width)
        .map(move |from| from..(from + width).min(others))
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    /// Only processors that have the instruction can tell.
    #[test]
    fn both_forms_have_the_same_sums() {
        if panel_width() != 2 * LINE || !std::arch::is_x86_feature_detected!("avx512bf16") {
            return;
        }
        const ROWS: usize = 6;
        // Whole numbers, whose sums are exact.
        let lane = |at: usize| {
            let number = |at: usize| ((at * 7 % 11) as f32 - 5.0).bits();
            number(2 * at) | number(2 * at + 1) << 16
        };
        let mut panel = Pairs::new();
        for (at, place) in panel.room(50 * panel_width()).iter_mut().enumerate() {
            *place = lane(at);
        }
        let tile: Vec<u32> = (0..50 * ROWS).map(|at| lane(at + 3)).collect();
        for (rows, columns) in [(ROWS, 32), (5, 17), (1, 16), (2, 3)] {
            for goes_on in [false, true] {
                let sums = [avx512::of_tile::<ROWS>, widened::<ROWS>].map(
                    |form: unsafe fn(&_, &_, &_)| {
                        let mut sums = vec![2.0; ROWS * 40];
                        let place = Place {
                            first: sums.as_mut_ptr(),
                            step: 40,
                            rows,
                            columns,
                            goes_on,
                        };
                        // SAFETY: there is this place, and this processor has the instructions.
                        unsafe { form(&tile, panel.lanes(), &place) };
                        sums
                    },
                );
                assert_eq!(sums[0], sums[1], "{rows} {columns} {goes_on}");
                assert_eq!(sums[0][columns], 2.0, "beyond the place");
            }
        }
    }
}
