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
//! let tokens = Generation::new(8, Sampling::Greedy).run(&model, &[1, 2, 3], |_| true)?;
//! assert_eq!(tokens.len(), 8);
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

mod attention;
mod error;
mod finite;
mod gains;
mod generate;
mod layer;
mod llama;
mod mlp;
mod rotary;
mod sampling;

pub use attention::{Attention, Seen};
pub use burn_lti::kernels::{AttentionMask, KvCache};
pub use error::GenerationError;
pub use finite::{NotFinite, Place, first_not_finite};
pub use gains::{foldable_gains, with_folded_gains};
pub use generate::{Generation, NewText, Texts};
pub use layer::LlamaLayer;
pub use llama::{LearningLlama, Llama, LlamaContext, PackedLlama, PlainLlama};
pub use mlp::Mlp;
pub use rotary::Rotary;
pub use sampling::Sampling;

/// A small model whose numbers are the same in every test.
#[cfg(test)]
pub(crate) mod fixture {
    use burn::backend::Flex;
    use burn::module::{ModuleMapper, Param};
    use burn::prelude::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::PlainLlama;
    use crate::config::LlamaConfig;

    /// Of two layers, with `vocab` tokens: BOS is 1, EOS is 2. It reads 48 tokens.
    pub(crate) fn model(vocab: usize) -> PlainLlama<Flex> {
        model_on(vocab)
    }

    /// The same on any backend.
    pub(crate) fn model_on<B: Backend>(vocab: usize) -> PlainLlama<B> {
        let json = format!(
            r#"{{"model_type": "llama", "vocab_size": {vocab}, "hidden_size": 16,
                "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
                "num_key_value_heads": 2, "max_position_embeddings": 48, "bos_token_id": 1,
                "eos_token_id": 2}}"#
        );
        let config = LlamaConfig::from_json_str(&json, "config.json".as_ref()).unwrap();
        let model = PlainLlama::init(&config, &Default::default());
        let mut rng = StdRng::seed_from_u64(0);
        model.map(&mut Fill(|| rng.random_range(-1.0..1.0)))
    }

    /// One of which no weight is a number.
    pub(crate) fn broken_model(vocab: usize) -> PlainLlama<Flex> {
        model(vocab).map(&mut Fill(|| f32::NAN))
    }

    /// Fills every weight with what a function gives.
    struct Fill<F>(F);

    impl<B: Backend, F: FnMut() -> f32> ModuleMapper<B> for Fill<F> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            param.map(|old| {
                let values: Vec<f32> = (0..old.shape().num_elements())
                    .map(|_| (self.0)())
                    .collect();
                Tensor::from_data(TensorData::new(values, old.shape()), &old.device())
            })
        }
    }
}
