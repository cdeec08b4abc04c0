//! What a cache says of itself: [`CacheHeader`], `index.json` around it, and the tensors of a shard.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use half::f16;
use safetensors::tensor::Dtype;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{CacheError, Difference, TopKRows};

/// The file that says what is in a cache.
pub(super) const INDEX: &str = "index.json";
/// The layout that this program writes and reads.
const SCHEMA: u32 = 1;

/// The float type in which log-probabilities are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogProbType {
    /// `float32`.
    #[serde(rename = "float32")]
    F32,
    /// `float16`: IEEE half precision. See [what it costs](super#half-precision).
    #[serde(rename = "float16")]
    F16,
}

impl LogProbType {
    /// The name, as in `index.json`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
        }
    }

    /// The number of this type that is nearest.
    pub(super) fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::F16 => f16::from_f32(value).to_f32(),
        }
    }

    /// How far `value`, a number of this type, can be from what was rounded to it: half a unit in the
    /// last place, which in float16 is 2^-24 and no less below 2^-14.
    pub(super) fn rounding(self, value: f32) -> f64 {
        let value = f64::from(value.abs());
        match self {
            Self::F32 => value * f64::from(f32::EPSILON) / 2.0,
            Self::F16 => f64::max(value / 2048.0, f64::exp2(-25.0)),
        }
    }
}

impl fmt::Display for LogProbType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

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
    /// The [`sha256`] of each tensor of the teacher, by name.
    pub teacher_sha256: BTreeMap<String, String>,
    /// The [`sha256`] of each file of text, by path.
    pub data_sha256: BTreeMap<String, String>,
}

impl CacheHeader {
    /// Checks that a cache can be like this.
    ///
    /// # Errors
    ///
    /// [`CacheError::Header`], naming the field.
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
        Err(CacheError::Header {
            name,
            found,
            wanted,
        })
    }

    /// Checks that the cache in `folder` is the one that `given` would make.
    ///
    /// # Errors
    ///
    /// [`CacheError::Different`], naming all that differs.
    pub fn check_same(&self, given: &Self, folder: &Path) -> Result<(), CacheError> {
        let differences = self.differences(given);
        match differences.is_empty() {
            true => Ok(()),
            false => Err(CacheError::Different {
                folder: folder.into(),
                differences,
            }),
        }
    }

    /// All in which the cache in a folder, `self`, is not the one `given`.
    fn differences(&self, given: &Self) -> Vec<Difference> {
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
        let all = names.into_iter().map(|name| Difference {
            name: name.clone(),
            found: found.get(name).cloned(),
            given: given.get(name).cloned(),
        });
        all.filter(|field| field.found != field.given).collect()
    }
}

