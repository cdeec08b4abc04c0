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
//! | [`kernels`] | the numeric operations of a decoder and of the loss, in one pass each |
//! | [`map`] | [`LtiDense`](map::LtiDense): the learnable weight, the law that it follows, where it begins |
//! | [`parameters`] | which parameters train, and which are one variable |
//! | [`blueprint`] | what becomes of every tensor of a student |
//! | [`decoder`] | the traits a decoder implements, and the swap of its weights |
//! | [`inject`] | the teacher's tensors come in |
//! | [`calibration`] | maps calculated from text |
//! | [`loss`] | the distillation loss in chunks of tokens |
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
pub mod blueprint;
pub mod calibration;
pub mod collapse;
mod compat;
pub mod decoder;
pub mod files;
pub mod geometry;
pub mod inject;
pub mod kernels;
pub mod loss;
pub mod map;
pub mod parameters;
pub mod tensors;
pub mod top_k;
pub mod train;

/// The examples in the README are compiled and run with the others.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
