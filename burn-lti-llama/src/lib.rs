//! The Llama family for [`burn_lti`]: configuration, model, Hugging Face files and GGUF, data, recipes.
//!
//! | module | what it does |
//! |---|---|
//! | [`config`] | `config.json`, checked |
//! | [`model`] | the decoder, its cache, generation |
//! | [`hf`] | Hugging Face folders in and out |
//! | [`gguf`], [`convert`] | the files of llama.cpp, read as such a folder; from one form into the other |
//! | [`tokenizer`], [`data`] | text to packed batches |
//! | [`recipe`], [`plan`] | what the user wants, and what follows from it |
//! | [`distill`] | a recipe carried out, from teacher to exported student |
//! | [`compare`] | one recipe carried out from several starts, compared |
//! | [`report`] | what became of a run, as a page |
//! | [`corpus`] | text that a model writes for its students |
//! | [`hashes`] | whether what a run reads is what another run read |
//! | [`eval`] | evaluates a student against its teacher |
//! | [`demo`] | all of it on a teacher made from nothing |
//!
//! The command `burn-lti`, `compare`, `report` and `demo` are there with the feature `cli`, which is on by default.

/// Gives an error enum a `From` of each error that its variant `Part` passes on as it is.
macro_rules! passes_on {
    ($whole:ty: $($part:ty),+ $(,)?) => {
        $(impl From<$part> for $whole {
            fn from(error: $part) -> Self {
                Self::Part(Box::new(error))
            }
        })+
    };
}

#[cfg(feature = "cli")]
pub mod compare;
pub mod config;
pub mod convert;
pub mod corpus;
pub mod data;
#[cfg(feature = "cli")]
pub mod demo;
pub mod distill;
pub mod eval;
mod family;
pub mod gguf;
pub mod hashes;
pub mod hf;
pub mod model;
pub mod plan;
pub mod recipe;
#[cfg(feature = "cli")]
pub mod report;
pub mod tokenizer;
