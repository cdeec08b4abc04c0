//! The teacher's tensors come into the student.
//!
//! A student begins as a skeleton: its maps exist, its `C` and copied weights do not. Rules say
//! which teacher tensor fills which student tensor; a Burn [`ModuleMapper`](burn::module::ModuleMapper)
//! carries them in, and knows nothing of any model. Nothing is skipped in silence: a rule without a
//! match, two rules for one tensor, a tensor nobody fills, a shape that does not fit are errors.
//!
//! Rules have the semantics of MaxText's `distill_weights_copy_map`: a regular expression that must
//! match a whole teacher name, and a template for the student's name with `$1` or `${name}` for the
//! groups. [`ShareRule`]s make student tensors one variable, as `distill_student_weights_share_map`
//! does, and [`FreezeRules`] say what trains, as `student_params_to_update` does, or the other way
//! round.

mod error;
mod freeze;
mod mapper;
mod rules;
mod share;
mod train;
mod variable;

pub use error::InjectError;
pub use freeze::{Fate, FreezeReport, FreezeRules, ParameterFate};
pub(crate) use mapper::refill;
pub use mapper::{Injection, inject};
pub use rules::{CopyRule, InjectRules};
pub use share::ShareRule;
pub use train::{TrainableParameter, set_trainable};
pub use variable::tie;
