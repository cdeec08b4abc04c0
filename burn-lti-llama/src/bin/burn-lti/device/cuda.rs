//! NVIDIA's GPUs.

use anyhow::{Result, anyhow, bail};
use burn::backend::cuda::CudaDevice;
use burn_lti::backend::Cuda;
use cudarc::driver::{CudaContext, result::device, sys as driver};
use cudarc::nvrtc::sys as compiler;

use super::{Devices, Found};

impl Devices for Cuda {
    fn devices() -> Result<Vec<Found<Self>>> {
        // The bindings panic at the first call into a library that is not there.
        // SAFETY: loading a library runs its initializers. These are NVIDIA's own, and Burn loads both.
        let (has_driver, has_compiler) =
            unsafe { (driver::is_culib_present(), compiler::is_culib_present()) };
        if !has_driver {
            bail!("cuda sees no device: no NVIDIA driver found; install one, it brings libcuda");
        }
        if !has_compiler {
            bail!(
                "cuda finds no NVRTC, which compiles for the GPU: install the CUDA toolkit, or add the \
                 folder of libnvrtc to LD_LIBRARY_PATH"
            );
        }
        let count = CudaContext::device_count()
            .map_err(|error| anyhow!("cuda sees no device: the NVIDIA driver reports {error}"))?;
        if count < 1 {
            bail!(
                "cuda sees no device: the NVIDIA driver reports no GPU; is CUDA_VISIBLE_DEVICES right?"
            );
        }
        Ok((0..count)
            .zip(0..)
            .map(|(ordinal, index)| Found {
                device: CudaDevice::new(index),
                name: device::get(ordinal)
                    .and_then(device::get_name)
                    .unwrap_or_else(|error| error.to_string()),
                kind: "GPU",
                driver: None,
                is_default: index == CudaDevice::default().index,
            })
            .collect())
    }
}
