//! [`Vocabulary`]: a tokenizer, between the keys of a GGUF file and a `tokenizer.json`.
//!
//! Two kinds are known. `gpt2` is byte-pair encoding of bytes, with merges and a way to cut the text before. `llama`
//! is SentencePiece's byte-pair encoding: each piece has a score, and of two neighbours those are joined first that
//! make the piece of the highest. As merges that is: each way to make a piece out of two, by falling score.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::keys::ends;
use super::pre::Pre;
use super::write::NewValue;
use super::{Container, GgufError};

/// What stands for a space in a piece of SentencePiece's.
const SPACE: &str = "\u{2581}";

/// The kinds of tokens, by their numbers in a file.
mod kind {
    pub(super) const NORMAL: i32 = 1;
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const CONTROL: i32 = 3;
    pub(super) const USER_DEFINED: i32 = 4;
    pub(super) const UNUSED: i32 = 5;
    pub(super) const BYTE: i32 = 6;
}

/// A tokenizer.
#[derive(Clone, Debug)]
pub(crate) struct Vocabulary {
    /// Which errors name.
    file: PathBuf,
    model: Model,
    tokens: Vec<String>,
    kinds: Vec<i32>,
    /// BOS, the ends, unknown, padding, as far as there are any.
    special: Special,
    /// BOS begins a text, EOS ends it.
    adds: [bool; 2],
    /// By name; `default` is the one that is meant if none is.
    templates: BTreeMap<String, String>,
    context: Option<usize>,
}

/// Tokens with a meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Special {
    pub(crate) bos: Option<usize>,
    pub(crate) ends: Vec<usize>,
    pub(crate) unknown: Option<usize>,
    pub(crate) padding: Option<usize>,
}

#[derive(Clone, Debug)]
enum Model {
    /// `gpt2`
    Bytes {
        pre: &'static Pre,
        merges: Vec<(String, String)>,
    },
    /// `llama`
    Pieces {
        scores: Vec<f64>,
        prefix_space: bool,
    },
}

impl Vocabulary {
    /// That of a file.
    pub(super) fn of_file(file: &Container, context: Option<usize>) -> Result<Self, GgufError> {
        let path = &file.path;
        let refused = |reason: String| Err(GgufError::tokenizer(path, reason));
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let Some(model) = file.text("tokenizer.ggml.model")? else {
            return refused("has no tokenizer".to_owned());
        };
        let Some(tokens) = file.texts("tokenizer.ggml.tokens")? else {
            return refused("has no tokens".to_owned());
        };
        let tokens: Vec<String> = tokens.into_iter().map(str::to_owned).collect();
        let kinds = file.integers("tokenizer.ggml.token_type")?;
        let kinds = kinds.map_or_else(
            || vec![kind::NORMAL; tokens.len()],
            |kinds| {
                kinds
                    .into_iter()
                    .map(|it| i32::try_from(it).unwrap_or(kind::NORMAL))
                    .collect()
            },
        );
        check_length(path, "token_type", kinds.len(), tokens.len())?;
        let mut adds_bos = true;
        let model = match model {
            "gpt2" => {
                let Some(name) = file.text("tokenizer.ggml.pre")? else {
                    return refused(
                        "does not say how its tokenizer cuts a text (`tokenizer.ggml.pre`): it was converted before \
                         May 2024; convert the model again"
                            .to_owned(),
                    );
                };
                let Some(pre) = Pre::named(name) else {
                    return refused(format!(
                        "cuts a text by \"{name}\" (`tokenizer.ggml.pre`), which is not known here: {} are",
                        Pre::names()
                    ));
                };
                adds_bos = pre.add_bos;
                let merges = file.texts("tokenizer.ggml.merges")?.unwrap_or_default();
                let merges = merges.into_iter().map(|merge| {
                    // A piece may begin with a space, but is not empty.
                    let space = merge.char_indices().skip(1).find(|(_, it)| *it == ' ');
                    let parts =
                        space.map(|(at, _)| (merge[..at].to_owned(), merge[at + 1..].to_owned()));
                    parts.ok_or_else(|| {
                        GgufError::broken(
                            path,
                            format!("has the merge {merge:?}, which is not two pieces"),
                        )
                    })
                });
                let merges = merges.collect::<Result<_, _>>()?;
                Model::Bytes { pre, merges }
            }
            "llama" => {
                let scores = file.floats("tokenizer.ggml.scores")?.unwrap_or_default();
                check_length(path, "scores", scores.len(), tokens.len())?;
                if scores.iter().any(|score| score.is_nan()) {
                    return Err(GgufError::broken(
                        path,
                        "has a token whose score is no number",
                    ));
                }
                let prefix_space = file.bool(&key("add_space_prefix"))?.unwrap_or(true);
                Model::Pieces {
                    scores,
                    prefix_space,
                }
            }
            other => {
                return refused(format!(
                    "has a tokenizer \"{other}\" (`tokenizer.ggml.model`), which is not read here: gpt2 and llama are"
                ));
            }
        };
        let id = |name: &str| file.number(&key(&format!("{name}_token_id")));
        let special = Special {
            bos: id("bos")?,
            ends: ends(file)?,
            unknown: id("unknown")?,
            padding: id("padding")?,
        };
        let adds = [
            file.bool(&key("add_bos_token"))?.unwrap_or(adds_bos),
            file.bool(&key("add_eos_token"))?.unwrap_or(false),
        ];
        let mut templates = BTreeMap::new();
        const TEMPLATE: &str = "tokenizer.chat_template";
        for name in file.keys(TEMPLATE) {
            let short = match name.strip_prefix(TEMPLATE) {
                Some("") => "default",
                Some(more) if more.starts_with('.') => &more[1..],
                _ => continue,
            };
            if let Some(text) = file.text(name)? {
                templates.insert(short.to_owned(), text.to_owned());
            }
        }
        let vocabulary = Self {
            file: path.clone(),
            model,
            tokens,
            kinds,
            special,
            adds,
            templates,
            context,
        };
        vocabulary.check()?;
        Ok(vocabulary)
    }

