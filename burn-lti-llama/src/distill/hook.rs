//! What happens between the steps of a run: metrics, evaluations, checkpoints, and the decision to go on.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::data::dataloader::DataLoader;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::decoder::TokenBatch;
use burn_lti::train::{CheckpointDir, Ending, RunState, StepHook, StepReport};

use super::metrics::MetricsLog;
use super::module::{DistillationModule, ModuleOptimizer, Student};
use super::progress::{PhaseEnd, RunProgress};
use super::{DistillError, Event, Listener};
use crate::eval::{Evaluation, evaluate};
use crate::model::PlainLlama;
use crate::recipe::Plateau;

/// Asks a run to stop after the step under way. Clones ask the same run.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Asks.
    pub fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether someone has asked.
    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// When to save and when to stop.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) checkpoint_every: Option<usize>,
    pub(super) patience: Option<usize>,
    pub(super) plateau: Option<Plateau>,
}

/// Told of every step by the training loop.
pub(super) struct Hook<A: AutodiffBackend, M: Student<A>> {
    pub(super) rules: Rules,
    pub(super) progress: RunProgress,
    pub(super) log: MetricsLog,
    pub(super) checkpoints: CheckpointDir,
    pub(super) optimizer: ModuleOptimizer<A, M>,
    pub(super) teacher: Arc<PlainLlama<A::InnerBackend>>,
    pub(super) valid: Arc<dyn DataLoader<A::InnerBackend, TokenBatch<A::InnerBackend>>>,
    pub(super) listener: Listener,
    pub(super) interrupt: Interrupt,
    /// What went wrong between two steps, which ended the phase.
    pub(super) failure: Option<DistillError>,
}

impl<A: AutodiffBackend, M: Student<A>> StepHook<DistillationModule<A, M>> for Hook<A, M> {
    fn on_step(
        &mut self,
        report: &StepReport,
        model: &DistillationModule<A, M>,
    ) -> ControlFlow<()> {
        let is_flat = self
            .progress
            .is_flat(report.sums.loss_mean(), self.rules.plateau);
        self.progress.end = if report.ending == Some(Ending::Finished) {
            Some(PhaseEnd::Finished)
        } else if self.interrupt.is_asked() {
            Some(PhaseEnd::Interrupted)
        } else {
            is_flat.then_some(PhaseEnd::Plateau)
        };
        let report = StepReport {
            step: self.progress.phase_begins + report.step,
            // The last step has a line of its own. One at which a run is interrupted is not the last.
            ending: match self.progress.end {
                Some(PhaseEnd::Interrupted) | None => None,
                Some(_) => Some(Ending::Finished),
            },
            ..*report
        };
        self.log.step(&report);
        self.failure = self.save_if_due(report.step, model).err();
        match (self.progress.end, &self.failure) {
            (None, None) => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    }
}

impl<A: AutodiffBackend, M: Student<A>> Hook<A, M> {
    /// Every n-th step and at the end of a phase, if checkpoints are kept; when interrupted in any
    /// case.
    fn save_if_due(
        &mut self,
        step: usize,
        model: &DistillationModule<A, M>,
    ) -> Result<(), DistillError> {
        let every = self.rules.checkpoint_every;
        let is_interrupted = self.progress.end == Some(PhaseEnd::Interrupted);
        let is_due = every.is_some_and(|every| step.is_multiple_of(every));
        let is_over = self.progress.end.is_some();
        if !(is_due || is_interrupted || (is_over && every.is_some())) {
            if is_over {
                self.progress.log = self.log.state()?;
            }
            return Ok(());
        }
        // Whoever interrupts is waiting.
        let score = match is_interrupted && !is_due {
            true => None,
            false => self.evaluate(step, model).kl,
        };
        if self
            .progress
            .is_patience_exhausted(score, self.rules.patience)
        {
            self.progress.end = self.progress.end.or(Some(PhaseEnd::Patience));
        }
        self.progress.log = self.log.state()?;
        let state = RunState {
            step,
            score,
            // Numbers and names alone.
            caller: serde_json::to_value(&self.progress).unwrap_or_default(),
        };
        self.checkpoints.save(model, &self.optimizer, state)?;
        (self.listener)(Event::Saved(step));
        Ok(())
    }

    fn evaluate(&mut self, step: usize, model: &DistillationModule<A, M>) -> Evaluation {
        let student = model.student().valid();
        let teacher = self.teacher.as_ref();
        let evaluation = evaluate(&student, teacher, &self.valid, |_, _| {});
        self.log.evaluation(step, &evaluation);
        evaluation
    }
}
