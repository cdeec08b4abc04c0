//! Laws of the contraction, the dense layer and its starts.

use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::DType;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::collapse::collapse;
use burn_lti::geometry::{Axes, HeadGrid, Role};
use burn_lti::map::{
    AttnMap, AxisMap, AxisSpec, ContractionError, DenseError, KernelPrecision, LtiDense,
    LtiDenseConfig, MapKind, ProjectionKind, Side, StackedAttnMap, Start, StartError,
    calculate_attn_weight, calculate_stacked_attn_weight, contraction_cost,
};
use burn_lti_tests::close::{Tolerance, assert_close, assert_not_close, rounding};
use burn_lti_tests::dense::{dense_config, leaf_of, side_of, turned};
use burn_lti_tests::numbers::{Numbers, bits, tensor, values};
use burn_lti_tests::on_every_backend;
use burn_lti_tests::oracle::{Map, Projection, widen};
use burn_lti_tests::params::{edit, fill_random, gradients, parameters, perturb, perturb_largest};

on_every_backend![
    a_factored_map_is_the_general_map_of_its_outer_product,
    out_is_the_turned_query_case,
    stacked_layers_are_the_layers_one_by_one,
    both_orders_of_contraction_agree_with_plain_loops,
    a_sum_of_pairs_agrees_with_plain_loops,
    a_sum_of_one_pair_is_the_factored_map_bit_for_bit,
    a_sum_of_all_pairs_makes_every_general_map,
    every_pair_of_a_sum_learns,
    every_precision_agrees_with_plain_loops,
    maps_on_both_sides_agree_with_plain_loops,
    picked_features_are_the_teachers,
    a_layer_is_its_kernel_and_bias,
    collapse_of_a_layer_changes_no_output,
    grouped_heads_are_means_and_for_out_sums,
    a_grouped_start_of_equal_grids_is_the_teacher_bit_for_bit,
    lecun_has_the_references_fan_in,
    contractions_refuse_maps_that_do_not_fit,
    layers_refuse_what_could_not_work,
    starts_refuse_grids_that_do_not_group,
];

const QKV: ProjectionKind = ProjectionKind::Qkv;
const OUT: ProjectionKind = ProjectionKind::Output;
const KINDS: [ProjectionKind; 2] = [QKV, OUT];

/// Sizes `[d, x, y, u, v]` for which heads first, and head size first, is the cheaper order.
const HEADS_FIRST: [usize; 5] = [7, 6, 4, 2, 5];
const SIZE_FIRST: [usize; 5] = [7, 3, 8, 5, 2];

/// Every form of a map.
const MAPS: [MapKind; 3] = [MapKind::Factored, MapKind::General, MapKind::Kronecker(3)];

/// A random factored projection, or a sum of several pairs, as host values.
struct Factored {
    kind: ProjectionKind,
    sizes: [usize; 5],
    pairs: usize,
    c: Vec<f32>,
    a: Vec<f32>,
    b: Vec<f32>,
}

impl Factored {
    fn random(kind: ProjectionKind, sizes: [usize; 5], seed: u64) -> Self {
        Self::of_pairs(1, kind, sizes, seed)
    }

    fn of_pairs(pairs: usize, kind: ProjectionKind, sizes: [usize; 5], seed: u64) -> Self {
        let mut numbers = Numbers::new(seed);
        let [d, x, y, u, v] = sizes;
        Self {
            kind,
            sizes,
            pairs,
            c: numbers.normal(d * x * y),
            a: numbers.normal(pairs * x * u),
            b: numbers.normal(pairs * y * v),
        }
    }

    fn c_shape(&self) -> [usize; 3] {
        let [d, x, y, ..] = self.sizes;
        match self.kind {
            ProjectionKind::Qkv => [d, x, y],
            ProjectionKind::Output => [x, y, d],
        }
    }

    fn b_shape(&self) -> [usize; 2] {
        let [_, _, y, _, v] = self.sizes;
        match self.kind {
            ProjectionKind::Qkv => [y, v],
            ProjectionKind::Output => [v, y],
        }
    }

    fn oracle(&self) -> Projection {
        Projection {
            kind: self.kind,
            sizes: self.sizes,
            c: widen(&self.c),
            map: Map::Factored {
                a: widen(&self.a),
                b: widen(&self.b),
            },
            bias: None,
        }
    }

    fn c<B: Backend>(&self, device: &B::Device) -> Tensor<B, 3> {
        tensor(&self.c, self.c_shape(), device)
    }

    fn map<B: Backend>(&self, device: &B::Device) -> AttnMap<B> {
        let [_, x, _, u, _] = self.sizes;
        let [first, second] = self.b_shape();
        match self.pairs {
            1 => AttnMap::Factored {
                a: tensor(&self.a, [x, u], device),
                b: tensor(&self.b, [first, second], device),
            },
            pairs => AttnMap::Kronecker {
                a: tensor(&self.a, [pairs, x, u], device),
                b: tensor(&self.b, [pairs, first, second], device),
            },
        }
    }

    /// `W = A (x) B`, multiplied out in float64 and rounded once.
    fn general<B: Backend>(&self, device: &B::Device) -> AttnMap<B> {
        let [_, x, y, u, v] = self.sizes;
        let w: Vec<f32> = self.oracle().general().iter().map(|w| *w as f32).collect();
        AttnMap::General {
            w: tensor(&w, [x, y, u, v], device),
        }
    }

