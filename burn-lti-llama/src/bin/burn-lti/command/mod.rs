//! One file a command.

pub(crate) mod cache;
pub(crate) mod collapse;
pub(crate) mod compare;
pub(crate) mod convert;
pub(crate) mod demo;
pub(crate) mod devices;
pub(crate) mod distill;
pub(crate) mod eval;
pub(crate) mod generate;
pub(crate) mod logits;
pub(crate) mod plan;
pub(crate) mod sample_corpus;
pub(crate) mod start;

use anyhow::{Result, bail};
use burn_lti_llama::config::LlamaConfig;
use burn_lti_llama::distill::Interrupt;
use burn_lti_llama::tokenizer::Tokenizer;
use std::path::Path;

/// The configuration and tokenizer of a model folder, checked against one another.
fn config_and_tokenizer(dir: &Path) -> Result<(LlamaConfig, Tokenizer)> {
    let config = LlamaConfig::from_dir(dir)?;
    let tokenizer = Tokenizer::from_dir(dir, config.bos_token_id, &config.eos_token_ids)?;
    let tokenizer = tokenizer.for_model(config.vocab_size)?;
    Ok((config, tokenizer))
}

/// Checks that a file can be written where `out` is, before the work is done: it is not there, or a regular file that
/// may be replaced, in a folder that is.
fn check_replaceable(out: &Path, overwrite: bool) -> Result<()> {
    match out.symlink_metadata() {
        Ok(found) if !found.is_file() => bail!(
            "{} is no regular file, and is not replaced: choose another --out",
            out.display()
        ),
        Ok(_) if !overwrite => bail!(
            "{} is there already: choose another --out, or add --overwrite to replace it",
            out.display()
        ),
        _ => {}
    }
    let folder = out.parent().filter(|folder| *folder != Path::new(""));
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        bail!(
            "{} is no folder: make it, or choose another --out",
            folder.display()
        );
    }
    Ok(())
}

/// What Ctrl-C asks. Pressed once more, it ends the program at once.
fn interrupted_by_ctrl_c() -> Result<Interrupt> {
    let interrupt = Interrupt::default();
    let asked = interrupt.clone();
    ctrlc::set_handler(move || {
        if asked.is_asked() {
            std::process::exit(130); // who presses it twice does not want to wait
        }
        asked.ask();
    })?;
    Ok(interrupt)
}
