//! Matrices in a CPU's memory, read where they are.

use burn::prelude::*;
#[cfg(feature = "tch")]
use burn::{backend::libtorch::TchTensor, tensor::TensorMetadata};

#[cfg(any(feature = "flex", feature = "ndarray", feature = "tch"))]
use crate::kernels::cast::cast;
use crate::kernels::form::is_cpu;

/// A matrix of float32 in a CPU's memory, which stays there while this is kept.
pub(crate) struct Matrix {
    pub(crate) memory: Memory,
    /// Rows and columns.
    pub(crate) shape: [usize; 2],
    pub(crate) numbers: Numbers,
}

/// Whose memory it is.
pub(crate) enum Memory {
    /// The tensor of a backend in Rust.
    #[cfg_attr(not(any(feature = "flex", feature = "ndarray")), expect(dead_code))]
    Rust { _kept: Box<dyn Send> },
    #[cfg(feature = "tch")]
    Torch(TchTensor),
}

/// Where the numbers of a matrix are.
#[derive(Clone, Copy)]
pub(crate) struct Numbers {
    pub(crate) first: *const f32,
    /// From a row to the next, and from a column.
    pub(crate) steps: [isize; 2],
}

// SAFETY: it reads only, and from memory that no thread writes to while there are readers.
unsafe impl Send for Numbers {}
unsafe impl Sync for Numbers {}

impl Numbers {
    /// Those from this place on.
    ///
    /// # Safety
    ///
    /// The matrix must have that place.
    pub(crate) unsafe fn from(self, [row, column]: [usize; 2]) -> Self {
        let [of_row, of_column] = self.steps;
        let offset = row as isize * of_row + column as isize * of_column;
        Self {
            // SAFETY: the caller's promise.
            first: unsafe { self.first.offset(offset) },
            ..self
        }
    }

    /// Rows as columns.
    pub(crate) fn turned(self) -> Self {
        let [of_row, of_column] = self.steps;
        Self {
            steps: [of_column, of_row],
            ..self
        }
    }
}

impl Matrix {
    /// None if it is not on a CPU, or not of float32.
    pub(crate) fn of<B: Backend>(tensor: &Tensor<B, 2>) -> Option<Self> {
        if !is_cpu(&tensor.device()) {
            return None;
        }
        let primitive = tensor.clone().into_primitive().tensor();
        #[cfg(feature = "flex")]
        let primitive = match cast::<_, burn_flex::FlexTensor>(primitive) {
            Ok(flex) => return of_flex(flex),
            Err(other) => other,
        };
        #[cfg(feature = "ndarray")]
        let primitive = match cast::<_, burn_ndarray::NdArrayTensor>(primitive) {
            Ok(ndarray) => return of_ndarray(ndarray),
            Err(other) => other,
        };
        #[cfg(feature = "tch")]
        let primitive = match cast::<_, TchTensor>(primitive) {
            Ok(torch) => return of_torch(torch),
            Err(other) => other,
        };
        drop(primitive); // of a CPU, but on a graph
        None
    }
}

#[cfg(feature = "flex")]
fn of_flex(tensor: burn_flex::FlexTensor) -> Option<Matrix> {
    if tensor.dtype() != burn::tensor::DType::F32 {
        return None;
    }
    let layout = tensor.layout();
    let shape = layout.shape().as_slice().try_into().ok()?;
    let steps = layout.strides().try_into().ok()?;
    let storage = tensor.storage::<f32>();
    let first = storage.get(layout.start_offset()..)?.as_ptr();
    Some(Matrix {
        memory: Memory::Rust {
            _kept: Box::new(tensor),
        },
        shape,
        numbers: Numbers { first, steps },
    })
}

#[cfg(feature = "ndarray")]
fn of_ndarray(tensor: burn_ndarray::NdArrayTensor) -> Option<Matrix> {
    let burn_ndarray::NdArrayTensor::F32(storage) = tensor else {
        return None;
    };
    let view = storage.view();
    let shape = view.shape().try_into().ok()?;
    let steps = view.strides().try_into().ok()?;
    let first = view.as_ptr();
    Some(Matrix {
        memory: Memory::Rust {
            _kept: Box::new(storage),
        },
        shape,
        numbers: Numbers { first, steps },
    })
}

#[cfg(feature = "tch")]
fn of_torch(tensor: TchTensor) -> Option<Matrix> {
    if tensor.dtype() != burn::tensor::DType::F32 {
        return None;
    }
    let (&[rows, columns], &[of_row, of_column]) =
        (&tensor.tensor.size()[..], &tensor.tensor.stride()[..])
    else {
        return None;
    };
    let first = tensor.tensor.data_ptr().cast_const().cast();
    Some(Matrix {
        memory: Memory::Torch(tensor),
        shape: [rows as usize, columns as usize],
        numbers: Numbers {
            first,
            steps: [of_row as isize, of_column as isize],
        },
    })
}
