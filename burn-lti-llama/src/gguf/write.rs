//! Writes a GGUF file, and reads it back.

use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::Hasher;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use burn_lti::files::{self, FileError};

use super::file::{ALIGNMENT, MAGIC, VERSION};
use super::{BlockType, Container, GgufError};

/// What is written under a key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum NewValue {
    /// A number from 0 up.
    Number(u32),
    /// A float.
    Float(f32),
    /// True or false.
    Bool(bool),
    /// A text.
    Text(String),
    /// An array of texts.
    Texts(Vec<String>),
    /// An array of floats.
    Floats(Vec<f32>),
    /// An array of whole numbers.
    Integers(Vec<i32>),
}

/// A tensor to be written.
pub(crate) struct NewTensor<'a, E> {
    /// Its name in the file.
    pub(crate) name: String,
    /// The last axis runs fastest.
    pub(crate) shape: Vec<usize>,
    /// How its numbers lie.
    pub(crate) kind: BlockType,
    /// Its numbers, asked for when its turn comes.
    pub(crate) numbers: Box<dyn FnOnce() -> Result<Vec<f32>, E> + 'a>,
}

/// Writes a file and reads it back; what was there is replaced once it is whole. One tensor at a time is in memory.
///
/// # Errors
///
/// [`GgufError::Refused`] for a shape that blocks do not divide and for numbers that are not finite in their type,
/// [`GgufError::Write`], and what `numbers` fails with.
pub(crate) fn write<E: From<GgufError>>(
    path: &Path,
    values: &[(String, NewValue)],
    tensors: Vec<NewTensor<'_, E>>,
) -> Result<(), E> {
    for tensor in &tensors {
        check_blocks(path, &tensor.name, &tensor.shape, tensor.kind)?;
    }
    let header = header(values, &tensors);
    let mut prints = Vec::new();
    files::replace(path, |file| {
        let write = |file: &mut BufWriter<&File>, bytes: &[u8]| {
            let written = file.write_all(bytes).and_then(|()| pad(file, bytes.len()));
            written
                .map_err(FileError::writing(path))
                .map_err(Failure::of)
        };
        write(file, &header)?;
        for tensor in tensors {
            let numbers = (tensor.numbers)().map_err(Failure)?;
            let bytes = bytes(path, &tensor.name, tensor.kind, &numbers)
                .map_err(|error| Failure(error.into()))?;
            write(file, &bytes)?;
            prints.push((tensor.name, tensor.shape, tensor.kind, hash(&bytes)));
        }
        Ok::<(), Failure<E>>(())
    })
    .map_err(|Failure(error)| error)?;
    let written = Container::open(path)?;
    let found = written.tensors.iter().map(|tensor| {
        let hash = hash(written.bytes(&tensor.bytes));
        (tensor.name.clone(), tensor.shape.clone(), tensor.kind, hash)
    });
    match found.eq(prints) {
        true => Ok(()),
        false => Err(GgufError::from(FileError::ReadBack { file: path.into() }).into()),
    }
}

/// What went wrong while a file was written.
struct Failure<E>(E);

impl<E: From<GgufError>> Failure<E> {
    fn of(error: FileError) -> Self {
        Self(GgufError::from(error).into())
    }
}

impl<E: From<GgufError>> From<FileError> for Failure<E> {
    fn from(error: FileError) -> Self {
        Self::of(error)
    }
}

/// Rows must be whole blocks.
fn check_blocks(
    path: &Path,
    name: &str,
    shape: &[usize],
    kind: BlockType,
) -> Result<(), GgufError> {
    let (row, block) = (shape.last().copied().unwrap_or(1), kind.block_len());
    if row.is_multiple_of(block) {
        return Ok(());
    }
    let below = row / block * block;
    let nearest = match below {
        0 => block.to_string(),
        below => format!("{below} or {}", below + block),
    };
    let reason = format!(
        "cannot hold {name} in {kind}: its rows have {row} numbers, which blocks of {block} do not divide; the \
         nearest that work are {nearest}. Take f16, bf16 or f32"
    );
    Err(GgufError::refused(path, reason))
}

/// The bytes of a tensor, whose numbers must be finite in them.
fn bytes(path: &Path, name: &str, kind: BlockType, numbers: &[f32]) -> Result<Vec<u8>, GgufError> {
    let refused =
        |reason: String| GgufError::refused(path, format!("cannot hold {name}: {reason}"));
    let bytes = kind.to_bytes(numbers);
    let bytes = bytes.ok_or_else(|| {
        refused(format!(
            "{kind} is only read here; take F32, F16, BF16 or Q8_0"
        ))
    })?;
    let is_finite = |numbers: &[f32]| numbers.iter().all(|number| number.is_finite());
    match is_finite(numbers) && is_finite(&kind.to_f32(&bytes)) {
        true => Ok(bytes),
        false => Err(refused(format!(
            "a number of it is not finite in {kind}: the model diverged, or take a type with a larger range"
        ))),
    }
}

/// All that comes before the tensors.
fn header<E>(values: &[(String, NewValue)], tensors: &[NewTensor<'_, E>]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((values.len() as u64).to_le_bytes());
    for (key, value) in values {
        put_text(&mut out, key);
        put_value(&mut out, value);
    }
    let mut offset = 0_u64;
    for tensor in tensors {
        put_text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        for axis in tensor.shape.iter().rev() {
            out.extend((*axis as u64).to_le_bytes());
        }
        out.extend(tensor.kind.id().to_le_bytes());
        out.extend(offset.to_le_bytes());
        let count: usize = tensor.shape.iter().product();
        let size = count / tensor.kind.block_len() * tensor.kind.block_bytes();
        offset += size.next_multiple_of(ALIGNMENT) as u64;
    }
    out
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &NewValue) {
    let mut of_kind = |kind: u32| out.extend(kind.to_le_bytes());
    match value {
        NewValue::Number(number) => {
            of_kind(4);
            out.extend(number.to_le_bytes());
        }
        NewValue::Float(number) => {
            of_kind(6);
            out.extend(number.to_le_bytes());
        }
        NewValue::Bool(value) => {
            of_kind(7);
            out.push(u8::from(*value));
        }
        NewValue::Text(text) => {
            of_kind(8);
            put_text(out, text);
        }
        NewValue::Texts(all) => {
            put_array(out, 8, all.len());
            all.iter().for_each(|text| put_text(out, text));
        }
        NewValue::Floats(all) => {
            put_array(out, 6, all.len());
            out.extend(all.iter().flat_map(|number| number.to_le_bytes()));
        }
        NewValue::Integers(all) => {
            put_array(out, 5, all.len());
            out.extend(all.iter().flat_map(|number| number.to_le_bytes()));
        }
    }
}

fn put_array(out: &mut Vec<u8>, kind: u32, length: usize) {
    out.extend(9_u32.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend((length as u64).to_le_bytes());
}

/// Zeros up to where the next tensor begins, after one of so many bytes that began there.
fn pad(file: &mut BufWriter<&File>, length: usize) -> io::Result<()> {
    let zeros = [0; ALIGNMENT];
    file.write_all(&zeros[..length.next_multiple_of(ALIGNMENT) - length])
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}