    fn kernel<B: Backend>(&self, precision: KernelPrecision, device: &B::Device) -> Vec<f64> {
        let (c, map) = (self.c::<B>(device), self.map(device));
        let kernel = calculate_attn_weight(self.kind, c, map, precision);
        values(&kernel.expect("a kernel"))
    }

    fn general_kernel<B: Backend>(&self, device: &B::Device) -> Vec<f64> {
        let (c, map) = (self.c::<B>(device), self.general(device));
        let kernel = calculate_attn_weight(self.kind, c, map, KernelPrecision::Default);
        values(&kernel.expect("a kernel"))
    }

    /// What one float32 program may be off by.
    fn tolerance(&self) -> Tolerance {
        Tolerance::Each(self.oracle().kernel_bounds())
    }

    /// The same with the multiplied-out map: `x y` terms, and `W` itself rounded.
    fn general_tolerance(&self) -> Tolerance {
        let oracle = self.oracle();
        let general = Projection {
            map: Map::General {
                w: oracle.general(),
            },
            ..oracle
        };
        Tolerance::of_magnitudes(&general.kernel_bounds(), 2.0)
    }
}

fn a_factored_map_is_the_general_map_of_its_outer_product<A: AutodiffBackend>(device: A::Device) {
    for kind in KINDS {
        for sizes in [HEADS_FIRST, SIZE_FIRST] {
            let mut case = Factored::random(kind, sizes, 1);
            let general = case.general_kernel::<A::InnerBackend>(&device);
            let tolerance = case.general_tolerance();
            let factored = case.kernel::<A::InnerBackend>(KernelPrecision::Default, &device);
            assert_close(&factored, &general, &tolerance);
            perturb_largest(&mut case.a, 0.001);
            let perturbed = case.kernel::<A::InnerBackend>(KernelPrecision::Default, &device);
            assert_not_close(&perturbed, &general, &tolerance);
        }
    }
}

/// `out` over `C[x,y,d]` with `B[v,y]` is query over `C[d,x,y]` with `B[y,v]`, its result turned.
fn out_is_the_turned_query_case<A: AutodiffBackend>(device: A::Device) {
    for sizes in [HEADS_FIRST, SIZE_FIRST] {
        let mut out = Factored::random(OUT, sizes, 2);
        let query = |out: &Factored| {
            let AttnMap::Factored { a, b } = out.map::<A::InnerBackend>(&device) else {
                unreachable!("the map is factored")
            };
            let map = AttnMap::Factored {
                a,
                b: b.swap_dims(0, 1),
            };
            let c = out.c(&device).permute([2, 0, 1]);
            let kernel = calculate_attn_weight(QKV, c, map, KernelPrecision::Default);
            values(&kernel.expect("a kernel").permute([1, 2, 0]))
        };
        let expected = out.kernel::<A::InnerBackend>(KernelPrecision::Default, &device);
        let tolerance = Tolerance::of_magnitudes(&out.oracle().kernel_bounds(), 2.0);
        assert_close(&query(&out), &expected, &tolerance);
        perturb_largest(&mut out.b, 0.001);
        assert_not_close(&query(&out), &expected, &tolerance);
    }
}

fn stacked_layers_are_the_layers_one_by_one<A: AutodiffBackend>(device: A::Device) {
    for kind in KINDS {
        let layers: Vec<Factored> = (0..3)
            .map(|seed| Factored::random(kind, HEADS_FIRST, seed))
            .collect();
        for general in [false, true] {
            stacked_is_layer_by_layer::<A::InnerBackend>(&layers, general, &device);
        }
        let layers: Vec<Factored> = (0..3)
            .map(|seed| Factored::of_pairs(2, kind, SIZE_FIRST, seed))
            .collect();
        stacked_is_layer_by_layer::<A::InnerBackend>(&layers, false, &device);
    }
}

fn stacked_is_layer_by_layer<B: Backend>(layers: &[Factored], general: bool, device: &B::Device) {
    let kind = layers[0].kind;
    let c = Tensor::stack(layers.iter().map(|layer| layer.c::<B>(device)).collect(), 1);
    let stacked = calculate_stacked_attn_weight(
        kind,
        c,
        stacked_map(layers, general, device),
        KernelPrecision::Default,
    )
    .expect("a kernel");
    let layer_of = |index| values(&stacked.clone().slice_dim(1, index..index + 1));
    for (index, layer) in layers.iter().enumerate() {
        let (expected, tolerance) = match general {
            true => (layer.general_kernel::<B>(device), layer.general_tolerance()),
            false => (
                layer.kernel::<B>(KernelPrecision::Default, device),
                layer.tolerance(),
            ),
        };
        assert_close(&layer_of(index), &expected, &tolerance);
        assert_not_close(&layer_of((index + 1) % layers.len()), &expected, &tolerance);
    }
}

