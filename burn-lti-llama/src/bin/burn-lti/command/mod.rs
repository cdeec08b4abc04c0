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
pub(crate) mod report;
pub(crate) mod sample_corpus;
pub(crate) mod start;

use anyhow::{Result, bail};
use burn::tensor::backend::AutodiffBackend;
use burn_lti_llama::config::LlamaConfig;
use burn_lti_llama::distill::{Interrupt, OutputDir, ShapeTable, search_shape};
use burn_lti_llama::recipe::{Recipe, StudentSection};
use burn_lti_llama::tokenizer::Tokenizer;
use std::path::Path;

use crate::args::AcceptArg;
use crate::progress;
use crate::streams::tell;

/// The configuration and tokenizer of a model folder, checked against one another.
fn config_and_tokenizer(dir: &Path, accept: &AcceptArg) -> Result<(LlamaConfig, Tokenizer)> {
    let config = LlamaConfig::from_dir_accepting(dir, &accept.accept)?;
    let tokenizer = Tokenizer::from_dir(dir, config.bos_token_id, &config.eos_token_ids)?;
    let tokenizer = tokenizer.for_model(config.vocab_size)?;
    Ok((config, tokenizer))
}

/// Does `work` on one of the threads that share the loops of a CPU. From another thread each loop has to wake them and
/// to be woken by them, which a model that writes does two hundred times a token. What waits for other threads must
/// not be done there.
fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| work())
}

/// In front of what a model that writes cannot do.
fn of_model(dir: &Path) -> String {
    format!("the model in {} cannot write", dir.display())
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

/// The recipe with the shape that the run which goes on in `out` began with, or with the one that is found, if it has a
/// target in its place; and what of the shape it gave then.
fn with_shape<A: AutodiffBackend>(
    recipe: &Recipe,
    out: &OutputDir,
    interrupt: &Interrupt,
    device: &A::Device,
) -> Result<(Recipe, Option<StudentSection>)> {
    if recipe.student.target.is_none() {
        return Ok((recipe.clone(), None));
    }
    let given = Some(recipe.student.clone());
    if let Some(begun) = out.begun_recipe() {
        let student = Recipe::load(&begun, &[])?.student;
        tell!("going on with the shape that the run began with: {student}");
        let recipe = recipe.clone();
        return Ok((Recipe { student, ..recipe }, given));
    }
    out.check_free(recipe)?;
    let (recipe, shapes) = search_shape::<A>(recipe, device, &progress::listener(), interrupt)?;
    tell!("{}", ShapeTable(&shapes));
    Ok((recipe, given))
}
