//! A decoder's projections and what lies between them, each in one pass, forwards and backwards.
//!
//! As tensor operations most of these keep several tensors for the backward pass and walk over memory a
//! dozen times. Here each is one operation with its gradient written out, which keeps its inputs or its
//! output, and on the CPU backends of Rust both directions are a loop on all cores and lanes. Attention and
//! projections are one operation on a CPU, libtorch's too, and tensor operations elsewhere.
//!
//! | function | what it is |
//! |---|---|
//! | [`linear`] | a projection |
//! | [`gated_silu`] | between the projections of a gated feed-forward block |
//! | [`rms_norm`] | in front of both blocks of a layer |
//! | [`turn_pairs`] | between the projections of an attention block: rotary positions |
//! | [`grouped_attention`] | the same: scores, softmax and the mixing of values |
//! | [`masked_softmax`] | scores of attention to weights, where the whole is made of tensor operations |

mod attention;
mod gated_silu;
mod lanes;
mod linear;
mod operation;
mod product;
mod rms_norm;
mod rotary;
mod softmax;

pub use attention::{AttentionMask, attention_weights, grouped_attention};
pub use gated_silu::gated_silu;
pub use linear::linear;
pub(crate) use linear::projected;
pub use rms_norm::rms_norm;
pub use rotary::{PairTurns, turn_pairs};
pub use softmax::masked_softmax;
