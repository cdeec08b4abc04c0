//! Laws of a training: what moves and what does not, clipping, steps, and how it ends.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use burn::data::dataloader::DataLoader;
use burn::lr_scheduler::constant::ConstantLr;
use burn::module::{AutodiffModule, Module, ModuleDisplay, Param};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::optim::{AdamWConfig, GradientsParams, MultiGradientsParams, Optimizer, SgdConfig};
use burn::prelude::*;
use burn::tensor::activation::log_softmax;
use burn::tensor::backend::{AutodiffBackend, DeviceOps};
use burn::train::{Interrupter, Learner, TrainStep};
use burn_lti::blueprint::Rules;
use burn_lti::collapse::collapse;
use burn_lti::decoder::{CausalLm, FeatureTap, Head, LayerSelection, LtiSpec, TokenBatch};
use burn_lti::geometry::HeadGrid;
use burn_lti::loss::DistillationLoss;
use burn_lti::map::{KernelPrecision, LtiDense, MapKind, ProjectionKind};
use burn_lti::parameters::set_trainable;
use burn_lti::tensors::TensorSet;
use burn_lti::train::{
    Decay, Distiller, Ending, RankSchedule, StepClock, StepHook, StepReport, StepStrategy,
    StudentOptimizer, TrainError, WarmupDecay,
};
use burn_lti_llama::data::{PackedSequence, loader, pack};
use burn_lti_tests::close::{Tolerance, UNIT_ROUNDOFF, assert_close, assert_not_close, rounding};
use burn_lti_tests::dense::{dense_config, leaf_of};
use burn_lti_tests::llama::load;
use burn_lti_tests::numbers::{Numbers, values};
use burn_lti_tests::on_every_backend;
use burn_lti_tests::params::{Parameter, edit, gradients, in_map, parameters, perturb};
use burn_lti_tests::toy::{LearningToy, PlainToy, ToyConfig, logits, packed_batch};
use burn_lti_tests::training::{
    Diary, Ended, Loaders, adamw, fit, fit_until, launch, take_steps, train_maps_only,
};

on_every_backend![
    maps_only_moves_maps_and_nothing_else,
    train_all_moves_everything_but_the_teacher_kernels,
    a_round_trip_through_the_inner_backend_forgets_nothing,
    a_step_has_the_gradient_of_the_whole_loss,
    a_tied_head_and_its_embedding_share_one_gradient,
    a_toy_learns_and_collapses,
    the_same_seed_gives_the_same_bits,
    clipping_keeps_the_direction_and_bounds_the_norm,
    a_gradient_has_the_same_norm_every_time,
    an_infinite_bound_only_measures,
    gradients_of_several_devices_are_clipped_as_their_sum,
    a_gradient_that_is_not_finite_moves_nothing,
    steps_are_counted_across_epochs,
    a_loss_that_is_not_finite_ends_the_training_before_its_step,
    a_gradient_that_is_not_finite_ends_the_training,
    an_interrupt_is_an_ending_that_the_last_report_names,
    a_hook_ends_a_training,
    micro_batches_take_the_step_of_their_batch,
    one_micro_batch_has_its_gradient_bit_for_bit,
    steps_visit_the_same_text_in_batches_of_any_size,
    a_clock_counts_the_steps_that_are_taken,
    ranks_of_a_map_become_active_one_after_another,
    a_training_beyond_its_end_is_an_error,
    data_without_a_batch_is_an_error,
];

pub(crate) type Student<A> = LearningToy<A>;
pub(crate) type Teacher<A> = PlainToy<<A as AutodiffBackend>::InnerBackend>;
pub(crate) type Pupil<A> = Distiller<A, Student<A>, Arc<Teacher<A>>>;
type Inner<A> = <A as AutodiffBackend>::InnerBackend;
type TrainedPupil<A> = Distiller<Inner<A>, LearningToy<Inner<A>>, Arc<Teacher<A>>>;

/// A random toy teacher and a learning student of half its heads, only its maps trained.
pub(crate) fn pair<A: AutodiffBackend>(
    device: &A::Device,
) -> (ToyConfig, Student<A>, Arc<Teacher<A>>) {
    let (teacher_config, config) = (ToyConfig::new(4, 2), ToyConfig::new(2, 1));
    let teacher: Teacher<A> = teacher_config.random(1, device);
    let tensors = TensorSet::<A>::from_inner(&TensorSet::collect(&teacher));
    let spec = LtiSpec {
        layers: LayerSelection::Only(vec![0, 2]),
        ..LtiSpec::new(teacher_config.geometry)
    };
    let awaiting = config.init(device).learn_to_init(&spec).expect("a swap");
    // Block 1 keeps its own projections, which the teacher's do not fit.
    let new = ["query", "key", "value", "output"]
        .into_iter()
        .flat_map(|name| ["weight", "bias"].map(|leaf| format!("blocks.1.attention.{name}.{leaf}")))
        .filter(|name| name != "blocks.1.attention.output.bias");
    let rules = Rules::by_name().with_new(new);
    let (student, _) = awaiting.inject(&tensors, &rules).expect("an injection");
    let student = edit(student, |name, values| {
        // What began new came from the backend's own generator.
        if name.starts_with("blocks.1.attention") {
            *values = Numbers::new(9).normal(values.len());
        }
    });
    (config, train_maps_only(student), Arc::new(teacher))
}

pub(crate) fn pupil<A: AutodiffBackend>(
    student: Student<A>,
    teacher: &Arc<Teacher<A>>,
) -> Pupil<A> {
    let loss = DistillationLoss::new(0.7, 2.0, 5).expect("settings");
    Distiller::new(student, teacher.clone(), loss).expect("one vocabulary")
}

/// The names whose bits differ.
fn moved(before: &BTreeMap<String, Parameter>, after: &BTreeMap<String, Parameter>) -> Vec<String> {
    assert!(before.keys().eq(after.keys()));
    let names = before
        .keys()
        .filter(|name| before[*name].bits != after[*name].bits);
    names.cloned().collect()
}

