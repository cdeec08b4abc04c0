//! A word-level tokenizer for a closed vocabulary, as files that other programs read too.
//!
//! The stories of [`StoryGrammar`](super::grammar::StoryGrammar) use so few words that each can be
//! a token. [`tokenizer`] builds such a tokenizer from a list of words, and [`save`] writes it as
//! the two files of a Hugging Face folder, so that the demo's teacher and students load in
//! `transformers` like any other model.
//!
//! The specials come first (`<unk>` 0, `<s>` 1, `</s>` 2), then the words in the order given.
//! `<s>` is put before every text. Punctuation marks are tokens by themselves, straight quotes are
//! read as curly ones, and decoding gives the text back exactly if every word is known.
//!
//! # Example
//!
//! ```
//! use burn_lti_llama::demo::{grammar::StoryGrammar, vocabulary};
//!
//! let tokenizer = vocabulary::tokenizer(&StoryGrammar::vocabulary())?;
//! let folder = tempfile::tempdir()?;
//! vocabulary::save(&tokenizer, 256, folder.path())?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use burn_lti::files::{FileError, write_atomically};
use tokenizers::{
    AddedToken, Tokenizer,
    decoders::{fuse::Fuse, sequence::Sequence as Decoders, wordpiece::WordPiece},
    models::wordlevel::WordLevel,
    normalizers::{
        replace::{Replace, ReplacePattern},
        utils::Sequence as Normalizers,
    },
    pre_tokenizers::{
        punctuation::Punctuation, sequence::Sequence as PreTokenizers, whitespace::WhitespaceSplit,
    },
    processors::template::TemplateProcessing,
    tokenizer::SplitDelimiterBehavior,
};

/// The token for a word that is not in the vocabulary; id 0.
pub const UNKNOWN: &str = "<unk>";
/// The token before every text; id 1.
pub const BEGIN: &str = "<s>";
/// The token that ends a document; id 2. Encoding does not add it.
pub const END: &str = "</s>";

const SPECIALS: [&str; 3] = [UNKNOWN, BEGIN, END];

/// Why a tokenizer could not be built or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VocabularyError {
    /// A word of the list cannot be a token of its own.
    #[error("the word '{word}' {reason}")]
    Word {
        /// The word.
        word: String,
        /// Why, and the way out.
        reason: &'static str,
    },
    /// The tokenizer library refused a part.
    #[error("the tokenizer could not be built or used")]
    Tokenizer(#[source] tokenizers::Error),
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The folder could not be made.
    #[error("cannot make the folder {path}; check that its parent may be written to")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A word-level tokenizer whose vocabulary is the specials and then `words`, in that order.
///
/// # Errors
/// [`VocabularyError::Word`] if a word stands twice, is a special token, or holds spaces or punctuation
/// beside other letters,
/// [`VocabularyError::Tokenizer`] if the tokenizer library refuses a part.
pub fn tokenizer(words: &[&str]) -> Result<Tokenizer, VocabularyError> {
    let tokenizer = build(words).map_err(VocabularyError::Tokenizer)?;
    for (word, id) in all(words) {
        let refused = |reason| VocabularyError::Word {
            word: word.to_owned(),
            reason,
        };
        if tokenizer.token_to_id(word) != Some(id) {
            return Err(refused("occurs twice in the vocabulary; name it once"));
        }
        let encoding = tokenizer.encode(word, false);
        if encoding.map_err(VocabularyError::Tokenizer)?.get_ids() != [id] {
            return Err(refused(
                "is not one token; leave out spaces and punctuation in words",
            ));
        }
    }
    Ok(tokenizer)
}

/// Writes `tokenizer.json` and `tokenizer_config.json` into `folder`, which is made if need be.
///
/// `max_length` is the longest text in tokens that the model is for. Files of these names are
/// replaced, each in one step.
///
/// # Errors
/// [`VocabularyError::Folder`] or [`VocabularyError::File`] if one cannot be written,
/// [`VocabularyError::Tokenizer`] if the text of one cannot be made.
pub fn save(
    tokenizer: &Tokenizer,
    max_length: usize,
    folder: &Path,
) -> Result<(), VocabularyError> {
    let model = tokenizer
        .to_string(true)
        .map_err(VocabularyError::Tokenizer)?;
    let config = serde_json::json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": false,
        "model_max_length": max_length,
    });
    let config = format!("{config:#}");

    fs::create_dir_all(folder).map_err(|source| VocabularyError::Folder {
        path: folder.to_owned(),
        source,
    })?;
    for (name, text) in [("tokenizer.json", model), ("tokenizer_config.json", config)] {
        write_atomically(&folder.join(name), text.as_bytes())?;
    }
    Ok(())
}

/// Every token with its id: the specials, then the words.
fn all<'a>(words: &'a [&'a str]) -> impl Iterator<Item = (&'a str, u32)> {
    SPECIALS.iter().chain(words).copied().zip(0..)
}

fn build(words: &[&str]) -> tokenizers::Result<Tokenizer> {
    let model = WordLevel::builder()
        .vocab(all(words).map(|(word, id)| (word.to_owned(), id)).collect())
        .unk_token(UNKNOWN.to_owned())
        .build()?;
    let begin = TemplateProcessing::builder()
        .try_single(format!("{BEGIN} $A"))?
        .try_pair(format!("{BEGIN} $A {BEGIN}:1 $B:1"))?
        .special_tokens(vec![(BEGIN, 1)])
        .build()?;

    let mut tokenizer = Tokenizer::new(model);
    tokenizer
        .with_normalizer(Some(curly_quotes()?))
        .with_pre_tokenizer(Some(words_and_marks()))
        .with_post_processor(Some(begin))
        .with_decoder(Some(joined()?));
    tokenizer.add_special_tokens(&SPECIALS.map(|token| AddedToken::from(token, true)));
    Ok(tokenizer)
}

