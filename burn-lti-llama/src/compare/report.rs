//! Numbers of runs, brought together by start.
//!
//! What a run could not measure is absent here too: a mean is over the runs that have a value, and says
//! over how many.

use std::collections::BTreeMap;

use burn_lti::map::Start;
use serde::Serialize;
use serde_json::Value;

use crate::distill::{LoggedEvaluation, Summary};

/// What the runs of a comparison came to.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The seeds, with each of which a run was carried out from each start.
    pub seeds: Vec<u64>,
    /// `train.batch_size * train.seq_len`, of the shortest length: what a step counts in tokens seen. It is
    /// what a step asks for; padding counts, and so does what is missing from a shorter batch at the end
    /// of the text.
    pub tokens_per_step: usize,
    /// One report a start, in the order asked for.
    pub starts: Vec<StartReport>,
}

/// The runs from one start. Spreads are over its runs.
#[derive(Clone, Debug, Serialize)]
pub struct StartReport {
    /// The start.
    pub start: Start,
    /// Held-out KL before the first step, nats per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_start: Option<Spread>,
    /// Held-out KL of the exported student, nats per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_end: Option<Spread>,
    /// Held-out tokens at which student and teacher would choose alike, as a share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top1_agreement: Option<Spread>,
    /// Wall time of the training loop, evaluations on its way included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<Spread>,
    /// Training tokens seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_seen: Option<Spread>,
    /// Held-out KL on the way, by ascending step.
    pub curve: Vec<CurvePoint>,
    /// The runs, by ascending seed.
    pub runs: Vec<RunReport>,
}

/// One quantity over several runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The arithmetic mean.
    pub mean: f64,
    /// The least.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// The runs that have a value: those that have none are no part of the rest.
    pub runs: usize,
}

/// Held-out KL of the runs from one start, after one step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CurvePoint {
    /// The step; 0 before the first.
    pub step: usize,
    /// Training tokens seen.
    pub tokens_seen: usize,
    /// KL, nats per token, over those runs that were evaluated after this step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<Spread>,
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    /// Its folder, inside that of the comparison.
    pub folder: String,
    /// Training tokens seen.
    pub tokens_seen: usize,
    /// The run in figures.
    pub summary: Summary,
    /// What it found on held-out text on its way, by ascending step.
    pub curve: Vec<RunPoint>,
}

/// What one run found on held-out text after one step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RunPoint {
    /// The step; 0 before the first.
    pub step: usize,
    /// Training tokens seen.
    pub tokens_seen: usize,
    /// KL, nats per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// Tokens at which student and teacher would choose alike, as a share. A run does not keep that of
    /// its start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top1_agreement: Option<f64>,
    /// Cross-entropy of the student, nats per token. A run does not keep that of its start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student_ce: Option<f64>,
}

impl Comparison {
    /// All of it, as it is written to `compare.json`.
    pub fn to_json(&self) -> Value {
        // Numbers and names alone; a number that is not finite becomes null.
        serde_json::to_value(self).unwrap_or_default()
    }
}

impl Spread {
    /// Of the values that are there; `None` if none is.
    ///
    /// ```
    /// use burn_lti_llama::compare::Spread;
    ///
    /// let spread = Spread::of([Some(2.0), None, Some(4.0)]);
    /// assert_eq!(spread, Some(Spread { mean: 3.0, min: 2.0, max: 4.0, runs: 2 }));
    /// assert_eq!(Spread::of([None, None]), None);
    /// ```
    pub fn of(values: impl IntoIterator<Item = Option<f64>>) -> Option<Self> {
        let mut values = values.into_iter().flatten();
        let first = values.next()?;
        let (mut sum, mut min, mut max, mut runs) = (first, first, first, 1);
        for value in values {
            sum += value;
            min = min.min(value);
            max = max.max(value);
            runs += 1;
        }
        // Rounding must not carry the mean of equal values out of their range.
        let mean = (sum / runs as f64).clamp(min, max);
        Some(Self {
            mean,
            min,
            max,
            runs,
        })
    }
}

