//! `calculate_attn_weight`: the pure contraction of a teacher kernel with a map.
//!
//! Source of the formulas: MaxText, `learn_to_init_layer.py`. What differs: the order of the two
//! contractions of a factored map is chosen by cost instead of always heads first, and the stacked
//! form is the same code with a leading axis rather than another set of formulas.

use burn::prelude::*;
use burn::tensor::DType;

use super::{ContractionError, HeadGrid, KernelPrecision, MapKind, ProjectionKind};

/// The learnable map of one projection.
#[derive(Clone, Debug)]
pub enum AttnMap<B: Backend> {
    /// Two factors.
    Factored {
        /// `[t_heads, s_heads]`.
        a: Tensor<B, 2>,
        /// `[t_head_dim, s_head_dim]` for query, key, value; `[s_head_dim, t_head_dim]` for out.
        b: Tensor<B, 2>,
    },
    /// One tensor over both grids.
    General {
        /// `[t_heads, t_head_dim, s_heads, s_head_dim]`.
        w: Tensor<B, 4>,
    },
}

impl<B: Backend> AttnMap<B> {
    /// The float type of its values.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Factored { a, .. } => a.dtype(),
            Self::General { w } => w.dtype(),
        }
    }
}

/// The maps of `layers` projections in one, the layer axis second in every tensor.
#[derive(Clone, Debug)]
pub enum StackedAttnMap<B: Backend> {
    /// Two factors for each layer.
    Factored {
        /// `[t_heads, layers, s_heads]`.
        a: Tensor<B, 3>,
        /// `[t_head_dim, layers, s_head_dim]`, or `[s_head_dim, layers, t_head_dim]` for out.
        b: Tensor<B, 3>,
    },
    /// One tensor for each layer.
    General {
        /// `[t_heads, layers, t_head_dim, s_heads, s_head_dim]`.
        w: Tensor<B, 5>,
    },
}

/// A student kernel out of the teacher's kernel `c` and a map.
///
/// # Shapes
///
/// - query, key, value: `c` is `[d_model, t_heads, t_head_dim]`, the kernel
///   `[d_model, s_heads, s_head_dim]`.
/// - out: `c` is `[t_heads, t_head_dim, d_model]`, the kernel `[s_heads, s_head_dim, d_model]`.
///
/// The kernel has the float type of `c`, whatever that of the map.
///
/// # Errors
///
/// [`ContractionError::AxisMismatch`] if the map does not fit `c`,
/// [`ContractionError::Precision`] if the backend lacks the type that `precision` needs.
pub fn calculate_attn_weight<B: Backend>(
    kind: ProjectionKind,
    c: Tensor<B, 3>,
    map: AttnMap<B>,
    precision: KernelPrecision,
) -> Result<Tensor<B, 3>, ContractionError> {
    check_map(kind, c.dims(), &map)?;
    check_precision::<B>(precision, &c.device())?;
    Ok(contract(kind, c, map, precision))
}

/// [`calculate_attn_weight`] for `layers` projections at once, the layer axis second everywhere:
/// `c` is `[d_model, layers, t_heads, t_head_dim]` or `[t_heads, layers, t_head_dim, d_model]`,
/// and so is the kernel with the student's grid.
///
/// # Errors
///
/// As [`calculate_attn_weight`].
pub fn calculate_stacked_attn_weight<B: Backend>(
    kind: ProjectionKind,
    c: Tensor<B, 4>,
    map: StackedAttnMap<B>,
    precision: KernelPrecision,
) -> Result<Tensor<B, 4>, ContractionError> {
    let [first, layers, second, third] = c.dims();
    check_stacked_map(kind, layers, [first, second, third], &map)?;
    check_precision::<B>(precision, &c.device())?;
    let map = match map {
        StackedAttnMap::Factored { a, b } => LayerFirstMap::Factored {
            a: a.swap_dims(0, 1),
            b: b.swap_dims(0, 1),
        },
        StackedAttnMap::General { w } => LayerFirstMap::General {
            w: w.permute([1, 0, 2, 3, 4]),
        },
    };
    Ok(contract_layers(kind, c.swap_dims(0, 1), map, precision).swap_dims(0, 1))
}

/// Multiply-adds of a contraction's products, for each of the model's `d_model` features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContractionCost {
    /// Of the product with `C`.
    pub first: usize,
    /// Of the product with what the first gave; 0 for a general map.
    pub second: usize,
}

/// What a contraction costs in the cheaper order.
///
/// Factored, with `x, y` the teacher's and `u, v` the student's grid: heads first costs
/// `x y u` and `u y v`, head size first `x y v` and `x v u`. General: `x y u v`.
pub const fn contraction_cost(
    map: MapKind,
    teacher: HeadGrid,
    student: HeadGrid,
) -> ContractionCost {
    let (x, y, u, v) = (
        teacher.heads,
        teacher.head_dim,
        student.heads,
        student.head_dim,
    );
    let (first, second) = match map {
        MapKind::General => (x * y * u * v, 0),
        MapKind::Factored if heads_first(x, y, u, v) => (x * y * u, u * y * v),
        MapKind::Factored => (x * y * v, x * v * u),
    };
    ContractionCost { first, second }
}

