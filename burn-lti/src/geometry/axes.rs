//! [`Axes`]: how long the axes of a model are.

use super::{Axis, HeadGrid, Role};

/// The axes of a decoder that a student may have in another form than its teacher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axes {
    /// Features of the residual stream.
    pub d_model: usize,
    /// Heads of query and out.
    pub query: HeadGrid,
    /// Heads of key and value.
    pub key_value: HeadGrid,
    /// Features inside a feed-forward block; 0 where there is none that anybody may swap.
    pub hidden: usize,
}

impl Axes {
    /// The axes of attention alone.
    pub const fn of_attention(d_model: usize, query: HeadGrid, key_value: HeadGrid) -> Self {
        Self {
            d_model,
            query,
            key_value,
            hidden: 0,
        }
    }

    /// The features of an axis as a grid. What has no heads is so many heads of one feature; `None`
    /// for the vocabulary and the positions, which teacher and student share.
    pub const fn grid_of(&self, axis: Axis) -> Option<HeadGrid> {
        match axis {
            Axis::Width => Some(HeadGrid::new(self.d_model, 1)),
            Axis::QueryHeads => Some(self.query),
            Axis::KeyValueHeads => Some(self.key_value),
            Axis::Hidden => Some(HeadGrid::new(self.hidden, 1)),
            Axis::Vocabulary | Axis::Positions => None,
        }
    }

    /// The grid of the side of an attention projection, or of a feed-forward one, that is not the
    /// model's width: see [`Role::mapped_axis`].
    pub const fn grid(&self, role: Role) -> HeadGrid {
        match self.grid_of(role.mapped_axis()) {
            Some(grid) => grid,
            None => HeadGrid::new(self.d_model, 1),
        }
    }
}
