//! [`TeacherCache`]: the rows of a finished cache.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use half::f16;
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::tensor::{Dtype, Metadata};

use super::error::AGAIN;
use super::fault::{Breach, Fault};
use super::format::{Field, Index, ShardEntry};
use super::verify::check_rows;
use super::{CacheError, CacheHeader, LogProbType, TopKRows};
use crate::files::{HeaderError, safetensors_header, sha256};

/// Many times the header of a shard. A longer one might ask for more memory than there is.
const MAX_HEADER: u64 = 1 << 20;

/// A finished cache, opened but not read. A shard is checked when the first of its rows is asked for.
///
/// Its shards are mapped into memory: who changes one in place meanwhile changes the rows, and who
/// cuts one off ends the program. [`CacheWriter`](super::CacheWriter) does neither, it replaces files.
#[derive(Debug)]
pub struct TeacherCache {
    pub(super) header: CacheHeader,
    pub(super) shards: Vec<Shard>,
}

/// A shard, opened and of the right size.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) file: PathBuf,
    pub(super) first_row: usize,
    pub(super) rows: usize,
    sha256: String,
    map: Mmap,
    /// Where in the map each field is, in the order of [`Field::ALL`].
    ranges: Vec<Range<usize>>,
    /// Set once the contents were checked and found right.
    is_right: OnceLock<()>,
}

impl TeacherCache {
    /// Opens the cache in `dir`.
    ///
    /// Index and headers are checked. The contents of a shard are when [`gather`](Self::gather) first reads of
    /// it, or all by [`verify_files`](Self::verify_files).
    ///
    /// # Errors
    ///
    /// - [`CacheError::Missing`]: there is no cache.
    /// - [`CacheError::Mismatch`]: it is not finished, or there cannot be such a cache.
    /// - [`CacheError::Index`]: its index cannot be used.
    /// - [`CacheError::Read`]: a file cannot be read, a shard is missing.
    /// - [`CacheError::Shard`]: a shard does not hold its rows.
    pub fn open(dir: &Path) -> Result<Self, CacheError> {
        let index = Index::read(dir)?;
        let found = index.finished_rows();
        let Index { header, shards, .. } = index;
        if found != header.rows {
            return Err(CacheError::incomplete(dir, found, header.rows));
        }
        let shards = shards.iter().map(|entry| Shard::open(dir, &header, entry));
        let shards = shards.collect::<Result<_, _>>()?;
        Ok(Self { header, shards })
    }

    /// What the cache holds, and what it was made of.
    pub const fn header(&self) -> &CacheHeader {
        &self.header
    }

    /// The number of rows.
    pub const fn rows(&self) -> usize {
        self.header.rows
    }

    /// The rows with these numbers, from 0, in this order; one can be had more than once. A shard that is read
    /// for the first time is checked as by [`verify_files`](Self::verify_files).
    ///
    /// # Errors
    ///
    /// - [`CacheError::Mismatch`]: the cache has less rows.
    /// - [`CacheError::Shard`]: a shard is not the file that was written.
    /// - [`CacheError::Token`]: a token of a shard breaks [the laws](super#laws).
    pub fn gather(&self, rows: &[usize]) -> Result<TopKRows, CacheError> {
        let mut gathered = TopKRows::default();
        for &row in rows {
            if row >= self.rows() {
                return Err(CacheError::Mismatch(format!(
                    "row {row} of a cache of {} rows: rows are counted from 0",
                    self.rows()
                )));
            }
            let next = self.shards.partition_point(|shard| shard.first_row <= row);
            // The first shard begins with row 0, so that there is one before `next`.
            let shard = &self.shards[next - 1];
            if shard.is_right.get().is_none() {
                shard.check(&self.header)?;
                shard.is_right.get_or_init(|| ());
            }
            shard.read(row - shard.first_row, &self.header, &mut gathered)?;
        }
        Ok(gathered)
    }

    /// Checks that each shard is the file that was written, by its hash, and that each token keeps
    /// [the laws](super#laws).
    ///
    /// # Errors
    ///
    /// Of the first shard, row and token that is wrong: [`CacheError::Shard`] or
    /// [`CacheError::Token`].
    pub fn verify_files(&self) -> Result<(), CacheError> {
        let mut shards = self.shards.iter();
        shards.try_for_each(|shard| shard.check(&self.header))
    }
}

impl Shard {
    /// Opens the shard of an entry of the index, whose header is `header`.
    pub(super) fn open(
        dir: &Path,
        header: &CacheHeader,
        entry: &ShardEntry,
    ) -> Result<Self, CacheError> {
        let file = dir.join(&entry.file);
        let opened = File::open(&file).map_err(CacheError::reading(&file))?;
        // SAFETY: the map is only read. That nobody changes a shard in place while it is in use cannot
        // be ensured from here; `TeacherCache` says so.
        let map = unsafe { Mmap::map(&opened) }.map_err(CacheError::reading(&file))?;
        let metadata = parse_header(&file, &map)?;
        let ranges = find_fields(&file, &metadata, header, entry.rows, map.len())?;
        Ok(Self {
            file,
            first_row: entry.first_row,
            rows: entry.rows,
            sha256: entry.sha256.clone(),
            map,
            ranges,
            is_right: OnceLock::new(),
        })
    }

