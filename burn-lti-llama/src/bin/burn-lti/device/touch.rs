//! The first touch of a device.
//!
//! Where a driver is missing or fails, Burn panics, often on a thread of the device's own. Here, before
//! any work and nowhere else, such a panic is made an error.

use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError};

use crate::streams::tell;
use anyhow::{Context, Result, anyhow};
use burn::prelude::Backend;
use burn::tensor::{DType, TensorData, read_sync};

/// What `touch` returns, or the message of the first panic of any thread as an error.
pub(super) fn caught<T>(touch: impl FnOnce() -> T) -> Result<T> {
    let first = Arc::new(Mutex::new(None));
    let seen = Arc::clone(&first);
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        let message = panic.payload_as_str().unwrap_or("it gives no reason");
        let mut first = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let first = first.get_or_insert_with(|| one_line(message));
        // So panics a wrapper of a C function after its own panic. After it the program is aborted, and
        // what is not said here is never said.
        if message.starts_with("panic in a function that cannot unwind") {
            tell!("error: {first}");
        }
    }));
    // Nothing of what a panic leaves half done is looked at again.
    let result = panic::catch_unwind(AssertUnwindSafe(touch));
    panic::set_hook(hook);
    result.map_err(|_| {
        let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
        anyhow!(first.take().unwrap_or_default())
    })
}

/// The messages of drivers come indented and in several lines.
fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Computes something small, so that a driver, a compiler or a header that is missing shows now.
///
/// Without a `Tensor`: the first one would fix the device's default type of numbers for good.
pub(super) fn compute<B: Backend>(device: &B::Device) -> Result<()> {
    let computed = caught(|| {
        let one = B::float_from_data(TensorData::from([1f32]), device);
        read_sync(B::float_into_data(B::float_exp(one)))
    })?;
    match computed {
        Ok(_) => Ok(()),
        Err(error) => Err(anyhow!(one_line(&error.to_string()))),
    }
}

/// The types of numbers that the device computes in.
pub(super) fn float_types<B: Backend>(device: &B::Device) -> Result<Vec<&'static str>> {
    let types = [
        ("float32", DType::F32),
        ("float16", DType::F16),
        ("bfloat16", DType::BF16),
        ("float64", DType::F64),
    ];
    caught(|| {
        let supported = types
            .into_iter()
            .filter(|(_, dtype)| B::supports_dtype(device, *dtype));
        supported.map(|(name, _)| name).collect()
    })
    .context("the device cannot be opened")
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_panic_is_an_error_with_its_message_even_from_another_thread() {
        let same: Result<()> = caught(|| panic!("no\n   driver"));
        assert_eq!(same.unwrap_err().to_string(), "no driver");
        let other: Result<()> = caught(|| {
            thread::spawn(|| panic!("the cause")).join().unwrap();
        });
        assert_eq!(other.unwrap_err().to_string(), "the cause");
        assert_eq!(caught(|| 3).unwrap(), 3);
    }
}
