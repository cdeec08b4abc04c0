//! The container: what a GGUF file says of itself, and where its tensors lie.
//!
//! It is read by hand. The crates that read GGUF either bring a framework of tensors of their own (candle), or
//! trust the lengths in a file, or read no types beyond the first; the format is a few pages
//! (`docs/gguf.md` of ggml). Nothing is allocated by a length that the file claims: all of them are compared with
//! the bytes that are there, and arrays stay where they are until they are asked for.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use burn_lti::files::{GIT_LFS_POINTER, is_git_lfs_pointer};
use memmap2::Mmap;

use super::{BlockType, GgufError};

pub(super) const MAGIC: &[u8; 4] = b"GGUF";
/// The one that is written; 2 has the same layout.
pub(super) const VERSION: u32 = 3;
/// Where a file names no other.
pub(super) const ALIGNMENT: usize = 32;
const ALIGNMENT_KEY: &str = "general.alignment";
/// As many as ggml has.
const MAX_DIMENSIONS: u32 = 4;

/// A GGUF file, mapped into memory and checked.
///
/// Who changes the file in place meanwhile changes what is read, and who cuts it off ends the program.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) path: PathBuf,
    map: Mmap,
    values: BTreeMap<String, Value>,
    pub(super) tensors: Vec<StoredTensor>,
}

/// A tensor as the file has it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StoredTensor {
    pub(super) name: String,
    /// The last axis runs fastest: the reverse of how a file has it.
    pub(super) shape: Vec<usize>,
    pub(super) kind: BlockType,
    pub(super) bytes: Range<usize>,
}

/// What stands under a key.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Integer(i128),
    Float(f64),
    Bool(bool),
    Text(Range<usize>),
    Array(Array),
}

/// An array, which stays in the file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Array {
    kind: u32,
    count: usize,
    start: usize,
}

/// The types of values, by their numbers in a file.
mod kind {
    pub(super) const U8: u32 = 0;
    pub(super) const I8: u32 = 1;
    pub(super) const U16: u32 = 2;
    pub(super) const I16: u32 = 3;
    pub(super) const U32: u32 = 4;
    pub(super) const I32: u32 = 5;
    pub(super) const F32: u32 = 6;
    pub(super) const BOOL: u32 = 7;
    pub(super) const TEXT: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
    pub(super) const U64: u32 = 10;
    pub(super) const I64: u32 = 11;
    pub(super) const F64: u32 = 12;
}

impl Container {
    pub(super) fn open(path: &Path) -> Result<Self, GgufError> {
        let reading = |source| GgufError::Read {
            file: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(reading)?;
        // SAFETY: the map is only read. That nobody changes the file in place while it is in use cannot be ensured
        // from here; the struct says so.
        let map = unsafe { Mmap::map(&file) }.map_err(reading)?;
        let (values, tensors) = parse(path, &map)?;
        Ok(Self {
            path: path.to_owned(),
            map,
            values,
            tensors,
        })
    }

    pub(super) fn bytes(&self, range: &Range<usize>) -> &[u8] {
        &self.map[range.clone()]
    }

    pub(super) fn tensor(&self, name: &str) -> Option<&StoredTensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// The keys that begin so.
    pub(super) fn keys<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        let keys = self.values.keys().map(String::as_str);
        keys.filter(move |key| key.starts_with(prefix))
    }

    /// A whole number that is not negative. An array of one number for each layer counts as that number.
    pub(super) fn number(&self, key: &str) -> Result<Option<usize>, GgufError> {
        let number = match self.values.get(key) {
            None => return Ok(None),
            Some(Value::Integer(number)) => Some(*number),
            Some(Value::Array(_)) => {
                let all: Vec<i128> = self.integers(key)?.unwrap_or_default();
                let Some(first) = all.first() else {
                    return Err(self.wrong(key, "is an empty array, where a number is needed"));
                };
                if all.iter().any(|number| number != first) {
                    let reason = format!(
                        "has `{key}` for each layer, and layers that are unlike are not computed here: use a model \
                         whose layers are alike"
                    );
                    return Err(GgufError::refused(&self.path, reason));
                }
                Some(*first)
            }
            Some(_) => None,
        };
        match number.map(usize::try_from) {
            Some(Ok(number)) => Ok(Some(number)),
            _ => Err(self.wrong(key, "is no whole number from 0 up")),
        }
    }

