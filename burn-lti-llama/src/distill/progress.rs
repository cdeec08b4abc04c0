//! [`RunProgress`]: where a run stands, and whether its phase is over.

use burn_lti::train::Checkpoint;
use serde::{Deserialize, Serialize};

use super::DistillError;
use super::metrics::LogState;
use crate::eval::Evaluation;
use crate::recipe::Plateau;

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
pub(super) struct RunProgress {
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

impl RunProgress {
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
            DistillError::Foreign {
                file: checkpoint.path().to_owned(),
                reason: "does not say where its run stood: it was saved by another program",
                source,
            }
        })
    }

    /// Steps of the phase taken.
    pub(super) fn taken(&self) -> usize {
        self.log.counts.steps - self.phase_begins
    }

    /// The loss of one more step; whether the last window's mean is hardly below that of the one before.
    pub(super) fn is_flat(&mut self, loss: Option<f64>, plateau: Option<Plateau>) -> bool {
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

    /// The held-out KL of one more evaluation; whether patience is exhausted.
    pub(super) fn is_patience_exhausted(
        &mut self,
        kl: Option<f64>,
        patience: Option<usize>,
    ) -> bool {
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
