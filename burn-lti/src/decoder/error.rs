//! What can keep a decoder from learning.

use thiserror::Error;

use crate::geometry::{Axis, Site};
use crate::map::DenseError;

/// A swap that cannot be done.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DecoderError {
    /// A layer was chosen that the decoder does not have.
    #[error("layer {index} was chosen for learn-to-init, but the decoder has layers 0 to {last}")]
    LayerOutOfRange {
        /// The index as given.
        index: usize,
        /// The last index there is.
        last: usize,
    },
    /// No layer was chosen, or there is none to choose.
    #[error("no layer is left for learn-to-init: choose at least one of {layers}")]
    NoLayers {
        /// How many layers the decoder has.
        layers: usize,
    },
    /// A weight along an axis that no map changes.
    #[error("{site} lies along the {axis}, which teacher and student share: give it no map")]
    SharedAxis {
        /// Where it stands.
        site: Site,
        /// The axis.
        axis: Axis,
    },
    /// One weight cannot be swapped.
    #[error("{site} cannot become a map")]
    Weight {
        /// Where it stands.
        site: Site,
        /// Why not.
        source: DenseError,
    },
}
