//! What a GGUF file says of its model, as a `config.json` says it.

use std::f64::consts::PI;

use serde_json::{Map, Value, json};

use super::names::ROPE_FACTORS;
use super::{Architecture, Container, GgufError};

/// Gemma 3's windows, which no key says: five layers of six have one, and a rotary base of their own.
pub(crate) const GEMMA3_EVERY: usize = 6;
pub(crate) const GEMMA3_LOCAL_BASE: f64 = 10_000.0;
/// SmolLM3's layers without a rotary embedding, which no key says either.
pub(crate) const SMOLLM3_EVERY: usize = 4;

/// The architecture of a file, if it is one that is known.
pub(super) fn architecture(file: &Container) -> Result<&'static Architecture, GgufError> {
    let refused = |reason: String| Err(GgufError::refused(&file.path, reason));
    let Some(name) = file.text("general.architecture")? else {
        return refused("says no `general.architecture`: it is no model; take one that is".into());
    };
    if let Some(parts) = file.number("split.count")?.filter(|parts| *parts > 1) {
        return refused(format!(
            "is one of {parts} parts of a model: join them with llama.cpp's `llama-gguf-split --merge`"
        ));
    }
    let experts = file.number(&format!("{name}.expert_count"))?.unwrap_or(0);
    if experts > 0 {
        return refused(format!(
            "is a mixture of {experts} experts, whose weights differ from token to token: use a dense model"
        ));
    }
    let known: Vec<&str> = Architecture::ALL.iter().map(|it| it.name).collect();
    match Architecture::named(name) {
        Some(architecture) => Ok(architecture),
        None => refused(format!(
            "is a {name}, a family that is not read from GGUF here: use a model of one of {}",
            known.join(", ")
        )),
    }
}

/// Query and key/value heads.
pub(super) fn heads(file: &Container, of: &Architecture) -> Result<[usize; 2], GgufError> {
    let keys = Keys { file, of };
    let heads = keys.required("attention.head_count")?;
    let kv_heads = keys.number("attention.head_count_kv")?.unwrap_or(heads);
    Ok([heads, kv_heads])
}

