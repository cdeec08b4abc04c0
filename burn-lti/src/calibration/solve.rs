//! The few pieces of linear algebra that the fits share, on top of faer.

use faer::linalg::solvers::{Llt, Solve};
use faer::{Mat, MatRef, Side};

use super::error::{CalibrationError, Result};

/// Mean of the diagonal.
pub(super) fn mean_diagonal(gram: &Mat<f64>) -> f64 {
    let n = gram.nrows();
    let trace: f64 = (0..n).map(|i| gram[(i, i)]).sum();
    trace / n.max(1) as f64
}

/// What `ridge` adds to a diagonal whose mean is `mean`. Where the whole is zero, one, so that there is
/// always something to solve with.
pub(super) fn added_to_diagonal(mean: f64, ridge: f64) -> f64 {
    match mean > 0.0 {
        true => ridge * mean,
        false => 1.0,
    }
}

/// `gram` with `ridge` times its mean diagonal added to its diagonal, or the identity to one of zeros.
pub(super) fn ridged(gram: &Mat<f64>, ridge: f64) -> Mat<f64> {
    let added = added_to_diagonal(mean_diagonal(gram), ridge);
    let mut sum = gram.clone();
    for i in 0..sum.nrows() {
        sum[(i, i)] += added;
    }
    sum
}

/// The Cholesky factor of [`ridged`].
///
/// # Errors
///
/// [`CalibrationError::Singular`] if the sum is not positive definite.
pub(super) fn cholesky(gram: &Mat<f64>, ridge: f64) -> Result<Llt<f64>> {
    let factor = ridged(gram, ridge).llt(Side::Lower);
    factor.map_err(|_| CalibrationError::Singular { ridge })
}

/// `(gram + ridge * mean diagonal)^-1 right`: ridge least squares.
///
/// # Errors
///
/// [`CalibrationError::Singular`] if the sum is not positive definite.
pub(super) fn ridge(gram: &Mat<f64>, right: &Mat<f64>, ridge: f64) -> Result<Mat<f64>> {
    Ok(cholesky(gram, ridge)?.solve(right))
}

/// Eigenvectors of a symmetric matrix as columns, and their eigenvalues, ascending.
///
/// # Errors
///
/// [`CalibrationError::NotFinite`].
pub(super) fn eigen(matrix: &Mat<f64>) -> Result<(Mat<f64>, Vec<f64>)> {
    let eigen = matrix.self_adjoint_eigen(Side::Lower);
    // It fails on what is not finite alone.
    let eigen = eigen.map_err(|_| CalibrationError::NotFinite)?;
    let values = eigen.S().column_vector().iter().copied().collect();
    Ok((eigen.U().to_owned(), values))
}

/// Sum of the products of equal places.
pub(super) fn dot(a: &Mat<f64>, b: &Mat<f64>) -> f64 {
    let mut sum = 0.0;
    for column in 0..a.ncols() {
        for row in 0..a.nrows() {
            sum += a[(row, column)] * b[(row, column)];
        }
    }
    sum
}

/// The elements, column by column.
pub(super) fn column_major(matrix: MatRef<'_, f64>) -> Vec<f64> {
    let columns = matrix.col_iter();
    columns.flat_map(|column| column.iter().copied()).collect()
}

/// The matrix of these elements, [`column_major`], in columns of so many rows.
pub(super) fn from_columns(elements: &[f64], rows: usize) -> Mat<f64> {
    MatRef::from_column_major_slice(elements, rows, elements.len() / rows.max(1)).to_owned()
}

/// `M_i M_j^T` by `i`, then `j`.
pub(super) fn products(parts: &[Mat<f64>]) -> Vec<Vec<Mat<f64>>> {
    let with_all = |left: &Mat<f64>| parts.iter().map(|right| left * right.transpose()).collect();
    parts.iter().map(with_all).collect()
}

/// A preconditioner of [`conjugate_gradients`]: the operator's diagonal.
pub(super) fn by_diagonal(diagonal: &[f64]) -> impl Fn(&[f64]) -> Vec<f64> + '_ {
    let largest = diagonal.iter().copied().fold(0.0, f64::max);
    move |residual| {
        let by = |(value, weight): (&f64, &f64)| match largest > 0.0 {
            true => value / weight.max(largest * FLAT),
            false => 0.0,
        };
        residual.iter().zip(diagonal).map(by).collect()
    }
}

