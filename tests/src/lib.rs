//! What the suites in `tests/` share: one macro for every backend, tolerances that follow from
//! float32, an oracle in float64, and a second decoder that is no Llama.
//!
//! | module | what it holds |
//! |---|---|
//! | [`close`] | tolerances and the comparison that uses them |
//! | [`numbers`] | random numbers from a seed, the same on every backend |
//! | [`params`] | a module's parameters by name: read, changed, their gradients |
//! | [`oracle`] | the contraction and its gradients as plain loops in float64 |
//! | [`toy`] | a decoder with other names, other norms and biases everywhere |
//! | [`llama`] | the tiny Llamas in `fixtures/` |
//! | [`training`] | optimizer steps, and Burn's Learner without a terminal |

pub mod close;
pub mod llama;
pub mod numbers;
pub mod oracle;
pub mod params;
pub mod toy;
pub mod training;

/// Flex, with gradients.
#[cfg(feature = "flex")]
pub type Flex = burn::backend::Autodiff<burn::backend::Flex>;

/// ndarray, with gradients.
#[cfg(feature = "ndarray")]
pub type NdArray = burn::backend::Autodiff<burn::backend::NdArray>;

/// Runs each test on every backend that is compiled in, as `flex::name` and `ndarray::name`.
///
/// A test is a function `fn name<A: AutodiffBackend>(device: A::Device)`. One that is left out of
/// the list is unused code, which the lints refuse.
#[macro_export]
macro_rules! on_every_backend {
    ($($name:ident),+ $(,)?) => {
        #[cfg(feature = "flex")]
        mod flex {
            $(
                #[test]
                fn $name() {
                    super::$name::<$crate::Flex>(Default::default());
                }
            )+
        }

        #[cfg(feature = "ndarray")]
        mod ndarray {
            $(
                #[test]
                fn $name() {
                    super::$name::<$crate::NdArray>(Default::default());
                }
            )+
        }
    };
}

/// The name of a backend for what a test prints.
pub fn backend_name<B: burn::tensor::backend::Backend>(device: &B::Device) -> String {
    B::name(device)
}

/// An error and all its sources, as a command prints them.
pub fn chain(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(Some(error), |error| error.source());
    sources
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
