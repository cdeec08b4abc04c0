//! Products of matrices in the host's memory, by the crate `gemm`, whichever backend's they are.
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

use super::Team;
use super::matrix::{Matrix, Memory, Numbers};
#[cfg(feature = "tch")]
use super::torch::Owned;

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
const DEPTH: usize = 4096;
/// Such pieces at most: each has a result of its own, before they are added.
const PARTS: usize = 16;

/// Logits: `states [n, d]` times `head [d, vocab]`.
pub(crate) fn head_product<B: Backend>(states: Tensor<B, 2>, head: Tensor<B, 2>) -> Tensor<B, 2> {
    on_host(&states, &head, wide).unwrap_or_else(|| states.matmul(head))
}

/// What a gradient of logits makes of the states: `gradient [n, vocab]` times `head [vocab, d]`.
pub(crate) fn product_through_head<B: Backend>(
    gradient: Tensor<B, 2>,
    head: Tensor<B, 2>,
) -> Tensor<B, 2> {
    on_host(&gradient, &head, deep).unwrap_or_else(|| gradient.matmul(head))
}

/// `left [m, k]` times `right [k, n]`, of any shapes.
pub(crate) fn product<B: Backend>(left: Tensor<B, 2>, right: Tensor<B, 2>) -> Tensor<B, 2> {
    on_host(&left, &right, balanced).unwrap_or_else(|| left.matmul(right))
}

/// Writes a product of factors of these shapes, `[m, k]` and `[k, n]`, row by row.
type Write = unsafe fn(Team, [Numbers; 2], [usize; 3], Output);

/// The product, if both factors are float32 in the host's memory.
fn on_host<B: Backend>(
    left: &Tensor<B, 2>,
    right: &Tensor<B, 2>,
    write: Write,
) -> Option<Tensor<B, 2>> {
    let device = left.device();
    let team = Team::of(&device);
    let (left, right) = (Matrix::of(left)?, Matrix::of(right)?);
    let ([m, k], [of_right, n]) = (left.shape, right.shape);
    if k != of_right {
        return None; // the backend has a message
    }
    if m * k * n == 0 {
        return Some(Tensor::zeros([m, n], (&device, DType::F32)));
    }
    let factors = [left.numbers, right.numbers];
    match &left.memory {
        Memory::Rust { .. } => {
            let mut product: Vec<f32> = Vec::with_capacity(m * n);
            let output = Output(product.spare_capacity_mut().as_mut_ptr().cast());
            // SAFETY: the factors are of these shapes and kept until here; the output has room for as many
            // numbers, all of which are written.
            unsafe {
                write(team, factors, [m, k, n], output);
                product.set_len(m * n);
            }
            let product = TensorData::new(product, [m, n]);
            Some(Tensor::from_data(product, (&device, DType::F32)))
        }
        #[cfg(feature = "tch")]
        Memory::Torch(like) => {
            let like = &like.tensor;
            let shape = [m as i64, n as i64];
            let product = like.f_new_empty(shape, (like.kind(), like.device()));
            let product = product.ok()?;
            // SAFETY: as above.
            unsafe { write(team, factors, [m, k, n], Output(product.data_ptr().cast())) };
            let product = Owned::of_new(TchTensor::new(product)).into_primitive();
            Some(Tensor::from_primitive(TensorPrimitive::Float(product)))
        }
    }
}

/// Where numbers are written, row by row.
#[derive(Clone, Copy)]
struct Output(*mut f32);

// SAFETY: what is written to it is shared out so that no place is another piece's.
unsafe impl Send for Output {}
unsafe impl Sync for Output {}

impl Output {
    /// # Safety
    ///
    /// There must be such a place.
    unsafe fn at(self, index: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(index) }
    }
}

/// In pieces of columns.
///
/// # Safety
///
/// `left` and `right` must have `[m, k]` and `[k, n]` numbers, `output` room for `[m, n]`.
unsafe fn wide(team: Team, factors: [Numbers; 2], shape: [usize; 3], output: Output) {
    let piece = [even(shape[0], ROWS), COLUMNS];
    // SAFETY: the caller's promise.
    unsafe { in_pieces(team, factors, shape, output, piece) }
}

/// In pieces for as many threads as there are.
///
/// # Safety
///
/// As of [`wide`].
unsafe fn balanced(team: Team, factors: [Numbers; 2], shape: [usize; 3], output: Output) {
    let piece = piece_for(team.threads(), shape);
    // SAFETY: the caller's promise.
    unsafe { in_pieces(team, factors, shape, output, piece) }
}

/// Rows and columns of pieces of a product `[m, n]` that sums over `k`: some for each thread, so that one that
/// is held up leaves work to others, of the shape for which least of the factors has to be packed.
fn piece_for(threads: usize, [m, k, n]: [usize; 3]) -> [usize; 2] {
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
    team: Team,
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
            multiply(factors, shape, output.at(row * n + column), n);
        }
    };
    if rows >= m && columns >= n {
        return piece([0, 0]); // no need to wake other threads
    }
    let pieces = starts(m, rows).flat_map(columns_of).collect();
    team.share(pieces, || (), |(), place| piece(place));
}

/// In pieces of the axis that is summed over, which are added one after another.
///
/// # Safety
///
/// As of [`wide`].
unsafe fn deep(team: Team, [left, right]: [Numbers; 2], [m, k, n]: [usize; 3], output: Output) {
    let (rows, depth) = (even(m, ROWS), even(k, DEPTH.max(k.div_ceil(PARTS))));
    let mut others = vec![0.0; (k.div_ceil(depth) - 1) * m * n];
    let of_others = Output(others.as_mut_ptr());
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
            multiply(factors, shape, result, n);
        }
    };
    team.share(pieces.collect(), || (), |(), place| piece(place));
    // SAFETY: the first part has been written to all of it.
    let sum = unsafe { std::slice::from_raw_parts_mut(output.at(0), m * n) };
    for part in others.chunks_exact(m * n) {
        for (sum, number) in sum.iter_mut().zip(part) {
            *sum += number;
        }
    }
}

