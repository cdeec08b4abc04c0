//! What can be wrong with a projection before it exists.

use thiserror::Error;

use super::ProjectionKind;
use crate::geometry::HeadGrid;
use crate::start::StartError;

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
    /// A head grid or the model's width is zero.
    #[error("{what} is empty ({found}); every projection needs at least one head of one feature")]
    Empty {
        /// Which side.
        what: &'static str,
        /// What it was.
        found: String,
    },
    /// No teacher kernel was given: the tensor for `C` holds nothing.
    #[error("C has no elements (shape {shape:?}): pass the teacher's kernel of this projection")]
    MissingTeacher {
        /// The shape that was passed.
        shape: [usize; 3],
    },
    /// Teacher and student models have different widths.
    #[error(
        "the teacher's kernel is {teacher} wide but the student's model width is {student}: \
         learn-to-init maps heads, not the model width, so both must be equal"
    )]
    EmbeddingMismatch {
        /// `d_model` in the teacher's kernel.
        teacher: usize,
        /// `d_model` of the student.
        student: usize,
    },
    /// The teacher's kernel does not have the grid that was announced.
    #[error(
        "the teacher's kernel holds {found} but {expected} was announced for this {kind:?} projection"
    )]
    TeacherGrid {
        /// The kind of projection.
        kind: ProjectionKind,
        /// The announced grid.
        expected: HeadGrid,
        /// The grid found in the kernel.
        found: HeadGrid,
    },
    /// The projection that is to be replaced has other widths than the student's grid asks for.
    #[error(
        "the projection to replace goes {found_in} -> {found_out}, but {student} at model width \
         {d_model} needs {expected_in} -> {expected_out}: build the layer with the student's heads"
    )]
    Width {
        /// The student's grid.
        student: HeadGrid,
        /// The student's model width.
        d_model: usize,
        /// Input width that the grid asks for.
        expected_in: usize,
        /// Output width that the grid asks for.
        expected_out: usize,
        /// Input width found.
        found_in: usize,
        /// Output width found.
        found_out: usize,
    },
    /// The start cannot be used for this geometry.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The kernel cannot be contracted as asked.
    #[error(transparent)]
    Contraction(#[from] ContractionError),
}