fn stacked_map<B: Backend>(
    layers: &[Factored],
    general: bool,
    device: &B::Device,
) -> StackedAttnMap<B> {
    if general {
        let maps = layers.iter().map(|layer| match layer.general(device) {
            AttnMap::General { w } => w,
            _ => unreachable!("the map is general"),
        });
        return StackedAttnMap::General {
            w: Tensor::stack(maps.collect(), 1),
        };
    }
    if layers[0].pairs > 1 {
        let (a, b) = layers
            .iter()
            .map(|layer| match layer.map(device) {
                AttnMap::Kronecker { a, b } => (a, b),
                _ => unreachable!("the map is a sum of pairs"),
            })
            .unzip();
        return StackedAttnMap::Kronecker {
            a: Tensor::stack(a, 1),
            b: Tensor::stack(b, 1),
        };
    }
    let (a, b) = layers
        .iter()
        .map(|layer| match layer.map(device) {
            AttnMap::Factored { a, b } => (a, b),
            _ => unreachable!("the map is factored"),
        })
        .unzip();
    StackedAttnMap::Factored {
        a: Tensor::stack(a, 1),
        b: Tensor::stack(b, 1),
    }
}

/// Each size is contracted in the order that is cheaper for it: heads first costs
/// `u y (x + v)` multiply-adds a row, head size first `x v (y + u)`.
fn both_orders_of_contraction_agree_with_plain_loops<A: AutodiffBackend>(device: A::Device) {
    for (sizes, heads_first) in [(HEADS_FIRST, true), (SIZE_FIRST, false)] {
        let [_, x, y, u, v] = sizes;
        let (first, second) = (u * y * (x + v), x * v * (y + u));
        assert_eq!(first < second, heads_first);
        let (teacher, student) = (HeadGrid::new(x, y), HeadGrid::new(u, v));
        let counted = contraction_cost(MapKind::Factored, teacher, student);
        assert_eq!(counted.first + counted.second, first.min(second));
        let counted = contraction_cost(MapKind::General, teacher, student);
        assert_eq!((counted.first, counted.second), (x * y * u * v, 0));

        for kind in KINDS {
            let mut case = Factored::random(kind, sizes, 3);
            let (expected, tolerance) = (case.oracle().kernel(), case.tolerance());
            let found = case.kernel::<A::InnerBackend>(KernelPrecision::Default, &device);
            assert_close(&found, &expected, &tolerance);
            perturb_largest(&mut case.c, 0.001);
            let found = case.kernel::<A::InnerBackend>(KernelPrecision::Default, &device);
            assert_not_close(&found, &expected, &tolerance);
        }
    }
}

/// Each number of pairs is contracted in the order that is cheapest for it: few as they are, many summed
/// up first.
fn a_sum_of_pairs_agrees_with_plain_loops<A: AutodiffBackend>(device: A::Device) {
    for (sizes, pairs, sum_first) in [
        (HEADS_FIRST, 2, false),
        (HEADS_FIRST, 3, true),
        (SIZE_FIRST, 2, false),
        (SIZE_FIRST, 4, true),
    ] {
        let [_, x, y, u, v] = sizes;
        let of_pairs = pairs * (u * y * (x + v)).min(x * v * (y + u));
        let of_sum = x * y * u * v;
        assert_eq!(of_sum < of_pairs, sum_first);
        let map = MapKind::Kronecker(pairs);
        let counted = contraction_cost(map, HeadGrid::new(x, y), HeadGrid::new(u, v));
        assert_eq!(counted.first + counted.second, of_pairs.min(of_sum));
        assert_eq!(counted.once, if sum_first { pairs * of_sum } else { 0 });

        for kind in KINDS {
            let mut case = Factored::of_pairs(pairs, kind, sizes, 3);
            let (expected, tolerance) = (case.oracle().kernel(), case.tolerance());
            let found = case.kernel::<A::InnerBackend>(KernelPrecision::Default, &device);
            assert_close(&found, &expected, &tolerance);
            perturb_largest(&mut case.b, 0.001);
            let found = case.kernel::<A::InnerBackend>(KernelPrecision::Default, &device);
            assert_not_close(&found, &expected, &tolerance);
        }
    }
}

fn a_sum_of_one_pair_is_the_factored_map_bit_for_bit<A: AutodiffBackend>(device: A::Device) {
    let (teacher, student) = (HeadGrid::new(4, 3), HeadGrid::new(2, 3));
    for kind in KINDS {
        for start in [Start::Lecun, Start::Grouped] {
            let layer = |map| {
                let config = dense_config(kind, 6, teacher, student, map).with_start(start, 3);
                let c = Numbers::new(5).tensor::<A::InnerBackend, 2>(config.c_shape(), &device);
                config.init(c).expect("a layer")
            };
            let (one, factored) = (layer(MapKind::Kronecker(1)), layer(MapKind::Factored));
            assert_eq!(one.map_kind(side_of(kind)), Some(MapKind::Factored));
            assert_eq!(bits(&one.kernel()), bits(&factored.kernel()));
            let values = |layer| -> Vec<_> {
                let all = parameters(layer).into_iter();
                all.map(|(name, it)| (name, it.shape, it.bits)).collect()
            };
            assert_eq!(values(&one), values(&factored));
        }
    }
}

