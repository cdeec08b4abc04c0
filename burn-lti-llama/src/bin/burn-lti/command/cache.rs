//! `burn-lti cache-teacher` and `burn-lti verify-cache`

use std::path::Path;

use anyhow::{Context, Result};
use burn::tensor::backend::AutodiffBackend;
use burn_lti::top_k::{CacheHeader, LogProbType};
use burn_lti_llama::distill::{CacheCheck, CacheOrder, Event, cache_teacher, verify_cache};
use burn_lti_llama::recipe::Recipe;
use serde_json::json;

use crate::args::{CacheTeacherArgs, VerifyCacheArgs};
use crate::backend::on_backend;
use crate::progress;
use crate::streams::say;

pub(crate) fn write(args: &CacheTeacherArgs) -> Result<()> {
    let recipe = args.recipe.load()?;
    let header = on_backend!(args.backend, write_on(&recipe, args))?;
    let CacheHeader {
        rows, seq_len, k, ..
    } = header;
    if args.json.json {
        say!("{:#}", json!({ "rows": rows, "seq_len": seq_len, "k": k }));
    } else {
        say!(
            "{rows} sequences of {seq_len} tokens, {k} of each: {}",
            args.out.display()
        );
        say!("use it with `teacher.cache` in the recipe");
    }
    Ok(())
}

fn write_on<A: AutodiffBackend>(
    device: &A::Device,
    recipe: &Recipe,
    args: &CacheTeacherArgs,
) -> Result<CacheHeader> {
    let order = CacheOrder {
        k: args.top_k.get(),
        log_prob_type: match args.half {
            true => LogProbType::F16,
            false => LogProbType::F32,
        },
    };
    let listener = progress::listener();
    listener(Event::Stage("asking the teacher"));
    let header = cache_teacher::<A::InnerBackend>(recipe, order, &args.out, device, &listener)?;
    Ok(header)
}

pub(crate) fn verify(args: &VerifyCacheArgs) -> Result<()> {
    let recipe = args.recipe.load()?;
    let named = args.cache.clone().or_else(|| recipe.teacher.cache.clone());
    let dir = named.context("give --cache DIR: the recipe has no teacher.cache")?;
    let check = on_backend!(args.backend, verify_on(&recipe, &dir, args))?;
    if args.json.json {
        say!("{}", serde_json::to_string_pretty(&check)?);
    } else {
        say!(
            "{} sequences agree with the teacher: log-probabilities to {:.1e} nats, {} other first choices",
            check.rows,
            check.largest_difference,
            check.other_choices
        );
    }
    Ok(())
}

fn verify_on<A: AutodiffBackend>(
    device: &A::Device,
    recipe: &Recipe,
    dir: &Path,
    args: &VerifyCacheArgs,
) -> Result<CacheCheck> {
    let listener = progress::listener();
    listener(Event::Stage("asking the teacher again"));
    let done = |done, all| listener(Event::Advanced(done, all));
    let every = args.every.get();
    Ok(verify_cache::<A::InnerBackend>(
        recipe, dir, every, device, done,
    )?)
}