/// The fields of `config.json`.
pub(super) fn config(file: &Container, of: &Architecture) -> Result<Map<String, Value>, GgufError> {
    let keys = Keys { file, of };
    let [heads, kv_heads] = heads(file, of)?;
    let width = keys.required("embedding_length")?;
    let head_dim = keys.head_dim(width, heads)?;
    let Some(embedding) = file.tensor("token_embd.weight") else {
        return Err(GgufError::broken(
            &file.path,
            "has no tensor token_embd.weight",
        ));
    };
    let layers = keys.required("block_count")?;
    if layers > file.tensors.len() {
        let reason = format!(
            "claims {layers} layers and has {} tensors",
            file.tensors.len()
        );
        return Err(GgufError::broken(&file.path, reason));
    }
    let has = |tensor: &str| file.tensor(tensor).is_some();
    let mut config = Map::new();
    let mut say = |name: &str, value: Value| {
        config.insert(name.to_owned(), value);
    };
    say("model_type", json!(of.model_type));
    say("vocab_size", json!(embedding.shape[0]));
    say("hidden_size", json!(width));
    say(
        "intermediate_size",
        json!(keys.required("feed_forward_length")?),
    );
    say("num_hidden_layers", json!(layers));
    say("num_attention_heads", json!(heads));
    say("num_key_value_heads", json!(kv_heads));
    say("head_dim", json!(head_dim));
    let context = keys.required("context_length")?;
    say("max_position_embeddings", json!(context));
    let eps = keys.float("attention.layer_norm_rms_epsilon")?;
    say(
        "rms_norm_eps",
        json!(eps.ok_or_else(|| keys.missing("attention.layer_norm_rms_epsilon"))?),
    );
    say("tie_word_embeddings", json!(!has("output.weight")));
    for (name, key) in [("bos_token_id", "bos"), ("pad_token_id", "padding")] {
        if let Some(id) = file.number(&format!("tokenizer.ggml.{key}_token_id"))? {
            say(name, json!(id));
        }
    }
    let ends = ends(file)?;
    say("eos_token_id", json!(ends));

    keys.refuse_others()?;
    let theta = keys.float("rope.freq_base")?.unwrap_or(10_000.0);
    say("rope_theta", json!(theta));
    let turned = keys.number("rope.dimension_count")?.unwrap_or(head_dim);
    if turned != head_dim {
        if of.paired {
            let reason = format!(
                "turns {turned} of a head's {head_dim} features, which is not read of a {}: use another model",
                of.name
            );
            return Err(GgufError::refused(&file.path, reason));
        }
        say(
            "partial_rotary_factor",
            json!(turned as f64 / head_dim as f64),
        );
    }
    if let Some(scaling) = keys.scaling(theta, head_dim)? {
        say("rope_scaling", scaling);
    }

    let window = keys
        .number("attention.sliding_window")?
        .filter(|window| *window > 0);
    let bias = has("blk.0.attn_q.bias");
    match of.name {
        "llama" if window.is_some() => {
            // Only a Mistral has one.
            say("model_type", json!("mistral"));
            say("sliding_window", json!(window));
        }
        // As which a Qwen2 is written whose heads are not as wide as the model.
        "llama" if bias && !has("blk.0.attn_output.bias") => say("model_type", json!("qwen2")),
        "llama" | "granite" | "smollm3" => {
            say("attention_bias", json!(bias));
            say("mlp_bias", json!(has("blk.0.ffn_gate.bias")));
        }
        "phi3" => say("sliding_window", json!(window)),
        "gemma3" => {
            say("hidden_activation", json!("gelu_pytorch_tanh"));
            say("sliding_window", json!(window));
            match keys.windowed_layers()? {
                Some(types) => say("layer_types", json!(types)),
                None => say("sliding_window_pattern", json!(GEMMA3_EVERY)),
            }
            let local = keys
                .float("rope.freq_base_swa")?
                .unwrap_or(GEMMA3_LOCAL_BASE);
            say("rope_local_base_freq", json!(local));
            // The largest of them alone has another number there.
            let is_27b = layers == 62;
            say(
                "query_pre_attn_scalar",
                json!(if is_27b {
                    width.checked_div(heads).unwrap_or(0)
                } else {
                    head_dim
                }),
            );
        }
        _ if window.is_some() => {
            let reason = format!(
                "has windows of attention, which are not read of a {} from GGUF: use the folder that it was made of",
                of.name
            );
            return Err(GgufError::refused(&file.path, reason));
        }
        _ => {}
    }
    if of.name == "smollm3" {
        say("no_rope_layer_interval", json!(SMOLLM3_EVERY));
    }
    if of.name == "granite" {
        let key = "rope.scaling.finetuned";
        if file.bool(&keys.full(key))? == Some(false) {
            return Err(keys.refused(
                key,
                "false, by which it has no rotary embedding: use another model",
            ));
        }
        for (name, key) in [
            ("embedding_multiplier", "embedding_scale"),
            ("attention_multiplier", "attention.scale"),
            ("residual_multiplier", "residual_scale"),
            ("logits_scaling", "logit_scale"),
        ] {
            let value = keys.float(key)?;
            say(name, json!(value.ok_or_else(|| keys.missing(key))?));
        }
    }
    Ok(config)
}

/// The tokens that end a text.
pub(super) fn ends(file: &Container) -> Result<Vec<usize>, GgufError> {
    let mut ends = Vec::new();
    for key in ["eos", "eot", "eom"] {
        if let Some(id) = file.number(&format!("tokenizer.ggml.{key}_token_id"))?
            && !ends.contains(&id)
        {
            ends.push(id);
        }
    }
    Ok(ends)
}

/// The keys that begin with the name of the architecture.
struct Keys<'a> {
    file: &'a Container,
    of: &'a Architecture,
}

