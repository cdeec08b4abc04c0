//! What a loss adds up over tokens. Sums and a count, never means of means.

use std::ops::AddAssign;

use burn::prelude::*;
use serde::{Deserialize, Serialize};

use super::DistillationLoss;

/// Sums over the tokens that had a target. Divide by `tokens` at the very end. What is not known of
/// some of the tokens is not known of the sum.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossSums {
    /// How many tokens were counted.
    pub tokens: f64,
    /// The whole loss, mixed as it was trained.
    pub loss: f64,
    /// The divergence from the teacher at the loss's temperature, without the factor `T^2`.
    pub soft: f64,
    /// Cross-entropy of the student, in nats.
    pub student_ce: f64,
    /// Tokens at which student and teacher would choose alike.
    pub agreements: f64,
    /// KL of teacher to student at temperature 1, in nats. Not known from a teacher's top tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// Cross-entropy of the teacher, in nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_ce: Option<f64>,
    /// Distance of the features, averaged over the pairs of layers, without its weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feature: Option<f64>,
    /// `alpha`, once for each token.
    pub alpha: f64,
    /// The temperature, once for each token.
    pub temperature: f64,
    /// The weight of the feature loss, once for each token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feature_weight: Option<f64>,
}

/// Of no tokens.
impl Default for LossSums {
    fn default() -> Self {
        Self {
            tokens: 0.0,
            loss: 0.0,
            soft: 0.0,
            student_ce: 0.0,
            agreements: 0.0,
            kl: Some(0.0),
            teacher_ce: Some(0.0),
            feature: Some(0.0),
            alpha: 0.0,
            temperature: 0.0,
            feature_weight: Some(0.0),
        }
    }
}

impl LossSums {
    /// A mean over tokens; `None` if there were none.
    fn mean(&self, sum: f64) -> Option<f64> {
        (self.tokens > 0.0).then(|| sum / self.tokens)
    }

    /// Mean loss per token.
    pub fn loss_mean(&self) -> Option<f64> {
        self.mean(self.loss)
    }

    /// Mean of the loss that training can take away, per token: without the cross-entropy that the
    /// teacher itself has, where it is known. At least a part of the loss, so that a student better than
    /// its teacher has some left.
    pub fn excess_mean(&self) -> Option<f64> {
        const LEAST: f64 = 0.05;
        let loss = self.loss_mean()?;
        let (alpha, teacher) = (self.alpha_mean()?, self.teacher_ce_mean().unwrap_or(0.0));
        Some((loss - (1.0 - alpha) * teacher).max(LEAST * loss))
    }

    /// Mean divergence at the loss's temperature, without the factor `T^2`.
    pub fn soft_mean(&self) -> Option<f64> {
        self.mean(self.soft)
    }

    /// Mean KL at temperature 1, nats per token.
    pub fn kl_mean(&self) -> Option<f64> {
        self.mean(self.kl?)
    }

    /// Mean cross-entropy of the student, nats per token.
    pub fn student_ce_mean(&self) -> Option<f64> {
        self.mean(self.student_ce)
    }

    /// Mean cross-entropy of the teacher, nats per token.
    pub fn teacher_ce_mean(&self) -> Option<f64> {
        self.mean(self.teacher_ce?)
    }

    /// Share of tokens at which both would choose alike.
    pub fn top1_agreement(&self) -> Option<f64> {
        self.mean(self.agreements)
    }

    /// Mean distance of the features, without its weight.
    pub fn feature_mean(&self) -> Option<f64> {
        self.mean(self.feature?)
    }

    /// Mean `alpha`.
    pub fn alpha_mean(&self) -> Option<f64> {
        self.mean(self.alpha)
    }

    /// Mean temperature.
    pub fn temperature_mean(&self) -> Option<f64> {
        self.mean(self.temperature)
    }

    /// Mean weight of the feature loss.
    pub fn feature_weight_mean(&self) -> Option<f64> {
        self.mean(self.feature_weight?)
    }

    /// Whether every sum that is known is a finite number.
    pub fn is_finite(&self) -> bool {
        let always = [self.loss, self.soft, self.student_ce];
        let known = [self.kl, self.teacher_ce, self.feature];
        always
            .into_iter()
            .chain(known.into_iter().flatten())
            .all(f64::is_finite)
    }
}

impl AddAssign for LossSums {
    fn add_assign(&mut self, other: Self) {
        let both = |a: Option<f64>, b: Option<f64>| Some(a? + b?);
        self.tokens += other.tokens;
        self.loss += other.loss;
        self.soft += other.soft;
        self.student_ce += other.student_ce;
        self.agreements += other.agreements;
        self.kl = both(self.kl, other.kl);
        self.teacher_ce = both(self.teacher_ce, other.teacher_ce);
        self.feature = both(self.feature, other.feature);
        self.alpha += other.alpha;
        self.temperature += other.temperature;
        self.feature_weight = both(self.feature_weight, other.feature_weight);
    }
}

/// Which sums a teacher's outputs give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) kl: bool,
    pub(super) teacher_ce: bool,
}

/// [`LossSums`] still on the device, so that a training step need not wait for them.
#[derive(Clone, Debug)]
pub struct LossSumsTensor<B: Backend> {
    /// `[tokens, soft, student_ce, agreements, kl, teacher_ce, feature]`
    pub(super) values: Tensor<B, 1>,
    pub(super) known: Known,
    pub(super) loss: DistillationLoss,
}

impl<B: Backend> LossSumsTensor<B> {
    /// Waits for the device and reads the sums.
    pub fn read(&self) -> LossSums {
        let values: Vec<f64> = self.values.to_data().iter::<f64>().collect();
        let &[
            tokens,
            soft,
            student_ce,
            agreements,
            kl,
            teacher_ce,
            feature,
        ] = values.as_slice()
        else {
            return LossSums::default(); // seven values are all that is ever put in
        };
        let loss = &self.loss;
        let (alpha, temperature) = (loss.alpha, loss.temperature);
        let feature_weight = loss.feature.map(|feature| feature.weight);
        LossSums {
            tokens,
            loss: alpha * temperature.powi(2) * soft
                + (1.0 - alpha) * student_ce
                + feature_weight.unwrap_or(0.0) * feature,
            soft,
            student_ce,
            agreements,
            kl: self.known.kl.then_some(kl),
            teacher_ce: self.known.teacher_ce.then_some(teacher_ce),
            feature: loss.feature.map(|_| feature),
            alpha: alpha * tokens,
            temperature: temperature * tokens,
            feature_weight: feature_weight.map(|weight| weight * tokens),
        }
    }
}