/// Into how much an axis is cut, at most `most`, so that all pieces are about as long.
fn even(length: usize, most: usize) -> usize {
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
            false,
            left.first,
            of_column,
            of_row,
            right.first,
            of_right_column,
            of_right_row,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use burn::prelude::*;

    use super::{DEPTH, head_product, on_host, piece_for, product, product_through_head, wide};

    /// Small whole numbers, whose sums of products are exact.
    fn numbers<B: Backend>(shape: [usize; 2]) -> Tensor<B, 2> {
        let [rows, columns] = shape;
        let values = (0..rows * columns).map(|at| (at * 7 % 11) as f32 - 5.0);
        let data = TensorData::new(values.collect::<Vec<f32>>(), shape);
        Tensor::from_data(data, &Default::default())
    }

    fn values<B: Backend>(tensor: Tensor<B, 2>) -> Vec<f32> {
        tensor.into_data().iter().collect()
    }

    fn pieces_make_the_whole_product<B: Backend>() {
        // Of less than a piece, of whole ones, of some and a rest, along each axis.
        let shapes = [
            [3, 5, 1],
            [3, 5, 1024],
            [1, 70, 1300],
            [530, 9, 600],
            [1024, 1, 513],
            [7, 2 * DEPTH, 3],
            [515, DEPTH + 1, 2],
            [2, 17 * DEPTH + 5, 3],
        ];
        for [m, k, n] in shapes {
            // Where they are, and as views of what lies otherwise and begins elsewhere.
            let left = [
                numbers::<B>([m, k]),
                numbers::<B>([k, m]).transpose(),
                numbers::<B>([m + 1, k]).slice([1..m + 1, 0..k]),
            ];
            let right = [
                numbers::<B>([k, n]),
                numbers::<B>([n, k]).transpose(),
                numbers::<B>([k, n + 2]).slice([0..k, 2..n + 2]),
            ];
            for (left, right) in left.into_iter().zip(right) {
                let expected = values(left.clone().matmul(right.clone()));
                assert!(on_host(&left, &right, wide).is_some(), "they are not seen");
                let found = head_product(left.clone(), right.clone());
                assert_eq!(values(found), expected, "{m} {k} {n}");
                let found = product_through_head(left.clone(), right.clone());
                assert_eq!(values(found), expected, "{m} {k} {n}");
                let found = product(left, right);
                assert_eq!(values(found), expected, "{m} {k} {n}");
            }
        }
    }

    #[test]
    fn every_thread_has_work_and_little_is_packed_twice() {
        // SmolLM2's feed-forward block, on two cores and on eight.
        assert_eq!(piece_for(2, [512, 576, 1536]), [256, 384]);
        assert_eq!(piece_for(2, [512, 1536, 576]), [256, 144]);
        assert_eq!(piece_for(8, [512, 576, 1536]), [128, 192]);
        assert_eq!(piece_for(1, [100, 576, 1536]), [100, 768]);
        // A single token; a product that is not worth a second thread.
        assert_eq!(piece_for(2, [1, 576, 1536]), [1, 768]);
        assert_eq!(piece_for(2, [16, 64, 64]), [16, 64]);
        for threads in 1..=64 {
            for shape in [[1, 1 << 18, 1], [8192, 4096, 14336], [3, 1 << 20, 5]] {
                let [rows, columns] = piece_for(threads, shape);
                assert!((1..=512).contains(&rows) && (1..=1024).contains(&columns));
            }
        }
    }

    fn nothing_has_a_product_too<B: Backend>() {
        for [m, k, n] in [[0, 5, 3], [2, 0, 3], [2, 5, 0]] {
            let factors = || (numbers::<B>([m, k]), numbers::<B>([k, n]));
            let (left, right) = factors();
            assert_eq!(values(head_product(left, right)), vec![0.0; m * n]);
            let (left, right) = factors();
            assert_eq!(values(product_through_head(left, right)), vec![0.0; m * n]);
        }
    }

    fn other_numbers_are_the_backends<B: Backend>() {
        let double = numbers::<B>([2, 3]).cast(burn::tensor::DType::F64);
        assert!(on_host(&double, &double.clone().transpose(), wide).is_none());
    }

    fn what_is_no_number_is_passed_on<B: Backend>() {
        let nan = numbers::<B>([2, 3]).slice_fill([0..1, 1..2], f32::NAN);
        let product = head_product(nan, numbers::<B>([3, 600]));
        let product = values(product);
        assert!(product[..600].iter().all(|number| number.is_nan()));
        assert!(product[600..].iter().all(|number| number.is_finite()));
    }

    macro_rules! on {
        ($($feature:literal $name:ident $backend:ident),*) => {$(
            #[cfg(feature = $feature)]
            mod $name {
                use crate::backend::$backend;

                #[test]
                fn pieces_make_the_whole_product() {
                    super::pieces_make_the_whole_product::<$backend>();
                }

                #[test]
                fn nothing_has_a_product_too() {
                    super::nothing_has_a_product_too::<$backend>();
                }

                #[test]
                fn other_numbers_are_the_backends() {
                    super::other_numbers_are_the_backends::<$backend>();
                }

                #[test]
                fn what_is_no_number_is_passed_on() {
                    super::what_is_no_number_is_passed_on::<$backend>();
                }
            }
        )*};
    }
    on!["flex" flex Flex, "ndarray" ndarray NdArray, "tch" tch LibTorch];
}
