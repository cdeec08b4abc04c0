//! Evaluates a student against its teacher on text neither was trained on.

use std::sync::Arc;

use burn::data::dataloader::DataLoader;
use burn::prelude::*;
use burn_lti::decoder::{CausalLm, TokenBatch};
use burn_lti::loss::{DistillationLoss, LossSums};
use burn_lti::train::Teacher;
use serde::{Deserialize, Serialize};

/// What an evaluation finds. Means are over tokens; a mean over none is absent, and so is one that
/// is not a number, because a model overflowed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// KL of teacher to student at temperature 1, nats per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// Cross-entropy of the student, nats per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student_ce: Option<f64>,
    /// Cross-entropy of the teacher, nats per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_ce: Option<f64>,
    /// `exp(student_ce)`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student_perplexity: Option<f64>,
    /// `exp(teacher_ce)`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_perplexity: Option<f64>,
    /// Share of tokens at which both would choose alike.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top1_agreement: Option<f64>,
    /// Tokens that had a target.
    pub tokens: u64,
}

impl From<LossSums> for Evaluation {
    fn from(sums: LossSums) -> Self {
        let known = |mean: Option<f64>| mean.filter(|_| sums.is_finite());
        let student_ce = known(sums.student_ce_mean());
        let teacher_ce = known(sums.teacher_ce_mean());
        Self {
            kl: known(sums.kl_mean()),
            student_ce,
            teacher_ce,
            student_perplexity: student_ce.map(f64::exp),
            teacher_perplexity: teacher_ce.map(f64::exp),
            top1_agreement: known(sums.top1_agreement()),
            tokens: sums.tokens as u64,
        }
    }
}

/// Compares `student` with `teacher` on all batches, telling `done` after each how many sequences
/// are done and how many there are.
pub fn evaluate<B: Backend>(
    student: &impl CausalLm<B>,
    teacher: &impl Teacher<B>,
    batches: &Arc<dyn DataLoader<B, TokenBatch<B>>>,
    mut done: impl FnMut(usize, usize),
) -> Evaluation {
    let mut sums = LossSums::default();
    let mut batches = batches.iter();
    while let Some(batch) = batches.next() {
        let targets = teacher.teach(&batch, &[]);
        let sums_of_batch = DistillationLoss::KL.sums_of(student, targets.tokens, &batch);
        sums += sums_of_batch.read();
        let progress = batches.progress();
        done(progress.items_processed, progress.items_total);
    }
    sums.into()
}
