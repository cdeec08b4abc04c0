//! The feature loss: its gradient beside Burn's, on features alone and through a whole student.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn::train::TrainStep;
use burn_lti::decoder::{CausalLm, FeatureTap, TokenBatch};
use burn_lti::loss::{
    Curve, DistillationLoss, FeatureDistance, FeatureLoss, LossSchedule, Schedule,
};
use burn_lti::parameters::set_trainable;
use burn_lti::train::{Distiller, LayerPair, StepClock};
use burn_lti_tests::close::{Tolerance, assert_close, assert_not_close, rounding};
use burn_lti_tests::numbers::values;
use burn_lti_tests::on_every_backend;
use burn_lti_tests::params::{edit, gradients, perturb};
use burn_lti_tests::toy::{PlainToy, ToyConfig};

on_every_backend![
    a_step_has_the_gradient_of_the_feature_loss,
    projectors_begin_as_the_identity_and_learn,
    features_of_nothing_have_a_finite_gradient,
    the_weight_follows_its_schedule,
    layers_that_do_not_exist_are_refused,
];

type Inner<A> = <A as AutodiffBackend>::InnerBackend;

const WEIGHT: f64 = 0.8;
/// A layer twice, and layers that are not opposite one another.
const PAIRS: [LayerPair; 3] = [
    LayerPair {
        student: 0,
        teacher: 2,
    },
    LayerPair {
        student: 1,
        teacher: 2,
    },
    LayerPair {
        student: 1,
        teacher: 0,
    },
];

fn models<A: AutodiffBackend>(
    device: &A::Device,
) -> (ToyConfig, PlainToy<A>, Arc<PlainToy<Inner<A>>>) {
    let config = ToyConfig::new(2, 1);
    let student = set_trainable(config.random::<A>(3, device), |_| true);
    let teacher = ToyConfig::new(4, 2).random(1, device);
    (config, student, Arc::new(teacher))
}

fn loss(distance: FeatureDistance) -> DistillationLoss {
    let loss = DistillationLoss::new(1.0, 1.0, 5).expect("settings");
    loss.with_feature(FeatureLoss::new(distance, WEIGHT).expect("a weight"))
}

fn attention<B: Backend>(
    model: &impl CausalLm<B>,
    batch: &TokenBatch<B>,
    layers: &[usize],
) -> Vec<Tensor<B, 3>> {
    let mut tap = FeatureTap::attention_of(layers);
    model.forward(batch, &mut tap);
    tap.into_outputs().expect("every layer shows its output")
}

/// The weighted mean over pairs and tokens, by Burn's own operations.
fn plain_loss<A: AutodiffBackend>(
    distance: FeatureDistance,
    student: &PlainToy<A>,
    teacher: &PlainToy<Inner<A>>,
    batch: &TokenBatch<A>,
) -> Tensor<A, 1> {
    let ours = attention(student, batch, &PAIRS.map(|pair| pair.student));
    let theirs = attention(teacher, &batch.inner(), &PAIRS.map(|pair| pair.teacher));
    let mask = batch.mask.clone();
    let mut sum = Tensor::zeros([1], &mask.device());
    for (ours, theirs) in ours.into_iter().zip(theirs) {
        let theirs = Tensor::<A, 3>::from_inner(theirs);
        let norm = |x: &Tensor<A, 3>| x.clone().powf_scalar(2.0).sum_dim(2).sqrt();
        let per_token: Tensor<A, 3> = match distance {
            FeatureDistance::Cosine => {
                let product = (ours.clone() * theirs.clone()).sum_dim(2);
                (product / (norm(&ours) * norm(&theirs))).neg() + 1.0
            }
            FeatureDistance::L2 => (ours - theirs).powf_scalar(2.0).mean_dim(2),
        };
        sum = sum + (per_token.squeeze_dim::<2>(2) * mask.clone()).sum();
    }
    sum / mask.sum() * (WEIGHT / PAIRS.len() as f64)
}

/// The step's gradient less that of a step without features is the feature loss's own.
fn a_step_has_the_gradient_of_the_feature_loss<A: AutodiffBackend>(device: A::Device) {
    let (config, student, teacher) = models::<A>(&device);
    let batch = config.batch(2, &device);
    for distance in [FeatureDistance::Cosine, FeatureDistance::L2] {
        let step = |student: &PlainToy<A>, loss: DistillationLoss| {
            let pupil = Distiller::new(student.clone(), teacher.clone(), loss).expect("a pupil");
            let pupil = match loss.feature() {
                None => pupil,
                Some(_) => pupil.with_pairs(PAIRS).expect("layers there are"),
            };
            let output = TrainStep::step(&pupil, batch.clone());
            (output.item.read(), gradients(student, &output.grads))
        };
        let (sums, with) = step(&student, loss(distance));
        let (_, without) = step(&student, DistillationLoss::KL);
        let expected_loss = plain_loss(distance, &student, &teacher, &batch);
        let expected = gradients(
            &student,
            &GradientsParams::from_grads(expected_loss.backward(), &student),
        );
        let weighted = sums.feature_mean().expect("features") * WEIGHT;
        let bound = Tolerance::Uniform(2.0 * rounding(1024) * (1.0 + weighted));
        assert_close(&[weighted], &values(&expected_loss), &bound);

        // As for the gradient of the whole loss in `train.rs`: twice the roundings of a forward pass,
        // relative to the norm of all that was added up.
        let flat = |by_name: &BTreeMap<String, Vec<f64>>| {
            by_name.values().flatten().copied().collect::<Vec<f64>>()
        };
        let norm = |all: &[f64]| all.iter().map(|value| value * value).sum::<f64>().sqrt();
        let tolerance = |all: &[f64]| Tolerance::Uniform(2.0 * rounding(1400) * norm(all));
        let (mut found, mut plain) = (Vec::new(), Vec::new());
        for (name, values) in &with {
            // Not every parameter is reached by both losses.
            let of = |gradients: &BTreeMap<String, Vec<f64>>, index: usize| {
                gradients.get(name).map_or(0.0, |values| values[index])
            };
            for (index, value) in values.iter().enumerate() {
                found.push(*value);
                plain.push(of(&without, index) + of(&expected, index));
            }
        }
        assert_close(&found, &plain, &tolerance(&plain));
        let changed = perturb(student.clone(), "blocks.0.attention.value.weight", 0.01);
        let (_, changed) = step(&changed, loss(distance));
        assert_not_close(&flat(&changed), &plain, &tolerance(&plain));
    }
}

