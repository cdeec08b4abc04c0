//! Students with a narrower residual stream: what is lost where nothing lies in the directions that go, how near they
//! begin, and what maps make of such a start.

use std::collections::BTreeMap;

use burn::module::AutodiffModule;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::blueprint::Rules;
use burn_lti::calibration::{
    CalibratedStart, Calibration, CalibrationError, MadeMaps, StreamGradients, WidthMaps,
    calibrate, stream_gradients, with_maps_of_width,
};
use burn_lti::collapse::collapse;
use burn_lti::decoder::{LayerSelection, LtiSpec, RoleMaps};
use burn_lti::geometry::{Axes, Axis, Role, Site};
use burn_lti::map::{KernelPrecision, MapKind, Start};
use burn_lti::tensors::TensorSet;
use burn_lti_llama::config::{LlamaConfig, site_name};
use burn_lti_llama::eval::evaluate;
use burn_lti_llama::model::{LearningLlama, PlainLlama, foldable_gains, with_folded_gains};
use burn_lti_tests::close::{Tolerance, assert_close, assert_not_close, rounding};
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
    directions_that_nothing_reads_go_first,
    a_width_that_cannot_be_is_refused,
    the_whole_width_through_a_new_stream_is_the_teacher,
    maps_of_the_width_make_what_a_narrower_start_fits,
    one_map_of_the_width_begins_nearer_than_features,
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

/// By directions that are weighed, as a run has them.
fn calibrated<A: AutodiffBackend>(
    teacher: &PlainLlama<Inner<A>>,
    config: &LlamaConfig,
    spec: &LtiSpec,
    device: &A::Device,
) -> Result<Made<Inner<A>>, CalibrationError> {
    let on_graph = PlainLlama::<A>::from_inner(teacher.clone());
    let text = batches(4, config.vocab_size, 5, device);
    let gradients = stream_gradients(&on_graph, &text, 0)?;
    calibrated_by::<A>(Some(gradients), teacher, config, spec, device)
}

