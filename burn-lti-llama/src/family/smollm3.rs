//! SmolLM3: some layers have no rotary embedding.

use super::{Defaults, take_windows};
use crate::config::{ConfigError, Fields, LlamaConfig};

pub(super) const DEFAULTS: Defaults = Defaults {
    max_position_embeddings: 32_768,
    rope_theta: 2_000_000.0,
    tie_word_embeddings: true,
    num_key_value_heads: Some(4),
    ..Defaults::COMMON
};

/// In `no_rope_layers` a 1 is a layer that *has* the embedding; every fourth has none where there is no list.
pub(super) fn take(fields: &mut Fields<'_>, config: &mut LlamaConfig) -> Result<(), ConfigError> {
    let bias = fields.take_or("attention_bias", false)?;
    (config.qkv_bias, config.out_bias) = (bias, bias);
    config.mlp_bias = fields.take_or("mlp_bias", false)?;
    let layers = config.num_hidden_layers;
    let every: usize = fields.take_or("no_rope_layer_interval", 4)?;
    let turned = match fields.take::<Vec<u8>>("no_rope_layers")? {
        Some(list) if list.len() < layers => {
            let reason = format!(
                "has {} entries for {layers} layers: give one for each",
                list.len()
            );
            return Err(fields.refused("no_rope_layers", reason));
        }
        Some(list) => list
            .into_iter()
            .map(|turns| turns != 0)
            .take(layers)
            .collect(),
        None if every == 0 => {
            let reason = "is 0: it must be at least 1".to_owned();
            return Err(fields.refused("no_rope_layer_interval", reason));
        }
        None => (1..=layers)
            .map(|layer| !layer.is_multiple_of(every))
            .collect(),
    };
    config.turned = turned;
    let used = fields.take_or("use_sliding_window", false)?;
    let window = fields.take::<usize>("sliding_window")?.filter(|_| used);
    let turned = config.turned.clone();
    config.windows = take_windows(fields, layers, window, |layer| !turned[layer])?;
    Ok(())
}
