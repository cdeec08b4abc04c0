//! Runs that do not go through in one go, in one phase, or with a teacher that runs.

use std::fs;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use safetensors::SafeTensors;
use serde_json::Value;

use crate::workshop::Workshop;

const STEPS: usize = 40;

/// A recipe with enough steps to be stopped amid, over several times through the text.
pub(crate) fn distill<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let common = [
        "distill",
        "recipe.toml",
        "--out",
        out,
        "--set",
        "train.steps=40",
        "--set",
        "train.checkpoint_every=3",
        "--set",
        "train.accumulate=2",
        "--set",
        "train.batch_size=4",
        "--set",
        "train.log_every=2",
    ];
    [&common, more].concat()
}

pub(crate) fn student(workshop: &Workshop, out: &str) -> Vec<u8> {
    fs::read(workshop.path(out).join("student/model.safetensors")).unwrap()
}

/// The lines of the metrics without what the clock says.
pub(crate) fn metrics(workshop: &Workshop, out: &str) -> Vec<Value> {
    let text = fs::read_to_string(workshop.path(out).join("metrics.jsonl")).unwrap();
    let timeless = |line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        let clocked = ["seconds", "tokens_per_second", "flops_per_second"];
        let fields = line.as_object_mut().unwrap();
        fields.retain(|name, _| !clocked.contains(&name.as_str()));
        line
    };
    text.lines().map(timeless).collect()
}

/// Starts the command and kills it after so many milliseconds, unless it was faster.
pub(crate) fn kill_after(workshop: &Workshop, arguments: &[&str], milliseconds: u64) {
    let mut command = workshop.command(arguments);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    sleep(Duration::from_millis(milliseconds));
    child.kill().unwrap(); // SIGKILL: nothing in the program sees it
    child.wait().unwrap();
}

#[test]
fn a_run_that_is_killed_goes_on_as_if_it_had_not_been() {
    let workshop = Workshop::new();
    let backends = [
        ("flex", cfg!(feature = "flex")),
        ("ndarray", cfg!(feature = "ndarray")),
    ];
    for (backend, _) in backends.into_iter().filter(|(_, built_in)| *built_in) {
        let (whole, killed) = (format!("whole-{backend}"), format!("killed-{backend}"));
        let on = ["--backend", backend];
        workshop.succeed(&distill(&whole, &on));

        kill_after(&workshop, &distill(&killed, &on), 150);
        let resume = [&on[..], &["--resume"]].concat();
        for milliseconds in [40, 90, 160, 70, 250, 120] {
            kill_after(&workshop, &distill(&killed, &resume), milliseconds);
        }
        if !workshop.path(&killed).join("summary.json").exists() {
            workshop.succeed(&distill(&killed, &resume));
        }
        assert!(
            student(&workshop, &whole) == student(&workshop, &killed),
            "{backend}"
        );
        assert_eq!(metrics(&workshop, &killed), metrics(&workshop, &whole));
        let errors = workshop.fail(&distill(&killed, &resume));
        assert!(errors.contains("is finished"), "{errors}");
    }
}

#[test]
fn a_map_that_grows_goes_on_growing_after_a_kill() {
    let workshop = Workshop::new();
    let grows = [
        "--set",
        "lti.map={ kronecker = 2 }",
        "--set",
        "lti.grow={ every = 15 }",
    ];
    workshop.succeed(&distill("whole", &grows));
    kill_after(&workshop, &distill("killed", &grows), 150);
    let resume = [&grows[..], &["--resume"]].concat();
    for milliseconds in [90, 160, 120] {
        kill_after(&workshop, &distill("killed", &resume), milliseconds);
    }
    if !workshop.path("killed/summary.json").exists() {
        workshop.succeed(&distill("killed", &resume));
    }
    assert!(student(&workshop, "whole") == student(&workshop, "killed"));
    assert_eq!(metrics(&workshop, "killed"), metrics(&workshop, "whole"));
    // All pairs from the first step are another training.
    workshop.succeed(&distill("at-once", &grows[..2]));
    assert!(student(&workshop, "at-once") != student(&workshop, "whole"));
}

/// Written for each step, and for several at once, through both phases.
#[test]
fn a_student_that_writes_goes_on_writing_after_a_kill() {
    let workshop = Workshop::new();
    let off = ["--set", "phase2.steps=20"];
    for (every, whole, killed) in [("1", "whole-1", "killed-1"), ("4", "whole-4", "killed-4")] {
        let every = format!("data.on_policy_every={every}");
        let on = ["--set", "data.on_policy=0.5", "--set", &every];
        let on = [&on[..], &off].concat();
        workshop.succeed(&distill(whole, &on));
        kill_after(&workshop, &distill(killed, &on), 150);
        let resume = [&on[..], &["--resume"]].concat();
        for milliseconds in [90, 160, 120, 200] {
            kill_after(&workshop, &distill(killed, &resume), milliseconds);
        }
        if !workshop.path(killed).join("summary.json").exists() {
            workshop.succeed(&distill(killed, &resume));
        }
        assert!(student(&workshop, whole) == student(&workshop, killed));
        assert_eq!(metrics(&workshop, killed), metrics(&workshop, whole));
    }
    assert!(student(&workshop, "whole-1") != student(&workshop, "whole-4"));
    // The text itself teaches something else.
    workshop.succeed(&distill("off", &off));
    assert!(student(&workshop, "off") != student(&workshop, "whole-1"));
}

