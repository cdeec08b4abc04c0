//! What a tokenizer cannot do without where it keeps some of its tokens.
//!
//! A text in which only kept tokens occur is to have the same tokens as before, and any other text some tokens. Both
//! follow from how each kind of model cuts a word:
//!
//! - Byte-pair encoding joins the pair of neighbours whose merge comes first in its list, and again. No merge reaches
//!   over the ends of a token that is left when none is possible any more, so what is joined within them does not
//!   depend on the text around: it is what the token alone is made of. With these parts kept, each merge that the
//!   whole tokenizer makes is there, and since no others were added, it comes first there too.
//! - A unigram model takes the pieces with the highest sum of scores. Fewer pieces leave fewer sums, of which the
//!   highest is still there. What is unknown costs ten more than the piece of the lowest score, which therefore stays:
//!   so no way over a character that is known no more is better than that over its piece was.
//! - WordPiece takes the longest piece that fits, one after another, and a list of words takes words.
//!
//! A text that has none of these is cut into bytes, where a model has tokens for all of them, and else into
//! characters.

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;

/// The ids of the tokens without which a tokenizer, as the library writes it, would cut `wanted` otherwise, or would
/// not cut some text at all.
pub(super) fn needed(
    tokenizer: &Value,
    wanted: impl IntoIterator<Item = String>,
    id_of: &dyn Fn(&str) -> Option<u32>,
) -> BTreeSet<u32> {
    let model = &tokenizer["model"];
    let parts = Parts::of(model);
    let mut needed: BTreeSet<String> = BTreeSet::new();
    needed.extend(parts.fallback());
    needed.extend(model["unk_token"].as_str().map(str::to_owned));
    // Spaces in another form, for one: they are to be read back as spaces, not as bytes.
    for part in ["normalizer", "pre_tokenizer"] {
        written(&tokenizer[part], &mut needed);
    }
    if let Some(merges) = Merges::of(model) {
        for token in wanted {
            needed.extend(merges.parts(&token));
        }
    }
    let mut ids: BTreeSet<u32> = needed.iter().filter_map(|token| id_of(token)).collect();
    if let Some(pieces) = model["vocab"].as_array() {
        ids.extend(unknown_and_least(model, pieces));
    }
    let mut of_ends = tokenizer["post_processor"].clone();
    post_processor_ids(&mut of_ends, &mut |id| {
        ids.insert(id);
        Some(id)
    });
    ids
}

/// Puts another in the place of each id that a post-processor has; `None` if there is none for one of them.
pub(super) fn post_processor_ids(
    post_processor: &mut Value,
    new_id: &mut dyn FnMut(u32) -> Option<u32>,
) -> Option<()> {
    let mut renumber = |id: &mut Value| {
        let Some(old) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else {
            return Some(());
        };
        *id = new_id(old)?.into();
        Some(())
    };
    match post_processor["type"].as_str() {
        Some("Sequence") => {
            let all = post_processor["processors"].as_array_mut();
            for one in all.into_iter().flatten() {
                post_processor_ids(one, new_id)?;
            }
        }
        Some("TemplateProcessing") => {
            let special = post_processor["special_tokens"].as_object_mut();
            for token in special.into_iter().flat_map(|all| all.values_mut()) {
                let ids = token.get_mut("ids").and_then(Value::as_array_mut);
                ids.into_iter().flatten().try_for_each(&mut renumber)?;
            }
        }
        Some("BertProcessing" | "RobertaProcessing") => {
            for end in ["sep", "cls"] {
                if let Some(id) = post_processor.get_mut(end).and_then(|end| end.get_mut(1)) {
                    renumber(id)?;
                }
            }
        }
        _ => {}
    }
    Some(())
}

/// The two parts of a merge, which files write in two ways.
pub(super) fn merge_parts(merge: &Value) -> Option<(&str, &str)> {
    match merge {
        Value::String(both) => both.split_once(' '),
        Value::Array(both) => match both.as_slice() {
            [left, right] => Some((left.as_str()?, right.as_str()?)),
            _ => None,
        },
        _ => None,
    }
}

/// What a merge makes. The mark of what goes on in a word is left out where it would stand within one.
pub(super) fn merged(model: &Value, left: &str, right: &str) -> String {
    let prefix = model["continuing_subword_prefix"].as_str();
    let prefix = prefix.unwrap_or_default().chars().count();
    format!("{left}{}", right.get(prefix..).unwrap_or_default())
}

