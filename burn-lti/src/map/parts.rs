//! The tensors of a map by their names: the only place that knows how an [`LtiDense`](super::LtiDense)
//! calls what it holds.
//!
//! A visitor sees tensors, names and the types that hold them, nothing else. Every tensor inside
//! `Struct:LtiDense` belongs to one: `c`, `bias`, and `a`, `b`, `w`, `r` or `pick` of `left` and `right`. No other
//! struct may bear that name.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::prelude::*;
use burn::tensor::DType;

use super::contraction::{AxisFactors, AxisTensors, misfit, pairs};
use super::rotary::RotaryShape;
use super::{ContractionError, KernelPrecision, Side, contract};
use crate::compat;
use crate::tensors::{AnyTensor, ModulePath};

/// What a tensor is to its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// An ordinary tensor.
    Plain,
    /// `C`, the teacher's kernel.
    TeacherKernel,
    /// Part of the axis map on that side: `A`, `B`, `W` or `R`.
    Map(Side),
    /// The bias beside the maps.
    Bias,
}

impl Part {
    /// Of the tensor at which a visitor stands.
    pub(crate) fn at(path: &ModulePath) -> Self {
        MapTensor::at(path).map_or(Self::Plain, |tensor| tensor.part())
    }
}

/// Which tensor of which `LtiDense` a visitor stands at.
pub(crate) struct MapTensor {
    /// The `LtiDense`, by its dotted name.
    pub(crate) projection: String,
    /// The tensor's name in it: `c`, `bias`, `right.a`.
    leaf: String,
}

impl MapTensor {
    /// The tensor at which a visitor stands; `None` for one of no `LtiDense`.
    pub(crate) fn at(path: &ModulePath) -> Option<Self> {
        let (projection, leaf) = path.inside("LtiDense")?;
        Some(Self { projection, leaf })
    }

    /// What it is.
    pub(crate) fn part(&self) -> Part {
        match (self.leaf.as_str(), self.factor()) {
            (_, Some((side, _))) => Part::Map(side),
            ("bias", _) => Part::Bias,
            _ => Part::TeacherKernel,
        }
    }

    /// Of a map, the side that it stands on, and its letter there.
    pub(crate) fn factor(&self) -> Option<(Side, &str)> {
        let (side, letter) = self.leaf.split_once('.')?;
        match side {
            "left" => Some((Side::Left, letter)),
            "right" => Some((Side::Right, letter)),
            _ => None,
        }
    }
}

/// The tensors of one `LtiDense`, those that are there.
#[derive(Clone, Debug)]
pub(crate) struct LtiParts<B: Backend> {
    c_shape: Vec<usize>,
    c: Option<Tensor<B, 2>>,
    sides: [AxisTensors<B>; 2],
    pub(crate) bias: Option<Tensor<B, 1>>,
}

impl<B: Backend> AxisTensors<B> {
    fn is_there(&self) -> bool {
        self.pick.is_some() || self.dtype().is_some()
    }

    /// The float type of its values, if there are any.
    fn dtype(&self) -> Option<DType> {
        let mut factors = [&self.a, &self.b, &self.w].into_iter().flatten();
        let of_r = || self.r.as_ref().map(|r| r.dtype());
        factors.next().map(|one| one.dtype()).or_else(of_r)
    }
}

impl<B: Backend> Default for LtiParts<B> {
    fn default() -> Self {
        let side = || AxisTensors {
            a: None,
            b: None,
            w: None,
            r: None,
            pick: None,
        };
        Self {
            c_shape: Vec::new(),
            c: None,
            sides: [side(), side()],
            bias: None,
        }
    }
}

/// Why the parts make no kernel.
pub(crate) enum NoKernel {
    /// The teacher never arrived.
    MissingTeacher,
    /// There is no map.
    NotAMap,
    /// The maps do not fit the teacher's kernel.
    Misfit(ContractionError),
}

