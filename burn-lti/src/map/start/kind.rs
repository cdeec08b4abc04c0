//! The starts a map can begin with, by name.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where the maps begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// The reference's random start. Keeps nothing of the teacher's function; for parity.
    Lecun,
    /// Each student head begins as its group of teacher heads: their mean for the outputs of query, key
    /// and value, their sum for the inputs of the output projection.
    Grouped,
    /// The maps are calculated from text, so that the student begins close to the teacher. See
    /// [`calibrated`](crate::calibration).
    Calibrated,
}

impl Start {
    /// All starts, in the order in which they were invented.
    pub const ALL: [Start; 3] = [Start::Lecun, Start::Grouped, Start::Calibrated];
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Start::Lecun => "lecun",
            Start::Grouped => "grouped",
            Start::Calibrated => "calibrated",
        })
    }
}
