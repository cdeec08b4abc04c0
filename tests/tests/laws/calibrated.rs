//! The start that is calculated from text: what it keeps, what it drops, and when it refuses.

use std::sync::Arc;

use burn::data::dataloader::DataLoader;
use burn::module::AutodiffModule;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::blueprint::{BlueprintError, Rules};
use burn_lti::calibration::{
    Budget, CalibratedStart, Calibration, CalibrationError, FeedForward, HeadChoice, calibrate,
};
use burn_lti::decoder::{CausalLm, LayeredDecoder, LtiSpec, RoleMaps, TokenBatch};
use burn_lti::geometry::{Axes, HeadGrid, Role};
use burn_lti::map::{MapKind, Start, StartError};
use burn_lti::tensors::TensorSet;
use burn_lti_llama::config::LlamaConfig;
use burn_lti_llama::data::{loader, pack};
use burn_lti_llama::eval::evaluate;
use burn_lti_llama::model::{LearningLlama, PlainLlama};
use burn_lti_tests::close::{Tolerance, assert_close, assert_not_close, rounding};
use burn_lti_tests::llama::load;
use burn_lti_tests::numbers::{Numbers, values};
use burn_lti_tests::params::{edit, parameters, perturb};
use burn_lti_tests::toy::{LearningToy, PlainToy, ToyConfig, logits, packed_batch};
use burn_lti_tests::{may_be_simulated, on_every_backend};

on_every_backend![
    equal_grids_reproduce_the_teacher,
    heads_that_add_nothing_are_dropped_without_loss,
    key_value_heads_that_are_one_another_turned_are_merged_without_loss,
    it_begins_nearer_to_the_teacher_than_any_other_start,
    heads_of_another_size_keep_their_rotary_pairs,
    heads_of_any_number_and_size_are_calibrated,
    sums_of_pairs_lie_between_the_factored_and_the_general_map,
    refinement_is_kept_where_it_helps,
    a_token_counts_by_the_attention_it_receives,
    heads_that_keep_to_their_own_values_are_fitted_too,
    a_decoder_that_is_no_llama_is_calibrated_too,
    the_same_text_gives_the_same_start,
    maps_that_nobody_calculated_are_refused,
    too_little_text_is_refused,
    a_rank_beyond_the_grids_is_refused,
    a_teacher_of_numbers_that_are_none_is_refused,
    why_there_is_no_student_is_said,
    a_student_of_other_maps_is_refused,
    a_student_with_other_layers_is_refused,
    a_teacher_without_a_projection_that_it_names_is_refused,
];

pub(super) type Batches<B> = Arc<dyn DataLoader<B, TokenBatch<B>>>;

/// Random documents of 7 to 11 tokens, end to end in windows of 12. Sixteen to a batch: on a GPU's software
/// device the number of operations is what costs, not the size of their tensors.
pub(super) fn batches<B: Backend>(
    count: usize,
    vocab: usize,
    seed: u64,
    device: &B::Device,
) -> Batches<B> {
    let mut numbers = Numbers::new(seed);
    let mut pieces: Vec<Vec<u32>> = Vec::new();
    let mut laid = 0;
    for index in 0..count * 24 {
        let mut rest: Vec<u32> = numbers
            .ids(7 + index % 5, vocab)
            .into_iter()
            .map(|id| id as u32)
            .collect();
        while !rest.is_empty() {
            let after = rest.split_off(rest.len().min(12 - laid % 12));
            laid += rest.len();
            pieces.push(std::mem::replace(&mut rest, after));
        }
    }
    let mut sequences = pack(pieces, 12);
    sequences.truncate(16 * count);
    loader(sequences, 16, None, device)
}

pub(super) fn spec(teacher: Axes, maps: RoleMaps) -> LtiSpec {
    LtiSpec {
        maps,
        start: Start::Calibrated,
        ..LtiSpec::new(teacher)
    }
}

/// A fixture's Llama with other heads.
pub(crate) fn with_heads(
    teacher: &LlamaConfig,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
) -> LlamaConfig {
    LlamaConfig {
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        ..teacher.clone()
    }
}

pub(crate) fn llama_student<B: Backend>(
    config: &LlamaConfig,
    spec: &LtiSpec,
    tensors: &TensorSet<B>,
    device: &B::Device,
) -> Result<LearningLlama<B>, BlueprintError> {
    let plain = PlainLlama::init(config, device);
    let rules = Rules::by_name().with_gains(plain.gains());
    let awaiting = plain.learn_to_init(spec).expect("a swap");
    Ok(awaiting.inject(tensors, &rules)?.0)
}

