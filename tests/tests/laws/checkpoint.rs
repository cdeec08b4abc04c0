//! Laws of checkpoints: a training that goes on from one is a training that never stopped, a folder
//! that bears a step's name is whole, and what does not fit is named.

use std::collections::BTreeMap;
use std::fs;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use burn::module::{AutodiffModule, Module, ModuleVisitor, Param, ParamId};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::{AdamW, GradientsParams, Optimizer};
use burn::prelude::*;
use burn::tensor::DType;
use burn::tensor::backend::AutodiffBackend;
use burn::train::{Interrupter, Learner};
use burn_lti::decoder::{CausalLm, FeatureTap, Head, TokenBatch};
use burn_lti::loss::DistillationLoss;
use burn_lti::parameters::set_trainable;
use burn_lti::train::{
    Checkpoint, CheckpointDir, CheckpointError, Decay, Distiller, Ending, RunState, StepClock,
    StepHook, StepReport, StepStrategy, StudentOptimizer, WarmupDecay,
};
use burn_lti_llama::data::loader;
use burn_lti_tests::llama::load;
use burn_lti_tests::numbers::values;
use burn_lti_tests::params::{fill_random, parameters};
use burn_lti_tests::toy::ToyConfig;
use burn_lti_tests::training::{adamw, launch};
use burn_lti_tests::{chain, may_be_simulated, on_every_backend};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::train::{Pupil, Teacher, pair, pupil, sequences};

on_every_backend![
    a_training_that_goes_on_is_one_that_never_stopped,
    a_trained_llama_goes_on_with_its_head_tied,
    a_head_that_is_the_embedding_stays_it,
    a_checkpoint_holds_what_trains_and_nothing_else,
    what_was_cut_off_or_damaged_is_passed_over_and_removed,
    the_newest_and_the_best_are_kept,
    a_caller_finds_its_numbers_again,
    a_checkpoint_of_another_model_is_refused_by_name,
    a_forged_checkpoint_is_refused,
    a_folder_that_cannot_be_used_is_an_error,
    a_parameter_whose_moments_would_change_type_is_not_saved,
    a_step_is_saved_once_and_in_order,
];

// ---------------------------------------------------------------- going on

const STEPS: usize = 12;

/// What a training left: all of it in bits.
#[derive(Debug, PartialEq)]
struct Left {
    /// Step and loss.
    losses: Vec<(usize, u64)>,
    trained: BTreeMap<String, Vec<u32>>,
    moments: Moments,
}

/// Of each parameter that AdamW has moved: its count of steps and both moments, by name.
type Moments = BTreeMap<String, (usize, Vec<u32>, Vec<u32>)>;

/// Saves and stops after a step.
struct Stopper<O> {
    checkpoints: CheckpointDir,
    optimizer: StudentOptimizer<O>,
    clock: StepClock,
    last: usize,
    losses: Vec<(usize, u64)>,
}

impl<A, M, T, O> StepHook<Distiller<A, M, Arc<T>>> for Stopper<O>
where
    A: AutodiffBackend,
    M: CausalLm<A> + AutodiffModule<A, InnerModule: CausalLm<A::InnerBackend>>,
    T: CausalLm<A::InnerBackend> + Sync + 'static,
    O: Optimizer<Distiller<A, M, Arc<T>>, A>,
{
    fn on_step(&mut self, report: &StepReport, model: &Distiller<A, M, Arc<T>>) -> ControlFlow<()> {
        assert_eq!(self.clock.taken(), report.step);
        self.losses.push((report.step, report.sums.loss.to_bits()));
        if report.step < self.last {
            return ControlFlow::Continue(());
        }
        let state = RunState::at(report.step);
        let saved = self.checkpoints.save(model, &self.optimizer, state);
        assert_eq!(saved.expect("a checkpoint").run().step, report.step);
        ControlFlow::Break(())
    }
}

