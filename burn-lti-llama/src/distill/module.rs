//! What a phase trains: a student beside its teacher, and the optimizer of both.

use std::sync::Arc;

use burn::module::AutodiffModule;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::decoder::{CausalLm, LayeredDecoder};
use burn_lti::train::{Adam, Distiller, StudentOptimizer};

use super::inputs::TrainingTeacher;

/// What can be trained here.
pub(super) trait Student<A: AutodiffBackend>:
    CausalLm<A> + AutodiffModule<A, InnerModule: LayeredDecoder<A::InnerBackend>> + 'static
{
}

impl<A, M> Student<A> for M
where
    A: AutodiffBackend,
    M: CausalLm<A> + AutodiffModule<A, InnerModule: LayeredDecoder<A::InnerBackend>> + 'static,
{
}

/// A student and the teacher that it learns from.
pub(super) type DistillationModule<A, M> =
    Distiller<A, M, Arc<TrainingTeacher<<A as AutodiffBackend>::InnerBackend>>>;

/// AdamW on all trained parameters; those that are one variable stay one, and ranks of maps wait until
/// they are active.
pub(super) type ModuleOptimizer<A> = StudentOptimizer<Adam<A>>;
