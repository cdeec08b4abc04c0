//! One table between the tensors of a GGUF file and those of a Hugging Face folder.

use super::Architecture;

/// Names in a layer, or of the whole model: GGUF's, Hugging Face's.
const IN_LAYER: [(&str, &str); 10] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];
const NORM: (&str, &str) = ("ffn_norm", "post_attention_layernorm");
const OUTPUT_NORMS: [(&str, &str); 3] = [
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];
const FUSED: [(&str, &str); 2] = [
    ("attn_qkv", "self_attn.qkv_proj"),
    ("ffn_up", "mlp.gate_up_proj"),
];
const OF_MODEL: [(&str, &str); 3] = [
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
];

/// What each pair of a head is divided by, where that is Llama 3's.
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";

impl Architecture {
    /// Hugging Face's name of a tensor.
    pub(crate) fn hf_name(&self, gguf: &str) -> Option<String> {
        let (owner, leaf) = gguf.rsplit_once('.')?;
        if let Some((_, hf)) = OF_MODEL.iter().find(|(gguf, _)| *gguf == owner) {
            return Some(format!("{hf}.{leaf}"));
        }
        let (layer, owner) = owner.strip_prefix("blk.")?.split_once('.')?;
        let layer: usize = layer.parse().ok()?;
        let (_, hf) = self.in_layer().find(|(gguf, _)| *gguf == owner)?;
        Some(format!("model.layers.{layer}.{hf}.{leaf}"))
    }

    /// GGUF's name of a tensor.
    pub(crate) fn gguf_name(&self, hf: &str) -> Option<String> {
        let (owner, leaf) = hf.rsplit_once('.')?;
        if let Some((gguf, _)) = OF_MODEL.iter().find(|(_, hf)| *hf == owner) {
            return Some(format!("{gguf}.{leaf}"));
        }
        let (layer, owner) = owner.strip_prefix("model.layers.")?.split_once('.')?;
        let layer: usize = layer.parse().ok()?;
        let (gguf, _) = self.in_layer().find(|(_, hf)| *hf == owner)?;
        Some(format!("blk.{layer}.{gguf}.{leaf}"))
    }

    /// How many heads the rows of a tensor are of whose rows lie otherwise in a GGUF file.
    pub(crate) fn reordered(&self, hf: &str, [heads, kv_heads]: [usize; 2]) -> Option<usize> {
        match () {
            () if !self.paired => None,
            () if hf.contains(".q_proj.") => Some(heads),
            () if hf.contains(".k_proj.") => Some(kv_heads),
            () => None,
        }
    }

    /// What a GGUF file has more in each number of a tensor.
    pub(crate) fn shift(&self, hf: &str) -> f32 {
        match self.whole_gains && hf.ends_with("norm.weight") {
            true => 1.0,
            false => 0.0,
        }
    }

    fn in_layer(&self) -> impl Iterator<Item = &'static (&'static str, &'static str)> {
        let norms: &[(&str, &str)] = match self.output_norms {
            true => &OUTPUT_NORMS,
            false => &[NORM],
        };
        let fused: &[(&str, &str)] = match self.fused {
            true => &FUSED,
            false => &[],
        };
        fused.iter().chain(&IN_LAYER).chain(norms)
    }
}

/// `rows` rows of Hugging Face's file in the order of a GGUF file: of each head the first and the second half in
/// turn.
pub(crate) fn to_pairs(numbers: &[f32], heads: usize, rows: usize) -> Vec<f32> {
    reorder(numbers, heads, rows, |row, half| row % 2 * half + row / 2)
}

/// `rows` rows of a GGUF file in Hugging Face's order.
pub(crate) fn from_pairs(numbers: &[f32], heads: usize, rows: usize) -> Vec<f32> {
    reorder(numbers, heads, rows, |row, half| {
        row % half * 2 + row / half
    })
}

/// Takes each row of a head from where `from` says, given half the rows of a head.
fn reorder(
    numbers: &[f32],
    heads: usize,
    rows: usize,
    from: impl Fn(usize, usize) -> usize,
) -> Vec<f32> {
    let (width, size) = (numbers.len() / rows, rows / heads);
    let of = |row: usize| row / size * size + from(row % size, size / 2);
    let taken = (0..rows).map(|row| &numbers[of(row) * width..][..width]);
    taken.flatten().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_there_and_back() {
        for architecture in &Architecture::ALL {
            let there = |(gguf, hf): &(&str, &str)| {
                let names = (
                    format!("blk.7.{gguf}.weight"),
                    format!("model.layers.7.{hf}.weight"),
                );
                assert_eq!(architecture.hf_name(&names.0), Some(names.1.clone()));
                assert_eq!(architecture.gguf_name(&names.1), Some(names.0));
            };
            let names = architecture.in_layer();
            match architecture.fused {
                true => FUSED.iter().for_each(there),
                false => names.for_each(there),
            }
            let head = architecture.hf_name("output.weight");
            assert_eq!(head.as_deref(), Some("lm_head.weight"));
            assert_eq!(architecture.hf_name("blk.x.attn_q.weight"), None);
            assert_eq!(architecture.hf_name("blk.0.ssm_in.weight"), None);
        }
    }

    #[test]
    fn pairs_are_halves_in_turn() {
        // Two heads of four features, rows of one number.
        let rows: Vec<f32> = (0..8).map(|row| row as f32).collect();
        let pairs = to_pairs(&rows, 2, 8);
        assert_eq!(pairs, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        assert_eq!(from_pairs(&pairs, 2, 8), rows);
    }
}
