//! `burn-lti devices`

use anyhow::Result;
use serde::Serialize;

use crate::args::DevicesArgs;
use crate::backend::{BackendName, could_be_built_in, with_backend};
use crate::device::{self, BackendReport, DeviceReport};
use crate::streams::say;

#[derive(Serialize)]
struct Report {
    backends: Vec<BackendReport>,
    not_built_in: Vec<Absent>,
}

#[derive(Serialize)]
struct Absent {
    name: &'static str,
    about: &'static str,
    feature: &'static str,
}

pub(crate) fn run(args: &DevicesArgs) -> Result<()> {
    let report = Report {
        backends: BackendName::ALL
            .iter()
            .map(|&name| with_backend!(name, B => device::report::<B>(name)))
            .collect(),
        not_built_in: could_be_built_in()
            .map(|known| Absent {
                name: known.name,
                about: known.about,
                feature: known.name,
            })
            .collect(),
    };
    if args.json.json {
        say!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(())
}

fn print(report: &Report) {
    for backend in &report.backends {
        let default = if backend.default { " (default)" } else { "" };
        say!("{:<8} {}{default}", backend.name, backend.about);
        if let Some(error) = &backend.error {
            say!("    {error}");
        }
        backend.devices.iter().for_each(print_device);
    }
    say!();
    say!("* is the device that a backend takes without --device.");
    if !report.not_built_in.is_empty() {
        say!();
        say!("Not built in:");
    }
    for absent in &report.not_built_in {
        say!(
            "{:<8} {}: --features {}",
            absent.name,
            absent.about,
            absent.feature
        );
    }
}

fn print_device(device: &DeviceReport) {
    let default = if device.default { '*' } else { ' ' };
    say!("  {default} {} {}", device.index, device.name);
    let mut details = Vec::new();
    if device.kind != "CPU" || device.driver.is_some() {
        details.push(device.kind.to_owned());
    }
    details.extend(device.driver.clone());
    details.push(match &device.error {
        Some(error) => error.clone(),
        None => format!("computes in {}", device.float_types.join(", ")),
    });
    say!("      {}", details.join("; "));
}
