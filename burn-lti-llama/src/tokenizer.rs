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
    /// The folder has no `tokenizer.json`.
    #[error(
        "no {TOKENIZER} in {folder}: save one there with transformers, \
         `AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER)`"
    )]
    Missing {
        /// The folder.
        folder: PathBuf,
    },
    /// A file of the tokenizer cannot be read.
    #[error("cannot read {file}")]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// `tokenizer.json` is not a tokenizer.
    #[error("{file} is not a tokenizer that the `tokenizers` library reads: save it again")]
    Tokenizer {
        /// The file.
        file: PathBuf,
        /// What the library said.
        source: tokenizers::Error,
    },
    /// `tokenizer_config.json` is not as expected.
    #[error("{file} is not a tokenizer's settings: correct it or remove it")]
    Config {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The settings name a token that the tokenizer does not have.
    #[error(
        "`{role}` in {file} is {token:?}, which {TOKENIZER} does not know: correct one of them"
    )]
    UnknownToken {
        /// The settings.
        file: PathBuf,
        /// The key in them.
        role: &'static str,
        /// The token.
        token: String,
    },
    /// BOS is wanted but nobody says which token it is.
    #[error(
        "{file} sets `add_bos_token` but no BOS token is known: set `bos_token` there or \
         `bos_token_id` in config.json"
    )]
    NoBos {
        /// The settings.
        file: PathBuf,
    },
    /// The tokenizer has ids for which the model has no embedding.
    #[error(
        "the tokenizer's largest id is {largest_id}, but the model's `vocab_size` is \
         {model_vocab}: the two are not from the same model"
    )]
    Vocabulary {
        /// The largest id that the tokenizer, BOS or EOS can yield.
        largest_id: u32,
        /// The model's number of embeddings.
        model_vocab: usize,
    },
    /// The library failed on a text or on tokens.
    #[error("the tokenizer cannot {action}")]
    Failed {
        /// What it was to do.
        action: &'static str,
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
    start: Edge,
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
    /// - [`TokenizerError::Missing`]: no `tokenizer.json` in the folder.
    /// - [`TokenizerError::Read`], [`TokenizerError::Tokenizer`], [`TokenizerError::Config`]: a
    ///   file cannot be read or understood.
    /// - [`TokenizerError::UnknownToken`], [`TokenizerError::NoBos`]: the files contradict each
    ///   other.
    pub fn from_dir(dir: &Path, bos: Option<u32>, eos: &[u32]) -> Result<Self, TokenizerError> {
        let file = dir.join(TOKENIZER);
        let bytes = read_if_there(&file)?.ok_or_else(|| TokenizerError::Missing {
            folder: dir.to_owned(),
        })?;
        let inner =
            unlimited(&bytes).map_err(|source| TokenizerError::Tokenizer { file, source })?;

        let file = dir.join(TOKENIZER_CONFIG);
        let settings = Settings::read(&file)?;
        let start = Edge::new(settings.add_bos_token, Edge::AsProcessed);
        // Where a document ends has to be learned, so only an explicit no leaves EOS out.
        let end = Edge::new(settings.add_eos_token, Edge::Always);
        let id = |role, token: Option<Token>| match token.map(Token::into_text) {
            None => Ok(None),
            Some(token) => match inner.token_to_id(&token) {
                Some(id) => Ok(Some(id)),
                None => Err(TokenizerError::UnknownToken {
                    file: file.clone(),
                    role,
                    token,
                }),
            },
        };
        let bos = id("bos_token", settings.bos_token)?.or(bos);
        let named = id("eos_token", settings.eos_token)?;
        if start == Edge::Always && bos.is_none() {
            return Err(TokenizerError::NoBos { file });
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

    /// The tokens of one document, with BOS and EOS as the tokenizer says.
    ///
    /// The post-processor's special tokens come first of all; `add_bos_token` and `add_eos_token`
    /// overrule it. Where neither speaks of EOS, the document ends with it, if any is known.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Failed`]: the library failed on the text.
    pub fn encode_document(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        Ok(self.framed(&self.encode(text)?, self.end))
    }

    /// As [`encode_document`](Self::encode_document), for many documents on all cores.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Failed`]: the library failed on one of the texts.
    pub fn encode_documents(&self, texts: &[String]) -> Result<Vec<Vec<u32>>, TokenizerError> {
        let mut documents = Vec::with_capacity(texts.len());
        for batch in texts.chunks(BATCH) {
            let batch = batch.iter().map(String::as_str).collect();
            let encodings = self.inner.encode_batch_fast::<&str>(batch, true);
            let encodings = encodings.map_err(failed("encode the text"))?;
            documents.extend(encodings.iter().map(|one| self.framed(one, self.end)));
        }
        Ok(documents)
    }

    /// The tokens of a text to be continued: as a document, but without its end.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Failed`]: the library failed on the text.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        Ok(self.framed(&self.encode(text)?, Edge::Never))
    }

    /// The text of tokens, without the special ones.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Failed`]: the library failed on the tokens.
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
    /// [`TokenizerError::Vocabulary`]: it has not.
    pub fn check_vocab(&self, model_vocab: usize) -> Result<(), TokenizerError> {
        // Ids may have holes, so the number of tokens would not do.
        let tokens = self.inner.get_vocab(true).into_values();
        let special = self.bos.into_iter().chain(self.eos.iter().copied());
        match tokens.chain(special).max() {
            Some(largest_id) if largest_id as usize >= model_vocab => {
                Err(TokenizerError::Vocabulary {
                    largest_id,
                    model_vocab,
                })
            }
            _ => Ok(()),
        }
    }

    fn encode(&self, text: &str) -> Result<Encoding, TokenizerError> {
        let encoding = self.inner.encode_fast(text, true);
        encoding.map_err(failed("encode the text"))
    }

    /// The encoding's tokens with both ends as they should be.
    fn framed(&self, encoding: &Encoding, end: Edge) -> Vec<u32> {
        let mut ids = encoding.get_ids();
        // Only what the post-processor has put there can be too much, not what the text says.
        let mut added = encoding.get_special_tokens_mask();
        let (bos, eos) = (self.bos, self.eos.first().copied());

        if self.start == Edge::Never && added.first() == Some(&1) && ids.first().copied() == bos {
            (ids, added) = (&ids[1..], &added[1..]);
        }
        let last = added.last() == Some(&1);
        if end == Edge::Never && last && ids.last().is_some_and(|id| self.is_eos(*id)) {
            ids = &ids[..ids.len() - 1];
        }
        let bos = bos.filter(|_| self.start == Edge::Always && ids.first().copied() != bos);
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
    move |source| TokenizerError::Failed { action, source }
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
mod tests {
    use serde_json::{Value, json};

    use super::fixture::{BOS, CAT, EOS, THE};
    use super::*;

    /// A tokenizer of the fixture's words with this template and these settings.
    fn load(template: &[&str], settings: &Value) -> Result<Tokenizer, TokenizerError> {
        let mut tokenizer = fixture::json();
        tokenizer["post_processor"] = fixture::post_processor(template);
        let folder = fixture::folder(&tokenizer, settings);
        Tokenizer::from_dir(folder.path(), None, &[])
    }

    fn document(template: &[&str], settings: Value, text: &str) -> Vec<u32> {
        let mut settings = settings;
        settings["bos_token"] = "<s>".into();
        settings["eos_token"] = json!({"content": "</s>", "lstrip": false});
        let tokenizer = load(template, &settings).unwrap();
        tokenizer.encode_document(text).unwrap()
    }

    #[test]
    fn a_document_starts_as_the_post_processor_says_and_ends_with_eos() {
        assert_eq!(
            document(&["<s>", "$A"], json!({}), "the cat"),
            [BOS, THE, CAT, EOS]
        );
        assert_eq!(document(&["$A"], json!({}), "the cat"), [THE, CAT, EOS]);
        assert_eq!(
            document(&["<s>", "$A", "</s>"], json!({}), "the"),
            [BOS, THE, EOS]
        );
    }

    #[test]
    fn settings_overrule_the_post_processor() {
        let both = |value: bool| json!({"add_bos_token": value, "add_eos_token": value});
        for template in [&["$A"] as &[_], &["<s>", "$A", "</s>"]] {
            assert_eq!(document(template, both(true), "the"), [BOS, THE, EOS]);
            assert_eq!(document(template, both(false), "the"), [THE]);
        }
    }

    #[test]
    fn special_tokens_that_the_text_itself_holds_stay() {
        let never = json!({"add_bos_token": false, "add_eos_token": false});
        assert_eq!(document(&["$A"], never, "<s> the </s>"), [BOS, THE, EOS]);
    }

    #[test]
    fn an_empty_document_has_only_its_ends() {
        assert_eq!(document(&["<s>", "$A"], json!({}), ""), [BOS, EOS]);
        let never = json!({"add_bos_token": false, "add_eos_token": false});
        assert!(document(&["<s>", "$A", "</s>"], never, "").is_empty());
    }

    #[test]
    fn many_documents_are_encoded_as_one_is() {
        let tokenizer = fixture::tokenizer();
        let texts: Vec<String> = (0..2 * BATCH + 1)
            .map(|n| "the cat ".repeat(n % 5))
            .collect();
        let together = tokenizer.encode_documents(&texts).unwrap();
        for (text, ids) in texts.iter().zip(&together) {
            assert_eq!(tokenizer.encode_document(text).unwrap(), *ids);
        }
        assert_eq!(together.len(), texts.len());
    }

    #[test]
    fn a_prompt_has_a_start_and_no_end() {
        for template in [&["<s>", "$A"] as &[_], &["<s>", "$A", "</s>"]] {
            let settings = json!({"eos_token": "</s>", "add_eos_token": true});
            let tokenizer = load(template, &settings).unwrap();
            assert_eq!(tokenizer.encode_prompt("the cat").unwrap(), [BOS, THE, CAT]);
        }
    }

    #[test]
    fn without_any_eos_a_document_just_stops() {
        let tokenizer = load(&["<s>", "$A"], &json!({"eos_token": null})).unwrap();
        assert_eq!(tokenizer.encode_document("the").unwrap(), [BOS, THE]);
        assert!(tokenizer.eos_ids().is_empty());
    }

    #[test]
    fn ids_of_the_model_fill_in_for_the_settings() {
        let folder = fixture::folder(&fixture::json(), &json!({"add_bos_token": true}));
        fs::remove_file(folder.path().join(TOKENIZER_CONFIG)).unwrap();
        let tokenizer = Tokenizer::from_dir(folder.path(), Some(BOS), &[EOS, THE]).unwrap();
        assert_eq!(tokenizer.bos_id(), Some(BOS));
        assert_eq!(tokenizer.encode_document("cat").unwrap(), [BOS, CAT, EOS]);
        assert_eq!(tokenizer.eos_ids(), [EOS, THE]);
        assert!(tokenizer.is_eos(THE) && !tokenizer.is_eos(CAT));
    }

    #[test]
    fn the_settings_eos_comes_before_those_of_the_model() {
        let folder = fixture::folder(&fixture::json(), &json!({"eos_token": "</s>"}));
        let tokenizer = Tokenizer::from_dir(folder.path(), None, &[THE, EOS]).unwrap();
        assert_eq!(tokenizer.eos_ids(), [EOS, THE]);
    }

    #[test]
    fn decoding_skips_special_tokens() {
        let text = fixture::tokenizer().decode(&[BOS, THE, CAT, EOS]).unwrap();
        assert_eq!(text, "the cat");
    }

    #[test]
    fn truncation_and_padding_of_the_file_do_not_apply() {
        let mut tokenizer = fixture::json();
        tokenizer["truncation"] = json!({"direction": "Right", "max_length": 2,
            "strategy": "LongestFirst", "stride": 0});
        tokenizer["padding"] = json!({"strategy": {"Fixed": 9}, "direction": "Right",
            "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"});
        let folder = fixture::folder(&tokenizer, &json!({}));
        let tokenizer = Tokenizer::from_dir(folder.path(), None, &[]).unwrap();
        assert_eq!(
            tokenizer.encode_document("the cat the").unwrap(),
            [BOS, THE, CAT, THE]
        );
    }

    #[test]
    fn a_model_needs_an_embedding_for_every_id() {
        let tokenizer = fixture::tokenizer();
        assert_eq!(tokenizer.vocab_size(), 5);
        tokenizer.check_vocab(5).unwrap();
        let error = tokenizer.check_vocab(4).unwrap_err();
        assert!(matches!(
            error,
            TokenizerError::Vocabulary {
                largest_id: 4,
                model_vocab: 4
            }
        ));

        let folder = fixture::folder(&fixture::json(), &json!({}));
        let tokenizer = Tokenizer::from_dir(folder.path(), None, &[7]).unwrap();
        assert!(tokenizer.check_vocab(7).is_err());
        tokenizer.check_vocab(8).unwrap();
    }

    #[test]
    fn a_folder_without_a_tokenizer_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = Tokenizer::from_dir(folder.path(), None, &[]).unwrap_err();
        assert!(matches!(&error, TokenizerError::Missing { folder: f } if f == folder.path()));
        assert!(error.to_string().contains("save_pretrained"));
    }

    #[test]
    fn unreadable_files_are_errors() {
        let folder = fixture::folder(&json!({"model": 1}), &json!({}));
        let load = || Tokenizer::from_dir(folder.path(), None, &[]).unwrap_err();
        assert!(matches!(load(), TokenizerError::Tokenizer { .. }));

        fixture::write(folder.path(), TOKENIZER, &fixture::json());
        fixture::write(folder.path(), TOKENIZER_CONFIG, &json!({"eos_token": 2}));
        assert!(matches!(load(), TokenizerError::Config { .. }));

        fs::remove_file(folder.path().join(TOKENIZER_CONFIG)).unwrap();
        fs::create_dir(folder.path().join(TOKENIZER_CONFIG)).unwrap();
        assert!(matches!(load(), TokenizerError::Read { .. }));
    }

    #[test]
    fn contradicting_files_are_errors() {
        let error = load(&["$A"], &json!({"eos_token": "<end>"})).unwrap_err();
        assert!(
            matches!(&error, TokenizerError::UnknownToken { role: "eos_token", token, .. } if token == "<end>"),
            "{error}"
        );
        let error = load(&["$A"], &json!({"add_bos_token": true})).unwrap_err();
        assert!(matches!(error, TokenizerError::NoBos { .. }), "{error}");
    }

    #[test]
    fn a_failing_library_is_an_error() {
        let tokenizer = fixture::without_unknown_token();
        let one = tokenizer.encode_document("dog").unwrap_err();
        let many = tokenizer.encode_documents(&["dog".into()]).unwrap_err();
        assert!(matches!(one, TokenizerError::Failed { .. }));
        assert!(matches!(many, TokenizerError::Failed { .. }));
    }

    #[test]
    fn files_are_carried_over_as_they_are() {
        let from = fixture::folder(&fixture::json(), &json!({}));
        fs::write(from.path().join("config.json"), "{}").unwrap();
        let to = tempfile::tempdir().unwrap();
        copy_files(from.path(), to.path()).unwrap();
        for name in [TOKENIZER, TOKENIZER_CONFIG] {
            let [ours, theirs] = [&to, &from].map(|folder| fs::read(folder.path().join(name)));
            assert_eq!(ours.unwrap(), theirs.unwrap());
        }
        assert_eq!(fs::read_dir(to.path()).unwrap().count(), 2);
    }

    #[test]
    fn files_cannot_be_carried_to_nowhere() {
        let from = fixture::folder(&fixture::json(), &json!({}));
        let error = copy_files(from.path(), &from.path().join("nowhere")).unwrap_err();
        assert!(matches!(error, TokenizerError::Write(_)));
    }
}
