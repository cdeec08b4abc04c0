//! How parameters are made, detached and frozen, which Burn 0.22 will change most, how tensors are
//! summed, and in which type.
//!
//! Burn 0.22 drops the backend parameter and turns backpropagation into a property of the device.
//! The traps of 0.21 around gradient flags are dealt with here, so that no other module needs to
//! know them; `ARCHITECTURE.md` lists what else the port will touch.

use burn::module::{Param, ParamId};
use burn::prelude::*;
use burn::tensor::DType;
use burn::tensor::backend::AutodiffBackend;

/// A parameter that never trains: no gradient node, no optimizer state.
pub(crate) fn frozen<B: Backend, const D: usize>(value: Tensor<B, D>) -> Param<Tensor<B, D>> {
    Param::initialized(ParamId::new(), detached(value))
}

/// A parameter that trains, from a value that may have been computed.
pub(crate) fn trainable<B: Backend, const D: usize>(value: Tensor<B, D>) -> Param<Tensor<B, D>> {
    Param::from_tensor(detached(value))
}

/// A parameter that is no more than a shape until it is filled.
pub(crate) fn uninitialized<B: Backend, const D: usize>(
    shape: [usize; D],
    trains: bool,
    device: &B::Device,
) -> Param<Tensor<B, D>> {
    Param::uninitialized(
        ParamId::new(),
        move |device, _| Tensor::zeros(shape, device),
        device.clone(),
        trains,
        shape.into(),
    )
}

/// The value alone, on no graph.
///
/// `set_require_grad(false)` comes first, because `detach` keeps the flag of a leaf.
pub(crate) fn detached<B: Backend, const D: usize>(value: Tensor<B, D>) -> Tensor<B, D> {
    if value.is_require_grad() {
        value.set_require_grad(false)
    } else {
        value.detach()
    }
}

/// The tensor on the inner backend, off the graph.
pub(crate) fn inner<B: AutodiffBackend, const D: usize>(
    value: &Tensor<B, D>,
) -> Tensor<B::InnerBackend, D> {
    value.clone().inner()
}

/// The sum `[1]` of all elements, with the same bits every time.
///
/// `Tensor::sum` of Burn's GPU backends lets every work group add its part to one number as it ends
/// (`burn_cubecl::kernel::reduce::SumStrategy::OneShot`), in another order each time: a training
/// would not repeat itself. Here each row is summed by itself, then the sums of the rows.
pub(crate) fn total<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Tensor<B, 1> {
    let rows: Tensor<B, 1> = tensor.sum_dim(D - 1).flatten(0, D - 1);
    rows.sum_dim(0)
}

/// What is too fine for `dtype` is computed in this: float32 for half precision, else `dtype` itself.
pub(crate) const fn at_least_float32(dtype: DType) -> DType {
    match dtype {
        DType::F16 | DType::BF16 => DType::F32,
        other => other,
    }
}