/// Trains a distiller that was made anew, from where `dir` has it, to the end of step `last` of
/// [`STEPS`], and saves it there. Ten sequences in steps of four, cut into micro-batches: three steps are
/// once through the data.
fn train_to<A, M, T>(
    last: usize,
    dir: &Path,
    micro_batches: usize,
    distiller: Distiller<A, M, Arc<T>>,
    vocab: usize,
    device: &A::Device,
) -> Left
where
    A: AutodiffBackend,
    M: CausalLm<A> + AutodiffModule<A, InnerModule: CausalLm<A::InnerBackend>> + 'static,
    T: CausalLm<A::InnerBackend> + Sync + 'static,
{
    let optimizer = adamw().init::<A, Distiller<A, M, Arc<T>>>();
    let clock = StepClock::new();
    let optimizer = StudentOptimizer::new(optimizer)
        .with_max_norm(1.0)
        .with_clock(clock.clone());
    let checkpoints = CheckpointDir::open(dir, NonZeroUsize::MIN).expect("a folder");
    let (distiller, optimizer, taken) = match checkpoints.latest() {
        None => (distiller, optimizer, 0),
        Some(latest) => {
            let restored = latest.restore_into(distiller, optimizer);
            let (distiller, optimizer) = restored.expect("a checkpoint that fits");
            (distiller, optimizer, latest.run().step)
        }
    };

    let hook = Arc::new(Mutex::new(Stopper {
        checkpoints,
        optimizer: optimizer.clone(),
        clock: clock.clone(),
        last,
        losses: Vec::new(),
    }));
    let strategy = StepStrategy::new(STEPS, hook.clone())
        .with_accumulation(NonZeroUsize::new(micro_batches).expect("a micro-batch"))
        .with_measures(optimizer.measures())
        .with_clock(clock)
        .without_validation()
        .resuming_at(taken);
    let schedule = WarmupDecay::new(1e-2, STEPS, 3, Decay::Cosine, 0.1);
    let learner = Learner::new(distiller, optimizer.clone(), schedule);
    let data = || sequences(vocab);
    let data = (
        loader(data(), 4 / micro_batches, Some(5), device),
        loader(data(), 4, None, device),
    );
    let (model, outcome) = launch(Interrupter::new(), strategy, learner, data);
    let expected = match last {
        STEPS => Ending::Finished,
        _ => Ending::Stopped,
    };
    assert_eq!(outcome, Ok(expected));

    let hook = hook.lock().expect("no thread has panicked");
    let mut reader = MomentReader::<A, M, T> {
        path: Vec::new(),
        optimizer: &optimizer,
        found: Moments::new(),
    };
    model.visit(&mut reader);
    Left {
        losses: hook.losses.clone(),
        trained: bits(&model),
        moments: reader.found,
    }
}

type Shared<A, M, T> = StudentOptimizer<OptimizerAdaptor<AdamW, Distiller<A, M, Arc<T>>, A>>;

/// Reads the moments of the parameters of a trained distiller.
struct MomentReader<'a, A, M, T>
where
    A: AutodiffBackend,
    M: CausalLm<A> + AutodiffModule<A, InnerModule: CausalLm<A::InnerBackend>>,
    T: CausalLm<A::InnerBackend> + Sync,
{
    path: Vec<String>,
    optimizer: &'a Shared<A, M, T>,
    found: Moments,
}

impl<A, M, T> ModuleVisitor<A::InnerBackend> for MomentReader<'_, A, M, T>
where
    A: AutodiffBackend,
    M: CausalLm<A> + AutodiffModule<A, InnerModule: CausalLm<A::InnerBackend>>,
    T: CausalLm<A::InnerBackend> + Sync,
{
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<A::InnerBackend, D>>) {
        let mut record = self.optimizer.to_record();
        if let Some(record) = record.remove(&param.id) {
            let momentum = record.into_state::<D>().momentum;
            let bits = |moment: &Tensor<A::InnerBackend, D>| {
                let values = moment.to_data();
                values.iter::<f32>().map(f32::to_bits).collect::<Vec<u32>>()
            };
            let (one, two) = (bits(&momentum.moment_1), bits(&momentum.moment_2));
            let name = self.path.join(".");
            self.found.insert(name, (momentum.time, one, two));
        }
    }
}