impl Keys<'_> {
    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.of.name)
    }

    fn number(&self, key: &str) -> Result<Option<usize>, GgufError> {
        self.file.number(&self.full(key))
    }

    fn float(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.file.float(&self.full(key))
    }

    fn required(&self, key: &str) -> Result<usize, GgufError> {
        self.number(key)?.ok_or_else(|| self.missing(key))
    }

    fn missing(&self, key: &str) -> GgufError {
        let reason = format!("has no key `{}`, which has no default", self.full(key));
        GgufError::broken(&self.file.path, reason)
    }

    fn refused(&self, key: &str, reason: &str) -> GgufError {
        let reason = format!("has `{}`, {reason}", self.full(key));
        GgufError::refused(&self.file.path, reason)
    }

    fn head_dim(&self, width: usize, heads: usize) -> Result<usize, GgufError> {
        let of_width = width.checked_div(heads).unwrap_or(0);
        let size = self.number("attention.key_length")?.unwrap_or(of_width);
        let of_values = self.number("attention.value_length")?.unwrap_or(size);
        match size == of_values {
            true => Ok(size),
            false => Err(self.refused(
                "attention.value_length",
                "which is not that of keys, and is not computed here: use another model",
            )),
        }
    }

    /// Which layers have a window, if a key says so: one of so many has none, or a flag for each.
    fn windowed_layers(&self) -> Result<Option<Vec<&'static str>>, GgufError> {
        let key = self.full("attention.sliding_window_pattern");
        let kind = |windowed| match windowed {
            true => "sliding_attention",
            false => "full_attention",
        };
        if self.file.is_array(&key) {
            let flags = self.file.integers(&key)?.unwrap_or_default();
            return Ok(Some(
                flags.into_iter().map(|flag| kind(flag != 0)).collect(),
            ));
        }
        let Some(every) = self.file.number(&key)? else {
            return Ok(None);
        };
        let layers = 1..=self.required("block_count")?;
        let windowed = layers.map(|layer| every == 0 || !layer.is_multiple_of(every));
        Ok(Some(windowed.map(kind).collect()))
    }

    /// What is not known may change what the model computes.
    fn refuse_others(&self) -> Result<(), GgufError> {
        const READ: [&str; 29] = [
            "attention.causal",
            "attention.head_count",
            "attention.head_count_kv",
            "attention.key_length",
            "attention.layer_norm_rms_epsilon",
            "attention.scale",
            "attention.sliding_window",
            "attention.value_length",
            "block_count",
            "context_length",
            "embedding_length",
            "embedding_scale",
            "expert_count",
            "expert_used_count",
            "feed_forward_length",
            "logit_scale",
            "pooling_type",
            "residual_scale",
            "rope.dimension_count",
            "rope.freq_base",
            "rope.scaling.attn_factor",
            "rope.scaling.factor",
            "rope.scaling.finetuned",
            "rope.scaling.original_context_length",
            "rope.scaling.type",
            "rope.scaling.yarn_beta_fast",
            "rope.scaling.yarn_beta_slow",
            "tensor_data_layout",
            "vocab_size",
        ];
        /// Of Gemma 3 alone.
        const LOCAL: [&str; 2] = ["attention.sliding_window_pattern", "rope.freq_base_swa"];
        let prefix = format!("{}.", self.of.name);
        for key in self.file.keys(&prefix) {
            let key = &key[prefix.len()..];
            if READ.contains(&key) || (self.of.name == "gemma3" && LOCAL.contains(&key)) {
                continue;
            }
            return Err(self.refused(
                key,
                "which is not known here and may change what the model computes: use another model, or the folder \
                 that it was made of",
            ));
        }
        if self.of.name != "granite" {
            for key in [
                "attention.scale",
                "embedding_scale",
                "logit_scale",
                "residual_scale",
            ] {
                if self.float(key)?.is_some_and(|scale| scale != 1.0) {
                    return Err(self.refused(
                        key,
                        "which is only computed of a granite: use another model",
                    ));
                }
            }
        }
        Ok(())
    }

    /// The change of rotary frequencies.
    fn scaling(&self, theta: f64, head_dim: usize) -> Result<Option<Value>, GgufError> {
        let long = ["rope_factors_long.weight", "rope_factors_short.weight"];
        if long.iter().any(|name| self.file.tensor(name).is_some()) {
            let reason =
                "has frequencies by LongRoPE, which is not computed here: use a model without";
            return Err(GgufError::refused(&self.file.path, reason));
        }
        if let Some(tensor) = self.file.tensor(ROPE_FACTORS) {
            let factors = tensor.kind.to_f32(self.file.bytes(&tensor.bytes));
            let factors: Vec<f64> = factors.into_iter().map(f64::from).collect();
            let found = Llama3::of(&factors, theta, head_dim).ok_or_else(|| {
                let reason =
                    format!("has {ROPE_FACTORS} that are not those of Llama 3: use another model");
                GgufError::refused(&self.file.path, reason)
            })?;
            return Ok(found.map(Llama3::json));
        }
        let key = self.full("rope.scaling.type");
        let kind = self.file.text(&key)?.unwrap_or("none");
        let factor = self.float("rope.scaling.factor")?;
        let factor = || factor.ok_or_else(|| self.missing("rope.scaling.factor"));
        match kind {
            "none" => Ok(None),
            "linear" => Ok(Some(json!({ "rope_type": "linear", "factor": factor()? }))),
            "yarn" => {
                let factor = factor()?;
                let key = "rope.scaling.original_context_length";
                let original = self.required(key)?;
                let mut yarn = json!({
                    "rope_type": "yarn",
                    "factor": factor,
                    "original_max_position_embeddings": original,
                });
                for (name, key) in [
                    ("beta_fast", "rope.scaling.yarn_beta_fast"),
                    ("beta_slow", "rope.scaling.yarn_beta_slow"),
                ] {
                    if let Some(value) = self.float(key)? {
                        yarn[name] = json!(value);
                    }
                }
                if let Some(by) = self.float("rope.scaling.attn_factor")? {
                    yarn["attention_factor"] = json!(by * (0.1 * factor.ln() + 1.0));
                }
                Ok(Some(yarn))
            }
            other => Err(self.refused(
                "rope.scaling.type",
                &format!(
                    "\"{other}\", which is not computed here: use a model with none, linear or yarn"
                ),
            )),
        }
    }
}

