//! Our kernels, layers and losses beside what MaxText computed (`fixtures/maxtext/README.md`).
//!
//! The fixtures are those of this repository, or the folder in `BURN_LTI_GOLDEN_DIR`: cases, names
//! and sizes come from its `index.json` and its tensors alone.
//!
//! # Tolerances
//!
//! With `u = 2^-24`, `n` roundings move a sum by at most `6 sqrt(n) u` of the size of its partial
//! sums (`burn_lti_tests::close`). The float64 oracle follows kernel, output and gradients stage by
//! stage and says, value by value, what each may contribute (`burn_lti_tests::oracle`). Reference and
//! toolkit are both float32 and may err in opposite directions: twice that.
//!
//! | stage | roundings `n` |
//! |---|---|
//! | kernel, factored | `x + y` |
//! | kernel, general | `x y` |
//! | output | `d_input + 1` |
//! | its square and mean | 3 |
//! | gradient of kernel and bias | rows of the input |
//! | gradient of `W` | `d_model` |
//! | gradients of `A`, `B` | `d_model m + m`, `m` the largest of `x, y, u, v` |
//!
//! The loss is no polynomial; its tolerances are derived at [`LossCase`].
//!
//! # Twins
//!
//! A twin changes one number, and every comparison must tell. Which number and by how much follows from
//! the case: float64 is asked how far each figure moves, and the least change is taken that moves all of
//! them by [`MARGIN`] tolerances. So a twin holds on a golden that nobody has seen, also where the largest
//! weight meets zeros or the likeliest token is certain.

use std::env;
use std::fs;
use std::path::PathBuf;

use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::decoder::Head;
use burn_lti::geometry::HeadGrid;
use burn_lti::loss::{
    Curve, DistillationLoss, FeatureDistance, FeatureLoss, FeaturePair, LossInput, LossSchedule,
    LossSums, Schedule, SparseForm, TeacherTokens, TopK,
};
use burn_lti::map::{
    AttnMap, KernelPrecision, LtiDense, LtiDenseConfig, MapKind, ProjectionKind, StackedAttnMap,
    Start, calculate_attn_weight, calculate_stacked_attn_weight,
};
use burn_lti_tests::close::{Deviation, Tolerance, assert_close, assert_not_close, rounding};
use burn_lti_tests::dense::{dense_config, flat_kernel, leaf_of, turned};
use burn_lti_tests::llama::{TensorFile, fixtures};
use burn_lti_tests::numbers::{int_tensor, tensor, values};
use burn_lti_tests::oracle::{Map, Projection, widen};
use burn_lti_tests::params::{edit, gradients};
use burn_lti_tests::{backend_name, on_every_backend};
use serde_json::Value;

on_every_backend![
    kernels_are_the_references,
    kernels_notice_a_changed_weight,
    layers_and_their_gradients_are_the_references,
    layers_notice_a_changed_weight,
    losses_and_their_gradients_are_the_references,
    losses_notice_a_changed_logit,
];

/// A change of one part in a hundred: small for a weight, far beyond any rounding. Twins begin with it.
const CHANGE: f32 = 0.01;
/// How many times its tolerance a figure of a twin moves in float64. The program may be off by one.
const MARGIN: f64 = 2.0;

/// A folder of fixtures.
struct Golden {
    dir: PathBuf,
    index: Value,
}

impl Golden {
    fn open() -> Self {
        let dir = match env::var_os("BURN_LTI_GOLDEN_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => fixtures().join("maxtext"),
        };
        let path = dir.join("index.json");
        let text =
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let index = serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { dir, index }
    }

    fn cases(&self, suite: &str) -> Vec<Value> {
        let cases = self.index[suite].as_array();
        let cases = cases.unwrap_or_else(|| panic!("index.json lists no `{suite}`"));
        assert!(!cases.is_empty(), "index.json lists no case of `{suite}`");
        cases.clone()
    }

    fn file(&self, suite: &str) -> TensorFile {
        TensorFile::open(self.dir.join(format!("{suite}.safetensors")))
    }
}

fn name(case: &Value) -> &str {
    case["name"].as_str().expect("a case has a name")
}

fn flag(case: &Value, key: &str) -> bool {
    case[key]
        .as_bool()
        .unwrap_or_else(|| panic!("{case}: `{key}` is neither true nor false"))
}

fn kind(case: &Value) -> ProjectionKind {
    if flag(case, "is_output_projection") {
        ProjectionKind::Output
    } else {
        ProjectionKind::Qkv
    }
}

/// Axes as an array, whose length must be right.
fn axes<const D: usize>(shape: &[usize]) -> [usize; D] {
    shape
        .try_into()
        .unwrap_or_else(|_| panic!("{shape:?} has not {D} axes"))
}

/// The tensors of a map, as they lie in the file.
#[derive(Clone)]
struct Stored {
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl Stored {
    fn read(file: &TensorFile, case: &Value, leaf: &str) -> Self {
        let (shape, values) = file.floats(&format!("{}.{leaf}", name(case)));
        Self { shape, values }
    }

    fn tensor<B: Backend, const D: usize>(&self, device: &B::Device) -> Tensor<B, D> {
        tensor(&self.values, axes(&self.shape), device)
    }

    /// One layer of a stacked tensor, whose second axis is the layers'.
    fn layer(&self, layer: usize) -> Self {
        let inner: usize = self.shape[2..].iter().product();
        let layers = self.shape[1];
        let rows = self.values.chunks_exact(layers * inner);
        let mut shape = self.shape.clone();
        shape.remove(1);
        Self {
            shape,
            values: rows
                .flat_map(|row| row[layer * inner..(layer + 1) * inner].to_vec())
                .collect(),
        }
    }
}

/// `C` and a map of one case.
#[derive(Clone)]
struct Weights {
    kind: ProjectionKind,
    c: Stored,
    map: StoredMap,
}

#[derive(Clone)]
enum StoredMap {
    Factored { a: Stored, b: Stored },
    General { w: Stored },
}

impl StoredMap {
    /// What a twin changes of it.
    fn values(&self) -> &Stored {
        match self {
            Self::Factored { b, .. } => b,
            Self::General { w } => w,
        }
    }

