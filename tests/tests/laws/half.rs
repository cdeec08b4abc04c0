//! Half precision: what a device computes in, and what it refuses.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::module::{AutodiffModule, Param};
use burn::nn::Linear;
use burn::optim::{GradientsParams, Optimizer, SgdConfig};
use burn::prelude::Tensor;
use burn::tensor::DType;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::train::{InferenceStep, TrainStep};
use burn_lti::kernels::ProductPrecision;
use burn_lti::loss::DistillationLoss;
use burn_lti::map::{AttnMap, KernelPrecision, ProjectionKind, calculate_attn_weight};
use burn_lti::tensors::TensorSet;
use burn_lti::train::{Distiller, StudentOptimizer};
use burn_lti_llama::distill::learning_student;
use burn_lti_llama::hf::{self, HfError, WeightFiles, WeightType};
use burn_lti_llama::model::{LearningLlama, PlainLlama};
use burn_lti_tests::close::{Tolerance, assert_close, assert_not_close, rounding};
use burn_lti_tests::llama::{causal_batch, load, model_dir};
use burn_lti_tests::numbers::{Numbers, tensor, values};
use burn_lti_tests::oracle::{Map, Projection, widen};
use burn_lti_tests::params::{gradients, in_map, parameters, perturb};
use burn_lti_tests::toy::packed_batch;
use burn_lti_tests::training::take_steps;
use burn_lti_tests::{chain, on_every_backend};
use tempfile::TempDir;

use crate::llama::{plan, recipe};

on_every_backend![
    a_float_type_is_computed_in_or_refused_by_name,
    a_half_precision_kernel_is_contracted_in_float32_when_asked,
    a_precision_the_device_lacks_is_refused_by_name,
    a_model_computes_in_half_precision,
    a_half_precision_model_comes_back_from_its_file,
    maps_of_a_half_precision_teacher_have_the_gradients_of_float32,
    maps_of_a_half_precision_teacher_learn,
    products_in_bfloat16_have_the_gradients_of_float32,
    a_precision_of_training_is_none_of_measuring,
    a_small_half_precision_gradient_has_its_norm,
];

/// The half-precision types of this device, each with `u`, half the distance from 1 to the next
/// number.
pub(crate) fn half_types<B: Backend>(device: &B::Device) -> Vec<(WeightType, f64)> {
    [
        (WeightType::F16, 2f64.powi(-11)),
        (WeightType::Bf16, 2f64.powi(-8)),
    ]
    .into_iter()
    .filter(|(dtype, _)| B::supports_dtype(device, dtype.dtype()))
    .collect()
}

/// The fixture whose file is of this type.
fn fixture(dtype: WeightType) -> &'static str {
    match dtype {
        WeightType::F32 => "tied",
        WeightType::F16 => "f16",
        WeightType::Bf16 => "bf16",
    }
}

fn a_float_type_is_computed_in_or_refused_by_name<A: AutodiffBackend>(device: A::Device) {
    for dtype in WeightType::ALL {
        let found = hf::load_as::<A::InnerBackend>(&model_dir("tied"), dtype, &device);
        match found {
            Ok(model) => assert_eq!(model.dtype(), dtype.dtype()),
            Err(error) => {
                assert!(matches!(error, HfError::FloatType { .. }), "{error}");
                let (message, backend) = (error.to_string(), A::InnerBackend::name(&device));
                assert!(message.contains(&backend), "{message}");
                assert!(message.contains(dtype.name()), "{message}");
                assert!(message.contains("float32"), "no way out: {message}");
                assert_ne!(dtype, WeightType::F32);
            }
        }
    }
}

