//! `input weight`

use burn::nn::Linear;
use burn::prelude::*;
use burn::tensor::ops::FloatTensor;

use super::operation::{Operation, apply, primitive, tensor};
use crate::host::{is_host, product};

/// `input [..., d_input] -> [..., d_output]`, what a [`Linear`] makes of it.
///
/// The input's axes but the last are joined first: Burn's gradient of a product with more than two is
/// batched, and summed afterwards.
///
/// # Panics
///
/// As any Burn layer, if the last axis of `input` is not `d_input`.
pub fn linear<B: Backend, const D: usize>(input: Tensor<B, D>, linear: &Linear<B>) -> Tensor<B, D> {
    let bias = linear.bias.as_ref().map(|bias| bias.val());
    projected(input, linear.weight.val(), bias)
}

/// `input [..., d_input]` times `weight [d_input, d_output]`, and `bias [d_output]` added.
pub(crate) fn projected<B: Backend, const D: usize>(
    input: Tensor<B, D>,
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
) -> Tensor<B, D> {
    let [d_input, d_output] = weight.dims();
    let mut shape = input.dims();
    let rows = shape[..D - 1].iter().product::<usize>();
    shape[D - 1] = d_output;
    let output = multiplied(input.reshape([rows, d_input]), weight);
    let output = match bias {
        Some(bias) => {
            let dtype = output.dtype();
            output + bias.cast(dtype).unsqueeze()
        }
        None => output,
    };
    output.reshape(shape)
}

/// `[m, k]` times `[k, n]`.
fn multiplied<B: Backend>(left: Tensor<B, 2>, right: Tensor<B, 2>) -> Tensor<B, 2> {
    let device = left.device();
    if !is_host(&device) {
        return left.matmul(right);
    }
    let factors = [primitive(left), primitive(right)];
    tensor(apply::<B, _, 2>(Product, &device, factors))
}

/// With `g` the gradient of the product, `d left = g right^T`, `d right = left^T g`.
#[derive(Clone, Copy, Debug)]
struct Product;

impl Operation<2> for Product {
    /// Of either factor, what the gradient of the other needs.
    type Kept<I: Backend> = [Option<FloatTensor<I>>; 2];

    fn forward<I: Backend>(self, [left, right]: [FloatTensor<I>; 2]) -> FloatTensor<I> {
        primitive(product::<I>(tensor(left), tensor(right)))
    }

    fn forward_keeping<I: Backend>(
        self,
        [left, right]: [FloatTensor<I>; 2],
        [of_left, of_right]: [bool; 2],
    ) -> (FloatTensor<I>, Self::Kept<I>) {
        let kept = [
            of_right.then(|| left.clone()),
            of_left.then(|| right.clone()),
        ];
        (self.forward::<I>([left, right]), kept)
    }

    fn backward<I: Backend>(
        self,
        [left, right]: Self::Kept<I>,
        gradient: FloatTensor<I>,
        [of_left, of_right]: [bool; 2],
    ) -> [Option<FloatTensor<I>>; 2] {
        let gradient = tensor::<I, 2>(gradient);
        let transposed = |factor| tensor::<I, 2>(factor).transpose();
        let right = right.filter(|_| of_left).map(transposed);
        let left = left.filter(|_| of_right).map(transposed);
        [
            right.map(|right| primitive(product(gradient.clone(), right))),
            left.map(|left| primitive(product(left, gradient))),
        ]
    }

    fn plain<B: Backend>(self, [left, right]: [FloatTensor<B>; 2]) -> FloatTensor<B> {
        primitive(tensor::<B, 2>(left).matmul(tensor(right)))
    }
}
