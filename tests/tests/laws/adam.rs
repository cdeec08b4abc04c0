//! Laws of the optimizer: one rate is AdamW, measured rates and balanced steps are those of their formulas, a
//! step promises what it is asked for, and a record goes on bit for bit.

use std::num::NonZeroUsize;

use burn::module::Param;
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::train::{Adam, AdamConfig, CheckpointDir, MeasuredRates, RunState, StepMeasures};
use burn_lti_tests::close::{Tolerance, assert_close, assert_not_close, rounding};
use burn_lti_tests::numbers::{Numbers, values};
use burn_lti_tests::on_every_backend;
use tempfile::TempDir;

on_every_backend![
    one_rate_for_all_is_adamw,
    a_large_tensor_is_gone_over_whole,
    measured_rates_are_those_of_the_formula,
    balanced_steps_are_those_of_the_formula,
    a_step_promises_what_it_is_asked_for,
    a_tensor_whose_gradient_is_zero_stays,
    a_record_goes_on_bit_for_bit,
];

/// Two parameters of unlike shapes, and of gradients of unlike sizes.
#[derive(Module, Debug)]
struct Two<B: Backend> {
    matrix: Param<Tensor<B, 2>>,
    vector: Param<Tensor<B, 1>>,
}

const MATRIX: [usize; 2] = [5, 4];
const VECTOR: usize = 6;

impl<A: AutodiffBackend> Two<A> {
    fn new(device: &A::Device) -> Self {
        Self::with_vector(VECTOR, device)
    }

    fn with_vector(length: usize, device: &A::Device) -> Self {
        let mut numbers = Numbers::new(1);
        Self {
            matrix: Param::from_tensor(numbers.tensor(MATRIX, device)),
            vector: Param::from_tensor(numbers.tensor([length], device)),
        }
    }

    fn values(&self) -> [Vec<f64>; 2] {
        [values(&self.matrix.val()), values(&self.vector.val())]
    }

    /// The gradients of step `step`, those of the vector a hundredth as large.
    fn gradients(&self, step: usize, device: &A::Device) -> (GradientsParams, [Vec<f64>; 2]) {
        let mut numbers = Numbers::new(100 + step as u64);
        let matrix = numbers.tensor::<A::InnerBackend, 2>(MATRIX, device);
        let vector = numbers.tensor::<A::InnerBackend, 1>(self.vector.dims(), device) * 0.01;
        let read = [values(&matrix), values(&vector)];
        let mut gradients = GradientsParams::new();
        gradients.register(self.matrix.id, matrix);
        gradients.register(self.vector.id, vector);
        (gradients, read)
    }
}

/// AdamW in plain loops: `[value, first, second]` of one tensor, a step along `gradient` of that rate.
struct Plain {
    value: Vec<f64>,
    first: Vec<f64>,
    second: Vec<f64>,
}

impl Plain {
    fn new(value: Vec<f64>) -> Self {
        let zeros = vec![0.0; value.len()];
        Self {
            value,
            first: zeros.clone(),
            second: zeros,
        }
    }

    /// Where a step of rate 1 goes.
    fn direction(&mut self, gradient: &[f64], step: usize, config: &AdamConfig) -> Vec<f64> {
        let [beta_1, beta_2] = config.betas;
        let corrected = |mean: f64, beta: f64| mean / (1.0 - beta.powi(step as i32));
        let moments = self.first.iter_mut().zip(&mut self.second);
        let directions = moments.zip(gradient).map(|((first, second), gradient)| {
            *first = beta_1 * *first + (1.0 - beta_1) * gradient;
            *second = beta_2 * *second + (1.0 - beta_2) * gradient * gradient;
            corrected(*first, beta_1) / (corrected(*second, beta_2).sqrt() + config.epsilon)
        });
        directions.collect()
    }

    fn go(&mut self, direction: &[f64], rate: f64, config: &AdamConfig) {
        for (value, direction) in self.value.iter_mut().zip(direction) {
            *value = *value * (1.0 - rate * config.weight_decay) - rate * direction;
        }
    }
}

