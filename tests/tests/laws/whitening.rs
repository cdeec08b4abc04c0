//! Laws of whitened coordinates: their roots are those of the Gram matrices, and an optimizer that has
//! them moves a map as one that trains the coordinates themselves would.

use std::collections::BTreeMap;

use burn::module::{AutodiffModule, Module, ModuleVisitor, Param};
use burn::optim::{GradientsParams, Optimizer};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::calibration::Whitening;
use burn_lti::decoder::{LayeredDecoder, LtiSpec, RoleMaps, TokenBatch};
use burn_lti::map::{MapKind, Start};
use burn_lti::tensors::TensorSet;
use burn_lti::train::{Adam, AdamConfig};
use burn_lti_tests::close::{Tolerance, assert_close};
use burn_lti_tests::numbers::{Numbers, values};
use burn_lti_tests::on_every_backend;
use burn_lti_tests::toy::{LearningToy, ToyConfig};

on_every_backend![
    the_roots_are_those_of_the_gram_matrices,
    a_map_moves_as_its_coordinates_would,
    a_map_of_factors_keeps_its_own_coordinates,
];

type Inner<A> = <A as AutodiffBackend>::InnerBackend;

/// Row-major matrices in float64, multiplied in plain loops.
#[derive(Clone)]
struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f64>,
}

impl Matrix {
    fn of<B: Backend>(tensor: &Tensor<B, 2>) -> Self {
        let [rows, columns] = tensor.dims();
        Self {
            rows,
            columns,
            values: values(tensor),
        }
    }

    fn transposed(&self) -> Self {
        let at = |i: usize| self.values[(i % self.rows) * self.columns + i / self.rows];
        Self {
            rows: self.columns,
            columns: self.rows,
            values: (0..self.values.len()).map(at).collect(),
        }
    }

    fn times(&self, other: &Self) -> Self {
        assert_eq!(self.columns, other.rows);
        let mut product = vec![0.0; self.rows * other.columns];
        for row in 0..self.rows {
            for inner in 0..self.columns {
                let factor = self.values[row * self.columns + inner];
                for column in 0..other.columns {
                    product[row * other.columns + column] +=
                        factor * other.values[inner * other.columns + column];
                }
            }
        }
        Self {
            rows: self.rows,
            columns: other.columns,
            values: product,
        }
    }

    fn plus(mut self, other: &Self) -> Self {
        for (value, more) in self.values.iter_mut().zip(&other.values) {
            *value += more;
        }
        self
    }

    /// With so much of its mean diagonal added to the diagonal.
    fn damped(mut self, part: f64) -> Self {
        let diagonal = (0..self.rows).map(|i| i * self.columns + i);
        let mean: f64 = diagonal.clone().map(|i| self.values[i]).sum::<f64>() / self.rows as f64;
        diagonal.for_each(|i| self.values[i] += part * mean);
        self
    }
}

/// A student of half the heads, its maps of that form, and two batches.
fn student<A: AutodiffBackend>(
    map: MapKind,
    device: &A::Device,
) -> (LearningToy<A>, [TokenBatch<Inner<A>>; 2]) {
    let (teacher, config) = (ToyConfig::new(4, 2), ToyConfig::new(2, 1));
    let spec = LtiSpec {
        maps: RoleMaps::attention(map),
        start: Start::Grouped,
        ..LtiSpec::new(teacher.geometry)
    };
    let teacher = TensorSet::collect(&teacher.random::<A>(1, device));
    let student = config.learning(&teacher, &spec, device);
    let batches = [3, 4].map(|seed| config.batch::<Inner<A>>(seed, device));
    (student, batches)
}

/// The matrices of `student` by name.
fn matrices<B: Backend, M: Module<B>>(module: &M) -> BTreeMap<String, Matrix> {
    let tensors = TensorSet::<B>::collect(module);
    let matrices = tensors.iter().filter_map(|(name, named)| {
        let &[rows, columns] = named.tensor.shape().as_slice() else {
            return None;
        };
        let values = named.tensor.to_f32().expect("values");
        let values = values.into_iter().map(f64::from).collect();
        Some((
            name.to_owned(),
            Matrix {
                rows,
                columns,
                values,
            },
        ))
    });
    matrices.collect()
}

fn the_roots_are_those_of_the_gram_matrices<A: AutodiffBackend>(device: A::Device) {
    let (student, batches) = student::<A>(MapKind::General, &device);
    let student = student.valid();
    let matrices = matrices(&student);
    let whitening = Whitening::of_maps(&student, batches.clone()).expect("roots");

    // What the projections of the second layer read.
    let mut grams: [Option<Matrix>; 2] = [None, None];
    for batch in &batches {
        let context = student.context(batch);
        let h = student.embed(batch);
        let h = h.clone() + student.attention(0, h, &context);
        let h = h.clone() + student.feed_forward(0, h);
        let inputs = student.attention_inputs(1, h, &context);
        for (gram, input) in grams.iter_mut().zip(inputs) {
            let rows = Matrix::of(&input.flatten::<2>(0, 1));
            let product = rows.transposed().times(&rows);
            *gram = Some(match gram.take() {
                Some(sum) => sum.plus(&product),
                None => product,
            });
        }
    }
    let [stream, heads] = grams.map(|gram| gram.expect("a gram"));

    // Where `S` is the inverse root of `P`, `S P S` is the identity.
    let check = |root: &Option<Tensor<Inner<A>, 2>>, gram: &Matrix| {
        let root = Matrix::of(root.as_ref().expect("a root"));
        let found = root.times(gram).times(&root);
        let identity = (0..found.values.len()).map(|i| f64::from(i % (found.columns + 1) == 0));
        let identity: Vec<f64> = identity.collect();
        // Of the condition number, at most 1e4 with its damping, half the digits.
        assert_close(&found.values, &identity, &Tolerance::Uniform(2e-3));
    };
    for role in ["query", "key", "value"] {
        let name = format!("blocks.1.attention.{role}");
        let c = &matrices[&format!("{name}.c")];
        let [left, right] = whitening
            .factors(&format!("{name}.right.w"))
            .expect("a map");
        assert!(right.is_none());
        check(left, &c.transposed().times(&stream).times(c).damped(1e-2));
    }
    let c = &matrices["blocks.1.attention.output.c"];
    let factors = whitening.factors("blocks.1.attention.output.left.w");
    let [left, right] = factors.expect("a map");
    check(left, &c.times(&c.transposed()).damped(1e-4));
    check(right, &heads.damped(1e-2));
}

