//! The learnable projection: a student kernel as a small map of the teacher's.
//!
//! A teacher projection has a kernel `C` over a grid of `t_heads x t_head_dim`; the student wants a
//! kernel over `s_heads x s_head_dim`. Instead of learning that kernel, [`LtiDense`] learns the map
//! from one grid to the other and keeps `C` frozen:
//!
//! | | factored | general |
//! |---|---|---|
//! | query, key, value | `K[b,u,v] = sum_xy C[b,x,y] A[x,u] B[y,v]` | `K[b,u,v] = sum_xy C[b,x,y] W[x,y,u,v]` |
//! | out | `K[u,v,b] = sum_xy C[x,y,b] A[x,u] B[v,y]` | `K[u,v,b] = sum_xy C[x,y,b] W[x,y,u,v]` |
//!
//! with `b` = `d_model`, `x, y` = `t_heads, t_head_dim`, `u, v` = `s_heads, s_head_dim`. The
//! formulas are those of MaxText's `learn_to_init_layer`. Between the two lies
//! [`MapKind::Kronecker`], the sum of several pairs `A`, `B`.
//!
//! ```
//! use burn::backend::Flex;
//! use burn::tensor::{Distribution, Tensor};
//! use burn_lti::dense::{LtiDenseConfig, ProjectionKind};
//! use burn_lti::geometry::HeadGrid;
//!
//! # fn main() -> Result<(), burn_lti::dense::DenseError> {
//! let device = Default::default();
//! let (d_model, teacher, student) = (32, HeadGrid::new(4, 8), HeadGrid::new(2, 8));
//! let c = Tensor::<Flex, 3>::random([d_model, 4, 8], Distribution::Default, &device);
//!
//! let query = LtiDenseConfig::new(ProjectionKind::Qkv, d_model, teacher, student).init(c)?;
//! let x = Tensor::<Flex, 3>::ones([1, 5, d_model], &device);
//! assert_eq!(query.forward(x.clone()).dims(), [1, 5, student.width()]);
//!
//! let linear = query.collapse(); // an ordinary burn::nn::Linear: the map is gone
//! assert_eq!(linear.forward(x).dims(), [1, 5, student.width()]);
//! # Ok(())
//! # }
//! ```

mod contraction;
mod error;
mod geometry;
mod lti_dense;

pub use contraction::{
    AttnMap, ContractionCost, StackedAttnMap, calculate_attn_weight, calculate_stacked_attn_weight,
    contraction_cost,
};
pub use error::{ContractionError, DenseError};
pub use geometry::{KernelPrecision, MapKind, ProjectionKind};
pub use lti_dense::{LtiDense, LtiDenseConfig, TeacherKernel, kernel_shape};
