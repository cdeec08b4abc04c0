//! Text that the teacher writes itself.

use std::fs;

use burn_lti_llama::data::{self, Document};

use crate::workshop::Workshop;

/// The texts of a file.
fn read_documents(path: &std::path::Path) -> Vec<String> {
    let documents = data::read_documents(path, None).unwrap().into_iter();
    let text = |document| match document {
        Document::Text(text) => text,
        other => panic!("{other:?}"),
    };
    documents.map(text).collect()
}

/// The command, to a file, of a temperature at which the tiny teacher's texts end.
fn sample<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let common = ["sample-corpus", "--model", "teacher", "--out", out];
    let order = ["--tokens", "400", "--temperature", "2"];
    [&common[..], &order, more].concat()
}

#[test]
fn a_sampled_corpus_is_text_that_other_commands_read() {
    let workshop = Workshop::new();
    let report = workshop.json(&sample("corpus.jsonl", &["--json"]));
    let documents = read_documents(&workshop.path("corpus.jsonl"));
    assert_eq!(report["documents"], documents.len());
    assert!(documents.len() >= 400 / 64, "{documents:?}");
    assert!(documents.iter().any(|text| text.contains('w')));
    let tokens = report["tokens"].as_u64().unwrap();
    assert!((400..400 + 64).contains(&tokens), "{report}");
    assert!(report["seconds"].as_f64().unwrap() > 0.0);

    let models = ["--teacher", "teacher", "--student", "teacher"];
    let text = ["--text", "corpus.jsonl", "--seq-len", "16", "--json"];
    let evaluation = workshop.json(&[&["eval"], &models[..], &text].concat());
    assert_eq!(evaluation["kl"], 0.0);
    let data = ["--set", "data.train=[\"corpus.jsonl\"]"];
    workshop.succeed(&[&["distill", "recipe.toml", "--out", "out"], &data[..]].concat());
}

#[test]
fn a_seed_is_a_corpus_whatever_the_batch() {
    let workshop = Workshop::new();
    let corpus = |out: &str, more: &[&str]| {
        workshop.succeed(&sample(out, more));
        fs::read_to_string(workshop.path(out)).unwrap()
    };
    let one = corpus("one.jsonl", &["--batch-size", "1"]);
    assert_eq!(corpus("three.jsonl", &["--batch-size", "3"]), one);
    assert_eq!(corpus("sixteen.jsonl", &["--batch-size", "16"]), one);
    assert_eq!(corpus("all.jsonl", &[]), one);
    assert_ne!(corpus("other.jsonl", &["--seed", "1"]), one);
}

#[test]
fn a_corpus_is_replaced_only_when_told_to() {
    let workshop = Workshop::new();
    fs::write(workshop.path("corpus.jsonl"), "mine").unwrap();
    let errors = workshop.fail(&sample("corpus.jsonl", &[]));
    assert!(errors.contains("corpus.jsonl"), "{errors}");
    assert!(errors.contains("--overwrite"), "{errors}");
    let content = || fs::read_to_string(workshop.path("corpus.jsonl")).unwrap();
    assert_eq!(content(), "mine");
    let text = workshop.succeed(&sample("corpus.jsonl", &["--overwrite"]));
    assert!(text.contains("documents of"), "{text}");
    assert!(content().starts_with("{\"text\":"));
}

