//! Text that a model writes itself: what its students can be calibrated and trained on where there
//! is no other.
//!
//! Every document begins with BOS, or with a prompt, and is drawn token by token until the model
//! ends it. Many are drawn at once, and what comes out does not depend on how many.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;

use burn::prelude::*;
use burn_lti::decoder::Project;
use burn_lti::files::{FileError, write_atomically};
use serde_json::{Value, json};

use crate::config::LlamaConfig;
use crate::data::{Document as Prompt, is_blank};
use crate::model::{Generation, GenerationError, Llama, NewText, Sampling, Texts};
use crate::tokenizer::{ChatError, Message, Tokenizer, TokenizerError};

const NO_BOS: &str = "no BOS token is known to begin a text with: set `bos_token_id` in config.json, or \
                      give --prompt TEXT";
const EMPTY_PROMPT: &str =
    "the prompt has no tokens: give --prompt a text, or leave it out to begin with BOS";

/// What a model is to write.
///
/// ```
/// use std::num::NonZeroUsize;
/// use burn_lti_llama::corpus::CorpusOrder;
///
/// let order = CorpusOrder { seed: 7, ..CorpusOrder::new(NonZeroUsize::MIN) };
/// assert_eq!((order.temperature, order.top_p), (0.8, 0.95));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct CorpusOrder {
    /// Tokens of all documents together, with those that begin and end them. The last document is
    /// whole, so there may be a few more.
    pub tokens: NonZeroUsize,
    /// The most tokens of a document, with those that begin it; as many as the model reads, or
    /// [`DOCUMENT_TOKENS`](Self::DOCUMENT_TOKENS) if that is less, unless given.
    pub document_tokens: Option<NonZeroUsize>,
    /// Divides the logits.
    pub temperature: f64,
    /// Only the likeliest tokens that together have this probability are drawn.
    pub top_p: f64,
    /// The same seed gives the same documents.
    pub seed: u64,
    /// Documents that are drawn at once; as many as have their keys and values in
    /// [`CACHE_BYTES`](Self::CACHE_BYTES) in float32, at most [`MOST_DOCUMENTS`](Self::MOST_DOCUMENTS), unless
    /// given. On a CPU, in float32, the documents stay the same bit for bit; elsewhere, but for how the
    /// backend's products round.
    pub batch_size: Option<NonZeroUsize>,
    /// What every document begins with; BOS alone, unless given.
    pub prompt: Option<String>,
    /// What documents begin with in turn, in the place of `prompt`, if there are any: texts, or conversations that
    /// the model answers.
    pub prompts: Vec<Prompt>,
    /// The most documents, those without a text counted; as many as the tokens take, unless given.
    pub documents: Option<NonZeroUsize>,
}

impl CorpusOrder {
    /// The most tokens of a document, unless told otherwise: two windows of a recipe's default
    /// `seq_len`.
    pub const DOCUMENT_TOKENS: usize = 256;
    /// Below 1, with [`TOP_P`](Self::TOP_P): a small model gives the thousands of unlikely tokens too
    /// much, and one such token spoils all that follow it (Holtzman et al. 2020). A student would be
    /// calibrated on states that no text leads to. Lower still, the texts become alike. PyTorch's
    /// calibrated start, with which this one is compared, draws with the same two values.
    pub const TEMPERATURE: f64 = 0.8;
    /// See [`TEMPERATURE`](Self::TEMPERATURE).
    pub const TOP_P: f64 = 0.95;
    /// What keys and values of documents of full length may take, unless told otherwise.
    pub const CACHE_BYTES: usize = 1 << 30;
    /// Documents drawn at once, unless told otherwise. Beyond it a CPU gains little.
    pub const MOST_DOCUMENTS: usize = 128;

    /// So many tokens, with the default of everything else and seed 0.
    pub const fn new(tokens: NonZeroUsize) -> Self {
        Self {
            tokens,
            document_tokens: None,
            temperature: Self::TEMPERATURE,
            top_p: Self::TOP_P,
            seed: 0,
            batch_size: None,
            prompt: None,
            prompts: Vec::new(),
            documents: None,
        }
    }

