//! Every divergence, from a whole teacher and from its top tokens, beside plain probabilities whose
//! gradient is left to Burn.

use burn::prelude::*;
use burn::tensor::activation::softmax;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::decoder::Head;
use burn_lti::loss::{DistillationLoss, Divergence, LossInput, SparseForm, TeacherTokens, TopK};
use burn_lti_tests::close::{Tolerance, assert_close, assert_not_close, rounding};
use burn_lti_tests::numbers::{Numbers, int_tensor, tensor, values};
use burn_lti_tests::on_every_backend;

on_every_backend![
    values_and_gradients_are_those_of_plain_probabilities,
    capped_logits_are_those_of_a_cap_before,
    all_top_tokens_are_the_whole_teacher,
    mass_outside_the_top_tokens_costs_something_only_with_a_tail,
    a_tail_of_nothing_stays_finite,
    every_divergence_vanishes_where_both_agree_and_nowhere_else,
    shares_out_of_range_are_refused,
];

const TOKENS: usize = 7;
const VOCAB: usize = 13;
const MASK: [f32; TOKENS] = [1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0];
const DIVERGENCES: [Divergence; 5] = [
    Divergence::ForwardKl,
    Divergence::ReverseKl,
    Divergence::JensenShannon { beta: 0.3 },
    Divergence::JensenShannon { beta: 0.5 },
    Divergence::SkewedKl { skew: 0.1 },
];

/// Logits of both, of unit size: no probability is next to nothing.
struct Case {
    student: Vec<f32>,
    teacher: Vec<f32>,
    targets: Vec<i64>,
}

impl Case {
    fn random(seed: u64) -> Self {
        let mut numbers = Numbers::new(seed);
        Self {
            student: numbers.normal(TOKENS * VOCAB),
            teacher: numbers.normal(TOKENS * VOCAB),
            targets: numbers.ids(TOKENS, VOCAB),
        }
    }

    /// Logits as hidden states, before a head that is the identity.
    fn input<B: Backend>(&self, teacher: TeacherTokens<B>, device: &B::Device) -> LossInput<B> {
        LossInput {
            student_hidden: tensor(&self.student, [TOKENS, VOCAB], device),
            student_head: identity(device),
            teacher,
            features: Vec::new(),
            targets: int_tensor(&self.targets, [TOKENS], device),
            mask: tensor(&MASK, [TOKENS], device),
        }
    }

    fn whole<B: Backend>(&self, device: &B::Device) -> TeacherTokens<B> {
        TeacherTokens::Hidden {
            hidden: tensor(&self.teacher, [TOKENS, VOCAB], device),
            head: identity(device),
        }
    }

    /// The teacher's probabilities at temperature 1, in float64.
    fn probabilities(&self) -> Vec<Vec<f64>> {
        let row = |logits: &[f32]| {
            let powers: Vec<f64> = logits.iter().map(|logit| f64::from(*logit).exp()).collect();
            let sum: f64 = powers.iter().sum();
            powers.into_iter().map(|power| power / sum).collect()
        };
        self.teacher.chunks_exact(VOCAB).map(row).collect()
    }

    fn top<B: Backend>(&self, k: usize, device: &B::Device) -> TopK<B> {
        let (mut ids, mut log_probs) = (Vec::new(), Vec::new());
        let (mut tails, mut of_targets) = (Vec::new(), Vec::new());
        for (row, target) in self.probabilities().iter().zip(&self.targets) {
            let mut order: Vec<usize> = (0..VOCAB).collect();
            order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
            ids.extend(order[..k].iter().map(|id| *id as i64));
            log_probs.extend(order[..k].iter().map(|id| row[*id].ln() as f32));
            let tail: f64 = order[k..].iter().map(|id| row[*id]).sum();
            tails.push(tail.ln() as f32);
            of_targets.push(row[*target as usize].ln() as f32);
        }
        TopK {
            ids: int_tensor(&ids, [TOKENS, k], device),
            log_probs: tensor(&log_probs, [TOKENS, k], device),
            log_tail: tensor(&tails, [TOKENS, 1], device),
            target_log_prob: Some(tensor(&of_targets, [TOKENS, 1], device)),
        }
    }
}

fn identity<B: Backend>(device: &B::Device) -> Head<B> {
    Head {
        weight: Tensor::eye(VOCAB, device),
        trains: false,
        cap: None,
    }
}

/// What a teacher is seen through.
#[derive(Clone, Copy, Debug)]
enum View {
    Whole,
    Top(usize, SparseForm),
}

