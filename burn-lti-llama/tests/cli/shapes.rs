//! Students of fewer units and layers and of another width, given or searched.

use std::fs;

use serde_json::Value;

use crate::runs::{distill, kill_after, metrics, student};
use crate::workshop::Workshop;

fn config(workshop: &Workshop, folder: &str) -> Value {
    let text = fs::read_to_string(workshop.path(folder).join("config.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// A run that is killed after 250 ms and, resumed, after `second` more ends as the `whole` one did.
fn killed_is_the_same(
    workshop: &Workshop,
    [whole, killed]: [&str; 2],
    settings: &[&str],
    second: u64,
) {
    kill_after(workshop, &distill(killed, settings), 250);
    let resume = [settings, &["--resume"]].concat();
    kill_after(workshop, &distill(killed, &resume), second);
    if !workshop.path(killed).join("summary.json").exists() {
        workshop.succeed(&distill(killed, &resume));
    }
    assert!(
        student(workshop, whole) == student(workshop, killed),
        "{killed}"
    );
    assert_eq!(metrics(workshop, killed), metrics(workshop, whole));
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
        killed_is_the_same(&workshop, [&whole, &killed], &shape, 200);
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
fn maps_of_units_are_made_trained_folded_and_resumed() {
    let workshop = Workshop::new();
    let teacher = config(&workshop, "teacher");
    let units = teacher["intermediate_size"].as_u64().unwrap() - 3;
    let units = format!("student.intermediate_size={units}");
    for (start, hidden) in [
        ("calibrated", "general"),
        ("calibrated", "shared"),
        ("grouped", "shared"),
        ("lecun", "general"),
    ] {
        let name = format!("{start}-{hidden}");
        let (whole, killed) = (format!("whole-{name}"), format!("killed-{name}"));
        let start = format!("lti.start={start}");
        let map = format!("lti.map={{ hidden = '{hidden}' }}");
        let set = [
            &units,
            &start,
            &map,
            "phase2.steps=8",
            "train.grad_clip=1.0",
        ];
        let set: Vec<&str> = set.iter().flat_map(|it| ["--set", it]).collect();
        workshop.succeed(&distill(&whole, &set));
        let made = config(&workshop, &format!("{whole}/student"));
        assert!(units.ends_with(&made["intermediate_size"].to_string()));
        killed_is_the_same(&workshop, [&whole, &killed], &set, 300);
    }
    let errors = workshop.fail(&["plan", "recipe.toml", "--set", "lti.map={ width = 'wide' }"]);
    assert!(errors.contains("lti.map.width"), "{errors}");
    // Where the units are the teacher's, so is the student, but for its heads.
    let kl = |out: &str, more: &[&str]| {
        let start = ["start", "recipe.toml", "--out", out];
        workshop.succeed(&[&start[..], more].concat());
        let text = fs::read_to_string(workshop.path(out).join("start.json")).unwrap();
        let report: Value = serde_json::from_str(&text).unwrap();
        report["evaluation"]["kl"].as_f64().unwrap()
    };
    let of_maps = kl("of-maps", &["--set", "lti.map={ hidden = 'shared' }"]);
    let of_weights = kl("of-weights", &["--set", "lti.map=general"]);
    assert_eq!(of_maps, of_weights);
    let errors = workshop.fail(&[
        "plan",
        "recipe.toml",
        "--set",
        "lti.map={ hidden = 'dense' }",
    ]);
    assert!(
        errors.contains("lti.map.hidden") && errors.contains("weights, general, shared"),
        "{errors}"
    );
}

#[test]
fn one_map_of_the_width_is_made_trained_folded_and_resumed() {
    let workshop = Workshop::new();
    let teacher = config(&workshop, "teacher");
    let width = teacher["hidden_size"].as_u64().unwrap() - 8;
    for (start, narrower) in [("grouped", true), ("lecun", true), ("calibrated", false)] {
        let (whole, killed) = (format!("whole-{start}"), format!("killed-{start}"));
        let start = format!("lti.start={start}");
        let map = "lti.map={ hidden = 'shared', width = 'shared' }".to_owned();
        let mut set = vec![start, map, "phase2.steps=8".to_owned()];
        if narrower {
            set.push(format!("student.hidden_size={width}"));
        }
        let set: Vec<&str> = set.iter().flat_map(|it| ["--set", it.as_str()]).collect();
        workshop.succeed(&distill(&whole, &set));
        let made = config(&workshop, &format!("{whole}/student"));
        let expected = if narrower { width } else { width + 8 };
        assert_eq!(made["hidden_size"], expected);
        kill_after(&workshop, &distill(&killed, &set), 250);
        let resume = [&set[..], &["--resume"]].concat();
        kill_after(&workshop, &distill(&killed, &resume), 300);
        if !workshop.path(&killed).join("summary.json").exists() {
            workshop.succeed(&distill(&killed, &resume));
        }
        assert!(
            student(&workshop, &whole) == student(&workshop, &killed),
            "{whole}"
        );
        assert_eq!(metrics(&workshop, &killed), metrics(&workshop, &whole));
    }
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
