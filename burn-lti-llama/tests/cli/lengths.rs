//! Sequences of several lengths, documents laid end to end, and evaluations by position.

use std::fs;

use serde_json::Value;

use crate::runs::{distill, kill_after, metrics, student};
use crate::workshop::Workshop;

const MIXED: [&str; 2] = ["--set", "train.seq_len=[8, 16]"];

#[test]
fn a_run_of_several_lengths_goes_on_after_a_kill() {
    let workshop = Workshop::new();
    let more = [
        &MIXED[..],
        &[
            "--set",
            "lti.start=calibrated",
            "--set",
            "lti.map=general",
            "--set",
            "train.learning_rate=auto",
            "--set",
            "phase2.steps=10",
            "--set",
            "data.documents=joined",
        ],
    ]
    .concat();
    workshop.succeed(&distill("whole", &more));
    kill_after(&workshop, &distill("killed", &more), 400);
    let resume = [&more[..], &["--resume"]].concat();
    for milliseconds in [500, 700, 300] {
        kill_after(&workshop, &distill("killed", &resume), milliseconds);
    }
    if !workshop.path("killed/summary.json").exists() {
        workshop.succeed(&distill("killed", &resume));
    }
    assert!(student(&workshop, "whole") == student(&workshop, "killed"));
    assert_eq!(metrics(&workshop, "killed"), metrics(&workshop, "whole"));
    workshop.succeed(&distill("one", &more[2..]));
    assert!(student(&workshop, "one") != student(&workshop, "whole"));

    // Held-out text is read at the longest, as it is laid out for training.
    let summary = fs::read_to_string(workshop.path("whole/summary.json")).unwrap();
    let summary: Value = serde_json::from_str(&summary).unwrap();
    let found = eval(
        &workshop,
        "whole",
        &["--seq-len", "16", "--documents", "joined"],
    );
    let difference = found["kl"].as_f64().unwrap() - summary["kl_end"].as_f64().unwrap();
    assert!(difference.abs() < 1e-6, "{difference}");
    assert_eq!(found["tokens"], summary["eval_tokens"]);

    // Another mix is another run.
    let other = [&["--set", "train.seq_len=[8, 32]"], &more[2..]].concat();
    let errors = workshop.fail(&distill("other", &other));
    assert!(errors.contains("train.batch_size"), "{errors}");
    let other = [&["--set", "train.seq_len=[4, 8]", "--resume"], &more[2..]].concat();
    let errors = workshop.fail(&distill("whole", &other));
    assert!(errors.contains("train.seq_len"), "{errors}");
}

#[test]
fn a_teacher_writes_text_of_several_lengths() {
    let workshop = Workshop::new();
    let start = |out| {
        let start = ["start", "recipe.toml", "--json", "--out", out];
        let text = [
            "--set",
            "calibration.text=teacher",
            "--set",
            "calibration.sequences=16",
            "--set",
            "lti.start=calibrated",
        ];
        workshop.json(&[&start[..], &MIXED, &text].concat())
    };
    let own = start("own");
    assert!(own["evaluation"]["kl"].is_number());
    assert_eq!(start("again")["evaluation"], own["evaluation"]);
}

#[test]
fn a_cache_of_several_lengths_is_refused() {
    let workshop = Workshop::new();
    let cache = ["cache-teacher", "recipe.toml", "--out", "top"];
    let errors = workshop.fail(&[&cache[..], &MIXED].concat());
    assert!(errors.contains("--set train.seq_len=16"), "{errors}");
    assert!(!workshop.path("top").exists());
    let from = ["--set", "teacher.cache=top"];
    let errors = workshop.fail(&distill("out", &[&MIXED[..], &from].concat()));
    assert!(errors.contains("`teacher.cache` needs"), "{errors}");
}

#[test]
fn an_evaluation_by_position_is_the_whole_in_parts() {
    let workshop = Workshop::new();
    workshop.succeed(&distill("out", &["--set", "train.steps=2"]));
    let joined = ["--seq-len", "64", "--documents", "joined"];
    let whole = eval(&workshop, "out", &joined);
    let ranges = eval(
        &workshop,
        "out",
        &[&joined[..], &["--by-position"]].concat(),
    );
    assert!(whole.get("by_position").is_none());
    let parts = ranges["by_position"].as_array().unwrap();
    let found: Vec<_> = parts
        .iter()
        .map(|part| (part["first"].as_u64(), part["last"].as_u64()))
        .collect();
    assert_eq!(found, [(Some(0), Some(31)), (Some(32), Some(63))]);
    let tokens = |of: &Value| of["tokens"].as_f64().unwrap();
    assert_eq!(parts.iter().map(tokens).sum::<f64>(), tokens(&whole));
    for key in ["kl", "student_ce", "teacher_ce", "top1_agreement"] {
        let value = |of: &Value| of[key].as_f64().unwrap();
        let sum: f64 = parts.iter().map(|part| value(part) * tokens(part)).sum();
        let mean = sum / tokens(&ranges);
        // Numbers in float64; those of the whole are of float32 sums in another order.
        assert!((mean / value(&ranges) - 1.0).abs() < 1e-12, "{key}");
        assert!((mean / value(&whole) - 1.0).abs() < 1e-4, "{key}");
    }

    // Documents apart are shorter than 32 tokens here: nothing is known of later positions.
    let apart = ["--seq-len", "64", "--by-position"];
    let parts = &eval(&workshop, "out", &apart)["by_position"];
    assert_eq!(parts[1]["tokens"], 0);
    assert!(parts[0]["kl"].is_number() && parts[1].get("kl").is_none());
    let text = workshop.succeed(&[&EVAL[..], &["out/student"], &apart].concat());
    let row = text.lines().find(|line| line.starts_with("32-63")).unwrap();
    let cells: Vec<_> = row.split_whitespace().collect();
    assert_eq!(cells, ["32-63", "-", "-", "-", "-", "0"]);
}

const EVAL: [&str; 6] = [
    "eval",
    "--teacher",
    "teacher",
    "--text",
    "valid.txt",
    "--student",
];

fn eval(workshop: &Workshop, run: &str, more: &[&str]) -> Value {
    let student = format!("{run}/student");
    workshop.json(&[&EVAL[..], &[&student, "--json"], more].concat())
}
