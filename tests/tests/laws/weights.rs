//! Laws of weights that are copied, shared and frozen: what MaxText's tests assert of its copy map, its
//! share map and its filter, and that a shared parameter is one variable to whatever trains it.

use std::sync::Arc;

use burn::module::{AutodiffModule, Module, ParamId};
use burn::nn::{Linear, LinearConfig};
use burn::optim::{GradientsParams, Optimizer, SgdConfig};
use burn::prelude::*;
use burn::record::{BinBytesRecorder, FullPrecisionSettings, Recorder};
use burn::tensor::TensorData;
use burn::tensor::backend::AutodiffBackend;
use burn::train::TrainStep;
use burn_lti::blueprint::{BlueprintError, Fate, FreezeRules, Rules, ShareRule, Source};
use burn_lti::collapse::collapse;
use burn_lti::decoder::{LtiSpec, TokenBatch};
use burn_lti::inject::inject;
use burn_lti::loss::DistillationLoss;
use burn_lti::map::{AttnMap, KernelPrecision, ProjectionKind, calculate_attn_weight};
use burn_lti::parameters::{set_trainable, tie};
use burn_lti::tensors::TensorSet;
use burn_lti::train::{Distiller, StudentOptimizer, collect_gradients};
use burn_lti_tests::close::{Tolerance, assert_close, assert_not_close, rounding};
use burn_lti_tests::numbers::{Numbers, bits, values};
use burn_lti_tests::params::{edit, gradients, parameters, perturb};
use burn_lti_tests::toy::{LearningToy, PlainToy, ToyConfig, logits};
use burn_lti_tests::training::adamw;
use burn_lti_tests::{chain, on_every_backend};

on_every_backend![
    a_copy_fills_what_its_groups_say_and_nothing_else,
    a_copy_of_another_shape_is_refused_by_name,
    a_copy_to_the_destination_fills_the_source,
    a_copy_to_each_of_two_that_are_shared_is_one_too_many,
    a_destination_is_filled_by_the_name_of_its_source,
    a_destination_has_what_a_new_source_began_with,
    shares_that_cannot_be_are_refused,
    two_uses_of_one_variable_train_as_one_layer_used_twice,
    clipping_counts_a_shared_gradient_once,
    what_moves_a_module_keeps_or_restores_its_ties,
    a_shared_student_trains_and_collapses,
    a_frozen_kernel_does_not_move,
    a_report_lists_what_becomes_of_each_parameter,
    a_pattern_about_one_name_is_about_the_variable,
    patterns_that_say_nothing_are_refused,
];

const WIDTH: usize = 4;

/// Two layers, used one after the other.
#[derive(Module, Debug)]
struct Pair<B: Backend> {
    first: Linear<B>,
    second: Linear<B>,
}

/// One layer, used twice.
#[derive(Module, Debug)]
struct Once<B: Backend> {
    only: Linear<B>,
}

fn layer<B: Backend>(device: &B::Device) -> Linear<B> {
    LinearConfig::new(WIDTH, WIDTH)
        .with_bias(false)
        .init(device)
}

impl<B: Backend> Pair<B> {
    fn new(device: &B::Device) -> Self {
        Self {
            first: layer(device),
            second: layer(device),
        }
    }

    fn loss(&self, x: Tensor<B, 2>) -> Tensor<B, 1> {
        loss(x, self.first.weight.val(), self.second.weight.val())
    }

    fn ids(&self) -> [ParamId; 2] {
        [self.first.weight.id, self.second.weight.id]
    }

    fn bits(&self) -> [Vec<u32>; 2] {
        [&self.first, &self.second].map(|layer| bits(&layer.weight.val()))
    }
}

impl<B: Backend> Once<B> {
    fn new(device: &B::Device) -> Self {
        Self {
            only: layer(device),
        }
    }

    fn loss(&self, x: Tensor<B, 2>) -> Tensor<B, 1> {
        loss(x, self.only.weight.val(), self.only.weight.val())
    }
}

fn loss<B: Backend>(x: Tensor<B, 2>, first: Tensor<B, 2>, second: Tensor<B, 2>) -> Tensor<B, 1> {
    let y = x.matmul(first).tanh().matmul(second);
    (y.clone() * y).sum()
}

fn input<B: Backend>(device: &B::Device) -> Tensor<B, 2> {
    Numbers::new(7).tensor([5, WIDTH], device)
}

