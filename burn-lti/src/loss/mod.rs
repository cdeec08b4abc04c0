//! The distillation loss, on hidden states and head weights rather than logits.
//!
//! `loss = alpha T^2 D(teacher_T, student_T) + (1 - alpha) CE(student, target) + beta F`
//!
//! averaged over the tokens that have a target, where `_T` is a softmax of the logits divided by
//! the temperature `T` (Hinton, Vinyals and Dean 2015; the same mix as MaxText's
//! `CombinedDistillationStrategy`), `D` a [`Divergence`], the forward KL by default, and
//! `F` a [`FeatureLoss`] on attention outputs, if there is one. A [`LossSchedule`] moves `alpha`, `T`
//! and `beta` by optimizer step.
//!
//! Logits are never kept for a whole batch: the head is applied to a chunk of tokens at a time, and
//! the gradient with respect to the hidden states is worked out in the same pass. With
//! `p = softmax(teacher / T)`, `q = softmax(student / T)` and the target's one-hot row `y`, one
//! token's gradient with respect to the student's logits is, for the forward KL,
//! `alpha T (q - p) + (1 - alpha) (softmax(student) - y)`. So memory grows with
//! `chunk_tokens * vocab`, on a CPU up to a fixed number of logits, and no `[batch, tokens, vocab]` tensor
//! exists.
//!
//! | file | what |
//! |---|---|
//! | `settings` | the loss's settings |
//! | `distillation` | its input, value and gradient |
//! | `chunk` | both of a chunk of tokens; on a CPU by `kernels/loss_rows`, token by token in one pass |
//! | `divergence` | `D` and its gradient |
//! | `teacher` | a teacher's outputs: hidden states, or its top tokens and their tail |
//! | `feature` | `F` and its gradient |
//! | `schedule` | settings that move |
//! | `sums` | what is added up |

mod chunk;
mod distillation;
mod divergence;
mod error;
mod feature;
mod schedule;
mod settings;
mod sums;
mod teacher;

pub use distillation::{LossGradient, LossInput};
pub use divergence::Divergence;
pub use error::LossError;
pub use feature::{FeatureDistance, FeatureLoss, FeaturePair};
pub use schedule::{Curve, LossSchedule, Schedule};
pub use settings::DistillationLoss;
pub use sums::{LossSums, LossSumsTensor};
pub use teacher::{SparseForm, TeacherTokens, TopK};
