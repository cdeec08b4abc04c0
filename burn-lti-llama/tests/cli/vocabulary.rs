//! Students that know some of their teacher's tokens.

use std::fs;

use serde_json::{Value, json};

use crate::convert;
use crate::runs::{distill, kill_after, metrics, student};
use crate::workshop::Workshop;

const OF_TEXT: [&str; 2] = ["--set", "student.vocabulary=text"];

fn read(workshop: &Workshop, file: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(workshop.path(file)).unwrap()).unwrap()
}

/// The KL that `eval` finds on the held-out text.
fn kl(workshop: &Workshop, teacher: &str, student: &str) -> f64 {
    let models = ["eval", "--teacher", teacher, "--student", student];
    let text = ["--text", "valid.txt", "--seq-len", "16", "--json"];
    let found = workshop.json(&[&models[..], &text].concat());
    found["kl"].as_f64().unwrap()
}

#[test]
fn a_student_of_the_texts_tokens_is_made_resumed_collapsed_and_compared() {
    let workshop = Workshop::new();
    let plan = workshop.json(&[&["plan", "recipe.toml", "--json"], &OF_TEXT[..]].concat());
    let (kept, of) = (&plan["vocabulary"]["kept"], &plan["vocabulary"]["of"]);
    assert!(kept.as_u64() < of.as_u64() && *of == 61, "{plan}");
    assert_eq!(plan["vocabulary"]["covered"], 1.0);
    let tokens = &plan["vocabulary"]["tokens_per_document"];
    assert_eq!(tokens[0], tokens[1]);
    let whole = workshop.json(&["plan", "recipe.toml", "--json"]);
    let parameters = |plan: &Value, of: &str| plan["totals"][of].as_u64().unwrap();
    assert_eq!(
        parameters(&plan, "teacher_parameters"),
        parameters(&whole, "teacher_parameters")
    );
    let saved = parameters(&whole, "student_parameters") - parameters(&plan, "student_parameters");
    assert_eq!(plan["vocabulary"]["saved_parameters"], saved);
    let text = workshop.succeed(&[&["plan", "recipe.toml"], &OF_TEXT[..]].concat());
    let line = format!("tokens   {kept} of 61, ");
    assert!(
        text.contains(&line) && text.contains("a document as before"),
        "{text}"
    );

    for start in ["calibrated", "grouped"] {
        let (whole, killed) = (format!("whole-{start}"), format!("killed-{start}"));
        let start = format!("lti.start={start}");
        let more = [&OF_TEXT[..], &["--set", &start, "--set", "lti.map=general"]].concat();
        workshop.succeed(&distill(&whole, &more));
        let made = read(&workshop, &format!("{whole}/student/config.json"));
        assert_eq!(made["vocab_size"], *kept);
        let tokenizer = read(&workshop, &format!("{whole}/student/tokenizer.json"));
        assert_eq!(
            tokenizer["model"]["vocab"].as_object().unwrap().len() as u64,
            kept.as_u64().unwrap()
        );
        let manifest = read(&workshop, &format!("{whole}/manifest.json"));
        assert_eq!(manifest["kept_tokens"]["count"], *kept);
        let card = fs::read_to_string(workshop.path(&whole).join("student/README.md")).unwrap();
        assert!(
            card.contains(&format!("It knows {kept} of the 61 tokens")),
            "{card}"
        );

        kill_after(&workshop, &distill(&killed, &more), 300);
        let resume = [&more[..], &["--resume"]].concat();
        if !workshop.path(&killed).join("summary.json").exists() {
            workshop.succeed(&distill(&killed, &resume));
        }
        assert!(student(&workshop, &whole) == student(&workshop, &killed));
        assert_eq!(metrics(&workshop, &killed), metrics(&workshop, &whole));
        let collapsed = format!("collapsed-{whole}");
        workshop.succeed(&["collapse", &whole, "--out", &collapsed]);
        assert_eq!(
            read(&workshop, &format!("{collapsed}/config.json"))["vocab_size"],
            *kept
        );

        // The teacher is cut as the student says, and so it was in the run.
        let summary = read(&workshop, &format!("{whole}/summary.json"));
        let found = kl(&workshop, "teacher", &format!("{whole}/student"));
        let in_run = summary["kl_end"].as_f64().unwrap();
        assert!(
            (found - in_run).abs() < 1e-5 * (1.0 + in_run),
            "{found}, {in_run}"
        );
    }
    let written = workshop.succeed(&[
        "generate",
        "--model",
        "whole-grouped/student",
        "--prompt",
        "w3 w5",
        "--max-tokens",
        "3",
    ]);
    assert!(!written.is_empty());
}

