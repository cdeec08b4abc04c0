//! One chunk of tokens: logits, loss terms and the gradient of the logits.

use burn::prelude::*;
use burn::tensor::IndexingUpdateOp;
use burn::tensor::activation::log_softmax;

/// Logits and targets of `n` tokens.
pub(super) struct Chunk<B: Backend> {
    /// `[n, vocab]`
    pub(super) student: Tensor<B, 2>,
    /// `[n, vocab]`
    pub(super) teacher: Tensor<B, 2>,
    /// `[n, 1]`
    pub(super) targets: Tensor<B, 2, Int>,
    /// `[n, 1]`, 1 where a token counts.
    pub(super) mask: Tensor<B, 2>,
}

/// Log-probabilities of both models at one temperature, `[n, vocab]` each.
struct LogProbs<B: Backend> {
    student: Tensor<B, 2>,
    teacher: Tensor<B, 2>,
}

impl<B: Backend> LogProbs<B> {
    /// `KL(teacher || student)` of each token, `[n, 1]`.
    fn kl(&self) -> Tensor<B, 2> {
        let difference = self.teacher.clone() - self.student.clone();
        (self.teacher.clone().exp() * difference).sum_dim(1)
    }
}

/// What one chunk adds to the whole.
pub(super) struct ChunkOutput<B: Backend> {
    /// `[tokens, soft, kl, student_ce, teacher_ce, agreements]`
    pub(super) sums: Tensor<B, 1>,
    /// Gradient with respect to the student's logits, if it was asked for, `[n, vocab]`.
    pub(super) logits_grad: Option<Tensor<B, 2>>,
}

/// How the loss is mixed, and what each token's gradient is multiplied by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mix {
    pub(super) alpha: f64,
    pub(super) temperature: f64,
}

impl<B: Backend> Chunk<B> {
    /// The loss terms, and the gradient if `weight [n, 1]`, a token's share of the mean, is given.
    pub(super) fn evaluate(self, mix: Mix, weight: Option<Tensor<B, 2>>) -> ChunkOutput<B> {
        let cold = self.log_probs(1.0);
        let kl = cold.kl();
        let (soft, warm) = if mix.temperature == 1.0 {
            (kl.clone(), None)
        } else {
            let warm = self.log_probs(mix.temperature);
            (warm.kl(), Some(warm))
        };
        let agreements = self
            .student
            .clone()
            .argmax(1)
            .equal(self.teacher.clone().argmax(1))
            .float();
        let terms = [
            self.mask.ones_like(),
            soft,
            kl,
            self.cross_entropy(&cold.student),
            self.cross_entropy(&cold.teacher),
            agreements,
        ];
        let sums = terms
            .into_iter()
            .map(|term| (term * self.mask.clone()).sum())
            .collect();
        ChunkOutput {
            sums: Tensor::cat(sums, 0),
            logits_grad: weight.map(|weight| self.logits_grad(cold, warm, mix, weight)),
        }
    }

    fn log_probs(&self, temperature: f64) -> LogProbs<B> {
        let at = |logits: &Tensor<B, 2>| match temperature {
            1.0 => log_softmax(logits.clone(), 1),
            _ => log_softmax(logits.clone().div_scalar(temperature), 1),
        };
        LogProbs {
            student: at(&self.student),
            teacher: at(&self.teacher),
        }
    }

    fn cross_entropy(&self, log_probs: &Tensor<B, 2>) -> Tensor<B, 2> {
        log_probs.clone().gather(1, self.targets.clone()).neg()
    }

    /// `weight * (alpha T (p_T - q_T) + (1 - alpha) (p_1 - y))`
    fn logits_grad(
        &self,
        cold: LogProbs<B>,
        warm: Option<LogProbs<B>>,
        mix: Mix,
        weight: Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        let Mix { alpha, temperature } = mix;
        let hard_share = 1.0 - alpha;
        let student = cold.student.exp();
        let gradient = match warm {
            None => student - cold.teacher.exp().mul_scalar(alpha),
            Some(warm) => {
                let soft =
                    (warm.student.exp() - warm.teacher.exp()).mul_scalar(alpha * temperature);
                match hard_share {
                    0.0 => soft,
                    share => soft + student.mul_scalar(share),
                }
            }
        };
        let gradient = gradient * weight.clone();
        if hard_share == 0.0 {
            return gradient;
        }
        gradient.scatter(
            1,
            self.targets.clone(),
            weight.mul_scalar(-hard_share),
            IndexingUpdateOp::Add,
        )
    }
}
