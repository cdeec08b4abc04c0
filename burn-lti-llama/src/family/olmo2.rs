//! OLMo 2: what a block puts out is normed, and not what it reads; queries and keys are normed, all heads at once.

use super::Defaults;
use crate::config::{ConfigError, Fields, LlamaConfig, QkNorm};

pub(super) const DEFAULTS: Defaults = Defaults {
    rms_norm_eps: 1e-5,
    ..Defaults::COMMON
};

pub(super) fn take(fields: &mut Fields<'_>, config: &mut LlamaConfig) -> Result<(), ConfigError> {
    take_common(fields, config)?;
    fields.only_full_attention()
}

/// What OLMo 3 has too.
pub(super) fn take_common(
    fields: &mut Fields<'_>,
    config: &mut LlamaConfig,
) -> Result<(), ConfigError> {
    let bias = fields.take_or("attention_bias", false)?;
    (config.qkv_bias, config.out_bias) = (bias, bias);
    (config.input_norms, config.output_norms) = (false, true);
    config.qk_norm = QkNorm::AllHeads;
    Ok(())
}
