//! Tests of GGUF files as models: blocks beside those of the Python package, keys, tokenizers.

use std::path::PathBuf;

use burn_lti::files::TensorFile;
use serde_json::json;
use tempfile::TempDir;

use super::*;

fn fixture(name: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gguf");
    fixtures.join(name)
}

/// A file of these keys, and the tensors that a model has to have.
fn model(keys: &[(&str, NewValue)]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let mut all = vec![
        ("general.architecture", NewValue::Text("llama".into())),
        ("llama.block_count", NewValue::Number(1)),
        ("llama.context_length", NewValue::Number(64)),
        ("llama.embedding_length", NewValue::Number(8)),
        ("llama.feed_forward_length", NewValue::Number(12)),
        ("llama.attention.head_count", NewValue::Number(2)),
        (
            "llama.attention.layer_norm_rms_epsilon",
            NewValue::Float(1e-5),
        ),
    ];
    for (key, value) in keys {
        all.retain(|(known, _)| known != key);
        all.push((*key, value.clone()));
    }
    let all: Vec<(String, NewValue)> = all
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    let tensor = |name: &str, shape: &[usize]| {
        let count: usize = shape.iter().product();
        NewTensor {
            name: name.to_owned(),
            shape: shape.to_vec(),
            kind: BlockType::F32,
            numbers: Box::new(move || Ok::<_, GgufError>((0..count).map(|it| it as f32).collect())),
        }
    };
    let tensors = vec![
        tensor("token_embd.weight", &[5, 8]),
        tensor("blk.0.attn_q.weight", &[8, 8]),
        tensor("blk.0.unheard_of.weight", &[8]),
    ];
    write(&path, &all, tensors).unwrap();
    (folder, path)
}

fn refusal(keys: &[(&str, NewValue)]) -> String {
    let (_folder, path) = model(keys);
    let gguf = Gguf::open(&path);
    gguf.and_then(|gguf| gguf.config()).unwrap_err().to_string()
}

#[test]
fn blocks_are_read_as_the_package_of_python_reads_them() {
    let file = Container::open(&fixture("blocks.gguf")).unwrap();
    let expected = std::fs::read(fixture("blocks.safetensors")).unwrap();
    let expected = TensorFile::from_bytes(&expected).unwrap();
    assert_eq!(file.tensors.len(), BlockType::ALL.len());
    for kind in BlockType::ALL {
        let tensor = file.tensor(&kind.name().to_lowercase()).unwrap();
        assert_eq!((tensor.kind, &tensor.shape), (kind, &vec![2, 512]));
        let found = kind.to_f32(file.bytes(&tensor.bytes));
        let expected = expected.tensors.get(&tensor.name).unwrap();
        let expected = BlockType::F32.to_f32(expected.data());
        assert!(expected.iter().all(|number| number.is_finite()));
        assert!(expected.iter().any(|number| *number != 0.0));
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(
                found.to_bits(),
                expected.to_bits(),
                "{kind} {index}: {found} {expected}"
            );
        }
        assert_eq!(found.len(), expected.len());
    }
}

#[test]
fn blocks_are_written_as_the_package_of_python_writes_them() {
    let file = std::fs::read(fixture("q8_0.safetensors")).unwrap();
    let file = TensorFile::from_bytes(&file).unwrap();
    let bytes = |name: &str| file.tensors.get(name).unwrap().data().to_vec();
    let numbers = BlockType::F32.to_f32(&bytes("numbers"));
    assert_eq!(BlockType::Q8_0.to_bytes(&numbers).unwrap(), bytes("blocks"));
    for kind in BlockType::ALL {
        assert_eq!(
            kind.to_bytes(&numbers).is_some(),
            BlockType::WRITTEN.contains(&kind)
        );
    }
}

