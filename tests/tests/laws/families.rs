//! Tiny models of every family: our logits and texts beside transformers', files in and out, students.

use std::fs;
use std::path::PathBuf;

use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::collapse::collapse;
use burn_lti::decoder::{LtiSpec, RoleMaps};
use burn_lti::geometry::Role;
use burn_lti::map::{KernelPrecision, MapKind, Start};
use burn_lti::tensors::TensorSet;
use burn_lti_llama::config::LlamaConfig;
use burn_lti_llama::distill::learning_student;
use burn_lti_llama::hf::{self, WeightType};
use burn_lti_llama::model::{Generation, PlainLlama, Sampling};
use burn_lti_llama::plan::Plan;
use burn_lti_tests::close::{assert_close, assert_not_close};
use burn_lti_tests::llama::{FAMILIES, TensorFile, causal_batch, family_dir};
use burn_lti_tests::numbers::values;
use burn_lti_tests::on_every_backend;
use burn_lti_tests::params::{fill_random, parameters, perturb};
use tempfile::TempDir;

use super::calibrated::{calibrated_with, kl, llama_student, tolerance, with_heads};
use super::llama::{CHANGE, logit_tolerance, recipe};

on_every_backend![
    logits_are_those_of_transformers,
    a_cache_continues_as_the_whole_sequence,
    the_likeliest_text_is_that_of_transformers,
    files_come_back_as_they_were,
    students_begin_as_their_teachers_and_are_exported,
    students_with_norms_are_calibrated,
    gains_of_all_heads_go_with_the_heads,
];

/// A window of 7 tokens, so that a cache drops some; layers without positions; norms of heads, and of all at once; caps.
const OF_CACHES: [&str; 8] = [
    "olmo2",
    "olmo3",
    "ministral",
    "smollm3",
    "qwen3",
    "llama_yarn",
    "gemma2",
    "gemma3",
];

