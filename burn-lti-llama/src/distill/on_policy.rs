//! Sequences that the student goes on with itself, to learn from what it writes (Agarwal et al. 2024).
//!
//! Before a step some of its sequences are chosen. Each keeps its beginning, and the student, folded, writes the
//! rest; teacher and student then read it as any other. Everything random follows from the seed, the step and
//! the sequence, and the student is that of the step before the first that is written for, so that a run that
//! goes on from a checkpoint writes what it would have written.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::data::dataloader::DataLoader;
use burn::data::dataloader::batcher::Batcher;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::decoder::TokenBatch;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::inputs::RunInputs;
use super::schedule::PhaseSchedule;
use super::step_rows::{StepRows, cut};
use super::written::{Written, WrittenText};
use crate::data::{PackedSequence, TokenBatcher, loader_by};
use crate::model::{Generation, GenerationError, NewText, PackedLlama, Sampling, Texts};
use crate::recipe::{DataSection, Recipe, TrainSection};
use crate::tokenizer::Tokenizer;

/// What the student writes at once, at most.
const ROOMS: usize = 128;

/// Writes for the steps of a phase.
pub(super) struct OnPolicy {
    share: f64,
    /// Tokens of a sequence that are kept; half of it where none are said.
    prompt: Option<usize>,
    every: usize,
    schedule: PhaseSchedule,
    sampling: Sampling,
    sequences: Arc<[PackedSequence]>,
    tokenizer: Arc<Tokenizer>,
    order: StepRows,
    written: Arc<Mutex<Written>>,
}

impl OnPolicy {
    /// For a phase. `None` where the recipe asks for none.
    pub(super) fn new<A: AutodiffBackend>(
        recipe: &Recipe,
        inputs: &RunInputs<A>,
        schedule: PhaseSchedule,
    ) -> Result<Option<Self>, GenerationError> {
        let DataSection {
            on_policy: share,
            on_policy_temperature,
            on_policy_prompt,
            on_policy_every: every,
            ..
        } = recipe.data;
        if share == 0.0 {
            return Ok(None);
        }
        Ok(Some(Self {
            share,
            prompt: on_policy_prompt,
            every,
            schedule,
            sampling: Sampling::random(on_policy_temperature, 1.0, schedule.seed)?,
            sequences: inputs.train.clone(),
            tokenizer: inputs.tokenizer.clone(),
            order: StepRows::new(&inputs.train, &recipe.train, schedule),
            written: Arc::default(),
        }))
    }

    /// Takes over what was written before a checkpoint was saved.
    pub(super) fn take_up(&self, written: Option<Written>) {
        *self.written() = written.unwrap_or_default();
    }

    /// What was written for steps after `taken`, if there are any.
    pub(super) fn left(&self, taken: usize) -> Option<Written> {
        let written = self.written();
        let texts = written.texts.iter().filter(|text| text.step > taken);
        (written.until > taken).then(|| Written {
            until: written.until,
            texts: texts.cloned().collect(),
        })
    }

    /// Has the student of `taken` steps write for those after it, if nothing was yet.
    ///
    /// # Errors
    ///
    /// [`GenerationError::NotFinite`]: the student computes no numbers.
    pub(super) fn write<B: Backend>(
        &mut self,
        taken: usize,
        student: impl FnOnce() -> PackedLlama<B>,
    ) -> Result<(), GenerationError> {
        if self.written().until > taken || taken >= self.schedule.steps {
            return Ok(());
        }
        let until = ((taken / self.every + 1) * self.every).min(self.schedule.steps);
        let beginnings: Vec<Beginning> = (taken + 1..=until)
            .flat_map(|step| self.beginnings(step))
            .collect();
        let mut texts = Continued {
            sequences: &self.sequences,
            tokenizer: &self.tokenizer,
            begun: 0,
            lengths: vec![0; beginnings.len()],
            texts: Vec::new(),
            beginnings,
        };
        if let Some(rooms) = NonZeroUsize::new(texts.beginnings.len().min(ROOMS)) {
            let most = self.sequences.iter().map(PackedSequence::len).max();
            let generation = Generation::new(most.unwrap_or(0), self.sampling);
            generation.write(&student(), rooms, &mut texts)?;
        }
        let mut texts = texts.texts;
        texts.sort_unstable_by_key(|text| (text.step, text.row));
        *self.written() = Written { until, texts };
        Ok(())
    }

    /// The batches of the phase, with what was written in them.
    pub(super) fn loader<B: Backend>(
        &self,
        train: &TrainSection,
        device: &B::Device,
    ) -> Arc<dyn DataLoader<B, TokenBatch<B>>> {
        let cut = cut(train, self.schedule);
        let batcher = OnPolicyBatcher {
            written: self.written.clone(),
            batches: self.order.batches(),
            accumulate: cut.1.get(),
            read: Arc::default(),
        };
        loader_by(batcher, self.sequences.to_vec(), cut, device)
    }

