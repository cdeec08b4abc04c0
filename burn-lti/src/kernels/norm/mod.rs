//! `x / sqrt(mean(x^2) + epsilon) * gamma`

mod cpu;

use burn::prelude::*;
use burn::tensor::DType;

use super::form::{Form, is_rust};
use super::graph::{Operation, apply};
use crate::compat::at_least_float32;

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
    let gamma = gamma.unsqueeze();
    let form = Form::of(is_rust, [&x, &gamma]);
    apply(RmsNorm { epsilon }, form, [x, gamma])
}

/// With `r = 1 / sqrt(mean(x^2) + epsilon)` and `g` the gradient of the output times gamma:
/// `d x = r g - x r^3 mean(g x)`, `d gamma` the sum over rows of the output's gradient times `x r`.
#[derive(Clone, Copy, Debug)]
struct RmsNorm {
    epsilon: f64,
}

impl Operation<2, 2> for RmsNorm {
    /// Both inputs, gamma as one row.
    type Saved<B: Backend> = [Tensor<B, 2>; 2];

    fn forward<B: Backend>(
        &self,
        form: Form,
        inputs: [Tensor<B, 2>; 2],
        wanted: [bool; 2],
    ) -> (Tensor<B, 2>, Option<Self::Saved<B>>) {
        let saved = wanted.contains(&true).then(|| inputs.clone());
        let [x, gamma] = inputs;
        let output = match form {
            Form::Tensors => {
                let size = self.size(&x).cast(x.dtype());
                x / size * gamma
            }
            Form::Cpu => cpu::forward(x, gamma, self.epsilon as f32),
        };
        (output, saved)
    }

    fn backward<B: Backend>(
        &self,
        form: Form,
        [x, gamma]: Self::Saved<B>,
        gradient: Tensor<B, 2>,
        [of_x, of_gamma]: [bool; 2],
    ) -> [Option<Tensor<B, 2>>; 2] {
        let gamma_gradient = of_gamma.then(|| {
            let normed = x.clone() / self.size(&x).cast(x.dtype());
            (normed * gradient.clone()).sum_dim(0)
        });
        let x_gradient = of_x.then(|| match form {
            Form::Tensors => {
                let dtype = x.dtype();
                let wide = at_least_float32(dtype);
                let (x, gamma, gradient) = (x.cast(wide), gamma.cast(wide), gradient.cast(wide));
                let size = self.size(&x).cast(wide);
                let weighted = gradient * gamma;
                let along = (weighted.clone() * x.clone()).mean_dim(1) / size.clone().square();
                ((weighted - x * along) / size).cast(dtype)
            }
            Form::Cpu => cpu::gradient_of_x(x, gamma, gradient, self.epsilon as f32),
        });
        [x_gradient, gamma_gradient]
    }
}

impl RmsNorm {
    /// `sqrt(mean(x^2) + epsilon) [rows, 1]`
    fn size<B: Backend>(self, x: &Tensor<B, 2>) -> Tensor<B, 2> {
        let squares = x.clone().cast(DType::F32).square();
        (squares.mean_dim(1) + self.epsilon).sqrt()
    }
}
