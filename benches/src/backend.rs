//! The backends that were built in, by name.

use clap::ValueEnum;

/// A backend that was built in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendName {
    /// The CPU, in Rust alone.
    #[cfg(feature = "flex")]
    Flex,
    /// The CPU, in Rust alone, the older of the two.
    #[cfg(feature = "ndarray")]
    Ndarray,
    /// libtorch, on the CPU.
    #[cfg(feature = "tch")]
    Tch,
    /// GPUs, through wgpu.
    #[cfg(feature = "wgpu")]
    Wgpu,
    /// NVIDIA's GPUs.
    #[cfg(feature = "cuda")]
    Cuda,
    /// AMD's GPUs.
    #[cfg(feature = "rocm")]
    Rocm,
    /// The CPU, through MLIR and LLVM.
    #[cfg(feature = "cpu")]
    Cpu,
}

/// Calls `$function::<A>(...)` with `A` the autodiff backend of this name.
#[macro_export]
macro_rules! on_backend {
    ($name:expr, $function:ident($($argument:expr),* $(,)?)) => {
        $crate::on_backend!(@arms $name, $function($($argument),*),
            "flex" Flex Flex, "ndarray" Ndarray NdArray, "tch" Tch LibTorch, "wgpu" Wgpu Wgpu,
            "cuda" Cuda Cuda, "rocm" Rocm Rocm, "cpu" Cpu Cpu)
    };
    (@arms $name:expr, $function:ident $arguments:tt,
        $($feature:literal $variant:ident $backend:ident),*) => {
        match $name {
            $(#[cfg(feature = $feature)]
            $crate::backend::BackendName::$variant => {
                $function::<burn::backend::Autodiff<burn_lti::backend::$backend>> $arguments
            })*
        }
    };
}
