//! Devices that compute in the host's memory, and what a loop over their numbers needs.

use std::any::Any;

use pulp::Simd;

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
    // In this order: of a NaN and a number the processor gives the second.
    let x = simd.max_f32s(splat(-87.0), x);
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
