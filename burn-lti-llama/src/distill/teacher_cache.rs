//! A teacher's top tokens on the training text: written down once, checked, and found again.

use std::collections::BTreeMap;
use std::path::Path;

use burn::data::dataloader::batcher::Batcher;
use burn::prelude::*;
use burn::tensor::activation::log_softmax;
use burn_lti::decoder::CausalLm;
use burn_lti::files::sha256;
use burn_lti::top_k::{CacheHeader, CacheWriter, LogProbType, TeacherCache, TopKRows, TopTokens};

use super::{DistillError, Event, Listener, vocabulary};
use crate::data::{self, PackedSequence, TokenBatcher};
use crate::hashes::{hash_file, hash_teacher};
use crate::hf::ModelFiles;
use crate::model::{NotFinite, PlainLlama};
use crate::recipe::Recipe;
use crate::tokenizer::KeptTokens;

/// What a cache is to keep.
#[derive(Clone, Copy, Debug)]
pub struct CacheOrder {
    /// The likeliest tokens of each position.
    pub k: usize,
    /// The float type of their log-probabilities.
    pub log_prob_type: LogProbType,
}

/// What a cache is made of: the teacher, the training text as the recipe packs it.
struct Source<B: Backend> {
    /// What errors call the teacher.
    called: String,
    vocab_size: usize,
    teacher: PlainLlama<B>,
    sequences: Vec<PackedSequence>,
    teacher_sha256: BTreeMap<String, String>,
    data_sha256: BTreeMap<String, String>,
}

impl<B: Backend> Source<B> {
    fn load(recipe: &Recipe, device: &B::Device) -> Result<Self, DistillError> {
        let path = &recipe.teacher.path;
        let (files, _) = vocabulary::teacher_files(recipe)?;
        let tokenizer = files.tokenizer()?;
        let seq_lens = recipe.train.seq_len.all();
        if seq_lens.len() > 1 {
            return Err(DistillError::Refused(format!(
                "a cache holds sequences of one length, and train.seq_len is {seq_lens:?}: set it to one \
                 number, as in --set train.seq_len={}",
                recipe.train.seq_len.longest()
            )));
        }
        let layout = recipe.data.documents;
        let (texts, field) = (&recipe.data.train, recipe.data.field.as_deref());
        let loss_on = recipe.data.loss_on;
        let sequences = data::load_sequences(texts, field, loss_on, &tokenizer, seq_lens, layout)?;
        let mut data_sha256 = BTreeMap::new();
        for file in &data::text_files(texts)? {
            data_sha256.insert(file.display().to_string(), hash_file(file)?);
        }
        data_sha256.insert(TOKENS.to_owned(), hash_of_tokens(&sequences));
        data_sha256.extend(files.kept().map(|kept| (KEPT.to_owned(), kept.sha256())));
        Ok(Self {
            called: the_teacher(recipe),
            teacher_sha256: hash_teacher(path)?,
            teacher: files.load(recipe.teacher.dtype, device)?,
            vocab_size: files.config().vocab_size,
            sequences,
            data_sha256,
        })
    }

    fn header(&self, order: CacheOrder) -> CacheHeader {
        CacheHeader {
            k: order.k,
            vocab_size: self.vocab_size,
            seq_len: self.sequences.first().map_or(0, PackedSequence::len),
            log_prob_type: order.log_prob_type,
            rows: self.sequences.len(),
            teacher_sha256: self.teacher_sha256.clone(),
            data_sha256: self.data_sha256.clone(),
        }
    }

