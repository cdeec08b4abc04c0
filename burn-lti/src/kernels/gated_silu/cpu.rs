//! `silu(gate) * up` in loops.

use burn::prelude::*;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::kernels::cpu::{PIECE, exp, floats, in_place, rows_in_place};

pub(super) fn forward<B: Backend>(gate: Tensor<B, 2>, up: Tensor<B, 2>) -> Tensor<B, 2> {
    rows_in_place(gate, up, 1, |gate, up| {
        Arch::new().dispatch(Forward { gate, up });
    })
}

/// Of both inputs.
pub(super) fn gradients<B: Backend>(
    gate: Tensor<B, 2>,
    up: Tensor<B, 2>,
    gradient: Tensor<B, 2>,
) -> [Tensor<B, 2>; 2] {
    let gradient = gradient.into_data();
    in_place([gate, up], |[gate, up]| {
        gate.par_chunks_mut(PIECE)
            .zip(up.par_chunks_mut(PIECE))
            .zip(floats(&gradient).par_chunks(PIECE))
            .for_each(|((gate, up), gradient)| {
                Arch::new().dispatch(Backward { gate, up, gradient });
            });
    })
}

/// Leaves the result in the place of `gate`.
struct Forward<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (gates, gate_rest) = S::as_mut_simd_f32s(self.gate);
        let (ups, up_rest) = S::as_simd_f32s(self.up);
        for (gate, up) in gates.iter_mut().zip(ups) {
            *gate = gated(simd, *gate, *up);
        }
        let gate = simd.partial_load_f32s(gate_rest);
        let up = simd.partial_load_f32s(up_rest);
        simd.partial_store_f32s(gate_rest, gated(simd, gate, up));
    }
}

#[inline(always)]
fn gated<S: Simd>(simd: S, gate: S::f32s, up: S::f32s) -> S::f32s {
    simd.mul_f32s(simd.mul_f32s(gate, sigmoid(simd, gate)), up)
}

/// Leaves the gradients in the places of `gate` and `up`.
struct Backward<'a> {
    gate: &'a mut [f32],
    up: &'a mut [f32],
    gradient: &'a [f32],
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (gates, gate_rest) = S::as_mut_simd_f32s(self.gate);
        let (ups, up_rest) = S::as_mut_simd_f32s(self.up);
        let (gradients, gradient_rest) = S::as_simd_f32s(self.gradient);
        for ((gate, up), gradient) in gates.iter_mut().zip(ups).zip(gradients) {
            [*gate, *up] = slopes(simd, *gate, *up, *gradient);
        }
        let [gate, up] = slopes(
            simd,
            simd.partial_load_f32s(gate_rest),
            simd.partial_load_f32s(up_rest),
            simd.partial_load_f32s(gradient_rest),
        );
        simd.partial_store_f32s(gate_rest, gate);
        simd.partial_store_f32s(up_rest, up);
    }
}

#[inline(always)]
fn slopes<S: Simd>(simd: S, gate: S::f32s, up: S::f32s, gradient: S::f32s) -> [S::f32s; 2] {
    let one = simd.splat_f32s(1.0);
    let s = sigmoid(simd, gate);
    let weighted = simd.mul_f32s(gradient, s);
    let slope = simd.mul_add_e_f32s(gate, simd.sub_f32s(one, s), one);
    [
        simd.mul_f32s(simd.mul_f32s(weighted, up), slope),
        simd.mul_f32s(weighted, gate),
    ]
}

/// `1 / (1 + exp(-x))`, from an exponential that cannot overflow.
#[inline(always)]
fn sigmoid<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let one = simd.splat_f32s(1.0);
    let e = exp(simd, simd.neg_f32s(simd.abs_f32s(x)));
    let negative = simd.less_than_f32s(x, simd.splat_f32s(0.0));
    let above = simd.select_f32s(negative, e, one);
    simd.div_f32s(above, simd.add_f32s(one, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(gate: &[f32], up: &[f32]) -> Vec<f32> {
        let mut gate = gate.to_vec();
        Arch::new().dispatch(Forward {
            gate: &mut gate,
            up,
        });
        gate
    }

    #[test]
    fn every_length_is_gone_over() {
        for length in 0..70 {
            let gate: Vec<f32> = (0..length).map(|i| i as f32 / 7.0 - 4.0).collect();
            let up: Vec<f32> = (0..length).map(|i| 1.5 - i as f32 / 20.0).collect();
            for ((found, gate), up) in run(&gate, &up).iter().zip(&gate).zip(&up) {
                let (gate, up) = (f64::from(*gate), f64::from(*up));
                let expected = gate / (1.0 + (-gate).exp()) * up;
                // Some six operations of float32.
                assert!((f64::from(*found) - expected).abs() <= 1e-6 * expected.abs());
            }
        }
    }

    #[test]
    fn what_is_no_number_is_not_hidden() {
        let found = run(&[f32::NAN, 1.0, 1.0], &[1.0, f32::NAN, 1.0]);
        assert!(found[0].is_nan() && found[1].is_nan() && found[2].is_finite());
    }
}
