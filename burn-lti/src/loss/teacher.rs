//! A teacher's outputs on tokens: hidden states and a head, or only its likeliest tokens.

use std::ops::Range;

use burn::prelude::*;
use burn::tensor::activation::{log_softmax, softmax};

use serde::{Deserialize, Serialize};

use crate::decoder::Head;
use crate::kernels::head_product;

/// A teacher's outputs on `n` tokens.
#[derive(Clone, Debug)]
pub enum TeacherTokens<B: Backend> {
    /// Everything: its final hidden states, and the head that makes logits of them.
    Hidden {
        /// `[n, d_teacher]`
        hidden: Tensor<B, 2>,
        /// `[d_teacher, vocab]`
        head: Head<B>,
    },
    /// Its likeliest tokens, as a cache keeps them.
    TopK(TopK<B>),
}

/// A teacher's `k` likeliest tokens at each of `n` positions, and how likely the rest is.
#[derive(Clone, Debug)]
pub struct TopK<B: Backend> {
    /// Their ids, the likeliest first, no two alike in a row, `[n, k]`.
    pub ids: Tensor<B, 2, Int>,
    /// Natural logarithms of their probabilities at temperature 1, `[n, k]`.
    pub log_probs: Tensor<B, 2>,
    /// Logarithm of the probability of all other tokens together, `[n, 1]`. Not read where `k` is the
    /// whole vocabulary.
    pub log_tail: Tensor<B, 2>,
    /// Log-probability of the target, `[n, 1]`, if it is known: for the teacher's cross-entropy.
    pub target_log_prob: Option<Tensor<B, 2>>,
}

/// How the tokens outside a teacher's top `k` count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SparseForm {
    /// Together, as one more outcome: what the student gives to them costs it something.
    ///
    /// At a temperature other than 1 the teacher's share of that outcome follows from the assumption
    /// that it is spread evenly over the tokens in it; the student's is exact.
    #[default]
    Tail,
    /// Not at all: both distributions are renormalised over the `k`, as the reference does. What the
    /// student gives to other tokens is free.
    Renormalised,
}

/// A logarithm of next to nothing (3.7e-44), in the place of one of nothing: the product of infinity
/// and 0 is no number.
const LOG_NOTHING: f64 = -100.0;
/// Added to a logit, it takes the token out of a softmax in float32 as well as in bfloat16.
const OUT: f64 = -1e30;

/// Both models' log-probabilities over the same outcomes, `[n, outcomes]` each, and how the student's
/// outcomes hang together with its logits.
pub(super) struct Outcomes<B: Backend> {
    pub(super) teacher: Tensor<B, 2>,
    pub(super) student: Tensor<B, 2>,
    support: Support<B>,
}

enum Support<B: Backend> {
    /// Every token is an outcome.
    Vocabulary,
    /// The tokens with these ids are, `[n, k]`.
    TopK(Tensor<B, 2, Int>),
    /// So are they, and the last outcome is all others, among which the student's shares are
    /// `rest [n, vocab]`.
    TopKAndTail {
        ids: Tensor<B, 2, Int>,
        rest: Tensor<B, 2>,
    },
}

impl<B: Backend> Outcomes<B> {
    /// Every token is an outcome. Both are logits divided by the temperature, `[n, vocab]`.
    pub(super) fn all(teacher: Tensor<B, 2>, student: Tensor<B, 2>) -> Self {
        Self {
            teacher: log_softmax(teacher, 1),
            student: log_softmax(student, 1),
            support: Support::Vocabulary,
        }
    }

    /// The outcomes that a teacher's top `k` tells apart. `student` is divided by the temperature,
    /// `[n, vocab]`.
    pub(super) fn of_top_k(
        teacher: &TopK<B>,
        student: Tensor<B, 2>,
        temperature: f64,
        form: SparseForm,
    ) -> Self {
        let [_, vocab] = student.dims();
        let [_, k] = teacher.ids.dims();
        let ids = teacher.ids.clone();
        let top = student.clone().gather(1, ids.clone());
        let teacher_top = teacher.log_probs.clone().div_scalar(temperature);
        if form == SparseForm::Renormalised || k == vocab {
            return Self {
                teacher: log_softmax(teacher_top, 1),
                student: log_softmax(top, 1),
                support: Support::TopK(ids),
            };
        }
        let out = top.full_like(OUT);
        let rest = student.scatter(1, ids.clone(), out, burn::tensor::IndexingUpdateOp::Add);
        // Of `m` tokens that share the tail evenly, each has `tail / m`; that to the power of `1 / T`,
        // times `m`, is what they have at temperature `T`, before it is normalised.
        let log_others = ((vocab - k) as f64).ln();
        let teacher_tail = teacher
            .log_tail
            .clone()
            .clamp_min(LOG_NOTHING)
            .sub_scalar(log_others)
            .div_scalar(temperature)
            .add_scalar(log_others);
        Self {
            teacher: log_softmax(Tensor::cat(vec![teacher_top, teacher_tail], 1), 1),
            student: log_softmax(Tensor::cat(vec![top, log_sum_exp(&rest)], 1), 1),
            support: Support::TopKAndTail {
                ids,
                rest: softmax(rest, 1),
            },
        }
    }

