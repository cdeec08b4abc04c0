//! Tests of the tokenizer.

use serde_json::{Value, json};

use super::fixture::{BOS, CAT, EOS, THE};
use super::*;

/// A tokenizer of the fixture's words with this template and these settings.
fn load(template: &[&str], settings: &Value) -> Result<Tokenizer, TokenizerError> {
    let mut tokenizer = fixture::json();
    tokenizer["post_processor"] = fixture::post_processor(template);
    let folder = fixture::folder(&tokenizer, settings);
    Tokenizer::from_dir(folder.path(), None, &[])
}

fn document(template: &[&str], settings: Value, text: &str) -> Vec<u32> {
    let mut settings = settings;
    settings["bos_token"] = "<s>".into();
    settings["eos_token"] = json!({"content": "</s>", "lstrip": false});
    let tokenizer = load(template, &settings).unwrap();
    tokenizer.encode_document(text).unwrap()
}

#[test]
fn a_document_starts_with_bos_and_ends_with_eos_whatever_the_post_processor_puts_there() {
    for template in [&["$A"] as &[_], &["<s>", "$A"], &["<s>", "$A", "</s>"]] {
        assert_eq!(
            document(template, json!({}), "the cat"),
            [BOS, THE, CAT, EOS]
        );
    }
    assert_eq!(
        document(&["$A"], json!({}), "<s> the </s>"),
        [BOS, THE, EOS]
    );
}

#[test]
fn a_prompt_starts_as_the_post_processor_or_the_settings_say() {
    let prompt = |template: &[&str], settings: Value| {
        let tokenizer = load(template, &settings).unwrap();
        tokenizer.encode_prompt("the").unwrap()
    };
    let known = json!({"bos_token": "<s>"});
    assert_eq!(prompt(&["$A"], known.clone()), [THE]);
    assert_eq!(prompt(&["<s>", "$A"], known), [BOS, THE]);
    let always = json!({"bos_token": "<s>", "add_bos_token": true});
    assert_eq!(prompt(&["$A"], always), [BOS, THE]);
    let never = json!({"bos_token": "<s>", "add_bos_token": false});
    assert_eq!(prompt(&["<s>", "$A"], never.clone()), [BOS, THE]);
    assert_eq!(prompt(&["$A"], never), [THE]);
}

#[test]
fn settings_that_say_no_leave_it_to_the_post_processor() {
    let both = |value: bool| json!({"add_bos_token": value, "add_eos_token": value});
    let framed = ["<s>", "$A", "</s>"];
    for template in [&["$A"] as &[_], &framed] {
        assert_eq!(document(template, both(true), "the"), [BOS, THE, EOS]);
    }
    assert_eq!(document(&["$A"], both(false), "the"), [THE]);
    assert_eq!(document(&framed, both(false), "the"), [BOS, THE, EOS]);
}

#[test]
fn what_a_text_begins_and_ends_with_is_not_put_there_again() {
    let framed = ["<s>", "$A", "</s>"];
    let text = "<s> the </s>";
    assert_eq!(document(&framed, json!({}), text), [BOS, THE, EOS]);
    let tokenizer = load(&framed, &json!({"bos_token": "<s>", "eos_token": "</s>"})).unwrap();
    assert_eq!(tokenizer.encode_prompt("<s> the").unwrap(), [BOS, THE]);
    assert_eq!(tokenizer.encode_as_it_is(text).unwrap(), [BOS, THE, EOS]);
    assert_eq!(tokenizer.encode_as_it_is("the").unwrap(), [THE]);
    assert_eq!(
        tokenizer.decode_as_it_is(&[BOS, THE, EOS]).unwrap(),
        "<s> the </s>"
    );
}

#[test]
fn special_tokens_that_the_text_itself_holds_stay() {
    let never = json!({"add_bos_token": false, "add_eos_token": false});
    assert_eq!(document(&["$A"], never, "<s> the </s>"), [BOS, THE, EOS]);
}

#[test]
fn an_empty_document_has_only_its_ends() {
    assert_eq!(document(&["<s>", "$A"], json!({}), ""), [BOS, EOS]);
    let never = json!({"add_bos_token": false, "add_eos_token": false});
    assert!(document(&["$A"], never, "").is_empty());
}

