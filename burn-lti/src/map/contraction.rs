//! The law `K = L^T C R`: the contraction of a teacher's kernel with maps on its sides, and its cost.
//!
//! Where both sides are mapped, that comes first after which less is left to do. The order of the two
//! products of a factored map is chosen by cost as well. (The reference always takes heads first.)

use burn::prelude::*;
use burn::tensor::DType;

use super::rotary::RotaryShape;
use super::{ContractionError, KernelPrecision, MapKind};
use crate::geometry::HeadGrid;

/// Multiply-adds of a map's products, for each row of what it is applied to: of `C`, on the right, for
/// each of its inputs; on the left for each of its outputs.
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

/// What it costs to apply a map, in the cheaper order.
///
/// With `x, y` the teacher's and `u, v` the student's grid, a pair of factors costs, heads first,
/// `x y u` and `u y v`, head size first `x y v` and `x v u`; `W` costs `x y u v`. Where that is less
/// than all pairs of a sum, they are summed up to `W` first, which costs `rank x y u v` once. A rotary map costs
/// `4 x u` for each pair that turns, and `x i u j` for `i` and `j` features that do not.
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
        None => match RotaryShape::between(map, teacher, student) {
            Some(shape) => (shape.cost(), 0, 0, 0),
            None => (x * y * u * v, 0, 0, 0),
        },
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

/// What decides which side of a kernel is contracted first.
#[derive(Clone, Copy)]
pub(super) struct SideCost {
    /// Multiply-adds for each row that the map is applied to.
    pub(super) cost: usize,
    /// The teacher's features and the student's.
    pub(super) features: [usize; 2],
}

/// Whether less is left to do after the left side than after the right.
pub(super) const fn left_is_first(left: SideCost, right: SideCost) -> bool {
    let left_first = left.cost * right.features[0] + right.cost * left.features[1];
    let right_first = right.cost * left.features[0] + left.cost * right.features[1];
    left_first < right_first
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
        let (order, of_a_pair) = match heads_first <= head_size_first {
            true => (Self::Heads, heads_first),
            false => (Self::HeadSize, head_size_first),
        };
        match rank > 1 && x * y * u * v < rank * of_a_pair {
            true => Self::Sum,
            false => order,
        }
    }
}

/// The tensors that one layer's axis map holds, by their letters.
#[derive(Clone, Debug)]
pub(super) struct AxisTensors<B: Backend> {
    pub(super) a: Option<Tensor<B, 2>>,
    pub(super) b: Option<Tensor<B, 2>>,
    pub(super) w: Option<Tensor<B, 2>>,
    pub(super) r: Option<Tensor<B, 3>>,
    pub(super) pick: Option<Tensor<B, 1, Int>>,
}

/// The values of an axis map, layers in front, where a batched matrix product wants them.
#[derive(Clone, Debug)]
pub(crate) enum AxisFactors<B: Backend> {
    /// `sum_r A_r (x) B_r`.
    Heads {
        /// `[layers, rank, x, u]`
        a: Tensor<B, 4>,
        /// `[layers, rank, y, v]`
        b: Tensor<B, 4>,
    },
    /// `W [layers, t_features, s_features]`
    Dense(Tensor<B, 3>),
    /// What commutes with a rotary embedding, the same in all layers.
    Rotary {
        shape: RotaryShape,
        /// `[s_pairs, 2 * t_heads, s_heads]`
        r: Tensor<B, 3>,
        /// Over the features that do not turn.
        w: Option<Tensor<B, 2>>,
    },
    /// The teacher's features that are taken, the same in all layers.
    Pick(Tensor<B, 1, Int>),
}

impl<B: Backend> AxisFactors<B> {
    /// The map of one layer from the tensors that hold it, over `features` of the teacher; `None` if
    /// they make no map of that many.
    pub(super) fn of_tensors(features: usize, tensors: AxisTensors<B>) -> Option<Self> {
        let AxisTensors { a, b, w, r, pick } = tensors;
        match (a, b, w, r, pick) {
            (Some(a), Some(b), None, None, None) => {
                let ([in_a, u], [in_b, v]) = (a.dims(), b.dims());
                let rank = pairs(features, in_a, in_b)?;
                Some(Self::Heads {
                    a: a.reshape([1, rank, in_a / rank, u]),
                    b: b.reshape([1, rank, in_b / rank, v]),
                })
            }
            (None, None, Some(w), None, None) => {
                (w.dims()[0] == features).then(|| Self::Dense(w.unsqueeze()))
            }
            (None, None, w, Some(r), None) => {
                let still = w.as_ref().map(|w| w.dims());
                let shape = RotaryShape::of(features, r.dims(), still)?;
                Some(Self::Rotary { shape, r, w })
            }
            (None, None, None, None, Some(pick)) => Some(Self::Pick(pick)),
            _ => None,
        }
    }

