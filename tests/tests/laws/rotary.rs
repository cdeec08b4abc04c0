//! Laws of maps that commute with a rotary embedding: in value, after steps along their gradients, in starts,
//! folded, and in the coordinates in which they learn.

use burn::module::AutodiffModule;
use burn::optim::{GradientsParams, Optimizer};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::calibration::Whitening;
use burn_lti::collapse::collapse;
use burn_lti::decoder::{LayeredDecoder, LtiSpec, RoleMaps};
use burn_lti::geometry::{HeadGrid, Role, Site};
use burn_lti::kernels::{RotaryTable, apply_rotary};
use burn_lti::map::{KernelPrecision, LtiDense, MapKind, ProjectionKind, Start, contraction_cost};
use burn_lti::tensors::TensorSet;
use burn_lti::train::{Adam, AdamConfig};
use burn_lti_llama::config::LlamaConfig;
use burn_lti_llama::hf;
use burn_lti_llama::model::{LearningLlama, PlainLlama};
use burn_lti_tests::close::{Tolerance, assert_close, assert_not_close, rounding};
use burn_lti_tests::dense::{dense_config, leaf_of, side_of};
use burn_lti_tests::llama::{batch_of, family_dir, load};
use burn_lti_tests::numbers::{Numbers, bits, values};
use burn_lti_tests::on_every_backend;
use burn_lti_tests::params::{fill_random, gradients, parameters, perturb, perturb_largest};
use burn_lti_tests::toy::{logits, packed_batch};

use super::calibrated::{calibrated_with, llama_student, tolerance, with_heads};

on_every_backend![
    it_agrees_with_plain_loops,
    its_gradient_agrees_with_plain_loops,
    its_cost_is_that_of_the_loops,
    it_commutes_with_every_turn_whatever_it_has_learned,
    scores_depend_on_relative_positions_alone,
    equal_heads_begin_as_the_teacher,
    a_calibrated_start_is_that_of_general_maps,
    folded_it_is_the_same_model,
    its_coordinates_are_those_of_each_pair,
    pairs_that_heads_do_not_have_are_refused,
];

type Inner<A> = <A as AutodiffBackend>::InnerBackend;

const QKV: ProjectionKind = ProjectionKind::Qkv;
const KINDS: [ProjectionKind; 2] = [QKV, ProjectionKind::Output];

/// Teacher's and student's heads, `[x, y]` and `[u, v]`, pairs that turn in each, and what the pairs and the other
/// features of a student's head are made of, written out.
struct Case {
    teacher: [usize; 2],
    student: [usize; 2],
    turning: [usize; 2],
    /// For each pair of the student's that turns, the teacher's.
    pairs: &'static [usize],
    /// Features that do not turn.
    still: [&'static [usize]; 2],
}

const CASES: [Case; 5] = [
    Case {
        teacher: [4, 8],
        student: [2, 8],
        turning: [4, 4],
        pairs: &[0, 1, 2, 3],
        still: [&[], &[]],
    },
    // Every other pair turns at the same frequency.
    Case {
        teacher: [3, 8],
        student: [4, 4],
        turning: [4, 2],
        pairs: &[0, 2],
        still: [&[], &[]],
    },
    Case {
        teacher: [4, 8],
        student: [2, 8],
        turning: [3, 3],
        pairs: &[0, 1, 2],
        still: [&[3, 7], &[3, 7]],
    },
    Case {
        teacher: [3, 12],
        student: [2, 6],
        turning: [4, 2],
        pairs: &[0, 2],
        still: [&[4, 5, 10, 11], &[2, 5]],
    },
    Case {
        teacher: [2, 4],
        student: [3, 8],
        turning: [2, 4],
        pairs: &[0, 1, 1, 1],
        still: [&[], &[]],
    },
];

/// Numbers of a float parameter.
fn floats<B: Backend, M: Module<B>>(module: &M, name: &str) -> Vec<f64> {
    let all = parameters(module);
    let bits = all.get(name).map(|parameter| parameter.bits.clone());
    let bits = bits.unwrap_or_default().into_iter();
    bits.map(|bits| f64::from(f32::from_bits(bits))).collect()
}

impl Case {
    fn kind(&self) -> MapKind {
        let [teacher, student] = self.turning;
        MapKind::Rotary { teacher, student }
    }