    /// Checks the order against the model that is to carry it out: all that can be wrong with it.
    ///
    /// # Errors
    ///
    /// - [`CorpusError::Generation`]: the temperature or the nucleus is out of range.
    /// - [`CorpusError::Refused`]: a document would be longer than the model reads; there is neither a
    ///   prompt nor a BOS to begin with; what a document begins with is nothing, or fills it.
    /// - [`CorpusError::Tokenizer`]: the prompt has no tokens.
    pub fn check(&self, config: &LlamaConfig, tokenizer: &Tokenizer) -> Result<(), CorpusError> {
        self.resolve(config, tokenizer).map(drop)
    }

    fn resolve(&self, config: &LlamaConfig, tokenizer: &Tokenizer) -> Result<Start, CorpusError> {
        let refused = |reason: &str| CorpusError::Refused(reason.to_owned());
        let sampling = Sampling::random(self.temperature, self.top_p, self.seed)?;
        let limit = config.max_position_embeddings;
        let document_tokens = match self.document_tokens {
            Some(tokens) => tokens.get(),
            None => Self::DOCUMENT_TOKENS.min(limit),
        };
        if document_tokens > limit {
            return Err(CorpusError::Refused(format!(
                "documents of {document_tokens} tokens are longer than the model reads: \
                 --document-tokens can be at most {limit}"
            )));
        }
        let beginnings = match (self.prompts.as_slice(), &self.prompt) {
            ([], None) => {
                let bos = tokenizer.bos_id().ok_or_else(|| refused(NO_BOS))?;
                vec![Beginning {
                    tokens: vec![bos],
                    adds_bos: true,
                    asked: None,
                }]
            }
            ([], Some(text)) => vec![Beginning::of_text(text, tokenizer)?],
            (prompts, _) => prompts
                .iter()
                .map(|prompt| Beginning::of(prompt, tokenizer))
                .collect::<Result<_, _>>()?,
        };
        for (number, Beginning { tokens, .. }) in (1..).zip(&beginnings) {
            let which = match self.prompts.len() {
                0 => String::new(),
                _ => format!("prompt {number}: "),
            };
            if tokens.is_empty() {
                return Err(CorpusError::Refused(format!("{which}{EMPTY_PROMPT}")));
            }
            if tokens.len() >= document_tokens {
                return Err(CorpusError::Refused(format!(
                    "{which}a document begins with {} tokens and may have {document_tokens}: give a shorter prompt or \
                     more --document-tokens",
                    tokens.len()
                )));
            }
        }
        let shortest = beginnings.iter().map(|it| it.tokens.len()).min();
        let most = document_tokens - shortest.unwrap_or(0);
        Ok(Start {
            beginnings,
            document_tokens,
            generation: Generation::new(most, sampling),
            rooms: self.rooms(config, document_tokens),
        })
    }

    fn rooms(&self, config: &LlamaConfig, document_tokens: usize) -> NonZeroUsize {
        if let Some(documents) = self.batch_size {
            return documents;
        }
        let of_token = 2 * config.num_hidden_layers * config.axes().key_value.width() * 4;
        let documents = Self::CACHE_BYTES / (of_token * document_tokens);
        let documents = documents.clamp(1, Self::MOST_DOCUMENTS);
        NonZeroUsize::new(documents).unwrap_or(NonZeroUsize::MIN)
    }
}

/// A text that a model wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Its tokens as they were drawn: what it began with, and EOS if the model drew it.
    pub tokens: Vec<u32>,
    /// The tokens as text, which encodes to them again: without the BOS that begins every document and the EOS that
    /// ends it, but with special tokens that stand in it; of an answered conversation the answer. It is never blank.
    pub text: String,
    /// The conversation that was answered, if it was one.
    pub asked: Option<Vec<Message>>,
}

/// What a model wrote.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Corpus {
    /// The documents, in the order of their numbers.
    pub documents: Vec<Document>,
    /// Documents that ended without a text. They are not among the others.
    pub blank: usize,
}