    /// The student's features.
    fn features(&self) -> usize {
        match self {
            Self::Heads { a, b } => a.dims()[3] * b.dims()[3],
            Self::Dense(w) => w.dims()[2],
            Self::Rotary { shape, .. } => shape.features(),
            Self::Pick(of) => of.dims()[0],
        }
    }

    /// Multiply-adds for each row that the map is applied to.
    fn cost(&self) -> usize {
        match self {
            Self::Heads { a, b } => {
                let ([_, rank, x, u], [_, _, y, v]) = (a.dims(), b.dims());
                let map = MapKind::Kronecker(rank);
                let cost = contraction_cost(map, HeadGrid::new(x, y), HeadGrid::new(u, v));
                cost.first + cost.second
            }
            Self::Dense(w) => w.dims()[1] * w.dims()[2],
            Self::Rotary { shape, .. } => shape.cost(),
            Self::Pick(_) => 0,
        }
    }

    fn cast(self, dtype: DType) -> Self {
        match self {
            Self::Heads { a, b } => Self::Heads {
                a: a.cast(dtype),
                b: b.cast(dtype),
            },
            Self::Dense(w) => Self::Dense(w.cast(dtype)),
            Self::Rotary { shape, r, w } => Self::Rotary {
                shape,
                r: r.cast(dtype),
                w: w.map(|w| w.cast(dtype)),
            },
            Self::Pick(of) => Self::Pick(of),
        }
    }

    /// `M R`, `m [layers, rows, t_features] -> [layers, rows, s_features]`.
    fn on_the_right(self, m: Tensor<B, 3>) -> Tensor<B, 3> {
        let [l, rows, features] = m.dims();
        let (a, b) = match self {
            Self::Heads { a, b } => (a, b),
            Self::Dense(w) => return m.matmul(w),
            Self::Rotary { shape, r, w } => {
                let mixed = shape.apply(m.reshape([l * rows, features]), r, w);
                return mixed.reshape([l, rows, shape.features()]);
            }
            Self::Pick(of) => return m.select(2, of),
        };
        let ([_, r, x, u], [_, _, y, v]) = (a.dims(), b.dims());
        // The pairs go through two matrix products together: the first has all pairs' factors one beside
        // the other, the second has the pairs in the axis that it sums over.
        match Order::of(r, [x, y, u, v]) {
            Order::Heads => {
                let a = a.permute([0, 3, 1, 2]).reshape([l, 1, u * r, x]);
                a.matmul(m.reshape([l, rows, x, y]))
                    .reshape([l, rows * u, r * y])
                    .matmul(b.reshape([l, r * y, v]))
                    .reshape([l, rows, u * v])
            }
            Order::HeadSize => {
                let b = b.swap_dims(1, 2).reshape([l, y, r * v]);
                let mixed = m.reshape([l, rows * x, y]).matmul(b);
                let a = a.permute([0, 3, 2, 1]).reshape([l, 1, u, x * r]);
                a.matmul(mixed.reshape([l, rows, x * r, v]))
                    .reshape([l, rows, u * v])
            }
            Order::Sum => m.matmul(sum_of_pairs(a, b)),
        }
    }

    /// `L^T M`, `m [layers, t_features, columns] -> [layers, s_features, columns]`.
    fn on_the_left(self, m: Tensor<B, 3>) -> Tensor<B, 3> {
        let [l, _, columns] = m.dims();
        let (a, b) = match self {
            Self::Heads { a, b } => (a, b),
            Self::Dense(w) => return w.swap_dims(1, 2).matmul(m),
            // The same numbers, its rows and columns exchanged.
            map @ Self::Rotary { .. } => {
                return map.on_the_right(m.swap_dims(1, 2)).swap_dims(1, 2);
            }
            Self::Pick(of) => return m.select(1, of),
        };
        let ([_, r, x, u], [_, _, y, v]) = (a.dims(), b.dims());
        match Order::of(r, [x, y, u, v]) {
            Order::Heads => {
                let a = a.permute([0, 3, 1, 2]).reshape([l, u * r, x]);
                let mixed = a.matmul(m.reshape([l, x, y * columns]));
                let b = b.permute([0, 3, 1, 2]).reshape([l, 1, v, r * y]);
                b.matmul(mixed.reshape([l, u, r * y, columns]))
                    .reshape([l, u * v, columns])
            }
            Order::HeadSize => {
                let b = b.swap_dims(2, 3).reshape([l, 1, r * v, y]);
                let mixed = b.matmul(m.reshape([l, x, y, columns]));
                let a = a.permute([0, 3, 2, 1]).reshape([l, u, x * r]);
                a.matmul(mixed.reshape([l, x * r, v * columns]))
                    .reshape([l, u * v, columns])
            }
            Order::Sum => sum_of_pairs(a, b).swap_dims(1, 2).matmul(m),
        }
    }
}

