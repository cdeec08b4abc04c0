//! [`SeqLens`]: tokens in a sequence, a number or several.

use std::fmt;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The lengths of the sequences that are trained on: `128`, or `[128, 512]`, ascending.
///
/// Every number of sequences in a recipe is of the shortest. Of a longer one there are as many as hold
/// as many tokens.
///
/// ```
/// # use burn_lti_llama::recipe::SeqLens;
/// let lens = SeqLens::new([128, 512]);
/// assert_eq!((lens.shortest(), lens.longest()), (128, 512));
/// assert_eq!(lens.sequences_of(512, 16), 4);
/// assert_eq!(lens.to_string(), "128, 512");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeqLens(Vec<usize>);

impl SeqLens {
    /// These lengths. Whether they are any good is the recipe's business.
    pub fn new(lens: impl IntoIterator<Item = usize>) -> Self {
        Self(lens.into_iter().collect())
    }

    /// All of them, the shortest first.
    pub fn all(&self) -> &[usize] {
        &self.0
    }

    /// The first.
    pub fn shortest(&self) -> usize {
        self.0.first().copied().unwrap_or(0)
    }

    /// The last.
    pub fn longest(&self) -> usize {
        self.0.last().copied().unwrap_or(0)
    }

    /// How many sequences of length `len` hold as many tokens as `sequences` of the shortest; at least
    /// one.
    pub fn sequences_of(&self, len: usize, sequences: usize) -> usize {
        (sequences.saturating_mul(self.shortest()) / len.max(1)).max(1)
    }

    /// The mean of `cost` over the lengths, which have equal shares of the tokens.
    pub fn mean(&self, cost: impl Fn(usize) -> f64) -> f64 {
        let sum: f64 = self.0.iter().map(|len| cost(*len)).sum();
        sum / self.0.len() as f64
    }
}

/// The numbers, a comma between two.
impl fmt::Display for SeqLens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&numbers.join(", "))
    }
}

impl Serialize for SeqLens {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [len] => len.serialize(serializer),
            lens => lens.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for SeqLens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct LensVisitor;

        impl<'de> Visitor<'de> for LensVisitor {
            type Value = SeqLens;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of tokens, or a list of them such as [128, 512]")
            }

            fn visit_i64<E: de::Error>(self, len: i64) -> Result<SeqLens, E> {
                let invalid = |_| E::invalid_value(de::Unexpected::Signed(len), &self);
                Ok(SeqLens::new([usize::try_from(len).map_err(invalid)?]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<SeqLens, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(SeqLens)
            }
        }

        deserializer.deserialize_any(LensVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct One {
        seq_len: SeqLens,
    }

    #[test]
    fn reads_both_forms_and_writes_a_number_as_a_number() {
        for (text, lens, written) in [
            ("128", vec![128], "seq_len = 128\n"),
            ("[128]", vec![128], "seq_len = 128\n"),
            ("[128, 512]", vec![128, 512], "seq_len = [128, 512]\n"),
            ("[]", vec![], "seq_len = []\n"),
        ] {
            let one: One = toml::from_str(&format!("seq_len = {text}")).unwrap();
            let seq_len = SeqLens::new(lens);
            assert_eq!(one, One { seq_len });
            assert_eq!(toml::to_string(&one).unwrap(), written);
        }
        for text in ["-1", "1.5", "'long'", "[128, 'long']"] {
            let error = toml::from_str::<One>(&format!("seq_len = {text}")).unwrap_err();
            assert!(error.message().starts_with("invalid "), "{error}");
        }
    }

    #[test]
    fn other_lengths_have_as_many_tokens() {
        let lens = SeqLens::new([2, 3, 8]);
        assert_eq!([2, 3, 8].map(|len| lens.sequences_of(len, 12)), [12, 8, 3]);
        assert_eq!(lens.sequences_of(8, 3), 1);
        assert_eq!(lens.mean(|len| len as f64), 13.0 / 3.0);
    }
}