/// As by Ctrl-C: a checkpoint and a student of the step, and a way on.
#[cfg(unix)]
#[test]
fn an_interrupted_run_leaves_a_student_and_goes_on() {
    let workshop = Workshop::new();
    // No checkpoints but the one of the interruption.
    let steps = [
        "--set",
        "train.checkpoint_every=1000",
        "--set",
        "train.steps=400",
    ];
    let child = workshop
        .command(&distill("out", &steps))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let metrics_path = workshop.path("out/metrics.jsonl");
    let some = || fs::read_to_string(&metrics_path).is_ok_and(|text| text.lines().count() > 3);
    while !some() {
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
        !output.status.success() && errors.contains("--resume"),
        "{errors}"
    );

    let summary = fs::read_to_string(workshop.path("out/summary.json")).unwrap();
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary["ending"], "interrupted");
    assert!(summary["steps"].as_u64().unwrap() < 400, "{summary}");
    assert!(summary["kl_end"].is_number());

    workshop.succeed(&distill("whole", &steps));
    workshop.succeed(&distill("out", &[&steps[..], &["--resume"]].concat()));
    assert!(student(&workshop, "out") == student(&workshop, "whole"));
    assert_eq!(metrics(&workshop, "out"), metrics(&workshop, "whole"));
}

#[test]
fn only_the_same_run_goes_on() {
    let workshop = Workshop::new();
    kill_after(
        &workshop,
        &distill("out", &["--set", "train.steps=4000"]),
        700,
    );
    let refused = |more: &[&str]| {
        let common = ["--resume", "--set", "train.steps=4000"];
        workshop.fail(&distill("out", &[&common[..], more].concat()))
    };
    let errors = refused(&["--set", "train.learning_rate=0.5"]);
    assert!(errors.contains("train.learning_rate"), "{errors}");
    fs::write(workshop.path("train.txt"), "w3 w4 w5 w6\nw7 w8\n").unwrap();
    let errors = refused(&[]);
    assert!(errors.contains("train.txt"), "{errors}");

    // Stopped before there was a run.
    fs::create_dir_all(workshop.path("early/student.unchecked")).unwrap();
    workshop.succeed(&distill("early", &["--resume"]));

    fs::create_dir(workshop.path("notes")).unwrap();
    fs::write(workshop.path("notes/mine.txt"), "mine").unwrap();
    fs::write(workshop.path("notes/recipe.toml"), "[teacher]").unwrap();
    let errors = workshop.fail(&distill("notes", &["--resume"]));
    assert!(errors.contains("no run"), "{errors}");
    assert_eq!(
        fs::read(workshop.path("notes/recipe.toml")).unwrap(),
        b"[teacher]"
    );
}

#[test]
fn a_checkpoint_collapses_into_a_student() {
    let workshop = Workshop::new();
    workshop.succeed(&distill("out", &["--keep-last"]));
    let latest = workshop.json(&["collapse", "out", "--out", "latest", "--json"]);
    assert_eq!(latest["step"], STEPS);
    let file = |dir: &str| fs::read(workshop.path(dir).join("model.safetensors")).unwrap();
    assert!(file("latest") == student(&workshop, "out"));
    let best = workshop.json(&["collapse", "out", "--best", "--out", "best", "--json"]);
    let kl = |found: &Value| found["evaluation"]["kl"].as_f64().unwrap();
    assert!(kl(&best) <= kl(&latest));

    let errors = workshop.fail(&["collapse", "out"]);
    assert!(errors.contains("already holds"), "{errors}");
    fs::remove_dir_all(workshop.path("out/student")).unwrap();
    workshop.succeed(&["collapse", "out"]);
    assert!(file("latest") == student(&workshop, "out"));
    let errors = workshop.fail(&["collapse", "out", "--out", "latest"]);
    assert!(errors.contains("already holds"), "{errors}");
    workshop.succeed(&["distill", "recipe.toml", "--out", "plain"]);
    let errors = workshop.fail(&["collapse", "plain", "--out", "none"]);
    assert!(errors.contains("checkpoint_every"), "{errors}");
}

