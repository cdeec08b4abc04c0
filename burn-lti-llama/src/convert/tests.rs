//! Tests of models that go from a folder to GGUF and back.

use std::fs;
use std::path::PathBuf;

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::config::Family;
use crate::hf::{WeightFiles, WeightType};

/// A tiny model of a family, changed, with a tokenizer of its own.
fn folder(family: &str, change: impl Fn(&mut Value)) -> TempDir {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/families");
    let (from, to) = (fixtures.join(family), tempfile::tempdir().unwrap());
    fs::copy(
        from.join("model.safetensors"),
        to.path().join("model.safetensors"),
    )
    .unwrap();
    let config = fs::read(from.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    change(&mut config);
    fs::write(to.path().join("config.json"), config.to_string()).unwrap();
    fs::write(to.path().join("tokenizer.json"), tokenizer().to_string()).unwrap();
    let settings = json!({ "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true, "chat_template": "{{ x }}" });
    fs::write(
        to.path().join("tokenizer_config.json"),
        settings.to_string(),
    )
    .unwrap();
    to
}

/// Bytes as GPT-2 has them: some letters, a merge, and 4 tokens with a meaning.
fn tokenizer() -> Value {
    let special = ["<unk>", "<s>", "</s>", "<|x|>"];
    let letters = "abcdefghijklmnopqrstuvwxyzHI0123456789.,!?'\u{120}\u{10a}";
    let tokens = special
        .map(String::from)
        .into_iter()
        .chain(letters.chars().map(String::from));
    let tokens: Vec<String> = tokens.chain(["he".to_owned(), "ll".to_owned()]).collect();
    let vocab: serde_json::Map<String, Value> = tokens
        .iter()
        .cloned()
        .zip((0..).map(|id: u32| json!(id)))
        .collect();
    let added: Vec<Value> = special
        .iter()
        .enumerate()
        .map(|(id, token)| {
            json!({ "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": id < 3 })
        })
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                { "type": "Digits", "individual_digits": true },
                { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
            ],
        },
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "vocab": vocab, "merges": ["h e", "l l"], "byte_fallback": false },
    })
}

fn unchanged(_: &mut Value) {}

/// Numbers of a model by name.
fn numbers(model: &Path) -> Vec<(String, Vec<f32>)> {
    let files = WeightFiles::open(model).unwrap();
    let names: Vec<String> = files.names().map(str::to_owned).collect();
    names
        .into_iter()
        .map(|name| {
            let read = files.read_f32(&name).unwrap();
            (name, read)
        })
        .collect()
}

#[test]
fn every_family_that_is_written_is_read_as_what_it_was() {
    type Change = fn(&mut Value);
    let all: [(&str, Change); 10] = [
        ("llama3", unchanged),
        ("llama_linear", unchanged),
        ("llama_yarn", unchanged),
        ("mistral", unchanged),
        ("qwen2", unchanged),
        ("qwen3", unchanged),
        ("smollm3", |config| {
            config["no_rope_layers"] = json!([1, 1, 1])
        }),
        ("phi3", unchanged),
        ("granite", unchanged),
        ("gemma3", |config| {
            config["layer_types"] = ["sliding_attention"; 3].into_iter().collect();
            config["query_pre_attn_scalar"] = config["head_dim"].clone();
        }),
    ];
    for (family, change) in all {
        let from = folder(family, change);
        let out = from.path().join("out.gguf");
        to_gguf(from.path(), &[], BlockType::F32, &out).unwrap();
        let was = LlamaConfig::from_dir(from.path()).unwrap();
        let mut is = LlamaConfig::from_dir(&out).unwrap();
        if was.family == Family::Mistral {
            is.family = Family::Mistral; // a Llama there
        }
        assert_eq!(is, was, "{family}");
        let (was, is) = (numbers(from.path()), numbers(&out));
        // Gains that are told from one are told from nothing in between: once added to, once taken from.
        let rounding = if family == "gemma3" {
            2.0 * f32::EPSILON
        } else {
            0.0
        };
        assert_eq!(was.len(), is.len());
        for ((name, was), (other, is)) in was.iter().zip(&is) {
            assert_eq!(name, other, "{family}");
            let near = was
                .iter()
                .zip(is)
                .all(|(was, is)| (was - is).abs() <= rounding);
            assert!(near && was.len() == is.len(), "{family}: {name}");
        }
        let back = from.path().join("back");
        fs::create_dir(&back).unwrap();
        to_folder(&out, &[], WeightType::F32, &back).unwrap();
        assert_eq!(numbers(&back), is, "{family}");
        let again = LlamaConfig::from_dir(&back).unwrap();
        assert_eq!(
            again.rope_of(0).unwrap(),
            LlamaConfig::from_dir(&out).unwrap().rope_of(0).unwrap()
        );

        let load = |path: &Path| Tokenizer::from_dir(path, Some(1), &[2]).unwrap();
        let [was, is, again] = [from.path(), &out, &back].map(load);
        for text in PROBES.iter().chain(&["hello 123 <|x|> </s>"]) {
            let expected = was.encode_prompt(text).unwrap();
            assert_eq!(is.encode_prompt(text).unwrap(), expected);
            assert_eq!(
                again.encode_document(text).unwrap(),
                was.encode_document(text).unwrap()
            );
        }
        // Embeddings without a token have none again.
        assert_eq!([is.vocab_size(), again.vocab_size()], [was.vocab_size(); 2]);
        assert_eq!(is.chat().unwrap().text(), "{{ x }}");
        assert_eq!((again.bos_id(), again.eos_ids()), (Some(1), was.eos_ids()));
    }
}