    /// That of a `tokenizer.json`, which is `file`, with as many tokens as the model has embeddings.
    pub(crate) fn of_json(
        tokenizer: &Value,
        file: &Path,
        vocab_size: usize,
        special: Special,
        adds: [bool; 2],
        template: Option<String>,
    ) -> Result<Self, GgufError> {
        let refused = |reason: &str| Err(GgufError::refused(file, reason));
        let model = &tokenizer["model"];
        if model["type"] != "BPE" {
            let kind = model["type"]
                .as_str()
                .unwrap_or("a tokenizer without a type");
            return refused(&format!(
                "is {kind}, and only byte-pair encoding is written to GGUF here: use llama.cpp's \
                 convert_hf_to_gguf.py"
            ));
        }
        let Some(vocab) = model["vocab"].as_object() else {
            return refused("has no `model.vocab`: save the tokenizer again");
        };
        let mut tokens: Vec<Option<(String, i32)>> = vec![None; vocab_size];
        let mut put = |content: &str, id: Option<u64>, kind: i32| {
            let place = id.and_then(|id| tokens.get_mut(usize::try_from(id).ok()?));
            match place {
                Some(place) => {
                    *place = Some((content.to_owned(), kind));
                    Ok(())
                }
                None => Err(GgufError::refused(
                    file,
                    format!(
                        "has the token {content:?}, for which the model has no embedding: its `vocab_size` is \
                         {vocab_size}"
                    ),
                )),
            }
        };
        let is_pieces = model["byte_fallback"] == true;
        for (content, id) in vocab {
            let is_byte = is_pieces && byte_of(content).is_some();
            put(
                content,
                id.as_u64(),
                if is_byte { kind::BYTE } else { kind::NORMAL },
            )?;
        }
        for added in tokenizer["added_tokens"].as_array().into_iter().flatten() {
            let content = added["content"].as_str().unwrap_or_default();
            let is_unknown = is_pieces && model["unk_token"].as_str() == Some(content);
            let kind = match added["special"] == true {
                _ if is_unknown => kind::UNKNOWN,
                true => kind::CONTROL,
                false => kind::USER_DEFINED,
            };
            put(content, added["id"].as_u64(), kind)?;
        }
        let padded = tokens
            .into_iter()
            .enumerate()
            .map(|(id, token)| token.unwrap_or_else(|| (padding(id), kind::UNUSED)));
        let (tokens, kinds): (Vec<String>, Vec<i32>) = padded.unzip();
        let Some(merges) = merges_of(model) else {
            return refused("has merges that are not two pieces each: save the tokenizer again");
        };
        let model = match is_pieces {
            true => Model::of_pieces(tokenizer, file, &tokens, &kinds, &merges)?,
            false => {
                let Some(pre) = Pre::of_json(tokenizer) else {
                    return refused(
                        "cuts a text in a way for which no name in GGUF is known here: use llama.cpp's \
                         convert_hf_to_gguf.py, which knows more of them",
                    );
                };
                Model::Bytes { pre, merges }
            }
        };
        let templates = template.map(|text| ("default".to_owned(), text));
        let vocabulary = Self {
            file: file.to_owned(),
            model,
            tokens,
            kinds,
            special,
            adds,
            templates: templates.into_iter().collect(),
            context: None,
        };
        vocabulary.check()?;
        Ok(vocabulary)
    }