    /// A number, of a 32-bit float the one with the fewest digits: what was written, as a rule.
    pub(super) fn float(&self, key: &str) -> Result<Option<f64>, GgufError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Float(number)) => Ok(Some(*number)),
            Some(Value::Integer(number)) => Ok(Some(*number as f64)),
            Some(_) => Err(self.wrong(key, "is no number")),
        }
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(key, "is neither true nor false")),
        }
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Text(range)) => {
                let text = std::str::from_utf8(&self.map[range.clone()]);
                let text = text.map_err(|_| self.wrong(key, "is no UTF-8"))?;
                Ok(Some(text))
            }
            Some(_) => Err(self.wrong(key, "is no text")),
        }
    }

    pub(super) fn is_array(&self, key: &str) -> bool {
        matches!(self.values.get(key), Some(Value::Array(_)))
    }

    /// The texts of an array.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, GgufError> {
        let Some(array) = self.array(key)? else {
            return Ok(None);
        };
        if array.kind != kind::TEXT {
            return Err(self.wrong(key, "is no array of texts"));
        }
        let mut cursor = self.cursor(array);
        let mut texts = Vec::new();
        for _ in 0..array.count {
            let range = cursor.text()?;
            let text = std::str::from_utf8(&self.map[range]);
            texts.push(text.map_err(|_| self.wrong(key, "has a text that is no UTF-8"))?);
        }
        Ok(Some(texts))
    }

    pub(super) fn integers(&self, key: &str) -> Result<Option<Vec<i128>>, GgufError> {
        self.scalars(key, "is no array of whole numbers", |value| match value {
            Value::Integer(number) => Some(number),
            Value::Bool(value) => Some(i128::from(value)),
            _ => None,
        })
    }

    pub(super) fn floats(&self, key: &str) -> Result<Option<Vec<f64>>, GgufError> {
        self.scalars(key, "is no array of numbers", |value| match value {
            Value::Float(number) => Some(number),
            _ => None,
        })
    }

    fn scalars<T>(
        &self,
        key: &str,
        otherwise: &str,
        of: impl Fn(Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, GgufError> {
        let Some(array) = self.array(key)? else {
            return Ok(None);
        };
        let mut cursor = self.cursor(array);
        let mut all = Vec::new();
        for _ in 0..array.count {
            all.push(of(cursor.value(array.kind)?).ok_or_else(|| self.wrong(key, otherwise))?);
        }
        Ok(Some(all))
    }

    fn array(&self, key: &str) -> Result<Option<&Array>, GgufError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) => Ok(Some(array)),
            Some(_) => Err(self.wrong(key, "is no array")),
        }
    }

    fn cursor(&self, array: &Array) -> Cursor<'_> {
        Cursor {
            path: &self.path,
            bytes: &self.map,
            at: array.start,
        }
    }

    fn wrong(&self, key: &str, reason: &str) -> GgufError {
        GgufError::broken(&self.path, format!("says `{key}`, which {reason}"))
    }
}

type Contents = (BTreeMap<String, Value>, Vec<StoredTensor>);

fn parse(path: &Path, bytes: &[u8]) -> Result<Contents, GgufError> {
    if is_git_lfs_pointer(bytes) {
        return Err(GgufError::refused(path, GIT_LFS_POINTER));
    }
    let mut cursor = Cursor { path, bytes, at: 0 };
    if cursor.take::<4>("magic")? != *MAGIC {
        return Err(cursor.broken("does not begin as a GGUF file does"));
    }
    match cursor.u32("version")? {
        2 | VERSION => {}
        1 => {
            let reason = "is GGUF of version 1, from before August 2023: convert the model again";
            return Err(GgufError::refused(path, reason));
        }
        other if other.swap_bytes() <= VERSION => {
            let reason = "is a GGUF file for big-endian machines, which is not read: convert the model without \
                          --bigendian";
            return Err(GgufError::refused(path, reason));
        }
        other => {
            let reason = format!(
                "is GGUF of version {other}, which is not known here: convert it to version 3"
            );
            return Err(GgufError::refused(path, reason));
        }
    }
    let (tensor_count, value_count) = (cursor.u64("tensor count")?, cursor.u64("key count")?);
    // A name's length, dimensions, a type and an offset; a key's length, a type and a byte.
    cursor.check_count("tensors", tensor_count, 8 + 4 + 8 + 4 + 8)?;
    cursor.check_count("keys", value_count, 8 + 4 + 1)?;
    let mut values = BTreeMap::new();
    for _ in 0..value_count {
        let key = cursor.name("key")?;
        let kind = cursor.u32("type of a value")?;
        let value = cursor.value(kind)?;
        if values.insert(key.clone(), value).is_some() {
            return Err(cursor.broken(&format!("has the key `{key}` twice")));
        }
    }
    let alignment = match values.get(ALIGNMENT_KEY) {
        None => ALIGNMENT,
        Some(Value::Integer(number))
            if (1..=1 << 20).contains(number) && number & (number - 1) == 0 =>
        {
            *number as usize
        }
        Some(other) => {
            let reason =
                format!("has {other:?} as `{ALIGNMENT_KEY}`, which is no power of two up to 2^20");
            return Err(cursor.broken(&reason));
        }
    };
    let mut infos = Vec::new();
    for _ in 0..tensor_count {
        infos.push(cursor.tensor()?);
    }
    let start = cursor.at.next_multiple_of(alignment);
    let mut tensors: Vec<StoredTensor> = Vec::new();
    for (name, shape, kind, offset) in infos {
        let tensor = place(&cursor, name, shape, kind, (start, offset, alignment))?;
        tensors.push(tensor);
    }
    check_apart(&cursor, &tensors)?;
    Ok((values, tensors))
}