#[test]
fn a_second_phase_trains_without_maps_and_survives_a_kill() {
    let workshop = Workshop::new();
    let phase2 = [
        "--set",
        "phase2.steps=60",
        "--set",
        "phase2.learning_rate=0.003",
    ];
    let common = |out| distill(out, &phase2);
    workshop.succeed(&common("whole"));
    let summary = fs::read_to_string(workshop.path("whole/summary.json")).unwrap();
    let summary: Value = serde_json::from_str(&summary).unwrap();
    let kl = |key: &str| summary[key].as_f64().unwrap();
    assert_eq!(summary["steps"], STEPS + 60);
    assert!(kl("kl_end") < kl("kl_maps"), "{summary}");
    let phases = metrics(&workshop, "whole");
    let steps = phases.iter().filter(|line| line.get("eval").is_none());
    let phases: Vec<&str> = steps.map(|line| line["phase"].as_str().unwrap()).collect();
    assert_eq!((phases[0], phases[phases.len() - 1]), ("first", "second"));

    let resume = distill("killed", &[&phase2[..], &["--resume"]].concat());
    for milliseconds in [300, 500, 700, 400, 600] {
        kill_after(&workshop, &resume, milliseconds);
    }
    if !workshop.path("killed/summary.json").exists() {
        workshop.succeed(&resume);
    }
    assert!(student(&workshop, "killed") == student(&workshop, "whole"));
    assert_eq!(metrics(&workshop, "killed"), metrics(&workshop, "whole"));
}

#[test]
fn a_plateau_and_patience_end_a_phase_early() {
    let workshop = Workshop::new();
    // Nothing gets better by a tenth of itself in two steps.
    let plateau = "phase2.plateau={ window = 2, improvement = 0.1 }";
    let phase2 = ["--json", "--set", "phase2.steps=5", "--set", plateau];
    let early = workshop.json(&distill("plateau", &phase2));
    assert!(early["steps"].as_u64().unwrap() < 45, "{early}");
    // A rate that moves nothing makes no evaluation better than the first.
    let still = ["train.learning_rate=1e-30", "train.patience=2"];
    let still = ["--json", "--set", still[0], "--set", still[1]];
    let early = workshop.json(&distill("patience", &still));
    assert_eq!(
        (&early["ending"], &early["steps"]),
        (&"patience".into(), &4.into())
    );
    // Evaluations after steps 3 and 4, and none was better than the start.
    assert_eq!(
        (&early["student_step"], &early["kept"]),
        (&0.into(), &"best".into())
    );
    // A rate that grows from step to step: better at first, then worse and worse.
    let rate = ["train.learning_rate=0.3", "train.warmup_fraction=1.0"];
    let wild = [
        "--json",
        "--set",
        rate[0],
        "--set",
        rate[1],
        "--set",
        "train.patience=2",
    ];
    let early = workshop.json(&distill("wild", &wild));
    assert_eq!(early["ending"], "patience", "{early}");
    let best = workshop.json(&["collapse", "wild", "--best", "--out", "best", "--json"]);
    assert_eq!(early["student_step"], best["step"]);
    assert!(best["step"].as_u64() < early["steps"].as_u64(), "{early}");
    assert_eq!(early["kl_end"], best["evaluation"]["kl"]);
    let best = fs::read(workshop.path("best/model.safetensors")).unwrap();
    assert!(best == student(&workshop, "wild"));
}

/// A rate at which nothing is learned costs steps, not the student.
#[test]
fn a_run_that_gets_worse_goes_back_and_exports_its_best() {
    let workshop = Workshop::new();
    let wild = [
        "--set",
        "train.learning_rate=10",
        "--set",
        "train.warmup_fraction=0",
    ];
    let output = workshop.run(&distill("wild", &[&wild[..], &["--json"]].concat()));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(
        told.contains("above that of the start: going back to"),
        "{told}"
    );
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    let kl = |key: &str| summary[key].as_f64().unwrap();
    assert!(summary["rollbacks"].as_u64().unwrap() > 0, "{summary}");
    assert!(kl("kl_end") <= kl("kl_start") + 1e-6, "{summary}");
    assert_eq!(summary["steps"], STEPS);
    // The same again, from amid.
    kill_after(&workshop, &distill("killed", &wild), 400);
    if !workshop.path("killed/summary.json").exists() {
        workshop.succeed(&distill("killed", &[&wild[..], &["--resume"]].concat()));
    }
    assert!(student(&workshop, "killed") == student(&workshop, "wild"));
}