#[test]
fn heads_that_are_not_as_wide_as_the_model_are_those_of_a_llama_or_refused() {
    let from = folder("qwen2", |config| {
        config["num_attention_heads"] = json!(2);
        config["head_dim"] = json!(8);
    });
    let config = LlamaConfig::from_dir(from.path()).unwrap();
    let tensors = config
        .family
        .file_tensors(&config)
        .into_iter()
        .map(|tensor| {
            let count: usize = tensor.shape.iter().product();
            let numbers = move || Ok((0..count).map(|number| number as f32).collect());
            hf::NewTensor::new(tensor.name, tensor.shape, numbers)
        });
    let weights = from.path().join("model.safetensors");
    hf::write_weights(&weights, WeightType::F32, tensors).unwrap();
    let out = from.path().join("out.gguf");
    to_gguf(from.path(), &[], BlockType::F32, &out).unwrap();
    let bytes = fs::read(&out).unwrap();
    assert!(bytes.windows(17).any(|part| part == b"llama.block_count"));
    assert_eq!(LlamaConfig::from_dir(&out).unwrap(), config);
    assert_eq!(numbers(&out), numbers(from.path()));

    let from = folder("phi3_partial", unchanged);
    let out = from.path().join("out.gguf");
    let error = to_gguf(from.path(), &[], BlockType::F32, &out)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("4 query heads of 16") && error.contains("the model, 24"),
        "{error}"
    );
}

#[test]
fn what_llama_cpp_would_compute_otherwise_is_refused() {
    let yarn: fn(&mut Value) = |config| config["rope_parameters"]["attention_factor"] = json!(1.7);
    type Case = (&'static str, fn(&mut Value), &'static str);
    let all: [Case; 8] = [
        ("mistral_window", unchanged, "a window of 7 tokens"),
        ("ministral", unchanged, "a window of 7 tokens"),
        ("qwen2_window", unchanged, "a window of 7 tokens"),
        ("smollm3", unchanged, "no rotary embedding in layer 1"),
        ("gemma3", unchanged, "on other layers than five of each 6"),
        ("llama_yarn", yarn, "YaRN in a way of its own"),
        (
            "gemma3",
            |config| {
                config["layer_types"] = ["sliding_attention"; 3].into_iter().collect();
                config["query_pre_attn_scalar"] = json!(99);
            },
            "scales its scores otherwise",
        ),
        (
            "qwen2",
            |config| {
                config["rope_parameters"] = json!({ "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0,
                    "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32 });
            },
            "rotary frequencies of Llama 3",
        ),
    ];
    for (family, change, part) in all {
        let from = folder(family, change);
        let out = from.path().join("out.gguf");
        let error = to_gguf(from.path(), &[], BlockType::F32, &out)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(part) && error.contains("which llama.cpp"),
            "{part}: {error}"
        );
        assert!(!out.exists());
    }
}

#[test]
fn matrices_have_the_type_that_is_asked_for_and_the_rest_has_float32() {
    let from = folder("llama_linear", unchanged);
    let out = from.path().join("out.gguf");
    for (kind, stored) in [(BlockType::F16, "float16"), (BlockType::Bf16, "bfloat16")] {
        to_gguf(from.path(), &[], kind, &out).unwrap();
        let files = WeightFiles::open(&out).unwrap();
        for (name, info) in files.tensors() {
            let expected = if info.shape.len() > 1 {
                stored
            } else {
                "float32"
            };
            assert_eq!(files.stored_as(name).unwrap(), expected, "{name}");
        }
    }
    // Down projections have rows of 22.
    let error = to_gguf(from.path(), &[], BlockType::Q8_0, &out)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("ffn_down") && error.contains("are 32."),
        "{error}"
    );
}

#[test]
fn a_tokenizer_beside_a_file_is_read_where_its_own_is_not_known() {
    let from = folder("qwen2", unchanged);
    let out = from.path().join("out.gguf");
    to_gguf(from.path(), &[], BlockType::F32, &out).unwrap();
    let mut bytes = fs::read(&out).unwrap();
    let at = bytes.windows(6).position(|part| part == b"smollm").unwrap();
    bytes[at..at + 6].copy_from_slice(b"sm0llm");
    fs::write(&out, bytes).unwrap();
    let beside = Tokenizer::from_dir(&out, None, &[]).unwrap();
    assert_eq!(beside.file(), from.path().join("tokenizer.json"));
    fs::remove_file(from.path().join("tokenizer.json")).unwrap();
    let error = Tokenizer::from_dir(&out, None, &[])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("\"sm0llm\"") && error.contains("tokenizer.json beside"),
        "{error}"
    );
}

#[test]
fn errors_name_the_model() {
    let empty = tempfile::tempdir().unwrap();
    let absent: PathBuf = empty.path().join("absent.gguf");
    let out = empty.path().join("out");
    for error in [
        to_folder(&absent, &[], WeightType::F32, &out).unwrap_err(),
        to_gguf(&absent, &[], BlockType::F32, &out).unwrap_err(),
    ] {
        assert!(error.to_string().contains("cannot read"), "{error}");
    }
    fs::write(empty.path().join("one.gguf"), "").unwrap();
    let error = to_folder(empty.path(), &[], WeightType::F32, &out)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("the path of the .gguf file itself"),
        "{error}"
    );
}
