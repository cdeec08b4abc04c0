//! `metrics.jsonl`: one line a logged step, means over the tokens since the line before, and one
//! line an evaluation. The same numbers go to TensorBoard, if it is on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn_lti::files::{FileError, write_atomically};
use burn_lti::loss::LossSums;
use burn_lti::train::StepReport;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Event, Listener, TensorBoard};
use crate::eval::Evaluation;

/// The highest cross-entropy of which a perplexity is taken, as in MaxText's
/// `CombinedDistillationStrategy`.
const MAX_CE: f64 = 20.0;

/// Where metrics stay that are no metrics.
const DAMAGED: &str = "metrics.damaged.jsonl";

/// Why metrics could not be read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MetricsError {
    /// What a run has logged cannot be read.
    #[error("cannot read {file}: put it back into the run's folder")]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file has a line that no run wrote.
    #[error("line {line} of {file} is no line of metrics: take it out")]
    Line {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A line or an event cannot be written.
    #[error(transparent)]
    Write(#[from] FileError),
}

/// One line. What is unknown is absent.
#[derive(Default, Serialize)]
struct Line {
    step: usize,
    /// The part of the training that the step belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    phase: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    loss: Option<f64>,
    /// KL at the loss's temperature, without the factor `T^2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    soft: Option<f64>,
    /// KL at temperature 1. A teacher of which only the likeliest tokens are known has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    kl: Option<f64>,
    /// The features' loss, without its weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    feature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    student_ce: Option<f64>,
    /// Unknown where `kl` is.
    #[serde(skip_serializing_if = "Option::is_none")]
    teacher_ce: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    student_perplexity: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    teacher_perplexity: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top1_agreement: Option<f64>,
    /// Mean weight of the soft loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    alpha: Option<f64>,
    /// Mean temperature of the soft loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    /// Mean weight of the features' loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    beta: Option<f64>,
    learning_rate: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    grad_norm: Option<f64>,
    /// The part of the loss that the step promised to take away, before a cap.
    #[serde(skip_serializing_if = "Option::is_none")]
    promise: Option<f64>,
    /// Of the tensors' measured rates.
    #[serde(skip_serializing_if = "Option::is_none")]
    lowest_rate: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    median_rate: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    highest_rate: Option<f64>,
    /// Since the line before.
    tokens: u64,
    /// Since training began, without the time between an end and a resumption.
    seconds: f64,
    /// Since the line before, by wall time.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_per_second: Option<f64>,
    /// Since the line before, by wall time.
    #[serde(skip_serializing_if = "Option::is_none")]
    flops_per_second: Option<f64>,
}

/// What an evaluation on held-out text found after a step: a line of `metrics.jsonl`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoggedEvaluation {
    /// The step.
    pub step: usize,
    /// What it found.
    #[serde(rename = "eval")]
    pub evaluation: Evaluation,
}

/// What the training loop went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Counts {
    pub(super) steps: usize,
    /// Tokens that had a target.
    pub(super) tokens: f64,
    pub(super) seconds: f64,
}

/// What the next line tells of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Window {
    /// Of the steps since the line before.
    pub(super) sums: LossSums,
    /// The step of the line before; 0 at the beginning.
    pub(super) after_step: usize,
    /// When that line was written, in seconds since training began.
    pub(super) after_seconds: f64,
}

/// What a checkpoint has to keep, so that the lines of a resumed run are those of one that never
/// stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct LogState {
    pub(super) counts: Counts,
    pub(super) window: Window,
}

/// Writes a line every n-th step and tells the listener of every step.
pub(super) struct MetricsLog {
    path: PathBuf,
    file: File,
    tensorboard: Option<TensorBoard>,
    log_every: usize,
    steps: usize,
    listener: Listener,
    phase: Option<String>,
    flops_per_step: Option<f64>,
    began: Instant,
    /// Seconds of training before `began`.
    seconds_before: f64,
    state: LogState,
    failure: Option<MetricsError>,
}

impl MetricsLog {
    /// The log of a run that begins: the file is made, or emptied.
    pub(super) fn create(
        path: PathBuf,
        log_every: usize,
        steps: usize,
        listener: Listener,
    ) -> Result<Self, MetricsError> {
        let file = File::create(&path).map_err(FileError::writing(&path))?;
        let state = LogState::default();
        Ok(Self::new(path, file, state, log_every, steps, listener))
    }