/// A preconditioner for `W -> left W right`, both symmetric and positive semidefinite, with `added` to its
/// diagonal: its inverse, but for directions that are nearly flat, over column-major `W`.
pub(super) struct Kronecker {
    bases: [Mat<f64>; 2],
    /// By which a coefficient is multiplied.
    weights: Mat<f64>,
}

impl Kronecker {
    /// # Errors
    ///
    /// [`CalibrationError::NotFinite`].
    pub(super) fn new(left: &Mat<f64>, right: &Mat<f64>, added: f64) -> Result<Self> {
        let (left, of_left) = eigen(left)?;
        let (right, of_right) = eigen(right)?;
        let largest = |values: &[f64]| values.last().copied().unwrap_or_default();
        let largest = largest(&of_left) * largest(&of_right) + added;
        let weights = Mat::from_fn(of_left.len(), of_right.len(), |row, column| {
            let value = of_left[row] * of_right[column] + added;
            match largest > 0.0 {
                true => 1.0 / value.max(largest * FLAT),
                false => 0.0,
            }
        });
        Ok(Self {
            bases: [left, right],
            weights,
        })
    }

    pub(super) fn apply(&self, residual: &[f64]) -> Vec<f64> {
        let [left, right] = &self.bases;
        let (rows, columns) = (left.nrows(), right.nrows());
        let residual = MatRef::from_column_major_slice(residual, rows, columns);
        let mut projected = left.transpose() * residual * right;
        for (projected, weights) in projected.col_iter_mut().zip(self.weights.col_iter()) {
            for (value, weight) in projected.iter_mut().zip(weights.iter()) {
                *value *= weight;
            }
        }
        let solved = left * projected * right.transpose();
        column_major(solved.as_ref())
    }
}

/// Least squares in unknowns that only an operator knows: conjugate gradients (Hestenes and Stiefel
/// 1952), from `start`.
///
/// `apply` must be symmetric and positive semidefinite, and so `precondition`, which should be near its
/// inverse. Ends after `most` steps, or once the preconditioned residual has shrunk by [`SHRINK`]. Each
/// step lowers the quadratic, so that ending early is safe.
pub(super) fn conjugate_gradients(
    apply: impl Fn(&[f64]) -> Vec<f64>,
    precondition: impl Fn(&[f64]) -> Vec<f64>,
    right: &[f64],
    start: Vec<f64>,
    most: usize,
) -> Vec<f64> {
    let inner = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    let mut solution = start;
    let image = apply(&solution);
    let mut residual: Vec<f64> = right.iter().zip(&image).map(|(r, i)| r - i).collect();
    let mut preconditioned = precondition(&residual);
    let mut direction = preconditioned.clone();
    let mut size = inner(&residual, &preconditioned);
    let first = size;
    for _ in 0..most {
        if size <= first * SHRINK * SHRINK || size <= 0.0 {
            break;
        }
        let image = apply(&direction);
        let curvature = inner(&direction, &image);
        if curvature <= 0.0 {
            break;
        }
        let step = size / curvature;
        for i in 0..solution.len() {
            solution[i] += step * direction[i];
            residual[i] -= step * image[i];
        }
        preconditioned = precondition(&residual);
        let next = inner(&residual, &preconditioned);
        let keep = next / size;
        for (direction, new) in direction.iter_mut().zip(&preconditioned) {
            *direction = new + keep * *direction;
        }
        size = next;
    }
    solution
}

/// The same equations with `ridge` times the mean of the diagonal pulling towards `start`.
pub(super) fn towards<'f>(
    apply: impl Fn(&[f64]) -> Vec<f64> + 'f,
    mut right: Vec<f64>,
    diagonal: &[f64],
    start: &[f64],
    ridge: f64,
) -> (impl Fn(&[f64]) -> Vec<f64> + 'f, Vec<f64>) {
    let pull = pull(ridge, diagonal);
    for (right, start) in right.iter_mut().zip(start) {
        *right += pull * start;
    }
    let apply = move |flat: &[f64]| {
        let mut image = apply(flat);
        for (image, value) in image.iter_mut().zip(flat) {
            *image += pull * value;
        }
        image
    };
    (apply, right)
}

