//! The numeric operations of a decoder, each in one pass, beside the same in tensor operations and Burn's own
//! gradient.

use burn::prelude::*;
use burn::tensor::activation::{silu, softmax};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, TensorData};
use burn_lti::geometry::{Axes, HeadGrid};
use burn_lti::kernels::{
    AttentionMask, KvCache, RotaryTable, apply_rotary, attention_weights, gated_silu,
    grouped_attention, masked_softmax, rms_norm, soft_cap,
};
use burn_lti_tests::close::{Tolerance, UNIT_ROUNDOFF, assert_close, assert_not_close, rounding};
use burn_lti_tests::numbers::{Numbers, tensor, values};
use burn_lti_tests::on_every_backend;

use crate::half::half_types;

on_every_backend![
    the_gated_silu_and_its_gradients_are_those_of_the_operations,
    a_gated_silu_of_what_does_not_train_is_on_no_graph,
    far_gates_stay_finite,
    the_norm_and_its_gradients_are_those_of_the_operations,
    the_softmax_and_its_gradient_are_those_of_the_operations,
    the_cap_and_its_gradient_are_those_of_the_operations,
    a_cap_that_is_none_is_refused,
    what_a_mask_hides_has_no_weight,
    attention_and_its_gradients_are_those_of_the_operations,
    attention_to_a_past_is_the_end_of_attention_to_all,
    attention_of_a_cache_is_that_of_each_sequence,
    attention_gives_the_gradient_of_what_trains_alone,
    attention_of_what_does_not_fit_is_refused,
    attention_weights_are_those_of_the_operations,
    what_is_no_number_is_not_hidden,
    turns_of_no_pairs_are_refused,
    far_scores_stay_finite,
    turned_pairs_and_their_gradients_are_the_sums_of_products,
    half_precision_is_rounded_as_its_type_is,
];

/// No multiple of any processor's lanes, and more than a thread takes at a time.
const SHAPE: [usize; 2] = [131, 77];

type Gated<A> = fn(Tensor<A, 2>, Tensor<A, 2>) -> Tensor<A, 2>;

/// The output, and the gradients of `sum(output * weight)`.
fn found<A: AutodiffBackend>(
    gated: Gated<A>,
    [gate, up, weight]: &[Vec<f32>; 3],
    dtype: DType,
    device: &A::Device,
) -> [Vec<f64>; 3] {
    let take = |numbers: &[f32]| tensor::<A, 2>(numbers, SHAPE, device).cast(dtype);
    let (gate, up) = (take(gate).require_grad(), take(up).require_grad());
    // Through an operation on each side, so that none of them is a leaf.
    let output = gated(gate.clone() * 2.0, up.clone() + 1.0);
    let mut gradients = (output.clone() * take(weight)).sum().backward();
    let mut gradient =
        |leaf: Tensor<A, 2>| values(&leaf.grad_remove(&mut gradients).expect("a gradient"));
    let (of_gate, of_up) = (gradient(gate), gradient(up));
    [values(&output), of_gate, of_up]
}

/// A dozen operations on each element, each rounded; terms that cancel are no larger than the largest.
fn tolerance(expected: &[f64]) -> Tolerance {
    let largest = expected
        .iter()
        .fold(0.0, |largest: f64, value| largest.max(value.abs()));
    Tolerance::Uniform(rounding(12) * largest)
}

fn numbers() -> [Vec<f32>; 3] {
    let mut numbers = Numbers::new(3);
    std::array::from_fn(|_| numbers.normal(SHAPE[0] * SHAPE[1]))
}

fn the_gated_silu_and_its_gradients_are_those_of_the_operations<A: AutodiffBackend>(
    device: A::Device,
) {
    let mut numbers = numbers();
    let expected = found::<A>(|gate, up| silu(gate) * up, &numbers, DType::F32, &device);
    let output = found::<A>(gated_silu, &numbers, DType::F32, &device);
    for (output, expected) in output.iter().zip(&expected) {
        assert_close(output, expected, &tolerance(expected));
    }
    numbers[0][SHAPE[1]] += 0.5;
    let other = found::<A>(gated_silu, &numbers, DType::F32, &device);
    for (other, expected) in other.iter().zip(&expected) {
        assert_not_close(other, expected, &tolerance(expected));
    }
}

fn a_gated_silu_of_what_does_not_train_is_on_no_graph<A: AutodiffBackend>(device: A::Device) {
    let [gate, up, _] = numbers().map(|numbers| tensor::<A, 2>(&numbers, SHAPE, &device));
    let leaf = up.clone().require_grad();
    let mut gradients = gated_silu(gate.clone(), leaf.clone()).sum().backward();
    let found = values(&leaf.grad_remove(&mut gradients).expect("a gradient"));
    let expected = values(&silu(gate.clone()));
    assert_close(&found, &expected, &tolerance(&expected));
    assert!(gate.grad(&gradients).is_none());

    let output = gated_silu(gate.clone(), up.clone());
    let expected = values(&(silu(gate) * up));
    assert_close(&values(&output), &expected, &tolerance(&expected));
}