fn bits<B: Backend, M: Module<B>>(module: &M) -> BTreeMap<String, Vec<u32>> {
    let parameters = parameters(module).into_iter();
    parameters.map(|(name, one)| (name, one.bits)).collect()
}

/// Stops after each of `stops`, makes everything anew and goes on to the end.
pub(crate) fn check_going_on<A, M, T>(
    fresh: impl Fn() -> Distiller<A, M, Arc<T>>,
    stops: impl IntoIterator<Item = usize>,
    micro_batches: usize,
    vocab: usize,
    device: &A::Device,
) where
    A: AutodiffBackend,
    M: CausalLm<A> + AutodiffModule<A, InnerModule: CausalLm<A::InnerBackend>> + 'static,
    T: CausalLm<A::InnerBackend> + Sync + 'static,
{
    let train_to = |last, dir: &Path| train_to(last, dir, micro_batches, fresh(), vocab, device);
    let folder = TempDir::new().expect("a folder");
    let expected = train_to(STEPS, folder.path());
    assert_eq!(expected.losses.len(), STEPS);
    assert!(!expected.moments.is_empty());
    assert!(expected.moments.values().all(|(time, _, _)| *time == STEPS));

    for stop in stops {
        let folder = TempDir::new().expect("a folder");
        let before = train_to(stop, folder.path());
        assert!(before.trained != expected.trained && before.moments != expected.moments);
        let after = train_to(STEPS, folder.path());
        assert_eq!(before.losses, expected.losses[..stop], "up to {stop}");
        assert_eq!(after.losses, expected.losses[stop..], "after {stop}");
        assert!(after.trained == expected.trained, "weights after {stop}");
        assert!(after.moments == expected.moments, "moments after {stop}");
    }
}

fn a_training_that_goes_on_is_one_that_never_stopped<A: AutodiffBackend>(device: A::Device) {
    let vocab = ToyConfig::new(2, 1).vocab;
    // Each stop is a training of its own, which takes a simulated GPU half a minute. What is saved does not
    // depend on the device, and two micro-batches are in the law that follows.
    let (stops, cuts) = match may_be_simulated::<A>(&device) {
        true => (5..6, 1..2),
        false => (1..STEPS, 1..3),
    };
    for micro_batches in cuts {
        let fresh = || {
            let (_, student, teacher) = pair::<A>(&device);
            pupil(student, &teacher)
        };
        let ids = |pupil: &Pupil<A>| {
            let parameters = parameters(pupil).into_values();
            parameters.map(|one| one.id).collect::<Vec<ParamId>>()
        };
        assert_ne!(
            ids(&fresh()),
            ids(&fresh()),
            "another process has other ids"
        );
        check_going_on(fresh, stops.clone(), micro_batches, vocab, &device);
    }
}

/// Everything trains, the embedding that is the head besides.
fn a_trained_llama_goes_on_with_its_head_tied<A: AutodiffBackend>(device: A::Device) {
    let teacher = Arc::new(load::<A::InnerBackend>("untied_bias", &device));
    let student = || set_trainable(load::<A>("tied", &device), |_| true);
    let vocab = student().config().vocab_size;
    let fresh = || {
        let loss = DistillationLoss::new(0.7, 2.0, 5).expect("settings");
        Distiller::new(student(), teacher.clone(), loss).expect("one vocabulary")
    };
    check_going_on(fresh, [5], 2, vocab, &device);

    let folder = TempDir::new().expect("a folder");
    train_to(2, folder.path(), 1, fresh(), vocab, &device);
    let checkpoints = CheckpointDir::open(folder.path(), NonZeroUsize::MIN).expect("a folder");
    let latest = checkpoints.latest().expect("a checkpoint");
    let embedding = "student.model.embed_tokens.weight";
    assert!(names(latest).contains(&embedding.to_owned()));
    assert!(names(latest).iter().all(|name| !name.contains("lm_head")));
    let optimizer = StudentOptimizer::new(adamw().init());
    let (restored, _) = latest.restore_into(fresh(), optimizer).expect("a fit");
    let head = restored.student().head();
    assert!(head.trains);
    let [rows, columns] = head.weight.dims();
    let head = head.weight.transpose();
    assert_eq!(head.dims(), [columns, rows]);
    let found: Vec<u32> = values(&head)
        .iter()
        .map(|v| (*v as f32).to_bits())
        .collect();
    assert!(found == parameters(&restored)[embedding].bits);
    assert!(found != parameters(&fresh())[embedding].bits);
}

