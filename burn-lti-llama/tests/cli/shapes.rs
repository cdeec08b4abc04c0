//! Students of fewer units and layers and of another width, given or searched.

use std::fs;

use serde_json::Value;

use crate::runs::{distill, kill_after, metrics, student};
use crate::workshop::Workshop;

fn config(workshop: &Workshop, folder: &str) -> Value {
    let text = fs::read_to_string(workshop.path(folder).join("config.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_smaller_student_is_made_resumed_collapsed_and_read() {
    let workshop = Workshop::new();
    let teacher = config(&workshop, "teacher");
    let units = teacher["intermediate_size"].as_u64().unwrap() - 3;
    let units = format!("student.intermediate_size={units}");
    let width = teacher["hidden_size"].as_u64().unwrap() * 3 / 4;
    let width = format!("student.hidden_size={width}");
    for start in ["calibrated", "grouped", "lecun"] {
        let (whole, killed) = (format!("whole-{start}"), format!("killed-{start}"));
        let start = format!("lti.start={start}");
        let shape = [
            "--set",
            &units,
            "--set",
            "student.layers=1",
            "--set",
            &width,
            "--set",
            "student.tie_embeddings=false",
            "--set",
            &start,
        ];
        workshop.succeed(&distill(&whole, &shape));
        let made = config(&workshop, &format!("{whole}/student"));
        assert_eq!(made["num_hidden_layers"], 1);
        assert!(units.ends_with(&made["intermediate_size"].to_string()));
        assert!(width.ends_with(&made["hidden_size"].to_string()));
        assert_eq!(made["tie_word_embeddings"], false);
        assert_eq!(made["head_dim"], teacher["head_dim"]);
        // The layer that was chosen is not chosen again, and the same is kept.
        kill_after(&workshop, &distill(&killed, &shape), 250);
        let resume = [&shape[..], &["--resume"]].concat();
        kill_after(&workshop, &distill(&killed, &resume), 200);
        if !workshop.path(&killed).join("summary.json").exists() {
            workshop.succeed(&distill(&killed, &resume));
        }
        assert!(
            student(&workshop, &whole) == student(&workshop, &killed),
            "{start}"
        );
        assert_eq!(metrics(&workshop, &killed), metrics(&workshop, &whole));
        let collapsed = format!("collapsed-{whole}");
        workshop.succeed(&["collapse", &whole, "--out", &collapsed]);
        assert_eq!(config(&workshop, &collapsed)["num_hidden_layers"], 1);
    }
    let eval = [
        "eval",
        "--teacher",
        "teacher",
        "--student",
        "whole-grouped/student",
    ];
    workshop.succeed(&[&eval[..], &["--text", "valid.txt", "--seq-len", "32"]].concat());
}

#[test]
fn a_narrower_student_goes_through_both_phases_and_writes() {
    let workshop = Workshop::new();
    let teacher = config(&workshop, "teacher");
    let width = teacher["hidden_size"].as_u64().unwrap() * 3 / 4;
    let width = format!("student.hidden_size={width}");
    let phases = [
        "--set",
        &width,
        "--set",
        "lti.start=calibrated",
        "--set",
        "lti.train=maps",
        "--set",
        "phase2.steps=2",
        "--set",
        "phase2.train=all",
    ];
    workshop.succeed(&distill("out", &phases));
    // One table for both ends, as in the teacher.
    let made = config(&workshop, "out/student");
    assert_eq!(made["tie_word_embeddings"], true);
    let eval = ["eval", "--teacher", "teacher", "--student", "out/student"];
    workshop.succeed(&[&eval[..], &["--text", "valid.txt", "--seq-len", "32"]].concat());
    let generate = ["generate", "--model", "out/student", "--prompt", "w3 w4"];
    workshop.succeed(&[&generate[..], &["--max-tokens", "4"]].concat());
    let wide = ["plan", "recipe.toml", "--set", "student.hidden_size=1000"];
    let errors = workshop.fail(&wide);
    assert!(errors.contains("student.hidden_size is 1000"), "{errors}");
}

#[test]
fn a_shape_that_is_small_enough_is_searched_and_kept_on_resuming() {
    let workshop = Workshop::new();
    let teacher = workshop.json(&["plan", "recipe.toml", "--json"]);
    let all = teacher["totals"]["teacher_parameters"].as_f64().unwrap();
    let recipe = fs::read_to_string(workshop.path("recipe.toml")).unwrap();
    let without: Vec<&str> = recipe
        .lines()
        .filter(|line| !line.starts_with("heads") && !line.starts_with("kv_heads"))
        .collect();
    fs::write(workshop.path("recipe.toml"), without.join("\n")).unwrap();
    let target = [
        "--set",
        "student.target={ parameters = 0.9 }",
        "--set",
        "lti.start=calibrated",
    ];
    let listed = workshop.json(&[&["plan", "recipe.toml", "--json"], &target[..]].concat());
    let listed = listed.as_array().unwrap();
    assert!(!listed.is_empty());
    for shape in listed {
        assert!(
            shape["parameters"].as_f64().unwrap() <= 0.9 * all,
            "{shape}"
        );
        assert!(shape.get("kl").is_none());
    }
    let tried =
        workshop.json(&[&["plan", "recipe.toml", "--json", "--shapes"], &target[..]].concat());
    let kls: Vec<f64> = tried
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|it| it["kl"].as_f64())
        .collect();
    assert!(kls.len() == listed.len() && kls.is_sorted(), "{kls:?}");

    workshop.succeed(&distill("out", &target));
    let made = config(&workshop, "out/student");
    let resolved = fs::read_to_string(workshop.path("out/recipe.toml")).unwrap();
    assert!(!resolved.contains("target"), "{resolved}");
    assert_eq!(
        made["intermediate_size"],
        tried[0]["student"]["intermediate_size"]
    );
    // Finished, and the same run: nothing is searched again.
    let resume = [&target[..], &["--resume"]].concat();
    let errors = workshop.fail(&distill("out", &resume));
    assert!(
        errors.contains("finished") && !errors.contains("trying a shape"),
        "{errors}"
    );

    let tiny = [
        "plan",
        "recipe.toml",
        "--set",
        "student.target={ parameters = 0.001 }",
    ];
    let errors = workshop.fail(&tiny);
    assert!(errors.contains("the smallest has"), "{errors}");
    let nothing = [
        "plan",
        "recipe.toml",
        "--set",
        "student.target={ seconds = 3 }",
    ];
    assert!(workshop.fail(&nothing).contains("parameters = 0.5"));
}
