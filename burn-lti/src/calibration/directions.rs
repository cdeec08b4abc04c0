//! Which directions of the teacher's residual stream a narrower student keeps.
//!
//! With `Sigma` the second moments of the stream's states `h` (rows) and `Gamma` those of the loss's gradients, a
//! student that has `h P` of a state, and takes it back by `Q`, changes the loss by about `h (I - P Q) g` at every
//! place. The mean square of that, `tr((I - P Q) Gamma (I - P Q)^T Sigma)` where states and gradients tell nothing of
//! each other, is least for `P = Gamma^(1/2) V`, `Q = V^T Gamma^(-1/2)`, with `V` the leading eigenvectors of
//! `Gamma^(1/2) Sigma Gamma^(1/2)`. Without gradients `Gamma` is the identity, and these are the principal components
//! of the states.
//!
//! `P S` and `S^-1 Q` do the same. `S` is such that the rows of `Q` are orthonormal: then a student's state is as long
//! as the one that it stands for, and a norm makes of both the same.

use faer::Mat;

use super::error::{CalibrationError, Result};
use super::solve;

/// What the identity counts beside `Gamma`, as a part of its mean diagonal: no direction is free.
const RIDGE: f64 = 0.1;

/// `P [t_width, count]` and `Q [count, t_width]` for these second moments of states and gradients, `[t_width, t_width]`.
pub(super) fn directions(
    states: &Mat<f64>,
    gradients: Option<&Mat<f64>>,
    count: usize,
) -> Result<[Mat<f64>; 2]> {
    let width = states.nrows();
    if count > width || count == 0 {
        return Err(CalibrationError::Refused(format!(
            "the teacher's residual stream has {width} features, of which a student cannot keep {count}: keep from \
             1 to {width}"
        )));
    }
    let Some(gradients) = gradients else {
        let kept = leading(states, count)?;
        let back = kept.transpose().to_owned();
        return Ok([kept, back]);
    };
    if gradients.nrows() != width {
        return Err(CalibrationError::Refused(format!(
            "the gradients that are to weigh the teacher's residual stream are of {} features, and the stream has \
             {width}: take them of this teacher",
            gradients.nrows()
        )));
    }
    let gamma = solve::ridged(gradients, RIDGE);
    let [root, inverse_root] = roots(&gamma)?;
    let product = &root * states * &root;
    let kept = leading(&product, count)?;
    let (into, back) = (&root * &kept, kept.transpose() * &inverse_root);
    let [length, inverse_length] = roots(&(&back * back.transpose()))?;
    Ok([into * length, inverse_length * back])
}

/// The eigenvectors of the largest eigenvalues, the largest first, `[width, count]`.
fn leading(matrix: &Mat<f64>, count: usize) -> Result<Mat<f64>> {
    let (vectors, _) = solve::eigen(matrix)?;
    let last = vectors.ncols() - 1;
    Ok(Mat::from_fn(vectors.nrows(), count, |i, j| {
        vectors[(i, last - j)]
    }))
}

