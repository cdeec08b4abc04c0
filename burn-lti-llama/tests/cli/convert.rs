//! `convert`, and a GGUF file in the place of a model's folder.

use std::fs;

use serde_json::{Value, json};

use crate::workshop::Workshop;

/// A workshop whose teacher has a tokenizer that GGUF has a form for: byte-pair encoding of bytes.
pub(crate) fn workshop() -> Workshop {
    let workshop = Workshop::new();
    let special = ["<unk>", "<s>", "</s>"];
    let pieces = [
        "w", "\u{120}", "\u{120}w", "1", "2", "3", "4", "5", "6", "7", "8", "9", "0", "11", "12",
    ];
    let vocab: serde_json::Map<String, Value> = special
        .iter()
        .chain(&pieces)
        .zip(0..)
        .map(|(token, id): (&&str, u32)| ((*token).to_owned(), id.into()))
        .collect();
    let added = |(token, id): (&&str, u32)| {
        json!({ "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
    };
    let added: Vec<Value> = special.iter().zip(0..).map(added).collect();
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": { "type": "BPE", "vocab": vocab, "merges": ["\u{120} w", "1 1", "1 2"] },
    });
    fs::write(
        workshop.path("teacher/tokenizer.json"),
        tokenizer.to_string(),
    )
    .unwrap();
    workshop
}

fn weights(workshop: &Workshop, folder: &str) -> Vec<u8> {
    fs::read(workshop.path(folder).join("model.safetensors")).unwrap()
}

