//! How a cache describes itself: [`CacheHeader`], `index.json`, which holds it, and the tensors of a shard.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use half::f16;
use safetensors::tensor::Dtype;
use serde::{Deserialize, Serialize};

use super::{CacheError, LogProbType, TopKRows};

/// The file that says what is in a cache.
pub(super) const INDEX: &str = "index.json";
/// The layout that this program writes and reads.
const SCHEMA: u32 = 1;
/// The way out of an index that cannot be used.
const ANEW: &str = "write the cache again with `burn-lti cache-teacher` in an empty folder";
/// How many differences an error lists.
const LISTED: usize = 10;

/// What a cache holds, and what it was made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheHeader {
    /// How many tokens are kept of each distribution: 1 to `vocab_size`.
    pub k: usize,
    /// The number of tokens that the teacher knows.
    pub vocab_size: usize,
    /// The number of positions of a row.
    pub seq_len: usize,
    /// The float type of `log_probs`.
    pub log_prob_type: LogProbType,
    /// The number of rows of the finished cache.
    pub rows: usize,
    /// The [`sha256`](crate::files::sha256) of each tensor of the teacher, by name.
    pub teacher_sha256: BTreeMap<String, String>,
    /// The [`sha256`](crate::files::sha256) of each file of text, by path.
    pub data_sha256: BTreeMap<String, String>,
}

impl CacheHeader {
    /// Checks that a cache can be like this.
    ///
    /// # Errors
    ///
    /// [`CacheError::Mismatch`], naming the field.
    pub fn check(&self) -> Result<(), CacheError> {
        let ids = u64::from(u32::MAX) + 1;
        let numbers = self.rows.checked_mul(self.seq_len);
        let bytes = numbers
            .and_then(|numbers| numbers.checked_mul(self.k))
            .and_then(|numbers| numbers.checked_mul(size_of::<f32>()));
        let (name, found, wanted) = if self.vocab_size == 0 || self.vocab_size as u64 > ids {
            (
                "vocab_size",
                self.vocab_size,
                "1 to 2^32, for ids of 32 bits",
            )
        } else if self.k == 0 || self.k > self.vocab_size {
            ("k", self.k, "1 or more, and no more than vocab_size")
        } else if self.seq_len == 0 {
            ("seq_len", self.seq_len, "1 or more")
        } else if self.rows == 0 {
            ("rows", self.rows, "1 or more: give text with targets")
        } else if bytes.is_none() {
            ("rows", self.rows, "few enough to be addressed")
        } else {
            return Ok(());
        };
        Err(CacheError::Mismatch(format!(
            "the cache's {name} is {found}: it has to be {wanted}"
        )))
    }

    /// Checks that the cache in `folder` is the one that `given` would make.
    ///
    /// # Errors
    ///
    /// [`CacheError::Mismatch`], naming what differs.
    pub fn check_same(&self, given: &Self, folder: &Path) -> Result<(), CacheError> {
        let differences = self.differences(given);
        if differences.is_empty() {
            return Ok(());
        }
        let more = match differences.len().saturating_sub(LISTED) {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        let listed: Vec<String> = differences.into_iter().take(LISTED).collect();
        Err(CacheError::Mismatch(format!(
            "{} holds another cache: {}{more}. Choose an empty folder, or go on as it was begun",
            folder.display(),
            listed.join("; ")
        )))
    }

    /// All in which the cache in a folder, `self`, is not the one `given`.
    fn differences(&self, given: &Self) -> Vec<String> {
        // Taken apart, so that a new field cannot be forgotten here.
        let fields = |header: &Self| {
            let Self {
                k,
                vocab_size,
                seq_len,
                log_prob_type,
                rows,
                teacher_sha256,
                data_sha256,
            } = header;
            let mut fields = BTreeMap::from([
                ("k".to_owned(), k.to_string()),
                ("vocab_size".to_owned(), vocab_size.to_string()),
                ("seq_len".to_owned(), seq_len.to_string()),
                ("log_prob_type".to_owned(), log_prob_type.to_string()),
                ("rows".to_owned(), rows.to_string()),
            ]);
            for (kind, hashes) in [
                ("the teacher's tensor", teacher_sha256),
                ("the data file", data_sha256),
            ] {
                let hashes = hashes.iter();
                fields
                    .extend(hashes.map(|(name, hash)| (format!("{kind} `{name}`"), hash.clone())));
            }
            fields
        };
        let (found, given) = (fields(self), fields(given));
        let names: BTreeSet<&String> = found.keys().chain(given.keys()).collect();
        let differing = names
            .into_iter()
            .filter(|name| found.get(*name) != given.get(*name));
        let value = |fields: &BTreeMap<String, String>, name| {
            fields.get(name).map_or("none", String::as_str).to_owned()
        };
        differing
            .map(|name| {
                let (found, given) = (value(&found, name), value(&given, name));
                format!("{name} is {found} there and {given} here")
            })
            .collect()
    }
}

/// `index.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Index {
    schema: u32,
    pub(super) header: CacheHeader,
    /// The shards that are finished, in the order of their rows.
    pub(super) shards: Vec<ShardEntry>,
}

/// A finished shard.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ShardEntry {
    /// Its name in the folder: [`shard_name`].
    pub(super) file: String,
    pub(super) first_row: usize,
    pub(super) rows: usize,
    pub(super) sha256: String,
}

/// What every schema has.
#[derive(Deserialize)]
struct Version {
    schema: u32,
}

/// The name of the shard with this number, from 0.
pub(super) fn shard_name(number: usize) -> String {
    format!("shard-{number:05}.safetensors")
}

impl Index {
    /// Of a cache without rows.
    pub(super) const fn new(header: CacheHeader) -> Self {
        Self {
            schema: SCHEMA,
            header,
            shards: Vec::new(),
        }
    }

