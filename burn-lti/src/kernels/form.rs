//! [`Form`]: how an operation is computed. The one place where that is chosen, by device and float type.

use std::any::Any;

use burn::prelude::*;
use burn::tensor::DType;

/// How an operation is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// In tensor operations: any device, any float type, and any autodiff backend, which may take their
    /// gradient itself.
    Tensors,
    /// In loops over float32 in a CPU's memory.
    Cpu,
}

impl Form {
    /// For loops that run on flex and ndarray, which hand over a tensor's numbers without a copy. libtorch
    /// has loops of its own.
    pub(super) fn on_rust_backends<B: Backend, const N: usize, const D: usize>(
        tensors: [&Tensor<B, D>; N],
    ) -> Self {
        Self::of(tensors, is_rust)
    }

    /// For loops that run on every CPU: those that are better than libtorch's by more than a copy costs.
    pub(super) fn on_every_cpu<B: Backend, const N: usize, const D: usize>(
        tensors: [&Tensor<B, D>; N],
    ) -> Self {
        Self::of(tensors, is_cpu)
    }

    fn of<B: Backend, const N: usize, const D: usize>(
        tensors: [&Tensor<B, D>; N],
        suits: fn(&dyn Any) -> bool,
    ) -> Self {
        let float32 = |tensor: &&Tensor<B, D>| tensor.dtype() == DType::F32;
        match suits(&tensors[0].device()) && tensors.iter().all(float32) {
            true => Self::Cpu,
            false => Self::Tensors,
        }
    }
}

/// Whether a device computes in a CPU's memory, where an operation may have a loop of its own.
pub(crate) fn is_cpu(device: &dyn Any) -> bool {
    #[cfg(feature = "tch")]
    if let Some(device) = device.downcast_ref::<burn::backend::libtorch::LibTorchDevice>() {
        return matches!(device, burn::backend::libtorch::LibTorchDevice::Cpu);
    }
    is_rust(device)
}

/// Whether it is one of a backend in Rust.
fn is_rust(device: &dyn Any) -> bool {
    #[cfg(feature = "flex")]
    if device.is::<burn::backend::flex::FlexDevice>() {
        return true;
    }
    #[cfg(feature = "ndarray")]
    if device.is::<burn::backend::ndarray::NdArrayDevice>() {
        return true;
    }
    let _ = device; // a build may have none of them
    false
}
