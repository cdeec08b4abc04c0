//! What people write and runs keep: recipes, configurations, manifests, metrics.

use std::fs;
use std::path::Path;
use std::str;

use burn_lti_llama::config::LlamaConfig;
use burn_lti_llama::distill::{Manifest, OutputDir};
use burn_lti_llama::recipe::{Recipe, ShardSize};

use super::{folder, seeds, write};
use crate::Target;
use crate::memory::BOUND;

const RECIPE: &str = "/folder/recipe.toml";

const KEYS: &[&str] = &[
    "teacher",
    "student",
    "lti",
    "calibration",
    "loss",
    "train",
    "phase2",
    "weights",
    "export",
    "data",
    "path",
    "heads",
    "kv_heads",
    "head_dim",
    "cache",
    "dtype",
    "start",
    "map",
    "layers",
    "seed",
    "steps",
    "batch_size",
    "seq_len",
    "learning_rate",
    "accumulate",
    "\"auto\"",
    "{ kronecker = 2 }",
    "\"general\"",
    "\"factored\"",
    "grow",
    "every",
    "kl",
    "alpha",
    "temperature",
    "feature",
    "divergence",
    "rate",
    "warmup",
    "decay",
    "plateau",
    "patience",
    "eval_every",
    "checkpoint_every",
    "freeze",
    "copy",
    "share",
    "max_shard_size",
    "\"5GB\"",
    "on_policy",
    "documents",
    "field",
    "\"model.layers.{0..1}.*\"",
    "[128, 512]",
    "\"hf:a/b\"",
    "\"~\"",
    "'''",
    "[[",
    "]]",
    "\n[",
    " = ",
    "{ a = 1 }",
    "1979-05-27",
    "0x7fffffffffffffff",
];

/// A recipe. One that is read is written, and read again the same.
pub fn recipe() -> Target {
    Target {
        seeds: seeds("recipe"),
        words: KEYS,
        bound: BOUND,
        check: Box::new(|bytes| {
            let text = str::from_utf8(bytes).ok();
            let recipe = text.and_then(|text| Recipe::parse(text, Path::new(RECIPE), &[]).ok());
            recipe.as_ref().map(check_recipe).is_some()
        }),
    }
}

/// `--set SECTION.KEY=VALUE`, one a line, on a recipe that is right: the small languages of its keys.
pub fn overrides() -> Target {
    const BASE: &str = "teacher.path = 't'\nstudent.heads = 2\nstudent.kv_heads = 1\ntrain.steps = 9\n\
                        data.train = ['a.txt']\ndata.valid = ['b.txt']\n";
    Target {
        seeds: lines_of(seeds("overrides")),
        words: KEYS,
        bound: BOUND,
        check: Box::new(|bytes| {
            let lines = String::from_utf8_lossy(bytes);
            let set: Vec<String> = lines.lines().map(str::to_owned).collect();
            let recipe = Recipe::parse(BASE, Path::new(RECIPE), &set);
            recipe.as_ref().map(check_recipe).is_ok()
        }),
    }
}

/// A seed for each line of some.
fn lines_of(files: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let lines = files
        .iter()
        .flat_map(|file| file.split(|byte| *byte == b'\n'));
    lines
        .filter(|line| !line.is_empty())
        .map(<[u8]>::to_vec)
        .collect()
}

fn check_recipe(recipe: &Recipe) {
    let written = recipe
        .to_toml()
        .expect("a recipe that was read can be written");
    let again = Recipe::parse(&written, Path::new(RECIPE), &[]);
    let again = again.unwrap_or_else(|error| panic!("{error:?} in\n{written}"));
    assert_eq!(again, *recipe, "{written}");
    // What follows from it must be a number, however large what it says.
    recipe.trained();
    recipe.coordinates();
    recipe.budget(1 << 20);
}

