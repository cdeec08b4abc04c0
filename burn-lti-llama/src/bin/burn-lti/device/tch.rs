//! The devices of libtorch.

use ::tch::{Cuda, utils};
use anyhow::Result;
use burn::backend::libtorch::LibTorchDevice;
use burn_lti::backend::LibTorch;

use super::{Devices, Found, cpu};

impl Devices for LibTorch {
    fn devices() -> Result<Vec<Found<Self>>> {
        let found = |device, name, kind| Found {
            device,
            name,
            kind,
            driver: None,
            is_default: device == LibTorchDevice::default(),
        };
        let mut devices = vec![found(LibTorchDevice::Cpu, cpu::name(), "CPU")];
        // libtorch counts AMD's GPUs as CUDA devices too. It does not say what they are called.
        let count = usize::try_from(Cuda::device_count()).unwrap_or(0);
        devices.extend((0..count).map(|index| {
            let name = format!("CUDA device {index}");
            found(LibTorchDevice::Cuda(index), name, "GPU")
        }));
        if utils::has_mps() {
            let name = "Metal Performance Shaders".to_owned();
            devices.push(found(LibTorchDevice::Mps, name, "GPU"));
        }
        Ok(devices)
    }
}