#[test]
fn many_documents_are_encoded_as_one_is() {
    let tokenizer = fixture::tokenizer();
    let texts: Vec<String> = (0..2 * BATCH + 1)
        .map(|n| "the cat ".repeat(n % 5))
        .collect();
    let together = tokenizer.encode_documents(&texts).unwrap();
    for (text, ids) in texts.iter().zip(&together) {
        assert_eq!(tokenizer.encode_document(text).unwrap(), *ids);
    }
    assert_eq!(together.len(), texts.len());
}

#[test]
fn prompts_and_openings_of_documents_have_no_end() {
    for template in [&["<s>", "$A"] as &[_], &["<s>", "$A", "</s>"]] {
        let settings = json!({"eos_token": "</s>", "add_eos_token": true});
        let tokenizer = load(template, &settings).unwrap();
        assert_eq!(tokenizer.encode_prompt("the cat").unwrap(), [BOS, THE, CAT]);
        assert_eq!(
            tokenizer.encode_opening("the cat").unwrap(),
            [BOS, THE, CAT]
        );
    }
}

#[test]
fn without_any_eos_a_document_just_stops() {
    let tokenizer = load(&["<s>", "$A"], &json!({"eos_token": null})).unwrap();
    assert_eq!(tokenizer.encode_document("the").unwrap(), [BOS, THE]);
    assert!(tokenizer.eos_ids().is_empty());
}

#[test]
fn ids_of_the_model_fill_in_for_the_settings() {
    let folder = fixture::folder(&fixture::json(), &json!({"add_bos_token": true}));
    fs::remove_file(folder.path().join(TOKENIZER_CONFIG)).unwrap();
    let tokenizer = Tokenizer::from_dir(folder.path(), Some(BOS), &[EOS, THE]).unwrap();
    assert_eq!(tokenizer.bos_id(), Some(BOS));
    assert_eq!(tokenizer.encode_document("cat").unwrap(), [BOS, CAT, EOS]);
    assert_eq!(tokenizer.eos_ids(), [EOS, THE]);
    assert!(tokenizer.is_eos(THE) && !tokenizer.is_eos(CAT));
}

#[test]
fn the_settings_eos_comes_before_those_of_the_model() {
    let folder = fixture::folder(&fixture::json(), &json!({"eos_token": "</s>"}));
    let tokenizer = Tokenizer::from_dir(folder.path(), None, &[THE, EOS]).unwrap();
    assert_eq!(tokenizer.eos_ids(), [EOS, THE]);
}

#[test]
fn decoding_skips_special_tokens() {
    let text = fixture::tokenizer().decode(&[BOS, THE, CAT, EOS]).unwrap();
    assert_eq!(text, "the cat");
}

#[test]
fn truncation_and_padding_of_the_file_do_not_apply() {
    let mut tokenizer = fixture::json();
    tokenizer["truncation"] = json!({"direction": "Right", "max_length": 2,
            "strategy": "LongestFirst", "stride": 0});
    tokenizer["padding"] = json!({"strategy": {"Fixed": 9}, "direction": "Right",
            "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"});
    let folder = fixture::folder(&tokenizer, &json!({}));
    let tokenizer = Tokenizer::from_dir(folder.path(), None, &[]).unwrap();
    assert_eq!(
        tokenizer.encode_document("the cat the").unwrap(),
        [BOS, THE, CAT, THE]
    );
}

#[test]
fn a_model_needs_an_embedding_for_every_id() {
    let tokenizer = fixture::tokenizer();
    assert_eq!(tokenizer.vocab_size(), 5);
    // A text that has none of the others does not miss them.
    let tokenizer = tokenizer.for_model(4).unwrap();
    assert_eq!(tokenizer.encode_prompt("the").unwrap(), [BOS, THE]);
    let error = tokenizer.encode_prompt("the cat").unwrap_err().to_string();
    let says = format!("{TOKENIZER} gives token 4, but the model's `vocab_size` is 4");
    assert!(error.contains(&says), "{error}");
    assert!(tokenizer.encode_documents(&["cat"]).is_err());

    let folder = fixture::folder(&fixture::json(), &json!({}));
    let load = || Tokenizer::from_dir(folder.path(), None, &[7]).unwrap();
    assert!(load().for_model(7).is_err());
    load().for_model(8).unwrap();
}

