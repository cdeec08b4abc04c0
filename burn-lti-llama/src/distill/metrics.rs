//! `metrics.jsonl`: one line a logged step, means over the tokens since the line before.

use std::fs::File;
use std::io::{self, Write};
use std::time::Instant;

use burn_lti::loss::LossSums;
use burn_lti::train::{StepObserver, StepReport};
use serde::Serialize;

use super::{Event, Listener};

/// One line. What is unknown is absent.
#[derive(Serialize)]
struct Line {
    step: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kl: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    student_ce: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    teacher_ce: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top1_agreement: Option<f64>,
    learning_rate: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    grad_norm: Option<f64>,
    /// Since the line before.
    tokens: u64,
    /// Since training began.
    seconds: f64,
}

/// What the training loop went through.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) steps: usize,
    /// Tokens that had a target.
    pub(super) tokens: f64,
    pub(super) seconds: f64,
}

/// Writes a line every so many steps and tells the listener of every step.
pub(super) struct MetricsLog {
    file: File,
    log_every: usize,
    steps: usize,
    listener: Listener,
    began: Instant,
    window: LossSums,
    counts: Counts,
    failure: Option<io::Error>,
}

impl MetricsLog {
    pub(super) fn new(file: File, log_every: usize, steps: usize, listener: Listener) -> Self {
        Self {
            file,
            log_every,
            steps,
            listener,
            began: Instant::now(),
            window: LossSums::default(),
            counts: Counts::default(),
            failure: None,
        }
    }

    /// What was gone through, or the first line that could not be written.
    pub(super) fn finish(&mut self) -> io::Result<Counts> {
        match self.failure.take() {
            Some(error) => Err(error),
            None => self.file.sync_all().map(|()| self.counts),
        }
    }

    fn write(&mut self, report: &StepReport) -> io::Result<()> {
        let window = std::mem::take(&mut self.window);
        let line = Line {
            step: report.step,
            loss: window.loss_mean(),
            kl: window.kl_mean(),
            student_ce: window.student_ce_mean(),
            teacher_ce: window.teacher_ce_mean(),
            top1_agreement: window.top1_agreement(),
            learning_rate: report.learning_rate,
            grad_norm: report.grad_norm,
            tokens: window.tokens as u64,
            seconds: self.counts.seconds,
        };
        let mut text = serde_json::to_string(&line)?;
        text.push('\n');
        self.file.write_all(text.as_bytes())
    }
}

impl StepObserver for MetricsLog {
    fn on_step(&mut self, report: &StepReport) {
        self.window += report.sums;
        self.counts = Counts {
            steps: report.step,
            tokens: self.counts.tokens + report.sums.tokens,
            seconds: self.began.elapsed().as_secs_f64(),
        };
        (self.listener)(Event::Step(report, self.steps));
        let due = report.step.is_multiple_of(self.log_every) || report.step == self.steps;
        if due && self.failure.is_none() {
            self.failure = self.write(report).err();
        }
    }

    fn on_validation(&mut self, _sums: &LossSums) {}
}
