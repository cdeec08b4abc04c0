//! [`PackedWeight`]: a weight that many products read, laid out for them once.
//!
//! A library packs the weight anew for each product, which for the few dozen rows of a step of generation costs
//! as much as a third of the product. It also chooses its kernels, and so the order of sums, by how many rows
//! there are. Here, on a CPU, a weight lies in panels as wide as two vectors, which are read from end to end, and
//! the result of a row does not depend on the rows beside it: each number is one chain of multiply-adds in the
//! order of the inputs. In bfloat16 the panels are half as large, and a step of generation, which reads all
//! weights for few rows, takes half as long.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use burn::prelude::*;
use burn::tensor::TensorData;
use pulp::{Arch, Simd, WithSimd};

use super::bfloat16::{self, Right};
use super::cpu::{Output, written};
use super::{ProductPrecision, multiplied, plus};
use crate::kernels::cpu::{
    LeftRows, Matrix, Numbers, Panel, ThreadPool, Tile, fetch, in_tiles, load, multiply,
    pairs::Pairs, panel_width, store, whole_tiles,
};

/// Numbers of a panel that are multiplied with many rows before the next are, at most. They are in the second
/// cache: in the first there would be room for few, and sums would be put away more often than that is worth.
const PIECE: usize = 1 << 15;
/// Numbers of the rows that a panel is multiplied with before the next one is. They stay in the second cache
/// beside it.
const ROWS: usize = 1 << 17;
/// Rows from which on the next piece is fetched while this one is multiplied: a processor sees by itself what is
/// read from end to end once, but not in time where it could have been fetched long before.
const WORTH_FETCHING: usize = 24;
/// Numbers of a line of memory.
const LINE: usize = 16;
/// Multiply-adds below which a second thread would wait longer than it worked.
const WORTH_SHARING: usize = 1 << 18;
/// Multiply-adds beside which it costs little to hand a piece to a thread.
const WORTH_A_PIECE: usize = 1 << 21;

/// A weight, `[d_input, d_output]`, laid out for products with any number of rows. Clones share it.
#[derive(Clone)]
pub(crate) struct PackedWeight {
    layout: Layout,
    /// `[d_input, d_output]`
    shape: [usize; 2],
}

#[derive(Clone)]
enum Layout {
    Float32(Arc<Panels>),
    BFloat16(Arc<Pairs>),
}

impl fmt::Debug for PackedWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [d_input, d_output] = self.shape;
        write!(f, "PackedWeight [{d_input}, {d_output}]")
    }
}

impl PackedWeight {
    /// A copy of `weight [d_input, d_output]`, in the precision of the scope that this thread is in. `None` if
    /// it is not float32 in a CPU's memory, or empty, or on a graph.
    pub(crate) fn of<B: Backend>(weight: &Tensor<B, 2>) -> Option<Self> {
        let matrix = Matrix::of(weight)?;
        let shape = matrix.shape;
        if shape.contains(&0) {
            return None;
        }
        let pool = ThreadPool::of(&weight.device());
        let layout = match ProductPrecision::current() {
            ProductPrecision::Float32 => Layout::Float32(Arc::new(Panels::of(pool, &matrix))),
            ProductPrecision::BFloat16 => {
                // SAFETY: the numbers are of this shape, and kept until here.
                let panels = unsafe { bfloat16::panels_of(pool, matrix.numbers, shape) };
                Layout::BFloat16(Arc::new(panels))
            }
        };
        Some(Self { layout, shape })
    }

    /// The weight as it was, or as it was rounded, `[d_input, d_output]`.
    pub(crate) fn weight<B: Backend>(&self, device: &B::Device) -> Tensor<B, 2> {
        let weight = match &self.layout {
            Layout::Float32(panels) => panels.weight(),
            Layout::BFloat16(panels) => bfloat16::numbers_of(panels, self.shape),
        };
        Tensor::from_data(TensorData::new(weight, self.shape), device)
    }

