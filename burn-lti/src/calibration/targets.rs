//! What the attention block of a layer should put out for each token, and how much the token counts.
//!
//! Where that is normed before it is added to the stream, the target is what has to stand before the norm: what is
//! missing in the stream goes back through the norm's gain, and becomes as large as the teacher's output is there.

use burn::prelude::*;
use burn::tensor::DType;

use super::features::flat;

/// A gain is taken to let something through if it is more than this part of all gains' mean.
const LEAST_GAIN: f64 = 1e-3;

/// The targets of a batch's tokens, `[rows, d_model]`, and the root of each row's weight, `[rows, 1]`.
pub(super) struct Targets<B: Backend> {
    /// What the teacher's attention puts out, without the output's bias.
    pub(super) attention: Tensor<B, 2>,
    /// The output's bias, `[1, d_model]`: the student has the same.
    pub(super) bias: Tensor<B, 2>,
    /// From the student's layer input to the teacher's, before the norm of the output if there is one.
    pub(super) drift: Tensor<B, 2>,
    pub(super) root: Tensor<B, 2>,
}

impl<B: Backend> Targets<B> {
    /// Of both layer inputs and what the teacher's attention puts out, each `[batch, tokens, d_model]`, the output's
    /// bias, the `gain [d_model]` of the output's norm if there is one, what the rows count, `[rows, 1]`, and the
    /// `segments [batch, tokens]`, 0 for padding.
    ///
    /// A row's weight is what it counts over the mean square of the teacher's stream after the attention:
    /// what follows is a norm, or a stream that is normed in the end.
    pub(super) fn new(
        [teacher, student, attention]: [Tensor<B, 3>; 3],
        bias: Option<Tensor<B, 2>>,
        gain: Option<Tensor<B, 1>>,
        importance: Tensor<B, 2>,
        segments: Tensor<B, 2, Int>,
    ) -> Self {
        let [teacher, student, attention] =
            [teacher, student, attention].map(|stream| flat(stream).cast(DType::F32));
        let [rows, width] = teacher.dims();
        let mean_square = |rows: Tensor<B, 2>| rows.powi_scalar(2).mean_dim(1);
        let mut drift = teacher.clone() - student;
        let (mut added, mut size_before) = (attention.clone(), None);
        if let Some(gain) = gain {
            let gain: Tensor<B, 2> = gain.cast(DType::F32).unsqueeze();
            let before = mean_square(attention.clone()).add_scalar(f32::MIN_POSITIVE);
            // A gain of next to nothing lets nothing through: what is missing there stays so.
            let least = mean_square(gain.clone()).mul_scalar(LEAST_GAIN * LEAST_GAIN);
            let back = gain.clone() / (gain.clone().powi_scalar(2) + least);
            added = attention.clone() / before.clone().sqrt() * gain;
            drift = drift * before.clone().sqrt() * back;
            size_before = Some(before);
        }
        let size = mean_square(teacher + added).add_scalar(f32::MIN_POSITIVE);
        let size = match size_before {
            Some(before) => size * before,
            None => size,
        };
        let present = segments.greater_elem(0).float();
        let present = present.reshape([rows, 1]).cast(DType::F32);
        let bias = match bias {
            Some(bias) => bias.cast(DType::F32),
            None => Tensor::zeros([1, width], (&attention.device(), DType::F32)),
        };
        Self {
            drift,
            attention: attention - bias.clone(),
            bias,
            root: present * (importance / size).sqrt(),
        }
    }

    /// `rows`, each times the root of its weight.
    pub(super) fn weigh(&self, rows: Tensor<B, 2>) -> Tensor<B, 2> {
        rows.cast(DType::F32) * self.root.clone()
    }

    /// What the attention should put out, weighted.
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
            None,
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

    #[test]
    fn a_target_before_a_norm_is_what_the_norm_makes_right() {
        let device = Default::default();
        let stream = |rows: [[f32; 2]; 1]| Tensor::<Flex, 3>::from_floats([rows], &device);
        // The norm makes (3, 4), whose mean square is 12.5, to (2, 0.5) times it over its root.
        let targets = Targets::new(
            [
                stream([[1.0, 1.0]]),
                stream([[0.9, 1.2]]),
                stream([[3.0, 4.0]]),
            ],
            None,
            Some(Tensor::from_floats([2.0, 0.5], &device)),
            Tensor::from_floats([[1.0]], &device),
            Tensor::from_ints([[1]], &device),
        );
        let values = |tensor: Tensor<Flex, 2>| tensor.into_data().iter::<f32>().collect::<Vec<_>>();
        let root = 12.5_f32.sqrt();
        let drift = values(targets.drift.clone());
        // Through the norm, as it is at the teacher's output, they are what is missing in the stream.
        for (found, (gain, missing)) in drift.iter().zip([(2.0, 0.1), (0.5, -0.2)]) {
            assert!((found * gain / root - missing).abs() < 1e-5, "{found}");
        }
        assert_eq!(values(targets.attention.clone()), [3.0, 4.0]);
        let size = ((1.0 + 6.0 / root).powi(2) + (1.0 + 2.0 / root).powi(2)) / 2.0;
        let expected = 1.0 / (size * 12.5).sqrt();
        assert!((values(targets.root)[0] - expected).abs() < 1e-6);
    }
}