/// `K = L^T C R`, `c [t_in, t_out] -> [s_in, s_out]`, without checks, for callers that made them at
/// construction. An axis without a map is kept. The kernel has the float type of `c`.
pub(crate) fn contract<B: Backend>(
    c: Tensor<B, 2>,
    left: Option<AxisFactors<B>>,
    right: Option<AxisFactors<B>>,
    precision: KernelPrecision,
) -> Tensor<B, 2> {
    contract_layers(c.unsqueeze(), left, right, precision).squeeze_dim(0)
}

/// The same for several layers: `c [layers, t_in, t_out] -> [layers, s_in, s_out]`.
pub(super) fn contract_layers<B: Backend>(
    c: Tensor<B, 3>,
    left: Option<AxisFactors<B>>,
    right: Option<AxisFactors<B>>,
    precision: KernelPrecision,
) -> Tensor<B, 3> {
    let stored = c.dtype();
    let working = working_dtype(precision, stored);
    // A map's own type may be another: one that trains is float32 beside a teacher of any type.
    let [left, right] = [left, right].map(|map| map.map(|map| map.cast(working)));
    let c = c.cast(working);
    let [_, t_in, t_out] = c.dims();
    let kernel = match (left, right) {
        (None, None) => c,
        (Some(left), None) => left.on_the_left(c),
        (None, Some(right)) => right.on_the_right(c),
        (Some(left), Some(right)) => {
            let of_left = SideCost {
                cost: left.cost(),
                features: [t_in, left.features()],
            };
            let of_right = SideCost {
                cost: right.cost(),
                features: [t_out, right.features()],
            };
            match left_is_first(of_left, of_right) {
                true => right.on_the_right(left.on_the_left(c)),
                false => left.on_the_left(right.on_the_right(c)),
            }
        }
    };
    kernel.cast(stored)
}

/// `A[l,r,x,u] B[l,r,y,v] -> W[l,xy,uv]`: one product that sums over pairs.
fn sum_of_pairs<B: Backend>(a: Tensor<B, 4>, b: Tensor<B, 4>) -> Tensor<B, 3> {
    let ([l, r, x, u], [_, _, y, v]) = (a.dims(), b.dims());
    a.reshape([l, r, x * u])
        .swap_dims(1, 2)
        .matmul(b.reshape([l, r, y * v]))
        .reshape([l, x, u, y, v])
        .swap_dims(2, 3)
        .reshape([l, x * y, u * v])
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

/// Why the tensors that are there are no map over so many features.
pub(super) fn misfit<B: Backend>(features: usize, tensors: AxisTensors<B>) -> ContractionError {
    let AxisTensors { a, b, w, r, .. } = tensors;
    let rows = [a, b, w].into_iter().flatten().map(|one| one.dims()[0]);
    // Of a rotary map, the features of its pairs, and those that do not turn.
    let in_map = match r.map(|r| r.dims()) {
        Some([pairs, parts, _]) => pairs * parts + rows.sum::<usize>(),
        None => rows.product(),
    };
    ContractionError::AxisMismatch {
        tensor: "the map",
        axis: "teacher features",
        in_c: features,
        in_map,
        expected: vec![features],
    }
}

/// How many pairs of factors stand one below the other in `A` and `B` of so many rows: with `rank * x`
/// and `rank * y` rows over `x y` features, the root of `rows_of_a * rows_of_b / features`. `None` where
/// there is no such number.
pub(super) fn pairs(features: usize, rows_of_a: usize, rows_of_b: usize) -> Option<usize> {
    let square = (rows_of_a * rows_of_b).checked_div(features)?;
    let rank = square.isqrt();
    let fits = rank > 0
        && rank * rank * features == rows_of_a * rows_of_b
        && rows_of_a.is_multiple_of(rank)
        && rows_of_b.is_multiple_of(rank);
    fits.then_some(rank)
}

#[cfg(test)]
mod tests {
    use super::pairs;

    #[test]
    fn the_number_of_pairs_follows_from_the_shapes() {
        assert_eq!(pairs(4 * 8, 4, 8), Some(1));
        assert_eq!(pairs(4 * 8, 3 * 4, 3 * 8), Some(3));
        assert_eq!(pairs(4 * 8, 5, 8), None);
        assert_eq!(pairs(4 * 8, 2 * 4, 8), None);
        assert_eq!(pairs(0, 0, 0), None);
        assert_eq!(pairs(1, 6, 6), Some(6));
    }
}
