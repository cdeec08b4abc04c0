//! [`DistillationLoss`]: the settings of the loss, each in its range.

use super::{Divergence, FeatureLoss, LossError, SparseForm};

/// `alpha T^2 D(teacher, student) + (1 - alpha) CE + beta F`, averaged over tokens with a target: a
/// [`Divergence`] at temperature `T`, the cross-entropy, and a [`FeatureLoss`] if there is one.
///
/// ```
/// use burn_lti::loss::{DistillationLoss, Divergence, FeatureDistance, FeatureLoss};
///
/// let loss = DistillationLoss::new(0.9, 2.0, 512)?
///     .with_divergence(Divergence::JensenShannon { beta: 0.5 })?
///     .with_feature(FeatureLoss::new(FeatureDistance::Cosine, 0.1)?);
/// assert_eq!(loss.alpha(), 0.9);
/// # Ok::<_, burn_lti::loss::LossError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DistillationLoss {
    pub(super) alpha: f64,
    pub(super) temperature: f64,
    pub(super) divergence: Divergence,
    pub(super) sparse: SparseForm,
    pub(super) feature: Option<FeatureLoss>,
    pub(super) chunk_tokens: usize,
}

impl DistillationLoss {
    /// A loss that is all KL at temperature 1, in chunks of 512 tokens.
    pub const KL: Self = Self {
        alpha: 1.0,
        temperature: 1.0,
        divergence: Divergence::ForwardKl,
        sparse: SparseForm::Tail,
        feature: None,
        chunk_tokens: 512,
    };

    /// A loss with its settings checked.
    ///
    /// # Errors
    ///
    /// [`LossError::Setting`], naming the setting that is out of range.
    pub fn new(alpha: f64, temperature: f64, chunk_tokens: usize) -> Result<Self, LossError> {
        check_alpha(alpha)?;
        check_temperature(temperature)?;
        if chunk_tokens == 0 {
            return Err(LossError::Setting(
                "chunk_tokens is 0: choose how many tokens the head sees at a time, 512 for example"
                    .to_owned(),
            ));
        }
        Ok(Self {
            alpha,
            temperature,
            chunk_tokens,
            ..Self::KL
        })
    }

    /// The same loss with another divergence than the forward KL.
    ///
    /// # Errors
    ///
    /// [`LossError::Setting`] if a mixture has no part of one of its distributions.
    pub fn with_divergence(self, divergence: Divergence) -> Result<Self, LossError> {
        divergence.check()?;
        Ok(Self { divergence, ..self })
    }

    /// The same loss, with the tokens outside a teacher's top `k` counted by `sparse`.
    pub const fn with_sparse(self, sparse: SparseForm) -> Self {
        Self { sparse, ..self }
    }

    /// The same loss and a feature loss.
    pub const fn with_feature(self, feature: FeatureLoss) -> Self {
        Self {
            feature: Some(feature),
            ..self
        }
    }

    /// The soft loss's share.
    pub const fn alpha(&self) -> f64 {
        self.alpha
    }

    /// The temperature.
    pub const fn temperature(&self) -> f64 {
        self.temperature
    }

    /// The feature loss.
    pub const fn feature(&self) -> Option<FeatureLoss> {
        self.feature
    }
}

pub(super) fn check_alpha(alpha: f64) -> Result<(), LossError> {
    match (0.0..=1.0).contains(&alpha) {
        true => Ok(()),
        false => Err(LossError::Setting(format!(
            "alpha is {alpha}, but it is the soft loss's share of the whole: choose 0 to 1"
        ))),
    }
}

pub(super) fn check_temperature(temperature: f64) -> Result<(), LossError> {
    match temperature.is_finite() && temperature > 0.0 {
        true => Ok(()),
        false => Err(LossError::Setting(format!(
            "temperature is {temperature}, but logits are divided by it: choose a finite number above 0"
        ))),
    }
}
