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
    /// What commutes with the rotary embedding of a query or key head, and nothing else: heads are mixed by a
    /// complex number for each pair of features that turns together, and by any numbers among the features that
    /// do not turn.
    ///
    /// Pair `p` of a head of `h` features are the features `p` and `p + h / 2`, the real part first, and the first
    /// pairs are those that turn. A student's pair is made of the teacher's that turns at the nearest frequency
    /// ([`nearest_pairs`](crate::geometry::nearest_pairs)).
    Rotary {
        /// Pairs that turn in a head of the teacher's.
        teacher: usize,
        /// Pairs that turn in a head of the student's.
        student: usize,
    },
}

impl MapKind {
    /// Pairs of factors that are summed; `None` for a general or a rotary map, which has none.
    pub const fn pairs(self) -> Option<usize> {
        match self {
            MapKind::Factored => Some(1),
            MapKind::Kronecker(rank) => Some(rank),
            MapKind::General | MapKind::Rotary { .. } => None,
        }
    }

    /// Pairs beyond which a sum expresses nothing more: `min(x u, y v)`, the smaller number of places
    /// in `A` and in `B`.
    pub const fn largest_rank(teacher: HeadGrid, student: HeadGrid) -> usize {
        let of_a = teacher.heads * student.heads;
        let of_b = teacher.head_dim * student.head_dim;
        if of_a < of_b { of_a } else { of_b }
    }

    /// Parameters of such a map between two grids: `x u + y v`, `x y u v`, or `rank (x u + y v)`. A rotary map
    /// has two for each pair that turns and each two heads, `2 x u p`, and `x i u j` for `i` and `j` features that
    /// do not turn.
    pub const fn num_params(self, teacher: HeadGrid, student: HeadGrid) -> usize {
        let heads = teacher.heads * student.heads;
        match self {
            MapKind::Factored => heads + teacher.head_dim * student.head_dim,
            MapKind::Kronecker(pairs) => pairs * (heads + teacher.head_dim * student.head_dim),
            MapKind::General => teacher.width() * student.width(),
            MapKind::Rotary {
                teacher: of_teacher,
                student: of_student,
            } => {
                let still = teacher.head_dim.saturating_sub(2 * of_teacher)
                    * student.head_dim.saturating_sub(2 * of_student);
                heads * (2 * of_student + still)
            }
        }
    }
}

impl fmt::Display for MapKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MapKind::Factored => f.write_str("factored"),
            MapKind::General => f.write_str("general"),
            MapKind::Kronecker(rank) => write!(f, "kronecker {rank}"),
            MapKind::Rotary { .. } => f.write_str("rotary"),
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
