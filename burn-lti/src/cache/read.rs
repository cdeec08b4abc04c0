//! [`TeacherCache`]: the rows of a finished cache.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::f16;
use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata};

use super::format::{Field, Index, ShardEntry};
use super::verify::Breach;
use super::{CacheError, CacheHeader, Fault, LogProbType, TopKRows, sha256};
use crate::files::{HeaderError, safetensors_header};

/// Many times the header of a shard. A longer one might ask for more memory than there is.
const MAX_HEADER: u64 = 1 << 20;

/// A finished cache, opened and checked but not read.
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
}

impl TeacherCache {
    /// Opens the cache in `dir`.
    ///
    /// Index and headers are checked, the contents are not: for that there is
    /// [`verify_files`](Self::verify_files).
    ///
    /// # Errors
    ///
    /// - [`CacheError::Missing`], [`CacheError::Incomplete`]: there is no cache, or no finished one.
    /// - [`CacheError::Schema`], [`CacheError::Index`], [`CacheError::Header`],
    ///   [`CacheError::ShardName`], [`CacheError::ShardStart`], [`CacheError::ShardRows`]: its index
    ///   cannot be used.
    /// - [`CacheError::Read`]: a file cannot be read, a shard is missing.
    /// - [`CacheError::Size`], [`CacheError::HeaderLength`], [`CacheError::ShardHeader`],
    ///   [`CacheError::Tensor`], [`CacheError::UnknownTensor`]: a shard does not hold its rows.
    pub fn open(dir: &Path) -> Result<Self, CacheError> {
        let index = Index::read(dir)?;
        let found = index.finished_rows();
        let Index { header, shards, .. } = index;
        if found != header.rows {
            return Err(CacheError::Incomplete {
                folder: dir.into(),
                rows: header.rows,
                found,
            });
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

    /// The rows with these numbers, from 0, in this order; one can be had more than once.
    ///
    /// # Errors
    ///
    /// - [`CacheError::NoRow`]: the cache has less rows.
    /// - [`CacheError::Broken`]: a mask is neither 0 nor 1.
    pub fn gather(&self, rows: &[usize]) -> Result<TopKRows, CacheError> {
        let mut gathered = TopKRows::default();
        for &row in rows {
            if row >= self.rows() {
                return Err(CacheError::NoRow {
                    row,
                    rows: self.rows(),
                });
            }
            let next = self.shards.partition_point(|shard| shard.first_row <= row);
            // The first shard begins with row 0, so that there is one before `next`.
            let shard = &self.shards[next - 1];
            shard.read(row - shard.first_row, &self.header, &mut gathered)?;
        }
        Ok(gathered)
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
        let opened = File::open(&file).map_err(reading(&file))?;
        // SAFETY: the map is only read. That nobody changes a shard in place while it is in use cannot
        // be ensured from here; `TeacherCache` says so.
        let map = unsafe { Mmap::map(&opened) }.map_err(reading(&file))?;
        let metadata = parse_header(&file, &map)?;
        let ranges = find_fields(&file, &metadata, header, entry.rows, map.len())?;
        Ok(Self {
            file,
            first_row: entry.first_row,
            rows: entry.rows,
            sha256: entry.sha256.clone(),
            map,
            ranges,
        })
    }

    /// Checks that the file is the one that the index means.
    pub(super) fn check_hash(&self) -> Result<(), CacheError> {
        let found = sha256(&self.map);
        match found == self.sha256 {
            true => Ok(()),
            false => Err(CacheError::Hash {
                shard: self.file.clone(),
                expected: self.sha256.clone(),
                found,
            }),
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
        CacheError::Broken {
            shard: self.file.clone(),
            row: self.first_row + breach.row,
            token: breach.token,
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
    let shard = || shard.to_owned();
    safetensors_header(bytes, MAX_HEADER).map_err(|error| match error {
        HeaderError::Length { length } => CacheError::HeaderLength {
            shard: shard(),
            length,
        },
        HeaderError::Json(source) => CacheError::ShardHeader {
            shard: shard(),
            source,
        },
        HeaderError::Size { expected, found } => CacheError::Size {
            shard: shard(),
            expected,
            found,
        },
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
                return Err(CacheError::Tensor {
                    shard: shard.into(),
                    tensor: field.name(),
                    expected: kind(dtype, &shape),
                    found: found.map(|info| kind(info.dtype, &info.shape)),
                });
            }
        }
    }
    match tensors.into_keys().min() {
        None => Ok(ranges),
        Some(tensor) => Err(CacheError::UnknownTensor {
            shard: shard.into(),
            tensor,
        }),
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

fn reading(file: &Path) -> impl FnOnce(io::Error) -> CacheError + '_ {
    move |source| CacheError::Read {
        file: file.into(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    use serde_json::{Value, json};

    use super::*;
    use crate::cache::fixture::{self, Edit, SHARD, cache, edit_index, edit_shard, select};

    fn header() -> CacheHeader {
        fixture::header(LogProbType::F32)
    }

    /// Changes the JSON of a shard's header, not the tensors behind it.
    fn edit_header(dir: &Path, edit: impl FnOnce(&mut Value)) {
        edit_shard(dir, |bytes| {
            let (length, rest) = bytes.split_first_chunk().unwrap();
            let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
            let mut header: Value = serde_json::from_slice(header).unwrap();
            edit(&mut header);
            let header = header.to_string();
            let length = (header.len() as u64).to_le_bytes();
            *bytes = [&length, header.as_bytes(), data].concat();
        });
    }

    /// The error with which a cache is refused whose first shard was changed so.
    fn refused(edit: impl FnOnce(&Path)) -> CacheError {
        let (folder, _) = cache(&header());
        edit(folder.path());
        let error = TeacherCache::open(folder.path()).unwrap_err();
        assert!(error.to_string().contains(SHARD), "{error}");
        error
    }

    #[test]
    fn float32_comes_back_bit_by_bit() {
        let (folder, rows) = cache(&header());
        let cache = TeacherCache::open(folder.path()).unwrap();
        assert_eq!((cache.rows(), cache.header()), (7, &header()));
        assert_eq!(cache.gather(&[0, 1, 2, 3, 4, 5, 6]).unwrap(), rows);
        cache.verify_files().unwrap();
    }

    #[test]
    fn float16_comes_back_to_half_a_unit_in_its_last_place() {
        let (folder, pushed) = cache(&fixture::header(LogProbType::F16));
        let cache = TeacherCache::open(folder.path()).unwrap();
        let read = cache.gather(&[0, 1, 2, 3, 4, 5, 6]).unwrap();
        for (read, pushed) in read.log_probs.iter().zip(&pushed.log_probs) {
            // float16 has 11 significant bits, and a last place of 2^-24 at the least.
            let half = f64::max(f64::from(pushed.abs()) * f64::exp2(-11.0), f64::exp2(-25.0));
            assert!(
                f64::abs(f64::from(*read) - f64::from(*pushed)) <= half,
                "{pushed} {read}"
            );
        }
        assert_ne!(read.log_probs, pushed.log_probs);
        let log_probs = pushed.log_probs.clone();
        assert_eq!(TopKRows { log_probs, ..read }, pushed);
        cache.verify_files().unwrap();
    }

    #[test]
    fn gathered_rows_are_those_that_were_pushed() {
        let mut rng = StdRng::seed_from_u64(1);
        for log_prob_type in [LogProbType::F32, LogProbType::F16] {
            let header = fixture::header(log_prob_type);
            let (folder, pushed) = cache(&header);
            let cache = TeacherCache::open(folder.path()).unwrap();
            let pushed = pushed.rounded(log_prob_type);
            for _ in 0..100 {
                let length = rng.random_range(0..10);
                let chosen: Vec<usize> = (0..length).map(|_| rng.random_range(0..7)).collect();
                let expected = select(&header, &pushed, &chosen);
                assert_eq!(cache.gather(&chosen).unwrap(), expected, "{chosen:?}");
            }
        }
    }

    #[test]
    fn rows_beyond_the_last_are_refused() {
        let (folder, _) = cache(&header());
        let cache = TeacherCache::open(folder.path()).unwrap();
        for row in [7, usize::MAX] {
            let error = cache.gather(&[0, row]).unwrap_err();
            assert!(matches!(error, CacheError::NoRow { row: named, rows: 7 } if named == row));
        }
    }

    #[test]
    fn no_cache_is_an_error_that_says_what_makes_one() {
        let folder = tempfile::tempdir().unwrap();
        let error = TeacherCache::open(&folder.path().join("nowhere")).unwrap_err();
        assert!(matches!(error, CacheError::Missing { .. }));
        assert!(error.to_string().contains("burn-lti cache-teacher"));
    }

    #[test]
    fn an_unfinished_cache_is_refused() {
        let (folder, _) = cache(&header());
        edit_index(folder.path(), |index| {
            index["shards"].as_array_mut().unwrap().pop();
        });
        let error = TeacherCache::open(folder.path()).unwrap_err();
        assert!(
            matches!(
                error,
                CacheError::Incomplete {
                    rows: 7,
                    found: 6,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn a_missing_shard_is_named() {
        let error = refused(|dir| fs::remove_file(dir.join(SHARD)).unwrap());
        assert!(matches!(error, CacheError::Read { .. }), "{error}");
    }

    #[test]
    fn a_shard_cut_off_anywhere_or_too_long_is_refused() {
        let (folder, _) = cache(&header());
        let path = folder.path().join(SHARD);
        let whole = fs::read(&path).unwrap();
        for length in (0..whole.len()).chain([whole.len() + 1]) {
            let mut bytes = whole.clone();
            bytes.resize(length, 0);
            fs::write(&path, bytes).unwrap();
            let error = TeacherCache::open(folder.path()).unwrap_err();
            let found = length as u64;
            assert!(matches!(error, CacheError::Size { found: named, .. } if named == found));
        }
    }

    #[test]
    fn a_shard_whose_header_has_no_end_is_refused() {
        for claimed in [MAX_HEADER + 1, u64::MAX] {
            let error = refused(|dir| {
                edit_shard(dir, |bytes| {
                    bytes[..8].copy_from_slice(&claimed.to_le_bytes())
                });
            });
            assert!(matches!(error, CacheError::HeaderLength { length, .. } if length == claimed));
        }
    }

    #[test]
    fn a_broken_shard_header_is_refused() {
        let edits: [Edit<Value>; 4] = [
            |header| *header = json!([]),
            |header| header["mask"]["dtype"] = json!("U7"),
            // As many elements as no file can have, and more than can be counted.
            |header| header["mask"]["shape"] = json!([u64::MAX, 1]),
            |header| header["mask"]["shape"] = json!([u64::MAX, u64::MAX]),
        ];
        for edit in edits {
            let error = refused(|dir| edit_header(dir, edit));
            assert!(matches!(error, CacheError::ShardHeader { .. }), "{error}");
        }
    }

    #[test]
    fn lengths_that_add_up_to_too_much_are_refused() {
        // Eight tensors that are each of a size that can be counted, and together just below 2^64.
        let size = (1_u64 << 61) - 1;
        let tensors = (0..8).map(|i| {
            let info =
                json!({"dtype": "U8", "shape": [size], "data_offsets": [i * size, (i + 1) * size]});
            (format!("tensor.{i}"), info)
        });
        let hostile = Value::Object(tensors.collect());
        let error = refused(|dir| edit_header(dir, |header| *header = hostile));
        assert!(matches!(error, CacheError::Size { .. }), "{error}");
    }

    #[test]
    fn tensors_have_their_names_types_and_shapes() {
        let edits: [(&str, Edit<Value>); 4] = [
            ("tokens", |header| header["tokens"]["dtype"] = json!("I32")),
            ("log_probs", |header| {
                header["log_probs"]["shape"] = json!([3, 4, 6])
            }),
            ("mask", |header| header["mask"]["shape"] = json!([18])),
            ("log_tail", |header| {
                let tail = header.as_object_mut().unwrap().remove("log_tail").unwrap();
                header["tail"] = tail;
            }),
        ];
        for (expected, edit) in edits {
            let error = refused(|dir| edit_header(dir, edit));
            assert!(
                matches!(error, CacheError::Tensor { tensor, .. } if tensor == expected),
                "{error}"
            );
        }
        let other_rows = refused(|dir| {
            edit_index(dir, |index| {
                index["shards"][0]["rows"] = json!(4);
                index["shards"][1]["first_row"] = json!(4);
                index["shards"][1]["rows"] = json!(2);
            });
        });
        assert!(
            matches!(other_rows, CacheError::Tensor { .. }),
            "{other_rows}"
        );
    }

    #[test]
    fn the_index_says_the_float_type() {
        let error = refused(|dir| {
            edit_index(dir, |index| {
                index["header"]["log_prob_type"] = json!("float16")
            });
        });
        assert!(
            matches!(
                error,
                CacheError::Tensor {
                    tensor: "log_probs",
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn a_tensor_that_is_no_part_of_a_cache_is_refused() {
        let error = refused(|dir| {
            edit_header(dir, |header| {
                header["more"] = json!({"dtype": "U8", "shape": [0], "data_offsets": [0, 0]});
            });
        });
        assert!(matches!(&error, CacheError::UnknownTensor { tensor, .. } if tensor == "more"));
    }

    #[test]
    fn a_mask_that_is_neither_yes_nor_no_is_named() {
        let (folder, _) = cache(&header());
        edit_shard(folder.path(), |bytes| {
            // The mask is the tensor of the smallest type, and therefore the last; row 2, token 5.
            *bytes.last_mut().unwrap() = 2;
        });
        let cache = TeacherCache::open(folder.path()).unwrap();
        cache.gather(&[0, 1]).unwrap();
        let error = cache.gather(&[2]).unwrap_err();
        let CacheError::Broken {
            row, token, source, ..
        } = error
        else {
            panic!("{error}");
        };
        assert_eq!((row, token, source), (2, 5, Fault::Mask { found: 2 }));
    }

    #[test]
    fn whatever_byte_is_changed_is_an_error_and_no_panic() {
        let (folder, _) = cache(&header());
        let path = folder.path().join(SHARD);
        let whole = fs::read(&path).unwrap();
        let mut rng = StdRng::seed_from_u64(2);
        for place in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[place] ^= rng.random_range(1..=255);
            fs::write(&path, bytes).unwrap();
            let result = TeacherCache::open(folder.path()).and_then(|cache| {
                // What is read may be wrong, or refused.
                let _ = cache.gather(&[0, 1, 2]);
                cache.verify_files()
            });
            assert!(result.is_err(), "byte {place}");
        }
    }
}
