//! The command line.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use burn::prelude::*;
use burn_lti::kernels::ProductPrecision;
use burn_lti_llama::config::model_folder;
use burn_lti_llama::corpus::CorpusOrder;
use burn_lti_llama::data::{Documents, LossOn};
use burn_lti_llama::gguf::BlockType;
use burn_lti_llama::hf::WeightType;
use burn_lti_llama::recipe::{Recipe, RecipeError, ShardSize};
use clap::builder::{PathBufValueParser, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::backend::BackendName;

const EXAMPLES: &str = "\
Examples:
  burn-lti demo
  burn-lti plan half.toml
  burn-lti distill half.toml --out out --set train.steps=50
  burn-lti compare half.toml --out starts --seeds 3
  burn-lti report out
  burn-lti eval --teacher teacher --student out/student --text valid.txt
  burn-lti generate --model out/student --prompt 'Once upon a time'
  burn-lti sample-corpus --model teacher --out corpus.jsonl
  burn-lti convert out/student --out student.gguf --dtype q8_0

`burn-lti help distill` shows a recipe.";

const RECIPE_HELP: &str = "\
A recipe needs no more than this; `recipe.toml` in DIR then holds every key with its default:

  [teacher]
  path = \"teacher\"           # a Hugging Face folder of a Llama, or a .gguf file
  [student]
  heads = 4                  # query heads
  kv_heads = 2               # key/value heads; divides heads
  [train]
  steps = 200
  [data]
  train = [\"train.txt\"]      # a document a line, blank lines between documents, or .jsonl
  valid = [\"valid.txt\"]";

/// Makes a smaller Llama out of a Llama.
///
/// The student's attention projections begin as small learnable maps of the teacher's own, learn by
/// distillation, and are folded away into ordinary weights: what comes out is a Hugging Face folder
/// that any runtime loads.
///
/// Try `burn-lti demo` first: it needs nothing but this program.
#[derive(Debug, Parser)]
#[command(name = "burn-lti", version, max_term_width = 100, after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Say what a recipe would do, from the configurations alone.
    ///
    /// What becomes a map, what is copied, new, trained, frozen; parameters, cache sizes; FLOPs, bytes and
    /// memory of a step, and how long it takes at least on a device of a given speed.
    ///
    /// Reads only the recipe and the teacher's config.json, so it is there at once, and names the
    /// first mistake of the recipe with the way out.
    #[command(after_long_help = RECIPE_HELP)]
    Plan(PlanArgs),
    /// Make the student of a recipe at its start, and export it at once, without any training.
    ///
    /// With `lti.start = "calibrated"` that is a student that computes about what its teacher does; a table
    /// says for each layer which heads were kept and what part of its target was missed. `distill RECIPE
    /// --out DIR --resume` trains it.
    #[command(after_long_help = RECIPE_HELP)]
    Start(StartArgs),
    /// Carry a recipe out: start, train, collapse, export, reload, compare.
    ///
    /// Leaves in DIR: `student/` (a Hugging Face folder), `recipe.toml` (as resolved), `manifest.json`
    /// (what the run was made of), `metrics.jsonl` (a line a logged step), `checkpoints/` with
    /// train.checkpoint_every, `summary.json`, and `files.json` (which of these the run wrote).
    ///
    /// Ctrl-C, or a terminal that closes, ends the run after the step under way, with a checkpoint and a student
    /// of that step; `--resume` goes on from there, or from the newest checkpoint of a run that was killed. With
    /// more `train.steps` it also trains a finished run further.
    #[command(after_long_help = RECIPE_HELP)]
    Distill(DistillArgs),
    /// Carry a recipe out from several starts and compare them.
    ///
    /// From each start with each seed, one run after another, as `distill` does it. Leaves in DIR a
    /// folder for each run (`lecun-seed0/`), `compare.json` (all numbers), `compare.csv` (a line a run),
    /// `curves.csv` (a line an evaluation) and `compare.svg` (held-out KL against training tokens).
    ///
    /// The curve is of the evaluations that train.eval_every asks for. Ctrl-C ends the run under way as
    /// it does `distill`; `--resume` goes on from there and takes over what is finished, also with more
    /// starts or seeds than before.
    #[command(after_long_help = RECIPE_HELP)]
    Compare(CompareArgs),
    /// Write what became of a run as one HTML page, or of several beside each other.
    ///
    /// The page needs no network and no script. Every figure on it stands in a file of the run: what `distill` or
    /// `start` has left in OUT.
    Report(ReportArgs),
    /// Make a student out of a checkpoint.
    ///
    /// Of a run that is under way, was interrupted or was killed: its newest checkpoint, or its best.
    Collapse(CollapseArgs),
    /// Cache the teacher's top tokens for the training text.
    ///
    /// Of each token the K likeliest that follow, with their log-probabilities, and how likely all
    /// others are together. A recipe with `teacher.cache = "DIR"` learns from that. A cache that is not
    /// finished is gone on with.
    CacheTeacher(CacheTeacherArgs),
    /// Check a teacher's saved top tokens by their hashes, the teacher and the text.
    VerifyCache(VerifyCacheArgs),
    /// Evaluate a student against its teacher on a text.
    ///
    /// KL (nats per token, temperature 1), cross-entropy and perplexity of both, top-1 agreement; with
    /// `--by-position` also by how much of its document comes before a token.
    Eval(EvalArgs),
    /// Continue a prompt.
    ///
    /// Greedily unless a temperature is given, with a key/value cache.
    Generate(GenerateArgs),
    /// Let a model write documents that a student of it can learn from.
    ///
    /// For where there is no text of the kind that the model was trained on. Each document begins with
    /// BOS, or a prompt, is drawn at random, and ends with EOS, before another BOS, or at its full length.
    ///
    /// Writes a line of JSON with a `text` for each document: what `data.train`, `data.valid` and
    /// `eval --text` read.
    SampleCorpus(SampleCorpusArgs),
    /// Convert a model: a GGUF file to a Hugging Face folder, or a folder to GGUF.
    ///
    /// Tensors go from file to file one at a time, quantized ones as the floats that they stand for. The tokenizer
    /// goes along; what would be computed otherwise in the other form is refused. What is written is read back.
    Convert(ConvertArgs),
    /// Write a model's logits on a text, to compare with another program.
    ///
    /// Writes `input_ids` (int64) and `logits` (float32) to a safetensors file, one document a row, all
    /// cut to the length of the shortest: what `scripts/verify_export.py` compares with transformers.
    Logits(LogitsArgs),
    /// Train a small teacher from nothing, then students of it from every start.
    ///
    /// The teacher is a small Llama, its text stories that the program makes up, its students have half
    /// its heads. Prints what became of them; takes about two minutes on two cores.
    Demo(DemoArgs),
    /// List the backends of this program and the devices they see.
    ///
    /// What `--backend` and `--device` take, the types of numbers each device computes in, and which
    /// backends a rebuild would add.
    Devices(DevicesArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RecipeArgs {
    /// The recipe, a TOML file; relative paths in it are relative to its folder.
    pub(crate) recipe: PathBuf,
    /// Override a key of the recipe, as in `--set train.steps=50` or `--set report=false`. May be given several times.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub(crate) set: Vec<String>,
    #[command(flatten)]
    pub(crate) accept: AcceptArg,
}

impl RecipeArgs {
    /// The recipe, with what stands beside it on the command line.
    pub(crate) fn load(&self) -> Result<Recipe, RecipeError> {
        let mut recipe = Recipe::load(&self.recipe, &self.set)?;
        let accept = &mut recipe.teacher.accept;
        let more = self
            .accept
            .accept
            .iter()
            .filter(|field| !accept.contains(field));
        let more: Vec<String> = more.cloned().collect();
        accept.extend(more);
        Ok(recipe)
    }
}

#[derive(Debug, Args)]
pub(crate) struct AcceptArg {
    /// Read over a field of config.json that is not known here, at your own risk: it may change what the model
    /// computes. May be given several times.
    #[arg(long, value_name = "FIELD")]
    pub(crate) accept: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct BackendArgs {
    /// The backend to compute on, among those this program was built with.
    #[arg(long, default_value_t, value_name = "NAME")]
    pub(crate) backend: BackendName,
    /// The device of the backend, by its number in `burn-lti devices`; its default one if absent.
    #[arg(long, value_name = "N")]
    pub(crate) device: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct DtypeArg {
    /// The float type to hold the weights and to compute in; `burn-lti devices` lists what each device
    /// can do.
    #[arg(long, default_value_t, value_name = "TYPE", value_parser = weight_type())]
    pub(crate) dtype: WeightType,
}

#[derive(Debug, Args)]
pub(crate) struct PrecisionArg {
    /// The float type in which projections are multiplied, weights and input rounded to it; sums and all else are in
    /// that of the weights.
    #[arg(long, default_value_t, value_name = "TYPE", value_parser = precision())]
    pub(crate) precision: ProductPrecision,
}

impl PrecisionArg {
    /// Does `work` in it, if the device can.
    pub(crate) fn scope<B: Backend, T>(
        &self,
        device: &B::Device,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let precision = self.precision;
        ensure!(
            precision.is_supported::<B>(device),
            "{} does not multiply in {precision} on this device: leave --precision out, or choose another \
             --backend or --device (`burn-lti devices` lists them)",
            B::name(device)
        );
        precision.scope(work)
    }
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().map_err(|error| error.to_string())?;
    match number.is_finite() && number > 0.0 {
        true => Ok(number),
        false => Err("a number above 0 is needed, as in 400e9".to_owned()),
    }
}

/// The folder of a model, or of a repository that was fetched from the Hub.
fn model() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().map(|path| model_folder(&path))
}

/// A type of weights that is written, by its name in GGUF or in `config.json`.
fn block_type() -> impl TypedValueParser<Value = BlockType> {
    const NAMES: [(&str, BlockType); 7] = [
        ("f32", BlockType::F32),
        ("f16", BlockType::F16),
        ("bf16", BlockType::Bf16),
        ("q8_0", BlockType::Q8_0),
        ("float32", BlockType::F32),
        ("float16", BlockType::F16),
        ("bfloat16", BlockType::Bf16),
    ];
    let named = |name: String| {
        let found = NAMES.into_iter().find(|(known, _)| *known == name);
        found.map(|(_, kind)| kind).ok_or("no type of weights")
    };
    PossibleValuesParser::new(NAMES.map(|(name, _)| name)).try_map(named)
}

/// A float type by its name in `config.json`.
fn weight_type() -> impl TypedValueParser<Value = WeightType> {
    let named = |name: String| {
        let dtype = WeightType::ALL
            .into_iter()
            .find(|dtype| dtype.name() == name);
        dtype.ok_or("no float type of weights")
    };
    PossibleValuesParser::new(WeightType::ALL.map(WeightType::name)).try_map(named)
}

/// A precision of products by its name in recipes.
fn precision() -> impl TypedValueParser<Value = ProductPrecision> {
    let named = |name: String| {
        let mut all = ProductPrecision::ALL.into_iter();
        all.find(|precision| precision.name() == name)
            .ok_or("no precision of products")
    };
    PossibleValuesParser::new(ProductPrecision::ALL.map(ProductPrecision::name)).try_map(named)
}

fn documents() -> impl TypedValueParser<Value = Documents> {
    let named = |name: String| {
        let documents = Documents::ALL.into_iter().find(|way| way.name() == name);
        documents.ok_or("no layout of documents")
    };
    PossibleValuesParser::new(Documents::ALL.map(Documents::name)).try_map(named)
}

fn loss_on() -> impl TypedValueParser<Value = LossOn> {
    let named = |name: String| {
        let loss_on = LossOn::ALL.into_iter().find(|what| what.name() == name);
        loss_on.ok_or("nothing that a loss is on")
    };
    PossibleValuesParser::new(LossOn::ALL.map(LossOn::name)).try_map(named)
}

#[derive(Debug, Args)]
pub(crate) struct JsonArg {
    /// Print JSON for programs instead of text for people.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
    /// Say how long a step takes at least where so many operations are done a second, as in `400e9`.
    #[arg(long, value_name = "FLOPS", value_parser = positive)]
    pub(crate) flops: Option<f64>,
    /// And where so many bytes go to memory and back a second, as in `20e9`.
    #[arg(long, value_name = "BYTES", value_parser = positive, requires = "flops")]
    pub(crate) bandwidth: Option<f64>,
    /// Measure both on a backend's default device; on the preferred backend if none is named.
    #[arg(
        long,
        value_name = "BACKEND",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = BackendName::default().name(),
        conflicts_with = "flops"
    )]
    pub(crate) measure: Option<BackendName>,
    /// Plan from the teacher's config.json alone, of a model or of texts that are not here; with student.vocabulary
    /// tokenizer and texts are read.
    #[arg(long)]
    pub(crate) config_only: bool,
    /// Search the shape that student.target asks for, and print a table of those that were tried.
    #[arg(
        long,
        value_name = "BACKEND",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = BackendName::default().name(),
        conflicts_with_all = ["flops", "measure", "config_only"]
    )]
    pub(crate) shapes: Option<BackendName>,
    /// Name the fields of the teacher's config.json that were read over, as they change nothing in what it
    /// computes.
    #[arg(long)]
    pub(crate) verbose: bool,
    #[command(flatten)]
    pub(crate) json: JsonArg,
}

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// The folder of a run, or those of several.
    #[arg(required = true, value_name = "OUT")]
    pub(crate) runs: Vec<PathBuf>,
    /// The page; `report.html` in the folder of a single run if absent.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Replace the page if it is there.
    #[arg(long)]
    pub(crate) overwrite: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DistillArgs {
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
    /// Where the results go. A folder that already holds files is refused.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Go on with the run in DIR from its newest checkpoint.
    #[arg(long, conflicts_with = "overwrite")]
    pub(crate) resume: bool,
    /// Replace an earlier run in DIR, which stays until this one is finished. Nothing goes that no run wrote.
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Export the student of the last step, even if an earlier one had a lower held-out KL.
    #[arg(long)]
    pub(crate) keep_last: bool,
    #[command(flatten)]
    pub(crate) backend: BackendArgs,
    #[command(flatten)]
    pub(crate) json: JsonArg,
}

#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
    /// Where the student goes, as DIR/student. A folder that already holds files is refused.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Replace an earlier run in DIR, which stays until the student is made. Nothing goes that no run wrote.
    #[arg(long)]
    pub(crate) overwrite: bool,
    #[command(flatten)]
    pub(crate) backend: BackendArgs,
    #[command(flatten)]
    pub(crate) json: JsonArg,
}

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
    /// Where the runs go and what they came to. A folder that already holds files is refused.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// The starts, as `lecun,grouped`; all there are if absent. They take the place of lti.start.
    #[arg(long, value_name = "START,...", value_delimiter = ',')]
    pub(crate) starts: Vec<String>,
    /// Runs from each start: with train.seed, and with as many of the seeds after it.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub(crate) seeds: usize,
    /// Go on with the comparison in DIR.
    #[arg(long)]
    pub(crate) resume: bool,
    #[command(flatten)]
    pub(crate) backend: BackendArgs,
    #[command(flatten)]
    pub(crate) json: JsonArg,
}

