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