/// With one pair for each place of `A`, or of `B`, every `W` is a sum: each pair holds a block of it.
fn a_sum_of_all_pairs_makes_every_general_map<A: AutodiffBackend>(device: A::Device) {
    for [d, x, y, u, v] in [[7, 3, 4, 2, 5], [7, 4, 2, 5, 3]] {
        let w = Numbers::new(8).normal(x * y * u * v);
        let rank = MapKind::largest_rank(HeadGrid::new(x, y), HeadGrid::new(u, v));
        assert_eq!(rank, (x * u).min(y * v));
        for kind in KINDS {
            let (mut a, mut b) = (vec![0.0; rank * x * u], vec![0.0; rank * y * v]);
            for (index, value) in w.iter().enumerate() {
                let (l, k) = (index % v, index / v % u);
                let (j, i) = (index / (v * u) % y, index / (v * u * y));
                let in_a = i * u + k;
                let in_b = match kind {
                    ProjectionKind::Qkv => j * v + l,
                    ProjectionKind::Output => l * y + j,
                };
                match rank == x * u {
                    true => {
                        a[in_a * x * u + in_a] = 1.0;
                        b[in_a * y * v + in_b] = *value;
                    }
                    false => {
                        a[in_b * x * u + in_a] = *value;
                        b[in_b * y * v + in_b] = 1.0;
                    }
                }
            }
            let case = Factored {
                a,
                b,
                ..Factored::of_pairs(rank, kind, [d, x, y, u, v], 9)
            };
            let general = AttnMap::General {
                w: tensor(&w, [x, y, u, v], &device),
            };
            let c = case.c::<A::InnerBackend>(&device);
            let expected = calculate_attn_weight(kind, c, general, KernelPrecision::Default);
            let expected = values(&expected.expect("a kernel"));
            // Both sides round.
            let tolerance = Tolerance::of_magnitudes(&case.oracle().kernel_bounds(), 2.0);
            let found = case.kernel::<A::InnerBackend>(KernelPrecision::Default, &device);
            assert_close(&found, &expected, &tolerance);
            let mut perturbed = case;
            perturb_largest(&mut perturbed.b, 0.001);
            let found = perturbed.kernel::<A::InnerBackend>(KernelPrecision::Default, &device);
            assert_not_close(&found, &expected, &tolerance);
        }
    }
}

/// Those that a start leaves empty have a gradient in `B`, and after a step of it in `A`.
fn every_pair_of_a_sum_learns<A: AutodiffBackend>(device: A::Device) {
    let (teacher, student) = (HeadGrid::new(4, 3), HeadGrid::new(2, 3));
    for kind in KINDS {
        let config = |map| dense_config(kind, 6, teacher, student, map);
        let factored = config(MapKind::Factored);
        let c = Numbers::new(5).tensor::<A, 2>(factored.c_shape(), &device);
        let factored = factored.init(c.clone()).expect("a layer");
        let layer = config(MapKind::Kronecker(3)).init(c).expect("a layer");
        let of_three = Some(MapKind::Kronecker(3));
        assert_eq!(layer.map_kind(side_of(kind)), of_three);
        assert_eq!(bits(&layer.kernel()), bits(&factored.kernel()));

        // Which pairs have a gradient in `A`, and which in `B`.
        let learn = |layer: &LtiDense<A>| {
            let loss = layer.kernel().powi_scalar(2).sum();
            let found = GradientsParams::from_grads(loss.backward(), layer);
            let found = gradients(layer, &found);
            ["a", "b"].map(|letter| -> Vec<bool> {
                let found = &found[&leaf_of(kind, letter)];
                let pairs = found.chunks_exact(found.len() / 3);
                pairs
                    .map(|pair| pair.iter().any(|value| *value != 0.0))
                    .collect()
            })
        };
        assert_eq!(learn(&layer), [vec![true, false, false], vec![true; 3]]);
        let moved = edit(layer, |name, values| {
            if name == leaf_of(kind, "b") {
                values.iter_mut().for_each(|value| *value += 0.1);
            }
        });
        assert_eq!(learn(&moved), [vec![true; 3], vec![true; 3]]);
    }
}

/// `high` is float32 here; `highest` is float64, so that all that is left is one rounding of the
/// kernel back to float32. A backend without float64 says so.
fn every_precision_agrees_with_plain_loops<A: AutodiffBackend>(device: A::Device) {
    for kind in KINDS {
        let mut case = Factored::random(kind, [16, 8, 16, 4, 12], 4);
        let expected = case.oracle().kernel();
        let rounded = Tolerance::of_magnitudes(
            &expected.iter().map(|value| value.abs()).collect::<Vec<_>>(),
            f64::from(f32::EPSILON),
        );
        let both = [
            (KernelPrecision::High, case.tolerance()),
            (KernelPrecision::Highest, rounded),
        ];
        for (precision, tolerance) in &both {
            if let Some(found) = kernel_if_supported::<A>(&case, *precision, &device) {
                assert_close(&found, &expected, tolerance);
            }
        }
        perturb_largest(&mut case.a, 0.001);
        for (precision, tolerance) in &both {
            if let Some(found) = kernel_if_supported::<A>(&case, *precision, &device) {
                assert_not_close(&found, &expected, tolerance);
            }
        }
    }
}

