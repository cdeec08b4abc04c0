//! Backends of the CPU, which is always there.

use std::thread;

#[cfg(any(feature = "flex", feature = "ndarray", feature = "cpu"))]
use {
    super::{Devices, Found},
    anyhow::Result,
    burn::prelude::Backend,
};

/// A program cannot ask a CPU's name portably; its threads it can.
pub(super) fn name() -> String {
    match thread::available_parallelism().map_or(1, usize::from) {
        1 => "CPU with 1 thread".to_owned(),
        threads => format!("CPU with {threads} threads"),
    }
}

#[cfg(any(feature = "flex", feature = "ndarray", feature = "cpu"))]
fn cpu<B: Backend>() -> Result<Vec<Found<B>>> {
    Ok(vec![Found {
        device: B::Device::default(),
        name: name(),
        kind: "CPU",
        driver: None,
        is_default: true,
    }])
}

#[cfg(feature = "flex")]
impl Devices for burn_lti::backend::Flex {
    fn devices() -> Result<Vec<Found<Self>>> {
        cpu()
    }
}

#[cfg(feature = "ndarray")]
impl Devices for burn_lti::backend::NdArray {
    fn devices() -> Result<Vec<Found<Self>>> {
        cpu()
    }
}

#[cfg(feature = "cpu")]
impl Devices for burn_lti::backend::Cpu {
    fn devices() -> Result<Vec<Found<Self>>> {
        cpu()
    }
}
