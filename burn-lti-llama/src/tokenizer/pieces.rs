//! [`Pieces`]: a long text is made tokens of piece by piece.
//!
//! The library takes some hundred bytes of memory for each byte of a text. So a long text is cut, at places where
//! that changes no token: at a single space between two letters of ASCII, if a look at the tokenizer says that no
//! token reaches over it.
//!
//! - The normalizer works on characters, or on what begins anew at a space. Where it puts a `▁` in front of a text,
//!   as those of SentencePiece do, the space at the cut is left out, and that `▁` is it.
//! - A pre-tokenizer makes a border before the space: then pieces are made tokens of by themselves anyway. Of a
//!   regular expression that is known if each of its alternatives is one of [`ALTERNATIVES`].
//! - Without such a border the model is byte-pair encoding, and no token of its vocabulary has the space after
//!   another character. Merges on both sides then know nothing of one another.
//! - No added token is near.
//!
//! A tokenizer of which this is not known gets its texts whole.

use serde_json::Value;
use tokenizers::models::ModelWrapper;

/// Bytes of a piece, about.
const PIECE: usize = 16 << 10;

/// Alternatives of which none matches a space after another character that is no space. They are those of GPT-2,
/// Llama 3, Qwen, Mistral's Tekken and GPT-4o.
const ALTERNATIVES: [&str; 27] = [
    "'s",
    "'t",
    "'re",
    "'ve",
    "'m",
    "'ll",
    "'d",
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    "(?i:[sdmt]|ll|ve|re)",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}",
    r"\p{N}+",
    r"\p{N}{1,3}",
    r" ?\p{L}+",
    r" ?\p{N}+",
    r" ?[^\s\p{L}\p{N}]+",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"\s*[\r\n]",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+$",
    r"\s+",
];

/// How the texts of a tokenizer may be cut.
#[derive(Debug)]
pub(super) struct Pieces {
    /// Bytes that are left out at a cut: the space, or none.
    left_out: usize,
    /// What must not be near a cut.
    added: Vec<String>,
    /// Bytes of the longest of those.
    longest: usize,
}

impl Pieces {
    /// Of a tokenizer; `None` where no cut is known to be safe.
    pub(super) fn of(tokenizer: &tokenizers::Tokenizer) -> Option<Self> {
        let mut space = Space::default();
        space.normalized(&serde_json::to_value(tokenizer.get_normalizer()).ok()?)?;
        space.pre_tokenized(&serde_json::to_value(tokenizer.get_pre_tokenizer()).ok()?)?;
        space.modelled(tokenizer)?;
        let mut added = Vec::new();
        for token in tokenizer.get_added_tokens_decoder().values() {
            let folded = folded(&token.content);
            let is_of_words = folded.trim().contains(' ');
            if token.normalized && (token.rstrip || is_of_words) {
                return None;
            }
            if !folded.is_empty() {
                added.push(folded);
            }
        }
        Some(Self {
            left_out: usize::from(space.is_put_in_front),
            longest: added.iter().map(String::len).max().unwrap_or(0),
            added,
        })
    }

    /// The text in pieces, whose tokens one after another are those of the text: one where it is short, or has no
    /// place for a cut.
    pub(super) fn cut<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(at) = self.place(rest) {
            pieces.push(&rest[..at]);
            rest = &rest[at + self.left_out..];
        }
        pieces.push(rest);
        pieces
    }

    /// The first place for a cut that leaves a whole piece before it.
    fn place(&self, text: &str) -> Option<usize> {
        let bytes = text.as_bytes();
        let mut places = PIECE..bytes.len().saturating_sub(1);
        places.find(|&at| {
            bytes[at] == b' '
                && bytes[at - 1].is_ascii_alphabetic()
                && bytes[at + 1].is_ascii_alphabetic()
                && !self.is_near_added(text, at)
        })
    }

    fn is_near_added(&self, text: &str, at: usize) -> bool {
        let from = text.floor_char_boundary(at.saturating_sub(self.longest));
        let to = text.ceil_char_boundary((at + 1 + self.longest).min(text.len()));
        let near = folded(&text[from..to]);
        self.added.iter().any(|token| near.contains(token.as_str()))
    }
}

