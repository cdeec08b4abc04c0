//! The tiny Llamas: our logits beside transformers', Hugging Face folders in and out, the cache, and
//! whether the plan tells the truth.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::tensors::TensorSet;
use burn_lti_llama::config::LlamaConfig;
use burn_lti_llama::data::{Documents, loader, pack, pack_each};
use burn_lti_llama::distill::{
    Event, Listener, OutputDir, distill, free_student, learning_student,
};
use burn_lti_llama::eval::{
    ByPosition, Evaluation, Interval, PositionEvaluation, evaluate, evaluate_by_position,
    evaluate_documents,
};
use burn_lti_llama::hf::{self, WeightType};
use burn_lti_llama::model::PlainLlama;
use burn_lti_llama::plan::Plan;
use burn_lti_llama::recipe::{Recipe, Trained};
use burn_lti_tests::close::{Tolerance, assert_close, assert_not_close, rounding};
use burn_lti_tests::llama::{MODELS, TensorFile, batch_of, causal_batch, load, model_dir};
use burn_lti_tests::numbers::{Numbers, values};
use burn_lti_tests::on_every_backend;
use burn_lti_tests::params::{Parameter, fill_random, parameters, perturb};
use burn_lti_tests::toy::packed_batch;
use half::{bf16, f16};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

on_every_backend![
    logits_are_those_of_transformers,
    packed_documents_do_not_see_each_other,
    the_cache_continues_as_the_whole_sequence,
    weights_are_loaded_bit_for_bit,
    export_and_import_are_inverse,
    the_plan_tells_the_truth,
    a_free_student_starts_where_its_maps_would,
    an_evaluation_is_that_of_whole_logits,
    an_evaluation_by_position_adds_up,
    an_interval_is_that_of_documents_one_by_one,
    the_same_seed_gives_the_same_student,
    only_what_trains_leaves_the_teachers_bits,
];

/// A change far beyond rounding.
pub(crate) const CHANGE: f32 = 0.02;

/// What logits may be off by. Roundings of the forward pass: in each layer the width three times (as
/// input of attention and of the feed-forward block, as its residual), the heads' width twice, the
/// feed-forward width, the keys mixed, and 32 more for norms, softmax and rotary angles; at the end
/// the head. The partial sums on the way to a logit are, like its terms, of either sign, and of the
/// size of the largest logits. Both programs err.
pub(crate) fn logit_tolerance(config: &LlamaConfig, keys: usize, expected: &[f64]) -> Tolerance {
    let (width, heads) = (config.hidden_size, config.query_grid().width());
    let layer = 3 * width + 2 * heads + config.intermediate_size + keys + 32;
    let roundings = config.num_hidden_layers * layer + width;
    let largest = expected.iter().fold(0.0f64, |all, one| all.max(one.abs()));
    Tolerance::Uniform(2.0 * rounding(roundings) * largest)
}

fn widened(values: Vec<f32>) -> Vec<f64> {
    values.into_iter().map(f64::from).collect()
}

// ---------------------------------------------------------------- logits

fn logits_are_those_of_transformers<A: AutodiffBackend>(device: A::Device) {
    for name in MODELS {
        let file = TensorFile::open(model_dir(name).join("logits.safetensors"));
        let (shape, tokens) = file.longs("input_ids");
        let shape: [usize; 2] = shape.try_into().expect("rows of tokens");
        let expected = widened(file.floats("logits").1);
        let model = load::<A::InnerBackend>(name, &device);
        let batch = causal_batch(shape, &tokens, &device);
        let tolerance = logit_tolerance(model.config(), shape[1], &expected);
        let deviation = assert_close(&values(&model.logits(&batch)), &expected, &tolerance);
        eprintln!("logits of {name} on {}: {deviation}", A::name(&device));
        for changed in ["model.layers.0.self_attn.k_proj.weight", "model.norm.gamma"] {
            let perturbed = perturb(model.clone(), changed, CHANGE);
            assert_not_close(&values(&perturbed.logits(&batch)), &expected, &tolerance);
        }
    }
}

