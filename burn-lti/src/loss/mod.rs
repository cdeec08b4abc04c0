//! The distillation loss, on hidden states and head weights rather than logits.
//!
//! `loss = alpha T^2 KL(teacher_T || student_T) + (1 - alpha) CE(student, target)`
//!
//! averaged over the tokens that have a target, where `_T` is a softmax of the logits divided by
//! the temperature `T` (Hinton, Vinyals and Dean 2015; the same mix as MaxText's
//! `CombinedDistillationStrategy`).
//!
//! Logits are never kept for a whole batch: the head is applied to a chunk of tokens at a time, and
//! the gradient with respect to the hidden states is worked out in the same pass. With
//! `p = softmax(student / T)`, `q = softmax(teacher / T)` and the target's one-hot row `y`, one
//! token's gradient with respect to the student's logits is
//! `alpha T (p - q) + (1 - alpha) (softmax(student) - y)`. So memory grows with
//! `chunk_tokens * vocab`, and no `[batch, tokens, vocab]` tensor exists.

mod chunk;
mod distillation;
mod divergence;
mod error;
mod schedule;
mod sums;

pub use distillation::{DistillationLoss, LossGradient, LossInput};
pub use divergence::Divergence;
pub use error::LossError;
pub use schedule::{Curve, Schedule};
pub use sums::{LossSums, LossSumsTensor};
