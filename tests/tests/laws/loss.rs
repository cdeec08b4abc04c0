//! The chunked loss and its hand-written gradient, beside one that makes all logits and leaves the
//! gradient to Burn.

use std::sync::Arc;

use burn::prelude::*;
use burn::tensor::activation::log_softmax;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::decoder::Head;
use burn_lti::loss::{DistillationLoss, LossInput, LossSums, TeacherTokens};
use burn_lti::train::Distiller;
use burn_lti_tests::close::{Tolerance, assert_close, assert_not_close, rounding};
use burn_lti_tests::numbers::{Numbers, int_tensor, tensor, values};
use burn_lti_tests::on_every_backend;
use burn_lti_tests::params::perturb_largest;
use burn_lti_tests::toy::{PlainToy, ToyConfig};

on_every_backend![
    chunks_and_gradients_are_those_of_the_dense_loss,
    capped_logits_have_the_gradients_of_the_dense_loss,
    a_head_that_does_not_train_has_no_gradient,
    what_is_masked_changes_nothing,
    an_empty_mask_has_no_gradient_and_no_means,
    a_student_that_is_its_teacher_has_no_kl,
    high_and_low_logits_stay_finite,
    settings_out_of_range_are_refused,
    another_vocabulary_is_refused,
];

const TOKENS: usize = 11;
const VOCAB: usize = 19;
const STUDENT_WIDTH: usize = 6;
const TEACHER_WIDTH: usize = 8;

/// Uneven: chunks of three then hold 2, 0, 3 and 1 tokens that count.
const MASK: [f32; TOKENS] = [1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0];

/// Hidden states, heads and targets, as host values.
#[derive(Clone)]
struct Case {
    student: Vec<f32>,
    student_head: Vec<f32>,
    teacher: Vec<f32>,
    teacher_head: Vec<f32>,
    targets: Vec<i64>,
    mask: Vec<f32>,
    /// Of the student's logits, and of the teacher's.
    caps: [Option<f64>; 2],
}

impl Case {
    fn random(seed: u64) -> Self {
        let mut numbers = Numbers::new(seed);
        Self {
            student: numbers.normal(TOKENS * STUDENT_WIDTH),
            student_head: numbers.normal(STUDENT_WIDTH * VOCAB),
            teacher: numbers.normal(TOKENS * TEACHER_WIDTH),
            teacher_head: numbers.normal(TEACHER_WIDTH * VOCAB),
            targets: numbers.ids(TOKENS, VOCAB),
            mask: MASK.to_vec(),
            caps: [None; 2],
        }
    }

    fn input<B: Backend>(&self, head_trains: bool, device: &B::Device) -> LossInput<B> {
        LossInput {
            student_hidden: tensor(&self.student, [TOKENS, STUDENT_WIDTH], device),
            student_head: Head {
                weight: tensor(&self.student_head, [STUDENT_WIDTH, VOCAB], device),
                trains: head_trains,
                cap: self.caps[0],
            },
            teacher: TeacherTokens::Hidden {
                hidden: tensor(&self.teacher, [TOKENS, TEACHER_WIDTH], device),
                head: Head {
                    weight: tensor(&self.teacher_head, [TEACHER_WIDTH, VOCAB], device),
                    trains: false,
                    cap: self.caps[1],
                },
            },
            features: Vec::new(),
            targets: int_tensor(&self.targets, [TOKENS], device),
            mask: tensor(&self.mask, [TOKENS], device),
        }
    }
}

/// What the dense loss finds.
struct Dense {
    /// Sums of the loss, KL at `T`, KL at 1, student's CE, teacher's CE, agreements.
    sums: Vec<f64>,
    hidden: Vec<f64>,
    head: Vec<f64>,
}