fn packed_documents_do_not_see_each_other<A: AutodiffBackend>(device: A::Device) {
    let mut compared = 0;
    for name in MODELS {
        let file = TensorFile::open(model_dir(name).join("logits.safetensors"));
        if !file.has("packed_logits") {
            continue;
        }
        compared += 1;
        let (shape, tokens) = file.longs("packed_input_ids");
        let shape: [usize; 2] = shape.try_into().expect("rows of tokens");
        let positions = file.longs("packed_positions").1;
        let segments = file.longs("packed_segments").1;
        let model = load::<A::InnerBackend>(name, &device);
        let vocab = model.config().vocab_size;
        let without_padding = |logits: Vec<f64>| -> Vec<f64> {
            let rows = logits.chunks_exact(vocab).zip(&segments);
            let kept = rows.filter(|(_, segment)| **segment != 0);
            kept.flat_map(|(row, _)| row.to_vec()).collect()
        };
        let expected = without_padding(widened(file.floats("packed_logits").1));
        assert!(expected.len() < tokens.len() * vocab, "there is padding");
        let tolerance = logit_tolerance(model.config(), shape[1], &expected);
        let found = |segments: &[i64]| {
            let batch = batch_of(shape, &tokens, &positions, segments, &device);
            without_padding(values(&model.logits(&batch)))
        };
        assert_close(&found(&segments), &expected, &tolerance);
        let one_document = vec![1; segments.len()];
        assert_not_close(&found(&one_document), &expected, &tolerance);
    }
    assert_eq!(compared, 2);
}

/// Pieces of 5, 1, 1, 4 and 6 tokens of two sequences through the cache, and all 17 at once.
fn the_cache_continues_as_the_whole_sequence<A: AutodiffBackend>(device: A::Device) {
    for name in ["tied", "untied_bias"] {
        let model = load::<A::InnerBackend>(name, &device);
        let vocab = model.config().vocab_size;
        let file = TensorFile::open(model_dir(name).join("logits.safetensors"));
        let (shape, ids) = file.longs("input_ids");
        let sequences: Vec<&[i64]> = ids.chunks(shape[1]).map(|row| &row[..17]).collect();
        let batch = causal_batch([2, 17], &sequences.concat(), &device);
        let tokens = |row: &&[i64]| row.iter().map(|id| *id as u32).collect();
        let tokens: Vec<Vec<u32>> = sequences.iter().map(tokens).collect();
        let expected = values(&model.logits(&batch));
        let tolerance = logit_tolerance(model.config(), 17, &expected);
        let pieces = |model: &PlainLlama<A::InnerBackend>| {
            let mut cache = model.cache(2);
            let mut found = [Vec::new(), Vec::new()];
            let mut past = 0;
            for length in [5, 1, 1, 4, 6] {
                let piece: Vec<&[u32]> =
                    tokens.iter().map(|row| &row[past..past + length]).collect();
                let logits = values(&model.continue_logits(&piece, &mut cache));
                for (row, logits) in found.iter_mut().zip(logits.chunks(length * vocab)) {
                    row.extend_from_slice(logits);
                }
                past += length;
            }
            found.concat()
        };
        assert_close(&pieces(&model), &expected, &tolerance);
        let perturbed = perturb(model, "model.layers.1.self_attn.k_proj.weight", CHANGE);
        assert_not_close(&pieces(&perturbed), &expected, &tolerance);
    }
}

// ---------------------------------------------------------------- folders

/// Burn's name of a Hugging Face tensor, and whether it is turned. Written again, so that a slip in
/// the toolkit's table is not repeated unseen.
fn burn_name(name: &str) -> (String, bool) {
    if let Some(norm) = name.strip_suffix("norm.weight") {
        return (format!("{norm}norm.gamma"), false);
    }
    let turned = name.ends_with(".weight") && !name.contains("embed_tokens");
    (name.to_owned(), turned)
}