/// How the vocabulary of a model writes parts of words.
struct Parts<'a> {
    model: &'a Value,
    /// Before a part that goes on.
    prefix: &'a str,
    /// After a part that ends a word.
    suffix: &'a str,
}

impl<'a> Parts<'a> {
    fn of(model: &'a Value) -> Self {
        let text = |key: &str| model[key].as_str().unwrap_or_default();
        Self {
            model,
            prefix: text("continuing_subword_prefix"),
            suffix: text("end_of_word_suffix"),
        }
    }

    /// All of the vocabulary.
    fn tokens(&self) -> impl Iterator<Item = &'a str> {
        let vocab = &self.model["vocab"];
        let named = vocab.as_object().into_iter().flat_map(|all| all.keys());
        let listed = vocab.as_array().into_iter().flatten();
        let listed = listed.filter_map(|piece| piece[0].as_str());
        named.map(String::as_str).chain(listed)
    }

    /// What stands for anything that has no token of its own.
    fn fallback(&self) -> Vec<String> {
        if self.model["byte_fallback"] == true {
            let all: BTreeSet<&str> = self.tokens().collect();
            let bytes = (0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>"));
            let bytes: Vec<String> = bytes.filter(|byte| all.contains(byte.as_str())).collect();
            if bytes.len() > usize::from(u8::MAX) {
                return bytes;
            }
        }
        if self.model["type"] == "WordLevel" {
            return Vec::new();
        }
        let is_character = |token: &&str| {
            let bare = token.strip_prefix(self.prefix).unwrap_or(token);
            [*token, bare].iter().any(|it| {
                let bare = it.strip_suffix(self.suffix).unwrap_or(it);
                bare.chars().count() == 1
            })
        };
        let characters = self.tokens().filter(is_character);
        characters.map(str::to_owned).collect()
    }

    /// The characters of a token, as a word begins with them.
    fn characters(&self, token: &str) -> Vec<String> {
        let goes_on = !self.prefix.is_empty() && token.starts_with(self.prefix);
        let bare = match goes_on {
            true => &token[self.prefix.len()..],
            false => token,
        };
        let ends = !self.suffix.is_empty() && bare.ends_with(self.suffix);
        let bare = match ends {
            true => &bare[..bare.len() - self.suffix.len()],
            false => bare,
        };
        let last = bare.chars().count().saturating_sub(1);
        let written = |(at, character): (usize, char)| {
            let prefix = if at > 0 || goes_on { self.prefix } else { "" };
            let suffix = if at == last && ends { self.suffix } else { "" };
            format!("{prefix}{character}{suffix}")
        };
        bare.chars().enumerate().map(written).collect()
    }
}

/// The merges of byte-pair encoding.
struct Merges<'a> {
    parts: Parts<'a>,
    /// The place of each in the list.
    places: HashMap<(&'a str, &'a str), usize>,
}

impl<'a> Merges<'a> {
    fn of(model: &'a Value) -> Option<Self> {
        let merges = model["merges"].as_array()?.iter().enumerate();
        let places = merges.filter_map(|(place, merge)| Some((merge_parts(merge)?, place)));
        Some(Self {
            parts: Parts::of(model),
            places: places.collect(),
        })
    }

    /// What a token is made of step by step, itself included; nothing if merges do not make it.
    fn parts(&self, token: &str) -> Vec<String> {
        let mut symbols = self.parts.characters(token);
        let mut made = symbols.clone();
        loop {
            let pairs = symbols.windows(2).enumerate();
            let first = pairs
                .filter_map(|(at, pair)| {
                    let place = self.places.get(&(pair[0].as_str(), pair[1].as_str()))?;
                    Some((*place, at))
                })
                .min();
            let Some((_, at)) = first else {
                break;
            };
            let right = symbols.remove(at + 1);
            symbols[at] = merged(self.parts.model, &symbols[at], &right);
            made.push(symbols[at].clone());
        }
        match symbols.as_slice() {
            [one] if one == token => made,
            _ => Vec::new(),
        }
    }
}

/// The pieces of a unigram model that stand for what is unknown, and that with the lowest score.
fn unknown_and_least(model: &Value, pieces: &[Value]) -> Vec<u32> {
    let unknown = model["unk_id"].as_u64();
    let scores = pieces.iter().map(|piece| piece[1].as_f64().unwrap_or(0.0));
    let least = scores.enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
    let least = least.and_then(|(id, _)| u32::try_from(id).ok());
    let unknown = unknown.and_then(|id| u32::try_from(id).ok());
    unknown.into_iter().chain(least).collect()
}

