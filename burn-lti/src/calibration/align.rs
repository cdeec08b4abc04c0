//! Values of merged heads, each turned to lie as near to the others as can be.
//!
//! An orthogonal turn `Q_j` of the values of a head is undone by the rows of the output that read it, so heads
//! may be turned before they are averaged: `V = mean_j V_j Q_j`, read by `Q_j^T O`. The turns are those of a
//! generalised Procrustes analysis (Gower 1975): each to the mean of all, again and again.

use faer::Mat;

use super::error::{CalibrationError, Result};

/// Rounds of turning all heads to their mean.
const ROUNDS: usize = 20;

/// For each of `members` the turn `[head_dim, head_dim]` of its values. `gram` are the second moments of all
/// the teacher's values, `[t_kv_heads * head_dim, t_kv_heads * head_dim]`.
pub(super) fn turns(gram: &Mat<f64>, members: &[usize], head_dim: usize) -> Result<Vec<Mat<f64>>> {
    let across = |j: usize, l: usize| {
        let (row, column) = (members[j] * head_dim, members[l] * head_dim);
        gram.submatrix(row, column, head_dim, head_dim)
    };
    let mut turns = vec![Mat::<f64>::identity(head_dim, head_dim); members.len()];
    // To the first, then to the mean.
    for (j, turn) in turns.iter_mut().enumerate().skip(1) {
        *turn = nearest_turn(&across(j, 0).to_owned())?;
    }
    for _ in 0..ROUNDS {
        for j in 0..members.len() {
            let mut to_mean = Mat::<f64>::zeros(head_dim, head_dim);
            for (l, turn) in turns.iter().enumerate() {
                to_mean += across(j, l) * turn;
            }
            turns[j] = nearest_turn(&to_mean)?;
        }
    }
    Ok(turns)
}

/// The orthogonal `Q` for which the trace of `Q^T m` is largest.
fn nearest_turn(m: &Mat<f64>) -> Result<Mat<f64>> {
    let parts = m.thin_svd();
    // It fails on what is not finite alone.
    let parts = parts.map_err(|_| CalibrationError::NotFinite)?;
    Ok(parts.U() * parts.V().transpose())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_that_are_one_another_turned_are_brought_together() {
        let (sin, cos) = 0.8_f64.sin_cos();
        let first = Mat::from_fn(30, 2, |i, j| {
            ((12.9 * i as f64 + 7.3 * j as f64).sin() * 437.5).fract()
        });
        let turn = Mat::from_fn(2, 2, |i, j| [[cos, sin], [-sin, cos]][i][j]);
        let second = &first * &turn;
        let all = Mat::from_fn(30, 4, |i, j| match j < 2 {
            true => first[(i, j)],
            false => second[(i, j - 2)],
        });
        let found = turns(&(all.transpose() * &all), &[0, 1], 2).unwrap();
        let off = &first * &found[0] - &second * &found[1];
        assert!(off.norm_l2() < 1e-9, "{found:?}");
    }
}