fn far_gates_stay_finite<A: AutodiffBackend>(device: A::Device) {
    let gate = [200.0, -200.0, 0.0, 1e30];
    let gate = tensor::<A, 2>(&gate, [2, 2], &device).inner();
    let found = values(&gated_silu(gate.clone(), gate.ones_like()));
    assert_eq!(found[0], 200.0);
    assert!(found[1].abs() < 1e-30 && found[2] == 0.0, "{found:?}");
    assert!((found[3] / 1e30 - 1.0).abs() < 1e-6, "{found:?}");
}

/// The output, and the gradients of `sum(output * weight)` with respect to `x` and `gamma`.
fn normed<A: AutodiffBackend>(
    norm: impl Fn(Tensor<A, 2>, Tensor<A, 1>) -> Tensor<A, 2>,
    [x, gamma, weight]: &[Vec<f32>; 3],
    dtype: DType,
    device: &A::Device,
) -> [Vec<f64>; 3] {
    let take = |numbers: &[f32]| tensor::<A, 2>(numbers, SHAPE, device).cast(dtype);
    let gamma = tensor::<A, 1>(&gamma[..SHAPE[1]], [SHAPE[1]], device).cast(dtype);
    let (x, gamma) = (take(x).require_grad(), gamma.require_grad());
    let output = norm(x.clone() * 2.0, gamma.clone() + 1.0);
    let mut gradients = (output.clone() * take(weight)).sum().backward();
    let of_x = x.grad_remove(&mut gradients).expect("a gradient");
    let of_gamma = gamma.grad_remove(&mut gradients).expect("a gradient");
    [values(&output), values(&of_x), values(&of_gamma)]
}

/// Large enough to be seen.
const EPSILON: f64 = 0.3;

fn plain_norm<B: Backend>(x: Tensor<B, 2>, gamma: Tensor<B, 1>) -> Tensor<B, 2> {
    let size = (x.clone().square().mean_dim(1) + EPSILON).sqrt();
    x / size * gamma.unsqueeze()
}

fn the_norm_and_its_gradients_are_those_of_the_operations<A: AutodiffBackend>(device: A::Device) {
    let mut numbers = numbers();
    let norm = |x, gamma| rms_norm(x, gamma, EPSILON);
    let expected = normed::<A>(plain_norm, &numbers, DType::F32, &device);
    let found = normed::<A>(norm, &numbers, DType::F32, &device);
    for (found, expected) in found.iter().zip(&expected) {
        // Sums of a row's, or a column's, numbers beside the dozen operations.
        let Tolerance::Uniform(elements) = tolerance(expected) else {
            unreachable!();
        };
        assert_close(found, expected, &Tolerance::Uniform(4.0 * elements));
    }
    numbers[0][SHAPE[1]] += 0.5;
    let other = normed::<A>(norm, &numbers, DType::F32, &device);
    for (other, expected) in other.iter().zip(&expected) {
        assert_not_close(other, expected, &tolerance(expected));
    }
}

/// Of scores and logits: what is beside it is far, near, and within.
const CAP: f64 = 1.5;

fn plain_cap<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    (x / CAP).tanh() * CAP
}

/// The output, and the gradient of `sum(output * weight)`.
fn capped<A: AutodiffBackend>(
    cap: impl Fn(Tensor<A, 2>) -> Tensor<A, 2>,
    [x, weight, _]: &[Vec<f32>; 3],
    dtype: DType,
    device: &A::Device,
) -> [Vec<f64>; 2] {
    let take = |numbers: &[f32]| tensor::<A, 2>(numbers, SHAPE, device).cast(dtype);
    let x = take(x).require_grad();
    let output = cap(x.clone() * 2.0);
    let mut gradients = (output.clone() * take(weight)).sum().backward();
    let gradient = x.grad_remove(&mut gradients).expect("a gradient");
    [values(&output), values(&gradient)]
}

fn the_cap_and_its_gradient_are_those_of_the_operations<A: AutodiffBackend>(device: A::Device) {
    let mut numbers = numbers();
    let cap = |x| soft_cap(x, CAP);
    let expected = capped::<A>(plain_cap, &numbers, DType::F32, &device);
    let found = capped::<A>(cap, &numbers, DType::F32, &device);
    for (found, expected) in found.iter().zip(&expected) {
        assert_close(found, expected, &tolerance(expected));
    }
    numbers[0][SHAPE[1]] += 0.5;
    let other = capped::<A>(cap, &numbers, DType::F32, &device);
    for (other, expected) in other.iter().zip(&expected) {
        assert_not_close(other, expected, &tolerance(expected));
    }

    let far = [1e30, -1e30, 0.0, f32::NAN];
    let far = tensor::<A, 2>(&far, [2, 2], &device).inner();
    let found = values(&soft_cap(far, CAP));
    assert_eq!(found[..3], [CAP, -CAP, 0.0]);
    assert!(found[3].is_nan());
}

fn a_cap_that_is_none_is_refused<A: AutodiffBackend>(device: A::Device) {
    let x = Tensor::<A::InnerBackend, 2>::zeros([1, 2], &device);
    let mask = AttentionMask::<A::InnerBackend>::continuing(0, 2, &device);
    let cache = KvCache::<A::InnerBackend>::new(1, 1, geometry(1, 1, 2), DType::F32, &device);
    for cap in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let said = format!("a cap of {cap} is not positive and finite");
        assert_eq!(panic_of(|| soft_cap(x.clone(), cap)), said);
        assert_eq!(panic_of(|| mask.clone().capped(cap)), said);
        assert_eq!(panic_of(|| cache.clone().with_cap(Some(cap))), said);
    }
}

