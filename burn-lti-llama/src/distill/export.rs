//! The end of every run: a student without maps, written, read back and compared.

use std::fs;
use std::path::Path;

use burn::module::{ModuleMapper, Param};
use burn::prelude::*;
use burn::tensor::DType;
use burn_lti::collapse::collapse;
use burn_lti::decoder::{CausalLm, LayeredDecoder, TokenBatch};
use burn_lti::map::KernelPrecision;

use super::DistillError;
use crate::config::LlamaConfig;
use crate::hf::{self, ExportForm, HfError, WeightFiles, WeightType};
use crate::model::{NotFinite, PlainLlama};
use crate::recipe::{Recipe, ShardSize};
use crate::tokenizer::TokenizerFiles;

/// Of the largest logit. Folding a map away may at most regroup sums of some thousand float32 terms,
/// each off by 6e-8 of its size: anything beyond this is no rounding.
const MAX_COLLAPSE_DIFFERENCE: f64 = 1e-4;

/// How a student is exported.
pub(super) struct Export<'a> {
    pub(super) config: &'a LlamaConfig,
    /// In which it computes.
    pub(super) dtype: WeightType,
    pub(super) form: ExportForm,
    pub(super) precision: KernelPrecision,
    /// The tokenizer that goes with it.
    pub(super) tokenizer: TokenizerFiles<'a>,
    /// Where it goes.
    pub(super) dir: &'a Path,
}

/// A student that was exported.
pub(super) struct Exported<B: Backend> {
    /// As it was read back.
    pub(super) student: PlainLlama<B>,
    /// The largest difference between its logits and those of the model that was trained, over the
    /// batch given, before its numbers were rounded to fewer digits; `None` without one.
    pub(super) difference: Option<f64>,
}

impl Export<'_> {
    /// Folds the maps of `trained` away, writes the result, reads it back and compares its logits on
    /// `batch`.
    pub(super) fn run<B: Backend>(
        &self,
        trained: &impl LayeredDecoder<B>,
        batch: Option<TokenBatch<B>>,
        device: &B::Device,
    ) -> Result<Exported<B>, DistillError> {
        if let Some(batch) = &batch {
            NotFinite::check("the student", trained, batch)?;
        }
        let skeleton = PlainLlama::<B>::init(self.config, device);
        let plain = collapse(trained, self.precision)?.into_plain(skeleton)?;
        fs::create_dir_all(self.dir).map_err(|source| DistillError::Output {
            path: self.dir.to_owned(),
            source,
        })?;
        hf::export(&plain, self.form, self.tokenizer, self.dir)?;
        let accept = self.config.source.accepted();
        let config = LlamaConfig::from_dir_accepting(self.dir, accept)?;
        let student = hf::load_of_config::<B>(self.dir, &config, self.dtype, device)?;
        let compare = |batch: TokenBatch<B>| {
            if self.form.dtype.size() >= self.dtype.size() {
                return max_logit_difference(trained, &student, &batch);
            }
            // The file has fewer digits: it has to be the folded student, rounded to them.
            let rounded = plain.clone().map(&mut Rounded(self.form.dtype.dtype()));
            max_logit_difference(&rounded, &student, &batch)?;
            max_logit_difference(trained, &plain, &batch)
        };
        let difference = batch.map(compare).transpose()?;
        Ok(Exported {
            student,
            difference,
        })
    }
}

/// How the student of a recipe is written: in the type of the teacher's file, or of what it computes in if that
/// has no more digits.
pub(super) fn export_form(recipe: &Recipe) -> Result<ExportForm, HfError> {
    let dtype = match (recipe.export.dtype, recipe.teacher.dtype) {
        (Some(dtype), _) => dtype,
        (None, WeightType::F32) => WeightFiles::open(&recipe.teacher.path)?.dtype(),
        (None, half) => half,
    };
    Ok(ExportForm {
        dtype,
        max_shard_size: recipe.export.max_shard_size.map(ShardSize::bytes),
    })
}

/// Rounds every number to a type of fewer digits.
struct Rounded(DType);

impl<B: Backend> ModuleMapper<B> for Rounded {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        param.map(|tensor| {
            let dtype = tensor.dtype();
            tensor.cast(self.0).cast(dtype)
        })
    }
}

fn max_logit_difference<B: Backend>(
    trained: &impl CausalLm<B>,
    reloaded: &impl CausalLm<B>,
    batch: &TokenBatch<B>,
) -> Result<f64, DistillError> {
    let largest = |values: Tensor<B, 2>| values.abs().max().into_scalar().elem::<f64>();
    let trained = logits(trained, batch);
    let difference = largest(trained.clone() - logits(reloaded, batch));
    let allowed = MAX_COLLAPSE_DIFFERENCE * f64::max(1.0, largest(trained));
    match difference <= allowed {
        true => Ok(difference),
        false => Err(DistillError::Refused(format!(
            "the reloaded student's logits differ from the trained model's by {difference}, where \
             rounding allows {allowed}: do not use this export; please report the recipe"
        ))),
    }
}

/// Logits of a batch, `[batch * tokens, vocab]`.
fn logits<B: Backend>(model: &impl CausalLm<B>, batch: &TokenBatch<B>) -> Tensor<B, 2> {
    let hidden = model.hidden_states(batch);
    let [rows, tokens, d_model] = hidden.dims();
    let head = model.head();
    let products = hidden
        .reshape([rows * tokens, d_model])
        .matmul(head.weight.clone());
    head.capped(products.cast(DType::F32))
}
