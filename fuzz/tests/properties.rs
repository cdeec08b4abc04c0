//! Laws for shapes that nobody chose: geometry, maps and packing, by numbers that a seed gives.

use burn::backend::Flex;
use burn::prelude::*;
use burn_lti::geometry::{Axes, Axis, HeadGrid, Role};
use burn_lti::map::{AxisMap, LtiDenseConfig, MapKind, Side, Start};
use burn_lti_fuzz::from_environment;
use burn_lti_llama::config::LlamaConfig;
use burn_lti_llama::data::{Documents, PackedSequence, of_each_length, pack, pack_each};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Cases of a law in a test run; `BURN_LTI_PROPERTY_CASES` asks for others.
const CASES: u32 = 500;

/// Holds `law` to cases of `strategy`. The same in every run, but for the number.
fn hold<S: Strategy>(strategy: S, law: impl Fn(S::Value)) {
    let config = Config {
        cases: from_environment("BURN_LTI_PROPERTY_CASES", CASES),
        failure_persistence: None,
        ..Config::default()
    };
    let numbers = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let held = TestRunner::new_with_rng(config, numbers).run(&strategy, |case| {
        law(case);
        Ok(())
    });
    held.unwrap_or_else(|failure| panic!("{failure}"));
}

fn grid() -> impl Strategy<Value = HeadGrid> {
    (1..5_usize, 1..5_usize).prop_map(|(heads, head_dim)| HeadGrid::new(heads, head_dim))
}

// ---------------------------------------------------------------- geometry

/// Every weight has a shape, along the axes that its role names; only the axis with heads has a grid of more
/// than one feature a head.
#[test]
fn the_shape_of_a_weight_is_that_of_its_axes() {
    let axes = (1..9_usize, grid(), grid(), 1..9_usize);
    hold(axes, |(d_model, query, key_value, hidden)| {
        let axes = Axes {
            d_model,
            query,
            key_value,
            hidden,
        };
        let roles = [Role::Gate, Role::Up, Role::Down];
        for role in Role::ATTENTION.into_iter().chain(roles) {
            let sides = role.axes();
            assert!(sides.contains(&role.mapped_axis()), "{role}");
            assert_eq!(
                sides.iter().filter(|axis| **axis == Axis::Width).count(),
                1,
                "{role}"
            );
            let grids = sides.map(|axis| axes.grid_of(axis).expect("a side with features"));
            let numbers: usize = grids.iter().map(HeadGrid::width).product();
            assert_eq!(numbers, d_model * axes.grid(role).width(), "{role}");
        }
    });
}

/// A configuration that is checked has tensors whose sizes add up, and a cache of its own keys and values.
#[test]
fn the_tensors_of_a_model_are_its_parameters() {
    let sizes = (
        1..40_usize,
        1..20_usize,
        1..30_usize,
        1..4_usize,
        1..5_usize,
        1..4_usize,
        1..5_usize,
    );
    hold(
        (sizes, any::<bool>()),
        |((vocab, width, hidden, layers, kv, group, half), tied)| {
            let text = serde_json::json!({
                "model_type": "llama", "vocab_size": vocab, "hidden_size": width, "intermediate_size": hidden,
                "num_hidden_layers": layers, "num_attention_heads": kv * group, "num_key_value_heads": kv,
                "head_dim": 2 * half, "tie_word_embeddings": tied,
            });
            let origin = std::path::Path::new("config.json");
            let config = LlamaConfig::from_json_str(&text.to_string(), origin).expect("a model");
            let (query, key_value) = (config.query_grid().width(), config.kv_grid().width());
            assert_eq!((query, key_value), (kv * group * 2 * half, kv * 2 * half));
            let attention = width * (2 * query + 2 * key_value);
            let layer = attention + 3 * width * hidden + 2 * width;
            let embeddings = vocab * width * if tied { 1 } else { 2 };
            assert_eq!(config.num_parameters(), embeddings + layers * layer + width);
        },
    );
}

// ---------------------------------------------------------------- maps

/// Numbers whose products and sums of a few dozen are exact in float32: a law on them has no tolerance.
fn numbers(length: usize) -> impl Strategy<Value = Vec<f32>> {
    vec((-4..=4_i8).prop_map(f32::from), length)
}

/// A map between two grids: `A` and `B` of so many pairs, or `W`.
#[derive(Clone, Debug)]
struct Map {
    teacher: HeadGrid,
    student: HeadGrid,
    pairs: Option<usize>,
    a: Vec<f32>,
    b: Vec<f32>,
    w: Vec<f32>,
}

