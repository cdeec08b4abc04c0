//! The backends that this build can compute on.
//!
//! Every function and module of this crate is generic over Burn's [`Backend`](burn::prelude::Backend);
//! a feature of the same name forwards to Burn and makes one more of them available. What is here
//! besides Burn's own names is the one choice that Burn leaves to whoever names a type: which of the
//! types of the wgpu family fits the shader compiler that the features have selected.
//!
//! | feature | type | devices |
//! |---|---|---|
//! | `flex` (default) | `Flex` | CPU, Rust alone; the faster of the two |
//! | `ndarray` (default) | `NdArray` | CPU, Rust alone |
//! | `tch` | `LibTorch` | CPU, CUDA and MPS through libtorch 2.9 |
//! | `wgpu` | `Wgpu` | GPUs through WGSL shaders |
//! | `vulkan`, `metal`, `webgpu` | `Wgpu` | as `wgpu`, through SPIR-V, MSL or WGSL |
//! | `cuda`, `rocm` | `Cuda`, `Rocm` | NVIDIA and AMD GPUs |
//! | `cpu` | `Cpu` | CPU, through MLIR and LLVM |

#[cfg(feature = "cpu")]
pub use burn::backend::Cpu;
#[cfg(feature = "cuda")]
pub use burn::backend::Cuda;
#[cfg(feature = "flex")]
pub use burn::backend::Flex;
#[cfg(feature = "tch")]
pub use burn::backend::LibTorch;
#[cfg(feature = "ndarray")]
pub use burn::backend::NdArray;
#[cfg(feature = "rocm")]
pub use burn::backend::Rocm;

// The types of the wgpu family differ in how a boolean is stored: SPIR-V and MSL have bytes, WGSL has not.
#[cfg(feature = "metal")]
pub use burn::backend::Metal as Wgpu;
#[cfg(feature = "vulkan")]
pub use burn::backend::Vulkan as Wgpu;
#[cfg(all(feature = "wgpu", not(any(feature = "vulkan", feature = "metal"))))]
pub use burn::backend::Wgpu;

#[cfg(any(
    all(feature = "vulkan", feature = "metal"),
    all(feature = "vulkan", feature = "webgpu"),
    all(feature = "metal", feature = "webgpu"),
))]
compile_error!(
    "of the features `vulkan`, `metal` and `webgpu` enable only one: each selects the shader compiler \
     of the backend wgpu, and a build has one"
);

#[cfg(all(feature = "vulkan", target_vendor = "apple"))]
compile_error!(
    "the feature `vulkan` needs a Vulkan driver, which Apple's systems lack: enable `metal`"
);

#[cfg(all(feature = "metal", not(target_vendor = "apple")))]
compile_error!(
    "the feature `metal` works on Apple's systems alone: enable `vulkan`, or `webgpu` for any driver"
);

#[cfg(all(
    target_family = "wasm",
    any(
        feature = "vulkan",
        feature = "tch",
        feature = "cuda",
        feature = "rocm",
        feature = "cpu"
    )
))]
compile_error!("in a browser only the features `flex`, `ndarray`, `wgpu` and `webgpu` can work");
