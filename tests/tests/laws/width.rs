//! Students with a narrower residual stream: what is lost where nothing lies in the directions that go, and how near
//! they begin.

use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::calibration::{CalibratedStart, Calibration, CalibrationError, calibrate};
use burn_lti::decoder::{LayerSelection, LtiSpec, RoleMaps};
use burn_lti::geometry::Axes;
use burn_lti::map::MapKind;
use burn_lti::tensors::TensorSet;
use burn_lti_llama::config::LlamaConfig;
use burn_lti_llama::eval::evaluate;
use burn_lti_llama::model::{LearningLlama, PlainLlama};
use burn_lti_tests::close::{assert_close, assert_not_close};
use burn_lti_tests::llama::load;
use burn_lti_tests::numbers::{Numbers, values};
use burn_lti_tests::on_every_backend;
use burn_lti_tests::params::{edit, fill_random, parameters, perturb};
use burn_lti_tests::toy::{ToyConfig, logits, packed_batch};

use super::calibrated::{Inner, batches, llama_student, spec, tolerance, toy_student};

on_every_backend![
    a_stream_that_lies_in_a_plane_becomes_narrower_without_loss,
    gains_are_folded_and_one_table_stays_one,
    directions_begin_nearer_than_features,
    a_width_that_cannot_be_is_refused,
];

/// A teacher of which nothing that is written to the stream leaves a plane of so many directions.
fn in_a_plane<B: Backend>(teacher: PlainLlama<B>, directions: usize) -> PlainLlama<B> {
    let width = teacher.config().hidden_size;
    let mut numbers = Numbers::new(41);
    let mut plane: Vec<Vec<f64>> = Vec::new();
    for _ in 0..directions {
        let row = numbers.normal(width);
        let mut row: Vec<f64> = row.into_iter().map(f64::from).collect();
        // Twice is enough.
        for _ in 0..2 {
            for other in &plane {
                let part: f64 = row.iter().zip(other).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(other).for_each(|(a, b)| *a -= part * b);
            }
        }
        let size = row.iter().map(|a| a * a).sum::<f64>().sqrt();
        plane.push(row.into_iter().map(|a| a / size).collect());
    }
    edit(teacher, |name, values| {
        let writes = ["embed_tokens.weight", "o_proj.", "down_proj."];
        if !writes.iter().any(|part| name.contains(part)) {
            return;
        }
        for row in values.chunks_mut(width) {
            let parts = plane.iter().map(|direction| -> f64 {
                let both = row.iter().zip(direction);
                both.map(|(a, b)| f64::from(*a) * b).sum()
            });
            let parts: Vec<f64> = parts.collect();
            for (i, value) in row.iter_mut().enumerate() {
                let of_plane = plane.iter().zip(&parts);
                *value = of_plane
                    .map(|(direction, part)| part * direction[i])
                    .sum::<f64>() as f32;
            }
        }
    })
}

/// `teacher` at the width of `config`: its maps are of that.
fn narrow_spec(teacher: &LlamaConfig, config: &LlamaConfig) -> LtiSpec {
    let axes = Axes {
        d_model: config.hidden_size,
        ..teacher.axes()
    };
    spec(axes, RoleMaps::attention(MapKind::General))
}

type Made<B> = (LearningLlama<B>, CalibratedStart<B>);

fn calibrated<A: AutodiffBackend>(
    teacher: &PlainLlama<Inner<A>>,
    config: &LlamaConfig,
    spec: &LtiSpec,
    device: &A::Device,
) -> Result<Made<Inner<A>>, CalibrationError> {
    let mut tensors = TensorSet::collect(teacher);
    if !config.tie_word_embeddings {
        let shape = [config.hidden_size, config.vocab_size];
        let head = Tensor::<Inner<A>, 2>::zeros(shape, device);
        tensors.insert("lm_head.weight", "Linear", head);
    }
    let mut calibration = Calibration::new(spec, config.axes());
    calibration.ties_head = Some(config.tie_word_embeddings);
    let student_with = |start: &TensorSet<Inner<A>>| {
        let tensors = TensorSet::from_inner(&tensors.with(start));
        llama_student::<A>(config, spec, &tensors, device)
    };
    let text = batches(4, config.vocab_size, 5, device);
    let start = calibrate::<A, _, _, _>(&calibration, teacher, &text, student_with, |_| {})?;
    let student = llama_student(config, spec, &tensors.with(&start.tensors), device);
    Ok((student.expect("a student"), start))
}

fn a_stream_that_lies_in_a_plane_becomes_narrower_without_loss<A: AutodiffBackend>(
    device: A::Device,
) {
    for name in ["tied", "untied_bias"] {
        let teacher = load::<Inner<A>>(name, &device);
        let config = teacher.config().clone();
        let directions = config.hidden_size * 3 / 4;
        let teacher = in_a_plane(teacher, directions);
        let batch = packed_batch(config.vocab_size, 3, &device);
        let expected = values(&logits(&teacher, &batch));
        let shape = config.at_width(directions, false);
        let spec = narrow_spec(&config, &shape);
        let (student, _) = calibrated::<A>(&teacher, &shape, &spec, &device).expect("a start");
        let found = values(&logits(&student, &batch));
        // Products with the basis and the maps at the norms, on each way through a layer.
        let twice: Vec<f64> = expected.iter().map(|it| 2.0 * it).collect();
        assert_close(&found, &expected, &tolerance(&twice));
        let changed = perturb(student, "model.layers.1.mlp.up_proj.weight", 1e-2);
        let changed = values(&logits(&changed, &batch));
        assert_not_close(&changed, &expected, &tolerance(&twice));
    }
}