pub(super) fn toy_student<A: AutodiffBackend>(
    config: &ToyConfig,
    spec: &LtiSpec,
    tensors: &TensorSet<Inner<A>>,
    device: &A::Device,
) -> Result<LearningToy<A>, BlueprintError> {
    let awaiting = config.init(device).learn_to_init(spec).expect("a swap");
    Ok(awaiting
        .inject(&TensorSet::from_inner(tensors), &Rules::by_name())?
        .0)
}

pub(super) type Inner<A> = <A as AutodiffBackend>::InnerBackend;

/// The calibrated student of a Llama, and how it came about.
fn calibrated_llama<A: AutodiffBackend>(
    teacher: &PlainLlama<Inner<A>>,
    config: &LlamaConfig,
    maps: RoleMaps,
    feed_forward: FeedForward,
    device: &A::Device,
) -> (LearningLlama<Inner<A>>, CalibratedStart<Inner<A>>) {
    let set = |calibration: &mut Calibration<'_>| calibration.feed_forward = feed_forward;
    calibrated_with::<A>(teacher, config, maps, set, device)
}

/// The same, with what `set` changes.
pub(crate) fn calibrated_with<A: AutodiffBackend>(
    teacher: &PlainLlama<Inner<A>>,
    config: &LlamaConfig,
    maps: RoleMaps,
    set: impl Fn(&mut Calibration<'_>),
    device: &A::Device,
) -> (LearningLlama<Inner<A>>, CalibratedStart<Inner<A>>) {
    let spec = spec(teacher.config().axes(), maps);
    let tensors = TensorSet::collect(teacher);
    let mut calibration = Calibration::new(&spec, config.axes());
    set(&mut calibration);
    let student_with = |start: &TensorSet<Inner<A>>| {
        let tensors = TensorSet::from_inner(&tensors.with(start));
        llama_student::<A>(config, &spec, &tensors, device)
    };
    let text = batches(4, config.vocab_size, 5, device);
    let start = calibrate::<A, _, _, _>(&calibration, teacher, &text, student_with, |_| {});
    let start = start.expect("a start");
    let student = llama_student(config, &spec, &tensors.with(&start.tensors), device);
    (student.expect("a student"), start)
}

fn out_general() -> RoleMaps {
    RoleMaps::attention(MapKind::Factored).with(Role::Out, MapKind::General)
}

fn all_maps() -> [RoleMaps; 4] {
    [
        RoleMaps::attention(MapKind::Factored),
        RoleMaps::attention(MapKind::General),
        out_general(),
        RoleMaps::attention(MapKind::Kronecker(2)),
    ]
}

/// Float32 on both sides. Roundings on the way to a logit: twice what the widest sums of two layers have,
/// for the map and for its product.
pub(crate) fn tolerance(expected: &[f64]) -> Tolerance {
    let largest = expected.iter().fold(0.0f64, |all, one| all.max(one.abs()));
    Tolerance::Uniform(2.0 * rounding(2 * 2 * 200) * largest)
}

// ---------------------------------------------------------------- what it keeps

fn equal_grids_reproduce_the_teacher<A: AutodiffBackend>(device: A::Device) {
    for (index, name) in ["tied", "untied_bias"].into_iter().enumerate() {
        let teacher = load::<A::InnerBackend>(name, &device);
        let config = teacher.config().clone();
        let batch = packed_batch(config.vocab_size, 3, &device);
        let expected = values(&logits(&teacher, &batch));
        for (form, maps) in all_maps().into_iter().enumerate() {
            // What depends on the form of a map is worked out on the host: each once is enough.
            if may_be_simulated::<A>(&device) && form % 2 != index {
                continue;
            }
            let form = maps.get(Role::Value);
            let (student, start) =
                calibrated_llama::<A>(&teacher, &config, maps.clone(), FeedForward::Refit, &device);
            assert!(start.layers.iter().all(|layer| layer.residual < 1e-5));
            let found = values(&logits(&student, &batch));
            assert_close(&found, &expected, &tolerance(&expected));
            let changed = match form.expect("a map") {
                MapKind::Factored => "model.layers.0.self_attn.v_proj.right.a",
                // The first pair's, not the `A` of one that adds nothing yet.
                MapKind::Kronecker(_) => "model.layers.0.self_attn.v_proj.right.b",
                MapKind::General | MapKind::Rotary { .. } => {
                    "model.layers.0.self_attn.v_proj.right.w"
                }
            };
            let perturbed = values(&logits(&perturb(student, changed, 0.02), &batch));
            assert_not_close(&perturbed, &expected, &tolerance(&expected));
        }
    }
}

/// A teacher of 4 heads and 2 key/value heads of which each layer uses only one key/value head.
fn heads_that_add_nothing_are_dropped_without_loss<A: AutodiffBackend>(device: A::Device) {
    let teacher = load::<A::InnerBackend>("tied", &device);
    let (half, width) = (2 * 8, 24);
    let teacher = edit(teacher, |name, values| match name {
        "model.layers.0.self_attn.o_proj.weight" => values[..half * width].fill(0.0),
        "model.layers.1.self_attn.o_proj.weight" => values[half * width..].fill(0.0),
        _ => {}
    });
    let config = with_heads(teacher.config(), 2, 1, 8);
    let batch = packed_batch(config.vocab_size, 3, &device);
    let expected = values(&logits(&teacher, &batch));
    for maps in all_maps() {
        let (student, start) =
            calibrated_llama::<A>(&teacher, &config, maps.clone(), FeedForward::Keep, &device);
        let heads: Vec<&HeadChoice> = start.layers.iter().map(|layer| &layer.heads).collect();
        assert_eq!(
            (&heads[0].query[..], &heads[0].key_value[..]),
            (&[2, 3][..], &[vec![1]][..])
        );
        assert_eq!(
            (&heads[1].query[..], &heads[1].key_value[..]),
            (&[0, 1][..], &[vec![0]][..])
        );
        let found = values(&logits(&student, &batch));
        assert_close(&found, &expected, &tolerance(&expected));
    }
}

/// A teacher of 4 heads and 2 key/value heads of which the second is the first, turned: its keys as positions may
/// turn them, its values in another basis. All query heads are kept, each once.
fn key_value_heads_that_are_one_another_turned_are_merged_without_loss<A: AutodiffBackend>(
    device: A::Device,
) {
    let teacher = load::<A::InnerBackend>("tied", &device);
    let turned = |values: &mut [f32], of: &dyn Fn(&[f32], usize) -> f32| {
        for row in values.chunks_exact_mut(2 * 8) {
            let (first, second) = row.split_at_mut(8);
            (0..8).for_each(|feature| second[feature] = of(first, feature));
        }
    };
    let by_pair = |first: &[f32], feature: usize| {
        let pair = feature % 4;
        let (sin, cos) = (0.4 + pair as f32).sin_cos();
        match feature < 4 {
            true => cos * first[pair] - sin * first[pair + 4],
            false => sin * first[pair] + cos * first[pair + 4],
        }
    };
    let next = |first: &[f32], feature: usize| first[(feature + 1) % 8];
    let teacher = edit(teacher, |name, values| {
        if name.ends_with("k_proj.weight") {
            turned(values, &by_pair);
        } else if name.ends_with("v_proj.weight") {
            turned(values, &next);
        }
    });
    let config = with_heads(teacher.config(), 4, 1, 8);
    let batch = packed_batch(config.vocab_size, 3, &device);
    let expected = values(&logits(&teacher, &batch));
    for budget in [Budget::None, Budget::Short, Budget::Long] {
        let set = |calibration: &mut Calibration<'_>| calibration.budget = budget;
        let maps = RoleMaps::attention(MapKind::General);
        let (student, start) = calibrated_with::<A>(&teacher, &config, maps, set, &device);
        for layer in &start.layers {
            assert_eq!(layer.heads.query, [0, 1, 2, 3]);
            assert_eq!(layer.heads.key_value, [[0, 1]]);
        }
        let found = values(&logits(&student, &batch));
        assert_close(&found, &expected, &tolerance(&expected));
    }
}

/// What least squares leave over is orthogonal to what the output reads, rows weighted as they were in the
/// fit: here by one and the squared attention that a token receives, over the size of what follows.
fn a_token_counts_by_the_attention_it_receives<A: AutodiffBackend>(device: A::Device) {
    let teacher = load::<A::InnerBackend>("tied", &device);
    let config = with_heads(teacher.config(), 2, 1, 8);
    let (student, start) =
        calibrated_llama::<A>(&teacher, &config, out_general(), FeedForward::Keep, &device);
    let mut across = [0.0; 2].map(|_| Tensor::<Inner<A>, 2>::zeros([2 * 8, 24], &device));
    for batch in batches::<Inner<A>>(4, config.vocab_size, 5, &device).iter() {
        let context = teacher.context(&batch);
        let h = teacher.embed(&batch);
        let [sequences, tokens, width] = h.dims();
        let rows = sequences * tokens;
        let mut received = Tensor::zeros([rows, 1], &device);
        let mut stream = h.clone();
        for layer in 0..teacher.layers() {
            let patterns = teacher.attention_weights(layer, stream.clone(), &context);
            let squares = patterns.square().sum_dim(2).mean_dim(1);
            received = received + squares.reshape([rows, 1]) / teacher.layers() as f64;
            stream = stream.clone() + teacher.attention(layer, stream, &context);
            stream = stream.clone() + teacher.feed_forward(layer, stream);
        }
        let target = teacher.attention(0, h.clone(), &context);
        let size = (h.clone() + target.clone()).square().mean_dim(2);
        let present = batch.segments.clone().greater_elem(0).float();
        let even = present.reshape([rows, 1]) / size.reshape([rows, 1]);

        let context = student.context(&batch);
        let patterns = student.attention_weights(0, h.clone(), &context);
        let values = student.values(0, h.clone());
        let read = patterns
            .matmul(values.reshape([sequences, 1, tokens, 8]).repeat_dim(1, 2))
            .swap_dims(1, 2)
            .reshape([rows, 2 * 8]);
        let left = (student.attention(0, h, &context) - target).reshape([rows, width]);
        for (sum, weight) in across
            .iter_mut()
            .zip([received + 1.0, Tensor::ones([rows, 1], &device)])
        {
            let weighted = left.clone() * (weight * even.clone());
            *sum = sum.clone() + read.clone().transpose().matmul(weighted);
        }
    }
    let [as_fitted, evenly] =
        across.map(|sum| values(&sum).iter().map(|x| x * x).sum::<f64>().sqrt());
    let ridge = start.layers[0].ridge.expect("the output was fitted");
    assert!(
        as_fitted < 0.1 * evenly,
        "{as_fitted}, {evenly}, ridge {ridge}"
    );
}

/// KL to the teacher on text that the calibration has not read.
pub(crate) fn kl<B: Backend, M: LayeredDecoder<B>>(
    student: &M,
    teacher: &PlainLlama<B>,
    device: &B::Device,
) -> f64 {
    let held_out = batches(1, teacher.config().vocab_size, 77, device);
    let found = evaluate(student, teacher, &held_out, |_, _| {});
    found.kl.expect("tokens")
}

fn it_begins_nearer_to_the_teacher_than_any_other_start<A: AutodiffBackend>(device: A::Device) {
    let teacher = load::<A::InnerBackend>("tied", &device);
    let config = with_heads(teacher.config(), 2, 1, 8);
    let tensors = TensorSet::collect(&teacher);
    let other = |start| {
        let spec = LtiSpec {
            start,
            ..LtiSpec::new(teacher.config().axes())
        };
        let student = llama_student(&config, &spec, &tensors, &device).expect("a student");
        kl(&student, &teacher, &device)
    };
    let others = other(Start::Grouped).min(other(Start::Lecun));
    for maps in all_maps() {
        let (student, start) =
            calibrated_llama::<A>(&teacher, &config, maps.clone(), FeedForward::Keep, &device);
        let found = kl(&student, &teacher, &device);
        assert!(found < others, "{maps:?}: {found}, others {others}");
        for layer in &start.layers {
            assert!(layer.residual <= layer.residual_of_output && layer.residual < 1.0);
        }
    }
    // Feed-forward blocks are fitted where that helps on tokens held out of the fit, and only there.
    let maps = out_general();
    let (_, keep) =
        calibrated_llama::<A>(&teacher, &config, maps.clone(), FeedForward::Keep, &device);
    let (_, refit) =
        calibrated_llama::<A>(&teacher, &config, maps.clone(), FeedForward::Refit, &device);
    let left = refit.layers.iter().map(|layer| layer.feed_forward_residual);
    let left: Vec<f64> = left.map(|left| left.expect("it was fitted")).collect();
    let helped = left.iter().filter(|left| **left < 1.0).count();
    assert!(
        helped >= 1 && left.iter().all(|left| *left <= 1.0),
        "{left:?}"
    );
    assert_eq!(refit.tensors.len(), keep.tensors.len() + helped);
}

fn heads_of_another_size_keep_their_rotary_pairs<A: AutodiffBackend>(device: A::Device) {
    let teacher = load::<A::InnerBackend>("tied", &device);
    // A teacher whose queries and keys use every other rotary pair alone: features 1, 3 and 5, 7 of each
    // head are nothing. Half as large heads then have the same scores.
    let teacher = edit(teacher, |name, values| {
        let width = match name.rsplit_once("self_attn.") {
            Some((_, "q_proj.weight")) => 32,
            Some((_, "k_proj.weight")) => 16,
            _ => return,
        };
        for (index, value) in values.iter_mut().enumerate() {
            if index % width % 2 == 1 {
                *value = 0.0;
            }
        }
    });
    let config = with_heads(teacher.config(), 4, 2, 4);
    let (student, _) = calibrated_llama::<A>(
        &teacher,
        &config,
        RoleMaps::attention(MapKind::General),
        FeedForward::Keep,
        &device,
    );
    let batch = packed_batch(config.vocab_size, 3, &device);
    let weights = |model: &dyn Fn(Tensor<A::InnerBackend, 3>) -> Tensor<A::InnerBackend, 4>| {
        values(&model(teacher.embed(&batch)))
    };
    let expected = weights(&|h| teacher.attention_weights(0, h, &teacher.context(&batch)));
    let found = weights(&|h| student.attention_weights(0, h, &student.context(&batch)));
    // Scores of some tens of products, each of two roundings, through a softmax.
    let tolerance = Tolerance::Uniform(2.0 * rounding(2 * 24 + 2 * 8 + 32));
    assert_close(&found, &expected, &tolerance);
    let changed = perturb(student, "model.layers.0.self_attn.q_proj.right.w", 0.5);
    let changed = weights(&|h| changed.attention_weights(0, h, &changed.context(&batch)));
    assert_not_close(&changed, &expected, &tolerance);
}

/// Groups of another size, more heads than the teacher has, and larger ones.
fn heads_of_any_number_and_size_are_calibrated<A: AutodiffBackend>(device: A::Device) {
    let teacher = load::<A::InnerBackend>("tied", &device);
    let tensors = TensorSet::collect(&teacher);
    for (heads, kv_heads, head_dim) in [(3, 1, 8), (6, 3, 8), (4, 2, 12), (2, 1, 6)] {
        let config = with_heads(teacher.config(), heads, kv_heads, head_dim);
        let random = LtiSpec {
            start: Start::Lecun,
            ..LtiSpec::new(teacher.config().axes())
        };
        let random = llama_student(&config, &random, &tensors, &device).expect("a student");
        let random = kl(&random, &teacher, &device);
        for maps in [
            RoleMaps::attention(MapKind::Factored),
            RoleMaps::attention(MapKind::General),
            RoleMaps::attention(MapKind::Kronecker(2)),
        ] {
            let (student, _) =
                calibrated_llama::<A>(&teacher, &config, maps.clone(), FeedForward::Keep, &device);
            let found = kl(&student, &teacher, &device);
            assert!(
                found < random,
                "{heads}/{kv_heads} x {head_dim}: {found}, {random}"
            );
        }
    }
}

/// One pair is calibrated as the factored map, bit for bit, and all pairs as the general one.
fn sums_of_pairs_lie_between_the_factored_and_the_general_map<A: AutodiffBackend>(
    device: A::Device,
) {
    let teacher = load::<A::InnerBackend>("tied", &device);
    let config = with_heads(teacher.config(), 2, 1, 6);
    let batch = packed_batch(config.vocab_size, 3, &device);
    let calibrated = |maps| {
        let (student, start) =
            calibrated_llama::<A>(&teacher, &config, maps, FeedForward::Keep, &device);
        let residuals = start.layers.iter().map(|layer| layer.residual);
        let found = values(&logits(&student, &batch));
        (found, residuals.collect::<Vec<_>>(), student)
    };
    let (factored, ..) = calibrated(RoleMaps::attention(MapKind::Factored));
    let (one, ..) = calibrated(RoleMaps::attention(MapKind::Kronecker(1)));
    assert_eq!(one, factored);

    // Query and key need one pair. The second adds nothing, and can learn.
    let (.., two) = calibrated(RoleMaps::attention(MapKind::Kronecker(2)));
    for projection in ["q_proj", "k_proj"] {
        let name = |leaf| format!("model.layers.1.self_attn.{projection}.right.{leaf}");
        let second = |leaf| {
            let bits = &parameters(&two)[&name(leaf)].bits;
            let second = bits[bits.len() / 2..].iter();
            second.map(|bits| f32::from_bits(*bits)).collect::<Vec<_>>()
        };
        assert!(second("b").iter().all(|value| *value == 0.0));
        assert!(second("a").iter().all(|value| *value != 0.0));
    }

    let (teacher, student) = (teacher.config().axes(), config.axes());
    let rank = |role| MapKind::largest_rank(teacher.grid(role), student.grid(role));
    let all = Role::ATTENTION
        .into_iter()
        .fold(RoleMaps::attention(MapKind::General), |maps, role| {
            maps.with(role, MapKind::Kronecker(rank(role)))
        });
    let (general, general_left, _) = calibrated(RoleMaps::attention(MapKind::General));
    let (all, all_left, of_pairs) = calibrated(all);
    // The second layer is fitted to what rounded maps put out in the first.
    for (all, general) in all_left.iter().zip(&general_left) {
        assert!((all - general).abs() < 1e-3 * general, "{all}, {general}");
    }
    assert_close(&all, &general, &tolerance(&general));
    let changed = perturb(of_pairs, "model.layers.0.self_attn.v_proj.right.b", 0.02);
    let changed = values(&logits(&changed, &batch));
    assert_not_close(&changed, &general, &tolerance(&general));
}

fn refinement_is_kept_where_it_helps<A: AutodiffBackend>(device: A::Device) {
    let teacher = load::<A::InnerBackend>("untied_bias", &device);
    let config = with_heads(teacher.config(), 1, 1, 8);
    let start = |steps| {
        let set = |calibration: &mut Calibration<'_>| calibration.refinement.steps = steps;
        let maps = RoleMaps::attention(MapKind::General);
        calibrated_with::<A>(&teacher, &config, maps, set, &device).1
    };
    let (fitted, refined) = (start(0), start(24));
    // The first layer is the same up to its refinement.
    let residual = |start: &CalibratedStart<Inner<A>>| start.layers[0].residual;
    assert!(residual(&refined) < residual(&fitted));
    let query = |start: &CalibratedStart<Inner<A>>| {
        let named = start.tensors.get("model.layers.0.self_attn.q_proj.right.w");
        named.expect("a map").tensor.to_f32().expect("values")
    };
    assert_ne!(query(&refined), query(&fitted), "patterns move too");
}

/// As where there are too many values to mix those of all heads.
fn heads_that_keep_to_their_own_values_are_fitted_too<A: AutodiffBackend>(device: A::Device) {
    let teacher = load::<A::InnerBackend>("tied", &device);
    let batch = packed_batch(teacher.config().vocab_size, 3, &device);
    let own = |config: &LlamaConfig, maps| {
        let set = |calibration: &mut Calibration<'_>| calibration.most_features = 0;
        calibrated_with::<A>(&teacher, config, maps, set, &device).0
    };
    let expected = values(&logits(&teacher, &batch));
    let fewer = with_heads(teacher.config(), 2, 1, 8);
    // The form of a map is the host's business: one is enough for a slow device.
    let forms = if may_be_simulated::<A>(&device) { 1 } else { 4 };
    for maps in all_maps().into_iter().take(forms) {
        let same = own(teacher.config(), maps.clone());
        let found = values(&logits(&same, &batch));
        assert_close(&found, &expected, &tolerance(&expected));
        // It loses something to a map that may mix: that there is another way is seen.
        let (mixed, _) =
            calibrated_llama::<A>(&teacher, &fewer, maps.clone(), FeedForward::Keep, &device);
        let own = own(&fewer, maps);
        let own = [&own, &mixed].map(|student| kl(student, &teacher, &device));
        let spec = LtiSpec {
            start: Start::Grouped,
            ..LtiSpec::new(teacher.config().axes())
        };
        let grouped = llama_student(&fewer, &spec, &TensorSet::collect(&teacher), &device);
        let grouped = kl(&grouped.expect("a student"), &teacher, &device);
        assert!(
            own[0] < grouped && own[0] != own[1],
            "{own:?}, grouped {grouped}"
        );
    }
}

fn a_decoder_that_is_no_llama_is_calibrated_too<A: AutodiffBackend>(device: A::Device) {
    let (from, to) = (ToyConfig::new(6, 3), ToyConfig::new(2, 1));
    let teacher: PlainToy<A::InnerBackend> = from.random(1, &device);
    let tensors = TensorSet::collect(&teacher);
    let text = batches(4, from.vocab, 5, &device);
    let student_of = |config: &ToyConfig, spec: &LtiSpec, start: &TensorSet<_>| {
        toy_student::<A>(config, spec, &tensors.with(start), &device)
    };
    let distance = |student: &LearningToy<A>| -> f64 {
        let batch = from.batch(9, &device);
        let both = (logits(&student.valid(), &batch), logits(&teacher, &batch));
        let both = values(&both.0).into_iter().zip(values(&both.1));
        both.map(|(a, b)| (a - b).powi(2)).sum()
    };
    let grouped = LtiSpec::new(from.geometry);
    let nothing = TensorSet::new();
    let grouped = distance(&student_of(&to, &grouped, &nothing).expect("a student"));
    for (config, maps) in [
        (&from, out_general()),
        (&to, RoleMaps::attention(MapKind::General)),
    ] {
        let spec = spec(from.geometry, maps);
        let calibration = Calibration::new(&spec, config.geometry);
        let start = calibrate::<A, _, _, _>(
            &calibration,
            &teacher,
            &text,
            |start| student_of(config, &spec, start),
            |_| {},
        );
        let start = start.expect("a start");
        let student = student_of(config, &spec, &start.tensors).expect("a student");
        let found = distance(&student);
        // With the teacher's own heads it is the teacher, biases and all.
        let bound = if config.geometry == from.geometry {
            1e-6
        } else {
            grouped
        };
        assert!(found < bound, "{found}, bound {bound}");
    }
}

fn the_same_text_gives_the_same_start<A: AutodiffBackend>(device: A::Device) {
    let teacher = load::<A::InnerBackend>("tied", &device);
    let config = with_heads(teacher.config(), 2, 1, 8);
    let start = || {
        let maps = RoleMaps::attention(MapKind::General);
        let (_, start) =
            calibrated_llama::<A>(&teacher, &config, maps.clone(), FeedForward::Keep, &device);
        let tensors = start.tensors.iter();
        let tensors = tensors.map(|(name, named)| (name.to_owned(), named.tensor.to_f32()));
        tensors.collect::<Vec<_>>()
    };
    assert_eq!(start(), start());
}

// ---------------------------------------------------------------- what it refuses

fn maps_that_nobody_calculated_are_refused<A: AutodiffBackend>(device: A::Device) {
    let teacher = load::<A::InnerBackend>("tied", &device);
    let config = with_heads(teacher.config(), 2, 1, 8);
    let spec = spec(teacher.config().axes(), out_general());
    let error = llama_student(&config, &spec, &TensorSet::collect(&teacher), &device);
    let error = error.expect_err("it has no maps").to_string();
    assert!(error.contains("self_attn.q_proj.right.a"), "{error}");
}

fn too_little_text_is_refused<A: AutodiffBackend>(device: A::Device) {
    let teacher = load::<A::InnerBackend>("tied", &device);
    let config = with_heads(teacher.config(), 2, 1, 8);
    let tensors = TensorSet::collect(&teacher);
    let maps = out_general();
    let grid = HeadGrid::new(2, 8);
    assert_eq!(config.axes().query, grid);
    let spec = spec(teacher.config().axes(), maps);
    let calibration = Calibration::new(&spec, config.axes());
    let calibrate = |text: &Batches<A::InnerBackend>| {
        let student_with = |start: &TensorSet<A::InnerBackend>| {
            let tensors = TensorSet::from_inner(&tensors.with(start));
            llama_student::<A>(&config, &spec, &tensors, &device)
        };
        calibrate::<A, _, _, _>(&calibration, &teacher, text, student_with, |_| {})
            .expect_err("too little")
    };
    let error = calibrate(&batches(3, config.vocab_size, 5, &device));
    let expected = "read 3 batches, and needs at least 4,";
    assert!(error.to_string().contains(expected), "{error}");
    let error = calibrate(&loader(Vec::new(), 4, None, &device));
    assert!(error.to_string().contains("holds no token"), "{error}");
}

fn a_rank_beyond_the_grids_is_refused<A: AutodiffBackend>(device: A::Device) {
    let teacher = load::<A::InnerBackend>("tied", &device);
    let config = with_heads(teacher.config(), 2, 1, 8);
    let spec = spec(
        teacher.config().axes(),
        RoleMaps::attention(MapKind::Kronecker(3)),
    );
    let calibration = Calibration::new(&spec, config.axes());
    let student_with = |start: &TensorSet<A::InnerBackend>| {
        llama_student::<A>(&config, &spec, &TensorSet::from_inner(start), &device)
    };
    let text = batches(4, config.vocab_size, 5, &device);
    let error = calibrate::<A, _, _, _>(&calibration, &teacher, &text, student_with, |_| {})
        .expect_err("the key map has two places in A");
    assert!(matches!(
        error,
        CalibrationError::Map(StartError::Rank {
            rank: 3,
            largest: 2,
            ..
        })
    ));
}

/// What `calibrate` says of a teacher whose student `student_with` makes.
fn refusal<A: AutodiffBackend>(
    teacher: &PlainLlama<Inner<A>>,
    student_with: impl FnOnce(
        &LlamaConfig,
        &LtiSpec,
        &TensorSet<Inner<A>>,
    ) -> Result<LearningLlama<A>, BlueprintError>,
    device: &A::Device,
) -> CalibrationError {
    let config = with_heads(teacher.config(), 2, 1, 8);
    let spec = spec(teacher.config().axes(), out_general());
    let calibration = Calibration::new(&spec, config.axes());
    let text = batches(4, config.vocab_size, 5, device);
    let student_with = |start: &TensorSet<Inner<A>>| student_with(&config, &spec, start);
    let found = calibrate::<A, _, _, _>(&calibration, teacher, &text, student_with, |_| {});
    found.expect_err("it cannot be calibrated")
}

fn a_teacher_of_numbers_that_are_none_is_refused<A: AutodiffBackend>(device: A::Device) {
    let teacher = load::<A::InnerBackend>("tied", &device);
    let teacher = edit(teacher, |name, values| {
        if name == "model.layers.1.self_attn.v_proj.weight" {
            values[5] = f32::NAN;
        }
    });
    let tensors = TensorSet::collect(&teacher);
    let student_with = |config: &LlamaConfig, spec: &LtiSpec, start: &TensorSet<Inner<A>>| {
        llama_student::<A>(
            config,
            spec,
            &TensorSet::from_inner(&tensors.with(start)),
            &device,
        )
    };
    let error = refusal::<A>(&teacher, student_with, &device);
    assert!(matches!(error, CalibrationError::NotFinite), "{error}");
}

fn why_there_is_no_student_is_said<A: AutodiffBackend>(device: A::Device) {
    let teacher = load::<A::InnerBackend>("tied", &device);
    // The teacher's tensors are missing.
    let student_with = |config: &LlamaConfig, spec: &LtiSpec, start: &TensorSet<Inner<A>>| {
        llama_student::<A>(config, spec, &TensorSet::from_inner(start), &device)
    };
    let error = refusal::<A>(&teacher, student_with, &device);
    assert!(matches!(error, CalibrationError::Student { .. }), "{error}");
    let source = std::error::Error::source(&error).expect("a reason");
    assert!(
        source.downcast_ref::<BlueprintError>().is_some(),
        "{source}"
    );
}

/// What `calibrate` says of a toy whose student is of `config`, its maps made by `student`.
fn toy_refusal<A: AutodiffBackend>(
    teacher: &impl LayeredDecoder<Inner<A>>,
    config: &ToyConfig,
    student: &LtiSpec,
    device: &A::Device,
) -> CalibrationError {
    let from = ToyConfig::new(6, 3);
    let plain: PlainToy<Inner<A>> = from.random(1, device);
    let tensors = TensorSet::collect(&plain);
    let spec = spec(from.geometry, RoleMaps::attention(MapKind::Factored));
    let calibration = Calibration::new(&spec, config.geometry);
    let student_with = |start: &TensorSet<Inner<A>>| {
        toy_student::<A>(config, student, &tensors.with(start), device)
    };
    let text = batches(4, config.vocab, 5, device);
    let found = calibrate::<A, _, _, _>(&calibration, teacher, &text, student_with, |_| {});
    found.expect_err("it cannot be calibrated")
}

fn a_student_of_other_maps_is_refused<A: AutodiffBackend>(device: A::Device) {
    let from = ToyConfig::new(6, 3);
    let teacher: PlainToy<Inner<A>> = from.random(1, &device);
    // General maps of another start, which does not wait for values.
    let general = LtiSpec {
        maps: RoleMaps::attention(MapKind::General),
        ..LtiSpec::new(from.geometry)
    };
    let error = toy_refusal::<A>(&teacher, &ToyConfig::new(2, 1), &general, &device);
    let source = std::error::Error::source(&error).expect("a reason");
    assert!(matches!(error, CalibrationError::Student { .. }), "{error}");
    assert!(
        source.to_string().contains("attention.key.right.a"),
        "{source}"
    );
}

fn a_student_with_other_layers_is_refused<A: AutodiffBackend>(device: A::Device) {
    let from = ToyConfig::new(6, 3);
    let teacher: PlainToy<Inner<A>> = from.random(1, &device);
    let fewer = ToyConfig {
        layers: 2,
        ..ToyConfig::new(2, 1)
    };
    let factored = spec(from.geometry, RoleMaps::attention(MapKind::Factored));
    let error = toy_refusal::<A>(&teacher, &fewer, &factored, &device);
    let expected = "teacher and student have 3 and 2 layers: calibration needs them equal";
    assert_eq!(error.to_string(), expected);
}

/// A teacher with maps: it names its projections as the plain one does, and their weights are not there.
fn a_teacher_without_a_projection_that_it_names_is_refused<A: AutodiffBackend>(device: A::Device) {
    let from = ToyConfig::new(6, 3);
    let plain: PlainToy<Inner<A>> = from.random(1, &device);
    let grouped = LtiSpec::new(from.geometry);
    let teacher: LearningToy<Inner<A>> =
        from.learning(&TensorSet::collect(&plain), &grouped, &device);
    let factored = spec(from.geometry, RoleMaps::attention(MapKind::Factored));
    let error = toy_refusal::<A>(&teacher, &ToyConfig::new(2, 1), &factored, &device);
    let expected = "the teacher has no tensor blocks.0.attention.output.weight:";
    assert!(error.to_string().starts_with(expected), "{error}");
}