#[test]
fn the_most_frequent_tokens_and_those_of_a_list_are_kept() {
    let workshop = Workshop::new();
    let plan = |vocabulary: &str| {
        let set = format!("student.vocabulary={vocabulary}");
        workshop.json(&["plan", "recipe.toml", "--json", "--set", &set])
    };
    // Beside those the three special tokens, two of which are the most frequent.
    let few = plan("7");
    assert_eq!(few["vocabulary"]["kept"], 8);
    assert_eq!(few["vocabulary"]["needed"], 1);
    let covered = few["vocabulary"]["covered"].as_f64().unwrap();
    assert!(covered > 0.1 && covered < 1.0, "{covered}");
    assert_eq!(plan("1000")["vocabulary"], plan("text")["vocabulary"]);
    let list = plan("[20, 7, 2]");
    assert_eq!(
        (&list["vocabulary"]["kept"], &list["vocabulary"]["needed"]),
        (&json!(5), &json!(2))
    );
    workshop.succeed(&distill("out", &["--set", "student.vocabulary=[20, 7, 2]"]));
    let tokenizer = read(&workshop, "out/student/tokenizer.json");
    let vocab = json!({"<unk>": 0, "<s>": 1, "</s>": 2, "w7": 3, "w20": 4});
    assert_eq!(tokenizer["model"]["vocab"], vocab);
    // A shape is searched beside it, and measured by what the whole teacher has.
    let target = ["--set", "student.target={ parameters = 0.9 }", "--json"];
    let shapes = workshop.json(&[&["plan", "recipe.toml"], &OF_TEXT[..], &target].concat());
    let teacher = few["totals"]["teacher_parameters"].as_f64().unwrap();
    for shape in shapes.as_array().unwrap() {
        assert_eq!(shape["student"]["vocabulary"], "text");
        assert!(
            shape["parameters"].as_f64().unwrap() <= 0.9 * teacher,
            "{shape}"
        );
    }
}

#[test]
fn what_is_no_vocabulary_is_refused() {
    let workshop = Workshop::new();
    let refused = |vocabulary: &str| {
        let set = format!("student.vocabulary={vocabulary}");
        workshop.fail(&["plan", "recipe.toml", "--set", &set])
    };
    for (vocabulary, says) in [
        ("[]", "must name at least one token"),
        ("[3, 4, 3]", "none twice"),
        ("0", "a number of tokens from 1 on"),
        ("most", "\"text\", a number of tokens, or a list"),
        ("[3, -1]", "\"text\", a number of tokens, or a list"),
        (
            "[3, 61]",
            "names token 61, which the teacher does not have: its tokens are numbered from 0 to 60",
        ),
    ] {
        let errors = refused(vocabulary);
        assert!(
            errors.contains("student.vocabulary") && errors.contains(says),
            "{errors}"
        );
    }
    // Fewer tokens than embeddings: what is beyond has no text.
    let mut tokenizer = read(&workshop, "teacher/tokenizer.json");
    let words = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    words.retain(|_, id| id.as_u64().unwrap() < 50);
    let write = |tokenizer: &Value| {
        fs::write(
            workshop.path("teacher/tokenizer.json"),
            tokenizer.to_string(),
        )
        .unwrap();
    };
    write(&tokenizer);
    let errors = refused("[55]");
    assert!(errors.contains("numbered from 0 to 49"), "{errors}");
    let set = ["--set", "student.vocabulary=[49]"];
    let plan = workshop.json(&[&["plan", "recipe.toml", "--json"], &set[..]].concat());
    assert_eq!(plan["student"]["vocab_size"], 4);
    // A tokenizer that makes of a text now these tokens and now others.
    tokenizer["model"] = json!({"type": "BPE", "unk_token": "<unk>", "dropout": 0.5,
        "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "w": 3, "1": 4, "2": 5, "3": 6, "w1": 7, "w2": 8, "w3": 9},
        "merges": ["w 1", "w 2", "w 3"]});
    write(&tokenizer);
    let errors = refused("text");
    assert!(
        errors.contains("becomes other tokens without the rest"),
        "{errors}"
    );
    assert!(errors.contains("train.txt"), "{errors}");
    fs::remove_file(workshop.path("teacher/tokenizer.json")).unwrap();
    assert!(refused("text").contains("no tokenizer.json"));
}