/// More than a thread takes at a time.
const SCORES: [usize; 4] = [2, 3, 70, 23];

/// The output, and the gradient of `sum(output * weight)`.
fn weighed<A: AutodiffBackend>(
    softmax: impl Fn(Tensor<A, 4>, Tensor<A, 4>) -> Tensor<A, 4>,
    [scores, mask, weight]: &[Vec<f32>; 3],
    [batch, heads]: [usize; 2],
    dtype: DType,
    device: &A::Device,
) -> [Vec<f64>; 2] {
    let [_, _, queries, keys] = SCORES;
    let take = |numbers: &[f32], shape: [usize; 4]| {
        tensor::<A, 4>(&numbers[..shape.iter().product()], shape, device).cast(dtype)
    };
    let scores = take(scores, SCORES).require_grad();
    let mask = take(mask, [batch, heads, queries, keys]) * 3.0;
    let output = softmax(scores.clone() * 2.0, mask);
    let mut gradients = (output.clone() * take(weight, SCORES)).sum().backward();
    let gradient = scores.grad_remove(&mut gradients).expect("a gradient");
    [values(&output), values(&gradient)]
}

fn plain_softmax<B: Backend>(scores: Tensor<B, 4>, mask: Tensor<B, 4>) -> Tensor<B, 4> {
    softmax(scores + mask, 3)
}

fn the_softmax_and_its_gradient_are_those_of_the_operations<A: AutodiffBackend>(device: A::Device) {
    let mut numbers = numbers();
    for mask in [[2, 3], [2, 1], [1, 3], [1, 1]] {
        let expected = weighed::<A>(plain_softmax, &numbers, mask, DType::F32, &device);
        let found = weighed::<A>(masked_softmax, &numbers, mask, DType::F32, &device);
        for (found, expected) in found.iter().zip(&expected) {
            assert_close(found, expected, &tolerance(expected));
        }
    }
    let expected = weighed::<A>(plain_softmax, &numbers, [1, 1], DType::F32, &device);
    numbers[1][0] += 0.5;
    let other = weighed::<A>(masked_softmax, &numbers, [1, 1], DType::F32, &device);
    for (other, expected) in other.iter().zip(&expected) {
        assert_not_close(other, expected, &tolerance(expected));
    }
}

fn what_a_mask_hides_has_no_weight<A: AutodiffBackend>(device: A::Device) {
    for keys in [3, 8, 37] {
        let shape = [1, 1, 1, keys];
        let mut mask = vec![0.0; keys];
        mask[1..].fill(f32::NEG_INFINITY);
        // However small the one score that is seen.
        let mut scores = vec![50.0; keys];
        scores[0] = -60.0;
        let [scores, mask] =
            [scores, mask].map(|numbers| tensor::<A, 4>(&numbers, shape, &device).inner());
        let found = values(&masked_softmax(scores.clone(), mask));
        let mut expected = vec![0.0; keys];
        expected[0] = 1.0;
        assert_eq!(found, expected);
        let open = values(&masked_softmax(scores.clone(), scores.zeros_like()));
        assert!(open[0] < 1e-30 && open.iter().all(|weight| weight.is_finite()));
    }
}

/// Queries that are no multiple of what a thread takes at a time, and heads of no multiple of any
/// processor's lanes.
const BATCH: usize = 2;
const TOKENS: usize = 75;

fn geometry(heads: usize, kv_heads: usize, head_dim: usize) -> Axes {
    let grid = |heads| HeadGrid { heads, head_dim };
    Axes::of_attention(1, grid(heads), grid(kv_heads))
}

/// Documents of 30 and 45 tokens, and of one, 70 and 4.
fn documents() -> Vec<i64> {
    let row = |lengths: &[usize]| -> Vec<i64> {
        let segments = lengths.iter().enumerate();
        segments
            .flat_map(|(index, length)| vec![index as i64 + 1; *length])
            .collect()
    };
    [row(&[30, 45]), row(&[1, 70, 4])].concat()
}

/// Documents whose tokens lie between those of others.
fn mixed_documents() -> Vec<i64> {
    (0..BATCH * TOKENS).map(|token| token as i64 % 3).collect()
}

fn segments<B: Backend>(segments: &[i64], device: &B::Device) -> Tensor<B, 2, Int> {
    let data = TensorData::new(segments.to_vec(), [BATCH, segments.len() / BATCH]);
    Tensor::from_data(data, device)
}

/// Queries, keys, values, and weights of the output.
fn attention_numbers(geometry: &Axes) -> [Vec<f32>; 4] {
    let mut numbers = Numbers::new(5);
    let (query, kv) = (geometry.query.width(), geometry.key_value.width());
    [query, kv, kv, query].map(|width| numbers.normal(BATCH * TOKENS * width))
}

