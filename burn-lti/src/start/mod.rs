//! Where the maps begin.
//!
//! [`Start::Lecun`] is the reference's random start, kept for parity: it throws the teacher's
//! function away. [`Start::Grouped`] lets every student head begin as a group of teacher heads, so
//! that equal grids reproduce the teacher exactly.
//!
//! These two are computed on the host from a seed: the same seed gives the same numbers on every
//! backend. [`Start::Calibrated`] is calculated from text by [`calibrated::calibrate`].

pub mod calibrated;
mod error;
mod grouped;
mod kind;
mod lecun;

use burn::prelude::*;
use burn::tensor::TensorData;
use rand::SeedableRng;
use rand::rngs::StdRng;

pub use error::StartError;
pub use kind::Start;

use crate::dense::{AttnMap, HeadGrid, MapKind, ProjectionKind};

/// The map of one projection before it exists as tensors.
#[derive(Clone, Copy, Debug)]
pub struct MapSpec {
    /// Which way the projection goes.
    pub kind: ProjectionKind,
    /// Factored or general.
    pub map: MapKind,
    /// The teacher's grid.
    pub teacher: HeadGrid,
    /// The student's grid.
    pub student: HeadGrid,
}

impl MapSpec {
    /// Shape of `A`: `[t_heads, s_heads]`.
    pub const fn a_shape(&self) -> [usize; 2] {
        [self.teacher.heads, self.student.heads]
    }

    /// Shape of `B`: `[t_head_dim, s_head_dim]`, or the other way round for out.
    pub const fn b_shape(&self) -> [usize; 2] {
        match self.kind {
            ProjectionKind::Qkv => [self.teacher.head_dim, self.student.head_dim],
            ProjectionKind::Output => [self.student.head_dim, self.teacher.head_dim],
        }
    }

    /// Shape of `W`: `[t_heads, t_head_dim, s_heads, s_head_dim]`.
    pub const fn w_shape(&self) -> [usize; 4] {
        [
            self.teacher.heads,
            self.teacher.head_dim,
            self.student.heads,
            self.student.head_dim,
        ]
    }
}

impl Start {
    /// Whether this start exists for the geometry, without making it.
    ///
    /// # Errors
    ///
    /// [`StartError`] naming what would be allowed.
    pub fn check(self, spec: &MapSpec) -> Result<(), StartError> {
        match self {
            Start::Lecun | Start::Calibrated => Ok(()),
            Start::Grouped => grouped::check(spec),
        }
    }

    /// The map this start gives, from `seed`, on `device`.
    ///
    /// # Errors
    ///
    /// As [`Start::check`], and [`StartError::NeedsText`] for [`Start::Calibrated`].
    pub fn map<B: Backend>(
        self,
        spec: &MapSpec,
        seed: u64,
        device: &B::Device,
    ) -> Result<AttnMap<B>, StartError> {
        self.check(spec)?;
        let mut rng = StdRng::seed_from_u64(seed);
        let host = match self {
            Start::Lecun => lecun::map(spec, &mut rng),
            Start::Grouped => grouped::map(spec),
            Start::Calibrated => return Err(StartError::NeedsText),
        };
        Ok(host.on_device(device))
    }
}

/// A map as host values, row-major.
enum HostMap {
    Factored {
        a: Vec<f32>,
        b: Vec<f32>,
        spec: MapSpec,
    },
    General {
        w: Vec<f32>,
        spec: MapSpec,
    },
}

impl HostMap {
    fn on_device<B: Backend>(self, device: &B::Device) -> AttnMap<B> {
        match self {
            HostMap::Factored { a, b, spec } => AttnMap::Factored {
                a: Tensor::from_data(TensorData::new(a, spec.a_shape()), device),
                b: Tensor::from_data(TensorData::new(b, spec.b_shape()), device),
            },
            HostMap::General { w, spec } => AttnMap::General {
                w: Tensor::from_data(TensorData::new(w, spec.w_shape()), device),
            },
        }
    }
}
