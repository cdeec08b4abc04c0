//! Students with fewer units in their feed-forward blocks, or fewer layers: what is lost of what adds nothing, and
//! how near they begin.

use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::calibration::{Calibration, CalibrationError, calibrate, choose_layers};
use burn_lti::decoder::{CausalLm, RoleMaps, TokenBatch};
use burn_lti::loss::{DistillationLoss, LossInput};
use burn_lti::map::MapKind;
use burn_lti::tensors::TensorSet;
use burn_lti::train::Teacher;
use burn_lti_llama::config::LlamaConfig;
use burn_lti_llama::eval::evaluate;
use burn_lti_llama::model::{LearningLlama, PlainLlama};
use burn_lti_tests::close::{assert_close, assert_not_close};
use burn_lti_tests::llama::load;
use burn_lti_tests::numbers::values;
use burn_lti_tests::on_every_backend;
use burn_lti_tests::params::{edit, fill_random, perturb};
use burn_lti_tests::toy::{logits, packed_batch};

use super::calibrated::{Inner, batches, llama_student, spec, tolerance};

on_every_backend![
    units_that_add_nothing_leave_without_loss,
    units_that_others_can_do_for_leave_without_loss,
    a_layer_that_does_nothing_is_the_one_that_is_left_out,
    what_is_left_makes_up_for_what_is_gone,
    a_student_of_more_units_or_layers_is_refused,
];

const LAYERS: usize = 4;

/// A random Llama of four layers, with weights as large as trained ones.
fn teacher<B: Backend>(device: &B::Device) -> PlainLlama<B> {
    let config = load::<B>("tied", device).config().clone();
    let config = LlamaConfig {
        num_hidden_layers: LAYERS,
        turned: vec![true; LAYERS],
        windows: vec![None; LAYERS],
        ..config
    };
    fill_random(PlainLlama::init(&config, device), 11)
}

fn with_units(teacher: &LlamaConfig, intermediate_size: usize) -> LlamaConfig {
    LlamaConfig {
        intermediate_size,
        ..teacher.clone()
    }
}

/// The tensors of `teacher` by the numbers that its `kept` layers have in a student.
fn of_kept<B: Backend>(tensors: &TensorSet<B>, kept: &[usize]) -> TensorSet<B> {
    tensors.renamed(|name| {
        let Some((layer, rest)) = name
            .strip_prefix("model.layers.")
            .and_then(|rest| rest.split_once('.'))
        else {
            return Some(name.to_owned());
        };
        let layer: usize = layer.parse().ok()?;
        let number = kept.iter().position(|it| *it == layer)?;
        Some(format!("model.layers.{number}.{rest}"))
    })
}

/// The calibrated student of this shape.
fn calibrated<A: AutodiffBackend>(
    teacher: &PlainLlama<Inner<A>>,
    config: &LlamaConfig,
    kept: Option<&[usize]>,
    device: &A::Device,
) -> Result<LearningLlama<Inner<A>>, CalibrationError> {
    let spec = spec(
        teacher.config().axes(),
        RoleMaps::attention(MapKind::General),
    );
    let mut tensors = TensorSet::collect(teacher);
    let mut calibration = Calibration::new(&spec, config.axes());
    if let Some(kept) = kept {
        calibration.kept = Some(kept.to_vec());
        tensors = of_kept(&tensors, kept);
    }
    let student_with = |start: &TensorSet<Inner<A>>| {
        let tensors = TensorSet::from_inner(&tensors.with(start));
        llama_student::<A>(config, &spec, &tensors, device)
    };
    let text = batches(4, config.vocab_size, 5, device);
    let start = calibrate::<A, _, _, _>(&calibration, teacher, &text, student_with, |_| {})?;
    let student = llama_student(config, &spec, &tensors.with(&start.tensors), device);
    Ok(student.expect("a student"))
}

