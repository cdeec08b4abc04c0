//! Why a recipe does not suit its teacher.

use burn_lti::blueprint::BlueprintError;
use burn_lti::decoder::DecoderError;
use thiserror::Error;

use crate::config::ConfigError;

/// Why a recipe does not suit its teacher.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A value of the recipe that this teacher does not allow.
    #[error("{key} {reason}")]
    Refused {
        /// The key of the recipe.
        key: &'static str,
        /// Its value, what it may be, and the way out.
        reason: String,
    },
    /// The student is no Llama that could be saved.
    #[error("[student] makes no valid Llama: choose sizes nearer to the teacher's")]
    Student {
        /// What is wrong with it.
        source: ConfigError,
    },
    /// A calibrated start cannot be fitted beside tensors that begin at random.
    #[error(
        "{tensor} would begin at random, because lti.layers leaves its layer out and its heads are not the \
         teacher's, and lti.start = \"calibrated\" fits layers to what comes before them: set lti.layers = \
         \"all\", keep the teacher's heads, or set lti.start = \"grouped\""
    )]
    CalibratedLayers {
        /// The first tensor that would.
        tensor: String,
    },
    /// Copying or sharing cannot be done.
    #[error("{key}: {reason}; `burn-lti plan` without the rule lists the names")]
    Weights {
        /// The key of the recipe.
        key: &'static str,
        /// What is wrong with its rules.
        reason: BlueprintError,
    },
    /// Copying or sharing would exchange heads, which shapes alone do not tell apart.
    #[error(
        "{key}: `{from}` does not fit `{to}`: both must be of the same heads and the same side of them, \
         and a projection whose heads change must have a map; `burn-lti plan` without the rule lists the \
         names"
    )]
    OtherHeads {
        /// The key of the recipe.
        key: &'static str,
        /// The source.
        from: String,
        /// The student's tensor.
        to: String,
    },
    /// A pattern of what does not train matches no tensor.
    #[error(
        "weights.freeze: no tensor of the student has `{pattern}` in its name: `burn-lti plan` lists the \
         names"
    )]
    FreezesNothing {
        /// The pattern.
        pattern: String,
    },
    /// The student's maps cannot stand where they should.
    #[error("[lti] makes no student of this teacher")]
    Maps(#[from] DecoderError),
}

impl PlanError {
    pub(crate) fn refused(key: &'static str, reason: String) -> Self {
        Self::Refused { key, reason }
    }
}
