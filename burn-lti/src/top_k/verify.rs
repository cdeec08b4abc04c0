//! The laws of a cache, token by token: a writer lets nothing in that breaks them, and
//! [`TeacherCache::verify_files`](super::TeacherCache::verify_files) looks for what broke later.

use super::fault::{Breach, Fault};
use super::{CacheHeader, LogProbType, TopKRows};

/// Half a unit in the last place of a float32 from 1 to 2.
const UNIT: f64 = f32::EPSILON as f64 / 2.0;
/// Logits are taken to be smaller.
const MAX_LOGIT: f64 = 1024.0;

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
mod tests;
