//! The loss of a row and its gradient, beside their definitions in float64.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::cpu::*;

/// Of float32: one number's rounding.
const EPSILON: f64 = f32::EPSILON as f64;

struct Case {
    student: Vec<f32>,
    teacher: Vec<f32>,
    target: usize,
}

impl Case {
    fn random(vocab: usize, spread: f32) -> Self {
        let mut random = StdRng::seed_from_u64(vocab as u64);
        let mut row = || -> Vec<f32> {
            let values = (0..vocab).map(|_| random.random_range(-spread..spread));
            values.collect()
        };
        Self {
            student: row(),
            teacher: row(),
            target: vocab / 3,
        }
    }

    fn run(&self, loss: RowLoss, weight: Option<f64>) -> (RowTerms, Vec<f64>) {
        let (mut student, mut teacher) = (self.student.clone(), self.teacher.clone());
        let mut work = vec![0.0; if loss.needs_work() { student.len() } else { 0 }];
        let mut capped = vec![
            0.0;
            if loss.needs_capped() {
                student.len()
            } else {
                0
            }
        ];
        let row = Row {
            student: &mut student,
            teacher: &mut teacher,
            work: &mut work,
            capped: &mut capped,
            target: self.target,
        };
        let terms = row.evaluate(loss, weight);
        (terms, student.into_iter().map(f64::from).collect())
    }

    /// The same from the definitions, in float64.
    fn expected(&self, loss: RowLoss, weight: f64) -> (RowTerms, Vec<f64>) {
        let (t, alpha) = (loss.temperature, loss.alpha);
        let capped = |row: &[f32], cap: Option<f32>| -> Vec<f64> {
            let cap = cap.map_or(f64::INFINITY, f64::from);
            let row = row.iter().map(|&z| f64::from(z));
            match cap.is_finite() {
                true => row.map(|z| cap * (z / cap).tanh()).collect(),
                false => row.collect(),
            }
        };
        let student = capped(&self.student, loss.caps[0]);
        let teacher = capped(&self.teacher, loss.caps[1]);
        let log_softmax = |row: &[f64], t: f64| -> Vec<f64> {
            let row: Vec<f64> = row.iter().map(|z| z / t).collect();
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = row.iter().map(|z| (z - max).exp()).sum();
            row.iter().map(|z| z - max - sum.ln()).collect()
        };
        let kl =
            |p: &[f64], q: &[f64]| -> f64 { p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum() };
        let first_largest = |row: &[f32]| {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            row.iter().position(|&z| z == max)
        };
        let (p, q) = (log_softmax(&teacher, t), log_softmax(&student, t));
        let (p_untempered, q_untempered) = (log_softmax(&teacher, 1.0), log_softmax(&student, 1.0));
        let soft = if loss.reverse { kl(&q, &p) } else { kl(&p, &q) };
        let agree = first_largest(&self.student) == first_largest(&self.teacher);
        let terms = RowTerms {
            tokens: 1.0,
            soft,
            student_ce: -q_untempered[self.target],
            agreements: f64::from(agree),
            kl: kl(&p_untempered, &q_untempered),
            teacher_ce: -p_untempered[self.target],
        };
        let gradient = (0..p.len()).map(|i| {
            let d = match loss.reverse {
                false => q[i].exp() - p[i].exp(),
                true => q[i].exp() * (q[i] - p[i] - soft),
            };
            let y = f64::from(i == self.target);
            let slope = match loss.caps[0] {
                Some(cap) => 1.0 - (student[i] / f64::from(cap)).powi(2),
                None => 1.0,
            };
            slope * weight * (alpha * t * d + (1.0 - alpha) * (q_untempered[i].exp() - y))
        });
        (terms, gradient.collect())
    }
}

fn losses() -> impl Iterator<Item = RowLoss> {
    [1.0, 2.0, 3.5].into_iter().flat_map(|temperature| {
        [(0.9, false), (1.0, false), (0.9, true), (0.0, true)].map(|(alpha, reverse)| RowLoss {
            alpha,
            temperature,
            reverse,
            caps: [None; 2],
        })
    })
}

