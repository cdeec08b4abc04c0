//! What the benches share, and the programs `one_step` and `one_projection`, which are held against those
//! in `peers`.

pub mod backend;
pub mod distillation;
pub mod measurement;
pub mod memory;
pub mod numbers;
pub mod plot;
pub mod projection;
pub mod random_teacher;

use anyhow::Result;
use burn::tensor::backend::Backend;

/// What `compute` gives, once the device is done with it.
///
/// # Panics
///
/// If the device does not answer: criterion has no place for an error.
pub fn synchronised<B: Backend, T>(device: &B::Device, compute: impl FnOnce() -> T) -> T {
    let result = compute();
    let done = B::sync(device);
    assert!(done.is_ok(), "the device does not answer: {done:?}");
    result
}

/// Ends a bench that could not be set up.
///
/// # Panics
///
/// If it could not: criterion has no place for an error.
pub fn expect_measured(backend: &str, result: &Result<()>) {
    assert!(result.is_ok(), "{backend}: {result:?}");
}

/// Calls `$bench::<A>($criterion, name)` for the autodiff backend `A` of each backend that was built in.
#[macro_export]
macro_rules! for_each_backend {
    ($bench:ident($criterion:expr)) => {
        $crate::for_each_backend!(@each $bench($criterion),
            "flex" Flex, "ndarray" NdArray, "tch" LibTorch, "wgpu" Wgpu, "cuda" Cuda, "rocm" Rocm,
            "cpu" Cpu)
    };
    (@each $bench:ident($criterion:expr), $($feature:literal $backend:ident),*) => {
        $(#[cfg(feature = $feature)]
        $crate::expect_measured(
            $feature,
            &$bench::<burn::backend::Autodiff<burn_lti::backend::$backend>>($criterion, $feature),
        );)*
    };
}
