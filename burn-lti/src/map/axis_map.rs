//! [`AxisMap`]: how the teacher's features along one axis become the student's.

use burn::module::{Param, ParamId};
use burn::prelude::*;
use burn::tensor::{DType, TensorData};

use super::contraction::{AxisFactors, AxisTensors, misfit, pairs};
use super::rotary::RotaryShape;
use super::{ContractionError, MapKind, Start, StartError};
use crate::compat;
use crate::geometry::{Axis, HeadGrid, Role};

/// The side of a weight `[d_input, d_output]` that a map stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Its inputs: `L` in `L^T C R`.
    Left,
    /// Its outputs: `R`.
    Right,
}

impl Side {
    /// The field of an [`LtiDense`](super::LtiDense) that holds the map on this side.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Right => "right",
        }
    }

    /// The side of a weight in `role` that lies along `axis`; `None` if neither does.
    pub fn along(role: Role, axis: Axis) -> Option<Self> {
        let [inputs, outputs] = role.axes();
        match (inputs == axis, outputs == axis) {
            (true, _) => Some(Self::Left),
            (_, true) => Some(Self::Right),
            _ => None,
        }
    }
}

/// One side of a weight: its features in teacher and student, and the form of the map between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AxisSpec {
    /// The teacher's features.
    pub teacher: HeadGrid,
    /// The student's features.
    pub student: HeadGrid,
    /// The form of the map; `None` where the axis is kept.
    pub map: Option<MapKind>,
    /// Where the map begins; `None` where the projection's other map does.
    pub start: Option<Start>,
}

impl AxisSpec {
    /// An axis that is mapped.
    pub const fn mapped(map: MapKind, teacher: HeadGrid, student: HeadGrid) -> Self {
        Self {
            teacher,
            student,
            map: Some(map),
            start: None,
        }
    }

    /// An axis that is kept.
    pub const fn kept(grid: HeadGrid) -> Self {
        Self {
            teacher: grid,
            student: grid,
            map: None,
            start: None,
        }
    }

    /// Shape of `A`, the factors of all pairs one below the other: `[rank * t_heads, s_heads]`.
    pub const fn a_shape(&self) -> [usize; 2] {
        [self.rank() * self.teacher.heads, self.student.heads]
    }

    /// Shape of `B`, the factors of all pairs one below the other: `[rank * t_head_dim, s_head_dim]`.
    pub const fn b_shape(&self) -> [usize; 2] {
        [self.rank() * self.teacher.head_dim, self.student.head_dim]
    }

    /// Shape of `W`: `[t_heads * t_head_dim, s_heads * s_head_dim]`.
    pub const fn w_shape(&self) -> [usize; 2] {
        [self.teacher.width(), self.student.width()]
    }

    /// The heads and pairs of a rotary map; `None` of another form.
    pub(crate) fn rotary(&self) -> Option<RotaryShape> {
        RotaryShape::between(self.map?, self.teacher, self.student)
    }

    /// Shape of `R`, the complex numbers of a rotary map, for each pair of a student's head that turns the real
    /// parts above the imaginary ones: `[s_pairs, 2 * t_heads, s_heads]`.
    pub const fn r_shape(&self) -> [usize; 3] {
        let pairs = match self.map {
            Some(MapKind::Rotary { student, .. }) => student,
            _ => self.student.head_dim / 2,
        };
        [pairs, 2 * self.teacher.heads, self.student.heads]
    }

    /// Shape of `W` beside `R`, over the features of all heads that do not turn; `None` where all do.
    pub const fn still_shape(&self) -> Option<[usize; 2]> {
        let Some(MapKind::Rotary { teacher, student }) = self.map else {
            return None;
        };
        let still = [
            self.teacher.head_dim.saturating_sub(2 * teacher),
            self.student.head_dim.saturating_sub(2 * student),
        ];
        match still {
            [0, 0] => None,
            [of, to] => Some([self.teacher.heads * of, self.student.heads * to]),
        }
    }

    /// Pairs of factors; one where there is none, so that `A` and `B` have a shape.
    pub(super) const fn rank(&self) -> usize {
        match self.map {
            Some(MapKind::Kronecker(rank)) => rank,
            _ => 1,
        }
    }

    /// The same with one pair.
    pub(super) const fn of_one_pair(mut self) -> Self {
        self.map = Some(MapKind::Factored);
        self
    }

