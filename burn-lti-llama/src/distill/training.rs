//! The training of a run, under Burn's Learner.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use burn::module::{AutodiffModule, Module, ModuleVisitor, Param};
use burn::optim::AdamWConfig;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn::train::logger::InMemoryMetricLogger;
use burn::train::{Learner, SupervisedTraining, TrainingStrategy};
use burn_lti::decoder::CausalLm;
use burn_lti::loss::DistillationLoss;
use burn_lti::train::{Distiller, GlobalNormClip, SilentRenderer, StepStrategy, WarmupCosine};

use super::metrics::{Counts, MetricsLog};
use super::{DistillError, Listener, OutputDir, Setting};
use crate::data::loader;
use crate::recipe::{Recipe, TrainSection};

/// A trained student and what it took.
pub(super) struct TrainedStudent<M> {
    pub(super) student: M,
    pub(super) counts: TrainingCounts,
}

/// What a training went through, and how much of the model it moved.
#[derive(Clone, Copy, Debug)]
pub(super) struct TrainingCounts {
    pub(super) counts: Counts,
    pub(super) trainable_parameters: usize,
}

/// Trains `student` against the teacher as the recipe says.
pub(super) fn train<A, M>(
    student: M,
    setting: &Setting<A>,
    recipe: &Recipe,
    device: &A::Device,
    out: &OutputDir,
    listener: &Listener,
) -> Result<TrainedStudent<M::InnerModule>, DistillError>
where
    A: AutodiffBackend,
    M: CausalLm<A> + AutodiffModule<A, InnerModule: CausalLm<A::InnerBackend>> + 'static,
{
    let settings = &recipe.train;
    let trainable_parameters = count_trainable(&student);
    let loss = DistillationLoss::new(
        recipe.loss.alpha,
        recipe.loss.temperature,
        recipe.loss.chunk_tokens,
    )?;
    let distiller = Distiller::new(student, setting.teacher.clone(), loss)?;
    let optimizer = GlobalNormClip::new(
        adamw(settings).init::<A, Distiller<A, M, _>>(),
        settings.grad_clip,
    );
    let norm = optimizer.norm();

    let log = Arc::new(Mutex::new(MetricsLog::new(
        out.metrics_file()?,
        settings.log_every,
        settings.steps,
        listener.clone(),
    )));
    let strategy = StepStrategy::new(settings.steps, log.clone())
        .with_norm(norm)
        .without_validation();
    let error = strategy.error();
    let batches = loader(
        setting.train.clone(),
        settings.batch_size,
        Some(settings.seed),
        device,
    );
    let result = SupervisedTraining::new(Path::new(""), batches, setting.valid.clone())
        .with_application_logger(None)
        .with_metric_logger(InMemoryMetricLogger::default())
        .renderer(SilentRenderer)
        .with_training_strategy(TrainingStrategy::Custom(Arc::new(strategy)))
        .launch(Learner::new(distiller, optimizer, schedule(settings)));

    if let Some(error) = error.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(error.into());
    }
    let counts = log
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .finish()
        .map_err(|source| DistillError::Output {
            path: out.metrics_path(),
            source,
        })?;
    Ok(TrainedStudent {
        student: result.model.into_student(),
        counts: TrainingCounts {
            counts,
            trainable_parameters,
        },
    })
}

fn adamw(settings: &TrainSection) -> AdamWConfig {
    let [beta_1, beta_2] = settings.betas;
    AdamWConfig::new()
        .with_beta_1(beta_1 as f32)
        .with_beta_2(beta_2 as f32)
        .with_epsilon(settings.eps as f32)
        .with_weight_decay(settings.weight_decay as f32)
}

fn schedule(settings: &TrainSection) -> WarmupCosine {
    let warmup = (settings.warmup_fraction * settings.steps as f64) as usize;
    WarmupCosine::new(
        settings.learning_rate,
        settings.steps,
        warmup,
        settings.final_lr_fraction,
    )
}

/// Elements of all parameters that train.
fn count_trainable<B: Backend, M: Module<B>>(module: &M) -> usize {
    struct Count(usize);
    impl<B: Backend> ModuleVisitor<B> for Count {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if param.is_require_grad() {
                self.0 += param.shape().num_elements();
            }
        }
    }
    let mut count = Count(0);
    module.visit(&mut count);
    count.0
}