    fn values_mut(&mut self) -> &mut Stored {
        match self {
            Self::Factored { b, .. } => b,
            Self::General { w } => w,
        }
    }
}

impl Weights {
    fn read(file: &TensorFile, case: &Value) -> Self {
        let map = match flag(case, "general") {
            true => StoredMap::General {
                w: Stored::read(file, case, "W"),
            },
            false => StoredMap::Factored {
                a: Stored::read(file, case, "A"),
                b: Stored::read(file, case, "B"),
            },
        };
        Self {
            kind: kind(case),
            c: Stored::read(file, case, "C"),
            map,
        }
    }

    fn layer(&self, layer: usize) -> Self {
        Self {
            kind: self.kind,
            c: self.c.layer(layer),
            map: match &self.map {
                StoredMap::Factored { a, b } => StoredMap::Factored {
                    a: a.layer(layer),
                    b: b.layer(layer),
                },
                StoredMap::General { w } => StoredMap::General { w: w.layer(layer) },
            },
        }
    }

    /// One weight of the map changed, the largest for which `tells` says that the change moves enough.
    fn perturbed(&self, tells: impl Fn(&Self) -> bool) -> Self {
        let values = &self.map.values().values;
        let mut by_size: Vec<usize> = (0..values.len()).collect();
        by_size.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()));
        for share in [CHANGE, 100.0 * CHANGE, 1e4 * CHANGE] {
            for index in &by_size {
                let mut changed = self.clone();
                changed.map.values_mut().values[*index] *= 1.0 + share;
                if tells(&changed) {
                    return changed;
                }
            }
        }
        panic!("no weight of the map moves what is compared");
    }

    /// `B` of the output projection with rows and columns exchanged: out of the reference's layout
    /// `[v, y]`, whose first axis is 0, or back into it. Of other kinds `B` as it is.
    fn turned_b<T: Copy>(&self, b: &[T], first_axis: usize) -> Vec<T> {
        let [_, _, y, _, v] = self.sizes();
        match self.kind {
            ProjectionKind::Qkv => b.to_vec(),
            ProjectionKind::Output => turned(b, [v, y][first_axis]),
        }
    }

    /// `[d, x, y, u, v]`, from the tensors themselves.
    fn sizes(&self) -> [usize; 5] {
        let [first, second, third] = axes(&self.c.shape);
        let (d, x, y) = match self.kind {
            ProjectionKind::Qkv => (first, second, third),
            ProjectionKind::Output => (third, first, second),
        };
        let (u, v) = match (&self.map, self.kind) {
            (StoredMap::General { w }, _) => (w.shape[2], w.shape[3]),
            (StoredMap::Factored { a, b }, ProjectionKind::Qkv) => (a.shape[1], b.shape[1]),
            (StoredMap::Factored { a, b }, ProjectionKind::Output) => (a.shape[1], b.shape[0]),
        };
        [d, x, y, u, v]
    }

    fn oracle(&self, bias: Option<&[f32]>) -> Projection {
        Projection {
            kind: self.kind,
            sizes: self.sizes(),
            c: widen(&self.c.values),
            map: match &self.map {
                StoredMap::Factored { a, b } => Map::Factored {
                    a: widen(&a.values),
                    b: widen(&b.values),
                },
                StoredMap::General { w } => Map::General {
                    w: widen(&w.values),
                },
            },
            bias: bias.map(widen),
        }
    }
}

