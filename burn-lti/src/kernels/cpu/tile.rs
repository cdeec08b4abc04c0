//! Products of a few rows with a panel: a matrix as wide as two vectors.
//!
//! Every number of such a product is one chain of multiply-adds, in the order of the axis that is summed over.
//! It does not depend on which rows are computed together, nor into what the axis is cut.

use std::array;

use pulp::{Arch, Simd, WithSimd};

/// Rows that are multiplied together, at most: with two vectors each, and those of the panel, they fill the
/// sixteen registers that many processors have.
const HIGH: usize = 6;

/// Rows of the left factor, so many numbers apart.
#[derive(Clone, Copy)]
pub(crate) struct LeftRows {
    pub(crate) first: *const f32,
    pub(crate) step: usize,
}

/// Where rows of two vectors are, so many numbers apart.
#[derive(Clone, Copy)]
pub(crate) struct Panel {
    pub(crate) first: *const f32,
    pub(crate) step: usize,
}

// SAFETY: they are read, and from memory that no thread writes to while there are readers.
unsafe impl Send for LeftRows {}
unsafe impl Sync for LeftRows {}

/// How wide a panel is in numbers.
pub(crate) const fn width<S: Simd>() -> usize {
    2 * S::F32_LANES
}

/// How wide a panel is on this processor.
pub(crate) fn panel_width() -> usize {
    struct Width;
    impl WithSimd for Width {
        type Output = usize;

        fn with_simd<S: Simd>(self, _: S) -> usize {
            width::<S>()
        }
    }
    Arch::new().dispatch(Width)
}

/// `sums + left [ROWS, depth] panel [depth, 2 vectors]`
///
/// # Safety
///
/// Both must have these rows, in memory that may be read.
#[inline(always)]
pub(crate) unsafe fn multiply<S: Simd, const ROWS: usize>(
    simd: S,
    left: LeftRows,
    panel: Panel,
    depth: usize,
    mut sums: [[S::f32s; 2]; ROWS],
) -> [[S::f32s; 2]; ROWS] {
    // SAFETY: the caller's promise.
    unsafe {
        let rows: [*const f32; ROWS] = array::from_fn(|row| left.first.add(row * left.step));
        let mut at = panel.first;
        for index in 0..depth {
            let first = at.cast::<S::f32s>().read_unaligned();
            let second = at.add(S::F32_LANES).cast::<S::f32s>().read_unaligned();
            at = at.add(panel.step);
            // By index: the sums have to be in registers, which no iterator promises.
            #[allow(clippy::needless_range_loop)]
            for row in 0..ROWS {
                let number = simd.splat_f32s(*rows[row].add(index));
                sums[row][0] = simd.mul_add_e_f32s(number, first, sums[row][0]);
                sums[row][1] = simd.mul_add_e_f32s(number, second, sums[row][1]);
            }
        }
    }
    sums
}

/// What is done with some rows of a left factor.
pub(crate) trait Tile<S: Simd> {
    /// With the `ROWS` rows from `row` on.
    fn rows<const ROWS: usize>(&mut self, simd: S, row: usize);
}

/// As many rows as are in `rows` without a rest, but some.
pub(crate) fn whole_tiles(rows: usize) -> usize {
    (rows / HIGH).max(1) * HIGH
}

/// Does `tile` with all of `rows`, as many at a time as there can be.
#[inline(always)]
pub(crate) fn in_tiles<S: Simd>(simd: S, rows: usize, tile: &mut impl Tile<S>) {
    let mut row = 0;
    while row + HIGH <= rows {
        tile.rows::<HIGH>(simd, row);
        row += HIGH;
    }
    match rows - row {
        0 => {}
        1 => tile.rows::<1>(simd, row),
        2 => tile.rows::<2>(simd, row),
        3 => tile.rows::<3>(simd, row),
        4 => tile.rows::<4>(simd, row),
        _ => tile.rows::<5>(simd, row),
    }
}

/// Writes the sums of a row to as many places as there are, at most the width of a panel.
#[inline(always)]
pub(crate) fn store<S: Simd>(simd: S, places: &mut [f32], [first, second]: [S::f32s; 2]) {
    if places.len() == width::<S>()
        && let ([ahead, behind], _) = S::as_mut_simd_f32s(places)
    {
        (*ahead, *behind) = (first, second);
        return;
    }
    let (ahead, behind) = places.split_at_mut(places.len().min(S::F32_LANES));
    simd.partial_store_f32s(ahead, first);
    if !behind.is_empty() {
        simd.partial_store_f32s(behind, second);
    }
}

/// What [`store`] has written, and zeros beyond.
#[inline(always)]
pub(crate) fn load<S: Simd>(simd: S, places: &[f32]) -> [S::f32s; 2] {
    if places.len() == width::<S>()
        && let ([ahead, behind], _) = S::as_simd_f32s(places)
    {
        return [*ahead, *behind];
    }
    let (ahead, behind) = places.split_at(places.len().min(S::F32_LANES));
    [
        simd.partial_load_f32s(ahead),
        simd.partial_load_f32s(behind),
    ]
}
