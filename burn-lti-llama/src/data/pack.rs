//! Tokenised documents, packed into windows of one length, or of several.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// How documents lie side by side in a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Documents {
    /// Each is a segment of its own: its positions begin at 0, and attention sees nothing of the others.
    /// So no position is beyond the longest document.
    #[default]
    Apart,
    /// End to end as one document: positions run on through the window, attention sees all of it, and
    /// the first token of a document is what follows the last of the one before.
    Joined,
}

impl Documents {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Apart, Self::Joined];

    /// Its name in a recipe.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Apart => "apart",
            Self::Joined => "joined",
        }
    }
}

impl fmt::Display for Documents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What of a text a loss counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossOn {
    /// Every token that follows another.
    #[default]
    All,
    /// What the assistant says in conversations, and what ends its turn. There are only conversations then.
    Assistant,
}

impl LossOn {
    /// Both.
    pub const ALL: [Self; 2] = [Self::All, Self::Assistant];

    /// Its name in a recipe.
    pub const fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Assistant => "assistant",
        }
    }
}

impl fmt::Display for LossOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The tokens of a document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// The tokens.
    pub ids: Vec<u32>,
    /// For each whether the loss of it counts, when it follows another.
    pub counts: Vec<bool>,
}

/// All of them count.
impl From<Vec<u32>> for Tokens {
    fn from(ids: Vec<u32>) -> Self {
        let counts = vec![true; ids.len()];
        Self { ids, counts }
    }
}

/// One window of packed documents, every field of length `seq_len`.
///
/// Attention may look from a token to an earlier one only where their `segments` are equal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedSequence {
    /// Number of this window in its data, from 0; counted through where there are several lengths.
    pub row: usize,
    /// Input tokens; 0 in the padding.
    pub tokens: Vec<u32>,
    /// The token that follows each input in its document; 0 where there is none, or where it does not count.
    pub targets: Vec<u32>,
    /// Position of each token in its document, counted from where the document starts *in this
    /// window*: what came before cannot be seen from here. 0 in the padding.
    pub positions: Vec<u32>,
    /// Number of each token's document in this window, from 1; 0 in the padding.
    pub segments: Vec<u32>,
    /// Whether each input has a target that counts.
    pub mask: Vec<bool>,
}

impl PackedSequence {
    fn with_capacity(row: usize, seq_len: usize) -> Self {
        Self {
            row,
            tokens: Vec::with_capacity(seq_len),
            targets: Vec::with_capacity(seq_len),
            positions: Vec::with_capacity(seq_len),
            segments: Vec::with_capacity(seq_len),
            mask: Vec::with_capacity(seq_len),
        }
    }

    /// Number of positions, padding included: `seq_len`.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no position at all; never so for a window of [`pack`].
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Number of inputs that have a target that counts.
    pub fn num_targets(&self) -> usize {
        self.mask.iter().filter(|&&valid| valid).count()
    }

    /// The first so many tokens of it.
    pub(crate) fn beginning(&self, tokens: usize) -> Self {
        fn of<T: Clone>(all: &[T], tokens: usize) -> Vec<T> {
            all[..tokens.min(all.len())].to_vec()
        }
        Self {
            row: self.row,
            tokens: of(&self.tokens, tokens),
            targets: of(&self.targets, tokens),
            positions: of(&self.positions, tokens),
            segments: of(&self.segments, tokens),
            mask: of(&self.mask, tokens),
        }
    }

    /// Appends `document[range]` as one segment.
    fn push(&mut self, document: &Tokens, range: std::ops::Range<usize>) {
        let segment = self.segments.last().map_or(1, |last| last + 1);
        for (position, index) in (0..).zip(range) {
            let counts = document.counts.get(index + 1).copied().unwrap_or(false);
            let target = document.ids.get(index + 1).filter(|_| counts);
            self.tokens.push(document.ids[index]);
            self.targets.push(target.copied().unwrap_or(0));
            self.positions.push(position);
            self.segments.push(segment);
            self.mask.push(target.is_some());
        }
    }

    fn pad(&mut self, seq_len: usize) {
        self.tokens.resize(seq_len, 0);
        self.targets.resize(seq_len, 0);
        self.positions.resize(seq_len, 0);
        self.segments.resize(seq_len, 0);
        self.mask.resize(seq_len, false);
    }
}

