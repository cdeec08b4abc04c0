//! The teacher's own tensors, by the names that its decoder gives.

use burn::prelude::*;
use faer::Mat;

use super::error::{CalibrationError, Result};
use super::moments::matrix;
use crate::decoder::LayeredDecoder;
use crate::geometry::{Role, Site};
use crate::tensors::{TensorSet, join_name};

/// The name of the weight at that site of `teacher`.
pub(super) fn site_name<B: Backend>(
    teacher: &impl LayeredDecoder<B>,
    layer: usize,
    role: Role,
) -> Result<String> {
    let site = Site::new(layer, role);
    teacher
        .site_name(site)
        .ok_or_else(|| CalibrationError::no_weight(&site.to_string()))
}

/// The tensors of the teacher.
#[derive(Debug)]
pub(super) struct TeacherTensors<B: Backend>(pub(super) TensorSet<B>);

impl<B: Backend> TeacherTensors<B> {
    /// The weight of a `Linear` with so many outputs, `[inputs, outputs]`.
    pub(super) fn weight(&self, projection: &str, outputs: usize) -> Result<Mat<f64>> {
        let name = join_name(projection, "weight");
        let Some(named) = self.0.get(&name) else {
            return Err(CalibrationError::no_weight(&name));
        };
        let elements = named.tensor.num_elements();
        matrix(
            named.tensor.to_rank::<1>([elements]),
            elements / outputs.max(1),
        )
    }

    /// The bias of a `Linear` with `d_model` outputs, `[1, d_model]`, if it has one.
    pub(super) fn bias(&self, projection: &str, d_model: usize) -> Option<Tensor<B, 2>> {
        let named = self.0.get(&join_name(projection, "bias"))?;
        Some(named.tensor.to_rank([1, d_model]))
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::*;

    #[test]
    fn a_projection_that_is_not_there_is_named_and_a_bias_may_be_missing() {
        let mut tensors = TensorSet::new();
        let weight =
            Tensor::<Flex, 2>::from_floats([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], &Default::default());
        tensors.insert("out.weight", "Linear", weight);
        let teacher = TeacherTensors(tensors);
        let found = teacher.weight("out", 3).unwrap();
        assert_eq!((found.nrows(), found[(1, 0)]), (2, 4.0));
        assert!(teacher.bias("out", 3).is_none());
        let error = teacher.weight("output", 3).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("no tensor output.weight:"), "{message}");
    }
}