fn teacher<B: Backend>(device: &B::Device) -> TensorSet<B> {
    let mut numbers = Numbers::new(3);
    let mut set = TensorSet::new();
    for name in ["layer1.kernel", "layer2.kernel"] {
        let kernel: Tensor<B, 2> = numbers.tensor([WIDTH, WIDTH], device);
        set.insert(name, "Linear", kernel);
    }
    set
}

fn bits_of<B: Backend>(set: &TensorSet<B>, name: &str) -> Vec<u32> {
    let values = set.get(name).expect(name).tensor.to_f32().expect("values");
    values.iter().map(|value| value.to_bits()).collect()
}

fn copies(pairs: &[(&str, &str)]) -> Rules {
    Rules::from_pairs(pairs.iter().copied()).expect("rules")
}

fn share(pattern: &str, template: &str) -> ShareRule {
    ShareRule::new(pattern, template).expect("a share rule")
}

/// A pair of one weight: the teacher's second.
fn shared_pair<A: AutodiffBackend>(device: &A::Device) -> Pair<A> {
    let rules =
        copies(&[("layer2.kernel", "second.weight")]).with_shares([share("first(.*)", "second$1")]);
    let (pair, _) = inject(Pair::new(device), &teacher(device), &rules).expect("an injection");
    pair
}

/// The layer that [`shared_pair`] uses twice.
fn single<A: AutodiffBackend>(device: &A::Device) -> Once<A> {
    let rules = copies(&[("layer2.kernel", "only.weight")]);
    let (once, _) = inject(Once::new(device), &teacher(device), &rules).expect("an injection");
    once
}

// ---------------------------------------------------------------- copies

fn a_copy_fills_what_its_groups_say_and_nothing_else<A: AutodiffBackend>(device: A::Device) {
    let teacher = teacher::<A>(&device);
    let student = Pair::<A>::new(&device);
    let [_, untouched] = student.bits();
    let rules = copies(&[(r"layer(?<n>1)\.(kernel)", "first.weight")])
        .with_new(["second.weight".to_owned()]);
    let (student, blueprint) = inject(student, &teacher, &rules).expect("an injection");
    assert_eq!(
        student.bits(),
        [bits_of(&teacher, "layer1.kernel"), untouched]
    );
    assert_eq!(blueprint.unused, ["layer2.kernel"]);
    assert!(blueprint.tensors.iter().all(|it| it.shared_with.is_none()));
}

fn a_copy_of_another_shape_is_refused_by_name<A: AutodiffBackend>(device: A::Device) {
    let mut wide = TensorSet::<A>::new();
    wide.insert(
        "layer1.kernel",
        "Linear",
        Tensor::<A, 2>::zeros([8, 8], &device),
    );
    let rules = copies(&[("layer1.kernel", "first.weight")]).with_new(["second.weight".to_owned()]);
    let error = inject(Pair::<A>::new(&device), &wide, &rules).expect_err("8 is not 4");
    assert!(matches!(error, BlueprintError::Shape { .. }));
    let message = error.to_string();
    for words in ["`layer1.kernel` [8, 8]", "`first.weight` [4, 4]"] {
        assert!(message.contains(words), "{message}");
    }
}

// ---------------------------------------------------------------- shares

fn a_copy_to_the_destination_fills_the_source<A: AutodiffBackend>(device: A::Device) {
    let teacher = teacher::<A>(&device);
    let student = Pair::<A>::new(&device);
    let [source, _] = student.ids();
    let rules = copies(&[(r"layer2\.kernel", "second.weight")])
        .with_shares([share("first(.*)", "second$1")]);
    let (student, blueprint) = inject(student, &teacher, &rules).expect("an injection");

    let expected = bits_of(&teacher, "layer2.kernel");
    assert_eq!(student.bits(), [expected.clone(), expected]);
    assert_eq!(student.ids(), [source, source]);
    assert_eq!(blueprint.unused, ["layer1.kernel"]);
    let names: Vec<&str> = blueprint
        .tensors
        .iter()
        .map(|it| it.name.as_str())
        .collect();
    assert_eq!(names, ["first.weight", "second.weight"]);
    let from = Source::Teacher("layer2.kernel".to_owned());
    assert!(blueprint.tensors.iter().all(|tensor| tensor.source == from));
    let [first, second] = [0, 1].map(|at| blueprint.tensors[at].shared_with.as_deref());
    assert_eq!((first, second), (None, Some("first.weight")));
}

