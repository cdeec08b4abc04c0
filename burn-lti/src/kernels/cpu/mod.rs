//! What loops on a CPU have in common.
//!
//! | file | what |
//! |---|---|
//! | `buffer` | the numbers of a tensor, to be read or written over |
//! | `matrix` | a matrix where any backend has it, to be read |
//! | `threads` | the threads that a loop runs on, and how much each takes at a time |
//! | `simd` | exponentials and sums on the lanes of a vector |
//! | `small_product` | products of matrices too small to be packed first |

pub(super) mod buffer;
pub(super) mod matrix;
pub(super) mod simd;
pub(super) mod small_product;
pub(super) mod threads;
