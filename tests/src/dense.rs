//! Projections of attention, by the kinds that the reference has.

use burn::prelude::*;
use burn_lti::geometry::{Axes, HeadGrid, Role};
use burn_lti::map::{LtiDenseConfig, MapKind, ProjectionKind, Side};

/// A projection of that kind between two grids, in a model of width `d_model`.
pub fn dense_config(
    kind: ProjectionKind,
    d_model: usize,
    teacher: HeadGrid,
    student: HeadGrid,
    map: MapKind,
) -> LtiDenseConfig {
    let role = match kind {
        ProjectionKind::Qkv => Role::Query,
        ProjectionKind::Output => Role::Out,
    };
    let axes = |grid| Axes::of_attention(d_model, grid, grid);
    LtiDenseConfig::new(role, &axes(teacher), &axes(student), map)
}

/// The side of such a projection that has heads, and so the map.
pub const fn side_of(kind: ProjectionKind) -> Side {
    match kind {
        ProjectionKind::Qkv => Side::Right,
        ProjectionKind::Output => Side::Left,
    }
}

/// The name of a tensor of its map.
pub fn leaf_of(kind: ProjectionKind, letter: &str) -> String {
    format!("{}.{letter}", side_of(kind).name())
}

/// A kernel of three axes as a `Linear` keeps it.
pub fn flat_kernel<B: Backend>(kind: ProjectionKind, kernel: Tensor<B, 3>) -> Tensor<B, 2> {
    let [first, second, third] = kernel.dims();
    match kind {
        ProjectionKind::Qkv => kernel.reshape([first, second * third]),
        ProjectionKind::Output => kernel.reshape([first * second, third]),
    }
}

/// The reference keeps `B` of the output projection as `[v, y]`, rows and columns exchanged.
pub fn turned<T: Copy>(values: &[T], rows: usize) -> Vec<T> {
    let columns = values.len() / rows;
    let places = 0..values.len();
    places
        .map(|at| values[at % rows * columns + at / rows])
        .collect()
}