    /// `input [..., d_input]` times the weight, and `bias [d_output]` added: `[..., d_output]`.
    ///
    /// # Panics
    ///
    /// If `input` has another width.
    pub(crate) fn project<B: Backend, const D: usize>(
        &self,
        input: Tensor<B, D>,
        bias: Option<Tensor<B, 1>>,
    ) -> Tensor<B, D> {
        let [d_input, d_output] = self.shape;
        let mut shape = input.dims();
        assert_eq!(
            shape[D - 1],
            d_input,
            "the input is as wide as the weight is high"
        );
        let rows = shape[..D - 1].iter().product::<usize>();
        shape[D - 1] = d_output;
        let input = input.reshape([rows, d_input]);
        let output = match self.product(&input) {
            Some(output) => output,
            // Of another float type, or on a graph.
            None => multiplied(
                input.clone(),
                self.weight(&input.device()).cast(input.dtype()),
            ),
        };
        plus(output, bias).reshape(shape)
    }

    /// None if `input` is not float32 in a CPU's memory.
    fn product<B: Backend>(&self, input: &Tensor<B, 2>) -> Option<Tensor<B, 2>> {
        let [k, n] = self.shape;
        let device = input.device();
        let mut matrix = Matrix::of(input)?;
        if matrix.numbers.steps[1] != 1 || matrix.numbers.steps[0] < 0 {
            // Rows are read from end to end.
            matrix = Matrix::of(&Tensor::<B, 2>::from_data(input.to_data(), &device))?;
        }
        let m = matrix.shape[0];
        if m == 0 {
            return Some(Tensor::zeros([0, n], &device));
        }
        let pool = ThreadPool::of(&device);
        written(&matrix.memory, &device, [m, n], |output| {
            match &self.layout {
                Layout::Float32(panels) => panels.multiply(pool, matrix.numbers, m, output),
                Layout::BFloat16(panels) => {
                    let right = Right::LaidOut(panels);
                    // SAFETY: factors and output are of these shapes.
                    unsafe { bfloat16::multiply(pool, matrix.numbers, right, [m, k, n], output) }
                }
            }
        })
    }
}

/// A line of memory, so that no vector lies in two.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

/// `[panels, d_input, width]`, zeros beyond the last column.
struct Panels {
    lines: Vec<Line>,
    /// `[d_input, d_output]`
    shape: [usize; 2],
    /// Columns of a panel.
    width: usize,
}

impl Panels {
    fn of(pool: ThreadPool, matrix: &Matrix) -> Self {
        let [k, n] = matrix.shape;
        let width = panel_width();
        let panel = k * width;
        let lines = (n.div_ceil(width) * panel).div_ceil(LINE);
        let mut panels = Self {
            lines: vec![Line([0.0; LINE]); lines],
            shape: [k, n],
            width,
        };
        let numbers = matrix.numbers;
        let pieces = panels.numbers_mut().chunks_mut(panel).enumerate();
        pool.for_each(
            pieces.collect(),
            || (),
            |(), (index, places)| {
                let columns = index * width..((index + 1) * width).min(n);
                for (row, places) in places.chunks_exact_mut(width).enumerate() {
                    for (column, place) in columns.clone().zip(places) {
                        // SAFETY: the matrix, which is kept until here, has this row and column.
                        *place = unsafe { *numbers.from([row, column]).first };
                    }
                }
            },
        );
        panels
    }

    fn numbers(&self) -> &[f32] {
        // SAFETY: a line is as many numbers, and nothing else.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * LINE) }
    }

    fn numbers_mut(&mut self) -> &mut [f32] {
        let count = self.lines.len() * LINE;
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), count) }
    }

    /// Row by row, as it was.
    fn weight(&self) -> Vec<f32> {
        let ([k, n], width) = (self.shape, self.width);
        let mut weight = vec![0.0; k * n];
        for (index, panel) in self.numbers().chunks(k * width).enumerate() {
            let from = index * width;
            if from >= n {
                break; // what fills the last line
            }
            let columns = width.min(n - from);
            for (row, numbers) in panel.chunks_exact(width).enumerate() {
                weight[row * n + from..][..columns].copy_from_slice(&numbers[..columns]);
            }
        }
        weight
    }

    /// Writes the product of `m` rows, which lie from end to end.
    fn multiply(&self, pool: ThreadPool, rows: Numbers, m: usize, output: Output) {
        let rows = LeftRows {
            first: rows.first,
            step: rows.steps[0].unsigned_abs(),
        };
        let pieces = self.pieces(pool.threads(), m);
        let work = |panels: Range<usize>| {
            Arch::new().dispatch(Product {
                rows,
                m,
                weight: self,
                panels,
                output,
            });
        };
        match <[_; 1]>::try_from(pieces) {
            Ok([all]) => work(all), // no need to wake other threads
            Err(pieces) => pool.for_each(pieces, || (), |(), panels| work(panels)),
        }
    }

    /// Some for each thread, so that one that is held up leaves work to others.
    fn pieces(&self, threads: usize, rows: usize) -> Vec<Range<usize>> {
        let [k, n] = self.shape;
        let (panels, work) = (n.div_ceil(self.width), rows * k * n);
        let pieces = match threads == 1 || work < WORTH_SHARING {
            true => 1,
            false => threads * (work / (threads * WORTH_A_PIECE)).clamp(1, 4),
        };
        let pieces = pieces.min(panels);
        let from = |piece: usize| piece * panels / pieces;
        (0..pieces)
            .map(|piece| from(piece)..from(piece + 1))
            .collect()
    }
}

