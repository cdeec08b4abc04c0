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

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn::prelude::*;

    use super::multiplied;

    /// Small whole numbers, whose sums of products are exact, of which a gradient is wanted or not.
    fn numbers<I: Backend>(shape: [usize; 2], wanted: bool) -> Tensor<Autodiff<I>, 2> {
        let [rows, columns] = shape;
        let values = (0..rows * columns).map(|at| (at * 7 % 11) as f32 - 5.0);
        let data = TensorData::new(values.collect::<Vec<f32>>(), shape);
        Tensor::from_data(data, &Default::default()).set_require_grad(wanted)
    }

    /// The product, and the gradients of both factors where the product's is itself.
    fn found<I: Backend>(
        wanted: [bool; 2],
        product: impl Fn(Tensor<Autodiff<I>, 2>, Tensor<Autodiff<I>, 2>) -> Tensor<Autodiff<I>, 2>,
    ) -> [Option<Vec<f32>>; 3] {
        let left = numbers::<I>([70, 33], wanted[0]);
        let right = numbers::<I>([40, 33], wanted[1]);
        let output = product(left.clone(), right.clone().transpose());
        let weight = output.clone().detach();
        let gradients = (output.clone() * weight).sum().backward();
        let values = |tensor: Tensor<I, 2>| tensor.into_data().iter().collect();
        [
            Some(values(output.inner())),
            left.grad(&gradients).map(values),
            right.grad(&gradients).map(values),
        ]
    }

    fn gradients_are_those_of_burns_product<I: Backend>() {
        for wanted in [[true, true], [true, false], [false, true]] {
            let found_here = found::<I>(wanted, multiplied);
            let gradients = [&found_here[1], &found_here[2]].map(Option::is_some);
            assert_eq!(gradients, wanted);
            assert_eq!(found_here, found::<I>(wanted, Tensor::matmul));
        }
    }

    #[test]
    fn gradients_are_those_of_burns_product_on_every_backend_of_the_host() {
        #[cfg(feature = "flex")]
        gradients_are_those_of_burns_product::<crate::backend::Flex>();
        #[cfg(feature = "ndarray")]
        gradients_are_those_of_burns_product::<crate::backend::NdArray>();
        #[cfg(feature = "tch")]
        gradients_are_those_of_burns_product::<crate::backend::LibTorch>();
    }
}