/// Why a model could not write a corpus.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CorpusError {
    /// The order or a prompt does not suit the model, the model says nothing, or the file's name is not one to write
    /// to.
    #[error("{0}")]
    Refused(String),
    /// The text could not be generated.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// The tokenizer failed on the prompt or on a document.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The file could not be written.
    #[error(transparent)]
    Write(#[from] FileError),
}

/// Lets `model` write the documents of `order`, telling `done` after each token how many of how many
/// there are.
///
/// A document ends with EOS, before another BOS, or where it has as many tokens as it may. Document `n`
/// is drawn by the random numbers of row `n`; documents are taken in their order until they have the
/// tokens that were asked for. When one ends, the next takes its room in the batch.
///
/// The model is [`packed`](Llama::packed) for it, which on a CPU takes the memory of its weights once more.
/// Hand over a packed one to have them once.
///
/// # Errors
///
/// - What [`CorpusOrder::check`] finds.
/// - [`CorpusError::Generation`]: the model computes no numbers.
/// - [`CorpusError::Refused`]: document after document ends without a text.
/// - [`CorpusError::Tokenizer`]: the tokenizer failed on a document.
pub fn sample_corpus<B: Backend, P: Project<B>, E: Project<B>>(
    model: &Llama<B, P, E>,
    tokenizer: &Tokenizer,
    order: &CorpusOrder,
    done: impl FnMut(usize, usize),
) -> Result<Corpus, CorpusError> {
    let start = order.resolve(model.config(), tokenizer)?;
    let (generation, rooms) = (start.generation, start.rooms);
    let mut writing = Writing {
        tokenizer,
        most: order.documents.map_or(u64::MAX, |most| most.get() as u64),
        all: order.tokens.get(),
        expected: order
            .documents
            .map_or(usize::MAX, |most| {
                most.get().saturating_mul(start.document_tokens)
            })
            .min(order.tokens.get()),
        start,
        tokens: 0,
        corpus: Corpus::default(),
        in_vain: 0,
        begun: 0,
        taken: 0,
        going: BTreeMap::new(),
        ended: BTreeMap::new(),
        drawn: 0,
        endings: 0,
        told: 0,
        done,
        error: None,
    };
    generation.write(&model.clone().packed(), rooms, &mut writing)?;
    match writing.error {
        Some(error) => Err(error),
        None => Ok(writing.corpus),
    }
}

/// Documents on their way into a corpus.
struct Writing<'a, F> {
    start: Start,
    tokenizer: &'a Tokenizer,
    /// The documents that are wanted, at most.
    most: u64,
    /// The tokens that are wanted.
    all: usize,
    /// How many there can be.
    expected: usize,
    /// Those of the corpus.
    tokens: usize,
    corpus: Corpus,
    /// Documents without a text, one after the other, before the next that is taken.
    in_vain: usize,
    /// The number of the next document to begin.
    begun: u64,
    /// The number of the next to be taken into the corpus.
    taken: u64,
    /// How many tokens the documents have that are being written, by number.
    going: BTreeMap<u64, usize>,
    /// What was drawn of those that wait for one before them.
    ended: BTreeMap<u64, Vec<u32>>,
    /// Tokens of all documents.
    drawn: usize,
    /// Documents that have ended.
    endings: usize,
    told: usize,
    done: F,
    error: Option<CorpusError>,
}

