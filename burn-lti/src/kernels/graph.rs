//! [`Operation`]: a function with a gradient of its own, on the graph of whatever backend there is.
//!
//! Burn asks for a backend trait of one's own for such an operation, and every function and module above
//! would have to name that trait. Here the operation is generic over the inner backend, and one function
//! tries the autodiff backends that this build has, by their types; with another one the same function is
//! made of tensor operations. No other file knows of this.

use std::fmt::Debug;

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::prelude::*;
use burn::tensor::TensorPrimitive;
use burn::tensor::ops::FloatTensor;

use super::cast::{cast, same};
use super::form::Form;

/// A function of `N` tensors of `D` axes.
pub(super) trait Operation<const N: usize, const D: usize>:
    Clone + Debug + Send + Sync + 'static
{
    /// What the backward pass needs.
    type Saved<B: Backend>: Clone + Debug + Send + 'static;

    /// The output, and what gradients of the inputs that are `wanted` will need, if any is.
    ///
    /// In [`Form::Tensors`] all operations are such that Burn can take their gradient.
    fn forward<B: Backend>(
        &self,
        form: Form,
        inputs: [Tensor<B, D>; N],
        wanted: [bool; N],
    ) -> (Tensor<B, D>, Option<Self::Saved<B>>);

    /// The gradients of the inputs out of that of the output, in the form of the forward pass; those that
    /// are not `wanted` may be `None`.
    fn backward<B: Backend>(
        &self,
        form: Form,
        saved: Self::Saved<B>,
        gradient: Tensor<B, D>,
        wanted: [bool; N],
    ) -> [Option<Tensor<B, D>>; N];
}

/// The output of `operation`, on the graph where there is one.
pub(super) fn apply<B: Backend, O: Operation<N, D>, const N: usize, const D: usize>(
    operation: O,
    form: Form,
    inputs: [Tensor<B, D>; N],
) -> Tensor<B, D> {
    if !B::ad_enabled(&inputs[0].device()) {
        return operation.forward(form, inputs, [false; N]).0;
    }
    let mut inputs = inputs;
    macro_rules! try_backends {
        ($($feature:literal $backend:ident),*) => {$(
            #[cfg(feature = $feature)]
            match on_graph::<B, crate::backend::$backend, O, N, D>(&operation, form, inputs) {
                Ok(output) => return output,
                Err(given_back) => inputs = given_back,
            }
        )*};
    }
    try_backends!["flex" Flex, "ndarray" NdArray, "tch" LibTorch, "wgpu" Wgpu, "cuda" Cuda,
        "rocm" Rocm, "cpu" Cpu];
    operation.forward(Form::Tensors, inputs, [false; N]).0
}

/// The operation on the graph of `Autodiff<I>`, if that is what `B` is; else its inputs.
fn on_graph<B: Backend, I: Backend, O: Operation<N, D>, const N: usize, const D: usize>(
    operation: &O,
    form: Form,
    inputs: [Tensor<B, D>; N],
) -> Result<Tensor<B, D>, [Tensor<B, D>; N]> {
    let inputs: [Tensor<Autodiff<I>, D>; N] = cast(inputs)?;
    let inputs = inputs.map(|input| input.into_primitive().tensor());
    let nodes = std::array::from_fn(|index| inputs[index].node.clone());
    // Another thread may go backwards on this graph: until the operation is on it, its parents must not
    // look as if nobody needed them.
    let _alive = inputs.each_ref().map(|input| input.rc.clone());
    let wanted = inputs.each_ref().map(|input| input.is_tracked());
    let inputs = inputs.map(|input| tensor::<I, D>(input.primitive));
    let on_graph = OnGraph(operation.clone(), form);
    let prepared = Backward::<I, N>::prepare::<NoCheckpointing>(on_graph, nodes);
    let output = match prepared.compute_bound().stateful() {
        OpsKind::Tracked(tracked) => {
            let (output, saved) = operation.forward(form, inputs, wanted);
            tracked.finish(saved, primitive(output))
        }
        OpsKind::UnTracked(untracked) => {
            let (output, _) = operation.forward(form, inputs, [false; N]);
            untracked.finish(primitive(output))
        }
    };
    Ok(same(tensor::<Autodiff<I>, D>(output)))
}

#[derive(Debug)]
struct OnGraph<O, const D: usize>(O, Form);

impl<I: Backend, O: Operation<N, D>, const N: usize, const D: usize> Backward<I, N>
    for OnGraph<O, D>
{
    type State = Option<O::Saved<I>>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = tensor(grads.consume::<I>(&ops.node));
        let Some(saved) = ops.state else {
            return; // no gradient was wanted
        };
        let wanted = std::array::from_fn(|index| ops.parents[index].is_some());
        let Self(operation, form) = self;
        let gradients = operation.backward::<I>(form, saved, gradient, wanted);
        for (node, gradient) in ops.parents.into_iter().zip(gradients) {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                grads.register::<I>(node.id, primitive(gradient));
            }
        }
    }
}

fn tensor<I: Backend, const D: usize>(primitive: FloatTensor<I>) -> Tensor<I, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

fn primitive<I: Backend, const D: usize>(tensor: Tensor<I, D>) -> FloatTensor<I> {
    tensor.into_primitive().tensor()
}
