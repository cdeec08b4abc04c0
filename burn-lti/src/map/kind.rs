//! The forms of a map along one axis, and the precision of a kernel's contraction.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::geometry::HeadGrid;

/// The forms of a learnable map from the teacher's features along an axis to the student's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MapKind {
    /// Two factors: `A` mixes heads, `B` mixes the features of a head.
    #[default]
    Factored,
    /// One tensor `W` from every teacher feature to every student feature.
    General,
    /// The sum of so many pairs of factors, `W = sum_r A_r x B_r`: what lies between the two.
    ///
    /// One pair is the factored map, number by number; [`MapKind::largest_rank`] pairs make every
    /// general map (Van Loan and Pitsianis 1993).
    Kronecker(usize),
}

impl MapKind {
    /// Pairs of factors that are summed; `None` for a general map, which has none.
    pub const fn pairs(self) -> Option<usize> {
        match self {
            MapKind::Factored => Some(1),
            MapKind::Kronecker(rank) => Some(rank),
            MapKind::General => None,
        }
    }

    /// Pairs beyond which a sum expresses nothing more: `min(x u, y v)`, the smaller number of places
    /// in `A` and in `B`.
    pub const fn largest_rank(teacher: HeadGrid, student: HeadGrid) -> usize {
        let of_a = teacher.heads * student.heads;
        let of_b = teacher.head_dim * student.head_dim;
        if of_a < of_b { of_a } else { of_b }
    }

    /// Parameters of such a map between two grids: `x u + y v`, `x y u v`, or `rank (x u + y v)`.
    pub const fn num_params(self, teacher: HeadGrid, student: HeadGrid) -> usize {
        match self.pairs() {
            Some(pairs) => {
                pairs * (teacher.heads * student.heads + teacher.head_dim * student.head_dim)
            }
            None => teacher.width() * student.width(),
        }
    }
}

impl fmt::Display for MapKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MapKind::Factored => f.write_str("factored"),
            MapKind::General => f.write_str("general"),
            MapKind::Kronecker(rank) => write!(f, "kronecker {rank}"),
        }
    }
}

/// In which precision a kernel is contracted out of `C` and its maps.
///
/// The reference hands `default`, `high` or `highest` to its compiler. Here the setting is the
/// floating-point type of the contraction; the kernel comes back in the type of `C`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelPrecision {
    /// The type of `C` itself.
    #[default]
    Default,
    /// At least float32: half-precision tensors are widened first.
    High,
    /// Float64, on the backends that have it.
    Highest,
}
