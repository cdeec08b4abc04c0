//! `burn-lti eval`

use std::num::NonZeroUsize;
use std::path::Path;

use anyhow::{Result, bail};
use burn::tensor::backend::AutodiffBackend;
use burn_lti_llama::config::LlamaConfig;
use burn_lti_llama::data;
use burn_lti_llama::distill::Event;
use burn_lti_llama::eval::{ByPosition, Evaluation, evaluate, evaluate_by_position};
use burn_lti_llama::hf::ModelFiles;

use crate::args::EvalArgs;
use crate::backend::on_backend;
use crate::progress::{self, number, percent};
use crate::streams::{say, tell};

pub(crate) fn run(args: &EvalArgs) -> Result<()> {
    let found = on_backend!(args.backend, on(args))?;
    if args.json.json {
        let json = match &found {
            Found::Whole(evaluation) => serde_json::to_string_pretty(evaluation),
            Found::ByPosition(ranges) => serde_json::to_string_pretty(ranges),
        };
        say!("{}", json?);
        return Ok(());
    }
    match &found {
        Found::Whole(evaluation) => print(evaluation),
        Found::ByPosition(ranges) => {
            print(&ranges.all);
            print_ranges(ranges);
        }
    }
    Ok(())
}

enum Found {
    Whole(Evaluation),
    ByPosition(ByPosition),
}

fn on<A: AutodiffBackend>(device: &A::Device, args: &EvalArgs) -> Result<Found> {
    let accept = &args.accept;
    let of_model = |dir: &Path| {
        let config = LlamaConfig::from_dir_accepting(dir, &accept.accept)?;
        anyhow::Ok(ModelFiles::new(dir, config))
    };
    let (teacher, student) = (of_model(&args.teacher)?, of_model(&args.student)?);
    LlamaConfig::check_accepted(&accept.accept, &[teacher.config(), student.config()])?;
    let teacher = on_the_tokens_of(teacher, &student)?;
    let (config, tokenizer) = (teacher.config(), teacher.tokenizer()?);
    let seq_len = args.seq_len.get();
    if seq_len > config.max_position_embeddings {
        bail!(
            "--seq-len is {seq_len}, but the teacher reads at most {} tokens",
            config.max_position_embeddings
        );
    }
    let mut sequences = data::load_sequences(
        &args.text,
        args.field.as_deref(),
        args.loss_on,
        &tokenizer,
        &[seq_len],
        args.documents,
    )?;
    sequences.truncate(args.max_sequences.map_or(usize::MAX, NonZeroUsize::get));
    let load = |model: &ModelFiles| model.load::<A::InnerBackend>(args.dtype.dtype, device);
    let (teacher, student) = (load(&teacher)?, load(&student)?);
    let batches = data::loader(sequences, args.batch_size.get(), None, device);
    let listener = progress::listener();
    listener(Event::Stage("evaluating"));
    let done = |done, all| listener(Event::Advanced(done, all));
    let found = match args.by_position {
        false => Found::Whole(evaluate(&student, &teacher, &batches, done)),
        true => Found::ByPosition(evaluate_by_position(&student, &teacher, &batches, done)),
    };
    let teacher_is = format!("the teacher in {}", args.teacher.display());
    let student_is = format!("the student in {}", args.student.display());
    let (teacher, student) = (
        (teacher_is.as_str(), &teacher),
        (student_is.as_str(), &student),
    );
    found.all().check_finite(teacher, student, &batches)?;
    Ok(found)
}

/// The teacher, on the tokens of a student that has some of them.
fn on_the_tokens_of(teacher: ModelFiles, student: &ModelFiles) -> Result<ModelFiles> {
    let [of_teacher, of_student] = [&teacher, student].map(|model| model.config().vocab_size);
    if of_teacher == of_student {
        return Ok(teacher);
    }
    let kept = teacher.tokenizer()?.kept_by(&student.tokenizer()?)?;
    match kept.filter(|kept| kept.ids().len() == of_student) {
        Some(kept) => {
            tell!(
                "the teacher is compared on the {of_student} of its {of_teacher} tokens that the student has"
            );
            Ok(teacher.with_tokens(kept))
        }
        None => bail!(
            "the teacher knows {of_teacher} tokens and the student {of_student}, which are not some of them: they \
             cannot be compared token by token"
        ),
    }
}

impl Found {
    /// Of all tokens.
    const fn all(&self) -> &Evaluation {
        match self {
            Self::Whole(evaluation) => evaluation,
            Self::ByPosition(ranges) => &ranges.all,
        }
    }
}

fn print(evaluation: &Evaluation) {
    say!("KL               {} nats/token", number(evaluation.kl));
    say!("top-1 agreement  {}", percent(evaluation.top1_agreement));
    say!(
        "student          cross-entropy {}, perplexity {}",
        number(evaluation.student_ce),
        number(evaluation.student_perplexity)
    );
    say!(
        "teacher          cross-entropy {}, perplexity {}",
        number(evaluation.teacher_ce),
        number(evaluation.teacher_perplexity)
    );
    say!("tokens           {}", evaluation.tokens);
}

fn print_ranges(ranges: &ByPosition) {
    let row = |cells: [String; 6]| {
        let [positions, kl, agreement, student, teacher, tokens] = cells;
        say!("{positions:<11}{kl:>8}{agreement:>17}{student:>12}{teacher:>12}{tokens:>10}");
    };
    say!();
    row([
        "positions",
        "KL",
        "top-1 agreement",
        "student CE",
        "teacher CE",
        "tokens",
    ]
    .map(String::from));
    for range in &ranges.by_position {
        let found = &range.evaluation;
        row([
            format!("{}-{}", range.first, range.last),
            number(found.kl),
            percent(found.top1_agreement),
            number(found.student_ce),
            number(found.teacher_ce),
            found.tokens.to_string(),
        ]);
    }
}
