//! What can be wrong with a projection before it exists.

use thiserror::Error;

use super::StartError;
use crate::geometry::HeadGrid;

/// Tensors handed to the contraction whose axes do not fit one another.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ContractionError {
    /// Two tensors disagree on the length of an axis they share.
    #[error(
        "axis `{axis}` is {in_c} long in C but {in_map} long in {tensor}; give {tensor} the shape {expected:?}"
    )]
    AxisMismatch {
        /// The tensor of the map that does not fit: `A`, `B` or `W`.
        tensor: &'static str,
        /// The axis, by the field's letter and meaning.
        axis: &'static str,
        /// Its length in `C`.
        in_c: usize,
        /// Its length in the map's tensor.
        in_map: usize,
        /// The shape that would fit.
        expected: Vec<usize>,
    },
    /// A feature is picked that the teacher does not have.
    #[error("feature {feature} is picked, but the teacher has features 0 to {}", features - 1)]
    Picked {
        /// The feature.
        feature: i64,
        /// How many there are.
        features: usize,
    },
    /// The two factors of a sum of pairs disagree on how many there are, or there is none.
    #[error(
        "A holds {in_a} pairs and B {in_b}: give both the same first axis, of at least one pair"
    )]
    Pairs {
        /// Pairs in `A`.
        in_a: usize,
        /// Pairs in `B`.
        in_b: usize,
    },
    /// The backend has no such floating-point type on this device.
    #[error(
        "precision `{precision}` needs {dtype}, which this backend does not support; use a lower kernel precision"
    )]
    Precision {
        /// The setting asked for.
        precision: &'static str,
        /// The type it needs.
        dtype: &'static str,
    },
}

/// A projection that cannot be built.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DenseError {
    /// A grid of no features.
    #[error(
        "the {model}'s grid is empty ({grid}); every projection needs at least one head of one feature"
    )]
    Empty {
        /// Teacher or student.
        model: &'static str,
        /// The grid.
        grid: HeadGrid,
    },
    /// The teacher's kernel has not the shape that was announced.
    #[error(
        "the teacher's kernel is {found:?} but {expected:?} was announced, [d_input, d_output]: pass \
         the weight of the teacher's own projection"
    )]
    TeacherShape {
        /// The announced shape.
        expected: [usize; 2],
        /// The kernel's.
        found: [usize; 2],
    },
    /// Teacher and student differ along an axis without a map.
    #[error(
        "the {side} axis is {teacher} long in the teacher and {student} in the student, and no map is \
         asked for along it: both must be equal"
    )]
    KeptAxis {
        /// `left`, the inputs, or `right`, the outputs.
        side: &'static str,
        /// The teacher's features.
        teacher: usize,
        /// The student's.
        student: usize,
    },
    /// The projection that is to be replaced has other widths than the student's axes ask for.
    #[error(
        "the projection to replace goes {} -> {}, but the student's axes need {} -> {}: build the \
         layer with the student's axes",
        found[0], found[1], expected[0], expected[1]
    )]
    Width {
        /// Widths that the student's axes ask for.
        expected: [usize; 2],
        /// Widths found.
        found: [usize; 2],
    },
    /// The start cannot be used for this geometry.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The kernel cannot be contracted as asked.
    #[error(transparent)]
    Contraction(#[from] ContractionError),
}
