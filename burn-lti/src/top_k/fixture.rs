//! A teacher of random logits, and caches of it to be spoiled.

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::format::INDEX;
use super::{CacheHeader, CacheWriter, LogProbType, TopKRows};
use crate::files::sha256;

/// Spoils something that is in order.
pub(super) type Edit<T> = fn(&mut T);

/// The same with what a closure captures.
pub(super) type EditWith<'a, T> = dyn Fn(&mut T) + 'a;

pub(super) const SHARD: &str = "shard-00000.safetensors";

/// Of 7 rows.
pub(super) fn header(log_prob_type: LogProbType) -> CacheHeader {
    CacheHeader {
        k: 4,
        vocab_size: 11,
        seq_len: 6,
        log_prob_type,
        rows: 7,
        teacher_sha256: BTreeMap::from([
            ("head.weight".into(), sha256(b"head")),
            ("norm.gamma".into(), sha256(b"norm")),
        ]),
        data_sha256: BTreeMap::from([("a.txt".into(), sha256(b"text"))]),
    }
}

/// All rows of a cache of this header, as the teacher gives them.
pub(super) fn rows(header: &CacheHeader, seed: u64) -> TopKRows {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut rows = TopKRows::default();
    for _ in 0..header.rows {
        push_text(&mut rows, header, &mut rng);
    }
    for index in 0..rows.tokens.len() {
        let logits = (0..header.vocab_size).map(|_| rng.random_range(-8.0..8.0_f64));
        push_distribution(&mut rows, header, index, &logits.collect::<Vec<_>>());
    }
    rows
}

/// Two documents and padding, each possibly absent.
fn push_text(rows: &mut TopKRows, header: &CacheHeader, rng: &mut StdRng) {
    let first = rng.random_range(0..=header.seq_len);
    let both = rng.random_range(first..=header.seq_len);
    let ends = [first, both];
    for place in 0..header.seq_len {
        let target = place < both && !ends.contains(&(place + 1));
        rows.segments.push(match place {
            _ if place < first => 1,
            _ if place < both => 2,
            _ => 0,
        });
        rows.mask.push(target);
        let mut token = || rng.random_range(0..header.vocab_size as u32);
        rows.tokens.push(token());
        rows.targets.push(if target { token() } else { 0 });
    }
}

fn push_distribution(rows: &mut TopKRows, header: &CacheHeader, index: usize, logits: &[f64]) {
    let log_sum_exp =
        |logits: &mut dyn Iterator<Item = f64>| logits.map(f64::exp).sum::<f64>().ln();
    let all = log_sum_exp(&mut logits.iter().copied());
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    ids.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    let (kept, tail) = ids.split_at(header.k);

    let log_prob = |id: usize| (logits[id] - all) as f32;
    rows.ids.extend(kept.iter().map(|id| *id as u32));
    rows.log_probs.extend(kept.iter().map(|id| log_prob(*id)));
    let tail = log_sum_exp(&mut tail.iter().map(|id| logits[*id]));
    rows.log_tail.push((tail - all) as f32);
    rows.target_log_prob.push(match rows.mask[index] {
        true => log_prob(rows.targets[index] as usize),
        false => 0.0,
    });
}

/// Some of `rows`, by another way than the cache's.
pub(super) fn select(header: &CacheHeader, rows: &TopKRows, chosen: &[usize]) -> TopKRows {
    fn pick<T: Copy>(values: &[T], width: usize, chosen: &[usize]) -> Vec<T> {
        let rows: Vec<&[T]> = values.chunks(width).collect();
        chosen.iter().flat_map(|row| rows[*row].to_vec()).collect()
    }
    let (narrow, wide) = (header.seq_len, header.seq_len * header.k);
    TopKRows {
        tokens: pick(&rows.tokens, narrow, chosen),
        segments: pick(&rows.segments, narrow, chosen),
        targets: pick(&rows.targets, narrow, chosen),
        mask: pick(&rows.mask, narrow, chosen),
        ids: pick(&rows.ids, wide, chosen),
        log_probs: pick(&rows.log_probs, wide, chosen),
        log_tail: pick(&rows.log_tail, narrow, chosen),
        target_log_prob: pick(&rows.target_log_prob, narrow, chosen),
    }
}

/// A writer of shards of 3 rows.
pub(super) fn writer(dir: &Path, header: &CacheHeader) -> CacheWriter {
    let writer = CacheWriter::create_or_resume(dir, header.clone()).unwrap();
    writer.with_rows_per_shard(NonZeroUsize::new(3).unwrap())
}

/// A finished cache of `rows(header, 0)`, in shards of 3, 3 and 1 rows.
pub(super) fn cache(header: &CacheHeader) -> (TempDir, TopKRows) {
    let folder = tempfile::tempdir().unwrap();
    let rows = rows(header, 0);
    let mut writer = writer(folder.path(), header);
    for row in 0..header.rows {
        writer.push(&select(header, &rows, &[row])).unwrap();
    }
    writer.finish().unwrap();
    (folder, rows)
}

/// Changes `index.json`.
pub(super) fn edit_index(dir: &Path, edit: impl FnOnce(&mut Value)) {
    let path = dir.join(INDEX);
    let mut index = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut index);
    fs::write(path, index.to_string()).unwrap();
}

/// Changes the first shard, and its hash in the index with it.
pub(super) fn edit_shard(dir: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
    let path = dir.join(SHARD);
    let mut bytes = fs::read(&path).unwrap();
    edit(&mut bytes);
    fs::write(path, &bytes).unwrap();
    edit_index(dir, |index| {
        index["shards"][0]["sha256"] = json!(sha256(&bytes))
    });
}
