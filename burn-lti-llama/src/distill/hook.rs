//! What happens between the steps of a run: metrics, evaluations, checkpoints, and the decision to go on.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use burn::data::dataloader::DataLoader;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::decoder::TokenBatch;
use burn_lti::files::FolderLock;
use burn_lti::train::{CheckpointDir, Ending, RunState, StepHook, StepReport, TrainError};

use super::interrupt::Interrupt;
use super::metrics::MetricsLog;
use super::module::{DistillationModule, ModuleOptimizer, Student, Writer};
use super::on_policy::OnPolicy;
use super::progress::{HeldOut, Phase, PhaseEnd, RunProgress, Verdict};
use super::schedule::PhaseSchedule;
use super::{DistillError, Event, Listener, OutputDir};
use crate::eval::{Evaluation, evaluate};
use crate::model::PlainLlama;
use crate::recipe::{Plateau, Recipe};

/// When to evaluate, to save and to stop.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) eval_every: usize,
    pub(super) checkpoint_every: Option<usize>,
    pub(super) patience: Option<usize>,
    pub(super) plateau: Option<Plateau>,
    /// Steps of the phase in which a student may be worse than the phase began.
    pub(super) warmup: usize,
}

impl Rules {
    pub(super) fn new(recipe: &Recipe, progress: &RunProgress, schedule: PhaseSchedule) -> Self {
        let (train, phase2) = (&recipe.train, &recipe.phase2);
        let phase2 = phase2.as_ref().filter(|_| progress.phase == Phase::First);
        Self {
            eval_every: train.eval_every(schedule.steps),
            checkpoint_every: train.checkpoint_every,
            patience: train.patience,
            plateau: phase2.and_then(|phase2| phase2.plateau),
            warmup: schedule.warmup,
        }
    }
}

/// Told of every step by the training loop.
pub(super) struct Hook<A: AutodiffBackend, M: Student<A>> {
    pub(super) rules: Rules,
    pub(super) progress: RunProgress,
    pub(super) log: MetricsLog,
    pub(super) checkpoints: CheckpointDir,
    pub(super) optimizer: ModuleOptimizer<A>,
    /// What the phase goes back to: the weights of `progress.held_out.best_step`.
    pub(super) best: DistillationModule<A, M>,
    pub(super) teacher: Arc<PlainLlama<A::InnerBackend>>,
    /// The part of the held-out text that is watched.
    pub(super) watched: Arc<dyn DataLoader<A::InnerBackend, TokenBatch<A::InnerBackend>>>,
    pub(super) listener: Listener,
    pub(super) interrupt: Interrupt,
    /// Where all is written, and the right to it.
    pub(super) out: OutputDir,
    pub(super) lock: Arc<FolderLock>,
    /// Who has the student write, while it trains, if anybody does.
    pub(super) on_policy: Option<OnPolicy>,
    /// The KL for which the phase has to go back.
    pub(super) setback: Option<Setback>,
    /// What went wrong between two steps, which ended the phase.
    pub(super) failure: Option<DistillError>,
}

/// Why a phase goes back to its best weights.
#[derive(Clone, Debug)]
pub(super) enum Setback {
    /// The held-out KL after this step is worse than the phase began.
    Worse { step: usize, kl: Option<f64> },
    /// The loss, or its gradient, was no number: the training's own words, and the sequences of the step.
    NotFinite { error: TrainError, rows: Vec<usize> },
}

impl fmt::Display for Setback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Worse { step, kl: Some(kl) } => write!(
                f,
                "the held-out KL after step {step} is {kl:.4}, above that of the start"
            ),
            Self::Worse { step, kl: None } => {
                write!(f, "the held-out KL after step {step} is no number")
            }
            Self::NotFinite { error, rows } => {
                write!(
                    f,
                    "{error}; it learned from the sequences {rows:?} of the training text"
                )
            }
        }
    }
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
        self.failure = self.out.check_in_place(&self.lock).err();
        if self.failure.is_none() {
            self.log.step(&report);
            self.failure = self.evaluate_and_save(report.step, model).err();
        }
        if let (None, None, None) = (self.progress.end, &self.setback, &self.failure) {
            self.failure = self.write_ahead(report.step, model).err();
        }
        match (self.progress.end, &self.setback, &self.failure) {
            (None, None, None) => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    }
}

impl<A: AutodiffBackend, M: Student<A>> Hook<A, M> {
    /// What is due after a step. At the end of a phase, both, unless nobody keeps checkpoints; when
    /// interrupted, only a checkpoint, for whoever interrupts is waiting.
    fn evaluate_and_save(
        &mut self,
        step: usize,
        model: &DistillationModule<A, M>,
    ) -> Result<(), DistillError> {
        let Rules {
            eval_every,
            checkpoint_every,
            patience,
            plateau: _,
            warmup,
        } = self.rules;
        let is_interrupted = self.progress.end == Some(PhaseEnd::Interrupted);
        let is_over = self.progress.end.is_some();
        let checkpoint_due = checkpoint_every.is_some_and(|every| step.is_multiple_of(every));
        let mut saves = checkpoint_due || is_interrupted || (is_over && checkpoint_every.is_some());
        let mut score = None;
        let since = step - self.progress.phase_begins;
        if since.is_multiple_of(eval_every) || checkpoint_due || (is_over && !is_interrupted) {
            score = self.evaluate(step, model).kl;
            let held_out = &mut self.progress.held_out;
            match held_out.judge(score, step) {
                Verdict::Best => {
                    self.best = model.clone();
                    // What a resumed run goes back to has to be on the disk.
                    saves |= checkpoint_every.is_some();
                }
                Verdict::Worse
                    if !is_over && since >= warmup && held_out.rollbacks < HeldOut::ROLLBACKS =>
                {
                    self.setback = Some(Setback::Worse { step, kl: score });
                    return Ok(());
                }
                Verdict::Fair | Verdict::Worse => {}
            }
            if held_out.is_patience_exhausted(patience) {
                self.progress.end = self.progress.end.or(Some(PhaseEnd::Patience));
            }
        }
        if saves || self.progress.end.is_some() {
            self.progress.log = self.log.state()?;
        }
        if saves || (self.progress.end.is_some() && checkpoint_every.is_some()) {
            let taken = step - self.progress.phase_begins;
            let on_policy = self.on_policy.as_ref();
            let mut progress = self.progress.clone();
            progress.on_policy = on_policy.and_then(|on_policy| on_policy.left(taken));
            let state = RunState {
                step,
                score,
                // Numbers and names alone.
                caller: serde_json::to_value(&progress).unwrap_or_default(),
            };
            self.checkpoints.save(model, &self.optimizer, state)?;
            (self.listener)(Event::Saved(step));
        }
        Ok(())
    }

    /// Has the student of this step write for the next, if that is due.
    fn write_ahead(
        &mut self,
        step: usize,
        model: &DistillationModule<A, M>,
    ) -> Result<(), DistillError> {
        let taken = step - self.progress.phase_begins;
        let Some(on_policy) = &mut self.on_policy else {
            return Ok(());
        };
        Ok(on_policy.write(taken, || model.student().valid().into_writer())?)
    }

    fn evaluate(&mut self, step: usize, model: &DistillationModule<A, M>) -> Evaluation {
        let student = model.student().valid();
        let teacher = self.teacher.as_ref();
        let evaluation = evaluate(&student, teacher, &self.watched, |_, _| {});
        self.log.evaluation(step, &evaluation);
        evaluation
    }
}
