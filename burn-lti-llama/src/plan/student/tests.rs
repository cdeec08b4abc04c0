//! Tests of what is copied, shared and frozen by the names of tensors.

use super::super::Plan;
use super::super::tests::{plan, refused, tensor};
use super::*;

fn share(pattern: &str, template: &str) -> String {
    format!("weights.share={{ '{pattern}' = '{template}' }}")
}

fn copy(pattern: &str, template: &str) -> String {
    format!("weights.copy={{ '{pattern}' = '{template}' }}")
}

/// The tensors of `blueprint` that are one variable with another, and that other.
fn shared(blueprint: &Blueprint) -> BTreeMap<&str, &str> {
    let tensors = blueprint.tensors.iter();
    let shared = tensors.filter_map(|it| Some((it.name.as_str(), it.shared_with.as_deref()?)));
    shared.collect()
}

/// Why the rules of `key` are refused.
#[track_caller]
fn weights_error(key: &str, overrides: &[&str]) -> BlueprintError {
    let error = refused(overrides);
    let message = error.to_string();
    assert!(message.starts_with(&format!("{key}: ")), "{message}");
    assert!(message.contains("; `burn-lti plan` without the rule lists the names"));
    match error {
        PlanError::Weights { reason, .. } => reason,
        other => panic!("{other}"),
    }
}

macro_rules! assert_weights {
    ($key:expr, $overrides:expr, $pattern:pat) => {{
        let error = weights_error($key, $overrides);
        assert!(matches!(error, $pattern), "{error}");
    }};
}

#[test]
fn a_whole_layer_is_shared_maps_and_kernels_with_it() {
    let layer = share(r"model\.layers\.0\.(.*)", "model.layers.1.$1");
    let plan_of_shared = plan(&[&layer, "phase2.steps=3"]);
    for leaf in ["c", "right.a", "right.b"] {
        let [with, name] = [0, 1].map(|it| format!("model.layers.{it}.self_attn.q_proj.{leaf}"));
        let tensor = tensor(&plan_of_shared, &name);
        assert_eq!(tensor.origin, Origin::Shared { with });
        assert_eq!(tensor.trained, leaf != "c");
    }
    let pair = |leaf: &str| [1, 0].map(|layer| format!("model.layers.{layer}.{leaf}"));
    let with_maps = shared(&plan_of_shared.with_maps);
    let without_maps = shared(&plan_of_shared.without_maps);
    let [to, from] = pair("self_attn.q_proj.weight");
    assert_eq!(without_maps[to.as_str()], from);
    assert!(!with_maps.contains_key(to.as_str()));
    let [to, from] = pair("mlp.up_proj.weight");
    assert_eq!(with_maps[to.as_str()], from);
    // A map less to train, in both phases.
    let alone = plan(&["phase2.steps=3"]);
    let count = |plan: &Plan| {
        let phase2 = plan.phase2.as_ref().unwrap();
        (plan.totals.trained_parameters, phase2.trainable_parameters)
    };
    let (all, all_2) = count(&alone);
    assert_eq!(count(&plan_of_shared), (all / 5 * 4, all_2 / 5 * 4));
}

#[test]
fn one_map_for_every_layer_leaves_the_kernels_alone() {
    let maps = share(
        r"model\.layers\.0\.self_attn\.(.*)\.(a|b)",
        "model.layers.1.self_attn.$1.$2",
    );
    let plan = plan(&[&maps]);
    assert_eq!(shared(&plan.with_maps).len(), 8);
    assert!(shared(&plan.without_maps).is_empty());
    let c = tensor(&plan, "model.layers.1.self_attn.q_proj.c");
    assert!(matches!(c.origin, Origin::TeacherKernel { .. }));
    // Without maps the rule would say nothing.
    let projections = [&maps, "lti.train=projections"];
    assert_weights!(SHARE, &projections, BlueprintError::NoMatch { .. });
}

#[test]
fn chains_end_at_a_tensor_with_values_of_its_own() {
    let rules = "weights.share={ 'model\\.layers\\.0\\.mlp\\.(.*)' = 'model.layers.1.mlp.$1', \
                 'model\\.layers\\.1\\.mlp\\.(.*)' = 'model.layers.2.mlp.$1' }";
    let plan = plan(&[rules]);
    let to = "model.layers.2.mlp.up_proj.weight";
    let with = "model.layers.0.mlp.up_proj.weight";
    assert_eq!(shared(&plan.with_maps)[to], with);
}

#[test]
fn what_freezes_one_name_of_a_variable_freezes_it() {
    let layer = share(r"model\.layers\.0\.(.*)", "model.layers.1.$1");
    let plan = plan(&[&layer, "weights.freeze=['layers.1']"]);
    for layer in [0, 1] {
        let name = format!("model.layers.{layer}.self_attn.q_proj.right.a");
        assert!(!tensor(&plan, &name).trained);
    }
    assert!(tensor(&plan, "model.layers.2.self_attn.q_proj.right.a").trained);
}