/// Whether mixing heads before head features is the cheaper order.
const fn heads_first(x: usize, y: usize, u: usize, v: usize) -> bool {
    u * y * (x + v) <= x * v * (y + u)
}

/// The contraction without its checks, for callers that made them at construction.
pub(crate) fn contract<B: Backend>(
    kind: ProjectionKind,
    c: Tensor<B, 3>,
    map: AttnMap<B>,
    precision: KernelPrecision,
) -> Tensor<B, 3> {
    let map = match map {
        AttnMap::Factored { a, b } => LayerFirstMap::Factored {
            a: a.unsqueeze(),
            b: b.unsqueeze(),
        },
        AttnMap::General { w } => LayerFirstMap::General { w: w.unsqueeze() },
    };
    contract_layers(kind, c.unsqueeze(), map, precision).squeeze_dim(0)
}

/// A stacked map with the layer axis in front, where a batched matrix product wants it.
enum LayerFirstMap<B: Backend> {
    Factored { a: Tensor<B, 3>, b: Tensor<B, 3> },
    General { w: Tensor<B, 5> },
}

/// The contraction itself, layers first in every tensor, in the precision asked for.
fn contract_layers<B: Backend>(
    kind: ProjectionKind,
    c: Tensor<B, 4>,
    map: LayerFirstMap<B>,
    precision: KernelPrecision,
) -> Tensor<B, 4> {
    let stored = c.dtype();
    let working = working_dtype(precision, stored);
    // The map's own type may be another: one that trains is float32 beside a teacher of any type.
    let map = match map {
        LayerFirstMap::Factored { a, b } => LayerFirstMap::Factored {
            a: a.cast(working),
            b: b.cast(working),
        },
        LayerFirstMap::General { w } => LayerFirstMap::General { w: w.cast(working) },
    };
    contract_in_place(kind, c.cast(working), map).cast(stored)
}

fn contract_in_place<B: Backend>(
    kind: ProjectionKind,
    c: Tensor<B, 4>,
    map: LayerFirstMap<B>,
) -> Tensor<B, 4> {
    match (kind, map) {
        (ProjectionKind::Qkv, LayerFirstMap::Factored { a, b }) => qkv_factored(c, a, b),
        (ProjectionKind::Output, LayerFirstMap::Factored { a, b }) => out_factored(c, a, b),
        (ProjectionKind::Qkv, LayerFirstMap::General { w }) => qkv_general(c, w),
        (ProjectionKind::Output, LayerFirstMap::General { w }) => out_general(c, w),
    }
}

/// `C[l,b,x,y] A[l,x,u] B[l,y,v] -> K[l,b,u,v]`
fn qkv_factored<B: Backend>(c: Tensor<B, 4>, a: Tensor<B, 3>, b: Tensor<B, 3>) -> Tensor<B, 4> {
    let [l, d_model, x, y] = c.dims();
    let (u, v) = (a.dims()[2], b.dims()[2]);
    let mix_heads = |t: Tensor<B, 4>| a.clone().swap_dims(1, 2).reshape([l, 1, u, x]).matmul(t);
    let mix_features = |t: Tensor<B, 4>| {
        let heads = t.dims()[2];
        t.reshape([l, d_model * heads, y])
            .matmul(b.clone())
            .reshape([l, d_model, heads, v])
    };
    if heads_first(x, y, u, v) {
        mix_features(mix_heads(c))
    } else {
        mix_heads(mix_features(c))
    }
}

/// `C[l,x,y,b] A[l,x,u] B[l,v,y] -> K[l,u,v,b]`
fn out_factored<B: Backend>(c: Tensor<B, 4>, a: Tensor<B, 3>, b: Tensor<B, 3>) -> Tensor<B, 4> {
    let [l, x, y, d_model] = c.dims();
    let (u, v) = (a.dims()[2], b.dims()[1]);
    let mix_heads = |t: Tensor<B, 4>| {
        let features = t.dims()[2];
        a.clone()
            .swap_dims(1, 2)
            .matmul(t.reshape([l, x, features * d_model]))
            .reshape([l, u, features, d_model])
    };
    let mix_features = |t: Tensor<B, 4>| b.clone().reshape([l, 1, v, y]).matmul(t);
    if heads_first(x, y, u, v) {
        mix_features(mix_heads(c))
    } else {
        mix_heads(mix_features(c))
    }
}

