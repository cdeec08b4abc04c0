//! Progress on the terminal.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::streams::tell;
use burn_lti::calibration::LayerReport;
use burn_lti::loss::LossSums;
use burn_lti_llama::distill::{Event, Listener};
use burn_lti_llama::eval::Evaluation;
use indicatif::{ProgressBar, ProgressStyle};

/// Shows the events of a run: bars on a terminal, a line every so often elsewhere.
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
    /// On a terminal.
    bar: Option<ProgressBar>,
    /// Elsewhere.
    lines: Option<Lines>,
}

impl Display {
    fn show(&mut self, event: Event<'_>) {
        match event {
            Event::Stage(name) => self.begin(name),
            Event::Advanced(done, all) => self.advance(done, all, None),
            Event::Step(report, steps) => self.advance(report.step, steps, Some(&report.sums)),
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
        } else {
            self.lines = Some(Lines::begin(Instant::now()));
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

    fn advance(&mut self, done: usize, all: usize, sums: Option<&LossSums>) {
        if let Some(bar) = &self.bar {
            if bar.length() != Some(all as u64) {
                bar.set_length(all as u64);
                let style = "    {bar:30} {pos}/{len} {msg}, {eta} left";
                bar.set_style(
                    ProgressStyle::with_template(style)
                        .unwrap_or_else(|_| ProgressStyle::default_bar()),
                );
            }
            bar.set_message(sums.map_or_else(String::new, loss));
            bar.set_position(done as u64);
        }
        if let Some(lines) = &mut self.lines
            && let Some(line) = lines.advance(done, all, sums, Instant::now())
        {
            tell!("    {line}");
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.lines = None;
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.finish();
    }
}

/// When a stage says how far it is where there is no terminal: every half minute, and at each tenth.
struct Lines {
    /// When the stage began, and how much was done of it when the first thing was.
    began: Instant,
    before: Option<usize>,
    /// When it last said something, and after how many tenths.
    last: Instant,
    tenths: usize,
    /// Of the steps since.
    sums: LossSums,
}

impl Lines {
    const EVERY: Duration = Duration::from_secs(30);
    /// Tenths of what is no training are told no faster.
    const NO_FASTER: Duration = Duration::from_secs(1);

    fn begin(now: Instant) -> Self {
        Self {
            began: now,
            before: None,
            last: now,
            tenths: 0,
            sums: LossSums::default(),
        }
    }

    /// The line that is due when so much of so much is done; `sums` are those of a step of training.
    fn advance(
        &mut self,
        done: usize,
        all: usize,
        sums: Option<&LossSums>,
        now: Instant,
    ) -> Option<String> {
        let before = *self.before.get_or_insert_with(|| {
            let before = match sums {
                Some(_) => done.saturating_sub(1), // a run that goes on
                None => done.min(all),
            };
            self.tenths = 10 * before / all.max(1);
            before
        });
        if let Some(sums) = sums {
            self.sums += *sums;
        }
        let since = now - self.last;
        let tenths = 10 * done / all.max(1);
        let is_slow = sums.is_some() || since >= Self::NO_FASTER;
        let is_due = since >= Self::EVERY || (tenths > self.tenths && is_slow);
        if !is_due {
            return None;
        }
        let sums = std::mem::take(&mut self.sums);
        (self.last, self.tenths) = (now, tenths);
        let mut line = match sums.tokens > 0.0 {
            true => {
                let rate = sums.tokens / since.as_secs_f64().max(1e-9);
                format!("step {done} of {all}: {}, {rate:.0} tokens/s", loss(&sums))
            }
            false => format!("{done} of {all}"),
        };
        if done > before && done < all {
            let each = (now - self.began).as_secs_f64() / (done - before) as f64;
            line += &format!(", {} left", duration(each * (all - done) as f64));
        }
        Some(line)
    }
}

/// The KL of some steps, or their loss where that is not known.
fn loss(sums: &LossSums) -> String {
    let loss = format!("loss {}", number(sums.loss_mean()));
    match sums.kl_mean() {
        Some(kl) => format!("{loss}, KL {kl:.4}"),
        None => loss,
    }
}

/// `2 h 5 min`, `5 min 3 s`, `3 s`.
fn duration(seconds: f64) -> String {
    let seconds = seconds.ceil() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
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
