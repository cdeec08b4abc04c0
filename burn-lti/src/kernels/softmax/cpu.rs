//! `softmax(scores + mask)` in loops.

use burn::prelude::*;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::kernels::cpu::{LEAST, dot, exponential, floats, in_place, rows_in_place, whole_rows};

pub(super) fn forward<B: Backend>(scores: Tensor<B, 4>, mask: Tensor<B, 4>) -> Tensor<B, 4> {
    let [_, heads, queries, keys] = scores.dims();
    let [mask_batch, mask_heads, ..] = mask.dims();
    let mask = mask.into_data();
    let mask = floats(&mask);
    let row_of_mask = |row: usize| {
        let (above, query) = (row / queries, row % queries);
        let batch = (above / heads).min(mask_batch - 1);
        let head = (above % heads).min(mask_heads - 1);
        (batch * mask_heads + head) * queries + query
    };
    let rows = whole_rows(keys);
    let [weights] = in_place([scores], |[scores]| {
        let pieces = scores.par_chunks_mut(rows).enumerate();
        pieces.for_each(|(piece, scores)| {
            let first = piece * (rows / keys.max(1));
            let arch = Arch::new();
            for (index, scores) in scores.chunks_exact_mut(keys.max(1)).enumerate() {
                let begins = row_of_mask(first + index) * keys;
                let mask = &mask[begins..begins + keys];
                arch.dispatch(Forward { scores, mask });
            }
        });
    });
    weights
}

/// Of the scores.
pub(super) fn gradient<B: Backend>(output: Tensor<B, 4>, gradient: Tensor<B, 4>) -> Tensor<B, 4> {
    let [.., keys] = output.dims();
    rows_in_place(gradient, output, keys, |gradient, output| {
        Arch::new().dispatch(Backward {
            gradient,
            output,
            keys,
        });
    })
}

/// Of one row; leaves the result in the place of `scores`.
struct Forward<'a> {
    scores: &'a mut [f32],
    mask: &'a [f32],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (masks, mask_rest) = S::as_simd_f32s(self.mask);
        let (scores, scores_rest) = S::as_mut_simd_f32s(self.scores);
        let mut most = simd.splat_f32s(f32::NEG_INFINITY);
        for (score, mask) in scores.iter_mut().zip(masks) {
            *score = simd.add_f32s(*score, *mask);
            most = simd.max_f32s(most, *score);
        }
        let mut most = simd.reduce_max_f32s(most);
        for (score, mask) in scores_rest.iter_mut().zip(mask_rest) {
            *score += *mask;
            most = most.max(*score);
        }

        let shift = simd.splat_f32s(most);
        let mut sums = simd.splat_f32s(0.0);
        for score in scores.iter_mut() {
            *score = exponential(simd, simd.sub_f32s(*score, shift));
            sums = simd.add_f32s(sums, *score);
        }
        let mut sum = simd.reduce_sum_f32s(sums);
        for score in scores_rest.iter_mut() {
            let shifted = *score - most;
            *score = if shifted < LEAST { 0.0 } else { shifted.exp() };
            sum += *score;
        }

        let scale = 1.0 / sum;
        let scales = simd.splat_f32s(scale);
        for score in scores.iter_mut() {
            *score = simd.mul_f32s(*score, scales);
        }
        for score in scores_rest {
            *score *= scale;
        }
    }
}

/// Leaves the gradient of the scores in the place of that of the output.
struct Backward<'a> {
    gradient: &'a mut [f32],
    output: &'a [f32],
    keys: usize,
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let rows = self.gradient.chunks_exact_mut(self.keys);
        for (gradient, output) in rows.zip(self.output.chunks_exact(self.keys)) {
            let sum = dot(simd, gradient, output);
            let (gradients, gradient_rest) = S::as_mut_simd_f32s(gradient);
            let (outputs, output_rest) = S::as_simd_f32s(output);
            let sums = simd.splat_f32s(sum);
            for (gradient, output) in gradients.iter_mut().zip(outputs) {
                *gradient = simd.mul_f32s(*output, simd.sub_f32s(*gradient, sums));
            }
            for (gradient, output) in gradient_rest.iter_mut().zip(output_rest) {
                *gradient = *output * (*gradient - sum);
            }
        }
    }
}
