//! `summary.json`: a run in figures.

use burn_lti::calibration::LayerReport;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::progress::{Phase, PhaseEnd, RunProgress};
use crate::eval::Evaluation;
use crate::plan::{Plan, StepFlops};
use crate::recipe::Recipe;

/// Why a student was exported and no other of its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// Its held-out KL was the lowest that was found, the start's included.
    Best,
    /// It is that of the last step, as was asked for.
    Last,
}

/// A finished run. What could not be measured is absent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    /// Held-out KL before the first step, nats per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_start: Option<f64>,
    /// Held-out KL when the maps were folded away to train on without them, nats per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_maps: Option<f64>,
    /// Held-out KL of the exported student, nats per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_end: Option<f64>,
    /// Held-out cross-entropy of the exported student, nats per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student_ce: Option<f64>,
    /// Held-out cross-entropy of the teacher, nats per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_ce: Option<f64>,
    /// Held-out tokens at which both would choose alike, as a share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top1_agreement: Option<f64>,
    /// Held-out tokens of the evaluations.
    pub eval_tokens: u64,
    /// Training tokens that had a target.
    pub tokens: u64,
    /// Optimizer steps.
    pub steps: usize,
    /// Why there were no more of them.
    pub ending: PhaseEnd,
    /// The step whose student was exported; 0 is the start.
    pub student_step: usize,
    /// Why that one.
    pub kept: Kept,
    /// How often training went back to its best weights, in the last phase.
    pub rollbacks: usize,
    /// Wall time of the training loop.
    pub seconds: f64,
    /// `tokens / seconds`
    pub tokens_per_second: f64,
    /// Floating-point operations of the steps, counted from the configurations, by the training loop's
    /// seconds.
    pub flops_per_second: f64,
    /// Wall time of the whole run, evaluations and export included.
    pub total_seconds: f64,
    /// Largest resident memory of the process so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_rss_bytes: Option<u64>,
    /// Parameters that trained, in the last phase.
    pub trainable_parameters: usize,
    /// Parameters of the exported student.
    pub student_parameters: usize,
    /// Parameters of the teacher.
    pub teacher_parameters: usize,
    /// Bytes of the exported student's key/value cache per token, in float32.
    pub student_kv_cache_bytes_per_token: usize,
    /// Bytes of the teacher's key/value cache per token, in float32.
    pub teacher_kv_cache_bytes_per_token: usize,
    /// Largest difference between the logits of the model as trained and as reloaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collapse_max_abs_logit_diff: Option<f64>,
    /// Seed of the run.
    pub seed: u64,
    /// How each layer's start was calibrated; empty with other starts, and where a run went on without its file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerReport>,
}

impl Summary {
    /// What the plan and the progress of a run say. What only its end does is left at the last step and at
    /// zero.
    pub(super) fn new(
        recipe: &Recipe,
        plan: &Plan,
        progress: &RunProgress,
        end: &Evaluation,
    ) -> Self {
        let counts = progress.log.counts;
        Self {
            kl_start: progress.start.kl,
            kl_maps: progress.maps.and_then(|maps| maps.kl),
            kl_end: end.kl,
            student_ce: end.student_ce,
            teacher_ce: end.teacher_ce,
            top1_agreement: end.top1_agreement,
            eval_tokens: end.tokens,
            tokens: counts.tokens as u64,
            steps: counts.steps,
            ending: progress.end.unwrap_or(PhaseEnd::Finished),
            seconds: counts.seconds,
            student_step: counts.steps,
            kept: Kept::Best,
            rollbacks: progress.held_out.rollbacks,
            tokens_per_second: counts.tokens / counts.seconds,
            flops_per_second: flops(plan, progress) / counts.seconds,
            total_seconds: 0.0,
            peak_rss_bytes: peak_rss_bytes(),
            trainable_parameters: 0,
            student_parameters: plan.totals.student_parameters,
            teacher_parameters: plan.totals.teacher_parameters,
            student_kv_cache_bytes_per_token: plan.totals.student_kv_cache_bytes_per_token,
            teacher_kv_cache_bytes_per_token: plan.totals.teacher_kv_cache_bytes_per_token,
            collapse_max_abs_logit_diff: None,
            seed: recipe.train.seed,
            layers: Vec::new(),
        }
    }

    /// How the run ended whose `summary.json` this is, and after how many steps; `None` if it is none.
    pub(super) fn ending_in(text: &[u8]) -> Option<(PhaseEnd, usize)> {
        #[derive(Deserialize)]
        struct Ended {
            ending: PhaseEnd,
            steps: usize,
        }
        let Ended { ending, steps } = serde_json::from_slice(text).ok()?;
        Some((ending, steps))
    }

    /// The summary as it is written to `summary.json`.
    pub fn to_json(&self) -> Value {
        // A struct of numbers always serializes; a number that is not finite becomes null.
        serde_json::to_value(self).unwrap_or_default()
    }
}

/// Of all steps taken, in both phases.
fn flops(plan: &Plan, progress: &RunProgress) -> f64 {
    let of_phase = |steps: usize, flops: &StepFlops| steps as f64 * flops.total();
    let first = &plan.totals.step_flops;
    match (progress.phase, &plan.phase2) {
        (Phase::Second, Some(phase2)) => {
            of_phase(progress.phase_begins, first) + of_phase(progress.taken(), &phase2.step_flops)
        }
        _ => of_phase(progress.taken(), first),
    }
}

/// The kernel's own account of the process, where there is one.
fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