fn map() -> impl Strategy<Value = Map> {
    (grid(), grid(), 0..4_usize).prop_flat_map(|(teacher, student, pairs)| {
        let pairs = match pairs {
            0 => None,
            some => Some(some.min(MapKind::largest_rank(teacher, student))),
        };
        let rank = pairs.unwrap_or(1);
        (
            numbers(rank * teacher.heads * student.heads),
            numbers(rank * teacher.head_dim * student.head_dim),
            numbers(teacher.width() * student.width()),
        )
            .prop_map(move |(a, b, w)| Map {
                teacher,
                student,
                pairs,
                a,
                b,
                w,
            })
    })
}

impl Map {
    fn kind(&self) -> MapKind {
        match self.pairs {
            None => MapKind::General,
            Some(1) => MapKind::Factored,
            Some(pairs) => MapKind::Kronecker(pairs),
        }
    }

    /// `W[i, k]`, with `i` a feature of the teacher's and `k` one of the student's.
    fn dense(&self, i: usize, k: usize) -> f32 {
        let (x, y) = (self.teacher.heads, self.teacher.head_dim);
        let (u, v) = (self.student.heads, self.student.head_dim);
        let Some(pairs) = self.pairs else {
            return self.w[i * u * v + k];
        };
        (0..pairs)
            .map(|pair| {
                let a = self.a[(pair * x + i / y) * u + k / v];
                a * self.b[(pair * y + i % y) * v + k % v]
            })
            .sum()
    }

    fn axis_map(&self) -> AxisMap<Flex> {
        let device = Default::default();
        let tensor = |values: &[f32], shape: [usize; 2]| {
            Tensor::<Flex, 2>::from_data(TensorData::new(values.to_vec(), shape), &device)
        };
        let (teacher, student) = (self.teacher, self.student);
        match self.pairs {
            None => AxisMap::dense(tensor(&self.w, [teacher.width(), student.width()])),
            Some(pairs) => AxisMap::factors(
                tensor(&self.a, [pairs * teacher.heads, student.heads]),
                tensor(&self.b, [pairs * teacher.head_dim, student.head_dim]),
            ),
        }
    }
}

/// `K = L^T C R`, by plain loops, with a map on either side.
#[test]
fn a_kernel_is_that_of_plain_loops() {
    let cases = (map(), 1..6_usize, any::<bool>()).prop_flat_map(|(map, d_model, is_out)| {
        let c = numbers(d_model * map.teacher.width());
        (Just(map), Just(d_model), Just(is_out), c)
    });
    hold(cases, |(map, d_model, is_out, c)| {
        let (role, side) = match is_out {
            true => (Role::Out, Side::Left),
            false => (Role::Query, Side::Right),
        };
        let axes = |grid| Axes::of_attention(d_model, grid, grid);
        let config = LtiDenseConfig::new(role, &axes(map.teacher), &axes(map.student), map.kind());
        let config = config.with_start(Start::Lecun, 0);
        let device = Default::default();
        let data = TensorData::new(c.clone(), config.c_shape());
        let dense = config
            .init(Tensor::<Flex, 2>::from_data(data, &device))
            .expect("a projection");
        let dense = dense
            .with_map(side, map.axis_map())
            .expect("a map of its shape");
        assert_eq!(dense.map_kind(side), Some(map.kind()));

        let (teacher, student) = (map.teacher.width(), map.student.width());
        let mut expected = vec![0.0; d_model * student];
        for m in 0..d_model {
            for k in 0..student {
                for i in 0..teacher {
                    let (at, c) = match is_out {
                        true => (k * d_model + m, c[i * d_model + m]),
                        false => (m * student + k, c[m * teacher + i]),
                    };
                    expected[at] += c * map.dense(i, k);
                }
            }
        }
        let kernel = dense.kernel();
        assert_eq!(kernel.dims(), config.kernel_shape());
        assert_eq!(
            kernel.into_data().to_vec::<f32>().expect("float32"),
            expected
        );
        let folded = dense.collapse().weight.val().into_data();
        assert_eq!(folded.to_vec::<f32>().expect("float32"), expected, "folded");
    });
}