/// A language model whose head is its embedding, turned.
#[derive(Module, Debug)]
struct TiedLm<B: Backend> {
    table: Embedding<B>,
    mix: Linear<B>,
    #[module(skip)]
    _backend: PhantomData<B>,
}

impl<B: Backend> CausalLm<B> for TiedLm<B> {
    fn layers(&self) -> usize {
        0
    }

    fn forward(&self, batch: &TokenBatch<B>, _tap: &mut FeatureTap<'_, B>) -> Tensor<B, 3> {
        let states = self.table.forward(batch.tokens.clone());
        states.clone() + self.mix.forward(states)
    }

    fn head(&self) -> Head<B> {
        Head {
            weight: self.table.weight.val().transpose(),
            trains: self.table.weight.is_require_grad(),
            cap: None,
        }
    }
}

fn a_head_that_is_the_embedding_stays_it<A: AutodiffBackend>(device: A::Device) {
    let config = ToyConfig::new(4, 2);
    let teacher: Arc<Teacher<A>> = Arc::new(config.random(1, &device));
    let fresh = || {
        let student = TiedLm::<A> {
            table: EmbeddingConfig::new(config.vocab, 6).init(&device),
            mix: LinearConfig::new(6, 6).init(&device),
            _backend: PhantomData,
        };
        let student = fill_random(student, 7);
        Distiller::new(student, teacher.clone(), DistillationLoss::KL).expect("one vocabulary")
    };
    check_going_on(fresh, [1, 7], 2, config.vocab, &device);
}

// ---------------------------------------------------------------- what is in it

const TRAINED: &str = "trained.safetensors";
const OPTIMIZER: &str = "optimizer.bin";
const STATE: &str = "state.json";

fn names(checkpoint: &Checkpoint) -> Vec<String> {
    let bytes = fs::read(checkpoint.path().join(TRAINED)).expect("a file");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    file.names().into_iter().map(str::to_owned).collect()
}

fn a_checkpoint_holds_what_trains_and_nothing_else<A: AutodiffBackend>(device: A::Device) {
    let (config, student, teacher) = pair::<A>(&device);
    let pupil = pupil(student, &teacher);
    let parameters = parameters(&pupil);
    let folder = TempDir::new().expect("a folder");
    train_to(3, folder.path(), 1, pupil, config.vocab, &device);

    let path = folder.path().join("step-00000003");
    let mut files = entries(&path);
    files.sort();
    assert_eq!(files, [OPTIMIZER, STATE, TRAINED]);
    let checkpoint = Checkpoint::open(&path).expect("a checkpoint");
    let mut found = names(&checkpoint);
    found.sort();
    let trained = parameters.iter().filter(|(_, parameter)| parameter.trains);
    let trained: Vec<&String> = trained.map(|(name, _)| name).collect();
    assert_eq!(found.iter().collect::<Vec<_>>(), trained);

    // A checkpoint of the whole module would hold the frozen values as well.
    let size = |file: &str| fs::metadata(path.join(file)).expect("a file").len();
    let [tensors, moments, state] = [TRAINED, OPTIMIZER, STATE].map(size);
    let bytes = |frozen: &dyn Fn(&str) -> bool| -> u64 {
        let frozen = parameters
            .iter()
            .filter(|(name, one)| !one.trains && frozen(name));
        frozen.map(|(_, one)| 4 * one.bits.len() as u64).sum()
    };
    let (kernels, rest) = (
        bytes(&|name| name.ends_with(".c")),
        bytes(&|name| !name.ends_with(".c")),
    );
    assert!(kernels > 0);
    let all = tensors + moments + state;
    eprintln!(
        "a checkpoint on {}: {all} bytes ({TRAINED} {tensors}, {OPTIMIZER} {moments}, {STATE} {state}); \
         with the kernels C {}, with all that is frozen {}",
        A::name(&device),
        all + kernels,
        all + kernels + rest
    );
    let values: u64 = parameters
        .values()
        .filter(|one| one.trains)
        .map(|one| 4 * one.bits.len() as u64)
        .sum();
    assert!(tensors >= values && moments >= 2 * values);
}