/// The weights, with keys repeated for each of their query heads, and a mask of ones and zeros times a large
/// number: `[batch, heads, queries, keys]`. Scores have a cap if they `are_capped`.
fn plain_weights<B: Backend>(
    q: Tensor<B, 3>,
    k: Tensor<B, 3>,
    geometry: &Axes,
    segments: &[i64],
    are_capped: bool,
) -> Tensor<B, 4> {
    let hidden: Vec<f32> = (0..BATCH * TOKENS * TOKENS)
        .map(|at| (at / TOKENS / TOKENS, at / TOKENS % TOKENS, at % TOKENS))
        .map(|(batch, query, key)| {
            let of = |token: usize| segments[batch * TOKENS + token];
            if key <= query && of(key) == of(query) {
                0.0
            } else {
                -1e6
            }
        })
        .collect();
    let device = q.device();
    let hidden = tensor::<B, 4>(&hidden, [BATCH, 1, TOKENS, TOKENS], &device).cast(q.dtype());
    let scores = repeated(q, geometry.query, 1)
        .matmul(repeated(k, geometry.key_value, group(geometry)).swap_dims(2, 3));
    let scores = match are_capped {
        true => plain_cap(scores),
        false => scores,
    };
    softmax(scores + hidden, 3)
}

/// The mask, with a cap if scores `are_capped`.
fn with_cap<B: Backend>(mask: AttentionMask<B>, are_capped: bool) -> AttentionMask<B> {
    match are_capped {
        true => mask.capped(CAP),
        false => mask,
    }
}

fn group(geometry: &Axes) -> usize {
    geometry.query.heads / geometry.key_value.heads
}

/// `[batch, tokens, heads * head_dim] -> [batch, heads * times, tokens, head_dim]`
fn repeated<B: Backend>(x: Tensor<B, 3>, grid: HeadGrid, times: usize) -> Tensor<B, 4> {
    let [batch, tokens, _] = x.dims();
    let heads = (0..grid.heads * times).map(|head| {
        x.clone()
            .narrow(2, head / times * grid.head_dim, grid.head_dim)
            .reshape([batch, 1, tokens, grid.head_dim])
    });
    Tensor::cat(heads.collect(), 1)
}

fn plain_attention<B: Backend>(
    q: Tensor<B, 3>,
    k: Tensor<B, 3>,
    v: Tensor<B, 3>,
    geometry: &Axes,
    segments: &[i64],
    are_capped: bool,
) -> Tensor<B, 3> {
    let [batch, tokens, width] = q.dims();
    plain_weights(q, k, geometry, segments, are_capped)
        .matmul(repeated(v, geometry.key_value, group(geometry)))
        .swap_dims(1, 2)
        .reshape([batch, tokens, width])
}

/// The output, and the gradients of `sum(output * weight)` with respect to queries, keys and values.
fn attended<A: AutodiffBackend>(
    attention: impl Fn(Tensor<A, 3>, Tensor<A, 3>, Tensor<A, 3>) -> Tensor<A, 3>,
    numbers: &[Vec<f32>; 4],
    dtype: DType,
    device: &A::Device,
) -> [Vec<f64>; 4] {
    let [q, k, v, weight] = numbers.each_ref().map(|numbers| {
        let width = numbers.len() / BATCH / TOKENS;
        tensor::<A, 3>(numbers, [BATCH, TOKENS, width], device).cast(dtype)
    });
    let [q, k, v] = [q, k, v].map(Tensor::require_grad);
    // Through an operation on each side, so that none of them is a leaf.
    let output = attention(q.clone() * 0.5, k.clone() * 2.0, v.clone() + 1.0);
    let [_, tokens, _] = output.dims();
    let weight = weight.narrow(1, TOKENS - tokens, tokens);
    let mut gradients = (output.clone() * weight).sum().backward();
    let [q, k, v] =
        [q, k, v].map(|leaf| values(&leaf.grad_remove(&mut gradients).expect("a gradient")));
    [values(&output), q, k, v]
}

fn attention_and_its_gradients_are_those_of_the_operations<A: AutodiffBackend>(device: A::Device) {
    for ([heads, kv_heads, head_dim], capped) in [
        ([4, 2, 8], false),
        ([4, 2, 8], true),
        ([6, 2, 10], true),
        ([6, 2, 10], false),
        ([3, 1, 64], false),
        ([2, 2, 2], true),
        ([2, 2, 2], false),
    ] {
        let geometry = geometry(heads, kv_heads, head_dim);
        let numbers = attention_numbers(&geometry);
        for documents in [documents(), mixed_documents()] {
            let attention = |q, k, v| {
                let mask = AttentionMask::packed(&segments(&documents, &device));
                grouped_attention(q, k, v, &geometry, &with_cap(mask, capped))
            };
            let plain = |q, k, v| plain_attention(q, k, v, &geometry, &documents, capped);
            let expected = attended::<A>(plain, &numbers, DType::F32, &device);
            let found = attended::<A>(attention, &numbers, DType::F32, &device);
            for (found, expected) in found.iter().zip(&expected) {
                assert_close(found, expected, &sums(expected));
            }
            let mut other = documents.clone();
            other[40] += 7;
            let other = |q, k, v| plain_attention(q, k, v, &geometry, &other, capped);
            let other = attended::<A>(other, &numbers, DType::F32, &device);
            let free = |q, k, v| plain_attention(q, k, v, &geometry, &documents, !capped);
            let free = attended::<A>(free, &numbers, DType::F32, &device);
            for other in [other, free] {
                for (found, other) in found.iter().zip(&other) {
                    assert_not_close(found, other, &sums(other));
                }
            }
        }
    }
}

