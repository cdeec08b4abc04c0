//! [`Family`]: the kinds of decoders, by their names.

/// A family of decoders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Family {
    /// `llama`
    #[default]
    Llama,
    /// `mistral`
    Mistral,
    /// `ministral`
    Ministral,
    /// `qwen2`
    Qwen2,
    /// `qwen3`
    Qwen3,
    /// `smollm3`
    SmolLm3,
    /// `phi3`
    Phi3,
    /// `granite`
    Granite,
    /// `olmo2`
    Olmo2,
    /// `olmo3`
    Olmo3,
    /// `gemma2`
    Gemma2,
    /// `gemma3_text`
    Gemma3,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Llama,
        Self::Mistral,
        Self::Ministral,
        Self::Qwen2,
        Self::Qwen3,
        Self::SmolLm3,
        Self::Phi3,
        Self::Granite,
        Self::Olmo2,
        Self::Olmo3,
        Self::Gemma2,
        Self::Gemma3,
    ];

    /// `model_type` in `config.json`.
    pub const fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Ministral => "ministral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::SmolLm3 => "smollm3",
            Self::Phi3 => "phi3",
            Self::Granite => "granite",
            Self::Olmo2 => "olmo2",
            Self::Olmo3 => "olmo3",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3_text",
        }
    }

    /// The class of transformers that computes it, as `architectures` names it.
    pub const fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Ministral => "MinistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::SmolLm3 => "SmolLM3ForCausalLM",
            Self::Phi3 => "Phi3ForCausalLM",
            Self::Granite => "GraniteForCausalLM",
            Self::Olmo2 => "Olmo2ForCausalLM",
            Self::Olmo3 => "Olmo3ForCausalLM",
            Self::Gemma2 => "Gemma2ForCausalLM",
            Self::Gemma3 => "Gemma3ForCausalLM",
        }
    }

    /// The family that `config.json` calls so.
    pub fn of(model_type: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|family| family.model_type() == model_type)
    }

    /// Whether transformers 5 opens only models of it whose width divides by the query heads.
    pub(crate) const fn needs_whole_heads(self) -> bool {
        matches!(self, Self::Llama | Self::Gemma2 | Self::Gemma3)
    }
}
