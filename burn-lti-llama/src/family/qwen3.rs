//! Qwen3: each head's queries and keys are normed before they turn.

use super::{Defaults, qwen2};
use crate::config::{ConfigError, Fields, LlamaConfig, QkNorm};

pub(super) const DEFAULTS: Defaults = Defaults {
    head_dim: Some(128),
    ..qwen2::DEFAULTS
};

pub(super) fn take(fields: &mut Fields<'_>, config: &mut LlamaConfig) -> Result<(), ConfigError> {
    let bias = fields.take_or("attention_bias", false)?;
    (config.qkv_bias, config.out_bias) = (bias, bias);
    config.qk_norm = QkNorm::EachHead;
    qwen2::take_upper_windows(fields, config)
}