/// `ridge` as a part of the mean diagonal.
pub(super) fn pull(ridge: f64, diagonal: &[f64]) -> f64 {
    ridge * diagonal.iter().sum::<f64>() / diagonal.len().max(1) as f64
}

/// How much smaller the residual of [`conjugate_gradients`] must become.
const SHRINK: f64 = 1e-6;
/// What a preconditioner takes to be flat, as a part of its largest value.
const FLAT: f64 = 1e-9;

#[cfg(test)]
mod tests {
    use super::*;

    fn symmetric(n: usize) -> Mat<f64> {
        let factor = Mat::from_fn(n, n, |i, j| ((i * 7 + j * 3) % 5) as f64 - 1.5);
        let mut gram = &factor * factor.transpose();
        for i in 0..n {
            gram[(i, i)] += 1.0 + i as f64;
        }
        gram
    }

    #[test]
    fn ridge_solves_the_regularised_normal_equations() {
        let gram = symmetric(6);
        let right = Mat::from_fn(6, 2, |i, j| (i + 2 * j) as f64);
        let solution = ridge(&gram, &right, 0.1).unwrap();
        let back = &ridged(&gram, 0.1) * &solution;
        assert!((0..6).all(|i| (back[(i, 1)] - right[(i, 1)]).abs() < 1e-10));
    }

    #[test]
    fn a_gram_matrix_of_zeros_can_be_solved_with_and_a_negative_one_cannot() {
        let nothing = Mat::<f64>::zeros(3, 3);
        let right = Mat::from_fn(3, 1, |i, _| i as f64);
        assert_eq!(ridge(&nothing, &right, 0.1).unwrap()[(2, 0)], 2.0);
        let negative = Mat::from_fn(2, 2, |i, j| if i == j { 1.0 } else { 3.0 });
        let error = ridge(&negative, &Mat::zeros(2, 1), 1e-3).unwrap_err();
        assert!(matches!(error, CalibrationError::Singular { .. }));
    }

    #[test]
    fn conjugate_gradients_find_what_a_factorisation_finds() {
        let gram = symmetric(8);
        let right: Vec<f64> = (0..8).map(|i| (i as f64).sin()).collect();
        let exact = ridge(&gram, &Mat::from_fn(8, 1, |i, _| right[i]), 0.0).unwrap();
        let apply = |x: &[f64]| -> Vec<f64> {
            let image = &gram * &Mat::from_fn(8, 1, |i, _| x[i]);
            (0..8).map(|i| image[(i, 0)]).collect()
        };
        let diagonal: Vec<f64> = (0..8).map(|i| gram[(i, i)]).collect();
        let found = conjugate_gradients(apply, by_diagonal(&diagonal), &right, vec![0.0; 8], 100);
        assert!((0..8).all(|i| (found[i] - exact[(i, 0)]).abs() < 1e-6));
    }

    #[test]
    fn a_product_with_a_matrix_on_each_side_is_solved_in_one_step() {
        let (left, right) = (symmetric(5), symmetric(3));
        let wanted = Mat::from_fn(5, 3, |i, j| (i as f64 - j as f64).cos());
        let flat = |matrix: &Mat<f64>| -> Vec<f64> {
            let columns = matrix.col_iter();
            columns.flat_map(|column| column.iter().copied()).collect()
        };
        let apply = |x: &[f64]| {
            let x = Mat::from_fn(5, 3, |i, j| x[j * 5 + i]);
            flat(&(&left * &x * &right + faer::Scale(0.5) * &x))
        };
        let image = apply(&flat(&wanted));
        let inverse = Kronecker::new(&left, &right, 0.5).unwrap();
        let precondition = |residual: &[f64]| inverse.apply(residual);
        let found = conjugate_gradients(apply, precondition, &image, vec![0.0; 15], 1);
        let off = found.iter().zip(flat(&wanted)).map(|(a, b)| (a - b).abs());
        assert!(off.fold(0.0, f64::max) < 1e-12);
        let nothing = Kronecker::new(&Mat::zeros(2, 2), &Mat::zeros(1, 1), 0.0).unwrap();
        assert_eq!(nothing.apply(&[1.0, 2.0]), [0.0, 0.0]);
    }
}
