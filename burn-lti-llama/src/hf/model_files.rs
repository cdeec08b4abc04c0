//! [`ModelFiles`]: a model's folder, read whole or on some of its tokens.

use std::path::{Path, PathBuf};

use burn::prelude::*;
use burn_lti::tensors::TensorSet;

use super::import::load_tensors_of;
use super::{HfError, WeightType, check_weights, plain_from_tensors};
use crate::config::LlamaConfig;
use crate::model::PlainLlama;
use crate::tokenizer::{KeptTokens, Tokenizer, TokenizerError, TokenizerFiles};

/// A model's folder or GGUF file, read whole or on some of its tokens: those alone have embeddings and logits then,
/// numbered anew, and text is made of them.
///
/// ```no_run
/// # use std::path::Path;
/// use burn_lti_llama::config::LlamaConfig;
/// use burn_lti_llama::hf::ModelFiles;
///
/// let path = Path::new("teacher");
/// let whole = ModelFiles::new(path, LlamaConfig::from_dir(path)?);
/// let tokenizer = whole.tokenizer()?;
/// // The tokens of some text, and all that the tokenizer needs for them.
/// let kept = tokenizer.keep(tokenizer.encode_document("Once upon a time")?)?;
/// let small = whole.with_tokens(kept);
/// println!("{} tokens", small.config().vocab_size);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct ModelFiles {
    path: PathBuf,
    whole: LlamaConfig,
    /// Those that are kept, and the configuration with them.
    cut: Option<(KeptTokens, LlamaConfig)>,
}

impl ModelFiles {
    /// The whole model in `path`, whose configuration was read.
    pub fn new(path: &Path, config: LlamaConfig) -> Self {
        Self {
            path: path.to_owned(),
            whole: config,
            cut: None,
        }
    }

    /// The same model on these of its tokens, as [`Tokenizer::keep`] gives them.
    ///
    /// Reading its tensors panics if it has no embedding for one of them.
    pub fn with_tokens(self, kept: KeptTokens) -> Self {
        let config = self.whole.with_vocabulary(kept.ids());
        Self {
            cut: Some((kept, config)),
            ..self
        }
    }

    /// The configuration, on the tokens that are kept.
    pub fn config(&self) -> &LlamaConfig {
        self.cut.as_ref().map_or(&self.whole, |(_, config)| config)
    }

    /// The tokens that are kept, if some are gone.
    pub fn kept(&self) -> Option<&KeptTokens> {
        self.cut.as_ref().map(|(kept, _)| kept)
    }

    /// Where the tokenizer's files are, and what is kept of them.
    pub fn tokenizer_files(&self) -> TokenizerFiles<'_> {
        TokenizerFiles::new(&self.path, self.kept())
    }

    /// The tokenizer, which gives no token that the model does not know.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::of_files`] and [`Tokenizer::for_model`].
    pub fn tokenizer(&self) -> Result<Tokenizer, TokenizerError> {
        let (config, files) = (self.config(), self.tokenizer_files());
        let tokenizer = Tokenizer::of_files(files, config.bos_token_id, &config.eos_token_ids)?;
        tokenizer.for_model(config.vocab_size)
    }

    /// As [`check_weights`].
    ///
    /// # Errors
    ///
    /// As [`check_weights`].
    pub fn check_weights(&self) -> Result<(), HfError> {
        check_weights(&self.path, &self.whole)
    }

    /// As [`load_tensors`](super::load_tensors), of the embedding and the head what belongs to the tokens that are
    /// kept.
    ///
    /// # Errors
    ///
    /// As [`load_tensors`](super::load_tensors).
    pub fn tensors<B: Backend>(
        &self,
        dtype: WeightType,
        device: &B::Device,
    ) -> Result<TensorSet<B>, HfError> {
        let kept = self.kept().map(KeptTokens::ids);
        load_tensors_of(&self.path, &self.whole, kept, dtype, device)
    }

    /// The model.
    ///
    /// # Errors
    ///
    /// As [`load_of_config`](super::load_of_config).
    pub fn load<B: Backend>(
        &self,
        dtype: WeightType,
        device: &B::Device,
    ) -> Result<PlainLlama<B>, HfError> {
        plain_from_tensors(self.config(), &self.tensors(dtype, device)?, device)
    }
}
