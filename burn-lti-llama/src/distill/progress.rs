//! [`RunProgress`]: where a run stands, and whether its phase is over.

use burn_lti::train::Checkpoint;
use serde::{Deserialize, Serialize};

use super::DistillError;
use super::metrics::LogState;
use super::written::Written;
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
    /// The loss was no number, again and again.
    NotFinite,
    /// Someone asked it to stop.
    Interrupted,
}

/// How a phase does on a small part of the held-out text, which is the same throughout. A KL that is no
/// number is absent, and worse than any.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct HeldOut {
    /// Before the first step of the phase.
    start: Option<f64>,
    /// The last one.
    last: Option<f64>,
    /// The lowest so far, and the step of the run after which it was found.
    pub(super) best: Option<f64>,
    pub(super) best_step: usize,
    /// Evaluations since.
    since_best: usize,
    /// How often the phase went back to its best weights.
    pub(super) rollbacks: usize,
}

/// What an evaluation says of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// No weights were better so far.
    Best,
    /// Not the best, and no worse than the phase began.
    Fair,
    /// Worse than the phase began.
    Worse,
}

impl HeldOut {
    /// How often a phase goes back at most.
    pub(super) const ROLLBACKS: usize = 3;
    /// A KL above the start's by less than this part of it, or this many nats, is the start's.
    const NOISE: (f64, f64) = (0.01, 1e-4);

    fn begin(kl: Option<f64>, step: usize) -> Self {
        Self {
            start: kl,
            last: kl,
            best: kl,
            best_step: step,
            since_best: 0,
            rollbacks: 0,
        }
    }

    /// The KL after one more step.
    pub(super) fn judge(&mut self, kl: Option<f64>, step: usize) -> Verdict {
        self.last = kl;
        if kl.is_some_and(|kl| self.best.is_none_or(|best| kl < best)) {
            self.best = kl;
            self.best_step = step;
            self.since_best = 0;
            return Verdict::Best;
        }
        self.since_best += 1;
        let (part, nats) = Self::NOISE;
        let worst = self.start.map(|start| start + (part * start).max(nats));
        match (kl, worst) {
            (None, Some(_)) => Verdict::Worse,
            (Some(kl), Some(worst)) if kl > worst => Verdict::Worse,
            _ => Verdict::Fair,
        }
    }

    /// Whether there was a number to begin with and none in the end.
    pub(super) fn is_lost(&self) -> bool {
        self.start.is_some() && self.last.is_none()
    }

    /// Whether that is so, and nothing was better between.
    pub(super) fn diverged(&self) -> bool {
        self.is_lost() && self.best == self.start
    }

    /// Whether so many evaluations brought nothing better.
    pub(super) fn is_patience_exhausted(&self, patience: Option<usize>) -> bool {
        patience.is_some_and(|patience| self.since_best >= patience)
    }

    /// Goes back once more, unless it was too often.
    pub(super) fn roll_back(&mut self) -> bool {
        let may = self.rollbacks < Self::ROLLBACKS;
        self.rollbacks += usize::from(may);
        // These are the weights that the phase has again.
        self.last = self.best;
        may
    }

    /// What the rate is multiplied by: a third for each time that the phase went back.
    pub(super) fn rate_factor(&self) -> f64 {
        3.0_f64.powi(-(self.rollbacks as i32))
    }
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
    /// The step whose student that was.
    pub(super) maps_step: usize,
    /// How the phase does on held-out text.
    pub(super) held_out: HeldOut,
    /// Losses of the last steps of the phase, as many as `plateau` looks at.
    losses: Vec<f64>,
    pub(super) log: LogState,
    /// In a checkpoint: what the student has written for steps that were not taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) on_policy: Option<Written>,
}

impl RunProgress {
    /// Before the first step of a run, with the KL on the part that is watched.
    pub(super) fn begin(start: Evaluation, watched: Option<f64>) -> Self {
        Self {
            phase: Phase::First,
            phase_begins: 0,
            end: None,
            start,
            maps: None,
            maps_step: 0,
            held_out: HeldOut::begin(watched, 0),
            losses: Vec::new(),
            log: LogState::default(),
            on_policy: None,
        }
    }

    /// Before the first step of the second phase, which begins with the student of step `maps_step`, of
    /// that KL on the part that is watched.
    pub(super) fn second_phase(
        self,
        maps: Evaluation,
        watched: Option<f64>,
        maps_step: usize,
    ) -> Self {
        let phase_begins = self.log.counts.steps;
        Self {
            phase: Phase::Second,
            phase_begins,
            end: None,
            maps: Some(maps),
            maps_step,
            held_out: HeldOut::begin(watched, phase_begins),
            losses: Vec::new(),
            on_policy: None,
            ..self
        }
    }

    /// Where the run stood at `checkpoint`.
    pub(super) fn at(checkpoint: &Checkpoint) -> Result<Self, DistillError> {
        serde_json::from_value(checkpoint.run().caller.clone()).map_err(|source| {
            DistillError::Foreign {
                file: checkpoint.path().to_owned(),
                reason: "does not say where its run stood: it was saved by another program",
                source: Box::new(source),
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_evaluation_is_judged_by_the_best_and_by_the_start() {
        let mut held_out = HeldOut::begin(Some(0.5), 0);
        for (step, kl, verdict) in [
            (1, Some(0.505), Verdict::Fair),
            (2, Some(0.4), Verdict::Best),
            (3, Some(0.4), Verdict::Fair),
            (4, Some(0.506), Verdict::Worse),
            (5, None, Verdict::Worse),
        ] {
            assert_eq!(held_out.judge(kl, step), verdict, "step {step}");
        }
        assert_eq!((held_out.best, held_out.best_step), (Some(0.4), 2));
        assert!(held_out.is_patience_exhausted(Some(3)));
        assert!(!held_out.is_patience_exhausted(Some(4)));
        assert!(!held_out.is_patience_exhausted(None));
    }

    #[test]
    fn a_start_that_is_no_number_is_bettered_by_any() {
        let mut held_out = HeldOut::begin(None, 0);
        assert_eq!(held_out.judge(None, 1), Verdict::Fair);
        assert_eq!(held_out.judge(Some(9.0), 2), Verdict::Best);
    }

    #[test]
    fn each_rollback_takes_a_third_of_the_rate() {
        let mut held_out = HeldOut::begin(Some(0.5), 0);
        assert_eq!(held_out.rate_factor(), 1.0);
        assert!(held_out.roll_back() && held_out.roll_back());
        assert!((held_out.rate_factor() - 1.0 / 9.0).abs() < 1e-15);
        assert!(held_out.roll_back() && !held_out.roll_back());
    }
}