/// Sums of six numbers and a few products at a time, over so many steps.
fn tolerance(steps: usize) -> Tolerance {
    Tolerance::Uniform(20.0 * steps as f64 * rounding(8))
}

fn one_rate_for_all_is_adamw<A: AutodiffBackend>(device: A::Device) {
    const STEPS: usize = 7;
    let config = AdamConfig {
        epsilon: 1e-8,
        weight_decay: 0.1,
        ..AdamConfig::default()
    };
    let adamw = AdamWConfig::new()
        .with_beta_2(0.95)
        .with_epsilon(1e-8)
        .with_weight_decay(0.1);
    let mut burns = adamw.init::<A, Two<A>>();
    let mut ours = Adam::<A>::new(config);
    let (mut expected, mut found) = (Two::<A>::new(&device), Two::<A>::new(&device));
    for step in 1..=STEPS {
        let rate = 0.05 / step as f64;
        expected = burns.step(rate, expected.clone(), expected.gradients(step, &device).0);
        found = ours.step(rate, found.clone(), found.gradients(step, &device).0);
    }
    for (found, expected) in found.values().iter().zip(&expected.values()) {
        assert_close(found, expected, &tolerance(STEPS));
    }
    let began = Two::<A>::new(&device).values();
    assert_not_close(&found.values()[1], &began[1], &tolerance(STEPS));
}

/// More elements than a thread takes at a time, and no multiple of a vector's lanes.
fn a_large_tensor_is_gone_over_whole<A: AutodiffBackend>(device: A::Device) {
    const STEPS: usize = 2;
    let config = AdamConfig::default();
    let mut optimizer = Adam::<A>::new(config);
    let mut module = Two::<A>::with_vector((1 << 14) + 13, &device);
    let [_, began] = module.values();
    let mut plain = Plain::new(began.clone());
    for step in 1..=STEPS {
        let (gradients, [_, read]) = module.gradients(step, &device);
        module = optimizer.step(0.1, module, gradients);
        let direction = plain.direction(&read, step, &config);
        plain.go(&direction, 0.1, &config);
    }
    let [_, found] = module.values();
    // Where the gradients of both steps hardly differ in size and differ in sign, little is left of the
    // direction; each weight has the rounding of what it was.
    assert_close(&found, &plain.value, &tolerance(STEPS));
    assert_not_close(&found, &began, &tolerance(STEPS));
}

fn measured_rates_are_those_of_the_formula<A: AutodiffBackend>(device: A::Device) {
    const STEPS: usize = 8;
    let config = AdamConfig {
        weight_decay: 0.1,
        ..AdamConfig::default()
    };
    let rates = MeasuredRates {
        warmup: 5,
        cap: 0.08,
    };
    let measures = StepMeasures::new();
    let mut optimizer = Adam::<A>::new(config).with_measured_rates(rates, measures.clone());
    let mut module = Two::<A>::new(&device);
    let mut plain = module.values().map(Plain::new);
    let mut rho = [0.0; 2];
    let mut capped = 0;
    for step in 1..=STEPS {
        let (lr, loss) = (step as f64 / 40.0, 3.0 / step as f64);
        let (gradients, read) = module.gradients(step, &device);
        measures.set_loss(loss);
        module = optimizer.step(lr, module, gradients);

        let mut steps = Vec::new();
        let mut promise = 0.0;
        for ((plain, gradient), rho) in plain.iter_mut().zip(&read).zip(&mut rho) {
            if step <= rates.warmup {
                let size: f64 = gradient.iter().map(|one| one.abs()).sum();
                *rho += (size / loss - *rho) / step as f64;
            }
            let direction = plain.direction(gradient, step, &config);
            let rate = lr / (2.0 * *rho);
            let along: f64 = direction.iter().zip(gradient).map(|(d, g)| d * g).sum();
            promise += rate * along / loss;
            steps.push((direction, rate));
        }
        let factor = (rates.cap / promise).min(1.0);
        capped += usize::from(factor < 1.0);
        for (plain, (direction, rate)) in plain.iter_mut().zip(&steps) {
            plain.go(direction, rate * factor, &config);
        }
        let (told, range) = measures.last().and_then(|last| last.rates).expect("rates");
        assert!((told - promise).abs() <= 1e-4 * promise, "{told} {promise}");
        let [one, two] = [steps[0].1 * factor, steps[1].1 * factor];
        assert!((range.lowest - one.min(two)).abs() <= 1e-4 * one.min(two));
        assert!((range.highest - one.max(two)).abs() <= 1e-4 * one.max(two));
        assert!(two > 10.0 * one, "a small gradient has a large rate");
    }
    // Some steps were capped, some not.
    assert!((1..STEPS).contains(&capped), "{capped}");
    for (found, plain) in module.values().iter().zip(&plain) {
        assert_close(found, &plain.value, &tolerance(STEPS));
    }
}

