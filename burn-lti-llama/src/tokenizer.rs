//! Text to tokens and back, by the tokenizer that lies beside a Hugging Face model, or in a GGUF file.

mod chat;
mod cut;
mod growth;
mod guard;
mod kept;
mod needs;
mod pieces;
mod source;
mod turns;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use burn_lti::files::{self, FileError};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokenizers::Encoding;

pub use chat::{ChatError, ChatTemplate, Message};
use guard::guarded;
pub use kept::{KeptTokens, TokenizerFiles};
use pieces::Pieces;
use source::Source;
use turns::Turns;

use crate::config::{OneOrMany, named_ids};
use crate::gguf::{GgufError, Vocabulary};

/// The file that holds the tokenizer itself.
const TOKENIZER: &str = "tokenizer.json";
/// The file that says how transformers uses it.
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// The file that says how text is drawn from a model.
const GENERATION_CONFIG: &str = "generation_config.json";
/// The file that says which tokens are special.
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
/// All files that belong to a tokenizer, what a model needs to generate with it, and under which terms it is.
pub(crate) const FILES: [&str; 12] = [
    TOKENIZER,
    TOKENIZER_CONFIG,
    SPECIAL_TOKENS,
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "chat_template.jinja",
    GENERATION_CONFIG,
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
];
/// The folder of templates for other kinds of conversation.
const MORE_TEMPLATES: &str = "additional_chat_templates";
/// Documents tokenised at once: enough for all cores.
const BATCH: usize = 1024;
/// And bytes of them: few enough to bound the memory, which the library takes some hundred times as much of.
const BATCH_BYTES: usize = 512 << 10;
/// The longest `tokenizer.json`, and the longest of other files.
const MOST_BYTES: [u64; 2] = [128 << 20, 16 << 20];

/// Why a tokenizer could not be read or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The files are not there, or contradict each other or the model.
    #[error("{0}")]
    Refused(String),
    /// A file of the tokenizer cannot be read.
    #[error("cannot read {file}")]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// `tokenizer_config.json` is not as expected.
    #[error("{file} does not hold what it should: correct it or remove it")]
    Config {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The library failed on `tokenizer.json`, on a text or on tokens.
    #[error("{what}")]
    Library {
        /// At what.
        what: String,
        /// What the library said.
        source: tokenizers::Error,
    },
    /// The chat template cannot be used.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// The tokenizer of a GGUF file.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A file could not be carried over.
    #[error(transparent)]
    Write(#[from] FileError),
}

/// A model's tokenizer, with its rules for the start and the end of a document.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// How a long text is cut, if it can be; found out at the first.
    pieces: OnceLock<Option<Pieces>>,
    /// `tokenizer.json`, which errors name.
    file: PathBuf,
    /// Embeddings that the model has.
    model_vocab: usize,
    chat: Option<ChatTemplate>,
    bos: Option<u32>,
    /// The first one ends a document; all of them end a generated text.
    eos: Vec<u32>,
    /// Tokens that its files name, for one purpose or another.
    named: BTreeSet<u32>,
    /// At the start of a document, and of a prompt.
    start: [Edge; 2],
    end: Edge,
}

/// What stands at one end of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edge {
    /// What the post-processor puts there.
    AsProcessed,
    /// The special token, once.
    Always,
    /// No special token, even if the post-processor puts one.
    Never,
}

impl Edge {
    /// The rule of `add_bos_token` or `add_eos_token`, if there is one. A no leaves what the post-processor puts
    /// there, as transformers does.
    fn new(setting: Option<bool>, otherwise: Self) -> Self {
        match setting {
            Some(true) => Self::Always,
            Some(false) => Self::AsProcessed,
            None => otherwise,
        }
    }
}

/// What the library makes of a text.
struct Encoded {
    ids: Vec<u32>,
    /// Of these, how many its post-processor put in front and at the end.
    before: usize,
    after: usize,
}

impl From<&Encoding> for Encoded {
    fn from(encoding: &Encoding) -> Self {
        let added = encoding.get_special_tokens_mask();
        let are_added = |added: &&u32| **added == 1;
        let before = added.iter().take_while(are_added).count();
        Self {
            ids: encoding.get_ids().to_vec(),
            before,
            after: added[before..].iter().rev().take_while(are_added).count(),
        }
    }
}

