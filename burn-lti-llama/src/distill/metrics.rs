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
    #[error("line {line} of {file} is no line of metrics: take it out, then resume again")]
    Line {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The file has not all the lines that were there when the checkpoint was written.
    #[error("{file} has no line of step {step}, which was logged: put the run's own file back")]
    Missing {
        /// The file.
        file: PathBuf,
        /// The last step that was logged before the checkpoint.
        step: usize,
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

/// Writes a line every so many steps and tells the listener of every step.
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
            grad_norm: report.grad_norm,
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
    /// that was cut off, are dropped from the file.
    pub(super) fn resume(
        path: PathBuf,
        state: LogState,
        log_every: usize,
        steps: usize,
        listener: Listener,
    ) -> Result<Self, MetricsError> {
        let text = read(&path)?;
        let kept = lines_known_to(&state, &text, &path)?;
        write_atomically(&path, kept.as_bytes())?;
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

/// The lines of `text` up to the step of `state`.
fn lines_known_to(state: &LogState, text: &str, file: &Path) -> Result<String, MetricsError> {
    #[derive(Deserialize)]
    struct Stepped {
        step: usize,
    }

    let (mut kept, mut last) = (String::new(), 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        match serde_json::from_str(line) {
            Ok(Stepped { step }) if step <= state.counts.steps => {
                kept.push_str(line.trim_end());
                kept.push('\n');
                last = step;
            }
            Ok(_) => {}
            // Only the last line can lack its end: the run was cut off while it wrote it.
            Err(_) if !line.ends_with('\n') => {}
            Err(source) => {
                return Err(MetricsError::Line {
                    file: file.to_owned(),
                    line: index + 1,
                    source,
                });
            }
        }
    }
    let logged = state.window.after_step;
    match last >= logged {
        true => Ok(kept),
        false => Err(MetricsError::Missing {
            file: file.to_owned(),
            step: logged,
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use burn_lti::train::Ending;
    use serde_json::Value;
    use tempfile::TempDir;

    use super::*;

    const STEPS: usize = 10;

    /// The path of the metrics in a new folder.
    fn place() -> (TempDir, PathBuf) {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("metrics.jsonl");
        (folder, path)
    }

    fn create(path: &Path, log_every: usize) -> MetricsLog {
        MetricsLog::create(path.to_owned(), log_every, STEPS, Arc::new(|_| {})).unwrap()
    }

    fn resume(path: &Path, state: LogState, log_every: usize) -> Result<MetricsLog, MetricsError> {
        MetricsLog::resume(path.to_owned(), state, log_every, STEPS, Arc::new(|_| {}))
    }

    /// A step of four tokens, whose loss is its number.
    fn report(step: usize) -> StepReport {
        let tokens = 4.0;
        StepReport {
            step,
            learning_rate: 0.5,
            sums: LossSums {
                tokens,
                loss: step as f64 * tokens,
                soft: 0.25 * tokens,
                kl: Some(0.75 * tokens),
                student_ce: 30.0 * tokens,
                teacher_ce: Some(2.0 * tokens),
                agreements: 1.0,
                feature: None,
                feature_weight: None,
                ..LossSums::default()
            },
            grad_norm: None,
            ending: (step == STEPS).then_some(Ending::Finished),
        }
    }

    fn take(log: &mut MetricsLog, steps: impl IntoIterator<Item = usize>) {
        for step in steps {
            log.step(&report(step));
        }
    }

    fn lines(path: &Path) -> Vec<Value> {
        let text = fs::read_to_string(path).unwrap();
        let lines = text.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// The lines without what the clock says.
    fn timeless(path: &Path) -> Vec<Value> {
        let mut lines = lines(path);
        for line in &mut lines {
            let line = line.as_object_mut().unwrap();
            line.retain(|name, _| !["seconds", "tokens_per_second"].contains(&name.as_str()));
        }
        lines
    }

    #[test]
    fn a_line_has_the_means_since_the_line_before() {
        let (_folder, path) = place();
        let mut log = create(&path, 4);
        take(&mut log, 1..=STEPS);
        let counts = log.state().unwrap().counts;
        assert_eq!((counts.steps, counts.tokens), (STEPS, 40.0));

        let lines = lines(&path);
        let of = |name: &str| -> Vec<f64> {
            let values = lines.iter().map(|line| line[name].as_f64().unwrap());
            values.collect()
        };
        // The last step has a line of its own, whatever the number of steps between two.
        assert_eq!(of("step"), [4.0, 8.0, 10.0]);
        assert_eq!(of("loss"), [2.5, 6.5, 9.5]);
        assert_eq!(of("tokens"), [16.0, 16.0, 8.0]);
        assert_eq!(of("kl"), [0.75; 3]);
        assert_eq!(of("soft"), [0.25; 3]);
        assert_eq!(of("student_perplexity"), [20_f64.exp(); 3]);
        assert_eq!(of("teacher_perplexity"), [2_f64.exp(); 3]);
        assert!(of("seconds").is_sorted());
    }

    #[test]
    fn what_is_unknown_is_absent() {
        let line = serde_json::to_value(Line::default()).unwrap();
        let names: Vec<&String> = line.as_object().unwrap().keys().collect();
        assert_eq!(names, ["step", "learning_rate", "tokens", "seconds"]);

        let (_folder, path) = place();
        let mut log = create(&path, 1);
        log.step(&StepReport {
            sums: LossSums::default(),
            ..report(1)
        });
        let line = &lines(&path)[0];
        for name in ["loss", "kl", "grad_norm", "phase", "flops_per_second"] {
            assert_eq!(line.get(name), None, "{name}");
        }
    }

    #[test]
    fn a_rate_is_that_of_the_window() {
        let (_folder, path) = place();
        let mut log = create(&path, 2).with_flops_per_step(100.0);
        log.begin_phase("warm");
        log.state = LogState {
            counts: Counts {
                steps: 6,
                tokens: 24.0,
                seconds: 30.0,
            },
            window: Window {
                sums: report(6).sums,
                after_step: 4,
                after_seconds: 20.0,
            },
        };
        let line = log.line(&report(6));
        assert_eq!(line.tokens_per_second, Some(0.4));
        assert_eq!(line.flops_per_second, Some(20.0));
        assert_eq!(line.phase.as_deref(), Some("warm"));
        // No time has passed since.
        let line = log.line(&report(6));
        assert_eq!(
            (line.tokens_per_second, line.flops_per_second),
            (None, None)
        );
    }

    #[test]
    fn a_resumed_run_writes_the_lines_of_one_that_never_stopped() {
        let (_folder, whole) = place();
        let mut log = create(&whole, 4);
        take(&mut log, 1..=STEPS);
        let whole_counts = log.state().unwrap().counts;

        // Stopped between two lines, after one that the checkpoint does not know, amid another.
        let (_folder, path) = place();
        let mut log = create(&path, 4);
        take(&mut log, 1..=6);
        let state = log.state().unwrap();
        take(&mut log, 7..=8);
        write!(log.file, "{{\"step\":9,\"lo").unwrap();
        drop(log);

        let mut log = resume(&path, state, 4).unwrap();
        assert_eq!(lines(&path).len(), 1);
        take(&mut log, 7..=STEPS);
        let counts = log.state().unwrap().counts;
        assert_eq!(timeless(&path), timeless(&whole));
        assert_eq!(
            (counts.steps, counts.tokens),
            (whole_counts.steps, whole_counts.tokens)
        );
        assert!(counts.seconds >= state.counts.seconds);
    }

    #[test]
    fn a_last_line_without_its_end_is_dropped_or_completed() {
        let text = "{\"step\":1}\n{\"step\":2,\"eval\":{}}";
        let whole = format!("{text}\n");
        let first = "{\"step\":1}\n";
        let kept = |steps, text| {
            let mut state = LogState::default();
            state.counts.steps = steps;
            lines_known_to(&state, text, Path::new("metrics.jsonl")).unwrap()
        };
        assert_eq!(kept(2, text), whole);
        assert_eq!(kept(2, &whole[..20]), first);
        assert_eq!(kept(1, &whole), first);
        assert_eq!(kept(0, &whole), "");
    }

    #[test]
    fn lines_that_are_gone_are_noticed() {
        let (_folder, path) = place();
        let mut log = create(&path, 2);
        take(&mut log, 1..=5);
        let state = log.state().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let (first, _) = text.split_once('\n').unwrap();
        fs::write(&path, first).unwrap();
        let error = resume(&path, state, 2).err().unwrap();
        assert!(
            matches!(&error, MetricsError::Missing { file, step: 4 } if *file == path),
            "{error}"
        );
    }

    #[test]
    fn a_line_that_no_run_wrote_is_named() {
        let (_folder, path) = place();
        for damaged in ["{\"step\":1}\n{\"st\n{\"step\":3}\n", "{\"step\":1}\n\n"] {
            fs::write(&path, damaged).unwrap();
            let error = resume(&path, LogState::default(), 1).err().unwrap();
            assert!(
                matches!(&error, MetricsError::Line { file, line: 2, .. } if *file == path),
                "{error}"
            );
            assert_eq!(fs::read_to_string(&path).unwrap(), damaged);
        }
    }

    #[test]
    fn metrics_that_are_not_there_cannot_be_resumed() {
        let (_folder, path) = place();
        let error = resume(&path, LogState::default(), 1).err().unwrap();
        assert!(matches!(error, MetricsError::Read { file, .. } if file == path));
    }

    #[test]
    fn what_cannot_be_written_ends_the_run() {
        let (_folder, path) = place();
        let nowhere = path.join("metrics.jsonl");
        let created = MetricsLog::create(nowhere.clone(), 1, STEPS, Arc::new(|_| {}));
        let error = created.err().unwrap();
        assert!(
            matches!(error, MetricsError::Write(FileError::Write { file, .. }) if file == nowhere)
        );

        let mut log = create(&path, 1);
        // Opened for reading alone.
        log.file = File::open(&path).unwrap();
        take(&mut log, 1..=2);
        let error = log.state().unwrap_err();
        assert!(
            matches!(error, MetricsError::Write(FileError::Write { file, .. }) if file == path)
        );
    }

    #[test]
    fn an_evaluation_has_a_line_of_its_own() {
        let (_folder, path) = place();
        let mut log = create(&path, 100);
        take(&mut log, 1..=3);
        log.evaluation(3, &Evaluation::from(report(3).sums));
        log.evaluation(5, &Evaluation::from(LossSums::default()));
        let lines = lines(&path);
        assert_eq!(lines[0]["step"], 3);
        assert_eq!(lines[0]["eval"]["kl"], 0.75);
        assert_eq!(lines[0]["eval"]["tokens"], 4);
        assert_eq!(
            lines[1],
            serde_json::json!({"step": 5, "eval": {"tokens": 0}})
        );
    }

    #[test]
    fn evaluations_are_read_back_from_among_the_steps() {
        let (_folder, path) = place();
        let mut log = create(&path, 1);
        let (known, unknown) = (report(2).sums.into(), LossSums::default().into());
        take(&mut log, 1..=2);
        log.evaluation(2, &known);
        take(&mut log, 3..=4);
        log.evaluation(4, &unknown);
        let logged = |step, evaluation| LoggedEvaluation { step, evaluation };
        assert_eq!(
            evaluations(&path).unwrap(),
            [logged(2, known), logged(4, unknown)]
        );
        fs::write(&path, "{\"step\": 1}\nmine\n").unwrap();
        let error = evaluations(&path).unwrap_err();
        assert!(matches!(error, MetricsError::Line { line: 2, .. }));
        fs::remove_file(&path).unwrap();
        let error = evaluations(&path).unwrap_err();
        assert!(matches!(&error, MetricsError::Read { file, .. } if *file == path));
    }

    #[test]
    fn tensorboard_is_given_the_same_numbers() {
        let (folder, path) = place();
        let dir = folder.path().join("tensorboard");
        let mut log = create(&path, 1).with_tensorboard(TensorBoard::create(&dir).unwrap());
        log.begin_phase("warm");
        take(&mut log, [1]);
        log.evaluation(1, &Evaluation::from(report(1).sums));

        let file = fs::read_dir(&dir).unwrap().next().unwrap().unwrap();
        let bytes = fs::read(file.path()).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        for tag in [
            "train/loss",
            "train/kl",
            "train/seconds",
            "valid/kl",
            "valid/tokens",
        ] {
            assert!(text.contains(tag), "{tag}");
        }
        for none in ["train/step", "train/phase", "train/beta"] {
            assert!(!text.contains(none), "{none}");
        }
    }
}
