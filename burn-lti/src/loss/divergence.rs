//! [`Divergence`]: how far the student's distribution is from the teacher's.

use burn::prelude::*;

use super::LossError;

/// A divergence of two distributions over the same outcomes: `p` the teacher's, `q` the student's.
///
/// All are in nats, and 0 only where both are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Divergence {
    /// `KL(p || q) = sum p (log p - log q)`: the student must cover all that the teacher does.
    #[default]
    ForwardKl,
    /// `KL(q || p)`: the student keeps away from what the teacher does not do.
    ReverseKl,
    /// `beta KL(p || m) + (1 - beta) KL(q || m)` with `m = beta p + (1 - beta) q` and
    /// `0 < beta < 1`: the generalised Jensen-Shannon divergence (Agarwal et al. 2024, GKD).
    JensenShannon {
        /// The teacher's share.
        beta: f64,
    },
    /// `KL(p || skew p + (1 - skew) q)` with `0 < skew < 1`, whose gradient stays bounded where the
    /// student has next to nothing (Ko et al. 2024, DistiLLM).
    SkewedKl {
        /// The teacher's share of the mixture.
        skew: f64,
    },
}

impl Divergence {
    /// Refuses a share at which the divergence is none or becomes another.
    pub(super) fn check(self) -> Result<(), LossError> {
        let (name, share) = match self {
            Self::ForwardKl | Self::ReverseKl => return Ok(()),
            Self::JensenShannon { beta } => ("jensen_shannon", beta),
            Self::SkewedKl { skew } => ("skewed_kl", skew),
        };
        match share > 0.0 && share < 1.0 {
            true => Ok(()),
            false => Err(LossError::Setting(format!(
                "{name} is {share}, but it is the teacher's share of a mixture with the student: choose a \
                 number between 0 and 1, without these"
            ))),
        }
    }

    /// The divergence of each row, `[n, 1]`, of log-probabilities `[n, outcomes]`.
    pub(super) fn value<B: Backend>(
        self,
        log_p: &Tensor<B, 2>,
        log_q: &Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        match self {
            Self::ForwardKl => kl(log_p, log_q),
            Self::ReverseKl => kl(log_q, log_p),
            Self::JensenShannon { beta } => {
                let log_m = mixture(log_p, log_q, beta);
                kl(log_p, &log_m).mul_scalar(beta) + kl(log_q, &log_m).mul_scalar(1.0 - beta)
            }
            Self::SkewedKl { skew } => kl(log_p, &mixture(log_p, log_q, skew)),
        }
    }

    /// The gradient of each row's divergence with respect to the logits of `q`, `[n, outcomes]`.
    ///
    /// With `g = dD/dq` it is `q (g - sum q g)`. A constant in `g` changes nothing, so `g` is, in
    /// order: `-p / q`, `log q - log p`, `(1 - beta) (log q - log m)`, `-(1 - skew) p / m`.
    pub(super) fn gradient<B: Backend>(
        self,
        log_p: &Tensor<B, 2>,
        log_q: &Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        let q = log_q.clone().exp();
        let weighted = match self {
            // `q g` without a division by what may be 0.
            Self::ForwardKl => return q - log_p.clone().exp(),
            Self::ReverseKl => q.clone() * difference(log_q, log_p),
            Self::JensenShannon { beta } => {
                let log_m = mixture(log_p, log_q, beta);
                (q.clone() * difference(log_q, &log_m)).mul_scalar(1.0 - beta)
            }
            Self::SkewedKl { skew } => {
                let log_m = mixture(log_p, log_q, skew);
                (log_p.clone() + log_q.clone() - log_m)
                    .exp()
                    .mul_scalar(skew - 1.0)
            }
        };
        let sum = weighted.clone().sum_dim(1);
        weighted - q * sum
    }
}

/// `sum p (log p - log q)` of each row.
fn kl<B: Backend>(log_p: &Tensor<B, 2>, log_q: &Tensor<B, 2>) -> Tensor<B, 2> {
    (log_p.clone().exp() * difference(log_p, log_q)).sum_dim(1)
}

fn difference<B: Backend>(a: &Tensor<B, 2>, b: &Tensor<B, 2>) -> Tensor<B, 2> {
    a.clone() - b.clone()
}

/// `log(share p + (1 - share) q)`, from the larger of both, so that neither underflows.
fn mixture<B: Backend>(log_p: &Tensor<B, 2>, log_q: &Tensor<B, 2>, share: f64) -> Tensor<B, 2> {
    let p = log_p.clone().add_scalar(share.ln());
    let q = log_q.clone().add_scalar((1.0 - share).ln());
    let largest = p.clone().max_pair(q.clone());
    let sum = (p - largest.clone()).exp() + (q - largest.clone()).exp();
    largest + sum.log()
}
