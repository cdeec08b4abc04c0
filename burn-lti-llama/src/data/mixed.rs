//! [`Mixed`]: batches of several lengths, in turn.

use std::num::NonZeroUsize;
use std::sync::Arc;

use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// Batches out of several loaders, one for each length. In every round each has its turn, in an order by
/// chance; one that is through has none.
pub(super) struct Mixed<B: Backend, O> {
    pub(super) lengths: Vec<Arc<dyn DataLoader<B, O>>>,
    pub(super) batches_in_turn: NonZeroUsize,
    /// Of the order in each round, which is the same each time through.
    pub(super) seed: u64,
}

impl<B: Backend, O> Mixed<B, O> {
    fn of(&self, lengths: Vec<Arc<dyn DataLoader<B, O>>>) -> Self {
        Self { lengths, ..*self }
    }
}

impl<B: Backend, O: 'static> DataLoader<B, O> for Mixed<B, O> {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<O> + 'a> {
        Box::new(MixedIterator {
            lengths: self.lengths.iter().map(|length| length.iter()).collect(),
            batches_in_turn: self.batches_in_turn.get(),
            going_on: (0..self.lengths.len()).collect(),
            to_come: Vec::new(),
            rng: StdRng::seed_from_u64(self.seed),
        })
    }

    fn num_items(&self) -> usize {
        self.lengths.iter().map(|length| length.num_items()).sum()
    }

    fn to_device(&self, device: &B::Device) -> Arc<dyn DataLoader<B, O>> {
        let lengths = self.lengths.iter();
        Arc::new(self.of(lengths.map(|length| length.to_device(device)).collect()))
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<B, O>> {
        let mut before = 0;
        let lengths = self.lengths.iter().map(|length| {
            let items = length.num_items();
            let within = |item: usize| item.saturating_sub(before).min(items);
            let slice = length.slice(within(start), within(end));
            before += items;
            slice
        });
        Arc::new(self.of(lengths.collect()))
    }
}

struct MixedIterator<'a, O> {
    lengths: Vec<Box<dyn DataLoaderIterator<O> + 'a>>,
    batches_in_turn: usize,
    /// The lengths that have batches left, as far as is known.
    going_on: Vec<usize>,
    /// Whose batches are still to come in this round, the next one last.
    to_come: Vec<usize>,
    rng: StdRng,
}

impl<O> Iterator for MixedIterator<'_, O> {
    type Item = O;

    fn next(&mut self) -> Option<O> {
        loop {
            if self.to_come.is_empty() {
                let mut turns = self.going_on.clone();
                turns.shuffle(&mut self.rng);
                let batches = turns
                    .into_iter()
                    .flat_map(|length| std::iter::repeat_n(length, self.batches_in_turn));
                self.to_come = batches.collect();
            }
            let length = self.to_come.pop()?;
            match self.lengths[length].next() {
                Some(batch) => return Some(batch),
                None => {
                    self.going_on.retain(|other| *other != length);
                    self.to_come.retain(|other| *other != length);
                }
            }
        }
    }
}

impl<O> DataLoaderIterator<O> for MixedIterator<'_, O> {
    fn progress(&self) -> Progress {
        let progress = self.lengths.iter().map(|length| length.progress());
        let sums = progress.fold((0, 0), |(done, all), progress| {
            let Progress {
                items_processed,
                items_total,
            } = progress;
            (done + items_processed, all + items_total)
        });
        Progress {
            items_processed: sums.0,
            items_total: sums.1,
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::super::{Documents, PackedSequence, loader, loader_of_steps, pack_each};
    use super::*;

    const LENS: [usize; 3] = [4, 8, 16];

    /// 160 tokens in each length.
    fn sequences() -> Vec<PackedSequence> {
        pack_each(vec![(1..=160).collect()], &LENS, Documents::Apart)
    }

    /// Batches as rows and length.
    fn batches(
        batches: impl Iterator<Item = burn_lti::decoder::TokenBatch<Flex>>,
    ) -> Vec<(Vec<usize>, usize)> {
        batches
            .map(|batch| {
                let [_, len] = batch.tokens.dims();
                (batch.rows, len)
            })
            .collect()
    }

    #[test]
    fn every_round_has_a_step_of_each_length_with_as_many_tokens() {
        let micro_batches = NonZeroUsize::new(2).unwrap();
        let device = Default::default();
        let load = || loader_of_steps::<Flex>(sequences(), 4, micro_batches, Some(3), &device);
        let loader = load();
        let (first, second) = (batches(loader.iter()), batches(loader.iter()));
        assert!(first.iter().all(|(rows, len)| rows.len() * len == 16));
        let lengths = |of: &[(Vec<usize>, usize)]| of.iter().map(|it| it.1).collect::<Vec<_>>();
        let mut orders = Vec::new();
        for round in lengths(&first).chunks(6) {
            let mut steps: Vec<usize> = round.chunks(2).map(|step| step[0]).collect();
            assert!(round.chunks(2).all(|step| step[0] == step[1]), "{round:?}");
            orders.push(steps.clone());
            steps.sort_unstable();
            assert_eq!(steps, LENS);
        }
        orders.dedup();
        assert!(orders.len() > 1, "every round has the same order");
        // Each sequence once a time through the text, another time in another order.
        let rows = |of: &[(Vec<usize>, usize)]| -> Vec<usize> {
            let mut rows: Vec<usize> = of.iter().flat_map(|it| it.0.clone()).collect();
            rows.sort_unstable();
            rows
        };
        assert_eq!(rows(&first), (0..40 + 20 + 10).collect::<Vec<_>>());
        assert_eq!(rows(&second), rows(&first));
        assert_eq!(lengths(&second), lengths(&first));
        assert_ne!(second, first);
        // The same from the seed alone.
        let again = load();
        assert_eq!(batches(again.iter()), first);
        assert_eq!(batches(again.iter()), second);
    }

    #[test]
    fn one_length_is_its_own_loader() {
        let device = Default::default();
        let short: Vec<_> = sequences().into_iter().take(10).collect();
        let loader = loader::<Flex>(short, 4, None, &device);
        let rows: Vec<_> = batches(loader.iter()).into_iter().map(|it| it.0).collect();
        assert_eq!(rows, [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9]]);
    }

    #[test]
    fn a_length_that_is_through_has_no_more_turns() {
        let device = Default::default();
        let some = sequences()
            .into_iter()
            .filter(|it| it.len() == 4 || it.row == 69);
        let loader = loader::<Flex>(some.collect(), 4, Some(1), &device);
        let found = batches(loader.iter());
        assert_eq!(found.len(), 10 + 1);
        assert_eq!(found.iter().filter(|it| it.1 == 16).count(), 1);
        assert_eq!(loader.num_items(), 41);
        let mut iterator = loader.iter();
        while iterator.next().is_some() {}
        let Progress {
            items_processed,
            items_total,
        } = iterator.progress();
        assert_eq!((items_processed, items_total), (41, 41));
        let slice = loader.slice(38, 41);
        let mut rows: Vec<_> = batches(slice.iter())
            .into_iter()
            .flat_map(|it| it.0)
            .collect();
        rows.sort_unstable();
        assert_eq!(rows, [38, 39, 69]);
    }
}
