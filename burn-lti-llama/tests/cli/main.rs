//! The command as its user meets it, on a tiny teacher and a few lines of text.

#![allow(clippy::unwrap_used)] // a test

mod chat;
mod compare;
mod convert;
mod folders;
mod inputs;
mod lengths;
mod precision;
mod report;
mod runs;
mod sample;
mod shapes;
mod signals;
mod start;
mod vocabulary;
mod workshop;

use std::fs;

use serde_json::Value;

use workshop::{RECIPE, Workshop};

#[test]
fn plan_says_what_becomes_of_every_tensor() {
    let workshop = Workshop::new();
    let text = workshop.succeed(&["plan", "recipe.toml"]);
    assert!(
        text.contains("model.layers.{0..1}.self_attn.q_proj.right.a"),
        "{text}"
    );
    let plan = workshop.json(&["plan", "recipe.toml", "--json"]);
    assert_eq!(plan["student"]["num_attention_heads"], 2);
    assert!(plan["totals"]["map_parameters"].as_u64().unwrap() > 0);
    // 4 steps of 2 sequences of 16 tokens, of 40 documents.
    assert_eq!(plan["text"]["documents"], 40);
    assert_eq!(plan["text"]["held_out"], 10);
    let sequences = plan["text"]["sequences"].as_f64().unwrap();
    assert_eq!(plan["text"]["epochs"], 8.0 / sequences);
}

#[test]
fn plan_finds_what_a_run_would_refuse() {
    let workshop = Workshop::new();
    fs::write(workshop.path("broken.parquet"), "PAR1").unwrap();
    let text = [
        "plan",
        "recipe.toml",
        "--set",
        "data.train=['broken.parquet']",
    ];
    assert!(workshop.fail(&text).contains("broken.parquet"));
    for file in ["model.safetensors", "tokenizer.json"] {
        let workshop = Workshop::new();
        fs::remove_file(workshop.path("teacher").join(file)).unwrap();
        assert!(workshop.fail(&["plan", "recipe.toml"]).contains(file));
        workshop.succeed(&["plan", "recipe.toml", "--config-only"]);
    }
}

#[test]
fn plan_says_how_long_a_step_takes_at_least() {
    let workshop = Workshop::new();
    let sum = |parts: &Value, key: &str| -> f64 {
        let parts = parts.as_array().unwrap().iter();
        parts.map(|part| part[key].as_f64().unwrap()).sum()
    };
    let predicted = |arguments: &[&str]| {
        let plan = [&["plan", "recipe.toml", "--json"], arguments].concat();
        workshop.json(&plan)
    };
    let plan = predicted(&["--flops", "2e9"]);
    let parts = &plan["costs"]["parts"];
    let (flops, bytes) = (sum(parts, "flops"), sum(parts, "bytes"));
    let seconds = |plan: &Value| plan["prediction"]["seconds"].as_f64().unwrap();
    // The same sum in another order.
    assert!((seconds(&plan) / (flops / 2e9) - 1.0).abs() < 1e-12);
    // A memory that all wait for.
    let plan = predicted(&["--flops", "1e18", "--bandwidth", "1e3"]);
    assert!((seconds(&plan) / (bytes / 1e3) - 1.0).abs() < 1e-12);

    let text = workshop.succeed(&["plan", "recipe.toml", "--measure"]);
    assert!(text.contains("GFLOP/s") && text.contains("GB/s"), "{text}");
    let errors = workshop.fail(&["plan", "recipe.toml", "--flops", "0"]);
    assert!(errors.contains("--flops"), "{errors}");
    let errors = workshop.fail(&["plan", "recipe.toml", "--bandwidth", "1e9"]);
    assert!(errors.contains("--flops"), "{errors}");
}

#[test]
fn a_misspelt_key_is_named_with_the_nearest_one() {
    let workshop = Workshop::new();
    let recipe = RECIPE.replace("learning_rate", "learning_rat");
    fs::write(workshop.path("recipe.toml"), recipe).unwrap();
    let errors = workshop.fail(&["plan", "recipe.toml"]);
    assert!(errors.contains("learning_rat"), "{errors}");
    assert!(errors.contains("learning_rate"), "{errors}");
    assert!(errors.contains("recipe.toml"), "{errors}");
}