/// Llama 3's change of frequencies. A file has its results, not its numbers.
struct Llama3 {
    factor: f64,
    low: f64,
    high: f64,
    original: f64,
}

impl Llama3 {
    /// How far a file's number may be from what these numbers come to: it has 24 bits, and is divided by once.
    const ROUNDING: f64 = 1e-5;

    /// The numbers that these factors come from: `None` if there are none, and none inside if nothing is changed.
    ///
    /// `1 / factor` of a pair is between `1 / all` and 1 by a part that is a straight line in the pair's own
    /// frequency. Two points give the line; as `original`, `low` and `high` times one number are the same line,
    /// `low` may be 1.
    fn of(factors: &[f64], theta: f64, head_dim: usize) -> Option<Option<Self>> {
        let pairs = head_dim / 2;
        if factors.len() != pairs || factors.iter().any(|it| !(it.is_finite() && *it >= 1.0)) {
            return None;
        }
        let all = factors.iter().copied().fold(1.0, f64::max);
        if all == 1.0 {
            return Some(None);
        }
        let frequency = |pair: usize| theta.powf(-(pair as f64) / pairs as f64);
        let part = |factor: f64| (1.0 / factor - 1.0 / all) / (1.0 - 1.0 / all);
        let between: Vec<(f64, f64)> = (0..pairs)
            .map(|pair| (frequency(pair), part(factors[pair])))
            .filter(|(_, part)| (1e-4..=1.0 - 1e-4).contains(part))
            .collect();
        let usual = [8192.0, 4096.0, 16_384.0, 32_768.0].map(|original| Self {
            factor: all,
            low: 1.0,
            high: 4.0,
            original,
        });
        // Published numbers are short.
        let short = |number: f64, step: f64| {
            let near = (number / step).round() * step;
            match (near / number - 1.0).abs() < 1e-3 {
                true => near,
                false => number,
            }
        };
        // One point gives the line if all but the context is as usual.
        let by_one = between.first().map(|(frequency, part)| Self {
            factor: all,
            low: 1.0,
            high: 4.0,
            original: short(2.0 * PI * (3.0 * part + 1.0) / frequency, 1.0),
        });
        // As short as published ones, and as they are.
        let fitted = [true, false].map(|are_short| match between.as_slice() {
            [first, .., last] => {
                let slope = (first.1 - last.1) / (first.0 - last.0);
                let at_zero = first.1 - slope * first.0; // -low / (high - low)
                let high = 1.0 - 1.0 / at_zero;
                let original = slope * 2.0 * PI * (high - 1.0);
                let near = |number, step| match are_short {
                    true => short(number, step),
                    false => number,
                };
                Some(Self {
                    factor: all,
                    low: 1.0,
                    high: near(high, 0.25),
                    original: near(original, 1.0),
                })
            }
            _ => None,
        });
        let fits = |it: &Self| {
            (0..pairs).all(|pair| {
                let expected = it.factor_of(frequency(pair));
                (expected / factors[pair] - 1.0).abs() <= Self::ROUNDING
            })
        };
        usual
            .into_iter()
            .chain(by_one)
            .chain(fitted.into_iter().flatten())
            .find(fits)
            .map(|found| Some(found.of_a_whole_context()))
    }

