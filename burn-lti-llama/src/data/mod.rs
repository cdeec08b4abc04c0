//! From text files to packed sequences of tokens.

mod batch;
mod documents;
mod formats;
mod mixed;
mod pack;
mod paths;

use std::error::Error;
use std::io;
use std::path::PathBuf;

use rayon::prelude::*;

pub(crate) use batch::{RowBatcher, loader_by};
pub use batch::{TokenBatcher, loader, loader_of_steps};
pub(crate) use documents::is_blank;
pub use documents::{Document, read_documents, read_prompts};
pub use pack::{
    Documents, LossOn, PackedSequence, Tokens, of_each_length, pack, pack_each, pack_each_tokens,
    pack_tokens,
};
pub use paths::text_files;
pub(crate) use paths::with_home;

use crate::tokenizer::{ChatError, Tokenizer, TokenizerError};

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
    /// The file cannot be used as it is.
    #[error("{file} {reason}")]
    File {
        /// The file.
        file: PathBuf,
        /// Why, and the way out.
        reason: &'static str,
    },
    /// A line holds no text, or no document.
    #[error("{file}, line {line}: {reason}")]
    Line {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is there instead, and the way out.
        reason: String,
        /// What is wrong with it, where it is no UTF-8 or no JSON; lines count from this one.
        source: Option<Box<dyn Error + Send + Sync>>,
    },
    /// A record holds no document.
    #[error("{file}, {record}: {reason}")]
    Record {
        /// The file.
        file: PathBuf,
        /// Which one, from 1.
        record: String,
        /// What is there instead, and the way out.
        reason: String,
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
    /// Nobody says what is to be learned.
    #[error(
        "no message of {files:?} that counts is of the role `assistant`: give conversations that are answered, or set \
         data.loss_on = \"all\""
    )]
    NoAssistant {
        /// The files.
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

/// Reads text files, in the order given ([`text_files`]), tokenises their documents and packs them into sequences of so
/// many tokens: the whole text for each of `seq_lens`, one after another. `loss_on` says what of it counts.
///
/// # Errors
///
/// Those of [`read_documents`], and
///
/// - [`DataError::SequenceLength`]: a length is 0.
/// - [`DataError::Tokenize`]: the tokenizer failed on a file's text.
/// - [`DataError::NoTargets`]: no file, or only documents of one token.
/// - [`DataError::NoAssistant`]: what the assistant says is to count, and it says nothing.
pub fn load_sequences(
    paths: &[PathBuf],
    field: Option<&str>,
    loss_on: LossOn,
    tokenizer: &Tokenizer,
    seq_lens: &[usize],
    layout: Documents,
) -> Result<Vec<PackedSequence>, DataError> {
    if seq_lens.contains(&0) {
        return Err(DataError::SequenceLength);
    }
    let mut documents = Vec::new();
    for file in &text_files(paths)? {
        let encoded = tokens_of(tokenizer, read_documents(file, field)?, loss_on);
        documents.extend(encoded.map_err(|source| DataError::Tokenize {
            file: file.clone(),
            source,
        })?);
    }
    let sequences = pack_each_tokens(documents, seq_lens, layout);
    if sequences.iter().all(|sequence| sequence.num_targets() == 0) {
        let files = paths.to_vec();
        return Err(match loss_on {
            LossOn::Assistant if !sequences.is_empty() => DataError::NoAssistant { files },
            _ => DataError::NoTargets { files },
        });
    }
    Ok(sequences)
}

/// The tokens of documents, in their order, and which of them count.
///
/// # Errors
///
/// As [`encode`], and where what the assistant says is to count, [`TokenizerError::Refused`]: a document is no
/// conversation.
pub fn tokens_of(
    tokenizer: &Tokenizer,
    documents: Vec<Document>,
    loss_on: LossOn,
) -> Result<Vec<Tokens>, TokenizerError> {
    check_kind(&documents, tokenizer, loss_on)?;
    match loss_on {
        LossOn::All => Ok(encode(tokenizer, documents)?
            .into_iter()
            .map(Tokens::from)
            .collect()),
        LossOn::Assistant => {
            let tokens = documents
                .into_par_iter()
                .filter_map(|document| match document {
                    Document::Messages(messages) => Some(tokenizer.encode_turns(&messages)),
                    Document::Text(_) => None, // there is none
                });
            let tokens = tokens.map(|tokens| tokens.map(|(ids, counts)| Tokens { ids, counts }));
            tokens.collect()
        }
    }
}

/// Checks that documents are of a kind that can be encoded, and of which what is to count can be told.
pub(crate) fn check_kind(
    documents: &[Document],
    tokenizer: &Tokenizer,
    loss_on: LossOn,
) -> Result<(), TokenizerError> {
    let talks = |it: &Document| matches!(it, Document::Messages(_));
    if loss_on == LossOn::Assistant && !documents.iter().all(talks) {
        return Err(TokenizerError::Refused(
            "a document has no `messages`, and the loss is to count what an assistant says: give conversations \
             alone, or set data.loss_on = \"all\""
                .to_owned(),
        ));
    }
    match tokenizer.chat() {
        None if documents.iter().any(talks) => Err(ChatError::None.into()),
        _ => Ok(()),
    }
}

/// The tokens of documents, in their order. A conversation has those that its template gives it, and no others.
///
/// # Errors
///
/// [`TokenizerError`]: the tokenizer or the template failed, or there is none.
pub fn encode(
    tokenizer: &Tokenizer,
    documents: Vec<Document>,
) -> Result<Vec<Vec<u32>>, TokenizerError> {
    let (mut plain, mut rendered) = (Vec::new(), Vec::new());
    for (index, document) in documents.into_iter().enumerate() {
        match document {
            Document::Text(text) => plain.push((index, text)),
            Document::Messages(messages) => {
                let template = tokenizer.chat().ok_or(ChatError::None)?;
                rendered.push((index, template.render(&messages, false)?));
            }
        }
    }
    let (plain_at, plain): (Vec<usize>, Vec<String>) = plain.into_iter().unzip();
    let (rendered_at, rendered): (Vec<usize>, Vec<String>) = rendered.into_iter().unzip();
    let plain = plain_at
        .into_iter()
        .zip(tokenizer.encode_documents(&plain)?);
    let rendered = rendered_at
        .into_iter()
        .zip(tokenizer.encode_as_they_are(&rendered)?);
    let mut encoded: Vec<(usize, Vec<u32>)> = plain.chain(rendered).collect();
    encoded.sort_unstable_by_key(|(index, _)| *index);
    Ok(encoded.into_iter().map(|(_, tokens)| tokens).collect())
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

    fn load(paths: &[PathBuf], seq_len: usize) -> Result<Vec<PackedSequence>, DataError> {
        load_sequences(
            paths,
            None,
            LossOn::All,
            &fixture::tokenizer(),
            &[seq_len],
            Documents::Apart,
        )
    }

    #[test]
    fn files_become_sequences_in_order() {
        let (_folder, paths) = texts(&["the cat\n", "cat\n"]);
        let load = |layout| {
            load_sequences(
                &paths,
                None,
                LossOn::All,
                &fixture::tokenizer(),
                &[5],
                layout,
            )
            .unwrap()
        };
        let sequences = load(Documents::Apart);
        assert_eq!(sequences[0].tokens, [BOS, THE, CAT, EOS, 0]);
        assert_eq!(sequences[1].tokens, [BOS, CAT, EOS, 0, 0]);
        assert_eq!(sequences[0].targets, [THE, CAT, EOS, 0, 0]);
        assert_eq!(
            load(Documents::Joined)[0].targets,
            [THE, CAT, EOS, BOS, CAT]
        );
    }

    #[test]
    fn sequences_of_no_tokens_are_refused() {
        let error = load(&[], 0).unwrap_err();
        assert!(matches!(error, DataError::SequenceLength));
    }

    #[test]
    fn nothing_to_learn_from_is_an_error() {
        let error = load(&[], 4).unwrap_err();
        assert!(matches!(error, DataError::NoTargets { .. }));
    }

    #[test]
    fn a_tokenizer_that_fails_names_the_file() {
        let (_folder, paths) = texts(&["the dog"]);
        let tokenizer = fixture::without_unknown_token();
        let load = load_sequences(
            &paths,
            None,
            LossOn::All,
            &tokenizer,
            &[4],
            Documents::Apart,
        );
        let error = load.unwrap_err();
        assert!(matches!(&error, DataError::Tokenize { file, .. } if *file == paths[0]));
    }
}
