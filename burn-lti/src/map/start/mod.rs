//! Where the maps begin.
//!
//! [`Start::Lecun`] is the reference's random start, kept for parity: it throws the teacher's
//! function away. [`Start::Grouped`] lets every student head begin as a group of teacher heads, so
//! that equal grids reproduce the teacher exactly.
//!
//! These two are computed in a CPU's memory from a seed: the same seed gives the same numbers on every
//! backend. [`Start::Calibrated`] is calculated from text by
//! [`calibrate`](crate::calibration::calibrate).

mod error;
mod grouped;
mod idle_pairs;
mod kind;
mod lecun;

use burn::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

pub use error::StartError;
pub(crate) use idle_pairs::fill_up;
pub use kind::Start;

use super::{AxisMap, AxisSpec, Side};

impl Start {
    /// Whether this start exists for the grids of an axis, without making it.
    ///
    /// # Errors
    ///
    /// [`StartError`] naming what would be allowed.
    pub fn check(self, spec: &AxisSpec) -> Result<(), StartError> {
        spec.check_form()?;
        match self {
            Start::Lecun | Start::Calibrated => Ok(()),
            Start::Grouped => grouped::check(spec),
        }
    }

    /// The map that this start gives on that side of a projection, from `seed`, on `device`.
    ///
    /// # Errors
    ///
    /// As [`Start::check`], and [`StartError::NeedsText`] for [`Start::Calibrated`].
    pub fn map<B: Backend>(
        self,
        spec: &AxisSpec,
        side: Side,
        seed: u64,
        device: &B::Device,
    ) -> Result<AxisMap<B>, StartError> {
        self.check(spec)?;
        let mut rng = StdRng::seed_from_u64(seed);
        let values = match self {
            Start::Lecun => lecun::values(spec, side, &mut rng),
            Start::Grouped => grouped::values(spec, side, &mut rng),
            Start::Calibrated => return Err(StartError::NeedsText),
        };
        Ok(AxisMap::of_values(spec, values, device))
    }
}
