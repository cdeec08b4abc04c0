//! How a recipe writes a [`Divergence`]: a word, or `{ jensen_shannon = 0.5 }` with its share.

use std::fmt;

use burn_lti::loss::Divergence;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const FORWARD_KL: &str = "forward_kl";
const REVERSE_KL: &str = "reverse_kl";

pub(crate) fn serialize<S: Serializer>(
    divergence: &Divergence,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let shares = match *divergence {
        Divergence::ForwardKl => return serializer.serialize_str(FORWARD_KL),
        Divergence::ReverseKl => return serializer.serialize_str(REVERSE_KL),
        Divergence::JensenShannon { beta } => Shares {
            jensen_shannon: Some(beta),
            skewed_kl: None,
        },
        Divergence::SkewedKl { skew } => Shares {
            jensen_shannon: None,
            skewed_kl: Some(skew),
        },
    };
    shares.serialize(serializer)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Divergence, D::Error> {
    struct DivergenceVisitor;

    impl<'de> Visitor<'de> for DivergenceVisitor {
        type Value = Divergence;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(
                "\"forward_kl\", \"reverse_kl\", { jensen_shannon = 0.5 } or { skewed_kl = 0.1 }",
            )
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Divergence, E> {
            match text {
                FORWARD_KL => Ok(Divergence::ForwardKl),
                REVERSE_KL => Ok(Divergence::ReverseKl),
                "jensen_shannon" | "skewed_kl" => Err(E::custom(format_args!(
                    "needs the teacher's share: write it as {{ {text} = 0.5 }}"
                ))),
                _ => Err(E::unknown_variant(
                    text,
                    &[FORWARD_KL, REVERSE_KL, "jensen_shannon", "skewed_kl"],
                )),
            }
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Divergence, A::Error> {
            match Shares::deserialize(MapAccessDeserializer::new(map))? {
                Shares {
                    jensen_shannon: Some(beta),
                    skewed_kl: None,
                } => Ok(Divergence::JensenShannon { beta }),
                Shares {
                    jensen_shannon: None,
                    skewed_kl: Some(skew),
                } => Ok(Divergence::SkewedKl { skew }),
                _ => Err(de::Error::custom(
                    "must be one divergence: write { jensen_shannon = 0.5 } or { skewed_kl = 0.1 }",
                )),
            }
        }
    }

    deserializer.deserialize_any(DivergenceVisitor)
}

/// For people: `reverse_kl`, `jensen_shannon 0.5`.
pub(crate) fn describe(divergence: &Divergence) -> String {
    match divergence {
        Divergence::ForwardKl => FORWARD_KL.to_owned(),
        Divergence::ReverseKl => REVERSE_KL.to_owned(),
        Divergence::JensenShannon { beta } => format!("jensen_shannon {beta}"),
        Divergence::SkewedKl { skew } => format!("skewed_kl {skew}"),
    }
}

/// The divergences that have a share of the teacher; of a recipe's, exactly one.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shares {
    #[serde(skip_serializing_if = "Option::is_none")]
    jensen_shannon: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    skewed_kl: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct One {
        #[serde(with = "super")]
        divergence: Divergence,
    }

    fn read(text: &str) -> Result<One, toml::de::Error> {
        toml::from_str(&format!("divergence = {text}"))
    }

    #[test]
    fn reads_every_form_and_what_it_writes() {
        for (text, divergence, described) in [
            ("'forward_kl'", Divergence::ForwardKl, "forward_kl"),
            ("'reverse_kl'", Divergence::ReverseKl, "reverse_kl"),
            (
                "{ jensen_shannon = 0.5 }",
                Divergence::JensenShannon { beta: 0.5 },
                "jensen_shannon 0.5",
            ),
            (
                "{ skewed_kl = 0.1 }",
                Divergence::SkewedKl { skew: 0.1 },
                "skewed_kl 0.1",
            ),
        ] {
            let one = read(text).unwrap();
            assert_eq!(one, One { divergence });
            assert_eq!(toml::from_str(&toml::to_string(&one).unwrap()), Ok(one));
            assert_eq!(describe(&divergence), described);
        }
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, part) in [
            ("'reverse'", "unknown variant `reverse`"),
            ("'skewed_kl'", "{ skewed_kl = 0.5 }"),
            ("{ skew = 0.1 }", "unknown field `skew`"),
            ("{ skewed_kl = 'x' }", "invalid type: string"),
            ("{}", "one divergence"),
            (
                "{ jensen_shannon = 0.5, skewed_kl = 0.1 }",
                "one divergence",
            ),
            ("1", "\"reverse_kl\""),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.message().contains(part), "{text}: {error}");
        }
    }
}
