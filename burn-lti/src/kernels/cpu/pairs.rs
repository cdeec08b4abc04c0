//! Products in bfloat16: the factors are rounded to it, sums are float32.
//!
//! Processors with such an instruction (`vdpbf16ps`) multiply *pairs* of numbers: each lane of 32 bits has two
//! neighbours along the axis that is summed over. So that is how a factor is laid out, and one layout serves
//! every processor: without the instruction, the two halves of a lane are widened and multiplied in turn.
//!
//! Every number of a product is one chain of sums in the order of that axis, of which `vdpbf16ps` takes two at a
//! time; it does not depend on which rows or columns are computed together, nor on how many threads there are.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::matrix::Numbers;
use super::tile::{load, panel_width, store, width};

/// Lanes of a line of memory.
const LINE: usize = 16;
/// Rows that are multiplied together, at most, where there are 32 registers of 16 lanes, and where there are 16.
const HEIGHTS: [usize; 2] = [14, 6];

/// The nearest number of bfloat16, of two the even one, as the upper half of one of float32.
#[inline(always)]
fn bits(number: f32) -> u32 {
    let bits = number.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    let quiet = bits | 0x0040_0000; // what is no number stays none
    (if number.is_nan() { quiet } else { rounded }) >> 16
}

/// A line of memory, so that no vector lies in two.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; LINE]);

/// A factor in pairs: `[others / width][depth / 2][width]`, where `depth` is summed over. Zeros beyond the last.
#[derive(Default)]
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
pub(crate) unsafe fn lay_out(
    numbers: Numbers,
    [depth, others]: [usize; 2],
    width: usize,
    panel: &mut [u32],
) {
    #[cfg(target_arch = "x86_64")]
    if has_pairs() {
        let step = |step: isize| usize::try_from(step).ok();
        match numbers.steps.map(step) {
            [Some(step), Some(1)] => {
                // SAFETY: the caller's promise; this processor has the instructions.
                return unsafe {
                    avx512::side_by_side(numbers.first, step, [depth, others], width, panel)
                };
            }
            [Some(1), Some(step)] => {
                // SAFETY: as above.
                return unsafe {
                    avx512::turned(numbers.first, step, [depth, others], width, panel)
                };
            }
            _ => {}
        }
    }
    // SAFETY: the caller's promise.
    unsafe { one_by_one(numbers, [depth, others], width, panel) }
}

