//! The values of a fitted map, before they are tensors.

use faer::Mat;

use super::pairs::Pairs;

/// A map between all heads of teacher and student.
#[derive(Clone, Debug)]
pub(super) enum MapValues {
    /// `[t_heads * t_head_dim, s_heads * s_head_dim]`
    General(Mat<f64>),
    /// `a [t_heads, s_heads]` and `b [t_head_dim, s_head_dim]`
    Factored { a: Mat<f64>, b: Mat<f64> },
    /// Of a sum of several pairs.
    Pairs(Pairs),
}

/// In float32.
pub(super) fn row_major(matrix: &Mat<f64>) -> Vec<f32> {
    let rows = 0..matrix.nrows();
    rows.flat_map(|row| (0..matrix.ncols()).map(move |column| matrix[(row, column)] as f32))
        .collect()
}