    fn new(
        path: PathBuf,
        file: File,
        state: LogState,
        log_every: usize,
        steps: usize,
        listener: Listener,
    ) -> Self {
        Self {
            path,
            file,
            tensorboard: None,
            log_every,
            steps,
            listener,
            phase: None,
            flops_per_step: None,
            began: Instant::now(),
            seconds_before: state.counts.seconds,
            state,
            failure: None,
        }
    }

    /// What a checkpoint has to keep, or the first thing that could not be written. The lines so far
    /// are on the disk then, as a resumption needs them.
    pub(super) fn state(&mut self) -> Result<LogState, MetricsError> {
        match self.failure.take() {
            Some(error) => Err(error),
            None => {
                let synced = self.file.sync_all();
                synced.map_err(FileError::writing(&self.path))?;
                Ok(self.state)
            }
        }
    }

    /// The steps taken so far.
    pub(super) fn steps(&self) -> usize {
        self.state.counts.steps
    }

    /// Logs a step that was taken.
    pub(super) fn step(&mut self, report: &StepReport) {
        self.state.window.sums += report.sums;
        self.state.counts = Counts {
            steps: report.step,
            tokens: self.state.counts.tokens + report.sums.tokens,
            seconds: self.seconds_before + self.began.elapsed().as_secs_f64(),
        };
        (self.listener)(Event::Step(report, self.steps));
        if report.step.is_multiple_of(self.log_every) || report.ending.is_some() {
            let line = self.line(report);
            self.log(report.step, &line, "train", &line);
        }
    }

    /// Logs what an evaluation after `step` found.
    pub(super) fn evaluation(&mut self, step: usize, evaluation: &Evaluation) {
        let line = LoggedEvaluation {
            step,
            evaluation: *evaluation,
        };
        self.log(step, &line, "valid", evaluation);
    }

    /// The line of this step, with which the next window begins.
    fn line(&mut self, report: &StepReport) -> Line {
        let LogState { counts, window } = self.state;
        self.state.window = Window {
            sums: LossSums::default(),
            after_step: report.step,
            after_seconds: counts.seconds,
        };
        let sums = window.sums;
        let (student_ce, teacher_ce) = (sums.student_ce_mean(), sums.teacher_ce_mean());
        let steps = (report.step - window.after_step) as f64;
        // A clock too coarse to have moved gives no rate.
        let seconds = Some(counts.seconds - window.after_seconds).filter(|&seconds| seconds > 0.0);
        let rates = report.measured.and_then(|measured| measured.rates);
        Line {
            step: report.step,
            phase: self.phase.clone(),
            loss: sums.loss_mean(),
            soft: sums.soft_mean(),
            kl: sums.kl_mean(),
            feature: sums.feature_mean(),
            student_ce,
            teacher_ce,
            student_perplexity: student_ce.map(perplexity),
            teacher_perplexity: teacher_ce.map(perplexity),
            top1_agreement: sums.top1_agreement(),
            alpha: sums.alpha_mean(),
            temperature: sums.temperature_mean(),
            beta: sums.feature_weight_mean(),
            learning_rate: report.learning_rate,
            grad_norm: report.measured.map(|measured| measured.grad_norm),
            promise: rates.map(|(promise, _)| promise),
            lowest_rate: rates.map(|(_, range)| range.lowest),
            median_rate: rates.map(|(_, range)| range.median),
            highest_rate: rates.map(|(_, range)| range.highest),
            tokens: sums.tokens as u64,
            seconds: counts.seconds,
            tokens_per_second: seconds.map(|seconds| sums.tokens / seconds),
            flops_per_second: self
                .flops_per_step
                .zip(seconds)
                .map(|(flops, seconds)| flops * steps / seconds),
        }
    }

    /// Writes a line, and draws the numbers among `values` as curves of this group.
    fn log(&mut self, step: usize, line: &impl Serialize, group: &str, values: &impl Serialize) {
        if self.failure.is_some() {
            return;
        }
        let result = self.write(line);
        let result = result.and_then(|()| self.draw(step, group, values));
        self.failure = result.err();
    }

    fn write(&mut self, line: &impl Serialize) -> Result<(), MetricsError> {
        let io = FileError::writing(&self.path);
        let mut text = serde_json::to_string(line).map_err(|error| io(error.into()))?;
        text.push('\n');
        Ok(self.file.write_all(text.as_bytes()).map_err(io)?)
    }

    fn draw(
        &mut self,
        step: usize,
        group: &str,
        values: &impl Serialize,
    ) -> Result<(), MetricsError> {
        let Some(board) = &mut self.tensorboard else {
            return Ok(());
        };
        // They are part of the line, which has just been serialized.
        let values = serde_json::to_value(values).unwrap_or_default();
        for (name, value) in values.as_object().into_iter().flatten() {
            if let Some(value) = value.as_f64().filter(|_| name != "step") {
                board.scalar(&format!("{group}/{name}"), step, value)?;
            }
        }
        Ok(board.flush()?)
    }
}