fn gains_are_folded_and_one_table_stays_one<A: AutodiffBackend>(device: A::Device) {
    let teacher = load::<Inner<A>>("tied", &device);
    let config = teacher.config().clone();
    for is_tied in [true, false] {
        let shape = config.at_width(config.hidden_size * 3 / 4, is_tied);
        let spec = narrow_spec(&config, &shape);
        let (student, start) = calibrated::<A>(&teacher, &shape, &spec, &device).expect("a start");
        let gains = start
            .tensors
            .iter()
            .filter(|(name, _)| name.ends_with("gamma"));
        let mut count = 0;
        for (name, named) in gains {
            let values = named.tensor.to_f32().expect("values");
            assert!(values.iter().all(|gain| *gain == 1.0), "{name}");
            count += 1;
        }
        assert_eq!(count, 2 * config.num_hidden_layers + 1);
        let names: Vec<String> = parameters(&student).into_keys().collect();
        let has_head = names.iter().any(|name| name.starts_with("lm_head"));
        assert_eq!(has_head, !is_tied);
    }
}

/// The first features of a teacher, as they are.
fn first_features<B: Backend>(
    teacher: &PlainLlama<B>,
    shape: &LlamaConfig,
    device: &B::Device,
) -> TensorSet<B> {
    let narrow = TensorSet::collect(&fill_random(PlainLlama::<B>::init(shape, device), 1));
    let mut tensors = TensorSet::collect(teacher);
    for (name, named) in narrow.iter() {
        let own = tensors.get(name).expect("the teacher's").clone();
        match (
            own.tensor.shape().as_slice(),
            named.tensor.shape().as_slice(),
        ) {
            (&[length], &[to]) => {
                let entries: Tensor<B, 1> = own.tensor.to_rank([length]);
                tensors.insert(name, &own.owner, entries.narrow(0, 0, to));
            }
            (&[rows, columns], &[to_rows, to_columns]) => {
                let weight: Tensor<B, 2> = own.tensor.to_rank([rows, columns]);
                let weight = weight.narrow(0, 0, to_rows).narrow(1, 0, to_columns);
                tensors.insert(name, &own.owner, weight);
            }
            (own, to) => panic!("{name}: {own:?} and {to:?}"),
        }
    }
    tensors
}

fn directions_begin_nearer_than_features<A: AutodiffBackend>(device: A::Device) {
    let teacher = fill_random(load::<Inner<A>>("tied", &device), 11);
    let config = teacher.config().clone();
    let shape = config.at_width(config.hidden_size * 3 / 4, true);
    let text = batches(2, config.vocab_size, 8, &device);
    let kl = |student: &LearningLlama<Inner<A>>| {
        let found = evaluate(student, &teacher, &text, |_, _| {});
        found.kl.expect("a KL")
    };
    let spec = narrow_spec(&config, &shape);
    let (student, _) = calibrated::<A>(&teacher, &shape, &spec, &device).expect("a start");
    let without_maps = spec_without_maps(&spec);
    let tensors = first_features(&teacher, &shape, &device);
    let picked = llama_student(&shape, &without_maps, &tensors, &device).expect("a student");
    let (of_directions, of_features) = (kl(&student), kl(&picked));
    assert!(
        of_directions < 0.8 * of_features,
        "{of_directions} {of_features}"
    );
}

fn spec_without_maps(spec: &LtiSpec) -> LtiSpec {
    LtiSpec {
        maps: std::iter::empty().collect(),
        ..spec.clone()
    }
}

fn a_width_that_cannot_be_is_refused<A: AutodiffBackend>(device: A::Device) {
    let teacher = load::<Inner<A>>("tied", &device);
    let config = teacher.config().clone();
    let wide = config.at_width(config.hidden_size + 1, true);
    let spec = narrow_spec(&config, &wide);
    let error = calibrated::<A>(&teacher, &wide, &spec, &device).map(|_| ());
    let error = error.expect_err("too wide").to_string();
    assert!(error.contains("residual stream has 24 features"), "{error}");

    let narrow = config.at_width(config.hidden_size / 2, true);
    let some = LtiSpec {
        layers: LayerSelection::Only(vec![0]),
        ..narrow_spec(&config, &narrow)
    };
    let error = calibrated::<A>(&teacher, &narrow, &some, &device).map(|_| ());
    let error = error.expect_err("some layers").to_string();
    assert!(error.contains("select all"), "{error}");

    // A decoder that does not say what its norms make.
    let (from, mut to) = (ToyConfig::new(2, 1), ToyConfig::new(2, 1));
    to.geometry.d_model = 8;
    let spec = spec_of(&to);
    let toy = from.random::<Inner<A>>(1, &device);
    let tensors = TensorSet::collect(&toy);
    let calibration = Calibration::new(&spec, to.geometry);
    let text = batches(4, from.vocab, 5, &device);
    let student_with =
        |start: &TensorSet<Inner<A>>| toy_student::<A>(&to, &spec, &tensors.with(start), &device);
    let start = calibrate::<A, _, _, _>(&calibration, &toy, &text, student_with, |_| {});
    let error = start.map(|_| ()).expect_err("no norms").to_string();
    assert!(error.contains("keep the teacher's width"), "{error}");
}

fn spec_of(config: &ToyConfig) -> LtiSpec {
    spec(config.geometry, RoleMaps::attention(MapKind::General))
}