/// Sums of a row's, or a column's, numbers, and scores of some ten whose error is that of exponentials,
/// beside the dozen operations.
fn sums(expected: &[f64]) -> Tolerance {
    let Tolerance::Uniform(elements) = tolerance(expected) else {
        unreachable!();
    };
    Tolerance::Uniform(8.0 * elements)
}

fn attention_to_a_past_is_the_end_of_attention_to_all<A: AutodiffBackend>(device: A::Device) {
    let geometry = geometry(4, 2, 8);
    let numbers = attention_numbers(&geometry);
    let capped = [8, 40].map(|new| (new, true));
    let news = [1, 3, 8, 40, TOKENS].map(|new| (new, false));
    for (new, capped) in news.into_iter().chain(capped) {
        let one = AttentionMask::packed(&segments(&[1; BATCH * TOKENS], &device));
        // A window, so that what is made of a mask has its cap.
        let one = with_cap(one, capped).within(TOKENS);
        let past = TOKENS - new;
        let end = |x: Tensor<A, 3>| x.narrow(1, past, new);
        let all = |q, k, v| end(grouped_attention(q, k, v, &geometry, &one));
        let mask = with_cap(AttentionMask::continuing(past, new, &device), capped);
        let continued = |q, k, v| grouped_attention(end(q), k, v, &geometry, &mask);
        let expected = attended::<A>(all, &numbers, DType::F32, &device);
        let found = attended::<A>(continued, &numbers, DType::F32, &device);
        for (found, expected) in found.iter().zip(&expected) {
            assert_close(found, expected, &sums(expected));
        }
    }
}

/// Two sequences that come in pieces of many lengths and at other times, one in a room that another had before.
fn attention_of_a_cache_is_that_of_each_sequence<A: AutodiffBackend>(device: A::Device) {
    for ([heads, kv_heads, head_dim], capped) in [
        ([4, 2, 8], false),
        ([4, 2, 8], true),
        ([6, 2, 10], false),
        ([9, 3, 64], false),
        ([2, 2, 2], true),
    ] {
        let geometry = geometry(heads, kv_heads, head_dim);
        let qkv = attention_numbers(&geometry).map(|numbers| {
            let width = numbers.len() / BATCH / TOKENS;
            tensor::<A, 3>(&numbers, [BATCH, TOKENS, width], &device).inner()
        });
        let [q, k, v, _] = qkv.clone();
        let mask = with_cap(AttentionMask::continuing(0, TOKENS, &device), capped);
        let expected = values(&grouped_attention(q, k, v, &geometry, &mask));
        // For each pass, new tokens of both sequences.
        let passes = [[9, 0], [5, 17], [1, 1], [1, 1], [33, 2], [0, 40]];
        let found = |spoilt: bool| {
            let cache = KvCache::<A::InnerBackend>::new(2, 3, geometry, DType::F32, &device);
            let mut cache = cache.with_cap(capped.then_some(CAP));
            let mut found = [Vec::new(), Vec::new()];
            for (pass, counts) in passes.iter().enumerate() {
                if pass == 1 {
                    // What the first sequence had until now was another's.
                    cache.clear(2);
                    found[0].clear();
                }
                let rooms = [2, 0];
                let new: Vec<(usize, usize)> = (0..2)
                    .filter(|sequence| counts[*sequence] > 0)
                    .map(|sequence| (rooms[sequence], counts[sequence]))
                    .collect();
                let begins = new.iter().map(|(room, _)| cache.tokens(*room));
                let begins: Vec<usize> = begins.collect();
                for step in cache.steps(&new) {
                    let [batch, tokens] = step.dims();
                    let of = |x: &Tensor<A::InnerBackend, 3>| {
                        let [_, _, width] = x.dims();
                        let places = step.places().iter().map(|place| match place.token {
                            None => Tensor::zeros([1, width], &device),
                            Some((index, token)) => {
                                let sequence = usize::from(new[index].0 == 0);
                                let token = begins[index] + token;
                                let position = usize::from(spoilt && pass == 4);
                                assert_eq!(place.position, token);
                                x.clone()
                                    .slice([
                                        sequence..sequence + 1,
                                        token - position..token + 1 - position,
                                    ])
                                    .reshape([1, width])
                            }
                        });
                        Tensor::cat(places.collect(), 0).reshape([batch, tokens, width])
                    };
                    let [q, k, v] = [&qkv[0], &qkv[1], &qkv[2]].map(of);
                    // Layers are apart.
                    cache.attend(1, [q.clone(), v.clone(), k.clone()], &step);
                    let output = values(&cache.attend(0, [q, k, v], &step));
                    let width = output.len() / batch / tokens;
                    for (place, output) in step.places().iter().zip(output.chunks(width)) {
                        if let Some((index, token)) = place.token {
                            let sequence = usize::from(new[index].0 == 0);
                            found[sequence].push((begins[index] + token, output.to_vec()));
                        }
                    }
                }
            }
            let [first, second] = &mut found;
            let sorted = |of: &mut Vec<(usize, Vec<f64>)>| {
                of.sort_by_key(|(token, _)| *token);
                of.iter()
                    .flat_map(|(_, output)| output.clone())
                    .collect::<Vec<f64>>()
            };
            (sorted(first), sorted(second))
        };
        let width = expected.len() / BATCH / TOKENS;
        let expected = (
            &expected[..40 * width],
            &expected[TOKENS * width..][..61 * width],
        );
        let (first, second) = found(false);
        assert_close(&first, expected.0, &sums(expected.0));
        assert_close(&second, expected.1, &sums(expected.1));
        let (first, second) = found(true);
        assert_not_close(&first, expected.0, &sums(expected.0));
        assert_not_close(&second, expected.1, &sums(expected.1));
    }
}