/// Windows that have room left, at most: beyond, the fullest is closed.
const OPEN: usize = 64;

/// Packs `documents` into windows of `seq_len` inputs. A document that fits into a window stays whole; of a
/// longer one as many windows as it fills are cut from its beginning, and what is left is packed like a document.
/// (A document cut in two is learned without what it begins with, and by models that rest their attention on a
/// text's first token, with another one there: Ding et al. 2024, arXiv 2404.10830.)
///
/// Each goes to the window that it fills best, among those with room, and windows lie in the order of their first
/// documents. What room is left is padding. An input's target is the next token of the same document, also when
/// that one is in another window: each adjacent pair of tokens of a document is learned exactly once, if the
/// second counts.
///
/// # Panics
///
/// If `seq_len` is 0.
pub fn pack(documents: impl IntoIterator<Item = Vec<u32>>, seq_len: usize) -> Vec<PackedSequence> {
    pack_tokens(documents.into_iter().map(Tokens::from), seq_len)
}

/// As [`pack`], of documents of which not all tokens count.
///
/// # Panics
///
/// If `seq_len` is 0.
pub fn pack_tokens(
    documents: impl IntoIterator<Item = Tokens>,
    seq_len: usize,
) -> Vec<PackedSequence> {
    assert!(seq_len > 0, "a window of length 0 holds no token");
    let mut windows: Vec<PackedSequence> = Vec::new();
    // Those with room, by how much is left.
    let mut open: BTreeSet<(usize, usize)> = BTreeSet::new();
    for document in documents {
        let mut start = 0;
        while start < document.ids.len() {
            let end = document.ids.len().min(start + seq_len);
            let length = end - start;
            let (room, row) = match open.range((length, 0)..).next().copied() {
                Some(fullest) => {
                    open.remove(&fullest);
                    fullest
                }
                None => {
                    windows.push(PackedSequence::with_capacity(windows.len(), seq_len));
                    (seq_len, windows.len() - 1)
                }
            };
            windows[row].push(&document, start..end);
            if room > length {
                open.insert((room - length, row));
            }
            if open.len() > OPEN {
                open.pop_first();
            }
            start = end;
        }
    }
    windows.iter_mut().for_each(|window| window.pad(seq_len));
    windows
}

/// The whole of `documents` as [`pack`] cuts it, once for each of `seq_lens`, one length after another.
/// So every document has the same share in each length.
///
/// # Panics
///
/// If a length is 0.
pub fn pack_each(
    documents: Vec<Vec<u32>>,
    seq_lens: &[usize],
    layout: Documents,
) -> Vec<PackedSequence> {
    let documents = documents.into_iter().map(Tokens::from);
    pack_each_tokens(documents.collect(), seq_lens, layout)
}

/// As [`pack_each`], of documents of which not all tokens count.
///
/// # Panics
///
/// If a length is 0.
pub fn pack_each_tokens(
    documents: Vec<Tokens>,
    seq_lens: &[usize],
    layout: Documents,
) -> Vec<PackedSequence> {
    let documents = match layout {
        Documents::Apart => documents,
        Documents::Joined => {
            let mut all = Tokens::default();
            for document in documents {
                all.ids.extend(document.ids);
                all.counts.extend(document.counts);
            }
            vec![all]
        }
    };
    let mut windows = Vec::new();
    for seq_len in seq_lens {
        windows.extend(pack_tokens(documents.iter().cloned(), *seq_len));
    }
    for (row, window) in windows.iter_mut().enumerate() {
        window.row = row;
    }
    windows
}

