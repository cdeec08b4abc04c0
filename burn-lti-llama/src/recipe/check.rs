//! What a recipe's values must be, as far as the recipe alone can tell.
//!
//! Every range is here. A comparison with NaN is false, so NaN passes nowhere.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::slice;

use burn_lti::calibration::FeedForward;
use burn_lti::loss::{Divergence, Schedule};
use burn_lti::map::Start;

use super::{
    CalibrationSection, DataSection, FeatureSection, GrowSection, KeptLayers, KeptVocabulary,
    LayerPairs, Layers, LearningRate, LossSection, LtiSection, Phase2Section, Plateau, Recipe,
    RecipeError, Rotary, SeqLens, Target, TrainSection, Trained, divergence, schedule,
};

/// The first value of `recipe` that is not as it must be is an error; `path` is the file it names.
pub(super) fn check(recipe: &Recipe, path: &Path) -> Result<(), RecipeError> {
    let Recipe {
        teacher,
        student,
        lti,
        calibration,
        loss,
        train,
        phase2,
        weights,
        data,
        export: _,
        report: _,
    } = recipe;
    let checks = Checks { path };
    checks.paths("teacher.path", slice::from_ref(&teacher.path))?;
    if let Some(cache) = &teacher.cache {
        checks.paths("teacher.cache", slice::from_ref(cache))?;
    }
    if let Some(KeptLayers::These(layers)) = &student.layers {
        let passed = layers.is_sorted_by(|a, b| a < b) && !layers.is_empty();
        let rule = "must name at least one layer of the teacher's, ascending, and none twice";
        checks.value("student.layers", &format_args!("{layers:?}"), passed, rule)?;
    }
    match &student.vocabulary {
        Some(KeptVocabulary::These(ids)) => {
            let passed = !ids.is_empty() && ids.iter().collect::<BTreeSet<_>>().len() == ids.len();
            let rule = "must name at least one token of the teacher's, and none twice";
            checks.value("student.vocabulary", ids, passed, rule)?;
        }
        Some(KeptVocabulary::Count(most)) => {
            let rule = "must be a number of tokens from 1 on, \"text\" or a list";
            checks.value("student.vocabulary", most, *most > 0, rule)?;
        }
        Some(KeptVocabulary::OfText(_)) | None => {}
    }
    if let Some(target) = &student.target {
        checks.target(target)?;
    }
    if let Layers::These(layers) = &lti.layers {
        let passed = !has_repeated(layers);
        checks.value("lti.layers", &layers, passed, "must name no layer twice")?;
    }
    checks.maps(lti, recipe.trained(), train.steps)?;
    checks.calibration(calibration)?;
    checks.needs(
        "calibration.feed_forward",
        "lti.start = \"calibrated\"",
        lti.start == Start::Calibrated || calibration.feed_forward == FeedForward::Keep,
        "no other start fits feed-forward blocks; set lti.start = \"calibrated\", or leave it out",
    )?;
    checks.loss(loss)?;
    checks.train(train)?;
    let phase2_rate = phase2.as_ref().map(|phase2| phase2.learning_rate(train));
    checks.needs(
        "train.rate",
        "train.learning_rate = \"auto\"",
        train.rate.is_none() || [Some(train.learning_rate), phase2_rate].contains(&Some(LearningRate::Auto)),
        "it multiplies rates that are measured; change train.learning_rate itself, or leave one of them \
         out",
    )?;
    checks.needs(
        "teacher.cache",
        "one train.seq_len",
        teacher.cache.is_none() || train.seq_len.all().len() == 1,
        "a cache holds sequences of one length; set train.seq_len to one number, or leave \
         teacher.cache out",
    )?;
    if let Some(phase2) = phase2 {
        checks.needs(
            "phase2",
            "lti.train = \"maps\"",
            recipe.trained() == Trained::Maps,
            "it begins where maps are folded away, and any other lti.train keeps none; set \
             lti.train = \"maps\", or leave [phase2] out",
        )?;
        checks.phase2(phase2)?;
    }
    weights.check(path)?;
    checks.paths("data.train", &data.train)?;
    checks.paths("data.valid", &data.valid)?;
    checks.on_policy(recipe)
}

/// The checks of the recipe at `path`.
struct Checks<'a> {
    path: &'a Path,
}

