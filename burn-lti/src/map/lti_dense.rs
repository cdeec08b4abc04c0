//! [`LtiDense`]: a dense projection whose kernel is a learnable map of the teacher's.

use burn::module::Param;
use burn::nn::Linear;
use burn::prelude::*;

use super::contraction::{check_precision, contract};
use super::{AppliedMap, AxisMap, AxisSpec, DenseError, KernelPrecision, MapKind, Side, Start};
use crate::compat;
use crate::geometry::{Axes, HeadGrid, Role};
use crate::kernels::projected;

/// What an [`LtiDense`] is made from.
#[derive(Clone, Copy, Debug)]
pub struct LtiDenseConfig {
    /// Its inputs.
    pub left: AxisSpec,
    /// Its outputs.
    pub right: AxisSpec,
    /// Where the maps begin that have no start of their own. [`Start::Grouped`] unless set.
    pub start: Start,
    /// Seed of a random start.
    pub seed: u64,
    /// Precision of the kernel's contraction.
    pub precision: KernelPrecision,
    /// Whether a bias is added after the product. It has the student's shape and begins at zero;
    /// [`inject`](crate::inject) starts it from the teacher's.
    pub bias: bool,
}

impl LtiDenseConfig {
    /// A projection in `role` between models of these axes, with a map along the axis that is the
    /// role's own, and without bias.
    pub fn new(role: Role, teacher: &Axes, student: &Axes, map: MapKind) -> Self {
        let side = |axis| {
            let grid = |axes: &Axes| axes.grid_of(axis).unwrap_or(HeadGrid::new(0, 1));
            AxisSpec {
                teacher: grid(teacher),
                student: grid(student),
                map: (axis == role.mapped_axis()).then_some(map),
                start: None,
            }
        };
        let [left, right] = role.axes().map(side);
        Self {
            left,
            right,
            start: Start::Grouped,
            seed: 0,
            precision: KernelPrecision::Default,
            bias: false,
        }
    }

    /// Sets where the maps begin, and the seed of a random start.
    pub const fn with_start(mut self, start: Start, seed: u64) -> Self {
        self.start = start;
        self.seed = seed;
        self
    }

    /// Sets the precision of the contraction.
    pub const fn with_precision(mut self, precision: KernelPrecision) -> Self {
        self.precision = precision;
        self
    }

    /// Sets whether there is a bias.
    pub const fn with_bias(mut self, bias: bool) -> Self {
        self.bias = bias;
        self
    }

    /// Sets how many features the axis has that no [`Axes`] know, the vocabulary or the positions, which teacher and
    /// student share.
    pub const fn with_shared_axis(mut self, features: usize) -> Self {
        let kept = AxisSpec::kept(HeadGrid::new(features, 1));
        if self.left.teacher.width() == 0 {
            self.left = kept;
        }
        if self.right.teacher.width() == 0 {
            self.right = kept;
        }
        self
    }

    /// Shape of `C`: the teacher's `[d_input, d_output]`.
    pub const fn c_shape(&self) -> [usize; 2] {
        [self.left.teacher.width(), self.right.teacher.width()]
    }

    /// Shape of the kernel: the student's `[d_input, d_output]`.
    pub const fn kernel_shape(&self) -> [usize; 2] {
        [self.left.student.width(), self.right.student.width()]
    }

    /// Its maps, in the order in which they are contracted.
    pub fn applied_maps(&self) -> Vec<AppliedMap> {
        AppliedMap::of_sides(&self.left, &self.right)
    }

    /// The projection over the teacher's kernel `c`, as a `Linear` keeps it.
    ///
    /// # Shapes
    ///
    /// `c` as [`c_shape`](Self::c_shape).
    ///
    /// # Errors
    ///
    /// [`DenseError::TeacherShape`] if `c` is empty or has another shape, [`DenseError::Empty`] for an
    /// empty grid, [`DenseError::KeptAxis`] if teacher and student differ along an axis without a map,
    /// [`DenseError::Start`] if start or form of a map do not exist for its grids,
    /// [`DenseError::Contraction`] if the backend lacks the precision.
    pub fn init<B: Backend>(&self, c: Tensor<B, 2>) -> Result<LtiDense<B>, DenseError> {
        let device = c.device();
        self.check::<B>(&device)?;
        if c.dims() != self.c_shape() {
            return Err(DenseError::TeacherShape {
                expected: self.c_shape(),
                found: c.dims(),
            });
        }
        self.begin(compat::frozen(c), &device)
    }

    /// The projection before its teacher has arrived: `C` is neither allocated nor usable until
    /// [`inject`](crate::inject) fills it, which [`AwaitingTeacher`](crate::inject::AwaitingTeacher)
    /// sees to. With [`Start::Calibrated`] the same goes for the maps.
    pub(crate) fn init_awaiting_teacher<B: Backend>(
        &self,
        device: &B::Device,
    ) -> Result<LtiDense<B>, DenseError> {
        self.check::<B>(device)?;
        self.begin(compat::uninitialized(self.c_shape(), false, device), device)
    }

    /// Refuses a `Linear` that this projection could not stand in for.
    pub(crate) fn check_replaces<B: Backend>(&self, linear: &Linear<B>) -> Result<(), DenseError> {
        let (expected, shape) = (self.kernel_shape(), linear.weight.lazy_shape());
        let found = [shape[0], shape[1]];
        match found == expected {
            true => Ok(()),
            false => Err(DenseError::Width { expected, found }),
        }
    }