#[test]
fn heads_that_do_not_divide_are_refused_with_those_that_do() {
    let workshop = Workshop::new();
    let errors = workshop.fail(&["plan", "recipe.toml", "--set", "student.heads=3"]);
    assert!(
        errors.contains("1, 2") || errors.contains("[1, 2"),
        "{errors}"
    );
    let errors = workshop.fail(&["plan", "recipe.toml", "--set", "lti.layers=[5]"]);
    assert!(errors.contains("layer 5"), "{errors}");
}

#[test]
fn distill_leaves_a_student_that_eval_and_generate_take() {
    let workshop = Workshop::new();
    let summary = workshop.json(&["distill", "recipe.toml", "--out", "out", "--json"]);
    for key in [
        "kl_start",
        "kl_end",
        "student_ce",
        "teacher_ce",
        "top1_agreement",
        "tokens",
        "steps",
        "seconds",
        "tokens_per_second",
        "trainable_parameters",
        "collapse_max_abs_logit_diff",
    ] {
        assert!(summary[key].is_number(), "{key} is missing: {summary}");
    }
    if cfg!(target_os = "linux") {
        assert!(summary["peak_rss_bytes"].as_u64().unwrap() > 1 << 20);
    }
    assert_eq!(summary["steps"], 4);
    assert!(summary["kl_end"].as_f64() < summary["kl_start"].as_f64());
    assert!(summary["collapse_max_abs_logit_diff"].as_f64().unwrap() < 1e-4);

    let written: Value =
        serde_json::from_str(&fs::read_to_string(workshop.path("out/summary.json")).unwrap())
            .unwrap();
    assert_eq!(written, summary);
    let card = fs::read_to_string(workshop.path("out/student/README.md")).unwrap();
    let kl = format!(
        "| KL to the teacher | {:.4} |",
        summary["kl_end"].as_f64().unwrap()
    );
    for part in [
        "---\nlibrary_name: transformers\n",
        "# A smaller teacher\n",
        kl.as_str(),
    ] {
        assert!(card.contains(part), "{part}: {card}");
    }
    let metrics = fs::read_to_string(workshop.path("out/metrics.jsonl")).unwrap();
    let lines: Vec<Value> = metrics
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let is_step = |line: &&Value| line.get("eval").is_none();
    let steps: Vec<&Value> = lines.iter().filter(is_step).collect();
    assert_eq!((steps.len(), lines.len()), (4, 8), "a step, an evaluation");
    assert_eq!(steps[3]["step"], 4);
    assert!(steps.iter().all(|line| line["grad_norm"].is_number()));

    // The recipe as resolved carries out the same run, from anywhere.
    let again = workshop.json(&["distill", "out/recipe.toml", "--out", "again", "--json"]);
    assert_eq!(again["kl_end"], summary["kl_end"]);

    let evaluation = workshop.json(&[
        "eval",
        "--teacher",
        "teacher",
        "--student",
        "out/student",
        "--text",
        "valid.txt",
        "--seq-len",
        "16",
        "--json",
    ]);
    let difference = evaluation["kl"].as_f64().unwrap() - summary["kl_end"].as_f64().unwrap();
    assert!(difference.abs() < 1e-6, "{difference}");

    let generate = [
        "generate",
        "--model",
        "out/student",
        "--prompt",
        "w5 w9",
        "--max-tokens",
        "5",
    ];
    let greedy = workshop.succeed(&generate);
    assert!(greedy.starts_with("w5 w9"), "{greedy}");
    let generated = workshop.json(&[&generate[..], &["--json"]].concat());
    let tokens = generated["tokens"].as_array().unwrap().len();
    assert!((1..=5).contains(&tokens), "{generated}");
    let random = [&generate[..], &["--temperature", "1.5", "--seed", "3"]].concat();
    assert_eq!(workshop.succeed(&random), workshop.succeed(&random));
}