#[test]
fn a_copy_takes_the_place_of_the_tensor_of_the_same_name() {
    let layer = copy(r"model\.layers\.4\.(.*)", "model.layers.1.$1");
    for train in ["lti.train=maps", "lti.train=projections"] {
        let plan = plan(&[&layer, train]);
        let origin = |name: &str| {
            let name = format!("model.layers.1.{name}");
            tensor(&plan, &name).origin.clone()
        };
        let from = |name: &str| format!("model.layers.4.{name}");
        let expected = Origin::Copied {
            from: from("mlp.up_proj.weight"),
        };
        assert_eq!(origin("mlp.up_proj.weight"), expected);
        let from = from("self_attn.q_proj.weight");
        match train {
            "lti.train=maps" => {
                assert_eq!(origin("self_attn.q_proj.c"), Origin::TeacherKernel { from });
            }
            _ => assert_eq!(origin("self_attn.q_proj.weight"), Origin::Start { from }),
        }
        assert!(
            plan.to_string().contains("copied from model.layers.4.mlp"),
            "{plan}"
        );
    }
    // Sharing comes first: a copy to the destination fills the source.
    let share = share(r"model\.layers\.0\.mlp\.(.*)", "model.layers.1.mlp.$1");
    let copy = copy(r"model\.layers\.4\.mlp\.(.*)", "model.layers.1.mlp.$1");
    let plan = plan(&[&share, &copy]);
    let from = "model.layers.4.mlp.up_proj.weight".to_owned();
    let source = tensor(&plan, "model.layers.0.mlp.up_proj.weight");
    assert_eq!(source.origin, Origin::Copied { from });
}

#[test]
fn refuses_what_does_not_fit() {
    let q = r"model\.layers\.0\.self_attn\.q_proj\.weight";
    let key = share(q, "model.layers.0.self_attn.k_proj.weight");
    assert_weights!(SHARE, &[&key], BlueprintError::Unlike { .. });
    let some = "lti.layers=[0]";
    let next = "model.layers.1.self_attn.q_proj.weight";
    assert_weights!(
        SHARE,
        &[some, &share(q, next)],
        BlueprintError::Unlike { .. }
    );
    assert_weights!(COPY, &[some, &copy(q, next)], BlueprintError::Shape { .. });
    let value = copy(q, "model.layers.1.self_attn.v_proj.weight");
    assert_weights!(COPY, &[&value], BlueprintError::Shape { .. });
    let head = copy("lm_head", "model.norm.weight");
    assert_weights!(COPY, &[&head], BlueprintError::NoMatch { .. });
    let absent = share("model.layers.9.*", "model.norm.weight");
    assert_weights!(SHARE, &[&absent], BlueprintError::NoMatch { .. });
    for (key, rule) in [
        (COPY, copy(q, "model.norm")),
        (SHARE, share(q, "model.norm")),
    ] {
        assert_weights!(key, &[&rule], BlueprintError::UnknownTarget { .. });
    }
    let itself = share("(model.norm.weight)", "$1");
    assert_weights!(SHARE, &[&itself], BlueprintError::SharedWithItself { .. });
    let two = r"model\.layers\.[01]\.mlp\.up_proj\.weight";
    let one = "model.layers.2.mlp.up_proj.weight";
    assert_weights!(
        SHARE,
        &[&share(two, one)],
        BlueprintError::SharedTwice { .. }
    );
    assert_weights!(COPY, &[&copy(two, one)], BlueprintError::FilledTwice { .. });
    let circle = "weights.share={ 'model\\.layers\\.0\\.mlp\\.(.*)' = 'model.layers.1.mlp.$1', \
                  'model\\.layers\\.1\\.mlp\\.(.*)' = 'model.layers.0.mlp.$1' }";
    assert_weights!(SHARE, &[circle], BlueprintError::ShareLoop { .. });
}

#[test]
fn refuses_a_copy_to_each_of_what_is_one_variable() {
    let share = share(r"model\.layers\.0\.mlp\.(.*)", "model.layers.1.mlp.$1");
    let copy = copy(
        r"model\.layers\.([34])\.mlp\.up_proj\.weight",
        "model.layers.1.mlp.up_proj.weight",
    );
    let error = weights_error(COPY, &[&share, &copy]);
    assert!(
        matches!(error, BlueprintError::FilledTwice { .. }),
        "{error}"
    );
}

#[test]
fn refuses_other_heads_of_the_same_shape() {
    let projection =
        |layer: usize, name: &str| format!("model.layers.{layer}.self_attn.{name}_proj");
    let [q_0, q_1, o_1] = [(0, "q"), (1, "q"), (1, "o")].map(|(layer, name)| {
        let name = projection(layer, name);
        format!("{name}.weight")
    });
    let teacher_heads = ["student.heads=8", "student.kv_heads=4"];
    let other_heads = [
        "student.kv_heads=4",
        "student.head_dim=16",
        "lti.start=lecun",
    ];
    let some = "lti.layers=[0]";
    let cases: [(&str, &[&str], String); 4] = [
        (COPY, &other_heads, copy(&q_0, &q_1)),
        (COPY, &teacher_heads, copy(&q_0, &o_1)),
        (SHARE, &teacher_heads, share(&q_1, &o_1)),
        (
            COPY,
            &teacher_heads,
            copy(&q_0, "model.layers.0.self_attn.o_proj.weight"),
        ),
    ];
    for (key, heads, rule) in cases {
        let error = refused(&[heads, &[some, &rule]].concat());
        let by = |wanted| matches!(error, PlanError::OtherHeads { key, .. } if key == wanted);
        assert!(by(key), "{rule}: {error}");
    }
    // Between layers of the same heads all of it is possible.
    plan(&[&teacher_heads[..], &[some, &copy(&q_0, &q_1)]].concat());
    plan(
        &[
            &teacher_heads[..],
            &[&copy(&q_0, &q_1), "lti.train=projections"],
        ]
        .concat(),
    );
}