impl Checks<'_> {
    fn target(&self, target: &Target) -> Result<(), RecipeError> {
        let limits = target.limits();
        self.needs(
            "student.target",
            "a limit",
            limits.iter().any(Option::is_some),
            "nothing is said of how small the student is to be; set student.target = { parameters = 0.5 }, or \
             file_bytes, kv_bytes_per_token or flops_per_token",
        )?;
        let keys = [
            "student.target.parameters",
            "student.target.file_bytes",
            "student.target.kv_bytes_per_token",
            "student.target.flops_per_token",
        ];
        let limits = keys.into_iter().zip(limits);
        for (key, value) in limits.chain([("student.target.seconds", target.seconds)]) {
            if let Some(value) = value {
                let passed = value > 0.0 && value.is_finite();
                self.value(key, &value, passed, "must be above 0 and finite")?;
            }
        }
        Ok(())
    }

    fn maps(&self, lti: &LtiSection, trained: Trained, steps: usize) -> Result<(), RecipeError> {
        let ranks: Vec<_> = lti.map.kinds().map(|(_, kind)| kind.pairs()).collect();
        self.value(
            "lti.map",
            &format_args!("{}", lti.map),
            ranks.iter().all(|rank| *rank != Some(0)),
            "must have a kronecker rank of at least 1, the factored map",
        )?;
        self.needs(
            "lti.rotary = \"kept\"",
            "lti.map.query and lti.map.key = \"general\"",
            lti.rotary == Rotary::Free || !lti.map.mixes_pairs(),
            "factors mix the features of a head, which the rotary embedding keeps apart; set lti.map = { default = \
             \"factored\", query = \"general\", key = \"general\" }, or lti.rotary = \"free\"",
        )?;
        self.needs(
            "lti.coordinates",
            "lti.train = \"maps\"",
            lti.coordinates.is_none() || trained == Trained::Maps,
            "they are those of maps; set lti.train = \"maps\", or leave lti.coordinates out",
        )?;
        let Some(GrowSection { from, every }) = lti.grow else {
            return Ok(());
        };
        self.count("lti.grow.from", from)?;
        self.count("lti.grow.every", every)?;
        self.needs(
            "lti.grow",
            "lti.train = \"maps\"",
            trained == Trained::Maps,
            "nothing else has pairs to grow by; set lti.train = \"maps\", or leave [lti.grow] out",
        )?;
        let largest = ranks.into_iter().flatten().max().unwrap_or(0);
        self.needs(
            "lti.grow",
            "more pairs than lti.grow.from",
            largest > from,
            "no map has any to join; set lti.map = { kronecker = R } with a larger R, or leave \
             [lti.grow] out",
        )?;
        self.value(
            "lti.grow.every",
            &every,
            (largest - from).saturating_mul(every) < steps,
            "must let the last pair join before train.steps",
        )
    }

    fn calibration(&self, calibration: &CalibrationSection) -> Result<(), RecipeError> {
        let CalibrationSection {
            text: _,
            sequences,
            budget: _,
            rounds: _,
            feed_forward: _,
            refine_steps: _,
            refine_learning_rate,
        } = calibration;
        self.positive("calibration.refine_learning_rate", *refine_learning_rate)?;
        self.value(
            "calibration.sequences",
            sequences,
            *sequences >= CalibrationSection::LEAST,
            "must be at least 4, to fit on some and choose by the others",
        )
    }

    fn on_policy(&self, recipe: &Recipe) -> Result<(), RecipeError> {
        let DataSection {
            train: _,
            valid: _,
            field: _,
            documents: _,
            loss_on: _,
            on_policy,
            on_policy_temperature,
            on_policy_prompt,
            on_policy_every,
        } = &recipe.data;
        self.value(
            "data.on_policy",
            on_policy,
            is_fraction(*on_policy),
            FRACTION,
        )?;
        self.positive("data.on_policy_temperature", *on_policy_temperature)?;
        self.count("data.on_policy_every", *on_policy_every)?;
        if let Some(prompt) = on_policy_prompt {
            self.value(
                "data.on_policy_prompt",
                prompt,
                (1..recipe.train.seq_len.shortest()).contains(prompt),
                "must be at least 1, and leave something of the shortest train.seq_len to be written",
            )?;
        }
        if *on_policy == 0.0 {
            return Ok(());
        }
        self.needs(
            "data.on_policy",
            "a teacher that runs",
            recipe.teacher.cache.is_none(),
            "its top tokens in files are those of the training text, not of what the student writes; \
             leave teacher.cache out, or set data.on_policy = 0",
        )?;
        let alpha = &recipe.loss.alpha;
        self.needs(
            "data.on_policy",
            "loss.alpha = 1",
            both_ends(alpha, |alpha| alpha == 1.0),
            "what the student wrote is no text to learn word by word; leave loss.alpha out, or set \
             data.on_policy = 0",
        )
    }

    fn loss(&self, loss: &LossSection) -> Result<(), RecipeError> {
        let LossSection {
            alpha,
            temperature,
            divergence,
            sparse: _,
            chunk_tokens,
            feature,
        } = loss;
        let passed = both_ends(alpha, is_fraction);
        self.schedule("loss.alpha", alpha, passed, FRACTION)?;
        let passed = both_ends(temperature, is_positive);
        self.schedule("loss.temperature", temperature, passed, POSITIVE)?;
        if let Divergence::JensenShannon { beta: share } | Divergence::SkewedKl { skew: share } =
            *divergence
        {
            let text = divergence::describe(divergence);
            self.value(
                "loss.divergence",
                &format_args!("{text}"),
                share > 0.0 && share < 1.0,
                "must have a share above 0 and below 1",
            )?;
        }
        self.count("loss.chunk_tokens", *chunk_tokens)?;
        feature.as_ref().map_or(Ok(()), |it| self.feature(it))
    }

    fn feature(&self, feature: &FeatureSection) -> Result<(), RecipeError> {
        let FeatureSection {
            weight,
            kind: _,
            pairs,
            projector: _,
        } = feature;
        self.schedule(
            "loss.feature.weight",
            weight,
            both_ends(weight, is_not_negative) && weight.range().1 > 0.0,
            "must be finite and above 0; one end of a schedule may be 0",
        )?;
        let LayerPairs::These(pairs) = pairs else {
            return Ok(());
        };
        let numbers: Vec<[usize; 2]> = pairs.iter().copied().map(Into::into).collect();
        self.value(
            "loss.feature.pairs",
            &numbers,
            !pairs.is_empty() && !has_repeated(pairs),
            "must name at least one pair, and none twice",
        )
    }

    fn train(&self, train: &TrainSection) -> Result<(), RecipeError> {
        let TrainSection {
            steps,
            batch_size,
            accumulate,
            seq_len,
            precision: _,
            learning_rate,
            rate,
            optimizer: _,
            warmup_fraction,
            decay: _,
            final_lr_fraction,
            betas,
            eps,
            weight_decay,
            grad_clip,
            seed: _,
            log_every,
            eval_sequences,
            eval_every,
            checkpoint_every,
            keep_checkpoints,
            patience,
            tensorboard: _,
        } = train;
        self.count("train.steps", *steps)?;
        self.count("train.batch_size", *batch_size)?;
        self.count("train.accumulate", *accumulate)?;
        if !batch_size.is_multiple_of(*accumulate) {
            let rule = format!(
                "is {accumulate}, which does not divide train.batch_size, {batch_size}: set it to a \
                 divisor of that, or change train.batch_size"
            );
            return Err(self.refused("train.accumulate", rule));
        }
        self.seq_len(seq_len, *batch_size, *accumulate)?;
        self.rate("train.learning_rate", *learning_rate)?;
        if let Some(rate) = rate {
            self.positive("train.rate", *rate)?;
        }
        self.fraction("train.warmup_fraction", *warmup_fraction)?;
        if let Some(fraction) = final_lr_fraction {
            self.fraction("train.final_lr_fraction", *fraction)?;
        }
        self.value(
            "train.betas",
            betas,
            betas.iter().all(|beta| is_below_one(*beta)),
            "must hold numbers from 0 to below 1",
        )?;
        if let Some(eps) = eps {
            self.positive("train.eps", *eps)?;
        }
        self.value(
            "train.weight_decay",
            weight_decay,
            is_not_negative(*weight_decay),
            "must be at least 0 and finite",
        )?;
        if let Some(norm) = grad_clip {
            let rule = "must be positive (inf: no clipping)";
            self.value("train.grad_clip", norm, *norm > 0.0, rule)?;
        }
        self.count("train.log_every", *log_every)?;
        self.count("train.eval_sequences", *eval_sequences)?;
        if let Some(steps) = eval_every {
            self.count("train.eval_every", *steps)?;
        }
        if let Some(steps) = checkpoint_every {
            self.count("train.checkpoint_every", *steps)?;
        }
        self.count("train.keep_checkpoints", *keep_checkpoints)?;
        if let Some(evaluations) = patience {
            self.count("train.patience", *evaluations)?;
        }
        Ok(())
    }

    /// Of each length, a whole number of sequences makes a micro-batch.
    fn seq_len(
        &self,
        seq_len: &SeqLens,
        batch_size: usize,
        accumulate: usize,
    ) -> Result<(), RecipeError> {
        let key = "train.seq_len";
        let lens = seq_len.all();
        let is_ascending = !lens.is_empty() && lens.windows(2).all(|pair| pair[0] < pair[1]);
        let rule = "must name at least one length, the shortest first and none twice";
        self.value(key, &lens, is_ascending, rule)?;
        let shortest = seq_len.shortest();
        let rule = "must be at least 2, to predict a token";
        self.value(key, &shortest, shortest >= 2, rule)?;
        let sequences = batch_size / accumulate;
        let tokens = sequences.saturating_mul(shortest);
        match lens.iter().find(|len| !tokens.is_multiple_of(**len)) {
            None => Ok(()),
            Some(len) => {
                let fits = lens.iter().fold(1, |all: usize, len| {
                    let fits = len / gcd(*len, shortest);
                    (all / gcd(all, fits)).saturating_mul(fits)
                });
                let fits = fits.saturating_mul(accumulate);
                let of_what = match accumulate {
                    1 => "step",
                    _ => "micro-batch",
                };
                let rule = format!(
                    "is {lens:?}, but the {sequences} x {shortest} tokens of a {of_what} make no whole \
                     number of sequences of {len}, and every length has as many tokens: set \
                     train.batch_size to a multiple of {fits}, or choose other lengths"
                );
                Err(self.refused(key, rule))
            }
        }
    }

    fn phase2(&self, phase2: &Phase2Section) -> Result<(), RecipeError> {
        let Phase2Section {
            train: _,
            steps,
            learning_rate,
            warmup_fraction,
            final_lr_fraction,
            plateau,
        } = phase2;
        self.count("phase2.steps", *steps)?;
        if let Some(rate) = learning_rate {
            self.rate("phase2.learning_rate", *rate)?;
        }
        self.fraction("phase2.warmup_fraction", *warmup_fraction)?;
        if let Some(fraction) = final_lr_fraction {
            self.fraction("phase2.final_lr_fraction", *fraction)?;
        }
        if let Some(Plateau {
            window,
            improvement,
        }) = plateau
        {
            self.count("phase2.plateau.window", *window)?;
            self.value(
                "phase2.plateau.improvement",
                improvement,
                is_below_one(*improvement),
                "must be from 0 to below 1",
            )?;
        }
        Ok(())
    }

    fn count(&self, key: &'static str, value: usize) -> Result<(), RecipeError> {
        self.value(key, &value, value >= 1, "must be at least 1")
    }

    fn fraction(&self, key: &'static str, value: f64) -> Result<(), RecipeError> {
        self.value(key, &value, is_fraction(value), FRACTION)
    }

    fn rate(&self, key: &'static str, value: LearningRate) -> Result<(), RecipeError> {
        match value {
            LearningRate::Auto => Ok(()),
            LearningRate::Number(rate) => self.positive(key, rate),
        }
    }

    fn positive(&self, key: &'static str, value: f64) -> Result<(), RecipeError> {
        self.value(key, &value, is_positive(value), POSITIVE)
    }

    fn schedule(
        &self,
        key: &'static str,
        value: &Schedule,
        passed: bool,
        rule: &'static str,
    ) -> Result<(), RecipeError> {
        let text = schedule::describe(value);
        self.value(key, &format_args!("{text}"), passed, rule)
    }

    fn paths(&self, key: &'static str, paths: &[PathBuf]) -> Result<(), RecipeError> {
        self.value(
            key,
            &paths,
            !paths.is_empty() && paths.iter().all(|path| !path.as_os_str().is_empty()),
            "must name at least one path, and none may be empty",
        )
    }

    fn value(
        &self,
        key: &'static str,
        value: &dyn fmt::Debug,
        passed: bool,
        rule: &'static str,
    ) -> Result<(), RecipeError> {
        match passed {
            true => Ok(()),
            false => Err(self.refused(key, format!("is {value:?}: it {rule}"))),
        }
    }

    fn needs(
        &self,
        key: &'static str,
        needs: &'static str,
        met: bool,
        reason: &'static str,
    ) -> Result<(), RecipeError> {
        match met {
            true => Ok(()),
            false => Err(self.refused(key, format!("needs {needs}: {reason}"))),
        }
    }

    fn refused(&self, key: &str, rule: String) -> RecipeError {
        RecipeError::Refused {
            path: self.path.to_path_buf(),
            key: key.to_owned(),
            rule,
        }
    }
}

const FRACTION: &str = "must be from 0 to 1";
const POSITIVE: &str = "must be positive and finite";

fn is_fraction(value: f64) -> bool {
    (0.0..=1.0).contains(&value)
}

fn is_below_one(value: f64) -> bool {
    (0.0..1.0).contains(&value)
}

fn is_positive(value: f64) -> bool {
    value > 0.0 && value.is_finite()
}

fn is_not_negative(value: f64) -> bool {
    value >= 0.0 && value.is_finite()
}

/// Whether the first and the last value pass. Those between lie between them.
fn both_ends(schedule: &Schedule, passes: fn(f64) -> bool) -> bool {
    passes(schedule.start()) && schedule.to().is_none_or(|(_, end)| passes(end))
}

/// The greatest common divisor.
const fn gcd(a: usize, b: usize) -> usize {
    match b {
        0 => a,
        _ => gcd(b, a % b),
    }
}

fn has_repeated<T: PartialEq>(items: &[T]) -> bool {
    let repeated = |(i, item)| items[..i].contains(item);
    items.iter().enumerate().any(repeated)
}