/// One set of weights for two layers, through both phases, a kill and the export.
#[test]
fn layers_that_are_one_stay_one() {
    let workshop = Workshop::new();
    let rules = [
        "weights.share={ 'model\\.layers\\.0\\.(.*)' = 'model.layers.1.$1' }",
        "weights.copy={ 'model\\.layers\\.1\\.mlp\\.(.*)' = 'model.layers.0.mlp.$1' }",
        "phase2.steps=12",
        "phase2.train=all",
    ];
    let rules: Vec<&str> = rules.iter().flat_map(|rule| ["--set", rule]).collect();
    workshop.succeed(&distill("whole", &rules));
    let bytes = student(&workshop, "whole");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let twin = |name: &str| {
        let twin = name.replace(".layers.0.", ".layers.1.");
        tensors.tensor(&twin).unwrap()
    };
    let layer_0 = tensors.iter();
    let layer_0: Vec<_> = layer_0
        .filter(|(name, _)| name.contains(".layers.0."))
        .collect();
    assert!(layer_0.len() >= 9, "{}", layer_0.len());
    for (name, tensor) in layer_0 {
        assert!(twin(name).data() == tensor.data(), "{name}");
    }
    let summary = fs::read_to_string(workshop.path("whole/summary.json")).unwrap();
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert!(
        summary["kl_end"].as_f64() < summary["kl_start"].as_f64(),
        "{summary}"
    );

    let resume = distill("killed", &[&rules[..], &["--resume"]].concat());
    for milliseconds in [300, 500, 400] {
        kill_after(&workshop, &resume, milliseconds);
    }
    if !workshop.path("killed/summary.json").exists() {
        workshop.succeed(&resume);
    }
    assert!(student(&workshop, "killed") == bytes);

    let layer_9 = "weights.share={ 'model\\.layers\\.9\\.(.*)' = 'model.layers.1.$1' }";
    let errors = workshop.fail(&distill("none", &["--set", layer_9]));
    assert!(
        errors.contains("weights.share") && errors.contains("burn-lti plan"),
        "{errors}"
    );
}

/// With as many top tokens as there are, a teacher in files teaches what the teacher does.
#[test]
fn a_cached_teacher_teaches_what_the_teacher_does() {
    let workshop = Workshop::new();
    let cache = [
        "cache-teacher",
        "recipe.toml",
        "--out",
        "top",
        "--top-k",
        "61",
    ];
    workshop.succeed(&cache);
    let verify = ["verify-cache", "recipe.toml", "--cache", "top", "--json"];
    let check = workshop.json(&verify);
    assert!(
        check["largest_difference"].as_f64().unwrap() < 1e-5,
        "{check}"
    );
    assert!(check["rows"].as_u64().unwrap() > 10);

    let mixed = ["--set", "loss.alpha=0.7", "--set", "loss.temperature=2.0"];
    workshop.succeed(&distill("online", &mixed));
    let cached = ["--set", "teacher.cache=top"];
    workshop.succeed(&distill("offline", &[&mixed[..], &cached].concat()));
    let losses = |out| -> Vec<f64> {
        let lines = metrics(&workshop, out);
        lines
            .iter()
            .filter_map(|line| line["loss"].as_f64())
            .collect()
    };
    let (online, offline) = (losses("online"), losses("offline"));
    assert_eq!(online.len(), STEPS / 2);
    for (a, b) in online.iter().zip(&offline) {
        assert!((a - b).abs() < 1e-4 * a, "{a} {b}");
    }
    let lines = metrics(&workshop, "offline");
    let step = lines
        .iter()
        .find(|line| line.get("loss").is_some())
        .unwrap();
    assert!(
        step.get("kl").is_none() && step["teacher_ce"].is_number(),
        "{step}"
    );

    // Few of them, in half precision, still teach.
    let few = [
        "cache-teacher",
        "recipe.toml",
        "--out",
        "few",
        "--top-k",
        "8",
        "--half",
    ];
    workshop.succeed(&few);
    workshop.succeed(&distill("from-few", &["--set", "teacher.cache=few"]));
    let losses = losses("from-few");
    assert!(losses[losses.len() - 1] < losses[0], "{losses:?}");

    let feature = [&cached[..], &["--set", "loss.feature={ weight = 1.0 }"]].concat();
    let errors = workshop.fail(&distill("feature", &feature));
    assert!(errors.contains("attention outputs"), "{errors}");
    let seq_len = [&cached[..], &["--set", "train.seq_len=12"]].concat();
    let errors = workshop.fail(&distill("other", &seq_len));
    assert!(errors.contains("cache-teacher"), "{errors}");
    // The last bit of the last weight.
    let weights = workshop.path("teacher/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 4;
    bytes[last] ^= 1;
    fs::write(&weights, &bytes).unwrap();
    let errors = workshop.fail(&distill("another", &cached));
    assert!(errors.contains("another teacher"), "{errors}");
    bytes[last] ^= 1;
    fs::write(&weights, &bytes).unwrap();

    let file = workshop.path("top/shard-00000.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, bytes).unwrap();
    let errors = workshop.fail(&verify[..4]);
    assert!(errors.contains("shard-00000"), "{errors}");
}
