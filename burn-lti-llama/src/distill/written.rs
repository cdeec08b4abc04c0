//! What a student wrote for steps to come: the ends of sequences.

use serde::{Deserialize, Serialize};

use crate::data::PackedSequence;

/// What was written for steps that have not been taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Written {
    /// The last step that was written for.
    pub(super) until: usize,
    pub(super) texts: Vec<WrittenText>,
}

/// The end of a sequence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WrittenText {
    /// The step that reads it, from 1.
    pub(super) step: usize,
    pub(super) row: usize,
    /// Tokens of the sequence before it.
    pub(super) kept: usize,
    pub(super) tokens: Vec<u32>,
}

impl WrittenText {
    /// The sequence with this end. After an EOS it is padding.
    pub(super) fn after(&self, sequence: &PackedSequence) -> PackedSequence {
        let mut sequence = sequence.clone();
        let (length, last) = (sequence.len(), self.kept - 1);
        let (segment, position) = (sequence.segments[last], sequence.positions[last]);
        sequence.targets[last] = self.tokens.first().copied().unwrap_or(0);
        for (index, place) in (self.kept..length).enumerate() {
            let token = self.tokens.get(index).copied();
            let target = self.tokens.get(index + 1).copied();
            let is_there = token.is_some();
            sequence.tokens[place] = token.unwrap_or(0);
            sequence.targets[place] = target.unwrap_or(0);
            sequence.mask[place] = target.is_some();
            sequence.segments[place] = if is_there { segment } else { 0 };
            sequence.positions[place] = if is_there {
                position + 1 + index as u32
            } else {
                0
            };
        }
        sequence
    }
}

#[cfg(test)]
pub(super) mod fixture {
    use crate::data::{PackedSequence, pack};

    /// Two documents, which fill it.
    pub(in crate::distill) fn sequence() -> PackedSequence {
        let documents = [(10..16).collect(), vec![20, 21, 22, 23]];
        pack(documents, 10).remove(0)
    }
}

#[cfg(test)]
mod tests {
    use super::WrittenText;
    use super::fixture::sequence;

    #[test]
    fn a_written_end_takes_the_place_of_the_text() {
        let text = |tokens: &[u32]| WrittenText {
            step: 1,
            row: 0,
            kept: 7,
            tokens: tokens.to_vec(),
        };
        let whole = text(&[31, 32, 33, 34]).after(&sequence());
        assert_eq!(whole.tokens, [10, 11, 12, 13, 14, 15, 20, 31, 32, 33]);
        assert_eq!(whole.targets[5..], [0, 31, 32, 33, 34]);
        assert_eq!(whole.positions[5..], [5, 0, 1, 2, 3]);
        assert_eq!(whole.segments, [1, 1, 1, 1, 1, 1, 2, 2, 2, 2]);
        assert_eq!(whole.mask[5..], [false, true, true, true, true]);
        let ended = text(&[31, 2]).after(&sequence());
        assert_eq!(ended.tokens[6..], [20, 31, 2, 0]);
        assert_eq!(ended.targets[6..], [31, 2, 0, 0]);
        assert_eq!(ended.segments[6..], [2, 2, 2, 0]);
        assert_eq!(ended.positions[6..], [0, 1, 2, 0]);
        assert_eq!(ended.mask[6..], [true, true, false, false]);
    }
}
