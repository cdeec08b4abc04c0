//! What is calibrated, and how far.

use serde::{Deserialize, Serialize};

use super::gradients::StreamGradients;
use crate::decoder::LtiSpec;
use crate::geometry::Axes;

/// What is calibrated, and how far.
#[derive(Clone, Debug)]
pub struct Calibration<'a> {
    /// The teacher's grids, at the student's width, the layers that have maps, and the maps' forms.
    pub spec: &'a LtiSpec,
    /// The student's grids, how many units its feed-forward blocks have, and how wide its residual stream is.
    pub student: Axes,
    /// Whether the student's head is its embedding; `None` where it is as the teacher's. Whoever makes the student
    /// gives it a head of its own where the teacher has none: any, in place of which one is fitted at another width.
    pub ties_head: Option<bool>,
    /// The teacher's layer that each of the student's stands for, ascending; `None` where there are as many.
    /// The spec's layers are the student's.
    pub kept: Option<Vec<usize>>,
    /// What the teacher's loss says of the directions of its residual stream
    /// ([`stream_gradients`](super::stream_gradients)), by which those are weighed that a narrower student keeps;
    /// without it these are the principal components of the teacher's states.
    pub gradients: Option<StreamGradients>,
    /// The most rounds in which value and output are fitted in turn. Fewer are taken where held-out
    /// tokens show no gain.
    pub rounds: usize,
    /// Whether the feed-forward blocks are fitted too.
    pub feed_forward: FeedForward,
    /// What they may be in the end.
    pub blocks: Blocks,
    /// How much of the way back to the teacher's residual stream a layer may be asked to go, each from 0
    /// to 1. The best for held-out tokens is taken.
    pub strengths: Vec<f64>,
    /// How far the maps of each layer, attention patterns and all, are moved by gradient afterwards.
    pub refinement: Refinement,
    /// How much training is to follow.
    pub budget: Budget,
    /// The most value features, those of all the teacher's heads for each of the student's query heads,
    /// with which a value map may mix the values of all the teacher's heads. Where there are more, each
    /// head keeps to the values of the one that it began as. The sums take 16 bytes a square of it.
    pub most_features: usize,
}

impl<'a> Calibration<'a> {
    /// Two rounds, feed-forward blocks as they are, no training to follow, at most 4,096 value features.
    pub fn new(spec: &'a LtiSpec, student: Axes) -> Self {
        Self {
            spec,
            student,
            ties_head: None,
            kept: None,
            gradients: None,
            rounds: 2,
            feed_forward: FeedForward::Keep,
            blocks: Blocks::Fitted,
            strengths: vec![1.0, 0.75, 0.5, 0.25, 0.0],
            refinement: Refinement {
                steps: 0,
                learning_rate: 3e-3,
            },
            budget: Budget::None,
            most_features: 4096,
        }
    }

    /// Whether feed-forward blocks have fewer units than the teacher's.
    pub(super) const fn cuts_units(&self) -> bool {
        self.student.hidden != self.spec.teacher.hidden
    }

    /// Whether the student's residual stream has to become another than the teacher's, of `t_width` features and with
    /// a head that is its embedding or not: of another width, or with one table for both.
    pub(super) fn narrows(&self, t_width: usize, is_tied: bool) -> bool {
        self.student.d_model != t_width || (self.ties_head == Some(true) && !is_tied)
    }
}

/// What a feed-forward block can be once its start is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Blocks {
    /// Any weights, each on its own.
    #[default]
    Fitted,
    /// Units of the teacher's as they are, as one map of all three weights has them. Nothing is fitted.
    Picked,
}

/// How much training is to follow a start. What is closest to the teacher untrained is not what is closest once
/// it has learned: corrections of what other layers miss stand in the way when those layers learn themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Budget {
    /// None, or little: every layer is fitted on what the student's layers before it make of the text, and makes
    /// up for what they miss.
    #[default]
    None,
    /// Some: every layer is fitted on the teacher's own hidden states, to do what the teacher's does.
    Short,
    /// So much that all weights find their own way: as [`Short`](Self::Short), but that where key/value heads are
    /// merged nothing is fitted: values are means of the teacher's, turned to one another, and outputs are as they
    /// were.
    Long,
}

/// What becomes of the feed-forward blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FeedForward {
    /// They stay the teacher's, where the student has all their units and all layers.
    #[default]
    Keep,
    /// Their last projection is fitted to what is still missing after the attention.
    Refit,
}

/// How long the maps of a layer are moved, and how fast.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Refinement {
    /// Steps of AdamW for each layer, one batch a step; 0 for none.
    pub steps: usize,
    /// Highest learning rate; it falls to nothing along a cosine.
    pub learning_rate: f64,
}
