//! Products and their gradients, beside Burn's.

use burn::backend::Autodiff;
use burn::prelude::*;
use half::bf16;

use super::cpu::{self, DEPTH, balanced, piece_for, wide};
use super::{
    HeadGradient, PackedWeight, ProductPrecision, head_product, multiplied, product,
    product_through_head,
};

/// Small whole numbers, whose sums of products are exact.
fn numbers<B: Backend>(shape: [usize; 2]) -> Tensor<B, 2> {
    let [rows, columns] = shape;
    let values = (0..rows * columns).map(|at| (at * 7 % 11) as f32 - 5.0);
    let data = TensorData::new(values.collect::<Vec<f32>>(), shape);
    Tensor::from_data(data, &Default::default())
}

fn values<B: Backend>(tensor: Tensor<B, 2>) -> Vec<f32> {
    tensor.into_data().iter().collect()
}

fn pieces_make_the_whole_product<B: Backend>() {
    // Of less than a piece, of whole ones, of some and a rest, along each axis.
    let shapes = [
        [3, 5, 1],
        [3, 5, 1024],
        [1, 70, 1300],
        [530, 9, 600],
        [1024, 1, 513],
        [7, 2 * DEPTH, 3],
        [515, DEPTH + 1, 2],
        [2, 17 * DEPTH + 5, 3],
    ];
    for [m, k, n] in shapes {
        // Where they are, and as views of what lies otherwise and begins elsewhere.
        let left = [
            numbers::<B>([m, k]),
            numbers::<B>([k, m]).transpose(),
            numbers::<B>([m + 1, k]).slice([1..m + 1, 0..k]),
        ];
        let right = [
            numbers::<B>([k, n]),
            numbers::<B>([n, k]).transpose(),
            numbers::<B>([k, n + 2]).slice([0..k, 2..n + 2]),
        ];
        for (left, right) in left.into_iter().zip(right) {
            let expected = values(left.clone().matmul(right.clone()));
            assert!(
                cpu::product(&left, &right, wide).is_some(),
                "they are not seen"
            );
            let found = head_product(left.clone(), right.clone());
            assert_eq!(values(found), expected, "{m} {k} {n}");
            let found = product_through_head(left.clone(), right.clone());
            assert_eq!(values(found), expected, "{m} {k} {n}");
            for precision in ProductPrecision::ALL {
                let found = product(precision, left.clone(), right.clone(), balanced);
                assert_eq!(values(found), expected, "{m} {k} {n} {precision}");
            }
        }
    }
}

fn a_packed_weight_has_the_same_product<B: Backend>() {
    // Narrower than a panel, of whole ones, of some and a rest; deeper than a piece; for many threads.
    for [k, n] in [[1, 1], [5, 3], [70, 32], [33, 100], [1300, 40], [600, 1030]] {
        for weight in [
            numbers::<B>([k, n]),
            numbers::<B>([n, k]).transpose(),
            numbers::<B>([k + 1, n + 2]).slice([1..k + 1, 2..n + 2]),
        ] {
            let packed = ProductPrecision::ALL.map(|precision| packed(precision, &weight));
            for packed in &packed {
                let back = packed.weight::<B>(&weight.device());
                assert_eq!(values(back), values(weight.clone()));
            }
            for m in [1, 2, 5, 6, 7, 13, 64] {
                for input in [
                    numbers::<B>([m, k]),
                    numbers::<B>([k, m]).transpose(),
                    numbers::<B>([m, k + 3]).slice([0..m, 3..k + 3]),
                ] {
                    let expected = values(input.clone().matmul(weight.clone()) + 1.0);
                    let bias = Tensor::ones([n], &weight.device());
                    for packed in &packed {
                        let found = packed.project(input.clone(), Some(bias.clone()));
                        assert_eq!(values(found), expected, "{m} {k} {n}");
                    }
                }
            }
        }
    }
}

fn packed<B: Backend>(precision: ProductPrecision, weight: &Tensor<B, 2>) -> PackedWeight {
    let packed = precision.scope(|| PackedWeight::of(weight));
    packed.expect("it is of a CPU")
}

