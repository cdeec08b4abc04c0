//! Laws of maps along every axis that has them: the teacher comes back where all are the identity, each kernel is that
//! of plain loops, a map of several weights is one variable, and what is folded or resumed is what it was.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::module::AutodiffModule;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn::train::TrainStep;
use burn_lti::blueprint::{FreezeRules, Rules, ShareRule};
use burn_lti::calibration::{
    Blocks, CalibratedStart, Calibration, CalibrationError, Whitening, calibrate,
    with_maps_of_blocks,
};
use burn_lti::collapse::collapse;
use burn_lti::decoder::{LtiSpec, RoleMaps};
use burn_lti::geometry::{Axes, Axis, Role};
use burn_lti::inject::inject;
use burn_lti::loss::DistillationLoss;
use burn_lti::map::{KernelPrecision, MapKind, Start};
use burn_lti::tensors::TensorSet;
use burn_lti::train::Distiller;
use burn_lti_llama::config::LlamaConfig;
use burn_lti_llama::model::{LearningLlama, PlainLlama, foldable_gains, with_folded_gains};
use burn_lti_tests::close::{Tolerance, assert_close, assert_not_close, rounding};
use burn_lti_tests::llama::load;
use burn_lti_tests::numbers::values;
use burn_lti_tests::on_every_backend;
use burn_lti_tests::params::{edit, fill_random, gradients, parameters, perturb};
use burn_lti_tests::toy::{logits, packed_batch};
use burn_lti_tests::training::train_maps_only;

use super::calibrated::{Inner, batches, llama_student, spec};
use super::checkpoint::check_going_on;

on_every_backend![
    gains_go_into_the_weights_behind_them,
    a_width_that_is_kept_by_its_map_is_the_teacher,
    identities_along_every_axis_are_the_teacher,
    every_kernel_is_that_of_plain_loops,
    all_axes_collapse_at_once,
    one_map_of_several_weights_is_one_variable,
    what_freezes_one_use_of_a_map_freezes_the_map,
    a_shared_map_goes_on_from_a_checkpoint_as_if_it_had_not_stopped,
    fitted_blocks_become_maps_that_make_them,
    picked_blocks_are_one_map,
    a_block_with_maps_is_not_calibrated_with,
    a_map_of_heads_is_whitened_on_what_the_width_has_become,
];

/// Maps of heads and of units.
fn forms(attention: MapKind) -> RoleMaps {
    let maps = RoleMaps::attention(attention);
    let roles = Role::FEED_FORWARD.into_iter();
    roles.fold(maps, |maps, role| maps.with(role, MapKind::General))
}

/// Which axes have maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mapped {
    HeadsAndUnits,
    All,
}

/// The names of the maps that may be one variable: the units of each layer, and the width of the whole model.
fn together(config: &LlamaConfig, mapped: Mapped) -> Vec<Vec<String>> {
    let layers = 0..config.num_hidden_layers;
    let of_layer = |layer: usize, leaves: &[&str]| -> Vec<String> {
        let names = leaves.iter();
        names
            .map(|leaf| format!("model.layers.{layer}.{leaf}.w"))
            .collect()
    };
    let units = [
        "mlp.gate_proj.right",
        "mlp.up_proj.right",
        "mlp.down_proj.left",
    ];
    let mut groups: Vec<_> = layers
        .clone()
        .map(|layer| of_layer(layer, &units))
        .collect();
    if mapped == Mapped::All {
        let stream = [
            "self_attn.q_proj.left",
            "self_attn.k_proj.left",
            "self_attn.v_proj.left",
            "self_attn.o_proj.right",
            "mlp.gate_proj.left",
            "mlp.up_proj.left",
            "mlp.down_proj.right",
        ];
        let mut width = vec!["model.embed_tokens.right.w".to_owned()];
        width.extend(layers.flat_map(|layer| of_layer(layer, &stream)));
        if !config.tie_word_embeddings {
            width.push("lm_head.left.w".to_owned());
        }
        groups.push(width);
    }
    groups
}

/// Rules by which each of these groups is one variable.
fn shares(groups: &[Vec<String>]) -> Vec<ShareRule> {
    let pairs = groups
        .iter()
        .flat_map(|names| names[1..].iter().map(|to| (&names[0], to)));
    let rules = pairs.map(|(from, to)| ShareRule::new(&from.replace('.', r"\."), to));
    rules.collect::<Result<_, _>>().expect("rules")
}