/// The float32 bits of a stored tensor, its axes turned if Burn has them so.
fn stored_bits(file: &TensorFile, name: &str, turned: bool) -> Vec<u32> {
    let stored = file.tensors();
    let view = stored.tensor(name).expect("a tensor");
    let (shape, values): (_, Vec<f32>) = match view.dtype() {
        safetensors::Dtype::F32 => file.floats(name),
        safetensors::Dtype::BF16 => {
            let (shape, bits) = file.halves(name);
            let values = bits.into_iter().map(|bits| bf16::from_bits(bits).to_f32());
            (shape, values.collect())
        }
        safetensors::Dtype::F16 => {
            let (shape, bits) = file.halves(name);
            let values = bits.into_iter().map(|bits| f16::from_bits(bits).to_f32());
            (shape, values.collect())
        }
        other => panic!("{name} is {other:?}"),
    };
    let bits: Vec<u32> = values.iter().map(|value| value.to_bits()).collect();
    match (turned, shape.as_slice()) {
        (true, &[rows, columns]) => (0..columns)
            .flat_map(|column| (0..rows).map(move |row| row * columns + column))
            .map(|index| bits[index])
            .collect(),
        _ => bits,
    }
}

fn weights_are_loaded_bit_for_bit<A: AutodiffBackend>(device: A::Device) {
    for name in MODELS {
        let file = TensorFile::open(model_dir(name).join("model.safetensors"));
        let model = load::<A::InnerBackend>(name, &device);
        let found = parameters(&model);
        let names: Vec<String> = file
            .tensors()
            .names()
            .into_iter()
            .map(str::to_owned)
            .collect();
        assert_eq!(names.len(), found.len(), "{name}");
        for tensor in names {
            let (burn, turned) = burn_name(&tensor);
            assert_eq!(
                found[&burn].bits,
                stored_bits(&file, &tensor, turned),
                "{tensor}"
            );
        }
    }
}

fn export_and_import_are_inverse<A: AutodiffBackend>(device: A::Device) {
    for name in MODELS {
        let dir = TempDir::new().expect("a folder");
        let model = load::<A::InnerBackend>(name, &device);
        hf::export(&model, WeightType::F32, &model_dir(name), dir.path()).expect("an export");
        let back = hf::load::<A::InnerBackend>(dir.path(), &device).expect("an import");
        assert_eq!(back.config(), model.config());
        assert_eq!(bits_of(&back), bits_of(&model));

        // What is float32 already comes back as the very tensors that were there.
        let original = TensorFile::open(model_dir(name).join("model.safetensors"));
        let exported = TensorFile::open(dir.path().join("model.safetensors"));
        for tensor in original.tensors().names() {
            let found = stored_bits(&exported, tensor, false);
            assert_eq!(found, stored_bits(&original, tensor, false), "{tensor}");
        }
        assert_eq!(exported.tensors().len(), original.tensors().len());

        let other = fill_random(model, 1);
        hf::export(&other, WeightType::F32, &model_dir(name), dir.path())
            .expect("an export over the first");
        let back = hf::load::<A::InnerBackend>(dir.path(), &device).expect("an import");
        assert_eq!(bits_of(&back), bits_of(&other));
    }
}

fn bits_of<B: Backend, M: Module<B>>(model: &M) -> BTreeMap<String, Vec<u32>> {
    let parameters = parameters(model).into_iter();
    parameters
        .map(|(name, parameter)| (name, parameter.bits))
        .collect()
}

#[test]
fn configs_of_transformers_4_and_5_mean_the_same() {
    let read = |name| LlamaConfig::from_dir(&model_dir(name)).expect("a config");
    assert_eq!(read("tied"), read("tied_transformers_4"));
}

// ---------------------------------------------------------------- the plan

