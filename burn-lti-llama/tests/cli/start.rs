//! The calculated start: made alone, trained afterwards, stopped and taken up.

use std::fs;

use burn::backend::Flex;
use burn::tensor::DType;
use burn_lti::calibration::CalibratedStart;

use crate::runs::{distill, kill_after, metrics, student};
use crate::workshop::{RECIPE, Workshop};

const CALIBRATED: [&str; 4] = ["--set", "lti.start=calibrated", "--set", "lti.map=general"];

#[test]
fn a_start_is_a_student_at_once_and_can_be_trained() {
    let workshop = Workshop::new();
    let start = ["start", "recipe.toml", "--out", "out"];
    let refit = ["--set", "calibration.feed_forward=refit"];
    let start = [&start[..], &CALIBRATED, &refit].concat();
    let text = workshop.succeed(&start);
    assert!(
        text.contains("heads kept") && text.contains("KL "),
        "{text}"
    );
    assert!(student(&workshop, "out").len() > 1000);
    let errors = workshop.fail(&start);
    assert!(errors.contains("already holds files"), "{errors}");

    let report: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(workshop.path("out/start.json")).unwrap())
            .unwrap();
    assert_eq!(report["layers"].as_array().unwrap().len(), 2);
    let begun = report["evaluation"]["kl"].as_f64().unwrap();

    let train = ["distill", "recipe.toml", "--out", "out", "--resume"];
    workshop.succeed(&[&train[..], &CALIBRATED, &refit].concat());
    let summary = fs::read_to_string(workshop.path("out/summary.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
    let kl = summary["kl_start"].as_f64().unwrap();
    // The maps in one program, their kernels out of a file in the other.
    assert!((kl - begun).abs() < 1e-5 * (1.0 + kl), "{kl}, {begun}");
}

#[test]
fn a_calibrated_run_that_is_killed_goes_on_from_the_same_start() {
    let workshop = Workshop::new();
    let more = [
        &CALIBRATED[..],
        &[
            "--set",
            "calibration.feed_forward=refit",
            "--set",
            "phase2.steps=10",
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

    let text = workshop.succeed(&["collapse", "whole", "--best", "--out", "best"]);
    assert!(text.contains("KL "), "{text}");
}

#[test]
fn a_damaged_start_is_calculated_again() {
    let workshop = Workshop::new();
    let start = ["start", "recipe.toml", "--out", "out"];
    workshop.succeed(&[&start[..], &CALIBRATED].concat());
    let path = workshop.path("out/start.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    let train = ["distill", "recipe.toml", "--out", "out", "--resume"];
    let output = workshop.run(&[&train[..], &CALIBRATED].concat());
    let notes = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{notes}");
    assert!(
        notes.contains("start.safetensors is damaged") && notes.contains("calculated again"),
        "{notes}"
    );
    // The same text gives the same start; nothing else of the run is touched.
    workshop.succeed(
        &[
            &["distill", "recipe.toml", "--out", "whole"],
            &CALIBRATED[..],
        ]
        .concat(),
    );
    assert!(student(&workshop, "out") == student(&workshop, "whole"));
}

#[test]
fn a_start_goes_on_with_the_layers_that_are_calculated() {
    let workshop = Workshop::new();
    let train = ["distill", "recipe.toml", "--out"];
    let run = |out, more: &[&'static str]| [&train[..], &[out], &CALIBRATED, more].concat();
    workshop.succeed(&run("whole", &[]));
    workshop.succeed(&[&["start", "recipe.toml", "--out", "out"], &CALIBRATED[..]].concat());
    // As if it had been stopped after the first of two layers.
    let [path, partial] = ["start.safetensors", "start.partial.safetensors"]
        .map(|name| workshop.path("out").join(name));
    let device = Default::default();
    let mut start = CalibratedStart::<Flex>::load(&path, DType::F32, &device).unwrap();
    start.layers.truncate(1);
    start.save(&partial).unwrap();
    fs::remove_file(&path).unwrap();
    let output = workshop.run(&run("out", &["--resume"]));
    let notes = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{notes}");
    assert!(notes.contains("going on after 1 of 2 layers"), "{notes}");
    assert!(
        !notes.contains("layer 0: ") && notes.contains("layer 1: "),
        "{notes}"
    );
    assert!(path.exists() && !partial.exists());
    assert!(student(&workshop, "out") == student(&workshop, "whole"));
}

#[test]
fn text_that_is_too_little_is_refused_before_anything_is_exported() {
    let workshop = Workshop::new();
    fs::write(workshop.path("train.txt"), "w3 w4 w5\nw6 w7\n").unwrap();
    let start = ["start", "recipe.toml", "--out", "out"];
    let train = ["--set", "calibration.text=train"];
    let errors = workshop.fail(&[&start[..], &CALIBRATED, &train].concat());
    assert!(errors.contains("more text"), "{errors}");
    assert!(!workshop.path("out/student").exists());
    // Unless told what to read, the teacher writes what is missing.
    let text = workshop.run(&[&start[..], &CALIBRATED, &["--overwrite"]].concat());
    let notes = String::from_utf8_lossy(&text.stderr).into_owned();
    assert!(text.status.success(), "{notes}");
    assert!(notes.contains("the teacher writes its own"), "{notes}");
}

#[test]
fn a_recipe_that_says_nothing_of_maps_is_calibrated() {
    let workshop = Workshop::new();
    let recipe = RECIPE.replace(
        "[lti]\nstart = \"grouped\"\nmap = \"factored\"\ntrain = \"maps\"\n",
        "",
    );
    assert!(!recipe.contains("lti"));
    fs::write(workshop.path("silent.toml"), recipe).unwrap();
    let plan = workshop.succeed(&["plan", "silent.toml"]);
    for part in ["general, start calibrated", "train    all"] {
        assert!(plan.contains(part), "{plan}");
    }
    assert!(!plan.contains("-0.000"), "{plan}");
    let silent = workshop.json(&["distill", "silent.toml", "--out", "silent", "--json"]);
    let grouped = workshop.json(&["distill", "recipe.toml", "--out", "grouped", "--json"]);
    let kl = |summary: &serde_json::Value| summary["kl_start"].as_f64().unwrap();
    assert!(kl(&silent) < kl(&grouped), "{silent}\n{grouped}");
    assert!(workshop.path("silent/start.safetensors").exists());
}

#[test]
fn a_teacher_writes_its_own_calibration_text() {
    let workshop = Workshop::new();
    let start = |out, text| {
        let start = ["start", "recipe.toml", "--json", "--out", out];
        let text = ["--set", text, "--set", "calibration.sequences=16"];
        workshop.json(&[&start[..], &CALIBRATED, &text].concat())
    };
    let own = start("own", "calibration.text=teacher");
    let read = start("read", "calibration.text=train");
    assert!(own["evaluation"]["kl"].is_number());
    assert_ne!(own["layers"][0]["residual"], read["layers"][0]["residual"]);
    let again = start("again", "calibration.text=teacher");
    assert_eq!(own["evaluation"], again["evaluation"]);
}