/// The sha256 of `bytes`, in hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
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
            _ => CacheError::Read {
                file: file.clone(),
                source,
            },
        })?;
        let broken = |source| CacheError::Index {
            file: file.clone(),
            source,
        };
        let Version { schema } = serde_json::from_slice(&bytes).map_err(broken)?;
        if schema != SCHEMA {
            return Err(CacheError::Schema {
                file,
                found: schema,
                known: SCHEMA,
            });
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
        let mut next_row = 0;
        for (number, shard) in self.shards.iter().enumerate() {
            let expected = shard_name(number);
            if shard.file != expected {
                return Err(CacheError::ShardName {
                    file: file.into(),
                    expected,
                    found: shard.file.clone(),
                });
            }
            if shard.first_row != next_row {
                return Err(CacheError::ShardStart {
                    file: file.into(),
                    shard: expected,
                    expected: next_row,
                    found: shard.first_row,
                });
            }
            let left = self.header.rows - next_row;
            if shard.rows == 0 || shard.rows > left {
                return Err(CacheError::ShardRows {
                    file: file.into(),
                    shard: expected,
                    found: shard.rows,
                    left,
                });
            }
            next_row += shard.rows;
        }
        Ok(())
    }
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
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    use serde_json::{Value, json};

    use super::*;
    use crate::cache::TeacherCache;
    use crate::cache::fixture::{self, Edit};

    fn header() -> CacheHeader {
        fixture::header(LogProbType::F32)
    }

    /// The error with which a cache is refused whose index was edited so.
    fn refused(edit: impl FnOnce(&mut Value)) -> CacheError {
        let (folder, _) = fixture::cache(&header());
        fixture::edit_index(folder.path(), edit);
        TeacherCache::open(folder.path()).unwrap_err()
    }

    #[test]
    fn headers_of_no_cache_name_their_field() {
        let edits: [(&str, Edit<CacheHeader>); 7] = [
            ("k", |header| header.k = 0),
            ("k", |header| header.k = header.vocab_size + 1),
            ("vocab_size", |header| header.vocab_size = 0),
            ("vocab_size", |header| header.vocab_size = (1 << 32) + 1),
            ("seq_len", |header| header.seq_len = 0),
            ("rows", |header| header.rows = 0),
            ("rows", |header| header.rows = usize::MAX / 2),
        ];
        assert!(header().check().is_ok());
        for (expected, edit) in edits {
            let mut header = header();
            edit(&mut header);
            let error = header.check().unwrap_err();
            assert!(
                matches!(error, CacheError::Header { name, .. } if name == expected),
                "{error}"
            );
        }
    }

    #[test]
    fn every_difference_is_named() {
        let found = header();
        assert!(found.differences(&found).is_empty());
        let given = CacheHeader {
            k: 5,
            vocab_size: 12,
            seq_len: 7,
            log_prob_type: LogProbType::F16,
            rows: 8,
            teacher_sha256: BTreeMap::from([("head.weight".into(), "00".into())]),
            data_sha256: BTreeMap::from([
                ("a.txt".into(), sha256(b"text")),
                ("b.txt".into(), "01".into()),
            ]),
        };
        let differences = found.differences(&given);
        let named: Vec<String> = differences.iter().map(Difference::to_string).collect();
        let [head, norm] = [b"head", b"norm"].map(|bytes| sha256(bytes));
        assert_eq!(
            named,
            [
                "k is 4 there and 5 here",
                "log_prob_type is float32 there and float16 here",
                "rows is 7 there and 8 here",
                "seq_len is 6 there and 7 here",
                "the data file `b.txt` is none there and 01 here",
                &format!("the teacher's tensor `head.weight` is {head} there and 00 here"),
                &format!("the teacher's tensor `norm.gamma` is {norm} there and none here"),
                "vocab_size is 11 there and 12 here",
            ]
        );
    }

    #[test]
    fn sha256_is_that_of_the_standard() {
        // FIPS 180-2, appendix B.1.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(b"abc"), abc);
    }

    #[test]
    fn no_number_is_rounded_further_than_said() {
        let mut rng = StdRng::seed_from_u64(0);
        for _ in 0..10_000 {
            let value = -f32::exp2(rng.random_range(-40.0..15.0));
            for kind in [LogProbType::F32, LogProbType::F16] {
                let rounded = kind.round(value);
                let moved = f64::abs(f64::from(rounded) - f64::from(value));
                assert!(
                    moved <= kind.rounding(rounded),
                    "{value} to {rounded} in {kind}"
                );
            }
        }
        // A number half-way between two of float16, and the least above 0.
        let half_way = -(1.0 + f32::exp2(-11.0));
        assert_eq!(LogProbType::F16.round(half_way), -1.0);
        assert_eq!(LogProbType::F16.rounding(-1.0), f64::exp2(-11.0));
        assert_eq!(LogProbType::F16.round(-f32::exp2(-25.0)), 0.0);
    }

    #[test]
    fn float_types_are_named_in_the_index() {
        for kind in [LogProbType::F32, LogProbType::F16] {
            assert_eq!(serde_json::to_value(kind).unwrap(), json!(kind.name()));
        }
    }

    #[test]
    fn a_broken_index_is_refused() {
        let edits: [Edit<Value>; 4] = [
            |index| *index = json!("text"),
            |index| index["header"]["rows"] = json!(-1),
            |index| index["header"]["surprise"] = json!(1),
            |index| index["shards"][0]["rows"] = Value::Null,
        ];
        for edit in edits {
            let error = refused(edit);
            assert!(matches!(error, CacheError::Index { .. }), "{error}");
            assert!(error.to_string().contains(INDEX));
        }
    }

    #[test]
    fn an_impossible_header_is_refused() {
        let error = refused(|index| index["header"]["seq_len"] = json!(0));
        assert!(matches!(
            error,
            CacheError::Header {
                name: "seq_len",
                ..
            }
        ));
    }

    #[test]
    fn another_schema_is_refused_whatever_else_the_index_has() {
        let error = refused(|index| *index = json!({"schema": 2, "content": []}));
        assert!(
            matches!(
                error,
                CacheError::Schema {
                    found: 2,
                    known: SCHEMA,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn shards_have_the_names_of_their_places() {
        for name in ["../shard-00001.safetensors", "shard-00000.safetensors"] {
            let error = refused(|index| index["shards"][1]["file"] = json!(name));
            assert!(matches!(error, CacheError::ShardName { ref found, .. } if found == name));
        }
    }

    #[test]
    fn shards_neither_overlap_nor_leave_gaps() {
        for first_row in [2, 4, usize::MAX] {
            let error = refused(|index| index["shards"][1]["first_row"] = json!(first_row));
            assert!(
                matches!(error, CacheError::ShardStart { expected: 3, found, .. } if found == first_row),
                "{error}"
            );
            assert!(error.to_string().contains("shard-00001"));
        }
    }

    #[test]
    fn shards_have_rows_and_no_more_than_the_cache() {
        for rows in [0, 8, usize::MAX] {
            let error = refused(|index| index["shards"][0]["rows"] = json!(rows));
            assert!(
                matches!(error, CacheError::ShardRows { left: 7, found, .. } if found == rows),
                "{error}"
            );
        }
    }
}
