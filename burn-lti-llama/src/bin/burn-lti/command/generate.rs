//! `burn-lti generate`

use std::io::{self, Write};
use std::time::Instant;

use anyhow::{Result, bail};
use burn::tensor::backend::AutodiffBackend;
use burn_lti_llama::hf;
use burn_lti_llama::model::{Generation, Sampling};
use serde_json::json;

use super::config_and_tokenizer;
use crate::args::GenerateArgs;
use crate::backend::on_backend;

pub(crate) fn run(args: &GenerateArgs) -> Result<()> {
    on_backend!(args.backend, on(args))
}

fn on<A: AutodiffBackend>(device: &A::Device, args: &GenerateArgs) -> Result<()> {
    let sampling = sampling(args)?;
    let (config, tokenizer) = config_and_tokenizer(&args.model)?;
    let prompt = tokenizer.encode_prompt(&args.prompt)?;
    let room = config.max_position_embeddings.saturating_sub(prompt.len());
    if prompt.is_empty() || room == 0 {
        bail!(
            "the prompt is {} tokens long; the model reads 1 to {} and needs room to go on",
            prompt.len(),
            config.max_position_embeddings - 1
        );
    }
    let model = hf::load_as::<A::InnerBackend>(&args.model, args.dtype.dtype, device)?.packed();

    let began = Instant::now();
    let mut printer = Printer::new(&prompt, !args.json.json);
    let generation = Generation::new(args.max_tokens.min(room), sampling);
    let tokens = generation.run(&model, &prompt, |token| {
        let go_on = !tokenizer.is_eos(token);
        if go_on {
            // A text that cannot be decoded or printed on the way is decoded at the end once more.
            printer.push(token, |ids| tokenizer.decode(ids).ok());
        }
        go_on
    })?;
    let text = tokenizer.decode(&[prompt.as_slice(), &tokens].concat())?;
    if args.json.json {
        let seconds = began.elapsed().as_secs_f64();
        println!(
            "{:#}",
            json!({ "text": text, "tokens": tokens, "seconds": seconds })
        );
    } else {
        println!("{}", text.strip_prefix(&printer.shown).unwrap_or(&text));
    }
    Ok(())
}

fn sampling(args: &GenerateArgs) -> Result<Sampling> {
    let Some(temperature) = args.temperature else {
        return Ok(Sampling::Greedy);
    };
    Ok(Sampling::random(temperature, args.top_p, args.seed)?)
}

/// Prints the text as it grows. Tokens are decoded together, because a character may take several.
struct Printer {
    ids: Vec<u32>,
    shown: String,
    enabled: bool,
}

impl Printer {
    fn new(prompt: &[u32], enabled: bool) -> Self {
        Self {
            ids: prompt.to_vec(),
            shown: String::new(),
            enabled,
        }
    }

    fn push(&mut self, token: u32, decode: impl Fn(&[u32]) -> Option<String>) {
        self.ids.push(token);
        let Some(text) = decode(&self.ids).filter(|_| self.enabled) else {
            return;
        };
        // An unfinished character decodes to a replacement mark that the next token will change.
        if text.ends_with('\u{fffd}') {
            return;
        }
        if let Some(new) = text.strip_prefix(&self.shown) {
            print!("{new}");
            let _ = io::stdout().flush();
            self.shown = text;
        }
    }
}
