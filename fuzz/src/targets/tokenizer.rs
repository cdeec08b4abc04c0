//! The files of a tokenizer, which the libraries `tokenizers` and `minijinja` read, behind our guard.

use std::path::Path;

use burn_lti_llama::tokenizer::{Message, Tokenizer, TokenizerFiles};

use super::{folder, seeds, write};
use crate::Target;
use crate::memory::BOUND;

/// A chat template may make as much text as its steps pay for.
const CHAT_BOUND: usize = 512 << 20;

const TEXT: &str = "w3 w4 Hello, w\u{f6}rld <s>\n\n w5\0";

/// `tokenizer.json`. A text that is encoded is within the vocabulary, and decodes.
pub fn tokenizer() -> Target {
    target(
        "tokenizer.json",
        BOUND,
        &[
            "\"WordLevel\"",
            "\"BPE\"",
            "\"Unigram\"",
            "\"WordPiece\"",
            "\"merges\"",
            "\"vocab\"",
            "\"type\"",
            "\"ByteLevel\"",
            "\"Metaspace\"",
            "\"Split\"",
            "\"Regex\"",
            "\"Sequence\"",
            "\"TemplateProcessing\"",
            "\"unk_token\"",
            "\"byte_fallback\"",
            "\"pattern\"",
            "\"<s>\"",
            "\"max_input_chars_per_word\"",
            "\"normalizer\"",
            "\"Precompiled\"",
            "\"Replace\"",
            "\"Prepend\"",
            "\"Strip\"",
            "\"Fuse\"",
            "(a+)+$",
        ],
    )
}

/// `tokenizer_config.json`.
pub fn tokenizer_config() -> Target {
    target(
        "tokenizer_config.json",
        CHAT_BOUND,
        &[
            "\"bos_token\"",
            "\"eos_token\"",
            "\"add_bos_token\"",
            "\"add_eos_token\"",
            "\"chat_template\"",
            "\"content\"",
            "\"<s>\"",
            "\"</s>\"",
            "\"default\"",
            "\"name\"",
            "\"template\"",
            "{{",
            "}}",
            "{%",
            "%}",
        ],
    )
}

/// `chat_template.jinja`.
pub fn chat_template() -> Target {
    target(
        "chat_template.jinja",
        CHAT_BOUND,
        &[
            "{{",
            "}}",
            "{%",
            "%}",
            "{%-",
            "-%}",
            "{#",
            "#}",
            "for",
            "endfor",
            "in",
            "if",
            "else",
            "elif",
            "endif",
            "set",
            "endset",
            "macro",
            "endmacro",
            "generation",
            "endgeneration",
            "messages",
            "message",
            "loop",
            "loop.index0",
            "loop.last",
            "namespace(a=1)",
            "range(9)",
            "bos_token",
            "add_generation_prompt",
            "raise_exception('no')",
            "strftime_now('%d %b %Y')",
            "strftime_now",
            "'%Q'",
            "|tojson",
            "tojson",
            "(indent=2)",
            "indent=",
            "|trim",
            "|length",
            "|upper",
            "|join(',')",
            "|safe",
            "[::-1]",
            "[1:]",
            "[-1]",
            ".split('a')",
            ".strip()",
            ".items()",
            ".startswith('a')",
            ".get('a')",
            "~",
            "is defined",
            "is mapping",
            "not",
            "and",
            "or",
            "break",
            "continue",
            "'a' * 9",
            "+",
            "//",
            "%",
            "**",
        ],
    )
}

fn target(name: &'static str, bound: usize, words: &'static [&'static str]) -> Target {
    let dir = folder();
    for other in ["tokenizer.json", "tokenizer_config.json"] {
        let seed = seeds(other.trim_end_matches(".json")).swap_remove(0);
        write(&dir.path().join(other), &seed);
    }
    Target {
        seeds: seeds(name.split('.').next().unwrap_or(name)),
        words,
        bound,
        check: Box::new(move |bytes| {
            write(&dir.path().join(name), bytes);
            let Ok(tokenizer) = Tokenizer::from_dir(dir.path(), Some(1), &[2]) else {
                return false;
            };
            let vocab_size = tokenizer.vocab_size();
            if let Ok(tokenizer) = tokenizer.for_model(vocab_size.min(1 << 20)) {
                check(&tokenizer);
                check_cut(&tokenizer, dir.path());
            }
            true
        }),
    }
}

fn check(tokenizer: &Tokenizer) {
    if let Ok(tokens) = tokenizer.encode_document(TEXT) {
        let _ = tokenizer.decode(&tokens);
        let _ = tokenizer.decode_as_it_is(&tokens);
    }
    let _ = tokenizer.encode_prompt(TEXT);
    if let Some(chat) = tokenizer.chat() {
        let messages = [
            Message::new("system", "Be brief."),
            Message::new("user", "Hello <s>"),
            Message::new("assistant", ""),
        ];
        let _ = chat.render(&messages, true);
        let _ = chat.render(&[], false);
    }
}

/// On some of its tokens it is another tokenizer, or refused.
fn check_cut(tokenizer: &Tokenizer, dir: &Path) {
    let Ok(kept) = tokenizer.keep((0..tokenizer.vocab_size() as u32).step_by(3)) else {
        return;
    };
    let files = TokenizerFiles::new(dir, Some(&kept));
    if let Ok(cut) = Tokenizer::of_files(files, None, &[])
        && let Ok(tokens) = cut.encode_document(TEXT)
    {
        let _ = cut.decode(&tokens);
        assert_eq!(cut.vocab_size(), kept.ids().len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_are_read_and_render() {
        let dir = folder();
        for (name, kind) in [
            ("tokenizer.json", "tokenizer"),
            ("tokenizer_config.json", "tokenizer_config"),
            ("chat_template.jinja", "chat_template"),
        ] {
            write(&dir.path().join(name), &seeds(kind)[0]);
        }
        let tokenizer = Tokenizer::from_dir(dir.path(), None, &[]).expect("a tokenizer");
        let said = [Message::new("user", "w3 w4")];
        let text = tokenizer
            .chat()
            .expect("a template")
            .render(&said, true)
            .expect("a text");
        assert!(text.contains("w3 w4"), "{text}");
    }
}
