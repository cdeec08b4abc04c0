//! The keys of a GGUF file that say what its model computes.

use std::path::Path;

use crate::config::{Family, LlamaConfig, Rope, RopeScaling};
use crate::gguf::{
    Architecture, BlockType, GEMMA3_EVERY, GEMMA3_LOCAL_BASE, GgufError, NewValue, SMOLLM3_EVERY,
};

/// The version of ggml's block layouts.
const QUANTIZATION: u32 = 2;

/// All but those of the tokenizer. What llama.cpp would compute otherwise than the model is refused.
pub(super) fn of(
    config: &LlamaConfig,
    architecture: &Architecture,
    kind: BlockType,
    from: &Path,
) -> Result<Vec<(String, NewValue)>, GgufError> {
    check(config, architecture).map_err(|reason| {
        let reason = format!(
            "{reason}, which llama.cpp does not compute in a {}: export the folder, for a program that does",
            architecture.name
        );
        GgufError::refused(from, reason)
    })?;
    let mut keys = Keys {
        values: Vec::new(),
        prefix: architecture.name,
    };
    let text = |text: &str| NewValue::Text(text.to_owned());
    let name = from.file_stem().unwrap_or_default().to_string_lossy();
    let repository = config.source.repository();
    let general = [
        ("architecture", text(architecture.name)),
        ("type", text("model")),
        ("name", text(repository.unwrap_or(&name))),
        ("file_type", NewValue::Number(kind.file_type())),
        ("quantization_version", NewValue::Number(QUANTIZATION)),
    ];
    let general = general.map(|(key, value)| (format!("general.{key}"), value));
    keys.values.extend(general);

    keys.number("block_count", config.num_hidden_layers, from)?;
    keys.number("context_length", config.max_position_embeddings, from)?;
    keys.number("embedding_length", config.hidden_size, from)?;
    keys.number("feed_forward_length", config.intermediate_size, from)?;
    keys.number("attention.head_count", config.num_attention_heads, from)?;
    keys.number("attention.head_count_kv", config.num_key_value_heads, from)?;
    keys.number("attention.key_length", config.head_dim, from)?;
    keys.number("attention.value_length", config.head_dim, from)?;
    keys.number("vocab_size", config.vocab_size, from)?;
    keys.float("attention.layer_norm_rms_epsilon", config.rms_norm_eps);
    keys.float("rope.freq_base", config.rope.theta);
    let turned = config.rope.turned(config.head_dim);
    keys.number("rope.dimension_count", turned, from)?;
    scaling(config, &mut keys, from)?;
    match config.family {
        // 0 says that there is none.
        Family::Phi3 => {
            let window = config.windows.first().copied().flatten().unwrap_or(0);
            keys.number("attention.sliding_window", window, from)?;
        }
        Family::Gemma3 => {
            let window = config.windows.iter().copied().flatten().next().unwrap_or(0);
            keys.number("attention.sliding_window", window, from)?;
        }
        Family::Granite => {
            let by = &config.multipliers;
            keys.float("embedding_scale", by.embedding);
            keys.float("residual_scale", by.residual);
            keys.float("logit_scale", by.logits.recip());
            keys.float("attention.scale", by.attention.unwrap_or(1.0));
        }
        _ => {}
    }
    Ok(keys.values)
}

fn scaling(config: &LlamaConfig, keys: &mut Keys, from: &Path) -> Result<(), GgufError> {
    let (kind, factor) = match config.rope.scaling {
        // Llama 3's is a tensor, and `dynamic` is none up to the model's own length.
        RopeScaling::Default | RopeScaling::Dynamic { .. } | RopeScaling::Llama3 { .. } => {
            return Ok(());
        }
        RopeScaling::Linear { factor } => ("linear", factor),
        RopeScaling::Yarn {
            factor,
            original,
            beta_fast,
            beta_slow,
            ..
        } => {
            keys.number(
                "rope.scaling.original_context_length",
                original as usize,
                from,
            )?;
            keys.float("rope.scaling.yarn_beta_fast", beta_fast);
            keys.float("rope.scaling.yarn_beta_slow", beta_slow);
            ("yarn", factor)
        }
    };
    keys.text("rope.scaling.type", kind);
    keys.float("rope.scaling.factor", factor);
    Ok(())
}

