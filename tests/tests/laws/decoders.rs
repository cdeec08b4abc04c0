//! Laws of the swap, the injection and the collapse, on the toy decoder and on Llama.

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::blueprint::{Blueprint, BlueprintError, CopyRule, Rules, Source};
use burn_lti::collapse::{CollapseError, collapse};
use burn_lti::decoder::{
    CausalLm, DecoderError, LayerSelection, LearnToInitDecoderLayer, LtiSpec, Projection, RoleMaps,
    TokenBatch, learn_to_init,
};
use burn_lti::geometry::{Axes, HeadGrid, Role, Site};
use burn_lti::inject::inject;
use burn_lti::map::{
    ContractionError, DenseError, KernelPrecision, LtiDense, MapKind, ProjectionKind, Start,
    StartError,
};
use burn_lti::tensors::TensorSet;
use burn_lti_llama::config::LlamaConfig;
use burn_lti_llama::model::{LearningLlama, PlainLlama};
use burn_lti_tests::close::{Tolerance, assert_close, assert_not_close, rounding};
use burn_lti_tests::dense::dense_config;
use burn_lti_tests::llama;
use burn_lti_tests::numbers::{Numbers, bits, values};
use burn_lti_tests::params::{Parameter, parameters, perturb};
use burn_lti_tests::toy::{LearningToy, PlainToy, ToyConfig, logits, packed_batch};
use burn_lti_tests::{chain, on_every_backend};

on_every_backend![
    a_toy_with_the_teachers_grids_is_the_teacher,
    a_llama_with_the_teachers_grids_is_the_teacher,
    a_mapped_feed_forward_block_of_the_teachers_size_is_the_teachers,
    collapse_changes_no_logits_of_a_toy,
    collapse_changes_no_logits_of_a_llama,
    collapse_yields_the_records_of_linears,
    layers_that_were_not_chosen_keep_their_linears,
    biases_of_query_key_and_value_start_mapped,
    factored_and_general_starts_agree,
    maps_of_each_slot_have_the_form_asked_for,
    swaps_that_cannot_be_done_are_refused,
    rules_match_whole_names_and_fill_in_groups,
    wrong_rules_are_refused,
    nothing_is_left_unfilled,
    one_teacher_tensor_may_fill_two_that_train,
    nothing_made_up_is_declared_new,
    collapses_that_would_leave_something_out_are_refused,
];

/// Roundings of a forward pass through a decoder: in each layer the attention block's input width,
/// the tokens it mixes, its heads' width twice, the feed-forward block's two sums and eight more for
/// norms, softmax and residuals; at the end the head.
fn forward_roundings(layers: usize, d_model: usize, width: usize, hidden: usize) -> usize {
    layers * (2 * d_model + 2 * width + hidden + 32) + d_model
}

/// What logits may be off by: the partial sums on the way to a logit are, like its terms, of either
/// sign, and of the size of the largest logits; two float32 programs err.
fn logit_tolerance(roundings: usize, expected: &[f64]) -> Tolerance {
    let largest = expected.iter().fold(0.0f64, |all, one| all.max(one.abs()));
    Tolerance::Uniform(2.0 * rounding(roundings) * largest)
}

fn toy_tolerance(expected: &[f64]) -> Tolerance {
    logit_tolerance(forward_roundings(3, 12, 24, 24), expected)
}

/// A change that shows in every logit's neighbourhood but is far beyond rounding.
const CHANGE: f32 = 0.02;

fn spec(teacher: Axes, map: MapKind, start: Start) -> LtiSpec {
    LtiSpec {
        maps: RoleMaps::attention(map),
        start,
        seed: 11,
        ..LtiSpec::new(teacher)
    }
}

// ---------------------------------------------------------------- identity

fn a_toy_with_the_teachers_grids_is_the_teacher<A: AutodiffBackend>(device: A::Device) {
    let config = ToyConfig::new(6, 3);
    let teacher: PlainToy<A::InnerBackend> = config.random(1, &device);
    let tensors = TensorSet::collect(&teacher);
    let batch = config.batch(2, &device);
    let expected = values(&logits(&teacher, &batch));
    let tolerance = toy_tolerance(&expected);
    for map in [MapKind::Factored, MapKind::General, MapKind::Kronecker(3)] {
        let spec = spec(config.geometry, map, Start::Grouped);
        let student = config.learning(&tensors, &spec, &device);
        assert_close(&values(&logits(&student, &batch)), &expected, &tolerance);
        for changed in [
            "blocks.1.attention.value.bias",
            map_of("blocks.2.attention.output", map),
        ] {
            let perturbed = perturb(student.clone(), changed, CHANGE);
            assert_not_close(&values(&logits(&perturbed, &batch)), &expected, &tolerance);
        }
    }
}

