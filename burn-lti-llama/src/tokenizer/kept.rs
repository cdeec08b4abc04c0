//! [`KeptTokens`]: which tokens of a model a smaller vocabulary has.

use std::collections::BTreeSet;
use std::path::Path;

use burn_lti::files::sha256;

/// The tokens of a model that a smaller vocabulary has. There they are numbered anew, in the order of their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeptTokens(Vec<u32>);

impl KeptTokens {
    /// Their ids in the whole vocabulary, ascending.
    pub fn ids(&self) -> &[u32] {
        &self.0
    }

    /// The id that a token has among them, if it is one of them.
    pub fn new_id(&self, id: u32) -> Option<u32> {
        let place = self.0.binary_search(&id).ok()?;
        u32::try_from(place).ok()
    }

    /// A number that tells them from others.
    pub fn sha256(&self) -> String {
        let bytes: Vec<u8> = self.0.iter().flat_map(|id| id.to_le_bytes()).collect();
        sha256(&bytes)
    }
}

impl From<BTreeSet<u32>> for KeptTokens {
    fn from(ids: BTreeSet<u32>) -> Self {
        Self(ids.into_iter().collect())
    }
}

/// The files of a tokenizer: where they are, and which of its tokens they are to have.
#[derive(Clone, Copy, Debug)]
pub struct TokenizerFiles<'a> {
    pub(super) path: &'a Path,
    pub(super) kept: Option<&'a KeptTokens>,
}

impl<'a> TokenizerFiles<'a> {
    /// Those in a Hugging Face folder, or a GGUF file, cut to the tokens that are kept, if any are gone.
    pub fn new(path: &'a Path, kept: Option<&'a KeptTokens>) -> Self {
        Self { path, kept }
    }
}

/// The whole.
impl<'a, P: AsRef<Path> + ?Sized> From<&'a P> for TokenizerFiles<'a> {
    fn from(path: &'a P) -> Self {
        Self::new(path.as_ref(), None)
    }
}