    /// The same line by numbers of which the context is whole, as a configuration has it.
    fn of_a_whole_context(mut self) -> Self {
        let is_whole = |times: &f64| {
            let context = self.original * times;
            (context.round() / context - 1.0).abs() < Self::ROUNDING
        };
        if let Some(times) = (1..=64).map(f64::from).find(is_whole) {
            self.original = (self.original * times).round();
            self.low *= times;
            self.high *= times;
        }
        self
    }

    fn factor_of(&self, frequency: f64) -> f64 {
        let turns = self.original * frequency / (2.0 * PI);
        let part = ((turns - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        1.0 / ((1.0 - part) / self.factor + part)
    }

    fn json(self) -> Value {
        json!({
            "rope_type": "llama3",
            "factor": self.factor,
            "low_freq_factor": self.low,
            "high_freq_factor": self.high,
            "original_max_position_embeddings": self.original,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_llama_3_are_found_from_what_they_come_to() {
        for (factor, low, high, original, theta, head_dim) in [
            (8.0, 1.0, 4.0, 8192.0, 500_000.0, 128),
            (32.0, 1.0, 4.0, 8192.0, 500_000.0, 64),
            (8.0, 1.0, 8.0, 2048.0, 10_000.0, 64),
            (4.0, 2.0, 6.0, 1000.0, 10_000.0, 64),
            (4.0, 3.0, 6.0, 1000.0, 10_000.0, 64),
        ] {
            let given = Llama3 {
                factor,
                low,
                high,
                original,
            };
            let pairs = head_dim / 2;
            let of = |pair: usize| f64::powf(theta, -(pair as f64) / pairs as f64);
            let factors: Vec<f64> = (0..pairs)
                .map(|pair| f64::from(given.factor_of(of(pair)) as f32))
                .collect();
            let found = Llama3::of(&factors, theta, head_dim).unwrap().unwrap();
            for (pair, factor) in factors.iter().enumerate() {
                let difference = found.factor_of(of(pair)) / factor - 1.0;
                assert!(difference.abs() <= Llama3::ROUNDING, "{pair}: {difference}");
            }
            assert!((found.high / found.low - high / low).abs() < 1e-2);
            assert_eq!(found.original.fract(), 0.0);
            let mut other = factors;
            other[pairs / 2] *= 1.5;
            assert!(Llama3::of(&other, theta, head_dim).is_none());
        }
        assert!(Llama3::of(&[1.0; 4], 10_000.0, 8).unwrap().is_none());
        assert!(Llama3::of(&[1.0; 3], 10_000.0, 8).is_none());
    }
}