fn a_half_precision_kernel_is_contracted_in_float32_when_asked<A: AutodiffBackend>(
    device: A::Device,
) {
    for (dtype, unit) in half_types::<A::InnerBackend>(&device) {
        for kind in [ProjectionKind::Qkv, ProjectionKind::Output] {
            let (d, x, y, u, v) = (9, 16, 8, 2, 8);
            let mut numbers = Numbers::new(4);
            let (c_shape, b_shape) = match kind {
                ProjectionKind::Qkv => ([d, x, y], [y, v]),
                ProjectionKind::Output => ([x, y, d], [v, y]),
            };
            let c = numbers.tensor::<A::InnerBackend, 3>(c_shape, &device);
            let c = c.cast(dtype.dtype());
            let (a, b) = (numbers.normal(x * u), numbers.normal(y * v));
            let oracle = Projection {
                kind,
                sizes: [d, x, y, u, v],
                c: values(&c),
                map: Map::Factored {
                    a: widen(&a),
                    b: widen(&b),
                },
                bias: None,
            };
            let expected = oracle.kernel();
            // Float32 throughout, then one rounding to the type of `C`.
            let bounds = expected.iter().zip(oracle.kernel_bounds());
            let tolerance = Tolerance::Each(
                bounds
                    .map(|(k, bound)| bound + unit * k.abs() + f64::EPSILON)
                    .collect(),
            );
            let found = |precision| {
                let map = AttnMap::Factored {
                    a: tensor(&a, [x, u], &device),
                    b: tensor(&b, b_shape, &device),
                };
                let kernel = calculate_attn_weight(kind, c.clone(), map, precision);
                let kernel = kernel.expect("a precision that every device has");
                assert_eq!(kernel.dtype(), dtype.dtype());
                values(&kernel)
            };
            assert_close(&found(KernelPrecision::High), &expected, &tolerance);
            // Without being asked, maps and partial products are rounded to half as well.
            assert_not_close(&found(KernelPrecision::Default), &expected, &tolerance);
        }
    }
}

fn a_precision_the_device_lacks_is_refused_by_name<A: AutodiffBackend>(device: A::Device) {
    let c = Numbers::new(1).tensor::<A::InnerBackend, 3>([3, 2, 2], &device);
    let map = || AttnMap::Factored {
        a: tensor::<A::InnerBackend, 2>(&[1.0, 1.0], [2, 1], &device),
        b: tensor(&[1.0, 0.0, 0.0, 1.0], [2, 2], &device),
    };
    let kernel =
        |precision| calculate_attn_weight(ProjectionKind::Qkv, c.clone(), map(), precision);
    assert!(kernel(KernelPrecision::High).is_ok());
    let highest = kernel(KernelPrecision::Highest);
    if A::InnerBackend::supports_dtype(&device, DType::F64) {
        assert!(highest.is_ok());
        return;
    }
    let error = highest.expect_err("there is no float64 here");
    let message = chain(&error);
    for word in ["highest", "float64"] {
        assert!(message.contains(word), "{message}");
    }
}

/// What logits in half precision may be off by: the results that are stored in it, some twenty a
/// layer and three more, each rounded once. Sums are longer, but matrix products keep theirs in float32.
fn half_tolerance<B: Backend>(model: &PlainLlama<B>, unit: f64, expected: &[f64]) -> Tolerance {
    let stored = 20 * model.config().num_hidden_layers + 3;
    let share = rounding(stored) * unit / burn_lti_tests::close::UNIT_ROUNDOFF;
    let largest = expected.iter().fold(0.0f64, |all, one| all.max(one.abs()));
    Tolerance::Uniform(share * largest)
}

fn a_model_computes_in_half_precision<A: AutodiffBackend>(device: A::Device) {
    for (dtype, unit) in half_types::<A::InnerBackend>(&device) {
        let name = fixture(dtype);
        let model = hf::load_as::<A::InnerBackend>(&model_dir(name), dtype, &device);
        let model = model.expect("a type that the device has");
        let tokens = Numbers::new(3).ids(2 * 12, model.config().vocab_size);
        let batch = causal_batch([2, 12], &tokens, &device);
        let wide = load::<A::InnerBackend>(name, &device);
        let expected = values(&wide.logits(&batch));
        let logits = model.logits(&batch);
        assert_eq!(logits.dtype(), dtype.dtype());
        let tolerance = half_tolerance(&wide, unit, &expected);
        let deviation = assert_close(&values(&logits), &expected, &tolerance);
        eprintln!("{dtype} on {}: {deviation}", A::name(&device));
        let perturbed = perturb(wide, "model.norm.gamma", 1.0);
        assert_not_close(
            &values(&perturbed.logits(&batch)),
            &values(&logits),
            &tolerance,
        );
    }
}

