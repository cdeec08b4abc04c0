//! `burn-lti generate`

use std::fmt::{self, Display, Formatter};
use std::io::{self, BufRead, IsTerminal, Read};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn_lti_llama::config::LlamaConfig;
use burn_lti_llama::hf;
use burn_lti_llama::model::{Generation, PackedLlama, Sampling};
use burn_lti_llama::tokenizer::{ChatError, Message, Tokenizer};
use serde_json::json;

use super::{config_and_tokenizer, of_model, on_a_thread};
use crate::args::GenerateArgs;
use crate::backend::on_backend;
use crate::streams::{note, say, say_on, tell};

pub(crate) fn run(args: &GenerateArgs) -> Result<()> {
    on_a_thread(|| on_backend!(args.backend, on(args)))
}

fn on<A: AutodiffBackend>(device: &A::Device, args: &GenerateArgs) -> Result<()> {
    let sampling = sampling(args)?;
    let (config, tokenizer) = config_and_tokenizer(&args.model, &args.accept)?;
    LlamaConfig::check_accepted(&args.accept.accept, &[&config])?;
    let prompt = given_prompt(args)?;
    if args.chat && tokenizer.chat().is_none() {
        return Err(ChatError::None.into());
    }
    // What is wrong with the prompt is said before the weights are read.
    let first = prompt.map(|prompt| match args.chat {
        true => asked(&tokenizer, &conversation(args, &prompt)),
        false => Ok(tokenizer.encode_prompt(&prompt)?),
    });
    let first = first.transpose()?;
    if let Some(prompt) = &first {
        room(&config, prompt)?;
    }
    args.precision.scope::<A, _>(device, || {
        let dtype = args.dtype.dtype;
        let model = hf::load_of_config::<A::InnerBackend>(&args.model, &config, dtype, device)?;
        let writer = Writer {
            args,
            sampling,
            config,
            tokenizer,
            model: model.packed(),
        };
        match (first, args.chat) {
            (Some(prompt), chat) => writer.write(&prompt, !chat).map(drop),
            (None, true) => writer.converse(),
            (None, false) => {
                bail!(
                    "there is nothing to go on with: give --prompt TEXT, or --prompt - to read it"
                )
            }
        }
    })
}

/// The text of `--prompt`, or of the standard input for `-`.
fn given_prompt(args: &GenerateArgs) -> Result<Option<String>> {
    match args.prompt.as_deref() {
        Some("-") => {
            let mut text = String::new();
            let read = io::stdin().read_to_string(&mut text);
            read.context("the prompt cannot be read from the standard input")?;
            Ok(Some(text.strip_suffix('\n').unwrap_or(&text).to_owned()))
        }
        prompt => Ok(prompt.map(str::to_owned)),
    }
}

fn conversation(args: &GenerateArgs, first: &str) -> Vec<Message> {
    let system = args.system.iter().map(|text| Message::new("system", text));
    system.chain([Message::new("user", first)]).collect()
}

/// The tokens after which the model answers.
fn asked(tokenizer: &Tokenizer, messages: &[Message]) -> Result<Vec<u32>> {
    let template = tokenizer.chat().ok_or(ChatError::None)?;
    Ok(tokenizer.encode_as_it_is(&template.render(messages, true)?)?)
}

/// How many tokens the model can go on with.
fn room(config: &LlamaConfig, prompt: &[u32]) -> Result<usize> {
    let room = config.max_position_embeddings.saturating_sub(prompt.len());
    if prompt.is_empty() || room == 0 {
        bail!(
            "the prompt is {} tokens long; the model reads 1 to {} and needs room to go on",
            prompt.len(),
            config.max_position_embeddings - 1
        );
    }
    Ok(room)
}

fn sampling(args: &GenerateArgs) -> Result<Sampling> {
    match args.temperature {
        None | Some(0.0) => Ok(Sampling::Greedy),
        Some(temperature) => Ok(Sampling::random(temperature, args.top_p, args.seed)?),
    }
}

/// A model that goes on with texts.
struct Writer<'a, B: Backend> {
    args: &'a GenerateArgs,
    sampling: Sampling,
    config: LlamaConfig,
    tokenizer: Tokenizer,
    model: PackedLlama<B>,
}

