//! The start of a student, and how each layer came about.

use burn::prelude::*;
use serde::{Deserialize, Serialize};

use super::heads::HeadChoice;
use crate::map::MapKind;
use crate::tensors::TensorSet;

/// The start of a student, and how it came about.
#[derive(Clone, Debug)]
pub struct CalibratedStart<B: Backend> {
    /// The maps by the names of their tensors in the learning student (`....q_proj.right.a`), and the weights of
    /// the feed-forward blocks that were fitted.
    pub tensors: TensorSet<B>,
    /// A report for each layer with maps.
    pub layers: Vec<LayerReport>,
}

/// Whose hidden states a layer was fitted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FittedOn {
    /// The teacher's own: the layer does what the teacher's does.
    Teacher,
    /// What the student's layers before it make of the text: the layer makes up for what they miss.
    Student,
}

/// How a layer was fitted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// The layer, from 0.
    pub layer: usize,
    /// The teacher heads that the student's begin as.
    pub heads: HeadChoice,
    /// Whose hidden states it was fitted on.
    pub stream: FittedOn,
    /// The form of the value map that was fitted.
    pub value: MapKind,
    /// The form of the output map that was fitted.
    pub out: MapKind,
    /// Squared distance to the target on held-out tokens, as a part of the target's squared size, with the
    /// output fitted and the values as they were.
    pub residual_of_output: f64,
    /// The same with values and output fitted in turn, and moved by gradient if that was asked for and
    /// helped. (What is kept was then fitted once more, on all tokens.)
    pub residual: f64,
    /// Rounds that were worth it.
    pub rounds: usize,
    /// Ridge of the fits, as a part of the mean diagonal; `None` where no fit was better than none.
    pub ridge: Option<f64>,
    /// How much of the way back to the teacher's residual stream the layer was asked to go, if it was
    /// fitted.
    pub strength: f64,
    /// Of heads that are merged: the ratio of the largest to the least standard deviation of a head's values,
    /// before they were made even. `None` where none is merged.
    pub uneven: Option<f64>,
    /// What the feed-forward fit left of what was missing, on held-out tokens; `None` if there was none. Where units
    /// are left out, of what was missing once the last projection had made up for them.
    pub feed_forward_residual: Option<f64>,
    /// The teacher's units that the student's began as, ascending; `None` where it has all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub units: Option<Vec<usize>>,
    /// How long the layer took.
    pub seconds: f64,
}