/// What we need of `tokenizer_config.json`; it holds much more.
#[derive(Default, Deserialize)]
struct Settings {
    bos_token: Option<Token>,
    eos_token: Option<Token>,
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    chat_template: Option<Value>,
    #[serde(flatten)]
    more: Map<String, Value>,
}

/// What we need of `generation_config.json`.
#[derive(Default, Deserialize)]
struct GenerationSettings {
    eos_token_id: Option<OneOrMany>,
    #[serde(flatten)]
    more: Map<String, Value>,
}

/// The two ways in which transformers writes a special token.
#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Described { content: String },
}

impl Token {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Described { content: text } => text,
        }
    }
}

impl Tokenizer {
    /// Reads the tokenizer of a Hugging Face folder, or of a GGUF file.
    ///
    /// `tokenizer_config.json`, where there is one, says what BOS and EOS are; the ids of the
    /// model's `config.json` come after it: `bos` if it names none, `eos` in addition.
    ///
    /// # Errors
    ///
    /// - [`TokenizerError::Refused`]: no `tokenizer.json` in the folder, or the files contradict each
    ///   other.
    /// - [`TokenizerError::Read`], [`TokenizerError::Library`], [`TokenizerError::Config`]: a file
    ///   cannot be read or understood.
    /// - [`TokenizerError::Gguf`]: a GGUF file holds none that is known.
    pub fn from_dir(dir: &Path, bos: Option<u32>, eos: &[u32]) -> Result<Self, TokenizerError> {
        Self::of_files(TokenizerFiles::from(dir), bos, eos)
    }

    /// As [`from_dir`](Self::from_dir), of files that may be cut to some of their tokens: `bos` and `eos` are the new
    /// ids then, and what the kept tokens need must be among them, as it is of what [`keep`](Self::keep) gives.
    ///
    /// # Errors
    ///
    /// As [`from_dir`](Self::from_dir), and [`TokenizerError::Refused`]: the tokenizer cannot be cut.
    pub fn of_files(
        files: TokenizerFiles<'_>,
        bos: Option<u32>,
        eos: &[u32],
    ) -> Result<Self, TokenizerError> {
        Self::from_source(&opened(files)?, bos, eos)
    }

    /// The tokenizer that a GGUF file holds by these keys; errors name `path`.
    pub(crate) fn from_vocabulary(
        vocabulary: &Vocabulary,
        path: &Path,
    ) -> Result<Self, TokenizerError> {
        Self::from_source(&Source::of_vocabulary(path, vocabulary), None, &[])
    }

    fn from_source(
        source: &Source<'_>,
        bos: Option<u32>,
        eos: &[u32],
    ) -> Result<Self, TokenizerError> {
        let tokenizer_file = source.path(TOKENIZER);
        let [most, _] = MOST_BYTES;
        let bytes = read_if_there(source, TOKENIZER, most)?.ok_or_else(|| {
            TokenizerError::Refused(format!(
                "no {TOKENIZER} in {}: save one there with transformers, \
                 `AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER)`",
                tokenizer_file.parent().unwrap_or(Path::new("")).display()
            ))
        })?;
        if files::is_git_lfs_pointer(&bytes) {
            return Err(TokenizerError::Refused(format!(
                "{} {}",
                tokenizer_file.display(),
                files::GIT_LFS_POINTER
            )));
        }
        let inner = guarded(|| unlimited(&bytes)).map_err(|source| TokenizerError::Library {
            what: format!(
                "{} is not a tokenizer that the `tokenizers` library reads: save it again",
                tokenizer_file.display()
            ),
            source,
        })?;
        growth::check(&inner).map_err(|found| {
            TokenizerError::Refused(format!(
                "{}: {found}, which no tokenizer needs: save it again",
                tokenizer_file.display()
            ))
        })?;

        let file = source.path(TOKENIZER_CONFIG);
        let settings: Settings = read_settings(source, TOKENIZER_CONFIG)?;
        let generation: GenerationSettings = read_settings(source, GENERATION_CONFIG)?;
        let special: Map<String, Value> = read_settings(source, SPECIAL_TOKENS)?;
        let mut named: BTreeSet<u32> = named_ids(&generation.more).into_iter().collect();
        for fields in [&settings.more, &special] {
            named.extend(named_tokens(fields).filter_map(|token| inner.token_to_id(token)));
        }
        // A model rests much of its attention on the first token, which should be the same one everywhere;
        // and where a document ends has to be learned. So only an explicit no leaves it to the post-processor whether there is one.
        // A prompt begins as it does elsewhere, with what a chat template may have put there.
        let start = [Edge::Always, Edge::AsProcessed]
            .map(|otherwise| Edge::new(settings.add_bos_token, otherwise));
        let end = Edge::new(settings.add_eos_token, Edge::Always);
        let id = |role, token: Option<Token>| match token.map(Token::into_text) {
            None => Ok(None),
            Some(token) => match inner.token_to_id(&token) {
                Some(id) => Ok(Some(id)),
                None => Err(TokenizerError::Refused(format!(
                    "`{role}` in {} is {token:?}, which {TOKENIZER} does not know: correct one of them",
                    file.display()
                ))),
            },
        };
        let bos = id("bos_token", settings.bos_token)?.or(bos);
        let first_end = id("eos_token", settings.eos_token)?;
        if settings.add_bos_token == Some(true) && bos.is_none() {
            return Err(TokenizerError::Refused(format!(
                "{} sets `add_bos_token` but no BOS token is known: set `bos_token` there or \
                 `bos_token_id` in config.json",
                file.display()
            )));
        }

        let of_generation = generation
            .eos_token_id
            .map_or_else(Vec::new, OneOrMany::into_vec);
        let mut ends: Vec<u32> = Vec::new();
        for id in first_end
            .into_iter()
            .chain(eos.iter().copied())
            .chain(of_generation)
        {
            if !ends.contains(&id) {
                ends.push(id);
            }
        }
        let text = |id: Option<u32>| id.and_then(|id| inner.id_to_token(id)).unwrap_or_default();
        let edges = [text(bos), text(ends.first().copied())];
        let chat = ChatTemplate::of_source(source, settings.chat_template.as_ref(), edges)?;
        Ok(Self {
            inner,
            pieces: OnceLock::new(),
            file: tokenizer_file,
            model_vocab: usize::MAX,
            chat,
            bos,
            eos: ends,
            named,
            start,
            end,
        })
    }

