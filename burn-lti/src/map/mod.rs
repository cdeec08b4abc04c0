//! The learnable weight: a student's kernel as a small map of the teacher's.
//!
//! In the layout of Burn's `Linear`, `[d_input, d_output]`, every weight that is learned from a
//! teacher's is
//!
//! ```text
//! K = L^T C R        C [t_in, t_out] frozen,  L [t_in, s_in],  R [t_out, s_out]
//! ```
//!
//! `L` and `R` are [`AxisMap`]s: how the teacher's features along one axis become the student's. An
//! axis without a map is kept. Over heads, `x, y` the teacher's heads and head size and `u, v` the
//! student's, a map has one of these forms:
//!
//! | form | parameters | the map |
//! |---|---|---|
//! | [`MapKind::Factored`] | `A [x, u]`, `B [y, v]` | `A (x) B` |
//! | [`MapKind::Kronecker`] | as many pairs | `sum_r A_r (x) B_r` |
//! | [`MapKind::General`] | `W [x y, u v]` | `W` |
//! | [`MapKind::Rotary`] | `R [pairs, 2 x, u]` | of query and key: a complex number for each two heads and each pair of features that a rotary embedding turns |
//! | picked | a list | the features listed, as they are; nothing learns |
//!
//! Query, key and value have a map on the right, the output projection one on the left: those are the
//! projections of MaxText's `learn_to_init_layer`, in whose terms
//! [`calculate_attn_weight`] reads the law.
//!
//! ```
//! use burn::backend::Flex;
//! use burn::tensor::{Distribution, Tensor};
//! use burn_lti::geometry::{Axes, HeadGrid, Role};
//! use burn_lti::map::{LtiDenseConfig, MapKind};
//!
//! # fn main() -> Result<(), burn_lti::map::DenseError> {
//! let device = Default::default();
//! let axes = |heads| {
//!     let grid = HeadGrid::new(heads, 8);
//!     Axes::of_attention(32, grid, grid)
//! };
//! let c = Tensor::<Flex, 2>::random([32, 4 * 8], Distribution::Default, &device);
//!
//! let config = LtiDenseConfig::new(Role::Query, &axes(4), &axes(2), MapKind::Factored);
//! let query = config.init(c)?;
//! let x = Tensor::<Flex, 3>::ones([1, 5, 32], &device);
//! assert_eq!(query.forward(x.clone()).dims(), [1, 5, 2 * 8]);
//!
//! let linear = query.collapse(); // an ordinary burn::nn::Linear: the map is gone
//! assert_eq!(linear.forward(x).dims(), [1, 5, 2 * 8]);
//! # Ok(())
//! # }
//! ```

mod applied;
mod attn_weight;
mod axis_map;
mod contraction;
mod error;
mod kind;
mod lti_dense;
mod parts;
mod rotary;
mod start;

pub use applied::AppliedMap;
pub use attn_weight::{
    AttnMap, ProjectionKind, StackedAttnMap, calculate_attn_weight, calculate_stacked_attn_weight,
};
pub use axis_map::{AxisMap, AxisSpec, Side};
pub(crate) use contraction::contract;
pub use contraction::{ContractionCost, contraction_cost};
pub use error::{ContractionError, DenseError};
pub use kind::{KernelPrecision, MapKind};
pub use lti_dense::{LtiDense, LtiDenseConfig};
pub use parts::Part;
pub(crate) use parts::{LtiParts, MapTensor, NoKernel, lti_parts, mapped_length};
pub(crate) use rotary::RotaryShape;
pub(crate) use start::fill_up;
pub use start::{Start, StartError};
