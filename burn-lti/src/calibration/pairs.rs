//! Sums of pairs of factors: the nearest to a general map, and the best for a least-squares fit.
//!
//! With its axes in another order a map is the matrix `R[(x,u),(y,v)] = W[(x,y),(u,v)]`, a pair of
//! factors one of rank 1, and a sum of pairs one of as many. So the nearest sum is a truncated singular
//! value decomposition of `R` (Van Loan and Pitsianis 1993). In the metric of a fit it is not: from
//! there both factors of all pairs are improved in turn.

use faer::Mat;

use super::error::{CalibrationError, Result};
use super::solve::{by_diagonal, column_major, conjugate_gradients, from_columns};

/// `W[(x,y),(u,v)] = sum_r a[(x,u),r] b[(y,v),r]`
#[derive(Clone, Debug)]
pub(super) struct Pairs {
    /// `x, y, u, v`
    sizes: [usize; 4],
    /// `[x * u, rank]`
    a: Mat<f64>,
    /// `[y * v, rank]`
    b: Mat<f64>,
}

/// `sum(W * apply(W)) - 2 sum(W * right)`, which a fit makes small.
pub(super) struct Quadratic<'a> {
    /// Symmetric and positive semidefinite.
    pub(super) apply: &'a dyn Fn(&Mat<f64>) -> Mat<f64>,
    /// Of the shape of `W`.
    pub(super) right: Mat<f64>,
    /// The diagonal of `apply`, in the shape of `W`.
    pub(super) diagonal: Mat<f64>,
}

/// Rounds over both factors.
const ROUNDS: usize = 4;
/// Steps of conjugate gradients for a factor.
const STEPS: usize = 30;

impl Pairs {
    /// The sum of `rank` pairs nearest to `w [x * y, u * v]`, whose heads have `y` and `v` features.
    pub(super) fn nearest(w: &Mat<f64>, [y, v]: [usize; 2], rank: usize) -> Result<Self> {
        let sizes = [w.nrows() / y, y, w.ncols() / v, v];
        let parts = rearranged(w, sizes).thin_svd();
        // It fails on what is not finite alone.
        let parts = parts.map_err(|_| CalibrationError::NotFinite)?;
        let values = parts.S().column_vector();
        let rank = rank.min(values.nrows());
        // Each factor has its part of the size, so that both learn alike.
        let of = |vectors: faer::MatRef<'_, f64>| {
            Mat::from_fn(vectors.nrows(), rank, |row, pair| {
                vectors[(row, pair)] * values[pair].sqrt()
            })
        };
        Ok(Self {
            sizes,
            a: of(parts.U()),
            b: of(parts.V()),
        })
    }

    /// The same for a map of one block `[x * y, v]` for each `u`.
    pub(super) fn nearest_to_blocks(blocks: &[Mat<f64>], y: usize, rank: usize) -> Result<Self> {
        let v = blocks.first().map_or(1, Mat::ncols);
        Self::nearest(&joined(blocks), [y, v], rank)
    }

    /// How many there are.
    pub(super) fn rank(&self) -> usize {
        self.a.ncols()
    }

    /// The sum as one block `[x * y, v]` for each `u`.
    pub(super) fn blocks(&self) -> Vec<Mat<f64>> {
        blocks(&self.sum(), self.sizes[3])
    }

    /// `W [x * y, u * v]`
    pub(super) fn sum(&self) -> Mat<f64> {
        let [x, y, u, v] = self.sizes;
        rearranged(&(&self.a * self.b.transpose()), [x, u, y, v])
    }

    /// The sum that is best for `quadratic`, as far as some rounds over both factors bring it. None makes
    /// it worse.
    pub(super) fn improved(mut self, quadratic: &Quadratic<'_>) -> Self {
        let [x, y, u, v] = self.sizes;
        let apply = |r: &Mat<f64>| {
            let image = (quadratic.apply)(&rearranged(r, [x, u, y, v]));
            rearranged(&image, self.sizes)
        };
        let transposed = |r: &Mat<f64>| transpose(&apply(&transpose(r)));
        let right = rearranged(&quadratic.right, self.sizes);
        let diagonal = rearranged(&quadratic.diagonal, self.sizes);
        let (transposed_right, transposed_diagonal) = (transpose(&right), transpose(&diagonal));
        for _ in 0..ROUNDS {
            self.a = better(&self.a, &self.b, &apply, &right, &diagonal);
            self.b = better(
                &self.b,
                &self.a,
                &transposed,
                &transposed_right,
                &transposed_diagonal,
            );
        }
        self
    }

    /// The same over `heads` heads of the teacher's, where this is over the one that each head of the
    /// student's, of one head each, began as: `x` is 1 here, and `chosen` has one for each `u`.
    pub(super) fn placed(&self, heads: usize, chosen: &[usize]) -> Self {
        let [_, y, u, v] = self.sizes;
        let a = Mat::from_fn(heads * u, self.a.ncols(), |row, pair| {
            match chosen[row % u] == row / u {
                true => self.a[(row % u, pair)],
                false => 0.0,
            }
        });
        Self {
            sizes: [heads, y, u, v],
            a,
            b: self.b.clone(),
        }
    }

    /// `A [x, u]` and `B [y, v]` of all pairs that are something in float32.
    pub(super) fn factors(&self) -> Vec<[Mat<f64>; 2]> {
        let [x, y, u, v] = self.sizes;
        let size = |pair: usize| self.a.col(pair).norm_l2() * self.b.col(pair).norm_l2();
        let pairs = 0..self.rank();
        let largest = pairs.clone().map(size).fold(0.0, f64::max);
        pairs
            .filter(|pair| size(*pair) > f64::from(f32::EPSILON) * largest)
            .map(|pair| {
                [
                    Mat::from_fn(x, u, |row, column| self.a[(row * u + column, pair)]),
                    Mat::from_fn(y, v, |row, column| self.b[(row * v + column, pair)]),
                ]
            })
            .collect()
    }
}

