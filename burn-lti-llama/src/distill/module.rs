//! What a phase trains: a student beside its teacher, and the optimizer of both.

use std::sync::Arc;

use burn::module::AutodiffModule;
use burn::prelude::Backend;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::decoder::{CausalLm, LayeredDecoder, Project};
use burn_lti::train::{Adam, Distiller, StudentOptimizer};

use super::inputs::TrainingTeacher;
use crate::model::{Llama, PackedLlama};

/// What can be trained here.
pub(super) trait Student<A: AutodiffBackend>:
    CausalLm<A> + AutodiffModule<A, InnerModule: Writer<A::InnerBackend>> + 'static
{
}

impl<A, M> Student<A> for M
where
    A: AutodiffBackend,
    M: CausalLm<A> + AutodiffModule<A, InnerModule: Writer<A::InnerBackend>> + 'static,
{
}

/// A student that can write, its maps folded.
pub(super) trait Writer<B: Backend>: LayeredDecoder<B> {
    /// As [`Llama::packed`].
    fn into_writer(self) -> PackedLlama<B>;
}

impl<B: Backend, P: Project<B>, E: Project<B>> Writer<B> for Llama<B, P, E> {
    fn into_writer(self) -> PackedLlama<B> {
        self.packed()
    }
}

/// A student and the teacher that it learns from.
pub(super) type DistillationModule<A, M> =
    Distiller<A, M, Arc<TrainingTeacher<<A as AutodiffBackend>::InnerBackend>>>;

/// AdamW on all trained parameters; those that are one variable stay one, and ranks of maps wait until
/// they are active.
pub(super) type ModuleOptimizer<A> = StudentOptimizer<Adam<A>>;