/// A tensor of that projection's map.
fn map_of(projection: &'static str, map: MapKind) -> &'static str {
    let leaf = match map {
        MapKind::Factored => "a",
        // The first pair's, not the `A` of one that adds nothing yet.
        MapKind::Kronecker(_) => "b",
        MapKind::General => "w",
        MapKind::Rotary { .. } => "r",
    };
    let side = match projection.ends_with("output") {
        true => "left",
        false => "right",
    };
    format!("{projection}.{side}.{leaf}").leak()
}

/// A learning Llama over a fixture's tensors.
fn learning_llama<B: Backend>(
    config: &LlamaConfig,
    teacher: &PlainLlama<B>,
    spec: &LtiSpec,
    device: &B::Device,
) -> LearningLlama<B> {
    let awaiting = PlainLlama::init(config, device)
        .learn_to_init(spec)
        .expect("a swap");
    let tensors = TensorSet::collect(teacher);
    let injected = awaiting.inject(&tensors, &Rules::by_name());
    injected.expect("an injection").0
}

fn llama_logits<B: Backend>(model: &impl CausalLm<B>, batch: &TokenBatch<B>) -> Vec<f64> {
    values(&logits(model, batch))
}

fn llama_tolerance(config: &LlamaConfig, expected: &[f64]) -> Tolerance {
    let (d_model, width) = (config.hidden_size, config.query_grid().width());
    let roundings = forward_roundings(
        config.num_hidden_layers,
        d_model,
        width,
        config.intermediate_size,
    );
    logit_tolerance(roundings, expected)
}

fn a_llama_with_the_teachers_grids_is_the_teacher<A: AutodiffBackend>(device: A::Device) {
    for name in ["tied", "untied_bias"] {
        let teacher = llama::load::<A::InnerBackend>(name, &device);
        let config = teacher.config().clone();
        let batch = packed_batch(config.vocab_size, 3, &device);
        let expected = llama_logits(&teacher, &batch);
        let tolerance = llama_tolerance(&config, &expected);
        for map in [MapKind::Factored, MapKind::General, MapKind::Kronecker(3)] {
            let spec = spec(config.axes(), map, Start::Grouped);
            let student = learning_llama(&config, &teacher, &spec, &device);
            assert_close(&llama_logits(&student, &batch), &expected, &tolerance);
            let changed = map_of("model.layers.0.self_attn.v_proj", map);
            let perturbed = perturb(student, changed, CHANGE);
            assert_not_close(&llama_logits(&perturbed, &batch), &expected, &tolerance);
        }
    }
}

/// The hidden axis is so many heads of one feature: its maps follow from the law alone.
fn a_mapped_feed_forward_block_of_the_teachers_size_is_the_teachers<A: AutodiffBackend>(
    device: A::Device,
) {
    let maps = |map| {
        RoleMaps::attention(map)
            .with(Role::Gate, MapKind::General)
            .with(Role::Up, MapKind::General)
            .with(Role::Down, MapKind::General)
    };
    let teacher = llama::load::<A::InnerBackend>("untied_bias", &device);
    let config = teacher.config().clone();
    let batch = packed_batch(config.vocab_size, 3, &device);
    let expected = llama_logits(&teacher, &batch);
    let tolerance = llama_tolerance(&config, &expected);
    let spec = LtiSpec {
        maps: maps(MapKind::Factored),
        ..LtiSpec::new(config.axes())
    };
    let student = learning_llama(&config, &teacher, &spec, &device);
    assert_close(&llama_logits(&student, &batch), &expected, &tolerance);
    let changed = "model.layers.1.mlp.down_proj.left.w";
    let perturbed = perturb(student, changed, CHANGE);
    assert_not_close(&llama_logits(&perturbed, &batch), &expected, &tolerance);

    // Half as wide, at random, it collapses to what it was.
    let half = LlamaConfig {
        intermediate_size: config.intermediate_size / 2,
        ..config
    };
    let random = LtiSpec {
        start: Start::Lecun,
        ..spec
    };
    let student = learning_llama(&half, &teacher, &random, &device);
    let expected = llama_logits(&student, &batch);
    let plain = collapse(&student, KernelPrecision::Default)
        .and_then(|collapsed| collapsed.into_plain(PlainLlama::init(&half, &device)))
        .expect("a plain Llama");
    let tolerance = llama_tolerance(&half, &expected);
    assert_close(&llama_logits(&plain, &batch), &expected, &tolerance);
    let perturbed = perturb(plain, "model.layers.0.mlp.up_proj.weight", CHANGE);
    assert_not_close(&llama_logits(&perturbed, &batch), &expected, &tolerance);
}

// ---------------------------------------------------------------- collapse

/// A learning toy with fewer heads of another size, random maps and random biases.
fn random_learning_toy<B: Backend>(
    map: MapKind,
    device: &B::Device,
) -> (ToyConfig, LearningToy<B>) {
    let teacher_config = ToyConfig::new(6, 3);
    let mut config = ToyConfig::new(4, 2);
    config.geometry.query.head_dim = 6;
    config.geometry.key_value.head_dim = 6;
    let teacher: PlainToy<B> = teacher_config.random(1, device);
    let spec = spec(teacher_config.geometry, map, Start::Lecun);
    let mut student = config.learning(&TensorSet::collect(&teacher), &spec, device);
    student = burn_lti_tests::params::edit(student, |name, values| {
        if name.contains("attention") && name.ends_with("bias") {
            *values = Numbers::new(4).normal(values.len());
        }
    });
    (config, student)
}

fn collapse_changes_no_logits_of_a_toy<A: AutodiffBackend>(device: A::Device) {
    for map in [MapKind::Factored, MapKind::General, MapKind::Kronecker(3)] {
        let (config, student) = random_learning_toy::<A::InnerBackend>(map, &device);
        let batch = config.batch(2, &device);
        let expected = values(&logits(&student, &batch));
        let tolerance = toy_tolerance(&expected);
        let plain: PlainToy<_> = collapse(&student, KernelPrecision::Default)
            .expect("a collapse")
            .into_plain(config.init(&device))
            .expect("a plain toy");
        assert_close(&values(&logits(&plain, &batch)), &expected, &tolerance);
        for changed in [
            "blocks.0.attention.query.bias",
            "blocks.2.attention.value.weight",
        ] {
            let perturbed = perturb(plain.clone(), changed, CHANGE);
            assert_not_close(&values(&logits(&perturbed, &batch)), &expected, &tolerance);
        }
    }
}

fn collapse_changes_no_logits_of_a_llama<A: AutodiffBackend>(device: A::Device) {
    for (name, heads, kv_heads) in [("tied", 2, 1), ("untied_bias", 1, 1)] {
        let teacher = llama::load::<A::InnerBackend>(name, &device);
        let config = LlamaConfig {
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            ..teacher.config().clone()
        };
        let batch = packed_batch(config.vocab_size, 5, &device);
        for map in [MapKind::Factored, MapKind::General] {
            let spec = spec(teacher.config().axes(), map, Start::Lecun);
            let student = learning_llama(&config, &teacher, &spec, &device);
            let expected = llama_logits(&student, &batch);
            let tolerance = llama_tolerance(&config, &expected);
            let plain = collapse(&student, KernelPrecision::Default)
                .expect("a collapse")
                .into_plain(PlainLlama::init(&config, &device))
                .expect("a plain Llama");
            assert_close(&llama_logits(&plain, &batch), &expected, &tolerance);
            let changed = "model.layers.1.self_attn.o_proj.weight";
            let perturbed = perturb(plain, changed, CHANGE);
            assert_not_close(&llama_logits(&perturbed, &batch), &expected, &tolerance);
        }
    }
}

fn collapse_yields_the_records_of_linears<A: AutodiffBackend>(device: A::Device) {
    let (config, student) = random_learning_toy::<A::InnerBackend>(MapKind::General, &device);
    let collapsed = collapse(&student, KernelPrecision::Default).expect("a collapse");
    let names = ["key", "output", "query", "value"];
    let expected: Vec<String> = (0..config.layers)
        .flat_map(|block| names.map(|name| format!("blocks.{block}.attention.{name}")))
        .collect();
    assert_eq!(collapsed.projections(), expected);

    let mut records = collapsed.linear_records();
    assert_eq!(records.len(), expected.len());
    let record = records
        .remove("blocks.1.attention.output")
        .expect("a record");
    let width = config.geometry.query.width();
    let linear = LinearConfig::new(width, config.geometry.d_model)
        .init::<A::InnerBackend>(&device)
        .load_record(record);
    let tensors = collapsed.tensors();
    let read = |name: &str| tensors.get(name).expect("a tensor").tensor.to_f32();
    let found = linear
        .weight
        .val()
        .to_data()
        .to_vec::<f32>()
        .expect("float32");
    assert_eq!(Ok(found), read("blocks.1.attention.output.weight"));
    let found = linear.bias.expect("a bias").val().to_data().to_vec::<f32>();
    assert_eq!(
        found.map_err(|e| e.to_string()),
        read("blocks.1.attention.output.bias")
    );

    // Nothing of the maps is left, and nothing else is missing.
    let plain: PlainToy<A::InnerBackend> = config.init(&device);
    let expected: Vec<String> = parameters(&plain).into_keys().collect();
    assert_eq!(tensors.names().collect::<Vec<_>>(), expected);
}

// ---------------------------------------------------------------- layers and forms

fn layers_that_were_not_chosen_keep_their_linears<A: AutodiffBackend>(device: A::Device) {
    let config = ToyConfig::new(6, 3);
    let teacher: PlainToy<A::InnerBackend> = config.random(1, &device);
    let spec = LtiSpec {
        layers: LayerSelection::Only(vec![2, 0]),
        ..LtiSpec::new(config.geometry)
    };
    let student = config.learning(&TensorSet::collect(&teacher), &spec, &device);
    let (found, original) = (parameters(&student), parameters(&teacher));
    for name in ["query", "key", "value", "output"] {
        for block in [0, 2] {
            let projection = format!("blocks.{block}.attention.{name}");
            assert_eq!(found[&format!("{projection}.c")].owner, "LtiDense");
            assert!(!found.contains_key(&format!("{projection}.weight")));
        }
        let kept = format!("blocks.1.attention.{name}.weight");
        assert_eq!(found[&kept].owner, "Linear");
        assert_eq!(found[&kept].bits, original[&kept].bits);
        assert!(!found.contains_key(&format!("blocks.1.attention.{name}.c")));
    }
    let collapsed = collapse(&student, KernelPrecision::Default).expect("a collapse");
    assert_eq!(collapsed.projections().len(), 2 * 4);
}

/// A query bias `[x, y]` goes the kernel's way: `sum_xy bias[x,y] A[x,u] B[y,v]`; out's stays.
fn biases_of_query_key_and_value_start_mapped<A: AutodiffBackend>(device: A::Device) {
    let (teacher_config, config) = (ToyConfig::new(6, 2), ToyConfig::new(3, 1));
    let teacher: PlainToy<A::InnerBackend> = teacher_config.random(1, &device);
    let spec = LtiSpec::new(teacher_config.geometry);
    let student = config.learning(&TensorSet::collect(&teacher), &spec, &device);
    let (found, original) = (parameters(&student), parameters(&teacher));
    let bias = |all: &std::collections::BTreeMap<String, Parameter>, name: &str| -> Vec<f32> {
        let bits = &all[&format!("blocks.1.attention.{name}.bias")].bits;
        bits.iter().map(|bits| f32::from_bits(*bits)).collect()
    };
    assert_eq!(bias(&found, "output"), bias(&original, "output"));
    for name in ["query", "key", "value"] {
        let teacher = bias(&original, name);
        // Two teacher heads of four features to each student head.
        let expected: Vec<f64> = teacher
            .chunks_exact(8)
            .flat_map(|pair| (0..4).map(|i| (f64::from(pair[i]) + f64::from(pair[i + 4])) / 2.0))
            .collect();
        let found: Vec<f64> = bias(&found, name).into_iter().map(f64::from).collect();
        let sizes: Vec<f64> = expected.iter().map(|value| value.abs() + 1.0).collect();
        let tolerance = Tolerance::of_magnitudes(&sizes, rounding(2 + 4));
        assert_close(&found, &expected, &tolerance);
        let mut changed = found.clone();
        changed[0] += 1e-4;
        assert_not_close(&changed, &expected, &tolerance);
    }
}

fn factored_and_general_starts_agree<A: AutodiffBackend>(device: A::Device) {
    let (teacher_config, config) = (ToyConfig::new(6, 2), ToyConfig::new(3, 1));
    let teacher: PlainToy<A::InnerBackend> = teacher_config.random(1, &device);
    let batch = config.batch(2, &device);
    let logits_of = |map, changed: bool| {
        let spec = spec(teacher_config.geometry, map, Start::Grouped);
        let student = config.learning(&TensorSet::collect(&teacher), &spec, &device);
        let student = match changed {
            true => perturb(student, map_of("blocks.0.attention.query", map), CHANGE),
            false => student,
        };
        values(&logits(&student, &batch))
    };
    let expected = logits_of(MapKind::Factored, false);
    let tolerance = toy_tolerance(&expected);
    assert_close(&logits_of(MapKind::General, false), &expected, &tolerance);
    assert_not_close(&logits_of(MapKind::General, true), &expected, &tolerance);
}

fn maps_of_each_slot_have_the_form_asked_for<A: AutodiffBackend>(device: A::Device) {
    let config = ToyConfig::new(6, 3);
    let teacher: PlainToy<A::InnerBackend> = config.random(1, &device);
    let spec = LtiSpec {
        maps: RoleMaps::attention(MapKind::Factored)
            .with(Role::Key, MapKind::General)
            .with(Role::Out, MapKind::General),
        start: Start::Lecun,
        ..LtiSpec::new(config.geometry)
    };
    let student = config.learning(&TensorSet::collect(&teacher), &spec, &device);
    let found = parameters(&student);
    let has = |name: &str, letter: &str| {
        let side = if name == "output" { "left" } else { "right" };
        found.contains_key(&format!("blocks.0.attention.{name}.{side}.{letter}"))
    };
    for (name, general) in [
        ("query", false),
        ("key", true),
        ("value", false),
        ("output", true),
    ] {
        assert_eq!(
            (has(name, "w"), has(name, "a"), has(name, "b")),
            (general, !general, !general)
        );
    }
    // No two projections begin with the same random numbers.
    let a =
        |block: usize, name: &str| &found[&format!("blocks.{block}.attention.{name}.right.b")].bits;
    assert_ne!(a(0, "query"), a(1, "query"));
    assert_ne!(a(0, "query"), a(0, "value"));
}

/// A block whose geometry is not that of its projections.
#[derive(Module, Debug)]
struct LyingBlock<B: Backend, P: Module<B>> {
    projections: Vec<P>,
    #[module(skip)]
    geometry: Axes,
    #[module(skip)]
    _backend: std::marker::PhantomData<B>,
}

impl<B: Backend> LearnToInitDecoderLayer<B> for LyingBlock<B, Linear<B>> {
    type Learning = LyingBlock<B, Projection<B>>;

    fn axes(&self) -> Axes {
        self.geometry
    }

    fn swap_weights<E>(
        self,
        mut swap: impl FnMut(Role, Linear<B>) -> Result<Projection<B>, E>,
    ) -> Result<Self::Learning, E> {
        let swapped = Role::ATTENTION.into_iter().zip(self.projections);
        Ok(LyingBlock {
            projections: swapped
                .map(|(role, linear)| swap(role, linear))
                .collect::<Result<_, _>>()?,
            geometry: self.geometry,
            _backend: self._backend,
        })
    }
}

fn swaps_that_cannot_be_done_are_refused<A: AutodiffBackend>(device: A::Device) {
    let refused = |student: ToyConfig, spec: LtiSpec| {
        let toy: PlainToy<A> = student.init(&device);
        toy.learn_to_init(&spec).expect_err("it cannot be done")
    };
    let teacher = ToyConfig::new(6, 3).geometry;
    let only = |layers| LtiSpec {
        layers: LayerSelection::Only(layers),
        ..LtiSpec::new(teacher)
    };

    let error = refused(ToyConfig::new(6, 3), only(vec![0, 3]));
    assert!(matches!(
        error,
        DecoderError::LayerOutOfRange { index: 3, last: 2 }
    ));
    assert!(error.to_string().contains("layer 3"), "{error}");
    assert!(error.to_string().contains("0 to 2"), "{error}");

    let error = refused(ToyConfig::new(6, 3), only(Vec::new()));
    assert!(matches!(error, DecoderError::NoLayers { layers: 3 }));
    assert!(error.to_string().contains("at least one of 3"), "{error}");
    let none = ToyConfig {
        layers: 0,
        ..ToyConfig::new(6, 3)
    };
    let error = refused(none, LtiSpec::new(teacher));
    assert!(matches!(error, DecoderError::NoLayers { layers: 0 }));

    let error = refused(ToyConfig::new(4, 2), LtiSpec::new(teacher));
    let DecoderError::Weight { site, source } = &error else {
        panic!("{error}");
    };
    assert_eq!(*site, Site::new(0, Role::Query));
    assert!(matches!(
        source,
        DenseError::Start(StartError::HeadsDoNotDivide { .. })
    ));
    assert!(
        error.to_string().contains("query projection of layer 0"),
        "{error}"
    );
    assert!(chain(&error).contains("6 teacher heads"), "{error}");

    let head = LtiSpec::new(teacher);
    let maps = head.maps.clone().with(Role::Head, MapKind::General);
    let error = refused(ToyConfig::new(6, 3), LtiSpec { maps, ..head });
    assert!(matches!(error, DecoderError::SharedAxis { .. }));
    assert!(
        error
            .to_string()
            .contains("the head lies along the vocabulary"),
        "{error}"
    );

    a_block_of_another_width_is_refused::<A>(&device);
}

fn a_block_of_another_width_is_refused<A: AutodiffBackend>(device: &A::Device) {
    let geometry = ToyConfig::new(6, 3).geometry;
    let linear = |d_input, d_output| LinearConfig::new(d_input, d_output).init::<A>(device);
    let block = LyingBlock {
        projections: vec![
            linear(12, 24),
            linear(12, 12),
            linear(12, 10),
            linear(24, 12),
        ],
        geometry,
        _backend: std::marker::PhantomData,
    };
    let error = learn_to_init(vec![block], &LtiSpec::new(geometry)).expect_err("10 is not 12");
    assert!(
        matches!(
            error,
            DecoderError::Weight {
                site: Site {
                    role: Role::Value,
                    ..
                },
                source: DenseError::Width {
                    expected: [_, 12],
                    found: [_, 10],
                },
            }
        ),
        "{error}"
    );
    assert!(chain(&error).contains("12 -> 10"), "{error}");
}

// ---------------------------------------------------------------- injection

/// A student of two linears.
#[derive(Module, Debug)]
struct Pair<B: Backend> {
    first: Linear<B>,
    second: Linear<B>,
}

impl<B: Backend> Pair<B> {
    fn new(device: &B::Device) -> Self {
        let linear = || LinearConfig::new(2, 3).with_bias(false).init(device);
        Self {
            first: linear(),
            second: linear(),
        }
    }
}

fn set_of<B: Backend>(names: &[&str], shape: [usize; 2], device: &B::Device) -> TensorSet<B> {
    let mut set = TensorSet::new();
    for (seed, name) in names.iter().enumerate() {
        let tensor: Tensor<B, 2> = Numbers::new(seed as u64).tensor(shape, device);
        set.insert(name, "Linear", tensor);
    }
    set
}

fn rules(pairs: &[(&str, &str)]) -> Rules {
    Rules::from_pairs(pairs.iter().copied()).expect("rules")
}

/// Each tensor that the teacher fills, and the teacher's.
fn filled(blueprint: &Blueprint) -> Vec<(&str, &str)> {
    let tensors = blueprint.tensors.iter();
    tensors
        .filter_map(|tensor| match &tensor.source {
            Source::Teacher(from) => Some((tensor.name.as_str(), from.as_str())),
            _ => None,
        })
        .collect()
}

fn rules_match_whole_names_and_fill_in_groups<A: AutodiffBackend>(device: A::Device) {
    let names = [
        "layer_1/kernel",
        "layer_2/kernel",
        "xlayer_1/kernel",
        "layer_1/kernel_scale",
    ];
    let teacher = set_of::<A>(&names, [2, 3], &device);
    // Anchored at both ends: neither `xlayer_1/kernel` nor `layer_1/kernel_scale` may fill anything,
    // and with an alternative the anchors hold for each of its sides.
    let all = [
        ("layer_1/kernel|nothing", "first.weight"),
        (r"layer_(?<n>2)/ker(nel)", "sec${n}ond.weight"),
    ];
    let error = inject(Pair::<A>::new(&device), &teacher, &rules(&all)).expect_err("no sec2ond");
    assert!(error.to_string().contains("`sec2ond.weight`"), "{error}");

    let all = [
        ("layer_1/kernel|nothing", "first.weight"),
        (r"layer_2/ker(?<end>nel)|(second)", "second.weight"),
    ];
    let (student, blueprint) =
        inject(Pair::<A>::new(&device), &teacher, &rules(&all)).expect("an injection");
    let expected = [("first.weight", names[0]), ("second.weight", names[1])];
    assert_eq!(filled(&blueprint), expected);
    assert_eq!(
        blueprint.unused,
        ["layer_1/kernel_scale", "xlayer_1/kernel"]
    );
    for (linear, name) in [(&student.first, names[0]), (&student.second, names[1])] {
        let expected = teacher.get(name).expect("a tensor").tensor.to_f32();
        let found = linear.weight.val().to_data().to_vec::<f32>();
        assert_eq!(found.map_err(|e| e.to_string()), expected);
    }

    let grouped = [(r"(?:x_)?(first|second)\.k", "$1.weight")];
    let teacher = set_of::<A>(&["x_first.k", "second.k"], [2, 3], &device);
    let (_, blueprint) =
        inject(Pair::<A>::new(&device), &teacher, &rules(&grouped)).expect("an injection");
    let expected = [("first.weight", "x_first.k"), ("second.weight", "second.k")];
    assert_eq!(filled(&blueprint), expected);
}

fn wrong_rules_are_refused<A: AutodiffBackend>(device: A::Device) {
    let error = CopyRule::new("layer_(1", "first").expect_err("a parenthesis is open");
    assert!(matches!(error, BlueprintError::Pattern { .. }));
    assert!(chain(&error).contains("`layer_(1`"), "{error}");

    let teacher = set_of::<A>(&["first.kernel", "second.kernel"], [2, 3], &device);
    let refused = |pairs: &[(&str, &str)]| {
        inject(Pair::<A>::new(&device), &teacher, &rules(pairs)).expect_err("wrong rules")
    };
    // A prefix is no match.
    let error = refused(&[("first.kern", "first.weight")]);
    assert!(matches!(error, BlueprintError::NoMatch { .. }));
    assert!(
        error.to_string().contains("`first.kern` matches no tensor"),
        "{error}"
    );
    assert!(
        error.to_string().contains("nearest: `first.kernel`"),
        "{error}"
    );

    let error = refused(&[(r"(.*)\.kernel", "$1.weights")]);
    assert!(matches!(error, BlueprintError::UnknownTarget { .. }));
    assert!(
        error
            .to_string()
            .contains("`first.kernel` to `first.weights`"),
        "{error}"
    );
    assert!(
        error.to_string().contains("nearest: `first.weight`"),
        "{error}"
    );

    let error = refused(&[(r".*\.kernel", "first.weight")]);
    assert!(matches!(error, BlueprintError::FilledTwice { .. }));
    for name in ["`first.weight`", "`first.kernel`", "`second.kernel`"] {
        assert!(error.to_string().contains(name), "{error}");
    }
}

/// Both begin with the same data, and each has a gradient of its own.
fn one_teacher_tensor_may_fill_two_that_train<A: AutodiffBackend>(device: A::Device) {
    let mut teacher = TensorSet::<A>::new();
    teacher.insert("shared", "Linear", Tensor::<A, 2>::ones([2, 3], &device));
    let rules = Rules::from_pairs([("shared", "first.weight"), ("sha(r)ed", "second.weight")])
        .expect("valid patterns");
    let (pair, _) = inject(Pair::<A>::new(&device), &teacher, &rules).expect("both fit");
    let loss = pair.first.weight.val().sum() + pair.second.weight.val().sum().mul_scalar(3.0);
    let gradients = loss.backward();
    for (linear, expected) in [(&pair.first, 1.0), (&pair.second, 3.0)] {
        let gradient = linear.weight.val().grad(&gradients).expect("it trains");
        assert_eq!(values(&gradient), [expected; 6]);
    }
}

fn nothing_is_left_unfilled<A: AutodiffBackend>(device: A::Device) {
    let teacher = set_of::<A>(&["first.weight", "second.weight"], [2, 3], &device);
    let half = rules(&[("first.weight", "first.weight")]);
    let error = inject(Pair::<A>::new(&device), &teacher, &half).expect_err("half is left");
    assert!(matches!(&error, BlueprintError::Unfilled { names } if names == &["second.weight"]));
    assert!(error.to_string().contains("`second.weight`"), "{error}");

    // Declared new, it keeps what it began with.
    let student = Pair::<A>::new(&device);
    let before = bits(&student.second.weight.val());
    let rest = half.with_new(["second.weight".to_owned()]);
    let (student, blueprint) = inject(student, &teacher, &rest).expect("an injection");
    assert_eq!(bits(&student.second.weight.val()), before);
    assert_eq!(blueprint.unused, ["second.weight"]);

    let turned = set_of::<A>(&["first.weight", "second.weight"], [3, 2], &device);
    let error = inject(student, &turned, &Rules::by_name()).expect_err("another layout");
    assert!(
        matches!(&error, BlueprintError::Shape { found, expected, .. }
            if found == &[3, 2] && expected == &[2, 3])
    );
    assert!(
        error.to_string().contains("`first.weight` [3, 2]"),
        "{error}"
    );
}

/// Whichever way the rules were made.
fn nothing_made_up_is_declared_new<A: AutodiffBackend>(device: A::Device) {
    let made_up = || ["third.weight".to_owned()];
    let check = |error: BlueprintError| {
        assert!(
            matches!(error, BlueprintError::UnknownNew { .. }),
            "{error}"
        );
        assert!(error.to_string().contains("`third.weight`"), "{error}");
        assert!(
            error.to_string().contains("nearest: `first.weight`"),
            "{error}"
        );
    };
    let teacher = set_of::<A>(&["first.weight", "second.weight"], [2, 3], &device);
    for rules in [Rules::by_name(), rules(&[("(.*)", "$1")])] {
        let rules = rules.with_new(made_up());
        let student = Pair::<A>::new(&device);
        check(inject(student, &teacher, &rules).expect_err("there is no third"));
    }
}

// ---------------------------------------------------------------- refused collapses

fn collapses_that_would_leave_something_out_are_refused<A: AutodiffBackend>(device: A::Device) {
    teacherless_maps_are_refused::<A::InnerBackend>(&device);
    impostors_are_refused::<A::InnerBackend>(&device);
    maps_that_do_not_fit_are_refused::<A::InnerBackend>(&device);

    let (config, student) = random_learning_toy::<A::InnerBackend>(MapKind::Factored, &device);
    let refused = |skeleton: PlainToy<A::InnerBackend>| {
        let collapsed = collapse(&student, KernelPrecision::Default).expect("a collapse");
        collapsed.into_plain(skeleton).expect_err("another model")
    };
    let error = refused(ToyConfig::new(3, 1).init(&device));
    assert!(matches!(
        error,
        CollapseError::Plain(BlueprintError::Shape { .. })
    ));
    assert!(chain(&error).contains("`blocks.0.attention."), "{error}");
    let fewer = ToyConfig {
        layers: 2,
        ..config
    };
    let error = refused(fewer.init(&device));
    let CollapseError::Leftover { names } = &error else {
        panic!("{error}");
    };
    assert!(names.iter().all(|name| name.starts_with("blocks.2.")));
    assert!(
        error.to_string().contains("blocks.2.attention.key.weight"),
        "{error}"
    );
    let more = ToyConfig {
        layers: 4,
        ..config
    };
    let error = refused(more.init(&device));
    assert!(chain(&error).contains("blocks.3."), "{error}");
}

fn teacherless_maps_are_refused<B: Backend>(device: &B::Device) {
    let geometry = ToyConfig::new(6, 3).geometry;
    let block = burn_lti_tests::toy::ToyBlock::<B, Linear<B>>::init(&geometry, device);
    let learning = learn_to_init(vec![block], &LtiSpec::new(geometry)).expect("a swap");
    let error = collapse(&learning, KernelPrecision::Default).expect_err("there is no teacher");
    assert!(matches!(error, CollapseError::MissingTeacher { .. }));
    assert!(
        error
            .to_string()
            .contains("attention.key` has no teacher kernel"),
        "{error}"
    );
}

/// Another crate's struct that happens to be called `LtiDense`.
mod impostor {
    use super::{Backend, Linear, Module};

    #[derive(Module, Debug)]
    pub(super) struct LtiDense<B: Backend> {
        pub(super) c: super::Param<super::Tensor<B, 2>>,
    }

    #[derive(Module, Debug)]
    pub(super) struct Holder<B: Backend> {
        pub(super) query: LtiDense<B>,
        pub(super) key: Linear<B>,
    }
}

fn impostors_are_refused<B: Backend>(device: &B::Device) {
    let holder = impostor::Holder {
        query: impostor::LtiDense {
            c: Param::from_tensor(Tensor::<B, 2>::ones([2, 2], device)),
        },
        key: LinearConfig::new(2, 2).init(device),
    };
    let error = collapse(&holder, KernelPrecision::Default).expect_err("it is no map");
    assert!(matches!(error, CollapseError::NotAMap { .. }));
    assert!(error.to_string().contains("`query`"), "{error}");
}

/// A map whose factor was replaced by one of another shape, as a careless mapper might.
fn maps_that_do_not_fit_are_refused<B: Backend>(device: &B::Device) {
    struct Shorten;
    impl<B: Backend> burn::module::ModuleMapper<B> for Shorten {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            // `A` is the only tensor of four rows.
            param.map(|value| match value.dims()[0] {
                4 => value.slice_dim(0, 0..1),
                _ => value,
            })
        }
    }
    let (teacher, student) = (HeadGrid::new(4, 3), HeadGrid::new(2, 3));
    let config = dense_config(ProjectionKind::Qkv, 5, teacher, student, MapKind::Factored);
    let layer: LtiDense<B> = config.init(Tensor::ones([5, 12], device)).expect("a layer");
    let error = collapse(&vec![layer.map(&mut Shorten)], KernelPrecision::Default)
        .expect_err("A is one row");
    assert!(
        matches!(
            error,
            CollapseError::Contraction {
                source: ContractionError::AxisMismatch { .. },
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("`0`"), "{error}");
    assert!(chain(&error).contains(": axis"), "{error}");
}
