//! Products of matrices in a CPU's memory, by the crate `gemm`, whichever backend's they are.
//!
//! Those with a head are of a few hundred tokens and a vocabulary, shapes that libraries make little of: they
//! pack all of the head for few tokens, or share it out between threads by an axis that is short. Those are
//! cut so that each piece is one for a core's caches, and pieces do not depend on how many threads there are,
//! nor does the sum.

use burn::prelude::*;
use burn::tensor::DType;
#[cfg(feature = "tch")]
use burn::{backend::libtorch::TchTensor, tensor::TensorPrimitive};
use gemm::{Parallelism, gemm};

#[cfg(feature = "tch")]
use crate::kernels::cast::same;
use crate::kernels::cpu::{CpuBuffer, Matrix, Memory, Numbers, ThreadPool};

/// Additions below which a second thread would wait longer than it worked.
const WORTH_SHARING: usize = 1 << 18;
/// Additions of a piece beside which the packing of its factors is little.
const WORTH_A_PIECE: usize = 1 << 21;
/// The most lanes of a vector of float32.
const LANES: usize = 16;
/// Columns of a piece of any product, at most.
const MOST_COLUMNS: usize = 1024;
/// Rows of a piece, at most: all tokens of most chunks, so that the head is packed once.
const ROWS: usize = 512;
/// Columns of a piece of logits, of which a core's cache holds the packed head.
const COLUMNS: usize = 512;
/// Of the vocabulary, what is summed up in one piece of a product through it.
pub(super) const DEPTH: usize = 4096;
/// Such pieces at most: each has a result of its own, before they are added.
const PARTS: usize = 16;

/// Writes a product of factors of these shapes, `[m, k]` and `[k, n]`, row by row.
pub(super) type Write = unsafe fn(ThreadPool, [Numbers; 2], [usize; 3], Output);

/// The product, if both factors are float32 in a CPU's memory and it can be.
pub(super) fn product<B: Backend>(
    left: &Tensor<B, 2>,
    right: &Tensor<B, 2>,
    write: Write,
) -> Option<Tensor<B, 2>> {
    let device = left.device();
    let pool = ThreadPool::of(&device);
    let (left, right) = (Matrix::of(left)?, Matrix::of(right)?);
    let ([m, k], [of_right, n]) = (left.shape, right.shape);
    if k != of_right {
        return None; // the backend has a message
    }
    if m * k * n == 0 {
        return Some(Tensor::zeros([m, n], (&device, DType::F32)));
    }
    let factors = [left.numbers, right.numbers];
    written(&left.memory, &device, [m, n], |output| {
        // SAFETY: the factors are of these shapes and kept until here; the output has room for as many
        // numbers, all of which are written.
        unsafe { write(pool, factors, [m, k, n], output) }
    })
}

/// `sum`, a result of [`product`] and no view of one, with another product added, where it is if no other tensor has
/// it; back if the factors are not as those of [`product`].
pub(super) fn added<B: Backend>(
    sum: Tensor<B, 2>,
    [left, right]: [&Tensor<B, 2>; 2],
    write: Write,
) -> Result<Tensor<B, 2>, Tensor<B, 2>> {
    let pool = ThreadPool::of(&left.device());
    let (Some(left), Some(right)) = (Matrix::of(left), Matrix::of(right)) else {
        return Err(sum);
    };
    let ([m, k], [of_right, n]) = (left.shape, right.shape);
    if k != of_right || sum.dims() != [m, n] || sum.dtype() != DType::F32 {
        return Err(sum); // the backend has a message
    }
    if m * k * n == 0 {
        return Ok(sum);
    }
    // SAFETY: it is a product, or a sum of some, no view, and in a CPU's memory as its factors are.
    let mut buffer = unsafe { CpuBuffer::of_result(sum) };
    let output = Output {
        first: buffer.as_mut_slice().as_mut_ptr(),
        adds: true,
    };
    // SAFETY: the factors are of these shapes and kept until here; the output has as many numbers.
    unsafe { write(pool, [left.numbers, right.numbers], [m, k, n], output) };
    Ok(buffer.into_tensor())
}

/// A result in memory such as the factors', of which `write` writes all numbers.
pub(super) fn written<B: Backend>(
    memory: &Memory,
    device: &B::Device,
    [m, n]: [usize; 2],
    write: impl FnOnce(Output),
) -> Option<Tensor<B, 2>> {
    match memory {
        Memory::Rust { .. } => {
            let mut result: Vec<f32> = Vec::with_capacity(m * n);
            write(Output::new(result.spare_capacity_mut().as_mut_ptr().cast()));
            // SAFETY: there is room for as many, and they have been written.
            unsafe { result.set_len(m * n) };
            let result = TensorData::new(result, [m, n]);
            Some(Tensor::from_data(result, (device, DType::F32)))
        }
        #[cfg(feature = "tch")]
        Memory::Torch(like) => {
            let like = &like.tensor;
            let shape = [m as i64, n as i64];
            let result = like.f_new_empty(shape, (like.kind(), like.device()));
            let result = result.ok()?;
            write(Output::new(result.data_ptr().cast()));
            let result = same(TchTensor::new(result));
            Some(Tensor::from_primitive(TensorPrimitive::Float(result)))
        }
    }
}

/// Where numbers are written, row by row.
#[derive(Clone, Copy)]
pub(super) struct Output {
    first: *mut f32,
    /// Whether a product is added to what is there; else it is written over.
    pub(super) adds: bool,
}

// SAFETY: what is written to it is shared out so that no place is another piece's.
unsafe impl Send for Output {}
unsafe impl Sync for Output {}

impl Output {
    fn new(first: *mut f32) -> Self {
        Self { first, adds: false }
    }

