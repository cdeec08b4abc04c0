//! Mistral and Ministral: Llama without biases, with a window of attention on all layers or some.

use serde_json::{Map, Value};

use super::{Defaults, take_windows};
use crate::config::{ConfigError, Fields, LlamaConfig};

pub(super) const DEFAULTS: Defaults = Defaults {
    max_position_embeddings: 131_072,
    num_key_value_heads: Some(8),
    ..Defaults::COMMON
};

/// transformers' Mistral has a window on all layers whatever `layer_types` says, which it does not read.
pub(super) fn take(fields: &mut Fields<'_>, config: &mut LlamaConfig) -> Result<(), ConfigError> {
    let window = fields.take_unless_null("sliding_window", 4096)?;
    if let Some(all) = fields.take::<Vec<String>>("layer_types")?
        && let Some(kind) = all
            .iter()
            .find(|kind| (*kind == "full_attention") != window.is_none())
    {
        let reason = format!(
            "has {kind}, which a Mistral's layers are not: set `model_type` to ministral if they are to be \
             unlike, or delete the field"
        );
        return Err(fields.refused("layer_types", reason));
    }
    config.windows = vec![window; config.num_hidden_layers];
    Ok(())
}

pub(super) fn take_ministral(
    fields: &mut Fields<'_>,
    config: &mut LlamaConfig,
) -> Result<(), ConfigError> {
    let window = fields.take_unless_null("sliding_window", 4096)?;
    config.windows = take_windows(fields, config.num_hidden_layers, window, |_| true)?;
    Ok(())
}

/// Of a Llama without biases.
pub(super) fn write(json: &mut Map<String, Value>) {
    for of_llama in ["attention_bias", "mlp_bias", "pretraining_tp"] {
        json.remove(of_llama);
    }
    json.insert("sliding_window".into(), Value::Null);
}