    /// The teacher's outputs for some sequences.
    fn rows(
        &self,
        sequences: &[PackedSequence],
        k: usize,
        device: &B::Device,
    ) -> Result<TopKRows, DistillError> {
        let batch = TokenBatcher.batch(sequences.to_vec(), device);
        let hidden: Tensor<B, 2> = self.teacher.hidden_states(&batch).flatten(0, 1);
        let head = self.teacher.head();
        let float = batch.mask.dtype();
        let vocab = self.vocab_size;
        let targets: Vec<u32> = sequences
            .iter()
            .flat_map(|sequence| sequence.targets.iter().copied())
            .collect();
        let mask: Vec<bool> = sequences
            .iter()
            .flat_map(|sequence| sequence.mask.iter().copied())
            .collect();
        let mut rows = TopKRows::default();
        let positions = targets.len();
        for start in (0..positions).step_by(CHUNK) {
            let end = (start + CHUNK).min(positions);
            let products = hidden.clone().slice(start..end).matmul(head.weight.clone());
            let logits = head.capped(products.cast(float));
            let log_probs: Vec<f32> = log_softmax(logits, 1).into_data().iter().collect();
            if !log_probs.iter().all(|log_prob| log_prob.is_finite()) {
                NotFinite::check(&self.called, &self.teacher, &batch)?;
            }
            let top = TopTokens::of(&log_probs, vocab, &targets[start..end], k);
            rows.ids.extend(top.ids);
            rows.log_probs.extend(top.log_probs);
            rows.log_tail.extend(top.log_tail);
            let known = top.target_log_prob.into_iter().zip(&mask[start..end]);
            let known = known.map(|(value, has_target)| if *has_target { value } else { 0.0 });
            rows.target_log_prob.extend(known);
        }
        let ids = |field: fn(&PackedSequence) -> &Vec<u32>| {
            let ids = sequences.iter().flat_map(|sequence| field(sequence).iter());
            ids.copied().collect()
        };
        rows.tokens = ids(|sequence| &sequence.tokens);
        rows.segments = ids(|sequence| &sequence.segments);
        rows.targets = targets;
        rows.mask = mask;
        Ok(rows)
    }
}

/// What stands beside the texts in a cache for what was made of them.
const TOKENS: &str = "tokens, documents and what counts";

/// And for the tokens of the teacher that are kept, if some are gone.
const KEPT: &str = "tokens that are kept";

/// Of all that a sequence is, so that a cache of other tokens of the same text is known.
fn hash_of_tokens(sequences: &[PackedSequence]) -> String {
    let mut bytes = Vec::new();
    for sequence in sequences {
        for ids in [&sequence.tokens, &sequence.segments, &sequence.targets] {
            bytes.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        }
        bytes.extend(sequence.mask.iter().map(|counts| u8::from(*counts)));
    }
    sha256(&bytes)
}

/// What errors call the teacher of a recipe.
pub(super) fn the_teacher(recipe: &Recipe) -> String {
    format!("the teacher in {}", recipe.teacher.path.display())
}

/// Tokens whose logits exist at a time.
const CHUNK: usize = 512;

/// Caches the outputs of the recipe's teacher for the training text, or goes on with a cache in `dir`
/// that is not finished or damaged. `listener` is told how many of how many sequences are written.
///
/// # Errors
///
/// [`DistillError`] naming what cannot be read, or what of a cache that is there is another's.
pub fn cache_teacher<B: Backend>(
    recipe: &Recipe,
    order: CacheOrder,
    dir: &Path,
    device: &B::Device,
    listener: &Listener,
) -> Result<CacheHeader, DistillError> {
    let source = Source::<B>::load(recipe, device)?;
    let header = source.header(order);
    let mut writer = CacheWriter::create_or_resume(dir, header.clone())?;
    if let Some(damage) = writer.damage() {
        let note = format!(
            "writing anew from sequence {} on, because of damage: {}",
            writer.next_row(),
            said(damage)
        );
        listener(Event::Note(&note));
    }
    loop {
        let next = writer.next_row();
        listener(Event::Advanced(next, header.rows));
        let end = (next + recipe.train.batch_size).min(header.rows);
        if next == end {
            break;
        }
        writer.push(&source.rows(&source.sequences[next..end], order.k, device)?)?;
    }
    writer.finish()?;
    Ok(header)
}

/// An error and what it comes from.
fn said(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", said(source)),
        None => error.to_string(),
    }
}

/// How well a cache agrees with its teacher.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct CacheCheck {
    /// Sequences compared with the teacher.
    pub rows: usize,
    /// The largest difference of a log-probability in nats, of tokens likelier than `e^-10`.
    pub largest_difference: f64,
    /// Positions whose likeliest token is another.
    pub other_choices: usize,
}

