//! [`AwaitingTeacher`]: a learning model that nobody can run yet.

use burn::prelude::*;

use super::{fill, inject};
use crate::blueprint::{Blueprint, BlueprintError, Listed, Rules};
use crate::tensors::TensorSet;

/// A learning model whose teacher kernels and copied weights have not arrived.
///
/// Its maps exist, everything else is a promise of a shape. The only way on is
/// [`inject`](Self::inject) or [`fill`](Self::fill), so no model without a teacher is ever run.
#[derive(Debug)]
pub struct AwaitingTeacher<M> {
    model: M,
}

impl<M> AwaitingTeacher<M> {
    /// Wraps a learning model made by [`learn_to_init`](crate::decoder::learn_to_init).
    pub const fn new(model: M) -> Self {
        Self { model }
    }

    /// The model's tensors, none of which is allocated by listing it.
    pub fn listed<B: Backend>(&self) -> Vec<Listed>
    where
        M: Module<B>,
    {
        Listed::all(&self.model)
    }

    /// Brings the teacher in by rules. See [`inject`].
    ///
    /// # Errors
    ///
    /// As [`inject`].
    pub fn inject<B: Backend>(
        self,
        teacher: &TensorSet<B>,
        rules: &Rules,
    ) -> Result<(M, Blueprint), BlueprintError>
    where
        M: Module<B>,
    {
        inject(self.model, teacher, rules)
    }

    /// Brings the teacher in by a blueprint. See [`fill`].
    ///
    /// # Errors
    ///
    /// As [`fill`].
    pub fn fill<B: Backend>(
        self,
        teacher: &TensorSet<B>,
        blueprint: &Blueprint,
    ) -> Result<M, BlueprintError>
    where
        M: Module<B>,
    {
        fill(self.model, teacher, blueprint)
    }
}
