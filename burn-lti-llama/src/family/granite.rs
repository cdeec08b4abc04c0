//! Granite: four multipliers, which are all folded into weights.

use crate::config::{ConfigError, Fields, LlamaConfig, Multipliers};

pub(super) fn take(fields: &mut Fields<'_>, config: &mut LlamaConfig) -> Result<(), ConfigError> {
    let bias = fields.take_or("attention_bias", false)?;
    (config.qkv_bias, config.out_bias) = (bias, bias);
    config.mlp_bias = fields.take_or("mlp_bias", false)?;
    let mut multiplier = |name: &str| -> Result<f64, ConfigError> {
        let value = fields.take_or(name, 1.0)?;
        match value > 0.0 && value < f64::INFINITY {
            true => Ok(value),
            false => {
                Err(fields.refused(name, format!("is {value}: it must be positive and finite")))
            }
        }
    };
    config.multipliers = Multipliers {
        embedding: multiplier("embedding_multiplier")?,
        attention: Some(multiplier("attention_multiplier")?),
        residual: multiplier("residual_multiplier")?,
        logits: multiplier("logits_scaling")?.recip(),
    };
    fields.only_full_attention()
}
