//! What is wrong with what a command reads is named, and read in memory that is in proportion to it.

use std::fs;
use std::path::Path;

use crate::workshop::Workshop;

/// Overwrites all of a tensor in a safetensors file.
fn overwrite(file: &Path, tensor: &str, with: &[u8]) {
    let mut bytes = fs::read(file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let offset = |index: usize| header[tensor]["data_offsets"][index].as_u64().unwrap() as usize;
    let range = 8 + length + offset(0)..8 + length + offset(1);
    for number in bytes[range].chunks_exact_mut(with.len()) {
        number.copy_from_slice(with);
    }
    fs::write(file, bytes).unwrap();
}

/// A folder with a second teacher, one of whose tensors overflows.
fn with_damaged(tensor: &str) -> Workshop {
    let workshop = Workshop::new();
    fs::create_dir(workshop.path("damaged")).unwrap();
    for entry in fs::read_dir(workshop.path("teacher")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(
            entry.path(),
            workshop.path("damaged").join(entry.file_name()),
        )
        .unwrap();
    }
    let weights = workshop.path("damaged/model.safetensors");
    overwrite(&weights, tensor, &3e38_f32.to_le_bytes());
    workshop
}

const NORM: &str = "model.norm.weight";
const MLP: &str = "model.layers.1.mlp.down_proj.weight";

#[test]
fn a_model_that_computes_no_numbers_is_named_with_its_first_layer() {
    let workshop = with_damaged(MLP);
    let layer = "first in layer 1 (its feed-forward block)";
    let eval = |teacher, student, by_position| {
        let mut arguments = vec!["eval", "--json", "--teacher", teacher, "--student", student];
        arguments.extend(["--text", "valid.txt", "--seq-len", "16"]);
        arguments.extend(by_position);
        workshop.fail(&arguments)
    };
    for by_position in [None, Some("--by-position")] {
        let errors = eval("damaged", "teacher", by_position);
        assert!(
            errors.contains("the teacher in damaged") && errors.contains(layer),
            "{errors}"
        );
        let errors = eval("teacher", "damaged", by_position);
        assert!(
            errors.contains("the student in damaged") && errors.contains(layer),
            "{errors}"
        );
    }
    let errors = workshop.fail(&[
        "logits",
        "--model",
        "damaged",
        "--text",
        "valid.txt",
        "--out",
        "l",
    ]);
    assert!(
        errors.contains("the model in damaged") && errors.contains(layer),
        "{errors}"
    );
    assert!(!workshop.path("l").exists());
    let errors = workshop.fail(&["generate", "--model", "damaged", "--prompt", "w3 w4"]);
    assert!(
        errors.contains("the model in damaged") && errors.contains(layer),
        "{errors}"
    );

    let teacher = ["--set", "teacher.path=damaged"];
    for (command, more) in [
        ("start", &["--out", "o"][..]),
        ("distill", &["--out", "p"]),
        ("cache-teacher", &["--out", "c", "--top-k", "4"]),
        ("compare", &["--out", "q", "--starts", "grouped"]),
    ] {
        let arguments = [&[command, "recipe.toml"], more, &teacher].concat();
        let errors = workshop.fail(&arguments);
        assert!(errors.contains("the teacher in "), "{command}: {errors}");
        assert!(
            errors.contains("damaged computes numbers") && errors.contains(layer),
            "{command}: {errors}"
        );
    }
    // What comes after the last layer is no layer.
    let workshop = with_damaged(NORM);
    let errors = workshop.fail(&["generate", "--model", "damaged", "--prompt", "w3 w4"]);
    assert!(
        errors.contains("first in the norm after the last layer"),
        "{errors}"
    );
}

#[test]
fn a_training_that_diverges_in_its_last_step_says_where() {
    let workshop = Workshop::new();
    let diverging = [
        "distill",
        "recipe.toml",
        "--out",
        "o",
        "--set",
        "train.steps=1",
        "--set",
        "train.learning_rate=1e38",
        "--set",
        "train.warmup_fraction=0",
    ];
    let errors = workshop.fail(&diverging);
    assert!(
        errors.contains("training diverged") && errors.contains("step 1"),
        "{errors}"
    );
    assert!(
        errors.contains("first in layer 0") && errors.contains("train.learning_rate"),
        "{errors}"
    );
    assert!(!workshop.path("o/student").exists());
}

#[test]
fn a_damaged_cache_is_named_and_mended_by_the_command_that_wrote_it() {
    let workshop = Workshop::new();
    let cache = ["cache-teacher", "recipe.toml", "--out", "c", "--top-k", "4"];
    workshop.succeed(&cache);
    let distill = [
        "distill",
        "recipe.toml",
        "--overwrite",
        "--out",
        "o",
        "--set",
        "teacher.cache=c",
        "--set",
        "train.steps=1",
    ];
    let shard = workshop.path("c/shard-00000.safetensors");
    let whole = fs::read(&shard).unwrap();
    for (tensor, number) in [
        ("log_probs", 5.0_f32.to_le_bytes()),
        ("ids", 512_u32.to_le_bytes()),
    ] {
        overwrite(&shard, tensor, &number);
        let errors = workshop.fail(&distill);
        assert!(errors.contains("shard-00000.safetensors"), "{errors}");
        assert!(errors.contains("burn-lti cache-teacher"), "{errors}");
        workshop.succeed(&cache);
        assert_eq!(fs::read(&shard).unwrap(), whole);
    }
    workshop.succeed(&distill);
}

#[test]
fn what_is_longer_than_any_of_its_kind_is_refused_with_the_bound() {
    let workshop = Workshop::new();
    let recipe = fs::read_to_string(workshop.path("recipe.toml")).unwrap();
    fs::write(workshop.path("long.toml"), recipe + &"\n".repeat(1 << 20)).unwrap();
    let errors = workshop.fail(&["plan", "long.toml"]);
    assert!(
        errors.contains("long.toml") && errors.contains("more than 1048576 bytes"),
        "{errors}"
    );

    let pattern = format!("weights.freeze=['{}']", "x".repeat(5000));
    let errors = workshop.fail(&["plan", "recipe.toml", "--set", &pattern]);
    assert!(
        errors.contains("`weights.freeze` holds a pattern of 5000 bytes"),
        "{errors}"
    );

    let config = workshop.path("teacher/config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.clone() + &" ".repeat(1 << 20)).unwrap();
    let errors = workshop.fail(&["plan", "recipe.toml"]);
    assert!(
        errors.contains("config.json") && errors.contains("more than 1048576 bytes"),
        "{errors}"
    );
    fs::write(&config, text).unwrap();

    let template = workshop.path("teacher/chat_template.jinja");
    fs::write(&template, " ".repeat((1 << 20) + 1)).unwrap();
    let errors = workshop.fail(&["plan", "recipe.toml"]);
    assert!(
        errors.contains("chat_template.jinja") && errors.contains("more than 1048576 bytes"),
        "{errors}"
    );
}

#[test]
#[cfg(target_os = "linux")]
fn one_long_line_takes_memory_in_proportion_to_it() {
    let workshop = Workshop::new();
    // Long words, so that what is measured is the making of tokens, and not the sequences of them.
    let line = format!("{} ", "x".repeat(39)).repeat(150_000);
    fs::write(workshop.path("line.txt"), &line).unwrap();
    let peak = |text: &str, out: &str| {
        let train = format!("data.train=['{text}']");
        let one_step = ["--set", "train.steps=1", "--set", &train, "--json"];
        let distill = [&["distill", "recipe.toml", "--out", out], &one_step[..]].concat();
        workshop.json(&distill)["peak_rss_bytes"].as_u64().unwrap()
    };
    let (short, long) = (peak("train.txt", "short"), peak("line.txt", "long"));
    // The library alone would take more than 50 times the line.
    let allowed = short + 20 * line.len() as u64;
    assert!(
        long < allowed,
        "{short} bytes without it, {long} with {} more",
        line.len()
    );
}

#[test]
fn an_unknown_field_is_accepted_by_name_listed_and_recorded() {
    let workshop = Workshop::new();
    let file = workshop.path("teacher/config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    config["residual_scale"] = 2.into();
    fs::write(&file, config.to_string()).unwrap();
    let errors = workshop.fail(&["plan", "recipe.toml"]);
    assert!(
        errors.contains("`residual_scale` is not known here")
            && errors.contains("--accept residual_scale"),
        "{errors}"
    );

    fn accepting<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
        [arguments, &["--accept", "residual_scale"]].concat()
    }
    let plan = workshop.succeed(&accepting(&["plan", "recipe.toml"]));
    assert!(
        plan.contains("accepted at your risk") && plan.contains(": residual_scale"),
        "{plan}"
    );
    let plan = workshop.json(&accepting(&["plan", "recipe.toml", "--json"]));
    assert_eq!(plan["accepted"], serde_json::json!(["residual_scale"]));
    let in_recipe = [
        "plan",
        "recipe.toml",
        "--set",
        "teacher.accept=['residual_scale']",
    ];
    assert!(
        workshop
            .succeed(&in_recipe)
            .contains("accepted at your risk")
    );
    let errors = workshop.fail(&accepting(&[
        "plan",
        "recipe.toml",
        "--accept",
        "vocab_size",
    ]));
    assert!(
        errors.contains("no field `vocab_size`") && errors.contains("nothing to accept"),
        "{errors}"
    );

    workshop.succeed(&accepting(&["distill", "recipe.toml", "--out", "o"]));
    for (file, says) in [
        ("o/manifest.json", "\"residual_scale\""),
        ("o/recipe.toml", "residual_scale"),
        ("o/student/README.md", "`residual_scale`"),
        ("o/student/config.json", "residual_scale"),
    ] {
        let text = fs::read_to_string(workshop.path(file)).unwrap();
        assert!(text.contains(says), "{file}: {text}");
    }
    workshop.succeed(&accepting(&["start", "recipe.toml", "--out", "s"]));
    workshop.succeed(&accepting(&[
        "cache-teacher",
        "recipe.toml",
        "--out",
        "c",
        "--top-k",
        "4",
    ]));
    workshop.succeed(&accepting(&[
        "compare",
        "recipe.toml",
        "--out",
        "q",
        "--starts",
        "grouped",
    ]));
    let eval = [
        "eval",
        "--teacher",
        "teacher",
        "--student",
        "o/student",
        "--text",
        "valid.txt",
        "--seq-len",
        "16",
    ];
    workshop.succeed(&accepting(&eval));
    workshop.succeed(&accepting(&[
        "generate",
        "--model",
        "o/student",
        "--prompt",
        "w3",
        "--max-tokens",
        "1",
    ]));
    workshop.succeed(&accepting(&[
        "logits",
        "--model",
        "teacher",
        "--text",
        "valid.txt",
        "--out",
        "l",
    ]));
    workshop.succeed(&accepting(&[
        "sample-corpus",
        "--model",
        "teacher",
        "--out",
        "d.jsonl",
        "--tokens",
        "40",
    ]));
    let errors = workshop.fail(&["generate", "--model", "o/student", "--prompt", "w3"]);
    assert!(errors.contains("--accept residual_scale"), "{errors}");
    // One of both has it.
    config["residual_scale"].take();
    fs::write(&file, config.to_string()).unwrap();
    workshop.succeed(&accepting(&eval));
}