    fn grids(&self) -> [HeadGrid; 2] {
        [self.teacher, self.student].map(|[heads, size]| HeadGrid::new(heads, size))
    }

    /// A projection of random numbers over five features of the model's.
    fn layer<B: Backend>(&self, kind: ProjectionKind, device: &B::Device) -> LtiDense<B> {
        let [teacher, student] = self.grids();
        let config = dense_config(kind, 5, teacher, student, self.kind());
        let config = config.with_start(Start::Lecun, 3);
        let c = Numbers::new(5).tensor(config.c_shape(), device);
        config.init(c).expect("a layer")
    }

    /// The features of a pair of a head of so many.
    const fn features(pair: usize, size: usize) -> [usize; 2] {
        [pair, pair + size / 2]
    }

    /// Where each number of `R` and `W` goes in the map over all features, and with which sign: `each(number, row,
    /// column, sign)`, the numbers of `W` behind those of `R`.
    fn places(&self, mut each: impl FnMut(usize, usize, usize, f64)) {
        let ([x, y], [u, v]) = (self.teacher, self.student);
        for (pair, source) in self.pairs.iter().enumerate() {
            let [re, im] = Self::features(*source, y);
            let [to_re, to_im] = Self::features(pair, v);
            for head in 0..x {
                for s_head in 0..u {
                    let a = (pair * 2 * x + head) * u + s_head;
                    let b = (pair * 2 * x + x + head) * u + s_head;
                    let [row, column] = [head * y, s_head * v];
                    each(a, row + re, column + to_re, 1.0);
                    each(a, row + im, column + to_im, 1.0);
                    each(b, row + re, column + to_im, 1.0);
                    each(b, row + im, column + to_re, -1.0);
                }
            }
        }
        let [of, to] = self.still;
        let first = self.pairs.len() * 2 * x * u;
        for (row, (head, feature)) in (0..x)
            .flat_map(|head| of.iter().map(move |feature| (head, feature)))
            .enumerate()
        {
            for (column, (s_head, s_feature)) in (0..u)
                .flat_map(|head| to.iter().map(move |feature| (head, feature)))
                .enumerate()
            {
                let number = first + row * u * to.len() + column;
                each(number, head * y + feature, s_head * v + s_feature, 1.0);
            }
        }
    }

    /// The map over all features, `[x y, u v]`, of the numbers of `R` and behind them those of `W`.
    fn general(&self, numbers: &[f64]) -> Vec<f64> {
        let ([x, y], [u, v]) = (self.teacher, self.student);
        let mut map = vec![0.0; x * y * u * v];
        self.places(|number, row, column, sign| {
            map[row * u * v + column] += sign * numbers[number];
        });
        map
    }

    fn numbers<B: Backend>(&self, kind: ProjectionKind, layer: &LtiDense<B>) -> Vec<f64> {
        let [r, w] = ["r", "w"].map(|letter| floats(layer, &leaf_of(kind, letter)));
        [r, w].concat()
    }

    /// `C W` for query, `W^T C` for out, each term through `of`.
    fn kernel(&self, kind: ProjectionKind, c: &[f64], map: &[f64], of: fn(f64) -> f64) -> Vec<f64> {
        let (t, s) = (
            self.teacher.iter().product::<usize>(),
            self.student.iter().product::<usize>(),
        );
        let d = c.len() / t;
        let entry = |i: usize, j: usize| -> f64 {
            (0..t)
                .map(|k| match kind {
                    ProjectionKind::Qkv => of(c[i * t + k] * map[k * s + j]),
                    ProjectionKind::Output => of(map[k * s + j] * c[k * d + i]),
                })
                .sum()
        };
        match kind {
            ProjectionKind::Qkv => (0..d * s).map(|at| entry(at / s, at % s)).collect(),
            ProjectionKind::Output => (0..s * d).map(|at| entry(at % d, at / d)).collect(),
        }
    }