    /// The sequences of a step that the student goes on with: as many as their share, and one more by chance
    /// where that is no whole number.
    fn beginnings(&mut self, step: usize) -> Vec<Beginning> {
        let mut rng = StdRng::seed_from_u64(
            self.schedule.seed ^ (step as u64).wrapping_mul(0xD1B5_4A32_D192_ED03),
        );
        let mut rows = self.order.of(step);
        let count = (self.share * rows.len() as f64 + rng.random::<f64>()) as usize;
        let (chosen, _) = rows.partial_shuffle(&mut rng, count);
        chosen
            .iter()
            .filter_map(|&row| {
                let kept = kept(&self.sequences[row], self.prompt)?;
                Some(Beginning { step, row, kept })
            })
            .collect()
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How much of a sequence is kept: `prompt` tokens, or half of it, and where a document ends with them the
/// beginning of the next. `None` where nothing comes after.
fn kept(sequence: &PackedSequence, prompt: Option<usize>) -> Option<usize> {
    let prompt = prompt.unwrap_or(sequence.len() / 2).max(1);
    let targets = sequence.mask.iter().skip(prompt - 1);
    let kept = prompt + targets.take_while(|has_target| !**has_target).count();
    (kept < sequence.len()).then_some(kept)
}

/// A sequence that the student goes on with.
#[derive(Clone, Copy, Debug)]
struct Beginning {
    step: usize,
    row: usize,
    kept: usize,
}

/// The ends of sequences, as they are written.
struct Continued<'a> {
    sequences: &'a [PackedSequence],
    tokenizer: &'a Tokenizer,
    beginnings: Vec<Beginning>,
    begun: usize,
    /// Tokens drawn of each.
    lengths: Vec<usize>,
    texts: Vec<WrittenText>,
}

impl Continued<'_> {
    /// From the number of a text, which is that of its step and row, to its place in the list.
    fn place(&self, number: u64) -> usize {
        let of = |beginning: &Beginning| number_of(beginning) == number;
        self.beginnings.iter().position(of).unwrap_or_default()
    }
}

fn number_of(beginning: &Beginning) -> u64 {
    (beginning.step as u64) << 32 | beginning.row as u64
}

impl Texts for Continued<'_> {
    fn next(&mut self) -> Option<NewText> {
        let beginning = self.beginnings.get(self.begun)?;
        self.begun += 1;
        let sequence = &self.sequences[beginning.row];
        let document = sequence.segments[beginning.kept - 1];
        let begins = sequence.segments.iter().position(|of| *of == document);
        Some(NewText {
            row: number_of(beginning),
            prompt: sequence.tokens[begins.unwrap_or(0)..beginning.kept].to_vec(),
        })
    }

    fn push(&mut self, number: u64, token: u32) -> bool {
        let place = self.place(number);
        let Beginning { row, kept, .. } = self.beginnings[place];
        self.lengths[place] += 1;
        // One more than there is room for: what follows the last.
        let most = self.sequences[row].len() - kept + 1;
        self.lengths[place] < most && !self.tokenizer.is_eos(token)
    }

    fn end(&mut self, number: u64, tokens: Vec<u32>) -> bool {
        let Beginning { step, row, kept } = self.beginnings[self.place(number)];
        self.texts.push(WrittenText {
            step,
            row,
            kept,
            tokens,
        });
        true
    }
}

/// Makes batches of sequences with the ends that were written for their step. Clones count together.
#[derive(Clone)]
struct OnPolicyBatcher {
    written: Arc<Mutex<Written>>,
    /// Batches of each time through the text, and of a step.
    batches: usize,
    accumulate: usize,
    /// Batches made.
    read: Arc<AtomicUsize>,
}

impl<B: Backend> Batcher<B, PackedSequence, TokenBatch<B>> for OnPolicyBatcher {
    fn batch(&self, mut sequences: Vec<PackedSequence>, device: &B::Device) -> TokenBatch<B> {
        let read = self.read.fetch_add(1, Ordering::Relaxed);
        let steps = self.batches.div_ceil(self.accumulate);
        // No step goes from one time through the text into the next.
        let step = read / self.batches * steps + read % self.batches / self.accumulate + 1;
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        for text in written.texts.iter().filter(|text| text.step == step) {
            for sequence in sequences.iter_mut().filter(|of| of.row == text.row) {
                *sequence = text.after(sequence);
            }
        }
        drop(written);
        TokenBatcher.batch(sequences, device)
    }
}

#[cfg(test)]
mod tests {
    use super::super::written::fixture::sequence;
    use super::*;
    use crate::data::pack;

    #[test]
    fn what_is_kept_ends_amid_a_document() {
        let sequence = sequence();
        assert_eq!(sequence.tokens, [10, 11, 12, 13, 14, 15, 20, 21, 22, 23]);
        for (prompt, expected) in [
            (1, Some(1)),
            (5, Some(5)),
            (6, Some(7)),
            (7, Some(7)),
            (9, Some(9)),
        ] {
            assert_eq!(kept(&sequence, Some(prompt)), expected, "{prompt}");
        }
        // Nothing but padding after the first document.
        let padded = pack([(10..16).collect::<Vec<u32>>()], 10).remove(0);
        assert_eq!(kept(&padded, None), Some(5));
        assert_eq!(kept(&padded, Some(6)), None);
    }
}