/// The bytes of a tensor, which must all be there.
fn place(
    cursor: &Cursor<'_>,
    name: String,
    shape: Vec<usize>,
    kind: u32,
    (start, offset, alignment): (usize, u64, usize),
) -> Result<StoredTensor, GgufError> {
    let Some(kind) = BlockType::of_id(kind) else {
        let known = BlockType::ALL.map(BlockType::name).join(", ");
        let reason = format!(
            "has {name} in {}, which is not read here: take a file of {known}, as llama.cpp's `llama-quantize \
             --allow-requantize` makes them",
            type_name(kind)
        );
        return Err(GgufError::refused(cursor.path, reason));
    };
    let row = shape.last().copied().unwrap_or(1);
    if !row.is_multiple_of(kind.block_len()) {
        let reason = format!(
            "has {name} in {kind}, with rows of {row} numbers that its blocks of {} do not divide",
            kind.block_len()
        );
        return Err(cursor.broken(&reason));
    }
    let count = shape
        .iter()
        .try_fold(1_usize, |count, axis| count.checked_mul(*axis));
    let size = count.and_then(|count| (count / kind.block_len()).checked_mul(kind.block_bytes()));
    let begin = usize::try_from(offset)
        .ok()
        .and_then(|offset| start.checked_add(offset));
    let range = begin
        .zip(size)
        .and_then(|(begin, size)| Some(begin..begin.checked_add(size)?));
    let Some(bytes) = range.filter(|range| range.end <= cursor.bytes.len()) else {
        let reason = format!(
            "has {name}, {shape:?} in {kind} at {offset}, outside its {} bytes",
            cursor.bytes.len()
        );
        return Err(cursor.broken(&reason));
    };
    if !offset.is_multiple_of(alignment as u64) {
        let reason = format!("has {name} at {offset}, no multiple of its alignment, {alignment}");
        return Err(cursor.broken(&reason));
    }
    Ok(StoredTensor {
        name,
        shape,
        kind,
        bytes,
    })
}

/// No two tensors have a name or a byte in common.
fn check_apart(cursor: &Cursor<'_>, tensors: &[StoredTensor]) -> Result<(), GgufError> {
    let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(cursor.broken(&format!("has the tensor {} twice", pair[0])));
    }
    let mut sorted: Vec<&StoredTensor> = tensors.iter().collect();
    sorted.sort_by_key(|tensor| tensor.bytes.start);
    let overlap = sorted
        .windows(2)
        .find(|pair| pair[1].bytes.start < pair[0].bytes.end);
    match overlap {
        None => Ok(()),
        Some(pair) => {
            let reason = format!(
                "has {} and {} in the same place",
                pair[0].name, pair[1].name
            );
            Err(cursor.broken(&reason))
        }
    }
}