    /// No two tokens are the same text, and those with a meaning are there.
    fn check(&self) -> Result<(), GgufError> {
        let mut seen = HashMap::new();
        for (id, token) in self.tokens.iter().enumerate() {
            if let Some(first) = seen.insert(token, id) {
                let reason = format!("has {token:?} as token {first} and as token {id}");
                return Err(GgufError::broken(&self.file, reason));
            }
        }
        let special = &self.special;
        let ids = [&special.bos, &special.unknown, &special.padding]
            .into_iter()
            .flatten()
            .chain(&special.ends);
        match ids.into_iter().find(|id| **id >= self.tokens.len()) {
            None => Ok(()),
            Some(id) => {
                let count = self.tokens.len();
                let reason = format!("names token {id} as a special one, and has {count} tokens");
                Err(GgufError::broken(&self.file, reason))
            }
        }
    }

    /// As `tokenizer.json` has it.
    pub(crate) fn tokenizer_json(&self) -> Value {
        let vocab: Map<String, Value> = self
            .tokens
            .iter()
            .enumerate()
            .filter(|(id, token)| self.kinds[*id] != kind::UNUSED || **token != padding(*id))
            .map(|(id, token)| (token.clone(), json!(id)))
            .collect();
        let added = |(id, kind): (usize, &i32)| {
            let is_special = [kind::UNKNOWN, kind::CONTROL].contains(kind);
            (is_special || *kind == kind::USER_DEFINED).then(|| {
                json!({
                    "id": id,
                    "content": self.tokens[id],
                    "single_word": false,
                    "lstrip": false,
                    "rstrip": false,
                    "normalized": false,
                    "special": is_special,
                })
            })
        };
        let added: Vec<Value> = self.kinds.iter().enumerate().filter_map(added).collect();
        let (normalizer, pre_tokenizer, decoder, merges, is_pieces, ignore_merges) = match &self
            .model
        {
            Model::Bytes { pre, merges } => (
                pre.normalizer(),
                pre.pre_tokenizer(),
                json!({
                    "type": "ByteLevel",
                    "add_prefix_space": true,
                    "trim_offsets": true,
                    "use_regex": true,
                }),
                json!(merges),
                false,
                pre.ignore_merges,
            ),
            Model::Pieces {
                scores,
                prefix_space,
            } => {
                let mut normalizers = vec![json!({
                    "type": "Replace", "pattern": { "String": " " }, "content": SPACE,
                })];
                let mut decoders = vec![
                    json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " }),
                    json!({ "type": "ByteFallback" }),
                    json!({ "type": "Fuse" }),
                ];
                if *prefix_space {
                    normalizers.insert(0, json!({ "type": "Prepend", "prepend": SPACE }));
                    decoders
                        .push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
                }
                (
                    json!({ "type": "Sequence", "normalizers": normalizers }),
                    Value::Null,
                    json!({ "type": "Sequence", "decoders": decoders }),
                    json!(merges_by_score(&self.tokens, &self.kinds, scores)),
                    true,
                    false,
                )
            }
        };
        let unknown = self.special.unknown.filter(|_| is_pieces);
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": self.post_processor(),
            "decoder": decoder,
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": unknown.map(|id| &self.tokens[id]),
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": is_pieces,
                "byte_fallback": is_pieces,
                "ignore_merges": ignore_merges,
                "vocab": vocab,
                "merges": merges,
            },
        })
    }

    /// BOS before a text and EOS behind it, if that is so.
    fn post_processor(&self) -> Value {
        let [adds_bos, adds_eos] = self.adds;
        let bos = self.special.bos.filter(|_| adds_bos);
        let eos = self.special.ends.first().copied().filter(|_| adds_eos);
        if bos.is_none() && eos.is_none() {
            return Value::Null;
        }
        let special =
            |id: usize| json!({ "SpecialToken": { "id": self.tokens[id], "type_id": 0 } });
        let of = |sequences: &[&str]| -> Vec<Value> {
            let each = sequences.iter().zip(0..).flat_map(|(name, type_id)| {
                let text = json!({ "Sequence": { "id": name, "type_id": type_id } });
                [bos.map(special), Some(text), eos.map(special)]
            });
            each.flatten().collect()
        };
        let known: Map<String, Value> = bos
            .into_iter()
            .chain(eos)
            .map(|id| {
                let token = &self.tokens[id];
                (
                    token.clone(),
                    json!({ "id": token, "ids": [id], "tokens": [token] }),
                )
            })
            .collect();
        json!({
            "type": "TemplateProcessing",
            "single": of(&["A"]),
            "pair": of(&["A", "B"]),
            "special_tokens": known,
        })
    }

    /// As `tokenizer_config.json` has it.
    pub(crate) fn tokenizer_config(&self) -> Value {
        let mut config = json!({
            "clean_up_tokenization_spaces": false,
            "tokenizer_class": "PreTrainedTokenizerFast",
        });
        if let Some(context) = self.context {
            config["model_max_length"] = json!(context);
        }
        for (name, id) in [
            ("bos_token", self.special.bos),
            ("eos_token", self.special.ends.first().copied()),
            ("unk_token", self.special.unknown),
            ("pad_token", self.special.padding),
        ] {
            if let Some(id) = id {
                config[name] = json!(self.tokens[id]);
            }
        }
        let named =
            |(name, template): (&String, &String)| json!({ "name": name, "template": template });
        match (self.templates.len(), self.templates.get("default")) {
            (0, _) => {}
            (1, Some(template)) => config["chat_template"] = json!(template),
            _ => config["chat_template"] = self.templates.iter().map(named).collect(),
        }
        config
    }

    /// The keys of a file.
    pub(crate) fn entries(&self) -> Vec<(String, NewValue)> {
        let mut entries = Vec::new();
        let mut say = |name: &str, value: NewValue| {
            entries.push((format!("tokenizer.ggml.{name}"), value));
        };
        match &self.model {
            Model::Bytes { pre, merges } => {
                say("model", NewValue::Text("gpt2".into()));
                say("pre", NewValue::Text(pre.names[0].into()));
                let merges = merges.iter().map(|(left, right)| format!("{left} {right}"));
                say("merges", NewValue::Texts(merges.collect()));
            }
            Model::Pieces {
                scores,
                prefix_space,
            } => {
                say("model", NewValue::Text("llama".into()));
                say("pre", NewValue::Text("default".into()));
                let scores = scores.iter().map(|score| *score as f32);
                say("scores", NewValue::Floats(scores.collect()));
                say("add_space_prefix", NewValue::Bool(*prefix_space));
            }
        }
        say("tokens", NewValue::Texts(self.tokens.clone()));
        say("token_type", NewValue::Integers(self.kinds.clone()));
        let [adds_bos, adds_eos] = self.adds;
        say("add_bos_token", NewValue::Bool(adds_bos));
        say("add_eos_token", NewValue::Bool(adds_eos));
        let ends = &self.special.ends;
        for (name, id) in [
            ("bos", self.special.bos),
            ("eos", ends.first().copied()),
            ("eot", ends.get(1).copied()),
            ("eom", ends.get(2).copied()),
            ("unknown", self.special.unknown),
            ("padding", self.special.padding),
        ] {
            if let Some(id) = id.and_then(|id| u32::try_from(id).ok()) {
                say(&format!("{name}_token_id"), NewValue::Number(id));
            }
        }
        if let Some(template) = self.templates.get("default") {
            entries.push((
                "tokenizer.chat_template".into(),
                NewValue::Text(template.clone()),
            ));
        }
        entries
    }
}

