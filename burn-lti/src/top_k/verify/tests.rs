//! Tests of `verify.rs`.

use super::*;
use crate::top_k::TeacherCache;
use crate::top_k::fixture::{self, Edit, EditWith, cache, edit_shard};

const TYPES: [LogProbType; 2] = [LogProbType::F32, LogProbType::F16];

/// Of three tokens among four. Each has a half, a quarter, and a quarter of a tail; the first two
/// have targets, one of them among the ids.
fn row(log_prob_type: LogProbType) -> (CacheHeader, TopKRows) {
    let header = CacheHeader {
        k: 2,
        vocab_size: 4,
        seq_len: 3,
        rows: 1,
        ..fixture::header(log_prob_type)
    };
    let [half, quarter, eighth] = [0.5_f32, 0.25, 0.125].map(f32::ln);
    let rows = TopKRows {
        tokens: vec![1, 2, 0],
        segments: vec![1, 1, 0],
        targets: vec![2, 1, 0],
        mask: vec![true, true, false],
        ids: vec![2, 3, 0, 3, 0, 1],
        log_probs: vec![half, quarter, half, quarter, half, quarter],
        log_tail: vec![quarter; 3],
        target_log_prob: vec![half, eighth, 0.0],
    };
    let rows = rows.rounded(log_prob_type);
    check_rows(&header, &rows).unwrap();
    (header, rows)
}

/// The fault of the row above once it was changed so, and its token.
fn fault(edit: impl FnOnce(&mut TopKRows)) -> (usize, Fault) {
    let (header, mut rows) = row(LogProbType::F32);
    edit(&mut rows);
    let breach = check_rows(&header, &rows).unwrap_err();
    assert_eq!(breach.row, 0);
    (breach.token, breach.fault)
}

#[test]
fn ids_are_in_the_vocabulary() {
    let edits: [(&str, usize, Edit<TopKRows>); 3] = [
        ("tokens", 1, |rows| rows.tokens[1] = 4),
        ("targets", 2, |rows| rows.targets[2] = 4),
        ("ids", 2, |rows| rows.ids[5] = 4),
    ];
    for (tensor, token, edit) in edits {
        let (found, vocab_size) = (4, 4);
        let expected = Fault::Vocabulary {
            tensor,
            found,
            vocab_size,
        };
        assert_eq!(fault(edit), (token, expected));
    }
}

#[test]
fn ids_are_distinct() {
    assert_eq!(
        fault(|rows| rows.ids[3] = 0),
        (1, Fault::Repeated { id: 0 })
    );
}

#[test]
fn log_probabilities_are_finite() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let edits: [(&str, usize, &EditWith<'_, TopKRows>); 2] = [
            ("log_probs", 2, &|rows| rows.log_probs[5] = value),
            ("target_log_prob", 1, &|rows| {
                rows.target_log_prob[1] = value
            }),
        ];
        for (expected, token, edit) in edits {
            let (at, fault) = fault(edit);
            assert_eq!(at, token);
            assert!(matches!(fault, Fault::NotFinite { tensor, .. } if tensor == expected));
        }
    }
    for value in [f32::NAN, f32::INFINITY] {
        let (token, fault) = fault(|rows| rows.log_tail[0] = value);
        assert_eq!(token, 0);
        assert!(
            matches!(
                fault,
                Fault::NotFinite {
                    tensor: "log_tail",
                    ..
                }
            ),
            "{fault}"
        );
    }
}

#[test]
fn what_float16_cannot_hold_is_refused_there() {
    let far = |log_prob_type| {
        let (header, mut rows) = row(log_prob_type);
        rows.log_probs[0] = 0.75_f32.ln();
        rows.log_probs[1] = -1e5;
        rows.target_log_prob[0] = 0.75_f32.ln();
        let rows = rows.rounded(log_prob_type);
        check_rows(&header, &rows).map_err(|breach| breach.fault)
    };
    assert_eq!(far(LogProbType::F32), Ok(()));
    let found = f32::NEG_INFINITY;
    let tensor = "log_probs";
    assert_eq!(
        far(LogProbType::F16),
        Err(Fault::NotFinite { tensor, found })
    );
}