/// `C[l,b,x,y] W[l,x,y,u,v] -> K[l,b,u,v]`
fn qkv_general<B: Backend>(c: Tensor<B, 4>, w: Tensor<B, 5>) -> Tensor<B, 4> {
    let [l, x, y, u, v] = w.dims();
    let d_model = c.dims()[1];
    c.reshape([l, d_model, x * y])
        .matmul(w.reshape([l, x * y, u * v]))
        .reshape([l, d_model, u, v])
}

/// `C[l,x,y,b] W[l,x,y,u,v] -> K[l,u,v,b]`
fn out_general<B: Backend>(c: Tensor<B, 4>, w: Tensor<B, 5>) -> Tensor<B, 4> {
    let [l, x, y, u, v] = w.dims();
    let d_model = c.dims()[3];
    w.reshape([l, x * y, u * v])
        .swap_dims(1, 2)
        .matmul(c.reshape([l, x * y, d_model]))
        .reshape([l, u, v, d_model])
}

/// The type in which `stored` tensors are contracted.
fn working_dtype(precision: KernelPrecision, stored: DType) -> DType {
    match precision {
        KernelPrecision::Default => stored,
        KernelPrecision::High if stored == DType::F64 => stored,
        KernelPrecision::High => DType::F32,
        KernelPrecision::Highest => DType::F64,
    }
}

/// Refuses a precision whose type the device lacks.
pub(crate) fn check_precision<B: Backend>(
    precision: KernelPrecision,
    device: &B::Device,
) -> Result<(), ContractionError> {
    let (precision, dtype, name) = match precision {
        KernelPrecision::Default => return Ok(()),
        KernelPrecision::High => ("high", DType::F32, "float32"),
        KernelPrecision::Highest => ("highest", DType::F64, "float64"),
    };
    if B::supports_dtype(device, dtype) {
        Ok(())
    } else {
        Err(ContractionError::Precision {
            precision,
            dtype: name,
        })
    }
}

/// The teacher's grid in `C`'s axes, wherever `d_model` stands.
fn grid_of_c(kind: ProjectionKind, c: [usize; 3]) -> (usize, usize) {
    match kind {
        ProjectionKind::Qkv => (c[1], c[2]),
        ProjectionKind::Output => (c[0], c[1]),
    }
}

const HEADS: &str = "x (teacher heads)";
const HEAD_DIM: &str = "y (teacher head size)";
const LAYERS: &str = "l (layers)";

fn check_axis(
    tensor: &'static str,
    axis: &'static str,
    in_c: usize,
    in_map: usize,
    expected: Vec<usize>,
) -> Result<(), ContractionError> {
    if in_c == in_map {
        return Ok(());
    }
    Err(ContractionError::AxisMismatch {
        tensor,
        axis,
        in_c,
        in_map,
        expected,
    })
}

fn check_map<B: Backend>(
    kind: ProjectionKind,
    c: [usize; 3],
    map: &AttnMap<B>,
) -> Result<(), ContractionError> {
    let (x, y) = grid_of_c(kind, c);
    match map {
        AttnMap::Factored { a, b } => {
            let [a_x, u] = a.dims();
            check_axis("A", HEADS, x, a_x, vec![x, u])?;
            let [first, second] = b.dims();
            match kind {
                ProjectionKind::Qkv => check_axis("B", HEAD_DIM, y, first, vec![y, second]),
                ProjectionKind::Output => check_axis("B", HEAD_DIM, y, second, vec![first, y]),
            }
        }
        AttnMap::General { w } => {
            let [w_x, w_y, u, v] = w.dims();
            check_axis("W", HEADS, x, w_x, vec![x, y, u, v])?;
            check_axis("W", HEAD_DIM, y, w_y, vec![x, y, u, v])
        }
    }
}

fn check_stacked_map<B: Backend>(
    kind: ProjectionKind,
    layers: usize,
    c: [usize; 3],
    map: &StackedAttnMap<B>,
) -> Result<(), ContractionError> {
    let (x, y) = grid_of_c(kind, c);
    match map {
        StackedAttnMap::Factored { a, b } => {
            let [a_x, a_l, u] = a.dims();
            check_axis("A", HEADS, x, a_x, vec![x, layers, u])?;
            check_axis("A", LAYERS, layers, a_l, vec![x, layers, u])?;
            let [first, b_l, second] = b.dims();
            let (in_map, expected) = match kind {
                ProjectionKind::Qkv => (first, vec![y, layers, second]),
                ProjectionKind::Output => (second, vec![first, layers, y]),
            };
            check_axis("B", LAYERS, layers, b_l, expected.clone())?;
            check_axis("B", HEAD_DIM, y, in_map, expected)
        }
        StackedAttnMap::General { w } => {
            let [w_x, w_l, w_y, u, v] = w.dims();
            let expected = vec![x, layers, y, u, v];
            check_axis("W", HEADS, x, w_x, expected.clone())?;
            check_axis("W", LAYERS, layers, w_l, expected.clone())?;
            check_axis("W", HEAD_DIM, y, w_y, expected)
        }
    }
}