fn entries(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a folder");
    let name = |entry: fs::DirEntry| entry.file_name().into_string().expect("a name");
    entries
        .map(|entry| name(entry.expect("an entry")))
        .collect()
}

// ---------------------------------------------------------------- the folder

type Small<A> = Linear<A>;
type SmallOptimizer<A> = OptimizerAdaptor<AdamW, Small<A>, A>;

/// A small module and an optimizer that has moved it once.
fn small<A: AutodiffBackend>(device: &A::Device) -> (Small<A>, SmallOptimizer<A>) {
    let module: Small<A> = fill_random(LinearConfig::new(2, 3).init(device), 3);
    let mut optimizer = adamw().init();
    let loss = module.forward(Tensor::<A, 2>::ones([1, 2], device)).sum();
    let gradients = GradientsParams::from_grads(loss.backward(), &module);
    (optimizer.step(0.1, module, gradients), optimizer)
}

fn keeping(dir: &Path, keep: usize) -> CheckpointDir {
    let keep = NonZeroUsize::new(keep).expect("one at least");
    CheckpointDir::open(dir, keep).expect("a folder")
}

fn save<A: AutodiffBackend>(checkpoints: &mut CheckpointDir, step: usize, device: &A::Device) {
    let (module, optimizer) = small::<A>(device);
    let saved = checkpoints.save(&module, &optimizer, RunState::at(step));
    assert_eq!(saved.expect("a checkpoint").run().step, step);
}

fn steps_of(checkpoints: &CheckpointDir) -> Vec<String> {
    let mut names = entries(
        checkpoints
            .latest()
            .expect("one")
            .path()
            .parent()
            .expect("a folder"),
    );
    names.sort();
    names
}

fn what_was_cut_off_or_damaged_is_passed_over_and_removed<A: AutodiffBackend>(device: A::Device) {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 7] = [
        ("was never finished", |step| {
            fs::rename(step, step.with_file_name("writing-step-00000003")).expect("a rename");
        }),
        ("SHA-256 differs", |step| truncate(&step.join(TRAINED))),
        ("SHA-256 differs", |step| truncate(&step.join(OPTIMIZER))),
        ("is no state of a checkpoint", |step| {
            truncate(&step.join(STATE))
        }),
        ("cannot use ", |step| {
            fs::remove_file(step.join(STATE)).expect("a file")
        }),
        ("cannot use ", |step| {
            fs::remove_file(step.join(TRAINED)).expect("a file")
        }),
        ("is no state of a checkpoint", |step| {
            fs::write(step.join(STATE), "{\"schema\": 4}").expect("a file")
        }),
    ];
    for (expected, damage) in damages {
        let folder = TempDir::new().expect("a folder");
        let dir = folder.path().join("checkpoints");
        let mut checkpoints = keeping(&dir, 3);
        assert!(checkpoints.latest().is_none(), "there is not even a folder");
        for step in 1..=3 {
            save::<A>(&mut checkpoints, step, &device);
        }
        damage(&dir.join("step-00000003"));
        fs::write(dir.join("notes.txt"), "mine").expect("a file");
        fs::create_dir(dir.join("step-by-step")).expect("a folder");

        let mut checkpoints = keeping(&dir, 3);
        assert_eq!(checkpoints.latest().expect("step 2").run().step, 2);
        let [broken] = checkpoints.broken() else {
            panic!("{expected}: {:?}", checkpoints.broken());
        };
        assert!(broken.path.starts_with(&dir));
        let reason = chain(&broken.reason);
        assert!(reason.contains(expected), "{reason}");
        assert!(reason.contains("step-00000003"), "{reason}");

        // The step comes again and takes its place.
        save::<A>(&mut checkpoints, 3, &device);
        assert!(checkpoints.broken().is_empty());
        let expected = [
            "notes.txt",
            "step-00000001",
            "step-00000002",
            "step-00000003",
            "step-by-step",
        ];
        assert_eq!(steps_of(&checkpoints), expected);
        assert_eq!(keeping(&dir, 3).latest().expect("step 3").run().step, 3);
    }
}