/// Numbers whose products are rounded.
fn roots<B: Backend>(shape: [usize; 2]) -> Tensor<B, 2> {
    (numbers::<B>(shape) + 6.0).sqrt() - 1.7
}

/// Of numbers whose sums are rounded, bit for bit.
fn a_row_of_a_packed_product_is_its_own<B: Backend>() {
    let input = roots::<B>([300, 700]);
    let bits = |product: Tensor<B, 2>| -> Vec<u32> {
        values(product).into_iter().map(f32::to_bits).collect()
    };
    for precision in ProductPrecision::ALL {
        let packed = packed(precision, &roots::<B>([700, 530]));
        let all = bits(packed.project(input.clone(), None));
        for rows in [0..1, 7..9, 100..113, 299..300, 20..260] {
            let alone = packed.project(input.clone().slice([rows.clone(), 0..700]), None);
            assert_eq!(bits(alone), all[rows.start * 530..rows.end * 530]);
        }
    }
}

/// As `half` rounds, and summed in float64.
fn a_product_in_bfloat16_is_that_of_rounded_factors<B: Backend>() {
    let rounded = |tensor: Tensor<B, 2>| -> Vec<f64> {
        let rounded = |number: f32| bf16::from_f32(number).to_f64();
        values(tensor).into_iter().map(rounded).collect()
    };
    for [m, k, n] in [[1, 1, 1], [15, 333, 37], [64, 2000, 33], [131, 64, 200]] {
        let (left, right) = (roots::<B>([m, k]), roots::<B>([k, n]));
        let precision = ProductPrecision::BFloat16;
        let found = values(product(precision, left.clone(), right.clone(), balanced));
        let of_packed = packed(precision, &right).project(left.clone(), None);
        let (left, right) = (rounded(left), rounded(right));
        for (at, (found, of_packed)) in found.into_iter().zip(values(of_packed)).enumerate() {
            let terms = (0..k).map(|i| left[at / n * k + i] * right[i * n + at % n]);
            let size: f64 = terms.clone().map(f64::abs).sum();
            let expected: f64 = terms.sum();
            let bound = f64::from(f32::EPSILON) * k as f64 * size;
            assert!(
                (f64::from(found) - expected).abs() <= bound,
                "{m} {k} {n}, at {at}: {found} is not {expected}"
            );
            assert_eq!(found.to_bits(), of_packed.to_bits(), "packed or not");
        }
    }
}

/// Beyond float32's numbers and at their end: what is no number must not become one.
fn what_is_no_number_stays_none_in_bfloat16<B: Backend>() {
    for odd in [
        f32::NAN,
        -f32::NAN,
        f32::from_bits(0x7fff_ffff),
        f32::from_bits(0x7f80_0001),
    ] {
        let left = Tensor::<B, 2>::from_floats([[1.0, odd, 2.0]], &Default::default());
        let right = numbers::<B>([3, 40]);
        let found = values(product(ProductPrecision::BFloat16, left, right, balanced));
        assert!(found.into_iter().all(f32::is_nan));
    }
    let left = Tensor::<B, 2>::from_floats([[1.0, f32::INFINITY]], &Default::default());
    let right = Tensor::<B, 2>::from_floats([[1.0], [-2.0]], &Default::default());
    let found = values(product(ProductPrecision::BFloat16, left, right, balanced));
    assert_eq!(found, [f32::NEG_INFINITY]);
}

#[test]
fn a_precision_ends_with_its_scope() {
    let current = ProductPrecision::current;
    assert_eq!(current(), ProductPrecision::Float32);
    let inside = ProductPrecision::BFloat16.scope(|| {
        let inner = ProductPrecision::Float32.scope(current);
        assert_eq!(inner, ProductPrecision::Float32);
        current()
    });
    assert_eq!(inside, ProductPrecision::BFloat16);
    let panicked = std::panic::catch_unwind(|| ProductPrecision::BFloat16.scope(|| panic!("out")));
    assert!(panicked.is_err());
    assert_eq!(current(), ProductPrecision::Float32);
}