/// The last part of a tensor's name.
fn letter(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

// ---------------------------------------------------------------- kernels

struct KernelCase {
    weights: Weights,
    layers: Option<usize>,
    shape: Vec<usize>,
    expected: Vec<f64>,
    tolerance: Tolerance,
}

impl KernelCase {
    fn read(file: &TensorFile, case: &Value) -> Self {
        let weights = Weights::read(file, case);
        let layers = case["scanned_layers"]
            .as_u64()
            .map(|layers| layers as usize);
        let stored = Stored::read(file, case, "kernel");
        let bounds = by_layer(&weights, layers, &stored.shape, Projection::kernel_bounds);
        Self {
            weights,
            layers,
            shape: stored.shape,
            expected: widen(&stored.values),
            tolerance: both_err(&bounds),
        }
    }

    /// The kernel in float64.
    fn exact(&self, weights: &Weights) -> Vec<f64> {
        by_layer(weights, self.layers, &self.shape, Projection::kernel)
    }

    fn found<B: Backend>(&self, weights: &Weights, device: &B::Device) -> Vec<f64> {
        match self.layers {
            None => single_kernel::<B>(weights, device),
            Some(_) => stacked_kernel::<B>(weights, device),
        }
    }
}

/// Two float32 programs may err in opposite directions.
fn both_err(bounds: &[f64]) -> Tolerance {
    Tolerance::of_magnitudes(bounds, 2.0)
}

/// Whether a figure moves so far that a comparison with it must tell.
fn must_tell(before: &[f64], after: &[f64], tolerance: &Tolerance) -> bool {
    let moved = before.iter().zip(after).enumerate();
    let far = |(index, (before, after)): (usize, (&f64, &f64))| {
        (after - before).abs() > MARGIN * tolerance.at(index)
    };
    moved.into_iter().any(far)
}

/// A figure of every number of a kernel; of several layers put where the stacked kernel has them.
fn by_layer(
    weights: &Weights,
    layers: Option<usize>,
    shape: &[usize],
    figure: impl Fn(&Projection) -> Vec<f64>,
) -> Vec<f64> {
    let Some(layers) = layers else {
        return figure(&weights.oracle(None));
    };
    let inner: usize = shape[2..].iter().product();
    let mut all = vec![0.0; shape.iter().product()];
    for layer in 0..layers {
        let of_layer = figure(&weights.layer(layer).oracle(None));
        for (row, values) in of_layer.chunks_exact(inner).enumerate() {
            let start = (row * layers + layer) * inner;
            all[start..start + inner].copy_from_slice(values);
        }
    }
    all
}

fn single_kernel<B: Backend>(weights: &Weights, device: &B::Device) -> Vec<f64> {
    let map = match &weights.map {
        StoredMap::Factored { a, b } => AttnMap::<B>::Factored {
            a: a.tensor(device),
            b: b.tensor(device),
        },
        StoredMap::General { w } => AttnMap::General {
            w: w.tensor(device),
        },
    };
    let c = weights.c.tensor(device);
    let kernel = calculate_attn_weight(weights.kind, c, map, KernelPrecision::Default);
    values(&kernel.expect("shapes that fit"))
}

fn stacked_kernel<B: Backend>(weights: &Weights, device: &B::Device) -> Vec<f64> {
    let map = match &weights.map {
        StoredMap::Factored { a, b } => StackedAttnMap::<B>::Factored {
            a: a.tensor(device),
            b: b.tensor(device),
        },
        StoredMap::General { w } => StackedAttnMap::General {
            w: w.tensor(device),
        },
    };
    let c = weights.c.tensor(device);
    let kernel = calculate_stacked_attn_weight(weights.kind, c, map, KernelPrecision::Default);
    values(&kernel.expect("shapes that fit"))
}

fn kernels_are_the_references<A: AutodiffBackend>(device: A::Device) {
    let golden = Golden::open();
    let file = golden.file("kernel");
    let mut worst = Deviation::default();
    for case in golden.cases("kernel") {
        let kernel = KernelCase::read(&file, &case);
        let found = kernel.found::<A::InnerBackend>(&kernel.weights, &device);
        worst = worst.or(checked(&case, "kernel", || {
            assert_close(&found, &kernel.expected, &kernel.tolerance)
        }));
    }
    report::<A>("kernel", &device, worst);
}

fn kernels_notice_a_changed_weight<A: AutodiffBackend>(device: A::Device) {
    let golden = Golden::open();
    let file = golden.file("kernel");
    for case in golden.cases("kernel") {
        let kernel = KernelCase::read(&file, &case);
        let exact = kernel.exact(&kernel.weights);
        let tells =
            |changed: &Weights| must_tell(&exact, &kernel.exact(changed), &kernel.tolerance);
        let perturbed = checked(&case, "twin", || kernel.weights.perturbed(tells));
        let found = kernel.found::<A::InnerBackend>(&perturbed, &device);
        assert_not_close(&found, &kernel.expected, &kernel.tolerance);
    }
}

/// Prints the case before a panic does, and passes the result on.
fn checked<T>(case: &Value, what: &str, check: impl FnOnce() -> T) -> T {
    eprintln!("{} {what}", name(case));
    check()
}

fn report<A: AutodiffBackend>(suite: &str, device: &A::Device, worst: Deviation) {
    eprintln!("{suite} on {}: {worst}", backend_name::<A>(device));
}

// ---------------------------------------------------------------- layers

struct DenseCase {
    weights: Weights,
    bias: Option<Vec<f32>>,
    input: Stored,
    expected: Vec<(&'static str, Vec<f64>)>,
    tolerances: Vec<Tolerance>,
}

impl DenseCase {
    fn read(file: &TensorFile, case: &Value) -> Self {
        let weights = Weights::read(file, case);
        let bias = flag(case, "bias").then(|| Stored::read(file, case, "bias").values);
        let input = Stored::read(file, case, "input");
        let mut expected = Vec::new();
        let mut expect = |what, leaf| {
            expected.push((what, widen(&Stored::read(file, case, leaf).values)));
        };
        expect("output", "output");
        match weights.map {
            StoredMap::Factored { .. } => {
                expect("a", "grad_A");
                expect("b", "grad_B");
            }
            StoredMap::General { .. } => expect("w", "grad_W"),
        }
        if bias.is_some() {
            expect("bias", "grad_bias");
        }
        let mut case = Self {
            weights,
            bias,
            input,
            expected,
            tolerances: Vec::new(),
        };
        case.tolerances = case.tolerances();
        case
    }

    fn tolerances(&self) -> Vec<Tolerance> {
        let oracle = self.weights.oracle(self.bias.as_deref());
        let bounds = oracle.bounds(&widen(&self.input.values));
        self.expected
            .iter()
            .map(|(what, _)| match *what {
                "output" => both_err(&bounds.output),
                "a" => both_err(&bounds.gradients.a),
                "b" => both_err(&bounds.gradients.b),
                "w" => both_err(&bounds.gradients.w),
                _ => both_err(&bounds.gradients.bias),
            })
            .collect()
    }

    /// What is expected, in float64.
    fn exact(&self, weights: &Weights) -> Vec<Vec<f64>> {
        let oracle = weights.oracle(self.bias.as_deref());
        let input = widen(&self.input.values);
        let (output, gradients) = (oracle.output(&input), oracle.gradients(&input));
        self.expected
            .iter()
            .map(|(what, _)| match *what {
                "output" => output.clone(),
                "a" => gradients.a.clone(),
                "b" => gradients.b.clone(),
                "w" => gradients.w.clone(),
                _ => gradients.bias.clone(),
            })
            .collect()
    }

    fn config(&self) -> LtiDenseConfig {
        let [d, x, y, u, v] = self.weights.sizes();
        let map = match self.weights.map {
            StoredMap::Factored { .. } => MapKind::Factored,
            StoredMap::General { .. } => MapKind::General,
        };
        let (teacher, student) = (HeadGrid::new(x, y), HeadGrid::new(u, v));
        dense_config(self.weights.kind, d, teacher, student, map)
            .with_start(Start::Lecun, 0)
            .with_bias(self.bias.is_some())
    }

    fn d_input(&self) -> usize {
        let [d_input, _] = self.config().kernel_shape();
        d_input
    }

    fn layer<A: AutodiffBackend>(&self, weights: &Weights, device: &A::Device) -> LtiDense<A> {
        let c = flat_kernel(weights.kind, weights.c.tensor(device));
        let layer = self.config().init(c).expect("a layer of this geometry");
        edit(layer, |name, values| match (letter(name), &weights.map) {
            ("a", StoredMap::Factored { a, .. }) => values.clone_from(&a.values),
            ("b", StoredMap::Factored { b, .. }) => *values = weights.turned_b(&b.values, 0),
            ("w", StoredMap::General { w }) => values.clone_from(&w.values),
            ("bias", _) => values.clone_from(self.bias.as_ref().expect("a bias")),
            _ => assert_eq!(name, "c"),
        })
    }

    /// The output, and the gradients of `mean(output^2)`, in the order of `expected`. The leading
    /// axes of the input stay as they are; the output projection's two last ones are its features.
    fn found<A: AutodiffBackend>(&self, weights: &Weights, device: &A::Device) -> Vec<Vec<f64>> {
        let layer = self.layer::<A>(weights, device);
        let d_input = self.d_input();
        let first = self.input.shape[0];
        let rest = self.input.values.len() / first / d_input;
        let input = tensor::<A, 3>(&self.input.values, [first, rest, d_input], device);
        let output = layer.forward(input);
        let backward = output.clone().powi_scalar(2).mean().backward();
        let gradients = gradients(&layer, &GradientsParams::from_grads(backward, &layer));
        assert!(!gradients.contains_key("c"), "C must have no gradient");
        self.expected
            .iter()
            .map(|(what, _)| match *what {
                "output" => values(&output),
                "bias" => gradients["bias"].clone(),
                "b" => weights.turned_b(&gradients[&leaf_of(weights.kind, "b")], 1),
                letter => gradients[&leaf_of(weights.kind, letter)].clone(),
            })
            .collect()
    }
}

fn layers_and_their_gradients_are_the_references<A: AutodiffBackend>(device: A::Device) {
    let golden = Golden::open();
    let file = golden.file("dense");
    let (mut outputs, mut gradients) = (Deviation::default(), Deviation::default());
    for case in golden.cases("dense") {
        let dense = DenseCase::read(&file, &case);
        let found = dense.found::<A>(&dense.weights, &device);
        for (index, (what, expected)) in dense.expected.iter().enumerate() {
            let deviation = checked(&case, what, || {
                assert_close(&found[index], expected, &dense.tolerances[index])
            });
            match *what {
                "output" => outputs = outputs.or(deviation),
                _ => gradients = gradients.or(deviation),
            }
        }
    }
    report::<A>("dense output", &device, outputs);
    report::<A>("dense gradient", &device, gradients);
}

fn layers_notice_a_changed_weight<A: AutodiffBackend>(device: A::Device) {
    let golden = Golden::open();
    let file = golden.file("dense");
    for case in golden.cases("dense") {
        let dense = DenseCase::read(&file, &case);
        let exact = dense.exact(&dense.weights);
        let tells = |changed: &Weights| {
            let moved = exact.iter().zip(dense.exact(changed));
            let mut moved = moved.zip(&dense.tolerances);
            moved.all(|((before, after), tolerance)| must_tell(before, &after, tolerance))
        };
        let perturbed = checked(&case, "twin", || dense.weights.perturbed(tells));
        let found = dense.found::<A>(&perturbed, &device);
        for (index, (_, expected)) in dense.expected.iter().enumerate() {
            assert_not_close(&found[index], expected, &dense.tolerances[index]);
        }
    }
}

// ---------------------------------------------------------------- losses

/// A case of the loss. Its tolerances follow at [`Self::token_bound`] and the functions after it.
struct LossCase {
    config: Value,
    /// The optimizer step that the schedules are at.
    step: usize,
    metrics: Value,
    loss: f64,
    vocab: usize,
    student: Vec<f32>,
    teacher: TeacherLogits,
    features: Vec<[Stored; 2]>,
    gradient: Vec<f64>,
    targets: Vec<i64>,
    mask: Vec<f32>,
}

/// What the reference was given of the teacher.
enum TeacherLogits {
    All(Vec<f32>),
    TopK {
        k: usize,
        ids: Vec<i64>,
        logits: Vec<f32>,
    },
}

impl LossCase {
    fn read(file: &TensorFile, case: &Value) -> Self {
        let leaf = |leaf: &str| format!("{}.{leaf}", name(case));
        let (shape, student) = file.floats(&leaf("student_logits"));
        let targets = file.ints(&leaf("targets")).1;
        let segments = file.ints(&leaf("segmentation")).1;
        let pad = case["config"]["pad_id"].as_i64().expect("a pad_id");
        let counts = |(target, segment): (&i32, &i32)| i64::from(*target) != pad && *segment != 0;
        Self {
            config: case["config"].clone(),
            step: case["step"].as_u64().unwrap_or(0) as usize,
            metrics: case["metrics"].clone(),
            loss: case["loss"].as_f64().expect("a loss"),
            vocab: *shape.last().expect("a vocabulary"),
            student,
            teacher: TeacherLogits::read(file, case),
            features: features(file, case),
            gradient: widen(&Stored::read(file, case, "grad_student_logits").values),
            mask: targets
                .iter()
                .zip(&segments)
                .map(|pair| f32::from(counts(pair)))
                .collect(),
            targets: targets.into_iter().map(i64::from).collect(),
        }
    }

    /// Sum and count of a metric.
    fn metric(&self, key: &str) -> (f64, f64) {
        let pair = &self.metrics[format!("distill/{key}")];
        match (pair[0].as_f64(), pair[1].as_f64()) {
            (Some(sum), Some(count)) => (sum, count),
            _ => panic!("no metric `{key}`"),
        }
    }

    fn tokens(&self) -> f64 {
        self.mask.iter().copied().map(f64::from).sum()
    }

    fn temperature(&self) -> f64 {
        self.metric("temperature").0
    }

    /// What a token's KL or CE at temperature `T` may be off by in one program.
    ///
    /// A log-probability is a logit less the logarithm of a sum of `V` exponentials, and a token's KL
    /// or CE a mean over the vocabulary of differences of such: with `D` the largest magnitude of a
    /// log-probability that counts, off by at most `e = 6 sqrt(2 V + 8) u (1 + D)`, eight roundings
    /// being those of division, exponential, logarithm and subtraction in both models. Probabilities
    /// are off by as much, relatively.
    fn token_bound(&self, temperature: f64) -> f64 {
        rounding(2 * self.vocab + 8) * (1.0 + self.log_probability_bound(temperature))
    }

    /// Of a sum over `n` tokens: their errors are independent, `sqrt(n) e`; partial sums of terms that
    /// are never negative are at most the sum, and are rounded `n` times. Both programs err.
    fn sum_tolerance(&self, temperature: f64, sum: f64) -> f64 {
        let tokens = self.tokens().max(1.0);
        let own = tokens.sqrt() * self.token_bound(temperature);
        2.0 * (own + rounding(tokens as usize) * sum)
    }

    /// Of `alpha T (p - q) + (1 - alpha) (p - y)` over `n`.
    fn gradient_tolerance(&self) -> f64 {
        let (alpha, temperature) = (self.metric("alpha").0, self.temperature());
        let soft = alpha * temperature * self.token_bound(temperature);
        let hard = (1.0 - alpha) * self.token_bound(1.0);
        2.0 * (soft + hard) / self.tokens().max(1.0)
    }

    /// `max_i |log p_i|` over both models and the tokens that count.
    fn log_probability_bound(&self, temperature: f64) -> f64 {
        let rows = |logits: &[f32], outcomes: usize| -> f64 {
            logits
                .chunks_exact(outcomes)
                .zip(&self.mask)
                .filter(|(_, mask)| **mask != 0.0)
                .map(|(row, _)| {
                    let row = widen(row);
                    let largest = row.iter().copied().fold(f64::MIN, f64::max);
                    let smallest = row.iter().copied().fold(f64::MAX, f64::min);
                    (largest - smallest) / temperature + (row.len() as f64).ln()
                })
                .fold(0.0, f64::max)
        };
        let teacher = match &self.teacher {
            TeacherLogits::All(logits) => rows(logits, self.vocab),
            TeacherLogits::TopK { k, logits, .. } => rows(logits, *k),
        };
        rows(&self.student, self.vocab).max(teacher)
    }

    /// Logits as hidden states, before a head that is the identity.
    fn input<B: Backend>(&self, student: &[f32], device: &B::Device) -> LossInput<B> {
        let shape = [self.mask.len(), self.vocab];
        let identity = || Head {
            weight: Tensor::eye(self.vocab, device),
            trains: false,
            cap: None,
        };
        let flat = |stored: &Stored| {
            let [_, _, width] = axes(&stored.shape);
            tensor(&stored.values, [shape[0], width], device)
        };
        LossInput {
            student_hidden: tensor(student, shape, device),
            student_head: identity(),
            teacher: match &self.teacher {
                TeacherLogits::All(logits) => TeacherTokens::Hidden {
                    hidden: tensor(logits, shape, device),
                    head: identity(),
                },
                // Logits are log-probabilities but for a constant, which renormalising takes away.
                TeacherLogits::TopK { k, ids, logits } => TeacherTokens::TopK(TopK {
                    ids: int_tensor(ids, [shape[0], *k], device),
                    log_probs: tensor(logits, [shape[0], *k], device),
                    log_tail: Tensor::zeros([shape[0], 1], device),
                    target_log_prob: None,
                }),
            },
            features: self
                .features
                .iter()
                .map(|[student, teacher]| FeaturePair {
                    student: flat(student),
                    teacher: flat(teacher),
                })
                .collect(),
            targets: int_tensor(&self.targets, [shape[0]], device),
            mask: tensor(&self.mask, [shape[0]], device),
        }
    }

    /// The loss at the case's step, from the case's settings alone.
    fn settings(&self) -> DistillationLoss {
        let number = |key: &str| self.config[key].as_f64();
        let steps = self.config["max_steps"].as_u64().unwrap_or(1) as usize;
        let schedule = |key: &str, end: &str, kind: &str| {
            let start = number(key).expect("a start");
            let kind = self.config[kind].as_str().unwrap_or("constant");
            schedule(kind, start, number(end))
        };
        let (alpha, temperature) = (
            schedule("alpha", "alpha_end", "alpha_schedule"),
            schedule("temperature", "temperature_end", "temperature_schedule"),
        );
        // Five tokens at a time, so that chunks have to be put together.
        let loss = DistillationLoss::new(alpha.start(), temperature.start(), 5)
            .expect("settings in range")
            .with_sparse(SparseForm::Renormalised);
        let moving = |loss: DistillationLoss| {
            LossSchedule::new(loss, steps)
                .with_alpha(alpha)
                .and_then(|loss| loss.with_temperature(temperature))
                .expect("settings in range")
        };
        let Some(beta) = number("beta_feature") else {
            return moving(loss).at(self.step);
        };
        let feature = FeatureLoss::new(self.distance(), beta).expect("a weight");
        moving(loss.with_feature(feature))
            .with_feature_weight(schedule("beta_feature", "beta_end", "beta_schedule"))
            .expect("a weight")
            .at(self.step)
    }

    fn distance(&self) -> FeatureDistance {
        match self.config["feature_loss_type"].as_str() {
            Some("l2") => FeatureDistance::L2,
            Some("cosine") | None => FeatureDistance::Cosine,
            Some(other) => panic!("no distance `{other}`"),
        }
    }

    /// What the mean distance may be off by, before its weight. A cosine is two norms and a product of
    /// `D` terms, at most 1 in size; a squared difference at most the squared sum of magnitudes.
    fn feature_tolerance(&self) -> f64 {
        let width = self.features.first().map_or(1, |[student, _]| {
            let [_, _, width] = axes(&student.shape);
            width
        });
        let largest = |stored: &Stored| widen(&stored.values).into_iter().fold(0.0, f64::max);
        let size = match self.distance() {
            FeatureDistance::Cosine => 1.0,
            FeatureDistance::L2 => self
                .features
                .iter()
                .map(|[student, teacher]| (largest(student) + largest(teacher)).powi(2))
                .fold(0.0, f64::max),
        };
        2.0 * rounding(3 * width + 8 + self.mask.len()) * size
    }

    /// Every number of the loss with what was expected and what it may be off by.
    fn comparisons(&self, sums: &LossSums, gradient: &[f64]) -> Vec<Comparison> {
        let mut all = self.sum_comparisons(sums);
        all.push(Comparison {
            what: "gradient",
            found: gradient.to_vec(),
            expected: self.gradient.clone(),
            tolerance: self.gradient_tolerance(),
        });
        all.extend(self.mean_comparisons(sums));
        all
    }

    fn sum_comparisons(&self, sums: &LossSums) -> Vec<Comparison> {
        let temperature = self.temperature();
        let squared = temperature.powi(2);
        // The reference reports 0 for what it does not know of a teacher's top tokens.
        let is_sparse = matches!(self.teacher, TeacherLogits::TopK { .. });
        assert_eq!(sums.kl.is_none(), is_sparse);
        assert_eq!(sums.teacher_ce.is_none(), is_sparse);
        [
            ("hard", "hard_loss", Some(sums.student_ce), 1.0, 1.0),
            (
                "soft",
                "soft_loss",
                Some(sums.soft * squared),
                temperature,
                squared,
            ),
            ("KL at T", "kl_div_at_T", Some(sums.soft), temperature, 1.0),
            ("KL at 1", "kl_div_T1", sums.kl, 1.0, 1.0),
            ("teacher", "teacher_loss", sums.teacher_ce, 1.0, 1.0),
        ]
        .into_iter()
        .filter_map(|(what, key, found, temperature, factor)| {
            let expected = self.metric(key).0;
            let tolerance = factor * self.sum_tolerance(temperature, expected / factor);
            Some(Comparison::number(what, found?, expected, tolerance))
        })
        .collect()
    }

    /// A batch without a target has no means: the reference divides by one, we say `None`.
    fn mean_comparisons(&self, sums: &LossSums) -> Vec<Comparison> {
        let (Some(loss), Some(student)) = (sums.loss_mean(), sums.student_ce_mean()) else {
            return Vec::new();
        };
        let (alpha, temperature) = (self.metric("alpha").0, self.temperature());
        let beta = self.metric("beta_feature").0;
        let soft = temperature.powi(2) * self.sum_tolerance(temperature, sums.soft);
        let hard = self.sum_tolerance(1.0, sums.student_ce);
        let feature = beta * self.feature_tolerance();
        let mixed = (alpha * soft + (1.0 - alpha) * hard) / sums.tokens
            + feature
            + rounding(2) * self.loss.abs();
        let perplexity = |what, key, mean: f64, sum| {
            let expected = self.metric(key).0;
            // The exponential of a mean, which the reference rounds.
            let relative = self.sum_tolerance(1.0, sum) / sums.tokens + rounding(2) * (1.0 + mean);
            Comparison::number(what, mean.exp(), expected, relative * expected)
        };
        // The reference computes schedules in float32.
        let setting = |what, key, mean: Option<f64>| {
            let found = mean.unwrap_or(0.0);
            Comparison::number(what, found, self.metric(key).0, rounding(4) * (1.0 + found))
        };
        let mut all = vec![
            Comparison::number("loss", loss, self.loss, mixed),
            perplexity(
                "student perplexity",
                "student_perplexity",
                student,
                sums.student_ce,
            ),
            setting("setting alpha", "alpha", sums.alpha_mean()),
            setting("setting T", "temperature", sums.temperature_mean()),
            setting("setting beta", "beta_feature", sums.feature_weight_mean()),
        ];
        if let Some((teacher, sum)) = sums.teacher_ce_mean().zip(sums.teacher_ce) {
            all.push(perplexity(
                "teacher perplexity",
                "teacher_perplexity",
                teacher,
                sum,
            ));
        }
        if let Some(mean) = sums.feature_mean() {
            let (found, expected) = (beta * mean, self.metric("out_proj_feature_loss").0);
            all.push(Comparison::number(
                "setting features",
                found,
                expected,
                feature,
            ));
        }
        all
    }
}

impl TeacherLogits {
    fn read(file: &TensorFile, case: &Value) -> Self {
        match case["top_k"].as_u64() {
            None => Self::All(Stored::read(file, case, "teacher_logits").values),
            Some(k) => Self::TopK {
                k: k as usize,
                ids: file
                    .ints(&format!("{}.teacher_top_k_indices", name(case)))
                    .1
                    .into_iter()
                    .map(i64::from)
                    .collect(),
                logits: Stored::read(file, case, "teacher_top_k_logits").values,
            },
        }
    }
}

/// Student's and teacher's features of each layer that is compared, `[rows, tokens, width]`.
fn features(file: &TensorFile, case: &Value) -> Vec<[Stored; 2]> {
    if case["config"]["beta_feature"].is_null() {
        return Vec::new();
    }
    let read = |leaf| Stored::read(file, case, leaf);
    let (student, teacher) = (read("student_features"), read("teacher_features"));
    let layers: Vec<usize> = match case["config"]["layer_indices"].as_array() {
        None => (0..student.shape[0]).collect(),
        Some(layers) => layers
            .iter()
            .map(|layer| layer.as_u64().expect("an index") as usize)
            .collect(),
    };
    let layer = |stored: &Stored, layer: usize| {
        let shape = stored.shape[1..].to_vec();
        let size: usize = shape.iter().product();
        let values = stored.values[layer * size..(layer + 1) * size].to_vec();
        Stored { shape, values }
    };
    let pair = |index: usize| [layer(&student, index), layer(&teacher, index)];
    layers.into_iter().map(pair).collect()
}

fn schedule(kind: &str, start: f64, end: Option<f64>) -> Schedule {
    match (kind, end) {
        ("linear", Some(end)) => Schedule::new(Curve::Linear, start, end),
        ("cosine", Some(end)) => Schedule::new(Curve::Cosine, start, end),
        // The reference holds the start of a constant and of a schedule without an end.
        ("constant", _) | (_, None) => Schedule::constant(start),
        (other, _) => panic!("no schedule `{other}`"),
    }
}

/// In float32 the reference's are off by a rounding or two of the larger end.
#[test]
fn schedules_are_the_references() {
    for row in Golden::open().cases("schedule") {
        let number = |key: &str| row[key].as_f64();
        let start = number("start").expect("a start");
        let kind = row["kind"].as_str().expect("a kind");
        let count = |key: &str| row[key].as_u64().expect("a count") as usize;
        let found = schedule(kind, start, number("end")).at(count("step"), count("max_steps"));
        let expected = number("value").expect("a value");
        let size = start.abs().max(number("end").unwrap_or(0.0).abs());
        assert!(
            (found - expected).abs() <= rounding(4) * size,
            "{row}: {found}"
        );
    }
}

struct Comparison {
    what: &'static str,
    found: Vec<f64>,
    expected: Vec<f64>,
    tolerance: f64,
}

impl Comparison {
    fn number(what: &'static str, found: f64, expected: f64, tolerance: f64) -> Self {
        Self {
            what,
            found: vec![found],
            expected: vec![expected],
            tolerance,
        }
    }
}

fn losses_and_their_gradients_are_the_references<A: AutodiffBackend>(device: A::Device) {
    let golden = Golden::open();
    let file = golden.file("loss");
    let (mut sums, mut gradients) = (Deviation::default(), Deviation::default());
    for case in golden.cases("loss") {
        let loss = LossCase::read(&file, &case);
        let input = loss.input::<A::InnerBackend>(&loss.student, &device);
        let evaluated = loss.settings().evaluate(input.clone()).read();
        let found = loss.settings().gradient(input);
        assert_eq!(found.sums.read(), evaluated, "{}", name(&case));
        assert_eq!(
            evaluated.tokens,
            loss.metric("hard_loss").1,
            "{}",
            name(&case)
        );
        for one in loss.comparisons(&evaluated, &values(&found.hidden)) {
            let tolerance = Tolerance::Uniform(one.tolerance);
            let deviation = checked(&case, one.what, || {
                assert_close(&one.found, &one.expected, &tolerance)
            });
            match one.what {
                "gradient" => gradients = gradients.or(deviation),
                _ => sums = sums.or(deviation),
            }
        }
    }
    report::<A>("loss and metrics", &device, sums);
    report::<A>("loss gradient", &device, gradients);
}

/// What one token adds to the figures of a case, in float64.
struct TokenFigures {
    /// Its cross-entropy.
    hard: f64,
    /// The KL at the case's temperature, and at 1.
    soft: f64,
    kl: f64,
    /// `alpha T p + (1 - alpha) p` of every logit: its gradient but for the teacher's part and the mean.
    gradient: Vec<f64>,
}

impl LossCase {
    /// The outcomes that the teacher tells apart at a token.
    fn outcomes(&self, token: usize) -> Vec<usize> {
        match &self.teacher {
            TeacherLogits::All(_) => (0..self.vocab).collect(),
            TeacherLogits::TopK { k, ids, .. } => {
                let ids = &ids[token * k..(token + 1) * k];
                ids.iter().map(|id| *id as usize).collect()
            }
        }
    }

    fn teacher_row(&self, token: usize) -> Vec<f64> {
        match &self.teacher {
            TeacherLogits::All(logits) => widen(&logits[token * self.vocab..][..self.vocab]),
            TeacherLogits::TopK { k, logits, .. } => widen(&logits[token * k..][..*k]),
        }
    }

    fn token_figures(&self, token: usize, student: &[f32]) -> TokenFigures {
        let (alpha, temperature) = (self.metric("alpha").0, self.temperature());
        let logits = widen(&student[token * self.vocab..][..self.vocab]);
        let outcomes = self.outcomes(token);
        let among: Vec<f64> = outcomes.iter().map(|outcome| logits[*outcome]).collect();
        let kl_at = |temperature: f64| {
            let teacher = log_softmax(&self.teacher_row(token), temperature);
            let student = log_softmax(&among, temperature);
            let terms = teacher.iter().zip(&student);
            terms.map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
        };
        let of_all = log_softmax(&logits, 1.0);
        let mut gradient: Vec<f64> = of_all.iter().map(|p| (1.0 - alpha) * p.exp()).collect();
        for (outcome, p) in outcomes.iter().zip(log_softmax(&among, temperature)) {
            gradient[*outcome] += alpha * temperature * p.exp();
        }
        TokenFigures {
            hard: -of_all[self.targets[token] as usize],
            soft: kl_at(temperature),
            kl: kl_at(1.0),
            gradient,
        }
    }

    /// One logit of the student raised, by the least power of two times a hundredth that every figure must
    /// tell, of all figures that the student's logits move. `before` are the comparisons without it.
    ///
    /// A logit that is neither the target's nor certain does: with it the cross-entropy rises without end,
    /// and so does the KL, by all but the teacher's own share of it.
    fn changed(&self, before: &[Comparison]) -> Option<Vec<f32>> {
        let counted = (0..self.mask.len()).filter(|token| self.mask[*token] != 0.0);
        for token in counted {
            let figures = self.token_figures(token, &self.student);
            let row = &self.student[token * self.vocab..][..self.vocab];
            let mut outcomes = self.outcomes(token);
            outcomes.retain(|outcome| *outcome as i64 != self.targets[token]);
            outcomes.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
            for outcome in outcomes {
                let mut change = CHANGE * (1.0 + row[outcome].abs());
                while change < 1e6 {
                    let mut student = self.student.clone();
                    student[token * self.vocab + outcome] += change;
                    let after = self.token_figures(token, &student);
                    let tells = |one: &Comparison| {
                        let moved = self.moved(one, &figures, &after);
                        moved.is_none_or(|moved| moved > MARGIN * one.tolerance)
                    };
                    if before.iter().all(tells) {
                        return Some(student);
                    }
                    change *= 2.0;
                }
            }
        }
        None
    }

    /// How far a comparison's number moves with a token's figures; `None` if it does not follow from them.
    fn moved(&self, one: &Comparison, before: &TokenFigures, after: &TokenFigures) -> Option<f64> {
        let (alpha, temperature) = (self.metric("alpha").0, self.temperature());
        let (hard, soft) = (after.hard - before.hard, after.soft - before.soft);
        let squared = temperature.powi(2);
        let moved = match one.what {
            "hard" => hard,
            "soft" => soft * squared,
            "KL at T" => soft,
            "KL at 1" => after.kl - before.kl,
            "loss" => (alpha * squared * soft + (1.0 - alpha) * hard) / self.tokens(),
            "student perplexity" => one.found[0] * (hard / self.tokens()).exp_m1(),
            "gradient" => {
                let moved = after.gradient.iter().zip(&before.gradient);
                let largest = moved.map(|(after, before)| (after - before).abs());
                largest.fold(0.0, f64::max) / self.tokens()
            }
            _ => return None,
        };
        Some(moved.abs())
    }

    /// Whether a logit of the student moves all of the figures: not where the teacher tells but one outcome.
    fn has_twin(&self) -> bool {
        let is_certain = matches!(self.teacher, TeacherLogits::TopK { k: 1, .. });
        self.tokens() > 0.0 && !is_certain
    }
}

/// Log-probabilities of logits at a temperature.
fn log_softmax(logits: &[f64], temperature: f64) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::MIN, f64::max);
    let of = |logit: &f64| (logit - largest) / temperature;
    let sum: f64 = logits.iter().map(|logit| of(logit).exp()).sum();
    logits.iter().map(|logit| of(logit) - sum.ln()).collect()
}

