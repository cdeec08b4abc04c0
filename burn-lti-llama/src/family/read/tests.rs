//! Tests of the configuration.

use std::fs;

use burn_lti::geometry::HeadGrid;

use super::*;
use crate::config::RopeScaling;

/// The teacher of the repository's recipe.
fn stories260k() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512,
        "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 5,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu", "attention_bias": false, "mlp_bias": false,
        "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2,
        "torch_dtype": "float32"
    })
}

fn read(config: &Value) -> Result<LlamaConfig, ConfigError> {
    LlamaConfig::from_json_str(&config.to_string(), Path::new("dir/config.json"))
}

/// The error of `stories260k` with one field changed.
fn refused(field: &str, value: Value) -> ConfigError {
    let mut config = stories260k();
    config[field] = value;
    let error = read(&config).unwrap_err();
    assert!(error.to_string().contains("dir/config.json"), "{error}");
    assert!(error.to_string().contains(field), "{error}");
    error
}

fn assert_says(error: &ConfigError, part: &str) {
    assert!(error.to_string().contains(part), "{error}");
}

#[test]
fn reads_the_teacher() {
    let config = read(&stories260k()).unwrap();
    assert_eq!(config.query_grid(), HeadGrid::new(8, 8));
    assert_eq!(config.kv_grid(), HeadGrid::new(4, 8));
    assert_eq!((config.rms_norm_eps, config.rope.theta), (1e-5, 10_000.0));
    assert_eq!(
        (config.bos_token_id, config.eos_token_ids.as_slice()),
        (Some(1), &[2][..])
    );
    assert!(config.tie_word_embeddings);
}

#[test]
fn reads_the_configs_of_real_models() {
    // SmolLM2-135M (transformers 4) and TinyLlama-1.1B (an older 4), as published.
    let smol = json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false,
        "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "silu",
        "hidden_size": 576, "initializer_range": 0.041666666666666664,
        "intermediate_size": 1536, "is_llama_config": true, "max_position_embeddings": 8192,
        "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30,
        "num_key_value_heads": 3, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1", "use_cache": true, "vocab_size": 49152
    });
    assert_eq!(read(&smol).unwrap().num_parameters(), 134_515_008);
    let tiny = json!({
        "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
        "intermediate_size": 5632, "max_position_embeddings": 2048, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 22, "num_key_value_heads": 4,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": null,
        "tie_word_embeddings": false, "torch_dtype": "float32",
        "transformers_version": "4.31.0.dev0", "use_cache": true, "vocab_size": 32000
    });
    assert_eq!(read(&tiny).unwrap().num_parameters(), 1_100_048_384);
}

#[test]
fn fills_in_the_defaults_of_transformers() {
    let config = read(&json!({
        "model_type": "llama", "vocab_size": 10, "hidden_size": 12, "intermediate_size": 5,
        "num_hidden_layers": 1, "num_attention_heads": 3, "head_dim": null
    }))
    .unwrap();
    assert_eq!((config.num_key_value_heads, config.head_dim), (3, 4));
    assert_eq!((config.rms_norm_eps, config.rope.theta), (1e-6, 10_000.0));
    assert_eq!(config.max_position_embeddings, 2048);
    assert!(
        !config.tie_word_embeddings && !config.qkv_bias && !config.out_bias && !config.mlp_bias
    );
    assert_eq!((config.bos_token_id, config.eos_token_ids), (None, vec![]));
}

#[test]
fn reads_transformers_5() {
    let mut config = stories260k();
    let fields = config.as_object_mut().unwrap();
    fields.remove("rope_theta");
    fields.remove("torch_dtype");
    fields.insert("dtype".into(), json!("bfloat16"));
    fields.insert("eos_token_id".into(), json!([2, 3]));
    fields.insert(
        "rope_parameters".into(),
        json!({ "rope_type": "default", "rope_theta": 500 }),
    );
    let config = read(&config).unwrap();
    assert_eq!(
        (config.rope.theta, config.eos_token_ids),
        (500.0, vec![2, 3])
    );
}

