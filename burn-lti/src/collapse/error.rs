//! What can keep a learning model from collapsing.

use thiserror::Error;

use crate::blueprint::BlueprintError;
use crate::map::ContractionError;

/// A collapse that would have left something out.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CollapseError {
    /// An `LtiDense` whose teacher kernel was never injected.
    #[error("`{name}` has no teacher kernel yet: inject the teacher before collapsing")]
    MissingTeacher {
        /// The projection.
        name: String,
    },
    /// A struct that calls itself `LtiDense` but does not hold what one holds.
    #[error(
        "`{name}` looks like an LtiDense but holds no map; only burn_lti::map::LtiDense may have that name"
    )]
    NotAMap {
        /// The projection.
        name: String,
    },
    /// The map does not fit its teacher kernel.
    #[error("the map of `{name}` cannot be folded away")]
    Contraction {
        /// The projection.
        name: String,
        /// What does not fit.
        source: ContractionError,
    },
    /// The plain model lacks something, or has it in another shape.
    #[error("the plain model does not fit the collapsed tensors")]
    Plain(#[from] BlueprintError),
    /// Tensors that the plain model has no place for.
    #[error(
        "the plain model has no place for {names:?}; build it with the student's configuration"
    )]
    Leftover {
        /// Their names.
        names: Vec<String>,
    },
}
