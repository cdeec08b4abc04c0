//! What a loss adds up over tokens. Sums and a count, never means of means.

use std::ops::AddAssign;

use burn::prelude::*;
use serde::Serialize;

/// Sums over the tokens that had a target. Divide by `tokens` at the very end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct LossSums {
    /// How many tokens were counted.
    pub tokens: f64,
    /// The whole loss, mixed as it was trained.
    pub loss: f64,
    /// KL of teacher to student at the loss's temperature, without the factor `T^2`.
    pub soft: f64,
    /// KL of teacher to student at temperature 1, in nats.
    pub kl: f64,
    /// Cross-entropy of the student, in nats.
    pub student_ce: f64,
    /// Cross-entropy of the teacher, in nats.
    pub teacher_ce: f64,
    /// Tokens at which student and teacher would choose alike.
    pub agreements: f64,
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

    /// Mean KL at the loss's temperature, without the factor `T^2`.
    pub fn soft_mean(&self) -> Option<f64> {
        self.mean(self.soft)
    }

    /// Mean KL at temperature 1, nats per token.
    pub fn kl_mean(&self) -> Option<f64> {
        self.mean(self.kl)
    }

    /// Mean cross-entropy of the student, nats per token.
    pub fn student_ce_mean(&self) -> Option<f64> {
        self.mean(self.student_ce)
    }

    /// Mean cross-entropy of the teacher, nats per token.
    pub fn teacher_ce_mean(&self) -> Option<f64> {
        self.mean(self.teacher_ce)
    }

    /// Share of tokens at which both would choose alike.
    pub fn top1_agreement(&self) -> Option<f64> {
        self.mean(self.agreements)
    }

    /// Whether every sum is a finite number.
    pub fn is_finite(&self) -> bool {
        [
            self.loss,
            self.soft,
            self.kl,
            self.student_ce,
            self.teacher_ce,
        ]
        .iter()
        .all(|sum| sum.is_finite())
    }
}

impl AddAssign for LossSums {
    fn add_assign(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.loss += other.loss;
        self.soft += other.soft;
        self.kl += other.kl;
        self.student_ce += other.student_ce;
        self.teacher_ce += other.teacher_ce;
        self.agreements += other.agreements;
    }
}

/// [`LossSums`] still on the device, so that a training step need not wait for them.
#[derive(Clone, Debug)]
pub struct LossSumsTensor<B: Backend> {
    /// `[tokens, soft, kl, student_ce, teacher_ce, agreements]`
    pub(super) values: Tensor<B, 1>,
    pub(super) alpha: f64,
    pub(super) temperature: f64,
}

impl<B: Backend> LossSumsTensor<B> {
    /// Waits for the device and reads the sums.
    pub fn read(&self) -> LossSums {
        let values: Vec<f64> = self.values.to_data().iter::<f64>().collect();
        let &[tokens, soft, kl, student_ce, teacher_ce, agreements] = values.as_slice() else {
            return LossSums::default(); // six values are all that is ever put in
        };
        LossSums {
            tokens,
            loss: self.alpha * self.temperature.powi(2) * soft + (1.0 - self.alpha) * student_ce,
            soft,
            kl,
            student_ce,
            teacher_ce,
            agreements,
        }
    }
}