/// How large a file may be.
pub fn shard_size() -> Target {
    Target {
        seeds: [
            "5GB",
            "500MB",
            "2GiB",
            "70 KB",
            "12",
            "18446744073709551615B",
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec(),
        words: &["GiB", "MiB", "KiB", "GB", "MB", "KB", "B"],
        bound: BOUND,
        check: Box::new(|bytes| {
            let text = str::from_utf8(bytes).unwrap_or_default();
            let Ok(size) = text.parse::<ShardSize>() else {
                return false;
            };
            assert_eq!(size.to_string().parse(), Ok(size));
            true
        }),
    }
}

/// `config.json`. A model that is read is written, and read again the same; its sizes can be computed with.
pub fn config() -> Target {
    Target {
        seeds: seeds("config"),
        words: &[
            "\"llama\"",
            "\"mistral\"",
            "\"ministral\"",
            "\"qwen2\"",
            "\"qwen3\"",
            "\"smollm3\"",
            "\"phi3\"",
            "\"granite\"",
            "\"gemma2\"",
            "\"gemma3_text\"",
            "\"olmo2\"",
            "\"model_type\"",
            "\"rope_scaling\"",
            "\"rope_parameters\"",
            "\"rope_type\"",
            "\"yarn\"",
            "\"linear\"",
            "\"dynamic\"",
            "\"llama3\"",
            "\"longrope\"",
            "\"factor\"",
            "\"head_dim\"",
            "\"sliding_window\"",
            "\"layer_types\"",
            "\"full_attention\"",
            "\"sliding_attention\"",
            "\"no_rope_layers\"",
            "\"eos_token_id\"",
            "[1, 2]",
            "16777216",
            "262144",
            "1048576",
            "4096",
            "2147483648",
        ],
        bound: BOUND,
        check: Box::new(|bytes| {
            let origin = Path::new("config.json");
            let text = String::from_utf8_lossy(bytes);
            let Ok(config) = LlamaConfig::from_json_str(&text, origin) else {
                return false;
            };
            let written = config.to_json().to_string();
            let again = LlamaConfig::from_json_str(&written, origin);
            let again = again.unwrap_or_else(|error| panic!("{error:?} in\n{written}"));
            assert_eq!(again, config, "{written}");
            let counted: usize = config
                .tensors()
                .iter()
                .map(|(_, shape)| shape.iter().product::<usize>())
                .sum();
            assert_eq!(counted, config.num_parameters());
            for layer in [0, config.num_hidden_layers - 1] {
                let turned = config.rope_of(layer);
                let frequencies = turned.map(|rope| rope.frequencies(config.head_dim));
                let mut frequencies = frequencies.into_iter().flatten();
                assert!(frequencies.all(f64::is_finite), "{written}");
            }
            true
        }),
    }
}

/// `manifest.json` of a run.
pub fn manifest() -> Target {
    let dir = folder();
    Target {
        seeds: seeds("manifest"),
        words: &[
            "\"schema\"",
            "\"files\"",
            "\"tensors\"",
            "\"train\"",
            "\"path\"",
            "\"sha256\"",
        ],
        bound: BOUND,
        check: Box::new(move |bytes| {
            let path = dir.path().join("manifest.json");
            write(&path, bytes);
            let Ok(read) = Manifest::read(&path) else {
                return false;
            };
            read.write(&path)
                .expect("a manifest that was read is written");
            assert_eq!(Manifest::read(&path).expect("it was written"), read);
            true
        }),
    }
}

/// `metrics.jsonl` of a run.
pub fn metrics() -> Target {
    let dir = folder();
    let out = dir.path().join("run");
    fs::create_dir(&out).expect("a folder");
    write(&out.join("manifest.json"), b"{}");
    Target {
        seeds: seeds("metrics"),
        words: &[
            "\"step\"",
            "\"eval\"",
            "{\"step\": 1}\n",
            "\"kl\"",
            "\"tokens\"",
        ],
        bound: BOUND,
        check: Box::new(move |bytes| {
            let _kept = &dir;
            write(&out.join("metrics.jsonl"), bytes);
            let run = OutputDir::resume(&out).expect("a folder with a run");
            run.evaluations().is_ok()
        }),
    }
}
