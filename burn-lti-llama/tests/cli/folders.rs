//! What becomes of folders: nothing of a run is lost, and nothing else is ever touched.

use std::fs;
use std::path::Path;

use burn_lti::files::FolderLock;
use serde_json::Value;

use crate::runs::{distill, kill_after, metrics, student};
use crate::workshop::Workshop;

/// A rate at which nothing is learned, from the first step on.
const DIVERGE: [&str; 4] = [
    "--set",
    "train.warmup_fraction=0",
    "--set",
    "train.learning_rate=1e38",
];

/// The files of a run that say what it was and came to.
fn whole(workshop: &Workshop, out: &str) -> Vec<Vec<u8>> {
    let names = [
        "recipe.toml",
        "manifest.json",
        "summary.json",
        "metrics.jsonl",
        "student/config.json",
        "student/README.md",
        "student/model.safetensors",
    ];
    let read = |name| fs::read(workshop.path(out).join(name)).unwrap();
    names.into_iter().map(read).collect()
}

fn summary(workshop: &Workshop, out: &str) -> Value {
    let text = fs::read_to_string(workshop.path(out).join("summary.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// What a command tells that succeeds.
fn told(workshop: &Workshop, arguments: &[&str]) -> String {
    let output = workshop.run(arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?}: {errors}");
    errors
}

#[test]
fn a_finished_student_stays_until_another_is() {
    let workshop = Workshop::new();
    workshop.succeed(&distill("out", &[]));
    fs::write(workshop.path("out/notes.txt"), "mine").unwrap();
    let before = whole(&workshop, "out");

    let errors = workshop.fail(&distill("out", &[&["--overwrite"], &DIVERGE[..]].concat()));
    assert!(
        errors.contains("the run in out is as it was") && errors.contains("out/run.unfinished"),
        "{errors}"
    );
    assert!(whole(&workshop, "out") == before);
    // What is read is not there, or is no recipe's: nothing has begun.
    let errors = workshop.fail(&distill(
        "out",
        &["--overwrite", "--set", "data.train=['none.txt']"],
    ));
    assert!(errors.contains("none.txt"), "{errors}");

    let longer = ["--set", "train.steps=400"];
    for milliseconds in [30, 400, 200] {
        let overwrite = [&longer[..], &["--overwrite"]].concat();
        kill_after(&workshop, &distill("out", &overwrite), milliseconds);
        assert!(whole(&workshop, "out") == before);
    }
    // It goes on where it was killed, and takes the place of the other once it is finished.
    let resume = [&longer[..], &["--resume"]].concat();
    workshop.succeed(&distill("out", &resume));
    workshop.succeed(&distill("alone", &longer));
    assert!(student(&workshop, "out") == student(&workshop, "alone"));
    assert_eq!(metrics(&workshop, "out"), metrics(&workshop, "alone"));
    assert_eq!(summary(&workshop, "out")["steps"], 400);
    let names = |out: &str| {
        let entries = fs::read_dir(workshop.path(out)).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let mut expected = names("alone");
    expected.push("notes.txt".to_owned());
    expected.sort();
    assert_eq!(names("out"), expected);
    // And once more, in one go.
    workshop.succeed(&distill("out", &["--overwrite"]));
    assert_eq!(names("out"), expected);
    assert_eq!(summary(&workshop, "out")["steps"], 40);
}

#[test]
fn overwriting_touches_nothing_that_no_run_wrote() {
    type Edit = fn(&Path);
    let edits: [(Edit, &str); 5] = [
        (
            |out| fs::write(out.join("student/notes.md"), "mine").unwrap(),
            "out/student/notes.md was not written by a run",
        ),
        (
            |out| fs::write(out.join("student/README.md"), "mine").unwrap(),
            "out/student/README.md is not as the run wrote it",
        ),
        (
            |out| fs::write(out.join("metrics.jsonl"), "mine\n").unwrap(),
            "out/metrics.jsonl is not as the run wrote it",
        ),
        (
            |out| {
                fs::create_dir_all(out.join("checkpoints/mine")).unwrap();
                fs::write(out.join("checkpoints/mine/weights"), "mine").unwrap();
            },
            "out/checkpoints/mine/weights was not written by a run",
        ),
        (
            |out| fs::remove_file(out.join("files.json")).unwrap(),
            "out/summary.json was not written by a run",
        ),
    ];
    for (edit, expected) in edits {
        let workshop = Workshop::new();
        workshop.succeed(&["distill", "recipe.toml", "--out", "out"]);
        edit(&workshop.path("out"));
        let before = files(&workshop.path("out"));
        let errors = workshop.fail(&["distill", "recipe.toml", "--out", "out", "--overwrite"]);
        assert!(
            errors.contains(expected) && errors.contains("move it away"),
            "{errors}"
        );
        assert!(files(&workshop.path("out")) == before, "{expected}");
    }
    // A student of somebody else's, and a recipe that lies where a run would put its own.
    let workshop = Workshop::new();
    fs::create_dir(workshop.path("mine")).unwrap();
    fs::rename(workshop.path("teacher"), workshop.path("mine/student")).unwrap();
    fs::create_dir(workshop.path("teacher")).unwrap();
    for entry in fs::read_dir(workshop.path("mine/student")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(
            &path,
            workshop.path("teacher").join(path.file_name().unwrap()),
        )
        .unwrap();
    }
    let before = files(&workshop.path("mine"));
    let errors = workshop.fail(&["start", "recipe.toml", "--out", "mine", "--overwrite"]);
    assert!(errors.contains("was not written by a run"), "{errors}");
    assert!(files(&workshop.path("mine")) == before);
    workshop.succeed(&["distill", "recipe.toml", "--out", "out"]);
    let errors = workshop.fail(&["distill", "out/recipe.toml", "--out", "out", "--overwrite"]);
    assert!(errors.contains("would replace it"), "{errors}");
}

/// What is in a folder, but for who holds it.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false if path.ends_with(".lock") => {}
            false => found.push((path.display().to_string(), fs::read(&path).unwrap())),
        }
    }
    found.sort();
    found
}

/// Of a run with whole checkpoints that has lost something else.
#[test]
fn what_is_lost_or_damaged_beside_whole_checkpoints_keeps_no_run_from_going_on() {
    let workshop = Workshop::new();
    workshop.succeed(&distill("whole", &[]));
    let cases: [(&str, Option<&str>, &str); 8] = [
        ("summary.json", None, "going on after step 39"),
        ("summary.json", Some("{"), "summary.json is damaged"),
        ("metrics.jsonl", None, "metrics.jsonl is lost"),
        (
            "metrics.jsonl",
            Some("what\n{\"step\": 1}\n"),
            "no line of metrics",
        ),
        ("recipe.toml", None, "written again"),
        ("recipe.toml", Some("[train]\nsteps ="), "written again"),
        ("manifest.json", None, "manifest.json is lost"),
        ("files.json", None, "going on after step 39"),
    ];
    for (index, (name, text, expected)) in cases.into_iter().enumerate() {
        let out = format!("out{index}");
        workshop.succeed(&distill(&out, &[]));
        let dir = workshop.path(&out);
        let _ = fs::remove_file(dir.join("summary.json"));
        fs::remove_dir_all(dir.join("checkpoints/step-00000040")).unwrap();
        match text {
            Some(text) => fs::write(dir.join(name), text).unwrap(),
            None => {
                let _ = fs::remove_file(dir.join(name));
            }
        }
        let notes = told(&workshop, &distill(&out, &["--resume"]));
        assert!(notes.contains(expected), "{name}: {notes}");
        assert!(!notes.contains("starting over"), "{name}: {notes}");
        assert!(
            student(&workshop, &out) == student(&workshop, "whole"),
            "{name}"
        );
        assert!(dir.join("summary.json").exists() && dir.join("metrics.jsonl").exists());
        let recipe = fs::read(dir.join("recipe.toml")).unwrap();
        assert_eq!(
            recipe,
            fs::read(workshop.path("whole/recipe.toml")).unwrap()
        );
        if name != "files.json" {
            workshop.succeed(&distill(&out, &["--overwrite"]));
        }
    }
    // Another recipe does not stand in for a lost one, and a damaged manifest says what to do.
    fs::write(workshop.path("whole/summary.json"), "").unwrap();
    fs::write(workshop.path("whole/recipe.toml"), "[").unwrap();
    let other = ["--resume", "--set", "train.seed=5"];
    let errors = workshop.fail(&distill("whole", &other));
    assert!(
        errors.contains("put the file back, or give that recipe"),
        "{errors}"
    );
    let errors = workshop.fail(&["collapse", "whole", "--out", "student"]);
    assert!(errors.contains("distill --resume"), "{errors}");
    workshop.succeed(&distill("whole", &["--resume"]));
    fs::remove_file(workshop.path("whole/summary.json")).unwrap();
    fs::write(workshop.path("whole/manifest.json"), "{").unwrap();
    let errors = workshop.fail(&distill("whole", &["--resume"]));
    assert!(errors.contains("delete it, and --resume"), "{errors}");
    assert!(!errors.contains("--overwrite"), "{errors}");
}

/// What all of it trains is in the checkpoint; what does not is calculated again.
#[test]
fn a_start_that_is_lost_is_calculated_again_where_it_is_needed() {
    let workshop = Workshop::new();
    let calibrated = ["--set", "lti.start=calibrated", "--set", "lti.map=general"];
    let refit = ["--set", "calibration.feed_forward=refit"];
    for (out, more, expected) in [
        ("trained", &[][..], "nothing of it is needed"),
        ("refitted", &refit[..], "it is calculated again"),
    ] {
        let run = [&calibrated[..], more].concat();
        workshop.succeed(&distill(out, &run));
        let before = student(&workshop, out);
        let resume = [&run[..], &["--resume"]].concat();
        for bytes in [100, 0] {
            fs::remove_file(workshop.path(out).join("summary.json")).unwrap();
            let path = workshop.path(out).join("start.safetensors");
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_len(bytes).unwrap();
            let notes = told(&workshop, &distill(out, &resume));
            assert!(notes.contains("start.safetensors is damaged"), "{notes}");
            assert!(notes.contains(expected), "{notes}");
            assert!(notes.contains("going on after step 40"), "{notes}");
            assert!(student(&workshop, out) == before, "{out}");
        }
        fs::remove_file(workshop.path(out).join("start.safetensors")).unwrap();
        workshop.succeed(&["collapse", out, "--out", "collapsed"]);
        fs::remove_dir_all(workshop.path("collapsed")).unwrap();
    }
}

/// Maps of query and key that keep rotary pairs, in plain coordinates and in those of each pair.
#[test]
fn rotary_maps_go_on_bit_for_bit() {
    let workshop = Workshop::new();
    let maps = [
        "--set",
        "lti.map=general",
        "--set",
        "lti.start=calibrated",
        "--set",
        "lti.rotary=kept",
    ];
    for (out, rate) in [
        ("plain", "train.learning_rate=1e-2"),
        ("whitened", "train.learning_rate=auto"),
    ] {
        let run = [&maps[..], &["--set", rate]].concat();
        workshop.succeed(&distill(out, &run));
        let before = student(&workshop, out);
        fs::remove_file(workshop.path(out).join("summary.json")).unwrap();
        fs::remove_dir_all(workshop.path(out).join("checkpoints/step-00000040")).unwrap();
        let notes = told(
            &workshop,
            &distill(out, &[&run[..], &["--resume"]].concat()),
        );
        assert!(notes.contains("going on after step 39"), "{notes}");
        assert!(student(&workshop, out) == before, "{out}");
    }
    let contradiction = ["plan", "recipe.toml", "--set", "lti.rotary=kept"];
    let errors = workshop.fail(&contradiction);
    assert!(errors.contains("lti.rotary = \"free\""), "{errors}");
}

#[test]
fn a_student_without_checkpoints_is_not_trained_away_for_a_lost_summary() {
    let workshop = Workshop::new();
    workshop.succeed(&["distill", "recipe.toml", "--out", "out"]);
    let before = student(&workshop, "out");
    for damage in [None, Some("{")] {
        let path = workshop.path("out/summary.json");
        match damage {
            None => fs::remove_file(&path).unwrap(),
            Some(text) => fs::write(&path, text).unwrap(),
        }
        let errors = workshop.fail(&["distill", "recipe.toml", "--out", "out", "--resume"]);
        assert!(
            errors.contains("summary.json") && errors.contains("burn-lti eval"),
            "{errors}"
        );
        assert!(student(&workshop, "out") == before);
    }
}

#[test]
fn a_finished_run_is_trained_further() {
    let workshop = Workshop::new();
    workshop.succeed(&distill("out", &[]));
    let further = ["--resume", "--set", "train.steps=60"];
    // Killed on the way, the finished student is there still.
    let before = student(&workshop, "out");
    kill_after(&workshop, &distill("out", &further), 60);
    if summary(&workshop, "out")["steps"] == 40 {
        assert!(student(&workshop, "out") == before);
        let notes = told(&workshop, &distill("out", &further));
        assert!(notes.contains("going on after step "), "{notes}");
    }
    assert_eq!(summary(&workshop, "out")["steps"], 60);
    let recipe = fs::read_to_string(workshop.path("out/recipe.toml")).unwrap();
    assert!(recipe.contains("steps = 60"), "{recipe}");
    let notes = told(
        &workshop,
        &distill("out", &["--resume", "--set", "train.steps=80"]),
    );
    assert!(
        notes.contains(
            "train.steps was 60 and is now 80: from here on the rate is that of 80 steps"
        ),
        "{notes}"
    );
    let steps: Vec<u64> = metrics(&workshop, "out")
        .iter()
        .filter(|line| line.get("eval").is_none())
        .map(|line| line["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, (1..=40).map(|step| 2 * step).collect::<Vec<_>>());

    let same = ["--resume", "--set", "train.steps=80"];
    let errors = workshop.fail(&distill("out", &same));
    assert!(errors.contains("raise train.steps above 80"), "{errors}");
    let fewer = workshop.fail(&distill("out", &["--resume"]));
    assert!(
        fewer.contains("`train.steps` was 80 and is now 40"),
        "{fewer}"
    );
    workshop.succeed(&["distill", "recipe.toml", "--out", "plain"]);
    let errors = workshop.fail(&[
        "distill",
        "recipe.toml",
        "--out",
        "plain",
        "--resume",
        "--set",
        "train.steps=9",
    ]);
    assert!(errors.contains("train.checkpoint_every"), "{errors}");
}

#[test]
fn a_folder_has_one_writer() {
    const CACHE: [&str; 6] = [
        "cache-teacher",
        "recipe.toml",
        "--out",
        "top",
        "--top-k",
        "8",
    ];

    let workshop = Workshop::new();
    for name in ["out", "runs", "top"] {
        fs::create_dir(workshop.path(name)).unwrap();
    }
    let process = format!("the process {}", std::process::id());
    let locks = ["out", "runs", "top"].map(|name| FolderLock::take(&workshop.path(name)).unwrap());
    for arguments in [
        &["distill", "recipe.toml", "--out", "out"][..],
        &["distill", "recipe.toml", "--out", "out", "--resume"],
        &["distill", "recipe.toml", "--out", "out", "--overwrite"],
        &["start", "recipe.toml", "--out", "out"],
        &["compare", "recipe.toml", "--out", "runs", "--seeds", "1"],
        &CACHE,
    ] {
        let errors = workshop.fail(arguments);
        assert!(errors.contains(&process), "{arguments:?}: {errors}");
    }
    drop(locks);
    workshop.succeed(&["distill", "recipe.toml", "--out", "out"]);
    workshop.succeed(&CACHE);
}

#[test]
fn a_collapse_that_fails_leaves_nothing_in_the_way() {
    let workshop = Workshop::new();
    workshop.succeed(&distill("out", &[]));
    // Killed amid its writing.
    fs::create_dir(workshop.path(".best.unfinished")).unwrap();
    fs::write(workshop.path(".best.unfinished/half"), "").unwrap();
    fs::create_dir(workshop.path("best")).unwrap();
    workshop.succeed(&["collapse", "out", "--out", "best"]);
    assert!(!workshop.path("best/half").exists());
    assert!(!workshop.path(".best.unfinished").exists());
    let file = |dir: &str| fs::read(workshop.path(dir).join("model.safetensors")).unwrap();
    assert!(file("best") == student(&workshop, "out"));
    for (out, expected) in [("best", "already holds"), ("recipe.toml", "is no folder")] {
        let errors = workshop.fail(&["collapse", "out", "--out", out]);
        assert!(errors.contains(expected), "{errors}");
    }
    // In the folder of the run, it is the run's.
    fs::remove_dir_all(workshop.path("out/student")).unwrap();
    workshop.succeed(&["collapse", "out"]);
    workshop.succeed(&distill("out", &["--overwrite"]));
}

#[cfg(unix)]
#[test]
fn a_collapse_without_room_leaves_nothing_that_looks_like_a_student() {
    let workshop = Workshop::new();
    workshop.succeed(&distill("out", &[]));
    let limited = std::process::Command::new("sh")
        .args(["-c", "ulimit -f 4; exec \"$0\" collapse out --out best"])
        .arg(env!("CARGO_BIN_EXE_burn-lti"))
        .current_dir(workshop.path(""))
        .output()
        .unwrap();
    assert!(!limited.status.success());
    assert!(!workshop.path("best").exists());
    workshop.succeed(&["collapse", "out", "--out", "best"]);
}

#[test]
fn where_there_is_no_terminal_a_line_comes_every_so_often() {
    let workshop = Workshop::new();
    let notes = told(&workshop, &distill("out", &[]));
    let lines: Vec<&str> = notes
        .lines()
        .filter(|line| line.contains(" of 40: loss "))
        .collect();
    assert!(lines.len() >= 10, "{notes}");
    assert!(
        lines.iter().all(|line| line.contains("tokens/s")),
        "{notes}"
    );
    assert!(
        lines[0].contains("step 4 of 40") && lines[0].contains(" left"),
        "{notes}"
    );
    assert!(lines[lines.len() - 1].contains("step 40 of 40"), "{notes}");
}
