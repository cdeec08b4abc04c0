//! Learning rate by optimizer step.

use std::f64::consts::PI;

use burn::lr_scheduler::LrScheduler;
use burn::prelude::Backend;
use serde::{Deserialize, Serialize};

/// How a rate falls after its warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// Half a cosine, at its end in the last step.
    Cosine,
    /// A straight line, at its end one step after the last: so a last step of a line to 0 still counts.
    Linear,
}

/// Linear warm-up, then a decay down to a fraction of the peak, which it then holds.
///
/// Step `s`, counted from 1, of `steps` with `w` of them warm-up, has
/// `peak * s / w` while `s <= w`, then `peak * (f + (1 - f) d)` with
///
/// | decay | `d` |
/// |---|---|
/// | [`Decay::Cosine`] | `(1 + cos(pi p)) / 2`, `p = (s - w) / (steps - w)` |
/// | [`Decay::Linear`] | `1 - p`, `p = (s - 1 - w) / (steps - w)` |
///
/// where `p` is at most 1. Unlike Burn's `CosineAnnealing` it does not start over after its end, and
/// unlike the reference's schedule its first step does not have a rate of zero.
#[derive(Clone, Copy, Debug)]
pub struct WarmupDecay {
    peak: f64,
    warmup: usize,
    steps: usize,
    decay: Decay,
    final_fraction: f64,
    taken: usize,
}

impl WarmupDecay {
    /// A schedule over `steps`, of which `warmup` rise to `peak` and the rest fall to
    /// `final_fraction` of it.
    pub const fn new(
        peak: f64,
        steps: usize,
        warmup: usize,
        decay: Decay,
        final_fraction: f64,
    ) -> Self {
        Self {
            peak,
            warmup,
            steps,
            decay,
            final_fraction,
            taken: 0,
        }
    }

    /// The rate of step `step`, counted from 1.
    pub fn rate(&self, step: usize) -> f64 {
        if step <= self.warmup {
            return self.peak * step as f64 / self.warmup as f64;
        }
        let falling = self.steps.saturating_sub(self.warmup).max(1);
        let progress = |fallen: usize| (fallen as f64 / falling as f64).min(1.0);
        let left = match self.decay {
            Decay::Cosine => 0.5 * (1.0 + (PI * progress(step - self.warmup)).cos()),
            Decay::Linear => 1.0 - progress(step - 1 - self.warmup),
        };
        self.peak * (self.final_fraction + (1.0 - self.final_fraction) * left)
    }
}

impl LrScheduler for WarmupDecay {
    type Record<B: Backend> = usize;

    fn step(&mut self) -> f64 {
        self.taken += 1;
        self.rate(self.taken)
    }

    fn to_record<B: Backend>(&self) -> usize {
        self.taken
    }

    fn load_record<B: Backend>(mut self, taken: usize) -> Self {
        self.taken = taken;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_rates(schedule: WarmupDecay, expected: &[(usize, f64)]) {
        for &(step, rate) in expected {
            let found = schedule.rate(step);
            assert!((found - rate).abs() < 1e-12, "step {step}: {found} {rate}");
        }
    }

    #[test]
    fn rises_falls_and_holds() {
        let cosine = WarmupDecay::new(2.0, 110, 10, Decay::Cosine, 0.1);
        let expected = [
            (1, 0.2),
            (10, 2.0),
            (60, 2.0 * 0.55),
            (110, 0.2),
            (500, 0.2),
        ];
        assert_rates(cosine, &expected);
        let linear = WarmupDecay::new(2.0, 110, 10, Decay::Linear, 0.0);
        let expected = [
            (1, 0.2),
            (10, 2.0),
            (11, 2.0),
            (61, 1.0),
            (110, 0.02),
            (111, 0.0),
            (500, 0.0),
        ];
        assert_rates(linear, &expected);
    }

    #[test]
    fn no_warmup_and_a_single_step_are_defined() {
        let one = |warmup, decay| WarmupDecay::new(1.0, 1, warmup, decay, 0.5);
        assert_rates(one(0, Decay::Cosine), &[(1, 0.5)]);
        assert_rates(one(0, Decay::Linear), &[(1, 1.0)]);
        assert_rates(one(1, Decay::Cosine), &[(1, 1.0)]);
    }

    #[test]
    fn a_record_continues_where_it_was_taken() {
        type B = burn::backend::Flex;
        let mut schedule = WarmupDecay::new(1.0, 20, 5, Decay::Cosine, 0.0);
        for _ in 0..7 {
            schedule.step();
        }
        let record = schedule.to_record::<B>();
        let mut resumed = WarmupDecay::new(1.0, 20, 5, Decay::Cosine, 0.0).load_record::<B>(record);
        assert_eq!(schedule.step().to_bits(), resumed.step().to_bits());
    }
}