impl MetricsLog {
    /// The log of a run that goes on after the step of `state`. Lines of later steps, and a last line
    /// that was cut off, are dropped from the file. A file that was lost or damaged keeps no run from going on:
    /// the listener is told, and what was in it stays beside it.
    pub(super) fn resume(
        path: PathBuf,
        state: LogState,
        log_every: usize,
        steps: usize,
        listener: Listener,
    ) -> Result<Self, MetricsError> {
        let bytes = match fs::read(&path) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(MetricsError::Read { file: path, source }),
        };
        let text = bytes.as_deref().map(String::from_utf8_lossy);
        let known = lines_known_to(&state, text.as_deref().unwrap_or_default());
        let lost = known.last < state.window.after_step;
        let file = path.display();
        match &bytes {
            Some(bytes) if known.is_damaged => {
                let copy = path.with_file_name(DAMAGED);
                write_atomically(&copy, bytes)?;
                listener(Event::Note(&format!(
                    "what in {file} is no line of metrics is left out; the file as it was is {DAMAGED}"
                )));
            }
            Some(_) if lost => listener(Event::Note(&format!(
                "{file} ends with step {}: what was logged up to step {} is lost, and the run goes on without it",
                known.last, state.counts.steps
            ))),
            None if lost => listener(Event::Note(&format!(
                "{file} is lost: it begins anew after step {}",
                state.counts.steps
            ))),
            Some(_) | None => {}
        }
        write_atomically(&path, known.kept.as_bytes())?;
        let opened = OpenOptions::new().append(true).open(&path);
        let file = opened.map_err(FileError::writing(&path))?;
        Ok(Self::new(path, file, state, log_every, steps, listener))
    }

    /// Sends every number to TensorBoard too.
    pub(super) fn with_tensorboard(mut self, tensorboard: TensorBoard) -> Self {
        self.tensorboard = Some(tensorboard);
        self
    }

    /// Logs how many operations a second the training does, at so many a step.
    pub(super) fn with_flops_per_step(mut self, flops: f64) -> Self {
        self.flops_per_step = Some(flops);
        self
    }

    /// The steps from now on belong to this part of the training.
    pub(super) fn begin_phase(&mut self, name: &str) {
        self.phase = Some(name.to_owned());
    }
}

/// The guard keeps the curve of a bad start readable. The reference means it over steps; here it is
/// that of the mean.
fn perplexity(ce: f64) -> f64 {
    ce.min(MAX_CE).exp()
}

fn read(path: &Path) -> Result<String, MetricsError> {
    fs::read_to_string(path).map_err(|source| MetricsError::Read {
        file: path.to_owned(),
        source,
    })
}

/// The evaluations in the metrics of a run, in their order.
pub(super) fn evaluations(path: &Path) -> Result<Vec<LoggedEvaluation>, MetricsError> {
    #[derive(Deserialize)]
    struct AnyLine {
        step: usize,
        eval: Option<Evaluation>,
    }

    let text = read(path)?;
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let AnyLine { step, eval } =
            serde_json::from_str(line).map_err(|source| MetricsError::Line {
                file: path.to_owned(),
                line: index + 1,
                source,
            })?;
        found.extend(eval.map(|evaluation| LoggedEvaluation { step, evaluation }));
    }
    Ok(found)
}

/// What of a file of metrics a run goes on with.
#[derive(Default)]
struct Known {
    kept: String,
    /// The step of the last line.
    last: usize,
    /// Whether there were lines that no run wrote.
    is_damaged: bool,
}

/// The lines of `text` up to the step of `state`.
fn lines_known_to(state: &LogState, text: &str) -> Known {
    #[derive(Deserialize)]
    struct Stepped {
        step: usize,
    }

    let mut known = Known::default();
    for line in text.split_inclusive('\n') {
        match serde_json::from_str(line) {
            Ok(Stepped { step }) if step <= state.counts.steps => {
                known.kept.push_str(line.trim_end());
                known.kept.push('\n');
                known.last = step;
            }
            Ok(_) => {}
            // Only the last line can lack its end: the run was cut off while it wrote it.
            Err(_) if !line.ends_with('\n') => {}
            Err(_) => known.is_damaged = true,
        }
    }
    known
}

#[cfg(test)]
mod tests;