    fn begin<B: Backend>(
        &self,
        c: Param<Tensor<B, 2>>,
        device: &B::Device,
    ) -> Result<LtiDense<B>, DenseError> {
        let both = self.left.map.is_some() && self.right.map.is_some();
        let map = |side, spec: &AxisSpec| {
            // Where both sides are random they must not be the same numbers.
            let seed = match (both, side) {
                (true, Side::Left) => !self.seed,
                _ => self.seed,
            };
            spec.map
                .map(|map| match spec.start.unwrap_or(self.start) {
                    Start::Calibrated => Ok(AxisMap::uninitialized(spec, map, device)),
                    start => start.map(spec, side, seed, device),
                })
                .transpose()
        };
        let [_, d_output] = self.kernel_shape();
        Ok(LtiDense {
            c,
            left: map(Side::Left, &self.left)?,
            right: map(Side::Right, &self.right)?,
            bias: self
                .bias
                .then(|| compat::trainable(Tensor::zeros([d_output], device))),
            precision: self.precision,
        })
    }

    fn check<B: Backend>(&self, device: &B::Device) -> Result<(), DenseError> {
        for (side, spec) in [(Side::Left, &self.left), (Side::Right, &self.right)] {
            for (model, grid) in [("teacher", spec.teacher), ("student", spec.student)] {
                if grid.width() == 0 {
                    return Err(DenseError::Empty { model, grid });
                }
            }
            match spec.map {
                Some(_) => spec.start.unwrap_or(self.start).check(spec)?,
                None if spec.teacher.width() != spec.student.width() => {
                    return Err(DenseError::KeptAxis {
                        side: side.name(),
                        teacher: spec.teacher.width(),
                        student: spec.student.width(),
                    });
                }
                None => {}
            }
        }
        Ok(check_precision::<B>(self.precision, device)?)
    }
}

/// A dense projection whose kernel is a learnable map of a frozen teacher kernel, `K = L^T C R`.
///
/// Stands in for a `Linear` of the same widths. Made by [`LtiDenseConfig::init`], which checks
/// everything, so that the forward pass cannot fail on an input of the right width.
///
/// The input must have the float type of `C`, and so has the output. The maps and the bias, which
/// train, are of the backend's default type, float32, also beside a half-precision `C`: an
/// optimizer's steps are too small for 8 bits.
#[derive(Module, Debug)]
pub struct LtiDense<B: Backend> {
    /// `C [t_in, t_out]`: the teacher's kernel. Never trains.
    c: Param<Tensor<B, 2>>,
    /// `L`, of the inputs; none where they are the teacher's.
    left: Option<AxisMap<B>>,
    /// `R`, of the outputs.
    right: Option<AxisMap<B>>,
    /// Added after the product: `[s_out]`.
    bias: Option<Param<Tensor<B, 1>>>,
    #[module(skip)]
    precision: KernelPrecision,
}

impl<B: Backend> LtiDense<B> {
    /// The same projection with another map on that side: the way to features that are
    /// [picked](AxisMap::pick), which no start makes.
    ///
    /// # Errors
    ///
    /// [`DenseError::Contraction`] if the map is over other features than `C` has there.
    pub fn with_map(mut self, side: Side, map: AxisMap<B>) -> Result<Self, DenseError> {
        map.check(self.c.lazy_shape()[side as usize])?;
        match side {
            Side::Left => self.left = Some(map),
            Side::Right => self.right = Some(map),
        }
        Ok(self)
    }

    /// `input [..., d_input] -> [..., d_output]`, as a `Linear` of the same widths.
    ///
    /// # Panics
    ///
    /// As any Burn layer, if the last axis of `input` is not `d_input`.
    pub fn forward<const D: usize>(&self, input: Tensor<B, D>) -> Tensor<B, D> {
        projected(input, self.kernel(), self.bias())
    }

    /// What is added after the product, `[d_output]`.
    pub(crate) fn bias(&self) -> Option<Tensor<B, 1>> {
        self.bias.as_ref().map(|bias| bias.val())
    }

    /// The effective kernel, as a `Linear` keeps it: `[d_input, d_output]`.
    pub fn kernel(&self) -> Tensor<B, 2> {
        let c = self.c();
        let [t_in, t_out] = c.dims();
        let left = self.left.as_ref().map(|map| map.values(t_in));
        let right = self.right.as_ref().map(|map| map.values(t_out));
        contract(c, left, right, self.precision)
    }

    /// Folds the maps away: the ordinary projection that computes the same.
    pub fn collapse(&self) -> Linear<B> {
        let weight = self.kernel();
        let bias = self.bias.as_ref();
        Linear {
            bias: bias.map(|bias| compat::trainable(bias.val().cast(weight.dtype()))),
            weight: compat::trainable(weight),
        }
    }

    /// The frozen teacher kernel, on no graph whatever its flag says: `C` cannot train.
    pub fn c(&self) -> Tensor<B, 2> {
        compat::detached(self.c.val())
    }

    /// The map on that side; `None` where the axis is kept.
    pub const fn map_on(&self, side: Side) -> Option<&AxisMap<B>> {
        match side {
            Side::Left => self.left.as_ref(),
            Side::Right => self.right.as_ref(),
        }
    }

    /// The form of the map on that side, of a map that learns. A sum of one pair is
    /// [`MapKind::Factored`].
    pub fn map_kind(&self, side: Side) -> Option<MapKind> {
        let features = self.c.lazy_shape()[side as usize];
        self.map_on(side)?.kind(features)
    }
}