/// Checks the cache in `dir` by its own hashes and laws, and every `stride`-th of its rows against the
/// recipe's teacher and text.
///
/// # Errors
///
/// [`DistillError`] naming the first thing that does not hold.
pub fn verify_cache<B: Backend>(
    recipe: &Recipe,
    dir: &Path,
    stride: usize,
    device: &B::Device,
    mut done: impl FnMut(usize, usize),
) -> Result<CacheCheck, DistillError> {
    let cache = TeacherCache::open(dir)?;
    cache.verify_files()?;
    let source = Source::<B>::load(recipe, device)?;
    let header = cache.header();
    let order = CacheOrder {
        k: header.k,
        log_prob_type: header.log_prob_type,
    };
    header.check_same(&source.header(order), dir)?;
    check_sequences(&cache, &source.sequences, dir)?;
    let rows: Vec<usize> = (0..header.rows).step_by(stride.max(1)).collect();
    let mut check = CacheCheck::default();
    for (index, &row) in rows.iter().enumerate() {
        done(index, rows.len());
        let written = cache.gather(&[row])?;
        let said = source.rows(&source.sequences[row..=row], header.k, device)?;
        check.compare(&written, &said, header.k);
    }
    done(rows.len(), rows.len());
    // Two runs of one teacher differ by rounding alone, and half precision by what it rounds.
    let allowed = match header.log_prob_type {
        LogProbType::F32 => 1e-3,
        LogProbType::F16 => 1e-2,
    };
    match check.largest_difference <= allowed {
        true => Ok(check),
        false => Err(DistillError::Refused(format!(
            "the log-probabilities in {} differ from the teacher's by up to {:.1e}, where rounding allows \
             {allowed:.0e}: write them again with `burn-lti cache-teacher`",
            dir.display(),
            check.largest_difference
        ))),
    }
}

impl CacheCheck {
    fn compare(&mut self, written: &TopKRows, said: &TopKRows, k: usize) {
        self.rows += 1;
        for (position, (ours, theirs)) in said
            .ids
            .chunks_exact(k)
            .zip(written.ids.chunks_exact(k))
            .enumerate()
        {
            self.other_choices += usize::from(ours[0] != theirs[0]);
            for (rank, id) in ours.iter().enumerate() {
                let log_prob = said.log_probs[position * k + rank];
                let Some(found) = theirs.iter().position(|other| other == id) else {
                    continue; // of tokens about as likely as the last, either may be kept
                };
                if log_prob > -10.0 {
                    let other = written.log_probs[position * k + found];
                    let difference = f64::from((log_prob - other).abs());
                    self.largest_difference = self.largest_difference.max(difference);
                }
            }
        }
    }
}

/// The cache in `dir` for training on `sequences`.
pub(super) fn open_for(
    dir: &Path,
    sequences: &[PackedSequence],
    files: &ModelFiles,
) -> Result<TeacherCache, DistillError> {
    let cache = TeacherCache::open(dir)?;
    let (found, teacher) = (cache.header().vocab_size, files.config().vocab_size);
    if found != teacher {
        return Err(DistillError::Refused(format!(
            "the teacher's top tokens in {} are of a vocabulary of {found}, and the teacher's has \
             {teacher}: write them again with `burn-lti cache-teacher`",
            dir.display()
        )));
    }
    let kept = files.kept().map(KeptTokens::sha256);
    if cache.header().data_sha256.get(KEPT) != kept.as_ref() {
        return Err(DistillError::Refused(format!(
            "the teacher's top tokens in {} are of another student.vocabulary: write them again with `burn-lti \
             cache-teacher` for this recipe",
            dir.display()
        )));
    }
    check_sequences(&cache, sequences, dir)?;
    Ok(cache)
}

/// Every row must be the sequence that will be trained on: tokens, documents and targets.
fn check_sequences(
    cache: &TeacherCache,
    sequences: &[PackedSequence],
    dir: &Path,
) -> Result<(), DistillError> {
    let other = |row| {
        DistillError::Refused(format!(
            "the teacher's top tokens in {} are not of this text: sequence {row} differs; write them \
             again with `burn-lti cache-teacher` in an empty folder, for these [data] and this train.seq_len",
            dir.display()
        ))
    };
    if cache.rows() != sequences.len() {
        return Err(other(cache.rows().min(sequences.len())));
    }
    for (row, sequence) in sequences.iter().enumerate() {
        let written = cache.gather(&[row])?;
        let is_same = written.tokens == sequence.tokens
            && written.segments == sequence.segments
            && written.targets == sequence.targets
            && written.mask == sequence.mask;
        if !is_same {
            return Err(other(row));
        }
    }
    Ok(())
}