/// On any processor, wherever the numbers lie.
unsafe fn one_by_one(
    numbers: Numbers,
    [depth, others]: [usize; 2],
    width: usize,
    panel: &mut [u32],
) {
    for (pair, lanes) in panel.chunks_exact_mut(width).enumerate() {
        for (column, lane) in lanes.iter_mut().enumerate() {
            let bits = |row: usize| match row < depth && column < others {
                // SAFETY: the caller's promise, and there is this place.
                true => unsafe { bits(*numbers.from([row, column]).first) },
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

/// Whether this processor multiplies pairs.
#[cfg(target_arch = "x86_64")]
fn has_pairs() -> bool {
    panel_width() == 2 * LINE && std::arch::is_x86_feature_detected!("avx512bf16")
}

unsafe fn of_tile<const ROWS: usize>(tile: &[u32], panel: &[u32], place: &Place) {
    #[cfg(target_arch = "x86_64")]
    if has_pairs() {
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

/// The same by the instructions for pairs.
///
/// In plain loops by index: numbers have to be in registers, and no closure has these functions' instructions.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::needless_range_loop)]
mod avx512 {
    use std::arch::x86_64::{
        __m256bh, __m256i, __m512bh, __m512i, _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh,
        _mm512_cvtneps_pbh, _mm512_dpbf16_ps, _mm512_load_si512, _mm512_mask_storeu_epi32,
        _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_or_si512, _mm512_set1_epi32,
        _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_slli_epi32,
        _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
    };
    use std::mem::transmute;

    use super::{LINE, Place, pairs_of};

    /// Lays out numbers whose columns lie side by side, rows `step` apart.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(super) unsafe fn side_by_side(
        first: *const f32,
        step: usize,
        [depth, others]: [usize; 2],
        width: usize,
        panel: &mut [u32],
    ) {
        for pair in 0..pairs_of(depth) {
            for from in (0..width).step_by(LINE) {
                let [there, wanted] = [others, width].map(|end| mask(end.saturating_sub(from)));
                let behind = if 2 * pair + 1 < depth { there } else { 0 };
                // SAFETY: masks have what there is alone, and the panel has this pair.
                unsafe {
                    let at = first.wrapping_add(2 * pair * step + from);
                    let lower = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(there, at));
                    let upper = _mm512_maskz_loadu_ps(behind, at.wrapping_add(step));
                    let [lower, upper] = [lower, _mm512_cvtneps_pbh(upper)];
                    let lower = _mm512_cvtepu16_epi32(transmute::<__m256bh, __m256i>(lower));
                    let upper = _mm512_cvtepu16_epi32(transmute::<__m256bh, __m256i>(upper));
                    let lanes = _mm512_or_si512(lower, _mm512_slli_epi32::<16>(upper));
                    let place = panel.as_mut_ptr().add(pair * width + from);
                    _mm512_mask_storeu_epi32(place.cast(), wanted, lanes);
                }
            }
        }
    }

    /// Lays out numbers whose rows lie side by side, columns `step` apart: blocks of 16 columns and 16 pairs, of
    /// which rows and columns change places.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(super) unsafe fn turned(
        first: *const f32,
        step: usize,
        [depth, others]: [usize; 2],
        width: usize,
        panel: &mut [u32],
    ) {
        let pairs = pairs_of(depth);
        for column in (0..width).step_by(LINE) {
            let wanted = mask(width - column);
            for pair in (0..pairs).step_by(LINE) {
                let left = depth - 2 * pair;
                let masks = [mask(left), mask(left.saturating_sub(LINE))];
                let mut block = [_mm512_setzero_si512(); LINE];
                for index in 0..LINE.min(others.saturating_sub(column)) {
                    // SAFETY: there is this column, and masks have its rows alone.
                    unsafe {
                        let at = first.add((column + index) * step + 2 * pair);
                        let before = _mm512_maskz_loadu_ps(masks[0], at);
                        let behind = _mm512_maskz_loadu_ps(masks[1], at.wrapping_add(LINE));
                        let pairs = _mm512_cvtne2ps_pbh(behind, before);
                        block[index] = transmute::<__m512bh, __m512i>(pairs);
                    }
                }
                let block = transposed(block);
                for index in 0..LINE.min(pairs - pair) {
                    // SAFETY: the panel has this pair, and a mask its lanes alone.
                    unsafe {
                        let place = panel.as_mut_ptr().add((pair + index) * width + column);
                        _mm512_mask_storeu_epi32(place.cast(), wanted, block[index]);
                    }
                }
            }
        }
    }

    /// Rows as columns: of 4 x 4 lanes first, then of 4 x 4 such blocks.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn transposed(rows: [__m512i; LINE]) -> [__m512i; LINE] {
        let mut blocks = rows;
        for of in (0..LINE).step_by(4) {
            let [a, b, c, d] = [rows[of], rows[of + 1], rows[of + 2], rows[of + 3]];
            let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
            blocks[of] = _mm512_unpacklo_epi64(ab, cd);
            blocks[of + 1] = _mm512_unpackhi_epi64(ab, cd);
            let (ab, cd) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
            blocks[of + 2] = _mm512_unpacklo_epi64(ab, cd);
            blocks[of + 3] = _mm512_unpackhi_epi64(ab, cd);
        }
        let mut columns = blocks;
        for of in 0..4 {
            let [a, b, c, d] = [blocks[of], blocks[of + 4], blocks[of + 8], blocks[of + 12]];
            let even = _mm512_shuffle_i32x4::<0x88>(a, b);
            let even_below = _mm512_shuffle_i32x4::<0x88>(c, d);
            let odd = _mm512_shuffle_i32x4::<0xdd>(a, b);
            let odd_below = _mm512_shuffle_i32x4::<0xdd>(c, d);
            columns[of] = _mm512_shuffle_i32x4::<0x88>(even, even_below);
            columns[of + 4] = _mm512_shuffle_i32x4::<0x88>(odd, odd_below);
            columns[of + 8] = _mm512_shuffle_i32x4::<0xdd>(even, even_below);
            columns[of + 12] = _mm512_shuffle_i32x4::<0xdd>(odd, odd_below);
        }
        columns
    }

    /// As the other, by the instruction that multiplies pairs.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(super) unsafe fn of_tile<const ROWS: usize>(tile: &[u32], panel: &[u32], place: &Place) {
        let columns = place.columns;
        let masks = [mask(columns), mask(columns.saturating_sub(LINE))];
        let rows = place.rows.min(ROWS);
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        if place.goes_on {
            for row in 0..rows {
                // SAFETY: the caller's promise: there is such a row, and a mask has its columns alone.
                unsafe {
                    let at = place.first.add(row * place.step);
                    sums[row][0] = _mm512_maskz_loadu_ps(masks[0], at);
                    sums[row][1] = _mm512_maskz_loadu_ps(masks[1], at.wrapping_add(LINE));
                }
            }
        }
        let pairs = (tile.len() / ROWS).min(panel.len() / (2 * LINE));
        let (mut tile, mut panel) = (tile.as_ptr(), panel.as_ptr());
        for _ in 0..pairs {
            // SAFETY: both have as many pairs; lines lie where vectors may, and vectors are of the same bits.
            unsafe {
                let first = transmute::<__m512i, __m512bh>(_mm512_load_si512(panel.cast()));
                let second = _mm512_load_si512(panel.add(LINE).cast());
                let second = transmute::<__m512i, __m512bh>(second);
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
        for row in 0..rows {
            // SAFETY: as above.
            unsafe {
                let at = place.first.add(row * place.step);
                _mm512_mask_storeu_ps(at, masks[0], sums[row][0]);
                _mm512_mask_storeu_ps(at.wrapping_add(LINE), masks[1], sums[row][1]);
            }
        }
    }

    /// So many lanes of a vector, or all of them.
    fn mask(lanes: usize) -> u16 {
        ((1u32 << lanes.min(LINE)) - 1) as u16
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

    /// Numbers that are rounded, of both signs.
    fn number(at: usize) -> f32 {
        (at * 7 % 11) as f32 * 1.01 - 5.0
    }

    /// Only processors that have the instructions can tell.
    #[test]
    fn both_forms_lay_out_the_same() {
        if !has_pairs() {
            return;
        }
        let numbers: Vec<f32> = (0..100 * 70).map(number).collect();
        for (depth, others, width) in [
            (1, 1, 1),
            (64, 32, 32),
            (67, 31, 32),
            (33, 14, 14),
            (70, 3, 6),
        ] {
            for steps in [[70, 1], [1, 100]] {
                let numbers = Numbers {
                    first: numbers.as_ptr(),
                    steps,
                };
                let forms = [lay_out, one_by_one].map(|form: unsafe fn(_, _, _, &mut _)| {
                    let mut panel = vec![7; pairs_of(depth) * width + 1];
                    let (lanes, beyond) = panel.split_at_mut(pairs_of(depth) * width);
                    // SAFETY: there are so many rows and columns.
                    unsafe { form(numbers, [depth, others], width, lanes) };
                    assert_eq!(beyond, [7]);
                    panel
                });
                assert_eq!(forms[0], forms[1], "{depth} {others} {width} {steps:?}");
            }
        }
    }

    #[test]
    fn both_forms_have_the_same_sums() {
        if !has_pairs() {
            return;
        }
        const ROWS: usize = 6;
        // Whole numbers, whose sums are exact.
        let lane = |at: usize| {
            let number = |at: usize| bits(number(at).trunc());
            number(2 * at) | number(2 * at + 1) << 16
        };
        let mut panel = Pairs::new();
        for (at, place) in panel.room(50 * panel_width()).iter_mut().enumerate() {
            *place = lane(at);
        }
        let tile: Vec<u32> = (0..50 * ROWS).map(|at| lane(at + 3)).collect();
        for (rows, columns) in [(ROWS, 32), (5, 17), (1, 16), (2, 3)] {
            for goes_on in [false, true] {
                let forms = [avx512::of_tile::<ROWS>, widened::<ROWS>];
                let sums = forms.map(|form: unsafe fn(&_, &_, &_)| {
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
                });
                assert_eq!(sums[0], sums[1], "{rows} {columns} {goes_on}");
                assert_eq!(sums[0][columns], 2.0, "beyond the place");
            }
        }
    }
}
