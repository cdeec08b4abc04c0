//! Tests of `read.rs`.

use std::fs;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::*;
use crate::top_k::fixture::{self, Edit, SHARD, cache, edit_index, edit_shard, select};

fn header() -> CacheHeader {
    fixture::header(LogProbType::F32)
}

/// Changes the JSON of a shard's header, not the tensors after it.
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
        let expected = format!("row {row} of a cache of 7 rows");
        assert!(error.to_string().contains(&expected), "{error}");
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
    assert!(error.to_string().contains("has 6 of its 7 rows"), "{error}");
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
        let expected = format!("bytes and has {length};");
        assert!(error.to_string().contains(&expected), "{error}");
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
        let expected = format!("claims a header of {claimed} bytes");
        assert!(error.to_string().contains(&expected), "{error}");
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
        assert!(error.to_string().contains("has a broken header"), "{error}");
        assert!(std::error::Error::source(&error).is_some());
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
    assert!(error.to_string().contains("bytes and has"), "{error}");
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
            error.to_string().starts_with(&format!("{expected} of ")),
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
    let text = other_rows.to_string();
    assert!(
        text.contains("should be") && text.contains("[3, 6]"),
        "{text}"
    );
}

#[test]
fn the_index_says_the_float_type() {
    let error = refused(|dir| {
        edit_index(dir, |index| {
            index["header"]["log_prob_type"] = json!("float16")
        });
    });
    assert!(error.to_string().starts_with("log_probs of "), "{error}");
}

#[test]
fn a_tensor_that_is_no_part_of_a_cache_is_refused() {
    let error = refused(|dir| {
        edit_header(dir, |header| {
            header["more"] = json!({"dtype": "U8", "shape": [0], "data_offsets": [0, 0]});
        });
    });
    assert!(error.to_string().contains("holds `more`"), "{error}");
}

#[test]
fn a_mask_that_is_neither_yes_nor_no_is_named() {
    let (folder, _) = cache(&header());
    edit_shard(folder.path(), |bytes| {
        // The mask is the tensor of the smallest type, and therefore the last; row 2, token 5.
        *bytes.last_mut().unwrap() = 2;
    });
    let cache = TeacherCache::open(folder.path()).unwrap();
    // Of another shard, which is not broken.
    cache.gather(&[3]).unwrap();
    let error = cache.gather(&[0]).unwrap_err();
    assert!(
        error.to_string().contains("is broken in row 2, token 5"),
        "{error}"
    );
    assert!(matches!(
        error,
        CacheError::Token {
            source: Fault::Mask { found: 2 },
            ..
        }
    ));
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
            let whole = cache.verify_files();
            assert_eq!(cache.gather(&[0]).is_err(), whole.is_err(), "byte {place}");
            whole
        });
        assert!(result.is_err(), "byte {place}");
    }
}
