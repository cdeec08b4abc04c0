//! How a model's tensors lie in a file: joined, in another order of rows, or times a number.
//!
//! The decoder has weights of its own for query, key and value, turns the first half of a head's features
//! against the second, and knows no multipliers. A family whose files differ is read into that form, and
//! written back.

use crate::config::{LlamaConfig, QkNorm};

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FileTensor {
    pub(crate) name: String,
    /// As in the file, where `Linear` weights are `[out, in]`.
    pub(crate) shape: Vec<usize>,
    /// What it is made of, row below row.
    pub(crate) parts: Vec<FilePart>,
}

/// A tensor of the decoder, within one of a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FilePart {
    /// The name that a Llama's file has for it.
    pub(crate) name: String,
    /// Its rows, in the layout of a file.
    pub(crate) shape: Vec<usize>,
    /// Which row of the file each of its rows is, if the order is another.
    pub(crate) order: Option<Vec<usize>>,
    /// What is added to the file's numbers.
    pub(crate) shift: f32,
    /// What they are multiplied by then.
    pub(crate) scale: f32,
}

impl FileTensor {
    /// The tensors of a model, each by itself.
    pub(super) fn all(config: &LlamaConfig) -> Vec<Self> {
        let tensors = config.tensors().into_iter();
        tensors
            .map(|(name, shape)| Self {
                parts: vec![FilePart {
                    order: row_order(config, &name, shape[0]),
                    shift: 0.0,
                    scale: scale(config, &name),
                    name: name.clone(),
                    shape: shape.clone(),
                }],
                name,
                shape,
            })
            .collect()
    }

    /// The same under the name that files have which call a norm by its place, before or after a block.
    pub(super) fn by_place(mut self) -> Self {
        const NAMES: [(&str, &str); 3] = [
            (".post_attention_layernorm.", ".pre_feedforward_layernorm."),
            (".attention_output_layernorm.", ".post_attention_layernorm."),
            (
                ".feed_forward_output_layernorm.",
                ".post_feedforward_layernorm.",
            ),
        ];
        if let Some((ours, theirs)) = NAMES.iter().find(|(ours, _)| self.name.contains(ours)) {
            self.name = self.name.replace(ours, theirs);
        }
        self
    }

    /// Puts the rows of another below its own.
    pub(super) fn join(&mut self, below: Self) {
        self.shape[0] += below.shape[0];
        self.parts.extend(below.parts);
    }

    /// The decoder's numbers for each part, from the file's. Nothing is copied where nothing is cut or changed.
    pub(crate) fn read(&self, mut file: Vec<f32>) -> Vec<(&FilePart, Vec<f32>)> {
        let last_first = self.parts.iter().rev().map(|part| {
            let count: usize = part.shape.iter().product();
            let own = match count == file.len() {
                true => std::mem::take(&mut file),
                false => file.split_off(file.len() - count),
            };
            (part, part.read(own))
        });
        let mut parts: Vec<_> = last_first.collect();
        parts.reverse();
        parts
    }
}

impl FilePart {
    fn changes(&self) -> bool {
        (self.shift, self.scale) != (0.0, 1.0)
    }

    /// The decoder's numbers, from the file's.
    fn read(&self, file: Vec<f32>) -> Vec<f32> {
        let mut numbers = match &self.order {
            None => file,
            Some(order) => {
                let width = file.len() / order.len();
                let rows = order.iter().map(|row| &file[row * width..][..width]);
                rows.flatten().copied().collect()
            }
        };
        if self.changes() {
            numbers
                .iter_mut()
                .for_each(|number| *number = (*number + self.shift) * self.scale);
        }
        numbers
    }

    /// The file's numbers, from the decoder's.
    pub(crate) fn write(&self, mut numbers: Vec<f32>) -> Vec<f32> {
        if self.changes() {
            numbers
                .iter_mut()
                .for_each(|number| *number = *number / self.scale - self.shift);
        }
        let Some(order) = &self.order else {
            return numbers;
        };
        let width = numbers.len() / order.len();
        let mut file = vec![0.0; numbers.len()];
        for (numbers, row) in numbers.chunks_exact(width).zip(order) {
            file[row * width..][..width].copy_from_slice(numbers);
        }
        file
    }
}

/// Queries, keys and their norms, where only the first part of a head's features turns: a file has the halves
/// of that part side by side, the decoder each half before those that stand still, so that it turns whole
/// halves of a head.
fn row_order(config: &LlamaConfig, name: &str, rows: usize) -> Option<Vec<usize>> {
    let (size, turned) = (config.head_dim, config.rope.turned(config.head_dim));
    let turns = ["q_proj.", "k_proj.", "q_norm.", "k_norm."];
    if turned == size || !turns.iter().any(|part| name.contains(part)) {
        return None;
    }
    let (half, moved) = (size / 2, turned / 2);
    let of_head = |feature: usize| {
        let (second, at) = (feature / half, feature % half);
        match at < moved {
            true => second * moved + at,
            false => turned + second * (half - moved) + at - moved,
        }
    };
    Some(
        (0..rows)
            .map(|row| row / size * size + of_head(row % size))
            .collect(),
    )
}

/// The part that a family's multipliers have in a tensor. An embedding that is the head too is made larger
/// there as well, for which the last norm makes up.
fn scale(config: &LlamaConfig, name: &str) -> f32 {
    let by = &config.multipliers;
    let has = |part: &str| name.contains(part);
    let scale = if has("embed_tokens") {
        by.embedding
    } else if name == "model.norm.weight" {
        match config.tie_word_embeddings {
            true => by.logits / by.embedding,
            false => by.logits,
        }
    } else if has("o_proj.") || has("down_proj.") {
        by.residual
    } else if has("q_norm.") || (has("q_proj.") && config.qk_norm == QkNorm::Nothing) {
        let root = (config.head_dim as f64).sqrt();
        by.attention.map_or(1.0, |attention| attention * root)
    } else {
        1.0
    };
    scale as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_and_written_is_the_file() {
        let part = FilePart {
            name: "x".into(),
            shape: vec![3, 2],
            order: Some(vec![2, 0, 1]),
            shift: 1.0,
            scale: 4.0,
        };
        let file = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let read = part.read(file.to_vec());
        assert_eq!(read, [24.0, 28.0, 8.0, 12.0, 16.0, 20.0]);
        assert_eq!(part.write(read), file);
    }
}
