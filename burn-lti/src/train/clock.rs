//! [`StepClock`]: how many optimizer steps a training has taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The number of optimizer steps taken. Clones are handles on the same number.
///
/// Whatever changes by step reads it, under any training loop:
/// [`StudentOptimizer`](super::StudentOptimizer) advances it. In step `s`, counted from 1, and until the
/// optimizer has moved the weights, it is `s - 1`.
///
/// ```
/// # use burn_lti::train::StepClock;
/// let clock = StepClock::new();
/// let reader = clock.clone();
/// clock.advance();
/// assert_eq!(reader.taken(), 1);
/// ```
#[derive(Clone, Debug, Default)]
pub struct StepClock(Arc<AtomicUsize>);

impl StepClock {
    /// A clock at zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// The steps taken so far.
    pub fn taken(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// One more step was taken.
    pub fn advance(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// So many steps were taken, by a training that goes on here.
    pub fn set(&self, taken: usize) {
        self.0.store(taken, Ordering::Relaxed);
    }
}
