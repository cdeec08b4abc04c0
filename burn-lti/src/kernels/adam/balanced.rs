//! [`balanced`]: a matrix whose rows, and then its columns, are brought to one size.

use burn::prelude::*;

use crate::compat::at_least_float32;

/// The least mean square, where the largest element is one: a row or column below it has nothing but zeros.
const LEAST: f64 = 1e-30;

/// `matrix` with each of its rows divided by its root mean square, and then each of its columns. Rows and
/// columns of zeros stay.
///
/// That is one round of Sinkhorn and Knopp (1967) on the squares of the elements. In SinkGD (Scetbon et al.
/// 2025) five make the step of a gradient; here more than one changes nothing that could be measured.
///
/// # Shapes
///
/// `[rows, columns]`, both.
pub(super) fn balanced<B: Backend>(matrix: Tensor<B, 2>) -> Tensor<B, 2> {
    let dtype = matrix.dtype();
    let matrix = matrix.cast(at_least_float32(dtype));
    let [rows, _] = matrix.dims();
    // The squares of what is small enough would be zero.
    let size = matrix.clone().abs().max().clamp_min(f32::MIN_POSITIVE);
    let matrix = matrix / size.reshape([1, 1]);
    let squares = matrix.clone().square();
    let of_rows = squares.clone().mean_dim(1).clamp_min(LEAST).recip();
    // The means of the columns once the rows are divided.
    let of_columns = of_rows
        .clone()
        .transpose()
        .matmul(squares)
        .div_scalar(rows as f64);
    let of_columns = of_columns.clamp_min(LEAST).recip();
    (matrix * of_rows.sqrt() * of_columns.sqrt()).cast(dtype)
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::Tolerance;

    use super::*;

    fn matrix(numbers: [[f32; 3]; 2]) -> Tensor<Flex, 2> {
        Tensor::from_data(numbers, &Default::default())
    }

    /// Signs stay, columns have a mean square of one, and sizes of rows and columns count nothing.
    #[test]
    fn rows_and_columns_are_of_one_size() {
        let plain = matrix([[1.0, -2.0, 0.5], [3.0, 1.0, -4.0]]);
        let found = balanced(plain.clone());
        let ones = Tensor::<Flex, 2>::ones([1, 3], &Default::default());
        let squares = found.clone().square().mean_dim(0).into_data();
        squares.assert_approx_eq::<f32>(&ones.into_data(), Tolerance::absolute(1e-5));
        assert_eq!(
            found.clone().sign().into_data(),
            plain.clone().sign().into_data()
        );
        // By hand: rows of squares 5.25 / 3 and 26 / 3, then columns.
        let by_hand = |row: f64, other: f64| {
            let [own, beside] = [row * row / 1.75, other * other / (26.0 / 3.0)];
            row.signum() * (own / ((own + beside) / 2.0)).sqrt()
        };
        let first = [by_hand(1.0, 3.0), by_hand(-2.0, 1.0), by_hand(0.5, -4.0)];
        let expected = Tensor::<Flex, 2>::from_data([first], &Default::default()).into_data();
        let row = found.clone().narrow(0, 0, 1).into_data();
        row.assert_approx_eq::<f32>(&expected, Tolerance::absolute(1e-5));

        let rows = Tensor::<Flex, 2>::from_data([[1e-9f32], [7.0]], &Default::default());
        let scaled = balanced(plain * rows).into_data();
        scaled.assert_approx_eq::<f32>(&found.into_data(), Tolerance::absolute(1e-4));
    }

    #[test]
    fn nothing_stays_nothing_and_the_smallest_counts() {
        let zeros = matrix([[0.0; 3]; 2]);
        assert_eq!(balanced(zeros.clone()).into_data(), zeros.into_data());
        let some = balanced(matrix([[0.0, 1e-30, 0.0], [0.0, 0.0, 0.0]])).into_data();
        let expected = [0.0, 2f32.sqrt(), 0.0, 0.0, 0.0, 0.0];
        let expected = Tensor::<Flex, 1>::from_data(expected, &Default::default());
        let expected = expected.reshape([2, 3]).into_data();
        some.assert_approx_eq::<f32>(&expected, Tolerance::absolute(1e-5));
    }
}