/// Recipes that differ in what the plan has to know.
const RECIPES: [(&str, &str); 10] = [
    ("tied", "heads = 2, kv_heads = 1 | "),
    ("tied", "heads = 2, kv_heads = 1 | lti.map = 'general'"),
    (
        "tied",
        "heads = 4, kv_heads = 2 | lti.map = { default = 'factored', out = 'general' }",
    ),
    ("tied", "heads = 2, kv_heads = 2 | lti.layers = [1]"),
    ("tied", "heads = 4, kv_heads = 2 | lti.layers = [0]"),
    (
        "tied",
        "heads = 6, kv_heads = 3, head_dim = 4 | lti.start = 'lecun'",
    ),
    ("untied_bias", "heads = 1, kv_heads = 1 | "),
    (
        "untied_bias",
        "heads = 1, kv_heads = 1 | lti.train = 'projections'\nlti.layers = [1]",
    ),
    ("untied_bias", "heads = 2, kv_heads = 1 | lti.train = 'all'"),
    (
        "untied_bias",
        "heads = 1, kv_heads = 1, head_dim = 16 | lti.start = 'lecun'\nlti.layers = [0]",
    ),
];

/// A recipe, written to a file and read from there: grouped factored maps that train, unless `rest` says otherwise.
pub(crate) fn recipe(dir: &Path, teacher: &Path, student: &str, rest: &str) -> Recipe {
    let or = |key: &str, value: &str| match rest.contains(key) {
        true => String::new(),
        false => format!("{key} = '{value}'\n"),
    };
    let (start, map) = (or("lti.start", "grouped"), or("lti.map", "factored"));
    let train = or("lti.train", "maps");
    let text = format!(
        "{start}{map}{train}{rest}\nteacher.path = {teacher:?}\nstudent = {{ {student} }}\n\
         train = {{ steps = 6, batch_size = 2, seq_len = 8, learning_rate = 1e-2 }}\n\
         data = {{ train = ['train.txt'], valid = ['valid.txt'] }}\n"
    );
    let path = dir.join("recipe.toml");
    fs::write(&path, text).expect("a file");
    Recipe::load(&path, &[]).unwrap_or_else(|error| panic!("{rest}: {error}"))
}

/// A tensor as plan and model both should see it: name, shape, whether it trains.
type Seen = BTreeMap<String, (Vec<usize>, bool)>;

fn planned(plan: &Plan) -> Seen {
    let tensors = plan.tensors.iter();
    let seen: Seen = tensors
        .map(|tensor| (tensor.name.clone(), (tensor.shape.clone(), tensor.trained)))
        .collect();
    assert_eq!(seen.len(), plan.tensors.len(), "a name is planned twice");
    seen
}

/// The parameters of a model under their Hugging Face names and in its layout.
fn seen(parameters: BTreeMap<String, Parameter>) -> Seen {
    parameters
        .into_iter()
        .map(|(name, parameter)| {
            let mut shape = parameter.shape;
            // The embedding of a learning model is held as a projection of tokens.
            let is_linear = parameter.owner == "Linear" && !name.ends_with("embed_tokens.weight");
            if is_linear && shape.len() == 2 {
                shape.reverse();
            }
            let name = match name.strip_suffix(".gamma") {
                Some(norm) => format!("{norm}.weight"),
                None => name,
            };
            (name, (shape, parameter.trains))
        })
        .collect()
}

fn the_plan_tells_the_truth<A: AutodiffBackend>(device: A::Device) {
    for (teacher, text) in RECIPES {
        let dir = TempDir::new().expect("a folder");
        let (student, rest) = text.split_once(" | ").expect("two parts");
        let recipe = recipe(dir.path(), &model_dir(teacher), student, rest);
        let plan = plan(&recipe);
        let tensors = hf::load_tensors(
            &recipe.teacher.path,
            &plan.teacher,
            WeightType::F32,
            &device,
        );
        let tensors: TensorSet<A::InnerBackend> = tensors.expect("a teacher");
        let parameters = match recipe.trained() {
            Trained::Maps => {
                let student = learning_student::<A>(&plan, &tensors, &device);
                parameters(&student.expect("a student"))
            }
            Trained::Projections | Trained::All => {
                let student = free_student::<A>(&recipe, &plan, &tensors, &device);
                parameters(&student.expect("a student"))
            }
        };
        check_totals(&plan, &parameters);
        assert_eq!(seen(parameters), planned(&plan), "{teacher}: {text}");
    }
}