/// All rows with some panels.
struct Product<'a> {
    rows: LeftRows,
    m: usize,
    weight: &'a Panels,
    panels: Range<usize>,
    output: Output,
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let ([k, n], width) = (self.weight.shape, self.weight.width);
        // Pieces of one length: a short one costs as much to put away as a long one.
        let depth = k.div_ceil(k.div_ceil((PIECE / width).max(1)));
        let rows = whole_tiles(ROWS / k);
        let numbers = self.weight.numbers();
        for row in (0..self.m).step_by(rows) {
            for panel in self.panels.clone() {
                let column = panel * width;
                for from in (0..k).step_by(depth) {
                    let length = depth.min(k - from) * width;
                    let (piece, next) = numbers[(panel * k + from) * width..].split_at(length);
                    let tile_rows = rows.min(self.m - row);
                    let share = match tile_rows >= WORTH_FETCHING {
                        // Those of all tiles are as much as this piece.
                        true => length.div_ceil(tile_rows),
                        false => 0,
                    };
                    let mut columns = Columns {
                        rows: LeftRows {
                            // SAFETY: there is this row, and it has `k` numbers.
                            first: unsafe { self.rows.first.add(row * self.rows.step + from) },
                            step: self.rows.step,
                        },
                        row,
                        piece,
                        next,
                        share,
                        width,
                        first: from == 0,
                        columns: column..(column + width).min(n),
                        of_row: n,
                        output: self.output,
                    };
                    in_tiles(simd, tile_rows, &mut columns);
                }
            }
        }
    }
}

/// Some rows of some columns, summed over a piece of them.
struct Columns<'a> {
    /// From the piece's first row on.
    rows: LeftRows,
    /// The first of them in the output.
    row: usize,
    piece: &'a [f32],
    /// What is read after it.
    next: &'a [f32],
    /// Of which so many numbers are fetched for each row meanwhile.
    share: usize,
    width: usize,
    /// Whether nothing has been summed before.
    first: bool,
    columns: Range<usize>,
    /// Numbers of a row of the output.
    of_row: usize,
    output: Output,
}

impl<S: Simd> Tile<S> for Columns<'_> {
    #[inline(always)]
    fn rows<const ROWS: usize>(&mut self, simd: S, row: usize) {
        let places = |high: usize| {
            let at = (self.row + row + high) * self.of_row + self.columns.start;
            // SAFETY: the output has these rows and columns, and no other piece the same.
            unsafe { std::slice::from_raw_parts_mut(self.output.at(at), self.columns.len()) }
        };
        let mut sums = [[simd.splat_f32s(0.0); 2]; ROWS];
        if !self.first {
            for (high, sums) in sums.iter_mut().enumerate() {
                *sums = load(simd, places(high));
            }
        }
        let (soon, later) = self.next.split_at(self.next.len().min(self.share * ROWS));
        fetch(soon);
        self.next = later;
        // SAFETY: there are these rows of the input, and the piece is of whole panel rows.
        let sums = unsafe {
            let rows = LeftRows {
                first: self.rows.first.add(row * self.rows.step),
                step: self.rows.step,
            };
            let panel = Panel {
                first: self.piece.as_ptr(),
                step: self.width,
            };
            multiply::<S, ROWS>(simd, rows, panel, self.piece.len() / self.width, sums)
        };
        for (high, sums) in sums.into_iter().enumerate() {
            store(simd, places(high), sums);
        }
    }
}
