//! The loss's sums as Burn metrics.

use std::sync::Arc;

use burn::train::metric::state::{FormatOptions, NumericMetricState};
use burn::train::metric::{
    Adaptor, Metric, MetricAttributes, MetricMetadata, MetricName, Numeric, NumericAttributes,
    NumericEntry, SerializedEntry,
};

use crate::loss::LossSums;

/// The mean of one of the loss's sums over tokens, weighted by tokens across batches.
#[derive(Clone)]
pub struct TokenMean {
    name: MetricName,
    higher_is_better: bool,
    sum: fn(&LossSums) -> Option<f64>,
    state: NumericMetricState,
}

impl TokenMean {
    fn new(name: &str, higher_is_better: bool, sum: fn(&LossSums) -> Option<f64>) -> Self {
        Self {
            name: Arc::new(name.to_owned()),
            higher_is_better,
            sum,
            state: NumericMetricState::new(),
        }
    }

    /// The loss as it is trained. Named `Loss`, which Burn's checkpointers look for.
    pub fn loss() -> Self {
        Self::new("Loss", false, |sums| Some(sums.loss))
    }

    /// KL of teacher to student at temperature 1, nats per token.
    pub fn kl() -> Self {
        Self::new("KL", false, |sums| sums.kl)
    }

    /// The divergence that the loss weighs with `alpha T^2`, nats per token.
    pub fn soft() -> Self {
        Self::new("Soft", false, |sums| Some(sums.soft))
    }

    /// Distance of the features, without its weight.
    pub fn feature() -> Self {
        Self::new("Feature", false, |sums| sums.feature)
    }

    /// Cross-entropy of the student, nats per token.
    pub fn student_ce() -> Self {
        Self::new("Student CE", false, |sums| Some(sums.student_ce))
    }

    /// Cross-entropy of the teacher, nats per token.
    pub fn teacher_ce() -> Self {
        Self::new("Teacher CE", false, |sums| sums.teacher_ce)
    }

    /// Share of tokens at which both would choose alike.
    pub fn top1_agreement() -> Self {
        Self::new("Top-1 agreement", true, |sums| Some(sums.agreements))
    }
}

impl Metric for TokenMean {
    type Input = LossSums;

    fn name(&self) -> MetricName {
        self.name.clone()
    }

    fn attributes(&self) -> MetricAttributes {
        NumericAttributes {
            unit: None,
            higher_is_better: self.higher_is_better,
        }
        .into()
    }

    fn update(&mut self, sums: &LossSums, _metadata: &MetricMetadata) -> SerializedEntry {
        let tokens = sums.tokens as usize;
        let unknown = |why: &str| {
            // Not shown to the state, so that it leaves the running mean alone.
            SerializedEntry::new(why.into(), NumericEntry::Value(f64::NAN).serialize())
        };
        match (self.sum)(sums) {
            None => unknown("unknown"),
            Some(_) if tokens == 0 => unknown("no tokens"),
            Some(sum) => {
                let format = FormatOptions::new(self.name()).precision(4);
                self.state.update(sum / sums.tokens, tokens, format)
            }
        }
    }

    fn clear(&mut self) {
        self.state.reset();
    }
}

impl Numeric for TokenMean {
    fn value(&self) -> NumericEntry {
        self.state.current_value()
    }

    fn running_value(&self) -> NumericEntry {
        self.state.running_value()
    }
}

impl Adaptor<LossSums> for LossSums {
    fn adapt(&self) -> LossSums {
        *self
    }
}