fn trained(parameters: &BTreeMap<String, Parameter>) -> Vec<String> {
    let names = parameters.iter().filter(|(_, parameter)| parameter.trains);
    names.map(|(name, _)| name.clone()).collect()
}

// ---------------------------------------------------------------- what moves

fn maps_only_moves_maps_and_nothing_else<A: AutodiffBackend>(device: A::Device) {
    let (config, student, teacher) = pair::<A>(&device);
    let batch = config.batch(2, &device);
    let (before, teacher_before) = (parameters(&student), parameters(teacher.as_ref()));
    let expected: Vec<String> = before
        .iter()
        .filter(|(name, parameter)| in_map(name, parameter))
        .map(|(name, _)| name.clone())
        .collect();
    assert_eq!(expected.len(), 2 * 4 * 3);
    assert_eq!(trained(&before), expected);

    let (pupil, _) = take_steps(pupil(student, &teacher), &batch, 4, 1e-2);
    // Evaluating in between, as the Learner does, must not unfreeze anything either.
    let evaluated = parameters(pupil.valid().student());
    assert!(trained(&evaluated).is_empty());
    let (pupil, _) = take_steps(pupil, &batch, 4, 1e-2);
    let after = parameters(pupil.student());
    assert_eq!(moved(&before, &after), expected);
    assert_eq!(trained(&after), expected);
    assert_eq!(parameters(teacher.as_ref()), teacher_before);
}

fn train_all_moves_everything_but_the_teacher_kernels<A: AutodiffBackend>(device: A::Device) {
    let (config, student, teacher) = pair::<A>(&device);
    let student = set_trainable(student, |_| true);
    let (before, teacher_before) = (parameters(&student), parameters(teacher.as_ref()));
    let batch = config.batch(2, &device);
    let (pupil, _) = take_steps(pupil(student, &teacher), &batch, 4, 1e-2);
    let expected: Vec<String> = before
        .keys()
        .filter(|name| !name.ends_with(".c"))
        .cloned()
        .collect();
    assert_eq!(moved(&before, &parameters(pupil.student())), expected);
    assert_eq!(parameters(teacher.as_ref()), teacher_before);
}

/// Burn forgets on the inner backend what is frozen. Set again, the same parameters train as before,
/// and without it nothing that was frozen begins to.
fn a_round_trip_through_the_inner_backend_forgets_nothing<A: AutodiffBackend>(device: A::Device) {
    let (config, student, teacher) = pair::<A>(&device);
    let batch = config.batch(2, &device);
    let before = parameters(&student);
    let expected = trained(&before);

    let returned: Student<A> = AutodiffModule::from_inner(student.valid().clone());
    let (pupil_as_is, _) = take_steps(pupil(returned.clone(), &teacher), &batch, 2, 1e-2);
    for name in moved(&before, &parameters(pupil_as_is.student())) {
        assert!(expected.contains(&name), "{name} was frozen");
    }

    let returned = train_maps_only(returned);
    assert_eq!(trained(&parameters(&returned)), expected);
    let (pupil, _) = take_steps(pupil(returned, &teacher), &batch, 4, 1e-2);
    assert_eq!(moved(&before, &parameters(pupil.student())), expected);
}

/// The surrogate's gradient is that of the loss itself, made of whole logits by Burn's autodiff.
fn a_step_has_the_gradient_of_the_whole_loss<A: AutodiffBackend>(device: A::Device) {
    let (config, student, teacher) = pair::<A>(&device);
    let student = set_trainable(student, |_| true);
    let batch = config.batch(2, &device);
    check_gradient::<A, _, _>(student, teacher, &batch, "blocks.0.attention.value.right.a");
}

/// Where the head is the embedding turned, its gradient and the embedding's own add up.
fn a_tied_head_and_its_embedding_share_one_gradient<A: AutodiffBackend>(device: A::Device) {
    let teacher = load::<A::InnerBackend>("untied_bias", &device);
    let student = set_trainable(load::<A>("tied", &device), |_| true);
    let batch = packed_batch(student.config().vocab_size, 2, &device);
    let tied = "model.embed_tokens.weight";
    check_gradient::<A, _, _>(student, Arc::new(teacher), &batch, tied);
}

fn check_gradient<A, M, T>(student: M, teacher: Arc<T>, batch: &TokenBatch<A>, changed: &str)
where
    A: AutodiffBackend,
    M: CausalLm<A> + AutodiffModule<A, InnerModule: ModuleDisplay>,
    T: CausalLm<A::InnerBackend> + Sync,
{
    let loss = DistillationLoss::new(0.7, 2.0, 5).expect("settings");
    let pupil = Distiller::new(student.clone(), teacher.clone(), loss).expect("one vocabulary");
    let output = TrainStep::step(&pupil, batch.clone());
    let found = gradients(&student, &output.grads);
    let expected = whole_gradients(&student, teacher.as_ref(), batch);
    assert!(found.keys().eq(expected.keys()));
    assert!(found.keys().any(|name| name == changed));

    // Through three layers of at most 24 features and back: twice the roundings of a forward pass,
    // relative to the norm of the whole gradient, since that of a key's bias is zero but for
    // rounding. Our program and Burn's err.
    let all = |gradients: BTreeMap<String, Vec<f64>>| gradients.into_values().flatten().collect();
    let (found, expected): (Vec<f64>, Vec<f64>) = (all(found), all(expected));
    let norm = expected
        .iter()
        .map(|value| value * value)
        .sum::<f64>()
        .sqrt();
    let roundings = 2 * 3 * (3 * 24 + 2 * 32 + 24 + 32) + 24 + 61;
    let tolerance = Tolerance::Uniform(2.0 * rounding(roundings) * norm);
    assert_close(&found, &expected, &tolerance);
    let changed = perturb(student, changed, 0.01);
    let changed = all(whole_gradients(&changed, teacher.as_ref(), batch));
    assert_not_close(&changed, &expected, &tolerance);
}

