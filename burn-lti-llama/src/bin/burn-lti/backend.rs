//! The backends: those that this program was built with, and those that it could have been.

use std::fmt;
use std::str::FromStr;

/// A backend that Burn has, built in or not.
pub(crate) struct Known {
    /// What `--backend` calls it, which is also the feature that adds it.
    pub(crate) name: &'static str,
    /// What it computes on, in a short phrase.
    pub(crate) about: &'static str,
    pub(crate) built_in: bool,
}

/// Declares the backends, the preferred one first.
macro_rules! backends {
    ($($feature:literal $variant:ident: $about:expr;)*) => {
        /// One compiled-in backend.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum BackendName {
            $(#[cfg(feature = $feature)] $variant,)*
        }

        impl BackendName {
            /// All compiled-in backends, the preferred one first.
            pub(crate) const ALL: &[Self] = &[$(#[cfg(feature = $feature)] Self::$variant,)*];

            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(#[cfg(feature = $feature)] Self::$variant => $feature,)*
                }
            }

            pub(crate) fn about(self) -> &'static str {
                match self {
                    $(#[cfg(feature = $feature)] Self::$variant => $about,)*
                }
            }
        }

        const BACKENDS: &[Known] = &[$(Known {
            name: $feature,
            about: $about,
            built_in: cfg!(feature = $feature),
        },)*];
    };
}

backends! {
    "flex" Flex: "the CPU, in Rust alone";
    "ndarray" NdArray: "the CPU, in Rust alone, the older of the two";
    "tch" Tch: "the CPU, NVIDIA's and Apple's GPUs, through libtorch";
    "wgpu" Wgpu: ABOUT_WGPU;
    "cuda" Cuda: "NVIDIA's GPUs, through CUDA";
    "rocm" Rocm: "AMD's GPUs, through ROCm";
    "cpu" Cpu: "the CPU, through MLIR and LLVM";
}

const ABOUT_WGPU: &str = if cfg!(feature = "vulkan") {
    "GPUs, through Vulkan and SPIR-V shaders"
} else if cfg!(feature = "metal") {
    "Apple's GPUs, through Metal and MSL shaders"
} else {
    "GPUs, through WGSL shaders"
};

/// The shader compilers of the backend `wgpu`. A build has at most one; its name is another for `wgpu`.
const SHADERS: [Known; 3] = [
    Known {
        name: "vulkan",
        about: "the backend wgpu, through Vulkan and SPIR-V shaders",
        built_in: cfg!(feature = "vulkan"),
    },
    Known {
        name: "metal",
        about: "the backend wgpu, through Metal and MSL shaders",
        built_in: cfg!(feature = "metal"),
    },
    Known {
        name: "webgpu",
        about: "the backend wgpu, through WGSL shaders",
        built_in: cfg!(feature = "webgpu"),
    },
];

#[cfg(not(any(
    feature = "flex",
    feature = "ndarray",
    feature = "tch",
    feature = "wgpu",
    feature = "cuda",
    feature = "rocm",
    feature = "cpu",
)))]
compile_error!(
    "burn-lti needs a backend to compute on: enable one of the features `flex`, `ndarray`, `tch`, `wgpu`, \
     `vulkan`, `metal`, `webgpu`, `cuda`, `rocm` and `cpu`"
);

/// What another build could have that this one has not.
pub(crate) fn could_be_built_in() -> impl Iterator<Item = &'static Known> {
    let shader = built_in_shader();
    let shaders = SHADERS.iter().filter(move |_| shader.is_none());
    BACKENDS
        .iter()
        .chain(shaders)
        .filter(|known| !known.built_in && unfit(known.name).is_none())
}

fn built_in_shader() -> Option<&'static Known> {
    SHADERS.iter().find(|shader| shader.built_in)
}

/// Why no build for this system can have it.
fn unfit(name: &str) -> Option<&'static str> {
    match name {
        "vulkan" if cfg!(target_vendor = "apple") => {
            Some("Apple's systems have no Vulkan driver: `metal` is for them")
        }
        "metal" if cfg!(not(target_vendor = "apple")) => {
            Some("it works on Apple's systems alone: `vulkan` is for others")
        }
        _ => None,
    }
}

