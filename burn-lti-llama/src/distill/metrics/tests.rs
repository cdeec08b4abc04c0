//! Tests of the metrics.

use std::sync::Arc;

use burn_lti::train::Ending;
use serde_json::Value;
use tempfile::TempDir;

use super::*;

const STEPS: usize = 10;

/// The path of the metrics in a new folder.
fn metrics_path() -> (TempDir, PathBuf) {
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
        measured: None,
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
    let (_folder, path) = metrics_path();
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

    let (_folder, path) = metrics_path();
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
    let (_folder, path) = metrics_path();
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
    let (_folder, whole) = metrics_path();
    let mut log = create(&whole, 4);
    take(&mut log, 1..=STEPS);
    let whole_counts = log.state().unwrap().counts;

    // Stopped between two lines, after one that the checkpoint does not know, amid another.
    let (_folder, path) = metrics_path();
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
        let known = lines_known_to(&state, text);
        assert!(!known.is_damaged);
        known.kept
    };
    assert_eq!(kept(2, text), whole);
    assert_eq!(kept(2, &whole[..20]), first);
    assert_eq!(kept(1, &whole), first);
    assert_eq!(kept(0, &whole), "");
}

/// What the listener is told when the log of a run with `state` goes on.
fn told(path: &Path, state: LogState) -> String {
    let told = Arc::new(std::sync::Mutex::new(String::new()));
    let ear = told.clone();
    let listener: Listener = Arc::new(move |event| {
        if let Event::Note(note) = event {
            ear.lock().unwrap().push_str(note);
        }
    });
    let mut log = MetricsLog::resume(path.to_owned(), state, 2, STEPS, listener).unwrap();
    take(&mut log, 6..=STEPS);
    log.state().unwrap();
    drop(log);
    told.lock().unwrap().clone()
}

/// The state of a run after 5 steps whose metrics are in `path`.
fn after_five(path: &Path) -> LogState {
    let mut log = create(path, 2);
    take(&mut log, 1..=5);
    log.state().unwrap()
}

#[test]
fn lines_that_are_gone_are_told_and_keep_no_run_from_going_on() {
    let (_folder, path) = metrics_path();
    let state = after_five(&path);
    let text = fs::read_to_string(&path).unwrap();
    let (first, _) = text.split_once('\n').unwrap();
    fs::write(&path, format!("{first}\n")).unwrap();
    let told_of = told(&path, state);
    assert!(
        told_of.contains("ends with step 2") && told_of.contains("lost"),
        "{told_of}"
    );
    let steps: Vec<u64> = lines(&path)
        .iter()
        .map(|line| line["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [2, 6, 8, 10]);

    let state = after_five(&path);
    fs::remove_file(&path).unwrap();
    let told_of = told(&path, state);
    assert!(told_of.contains("begins anew after step 5"), "{told_of}");
    assert_eq!(lines(&path).len(), 3);
    // A whole file is not spoken of.
    let state = after_five(&path);
    assert_eq!(told(&path, state), "");
}

#[test]
fn lines_that_no_run_wrote_are_left_out_and_kept_elsewhere() {
    for damage in ["{\"st\n", "\n", "\u{fffd}\u{fffd}\n"] {
        let (folder, path) = metrics_path();
        let state = after_five(&path);
        let damaged = format!("{damage}{}", fs::read_to_string(&path).unwrap());
        fs::write(&path, &damaged).unwrap();
        let told_of = told(&path, state);
        assert!(
            told_of.contains("no line of metrics") && told_of.contains(DAMAGED),
            "{told_of}"
        );
        let kept = fs::read_to_string(folder.path().join(DAMAGED)).unwrap();
        assert_eq!(kept, damaged);
        assert_eq!(lines(&path).len(), 5);
    }
}

#[test]
fn metrics_that_cannot_be_read_are_named() {
    let (_folder, path) = metrics_path();
    fs::create_dir(&path).unwrap();
    let error = resume(&path, LogState::default(), 1).err().unwrap();
    assert!(matches!(error, MetricsError::Read { file, .. } if file == path));
}

#[test]
fn what_cannot_be_written_ends_the_run() {
    let (_folder, path) = metrics_path();
    let nowhere = path.join("metrics.jsonl");
    let created = MetricsLog::create(nowhere.clone(), 1, STEPS, Arc::new(|_| {}));
    let error = created.err().unwrap();
    assert!(matches!(error, MetricsError::Write(FileError::Write { file, .. }) if file == nowhere));

    let mut log = create(&path, 1);
    // Opened for reading alone.
    log.file = File::open(&path).unwrap();
    take(&mut log, 1..=2);
    let error = log.state().unwrap_err();
    assert!(matches!(error, MetricsError::Write(FileError::Write { file, .. }) if file == path));
}

#[test]
fn an_evaluation_has_a_line_of_its_own() {
    let (_folder, path) = metrics_path();
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
    let (_folder, path) = metrics_path();
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
    let (folder, path) = metrics_path();
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
