//! Phi-3 and Phi-4: query, key and value stand in one tensor of the file, gate and up in another.

use super::Defaults;
use super::layout::FileTensor;
use crate::config::{ConfigError, Fields, LlamaConfig, RopeScaling};

pub(super) const DEFAULTS: Defaults = Defaults {
    max_position_embeddings: 4096,
    rms_norm_eps: 1e-5,
    ..Defaults::COMMON
};

pub(super) fn take(fields: &mut Fields<'_>, config: &mut LlamaConfig) -> Result<(), ConfigError> {
    let bias = fields.take_or("attention_bias", false)?;
    if bias {
        let reason = "is true, but a Phi-3 has no biases: delete the field".to_owned();
        return Err(fields.refused("attention_bias", reason));
    }
    if !matches!(config.rope.scaling, RopeScaling::Default) {
        let reason = "scales the rotary embedding, by which a Phi-3 means LongRoPE, which is not computed here: use \
                      a model that reads up to its original_max_position_embeddings";
        return Err(fields.refused("rope_scaling", reason.to_owned()));
    }
    let window = fields.take("sliding_window")?;
    config.windows = vec![window; config.num_hidden_layers];
    Ok(())
}

/// Row below row, in the order of the forward pass.
pub(super) fn fused(tensors: Vec<FileTensor>) -> Vec<FileTensor> {
    let mut fused: Vec<FileTensor> = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let name = tensor.name.clone();
        match fused.last_mut() {
            Some(first) if name.contains("k_proj.") || name.contains("v_proj.") => {
                first.join(tensor)
            }
            Some(first) if name.contains("up_proj.") => first.join(tensor),
            _ => {
                let name = name.replace(".q_proj.", ".qkv_proj.");
                let name = name.replace(".gate_proj.", ".gate_up_proj.");
                fused.push(FileTensor { name, ..tensor });
            }
        }
    }
    fused
}
