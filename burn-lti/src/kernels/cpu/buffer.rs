//! The numbers of a tensor in a CPU's memory.

use burn::prelude::*;
#[cfg(feature = "tch")]
use burn::tensor::TensorPrimitive;
use rayon::prelude::*;

use super::threads::whole_rows;

/// Tensors of float32 of a backend in Rust with their numbers written over: where they are if no other tensor
/// has them, else in a copy.
pub(crate) fn in_place<B: Backend, const N: usize, const D: usize>(
    tensors: [Tensor<B, D>; N],
    write: impl FnOnce([&mut [f32]; N]),
) -> [Tensor<B, D>; N] {
    let device = tensors[0].device();
    let mut data = tensors.map(<Tensor<B, D>>::into_data);
    write(data.each_mut().map(floats_mut));
    data.map(|data| Tensor::from_data(data, &device))
}

/// `tensor` written over as [`in_place`], as many rows of `width` numbers at a time as a thread takes, each
/// time beside those of `other`, which is as large.
pub(crate) fn rows_in_place<B: Backend, const D: usize>(
    tensor: Tensor<B, D>,
    other: Tensor<B, D>,
    width: usize,
    write: impl Fn(&mut [f32], &[f32]) + Sync,
) -> Tensor<B, D> {
    let (other, rows) = (other.into_data(), whole_rows(width));
    let [tensor] = in_place([tensor], |[tensor]| {
        tensor
            .par_chunks_mut(rows)
            .zip(floats(&other).par_chunks(rows))
            .for_each(|(tensor, other)| write(tensor, other));
    });
    tensor
}

/// What was found to be float32 when the form was chosen.
pub(crate) fn floats(data: &TensorData) -> &[f32] {
    match data.as_slice() {
        Ok(floats) => floats,
        Err(_) => unreachable!("it was seen before that these are float32"),
    }
}

fn floats_mut(data: &mut TensorData) -> &mut [f32] {
    match data.as_mut_slice() {
        Ok(floats) => floats,
        Err(_) => unreachable!("it was seen before that these are float32"),
    }
}

/// A tensor of float32 on a CPU, as numbers in a row: where they are if no other tensor
/// has them, else as a copy.
pub(crate) enum CpuBuffer<B: Backend> {
    /// As the backend hands them over.
    Data(TensorData, B::Device),
    /// libtorch's own memory, which the tensor keeps.
    #[cfg(feature = "tch")]
    Torch(torch::Owned),
}

impl<B: Backend> CpuBuffer<B> {
    /// # Safety
    ///
    /// `tensor` must be on a CPU, and what an operation allocated for its result, as a product does, or a
    /// clone of that, and no view of another tensor: burn-tch counts who has a tensor, and does not know of
    /// all views.
    pub(crate) unsafe fn of_result<const D: usize>(tensor: Tensor<B, D>) -> Self {
        let device = tensor.device();
        #[cfg(feature = "tch")]
        let tensor = match torch::Owned::of(tensor.into_primitive().tensor()) {
            Ok(owned) => return Self::Torch(owned),
            Err(primitive) => Tensor::from_primitive(TensorPrimitive::Float(primitive)),
        };
        Self::Data(<Tensor<B, D>>::into_data(tensor), device)
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        match self {
            Self::Data(data, _) => floats_mut(data),
            #[cfg(feature = "tch")]
            Self::Torch(owned) => owned.as_mut_slice(),
        }
    }

    pub(crate) fn into_tensor<const D: usize>(self) -> Tensor<B, D> {
        match self {
            Self::Data(data, device) => Tensor::from_data(data, &device),
            #[cfg(feature = "tch")]
            Self::Torch(owned) => {
                Tensor::from_primitive(TensorPrimitive::Float(owned.into_primitive()))
            }
        }
    }
}

#[cfg(feature = "tch")]
mod torch {
    use burn::backend::libtorch::TchTensor;
    use burn::tensor::{DType, TensorMetadata};

    use crate::kernels::cast::{cast, same};

    /// A tensor of libtorch's that is contiguous float32 in a CPU's memory, and no other tensor's.
    pub(crate) struct Owned(TchTensor);

    impl Owned {
        /// Of a tensor's primitive, which is in a CPU's memory and no view; back if it is none of
        /// libtorch's.
        pub(super) fn of<P: 'static>(primitive: P) -> Result<Self, P> {
            let torch: TchTensor = cast(primitive)?;
            if torch.dtype() != DType::F32 {
                return Err(same(torch));
            }
            Ok(Self(match torch.storage.can_mut() {
                true if torch.tensor.is_contiguous() => torch,
                _ => TchTensor::new(torch.tensor.contiguous().copy()),
            }))
        }

        pub(super) fn as_mut_slice(&mut self) -> &mut [f32] {
            let tensor = &self.0.tensor;
            if tensor.numel() == 0 {
                return &mut []; // it may have no memory
            }
            // SAFETY: `of` has seen that these are float32, one after another, and that nobody else has this
            // tensor, whose memory by `CpuBuffer::of_result` is a CPU's and no other tensor's; it lives
            // as long as the tensor, which is borrowed.
            unsafe {
                std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<f32>(), tensor.numel())
            }
        }

        pub(super) fn into_primitive<P: 'static>(self) -> P {
            same(self.0)
        }
    }
}
