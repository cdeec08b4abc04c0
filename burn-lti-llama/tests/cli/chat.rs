//! Instruct models: what is asked by a chat template, and what is learned from conversations.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use crate::workshop::Workshop;

const TEMPLATE: &str = "{{ bos_token }} {% for message in messages %}{{ message.content }} {% endfor %}\
                        {% if add_generation_prompt %}w9{% endif %}";

fn generate<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let common = ["generate", "--model", "teacher", "--max-tokens", "4"];
    [&common[..], more].concat()
}

fn instruct() -> Workshop {
    let workshop = Workshop::new();
    fs::write(workshop.path("teacher/chat_template.jinja"), TEMPLATE).unwrap();
    workshop
}

#[test]
fn a_question_is_put_into_the_template_and_the_answer_alone_is_printed() {
    let workshop = instruct();
    let plain = workshop.succeed(&generate(&["--prompt", "w7 w5 w9"]));
    let answer = plain
        .strip_prefix("w7 w5 w9")
        .expect("the prompt comes first");
    let system = ["--chat", "--system", "w7"];
    let asked = workshop.succeed(&generate(&[&system[..], &["--prompt", "w5"]].concat()));
    assert_eq!(asked.trim(), answer.trim());
    // Line by line, the first alone.
    let mut command = workshop.command(&generate(&system));
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"w5\n\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), asked);
}

#[test]
fn a_model_without_a_template_cannot_be_talked_to() {
    let workshop = Workshop::new();
    let errors = workshop.fail(&generate(&["--chat", "--prompt", "w5"]));
    assert!(errors.contains("chat_template.jinja"), "{errors}");
    fs::write(
        workshop.path("said.jsonl"),
        "{\"messages\": [{\"role\": \"user\", \"content\": \"w5\"}]}",
    )
    .unwrap();
    let logits = [
        "logits",
        "--model",
        "teacher",
        "--text",
        "said.jsonl",
        "--out",
        "out.st",
    ];
    let errors = workshop.fail(&logits);
    assert!(errors.contains("chat_template.jinja"), "{errors}");
    fs::write(workshop.path("teacher/chat_template.jinja"), TEMPLATE).unwrap();
    workshop.succeed(&logits);
}

#[test]
fn the_loss_counts_what_the_assistant_says_where_that_is_asked_for() {
    let workshop = instruct();
    // Nine tokens each: BOS, three words asked, two answered, and so on.
    let said =
        |role, content: &str| format!("{{\"role\": \"{role}\", \"content\": \"{content}\"}}");
    let conversation = [
        said("user", "w7 w5 w9"),
        said("assistant", "w3 w4"),
        said("user", "w8"),
        said("assistant", "w6 w5"),
    ]
    .join(", ");
    let lines = format!("{{\"messages\": [{conversation}]}}\n").repeat(12);
    fs::write(workshop.path("said.jsonl"), lines).unwrap();
    let on = [
        "--set",
        "data.train=['said.jsonl']",
        "--set",
        "data.valid=['said.jsonl']",
    ];
    let assistant = ["--set", "data.loss_on=assistant"];
    let text = |more: &[&str]| {
        let plan = workshop.json(&[&["plan", "recipe.toml", "--json"], &on[..], more].concat());
        plan["text"].clone()
    };
    assert!(text(&[])["counted"].is_null());
    let counted = text(&assistant);
    assert_eq!(
        (&counted["tokens"], &counted["counted"]),
        (&108.0.into(), &48.0.into())
    );
    let printed = workshop.succeed(&[&["plan", "recipe.toml"], &on[..], &assistant].concat());
    assert!(
        printed.contains("about 108 tokens, of which about 48 count"),
        "{printed}"
    );

    // Training, its held-out text, and `eval` count alike. Two sequences of 16 tokens hold a conversation each.
    let run = |out, more: &[&str]| {
        let distill = ["distill", "recipe.toml", "--out", out, "--json"];
        workshop.json(&[&distill, &on[..], more].concat())
    };
    let (all, few) = (run("all", &[]), run("few", &assistant));
    assert_eq!(
        (&all["eval_tokens"], &few["eval_tokens"]),
        (&96.into(), &48.into())
    );
    assert_eq!((&all["tokens"], &few["tokens"]), (&64.into(), &32.into()));
    let eval = [
        "eval",
        "--json",
        "--teacher",
        "teacher",
        "--student",
        "few/student",
        "--text",
        "said.jsonl",
        "--seq-len",
        "16",
        "--loss-on",
        "assistant",
    ];
    let eval = workshop.json(&eval);
    assert_eq!(eval["tokens"], 48);
    let difference = eval["kl"].as_f64().unwrap() - few["kl_end"].as_f64().unwrap();
    assert!(difference.abs() < 1e-6, "{difference}");

    // A teacher in files, and a student that writes.
    let cache = ["cache-teacher", "recipe.toml", "--out", "c", "--top-k", "8"];
    workshop.succeed(&[&cache, &on[..], &assistant].concat());
    let cached = ["--set", "teacher.cache=c"];
    let errors =
        workshop.fail(&[&["distill", "recipe.toml", "--out", "no"], &on[..], &cached].concat());
    assert!(errors.contains("are not of this text"), "{errors}");
    let from_files = run("files", &[&assistant[..], &cached].concat());
    assert_eq!(from_files["tokens"], few["tokens"]);
    run(
        "written",
        &[&assistant[..], &["--set", "data.on_policy=1"]].concat(),
    );

    // A text has no assistant, and a question no answer.
    let errors = workshop.fail(&[&["plan", "recipe.toml"], &assistant[..]].concat());
    assert!(
        errors.contains("train.txt") && errors.contains("no `messages`"),
        "{errors}"
    );
    let asked = format!("{{\"messages\": [{}]}}\n", said("user", "w7 w5"));
    fs::write(workshop.path("said.jsonl"), asked).unwrap();
    let errors = workshop.fail(&[&["plan", "recipe.toml"], &on[..], &assistant].concat());
    assert!(
        errors.contains("role `assistant`") && errors.contains("said.jsonl"),
        "{errors}"
    );
}