impl View {
    fn teacher<B: Backend>(self, case: &Case, device: &B::Device) -> TeacherTokens<B> {
        match self {
            Self::Whole => case.whole(device),
            Self::Top(k, _) => TeacherTokens::TopK(case.top(k, device)),
        }
    }

    /// The outcomes' probabilities, `[tokens, outcomes]`: the teacher's, then the student's.
    fn outcomes<A: AutodiffBackend>(
        self,
        case: &Case,
        logits: Tensor<A, 2>,
        t: f64,
        device: &A::Device,
    ) -> [Tensor<A, 2>; 2] {
        let q = softmax(logits / t, 1);
        let p: Tensor<A, 2> = softmax(tensor(&case.teacher, [TOKENS, VOCAB], device) / t, 1);
        let Self::Top(k, form) = self else {
            return [p, q];
        };
        let top = case.top::<A>(k, device);
        let q = q.gather(1, top.ids.clone());
        // At temperature 1, to the power of 1/T, the tail's share spread over its tokens.
        let p = top.log_probs.exp().powf_scalar(1.0 / t);
        if form == SparseForm::Renormalised {
            return [p.clone() / p.sum_dim(1), q.clone() / q.sum_dim(1)];
        }
        let others = (VOCAB - k) as f64;
        let tail = (top.log_tail.exp() / others).powf_scalar(1.0 / t) * others;
        let p = Tensor::cat(vec![p, tail], 1);
        let rest = q.clone().sum_dim(1).neg() + 1.0;
        [p.clone() / p.sum_dim(1), Tensor::cat(vec![q, rest], 1)]
    }
}

/// `sum p ln(p / q)` of each row.
fn kl<B: Backend>(p: &Tensor<B, 2>, q: &Tensor<B, 2>) -> Tensor<B, 2> {
    (p.clone() * (p.clone() / q.clone()).log()).sum_dim(1)
}

fn divergence<B: Backend>(kind: Divergence, p: &Tensor<B, 2>, q: &Tensor<B, 2>) -> Tensor<B, 2> {
    let mixture = |share: f64| p.clone() * share + q.clone() * (1.0 - share);
    match kind {
        Divergence::ForwardKl => kl(p, q),
        Divergence::ReverseKl => kl(q, p),
        Divergence::JensenShannon { beta } => {
            let m = mixture(beta);
            kl(p, &m) * beta + kl(q, &m) * (1.0 - beta)
        }
        Divergence::SkewedKl { skew } => kl(p, &mixture(skew)),
    }
}

/// A log-probability of unit logits is at most 8 in size here; a divergence is a sum of up to `V` of
/// them over probabilities, and the mean over the tokens that count divides what it adds. The oracle's
/// remainders `1 - sum q` cost it `V` roundings more. Both programs err.
fn tolerance() -> Tolerance {
    Tolerance::Uniform(2.0 * rounding(4 * VOCAB + 16 + TOKENS) * 8.0 * 4.0)
}

/// Of a gradient: a probability times a difference of log-probabilities, weighed with
/// `alpha T + 1 - alpha`, at most 1.6 here, over the six tokens that count.
fn gradient_tolerance() -> Tolerance {
    Tolerance::Uniform(2.0 * rounding(4 * VOCAB + 16 + TOKENS) * 8.0 * 1.6 / 6.0)
}