/// The kernel; `None` where the backend has no float64 and `highest` is refused for it.
fn kernel_if_supported<A: AutodiffBackend>(
    case: &Factored,
    precision: KernelPrecision,
    device: &A::Device,
) -> Option<Vec<f64>> {
    let (c, map) = (case.c::<A::InnerBackend>(device), case.map(device));
    match calculate_attn_weight(case.kind, c, map, precision) {
        Ok(kernel) => Some(values(&kernel)),
        Err(error) => {
            assert!(!A::InnerBackend::supports_dtype(device, DType::F64));
            assert_eq!(precision, KernelPrecision::Highest);
            assert!(
                matches!(error, ContractionError::Precision { .. }),
                "{error}"
            );
            assert!(error.to_string().contains("float64"), "{error}");
            None
        }
    }
}

/// `K = L^T C R`, whichever side comes first.
fn maps_on_both_sides_agree_with_plain_loops<A: AutodiffBackend>(device: A::Device) {
    let grid = HeadGrid::new;
    // Inputs without heads, outputs with: from 6 to 2 and 4 x 2 to 3 x 2, and from 3 to 5 and 4 x 3 to 1 x 2.
    for (left, right) in [
        ([grid(6, 1), grid(2, 1)], [grid(4, 2), grid(3, 2)]),
        ([grid(3, 1), grid(5, 1)], [grid(4, 3), grid(1, 2)]),
    ] {
        let spec = |map, [teacher, student]: [HeadGrid; 2]| AxisSpec::mapped(map, teacher, student);
        let config = LtiDenseConfig {
            left: spec(MapKind::General, left),
            right: spec(MapKind::Factored, right),
            ..dense_config(QKV, 1, right[0], right[1], MapKind::Factored)
        };
        let config = config.with_start(Start::Lecun, 4);
        let c = Numbers::new(5).tensor::<A::InnerBackend, 2>(config.c_shape(), &device);
        let layer = config.init(c).expect("a layer");
        let all = parameters(&layer);
        let read = |name: &str| -> Vec<f64> {
            let floats = all[name].bits.iter().map(|bits| f32::from_bits(*bits));
            floats.map(f64::from).collect()
        };
        let (c, l, a, b) = (read("c"), read("left.w"), read("right.a"), read("right.b"));
        let ([t_in, t_out], [s_in, s_out]) = (config.c_shape(), config.kernel_shape());
        let ([y, v], u) = ([right[0].head_dim, right[1].head_dim], right[1].heads);
        // Of the terms themselves, or of their magnitudes.
        let made = |of: fn(f64) -> f64| -> Vec<f64> {
            let r = |out: usize, k: usize| a[out / y * u + k / v] * b[out % y * v + k % v];
            let entry = |j: usize, k: usize| -> f64 {
                (0..t_in * t_out)
                    .map(|at| (at / t_out, at % t_out))
                    .map(|(i, out)| of(l[i * s_in + j] * c[i * t_out + out] * r(out, k)))
                    .sum()
            };
            let places = 0..s_in * s_out;
            places.map(|at| entry(at / s_out, at % s_out)).collect()
        };
        let expected = made(|term| term);
        let tolerance = Tolerance::of_magnitudes(&made(f64::abs), rounding(t_in + t_out));
        assert_close(&values(&layer.kernel()), &expected, &tolerance);
        let bits_of = |layer: &LtiDense<A::InnerBackend>| bits(&layer.collapse().weight.val());
        assert_eq!(bits_of(&layer), bits(&layer.kernel()));
        for name in ["left.w", "right.b"] {
            let perturbed = perturb(layer.clone(), name, 0.001);
            assert_not_close(&values(&perturbed.kernel()), &expected, &tolerance);
        }
    }
}

/// And nothing learns there: no tensor of such a map is a float.
fn picked_features_are_the_teachers<A: AutodiffBackend>(device: A::Device) {
    let (teacher, student) = (HeadGrid::new(4, 3), HeadGrid::new(4, 3));
    for kind in KINDS {
        let config = dense_config(kind, 6, teacher, student, MapKind::Factored);
        let c = Numbers::new(5).tensor::<A::InnerBackend, 2>(config.c_shape(), &device);
        let layer = config.init(c.clone()).expect("a layer");
        let side = side_of(kind);
        let picked = |of: &[usize]| layer.clone().with_map(side, AxisMap::pick(of, &device));
        let found = picked(&[7, 0, 11, 7]).expect("features that are there");
        let axis = side as usize;
        let of = Tensor::<A::InnerBackend, 1, Int>::from_ints([7, 0, 11, 7], &device);
        assert_eq!(bits(&found.kernel()), bits(&c.select(axis, of)));
        assert_eq!(parameters(&found).into_keys().collect::<Vec<_>>(), ["c"]);
        assert_eq!(found.map_kind(side), None);
        let all = collapse(&vec![found.clone()], KernelPrecision::Default).expect("a collapse");
        let weight = all
            .tensors()
            .get("0.weight")
            .expect("a weight")
            .tensor
            .to_f32();
        let expected = found.kernel().into_data().to_vec::<f32>();
        assert_eq!(weight, expected.map_err(|error| error.to_string()));

        let error = picked(&[0, 12]).expect_err("there are twelve").to_string();
        assert!(error.contains("feature 12 is picked"), "{error}");
        assert!(error.contains("0 to 11"), "{error}");
    }
    let config = dense_config(QKV, 6, teacher, student, MapKind::Factored);
    let layer = config.init(Tensor::<A, 2>::ones([6, 12], &device));
    let narrow = AxisMap::dense(Tensor::ones([11, 4], &device));
    let error = layer.expect("a layer").with_map(Side::Right, narrow);
    let error = error.expect_err("11 features are not 12").to_string();
    assert!(error.contains("12 long in C but 11 long"), "{error}");
}

