//! A module's parameters: which of them train, and which are one variable.

mod tie;
mod trainable;

pub use tie::tie;
pub use trainable::{TrainableParameter, set_trainable};