#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    /// The teacher's Hugging Face folder, or GGUF file. Its tokenizer is used for both.
    #[arg(long, value_name = "DIR", value_parser = model())]
    pub(crate) teacher: PathBuf,
    /// The student's Hugging Face folder, or GGUF file.
    #[arg(long, value_name = "DIR", value_parser = model())]
    pub(crate) student: PathBuf,
    /// The text: a file, folder or pattern of `.txt` (a document a line, or documents between blank lines),
    /// `.jsonl`, `.json`, `.csv` or `.parquet`, or `-` for the standard input. May be given several times.
    #[arg(long, value_name = "FILE", required = true)]
    pub(crate) text: Vec<PathBuf>,
    /// The field of a record that holds the document. `text`, `messages`, or `prompt` and `completion` unless given.
    #[arg(long, value_name = "NAME")]
    pub(crate) field: Option<String>,
    /// What counts: all, or what the assistant says in conversations.
    #[arg(long, default_value_t, value_name = "WHAT", value_parser = loss_on())]
    pub(crate) loss_on: LossOn,
    /// Tokens in a sequence.
    #[arg(long, default_value = "128", value_name = "TOKENS")]
    pub(crate) seq_len: NonZeroUsize,
    /// How documents lie in a sequence: apart, each by itself, or joined, end to end as one text.
    #[arg(long, default_value_t, value_name = "HOW", value_parser = documents())]
    pub(crate) documents: Documents,
    /// Say how far apart they are by ranges of position too: 0 to 31, 32 to 63, 64 to 127 and so on. A
    /// position is counted from where a document begins in its sequence.
    #[arg(long)]
    pub(crate) by_position: bool,
    /// Sequences in a batch.
    #[arg(long, default_value = "16", value_name = "N")]
    pub(crate) batch_size: NonZeroUsize,
    /// Read at most so many sequences; all if absent.
    #[arg(long, value_name = "N")]
    pub(crate) max_sequences: Option<NonZeroUsize>,
    #[command(flatten)]
    pub(crate) backend: BackendArgs,
    #[command(flatten)]
    pub(crate) accept: AcceptArg,
    #[command(flatten)]
    pub(crate) dtype: DtypeArg,
    #[command(flatten)]
    pub(crate) json: JsonArg,
}

