//! [`LtiDense`]: a dense projection whose kernel is a learnable map of the teacher's.

use burn::module::{Param, ParamId};
use burn::nn::Linear;
use burn::prelude::*;

use super::contraction::{check_precision, contract};
use super::{AttnMap, DenseError, KernelPrecision, MapKind, ProjectionKind};
use crate::compat;
use crate::geometry::HeadGrid;
use crate::kernels::projected;
use crate::start::{MapSpec, Start};

/// What an [`LtiDense`] is made from.
#[derive(Clone, Copy, Debug)]
pub struct LtiDenseConfig {
    /// Which way the projection goes.
    pub kind: ProjectionKind,
    /// Width of the model, equal in teacher and student.
    pub d_model: usize,
    /// The teacher's grid of this projection.
    pub teacher: HeadGrid,
    /// The student's grid of this projection.
    pub student: HeadGrid,
    /// Form of the map. Factored unless set.
    pub map: MapKind,
    /// Where the map begins. [`Start::Grouped`] unless set.
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
    /// A factored map without bias, started from groups of teacher heads.
    pub const fn new(
        kind: ProjectionKind,
        d_model: usize,
        teacher: HeadGrid,
        student: HeadGrid,
    ) -> Self {
        Self {
            kind,
            d_model,
            teacher,
            student,
            map: MapKind::Factored,
            start: Start::Grouped,
            seed: 0,
            precision: KernelPrecision::Default,
            bias: false,
        }
    }

    /// Sets the form of the map.
    pub const fn with_map(mut self, map: MapKind) -> Self {
        self.map = map;
        self
    }

    /// Sets where the map begins, and the seed of a random start.
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

    /// Shape of `C`: `[d_model, t_heads, t_head_dim]`, or `[t_heads, t_head_dim, d_model]` for out.
    pub const fn c_shape(&self) -> [usize; 3] {
        kernel_shape(self.kind, self.d_model, self.teacher)
    }

    /// Input and output width of the student's projection.
    pub const fn widths(&self) -> [usize; 2] {
        match self.kind {
            ProjectionKind::Qkv => [self.d_model, self.student.width()],
            ProjectionKind::Output => [self.student.width(), self.d_model],
        }
    }

    /// The projection over the teacher's kernel `c`.
    ///
    /// # Shapes
    ///
    /// `c` as [`c_shape`](Self::c_shape).
    ///
    /// # Errors
    ///
    /// [`DenseError::MissingTeacher`] if `c` is empty, [`DenseError::EmbeddingMismatch`] or
    /// [`DenseError::TeacherGrid`] if it has another geometry, [`DenseError::Empty`] for an empty
    /// grid, [`DenseError::Start`] if start or form of the map do not exist for this geometry,
    /// [`DenseError::Contraction`] if the backend lacks the precision.
    pub fn init<B: Backend>(&self, c: Tensor<B, 3>) -> Result<LtiDense<B>, DenseError> {
        self.check_teacher(c.dims())?;
        let device = c.device();
        self.init_with(compat::frozen(c), &device)
    }

    /// The projection over the kernel of a teacher's `Linear`, `[d_input, d_output]` in Burn.
    ///
    /// # Errors
    ///
    /// As [`init`](Self::init).
    pub fn init_from_linear<B: Backend>(
        &self,
        teacher: &Linear<B>,
    ) -> Result<LtiDense<B>, DenseError> {
        let weight = teacher.weight.val();
        let [d_input, d_output] = weight.dims();
        let (d_model, width) = match self.kind {
            ProjectionKind::Qkv => (d_input, d_output),
            ProjectionKind::Output => (d_output, d_input),
        };
        self.check_sizes()?;
        if d_model != self.d_model {
            return Err(DenseError::EmbeddingMismatch {
                teacher: d_model,
                student: self.d_model,
            });
        }
        if width != self.teacher.width() {
            return Err(DenseError::TeacherGrid {
                kind: self.kind,
                expected: self.teacher,
                found: HeadGrid::new(1, width),
            });
        }
        self.init(compat::detached(weight).reshape(self.c_shape()))
    }