fn units_that_add_nothing_leave_without_loss<A: AutodiffBackend>(device: A::Device) {
    let teacher = load::<Inner<A>>("tied", &device);
    let config = teacher.config().clone();
    let (units, width) = (config.intermediate_size, config.hidden_size);
    // Every third unit and the one after it add nothing.
    let idle = |unit: usize| !unit.is_multiple_of(3);
    let teacher = edit(teacher, |name, values| {
        if name.ends_with("down_proj.weight") {
            for unit in (0..units).filter(|unit| idle(*unit)) {
                values[unit * width..(unit + 1) * width].fill(0.0);
            }
        }
    });
    let busy = (0..units).filter(|unit| !idle(*unit)).count();
    let batch = packed_batch(config.vocab_size, 3, &device);
    let expected = values(&logits(&teacher, &batch));
    let shape = with_units(&config, busy);
    let student = calibrated::<A>(&teacher, &shape, None, &device).expect("a start");
    let found = values(&logits(&student, &batch));
    assert_close(&found, &expected, &tolerance(&expected));
    let changed = perturb(student, "model.layers.1.mlp.up_proj.weight", 1e-2);
    let changed = values(&logits(&changed, &batch));
    assert_not_close(&changed, &expected, &tolerance(&expected));
}

fn units_that_others_can_do_for_leave_without_loss<A: AutodiffBackend>(device: A::Device) {
    let teacher = load::<Inner<A>>("tied", &device);
    let config = teacher.config().clone();
    let units = config.intermediate_size;
    let half = units / 2;
    // The second half of the units reads what the first half reads, and adds something else.
    let teacher = edit(teacher, |name, values| {
        if name.ends_with("gate_proj.weight") || name.ends_with("up_proj.weight") {
            for row in values.chunks_mut(units) {
                row.copy_within(0..units - half, half);
            }
        }
    });
    let (batch, text) = (
        packed_batch(config.vocab_size, 3, &device),
        batches(2, config.vocab_size, 6, &device),
    );
    let kl = |student: &LearningLlama<Inner<A>>| {
        let found = evaluate(student, &teacher, &text, |_, _| {});
        found.kl.expect("a KL")
    };
    let shape = with_units(&config, units - half);
    let student = calibrated::<A>(&teacher, &shape, None, &device).expect("a start");
    let of_all = kl(&student);
    // Without the others' part.
    let lost = edit(student, |name, values| {
        if name.ends_with("down_proj.weight") {
            values.iter_mut().for_each(|value| *value *= 0.5);
        }
    });
    let of_lost = kl(&lost);
    assert!(of_all < 1e-3 * of_lost, "{of_all} {of_lost}");
    assert!(
        values(&logits(&lost, &batch))
            .iter()
            .all(|it| it.is_finite())
    );
}

/// The KL of `teacher` on `batch` to what its head makes of a stream.
fn cost<'a, B: Backend>(
    teacher: &'a PlainLlama<B>,
    batch: &'a TokenBatch<B>,
) -> impl Fn(Tensor<B, 3>) -> f64 + 'a {
    let targets = teacher.teach(batch, &[]).tokens;
    move |stream| {
        let hidden = teacher.finished(stream);
        let input = LossInput::new(hidden, teacher.head(), targets.clone(), batch);
        let sums = DistillationLoss::KL.evaluate(input).read();
        sums.kl_mean().expect("a mean")
    }
}

