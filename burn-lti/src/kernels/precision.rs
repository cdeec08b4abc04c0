//! [`ProductPrecision`]: in which float type the products of projections are.

use std::cell::Cell;
use std::fmt;

use burn::prelude::*;
use burn::tensor::DType;
use serde::{Deserialize, Serialize};

thread_local! {
    static CURRENT: Cell<ProductPrecision> = const { Cell::new(ProductPrecision::Float32) };
}

/// The float type in which projections, and the products of the loss with the head, are multiplied: forwards
/// and backwards. All else, sums of products too, stays in the type of the tensors.
///
/// It holds for what a thread computes within [`ProductPrecision::scope`], as PyTorch's `autocast` does, and goes
/// backwards with the graph that was made there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProductPrecision {
    /// That of the tensors.
    #[default]
    Float32,
    /// Tensors of float32 are rounded to bfloat16, 8 bits of precision, before they are multiplied, and sums
    /// are float32.
    BFloat16,
}

impl ProductPrecision {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Float32, Self::BFloat16];

    /// As recipes have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::BFloat16 => "bfloat16",
        }
    }

    /// Does `work` with products in this precision, which the device must have
    /// ([`is_supported`](Self::is_supported)): one that lacks it does as Burn does when it is asked to compute in
    /// that type.
    pub fn scope<T>(self, work: impl FnOnce() -> T) -> T {
        /// Also if `work` panics.
        struct Back(ProductPrecision);
        impl Drop for Back {
            fn drop(&mut self) {
                CURRENT.set(self.0);
            }
        }
        let _back = Back(CURRENT.replace(self));
        work()
    }

    /// That of the scope that this thread is in.
    pub(crate) fn current() -> Self {
        CURRENT.get()
    }

    /// Whether this device has it.
    pub fn is_supported<B: Backend>(self, device: &B::Device) -> bool {
        match self {
            Self::Float32 => true,
            Self::BFloat16 => super::is_cpu(device) || B::supports_dtype(device, DType::BF16),
        }
    }
}

impl fmt::Display for ProductPrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