/// `matrix` with its rows divided by their root mean squares, then its columns.
fn balanced(matrix: &[f64]) -> Vec<f64> {
    let [rows, columns] = MATRIX;
    let mut matrix = matrix.to_vec();
    let root = |squares: f64, count: usize| (squares / count as f64).sqrt();
    for row in matrix.chunks_mut(columns) {
        let size = root(row.iter().map(|one| one * one).sum(), columns);
        row.iter_mut().for_each(|one| *one /= size);
    }
    for column in 0..columns {
        let of_column = || (0..rows).map(move |row| row * columns + column);
        let size = root(of_column().map(|at| matrix[at] * matrix[at]).sum(), rows);
        of_column().for_each(|at| matrix[at] /= size);
    }
    matrix
}

/// The matrix goes along its balanced momentum, the vector with Adam, each at its measured rate.
fn balanced_steps_are_those_of_the_formula<A: AutodiffBackend>(device: A::Device) {
    const STEPS: usize = 8;
    let config = AdamConfig {
        weight_decay: 0.1,
        ..AdamConfig::default()
    };
    let rates = MeasuredRates {
        warmup: 5,
        cap: f64::INFINITY,
    };
    let measures = StepMeasures::new();
    let adam = Adam::<A>::new(config).with_measured_rates(rates, measures.clone());
    let mut optimizer = adam.with_balanced(|name| name == "matrix");
    let mut module = Two::<A>::new(&device);
    let mut plain = module.values().map(Plain::new);
    let mut rho = [0.0; 2];
    for step in 1..=STEPS {
        let (lr, loss) = (step as f64 / 40.0, 3.0 / step as f64);
        let (gradients, read) = module.gradients(step, &device);
        measures.set_loss(loss);
        module = optimizer.step(lr, module, gradients);

        let [beta, _] = config.betas;
        let first = plain[0].first.iter_mut().zip(&read[0]);
        let ahead = first.map(|(first, gradient)| {
            *first = beta * *first + (1.0 - beta) * gradient;
            beta * *first + (1.0 - beta) * gradient
        });
        let ahead: Vec<f64> = ahead.collect();
        let directions = [
            balanced(&ahead),
            plain[1].direction(&read[1], step, &config),
        ];
        let sign = |gradient: &[f64]| gradient.iter().map(|one| one.signum()).collect();
        let of_first_step: [Vec<f64>; 2] = [balanced(&read[0]), sign(&read[1])];
        for index in 0..2 {
            if step <= rates.warmup {
                let along = of_first_step[index].iter().zip(&read[index]);
                let promise: f64 = along.map(|(d, g)| d * g).sum();
                rho[index] += (promise / loss - rho[index]) / step as f64;
            }
            plain[index].go(&directions[index], lr / (2.0 * rho[index]), &config);
        }
    }
    for (found, plain) in module.values().iter().zip(&plain) {
        assert_close(found, &plain.value, &tolerance(STEPS));
    }
}