#[test]
fn reads_what_transformers_says_of_every_model() {
    let mut config = stories260k();
    let plain = read(&config).unwrap();
    let fields = config.as_object_mut().unwrap();
    for (name, value) in [
        ("_model_name_or_path", json!("Smol")),
        ("_commit_hash", json!("0ab1")),
        ("chunk_size_feed_forward", json!(0)),
        ("problem_type", json!("single_label_classification")),
        ("rope_scaling", json!({ "rope_type": "default" })),
        ("attention_dropout", json!(0.1)),
        ("pretraining_tp", json!(2)),
        ("auto_map", json!({})),
        ("max_length", json!(4096)),
        ("do_sample", json!(true)),
        ("tokenizer_class", json!("LlamaTokenizer")),
        ("layer_types", json!(vec!["full_attention"; 5])),
        ("pad_token_id", json!(0)),
    ] {
        fields.insert(name.into(), value);
    }
    let found = read(&config).unwrap();
    // It says it again in what is exported.
    let written = found.to_json();
    for (name, value) in config.as_object().unwrap() {
        if !["rope_scaling", "rope_theta"].contains(&name.as_str()) {
            assert_eq!(written[name], *value, "{name}");
        }
    }
    assert_eq!(found, plain);
}

#[test]
fn reads_every_rotary_embedding() {
    let llama3 = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192 });
    let mut both = llama3.clone();
    both["rope_theta"] = json!(10000.0);
    for (old, new) in [
        (llama3.clone(), Value::Null),
        (Value::Null, both.clone()),
        (llama3, both),
    ] {
        let mut config = stories260k();
        config["rope_scaling"] = old;
        config["rope_parameters"] = new;
        let found = read(&config).unwrap();
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original: 8192.0,
        };
        assert_eq!(found.rope.scaling, scaling);
        assert_eq!(read(&found.to_json()).unwrap().rope, found.rope);
    }
    for (scaling, part) in [
        (
            json!({ "rope_type": "linear" }),
            "has no field `rope_scaling.factor`",
        ),
        (
            json!({ "rope_type": "longrope" }),
            "which is not computed here",
        ),
        (
            json!({ "type": "linear", "factor": 0.5 }),
            "it must be at least 1",
        ),
        (
            json!({ "rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 8192.5 }),
            "it must be a whole number from 1 to 2147483648",
        ),
        (
            json!({ "rope_type": "linear", "factor": 2, "alpha": 3 }),
            "`rope_scaling.alpha` is not known",
        ),
        (
            json!({ "rope_type": "linear", "factor": 2, "rope_theta": 5 }),
            "delete the wrong one",
        ),
    ] {
        let mut config = stories260k();
        config["rope_scaling"] = scaling;
        assert_says(&read(&config).unwrap_err(), part);
    }
}

#[test]
fn says_what_a_model_of_no_family_is() {
    for (field, value, part) in [
        (
            "text_config",
            json!({ "model_type": "gemma3_text" }),
            "a model of several parts",
        ),
        ("num_local_experts", json!(8), "a mixture of experts"),
        (
            "layer_types",
            json!(["linear_attention", "full_attention"]),
            "it is a hybrid",
        ),
        ("mamba_d_state", json!(16), "a recurrent state"),
        (
            "quantization_config",
            json!({ "quant_method": "gptq" }),
            "quantized (gptq)",
        ),
        (
            "model_type",
            json!("gpt2"),
            "use a model of one of llama, mistral",
        ),
        (
            "architectures",
            json!(["LlamaForSequenceClassification"]),
            "is a LlamaForCausalLM",
        ),
    ] {
        assert_says(&refused(field, value), part);
    }
}

#[test]
fn a_mistral_has_a_window_unless_it_says_null() {
    let mut config = stories260k();
    config["model_type"] = json!("mistral");
    config["architectures"] = json!(["MistralForCausalLM"]);
    for field in ["attention_bias", "mlp_bias"] {
        config.as_object_mut().unwrap().remove(field);
    }
    assert_eq!(read(&config).unwrap().windows, [Some(4096); 5]);
    config["sliding_window"] = Value::Null;
    let found = read(&config).unwrap();
    assert_eq!(found.windows, [None; 5]);
    assert!(found.to_json()["sliding_window"].is_null());
    assert_eq!(read(&found.to_json()).unwrap().windows, [None; 5]);
}

#[test]
fn a_gemma_2_has_caps_unless_it_says_null() {
    let mut config = stories260k();
    config["model_type"] = json!("gemma2");
    config["architectures"] = json!(["Gemma2ForCausalLM"]);
    config.as_object_mut().unwrap().remove("mlp_bias");
    let found = read(&config).unwrap();
    assert_eq!(
        (found.attention_cap, found.logit_cap),
        (Some(50.0), Some(30.0))
    );
    let window = Some(4096);
    assert_eq!(found.windows, [window, None, window, None, window]);
    for field in ["attn_logit_softcapping", "final_logit_softcapping"] {
        config[field] = json!(-1.0);
        let error = read(&config).unwrap_err();
        assert_says(&error, field);
        assert_says(&error, "is -1: it must be positive and finite");
        config[field] = Value::Null;
    }
    let found = read(&config).unwrap();
    assert_eq!((found.attention_cap, found.logit_cap), (None, None));
    assert_eq!(read(&found.to_json()).unwrap(), found);
    // A Gemma 3 has none unless it says so, and of scores not even then.
    config["model_type"] = json!("gemma3_text");
    config["architectures"] = json!(["Gemma3ForCausalLM"]);
    for field in ["attn_logit_softcapping", "final_logit_softcapping"] {
        config[field] = json!(20.0);
    }
    let found = read(&config).unwrap();
    assert_eq!((found.attention_cap, found.logit_cap), (None, Some(20.0)));
}

#[test]
fn reads_what_it_writes() {
    let mut config = read(&stories260k()).unwrap();
    for ids in [vec![], vec![2], vec![2, 3]] {
        config.eos_token_ids = ids;
        assert_eq!(read(&config.to_json()).unwrap(), config);
        assert_eq!(serde_json::to_value(&config).unwrap(), config.to_json());
    }
    let json = config.to_json();
    assert_eq!(json["rope_theta"], json["rope_parameters"]["rope_theta"]);
    assert_eq!(json["torch_dtype"], json["dtype"]);
}

#[test]
fn counts_every_tensor_once() {
    let mut config = read(&stories260k()).unwrap();
    // Embedding, then per layer: q, k, v, out, feed-forward, two norms; the last norm.
    let layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 172 + 2 * 64;
    assert_eq!(config.num_parameters(), 512 * 64 + 5 * layer + 64);
    assert_eq!(config.tensors().len(), 1 + 5 * 9 + 1);

    config.tie_word_embeddings = false;
    (config.qkv_bias, config.out_bias) = (true, true);
    config.mlp_bias = true;
    let biases = 64 + 32 + 32 + 64 + 172 + 172 + 64;
    assert_eq!(
        config.num_parameters(),
        2 * 512 * 64 + 5 * (layer + biases) + 64
    );
    let tensors = config.tensors();
    let has = |name: &str, shape: &[usize]| tensors.contains(&(name.into(), shape.to_vec()));
    assert!(has("model.layers.4.self_attn.k_proj.weight", &[32, 64]));
    assert!(has("model.layers.0.self_attn.o_proj.bias", &[64]));
    assert!(has("model.layers.0.mlp.down_proj.weight", &[64, 172]));
    assert_eq!(tensors.last().unwrap().0, "lm_head.weight");
}

#[test]
fn counts_flops_and_cache() {
    let config = read(&stories260k()).unwrap();
    assert_eq!(config.kv_cache_bytes_per_token(), 2 * 5 * 4 * 8 * 4);
    let linear = 5 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 172) + 512 * 64;
    let weights: usize = config.tensors()[..46]
        .iter()
        .filter(|(_, shape)| shape.len() == 2)
        .map(|(_, shape)| shape[0] * shape[1])
        .sum();
    assert_eq!(weights, linear, "the tied embedding is the head");
    // Three tokens see 1, 2 and 3 keys: 6 scores and 6 weighted values of width 64, 5 layers.
    let attention = 2 * 2 * 6 * 64 * 5;
    assert_eq!(
        config.forward_flops(3, 3),
        (2 * 3 * linear + attention) as f64
    );
}

