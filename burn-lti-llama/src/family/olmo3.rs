//! OLMo 3: as OLMo 2, with a window on three of four layers, whose rotary embedding is not scaled.

use super::{Defaults, olmo2, take_windows};
use crate::config::{ConfigError, Fields, LlamaConfig};

pub(super) const DEFAULTS: Defaults = Defaults {
    rope_theta: 500_000.0,
    local_rope_theta: Some(500_000.0),
    ..olmo2::DEFAULTS
};

pub(super) fn take(fields: &mut Fields<'_>, config: &mut LlamaConfig) -> Result<(), ConfigError> {
    olmo2::take_common(fields, config)?;
    let window = fields.take_unless_null("sliding_window", 4096)?;
    config.windows = take_windows(fields, config.num_hidden_layers, window, |layer| {
        !(layer + 1).is_multiple_of(4)
    })?;
    Ok(())
}