#[test]
fn a_model_without_bos_needs_a_prompt() {
    let workshop = Workshop::new();
    let config = fs::read_to_string(workshop.path("teacher/config.json")).unwrap();
    let config = config.replace("\"bos_token_id\": 1", "\"bos_token_id\": null");
    fs::write(workshop.path("teacher/config.json"), config).unwrap();
    let settings = workshop.path("teacher/tokenizer_config.json");
    fs::write(settings, r#"{"eos_token": "</s>"}"#).unwrap();
    let errors = workshop.fail(&sample("corpus.jsonl", &[]));
    assert!(errors.contains("--prompt"), "{errors}");
    assert!(!workshop.path("corpus.jsonl").exists());
    workshop.succeed(&sample("corpus.jsonl", &["--prompt", "w5 w9"]));
    let documents = read_documents(&workshop.path("corpus.jsonl"));
    assert!(documents.iter().all(|text| text.starts_with("w5 w9")));
}

#[test]
fn a_corpus_that_cannot_be_is_an_error_before_any_work() {
    let workshop = Workshop::new();
    fs::remove_file(workshop.path("teacher/model.safetensors")).unwrap();
    for (out, more, way_out) in [
        ("corpus.txt", &[][..], ".jsonl"),
        ("nowhere/corpus.jsonl", &[], "nowhere"),
        ("a.jsonl", &["--document-tokens", "65"], "at most 64"),
        ("a.jsonl", &["--document-tokens", "1"], "--document-tokens"),
        ("a.jsonl", &["--top-p", "1.5"], "at most 1"),
        ("a.jsonl", &["--tokens", "0"], "--tokens"),
        ("a.jsonl", &[], "model.safetensors"),
    ] {
        let errors = workshop.fail(&sample(out, more));
        assert!(errors.contains(way_out), "{more:?}: {errors}");
        assert!(!workshop.path(out).exists());
    }
    let errors = workshop.fail(&sample("a.jsonl", &["--temperature", "0"]));
    assert!(errors.contains("temperature"), "{errors}");
}

#[test]
fn prompts_of_a_file_are_gone_on_with_in_turn_and_conversations_are_answered() {
    let workshop = Workshop::new();
    fs::write(workshop.path("lines.txt"), "w5 w9\n\nw7\nw8 w3 w4\n").unwrap();
    workshop.succeed(&[
        "sample-corpus",
        "--model",
        "teacher",
        "--out",
        "a.jsonl",
        "--prompts",
        "lines.txt",
        "--temperature",
        "2",
    ]);
    let begins = ["w5 w9", "w7", "w8 w3 w4"];
    let documents = read_documents(&workshop.path("a.jsonl"));
    assert_eq!(documents.len(), 3);
    assert!(
        documents
            .iter()
            .zip(begins)
            .all(|(text, begin)| text.starts_with(begin)),
        "{documents:?}"
    );
    // As often as it takes.
    workshop.succeed(&sample("b.jsonl", &["--prompts", "lines.txt"]));
    let many = read_documents(&workshop.path("b.jsonl"));
    assert!(many.len() > 3 && many[..3] == documents, "{many:?}");
    assert!(
        many.iter()
            .zip(begins.iter().cycle())
            .all(|(text, begin)| text.starts_with(begin))
    );

    let asked = r#"{"messages": [{"role": "user", "content": "w5"}, {"role": "assistant", "content": "w9"}]}
        {"prompt": [{"role": "user", "content": "w7 w8"}]}"#;
    fs::write(workshop.path("asked.jsonl"), asked).unwrap();
    let answer = [
        "sample-corpus",
        "--model",
        "teacher",
        "--out",
        "c.jsonl",
        "--prompts",
        "asked.jsonl",
        "--temperature",
        "2",
    ];
    let errors = workshop.fail(&answer);
    assert!(errors.contains("chat_template.jinja"), "{errors}");
    let template = "{% for message in messages %}{{ message.content }} {% endfor %}{% if add_generation_prompt %}w6{% endif %}";
    fs::write(workshop.path("teacher/chat_template.jinja"), template).unwrap();
    workshop.succeed(&answer);
    let answered = data::read_documents(&workshop.path("c.jsonl"), None).unwrap();
    for (document, asked) in answered.iter().zip(["w5", "w7 w8"]) {
        let Document::Messages(messages) = document else {
            panic!("{document:?}");
        };
        assert_eq!(messages.len(), 2, "{messages:?}");
        assert_eq!(
            messages[0],
            burn_lti_llama::tokenizer::Message::new("user", asked)
        );
        let said = serde_json::to_value(&messages[1]).unwrap();
        assert_eq!(said["role"], "assistant");
        let words = said["content"].as_str().unwrap();
        assert!(
            !words.is_empty() && !words.contains("</s>") && !words.starts_with(asked),
            "{words}"
        );
    }
    assert_eq!(answered.len(), 2);
    // Students learn from them.
    let on = [
        "--set",
        "data.train=['c.jsonl']",
        "--set",
        "data.loss_on=assistant",
    ];
    let held_out = ["--set", "data.valid=['c.jsonl']"];
    workshop.succeed(
        &[
            &["distill", "recipe.toml", "--out", "o"],
            &on[..],
            &held_out,
        ]
        .concat(),
    );
    let long = format!("{}\n", "w5 ".repeat(80));
    fs::write(workshop.path("lines.txt"), long).unwrap();
    let errors = workshop.fail(&sample("d.jsonl", &["--prompts", "lines.txt"]));
    assert!(
        errors.contains("prompt 1: ") && errors.contains("--document-tokens"),
        "{errors}"
    );
}
