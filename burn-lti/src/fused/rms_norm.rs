//! `x / sqrt(mean(x^2) + epsilon) * gamma`

use burn::prelude::*;
use burn::tensor::DType;
use burn::tensor::ops::FloatTensor;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::lanes::{self, dot, floats, floats_mut, whole_rows};
use super::operation::{Operation, apply, primitive, tensor};
use crate::tensors::at_least_float32;

/// `x / sqrt(mean(x^2) + epsilon) * gamma`, the mean over the last axis (Zhang and Sennrich 2019).
///
/// Equal to Burn's `RmsNorm` up to rounding, in the float type of its inputs; the mean is float32.
///
/// # Shapes
///
/// `x` and the result: `[rows, features]`, `gamma [features]`.
///
/// # Panics
///
/// If they have other shapes.
pub fn rms_norm<B: Backend>(x: Tensor<B, 2>, gamma: Tensor<B, 1>, epsilon: f64) -> Tensor<B, 2> {
    assert_eq!(
        x.dims()[1..],
        gamma.dims(),
        "gamma has a number for each feature of x"
    );
    let device = x.device();
    let inputs = [primitive(x), primitive(gamma)];
    tensor(apply::<B, _, 2>(RmsNorm { epsilon }, &device, inputs))
}

/// With `r = 1 / sqrt(mean(x^2) + epsilon)` and `g` the gradient of the output times gamma:
/// `d x = r g - x r^3 mean(g x)`, `d gamma` the sum over rows of the output's gradient times `x r`.
#[derive(Clone, Copy, Debug)]
struct RmsNorm {
    epsilon: f64,
}

impl RmsNorm {
    /// `sqrt(mean(x^2) + epsilon) [rows, 1]`
    fn size<B: Backend>(self, x: &Tensor<B, 2>) -> Tensor<B, 2> {
        let squares = x.clone().cast(DType::F32).square();
        (squares.mean_dim(1) + self.epsilon).sqrt()
    }
}

impl Operation<2> for RmsNorm {
    /// Both inputs.
    type Kept<I: Backend> = [FloatTensor<I>; 2];

    fn forward<I: Backend>(self, [x, gamma]: [FloatTensor<I>; 2]) -> FloatTensor<I> {
        let (x, gamma) = (tensor::<I, 2>(x), tensor::<I, 1>(gamma));
        if !lanes::suit([&x, &gamma.clone().unsqueeze()]) {
            return self.plain::<I>([primitive(x), primitive(gamma)]);
        }
        let device = x.device();
        let [_, width] = x.dims();
        let (mut x, gamma) = (x.into_data(), gamma.into_data());
        let gamma = floats(&gamma);
        let epsilon = self.epsilon as f32;
        let pieces = floats_mut(&mut x).par_chunks_mut(whole_rows(width));
        pieces.for_each(|x| Arch::new().dispatch(Forward { x, gamma, epsilon }));
        primitive(Tensor::<I, 2>::from_data(x, &device))
    }

    fn forward_keeping<I: Backend>(
        self,
        inputs: [FloatTensor<I>; 2],
        _: [bool; 2],
    ) -> (FloatTensor<I>, Self::Kept<I>) {
        (self.forward::<I>(inputs.clone()), inputs)
    }

    fn backward<I: Backend>(
        self,
        [x, gamma]: Self::Kept<I>,
        gradient: FloatTensor<I>,
        [of_x, of_gamma]: [bool; 2],
    ) -> [Option<FloatTensor<I>>; 2] {
        let (x, gamma) = (tensor::<I, 2>(x), tensor::<I, 1>(gamma));
        let gradient = tensor::<I, 2>(gradient);
        let gamma_gradient = of_gamma.then(|| {
            let turned = x.clone() / self.size(&x).cast(x.dtype()) * gradient.clone();
            primitive::<I, 1>(turned.sum_dim(0).squeeze_dim(0))
        });
        let x_gradient = of_x.then(|| primitive(self.gradient_of_x(x, gamma, gradient)));
        [x_gradient, gamma_gradient]
    }

    fn plain<B: Backend>(self, [x, gamma]: [FloatTensor<B>; 2]) -> FloatTensor<B> {
        let (x, gamma) = (tensor::<B, 2>(x), tensor::<B, 1>(gamma));
        let size = self.size(&x).cast(x.dtype());
        primitive(x / size * gamma.unsqueeze())
    }
}

impl RmsNorm {
    fn gradient_of_x<I: Backend>(
        self,
        x: Tensor<I, 2>,
        gamma: Tensor<I, 1>,
        gradient: Tensor<I, 2>,
    ) -> Tensor<I, 2> {
        if !lanes::suit([&x, &gamma.clone().unsqueeze(), &gradient]) {
            let dtype = x.dtype();
            let wide = at_least_float32(dtype);
            let (x, gamma, gradient) = (x.cast(wide), gamma.cast(wide), gradient.cast(wide));
            let size = self.size(&x).cast(wide);
            let weighted = gradient * gamma.unsqueeze();
            let along = (weighted.clone() * x.clone()).mean_dim(1) / size.clone().square();
            return ((weighted - x * along) / size).cast(dtype);
        }
        let device = x.device();
        let [_, width] = x.dims();
        let (x, gamma) = (x.into_data(), gamma.into_data());
        let mut gradient = gradient.into_data();
        let (gamma, epsilon) = (floats(&gamma), self.epsilon as f32);
        let rows = whole_rows(width);
        floats_mut(&mut gradient)
            .par_chunks_mut(rows)
            .zip(floats(&x).par_chunks(rows))
            .for_each(|(gradient, x)| {
                let piece = Backward {
                    gradient,
                    x,
                    gamma,
                    epsilon,
                };
                Arch::new().dispatch(piece);
            });
        Tensor::from_data(gradient, &device)
    }
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
