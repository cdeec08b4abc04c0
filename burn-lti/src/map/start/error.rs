//! Starts that do not exist for a geometry.

use thiserror::Error;

use crate::geometry::HeadGrid;

/// A start that cannot be made for the grids given.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartError {
    /// Grouping needs as many teacher heads for each student head.
    #[error(
        "start `grouped` cannot share {teacher} teacher heads out among {student} student heads; \
         allowed counts: {allowed:?} (or use start = \"lecun\")"
    )]
    HeadsDoNotDivide {
        /// Heads of the teacher.
        teacher: usize,
        /// Heads asked for.
        student: usize,
        /// Head counts that divide the teacher's.
        allowed: Vec<usize>,
    },
    /// Grouping keeps the features of a head as they are.
    #[error(
        "start `grouped` keeps the head size, but the teacher has {teacher} and the student \
         {student}; use the teacher's head_dim or start = \"lecun\""
    )]
    HeadDim {
        /// The teacher's grid.
        teacher: HeadGrid,
        /// The student's grid.
        student: HeadGrid,
    },
    /// A sum of no pair of factors, or of more than there is anything for.
    #[error(
        "a map of kronecker rank {rank} does not exist from {teacher} to {student}: the rank is at least \
         1, the factored map, and at most {largest}, which makes every general map"
    )]
    Rank {
        /// The pairs asked for.
        rank: usize,
        /// The most that there can be.
        largest: usize,
        /// The teacher's grid.
        teacher: HeadGrid,
        /// The student's grid.
        student: HeadGrid,
    },
    /// Rotary pairs that the heads of teacher or student do not have.
    #[error(
        "a rotary map of {} pairs that turn in {teacher} and {} in {student} does not exist: pairs are halves of a \
         head, at least one turns, and where all of the teacher's turn so do the student's; count those that the \
         rotary embedding turns in each",
        pairs[0], pairs[1]
    )]
    RotaryPairs {
        /// Pairs that are said to turn, in teacher and student.
        pairs: [usize; 2],
        /// The teacher's grid.
        teacher: HeadGrid,
        /// The student's grid.
        student: HeadGrid,
    },
    /// A calibrated start is not made for a projection alone.
    #[error(
        "start `calibrated` is calculated from text for a whole decoder: make the maps with \
         `calibration::calibrate` and inject them, or use start = \"grouped\" or \"lecun\""
    )]
    NeedsText,
}
