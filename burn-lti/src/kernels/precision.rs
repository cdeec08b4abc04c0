//! [`ProductPrecision`]: in which float type the products of projections are.

use std::any::Any;
use std::cell::Cell;
use std::fmt;

use burn::prelude::*;
use burn::tensor::DType;
use serde::{Deserialize, Serialize};

use super::cpu::Instructions;

/// Features from which on products outweigh what it takes to round their factors: with 64 a step in bfloat16 is a
/// twentieth shorter, with 576 nearly half.
const WIDE: usize = 256;
/// How much faster products must be to make up for the rounding of factors.
const WORTH_ROUNDING: f64 = 1.5;

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

    /// The fastest in which students become as good, for a model of so many features on this device, and why.
    pub fn fastest(width: usize, device: &dyn Any) -> (Self, String) {
        match super::is_cpu(device) {
            true => Self::fastest_on_cpu(width),
            false => (
                Self::Float32,
                "no other was measured on such a device".to_owned(),
            ),
        }
    }

    /// The same on this computer's CPU.
    pub fn fastest_on_cpu(width: usize) -> (Self, String) {
        let Some(name) = Instructions::of_processor().name() else {
            let reason = "the processor has no instructions for bfloat16";
            return (Self::Float32, reason.to_owned());
        };
        if width < WIDE {
            let reason = format!("a model of {width} features gains little by another");
            return (Self::Float32, reason);
        }
        let times = Instructions::beside_float32();
        let reason = format!("{name} multiplies bfloat16 {times:.1} times as fast as float32");
        match times >= WORTH_ROUNDING {
            true => (Self::BFloat16, reason),
            false => (Self::Float32, reason),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_is_one_that_the_processor_is_fast_in() {
        let (narrow, reason) = ProductPrecision::fastest_on_cpu(64);
        assert_eq!(narrow, ProductPrecision::Float32);
        let (wide, reason_of_wide) = ProductPrecision::fastest_on_cpu(576);
        match Instructions::of_processor().name() {
            Some(name) => {
                assert!(reason.contains("64 features"), "{reason}");
                assert!(reason_of_wide.contains(name), "{reason_of_wide}");
                let fast = Instructions::beside_float32() >= WORTH_ROUNDING;
                assert_eq!(wide == ProductPrecision::BFloat16, fast);
            }
            None => assert_eq!(wide, ProductPrecision::Float32),
        }
        // No device of a backend.
        let elsewhere = ProductPrecision::fastest(576, &"elsewhere");
        assert_eq!(elsewhere.0, ProductPrecision::Float32);
    }
}