#[derive(Debug, Args)]
pub(crate) struct CollapseArgs {
    /// The `--out` of the run.
    #[arg(value_name = "RUN")]
    pub(crate) run: PathBuf,
    /// Where the student goes; RUN/student if absent. A folder that already holds files is refused.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// The checkpoint with the lowest held-out KL instead of the newest.
    #[arg(long)]
    pub(crate) best: bool,
    #[command(flatten)]
    pub(crate) backend: BackendArgs,
    #[command(flatten)]
    pub(crate) json: JsonArg,
}

#[derive(Debug, Args)]
pub(crate) struct CacheTeacherArgs {
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
    /// Where the cache goes.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// The likeliest tokens of each position.
    #[arg(long, default_value = "64", value_name = "K")]
    pub(crate) top_k: NonZeroUsize,
    /// Keep log-probabilities in half precision: 6 bytes a token instead of 8.
    #[arg(long)]
    pub(crate) half: bool,
    #[command(flatten)]
    pub(crate) backend: BackendArgs,
    #[command(flatten)]
    pub(crate) json: JsonArg,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyCacheArgs {
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
    /// The cache; `teacher.cache` of the recipe if absent.
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// Ask the teacher again about every N-th sequence; hashes and laws are checked of all.
    #[arg(long, default_value = "1", value_name = "N")]
    pub(crate) every: NonZeroUsize,
    #[command(flatten)]
    pub(crate) backend: BackendArgs,
    #[command(flatten)]
    pub(crate) json: JsonArg,
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// The model's Hugging Face folder, or GGUF file.
    #[arg(long, value_name = "DIR", value_parser = model())]
    pub(crate) model: PathBuf,
    /// The text to continue, or with --chat what you ask; `-` reads it from the standard input.
    #[arg(long, value_name = "TEXT", required_unless_present = "chat")]
    pub(crate) prompt: Option<String>,
    /// Talk to an instruct model by its chat template: once with --prompt, line by line without.
    #[arg(long)]
    pub(crate) chat: bool,
    /// With --chat: what the model is told before you ask.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub(crate) system: Option<String>,
    /// The most tokens to add; the text may end before.
    #[arg(long, default_value_t = 200, value_name = "N")]
    pub(crate) max_tokens: usize,
    /// Choose tokens at random: below 1 bolder, above 1 wilder. Greedy if absent or 0.
    #[arg(long, value_name = "T")]
    pub(crate) temperature: Option<f64>,
    /// Consider only the likeliest tokens that together have this probability.
    #[arg(
        long,
        default_value_t = 1.0,
        value_name = "P",
        requires = "temperature"
    )]
    pub(crate) top_p: f64,
    /// The same seed gives the same text.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) backend: BackendArgs,
    #[command(flatten)]
    pub(crate) accept: AcceptArg,
    #[command(flatten)]
    pub(crate) dtype: DtypeArg,
    #[command(flatten)]
    pub(crate) precision: PrecisionArg,
    #[command(flatten)]
    pub(crate) json: JsonArg,
}

