//! AMD's GPUs.

use std::ffi::{CStr, c_char, c_int};

use anyhow::{Result, bail};
use burn::backend::rocm::RocmDevice;
use burn_lti::backend::Rocm;
use cubecl_hip_sys::{HIP_SUCCESS, hipDeviceGetName, hipGetDeviceCount, is_available};

use super::{Devices, Found};

impl Devices for Rocm {
    fn devices() -> Result<Vec<Found<Self>>> {
        // The bindings panic at the first call into a library that is not there.
        if !is_available() {
            bail!(
                "rocm sees no device: no ROCm found (libamdhip64 and libhiprtc); install it, or let \
                 ROCM_PATH name its folder"
            );
        }
        let mut count: c_int = 0;
        // SAFETY: the library is loaded and writes an integer to where the pointer shows.
        let status = unsafe { hipGetDeviceCount(&mut count) };
        if status != HIP_SUCCESS || count < 1 {
            bail!(
                "rocm sees no device: HIP reports {count} GPUs and the status {status}; is the driver \
                 amdgpu loaded, and may this user open /dev/kfd?"
            );
        }
        Ok((0..count)
            .zip(0..)
            .map(|(ordinal, index)| Found {
                device: RocmDevice::new(index),
                name: name(ordinal).unwrap_or_else(|| format!("AMD GPU {index}")),
                kind: "GPU",
                driver: None,
                is_default: index == RocmDevice::default().index,
            })
            .collect())
    }
}

/// As the driver calls it.
fn name(ordinal: c_int) -> Option<String> {
    let mut name = [0u8; 256];
    let length = c_int::try_from(name.len()).ok()?;
    // SAFETY: the library writes at most `length` bytes, which are there, with a zero at the end.
    let status = unsafe { hipDeviceGetName(name.as_mut_ptr().cast::<c_char>(), length, ordinal) };
    let name = CStr::from_bytes_until_nul(&name).ok()?.to_string_lossy();
    (status == HIP_SUCCESS && !name.is_empty()).then(|| name.into_owned())
}