#[test]
fn log_probabilities_of_any_size_are_no_panic_and_no_false_alarm() {
    let (header, mut rows) = row(LogProbType::F32);
    rows.log_probs[0] = 0.75_f32.ln();
    rows.target_log_prob[0] = 0.75_f32.ln();
    for far in [-1e3, -1e9, f32::MIN] {
        rows.log_probs[1] = far;
        check_rows(&header, &rows).unwrap();
    }
}

#[test]
fn log_probabilities_are_not_above_zero() {
    let edits: [(&str, usize, Edit<TopKRows>); 3] = [
        ("log_probs", 0, |rows| rows.log_probs[0] = 0.5),
        ("log_tail", 1, |rows| rows.log_tail[1] = 0.5),
        ("target_log_prob", 1, |rows| rows.target_log_prob[1] = 0.5),
    ];
    for (expected, token, edit) in edits {
        let (at, fault) = fault(edit);
        assert_eq!(at, token);
        assert!(matches!(fault, Fault::Positive { tensor, .. } if tensor == expected));
    }
}

#[test]
fn rounding_may_lift_a_certain_token_above_zero_and_no_further() {
    for log_prob_type in TYPES {
        let (header, mut rows) = row(log_prob_type);
        rows.log_tail[2] = f32::NEG_INFINITY;
        rows.log_probs[5] = -50.0;
        let allowed = lse_error(&header) as f32;
        for (above, right) in [(0.5, true), (2.0, false)] {
            rows.log_probs[4] = log_prob_type.round(above * allowed);
            let checked = check_rows(&header, &rows).map_err(|breach| breach.fault);
            match right {
                true => assert_eq!(checked, Ok(())),
                false => assert!(matches!(checked, Err(Fault::Positive { .. }))),
            }
        }
    }
}

#[test]
fn the_likeliest_comes_first() {
    let (token, fault) = fault(|rows| rows.log_probs.swap(2, 3));
    assert_eq!(token, 1);
    assert!(matches!(fault, Fault::Order { place: 1, .. }), "{fault}");
}

#[test]
fn a_whole_vocabulary_has_no_tail() {
    let (header, rows) = row(LogProbType::F32);
    let header = CacheHeader { k: 4, ..header };
    let quarter = 0.25_f32.ln();
    let mut whole = TopKRows {
        ids: (0..12).map(|i| i % 4).collect(),
        log_probs: vec![quarter; 12],
        log_tail: vec![f32::NEG_INFINITY; 3],
        target_log_prob: vec![quarter, quarter, 0.0],
        ..rows
    };
    check_rows(&header, &whole).unwrap();
    // So little that the sum does not show it.
    whole.log_tail[1] = -60.0;
    let breach = check_rows(&header, &whole).unwrap_err();
    assert_eq!(
        (breach.token, breach.fault),
        (1, Fault::Tail { found: -60.0 })
    );
}

#[test]
fn probabilities_add_up_to_one() {
    // Normalised over the k, as MaxText does, with the tail forgotten or not.
    let edits: [fn(&mut TopKRows); 3] = [
        |rows| rows.log_tail[0] = f32::NEG_INFINITY,
        |rows| rows.log_probs[..2].copy_from_slice(&[(2.0_f32 / 3.0).ln(), (1.0_f32 / 3.0).ln()]),
        |rows| rows.log_probs[0] *= 0.5,
    ];
    for edit in edits {
        let (token, fault) = fault(edit);
        assert_eq!(token, 0);
        assert!(matches!(fault, Fault::Mass { .. }), "{fault}");
    }
}

/// The law holds for what rounding can do, and fails for twice as much.
#[test]
fn the_room_for_rounding_is_no_larger_than_needed() {
    for log_prob_type in TYPES {
        let (header, mut rows) = row(log_prob_type);
        let log_probs = &rows.log_probs[4..6];
        let mass: f64 = log_probs.iter().map(|x| f64::from(*x).exp()).sum();
        let moved = log_probs
            .iter()
            .map(|x| f64::from(*x).exp() * log_prob_type.rounding(*x));
        let room = 2.0 * lse_error(&header) + moved.sum::<f64>();
        for (share, right) in [(0.9, true), (-0.9, true), (2.0, false), (-2.0, false)] {
            rows.log_tail[2] = (1.0 + share * room - mass).ln() as f32;
            let checked = check_rows(&header, &rows).map_err(|breach| breach.fault);
            match right {
                true => assert_eq!(checked, Ok(()), "{log_prob_type}"),
                false => assert!(
                    matches!(checked, Err(Fault::Mass { .. })),
                    "{log_prob_type}"
                ),
            }
        }
    }
}

