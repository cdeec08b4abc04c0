//! Evaluates a student against its teacher on text neither was trained on.

use std::sync::Arc;

use burn::data::dataloader::DataLoader;
use burn::prelude::*;
use burn::tensor::TensorData;
use burn_lti::decoder::{CausalLm, LayeredDecoder, TokenBatch};
use burn_lti::loss::{DistillationLoss, LossInput, LossSums};
use burn_lti::train::Teacher;
use serde::{Deserialize, Serialize};

use crate::model::NotFinite;

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

/// Why an evaluation has no figures.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// A model computes no numbers.
    #[error(transparent)]
    NotFinite(#[from] NotFinite),
    /// Both compute numbers, between which there is no finite distance.
    #[error(
        "{student} and {teacher} compute finite logits, but so large that their difference is not: the weights of \
         one are damaged; get them again"
    )]
    TooLarge {
        /// What the teacher is called.
        teacher: String,
        /// What the student is called.
        student: String,
    },
}

impl Evaluation {
    /// Checks that there are figures if there were tokens. Where there are none, teacher and student, each with
    /// what it is called, read the batches again, to find out whose fault it is.
    ///
    /// # Errors
    ///
    /// [`EvalError`], naming the model and the first part of it that computes no numbers.
    pub fn check_finite<B: Backend>(
        &self,
        (teacher_is, teacher): (&str, &impl LayeredDecoder<B>),
        (student_is, student): (&str, &impl LayeredDecoder<B>),
        batches: &Arc<dyn DataLoader<B, TokenBatch<B>>>,
    ) -> Result<(), EvalError> {
        if self.tokens == 0 || self.kl.is_some() {
            return Ok(());
        }
        for batch in batches.iter() {
            NotFinite::check(teacher_is, teacher, &batch)?;
            NotFinite::check(student_is, student, &batch)?;
        }
        Err(EvalError::TooLarge {
            teacher: teacher_is.to_owned(),
            student: student_is.to_owned(),
        })
    }
}

/// An evaluation of the tokens at some positions of their documents.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PositionEvaluation {
    /// The first position, from 0.
    pub first: usize,
    /// The last one.
    pub last: usize,
    /// What was found there.
    #[serde(flatten)]
    pub evaluation: Evaluation,
}

/// An evaluation, and the same by ranges of position: 0 to 31, 32 to 63, 64 to 127 and so on, twice as
/// many each time. A token's position is that in its document, as far as its sequence has it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ByPosition {
    /// Of all tokens: what the ranges add up to.
    #[serde(flatten)]
    pub all: Evaluation,
    /// Of each range that a sequence is long enough for.
    pub by_position: Vec<PositionEvaluation>,
}

/// Positions in the first range.
const FIRST_RANGE: usize = 32;

/// As [`evaluate`], by ranges of position too.
pub fn evaluate_by_position<B: Backend>(
    student: &impl CausalLm<B>,
    teacher: &impl Teacher<B>,
    batches: &Arc<dyn DataLoader<B, TokenBatch<B>>>,
    mut done: impl FnMut(usize, usize),
) -> ByPosition {
    let mut ranges: Vec<LossSums> = Vec::new();
    let mut longest = 0;
    let mut batches = batches.iter();
    while let Some(batch) = batches.next() {
        let [_, tokens] = batch.tokens.dims();
        longest = longest.max(tokens);
        let needed = range_of(longest.saturating_sub(1)) + 1;
        ranges.resize(ranges.len().max(needed), LossSums::default());
        let targets = teacher.teach(&batch, &[]);
        let hidden = student.hidden_states(&batch);
        let input = LossInput::new(hidden, student.head(), targets.tokens, &batch);
        for (range, tokens) in tokens_in_ranges(&batch).into_iter().enumerate() {
            if !tokens.is_empty() {
                let count = tokens.len();
                let tokens = TensorData::new(tokens, [count]);
                let of_range = input.select(Tensor::from_data(tokens, &batch.tokens.device()));
                ranges[range] += DistillationLoss::KL.evaluate(of_range).read();
            }
        }
        let progress = batches.progress();
        done(progress.items_processed, progress.items_total);
    }
    let mut all = LossSums::default();
    let mut by_position = Vec::new();
    for (range, sums) in ranges.into_iter().enumerate() {
        all += sums;
        by_position.push(PositionEvaluation {
            first: first_of(range),
            last: first_of(range + 1).min(longest) - 1,
            evaluation: sums.into(),
        });
    }
    ByPosition {
        all: all.into(),
        by_position,
    }
}

/// For each range the numbers of the batch's tokens in it that have a target.
fn tokens_in_ranges<B: Backend>(batch: &TokenBatch<B>) -> Vec<Vec<i32>> {
    let (positions, mask) = (batch.positions.to_data(), batch.mask.to_data());
    let mut ranges = Vec::new();
    let tokens = positions.iter::<i64>().zip(mask.iter::<f32>());
    for (token, (position, counts)) in (0..).zip(tokens) {
        let range = range_of(position as usize);
        if counts > 0.0 {
            ranges.resize(ranges.len().max(range + 1), Vec::new());
            ranges[range].push(token);
        }
    }
    ranges
}

/// The range that a position is in.
const fn range_of(position: usize) -> usize {
    match position / FIRST_RANGE {
        0 => 0,
        doublings => 1 + doublings.ilog2() as usize,
    }
}

/// The first position of a range.
const fn first_of(range: usize) -> usize {
    match range {
        0 => 0,
        _ => FIRST_RANGE << (range - 1),
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::*;
    use crate::data::{loader, pack};
    use crate::model::fixture::{broken_model, model};
    use crate::model::{Place, PlainLlama};

    #[test]
    fn the_model_that_computes_no_numbers_is_named() {
        let batches = loader::<Flex>(pack([vec![1, 5, 9, 40]], 6), 2, None, &Default::default());
        let (whole, broken) = (model(61), broken_model(61));
        let checked = |teacher: &PlainLlama<Flex>, student: &PlainLlama<Flex>| {
            let found = evaluate(student, teacher, &batches, |_, _| {});
            found.check_finite(("the teacher", teacher), ("the student", student), &batches)
        };
        checked(&whole, &whole).unwrap();
        for (teacher, student, named) in [
            (&broken, &whole, "the teacher"),
            (&whole, &broken, "the student"),
        ] {
            let error = checked(teacher, student).unwrap_err();
            let EvalError::NotFinite(NotFinite { model, place }) = error else {
                panic!("{error}");
            };
            assert_eq!((model.as_str(), place), (named, Place::Embedding));
        }
        // Nothing is known, and both are sound.
        let nothing = Evaluation {
            tokens: 1,
            ..LossSums::default().into()
        };
        let sound = ("a", &whole);
        let error = nothing
            .check_finite(sound, ("b", &whole), &batches)
            .unwrap_err();
        assert!(
            error.to_string().contains("b and a compute finite logits"),
            "{error}"
        );
    }

    #[test]
    fn each_range_is_as_long_as_all_before() {
        let firsts = [0, 1, 2, 3, 4, 5].map(first_of);
        assert_eq!(firsts, [0, 32, 64, 128, 256, 512]);
        for position in 0..2000 {
            let range = range_of(position);
            assert!(first_of(range) <= position && position < first_of(range + 1));
        }
    }
}
