//! A few training steps of a student of a Llama. Prints a line of JSON.

#![allow(clippy::print_stdout)] // a program prints

use std::path::PathBuf;

use anyhow::Result;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::kernels::ProductPrecision;
use burn_lti::map::MapKind;
use burn_lti_benches::backend::BackendName;
use burn_lti_benches::distillation::{Lesson, Shape};
use burn_lti_benches::measurement::Measurement;
use burn_lti_benches::{memory, on_backend};
use clap::{Parser, ValueEnum};

/// A few training steps of a student of a Llama, on text that is made up. Prints a line of JSON: losses,
/// seconds, peaks of memory.
#[derive(Debug, Parser)]
struct Arguments {
    /// The teacher's Hugging Face folder; its tokenizer is not read.
    #[arg(long, value_name = "DIR")]
    teacher: PathBuf,
    /// Query heads of the student.
    #[arg(long)]
    heads: usize,
    /// Key/value heads of the student.
    #[arg(long)]
    kv_heads: usize,
    /// The form of the maps.
    #[arg(long, value_enum, default_value = "factored")]
    map: Map,
    /// Sequences of a step.
    #[arg(long, default_value_t = 2)]
    batch_size: usize,
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 256)]
    seq_len: usize,
    /// How many steps.
    #[arg(long, default_value_t = 6)]
    steps: usize,
    /// In which type projections are multiplied.
    #[arg(long, value_enum, default_value = "float32")]
    precision: Precision,
    /// The backend to compute on.
    #[arg(long, value_enum)]
    backend: BackendName,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Map {
    Factored,
    General,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Precision {
    Float32,
    #[value(name = "bfloat16")]
    BFloat16,
}

fn main() -> Result<()> {
    memory::as_in_the_command();
    let arguments = Arguments::parse();
    let measured = on_backend!(arguments.backend, measure(&arguments))?;
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}

fn measure<A: AutodiffBackend>(arguments: &Arguments) -> Result<Measurement> {
    let device = A::Device::default();
    let shape = Shape {
        heads: arguments.heads,
        kv_heads: arguments.kv_heads,
        map: match arguments.map {
            Map::Factored => MapKind::Factored,
            Map::General => MapKind::General,
        },
        batch_size: arguments.batch_size,
        seq_len: arguments.seq_len,
        precision: match arguments.precision {
            Precision::Float32 => ProductPrecision::Float32,
            Precision::BFloat16 => ProductPrecision::BFloat16,
        },
    };
    let lesson = Lesson::<A>::load(&arguments.teacher, &shape, &device)?;
    let mut training = lesson.training()?;
    Measurement::of_steps::<A>(arguments.steps, &device, || training.step())
}