#[test]
fn a_gguf_file_teaches_what_the_folder_does() {
    let workshop = workshop();
    let text = workshop.succeed(&["convert", "teacher", "--out", "teacher.gguf"]);
    assert_eq!(text, "F32: teacher.gguf\n");
    let set = ["--set", "teacher.path='teacher.gguf'"];
    let with = |arguments: &[&str]| workshop.json(&[arguments, &["--json"]].concat());

    let plan = ["plan", "recipe.toml"];
    let (of_folder, of_file) = (with(&plan), with(&[&plan[..], &set].concat()));
    assert_eq!(of_file["tensors"], of_folder["tensors"]);
    assert_eq!(of_file["text"], of_folder["text"]);

    // The same start, calibrated on the same tokens.
    let start = [
        "start",
        "recipe.toml",
        "--set",
        "lti.start='calibrated'",
        "--set",
        "lti.train='all'",
    ];
    workshop.succeed(&[&start[..], &["--out", "from-folder"]].concat());
    workshop.succeed(&[&start[..], &set, &["--out", "from-file"]].concat());
    let [folder, file] = ["from-folder/student", "from-file/student"];
    assert_eq!(weights(&workshop, folder), weights(&workshop, file));
    let tokenizer: Value = serde_json::from_slice(
        &fs::read(workshop.path("from-file/student/tokenizer.json")).unwrap(),
    )
    .unwrap();
    assert_eq!(tokenizer["model"]["merges"][0], json!(["\u{120}", "w"]));

    let run = ["distill", "recipe.toml", "--out", "out"];
    let summary = with(&[&run[..], &set].concat());
    assert_eq!(summary["steps"], 4);
    let manifest = fs::read(workshop.path("out/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let files = manifest["teacher"]["files"].as_object().unwrap();
    assert_eq!(files.keys().collect::<Vec<_>>(), ["model.gguf"]);

    for arguments in [
        &[
            "generate",
            "--model",
            "teacher.gguf",
            "--prompt",
            "w5 w9",
            "--max-tokens",
            "3",
        ][..],
        &[
            "eval",
            "--teacher",
            "teacher.gguf",
            "--student",
            "out/student",
            "--text",
            "valid.txt",
            "--seq-len",
            "16",
        ],
    ] {
        let of_file = workshop.succeed(arguments);
        let of_folder = arguments.iter().map(|it| it.trim_end_matches(".gguf"));
        assert_eq!(of_file, workshop.succeed(&of_folder.collect::<Vec<_>>()));
    }
    let corpus = [
        "sample-corpus",
        "--model",
        "teacher.gguf",
        "--out",
        "corpus.jsonl",
        "--tokens",
        "64",
    ];
    workshop.succeed(&corpus);
}

#[test]
fn a_student_goes_to_gguf_and_back() {
    let workshop = workshop();
    workshop.succeed(&["start", "recipe.toml", "--out", "out"]);
    let convert = [
        "convert",
        "out/student",
        "--to",
        "gguf",
        "--out",
        "student.gguf",
    ];
    workshop.succeed(&convert);
    assert!(workshop.fail(&convert).contains("add --overwrite"));
    let f16 = [&convert[..], &["--dtype", "f16", "--overwrite"]].concat();
    assert_eq!(workshop.succeed(&f16), "F16: student.gguf\n");
    workshop.succeed(&[&convert[..], &["--overwrite"]].concat());

    workshop.succeed(&["convert", "student.gguf", "--out", "back"]);
    assert_eq!(
        weights(&workshop, "back"),
        weights(&workshop, "out/student")
    );
    let into = ["convert", "student.gguf", "--out", "back"];
    assert!(workshop.fail(&into).contains("back holds files already"));
    workshop.succeed(&[&into[..], &["--overwrite", "--dtype", "bf16"]].concat());
    assert!(weights(&workshop, "back").len() < weights(&workshop, "out/student").len());

    // Other forms of nothing at all.
    let folder = ["convert", "out/student", "--to", "gguf", "--out", "student"];
    assert!(workshop.fail(&folder).contains("does not end in .gguf"));
    let quantized = [
        "convert",
        "out/student",
        "--out",
        "other",
        "--dtype",
        "q8_0",
    ];
    assert!(workshop.fail(&quantized).contains("a folder holds no Q8_0"));
    let shards = [
        "convert",
        "out/student",
        "--out",
        "x.gguf",
        "--max-shard-size",
        "1MB",
    ];
    assert!(workshop.fail(&shards).contains("--max-shard-size"));
    let itself = [
        "convert",
        "out/student",
        "--out",
        "out/student",
        "--overwrite",
    ];
    assert!(workshop.fail(&itself).contains("is the model itself"));
    fs::create_dir(workshop.path("folder.gguf")).unwrap();
    let over = [
        "convert",
        "out/student",
        "--to",
        "gguf",
        "--out",
        "folder.gguf",
        "--overwrite",
    ];
    assert!(workshop.fail(&over).contains("folder.gguf"));
}

#[test]
fn rows_that_blocks_do_not_divide_are_said_before_and_refused() {
    let workshop = workshop();
    // The teacher's four heads of 8 are a block, the student's two are none.
    let plan = workshop.succeed(&["plan", "recipe.toml"]);
    assert!(
        plan.contains("rows of o_proj have 16 numbers, which blocks of 32"),
        "{plan}"
    );
    assert!(plan.contains("4 query heads of 8 would do"), "{plan}");
    let whole = workshop.succeed(&["plan", "recipe.toml", "--set", "student.heads=4"]);
    assert!(!whole.contains("which blocks of 32"), "{whole}");
    workshop.succeed(&["start", "recipe.toml", "--out", "out"]);
    let convert = [
        "convert",
        "out/student",
        "--out",
        "student.gguf",
        "--dtype",
        "q8_0",
    ];
    let error = workshop.fail(&convert);
    assert!(
        error.contains("in Q8_0") && error.contains("nearest that work"),
        "{error}"
    );
    assert!(!workshop.path("student.gguf").exists());
}

#[test]
fn a_file_that_is_no_gguf_is_named_for_what_is_wrong() {
    let workshop = workshop();
    fs::write(workshop.path("broken.gguf"), "GGUF").unwrap();
    let set = ["plan", "recipe.toml", "--set", "teacher.path='broken.gguf'"];
    assert!(
        workshop
            .fail(&set)
            .contains("broken.gguf ends within its version")
    );
    fs::create_dir(workshop.path("models")).unwrap();
    fs::rename(
        workshop.path("broken.gguf"),
        workshop.path("models/broken.gguf"),
    )
    .unwrap();
    let folder = ["plan", "recipe.toml", "--set", "teacher.path='models'"];
    assert!(
        workshop
            .fail(&folder)
            .contains("the path of the .gguf file itself")
    );
    let absent = ["convert", "absent.gguf", "--out", "x"];
    assert!(workshop.fail(&absent).contains("cannot read absent.gguf"));
}
