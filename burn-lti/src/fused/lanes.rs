//! What the loops of the CPU backends of Rust have in common.

use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use pulp::Simd;

use crate::host::{self, exp};

/// Elements that a thread takes at a time: three tensors' worth is in its second cache.
pub(super) const PIECE: usize = 1 << 13;

/// Whether these tensors go through the loops. libtorch has loops of its own.
pub(super) fn suit<I: Backend, const D: usize, const N: usize>(
    tensors: [&Tensor<I, D>; N],
) -> bool {
    let device = tensors[0].device();
    host::is_rust(&device) && tensors.iter().all(|tensor| tensor.dtype() == DType::F32)
}

/// Whether the numbers of these tensors are the host's, for loops that are better than libtorch's by more
/// than a copy costs.
pub(super) fn suit_copied<I: Backend, const D: usize, const N: usize>(
    tensors: [&Tensor<I, D>; N],
) -> bool {
    let device = tensors[0].device();
    host::is_host(&device) && tensors.iter().all(|tensor| tensor.dtype() == DType::F32)
}

/// Elements that a thread takes at a time where they come in rows of `width`.
pub(super) fn whole_rows(width: usize) -> usize {
    (PIECE / width.max(1)).max(1) * width.max(1)
}

pub(super) fn floats(data: &TensorData) -> &[f32] {
    match data.as_slice() {
        Ok(floats) => floats,
        Err(_) => unreachable!("`suit` has seen that it is float32"),
    }
}

pub(super) fn floats_mut(data: &mut TensorData) -> &mut [f32] {
    match data.as_mut_slice() {
        Ok(floats) => floats,
        Err(_) => unreachable!("`suit` has seen that it is float32"),
    }
}

/// Below it an exponential is taken to be zero: it is at most 1.6e-38 of the row's largest.
pub(super) const LEAST: f32 = -87.0;

/// `exp(x)` for `x <= 0`, zero below [`LEAST`]. NaN stays NaN.
#[inline(always)]
pub(super) fn exponential<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // What is no number is not less than another one.
    let far = simd.less_than_f32s(x, simd.splat_f32s(LEAST));
    simd.select_f32s(far, simd.splat_f32s(0.0), exp(simd, x))
}

/// Sum of the products of equal places.
#[inline(always)]
pub(super) fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = S::as_simd_f32s(a);
    let (b, b_rest) = S::as_simd_f32s(b);
    let last = simd.mul_f32s(
        simd.partial_load_f32s(a_rest),
        simd.partial_load_f32s(b_rest),
    );
    // Four sums, so that none waits for the one before.
    let mut sums = [
        last,
        simd.splat_f32s(0.0),
        simd.splat_f32s(0.0),
        simd.splat_f32s(0.0),
    ];
    for (index, (a, b)) in a.iter().zip(b).enumerate() {
        sums[index % 4] = simd.mul_add_e_f32s(*a, *b, sums[index % 4]);
    }
    let [first, second, third, fourth] = sums;
    simd.reduce_sum_f32s(simd.add_f32s(simd.add_f32s(first, second), simd.add_f32s(third, fourth)))
}
