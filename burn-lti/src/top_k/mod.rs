//! A teacher's top-k distributions in files, so that a student can be trained without its teacher.
//!
//! A cache is a folder with `index.json` and shards `shard-00000.safetensors`, `shard-00001.safetensors`
//! and so on. Its *rows* are packed sequences of `seq_len` tokens. [`CacheWriter`] writes it, in as
//! many runs as it takes; [`TeacherCache`] reads it. All is in CPU memory, without a backend.
//!
//! # Files
//!
//! Tensors of a shard, little-endian and row-major:
//!
//! | tensor | type | shape | |
//! |---|---|---|---|
//! | `tokens` | u32 | `[rows, seq_len]` | input tokens |
//! | `segments` | u32 | `[rows, seq_len]` | number of each token's document in its row, from 1; 0 is padding |
//! | `targets` | u32 | `[rows, seq_len]` | the token that follows |
//! | `mask` | u8 | `[rows, seq_len]` | 1 where there is a target, 0 where there is none |
//! | `ids` | u32 | `[rows, seq_len, k]` | the `k` tokens that the teacher finds likeliest to follow, the likeliest first |
//! | `log_probs` | f32 or f16 | `[rows, seq_len, k]` | their log-probabilities |
//! | `log_tail` | f32 | `[rows, seq_len]` | log of the probability of all other tokens together |
//! | `target_log_prob` | f32 | `[rows, seq_len]` | the target's log-probability; 0 where there is none |
//!
//! Log-probabilities are natural logarithms, at temperature 1, with the log-sum-exp over the *whole*
//! vocabulary: they are not normalised over the `k`. So the tail is known, and another temperature can
//! be had later as far as the `k` go.
//!
//! `index.json` has the number of the layout (`schema`), the [`CacheHeader`], and for each finished
//! shard its name, its first row, its rows and its sha256. It is written after each shard, as a new
//! file that takes the place of the old one; a shard counts once it is named there. A token takes
//! `21 + 8 k` bytes in float32, `21 + 6 k` in float16.
//!
//! # Laws
//!
//! They hold for every token, also in the padding, over which a teacher runs like over any other.
//! [`CacheWriter::push`] and [`TeacherCache::verify_files`] check them; a breach is a [`Fault`].
//!
//! 1. `tokens`, `targets` and `ids` are below `vocab_size`, and no id comes twice.
//! 2. `log_probs` and `target_log_prob` are finite, and no log-probability is above 0. `log_tail` is
//!    negative infinity if `k` is `vocab_size`, and may be where the tail's probability is too small.
//! 3. No log-probability is larger than the one before it.
//! 4. `sum(exp(log_probs)) + exp(log_tail) = 1`.
//! 5. `target_log_prob` is 0 where `mask` is 0. Where it is 1, the token is no padding, and
//!    `target_log_prob` is that of `log_probs` if the target is among the ids, and no larger than the
//!    last of them if it is not.
//!
//! "Is" and "above" leave room for rounding. With the unit `u = 2^-24` of float32, a log-sum-exp of
//! `vocab_size` terms is off by no more than `e = (vocab_size + 1024) u`, as long as logits are smaller
//! than 1024. A log-probability `x` was rounded by `d(x) = u |x|` in float32 and by
//! `max(2^-11 |x|, 2^-25)` in float16. So `x` may reach `e + d(x)`, the sum may be off by `2 e` and the
//! sum of `exp(x + d(x)) - exp(x)`, and two log-probabilities of one target may differ by `2 e` and both
//! roundings.
//!
//! # Half precision
//!
//! In float16 a log-probability is off by 2^-11 of itself (0.05 %) at most, or 2^-25 where that is more.
//! A probability moves by 2^-11 / e = 1.8e-4 at most, all of a token together by no more than 2^-11 times
//! their entropy in nats. float16 ends at -65504: a teacher that is surer than that is refused, as is
//! negative infinity in either type. `log_tail` and `target_log_prob` are always float32.
//!
//! # Example
//!
//! ```
//! use std::collections::BTreeMap;
//!
//! use burn_lti::files::sha256;
//! use burn_lti::top_k::{CacheHeader, CacheWriter, LogProbType, TeacherCache, TopKRows};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let dir = folder.path();
//! let header = CacheHeader {
//!     k: 2,
//!     vocab_size: 4,
//!     seq_len: 3,
//!     log_prob_type: LogProbType::F32,
//!     rows: 1,
//!     teacher_sha256: BTreeMap::from([("lm_head.weight".into(), sha256(b"its bytes"))]),
//!     data_sha256: BTreeMap::from([("text.txt".into(), sha256(b"one two"))]),
//! };
//! // A document of two tokens and one of padding. The teacher gives a half, a quarter, and a quarter
//! // to the tokens that are left.
//! let [half, quarter] = [0.5_f32.ln(), 0.25_f32.ln()];
//! let rows = TopKRows {
//!     tokens: vec![1, 2, 0],
//!     segments: vec![1, 1, 0],
//!     targets: vec![2, 0, 0],
//!     mask: vec![true, false, false],
//!     ids: vec![2, 3, 0, 1, 0, 1],
//!     log_probs: vec![half, quarter, half, quarter, half, quarter],
//!     log_tail: vec![quarter; 3],
//!     target_log_prob: vec![half, 0.0, 0.0],
//! };
//!
//! let mut writer = CacheWriter::create_or_resume(dir, header)?;
//! assert_eq!(writer.next_row(), 0);
//! writer.push(&rows)?;
//! writer.finish()?;
//!
//! let cache = TeacherCache::open(dir)?;
//! cache.verify_files()?;
//! assert_eq!(cache.gather(&[0])?, rows);
//! # Ok(())
//! # }
//! ```

mod error;
mod fault;
#[cfg(test)]
mod fixture;
mod format;
mod read;
mod rows;
mod tokens;
mod verify;
mod write;

pub use error::CacheError;
pub use fault::Fault;
pub use format::CacheHeader;
pub use read::TeacherCache;
pub use rows::{LogProbType, TopKRows};
pub use tokens::TopTokens;
pub use write::CacheWriter;
