//! What loops on a CPU have in common.
//!
//! | file | what |
//! |---|---|
//! | `ahead` | memory that is fetched before it is read |
//! | `buffer` | the numbers of a tensor, to be read or written over |
//! | `matrix` | a matrix where any backend has it, to be read |
//! | `threads` | the threads that a loop runs on, and how much each takes at a time |
//! | `pairs` | products in bfloat16: how factors are laid out for them, and a tile of one |
//! | `simd` | exponentials, hyperbolic tangents and sums on the lanes of a vector |
//! | `small_product` | products of matrices too small to be packed first |
//! | `tile` | products of a few rows with a matrix as wide as two vectors |

mod ahead;
mod buffer;
mod matrix;
pub(super) mod pairs;
mod simd;
mod small_product;
mod threads;
mod tile;

pub(super) use ahead::fetch;
pub(super) use buffer::{CpuBuffer, floats, in_place, rows_in_place};
pub(super) use matrix::{Matrix, Memory, Numbers};
pub(super) use pairs::Instructions;
pub(super) use simd::{LEAST, dot, exp, exponential, tanh};
pub(super) use small_product::{Left, Rows, RowsMut, product};
pub(super) use threads::{PIECE, ThreadPool, whole_rows};
pub(super) use tile::{
    LeftRows, Panel, Tile, in_tiles, load, multiply, panel_width, store, whole_tiles, width,
};
