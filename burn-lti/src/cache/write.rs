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
use super::{CacheError, CacheHeader, TopKRows, sha256};
use crate::files::{FileError, UNFINISHED, write_atomically};

/// Rows of a shard, unless told otherwise.
const ROWS_PER_SHARD: usize = 64;

/// Writes a cache, or goes on with one.
///
/// Rows count only once they are in a shard that `index.json` names. What is not, be it in memory or
/// in a file, is computed again: a writer that is dropped loses the rows since its last shard, a
/// program that is killed leaves a cache that is whole up to there. One writer at a time.
#[derive(Debug)]
pub struct CacheWriter {
    dir: PathBuf,
    index: Index,
    rows_per_shard: usize,
    pending: TopKRows,
}

impl CacheWriter {
    /// A writer of the cache in `dir`, which is made if it is not there.
    ///
    /// If there is a cache already, it has to be of this `header`, and its shards have to be those that
    /// were written: their sizes and hashes are compared. What a killed writer has left unfinished is
    /// removed.
    ///
    /// # Errors
    ///
    /// - [`CacheError::Header`]: there cannot be such a cache.
    /// - [`CacheError::Foreign`]: the folder has files, but no cache.
    /// - [`CacheError::Different`]: the cache is of another header, with all that differs.
    /// - [`CacheError::Schema`], [`CacheError::Index`], [`CacheError::ShardName`],
    ///   [`CacheError::ShardStart`], [`CacheError::ShardRows`]: its index cannot be used.
    /// - [`CacheError::Size`], [`CacheError::HeaderLength`], [`CacheError::ShardHeader`],
    ///   [`CacheError::Tensor`], [`CacheError::UnknownTensor`], [`CacheError::Hash`]: a shard is not
    ///   the one that was written.
    /// - [`CacheError::Read`], [`CacheError::File`]: the system.
    pub fn create_or_resume(dir: &Path, header: CacheHeader) -> Result<Self, CacheError> {
        header.check()?;
        fs::create_dir_all(dir).map_err(FileError::writing(dir))?;
        let index = match Index::read(dir) {
            Ok(index) => index,
            Err(CacheError::Missing { .. }) => create(dir, &header)?,
            Err(error) => return Err(error),
        };
        index.header.check_same(&header, dir)?;
        for entry in &index.shards {
            Shard::open(dir, &header, entry)?.check_hash()?;
        }
        remove_unfinished(dir)?;
        Ok(Self {
            dir: dir.into(),
            index,
            rows_per_shard: ROWS_PER_SHARD,
            pending: TopKRows::default(),
        })
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
    /// - [`CacheError::Length`]: a field has another length than the rows need.
    /// - [`CacheError::TooManyRows`]: the cache has less.
    /// - [`CacheError::Refused`]: a row breaks a [law of a cache](super#laws) once it is rounded to the
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
            return Err(CacheError::TooManyRows {
                rows: header.rows,
                next_row,
                pushed,
            });
        }
        let rows = rows.rounded(header.log_prob_type);
        check_rows(header, &rows).map_err(|breach| CacheError::Refused {
            row: next_row + breach.row,
            token: breach.token,
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
    /// As [`flush`](Self::flush), and [`CacheError::Incomplete`]: not all rows were pushed. What was is
    /// written.
    pub fn finish(mut self) -> Result<(), CacheError> {
        self.flush()?;
        let (rows, found) = (self.index.header.rows, self.index.finished_rows());
        match found == rows {
            true => Ok(()),
            false => Err(CacheError::Incomplete {
                folder: self.dir,
                rows,
                found,
            }),
        }
    }

    const fn pending_rows(&self) -> usize {
        self.pending.tokens.len() / self.index.header.seq_len
    }
}

/// Begins a cache in a folder that has nothing in it.
fn create(dir: &Path, header: &CacheHeader) -> Result<Index, CacheError> {
    for name in names(dir)? {
        if !name.starts_with(UNFINISHED) {
            return Err(CacheError::Foreign {
                folder: dir.into(),
                file: name,
            });
        }
    }
    let index = Index::new(header.clone());
    write_index(dir, &index)?;
    Ok(index)
}

fn remove_unfinished(dir: &Path) -> Result<(), CacheError> {
    for name in names(dir)? {
        if name.starts_with(UNFINISHED) {
            let file = dir.join(name);
            fs::remove_file(&file).map_err(FileError::writing(&file))?;
        }
    }
    Ok(())
}

/// The names of what is in a folder.
fn names(dir: &Path) -> Result<Vec<String>, CacheError> {
    let entries = fs::read_dir(dir).and_then(|entries| {
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    });
    entries.map_err(|source| CacheError::Read {
        file: dir.into(),
        source,
    })
}

/// How many rows there are, each field having as many values as they need.
fn count_rows(header: &CacheHeader, rows: &TopKRows) -> Result<usize, CacheError> {
    let count = rows.tokens.len().div_ceil(header.seq_len);
    for field in Field::ALL {
        let shape = field.shape(header, count).into_iter();
        let expected = shape.fold(1, usize::saturating_mul);
        let found = field.values(rows);
        if found != expected {
            return Err(CacheError::Length {
                tensor: field.name(),
                expected,
                found,
            });
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
        Ok((field.name(), view))
    });
    let views = views.collect::<Result<Vec<_>, SafeTensorError>>()?;
    safetensors::serialize(views, None)
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
mod tests {
    use super::*;
    use crate::cache::fixture::{self, Edit, SHARD, rows, select, writer};
    use crate::cache::{LogProbType, TeacherCache};

    fn header() -> CacheHeader {
        fixture::header(LogProbType::F32)
    }

    fn push(writer: &mut CacheWriter, numbers: &[usize]) {
        let header = header();
        writer
            .push(&select(&header, &rows(&header, 0), numbers))
            .unwrap();
    }

    #[test]
    fn a_killed_writer_is_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("new").join("cache");
        let mut first = writer(&dir, &header());
        push(&mut first, &[0, 1]);
        push(&mut first, &[2, 3]);
        push(&mut first, &[4]);
        assert_eq!(first.next_row(), 5);
        drop(first);
        // A shard that was finished just before its writer was killed, and one that was not.
        fs::write(dir.join("shard-00001.safetensors"), "an orphan").unwrap();
        fs::write(dir.join(".writing-abc"), "half").unwrap();

        let mut second = writer(&dir, &header());
        assert_eq!(second.next_row(), 4);
        push(&mut second, &[4, 5, 6]);
        assert_eq!(second.next_row(), 7);
        second.finish().unwrap();

        let cache = TeacherCache::open(&dir).unwrap();
        cache.verify_files().unwrap();
        let all: Vec<usize> = (0..7).collect();
        assert_eq!(cache.gather(&all).unwrap(), rows(&header(), 0));
        let mut files = names(&dir).unwrap();
        files.sort();
        assert_eq!(files, [INDEX, SHARD, "shard-00001.safetensors"]);
    }

    #[test]
    fn a_finished_cache_is_left_as_it_is() {
        let (folder, _) = fixture::cache(&header());
        let index = fs::read(folder.path().join(INDEX)).unwrap();
        let writer = writer(folder.path(), &header());
        assert_eq!(writer.next_row(), 7);
        writer.finish().unwrap();
        assert_eq!(fs::read(folder.path().join(INDEX)).unwrap(), index);
    }

    #[test]
    fn how_rows_are_pushed_changes_no_byte_of_a_shard() {
        let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let pushes = [vec![vec![0, 1, 2]], vec![vec![0], vec![1], vec![2]]];
        for (folder, pushes) in folders.iter().zip(pushes) {
            let mut writer = writer(folder.path(), &header());
            for numbers in pushes {
                push(&mut writer, &numbers);
            }
        }
        let [a, b] = folders
            .each_ref()
            .map(|folder| fs::read(folder.path().join(SHARD)).unwrap());
        assert!(!a.is_empty() && a == b);
    }

    #[test]
    fn a_folder_of_something_else_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis.tex"), "").unwrap();
        let error = CacheWriter::create_or_resume(folder.path(), header()).unwrap_err();
        assert!(matches!(&error, CacheError::Foreign { file, .. } if file == "thesis.tex"));
        assert_eq!(names(folder.path()).unwrap(), ["thesis.tex"]);
    }

    #[test]
    fn a_writer_killed_before_its_first_index_left_no_cache_and_no_foreign_file() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(".writing-abc"), "half").unwrap();
        assert_eq!(writer(folder.path(), &header()).next_row(), 0);
        assert_eq!(names(folder.path()).unwrap(), [INDEX]);
    }

    #[test]
    fn another_cache_is_refused_by_the_names_of_what_differs() {
        let (folder, _) = fixture::cache(&header());
        let other = CacheHeader { k: 3, ..header() };
        let error = CacheWriter::create_or_resume(folder.path(), other).unwrap_err();
        assert!(
            matches!(&error, CacheError::Different { differences, .. } if differences.len() == 1)
        );
        assert!(
            error.to_string().contains("k is 4 there and 3 here"),
            "{error}"
        );

        let mut other = header();
        other.teacher_sha256 = (0..20)
            .map(|i| (format!("layer.{i:02}"), sha256(b"")))
            .collect();
        let error = CacheWriter::create_or_resume(folder.path(), other).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("`head.weight`") && text.contains("and 12 more"),
            "{text}"
        );
    }

    #[test]
    fn an_impossible_header_makes_no_folder() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("cache");
        let none = CacheHeader {
            rows: 0,
            ..header()
        };
        let error = CacheWriter::create_or_resume(&dir, none).unwrap_err();
        assert!(matches!(error, CacheError::Header { name: "rows", .. }));
        assert!(!dir.exists());
    }

    #[test]
    fn a_finished_shard_that_was_changed_is_not_gone_on_with() {
        let (folder, _) = fixture::cache(&header());
        let path = folder.path().join(SHARD);
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        let error = CacheWriter::create_or_resume(folder.path(), header()).unwrap_err();
        assert!(
            matches!(&error, CacheError::Hash { shard, .. } if *shard == path),
            "{error}"
        );

        // The way out that the error names.
        fixture::edit_index(folder.path(), |index| {
            index["shards"] = serde_json::json!([])
        });
        let mut writer = writer(folder.path(), &header());
        push(&mut writer, &[0, 1, 2, 3, 4, 5, 6]);
        writer.finish().unwrap();
        TeacherCache::open(folder.path())
            .unwrap()
            .verify_files()
            .unwrap();
    }

    #[test]
    fn finishing_early_writes_what_there_is_and_says_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let mut unfinished = writer(folder.path(), &header());
        push(&mut unfinished, &[0]);
        let error = unfinished.finish().unwrap_err();
        assert!(
            matches!(
                error,
                CacheError::Incomplete {
                    rows: 7,
                    found: 1,
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(writer(folder.path(), &header()).next_row(), 1);
    }

    #[test]
    fn rows_that_are_not_whole_name_the_field() {
        let edits: [(&str, Edit<TopKRows>); 9] = [
            ("tokens", |rows| rows.tokens.truncate(3)),
            ("tokens", |rows| rows.tokens.push(0)),
            ("segments", |rows| rows.segments.push(0)),
            ("targets", |rows| rows.targets.clear()),
            ("mask", |rows| rows.mask.push(false)),
            ("ids", |rows| rows.ids.truncate(6)),
            ("log_probs", |rows| rows.log_probs.truncate(6)),
            ("log_tail", |rows| rows.log_tail.clear()),
            ("target_log_prob", |rows| rows.target_log_prob.clear()),
        ];
        let folder = tempfile::tempdir().unwrap();
        let mut writer = writer(folder.path(), &header());
        for (expected, edit) in edits {
            let mut row = select(&header(), &rows(&header(), 0), &[0]);
            edit(&mut row);
            let error = writer.push(&row).unwrap_err();
            assert!(
                matches!(error, CacheError::Length { tensor, .. } if tensor == expected),
                "{error}"
            );
        }
        assert_eq!(writer.next_row(), 0);
    }

    #[test]
    fn more_rows_than_announced_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = writer(folder.path(), &header());
        push(&mut writer, &[0, 1, 2, 3, 4]);
        let three = select(&header(), &rows(&header(), 0), &[4, 5, 6]);
        let error = writer.push(&three).unwrap_err();
        assert!(
            matches!(
                error,
                CacheError::TooManyRows {
                    rows: 7,
                    next_row: 5,
                    pushed: 3
                }
            ),
            "{error}"
        );
        push(&mut writer, &[5, 6]);
        writer.finish().unwrap();
    }

    #[test]
    fn a_broken_row_is_refused_by_its_number() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = writer(folder.path(), &header());
        push(&mut writer, &[0, 1]);
        let mut two = select(&header(), &rows(&header(), 0), &[2, 3]);
        two.log_tail[6 + 4] = f32::NAN;
        let error = writer.push(&two).unwrap_err();
        assert!(
            matches!(
                error,
                CacheError::Refused {
                    row: 3,
                    token: 4,
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(writer.next_row(), 2);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = CacheWriter::create_or_resume(&file, header()).unwrap_err();
        assert!(
            matches!(&error, CacheError::File(FileError::Write { file: named, .. }) if *named == file)
        );
    }

    #[test]
    fn a_shard_that_cannot_be_written_is_written_later() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = writer(folder.path(), &header());
        // A folder cannot be replaced by a file.
        let blocked = folder.path().join(SHARD);
        fs::create_dir(&blocked).unwrap();
        let three = select(&header(), &rows(&header(), 0), &[0, 1, 2]);
        let error = writer.push(&three).unwrap_err();
        assert!(
            matches!(&error, CacheError::File(FileError::Write { file, .. }) if *file == blocked),
            "{error}"
        );
        assert_eq!(writer.next_row(), 3);
        fs::remove_dir(&blocked).unwrap();
        push(&mut writer, &[3, 4, 5, 6]);
        writer.finish().unwrap();
        TeacherCache::open(folder.path())
            .unwrap()
            .verify_files()
            .unwrap();
    }
}