fn attention_gives_the_gradient_of_what_trains_alone<A: AutodiffBackend>(device: A::Device) {
    let geometry = geometry(4, 2, 8);
    let numbers = attention_numbers(&geometry);
    let mask = AttentionMask::packed(&segments(&documents(), &device));
    let attention = |q, k, v| grouped_attention(q, k, v, &geometry, &mask);
    let expected = attended::<A>(attention, &numbers, DType::F32, &device);
    for trains in 0..3 {
        let mut inputs = [0, 1, 2].map(|index| {
            let width = numbers[index].len() / BATCH / TOKENS;
            tensor::<A, 3>(&numbers[index], [BATCH, TOKENS, width], &device)
        });
        inputs[trains] = inputs[trains].clone().require_grad();
        let [q, k, v] = inputs.clone();
        let weight = tensor::<A, 3>(&numbers[3], q.dims(), &device);
        let output = attention(q * 0.5, k * 2.0, v + 1.0);
        let mut gradients = (output * weight).sum().backward();
        let found = inputs.map(|input| input.grad_remove(&mut gradients));
        for (index, found) in found.into_iter().enumerate() {
            match found {
                Some(found) if index == trains => {
                    let expected = &expected[index + 1];
                    assert_close(&values(&found), expected, &sums(expected));
                }
                found => assert!(found.is_none() && index != trains, "{index}"),
            }
        }
    }
}

/// What `call` says when it panics.
fn panic_of<T>(call: impl FnOnce() -> T) -> String {
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
    let panic = panic.err().expect("it panicked");
    match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => (*panic.downcast::<&str>().expect("a message")).to_owned(),
    }
}

fn attention_of_what_does_not_fit_is_refused<A: AutodiffBackend>(device: A::Device) {
    let zeros =
        |tokens, width| Tensor::<A::InnerBackend, 3>::zeros([BATCH, tokens, width], &device);
    let packed = AttentionMask::packed(&segments(&documents(), &device));
    let attend = |queries, q_width, geometry, mask: &AttentionMask<A::InnerBackend>| {
        let (q, k) = (zeros(queries, q_width), zeros(TOKENS, 16));
        panic_of(|| grouped_attention(q, k.clone(), k, &geometry, mask))
    };
    let of_mask = "the mask is for these queries and keys";
    let of_heads = "query heads come in equal groups, of the head size of their keys";
    assert_eq!(attend(3, 32, geometry(4, 2, 8), &packed), of_mask);
    let long = AttentionMask::continuing(TOKENS, 3, &device);
    assert_eq!(attend(3, 32, geometry(4, 2, 8), &long), of_mask);
    assert_eq!(attend(TOKENS, 24, geometry(3, 2, 8), &packed), of_heads);
    let mut uneven = geometry(4, 1, 8);
    uneven.key_value.head_dim = 16;
    assert_eq!(attend(TOKENS, 32, uneven, &packed), of_heads);
    let other = attend(TOKENS, 30, geometry(4, 2, 8), &packed);
    assert!(
        other.contains("queries and keys are of the geometry"),
        "{other}"
    );

    let of_batch = AttentionMask::packed(&segments(&[1; BATCH * TOKENS], &device));
    let (q, k) = (zeros(TOKENS, 32), zeros(TOKENS, 16));
    let [q, k] = [q, k].map(|x| Tensor::cat(vec![x.clone(), x], 0));
    let geometry = geometry(4, 2, 8);
    let weights = panic_of(|| attention_weights(q, k, &geometry, &of_batch));
    assert_eq!(weights, of_mask);
}

fn turns_of_no_pairs_are_refused<A: AutodiffBackend>(device: A::Device) {
    let zeros = |rows, size| Tensor::<A::InnerBackend, 2>::zeros([rows, size], &device);
    let odd = panic_of(|| RotaryTable::new(zeros(4, 3), zeros(4, 3)));
    assert_eq!(odd, "features of a head come in pairs");
    let short = panic_of(|| RotaryTable::new(zeros(4, 2), zeros(3, 2)));
    assert!(short.contains("there is a sine for each cosine"), "{short}");
    let table = RotaryTable::new(zeros(4, 2), zeros(4, 2));
    for shape in [[5, 4], [4, 3]] {
        let refused = panic_of(|| apply_rotary(zeros(shape[0], shape[1]), &table));
        assert_eq!(
            refused,
            "there is a turn for each row, and a head of its size"
        );
    }
}