fn truncate(file: &Path) {
    let bytes = fs::read(file).expect("a file");
    fs::write(file, &bytes[..bytes.len() - 1]).expect("a file");
}

fn the_newest_and_the_best_are_kept<A: AutodiffBackend>(device: A::Device) {
    let folder = TempDir::new().expect("a folder");
    let scores = [None, Some(0.5), Some(0.1), Some(0.4), Some(0.1), None];
    let (module, optimizer) = small::<A>(&device);
    // Taken up again after each, or not: the same is kept.
    for reopened in [false, true] {
        let dir = folder.path().join(format!("{reopened}"));
        let mut checkpoints = keeping(&dir, 2);
        for (score, step) in scores.into_iter().zip(1..) {
            let run = RunState {
                score,
                ..RunState::at(step)
            };
            let saved = checkpoints.save(&module, &optimizer, run);
            assert_eq!(saved.expect("a checkpoint").run().score, score);
            if reopened {
                checkpoints = keeping(&dir, 2);
            }
            if step == 2 {
                assert_eq!(steps_of(&checkpoints), ["step-00000001", "step-00000002"]);
            }
        }
        let kept = ["step-00000003", "step-00000005", "step-00000006"];
        assert_eq!(steps_of(&checkpoints), kept);
        assert_eq!(checkpoints.latest().expect("one").run().step, 6);
        let best = checkpoints.best().expect("one with a score").run();
        assert_eq!((best.step, best.score), (3, Some(0.1)));
    }
    let mut unscored = keeping(&folder.path().join("unscored"), 1);
    save::<A>(&mut unscored, 4, &device);
    assert!(unscored.best().is_none());
}

fn a_caller_finds_its_numbers_again<A: AutodiffBackend>(device: A::Device) {
    let folder = TempDir::new().expect("a folder");
    let mut checkpoints = keeping(folder.path(), 1);
    let (module, optimizer) = small::<A>(&device);
    let awkward = [0.1 + 0.2, 1.0 / 3.0, f64::MIN_POSITIVE, 5e-324, 1e300 / 3.0];
    let run = RunState {
        step: 7,
        score: Some(2.0 / 3.0),
        caller: json!({ "sums": awkward, "tokens": u64::MAX, "note": "naïve" }),
    };
    let saved = checkpoints.save(&module, &optimizer, run.clone());
    assert_eq!(saved.expect("a checkpoint").run(), &run);
    let again = keeping(folder.path(), 1);
    let found = again.latest().expect("step 7").run().clone();
    let sums = found.caller["sums"].as_array().expect("numbers").iter();
    let sums: Vec<u64> = sums
        .map(|sum| sum.as_f64().expect("a number").to_bits())
        .collect();
    assert_eq!(sums, awkward.map(f64::to_bits));
    assert_eq!(found, run);
}

// ---------------------------------------------------------------- what does not fit

