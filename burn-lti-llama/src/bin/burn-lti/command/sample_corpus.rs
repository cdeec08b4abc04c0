//! `burn-lti sample-corpus`

use std::num::NonZeroUsize;
use std::time::Instant;

use anyhow::{Context, Result};
use burn::tensor::backend::AutodiffBackend;
use burn_lti_llama::config::LlamaConfig;
use burn_lti_llama::corpus::{Corpus, CorpusOrder, check_file, sample_corpus};
use burn_lti_llama::data::read_prompts;
use burn_lti_llama::distill::Event;
use burn_lti_llama::hf;
use serde_json::json;

use super::{check_replaceable, config_and_tokenizer, of_model, on_a_thread};
use crate::args::SampleCorpusArgs;
use crate::backend::on_backend;
use crate::progress;
use crate::streams::say;

pub(crate) fn run(args: &SampleCorpusArgs) -> Result<()> {
    check_out(args)?;
    let began = Instant::now();
    let corpus = on_a_thread(|| on_backend!(args.backend, on(args)))?;
    corpus
        .write(&args.out)
        .context("the documents could not be written")?;
    let (documents, tokens) = (corpus.documents.len(), corpus.num_tokens());
    let (blank, seconds) = (corpus.blank, began.elapsed().as_secs_f64());
    if args.json.json {
        say!(
            "{:#}",
            json!({ "documents": documents, "tokens": tokens, "blank": blank, "seconds": seconds })
        );
    } else {
        say!(
            "{documents} documents of {tokens} tokens in {seconds:.1} s: {}",
            args.out.display()
        );
        if blank > 0 {
            say!("{blank} more ended without a text and are left out");
        }
    }
    Ok(())
}

/// What would keep the file from being written is an error before the hours of drawing, not after.
fn check_out(args: &SampleCorpusArgs) -> Result<()> {
    let out = &args.out;
    check_file(out)?;
    check_replaceable(out, args.overwrite)
}

fn on<A: AutodiffBackend>(device: &A::Device, args: &SampleCorpusArgs) -> Result<Corpus> {
    let (config, tokenizer) = config_and_tokenizer(&args.model, &args.accept)?;
    LlamaConfig::check_accepted(&args.accept.accept, &[&config])?;
    const TOKENS: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 15) - 1);
    let prompts = args.prompts.as_deref().map(read_prompts).transpose()?;
    let prompts = prompts.unwrap_or_default();
    // Each once, unless it is said how much.
    let each = NonZeroUsize::new(prompts.len()).filter(|_| args.tokens.is_none());
    let tokens = match each {
        Some(_) => NonZeroUsize::MAX,
        None => args.tokens.unwrap_or(TOKENS),
    };
    let order = CorpusOrder {
        document_tokens: args.document_tokens,
        temperature: args.temperature,
        top_p: args.top_p,
        seed: args.seed,
        batch_size: args.batch_size,
        prompt: args.prompt.clone(),
        prompts,
        documents: each,
        ..CorpusOrder::new(tokens)
    };
    order.check(&config, &tokenizer)?; // every mistake before the weights are read
    args.precision.scope::<A, _>(device, || {
        let dtype = args.dtype.dtype;
        let model = hf::load_of_config::<A::InnerBackend>(&args.model, &config, dtype, device)?;
        let model = model.packed();
        let listener = progress::listener();
        listener(Event::Stage("writing"));
        let done = |done, all| listener(Event::Advanced(done, all));
        sample_corpus(&model, &tokenizer, &order, done).with_context(|| of_model(&args.model))
    })
}
