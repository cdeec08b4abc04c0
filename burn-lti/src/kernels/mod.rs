//! The numeric operations of a decoder and of the loss, each in one pass, forwards and backwards.
//!
//! As tensor operations most of these keep several tensors for the backward pass and walk over memory a
//! dozen times. Here each is one operation with its gradient written out, which keeps its inputs or its
//! output, and on the CPU backends of Rust both directions are a loop on all cores and lanes. Attention and
//! projections are one operation on a CPU, libtorch's too, and tensor operations elsewhere.
//!
//! | folder | function | what it is |
//! |---|---|---|
//! | `linear` | [`linear`] | a projection; and the products of the loss with the head |
//! | | `PackedWeight` | a projection that nothing trains, for any number of rows |
//! | `lookup` | `lookup` | rows of the embedding, with a gradient that is one tensor |
//! | `gated_silu` | [`gated_silu`] | between the projections of a gated feed-forward block |
//! | `norm` | [`rms_norm`] | of the input of both blocks of a layer |
//! | `rotary` | [`apply_rotary`] | between the projections of an attention block: rotary positions |
//! | `attention` | [`grouped_attention`], [`attention_weights`] | the same: scores, softmax and the mixing of values |
//! | | [`KvCache`] | the same of tokens that are written one after another |
//! | `soft_cap` | [`soft_cap`] | of scores and logits that a model holds below a cap |
//! | `softmax` | [`masked_softmax`] | scores of attention to weights, where the whole is made of tensor operations |
//! | | [`softmax_weights`] | of one row of logits, on one core, for whoever draws from them |
//! | `adam` | | a step of the optimizer, on no graph |
//! | `given_gradient` | `given_gradient` | what carries the loss's gradient into a student |
//! | `loss_rows` | | loss terms and gradient of each token's logits; the tensor form is the loss itself |
//!
//! # What a folder holds
//!
//! `mod.rs` has the public function, the gradient's formula and the form in tensor operations, `cpu.rs` the
//! form in loops over a CPU's memory. What they share:
//!
//! | file | what |
//! |---|---|
//! | `form` | which form an operation has on a device, in a float type |
//! | `graph` | how an operation gets onto an autodiff graph |
//! | `cpu` | buffers, threads, vectors and small products of a CPU's loops |
//! | `precision` | in which float type projections are multiplied |
//! | `cast` | a generic type by the name of the type that it is |
//!
//! A form for GPUs would be a file `cube.rs` beside `cpu.rs`, written in CubeCL for all of them. `Form` would
//! get a variant `Cube`, chosen in `form` by the device as the others are, and the compiler then names each
//! `match` that lacks an arm. There the tensors are those of an inner backend, on no graph, and `cast` takes
//! their primitives for a `CubeTensor`.
//!
//! # How to add an operation
//!
//! A folder whose `mod.rs` has a function of tensors and a type that is an `Operation`: `forward` says what it
//! saves, `backward` has the gradient, and each matches on the `Form`. The function chooses the form and hands
//! both to `graph::apply`. Then its line in the table above, and a law in `tests/tests/laws/kernels.rs` that
//! holds it to Burn's own operations and their gradient.

pub(crate) mod adam;
mod attention;
mod cast;
mod cpu;
mod form;
mod gated_silu;
mod given_gradient;
mod graph;
mod linear;
mod lookup;
pub(crate) mod loss_rows;
mod norm;
mod precision;
mod rotary;
mod soft_cap;
mod softmax;

pub use attention::{AttentionMask, KvCache, Place, Step, attention_weights, grouped_attention};
pub(crate) use form::is_cpu;
pub use gated_silu::gated_silu;
pub(crate) use given_gradient::given_gradient;
pub use linear::linear;
pub(crate) use linear::{
    HeadGradient, PackedWeight, head_product, product_through_head, projected,
};
pub(crate) use lookup::lookup;
pub use norm::rms_norm;
pub use precision::ProductPrecision;
pub use rotary::{RotaryTable, apply_rotary};
pub(crate) use soft_cap::slope_of_cap;
pub use soft_cap::soft_cap;
pub use softmax::{masked_softmax, softmax_weights};