fn a_half_precision_model_comes_back_from_its_file<A: AutodiffBackend>(device: A::Device) {
    for (dtype, _) in half_types::<A::InnerBackend>(&device) {
        let source = model_dir("tied");
        let model = hf::load_as::<A::InnerBackend>(&source, dtype, &device).expect("a model");
        let dir = TempDir::new().expect("a folder");
        hf::export(&model, dtype, &source, dir.path()).expect("an export");
        let files = WeightFiles::open(dir.path()).expect("weights");
        for name in files.names() {
            assert_eq!(files.info(name).expect("a tensor").dtype, dtype);
        }
        let config = std::fs::read_to_string(dir.path().join("config.json")).expect("a file");
        assert_eq!(config.matches(dtype.name()).count(), 2, "{config}");
        let back = hf::load_as::<A::InnerBackend>(dir.path(), dtype, &device).expect("an import");
        let bits = |model: &PlainLlama<A::InnerBackend>| {
            let all = parameters(model).into_iter();
            all.map(|(name, one)| (name, one.bits)).collect::<Vec<_>>()
        };
        assert!(bits(&model) == bits(&back));
    }
}

type Pupil<A> =
    Distiller<A, LearningLlama<A>, Arc<PlainLlama<<A as AutodiffBackend>::InnerBackend>>>;

/// A student of two heads and one key/value head on a teacher with biases, held in `dtype`.
fn pupil<A: AutodiffBackend>(dtype: WeightType, device: &A::Device) -> Pupil<A> {
    let dir = TempDir::new().expect("a folder");
    let heads = "heads = 2, kv_heads = 1";
    let rest = "lti.precision = 'high'";
    let mut recipe = recipe(dir.path(), &model_dir("untied_bias"), heads, rest);
    recipe.teacher.dtype = dtype;
    let plan = plan(&recipe);
    let tensors = hf::load_tensors(&recipe.teacher.path, &plan.teacher, dtype, device);
    let tensors: TensorSet<A::InnerBackend> = tensors.expect("a teacher");
    let teacher = hf::plain_from_tensors(&plan.teacher, &tensors, device).expect("a teacher");
    let student = learning_student::<A>(&plan, &tensors, device).expect("a student");
    let loss = DistillationLoss::new(0.5, 2.0, 7).expect("settings");
    Distiller::new(student, Arc::new(teacher), loss).expect("one vocabulary")
}

fn maps_of_a_half_precision_teacher_have_the_gradients_of_float32<A: AutodiffBackend>(
    device: A::Device,
) {
    let batch = packed_batch(61, 5, &device);
    let of = |dtype| {
        let pupil = pupil::<A>(dtype, &device);
        let output = TrainStep::step(&pupil, batch.clone());
        gradients(&pupil, &output.grads)
    };
    let expected = of(WeightType::F32);
    for (dtype, unit) in half_types::<A::InnerBackend>(&device) {
        assert_near(&of(dtype), &expected, unit);
    }
}

type Gradients = BTreeMap<String, Vec<f64>>;

/// Gradients of two layers in which numbers are rounded to `unit`, beside those of float32.
fn assert_near(found: &Gradients, expected: &Gradients, unit: f64) {
    assert!(found.keys().eq(expected.keys()));
    // Three times the roundings of a forward pass of two layers lead there and back.
    let share = rounding(3 * (20 * 2 + 3)) * unit / burn_lti_tests::close::UNIT_ROUNDOFF;
    for (name, gradient) in found {
        let norm = |values: &[f64]| values.iter().map(|one| one * one).sum::<f64>().sqrt();
        let exact = &expected[name];
        let difference: Vec<f64> = gradient.iter().zip(exact).map(|(a, b)| a - b).collect();
        let (difference, size) = (norm(&difference), norm(exact));
        assert!(gradient.iter().all(|one| one.is_finite()), "{name}");
        assert!(
            difference <= share * size,
            "{name}: {difference} of {size}, {share} allowed"
        );
    }
}