/// The teacher's tensors for a student of this width, and the rules by which it takes them.
fn folded<B: Backend>(
    teacher: &PlainLlama<B>,
    config: &LlamaConfig,
    device: &B::Device,
) -> (TensorSet<B>, Rules) {
    let mut tensors = with_folded_gains(teacher.config(), &TensorSet::collect(teacher));
    let gains: Vec<String> = foldable_gains(config)
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    for name in &gains {
        let ones = Tensor::<B, 1>::ones([config.hidden_size], device);
        tensors.insert(name, "RmsNorm", ones);
    }
    let rules = Rules::by_name().with_started(gains);
    let of_stream = ["model.norm.gamma", "model.embed_tokens"].map(str::to_owned);
    let of_stream = config.tie_word_embeddings.then(|| of_stream.into());
    (tensors, rules.with_gains(of_stream))
}

/// A student of half the heads, three quarters of the units and, if it has maps, two thirds of the width, and its
/// random maps; those of each group one variable.
fn student<B: Backend>(
    teacher: &PlainLlama<B>,
    attention: MapKind,
    mapped: Mapped,
    groups: &[Vec<String>],
    device: &B::Device,
) -> (LlamaConfig, LearningLlama<B>) {
    let of_teacher = teacher.config();
    let config = LlamaConfig {
        num_attention_heads: of_teacher.num_attention_heads / 2,
        num_key_value_heads: of_teacher.num_key_value_heads / 2,
        intermediate_size: of_teacher.intermediate_size * 3 / 4,
        ..of_teacher.clone()
    };
    let (config, maps) = match mapped {
        Mapped::HeadsAndUnits => (config, forms(attention)),
        Mapped::All => {
            let width = of_teacher.hidden_size * 2 / 3;
            let config = config.at_width(width, of_teacher.tie_word_embeddings);
            (config, forms(attention).with_width(MapKind::General))
        }
    };
    let spec = LtiSpec {
        maps,
        start: Start::Lecun,
        ..LtiSpec::new(of_teacher.axes())
    };
    let (tensors, rules) = match mapped {
        Mapped::HeadsAndUnits => (TensorSet::collect(teacher), Rules::by_name()),
        Mapped::All => folded(teacher, &config, device),
    };
    let plain = PlainLlama::init(&config, device);
    let awaiting = plain.learn_to_init(&spec).expect("a swap");
    let injected = awaiting.inject(&tensors, &rules.with_shares(shares(groups)));
    (config, injected.expect("an injection").0)
}

const BOTH: [Mapped; 2] = [Mapped::HeadsAndUnits, Mapped::All];

fn gains_go_into_the_weights_behind_them<A: AutodiffBackend>(device: A::Device) {
    for name in ["tied", "untied_bias"] {
        let teacher = fill_random(load::<Inner<A>>(name, &device), 9);
        let config = teacher.config();
        let tensors = with_folded_gains(config, &TensorSet::collect(&teacher));
        let gains = foldable_gains(config);
        assert_eq!(gains.len(), 4 + usize::from(!config.tie_word_embeddings));
        for (name, weights) in &gains {
            assert!(!weights.is_empty());
            let found = tensors
                .get(name)
                .expect(name)
                .tensor
                .to_f32()
                .expect("numbers");
            assert!(found.iter().all(|it| *it == 1.0), "{name}");
        }
        let plain = PlainLlama::init(config, &device);
        let (plain, _) = inject(plain, &tensors, &Rules::by_name()).expect("a model");
        let batch = packed_batch(config.vocab_size, 3, &device);
        let expected = values(&logits(&teacher, &batch));
        let largest = expected.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
        // Through two layers and the head, each product of at most so many features.
        let bound = Tolerance::Uniform(rounding(2 * 8 * 32) * 4.0 * largest);
        assert_close(&values(&logits(&plain, &batch)), &expected, &bound);
        let moved = perturb(plain, &gains[0].0, 0.2);
        assert_not_close(&values(&logits(&moved, &batch)), &expected, &bound);
    }
}