fn projectors_begin_as_the_identity_and_learn<A: AutodiffBackend>(device: A::Device) {
    let (config, student, teacher) = models::<A>(&device);
    let batch = config.batch(2, &device);
    let pupil = Distiller::new(student, teacher, loss(FeatureDistance::L2)).expect("a pupil");
    let width = config.geometry.d_model;
    let projected = pupil.clone().with_projectors(width, &device);
    let (plain, output) = (
        TrainStep::step(&pupil, batch.clone()),
        TrainStep::step(&projected, batch),
    );
    let (a, b) = (plain.item.read(), output.item.read());
    assert!((a.loss - b.loss).abs() <= rounding(64) * a.loss.abs());
    let found = gradients(&projected, &output.grads);
    let learning = found
        .iter()
        .filter(|(name, _)| name.starts_with("projectors"));
    let moves = |values: &[f64]| values.iter().any(|value| *value != 0.0);
    assert!(learning.clone().all(|(_, values)| moves(values)));
    assert_eq!(learning.count(), 3);
}

/// A student whose attention puts out nothing at all.
fn features_of_nothing_have_a_finite_gradient<A: AutodiffBackend>(device: A::Device) {
    let (config, student, teacher) = models::<A>(&device);
    let student = edit(student, |name, values| {
        if name.contains("attention.output") {
            values.fill(0.0);
        }
    });
    let loss = loss(FeatureDistance::Cosine);
    let pupil = Distiller::new(student.clone(), teacher, loss).expect("a pupil");
    let output = TrainStep::step(&pupil, config.batch(2, &device));
    let sums = output.item.read();
    let feature = sums.feature_mean().expect("features");
    assert!((feature - 1.0).abs() < 1e-6, "{feature}");
    let found = gradients(&student, &output.grads);
    assert!(found.values().flatten().all(|value| value.is_finite()));
}

fn the_weight_follows_its_schedule<A: AutodiffBackend>(device: A::Device) {
    let (config, student, teacher) = models::<A>(&device);
    let clock = StepClock::new();
    let schedule = LossSchedule::new(loss(FeatureDistance::L2), 100)
        .with_feature_weight(Schedule::new(Curve::Linear, 1.0, 0.0))
        .and_then(|loss| loss.with_alpha(Schedule::new(Curve::Cosine, 0.5, 0.0)))
        .expect("in range");
    let pupil = Distiller::new(student, teacher, schedule).expect("a pupil");
    let pupil = pupil.with_clock(clock.clone());
    let at = |step| {
        clock.set(step);
        let sums = TrainStep::step(&pupil, config.batch(2, &device))
            .item
            .read();
        (sums.feature_weight_mean(), sums.alpha_mean())
    };
    assert_eq!(at(0), (Some(1.0), Some(0.5)));
    assert_eq!(at(50), (Some(0.5), Some(0.25)));
    assert_eq!(at(250), (Some(0.0), Some(0.0)));
}

fn layers_that_do_not_exist_are_refused<A: AutodiffBackend>(device: A::Device) {
    let (_, student, teacher) = models::<A>(&device);
    let refused = |pairs: &[LayerPair]| {
        let pupil = Distiller::new(student.clone(), teacher.clone(), loss(FeatureDistance::L2));
        let pupil = pupil.expect("a pupil");
        pupil
            .with_pairs(pairs.iter().copied())
            .expect_err("refused")
    };
    let error = refused(&[]);
    assert!(
        error.to_string().contains("has no pair of layers"),
        "{error}"
    );
    for (pair, model) in [
        (
            LayerPair {
                student: 3,
                teacher: 0,
            },
            "student",
        ),
        (
            LayerPair {
                student: 0,
                teacher: 3,
            },
            "teacher",
        ),
    ] {
        let error = refused(&[pair]);
        let expected = format!("names layer 3 of the {model}, whose last layer is 2");
        assert!(error.to_string().contains(&expected), "{error}");
    }
    for weight in [-1.0, f64::NAN] {
        let error = FeatureLoss::new(FeatureDistance::L2, weight).expect_err("refused");
        let expected = format!("the weight of the feature loss is {weight}");
        assert!(error.to_string().contains(&expected), "{error}");
    }
}
