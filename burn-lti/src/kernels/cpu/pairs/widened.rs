//! On any processor: the halves of a lane are numbers of float32 themselves.

use pulp::{Arch, Simd, WithSimd};

use super::Place;
use crate::kernels::cpu::{load, store, width};

/// As [`Ready::multiply`](super::Ready::multiply).
///
/// # Safety
///
/// As there.
pub(super) unsafe fn of_tile<const ROWS: usize>(tile: &[u32], panel: &[u32], place: &Place) {
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