impl<B: Backend> LtiParts<B> {
    /// The student's kernel, `[d_input, d_output]`.
    pub(crate) fn kernel(&self, precision: KernelPrecision) -> Result<Tensor<B, 2>, NoKernel> {
        if self.c_shape.len() != 2 || !self.sides.iter().any(AxisTensors::is_there) {
            return Err(NoKernel::NotAMap);
        }
        let c = self.c.clone().ok_or(NoKernel::MissingTeacher)?;
        let [left, right] = [Side::Left, Side::Right].map(|side| self.factors(side));
        let (left, right) = (
            left.map_err(NoKernel::Misfit)?,
            right.map_err(NoKernel::Misfit)?,
        );
        Ok(contract(c, left, right, precision))
    }

    /// The student's bias out of the teacher's, `[t_out] -> [s_out]`: it goes through the map of the
    /// outputs as the kernel does. `None` if it does not fit.
    pub(crate) fn mapped_bias(&self, bias: &AnyTensor<B>) -> Option<Tensor<B, 1>> {
        let features = *self.c_shape.get(1)?;
        if bias.num_elements() != features {
            return None;
        }
        let right = self.factors(Side::Right).ok()?;
        let row = bias.to_rank([1, features]);
        let mapped = contract(row, None, right, KernelPrecision::Default);
        Some(compat::detached(mapped).flatten(0, 1))
    }

    /// A gain along the student's outputs out of the teacher's, `[t_out] -> [s_out]`: of each, the mean of what the
    /// map makes it of, by the size of its entries; 0 where the map is 0. `None` if it does not fit.
    pub(crate) fn mean_gain(&self, gain: &AnyTensor<B>) -> Option<Tensor<B, 1>> {
        let features = *self.c_shape.get(1)?;
        if gain.num_elements() != features {
            return None;
        }
        let right = self.factors(Side::Right).ok()??;
        let gain: Tensor<B, 2> = gain.cast(DType::F32).to_rank([1, features]);
        let all = Tensor::<B, 2>::eye(features, &gain.device()).cast(DType::F32);
        let shares = contract(all, None, Some(right), KernelPrecision::Default).abs();
        let sums = shares.clone().sum_dim(0).clamp_min(f32::MIN_POSITIVE);
        Some(compat::detached(gain.matmul(shares) / sums).flatten(0, 1))
    }

    /// What the map on that side is applied to: `C`, through the map on the other side, if there is one.
    pub(crate) fn kernel_before(&self, side: Side) -> Option<Tensor<B, 2>> {
        let c = self.c.clone()?;
        let [left, right] = match side {
            Side::Left => [None, self.factors(Side::Right).ok()?],
            Side::Right => [self.factors(Side::Left).ok()?, None],
        };
        Some(contract(c, left, right, KernelPrecision::Default))
    }

    /// Whether the map on that side is any linear map: `W`.
    pub(crate) fn is_dense(&self, side: Side) -> bool {
        let AxisTensors { a, b, w, r, .. } = &self.sides[side as usize];
        matches!((a, b, w, r), (None, None, Some(_), None))
    }

    /// Heads and pairs of the map on that side, if it is one that commutes with a rotary embedding.
    pub(crate) fn rotary(&self, side: Side) -> Option<RotaryShape> {
        let AxisTensors { w, r, .. } = &self.sides[side as usize];
        let still = w.as_ref().map(|w| w.dims());
        let features = *self.c_shape.get(side as usize)?;
        RotaryShape::of(features, r.as_ref()?.dims(), still)
    }

    /// The float type in which the maps train, if one does.
    pub(crate) fn trained_dtype(&self) -> Option<DType> {
        self.sides.iter().find_map(AxisTensors::dtype)
    }