#[test]
fn reads_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(
        LlamaConfig::from_dir(dir.path()),
        Err(ConfigError::Read { .. })
    ));
    fs::write(dir.path().join("config.json"), stories260k().to_string()).unwrap();
    assert_eq!(
        LlamaConfig::from_dir(dir.path()).unwrap(),
        read(&stories260k()).unwrap()
    );
}

#[test]
fn refuses_what_is_no_object() {
    for text in ["", "[1]", "{", "{\"rope_theta\": Infinity}"] {
        let error = LlamaConfig::from_json_str(text, Path::new("c")).unwrap_err();
        assert!(
            matches!(error, ConfigError::Syntax { .. }),
            "{text}: {error}"
        );
    }
}

#[test]
fn refuses_missing_and_mistyped_fields() {
    for field in [
        "model_type",
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
    ] {
        assert!(matches!(
            refused(field, Value::Null),
            ConfigError::Missing { .. }
        ));
    }
    for (field, value) in [
        ("vocab_size", json!("512")),
        ("hidden_size", json!(-64)),
        ("tie_word_embeddings", json!(1)),
        ("eos_token_id", json!("</s>")),
        ("rope_parameters", json!(3)),
    ] {
        assert!(
            matches!(refused(field, value), ConfigError::WrongType { .. }),
            "{field}"
        );
    }
}