    /// The tokenizer of a model with so many embeddings: a text that has a token for which there is none is an
    /// error.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Refused`]: BOS or EOS is such a token.
    pub fn for_model(mut self, vocab_size: usize) -> Result<Self, TokenizerError> {
        self.model_vocab = vocab_size;
        let ends: Vec<u32> = self
            .bos
            .into_iter()
            .chain(self.eos.iter().copied())
            .collect();
        self.checked(ends)?;
        Ok(self)
    }

    /// `tokenizer.json`, or the GGUF file that holds the tokenizer.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// `tokenizer.json` in the form that the library writes.
    pub(crate) fn to_json(&self) -> Result<Value, TokenizerError> {
        serde_json::to_value(&self.inner).map_err(|source| TokenizerError::Config {
            file: self.file.clone(),
            source,
        })
    }

    /// The number of a token.
    pub(crate) fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether a prompt begins with BOS, and whether the post-processor puts EOS at a text's end.
    pub(crate) fn adds(&self) -> Result<[bool; 2], TokenizerError> {
        const TEXT: &str = "a";
        let begins = self.bos.is_some() && self.encode_prompt(TEXT)?.first().copied() == self.bos;
        let encoded = self.encode(TEXT, true)?;
        let ends = encoded.ids.last().is_some_and(|id| self.is_eos(*id));
        Ok([begins, encoded.after > 0 && ends])
    }

    /// The token of a number.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// These tokens, and all without which they would not be made of a text as they are, or some text could not be
    /// made tokens of: what they are made of, bytes or characters, and tokens with a meaning: special ones, those that
    /// its files name, those that its chat template writes. A number that is no token's, or has no embedding, is left
    /// out.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Config`]: the library cannot write the tokenizer.
    pub fn keep(
        &self,
        wanted: impl IntoIterator<Item = u32>,
    ) -> Result<KeptTokens, TokenizerError> {
        let template = self.chat.as_ref().map_or("", ChatTemplate::text);
        let mut kept: BTreeSet<u32> = wanted.into_iter().collect();
        for (id, token) in self.inner.get_added_tokens_decoder() {
            if token.special || template.contains(&token.content) {
                kept.insert(id);
            }
        }
        kept.extend(self.bos.iter().chain(&self.eos).chain(&self.named));
        let tokens: Vec<String> = kept.iter().filter_map(|id| self.token(*id)).collect();
        let id_of = |token: &str| self.token_id(token);
        kept.extend(needs::needed(&self.to_json()?, tokens, &id_of));
        kept.retain(|id| (*id as usize) < self.model_vocab && self.token(*id).is_some());
        Ok(KeptTokens::from(kept))
    }