impl StartReport {
    /// Brings `runs` from `start` together.
    pub fn new(start: Start, runs: Vec<RunReport>) -> Self {
        let spread = |value: fn(&RunReport) -> Option<f64>| Spread::of(runs.iter().map(value));
        Self {
            start,
            kl_start: spread(|run| run.summary.kl_start),
            kl_end: spread(|run| run.summary.kl_end),
            top1_agreement: spread(|run| run.summary.top1_agreement),
            seconds: spread(|run| Some(run.summary.seconds)),
            tokens_seen: spread(|run| Some(run.tokens_seen as f64)),
            curve: curve(&runs),
            runs,
        }
    }
}

impl RunReport {
    /// A run in `folder`, which found `evaluations` on its way.
    pub fn new(
        folder: String,
        summary: Summary,
        evaluations: &[LoggedEvaluation],
        tokens_per_step: usize,
    ) -> Self {
        let start = RunPoint {
            step: 0,
            tokens_seen: 0,
            kl: summary.kl_start,
            top1_agreement: None,
            student_ce: None,
        };
        let point = |logged: &LoggedEvaluation| RunPoint {
            step: logged.step,
            tokens_seen: logged.step * tokens_per_step,
            kl: logged.evaluation.kl,
            top1_agreement: logged.evaluation.top1_agreement,
            student_ce: logged.evaluation.student_ce,
        };
        Self {
            folder,
            tokens_seen: summary.steps * tokens_per_step,
            curve: [start]
                .into_iter()
                .chain(evaluations.iter().map(point))
                .collect(),
            summary,
        }
    }
}

/// One point for each step after which a run was evaluated.
fn curve(runs: &[RunReport]) -> Vec<CurvePoint> {
    let mut steps: BTreeMap<(usize, usize), Vec<Option<f64>>> = BTreeMap::new();
    for point in runs.iter().flat_map(|run| &run.curve) {
        let step = (point.step, point.tokens_seen);
        steps.entry(step).or_default().push(point.kl);
    }
    let point = |((step, tokens_seen), values)| CurvePoint {
        step,
        tokens_seen,
        kl: Spread::of(values),
    };
    steps.into_iter().map(point).collect()
}

/// Comparisons for tests.
#[cfg(test)]
pub(super) mod fixture {
    use serde_json::json;

    use super::*;
    use crate::eval::Evaluation;

    pub(in crate::compare) const TOKENS_PER_STEP: usize = 100;

    /// A run whose held-out KL was this before the first step and after each 10 steps.
    pub(in crate::compare) fn run(start: Start, seed: u64, kl: &[Option<f64>]) -> RunReport {
        let evaluation = |kl| Evaluation {
            kl,
            student_ce: kl.map(|kl| kl + 1.0),
            teacher_ce: Some(1.0),
            student_perplexity: None,
            teacher_perplexity: None,
            top1_agreement: kl.map(|kl| 1.0 / (1.0 + kl)),
            tokens: 64,
        };
        let evaluations: Vec<LoggedEvaluation> = kl
            .iter()
            .enumerate()
            .skip(1)
            .map(|(index, kl)| LoggedEvaluation {
                step: 10 * index,
                evaluation: evaluation(*kl),
            })
            .collect();
        let last = evaluations
            .last()
            .map_or(evaluation(kl[0]), |last| last.evaluation);
        let mut summary = json!({
            "eval_tokens": 64, "tokens": 990 * (kl.len() - 1), "steps": 10 * (kl.len() - 1),
            "ending": "finished", "student_step": 10 * (kl.len() - 1), "kept": "best", "rollbacks": 0,
            "seconds": 2.0 + seed as f64, "tokens_per_second": 5.0, "flops_per_second": 6.0,
            "total_seconds": 7.0, "trainable_parameters": 8, "student_parameters": 9,
            "teacher_parameters": 10, "student_kv_cache_bytes_per_token": 11,
            "teacher_kv_cache_bytes_per_token": 12, "seed": seed
        });
        for (name, value) in [
            ("kl_start", kl[0]),
            ("kl_end", last.kl),
            ("student_ce", last.student_ce),
            ("top1_agreement", last.top1_agreement),
        ] {
            if let Some(value) = value {
                summary[name] = value.into();
            }
        }
        RunReport::new(
            format!("{start}-seed{seed}"),
            serde_json::from_value(summary).unwrap(),
            &evaluations,
            TOKENS_PER_STEP,
        )
    }

