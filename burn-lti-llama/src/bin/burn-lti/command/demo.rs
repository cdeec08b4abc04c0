//! `burn-lti demo`

use std::path::Path;

use anyhow::{Context, Result};
use burn::tensor::backend::AutodiffBackend;
use burn_lti_llama::demo::{DemoReport, demo};

use crate::args::DemoArgs;
use crate::backend::on_backend;
use crate::progress::{self, number, percent};
use crate::streams::say;

pub(crate) fn run(args: &DemoArgs) -> Result<()> {
    let report = match &args.out {
        Some(dir) => on_backend!(args.backend, on(dir, args))?,
        None => {
            let dir = tempfile::tempdir().context("no temporary folder for the demo")?;
            on_backend!(args.backend, on(dir.path(), args))?
        }
    };
    if args.json.json {
        say!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report, args.out.as_deref());
    }
    Ok(())
}

fn on<A: AutodiffBackend>(device: &A::Device, dir: &Path, args: &DemoArgs) -> Result<DemoReport> {
    Ok(demo::<A>(dir, args.seed, device, &progress::listener())?)
}

fn print(report: &DemoReport, dir: Option<&Path>) {
    say!();
    say!(
        "teacher: {} parameters, cross-entropy {} nats/token, key/value cache {} bytes/token",
        report.teacher_parameters,
        number(report.teacher_ce),
        report.teacher_kv_cache_bytes_per_token,
    );
    say!();
    say!("start     KL before   KL after   top-1    parameters   cache bytes/token   seconds");
    for student in &report.students {
        let summary = &student.summary;
        say!(
            "{:<9} {:>9}   {:>8}   {:>6}   {:>10}   {:>17}   {:>7.1}",
            student.start.to_string(),
            number(summary.kl_start),
            number(summary.kl_end),
            percent(summary.top1_agreement),
            summary.student_parameters,
            summary.student_kv_cache_bytes_per_token,
            summary.total_seconds,
        );
    }
    say!();
    say!("KL is to the teacher, in nats per token, on stories that none of them has seen.");
    match dir {
        Some(dir) => say!("everything is in {}", dir.display()),
        None => say!("keep the models with --out DIR"),
    }
}
