//! Packed sequences become batches on a device.

use std::fmt::Debug;
use std::sync::Arc;

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataloader::{DataLoader, DataLoaderBuilder};
use burn::data::dataset::InMemDataset;
use burn::prelude::*;
use burn::tensor::TensorData;
use burn_flex::{Flex, FlexDevice};
use burn_lti::decoder::TokenBatch;

use super::PackedSequence;

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
pub fn loader<B: Backend>(
    sequences: Vec<PackedSequence>,
    batch_size: usize,
    seed: Option<u64>,
    device: &B::Device,
) -> Arc<dyn DataLoader<B, TokenBatch<B>>> {
    loader_by(TokenBatcher, sequences, batch_size, seed, device)
}

/// The same by another batcher, of anything.
pub(crate) fn loader_by<B: Backend, I, O>(
    batcher: impl Batcher<B, I, O> + 'static,
    items: Vec<I>,
    batch_size: usize,
    seed: Option<u64>,
    device: &B::Device,
) -> Arc<dyn DataLoader<B, O>>
where
    I: Send + Sync + Clone + Debug + 'static,
    O: Send + Clone + Debug + 'static,
{
    // Burn reserves a whole batch, however little there is to fill it.
    let batch_size = batch_size.clamp(1, items.len().max(1));
    let builder = DataLoaderBuilder::<B, _, _>::new(batcher)
        .batch_size(batch_size)
        .set_device(device.clone());
    let builder = match seed {
        Some(seed) => builder.shuffle(seed),
        None => builder,
    };
    builder.build(InMemDataset::new(items))
}

/// The rows of [`loader`]'s batches of so many sequences, without any text.
pub(crate) fn row_loader(
    sequences: usize,
    batch_size: usize,
    seed: u64,
) -> Arc<dyn DataLoader<Flex, Vec<usize>>> {
    let rows = (0..sequences).collect();
    loader_by(
        RowBatcher,
        rows,
        batch_size,
        Some(seed),
        &Default::default(),
    )
}

struct RowBatcher;

impl Batcher<Flex, usize, Vec<usize>> for RowBatcher {
    fn batch(&self, rows: Vec<usize>, _: &FlexDevice) -> Vec<usize> {
        rows
    }
}