    /// A comparison with a list of runs for each start, each a list of KLs.
    pub(in crate::compare) fn comparison(starts: &[(Start, &[&[Option<f64>]])]) -> Comparison {
        let seeds = starts.first().map_or(0, |(_, runs)| runs.len());
        let report = |(start, runs): &(Start, &[&[Option<f64>]])| {
            let runs = runs.iter().zip(0..).map(|(kl, seed)| run(*start, seed, kl));
            StartReport::new(*start, runs.collect())
        };
        Comparison {
            seeds: (0..seeds as u64).collect(),
            tokens_per_step: TOKENS_PER_STEP,
            starts: starts.iter().map(report).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::{comparison, run};
    use super::*;

    fn spread(mean: f64, min: f64, max: f64, runs: usize) -> Option<Spread> {
        Some(Spread {
            mean,
            min,
            max,
            runs,
        })
    }

    #[test]
    fn a_spread_has_mean_and_range() {
        let values = [3.0, 1.0, 2.0].map(Some);
        assert_eq!(Spread::of(values), spread(2.0, 1.0, 3.0, 3));
        assert_eq!(Spread::of([Some(-1.0)]), spread(-1.0, -1.0, -1.0, 1));
        let equal = Spread::of([Some(0.1); 3]).unwrap();
        assert_eq!((equal.min, equal.max), (0.1, 0.1));
        assert_eq!(equal.mean, 0.1);
    }

    #[test]
    fn a_missing_value_is_absent_and_no_zero() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([None, None]), None);
        let with_gap = Spread::of([None, Some(4.0), Some(6.0)]);
        assert_eq!(with_gap, spread(5.0, 4.0, 6.0, 2));

        let unknown: &[Option<f64>] = &[None, None];
        let json = comparison(&[(Start::Lecun, &[unknown])]).to_json();
        let start = json["starts"][0].as_object().unwrap();
        for key in ["kl_start", "kl_end", "top1_agreement"] {
            assert!(!start.contains_key(key), "{json}");
        }
        for curve in [&start["curve"], &start["runs"][0]["curve"]] {
            let points = curve.as_array().unwrap();
            assert_eq!(points.len(), 2);
            assert!(points.iter().all(|point| point.get("kl").is_none()));
        }
    }

    #[test]
    fn a_start_has_the_spread_of_its_runs() {
        let report = StartReport::new(
            Start::Grouped,
            vec![
                run(Start::Grouped, 0, &[Some(4.0), Some(3.0), Some(1.0)]),
                run(Start::Grouped, 1, &[Some(4.0), Some(2.0), Some(3.0)]),
            ],
        );
        assert_eq!(report.kl_start, spread(4.0, 4.0, 4.0, 2));
        assert_eq!(report.kl_end, spread(2.0, 1.0, 3.0, 2));
        assert_eq!(report.top1_agreement, spread(0.375, 0.25, 0.5, 2));
        assert_eq!(report.seconds, spread(2.5, 2.0, 3.0, 2));
        assert_eq!(report.tokens_seen, spread(2000.0, 2000.0, 2000.0, 2));
        let curve: Vec<_> = report.curve.iter().map(|p| (p.step, p.kl)).collect();
        assert_eq!(
            curve,
            [
                (0, spread(4.0, 4.0, 4.0, 2)),
                (10, spread(2.5, 2.0, 3.0, 2)),
                (20, spread(2.0, 1.0, 3.0, 2)),
            ]
        );
        assert!(report.curve.iter().all(|p| p.tokens_seen == 100 * p.step));
    }

    #[test]
    fn a_run_that_ended_early_is_no_part_of_later_points() {
        let report = StartReport::new(
            Start::Lecun,
            vec![
                run(Start::Lecun, 0, &[Some(4.0), Some(3.0)]),
                run(Start::Lecun, 1, &[Some(6.0), Some(5.0), Some(2.0)]),
                run(Start::Lecun, 2, &[Some(8.0), None, Some(1.0)]),
            ],
        );
        let runs: Vec<usize> = report.curve.iter().map(|p| p.kl.unwrap().runs).collect();
        assert_eq!(runs, [3, 2, 2]);
        assert_eq!(report.curve[2].kl, spread(1.5, 1.0, 2.0, 2));
        assert_eq!(report.kl_end, spread(2.0, 1.0, 3.0, 3));
    }
}