/// The characters that a part of a tokenizer puts into a text.
fn written(part: &Value, into: &mut BTreeSet<String>) {
    match part {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value.as_str() {
                    Some(text) if ["content", "prepend", "replacement"].contains(&key.as_str()) => {
                        into.extend(text.chars().map(String::from));
                    }
                    _ => written(value, into),
                }
            }
        }
        Value::Array(all) => all.iter().for_each(|one| written(one, into)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn needed_for(tokenizer: &Value, wanted: &[&str]) -> Vec<u32> {
        let vocab = &tokenizer["model"]["vocab"];
        let id_of = |token: &str| match vocab {
            Value::Array(all) => {
                let place = all.iter().position(|piece| piece[0] == token);
                place.map(|at| at as u32)
            }
            vocab => vocab[token].as_u64().map(|id| id as u32),
        };
        let wanted = wanted.iter().map(|token| (*token).to_owned());
        needed(tokenizer, wanted, &id_of).into_iter().collect()
    }

    #[test]
    fn a_token_keeps_what_it_is_made_of_and_nothing_else() {
        let mut json = json!({
            "model": {
                "type": "BPE", "unk_token": "?",
                "vocab": {"?": 0, "a": 1, "b": 2, "c": 3, "ab": 4, "bc": 5, "abc": 6, "cab": 7, "é": 8},
                "merges": ["b c", ["a", "b"], ["ab", "c"], ["a", "bc"], ["c", "ab"]],
            },
        });
        // "abc" is "a" and "bc", though "ab" and "c" come first in the list of what makes it.
        assert_eq!(needed_for(&json, &["abc"]), [0, 1, 2, 3, 5, 6, 8]);
        assert_eq!(needed_for(&json, &["cab"]), [0, 1, 2, 3, 4, 7, 8]);
        assert_eq!(needed_for(&json, &["?"]), [0, 1, 2, 3, 8]);
        // Where bytes stand for any character, those that nothing is made of go.
        json["model"]["byte_fallback"] = true.into();
        assert_eq!(needed_for(&json, &["bc"]), [0, 1, 2, 3, 5, 8]);
        for byte in 0..256 {
            json["model"]["vocab"][format!("<0x{byte:02X}>")] = (100 + byte).into();
        }
        let kept = needed_for(&json, &["bc"]);
        assert_eq!(kept[..4], [0, 2, 3, 5]);
        assert_eq!(kept[4..], (100..356).collect::<Vec<u32>>());
    }

    #[test]
    fn marks_of_where_in_a_word_a_part_stands_are_understood() {
        let json = json!({
            "model": {
                "type": "BPE", "continuing_subword_prefix": "#", "end_of_word_suffix": "$",
                "vocab": {"a": 0, "#b": 1, "#c$": 2, "ab": 3, "#bc$": 4, "abc$": 5, "d": 6, "#ad": 7},
                "merges": [["#b", "#c$"], ["a", "#bc$"], ["a", "#b"]],
            },
        });
        assert_eq!(needed_for(&json, &["abc$"]), [0, 1, 2, 4, 5, 6]);
        assert_eq!(needed_for(&json, &["ab"]), [0, 1, 2, 3, 6]);
        let json = json!({
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                      "vocab": {"[UNK]": 0, "a": 1, "##a": 2, "ab": 3, "##b": 4, "##ab": 5}},
        });
        assert_eq!(needed_for(&json, &["ab"]), [0, 1, 2, 4]);
    }

    #[test]
    fn unigram_keeps_its_lowest_score_and_words_their_unknown() {
        let json = json!({
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]},
            "pre_tokenizer": {"type": "Metaspace", "replacement": "_"},
            "model": {"type": "Unigram", "unk_id": 1,
                      "vocab": [["a", -1.0], ["<unk>", 0.0], ["ab", -9.5], ["abc", -3.0], ["▁", -2.0], ["_", -2.0]]},
            "post_processor": {"type": "Sequence", "processors": [
                {"type": "BertProcessing", "sep": ["ab", 2], "cls": ["abc", 3]},
            ]},
        });
        assert_eq!(needed_for(&json, &[]), [0, 1, 2, 3, 4, 5]);
        let json = json!({
            "model": {"type": "WordLevel", "unk_token": "?", "vocab": {"a": 0, "?": 1, "word": 2}},
            "post_processor": null,
        });
        assert_eq!(needed_for(&json, &["word"]), [1]);
    }
}
