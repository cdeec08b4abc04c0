//! [`Architecture`]: the families by the names that GGUF files have for them.

/// A family of models, as GGUF files know it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Architecture {
    /// `general.architecture`
    pub(crate) name: &'static str,
    /// `model_type` in `config.json`
    pub(crate) model_type: &'static str,
    /// The rows of queries and keys lie so that rotary pairs are neighbours. Elsewhere, and in Hugging Face's files
    /// always, the first half of a head turns against the second.
    pub(crate) paired: bool,
    /// Gains of norms are told from nothing; in Hugging Face's files from one.
    pub(crate) whole_gains: bool,
    /// One tensor holds queries, keys and values, another gate and up.
    pub(crate) fused: bool,
    /// Blocks are normed at both sides.
    pub(crate) output_norms: bool,
    /// Llama 3's frequencies may stand in a tensor of factors.
    pub(crate) has_rope_factors: bool,
    /// llama.cpp opens only models whose query heads together are as wide as the model.
    pub(crate) needs_whole_width: bool,
}

impl Architecture {
    const PLAIN: Self = Self {
        name: "llama",
        model_type: "llama",
        paired: true,
        whole_gains: false,
        fused: false,
        output_norms: false,
        has_rope_factors: false,
        needs_whole_width: false,
    };

    /// Those that are read and written.
    pub(crate) const ALL: [Self; 7] = [
        Self {
            has_rope_factors: true,
            ..Self::PLAIN
        },
        Self {
            name: "qwen2",
            model_type: "qwen2",
            paired: false,
            needs_whole_width: true,
            ..Self::PLAIN
        },
        Self {
            name: "qwen3",
            model_type: "qwen3",
            paired: false,
            ..Self::PLAIN
        },
        Self {
            name: "smollm3",
            model_type: "smollm3",
            ..Self::PLAIN
        },
        Self {
            name: "phi3",
            model_type: "phi3",
            paired: false,
            fused: true,
            needs_whole_width: true,
            ..Self::PLAIN
        },
        Self {
            name: "granite",
            model_type: "granite",
            has_rope_factors: true,
            ..Self::PLAIN
        },
        Self {
            name: "gemma3",
            model_type: "gemma3_text",
            paired: false,
            whole_gains: true,
            output_norms: true,
            ..Self::PLAIN
        },
    ];

    /// The one that files call so.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        const ALL: &[Architecture] = &Architecture::ALL;
        ALL.iter().find(|it| it.name == name)
    }

    /// The one as which a model of this `model_type` is written. A Mistral is a Llama there.
    pub(crate) fn of_model_type(model_type: &str) -> Option<&'static Self> {
        let model_type = match model_type {
            "mistral" | "ministral" => "llama",
            other => other,
        };
        const ALL: &[Architecture] = &Architecture::ALL;
        ALL.iter().find(|it| it.model_type == model_type)
    }
}
