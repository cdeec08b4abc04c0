//! [`calculate_attn_weight`]: the law in the terms of MaxText's `learn_to_init_layer.py`, whose
//! arguments, shapes and numbers it has.
//!
//! ```text
//! query, key, value   K[b,u,v] = sum_xy C[b,x,y] A[x,u] B[y,v]     or   sum_xy C[b,x,y] W[x,y,u,v]
//! out                 K[u,v,b] = sum_xy C[x,y,b] A[x,u] B[v,y]     or   sum_xy C[x,y,b] W[x,y,u,v]
//! ```
//!
//! with `b` = `d_model`, `x, y` = `t_heads, t_head_dim`, `u, v` = `s_heads, s_head_dim`. So the first is
//! `R = A (x) B`, the second `L = A (x) B^T`. The sum of several pairs of factors, with an axis `r`, is not
//! in the reference; one pair is its factored map. Stacked, `l` is the axis of layers.

use burn::prelude::*;
use serde::{Deserialize, Serialize};

use super::contraction::{AxisFactors, check_precision, contract_layers};
use super::{ContractionError, KernelPrecision};

/// Which way a projection goes: from the model's width to the heads, or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProjectionKind {
    /// Query, key or value: `[d_model] -> [heads, head_dim]`.
    Qkv,
    /// The attention's output: `[heads, head_dim] -> [d_model]`.
    Output,
}

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
/// [`ContractionError::AxisMismatch`] and [`ContractionError::Pairs`] if the map does not fit `c`,
/// [`ContractionError::Precision`] if the backend lacks the type that `precision` needs.
pub fn calculate_attn_weight<B: Backend>(
    kind: ProjectionKind,
    c: Tensor<B, 3>,
    map: AttnMap<B>,
    precision: KernelPrecision,
) -> Result<Tensor<B, 3>, ContractionError> {
    let (of_c, of_b, of_b_pairs) = match kind {
        ProjectionKind::Qkv => ("bxy", "yv", "ryv"),
        ProjectionKind::Output => ("xyb", "vy", "rvy"),
    };
    let c = Lettered(of_c, c);
    let map = match map {
        AttnMap::Factored { a, b } => c.fitted(Lettered("xu", a), Lettered(of_b, b))?,
        AttnMap::Kronecker { a, b } => c.fitted(Lettered("rxu", a), Lettered(of_b_pairs, b))?,
        AttnMap::General { w } => c.fitted_dense(Lettered("xyuv", w))?,
    };
    let kernel = c.contracted(kind, map, precision)?;
    Ok(kernel.squeeze_dim(0))
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
    let (of_c, of_b, of_b_pairs) = match kind {
        ProjectionKind::Qkv => ("blxy", "ylv", "rlyv"),
        ProjectionKind::Output => ("xlyb", "vly", "rlvy"),
    };
    let c = Lettered(of_c, c);
    let map = match map {
        StackedAttnMap::Factored { a, b } => c.fitted(Lettered("xlu", a), Lettered(of_b, b))?,
        StackedAttnMap::Kronecker { a, b } => {
            c.fitted(Lettered("rlxu", a), Lettered(of_b_pairs, b))?
        }
        StackedAttnMap::General { w } => c.fitted_dense(Lettered("xlyuv", w))?,
    };
    let kernel = c.contracted(kind, map, precision)?;
    Ok(kernel.swap_dims(0, 1))
}

/// A map that fits its `C`, and the heads and head size that it makes.
type Fitted<B> = (AxisFactors<B>, [usize; 2]);

/// A tensor whose axes have letters.
#[derive(Clone)]
struct Lettered<B: Backend, const D: usize>(&'static str, Tensor<B, D>);

impl<B: Backend, const D: usize> Lettered<B, D> {
    /// How long the axis of that letter is, if there is one.
    fn length(&self, letter: char) -> Option<usize> {
        let axis = self.0.find(letter)?;
        Some(self.1.dims()[axis])
    }

    /// The axes in the order of `letters`, of length 1 where the tensor has none.
    fn arranged<const E: usize>(self, letters: &str) -> Tensor<B, E> {
        let found: Vec<_> = letters.chars().map(|letter| self.0.find(letter)).collect();
        let dims = self.1.dims();
        let shape = std::array::from_fn(|axis| found[axis].map_or(1, |axis| dims[axis]));
        let mut present = found.into_iter().flatten();
        let order: [usize; D] = std::array::from_fn(|_| present.next().unwrap_or_default());
        self.1
            .permute(order.map(|axis| axis as isize))
            .reshape::<E, _>(shape)
    }

    /// `A` and `B` over this `C`.
    fn fitted<const F: usize>(
        &self,
        a: Lettered<B, F>,
        b: Lettered<B, F>,
    ) -> Result<Fitted<B>, ContractionError> {
        if let (Some(in_a), Some(in_b)) = (a.length('r'), b.length('r'))
            && (in_a != in_b || in_a == 0)
        {
            return Err(ContractionError::Pairs { in_a, in_b });
        }
        self.check(&a, "A")?;
        self.check(&b, "B")?;
        let (a, b): (Tensor<B, 4>, Tensor<B, 4>) = (a.arranged("lrxu"), b.arranged("lryv"));
        let grid = [a.dims()[3], b.dims()[3]];
        Ok((AxisFactors::Heads { a, b }, grid))
    }

    /// `W` over this `C`.
    fn fitted_dense<const F: usize>(
        &self,
        w: Lettered<B, F>,
    ) -> Result<Fitted<B>, ContractionError> {
        self.check(&w, "W")?;
        let w: Tensor<B, 5> = w.arranged("lxyuv");
        let [l, x, y, u, v] = w.dims();
        Ok((AxisFactors::Dense(w.reshape([l, x * y, u * v])), [u, v]))
    }

    /// The axes that a map's tensor shares with this `C` must be as long in both.
    fn check<const F: usize>(
        &self,
        tensor: &Lettered<B, F>,
        name: &'static str,
    ) -> Result<(), ContractionError> {
        for (letter, axis) in [
            ('x', "x (teacher heads)"),
            ('l', "l (layers)"),
            ('y', "y (teacher head size)"),
        ] {
            let (Some(in_c), Some(in_map)) = (self.length(letter), tensor.length(letter)) else {
                continue;
            };
            if in_c != in_map {
                let axes = tensor.0.chars().zip(tensor.1.dims());
                return Err(ContractionError::AxisMismatch {
                    tensor: name,
                    axis,
                    in_c,
                    in_map,
                    expected: axes
                        .map(|(letter, length)| self.length(letter).unwrap_or(length))
                        .collect(),
                });
            }
        }
        Ok(())
    }

    /// The kernel, layers first: `[l, b, u, v]`, or `[l, u, v, b]` for out.
    fn contracted(
        self,
        kind: ProjectionKind,
        (map, [u, v]): Fitted<B>,
        precision: KernelPrecision,
    ) -> Result<Tensor<B, 4>, ContractionError> {
        check_precision::<B>(precision, &self.1.device())?;
        Ok(match kind {
            ProjectionKind::Qkv => {
                let c: Tensor<B, 4> = self.arranged("lbxy");
                let [l, b, x, y] = c.dims();
                let c = c.reshape([l, b, x * y]);
                contract_layers(c, None, Some(map), precision).reshape([l, b, u, v])
            }
            ProjectionKind::Output => {
                let c: Tensor<B, 4> = self.arranged("lxyb");
                let [l, x, y, b] = c.dims();
                let c = c.reshape([l, x * y, b]);
                contract_layers(c, Some(map), None, precision).reshape([l, u, v, b])
            }
        })
    }
}