/// `alpha T^2 KL + (1 - alpha) CE` on whole logits, its gradient by Burn's autodiff.
fn dense<A: AutodiffBackend>(case: &Case, alpha: f64, t: f64, device: &A::Device) -> Dense {
    let input = case.input::<A>(true, device);
    let hidden = input.student_hidden.require_grad();
    let head = input.student_head.weight.require_grad();
    let student = hidden.clone().matmul(head.clone());
    let TeacherTokens::Hidden {
        hidden: states,
        head: unembed,
    } = input.teacher
    else {
        panic!("the case has a teacher that runs");
    };
    let teacher = states.matmul(unembed.weight);
    let capped = |logits: Tensor<A, 2>, cap: Option<f64>| match cap {
        Some(cap) => (logits / cap).tanh() * cap,
        None => logits,
    };
    let (student, teacher) = (capped(student, case.caps[0]), capped(teacher, case.caps[1]));
    let targets: Tensor<A, 2, Int> = input.targets.unsqueeze_dim(1);
    let mask = input.mask;

    let sum = |per_token: Tensor<A, 1>| (per_token * mask.clone()).sum();
    let kl = |t: f64| {
        let student = log_softmax(student.clone() / t, 1);
        let teacher = log_softmax(teacher.clone() / t, 1);
        let terms = teacher.clone().exp() * (teacher - student);
        sum(terms.sum_dim(1).squeeze_dim(1))
    };
    let ce = |logits: &Tensor<A, 2>| {
        let picked = log_softmax(logits.clone(), 1).gather(1, targets.clone());
        sum(picked.squeeze_dim::<1>(1).neg())
    };
    let (soft, hard) = (kl(t), ce(&student));
    let alike = student.clone().argmax(1).equal(teacher.clone().argmax(1));
    let agreements = sum(alike.float().squeeze_dim(1));
    let loss = soft.clone() * (alpha * t * t) + hard.clone() * (1.0 - alpha);
    let gradients = (loss.clone() / mask.clone().sum()).backward();
    let sums = Tensor::cat(vec![loss, soft, kl(1.0), hard, ce(&teacher), agreements], 0);
    Dense {
        sums: values(&sums),
        hidden: values(&hidden.grad(&gradients).expect("a gradient")),
        head: values(&head.grad(&gradients).expect("a gradient")),
    }
}

fn in_order(sums: &LossSums) -> Vec<f64> {
    vec![
        sums.loss,
        sums.soft,
        sums.kl.expect("a teacher that runs"),
        sums.student_ce,
        sums.teacher_ce.expect("a teacher that runs"),
        sums.agreements,
    ]
}

/// Of a logit: `d` products of unit normals, at most four deviations large. A log-probability adds
/// the sum over the vocabulary; a sum over tokens as many again. At most `1 + 20` in size each, two
/// programs.
fn sum_tolerance() -> Tolerance {
    let size = 21.0 * TOKENS as f64;
    Tolerance::Uniform(2.0 * rounding(TEACHER_WIDTH + 2 * VOCAB + 8 + TOKENS) * size)
}

/// A logit's gradient is `alpha T (p - q) + (1 - alpha) (p - y)` over the six tokens that count, its
/// probabilities off by as much, relatively, as log-probabilities are absolutely, and adding up to 2
/// at most. It meets weights of the head, or the hidden states of all tokens, below 4 in size each.
fn gradient_tolerance(loss: &DistillationLoss) -> Tolerance {
    let probability = rounding(TEACHER_WIDTH + 3 * VOCAB + 8 + TOKENS) * 21.0;
    let mix = loss.alpha() * loss.temperature() + 1.0 - loss.alpha();
    Tolerance::Uniform(2.0 * probability * 2.0 * 4.0 * mix / 6.0)
}

fn chunks_and_gradients_are_those_of_the_dense_loss<A: AutodiffBackend>(device: A::Device) {
    let case = Case::random(1);
    for alpha in [0.0, 0.5, 1.0] {
        for t in [1.0, 2.0] {
            let expected = dense::<A>(&case, alpha, t, &device);
            for chunk in [1, 3, 7, TOKENS, 10 * TOKENS] {
                let loss = DistillationLoss::new(alpha, t, chunk).expect("settings");
                check_against_dense::<A>(&case, &loss, &expected, &device);
            }
        }
    }
}