    /// Refuses a sum of no pair, one of more than there can be, and rotary pairs that the heads do not have.
    pub(crate) fn check_form(&self) -> Result<(), StartError> {
        let largest = MapKind::largest_rank(self.teacher, self.student);
        match self.map {
            Some(MapKind::Rotary { teacher, student })
                if !RotaryShape::exists(self.teacher.head_dim, teacher)
                    || !RotaryShape::exists(self.student.head_dim, student)
                    || (2 * teacher == self.teacher.head_dim)
                        != (2 * student == self.student.head_dim) =>
            {
                Err(StartError::RotaryPairs {
                    pairs: [teacher, student],
                    teacher: self.teacher,
                    student: self.student,
                })
            }
            Some(MapKind::Kronecker(rank)) if !(1..=largest).contains(&rank) => {
                Err(StartError::Rank {
                    rank,
                    largest,
                    teacher: self.teacher,
                    student: self.student,
                })
            }
            _ => Ok(()),
        }
    }
}

/// The first values of a map, row-major.
pub(crate) enum FirstValues {
    /// `A` and `B` of all pairs.
    Factors { a: Vec<f32>, b: Vec<f32> },
    /// `W`.
    Dense { w: Vec<f32> },
    /// `R`, and `W` of what does not turn.
    Rotary { r: Vec<f32>, w: Option<Vec<f32>> },
}

/// A map along one axis, which learns. (But for picked features: their list does not.)
///
/// Which form it has follows from the tensors that it holds, and how many pairs of factors from their
/// shapes. So a visitor, which sees nothing else, knows as much as whoever made it.
#[derive(Module, Debug)]
pub struct AxisMap<B: Backend> {
    /// `A`: mixes heads, `[rank * t_heads, s_heads]`. The pairs of a sum stand one below the other: with an
    /// axis of its own for them, one pair would not be the same tensor as a factored map's in records,
    /// checkpoints and files.
    a: Option<Param<Tensor<B, 2>>>,
    /// `B`: mixes the features of a head, `[rank * t_head_dim, s_head_dim]`.
    b: Option<Param<Tensor<B, 2>>>,
    /// `W`: `[t_features, s_features]`; of a rotary map, over the features that do not turn.
    w: Option<Param<Tensor<B, 2>>>,
    /// `R`, the complex numbers of a rotary map: `[s_pairs, 2 * t_heads, s_heads]`. Its three axes say how many
    /// heads and pairs there are, which `[t_features, s_features]` would not.
    r: Option<Param<Tensor<B, 3>>>,
    /// The teacher's features that the student's are, `[s_features]`.
    pick: Option<Param<Tensor<B, 1, Int>>>,
}

impl<B: Backend> AxisMap<B> {
    /// The sum of pairs of factors, as [`AxisSpec::a_shape`] and [`AxisSpec::b_shape`] lay them out.
    pub fn factors(a: Tensor<B, 2>, b: Tensor<B, 2>) -> Self {
        Self {
            a: Some(compat::trainable(a)),
            b: Some(compat::trainable(b)),
            w: None,
            r: None,
            pick: None,
        }
    }

    /// What commutes with a rotary embedding, as [`AxisSpec::r_shape`] and [`AxisSpec::still_shape`] lay it out.
    pub fn rotary(r: Tensor<B, 3>, still: Option<Tensor<B, 2>>) -> Self {
        Self {
            a: None,
            b: None,
            w: still.map(compat::trainable),
            r: Some(compat::trainable(r)),
            pick: None,
        }
    }

    /// Any linear map, `w [t_features, s_features]`.
    pub fn dense(w: Tensor<B, 2>) -> Self {
        Self {
            a: None,
            b: None,
            w: Some(compat::trainable(w)),
            r: None,
            pick: None,
        }
    }

    /// The teacher's features `of` as they are.
    pub fn pick(of: &[usize], device: &B::Device) -> Self {
        let of: Vec<i64> = of.iter().map(|feature| *feature as i64).collect();
        let length = of.len();
        let of = Tensor::from_data(TensorData::new(of, [length]), device);
        Self {
            a: None,
            b: None,
            w: None,
            r: None,
            pick: Some(Param::initialized(ParamId::new(), of)),
        }
    }

