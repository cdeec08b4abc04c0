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
    /// That of an operation whose loops are for devices that `suit`: [`is_rust`], or [`is_cpu`] if they are
    /// better than libtorch's by more than a copy costs.
    pub(super) fn of<B: Backend, const N: usize, const D: usize>(
        suit: fn(&dyn Any) -> bool,
        tensors: [&Tensor<B, D>; N],
    ) -> Self {
        let float32 = tensors.iter().all(|tensor| tensor.dtype() == DType::F32);
        match float32 && suit(&tensors[0].device()) {
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

/// Whether it is one of flex or ndarray, which hand over a tensor's numbers without a copy. libtorch has loops
/// of its own.
pub(super) fn is_rust(device: &dyn Any) -> bool {
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