fn check_totals(plan: &Plan, parameters: &BTreeMap<String, Parameter>) {
    let elements = |trains: bool| -> usize {
        let all = parameters.values().filter(|one| one.trains == trains);
        all.map(|one| one.bits.len()).sum()
    };
    assert_eq!(plan.totals.trained_parameters, elements(true));
    assert_eq!(plan.totals.frozen_parameters, elements(false));
}

/// `train = "projections"` folds the maps at their start; the student computes the same.
fn a_free_student_starts_where_its_maps_would<A: AutodiffBackend>(device: A::Device) {
    for name in ["tied", "untied_bias"] {
        let dir = TempDir::new().expect("a folder");
        let heads = "heads = 2, kv_heads = 1";
        let recipe = recipe(dir.path(), &model_dir(name), heads, "lti.start = 'lecun'");
        let plan = plan(&recipe);
        let tensors = hf::load_tensors(
            &recipe.teacher.path,
            &plan.teacher,
            WeightType::F32,
            &device,
        );
        let tensors: TensorSet<A::InnerBackend> = tensors.expect("a teacher");
        let learning = learning_student::<A>(&plan, &tensors, &device);
        let free = free_student::<A>(&recipe, &plan, &tensors, &device).expect("a student");
        let batch = packed_batch(plan.teacher.vocab_size, 1, &device);
        let expected = values(&learning.expect("a student").logits(&batch));
        let tolerance = logit_tolerance(&plan.student, 12, &expected);
        assert_close(&values(&free.logits(&batch)), &expected, &tolerance);
        let perturbed = perturb(free, "model.layers.0.self_attn.v_proj.weight", CHANGE);
        assert_not_close(&values(&perturbed.logits(&batch)), &expected, &tolerance);
    }
}

fn an_evaluation_is_that_of_whole_logits<A: AutodiffBackend>(device: A::Device) {
    let model = load::<A::InnerBackend>("tied", &device);
    let mut numbers = Numbers::new(2);
    let documents = (0..9).map(|_| numbers.ids(7, 61).iter().map(|id| *id as u32).collect());
    let batches = loader(pack(documents, 10), 3, None, &device);
    let mut told = Vec::new();
    let found = evaluate(&model, &model, &batches, |done, all| told.push((done, all)));
    assert_eq!(told, [(3, 9), (6, 9), (9, 9)]);
    assert_eq!((found.kl, found.top1_agreement), (Some(0.0), Some(1.0)));
    assert_eq!(found.tokens, 9 * 6);

    let (mut ce, mut largest) = (0.0, 0.0f64);
    for batch in batches.iter() {
        let logits = values(&model.logits(&batch));
        let (targets, mask) = (batch.targets.to_data(), values(&batch.mask));
        let rows = logits.chunks_exact(61).zip(targets.iter::<i64>()).zip(mask);
        for ((row, target), _) in rows.filter(|(_, mask)| *mask != 0.0) {
            let sum: f64 = row.iter().map(|logit| logit.exp()).sum();
            let log_probability = row[target as usize] - sum.ln();
            ce -= log_probability;
            largest = largest.max(-log_probability);
        }
    }
    // A log-probability is a sum over the vocabulary of logits that are themselves bit for bit the
    // same; the mean adds a sum over 54 tokens.
    let tolerance = Tolerance::Uniform(rounding(61 + 4 + 54) * (1.0 + largest));
    for found in [found.student_ce, found.teacher_ce] {
        assert_close(&[found.expect("tokens")], &[ce / 54.0], &tolerance);
    }
    assert_eq!(found.student_perplexity, found.student_ce.map(f64::exp));

    let other = perturb(model.clone(), "model.norm.gamma", CHANGE);
    let found = evaluate(&other, &model, &batches, |_, _| {});
    assert!(found.kl > Some(0.0));
    assert_not_close(
        &[found.student_ce.expect("tokens")],
        &[ce / 54.0],
        &tolerance,
    );
    assert_close(
        &[found.teacher_ce.expect("tokens")],
        &[ce / 54.0],
        &tolerance,
    );
}