fn calibrated_by<A: AutodiffBackend>(
    gradients: Option<StreamGradients>,
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
    calibration.gradients = gradients;
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

/// A quarter of the teacher's features is large, and no weight reads it: principal components keep it, and what the loss
/// weighs leaves it out.
fn directions_that_nothing_reads_go_first<A: AutodiffBackend>(device: A::Device) {
    let teacher = load::<Inner<A>>("untied_bias", &device);
    let config = teacher.config().clone();
    let (width, read) = (config.hidden_size, config.hidden_size * 3 / 4);
    let teacher = edit(teacher, |name, values| {
        let is = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
        if !name.ends_with("weight") {
            return;
        }
        if is(&[
            "q_proj",
            "k_proj",
            "v_proj",
            "gate_proj",
            "up_proj",
            "lm_head",
        ]) {
            let outputs = values.len() / width;
            values[read * outputs..].fill(0.0);
        }
        if is(&["embed_tokens"]) {
            for row in values.chunks_mut(width) {
                row[read..].iter_mut().for_each(|value| *value *= 3.0);
            }
        }
    });
    let shape = config.at_width(read, false);
    let spec = narrow_spec(&config, &shape);
    let text = batches(2, config.vocab_size, 8, &device);
    let kl = |student: &LearningLlama<Inner<A>>| {
        let found = evaluate(student, &teacher, &text, |_, _| {});
        found.kl.expect("a KL")
    };
    let (weighed, _) = calibrated::<A>(&teacher, &shape, &spec, &device).expect("a start");
    let plain = calibrated_by::<A>(None, &teacher, &shape, &spec, &device);
    let (weighed, plain) = (kl(&weighed), kl(&plain.expect("a start").0));
    assert!(weighed < 0.5 * plain, "{weighed} {plain}");
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
    let of_start = start.map(|_| ()).expect_err("no norms").to_string();
    let on_graph = from.random::<A>(1, &device);
    let gradients = stream_gradients(&on_graph, &text, 0).map(|_| ());
    let of_gradients = gradients.expect_err("no norms").to_string();
    for error in [of_start, of_gradients] {
        assert!(error.contains("keep the teacher's width"), "{error}");
    }
}

fn spec_of(config: &ToyConfig) -> LtiSpec {
    spec(config.geometry, RoleMaps::attention(MapKind::General))
}

/// The weights of a student that lie along the width.
fn weights_of(config: &LlamaConfig) -> Vec<(Site, String)> {
    let of_layer = |layer| {
        let roles = Role::ATTENTION.into_iter().chain(Role::FEED_FORWARD);
        roles.map(move |role| Site::new(layer, role))
    };
    let head = (!config.tie_word_embeddings).then_some(Site::HEAD);
    let sites = std::iter::once(Site::EMBEDDING)
        .chain((0..config.num_hidden_layers).flat_map(of_layer))
        .chain(head);
    sites.map(|site| (site, site_name(site))).collect()
}

/// A teacher's tensors for a student of this shape, which may have a head where the teacher has none.
fn of_both_ends<B: Backend>(teacher: &PlainLlama<B>, config: &LlamaConfig) -> TensorSet<B> {
    let mut tensors = TensorSet::collect(teacher);
    let of_teacher = teacher.config();
    if !config.tie_word_embeddings && of_teacher.tie_word_embeddings {
        let table = tensors.get("model.embed_tokens.weight").expect("a table");
        let shape = [of_teacher.vocab_size, of_teacher.hidden_size];
        let table: Tensor<B, 2> = table.tensor.to_rank(shape);
        tensors.insert("lm_head.weight", "Linear", table.transpose());
    }
    with_folded_gains(config, &tensors)
}

/// The student of a narrower start whose weights are made by maps, and what these leave of them.
fn mapped<A: AutodiffBackend>(
    teacher: &PlainLlama<Inner<A>>,
    config: &LlamaConfig,
    start: CalibratedStart<Inner<A>>,
    maps: WidthMaps,
    device: &A::Device,
) -> (LearningLlama<Inner<A>>, CalibratedStart<Inner<A>>, f64) {
    let of_teacher = teacher.config();
    let narrow = narrow_spec(of_teacher, config);
    let calibration = Calibration::new(&narrow, config.axes());
    let mut tensors = of_both_ends(teacher, config);
    let weights = weights_of(config);
    let made = with_maps_of_width(start, &calibration, &tensors, &weights, maps).expect("maps");
    let MadeMaps {
        mut start,
        residual,
        longer,
    } = made;
    let last = "model.norm.gamma".to_owned();
    if config.tie_word_embeddings {
        let gains = start.tensors.get(&last).expect("gains").clone();
        let gains: Tensor<Inner<A>, 1> = gains.tensor.to_rank([config.hidden_size]);
        let gains = gains.div_scalar(longer);
        start.tensors.insert(&last, "RmsNorm", gains);
    }
    let roles = Role::FEED_FORWARD.into_iter();
    let attention = RoleMaps::attention(MapKind::General);
    let forms = roles.fold(attention, |maps, role| maps.with(role, MapKind::General));
    let (axes, forms) = match maps {
        WidthMaps::None => (narrow.teacher, forms.filled_along(Axis::Hidden)),
        WidthMaps::Each | WidthMaps::One => (of_teacher.axes(), forms.with_width(MapKind::General)),
    };
    let spec = LtiSpec {
        maps: forms,
        start: Start::Calibrated,
        ..LtiSpec::new(axes)
    };
    let started: Vec<String> = foldable_gains(config)
        .into_iter()
        .map(|(name, _)| name)
        .chain([last])
        .collect();
    tensors = tensors.with(&start.tensors);
    let awaiting = PlainLlama::init(config, device).learn_to_init(&spec);
    let injected = awaiting
        .expect("a swap")
        .inject(&tensors, &Rules::by_name().with_started(started));
    (injected.expect("an injection").0, start, residual)
}

/// A student's weights once its maps are folded.
fn kernels<B: Backend>(student: &LearningLlama<B>) -> BTreeMap<String, Vec<f64>> {
    let collapsed = collapse(student, KernelPrecision::Default).expect("kernels");
    let tensors = collapsed.tensors().iter();
    let numbers = tensors.map(|(name, named)| {
        let values = named.tensor.to_f32().expect("numbers");
        (name.to_owned(), values.into_iter().map(f64::from).collect())
    });
    numbers.collect()
}

/// A head that is the embedding in another tensor becomes one with it, and all directions are kept. Gains before the head
/// would stretch them, which a norm is not blind to.
fn the_whole_width_through_a_new_stream_is_the_teacher<A: AutodiffBackend>(device: A::Device) {
    let tied = edit(load::<Inner<A>>("tied", &device), |name, own| {
        if name == "model.norm.gamma" {
            own.fill(1.0);
        }
    });
    let config = tied.config().at_width(tied.config().hidden_size, false);
    let tensors = TensorSet::collect(&tied);
    let table = tensors.get("model.embed_tokens.weight").expect("a table");
    let table = table.tensor.to_f32().expect("numbers");
    let [vocab, width] = [config.vocab_size, config.hidden_size];
    let teacher = edit(
        PlainLlama::<Inner<A>>::init(&config, &device),
        |name, own| {
            match tensors.get(name) {
                Some(named) => *own = named.tensor.to_f32().expect("numbers"),
                // A `Linear` of the head is the table, turned.
                None => {
                    for (at, value) in own.iter_mut().enumerate() {
                        *value = table[at % vocab * width + at / vocab];
                    }
                }
            }
        },
    );
    let batch = packed_batch(vocab, 3, &device);
    let expected = values(&logits(&teacher, &batch));
    let of_tied = values(&logits(&tied, &batch));
    assert_close(&of_tied, &expected, &tolerance(&expected));
    let shape = config.at_width(width, true);
    let spec = narrow_spec(&config, &shape);
    let (student, start) = calibrated::<A>(&teacher, &shape, &spec, &device).expect("a start");
    // Products with the basis and the maps at the norms, on each way through a layer and at both ends.
    let bound = |times: f64| {
        let longer: Vec<f64> = expected.iter().map(|it| times * it).collect();
        tolerance(&longer)
    };
    assert_close(&values(&logits(&student, &batch)), &expected, &bound(4.0));
    for maps in [WidthMaps::None, WidthMaps::Each] {
        let (student, ..) = mapped::<A>(&teacher, &shape, start.clone(), maps, &device);
        let found = values(&logits(&student, &batch));
        assert_close(&found, &expected, &bound(8.0));
        let moved = perturb(student, "model.layers.1.mlp.up_proj.right.w", 0.3);
        let moved = values(&logits(&moved, &batch));
        assert_not_close(&moved, &expected, &bound(8.0));
    }
}

fn maps_of_the_width_make_what_a_narrower_start_fits<A: AutodiffBackend>(device: A::Device) {
    for (name, is_tied) in [("tied", true), ("tied", false), ("untied_bias", false)] {
        let config = load::<Inner<A>>(name, &device).config().clone();
        // More units than features, and biases beside them.
        let config = LlamaConfig {
            intermediate_size: 64,
            mlp_bias: true,
            ..config
        };
        let teacher = fill_random(PlainLlama::init(&config, &device), 11);
        let shape = LlamaConfig {
            num_attention_heads: config.num_attention_heads / 2,
            num_key_value_heads: config.num_key_value_heads / 2,
            intermediate_size: 48,
            ..config.at_width(config.hidden_size * 3 / 4, is_tied)
        };
        let spec = narrow_spec(&config, &shape);
        let (weights, start) = calibrated::<A>(&teacher, &shape, &spec, &device).expect("a start");
        let batch = packed_batch(config.vocab_size, 3, &device);
        let (fitted, expected) = (kernels(&weights), values(&logits(&weights, &batch)));
        for maps in [WidthMaps::None, WidthMaps::Each] {
            let made = mapped::<A>(&teacher, &shape, start.clone(), maps, &device);
            let (student, start, residual) = made;
            // Rounded to float32, as the start is of which they are made.
            assert!(residual < 1e-4, "{name} {maps:?}: {residual}");
            let found = kernels(&student);
            assert!(found.keys().eq(fitted.keys()) && found.len() > 14);
            for (name, fitted) in &fitted {
                let found = &found[name];
                let norm = fitted.iter().map(|it| it * it).sum::<f64>().sqrt();
                let bound = Tolerance::Uniform((1e-4 + rounding(4 * 64)) * norm);
                assert_close(found, fitted, &bound);
                let mut wrong = fitted.clone();
                wrong[0] += 1e-2 * norm;
                assert_not_close(&wrong, fitted, &bound);
            }
            let largest = expected.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
            // What is left of the kernels, in two layers and the head.
            let bound = Tolerance::Uniform(20.0 * 1e-4 * largest);
            assert_close(&values(&logits(&student, &batch)), &expected, &bound);
            let moved = perturb(student, "model.layers.0.mlp.gate_proj.right.w", 0.3);
            assert_not_close(&values(&logits(&moved, &batch)), &expected, &bound);
            let has_width = start
                .tensors
                .names()
                .any(|it| it == "model.embed_tokens.right.w");
            assert_eq!(has_width, maps == WidthMaps::Each);
        }
    }
}

fn one_map_of_the_width_begins_nearer_than_features<A: AutodiffBackend>(device: A::Device) {
    for is_tied in [true, false] {
        let teacher = fill_random(load::<Inner<A>>("tied", &device), 11);
        let config = teacher.config().clone();
        let shape = config.at_width(config.hidden_size * 3 / 4, is_tied);
        let spec = narrow_spec(&config, &shape);
        let (_, start) = calibrated::<A>(&teacher, &shape, &spec, &device).expect("a start");
        let (student, start, _) = mapped::<A>(&teacher, &shape, start, WidthMaps::One, &device);
        let map = |name: &str| start.tensors.get(name).expect(name).tensor.to_f32();
        let first = map("model.embed_tokens.right.w");
        for (site, name) in weights_of(&shape) {
            let side = match site.role {
                Role::Embedding | Role::Out | Role::Down => "right",
                _ => "left",
            };
            assert_eq!(map(&format!("{name}.{side}.w")), first, "{name}");
        }
        let text = batches(2, config.vocab_size, 8, &device);
        let kl = |student: &LearningLlama<Inner<A>>| {
            let found = evaluate(student, &teacher, &text, |_, _| {});
            found.kl.expect("a KL")
        };
        let without_maps = spec_without_maps(&spec);
        let mut features =
            first_features(&teacher, &config.at_width(shape.hidden_size, true), &device);
        if !is_tied {
            let table = features.get("model.embed_tokens.weight").expect("a table");
            let table: Tensor<Inner<A>, 2> =
                table.tensor.to_rank([config.vocab_size, shape.hidden_size]);
            features.insert("lm_head.weight", "Linear", table.transpose());
        }
        let picked = llama_student(&shape, &without_maps, &features, &device).expect("a student");
        let (of_map, of_features) = (kl(&student), kl(&picked));
        assert!(of_map < of_features, "{of_map} {of_features}");
    }
}
