//! Learning rate by optimizer step.

use std::f64::consts::PI;

use burn::lr_scheduler::LrScheduler;
use burn::prelude::Backend;

/// Linear warm-up, then half a cosine down to a fraction of the peak, which it then holds.
///
/// Step `s`, counted from 1, of `steps` with `w` of them warm-up, has
/// `peak * s / w` while `s <= w`, then with `p = (s - w) / (steps - w)`, at most 1,
/// `peak * (f + (1 - f) (1 + cos(pi p)) / 2)`.
///
/// Unlike Burn's `CosineAnnealing` it does not start over after its end, and unlike the reference's
/// schedule its first step does not have a rate of zero.
#[derive(Clone, Copy, Debug)]
pub struct WarmupCosine {
    peak: f64,
    warmup: usize,
    steps: usize,
    final_fraction: f64,
    taken: usize,
}

impl WarmupCosine {
    /// A schedule over `steps`, of which `warmup` rise to `peak` and the rest fall to
    /// `final_fraction` of it.
    pub const fn new(peak: f64, steps: usize, warmup: usize, final_fraction: f64) -> Self {
        Self {
            peak,
            warmup,
            steps,
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
        let progress = ((step - self.warmup) as f64 / falling as f64).min(1.0);
        let cosine = 0.5 * (1.0 + (PI * progress).cos());
        self.peak * (self.final_fraction + (1.0 - self.final_fraction) * cosine)
    }
}

impl LrScheduler for WarmupCosine {
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

    #[test]
    fn rises_falls_and_holds() {
        let schedule = WarmupCosine::new(2.0, 110, 10, 0.1);
        assert!((schedule.rate(1) - 0.2).abs() < 1e-12);
        assert!((schedule.rate(10) - 2.0).abs() < 1e-12);
        assert!((schedule.rate(60) - 2.0 * 0.55).abs() < 1e-12);
        assert!((schedule.rate(110) - 0.2).abs() < 1e-12);
        assert!((schedule.rate(500) - 0.2).abs() < 1e-12);
    }

    #[test]
    fn no_warmup_and_a_single_step_are_defined() {
        assert!((WarmupCosine::new(1.0, 1, 0, 0.5).rate(1) - 0.5).abs() < 1e-12);
        assert!((WarmupCosine::new(1.0, 1, 1, 0.5).rate(1) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_record_continues_where_it_was_taken() {
        type B = burn::backend::Flex;
        let mut schedule = WarmupCosine::new(1.0, 20, 5, 0.0);
        for _ in 0..7 {
            schedule.step();
        }
        let record = schedule.to_record::<B>();
        let mut resumed = WarmupCosine::new(1.0, 20, 5, 0.0).load_record::<B>(record);
        assert_eq!(schedule.step().to_bits(), resumed.step().to_bits());
    }
}
