//! Why a start could not be calculated from text.

use std::io;

use thiserror::Error;

use crate::map::StartError;

/// Of a step of the calibration.
pub(super) type Result<T, E = CalibrationError> = std::result::Result<T, E>;

/// A calibration that failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CalibrationError {
    /// Teacher, student or text cannot be calibrated with. The message names what, and the way out.
    #[error("{0}")]
    Refused(String),
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
    /// A map that does not exist between the grids.
    #[error(transparent)]
    Map(#[from] StartError),
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

impl CalibrationError {
    /// Teacher and student differ in what they must share.
    pub(super) fn misfit(what: &str, teacher: usize, student: usize) -> Self {
        Self::Refused(format!(
            "teacher and student have {teacher} and {student} {what}: calibration needs them equal"
        ))
    }

    /// The teacher has no tensor of that name.
    pub(super) fn no_weight(name: &str) -> Self {
        Self::Refused(format!(
            "the teacher has no tensor {name}: its `LayeredDecoder` names a projection that is not there"
        ))
    }

    /// The teacher does not say what another width needs of it.
    pub(super) fn no_norms() -> Self {
        Self::Refused(
            "the teacher's `LayeredDecoder` names no embedding, or does not say what its norms make of the residual \
             stream, to which another width has to be fitted: keep the teacher's width"
                .to_owned(),
        )
    }

    /// The student could not be made, or filled.
    pub(super) fn student(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Student {
            source: Box::new(source),
        }
    }
}