/// A straight quote opens at the start of a word and closes anywhere else.
fn curly_quotes() -> tokenizers::Result<Normalizers> {
    Ok(Normalizers::new(vec![
        Replace::new(regex("(?<!\\S)\""), "“")?.into(),
        Replace::new("\"", "”")?.into(),
    ]))
}

/// Splits at spaces and around every punctuation mark.
fn words_and_marks() -> PreTokenizers {
    PreTokenizers::new(vec![
        WhitespaceSplit.into(),
        Punctuation::new(SplitDelimiterBehavior::Isolated).into(),
    ])
}

/// Puts spaces between tokens, then takes out those inside quotes and before marks.
fn joined() -> tokenizers::Result<Decoders> {
    let spaced = WordPiece::new("##".to_owned(), false);
    let glue = Replace::new(regex("(?<=“) | (?=[,.?!”])"), "")?;
    Ok(Decoders::new(vec![
        spaced.into(),
        Fuse::new().into(),
        glue.into(),
    ]))
}

fn regex(pattern: &str) -> ReplacePattern {
    ReplacePattern::Regex(pattern.to_owned())
}

#[cfg(test)]
mod tests {
    use super::{super::grammar::StoryGrammar, *};

    fn stories_tokenizer() -> Tokenizer {
        tokenizer(&StoryGrammar::vocabulary()).expect("a tokenizer for the stories")
    }

    #[test]
    fn specials_come_first_and_words_in_their_order() {
        let words = StoryGrammar::vocabulary();
        let tokenizer = stories_tokenizer();
        for (id, token) in (0..).zip(SPECIALS.iter().chain(&words)) {
            assert_eq!(tokenizer.token_to_id(token), Some(id));
        }
        assert_eq!(tokenizer.get_vocab_size(true), words.len() + 3);
    }

    #[test]
    fn stories_hold_no_unknown_word_and_decode_to_themselves() {
        let tokenizer = stories_tokenizer();
        for story in StoryGrammar::new(5).take(2_000) {
            let encoding = tokenizer.encode(story.as_str(), true).expect("ids");
            let (first, rest) = encoding.get_ids().split_first().expect("a token");
            assert_eq!(*first, 1);
            assert!(rest.iter().all(|id| *id > 2), "{story}");
            assert_eq!(
                tokenizer.decode(encoding.get_ids(), true).expect("text"),
                story
            );
        }
    }

    #[test]
    fn unknown_words_and_straight_quotes() {
        let tokenizer = stories_tokenizer();
        let straight = tokenizer
            .encode("\"I am wet,\" said Tom.", true)
            .expect("ids");
        let curly = tokenizer
            .encode("“I am wet,” said Tom.", true)
            .expect("ids");
        assert_eq!(straight.get_ids(), curly.get_ids());
        let unknown = tokenizer.encode("helicopter", true).expect("ids");
        assert_eq!(unknown.get_ids(), [1, 0]);
        let special = tokenizer.encode("Tom</s>", false).expect("ids");
        assert_eq!(special.get_ids().last(), Some(&2));
    }

    #[test]
    fn a_repeated_word_is_refused() {
        for words in [["red", "red"], ["red", "<s>"]] {
            let refused = tokenizer(&words);
            let text = refused.unwrap_err().to_string();
            assert!(text.contains("occurs twice"), "{text}");
        }
    }

    #[test]
    fn a_word_that_splits_is_refused() {
        for word in ["red hat", "hat.", " hat", "\"", ""] {
            let text = tokenizer(&[word]).unwrap_err().to_string();
            assert!(
                text.starts_with(&format!("the word '{word}' is not one token")),
                "{text}"
            );
        }
    }

    #[test]
    fn the_files_give_the_tokenizer_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let target = folder.path().join("teacher");
        let tokenizer = stories_tokenizer();
        save(&tokenizer, 256, &target).expect("saved");
        save(&tokenizer, 256, &target).expect("saved over itself");

        let read = Tokenizer::from_file(target.join("tokenizer.json")).expect("read back");
        for story in StoryGrammar::new(6).take(100) {
            let ids = |tokenizer: &Tokenizer| {
                let encoding = tokenizer.encode(story.as_str(), true).expect("ids");
                encoding.get_ids().to_vec()
            };
            assert_eq!(ids(&read), ids(&tokenizer));
            assert_eq!(read.decode(&ids(&read), true).expect("text"), story);
        }
        let config = fs::read_to_string(target.join("tokenizer_config.json")).expect("text");
        let config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
        assert_eq!(config["bos_token"], "<s>");
        assert_eq!(config["model_max_length"], 256);
        assert_eq!(fs::read_dir(&target).expect("a folder").count(), 2);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let refused = save(&stories_tokenizer(), 256, &file.path().join("teacher"));
        let Err(error @ VocabularyError::Folder { .. }) = refused else {
            panic!("expected a write error, got {refused:?}");
        };
        assert!(error.to_string().contains("teacher"));
        assert!(std::error::Error::source(&error).is_some());
    }
}
