//! [`Source`]: where the files of a tokenizer are read, a folder or a GGUF file that says the same.

use std::io;
use std::path::{Path, PathBuf};

use burn_lti::files::read_at_most;

use super::{TOKENIZER, TOKENIZER_CONFIG, TokenizerError};
use crate::gguf::{Gguf, GgufError, Vocabulary, is_gguf};

/// Where the files of a tokenizer are read.
#[derive(Debug)]
pub(super) enum Source<'a> {
    /// A folder.
    Folder(&'a Path),
    /// What a GGUF file holds in their place.
    Gguf {
        path: &'a Path,
        files: [(&'static str, Vec<u8>); 2],
    },
    /// Another's, with fewer tokens.
    Cut {
        of: Box<Source<'a>>,
        files: Vec<(&'static str, Vec<u8>)>,
    },
}

impl<'a> Source<'a> {
    /// A `tokenizer.json` beside a GGUF file is read where its own tokenizer is not known.
    pub(super) fn open(path: &'a Path) -> Result<Self, TokenizerError> {
        if !is_gguf(path) {
            return Ok(Self::Folder(path));
        }
        let vocabulary = Gguf::open(path)?.vocabulary();
        let beside = path.with_file_name(TOKENIZER);
        match vocabulary {
            Err(GgufError::Tokenizer { .. }) if beside.is_file() => {
                Ok(Self::Folder(path.parent().unwrap_or(Path::new(""))))
            }
            vocabulary => Ok(Self::of_vocabulary(path, &vocabulary?)),
        }
    }

    /// That of a vocabulary, which errors say is in the file `path`.
    pub(super) fn of_vocabulary(path: &'a Path, vocabulary: &Vocabulary) -> Self {
        let bytes = |value: serde_json::Value| format!("{value:#}\n").into_bytes();
        let files = [
            (TOKENIZER, bytes(vocabulary.tokenizer_json())),
            (TOKENIZER_CONFIG, bytes(vocabulary.tokenizer_config())),
        ];
        Self::Gguf { path, files }
    }

    /// What a file holds, if there is one of this name, no more than `most` bytes.
    pub(super) fn read(&self, name: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
        match self {
            Self::Folder(folder) => match read_at_most(&folder.join(name), most) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            },
            Self::Gguf { files, .. } => Ok(found(files, name)),
            Self::Cut { files, .. } => Ok(found(files, name)),
        }
    }

    /// The file that an error about it names.
    pub(super) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        match self {
            Self::Folder(folder) => folder.join(name),
            Self::Gguf { path, .. } => path.to_path_buf(),
            Self::Cut { of, .. } => of.path(name),
        }
    }
}

/// The bytes of the file of that name.
fn found(files: &[(&'static str, Vec<u8>)], name: &Path) -> Option<Vec<u8>> {
    let file = files.iter().find(|(file, _)| Path::new(file) == name);
    file.map(|(_, bytes)| bytes.clone())
}
