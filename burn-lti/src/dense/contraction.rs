//! `calculate_attn_weight`: the pure contraction of a teacher kernel with a map.
//!
//! Source of the formulas: MaxText, `learn_to_init_layer.py`. What differs: the order of the two
//! contractions of a factored map is chosen by cost instead of always heads first, and the stacked
//! form is the same code with a leading axis rather than another set of formulas. The sum of several
//! pairs of factors is not in the reference; one pair is its factored map.

use burn::prelude::*;
use burn::tensor::DType;

use super::{ContractionError, KernelPrecision, MapKind, ProjectionKind};
use crate::geometry::HeadGrid;

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
    /// The sum of `rank` pairs of factors.
    Kronecker {
        /// `[rank, t_heads, s_heads]`.
        a: Tensor<B, 3>,
        /// `[rank, t_head_dim, s_head_dim]`, or `[rank, s_head_dim, t_head_dim]` for out.
        b: Tensor<B, 3>,
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
            Self::Kronecker { a, .. } => a.dtype(),
            Self::General { w } => w.dtype(),
        }
    }

    /// The map whose pairs stand one below the other, as [`LtiDense`](super::LtiDense) keeps them:
    /// `a` is `[rank * t_heads, s_heads]` over a teacher of `t_heads`. What does not divide is handed
    /// on as one pair, for the contraction to refuse.
    pub(crate) fn of_stacked_pairs(a: Tensor<B, 2>, b: Tensor<B, 2>, t_heads: usize) -> Self {
        let [rows, s_heads] = a.dims();
        let [b_rows, b_columns] = b.dims();
        let rank = rows.checked_div(t_heads).unwrap_or(1);
        if rank <= 1 || rank * t_heads != rows || !b_rows.is_multiple_of(rank) {
            return Self::Factored { a, b };
        }
        Self::Kronecker {
            a: a.reshape([rank, t_heads, s_heads]),
            b: b.reshape([rank, b_rows / rank, b_columns]),
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
    /// The sum of `rank` pairs of factors for each layer.
    Kronecker {
        /// `[rank, layers, t_heads, s_heads]`.
        a: Tensor<B, 4>,
        /// `[rank, layers, t_head_dim, s_head_dim]`, or `[rank, layers, s_head_dim, t_head_dim]` for
        /// out.
        b: Tensor<B, 4>,
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
        StackedAttnMap::Factored { a, b } => LayerFirstMap::Pairs {
            a: a.swap_dims(0, 1).unsqueeze_dim(1),
            b: b.swap_dims(0, 1).unsqueeze_dim(1),
        },
        StackedAttnMap::Kronecker { a, b } => LayerFirstMap::Pairs {
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
    /// Of the product with what the first gave; 0 for one with `W`.
    pub second: usize,
    /// Of summing pairs of factors up to `W` beforehand, once and not for each feature; 0 where they
    /// are contracted as they are.
    pub once: usize,
    /// Elements that the first product leaves for the second.
    pub between: usize,
}

/// What a contraction costs in the cheaper order.
///
/// With `x, y` the teacher's and `u, v` the student's grid, a pair of factors costs, heads first,
/// `x y u` and `u y v`, head size first `x y v` and `x v u`; `W` costs `x y u v`. Where that is less
/// than all pairs of a sum, they are summed up to `W` first, which costs `rank x y u v` once.
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
    let (first, second, once, between) = match map.pairs() {
        None => (x * y * u * v, 0, 0, 0),
        Some(rank) => match Order::of(rank, [x, y, u, v]) {
            Order::Heads => (rank * x * y * u, rank * u * y * v, 0, rank * u * y),
            Order::HeadSize => (rank * x * y * v, rank * x * v * u, 0, rank * x * v),
            Order::Sum => (x * y * u * v, 0, rank * x * y * u * v, 0),
        },
    };
    ContractionCost {
        first,
        second,
        once,
        between,
    }
}

/// What is summed over first when pairs of factors are contracted with `C`: heads, head features, or the
/// pairs themselves.
#[derive(Clone, Copy)]
enum Order {
    Heads,
    HeadSize,
    Sum,
}

impl Order {
    /// The cheapest for `rank` pairs between grids `x, y` and `u, v`. One pair is always contracted as
    /// it is.
    const fn of(rank: usize, [x, y, u, v]: [usize; 4]) -> Self {
        let (heads_first, head_size_first) = (u * y * (x + v), x * v * (y + u));
        if heads_first <= head_size_first {
            match rank > 1 && x * y * u * v < rank * heads_first {
                true => Self::Sum,
                false => Self::Heads,
            }
        } else {
            match rank > 1 && x * y * u * v < rank * head_size_first {
                true => Self::Sum,
                false => Self::HeadSize,
            }
        }
    }
}

/// The contraction without its checks, for callers that made them at construction.
pub(crate) fn contract<B: Backend>(
    kind: ProjectionKind,
    c: Tensor<B, 3>,
    map: AttnMap<B>,
    precision: KernelPrecision,
) -> Tensor<B, 3> {
    let map = match map {
        AttnMap::Factored { a, b } => LayerFirstMap::Pairs {
            a: a.unsqueeze(),
            b: b.unsqueeze(),
        },
        AttnMap::Kronecker { a, b } => LayerFirstMap::Pairs {
            a: a.unsqueeze(),
            b: b.unsqueeze(),
        },
        AttnMap::General { w } => LayerFirstMap::General { w: w.unsqueeze() },
    };
    contract_layers(kind, c.unsqueeze(), map, precision).squeeze_dim(0)
}

/// A stacked map with the layer axis in front, where a batched matrix product wants it, and behind it
/// the axis of pairs.
enum LayerFirstMap<B: Backend> {
    Pairs { a: Tensor<B, 4>, b: Tensor<B, 4> },
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
        LayerFirstMap::Pairs { a, b } => LayerFirstMap::Pairs {
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
        (ProjectionKind::Qkv, LayerFirstMap::Pairs { a, b }) => qkv_pairs(c, a, b),
        (ProjectionKind::Output, LayerFirstMap::Pairs { a, b }) => out_pairs(c, a, b),
        (ProjectionKind::Qkv, LayerFirstMap::General { w }) => qkv_general(c, w),
        (ProjectionKind::Output, LayerFirstMap::General { w }) => out_general(c, w),
    }
}

// The pairs of a sum go through two matrix products together: the first has all pairs' factors one
// beside the other, the second has the pairs in the axis that it sums over.

/// `C[l,b,x,y] A[l,r,x,u] B[l,r,y,v] -> K[l,b,u,v]`
fn qkv_pairs<B: Backend>(c: Tensor<B, 4>, a: Tensor<B, 4>, b: Tensor<B, 4>) -> Tensor<B, 4> {
    let [l, d_model, x, y] = c.dims();
    let [_, r, _, u] = a.dims();
    let v = b.dims()[3];
    match Order::of(r, [x, y, u, v]) {
        Order::Heads => {
            let a = a.permute([0, 3, 1, 2]).reshape([l, 1, u * r, x]);
            a.matmul(c)
                .reshape([l, d_model * u, r * y])
                .matmul(b.reshape([l, r * y, v]))
                .reshape([l, d_model, u, v])
        }
        Order::HeadSize => {
            let b = b.swap_dims(1, 2).reshape([l, y, r * v]);
            let mixed = c.reshape([l, d_model * x, y]).matmul(b);
            let a = a.permute([0, 3, 2, 1]).reshape([l, 1, u, x * r]);
            a.matmul(mixed.reshape([l, d_model, x * r, v]))
        }
        Order::Sum => {
            let w = sum_of_pairs(a, b).reshape([l, x, u, y, v]);
            qkv_general(c, w.swap_dims(2, 3))
        }
    }
}

/// `C[l,x,y,b] A[l,r,x,u] B[l,r,v,y] -> K[l,u,v,b]`
fn out_pairs<B: Backend>(c: Tensor<B, 4>, a: Tensor<B, 4>, b: Tensor<B, 4>) -> Tensor<B, 4> {
    let [l, x, y, d_model] = c.dims();
    let [_, r, _, u] = a.dims();
    let v = b.dims()[2];
    match Order::of(r, [x, y, u, v]) {
        Order::Heads => {
            let a = a.permute([0, 3, 1, 2]).reshape([l, u * r, x]);
            let mixed = a.matmul(c.reshape([l, x, y * d_model]));
            let b = b.swap_dims(1, 2).reshape([l, 1, v, r * y]);
            b.matmul(mixed.reshape([l, u, r * y, d_model]))
        }
        Order::HeadSize => {
            let mixed = b.reshape([l, 1, r * v, y]).matmul(c);
            let a = a.permute([0, 3, 2, 1]).reshape([l, u, x * r]);
            a.matmul(mixed.reshape([l, x * r, v * d_model]))
                .reshape([l, u, v, d_model])
        }
        Order::Sum => {
            let w = sum_of_pairs(a, b).reshape([l, x, u, v, y]);
            out_general(c, w.permute([0, 1, 4, 2, 3]))
        }
    }
}

/// `A[l,r,..] B[l,r,..] -> W[l,..,..]`, the axes behind `r` joined: one product that sums over pairs.
fn sum_of_pairs<B: Backend>(a: Tensor<B, 4>, b: Tensor<B, 4>) -> Tensor<B, 3> {
    let flat = |t: Tensor<B, 4>| {
        let [l, r, first, second] = t.dims();
        t.reshape([l, r, first * second])
    };
    flat(a).swap_dims(1, 2).matmul(flat(b))
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

/// Both factors of a sum must have as many pairs.
fn check_pairs(in_a: usize, in_b: usize) -> Result<(), ContractionError> {
    match in_a == in_b && in_a > 0 {
        true => Ok(()),
        false => Err(ContractionError::Pairs { in_a, in_b }),
    }
}

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
        AttnMap::Kronecker { a, b } => {
            let ([in_a, a_x, u], [in_b, first, second]) = (a.dims(), b.dims());
            check_pairs(in_a, in_b)?;
            check_axis("A", HEADS, x, a_x, vec![in_a, x, u])?;
            let (in_map, expected) = match kind {
                ProjectionKind::Qkv => (first, vec![in_a, y, second]),
                ProjectionKind::Output => (second, vec![in_a, first, y]),
            };
            check_axis("B", HEAD_DIM, y, in_map, expected)
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
        StackedAttnMap::Kronecker { a, b } => {
            let ([in_a, a_l, a_x, u], [in_b, b_l, first, second]) = (a.dims(), b.dims());
            check_pairs(in_a, in_b)?;
            check_axis("A", HEADS, x, a_x, vec![in_a, layers, x, u])?;
            check_axis("A", LAYERS, layers, a_l, vec![in_a, layers, x, u])?;
            let (in_map, expected) = match kind {
                ProjectionKind::Qkv => (first, vec![in_a, layers, y, second]),
                ProjectionKind::Output => (second, vec![in_a, layers, first, y]),
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
