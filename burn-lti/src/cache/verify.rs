//! The laws of a cache, token by token: a writer lets nothing in that breaks them, and
//! [`TeacherCache::verify_files`] looks for what broke later.

use thiserror::Error;

use super::{CacheError, CacheHeader, LogProbType, TeacherCache, TopKRows};

/// Half a unit in the last place of a float32 from 1 to 2.
const UNIT: f64 = f32::EPSILON as f64 / 2.0;
/// Logits are taken to be smaller.
const MAX_LOGIT: f64 = 1024.0;

/// What is wrong with a token of a cache. See [the laws](super#laws).
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum Fault {
    /// An id that the teacher does not know.
    #[error("{tensor} has the id {found}, but the vocabulary ends before {vocab_size}")]
    Vocabulary {
        /// The tensor.
        tensor: &'static str,
        /// The id.
        found: u32,
        /// The number of tokens that the teacher knows.
        vocab_size: usize,
    },
    /// A mask that says neither yes nor no.
    #[error("mask is {found}: it has to be 0 or 1")]
    Mask {
        /// Its value.
        found: u8,
    },
    /// A target where there is no input.
    #[error("mask is 1 in the padding: only a token of a document can have a target")]
    Padding,
    /// A distribution with two probabilities for one token.
    #[error("ids has {id} twice: each token has one probability")]
    Repeated {
        /// The token.
        id: u32,
    },
    /// A log-probability that is infinite or no number.
    #[error(
        "{tensor} has {found}: a log-probability has to be finite, for the loss multiplies with it. \
         float16 ends at -65504, float32 does not"
    )]
    NotFinite {
        /// The tensor.
        tensor: &'static str,
        /// The value.
        found: f32,
    },
    /// A probability above 1, or none at all.
    #[error(
        "{tensor} has {found}, above 0 by more than {allowance:.1e}: log-probabilities are expected, not \
         logits"
    )]
    Positive {
        /// The tensor.
        tensor: &'static str,
        /// The value.
        found: f32,
        /// How far rounding alone can lift it above 0.
        allowance: f64,
    },
    /// A token that is likelier than the one before it.
    #[error(
        "log_probs has {after} after {before} at place {place}: the likeliest token comes first"
    )]
    Order {
        /// The place of the second, from 0.
        place: usize,
        /// The log-probability of the first.
        before: f32,
        /// The log-probability of the second.
        after: f32,
    },
    /// A tail where no token is left.
    #[error(
        "log_tail is {found}, but the ids are the whole vocabulary: it has to be negative infinity"
    )]
    Tail {
        /// The value.
        found: f32,
    },
    /// Probabilities that do not add up to 1.
    #[error(
        "log_probs and log_tail make up a probability of {found}, off 1 by more than {tolerance:.1e}: \
         normalise over the whole vocabulary, in float32 and at temperature 1"
    )]
    Mass {
        /// The sum.
        found: f64,
        /// How far rounding alone can bring it away from 1.
        tolerance: f64,
    },
    /// A log-probability of nothing.
    #[error("target_log_prob is {found} where there is no target: it has to be 0")]
    NoTarget {
        /// The value.
        found: f32,
    },
    /// A target with two log-probabilities.
    #[error(
        "target_log_prob is {found}, but log_probs has {kept} for the target {target}: they differ by more \
         than {tolerance:.1e}"
    )]
    Target {
        /// The target.
        target: u32,
        /// The value.
        found: f32,
        /// The log-probability among the `k`.
        kept: f32,
        /// How far rounding alone can bring them apart.
        tolerance: f64,
    },
    /// A target that should be among the likeliest tokens, and is not.
    #[error(
        "target_log_prob is {found}, so the target {target} should be among the ids, of which the last has \
         {least}"
    )]
    Outsider {
        /// The target.
        target: u32,
        /// The value.
        found: f32,
        /// The least log-probability among the `k`.
        least: f32,
    },
}

/// A fault and its place in some rows.
#[derive(Debug)]
pub(super) struct Breach {
    pub(super) row: usize,
    pub(super) token: usize,
    pub(super) fault: Fault,
}

impl TeacherCache {
    /// Checks that each shard is the file that was written, by its hash, and that each token keeps
    /// [the laws](super#laws).
    ///
    /// # Errors
    ///
    /// Of the first shard, row and token that is wrong: [`CacheError::Hash`] or
    /// [`CacheError::Broken`].
    pub fn verify_files(&self) -> Result<(), CacheError> {
        for shard in &self.shards {
            shard.check_hash()?;
            for row in 0..shard.rows {
                let mut rows = TopKRows::default();
                shard.read(row, &self.header, &mut rows)?;
                check_rows(&self.header, &rows)
                    .map_err(|breach| shard.broken(Breach { row, ..breach }))?;
            }
        }
        Ok(())
    }
}

/// Checks rows whose fields have the lengths they should have.
pub(super) fn check_rows(header: &CacheHeader, rows: &TopKRows) -> Result<(), Breach> {
    for index in 0..rows.tokens.len() {
        let checked = check_ids(header, rows, index)
            .and_then(|()| check_distribution(header, rows, index))
            .and_then(|()| check_target(header, rows, index));
        checked.map_err(|fault| Breach {
            row: index / header.seq_len,
            token: index % header.seq_len,
            fault,
        })?;
    }
    Ok(())
}