/// `[(x,y),(u,v)]` as `[(x,u),(y,v)]`; with `[x, u, y, v]` for sizes, the way back.
fn rearranged(w: &Mat<f64>, [x, y, u, v]: [usize; 4]) -> Mat<f64> {
    Mat::from_fn(x * u, y * v, |row, column| {
        w[(row / u * y + column / v, row % u * v + column % v)]
    })
}

/// `W[(x,y),(u,v)] = A[x,u] B[y,v]`
pub(super) fn outer_product(a: &Mat<f64>, b: &Mat<f64>) -> Mat<f64> {
    let (y, v) = (b.nrows(), b.ncols());
    Mat::from_fn(a.nrows() * y, a.ncols() * v, |row, column| {
        a[(row / y, column / v)] * b[(row % y, column % v)]
    })
}

/// One block for each `u` of `w [x * y, u * v]`.
pub(super) fn blocks(w: &Mat<f64>, v: usize) -> Vec<Mat<f64>> {
    let heads = 0..w.ncols() / v;
    heads
        .map(|head| w.subcols(head * v, v).to_owned())
        .collect()
}

/// `[x * y, u * v]` of one block for each `u`.
pub(super) fn joined(blocks: &[Mat<f64>]) -> Mat<f64> {
    let (rows, v) = blocks
        .first()
        .map_or((0, 1), |block| (block.nrows(), block.ncols()));
    Mat::from_fn(rows, blocks.len() * v, |row, column| {
        blocks[column / v][(row, column % v)]
    })
}

fn transpose(r: &Mat<f64>) -> Mat<f64> {
    r.transpose().to_owned()
}

