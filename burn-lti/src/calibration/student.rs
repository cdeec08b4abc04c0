//! The student while its start is calculated: made once, and filled with the values of each step.

use burn::module::AutodiffModule;
use burn::tensor::backend::AutodiffBackend;

use super::error::{CalibrationError, Result};
use crate::decoder::LayeredDecoder;
use crate::inject::refill;
use crate::tensors::TensorSet;

/// The student, and the tensors that it has from its start.
#[derive(Clone)]
pub(super) struct Student<A: AutodiffBackend, S> {
    pub(super) module: S,
    pub(super) start: TensorSet<A::InnerBackend>,
    teacher: TensorSet<A>,
    /// What lies along the outputs of a projection, and follows its map.
    gains: Vec<(String, String)>,
}

impl<A: AutodiffBackend, S: LayeredDecoder<A> + AutodiffModule<A>> Student<A, S> {
    pub(super) fn new(
        module: S,
        start: TensorSet<A::InnerBackend>,
        teacher: &TensorSet<A::InnerBackend>,
    ) -> Self {
        Self {
            gains: module.gains(),
            module,
            start,
            teacher: TensorSet::from_inner(teacher),
        }
    }

    /// The same with other values in the tensors that `changed` names.
    pub(super) fn filled(self, changed: &TensorSet<A::InnerBackend>) -> Result<Self> {
        let changes = TensorSet::from_inner(changed);
        let module = refill(self.module, &changes, &self.teacher, &self.gains);
        Ok(Self {
            module: module.map_err(CalibrationError::student)?,
            start: self.start.with(changed),
            teacher: self.teacher,
            gains: self.gains,
        })
    }

    /// On the inner backend, for what needs no gradient.
    pub(super) fn valid(&self) -> S::InnerModule {
        self.module.valid()
    }
}