/// A text as an added token is compared with it, whatever a normalizer did to it.
fn folded(text: &str) -> String {
    text.to_lowercase().replace('▁', " ")
}

/// What becomes of a space between two letters on its way to the model.
#[derive(Debug)]
struct Space {
    /// The character that it is.
    is: char,
    /// Whether a text gets one in front.
    is_put_in_front: bool,
    /// Whether a pre-token ends before it.
    is_border: bool,
}

impl Default for Space {
    fn default() -> Self {
        Self {
            is: ' ',
            is_put_in_front: false,
            is_border: false,
        }
    }
}

impl Space {
    /// After a normalizer; `None` where that is not known.
    fn normalized(&mut self, normalizer: &Value) -> Option<()> {
        match normalizer["type"].as_str() {
            None if normalizer.is_null() => Some(()),
            Some("NFC" | "NFD" | "NFKC" | "NFKD" | "Nmt" | "Lowercase" | "StripAccents") => {
                Some(())
            }
            Some("BertNormalizer") => Some(()),
            Some("Sequence") => {
                let mut all = normalizer["normalizers"].as_array()?.iter();
                all.try_for_each(|one| self.normalized(one))
            }
            Some("Prepend") => {
                self.is_put_in_front = true;
                let is_first = self.is == ' ';
                (normalizer["prepend"] == "▁" && is_first).then_some(())
            }
            Some("Replace") => {
                let pattern = normalizer["pattern"]["String"].as_str()?;
                let content = normalizer["content"].as_str()?;
                let mut characters = pattern.chars();
                let (Some(pattern), None) = (characters.next(), characters.next()) else {
                    return None;
                };
                if pattern != ' ' {
                    let is_harmless = !pattern.is_ascii_alphanumeric() && pattern != self.is;
                    return is_harmless.then_some(());
                }
                let mut characters = content.chars();
                let (Some(content), None) = (characters.next(), characters.next()) else {
                    return None;
                };
                self.is = content;
                Some(())
            }
            _ => None,
        }
    }

    /// After a pre-tokenizer too.
    fn pre_tokenized(&mut self, pre_tokenizer: &Value) -> Option<()> {
        let is_set = |key: &str| pre_tokenizer[key].as_bool() == Some(true);
        let is_space = self.is == ' ';
        match pre_tokenizer["type"].as_str() {
            None if pre_tokenizer.is_null() => {}
            Some("Sequence") => {
                let mut all = pre_tokenizer["pretokenizers"].as_array()?.iter();
                return all.try_for_each(|one| self.pre_tokenized(one));
            }
            // What comes later sees the pieces alone.
            Some("ByteLevel" | "Digits" | "Punctuation") if self.is_border => {}
            Some("Digits" | "Punctuation") => {}
            Some("Whitespace" | "WhitespaceSplit" | "BertPreTokenizer") if is_space => {
                self.is_border = true;
            }
            Some("ByteLevel") if is_space && is_set("use_regex") => self.is_border = true,
            Some("Metaspace") if is_space => {
                self.is = pre_tokenizer["replacement"].as_str()?.chars().next()?;
                self.is_border |= is_set("split");
            }
            Some("Split") => {
                let pattern = &pre_tokenizer["pattern"];
                let behavior = pre_tokenizer["behavior"].as_str()?;
                match (pattern["String"].as_str(), pattern["Regex"].as_str()) {
                    // There is none left.
                    (Some(" "), _) if !is_space => {}
                    (Some(" "), _)
                        if matches!(behavior, "Isolated" | "MergedWithNext" | "Removed") =>
                    {
                        self.is_border = true;
                    }
                    (_, Some(regex)) if is_space && is_known(regex) => {
                        let is_invert = is_set("invert");
                        if !matches!(
                            (behavior, is_invert),
                            ("Isolated", false) | ("Removed", true)
                        ) {
                            return None;
                        }
                        self.is_border = true;
                    }
                    _ => return None,
                }
            }
            _ => return None,
        }
        Some(())
    }