fn a_width_that_is_kept_by_its_map_is_the_teacher<A: AutodiffBackend>(device: A::Device) {
    for name in ["tied", "untied_bias"] {
        let teacher = load::<Inner<A>>(name, &device);
        let config = teacher.config().clone();
        let spec = LtiSpec {
            maps: forms(MapKind::General).with_width(MapKind::General),
            ..LtiSpec::new(config.axes())
        };
        let (tensors, rules) = folded(&teacher, &config, &device);
        let awaiting = PlainLlama::init(&config, &device).learn_to_init(&spec);
        let rules = rules.with_shares(shares(&together(&config, Mapped::All)));
        let injected = awaiting.expect("a swap").inject(&tensors, &rules);
        let (student, _) = injected.expect("an injection");
        // All kernels are the folded ones, to the last bit.
        let collapsed = collapse(&student, KernelPrecision::Default).expect("kernels");
        let heads = usize::from(!config.tie_word_embeddings);
        assert_eq!(collapsed.projections().len(), 2 * 7 + 1 + heads);
        for (name, named) in collapsed.tensors().iter() {
            let (found, expected) = (named.tensor.to_f32(), tensors.get(name).expect(name));
            assert_eq!(found, expected.tensor.to_f32(), "{name}");
        }
        let batch = packed_batch(config.vocab_size, 3, &device);
        let expected = values(&logits(&teacher, &batch));
        let largest = expected.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
        let bound = Tolerance::Uniform(rounding(2 * 8 * 32) * 4.0 * largest);
        assert_close(&values(&logits(&student, &batch)), &expected, &bound);
        let moved = perturb(student, "model.embed_tokens.right.w", 0.3);
        assert_not_close(&values(&logits(&moved, &batch)), &expected, &bound);
    }
}

fn identities_along_every_axis_are_the_teacher<A: AutodiffBackend>(device: A::Device) {
    // The second has biases in its blocks.
    for name in ["tied", "untied_bias"] {
        let teacher = load::<Inner<A>>(name, &device);
        let spec = LtiSpec {
            maps: forms(MapKind::General),
            ..LtiSpec::new(teacher.config().axes())
        };
        let tensors = TensorSet::collect(&teacher);
        let student = llama_student(teacher.config(), &spec, &tensors, &device);
        let student = student.expect("a student");
        let collapsed = collapse(&student, KernelPrecision::Default).expect("kernels");
        assert_eq!(collapsed.projections().len(), 2 * 7);
        // A product with an identity adds zeros: not even the last bit changes.
        for (name, named) in collapsed.tensors().iter() {
            let (found, expected) = (named.tensor.to_f32(), tensors.get(name).expect(name));
            assert_eq!(found, expected.tensor.to_f32(), "{name}");
        }
        let batch = packed_batch(teacher.config().vocab_size, 3, &device);
        let expected = values(&logits(&teacher, &batch));
        assert_eq!(values(&logits(&student, &batch)), expected);
        let moved = perturb(student, "model.layers.1.mlp.down_proj.left.w", 1e-3);
        assert_ne!(values(&logits(&moved, &batch)), expected);
    }
}

/// `K = L^T C R` and `b R` by the definition, in float64.
fn every_kernel_is_that_of_plain_loops<A: AutodiffBackend>(device: A::Device) {
    for mapped in BOTH {
        check_kernels::<Inner<A>>(mapped, &device);
    }
}