    /// Terms of an entry of the kernel.
    fn terms(&self) -> usize {
        let of_pair = 2 * self.teacher[0];
        of_pair.max(self.teacher[0] * self.still[0].len())
    }
}

fn it_agrees_with_plain_loops<A: AutodiffBackend>(device: A::Device) {
    for case in &CASES {
        for kind in KINDS {
            let layer = case.layer::<Inner<A>>(kind, &device);
            assert_eq!(layer.map_kind(side_of(kind)), Some(case.kind()));
            let numbers = case.numbers(kind, &layer);
            let [teacher, student] = case.grids();
            assert_eq!(numbers.len(), case.kind().num_params(teacher, student));
            let (c, map) = (floats(&layer, "c"), case.general(&numbers));
            let expected = case.kernel(kind, &c, &map, |term| term);
            let magnitudes = case.kernel(kind, &c, &map, f64::abs);
            let tolerance = Tolerance::of_magnitudes(&magnitudes, rounding(case.terms()));
            assert_close(&values(&layer.kernel()), &expected, &tolerance);
            let letters = match case.still[0] {
                [] => &["r"][..],
                _ => &["r", "w"],
            };
            for letter in letters {
                let perturbed = perturb(layer.clone(), &leaf_of(kind, letter), 0.001);
                assert_not_close(&values(&perturbed.kernel()), &expected, &tolerance);
            }
        }
    }
}

/// Of `sum(K G)`: `C^T G` for query at the places of each number.
fn its_gradient_agrees_with_plain_loops<A: AutodiffBackend>(device: A::Device) {
    for case in &CASES {
        let layer = case.layer::<A>(QKV, &device);
        let (t, s) = (
            case.teacher.iter().product::<usize>(),
            case.student.iter().product::<usize>(),
        );
        let mut g = Numbers::new(8).normal(5 * s);
        let loss = |g: &[f32]| {
            let g = Tensor::<A, 1>::from_floats(g, &device).reshape([5, s]);
            (layer.kernel() * g).sum()
        };
        let found = |g: &[f32]| -> Vec<f64> {
            let found = GradientsParams::from_grads(loss(g).backward(), &layer);
            let mut found = gradients(&layer, &found);
            let [r, w] = ["right.r", "right.w"].map(|name| found.remove(name).unwrap_or_default());
            [r, w].concat()
        };
        let c = floats(&layer, "c");
        let count = case.numbers(QKV, &layer).len();
        let made = |of: fn(f64) -> f64| -> Vec<f64> {
            let mut made = vec![0.0; count];
            case.places(|number, row, column, sign| {
                for i in 0..5 {
                    made[number] += of(sign * c[i * t + row] * f64::from(g[i * s + column]));
                }
            });
            made
        };
        let expected = made(|term| term);
        let tolerance = Tolerance::of_magnitudes(&made(f64::abs), rounding(2 * 5 + 2));
        assert_close(&found(&g), &expected, &tolerance);
        perturb_largest(&mut g, 0.01);
        assert_not_close(&found(&g), &expected, &tolerance);
    }
}

/// A multiply-add for each place of a number in the map, and each row.
fn its_cost_is_that_of_the_loops<A: AutodiffBackend>(_: A::Device) {
    for case in &CASES {
        let mut done = 0;
        case.places(|_, _, _, _| done += 1);
        let [teacher, student] = case.grids();
        let counted = contraction_cost(case.kind(), teacher, student);
        assert_eq!(counted.first, done);
        assert_eq!((counted.second, counted.once, counted.between), (0, 0, 0));
    }
}

/// Cosines and sines of one row a position, for heads of so many features of whose pairs the first turn at these
/// frequencies.
fn table<B: Backend>(
    frequencies: &[f64],
    size: usize,
    positions: &[f64],
    device: &B::Device,
) -> RotaryTable<B> {
    let angles = positions.iter().flat_map(|position| {
        (0..size).map(move |feature| {
            let pair = feature % (size / 2);
            position * frequencies.get(pair).copied().unwrap_or(0.0)
        })
    });
    let angles: Vec<f64> = angles.collect();
    let made = |of: fn(f64) -> f64| {
        let made: Vec<f32> = angles.iter().map(|angle| of(*angle) as f32).collect();
        Tensor::<B, 1>::from_floats(made.as_slice(), device).reshape([positions.len(), size])
    };
    RotaryTable::new(made(f64::cos), made(f64::sin))
}

/// The rows of `C` are tokens' features here: turned at any positions and then mapped they are what they are mapped and
/// then turned. So they are after steps along a gradient of any loss, in coordinates of their own too, and so is no
/// general map that began as one.
fn it_commutes_with_every_turn_whatever_it_has_learned<A: AutodiffBackend>(device: A::Device) {
    const POSITIONS: [f64; 5] = [0.0, 1.0, 7.0, 100.0, 2.5];
    for case in &CASES {
        let frequencies: Vec<f64> = (0..case.turning[0])
            .map(|pair| 10_f64.powf(-(pair as f64) / case.turning[0] as f64))
            .collect();
        let of_student: Vec<f64> = case.pairs.iter().map(|pair| frequencies[*pair]).collect();
        let tables = [
            table::<Inner<A>>(&frequencies, case.teacher[1], &POSITIONS, &device),
            table(&of_student, case.student[1], &POSITIONS, &device),
        ];
        let [teacher, student] = case.grids();
        let check = |layer: &LtiDense<A>, commutes: bool| {
            let layer = layer.valid();
            let (c, mapped) = (layer.c(), layer.kernel());
            let config = dense_config(QKV, 5, teacher, student, MapKind::General);
            let config = config.with_start(Start::Lecun, 0);
            let mut turned = config.init(apply_rotary(c, &tables[0])).expect("a layer");
            let map = layer.map_on(side_of(QKV)).expect("a map").clone();
            turned = turned.with_map(side_of(QKV), map).expect("a map");
            let (found, expected) = (
                values(&turned.kernel()),
                values(&apply_rotary(mapped, &tables[1])),
            );
            let largest = expected
                .iter()
                .fold(0.0f64, |most, one| most.max(one.abs()));
            // Products of a few terms, each turned before or after: cosines, products and two sums.
            let tolerance = Tolerance::Uniform(4.0 * rounding(case.terms() + 6) * largest);
            match commutes {
                true => drop(assert_close(&found, &expected, &tolerance)),
                false => assert_not_close(&found, &expected, &tolerance),
            }
        };
        let mut layer = case.layer::<A>(QKV, &device);
        check(&layer, true);
        let goal = Numbers::new(9).tensor::<A, 2>(layer.kernel().dims(), &device);
        let learned = |mut layer: LtiDense<A>, steps: usize| {
            let mut optimizer = Adam::<A>::new(AdamConfig::default());
            for _ in 0..steps {
                let loss = (layer.kernel() - goal.clone()).powi_scalar(2).sum();
                let found = GradientsParams::from_grads(loss.backward(), &layer);
                layer = optimizer.step(0.05, layer, found);
            }
            layer
        };
        let before = floats(&layer, "right.r");
        layer = learned(layer, 4);
        assert_ne!(floats(&layer, "right.r"), before);
        check(&layer, true);

        // As a general map it is the same, until it has learned.
        let numbers = case.numbers(QKV, &layer);
        let general: Vec<f32> = case.general(&numbers).iter().map(|w| *w as f32).collect();
        let shape = [teacher.width(), student.width()];
        let general = Tensor::<A, 1>::from_floats(general.as_slice(), &device).reshape(shape);
        let layer = layer
            .with_map(side_of(QKV), burn_lti::map::AxisMap::dense(general))
            .expect("a map");
        check(&layer, true);
        check(&learned(layer, 1), false);
    }
}

/// Maps of query and key that commute with the rotary embedding of each layer, those of value and out general.
fn rotary_maps(teacher: &LlamaConfig, student: &LlamaConfig) -> RoleMaps {
    let mut maps = RoleMaps::attention(MapKind::General);
    for layer in 0..student.num_hidden_layers {
        let Some(rope) = student.rope_of(layer) else {
            continue;
        };
        let map = MapKind::Rotary {
            teacher: rope.turned(teacher.head_dim) / 2,
            student: rope.turned(student.head_dim) / 2,
        };
        for role in [Role::Query, Role::Key] {
            maps = maps.with_at(Site::new(layer, role), map);
        }
    }
    maps
}

fn family<B: Backend>(name: &str, device: &B::Device) -> PlainLlama<B> {
    hf::load(&family_dir(name), device).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A student of `config` whose maps of query and key keep rotations, all of it random.
fn random_student<B: Backend>(
    teacher: &PlainLlama<B>,
    config: &LlamaConfig,
    device: &B::Device,
) -> LearningLlama<B> {
    let of = teacher.config();
    let spec = LtiSpec {
        maps: rotary_maps(of, config),
        start: Start::Lecun,
        ..LtiSpec::new(of.axes())
    };
    let tensors = TensorSet::collect(teacher);
    let student = llama_student(config, &spec, &tensors, device).expect("a student");
    fill_random(student, 4)
}

/// Of a random student: the same tokens further on in a text, and one of them moved against the others.
fn scores_depend_on_relative_positions_alone<A: AutodiffBackend>(device: A::Device) {
    for teacher in [
        load::<Inner<A>>("tied", &device),
        family("phi3_partial", &device),
    ] {
        let of = teacher.config();
        let config = with_heads(of, 2, 1, of.head_dim);
        let student = random_student(&teacher, &config, &device);
        let tokens = Numbers::new(6).ids(6, config.vocab_size);
        let weights = |positions: [i64; 6]| {
            let batch = batch_of([1, 6], &tokens, &positions, &[1; 6], &device);
            let h = student.embed(&batch);
            values(&student.attention_weights(0, h, &student.context(&batch)))
        };
        let expected = weights([0, 1, 2, 3, 4, 5]);
        // Scores of tens of products with cosines of angles that are rounded, through a softmax.
        let tolerance = Tolerance::Uniform(64.0 * rounding(64));
        assert_close(&weights([9, 10, 11, 12, 13, 14]), &expected, &tolerance);
        assert_not_close(&weights([0, 1, 2, 3, 4, 9]), &expected, &tolerance);
    }
}

fn equal_heads_begin_as_the_teacher<A: AutodiffBackend>(device: A::Device) {
    for teacher in [
        load::<Inner<A>>("tied", &device),
        family("phi3_partial", &device),
        family("smollm3", &device),
        family("qwen3", &device),
    ] {
        let config = teacher.config().clone();
        let batch = packed_batch(config.vocab_size, 3, &device);
        let expected = values(&logits(&teacher, &batch));
        let maps = rotary_maps(&config, &config);
        let spec = LtiSpec {
            maps: maps.clone(),
            ..LtiSpec::new(config.axes())
        };
        let tensors = TensorSet::collect(&teacher);
        let grouped = llama_student(&config, &spec, &tensors, &device).expect("a student");
        let all = parameters(&grouped);
        for layer in 0..config.num_hidden_layers {
            let name = format!("model.layers.{layer}.self_attn.q_proj.right");
            let has = |letter: &str| all.contains_key(&format!("{name}.{letter}"));
            let turns = config
                .rope_of(layer)
                .map(|rope| rope.turned(config.head_dim));
            assert_eq!(has("r"), turns.is_some(), "{layer}");
            assert_eq!(has("w"), turns != Some(config.head_dim), "{layer}");
        }
        let (calibrated, _) = calibrated_with::<A>(&teacher, &config, maps, |_| {}, &device);
        for student in [grouped, calibrated] {
            let found = values(&logits(&student, &batch));
            assert_close(&found, &expected, &tolerance(&expected));
            let changed = perturb(student, "model.layers.0.self_attn.q_proj.right.r", 0.5);
            let found = values(&logits(&changed, &batch));
            assert_not_close(&found, &expected, &tolerance(&expected));
        }
    }
}

/// Whatever the shape: heads kept, merged, smaller and larger, of which only a part turns, and where some layers have
/// no rotary embedding.
fn a_calibrated_start_is_that_of_general_maps<A: AutodiffBackend>(device: A::Device) {
    let tied = || load::<Inner<A>>("tied", &device);
    let partial = || family("phi3_partial", &device);
    for (teacher, [heads, kv_heads, head_dim]) in [
        (tied(), [2, 1, 8]),
        (tied(), [4, 1, 8]),
        (tied(), [2, 1, 4]),
        (tied(), [2, 1, 12]),
        (partial(), [2, 1, partial().config().head_dim]),
        (family("smollm3", &device), [2, 1, 8]),
    ] {
        let of = teacher.config().clone();
        let config = with_heads(&of, heads, kv_heads, head_dim);
        let batch = packed_batch(of.vocab_size, 3, &device);
        let student = |maps| calibrated_with::<A>(&teacher, &config, maps, |_| {}, &device).0;
        let general = student(RoleMaps::attention(MapKind::General));
        let rotary = student(rotary_maps(&of, &config));
        let expected = values(&logits(&general, &batch));
        let tolerance = tolerance(&expected);
        assert_close(&values(&logits(&rotary, &batch)), &expected, &tolerance);
        let changed = perturb(rotary, "model.layers.0.self_attn.v_proj.right.w", 0.05);
        assert_not_close(&values(&logits(&changed, &batch)), &expected, &tolerance);
    }
}

fn folded_it_is_the_same_model<A: AutodiffBackend>(device: A::Device) {
    for case in &CASES {
        let layer = case.layer::<Inner<A>>(QKV, &device);
        assert_eq!(bits(&layer.collapse().weight.val()), bits(&layer.kernel()));
    }
    for (teacher, head_dim) in [
        (load::<Inner<A>>("untied_bias", &device), 4),
        (family("phi3_partial", &device), 8),
    ] {
        let of = teacher.config();
        let config = with_heads(of, 2, 1, head_dim);
        let student = random_student(&teacher, &config, &device);
        let batch = packed_batch(config.vocab_size, 3, &device);
        let folded = collapse(&student, KernelPrecision::Default).expect("a collapse");
        let skeleton = PlainLlama::init(&config, &device);
        let plain = folded.into_plain(skeleton).expect("a plain model");
        assert_eq!(
            bits(&logits(&plain, &batch)),
            bits(&logits(&student, &batch))
        );
    }
}

/// With `k` the complex numbers of a pair in the teacher's heads, `S` is the inverse root of the damped `E conj(k) k^T`
/// over real and imaginary parts, and commutes with a turn of all of them by a quarter: multiplying by `i`.
fn its_coordinates_are_those_of_each_pair<A: AutodiffBackend>(device: A::Device) {
    for name in ["llama3", "phi3_partial"] {
        let teacher = family::<Inner<A>>(name, &device);
        let of = teacher.config().clone();
        let config = with_heads(&of, 2, 1, of.head_dim);
        let spec = LtiSpec {
            maps: rotary_maps(&of, &config),
            ..LtiSpec::new(of.axes())
        };
        let tensors = TensorSet::collect(&teacher);
        let student = llama_student(&config, &spec, &tensors, &device).expect("a student");
        let batch = packed_batch(config.vocab_size, 3, &device);
        let whitening = Whitening::of_maps(&student, [batch.clone()]).expect("roots");
        let projection = "model.layers.0.self_attn.q_proj";
        let roots = whitening.of_pairs(&format!("{projection}.right.r"));
        let roots = roots.expect("roots of a rotary map");
        let (size, heads) = (of.head_dim, of.num_attention_heads);
        let pairs = config.rope.turned(size) / 2;
        assert_eq!(roots.dims(), [pairs, 2 * heads, 2 * heads]);
        let is_whole = 2 * pairs == size;
        let still = whitening.factors(&format!("{projection}.right.w"));
        assert_eq!(still.is_some(), !is_whole);

        // What the teacher's heads are on what the student reads, a row a token.
        let [stream, _] =
            student.attention_inputs(0, student.embed(&batch), &student.context(&batch));
        let rows: Tensor<Inner<A>, 2> = stream.flatten(0, 1);
        let count = rows.dims()[0];
        let c = Tensor::<Inner<A>, 1>::from_floats(
            floats(&student, &format!("{projection}.c"))
                .iter()
                .map(|c| *c as f32)
                .collect::<Vec<f32>>()
                .as_slice(),
            &device,
        )
        .reshape([config.hidden_size, heads * size]);
        let k = values(&rows.matmul(c));
        let at =
            |token: usize, head: usize, feature: usize| k[(token * heads + head) * size + feature];
        let n = 2 * heads;
        let gram_of = |pair: usize| -> Vec<f64> {
            let [re, im] = Case::features(pair, size);
            // z_re = [k_re, -k_im] and z_im = [k_im, k_re] of the stacked real and imaginary parts.
            let mut gram = vec![0.0; n * n];
            for token in 0..count {
                let real = |i: usize| match i < heads {
                    true => at(token, i, re),
                    false => -at(token, i - heads, im),
                };
                let imaginary = |i: usize| match i < heads {
                    true => at(token, i, im),
                    false => at(token, i - heads, re),
                };
                for i in 0..n {
                    for j in 0..n {
                        gram[i * n + j] += real(i) * real(j) + imaginary(i) * imaginary(j);
                    }
                }
            }
            gram
        };
        let grams: Vec<Vec<f64>> = (0..pairs).map(gram_of).collect();
        let diagonal: f64 = grams
            .iter()
            .map(|gram| (0..n).map(|i| gram[i * n + i]).sum::<f64>())
            .sum();
        let added = 1e-2 * diagonal / (n * pairs) as f64;
        let roots = values(roots);
        for (pair, mut gram) in grams.into_iter().enumerate() {
            (0..n).for_each(|i| gram[i * n + i] += added);
            let root = &roots[pair * n * n..][..n * n];
            let product = |a: &[f64], b: &[f64]| -> Vec<f64> {
                let entry = |i: usize, j: usize| (0..n).map(|k| a[i * n + k] * b[k * n + j]).sum();
                (0..n * n).map(|at| entry(at / n, at % n)).collect()
            };
            let found = product(&product(root, &gram), root);
            let identity: Vec<f64> = (0..n * n).map(|at| f64::from(at % (n + 1) == 0)).collect();
            // Of the condition number, at most 1e4 with its damping, half the digits.
            assert_close(&found, &identity, &Tolerance::Uniform(2e-3));
            let half = heads;
            let quarter: Vec<f64> = (0..n * n)
                .map(|at| match (at / n, at % n) {
                    (i, j) if i < half && j == i + half => -1.0,
                    (i, j) if i >= half && j + half == i => 1.0,
                    _ => 0.0,
                })
                .collect();
            let largest = root.iter().fold(0.0f64, |most, one| most.max(one.abs()));
            assert_close(
                &product(root, &quarter),
                &product(&quarter, root),
                &Tolerance::Uniform(1e-4 * largest),
            );
        }
    }
}

fn pairs_that_heads_do_not_have_are_refused<A: AutodiffBackend>(device: A::Device) {
    for (teacher, student, sizes) in [
        (5, 4, [8, 8]),
        (4, 0, [8, 8]),
        (2, 2, [5, 4]),
        // All of the teacher's turn, and not all of the student's.
        (4, 3, [8, 8]),
    ] {
        let [of, to] = sizes.map(|size| HeadGrid::new(4, size));
        let config = dense_config(QKV, 5, of, to, MapKind::Rotary { teacher, student });
        let c = Tensor::<Inner<A>, 2>::ones(config.c_shape(), &device);
        let error = config
            .with_start(Start::Lecun, 0)
            .init(c)
            .expect_err("no such map");
        let error = error.to_string();
        assert!(error.contains(&format!("{teacher} pairs")), "{error}");
        assert!(
            error.contains("count those that the rotary embedding turns"),
            "{error}"
        );
    }
}
