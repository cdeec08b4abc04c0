//! What the suites in `tests/` share: one macro for every backend, tolerances that follow from
//! float32, an oracle in float64, and a second decoder that is no Llama.
//!
//! | module | what it holds |
//! |---|---|
//! | [`close`] | tolerances and the comparison that uses them |
//! | [`curve`] | the losses of a short training |
//! | [`dense`] | projections by the kinds that the reference has |
//! | [`numbers`] | random numbers from a seed, the same on every backend |
//! | [`params`] | a module's parameters by name: read, changed, their gradients |
//! | [`oracle`] | the contraction and its gradients as plain loops in float64 |
//! | [`toy`] | a decoder with other names, other norms and biases everywhere |
//! | [`llama`] | the tiny Llamas in `fixtures/` |
//! | [`training`] | optimizer steps, and Burn's Learner without a terminal |

pub mod close;
pub mod curve;
pub mod dense;
pub mod llama;
pub mod numbers;
pub mod oracle;
pub mod params;
pub mod toy;
pub mod training;

/// Every backend of this build, with gradients.
pub mod backend {
    use burn::backend::Autodiff;
    use burn_lti::backend;

    /// Flex, with gradients.
    #[cfg(feature = "flex")]
    pub type Flex = Autodiff<backend::Flex>;
    /// ndarray, with gradients.
    #[cfg(feature = "ndarray")]
    pub type NdArray = Autodiff<backend::NdArray>;
    /// libtorch, with gradients of Burn's own.
    #[cfg(feature = "tch")]
    pub type LibTorch = Autodiff<backend::LibTorch>;
    /// wgpu, with gradients.
    #[cfg(feature = "wgpu")]
    pub type Wgpu = Autodiff<backend::Wgpu>;
    /// CUDA, with gradients.
    #[cfg(feature = "cuda")]
    pub type Cuda = Autodiff<backend::Cuda>;
    /// ROCm, with gradients.
    #[cfg(feature = "rocm")]
    pub type Rocm = Autodiff<backend::Rocm>;
    /// Burn's compiler for the CPU, with gradients.
    #[cfg(feature = "cpu")]
    pub type Cpu = Autodiff<backend::Cpu>;
}

/// Runs each test on every backend that is compiled in, as `on_flex::name`, `on_ndarray::name` and so
/// on: the filter `on_flex::` picks a backend.
///
/// A test is a function `fn name<A: AutodiffBackend>(device: A::Device)`. One that is left out of
/// the list is unused code, which the lints refuse.
#[macro_export]
macro_rules! on_every_backend {
    ($($name:ident),+ $(,)?) => {
        #[cfg(feature = "flex")]
        $crate::on_one_backend!(on_flex, Flex, $($name),+);
        #[cfg(feature = "ndarray")]
        $crate::on_one_backend!(on_ndarray, NdArray, $($name),+);
        #[cfg(feature = "tch")]
        $crate::on_one_backend!(on_tch, LibTorch, $($name),+);
        #[cfg(feature = "wgpu")]
        $crate::on_one_backend!(on_wgpu, Wgpu, $($name),+);
        #[cfg(feature = "cuda")]
        $crate::on_one_backend!(on_cuda, Cuda, $($name),+);
        #[cfg(feature = "rocm")]
        $crate::on_one_backend!(on_rocm, Rocm, $($name),+);
        #[cfg(feature = "cpu")]
        $crate::on_one_backend!(on_cpu, Cpu, $($name),+);
    };
}

/// The part of [`on_every_backend`] that is the same for every backend.
#[doc(hidden)]
#[macro_export]
macro_rules! on_one_backend {
    ($module:ident, $backend:ident, $($name:ident),+) => {
        mod $module {
            $(
                #[test]
                fn $name() {
                    super::$name::<$crate::backend::$backend>(Default::default());
                }
            )+
        }
    };
}

/// The name of a backend for what a test prints.
pub fn backend_name<B: burn::tensor::backend::Backend>(device: &B::Device) -> String {
    B::name(device)
}

/// Whether the device may be a processor that simulates a GPU, as that of CI: there the number of
/// operations is what costs, and a law may leave out what does not depend on the device.
pub fn may_be_simulated<B: burn::tensor::backend::Backend>(device: &B::Device) -> bool {
    B::name(device).contains("wgpu")
}

/// An error and all its sources, as a command prints them.
pub fn chain(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(Some(error), |error| error.source());
    sources
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