#[test]
fn a_folder_without_a_tokenizer_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = Tokenizer::from_dir(folder.path(), None, &[]).unwrap_err();
    let missing = format!("no {TOKENIZER} in {}: ", folder.path().display());
    assert!(error.to_string().contains(&missing), "{error}");
    assert!(error.to_string().contains("save_pretrained"));
}

#[test]
fn unreadable_files_are_errors() {
    let folder = fixture::folder(&json!({"model": 1}), &json!({}));
    let load = || Tokenizer::from_dir(folder.path(), None, &[]).unwrap_err();
    assert!(matches!(load(), TokenizerError::Library { .. }));

    fixture::write(folder.path(), TOKENIZER, &fixture::json());
    fixture::write(folder.path(), TOKENIZER_CONFIG, &json!({"eos_token": 2}));
    assert!(matches!(load(), TokenizerError::Config { .. }));

    fs::remove_file(folder.path().join(TOKENIZER_CONFIG)).unwrap();
    fs::create_dir(folder.path().join(TOKENIZER_CONFIG)).unwrap();
    assert!(matches!(load(), TokenizerError::Read { .. }));
}

#[test]
fn contradicting_files_are_errors() {
    let error = load(&["$A"], &json!({"eos_token": "<end>"})).unwrap_err();
    assert!(error.to_string().contains("`eos_token` in "), "{error}");
    assert!(
        error.to_string().contains(" is \"<end>\", which"),
        "{error}"
    );
    let error = load(&["$A"], &json!({"add_bos_token": true})).unwrap_err();
    assert!(
        error.to_string().contains("no BOS token is known"),
        "{error}"
    );
}

#[test]
fn a_failing_library_is_an_error() {
    let tokenizer = fixture::without_unknown_token();
    let one = tokenizer.encode_document("dog").unwrap_err();
    let many = tokenizer.encode_documents(&["dog"]).unwrap_err();
    assert!(matches!(one, TokenizerError::Library { .. }));
    assert!(matches!(many, TokenizerError::Library { .. }));
}

#[test]
fn files_are_carried_over_as_they_are() {
    let from = fixture::folder(&fixture::json(), &json!({}));
    fs::write(from.path().join("config.json"), "{}").unwrap();
    let to = tempfile::tempdir().unwrap();
    copy_files(from.path(), to.path()).unwrap();
    for name in [TOKENIZER, TOKENIZER_CONFIG] {
        let [ours, theirs] = [&to, &from].map(|folder| fs::read(folder.path().join(name)));
        assert_eq!(ours.unwrap(), theirs.unwrap());
    }
    assert_eq!(fs::read_dir(to.path()).unwrap().count(), 2);
}

#[test]
fn files_cannot_be_carried_to_nowhere() {
    let from = fixture::folder(&fixture::json(), &json!({}));
    let error = copy_files(from.path(), &from.path().join("nowhere")).unwrap_err();
    assert!(matches!(error, TokenizerError::Write(_)));
}

#[test]
fn a_panic_of_the_library_is_an_error() {
    let mut tokenizer = fixture::json();
    tokenizer["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"});
    let folder = fixture::folder(&tokenizer, &json!({}));
    let loaded = Tokenizer::from_dir(folder.path(), None, &[]);
    let error = loaded
        .and_then(|it| it.encode_documents(&["the", "cat"]))
        .unwrap_err();
    assert!(matches!(error, TokenizerError::Library { .. }), "{error}");
    assert!(error.to_string().contains(TOKENIZER), "{error}");
}

#[test]
fn a_model_ends_where_its_generation_settings_say_too() {
    let folder = fixture::folder(&fixture::json(), &json!({"eos_token": "</s>"}));
    fixture::write(
        folder.path(),
        GENERATION_CONFIG,
        &json!({"eos_token_id": [EOS, CAT]}),
    );
    let tokenizer = Tokenizer::from_dir(folder.path(), None, &[]).unwrap();
    assert_eq!(tokenizer.eos_ids(), [EOS, CAT]);
}