#[test]
fn what_a_run_reads_is_not_replaced_by_it() {
    for (from, to, set) in [
        (
            "teacher",
            "out/checkpoints/teacher",
            "teacher.path='out/checkpoints/teacher'",
        ),
        (
            "train.txt",
            "out/student/train.txt",
            "data.train=['out/student/train.txt']",
        ),
    ] {
        let workshop = Workshop::new();
        fs::create_dir_all(workshop.path(to).parent().unwrap()).unwrap();
        fs::rename(workshop.path(from), workshop.path(to)).unwrap();
        let run = [
            "distill",
            "recipe.toml",
            "--out",
            "out",
            "--overwrite",
            "--set",
            set,
        ];
        assert!(workshop.fail(&run).contains("would replace it"));
        assert!(workshop.path(to).exists());
    }
}

#[test]
fn a_file_is_replaced_if_told_so_and_nothing_else_ever_is() {
    let workshop = Workshop::new();
    let logits = [
        "logits",
        "--model",
        "teacher",
        "--text",
        "valid.txt",
        "--out",
        "out.st",
    ];
    let again = [&logits[..], &["--overwrite"]].concat();
    fs::write(workshop.path("out.st"), "precious").unwrap();
    assert!(workshop.fail(&logits).contains("--overwrite"));
    assert_eq!(fs::read(workshop.path("out.st")).unwrap(), b"precious");
    workshop.succeed(&again);
    fs::remove_file(workshop.path("out.st")).unwrap();
    fs::create_dir(workshop.path("out.st")).unwrap();
    assert!(workshop.fail(&again).contains("no regular file"));
}

#[test]
fn an_output_folder_with_content_is_left_alone_unless_told_otherwise() {
    let workshop = Workshop::new();
    fs::create_dir(workshop.path("out")).unwrap();
    fs::write(workshop.path("out/notes.txt"), "mine").unwrap();
    let arguments = [
        "distill",
        "recipe.toml",
        "--out",
        "out",
        "--set",
        "train.steps=1",
    ];
    let errors = workshop.fail(&arguments);
    assert!(errors.contains("--overwrite"), "{errors}");
    workshop.succeed(&[&arguments[..], &["--overwrite"]].concat());
    assert_eq!(
        fs::read_to_string(workshop.path("out/notes.txt")).unwrap(),
        "mine"
    );
    assert!(workshop.path("out/student/model.safetensors").exists());
}

#[test]
fn a_student_never_replaces_its_teacher() {
    let workshop = Workshop::new();
    let distill = [
        "distill",
        "recipe.toml",
        "--out",
        "out",
        "--set",
        "train.steps=1",
    ];
    workshop.succeed(&distill);
    let weights = || fs::read(workshop.path("out/student/model.safetensors")).unwrap();
    let before = weights();
    let again = [
        "--overwrite",
        "--set",
        "teacher.path=out/student",
        "--set",
        "student.heads=1",
    ];
    let errors = workshop.fail(&[&distill[..], &again].concat());
    assert!(errors.contains("would replace it"), "{errors}");
    assert_eq!(weights(), before);
}

#[test]
fn a_run_that_diverges_leaves_nothing_that_looks_finished() {
    let workshop = Workshop::new();
    let distill = [
        "distill",
        "recipe.toml",
        "--out",
        "out",
        "--set",
        "train.warmup_fraction=0",
    ];
    workshop.succeed(&distill);
    let diverge = ["--overwrite", "--set", "train.learning_rate=1e38", "--set"];
    for steps in ["train.steps=1", "train.steps=3"] {
        let errors = workshop.fail(&[&distill[..], &diverge, &[steps]].concat());
        assert!(
            errors.contains("finite") || errors.contains("diverged"),
            "{errors}"
        );
        assert!(!workshop.path("out/run.unfinished/summary.json").exists());
        assert!(!workshop.path("out/run.unfinished/student").exists());
        // Where there was none before, there is none.
        let alone = ["distill", "recipe.toml", "--out", steps];
        let errors = workshop.fail(&[&alone[..], &distill[4..], &diverge[1..], &[steps]].concat());
        assert!(!errors.contains("as it was"), "{errors}");
        assert!(!workshop.path(steps).join("summary.json").exists());
        assert!(!workshop.path(steps).join("student").exists());
    }
    workshop.succeed(&[&distill[..], &["--overwrite"]].concat());
}

