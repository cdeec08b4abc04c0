//! [`VocabularyPlan`]: what a smaller vocabulary keeps and saves.

use std::fmt;

use serde::Serialize;

use super::report::thousands;

/// What a smaller vocabulary keeps of the teacher's, and what that saves.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct VocabularyPlan {
    /// Tokens that are kept.
    pub kept: usize,
    /// Of these, how many are there for the tokenizer alone: what others are made of, bytes, tokens with a meaning.
    pub needed: usize,
    /// Tokens of the teacher.
    pub of: usize,
    /// Share of the tokens of the texts, as the whole vocabulary makes them, that are kept.
    pub covered: f64,
    /// Tokens of a document, on average: by the whole vocabulary, and by what is kept of it.
    pub tokens_per_document: [f64; 2],
    /// Parameters that the student has none of.
    pub saved_parameters: usize,
    /// Bytes of its file that they would take.
    pub saved_bytes: usize,
}

/// `9,112 of 49,152, 512 of them for the tokenizer; 100.00 % of the text's tokens, 212.4 a document, as before; …`
impl fmt::Display for VocabularyPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [before, after] = self
            .tokens_per_document
            .map(|tokens| format!("{tokens:.1}"));
        write!(
            f,
            "{} of {}, {} of them for the tokenizer alone; {:.2} % of the text's tokens, {after} a document",
            thousands(self.kept),
            thousands(self.of),
            thousands(self.needed),
            100.0 * self.covered,
        )?;
        match before == after {
            true => write!(f, " as before")?,
            false => write!(f, " instead of {before}")?,
        }
        write!(
            f,
            "; {} parameters and {} bytes less",
            thousands(self.saved_parameters),
            thousands(self.saved_bytes)
        )
    }
}
