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
    /// The weight of a feature loss is a part of a sum.
    #[error("the weight of the feature loss is {found}: choose a finite number, 0 or more")]
    FeatureWeight {
        /// The value given.
        found: f64,
    },
    /// There is no such layer to take features from.
    #[error(
        "a pair of the feature loss names layer {layer} of the {model}, whose last layer is {last}"
    )]
    FeatureLayer {
        /// `student` or `teacher`.
        model: &'static str,
        /// The layer named.
        layer: usize,
        /// The last one there is.
        last: usize,
    },
    /// A feature loss without features.
    #[error(
        "the feature loss has no pair of layers: name at least one, or leave the feature loss out"
    )]
    NoFeatures,
    /// A teacher that was written to files has no features.
    #[error(
        "the feature loss needs the teacher's attention outputs, which its saved top tokens do not \
         have: leave the feature loss out, or let the teacher run"
    )]
    FeaturesOfCache,
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
