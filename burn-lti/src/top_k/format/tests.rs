//! Tests of `format.rs`.

use serde_json::{Value, json};

use super::*;
use crate::files::sha256;
use crate::top_k::TeacherCache;
use crate::top_k::fixture::{self, Edit};

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
        let expected = format!("the cache's {expected} is ");
        assert!(error.to_string().starts_with(&expected), "{error}");
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
    let named = found.differences(&given);
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
        assert!(error.to_string().contains("is no index of a cache"));
        assert!(error.to_string().contains(INDEX));
    }
}

#[test]
fn an_impossible_header_is_refused() {
    let error = refused(|index| index["header"]["seq_len"] = json!(0));
    assert!(error.to_string().contains("seq_len is 0"), "{error}");
}

#[test]
fn another_schema_is_refused_whatever_else_the_index_has() {
    let error = refused(|index| *index = json!({"schema": 2, "content": []}));
    let text = error.to_string();
    assert!(
        text.contains("has schema 2, this program knows 1"),
        "{error}"
    );
}

#[test]
fn shards_have_the_names_of_their_places() {
    for name in ["../shard-00001.safetensors", "shard-00000.safetensors"] {
        let error = refused(|index| index["shards"][1]["file"] = json!(name));
        let expected = format!("lists {name:?} where shard-00001.safetensors should be");
        assert!(error.to_string().contains(&expected), "{error}");
    }
}

#[test]
fn shards_neither_overlap_nor_leave_gaps() {
    for first_row in [2, 4, usize::MAX] {
        let error = refused(|index| index["shards"][1]["first_row"] = json!(first_row));
        let text = error.to_string();
        let begins = format!("shard-00001.safetensors begins with row {first_row},");
        assert!(
            text.contains(&begins) && text.contains("end with row 3"),
            "{error}"
        );
    }
}

#[test]
fn shards_have_rows_and_no_more_than_the_cache() {
    for rows in [0, 8, usize::MAX] {
        let error = refused(|index| index["shards"][0]["rows"] = json!(rows));
        let expected = format!("has {rows} rows, not 1 to 7");
        assert!(error.to_string().contains(&expected), "{error}");
    }
}