#[test]
fn a_file_is_a_folder_under_its_names() {
    let (_folder, path) = model(&[]);
    let gguf = Gguf::open(&path).unwrap();
    let names: Vec<&str> = gguf.tensors().iter().map(|it| it.name.as_str()).collect();
    let query = "model.layers.0.self_attn.q_proj.weight";
    assert_eq!(
        names,
        [
            "model.embed_tokens.weight",
            query,
            "blk.0.unheard_of.weight"
        ]
    );
    // Rows of 2 heads, of which each half stands in every second row of the file.
    let numbers = gguf.read(&gguf.tensors()[1]);
    let first: Vec<f32> = numbers
        .iter()
        .step_by(8)
        .map(|number| number / 8.0)
        .collect();
    assert_eq!(first, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    let config = gguf.config().unwrap();
    for (field, value) in [
        ("model_type", json!("llama")),
        ("vocab_size", json!(5)),
        ("num_key_value_heads", json!(2)),
        ("head_dim", json!(4)),
        ("rms_norm_eps", json!(1e-5)),
        ("rope_theta", json!(10_000.0)),
        ("tie_word_embeddings", json!(true)),
    ] {
        assert_eq!(config[field], value, "{field}");
    }
}

#[test]
fn what_a_file_says_and_is_not_known_is_refused_by_its_name() {
    let number = NewValue::Number;
    let text = |text: &str| NewValue::Text(text.into());
    for (keys, part) in [
        (
            vec![("general.architecture", text("mamba"))],
            "is a mamba, a family",
        ),
        (
            vec![("llama.expert_count", number(8))],
            "mixture of 8 experts",
        ),
        (vec![("split.count", number(3))], "one of 3 parts"),
        (
            vec![("llama.attention.what", number(1))],
            "`llama.attention.what`, which is not known",
        ),
        (
            vec![("llama.logit_scale", NewValue::Float(2.0))],
            "only computed of a granite",
        ),
        (
            vec![("llama.attention.value_length", number(6))],
            "not that of keys",
        ),
        (
            vec![("llama.rope.dimension_count", number(2))],
            "turns 2 of a head's 4",
        ),
        (
            vec![("llama.rope.scaling.type", text("longrope"))],
            "\"longrope\", which is not",
        ),
        (
            vec![("llama.rope.scaling.type", text("linear"))],
            "no key `llama.rope.scaling.factor`",
        ),
        (vec![("llama.block_count", text("two"))], "no whole number"),
        (
            vec![("llama.block_count", number(1 << 30))],
            "claims 1073741824 layers and has 3 tensors",
        ),
        (
            vec![(
                "llama.feed_forward_length",
                NewValue::Integers(vec![12, 16]),
            )],
            "layers that are unlike",
        ),
        (
            vec![("llama.attention.head_count", number(3))],
            "heads of pairs do not divide",
        ),
        (
            vec![("llama.attention.head_count", number(0))],
            "heads of pairs do not divide",
        ),
    ] {
        let error = refusal(&keys);
        assert!(
            error.contains("model.gguf") && error.contains(part),
            "{part}: {error}"
        );
    }
}

#[test]
fn a_window_of_a_llama_is_that_of_a_mistral() {
    let (_folder, path) = model(&[("llama.attention.sliding_window", NewValue::Number(16))]);
    let config = Gguf::open(&path).unwrap().config().unwrap();
    assert_eq!(
        (&config["model_type"], &config["sliding_window"]),
        (&json!("mistral"), &json!(16))
    );
}

/// The keys of a tokenizer.
fn tokenizer(model: &str, more: &[(&'static str, NewValue)]) -> Vec<(&'static str, NewValue)> {
    let tokens = ["<unk>", "<s>", "\u{2581}", "a", "b"]
        .map(String::from)
        .to_vec();
    let mut keys = vec![
        ("tokenizer.ggml.model", NewValue::Text(model.into())),
        ("tokenizer.ggml.tokens", NewValue::Texts(tokens)),
        (
            "tokenizer.ggml.token_type",
            NewValue::Integers(vec![2, 3, 1, 1, 1]),
        ),
        ("tokenizer.ggml.bos_token_id", NewValue::Number(1)),
    ];
    keys.extend(more.iter().cloned());
    keys
}

fn vocabulary(keys: &[(&str, NewValue)]) -> Result<Vocabulary, GgufError> {
    let (_folder, path) = model(keys);
    Gguf::open(&path).unwrap().vocabulary()
}

#[test]
fn a_tokenizer_that_is_not_known_is_named_with_the_way_out() {
    let text = |text: &str| NewValue::Text(text.into());
    for (keys, part) in [
        (Vec::new(), "has no tokenizer"),
        (tokenizer("t5", &[]), "has a tokenizer \"t5\""),
        (
            tokenizer("gpt2", &[]),
            "does not say how its tokenizer cuts",
        ),
        (
            tokenizer("gpt2", &[("tokenizer.ggml.pre", text("no-such"))]),
            "cuts a text by \"no-such\"",
        ),
    ] {
        let error = vocabulary(&keys).unwrap_err();
        assert!(matches!(error, GgufError::Tokenizer { .. }));
        let error = error.to_string();
        assert!(
            error.contains(part) && error.contains("tokenizer.json beside"),
            "{error}"
        );
    }
}

#[test]
fn a_tokenizer_that_contradicts_itself_is_refused() {
    let pre = || ("tokenizer.ggml.pre", NewValue::Text("gpt-2".into()));
    let merges = |merge: &str| ("tokenizer.ggml.merges", NewValue::Texts(vec![merge.into()]));
    let twice = ["a", "b", "a", "c", "d"].map(String::from).to_vec();
    for (keys, part) in [
        (
            tokenizer("gpt2", &[pre(), merges("ab")]),
            "the merge \"ab\"",
        ),
        (
            tokenizer(
                "gpt2",
                &[pre(), ("tokenizer.ggml.eos_token_id", NewValue::Number(9))],
            ),
            "names token 9",
        ),
        (
            tokenizer("llama", &[]),
            "0 entries of `tokenizer.ggml.scores` for 5 tokens",
        ),
        (
            vec![
                ("tokenizer.ggml.model", NewValue::Text("gpt2".into())),
                pre(),
                ("tokenizer.ggml.tokens", NewValue::Texts(twice)),
            ],
            "has \"a\" as token 0 and as token 2",
        ),
    ] {
        let error = vocabulary(&keys).unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn scores_are_merges_by_falling_score() {
    let tokens = ["<unk>", "a", "b", "ab", "ba", "aba"]
        .map(String::from)
        .to_vec();
    let keys = [
        ("tokenizer.ggml.model", NewValue::Text("llama".into())),
        ("tokenizer.ggml.tokens", NewValue::Texts(tokens)),
        (
            "tokenizer.ggml.token_type",
            NewValue::Integers(vec![2, 1, 1, 1, 1, 1]),
        ),
        (
            "tokenizer.ggml.scores",
            NewValue::Floats(vec![0.0, -9.0, -9.0, -2.0, -1.0, -3.0]),
        ),
        ("tokenizer.ggml.unknown_token_id", NewValue::Number(0)),
        ("tokenizer.chat_template", NewValue::Text("plain".into())),
        (
            "tokenizer.chat_template.tools",
            NewValue::Text("with tools".into()),
        ),
    ];
    let vocabulary = vocabulary(&keys).unwrap();
    let json = vocabulary.tokenizer_json();
    let expected = json!([["b", "a"], ["a", "b"], ["a", "ba"], ["ab", "a"]]);
    assert_eq!(json["model"]["merges"], expected);
    assert_eq!(json["model"]["unk_token"], "<unk>");
    let templates = &vocabulary.tokenizer_config()["chat_template"];
    assert_eq!(
        templates[0],
        json!({ "name": "default", "template": "plain" })
    );
    assert_eq!(templates[1]["name"], "tools");

    // And back: the scores are others, the order is the same.
    let special = Special {
        unknown: Some(0),
        ..Special::default()
    };
    let of_json = |json: &Value| {
        let (file, special) = (Path::new("tokenizer.json"), special.clone());
        Vocabulary::of_json(json, file, 6, special, [false; 2], None)
    };
    let again = of_json(&json).unwrap();
    assert_eq!(again.tokenizer_json(), json);
    for (change, part) in [
        (
            json!([["b", "a"], ["a", "b"], ["a", "ba"]]),
            "only in some of the ways",
        ),
        (
            json!([["a", "ba"], ["b", "a"], ["a", "b"], ["ab", "a"]]),
            "no scores",
        ),
        (json!([["b", "b"]]), "makes no token"),
        (json!([["b"]]), "not two pieces"),
    ] {
        let mut json = json.clone();
        json["model"]["merges"] = change;
        let error = of_json(&json).unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
    let error = |change: &dyn Fn(&mut Value)| {
        let mut json = json.clone();
        change(&mut json);
        of_json(&json).unwrap_err().to_string()
    };
    let words = error(&|json| json["model"]["type"] = "WordLevel".into());
    assert!(words.contains("is WordLevel"), "{words}");
    let spaces = error(&|json| json["normalizer"] = json!({ "type": "NFKC" }));
    assert!(spaces.contains("does not treat spaces"), "{spaces}");
    let cut = error(&|json| json["model"]["byte_fallback"] = false.into());
    assert!(cut.contains("no name in GGUF"), "{cut}");
    let many = error(&|json| json["model"]["vocab"]["zzz"] = 6.into());
    assert!(
        many.contains("\"zzz\", for which the model has no embedding"),
        "{many}"
    );
}

#[test]
fn what_blocks_do_not_divide_is_refused_with_the_nearest_that_they_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.gguf");
    let attempt = |row: usize, kind, number: f32| {
        let tensor = NewTensor {
            name: "t".to_owned(),
            shape: vec![2, row],
            kind,
            numbers: Box::new(move || Ok::<_, GgufError>(vec![number; 2 * row])),
        };
        write(&path, &[], vec![tensor]).map_err(|error| error.to_string())
    };
    for (row, kind, number, part) in [
        (48, BlockType::Q8_0, 1.0, "nearest that work are 32 or 64"),
        (20, BlockType::Q8_0, 1.0, "nearest that work are 32."),
        (32, BlockType::Q8_0, f32::NAN, "not finite in Q8_0"),
        (32, BlockType::Q8_0, 1e9, "not finite in Q8_0"),
        (32, BlockType::F16, 1e6, "not finite in F16"),
        (256, BlockType::Q4K, 1.0, "Q4_K is only read here"),
    ] {
        let error = attempt(row, kind, number).unwrap_err();
        assert!(
            error.contains("out.gguf") && error.contains(part),
            "{part}: {error}"
        );
        assert!(!path.exists());
    }
    attempt(64, BlockType::Q8_0, 1.0).unwrap();
    let file = Container::open(&path).unwrap();
    assert_eq!(file.tensors[0].shape, [2, 64]);
}

#[test]
fn no_byte_makes_more_than_an_error() {
    let pre = ("tokenizer.ggml.pre", NewValue::Text("llama-bpe".into()));
    let scaling = [
        ("llama.rope.scaling.type", NewValue::Text("yarn".into())),
        ("llama.rope.scaling.factor", NewValue::Float(4.0)),
        (
            "llama.rope.scaling.original_context_length",
            NewValue::Number(16),
        ),
    ];
    let merges = ("tokenizer.ggml.merges", NewValue::Texts(vec!["a b".into()]));
    let keys = [tokenizer("gpt2", &[pre, merges]), scaling.to_vec()].concat();
    let (_folder, path) = model(&keys);
    let whole = std::fs::read(&path).unwrap();
    let attempt = || {
        let config = crate::config::LlamaConfig::from_dir(&path).is_ok();
        let Ok(gguf) = Gguf::open(&path) else {
            return false;
        };
        gguf.tensors()
            .iter()
            .for_each(|tensor| drop(gguf.read(tensor)));
        let json = gguf.vocabulary().map(|it| it.tokenizer_json());
        config && json.is_ok()
    };
    assert!(attempt());
    let mut refused = 0;
    // Its keys and shapes, and the first of its numbers.
    for at in 0..whole.len() - 300 {
        for byte in [0, 0xff, whole[at] ^ 1] {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            std::fs::write(&path, bytes).unwrap();
            refused += usize::from(!attempt());
        }
    }
    assert!(refused > whole.len() / 4);
}