/// Gradients of `0.7 T^2 KL + 0.3 CE` at `T = 2`.
fn whole_gradients<A: AutodiffBackend>(
    student: &(impl CausalLm<A> + AutodiffModule<A>),
    teacher: &impl CausalLm<A::InnerBackend>,
    batch: &TokenBatch<A>,
) -> BTreeMap<String, Vec<f64>> {
    let ours = logits(student, batch);
    let theirs = Tensor::from_inner(logits(teacher, &batch.inner()));
    let mask: Tensor<A, 2> = batch.mask.clone().reshape([24, 1]);
    let q = log_softmax(ours.clone() / 2.0, 1);
    let p: Tensor<A, 2> = log_softmax(theirs / 2.0, 1);
    let kl = (p.clone().exp() * (p - q)).sum_dim(1);
    let targets = batch.targets.clone().reshape([24, 1]);
    let ce = log_softmax(ours, 1).gather(1, targets).neg();
    let loss = ((kl * (0.7 * 4.0) + ce * 0.3) * mask.clone()).sum() / mask.sum();
    gradients(
        student,
        &GradientsParams::from_grads(loss.backward(), student),
    )
}

fn a_toy_learns_and_collapses<A: AutodiffBackend>(device: A::Device) {
    let (config, student, teacher) = pair::<A>(&device);
    let batch = config.batch(2, &device);
    let (pupil, losses) = take_steps(pupil(student, &teacher), &batch, 60, 2e-2);
    let (first, last) = (losses[0], losses[59]);
    assert!(last < 0.7 * first, "{first} to {last}");

    let trained = pupil.valid().into_student();
    let plain: Teacher<A> = collapse(&trained, KernelPrecision::Default)
        .expect("a collapse")
        .into_plain(config.init(&device))
        .expect("a plain toy");
    let expected = values(&logits(&trained, &batch.inner()));
    let largest = expected.iter().fold(0.0f64, |all, one| all.max(one.abs()));
    // As in decoders.rs: the sums of three layers and the head, of the size of the largest logits.
    let roundings = 3 * (2 * 12 + 2 * 8 + 24 + 32) + 12;
    let tolerance = Tolerance::Uniform(2.0 * rounding(roundings) * largest);
    assert_close(
        &values(&logits(&plain, &batch.inner())),
        &expected,
        &tolerance,
    );
    let changed = perturb(plain, "blocks.2.attention.output.weight", 0.02);
    assert_not_close(
        &values(&logits(&changed, &batch.inner())),
        &expected,
        &tolerance,
    );
}

fn the_same_seed_gives_the_same_bits<A: AutodiffBackend>(device: A::Device) {
    let run = || {
        let (config, student, teacher) = pair::<A>(&device);
        let ended = fit_toy::<A>(&config, student, &teacher, 12, &device);
        assert_eq!(ended.error, None);
        let losses: Vec<u64> = ended
            .diary
            .steps
            .iter()
            .map(|s| s.sums.loss.to_bits())
            .collect();
        let bits: Vec<Vec<u32>> = parameters(ended.model.student())
            .into_values()
            .map(|parameter| parameter.bits)
            .collect();
        (losses, bits)
    };
    assert_eq!(run(), run());
}

// ---------------------------------------------------------------- clipping

/// A module of two parameters.
#[derive(Module, Debug)]
struct Two<B: Backend> {
    one: Param<Tensor<B, 1>>,
    two: Param<Tensor<B, 2>>,
}

impl<B: Backend> Two<B> {
    fn new(device: &B::Device) -> Self {
        Self {
            one: Param::from_tensor(Tensor::zeros([3], device)),
            two: Param::from_tensor(Tensor::zeros([2, 2], device)),
        }
    }

    fn values(&self) -> Vec<f64> {
        [values(&self.one.val()), values(&self.two.val())].concat()
    }
}

/// Gradients of norm 10: 1, 2, 3 and 9, 1, 2, 0.
const GRADIENT: [f32; 7] = [1.0, 2.0, 3.0, 9.0, 1.0, 2.0, 0.0];

/// `gradient` as that of the module's parameters.
fn gradients_of<A: AutodiffBackend>(
    module: &Two<A>,
    gradient: &[f32; 7],
    device: &A::Device,
) -> GradientsParams {
    let one = Tensor::from_floats(&gradient[..3], device);
    let two = Tensor::<A, 1>::from_floats(&gradient[3..], device).reshape([2, 2]);
    let loss = (module.one.val() * one).sum() + (module.two.val() * two).sum();
    GradientsParams::from_grads(loss.backward(), module)
}

/// One step of plain gradient descent of rate 1 from zero: the values are minus the gradient taken.
fn step_of<A: AutodiffBackend>(
    gradient: [f32; 7],
    bound: f64,
    device: &A::Device,
) -> (Vec<f64>, f64) {
    let module = Two::<A>::new(device);
    let gradients = gradients_of(&module, &gradient, device);
    let mut optimizer =
        StudentOptimizer::new(SgdConfig::new().init::<A, Two<A>>()).with_max_norm(bound);
    let norm = optimizer.measures();
    assert_eq!(norm.last(), None);
    let module = optimizer.step(1.0, module, gradients);
    (
        module.values(),
        norm.last().expect("a step was taken").grad_norm,
    )
}

fn expected_step(factor: f64) -> Vec<f64> {
    GRADIENT
        .iter()
        .map(|gradient| -f64::from(*gradient) * factor)
        .collect()
}

fn clipping_keeps_the_direction_and_bounds_the_norm<A: AutodiffBackend>(device: A::Device) {
    // Seven squares are summed, their root and the factor taken, and the product rounded.
    let sizes: Vec<f64> = GRADIENT.iter().map(|g| f64::from(*g) * 0.25).collect();
    let tolerance = Tolerance::of_magnitudes(&sizes, rounding(7 + 4));
    let (found, norm) = step_of::<A>(GRADIENT, 2.5, &device);
    assert_eq!(norm, 10.0);
    assert_close(&found, &expected_step(0.25), &tolerance);
    let length = found.iter().map(|value| value * value).sum::<f64>().sqrt();
    assert!((length - 2.5).abs() <= 2.5 * rounding(11), "{length}");
    // Per parameter, as Burn clips, the first three would be as long as the last four.
    assert_not_close(&found, &expected_step(0.2501), &tolerance);
}

