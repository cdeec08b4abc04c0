//! The page of a run: whole in itself, from the files of the run.

use std::fs;

use roxmltree::{Document, ParsingOptions};
use serde_json::Value;

use crate::workshop::Workshop;

/// What would be fetched, or run.
const NOT_THERE: [&str; 6] = ["<script", "<link", "src=", "@import", "url(", "<iframe"];

/// The page, after it was looked at as a whole.
fn page(workshop: &Workshop, name: &str) -> String {
    let page = fs::read_to_string(workshop.path(name)).unwrap();
    let options = ParsingOptions {
        allow_dtd: true,
        ..ParsingOptions::default()
    };
    let document = Document::parse_with_options(&page, options).unwrap();
    for node in document
        .descendants()
        .filter(|node| node.has_tag_name("svg"))
    {
        let mut around = node.ancestors();
        assert!(
            around
                .any(|node| node.attribute("role") == Some("img")
                    && node.has_attribute("aria-label"))
        );
    }
    for what in NOT_THERE {
        assert!(!page.contains(what), "{what}");
    }
    page
}

#[test]
fn a_run_has_a_page_that_needs_nothing_else() {
    let workshop = Workshop::new();
    let train = [
        "distill",
        "recipe.toml",
        "--out",
        "out",
        "--set",
        "train.log_every=1",
    ];
    let told = workshop.succeed(&train);
    assert!(told.contains("report:  out/report.html"), "{told}");
    let files = fs::read(workshop.path("out/files.json")).unwrap();
    let html = page(&workshop, "out/report.html");
    for what in [
        "<h3>Loss</h3>",
        "Gradient norm",
        "top-1 agreement",
        "AutoModelForCausalLM",
        "With 95&#160;% confidence the KL",
        "train.batch_size",
    ] {
        assert!(html.contains(what), "{what}");
    }
    let found = fs::read(workshop.path("out/evaluation.json")).unwrap();
    let found: Value = serde_json::from_slice(&found).unwrap();
    let summary = fs::read(workshop.path("out/summary.json")).unwrap();
    let summary: Value = serde_json::from_slice(&summary).unwrap();
    assert_eq!(found["kl"], summary["kl_end"]);
    let [low, high] = ["low", "high"].map(|end| found["kl_interval"][end].as_f64().unwrap());
    let kl = found["kl"].as_f64().unwrap();
    assert!(0.0 < low && low < kl && kl < high, "{found}");
    // The run is as it was, and a page is replaced only if that is asked for.
    assert_eq!(fs::read(workshop.path("out/files.json")).unwrap(), files);
    assert!(workshop.fail(&["report", "out"]).contains("--overwrite"));
    workshop.succeed(&["report", "out", "--overwrite"]);
    assert_eq!(page(&workshop, "out/report.html"), html);
}

#[test]
fn the_page_is_that_of_the_run_as_it_is() {
    let workshop = Workshop::new();
    let on = |steps: &str, more: &[&str]| {
        let steps = format!("train.steps={steps}");
        let all = ["--set", "train.checkpoint_every=2", "--set", &steps];
        let run = ["distill", "recipe.toml", "--out", "out"];
        workshop.succeed(&[&run[..], &all, more].concat())
    };
    let is_of = |steps: &str| {
        let row = format!("<code>train.steps</code> *</th><td><code>{steps}</code></td>");
        page(&workshop, "out/report.html").contains(&row)
    };
    on("2", &[]);
    assert!(is_of("2"));
    on("6", &["--resume"]);
    assert!(is_of("6"));
    // Off it is not there, and that of the run before is not either.
    assert!(!on("8", &["--resume", "--set", "report=false"]).contains("report.html"));
    assert!(!workshop.path("out/report.html").exists());
    on("3", &["--overwrite"]);
    assert!(is_of("3"));
    on("3", &["--overwrite", "--set", "report=false"]);
    assert!(!workshop.path("out/report.html").exists());
}

#[test]
fn a_page_of_the_users_own_stays() {
    let workshop = Workshop::new();
    let begin = ["start", "recipe.toml", "--out", "out"];
    let told = workshop.succeed(&begin);
    assert!(told.contains("report:  out/report.html"), "{told}");
    assert!(page(&workshop, "out/report.html").contains("not trained"));
    // Made anew by hand it is the run's still.
    workshop.succeed(&["report", "out", "--overwrite"]);
    workshop.succeed(&[&begin[..], &["--overwrite"]].concat());
    let html = workshop.path("out/report.html");
    fs::write(&html, "mine").unwrap();
    let errors = workshop.fail(&[&begin[..], &["--overwrite"]].concat());
    assert!(
        errors.contains("report.html is not as the run wrote it") && errors.contains("move it")
    );
    assert_eq!(fs::read_to_string(&html).unwrap(), "mine");

    // Where it comes to be while a run goes on, the run is whole and says that it has none.
    let train = [
        "distill",
        "recipe.toml",
        "--out",
        "run",
        "--set",
        "train.checkpoint_every=2",
        "--set",
        "report=false",
    ];
    workshop.succeed(&train);
    fs::write(workshop.path("run/report.html"), "mine").unwrap();
    let more = ["--resume", "--set", "report=true", "--set", "train.steps=6"];
    let output = workshop.run(&[&train[..], &more].concat());
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{errors}");
    assert!(
        errors.contains("warning: no page was written of run")
            && errors.contains("run/report.html was not written by this run: move it away"),
        "{errors}"
    );
    let left = fs::read_to_string(workshop.path("run/report.html"));
    assert_eq!(left.unwrap(), "mine");
}

#[test]
fn several_runs_are_beside_each_other() {
    let workshop = Workshop::new();
    let calibrated = ["--set", "lti.start=calibrated", "--set", "lti.map=general"];
    workshop.succeed(&[&["start", "recipe.toml", "--out", "begun"][..], &calibrated].concat());
    workshop.succeed(&[
        "distill",
        "recipe.toml",
        "--out",
        "out",
        "--set",
        "train.steps=1",
        "--set",
        "train.seq_len=48",
        "--set",
        "data.documents=joined",
    ]);
    // A run of a version that did not write it.
    fs::remove_file(workshop.path("begun/evaluation.json")).unwrap();
    let errors = workshop.fail(&["report", "begun", "out"]);
    assert!(errors.contains("--out"), "{errors}");
    workshop.succeed(&["report", "begun", "out", "--out", "both.html"]);
    let html = page(&workshop, "both.html");
    assert!(
        html.contains("2 runs") && html.contains("not trained") && html.contains("key/value heads")
    );
    assert_eq!(html.matches("KL by position in a document:").count(), 1);
    assert!(html.contains("id=\"run-1\"") && html.contains("id=\"run-2\""));
}

#[test]
fn a_folder_that_is_no_run_is_named() {
    let workshop = Workshop::new();
    for folder in ["teacher", "nowhere"] {
        let errors = workshop.fail(&["report", folder]);
        assert!(
            errors.contains(folder) && errors.contains("no finished run"),
            "{errors}"
        );
    }
}
