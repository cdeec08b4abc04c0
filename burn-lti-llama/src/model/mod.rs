//! The Llama decoder, generic over its projections.
//!
//! [`PlainLlama`] has ordinary `Linear`s and can be exported; [`LearningLlama`] has maps in their
//! place and can only be collapsed. Parameter names are Hugging Face's (but for the norms, whose
//! `weight` Burn calls `gamma`).
//!
//! ```
//! use burn::backend::Flex;
//! use burn_lti_llama::config::LlamaConfig;
//! use burn_lti_llama::model::{Generation, PlainLlama, Sampling};
//!
//! let config = LlamaConfig::from_json_str(
//!     r#"{"model_type": "llama", "vocab_size": 50, "hidden_size": 16, "intermediate_size": 32,
//!         "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}"#,
//!     "config.json".as_ref(),
//! )?;
//! let model = PlainLlama::<Flex>::init(&config, &Default::default());
//! let tokens = Generation::new(8, Sampling::Greedy).run(&model, &[1, 2, 3], |_| true);
//! assert_eq!(tokens.len(), 8);
//! # Ok::<_, burn_lti_llama::config::ConfigError>(())
//! ```

mod attention;
mod cache;
mod generate;
mod layer;
mod llama;
mod mlp;
mod rotary;

pub use attention::{Attention, AttentionMask};
pub use cache::{KvCache, LayerCache};
pub use generate::{Generation, Sampling};
pub use layer::{Block, LlamaLayer};
pub use llama::{LearningLlama, Llama, LlamaContext, PlainLlama};
pub use mlp::Mlp;
pub use rotary::Rotary;