fn a_copy_to_each_of_two_that_are_shared_is_one_too_many<A: AutodiffBackend>(device: A::Device) {
    let rules = copies(&[
        ("layer1.kernel", "first.weight"),
        ("layer2.kernel", "second.weight"),
    ])
    .with_shares([share("first.weight", "second.weight")]);
    let error = inject(Pair::<A>::new(&device), &teacher(&device), &rules).expect_err("one place");
    assert!(
        matches!(&error, BlueprintError::FilledTwice { student, first, second }
            if student == "second.weight" && first == "layer1.kernel" && second == "layer2.kernel"),
        "{error}"
    );
}

/// The rules that follow from names give a shared tensor one rule, its source's.
fn a_destination_is_filled_by_the_name_of_its_source<A: AutodiffBackend>(device: A::Device) {
    let mut teacher = TensorSet::<A>::new();
    let mut numbers = Numbers::new(3);
    for name in ["first.weight", "second.weight"] {
        let kernel: Tensor<A, 2> = numbers.tensor([WIDTH, WIDTH], &device);
        teacher.insert(name, "Linear", kernel);
    }
    let student = Pair::<A>::new(&device);
    let rules = Rules::by_name().with_shares([share("second.weight", "first.weight")]);
    let (student, blueprint) = inject(student, &teacher, &rules).expect("an injection");
    let expected = bits_of(&teacher, "second.weight");
    assert_eq!(student.bits(), [expected.clone(), expected]);
    assert_eq!(blueprint.unused, ["first.weight"]);
}

/// Though the destination comes first in the module.
fn a_destination_has_what_a_new_source_began_with<A: AutodiffBackend>(device: A::Device) {
    let student = Pair::<A>::new(&device);
    let ([_, began], [_, source]) = (student.bits(), student.ids());
    let rules = Rules::default()
        .with_new(["second.weight".to_owned()])
        .with_shares([share("second.weight", "first.weight")]);
    let (student, blueprint) =
        inject(student, &TensorSet::new(), &rules).expect("nothing to be filled");
    assert_eq!(student.bits(), [began.clone(), began]);
    assert_eq!(student.ids(), [source, source]);
    assert!(blueprint.tensors.iter().all(|it| it.source == Source::New));
}

fn shares_that_cannot_be_are_refused<A: AutodiffBackend>(device: A::Device) {
    assert!(matches!(
        ShareRule::new("layer_(1", ""),
        Err(BlueprintError::Pattern { .. })
    ));
    let (teacher_config, config) = (ToyConfig::new(4, 2), ToyConfig::new(2, 1));
    let teacher: PlainToy<A> = teacher_config.random(1, &device);
    let tensors = TensorSet::collect(&teacher);
    let refused = |pattern: &str, template: &str| {
        let awaiting = config
            .init::<A>(&device)
            .learn_to_init(&LtiSpec::new(teacher_config.geometry))
            .expect("a swap");
        let rules = Rules::by_name().with_shares([share(pattern, template)]);
        awaiting.inject(&tensors, &rules).expect_err("wrong shares")
    };
    let (query, key) = ("blocks.0.attention.query.c", "blocks.0.attention.key.c");
    let error = refused(query, key);
    assert!(
        matches!(&error, BlueprintError::Unlike { found, expected, .. }
            if found.contains("[12, 16]") && expected.contains("[12, 8]")),
        "{error}"
    );
    for name in [query, key] {
        assert!(error.to_string().contains(name), "{error}");
    }
    let error = refused("blocks.0.expand.weight", query);
    assert!(matches!(error, BlueprintError::Unlike { .. }), "{error}");
    let error = refused(query, "blocks.2.attention.quary.c");
    assert!(
        error
            .to_string()
            .contains("nearest: `blocks.2.attention.query.c`"),
        "{error}"
    );

    let one = layer(&device);
    let clones = Pair::<A> {
        first: one.clone(),
        second: one,
    };
    let rules = copies(&[
        ("layer1.kernel", "first.weight"),
        ("layer2.kernel", "second.weight"),
    ]);
    let error = inject(clones, &self::teacher(&device), &rules).expect_err("one id");
    assert!(matches!(error, BlueprintError::OneId { .. }), "{error}");
}

// ---------------------------------------------------------------- one variable