    /// The projection before its teacher has arrived: `C` is neither allocated nor usable until
    /// [`inject`](crate::inject) fills it, which [`AwaitingTeacher`](crate::decoder::AwaitingTeacher)
    /// sees to.
    pub(crate) fn init_awaiting_teacher<B: Backend>(
        &self,
        device: &B::Device,
    ) -> Result<LtiDense<B>, DenseError> {
        let shape = self.c_shape();
        let c = promised(shape, false, device);
        match self.start {
            Start::Calibrated => {
                self.check::<B>(device)?;
                Ok(self.around(c, self.promised_map(device), device))
            }
            Start::Lecun | Start::Grouped => self.init_with(c, device),
        }
    }

    /// The tensors of a map whose values [`inject`](crate::inject) brings with the teacher.
    fn promised_map<B: Backend>(&self, device: &B::Device) -> MapParams<B> {
        let spec = self.spec();
        match self.map {
            MapKind::Factored | MapKind::Kronecker(_) => MapParams {
                a: Some(promised(spec.a_shape(), true, device)),
                b: Some(promised(spec.b_shape(), true, device)),
                w: None,
            },
            MapKind::General => MapParams {
                a: None,
                b: None,
                w: Some(promised(spec.w_shape(), true, device)),
            },
        }
    }

    /// Refuses a `Linear` that this projection could not stand in for.
    pub(crate) fn check_replaces<B: Backend>(&self, linear: &Linear<B>) -> Result<(), DenseError> {
        let [expected_in, expected_out] = self.widths();
        let shape = linear.weight.lazy_shape();
        let (found_in, found_out) = (shape[0], shape[1]);
        if (found_in, found_out) == (expected_in, expected_out) {
            return Ok(());
        }
        Err(DenseError::Width {
            student: self.student,
            d_model: self.d_model,
            expected_in,
            expected_out,
            found_in,
            found_out,
        })
    }

    fn init_with<B: Backend>(
        &self,
        c: Param<Tensor<B, 3>>,
        device: &B::Device,
    ) -> Result<LtiDense<B>, DenseError> {
        self.check::<B>(device)?;
        let spec = self.spec();
        let map = match self.start.map(&spec, self.seed, device)? {
            AttnMap::Factored { a, b } => MapParams {
                a: Some(compat::trainable(a)),
                b: Some(compat::trainable(b)),
                w: None,
            },
            AttnMap::Kronecker { a, b } => MapParams {
                a: Some(compat::trainable(a.reshape(spec.a_shape()))),
                b: Some(compat::trainable(b.reshape(spec.b_shape()))),
                w: None,
            },
            AttnMap::General { w } => MapParams {
                a: None,
                b: None,
                w: Some(compat::trainable(w)),
            },
        };
        Ok(self.around(c, map, device))
    }

    fn check<B: Backend>(&self, device: &B::Device) -> Result<(), DenseError> {
        self.check_sizes()?;
        self.spec().check_rank()?;
        Ok(check_precision::<B>(self.precision, device)?)
    }

    fn around<B: Backend>(
        &self,
        c: Param<Tensor<B, 3>>,
        MapParams { a, b, w }: MapParams<B>,
        device: &B::Device,
    ) -> LtiDense<B> {
        let [_, d_output] = self.widths();
        LtiDense {
            c: TeacherKernel::new(self.kind, c),
            a,
            b,
            w,
            bias: self
                .bias
                .then(|| compat::trainable(Tensor::zeros([d_output], device))),
            precision: self.precision,
        }
    }

    const fn spec(&self) -> MapSpec {
        MapSpec {
            kind: self.kind,
            map: self.map,
            teacher: self.teacher,
            student: self.student,
        }
    }

    fn check_sizes(&self) -> Result<(), DenseError> {
        let sizes = [
            ("the model width", self.d_model, self.d_model.to_string()),
            (
                "the teacher's grid",
                self.teacher.width(),
                self.teacher.to_string(),
            ),
            (
                "the student's grid",
                self.student.width(),
                self.student.to_string(),
            ),
        ];
        match sizes.into_iter().find(|(_, size, _)| *size == 0) {
            Some((what, _, found)) => Err(DenseError::Empty { what, found }),
            None => Ok(()),
        }
    }

