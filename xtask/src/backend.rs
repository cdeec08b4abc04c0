//! The backends that tests run on, and which of them this machine can run.

use anyhow::{Result, ensure};
use clap::ValueEnum;

use crate::setup::{Component, Installed};

/// A backend of Burn, with the features that it is built with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Backend {
    /// CPU, Rust alone; in every build.
    Flex,
    /// CPU, Rust alone; in every build.
    Ndarray,
    /// libtorch, on the CPU.
    Tch,
    /// wgpu through Vulkan, on Apple's systems through Metal; a software device will do.
    Wgpu,
    /// wgpu through WGSL, in place of `wgpu`.
    Webgpu,
    /// NVIDIA GPUs; needs the driver and the CUDA toolkit.
    Cuda,
    /// AMD GPUs; needs the driver and ROCm.
    Rocm,
    /// Burn's compiler for the CPU; its build downloads LLVM.
    Cpu,
}

/// What can be tested without a GPU, and without a download in a build script.
pub(crate) const TESTABLE: [Backend; 4] =
    [Backend::Flex, Backend::Ndarray, Backend::Tch, Backend::Wgpu];

impl Backend {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Flex => "flex",
            Self::Ndarray => "ndarray",
            Self::Tch => "tch",
            Self::Wgpu => "wgpu",
            Self::Webgpu => "webgpu",
            Self::Cuda => "cuda",
            Self::Rocm => "rocm",
            Self::Cpu => "cpu",
        }
    }

    /// What the names of its tests contain: the module that `on_every_backend!` puts them in.
    pub(crate) fn filter(self) -> &'static str {
        match self {
            Self::Flex => "on_flex::",
            Self::Ndarray => "on_ndarray::",
            Self::Tch => "on_tch::",
            Self::Wgpu | Self::Webgpu => "on_wgpu::",
            Self::Cuda => "on_cuda::",
            Self::Rocm => "on_rocm::",
            Self::Cpu => "on_cpu::",
        }
    }

    /// The features that it needs besides the default ones.
    fn features(self) -> &'static [&'static str] {
        match self {
            Self::Flex | Self::Ndarray => &[],
            Self::Tch => &["tch"],
            Self::Wgpu if cfg!(target_vendor = "apple") => &["wgpu", "metal"],
            Self::Wgpu => &["wgpu", "vulkan"],
            Self::Webgpu => &["webgpu"],
            Self::Cuda => &["cuda"],
            Self::Rocm => &["rocm"],
            Self::Cpu => &["cpu"],
        }
    }

    /// What `cargo xtask setup` has to do for it.
    fn component(self) -> Option<Component> {
        match self {
            Self::Tch => Some(Component::Tch),
            Self::Wgpu | Self::Webgpu => Some(Component::Wgpu),
            // In every build, or on hardware that no set-up brings.
            Self::Flex | Self::Ndarray | Self::Cuda | Self::Rocm | Self::Cpu => None,
        }
    }

    fn is_set_up(self, installed: &Installed) -> bool {
        self.component()
            .is_none_or(|component| installed.has(component))
    }
}

/// The arguments that give a build of all packages the features of `backends`.
///
/// The package of the suites forwards its features to the libraries, and cargo unites the features
/// of all packages that it builds at once.
pub(crate) fn feature_args(backends: &[Backend]) -> Vec<String> {
    feature_args_of("burn-lti-tests", backends)
}

/// The arguments that give a build of `package`, which forwards its features to the libraries, those of
/// `backends`.
pub(crate) fn feature_args_of(package: &str, backends: &[Backend]) -> Vec<String> {
    let features = backends.iter().flat_map(|backend| backend.features());
    let features: Vec<_> = features
        .map(|feature| format!("{package}/{feature}"))
        .collect();
    match features.is_empty() {
        true => Vec::new(),
        false => vec!["--features".to_owned(), features.join(",")],
    }
}

/// The backends in `TESTABLE` that are set up, and a line about each that is not.
pub(crate) fn set_up(installed: &Installed) -> (Vec<Backend>, Vec<String>) {
    let (backends, missing): (Vec<_>, Vec<_>) = TESTABLE
        .into_iter()
        .partition(|backend| backend.is_set_up(installed));
    let missing = missing.into_iter().filter_map(|backend| {
        let component = backend.component()?.name();
        Some(format!(
            "the backend {}: `cargo xtask setup {component}`",
            backend.name()
        ))
    });
    (backends, missing.collect())
}

/// `backends` in order and each once, if one build can have them and all are set up.
pub(crate) fn require(backends: &[Backend], installed: &Installed) -> Result<Vec<Backend>> {
    let mut backends = backends.to_vec();
    backends.sort();
    backends.dedup();
    ensure!(
        !(backends.contains(&Backend::Wgpu) && backends.contains(&Backend::Webgpu)),
        "the backends wgpu and webgpu cannot be tested at once: a build has one shader compiler"
    );
    let missing = backends
        .iter()
        .filter(|backend| !backend.is_set_up(installed));
    let (names, components): (Vec<_>, Vec<_>) = missing
        .filter_map(|backend| Some((backend.name(), backend.component()?.name())))
        .unzip();
    ensure!(
        names.is_empty(),
        "not set up: {}; run `cargo xtask setup {}` first",
        names.join(", "),
        components.join(" ")
    );
    Ok(backends)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Installed = Installed::NOTHING;
    const ALL: Installed = Installed::ALL;

    #[test]
    fn without_a_choice_what_is_set_up_is_taken() {
        assert_eq!(set_up(&ALL), (TESTABLE.to_vec(), vec![]));
        let (backends, left_out) = set_up(&NOTHING);
        assert_eq!(backends, [Backend::Flex, Backend::Ndarray]);
        let hint = |name| format!("the backend {name}: `cargo xtask setup {name}`");
        assert_eq!(left_out, [hint("tch"), hint("wgpu")]);
    }

    #[test]
    fn what_is_asked_for_must_be_set_up() {
        let asked = [Backend::Wgpu, Backend::Flex, Backend::Tch, Backend::Flex];
        let sorted = require(&asked, &ALL).unwrap();
        assert_eq!(sorted, [Backend::Flex, Backend::Tch, Backend::Wgpu]);
        let error = require(&asked, &NOTHING).unwrap_err().to_string();
        assert_eq!(
            error,
            "not set up: tch, wgpu; run `cargo xtask setup tch wgpu` first"
        );
        assert!(require(&[Backend::Flex, Backend::Cuda], &NOTHING).is_ok());
    }

    #[test]
    fn one_build_has_one_shader_compiler() {
        let error = require(&[Backend::Webgpu, Backend::Wgpu], &ALL).unwrap_err();
        assert!(error.to_string().contains("at once"), "{error}");
    }

    #[test]
    fn the_features_are_those_of_the_suites() {
        assert_eq!(feature_args(&[Backend::Flex, Backend::Ndarray]), [""; 0]);
        let args = feature_args(&[Backend::Tch, Backend::Webgpu]);
        assert_eq!(
            args,
            ["--features", "burn-lti-tests/tch,burn-lti-tests/webgpu"]
        );
    }
}