/// Registers random gradients of the maps, and keeps them by name.
struct Gradients<B: Backend> {
    path: Vec<String>,
    numbers: Numbers,
    registered: GradientsParams,
    by_name: BTreeMap<String, Matrix>,
    device: B::Device,
}

impl<A: AutodiffBackend> ModuleVisitor<A> for Gradients<A> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        // An enum's variant has no name of its own in a tensor's.
        let name = if container_type.starts_with("Enum:") {
            ""
        } else {
            name
        };
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<A, D>>) {
        if D != 2 || self.path.last().map(String::as_str) != Some("w") {
            return;
        }
        let shape = [param.dims()[0], param.dims()[1]];
        let gradient = self
            .numbers
            .tensor::<A::InnerBackend, 2>(shape, &self.device);
        let parts = self.path.iter().filter(|part| !part.is_empty());
        let name = parts.cloned().collect::<Vec<_>>().join(".");
        self.by_name.insert(name, Matrix::of(&gradient));
        self.registered.register(param.id, gradient);
    }
}

fn a_map_moves_as_its_coordinates_would<A: AutodiffBackend>(device: A::Device) {
    const STEPS: usize = 4;
    const RATE: f64 = 1e-2;
    let (mut module, batches) = student::<A>(MapKind::General, &device);
    let whitening = Whitening::of_maps(&module.valid(), batches).expect("roots");
    let config = AdamConfig::default();
    let mut optimizer = Adam::<A>::new(config).with_whitening(whitening.clone());
    let before = matrices::<A, _>(&module);
    // The moments of the coordinates, and what the maps have moved by.
    let mut moments: BTreeMap<String, [Vec<f64>; 2]> = BTreeMap::new();
    let mut moved: BTreeMap<String, Matrix> = BTreeMap::new();
    for step in 1..=STEPS {
        let mut gradients = Gradients::<A> {
            path: Vec::new(),
            numbers: Numbers::new(step as u64),
            registered: GradientsParams::new(),
            by_name: BTreeMap::new(),
            device: device.clone(),
        };
        module.visit(&mut gradients);
        assert_eq!(gradients.by_name.len(), 3 * 4, "four maps a layer");
        module = optimizer.step(RATE, module, gradients.registered);
        for (name, gradient) in gradients.by_name {
            let factors = whitening.factors(&name).expect("a map");
            let turn = |m: &Matrix| {
                let [left, right] = factors;
                let m = left
                    .as_ref()
                    .map_or(m.clone(), |left| Matrix::of(left).times(m));
                right
                    .as_ref()
                    .map_or(m.clone(), |right| m.times(&Matrix::of(right)))
            };
            let mut direction = turn(&gradient);
            let zeros = vec![0.0; direction.values.len()];
            let [first, second] = moments
                .entry(name.clone())
                .or_insert_with(|| [zeros.clone(), zeros]);
            let [beta_1, beta_2] = config.betas;
            let corrected = |mean: f64, beta: f64| mean / (1.0 - beta.powi(step as i32));
            for (value, (first, second)) in direction
                .values
                .iter_mut()
                .zip(first.iter_mut().zip(second))
            {
                *first = beta_1 * *first + (1.0 - beta_1) * *value;
                *second = beta_2 * *second + (1.0 - beta_2) * *value * *value;
                *value = -RATE * corrected(*first, beta_1) / corrected(*second, beta_2).sqrt();
            }
            let step = turn(&direction);
            let sum = moved
                .remove(&name)
                .map_or(step.clone(), |sum| sum.plus(&step));
            moved.insert(name, sum);
        }
    }
    let after = matrices::<A, _>(&module);
    for (name, moved) in moved {
        let found = after[&name].values.iter().zip(&before[&name].values);
        let found: Vec<f64> = found.map(|(after, before)| after - before).collect();
        let largest = moved
            .values
            .iter()
            .fold(0.0, |most: f64, one| most.max(one.abs()));
        assert!(largest > 1e-3, "{name} hardly moves: {largest}");
        // A gradient near zero may turn its sign in float32: then a step goes the other way.
        let close = Tolerance::Uniform(1e-3 * largest);
        assert_close(&found, &moved.values, &close);
    }
}

fn a_map_of_factors_keeps_its_own_coordinates<A: AutodiffBackend>(device: A::Device) {
    let (student, batches) = student::<A>(MapKind::Factored, &device);
    let student = student.valid();
    let whitening = Whitening::of_maps(&student, batches).expect("nothing to do");
    for name in matrices::<Inner<A>, _>(&student).keys() {
        assert!(whitening.factors(name).is_none(), "{name}");
    }
}