impl Model {
    /// SentencePiece's pieces: the scores from which the merges follow.
    fn of_pieces(
        tokenizer: &Value,
        file: &Path,
        tokens: &[String],
        kinds: &[i32],
        merges: &[(String, String)],
    ) -> Result<Self, GgufError> {
        let refused = |reason: &str| {
            let reason = format!(
                "{reason}: use llama.cpp's convert_hf_to_gguf.py with the model's tokenizer.model"
            );
            Err(GgufError::refused(file, reason))
        };
        let prefix_space = match prefix_space(tokenizer) {
            Some(prefix_space) => prefix_space,
            None => return refused("does not treat spaces as SentencePiece does"),
        };
        let mut scores = vec![0.0; tokens.len()];
        let ids: HashMap<&str, usize> = tokens.iter().map(String::as_str).zip(0..).collect();
        let mut next = 0.0;
        let mut last = None;
        let mut scored = HashSet::new();
        for (left, right) in merges {
            let Some(id) = ids.get(format!("{left}{right}").as_str()) else {
                return refused("has a merge that makes no token");
            };
            if last != Some(*id) {
                next -= 1.0;
                if !scored.insert(*id) {
                    return refused("joins pieces in an order for which there are no scores");
                }
                scores[*id] = next;
            }
            last = Some(*id);
        }
        // What no merge makes must not be made.
        let unmade = next - 1.0;
        for (id, score) in scores.iter_mut().enumerate() {
            if kinds[id] == kind::NORMAL && !scored.contains(&id) {
                *score = unmade;
            }
        }
        let set = |merges: &[(String, String)]| -> HashSet<(String, String)> {
            merges.iter().cloned().collect()
        };
        match set(&merges_by_score(tokens, kinds, &scores)) == set(merges) {
            true => Ok(Self::Pieces {
                scores,
                prefix_space,
            }),
            false => refused("has pieces that are joined only in some of the ways to make them"),
        }
    }
}