#[test]
fn a_bad_recipe_makes_no_folder() {
    let workshop = Workshop::new();
    workshop.fail(&[
        "distill",
        "recipe.toml",
        "--out",
        "out",
        "--set",
        "loss.alpha=2",
    ]);
    workshop.fail(&[
        "distill",
        "recipe.toml",
        "--out",
        "out",
        "--set",
        "student.heads=0",
    ]);
    assert!(!workshop.path("out").exists());
}

#[test]
fn what_is_missing_is_named() {
    let workshop = Workshop::new();
    let errors = workshop.fail(&["plan", "absent.toml"]);
    assert!(errors.contains("absent.toml"), "{errors}");

    fs::remove_file(workshop.path("teacher/model.safetensors")).unwrap();
    let errors = workshop.fail(&["distill", "recipe.toml", "--out", "out"]);
    assert!(errors.contains("model.safetensors"), "{errors}");
    assert!(
        !workshop.path("out").exists(),
        "a run that never began left a folder"
    );

    fs::remove_file(workshop.path("valid.txt")).unwrap();
    let errors = workshop.fail(&["plan", "recipe.toml"]);
    assert!(errors.contains("valid.txt"), "{errors}");
    let errors = workshop.fail(&["generate", "--model", "nowhere", "--prompt", "w5"]);
    assert!(errors.contains("nowhere"), "{errors}");
}

/// Every name that `--backend` knows, and whether this build has it.
const BACKENDS: [(&str, bool); 10] = [
    ("flex", cfg!(feature = "flex")),
    ("ndarray", cfg!(feature = "ndarray")),
    ("tch", cfg!(feature = "tch")),
    ("wgpu", cfg!(feature = "wgpu")),
    ("vulkan", cfg!(feature = "vulkan")),
    ("metal", cfg!(feature = "metal")),
    ("webgpu", cfg!(feature = "webgpu")),
    ("cuda", cfg!(feature = "cuda")),
    ("rocm", cfg!(feature = "rocm")),
    ("cpu", cfg!(feature = "cpu")),
];

/// A command that computes, if its backend can.
fn generate<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let generate = ["generate", "--model", "teacher", "--prompt", "w5"];
    [&generate[..], &["--max-tokens", "2"], more].concat()
}

#[test]
fn an_unknown_backend_is_refused_with_those_there_are() {
    let workshop = Workshop::new();
    let errors = workshop.fail(&generate(&["--backend", "abacus"]));
    assert!(errors.contains("abacus"), "{errors}");
    for (name, _) in BACKENDS {
        let only_elsewhere = if cfg!(target_vendor = "apple") {
            "vulkan"
        } else {
            "metal"
        };
        let is_shader = ["vulkan", "metal", "webgpu"].contains(&name);
        if name != only_elsewhere && !is_shader {
            assert!(errors.contains(name), "{name}: {errors}");
        }
    }
    let errors = workshop.fail(&generate(&["--backend", "ndaray"]));
    assert!(errors.contains("did you mean `ndarray`?"), "{errors}");
}

#[test]
fn a_backend_that_is_not_built_in_is_refused_with_the_feature_that_adds_it() {
    let workshop = Workshop::new();
    for (name, _) in BACKENDS.iter().filter(|(_, built_in)| !built_in) {
        let errors = workshop.fail(&generate(&["--backend", name]));
        assert!(errors.contains("not built in"), "{errors}");
        let way_out = match *name {
            "metal" if cfg!(not(target_vendor = "apple")) => "Apple",
            "vulkan" if cfg!(target_vendor = "apple") => "metal",
            name => &format!("--features {name}"),
        };
        assert!(errors.contains(way_out), "{errors}");
    }
}