fn what_is_no_number_is_not_hidden<A: AutodiffBackend>(device: A::Device) {
    let geometry = geometry(1, 1, 2);
    let numbers = [0.5, 1.0, f32::NAN, 1.0, 0.5, 1.0];
    let q = tensor::<A, 3>(&numbers, [1, 3, 2], &device).inner();
    let k = tensor::<A, 3>(&[1.0; 6], [1, 3, 2], &device).inner();
    let mask = AttentionMask::continuing(0, 3, &device);
    let found = values(&grouped_attention(q, k.clone(), k, &geometry, &mask));
    let numbers: Vec<_> = found.iter().map(|number| number.is_nan()).collect();
    assert_eq!(numbers, [false, false, true, true, false, false]);
}

fn attention_weights_are_those_of_the_operations<A: AutodiffBackend>(device: A::Device) {
    let (geometry, documents) = (geometry(6, 2, 10), documents());
    let [q, k, ..] = attention_numbers(&geometry).map(|numbers| {
        let width = numbers.len() / BATCH / TOKENS;
        tensor::<A, 3>(&numbers, [BATCH, TOKENS, width], &device).inner()
    });
    let mask = AttentionMask::packed(&segments(&documents, &device));
    for capped in [false, true] {
        let mask = with_cap(mask.clone(), capped);
        let found = values(&attention_weights(q.clone(), k.clone(), &geometry, &mask));
        for expected in [capped, !capped] {
            let plain = plain_weights(q.clone(), k.clone(), &geometry, &documents, expected);
            let plain = values(&plain);
            match expected == capped {
                true => drop(assert_close(&found, &plain, &sums(&plain))),
                false => assert_not_close(&found, &plain, &sums(&plain)),
            }
        }
    }
}

/// Scores of some thousands: the largest gets all, or equal ones each a share, as they should, and no exponential
/// is infinite.
fn far_scores_stay_finite<A: AutodiffBackend>(device: A::Device) {
    let geometry = geometry(1, 1, 2);
    let mask = AttentionMask::continuing(0, 2, &device);
    for (keys, expected, shares) in [
        ([-60.0, 0.0, 60.0, 0.0], [1.0, 2.0, 3.0, 4.0], [1.0, 1.0]),
        ([60.0, 0.0, 60.0, 0.0], [1.0, 2.0, 2.0, 3.0], [1.5, 0.5]),
    ] {
        let q = tensor::<A, 3>(&[120.1, 0.0, 120.1, 0.0], [1, 2, 2], &device);
        let k = tensor::<A, 3>(&keys, [1, 2, 2], &device);
        let v = tensor::<A, 3>(&[1.0, 2.0, 3.0, 4.0], [1, 2, 2], &device).require_grad();
        let output = grouped_attention(q, k, v.clone(), &geometry, &mask);
        assert_eq!(values(&output), expected);
        let mut gradients = output.sum().backward();
        let gradient = values(&v.grad_remove(&mut gradients).expect("a gradient"));
        let [first, second] = shares;
        assert_eq!(gradient, [first, first, second, second]);
    }
}

/// Rows that are more than a thread takes at a time, and their heads.
const TURNED: [usize; 2] = [700, 3];

/// The turn of `2 x` by these cosines and sines, and the gradients of `sum(output * weight)`.
fn turned<A: AutodiffBackend>(
    [x, angles, weight]: &[Vec<f32>; 3],
    size: usize,
    dtype: DType,
    device: &A::Device,
) -> [Vec<f64>; 2] {
    let [rows, heads] = TURNED;
    let take = |numbers: &[f32], width: usize| {
        tensor::<A, 2>(&numbers[..rows * width], [rows, width], device)
    };
    let angles = take(angles, size);
    let table = RotaryTable::new(angles.clone().cos().cast(dtype), angles.sin().cast(dtype));
    let x = take(x, heads * size).cast(dtype).require_grad();
    let output = apply_rotary(x.clone() * 2.0, &table);
    let weight = take(weight, heads * size).cast(dtype);
    let mut gradients = (output.clone() * weight).sum().backward();
    let gradient = x.grad_remove(&mut gradients).expect("a gradient");
    [values(&output), values(&gradient)]
}

/// In float64: with angles `a` and `b` of a pair's features, `2 (x cos a - y sin a, y cos b + x sin b)`, and of
/// the weights `v` and `w` of these the gradients `2 (v cos a + w sin b, w cos b - v sin a)`.
fn turned_in_float64([x, angles, weight]: &[Vec<f32>; 3], size: usize) -> [Vec<f64>; 2] {
    let ([rows, heads], half) = (TURNED, size / 2);
    let mut outputs = vec![0.0; rows * heads * size];
    let mut gradients = outputs.clone();
    for at in 0..rows * heads * half {
        let (row, head, pair) = (at / half / heads, at / half % heads, at % half);
        let [(sin_a, cos_a), (sin_b, cos_b)] =
            [pair, pair + half].map(|feature| f64::from(angles[row * size + feature]).sin_cos());
        let first = (row * heads + head) * size + pair;
        let second = first + half;
        let of_pair = |numbers: &[f32]| (f64::from(numbers[first]), f64::from(numbers[second]));
        let ((x, y), (v, w)) = (of_pair(x), of_pair(weight));
        outputs[first] = 2.0 * (x * cos_a - y * sin_a);
        outputs[second] = 2.0 * (y * cos_b + x * sin_b);
        gradients[first] = 2.0 * (v * cos_a + w * sin_b);
        gradients[second] = 2.0 * (w * cos_b - v * sin_a);
    }
    [outputs, gradients]
}