/// Work groups of a GPU end in any order, and float32 numbers have another sum in another order.
fn a_gradient_has_the_same_norm_every_time<A: AutodiffBackend>(device: A::Device) {
    let gradient = Numbers::new(5).tensor::<A::InnerBackend, 2>([300, 400], &device);
    let size = values(&gradient).iter().map(|g| g * g).sum::<f64>().sqrt();
    let module = LinearConfig::new(300, 400).with_bias(false).init(&device);
    let mut norms = (0..30).map(|_| {
        let mut gradients = GradientsParams::new();
        gradients.register(module.weight.id, gradient.clone());
        let optimizer = SgdConfig::new().init::<A, Linear<A>>();
        let mut optimizer = StudentOptimizer::new(optimizer);
        let norm = optimizer.measures();
        optimizer.step(1.0, module.clone(), gradients);
        norm.last().expect("a step was taken").grad_norm
    });
    let first = norms.next().expect("a norm");
    // A sum of non-negative numbers has at most the relative error of its longest chain.
    assert!(
        (first - size).abs() <= size * rounding(300 * 400),
        "{first} {size}"
    );
    assert!(norms.all(|norm| norm.to_bits() == first.to_bits()));
}

fn an_infinite_bound_only_measures<A: AutodiffBackend>(device: A::Device) {
    for bound in [f64::INFINITY, 10.5] {
        let (found, norm) = step_of::<A>(GRADIENT, bound, &device);
        assert_eq!((found, norm), (expected_step(1.0), 10.0));
    }
}

/// Two devices with 1/4 and 3/4 of a gradient take the step of the whole.
fn gradients_of_several_devices_are_clipped_as_their_sum<A: AutodiffBackend>(device: A::Device) {
    let module = Two::<A>::new(&device);
    let share = |part: f32| gradients_of(&module, &GRADIENT.map(|g| g * part), &device);
    let shares = MultiGradientsParams {
        grads: vec![(share(0.25), device.id()), (share(0.75), device.id())],
    };
    let mut optimizer =
        StudentOptimizer::new(SgdConfig::new().init::<A, Two<A>>()).with_max_norm(2.5);
    let stepped = optimizer.step_multi(1.0, module.clone(), shares);
    let (expected, norm) = step_of::<A>(GRADIENT, 2.5, &device);
    assert_eq!(
        (
            stepped.values(),
            optimizer.measures().last().map(|last| last.grad_norm)
        ),
        (expected, Some(norm))
    );
}

fn a_gradient_that_is_not_finite_moves_nothing<A: AutodiffBackend>(device: A::Device) {
    for wrong in [f32::NAN, f32::INFINITY] {
        let mut gradient = GRADIENT;
        gradient[4] = wrong;
        for bound in [2.5, f64::INFINITY] {
            let (found, norm) = step_of::<A>(gradient, bound, &device);
            assert_eq!(found, [0.0; 7]);
            assert!(!norm.is_finite());
        }
    }
}

// ---------------------------------------------------------------- the strategy

/// Ten windows of random documents, in three batches.
pub(crate) fn sequences(vocab: usize) -> Vec<PackedSequence> {
    let mut numbers = Numbers::new(3);
    let documents: Vec<Vec<u32>> = (0..20)
        .map(|_| {
            let length = 3 + numbers.below(6);
            numbers
                .ids(length, vocab)
                .iter()
                .map(|id| *id as u32)
                .collect()
        })
        .collect();
    let mut windows = pack(documents, 10);
    windows.truncate(10);
    assert_eq!(windows.len(), 10);
    windows
}

fn loaders<A: AutodiffBackend>(sequences: Vec<PackedSequence>, device: &A::Device) -> Loaders<A> {
    (
        loader(sequences.clone(), 4, Some(5), device),
        loader(sequences, 4, None, device),
    )
}

fn fit_toy<A: AutodiffBackend>(
    config: &ToyConfig,
    student: Student<A>,
    teacher: &Arc<Teacher<A>>,
    steps: usize,
    device: &A::Device,
) -> Ended<TrainedPupil<A>> {
    let optimizer = StudentOptimizer::new(adamw().init::<A, Pupil<A>>()).with_max_norm(1.0);
    let norm = optimizer.measures();
    let schedule = WarmupDecay::new(1e-2, steps, 2, Decay::Cosine, 0.1);
    let data = loaders::<A>(sequences(config.vocab), device);
    fit(
        pupil(student, teacher),
        optimizer,
        schedule,
        Some(norm),
        steps,
        data,
    )
}

/// What was asked for before the first step is heard after it.
fn an_interrupt_is_an_ending_that_the_last_report_names<A: AutodiffBackend>(device: A::Device) {
    let (config, student, teacher) = pair::<A>(&device);
    let interrupter = Interrupter::new();
    interrupter.stop(Some("enough"));
    let ended = fit_until(
        interrupter,
        pupil(student, &teacher),
        adamw().init::<A, Pupil<A>>(),
        ConstantLr::new(1e-2),
        None,
        8,
        loaders::<A>(sequences(config.vocab), &device),
    );
    assert_eq!(
        (ended.ending, ended.error),
        (Some(Ending::Interrupted), None)
    );
    assert_eq!(ended.diary.steps.len(), 1);
    assert_eq!(ended.diary.steps[0].ending, Some(Ending::Interrupted));
    assert!(ended.diary.validations.is_empty());
}

