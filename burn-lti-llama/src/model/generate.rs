//! Text generation with a key/value cache, of one text or of many at once.

use std::num::NonZeroUsize;

use burn::prelude::*;
use burn_lti::decoder::Project;
use rand::rngs::StdRng;
use rayon::prelude::*;

use super::error::GenerationError;
use super::finite::first_not_finite_of_text;
use super::{Llama, Sampling};

/// A continuation of at most so many tokens.
///
/// A model that is [`packed`](Llama::packed) writes faster, and on a CPU, in float32, the same text whatever
/// is written beside it, bit for bit.
#[derive(Clone, Copy, Debug)]
pub struct Generation {
    max_tokens: usize,
    sampling: Sampling,
}

/// Texts to be written: they are asked for as there is room, and hear of their tokens.
pub trait Texts {
    /// The next one, or `None` where none is wanted now. It is asked again whenever there is room.
    fn next(&mut self) -> Option<NewText>;

    /// Tells a text its next token. It answers whether the text goes on.
    fn push(&mut self, row: u64, token: u32) -> bool;

    /// Hands over a text that has ended, without its beginning and with the token that ended it. It answers
    /// whether anything else is wanted: texts that are not at their end are dropped where not.
    fn end(&mut self, row: u64, tokens: Vec<u32>) -> bool;
}

/// A text to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewText {
    /// Its number, from which its random numbers follow.
    pub row: u64,
    /// What it begins with.
    pub prompt: Vec<u32>,
}

/// A text that is not at its end.
struct Row {
    number: u64,
    prompt: Vec<u32>,
    rng: StdRng,
    /// What the model has not read yet.
    pending: Vec<u32>,
    /// What was drawn.
    tokens: Vec<u32>,
}

impl Generation {
    /// A continuation of at most `max_tokens` tokens.
    pub const fn new(max_tokens: usize, sampling: Sampling) -> Self {
        Self {
            max_tokens,
            sampling,
        }
    }

    /// Continues `prompt`, telling each token to `go_on` until it answers `false`. The token that
    /// ended it is part of the result. An empty prompt has no continuation.
    ///
    /// # Errors
    ///
    /// [`GenerationError::NotFinite`]: the model computes no numbers.
    pub fn run<B: Backend, P: Project<B>, E: Project<B>>(
        &self,
        model: &Llama<B, P, E>,
        prompt: &[u32],
        mut go_on: impl FnMut(u32) -> bool,
    ) -> Result<Vec<u32>, GenerationError> {
        let rows = self.run_batch(model, &[prompt], 0, |_, token| go_on(token))?;
        Ok(rows.concat())
    }

    /// Continues many prompts at once, of whatever lengths, telling each token, with the index of its prompt,
    /// to `go_on`. A text that is answered `false` ends and leaves the batch; the token that ended it is
    /// part of the result. The results stand in the order of the prompts.
    ///
    /// The prompts are the rows `first_row`, `first_row + 1` and so on of whatever is being written. Each
    /// row draws by random numbers of its own, from the seed and the row's number, so that it does not
    /// matter which rows are generated together, but for how the backend's products round. Row 0 is
    /// what [`run`](Self::run) gives.
    ///
    /// # Errors
    ///
    /// [`GenerationError::NotFinite`]: the model computes no numbers.
    pub fn run_batch<B: Backend, P: Project<B>, E: Project<B>, T: AsRef<[u32]>>(
        &self,
        model: &Llama<B, P, E>,
        prompts: &[T],
        first_row: u64,
        go_on: impl FnMut(usize, u32) -> bool,
    ) -> Result<Vec<Vec<u32>>, GenerationError> {
        let mut batch = Batch {
            prompts: prompts.iter().map(|prompt| prompt.as_ref()).enumerate(),
            first_row,
            go_on,
            texts: vec![Vec::new(); prompts.len()],
        };
        if let Some(rooms) = NonZeroUsize::new(prompts.len()) {
            self.write(model, rooms, &mut batch)?;
        }
        Ok(batch.texts)
    }

