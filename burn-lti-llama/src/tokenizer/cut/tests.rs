//! Tests of cut tokenizers: the same pieces, the same text, and every file that names an id.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tempfile::TempDir;

use super::super::fixture::{folder, write};
use super::super::{KeptTokens, SPECIAL_TOKENS, Tokenizer, TokenizerFiles, copy_files};
use super::*;

fn special(id: u32, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
           "normalized": false, "special": true})
}

/// Byte-pair encoding with merges by chance, of these characters; some tokens can be made in several ways.
fn merges_of(characters: &[&str], rng: &mut StdRng) -> (Vec<String>, Vec<Value>) {
    let mut tokens: Vec<String> = characters.iter().map(|it| (*it).to_owned()).collect();
    let mut merges = Vec::new();
    while merges.len() < 80 {
        let [left, right] = [(); 2].map(|()| tokens.choose(rng).unwrap().clone());
        let both = format!("{left}{right}");
        let merge = json!([left, right]);
        if both.chars().count() > 8 || merges.contains(&merge) {
            continue;
        }
        merges.push(merge);
        if !tokens.contains(&both) {
            tokens.push(both);
        }
    }
    (tokens, merges)
}

fn numbered(tokens: &[String]) -> Value {
    let ids = tokens.iter().zip(0_u32..);
    let vocab: Map<String, Value> = ids.map(|(token, id)| (token.clone(), id.into())).collect();
    vocab.into()
}

/// Tokenizers of every kind, by chance: what they are called, `tokenizer.json`, and what texts are made of.
fn tokenizers(rng: &mut StdRng) -> Vec<(&'static str, Value, Vec<&'static str>)> {
    let whole = |model: Value, parts: Value| {
        let mut json = json!({"version": "1.0", "truncation": null, "padding": null, "normalizer": null,
                              "pre_tokenizer": null, "post_processor": null, "decoder": null, "model": model});
        for (key, value) in parts.as_object().unwrap() {
            json[key] = value.clone();
        }
        json
    };
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let letters = ["a", "b", "c", "d"];
    // The bytes of a few characters are enough here.
    let alphabet = ["a", "b", "c", "d", "Ġ", "Ċ", "Ã", "©", "1", "."];
    let (mut tokens, merges) = merges_of(&alphabet, rng);
    tokens.insert(0, "<s>".to_owned());
    let model = json!({"type": "BPE", "vocab": numbered(&tokens), "merges": merges});
    let mut all = Vec::new();
    let text = ["a", "b", "c", "d", " ", "\n", "é", "1", ".", "<s>"];
    let parts =
        json!({"pre_tokenizer": bytes, "decoder": bytes, "added_tokens": [special(0, "<s>")]});
    all.push(("bytes", whole(model.clone(), parts.clone()), text.to_vec()));
    let mut at_once = model;
    at_once["ignore_merges"] = true.into();
    all.push(("words at once", whole(at_once, parts), text.to_vec()));

    let (mut tokens, merges) = merges_of(&["a", "b", "c", "▁", "語"], rng);
    let of_bytes = (0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>"));
    tokens.splice(
        0..0,
        ["<unk>".to_owned(), "<s>".to_owned()]
            .into_iter()
            .chain(of_bytes),
    );
    let model = json!({"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
                       "vocab": numbered(&tokens), "merges": merges});
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let parts = json!({
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")]},
        "decoder": {"type": "Sequence", "decoders": [
            replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "added_tokens": [special(0, "<unk>"), special(1, "<s>")],
    });
    let text = ["a", "b", "c", "d", " ", "語", "é", "😀"];
    all.push(("byte fallback", whole(model, parts), text.to_vec()));

    let (tokens, _) = merges_of(&letters, rng);
    let mut pieces = vec![json!(["<unk>", 0.0])];
    let score = |token: &String| json!([token, -rng.random_range(1.0..20.0)]);
    pieces.extend(tokens.iter().map(score));
    let model = json!({"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": false});
    let parts = json!({"pre_tokenizer": {"type": "WhitespaceSplit"}, "added_tokens": [special(0, "<unk>")]});
    all.push((
        "unigram",
        whole(model, parts),
        vec!["a", "b", "c", "d", "é", " "],
    ));

    let (tokens, _) = merges_of(&letters, rng);
    let inner = tokens.iter().map(|token| format!("##{token}"));
    let mut both: Vec<String> = tokens.iter().cloned().chain(inner).collect();
    both.push("[UNK]".to_owned());
    let model = json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                       "max_input_chars_per_word": 100, "vocab": numbered(&both)});
    let parts = json!({"pre_tokenizer": {"type": "WhitespaceSplit"}, "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": false}});
    all.push((
        "word pieces",
        whole(model, parts),
        vec!["a", "b", "c", "d", "é", " "],
    ));

    let mut words = tokens;
    words.push("[UNK]".to_owned());
    let model = json!({"type": "WordLevel", "unk_token": "[UNK]", "vocab": numbered(&words)});
    let parts = json!({"pre_tokenizer": {"type": "WhitespaceSplit"}});
    all.push((
        "words",
        whole(model, parts),
        vec!["a", "b", "ab", " ", " ", "é"],
    ));
    all
}