/// The devices that have it.
fn has_bfloat16<A: AutodiffBackend>(device: &A::Device) -> bool {
    ProductPrecision::BFloat16.is_supported::<A::InnerBackend>(device)
}

fn products_in_bfloat16_have_the_gradients_of_float32<A: AutodiffBackend>(device: A::Device) {
    if !has_bfloat16::<A>(&device) {
        return;
    }
    let batch = packed_batch(61, 5, &device);
    let of = |precision| {
        let pupil = pupil::<A>(WeightType::F32, &device).with_precision(precision);
        let output = TrainStep::step(&pupil, batch.clone());
        gradients(&pupil, &output.grads)
    };
    let expected = of(ProductPrecision::Float32);
    let found = of(ProductPrecision::BFloat16);
    assert_near(&found, &expected, 2f64.powi(-8));
    for (name, gradient) in &found {
        assert_ne!(gradient, &expected[name], "{name} is that of float32");
    }
    assert_eq!(found, of(ProductPrecision::BFloat16), "twice the same");
}

fn a_precision_of_training_is_none_of_measuring<A: AutodiffBackend>(device: A::Device) {
    if !has_bfloat16::<A>(&device) {
        return;
    }
    let batch = packed_batch::<A>(61, 5, &device).inner();
    let of = |precision| {
        let pupil = pupil::<A>(WeightType::F32, &device).with_precision(precision);
        let sums = InferenceStep::step(&pupil.valid(), batch.clone());
        format!("{:?}", sums.read())
    };
    assert_eq!(
        of(ProductPrecision::Float32),
        of(ProductPrecision::BFloat16)
    );
}

fn maps_of_a_half_precision_teacher_learn<A: AutodiffBackend>(device: A::Device) {
    for (dtype, _) in half_types::<A::InnerBackend>(&device) {
        let pupil = pupil::<A>(dtype, &device);
        let before = parameters(pupil.student());
        let (pupil, losses) = take_steps(pupil, &packed_batch(61, 5, &device), 12, 1e-2);
        let (first, last) = (losses[0], losses[losses.len() - 1]);
        assert!(last < 0.9 * first, "{dtype}: {losses:?}");
        for (name, parameter) in parameters(pupil.student()) {
            let moved = parameter.bits != before[&name].bits;
            let in_map = in_map(&name, &parameter);
            assert_eq!(moved, in_map, "{dtype}, {name}");
            let expected = if in_map { DType::F32 } else { dtype.dtype() };
            assert_eq!(parameter.dtype, expected, "{dtype}, {name}");
        }
    }
}

/// The squares of these numbers are zero in float16.
fn a_small_half_precision_gradient_has_its_norm<A: AutodiffBackend>(device: A::Device) {
    for (dtype, _) in half_types::<A::InnerBackend>(&device) {
        let dtype = dtype.dtype();
        let gradient = Numbers::new(6).tensor::<A::InnerBackend, 2>([3, 5], &device);
        let gradient = gradient.mul_scalar(1e-5).cast(dtype);
        let size = values(&gradient).iter().map(|g| g * g).sum::<f64>().sqrt();
        let module = Linear::<A> {
            weight: Param::from_tensor(Tensor::zeros([3, 5], (&device, dtype))),
            bias: None,
        };
        let mut gradients = GradientsParams::new();
        gradients.register(module.weight.id, gradient);
        let optimizer = SgdConfig::new().init::<A, Linear<A>>();
        let mut optimizer = StudentOptimizer::new(optimizer);
        let norm = optimizer.measures();
        optimizer.step(1.0, module, gradients);
        let norm = norm.last().expect("a step was taken").grad_norm;
        // A square each, their sum, and a root.
        assert!((norm - size).abs() <= size * rounding(17), "{norm} {size}");
    }
}