/// A layer of random map and bias over a random teacher.
fn random_layer<B: Backend>(kind: ProjectionKind, map: MapKind, device: &B::Device) -> LtiDense<B> {
    let config = dense_config(kind, 6, HeadGrid::new(4, 3), HeadGrid::new(2, 5), map)
        .with_start(Start::Lecun, 0)
        .with_bias(true);
    let c = Numbers::new(5).tensor(config.c_shape(), device);
    fill_random(config.init(c).expect("a layer"), 6)
}

/// `B` of all pairs, `y = 3` rows to each.
fn in_the_references_layout(kind: ProjectionKind, b: &[f64]) -> Vec<f64> {
    match kind {
        ProjectionKind::Qkv => b.to_vec(),
        ProjectionKind::Output => b.chunks_exact(15).flat_map(|b| turned(b, 3)).collect(),
    }
}

fn layer_oracle<B: Backend>(kind: ProjectionKind, layer: &LtiDense<B>) -> Projection {
    let all = parameters(layer);
    let read = |name: &str| -> Vec<f64> {
        let floats = all[name].bits.iter().map(|bits| f32::from_bits(*bits));
        floats.map(f64::from).collect()
    };
    Projection {
        kind,
        sizes: [6, 4, 3, 2, 5],
        c: read("c"),
        map: match layer.map_kind(side_of(kind)) {
            Some(MapKind::General) => Map::General {
                w: read(&leaf_of(kind, "w")),
            },
            _ => Map::Factored {
                a: read(&leaf_of(kind, "a")),
                b: in_the_references_layout(kind, &read(&leaf_of(kind, "b"))),
            },
        },
        bias: Some(read("bias")),
    }
}

/// On inputs of one, two, three and four axes.
fn a_layer_is_its_kernel_and_bias<A: AutodiffBackend>(device: A::Device) {
    for kind in KINDS {
        for map in MAPS {
            let layer = random_layer::<A::InnerBackend>(kind, map, &device);
            let width = layer.kernel().dims()[0];
            let input: Tensor<A::InnerBackend, 2> = Numbers::new(7).tensor([4, width], &device);
            let oracle = layer_oracle(kind, &layer);
            let expected = oracle.output(&values(&input));
            let tolerance = Tolerance::Each(oracle.bounds(&values(&input)).output);
            let check = |found: Vec<f64>| assert_close(&found, &expected, &tolerance);
            check(values(&layer.forward(input.clone())));
            let three = input.clone().reshape([2, 2, width]);
            check(values(&layer.forward(three)));
            let four = input.clone().reshape([1, 2, 2, width]);
            check(values(&layer.forward(four)));

            let row = input.clone().slice([0..1, 0..width]).reshape([width]);
            let found = values(&layer.forward(row));
            let first =
                Tolerance::Each(oracle.bounds(&values(&input)).output[..found.len()].to_vec());
            assert_close(&found, &expected[..found.len()], &first);

            let perturbed = perturb(layer, "bias", 0.001);
            let found = values(&perturbed.forward(input));
            assert_not_close(&found, &expected, &tolerance);
        }
    }
}

/// The folded layer multiplies by the very same numbers, so its outputs are the same bits.
fn collapse_of_a_layer_changes_no_output<A: AutodiffBackend>(device: A::Device) {
    for kind in KINDS {
        for map in MAPS {
            let layer = random_layer::<A::InnerBackend>(kind, map, &device);
            let linear = layer.collapse();
            let width = linear.weight.dims()[0];
            let input: Tensor<A::InnerBackend, 3> = Numbers::new(8).tensor([2, 3, width], &device);
            let expected = values(&layer.forward(input.clone()));
            let oracle = layer_oracle(kind, &layer);
            let tolerance = Tolerance::Each(oracle.bounds(&values(&input)).output);
            assert_close(
                &values(&linear.forward(input.clone())),
                &expected,
                &tolerance,
            );
            assert_eq!(bits(&linear.weight.val()), bits(&layer.kernel()));
            let perturbed = perturb(linear, "weight", 0.001);
            assert_not_close(&values(&perturbed.forward(input)), &expected, &tolerance);
        }
    }
}

/// Four teacher heads to two: head 0 from 0 and 1, head 1 from 2 and 3.
fn grouped_heads_are_means_and_for_out_sums<A: AutodiffBackend>(device: A::Device) {
    let (teacher, student) = (HeadGrid::new(4, 2), HeadGrid::new(2, 2));
    for map in MAPS {
        // One feature of the model, so that C is [1, 4, 2] or [4, 2, 1], the same eight numbers.
        let c = [1.0, 2.0, 5.0, 6.0, -1.0, 0.5, 3.0, 1.5];
        for (kind, expected) in [(QKV, [3.0, 4.0, 1.0, 1.0]), (OUT, [6.0, 8.0, 2.0, 2.0])] {
            let config = dense_config(kind, 1, teacher, student, map);
            let c = tensor::<A::InnerBackend, 2>(&c, config.c_shape(), &device);
            let layer = config.init(c).expect("a layer");
            // Halves and small integers: float32 is exact.
            assert_eq!(values(&layer.kernel()), expected);
        }
    }
}