fn values_and_gradients_are_those_of_plain_probabilities<A: AutodiffBackend>(device: A::Device) {
    let case = Case::random(1);
    let views = [
        View::Whole,
        View::Top(4, SparseForm::Tail),
        View::Top(4, SparseForm::Renormalised),
        View::Top(1, SparseForm::Tail),
    ];
    let mask: Tensor<A, 2> = tensor(&MASK, [TOKENS, 1], &device);
    for (view, kind) in views
        .into_iter()
        .flat_map(|view| DIVERGENCES.map(|kind| (view, kind)))
    {
        for (alpha, t) in [(1.0, 1.0), (0.6, 2.0)] {
            let logits = tensor::<A, 2>(&case.student, [TOKENS, VOCAB], &device).require_grad();
            let [p, q] = view.outcomes(&case, logits.clone(), t, &device);
            let soft = divergence(kind, &p, &q) * mask.clone();
            let targets = int_tensor::<A, 2>(&case.targets, [TOKENS, 1], &device);
            let hard = softmax(logits.clone(), 1).gather(1, targets).log().neg() * mask.clone();
            let loss = (soft.clone() * (alpha * t * t) + hard * (1.0 - alpha)).sum();
            let mean = loss.clone() / mask.clone().sum();
            let gradient = logits.grad(&mean.backward()).expect("a gradient");

            let form = match view {
                View::Top(_, form) => form,
                View::Whole => SparseForm::Tail,
            };
            let settings = DistillationLoss::new(alpha, t, 3)
                .and_then(|loss| loss.with_divergence(kind))
                .expect("settings")
                .with_sparse(form);
            let teacher = view.teacher::<A::InnerBackend>(&case, &device);
            let found = settings.gradient(case.input(teacher, &device));
            let sums = found.sums.read();
            let what = format!("{view:?} {kind:?} alpha {alpha} T {t}");
            eprintln!("{what}");
            let expected = [values(&soft.sum())[0], values(&loss)[0]];
            assert_close(&[sums.soft, sums.loss], &expected, &tolerance());
            assert_close(
                &values(&found.hidden),
                &values(&gradient),
                &gradient_tolerance(),
            );
            let known = matches!(view, View::Whole);
            assert_eq!(sums.kl.is_some(), known, "{what}");
            assert!(sums.teacher_ce.is_some(), "{what}");

            // A student that thinks the opposite of the first token. One logit would not do: where the
            // gradient is flat, another value of it has the same.
            let mut changed = Case::random(1);
            for logit in &mut changed.student[..VOCAB] {
                *logit = -*logit;
            }
            let teacher = view.teacher::<A::InnerBackend>(&case, &device);
            let changed = settings.gradient(changed.input(teacher, &device));
            assert_not_close(
                &values(&changed.hidden),
                &values(&gradient),
                &gradient_tolerance(),
            );
        }
    }
}

/// A cap of the head is one of the logits before it, but that the gradient goes through its slope.
fn capped_logits_are_those_of_a_cap_before<A: AutodiffBackend>(device: A::Device) {
    const CAP: f64 = 1.5;
    let free = Case::random(6);
    let cap = |logit: &f32| (CAP * (f64::from(*logit) / CAP).tanh()) as f32;
    let capped = Case {
        student: free.student.iter().map(cap).collect(),
        teacher: free.teacher.iter().map(cap).collect(),
        targets: free.targets.clone(),
    };
    let views = [View::Whole, View::Top(4, SparseForm::Tail)];
    for (view, kind) in views
        .into_iter()
        .flat_map(|view| DIVERGENCES.map(|kind| (view, kind)))
    {
        let loss = DistillationLoss::new(0.6, 2.0, 3)
            .and_then(|loss| loss.with_divergence(kind))
            .expect("settings");
        let before = view.teacher::<A::InnerBackend>(&capped, &device);
        let expected = loss.gradient(capped.input(before, &device));
        // Top tokens are those of capped logits: they are what a cache has.
        let teacher = match view {
            View::Whole => {
                let mut whole = free.whole::<A::InnerBackend>(&device);
                if let TeacherTokens::Hidden { head, .. } = &mut whole {
                    head.cap = Some(CAP);
                }
                whole
            }
            View::Top(..) => view.teacher(&capped, &device),
        };
        let mut input = free.input(teacher, &device);
        let free_of_cap = loss.gradient(input.clone());
        input.student_head.cap = Some(CAP);
        let found = loss.gradient(input);
        let (sums, of_before) = (found.sums.read(), expected.sums.read());
        assert_close(
            &[sums.loss, sums.student_ce, sums.agreements],
            &[of_before.loss, of_before.student_ce, of_before.agreements],
            &tolerance(),
        );
        let gradient = values(&expected.hidden).into_iter().zip(&capped.student);
        let gradient = gradient.map(|(one, logit)| one * (1.0 - (f64::from(*logit) / CAP).powi(2)));
        let gradient: Vec<f64> = gradient.collect();
        let found = values(&found.hidden);
        assert_close(&found, &gradient, &gradient_tolerance());
        let others = values(&free_of_cap.hidden);
        assert_not_close(&others, &gradient, &gradient_tolerance());
    }
}

