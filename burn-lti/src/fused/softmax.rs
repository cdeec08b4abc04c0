//! `softmax(scores + mask)`

use burn::prelude::*;
use burn::tensor::activation::softmax;
use burn::tensor::ops::FloatTensor;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::lanes::{self, LEAST, dot, exponential, floats, floats_mut, whole_rows};
use super::operation::{Operation, apply, primitive, tensor};

/// The softmax of `scores + mask` over the last axis. `mask` has no gradient.
///
/// A place whose mask is minus infinity gets zero; each row must have another one.
///
/// # Shapes
///
/// `scores` and the result: `[batch, heads, queries, keys]`; `mask` the same, or with 1 for `batch` or
/// `heads`.
///
/// # Panics
///
/// If they have other shapes.
pub fn masked_softmax<B: Backend>(scores: Tensor<B, 4>, mask: Tensor<B, 4>) -> Tensor<B, 4> {
    let (of_scores, of_mask) = (scores.dims(), mask.dims());
    for axis in 0..4 {
        assert!(
            of_mask[axis] == of_scores[axis] || axis < 2 && of_mask[axis] == 1,
            "a mask of {of_mask:?} does not belong to scores of {of_scores:?}"
        );
    }
    let device = scores.device();
    let inputs = [primitive(scores), primitive(mask)];
    tensor(apply::<B, _, 2>(MaskedSoftmax, &device, inputs))
}

/// `d scores = p (g - sum(g p))` with `p` the output and `g` its gradient.
#[derive(Clone, Copy, Debug)]
struct MaskedSoftmax;

impl Operation<2> for MaskedSoftmax {
    /// The output.
    type Kept<I: Backend> = FloatTensor<I>;

    fn forward<I: Backend>(self, [scores, mask]: [FloatTensor<I>; 2]) -> FloatTensor<I> {
        let (scores, mask) = (tensor::<I, 4>(scores), tensor::<I, 4>(mask));
        if !lanes::suit([&scores, &mask]) {
            return self.plain::<I>([primitive(scores), primitive(mask)]);
        }
        let device = scores.device();
        let [_, heads, queries, keys] = scores.dims();
        let [mask_batch, mask_heads, ..] = mask.dims();
        let (mut scores, mask) = (scores.into_data(), mask.into_data());
        let mask = floats(&mask);
        let row_of_mask = |row: usize| {
            let (above, query) = (row / queries, row % queries);
            let batch = (above / heads).min(mask_batch - 1);
            let head = (above % heads).min(mask_heads - 1);
            (batch * mask_heads + head) * queries + query
        };
        let rows = whole_rows(keys);
        let pieces = floats_mut(&mut scores).par_chunks_mut(rows).enumerate();
        pieces.for_each(|(piece, scores)| {
            let first = piece * (rows / keys.max(1));
            let arch = Arch::new();
            for (index, scores) in scores.chunks_exact_mut(keys.max(1)).enumerate() {
                let begins = row_of_mask(first + index) * keys;
                let mask = &mask[begins..begins + keys];
                arch.dispatch(Forward { scores, mask });
            }
        });
        primitive(Tensor::<I, 4>::from_data(scores, &device))
    }

    fn forward_keeping<I: Backend>(
        self,
        inputs: [FloatTensor<I>; 2],
        _: [bool; 2],
    ) -> (FloatTensor<I>, Self::Kept<I>) {
        let output = self.forward::<I>(inputs);
        (output.clone(), output)
    }

    fn backward<I: Backend>(
        self,
        kept: Self::Kept<I>,
        gradient: FloatTensor<I>,
        [wanted, _]: [bool; 2],
    ) -> [Option<FloatTensor<I>>; 2] {
        if !wanted {
            return [None, None];
        }
        let (output, gradient) = (tensor::<I, 4>(kept), tensor::<I, 4>(gradient));
        if !lanes::suit([&output, &gradient]) {
            let weighted = output.clone() * gradient;
            let sums = weighted.clone().sum_dim(3);
            return [Some(primitive(weighted - output * sums)), None];
        }
        let device = output.device();
        let [.., keys] = output.dims();
        let (output, mut gradient) = (output.into_data(), gradient.into_data());
        let rows = whole_rows(keys);
        floats_mut(&mut gradient)
            .par_chunks_mut(rows)
            .zip(floats(&output).par_chunks(rows))
            .for_each(|(gradient, output)| {
                let piece = Backward {
                    gradient,
                    output,
                    keys,
                };
                Arch::new().dispatch(piece);
            });
        [
            Some(primitive(Tensor::<I, 4>::from_data(gradient, &device))),
            None,
        ]
    }

    fn plain<B: Backend>(self, [scores, mask]: [FloatTensor<B>; 2]) -> FloatTensor<B> {
        primitive(softmax(
            tensor::<B, 4>(scores) + tensor::<B, 4>(mask).detach(),
            3,
        ))
    }
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
