//! The devices that a backend sees, and the choice of one.
//!
//! Burn takes a device on trust and panics when it is not there, so each backend is asked here what it
//! sees before anything is computed on it.

#[cfg(any(
    feature = "flex",
    feature = "ndarray",
    feature = "cpu",
    feature = "tch"
))]
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "rocm")]
mod rocm;
#[cfg(feature = "tch")]
mod tch;
mod touch;
#[cfg(feature = "wgpu")]
mod wgpu;

use anyhow::{Context, Result, bail};
use burn::prelude::Backend;
use serde::Serialize;

use crate::backend::BackendName;

/// A backend that can say what devices it sees.
pub(crate) trait Devices: Backend {
    /// The devices it sees, at least one, in the order that `--device` counts them in.
    ///
    /// # Errors
    ///
    /// It sees none. The message says why, and the way out.
    fn devices() -> Result<Vec<Found<Self>>>;
}

/// A device that a backend sees.
pub(crate) struct Found<B: Backend> {
    device: B::Device,
    /// As its driver calls it.
    name: String,
    /// CPU, discrete GPU and so on.
    kind: &'static str,
    driver: Option<String>,
    /// Whether it is the one that Burn takes if told nothing.
    is_default: bool,
}

/// The device of that number, or the backend's default one. It has computed something already.
///
/// # Errors
///
/// The backend sees no device, has none of that number, or the device cannot be used.
pub(crate) fn choose<B: Devices>(backend: BackendName, number: Option<usize>) -> Result<B::Device> {
    let mut found = seen::<B>(backend)?;
    let count = found.len();
    let index = match number {
        Some(number) if number < count => number,
        Some(number) => bail!(
            "--device is {number}, but {backend} sees {}: `burn-lti devices` lists what there is",
            match count {
                1 => "only the device 0".to_owned(),
                _ => format!("the devices 0 to {}", count - 1),
            }
        ),
        None => found
            .iter()
            .position(|device| device.is_default)
            .with_context(|| {
                format!(
                    "{backend} does not see the device that CUBECL_WGPU_DEFAULT_DEVICE names: change \
                     it, or choose with --device from what `burn-lti devices` lists"
                )
            })?,
    };
    let chosen = found.swap_remove(index);
    // Burn's name for the default is not that of the same device in the list, and tensors of the two
    // do not meet.
    let device = match number {
        Some(_) => chosen.device,
        None => B::Device::default(),
    };
    touch::compute::<B>(&device).with_context(|| {
        let name = &chosen.name;
        format!("{backend} cannot compute on its device {index}, {name}")
    })?;
    Ok(device)
}

/// What `burn-lti devices` says of a backend.
#[derive(Serialize)]
pub(crate) struct BackendReport {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) default: bool,
    pub(crate) devices: Vec<DeviceReport>,
    /// Why there are no devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// What `burn-lti devices` says of a device.
#[derive(Serialize)]
pub(crate) struct DeviceReport {
    pub(crate) index: usize,
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) driver: Option<String>,
    pub(crate) default: bool,
    /// The types of numbers that it can compute in.
    pub(crate) float_types: Vec<&'static str>,
    /// Why nothing can be computed on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// Looks at all devices of a backend.
pub(crate) fn report<B: Devices>(backend: BackendName) -> BackendReport {
    let (devices, error) = match seen::<B>(backend) {
        Ok(found) => (found, None),
        Err(error) => (Vec::new(), Some(format!("{error:#}"))),
    };
    let devices = devices.into_iter().enumerate().map(|(index, found)| {
        let (float_types, error) = match touch::float_types::<B>(&found.device) {
            Ok(types) => (types, None),
            Err(error) => (Vec::new(), Some(format!("{error:#}"))),
        };
        DeviceReport {
            index,
            name: found.name,
            kind: found.kind,
            driver: found.driver,
            default: found.is_default,
            float_types,
            error,
        }
    });
    BackendReport {
        name: backend.name(),
        about: backend.about(),
        default: backend == BackendName::default(),
        devices: devices.collect(),
        error,
    }
}

fn seen<B: Devices>(backend: BackendName) -> Result<Vec<Found<B>>> {
    touch::caught(B::devices).with_context(|| format!("{backend} cannot tell its devices"))?
}
