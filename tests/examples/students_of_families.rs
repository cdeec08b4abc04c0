//! Exports a student of each family's tiny model, half its heads, and what it computes beside it, for
//! `fixtures/families/verify.py`:
//!
//! `cargo run -p burn-lti-tests --features flex --example students_of_families FOLDER`
//!
//! That is its logits, its likeliest text, and how far it is from its teacher as it begins: the KL on tokens that no
//! start has read, with grouped heads, which is the student that is exported, and calibrated on random tokens.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::backend::Autodiff;
use burn::data::dataloader::DataLoader;
use burn::module::AutodiffModule;
use burn_lti::calibration::{Calibration, calibrate};
use burn_lti::collapse::collapse;
use burn_lti::decoder::{CausalLm, TokenBatch};
use burn_lti::map::KernelPrecision;
use burn_lti::tensors::TensorSet;
use burn_lti_llama::config::LlamaConfig;
use burn_lti_llama::data::{loader, pack};
use burn_lti_llama::distill::learning_student;
use burn_lti_llama::eval::evaluate;
use burn_lti_llama::hf::{self, NewTensor, WeightType, write_weights};
use burn_lti_llama::model::{Generation, PlainLlama, Sampling};
use burn_lti_llama::plan::Plan;
use burn_lti_llama::recipe::Recipe;
use burn_lti_tests::backend::Flex;
use burn_lti_tests::llama::{FAMILIES, causal_batch, family_dir};
use burn_lti_tests::numbers::Numbers;

type A = Autodiff<Flex>;

/// Tokens of the one sequence: those after the special ones.
const TOKENS: std::ops::Range<i64> = 4..28;
/// Of these, as many are the beginning of the likeliest text, and as many go on with it.
const PROMPT: usize = 8;
const NEW_TOKENS: usize = 12;
/// Tokens of a sequence that is calibrated on, or compared.
const LENGTH: usize = 24;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os()
        .nth(1)
        .ok_or("give a folder to write to")?;
    let (folder, device) = (PathBuf::from(folder), Default::default());
    for name in FAMILIES {
        let (teacher, dir) = (family_dir(name), folder.join(name));
        fs::create_dir_all(&dir)?;
        let plan = plan(&teacher, &dir, "grouped")?;
        let tensors = hf::load_tensors(&teacher, &plan.teacher, WeightType::F32, &device)?;
        let student = learning_student::<A>(&plan, &tensors, &device)?;
        let skeleton = PlainLlama::<A>::init(&plan.student, &device);
        let student = collapse(&student, KernelPrecision::Default)?.into_plain(skeleton)?;
        let student = student.valid();
        hf::export(&student, WeightType::F32, &teacher, &dir)?;
        let tokens: Vec<i64> = TOKENS.collect();
        let logits = student.logits(&causal_batch([1, tokens.len()], &tokens, &device));
        let (shape, values) = (logits.dims(), logits.into_data().to_vec::<f32>());
        let values = values.map_err(|error| format!("{error:?}"))?;
        let logits = NewTensor::new("logits", shape, || Ok(values));
        write_weights(&dir.join("logits_of_student.st"), WeightType::F32, [logits])?;

        let of_teacher = hf::plain_from_tensors(&plan.teacher, &tensors, &device)?;
        let grouped = kl(&student, &of_teacher)?;
        let calibrated = calibrated_kl(&of_teacher, &tensors, &teacher, &dir)?;
        let prompt: Vec<u32> = tokens[..PROMPT].iter().map(|id| *id as u32).collect();
        let generation = Generation::new(NEW_TOKENS, Sampling::Greedy);
        let greedy = generation.run(&student.packed(), &prompt, |_| true)?;
        let found = serde_json::json!({
            "greedy": greedy, "kl_grouped": grouped, "kl_calibrated": calibrated
        });
        fs::write(dir.join("student.json"), found.to_string())?;
        println!("{}", dir.display());
    }
    Ok(())
}

fn plan(teacher: &Path, dir: &Path, start: &str) -> Result<Plan, Box<dyn Error>> {
    let text = format!(
        "teacher.path = {teacher:?}\nstudent = {{ heads = 2, kv_heads = 1 }}\ntrain = {{ steps = 1, seq_len = 16 }}\n\
         lti = {{ start = '{start}', map = 'factored', train = 'maps' }}\n\
         data = {{ train = ['a'], valid = ['b'] }}"
    );
    let recipe = Recipe::parse(&text, dir, &[])?;
    Ok(Plan::new(&recipe, &LlamaConfig::from_dir(teacher)?)?)
}

/// Random sequences, none of whose tokens is special.
fn text(sequences: usize, vocab: usize, seed: u64) -> Arc<dyn DataLoader<Flex, TokenBatch<Flex>>> {
    let special = TOKENS.start as usize;
    let ids = Numbers::new(seed).ids(sequences * LENGTH, vocab - special);
    let ids: Vec<u32> = ids
        .iter()
        .map(|id| (*id as usize + special) as u32)
        .collect();
    let documents: Vec<Vec<u32>> = ids.chunks(LENGTH).map(<[u32]>::to_vec).collect();
    loader(pack(documents, LENGTH), 8, None, &Default::default())
}

fn kl(student: &impl CausalLm<Flex>, teacher: &PlainLlama<Flex>) -> Result<f64, Box<dyn Error>> {
    let found = evaluate(
        student,
        teacher,
        &text(64, teacher.config().vocab_size, 2),
        |_, _| {},
    );
    Ok(found.kl.ok_or("no token was compared")?)
}

fn calibrated_kl(
    teacher: &PlainLlama<Flex>,
    tensors: &TensorSet<Flex>,
    folder: &Path,
    dir: &Path,
) -> Result<f64, Box<dyn Error>> {
    let device = Default::default();
    let plan = plan(folder, dir, "calibrated")?;
    let calibration = Calibration::new(&plan.spec, plan.student.axes());
    let batches = text(256, plan.teacher.vocab_size, 1);
    let student_with =
        |start: &TensorSet<Flex>| learning_student::<A>(&plan, &tensors.with(start), &device);
    let start = calibrate::<A, _, _, _>(&calibration, teacher, &batches, student_with, |_| {})?;
    let student = learning_student::<A>(&plan, &tensors.with(&start.tensors), &device)?;
    let skeleton = PlainLlama::<A>::init(&plan.student, &device);
    let student = collapse(&student, KernelPrecision::Default)?.into_plain(skeleton)?;
    kl(&student.valid(), teacher)
}