    fn check_teacher(&self, c: [usize; 3]) -> Result<(), DenseError> {
        if c.contains(&0) {
            return Err(DenseError::MissingTeacher { shape: c });
        }
        let (d_model, found) = match self.kind {
            ProjectionKind::Qkv => (c[0], HeadGrid::new(c[1], c[2])),
            ProjectionKind::Output => (c[2], HeadGrid::new(c[0], c[1])),
        };
        if d_model != self.d_model {
            return Err(DenseError::EmbeddingMismatch {
                teacher: d_model,
                student: self.d_model,
            });
        }
        if found != self.teacher {
            return Err(DenseError::TeacherGrid {
                kind: self.kind,
                expected: self.teacher,
                found,
            });
        }
        Ok(())
    }
}

/// The parameters of a map: `A` and `B`, of all its pairs, or `W`.
struct MapParams<B: Backend> {
    a: Option<Param<Tensor<B, 2>>>,
    b: Option<Param<Tensor<B, 2>>>,
    w: Option<Param<Tensor<B, 4>>>,
}

/// A parameter that is no more than a shape until it is filled.
fn promised<B: Backend, const D: usize>(
    shape: [usize; D],
    trains: bool,
    device: &B::Device,
) -> Param<Tensor<B, D>> {
    Param::uninitialized(
        ParamId::new(),
        move |device, _| Tensor::zeros(shape, device),
        device.clone(),
        trains,
        shape.into(),
    )
}

/// Shape of a kernel of this kind over `grid`: `[d_model, heads, head_dim]`, or
/// `[heads, head_dim, d_model]` for out.
pub const fn kernel_shape(kind: ProjectionKind, d_model: usize, grid: HeadGrid) -> [usize; 3] {
    match kind {
        ProjectionKind::Qkv => [d_model, grid.heads, grid.head_dim],
        ProjectionKind::Output => [grid.heads, grid.head_dim, d_model],
    }
}

/// The frozen teacher kernel `C`, which knows which way its projection goes.
///
/// The layout is a variant and not a field beside the tensor, so that a visitor, which sees only
/// tensors and names, can tell the two kinds apart.
#[derive(Module, Debug)]
pub enum TeacherKernel<B: Backend> {
    /// `[d_model, t_heads, t_head_dim]`
    Qkv(Param<Tensor<B, 3>>),
    /// `[t_heads, t_head_dim, d_model]`
    Output(Param<Tensor<B, 3>>),
}

impl<B: Backend> TeacherKernel<B> {
    fn new(kind: ProjectionKind, c: Param<Tensor<B, 3>>) -> Self {
        match kind {
            ProjectionKind::Qkv => Self::Qkv(c),
            ProjectionKind::Output => Self::Output(c),
        }
    }

    /// Which way the projection goes.
    pub const fn kind(&self) -> ProjectionKind {
        match self {
            Self::Qkv(_) => ProjectionKind::Qkv,
            Self::Output(_) => ProjectionKind::Output,
        }
    }

    /// Heads of the teacher, also before it has arrived.
    fn heads(&self) -> usize {
        match self {
            Self::Qkv(c) => c.lazy_shape()[1],
            Self::Output(c) => c.lazy_shape()[0],
        }
    }

    /// The kernel, on no graph whatever the parameter's flag says: `C` cannot train.
    pub fn val(&self) -> Tensor<B, 3> {
        match self {
            Self::Qkv(c) | Self::Output(c) => compat::detached(c.val()),
        }
    }
}