fn turn_numbers(size: usize) -> [Vec<f32>; 3] {
    let mut numbers = Numbers::new(6);
    std::array::from_fn(|_| numbers.normal(TURNED[0] * TURNED[1] * size))
}

fn turned_pairs_and_their_gradients_are_the_sums_of_products<A: AutodiffBackend>(
    device: A::Device,
) {
    for size in [2, 8, 10, 64] {
        let mut numbers = turn_numbers(size);
        let expected = turned_in_float64(&numbers, size);
        let found = turned::<A>(&numbers, size, DType::F32, &device);
        for (found, expected) in found.iter().zip(&expected) {
            assert_close(found, expected, &tolerance(expected));
        }
        numbers[1][size] += 0.5;
        let other = turned::<A>(&numbers, size, DType::F32, &device);
        for (other, expected) in other.iter().zip(&expected) {
            assert_not_close(other, expected, &tolerance(expected));
        }
    }
}

/// What the functions are tried on: those of three inputs, attention, and the turn of pairs.
type Numberings = ([Vec<f32>; 3], [Vec<f32>; 4], [Vec<f32>; 3]);

/// Each of the six, and its gradients, with inputs of the type, beside the operations in float32 on the
/// same inputs. The distance is that of all numbers together: small ones are differences of large ones.
fn half_precision_is_rounded_as_its_type_is<A: AutodiffBackend>(device: A::Device) {
    // A dozen roundings, and those of the operations around.
    const ROUNDINGS: usize = 16;
    let distance = |found: &[f64], expected: &[f64]| {
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|one| one * one).sum::<f64>();
        let apart = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
        (apart / norm(&mut expected.iter().copied())).sqrt()
    };
    for (dtype, unit) in half_types::<A::InnerBackend>(&device) {
        let dtype = dtype.dtype();
        // An exponential makes an error of its argument one of itself, times the argument: not far from 1.
        let of_type = |numbers: Vec<f32>| -> Vec<f32> {
            let count = numbers.len();
            let tensor = tensor::<A, 1>(&numbers, [count], &device).mul_scalar(0.3);
            let rounded = values(&tensor.cast(dtype));
            rounded.into_iter().map(|one| one as f32).collect()
        };
        let exact = numbers().map(of_type);
        let mut other = exact.clone();
        for number in &mut other[0] {
            *number *= 2.0;
        }
        let exact_qkv = attention_numbers(&geometry(4, 2, 8)).map(of_type);
        let exact_pairs = turn_numbers(8).map(of_type);
        let (mut other_qkv, mut other_pairs) = (exact_qkv.clone(), exact_pairs.clone());
        for number in other_qkv.iter_mut().chain(&mut other_pairs).flatten() {
            *number *= 2.0;
        }
        let exact = (exact, exact_qkv, exact_pairs);
        let other = (other, other_qkv, other_pairs);
        let all = |plain: bool, (numbers, qkv, pairs): &Numberings, dtype: DType| {
            let gated: Gated<A> = match plain {
                true => |gate, up| silu(gate) * up,
                false => gated_silu,
            };
            let normed = match plain {
                true => normed::<A>(plain_norm, numbers, dtype, &device),
                false => {
                    let norm = |x, gamma| rms_norm(x, gamma, EPSILON);
                    normed::<A>(norm, numbers, dtype, &device)
                }
            };
            let weighed = match plain {
                true => weighed::<A>(plain_softmax, numbers, [2, 1], dtype, &device),
                false => weighed::<A>(masked_softmax, numbers, [2, 1], dtype, &device),
            };
            let (geometry, documents) = (geometry(4, 2, 8), documents());
            let attention = |q, k, v| match plain {
                true => plain_attention(q, k, v, &geometry, &documents, false),
                false => {
                    let mask = AttentionMask::packed(&segments(&documents, &device));
                    grouped_attention(q, k, v, &geometry, &mask)
                }
            };
            let attended = attended::<A>(attention, qkv, dtype, &device);
            let capped = match plain {
                true => capped::<A>(plain_cap, numbers, dtype, &device),
                false => capped::<A>(|x| soft_cap(x, CAP), numbers, dtype, &device),
            };
            let turned = match plain {
                true => turned_in_float64(pairs, 8),
                false => turned::<A>(pairs, 8, dtype, &device),
            };
            let gated = found::<A>(gated, numbers, dtype, &device);
            gated
                .into_iter()
                .chain(normed)
                .chain(weighed)
                .chain(attended)
                .chain(capped)
                .chain(turned)
                .collect::<Vec<_>>()
        };
        let expected = all(true, &exact, DType::F32);
        let found = all(false, &exact, dtype);
        let changed = all(false, &other, dtype);
        let share = rounding(ROUNDINGS) * unit / UNIT_ROUNDOFF;
        for (index, expected) in expected.iter().enumerate() {
            let (near, far) = (
                distance(&found[index], expected),
                distance(&changed[index], expected),
            );
            assert!(near <= share, "{dtype:?}, {index}: {near}, {share} allowed");
            assert!(far > share, "{dtype:?}, {index}: {far} within {share}");
        }
    }
}