#[derive(Debug, Args)]
pub(crate) struct SampleCorpusArgs {
    /// The model's Hugging Face folder, or GGUF file.
    #[arg(long, value_name = "DIR", value_parser = model())]
    pub(crate) model: PathBuf,
    /// Where the documents go, a `.jsonl` file. One that exists is refused.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Replace FILE if it exists.
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Tokens of all documents together; the last document is whole, so there may be a few more. 32768 if absent, or
    /// with --prompts as many as take a document for each.
    #[arg(long, value_name = "N")]
    pub(crate) tokens: Option<NonZeroUsize>,
    /// The most tokens of a document; 256, or as many as the model reads, if absent.
    #[arg(long, value_name = "N")]
    pub(crate) document_tokens: Option<NonZeroUsize>,
    /// Below 1 likelier texts, above 1 wilder ones.
    #[arg(long, default_value_t = CorpusOrder::TEMPERATURE, value_name = "T")]
    pub(crate) temperature: f64,
    /// Consider only the likeliest tokens that together have this probability.
    #[arg(long, default_value_t = CorpusOrder::TOP_P, value_name = "P")]
    pub(crate) top_p: f64,
    /// The same seed gives the same documents.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) seed: u64,
    /// Documents to draw at once: more are faster, and need more memory for keys and values. If absent as many
    /// as take a GiB for them, at most 128.
    #[arg(long, value_name = "N")]
    pub(crate) batch_size: Option<NonZeroUsize>,
    /// The text that every document begins with; BOS alone if absent.
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,
    /// What documents begin with in turn: a file of a text a line (`.txt`), or of objects with a text or a
    /// conversation `prompt`, or `messages` (`.jsonl`, `.json`, `.csv`, `.parquet`). A conversation is answered, and
    /// written as `messages`.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub(crate) prompts: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) backend: BackendArgs,
    #[command(flatten)]
    pub(crate) accept: AcceptArg,
    #[command(flatten)]
    pub(crate) dtype: DtypeArg,
    #[command(flatten)]
    pub(crate) precision: PrecisionArg,
    #[command(flatten)]
    pub(crate) json: JsonArg,
}