fn a_checkpoint_of_another_model_is_refused_by_name<A: AutodiffBackend>(device: A::Device) {
    let folder = TempDir::new().expect("a folder");
    let mut checkpoints = keeping(folder.path(), 1);
    let (module, optimizer) = small::<A>(&device);
    let only_weight = set_trainable(module.clone(), |parameter| parameter.name == "weight");
    let saved = checkpoints.save(&only_weight, &optimizer, RunState::at(1));
    let one = saved.expect("a checkpoint");
    let both = checkpoints.save(&module, &optimizer, RunState::at(2));
    let both = both.expect("a checkpoint");
    let refused = |checkpoint: &Checkpoint, module: Small<A>| {
        let found = checkpoint.restore_into(module, adamw().init::<A, Small<A>>());
        found.map(|_| ()).expect_err("it does not fit")
    };

    // The first was removed by the second.
    assert!(!one.path().exists());
    let error = refused(&one, only_weight.clone());
    assert!(matches!(&error, CheckpointError::Io { .. }), "{error}");

    let dir = folder.path().join("one");
    let saved = keeping(&dir, 1).save(&only_weight, &optimizer, RunState::at(1));
    let error = refused(&saved.expect("a checkpoint"), module.clone());
    assert!(
        error.to_string().contains("has no tensor `bias`"),
        "{error}"
    );

    let error = refused(&both, only_weight);
    assert!(
        error
            .to_string()
            .contains("holds `bias`, which does not train"),
        "{error}"
    );

    let wider: Small<A> = LinearConfig::new(2, 4).init(&device);
    let error = refused(&both, wider);
    let text = error.to_string();
    assert!(
        text.contains("`bias` is [3]") && text.contains("and [4]"),
        "{error}"
    );

    // What fits comes with values and ids.
    let other: Small<A> = LinearConfig::new(2, 3).init(&device);
    let restored = both.restore_into(other, adamw().init::<A, Small<A>>());
    let (restored, _) = restored.expect("it fits");
    assert_eq!(parameters(&restored), parameters(&module));
}

/// Puts other bytes in place of one of the files, with their hash.
fn forge(checkpoint: &Checkpoint, file: &str, bytes: &[u8]) -> Checkpoint {
    let path = checkpoint.path();
    fs::write(path.join(file), bytes).expect("a file");
    let key = match file {
        TRAINED => "trained_sha256",
        _ => "optimizer_sha256",
    };
    let mut state: Value = state_of(path);
    state[key] = format!("{:x}", Sha256::digest(bytes)).into();
    fs::write(path.join(STATE), state.to_string()).expect("a file");
    Checkpoint::open(path).expect("hashes that fit")
}

fn state_of(path: &Path) -> Value {
    let text = fs::read(path.join(STATE)).expect("a file");
    serde_json::from_slice(&text).expect("an object")
}

fn a_forged_checkpoint_is_refused<A: AutodiffBackend>(device: A::Device) {
    let (module, optimizer) = small::<A>(&device);
    let folder = TempDir::new().expect("a folder");
    let checkpoint = |name: &str| {
        let mut checkpoints = keeping(&folder.path().join(name), 1);
        let saved = checkpoints.save(&module, &optimizer, RunState::at(1));
        saved.expect("a checkpoint")
    };
    let refused = |checkpoint: &Checkpoint| {
        let optimizer = adamw().init::<A, Small<A>>();
        let found = checkpoint.restore_into(module.clone(), optimizer);
        let error = found.map(|_| ()).expect_err("it was forged");
        assert!(!error.to_string().is_empty());
        error
    };
    let file = |dtype: Dtype, ids: &[&str]| {
        let zeros = [0u8; 6 * 4];
        let tensor = |shape: &[usize]| {
            let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
            TensorView::new(dtype, shape.to_vec(), &zeros[..bytes]).expect("a tensor")
        };
        let tensors = [("weight", tensor(&[2, 3])), ("bias", tensor(&[3]))];
        let ids = ids.iter().map(|id| ((*id).to_owned(), "7".to_owned()));
        safetensors::serialize(tensors, Some(ids.collect())).expect("a file")
    };
    let both = ["bias", "weight"];

    let empty = forge(&checkpoint("empty"), TRAINED, b"");
    let error = refused(&empty);
    assert!(error.to_string().contains("are no safetensors"), "{error}");
    assert!(chain(&error).len() > error.to_string().len(), "{error}");

    let anonymous = forge(
        &checkpoint("anonymous"),
        TRAINED,
        &file(Dtype::F32, &both[..1]),
    );
    let error = refused(&anonymous);
    assert!(
        error.to_string().contains("no parameter id for `weight`"),
        "{error}"
    );

    let half = forge(&checkpoint("half"), TRAINED, &file(Dtype::BF16, &both));
    let error = refused(&half);
    assert!(error.to_string().contains("`bias` is BF16"), "{error}");

    let amnesic = forge(&checkpoint("amnesic"), OPTIMIZER, b"");
    let error = refused(&amnesic);
    assert!(
        error.to_string().contains("is no state of an optimizer"),
        "{error}"
    );

    for schema in [3, 5] {
        let name = format!("schema-{schema}");
        let other = checkpoint(&name);
        let mut state = state_of(other.path());
        state["schema"] = schema.into();
        fs::write(other.path().join(STATE), state.to_string()).expect("a file");
        let expected = format!("has schema {schema}, this version reads 4: use the version that");
        let error = Checkpoint::open(other.path()).expect_err("another version's");
        assert!(error.to_string().contains(&expected), "{error}");
        // Another version's may well be whole: nothing is passed over, nothing removed.
        let error = CheckpointDir::open(folder.path().join(&name), NonZeroUsize::MIN);
        let error = error.expect_err("another version's");
        assert!(error.to_string().contains(&expected), "{error}");
    }
}