#[test]
fn refuses_what_it_does_not_compute() {
    for (field, value) in [
        ("hidden_act", json!("gelu")),
        ("rope_interleaved", json!(true)),
        ("torch_dtype", json!("int8")),
        ("dtype", json!("float64")),
        ("pruned_heads", json!({ "1": [0] })),
    ] {
        assert_says(
            &refused(field, value),
            "is supported: use a model without it",
        );
    }
}

#[test]
fn refuses_unknown_fields() {
    for (field, value) in [
        ("alibi", json!(true)),
        ("rope_parameters", json!({ "factor": 8.0 })),
    ] {
        assert_says(&refused(field, value), "is not known here");
    }
}

#[test]
fn refuses_values_out_of_range() {
    for (field, value) in [
        ("vocab_size", json!(0)),
        ("hidden_size", json!(1_u64 << 40)),
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(0)),
        ("head_dim", json!(0)),
        ("max_position_embeddings", json!(0)),
    ] {
        assert_says(&refused(field, value), "it must be from 1 to ");
    }
    for field in ["rms_norm_eps", "rope_theta"] {
        assert_says(&refused(field, json!(0)), "it must be positive and finite");
    }
    for (field, value) in [
        ("bos_token_id", json!(512)),
        ("eos_token_id", json!([2, 600])),
    ] {
        assert_says(&refused(field, value), "it must be below `vocab_size`, 512");
    }
    assert_says(&refused("head_dim", json!(7)), "is 7: it must be even");
    let error = refused("num_key_value_heads", json!(3));
    assert!(matches!(error, ConfigError::KvHeads { .. }));
    assert!(error.to_string().contains("1, 2, 4, 8"), "{error}");
}

