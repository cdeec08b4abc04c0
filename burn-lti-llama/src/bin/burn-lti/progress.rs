//! Progress on the terminal.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::streams::tell;
use burn_lti::calibration::LayerReport;
use burn_lti_llama::distill::{Event, Listener};
use burn_lti_llama::eval::Evaluation;
use indicatif::{ProgressBar, ProgressStyle};

/// Shows the events of a run: bars on a terminal, a line a stage elsewhere.
pub(crate) fn listener() -> Listener {
    let display = Mutex::new(Display::default());
    Arc::new(move |event| {
        display
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .show(event);
    })
}

#[derive(Default)]
struct Display {
    bar: Option<ProgressBar>,
}

impl Display {
    fn show(&mut self, event: Event<'_>) {
        match event {
            Event::Stage(name) => self.begin(name),
            Event::Advanced(done, all) => self.advance(done, all, String::new()),
            Event::Step(report, steps) => {
                let sums = &report.sums;
                let message = match sums.kl_mean() {
                    Some(kl) => format!("KL {kl:.4}"),
                    None => format!("loss {}", number(sums.loss_mean())),
                };
                self.advance(report.step, steps, message);
            }
            Event::Saved(_) => {}
            Event::Calibrated(report) => self.say(&calibrated(report)),
            Event::Note(note) => self.say(note),
            Event::Evaluation(evaluation) => {
                self.finish();
                tell!("    held out: {}", describe(evaluation));
            }
        }
    }

    fn begin(&mut self, name: &str) {
        self.finish();
        tell!("  {name}");
        if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(0);
            bar.enable_steady_tick(Duration::from_millis(120));
            self.bar = Some(bar);
        }
    }

    /// A line that a bar, if there is one, makes room for.
    fn say(&self, line: &str) {
        let print = || tell!("    {line}");
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    fn advance(&mut self, done: usize, all: usize, message: String) {
        if let Some(bar) = &self.bar {
            if bar.length() != Some(all as u64) {
                bar.set_length(all as u64);
                let style = "    {bar:30} {pos}/{len} {msg}, {eta} left";
                bar.set_style(
                    ProgressStyle::with_template(style)
                        .unwrap_or_else(|_| ProgressStyle::default_bar()),
                );
            }
            bar.set_message(message);
            bar.set_position(done as u64);
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.finish();
    }
}

/// How a layer of the start was fitted, in a line.
fn calibrated(report: &LayerReport) -> String {
    format!(
        "layer {}: {:.4} of its target missed, {:.4} before values were fitted, {:.1} s",
        report.layer, report.residual, report.residual_of_output, report.seconds
    )
}

/// An evaluation in a line.
pub(crate) fn describe(evaluation: &Evaluation) -> String {
    format!(
        "KL {} nats/token, cross-entropy {} (teacher {}), top-1 agreement {}, {} tokens",
        number(evaluation.kl),
        number(evaluation.student_ce),
        number(evaluation.teacher_ce),
        percent(evaluation.top1_agreement),
        evaluation.tokens
    )
}

/// Four digits, or `-` for what is unknown.
pub(crate) fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"))
}

/// A share in percent, or `-` for what is unknown.
pub(crate) fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", share * 100.0))
}