    /// Writes texts, as many at once as there are `rooms`: when one ends, its keys and values make room for the
    /// next, so that the batch stays full. It does not matter to a text in which room it is written, nor
    /// what is written in the others, as of [`run_batch`](Self::run_batch). A text with an empty prompt, or of
    /// no token, ends as it begins.
    ///
    /// # Errors
    ///
    /// [`GenerationError::NotFinite`]: the model computes no numbers.
    pub fn write<B: Backend, P: Project<B>, E: Project<B>>(
        &self,
        model: &Llama<B, P, E>,
        rooms: NonZeroUsize,
        texts: &mut impl Texts,
    ) -> Result<(), GenerationError> {
        let mut cache = model.cache(rooms.get());
        let mut rows: Vec<Option<Row>> = (0..rooms.get()).map(|_| None).collect();
        loop {
            for row in rows.iter_mut().filter(|row| row.is_none()) {
                while row.is_none()
                    && let Some(text) = texts.next()
                {
                    if text.prompt.is_empty() || self.max_tokens == 0 {
                        if !texts.end(text.row, Vec::new()) {
                            return Ok(());
                        }
                        continue;
                    }
                    *row = Some(Row {
                        number: text.row,
                        rng: self.sampling.rng(text.row),
                        pending: text.prompt.clone(),
                        prompt: text.prompt,
                        tokens: Vec::new(),
                    });
                }
            }
            let new: Vec<(usize, &[u32])> = rows
                .iter()
                .enumerate()
                .filter_map(|(room, row)| Some((room, row.as_ref()?.pending.as_slice())))
                .collect();
            if new.is_empty() {
                return Ok(());
            }
            let logits = model.next_logits(&new, &mut cache);
            let drawn = self.choose(model, rows.iter_mut().flatten().collect(), logits)?;
            let alive = rows.iter_mut().enumerate().filter(|(_, row)| row.is_some());
            for ((room, place), token) in alive.zip(drawn) {
                let Some(row) = place else {
                    continue;
                };
                row.tokens.push(token);
                row.pending = vec![token];
                let goes_on = texts.push(row.number, token);
                if goes_on && row.tokens.len() < self.max_tokens {
                    continue;
                }
                cache.clear(room);
                if let Some(ended) = place.take()
                    && !texts.end(ended.number, ended.tokens)
                {
                    return Ok(());
                }
            }
        }
    }

    /// A token for each row by its logits, `[rows, vocab]`.
    fn choose<B: Backend, P: Project<B>, E: Project<B>>(
        &self,
        model: &Llama<B, P, E>,
        mut rows: Vec<&mut Row>,
        logits: Tensor<B, 2>,
    ) -> Result<Vec<u32>, GenerationError> {
        let [_, vocab] = logits.dims();
        let logits = logits.into_data().convert::<f32>();
        let logits: &[f32] = match logits.as_slice() {
            Ok(logits) => logits,
            Err(_) => unreachable!("they were converted"),
        };
        let drawn: Vec<Option<u32>> = rows
            .par_iter_mut()
            .zip(logits.par_chunks_exact(vocab))
            .map_init(Vec::new, |room, (row, logits)| {
                self.sampling.choose(logits, &mut row.rng, room)
            })
            .collect();
        let wrong = rows.iter().zip(&drawn).filter(|(_, token)| token.is_none());
        if let Some((row, _)) = wrong.min_by_key(|(row, _)| row.number) {
            return Err(GenerationError::NotFinite {
                row: row.number,
                position: row.prompt.len() + row.tokens.len(),
                place: first_not_finite_of_text(
                    model,
                    &[row.prompt.as_slice(), &row.tokens].concat(),
                ),
            });
        }
        Ok(drawn.into_iter().flatten().collect())
    }
}

/// Prompts that are all continued at once.
struct Batch<I, F> {
    /// Those that nobody has asked for.
    prompts: I,
    first_row: u64,
    go_on: F,
    texts: Vec<Vec<u32>>,
}

