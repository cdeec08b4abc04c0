//! [`Projection`]: what stands where a plain decoder has a weight.

use burn::module::ModuleDisplay;
use burn::nn::{Embedding, Linear};
use burn::prelude::*;

use crate::kernels::linear;
use crate::map::LtiDense;

/// A weight of a decoder: ordinary, or a learnable map of the teacher's.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // Burn has no module for a `Box`
pub enum Projection<B: Backend> {
    /// An ordinary weight. A table of embeddings, too, projects tokens, one-hot.
    Linear(Linear<B>),
    /// A map.
    Lti(LtiDense<B>),
}

/// Anything that projects the last axis, so that a decoder can be generic over its weights.
pub trait Project<B: Backend>: Module<B> + ModuleDisplay {
    /// `[..., d_input] -> [..., d_output]`
    fn project<const D: usize>(&self, input: Tensor<B, D>) -> Tensor<B, D>;

    /// Its weight, `[d_input, d_output]`, on the graph.
    fn weight(&self) -> Tensor<B, 2>;

    /// Whether its weight changes in training.
    fn trains(&self) -> bool;

    /// What it makes of tokens, each of which is one of its inputs: `[batch, tokens] ->
    /// [batch, tokens, d_output]`.
    fn lookup(&self, tokens: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        burn::tensor::module::embedding(self.weight(), tokens)
    }
}

impl<B: Backend> Project<B> for Linear<B> {
    fn project<const D: usize>(&self, input: Tensor<B, D>) -> Tensor<B, D> {
        linear(input, self)
    }

    fn weight(&self) -> Tensor<B, 2> {
        self.weight.val()
    }

    fn trains(&self) -> bool {
        self.weight.is_require_grad()
    }
}

impl<B: Backend> Project<B> for Embedding<B> {
    fn project<const D: usize>(&self, input: Tensor<B, D>) -> Tensor<B, D> {
        crate::kernels::projected(input, self.weight.val(), None)
    }

    fn weight(&self) -> Tensor<B, 2> {
        self.weight.val()
    }

    fn trains(&self) -> bool {
        self.weight.is_require_grad()
    }
}

impl<B: Backend> Project<B> for LtiDense<B> {
    fn project<const D: usize>(&self, input: Tensor<B, D>) -> Tensor<B, D> {
        self.forward(input)
    }

    fn weight(&self) -> Tensor<B, 2> {
        self.kernel()
    }

    fn trains(&self) -> bool {
        true
    }
}

impl<B: Backend> Project<B> for Projection<B> {
    fn project<const D: usize>(&self, input: Tensor<B, D>) -> Tensor<B, D> {
        match self {
            Self::Linear(linear) => linear.project(input),
            Self::Lti(lti) => lti.forward(input),
        }
    }

    fn weight(&self) -> Tensor<B, 2> {
        match self {
            Self::Linear(linear) => linear.weight.val(),
            Self::Lti(lti) => lti.kernel(),
        }
    }

    fn trains(&self) -> bool {
        match self {
            Self::Linear(linear) => linear.trains(),
            Self::Lti(lti) => lti.trains(),
        }
    }
}
