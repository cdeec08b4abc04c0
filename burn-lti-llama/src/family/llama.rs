//! Llama: the decoder as it is.

use serde_json::{Map, Value, json};

use crate::config::{ConfigError, Fields, LlamaConfig};

/// Biases of the attention are those of all four projections.
pub(super) fn take(fields: &mut Fields<'_>, config: &mut LlamaConfig) -> Result<(), ConfigError> {
    let bias = fields.take_or("attention_bias", false)?;
    (config.qkv_bias, config.out_bias) = (bias, bias);
    config.mlp_bias = fields.take_or("mlp_bias", false)?;
    fields.only_full_attention()
}

pub(super) fn write(config: &LlamaConfig, json: &mut Map<String, Value>) {
    json.insert("attention_bias".into(), json!(config.qkv_bias));
    json.insert("mlp_bias".into(), json!(config.mlp_bias));
}
