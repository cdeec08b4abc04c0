//! Gemma 2: norms before and after each block, whose gains are one more than in the file, an embedding that is made
//! larger, scores by a number of their own, windows on every other layer, a gate by GELU, and scores and logits that
//! are held below a cap.

use super::layout::FileTensor;
use super::{Defaults, take_windows};
use crate::config::{Activation, ConfigError, Fields, LlamaConfig, Multipliers};

pub(super) const DEFAULTS: Defaults = Defaults {
    max_position_embeddings: 8192,
    tie_word_embeddings: true,
    num_key_value_heads: Some(4),
    head_dim: Some(256),
    ..Defaults::COMMON
};

pub(super) fn take(fields: &mut Fields<'_>, config: &mut LlamaConfig) -> Result<(), ConfigError> {
    config.attention_cap = fields.take_unless_null("attn_logit_softcapping", 50.0)?;
    config.logit_cap = fields.take_unless_null("final_logit_softcapping", 30.0)?;
    take_common(fields, config, 2)
}

/// What Gemma 3 has too. Where the file does not say which layers see all tokens, it is one of `every`, the last of
/// them.
pub(super) fn take_common(
    fields: &mut Fields<'_>,
    config: &mut LlamaConfig,
    every: usize,
) -> Result<(), ConfigError> {
    let bias = fields.take_or("attention_bias", false)?;
    (config.qkv_bias, config.out_bias) = (bias, bias);
    config.output_norms = true;
    config.activation = Activation::take(fields, "hidden_activation", Activation::GeluTanh)?;
    if fields.take_or("use_bidirectional_attention", false)? {
        let reason = "is true: it is no model that continues text; use one that is".to_owned();
        return Err(fields.refused("use_bidirectional_attention", reason));
    }
    let scalar: f64 = fields.take_or("query_pre_attn_scalar", 256.0)?;
    if !(scalar > 0.0 && scalar.is_finite()) {
        let reason = format!("is {scalar}: it must be positive and finite");
        return Err(fields.refused("query_pre_attn_scalar", reason));
    }
    config.multipliers = Multipliers {
        embedding: embedding_multiplier(config.hidden_size),
        attention: Some(scalar.powf(-0.5)),
        ..Multipliers::NONE
    };
    let window = fields.take_unless_null("sliding_window", 4096)?;
    let (layers, every) = (config.num_hidden_layers, every.max(1));
    config.windows = take_windows(fields, layers, window, |layer| {
        !(layer + 1).is_multiple_of(every)
    })?;
    Ok(())
}

/// What the embedding gives is multiplied by the root of its width.
pub(super) fn embedding_multiplier(hidden_size: usize) -> f64 {
    (hidden_size as f64).sqrt()
}

/// The norms by the names of the file, where gains are told from one.
pub(super) fn named(mut tensor: FileTensor) -> FileTensor {
    if tensor.name.ends_with("norm.weight") {
        tensor.parts.iter_mut().for_each(|part| part.shift = 1.0);
    }
    tensor.by_place()
}
