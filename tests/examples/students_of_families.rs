//! Exports a student of each family's tiny model, half its heads, and its logits beside it, for
//! `fixtures/families/verify.py`:
//!
//! `cargo run -p burn-lti-tests --features flex --example students_of_families FOLDER`

use std::path::PathBuf;

use burn_lti::collapse::collapse;
use burn_lti::map::KernelPrecision;
use burn_lti_llama::config::LlamaConfig;
use burn_lti_llama::distill::learning_student;
use burn_lti_llama::hf::{self, NewTensor, WeightType, write_weights};
use burn_lti_llama::model::PlainLlama;
use burn_lti_llama::plan::Plan;
use burn_lti_llama::recipe::Recipe;
use burn_lti_tests::backend::Flex;
use burn_lti_tests::llama::{FAMILIES, causal_batch, family_dir};

/// Tokens of the one sequence: those after the special ones.
const TOKENS: std::ops::Range<i64> = 4..28;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args_os()
        .nth(1)
        .ok_or("give a folder to write to")?;
    let (folder, device) = (PathBuf::from(folder), Default::default());
    for name in FAMILIES {
        let (teacher, dir) = (family_dir(name), folder.join(name));
        std::fs::create_dir_all(&dir)?;
        let text = format!(
            "teacher.path = {teacher:?}\nstudent = {{ heads = 2, kv_heads = 1 }}\ntrain = {{ steps = 1, seq_len = 16 }}\n\
             lti = {{ start = 'grouped', map = 'factored', train = 'maps' }}\n\
             data = {{ train = ['a'], valid = ['b'] }}"
        );
        let recipe = Recipe::parse(&text, &dir, &[])?;
        let plan = Plan::new(&recipe, &LlamaConfig::from_dir(&teacher)?)?;
        let tensors = hf::load_tensors(&teacher, &plan.teacher, WeightType::F32, &device)?;
        let student = learning_student::<burn::backend::Autodiff<Flex>>(&plan, &tensors, &device)?;
        let skeleton = PlainLlama::init(&plan.student, &device);
        let student = collapse(&student, KernelPrecision::Default)?.into_plain(skeleton)?;
        hf::export(&student, WeightType::F32, &teacher, &dir)?;
        let tokens: Vec<i64> = TOKENS.collect();
        let logits = student.logits(&causal_batch([1, tokens.len()], &tokens, &device));
        let (shape, values) = (logits.dims(), logits.into_data().to_vec::<f32>());
        let values = values.map_err(|error| format!("{error:?}"))?;
        let logits = NewTensor::new("logits", shape, || Ok(values));
        write_weights(&dir.join("logits_of_student.st"), WeightType::F32, [logits])?;
        println!("{}", dir.display());
    }
    Ok(())
}
