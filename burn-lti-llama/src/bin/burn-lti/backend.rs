//! The backends this program was built with.

use std::fmt;
use std::str::FromStr;

/// One compiled-in backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BackendName {
    #[cfg(feature = "flex")]
    Flex,
    #[cfg(feature = "ndarray")]
    NdArray,
}

#[cfg(not(any(feature = "flex", feature = "ndarray")))]
compile_error!("burn-lti needs a backend to compute on: enable the feature `flex` or `ndarray`");

impl BackendName {
    /// All compiled-in backends, the preferred one first.
    const ALL: &[Self] = &[
        #[cfg(feature = "flex")]
        Self::Flex,
        #[cfg(feature = "ndarray")]
        Self::NdArray,
    ];
}

impl Default for BackendName {
    fn default() -> Self {
        Self::ALL[0]
    }
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            #[cfg(feature = "flex")]
            Self::Flex => "flex",
            #[cfg(feature = "ndarray")]
            Self::NdArray => "ndarray",
        })
    }
}

impl FromStr for BackendName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = |backend: &&Self| backend.to_string() == name;
        Self::ALL.iter().find(known).copied().ok_or_else(|| {
            let built_in: Vec<String> = Self::ALL.iter().map(Self::to_string).collect();
            let hint = match name {
                "flex" | "ndarray" => format!("; rebuild with --features {name}"),
                _ => String::new(),
            };
            format!(
                "not built in; this program has {}{hint}",
                built_in.join(", ")
            )
        })
    }
}

/// Calls `$function::<A>(&device, ...)` with `A` the autodiff backend of that name.
macro_rules! on_backend {
    ($name:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match $name {
            #[cfg(feature = "flex")]
            $crate::backend::BackendName::Flex => {
                type A = burn::backend::Autodiff<burn::backend::Flex>;
                $function::<A>(&Default::default(), $($argument),*)
            }
            #[cfg(feature = "ndarray")]
            $crate::backend::BackendName::NdArray => {
                type A = burn::backend::Autodiff<burn::backend::NdArray>;
                $function::<A>(&Default::default(), $($argument),*)
            }
        }
    };
}
pub(crate) use on_backend;
