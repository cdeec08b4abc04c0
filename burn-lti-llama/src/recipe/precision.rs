//! [`Precision`]: `"auto"`, or a type in which projections are multiplied.

use std::fmt;

use burn::prelude::Backend;
use burn_lti::kernels::ProductPrecision;
use serde::{Deserialize, Serialize};

/// In which type projections are multiplied in training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// The fastest in which students become as good: [`ProductPrecision::fastest`].
    #[default]
    Auto,
    /// float32.
    Float32,
    /// bfloat16, with sums in float32.
    BFloat16,
}

impl Precision {
    /// That of a model of this width on this device, and why, where the recipe leaves it open.
    pub fn on<B: Backend>(
        self,
        hidden_size: usize,
        device: &B::Device,
    ) -> (ProductPrecision, Option<String>) {
        match self {
            Self::Float32 => (ProductPrecision::Float32, None),
            Self::BFloat16 => (ProductPrecision::BFloat16, None),
            Self::Auto => {
                let (precision, reason) = ProductPrecision::fastest(hidden_size, device);
                (precision, Some(reason))
            }
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Float32 => ProductPrecision::Float32.name(),
            Self::BFloat16 => ProductPrecision::BFloat16.name(),
        })
    }
}
