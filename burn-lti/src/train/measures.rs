//! [`StepMeasures`]: what a training loop and its optimizer tell one another of a step.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What an optimizer measured of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// The norm of all gradients together, before clipping.
    pub grad_norm: f64,
    /// The part of the loss that the step promises to take away, to first order, before it was capped;
    /// and the rates of the tensors in it. Known where an [`Adam`](super::Adam) measures its rates.
    pub rates: Option<(f64, RateRange)>,
}

/// The rates of all tensors in a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateRange {
    /// The lowest.
    pub lowest: f64,
    /// The one in the middle, the lower of two.
    pub median: f64,
    /// The highest.
    pub highest: f64,
}

impl RateRange {
    /// The range of `rates`; `None` if there are none.
    pub(super) fn of(mut rates: Vec<f64>) -> Option<Self> {
        rates.sort_by(f64::total_cmp);
        Some(Self {
            lowest: *rates.first()?,
            median: *rates.get((rates.len() - 1) / 2)?,
            highest: *rates.last()?,
        })
    }
}

/// Where a training loop leaves the loss of a step before the optimizer takes it, and the optimizer what
/// it measured. Clones are handles on the same values.
#[derive(Clone, Debug, Default)]
pub struct StepMeasures(Arc<Mutex<Values>>);

#[derive(Debug, Default)]
struct Values {
    loss: Option<f64>,
    last: Option<Measured>,
}

impl StepMeasures {
    /// Nothing is known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The loss that the gradients of the step to come can take away, nats per token.
    pub fn set_loss(&self, loss: f64) {
        self.lock().loss = Some(loss);
    }

    /// The loss that was [set](Self::set_loss) last.
    pub fn loss(&self) -> Option<f64> {
        self.lock().loss
    }

    /// What the optimizer measured last; `None` before the first step.
    pub fn last(&self) -> Option<Measured> {
        self.lock().last
    }

    pub(super) fn set_grad_norm(&self, grad_norm: f64) {
        self.lock().last = Some(Measured {
            grad_norm,
            rates: None,
        });
    }

    pub(super) fn set_rates(&self, promise: f64, range: RateRange) {
        let mut values = self.lock();
        let grad_norm = values.last.map_or(f64::NAN, |last| last.grad_norm);
        values.last = Some(Measured {
            grad_norm,
            rates: Some((promise, range)),
        });
    }

    fn lock(&self) -> MutexGuard<'_, Values> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