impl<B: Backend> Writer<'_, B> {
    /// Goes on with `prompt`, printing the text as it comes, after the prompt if that is to be seen too. Gives
    /// what it wrote.
    fn write(&self, prompt: &[u32], with_prompt: bool) -> Result<String> {
        let (tokenizer, json) = (&self.tokenizer, self.args.json.json);
        let most = self.args.max_tokens.min(room(&self.config, prompt)?);
        let shown: &[u32] = if with_prompt { prompt } else { &[] };
        let mut printer = Printer::new(shown, !json);
        let mut clock = Clock::start(prompt.len());
        let generation = Generation::new(most, self.sampling);
        let tokens = generation.run(&self.model, prompt, |token| {
            clock.token();
            let go_on = !tokenizer.is_eos(token);
            if go_on {
                // A text that cannot be decoded or printed on the way is decoded at the end once more.
                printer.push(token, |ids| tokenizer.decode(ids).ok());
            }
            go_on
        });
        let tokens = tokens.with_context(|| of_model(&self.args.model))?;
        let speed = clock.stop();
        let answer = match tokens.split_last() {
            Some((last, answer)) if tokenizer.is_eos(*last) => answer,
            _ => &tokens,
        };
        let text = tokenizer.decode(&[shown, answer].concat())?;
        if json {
            say!(
                "{:#}",
                json!({
                    "text": text,
                    "tokens": tokens,
                    "prompt_tokens": speed.read,
                    "prompt_seconds": speed.reading,
                    "seconds": speed.reading + speed.writing,
                })
            );
        } else {
            say!("{}", text.strip_prefix(&printer.shown).unwrap_or(&text));
            self.say_how_it_went(answer.len(), &speed);
        }
        Ok(tokenizer.decode(answer)?)
    }

    fn say_how_it_went(&self, written: usize, speed: &Speed) {
        if written > 0 || speed.drawn == 0 {
            tell!("{speed}");
            return;
        }
        let way_out = match self.tokenizer.chat().is_some() && !self.args.chat {
            true => ": it is an instruct model, which --chat talks to",
            false => ": try another prompt, or a --temperature",
        };
        tell!("the model ended the text at once{way_out}");
    }

    /// Answers line by line, until there are no more.
    fn converse(&self) -> Result<()> {
        let asks = io::stdin().is_terminal();
        let ask = || {
            if asks {
                note(format_args!("> "));
            }
        };
        let mut messages = Vec::new();
        ask();
        for line in io::stdin().lock().lines() {
            let line = line.context("what you say cannot be read")?;
            if line.trim().is_empty() {
                ask();
                continue;
            }
            match messages.is_empty() {
                true => messages = conversation(self.args, &line),
                false => messages.push(Message::new("user", &line)),
            }
            let prompt = asked(&self.tokenizer, &messages)?;
            let answer = self.write(&prompt, false)?;
            messages.push(Message::new("assistant", &answer));
            ask();
        }
        Ok(())
    }
}

/// How long a text takes, the reading of its prompt apart from the writing.
struct Clock {
    began: Instant,
    read: usize,
    /// When the first token was drawn, which the reading of the prompt gives, and how many were.
    first: Option<Instant>,
    drawn: usize,
}

impl Clock {
    fn start(read: usize) -> Self {
        Self {
            began: Instant::now(),
            read,
            first: None,
            drawn: 0,
        }
    }

    fn token(&mut self) {
        self.first.get_or_insert_with(Instant::now);
        self.drawn += 1;
    }

    fn stop(&self) -> Speed {
        let now = Instant::now();
        let first = self.first.unwrap_or(now);
        Speed {
            read: self.read,
            reading: (first - self.began).as_secs_f64(),
            drawn: self.drawn,
            writing: (now - first).as_secs_f64(),
        }
    }
}

/// Tokens and seconds: those of the prompt, which gives the first token, and those of the tokens after it.
struct Speed {
    read: usize,
    reading: f64,
    drawn: usize,
    writing: f64,
}

impl Display for Speed {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let rate = |tokens: usize, seconds: f64| tokens as f64 / seconds.max(1e-9);
        let seconds = self.reading + self.writing;
        write!(
            f,
            "{} tokens in {seconds:.1} s: the prompt's {} at {:.1} a second",
            self.drawn,
            self.read,
            rate(self.read, self.reading)
        )?;
        match self.drawn {
            0 | 1 => Ok(()),
            drawn => write!(f, ", then {:.1} a second", rate(drawn - 1, self.writing)),
        }
    }
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
            say_on!("{new}");
            self.shown = text;
        }
    }
}