/// The change of the loss by the first step, to first order, is the loss, or the cap's part of it.
fn a_step_promises_what_it_is_asked_for<A: AutodiffBackend>(device: A::Device) {
    for (lr, cap, expected) in [(1.0, f64::INFINITY, 1.0), (0.1, 0.5, 0.1), (1.0, 0.5, 0.5)] {
        let loss = 2.5;
        let measures = StepMeasures::new();
        measures.set_loss(loss);
        let rates = MeasuredRates { warmup: 5, cap };
        let adam = Adam::<A>::new(AdamConfig::default());
        let mut optimizer = adam.with_measured_rates(rates, measures);
        let before = Two::<A>::new(&device);
        let (gradients, read) = before.gradients(1, &device);
        let after = optimizer.step(lr, before.clone(), gradients);
        let parts = before.values().into_iter().zip(after.values()).zip(read);
        let parts = parts.map(|((before, after), gradient)| {
            let moves = before
                .iter()
                .zip(after)
                .map(|(before, after)| before - after);
            moves.zip(gradient).map(|(by, g)| by * g).sum::<f64>() / loss
        });
        let parts: Vec<f64> = parts.collect();
        // Each tensor promises the same part. What is lost is the rounding of the weights themselves.
        for part in &parts {
            assert!((part - expected / 2.0).abs() < 1e-3, "{parts:?}");
        }
    }
}

fn a_tensor_whose_gradient_is_zero_stays<A: AutodiffBackend>(device: A::Device) {
    let measures = StepMeasures::new();
    measures.set_loss(1.0);
    let adam = Adam::<A>::new(AdamConfig::default());
    let mut optimizer = adam.with_measured_rates(MeasuredRates::new(0), measures.clone());
    let before = Two::<A>::new(&device);
    let (mut gradients, _) = before.gradients(1, &device);
    let _ = gradients.remove::<A::InnerBackend, 1>(before.vector.id);
    gradients.register::<A::InnerBackend, 1>(before.vector.id, Tensor::zeros([VECTOR], &device));
    let after = optimizer.step(0.1, before.clone(), gradients);
    assert_eq!(after.values()[1], before.values()[1]);
    assert_ne!(after.values()[0], before.values()[0]);
    let (promise, range) = measures.last().and_then(|last| last.rates).expect("rates");
    assert!(promise.is_finite() && range.lowest == 0.0);
}

fn a_record_goes_on_bit_for_bit<A: AutodiffBackend>(device: A::Device) {
    for balances in [|_: &str| false, |name: &str| name == "matrix"] {
        goes_on_bit_for_bit::<A>(balances, &device);
    }
}

fn goes_on_bit_for_bit<A: AutodiffBackend>(balances: fn(&str) -> bool, device: &A::Device) {
    const STEPS: usize = 9;
    let fresh = || {
        let measures = StepMeasures::new();
        let adam = Adam::<A>::new(AdamConfig::default()).with_balanced(balances);
        let optimizer = adam.with_measured_rates(MeasuredRates::new(5), measures.clone());
        (Two::<A>::new(device), optimizer, measures)
    };
    let steps =
        |range: std::ops::RangeInclusive<usize>,
         (mut module, mut optimizer, measures): (Two<A>, Adam<A>, StepMeasures)| {
            for step in range {
                measures.set_loss(1.0 / step as f64);
                let (gradients, _) = module.gradients(step, device);
                module = optimizer.step(0.1, module, gradients);
            }
            (module, optimizer)
        };
    let (expected, _) = steps(1..=STEPS, fresh());
    // In the warm-up, at its end, and after it.
    for stop in [3, 5, 7] {
        let folder = TempDir::new().expect("a folder");
        let mut checkpoints =
            CheckpointDir::open(folder.path(), NonZeroUsize::MIN).expect("a folder");
        let (module, optimizer) = steps(1..=stop, fresh());
        let saved = checkpoints.save(&module, &optimizer, RunState::at(stop));
        let (module, optimizer, measures) = fresh();
        let restored = saved.expect("a checkpoint").restore_into(module, optimizer);
        let (module, optimizer) = restored.expect("one that fits");
        let (module, _) = steps(stop + 1..=STEPS, (module, optimizer, measures));
        assert_eq!(module.values(), expected.values(), "after {stop}");
    }
}
