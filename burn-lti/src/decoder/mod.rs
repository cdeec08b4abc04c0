//! What a decoder must offer to learn, and the surgery that makes it learn.
//!
//! A model implements [`AttentionBlock`] for its plain layer, which hands over its four projections,
//! and [`CausalLm`] for itself, which hands out hidden states. [`LearnToInitDecoderLayer`] does the
//! rest: building one swaps the projections for maps of the teacher's.

mod error;
mod feature_tap;
mod layer;
mod layered;
mod model;
mod projection;

pub use error::DecoderError;
pub use feature_tap::FeatureTap;
pub use layer::{
    AttentionBlock, LayerSelection, LearnToInitDecoderLayer, LtiSpec, RoleMaps, learn_to_init,
};
pub use layered::LayeredDecoder;
pub use model::{AwaitingTeacher, CausalLm, Head, TokenBatch};
pub use projection::{Project, Projection};
