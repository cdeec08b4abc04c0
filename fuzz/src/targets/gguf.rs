//! GGUF: a container, the configuration, the tokenizer and the tensors that are read out of it.

use std::fs;
use std::path::Path;

use burn_lti_llama::config::LlamaConfig;
use burn_lti_llama::convert::to_gguf;
use burn_lti_llama::gguf::BlockType;
use burn_lti_llama::hf::WeightFiles;
use burn_lti_llama::tokenizer::Tokenizer;
use serde_json::{Value, json};

use super::{folder, write};
use crate::Target;

/// Numbers of a quantized tensor are some nine times its bytes, and a tokenizer is read twice.
const GGUF_BOUND: usize = 256 << 20;

/// A whole model, and a file of all types of blocks.
fn seeds() -> Vec<Vec<u8>> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let read = |path: &Path| fs::read(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    let (from, to) = (folder(), folder());
    for file in ["config.json", "model.safetensors"] {
        write(
            &from.path().join(file),
            &read(&fixtures.join("tiny_llama/tied").join(file)),
        );
    }
    write(
        &from.path().join("tokenizer.json"),
        tokenizer().to_string().as_bytes(),
    );
    let models = [BlockType::F32, BlockType::F16].map(|kind| {
        let out = to.path().join(format!("{kind}.gguf"));
        to_gguf(from.path(), &[], kind, &out).unwrap_or_else(|error| panic!("{error}"));
        read(&out)
    });
    let blocks = read(&fixtures.join("gguf/blocks.gguf"));
    models.into_iter().chain([blocks]).collect()
}

/// Pairs of bytes.
fn tokenizer() -> Value {
    let special = ["<unk>", "<s>", "</s>"];
    let tokens = special
        .into_iter()
        .chain(["w", "\u{120}", "\u{120}w", "1", "2", "12"]);
    let vocab: serde_json::Map<String, Value> = tokens
        .zip(0u32..)
        .map(|(token, id)| (token.to_owned(), id.into()))
        .collect();
    let added = special.iter().zip(0u32..).map(|(token, id)| {
        json!({ "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
    });
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null, "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": { "type": "BPE", "vocab": vocab, "merges": ["\u{120} w", "1 2"] },
    })
}

/// What a file is read as: a model has a configuration, each tensor the numbers of its shape, and a tokenizer makes
/// tokens of a text.
pub fn gguf() -> Target {
    let dir = folder();
    Target {
        seeds: seeds(),
        words: &[
            "GGUF",
            "general.architecture",
            "llama",
            "qwen2",
            "gemma3",
            "phi3",
            "llama.block_count",
            "llama.attention.head_count",
            "llama.rope.dimension_count",
            "tokenizer.ggml.model",
            "tokenizer.ggml.tokens",
            "tokenizer.ggml.merges",
            "tokenizer.ggml.scores",
            "tokenizer.ggml.pre",
            "gpt2",
            "general.alignment",
            "token_embd.weight",
            "blk.0.attn_q.weight",
            "rope_freqs.weight",
            "\u{1}\0\0\0\0\0\0\0",
            "\u{8}\0\0\0",
            "\t\0\0\0",
        ],
        bound: GGUF_BOUND,
        check: Box::new(move |bytes| {
            let path = dir.path().join("model.gguf");
            write(&path, bytes);
            let config = LlamaConfig::from_dir(&path);
            let tokenizer = Tokenizer::from_dir(&path, None, &[]);
            if let Ok(tokenizer) = &tokenizer {
                let _ = tokenizer.encode_prompt("w12 w <s>\n");
            }
            let Ok(files) = WeightFiles::open(&path) else {
                return false;
            };
            for (name, info) in files.tensors() {
                if let Ok(values) = files.read_f32(name) {
                    assert_eq!(values.len(), info.shape.iter().product::<usize>(), "{name}");
                }
            }
            config.is_ok() && tokenizer.is_ok()
        }),
    }
}