fn what_cannot_be_packed_is_left<B: Backend>() {
    let weight = numbers::<B>([2, 3]);
    assert!(PackedWeight::of(&weight.clone().cast(burn::tensor::DType::F64)).is_none());
    assert!(PackedWeight::of(&numbers::<B>([2, 0])).is_none());
    let packed = PackedWeight::of(&weight).expect("it is of a CPU");
    let nothing = packed.project(Tensor::<B, 2>::zeros([0, 2], &weight.device()), None);
    assert_eq!(nothing.dims(), [0, 3]);
    let double = numbers::<B>([4, 2]).cast(burn::tensor::DType::F64);
    let found = packed.project(double.clone(), None);
    assert_eq!(found.dtype(), burn::tensor::DType::F64);
    assert_eq!(
        values(found),
        values(double.matmul(weight.cast(burn::tensor::DType::F64)))
    );
}

#[test]
fn every_thread_has_work_and_little_is_packed_twice() {
    // SmolLM2's feed-forward block, on two cores and on eight.
    assert_eq!(piece_for(2, [512, 576, 1536]), [256, 384]);
    assert_eq!(piece_for(2, [512, 1536, 576]), [256, 144]);
    assert_eq!(piece_for(8, [512, 576, 1536]), [128, 192]);
    assert_eq!(piece_for(1, [100, 576, 1536]), [100, 768]);
    // A single token; a product that is not worth a second thread.
    assert_eq!(piece_for(2, [1, 576, 1536]), [1, 768]);
    assert_eq!(piece_for(2, [16, 64, 64]), [16, 64]);
    for threads in 1..=64 {
        for shape in [[1, 1 << 18, 1], [8192, 4096, 14336], [3, 1 << 20, 5]] {
            let [rows, columns] = piece_for(threads, shape);
            assert!((1..=512).contains(&rows) && (1..=1024).contains(&columns));
        }
    }
}

fn nothing_has_a_product_too<B: Backend>() {
    for [m, k, n] in [[0, 5, 3], [2, 0, 3], [2, 5, 0]] {
        let factors = || (numbers::<B>([m, k]), numbers::<B>([k, n]));
        let (left, right) = factors();
        assert_eq!(values(head_product(left, right)), vec![0.0; m * n]);
        let (left, right) = factors();
        assert_eq!(values(product_through_head(left, right)), vec![0.0; m * n]);
    }
}

/// Whole numbers; a head of its own, and one that is a view of a table.
fn a_heads_gradient_is_summed_up_over_tokens<B: Backend>() {
    let (d, vocab) = (33, 70);
    let heads = [
        numbers::<B>([d, vocab]),
        numbers::<B>([vocab, d]).transpose(),
    ];
    let tokens = [5, 1, 40].map(|n| (numbers::<B>([n, d]), numbers::<B>([n, vocab]) + 1.0));
    let expected = tokens
        .clone()
        .map(|(states, gradient)| states.transpose().matmul(gradient))
        .into_iter()
        .reduce(|sum, next| sum + next);
    let expected = values(expected.expect("there are some"));
    for (head, precision) in heads
        .into_iter()
        .flat_map(|head| ProductPrecision::ALL.map(|precision| (head.clone(), precision)))
    {
        let mut sum = HeadGradient::new(&head);
        for (states, gradient) in tokens.clone() {
            precision.scope(|| sum.add(states, gradient));
        }
        assert_eq!(
            sum.finish().map(values),
            Some(expected.clone()),
            "{precision}"
        );
        assert!(HeadGradient::new(&head).finish().is_none());
    }
}

fn other_numbers_are_the_backends<B: Backend>() {
    let double = numbers::<B>([2, 3]).cast(burn::tensor::DType::F64);
    assert!(cpu::product(&double, &double.clone().transpose(), wide).is_none());
}

fn what_is_no_number_is_passed_on<B: Backend>() {
    let nan = numbers::<B>([2, 3]).slice_fill([0..1, 1..2], f32::NAN);
    let product = head_product(nan, numbers::<B>([3, 600]));
    let product = values(product);
    assert!(product[..600].iter().all(|number| number.is_nan()));
    assert!(product[600..].iter().all(|number| number.is_finite()));
}

