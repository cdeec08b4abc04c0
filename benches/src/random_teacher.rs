//! A Llama of any shape that was never trained, in a Hugging Face folder that every program reads.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use burn_lti_llama::config::LlamaConfig;
use burn_lti_llama::hf::{NewTensor, WeightType, write_weights};

use crate::numbers::uniform_values;

/// As wide as a Llama's weights are before training.
pub const STD: f64 = 0.02;

/// The shape of the stories260k teacher.
pub const STORIES_260K: &str = r#"{
    "model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 172,
    "num_hidden_layers": 5, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8,
    "max_position_embeddings": 8192, "tie_word_embeddings": true
}"#;

/// The shape of SmolLM2-135M.
pub const SMOLLM2_135M: &str = include_str!("../plans/smollm2-135m/config.json");

/// The configuration in a text.
///
/// # Errors
///
/// If it is none.
pub fn config(text: &str) -> Result<LlamaConfig> {
    Ok(LlamaConfig::from_json_str(text, Path::new("config.json"))?)
}

/// Writes a teacher of this shape to `dir`, without a tokenizer. `std` is the standard deviation of its weights.
///
/// # Errors
///
/// If a file cannot be written.
pub fn write(config: &LlamaConfig, std: f64, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let path = dir.join("config.json");
    let json = format!("{:#}\n", config.to_json());
    fs::write(&path, json).with_context(|| format!("cannot write {}", path.display()))?;
    let tensors = config.tensors().into_iter().enumerate();
    let weights = tensors.map(|(index, (name, shape))| {
        let count = shape.iter().product();
        let is_norm = shape.len() == 1;
        NewTensor::new(name, shape, move || {
            Ok(match is_norm {
                true => vec![1.0; count],
                false => uniform_values(100 + index as u64, count, std),
            })
        })
    });
    write_weights(&dir.join("model.safetensors"), WeightType::F32, weights)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use burn_lti_llama::distill::plan_of_config;
    use burn_lti_llama::plan::DeviceSpeed;
    use burn_lti_llama::recipe::Recipe;

    use super::*;

    /// What the page of the benches has `burn-lti plan` count.
    #[test]
    fn the_recipes_of_the_page_are_planned() {
        for (name, layers) in [("smollm2-135m", 30), ("llama-3.1-8b", 32)] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("plans")
                .join(name);
            let recipe = Recipe::load(&path.join("recipe.toml"), &[]).unwrap();
            let plan = plan_of_config(&recipe).unwrap();
            assert_eq!(plan.layers.len(), layers);
            let speed = DeviceSpeed {
                flops: 1e12,
                bandwidth: Some(1e11),
            };
            let prediction = plan.costs.predict(speed);
            assert!(prediction.seconds > plan.costs.flops() / speed.flops);
        }
    }
}
