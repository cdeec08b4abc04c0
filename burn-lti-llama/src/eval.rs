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

/// Between which two numbers the KL of a great many documents like those that were read would be, 19 times of 20.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// The lower one.
    pub low: f64,
    /// The upper one.
    pub high: f64,
}

/// The KL of the tokens at some positions of their documents.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PositionKl {
    /// The first position, from 0.
    pub first: usize,
    /// The last one.
    pub last: usize,
    /// Tokens there that had a target.
    pub tokens: u64,
    /// Their KL, nats per token.
    pub kl: f64,
}

/// An evaluation, how far its KL may be off, and where in documents it lies.
///
/// A document is what of it lies in a sequence; documents that are [joined](crate::data::Documents::Joined) are one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DocumentEvaluation {
    /// Of all tokens.
    #[serde(flatten)]
    pub all: Evaluation,
    /// Documents that had a target.
    pub documents: usize,
    /// What the KL is worth; absent for fewer than eight documents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_interval: Option<Interval>,
    /// The KL by ranges of position, as [`ByPosition`] has them, of those with tokens.
    pub kl_by_position: Vec<PositionKl>,
}

/// As [`evaluate`], in the same pass by document and by position too.
pub fn evaluate_documents<B: Backend>(
    student: &impl CausalLm<B>,
    teacher: &impl Teacher<B>,
    batches: &Arc<dyn DataLoader<B, TokenBatch<B>>>,
    mut done: impl FnMut(usize, usize),
) -> DocumentEvaluation {
    let mut sums = LossSums::default();
    let mut shares = Shares::default();
    let mut batches = batches.iter();
    while let Some(batch) = batches.next() {
        let targets = teacher.teach(&batch, &[]);
        let hidden = student.hidden_states(&batch);
        let input = LossInput::new(hidden, student.head(), targets.tokens, &batch);
        let (sums_of_batch, kl) = DistillationLoss::KL.evaluate_tokens(input);
        sums += sums_of_batch.read();
        shares.add(&batch, &kl);
        let progress = batches.progress();
        done(progress.items_processed, progress.items_total);
    }
    let all = Evaluation::from(sums);
    let shares = match all.kl {
        Some(_) => shares,
        None => Shares::default(), // there is no KL that could be shared
    };
    DocumentEvaluation {
        all,
        documents: shares.documents.len(),
        kl_interval: interval(&shares.documents),
        kl_by_position: shares.by_position(),
    }
}

/// What a part of the tokens has of the KL.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    tokens: f64,
    /// Their sum.
    kl: f64,
}

impl Share {
    fn add(&mut self, kl: f64) {
        self.tokens += 1.0;
        self.kl += kl;
    }
}

#[derive(Debug, Default)]
struct Shares {
    documents: Vec<Share>,
    ranges: Vec<Share>,
    /// Tokens of the longest sequence.
    longest: usize,
}

impl Shares {
    fn add<B: Backend>(&mut self, batch: &TokenBatch<B>, kl: &Tensor<B, 1>) {
        let [_, length] = batch.tokens.dims();
        self.longest = self.longest.max(length);
        let [segments, positions] = [&batch.segments, &batch.positions].map(Tensor::to_data);
        let (mask, kl) = (batch.mask.to_data(), kl.to_data());
        let of_tokens = segments.iter::<i64>().zip(positions.iter::<i64>());
        let of_tokens = of_tokens.zip(mask.iter::<f32>()).zip(kl.iter::<f64>());
        let mut document = None;
        for (token, (((segment, position), counts), kl)) in of_tokens.enumerate() {
            if counts == 0.0 {
                continue;
            }
            // A document's tokens lie one after another.
            let found = Some((token / length, segment));
            if document != found {
                document = found;
                self.documents.push(Share::default());
            }
            let range = range_of(position as usize);
            let needed = self.ranges.len().max(range + 1);
            self.ranges.resize(needed, Share::default());
            self.ranges[range].add(kl);
            if let Some(document) = self.documents.last_mut() {
                document.add(kl);
            }
        }
    }

    fn by_position(&self) -> Vec<PositionKl> {
        let ranges = self.ranges.iter().enumerate();
        let ranges = ranges.filter(|(_, share)| share.tokens > 0.0);
        let found = ranges.map(|(range, share)| PositionKl {
            first: first_of(range),
            last: first_of(range + 1).min(self.longest) - 1,
            tokens: share.tokens as u64,
            kl: share.kl / share.tokens,
        });
        found.collect()
    }
}

/// Documents of which an interval is told.
const LEAST_DOCUMENTS: usize = 8;

/// The mean over tokens is the ratio of two sums over documents, of KL and of tokens, and documents are what was drawn.
/// Its variance is that of the ratio estimator (W. G. Cochran, Sampling Techniques, 3rd edition 1977, chapter 6), of a
/// sample from very many.
fn interval(documents: &[Share]) -> Option<Interval> {
    let count = documents.len() as f64;
    if documents.len() < LEAST_DOCUMENTS {
        return None;
    }
    let tokens: f64 = documents.iter().map(|share| share.tokens).sum();
    let mean = documents.iter().map(|share| share.kl).sum::<f64>() / tokens;
    let squares = documents
        .iter()
        .map(|share| (share.kl - mean * share.tokens).powi(2));
    let variance = count / (count - 1.0) * squares.sum::<f64>() / tokens.powi(2);
    let far = student_t(count - 1.0) * variance.sqrt();
    Some(Interval {
        low: (mean - far).max(0.0), // as no KL is less
        high: mean + far,
    })
}

/// What Student's t is below, 39 times of 40, by its expansion around the normal distribution (M. Abramowitz and I. A.
/// Stegun, Handbook of Mathematical Functions, 26.7.5).
fn student_t(freedom: f64) -> f64 {
    let x: f64 = 1.959_963_985;
    let terms = [
        (x.powi(3) + x) / 4.0,
        (5.0 * x.powi(5) + 16.0 * x.powi(3) + 3.0 * x) / 96.0,
        (3.0 * x.powi(7) + 19.0 * x.powi(5) + 17.0 * x.powi(3) - 15.0 * x) / 384.0,
    ];
    let by_degree = terms.iter().zip(1..);
    x + by_degree
        .map(|(term, degree)| term / freedom.powi(degree))
        .sum::<f64>()
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
    fn t_is_that_of_the_tables() {
        for (freedom, expected) in [(7.0, 2.3646), (10.0, 2.2281), (30.0, 2.0423), (1e9, 1.96)] {
            let found = student_t(freedom);
            assert!((found - expected).abs() < 1e-3, "{freedom}: {found}");
        }
    }

    #[test]
    fn few_documents_have_no_interval_and_equal_ones_a_point() {
        let shares = |count: usize| {
            let lengths = (1..=count).map(|tokens| tokens as f64);
            lengths.map(|tokens| Share {
                tokens,
                kl: 0.5 * tokens,
            })
        };
        assert_eq!(interval(&shares(7).collect::<Vec<_>>()), None);
        let found = interval(&shares(8).collect::<Vec<_>>()).unwrap();
        assert_eq!((found.low, found.high), (0.5, 0.5));
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
