//! Tests of `write.rs`.

use super::*;
use crate::top_k::fixture::{self, Edit, SHARD, rows, select, writer};
use crate::top_k::{LogProbType, TeacherCache};

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
    assert!(
        error.to_string().contains("but holds thesis.tex"),
        "{error}"
    );
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
        error
            .to_string()
            .contains(": k is 4 there and 3 here. Choose"),
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
    assert!(error.to_string().contains("rows is 0"), "{error}");
    assert!(!dir.exists());
}

#[test]
fn a_shard_that_was_changed_or_lost_is_written_anew_with_those_after_it() {
    let (folder, _) = fixture::cache(&header());
    let shards = names(folder.path()).unwrap().len() - 1;
    let mut shard = names(folder.path()).unwrap();
    shard.sort();
    let second = folder.path().join(&shard[2]);
    let whole = fs::read(&second).unwrap();
    let first_row = TeacherCache::open(folder.path()).unwrap().shards[1].first_row;
    let damage: [(&str, &dyn Fn()); 2] = [
        ("has the sha256", &|| {
            let mut bytes = whole.clone();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(&second, bytes).unwrap();
        }),
        ("cannot read", &|| fs::remove_file(&second).unwrap()),
    ];
    for (says, damage) in damage {
        damage();
        let opened = TeacherCache::open(folder.path());
        let error = opened
            .and_then(|cache| cache.gather(&[0, first_row]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(says) && error.contains("burn-lti cache-teacher"),
            "{error}"
        );

        // The way out that the error names.
        let mut writer = writer(folder.path(), &header());
        let found = writer.damage().unwrap().to_string();
        assert!(found.contains(&second.display().to_string()), "{found}");
        assert_eq!(writer.next_row(), first_row);
        for row in first_row..7 {
            push(&mut writer, &[row]);
        }
        writer.finish().unwrap();
        assert_eq!(fs::read(&second).unwrap(), whole);
        assert_eq!(names(folder.path()).unwrap().len() - 1, shards);
        TeacherCache::open(folder.path())
            .unwrap()
            .verify_files()
            .unwrap();
    }
}

#[test]
fn finishing_early_writes_what_there_is_and_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let mut unfinished = writer(folder.path(), &header());
    push(&mut unfinished, &[0]);
    let error = unfinished.finish().unwrap_err();
    assert!(error.to_string().contains("has 1 of its 7 rows"), "{error}");
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
            error.to_string().starts_with(&format!("{expected} has ")),
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
        error
            .to_string()
            .contains("3 rows from row 5 on are more than the 7"),
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
        error
            .to_string()
            .contains("row 3, token 4 cannot go into a cache"),
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
        matches!(&error, CacheError::File(FileError::NotAFile { file }) if *file == blocked),
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