fn cut_of(dir: &Path, kept: &KeptTokens) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::of_files(TokenizerFiles::new(dir, Some(kept)), None, &[])
}

fn whole_of(dir: &TempDir) -> Tokenizer {
    Tokenizer::from_dir(dir.path(), None, &[]).unwrap()
}

#[test]
fn a_text_of_kept_tokens_has_the_same_and_any_text_can_be_read_back() {
    let mut rng = StdRng::seed_from_u64(7);
    for round in 0..12 {
        for (name, json, parts) in tokenizers(&mut rng) {
            let dir = folder(&json, &json!({}));
            let whole = whole_of(&dir);
            let text = |rng: &mut StdRng| -> String {
                let length = rng.random_range(1..40);
                (0..length).map(|_| *parts.choose(rng).unwrap()).collect()
            };
            let texts: Vec<String> = (0..60).map(|_| text(&mut rng)).collect();
            let ids: Vec<Vec<u32>> = whole.encode_as_they_are(&texts).unwrap();
            // The tokens of half of the texts, and a few by chance.
            let of_texts = ids.iter().step_by(2).flatten().copied();
            let chance: Vec<u32> = (0..5)
                .map(|_| rng.random_range(0..whole.vocab_size() as u32))
                .collect();
            let kept = whole.keep(of_texts.chain(chance)).unwrap();
            let cut = cut_of(dir.path(), &kept).unwrap();
            assert_eq!(cut.vocab_size(), kept.ids().len());
            let mut same = 0;
            for (text, ids) in texts.iter().zip(&ids) {
                let found = cut.encode_as_it_is(text).unwrap();
                let new: Option<Vec<u32>> = ids.iter().map(|id| kept.new_id(*id)).collect();
                if let Some(new) = new {
                    assert_eq!(found, new, "{name}, {round}: {text:?}");
                    same += 1;
                }
                let back = [&whole, &cut].map(|it| it.encode_as_it_is(text).unwrap());
                let [was, is] = [
                    whole.decode_as_it_is(&back[0]),
                    cut.decode_as_it_is(&back[1]),
                ];
                if name != "words" {
                    let joined = |text: String| text.replace(' ', "");
                    assert_eq!(
                        joined(is.unwrap()),
                        joined(was.unwrap()),
                        "{name}, {round}: {text:?}"
                    );
                }
            }
            assert!(same >= 30, "{name}");
            // Who has the cut one finds out what was kept.
            assert_eq!(whole.kept_by(&cut).unwrap().as_ref(), Some(&kept), "{name}");
            assert_eq!(
                cut.kept_by(&whole).unwrap().is_some(),
                kept.ids().len() == whole.vocab_size()
            );
        }
    }
}