#[test]
fn devices_lists_what_each_backend_sees_and_every_number_trains() {
    let workshop = Workshop::new();
    let text = workshop.succeed(&["devices"]);
    let report = workshop.json(&["devices", "--json"]);
    let backends = report["backends"].as_array().unwrap();
    for backend in backends {
        let name = backend["name"].as_str().unwrap();
        assert!(text.contains(name), "{text}");
        let devices = backend["devices"].as_array().unwrap();
        if let Some(reason) = backend["error"].as_str() {
            // No driver here. Then that is what a command says too, before it does anything.
            assert!(devices.is_empty(), "{backend}");
            let errors = workshop.fail(&generate(&["--backend", name]));
            assert!(errors.contains(reason), "{errors}");
            continue;
        }
        let default = |device: &&Value| device["default"] == true;
        assert_eq!(devices.iter().filter(default).count(), 1, "{backend}");
        for (index, device) in devices.iter().enumerate() {
            assert_eq!(device["index"], index);
            let types = device["float_types"].as_array().unwrap();
            assert!(types.contains(&"float32".into()), "{device}");
            let number = index.to_string();
            let out = format!("{name}-{number}");
            let step = ["--out", &out, "--set", "train.steps=1"];
            let on = ["--backend", name, "--device", &number];
            workshop.succeed(&[&["distill", "recipe.toml"], &step[..], &on].concat());
        }
        let errors = workshop.fail(&generate(&["--backend", name, "--device", "99"]));
        assert!(errors.contains("--device is 99"), "{errors}");
        assert!(errors.contains("burn-lti devices"), "{errors}");
    }
    let default = |backend: &&Value| backend["default"] == true;
    assert_eq!(backends.iter().filter(default).count(), 1);
    if cfg!(feature = "flex") {
        assert_eq!(backends[0]["name"], "flex");
        assert_eq!(backends[0]["default"], true);
    }
    for absent in report["not_built_in"].as_array().unwrap() {
        let name = absent["name"].as_str().unwrap();
        assert!(BACKENDS.contains(&(name, false)), "{name}");
        assert_eq!(absent["feature"], name);
        assert!(text.contains(&format!("--features {name}")), "{text}");
    }
}

#[test]
fn the_name_of_the_built_in_shader_compiler_means_wgpu() {
    let workshop = Workshop::new();
    let errors = |name| workshop.fail(&generate(&["--backend", name, "--device", "99"]));
    for (name, built_in) in BACKENDS {
        if built_in && ["vulkan", "metal", "webgpu"].contains(&name) {
            assert_eq!(errors(name), errors("wgpu"));
        }
    }
}

#[cfg(all(feature = "wgpu", not(target_vendor = "apple")))]
#[test]
fn without_a_vulkan_driver_wgpu_is_refused_before_any_work() {
    let workshop = Workshop::new();
    let run = |arguments: &[&str]| {
        workshop
            .command(arguments)
            .env("VK_DRIVER_FILES", "/nonexistent")
            .env("VK_ICD_FILENAMES", "/nonexistent")
            .output()
            .unwrap()
    };
    let devices = run(&["devices", "--json"]);
    let report: Value = serde_json::from_slice(&devices.stdout).unwrap();
    let backends = report["backends"].as_array().unwrap();
    let wgpu = backends.iter().find(|b| b["name"] == "wgpu").unwrap();
    assert_eq!(wgpu["devices"], Value::Array(vec![]));
    assert!(wgpu["error"].as_str().unwrap().contains("Vulkan driver"));

    let distill = [
        "distill",
        "recipe.toml",
        "--out",
        "out",
        "--backend",
        "wgpu",
    ];
    for device in [&[][..], &["--device", "0"]] {
        let output = run(&[&distill[..], device].concat());
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success());
        assert!(errors.contains("wgpu sees no device"), "{errors}");
        assert!(!errors.contains("panicked"), "{errors}");
        assert!(!workshop.path("out").exists());
    }
}