    /// Which tokens of this one a tokenizer has that was cut out of it; `None` if it was not.
    ///
    /// # Errors
    ///
    /// As [`keep`](Self::keep).
    pub fn kept_by(&self, cut: &Self) -> Result<Option<KeptTokens>, TokenizerError> {
        let ids =
            (0..cut.vocab_size()).map(|id| self.token_id(&cut.token(u32::try_from(id).ok()?)?));
        let ids: Option<Vec<u32>> = ids.collect();
        let Some(ids) = ids.filter(|ids| ids.is_sorted_by(|a, b| a < b)) else {
            return Ok(None);
        };
        let kept = self.keep(ids.iter().copied())?;
        Ok((kept.ids() == ids).then_some(kept))
    }

    /// How the model is talked to, if it is an instruct model.
    pub const fn chat(&self) -> Option<&ChatTemplate> {
        self.chat.as_ref()
    }

    /// The tokens of one document, from BOS to EOS, each once.
    ///
    /// One that is not known is left out. Where `add_bos_token` or `add_eos_token` says no, it is there if the
    /// tokenizer's post-processor, or the text itself, puts it there.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Library`]: the library failed on the text.
    pub fn encode_document(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let [start, _] = self.start;
        self.framed(&self.encode(text, true)?, start, self.end)
    }

    /// The tokens of a text that has all its special tokens in it already, as one that a chat template has
    /// rendered: none is added.
    ///
    /// # Errors
    ///
    /// As [`encode_document`](Self::encode_document).
    pub fn encode_as_it_is(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.checked(self.encode(text, false)?.ids)
    }

    /// The tokens of a conversation as its template writes it, and for each whether the assistant says it: its words,
    /// and the token after them that ends its turn.
    ///
    /// # Errors
    ///
    /// As [`encode_document`](Self::encode_document), and [`TokenizerError::Chat`]: there is no template, it fails,
    /// or what the assistant says cannot be told from the rest.
    pub fn encode_turns(
        &self,
        messages: &[Message],
    ) -> Result<(Vec<u32>, Vec<bool>), TokenizerError> {
        let template = self.chat().ok_or(ChatError::None)?;
        let Turns {
            text,
            said,
            are_marked,
        } = template.turns(messages)?;
        let encoding = guarded(|| self.inner.encode(text.as_str(), false));
        let encoding = encoding.map_err(self.failed("encode the text"))?;
        let ids = self.checked(encoding.get_ids().to_vec())?;
        let offsets = encoding.get_offsets();
        let mut counts = vec![false; ids.len()];
        for turn in said {
            let is_in = |(from, to): (usize, usize)| match from == to {
                true => turn.contains(&from),
                false => from < turn.end && turn.start < to,
            };
            let tokens = (0..ids.len()).filter(|at| is_in(offsets[*at]));
            let mut tokens: Vec<usize> = tokens.collect();
            if !are_marked && let Some(last) = tokens.last().copied() {
                let ends = |at: &usize| self.ends_turn(ids[*at]);
                match tokens.iter().rposition(ends) {
                    // The template's own line break after it is no word.
                    Some(end) if is_blank_from(&text, offsets[tokens[end]].1, turn.end) => {
                        tokens.truncate(end + 1);
                    }
                    _ => {
                        tokens.extend(Some(last + 1).filter(|next| *next < ids.len() && ends(next)))
                    }
                }
            }
            for at in tokens {
                counts[at] = true;
            }
        }
        Ok((ids, counts))
    }

    /// Whether a token may end a turn: a special one.
    fn ends_turn(&self, id: u32) -> bool {
        let added = self.inner.get_added_vocabulary();
        let token = self.inner.id_to_token(id);
        self.is_eos(id) || token.is_some_and(|token| added.is_special_token(&token))
    }

    /// As [`encode_document`](Self::encode_document), for many documents on all cores.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Library`]: the library failed on one of the texts.
    pub fn encode_documents<T: AsRef<str>>(
        &self,
        texts: &[T],
    ) -> Result<Vec<Vec<u32>>, TokenizerError> {
        let [start, _] = self.start;
        self.encode_all(texts, true, |one| self.framed(one, start, self.end))
    }

