//! Devices that compute in the host's memory, and what a loop over their numbers needs.

mod matrix;
mod product;
mod team;

use std::any::Any;

use burn::prelude::*;
#[cfg(feature = "tch")]
use burn::tensor::TensorPrimitive;
use pulp::Simd;

pub(crate) use product::{head_product, product, product_through_head};
pub(crate) use team::Team;

/// Whether a device computes in the host's memory.
pub(crate) fn is_host(device: &dyn Any) -> bool {
    #[cfg(feature = "tch")]
    if let Some(device) = device.downcast_ref::<burn::backend::libtorch::LibTorchDevice>() {
        return matches!(device, burn::backend::libtorch::LibTorchDevice::Cpu);
    }
    is_rust(device)
}

/// Whether it is one of a backend in Rust, which hands over a tensor's numbers without a copy.
pub(crate) fn is_rust(device: &dyn Any) -> bool {
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

/// A tensor of float32 on a device that is the host, as numbers in a row: where they are if no other tensor
/// has them, else as a copy.
pub(crate) enum HostFloats<B: Backend> {
    /// As the backend hands them over.
    Data(TensorData, B::Device),
    /// libtorch's own memory, which the tensor keeps.
    #[cfg(feature = "tch")]
    Torch(torch::Owned),
}

impl<B: Backend> HostFloats<B> {
    /// # Safety
    ///
    /// `tensor` must be what an operation allocated for its result, as a product does, or a clone of that,
    /// and no view of another tensor: burn-tch counts who has a tensor, and does not know of all views.
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
            Self::Data(data, _) => match data.as_mut_slice() {
                Ok(floats) => floats,
                Err(_) => unreachable!("it was seen before that these are float32"),
            },
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

    use crate::cast::cast;

    /// A tensor of libtorch's that is contiguous float32 in the host's memory, and no other tensor's.
    pub(crate) struct Owned(TchTensor);

    impl Owned {
        /// Of a tensor's primitive, which is in the host's memory and no view; back if it is none of
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

        /// Of what an operation has just made, contiguous, in the host's memory.
        pub(super) fn of_new(made: TchTensor) -> Self {
            Self(made)
        }

        pub(super) fn as_mut_slice(&mut self) -> &mut [f32] {
            let tensor = &self.0.tensor;
            if tensor.numel() == 0 {
                return &mut []; // it may have no memory
            }
            // SAFETY: `of` has seen that these are float32, one after another, and that nobody else has this
            // tensor, whose memory by `HostFloats::of_result` is the host's and no other tensor's; it lives
            // as long as the tensor, which is borrowed.
            unsafe {
                std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<f32>(), tensor.numel())
            }
        }

        pub(super) fn into_primitive<P: 'static>(self) -> P {
            same(self.0)
        }
    }

    /// A tensor of libtorch's as the primitive of a backend that was found to be libtorch's.
    fn same<P: 'static>(torch: TchTensor) -> P {
        cast(torch).unwrap_or_else(|_| unreachable!("it was made of this type"))
    }
}

/// `exp(x)` for `x <= 0`, by the polynomial of Cephes' `expf` (Moshier), good to 2 units in the last
/// place; below -87 as at -87, 1.6e-38. NaN stays NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // Added to a number, it leaves the nearest whole one in the lowest bits, here plus the exponent's
    // bias.
    const ROUND: f32 = 12_582_912.0 + 127.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const POLYNOMIAL: [f32; 6] = [
        1.987_569_1e-4,
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ];
    let splat = |value: f32| simd.splat_f32s(value);
    // No maximum, which on some processors of a NaN and a number gives the number.
    let far = simd.less_than_f32s(x, splat(-87.0));
    let x = simd.select_f32s(far, splat(-87.0), x);
    let shifted = simd.mul_add_e_f32s(x, splat(std::f32::consts::LOG2_E), splat(ROUND));
    let n = simd.sub_f32s(shifted, splat(ROUND));
    let r = simd.mul_add_e_f32s(n, splat(-LN_2_HIGH), x);
    let r = simd.mul_add_e_f32s(n, splat(-LN_2_LOW), r);
    let mut p = splat(POLYNOMIAL[0]);
    for &c in &POLYNOMIAL[1..] {
        p = simd.mul_add_e_f32s(p, r, splat(c));
    }
    let p = simd.mul_add_e_f32s(p, simd.mul_f32s(r, r), simd.add_f32s(r, splat(1.0)));
    let bits = simd.transmute_u32s_f32s(shifted);
    let power = simd.wrapping_dyn_shl_u32s(bits, simd.splat_u32s(23));
    simd.mul_f32s(p, simd.transmute_f32s_u32s(power))
}

#[cfg(test)]
mod tests {
    use pulp::{Arch, Scalar, Simd, WithSimd};

    use super::exp;

    struct Exponentials<'a>(&'a mut [f32]);

    impl WithSimd for Exponentials<'_> {
        type Output = ();

        fn with_simd<S: Simd>(self, simd: S) {
            for number in self.0 {
                let one = exp(simd, simd.splat_f32s(*number));
                *number = simd.reduce_max_f32s(one);
            }
        }
    }

    #[test]
    fn exponentials_are_those_of_the_library_and_of_no_number_none() {
        let exact = [0.0f32, -1e-6, -0.3, -1.0, -9.7, -86.9];
        for scalar in [true, false] {
            let mut found = [&exact[..], &[f32::NAN, f32::NEG_INFINITY]].concat();
            match scalar {
                true => Exponentials(&mut found).with_simd(Scalar::new()),
                false => Arch::new().dispatch(Exponentials(&mut found)),
            }
            for (found, exact) in found.iter().zip(exact) {
                let exact = exact.exp();
                assert!(
                    (found - exact).abs() <= 2.0 * f32::EPSILON * exact,
                    "{exact}"
                );
            }
            assert!(found[6].is_nan());
            assert!(found[7] < 1.7e-38);
        }
    }
}
