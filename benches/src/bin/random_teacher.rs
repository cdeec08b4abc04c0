//! Writes a Llama of any shape that was never trained.

use std::path::PathBuf;

use anyhow::Result;
use burn_lti_benches::random_teacher::{SMOLLM2_135M, STORIES_260K, config, write};
use clap::{Parser, ValueEnum};

/// Writes a Llama that was never trained to a Hugging Face folder, without a tokenizer.
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
    config.check(&arguments.out)?;
    write(&config, &arguments.out)
}
