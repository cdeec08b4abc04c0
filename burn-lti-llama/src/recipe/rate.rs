//! [`LearningRate`]: `"auto"`, or a number.

use std::fmt;

use burn_lti::train::Decay;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// At which rate a phase learns.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum LearningRate {
    /// A rate of its own for each tensor, measured over the warm-up, so that one number fits every model:
    /// see [`MeasuredRates`](burn_lti::train::MeasuredRates).
    #[default]
    Auto,
    /// One rate for all tensors, reached at the end of the warm-up.
    Number(f64),
}

/// What goes with a rate, where the recipe does not say it.
impl LearningRate {
    /// How the rate falls after the warm-up.
    pub const fn decay(self) -> Decay {
        match self {
            Self::Auto => Decay::Linear,
            Self::Number(_) => Decay::Cosine,
        }
    }

    /// The last rate as a part of the highest.
    pub const fn final_lr_fraction(self) -> f64 {
        match self {
            Self::Auto => 0.0,
            Self::Number(_) => 0.1,
        }
    }

    /// What is added to the root of the squared gradient's mean: at a measured rate, nothing that counts.
    pub const fn eps(self) -> f64 {
        match self {
            Self::Auto => 1e-12,
            Self::Number(_) => 1e-8,
        }
    }

    /// The largest norm of the gradient. A measured rate has its own bound.
    pub const fn grad_clip(self) -> f64 {
        match self {
            Self::Auto => f64::INFINITY,
            Self::Number(_) => 1.0,
        }
    }
}

impl fmt::Display for LearningRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str(AUTO),
            Self::Number(rate) => rate.fmt(f),
        }
    }
}

const AUTO: &str = "auto";

impl Serialize for LearningRate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str(AUTO),
            Self::Number(rate) => serializer.serialize_f64(*rate),
        }
    }
}

impl<'de> Deserialize<'de> for LearningRate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RateVisitor;

        impl Visitor<'_> for RateVisitor {
            type Value = LearningRate;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"auto\" or a number")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<LearningRate, E> {
                match text {
                    AUTO => Ok(LearningRate::Auto),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_f64<E: de::Error>(self, rate: f64) -> Result<LearningRate, E> {
                Ok(LearningRate::Number(rate))
            }

            fn visit_i64<E: de::Error>(self, rate: i64) -> Result<LearningRate, E> {
                Ok(LearningRate::Number(rate as f64))
            }
        }

        deserializer.deserialize_any(RateVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct One {
        rate: LearningRate,
    }

    #[test]
    fn reads_both_forms_and_what_it_writes() {
        for (text, rate) in [
            ("'auto'", LearningRate::Auto),
            ("3e-3", LearningRate::Number(3e-3)),
            ("1", LearningRate::Number(1.0)),
        ] {
            let one: One = toml::from_str(&format!("rate = {text}")).unwrap();
            assert_eq!(one, One { rate });
            assert_eq!(toml::from_str(&toml::to_string(&one).unwrap()), Ok(one));
        }
        for text in ["'automatic'", "true", "[1.0]"] {
            let error = toml::from_str::<One>(&format!("rate = {text}")).unwrap_err();
            assert!(error.message().contains("\"auto\" or a number"), "{error}");
        }
    }
}
