//! A number with a given gradient.

use burn::prelude::*;

use super::form::{Form, is_cpu};
use super::graph::{Operation, apply};

/// A number whose gradient with respect to `x` is `gradient`, of the same shape: that of `sum(x * gradient)`, without
/// that product where it can be. The number itself says nothing.
pub(crate) fn given_gradient<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    gradient: Tensor<B, D>,
) -> Tensor<B, 1> {
    let form = Form::of(is_cpu, [&x, &gradient]);
    apply(GivenGradient, form, [x, gradient]).sum()
}

#[derive(Clone, Copy, Debug)]
struct GivenGradient;

impl<const D: usize> Operation<2, D> for GivenGradient {
    /// That of the first input.
    type Saved<B: Backend> = Tensor<B, D>;

    /// `[1, ...]`
    fn forward<B: Backend>(
        &self,
        form: Form,
        [x, gradient]: [Tensor<B, D>; 2],
        [wanted, _]: [bool; 2],
    ) -> (Tensor<B, D>, Option<Self::Saved<B>>) {
        let gradient = gradient.detach();
        let number = match form {
            Form::Tensors => (x * gradient.clone()).sum().reshape([1; D]),
            Form::Cpu => Tensor::zeros([1; D], (&x.device(), x.dtype())),
        };
        (number, wanted.then_some(gradient))
    }

    fn backward<B: Backend>(
        &self,
        _: Form,
        saved: Self::Saved<B>,
        gradient: Tensor<B, D>,
        _: [bool; 2],
    ) -> [Option<Tensor<B, D>>; 2] {
        // As a rule the number is the end of its graph.
        let factor: f64 = gradient.into_scalar().elem();
        let gradient = match factor == 1.0 {
            true => saved,
            false => saved.mul_scalar(factor),
        };
        [Some(gradient), None]
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;

    use super::*;

    type On<I> = Tensor<Autodiff<I>, 2>;

    /// The gradients of the number and of twice the number.
    fn found<I: Backend>(number: fn(On<I>, On<I>) -> Tensor<Autodiff<I>, 1>) -> Vec<f32> {
        let device = Default::default();
        let gradient = On::<I>::from_data([[0.5, -1.0, 2.0], [0.0, 3.0, -4.0]], &device);
        let times = |factor: f32| {
            let x = On::<I>::from_data([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], &device);
            let x = x.require_grad();
            let number = number(x.clone(), gradient.clone()) * factor;
            x.grad(&number.backward()).expect("it is a leaf")
        };
        let both = Tensor::cat(vec![times(1.0), times(2.0)], 0);
        both.into_data().iter().collect()
    }

    macro_rules! on {
        ($($feature:literal $name:ident $backend:ident),*) => {$(
            #[cfg(feature = $feature)]
            #[test]
            fn $name() {
                use crate::backend::$backend;
                let expected = found::<$backend>(|x, gradient| (x * gradient).sum());
                assert_eq!(found::<$backend>(given_gradient), expected);
            }
        )*};
    }
    on!["flex" is_that_of_the_product_on_flex Flex, "ndarray" is_that_of_the_product_on_ndarray NdArray,
        "tch" is_that_of_the_product_on_tch LibTorch];
}