#[test]
fn another_vocabulary_is_another_run() {
    let workshop = Workshop::new();
    let [these, others] = [
        "student.vocabulary=[5, 7, 9]",
        "student.vocabulary=[5, 7, 11]",
    ];
    workshop.succeed(&distill("out", &["--set", these]));
    let errors = workshop.fail(&distill("out", &["--set", others, "--resume"]));
    assert!(
        errors.contains("`student.vocabulary` was [5, 7, 9] and is now [5, 7, 11]"),
        "{errors}"
    );
    // A program that keeps others of the same text.
    let path = workshop.path("out/manifest.json");
    let manifest = fs::read_to_string(&path).unwrap();
    let mut edited: Value = serde_json::from_str(&manifest).unwrap();
    edited["kept_tokens"]["sha256"] = "0".repeat(64).into();
    fs::write(&path, edited.to_string()).unwrap();
    for arguments in [
        &distill("out", &["--set", these, "--resume"])[..],
        &["collapse", "out", "--out", "collapsed"],
    ] {
        let errors = workshop.fail(arguments);
        let says =
            "the student's vocabulary (student.vocabulary) has other tokens of the teacher's";
        assert!(errors.contains(says), "{errors}");
    }
    fs::write(&path, manifest).unwrap();

    let cache = [
        "cache-teacher",
        "recipe.toml",
        "--top-k",
        "5",
        "--out",
        "top",
        "--set",
    ];
    workshop.succeed(&[&cache[..], &[these]].concat());
    workshop.succeed(&[
        "verify-cache",
        "recipe.toml",
        "--cache",
        "top",
        "--set",
        these,
    ]);
    let cached = ["--set", "teacher.cache=top", "--set"];
    let run = |out, more: &[&'static str]| distill(out, &[&cached[..], more].concat());
    workshop.succeed(&run("cached", &[these]));
    let errors = workshop.fail(&run("other", &[others]));
    assert!(
        errors.contains("are of another student.vocabulary"),
        "{errors}"
    );
    let errors = workshop.fail(&run("whole", &["train.seed=1"]));
    assert!(errors.contains("are of a vocabulary of 6"), "{errors}");
}

#[test]
fn a_student_whose_tokens_are_not_the_teachers_cannot_be_compared() {
    let workshop = Workshop::new();
    workshop.succeed(&distill("out", &["--set", "student.vocabulary=[5, 7, 9]"]));
    assert!(kl(&workshop, "teacher", "out/student").is_finite());
    let path = workshop.path("out/student/tokenizer.json");
    let text = fs::read_to_string(&path)
        .unwrap()
        .replace("\"w7\"", "\"v7\"");
    fs::write(&path, text).unwrap();
    let eval = ["eval", "--teacher", "teacher", "--student", "out/student"];
    let eval = [&eval[..], &["--text", "valid.txt"]].concat();
    let errors = workshop.fail(&eval);
    assert!(
        errors.contains("knows 61 tokens and the student 6, which are not some of them"),
        "{errors}"
    );
    fs::remove_file(path).unwrap();
    assert!(workshop.fail(&eval).contains("no tokenizer.json"));
}

#[test]
fn byte_pairs_are_cut_in_a_folder_and_in_a_gguf_file() {
    // A tokenizer with fewer tokens than the teacher has embeddings.
    let workshop = convert::workshop();
    workshop.succeed(&["convert", "teacher", "--out", "teacher.gguf"]);
    workshop.succeed(&distill("of-folder", &OF_TEXT));
    let made = read(&workshop, "of-folder/student/config.json");
    let tokenizer = read(&workshop, "of-folder/student/tokenizer.json");
    let vocab = tokenizer["model"]["vocab"].as_object().unwrap();
    assert_eq!(made["vocab_size"], vocab.len());
    assert!(vocab.len() <= 18 && vocab.contains_key("\u{120}w"));
    let of_file = [&OF_TEXT[..], &["--set", "teacher.path='teacher.gguf'"]].concat();
    workshop.succeed(&distill("of-file", &of_file));
    assert!(student(&workshop, "of-file") == student(&workshop, "of-folder"));
    workshop.succeed(&["convert", "of-folder/student", "--out", "student.gguf"]);
    let found = kl(&workshop, "teacher", "of-folder/student");
    for (teacher, student) in [
        ("teacher", "student.gguf"),
        ("teacher.gguf", "of-file/student"),
    ] {
        let other = kl(&workshop, teacher, student);
        assert!(
            (found - other).abs() < 1e-6 * (1.0 + found),
            "{found}, {other}"
        );
    }
}