    /// As [`encode_as_it_is`](Self::encode_as_it_is), for many texts on all cores.
    ///
    /// # Errors
    ///
    /// As [`encode_documents`](Self::encode_documents).
    pub fn encode_as_they_are<T: AsRef<str>>(
        &self,
        texts: &[T],
    ) -> Result<Vec<Vec<u32>>, TokenizerError> {
        self.encode_all(texts, false, |one| self.checked(one.ids.clone()))
    }

    fn encode_all<T: AsRef<str>>(
        &self,
        texts: &[T],
        add_special_tokens: bool,
        tokens: impl Fn(&Encoded) -> Result<Vec<u32>, TokenizerError>,
    ) -> Result<Vec<Vec<u32>>, TokenizerError> {
        let mut documents = Vec::with_capacity(texts.len());
        let mut rest = texts;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fitting = rest.iter().take(BATCH).take_while(|text| {
                bytes += text.as_ref().len();
                bytes <= BATCH_BYTES
            });
            let (batch, after) = rest.split_at(fitting.count().max(1));
            rest = after;
            if let [long] = batch {
                documents.push(tokens(&self.encode(long.as_ref(), add_special_tokens)?)?);
                continue;
            }
            let batch: Vec<&str> = batch.iter().map(AsRef::as_ref).collect();
            for one in self.encode_batch(batch, add_special_tokens)? {
                documents.push(tokens(&Encoded::from(&one))?);
            }
        }
        Ok(documents)
    }

    /// The tokens that a document begins with: as all of one, but without its end.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Library`]: the library failed on the text.
    pub fn encode_opening(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let [start, _] = self.start;
        self.framed(&self.encode(text, true)?, start, Edge::Never)
    }

    /// The tokens of a text to be continued, as transformers has them: BOS is there if the tokenizer's
    /// post-processor puts it there or `add_bos_token` asks for it; once, if the text has it too.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Library`]: the library failed on the text.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let [_, start] = self.start;
        self.framed(&self.encode(text, true)?, start, Edge::Never)
    }

    /// The text of tokens, without the special ones.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Library`]: the library failed on the tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        let text = guarded(|| self.inner.decode(ids, true));
        text.map_err(self.failed("decode the tokens"))
    }

    /// The text of tokens, with the special ones that are among them: what encodes to them again.
    ///
    /// # Errors
    ///
    /// As [`decode`](Self::decode).
    pub fn decode_as_it_is(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        let text = guarded(|| self.inner.decode(ids, false));
        text.map_err(self.failed("decode the tokens"))
    }

    /// Number of tokens, the added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The token that starts a document, if one is known.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// The tokens that end a text: first the one that is put at a document's end.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos
    }

    /// Whether a generated text ends with this token.
    pub fn is_eos(&self, id: u32) -> bool {
        self.eos.contains(&id)
    }

    /// The tokens, if the model has an embedding for each.
    fn checked(&self, ids: Vec<u32>) -> Result<Vec<u32>, TokenizerError> {
        match ids.iter().find(|id| **id as usize >= self.model_vocab) {
            None => Ok(ids),
            Some(id) => Err(TokenizerError::Refused(format!(
                "{} gives token {id}, but the model's `vocab_size` is {}: the two are not from the same model",
                self.file.display(),
                self.model_vocab
            ))),
        }
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(tokenizers::Error) -> TokenizerError {
        let file = self.file.display();
        let what = format!("{file} cannot {action}: save it again, or correct the text");
        move |source| TokenizerError::Library { what, source }
    }

    /// The tokens of a text, a long one piece by piece.
    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Encoded, TokenizerError> {
        let one = |text: &str, add_special_tokens| -> Result<Encoded, TokenizerError> {
            let encoding = guarded(|| self.inner.encode_fast(text, add_special_tokens));
            let encoding = encoding.map_err(self.failed("encode the text"))?;
            Ok(Encoded::from(&encoding))
        };
        let pieces = match text.len() > BATCH_BYTES {
            true => self.pieces.get_or_init(|| Pieces::of(&self.inner)).as_ref(),
            false => None,
        };
        let pieces = pieces.map(|pieces| pieces.cut(text)).unwrap_or_default();
        let [first, _, ..] = pieces[..] else {
            return one(text, add_special_tokens);
        };
        // What the post-processor puts at the ends does not depend on what is between them.
        let Encoded {
            mut ids,
            before,
            after,
        } = one(first, add_special_tokens)?;
        let ends = ids.split_off(ids.len() - after);
        ids.truncate(before);
        let mut rest = pieces.as_slice();
        while !rest.is_empty() {
            let mut bytes = 0;
            let fitting = rest.iter().take_while(|piece| {
                bytes += piece.len();
                bytes <= BATCH_BYTES
            });
            let (batch, others) = rest.split_at(fitting.count().max(1));
            rest = others;
            for encoding in self.encode_batch(batch.to_vec(), false)? {
                ids.extend(encoding.get_ids());
            }
        }
        ids.extend(ends);
        Ok(Encoded { ids, before, after })
    }

    /// The library's encodings of texts, on all cores.
    fn encode_batch(
        &self,
        texts: Vec<&str>,
        add_special_tokens: bool,
    ) -> Result<Vec<Encoding>, TokenizerError> {
        let encodings = guarded(|| {
            self.inner
                .encode_batch_fast::<&str>(texts, add_special_tokens)
        });
        encodings.map_err(self.failed("encode the text"))
    }

    /// The encoding's tokens with both ends as they should be.
    fn framed(
        &self,
        encoded: &Encoded,
        start: Edge,
        end: Edge,
    ) -> Result<Vec<u32>, TokenizerError> {
        let Encoded { ids, before, after } = encoded;
        // Only what the post-processor has put there can be too much, not what the text says.
        let mut ids = ids.as_slice();
        let (bos, eos) = (self.bos, self.eos.first().copied());

        // A text may begin with BOS itself, as one that a chat template has rendered.
        if let [first, second, ..] = ids
            && *before > 0
            && Some(*first) == bos
            && second == first
        {
            ids = &ids[1..];
        }
        let is_end = |id: Option<&u32>| id.is_some_and(|id| self.is_eos(*id));
        if *after > 0 && is_end(ids.last()) {
            let (_, before) = ids.split_last().unwrap_or((&0, ids));
            if end == Edge::Never || is_end(before.last()) {
                ids = before;
            }
        }
        let bos = bos.filter(|_| start == Edge::Always && ids.first().copied() != bos);
        let eos = eos.filter(|_| end == Edge::Always && ids.last().copied() != eos);
        let ids = bos.into_iter().chain(ids.iter().copied()).chain(eos);
        self.checked(ids.collect())
    }
}

