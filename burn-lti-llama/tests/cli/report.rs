//! The page of a run: whole in itself, from the files of the run.

use std::fs;

use roxmltree::{Document, ParsingOptions};

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
    workshop.succeed(&train);
    let files = fs::read(workshop.path("out/files.json")).unwrap();
    assert!(workshop.succeed(&["report", "out"]).contains("report.html"));
    let html = page(&workshop, "out/report.html");
    for what in [
        "<h3>Loss</h3>",
        "Gradient norm",
        "top-1 agreement",
        "AutoModelForCausalLM",
        "train.batch_size",
    ] {
        assert!(html.contains(what), "{what}");
    }
    // The run is as it was, and a page is replaced only if that is asked for.
    assert_eq!(fs::read(workshop.path("out/files.json")).unwrap(), files);
    assert!(workshop.fail(&["report", "out"]).contains("--overwrite"));
    workshop.succeed(&["report", "out", "--overwrite"]);
    assert_eq!(page(&workshop, "out/report.html"), html);
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
    ]);
    let errors = workshop.fail(&["report", "begun", "out"]);
    assert!(errors.contains("--out"), "{errors}");
    workshop.succeed(&["report", "begun", "out", "--out", "both.html"]);
    let html = page(&workshop, "both.html");
    assert!(
        html.contains("2 runs") && html.contains("not trained") && html.contains("key/value heads")
    );
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
