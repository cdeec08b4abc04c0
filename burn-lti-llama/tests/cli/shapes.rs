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
    for (start, narrower, forms) in [
        ("grouped", true, "hidden = 'shared', width = 'shared'"),
        ("lecun", true, "hidden = 'shared', width = 'shared'"),
        ("calibrated", false, "hidden = 'shared', width = 'shared'"),
        ("calibrated", true, "hidden = 'shared', width = 'shared'"),
        ("calibrated", true, "hidden = 'general', width = 'general'"),
        ("calibrated", true, "hidden = 'general'"),
    ] {
        let name = format!("{start}-{narrower}-{}", forms.len());
        let (whole, killed) = (format!("whole-{name}"), format!("killed-{name}"));
        let start = format!("lti.start={start}");
        let map = format!("lti.map={{ {forms} }}");
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

/// A recipe that gives nothing of the shape, and keys that have one of at most nine tenths searched, at the teacher's
/// width.
fn without_shape() -> (Workshop, [&'static str; 6]) {
    let workshop = Workshop::new();
    let recipe = fs::read_to_string(workshop.path("recipe.toml")).unwrap();
    let without: Vec<&str> = recipe
        .lines()
        .filter(|line| !line.starts_with("heads") && !line.starts_with("kv_heads"))
        .collect();
    fs::write(workshop.path("recipe.toml"), without.join("\n")).unwrap();
    let keys = [
        "--set",
        "student.target={ parameters = 0.9, train_steps = 3 }",
        "--set",
        "lti.start=calibrated",
        "--set",
        "student.hidden_size=24",
    ];
    (workshop, keys)
}

fn numbers(shapes: &Value, key: &str) -> Vec<f64> {
    let shapes = shapes.as_array().unwrap().iter();
    shapes.filter_map(|it| it[key].as_f64()).collect()
}

#[test]
fn a_shape_that_is_small_enough_is_searched_and_kept_on_resuming() {
    let (workshop, target) = without_shape();
    let teacher = workshop.json(&["plan", "recipe.toml", "--json"]);
    let all = teacher["totals"]["teacher_parameters"].as_f64().unwrap();
    let listed = workshop.json(&[&["plan", "recipe.toml", "--json"], &target[..]].concat());
    let sizes = numbers(&listed, "parameters");
    assert!(!sizes.is_empty() && sizes.iter().all(|size| *size <= 0.9 * all));
    assert!(numbers(&listed, "kl").is_empty() && numbers(&listed, "kl_trained").is_empty());
    let search = [&["plan", "recipe.toml", "--json", "--shapes"], &target[..]].concat();
    let untrained = [
        "--set",
        "student.target={ parameters = 0.9, train_steps = 0 }",
    ];
    let tried = workshop.json(&[&search[..], &untrained].concat());
    let kls = numbers(&tried, "kl");
    assert!(kls.len() == sizes.len() && kls.is_sorted(), "{kls:?}");
    assert!(numbers(&tried, "kl_trained").is_empty());
    // The nearest are trained, and the nearest of them after it comes first.
    let output = workshop.run(&search);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(errors.matches("loading the teacher").count(), 1, "{errors}");
    let count = kls.len().min(3);
    let trainings = errors.matches("training a shape, 3 steps: ").count();
    assert_eq!(trainings, count, "{errors}");
    let trained: Value = serde_json::from_slice(&output.stdout).unwrap();
    let after = numbers(&trained, "kl_trained");
    assert!(after.len() == count && after.is_sorted(), "{after:?}");
    let mut before: Vec<f64> = numbers(&trained, "kl")[..count].to_vec();
    before.sort_by(f64::total_cmp);
    assert_eq!(before, kls[..count]);
    assert!(trained[0]["seconds_trained"].as_f64().unwrap() > 0.0);

    workshop.succeed(&distill("out", &target));
    let made = config(&workshop, "out/student");
    let resolved = fs::read_to_string(workshop.path("out/recipe.toml")).unwrap();
    assert!(!resolved.contains("target"), "{resolved}");
    assert!(made["num_hidden_layers"].as_u64().is_some());
    // Finished, and the same run: nothing is searched again.
    let resume = [&target[..], &["--resume"]].concat();
    let errors = workshop.fail(&distill("out", &resume));
    assert!(
        errors.contains("finished") && !errors.contains("trying a shape"),
        "{errors}"
    );
    // Another target is another search.
    let smaller = [
        "--set",
        "student.target={ parameters = 0.8, train_steps = 3 }",
    ];
    let other = [&resume[..], &smaller].concat();
    let errors = workshop.fail(&distill("out", &other));
    assert!(
        errors.contains("`student.target.parameters`, by which the student's shape was searched")
            && errors.contains("was 0.9 and is now 0.8"),
        "{errors}"
    );

    let plan = |keys: &'static str| workshop.fail(&["plan", "recipe.toml", "--set", keys]);
    let errors = plan("student.target={ parameters = 0.001 }");
    assert!(errors.contains("the smallest has"), "{errors}");
    assert!(plan("student.target={ seconds = 3 }").contains("parameters = 0.5"));
    assert!(plan("student.target={ parameters = 0.5, train_steps = -1 }").contains("train_steps"));
}

#[test]
fn widths_are_searched_among_the_rest() {
    let (workshop, _) = without_shape();
    let keys = [
        "student.target={ parameters = 0.7, train_steps = 0 }",
        "lti.start=calibrated",
        "student.heads=4",
        "student.kv_heads=2",
        "student.layers=2",
    ];
    let keys: Vec<&str> = keys.iter().flat_map(|key| ["--set", key]).collect();
    let search = ["plan", "recipe.toml", "--json", "--shapes"];
    let tried = workshop.json(&[&search[..], &keys].concat());
    let widths: Vec<Option<u64>> = tried
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["student"]["hidden_size"].as_u64())
        .collect();
    assert!(widths.iter().any(Option::is_some), "{tried}");
    let is_stepped = |width: &u64| [22, 18, 16, 12].contains(width);
    assert!(widths.iter().flatten().all(is_stepped), "{widths:?}");
    assert_eq!(numbers(&tried, "kl").len(), widths.len(), "{tried}");
    let text = workshop.succeed(&[&["plan", "recipe.toml", "--shapes"], &keys[..]].concat());
    for part in [
        "KL before",
        "KL trained",
        "width ",
        "the first of them, for a recipe",
        "[student]",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_search_has_its_seconds_and_says_so() {
    let (workshop, target) = without_shape();
    let little = [
        "--set",
        "student.target={ parameters = 0.9, seconds = 1e-9 }",
    ];
    let search = [&["plan", "recipe.toml", "--json", "--shapes"], &target[..]].concat();
    let output = workshop.run(&[&search[..], &little].concat());
    let errors = String::from_utf8(output.stderr).unwrap();
    let shapes: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(numbers(&shapes, "kl").len(), 1);
    assert!(numbers(&shapes, "kl_trained").is_empty());
    assert!(
        errors.contains("1 of ") && errors.contains("raise student.target.seconds"),
        "{errors}"
    );
}

#[cfg(unix)]
#[test]
fn a_search_that_is_interrupted_leaves_no_folder() {
    use std::io::{BufRead, BufReader, Read};
    use std::process::{Command, Stdio};

    let (workshop, _) = without_shape();
    let slow = [
        "--set",
        "student.target={ parameters = 0.9, train_steps = 100000 }",
        "--set",
        "train.steps=100000",
        "--set",
        "student.hidden_size=24",
        "--set",
        "student.layers=2",
    ];
    let temporary = workshop.path("temporary");
    fs::create_dir(&temporary).unwrap();
    let plan = [&["plan", "recipe.toml", "--shapes"], &slow[..]].concat();
    let distill = [&["distill", "recipe.toml", "--out", "out"], &slow[..]].concat();
    for (arguments, stage) in [(plan, "training a shape"), (distill, "trying a shape")] {
        let mut command = workshop.command(&arguments);
        command.env("TMPDIR", &temporary);
        let mut child = command
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains(stage) {
            line.clear();
            assert!(errors.read_line(&mut line).unwrap() > 0);
        }
        assert_eq!(fs::read_dir(&temporary).unwrap().count(), 1);
        let id = child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-INT", &id])
                .status()
                .unwrap()
                .success()
        );
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(130), "{stage}");
        let mut rest = String::new();
        errors.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("in the search for a shape"), "{rest}");
        let left = fs::read_dir(&temporary).unwrap().count();
        assert_eq!(left, 0, "{stage}");
    }
    assert!(!workshop.path("out").exists());
}