fn a_layer_that_does_nothing_is_the_one_that_is_left_out<A: AutodiffBackend>(device: A::Device) {
    for idle in [1, 3] {
        let teacher = edit(teacher::<Inner<A>>(&device), |name, values| {
            let of_layer = name.starts_with(&format!("model.layers.{idle}."));
            if of_layer && (name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight")) {
                values.fill(0.0);
            }
        });
        let config = teacher.config().clone();
        let text: Vec<_> = batches(2, config.vocab_size, 7, &device).iter().collect();
        let [fitted, held_out] = [&text[0], &text[1]];
        let mut tries = (0, 0);
        let kept = choose_layers(
            &teacher,
            [fitted, held_out],
            LAYERS - 1,
            cost(&teacher, held_out),
            |done, all| tries = (done, all),
        );
        let kept = kept.expect("a choice");
        let busy: Vec<usize> = (0..LAYERS).filter(|layer| *layer != idle).collect();
        assert_eq!(kept, busy);
        assert_eq!(tries.0, tries.1);

        let batch = packed_batch(config.vocab_size, 3, &device);
        let expected = values(&logits(&teacher, &batch));
        let shape = config.with_layers(&kept);
        assert_eq!(shape.num_hidden_layers, LAYERS - 1);
        let student = calibrated::<A>(&teacher, &shape, Some(&kept), &device).expect("a start");
        assert_eq!(student.layers(), LAYERS - 1);
        let found = values(&logits(&student, &batch));
        // Four layers, where the tolerance counts two.
        let allowed = tolerance(&expected.iter().map(|it| 2.0 * it).collect::<Vec<_>>());
        assert_close(&found, &expected, &allowed);
        let changed = perturb(student, "model.layers.2.mlp.up_proj.weight", 1e-2);
        assert_not_close(&values(&logits(&changed, &batch)), &expected, &allowed);
    }
}

fn what_is_left_makes_up_for_what_is_gone<A: AutodiffBackend>(device: A::Device) {
    let teacher = teacher::<Inner<A>>(&device);
    let config = teacher.config().clone();
    let text = batches(2, config.vocab_size, 8, &device);
    let kept = [0, 1, 3];
    let units = config.intermediate_size * 3 / 4;
    let shape = with_units(&config.with_layers(&kept), units);
    let student = calibrated::<A>(&teacher, &shape, Some(&kept), &device).expect("a start");
    let calibrated = evaluate(&student, &teacher, &text, |_, _| {});
    // The same layers, and the first of the units, as they are in the teacher.
    let tensors = of_kept(&TensorSet::collect(&teacher), &kept);
    let mut picked = TensorSet::new();
    let all = config.intermediate_size;
    for (name, named) in tensors.iter() {
        if name.contains(".mlp.") {
            let of_down = name.contains("down_proj");
            let [rows, columns] = match of_down {
                true => [all, config.hidden_size],
                false => [config.hidden_size, all],
            };
            let weight: Tensor<Inner<A>, 2> = named.tensor.to_rank([rows, columns]);
            let weight = weight.narrow(if of_down { 0 } else { 1 }, 0, units);
            picked.insert(name, "Linear", weight);
        }
    }
    let spec = spec(config.axes(), std::iter::empty().collect());
    let picked = llama_student(&shape, &spec, &tensors.with(&picked), &device);
    let picked = evaluate(&picked.expect("a student"), &teacher, &text, |_, _| {});
    let (calibrated, picked) = (calibrated.kl.expect("a KL"), picked.kl.expect("a KL"));
    assert!(calibrated < 0.8 * picked, "{calibrated} {picked}");
}

fn a_student_of_more_units_or_layers_is_refused<A: AutodiffBackend>(device: A::Device) {
    let teacher = load::<Inner<A>>("tied", &device);
    let config = teacher.config().clone();
    let shape = with_units(&config, config.intermediate_size + 1);
    let error = calibrated::<A>(&teacher, &shape, None, &device).expect_err("too many");
    assert!(error.to_string().contains("hidden"), "{error}");
    let text: Vec<_> = batches(2, config.vocab_size, 7, &device).iter().collect();
    for count in [0, config.num_hidden_layers + 1] {
        let chosen = choose_layers(
            &teacher,
            [&text[0], &text[1]],
            count,
            cost(&teacher, &text[1]),
            |_, _| {},
        );
        let error = chosen.expect_err("no such number");
        assert!(error.to_string().contains("layers"), "{error}");
    }
}
