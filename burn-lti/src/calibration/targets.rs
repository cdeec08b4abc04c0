//! What the attention block of a layer should add for each token, and how much the token counts.

use burn::prelude::*;
use burn::tensor::DType;

use super::features::flat;

/// The targets of a batch's tokens, `[rows, d_model]`, and the root of each row's weight, `[rows, 1]`.
pub(super) struct Targets<B: Backend> {
    /// What the teacher's attention adds, without the output's bias.
    pub(super) attention: Tensor<B, 2>,
    /// The output's bias, `[1, d_model]`: the student has the same.
    pub(super) bias: Tensor<B, 2>,
    /// From the student's layer input to the teacher's.
    pub(super) drift: Tensor<B, 2>,
    pub(super) root: Tensor<B, 2>,
}

impl<B: Backend> Targets<B> {
    /// Of both layer inputs and the teacher's attention, each `[batch, tokens, d_model]`, the output's
    /// bias, what the rows count, `[rows, 1]`, and the `segments [batch, tokens]`, 0 for padding.
    ///
    /// A row's weight is what it counts over the mean square of the teacher's stream after the attention:
    /// what follows is a norm.
    pub(super) fn new(
        [teacher, student, attention]: [Tensor<B, 3>; 3],
        bias: Option<Tensor<B, 2>>,
        importance: Tensor<B, 2>,
        segments: Tensor<B, 2, Int>,
    ) -> Self {
        let [teacher, student, attention] =
            [teacher, student, attention].map(|stream| flat(stream).cast(DType::F32));
        let [rows, width] = teacher.dims();
        let size = (teacher.clone() + attention.clone())
            .powi_scalar(2)
            .mean_dim(1)
            .add_scalar(f32::MIN_POSITIVE);
        let present = segments.greater_elem(0).float();
        let present = present.reshape([rows, 1]).cast(DType::F32);
        let bias = match bias {
            Some(bias) => bias.cast(DType::F32),
            None => Tensor::zeros([1, width], (&attention.device(), DType::F32)),
        };
        Self {
            drift: teacher - student,
            attention: attention - bias.clone(),
            bias,
            root: present * (importance / size).sqrt(),
        }
    }

    /// `rows`, each times the root of its weight.
    pub(super) fn weigh(&self, rows: Tensor<B, 2>) -> Tensor<B, 2> {
        rows.cast(DType::F32) * self.root.clone()
    }

    /// What the attention should add, weighted.
    pub(super) fn weighted(&self, strength: f64) -> Tensor<B, 2> {
        self.weigh(self.attention.clone() + self.drift.clone().mul_scalar(strength))
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::*;

    #[test]
    fn a_row_weighs_what_it_counts_over_its_size_and_padding_nothing() {
        let device = Default::default();
        let stream = |rows: [[f32; 2]; 3]| Tensor::<Flex, 3>::from_floats([rows], &device);
        let teacher = stream([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]);
        let student = stream([[1.0, 1.0], [3.0, 3.0], [5.0, 5.0]]);
        let attention = stream([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]);
        let targets = Targets::new(
            [teacher, student, attention],
            Some(Tensor::from_floats([[0.5, 0.0]], &device)),
            Tensor::from_floats([[4.0], [17.0], [1.0]], &device),
            Tensor::from_ints([[1, 1, 0]], &device),
        );
        let values = |tensor: Tensor<Flex, 2>| tensor.into_data().iter::<f32>().collect::<Vec<_>>();
        // Mean squares after the attention: (2, 2) and (3, 5).
        assert_eq!(values(targets.root.clone()), [1.0, 1.0, 0.0]);
        let expected = [0.5, 0.5, -0.5, 1.5, 0.0, 0.0];
        assert_eq!(values(targets.weighted(0.5)), expected);
        assert_eq!(values(targets.drift), [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]);
    }
}
