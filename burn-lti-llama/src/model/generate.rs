//! Text generation with a key/value cache, of one text or of many at once.

use burn::prelude::*;
use burn_lti::decoder::Project;
use rand::rngs::StdRng;
use rayon::prelude::*;

use super::error::GenerationError;
use super::{KvCache, Llama, Sampling};

/// A continuation of at most so many tokens.
#[derive(Clone, Copy, Debug)]
pub struct Generation {
    max_tokens: usize,
    sampling: Sampling,
}

/// A text that is not at its end.
struct Row {
    /// The index of its prompt.
    index: usize,
    rng: StdRng,
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

    /// Continues many prompts of one length at once, telling each token, with the index of its prompt,
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
    /// - [`GenerationError::PromptLength`]: the prompts are not of one length.
    /// - [`GenerationError::NotFinite`]: the model computes no numbers.
    pub fn run_batch<B: Backend, P: Project<B>, E: Project<B>, T: AsRef<[u32]>>(
        &self,
        model: &Llama<B, P, E>,
        prompts: &[T],
        first_row: u64,
        mut go_on: impl FnMut(usize, u32) -> bool,
    ) -> Result<Vec<Vec<u32>>, GenerationError> {
        let length = one_length(prompts)?;
        let mut texts = vec![Vec::new(); prompts.len()];
        if length == 0 {
            return Ok(texts);
        }
        let mut rows: Vec<Row> = (0..prompts.len())
            .zip(first_row..)
            .map(|(index, number)| Row {
                index,
                rng: self.sampling.rng(number),
            })
            .collect();
        let prompts = prompts.iter().flat_map(|prompt| prompt.as_ref());
        let mut pending: Vec<u32> = prompts.copied().collect();

        let device = model.devices()[0].clone();
        let mut cache = KvCache::new(model.config().num_hidden_layers);
        for step in 0..self.max_tokens {
            if rows.is_empty() {
                break;
            }
            let shape = [rows.len(), pending.len() / rows.len()];
            let tokens = Tensor::from_data(TensorData::new(ids(&pending), shape), &device);
            let logits = model.next_logits(tokens, &mut cache);
            let drawn = self.choose(&mut rows, logits);

            let before = rows.len();
            let mut kept: Vec<i64> = Vec::with_capacity(before);
            let mut going = Vec::with_capacity(before);
            pending.clear();
            for (index, (row, token)) in (0..).zip(rows.into_iter().zip(drawn)) {
                let token = token.ok_or(GenerationError::NotFinite {
                    row: first_row + row.index as u64,
                    position: length + step,
                })?;
                texts[row.index].push(token);
                if go_on(row.index, token) {
                    kept.push(index);
                    pending.push(token);
                    going.push(row);
                }
            }
            rows = going;
            if !rows.is_empty() && rows.len() < before {
                cache.keep_rows(&Tensor::from_data(kept.as_slice(), &device));
            }
        }
        Ok(texts)
    }

    /// A token for each row by its logits, `[rows, vocab]`.
    fn choose<B: Backend>(&self, rows: &mut [Row], logits: Tensor<B, 2>) -> Vec<Option<u32>> {
        let [_, vocab] = logits.dims();
        let logits: Vec<f32> = logits.into_data().iter().collect();
        rows.par_iter_mut()
            .zip(logits.par_chunks_exact(vocab))
            .map(|(row, logits)| self.sampling.choose(logits, &mut row.rng))
            .collect()
    }
}

/// How long all of the prompts are.
fn one_length<P: AsRef<[u32]>>(prompts: &[P]) -> Result<usize, GenerationError> {
    let expected = prompts.first().map_or(0, |prompt| prompt.as_ref().len());
    for (row, prompt) in prompts.iter().enumerate() {
        let found = prompt.as_ref().len();
        if found != expected {
            return Err(GenerationError::PromptLength {
                row,
                expected,
                found,
            });
        }
    }
    Ok(expected)
}

fn ids(tokens: &[u32]) -> Vec<i64> {
    tokens.iter().map(|id| i64::from(*id)).collect()
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::data::dataloader::batcher::Batcher;

    use super::*;
    use crate::data::{TokenBatcher, pack};
    use crate::model::PlainLlama;
    use crate::model::fixture::{broken_model, model};

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

    #[test]
    fn prompts_of_unlike_lengths_are_refused() {
        let generation = Generation::new(10, Sampling::Greedy);
        let prompts = [vec![1, 2], vec![1]];
        let error = generation.run_batch(&model(VOCAB), &prompts, 0, |_, _| true);
        assert!(matches!(
            error.unwrap_err(),
            GenerationError::PromptLength {
                row: 1,
                expected: 2,
                found: 1
            }
        ));
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
                position: 3
            }
        ));
    }
}