/// Takes three steps.
fn three_steps<A, M, O>(mut model: M, mut optimizer: O, loss: impl Fn(&M) -> Tensor<A, 1>) -> M
where
    A: AutodiffBackend,
    M: AutodiffModule<A>,
    O: Optimizer<M, A>,
{
    for _ in 0..3 {
        let gradients = GradientsParams::from_grads(loss(&model).backward(), &model);
        model = optimizer.step(0.05, model, gradients);
    }
    model
}

fn two_uses_of_one_variable_train_as_one_layer_used_twice<A: AutodiffBackend>(device: A::Device) {
    let x = input::<A>(&device);
    let optimizer = || adamw().init::<A, Pair<A>>();
    let start = shared_pair::<A>(&device);
    let [before, _] = start.bits();

    let both = three_steps(start.clone(), StudentOptimizer::new(optimizer()), |pair| {
        pair.loss(x.clone())
    });
    let oracle = three_steps(single::<A>(&device), adamw().init::<A, Once<A>>(), |once| {
        once.loss(x.clone())
    });
    let expected = bits(&oracle.only.weight.val());
    assert_ne!(expected, before);
    assert_eq!(both.bits(), [expected.clone(), expected.clone()]);

    // Were only one use's gradient counted, it would be another weight.
    let one = three_steps(start.clone(), StudentOptimizer::new(optimizer()), |pair| {
        let second = pair.second.weight.val().set_require_grad(false);
        loss(x.clone(), pair.first.weight.val(), second)
    });
    let [first, second] = one.bits();
    assert_eq!(first, second);
    assert_ne!(first, expected);

    // And Burn's own optimizer leaves the second use behind.
    let untied = three_steps(start, optimizer(), |pair| pair.loss(x.clone()));
    let [first, second] = untied.bits();
    assert_ne!(first, second);
    assert_eq!(second, before);
}

fn clipping_counts_a_shared_gradient_once<A: AutodiffBackend>(device: A::Device) {
    let x = input::<A>(&device);
    let bound = 0.25;
    let sgd = SgdConfig::new().init::<A, Once<A>>();
    let mut clip = StudentOptimizer::new(sgd).with_max_norm(bound);
    let once = single::<A>(&device);
    let gradients = GradientsParams::from_grads(once.loss(x.clone()).backward(), &once);
    let expected = bits(&clip.step(1.0, once, gradients).only.weight.val());
    let expected_norm = clip.measures().last().expect("a step was taken").grad_norm;
    assert!(expected_norm > 4.0 * bound, "{expected_norm}");

    let sgd = SgdConfig::new().init::<A, Pair<A>>();
    let mut clip = StudentOptimizer::new(sgd).with_max_norm(bound);
    let pair = shared_pair::<A>(&device);
    let gradients = GradientsParams::from_grads(pair.loss(x).backward(), &pair);
    let pair = clip.step(1.0, pair, gradients);
    assert_eq!(
        clip.measures().last().map(|last| last.grad_norm),
        Some(expected_norm)
    );
    assert_eq!(pair.bits(), [expected.clone(), expected]);
}

/// The gradient of the shared weight, as Burn collects it and as this toolkit does.
fn gradients_both_ways<A: AutodiffBackend>(pair: &Pair<A>, device: &A::Device) -> [Vec<f64>; 2] {
    let backward = || pair.loss(input::<A>(device)).backward();
    [
        GradientsParams::from_grads(backward(), pair),
        collect_gradients(pair, backward()),
    ]
    .map(|collected| {
        let found = gradients(pair, &collected);
        assert_eq!(found["first.weight"], found["second.weight"]);
        found["first.weight"].clone()
    })
}

/// The record of `pair`, written and read.
fn stored<A: AutodiffBackend>(
    pair: &Pair<A>,
    device: &A::Device,
) -> <Pair<A> as Module<A>>::Record {
    let recorder = BinBytesRecorder::<FullPrecisionSettings>::default();
    let bytes = Recorder::<A>::record(&recorder, pair.clone().into_record(), ());
    Recorder::<A>::load(&recorder, bytes.expect("bytes"), device).expect("a record")
}

