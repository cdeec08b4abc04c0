//! [`Projection`]: what stands where a plain decoder has a weight.

use burn::module::{ModuleDisplay, Param};
use burn::nn::{Embedding, Linear};
use burn::prelude::*;

use crate::compat::frozen;
use crate::kernels::{PackedWeight, linear, lookup, projected};
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

/// A projection that is read far more often than it changes, as by generation: its kernel is made once.
///
/// On a CPU and in float32 it is also laid out for products, in a copy, and the result of a row does not depend
/// on the rows beside it, bit for bit. Else the product is the backend's.
///
/// ```
/// use burn::backend::Flex;
/// use burn::prelude::*;
/// use burn_lti::decoder::{PackedProjection, Project};
///
/// let weight = Tensor::<Flex, 2>::from_floats([[1.0, 2.0], [3.0, 4.0]], &Default::default());
/// let packed = PackedProjection::new(weight.clone(), None);
/// let input = Tensor::<Flex, 2>::from_floats([[1.0, 10.0]], &Default::default());
/// assert_eq!(packed.project(input).into_data(), TensorData::from([[31.0f32, 42.0]]));
/// assert_eq!(packed.weight().into_data(), weight.into_data());
/// ```
#[derive(Module, Debug)]
pub struct PackedProjection<B: Backend> {
    /// Without a number where there are panels.
    weight: Param<Tensor<B, 2>>,
    bias: Option<Param<Tensor<B, 1>>>,
    #[module(skip)]
    panels: Option<PackedWeight>,
}

impl<B: Backend> PackedProjection<B> {
    /// Of `weight [d_input, d_output]` and `bias [d_output]`.
    pub fn new(weight: Tensor<B, 2>, bias: Option<Tensor<B, 1>>) -> Self {
        let panels = PackedWeight::of(&weight);
        let weight = match panels {
            Some(_) => Tensor::empty([0, 0], &weight.device()),
            None => weight,
        };
        Self {
            weight: frozen(weight),
            bias: bias.map(frozen),
            panels,
        }
    }
}

/// Anything that projects the last axis, so that a decoder can be generic over its weights.
pub trait Project<B: Backend>: Module<B> + ModuleDisplay {
    /// `[..., d_input] -> [..., d_output]`
    fn project<const D: usize>(&self, input: Tensor<B, D>) -> Tensor<B, D>;

    /// Its weight, `[d_input, d_output]`, on the graph.
    fn weight(&self) -> Tensor<B, 2>;

    /// What is added to each row, `[d_output]`, on the graph.
    fn bias(&self) -> Option<Tensor<B, 1>>;

    /// Whether its weight changes in training.
    fn trains(&self) -> bool;

    /// The same for many products that want no gradient, its weight made once.
    fn packed(self) -> PackedProjection<B> {
        PackedProjection::new(self.weight(), self.bias())
    }

    /// What it makes of tokens, each of which is one of its inputs: `[batch, tokens] ->
    /// [batch, tokens, d_output]`.
    fn lookup(&self, tokens: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        lookup(self.weight(), tokens)
    }
}

impl<B: Backend> Project<B> for Linear<B> {
    fn project<const D: usize>(&self, input: Tensor<B, D>) -> Tensor<B, D> {
        linear(input, self)
    }

    fn weight(&self) -> Tensor<B, 2> {
        self.weight.val()
    }

    fn bias(&self) -> Option<Tensor<B, 1>> {
        self.bias.as_ref().map(|bias| bias.val())
    }

    fn trains(&self) -> bool {
        self.weight.is_require_grad()
    }
}

impl<B: Backend> Project<B> for Embedding<B> {
    fn project<const D: usize>(&self, input: Tensor<B, D>) -> Tensor<B, D> {
        projected(input, self.weight.val(), None)
    }

    fn weight(&self) -> Tensor<B, 2> {
        self.weight.val()
    }

    fn bias(&self) -> Option<Tensor<B, 1>> {
        None
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

    fn bias(&self) -> Option<Tensor<B, 1>> {
        LtiDense::bias(self)
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

    fn bias(&self) -> Option<Tensor<B, 1>> {
        match self {
            Self::Linear(linear) => Project::bias(linear),
            Self::Lti(lti) => Project::bias(lti),
        }
    }

    fn trains(&self) -> bool {
        match self {
            Self::Linear(linear) => linear.trains(),
            Self::Lti(lti) => lti.trains(),
        }
    }
}

impl<B: Backend> Project<B> for PackedProjection<B> {
    fn project<const D: usize>(&self, input: Tensor<B, D>) -> Tensor<B, D> {
        match &self.panels {
            Some(panels) => panels.project(input, self.bias()),
            None => projected(input, self.weight.val(), self.bias()),
        }
    }

    fn weight(&self) -> Tensor<B, 2> {
        match &self.panels {
            Some(panels) => panels.weight(&self.weight.device()),
            None => self.weight.val(),
        }
    }

    fn bias(&self) -> Option<Tensor<B, 1>> {
        self.bias.as_ref().map(|bias| bias.val())
    }

    fn trains(&self) -> bool {
        false
    }

    fn packed(self) -> Self {
        self
    }
}