fn load<B: Backend>(name: &str, device: &B::Device) -> PlainLlama<B> {
    hf::load(&family_dir(name), device).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Tokens, their shape, and transformers' logits.
fn expected(name: &str) -> ([usize; 2], Vec<i64>, Vec<f64>) {
    let file = TensorFile::open(family_dir(name).join("logits.safetensors"));
    let (shape, tokens) = file.longs("input_ids");
    let logits = file.floats("logits").1.into_iter().map(f64::from);
    let shape = shape.try_into().expect("rows of tokens");
    (shape, tokens, logits.collect())
}

fn logits_are_those_of_transformers<A: AutodiffBackend>(device: A::Device) {
    for name in FAMILIES {
        let (shape, tokens, expected) = expected(name);
        let model = load::<A::InnerBackend>(name, &device);
        let batch = causal_batch(shape, &tokens, &device);
        let tolerance = logit_tolerance(model.config(), shape[1], &expected);
        let deviation = assert_close(&values(&model.logits(&batch)), &expected, &tolerance);
        eprintln!("logits of {name} on {}: {deviation}", A::name(&device));
        let perturbed = perturb(model, "model.layers.1.self_attn.q_proj.weight", CHANGE);
        assert_not_close(&values(&perturbed.logits(&batch)), &expected, &tolerance);
    }
}

/// Pieces of 5, 1, 1, 11 and 6 tokens.
fn a_cache_continues_as_the_whole_sequence<A: AutodiffBackend>(device: A::Device) {
    for name in OF_CACHES {
        let ([rows, length], tokens, expected) = expected(name);
        let model = load::<A::InnerBackend>(name, &device);
        let vocab = model.config().vocab_size;
        let sequences: Vec<Vec<u32>> = tokens
            .chunks(length)
            .map(|row| row.iter().map(|id| *id as u32).collect())
            .collect();
        let mut cache = model.cache(rows);
        let mut found = vec![Vec::new(); rows];
        let mut past = 0;
        for piece in [5, 1, 1, 11, 6] {
            let new: Vec<&[u32]> = sequences
                .iter()
                .map(|row| &row[past..past + piece])
                .collect();
            let logits = values(&model.continue_logits(&new, &mut cache));
            for (row, logits) in found.iter_mut().zip(logits.chunks(piece * vocab)) {
                row.extend_from_slice(logits);
            }
            past += piece;
        }
        let tolerance = logit_tolerance(model.config(), length, &expected);
        assert_close(&found.concat(), &expected, &tolerance);
    }
}

fn the_likeliest_text_is_that_of_transformers<A: AutodiffBackend>(device: A::Device) {
    for name in FAMILIES {
        let file = TensorFile::open(family_dir(name).join("logits.safetensors"));
        let ids = |tensor: &str| -> Vec<u32> {
            let ids = file.longs(tensor).1.into_iter();
            ids.map(|id| id as u32).collect()
        };
        let model = load::<A::InnerBackend>(name, &device).packed();
        let generation = Generation::new(12, Sampling::Greedy);
        let prompt = &ids("input_ids")[..8];
        let found = generation.run(&model, prompt, |_| true).expect("numbers");
        assert_eq!(found, ids("greedy"), "{name}");
    }
}

/// The tensors of a file, by name.
fn stored(file: &TensorFile) -> Vec<(String, Vec<usize>, Vec<f64>)> {
    let tensors = file.tensors();
    let mut names: Vec<&str> = tensors.names();
    names.sort_unstable();
    let tensors = names.into_iter().map(|name| {
        let (shape, numbers) = file.floats(name);
        let numbers = numbers.into_iter().map(f64::from).collect();
        (name.to_owned(), shape, numbers)
    });
    tensors.collect()
}

fn files_come_back_as_they_were<A: AutodiffBackend>(device: A::Device) {
    for name in FAMILIES {
        let dir = TempDir::new().expect("a folder");
        let model = load::<A::InnerBackend>(name, &device);
        let export = |model: &PlainLlama<A::InnerBackend>| {
            hf::export(model, WeightType::F32, &family_dir(name), dir.path()).expect("an export");
            hf::load::<A::InnerBackend>(dir.path(), &device).expect("an import")
        };
        let back = export(&model);
        assert_eq!(back.config(), model.config());
        let original = stored(&TensorFile::open(
            family_dir(name).join("model.safetensors"),
        ));
        let exported = stored(&TensorFile::open(dir.path().join("model.safetensors")));
        assert_eq!(original.len(), exported.len(), "{name}");
        for (original, exported) in original.iter().zip(&exported) {
            assert_eq!((&original.0, &original.1), (&exported.0, &exported.1));
            for (original, exported) in original.2.iter().zip(&exported.2) {
                // A multiplier is multiplied in and divided out, a gain is told from one: two roundings.
                let allowed = match name {
                    "granite" => 2.0 * f64::from(f32::EPSILON) * original.abs(),
                    "gemma2" | "gemma3" => 2.0 * f64::from(f32::EPSILON) * (1.0 + original.abs()),
                    _ => 0.0,
                };
                assert!((original - exported).abs() <= allowed, "{name}");
            }
        }
        // Every field that was there says the same.
        let config = |path: PathBuf| -> serde_json::Value {
            let text = fs::read_to_string(path).expect("a file");
            serde_json::from_str(&text).expect("JSON")
        };
        let (original, exported) = (
            config(family_dir(name).join("config.json")),
            config(dir.path().join("config.json")),
        );
        for (field, value) in original.as_object().expect("an object") {
            if field != "rope_parameters" {
                assert_eq!(exported[field], *value, "{name}: {field}");
            }
        }
        let ropes = original["rope_parameters"].as_object().expect("an object");
        // Of two embeddings, each is an object.
        for (field, value) in ropes.iter().filter(|(_, value)| !value.is_object()) {
            let (value, found) = (value, &exported["rope_parameters"][field]);
            let partial = field == "partial_rotary_factor" && value.as_f64() == Some(1.0);
            let same = value
                .as_f64()
                .is_some_and(|value| found.as_f64() == Some(value));
            assert!(partial || same || value == found, "{name}: {field}");
        }

        let other = fill_random(model, 1);
        let batch = causal_batch([1, 12], &(4..16).collect::<Vec<_>>(), &device);
        let expected = values(&other.logits(&batch));
        let tolerance = logit_tolerance(other.config(), 12, &expected);
        let found = values(&export(&other).logits(&batch));
        assert_close(&found, &expected, &tolerance);
    }
}

#[test]
fn configs_of_transformers_4_and_5_mean_the_same() {
    let mut compared = 0;
    for name in FAMILIES {
        let path = family_dir(name).join("config_4.json");
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        compared += 1;
        let old = LlamaConfig::from_json_str(&text, &path).unwrap_or_else(|it| panic!("{it}"));
        assert_eq!(
            old,
            LlamaConfig::from_dir(&family_dir(name)).expect("a config")
        );
    }
    assert_eq!(compared, 8);
}

#[test]
fn other_models_are_refused_by_what_they_are() {
    for (name, what) in [
        ("gemma3", "of a model of several parts"),
        ("qwen3_moe", "a mixture of experts"),
        ("mixtral", "a mixture of experts"),
        ("qwen3_next", "a mixture of experts"),
    ] {
        let error = LlamaConfig::from_dir(&family_dir("refused").join(name)).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    }
}

/// Maps of as many heads begin as the teacher; half of them, folded away, come back from their file.
fn students_begin_as_their_teachers_and_are_exported<A: AutodiffBackend>(device: A::Device) {
    for name in FAMILIES {
        let (shape, tokens, expected) = expected(name);
        let batch = causal_batch(shape, &tokens, &device);
        for (heads, is_teacher) in [
            ("heads = 4, kv_heads = 2", true),
            ("heads = 2, kv_heads = 1", false),
        ] {
            let dir = TempDir::new().expect("a folder");
            let recipe = recipe(dir.path(), &family_dir(name), heads, "");
            let teacher = LlamaConfig::from_dir(&recipe.teacher.path).expect("a config");
            let plan = Plan::new(&recipe, &teacher).unwrap_or_else(|it| panic!("{name}: {it}"));
            let tensors =
                hf::load_tensors(&family_dir(name), &plan.teacher, WeightType::F32, &device);
            let tensors: TensorSet<A::InnerBackend> = tensors.expect("a teacher");
            let student = learning_student::<A>(&plan, &tensors, &device).expect("a student");
            let found = values(&student.logits(&batch));
            let tolerance = logit_tolerance(&plan.student, shape[1], &expected);
            match is_teacher {
                true => drop(assert_close(&found, &expected, &tolerance)),
                false => assert_not_close(&found, &expected, &tolerance),
            }
            let skeleton = PlainLlama::<A>::init(&plan.student, &device);
            let plain = collapse(&student, KernelPrecision::Default).expect("numbers");
            let plain = plain.into_plain(skeleton).expect("a student");
            hf::export(&plain, WeightType::F32, &family_dir(name), dir.path()).expect("an export");
            let back = hf::load::<A>(dir.path(), &device).expect("an import");
            assert_eq!(*back.config(), plan.student);
            assert_eq!(parameters(&back).len(), parameters(&plain).len());
            let tolerance = logit_tolerance(&plan.student, shape[1], &found);
            assert_close(&values(&back.logits(&batch)), &found, &tolerance);
        }
    }
}

/// Norms of queries and keys, head by head and all at once, and of what a block puts out, with caps and without. Maps
/// of as many heads are the teacher; half of them begin nearer to it than those of grouped heads.
fn students_with_norms_are_calibrated<A: AutodiffBackend>(device: A::Device) {
    let maps = || RoleMaps::attention(MapKind::Factored).with(Role::Out, MapKind::General);
    for name in ["qwen3", "gemma2", "gemma3", "olmo2"] {
        let teacher = load::<A::InnerBackend>(name, &device);
        let config = teacher.config().clone();
        let (shape, tokens, _) = expected(name);
        let batch = causal_batch(shape, &tokens, &device);
        let expected = values(&teacher.logits(&batch));
        let (student, start) = calibrated_with::<A>(&teacher, &config, maps(), |_| {}, &device);
        assert!(
            start.layers.iter().all(|layer| layer.residual < 1e-5),
            "{name}"
        );
        assert_close(
            &values(&student.logits(&batch)),
            &expected,
            &tolerance(&expected),
        );

        let half = with_heads(&config, 2, 1, config.head_dim);
        let (student, _) = calibrated_with::<A>(&teacher, &half, maps(), |_| {}, &device);
        assert_not_close(
            &values(&student.logits(&batch)),
            &expected,
            &tolerance(&expected),
        );
        let spec = LtiSpec {
            maps: maps(),
            start: Start::Grouped,
            ..LtiSpec::new(config.axes())
        };
        let tensors = TensorSet::collect(&teacher);
        let grouped = llama_student(&half, &spec, &tensors, &device).expect("a student");
        let (calibrated, grouped) = (
            kl(&student, &teacher, &device),
            kl(&grouped, &teacher, &device),
        );
        eprintln!("{name} begins at a KL of {calibrated}, grouped at {grouped}");
        assert!(calibrated < grouped, "{name}: {calibrated}, {grouped}");
    }
}

/// The gains of a layer's queries or keys.
fn gains<B: Backend, M: Module<B>>(model: &M, layer: usize, norm: &str) -> Vec<f64> {
    let name = format!("model.layers.{layer}.self_attn.{norm}.gamma");
    let bits = parameters(model)[&name].bits.clone().into_iter();
    bits.map(|bits| f64::from(f32::from_bits(bits))).collect()
}

/// Those of the heads that were chosen, as they are; of grouped heads the means.
fn gains_of_all_heads_go_with_the_heads<A: AutodiffBackend>(device: A::Device) {
    let teacher = load::<A::InnerBackend>("olmo2", &device);
    let config = with_heads(teacher.config(), 2, 1, 8);
    let maps = RoleMaps::attention(MapKind::Factored);
    let (student, start) = calibrated_with::<A>(&teacher, &config, maps.clone(), |_| {}, &device);
    for layer in &start.layers {
        let keys: Vec<usize> = layer.heads.key_value.iter().map(|heads| heads[0]).collect();
        for (norm, heads) in [("q_norm", &layer.heads.query), ("k_norm", &keys)] {
            let of_teacher = gains(&teacher, layer.layer, norm);
            let chosen = heads.iter().flat_map(|head| &of_teacher[head * 8..][..8]);
            let chosen: Vec<f64> = chosen.copied().collect();
            assert_eq!(gains(&student, layer.layer, norm), chosen);
        }
    }
    let spec = LtiSpec {
        maps,
        start: Start::Grouped,
        ..LtiSpec::new(teacher.config().axes())
    };
    let tensors = TensorSet::collect(&teacher);
    let grouped = llama_student(&config, &spec, &tensors, &device).expect("a student");
    for layer in 0..3 {
        for norm in ["q_norm", "k_norm"] {
            let of_teacher = gains(&teacher, layer, norm);
            let found = gains(&grouped, layer, norm);
            let means = (0..found.len()).map(|at| {
                let (head, feature) = (at / 8, at % 8);
                let pair = [2 * head, 2 * head + 1].map(|head| of_teacher[head * 8 + feature]);
                (pair[0] + pair[1]) / 2.0
            });
            let means: Vec<f64> = means.collect();
            assert_close(&found, &means, &tolerance(&means));
        }
    }
}