impl<F: FnMut(usize, usize)> Texts for Writing<'_, F> {
    /// One more, if those that have begun are expected to be too short.
    fn next(&mut self) -> Option<NewText> {
        // Tokens drawn for each ending: how far a document is from its end, wherever it is.
        if self.begun == self.most {
            return None;
        }
        let most = self.start.document_tokens;
        let left = match self.endings {
            0 => most,
            endings => (self.drawn / endings).max(1),
        };
        let of_going = self.going.values().map(|tokens| (tokens + left).min(most));
        let of_ended = self.ended.iter();
        let of_ended = of_ended.map(|(row, drawn)| self.start.of(*row).tokens.len() + drawn.len());
        let expected = self.tokens + of_going.sum::<usize>() + of_ended.sum::<usize>();
        if expected >= self.all && !self.going.is_empty() {
            return None;
        }
        let row = self.begun;
        let prompt = self.start.of(row).tokens.clone();
        self.begun += 1;
        self.drawn += prompt.len();
        self.going.insert(row, prompt.len());
        Some(NewText { row, prompt })
    }

    fn push(&mut self, row: u64, token: u32) -> bool {
        let ending = Ending::of(token, self.tokenizer);
        if ending != Some(Ending::NextBos) {
            self.drawn += 1;
            *self.going.entry(row).or_default() += 1;
        }
        self.told = self.told.max(self.drawn.min(self.expected));
        (self.done)(self.told, self.expected);
        ending.is_none()
            && self
                .going
                .get(&row)
                .is_none_or(|tokens| *tokens < self.start.document_tokens)
    }

    fn end(&mut self, row: u64, tokens: Vec<u32>) -> bool {
        self.endings += 1;
        self.going.remove(&row);
        self.ended.insert(row, tokens);
        while self.tokens < self.all
            && let Some(tokens) = self.ended.remove(&self.taken)
        {
            let row = self.taken;
            self.taken += 1;
            if let Err(error) = self.take(row, tokens) {
                self.error = Some(error);
                return false;
            }
        }
        self.tokens < self.all && self.taken < self.most
    }
}

impl<F> Writing<'_, F> {
    /// Takes the next document into the corpus.
    fn take(&mut self, row: u64, drawn: Vec<u32>) -> Result<(), CorpusError> {
        let document = document(self.start.of(row), drawn, self.tokenizer)?;
        // Special tokens alone are no text, and an answer is one by itself.
        let begins = match &document.asked {
            Some(_) => self.start.of(row).tokens.len(),
            None => 0,
        };
        if !is_blank(&self.tokenizer.decode(&document.tokens[begins..])?) {
            self.tokens += document.tokens.len();
            self.corpus.documents.push(document);
            self.in_vain = 0;
            return Ok(());
        }
        self.corpus.blank += 1;
        self.in_vain += 1;
        match self.in_vain == BLANK_ON_END {
            true => Err(CorpusError::Refused(format!(
                "the model ended {BLANK_ON_END} documents on end without a text: give --prompt TEXT \
                 to begin with, or a higher --temperature"
            ))),
            false => Ok(()),
        }
    }
}

impl Document {
    /// What is written of it: a conversation with its answer, or a text.
    fn record(&self) -> Value {
        match &self.asked {
            Some(asked) => {
                let answer = Message::new("assistant", &self.text);
                let messages: Vec<&Message> = asked.iter().chain([&answer]).collect();
                json!({ "messages": messages })
            }
            None => json!({ "text": self.text }),
        }
    }
}

impl Corpus {
    /// Tokens of all documents, with those that begin and end them.
    pub fn num_tokens(&self) -> usize {
        let lengths = self.documents.iter().map(|document| document.tokens.len());
        lengths.sum()
    }

    /// The tokens of each document, without the text.
    pub fn into_tokens(self) -> Vec<Vec<u32>> {
        let documents = self.documents.into_iter();
        documents.map(|document| document.tokens).collect()
    }

    /// Writes the texts as JSON lines: what [`read_documents`](crate::data::read_documents) reads.
    ///
    /// A text that is read back has tokens of the tokenizer's choice, where the model may have spelt a
    /// word otherwise, and an EOS also where the document was cut at its full length.
    ///
    /// # Errors
    ///
    /// - [`CorpusError::Refused`]: the name of the file does not end in `.jsonl`.
    /// - [`CorpusError::Write`]: the system refused; what was there before is untouched.
    pub fn write(&self, file: &Path) -> Result<(), CorpusError> {
        check_file(file)?;
        let lines: String = self
            .documents
            .iter()
            .map(|document| format!("{}\n", document.record()))
            .collect();
        Ok(write_atomically(file, lines.as_bytes())?)
    }
}