/// One logit of the student changed by as much as must tell. The gradient and every sum that the student's
/// logits move must tell it, in every case that has a target.
fn losses_notice_a_changed_logit<A: AutodiffBackend>(device: A::Device) {
    let golden = Golden::open();
    let file = golden.file("loss");
    let mut twins = 0;
    for case in golden.cases("loss") {
        let loss = LossCase::read(&file, &case);
        if !loss.has_twin() {
            continue; // nothing counts, so nothing can tell
        }
        let compared = |student: &[f32]| {
            let found = loss
                .settings()
                .gradient(loss.input::<A::InnerBackend>(student, &device));
            loss.comparisons(&found.sums.read(), &values(&found.hidden))
        };
        let student = loss.changed(&compared(&loss.student));
        let student = student.unwrap_or_else(|| panic!("no logit moves {}", name(&case)));
        for one in compared(&student) {
            if !one.what.starts_with("teacher") && !one.what.starts_with("setting") {
                let tolerance = Tolerance::Uniform(one.tolerance);
                checked(&case, one.what, || {
                    assert_not_close(&one.found, &one.expected, &tolerance)
                });
            }
        }
        twins += 1;
    }
    assert!(twins > 0, "no case of the loss has a target");
}

/// A saturated case: the student is certain of the target, and the teacher agrees. The likeliest logit moves
/// nothing there.
#[test]
fn a_saturated_case_has_a_twin() {
    let row = [60.0, 0.0, -3.0, 1.0];
    let metric = |value: f64| serde_json::json!([value, 1.0]);
    let case = LossCase {
        config: Value::Null,
        step: 0,
        metrics: serde_json::json!({
            "distill/alpha": metric(0.5),
            "distill/temperature": metric(2.0),
        }),
        loss: 0.0,
        vocab: row.len(),
        student: row.to_vec(),
        teacher: TeacherLogits::All(row.to_vec()),
        features: Vec::new(),
        gradient: Vec::new(),
        targets: vec![0],
        mask: vec![1.0],
    };
    let compared: Vec<Comparison> = ["hard", "soft", "KL at T", "KL at 1", "loss", "gradient"]
        .into_iter()
        .map(|what| Comparison::number(what, 0.0, 0.0, case.token_bound(1.0)))
        .collect();
    let student = case.changed(&compared).expect("a twin");
    let changed: Vec<usize> = (0..row.len()).filter(|i| student[*i] != row[*i]).collect();
    assert_eq!(changed, [3], "the likeliest but the target");
    // Raising the likeliest, as this twin once did, tells nothing.
    let mut likeliest = row.to_vec();
    likeliest[0] += CHANGE * 61.0;
    let (before, after) = (
        case.token_figures(0, &row),
        case.token_figures(0, &likeliest),
    );
    assert!(compared.iter().all(|one| {
        let moved = case.moved(one, &before, &after).expect("a figure");
        moved < one.tolerance
    }));
}