fn a_grouped_start_of_equal_grids_is_the_teacher_bit_for_bit<A: AutodiffBackend>(
    device: A::Device,
) {
    let grid = HeadGrid::new(3, 5);
    for kind in KINDS {
        for map in MAPS {
            let config = dense_config(kind, 6, grid, grid, map);
            let c: Tensor<A::InnerBackend, 2> = Numbers::new(9).tensor(config.c_shape(), &device);
            let layer = config.init(c.clone()).expect("a layer");
            assert_eq!(bits(&layer.kernel()), bits(&c));
        }
    }
}

/// Variance `1 / fan_in`, with JAX's fan-in: axis -2 times all axes but the last two.
fn lecun_has_the_references_fan_in<A: AutodiffBackend>(device: A::Device) {
    let (teacher, student) = (HeadGrid::new(40, 24), HeadGrid::new(10, 60));
    for kind in KINDS {
        let draw = |map, seed| {
            let spec = AxisSpec::mapped(map, teacher, student);
            let map = Start::Lecun.map::<A::InnerBackend>(&spec, side_of(kind), seed, &device);
            let map = map.expect("a start");
            if let Some(w) = map.w() {
                return vec![(values(&w), 40 * 24 * 10)];
            }
            let (a, b) = (map.a().expect("factors"), map.b().expect("factors"));
            // Of the output projection the reference counts `v`, not `y`.
            let fan_in = match kind {
                ProjectionKind::Qkv => 24,
                ProjectionKind::Output => 60,
            };
            // The pairs' kernels are added: together they have the variance of one.
            vec![(values(&a), a.dims()[0]), (values(&b), fan_in)]
        };
        for map in MAPS {
            for (values, fan_in) in draw(map, 1) {
                check_lecun(&values, fan_in as f64);
            }
            assert_eq!(draw(map, 1), draw(map, 1));
            assert_ne!(draw(map, 1), draw(map, 2));
        }
    }
}

/// Mean 0, variance `1 / fan_in`, nothing beyond two (untruncated) standard deviations.
fn check_lecun(values: &[f64], fan_in: f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| value * value).sum::<f64>() / count;
    // Five standard errors; a truncated normal's fourth moment is below a normal's.
    assert!(mean.abs() < 5.0 / (fan_in * count).sqrt(), "mean {mean}");
    let relative = variance * fan_in - 1.0;
    assert!(
        relative.abs() < 5.0 * (2.0 / count).sqrt(),
        "variance {variance} of fan-in {fan_in}"
    );
    // jax.nn.initializers divides by the standard deviation of a normal cut off at two.
    let bound = 2.0 / fan_in.sqrt() / 0.879_625_661_034_239_8;
    let largest = values
        .iter()
        .fold(0.0f64, |largest, value| largest.max(value.abs()));
    assert!(largest <= bound * (1.0 + 1e-6), "{largest} beyond {bound}");
}

#[test]
#[cfg(all(feature = "flex", feature = "ndarray"))]
fn lecun_is_the_same_on_both_backends() {
    fn draw<A: AutodiffBackend>() -> Vec<f64> {
        let grid = HeadGrid::new(4, 6);
        let spec = AxisSpec::mapped(MapKind::General, grid, grid);
        let map = Start::Lecun.map::<A>(&spec, Side::Right, 3, &Default::default());
        values(&map.expect("a start").w().expect("a general map"))
    }
    let (flex, ndarray) = (
        draw::<burn_lti_tests::backend::Flex>(),
        draw::<burn_lti_tests::backend::NdArray>(),
    );
    assert_eq!(flex, ndarray);
}