fn what_moves_a_module_keeps_or_restores_its_ties<A: AutodiffBackend>(device: A::Device) {
    let once = single::<A>(&device);
    let backward = once.loss(input(&device)).backward();
    let expected = values(&once.only.weight.val().grad(&backward).expect("it trains"));

    let pair = shared_pair::<A>(&device);
    let whole = [expected.clone(), expected.clone()];
    assert_eq!(gradients_both_ways(&pair, &device), whole);
    assert_eq!(gradients_both_ways(&pair.clone(), &device), whole);
    let refrozen = set_trainable(set_trainable(pair.clone(), |_| false), |_| true);
    assert_eq!(gradients_both_ways(&refrozen, &device), whole);

    // Burn takes each of these for itself: the ids stay, the nodes part, and one use's gradient is lost
    // but to `collect_gradients`. Tied again, both see the whole.
    let returned: Pair<A> = AutodiffModule::from_inner(pair.valid());
    let loaded = Pair::<A>::new(&device).load_record(stored(&pair, &device));
    let forked = pair.clone().fork(&device);
    for moved in [returned, loaded, forked] {
        assert_eq!(moved.ids(), pair.ids());
        assert_eq!(moved.bits(), pair.bits());
        let [burns, ours] = gradients_both_ways(&moved, &device);
        assert_ne!(burns, expected);
        assert_eq!(ours, expected);
        assert_eq!(gradients_both_ways(&tie(moved.clone()), &device), whole);
        let freed = set_trainable(moved, |_| true);
        assert_eq!(gradients_both_ways(&freed, &device), whole);
    }
    let inner = pair.valid();
    assert_eq!(inner.ids(), pair.ids());
    let frozen = set_trainable(pair, |_| false);
    assert!(parameters(&tie(frozen)).values().all(|one| !one.trains));

    // What is not shared is left as it is, even unallocated.
    let lazy = tie(Pair::<A>::new(&device));
    assert!(!lazy.first.weight.is_initialized());
}

// ---------------------------------------------------------------- a decoder

type Inner<A> = <A as AutodiffBackend>::InnerBackend;
type Teacher<A> = PlainToy<Inner<A>>;

/// A student whose third block has the feed-forward weights of its first, and whose query and key maps
/// there have one teacher kernel; the maps themselves differ.
fn sharing_pair<A: AutodiffBackend>(
    device: &A::Device,
) -> (ToyConfig, LearningToy<A>, Arc<Teacher<A>>) {
    let (teacher_config, config) = (ToyConfig::new(4, 2), ToyConfig::new(2, 1));
    let teacher: Teacher<A> = teacher_config.random(1, device);
    let tensors = TensorSet::<A>::from_inner(&TensorSet::collect(&teacher));
    let awaiting = config
        .init(device)
        .learn_to_init(&LtiSpec::new(teacher_config.geometry))
        .expect("a swap");
    let rules = Rules::by_name().with_shares([
        share(r"blocks\.0\.(expand|contract)\.(.*)", "blocks.2.$1.$2"),
        share(
            r"blocks\.0\.attention\.(query|key)\.c",
            "blocks.2.attention.$1.c",
        ),
    ]);
    let (student, blueprint) = awaiting.inject(&tensors, &rules).expect("an injection");
    assert_eq!(
        blueprint.unused,
        [
            "blocks.2.attention.key.weight",
            "blocks.2.attention.query.weight",
            "blocks.2.contract.bias",
            "blocks.2.contract.weight",
            "blocks.2.expand.bias",
            "blocks.2.expand.weight",
        ]
    );
    let mut numbers = Numbers::new(5);
    let student = edit(student, |name, values| {
        if name.ends_with(".a") || name.ends_with(".b") {
            for value in values.iter_mut() {
                *value += 0.2 * numbers.normal(1)[0];
            }
        }
    });
    // What was edited was edited one by one.
    (config, set_trainable(student, |_| true), Arc::new(teacher))
}

