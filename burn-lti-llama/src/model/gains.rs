//! Gains of norms, taken into the weights behind them.

use burn::prelude::*;
use burn::tensor::DType;
use burn_lti::geometry::{Role, Site};
use burn_lti::tensors::TensorSet;

use crate::config::{LlamaConfig, site_name};

/// The gains that go into the weights which read what is normed, `diag(gain) C`: each with these weights, by Burn's
/// names. Those of the last norm do where the head is a weight of its own; those of what a block puts out, and of
/// queries and keys, stand before no weight.
pub fn foldable_gains(config: &LlamaConfig) -> Vec<(String, Vec<String>)> {
    let weights = |layer, roles: &[Role]| -> Vec<String> {
        let sites = roles.iter().map(|role| Site::new(layer, *role));
        sites
            .map(|site| format!("{}.weight", site_name(site)))
            .collect()
    };
    let layers = (0..config.num_hidden_layers).filter(|_| config.input_norms);
    let of_layers = layers.flat_map(|layer| {
        [
            (
                "input_layernorm",
                &[Role::Query, Role::Key, Role::Value][..],
            ),
            ("post_attention_layernorm", &[Role::Gate, Role::Up]),
        ]
        .map(|(norm, roles)| {
            let gain = format!("model.layers.{layer}.{norm}.gamma");
            (gain, weights(layer, roles))
        })
    });
    let of_head = (!config.tie_word_embeddings).then(|| {
        let head = weights(0, &[Role::Head]);
        ("model.norm.gamma".to_owned(), head)
    });
    of_layers.chain(of_head).collect()
}

/// The same model, which has `tensors` of this `config`, by Burn's names, with [`foldable_gains`] in the weights behind
/// them and ones in their place: `(x g) C = x (diag(g) C)`, but for rounding.
pub fn with_folded_gains<B: Backend>(config: &LlamaConfig, tensors: &TensorSet<B>) -> TensorSet<B> {
    let mut folded = tensors.clone();
    for (name, weights) in foldable_gains(config) {
        let Some(named) = tensors.get(&name) else {
            continue;
        };
        let width = named.tensor.num_elements();
        let gain: Tensor<B, 1> = named.tensor.to_rank([width]);
        let column = gain.clone().cast(DType::F32).reshape([width, 1]);
        for weight in weights {
            if let Some(named) = tensors.get(&weight) {
                let outputs = named.tensor.num_elements() / width.max(1);
                let c: Tensor<B, 2> = named.tensor.to_rank([width, outputs]);
                let dtype = c.dtype();
                let c = (c.cast(DType::F32) * column.clone()).cast(dtype);
                folded.insert(&weight, "Linear", c);
            }
        }
        folded.insert(&name, "RmsNorm", gain.ones_like());
    }
    folded
}
