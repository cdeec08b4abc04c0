//! One table between Hugging Face's names and layouts and Burn's.

/// What Burn makes of a parameter of Hugging Face's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Naming {
    /// `model.norm.gamma`
    pub(super) burn: String,
    /// The Burn struct that holds it.
    pub(super) owner: &'static str,
    /// Whether it is a `Linear` weight, which Hugging Face keeps `[out, in]` and Burn `[in, out]`.
    pub(super) transposed: bool,
}

impl Naming {
    /// Of the parameter that Hugging Face calls `name`.
    pub(super) fn of(name: &str) -> Self {
        let (holder, leaf) = name.rsplit_once('.').unwrap_or(("", name));
        let module = holder.rsplit('.').next().unwrap_or_default();
        let (owner, burn_leaf) = match (module, leaf) {
            ("embed_tokens", _) => ("Embedding", leaf),
            (norm, "weight") if norm.ends_with("norm") => ("RmsNorm", "gamma"),
            _ => ("Linear", leaf),
        };
        Self {
            burn: format!("{holder}.{burn_leaf}"),
            owner,
            transposed: owner == "Linear" && leaf == "weight",
        }
    }
}

/// The name that Hugging Face gives the parameter which Burn calls `name`. (The parts of maps are in no
/// file, and keep theirs.)
pub(crate) fn file_name(name: &str) -> String {
    match name.strip_suffix(".gamma") {
        Some(norm) => format!("{norm}.weight"),
        None => name.to_owned(),
    }
}

/// Axes that Burn has, as they stand in a file under Hugging Face's `name`.
pub(crate) fn file_layout(name: &str, shape: &[usize]) -> Vec<usize> {
    match (Naming::of(name).transposed, shape) {
        (true, &[d_input, d_output]) => vec![d_output, d_input],
        _ => shape.to_vec(),
    }
}

/// The name that Burn gives the parameter which Hugging Face calls `name`.
pub(crate) fn burn_name(name: &str) -> String {
    Naming::of(name).burn
}

/// The name that a tensor of the teacher's has among those of a student that keeps these of its layers: theirs are
/// numbered anew. `None` for a tensor of a layer that is gone.
pub(crate) fn kept_name(name: &str, kept: &[usize]) -> Option<String> {
    let Some((layer, rest)) = layer_and_rest(name) else {
        return Some(name.to_owned());
    };
    let number = kept.iter().position(|it| *it == layer)?;
    Some(format!("{LAYERS}{number}.{rest}"))
}

/// The name that the teacher has for what is called so in a student that keeps these of its layers.
pub(crate) fn source_name(name: &str, kept: &[usize]) -> String {
    match layer_and_rest(name) {
        Some((layer, rest)) if layer < kept.len() => format!("{LAYERS}{}.{rest}", kept[layer]),
        _ => name.to_owned(),
    }
}

const LAYERS: &str = "model.layers.";

fn layer_and_rest(name: &str) -> Option<(usize, &str)> {
    let (layer, rest) = name.strip_prefix(LAYERS)?.split_once('.')?;
    Some((layer.parse().ok()?, rest))
}

/// Rows and columns exchanged: `[rows, columns]` row-major to `[columns, rows]`.
pub(super) fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    // Tiles, so that neither side strides through memory a whole row at a time.
    const TILE: usize = 32;
    let mut out = vec![0.0; values.len()];
    for row_tile in (0..rows).step_by(TILE) {
        for column_tile in (0..columns).step_by(TILE) {
            for row in row_tile..(row_tile + TILE).min(rows) {
                for column in column_tile..(column_tile + TILE).min(columns) {
                    out[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_are_renamed_and_linears_transposed() {
        let norm = Naming::of("model.layers.0.input_layernorm.weight");
        assert_eq!(norm.burn, "model.layers.0.input_layernorm.gamma");
        assert!(!norm.transposed);
        let linear = Naming::of("model.layers.0.self_attn.q_proj.weight");
        assert_eq!(linear.burn, "model.layers.0.self_attn.q_proj.weight");
        assert!(linear.transposed);
        assert!(!Naming::of("model.layers.0.self_attn.q_proj.bias").transposed);
        assert!(!Naming::of("model.embed_tokens.weight").transposed);
        assert_eq!(Naming::of("model.norm.weight").burn, "model.norm.gamma");
        assert!(Naming::of("lm_head.weight").transposed);
    }

    #[test]
    fn layers_that_stay_are_numbered_anew() {
        let (own, of_teacher) = (
            "model.layers.1.mlp.up_proj.weight",
            "model.layers.12.mlp.up_proj.weight",
        );
        let kept = [0, 12, 13];
        assert_eq!(kept_name(of_teacher, &kept).as_deref(), Some(own));
        assert_eq!(source_name(own, &kept), of_teacher);
        assert_eq!(kept_name(own, &kept), None);
        for name in ["model.norm.weight", "lm_head.weight"] {
            assert_eq!(kept_name(name, &kept).as_deref(), Some(name));
            assert_eq!(source_name(name, &kept), name);
        }
    }

    #[test]
    fn transposing_twice_changes_nothing() {
        let values: Vec<f32> = (0..33 * 70).map(|i| i as f32).collect();
        let turned = transpose(&values, 33, 70);
        assert_eq!(turned[5 * 33 + 7], values[7 * 70 + 5]);
        assert_eq!(transpose(&turned, 70, 33), values);
    }
}
