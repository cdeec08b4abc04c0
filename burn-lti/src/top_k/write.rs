//! [`CacheWriter`]: rows become shards, and a cache that was left unfinished goes on.

use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use safetensors::SafeTensorError;
use safetensors::tensor::TensorView;

use super::format::{Field, INDEX, Index, ShardEntry, shard_name};
use super::read::Shard;
use super::verify::check_rows;
use super::{CacheError, CacheHeader, TopKRows};
use crate::files::{
    FileError, FolderLock, LOCK, TensorFile, UNFINISHED, remove_unfinished, sha256,
    write_atomically,
};

/// Rows of a shard, unless told otherwise.
const ROWS_PER_SHARD: usize = 64;

/// Writes a cache, or goes on with one.
///
/// Rows count only once they are in a shard that `index.json` names. What is not, be it in memory or
/// in a file, is computed again: a writer that is dropped loses the rows since its last shard, a
/// program that is killed leaves a cache that is whole up to there. One writer at a time: the folder is locked.
#[derive(Debug)]
pub struct CacheWriter {
    dir: PathBuf,
    index: Index,
    rows_per_shard: usize,
    pending: TopKRows,
    damage: Option<CacheError>,
    lock: FolderLock,
}

impl CacheWriter {
    /// A writer of the cache in `dir`, which is made if it is not there.
    ///
    /// If there is a cache already, it has to be of this `header`. Its shards are checked: from the first that is
    /// not as it was written, they are to be written anew ([`damage`](Self::damage) says why). What a killed
    /// writer has left unfinished is removed.
    ///
    /// # Errors
    ///
    /// - [`CacheError::Mismatch`]: there cannot be such a cache, the folder has files but no cache, or a
    ///   cache of another header, with what differs.
    /// - [`CacheError::Index`]: the cache's index cannot be used.
    /// - [`CacheError::Lock`]: another writer has the folder.
    /// - [`CacheError::Read`], [`CacheError::File`]: the system.
    pub fn create_or_resume(dir: &Path, header: CacheHeader) -> Result<Self, CacheError> {
        header.check()?;
        fs::create_dir_all(dir).map_err(FileError::writing(dir))?;
        check_own(dir)?;
        let lock = FolderLock::take(dir)?;
        let mut index = match Index::read(dir) {
            Ok(index) => index,
            Err(CacheError::Missing { .. }) => create(dir, &header)?,
            Err(error) => return Err(error),
        };
        index.header.check_same(&header, dir)?;
        let damage = drop_damaged(dir, &mut index)?;
        remove_unfinished(dir)?;
        Ok(Self {
            dir: dir.into(),
            index,
            rows_per_shard: ROWS_PER_SHARD,
            pending: TopKRows::default(),
            damage,
            lock,
        })
    }

    /// Why shards of a cache that was there are written anew, if some are.
    pub const fn damage(&self) -> Option<&CacheError> {
        self.damage.as_ref()
    }

    /// Writes a shard as soon as there are so many rows, instead of 64. A shard has more where the last
    /// push brought more: what is pushed at once is not taken apart. Until then rows stay in memory.
    #[must_use]
    pub const fn with_rows_per_shard(mut self, rows: NonZeroUsize) -> Self {
        self.rows_per_shard = rows.get();
        self
    }

    /// The row that is to be pushed next, from 0; the number of rows of the cache if all are there.
    pub fn next_row(&self) -> usize {
        self.index.finished_rows() + self.pending_rows()
    }

