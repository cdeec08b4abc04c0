//! [`StepRows`]: which sequences of the training text each step learns from.

use std::num::NonZeroUsize;
use std::sync::Arc;

use burn::data::dataloader::DataLoader;
use burn_flex::Flex;

use super::schedule::PhaseSchedule;
use crate::data::{PackedSequence, RowBatcher, loader_by};
use crate::recipe::TrainSection;

/// The rows of the training text that each step of a phase reads.
pub(super) struct StepRows {
    loader: Arc<dyn DataLoader<Flex, Vec<usize>>>,
    micro_batches: usize,
    /// Steps before those of `batches`.
    before: usize,
    /// Of one time through the text.
    batches: Vec<Vec<usize>>,
}

impl StepRows {
    /// Of a phase.
    pub(super) fn new(
        sequences: &[PackedSequence],
        train: &TrainSection,
        schedule: PhaseSchedule,
    ) -> Self {
        let cut = cut(train, schedule);
        let loader = loader_by(RowBatcher, sequences.to_vec(), cut, &Default::default());
        Self {
            batches: loader.iter().collect(),
            loader,
            micro_batches: cut.1.get(),
            before: 0,
        }
    }

    /// Batches of one time through the text.
    pub(super) fn batches(&self) -> usize {
        self.batches.len()
    }

    /// Those of a step, from 1, in the order in which they are read. No step may be asked for after one of a
    /// later time through the text.
    pub(super) fn of(&mut self, step: usize) -> Vec<usize> {
        loop {
            // No step goes from one time through the text into the next.
            let mut steps = self.batches.chunks(self.micro_batches);
            let taken = steps.len();
            match steps.nth(step.saturating_sub(1 + self.before)) {
                Some(step) => return step.concat(),
                None if taken == 0 => return Vec::new(),
                None => self.before += taken,
            }
            self.batches = self.loader.iter().collect();
        }
    }
}

/// The size of a phase's micro-batches, how many a step has, and the seed of their order.
pub(super) fn cut(
    train: &TrainSection,
    schedule: PhaseSchedule,
) -> (usize, NonZeroUsize, Option<u64>) {
    let micro_batches = NonZeroUsize::new(train.accumulate).unwrap_or(NonZeroUsize::MIN);
    let size = train.batch_size / micro_batches;
    (size, micro_batches, Some(schedule.seed))
}
