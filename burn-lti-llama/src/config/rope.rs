//! [`Rope`]: by how much the rotary embedding turns each pair of a head's features.

use std::f64::consts::PI;

use serde_json::{Map, Value, json};

use super::{ConfigError, Fields};

/// The longest original context, in tokens: as long as a text may be.
const MOST_TOKENS: f64 = (1_u64 << 31) as f64;

/// The rotary embedding of a model (Su et al. 2021).
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base frequency: pair `i` of `n` turns by `theta^(-i/n)` a position.
    pub theta: f64,
    /// The part of a head's features that turn, above 0 and up to 1: the first of them. The others stay as they
    /// are.
    pub partial: f64,
    /// How the frequencies are changed, so that the model reads more than it was trained on.
    pub scaling: RopeScaling,
}

/// A change of frequencies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// All are divided by the factor (Chen et al. 2023).
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// None up to `max_position_embeddings`. transformers takes a larger base for longer texts, which are not
    /// read here.
    Dynamic {
        /// At least 1.
        factor: f64,
    },
    /// Those that turn less than `low_freq_factor` times in the original context are divided, those that turn more
    /// than `high_freq_factor` times are not, and what is between in part (Llama 3.1).
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Turns in the original context.
        low_freq_factor: f64,
        /// Turns in the original context.
        high_freq_factor: f64,
        /// Tokens of the original context.
        original: f64,
    },
    /// As Llama 3's, but that the part grows with the number of the pair (Peng et al. 2023), and that queries and
    /// keys are made longer.
    Yarn {
        /// At least 1.
        factor: f64,
        /// Tokens of the original context.
        original: f64,
        /// Turns in the original context from which on nothing is changed.
        beta_fast: f64,
        /// Turns in the original context up to which all is divided.
        beta_slow: f64,
        /// By how much queries and keys are longer.
        attention_factor: f64,
        /// Whether the bounds between pairs are whole numbers.
        truncate: bool,
    },
}

impl Rope {
    /// The plain embedding.
    pub const fn new(theta: f64) -> Self {
        Self {
            theta,
            partial: 1.0,
            scaling: RopeScaling::Default,
        }
    }

    /// How many features of a head turn: the first of it, in pairs of halves.
    pub fn turned(&self, head_dim: usize) -> usize {
        (head_dim as f64 * self.partial) as usize
    }