    /// # Safety
    ///
    /// There must be such a place.
    pub(super) unsafe fn at(self, index: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.first.add(index) }
    }
}

/// In pieces of columns, for logits.
///
/// # Safety
///
/// `left` and `right` must have `[m, k]` and `[k, n]` numbers, `output` room for `[m, n]`.
pub(super) unsafe fn wide(
    pool: ThreadPool,
    factors: [Numbers; 2],
    shape: [usize; 3],
    output: Output,
) {
    let piece = [even(shape[0], ROWS), COLUMNS];
    // SAFETY: the caller's promise.
    unsafe { in_pieces(pool, factors, shape, output, piece) }
}

/// In pieces for as many threads as there are.
///
/// # Safety
///
/// As of [`wide`].
pub(super) unsafe fn balanced(
    pool: ThreadPool,
    factors: [Numbers; 2],
    shape: [usize; 3],
    output: Output,
) {
    let piece = piece_for(pool.threads(), shape);
    // SAFETY: the caller's promise.
    unsafe { in_pieces(pool, factors, shape, output, piece) }
}

/// Rows and columns of pieces of a product `[m, n]` that sums over `k`: some for each thread, so that one that
/// is held up leaves work to others, of the shape for which least of the factors has to be packed.
pub(super) fn piece_for(threads: usize, [m, k, n]: [usize; 3]) -> [usize; 2] {
    let work = m * k * n;
    if threads == 1 || work < WORTH_SHARING {
        return [even(m, ROWS), even(n, MOST_COLUMNS)];
    }
    let pieces = threads * (work / (threads * WORTH_A_PIECE)).clamp(1, 4);
    let grids = (1..=pieces).filter(|in_rows| pieces.is_multiple_of(*in_rows));
    let piece = grids.map(|in_rows| {
        let columns = n.div_ceil(pieces / in_rows).next_multiple_of(LANES);
        [m.div_ceil(in_rows), columns]
    });
    match piece.min_by_key(|[rows, columns]| rows + columns) {
        Some([rows, columns]) => [even(rows, ROWS), columns.min(MOST_COLUMNS)],
        None => [m, n],
    }
}

/// In pieces of so many rows and columns.
///
/// # Safety
///
/// As of [`wide`].
unsafe fn in_pieces(
    pool: ThreadPool,
    [left, right]: [Numbers; 2],
    [m, k, n]: [usize; 3],
    output: Output,
    [rows, columns]: [usize; 2],
) {
    let columns_of = |row: usize| starts(n, columns).map(move |column| [row, column]);
    let piece = |[row, column]: [usize; 2]| {
        let shape = [rows.min(m - row), k, columns.min(n - column)];
        // SAFETY: the piece lies in all three.
        unsafe {
            let factors = [left.from([row, 0]), right.from([0, column])];
            multiply(factors, shape, output.at(row * n + column), n, output.adds);
        }
    };
    if rows >= m && columns >= n {
        return piece([0, 0]); // no need to wake other threads
    }
    let pieces = starts(m, rows).flat_map(columns_of).collect();
    pool.for_each(pieces, || (), |(), place| piece(place));
}

/// In pieces of the axis that is summed over, which are added one after another, for the gradient of states.
///
/// # Safety
///
/// As of [`wide`]; the output must be one to write over.
pub(super) unsafe fn deep(
    pool: ThreadPool,
    [left, right]: [Numbers; 2],
    [m, k, n]: [usize; 3],
    output: Output,
) {
    let (rows, depth) = (even(m, ROWS), even(k, DEPTH.max(k.div_ceil(PARTS))));
    let mut others = vec![0.0; (k.div_ceil(depth) - 1) * m * n];
    let of_others = Output::new(others.as_mut_ptr());
    let pieces = starts(k, depth).flat_map(|from| starts(m, rows).map(move |row| [row, from]));
    let piece = |[row, from]: [usize; 2]| {
        let shape = [rows.min(m - row), depth.min(k - from), n];
        // SAFETY: the piece lies in both factors; the first part's result is the output, and there is room
        // for those of all others.
        unsafe {
            let result = match from / depth {
                0 => output.at(row * n),
                part => of_others.at(((part - 1) * m + row) * n),
            };
            let factors = [left.from([row, from]), right.from([from, 0])];
            multiply(factors, shape, result, n, false);
        }
    };
    pool.for_each(pieces.collect(), || (), |(), place| piece(place));
    // SAFETY: the first part has been written to all of it.
    let sum = unsafe { std::slice::from_raw_parts_mut(output.at(0), m * n) };
    for part in others.chunks_exact(m * n) {
        for (sum, number) in sum.iter_mut().zip(part) {
            *sum += number;
        }
    }
}

/// Into how much an axis is cut, at most `most`, so that all pieces are about as long.
pub(super) fn even(length: usize, most: usize) -> usize {
    length.div_ceil(length.div_ceil(most))
}

fn starts(length: usize, step: usize) -> impl Iterator<Item = usize> + Clone {
    (0..length).step_by(step)
}

/// On this thread, into rows that are `step` numbers apart.
///
/// # Safety
///
/// As of [`wide`], but for the output's rows.
unsafe fn multiply(
    [left, right]: [Numbers; 2],
    [m, k, n]: [usize; 3],
    output: *mut f32,
    step: usize,
    adds: bool,
) {
    let ([of_row, of_column], [of_right_row, of_right_column]) = (left.steps, right.steps);
    // SAFETY: the caller's promise.
    unsafe {
        gemm(
            m,
            n,
            k,
            output,
            1,
            step as isize,
            adds,
            left.first,
            of_column,
            of_row,
            right.first,
            of_right_column,
            of_right_row,
            if adds { 1.0 } else { 0.0 },
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