/// Eight steps of three batches an epoch: two epochs and two thirds.
fn steps_are_counted_across_epochs<A: AutodiffBackend>(device: A::Device) {
    let (config, student, teacher) = pair::<A>(&device);
    let before = parameters(&student);
    let expected = trained(&before);
    let ended = fit_toy::<A>(&config, student, &teacher, 8, &device);
    assert_eq!(ended.error, None);

    let counted: Vec<usize> = ended.diary.steps.iter().map(|report| report.step).collect();
    assert_eq!(counted, [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(ended.ending, Some(Ending::Finished));
    let (last, others) = ended.diary.steps.split_last().expect("steps");
    assert_eq!(last.ending, Some(Ending::Finished));
    assert!(others.iter().all(|report| report.ending.is_none()));
    let schedule = WarmupDecay::new(1e-2, 8, 2, Decay::Cosine, 0.1);
    for report in &ended.diary.steps {
        assert_eq!(report.learning_rate, schedule.rate(report.step));
        assert!(report.measured.expect("a norm").grad_norm > 0.0);
    }
    let tokens = |range: std::ops::Range<usize>| -> f64 {
        ended.diary.steps[range]
            .iter()
            .map(|report| report.sums.tokens)
            .sum()
    };
    let all: usize = sequences(config.vocab)
        .iter()
        .map(PackedSequence::num_targets)
        .sum();
    assert_eq!((tokens(0..3), tokens(3..6)), (all as f64, all as f64));
    assert_eq!(ended.diary.validations.len(), 1);
    assert_eq!(ended.diary.validations[0].tokens, all as f64);

    let after = parameters(ended.model.student());
    assert_eq!(moved(&before, &after), expected);
    // The model that comes back is the one that the last step made.
    let (train, valid) = loaders::<A>(sequences(config.vocab), &device);
    drop(train);
    let mut sums = burn_lti::loss::LossSums::default();
    for batch in valid.iter() {
        sums += burn::train::InferenceStep::step(&ended.model, batch).read();
    }
    assert_eq!(sums, ended.diary.validations[0]);
}

/// A first step of an absurd rate leaves weights from which the second loss is not a number.
fn a_loss_that_is_not_finite_ends_the_training_before_its_step<A: AutodiffBackend>(
    device: A::Device,
) {
    let (config, student, teacher) = pair::<A>(&device);
    let one_step = |student: Student<A>, steps| {
        let data = loaders::<A>(sequences(config.vocab), &device);
        let optimizer = SgdConfig::new().init::<A, Pupil<A>>();
        fit(
            pupil(student, &teacher),
            optimizer,
            ConstantLr::new(1e38),
            None,
            steps,
            data,
        )
    };
    let once = one_step(student.clone(), 1);
    assert_eq!(once.error, None);
    let ended = one_step(student, 5);
    let error = ended.error.expect("the loss is not finite");
    assert_eq!(
        error,
        TrainError::NotFinite {
            what: "the loss",
            step: 2
        }
    );
    assert!(
        error
            .to_string()
            .contains("the loss is not finite at step 2"),
        "{error}"
    );
    assert_eq!(ended.diary.steps.len(), 1);
    let bits = |model: &TrainedPupil<A>| -> Vec<_> {
        parameters(model.student())
            .into_values()
            .map(|p| p.bits)
            .collect()
    };
    assert_eq!(bits(&ended.model), bits(&once.model));
}

/// A language model whose hidden states hold a parameter that is zero, multiplied beyond the largest
/// float32: finite themselves, with a gradient that is not.
#[derive(Module, Debug)]
struct Kink<B: Backend> {
    table: Embedding<B>,
    zero: Param<Tensor<B, 1>>,
    head: Linear<B>,
    #[module(skip)]
    _backend: PhantomData<B>,
}

impl<B: Backend> Kink<B> {
    fn new(vocab: usize, device: &B::Device) -> Self {
        Self {
            table: EmbeddingConfig::new(vocab, 4).init(device),
            zero: Param::from_tensor(Tensor::zeros([4], device)),
            head: LinearConfig::new(4, vocab).with_bias(false).init(device),
            _backend: PhantomData,
        }
    }
}

impl<B: Backend> CausalLm<B> for Kink<B> {
    fn forward(&self, batch: &TokenBatch<B>, _tap: &mut FeatureTap<'_, B>) -> Tensor<B, 3> {
        self.table.forward(batch.tokens.clone()) + (self.zero.val() * 1e30 * 1e30).unsqueeze()
    }

    fn layers(&self) -> usize {
        0
    }

    fn head(&self) -> Head<B> {
        Head {
            weight: self.head.weight.val(),
            trains: false,
            cap: None,
        }
    }
}

fn a_gradient_that_is_not_finite_ends_the_training<A: AutodiffBackend>(device: A::Device) {
    let config = ToyConfig::new(4, 2);
    let teacher: Arc<Teacher<A>> = Arc::new(config.random(1, &device));
    let student = Kink::<A>::new(config.vocab, &device);
    let before = parameters(&student);
    let distiller = Distiller::new(student, teacher, DistillationLoss::KL).expect("a distiller");
    let optimizer =
        StudentOptimizer::new(adamw().init::<A, Distiller<A, Kink<A>, _>>()).with_max_norm(1.0);
    let norm = optimizer.measures();
    let data = loaders::<A>(sequences(config.vocab), &device);
    let ended = fit(
        distiller,
        optimizer,
        ConstantLr::new(0.1),
        Some(norm),
        5,
        data,
    );
    let error = ended.error.expect("the gradient is not finite");
    assert_eq!(
        error,
        TrainError::NotFinite {
            what: "the gradient",
            step: 1
        }
    );
    assert!(
        error
            .to_string()
            .contains("the gradient is not finite at step 1"),
        "{error}"
    );
    assert!(ended.diary.steps.is_empty());
    assert!(moved(&before, &parameters(ended.model.student())).is_empty());
}

fn data_without_a_batch_is_an_error<A: AutodiffBackend>(device: A::Device) {
    let (config, student, teacher) = pair::<A>(&device);
    let before = parameters(&student);
    let (_, valid) = loaders::<A>(sequences(config.vocab), &device);
    let nothing: Arc<dyn DataLoader<A, TokenBatch<A>>> = loader(Vec::new(), 4, None, &device);
    let optimizer = adamw().init::<A, Pupil<A>>();
    let schedule = ConstantLr::new(0.1);
    let ended = fit(
        pupil(student, &teacher),
        optimizer,
        schedule,
        None,
        5,
        (nothing, valid),
    );
    let error = ended.error.expect("there is no batch");
    assert!(error.to_string().contains("holds no batch"), "{error}");
    assert!(ended.diary.steps.is_empty());
    assert!(moved(&before, &parameters(ended.model.student())).is_empty());
}

/// A hook that has enough after its third step.
#[derive(Default)]
struct Impatient {
    diary: Diary,
    models: Vec<Vec<Vec<u32>>>,
}

impl<A: AutodiffBackend> StepHook<Pupil<A>> for Impatient {
    fn on_step(&mut self, report: &StepReport, model: &Pupil<A>) -> ControlFlow<()> {
        let bits = parameters(model.student()).into_values();
        self.models.push(bits.map(|one| one.bits).collect());
        let _: ControlFlow<()> = StepHook::<Pupil<A>>::on_step(&mut self.diary, report, model);
        match report.step {
            3 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }

    fn on_validation(&mut self, sums: &burn_lti::loss::LossSums) {
        StepHook::<Pupil<A>>::on_validation(&mut self.diary, sums);
    }
}

fn a_hook_ends_a_training<A: AutodiffBackend>(device: A::Device) {
    for (steps, expected) in [(8, Ending::Stopped), (3, Ending::Finished)] {
        let (config, student, teacher) = pair::<A>(&device);
        let hook = Arc::new(Mutex::new(Impatient::default()));
        let strategy = StepStrategy::new(steps, hook.clone());
        let optimizer = adamw().init::<A, Pupil<A>>();
        let schedule = ConstantLr::new(1e-2);
        let learner = Learner::new(pupil(student, &teacher), optimizer, schedule);
        let data = loaders::<A>(sequences(config.vocab), &device);
        let (model, outcome) = launch(Interrupter::new(), strategy, learner, data);
        assert_eq!(outcome, Ok(expected));
        let hook = hook.lock().expect("no thread has panicked");
        assert_eq!(hook.diary.steps.len(), 3);
        let validated = usize::from(expected == Ending::Finished);
        assert_eq!(hook.diary.validations.len(), validated);
        // The hook sees what each step made.
        let bits = parameters(model.student()).into_values();
        let bits: Vec<Vec<u32>> = bits.map(|one| one.bits).collect();
        assert!(hook.models[2] == bits && hook.models[1] != bits);
    }
}

// ---------------------------------------------------------------- micro-batches

type Gradients = BTreeMap<String, Vec<f64>>;

/// An optimizer that keeps what gradients it is given.
#[derive(Clone)]
struct Spy<O> {
    optimizer: O,
    seen: Arc<Mutex<Vec<Gradients>>>,
}

impl<M: AutodiffModule<A>, A: AutodiffBackend, O: Optimizer<M, A>> Optimizer<M, A> for Spy<O> {
    type Record = O::Record;

    fn step(&mut self, lr: f64, module: M, grads: GradientsParams) -> M {
        let mut seen = self.seen.lock().expect("no thread has panicked");
        seen.push(gradients(&module, &grads));
        self.optimizer.step(lr, module, grads)
    }

    fn step_multi(&mut self, lr: f64, module: M, grads: MultiGradientsParams) -> M {
        self.optimizer.step_multi(lr, module, grads)
    }

    fn to_record(&self) -> Self::Record {
        self.optimizer.to_record()
    }

    fn load_record(mut self, record: Self::Record) -> Self {
        self.optimizer = self.optimizer.load_record(record);
        self
    }
}

/// Eight windows, of which the sixth and the last have a single target, and one between them has none.
fn uneven(vocab: usize) -> Vec<PackedSequence> {
    let mut windows = sequences(vocab);
    windows.truncate(8);
    windows[6].mask.fill(false);
    for window in [5, 7] {
        let mask = &mut windows[window].mask;
        let only = mask.iter().position(|has_target| *has_target);
        mask.fill(false);
        mask[only.expect("a target")] = true;
    }
    windows
}

/// How windows are cut into steps.
#[derive(Clone, Copy)]
struct Cut {
    /// Windows of a micro-batch.
    size: usize,
    micro_batches: usize,
    seed: Option<u64>,
    learning_rate: f64,
    steps: usize,
}

/// What a training that was cut so did.
struct Seen<A: AutodiffBackend> {
    gradients: Vec<Gradients>,
    reports: Vec<StepReport>,
    model: TrainedPupil<A>,
}

fn in_micro_batches<A: AutodiffBackend>(
    student: &Student<A>,
    teacher: &Arc<Teacher<A>>,
    windows: &[PackedSequence],
    cut: Cut,
    device: &A::Device,
) -> Seen<A> {
    let spy = Spy {
        optimizer: SgdConfig::new().init::<A, Pupil<A>>(),
        seen: Arc::default(),
    };
    let seen = spy.seen.clone();
    let diary = Arc::new(Mutex::new(Diary::default()));
    let micro_batches = NonZeroUsize::new(cut.micro_batches).expect("a micro-batch");
    let strategy = StepStrategy::new(cut.steps, diary.clone())
        .with_accumulation(micro_batches)
        .without_validation();
    let schedule = WarmupDecay::new(cut.learning_rate, cut.steps, 2, Decay::Cosine, 0.1);
    let learner = Learner::new(pupil(student.clone(), teacher), spy, schedule);
    let data = (
        loader(windows.to_vec(), cut.size, cut.seed, device),
        loader(windows.to_vec(), cut.size, None, device),
    );
    let (model, outcome) = launch(Interrupter::new(), strategy, learner, data);
    assert_eq!(outcome, Ok(Ending::Finished));
    let gradients = std::mem::take(&mut *seen.lock().expect("no thread has panicked"));
    let reports = std::mem::take(&mut diary.lock().expect("no thread has panicked").steps);
    Seen {
        gradients,
        reports,
        model,
    }
}

fn row(gradients: &Gradients) -> Vec<f64> {
    gradients.values().flatten().copied().collect()
}

fn micro_batches_take_the_step_of_their_batch<A: AutodiffBackend>(device: A::Device) {
    let (config, student, teacher) = pair::<A>(&device);
    let student = set_trainable(student, |_| true);
    let windows = uneven(config.vocab);
    let learning_rate = 0.5;
    let cut = |size, micro_batches| {
        let cut = Cut {
            size,
            micro_batches,
            seed: None,
            learning_rate: 2.0 * learning_rate, // half of it in the first of two steps of warm-up
            steps: 1,
        };
        in_micro_batches::<A>(&student, &teacher, &windows, cut, &device)
    };
    let whole = cut(8, 1);
    let expected = row(&whole.gradients[0]);
    let norm = expected.iter().map(|one| one * one).sum::<f64>().sqrt();
    let after: Vec<f64> = all_values(whole.model.student());
    let targets: usize = windows.iter().map(PackedSequence::num_targets).sum();
    // Backwards, a softmax is a difference of two terms that both hold a reciprocal.
    let estimates = 3.0 * 2.0 * reciprocal_error::<A>(&device);

    for micro_batches in [2, 4, 8] {
        let size = 8 / micro_batches;
        let found = cut(size, micro_batches);
        let (sums, whole_sums) = (found.reports[0].sums, whole.reports[0].sums);
        assert_eq!(
            (sums.tokens, whole_sums.tokens),
            (targets as f64, targets as f64)
        );
        assert!(found.gradients[0].keys().eq(whole.gradients[0].keys()));

        // As in `check_gradient`: three layers there and back, the sum over eight windows of ten
        // tokens and that over the vocabulary; and each micro-batch is weighed twice and added.
        let roundings = 2 * 3 * (3 * 24 + 2 * 32 + 24 + 32) + 80 + 23 + 3 * micro_batches;
        let bound = 2.0 * (rounding(roundings) + estimates) * norm;
        let tolerance = Tolerance::Uniform(bound);
        let deviation = assert_close(&row(&found.gradients[0]), &expected, &tolerance);
        let backend = A::name(&device);
        eprintln!("gradient of {micro_batches} micro-batches on {backend}: {deviation}");

        // The weights besides: the gradient's error at this rate, and the rounding of the difference.
        let bounds = after.iter().map(|value| {
            learning_rate * bound + 4.0 * UNIT_ROUNDOFF * (value.abs() + learning_rate * norm)
        });
        let bounds = Tolerance::Each(bounds.collect());
        assert_close(&all_values(found.model.student()), &after, &bounds);

        // The mean of the micro-batches' means is another gradient.
        let batches: Arc<dyn DataLoader<A, _>> = loader(windows.clone(), size, None, &device);
        let mut mean = vec![0.0; expected.len()];
        for batch in batches.iter() {
            let output = TrainStep::step(&pupil(student.clone(), &teacher), batch);
            let gradient = row(&gradients(&pupil(student.clone(), &teacher), &output.grads));
            for (sum, one) in mean.iter_mut().zip(gradient) {
                *sum += one / micro_batches as f64;
            }
        }
        assert_not_close(&mean, &expected, &tolerance);
    }
}

/// By how much of itself a reciprocal of this device is off, beyond rounding.
///
/// ndarray takes the processor's estimate, which is off by up to `1.5 * 2^-12` (Intel's manual, RCPPS),
/// for whole vectors and divides what is left over. So the same row has another gradient in another batch.
fn reciprocal_error<A: AutodiffBackend>(device: &A::Device) -> f64 {
    const ESTIMATE: f64 = 1.5 / 4096.0;
    let numbers: Vec<f32> = (0..64).map(|n| 1.0 + n as f32 / 64.0).collect();
    let found = values(&Tensor::<A, 1>::from_floats(numbers.as_slice(), device).recip());
    let errors = numbers.iter().zip(found);
    let worst = errors
        .map(|(number, found)| (f64::from(*number) * found - 1.0).abs())
        .fold(0.0, f64::max);
    assert!(worst <= ESTIMATE, "{worst}");
    if worst > 8.0 * UNIT_ROUNDOFF {
        ESTIMATE
    } else {
        0.0
    }
}

fn all_values<B: Backend, M: Module<B>>(module: &M) -> Vec<f64> {
    let parameters = parameters(module).into_values();
    let values = parameters.flat_map(|parameter| parameter.bits);
    values.map(|bits| f64::from(f32::from_bits(bits))).collect()
}

fn one_micro_batch_has_its_gradient_bit_for_bit<A: AutodiffBackend>(device: A::Device) {
    let (config, student, teacher) = pair::<A>(&device);
    let windows = uneven(config.vocab);
    let batches: Arc<dyn DataLoader<A, _>> = loader(windows.clone(), 3, None, &device);
    let expected: Vec<Gradients> = batches
        .iter()
        .map(|batch| {
            let pupil = pupil(student.clone(), &teacher);
            gradients(&pupil, &TrainStep::step(&pupil, batch).grads)
        })
        .collect();
    let cut = |size, micro_batches, steps| {
        let cut = Cut {
            size,
            micro_batches,
            seed: None,
            learning_rate: 0.0, // each step begins with the same weights
            steps,
        };
        in_micro_batches::<A>(&student, &teacher, &windows, cut, &device).gradients
    };
    assert_eq!(cut(3, 1, 3), expected);
    // Two batches of three, then the last one alone.
    assert_eq!(cut(3, 2, 2)[1], expected[2]);
    let alone = cut(1, 1, 8);
    for (index, gradient) in alone.iter().enumerate() {
        let is_zero = row(gradient).iter().all(|one| *one == 0.0);
        assert_eq!(is_zero, index == 6);
    }
    // One without a target changes nothing of the one before it.
    assert_eq!(cut(1, 2, 4)[3], alone[7]);
}

/// Ten sequences, four a step: 4, 4, 2 in every epoch, of the same shuffle.
fn steps_visit_the_same_text_in_batches_of_any_size<A: AutodiffBackend>(device: A::Device) {
    let (config, student, teacher) = pair::<A>(&device);
    let windows = sequences(config.vocab);
    let tokens = |size, micro_batches| {
        let cut = Cut {
            size,
            micro_batches,
            seed: Some(5),
            learning_rate: 0.1,
            steps: 8,
        };
        let seen = in_micro_batches::<A>(&student, &teacher, &windows, cut, &device);
        assert_eq!(seen.gradients.len(), 8);
        let reports = seen.reports.iter();
        reports
            .map(|report| (report.step, report.learning_rate, report.sums.tokens))
            .collect::<Vec<_>>()
    };
    let expected = tokens(4, 1);
    let of_epoch = |steps: std::ops::Range<usize>| {
        let steps = expected[steps].iter();
        steps.map(|(_, _, tokens)| *tokens).collect::<Vec<_>>()
    };
    assert_ne!(
        of_epoch(0..3),
        of_epoch(3..6),
        "the epochs would tell nothing"
    );
    assert_eq!(tokens(2, 2), expected);
    assert_eq!(tokens(1, 4), expected);
}

// ---------------------------------------------------------------- the clock

/// Under Burn's own loop too, since the optimizer advances it. A refused step is not taken.
fn a_clock_counts_the_steps_that_are_taken<A: AutodiffBackend>(device: A::Device) {
    let module = Two::<A>::new(&device);
    let clock = StepClock::new();
    let mut optimizer = StudentOptimizer::new(SgdConfig::new().init::<A, Two<A>>())
        .with_max_norm(2.5)
        .with_clock(clock.clone());
    let module = optimizer.step(
        1.0,
        module.clone(),
        gradients_of(&module, &GRADIENT, &device),
    );
    assert_eq!(clock.taken(), 1);
    let mut wrong = GRADIENT;
    wrong[2] = f32::NAN;
    let module = optimizer.step(1.0, module.clone(), gradients_of(&module, &wrong, &device));
    assert_eq!(clock.taken(), 1);
    let module = optimizer.step(1.0, module, GradientsParams::new());
    drop(module);
    assert_eq!(clock.taken(), 2);

    // The strategy keeps it whatever the optimizer, and counts what was taken before.
    let (config, student, teacher) = pair::<A>(&device);
    let hook = Arc::new(Mutex::new(Reader {
        clock: clock.clone(),
        read: Vec::new(),
    }));
    let strategy = StepStrategy::new(8, hook.clone())
        .resuming_at(5)
        .with_clock(clock);
    let optimizer = adamw().init::<A, Pupil<A>>();
    let learner = Learner::new(pupil(student, &teacher), optimizer, ConstantLr::new(1e-2));
    let data = loaders::<A>(sequences(config.vocab), &device);
    let (_, outcome) = launch(Interrupter::new(), strategy, learner, data);
    assert_eq!(outcome, Ok(Ending::Finished));
    let hook = hook.lock().expect("no thread has panicked");
    assert_eq!(hook.read, [(6, 6), (7, 7), (8, 8)]);
}

/// Reads a clock beside each report.
struct Reader {
    clock: StepClock,
    read: Vec<(usize, usize)>,
}

impl<M> StepHook<M> for Reader {
    fn on_step(&mut self, report: &StepReport, _model: &M) -> ControlFlow<()> {
        self.read.push((report.step, self.clock.taken()));
        ControlFlow::Continue(())
    }
}

/// A rank that becomes active adds nothing to the kernel yet: its `B` is zero up to the step that it is
/// active in. Its `A` has no gradient before `B` is something.
fn ranks_of_a_map_become_active_one_after_another<A: AutodiffBackend>(device: A::Device) {
    let (teacher, student) = (HeadGrid::new(4, 3), HeadGrid::new(2, 3));
    let pairs = |parameter: &Parameter| -> Vec<Vec<u32>> {
        let pairs = parameter.bits.chunks_exact(parameter.bits.len() / 3);
        pairs.map(<[u32]>::to_vec).collect()
    };
    for kind in [ProjectionKind::Qkv, ProjectionKind::Output] {
        let config = dense_config(kind, 6, teacher, student, MapKind::Kronecker(3));
        let c = Numbers::new(5).tensor::<A, 2>(config.c_shape(), &device);
        let mut layer = config.init(c).expect("a layer");
        let clock = StepClock::new();
        let adamw = AdamWConfig::new().with_weight_decay(0.0);
        let ranks = RankSchedule {
            from: NonZeroUsize::MIN,
            every: NonZeroUsize::MIN.saturating_add(1),
        };
        let mut optimizer = StudentOptimizer::new(adamw.init::<A, LtiDense<A>>())
            .with_ranks(Some(ranks))
            .with_clock(clock);
        let (of_a, of_b) = ([1, 1, 1, 2, 2, 3], [1, 1, 2, 2, 3, 3]);
        for (moves_in_a, moves_in_b) in of_a.into_iter().zip(of_b) {
            let before = parameters(&layer);
            for empty in &pairs(&before[&leaf_of(kind, "b")])[moves_in_b..] {
                assert!(empty.iter().all(|bits| f32::from_bits(*bits) == 0.0));
            }
            let loss = layer.kernel().add_scalar(0.3).powi_scalar(2).sum();
            let found = GradientsParams::from_grads(loss.backward(), &layer);
            layer = optimizer.step(1e-2, layer, found);
            let after = parameters(&layer);
            for (leaf, moving) in [("a", moves_in_a), ("b", moves_in_b)] {
                let name = leaf_of(kind, leaf);
                let moved = pairs(&before[&name]).into_iter().zip(pairs(&after[&name]));
                let moved: Vec<bool> = moved.map(|(before, after)| before != after).collect();
                assert_eq!(
                    moved,
                    [0, 1, 2].map(|pair| pair < moving),
                    "{kind:?} {leaf}"
                );
            }
        }
    }
}

fn a_training_beyond_its_end_is_an_error<A: AutodiffBackend>(device: A::Device) {
    let run = |resumed_at| {
        let (config, student, teacher) = pair::<A>(&device);
        let diary = Arc::new(Mutex::new(Diary::default()));
        let strategy = StepStrategy::new(8, diary.clone()).resuming_at(resumed_at);
        let optimizer = adamw().init::<A, Pupil<A>>();
        let learner = Learner::new(pupil(student, &teacher), optimizer, ConstantLr::new(1e-2));
        let data = loaders::<A>(sequences(config.vocab), &device);
        let (_, outcome) = launch(Interrupter::new(), strategy, learner, data);
        let diary = diary.lock().expect("no thread has panicked");
        assert!(diary.steps.is_empty());
        outcome
    };
    assert_eq!(run(8), Ok(Ending::Finished));
    let error = run(9).expect_err("there are only eight");
    assert!(
        error.to_string().contains("step 9 of a training of 8"),
        "{error}"
    );
}
