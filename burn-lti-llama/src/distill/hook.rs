//! What happens between the steps of a run: metrics, evaluations, checkpoints, and the decision to go on.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::data::dataloader::DataLoader;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::decoder::TokenBatch;
use burn_lti::train::{Checkpoint, CheckpointDir, Ending, RunState, StepHook, StepReport};
use serde::{Deserialize, Serialize};

use super::metrics::{LogState, MetricsLog};
use super::training::{Pupil, PupilOptimizer, Student};
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

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    /// What `lti.train` says: the maps, as a rule.
    First,
    /// What `[phase2]` says: a student without maps.
    Second,
}

impl Phase {
    /// As it stands in the metrics.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Second => "second",
        }
    }
}

/// Why a phase took no more steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PhaseEnd {
    /// It took them all.
    Finished,
    /// The training loss had stopped falling.
    Plateau,
    /// The held-out KL had stopped falling.
    Patience,
    /// Someone asked it to stop.
    Interrupted,
}

/// Where a run stands, as a checkpoint keeps it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) phase: Phase,
    /// The step of the run after which the phase began.
    pub(super) phase_begins: usize,
    /// Why the phase is over, if it is.
    pub(super) end: Option<PhaseEnd>,
    /// The student before the first step of the run.
    pub(super) start: Evaluation,
    /// The student when the second phase began.
    pub(super) maps: Option<Evaluation>,
    /// The lowest held-out KL of the phase, and how many evaluations there were since.
    best: Option<f64>,
    since_best: usize,
    /// Losses of the last steps of the phase, as many as `plateau` looks at.
    losses: Vec<f64>,
    pub(super) log: LogState,
}

impl Place {
    /// Before the first step of a run.
    pub(super) fn begin(start: Evaluation) -> Self {
        Self {
            phase: Phase::First,
            phase_begins: 0,
            end: None,
            start,
            maps: None,
            best: None,
            since_best: 0,
            losses: Vec::new(),
            log: LogState::default(),
        }
    }

    /// Before the first step of the second phase.
    pub(super) fn second_phase(self, maps: Evaluation) -> Self {
        Self {
            phase: Phase::Second,
            phase_begins: self.log.counts.steps,
            end: None,
            maps: Some(maps),
            best: None,
            since_best: 0,
            losses: Vec::new(),
            ..self
        }
    }

    /// Where the run stood at `checkpoint`.
    pub(super) fn at(checkpoint: &Checkpoint) -> Result<Self, DistillError> {
        serde_json::from_value(checkpoint.run().caller.clone()).map_err(|source| {
            DistillError::Place {
                checkpoint: checkpoint.path().to_owned(),
                source,
            }
        })
    }

    /// Steps of the phase taken.
    pub(super) fn taken(&self) -> usize {
        self.log.counts.steps - self.phase_begins
    }

    /// The loss of one more step; whether the last window's mean is hardly below that of the one before.
    fn is_flat(&mut self, loss: Option<f64>, plateau: Option<Plateau>) -> bool {
        let Some((loss, plateau)) = loss.zip(plateau) else {
            return false;
        };
        self.losses.push(loss);
        if self.losses.len() < 2 * plateau.window {
            return false;
        }
        let excess = self.losses.len() - 2 * plateau.window;
        self.losses.drain(..excess);
        let (before, last) = self.losses.split_at(plateau.window);
        let (before, last): (f64, f64) = (before.iter().sum(), last.iter().sum());
        last > before * (1.0 - plateau.improvement)
    }

    /// The held-out KL of one more evaluation; whether patience is at its end.
    fn is_worn_out(&mut self, kl: Option<f64>, patience: Option<usize>) -> bool {
        let Some(kl) = kl else {
            return false;
        };
        if self.best.is_none_or(|best| kl < best) {
            self.best = Some(kl);
            self.since_best = 0;
        } else {
            self.since_best += 1;
        }
        patience.is_some_and(|patience| self.since_best >= patience)
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
    pub(super) place: Place,
    pub(super) log: MetricsLog,
    pub(super) checkpoints: CheckpointDir,
    pub(super) optimizer: PupilOptimizer<A, M>,
    pub(super) teacher: Arc<PlainLlama<A::InnerBackend>>,
    pub(super) valid: Arc<dyn DataLoader<A::InnerBackend, TokenBatch<A::InnerBackend>>>,
    pub(super) listener: Listener,
    pub(super) interrupt: Interrupt,
    /// What went wrong between two steps, which ended the phase.
    pub(super) failure: Option<DistillError>,
}

impl<A: AutodiffBackend, M: Student<A>> StepHook<Pupil<A, M>> for Hook<A, M> {
    fn on_step(&mut self, report: &StepReport, model: &Pupil<A, M>) -> ControlFlow<()> {
        let is_flat = self
            .place
            .is_flat(report.sums.loss_mean(), self.rules.plateau);
        self.place.end = if report.ending == Some(Ending::Finished) {
            Some(PhaseEnd::Finished)
        } else if self.interrupt.is_asked() {
            Some(PhaseEnd::Interrupted)
        } else {
            is_flat.then_some(PhaseEnd::Plateau)
        };
        let report = StepReport {
            step: self.place.phase_begins + report.step,
            // The last step has a line of its own. One at which a run is interrupted is not the last.
            ending: match self.place.end {
                Some(PhaseEnd::Interrupted) | None => None,
                Some(_) => Some(Ending::Finished),
            },
            ..*report
        };
        self.log.step(&report);
        self.failure = self.save_if_due(report.step, model).err();
        match (self.place.end, &self.failure) {
            (None, None) => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    }
}

impl<A: AutodiffBackend, M: Student<A>> Hook<A, M> {
    /// Every so many steps and at the end of a phase, if checkpoints are kept; when interrupted in any
    /// case.
    fn save_if_due(&mut self, step: usize, model: &Pupil<A, M>) -> Result<(), DistillError> {
        let every = self.rules.checkpoint_every;
        let is_interrupted = self.place.end == Some(PhaseEnd::Interrupted);
        let is_due = every.is_some_and(|every| step.is_multiple_of(every));
        let is_over = self.place.end.is_some();
        if !(is_due || is_interrupted || (is_over && every.is_some())) {
            if is_over {
                self.place.log = self.log.state()?;
            }
            return Ok(());
        }
        // Whoever interrupts is waiting.
        let score = match is_interrupted && !is_due {
            true => None,
            false => self.evaluate(step, model).kl,
        };
        if self.place.is_worn_out(score, self.rules.patience) {
            self.place.end = self.place.end.or(Some(PhaseEnd::Patience));
        }
        self.place.log = self.log.state()?;
        let state = RunState {
            step,
            score,
            // Numbers and names alone.
            caller: serde_json::to_value(&self.place).unwrap_or_default(),
        };
        self.checkpoints.save(model, &self.optimizer, state)?;
        (self.listener)(Event::Saved(step));
        Ok(())
    }

    fn evaluate(&mut self, step: usize, model: &Pupil<A, M>) -> Evaluation {
        let student = model.student().valid();
        let teacher = self.teacher.as_ref();
        let evaluation = evaluate(&student, teacher, &self.valid, |_, _| {});
        self.log.evaluation(step, &evaluation);
        evaluation
    }
}