/// A place in a file that is read from front to back.
struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn broken(&self, reason: &str) -> GgufError {
        GgufError::broken(self.path, reason)
    }

    fn cut_off(&self, what: &str) -> GgufError {
        self.broken(&format!(
            "ends within its {what}, at {} of {} bytes",
            self.at,
            self.bytes.len()
        ))
    }

    fn take<const SIZE: usize>(&mut self, what: &str) -> Result<[u8; SIZE], GgufError> {
        let rest = self.bytes.get(self.at..);
        match rest.and_then(<[u8]>::first_chunk::<SIZE>) {
            Some(taken) => {
                self.at += SIZE;
                Ok(*taken)
            }
            None => Err(self.cut_off(what)),
        }
    }

    fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        self.take(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        self.take(what).map(u64::from_le_bytes)
    }

    /// So many things, of at least `size` bytes each, must fit into the rest of the file.
    fn check_count(&self, what: &str, count: u64, size: u64) -> Result<usize, GgufError> {
        let rest = (self.bytes.len() - self.at) as u64;
        match usize::try_from(count) {
            Ok(small) if count.checked_mul(size).is_some_and(|bytes| bytes <= rest) => Ok(small),
            _ => Err(self.broken(&format!(
                "claims {count} {what}, more than fit into the {rest} bytes that follow"
            ))),
        }
    }

    /// Where a text lies.
    fn text(&mut self) -> Result<Range<usize>, GgufError> {
        let length = self.u64("length of a text")?;
        let length = self.check_count("bytes of a text", length, 1)?;
        let start = self.at;
        self.at += length;
        Ok(start..self.at)
    }

    fn name(&mut self, what: &str) -> Result<String, GgufError> {
        let range = self.text()?;
        let text = String::from_utf8(self.bytes[range].to_vec());
        text.map_err(|_| self.broken(&format!("has a {what} that is no UTF-8")))
    }

    fn value(&mut self, of: u32) -> Result<Value, GgufError> {
        const WHAT: &str = "value of a key";
        Ok(match of {
            kind::U8 => Value::Integer(self.take::<1>(WHAT)?[0].into()),
            kind::I8 => Value::Integer(i8::from_le_bytes(self.take(WHAT)?).into()),
            kind::U16 => Value::Integer(u16::from_le_bytes(self.take(WHAT)?).into()),
            kind::I16 => Value::Integer(i16::from_le_bytes(self.take(WHAT)?).into()),
            kind::U32 => Value::Integer(self.u32(WHAT)?.into()),
            kind::I32 => Value::Integer(i32::from_le_bytes(self.take(WHAT)?).into()),
            kind::U64 => Value::Integer(self.u64(WHAT)?.into()),
            kind::I64 => Value::Integer(i64::from_le_bytes(self.take(WHAT)?).into()),
            kind::F32 => Value::Float(shortest(f32::from_le_bytes(self.take(WHAT)?))),
            kind::F64 => Value::Float(f64::from_le_bytes(self.take(WHAT)?)),
            kind::BOOL => Value::Bool(self.take::<1>(WHAT)?[0] != 0),
            kind::TEXT => Value::Text(self.text()?),
            kind::ARRAY => Value::Array(self.array()?),
            other => {
                return Err(self.broken(&format!(
                    "has a value of type {other}, which does not exist"
                )));
            }
        })
    }

    /// Passes over an array.
    fn array(&mut self) -> Result<Array, GgufError> {
        let of = self.u32("type of an array")?;
        let count = self.u64("length of an array")?;
        let size = match of {
            kind::U8 | kind::I8 | kind::BOOL => 1,
            kind::U16 | kind::I16 => 2,
            kind::U32 | kind::I32 | kind::F32 => 4,
            kind::U64 | kind::I64 | kind::F64 | kind::TEXT => 8,
            kind::ARRAY => {
                return Err(self.broken("has an array of arrays, which no model has"));
            }
            other => {
                let reason = format!("has an array of type {other}, which does not exist");
                return Err(self.broken(&reason));
            }
        };
        let count = self.check_count("entries of an array", count, size)?;
        let start = self.at;
        match of {
            kind::TEXT => {
                for _ in 0..count {
                    self.text()?;
                }
            }
            _ => self.at += count * size as usize,
        }
        Ok(Array {
            kind: of,
            count,
            start,
        })
    }

    /// Name, shape, type and offset of a tensor.
    fn tensor(&mut self) -> Result<(String, Vec<usize>, u32, u64), GgufError> {
        let name = self.name("tensor's name")?;
        let dimensions = self.u32("shape of a tensor")?;
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            let reason = format!(
                "has {name} with {dimensions} axes, where 1 to {MAX_DIMENSIONS} are possible"
            );
            return Err(self.broken(&reason));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let axis = self.u64("shape of a tensor")?;
            match usize::try_from(axis) {
                Ok(axis) if axis > 0 => shape.push(axis),
                _ => return Err(self.broken(&format!("has {name} with an axis of {axis}"))),
            }
        }
        shape.reverse();
        Ok((
            name,
            shape,
            self.u32("type of a tensor")?,
            self.u64("offset of a tensor")?,
        ))
    }
}

/// The number with the fewest digits that is this one in 32 bits.
fn shortest(number: f32) -> f64 {
    number.to_string().parse().unwrap_or_else(|_| number.into())
}

/// The names of types that are not read.
fn type_name(id: u32) -> String {
    let name = match id {
        4 => "Q4_2",
        5 => "Q4_3",
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        other => return format!("type {other}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests;