/// Whether nothing but white space is between two places of a text.
fn is_blank_from(text: &str, from: usize, to: usize) -> bool {
    text.get(from..to.max(from))
        .is_some_and(|between| between.trim().is_empty())
}

/// What a file of JSON says, if there is one.
fn read_settings<T: DeserializeOwned + Default>(
    from: &Source<'_>,
    name: &str,
) -> Result<T, TokenizerError> {
    let [_, most] = MOST_BYTES;
    match read_if_there(from, name, most)? {
        None => Ok(T::default()),
        Some(bytes) => serde_json::from_slice(&bytes).map_err(|source| TokenizerError::Config {
            file: from.path(name),
            source,
        }),
    }
}

/// Whether a file or folder of that name in a model's folder is one that [`copy_files`] writes.
pub(crate) fn belongs_to_tokenizer(name: &str) -> bool {
    FILES.contains(&name) || name == MORE_TEMPLATES
}

/// Carries the files of a tokenizer that exist in the folder `from` over to the folder `to`; of a GGUF file what it
/// holds in their place.
///
/// # Errors
///
/// - [`TokenizerError::Gguf`]: it holds no tokenizer that is known.
/// - [`TokenizerError::Read`]: one of them cannot be read.
/// - [`TokenizerError::Write`]: one of them cannot be written.
pub fn copy_files<'a>(
    from: impl Into<TokenizerFiles<'a>>,
    to: &Path,
) -> Result<(), TokenizerError> {
    let files = from.into();
    let (source, from) = (opened(files)?, files.path);
    for name in FILES {
        let [most, _] = MOST_BYTES;
        if let Some(bytes) = read_if_there(&source, name, most)? {
            files::write_atomically(&to.join(name), &bytes)?;
        }
    }
    let templates = from.join(MORE_TEMPLATES);
    let [_, most] = MOST_BYTES;
    for file in templates.read_dir().into_iter().flatten().flatten() {
        let to = to.join(MORE_TEMPLATES);
        if file.path().is_file()
            && let Some(bytes) = read_if_there(&Source::Folder(&templates), file.file_name(), most)?
        {
            fs::create_dir_all(&to).map_err(FileError::writing(&to))?;
            files::write_atomically(&to.join(file.file_name()), &bytes)?;
        }
    }
    Ok(())
}

