//! [`TextPlan`]: how much text a recipe has to learn from.

use std::fmt;

use serde::Serialize;

use super::report::{count, thousands};
use crate::data::{self, DataError, Document, LossOn, Tokens};
use crate::recipe::Recipe;
use crate::tokenizer::Tokenizer;

/// How much text there is. Tokens are counted in the first documents, and by their length in the others.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TextPlan {
    /// Documents to learn from.
    pub documents: usize,
    /// Documents to measure on.
    pub held_out: usize,
    /// About how many tokens the first have.
    pub tokens: f64,
    /// Of these, about how many count, where not all do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counted: Option<f64>,
    /// About how many sequences of the shortest length those make.
    pub sequences: f64,
    /// How often the training reads them.
    pub epochs: f64,
}

/// Bytes of text in which tokens are counted.
const COUNTED: usize = 1 << 20;

impl TextPlan {
    /// Reads the texts of a recipe.
    ///
    /// # Errors
    ///
    /// [`DataError`]: a text cannot be read, or made tokens of.
    pub(crate) fn of(recipe: &Recipe, tokenizer: &Tokenizer) -> Result<Self, DataError> {
        let (field, loss_on) = (recipe.data.field.as_deref(), recipe.data.loss_on);
        let read = |paths| -> Result<Vec<Document>, DataError> {
            let mut documents = Vec::new();
            for file in data::text_files(paths)? {
                let of_file = data::read_documents(&file, field)?;
                let checked = data::check_kind(&of_file, tokenizer, loss_on);
                checked.map_err(|source| DataError::Tokenize { file, source })?;
                documents.extend(of_file);
            }
            Ok(documents)
        };
        let (mut train, held_out) = (read(&recipe.data.train)?, read(&recipe.data.valid)?.len());
        let (documents, bytes) = (train.len(), size(&train));
        let mut taken = 0;
        let counted = train.iter().take_while(|document| {
            let before = taken;
            taken += size(std::slice::from_ref(document));
            before < COUNTED
        });
        let counted = counted.count();
        let all_are_counted = counted == documents;
        train.truncate(counted);
        let of_counted = size(&train);
        let tokens = data::tokens_of(tokenizer, train, loss_on);
        let tokens = tokens.map_err(|source| DataError::Tokenize {
            file: recipe.data.train[0].clone(),
            source,
        })?;
        let seq_len = recipe.train.seq_len.shortest();
        let all: usize = tokens.iter().map(|tokens| tokens.ids.len()).sum();
        let counting = |tokens: &Tokens| tokens.counts.iter().filter(|counts| **counts).count();
        let counted: usize = tokens.iter().map(counting).sum();
        if loss_on == LossOn::Assistant && counted == 0 && all_are_counted {
            return Err(DataError::NoAssistant {
                files: recipe.data.train.clone(),
            });
        }
        let sequences = data::pack_each_tokens(tokens, &[seq_len], recipe.data.documents).len();
        let part = bytes.max(1) as f64 / of_counted.max(1) as f64;
        let (tokens, sequences) = (all as f64 * part, sequences as f64 * part);
        let read = (recipe.train.steps as f64) * recipe.train.batch_size as f64;
        Ok(Self {
            documents,
            held_out,
            tokens,
            counted: (loss_on == LossOn::Assistant).then_some(counted as f64 * part),
            sequences,
            epochs: read / sequences.max(1.0),
        })
    }
}

fn size(documents: &[Document]) -> usize {
    documents.iter().map(Document::size).sum()
}

/// `1,234 documents, about 150,000 tokens: 590 sequences, read 6.8 times; 80 documents held out`
impl fmt::Display for TextPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted = self.counted.map_or_else(String::new, |counted| {
            format!(", of which about {} count", thousands(counted as usize))
        });
        write!(
            f,
            "{}, about {} tokens{}: {} sequences, read {:.1} times; {} held out",
            count(self.documents, "document", "documents"),
            thousands(self.tokens as usize),
            counted,
            thousands(self.sequences as usize),
            self.epochs,
            count(self.held_out, "document", "documents"),
        )
    }
}
