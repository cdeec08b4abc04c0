//! Which of the teacher's tokens a student keeps.
//!
//! A run on a smaller vocabulary has a teacher on that vocabulary, from the first file that is read to the last that is
//! written: so batches, loss, start, training and export know nothing of it. Its distribution is that of the whole
//! teacher over the tokens that are kept, renormalised, since logits of others are left out.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use super::DistillError;
use super::export::export_form;
use crate::data::{self, DataError};
use crate::hf::ModelFiles;
use crate::plan::{PlanError, VocabularyPlan};
use crate::recipe::{KeptVocabulary, Recipe};
use crate::tokenizer::Tokenizer;

/// The key of the recipe.
const KEY: &str = "student.vocabulary";

/// The teacher of a recipe, on the tokens that its student keeps; with what that saves, if any go. Text is read for it
/// only then.
pub(super) fn teacher_files(
    recipe: &Recipe,
) -> Result<(ModelFiles, Option<VocabularyPlan>), DistillError> {
    let whole = ModelFiles::new(&recipe.teacher.path, recipe.teacher_config()?);
    let Some(choice) = &recipe.student.vocabulary else {
        return Ok((whole, None));
    };
    let tokenizer = whole.tokenizer()?;
    let wanted = match choice {
        KeptVocabulary::These(ids) => Some(these(ids, &tokenizer, whole.config().vocab_size)?),
        KeptVocabulary::OfText(_) | KeptVocabulary::Count(_) => None,
    };
    let text = Text::read(recipe, &tokenizer)?;
    let wanted = match (wanted, choice) {
        (Some(ids), _) => ids,
        (None, KeptVocabulary::Count(most)) => text.most_frequent(*most),
        (None, _) => text.most_frequent(usize::MAX),
    };
    let named = whole.config().named_tokens();
    let kept = tokenizer.keep(wanted.iter().copied().chain(named))?;
    let needed = kept.ids().iter().filter(|id| !wanted.contains(id)).count();
    let of = whole.config().clone();
    let cut = whole.with_tokens(kept);
    let after = text.tokens_after(recipe, &cut)?;
    let is_kept = |id: &u32| cut.kept().is_some_and(|kept| kept.new_id(*id).is_some());
    let of_kept = text.counts.iter().filter(|(id, _)| is_kept(id));
    let (all, covered) = (
        text.tokens(),
        of_kept.map(|(_, count)| count).sum::<usize>(),
    );
    let [before, after] = [all, after].map(|tokens| tokens as f64 / text.documents().max(1) as f64);
    let saved = of.num_parameters() - cut.config().num_parameters();
    // Where there are no weights to ask, as they are computed in.
    let dtype = export_form(recipe).map_or(recipe.teacher.dtype, |form| form.dtype);
    let plan = VocabularyPlan {
        kept: cut.config().vocab_size,
        needed,
        of: of.vocab_size,
        covered: covered as f64 / all.max(1) as f64,
        tokens_per_document: [before, after],
        saved_parameters: saved,
        saved_bytes: saved * dtype.size(),
    };
    Ok((cut, Some(plan)))
}

/// The tokens of a list, which must all be there.
fn these(ids: &[u32], tokenizer: &Tokenizer, model: usize) -> Result<BTreeSet<u32>, PlanError> {
    let is_none = |id: &&u32| **id as usize >= model || tokenizer.token(**id).is_none();
    match ids.iter().find(is_none) {
        None => Ok(ids.iter().copied().collect()),
        Some(id) => {
            let last = tokenizer.vocab_size().min(model).saturating_sub(1);
            let reason = format!(
                "names token {id}, which the teacher does not have: its tokens are numbered from 0 to {last}; take it out"
            );
            Err(PlanError::refused(KEY, reason))
        }
    }
}

/// The texts of a recipe in the tokens of the whole vocabulary.
struct Text {
    /// Of each file its documents.
    files: Vec<(PathBuf, Vec<Vec<u32>>)>,
    counts: HashMap<u32, usize>,
}

impl Text {
    fn read(recipe: &Recipe, tokenizer: &Tokenizer) -> Result<Self, DataError> {
        let mut text = Self {
            files: Vec::new(),
            counts: HashMap::new(),
        };
        for paths in [&recipe.data.train, &recipe.data.valid] {
            for file in data::text_files(paths)? {
                let documents = tokens_of(recipe, tokenizer, &file)?;
                for id in documents.iter().flatten() {
                    *text.counts.entry(*id).or_default() += 1;
                }
                text.files.push((file, documents));
            }
        }
        Ok(text)
    }

    fn documents(&self) -> usize {
        self.files
            .iter()
            .map(|(_, documents)| documents.len())
            .sum()
    }

    fn tokens(&self) -> usize {
        self.counts.values().sum()
    }

    /// The tokens that occur most often, so many at most; of those that do equally often the first.
    fn most_frequent(&self, most: usize) -> BTreeSet<u32> {
        let mut ids: Vec<(usize, u32)> = self.counts.iter().map(|(id, n)| (*n, *id)).collect();
        ids.sort_unstable_by_key(|(count, id)| (usize::MAX - count, *id));
        ids.into_iter().take(most).map(|(_, id)| id).collect()
    }

    /// How many tokens the texts have on a smaller vocabulary: those of a document that needs no other are the same.
    fn tokens_after(&self, recipe: &Recipe, cut: &ModelFiles) -> Result<usize, DistillError> {
        let tokenizer = cut.tokenizer()?;
        let new_id = |id: &u32| cut.kept().and_then(|kept| kept.new_id(*id));
        let mut tokens = 0;
        for (file, before) in &self.files {
            let after = tokens_of(recipe, &tokenizer, file)?;
            for (number, (before, after)) in before.iter().zip(&after).enumerate() {
                tokens += after.len();
                let renumbered: Option<Vec<u32>> = before.iter().map(new_id).collect();
                if renumbered.is_some_and(|renumbered| renumbered != *after) {
                    let reason = format!(
                        "cannot be kept to: document {} of {}, all of whose tokens are kept, becomes other tokens \
                         without the rest of the vocabulary; leave it out",
                        number + 1,
                        file.display()
                    );
                    return Err(PlanError::refused(KEY, reason).into());
                }
            }
        }
        Ok(tokens)
    }
}

/// The tokens of a file's documents, as a run reads them.
fn tokens_of(
    recipe: &Recipe,
    tokenizer: &Tokenizer,
    file: &Path,
) -> Result<Vec<Vec<u32>>, DataError> {
    let documents = data::read_documents(file, recipe.data.field.as_deref())?;
    let tokens = data::tokens_of(tokenizer, documents, recipe.data.loss_on);
    let tokens = tokens.map_err(|source| DataError::Tokenize {
        file: file.to_owned(),
        source,
    })?;
    Ok(tokens.into_iter().map(|tokens| tokens.ids).collect())
}