/// A start that keeps the teacher where grids are equal, for every grid.
#[test]
fn equal_grids_begin_as_the_teacher() {
    let cases = (grid(), 1..6_usize).prop_flat_map(|(grid, d_model)| {
        (Just(grid), Just(d_model), numbers(d_model * grid.width()))
    });
    hold(cases, |(grid, d_model, c)| {
        let axes = Axes::of_attention(d_model, grid, grid);
        for kind in [MapKind::Factored, MapKind::General] {
            let config = LtiDenseConfig::new(Role::Value, &axes, &axes, kind);
            let data = TensorData::new(c.clone(), config.c_shape());
            let dense = config.init(Tensor::<Flex, 2>::from_data(data, &Default::default()));
            let kernel = dense.expect("a projection").kernel().into_data();
            assert_eq!(kernel.to_vec::<f32>().expect("float32"), c, "{kind}");
        }
    });
}

// ---------------------------------------------------------------- packing

/// Documents whose tokens are all different and go up, so that a token says where it came from.
fn documents() -> impl Strategy<Value = Vec<Vec<u32>>> {
    vec(0..24_usize, 0..16).prop_map(|lengths| {
        let mut tokens = 1..;
        lengths
            .into_iter()
            .map(|length| tokens.by_ref().take(length).collect())
            .collect()
    })
}

/// The segments of a window, in order: their tokens.
fn segments(window: &PackedSequence) -> Vec<Vec<u32>> {
    let numbers = window.segments.chunk_by(|a, b| a == b);
    let mut begin = 0;
    let mut found = Vec::new();
    for run in numbers {
        if run[0] != 0 {
            found.push(window.tokens[begin..begin + run.len()].to_vec());
        }
        begin += run.len();
    }
    found
}

/// Every token is there once; a segment is a piece of one document, in its order and with its borders; what
/// follows a token is what follows it in its document; what is left is padding at the end.
#[test]
fn packing_keeps_every_token_once_and_in_order() {
    hold((documents(), 1..17_usize), |(documents, seq_len)| {
        let windows = pack(documents.clone(), seq_len);
        let mut pieces: Vec<Vec<u32>> = windows.iter().flat_map(segments).collect();
        pieces.sort();
        let wanted: Vec<Vec<u32>> = documents
            .iter()
            .flat_map(|document| document.chunks(seq_len).map(<[u32]>::to_vec))
            .collect();
        assert_eq!(
            pieces, wanted,
            "whole documents, or pieces from their beginnings"
        );
        let next = |token: u32| {
            let mut all = documents.iter().flat_map(|document| document.windows(2));
            all.find(|pair| pair[0] == token).map(|pair| pair[1])
        };
        for (row, window) in windows.iter().enumerate() {
            assert_eq!((window.row, window.len()), (row, seq_len));
            let used = window
                .segments
                .iter()
                .take_while(|segment| **segment != 0)
                .count();
            assert!(window.segments[used..].iter().all(|segment| *segment == 0));
            for at in 0..seq_len {
                let target = (at < used).then(|| next(window.tokens[at])).flatten();
                assert_eq!(window.mask[at], target.is_some());
                assert_eq!(window.targets[at], target.unwrap_or(0));
                let begins = at == 0 || window.segments[at] != window.segments[at - 1];
                let position = match begins || at >= used {
                    true => 0,
                    false => window.positions[at - 1] + 1,
                };
                assert_eq!(window.positions[at], position);
                if at >= used {
                    assert_eq!(window.tokens[at], 0);
                } else if begins {
                    let before = at.checked_sub(1).map_or(0, |at| window.segments[at]);
                    assert_eq!(window.segments[at], before + 1, "numbered from 1");
                }
            }
        }
    });
}

/// Of several lengths each holds all of the text.
#[test]
fn every_length_holds_the_whole_text() {
    let lengths = (1..9_usize, 9..20_usize).prop_map(|(short, long)| [short, long]);
    hold((documents(), lengths), |(documents, lengths)| {
        let text = documents.concat();
        for layout in Documents::ALL {
            let windows = pack_each(documents.clone(), &lengths, layout);
            assert!(
                windows
                    .iter()
                    .enumerate()
                    .all(|(row, window)| window.row == row)
            );
            let by_length: Vec<_> = of_each_length(&windows).collect();
            assert_eq!(by_length.len(), if text.is_empty() { 0 } else { 2 });
            for windows in by_length {
                let mut tokens: Vec<u32> = windows.iter().flat_map(segments).flatten().collect();
                tokens.sort_unstable();
                assert_eq!(tokens, text, "{layout}");
            }
        }
    });
}
