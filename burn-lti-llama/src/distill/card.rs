//! The student's `README.md`: a model card for the Hub.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use burn_lti::files::{FileError, write_atomically};

use super::Summary;
use crate::config::hub_repository_of;
use crate::gguf::is_gguf;
use crate::plan::Plan;
use crate::recipe::Recipe;

/// The file in a model's folder.
const CARD: &str = "README.md";

/// Writes the card of the student in `dir`: of which teacher it is, how it was made, and what it is worth.
pub(super) fn write(
    dir: &Path,
    recipe: &Recipe,
    plan: &Plan,
    summary: &Summary,
) -> Result<(), FileError> {
    let teacher = &recipe.teacher.path;
    let repository = plan.teacher.source.repository().map(str::to_owned);
    let repository = repository.or_else(|| hub_repository_of(teacher));
    let folder = match is_gguf(teacher) {
        true => teacher.file_stem(),
        false => teacher.file_name(),
    };
    let folder = folder.unwrap_or_default().to_string_lossy();
    let name = repository.as_deref().unwrap_or(&folder);
    let mut card =
        String::from("---\nlibrary_name: transformers\ntags: [distillation, burn-lti]\n");
    if let Some(repository) = &repository {
        let _ = writeln!(card, "base_model: {repository}");
    }
    if let Some(licence) = front_matter(teacher, "license:") {
        let _ = writeln!(card, "license: {licence}");
    }
    let (heads, was) = (plan.student.axes(), plan.teacher.axes());
    let width = match heads.d_model == was.d_model {
        true => String::new(),
        false => format!(" width {} instead of {},", heads.d_model, was.d_model),
    };
    let _ = write!(
        card,
        "---\n\n# A smaller {name}\n\nMade of {name} by [burn-lti]({}): {} query and {} key/value heads of {} \
         instead of {} and {} of {},{width} {} of {} parameters, {} of {} bytes of key/value cache a token in float32. \
         Start `{}`, then {} steps on {} tokens, of which the student of step {} was kept. `recipe.toml` of the \
         run has every setting.\n\n| on {} held-out tokens | |\n|---|---|\n",
        env!("CARGO_PKG_REPOSITORY"),
        heads.query.heads,
        heads.key_value.heads,
        heads.query.head_dim,
        was.query.heads,
        was.key_value.heads,
        was.query.head_dim,
        summary.student_parameters,
        summary.teacher_parameters,
        summary.student_kv_cache_bytes_per_token,
        summary.teacher_kv_cache_bytes_per_token,
        plan.start,
        summary.steps,
        summary.tokens,
        summary.student_step,
        summary.eval_tokens,
    );
    for (what, value) in [
        (
            "KL to the teacher before training, nats per token",
            summary.kl_start,
        ),
        ("KL to the teacher", summary.kl_end),
        ("cross-entropy", summary.student_ce),
        ("cross-entropy of the teacher", summary.teacher_ce),
        (
            "likeliest token that of the teacher, as a share",
            summary.top1_agreement,
        ),
    ] {
        if let Some(value) = value {
            let _ = writeln!(card, "| {what} | {value:.4} |");
        }
    }
    if let Some(vocabulary) = &plan.vocabulary {
        let _ = writeln!(
            card,
            "\nIt knows {} of the {} tokens of {name}, whose distribution it is compared with is that over these.",
            vocabulary.kept, vocabulary.of
        );
    }
    if let accepted @ [_, ..] = plan.teacher.source.accepted() {
        let _ = writeln!(
            card,
            "\nburn-lti does not know these fields of the teacher's config.json, which may change what it computes, and \
             read over them because it was told to: `{}`.",
            accepted.join("`, `")
        );
    }
    write_atomically(&dir.join(CARD), card.as_bytes())
}

/// What a line at the top of the teacher's own card says.
fn front_matter(teacher: &Path, key: &str) -> Option<String> {
    let card = fs::read_to_string(teacher.join(CARD)).ok()?;
    let (front, _) = card.strip_prefix("---\n")?.split_once("\n---")?;
    let line = front.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.trim().to_owned()).filter(|line| !line.is_empty())
}
