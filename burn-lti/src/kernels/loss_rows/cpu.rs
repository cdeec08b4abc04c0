//! One token's row of logits: loss terms and gradient, in a few passes over memory that a core's cache
//! holds.
//!
//! Of a row of `vocab` logits `s` and the teacher's `t`, with `S = s - max s` and `R = t - max t`, all
//! follows from sums over the row: `Z = sum exp(S / T)`, its like for `R`, and
//! `K = sum exp(R / T) (R - S) / T`. Then `KL(p || q) = K / Z_R - ln Z_R + ln Z_S`, and the gradient is
//! `exp(S / T) / Z_S - exp(R / T) / Z_R`. What the metrics need at temperature 1 are the same sums of
//! `exp(S)`, at temperature 2 a square of what is there already.
//!
//! Logits that have a cap go through it first, and the gradient through its slope last, by a copy of what came out
//! of it.
//!
//! All is done on as many lanes as the processor has. Each exponential is taken once, and sums leave
//! float32 after [`BLOCK`] elements.

use pulp::{Arch, Simd, WithSimd};

use crate::kernels::cpu::exp;
use crate::kernels::soft_cap::{cap_all, through_cap};

/// Elements whose sum is kept in float32: a block of both rows is in the first cache.
const BLOCK: usize = 1024;

/// The loss of a row, as far as the row alone gives it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowLoss {
    pub(crate) alpha: f64,
    pub(crate) temperature: f64,
    /// Whether the divergence is `KL(q || p)`, not `KL(p || q)`.
    pub(crate) reverse: bool,
    /// Those that the student's logits, and the teacher's, are yet to go through.
    pub(crate) caps: [Option<f32>; 2],
}

impl RowLoss {
    /// Whether [`Row::work`] is read.
    pub(super) fn needs_work(&self) -> bool {
        self.alpha != 1.0 && Power::new(self.temperature) == Power::Other
    }

    /// Whether [`Row::capped`] is read.
    pub(super) const fn needs_capped(&self) -> bool {
        self.caps[0].is_some()
    }
}

/// The logits of one token.
#[derive(Debug)]
pub(super) struct Row<'a> {
    /// The student's, `[vocab]`. Afterwards their gradient, if it was asked for.
    pub(super) student: &'a mut [f32],
    /// The teacher's, `[vocab]`. Afterwards nothing of use.
    pub(super) teacher: &'a mut [f32],
    /// Room for `vocab` numbers if [`RowLoss::needs_work`], else for none.
    pub(super) work: &'a mut [f32],
    /// Room for `vocab` numbers if [`RowLoss::needs_capped`], else for none.
    pub(super) capped: &'a mut [f32],
    /// The token that follows.
    pub(super) target: usize,
}

/// Loss terms of one token, in nats.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct RowTerms {
    /// Of how many tokens.
    pub(super) tokens: f64,
    /// The divergence at the temperature.
    pub(super) soft: f64,
    pub(super) student_ce: f64,
    /// 1 if both models hold the same token for the likeliest.
    pub(super) agreements: f64,
    /// The forward KL at temperature 1.
    pub(super) kl: f64,
    pub(super) teacher_ce: f64,
}

impl RowTerms {
    /// As the sums of all rows are ordered.
    pub(super) fn in_order(self) -> [f64; 6] {
        let Self {
            tokens,
            soft,
            student_ce,
            agreements,
            kl,
            teacher_ce,
        } = self;
        [tokens, soft, student_ce, agreements, kl, teacher_ce]
    }
}

impl Row<'_> {
    /// The terms, and with `weight`, the token's share of the mean, the gradient in the student's place.
    pub(super) fn evaluate(self, loss: RowLoss, weight: Option<f64>) -> RowTerms {
        Arch::new().dispatch(Evaluate {
            row: self,
            loss,
            weight,
        })
    }

    /// What a token that does not count adds: nothing, and no gradient.
    pub(super) fn skip(self) -> RowTerms {
        self.student.fill(0.0);
        RowTerms::default()
    }
}

/// How an exponential at temperature 1 follows from one at the loss's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Power {
    Same,
    Square,
    Other,
}

impl Power {
    fn new(temperature: f64) -> Self {
        match temperature {
            1.0 => Self::Same,
            2.0 => Self::Square,
            _ => Self::Other,
        }
    }
}

struct Evaluate<'a> {
    row: Row<'a>,
    loss: RowLoss,
    weight: Option<f64>,
}

