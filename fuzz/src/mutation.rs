//! Files made out of others: a seed with some edits.

use std::fmt;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// The bytes of a file. Shown as a byte string that can be pasted into a test.
#[derive(Clone)]
pub struct File(pub Vec<u8>);

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

/// One change, at a place that is a part of the file's length.
#[derive(Clone, Debug)]
enum Edit {
    /// Another byte.
    Byte(Index, u8),
    /// Another bit.
    Flip(Index, u8),
    /// A word put in.
    Insert(Index, Index),
    /// A word in the place of the number or name there.
    Replace(Index, Index),
    /// A number in the place of the number or name there.
    Number(Index, i64),
    /// So many bytes less.
    Delete(Index, usize),
    /// Bytes once more, elsewhere.
    Copy(Index, usize, Index),
    /// A piece of another seed.
    Splice(Index, Index, Index, usize),
    /// One byte many times.
    Repeat(Index, usize),
    /// What follows is gone.
    Cut(Index),
}

/// Words that mean something to many formats, or are at the end of what a number can be.
const WORDS: [&str; 34] = [
    "0",
    "1",
    "-1",
    "2",
    "0.5",
    "1e999",
    "-1e-999",
    "1e308",
    "255",
    "256",
    "65536",
    "2147483648",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "NaN",
    "nan",
    "inf",
    "null",
    "true",
    "false",
    "\"\"",
    "[]",
    "{}",
    "[[[[",
    "{\"a\":",
    "\u{feff}",
    "\0",
    "\\u0000",
    "\n",
];

/// The seeds, each changed in a few places.
pub fn files(seeds: &[Vec<u8>], words: &'static [&'static str]) -> impl Strategy<Value = File> {
    let seeds = seeds.to_vec();
    // Most are changed in one place or two: of those that are changed in many hardly any is read.
    let edits = prop_oneof![3 => vec(edit(), 1..3), 1 => vec(edit(), 3..8)];
    (any::<Index>(), edits).prop_map(move |(seed, edits)| {
        let mut bytes = seeds[seed.index(seeds.len())].clone();
        for edit in &edits {
            edit.apply(&mut bytes, &seeds, words);
        }
        File(bytes)
    })
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<Index>;
    prop_oneof![
        2 => (at(), any::<u8>()).prop_map(|(at, byte)| Edit::Byte(at, byte)),
        2 => (at(), 0..8_u8).prop_map(|(at, bit)| Edit::Flip(at, bit)),
        2 => (at(), at()).prop_map(|(at, word)| Edit::Insert(at, word)),
        4 => (at(), at()).prop_map(|(at, word)| Edit::Replace(at, word)),
        2 => (at(), any::<i64>()).prop_map(|(at, number)| Edit::Number(at, number)),
        2 => (at(), -9..99_i64).prop_map(|(at, number)| Edit::Number(at, number)),
        2 => (at(), 1..40_usize).prop_map(|(at, length)| Edit::Delete(at, length)),
        2 => (at(), 1..80_usize, at()).prop_map(|(from, length, to)| Edit::Copy(from, length, to)),
        2 => (at(), at(), at(), 1..80_usize)
            .prop_map(|(to, seed, from, length)| Edit::Splice(to, seed, from, length)),
        1 => (at(), 1..400_usize).prop_map(|(at, times)| Edit::Repeat(at, times)),
        1 => at().prop_map(Edit::Cut),
    ]
}

impl Edit {
    fn apply(&self, bytes: &mut Vec<u8>, seeds: &[Vec<u8>], words: &[&str]) {
        let end = bytes.len();
        let place = |at: &Index| at.index(end + 1);
        let word = |index: &Index| {
            let index = index.index(WORDS.len() + words.len());
            let word = WORDS.get(index).or_else(|| words.get(index - WORDS.len()));
            word.map_or(&b""[..], |word| word.as_bytes())
        };
        match self {
            Self::Byte(at, byte) if end > 0 => bytes[at.index(end)] = *byte,
            Self::Flip(at, bit) if end > 0 => bytes[at.index(end)] ^= 1 << bit,
            Self::Byte(..) | Self::Flip(..) => {}
            Self::Insert(at, index) => put(bytes, place(at), 0, word(index)),
            Self::Replace(at, index) => {
                let (start, length) = token(bytes, place(at));
                put(bytes, start, length, word(index));
            }
            Self::Number(at, number) => {
                let (start, length) = token(bytes, place(at));
                put(bytes, start, length, number.to_string().as_bytes());
            }
            Self::Delete(at, length) => put(bytes, place(at), *length, b""),
            Self::Copy(from, length, to) => {
                let piece = piece(bytes, place(from), *length).to_vec();
                put(bytes, place(to), 0, &piece);
            }
            Self::Splice(to, seed, from, length) => {
                let seed = &seeds[seed.index(seeds.len())];
                let piece = piece(seed, from.index(seed.len() + 1), *length);
                put(bytes, place(to), 0, piece);
            }
            Self::Repeat(at, times) => {
                let byte = piece(bytes, place(at), 1).to_vec();
                put(bytes, place(at), 0, &byte.repeat(*times));
            }
            Self::Cut(at) => bytes.truncate(place(at)),
        }
    }
}

/// `with` in the place of up to `length` bytes.
fn put(bytes: &mut Vec<u8>, at: usize, length: usize, with: &[u8]) {
    let end = (at + length).min(bytes.len());
    bytes.splice(at..end, with.iter().copied());
}

fn piece(bytes: &[u8], from: usize, length: usize) -> &[u8] {
    &bytes[from..(from + length).min(bytes.len())]
}

/// Where the number or name around a place begins, and how long it is.
fn token(bytes: &[u8], at: usize) -> (usize, usize) {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.+-".contains(byte);
    let before = bytes[..at]
        .iter()
        .rev()
        .take_while(|byte| is_part(byte))
        .count();
    let after = bytes[at..].iter().take_while(|byte| is_part(byte)).count();
    (at - before, before + after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_whole_number_or_name() {
        let text = b"heads = 12, kv";
        assert_eq!(token(text, 2), (0, 5));
        assert_eq!(token(text, 9), (8, 2));
        assert_eq!(token(text, 6), (6, 0));
        assert_eq!(token(text, text.len()), (12, 2));
    }

    #[test]
    fn pieces_end_where_the_file_ends() {
        let mut bytes = b"abc".to_vec();
        put(&mut bytes, 1, 9, b"xy");
        assert_eq!(bytes, b"axy");
        put(&mut bytes, 3, 9, b"z");
        assert_eq!(bytes, b"axyz");
        assert_eq!(piece(&bytes, 3, 9), b"z");
        assert_eq!(piece(&bytes, 4, 9), b"");
    }
}