    /// By how much each pair of a head turns a position, those that do not turn last: `head_dim / 2` angles in
    /// radians.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        let turned = self.turned(head_dim);
        let size = turned as f64;
        let plain = |pair: usize| self.theta.powf(-2.0 * pair as f64 / size);
        let scaled = |pair: usize| -> f64 {
            let frequency = plain(pair);
            match self.scaling {
                RopeScaling::Default | RopeScaling::Dynamic { .. } => frequency,
                RopeScaling::Linear { factor } => frequency / factor,
                RopeScaling::Llama3 {
                    factor,
                    low_freq_factor,
                    high_freq_factor,
                    original,
                } => {
                    let turns = original * frequency / (2.0 * PI);
                    let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    let kept = kept.clamp(0.0, 1.0);
                    (1.0 - kept) * frequency / factor + kept * frequency
                }
                RopeScaling::Yarn {
                    factor,
                    original,
                    beta_fast,
                    beta_slow,
                    truncate,
                    ..
                } => {
                    // The pair, counted in features, that turns so many times in the original context.
                    let pair_of = |turns: f64| {
                        size * (original / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln())
                    };
                    let (low, high) = (pair_of(beta_fast), pair_of(beta_slow));
                    let (low, high) = match truncate {
                        true => (low.floor(), high.ceil()),
                        false => (low, high),
                    };
                    let (low, high) = (low.max(0.0), high.min(size - 1.0));
                    let high = if low == high { high + 0.001 } else { high };
                    let divided = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    divided * frequency / factor + (1.0 - divided) * frequency
                }
            }
        };
        let turning = (0..turned / 2).map(scaled);
        let still = std::iter::repeat_n(0.0, head_dim / 2 - turned / 2);
        turning.chain(still).collect()
    }

    /// By how much queries and keys are longer.
    pub const fn attention_factor(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn {
                attention_factor, ..
            } => attention_factor,
            _ => 1.0,
        }
    }

    /// Takes all that a configuration says of it: `rope_theta`, `partial_rotary_factor`, `rope_scaling`
    /// (transformers 4) and `rope_parameters` (5), which have to agree. `max` is the longest text. Beside it the
    /// embedding of layers with a window, of families in which that is another: `rope_local_base_freq` (4) and
    /// `rope_parameters.sliding_attention` (5).
    pub(crate) fn take(
        fields: &mut Fields<'_>,
        default_theta: f64,
        default_local_theta: Option<f64>,
        max: usize,
    ) -> Result<(Self, Option<Self>), ConfigError> {
        let Some(local_theta) = default_local_theta else {
            let parameters = fields.take_object("rope_parameters")?;
            let rope = Self::take_one(fields, parameters, default_theta, max)?;
            return Ok((rope, None));
        };
        let (mut global, mut local) = (None, None);
        if let Some(mut parameters) = fields.take_object("rope_parameters")? {
            global = parameters.take_object("full_attention")?;
            local = parameters.take_object("sliding_attention")?;
            parameters.finish_all()?;
        }
        let old = fields.take::<f64>("rope_local_base_freq")?;
        let local = local
            .map(|local| Said::take(local, None, max))
            .transpose()?;
        let theta = local.as_ref().and_then(|said| said.theta);
        if let (Some(old), Some(new)) = (old, theta)
            && old != new
        {
            let reason = format!(
                "is {old} but `rope_parameters.sliding_attention.rope_theta` is {new}: delete the wrong one"
            );
            return Err(fields.refused("rope_local_base_freq", reason));
        }
        let local = Self {
            theta: theta.or(old).unwrap_or(local_theta),
            partial: local.as_ref().and_then(|said| said.partial).unwrap_or(1.0),
            scaling: local.map_or(RopeScaling::Default, |said| said.scaling),
        };
        let global = Self::take_one(fields, global, default_theta, max)?;
        Ok((global, Some(local)))
    }

    fn take_one<'a>(
        fields: &mut Fields<'a>,
        parameters: Option<Fields<'a>>,
        default_theta: f64,
        max: usize,
    ) -> Result<Self, ConfigError> {
        let top_theta = fields.take::<f64>("rope_theta")?;
        let top_partial = fields.take::<f64>("partial_rotary_factor")?;
        let original = fields.take::<f64>("original_max_position_embeddings")?;
        let scaling = fields.take_object("rope_scaling")?;
        // Where both are there, each has to say the same as the other, whatever it leaves out.
        let first = |object: Option<Fields<'_>>| {
            object
                .filter(|object| !object.is_empty())
                .map(|object| Said::take(object, original, max))
                .transpose()
        };
        let (old, new) = (first(scaling)?, first(parameters)?);
        let one = |name: &str, top: Option<f64>, of: fn(&Said) -> Option<f64>| {
            let old = old.as_ref().and_then(of);
            let new = new.as_ref().and_then(of);
            let all = [(name, top), ("rope_scaling", old), ("rope_parameters", new)];
            let mut said = all
                .into_iter()
                .filter_map(|(from, value)| Some((from, value?)));
            let Some((from, value)) = said.next() else {
                return Ok(None);
            };
            match said.find(|(_, other)| *other != value) {
                None => Ok(Some(value)),
                Some((other_from, other)) => {
                    let of = |from: &str| match from == name {
                        true => name.to_owned(),
                        false => format!("{from}.{name}"),
                    };
                    Err(fields.refused(
                        &of(from),
                        format!(
                            "is {value} but `{}` is {other}: delete the wrong one",
                            of(other_from)
                        ),
                    ))
                }
            }
        };
        let theta = one("rope_theta", top_theta, |said| said.theta)?.unwrap_or(default_theta);
        let partial =
            one("partial_rotary_factor", top_partial, |said| said.partial)?.unwrap_or(1.0);
        let scaling = match (old, new) {
            (Some(old), Some(new)) if old.scaling != new.scaling => {
                return Err(fields.refused(
                    "rope_scaling",
                    "says otherwise than `rope_parameters`: delete the wrong one".to_owned(),
                ));
            }
            (old, new) => new
                .or(old)
                .map_or(RopeScaling::Default, |said| said.scaling),
        };
        Ok(Self {
            theta,
            partial,
            scaling,
        })
    }

    /// The first field that is out of range, with the reason.
    pub(crate) fn check(&self, head_dim: usize) -> Result<(), (&'static str, String)> {
        let number = |field, value: f64, least: f64| match value >= least && value.is_finite() {
            true => Ok(()),
            false => Err((field, format!("is {value}: it must be at least {least}"))),
        };
        // It is written as a whole number.
        let context =
            |tokens: f64| match (1.0..=MOST_TOKENS).contains(&tokens) && tokens.fract() == 0.0 {
                true => Ok(()),
                false => Err((
                    "rope_scaling.original_max_position_embeddings",
                    format!("is {tokens}: it must be a whole number from 1 to {MOST_TOKENS}"),
                )),
            };
        if !(self.theta > 0.0 && self.theta.is_finite()) {
            let reason = format!("is {}: it must be positive and finite", self.theta);
            return Err(("rope_theta", reason));
        }
        let turned = self.turned(head_dim);
        if !(turned >= 2 && turned <= head_dim && turned.is_multiple_of(2)) {
            let reason = format!(
                "is {}, of which {turned} of a head's {head_dim} features would turn: it must be an even \
                 number of them",
                self.partial
            );
            return Err(("partial_rotary_factor", reason));
        }
        match self.scaling {
            RopeScaling::Default => Ok(()),
            RopeScaling::Linear { factor } | RopeScaling::Dynamic { factor } => {
                number("rope_scaling.factor", factor, 1.0)
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original,
            } => {
                number("rope_scaling.factor", factor, 1.0)?;
                context(original)?;
                match low_freq_factor < high_freq_factor {
                    true => Ok(()),
                    false => Err((
                        "rope_scaling.high_freq_factor",
                        format!(
                            "is {high_freq_factor}: it must be above low_freq_factor, {low_freq_factor}"
                        ),
                    )),
                }
            }
            RopeScaling::Yarn {
                factor,
                original,
                beta_fast,
                beta_slow,
                attention_factor,
                ..
            } => {
                number("rope_scaling.factor", factor, 1.0)?;
                context(original)?;
                number(
                    "rope_scaling.attention_factor",
                    attention_factor,
                    f64::MIN_POSITIVE,
                )?;
                number("rope_scaling.beta_slow", beta_slow, f64::MIN_POSITIVE)?;
                number("rope_scaling.beta_fast", beta_fast, beta_slow)
            }
        }
    }

    /// As `config.json` has it: what transformers 4 and 5 read, under the names of both. `local` is that of layers
    /// with a window, if it is another.
    pub(crate) fn write(&self, local: Option<&Self>, config: &mut Map<String, Value>) {
        if let Some(local) = local {
            let mut of_local = Map::new();
            local.write(None, &mut of_local);
            self.write(None, config);
            let both = json!({
                "full_attention": config["rope_parameters"],
                "sliding_attention": of_local["rope_parameters"],
            });
            config.insert("rope_parameters".into(), both);
            config.insert("rope_local_base_freq".into(), json!(local.theta));
            return;
        }
        let mut scaling = Map::new();
        let mut say = |name: &str, value: Value| {
            scaling.insert(name.to_owned(), value);
        };
        match self.scaling {
            RopeScaling::Default => {}
            RopeScaling::Linear { factor } => {
                say("rope_type", json!("linear"));
                say("factor", json!(factor));
            }
            RopeScaling::Dynamic { factor } => {
                say("rope_type", json!("dynamic"));
                say("factor", json!(factor));
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original,
            } => {
                say("rope_type", json!("llama3"));
                say("factor", json!(factor));
                say("low_freq_factor", json!(low_freq_factor));
                say("high_freq_factor", json!(high_freq_factor));
                say("original_max_position_embeddings", json!(original as u64));
            }
            RopeScaling::Yarn {
                factor,
                original,
                beta_fast,
                beta_slow,
                attention_factor,
                truncate,
            } => {
                say("rope_type", json!("yarn"));
                say("factor", json!(factor));
                say("original_max_position_embeddings", json!(original as u64));
                say("beta_fast", json!(beta_fast));
                say("beta_slow", json!(beta_slow));
                say("attention_factor", json!(attention_factor));
                say("truncate", json!(truncate));
            }
        }
        let mut parameters = scaling.clone();
        if scaling.is_empty() {
            parameters.insert("rope_type".into(), json!("default"));
        }
        parameters.insert("rope_theta".into(), json!(self.theta));
        if self.partial != 1.0 {
            parameters.insert("partial_rotary_factor".into(), json!(self.partial));
            config.insert("partial_rotary_factor".into(), json!(self.partial));
        }
        let scaling = match scaling.is_empty() {
            true => Value::Null,
            false => Value::Object(scaling),
        };
        config.insert("rope_parameters".into(), Value::Object(parameters));
        config.insert("rope_scaling".into(), scaling);
        config.insert("rope_theta".into(), json!(self.theta));
    }
}