/// Whether a space is put before a text; `None` if spaces are treated in a way that SentencePiece has not.
fn prefix_space(tokenizer: &Value) -> Option<bool> {
    let (normalizer, pre_tokenizer) = (&tokenizer["normalizer"], &tokenizer["pre_tokenizer"]);
    let steps = match normalizer["type"].as_str() {
        None => Vec::new(),
        Some("Sequence") => normalizer["normalizers"].as_array()?.iter().collect(),
        Some(_) => vec![normalizer],
    };
    let is_space = |step: &Value| {
        step["type"] == "Replace" && step["pattern"]["String"] == " " && step["content"] == SPACE
    };
    let is_prefix = |step: &Value| step["type"] == "Prepend" && step["prepend"] == SPACE;
    match (steps.as_slice(), pre_tokenizer["type"].as_str()) {
        ([prefix, space], None) if is_prefix(prefix) && is_space(space) => Some(true),
        ([space], None) if is_space(space) => Some(false),
        // Gemma's: no piece has a space in it any more.
        ([space], Some("Split"))
            if is_space(space) && pre_tokenizer["pattern"]["String"] == " " =>
        {
            Some(false)
        }
        ([], Some("Metaspace")) if pre_tokenizer["split"] == false => {
            match pre_tokenizer["prepend_scheme"].as_str() {
                Some("first" | "always") => Some(true),
                Some("never") => Some(false),
                _ => None,
            }
        }
        _ => None,
    }
}

/// All ways to make a piece out of two, by falling score; of one piece those with earlier halves first. It is what
/// transformers makes of SentencePiece's files.
fn merges_by_score(tokens: &[String], kinds: &[i32], scores: &[f64]) -> Vec<(String, String)> {
    let normal =
        |id: &usize| [kind::NORMAL, kind::USER_DEFINED, kind::UNUSED].contains(&kinds[*id]);
    let ids: HashMap<&str, usize> = (0..tokens.len())
        .filter(normal)
        .map(|id| (tokens[id].as_str(), id))
        .collect();
    let mut merges = Vec::new();
    for whole in (0..tokens.len()).filter(normal) {
        let token = &tokens[whole];
        for (at, _) in token.char_indices().skip(1) {
            let halves = ids.get(&token[..at]).zip(ids.get(&token[at..]));
            if let Some((left, right)) = halves {
                merges.push((whole, *left, *right));
            }
        }
    }
    merges.sort_by(|a, b| {
        let by_score = scores[b.0]
            .partial_cmp(&scores[a.0])
            .unwrap_or(Ordering::Equal);
        by_score.then(a.cmp(b))
    });
    let text = |id: usize| tokens[id].clone();
    merges
        .into_iter()
        .map(|(_, left, right)| (text(left), text(right)))
        .collect()
}

/// The merges of a `tokenizer.json`, which are pairs or texts with a space.
fn merges_of(model: &Value) -> Option<Vec<(String, String)>> {
    let all = model["merges"].as_array()?.iter();
    let parts = all.map(|merge| match merge {
        Value::String(text) => {
            let (left, right) = text.split_once(' ')?;
            Some((left.to_owned(), right.to_owned()))
        }
        pair => {
            let [left, right] = pair.as_array()?.as_slice() else {
                return None;
            };
            Some((left.as_str()?.to_owned(), right.as_str()?.to_owned()))
        }
    });
    parts.collect()
}

/// What stands in a file for an embedding that no token has, as llama.cpp's converter names it.
fn padding(id: usize) -> String {
    format!("[PAD{id}]")
}

/// The byte that `<0x0A>` stands for.
fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

fn check_length(file: &Path, key: &str, found: usize, tokens: usize) -> Result<(), GgufError> {
    match found == tokens {
        true => Ok(()),
        false => Err(GgufError::broken(
            file,
            format!("has {found} entries of `tokenizer.ggml.{key}` for {tokens} tokens"),
        )),
    }
}
