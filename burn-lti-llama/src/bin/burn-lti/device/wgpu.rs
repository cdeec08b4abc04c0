//! The adapters of wgpu.
//!
//! Burn calls an adapter by its type and its number among those of the type, and panics if there is
//! none. So the adapters are listed here in the way Burn lists them (cubecl-wgpu 0.10, `runtime.rs`),
//! and each gets the name by which Burn will find that same adapter.

use std::env;

use ::wgpu::{
    AdapterInfo, DeviceType, Instance, InstanceDescriptor, PowerPreference, RequestAdapterOptions,
};
use anyhow::{Result, bail};
use burn::backend::wgpu::WgpuDevice;
use burn::backend::wgpu::graphics::{AutoGraphicsApi, GraphicsApi};
use burn::tensor::read_sync;
use burn_lti::backend::Wgpu;

use super::{Devices, Found};

impl Devices for Wgpu {
    fn devices() -> Result<Vec<Found<Self>>> {
        let api = AutoGraphicsApi::backend();
        let instance = Instance::new(InstanceDescriptor {
            backends: api.into(),
            ..InstanceDescriptor::new_without_display_handle()
        });
        let adapters: Vec<AdapterInfo> = read_sync(instance.enumerate_adapters(api.into()))
            .iter()
            .map(|adapter| adapter.get_info())
            .collect();
        if adapters.is_empty() {
            bail!(NO_ADAPTER);
        }
        let types: Vec<DeviceType> = adapters.iter().map(|info| info.device_type).collect();
        let names = burn_names(&types);
        let default = default_adapter(&instance, &adapters, &names);
        let adapters = adapters.into_iter().zip(names).enumerate();
        Ok(adapters
            .filter_map(|(index, (info, device))| {
                Some(Found {
                    device: device?,
                    kind: kind(info.device_type),
                    driver: Some(driver(&info)),
                    name: info.name,
                    is_default: default == Some(index),
                })
            })
            .collect())
    }
}

const NO_ADAPTER: &str = if cfg!(target_vendor = "apple") {
    "wgpu sees no device: no GPU here has a Metal driver"
} else {
    "wgpu sees no device: install a Vulkan driver of the GPU; Debian's mesa-vulkan-drivers has them, and \
     one in software"
};

/// The name by which Burn finds each adapter. Two kinds of them have none: a second CPU, and one whose
/// driver tells no type where there are more of every type.
fn burn_names(types: &[DeviceType]) -> Vec<Option<WgpuDevice>> {
    let count = |wanted| types.iter().filter(|&&device| device == wanted).count();
    let name = |(index, &device): (usize, &DeviceType)| {
        let number = types[..index]
            .iter()
            .filter(|&&before| before == device)
            .count();
        match device {
            DeviceType::DiscreteGpu => Some(WgpuDevice::DiscreteGpu(number)),
            DeviceType::IntegratedGpu => Some(WgpuDevice::IntegratedGpu(number)),
            DeviceType::VirtualGpu => Some(WgpuDevice::VirtualGpu(number)),
            DeviceType::Cpu => (number == 0).then_some(WgpuDevice::Cpu),
            // Asked for more of a type than there are, Burn takes the adapter of that number among those
            // without a type.
            DeviceType::Other => [
                (DeviceType::DiscreteGpu, WgpuDevice::DiscreteGpu(number)),
                (DeviceType::IntegratedGpu, WgpuDevice::IntegratedGpu(number)),
                (DeviceType::VirtualGpu, WgpuDevice::VirtualGpu(number)),
            ]
            .into_iter()
            .find(|(asked, _)| count(*asked) <= number)
            .map(|(_, name)| name),
        }
    };
    types.iter().enumerate().map(name).collect()
}

/// The adapter that Burn takes if told nothing: the one that the environment names, spelt as Burn's
/// names are written in Rust, or else the fastest by wgpu's reckoning.
fn default_adapter(
    instance: &Instance,
    adapters: &[AdapterInfo],
    names: &[Option<WgpuDevice>],
) -> Option<usize> {
    if let Ok(wanted) = env::var("CUBECL_WGPU_DEFAULT_DEVICE") {
        let is_wanted = |name: &WgpuDevice| format!("{name:?}") == wanted;
        return names
            .iter()
            .position(|name| name.as_ref().is_some_and(is_wanted));
    }
    let fastest = read_sync(instance.request_adapter(&RequestAdapterOptions {
        power_preference: PowerPreference::HighPerformance,
        force_fallback_adapter: false,
        compatible_surface: None,
    }));
    let fastest = fastest.ok()?.get_info();
    adapters.iter().position(|info| *info == fastest)
}

fn kind(device: DeviceType) -> &'static str {
    match device {
        DeviceType::DiscreteGpu => "discrete GPU",
        DeviceType::IntegratedGpu => "integrated GPU",
        DeviceType::VirtualGpu => "virtual GPU",
        DeviceType::Cpu => "CPU",
        DeviceType::Other => "unknown",
    }
}

fn driver(info: &AdapterInfo) -> String {
    let parts = [
        info.driver.as_str(),
        info.driver_info.as_str(),
        info.backend.to_str(),
    ];
    let known: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    known.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What cubecl-wgpu's `select_from_adapter_list` does.
    fn found_by_burn(types: &[DeviceType], name: &WgpuDevice) -> Option<usize> {
        let (wanted, number) = match name {
            WgpuDevice::DiscreteGpu(number) => (DeviceType::DiscreteGpu, *number),
            WgpuDevice::IntegratedGpu(number) => (DeviceType::IntegratedGpu, *number),
            WgpuDevice::VirtualGpu(number) => (DeviceType::VirtualGpu, *number),
            _ => (DeviceType::Cpu, 0),
        };
        let of = |wanted: DeviceType| {
            let indices = (0..types.len()).filter(move |&index| types[index] == wanted);
            indices.collect::<Vec<_>>().get(number).copied()
        };
        of(wanted).or_else(|| of(DeviceType::Other))
    }

    #[test]
    fn burn_finds_each_adapter_by_the_name_given_to_it() {
        use DeviceType::{Cpu, DiscreteGpu, IntegratedGpu, Other, VirtualGpu};
        let machines: [&[DeviceType]; 5] = [
            &[Cpu],
            &[IntegratedGpu, DiscreteGpu, Cpu, DiscreteGpu],
            &[Other, Cpu, Other],
            &[DiscreteGpu, Other, IntegratedGpu, Other, VirtualGpu],
            &[Cpu, VirtualGpu, Cpu],
        ];
        for types in machines {
            for (index, name) in burn_names(types).iter().enumerate() {
                if let Some(name) = name {
                    assert_eq!(found_by_burn(types, name), Some(index), "{types:?}");
                }
            }
        }
        assert_eq!(burn_names(machines[4])[2], None);
        assert_eq!(burn_names(machines[3])[1], None);
    }
}
