//! [`Projection`]: what stands where a plain decoder has a `Linear`.

use burn::module::ModuleDisplay;
use burn::nn::Linear;
use burn::prelude::*;

use crate::dense::LtiDense;
use crate::kernels::linear;

/// A projection of a decoder: ordinary, or a learnable map of the teacher's.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // Burn has no module for a `Box`
pub enum Projection<B: Backend> {
    /// An ordinary projection.
    Linear(Linear<B>),
    /// A map.
    Lti(LtiDense<B>),
}

/// Anything that projects the last axis, so that a decoder can be generic over its projections.
pub trait Project<B: Backend>: Module<B> + ModuleDisplay {
    /// `[..., d_input] -> [..., d_output]`
    fn project<const D: usize>(&self, input: Tensor<B, D>) -> Tensor<B, D>;
}

impl<B: Backend> Project<B> for Linear<B> {
    fn project<const D: usize>(&self, input: Tensor<B, D>) -> Tensor<B, D> {
        linear(input, self)
    }
}

impl<B: Backend> Project<B> for LtiDense<B> {
    fn project<const D: usize>(&self, input: Tensor<B, D>) -> Tensor<B, D> {
        self.forward(input)
    }
}

impl<B: Backend> Project<B> for Projection<B> {
    fn project<const D: usize>(&self, input: Tensor<B, D>) -> Tensor<B, D> {
        match self {
            Self::Linear(linear) => linear.project(input),
            Self::Lti(lti) => lti.forward(input),
        }
    }
}
