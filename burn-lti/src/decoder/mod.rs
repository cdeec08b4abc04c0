//! What a decoder must offer to learn, and the surgery that makes it learn.
//!
//! A model implements [`LearnToInitDecoderLayer`] for its plain layer, which hands over its weights, and
//! [`CausalLm`] for itself, which hands out hidden states. [`learn_to_init`] does the rest: it swaps the
//! weights that a [`LtiSpec`] names for maps of the teacher's.

mod error;
mod feature_tap;
mod layer;
mod layered;
mod model;
mod projection;

pub use error::DecoderError;
pub use feature_tap::FeatureTap;
pub use layer::{LayerSelection, LearnToInitDecoderLayer, LtiSpec, RoleMaps, learn_to_init};
pub use layered::{GatedUnits, LayeredDecoder, Reader};
pub use model::{CausalLm, Head, TokenBatch};
pub use projection::{PackedProjection, Project, Projection};