/// Logits of some ten, most of which a cap of 2 changes.
fn capped_logits_have_the_gradients_of_the_dense_loss<A: AutodiffBackend>(device: A::Device) {
    let free = Case::random(1);
    for caps in [[Some(2.0); 2], [Some(5.0), None], [None, Some(2.0)]] {
        let case = Case {
            caps,
            ..free.clone()
        };
        for (alpha, t) in [(0.5, 1.0), (1.0, 2.0), (0.3, 3.0)] {
            let expected = dense::<A>(&case, alpha, t, &device);
            let loss = DistillationLoss::new(alpha, t, 3).expect("settings");
            check_against_dense::<A>(&case, &loss, &expected, &device);
            let without = loss.gradient(free.input::<A::InnerBackend>(true, &device));
            let found = values(&without.hidden);
            assert_not_close(&found, &expected.hidden, &gradient_tolerance(&loss));
        }
    }
}

fn check_against_dense<A: AutodiffBackend>(
    case: &Case,
    loss: &DistillationLoss,
    expected: &Dense,
    device: &A::Device,
) {
    let found = loss.gradient(case.input::<A::InnerBackend>(true, device));
    let sums = found.sums.read();
    assert_eq!(sums.tokens, 6.0);
    assert_close(&in_order(&sums), &expected.sums, &sum_tolerance());
    assert_close(
        &values(&found.hidden),
        &expected.hidden,
        &gradient_tolerance(loss),
    );
    let head = found.head.expect("the head trains");
    assert_close(&values(&head), &expected.head, &gradient_tolerance(loss));
    let evaluated = loss.evaluate(case.input::<A::InnerBackend>(true, device));
    assert_eq!(evaluated.read(), sums);

    let mut changed = case.clone();
    perturb_largest(&mut changed.student[..STUDENT_WIDTH], 0.05);
    let found = loss.gradient(changed.input::<A::InnerBackend>(true, device));
    assert_not_close(
        &in_order(&found.sums.read()),
        &expected.sums,
        &sum_tolerance(),
    );
    assert_not_close(
        &values(&found.hidden),
        &expected.hidden,
        &gradient_tolerance(loss),
    );
    let head = found.head.expect("the head trains");
    assert_not_close(&values(&head), &expected.head, &gradient_tolerance(loss));
}

fn a_head_that_does_not_train_has_no_gradient<A: AutodiffBackend>(device: A::Device) {
    let case = Case::random(2);
    let loss = DistillationLoss::new(0.5, 2.0, 3).expect("settings");
    let frozen = loss.gradient(case.input::<A::InnerBackend>(false, &device));
    assert!(frozen.head.is_none());
    let trained = loss.gradient(case.input::<A::InnerBackend>(true, &device));
    assert_eq!(values(&frozen.hidden), values(&trained.hidden));
}

/// Targets and hidden states where the mask is 0 are never looked at.
fn what_is_masked_changes_nothing<A: AutodiffBackend>(device: A::Device) {
    let case = Case::random(3);
    let mut other = case.clone();
    for token in (0..TOKENS).filter(|token| MASK[*token] == 0.0) {
        other.targets[token] = (other.targets[token] + 1) % VOCAB as i64;
        other.student[token * STUDENT_WIDTH] += 1.0;
        other.teacher[token * TEACHER_WIDTH] -= 1.0;
    }
    let loss = DistillationLoss::new(0.5, 1.0, 4).expect("settings");
    let gradient = |case: &Case| loss.gradient(case.input::<A::InnerBackend>(true, &device));
    let (found, expected) = (gradient(&other), gradient(&case));
    assert_eq!(found.sums.read(), expected.sums.read());
    assert_eq!(values(&found.hidden), values(&expected.hidden));
    for (token, row) in values(&found.hidden)
        .chunks_exact(STUDENT_WIDTH)
        .enumerate()
    {
        let silent = row.iter().all(|value| *value == 0.0);
        assert_eq!(silent, MASK[token] == 0.0, "token {token}");
    }
}