    /// Checks that the file is the one that was written, and that each token keeps the laws: the error is that of
    /// the first row that does not.
    pub(super) fn check(&self, header: &CacheHeader) -> Result<(), CacheError> {
        self.check_hash()?;
        let check_row = |row| {
            let mut rows = TopKRows::default();
            self.read(row, header, &mut rows)?;
            check_rows(header, &rows).map_err(|breach| self.broken(Breach { row, ..breach }))
        };
        let checked = (0..self.rows).into_par_iter().map(check_row);
        checked.find_first(Result::is_err).unwrap_or(Ok(()))
    }

    /// Checks that the file is the one that the index means.
    fn check_hash(&self) -> Result<(), CacheError> {
        let found = sha256(&self.map);
        match found == self.sha256 {
            true => Ok(()),
            false => Err(CacheError::shard(format!(
                "{} has the sha256 {found}, index.json says {}",
                self.file.display(),
                self.sha256
            ))),
        }
    }

    /// Adds the row with this number in the shard to `rows`.
    pub(super) fn read(
        &self,
        row: usize,
        header: &CacheHeader,
        rows: &mut TopKRows,
    ) -> Result<(), CacheError> {
        rows.tokens.extend(u32s(self.bytes(Field::Tokens, row)));
        rows.segments.extend(u32s(self.bytes(Field::Segments, row)));
        rows.targets.extend(u32s(self.bytes(Field::Targets, row)));
        for (token, &mask) in self.bytes(Field::Mask, row).iter().enumerate() {
            let fault = Fault::Mask { found: mask };
            let valid = match mask {
                0 => false,
                1 => true,
                _ => return Err(self.broken(Breach { row, token, fault })),
            };
            rows.mask.push(valid);
        }
        rows.ids.extend(u32s(self.bytes(Field::Ids, row)));
        let log_probs = self.bytes(Field::LogProbs, row);
        match header.log_prob_type {
            LogProbType::F32 => rows.log_probs.extend(f32s(log_probs)),
            LogProbType::F16 => rows.log_probs.extend(f16s(log_probs)),
        }
        rows.log_tail.extend(f32s(self.bytes(Field::LogTail, row)));
        let targets = self.bytes(Field::TargetLogProb, row);
        rows.target_log_prob.extend(f32s(targets));
        Ok(())
    }

    /// The error of a breach whose row is counted in this shard.
    pub(super) fn broken(&self, breach: Breach) -> CacheError {
        CacheError::Token {
            what: format!(
                "{} is broken in row {}, token {}; {AGAIN}",
                self.file.display(),
                self.first_row + breach.row,
                breach.token
            ),
            source: breach.fault,
        }
    }

    fn bytes(&self, field: Field, row: usize) -> &[u8] {
        let range = &self.ranges[field as usize];
        let size = range.len() / self.rows;
        &self.map[range.start + row * size..][..size]
    }
}

fn parse_header(shard: &Path, bytes: &[u8]) -> Result<Metadata, CacheError> {
    let name = shard.display();
    safetensors_header(bytes, MAX_HEADER).map_err(|error| match error {
        HeaderError::Length { length } => CacheError::shard(format!(
            "{name} claims a header of {length} bytes, so it is no shard of a cache"
        )),
        HeaderError::Json(source) => CacheError::Shard {
            what: format!("{name} has a broken header"),
            source: Some(source),
        },
        HeaderError::Size { expected, found } => CacheError::shard(format!(
            "{name} should have {expected} bytes and has {found}"
        )),
    })
}

/// Where the fields of a shard of `rows` rows are in its file of `length` bytes: all of them, in
/// their types and shapes, and no other tensor.
fn find_fields(
    shard: &Path,
    metadata: &Metadata,
    header: &CacheHeader,
    rows: usize,
    length: usize,
) -> Result<Vec<Range<usize>>, CacheError> {
    // The tensors follow the header, up to the end of the file: `parse_header` has checked it.
    let start = length - metadata.data_len();
    let mut tensors = metadata.tensors();
    let mut ranges = Vec::new();
    for field in Field::ALL {
        let found = tensors.remove(field.name());
        let (dtype, shape) = (field.dtype(header), field.shape(header, rows));
        match found {
            Some(info) if info.dtype == dtype && info.shape == shape => {
                let (from, to) = info.data_offsets;
                ranges.push(start + from..start + to);
            }
            _ => {
                let found = found.map(|info| kind(info.dtype, &info.shape));
                return Err(CacheError::shard(format!(
                    "{} of {} should be {} and is {}",
                    field.name(),
                    shard.display(),
                    kind(dtype, &shape),
                    found.as_deref().unwrap_or("missing")
                )));
            }
        }
    }
    match tensors.into_keys().min() {
        None => Ok(ranges),
        Some(tensor) => Err(CacheError::shard(format!(
            "{} holds `{tensor}`, which is no part of a cache",
            shard.display()
        ))),
    }
}

fn kind(dtype: Dtype, shape: &[usize]) -> String {
    format!("{dtype:?} {shape:?}")
}

fn u32s(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes.as_chunks().0.iter().copied().map(u32::from_le_bytes)
}

fn f32s(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.as_chunks().0.iter().copied().map(f32::from_le_bytes)
}

fn f16s(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    let halves = bytes.as_chunks().0.iter().copied();
    halves.map(|half| f16::from_le_bytes(half).to_f32())
}

#[cfg(test)]
mod tests;
