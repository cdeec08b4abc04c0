//! What can be wrong with a cache, or with what is to go into one.

use std::fmt;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::Fault;
use crate::files::FileError;

/// How many differences an error lists.
const LISTED: usize = 10;

/// A cache that cannot be written or read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CacheError {
    /// A value of the header with which no cache can be.
    #[error("the cache's {name} is {found}: it has to be {wanted}")]
    Header {
        /// The field of the header.
        name: &'static str,
        /// Its value.
        found: usize,
        /// What would be allowed.
        wanted: &'static str,
    },
    /// There is no cache in the folder.
    #[error("no index.json in {folder}: write the cache with `burn-lti cache-teacher`")]
    Missing {
        /// The folder.
        folder: PathBuf,
    },
    /// A cache was to be made in a folder of something else.
    #[error("{folder} is no cache, but holds {file}: choose a new or an empty folder")]
    Foreign {
        /// The folder.
        folder: PathBuf,
        /// A file in it.
        file: String,
    },
    /// A file cannot be read.
    #[error("cannot read {file}: bring it back, or write the cache again in an empty folder")]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file cannot be written; what was there before still is.
    #[error(transparent)]
    File(#[from] FileError),
    /// `index.json` is broken.
    #[error("{file} is no index of a cache: write the cache again in an empty folder")]
    Index {
        /// The index.
        file: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The cache was written by a program that lays it out in another way.
    #[error(
        "{file} has schema {found}, this program knows {known}: take the program that wrote it, or write \
         the cache again in an empty folder"
    )]
    Schema {
        /// The index.
        file: PathBuf,
        /// The schema of the cache.
        found: u32,
        /// The schema of this program.
        known: u32,
    },
    /// The index names a shard by a name that is not the one of its place.
    #[error(
        "{file} lists {found:?} where {expected} should be: write the cache again in an empty folder"
    )]
    ShardName {
        /// The index.
        file: PathBuf,
        /// The name of a shard in this place.
        expected: String,
        /// The name listed.
        found: String,
    },
    /// A shard does not begin where the one before ends.
    #[error(
        "in {file}, {shard} begins with row {found}, but the shards before it end with row {expected}: \
         write the cache again in an empty folder"
    )]
    ShardStart {
        /// The index.
        file: PathBuf,
        /// The name of the shard.
        shard: String,
        /// The number of rows before it.
        expected: usize,
        /// Its first row.
        found: usize,
    },
    /// A shard has no rows, or more than are left.
    #[error(
        "in {file}, {shard} has {found} rows, not 1 to {left}: write the cache again in an empty folder"
    )]
    ShardRows {
        /// The index.
        file: PathBuf,
        /// The name of the shard.
        shard: String,
        /// Its rows.
        found: usize,
        /// The rows of the whole cache without those before it.
        left: usize,
    },
    /// The cache in the folder is not the one that was to be continued.
    #[error(
        "{folder} holds another cache: {}. Choose an empty folder, or go on as it was begun",
        list(.differences)
    )]
    Different {
        /// The folder.
        folder: PathBuf,
        /// All that differs.
        differences: Vec<Difference>,
    },
    /// A shard is shorter or longer than it says.
    #[error("{shard} should have {expected} bytes and has {found}; {AGAIN}")]
    Size {
        /// The shard.
        shard: PathBuf,
        /// The least size that fits what the shard says of itself.
        expected: u64,
        /// The size it has.
        found: u64,
    },
    /// The header of a shard is longer than that of any shard.
    #[error("{shard} claims a header of {length} bytes, so it is no shard of a cache; {AGAIN}")]
    HeaderLength {
        /// The shard.
        shard: PathBuf,
        /// The length it claims.
        length: u64,
    },
    /// The header of a shard is not that of a safetensors file, or contradicts itself.
    #[error("{shard} has a broken header; {AGAIN}")]
    ShardHeader {
        /// The shard.
        shard: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A tensor of a shard is missing, or is not what the index makes of it.
    #[error(
        "{tensor} of {shard} should be {expected} and is {}; {AGAIN}",
        found.as_deref().unwrap_or("missing")
    )]
    Tensor {
        /// The shard.
        shard: PathBuf,
        /// The tensor.
        tensor: &'static str,
        /// Type and shape it should have.
        expected: String,
        /// Type and shape it has, if it is there.
        found: Option<String>,
    },
    /// A shard has a tensor that no cache has.
    #[error("{shard} holds `{tensor}`, which is no part of a cache; {AGAIN}")]
    UnknownTensor {
        /// The shard.
        shard: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A shard is not the one that was written.
    #[error("{shard} has the sha256 {found}, index.json says {expected}; {AGAIN}")]
    Hash {
        /// The shard.
        shard: PathBuf,
        /// The hash in the index.
        expected: String,
        /// The hash of the file.
        found: String,
    },
    /// Not all rows are there.
    #[error(
        "{folder} has {found} of its {rows} rows: run `burn-lti cache-teacher` again to finish it"
    )]
    Incomplete {
        /// The folder.
        folder: PathBuf,
        /// The rows that the cache is to have.
        rows: usize,
        /// The rows that are written.
        found: usize,
    },
    /// A row was asked for that is not in the cache.
    #[error("row {row} of a cache of {rows} rows: rows are counted from 0")]
    NoRow {
        /// The row.
        row: usize,
        /// The rows of the cache.
        rows: usize,
    },
    /// A field of rows to be written has not as many values as rows of the cache have.
    #[error(
        "{tensor} has {found} values for rows that need {expected}: give whole rows in every field"
    )]
    Length {
        /// The field.
        tensor: &'static str,
        /// The number of values it should have.
        expected: usize,
        /// The number of values given.
        found: usize,
    },
    /// More rows than the header has announced.
    #[error(
        "{pushed} rows from row {next_row} on are more than the {rows} of the cache: go on with row \
         `next_row`, and not beyond"
    )]
    TooManyRows {
        /// The rows of the cache.
        rows: usize,
        /// The row that was to be next.
        next_row: usize,
        /// The number of rows given.
        pushed: usize,
    },
    /// What was to be written is no distribution of a teacher.
    #[error(
        "row {row}, token {token} cannot go into a cache; look at the teacher that computed it"
    )]
    Refused {
        /// The row, counted in the whole cache.
        row: usize,
        /// The token in the row.
        token: usize,
        /// What is wrong with it.
        source: Fault,
    },
    /// What was read is no distribution of a teacher.
    #[error("{shard} is broken in row {row}, token {token}; {AGAIN}")]
    Broken {
        /// The shard.
        shard: PathBuf,
        /// The row, counted in the whole cache.
        row: usize,
        /// The token in the row.
        token: usize,
        /// What is wrong with it.
        source: Fault,
    },
}

/// The way out of a shard that was finished and is so no longer.
const AGAIN: &str = "take its entry and those after it out of index.json, then run `burn-lti \
                     cache-teacher` again to write it anew";

/// Something in which two caches differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What it is: `k`, or a certain teacher tensor.
    pub name: String,
    /// What the folder has, if it has it.
    pub found: Option<String>,
    /// What was given, if it was.
    pub given: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [found, given] =
            [&self.found, &self.given].map(|value| value.as_deref().unwrap_or("none"));
        write!(f, "{} is {found} there and {given} here", self.name)
    }
}

fn list(differences: &[Difference]) -> String {
    let listed = differences.iter().take(LISTED).map(Difference::to_string);
    let listed = listed.collect::<Vec<_>>().join("; ");
    match differences.len().saturating_sub(LISTED) {
        0 => listed,
        more => format!("{listed}; and {more} more"),
    }
}