#[test]
fn refuses_a_default_head_dim_that_is_not_whole() {
    let mut config = stories260k();
    config["head_dim"] = Value::Null;
    config["num_attention_heads"] = json!(12);
    assert_says(&read(&config).unwrap_err(), "set `head_dim`");
    config["num_attention_heads"] = json!(0);
    assert_says(&read(&config).unwrap_err(), "it must be from 1 to ");
}

#[test]
fn refuses_two_rotary_bases() {
    let error = refused("rope_parameters", json!({ "rope_theta": 500.0 }));
    assert_says(&error, "is 10000 but `rope_parameters.rope_theta` is 500: ");
}

#[test]
fn what_is_no_model_is_named_for_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let says = |part: &str| {
        let error = LlamaConfig::from_dir(dir.path()).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    fs::write(dir.path().join("adapter_config.json"), "{}").unwrap();
    says("an adapter (LoRA)");
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    fs::write(dir.path().join("config.json"), pointer).unwrap();
    says("git lfs pull");
    let error = LlamaConfig::from_dir(Path::new("hf:nobody/nothing")).unwrap_err();
    assert!(
        error.to_string().contains("hf download nobody/nothing"),
        "{error}"
    );
}

#[test]
fn an_unknown_field_may_be_accepted_by_its_name_and_no_other_one() {
    let mut config = stories260k();
    config["residual_scale"] = 2.into();
    config["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 10000.0, "twist": 1});
    let text = config.to_string();
    let read = |accept: &[&str]| {
        let accept: Vec<String> = accept.iter().map(|&name| name.to_owned()).collect();
        let config = LlamaConfig::read(&text, Path::new("dir/config.json"), &accept)?;
        LlamaConfig::check_accepted(&accept, &[&config])?;
        Ok::<_, ConfigError>(config)
    };
    let both = ["residual_scale", "rope_parameters.twist"];
    let found = read(&both).unwrap();
    assert_eq!(found.source.accepted(), both);
    assert_eq!(found.to_json()["residual_scale"], 2);
    // What is refused says how it is accepted.
    let says = |accept: &[&str], parts: &[&str]| {
        let error = read(accept).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    says(
        &both[..1],
        &[
            "`rope_parameters.twist` is not known here",
            "--accept rope_parameters.twist",
        ],
    );
    says(
        &["twist", "rope_parameters.twist"],
        &["--accept residual_scale", "teacher.accept"],
    );
    for known in ["hidden_size", "no_such_field"] {
        let all = [both[0], both[1], known];
        says(&all, &[&format!("no field `{known}`"), "nothing to accept"]);
    }
    // What is known and not computed is none that could be accepted.
    let error = refused("quantization_config", json!({"bits": 4}));
    assert_says(&error, "the weights are quantized");
    let mut config = stories260k();
    config["quantization_config"] = json!({"bits": 4});
    let accept = ["quantization_config".to_owned()];
    LlamaConfig::read(&config.to_string(), Path::new("c"), &accept).unwrap_err();
}

/// By rules that count layers some of these files say nothing of each, which holds no longer once some are gone.
#[test]
fn a_model_with_some_of_its_layers_says_of_each_what_it_is() {
    let families = Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/fixtures/families"
    ));
    let mut cut = 0;
    for entry in families.read_dir().unwrap() {
        let folder = entry.unwrap().path();
        let Ok(config) = LlamaConfig::from_dir(&folder) else {
            continue; // what is refused, and scripts
        };
        let layers = config.num_hidden_layers;
        for kept in [vec![layers - 1], vec![0, layers - 1], (1..layers).collect()] {
            if kept.is_sorted_by(|a, b| a < b) && kept.len() < layers {
                let shorter = config.with_layers(&kept);
                let text = shorter.to_json().to_string();
                let read = LlamaConfig::from_json_str(&text, &folder).unwrap();
                assert_eq!(read, shorter, "{}: {kept:?}", folder.display());
                cut += 1;
            }
        }
    }
    assert!(cut > 30, "{cut}");
}
