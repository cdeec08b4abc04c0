//! An operation with a gradient of its own, on the graph of whatever backend there is.
//!
//! Burn asks for a backend trait of one's own for such an operation, and every function and module above
//! would have to name that trait. Here the operation is generic over the inner backend, and one function
//! tries the autodiff backends that this build has, by their types; with another one the same function is
//! made of tensor operations.

use std::any::TypeId;
use std::fmt::Debug;

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::prelude::*;
use burn::tensor::TensorPrimitive;
use burn::tensor::ops::FloatTensor;

use crate::cast::cast;

/// A function of `N` tensors.
pub(super) trait Operation<const N: usize>: Clone + Debug + Send + Sync + 'static {
    /// What the backward pass needs.
    type Kept<I: Backend>: Clone + Debug + Send + 'static;

    fn forward<I: Backend>(self, inputs: [FloatTensor<I>; N]) -> FloatTensor<I>;

    /// The backward pass will want the gradients of the inputs that are `wanted`, and no others.
    fn forward_keeping<I: Backend>(
        self,
        inputs: [FloatTensor<I>; N],
        wanted: [bool; N],
    ) -> (FloatTensor<I>, Self::Kept<I>);

    /// The gradients of the inputs out of that of the output; those that are not `wanted` may be `None`.
    fn backward<I: Backend>(
        self,
        kept: Self::Kept<I>,
        gradient: FloatTensor<I>,
        wanted: [bool; N],
    ) -> [Option<FloatTensor<I>>; N];

    /// The same function in differentiable tensor operations.
    fn plain<B: Backend>(self, inputs: [FloatTensor<B>; N]) -> FloatTensor<B>;
}

/// The output of `operation`, on the graph where there is one.
pub(super) fn apply<B: Backend, O: Operation<N>, const N: usize>(
    operation: O,
    device: &B::Device,
    inputs: [FloatTensor<B>; N],
) -> FloatTensor<B> {
    if !B::ad_enabled(device) {
        return operation.forward::<B>(inputs);
    }
    let mut inputs = inputs;
    macro_rules! try_backends {
        ($($feature:literal $backend:ident),*) => {$(
            #[cfg(feature = $feature)]
            match on_graph::<B, crate::backend::$backend, O, N>(&operation, inputs) {
                Ok(output) => return output,
                Err(given_back) => inputs = given_back,
            }
        )*};
    }
    try_backends!["flex" Flex, "ndarray" NdArray, "tch" LibTorch, "wgpu" Wgpu, "cuda" Cuda,
        "rocm" Rocm, "cpu" Cpu];
    operation.plain::<B>(inputs)
}

/// The operation on the graph of `Autodiff<I>`, if that is what `B` is; else its inputs.
fn on_graph<B: Backend, I: Backend, O: Operation<N>, const N: usize>(
    operation: &O,
    inputs: [FloatTensor<B>; N],
) -> Result<FloatTensor<B>, [FloatTensor<B>; N]> {
    if TypeId::of::<B>() != TypeId::of::<Autodiff<I>>() {
        return Err(inputs);
    }
    let inputs = inputs.map(same::<_, FloatTensor<Autodiff<I>>>);
    let nodes = std::array::from_fn(|index| inputs[index].node.clone());
    // Another thread may go backwards on this graph: until the operation is on it, its parents must not
    // look as if nobody needed them.
    let _alive = inputs.each_ref().map(|input| input.rc.clone());
    let wanted = inputs.each_ref().map(|input| input.is_tracked());
    let inputs = inputs.map(|input| input.primitive);
    let prepared = Backward::<I, N>::prepare::<NoCheckpointing>(OnGraph(operation.clone()), nodes);
    let output = match prepared.compute_bound().stateful() {
        OpsKind::Tracked(tracked) => {
            let (output, kept) = operation.clone().forward_keeping::<I>(inputs, wanted);
            tracked.finish(kept, output)
        }
        OpsKind::UnTracked(untracked) => untracked.finish(operation.clone().forward::<I>(inputs)),
    };
    Ok(same(output))
}

/// A primitive of a backend that was found to be another.
fn same<X: 'static, Y: 'static>(primitive: X) -> Y {
    cast(primitive).unwrap_or_else(|_| unreachable!("the type of the backend was compared before"))
}

#[derive(Debug)]
struct OnGraph<O>(O);

impl<I: Backend, O: Operation<N>, const N: usize> Backward<I, N> for OnGraph<O> {
    type State = O::Kept<I>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<I>(&ops.node);
        let wanted = std::array::from_fn(|index| ops.parents[index].is_some());
        let gradients = self.0.backward::<I>(ops.state, gradient, wanted);
        for (node, gradient) in ops.parents.into_iter().zip(gradients) {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                grads.register::<I>(node.id, gradient);
            }
        }
    }
}

/// A primitive as a tensor of its rank.
pub(super) fn tensor<I: Backend, const D: usize>(primitive: FloatTensor<I>) -> Tensor<I, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

/// A tensor as the primitive that it is of.
pub(super) fn primitive<I: Backend, const D: usize>(tensor: Tensor<I, D>) -> FloatTensor<I> {
    tensor.into_primitive().tensor()
}