    /// Takes the rows from [`next_row`](Self::next_row) on, and writes a shard if there are enough.
    ///
    /// # Errors
    ///
    /// - [`CacheError::Mismatch`]: a field has another length than the rows need, or the cache has less.
    /// - [`CacheError::Token`]: a row breaks a [law of a cache](super#laws) once it is rounded to the
    ///   cache's float type.
    /// - [`CacheError::File`]: the shard could not be written. The rows
    ///   are kept, and written with the next ones.
    ///
    /// None is taken but in the last case.
    pub fn push(&mut self, rows: &TopKRows) -> Result<(), CacheError> {
        let header = &self.index.header;
        let pushed = count_rows(header, rows)?;
        let next_row = self.next_row();
        if pushed > header.rows - next_row {
            return Err(CacheError::Mismatch(format!(
                "{pushed} rows from row {next_row} on are more than the {} of the cache: go on with row \
                 `next_row`, and not beyond",
                header.rows
            )));
        }
        let rows = rows.rounded(header.log_prob_type);
        check_rows(header, &rows).map_err(|breach| CacheError::Token {
            what: format!(
                "row {}, token {} cannot go into a cache; look at the teacher that computed it",
                next_row + breach.row,
                breach.token
            ),
            source: breach.fault,
        })?;
        self.pending.append(rows);
        if self.pending_rows() >= self.rows_per_shard {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes what was pushed since the last shard as a shard, however short.
    ///
    /// # Errors
    ///
    /// [`CacheError::File`]: it could not be written.
    pub fn flush(&mut self) -> Result<(), CacheError> {
        let rows = self.pending_rows();
        if rows == 0 {
            return Ok(());
        }
        if !self.lock.is_in_place() {
            return Err(CacheError::Mismatch(format!(
                "{} was deleted or replaced while a cache was written into it: write it again in another \
                 folder",
                self.dir.display()
            )));
        }
        let file = shard_name(self.index.shards.len());
        let path = self.dir.join(&file);
        let bytes = serialize(&self.index.header, rows, &self.pending)
            .map_err(io::Error::other)
            .map_err(FileError::writing(&path))?;
        write_atomically(&path, &bytes)?;

        let mut index = self.index.clone();
        index.shards.push(ShardEntry {
            file,
            first_row: self.index.finished_rows(),
            rows,
            sha256: sha256(&bytes),
        });
        write_index(&self.dir, &index)?;
        self.index = index;
        self.pending = TopKRows::default();
        Ok(())
    }

    /// Writes what is left, and checks that all rows are there.
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush), and [`CacheError::Mismatch`]: not all rows were pushed. What was is
    /// written.
    pub fn finish(mut self) -> Result<(), CacheError> {
        self.flush()?;
        let (rows, found) = (self.index.header.rows, self.index.finished_rows());
        match found == rows {
            true => Ok(()),
            false => Err(CacheError::incomplete(&self.dir, found, rows)),
        }
    }

    const fn pending_rows(&self) -> usize {
        self.pending.tokens.len() / self.index.header.seq_len
    }
}

/// Refuses a folder that holds something and no cache, before anything is written into it.
fn check_own(dir: &Path) -> Result<(), CacheError> {
    if dir.join(INDEX).exists() {
        return Ok(());
    }
    for name in names(dir)? {
        if !name.starts_with(UNFINISHED) {
            return Err(CacheError::Mismatch(format!(
                "{} is no cache, but holds {name}: choose a new or an empty folder",
                dir.display()
            )));
        }
    }
    Ok(())
}

/// Begins a cache in a folder that has nothing in it.
fn create(dir: &Path, header: &CacheHeader) -> Result<Index, CacheError> {
    let index = Index::new(header.clone());
    write_index(dir, &index)?;
    Ok(index)
}

/// Takes the first shard that is not as it was written out of the index, with those after it, and says what is wrong
/// with it.
fn drop_damaged(dir: &Path, index: &mut Index) -> Result<Option<CacheError>, CacheError> {
    let header = &index.header;
    let check = |entry| Shard::open(dir, header, entry)?.check(header);
    let checked = index.shards.iter().map(check);
    let first = (0..)
        .zip(checked)
        .find_map(|(number, it)| Some((number, it.err()?)));
    let Some((number, damage)) = first else {
        return Ok(None);
    };
    match &damage {
        CacheError::Read { source, .. } if source.kind() != io::ErrorKind::NotFound => Err(damage),
        _ => {
            index.shards.truncate(number);
            write_index(dir, index)?;
            Ok(Some(damage))
        }
    }
}

/// The names of what is in a folder, but for its lock.
fn names(dir: &Path) -> Result<Vec<String>, CacheError> {
    let entries = fs::read_dir(dir).and_then(|entries| {
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect::<io::Result<Vec<String>>>()
    });
    let mut names = entries.map_err(CacheError::reading(dir))?;
    names.retain(|name| name != LOCK);
    Ok(names)
}

/// How many rows there are, each field having as many values as they need.
fn count_rows(header: &CacheHeader, rows: &TopKRows) -> Result<usize, CacheError> {
    let count = rows.tokens.len().div_ceil(header.seq_len);
    for field in Field::ALL {
        let shape = field.shape(header, count).into_iter();
        let expected = shape.fold(1, usize::saturating_mul);
        let found = field.values(rows);
        if found != expected {
            return Err(CacheError::Mismatch(format!(
                "{} has {found} values for rows that need {expected}: give whole rows in every field",
                field.name()
            )));
        }
    }
    Ok(count)
}

/// The bytes of a shard.
fn serialize(
    header: &CacheHeader,
    count: usize,
    rows: &TopKRows,
) -> Result<Vec<u8>, SafeTensorError> {
    let bytes = Field::ALL.map(|field| field.to_bytes(rows, header));
    let views = Field::ALL.iter().zip(&bytes).map(|(field, bytes)| {
        let view = TensorView::new(field.dtype(header), field.shape(header, count), bytes)?;
        Ok((field.name().to_owned(), view))
    });
    let file = TensorFile {
        metadata: None,
        tensors: views.collect::<Result<_, SafeTensorError>>()?,
    };
    file.to_bytes()
}

fn write_index(dir: &Path, index: &Index) -> Result<(), CacheError> {
    let path = dir.join(INDEX);
    let mut json = serde_json::to_vec_pretty(index)
        .map_err(io::Error::from)
        .map_err(FileError::writing(&path))?;
    json.push(b'\n');
    Ok(write_atomically(&path, &json)?)
}

#[cfg(test)]
mod tests;
