//! Rows of a table, as an embedding looks them up.

use std::sync::Arc;

use burn::prelude::*;

use super::form::{Form, is_rust};
use super::graph::{Operation, apply};

/// `table [rows, d]` at `indices [batch, n]`: `[batch, n, d]`.
///
/// Burn makes of the gradient several tensors as large as the table, of which a few rows differ from zero; here it is
/// one, whose zeros are the system's.
///
/// # Panics
///
/// As Burn, if there is no such row.
pub(crate) fn lookup<B: Backend>(table: Tensor<B, 2>, indices: Tensor<B, 2, Int>) -> Tensor<B, 3> {
    let form = Form::of(is_rust, [&table]);
    if form == Form::Tensors {
        return burn::tensor::module::embedding(table, indices);
    }
    let ([batch, n], [_, d]) = (indices.dims(), table.dims());
    let rows = indices
        .into_data()
        .iter::<i64>()
        .map(|row| usize::try_from(row).unwrap_or(usize::MAX))
        .collect();
    apply(Lookup { rows }, form, [table]).reshape([batch, n, d])
}

/// `d table` has at each row the sum of the gradients at the places where it was looked up.
#[derive(Clone, Debug)]
struct Lookup {
    rows: Arc<[usize]>,
}

impl Operation<1, 2> for Lookup {
    /// Rows of the table.
    type Saved<B: Backend> = usize;

    fn forward<B: Backend>(
        &self,
        _: Form,
        [table]: [Tensor<B, 2>; 1],
        _: [bool; 1],
    ) -> (Tensor<B, 2>, Option<usize>) {
        let rows: Vec<i64> = self.rows.iter().map(|row| *row as i64).collect();
        let rows = TensorData::new(rows, [self.rows.len()]);
        let of = table.dims()[0];
        let rows = Tensor::from_data(rows, &table.device());
        (table.select(0, rows), Some(of))
    }

    fn backward<B: Backend>(
        &self,
        _: Form,
        of: usize,
        gradient: Tensor<B, 2>,
        _: [bool; 1],
    ) -> [Option<Tensor<B, 2>>; 1] {
        let ([_, d], device) = (gradient.dims(), gradient.device());
        let gradient = gradient.into_data();
        let mut sums = vec![0.0f32; of * d];
        for (row, gradient) in self
            .rows
            .iter()
            .zip(super::cpu::floats(&gradient).chunks(d))
        {
            for (sum, number) in sums[row * d..][..d].iter_mut().zip(gradient) {
                *sum += number;
            }
        }
        let sums = TensorData::new(sums, [of, d]);
        [Some(Tensor::from_data(sums, &device))]
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;

    use super::*;

    type On<I, const D: usize, K = burn::tensor::Float> = Tensor<Autodiff<I>, D, K>;

    /// Whole numbers, whose sums are exact.
    fn found<I: Backend>(lookup: fn(On<I, 2>, On<I, 2, Int>) -> On<I, 3>) -> [Vec<f32>; 2] {
        let device = Default::default();
        let table = TensorData::new((0..21).map(|at| at as f32).collect::<Vec<_>>(), [7, 3]);
        let table = Tensor::<Autodiff<I>, 2>::from_data(table, &device).require_grad();
        let indices = Tensor::from_data([[6, 0, 2], [2, 6, 6]], &device);
        let output = lookup(table.clone(), indices);
        let weight = (0..18).map(|at| at as f32 - 8.0).collect::<Vec<_>>();
        let weight = Tensor::from_data(TensorData::new(weight, [2, 3, 3]), &device);
        let gradients = (output.clone() * weight).sum().backward();
        let gradient = table.grad(&gradients).expect("it is a leaf");
        [
            output.into_data().iter().collect(),
            gradient.into_data().iter().collect(),
        ]
    }

    macro_rules! on {
        ($($feature:literal $name:ident $backend:ident),*) => {$(
            #[cfg(feature = $feature)]
            #[test]
            fn $name() {
                use crate::backend::$backend;
                let expected = found::<$backend>(burn::tensor::module::embedding);
                assert_eq!(found::<$backend>(lookup), expected);
            }
        )*};
    }
    on!["flex" is_burns_embedding_on_flex Flex, "ndarray" is_burns_embedding_on_ndarray NdArray,
        "tch" is_burns_embedding_on_tch LibTorch];
}
