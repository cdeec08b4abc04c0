//! Element-wise work of a decoder in one pass, forwards and backwards.
//!
//! As tensor operations [`gated_silu`] keeps four tensors for the backward pass and walks over memory a
//! dozen times. As one operation it keeps its two inputs. Its gradient is written out, and on the CPU
//! backends of Rust both directions are a loop on all cores and lanes.
//!
//! Burn asks for a backend trait of one's own where an operation has its own gradient, and every function
//! and module above would have to name that trait. Here the operation is generic over the inner backend,
//! and one function tries the autodiff backends that this build has, by their types; with another one the
//! same function is made of tensor operations.

use std::any::{Any, TypeId};

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::prelude::*;
use burn::tensor::TensorPrimitive;
use burn::tensor::activation::{sigmoid, silu};
use burn::tensor::ops::FloatTensor;

mod lanes;

/// `silu(gate) * up`, element by element, where `silu(x) = x / (1 + exp(-x))`: what is between the
/// projections of a gated feed-forward block (Shazeer 2020, SwiGLU).
///
/// Equal to the tensor operations up to rounding, in the float type of its inputs.
///
/// # Shapes
///
/// `gate`, `up` and the result: `[rows, features]`.
pub fn gated_silu<B: Backend>(gate: Tensor<B, 2>, up: Tensor<B, 2>) -> Tensor<B, 2> {
    if !B::ad_enabled(&gate.device()) {
        return forward(gate, up);
    }
    let mut inputs = [gate, up];
    macro_rules! try_backends {
        ($($feature:literal $backend:ident),*) => {$(
            #[cfg(feature = $feature)]
            match on_graph::<B, crate::backend::$backend>(inputs) {
                Ok(output) => return output,
                Err(given_back) => inputs = given_back,
            }
        )*};
    }
    try_backends!["flex" Flex, "ndarray" NdArray, "tch" LibTorch, "wgpu" Wgpu, "cuda" Cuda,
        "rocm" Rocm, "cpu" Cpu];
    let [gate, up] = inputs;
    silu(gate) * up
}

/// The operation on the graph of `Autodiff<I>`, if that is what `B` is; else its inputs.
fn on_graph<B: Backend, I: Backend>(
    [gate, up]: [Tensor<B, 2>; 2],
) -> Result<Tensor<B, 2>, [Tensor<B, 2>; 2]> {
    if TypeId::of::<B>() != TypeId::of::<Autodiff<I>>() {
        return Err([gate, up]);
    }
    let gate: FloatTensor<Autodiff<I>> = same(gate.into_primitive().tensor());
    let up: FloatTensor<Autodiff<I>> = same(up.into_primitive().tensor());
    let output = forward(
        tensor::<I>(gate.primitive.clone()),
        tensor::<I>(up.primitive.clone()),
    );
    let output = output.into_primitive().tensor();
    let nodes = [gate.node.clone(), up.node.clone()];
    let operation = Backward::<I, 2>::prepare::<NoCheckpointing>(GatedSilu, nodes);
    let output = match operation.compute_bound().stateful() {
        OpsKind::Tracked(tracked) => tracked.finish((gate.primitive, up.primitive), output),
        OpsKind::UnTracked(untracked) => untracked.finish(output),
    };
    Ok(Tensor::from_primitive(TensorPrimitive::Float(same(output))))
}

fn tensor<I: Backend>(primitive: FloatTensor<I>) -> Tensor<I, 2> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

/// A value by another name of its type.
fn same<X: 'static, Y: 'static>(value: X) -> Y {
    let mut value = Some(value);
    let value: &mut dyn Any = &mut value;
    match value.downcast_mut::<Option<Y>>().and_then(Option::take) {
        Some(value) => value,
        None => unreachable!("the type of the backend was compared before"),
    }
}

/// With `s = 1 / (1 + exp(-gate))`: `d up = d gate s`, `d gate = d up s (1 + gate (1 - s))`, each times
/// the gradient of the output.
#[derive(Debug)]
struct GatedSilu;

impl<I: Backend> Backward<I, 2> for GatedSilu {
    type State = (FloatTensor<I>, FloatTensor<I>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [of_gate, of_up] = ops.parents;
        let gradient = grads.consume::<I>(&ops.node);
        let (gate, up) = ops.state;
        let [gate, up] = backward::<I>(tensor(gate), tensor(up), tensor(gradient));
        for (node, gradient) in [(of_gate, gate), (of_up, up)] {
            if let Some(node) = node {
                grads.register::<I>(node.id, gradient.into_primitive().tensor());
            }
        }
    }
}

fn forward<I: Backend>(gate: Tensor<I, 2>, up: Tensor<I, 2>) -> Tensor<I, 2> {
    match lanes::suit([&gate, &up]) {
        true => lanes::forward(gate, up),
        false => silu(gate) * up,
    }
}

/// The gradients of gate and up.
fn backward<I: Backend>(
    gate: Tensor<I, 2>,
    up: Tensor<I, 2>,
    gradient: Tensor<I, 2>,
) -> [Tensor<I, 2>; 2] {
    if lanes::suit([&gate, &up, &gradient]) {
        return lanes::backward(gate, up, gradient);
    }
    let s = sigmoid(gate.clone());
    let weighted = gradient * s.clone();
    let slope = gate.clone() * (s.neg() + 1.0) + 1.0;
    [weighted.clone() * up * slope, weighted * gate]
}
