//! How much longer a tokenizer may make a text: the library has no bound of its own.

use serde_json::Value;

/// Many times what any tokenizer does, which replaces a character by a few.
const MOST: f64 = 256.0;
/// Special tokens that a post-processor may put around a text.
const MOST_SPECIAL: usize = 1024;

/// Checks that a text does not become so much longer in a tokenizer that there is no room for it.
///
/// # Errors
///
/// Which part of it makes it how much longer.
pub(super) fn check(tokenizer: &tokenizers::Tokenizer) -> Result<(), String> {
    let value = |part: serde_json::Result<Value>| part.unwrap_or_default();
    let normalized = of_normalizer(&value(serde_json::to_value(tokenizer.get_normalizer())));
    if normalized > MOST {
        return Err(format!(
            "its normalizer may make a text {normalized:.0} times as long"
        ));
    }
    let (texts, special) =
        of_post_processor(&value(serde_json::to_value(tokenizer.get_post_processor())));
    if texts > 1.0 {
        return Err(format!(
            "its post-processor puts a text {texts:.0} times in the place of one"
        ));
    }
    match special > MOST_SPECIAL {
        true => Err(format!(
            "its post-processor puts {special} special tokens around a text"
        )),
        false => Ok(()),
    }
}

fn of_normalizer(normalizer: &Value) -> f64 {
    match normalizer["type"].as_str() {
        Some("Sequence") => {
            let all = normalizer["normalizers"].as_array();
            all.into_iter().flatten().map(of_normalizer).product()
        }
        Some("Replace") => {
            let length = |text: &Value| text.as_str().map_or(0, str::len) as f64;
            let content = length(&normalizer["content"]);
            // An expression may match nothing, between all characters.
            let pattern = length(&normalizer["pattern"]["String"]).max(1.0);
            match normalizer["pattern"]["String"].is_null() {
                true => 1.0 + content,
                false => (content / pattern).max(1.0),
            }
        }
        _ => 1.0,
    }
}

/// How often a post-processor puts a text, and how many special tokens.
fn of_post_processor(post_processor: &Value) -> (f64, usize) {
    match post_processor["type"].as_str() {
        Some("Sequence") => {
            let all = post_processor["processors"]
                .as_array()
                .into_iter()
                .flatten();
            all.map(of_post_processor).fold((1.0, 0), |all, one| {
                (all.0 * one.0, all.1.saturating_add(one.1))
            })
        }
        Some("TemplateProcessing") => {
            let (mut texts, mut special) = (0.0, 0);
            for piece in post_processor["single"].as_array().into_iter().flatten() {
                match piece["SpecialToken"]["id"].as_str() {
                    None => texts += 1.0,
                    Some(token) => {
                        let ids = post_processor["special_tokens"][token]["ids"].as_array();
                        special += ids.map_or(1, Vec::len);
                    }
                }
            }
            (texts, special)
        }
        _ => (1.0, 0),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fixture;
    use super::*;

    fn checked(edit: impl FnOnce(&mut Value)) -> Result<(), String> {
        let mut json = fixture::json();
        edit(&mut json);
        check(&json.to_string().parse().unwrap())
    }

    fn replace(pattern: &Value, content: &str) -> Value {
        json!({"type": "Replace", "pattern": pattern, "content": content})
    }

    #[test]
    fn a_text_that_would_grow_without_bound_is_refused() {
        let space = replace(&json!({"String": " "}), "▁");
        checked(|json| json["normalizer"] = space.clone()).unwrap();
        checked(|_| {}).unwrap();
        let doubled = replace(&json!({"String": "a"}), "aa");
        let many = json!({"type": "Sequence", "normalizers": vec![doubled; 40]});
        let error = checked(|json| json["normalizer"] = many).unwrap_err();
        assert!(error.contains("1099511627776 times as long"), "{error}");
        let long = replace(&json!({"Regex": "a?"}), &"b".repeat(300));
        let error = checked(|json| json["normalizer"] = long).unwrap_err();
        assert!(error.contains("301 times"), "{error}");
        let template = fixture::post_processor(&["<s>", "$A", "$A"]);
        let error = checked(|json| json["post_processor"] = template).unwrap_err();
        assert!(error.contains("puts a text 2 times"), "{error}");
        let template = fixture::post_processor(&[&["<s>"; 2000][..], &["$A"]].concat());
        let error = checked(|json| json["post_processor"] = template).unwrap_err();
        assert!(error.contains("2000 special tokens"), "{error}");
    }
}
