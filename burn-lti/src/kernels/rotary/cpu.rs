//! Rotary positions in loops.

use burn::prelude::*;
use pulp::Arch;
use rayon::prelude::*;

use crate::kernels::cpu::{floats, in_place, whole_rows};

/// The rotation, or with `BACK` what it makes of gradients.
pub(super) fn rotate<B: Backend, const BACK: bool>(
    x: Tensor<B, 2>,
    cos: Tensor<B, 2>,
    sin: Tensor<B, 2>,
) -> Tensor<B, 2> {
    let ([_, width], [_, size]) = (x.dims(), cos.dims());
    if width == 0 {
        return x;
    }
    let (cos, sin) = (cos.into_data(), sin.into_data());
    let piece = whole_rows(width);
    let tables = piece / width * size;
    let [x] = in_place([x], |[x]| {
        x.par_chunks_mut(piece)
            .zip(floats(&cos).par_chunks(tables))
            .zip(floats(&sin).par_chunks(tables))
            .for_each(|((x, cos), sin)| {
                Arch::new().dispatch(|| {
                    let tables = cos.chunks_exact(size).zip(sin.chunks_exact(size));
                    for (x, (cos, sin)) in x.chunks_exact_mut(width).zip(tables) {
                        for x in x.chunks_exact_mut(size) {
                            rotate_head::<BACK>(x, cos, sin);
                        }
                    }
                });
            });
    });
    x
}

#[inline(always)]
fn rotate_head<const BACK: bool>(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = x.len() / 2;
    let (first, second) = x.split_at_mut(half);
    let ((cos, far_cos), (sin, far_sin)) = (cos.split_at(half), sin.split_at(half));
    for index in 0..half {
        let (a, b) = (first[index], second[index]);
        (first[index], second[index]) = match BACK {
            false => (
                a * cos[index] - b * sin[index],
                b * far_cos[index] + a * far_sin[index],
            ),
            true => (
                a * cos[index] + b * far_sin[index],
                b * far_cos[index] - a * sin[index],
            ),
        };
    }
}
