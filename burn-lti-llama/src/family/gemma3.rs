//! Gemma 3, its language model: as Gemma 2, with norms of each head's queries and keys, two rotary bases, windows on
//! five of six layers, and no cap of scores.

use super::{Defaults, gemma2};
use crate::config::{ConfigError, Fields, LlamaConfig, QkNorm};

pub(super) const DEFAULTS: Defaults = Defaults {
    max_position_embeddings: 131_072,
    rope_theta: 1_000_000.0,
    local_rope_theta: Some(10_000.0),
    ..gemma2::DEFAULTS
};

pub(super) fn take(fields: &mut Fields<'_>, config: &mut LlamaConfig) -> Result<(), ConfigError> {
    config.qk_norm = QkNorm::EachHead;
    // transformers keeps the first of these, and does not use it.
    fields.take::<f64>("attn_logit_softcapping")?;
    config.logit_cap = fields.take("final_logit_softcapping")?;
    let every = fields.take_or("sliding_window_pattern", 6)?;
    gemma2::take_common(fields, config, every)
}
