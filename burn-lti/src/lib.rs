//! Learn-to-init (LTI) distillation for [Burn](burn).
//!
//! A student decoder has another attention geometry than its teacher: fewer heads, fewer key/value
//! heads, another head size. Instead of starting its attention projections at random, each one is a
//! learnable map of the teacher's own projection, `kernel = map(C)`, with the teacher kernel `C`
//! frozen. The maps train by distillation and are then folded away into ordinary `Linear` weights.
//!
//! The modules read in the order in which a tensor passes through them:
//!
//! | module | what it does |
//! |---|---|
//! | [`geometry`] | head grids, axes, and the sites of weights |
//! | [`start`] | where a map begins |
//! | [`dense`] | [`LtiDense`](dense::LtiDense): the learnable projection and its contraction |
//! | [`decoder`] | the traits a decoder implements, and the swap of its projections |
//! | [`inject`] | the teacher's tensors come in; what trains |
//! | [`loss`] | the distillation loss in chunks of tokens |
//! | [`fused`] | what lies between a decoder's projections, in one pass |
//! | [`train`] | the [`Distiller`](train::Distiller) under Burn's Learner |
//! | [`top_k`] | the teacher's top tokens in files, for a training without it |
//! | [`collapse`] | a learning model becomes an ordinary one |
//!
//! [`backend`] names what this build can compute on, [`files`] writes files that are whole and
//! reads them.
//!
//! This crate knows tensors, Burn's traversal and files of its own, no model and no model's files: for
//! the Llama family, Hugging Face folders and the `burn-lti` command see the crate `burn-lti-llama`.

pub mod backend;
mod cast;
pub mod collapse;
mod compat;
pub mod decoder;
pub mod dense;
pub mod files;
pub mod fused;
pub mod geometry;
mod host;
pub mod inject;
pub mod loss;
pub mod start;
pub mod tensors;
pub mod top_k;
pub mod train;
