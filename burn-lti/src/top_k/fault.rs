//! [`Fault`]: a breach of the laws of a cache.

use thiserror::Error;

/// What is wrong with a token of a cache. See [the laws](super#laws).
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum Fault {
    /// An id that the teacher does not know.
    #[error("{tensor} has the id {found}, but the vocabulary ends before {vocab_size}")]
    Vocabulary {
        /// The tensor.
        tensor: &'static str,
        /// The id.
        found: u32,
        /// The number of tokens that the teacher knows.
        vocab_size: usize,
    },
    /// A mask that is neither yes nor no.
    #[error("mask is {found}: it has to be 0 or 1")]
    Mask {
        /// Its value.
        found: u8,
    },
    /// A target where there is no input.
    #[error("mask is 1 in the padding: only a token of a document can have a target")]
    Padding,
    /// A distribution with two probabilities for one token.
    #[error("ids has {id} twice: each token has one probability")]
    Repeated {
        /// The token.
        id: u32,
    },
    /// A log-probability that is infinite or no number.
    #[error(
        "{tensor} has {found}: a log-probability has to be finite, for the loss multiplies with it. \
         float16 ends at -65504, float32 does not"
    )]
    NotFinite {
        /// The tensor.
        tensor: &'static str,
        /// The value.
        found: f32,
    },
    /// A probability above 1, or none at all.
    #[error(
        "{tensor} has {found}, above 0 by more than {allowance:.1e}: log-probabilities are expected, not \
         logits"
    )]
    Positive {
        /// The tensor.
        tensor: &'static str,
        /// The value.
        found: f32,
        /// How far rounding alone can lift it above 0.
        allowance: f64,
    },
    /// A token that is likelier than the one before it.
    #[error(
        "log_probs has {after} after {before} at place {place}: the likeliest token comes first"
    )]
    Order {
        /// The place of the second, from 0.
        place: usize,
        /// The log-probability of the first.
        before: f32,
        /// The log-probability of the second.
        after: f32,
    },
    /// A tail where no token is left.
    #[error(
        "log_tail is {found}, but the ids are the whole vocabulary: it has to be negative infinity"
    )]
    Tail {
        /// The value.
        found: f32,
    },
    /// Probabilities that do not add up to 1.
    #[error(
        "log_probs and log_tail make up a probability of {found}, off 1 by more than {tolerance:.1e}: \
         normalise over the whole vocabulary, in float32 and at temperature 1"
    )]
    Mass {
        /// The sum.
        found: f64,
        /// How far rounding alone can bring it away from 1.
        tolerance: f64,
    },
    /// A log-probability of nothing.
    #[error("target_log_prob is {found} where there is no target: it has to be 0")]
    NoTarget {
        /// The value.
        found: f32,
    },
    /// A target with two log-probabilities.
    #[error(
        "target_log_prob is {found}, but log_probs has {kept} for the target {target}: they differ by more \
         than {tolerance:.1e}"
    )]
    Target {
        /// The target.
        target: u32,
        /// The value.
        found: f32,
        /// The log-probability among the `k`.
        kept: f32,
        /// How far rounding alone can bring them apart.
        tolerance: f64,
    },
    /// A target that should be among the likeliest tokens, and is not.
    #[error(
        "target_log_prob is {found}, so the target {target} should be among the ids, of which the last has \
         {least}"
    )]
    Outsider {
        /// The target.
        target: u32,
        /// The value.
        found: f32,
        /// The least log-probability among the `k`.
        least: f32,
    },
}

/// A fault and its place in some rows.
#[derive(Debug)]
pub(super) struct Breach {
    pub(super) row: usize,
    pub(super) token: usize,
    pub(super) fault: Fault,
}