/// A dense projection whose kernel is a learnable map of a frozen teacher kernel.
///
/// Stands in for a `Linear` of `[d_model] -> [s_heads * s_head_dim]` (query, key, value) or back
/// (out). Made by [`LtiDenseConfig::init`], which checks everything, so that the forward pass
/// cannot fail on an input of the right width.
///
/// The input must have the float type of `C`, and so has the output. The map and the bias, which
/// train, are of the backend's default type, float32, also beside a half-precision `C`: an
/// optimizer's steps are too small for 8 bits.
#[derive(Module, Debug)]
pub struct LtiDense<B: Backend> {
    /// `C`: the teacher's kernel. Never trains.
    pub(crate) c: TeacherKernel<B>,
    /// `A` of a factored map: mixes heads, `[t_heads, s_heads]`. Of several pairs, those of all, one
    /// below the other, `[rank * t_heads, s_heads]`: with an axis of its own for the pairs, one pair
    /// would not be the same tensor as a factored map's in records, checkpoints and files.
    pub(crate) a: Option<Param<Tensor<B, 2>>>,
    /// `B` of a factored map: mixes head features, `[t_head_dim, s_head_dim]`, transposed for out. Of
    /// several pairs, those of all, one below the other.
    pub(crate) b: Option<Param<Tensor<B, 2>>>,
    /// `W` of a general map: `[t_heads, t_head_dim, s_heads, s_head_dim]`.
    pub(crate) w: Option<Param<Tensor<B, 4>>>,
    /// Added after the product: `[s_heads * s_head_dim]`, or `[d_model]` for out.
    pub(crate) bias: Option<Param<Tensor<B, 1>>>,
    #[module(skip)]
    precision: KernelPrecision,
}

impl<B: Backend> LtiDense<B> {
    /// `input [..., d_input] -> [..., d_output]`, as a `Linear` of the same widths.
    ///
    /// # Panics
    ///
    /// As any Burn layer, if the last axis of `input` is not `d_input`.
    pub fn forward<const D: usize>(&self, input: Tensor<B, D>) -> Tensor<B, D> {
        let bias = self.bias.as_ref().map(|bias| bias.val());
        projected(input, self.weight(), bias)
    }

    /// The effective kernel: `[d_model, s_heads, s_head_dim]`, or `[s_heads, s_head_dim, d_model]`
    /// for out.
    pub fn kernel(&self) -> Tensor<B, 3> {
        contract(self.kind(), self.c.val(), self.map_values(), self.precision)
    }

    /// The effective kernel as a `Linear` keeps it: `[d_input, d_output]`.
    pub fn weight(&self) -> Tensor<B, 2> {
        let kernel = self.kernel();
        let [first, second, third] = kernel.dims();
        match self.kind() {
            ProjectionKind::Qkv => kernel.reshape([first, second * third]),
            ProjectionKind::Output => kernel.reshape([first * second, third]),
        }
    }

    /// Folds the map away: the ordinary projection that computes the same.
    pub fn collapse(&self) -> Linear<B> {
        let weight = self.weight();
        let bias = self.bias.as_ref();
        Linear {
            bias: bias.map(|bias| compat::trainable(bias.val().cast(weight.dtype()))),
            weight: compat::trainable(weight),
        }
    }

    /// Which way the projection goes.
    pub const fn kind(&self) -> ProjectionKind {
        self.c.kind()
    }

    /// The form of the map. A sum of one pair is [`MapKind::Factored`].
    pub fn map_kind(&self) -> MapKind {
        let Some(a) = &self.a else {
            return MapKind::General;
        };
        let rows = a.lazy_shape()[0];
        match rows.checked_div(self.c.heads()) {
            Some(rank) if rank > 1 => MapKind::Kronecker(rank),
            _ => MapKind::Factored,
        }
    }

    /// The frozen teacher kernel.
    pub fn c(&self) -> Tensor<B, 3> {
        self.c.val()
    }

    /// The map's values, on the graph.
    pub fn map_values(&self) -> AttnMap<B> {
        match (&self.a, &self.b, &self.w) {
            (_, _, Some(w)) => AttnMap::General { w: w.val() },
            (Some(a), Some(b), None) => AttnMap::of_stacked_pairs(a.val(), b.val(), self.c.heads()),
            _ => unreachable!("an LtiDense holds either A and B or W: only its config makes one"),
        }
    }
}
