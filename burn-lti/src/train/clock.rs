//! [`StepClock`]: how many optimizer steps were taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The number of optimizer steps taken. Clones read the same number.
#[derive(Clone, Debug, Default)]
pub struct StepClock(Arc<AtomicUsize>);

impl StepClock {
    /// A clock at 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// Steps taken.
    pub fn taken(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// One more step was taken.
    pub fn advance(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// So many were.
    pub fn set(&self, taken: usize) {
        self.0.store(taken, Ordering::Relaxed);
    }
}
