//! [`HeadGrid`]: the heads of one side of a projection.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The heads of one side of a projection: how many, and how wide each is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HeadGrid {
    /// Number of heads.
    pub heads: usize,
    /// Features of one head.
    pub head_dim: usize,
}

impl HeadGrid {
    /// A grid of `heads` heads of `head_dim` features each.
    pub const fn new(heads: usize, head_dim: usize) -> Self {
        Self { heads, head_dim }
    }

    /// Features of all heads together: `heads * head_dim`.
    pub const fn width(&self) -> usize {
        self.heads * self.head_dim
    }
}

impl fmt::Display for HeadGrid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} heads x {}", self.heads, self.head_dim)
    }
}
