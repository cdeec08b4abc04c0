//! `cap * tanh(x / cap)` in loops.

use burn::prelude::*;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::kernels::cpu::{PIECE, in_place, rows_in_place, tanh};

pub(super) fn forward<B: Backend, const D: usize>(x: Tensor<B, D>, cap: f32) -> Tensor<B, D> {
    let [x] = in_place([x], |[x]| {
        x.par_chunks_mut(PIECE).for_each(|numbers| {
            Arch::new().dispatch(Capped { numbers, cap });
        });
    });
    x
}

/// Out of the output and its gradient.
pub(super) fn gradient<B: Backend, const D: usize>(
    output: Tensor<B, D>,
    gradient: Tensor<B, D>,
    cap: f32,
) -> Tensor<B, D> {
    rows_in_place(gradient, output, 1, |gradients, capped| {
        Arch::new().dispatch(Gradients {
            gradients,
            capped,
            cap,
        });
    })
}

struct Capped<'a> {
    numbers: &'a mut [f32],
    cap: f32,
}

impl WithSimd for Capped<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        cap_all(simd, self.numbers, self.cap);
    }
}

struct Gradients<'a> {
    gradients: &'a mut [f32],
    capped: &'a [f32],
    cap: f32,
}

impl WithSimd for Gradients<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        through_cap(simd, self.gradients, self.capped, self.cap);
    }
}

/// Leaves `cap * tanh(x / cap)` in the place of each number.
#[inline(always)]
pub(in crate::kernels) fn cap_all<S: Simd>(simd: S, numbers: &mut [f32], cap: f32) {
    let (inverse, cap) = (simd.splat_f32s(1.0 / cap), simd.splat_f32s(cap));
    let capped = |x| simd.mul_f32s(tanh(simd, simd.mul_f32s(x, inverse)), cap);
    let (vectors, rest) = S::as_mut_simd_f32s(numbers);
    for x in vectors {
        *x = capped(*x);
    }
    let last = capped(simd.partial_load_f32s(rest));
    simd.partial_store_f32s(rest, last);
}

/// Makes gradients after the cap those before it; `capped` is what came out of it.
#[inline(always)]
pub(in crate::kernels) fn through_cap<S: Simd>(
    simd: S,
    gradients: &mut [f32],
    capped: &[f32],
    cap: f32,
) {
    let (inverse, one) = (simd.splat_f32s(1.0 / cap), simd.splat_f32s(1.0));
    let before = |gradient, capped| {
        let part = simd.mul_f32s(capped, inverse);
        let slope = simd.sub_f32s(one, simd.mul_f32s(part, part));
        simd.mul_f32s(gradient, slope)
    };
    let (vectors, rest) = S::as_mut_simd_f32s(gradients);
    let (capped, capped_rest) = S::as_simd_f32s(capped);
    for (gradient, capped) in vectors.iter_mut().zip(capped) {
        *gradient = before(*gradient, *capped);
    }
    let last = before(
        simd.partial_load_f32s(rest),
        simd.partial_load_f32s(capped_rest),
    );
    simd.partial_store_f32s(rest, last);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_gone_over() {
        for length in 0..70 {
            let x: Vec<f32> = (0..length).map(|at| at as f32 / 3.0 - 9.0).collect();
            let mut capped = x.clone();
            Arch::new().dispatch(Capped {
                numbers: &mut capped,
                cap: 5.0,
            });
            let mut gradients = vec![2.0; length];
            Arch::new().dispatch(Gradients {
                gradients: &mut gradients,
                capped: &capped,
                cap: 5.0,
            });
            for ((x, capped), gradient) in x.iter().zip(&capped).zip(&gradients) {
                let part = (f64::from(*x) / 5.0).tanh();
                // Some four operations of float32 beside the tangent's three units.
                let allowed = 8.0 * f64::from(f32::EPSILON);
                assert!((f64::from(*capped) / 5.0 - part).abs() <= allowed);
                let slope = 1.0 - part * part;
                assert!((f64::from(*gradient) / 2.0 - slope).abs() <= 2.0 * allowed);
            }
        }
    }
}
