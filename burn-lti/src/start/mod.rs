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
mod pairs;

use burn::prelude::*;
use burn::tensor::TensorData;
use rand::SeedableRng;
use rand::rngs::StdRng;

pub use error::StartError;
pub use kind::Start;

use crate::dense::{AttnMap, MapKind, ProjectionKind};
use crate::geometry::HeadGrid;

/// The map of one projection before it exists as tensors.
#[derive(Clone, Copy, Debug)]
pub struct MapSpec {
    /// Which way the projection goes.
    pub kind: ProjectionKind,
    /// Its form.
    pub map: MapKind,
    /// The teacher's grid.
    pub teacher: HeadGrid,
    /// The student's grid.
    pub student: HeadGrid,
}

impl MapSpec {
    /// Shape of `A`: `[t_heads, s_heads]`. Of a sum of pairs, those of all, one below the other:
    /// `[rank * t_heads, s_heads]`.
    pub const fn a_shape(&self) -> [usize; 2] {
        [self.rank() * self.teacher.heads, self.student.heads]
    }

    /// Shape of `B`: `[t_head_dim, s_head_dim]`, or the other way round for out. Of a sum of pairs,
    /// those of all, one below the other.
    pub const fn b_shape(&self) -> [usize; 2] {
        let (teacher, student) = (self.teacher.head_dim, self.student.head_dim);
        match self.kind {
            ProjectionKind::Qkv => [self.rank() * teacher, student],
            ProjectionKind::Output => [self.rank() * student, teacher],
        }
    }

    /// Pairs of factors; one where there is none, so that `A` and `B` have a shape.
    const fn rank(&self) -> usize {
        match self.map.pairs() {
            Some(rank) => rank,
            None => 1,
        }
    }

    /// Refuses a sum of no pair, and one of more than there can be.
    pub(crate) fn check_rank(&self) -> Result<(), StartError> {
        let largest = MapKind::largest_rank(self.teacher, self.student);
        match self.map {
            MapKind::Kronecker(rank) if !(1..=largest).contains(&rank) => Err(StartError::Rank {
                rank,
                largest,
                teacher: self.teacher,
                student: self.student,
            }),
            _ => Ok(()),
        }
    }

    /// The same with one pair.
    const fn of_one_pair(mut self) -> Self {
        self.map = MapKind::Factored;
        self
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
        spec.check_rank()?;
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
            Start::Grouped => grouped::map(spec, &mut rng),
            Start::Calibrated => return Err(StartError::NeedsText),
        };
        Ok(host.on_device(device))
    }
}

/// A map as host values, row-major: the factors of all its pairs, or `W`.
enum HostMap {
    Pairs {
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
            HostMap::Pairs { a, b, spec } => {
                let a = Tensor::from_data(TensorData::new(a, spec.a_shape()), device);
                let b = Tensor::from_data(TensorData::new(b, spec.b_shape()), device);
                AttnMap::of_stacked_pairs(a, b, spec.teacher.heads)
            }
            HostMap::General { w, spec } => AttnMap::General {
                w: Tensor::from_data(TensorData::new(w, spec.w_shape()), device),
            },
        }
    }
}
