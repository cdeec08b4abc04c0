//! Text to tokens and back, by the tokenizer that lies beside a Hugging Face model.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use burn_lti::files::{self, FileError};
use serde::Deserialize;
use tokenizers::Encoding;

/// The file that holds the tokenizer itself.
const TOKENIZER: &str = "tokenizer.json";
/// The file that says how transformers uses it.
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// All files that belong to a tokenizer, and what a model needs to generate with it.
pub(crate) const FILES: [&str; 9] = [
    TOKENIZER,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
];
/// Documents tokenised at once: enough for all cores, few enough to bound the memory.
const BATCH: usize = 1024;

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
    #[error("{file} is not a tokenizer's settings: correct it or remove it")]
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
    /// A file could not be carried over.
    #[error(transparent)]
    Write(#[from] FileError),
}

/// A model's tokenizer, with its rules for the start and the end of a document.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: Option<u32>,
    /// The first one ends a document; all of them end a generated text.
    eos: Vec<u32>,
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
    /// The rule of `add_bos_token` or `add_eos_token`, if there is one.
    fn new(setting: Option<bool>, otherwise: Self) -> Self {
        match setting {
            Some(true) => Self::Always,
            Some(false) => Self::Never,
            None => otherwise,
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
    /// Reads the tokenizer of a Hugging Face folder.
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
    pub fn from_dir(dir: &Path, bos: Option<u32>, eos: &[u32]) -> Result<Self, TokenizerError> {
        let file = dir.join(TOKENIZER);
        let bytes = read_if_there(&file)?.ok_or_else(|| {
            TokenizerError::Refused(format!(
                "no {TOKENIZER} in {}: save one there with transformers, \
                 `AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER)`",
                dir.display()
            ))
        })?;
        let inner = unlimited(&bytes).map_err(|source| TokenizerError::Library {
            what: format!(
                "{} is not a tokenizer that the `tokenizers` library reads: save it again",
                file.display()
            ),
            source,
        })?;

        let file = dir.join(TOKENIZER_CONFIG);
        let settings = Settings::read(&file)?;
        // A model rests much of its attention on the first token, which should be the same one everywhere;
        // and where a document ends has to be learned. So only an explicit no leaves BOS or EOS out of one.
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
        let named = id("eos_token", settings.eos_token)?;
        if settings.add_bos_token == Some(true) && bos.is_none() {
            return Err(TokenizerError::Refused(format!(
                "{} sets `add_bos_token` but no BOS token is known: set `bos_token` there or \
                 `bos_token_id` in config.json",
                file.display()
            )));
        }

        let others = eos.iter().copied().filter(|id| Some(*id) != named);
        let eos = named.into_iter().chain(others).collect();
        Ok(Self {
            inner,
            bos,
            eos,
            start,
            end,
        })
    }

    /// The tokens of one document, from BOS to EOS, each once.
    ///
    /// One that is not known is left out, and so is one that `add_bos_token` or `add_eos_token` forbids, even
    /// if the tokenizer's post-processor puts it there.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Library`]: the library failed on the text.
    pub fn encode_document(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let [start, _] = self.start;
        Ok(self.framed(&self.encode(text)?, start, self.end))
    }

    /// As [`encode_document`](Self::encode_document), for many documents on all cores.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Library`]: the library failed on one of the texts.
    pub fn encode_documents(&self, texts: &[String]) -> Result<Vec<Vec<u32>>, TokenizerError> {
        let [start, _] = self.start;
        let mut documents = Vec::with_capacity(texts.len());
        for batch in texts.chunks(BATCH) {
            let batch = batch.iter().map(String::as_str).collect();
            let encodings = self.inner.encode_batch_fast::<&str>(batch, true);
            let encodings = encodings.map_err(failed("encode the text"))?;
            documents.extend(
                encodings
                    .iter()
                    .map(|one| self.framed(one, start, self.end)),
            );
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
        Ok(self.framed(&self.encode(text)?, start, Edge::Never))
    }

    /// The tokens of a text to be continued, as transformers has them: BOS is there if the tokenizer's
    /// post-processor puts it there or `add_bos_token` asks for it.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Library`]: the library failed on the text.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let [_, start] = self.start;
        Ok(self.framed(&self.encode(text)?, start, Edge::Never))
    }

    /// The text of tokens, without the special ones.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Library`]: the library failed on the tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        let text = self.inner.decode(ids, true);
        text.map_err(failed("decode the tokens"))
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

    /// Checks that a model with `model_vocab` embeddings has one for every token.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Refused`]: it has not.
    pub fn check_vocab(&self, model_vocab: usize) -> Result<(), TokenizerError> {
        // Ids may have holes, so the number of tokens would not do.
        let tokens = self.inner.get_vocab(true).into_values();
        let special = self.bos.into_iter().chain(self.eos.iter().copied());
        match tokens.chain(special).max() {
            Some(largest_id) if largest_id as usize >= model_vocab => {
                Err(TokenizerError::Refused(format!(
                    "the tokenizer's largest id is {largest_id}, but the model's `vocab_size` is \
                     {model_vocab}: the two are not from the same model"
                )))
            }
            _ => Ok(()),
        }
    }

    fn encode(&self, text: &str) -> Result<Encoding, TokenizerError> {
        let encoding = self.inner.encode_fast(text, true);
        encoding.map_err(failed("encode the text"))
    }

    /// The encoding's tokens with both ends as they should be.
    fn framed(&self, encoding: &Encoding, start: Edge, end: Edge) -> Vec<u32> {
        let mut ids = encoding.get_ids();
        // Only what the post-processor has put there can be too much, not what the text says.
        let mut added = encoding.get_special_tokens_mask();
        let (bos, eos) = (self.bos, self.eos.first().copied());

        if start == Edge::Never && added.first() == Some(&1) && ids.first().copied() == bos {
            (ids, added) = (&ids[1..], &added[1..]);
        }
        let last = added.last() == Some(&1);
        if end == Edge::Never && last && ids.last().is_some_and(|id| self.is_eos(*id)) {
            ids = &ids[..ids.len() - 1];
        }
        let bos = bos.filter(|_| start == Edge::Always && ids.first().copied() != bos);
        let eos = eos.filter(|_| end == Edge::Always && ids.last().copied() != eos);
        bos.into_iter()
            .chain(ids.iter().copied())
            .chain(eos)
            .collect()
    }
}

impl Settings {
    fn read(file: &Path) -> Result<Self, TokenizerError> {
        match read_if_there(file)? {
            None => Ok(Self::default()),
            Some(bytes) => {
                serde_json::from_slice(&bytes).map_err(|source| TokenizerError::Config {
                    file: file.to_owned(),
                    source,
                })
            }
        }
    }
}

/// Carries the files of a tokenizer that exist in the folder `from` over to the folder `to`.
///
/// # Errors
///
/// - [`TokenizerError::Read`]: one of them cannot be read.
/// - [`TokenizerError::Write`]: one of them cannot be written.
pub fn copy_files(from: &Path, to: &Path) -> Result<(), TokenizerError> {
    for name in FILES {
        if let Some(bytes) = read_if_there(&from.join(name))? {
            files::write_atomically(&to.join(name), &bytes)?;
        }
    }
    Ok(())
}

/// A tokenizer that neither cuts nor pads: `tokenizer.json` keeps what was last set in training.
fn unlimited(bytes: &[u8]) -> tokenizers::Result<tokenizers::Tokenizer> {
    let mut tokenizer = tokenizers::Tokenizer::from_bytes(bytes)?;
    tokenizer.with_padding(None).with_truncation(None)?;
    Ok(tokenizer)
}

fn read_if_there(file: &Path) -> Result<Option<Vec<u8>>, TokenizerError> {
    match fs::read(file) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TokenizerError::Read {
            file: file.to_owned(),
            source,
        }),
    }
}

fn failed(action: &'static str) -> impl FnOnce(tokenizers::Error) -> TokenizerError {
    move |source| TokenizerError::Library {
        what: format!("the tokenizer cannot {action}"),
        source,
    }
}

/// A tokenizer of a few words, for tests.
#[cfg(test)]
pub(crate) mod fixture {
    use std::fs;
    use std::path::Path;

    use serde_json::{Value, json};
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
