//! Writes a Llama of any shape that was never trained.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use burn_lti_benches::random_teacher::{SMOLLM2_135M, STD, STORIES_260K, config, write};
use clap::{Parser, ValueEnum};

/// Writes a Llama that was never trained to a Hugging Face folder.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where it goes.
    out: PathBuf,
    /// What it is shaped as.
    #[arg(long, value_enum)]
    shape: Named,
    /// Another number of layers.
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// Another vocabulary.
    #[arg(long, value_name = "N")]
    vocab: Option<usize>,
    /// Another width, of which each head has its part.
    #[arg(long, value_name = "N")]
    hidden: Option<usize>,
    /// The standard deviation of its weights.
    #[arg(long, value_name = "STD", default_value_t = STD)]
    std: f64,
    /// A folder whose tokenizer it has; none if absent.
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Named {
    /// 5 layers of width 64.
    #[value(name = "stories260k")]
    Stories260k,
    /// 30 layers of width 576, a vocabulary of 49,152.
    #[value(name = "smollm2-135m")]
    Smollm2,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut config = config(match arguments.shape {
        Named::Stories260k => STORIES_260K,
        Named::Smollm2 => SMOLLM2_135M,
    })?;
    config.num_hidden_layers = arguments.layers.unwrap_or(config.num_hidden_layers);
    config.vocab_size = arguments.vocab.unwrap_or(config.vocab_size);
    if let Some(hidden) = arguments.hidden {
        config.head_dim = hidden / config.num_attention_heads;
        config.hidden_size = hidden;
    }
    config.check(&arguments.out)?;
    write(&config, arguments.std, &arguments.out)?;
    if let Some(folder) = &arguments.tokenizer {
        for name in ["tokenizer.json", "tokenizer_config.json"] {
            fs::copy(folder.join(name), arguments.out.join(name))?;
        }
    }
    Ok(())
}