#[test]
fn without_what_a_token_is_made_of_its_text_would_be_cut_otherwise() {
    let model = json!({"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "bc": 3, "ab": 4, "abc": 5},
                       "merges": ["b c", "a b", "a bc"]});
    let dir = folder(&json!({"version": "1.0", "model": model}), &json!({}));
    let whole = whole_of(&dir);
    assert_eq!(whole.encode_as_it_is("abc").unwrap(), [5]);
    let kept = whole.keep([5]).unwrap();
    assert_eq!(kept.ids(), [0, 1, 2, 3, 5]);
    assert_eq!(
        cut_of(dir.path(), &kept)
            .unwrap()
            .encode_as_it_is("abcab")
            .unwrap(),
        [4, 0, 1]
    );
    let broken = KeptTokens::from(BTreeSet::from([0, 1, 2, 5]));
    assert_eq!(
        cut_of(dir.path(), &broken)
            .unwrap()
            .encode_as_it_is("abc")
            .unwrap(),
        [0, 1, 2]
    );
}

/// A folder with every file that names tokens.
fn everything() -> TempDir {
    let tokens = [
        "<unk>", "<s>", "</s>", "a", "b", "c", "ab", "bc", "<pad>", "<mask>",
    ];
    let tokens = tokens.map(str::to_owned);
    let template = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    });
    let mut said = special(10, "<tool>");
    said["special"] = false.into();
    let mut unsaid = special(11, "<unused>");
    unsaid["special"] = false.into();
    let json = json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 64, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": null, "pad_id": 8,
                    "pad_type_id": 0, "pad_token": "<pad>"},
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>"), said, unsaid, special(12, "<end>")],
        "post_processor": {"type": "Sequence", "processors": [template]},
        "model": {"type": "BPE", "unk_token": "<unk>", "vocab": numbered(&tokens), "merges": ["a b", "b c"]},
    });
    let settings = json!({
        "bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "<pad>", "model_max_length": 64,
        "chat_template": "{{ messages[0]['content'] }}<tool>", "additional_special_tokens": ["<end>"],
        "added_tokens_decoder": {"0": special(0, "<unk>"), "1": special(1, "<s>"), "2": special(2, "</s>"),
                                 "11": special(11, "<unused>"), "12": special(12, "<end>")},
    });
    let dir = folder(&json, &settings);
    write(dir.path(), SPECIAL_TOKENS, &json!({"mask_token": "<mask>"}));
    write(
        dir.path(),
        ADDED_TOKENS,
        &json!({"<tool>": 10, "<unused>": 11, "<end>": 12}),
    );
    write(
        dir.path(),
        GENERATION_CONFIG,
        &json!({"eos_token_id": [2, 7], "suppress_tokens": [6, 12], "pad_token_id": 8}),
    );
    write(dir.path(), "vocab.json", &json!({"a": 3}));
    for name in ["tokenizer.model", "merges.txt", "LICENSE"] {
        fs::write(dir.path().join(name), name).unwrap();
    }
    dir
}

