//! The files of a tokenizer with some of its tokens, numbered anew.

use std::collections::HashSet;
use std::path::Path;

use serde_json::{Map, Value};

use super::guard::guarded;
use super::kept::KeptTokens;
use super::needs::{merge_parts, merged, post_processor_ids};
use super::source::Source;
use super::{
    FILES, GENERATION_CONFIG, MOST_BYTES, TOKENIZER, TOKENIZER_CONFIG, TokenizerError,
    read_if_there, unlimited,
};
use crate::config::renumber;

/// Files that say the same as `tokenizer.json`, for the whole vocabulary.
const OTHER_FORMS: [&str; 3] = ["tokenizer.model", "vocab.json", "merges.txt"];
/// The file of tokens beside the model's own.
const ADDED_TOKENS: &str = "added_tokens.json";

/// What `source` holds, cut to the tokens that are kept: those that these need must be among them.
pub(super) fn cut<'a>(source: Source<'a>, kept: &KeptTokens) -> Result<Source<'a>, TokenizerError> {
    let mut files = Vec::new();
    let [most, most_of_others] = MOST_BYTES;
    let Some(bytes) = read_if_there(&source, TOKENIZER, most)? else {
        return Ok(source); // which is said where it is read
    };
    let library = |source_error| TokenizerError::Library {
        what: format!(
            "{} cannot be cut: leave student.vocabulary out",
            source.path(TOKENIZER).display()
        ),
        source: source_error,
    };
    let cut = Cut {
        whole: guarded(|| unlimited(&bytes)).map_err(library)?,
        kept,
    };
    for name in FILES {
        let most = match name {
            TOKENIZER => most,
            _ => most_of_others,
        };
        let bytes = match read_if_there(&source, name, most)? {
            Some(bytes) if !OTHER_FORMS.contains(&name) => bytes,
            _ => continue,
        };
        if ![TOKENIZER, TOKENIZER_CONFIG, GENERATION_CONFIG, ADDED_TOKENS].contains(&name) {
            files.push((name, bytes));
            continue;
        }
        let file = source.path(name);
        let mut json = serde_json::from_slice(&bytes).map_err(|source| TokenizerError::Config {
            file: file.clone(),
            source,
        })?;
        let mut edited = Some(());
        match name {
            TOKENIZER => edited = cut.tokenizer(&mut json),
            TOKENIZER_CONFIG => cut.settings(&mut json),
            GENERATION_CONFIG => cut.generation(&mut json),
            _ => cut.added(&mut json),
        }
        edited.ok_or_else(|| {
            TokenizerError::Refused(format!(
                "{} cannot be cut: its post-processor puts a token that it does not have; leave student.vocabulary out",
                file.display()
            ))
        })?;
        files.push((name, format!("{json:#}\n").into_bytes()));
    }
    let is_cut = |(name, bytes): &(&str, Vec<u8>)| {
        (*name == TOKENIZER).then(|| guarded(|| unlimited(bytes)))
    };
    if let Some(made) = files.iter().find_map(is_cut) {
        cut.check(&made.map_err(library)?, &source.path(TOKENIZER))?;
    }
    Ok(Source::Cut {
        of: Box::new(source),
        files,
    })
}

/// A tokenizer that is cut.
struct Cut<'k> {
    whole: tokenizers::Tokenizer,
    kept: &'k KeptTokens,
}