    /// In a model: whether no token reaches over it.
    fn modelled(&self, tokenizer: &tokenizers::Tokenizer) -> Option<()> {
        if self.is_put_in_front && self.is != '▁' {
            return None;
        }
        let bpe = match tokenizer.get_model() {
            ModelWrapper::BPE(bpe) if bpe.dropout.is_none_or(|share| share == 0.0) => bpe,
            ModelWrapper::BPE(_) => return None,
            _ => return self.is_border.then_some(()),
        };
        if self.is_border {
            return Some(());
        }
        let plain = bpe.continuing_subword_prefix.is_none() && bpe.end_of_word_suffix.is_none();
        let vocabulary = tokenizer.get_vocab(false);
        let reaches_over = |token: &String| token.trim_start_matches(self.is).contains(self.is);
        let is_alone = plain
            && !bpe.ignore_merges
            && vocabulary.contains_key(&self.is.to_string())
            && !vocabulary.keys().any(reaches_over);
        is_alone.then_some(())
    }
}

/// Whether every alternative of a regular expression is a known one.
fn is_known(regex: &str) -> bool {
    let (mut depth, mut begins) = (0_i32, 0);
    let mut alternatives = Vec::new();
    for (at, character) in regex.char_indices() {
        match character {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            '|' if depth == 0 => {
                alternatives.push(&regex[begins..at]);
                begins = at + 1;
            }
            _ => {}
        }
    }
    alternatives.push(&regex[begins..]);
    alternatives.iter().all(|one| ALTERNATIVES.contains(one))
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::seq::IndexedRandom;
    use rand::{Rng, SeedableRng};
    use serde_json::json;

    use super::*;

    /// Characters that are in the vocabulary, in which longer tokens are merged.
    const LETTERS: [&str; 6] = ["a", "b", "c", "d", "'", "1"];

    /// Byte-pair encoding of a few letters with these parts; the space is `space` in the vocabulary.
    fn tokenizer(space: char, normalizer: &Value, pre_tokenizer: &Value, more: &[&str]) -> Value {
        let mut tokens: Vec<String> = LETTERS.map(str::to_owned).to_vec();
        tokens.push(space.to_string());
        tokens.push("<unk>".into());
        let mut merges = Vec::new();
        let mut merge = |left: &str, right: &str| {
            merges.push(json!([left, right]));
            tokens.push(format!("{left}{right}"));
        };
        let space = space.to_string();
        for (left, right) in [
            ("a", "b"),
            (&space, "a"),
            ("c", "d"),
            (&space, &space),
            ("ab", "cd"),
        ] {
            merge(left, right);
        }
        let of_space = format!("{space}a");
        merge(&of_space, "b");
        for pair in more {
            let (left, right) = pair.split_at(1);
            merge(left, right);
        }
        let vocab = tokens
            .iter()
            .zip(0..)
            .map(|(token, id)| (token.clone(), json!(id)));
        let vocab: serde_json::Map<String, Value> = vocab.collect();
        let special = |id: u32, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": true, "rstrip": true,
                   "normalized": false, "special": true})
        };
        json!({
            "version": "1.0",
            "added_tokens": [special(90, "<s>"), special(91, "<c>")],
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": null,
            "decoder": null,
            "model": {"type": "BPE", "vocab": vocab, "merges": merges, "unk_token": "<unk>", "fuse_unk": true},
        })
    }

    fn read(json: &Value) -> tokenizers::Tokenizer {
        json.to_string().parse().unwrap()
    }

    const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

    fn prepended() -> Value {
        json!({"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]})
    }

    fn split(regex: &str) -> Value {
        json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
    }

    /// Tokenizers that may be cut, as models have them.
    fn safe() -> Vec<(&'static str, Value)> {
        let byte_level = |regex| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
        let digits = json!({"type": "Digits", "individual_digits": true});
        let in_turn = |all: &[Value]| json!({"type": "Sequence", "pretokenizers": all});
        let metaspace = |scheme, split| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split});
        let replaced = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let on_space = json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false});
        vec![
            (
                "GPT-2",
                tokenizer('Ġ', &Value::Null, &byte_level(true), &[]),
            ),
            (
                "SmolLM",
                tokenizer(
                    'Ġ',
                    &Value::Null,
                    &in_turn(&[digits, byte_level(true)]),
                    &[],
                ),
            ),
            (
                "Llama 3",
                tokenizer(
                    'Ġ',
                    &Value::Null,
                    &in_turn(&[split(LLAMA_3), byte_level(false)]),
                    &[],
                ),
            ),
            (
                "Qwen",
                tokenizer(
                    'Ġ',
                    &json!({"type": "NFC"}),
                    &in_turn(&[split(&LLAMA_3.replace("{1,3}", "")), byte_level(false)]),
                    &[],
                ),
            ),
            ("Llama 2", tokenizer('▁', &prepended(), &Value::Null, &[])),
            ("Gemma", tokenizer('▁', &replaced, &on_space, &[])),
            (
                "T5",
                tokenizer('▁', &Value::Null, &metaspace("always", true), &[]),
            ),
            (
                "Mistral",
                tokenizer('▁', &Value::Null, &metaspace("first", false), &[]),
            ),
            (
                "words",
                tokenizer(' ', &Value::Null, &json!({"type": "WhitespaceSplit"}), &[]),
            ),
        ]
    }

    /// A text of some pieces with all that is odd, at random places.
    fn text(rng: &mut StdRng) -> String {
        const ODD: [&str; 22] = [
            "a", "b", "c", "d", "ab", "abcd", " ", " ", " ", " a", "  ", "\n", " \n", "'", "'s",
            "1", "11", "<s>", " <c> ", "é", "e\u{301}", "語",
        ];
        let mut text = String::new();
        while text.len() < 3 * PIECE {
            let run = rng.random_range(1..9);
            text.extend((0..run).map(|_| *ODD.choose(rng).unwrap()));
        }
        text
    }

    #[test]
    fn pieces_have_the_tokens_of_the_whole() {
        let mut rng = StdRng::seed_from_u64(0);
        for (name, json) in safe() {
            let tokenizer = read(&json);
            let ids = |text: &str| {
                tokenizer
                    .encode_fast(text, false)
                    .unwrap()
                    .get_ids()
                    .to_vec()
            };
            let pieces = Pieces::of(&tokenizer).unwrap_or_else(|| panic!("{name} can be cut"));
            for _ in 0..6 {
                let text = text(&mut rng);
                let cut = pieces.cut(&text);
                assert!(cut.len() > 2, "{name}");
                let of_pieces: Vec<u32> = cut.iter().flat_map(|piece| ids(piece)).collect();
                assert!(of_pieces == ids(&text), "{name}");
            }
        }
    }

    #[test]
    fn texts_are_whole_where_a_token_may_reach_over_a_cut() {
        let replaced = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let charsmap = json!({"type": "Strip", "strip_left": true, "strip_right": true});
        let regex = json!({"type": "Replace", "pattern": {"Regex": "a b"}, "content": "c"});
        for (name, json) in [
            (
                "a token over words",
                tokenizer('▁', &replaced, &Value::Null, &["a▁"]),
            ),
            (
                "another regex",
                tokenizer(' ', &Value::Null, &split(r"\w+ \w+|\s+"), &[]),
            ),
            (
                "a normalizer of ends",
                tokenizer('▁', &charsmap, &Value::Null, &[]),
            ),
            (
                "a normalizer of words",
                tokenizer(' ', &regex, &json!({"type": "WhitespaceSplit"}), &[]),
            ),
        ] {
            assert!(Pieces::of(&read(&json)).is_none(), "{name}");
        }
        let (_, mut json) = safe().remove(8);
        json["added_tokens"][0]["content"] = "a b".into();
        json["added_tokens"][0]["normalized"] = true.into();
        assert!(Pieces::of(&read(&json)).is_none());
    }

    #[test]
    fn no_cut_is_made_beside_an_added_token_or_where_there_are_no_letters() {
        let (_, mut json) = safe().remove(0);
        let whole = "a b ".repeat(PIECE);
        let pieces = Pieces::of(&read(&json)).unwrap();
        assert_eq!(pieces.cut(&whole).len(), 4);
        json["added_tokens"][0]["content"] = "b".into();
        let beside = Pieces::of(&read(&json)).unwrap();
        assert_eq!(beside.cut(&whole), [whole.as_str()]);
        let whole = "語 1, ".repeat(PIECE);
        assert_eq!(pieces.cut(&whole), [whole.as_str()]);
        assert_eq!(pieces.cut(""), [""]);
    }
}
