//! Losses that make no sense.

use thiserror::Error;

/// A setting of the loss out of its range, or models that cannot be compared.
#[derive(Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum LossError {
    /// `alpha` mixes two losses: it must lie between them.
    #[error("alpha is {found}, but it is the soft loss's share of the whole: choose 0 to 1")]
    Alpha {
        /// The value given.
        found: f64,
    },
    /// A temperature divides logits.
    #[error("temperature is {found}, but logits are divided by it: choose a finite number above 0")]
    Temperature {
        /// The value given.
        found: f64,
    },
    /// A mixture of two distributions in which one has no part is no mixture.
    #[error(
        "{name} is {found}, but it is the teacher's share of a mixture with the student: choose a number \
         between 0 and 1, without these"
    )]
    Share {
        /// The divergence.
        name: &'static str,
        /// The value given.
        found: f64,
    },
    /// A chunk without tokens would never end.
    #[error("chunk_tokens is 0: choose how many tokens the head sees at a time, 512 for example")]
    ChunkTokens,
    /// Two vocabularies cannot be compared token by token.
    #[error(
        "the teacher knows {teacher} tokens and the student {student}: distillation compares them \
         token by token, so both need the same vocabulary"
    )]
    Vocabulary {
        /// The teacher's vocabulary.
        teacher: usize,
        /// The student's.
        student: usize,
    },
}