/// Ranges of position are parts of an evaluation: counts are the same, means those of the parts.
fn an_evaluation_by_position_adds_up<A: AutodiffBackend>(device: A::Device) {
    let model = load::<A::InnerBackend>("tied", &device);
    let other = perturb(model.clone(), "model.norm.gamma", CHANGE);
    let mut numbers = Numbers::new(2);
    let mut documents: Vec<Vec<u32>> = Vec::new();
    for length in [70, 20, 40, 5] {
        let ids = numbers.ids(length, 61);
        documents.push(ids.iter().map(|id| *id as u32).collect());
    }
    let known =
        |it: Evaluation| [it.kl, it.student_ce, it.teacher_ce].map(|mean| mean.expect("tokens"));
    for (layout, counts) in [
        // The last token of each document has no target.
        (Documents::Apart, [32 + 19 + 32 + 4, 32 + 7, 5]),
        (Documents::Joined, [32 + 32, 32 + 2, 36]),
    ] {
        let windows = pack_each(documents.clone(), &[100], layout);
        let batches = loader(windows, 2, None, &device);
        let whole = evaluate(&other, &model, &batches, |_, _| {});
        let ByPosition { all, by_position } =
            evaluate_by_position(&other, &model, &batches, |_, _| {});
        let found: Vec<_> = by_position.iter().map(|it| (it.first, it.last)).collect();
        assert_eq!(found, [(0, 31), (32, 63), (64, 99)]);
        let found: Vec<_> = by_position.iter().map(|it| it.evaluation.tokens).collect();
        assert_eq!(found, counts);
        assert_eq!(
            (all.tokens, all.top1_agreement),
            (whole.tokens, whole.top1_agreement)
        );
        let mean = |of: fn(&Evaluation) -> Option<f64>| {
            let weighted = by_position
                .iter()
                .map(|PositionEvaluation { evaluation, .. }| {
                    of(evaluation).expect("tokens") * evaluation.tokens as f64
                });
            weighted.sum::<f64>() / all.tokens as f64
        };
        let means = [
            mean(|it| it.kl),
            mean(|it| it.student_ce),
            mean(|it| it.teacher_ce),
        ];
        // The same numbers in float64, divided and multiplied again.
        assert_close(&means, &known(all), &Tolerance::Uniform(1e-12));
        // Another order of float32 sums over the two windows' tokens, each over the vocabulary.
        let tolerance = Tolerance::Uniform(rounding(200 + 61) * known(whole)[1]);
        assert_close(&known(all), &known(whole), &tolerance);
        let further = perturb(other.clone(), "model.norm.gamma", CHANGE);
        let whole = evaluate(&further, &model, &batches, |_, _| {});
        assert_not_close(&known(all), &known(whole), &tolerance);
    }
}