/// What a model is converted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ConvertTo {
    /// One file, which llama.cpp opens.
    Gguf,
    /// A Hugging Face folder.
    Folder,
}

#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// The model: a Hugging Face folder, or a GGUF file.
    #[arg(value_name = "MODEL", value_parser = model())]
    pub(crate) model: PathBuf,
    /// Where it goes: a file that ends in .gguf, or a folder. What exists is refused.
    #[arg(long, value_name = "PATH")]
    pub(crate) out: PathBuf,
    /// What it becomes; GGUF if PATH ends in .gguf, else a folder.
    #[arg(long, value_name = "FORM")]
    pub(crate) to: Option<ConvertTo>,
    /// The type of its weights; that of MODEL if absent, float32 where that is quantized. q8_0 is of GGUF.
    #[arg(long, value_name = "TYPE", value_parser = block_type())]
    pub(crate) dtype: Option<BlockType>,
    /// The most bytes of a file of weights in a folder, as 5GB.
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_shard_size: Option<ShardSize>,
    /// Replace what PATH holds of a model.
    #[arg(long)]
    pub(crate) overwrite: bool,
    #[command(flatten)]
    pub(crate) accept: AcceptArg,
}

#[derive(Debug, Args)]
pub(crate) struct LogitsArgs {
    /// The model's Hugging Face folder, or GGUF file.
    #[arg(long, value_name = "DIR", value_parser = model())]
    pub(crate) model: PathBuf,
    /// The text, as for `eval`.
    #[arg(long, value_name = "FILE", required = true)]
    pub(crate) text: Vec<PathBuf>,
    /// The field of a record that holds the document. `text`, `messages`, or `prompt` and `completion` unless given.
    #[arg(long, value_name = "NAME")]
    pub(crate) field: Option<String>,
    /// Where the logits go. A file that exists is refused.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Replace FILE if it exists.
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// How many documents.
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub(crate) documents: usize,
    /// The most tokens of each.
    #[arg(long, default_value_t = 64, value_name = "TOKENS")]
    pub(crate) tokens: usize,
    #[command(flatten)]
    pub(crate) backend: BackendArgs,
    #[command(flatten)]
    pub(crate) accept: AcceptArg,
    #[command(flatten)]
    pub(crate) dtype: DtypeArg,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Keep the teacher, the text and the students here.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Seed of the stories, the teacher and the students.
    #[arg(long, default_value_t = 0, value_name = "N",
        value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) backend: BackendArgs,
    #[command(flatten)]
    pub(crate) json: JsonArg,
}

#[derive(Debug, Args)]
pub(crate) struct DevicesArgs {
    #[command(flatten)]
    pub(crate) json: JsonArg,
}
