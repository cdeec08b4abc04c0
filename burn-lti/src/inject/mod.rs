//! The teacher's tensors come into the student.
//!
//! A student begins as a skeleton: its maps exist, its `C` and copied weights do not. Rules say
//! which teacher tensor fills which student tensor; a Burn [`ModuleMapper`](burn::module::ModuleMapper)
//! carries them in, and knows nothing of any model. Nothing is skipped in silence: a rule without a
//! match, two rules for one tensor, a tensor nobody fills, a shape that does not fit are errors.
//!
//! Rules have the semantics of MaxText's `distill_weights_copy_map`: a regular expression that must
//! match a whole teacher name, and a template for the student's name with `$1` or `${name}` for the
//! groups.

mod error;
mod mapper;
mod rules;
mod train;

pub use error::InjectError;
pub use mapper::{Injection, inject};
pub use rules::{CopyRule, InjectRules};
pub use train::{TrainableParameter, set_trainable};