fn a_folder_that_cannot_be_used_is_an_error<A: AutodiffBackend>(device: A::Device) {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("file");
    fs::write(&file, "").expect("a file");
    let error = CheckpointDir::open(&file, NonZeroUsize::MIN).expect_err("a file");
    assert!(matches!(&error, CheckpointError::Io { path, .. } if *path == file));
    assert!(chain(&error).contains("file"), "{error}");

    let mut checkpoints = keeping(&folder.path().join("checkpoints"), 1);
    fs::write(folder.path().join("checkpoints"), "").expect("a file");
    let (module, optimizer) = small::<A>(&device);
    let error = checkpoints.save(&module, &optimizer, RunState::at(1));
    assert!(matches!(error, Err(CheckpointError::Io { .. })));
    assert!(checkpoints.latest().is_none());
}

fn a_parameter_whose_moments_would_change_type_is_not_saved<A: AutodiffBackend>(device: A::Device) {
    let others = [DType::BF16, DType::F16, DType::F64];
    let own = Tensor::<A, 1>::zeros([1], &device).dtype();
    let mut others = others
        .into_iter()
        .filter(|dtype| A::supports_dtype(&device, *dtype));
    let Some(other) = others.find(|dtype| *dtype != own) else {
        return; // a device of one float type
    };
    let folder = TempDir::new().expect("a folder");
    let mut checkpoints = keeping(folder.path(), 1);
    let (mut module, optimizer) = small::<A>(&device);
    module.weight = module.weight.map(|weight| {
        let other = weight.inner().cast(other);
        Tensor::from_inner(other).require_grad()
    });
    let error = checkpoints.save(&module, &optimizer, RunState::at(1));
    let error = error.expect_err("another type");
    let (text, trains) = (error.to_string(), format!("`weight` trains in {other:?}"));
    assert!(
        text.contains(&trains) && text.ends_with(&format!("in {own:?}")),
        "{error}"
    );
    assert!(entries(folder.path()).is_empty(), "what was begun is left");
}

fn a_step_is_saved_once_and_in_order<A: AutodiffBackend>(device: A::Device) {
    let folder = TempDir::new().expect("a folder");
    let mut checkpoints = keeping(folder.path(), 2);
    save::<A>(&mut checkpoints, 5, &device);
    let (module, optimizer) = small::<A>(&device);
    for earlier in [4, 5] {
        let error = checkpoints.save(&module, &optimizer, RunState::at(earlier));
        let error = error.expect_err("there is one of step 5");
        let expected = format!("a checkpoint of step 5, so none of step {earlier}");
        assert!(error.to_string().contains(&expected), "{error}");
        assert!(error.to_string().contains("own"), "no way out: {error}");
    }
    for wrong in [f64::NAN, f64::INFINITY] {
        let run = RunState {
            score: Some(wrong),
            ..RunState::at(6)
        };
        let error = checkpoints.save(&module, &optimizer, run);
        let error = error.expect_err("no score");
        assert!(error.to_string().contains("the score of step 6"), "{error}");
    }
    let names: Vec<PathBuf> = vec![folder.path().join("step-00000005")];
    assert_eq!(names, [checkpoints.latest().expect("step 5").path()]);
    assert_eq!(steps_of(&checkpoints), ["step-00000005"]);
}