#[test]
fn a_token_without_a_target_has_no_log_probability_of_it() {
    let found = -1.0;
    let edit = |rows: &mut TopKRows| rows.target_log_prob[2] = found;
    assert_eq!(fault(edit), (2, Fault::NoTarget { found }));
    let (token, fault) = fault(|rows| rows.target_log_prob[2] = f32::NAN);
    assert_eq!(token, 2);
    assert!(matches!(fault, Fault::NoTarget { .. }), "{fault}");
}

#[test]
fn padding_has_no_target() {
    let edit = |rows: &mut TopKRows| {
        rows.mask[2] = true;
        rows.target_log_prob[2] = 0.5_f32.ln();
    };
    assert_eq!(fault(edit), (2, Fault::Padding));
}

/// As where targets are one place off.
#[test]
fn a_target_has_one_log_probability() {
    let (token, fault) = fault(|rows| rows.targets[0] = 3);
    assert_eq!(token, 0);
    assert!(matches!(fault, Fault::Target { target: 3, .. }), "{fault}");
    for log_prob_type in TYPES {
        let (header, mut rows) = row(log_prob_type);
        let kept = rows.log_probs[0];
        let room = log_prob_type.rounding(kept) + 2.0 * lse_error(&header);
        for (share, right) in [(0.9, true), (-0.9, true), (2.0, false), (-2.0, false)] {
            rows.target_log_prob[0] = (f64::from(kept) + share * room) as f32;
            assert_eq!(
                check_rows(&header, &rows).is_ok(),
                right,
                "{log_prob_type} {share}"
            );
        }
    }
}

#[test]
fn a_target_outside_the_ids_is_no_likelier_than_the_last() {
    let (token, fault) = fault(|rows| rows.target_log_prob[1] = 0.3_f32.ln());
    assert_eq!(token, 1);
    assert!(
        matches!(fault, Fault::Outsider { target: 1, .. }),
        "{fault}"
    );
    let (header, mut rows) = row(LogProbType::F32);
    rows.target_log_prob[1] = 0.25_f32.ln();
    check_rows(&header, &rows).unwrap();
}

#[test]
fn distributions_of_random_logits_keep_the_laws() {
    for log_prob_type in TYPES {
        for seed in 0..20 {
            let header = fixture::header(log_prob_type);
            let rows = fixture::rows(&header, seed).rounded(log_prob_type);
            check_rows(&header, &rows).unwrap();
        }
    }
}

#[test]
fn a_shard_with_another_hash_is_named() {
    let (folder, _) = cache(&fixture::header(LogProbType::F32));
    let other = serde_json::json!("00");
    fixture::edit_index(folder.path(), |index| index["shards"][2]["sha256"] = other);
    let cache = TeacherCache::open(folder.path()).unwrap();
    let error = cache.verify_files().unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("shard-00002.safetensors has the sha256 "),
        "{text}"
    );
    assert!(
        text.contains("index.json says 00;") && text.contains("burn-lti cache-teacher"),
        "{text}"
    );
}

#[test]
fn a_shard_that_breaks_a_law_is_named_with_row_and_token() {
    for log_prob_type in TYPES {
        let header = fixture::header(log_prob_type);
        let (folder, _) = cache(&header);
        edit_shard(folder.path(), |bytes| {
            // The library writes the widest type first: before the 18 bytes of the mask stand
            // `log_probs` in float16, and `tokens` in float32.
            let end = bytes.len() - 18;
            bytes[end - 4..end].fill(0xff);
        });
        let cache = TeacherCache::open(folder.path()).unwrap();
        let error = cache.verify_files().unwrap_err();
        assert!(
            error.to_string().contains("is broken in row 2, token 5"),
            "{log_prob_type}: {error}"
        );
        assert!(std::error::Error::source(&error).is_some());
    }
}
