//! Qwen2 and 2.5: biases of query, key and value, and none of out.

use super::{Defaults, take_windows};
use crate::config::{ConfigError, Fields, LlamaConfig};

pub(super) const DEFAULTS: Defaults = Defaults {
    max_position_embeddings: 32_768,
    num_key_value_heads: Some(32),
    ..Defaults::COMMON
};

pub(super) fn take(fields: &mut Fields<'_>, config: &mut LlamaConfig) -> Result<(), ConfigError> {
    config.qkv_bias = true;
    take_upper_windows(fields, config)
}

/// A window on the layers from `max_window_layers` on, if `use_sliding_window` says so.
pub(super) fn take_upper_windows(
    fields: &mut Fields<'_>,
    config: &mut LlamaConfig,
) -> Result<(), ConfigError> {
    let used = fields.take_or("use_sliding_window", false)?;
    let window = fields.take_unless_null("sliding_window", 4096)?;
    let from = fields.take_or("max_window_layers", 28)?;
    let window = window.filter(|_| used);
    config.windows = take_windows(fields, config.num_hidden_layers, window, |layer| {
        layer >= from
    })?;
    Ok(())
}