    /// Reads and checks the index of a folder, without a look at its shards.
    pub(super) fn read(dir: &Path) -> Result<Self, CacheError> {
        let file = dir.join(INDEX);
        let bytes = fs::read(&file).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => CacheError::Missing { folder: dir.into() },
            _ => CacheError::reading(&file)(source),
        })?;
        let broken = |source| CacheError::Index {
            what: format!("{} is no index of a cache: {ANEW}", file.display()),
            source: Some(source),
        };
        let Version { schema } = serde_json::from_slice(&bytes).map_err(broken)?;
        if schema != SCHEMA {
            return Err(index_error(format!(
                "{} has schema {schema}, this program knows {SCHEMA}: take the program that wrote it, or \
                 {ANEW}",
                file.display()
            )));
        }
        let index: Self = serde_json::from_slice(&bytes).map_err(broken)?;
        index.header.check()?;
        index.check_shards(&file)?;
        Ok(index)
    }

    /// The number of rows in finished shards.
    pub(super) fn finished_rows(&self) -> usize {
        self.shards.iter().map(|shard| shard.rows).sum()
    }

    /// Whether the shards cover rows from 0 on, each once.
    fn check_shards(&self, file: &Path) -> Result<(), CacheError> {
        let file = file.display();
        let mut next_row = 0;
        for (number, shard) in self.shards.iter().enumerate() {
            let expected = shard_name(number);
            let left = self.header.rows - next_row;
            let wrong = if shard.file != expected {
                format!("{file} lists {:?} where {expected} should be", shard.file)
            } else if shard.first_row != next_row {
                format!(
                    "in {file}, {expected} begins with row {}, but the shards before it end with row \
                     {next_row}",
                    shard.first_row
                )
            } else if shard.rows == 0 || shard.rows > left {
                format!(
                    "in {file}, {expected} has {} rows, not 1 to {left}",
                    shard.rows
                )
            } else {
                next_row += shard.rows;
                continue;
            };
            return Err(index_error(format!("{wrong}: {ANEW}")));
        }
        Ok(())
    }
}

const fn index_error(what: String) -> CacheError {
    CacheError::Index { what, source: None }
}

/// A tensor of a shard.
#[derive(Clone, Copy, Debug)]
pub(super) enum Field {
    Tokens,
    Segments,
    Targets,
    Mask,
    Ids,
    LogProbs,
    LogTail,
    TargetLogProb,
}

impl Field {
    /// All of them, each at the place of its discriminant.
    pub(super) const ALL: [Self; 8] = [
        Self::Tokens,
        Self::Segments,
        Self::Targets,
        Self::Mask,
        Self::Ids,
        Self::LogProbs,
        Self::LogTail,
        Self::TargetLogProb,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Segments => "segments",
            Self::Targets => "targets",
            Self::Mask => "mask",
            Self::Ids => "ids",
            Self::LogProbs => "log_probs",
            Self::LogTail => "log_tail",
            Self::TargetLogProb => "target_log_prob",
        }
    }

    pub(super) const fn dtype(self, header: &CacheHeader) -> Dtype {
        match self {
            Self::Tokens | Self::Segments | Self::Targets | Self::Ids => Dtype::U32,
            Self::Mask => Dtype::U8,
            Self::LogTail | Self::TargetLogProb => Dtype::F32,
            Self::LogProbs => match header.log_prob_type {
                LogProbType::F32 => Dtype::F32,
                LogProbType::F16 => Dtype::F16,
            },
        }
    }

    /// Its shape in a shard of `rows` rows.
    pub(super) fn shape(self, header: &CacheHeader, rows: usize) -> Vec<usize> {
        match self {
            Self::Ids | Self::LogProbs => vec![rows, header.seq_len, header.k],
            _ => vec![rows, header.seq_len],
        }
    }

    /// The number of values that `rows` has in this field.
    pub(super) const fn values(self, rows: &TopKRows) -> usize {
        match self {
            Self::Tokens => rows.tokens.len(),
            Self::Segments => rows.segments.len(),
            Self::Targets => rows.targets.len(),
            Self::Mask => rows.mask.len(),
            Self::Ids => rows.ids.len(),
            Self::LogProbs => rows.log_probs.len(),
            Self::LogTail => rows.log_tail.len(),
            Self::TargetLogProb => rows.target_log_prob.len(),
        }
    }

    /// Its values in `rows` as they stand in a shard: little-endian, the last axis running fastest.
    pub(super) fn to_bytes(self, rows: &TopKRows, header: &CacheHeader) -> Vec<u8> {
        match self {
            Self::Tokens => u32s(&rows.tokens),
            Self::Segments => u32s(&rows.segments),
            Self::Targets => u32s(&rows.targets),
            Self::Mask => rows.mask.iter().map(|valid| u8::from(*valid)).collect(),
            Self::Ids => u32s(&rows.ids),
            Self::LogProbs => match header.log_prob_type {
                LogProbType::F32 => f32s(&rows.log_probs),
                LogProbType::F16 => {
                    let values = rows.log_probs.iter();
                    let halves = values.map(|value| f16::from_f32(*value));
                    halves.flat_map(f16::to_le_bytes).collect()
                }
            },
            Self::LogTail => f32s(&rows.log_tail),
            Self::TargetLogProb => f32s(&rows.target_log_prob),
        }
    }
}

fn u32s(values: &[u32]) -> Vec<u8> {
    let values = values.iter().copied();
    values.flat_map(u32::to_le_bytes).collect()
}

fn f32s(values: &[f32]) -> Vec<u8> {
    let values = values.iter().copied();
    values.flat_map(f32::to_le_bytes).collect()
}

#[cfg(test)]
mod tests;