impl Cut<'_> {
    /// The new id of a token.
    fn new_id(&self, token: &str) -> Option<u32> {
        self.kept.new_id(self.whole.token_to_id(token)?)
    }

    /// `tokenizer.json`
    fn tokenizer(&self, json: &mut Value) -> Option<()> {
        if let Some(added) = json.get_mut("added_tokens").and_then(Value::as_array_mut) {
            added.retain_mut(|token| {
                match token["content"].as_str().and_then(|it| self.new_id(it)) {
                    Some(id) => {
                        token["id"] = id.into();
                        true
                    }
                    None => false,
                }
            });
        }
        if let Some(model) = json.get_mut("model") {
            self.model(model);
        }
        if let Some(post_processor) = json.get_mut("post_processor") {
            post_processor_ids(post_processor, &mut |id| self.kept.new_id(id))?;
        }
        let padding = json["padding"]["pad_token"]
            .as_str()
            .map(|token| self.new_id(token));
        match padding {
            Some(Some(id)) => json["padding"]["pad_id"] = id.into(),
            Some(None) => json["padding"] = Value::Null,
            None => {}
        }
        Some(())
    }

    fn model(&self, model: &mut Value) {
        let mut tokens: HashSet<String> = HashSet::new();
        match model.get_mut("vocab") {
            Some(Value::Object(vocab)) => {
                let of = |token: &String| Some((self.new_id(token)?, token.clone()));
                let mut kept: Vec<(u32, String)> = vocab.keys().filter_map(of).collect();
                kept.sort_unstable();
                tokens.extend(kept.iter().map(|(_, token)| token.clone()));
                *vocab = kept
                    .into_iter()
                    .map(|(id, token)| (token, id.into()))
                    .collect();
            }
            Some(Value::Array(pieces)) => {
                let mut ids = 0..;
                pieces.retain(|_| ids.next().is_some_and(|id| self.kept.new_id(id).is_some()));
            }
            _ => {}
        }
        if let Some(unknown) = model["unk_id"]
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
        {
            model["unk_id"] = self.kept.new_id(unknown).into();
        }
        let Some(Value::Array(merges)) = model.get_mut("merges").map(Value::take) else {
            return;
        };
        let stays = |merge: &Value| {
            merge_parts(merge).is_some_and(|(left, right)| {
                let whole = merged(model, left, right);
                [left, right, &whole]
                    .iter()
                    .all(|part| tokens.contains(*part))
            })
        };
        let merges = merges.into_iter().filter(stays).collect();
        model["merges"] = Value::Array(merges);
    }

    /// `tokenizer_config.json`
    fn settings(&self, json: &mut Value) {
        let Some(added) = json
            .get_mut("added_tokens_decoder")
            .and_then(Value::as_object_mut)
        else {
            return;
        };
        let of = |token: &Value| Some((self.new_id(token["content"].as_str()?)?, token.clone()));
        let mut kept: Vec<(u32, Value)> = added.values().filter_map(of).collect();
        kept.sort_unstable_by_key(|(id, _)| *id);
        *added = kept
            .into_iter()
            .map(|(id, token)| (id.to_string(), token))
            .collect();
    }

    /// `generation_config.json`
    fn generation(&self, json: &mut Value) {
        if let Some(fields) = json.as_object_mut() {
            renumber(fields, &|id| self.kept.new_id(id));
        }
    }

    /// `added_tokens.json`
    fn added(&self, json: &mut Value) {
        if let Some(tokens) = json.as_object_mut() {
            let of = |token: &String| Some((token.clone(), self.new_id(token)?.into()));
            *tokens = tokens.keys().filter_map(of).collect::<Map<String, Value>>();
        }
    }

    /// The library numbers some tokens itself.
    fn check(&self, made: &tokenizers::Tokenizer, file: &Path) -> Result<(), TokenizerError> {
        let kept = self.kept.ids();
        let differs = |(new, old): (u32, &u32)| {
            let is = made.id_to_token(new);
            let was = self.whole.id_to_token(*old);
            (is != was).then(|| was.unwrap_or_else(|| format!("number {old}")))
        };
        let other = (0..).zip(kept).find_map(differs);
        match other {
            None if made.get_vocab_size(true) == kept.len() => Ok(()),
            other => Err(TokenizerError::Refused(format!(
                "{} cannot be cut: its tokens are numbered in a way of its own{}; leave student.vocabulary out",
                file.display(),
                other.map_or_else(String::new, |token| format!(", among them {token:?}"))
            ))),
        }
    }
}

#[cfg(test)]
mod tests;