impl<'a, I, F> Texts for Batch<I, F>
where
    I: Iterator<Item = (usize, &'a [u32])>,
    F: FnMut(usize, u32) -> bool,
{
    fn next(&mut self) -> Option<NewText> {
        let (index, prompt) = self.prompts.next()?;
        Some(NewText {
            row: self.first_row + index as u64,
            prompt: prompt.to_vec(),
        })
    }

    fn push(&mut self, row: u64, token: u32) -> bool {
        (self.go_on)((row - self.first_row) as usize, token)
    }

    fn end(&mut self, row: u64, tokens: Vec<u32>) -> bool {
        self.texts[(row - self.first_row) as usize] = tokens;
        true
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::data::dataloader::batcher::Batcher;

    use super::*;
    use crate::data::{TokenBatcher, pack};
    use crate::model::fixture::{broken_model, model, model_on};
    use crate::model::{Place, PlainLlama};

    const VOCAB: usize = 61;
    const PROMPTS: [[u32; 3]; 4] = [[1, 5, 9], [1, 40, 7], [1, 3, 3], [1, 60, 21]];

    /// Every text alone, as the single generation gives it.
    fn alone(model: &PlainLlama<Flex>, generation: Generation, end: u32) -> Vec<Vec<u32>> {
        let one = |prompt: &[u32; 3]| generation.run(model, prompt, |token| token != end);
        PROMPTS.iter().map(|prompt| one(prompt).unwrap()).collect()
    }

    /// Twenty of the likeliest tokens, each from the logits of the whole text before it.
    fn without_cache(model: &PlainLlama<Flex>, prompt: &[u32]) -> Vec<u32> {
        let mut text = prompt.to_vec();
        for _ in 0..20 {
            let batch = TokenBatcher.batch(pack([text.clone()], text.len()), &Default::default());
            let logits = model.logits(&batch).narrow(1, text.len() - 1, 1);
            let likeliest: Vec<i64> = logits.argmax(2).into_data().iter().collect();
            text.push(likeliest[0] as u32);
        }
        text.split_off(prompt.len())
    }

    #[test]
    fn a_greedy_batch_is_its_texts_alone() {
        let model = model(VOCAB);
        let generation = Generation::new(20, Sampling::Greedy);
        let endless = alone(&model, generation, u32::MAX);
        for (prompt, text) in PROMPTS.iter().zip(&endless) {
            assert_eq!(*text, without_cache(&model, prompt));
        }
        let together = generation.run_batch(&model, &PROMPTS, 0, |_, _| true);
        assert_eq!(together.unwrap(), endless);

        // Ends where one text draws it, so that rows leave the batch at different times.
        let end = endless[2][4];
        let alone = alone(&model, generation, end);
        assert!(alone[2].len() <= 5);
        assert!(alone.iter().any(|text| text.len() > alone[2].len()));
        let together = generation.run_batch(&model, &PROMPTS, 0, |_, token| token != end);
        assert_eq!(together.unwrap(), alone);
    }

    #[test]
    fn random_rows_do_not_depend_on_which_are_together() {
        let model = model(VOCAB);
        let generation = Generation::new(12, Sampling::random(1.5, 0.95, 7).unwrap());
        let together = generation.run_batch(&model, &PROMPTS, 5, |_, token| token != 9);
        let together = together.unwrap();
        for (row, prompt) in PROMPTS.iter().enumerate() {
            let number = 5 + row as u64;
            let alone = generation.run_batch(&model, &[prompt], number, |_, token| token != 9);
            assert_eq!(alone.unwrap(), [together[row].clone()]);
        }
        let same = [PROMPTS[0]; 4];
        let texts = generation.run_batch(&model, &same, 0, |_, _| true).unwrap();
        assert_ne!(texts[0], texts[1]);
        let single = generation.run(&model, &PROMPTS[0], |_| true).unwrap();
        assert_eq!(texts[0], single);
    }

    #[test]
    fn a_row_hears_of_its_tokens_until_it_ends() {
        let model = model(VOCAB);
        let generation = Generation::new(10, Sampling::random(2.0, 1.0, 0).unwrap());
        let mut told = vec![Vec::new(); 4];
        let texts = generation.run_batch(&model, &PROMPTS, 0, |row, token| {
            told[row].push(token);
            told[row].len() <= 2 * row
        });
        assert_eq!(texts.unwrap(), told);
        let lengths: Vec<usize> = told.iter().map(Vec::len).collect();
        assert_eq!(lengths, [1, 3, 5, 7]);
    }

    /// Prompts that are handed out one after another, and the texts by their numbers.
    struct Queue {
        prompts: Vec<Vec<u32>>,
        given: usize,
        texts: Vec<Option<Vec<u32>>>,
        end: u32,
    }

    impl Texts for Queue {
        fn next(&mut self) -> Option<NewText> {
            let prompt = self.prompts.get(self.given)?.clone();
            self.given += 1;
            Some(NewText {
                row: self.given as u64 - 1,
                prompt,
            })
        }

        fn push(&mut self, _: u64, token: u32) -> bool {
            token != self.end
        }

        fn end(&mut self, row: u64, tokens: Vec<u32>) -> bool {
            let before = self.texts[row as usize].replace(tokens);
            assert_eq!(before, None, "a text ends once");
            true
        }
    }

    /// Prompts of 0 to 6 tokens; the texts are of other lengths too.
    fn texts_do_not_depend_on_their_rooms<B: Backend>() {
        let model = model_on::<B>(VOCAB).packed();
        let generation = Generation::new(9, Sampling::random(1.5, 0.95, 7).unwrap());
        let prompts: Vec<Vec<u32>> = (0..40u32)
            .map(|row| {
                (0..row % 7)
                    .map(|token| (row * 11 + token * 5) % 61)
                    .collect()
            })
            .collect();
        let end = 9;
        let alone = |(row, prompt): (usize, &Vec<u32>)| {
            let go_on = |_, token| token != end;
            let texts = generation.run_batch(&model, &[prompt], row as u64, go_on);
            Some(texts.unwrap().concat())
        };
        let expected: Vec<Option<Vec<u32>>> = prompts.iter().enumerate().map(alone).collect();
        let lengths = expected.iter().flatten().map(Vec::len);
        assert!(lengths.clone().any(|length| (1..9).contains(&length)));
        assert!(lengths.clone().any(|length| length == 9));
        for rooms in [1, 3, 16, 64] {
            let mut queue = Queue {
                prompts: prompts.clone(),
                given: 0,
                texts: vec![None; 40],
                end,
            };
            let rooms = NonZeroUsize::new(rooms).unwrap();
            generation.write(&model, rooms, &mut queue).unwrap();
            assert_eq!(queue.texts, expected, "{rooms} rooms");
        }
    }

    #[test]
    fn texts_do_not_depend_on_their_rooms_on_flex() {
        texts_do_not_depend_on_their_rooms::<Flex>();
    }

    #[cfg(feature = "ndarray")]
    #[test]
    fn texts_do_not_depend_on_their_rooms_on_ndarray() {
        texts_do_not_depend_on_their_rooms::<burn::backend::NdArray>();
    }

    /// Not one bit.
    #[test]
    fn logits_of_a_packed_model_do_not_depend_on_what_is_beside_them() {
        let model = model(VOCAB).packed();
        let bits = |logits: Tensor<Flex, 2>| -> Vec<u32> {
            let logits = logits.into_data();
            logits.iter().map(|logit: f32| logit.to_bits()).collect()
        };
        let text = [
            3u32, 1, 4, 1, 5, 9, 2, 6, 5, 35, 8, 9, 7, 9, 32, 38, 46, 26, 43, 38,
        ];
        let mut alone = model.cache(1);
        let mut together = model.cache(9);
        // Others have been in its room and beside it.
        model.next_logits(&[(4, &text[..13]), (2, &text[5..])], &mut together);
        together.clear(4);
        for piece in [0..1, 1..2, 2..11, 11..12, 12..20] {
            let piece = &text[piece];
            let expected = bits(model.next_logits(&[(0, piece)], &mut alone));
            let other = &text[..piece.len()];
            let mut new: Vec<(usize, &[u32])> = (0..9).map(|room| (room, other)).collect();
            new[4].1 = piece;
            let found = bits(model.next_logits(&new, &mut together));
            assert_eq!(found[4 * VOCAB..5 * VOCAB], expected);
        }
        // All at once are what they are one after another.
        let mut at_once = model.cache(1);
        let at_once = model.next_logits(&[(0, &text)], &mut at_once);
        let mut steps = model.cache(1);
        let mut last = Vec::new();
        for token in &text {
            last = bits(model.next_logits(&[(0, &[*token])], &mut steps));
        }
        assert_eq!(bits(at_once), last);
    }

    #[test]
    fn prompts_may_be_of_unlike_lengths() {
        let model = model(VOCAB);
        let generation = Generation::new(10, Sampling::Greedy);
        let prompts = [vec![1, 2, 7, 9], vec![], vec![1]];
        let together = generation
            .run_batch(&model, &prompts, 0, |_, _| true)
            .unwrap();
        for (prompt, text) in prompts.iter().zip(together) {
            assert_eq!(generation.run(&model, prompt, |_| true).unwrap(), text);
        }
    }

    #[test]
    fn nothing_has_no_continuation() {
        let generation = Generation::new(10, Sampling::Greedy);
        assert!(
            generation
                .run(&model(VOCAB), &[], |_| true)
                .unwrap()
                .is_empty()
        );
        let none: [Vec<u32>; 0] = [];
        let texts = generation.run_batch(&model(VOCAB), &none, 0, |_, _| true);
        assert!(texts.unwrap().is_empty());
    }

    #[test]
    fn a_model_that_overflows_is_an_error() {
        let generation = Generation::new(10, Sampling::Greedy);
        let error = generation.run_batch(&broken_model(VOCAB), &PROMPTS, 3, |_, _| true);
        assert!(matches!(
            error.unwrap_err(),
            GenerationError::NotFinite {
                row: 3,
                position: 3,
                place: Some(Place::Embedding),
            }
        ));
    }
}