    /// Pairs of factors in the map on that side; 1 where there are none.
    pub(crate) fn pairs(&self, side: Side) -> usize {
        let AxisTensors { a, b, .. } = &self.sides[side as usize];
        let rows = |factor: &Option<Tensor<B, 2>>| factor.as_ref().map(|factor| factor.dims()[0]);
        let features = self.c_shape.get(side as usize).copied().unwrap_or_default();
        rows(a)
            .zip(rows(b))
            .and_then(|(in_a, in_b)| pairs(features, in_a, in_b))
            .unwrap_or(1)
    }

    fn factors(&self, side: Side) -> Result<Option<AxisFactors<B>>, ContractionError> {
        let parts = &self.sides[side as usize];
        if !parts.is_there() {
            return Ok(None);
        }
        let features = self.c_shape[side as usize];
        AxisFactors::of_tensors(features, parts.clone())
            .map(Some)
            .ok_or_else(|| misfit(features, parts.clone()))
    }

    /// Keeps one tensor. Those of other ranks belong to no `LtiDense` of ours.
    fn keep<const D: usize>(&mut self, tensor: &MapTensor, param: &Param<Tensor<B, D>>) {
        if tensor.part() == Part::TeacherKernel {
            self.c_shape = param.lazy_shape().to_vec();
            // A teacher that has not arrived must not be allocated by looking for it.
            if param.is_initialized() {
                self.c = of_rank(param.val());
            }
            return;
        }
        let value = compat::detached(param.val());
        match tensor.factor() {
            Some((side, letter)) => {
                let parts = &mut self.sides[side as usize];
                match letter {
                    "a" => parts.a = of_rank(value),
                    "b" => parts.b = of_rank(value),
                    "w" => parts.w = of_rank(value),
                    "r" => parts.r = of_rank(value),
                    _ => {}
                }
            }
            None => self.bias = of_rank(value),
        }
    }
}

/// A tensor whose rank is `E` in fact but `D` to the compiler.
fn of_rank<B: Backend, const D: usize, const E: usize>(
    value: Tensor<B, D>,
) -> Option<Tensor<B, E>> {
    let shape: [usize; E] = value.dims().to_vec().try_into().ok()?;
    Some(value.reshape(shape))
}

/// How many features of the student's a map makes, from the letters and shapes of its tensors; `None` of no tensor.
pub(crate) fn mapped_length<'a>(
    tensors: impl IntoIterator<Item = (&'a str, &'a [usize])>,
) -> Option<usize> {
    let (mut of_factors, mut of_others) = (None, None);
    for (letter, shape) in tensors {
        match (letter, shape) {
            ("a" | "b", [_, columns]) => of_factors = Some(of_factors.unwrap_or(1) * columns),
            ("w", [_, columns]) => of_others = Some(of_others.unwrap_or(0) + columns),
            ("r", [pairs, _, heads]) => {
                of_others = Some(of_others.unwrap_or(0) + 2 * pairs * heads)
            }
            _ => {}
        }
    }
    of_factors.or(of_others)
}

/// The parts of every `LtiDense` of a module, by its name.
pub(crate) fn lti_parts<B: Backend, M: Module<B>>(module: &M) -> BTreeMap<String, LtiParts<B>> {
    let mut finder = Finder {
        path: ModulePath::default(),
        found: BTreeMap::new(),
    };
    module.visit(&mut finder);
    finder.found
}

struct Finder<B: Backend> {
    path: ModulePath,
    found: BTreeMap<String, LtiParts<B>>,
}

impl<B: Backend> ModuleVisitor<B> for Finder<B> {
    crate::tensors::follow_path!();

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(tensor) = MapTensor::at(&self.path) {
            let parts = self.found.entry(tensor.projection.clone()).or_default();
            parts.keep(&tensor, param);
        }
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<B, D, Int>>) {
        let Some(tensor) = MapTensor::at(&self.path) else {
            return;
        };
        if let Some((side, "pick")) = tensor.factor() {
            let features = param.lazy_shape().num_elements();
            let parts = self.found.entry(tensor.projection.clone()).or_default();
            parts.sides[side as usize].pick = Some(param.val().reshape([features]));
        }
    }
}