impl WithSimd for Evaluate<'_> {
    type Output = RowTerms;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> RowTerms {
        let Self { row, loss, weight } = self;
        let [of_student, of_teacher] = loss.caps;
        if let Some(cap) = of_teacher {
            cap_all(simd, row.teacher, cap);
        }
        if let Some(cap) = of_student {
            cap_all(simd, row.student, cap);
            row.capped.copy_from_slice(row.student);
        }
        let (student_max, student_choice) = largest(simd, row.student);
        let (teacher_max, teacher_choice) = largest(simd, row.teacher);
        let student_target = f64::from(row.student[row.target] - student_max);
        let teacher_target = f64::from(row.teacher[row.target] - teacher_max);

        let sums = exponentials(
            simd,
            &loss,
            row.student,
            row.teacher,
            row.work,
            [student_max, teacher_max],
        );
        let [
            z_s,
            z_t,
            cross,
            z_s_untempered,
            z_t_untempered,
            cross_untempered,
        ] = sums;
        let temperature = loss.temperature;
        let (log_s, log_t) = (z_s.ln(), z_t.ln());
        let (log_s_untempered, log_t_untempered) = (z_s_untempered.ln(), z_t_untempered.ln());
        let forward = |cross: f64, z_t: f64, log_t: f64, log_s: f64| cross / z_t - log_t + log_s;
        let soft = match loss.reverse {
            false => forward(cross / temperature, z_t, log_t, log_s),
            true => forward(cross / temperature, z_s, log_s, log_t),
        };
        let terms = RowTerms {
            tokens: 1.0,
            soft,
            student_ce: log_s_untempered - student_target,
            agreements: f64::from(student_choice == teacher_choice),
            kl: forward(
                cross_untempered,
                z_t_untempered,
                log_t_untempered,
                log_s_untempered,
            ),
            teacher_ce: log_t_untempered - teacher_target,
        };
        let Some(weight) = weight else {
            return terms;
        };

        // `weight (alpha T dD/dz_T + (1 - alpha) (softmax(z) - y))`, of unnormalised exponentials.
        let soft_share = weight * loss.alpha * temperature;
        let hard_share = weight * (1.0 - loss.alpha);
        let share = soft_share / z_s;
        let (student, second) = match loss.reverse {
            false => (share, -soft_share / z_t),
            // `q (ln q - ln p - D)`, where `ln q - ln p` is `(S - R) / T - ln Z_S + ln Z_R`.
            true => (share * (log_t - log_s - soft), share / temperature),
        };
        let shares = [student, second, hard_share / z_s_untempered];
        let power = Power::new(temperature);
        gradient(simd, power, shares, row.student, row.teacher, row.work);
        row.student[row.target] -= hard_share as f32;
        if let Some(cap) = of_student {
            through_cap(simd, row.student, row.capped, cap);
        }
        terms
    }
}

/// The largest element and where it stands first.
#[inline(always)]
fn largest<S: Simd>(simd: S, row: &[f32]) -> (f32, usize) {
    let (mut best, mut at) = (f32::NEG_INFINITY, 0);
    for (block, values) in row.chunks(BLOCK).enumerate() {
        let (head, tail) = S::as_simd_f32s(values);
        let mut lanes = simd.splat_f32s(f32::NEG_INFINITY);
        for &value in head {
            lanes = simd.max_f32s(value, lanes);
        }
        let largest = tail
            .iter()
            .copied()
            .fold(simd.reduce_max_f32s(lanes), f32::max);
        if largest > best {
            (best, at) = (largest, block);
        }
    }
    let start = at * BLOCK;
    let within = row[start..]
        .iter()
        .take(BLOCK)
        .position(|&value| value == best);
    (best, start + within.unwrap_or(0))
}

/// Sums over a row, see the module: `Z` of the student and the teacher and `T K`, in reverse that of the
/// student against the teacher; then the same three at temperature 1.
type Sums = [f64; 6];

/// The sums of a block, lane by lane, on the way.
struct Block<S: Simd> {
    simd: S,
    power: Power,
    reverse: bool,
    inverse: S::f32s,
    max: [S::f32s; 2],
    /// In the order of [`Sums`].
    lanes: [S::f32s; 6],
}

impl<S: Simd> Block<S> {
    /// Adds some lanes of logits. Returns what is left in the student's place, the teacher's and `work`.
    #[inline(always)]
    fn add(&mut self, s: S::f32s, t: S::f32s) -> [S::f32s; 3] {
        let simd = self.simd;
        let s = simd.sub_f32s(s, self.max[0]);
        let t = simd.sub_f32s(t, self.max[1]);
        let (es, et) = match self.power {
            Power::Same => (exp(simd, s), exp(simd, t)),
            Power::Square | Power::Other => (
                exp(simd, simd.mul_f32s(s, self.inverse)),
                exp(simd, simd.mul_f32s(t, self.inverse)),
            ),
        };
        let (es_untempered, et_untempered) = match self.power {
            Power::Same => (es, et),
            Power::Square => (simd.mul_f32s(es, es), simd.mul_f32s(et, et)),
            Power::Other => (exp(simd, s), exp(simd, t)),
        };
        let difference = simd.sub_f32s(t, s);
        let (product, second) = match self.reverse {
            false => (simd.mul_f32s(et, difference), et),
            true => {
                let product = simd.mul_f32s(es, simd.sub_f32s(s, t));
                (product, product)
            }
        };
        for (lanes, value) in
            self.lanes
                .iter_mut()
                .zip([es, et, product, es_untempered, et_untempered])
        {
            *lanes = simd.add_f32s(*lanes, value);
        }
        self.lanes[5] = simd.mul_add_e_f32s(et_untempered, difference, self.lanes[5]);
        [es, second, es_untempered]
    }
}