/// The product, and the gradients of both factors, all of whole numbers.
fn found<I: Backend>(
    wanted: [bool; 2],
    product: impl Fn(Tensor<Autodiff<I>, 2>, Tensor<Autodiff<I>, 2>) -> Tensor<Autodiff<I>, 2>,
) -> [Option<Vec<f32>>; 3] {
    let leaf = |shape, wanted| Tensor::from_inner(numbers::<I>(shape)).set_require_grad(wanted);
    let (left, right) = (leaf([70, 33], wanted[0]), leaf([40, 33], wanted[1]));
    let output = product(left.clone(), right.clone().transpose());
    let weight = Tensor::from_inner(numbers::<I>([70, 40]));
    let gradients = (output.clone() * weight).sum().backward();
    let values = |tensor: Tensor<I, 2>| tensor.into_data().iter().collect();
    [
        Some(values(output.inner())),
        left.grad(&gradients).map(values),
        right.grad(&gradients).map(values),
    ]
}

fn gradients_are_those_of_burns_product<I: Backend>() {
    for wanted in [[true, true], [true, false], [false, true]] {
        for precision in ProductPrecision::ALL {
            let found_here = precision.scope(|| found::<I>(wanted, multiplied));
            let gradients = [&found_here[1], &found_here[2]].map(Option::is_some);
            assert_eq!(gradients, wanted);
            assert_eq!(found_here, found::<I>(wanted, Tensor::matmul));
        }
    }
}

/// Which is where a learner goes backwards.
fn a_gradient_has_its_products_precision_outside_the_scope<I: Backend>() {
    let leaf = |number: f32| {
        let data = TensorData::from([[number]]);
        Tensor::<Autodiff<I>, 2>::from_data(data, &Default::default()).require_grad()
    };
    let (left, right) = (leaf(1.001), leaf(3.001));
    let output = ProductPrecision::BFloat16.scope(|| multiplied(left.clone(), right.clone()));
    assert_eq!(values(output.clone().inner()), [3.0], "rounded");
    let gradients = (output * 1.001).sum().backward();
    assert_eq!(left.grad(&gradients).map(values), Some(vec![3.0]));
    assert_eq!(right.grad(&gradients).map(values), Some(vec![1.0]));
}

macro_rules! on {
    ($($feature:literal $name:ident $backend:ident),*) => {$(
        #[cfg(feature = $feature)]
        mod $name {
            use crate::backend::$backend;

            #[test]
            fn pieces_make_the_whole_product() {
                super::pieces_make_the_whole_product::<$backend>();
            }

            #[test]
            fn gradients_are_those_of_burns_product() {
                super::gradients_are_those_of_burns_product::<$backend>();
            }

            #[test]
            fn a_gradient_has_its_products_precision_outside_the_scope() {
                super::a_gradient_has_its_products_precision_outside_the_scope::<$backend>();
            }

            #[test]
            fn a_product_in_bfloat16_is_that_of_rounded_factors() {
                super::a_product_in_bfloat16_is_that_of_rounded_factors::<$backend>();
            }

            #[test]
            fn what_is_no_number_stays_none_in_bfloat16() {
                super::what_is_no_number_stays_none_in_bfloat16::<$backend>();
            }

            #[test]
            fn a_packed_weight_has_the_same_product() {
                super::a_packed_weight_has_the_same_product::<$backend>();
            }

            #[test]
            fn a_row_of_a_packed_product_is_its_own() {
                super::a_row_of_a_packed_product_is_its_own::<$backend>();
            }

            #[test]
            fn what_cannot_be_packed_is_left() {
                super::what_cannot_be_packed_is_left::<$backend>();
            }

            #[test]
            fn a_heads_gradient_is_summed_up_over_tokens() {
                super::a_heads_gradient_is_summed_up_over_tokens::<$backend>();
            }

            #[test]
            fn nothing_has_a_product_too() {
                super::nothing_has_a_product_too::<$backend>();
            }

            #[test]
            fn other_numbers_are_the_backends() {
                super::other_numbers_are_the_backends::<$backend>();
            }

            #[test]
            fn what_is_no_number_is_passed_on() {
                super::what_is_no_number_is_passed_on::<$backend>();
            }
        }
    )*};
}
on!["flex" flex Flex, "ndarray" ndarray NdArray, "tch" tch LibTorch];