/// As Llama 2 and SmolLM2 have them, and with what else templates do.
#[test]
fn a_conversation_is_rendered_as_transformers_does() {
    const TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}\n    {% generation %}\n\
        {{ '<|' + message['role'] + '|>' + message.content.strip() }}\n    {% endgeneration %}\n\
        {% endfor %}\n{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}\
        {{ {'a': [1, '<é>']} | tojson }}\n";
    let said = [
        Message::new("system", " be brief "),
        Message::new("user", "hi"),
    ];
    let rendered = "<s><|system|>be brief\n<|user|>hi\n<|assistant|>{\"a\": [1, \"<é>\"]}";
    for setting in [
        json!(TEMPLATE),
        json!([{"name": "tools", "template": ""}, {"name": "default", "template": TEMPLATE}]),
    ] {
        let settings = json!({"bos_token": "<s>", "chat_template": setting});
        let tokenizer = load(&["$A"], &settings).unwrap();
        let template = tokenizer.chat().expect("a template");
        assert_eq!(template.render(&said, true).unwrap(), rendered);
    }
    let folder = fixture::folder(&fixture::json(), &json!({"chat_template": TEMPLATE}));
    let refuses =
        "{% if messages[0].role != 'user' %}{{ raise_exception('a user begins') }}{% endif %}";
    fs::write(folder.path().join("chat_template.jinja"), refuses).unwrap();
    let tokenizer = Tokenizer::from_dir(folder.path(), None, &[]).unwrap();
    let error = tokenizer
        .chat()
        .expect("a template")
        .render(&said, false)
        .unwrap_err();
    assert!(error.to_string().contains("chat_template.jinja"), "{error}");
    assert!(format!("{:?}", error).contains("a user begins"));
    assert!(load(&["$A"], &json!({"chat_template": "{% if %}"})).is_err());
    assert!(fixture::tokenizer().chat().is_none());
}

#[test]
fn a_long_text_is_read_in_pieces_and_has_its_ends_once() {
    let words = BATCH_BYTES / 8 + 1000;
    let text = "the cat ".repeat(words);
    let tokenizer = fixture::tokenizer();
    let expected = |begin: &[u32], end: &[u32]| [begin, &[THE, CAT].repeat(words), end].concat();
    assert!(tokenizer.encode_document(&text).unwrap() == expected(&[BOS], &[EOS]));
    let pieces = tokenizer.pieces.get().unwrap().as_ref().unwrap();
    assert!(pieces.cut(&text).len() > 8);
    let documents = tokenizer.encode_documents(&["cat", &text, "the"]).unwrap();
    assert_eq!(documents[0], [BOS, CAT, EOS]);
    assert!(documents[1] == expected(&[BOS], &[EOS]));
    assert_eq!(documents[2], [BOS, THE, EOS]);
    assert!(tokenizer.encode_as_it_is(&text).unwrap() == expected(&[], &[]));
    assert!(tokenizer.encode_prompt(&text).unwrap() == expected(&[BOS], &[]));
    // A token that the model has no embedding for is found in the last piece too.
    let small = fixture::tokenizer().for_model(CAT as usize).unwrap();
    let error = small
        .encode_document(&format!("{}cat", "the ".repeat(2 * words)))
        .unwrap_err();
    assert!(error.to_string().contains("gives token 4"), "{error}");
}

/// A template is somebody else's program.
#[test]
fn a_template_can_neither_panic_nor_go_on_for_ever() {
    for (template, says) in [
        ("{{ strftime_now('%Q %') }}", "no format of a date"),
        ("{{ 'a' | tojson(indent=1000000000000) }}", "beyond 64"),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "OutOfFuel",
        ),
        (
            "{% set ns = namespace(x='a') %}{% for a in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "OutOfFuel",
        ),
    ] {
        let tokenizer = load(&["$A"], &json!({"chat_template": template})).unwrap();
        let template = tokenizer.chat().expect("a template");
        let error = template.render(&[], false).unwrap_err();
        assert!(format!("{error:?}").contains(says), "{error:?}");
    }
    let today = json!({"chat_template": "{{ strftime_now('%Y') }}"});
    let tokenizer = load(&["$A"], &today).unwrap();
    let year = tokenizer.chat().expect("a template").render(&[], false);
    assert!(year.unwrap().parse::<u32>().is_ok_and(|year| year > 2000));
}