fn check_kernels<B: Backend>(mapped: Mapped, device: &B::Device) {
    let teacher = fill_random(load::<B>("untied_bias", device), 5);
    let (config, student) = student(&teacher, MapKind::General, mapped, &[], device);
    let collapsed = collapse(&student, KernelPrecision::Default).expect("kernels");
    let tensors = TensorSet::collect(&student);
    let of_teacher = TensorSet::collect(&teacher);
    let wide = |set: &TensorSet<B>, name: &str| -> Option<(Vec<usize>, Vec<f64>)> {
        let tensor = &set.get(name)?.tensor;
        let numbers = tensor.to_f32().expect("numbers");
        Some((tensor.shape(), numbers.into_iter().map(f64::from).collect()))
    };
    let mut seen = 0;
    let of_layers = (0..config.num_hidden_layers).flat_map(|layer| {
        [
            "self_attn.q_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        ]
        .map(|name| format!("model.layers.{layer}.{name}"))
    });
    let of_model = ["model.embed_tokens", "lm_head"].map(str::to_owned);
    let of_model = of_model.into_iter().filter(|_| mapped == Mapped::All);
    for name in of_layers.chain(of_model) {
        let (c_shape, c) = wide(&tensors, &format!("{name}.c")).expect("C");
        let left = wide(&tensors, &format!("{name}.left.w"));
        let right = wide(&tensors, &format!("{name}.right.w"));
        let along = |map: &Option<(Vec<usize>, Vec<f64>)>, own: usize| -> usize {
            map.as_ref().map_or(own, |(shape, _)| shape[1])
        };
        let [rows, columns] = [along(&left, c_shape[0]), along(&right, c_shape[1])];
        let entry = |map: &Option<(Vec<usize>, Vec<f64>)>, i: usize, j: usize| match map {
            Some((shape, values)) => values[i * shape[1] + j],
            None => f64::from(u8::from(i == j)),
        };
        let (mut kernel, mut sizes) = (Vec::new(), Vec::new());
        for row in 0..rows {
            for column in 0..columns {
                let (mut sum, mut size) = (0.0, 0.0);
                for i in 0..c_shape[0] {
                    for j in 0..c_shape[1] {
                        let term =
                            entry(&left, i, row) * c[i * c_shape[1] + j] * entry(&right, j, column);
                        sum += term;
                        size += term.abs();
                    }
                }
                kernel.push(sum);
                sizes.push(size);
            }
        }
        let weight = collapsed.tensors().get(&format!("{name}.weight"));
        let weight = weight.expect("a weight");
        assert_eq!(weight.tensor.shape(), [rows, columns]);
        let found: Vec<f64> = weight
            .tensor
            .to_f32()
            .expect("numbers")
            .into_iter()
            .map(f64::from)
            .collect();
        // A product and a sum for each of the mapped axes' features.
        let tolerance = Tolerance::of_magnitudes(&sizes, rounding(2 * (c_shape[0] + c_shape[1])));
        assert_close(&found, &kernel, &tolerance);
        let mut wrong = found.clone();
        wrong[0] += 1e-3 * sizes[0];
        assert_not_close(&wrong, &kernel, &tolerance);
        if let (Some((_, bias)), Some((shape, w))) =
            (wide(&of_teacher, &format!("{name}.bias")), &right)
        {
            let sums = (0..columns).map(|column| {
                let terms = (0..shape[0]).map(|j| bias[j] * w[j * columns + column]);
                terms.sum::<f64>()
            });
            let expected: Vec<f64> = sums.collect();
            let (_, found) = wide(&tensors, &format!("{name}.bias")).expect("a bias");
            let size = bias.iter().map(|it| it.abs()).sum::<f64>();
            let largest = w.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
            let bound = rounding(2 * shape[0]) * size * largest;
            assert_close(&found, &expected, &Tolerance::Uniform(bound));
            seen += 1;
        }
    }
    assert!(seen > 0, "the teacher has biases");
}

fn all_axes_collapse_at_once<A: AutodiffBackend>(device: A::Device) {
    for (attention, mapped, name) in [
        (MapKind::Factored, Mapped::All, "untied_bias"),
        (MapKind::General, Mapped::All, "tied"),
        (MapKind::Kronecker(2), Mapped::HeadsAndUnits, "untied_bias"),
    ] {
        let teacher = load::<Inner<A>>(name, &device);
        let groups = together(teacher.config(), mapped);
        let (config, student) = student(&teacher, attention, mapped, &groups, &device);
        let batch = packed_batch(config.vocab_size, 4, &device);
        let expected = values(&logits(&student, &batch));
        let collapsed = collapse(&student, KernelPrecision::Default).expect("kernels");
        let plain = collapsed.into_plain(PlainLlama::init(&config, &device));
        let plain = plain.expect("a plain model");
        // The same kernels in the same products.
        let largest = expected.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
        let bound = Tolerance::Uniform(rounding(4 * config.intermediate_size) * largest);
        assert_close(&values(&logits(&plain, &batch)), &expected, &bound);
        let moved = perturb(plain, "model.layers.0.mlp.gate_proj.weight", 0.05);
        assert_not_close(&values(&logits(&moved, &batch)), &expected, &bound);
    }
}

fn distiller<A: AutodiffBackend>(
    student: LearningLlama<A>,
    teacher: &Arc<PlainLlama<Inner<A>>>,
) -> Distiller<A, LearningLlama<A>, Arc<PlainLlama<Inner<A>>>> {
    let loss = DistillationLoss::new(0.7, 2.0, 5).expect("settings");
    Distiller::new(student, teacher.clone(), loss).expect("one vocabulary")
}

fn one_map_of_several_weights_is_one_variable<A: AutodiffBackend>(device: A::Device) {
    for (mapped, name) in [
        (Mapped::HeadsAndUnits, "tied"),
        (Mapped::All, "tied"),
        (Mapped::All, "untied_bias"),
    ] {
        check_one_variable::<A>(mapped, name, &device);
    }
}

fn check_one_variable<A: AutodiffBackend>(mapped: Mapped, name: &str, device: &A::Device) {
    let teacher = load::<A>(name, device);
    let groups = together(teacher.config(), mapped);
    let (config, one) = student(&teacher, MapKind::General, mapped, &groups, device);
    let (_, apart) = student(&teacher, MapKind::General, mapped, &[], device);
    let (one, apart) = (train_maps_only(one), train_maps_only(apart));
    // The same values, in three variables.
    let of_one: BTreeMap<String, Vec<f32>> = TensorSet::collect(&one.valid())
        .iter()
        .map(|(name, named)| (name.to_owned(), named.tensor.to_f32().expect("numbers")))
        .collect();
    let apart = edit(apart, |name, values| values.clone_from(&of_one[name]));
    let teacher = Arc::new(teacher.valid());
    let batch = packed_batch(config.vocab_size, 6, device);
    let of = |student: LearningLlama<A>| {
        let output = TrainStep::step(&distiller(student.clone(), &teacher), batch.clone());
        gradients(&student, &output.grads)
    };
    let (found, expected) = (of(one.clone()), of(apart));
    for names in &groups {
        let parts: Vec<&Vec<f64>> = names.iter().map(|name| &expected[name]).collect();
        let sums: Vec<f64> = (0..parts[0].len())
            .map(|at| parts.iter().map(|part| part[at]).sum())
            .collect();
        let size = parts.iter().flat_map(|part| part.iter());
        let norm = size.map(|value| value * value).sum::<f64>().sqrt();
        // Twice through the layers, as in the laws of a step.
        let bound = Tolerance::Uniform(2.0 * rounding(1000) * norm);
        assert_close(&found[&names[0]], &sums, &bound);
        assert_not_close(parts[0], &sums, &bound);
    }
    // One variable: its parts have one id, and what is not shared has its own.
    let report = FreezeRules::new([])
        .expect("rules")
        .report(&one)
        .expect("a report");
    let others = report
        .parameters
        .iter()
        .filter(|it| it.shared_with.is_some());
    let uses: usize = groups.iter().map(Vec::len).sum();
    assert_eq!(others.count(), uses - groups.len());
}

fn what_freezes_one_use_of_a_map_freezes_the_map<A: AutodiffBackend>(device: A::Device) {
    let teacher = load::<A>("tied", &device);
    let layers = teacher.config().num_hidden_layers;
    let groups = together(teacher.config(), Mapped::All);
    let (_, one) = student(&teacher, MapKind::General, Mapped::All, &groups, &device);
    let width = groups.last().map_or(0, Vec::len);
    for (pattern, frozen) in [
        (r"layers\.0\.mlp\.down_proj\.left", 3),
        (r"mlp\.up_proj\.right", 3 * layers),
        (r"q_proj\.right", layers),
        (r"layers\.1\.self_attn\.o_proj\.right", width),
    ] {
        let rules = FreezeRules::new([pattern]).expect("rules");
        let (one, _) = rules
            .apply(train_maps_only(one.clone()))
            .expect("a pattern that is found");
        let found = parameters(&one);
        let still = found
            .iter()
            .filter(|(name, it)| name.ends_with(".w") && !it.trains);
        assert_eq!(still.count(), frozen, "{pattern}");
    }
}

fn a_shared_map_goes_on_from_a_checkpoint_as_if_it_had_not_stopped<A: AutodiffBackend>(
    device: A::Device,
) {
    let teacher = load::<A>("tied", &device);
    let vocab = teacher.config().vocab_size;
    let groups = together(teacher.config(), Mapped::All);
    let plain = Arc::new(teacher.valid());
    let fresh = || {
        let attention = MapKind::Kronecker(2);
        let (_, student) = student(&teacher, attention, Mapped::All, &groups, &device);
        distiller(train_maps_only(student), &plain)
    };
    check_going_on::<A, _, _>(fresh, [5], 1, vocab, &device);
}

/// A calibrated start of three quarters of the units, its blocks as weights.
fn calibrated<A: AutodiffBackend>(
    teacher: &PlainLlama<Inner<A>>,
    config: &LlamaConfig,
    blocks: Blocks,
    device: &A::Device,
) -> (CalibratedStart<Inner<A>>, LtiSpec) {
    let spec = spec(
        teacher.config().axes(),
        RoleMaps::attention(MapKind::General),
    );
    let tensors = TensorSet::collect(teacher);
    let mut calibration = Calibration::new(&spec, config.axes());
    calibration.blocks = blocks;
    let student_with = |start: &TensorSet<Inner<A>>| {
        let tensors = TensorSet::from_inner(&tensors.with(start));
        llama_student::<A>(config, &spec, &tensors, device)
    };
    let text = batches(4, config.vocab_size, 5, device);
    let start = calibrate::<A, _, _, _>(&calibration, teacher, &text, student_with, |_| {});
    (start.expect("a start"), spec)
}

/// The weights of a student's blocks once its maps are folded.
fn blocks<B: Backend>(student: &LearningLlama<B>) -> BTreeMap<String, Vec<f64>> {
    let collapsed = collapse(student, KernelPrecision::Default).expect("kernels");
    let tensors = collapsed.tensors().iter();
    let of_blocks = tensors.filter(|(name, _)| name.contains(".mlp."));
    let numbers = of_blocks.map(|(name, named)| {
        let values = named.tensor.to_f32().expect("numbers");
        (name.to_owned(), values.into_iter().map(f64::from).collect())
    });
    numbers.collect()
}

/// Two students, the start of the second, and what its maps leave of the first one's weights.
type Both<A> = ([LearningLlama<Inner<A>>; 2], CalibratedStart<Inner<A>>, f64);

/// The student of this start, with weights in its blocks, and the one with the maps that were made of them.
fn both<A: AutodiffBackend>(blocks: Blocks, device: &A::Device) -> Both<A> {
    // More units than features, and biases beside them.
    let config = load::<Inner<A>>("tied", device).config().clone();
    let config = LlamaConfig {
        intermediate_size: 40,
        mlp_bias: true,
        ..config
    };
    let teacher = fill_random(PlainLlama::init(&config, device), 11);
    let config = LlamaConfig {
        intermediate_size: teacher.config().intermediate_size * 3 / 4,
        ..teacher.config().clone()
    };
    let (start, spec) = calibrated::<A>(&teacher, &config, blocks, device);
    let tensors = TensorSet::collect(&teacher);
    let weights = llama_student(&config, &spec, &tensors.with(&start.tensors), device);
    let calibration = Calibration::new(&spec, config.axes());
    let made = with_maps_of_blocks(start, &calibration, &teacher);
    let (start, residual) = made.expect("maps");
    let spec = LtiSpec {
        maps: forms(MapKind::General).filled_along(Axis::Hidden),
        ..spec
    };
    let maps = llama_student(&config, &spec, &tensors.with(&start.tensors), device);
    let students = [weights.expect("a student"), maps.expect("a student")];
    (students, start, residual)
}

fn fitted_blocks_become_maps_that_make_them<A: AutodiffBackend>(device: A::Device) {
    let ([weights, maps], _, residual) = both::<A>(Blocks::Fitted, &device);
    assert!(residual < 1e-6, "{residual}");
    let (expected, found) = (blocks(&weights), blocks(&maps));
    assert!(expected.keys().eq(found.keys()) && expected.len() > 6);
    for (name, expected) in &expected {
        let norm = expected.iter().map(|it| it * it).sum::<f64>().sqrt();
        // Maps are float32, and as long as the teacher's units are many.
        let bound = Tolerance::Uniform(rounding(4 * 64) * norm);
        assert_close(&found[name], expected, &bound);
        let mut wrong = expected.clone();
        wrong[0] += 1e-2 * norm;
        assert_not_close(&wrong, expected, &bound);
    }
}

fn picked_blocks_are_one_map<A: AutodiffBackend>(device: A::Device) {
    let ([weights, maps], start, residual) = both::<A>(Blocks::Picked, &device);
    assert_eq!(residual, 0.0);
    assert_eq!(blocks(&weights), blocks(&maps));
    for report in &start.layers {
        let units = report.units.as_ref().expect("units are left out");
        assert!(units.is_sorted_by(|a, b| a < b));
        let map = |leaf: &str| {
            let name = format!("model.layers.{}.mlp.{leaf}", report.layer);
            start
                .tensors
                .get(&name)
                .expect(&name)
                .tensor
                .to_f32()
                .expect("numbers")
        };
        let gate = map("gate_proj.right.w");
        assert_eq!(gate, map("up_proj.right.w"));
        assert_eq!(gate, map("down_proj.left.w"));
        assert_eq!(gate.iter().sum::<f32>(), units.len() as f32);
        for (unit, of_teacher) in units.iter().enumerate() {
            assert_eq!(gate[of_teacher * units.len() + unit], 1.0);
        }
    }
}

fn a_block_with_maps_is_not_calibrated_with<A: AutodiffBackend>(device: A::Device) {
    let teacher = load::<Inner<A>>("tied", &device);
    let config = teacher.config().clone();
    let spec = spec(config.axes(), forms(MapKind::General));
    let calibration = Calibration::new(&spec, config.axes());
    let text = batches(2, config.vocab_size, 5, &device);
    let student_with = |start: &TensorSet<Inner<A>>| {
        let tensors = TensorSet::from_inner(&TensorSet::collect(&teacher).with(start));
        llama_student::<A>(&config, &spec, &tensors, &device)
    };
    let started = calibrate::<A, _, _, _>(&calibration, &teacher, &text, student_with, |_| {});
    let error = started.expect_err("maps of blocks");
    assert!(matches!(error, CalibrationError::Refused(_)));
    let message = error.to_string();
    assert!(
        message.contains("gate") && message.contains("with_maps_of_blocks"),
        "{message}"
    );
}

/// A student with maps of all axes, and the same with maps of heads alone, whose teacher the other maps have made.
fn a_map_of_heads_is_whitened_on_what_the_width_has_become<A: AutodiffBackend>(device: A::Device) {
    let teacher = load::<Inner<A>>("tied", &device);
    let groups = together(teacher.config(), Mapped::All);
    let (config, all) = student(&teacher, MapKind::General, Mapped::All, &groups, &device);
    let own = TensorSet::collect(&all);
    let collapsed = collapse(&all, KernelPrecision::Default).expect("kernels");
    let mut tensors = collapsed.tensors().clone();
    let matrix = |name: &str| -> Tensor<Inner<A>, 2> {
        let tensor = &own.get(name).expect(name).tensor;
        let shape = tensor.shape().try_into().expect("two axes");
        tensor.to_rank(shape)
    };
    for layer in 0..config.num_hidden_layers {
        for (projection, of_heads, of_width) in [
            ("q_proj", "right.w", "left.w"),
            ("k_proj", "right.w", "left.w"),
            ("v_proj", "right.w", "left.w"),
            ("o_proj", "left.w", "right.w"),
        ] {
            let name = |leaf: &str| format!("model.layers.{layer}.self_attn.{projection}.{leaf}");
            let (c, width) = (matrix(&name("c")), matrix(&name(of_width)));
            let c = match of_width {
                "left.w" => width.transpose().matmul(c),
                _ => c.matmul(width),
            };
            tensors.insert(&name("weight"), "Linear", c);
            tensors.insert(&name(of_heads), "AxisMap", matrix(&name(of_heads)));
        }
    }
    let axes = Axes {
        d_model: config.hidden_size,
        hidden: config.intermediate_size,
        ..teacher.config().axes()
    };
    let spec = spec(axes, RoleMaps::attention(MapKind::General));
    let heads = llama_student(&config, &spec, &tensors, &device).expect("a student");
    let batch = packed_batch(config.vocab_size, 6, &device);
    let of = |student: &LearningLlama<Inner<A>>| {
        Whitening::of_maps(student, [batch.clone()]).expect("roots")
    };
    let (found, expected) = (of(&all), of(&heads));
    let mut seen = 0;
    for name in own.names() {
        let (Some(found), Some(expected)) = (found.factors(name), expected.factors(name)) else {
            assert!(
                found.factors(name).is_none() && expected.factors(name).is_none(),
                "{name}"
            );
            continue;
        };
        for (found, expected) in found.iter().zip(expected) {
            assert_eq!(found.is_some(), expected.is_some(), "{name}");
            if let (Some(found), Some(expected)) = (found, expected) {
                let expected = values(expected);
                let largest = expected.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
                // A root of what is damped by a hundredth of its mean, in float64, of sums in float32.
                let bound = Tolerance::Uniform(100.0 * rounding(200) * largest);
                assert_close(&values(found), &expected, &bound);
                seen += 1;
            }
        }
    }
    assert_eq!(seen, config.num_hidden_layers * 5);
}