/// The sums. Leaves `exp(S / T)` in the student's place, `exp(R / T)` in the teacher's, in reverse
/// `(S - R) exp(S / T)`, and `exp(S)` in `work`, if that has room.
#[inline(always)]
fn exponentials<S: Simd>(
    simd: S,
    loss: &RowLoss,
    student: &mut [f32],
    teacher: &mut [f32],
    work: &mut [f32],
    max: [f32; 2],
) -> Sums {
    let zero = simd.splat_f32s(0.0);
    let mut block = Block {
        simd,
        power: Power::new(loss.temperature),
        reverse: loss.reverse,
        inverse: simd.splat_f32s((1.0 / loss.temperature) as f32),
        max: max.map(|max| simd.splat_f32s(max)),
        lanes: [zero; 6],
    };
    let mut sums = [0.0; 6];
    let mut work = work.chunks_mut(BLOCK);
    for (student, teacher) in student.chunks_mut(BLOCK).zip(teacher.chunks_mut(BLOCK)) {
        block.lanes = [zero; 6];
        let (s_head, s_tail) = S::as_mut_simd_f32s(student);
        let (t_head, t_tail) = S::as_mut_simd_f32s(teacher);
        let (w_head, w_tail) = S::as_mut_simd_f32s(work.next().unwrap_or_default());
        let mut w_head = w_head.iter_mut();
        for (s, t) in s_head.iter_mut().zip(t_head) {
            let [first, second, untempered] = block.add(*s, *t);
            (*s, *t) = (first, second);
            if let Some(w) = w_head.next() {
                *w = untempered;
            }
        }
        if !s_tail.is_empty() {
            // What fills up the lanes is next to nothing in every sum.
            let mut rest = [[max[0] - 1e5; MAX_LANES], [max[1] - 1e5; MAX_LANES]];
            rest[0][..s_tail.len()].copy_from_slice(s_tail);
            rest[1][..t_tail.len()].copy_from_slice(t_tail);
            let [s, t] = rest.map(|rest| simd.partial_load_f32s(&rest[..S::F32_LANES]));
            let [first, second, untempered] = block.add(s, t);
            simd.partial_store_f32s(s_tail, first);
            simd.partial_store_f32s(t_tail, second);
            simd.partial_store_f32s(w_tail, untempered);
        }
        for (sum, lanes) in sums.iter_mut().zip(block.lanes) {
            *sum += f64::from(simd.reduce_sum_f32s(lanes));
        }
    }
    sums
}

/// More lanes than any processor has.
const MAX_LANES: usize = 64;

/// What the gradient has of each number that the first pass left: of `exp(S / T)`, of what the teacher's place
/// holds, and of `exp(S)`.
type Shares = [f64; 3];

/// The gradient but for its target, in the student's place.
#[inline(always)]
fn gradient<S: Simd>(
    simd: S,
    power: Power,
    shares: Shares,
    student: &mut [f32],
    teacher: &[f32],
    work: &[f32],
) {
    let shares = shares.map(|share| simd.splat_f32s(share as f32));
    let zero = simd.splat_f32s(0.0);
    let (s_head, s_tail) = S::as_mut_simd_f32s(student);
    let (t_head, t_tail) = S::as_simd_f32s(teacher);
    let (w_head, w_tail) = S::as_simd_f32s(work);
    let mut w_head = w_head.iter();
    for (s, t) in s_head.iter_mut().zip(t_head) {
        let work = w_head.next().copied().unwrap_or(zero);
        *s = mix(simd, power, &shares, [*s, *t, work]);
    }
    let rest = [
        simd.partial_load_f32s(s_tail),
        simd.partial_load_f32s(t_tail),
        simd.partial_load_f32s(w_tail),
    ];
    simd.partial_store_f32s(s_tail, mix(simd, power, &shares, rest));
}

#[inline(always)]
fn mix<S: Simd>(
    simd: S,
    power: Power,
    shares: &[S::f32s; 3],
    [es, second, work]: [S::f32s; 3],
) -> S::f32s {
    let untempered = match power {
        Power::Same => es,
        Power::Square => simd.mul_f32s(es, es),
        Power::Other => work,
    };
    // Both products are rounded: a student that is its teacher has a gradient of exactly zero.
    let soft = simd.add_f32s(
        simd.mul_f32s(es, shares[0]),
        simd.mul_f32s(second, shares[1]),
    );
    simd.mul_add_e_f32s(untempered, shares[2], soft)
}