/// Each document evaluated by itself, and the ratio estimator in plain loops.
fn an_interval_is_that_of_documents_one_by_one<A: AutodiffBackend>(device: A::Device) {
    let model = load::<A::InnerBackend>("tied", &device);
    let other = perturb(model.clone(), "model.norm.gamma", 1.0);
    let mut numbers = Numbers::new(2);
    let mut documents: Vec<Vec<u32>> = Vec::new();
    for length in [40, 9, 3, 22, 14, 7, 31, 5, 12, 36] {
        let ids = numbers.ids(length, 61);
        documents.push(ids.iter().map(|id| *id as u32).collect());
    }
    let of = |documents: Vec<Vec<u32>>| loader(pack(documents, 50), 2, None, &device);
    let (mut kl, mut tokens) = (Vec::new(), Vec::new());
    for document in &documents {
        let alone = evaluate(&other, &model, &of(vec![document.clone()]), |_, _| {});
        tokens.push(alone.tokens as f64);
        kl.push(alone.kl.expect("tokens") * alone.tokens as f64);
    }
    let (all_kl, all_tokens): (f64, f64) = (kl.iter().sum(), tokens.iter().sum());
    let ratio = all_kl / all_tokens;
    let mut squares = 0.0;
    for (kl, tokens) in kl.iter().zip(&tokens) {
        squares += (kl - ratio * tokens).powi(2);
    }
    // Ten documents: 97.5 % of Student's t with 9 degrees of freedom are below 2.2622, by the expansion to 3e-4.
    let far = 2.2622 * (squares / 9.0 / 10.0).sqrt() / (all_tokens / 10.0);

    let batches = of(documents);
    let found = evaluate_documents(&other, &model, &batches, |_, _| {});
    assert_eq!(found.all, evaluate(&other, &model, &batches, |_, _| {}));
    assert_eq!(found.documents, 10);
    let Interval { low, high } = found.kl_interval.expect("ten documents");
    // A KL is a sum over the vocabulary of differences of log-probabilities.
    let rounded = rounding(200 + 61) * found.all.student_ce.expect("tokens");
    let half = Tolerance::Uniform(1e-3 * far + rounded);
    assert_close(&[(high - low) / 2.0], &[far], &half);
    assert_not_close(
        &[(high - low) / 2.0],
        &[far * (9.0f64 / 10.0).sqrt()],
        &half,
    );
    let middle = Tolerance::Uniform(rounded);
    assert_close(&[(high + low) / 2.0], &[ratio], &middle);

    let by_position = evaluate_by_position(&other, &model, &batches, |_, _| {}).by_position;
    assert_eq!(found.kl_by_position.len(), by_position.len());
    for (found, expected) in found.kl_by_position.iter().zip(&by_position) {
        let PositionEvaluation {
            first,
            last,
            evaluation,
        } = expected;
        assert_eq!(
            (found.first, found.last, found.tokens),
            (*first, *last, evaluation.tokens)
        );
        assert_close(&[found.kl], &[evaluation.kl.expect("tokens")], &middle);
    }
}

// ---------------------------------------------------------------- a whole run

const WORDS: [&str; 8] = ["the", "cat", "dog", "saw", "a", "ran", "home", "then"];

/// A teacher folder: the tied fixture with a tokenizer of a few words, and two texts beside it.
fn teacher_with_words(dir: &Path) -> PathBuf {
    let teacher = dir.join("teacher");
    fs::create_dir(&teacher).expect("a folder");
    for file in ["config.json", "model.safetensors"] {
        fs::copy(model_dir("tied").join(file), teacher.join(file)).expect("a copy");
    }
    let tokenizer = tokenizer_of_words().to_string();
    fs::write(teacher.join("tokenizer.json"), tokenizer).expect("a file");
    for (file, lines) in [("train.txt", 30), ("valid.txt", 6)] {
        let text: String = (0..lines).map(sentence).collect();
        fs::write(dir.join(file), text).expect("a file");
    }
    teacher
}

fn sentence(line: usize) -> String {
    let words = (0..3 + line % 5).map(|word| WORDS[(line * 3 + word * (1 + line % 3)) % 8]);
    words.collect::<Vec<_>>().join(" ") + "\n"
}

fn tokenizer_of_words() -> Value {
    let special = |id: usize, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": true})
    };
    let mut vocab = json!({"<unk>": 0, "<s>": 1, "</s>": 2});
    for (index, word) in WORDS.iter().enumerate() {
        vocab[word] = json!(index + 3);
    }
    json!({
        "version": "1.0",
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    })
}

/// The exported bytes, and the figures that are no wall time.
struct Run {
    weights: Vec<u8>,
    metrics: Vec<Value>,
    summary: Value,
}

