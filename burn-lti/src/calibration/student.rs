//! The student while its start is calculated: made once, and filled with the values of each step.

use burn::module::AutodiffModule;
use burn::tensor::backend::AutodiffBackend;

use super::error::{CalibrationError, Result};
use crate::inject::refill;
use crate::tensors::TensorSet;

/// The student, and the tensors that it has from its start.
#[derive(Clone)]
pub(super) struct Student<A: AutodiffBackend, S> {
    pub(super) module: S,
    pub(super) start: TensorSet<A::InnerBackend>,
    teacher: TensorSet<A>,
}

impl<A: AutodiffBackend, S: AutodiffModule<A>> Student<A, S> {
    pub(super) fn new(
        module: S,
        start: TensorSet<A::InnerBackend>,
        teacher: &TensorSet<A::InnerBackend>,
    ) -> Self {
        Self {
            module,
            start,
            teacher: TensorSet::from_inner(teacher),
        }
    }

    /// The same with other values in the tensors that `changed` names.
    pub(super) fn filled(self, changed: &TensorSet<A::InnerBackend>) -> Result<Self> {
        let module = refill(self.module, &TensorSet::from_inner(changed), &self.teacher);
        Ok(Self {
            module: module.map_err(CalibrationError::student)?,
            start: self.start.with(changed),
            teacher: self.teacher,
        })
    }

    /// On the inner backend, for what needs no gradient.
    pub(super) fn valid(&self) -> S::InnerModule {
        self.module.valid()
    }
}
