//! By vectors of 16 pairs (AVX-512 BF16).
//!
//! In plain loops by index: numbers have to be in registers, and no closure has these functions' instructions.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::{
    __m256bh, __m256i, __m512bh, __m512i, _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh,
    _mm512_cvtneps_pbh, _mm512_dpbf16_ps, _mm512_load_si512, _mm512_mask_storeu_epi32,
    _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_or_si512, _mm512_set1_epi32,
    _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_slli_epi32,
    _mm512_storeu_si512, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32,
    _mm512_unpacklo_epi64,
};
use std::mem::transmute;

use super::{LINE, Place};

/// Lays out numbers whose columns lie side by side, rows `step` apart: `[pairs][width]` lanes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn side_by_side(
    first: *const f32,
    step: usize,
    [depth, others]: [usize; 2],
    width: usize,
    panel: &mut [u32],
) {
    for pair in 0..panel.len() / width {
        for from in (0..width).step_by(LINE) {
            let wanted = mask(width - from);
            // SAFETY: the caller's promise; the panel has this pair, and a mask its lanes alone.
            unsafe {
                let lanes = of_columns(first, step, [depth, others], [2 * pair, from]);
                let place = panel.as_mut_ptr().add(pair * width + from);
                _mm512_mask_storeu_epi32(place.cast(), wanted, lanes);
            }
        }
    }
}

/// As the other, of numbers whose rows lie side by side, columns `step` apart: in blocks of 16 columns and 16
/// pairs, of which rows and columns change places.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn turned(
    first: *const f32,
    step: usize,
    [depth, others]: [usize; 2],
    width: usize,
    panel: &mut [u32],
) {
    let pairs = panel.len() / width;
    for column in (0..width).step_by(LINE) {
        let wanted = mask(width - column);
        for pair in (0..pairs).step_by(LINE) {
            let mut block = [_mm512_setzero_si512(); LINE];
            for index in 0..LINE {
                let place = [2 * pair, column + index];
                // SAFETY: the caller's promise.
                block[index] = unsafe { of_row(first, step, [depth, others], place) };
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

/// `[16 columns][16 pairs]` lanes of numbers as those of [`turned`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn block_of_rows(
    first: *const f32,
    step: usize,
    shape: [usize; 2],
    block: &mut [u32; LINE * LINE],
) {
    for index in 0..LINE {
        // SAFETY: the caller's promise; the block has this line.
        unsafe {
            let lanes = of_row(first, step, shape, [0, index]);
            _mm512_storeu_si512(block.as_mut_ptr().add(index * LINE).cast(), lanes);
        }
    }
}

/// `[16 columns][16 pairs]` lanes of numbers as those of [`side_by_side`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn block_of_columns(
    first: *const f32,
    step: usize,
    shape: [usize; 2],
    block: &mut [u32; LINE * LINE],
) {
    let mut rows = [_mm512_setzero_si512(); LINE];
    for pair in 0..LINE {
        // SAFETY: the caller's promise.
        rows[pair] = unsafe { of_columns(first, step, shape, [2 * pair, 0]) };
    }
    let rows = transposed(rows);
    for index in 0..LINE {
        // SAFETY: the block has this line.
        unsafe {
            let place = block.as_mut_ptr().add(index * LINE);
            _mm512_storeu_si512(place.cast(), rows[index]);
        }
    }
}

/// Of 16 columns, side by side, the pair of `row` and the next one. Zeros where there is none.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn of_columns(
    first: *const f32,
    step: usize,
    [depth, others]: [usize; 2],
    [row, column]: [usize; 2],
) -> __m512i {
    let there = mask(others.saturating_sub(column));
    let [here, behind] = [row, row + 1].map(|row| if row < depth { there } else { 0 });
    // SAFETY: masks have what there is alone; vectors are of the same bits.
    unsafe {
        let at = first.wrapping_add(row * step + column);
        let lower = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(here, at));
        let upper = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(behind, at.wrapping_add(step)));
        let lower = _mm512_cvtepu16_epi32(transmute::<__m256bh, __m256i>(lower));
        let upper = _mm512_cvtepu16_epi32(transmute::<__m256bh, __m256i>(upper));
        _mm512_or_si512(lower, _mm512_slli_epi32::<16>(upper))
    }
}

/// Of a column, whose numbers lie side by side, 16 pairs from `row` on. Zeros where there is none.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn of_row(
    first: *const f32,
    step: usize,
    [depth, others]: [usize; 2],
    [row, column]: [usize; 2],
) -> __m512i {
    let left = if column < others {
        depth.saturating_sub(row)
    } else {
        0
    };
    let masks = [mask(left), mask(left.saturating_sub(LINE))];
    // SAFETY: masks have what there is alone; vectors are of the same bits.
    unsafe {
        let at = first.wrapping_add(column * step + row);
        let before = _mm512_maskz_loadu_ps(masks[0], at);
        let behind = _mm512_maskz_loadu_ps(masks[1], at.wrapping_add(LINE));
        transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(behind, before))
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
