//! The fields of a model's files that name tokens by their ids.

use serde_json::{Map, Value};

/// Fields that list tokens which a text must not have: one that is gone needs no ban.
const LISTS: [&str; 2] = ["suppress_tokens", "begin_suppress_tokens"];
/// Fields that list sequences of tokens.
const SEQUENCES: [&str; 2] = ["bad_words_ids", "force_words_ids"];
/// Pairs of a place in the text and the token that stands there.
const PLACES: &str = "forced_decoder_ids";
/// Pairs of a sequence of tokens and what is added to its logit.
const BIASES: &str = "sequence_bias";

/// The tokens with a meaning that fields such as `eos_token_id` or `forced_decoder_ids` name: without them a model
/// would be used otherwise.
pub(crate) fn named_ids(fields: &Map<String, Value>) -> Vec<u32> {
    let mut ids = Vec::new();
    let mut note = |value: &Value| ids.extend(id_of(value));
    for (key, value) in fields {
        match value {
            Value::Array(all) if key == PLACES => {
                all.iter()
                    .filter_map(|pair| pair.get(1))
                    .for_each(&mut note);
            }
            Value::Array(all) if is_of_id(key) => all.iter().for_each(&mut note),
            value if is_of_id(key) => note(value),
            _ => {}
        }
    }
    ids
}

/// Gives every token its new id. What is said of a token that has none goes.
pub(crate) fn renumber(fields: &mut Map<String, Value>, new_id: &dyn Fn(u32) -> Option<u32>) {
    let one = |value: &Value| id_of(value).and_then(new_id).map(Value::from);
    let each = |value: &Value| {
        value
            .as_array()?
            .iter()
            .map(one)
            .collect::<Option<Vec<_>>>()
    };
    for (key, value) in fields.iter_mut() {
        match value {
            Value::Array(all) if is_of_id(key) || LISTS.contains(&key.as_str()) => {
                *all = all.iter().filter_map(one).collect();
            }
            Value::Array(all) if SEQUENCES.contains(&key.as_str()) => {
                *all = all.iter().filter_map(|it| Some(each(it)?.into())).collect();
            }
            Value::Array(all) if key == PLACES => {
                all.retain_mut(|pair| match pair.get(1).and_then(one) {
                    Some(id) => {
                        pair[1] = id;
                        true
                    }
                    None => false,
                });
            }
            Value::Array(all) if key == BIASES => {
                all.retain_mut(|pair| match pair.get(0).and_then(each) {
                    Some(ids) => {
                        pair[0] = ids.into();
                        true
                    }
                    None => false,
                });
            }
            value if is_of_id(key) => *value = one(value).unwrap_or_default(),
            _ => {}
        }
    }
}

fn is_of_id(key: &str) -> bool {
    key.ends_with("_token_id")
}

fn id_of(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_id_is_renumbered_and_what_is_gone_goes() {
        let fields = json!({
            "bos_token_id": 1, "eos_token_id": [2, 9], "pad_token_id": -1, "forced_eos_token_id": null,
            "decoder_start_token_id": 7, "suppress_tokens": [1, 7, 9], "bad_words_ids": [[9], [2, 7], [2, 9]],
            "forced_decoder_ids": [[0, 2], [1, 7]], "sequence_bias": [[[9, 2], 1.5], [[7], -1.0]],
            "vocab_size": 9, "max_length": 2,
        });
        let Value::Object(mut fields) = fields else {
            panic!("an object");
        };
        let mut named = named_ids(&fields);
        named.sort_unstable();
        assert_eq!(named, [1, 2, 2, 7, 7, 9]);
        let new_id = |id: u32| {
            [1, 2, 9]
                .iter()
                .position(|it| *it == id)
                .map(|at| at as u32)
        };
        renumber(&mut fields, &new_id);
        let expected = json!({
            "bos_token_id": 0, "eos_token_id": [1, 2], "pad_token_id": null, "forced_eos_token_id": null,
            "decoder_start_token_id": null, "suppress_tokens": [0, 2], "bad_words_ids": [[2], [1, 2]],
            "forced_decoder_ids": [[0, 1]], "sequence_bias": [[[2, 1], 1.5]],
            "vocab_size": 9, "max_length": 2,
        });
        assert_eq!(Value::Object(fields), expected);
    }
}