    /// A map of these first values.
    pub(super) fn of_values(spec: &AxisSpec, values: FirstValues, device: &B::Device) -> Self {
        let tensor =
            |values, shape: [usize; 2]| Tensor::from_data(TensorData::new(values, shape), device);
        match values {
            FirstValues::Factors { a, b } => {
                Self::factors(tensor(a, spec.a_shape()), tensor(b, spec.b_shape()))
            }
            FirstValues::Dense { w } => Self::dense(tensor(w, spec.w_shape())),
            FirstValues::Rotary { r, w } => {
                let r = Tensor::from_data(TensorData::new(r, spec.r_shape()), device);
                let still = w.zip(spec.still_shape());
                Self::rotary(r, still.map(|(w, shape)| tensor(w, shape)))
            }
        }
    }

    /// A map that is no more than shapes until it is filled.
    pub(super) fn uninitialized(spec: &AxisSpec, map: MapKind, device: &B::Device) -> Self {
        let shaped = |shape| Some(compat::uninitialized(shape, true, device));
        let (a, b, w, r) = match map {
            MapKind::Factored | MapKind::Kronecker(_) => {
                (shaped(spec.a_shape()), shaped(spec.b_shape()), None, None)
            }
            MapKind::General => (None, None, shaped(spec.w_shape()), None),
            MapKind::Rotary { .. } => {
                let r = compat::uninitialized(spec.r_shape(), true, device);
                (None, None, spec.still_shape().and_then(shaped), Some(r))
            }
        };
        Self {
            a,
            b,
            w,
            r,
            pick: None,
        }
    }

    /// `A` of all pairs, on the graph; `None` where the map has none.
    pub fn a(&self) -> Option<Tensor<B, 2>> {
        self.a.as_ref().map(|a| a.val())
    }

    /// `B` of all pairs, on the graph.
    pub fn b(&self) -> Option<Tensor<B, 2>> {
        self.b.as_ref().map(|b| b.val())
    }

    /// `W`, on the graph; of a rotary map, that of the features that do not turn.
    pub fn w(&self) -> Option<Tensor<B, 2>> {
        self.w.as_ref().map(|w| w.val())
    }

    /// `R`, the complex numbers of a rotary map, on the graph.
    pub fn r(&self) -> Option<Tensor<B, 3>> {
        self.r.as_ref().map(|r| r.val())
    }

    /// The map's values on the graph, for a teacher of `features` along this axis.
    pub(super) fn values(&self, features: usize) -> AxisFactors<B> {
        AxisFactors::of_tensors(features, self.tensors())
            .unwrap_or_else(|| unreachable!("its constructors make whole maps alone"))
    }

    /// Refuses a map over other features than so many.
    pub(super) fn check(&self, features: usize) -> Result<(), ContractionError> {
        if let Some(pick) = &self.pick {
            let beyond = |feature: &i64| *feature < 0 || *feature >= features as i64;
            let picked = pick.val().into_data();
            return match picked.iter::<i64>().find(beyond) {
                Some(feature) => Err(ContractionError::Picked { feature, features }),
                None => Ok(()),
            };
        }
        AxisFactors::of_tensors(features, self.tensors())
            .map(|_| ())
            .ok_or_else(|| misfit(features, self.tensors()))
    }

    /// All that it holds, on the graph.
    fn tensors(&self) -> AxisTensors<B> {
        AxisTensors {
            a: self.a(),
            b: self.b(),
            w: self.w(),
            r: self.r(),
            pick: self.pick.as_ref().map(|pick| pick.val()),
        }
    }

    /// The form of a map from `features` of the teacher; `None` for picked features.
    pub fn kind(&self, features: usize) -> Option<MapKind> {
        let rows = |param: &Param<Tensor<B, 2>>| param.lazy_shape()[0];
        if let Some(r) = &self.r {
            let shape =
                |param: &Param<Tensor<B, 2>>| [param.lazy_shape()[0], param.lazy_shape()[1]];
            let r = r.lazy_shape();
            let still = self.w.as_ref().map(shape);
            return RotaryShape::of(features, [r[0], r[1], r[2]], still).map(RotaryShape::kind);
        }
        match (&self.a, &self.b, &self.w) {
            (Some(a), Some(b), _) => Some(match pairs(features, rows(a), rows(b)) {
                Some(rank) if rank > 1 => MapKind::Kronecker(rank),
                _ => MapKind::Factored,
            }),
            (_, _, Some(_)) => Some(MapKind::General),
            _ => None,
        }
    }

    /// The float type of its values; `None` for picked features.
    pub fn dtype(&self) -> Option<DType> {
        let of_r = || self.r.as_ref().map(|r| r.val().dtype());
        let param = self.a.as_ref().or(self.w.as_ref());
        param.map(|param| param.val().dtype()).or_else(of_r)
    }
}