fn run<A: AutodiffBackend>(train: &str, seed: u64, device: &A::Device) -> Run {
    let dir = TempDir::new().expect("a folder");
    let teacher = teacher_with_words(dir.path());
    let untouched = fs::read(teacher.join("model.safetensors")).expect("a file");
    let heads = "heads = 2, kv_heads = 1";
    let rest = format!("lti.start = 'lecun'\nlti.train = '{train}'");
    let mut recipe = recipe(dir.path(), &teacher, heads, &rest);
    recipe.train.seed = seed;
    recipe.train.weight_decay = 0.1;
    let out = OutputDir::prepare(&dir.path().join("out"), false).expect("a folder");
    let nobody: Listener = Arc::new(|_: Event<'_>| {});
    let summary = distill::<A>(&recipe, &out, device, &nobody);
    let summary = summary.unwrap_or_else(|error| panic!("{error}"));

    let after = fs::read(teacher.join("model.safetensors")).expect("a file");
    assert!(after == untouched, "the teacher's file was touched");
    let metrics = fs::read_to_string(dir.path().join("out/metrics.jsonl")).expect("a file");
    let read = |line| serde_json::from_str::<Value>(line).expect("a line of JSON");
    let lines = metrics.lines().map(read);
    let steps = lines.filter(|line| line.get("eval").is_none());
    let metrics = steps.map(|mut line| {
        let numbers = line.as_object_mut().expect("an object");
        for clock in ["seconds", "tokens_per_second", "flops_per_second"] {
            numbers.remove(clock).expect("a number");
        }
        line
    });
    Run {
        weights: fs::read(dir.path().join("out/student/model.safetensors")).expect("a file"),
        metrics: metrics.collect(),
        summary: summary.to_json(),
    }
}

fn the_same_seed_gives_the_same_student<A: AutodiffBackend>(device: A::Device) {
    let run = |seed| run::<A>("maps", seed, &device);
    let (first, second, other) = (run(3), run(3), run(4));
    assert_eq!(first.metrics.len(), 6);
    assert!(first.weights == second.weights, "two runs, two students");
    assert_eq!(first.metrics, second.metrics);
    assert!(
        first.weights != other.weights,
        "another seed, the same student"
    );

    let figure = |key: &str| {
        first.summary[key]
            .as_f64()
            .unwrap_or_else(|| panic!("no {key}"))
    };
    assert!(figure("kl_end") < figure("kl_start"), "{}", first.summary);
    // Logits of at most about ten through two layers of width 24.
    assert!(
        figure("collapse_max_abs_logit_diff") < 1e-4,
        "{}",
        first.summary
    );
    for key in [
        "kl_start",
        "kl_end",
        "student_ce",
        "teacher_ce",
        "top1_agreement",
    ] {
        assert_eq!(first.summary[key], second.summary[key]);
    }
}

/// Of the exported student. `maps` and `projections` leave everything but attention alone; `all`
/// leaves nothing.
fn only_what_trains_leaves_the_teachers_bits<A: AutodiffBackend>(device: A::Device) {
    let teacher = TensorFile::open(model_dir("tied").join("model.safetensors"));
    for train in ["maps", "projections", "all"] {
        let run = run::<A>(train, 3, &device);
        let student = SafeTensors::deserialize(&run.weights).expect("an export");
        let figure = |key: &str| run.summary[key].as_f64().expect("a figure");
        assert!(
            figure("kl_end") < figure("kl_start"),
            "{train}: {}",
            run.summary
        );
        assert_eq!(student.len(), teacher.tensors().len());
        for (name, view) in student.tensors() {
            let original = teacher.tensors();
            let same = original.tensor(&name).expect("a tensor").data() == view.data();
            let copied = train != "all" && !name.contains("self_attn");
            assert_eq!(same, copied, "{train}: {name}");
        }
    }
}

/// The plan of a recipe whose texts need not be there.
pub(crate) fn plan(recipe: &Recipe) -> Plan {
    let teacher = LlamaConfig::from_dir(&recipe.teacher.path).expect("a teacher");
    Plan::new(recipe, &teacher).expect("a plan")
}
