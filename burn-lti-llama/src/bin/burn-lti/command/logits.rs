//! `burn-lti logits`

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use burn::data::dataloader::batcher::Batcher;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::files::write_atomically;
use burn_lti_llama::config::LlamaConfig;
use burn_lti_llama::data::{TokenBatcher, encode, pack, read_documents, text_files};
use burn_lti_llama::hf;
use burn_lti_llama::model::NotFinite;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::{check_replaceable, config_and_tokenizer};
use crate::args::LogitsArgs;
use crate::backend::on_backend;
use crate::streams::say;

pub(crate) fn run(args: &LogitsArgs) -> Result<()> {
    on_backend!(args.backend, on(args))
}

fn on<A: AutodiffBackend>(device: &A::Device, args: &LogitsArgs) -> Result<()> {
    check_replaceable(&args.out, args.overwrite)?;
    let (config, tokenizer) = config_and_tokenizer(&args.model, &args.accept)?;
    LlamaConfig::check_accepted(&args.accept.accept, &[&config])?;
    let mut rows = Vec::new();
    for file in &text_files(&args.text)? {
        let mut documents = read_documents(file, args.field.as_deref())?;
        documents.truncate(args.documents - rows.len());
        rows.extend(encode(&tokenizer, documents)?);
    }
    let longest = args.tokens.min(config.max_position_embeddings);
    let length = rows.iter().map(Vec::len).min().unwrap_or(0).min(longest);
    if length == 0 {
        bail!("no token is left to compute logits for: give more --documents or --tokens");
    }
    let ids: Vec<i64> = rows
        .iter()
        .flat_map(|row| row[..length].iter().map(|id| i64::from(*id)))
        .collect();
    let sequences = rows
        .into_iter()
        .flat_map(|row| pack([row[..length].to_vec()], length))
        .collect::<Vec<_>>();
    let count = sequences.len();

    let model =
        hf::load_of_config::<A::InnerBackend>(&args.model, &config, args.dtype.dtype, device)?;
    let batch = TokenBatcher.batch(sequences, device);
    let logits: Vec<f32> = model.logits(&batch).into_data().iter().collect();
    if !logits.iter().all(|logit| logit.is_finite()) {
        let called = format!("the model in {}", args.model.display());
        NotFinite::check(&called, &model, &batch)?;
    }
    let logits: Vec<u8> = logits.into_iter().flat_map(f32::to_le_bytes).collect();
    let ids: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();

    let views = [
        (
            "input_ids",
            TensorView::new(Dtype::I64, vec![count, length], &ids)?,
        ),
        (
            "logits",
            TensorView::new(Dtype::F32, vec![count, length, config.vocab_size], &logits)?,
        ),
    ];
    let file = safetensors::serialize(views, None::<HashMap<String, String>>)?;
    write_atomically(&args.out, &file).context("the logits could not be written")?;
    say!(
        "{count} documents of {length} tokens: {}",
        args.out.display()
    );
    Ok(())
}