fn contractions_refuse_maps_that_do_not_fit<A: AutodiffBackend>(device: A::Device) {
    type Single<A> = <A as AutodiffBackend>::InnerBackend;
    let zeros2 = |shape| Tensor::<Single<A>, 2>::zeros(shape, &device);
    let refused = |kind, c: [usize; 3], map| {
        let c = Tensor::<Single<A>, 3>::zeros(c, &device);
        calculate_attn_weight(kind, c, map, KernelPrecision::Default).expect_err("it does not fit")
    };
    let factored = |a, b| AttnMap::Factored {
        a: zeros2(a),
        b: zeros2(b),
    };
    let message = refused(QKV, [6, 4, 3], factored([5, 2], [3, 3])).to_string();
    assert!(
        message.contains("`x (teacher heads)` is 4 long in C but 5 long in A"),
        "{message}"
    );
    assert!(message.contains("[4, 2]"), "{message}");
    let message = refused(QKV, [6, 4, 3], factored([4, 2], [2, 3])).to_string();
    assert!(
        message.contains("`y (teacher head size)` is 3 long in C but 2 long in B"),
        "{message}"
    );
    // For out, B is turned: what fits query does not fit here.
    let message = refused(OUT, [4, 3, 6], factored([4, 2], [3, 5])).to_string();
    assert!(message.contains("3 long in C but 5 long in B"), "{message}");
    let w = Tensor::zeros([4, 9, 2, 5], &device);
    let message = refused(OUT, [4, 3, 6], AttnMap::General { w }).to_string();
    assert!(message.contains("3 long in C but 9 long in W"), "{message}");

    let message = refused(
        QKV,
        [6, 4, 3],
        AttnMap::Kronecker {
            a: Tensor::zeros([2, 4, 2], &device),
            b: Tensor::zeros([3, 3, 3], &device),
        },
    );
    assert_eq!(message, ContractionError::Pairs { in_a: 2, in_b: 3 });
    assert!(message.to_string().contains("A holds 2 pairs and B 3"));
    let message = refused(
        OUT,
        [4, 3, 6],
        AttnMap::Kronecker {
            a: Tensor::zeros([2, 4, 2], &device),
            b: Tensor::zeros([2, 3, 5], &device),
        },
    );
    let message = message.to_string();
    assert!(message.contains("3 long in C but 5 long in B"), "{message}");
    assert!(message.contains("[2, 3, 3]"), "{message}");

    let stacked = |map| {
        let c = Tensor::<Single<A>, 4>::zeros([6, 2, 4, 3], &device);
        calculate_stacked_attn_weight(QKV, c, map, KernelPrecision::Default)
            .expect_err("it does not fit")
            .to_string()
    };
    let message = stacked(StackedAttnMap::Factored {
        a: Tensor::zeros([4, 7, 2], &device),
        b: Tensor::zeros([3, 2, 3], &device),
    });
    assert!(
        message.contains("`l (layers)` is 2 long in C but 7 long in A"),
        "{message}"
    );
    let message = stacked(StackedAttnMap::General {
        w: Tensor::zeros([4, 7, 3, 2, 3], &device),
    });
    assert!(
        message.contains("`l (layers)` is 2 long in C but 7 long in W"),
        "{message}"
    );
}

fn layers_refuse_what_could_not_work<A: AutodiffBackend>(device: A::Device) {
    let (teacher, good) = (HeadGrid::new(4, 3), HeadGrid::new(2, 3));
    let config = |student, map| dense_config(QKV, 6, teacher, student, map);
    let refused = |config: LtiDenseConfig, c: [usize; 2]| {
        config
            .init(Tensor::<A, 2>::zeros(c, &device))
            .expect_err("it cannot work")
    };

    for c in [[6, 0], [8, 12], [6, 11], [12, 6]] {
        let error = refused(config(good, MapKind::Factored), c);
        assert!(
            matches!(error, DenseError::TeacherShape { expected: [6, 12], found } if found == c)
        );
        let message = error.to_string();
        assert!(message.contains(&format!("{c:?} but [6, 12]")), "{message}");
    }

    let error = refused(config(HeadGrid::new(0, 3), MapKind::Factored), [6, 12]);
    assert!(matches!(error, DenseError::Empty { .. }));
    assert!(
        error
            .to_string()
            .contains("the student's grid is empty (0 heads x 3)"),
        "{error}"
    );

    let error = refused(config(HeadGrid::new(3, 3), MapKind::Factored), [6, 12]);
    assert!(matches!(
        error,
        DenseError::Start(StartError::HeadsDoNotDivide { .. })
    ));

    for rank in [0, 9] {
        let error = refused(config(good, MapKind::Kronecker(rank)), [6, 12]);
        assert!(matches!(
            error,
            DenseError::Start(StartError::Rank { largest: 8, .. })
        ));
        assert!(error.to_string().contains("at most 8"), "{error}");
    }

    let axes = |d_model| Axes::of_attention(d_model, good, good);
    let narrow = LtiDenseConfig::new(Role::Query, &axes(8), &axes(6), MapKind::Factored);
    let error = refused(narrow, [8, 6]);
    assert!(matches!(
        error,
        DenseError::KeptAxis {
            side: "left",
            teacher: 8,
            student: 6
        }
    ));
    assert!(
        error.to_string().contains("8 long in the teacher"),
        "{error}"
    );
}

fn starts_refuse_grids_that_do_not_group<A: AutodiffBackend>(device: A::Device) {
    let refused = |student| {
        let spec = AxisSpec::mapped(MapKind::Factored, HeadGrid::new(6, 4), student);
        let error = Start::Grouped.check(&spec).expect_err("it does not group");
        let made = Start::Grouped.map::<A>(&spec, Side::Right, 0, &device);
        assert_eq!(made.expect_err("it does not group"), error);
        assert!(Start::Lecun.check(&spec).is_ok());
        assert!(Start::Calibrated.check(&spec).is_ok());
        let made = Start::Calibrated.map::<A>(&spec, Side::Right, 0, &device);
        assert_eq!(made.expect_err("it needs text"), StartError::NeedsText);
        error
    };
    let error = refused(HeadGrid::new(4, 4));
    assert!(matches!(
        error,
        StartError::HeadsDoNotDivide {
            teacher: 6,
            student: 4,
            ..
        }
    ));
    assert!(error.to_string().contains("[1, 2, 3, 6]"), "{error}");
    let error = refused(HeadGrid::new(3, 2));
    assert!(matches!(error, StartError::HeadDim { .. }));
    assert!(
        error.to_string().contains("the teacher has 6 heads x 4"),
        "{error}"
    );
}
