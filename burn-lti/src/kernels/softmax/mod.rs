//! `softmax(scores + mask)`

mod cpu;
mod row;

use burn::prelude::*;
use burn::tensor::activation::softmax;

pub use row::softmax_weights;

use super::form::{Form, is_rust};
use super::graph::{Operation, apply};

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
    let form = Form::of(is_rust, [&scores, &mask]);
    apply(MaskedSoftmax, form, [scores, mask])
}

/// `d scores = p (g - sum(g p))` with `p` the output and `g` its gradient.
#[derive(Clone, Copy, Debug)]
struct MaskedSoftmax;

impl Operation<2, 4> for MaskedSoftmax {
    /// The output.
    type Saved<B: Backend> = Tensor<B, 4>;

    fn forward<B: Backend>(
        &self,
        form: Form,
        [scores, mask]: [Tensor<B, 4>; 2],
        [wanted, _]: [bool; 2],
    ) -> (Tensor<B, 4>, Option<Self::Saved<B>>) {
        let output = match form {
            Form::Tensors => softmax(scores + mask.detach(), 3),
            Form::Cpu => cpu::forward(scores, mask),
        };
        let saved = wanted.then(|| output.clone());
        (output, saved)
    }

    fn backward<B: Backend>(
        &self,
        form: Form,
        output: Self::Saved<B>,
        gradient: Tensor<B, 4>,
        _: [bool; 2],
    ) -> [Option<Tensor<B, 4>>; 2] {
        let gradient = match form {
            Form::Tensors => {
                let weighted = output.clone() * gradient;
                let sums = weighted.clone().sum_dim(3);
                weighted - output * sums
            }
            Form::Cpu => cpu::gradient(output, gradient),
        };
        [Some(gradient), None]
    }
}
