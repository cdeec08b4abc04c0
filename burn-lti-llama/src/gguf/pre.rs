//! How a text is cut before its pieces are encoded, by the names that GGUF files have for it.
//!
//! A file has a name alone (`tokenizer.ggml.pre`). What it stands for is in llama.cpp's `llama-vocab.cpp`; the
//! expressions here are those of the models' own `tokenizer.json`, which are cited there.

use serde_json::{Value, json};

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A way to cut a text.
#[derive(Debug)]
pub(super) struct Pre {
    /// The first is the one that is written.
    pub(super) names: &'static [&'static str],
    splits: Splits,
    /// A piece that is a token is that token, whatever merges say.
    pub(super) ignore_merges: bool,
    /// BOS begins a text where a file does not say.
    pub(super) add_bos: bool,
    /// Unicode's composed form first.
    nfc: bool,
}

#[derive(Debug)]
enum Splits {
    /// Those of the byte-level pre-tokenizer itself.
    OfBytes,
    /// Each digit by itself, then those.
    Digits,
    /// One expression after the other.
    Expressions(&'static [&'static str]),
}

const PLAIN: Pre = Pre {
    names: &[],
    splits: Splits::OfBytes,
    ignore_merges: false,
    add_bos: false,
    nfc: false,
};

const ALL: &[Pre] = &[
    Pre {
        names: &[
            "gpt-2",
            "phi-2",
            "olmo",
            "mpt",
            "exaone4",
            "modern-bert",
            "mellum",
        ],
        ..PLAIN
    },
    Pre {
        names: &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
        ],
        splits: Splits::Digits,
        ..PLAIN
    },
    Pre {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "pixtral",
            "midm-2.0",
        ],
        splits: Splits::Expressions(&[LLAMA3]),
        ignore_merges: true,
        add_bos: true,
        ..PLAIN
    },
    Pre {
        names: &["smaug-bpe", "dbrx"],
        splits: Splits::Expressions(&[LLAMA3]),
        ..PLAIN
    },
    Pre {
        names: &["qwen2", "deepseek-r1-qwen", "megrez", "kormo"],
        splits: Splits::Expressions(&[QWEN2]),
        nfc: true,
        ..PLAIN
    },
    Pre {
        names: &["tekken"],
        splits: Splits::Expressions(&[TEKKEN]),
        ignore_merges: true,
        add_bos: true,
        ..PLAIN
    },
    Pre {
        names: &["gpt-4o", "llama4"],
        splits: Splits::Expressions(&[GPT4O]),
        ..PLAIN
    },
    Pre {
        names: &["default"],
        splits: Splits::Expressions(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
        ..PLAIN
    },
];

impl Pre {
    /// The one of this name.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|pre| pre.names.contains(&name))
    }

    /// All names.
    pub(super) fn names() -> String {
        let names = ALL.iter().flat_map(|pre| pre.names).copied();
        names.collect::<Vec<_>>().join(", ")
    }

    /// The one that cuts as a `tokenizer.json` does.
    pub(super) fn of_json(tokenizer: &Value) -> Option<&'static Self> {
        let (pre_tokenizer, normalizer) = (&tokenizer["pre_tokenizer"], &tokenizer["normalizer"]);
        let ignores = tokenizer["model"]["ignore_merges"] == true;
        let own = steps(pre_tokenizer, "pretokenizers");
        ALL.iter().find(|pre| {
            let expected = pre.pre_tokenizer();
            let normalized = match normalizer["type"].as_str() {
                None => !pre.nfc,
                Some("NFC") => pre.nfc,
                Some(_) => false,
            };
            normalized && pre.ignore_merges == ignores && own == steps(&expected, "pretokenizers")
        })
    }

    /// As `tokenizer.json` has it.
    pub(super) fn pre_tokenizer(&self) -> Value {
        let bytes = |use_regex: bool| {
            json!({
                "type": "ByteLevel",
                "add_prefix_space": false,
                "trim_offsets": true,
                "use_regex": use_regex,
            })
        };
        let steps = match self.splits {
            Splits::OfBytes => return bytes(true),
            Splits::Digits => {
                vec![
                    json!({ "type": "Digits", "individual_digits": true }),
                    bytes(true),
                ]
            }
            Splits::Expressions(all) => {
                let split = |expression: &&str| {
                    json!({
                        "type": "Split",
                        "pattern": { "Regex": expression },
                        "behavior": "Isolated",
                        "invert": false,
                    })
                };
                all.iter().map(split).chain([bytes(false)]).collect()
            }
        };
        json!({ "type": "Sequence", "pretokenizers": steps })
    }

    /// As `tokenizer.json` has it.
    pub(super) fn normalizer(&self) -> Value {
        match self.nfc {
            true => json!({ "type": "NFC" }),
            false => Value::Null,
        }
    }
}

/// What a step does, without what changes no token.
fn steps(value: &Value, list: &str) -> Vec<String> {
    match value["type"].as_str() {
        Some("Sequence") => {
            let inner = value[list].as_array().map_or(&[][..], Vec::as_slice);
            inner.iter().flat_map(|step| steps(step, list)).collect()
        }
        Some("ByteLevel") => {
            let is = |name: &str, default: bool| value[name].as_bool().unwrap_or(default);
            // A prefix would be another text, and is named so that it fits nothing.
            vec![format!(
                "bytes {} {}",
                is("use_regex", true),
                is("add_prefix_space", false)
            )]
        }
        Some("Split") => {
            let pattern = value["pattern"]["Regex"].as_str().unwrap_or_default();
            let (behavior, invert) = (&value["behavior"], &value["invert"]);
            match (behavior.as_str(), invert.as_bool()) {
                // What lies between matches, or what is taken out of the rest: the same where all is matched.
                (Some("Isolated"), _) | (Some("Removed"), Some(true)) => {
                    vec![format!("split {pattern}")]
                }
                _ => vec![format!("split {pattern} {behavior} {invert}")],
            }
        }
        Some("Digits") => vec![format!("digits {}", value["individual_digits"])],
        _ => vec![value.to_string()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_found_by_what_it_does() {
        for pre in ALL {
            let tokenizer = json!({
                "pre_tokenizer": pre.pre_tokenizer(),
                "normalizer": pre.normalizer(),
                "model": { "ignore_merges": pre.ignore_merges },
            });
            let found = Pre::of_json(&tokenizer).unwrap();
            assert_eq!(found.names, pre.names);
            for name in pre.names {
                assert_eq!(Pre::named(name).unwrap().names, pre.names);
            }
        }
        let whitespace = json!({ "pre_tokenizer": { "type": "Whitespace" }, "normalizer": null });
        assert!(Pre::of_json(&whitespace).is_none());
        assert!(Pre::named("another").is_none());
    }
}
