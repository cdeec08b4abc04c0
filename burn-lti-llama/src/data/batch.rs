//! Packed sequences become batches on a device.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::num::NonZeroUsize;
use std::sync::Arc;

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataloader::{DataLoader, DataLoaderBuilder};
use burn::data::dataset::InMemDataset;
use burn::prelude::*;
use burn::tensor::TensorData;
use burn_lti::decoder::TokenBatch;

use super::PackedSequence;
use super::mixed::Mixed;

/// Burn's batcher for packed sequences, all of one length.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenBatcher;

impl<B: Backend> Batcher<B, PackedSequence, TokenBatch<B>> for TokenBatcher {
    fn batch(&self, sequences: Vec<PackedSequence>, device: &B::Device) -> TokenBatch<B> {
        let shape = [
            sequences.len(),
            sequences.first().map_or(0, PackedSequence::len),
        ];
        let ints = |field: fn(&PackedSequence) -> &Vec<u32>| {
            let values: Vec<i32> = sequences
                .iter()
                .flat_map(|sequence| field(sequence).iter().map(|id| *id as i32))
                .collect();
            Tensor::from_data(TensorData::new(values, shape), device)
        };
        let mask: Vec<f32> = sequences
            .iter()
            .flat_map(|sequence| sequence.mask.iter().map(|counts| f32::from(*counts)))
            .collect();
        TokenBatch {
            tokens: ints(|sequence| &sequence.tokens),
            positions: ints(|sequence| &sequence.positions),
            segments: ints(|sequence| &sequence.segments),
            targets: ints(|sequence| &sequence.targets),
            mask: Tensor::from_data(TensorData::new(mask, shape), device),
            rows: sequences.iter().map(|sequence| sequence.row).collect(),
        }
    }
}

/// Batches of `sequences`, in the order of `seed`, another one each time through; in their own order
/// without a seed.
///
/// Each batch has sequences of one length: `batch_size` of the shortest that there is, of a longer one as
/// many as hold no more tokens, at least one. Of several lengths each has its turn in every round, in an
/// order by chance that follows from the seed.
pub fn loader<B: Backend>(
    sequences: Vec<PackedSequence>,
    batch_size: usize,
    seed: Option<u64>,
    device: &B::Device,
) -> Arc<dyn DataLoader<B, TokenBatch<B>>> {
    loader_of_steps(sequences, batch_size, NonZeroUsize::MIN, seed, device)
}

/// As [`loader`], for steps of so many micro-batches, which are the batches: a turn of a length is a step.
/// At the end of a time through the sequences, what is left of each length is no whole step, and a step
/// may have micro-batches of several.
pub fn loader_of_steps<B: Backend>(
    sequences: Vec<PackedSequence>,
    batch_size: usize,
    micro_batches: NonZeroUsize,
    seed: Option<u64>,
    device: &B::Device,
) -> Arc<dyn DataLoader<B, TokenBatch<B>>> {
    let cut = (batch_size, micro_batches, seed);
    loader_by(TokenBatcher, sequences, cut, device)
}

/// The same batches by another batcher. `cut` is their size, how many are a step, and the seed.
pub(crate) fn loader_by<B: Backend, O>(
    batcher: impl Batcher<B, PackedSequence, O> + Clone + 'static,
    sequences: Vec<PackedSequence>,
    cut: (usize, NonZeroUsize, Option<u64>),
    device: &B::Device,
) -> Arc<dyn DataLoader<B, O>>
where
    O: Send + Clone + Debug + 'static,
{
    let (batch_size, micro_batches, seed) = cut;
    let mut lengths = BTreeMap::<usize, Vec<PackedSequence>>::new();
    for sequence in sequences {
        lengths.entry(sequence.len()).or_default().push(sequence);
    }
    let shortest = lengths.keys().next().copied().unwrap_or(0);
    let loaders = (0..).zip(lengths).map(|(index, (len, sequences))| {
        let fitting = batch_size.saturating_mul(shortest) / len.max(1);
        // Burn reserves a whole batch, however little there is to fill it.
        let builder = DataLoaderBuilder::<B, _, _>::new(batcher.clone())
            .batch_size(fitting.clamp(1, sequences.len()))
            .set_device(device.clone());
        // Two lengths in one order would have the same text in neighbouring steps.
        let builder = match seed {
            Some(seed) => builder.shuffle(seed.wrapping_add(index)),
            None => builder,
        };
        builder.build(InMemDataset::new(sequences))
    });
    Arc::new(Mixed {
        lengths: loaders.collect(),
        batches_in_turn: micro_batches,
        seed: seed.unwrap_or(0),
    })
}

/// Which sequences a batch has, without any text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowBatcher;

impl<B: Backend> Batcher<B, PackedSequence, Vec<usize>> for RowBatcher {
    fn batch(&self, sequences: Vec<PackedSequence>, _: &B::Device) -> Vec<usize> {
        sequences.iter().map(|sequence| sequence.row).collect()
    }
}