/// How far a log-probability computed in float32 can be from the true one: the log-sum-exp is off by
/// the rounding of a sum of `vocab_size` numbers above 0, in any order, and by that of its own size.
///
/// All log-probabilities of a token share that error, which therefore does not change their order.
fn lse_error(header: &CacheHeader) -> f64 {
    (header.vocab_size as f64 + MAX_LOGIT) * UNIT
}

fn check_ids(header: &CacheHeader, rows: &TopKRows, index: usize) -> Result<(), Fault> {
    let (ids, _) = top_k(header, rows, index);
    for (tensor, values) in [
        ("tokens", &rows.tokens[index..=index]),
        ("targets", &rows.targets[index..=index]),
        ("ids", ids),
    ] {
        let vocab_size = header.vocab_size;
        if let Some(&found) = values.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(Fault::Vocabulary {
                tensor,
                found,
                vocab_size,
            });
        }
    }
    let mut sorted = ids.to_vec();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Fault::Repeated { id: pair[0] }),
        None => Ok(()),
    }
}

fn check_distribution(header: &CacheHeader, rows: &TopKRows, index: usize) -> Result<(), Fault> {
    let (_, log_probs) = top_k(header, rows, index);
    let log_tail = rows.log_tail[index];
    for &log_prob in log_probs {
        check_log_prob(header, "log_probs", header.log_prob_type, log_prob)?;
    }
    if let Some(place) = (1..log_probs.len()).find(|&place| log_probs[place] > log_probs[place - 1])
    {
        return Err(Fault::Order {
            place,
            before: log_probs[place - 1],
            after: log_probs[place],
        });
    }
    if log_tail != f32::NEG_INFINITY {
        check_log_prob(header, "log_tail", LogProbType::F32, log_tail)?;
        if header.k == header.vocab_size {
            return Err(Fault::Tail { found: log_tail });
        }
    }

    let kept = log_probs
        .iter()
        .map(|log_prob| (*log_prob, header.log_prob_type));
    let all = kept.chain([(log_tail, LogProbType::F32)]);
    // The log-sum-exp enters twice: into what is subtracted, and into the sum that is the tail.
    let (mut mass, mut tolerance) = (0.0, 2.0 * lse_error(header));
    for (log_prob, log_prob_type) in all.filter(|(log_prob, _)| log_prob.is_finite()) {
        let (exact, rounding) = (f64::from(log_prob), log_prob_type.rounding(log_prob));
        mass += exact.exp();
        tolerance += (exact + rounding).exp() - exact.exp();
    }
    match f64::abs(mass - 1.0) <= tolerance {
        true => Ok(()),
        false => Err(Fault::Mass {
            found: mass,
            tolerance,
        }),
    }
}

fn check_target(header: &CacheHeader, rows: &TopKRows, index: usize) -> Result<(), Fault> {
    let (target, found) = (rows.targets[index], rows.target_log_prob[index]);
    match rows.mask[index] {
        false if found == 0.0 => return Ok(()),
        false => return Err(Fault::NoTarget { found }),
        true if rows.segments[index] == 0 => return Err(Fault::Padding),
        true => check_log_prob(header, "target_log_prob", LogProbType::F32, found)?,
    }
    let (ids, log_probs) = top_k(header, rows, index);
    let place = ids.iter().position(|&id| id == target);
    let kept = log_probs[place.unwrap_or(log_probs.len() - 1)];
    // Both may come from a log-sum-exp of their own.
    let tolerance = header.log_prob_type.rounding(kept)
        + LogProbType::F32.rounding(found)
        + 2.0 * lse_error(header);
    let above = f64::from(found) - f64::from(kept);
    match place {
        Some(_) if above.abs() > tolerance => Err(Fault::Target {
            target,
            found,
            kept,
            tolerance,
        }),
        None if above > tolerance => Err(Fault::Outsider {
            target,
            found,
            least: kept,
        }),
        _ => Ok(()),
    }
}

/// The ids and log-probabilities of a token.
fn top_k<'a>(header: &CacheHeader, rows: &'a TopKRows, index: usize) -> (&'a [u32], &'a [f32]) {
    let place = index * header.k..(index + 1) * header.k;
    (&rows.ids[place.clone()], &rows.log_probs[place])
}

fn check_log_prob(
    header: &CacheHeader,
    tensor: &'static str,
    log_prob_type: LogProbType,
    found: f32,
) -> Result<(), Fault> {
    let allowance = lse_error(header) + log_prob_type.rounding(found);
    if !found.is_finite() {
        Err(Fault::NotFinite { tensor, found })
    } else if f64::from(found) > allowance {
        Err(Fault::Positive {
            tensor,
            found,
            allowance,
        })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::fixture::{self, Edit, EditWith, cache, edit_shard};

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
            |rows| {
                rows.log_probs[..2].copy_from_slice(&[(2.0_f32 / 3.0).ln(), (1.0_f32 / 3.0).ln()])
            },
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
        let CacheError::Hash {
            shard, expected, ..
        } = &error
        else {
            panic!("{error}");
        };
        assert!(shard.ends_with("shard-00002.safetensors") && expected == "00");
        assert!(error.to_string().contains("burn-lti cache-teacher"));
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
                matches!(
                    &error,
                    CacheError::Broken {
                        row: 2,
                        token: 5,
                        ..
                    }
                ),
                "{log_prob_type}: {error}"
            );
            assert!(std::error::Error::source(&error).is_some());
        }
    }
}
