//! The numbers and names of a decoder: head grids, axes, and the sites of its weights.
//!
//! A weight of `[d_input, d_output]` stands at a [`Site`], a layer and a [`Role`]. Its role says along
//! which [`Axis`] of the model each of its sides lies, and [`Axes`] how long that is.

mod axes;
mod axis;
mod grid;
mod pairs;
mod site;

pub use axes::Axes;
pub use axis::Axis;
pub use grid::HeadGrid;
pub use pairs::{nearest_pairs, own_pairs};
pub use site::{Role, Site};