#[test]
fn every_file_names_the_new_ids() {
    let dir = everything();
    let whole = whole_of(&dir);
    let kept = whole.keep([]).unwrap();
    // All but "ab", which nothing needs, and "<unused>", which no file but lists of tokens names.
    assert_eq!(kept.ids(), [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 12]);
    let to = tempfile::tempdir().unwrap();
    copy_files(TokenizerFiles::new(dir.path(), Some(&kept)), to.path()).unwrap();
    let read = |name: &str| -> Value {
        serde_json::from_slice(&fs::read(to.path().join(name)).unwrap()).unwrap()
    };
    let json = read(TOKENIZER);
    let ids: Vec<(&str, u64)> = json["added_tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (it["content"].as_str().unwrap(), it["id"].as_u64().unwrap()))
        .collect();
    assert_eq!(
        ids,
        [
            ("<unk>", 0),
            ("<s>", 1),
            ("</s>", 2),
            ("<tool>", 9),
            ("<end>", 10)
        ]
    );
    let vocab = json!({"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4, "c": 5, "bc": 6, "<pad>": 7, "<mask>": 8});
    assert_eq!(json["model"]["vocab"], vocab);
    assert_eq!(json["model"]["merges"], json!(["b c"]));
    assert_eq!(json["padding"]["pad_id"], 7);
    assert_eq!(json["truncation"]["max_length"], 64);
    assert_eq!(
        json["post_processor"]["processors"][0]["special_tokens"]["<s>"]["ids"],
        json!([1])
    );
    let settings = read(TOKENIZER_CONFIG);
    let decoder = settings["added_tokens_decoder"].as_object().unwrap();
    let ids: Vec<&String> = decoder.keys().collect();
    assert_eq!(ids, ["0", "1", "2", "10"]);
    assert_eq!(
        settings["chat_template"],
        "{{ messages[0]['content'] }}<tool>"
    );
    let generation = json!({"eos_token_id": [2, 6], "suppress_tokens": [10], "pad_token_id": 7});
    assert_eq!(read(GENERATION_CONFIG), generation);
    assert_eq!(read(ADDED_TOKENS), json!({"<tool>": 9, "<end>": 10}));
    assert_eq!(
        fs::read_to_string(to.path().join("LICENSE")).unwrap(),
        "LICENSE"
    );
    for name in OTHER_FORMS {
        assert!(!to.path().join(name).exists(), "{name}");
    }
    // What is written is what was read.
    let [ours, written] = [
        cut_of(dir.path(), &kept),
        Tokenizer::from_dir(to.path(), None, &[]),
    ]
    .map(Result::unwrap);
    for text in ["abc<tool>", "bcbc<unused>a</s>"] {
        assert_eq!(
            ours.encode_prompt(text).unwrap(),
            written.encode_prompt(text).unwrap()
        );
    }
    assert_eq!(ours.encode_document("bc").unwrap(), [1, 6, 2]);
    assert_eq!((ours.eos_ids(), ours.bos_id()), (&[2, 6][..], Some(1)));
}

#[test]
fn a_token_without_an_embedding_is_none_that_can_be_kept() {
    let dir = everything();
    let kept = whole_of(&dir)
        .for_model(10)
        .unwrap()
        .keep([6, 11, 40])
        .unwrap();
    assert_eq!(kept.ids(), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(cut_of(dir.path(), &kept).unwrap().vocab_size(), 10);
}

#[test]
fn what_cannot_be_cut_is_refused() {
    let dir = everything();
    let refused = |kept: &[u32]| {
        let kept = KeptTokens::from(kept.iter().copied().collect::<BTreeSet<u32>>());
        cut_of(dir.path(), &kept).unwrap_err().to_string()
    };
    let error = refused(&[0, 2, 3]);
    assert!(
        error.contains("its post-processor puts a token that it does not have"),
        "{error}"
    );
    // The library reads no vocabulary without its token for what is unknown.
    fs::write(dir.path().join(GENERATION_CONFIG), "[").unwrap();
    let error = refused(&[0, 1, 2, 3]);
    assert!(error.contains(GENERATION_CONFIG), "{error}");
    // The library numbers a token that the model does not know by the model's length.
    let model = json!({"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0, "a": 7, "b": 8}});
    let json = json!({"version": "1.0", "model": model, "added_tokens": [special(3, "<s>")]});
    let odd = folder(&json, &json!({}));
    let kept = whole_of(&odd).keep([7, 8]).unwrap();
    assert_eq!(kept.ids(), [0, 3, 7, 8]);
    let error = cut_of(odd.path(), &kept).unwrap_err().to_string();
    assert!(
        error.contains("numbered in a way of its own, among them \"<s>\""),
        "{error}"
    );
}