fn a_shared_student_trains_and_collapses<A: AutodiffBackend>(device: A::Device) {
    type Pupil<A> = Distiller<A, LearningToy<A>, Arc<Teacher<A>>>;
    let (config, student, teacher) = sharing_pair::<A>(&device);
    let batch = config.batch(2, &device);
    let before = parameters(&student);
    let loss = DistillationLoss::new(0.7, 2.0, 5).expect("settings");
    let pupil: Pupil<A> = Distiller::new(student, teacher, loss).expect("one vocabulary");

    // Burn's own strategies begin with a fork.
    let forked = pupil.clone().fork(&device);
    let gradients_of = |pupil: &Pupil<A>| {
        let output = TrainStep::step(pupil, batch.clone());
        gradients(pupil.student(), &output.grads)
    };
    let expected = gradients_of(&pupil);
    assert!(expected.contains_key("blocks.2.expand.weight"));
    assert_eq!(gradients_of(&forked), expected);

    let adamw = adamw().init::<A, Pupil<A>>();
    let mut optimizer = StudentOptimizer::new(adamw).with_max_norm(1.0);
    let mut pupil = forked;
    for _ in 0..8 {
        let output = TrainStep::step(&pupil, batch.clone());
        pupil = optimizer.step(1e-2, pupil, output.grads);
    }
    let after = parameters(pupil.student());
    let (mut weights, mut kernels) = (0, 0);
    for (name, parameter) in &after {
        let moved = parameter.bits != before[name].bits;
        assert_eq!(moved, !name.ends_with(".c"), "{name}");
        let twin = name.replacen("blocks.0.", "blocks.2.", 1);
        if parameter.id == after[&twin].id && *name != twin {
            assert_eq!(parameter, &after[&twin]);
            match name.ends_with(".c") {
                true => kernels += 1,
                false => weights += 1,
            }
        }
    }
    assert_eq!((weights, kernels), (4, 2));

    collapses_with_a_kernel_of_two_maps(&config, &pupil.valid().into_student(), &batch.inner());
}

/// Collapse writes into no `C`: the second projection of a shared one is folded from what the first
/// was.
fn collapses_with_a_kernel_of_two_maps<B: Backend>(
    config: &ToyConfig,
    trained: &LearningToy<B>,
    batch: &TokenBatch<B>,
) {
    let before = parameters(trained);
    let collapsed = collapse(trained, KernelPrecision::Default).expect("a collapse");
    assert_eq!(parameters(trained), before);
    let device = batch.mask.device();
    let data = |name: String| {
        let found = &before[&name];
        let values: Vec<f32> = found
            .bits
            .iter()
            .map(|bits| f32::from_bits(*bits))
            .collect();
        TensorData::new(values, found.shape.clone())
    };
    let mut kernels = Vec::new();
    for layer in [0, 2] {
        for projection in ["query", "key"] {
            let name = format!("blocks.{layer}.attention.{projection}");
            let map = AttnMap::Factored {
                a: Tensor::from_data(data(format!("{name}.right.a")), &device),
                b: Tensor::from_data(data(format!("{name}.right.b")), &device),
            };
            let c = Tensor::<B, 2>::from_data(data(format!("{name}.c")), &device);
            let [d_model, width] = c.dims();
            let kernel = calculate_attn_weight(
                ProjectionKind::Qkv,
                c.reshape([d_model, width / 4, 4]),
                map,
                KernelPrecision::Default,
            )
            .expect("a kernel");
            let kernel = bits(&kernel);
            assert_eq!(
                bits_of(collapsed.tensors(), &format!("{name}.weight")),
                kernel
            );
            assert!(!kernels.contains(&kernel), "{name}");
            kernels.push(kernel);
        }
    }

    let plain: PlainToy<B> = collapsed
        .into_plain(config.init(&device))
        .expect("a plain toy");
    let expected = values(&logits(trained, batch));
    let largest = expected.iter().fold(0.0f64, |all, one| all.max(one.abs()));
    // As in decoders.rs: the sums of three layers and the head, of the size of the largest logits.
    let roundings = 3 * (2 * 12 + 2 * 8 + 24 + 32) + 12;
    let tolerance = Tolerance::Uniform(2.0 * rounding(roundings) * largest);
    assert_close(&values(&logits(&plain, batch)), &expected, &tolerance);
    let changed = perturb(plain, "blocks.2.attention.query.weight", 0.1);
    assert_not_close(&values(&logits(&changed, batch)), &expected, &tolerance);
}

// ---------------------------------------------------------------- what trains

fn a_frozen_kernel_does_not_move<A: AutodiffBackend>(device: A::Device) {
    for (rules, frozen) in [
        (FreezeRules::new(["irs"]), 0),
        (FreezeRules::training(["^first", "weigh.$"]), 2),
        (FreezeRules::training(["first"]), 1),
        (FreezeRules::training([]), 2),
        (FreezeRules::new([]), 2),
    ] {
        let (pair, _) = rules
            .expect("patterns")
            .apply(Pair::<A>::new(&device))
            .expect("rules that apply");
        let before = pair.bits();
        let gradients = GradientsParams::from_grads(pair.loss(input(&device)).backward(), &pair);
        let mut sgd = SgdConfig::new().init::<A, Pair<A>>();
        let after = sgd.step(0.1, pair, gradients).bits();
        for index in [0, 1] {
            assert_eq!(before[index] == after[index], index == frozen);
        }
    }
}