/// The terms are differences of logits below `4 * spread` and logarithms of sums; a logit is given
/// to half a unit in its last place, and so is its distance from the largest.
fn assert_close(case: &Case, loss: RowLoss, spread: f64) {
    let (found, gradient) = case.run(loss, Some(0.25));
    let (expected, expected_gradient) = case.expected(loss, 0.25);
    let pairs = [
        (found.soft, expected.soft),
        (found.student_ce, expected.student_ce),
        (found.kl, expected.kl),
        (found.teacher_ce, expected.teacher_ce),
    ];
    for (found, expected) in pairs {
        let allowed = 8.0 * EPSILON * 4.0 * spread;
        assert!(
            (found - expected).abs() <= allowed,
            "{loss:?}: {found} {expected}"
        );
    }
    assert_eq!(found.agreements, expected.agreements, "{loss:?}");
    let largest = expected_gradient
        .iter()
        .fold(0.0_f64, |max, g| max.max(g.abs()));
    for (at, (found, expected)) in gradient.iter().zip(&expected_gradient).enumerate() {
        let allowed = 8.0 * EPSILON * 4.0 * spread * (expected.abs() + 0.1 * largest);
        assert!(
            (found - expected).abs() <= allowed,
            "{loss:?} {at}: {found} {expected}"
        );
    }
}

#[test]
fn terms_and_gradient_are_those_of_the_definitions() {
    for vocab in [1, 3, 19, 64, 1023, 1025, 5003] {
        for loss in losses() {
            assert_close(&Case::random(vocab, 10.0), loss, 10.0);
        }
    }
}

/// A cap's tangent is good to three units in its last place, and its slope to as many of one.
#[test]
fn capped_logits_have_the_terms_and_the_gradient_of_the_definitions() {
    for caps in [
        [Some(6.0), Some(6.0)],
        [Some(12.0), None],
        [None, Some(4.0)],
    ] {
        for vocab in [1, 19, 1025] {
            for loss in losses() {
                let case = Case::random(vocab, 10.0);
                assert_close(&case, RowLoss { caps, ..loss }, 10.0);
                if let (Some(cap), true) = (caps[0], vocab == 1025) {
                    let uncapped = case.run(loss, Some(1.0)).0.soft;
                    let capped = case.run(RowLoss { caps, ..loss }, Some(1.0)).0.soft;
                    assert!((uncapped - capped).abs() > 1e-3, "a cap of {cap} matters");
                }
            }
        }
    }
}

#[test]
fn a_gradient_is_not_that_of_another_row() {
    let loss = RowLoss {
        alpha: 0.9,
        temperature: 2.0,
        reverse: false,
        caps: [None; 2],
    };
    let mut case = Case::random(1025, 10.0);
    let (_, before) = case.run(loss, Some(1.0));
    case.student[1024] = 9.0;
    let (_, after) = case.run(loss, Some(1.0));
    assert!(
        (before[1024] - after[1024]).abs() > 1e-3,
        "{} {}",
        before[1024],
        after[1024]
    );
}

#[test]
fn far_logits_stay_finite_and_vanish() {
    for loss in losses() {
        let mut case = Case::random(100, 1.0);
        case.student[7] = 3e4;
        case.teacher[9] = -3e4;
        let (terms, gradient) = case.run(loss, Some(1.0));
        let terms = [terms.soft, terms.student_ce, terms.kl, terms.teacher_ce];
        assert!(
            terms.iter().chain(&gradient).all(|value| value.is_finite()),
            "{terms:?}"
        );
    }
}

#[test]
fn what_is_no_number_is_not_hidden() {
    for at in [0, 17, 99] {
        let mut case = Case::random(100, 1.0);
        case.student[at] = f32::NAN;
        for loss in losses() {
            let (terms, _) = case.run(loss, None);
            assert!(
                terms.soft.is_nan() && terms.student_ce.is_nan(),
                "{at} {terms:?}"
            );
        }
    }
}

#[test]
fn the_first_of_the_likeliest_is_chosen() {
    let mut case = Case::random(3000, 1.0);
    for at in [2999, 1500, 1024] {
        case.student[at] = 5.0;
    }
    case.teacher[1024] = 6.0;
    let loss = losses().next().expect("one at least");
    assert_eq!(case.run(loss, None).0.agreements, 1.0);
    case.teacher[1500] = 7.0;
    assert_eq!(case.run(loss, None).0.agreements, 0.0);
}

#[test]
fn a_token_that_does_not_count_adds_nothing() {
    let (mut student, mut teacher) = (vec![f32::NAN; 5], vec![1.0; 5]);
    let row = Row {
        student: &mut student,
        teacher: &mut teacher,
        work: &mut [],
        capped: &mut [],
        target: 0,
    };
    assert_eq!(row.skip(), RowTerms::default());
    assert_eq!(student, [0.0; 5]);
}