fn an_empty_mask_has_no_gradient_and_no_means<A: AutodiffBackend>(device: A::Device) {
    let mut case = Case::random(4);
    case.mask = vec![0.0; TOKENS];
    let loss = DistillationLoss::new(0.5, 2.0, 3).expect("settings");
    let found = loss.gradient(case.input::<A::InnerBackend>(true, &device));
    assert!(values(&found.hidden).iter().all(|value| *value == 0.0));
    let head = found.head.expect("the head trains");
    assert!(values(&head).iter().all(|value| *value == 0.0));
    let sums = found.sums.read();
    let nothing = LossSums {
        feature: None,
        feature_weight: None,
        ..LossSums::default()
    };
    assert_eq!(sums, nothing);
    let means = [
        sums.loss_mean(),
        sums.soft_mean(),
        sums.kl_mean(),
        sums.student_ce_mean(),
        sums.teacher_ce_mean(),
        sums.top1_agreement(),
    ];
    assert_eq!(means, [None; 6]);
}

/// The KL is zero up to rounding, the gradient too, and every token agrees.
fn a_student_that_is_its_teacher_has_no_kl<A: AutodiffBackend>(device: A::Device) {
    let case = Case::random(5);
    let mut input = case.input::<A::InnerBackend>(true, &device);
    let TeacherTokens::Hidden { hidden, head } = &input.teacher else {
        panic!("the case has a teacher that runs");
    };
    input.student_hidden = hidden.clone();
    input.student_head.weight = head.weight.clone();
    let loss = DistillationLoss::new(1.0, 2.0, 4).expect("settings");
    let found = loss.gradient(input);
    let sums = found.sums.read();
    assert_eq!((sums.kl, sums.soft), (Some(0.0), 0.0));
    assert_eq!(sums.agreements, sums.tokens);
    assert_eq!(Some(sums.student_ce), sums.teacher_ce);
    assert!(values(&found.hidden).iter().all(|value| *value == 0.0));
}

/// Logits of a few hundred, whose plain exponentials would overflow.
fn high_and_low_logits_stay_finite<A: AutodiffBackend>(device: A::Device) {
    let mut case = Case::random(6);
    for value in case.student_head.iter_mut().chain(&mut case.teacher_head) {
        *value *= 100.0;
    }
    let loss = DistillationLoss::new(0.5, 1.0, 3).expect("settings");
    let found = loss.gradient(case.input::<A::InnerBackend>(true, &device));
    let sums = found.sums.read();
    assert!(sums.is_finite() && sums.student_ce > 500.0, "{sums:?}");
    assert!(values(&found.hidden).iter().all(|value| value.is_finite()));
}

fn settings_out_of_range_are_refused<A: AutodiffBackend>(_device: A::Device) {
    let refused = |alpha, t, chunk| DistillationLoss::new(alpha, t, chunk).expect_err("refused");
    for alpha in [-0.1, 1.5, f64::NAN] {
        let error = refused(alpha, 1.0, 1);
        assert!(
            error.to_string().contains(&format!("alpha is {alpha}")),
            "{error}"
        );
    }
    for t in [0.0, -1.0, f64::INFINITY, f64::NAN] {
        let error = refused(0.5, t, 1);
        assert!(
            error.to_string().contains(&format!("temperature is {t}")),
            "{error}"
        );
    }
    let error = refused(0.5, 1.0, 0);
    assert!(error.to_string().contains("chunk_tokens is 0"), "{error}");
}

fn another_vocabulary_is_refused<A: AutodiffBackend>(device: A::Device) {
    let config = ToyConfig::new(2, 1);
    let student: PlainToy<A> = config.init(&device);
    let larger = ToyConfig {
        vocab: 30,
        ..config
    };
    let teacher: PlainToy<A::InnerBackend> = larger.init(&device);
    let error = Distiller::<A, _, _>::new(student, Arc::new(teacher), DistillationLoss::KL)
        .expect_err("23 tokens are not 30");
    assert!(
        error
            .to_string()
            .contains("teacher knows 30 tokens and the student 23"),
        "{error}"
    );
}