/// What the model computes and llama.cpp would not.
fn check(config: &LlamaConfig, architecture: &Architecture) -> Result<(), String> {
    if config.attention_cap.is_some() || config.logit_cap.is_some() {
        return Err("holds scores or logits below a cap".to_owned());
    }
    let layers = config.num_hidden_layers;
    let longest = config.max_position_embeddings;
    // A window that is as long as any text is none.
    let windows = config
        .windows
        .iter()
        .map(|window| window.filter(|it| *it < longest));
    let windows: Vec<Option<usize>> = windows.collect();
    let is_gemma = config.family == Family::Gemma3;
    match config.family {
        Family::Phi3 => {}
        Family::Gemma3 => {
            let as_known = (0..layers).all(|layer| {
                config.windows[layer].is_some() != (layer + 1).is_multiple_of(GEMMA3_EVERY)
            });
            if !as_known {
                return Err(format!(
                    "has windows on other layers than five of each {GEMMA3_EVERY}"
                ));
            }
        }
        _ => {
            if let Some(window) = windows.iter().flatten().next() {
                return Err(format!(
                    "has a window of {window} tokens and reads texts of {longest}"
                ));
            }
        }
    }
    let every = match config.family {
        Family::SmolLm3 => SMOLLM3_EVERY,
        _ => usize::MAX,
    };
    let as_known = |layer: usize| config.turned[layer] != (layer + 1).is_multiple_of(every);
    if let Some(layer) = (0..layers).find(|layer| !as_known(*layer)) {
        let has = if config.turned[layer] { "a" } else { "no" };
        return Err(format!("has {has} rotary embedding in layer {layer}"));
    }
    let has_bias = config.out_bias || config.mlp_bias || config.qkv_bias;
    let may_have_bias = match config.family {
        Family::Qwen2 => !config.out_bias && !config.mlp_bias,
        Family::Llama | Family::Granite => true,
        _ => !has_bias,
    };
    if has_bias && !may_have_bias {
        return Err("has biases".to_owned());
    }
    if config.rope.partial != 1.0 && architecture.paired {
        return Err("turns a part of each head".to_owned());
    }
    match config.rope.scaling {
        RopeScaling::Llama3 { .. } if !architecture.has_rope_factors => {
            return Err("has the rotary frequencies of Llama 3".to_owned());
        }
        RopeScaling::Yarn {
            factor,
            attention_factor,
            truncate,
            ..
        } => {
            let usual = 0.1 * factor.ln() + 1.0;
            if !truncate || (attention_factor - usual).abs() > 1e-6 {
                return Err("scales its rotary frequencies by YaRN in a way of its own".to_owned());
            }
        }
        _ => {}
    }
    if is_gemma {
        let local = config.local_rope.as_ref();
        let is_usual =
            |it: &Rope| it.theta == GEMMA3_LOCAL_BASE && it.scaling == RopeScaling::Default;
        if local.is_some_and(|local| !is_usual(local)) {
            return Err(format!(
                "has another rotary base than {GEMMA3_LOCAL_BASE} in layers with a window"
            ));
        }
        let size = match layers {
            62 => config.hidden_size / config.num_attention_heads,
            _ => config.head_dim,
        };
        let usual = (size as f64).powf(-0.5);
        if config
            .multipliers
            .attention
            .is_some_and(|by| (by / usual - 1.0).abs() > 1e-6)
        {
            return Err(format!(
                "scales its scores otherwise than by the root of {size}"
            ));
        }
    }
    Ok(())
}

/// Keys that begin with the name of the architecture.
struct Keys<'a> {
    values: Vec<(String, NewValue)>,
    prefix: &'a str,
}

impl Keys<'_> {
    fn put(&mut self, key: &str, value: NewValue) {
        self.values.push((format!("{}.{key}", self.prefix), value));
    }

    fn number(&mut self, key: &str, number: usize, from: &Path) -> Result<(), GgufError> {
        let short = u32::try_from(number).map_err(|_| {
            GgufError::refused(
                from,
                format!("has {number} as `{key}`, more than GGUF can hold"),
            )
        })?;
        self.put(key, NewValue::Number(short));
        Ok(())
    }

    fn float(&mut self, key: &str, number: f64) {
        self.put(key, NewValue::Float(number as f32));
    }

    fn text(&mut self, key: &str, text: &str) {
        self.put(key, NewValue::Text(text.to_owned()));
    }
}