/// The files of a tokenizer, cut where some of its tokens are gone.
fn opened(files: TokenizerFiles<'_>) -> Result<Source<'_>, TokenizerError> {
    let source = Source::open(files.path)?;
    match files.kept {
        None => Ok(source),
        Some(kept) => cut::cut(source, kept),
    }
}

/// The tokens that fields such as `pad_token` or `additional_special_tokens` name.
fn named_tokens(fields: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let is_of_tokens = |key: &str| {
        key.ends_with("_token")
            || ["additional_special_tokens", "extra_special_tokens"].contains(&key)
    };
    let named = fields.iter().filter(move |(key, _)| is_of_tokens(key));
    let all = named.flat_map(|(_, value)| match value {
        Value::Array(all) => all.iter().collect(),
        Value::Object(all) if !all.contains_key("content") => all.values().collect(),
        one => vec![one],
    });
    all.filter_map(|token| token.as_str().or_else(|| token["content"].as_str()))
}

/// A tokenizer that neither cuts nor pads: `tokenizer.json` keeps what was last set in training.
fn unlimited(bytes: &[u8]) -> tokenizers::Result<tokenizers::Tokenizer> {
    let mut tokenizer = tokenizers::Tokenizer::from_bytes(bytes)?;
    tokenizer.with_padding(None).with_truncation(None)?;
    Ok(tokenizer)
}

fn read_if_there(
    from: &Source<'_>,
    name: impl AsRef<Path>,
    most: u64,
) -> Result<Option<Vec<u8>>, TokenizerError> {
    let name = name.as_ref();
    from.read(name, most)
        .map_err(|source| TokenizerError::Read {
            file: from.path(name),
            source,
        })
}

/// A tokenizer of a few words, for tests.
#[cfg(test)]
pub(crate) mod fixture {
    use std::fs;
    use std::path::Path;

    use serde_json::json;
    use tempfile::TempDir;

    use super::*;

    pub(crate) const BOS: u32 = 1;
    pub(crate) const EOS: u32 = 2;
    pub(crate) const THE: u32 = 3;
    pub(crate) const CAT: u32 = 4;

    /// `tokenizer.json` of the words "the" and "cat"; the post-processor puts BOS first.
    pub(crate) fn json() -> Value {
        let special = |id: u32, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": true})
        };
        json!({
            "version": "1.0",
            "added_tokens": [special(0, "<unk>"), special(BOS, "<s>"), special(EOS, "</s>")],
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": post_processor(&["<s>", "$A"]),
            "model": {
                "type": "WordLevel",
                "vocab": {"<unk>": 0, "<s>": BOS, "</s>": EOS, "the": THE, "cat": CAT},
                "unk_token": "<unk>",
            },
        })
    }

    pub(crate) fn post_processor(template: &[&str]) -> Value {
        let piece = |&name: &&str| match name {
            "$A" => json!({"Sequence": {"id": "A", "type_id": 0}}),
            token => json!({"SpecialToken": {"id": token, "type_id": 0}}),
        };
        let single: Vec<Value> = template.iter().map(piece).collect();
        json!({
            "type": "TemplateProcessing",
            "single": single,
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                "<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]},
                "</s>": {"id": "</s>", "ids": [EOS], "tokens": ["</s>"]},
            },
        })
    }

    pub(crate) fn folder(tokenizer: &Value, settings: &Value) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), TOKENIZER, tokenizer);
        write(folder.path(), TOKENIZER_CONFIG, settings);
        folder
    }

    pub(crate) fn write(folder: &Path, name: &str, value: &Value) {
        fs::write(folder.join(name), value.to_string()).unwrap();
    }

    pub(crate) fn tokenizer() -> Tokenizer {
        let folder = folder(&json(), &json!({"eos_token": "</s>"}));
        Tokenizer::from_dir(folder.path(), None, &[]).unwrap()
    }

    /// One that fails on any word it does not know.
    pub(crate) fn without_unknown_token() -> Tokenizer {
        let mut json = json();
        json["model"]["unk_token"] = "[none]".into();
        let folder = folder(&json, &json!({}));
        Tokenizer::from_dir(folder.path(), None, &[]).unwrap()
    }
}

#[cfg(test)]
mod tests;
