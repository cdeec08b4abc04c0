//! What a model is that is of no family here.

use serde_json::{Map, Value};

/// Says what a model is, from its `config.json`, if it is not a decoder of one text with the same weights for
/// every token.
pub(crate) fn check(map: &Map<String, Value>) -> Result<(), (&'static str, String)> {
    let model_type = map.get("model_type").and_then(Value::as_str).unwrap_or("");
    for part in [
        "text_config",
        "llm_config",
        "language_config",
        "thinker_config",
    ] {
        if let Some(text) = map.get(part).filter(|it| it.is_object()) {
            let inner = text.get("model_type").and_then(Value::as_str);
            let inner = inner.map_or(String::new(), |it| format!(", a {it},"));
            let reason = format!(
                "holds the language model{inner} of a model of several parts ({model_type}): save that part alone, \
                 as a causal language model"
            );
            return Err((part, reason));
        }
    }
    const EXPERTS: [&str; 5] = [
        "num_local_experts",
        "num_experts",
        "n_routed_experts",
        "moe_num_experts",
        "num_experts_per_tok",
    ];
    for field in EXPERTS {
        let count = map.get(field).and_then(Value::as_u64);
        if count.is_some_and(|experts| experts > 1 || field == "num_experts_per_tok") {
            let reason = "makes it a mixture of experts, whose weights differ from token to token: use a dense model";
            return Err((field, reason.to_owned()));
        }
    }
    let linear = ["linear_attention", "mamba", "recurrent", "conv"];
    for field in [
        "layer_types",
        "layers_block_type",
        "block_types",
        "hybrid_override_pattern",
    ] {
        let kinds = map
            .get(field)
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        let mut kinds = kinds.filter_map(Value::as_str);
        if let Some(kind) = kinds.find(|kind| linear.contains(kind)) {
            let reason = format!(
                "has {kind}: it is a hybrid, some of whose layers have no attention: use a model of attention \
                 layers alone"
            );
            return Err((field, reason));
        }
    }
    for field in [
        "ssm_state_size",
        "mamba_d_state",
        "linear_num_key_heads",
        "state_size",
    ] {
        if map.contains_key(field) {
            let reason =
                "is of a model with a recurrent state: use a model of attention layers alone";
            return Err((field, reason.to_owned()));
        }
    }
    if map.get("is_encoder_decoder") == Some(&Value::Bool(true)) {
        let reason = "is true: it is an encoder with a decoder: use a decoder alone";
        return Err(("is_encoder_decoder", reason.to_owned()));
    }
    if let Some(quantized) = map.get("quantization_config").filter(|it| !is_empty(it)) {
        let method = quantized.get("quant_method").and_then(Value::as_str);
        let method = method.map_or(String::new(), |it| format!(" ({it})"));
        let reason = format!(
            "says that the weights are quantized{method}, which are no numbers to learn from: use the model that \
             they were made of"
        );
        return Err(("quantization_config", reason));
    }
    Ok(())
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_some_and(Map::is_empty)
}
