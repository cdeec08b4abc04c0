//! [`StepRows`]: which sequences of the training text each step learns from.

use std::sync::Arc;

use burn::data::dataloader::DataLoader;

use crate::data::row_loader;
use crate::recipe::TrainSection;

/// The rows of the training text that each step of a phase reads.
pub(super) struct StepRows {
    batches: Arc<dyn DataLoader<burn_flex::Flex, Vec<usize>>>,
    accumulate: usize,
    /// Steps before those of `steps`.
    before: usize,
    /// Of one time through the text.
    steps: Vec<Vec<usize>>,
}

impl StepRows {
    /// Of a text of so many sequences, in the order of `seed`.
    pub(super) fn new(sequences: usize, train: &TrainSection, seed: u64) -> Self {
        let accumulate = train.accumulate.max(1);
        Self {
            batches: row_loader(sequences, train.batch_size / accumulate, seed),
            accumulate,
            before: 0,
            steps: Vec::new(),
        }
    }

    /// Those of a step, from 1, in the order in which they are read. No step may be asked for after one of a
    /// later time through the text.
    pub(super) fn of(&mut self, step: usize) -> Vec<usize> {
        loop {
            let index = step.saturating_sub(1 + self.before);
            if let Some(rows) = self.steps.get(index) {
                return rows.clone();
            }
            self.before += self.steps.len();
            let batches: Vec<Vec<usize>> = self.batches.iter().collect();
            // No step goes from one time through the text into the next.
            self.steps = batches.chunks(self.accumulate).map(<[_]>::concat).collect();
            if self.steps.is_empty() {
                return Vec::new();
            }
        }
    }
}
