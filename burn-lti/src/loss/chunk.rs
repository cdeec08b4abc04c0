//! One chunk of tokens: logits, loss terms and the gradient of the logits.

use burn::prelude::*;
use burn::tensor::IndexingUpdateOp;
use burn::tensor::activation::log_softmax;

use super::teacher::{Outcomes, TeacherChunk};
use super::{DistillationLoss, Divergence};
use crate::kernels::loss_rows::{self, LossRows, RowLoss, RowsOutput};
use crate::kernels::{slope_of_cap, soft_cap};

/// Logits and targets of `n` tokens. The logits are products with a head, in memory of their own: on a CPU
/// they are written over.
pub(super) struct Chunk<B: Backend> {
    /// `[n, vocab]`
    pub(super) student: Tensor<B, 2>,
    pub(super) teacher: TeacherChunk<B>,
    /// `[n, 1]`
    pub(super) targets: Tensor<B, 2, Int>,
    /// `[n, 1]`, 1 where a token counts.
    pub(super) mask: Tensor<B, 2>,
    /// Those that the student's logits, and the teacher's, are yet to go through.
    pub(super) caps: [Option<f64>; 2],
}

impl<B: Backend> Chunk<B> {
    /// The loss terms, and the gradient if `weight [n, 1]`, a token's share of the mean, is given.
    pub(super) fn evaluate(
        self,
        loss: &DistillationLoss,
        weight: Option<Tensor<B, 2>>,
    ) -> RowsOutput<B> {
        match (row_loss(loss, self.caps), self.teacher) {
            (Some(row_loss), TeacherChunk::Logits(teacher))
                if loss_rows::have_cpu_form([&self.student, &teacher]) =>
            {
                let rows = LossRows {
                    student: self.student,
                    teacher,
                    targets: self.targets,
                    mask: self.mask,
                };
                rows.evaluate(row_loss, weight)
            }
            (_, teacher) => Self { teacher, ..self }.evaluate_in_tensors(loss, weight),
        }
    }

    /// The same in tensor operations, on any device, with any teacher and every divergence.
    fn evaluate_in_tensors(
        mut self,
        loss: &DistillationLoss,
        weight: Option<Tensor<B, 2>>,
    ) -> RowsOutput<B> {
        let [of_student, of_teacher] = self.caps;
        if let (TeacherChunk::Logits(logits), Some(cap)) = (&mut self.teacher, of_teacher) {
            *logits = soft_cap(logits.clone(), cap);
        }
        if let Some(cap) = of_student {
            self.student = soft_cap(self.student, cap);
        }
        let outcomes = |temperature| {
            self.teacher
                .outcomes(&self.student, temperature, loss.sparse)
        };
        let tempered = outcomes(loss.temperature);
        let soft = loss.divergence.value(&tempered.teacher, &tempered.student);
        // What the loss compares may serve for the metrics, which are at temperature 1.
        let (kl, student, teacher_ce) = match &self.teacher {
            TeacherChunk::Logits(_) => {
                let untempered = (loss.temperature != 1.0).then(|| outcomes(1.0));
                let untempered = untempered.as_ref().unwrap_or(&tempered);
                let kl = match (loss.temperature == 1.0, loss.divergence) {
                    (true, Divergence::ForwardKl) => soft.clone(),
                    _ => Divergence::ForwardKl.value(&untempered.teacher, &untempered.student),
                };
                let teacher_ce = self.cross_entropy(&untempered.teacher);
                (kl, untempered.student.clone(), teacher_ce)
            }
            TeacherChunk::TopK(top) => {
                let known = top.target_log_prob.clone().map(Tensor::neg);
                let unknown = self.mask.zeros_like();
                let student = log_softmax(self.student.clone(), 1);
                (unknown.clone(), student, known.unwrap_or(unknown))
            }
        };
        let agreements = self.student.clone().argmax(1).equal(self.teacher.choice());
        let terms = [
            self.mask.ones_like(),
            soft,
            self.cross_entropy(&student),
            agreements.float().cast(self.mask.dtype()),
            kl,
            teacher_ce,
        ];
        // Every term is a column, so that one reduction sums them all.
        let terms = Tensor::cat(terms.into(), 1) * self.mask.clone();
        RowsOutput {
            sums: terms.clone().sum_dim(0).flatten(0, 1),
            terms,
            logits_grad: weight.map(|weight| {
                let gradient = self.logits_grad(loss, &tempered, student, weight);
                match of_student {
                    Some(cap) => gradient * slope_of_cap(self.student, cap),
                    None => gradient,
                }
            }),
        }
    }

    fn cross_entropy(&self, log_probs: &Tensor<B, 2>) -> Tensor<B, 2> {
        log_probs.clone().gather(1, self.targets.clone()).neg()
    }

    /// Of the logits after their cap: `weight * (alpha T dD/dz_T + (1 - alpha) (softmax(z) - y))`, where `z_T = z / T` and `D` is
    /// weighed with `T^2`. `log_probs` are the student's at temperature 1.
    fn logits_grad(
        &self,
        loss: &DistillationLoss,
        tempered: &Outcomes<B>,
        log_probs: Tensor<B, 2>,
        weight: Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        let [_, vocab] = self.student.dims();
        let soft = loss
            .divergence
            .gradient(&tempered.teacher, &tempered.student);
        let soft = match loss.alpha * loss.temperature {
            1.0 => soft,
            factor => soft.mul_scalar(factor),
        };
        let soft = tempered.to_logits(soft, vocab);
        let hard_share = 1.0 - loss.alpha;
        if hard_share == 0.0 {
            return soft * weight;
        }
        let gradient = soft + log_probs.exp().mul_scalar(hard_share);
        (gradient * weight.clone()).scatter(
            1,
            self.targets.clone(),
            weight.mul_scalar(-hard_share),
            IndexingUpdateOp::Add,
        )
    }
}

/// The part of a loss that each row has by itself; none for a divergence of mixtures, which takes more than
/// sums.
fn row_loss(loss: &DistillationLoss, caps: [Option<f64>; 2]) -> Option<RowLoss> {
    let reverse = match loss.divergence {
        Divergence::ForwardKl => false,
        Divergence::ReverseKl => true,
        Divergence::JensenShannon { .. } | Divergence::SkewedKl { .. } => return None,
    };
    Some(RowLoss {
        alpha: loss.alpha,
        temperature: loss.temperature,
        reverse,
        caps: caps.map(|cap| cap.map(|cap| cap as f32)),
    })
}