/// What one object of a configuration says.
struct Said {
    theta: Option<f64>,
    partial: Option<f64>,
    scaling: RopeScaling,
}

impl Said {
    /// `original` is what the configuration says beside the object, which goes before.
    fn take(mut of: Fields<'_>, original: Option<f64>, max: usize) -> Result<Self, ConfigError> {
        let kind = of.take::<String>("rope_type")?;
        let old_name = of.take::<String>("type")?;
        let kind = kind.or(old_name).unwrap_or_else(|| "default".to_owned());
        let (theta, partial) = (of.take("rope_theta")?, of.take("partial_rotary_factor")?);
        let context = |of: &mut Fields<'_>| {
            let said = of.take("original_max_position_embeddings")?;
            Ok::<f64, ConfigError>(original.or(said).unwrap_or(max as f64))
        };
        let scaling = match kind.as_str() {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear {
                factor: of.require("factor")?,
            },
            "dynamic" => {
                // It is there for longer texts alone.
                context(&mut of)?;
                RopeScaling::Dynamic {
                    factor: of.require("factor")?,
                }
            }
            "llama3" => RopeScaling::Llama3 {
                factor: of.require("factor")?,
                low_freq_factor: of.require("low_freq_factor")?,
                high_freq_factor: of.require("high_freq_factor")?,
                original: context(&mut of)?,
            },
            "yarn" => {
                let original = context(&mut of)?;
                let factor = of.take_or("factor", max as f64 / original)?;
                let scales = [of.take::<f64>("mscale")?, of.take::<f64>("mscale_all_dim")?];
                let length = |scale: f64| match factor > 1.0 {
                    true => 0.1 * scale * factor.ln() + 1.0,
                    false => 1.0,
                };
                let lengths = match scales {
                    [Some(one), Some(all)] if one != 0.0 && all != 0.0 => length(one) / length(all),
                    _ => length(1.0),
                };
                RopeScaling::Yarn {
                    factor,
                    original,
                    beta_fast: of.take_or("beta_fast", 32.0)?,
                    beta_slow: of.take_or("beta_slow", 1.0)?,
                    attention_factor: of.take_or("attention_factor", lengths)?,
                    truncate: of.take_or("truncate", true)?,
                }
            }
            other => {
                let reason = format!(
                    "is {other}, which is not computed here: default, linear, dynamic, llama3 and yarn are; \
                     use a model that has one of them"
                );
                return Err(of.refused("rope_type", reason));
            }
        };
        // A mark of those who made the model, without meaning for what it computes.
        of.take::<Value>("finetuned")?;
        of.finish_all()?;
        Ok(Self {
            theta,
            partial,
            scaling,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_pairs_stands_still() {
        let rope = Rope {
            partial: 0.5,
            ..Rope::new(100.0)
        };
        assert_eq!(rope.turned(8), 4);
        let found = rope.frequencies(8);
        for (found, expected) in found.iter().zip([1.0, 0.1, 0.0, 0.0]) {
            assert!((found - expected).abs() < 1e-15, "{found}");
        }
    }

    #[test]
    fn frequencies_of_llama_3_are_divided_by_how_often_they_turn() {
        let rope = Rope {
            scaling: RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original: 2.0 * PI * 2.0,
            },
            ..Rope::new(256.0)
        };
        // Pairs turn by 1, 1/4, 1/16 and 1/64, in the original context 2, 1/2, 1/8 and 1/32 times.
        let found = rope.frequencies(8);
        let third = 1.0 / 3.0;
        let expected = [
            third + (1.0 - third) / 8.0,
            0.25 / 8.0,
            0.0625 / 8.0,
            0.015_625 / 8.0,
        ];
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
    }
}
