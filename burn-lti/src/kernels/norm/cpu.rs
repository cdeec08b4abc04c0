//! `x / sqrt(mean(x^2) + epsilon) * gamma` in loops.

use burn::prelude::*;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::kernels::cpu::{dot, floats, in_place, rows_in_place, whole_rows};

pub(super) fn forward<B: Backend>(
    x: Tensor<B, 2>,
    gamma: Tensor<B, 2>,
    epsilon: f32,
) -> Tensor<B, 2> {
    let [_, width] = x.dims();
    let gamma = gamma.into_data();
    let gamma = floats(&gamma);
    let [output] = in_place([x], |[x]| {
        x.par_chunks_mut(whole_rows(width))
            .for_each(|x| Arch::new().dispatch(Forward { x, gamma, epsilon }));
    });
    output
}

pub(super) fn gradient_of_x<B: Backend>(
    x: Tensor<B, 2>,
    gamma: Tensor<B, 2>,
    gradient: Tensor<B, 2>,
    epsilon: f32,
) -> Tensor<B, 2> {
    let [_, width] = x.dims();
    let gamma = gamma.into_data();
    let gamma = floats(&gamma);
    rows_in_place(gradient, x, width, |gradient, x| {
        Arch::new().dispatch(Backward {
            gradient,
            x,
            gamma,
            epsilon,
        });
    })
}

/// Leaves the result in the place of `x`, rows as long as `gamma`.
struct Forward<'a> {
    x: &'a mut [f32],
    gamma: &'a [f32],
    epsilon: f32,
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (gammas, gamma_rest) = S::as_simd_f32s(self.gamma);
        let gamma = simd.partial_load_f32s(gamma_rest);
        for row in self.x.chunks_exact_mut(self.gamma.len()) {
            let r = 1.0 / (dot(simd, row, row) / row.len() as f32 + self.epsilon).sqrt();
            let r = simd.splat_f32s(r);
            let (xs, rest) = S::as_mut_simd_f32s(row);
            for (x, gamma) in xs.iter_mut().zip(gammas) {
                *x = simd.mul_f32s(simd.mul_f32s(*x, r), *gamma);
            }
            let x = simd.partial_load_f32s(rest);
            simd.partial_store_f32s(rest, simd.mul_f32s(simd.mul_f32s(x, r), gamma));
        }
    }
}

/// Leaves the gradient of `x` in the place of that of the output.
struct Backward<'a> {
    gradient: &'a mut [f32],
    x: &'a [f32],
    gamma: &'a [f32],
    epsilon: f32,
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = self.gamma.len();
        let (gammas, gamma_rest) = S::as_simd_f32s(self.gamma);
        let gamma = simd.partial_load_f32s(gamma_rest);
        let rows = self.gradient.chunks_exact_mut(width);
        for (gradient, row) in rows.zip(self.x.chunks_exact(width)) {
            let (gradients, gradient_rest) = S::as_mut_simd_f32s(gradient);
            for (gradient, gamma) in gradients.iter_mut().zip(gammas) {
                *gradient = simd.mul_f32s(*gradient, *gamma);
            }
            let last = simd.partial_load_f32s(gradient_rest);
            simd.partial_store_f32s(gradient_rest, simd.mul_f32s(last, gamma));

            let mean = 1.0 / width as f32;
            let r = 1.0 / (dot(simd, row, row) * mean + self.epsilon).sqrt();
            let along = simd.splat_f32s(-(dot(simd, gradient, row) * mean) * r * r);
            let r = simd.splat_f32s(r);
            let slope = |gradient: S::f32s, x: S::f32s| {
                simd.mul_f32s(simd.mul_add_e_f32s(x, along, gradient), r)
            };
            let (gradients, gradient_rest) = S::as_mut_simd_f32s(gradient);
            let (xs, x_rest) = S::as_simd_f32s(row);
            for (gradient, x) in gradients.iter_mut().zip(xs) {
                *gradient = slope(*gradient, *x);
            }
            let x = simd.partial_load_f32s(x_rest);
            let last = simd.partial_load_f32s(gradient_rest);
            simd.partial_store_f32s(gradient_rest, slope(last, x));
        }
    }
}