impl Default for BackendName {
    fn default() -> Self {
        Self::ALL[0]
    }
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for BackendName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        // The name of the built-in shader compiler means the backend it belongs to.
        let shader = built_in_shader().filter(|shader| shader.name == name);
        let wanted = if shader.is_some() { "wgpu" } else { name };
        let found = Self::ALL.iter().find(|backend| backend.name() == wanted);
        found.copied().ok_or_else(|| not_found(name))
    }
}

fn not_found(name: &str) -> String {
    let built_in: Vec<&str> = BackendName::ALL.iter().map(|b| b.name()).collect();
    let has = format!("this program has {}", built_in.join(", "));
    let known = || BACKENDS.iter().chain(&SHADERS).map(|known| known.name);
    if known().any(|known| known == name) {
        return format!(
            "the backend `{name}` is not built in; {has}; {}",
            way_to(name)
        );
    }
    let hint = match nearest(name, known()) {
        Some(nearest) => format!(" (did you mean `{nearest}`?)"),
        None => String::new(),
    };
    let others: Vec<&str> = could_be_built_in().map(|known| known.name).collect();
    let others = match others.as_slice() {
        [] => String::new(),
        others => format!(", and can be built with {}", others.join(", ")),
    };
    format!("no backend has this name{hint}; {has}{others}")
}

/// How a build gets a backend that this one lacks.
fn way_to(name: &str) -> String {
    if let Some(reason) = unfit(name) {
        return reason.to_owned();
    }
    match built_in_shader() {
        Some(other) if SHADERS.iter().any(|shader| shader.name == name) => format!(
            "rebuild with `--features {name}` in place of `{}`: a build has one shader compiler",
            other.name
        ),
        _ => format!("rebuild with `--features {name}`"),
    }
}

/// The name most like a mistyped one, if any is like it at all.
fn nearest(name: &str, known: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    // Less alike than this (Jaro-Winkler, 0 to 1) is no typing mistake.
    const ALIKE: f64 = 0.7;
    known
        .map(|known| (strsim::jaro_winkler(known, name), known))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

/// Evaluates `$body` with `$B` as Burn's type of the backend `$name`.
macro_rules! with_backend {
    ($name:expr, $B:ident => $body:expr) => {
        match $name {
            #[cfg(feature = "flex")]
            $crate::backend::BackendName::Flex => {
                type $B = burn_lti::backend::Flex;
                $body
            }
            #[cfg(feature = "ndarray")]
            $crate::backend::BackendName::NdArray => {
                type $B = burn_lti::backend::NdArray;
                $body
            }
            #[cfg(feature = "tch")]
            $crate::backend::BackendName::Tch => {
                type $B = burn_lti::backend::LibTorch;
                $body
            }
            #[cfg(feature = "wgpu")]
            $crate::backend::BackendName::Wgpu => {
                type $B = burn_lti::backend::Wgpu;
                $body
            }
            #[cfg(feature = "cuda")]
            $crate::backend::BackendName::Cuda => {
                type $B = burn_lti::backend::Cuda;
                $body
            }
            #[cfg(feature = "rocm")]
            $crate::backend::BackendName::Rocm => {
                type $B = burn_lti::backend::Rocm;
                $body
            }
            #[cfg(feature = "cpu")]
            $crate::backend::BackendName::Cpu => {
                type $B = burn_lti::backend::Cpu;
                $body
            }
        }
    };
}
pub(crate) use with_backend;

/// Calls `$function::<A>(&device, ...)` with `A` the autodiff backend and `device` the device that the
/// `BackendArgs` name. What stands in their way is an error, and the function is not called.
macro_rules! on_backend {
    ($args:expr, $function:ident($($argument:expr),* $(,)?)) => {
        $crate::backend::with_backend!($args.backend, B => {
            $crate::device::choose::<B>($args.backend, $args.device).and_then(|device| {
                $function::<burn::backend::Autodiff<B>>(&device, $($argument),*)
            })
        })
    };
}
pub(crate) use on_backend;
