//! What a run does when it is asked to stop, and when its folder goes away.

#![cfg(unix)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::runs::{distill, student};
use crate::workshop::Workshop;

/// A run of many steps, with no checkpoints of its own.
const LONG: [&str; 4] = [
    "--set",
    "train.checkpoint_every=100000",
    "--set",
    "train.steps=4000",
];

/// Begins a run and waits until it has taken some steps, by its metrics in this file.
fn begun(workshop: &Workshop, arguments: &[&str], metrics: &str) -> Child {
    let mut command = workshop.command(arguments);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let metrics = workshop.path(metrics);
    let some = || fs::read_to_string(&metrics).is_ok_and(|text| text.lines().count() > 3);
    while !some() {
        sleep(Duration::from_millis(10));
    }
    child.unwrap()
}

fn send(child: &Child, signal: &str) {
    let sent = Command::new("kill")
        .args([signal, &child.id().to_string()])
        .status();
    assert!(sent.unwrap().success());
}

fn told_by(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{errors}");
    assert!(!errors.contains("panicked"), "{errors}");
    errors
}

#[test]
fn every_way_of_asking_leaves_a_checkpoint_and_a_student() {
    for signal in ["-INT", "-TERM", "-HUP"] {
        let workshop = Workshop::new();
        let child = begun(&workshop, &distill("out", &LONG), "out/metrics.jsonl");
        send(&child, signal);
        let errors = told_by(child);
        for part in ["saves a checkpoint and a student", "once more", "--resume"] {
            assert!(errors.contains(part), "{signal}: {errors}");
        }
        let summary = fs::read_to_string(workshop.path("out/summary.json")).unwrap();
        let summary: Value = serde_json::from_str(&summary).unwrap();
        assert_eq!(summary["ending"], "interrupted");
        assert!(student(&workshop, "out").len() > 1000);
        assert_eq!(
            fs::read_dir(workshop.path("out/checkpoints"))
                .unwrap()
                .count(),
            1
        );
    }
}

/// As `nohup` has it.
#[test]
fn a_terminal_that_is_to_be_ignored_is() {
    let workshop = Workshop::new();
    let mut command = Command::new("nohup");
    command.arg(env!("CARGO_BIN_EXE_burn-lti"));
    command
        .args(distill("out", &LONG))
        .current_dir(workshop.path(""));
    let child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = || {
        let text = fs::read_to_string(workshop.path("out/metrics.jsonl"));
        text.map_or(0, |text| text.lines().count())
    };
    let wait_beyond = |count| {
        while lines() <= count {
            sleep(Duration::from_millis(10));
        }
    };
    wait_beyond(3);
    send(&child, "-HUP");
    wait_beyond(lines() + 10);
    send(&child, "-TERM");
    assert!(told_by(child).contains("saves a checkpoint"));
}

#[test]
fn an_interrupted_run_replaces_none_and_says_where_its_student_is() {
    let workshop = Workshop::new();
    workshop.succeed(&distill("out", &[]));
    let before = student(&workshop, "out");
    let overwrite = distill("out", &[&LONG[..], &["--overwrite"]].concat());
    let child = begun(&workshop, &overwrite, "out/run.unfinished/metrics.jsonl");
    send(&child, "-INT");
    let errors = told_by(child);
    assert!(
        errors.contains("--resume, in place of --overwrite"),
        "{errors}"
    );
    assert!(student(&workshop, "out") == before);
    assert!(student(&workshop, "out/run.unfinished").len() == before.len());
    // The other run goes on once this one is out of the way, and it says so.
    let errors = workshop.fail(&distill("out", &["--resume"]));
    assert!(errors.contains("move out/run.unfinished away"), "{errors}");
}

/// Nothing that would be lost: the program ends at once, and says how to go on.
#[test]
fn a_calculated_start_is_interrupted_at_once() {
    let workshop = Workshop::new();
    let slow = [
        "--set",
        "lti.start=calibrated",
        "--set",
        "lti.map=general",
        "--set",
        "calibration.refine_steps=1000000",
    ];
    let start = [&["start", "recipe.toml", "--out", "out"], &slow[..]].concat();
    for (arguments, way_on) in [(distill("run", &slow), "--resume"), (start, "--overwrite")] {
        let mut command = workshop.command(&arguments);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("calibrating") {
            line.clear();
            assert!(errors.read_line(&mut line).unwrap() > 0);
        }
        send(&child, "-INT");
        let sent = Instant::now();
        let status = child.wait().unwrap();
        assert!(sent.elapsed() < Duration::from_secs(1));
        assert_eq!(status.code(), Some(130));
        let mut rest = String::new();
        errors.read_to_string(&mut rest).unwrap();
        assert!(
            rest.contains("so far is saved") && rest.contains(way_on),
            "{rest}"
        );
    }
}

#[test]
fn a_run_whose_folder_is_deleted_ends_loudly_and_saves_its_student() {
    let workshop = Workshop::new();
    let child = begun(&workshop, &distill("out", &LONG), "out/metrics.jsonl");
    fs::remove_dir_all(workshop.path("out")).unwrap();
    let errors = told_by(child);
    assert!(
        errors.contains("was deleted or replaced") && errors.contains("out.rescued-1"),
        "{errors}"
    );
    assert!(workshop.path("out.rescued-1/model.safetensors").exists());
    assert!(!workshop.path("out").exists());
}