    /// The gradient with respect to the student's logits, `[n, vocab]`, that follows from one with
    /// respect to the outcomes' logits, `[n, outcomes]`. The logit of the tail is the log-sum-exp of
    /// those in it, whose gradient is their softmax.
    pub(super) fn to_logits(&self, gradient: Tensor<B, 2>, vocab: usize) -> Tensor<B, 2> {
        match &self.support {
            Support::Vocabulary => gradient,
            Support::TopK(ids) => {
                let [n, _] = gradient.dims();
                let zeros = Tensor::zeros([n, vocab], (&gradient.device(), gradient.dtype()));
                add_at(zeros, ids, gradient)
            }
            Support::TopKAndTail { ids, rest } => {
                let [_, k] = ids.dims();
                let top = gradient.clone().narrow(1, 0, k);
                add_at(rest.clone() * gradient.narrow(1, k, 1), ids, top)
            }
        }
    }
}

fn add_at<B: Backend>(
    to: Tensor<B, 2>,
    ids: &Tensor<B, 2, Int>,
    values: Tensor<B, 2>,
) -> Tensor<B, 2> {
    to.scatter(1, ids.clone(), values, burn::tensor::IndexingUpdateOp::Add)
}

/// Of each row, `[n, 1]`.
fn log_sum_exp<B: Backend>(logits: &Tensor<B, 2>) -> Tensor<B, 2> {
    let largest = logits.clone().max_dim(1);
    (logits.clone() - largest.clone()).exp().sum_dim(1).log() + largest
}

impl<B: Backend> TeacherTokens<B> {
    /// Its outputs on these tokens, `[m]`.
    pub(super) fn select(&self, tokens: &Tensor<B, 1, Int>) -> Self {
        let rows = |of: &Tensor<B, 2>| of.clone().select(0, tokens.clone());
        match self {
            Self::Hidden { hidden, head } => Self::Hidden {
                hidden: rows(hidden),
                head: head.clone(),
            },
            Self::TopK(top) => Self::TopK(TopK {
                ids: top.ids.clone().select(0, tokens.clone()),
                log_probs: rows(&top.log_probs),
                log_tail: rows(&top.log_tail),
                target_log_prob: top.target_log_prob.as_ref().map(rows),
            }),
        }
    }

    /// The cap of its logits, if they have one and are yet to go through it.
    pub(super) const fn cap(&self) -> Option<f64> {
        match self {
            Self::Hidden { head, .. } => head.cap,
            Self::TopK(_) => None,
        }
    }

    /// Its outputs on a chunk of the tokens, logits in the float type of `mask` and before their cap.
    pub(super) fn chunk(&self, range: Range<usize>, mask: &Tensor<B, 2>) -> TeacherChunk<B> {
        match self {
            Self::Hidden { hidden, head } => {
                let states = hidden.clone().slice(range);
                let logits = head_product(states, head.weight.clone());
                TeacherChunk::Logits(logits.cast(mask.dtype()))
            }
            Self::TopK(top) => TeacherChunk::TopK(TopK {
                ids: top.ids.clone().slice(range.clone()),
                log_probs: top.log_probs.clone().slice(range.clone()),
                log_tail: top.log_tail.clone().slice(range.clone()),
                target_log_prob: top
                    .target_log_prob
                    .as_ref()
                    .map(|known| known.clone().slice(range)),
            }),
        }
    }
}

/// A teacher's outputs on the tokens of one chunk.
pub(super) enum TeacherChunk<B: Backend> {
    /// `[n, vocab]`
    Logits(Tensor<B, 2>),
    TopK(TopK<B>),
}

impl<B: Backend> TeacherChunk<B> {
    /// Teacher and student, whose logits are `student [n, vocab]`, at one temperature.
    pub(super) fn outcomes(
        &self,
        student: &Tensor<B, 2>,
        temperature: f64,
        form: SparseForm,
    ) -> Outcomes<B> {
        let at = |logits: &Tensor<B, 2>| match temperature {
            1.0 => logits.clone(),
            _ => logits.clone().div_scalar(temperature),
        };
        match self {
            Self::Logits(teacher) => Outcomes::all(at(teacher), at(student)),
            Self::TopK(top) => Outcomes::of_top_k(top, at(student), temperature, form),
        }
    }

    /// The likeliest token of each row, `[n, 1]`.
    pub(super) fn choice(&self) -> Tensor<B, 2, Int> {
        match self {
            Self::Logits(teacher) => teacher.clone().argmax(1),
            Self::TopK(top) => top.ids.clone().narrow(1, 0, 1),
        }
    }
}
