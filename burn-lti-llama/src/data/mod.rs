//! From text files to packed sequences of tokens.

mod batch;
mod documents;
mod pack;

use std::io;
use std::path::PathBuf;
use std::str::Utf8Error;

pub use batch::{TokenBatcher, loader};
pub(crate) use documents::is_blank;
pub use documents::read_documents;
pub use pack::{PackedSequence, pack};

use crate::tokenizer::{Tokenizer, TokenizerError};

/// Why text files could not become sequences.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The file cannot be read.
    #[error("cannot read the text file {file}")]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file's kind is not known.
    #[error("{file} is neither a .txt nor a .jsonl file: convert it to one of them")]
    Extension {
        /// The file.
        file: PathBuf,
    },
    /// The file is not text in UTF-8.
    #[error("{file}, line {line}: not UTF-8: convert the file, for instance with iconv")]
    Utf8 {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with its bytes.
        source: Utf8Error,
    },
    /// A line of a `.jsonl` file is not JSON.
    #[error("{file}, line {line}: not JSON: every line has to be an object with a string `text`")]
    Json {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it; it counts lines from the start of this one.
        source: serde_json::Error,
    },
    /// A line of a `.jsonl` file is JSON, but holds no document.
    #[error("{file}, line {line}: {found}: every line has to be an object with a string `text`")]
    Text {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is there instead.
        found: &'static str,
    },
    /// The file holds no document.
    #[error("{file} holds no text: give a file with at least one document")]
    NoDocument {
        /// The file.
        file: PathBuf,
    },
    /// Windows of length 0 were asked for.
    #[error("`seq_len` is 0: a sequence needs at least one token")]
    SequenceLength,
    /// There is nothing to learn from.
    #[error("no document of {files:?} has two tokens: there is no next token to learn from")]
    NoTargets {
        /// The files, possibly none.
        files: Vec<PathBuf>,
    },
    /// A document could not be tokenised.
    #[error("cannot tokenise {file}")]
    Tokenize {
        /// The file.
        file: PathBuf,
        /// What the tokenizer said.
        source: TokenizerError,
    },
}

/// Reads text files, in the order given, tokenises their documents and packs them into sequences
/// of `seq_len` tokens.
///
/// # Errors
///
/// Those of [`read_documents`], and
///
/// - [`DataError::SequenceLength`]: `seq_len` is 0.
/// - [`DataError::Tokenize`]: the tokenizer failed on a file's text.
/// - [`DataError::NoTargets`]: no file, or only documents of one token.
pub fn load_sequences(
    paths: &[PathBuf],
    tokenizer: &Tokenizer,
    seq_len: usize,
) -> Result<Vec<PackedSequence>, DataError> {
    if seq_len == 0 {
        return Err(DataError::SequenceLength);
    }
    let mut documents = Vec::new();
    for file in paths {
        let encoded = tokenizer.encode_documents(&read_documents(file)?);
        documents.extend(encoded.map_err(|source| DataError::Tokenize {
            file: file.clone(),
            source,
        })?);
    }
    let sequences = pack(documents, seq_len);
    if sequences.iter().all(|sequence| sequence.num_targets() == 0) {
        return Err(DataError::NoTargets {
            files: paths.to_vec(),
        });
    }
    Ok(sequences)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::tokenizer::fixture::{self, BOS, CAT, EOS, THE};

    fn texts(contents: &[&str]) -> (TempDir, Vec<PathBuf>) {
        let folder = tempfile::tempdir().unwrap();
        let paths = contents.iter().zip(0..).map(|(content, index)| {
            let path = folder.path().join(format!("{index}.txt"));
            fs::write(&path, content).unwrap();
            path
        });
        let paths = paths.collect();
        (folder, paths)
    }

    #[test]
    fn files_become_sequences_in_order() {
        let (_folder, paths) = texts(&["the cat\n", "cat\n"]);
        let sequences = load_sequences(&paths, &fixture::tokenizer(), 5).unwrap();
        assert_eq!(sequences[0].tokens, [BOS, THE, CAT, EOS, BOS]);
        assert_eq!(sequences[1].tokens, [CAT, EOS, 0, 0, 0]);
    }

    #[test]
    fn sequences_of_no_tokens_are_refused() {
        let error = load_sequences(&[], &fixture::tokenizer(), 0).unwrap_err();
        assert!(matches!(error, DataError::SequenceLength));
    }

    #[test]
    fn nothing_to_learn_from_is_an_error() {
        let error = load_sequences(&[], &fixture::tokenizer(), 4).unwrap_err();
        assert!(matches!(error, DataError::NoTargets { .. }));
    }

    #[test]
    fn a_tokenizer_that_fails_names_the_file() {
        let (_folder, paths) = texts(&["the dog"]);
        let error = load_sequences(&paths, &fixture::without_unknown_token(), 4).unwrap_err();
        assert!(matches!(&error, DataError::Tokenize { file, .. } if *file == paths[0]));
    }
}