/// The `p` for which `p q^T` is best, beginning with one.
fn better(
    p: &Mat<f64>,
    q: &Mat<f64>,
    apply: &dyn Fn(&Mat<f64>) -> Mat<f64>,
    right: &Mat<f64>,
    diagonal: &Mat<f64>,
) -> Mat<f64> {
    let flat = |matrix: &Mat<f64>| column_major(matrix.as_ref());
    let unflat = |flat: &[f64]| from_columns(flat, p.nrows());
    let squares = Mat::from_fn(q.nrows(), q.ncols(), |row, pair| q[(row, pair)].powi(2));
    let image = |p: &[f64]| flat(&(apply(&(unflat(p) * q.transpose())) * q));
    let diagonal = flat(&(diagonal * &squares));
    let precondition = by_diagonal(&diagonal);
    let right = flat(&(right * q));
    unflat(&conjugate_gradients(
        image,
        precondition,
        &right,
        flat(p),
        STEPS,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [usize; 4] = [4, 3, 2, 5];

    fn numbers(rows: usize, columns: usize, seed: usize) -> Mat<f64> {
        Mat::from_fn(rows, columns, |i, j| {
            ((i * 37 + j * 101 + seed * 13) % 29) as f64 / 14.0 - 1.0
        })
    }

    fn distance(a: &Mat<f64>, b: &Mat<f64>) -> f64 {
        (a - b).norm_l2()
    }

    #[test]
    fn all_pairs_are_the_map_and_fewer_are_as_near_as_the_left_out_values_say() {
        let w = numbers(12, 10, 1);
        let values = rearranged(&w, SIZES).thin_svd().unwrap();
        let values = values.S().column_vector().to_owned();
        for rank in 1..=8 {
            let nearest = Pairs::nearest(&w, [3, 5], rank).unwrap();
            let left: f64 = (rank..8).map(|pair| values[pair].powi(2)).sum();
            // Some hundred products in float64.
            assert!((distance(&nearest.sum(), &w) - left.sqrt()).abs() < 1e-12 * w.norm_l2());
        }
        assert!(distance(&Pairs::nearest(&w, [3, 5], 99).unwrap().sum(), &w) < 1e-12);
    }

    #[test]
    fn a_fit_beats_the_nearest_sum_and_all_pairs_stay_where_the_best_map_is() {
        let (left, right) = (numbers(12, 12, 2), numbers(10, 10, 3));
        let identity = |n: usize| Mat::<f64>::identity(n, n);
        let left = &left * left.transpose() + identity(12);
        let right = &right * right.transpose() + identity(10);
        let best = numbers(12, 10, 4);
        let apply = |w: &Mat<f64>| &left * w * &right;
        let quadratic = Quadratic {
            apply: &apply,
            right: apply(&best),
            diagonal: Mat::from_fn(12, 10, |i, j| left[(i, i)] * right[(j, j)]),
        };
        let value = |pairs: &Pairs| {
            let off = pairs.sum() - &best;
            super::super::solve::dot(&off, &apply(&off))
        };
        for rank in 1..=3 {
            let nearest = Pairs::nearest(&best, [3, 5], rank).unwrap();
            let before = value(&nearest);
            let after = value(&nearest.improved(&quadratic));
            assert!(after < 0.9 * before, "{rank}: {after}, before {before}");
        }
        let all = Pairs::nearest(&best, [3, 5], 8).unwrap();
        assert!(distance(&all.improved(&quadratic).sum(), &best) < 1e-6);
    }

    #[test]
    fn pairs_of_nothing_are_left_out() {
        let one = Pairs {
            sizes: SIZES,
            a: numbers(8, 1, 5),
            b: numbers(15, 1, 6),
        };
        let found = Pairs::nearest(&one.sum(), [3, 5], 8).unwrap().factors();
        let [[a, b]] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!((a.nrows(), a.ncols(), b.nrows(), b.ncols()), (4, 2, 3, 5));
        let again = outer_product(a, b);
        assert!(distance(&again, &one.sum()) < 1e-12);
    }

    #[test]
    fn a_product_has_a_block_for_each_two_heads() {
        let a = Mat::from_fn(2, 1, |i, _| (i + 1) as f64);
        let b = Mat::from_fn(2, 2, |i, j| (10 * i + j) as f64);
        let rows = [[0.0, 1.0], [10.0, 11.0], [0.0, 2.0], [20.0, 22.0]];
        let expected = Mat::from_fn(4, 2, |i, j| rows[i][j]);
        assert_eq!(outer_product(&a, &b), expected);
    }
}
