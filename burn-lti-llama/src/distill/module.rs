//! What a phase trains: a student beside its teacher, and the optimizer of both.

use std::sync::Arc;

use burn::module::AutodiffModule;
use burn::optim::AdamW;
use burn::optim::adaptor::OptimizerAdaptor;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::decoder::CausalLm;
use burn_lti::train::{Distiller, StudentOptimizer};

use super::inputs::TrainingTeacher;

/// What can be trained here.
pub(super) trait Student<A: AutodiffBackend>:
    CausalLm<A> + AutodiffModule<A, InnerModule: CausalLm<A::InnerBackend>> + 'static
{
}

impl<A, M> Student<A> for M
where
    A: AutodiffBackend,
    M: CausalLm<A> + AutodiffModule<A, InnerModule: CausalLm<A::InnerBackend>> + 'static,
{
}

/// A student and the teacher that it learns from.
pub(super) type DistillationModule<A, M> =
    Distiller<A, M, Arc<TrainingTeacher<<A as AutodiffBackend>::InnerBackend>>>;

/// AdamW on all trained parameters, clipped by their global norm; those that are one variable stay one,
/// and ranks of maps wait until they are active.
pub(super) type ModuleOptimizer<A, M> =
    StudentOptimizer<OptimizerAdaptor<AdamW, DistillationModule<A, M>, A>>;