fn a_report_lists_what_becomes_of_each_parameter<A: AutodiffBackend>(device: A::Device) {
    let (_, student, _) = sharing_pair::<A>(&device);
    let rules = FreezeRules::new([r"norm", r"blocks\.1\.", "query.c"]).expect("patterns");
    let report = rules.report(&student).expect("a report");
    let (student, applied) = rules.apply(student).expect("rules that apply");
    assert_eq!(report, applied);

    let found = parameters(&student);
    assert_eq!(report.parameters.len(), found.len());
    for parameter in &report.parameters {
        let frozen_by = match parameter.name.as_str() {
            name if name.ends_with(".c") => Fate::TeacherKernel,
            name if name.contains("norm") => Fate::Frozen {
                by: Some("norm".to_owned()),
            },
            name if name.contains("blocks.1.") => Fate::Frozen {
                by: Some(r"blocks\.1\.".to_owned()),
            },
            _ => Fate::Trains { by: None },
        };
        assert_eq!(parameter.fate, frozen_by, "{parameter}");
        let stands = &found[&parameter.name];
        assert_eq!(parameter.shape, stands.shape);
        assert_eq!(
            stands.trains,
            matches!(parameter.fate, Fate::Trains { .. }),
            "{parameter}"
        );
    }
    assert!(
        report.trained().eq(report
            .parameters
            .iter()
            .filter(|parameter| found[&parameter.name].trains)
            .map(|parameter| parameter.name.as_str()))
    );

    // The module's order, not that of the names.
    let lines: Vec<String> = report.to_string().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), found.len());
    assert_eq!(lines[0], "token_table.weight [23, 12] trains");
    assert_eq!(lines[lines.len() - 1], "unembed.weight [12, 23] trains");
    for line in [
        "blocks.0.attention.query.c [12, 16] is a teacher kernel and never trains",
        "blocks.2.expand.weight [12, 24] trains, shared with `blocks.0.expand.weight`",
        r"blocks.1.expand.weight [12, 24] is frozen by `blocks\.1\.`",
    ] {
        assert!(lines.iter().any(|found| found == line), "{line}");
    }

    let report = FreezeRules::training(["query"])
        .and_then(|rules| rules.report(&student))
        .expect("a report");
    let lines = report.to_string();
    for line in [
        "blocks.0.attention.query.right.a [4, 2] trains by `query`\n",
        "blocks.0.attention.query.c [12, 16] is a teacher kernel and never trains\n",
        "token_table.weight [23, 12] is frozen, as no pattern trains it\n",
    ] {
        assert!(lines.contains(line), "{lines}");
    }
}

fn a_pattern_about_one_name_is_about_the_variable<A: AutodiffBackend>(device: A::Device) {
    for name in ["first", "second"] {
        for (rules, trains) in [
            (FreezeRules::new([name]), false),
            (FreezeRules::training([name]), true),
        ] {
            let (pair, report) = rules
                .expect("a pattern")
                .apply(shared_pair::<A>(&device))
                .expect("rules that apply");
            assert_eq!(report.parameters[0].shared_with, None);
            let first = report.parameters[1].shared_with.as_deref();
            assert_eq!(first, Some("first.weight"));
            assert!(parameters(&pair).values().all(|one| one.trains == trains));
        }
    }
}

fn patterns_that_say_nothing_are_refused<A: AutodiffBackend>(device: A::Device) {
    for rules in [
        FreezeRules::new(["(norm"]),
        FreezeRules::training(["(norm"]),
    ] {
        let error = rules.expect_err("no pattern");
        assert!(matches!(error, BlueprintError::Pattern { .. }));
        assert!(chain(&error).contains("`(norm`"), "{error}");
    }
    let pair = Pair::<A>::new(&device);
    for rules in [
        FreezeRules::new(["weight", "secnd"]),
        FreezeRules::training(["weight", "secnd"]),
    ] {
        let rules = rules.expect("patterns");
        let error = rules.report(&pair).expect_err("no such parameter");
        assert!(matches!(error, BlueprintError::NoParameter { .. }));
        let message = error.to_string();
        for words in ["`secnd`", "nearest: `second.weight`"] {
            assert!(message.contains(words), "{message}");
        }
        assert!(rules.apply(pair.clone()).is_err());
    }
    assert!(!pair.first.weight.is_initialized());
}