/// With as many tokens as there are, nothing is left out: loss, gradient and every metric but the KL,
/// which is not asked of a saved teacher.
fn all_top_tokens_are_the_whole_teacher<A: AutodiffBackend>(device: A::Device) {
    let case = Case::random(2);
    for kind in DIVERGENCES {
        for form in [SparseForm::Tail, SparseForm::Renormalised] {
            let loss = DistillationLoss::new(0.7, 2.0, 3)
                .and_then(|loss| loss.with_divergence(kind))
                .expect("settings")
                .with_sparse(form);
            let run = |teacher| loss.gradient(case.input::<A::InnerBackend>(teacher, &device));
            let whole = run(case.whole(&device));
            let top = run(TeacherTokens::TopK(case.top(VOCAB, &device)));
            let (a, b) = (whole.sums.read(), top.sums.read());
            let teacher_ce = |sums: Option<f64>| sums.expect("the target's probability is known");
            assert_close(
                &[
                    b.loss,
                    b.soft,
                    b.student_ce,
                    teacher_ce(b.teacher_ce),
                    b.agreements,
                ],
                &[
                    a.loss,
                    a.soft,
                    a.student_ce,
                    teacher_ce(a.teacher_ce),
                    a.agreements,
                ],
                &tolerance(),
            );
            assert_close(&values(&top.hidden), &values(&whole.hidden), &tolerance());
        }
    }
}

/// The student gives all the teacher's top tokens what the teacher gives them, relative to one another,
/// but half of its mass to tokens outside.
fn mass_outside_the_top_tokens_costs_something_only_with_a_tail<A: AutodiffBackend>(
    device: A::Device,
) {
    let mut case = Case::random(3);
    case.student = case.teacher.clone();
    let probabilities = case.probabilities();
    for (row, probabilities) in case.student.chunks_exact_mut(VOCAB).zip(probabilities) {
        let least = (0..VOCAB).min_by(|a, b| probabilities[*a].total_cmp(&probabilities[*b]));
        row[least.expect("a vocabulary")] = row.iter().map(|logit| logit.exp()).sum::<f32>().ln();
    }
    let soft = |form| {
        let loss = DistillationLoss::KL.with_sparse(form);
        let teacher = TeacherTokens::TopK(case.top(4, &device));
        let sums = loss.evaluate(case.input::<A::InnerBackend>(teacher, &device));
        sums.read().soft_mean().expect("tokens")
    };
    assert!(soft(SparseForm::Renormalised).abs() < 1e-5);
    assert!(soft(SparseForm::Tail) > 0.05);
}

fn a_tail_of_nothing_stays_finite<A: AutodiffBackend>(device: A::Device) {
    let mut case = Case::random(4);
    for row in case.teacher.chunks_exact_mut(VOCAB) {
        row[3] = 200.0; // all others have a probability of 0 in float32
    }
    for kind in DIVERGENCES {
        for t in [1.0, 3.0] {
            let loss = DistillationLoss::new(1.0, t, 4)
                .and_then(|loss| loss.with_divergence(kind))
                .expect("settings");
            let mut top = case.top(2, &device);
            top.log_tail = top.log_tail.full_like(f32::NEG_INFINITY);
            let input = case.input::<A::InnerBackend>(TeacherTokens::TopK(top), &device);
            let found = loss.gradient(input);
            assert!(found.sums.read().is_finite(), "{kind:?} {t}");
            let finite = values(&found.hidden).iter().all(|value| value.is_finite());
            assert!(finite, "{kind:?} {t}");
        }
    }
}

fn every_divergence_vanishes_where_both_agree_and_nowhere_else<A: AutodiffBackend>(
    device: A::Device,
) {
    let (different, mut same) = (Case::random(5), Case::random(5));
    same.student = same.teacher.clone();
    for kind in DIVERGENCES {
        for view in [View::Whole, View::Top(3, SparseForm::Tail)] {
            let soft = |case: &Case| {
                let loss = DistillationLoss::KL
                    .with_divergence(kind)
                    .expect("a divergence");
                let teacher = view.teacher(case, &device);
                let sums = loss.evaluate(case.input::<A::InnerBackend>(teacher, &device));
                sums.read().soft_mean().expect("tokens")
            };
            assert!(soft(&same).abs() < 1e-5, "{kind:?} {view:?}");
            assert!(soft(&different) > 1e-2, "{kind:?} {view:?}");
        }
    }
}

fn shares_out_of_range_are_refused<A: AutodiffBackend>(_device: A::Device) {
    for share in [0.0, 1.0, -0.5, f64::NAN] {
        for (kind, named) in [
            (Divergence::JensenShannon { beta: share }, "jensen_shannon"),
            (Divergence::SkewedKl { skew: share }, "skewed_kl"),
        ] {
            let error = DistillationLoss::KL
                .with_divergence(kind)
                .expect_err("refused");
            assert!(
                error.to_string().starts_with(&format!("{named} is ")),
                "{error}"
            );
            assert!(error.to_string().contains("between 0 and 1"), "{error}");
        }
    }
}
