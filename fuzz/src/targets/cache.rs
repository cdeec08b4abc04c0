//! A teacher's top tokens: the index of a cache, and its shards.

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;

use burn_lti::files::sha256;
use burn_lti::top_k::{CacheHeader, CacheWriter, LogProbType, TeacherCache, TopKRows};
use tempfile::TempDir;

use super::{folder, more_seeds, sealed, weights, write};
use crate::Target;
use crate::memory::BOUND;

const SHARD: &str = "shard-00000.safetensors";

/// `index.json`, beside the shards that the seed names.
pub fn cache_index() -> Target {
    let (dir, index, _) = cache(LogProbType::F32);
    Target {
        seeds: [vec![index], more_seeds("cache_index")].concat(),
        words: &[
            "\"schema\"",
            "\"header\"",
            "\"k\"",
            "\"vocab_size\"",
            "\"seq_len\"",
            "\"rows\"",
            "\"f16\"",
            "\"f32\"",
            "\"shards\"",
            "\"file\"",
            "\"first_row\"",
            "\"sha256\"",
            "shard-00001.safetensors",
            "../",
        ],
        bound: BOUND,
        check: Box::new(move |bytes| {
            write(&dir.path().join("index.json"), bytes);
            check(dir.path())
        }),
    }
}

/// A shard, whose hash in the index is right: what the hash does not keep out.
pub fn cache_shard() -> Target {
    let (dir, index, shard) = cache(LogProbType::F32);
    let (_, _, half) = cache(LogProbType::F16);
    Target {
        seeds: [vec![shard, half], more_seeds("cache_shard")].concat(),
        words: weights::WORDS,
        bound: BOUND,
        check: Box::new(move |bytes| {
            write(&dir.path().join(SHARD), bytes);
            let index = sealed(&index, "/shards/0/sha256", &sha256(bytes));
            write(&dir.path().join("index.json"), &index);
            check(dir.path())
        }),
    }
}

/// A cache that keeps its laws can be written again, and gives the same rows.
fn check(dir: &Path) -> bool {
    let Ok(cache) = TeacherCache::open(dir) else {
        return false;
    };
    let is_lawful = cache.verify_files().is_ok();
    let all: Vec<usize> = (0..cache.rows().min(64)).collect();
    let rows = cache.gather(&all);
    if !is_lawful {
        return true;
    }
    let rows = rows.expect("rows that keep the laws are read");
    let again = folder();
    let mut writer = CacheWriter::create_or_resume(again.path(), cache.header().clone())
        .expect("a cache as there is one");
    writer
        .push(&rows)
        .expect("rows that keep the laws are taken");
    writer.finish().expect("all rows are there");
    let written = TeacherCache::open(again.path()).expect("it was written");
    assert_eq!(written.gather(&all).expect("its rows"), rows);
    true
}

/// A cache of two rows in two shards: its folder, its index and its first shard.
fn cache(log_prob_type: LogProbType) -> (TempDir, Vec<u8>, Vec<u8>) {
    let header = CacheHeader {
        k: 2,
        vocab_size: 4,
        seq_len: 3,
        log_prob_type,
        rows: 2,
        teacher_sha256: BTreeMap::from([("lm_head.weight".into(), sha256(b"its bytes"))]),
        data_sha256: BTreeMap::from([("text.txt".into(), sha256(b"one two"))]),
    };
    let [half, quarter] = [0.5_f32.ln(), 0.25_f32.ln()];
    let row = TopKRows {
        tokens: vec![1, 2, 0],
        segments: vec![1, 1, 0],
        targets: vec![2, 0, 0],
        mask: vec![true, false, false],
        ids: vec![2, 3, 0, 1, 0, 1],
        log_probs: vec![half, quarter, half, quarter, half, quarter],
        log_tail: vec![quarter; 3],
        target_log_prob: vec![half, 0.0, 0.0],
    };
    let dir = folder();
    let writer = CacheWriter::create_or_resume(dir.path(), header).expect("a new cache");
    let mut writer = writer.with_rows_per_shard(NonZeroUsize::MIN);
    for _ in 0..2 {
        writer.push(&row).expect("a row");
    }
    writer.finish().expect("all rows");
    let read = |name: &str| fs::read(dir.path().join(name)).expect("a file of the cache");
    let (index, shard) = (read("index.json"), read(SHARD));
    (dir, index, shard)
}