/// The root of a positive definite matrix, and the root's inverse.
fn roots(matrix: &Mat<f64>) -> Result<[Mat<f64>; 2]> {
    let (vectors, values) = solve::eigen(matrix)?;
    let of = |power: f64| {
        let scaled = Mat::from_fn(vectors.nrows(), vectors.ncols(), |i, j| {
            vectors[(i, j)] * values[j].max(f64::MIN_POSITIVE).powf(power)
        });
        scaled * vectors.transpose()
    };
    Ok([of(0.5), of(-0.5)])
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: usize = 7;
    const COUNT: usize = 4;

    /// Second moments of rows that lie unevenly.
    fn gram(seed: usize) -> Mat<f64> {
        let rows = Mat::from_fn(20, WIDTH, |i, j| {
            ((seed + 7 * i + 3 * j * j + i * i * j) as f64).sin() * (1.0 + ((seed * j) % 5) as f64)
        });
        rows.transpose() * &rows
    }

    fn identity(size: usize) -> Mat<f64> {
        Mat::identity(size, size)
    }

    fn largest(matrix: &Mat<f64>) -> f64 {
        let elements = solve::column_major(matrix.as_ref());
        elements.into_iter().fold(0.0, |a: f64, b| a.max(b.abs()))
    }

    /// `tr((I - P Q) Gamma (I - P Q)^T Sigma)`
    fn lost(states: &Mat<f64>, gamma: &Mat<f64>, [into, back]: &[Mat<f64>; 2]) -> f64 {
        let missing = identity(WIDTH) - into * back;
        solve::dot(&(&missing * gamma * missing.transpose()), states)
    }

    #[test]
    fn the_way_there_and_back_is_the_identity_and_back_keeps_lengths() {
        for gradients in [None, Some(gram(5))] {
            let [into, back] = directions(&gram(2), gradients.as_ref(), COUNT).unwrap();
            assert!(largest(&(&back * &into - identity(COUNT))) < 1e-10);
            assert!(largest(&(&back * back.transpose() - identity(COUNT))) < 1e-10);
        }
    }

    #[test]
    fn weighted_directions_lose_the_least_of_what_the_gradients_weigh() {
        let (states, gradients) = (gram(2), gram(5));
        let gamma = solve::ridged(&gradients, RIDGE);
        let weighted = directions(&states, Some(&gradients), COUNT).unwrap();
        let plain = directions(&states, None, COUNT).unwrap();
        let least = lost(&states, &gamma, &weighted);
        // No more than the eigenvalues of what is left out.
        let [root, _] = roots(&gamma).unwrap();
        let (_, values) = solve::eigen(&(&root * &states * &root)).unwrap();
        let rest: f64 = values[..WIDTH - COUNT].iter().sum();
        assert!((least - rest).abs() < 1e-9 * rest, "{least} {rest}");
        assert!(least < 0.9 * lost(&states, &gamma, &plain));
        // Nor are there better ones near them.
        for seed in 0..20 {
            let moved = |matrix: &Mat<f64>, seed: usize| {
                Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| {
                    matrix[(i, j)] + 1e-3 * ((seed * 31 + 5 * i + 11 * j) as f64).sin()
                })
            };
            let near = [moved(&weighted[0], seed), moved(&weighted[1], seed + 50)];
            assert!(lost(&states, &gamma, &near) > least);
        }
    }

    #[test]
    fn gradients_that_weigh_all_directions_alike_leave_the_principal_components() {
        let states = gram(2);
        let even = faer::Scale(3.0) * identity(WIDTH);
        let [into, back] = directions(&states, Some(&even), COUNT).unwrap();
        let [plain, _] = directions(&states, None, COUNT).unwrap();
        let projection = |into: &Mat<f64>, back: &Mat<f64>| into * back;
        let of_plain = projection(&plain, &plain.transpose().to_owned());
        assert!(largest(&(projection(&into, &back) - of_plain)) < 1e-10);
        assert!(largest(&(&into - back.transpose())) < 1e-10);
    }

    #[test]
    fn all_directions_are_kept_as_they_are_whatever_the_gradients_weigh() {
        let [into, back] = directions(&gram(2), Some(&gram(5)), WIDTH).unwrap();
        assert!(largest(&(&into * &back - identity(WIDTH))) < 1e-10);
        assert!(largest(&(&into - back.transpose())) < 1e-10);
    }

    #[test]
    fn what_does_not_fit_the_stream_is_refused() {
        for count in [0, WIDTH + 1] {
            let message = directions(&gram(2), None, count).unwrap_err().to_string();
            assert!(message.contains("keep from 1 to 7"), "{message}");
        }
        let of_another = identity(WIDTH + 1);
        let error = directions(&gram(2), Some(&of_another), COUNT).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("of 8 features"), "{message}");
    }
}
