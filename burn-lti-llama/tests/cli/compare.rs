//! One recipe from several starts.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use crate::workshop::Workshop;

const RUNS: [&str; 4] = [
    "lecun-seed0",
    "lecun-seed1",
    "grouped-seed0",
    "grouped-seed1",
];

fn compare<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let common = ["compare", "recipe.toml", "--out", "out"];
    [&common[..], more].concat()
}

/// Two starts with two seeds each; all held-out text is watched, so that curves end where summaries do.
fn four<'a>(more: &[&'a str]) -> Vec<&'a str> {
    watched(&[&["--starts", "lecun,grouped", "--seeds", "2"], more].concat())
}

fn watched<'a>(more: &[&'a str]) -> Vec<&'a str> {
    compare(&[&["--set", "train.eval_sequences=8"], more].concat())
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// What an error or progress says, of a call that may succeed.
fn told(workshop: &Workshop, arguments: &[&str]) -> String {
    let output = workshop.run(arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{errors}");
    errors
}

#[test]
fn starts_and_seeds_are_compared_and_nothing_is_run_twice() {
    let workshop = Workshop::new();
    let out = |name: &str| workshop.path("out").join(name);
    let output = workshop.run(&four(&[]));
    let (table, progress) = (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    );
    assert!(output.status.success(), "{progress}");
    assert!(
        table.contains("lecun ") && table.contains("grouped "),
        "{table}"
    );
    assert!(table.contains("Means over 2 seeds"), "{table}");
    assert!(table.contains("compare.svg") && table.contains("compare.html"));
    assert!(
        progress.contains("run 4 of 4: start grouped, seed 1"),
        "{progress}"
    );

    let comparison = read(&out("compare.json"));
    assert_eq!(comparison["seeds"], serde_json::json!([0, 1]));
    let mut summaries = Vec::new();
    for (index, name) in RUNS.iter().enumerate() {
        for file in [
            "recipe.toml",
            "manifest.json",
            "metrics.jsonl",
            "summary.json",
            "student/model.safetensors",
        ] {
            assert!(out(name).join(file).is_file(), "{name}: {file}");
        }
        let run = &comparison["starts"][index / 2]["runs"][index % 2];
        assert_eq!(run["folder"], *name);
        assert_eq!(run["summary"], read(&out(name).join("summary.json")));
        let kl = |point: usize| &run["curve"][point]["kl"];
        assert_eq!(run["curve"].as_array().unwrap().len(), 5);
        assert_eq!(*kl(0), run["summary"]["kl_start"]);
        let after = run["summary"]["kl_end"].as_f64().unwrap();
        let step = run["summary"]["student_step"].as_u64().unwrap();
        let exported = kl(step as usize).as_f64().unwrap();
        assert!((exported - after).abs() < 1e-5, "{run}");
        assert_eq!(run["curve"][4]["tokens_seen"], 4 * 2 * 16);
        summaries.push(fs::read(out(name).join("summary.json")).unwrap());
    }
    for start in comparison["starts"].as_array().unwrap() {
        let runs = start["runs"].as_array().unwrap();
        let values = runs.iter().map(|run| run["summary"]["kl_end"].as_f64());
        let mean = values.map(Option::unwrap).sum::<f64>() / 2.0;
        assert!((start["kl_end"]["mean"].as_f64().unwrap() - mean).abs() < 1e-12);
        assert_eq!(start["kl_end"]["runs"], 2);
    }
    let svg = fs::read_to_string(out("compare.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("lecun") && svg.contains("grouped"));
    let page = fs::read_to_string(out("compare.html")).unwrap();
    assert!(page.contains("4 runs") && RUNS.iter().all(|run| page.contains(run)));
    let lines = |name: &str| fs::read_to_string(out(name)).unwrap().lines().count();
    assert_eq!((lines("compare.csv"), lines("curves.csv")), (1 + 4, 1 + 20));

    // Each run is an ordinary one.
    let alone = ["distill", "out/grouped-seed1/recipe.toml", "--out", "alone"];
    let alone = workshop.json(&[&alone[..], &["--json"]].concat());
    let run = &comparison["starts"][1]["runs"][1]["summary"];
    assert_eq!(alone["kl_end"], run["kl_end"]);

    // With --resume everything is taken over.
    let unchanged = || {
        let now = RUNS.map(|name| fs::read(out(name).join("summary.json")).unwrap());
        now.iter().zip(&summaries).all(|(now, then)| now == then)
    };
    let again = workshop.json(&four(&["--resume", "--json"]));
    assert_eq!(again, comparison);
    assert_eq!(read(&out("compare.json")), comparison);
    let progress = told(&workshop, &four(&["--resume"]));
    assert_eq!(progress.matches("taken over").count(), 4, "{progress}");
    assert!(!progress.contains("training"), "{progress}");
    assert!(unchanged());

    // Only what is missing is run.
    fs::remove_dir_all(out("lecun-seed1")).unwrap();
    let progress = told(&workshop, &four(&["--resume"]));
    assert_eq!(progress.matches("taken over").count(), 3, "{progress}");
    assert_eq!(progress.matches("training").count(), 1, "{progress}");
    let repaired = read(&out("compare.json"));
    assert_eq!(
        repaired["starts"][0]["kl_end"],
        comparison["starts"][0]["kl_end"]
    );
    let more = watched(&["--starts", "grouped", "--seeds", "3", "--resume"]);
    let progress = told(&workshop, &more);
    assert_eq!(progress.matches("taken over").count(), 2, "{progress}");
    assert!(out("grouped-seed2/student/model.safetensors").is_file());

    // Without it nothing is touched; and another recipe is another comparison.
    let errors = workshop.fail(&four(&[]));
    assert!(
        errors.contains("already holds") && errors.contains("--resume"),
        "{errors}"
    );
    let before = fs::read(out("compare.json")).unwrap();
    let other = ["--resume", "--set", "train.learning_rate=0.5"];
    let errors = workshop.fail(&four(&other));
    assert!(
        errors.contains("lecun-seed0") && errors.contains("train.learning_rate"),
        "{errors}"
    );
    assert_eq!(fs::read(out("compare.json")).unwrap(), before);
}

#[test]
fn what_cannot_be_compared_is_refused_before_any_run() {
    let workshop = Workshop::new();
    for (arguments, parts) in [
        (
            &["--starts", "lecun,groupd"][..],
            &["`groupd`", "did you mean `grouped`?"][..],
        ),
        (&["--starts", "zzz"], &["lecun", "grouped"]),
        (&["--starts", "lecun,lecun"], &["`lecun`", "once"]),
        (&["--seeds", "0"], &["0 seeds", "at least 1"]),
        (
            &["--set", "student.heads=3", "--starts", "lecun,grouped"],
            &["`grouped`", "student.heads", "1, 2"],
        ),
        (
            &["--set", "train.seq_len=100000"],
            &["train.seq_len", "max_position_embeddings"],
        ),
    ] {
        let errors = workshop.fail(&compare(arguments));
        for part in parts {
            assert!(errors.contains(part), "{arguments:?}: {errors}");
        }
        assert!(!workshop.path("out").exists());
    }
    fs::create_dir(workshop.path("out")).unwrap();
    fs::write(workshop.path("out/notes.txt"), "mine").unwrap();
    let errors = workshop.fail(&compare(&["--resume"]));
    assert!(errors.contains("no comparison"), "{errors}");
    assert_eq!(fs::read_dir(workshop.path("out")).unwrap().count(), 1);
}

#[test]
fn a_run_that_fails_leaves_no_comparison() {
    let workshop = Workshop::new();
    let diverge = ["train.warmup_fraction=0", "train.learning_rate=1e38"];
    let diverge: Vec<&str> = diverge.iter().flat_map(|key| ["--set", key]).collect();
    let errors = workshop.fail(&four(&diverge));
    assert!(errors.contains("lecun-seed0"), "{errors}");
    assert!(
        errors.contains("finite") || errors.contains("diverged"),
        "{errors}"
    );
    assert!(!workshop.path("out/compare.json").exists());
    assert!(!workshop.path("out/lecun-seed1").exists());
}

/// As by Ctrl-C: the run under way ends with a student, the next does not begin, and both go on.
#[cfg(unix)]
#[test]
fn an_interrupted_comparison_goes_on() {
    let workshop = Workshop::new();
    let two = |more: &[&'static str]| {
        let two = [
            "--starts",
            "lecun,grouped",
            "--seeds",
            "1",
            "--set",
            "train.steps=300",
        ];
        compare(&[&two[..], more].concat())
    };
    let child = workshop
        .command(&two(&[]))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let metrics = workshop.path("out/lecun-seed0/metrics.jsonl");
    while !fs::read_to_string(&metrics).is_ok_and(|text| text.lines().count() > 3) {
        sleep(Duration::from_millis(10));
    }
    let id = child.id().to_string();
    let sent = std::process::Command::new("kill")
        .args(["-INT", &id])
        .status();
    assert!(sent.unwrap().success());
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && errors.contains("--resume") && errors.contains("lecun-seed0"),
        "{errors}"
    );
    let summary = read(&workshop.path("out/lecun-seed0/summary.json"));
    assert_eq!(summary["ending"], "interrupted");
    assert!(!workshop.path("out/grouped-seed0").exists());
    assert!(!workshop.path("out/compare.json").exists());

    let progress = told(&workshop, &two(&["--resume"]));
    assert!(progress.contains("going on after step"), "{progress}");
    assert!(!progress.contains("taken over"), "{progress}");
    let comparison = read(&workshop.path("out/compare.json"));
    let curve = comparison["starts"][0]["curve"].as_array().unwrap();
    let steps: Vec<u64> = curve
        .iter()
        .map(|point| point["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [0, 30, 60, 90, 120, 150, 180, 210, 240, 270, 300]);
}