#[test]
fn training_the_projections_or_everything_starts_from_the_maps() {
    let workshop = Workshop::new();
    let distill = |trained: &str, start: &str| {
        let out = format!("{trained}-{start}");
        let train = format!("lti.train={trained}");
        let start = format!("lti.start={start}");
        workshop.json(&[
            "distill",
            "recipe.toml",
            "--out",
            &out,
            "--json",
            "--set",
            &train,
            "--set",
            &start,
        ])
    };
    let maps = distill("maps", "grouped");
    let projections = distill("projections", "grouped");
    let all = distill("all", "grouped");
    let close = |a: &Value, b: &Value| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-5;
    assert!(close(&maps["kl_start"], &projections["kl_start"]));
    assert!(close(&maps["kl_start"], &all["kl_start"]));
    let trainable = |summary: &Value| summary["trainable_parameters"].as_u64().unwrap();
    assert!(trainable(&maps) < trainable(&projections));
    assert!(trainable(&projections) < trainable(&all));
    assert_eq!(all["trainable_parameters"], all["student_parameters"]);
    for summary in [maps, projections, all] {
        assert!(summary["kl_end"].as_f64() < summary["kl_start"].as_f64());
    }
}

#[test]
fn maps_on_some_layers_only() {
    let workshop = Workshop::new();
    let summary = workshop.json(&[
        "distill",
        "recipe.toml",
        "--out",
        "out",
        "--json",
        "--set",
        "lti.layers=[1]",
        "--set",
        "lti.map={ default = \"factored\", out = \"general\" }",
    ]);
    assert!(summary["kl_end"].as_f64().unwrap().is_finite());
}

/// The logits that the command writes for the teacher, and how they are laid out.
fn logits(workshop: &Workshop, more: &[&str]) -> (Vec<usize>, Vec<f32>) {
    let common = [
        "logits",
        "--model",
        "teacher",
        "--text",
        "valid.txt",
        "--overwrite",
    ];
    let out = ["--out", "logits.safetensors"];
    workshop.succeed(&[&common[..], &out, more].concat());
    let file = fs::read(workshop.path("logits.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let (ids, logits) = (
        tensors.tensor("input_ids").unwrap(),
        tensors.tensor("logits").unwrap(),
    );
    assert_eq!(ids.shape()[..2], logits.shape()[..2]);
    let (bytes, _) = logits.data().as_chunks();
    let numbers = bytes.iter().map(|number| f32::from_le_bytes(*number));
    (logits.shape().to_vec(), numbers.collect())
}

#[test]
fn logits_are_written_for_another_program() {
    let (shape, _) = logits(&Workshop::new(), &[]);
    assert_eq!(shape[2], 61);
}

/// bfloat16 keeps 8 bits: two layers of rounding move a logit by some hundredths of the largest.
#[test]
fn a_model_computes_in_the_float_type_that_is_asked_for() {
    let workshop = Workshop::new();
    let (_, single) = logits(&workshop, &[]);
    let (_, half) = logits(&workshop, &["--dtype", "bfloat16"]);
    let largest = single
        .iter()
        .fold(0.0, |most: f32, logit| most.max(logit.abs()));
    let differences = single.iter().zip(&half).map(|(a, b)| (a - b).abs());
    let difference = differences.fold(0.0, f32::max);
    assert!(
        difference > 0.0 && difference < largest / 16.0,
        "{difference} of {largest}"
    );

    let common = [
        "eval",
        "--seq-len",
        "32",
        "--teacher",
        "teacher",
        "--student",
        "teacher",
        "--text",
        "valid.txt",
    ];
    let evaluation = workshop.json(&[&common[..], &["--json", "--dtype", "bfloat16"]].concat());
    assert_eq!(evaluation["kl"], 0.0);
    let generated = workshop.json(&generate(&["--json", "--dtype", "float16"]));
    assert!(!generated["tokens"].as_array().unwrap().is_empty());

    let errors = workshop.fail(&generate(&["--dtype", "int8"]));
    assert!(errors.contains("float32, float16, bfloat16"), "{errors}");
    if cfg!(feature = "ndarray") {
        let errors = workshop.fail(&generate(&["--backend", "ndarray", "--dtype", "bfloat16"]));
        assert!(errors.contains("bfloat16"), "{errors}");
    }
}
