//! Why a start could not be calculated from text.

use std::io;

use thiserror::Error;

use crate::geometry::HeadGrid;
use crate::map::StartError;

/// A calibration that failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CalibrationError {
    /// There is too little text to fit on some of it and choose by the rest.
    #[error(
        "calibration read {batches} batches, and needs at least {least}, to fit on some and choose by the \
         others: give it more text, or fewer sequences in a batch"
    )]
    TooLittleText {
        /// Batches that there were.
        batches: usize,
        /// The fewest that will do.
        least: usize,
    },
    /// No token of the calibration text belongs to a document.
    #[error("the calibration text holds no token: give it text")]
    NoTokens,
    /// Teacher or student produced a value that is no number.
    #[error(
        "a hidden state of the calibration is not finite: check the teacher's weights, and its float type \
         (float16 overflows where bfloat16 and float32 do not)"
    )]
    NotFinite,
    /// A system of equations has no single solution.
    #[error(
        "the equations of a layer are singular with ridge {ridge}: give the calibration more text, of more \
         than one kind"
    )]
    Singular {
        /// The ridge, as a part of the mean diagonal.
        ridge: f64,
    },
    /// Teacher and student do not agree in what they must share.
    #[error(
        "teacher and student have {teacher} and {student} {what}: calibration needs them equal"
    )]
    Misfit {
        /// What differs.
        what: &'static str,
        /// The teacher's.
        teacher: usize,
        /// The student's.
        student: usize,
    },
    /// Query heads that no key/value head can be shared out among, or of another size.
    #[error(
        "{query} cannot share {key_value}: calibration needs a multiple as many query heads as key/value \
         heads, of one size"
    )]
    Grids {
        /// The grid of query and output.
        query: HeadGrid,
        /// The grid of key and value.
        key_value: HeadGrid,
    },
    /// A grid without heads.
    #[error("the grid {grid} is empty: every projection needs at least one head of one feature")]
    Empty {
        /// The grid.
        grid: HeadGrid,
    },
    /// A map that does not exist between the grids.
    #[error(transparent)]
    Map(#[from] StartError),
    /// The teacher has no such tensor.
    #[error(
        "the teacher has no tensor {name}: its `LayeredDecoder` names a projection that is not there"
    )]
    NoWeight {
        /// The tensor's name.
        name: String,
    },
    /// Hidden states could not be kept in a temporary file.
    #[error("cannot keep hidden states in a temporary file: make room in {folder}, or set TMPDIR")]
    ActivationStore {
        /// The folder of temporary files.
        folder: String,
        /// What the system said.
        source: io::Error,
    },
    /// The student could not be made from the start so far.
    #[error("the student cannot be made from its start: correct what makes it")]
    Student {
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