/// The windows of each length, of windows that lie one length after another, as [`pack_each`] leaves
/// them.
pub fn of_each_length(windows: &[PackedSequence]) -> impl Iterator<Item = &[PackedSequence]> {
    windows.chunk_by(|a, b| a.len() == b.len())
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn documents_by_hand() {
        // The second does not fit behind the first, the third does.
        let windows = pack([vec![10, 11, 12], vec![20, 21, 22], vec![30]], 4);
        let first = PackedSequence {
            row: 0,
            tokens: vec![10, 11, 12, 30],
            targets: vec![11, 12, 0, 0],
            positions: vec![0, 1, 2, 0],
            segments: vec![1, 1, 1, 2],
            mask: vec![true, true, false, false],
        };
        let second = PackedSequence {
            row: 1,
            tokens: vec![20, 21, 22, 0],
            targets: vec![21, 22, 0, 0],
            positions: vec![0, 1, 2, 0],
            segments: vec![1, 1, 1, 0],
            mask: vec![true, true, false, false],
        };
        assert_eq!(windows, [first, second]);
        assert_eq!(windows[0].num_targets(), 2);
        // A longer one is cut from its beginning.
        let windows = pack([(1..=6).collect::<Vec<_>>()], 4);
        assert_eq!(windows[0].tokens, [1, 2, 3, 4]);
        assert_eq!(windows[0].targets, [2, 3, 4, 5]);
        assert_eq!(windows[1].tokens, [5, 6, 0, 0]);
    }

    #[test]
    fn what_does_not_count_is_no_target_in_any_layout() {
        let document = |ids: &[u32], counts: &[bool]| Tokens {
            ids: ids.to_vec(),
            counts: counts.to_vec(),
        };
        let documents = vec![
            document(&[10, 11, 12, 13], &[false, false, true, false]),
            document(&[20, 21], &[true, true]),
        ];
        let [apart, joined] =
            Documents::ALL.map(|layout| pack_each_tokens(documents.clone(), &[6], layout));
        assert_eq!(apart[0].tokens, [10, 11, 12, 13, 20, 21]);
        assert_eq!(apart[0].targets, [0, 12, 0, 0, 21, 0]);
        assert_eq!(apart[0].mask, [false, true, false, false, true, false]);
        assert_eq!(apart[0].num_targets(), 2);
        // The first of the second follows the last of the first.
        assert_eq!(joined[0].targets, [0, 12, 0, 20, 21, 0]);
        assert_eq!(joined[0].mask, [false, true, false, true, true, false]);
        // Across a cut too.
        let cut = pack_tokens([document(&[1, 2, 3, 4], &[true, false, true, false])], 2);
        assert_eq!([&cut[0].targets, &cut[1].targets], [&[0, 3], &[0, 0]]);
    }

    #[test]
    fn nothing_packs_to_nothing() {
        assert!(pack([], 4).is_empty());
        assert!(pack([vec![], vec![]], 4).is_empty());
    }

    #[test]
    fn a_full_last_window_has_no_padding() {
        let windows = pack([vec![1, 2], vec![3, 4]], 4);
        assert_eq!(windows.len(), 1);
        assert!(!windows[0].segments.contains(&0));
    }

    #[test]
    #[should_panic(expected = "length 0")]
    fn windows_of_length_zero_are_refused() {
        pack([vec![1]], 0);
    }

    /// Documents of random length whose tokens are all different, so that a pair of tokens tells
    /// where it came from.
    fn random_documents(rng: &mut StdRng) -> Vec<Vec<u32>> {
        let mut tokens = 1..;
        (0..rng.random_range(1..12))
            .map(|_| tokens.by_ref().take(rng.random_range(0..20)).collect())
            .collect()
    }

    fn for_random_packings(check: impl Fn(&[Vec<u32>], usize, &[PackedSequence])) {
        let mut rng = StdRng::seed_from_u64(0);
        for _ in 0..500 {
            let documents = random_documents(&mut rng);
            let seq_len = rng.random_range(1..16);
            check(&documents, seq_len, &pack(documents.clone(), seq_len));
        }
    }

    #[test]
    fn the_whole_text_is_there_in_each_length() {
        for_random_packings(|documents, seq_len, windows| {
            let lens = [seq_len, 3 * seq_len];
            let both = pack_each(documents.to_vec(), &lens, Documents::Apart);
            assert!(both.iter().enumerate().all(|(row, w)| w.row == row));
            let lengths: Vec<_> = of_each_length(&both).collect();
            let Some((short, long)) = lengths.first().zip(lengths.last()) else {
                return assert!(windows.is_empty());
            };
            assert_eq!(*short, windows);
            let tokens = |windows: &[PackedSequence]| -> Vec<u32> {
                let all = windows.iter().flat_map(|w| w.tokens.clone().into_iter());
                let mut all: Vec<u32> = all.filter(|token| *token != 0).collect();
                all.sort_unstable();
                all
            };
            assert_eq!(tokens(short), tokens(long));
        });
    }

    #[test]
    fn joined_documents_are_one() {
        let windows = pack_each(
            vec![vec![10, 11], vec![20, 21, 22]],
            &[4],
            Documents::Joined,
        );
        let first = PackedSequence {
            row: 0,
            tokens: vec![10, 11, 20, 21],
            targets: vec![11, 20, 21, 22],
            positions: vec![0, 1, 2, 3],
            segments: vec![1; 4],
            mask: vec![true; 4],
        };
        assert_eq!(windows[0], first);
        assert_eq!((windows[1].num_targets(), windows[1].positions[0]), (0, 0));
    }

    #[test]
    fn every_adjacent_pair_is_learned_exactly_once() {
        for_random_packings(|documents, _, windows| {
            let pairs: Vec<_> = documents
                .iter()
                .flat_map(|document| document.windows(2).map(|pair| (pair[0], pair[1])))
                .collect();
            let mut learned: Vec<_> = windows
                .iter()
                .flat_map(|w| {
                    (0..w.len())
                        .filter(|&i| w.mask[i])
                        .map(|i| (w.tokens[i], w.targets[i]))
                })
                .collect();
            learned.sort_unstable();
            // Tokens go up through the documents.
            assert_eq!(learned, pairs);
        });
    }

    #[test]
    fn documents_that_fit_are_whole_and_windows_are_full_of_them() {
        for_random_packings(|documents, seq_len, windows| {
            let pieces = documents
                .iter()
                .flat_map(|document| document.chunks(seq_len));
            let mut expected: Vec<&[u32]> = pieces.collect();
            let mut found: Vec<&[u32]> = windows
                .iter()
                .flat_map(|w| {
                    let tokens = w.tokens.iter().zip(&w.segments);
                    let present = tokens.filter(|(_, segment)| **segment != 0).count();
                    let ends = w.segments[..present].chunk_by(|a, b| a == b);
                    ends.scan(0, |from, segment| {
                        let begins = *from;
                        *from += segment.len();
                        Some(&w.tokens[begins..*from])
                    })
                })
                .collect();
            expected.sort_unstable();
            found.sort_unstable();
            assert_eq!(found, expected);
            let firsts: Vec<u32> = windows.iter().map(|w| w.tokens[0]).collect();
            assert!(firsts.is_sorted(), "in the order of their first documents");
            // No two could be one.
            let filled = |w: &PackedSequence| w.segments.iter().filter(|s| **s != 0).count();
            for (index, one) in windows.iter().enumerate() {
                let mut others = windows[index + 1..].iter();
                assert!(others.all(|other| filled(one) + filled(other) > seq_len));
            }
        });
    }

    #[test]
    fn fields_have_one_length_and_padding_is_empty() {
        for_random_packings(|_, seq_len, windows| {
            for w in windows {
                let lengths = [
                    w.targets.len(),
                    w.positions.len(),
                    w.segments.len(),
                    w.mask.len(),
                ];
                assert_eq!(lengths, [seq_len; 4]);
                for i in (0..w.len()).filter(|&i| !w.mask[i]) {
                    assert_eq!(w.targets[i], 0);
                }
                for i in (0..w.len()).filter(|&i| w.segments[i] == 0) {
                    assert_eq!((w.tokens[i], w.positions[i], w.mask[i]), (0, 0, false));
                }
            }
        });
    }

    #[test]
    fn segments_and_positions_follow_the_documents() {
        for_random_packings(|documents, _, windows| {
            let owner = |token| documents.iter().position(|d| d.contains(&token));
            for w in windows {
                assert_eq!((w.segments[0], w.positions[0]), (1, 0));
                for i in (1..w.len()).filter(|&i| w.segments[i] != 0) {
                    let same = owner(w.tokens[i]) == owner(w.tokens[i - 1]);
                    let (segment, position) = match same {
                        true => (w.segments[i - 1], w.positions[i - 1] + 1),
                        false => (w.segments[i - 1] + 1, 0),
                    };
                    assert_eq!((w.segments[i], w.positions[i]), (segment, position));
                }
                for i in (0..w.len()).filter(|&i| w.mask[i]) {
                    assert_eq!(owner(w.tokens[i]), owner(w.targets[i]));
                }
            }
        });
    }
}
