//! What a program measured, as the line of JSON that it prints: `peers/common.py` prints the same.

use std::time::Instant;

use anyhow::Result;
use burn::tensor::backend::Backend;
use serde::Serialize;

use crate::memory;

/// The steps of one program on one task.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Measurement {
    /// Of each step, in order.
    pub losses: Vec<f64>,
    /// That each step took, until the device was done with it.
    pub seconds: Vec<f64>,
    /// The most memory of the process until its first step, in MiB.
    pub start_peak_mib: Option<f64>,
    /// The most memory of the process from its first step on, in MiB.
    pub step_peak_mib: Option<f64>,
}

impl Measurement {
    /// Takes `count` steps, each of which gives its loss.
    ///
    /// # Errors
    ///
    /// That of a step, and one if the device does not answer.
    pub fn of_steps<B: Backend>(
        count: usize,
        device: &B::Device,
        mut step: impl FnMut() -> Result<f64>,
    ) -> Result<Self> {
        let synchronise = || {
            B::sync(device)
                .map_err(|error| anyhow::anyhow!("the device does not answer: {error:?}"))
        };
        synchronise()?;
        let mut measured = Self {
            start_peak_mib: memory::peak_mib(),
            ..Self::default()
        };
        memory::forget_peak();
        for _ in 0..count {
            let began = Instant::now();
            measured.losses.push(step()?);
            synchronise()?;
            measured.seconds.push(began.elapsed().as_secs_f64());
        }
        measured.step_peak_mib = memory::peak_mib();
        Ok(measured)
    }
}