/// Checks that a corpus can have this name, before it is sampled.
///
/// # Errors
///
/// [`CorpusError::Refused`]: it does not end in `.jsonl`.
pub fn check_file(file: &Path) -> Result<(), CorpusError> {
    match file.extension() {
        Some(extension) if extension.eq_ignore_ascii_case("jsonl") => Ok(()),
        _ => Err(CorpusError::Refused(format!(
            "{} does not end in .jsonl, by which it would be known when it is read: rename it",
            file.display()
        ))),
    }
}

/// How every document begins, how it goes on, and how many do at once.
struct Start {
    /// In turn.
    beginnings: Vec<Beginning>,
    document_tokens: usize,
    generation: Generation,
    rooms: NonZeroUsize,
}

impl Start {
    /// What the document with this number begins with.
    fn of(&self, row: u64) -> &Beginning {
        &self.beginnings[(row % self.beginnings.len() as u64) as usize]
    }
}

/// What a document begins with.
struct Beginning {
    tokens: Vec<u32>,
    /// Its first token is a BOS that every document has, and that is no part of the prompt's text.
    adds_bos: bool,
    /// The conversation that is to be answered.
    asked: Option<Vec<Message>>,
}

impl Beginning {
    fn of(prompt: &Prompt, tokenizer: &Tokenizer) -> Result<Self, CorpusError> {
        match prompt {
            Prompt::Text(text) => Self::of_text(text, tokenizer),
            Prompt::Messages(messages) => {
                let template = tokenizer
                    .chat()
                    .ok_or(TokenizerError::Chat(ChatError::None))?;
                let asked = template
                    .render(messages, true)
                    .map_err(TokenizerError::Chat)?;
                Ok(Self {
                    tokens: tokenizer.encode_as_it_is(&asked)?,
                    adds_bos: false,
                    asked: Some(messages.clone()),
                })
            }
        }
    }

    fn of_text(text: &str, tokenizer: &Tokenizer) -> Result<Self, CorpusError> {
        let tokens = tokenizer.encode_opening(text)?;
        let bos = tokenizer.bos_id().filter(|bos| tokens.first() == Some(bos));
        let written = bos
            .map(|bos| tokenizer.decode_as_it_is(&[bos]))
            .transpose()?;
        Ok(Self {
            adds_bos: written.is_some_and(|bos| !text.starts_with(bos.trim())),
            tokens,
            asked: None,
        })
    }
}

/// Documents without a text, one after the other, after which no more are drawn.
const BLANK_ON_END: usize = 256;

/// What makes a document end before its full length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Eos,
    /// The BOS of another document: models that learned texts laid end to end draw it in the place of
    /// EOS. It is no part of the document.
    NextBos,
}

impl Ending {
    fn of(token: u32, tokenizer: &Tokenizer) -> Option<Self> {
        if tokenizer.is_eos(token) {
            return Some(Self::Eos); // which may be BOS too
        }
        (tokenizer.bos_id() == Some(token)).then_some(Self::NextBos)
    }
}

/// The document of what was drawn after its beginning.
fn document(
    beginning: &Beginning,
    mut row: Vec<u32>,
    tokenizer: &Tokenizer,
) -> Result<Document, CorpusError> {
    let ending = row.last().and_then(|last| Ending::of(*last, tokenizer));
    if ending == Some(Ending::NextBos) {
        row.pop();
    }
    let tokens = [beginning.tokens.as_slice(), &row].concat();
    let end = tokens.len() - usize::from(ending == Some(Ending::Eos));
    let begins = match &beginning.asked {
        Some(_) => beginning.tokens.len(),
        None => usize::from(beginning.adds_bos),
    };
    let said = &tokens[begins..end];
    let mut text = tokenizer.decode_as_it_is(said)?;
    if ending.is_none() {
        // Cut amid a character, which decodes to a mark that the model did not mean.
        text.truncate(text.trim_end_matches('\u{fffd}').len());
    }
    Ok(Document {
        tokens,
        text,
        asked: beginning.asked.clone(),
    })
}

#[cfg(test)]
mod tests;
