//! Tests of the plan.

use std::path::Path;

use burn_lti::geometry::{HeadGrid, Role};
use burn_lti::map::{AppliedMap, MapKind, contraction_cost};

use super::planner::contraction_with_gradients;
use super::report::{count, runs, thousands};
use super::*;
use crate::config::{LlamaConfig, QkNorm};

/// The teacher of the repository's recipe.
pub(super) fn teacher() -> LlamaConfig {
    let text = r#"{ "model_type": "llama", "vocab_size": 512, "hidden_size": 64,
        "intermediate_size": 172, "num_hidden_layers": 5, "num_attention_heads": 8,
        "num_key_value_heads": 4, "max_position_embeddings": 512,
        "tie_word_embeddings": true }"#;
    LlamaConfig::from_json_str(text, Path::new("config.json")).unwrap()
}

fn recipe(overrides: &[&str]) -> Recipe {
    let text = "teacher.path = 't'\nstudent = { heads = 4, kv_heads = 2 }\ntrain.steps = 9\n\
        lti = { start = 'grouped', map = 'factored', train = 'maps' }\ndata = { train = ['a'], valid = ['b'] }";
    let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
    Recipe::parse(text, Path::new("/r.toml"), &overrides).unwrap()
}

pub(super) fn plan(overrides: &[&str]) -> Plan {
    Plan::new(&recipe(overrides), &teacher()).unwrap()
}

pub(super) fn refused(overrides: &[&str]) -> PlanError {
    Plan::new(&recipe(overrides), &teacher()).unwrap_err()
}

/// What `overrides` change is refused by `key`, with a message that has these parts.
#[track_caller]
fn assert_refused(overrides: &[&str], key: &str, parts: &[&str]) {
    let error = refused(overrides);
    let by = |wanted| matches!(error, PlanError::Refused { key, .. } if key == wanted);
    assert!(by(key), "{key}: {error}");
    for part in parts {
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
}

pub(super) fn tensor<'a>(plan: &'a Plan, name: &str) -> &'a PlannedTensor {
    let tensor = plan.tensors.iter().find(|tensor| tensor.name == name);
    tensor.unwrap_or_else(|| panic!("no tensor {name}"))
}

fn q_proj(leaf: &str) -> String {
    format!("model.layers.0.self_attn.q_proj.{leaf}")
}

#[test]
fn maps_are_trained_and_the_rest_is_frozen() {
    let plan = plan(&[]);
    assert_eq!(plan.layers, [0, 1, 2, 3, 4]);
    assert_eq!(
        (plan.student.query_grid(), plan.student.kv_grid()),
        (HeadGrid::new(4, 8), HeadGrid::new(2, 8))
    );
    for (name, shape) in [("q_proj", [8, 4]), ("k_proj", [4, 2]), ("v_proj", [4, 2])] {
        let a = tensor(&plan, &format!("model.layers.4.self_attn.{name}.right.a"));
        assert_eq!(
            (a.shape.as_slice(), &a.origin, a.trained),
            (&shape[..], &Origin::Map, true)
        );
    }
    let c = tensor(&plan, &q_proj("c"));
    let from = q_proj("weight");
    assert_eq!((c.shape.as_slice(), c.trained), (&[64, 64][..], false));
    assert_eq!(c.origin, Origin::TeacherKernel { from });
    assert_eq!(
        tensor(&plan, "model.layers.0.self_attn.o_proj.c").shape,
        [64, 64]
    );
    for tensor in &plan.tensors {
        assert_eq!(
            tensor.trained,
            tensor.origin == Origin::Map,
            "{}",
            tensor.name
        );
    }
    let norm = "model.layers.2.input_layernorm.weight".to_owned();
    assert_eq!(tensor(&plan, &norm).origin, Origin::Copied { from: norm });
}

#[test]
fn the_maps_have_the_shapes_of_the_method() {
    let overrides = [
        "student.head_dim=6",
        "lti.start=lecun",
        "lti.map={ default = 'factored', key = 'general' }",
    ];
    let plan = plan(&overrides);
    for (name, shape) in [
        ("q_proj.right.b", &[8, 6][..]),
        ("k_proj.right.w", &[4 * 8, 2 * 6]),
        ("v_proj.right.b", &[8, 6]),
        ("o_proj.left.a", &[8, 4]),
        ("o_proj.left.b", &[8, 6]),
    ] {
        assert_eq!(
            tensor(&plan, &format!("model.layers.0.self_attn.{name}")).shape,
            shape
        );
    }
    let maps = Role::ATTENTION.map(|role| {
        let (teacher, student) = (
            plan.teacher.axes().grid(role),
            plan.student.axes().grid(role),
        );
        let kind = plan.map.kind(role).expect("a map");
        kind.num_params(teacher, student)
    });
    assert_eq!(plan.totals.map_parameters, 5 * maps.iter().sum::<usize>());
}

#[test]
fn biases_go_through_the_map_but_for_that_of_out() {
    let teacher = LlamaConfig {
        qkv_bias: true,
        out_bias: true,
        ..teacher()
    };
    for (train, q) in [
        ("maps", Origin::Map),
        (
            "projections",
            Origin::Start {
                from: q_proj("bias"),
            },
        ),
    ] {
        let recipe = recipe(&[&format!("lti.train={train}"), "lti.layers=[0]"]);
        let plan = Plan::new(&recipe, &teacher).unwrap();
        let bias = tensor(&plan, &q_proj("bias"));
        assert_eq!(
            (bias.shape.as_slice(), &bias.origin, bias.trained),
            (&[32][..], &q, true)
        );
        let out = |layer| format!("model.layers.{layer}.self_attn.o_proj.bias");
        let bias = tensor(&plan, &out(0));
        assert_eq!(bias.origin, Origin::Copied { from: out(0) });
        assert_eq!((bias.shape.as_slice(), bias.trained), (&[64][..], true));
        // In a layer without maps it fits, whatever becomes of the heads.
        assert_eq!(
            tensor(&plan, &out(1)).origin,
            Origin::Copied { from: out(1) }
        );
        assert!(!tensor(&plan, &out(1)).trained);
    }
}

#[test]
fn projections_are_trained_without_maps() {
    for (train, all) in [("projections", false), ("all", true)] {
        let plan = plan(&[&format!("lti.train={train}")]);
        let weight = tensor(&plan, &q_proj("weight"));
        assert_eq!(
            (weight.shape.as_slice(), weight.trained),
            (&[32, 64][..], true)
        );
        assert_eq!(
            weight.origin,
            Origin::Start {
                from: q_proj("weight")
            }
        );
        assert_eq!(tensor(&plan, "model.norm.weight").trained, all);
        let names: Vec<_> = plan.tensors.iter().map(|t| (&t.name, &t.shape)).collect();
        let student = plan.student.tensors();
        assert_eq!(
            names,
            student.iter().map(|(n, s)| (n, s)).collect::<Vec<_>>()
        );
        assert_eq!(
            (
                plan.totals.map_parameters,
                plan.totals.step_flops.kernel_contraction
            ),
            (0, 0.0)
        );
    }
}

#[test]
fn layers_without_maps_are_copied_or_new() {
    let layer_1 = |name: &str| format!("model.layers.1.self_attn.{name}_proj.weight");
    let with = |overrides: &[&str]| plan(&[overrides, &["lti.layers=[2, 0]"]].concat());
    let same_heads = with(&["student.heads=8"]);
    assert_eq!(same_heads.layers, [0, 2]);
    for (name, fits) in [("q", true), ("k", false), ("v", false), ("o", true)] {
        let tensor = tensor(&same_heads, &layer_1(name));
        assert_eq!(
            (tensor.origin != Origin::New, !tensor.trained),
            (fits, fits)
        );
    }
    assert_eq!(same_heads.new_tensors().count(), 3 * 2);
    // Half the heads of twice the size: the shape fits, the heads do not.
    let overrides = [
        "student.kv_heads=4",
        "student.head_dim=16",
        "lti.start=lecun",
    ];
    let plan = with(&overrides);
    let weight = tensor(&plan, &layer_1("q"));
    assert_eq!(
        (weight.shape.as_slice(), &weight.origin),
        (&[64, 64][..], &Origin::New)
    );
    assert!(
        plan.to_string()
            .contains("12 tensors (49,152 parameters) are NEW"),
        "{plan}"
    );
}

#[test]
fn totals_add_up() {
    let plan = plan(&[]);
    let totals = &plan.totals;
    assert_eq!(totals.teacher_parameters, 260_032);
    let halved = 5 * 64 * (32 + 16 + 16 + 32);
    assert_eq!(
        totals.student_parameters,
        totals.teacher_parameters - halved
    );
    assert_eq!(totals.map_parameters, 5 * (2 * (32 + 64) + 2 * (8 + 64)));
    assert_eq!(totals.trained_parameters, totals.map_parameters);
    // What is frozen is the whole teacher: its kernels as C, the rest as copies.
    assert_eq!(totals.frozen_parameters, totals.teacher_parameters);
    assert_eq!(totals.teacher_kv_cache_bytes_per_token, 1280);
    assert_eq!(totals.student_kv_cache_bytes_per_token, 640);
}

#[test]
fn flops_follow_the_formulas() {
    let plan = plan(&["train.batch_size=2", "train.seq_len=3", "lti.layers=[0]"]);
    let Plan {
        teacher, student, ..
    } = &plan;
    let flops = &plan.totals.step_flops;
    assert_eq!(flops.teacher_forward, teacher.forward_flops(6, 3));
    assert_eq!(flops.student_forward, student.forward_flops(6, 3));
    // Five layers of kernels, made by maps in one and new in four.
    let kernels = 5 * 64 * (32 + 16 + 16 + 32);
    let linear = kernels + 5 * 3 * 64 * 172 + 512 * 64;
    let attention = 2 * (4 * 6 * 5 * 32 * 2);
    assert_eq!(
        flops.student_backward,
        (2 * 6 * (linear + kernels) + attention) as f64
    );
    // Query and out: 8x8 to 4x8, heads first; key and value: 4x8 to 2x8, heads first.
    let maps = 2 * (2 * 256 + 3 * 256) + 2 * (2 * 64 + 3 * 128);
    assert_eq!(flops.kernel_contraction, (2 * 64 * maps) as f64);
}

#[test]
fn maps_of_units_stand_on_the_side_of_the_units() {
    let units = "student.intermediate_size=129";
    for (start, hidden) in [
        ("calibrated", "general"),
        ("grouped", "general"),
        ("lecun", "shared"),
    ] {
        let start = format!("lti.start={start}");
        let map = format!("lti.map={{ default = 'factored', hidden = '{hidden}' }}");
        let plan = plan(&[units, &start, &map, "train.batch_size=2", "train.seq_len=3"]);
        // Only maps learn, unless the recipe says so.
        assert_eq!(plan.trained, Trained::Maps);
        for (name, shape) in [
            ("gate_proj.right.w", &[172, 129][..]),
            ("up_proj.right.w", &[172, 129]),
            ("down_proj.left.w", &[172, 129]),
            ("down_proj.c", &[172, 64]),
            ("up_proj.c", &[64, 172]),
        ] {
            let found = tensor(&plan, &format!("model.layers.3.mlp.{name}"));
            assert_eq!(found.shape, shape, "{name}");
            assert_eq!(found.trained, name.ends_with('w'), "{name}");
        }
        let of_attention = 2 * (8 * 4 + 8 * 8) + 2 * (4 * 2 + 8 * 8);
        let of_units = match hidden {
            "general" => 3 * 172 * 129,
            _ => 172 * 129,
        };
        assert_eq!(plan.totals.map_parameters, 5 * (of_attention + of_units));
        assert_eq!(plan.totals.trained_parameters, plan.totals.map_parameters);
        // Each is contracted, whoever has it, and the gradient of each kernel is made.
        let maps = 2 * (2 * 256 + 3 * 256) + 2 * (2 * 64 + 3 * 128) + 3 * 2 * 172 * 129;
        let flops = &plan.totals.step_flops;
        assert_eq!(flops.kernel_contraction, (2 * 5 * 64 * maps) as f64);
        let linear = 5 * 64 * (2 * 32 + 2 * 16 + 3 * 129);
        let attention = 2 * 2 * 5 * 32 * 6 * 2;
        // Inputs of all, and of the head; kernels of all but the head.
        let backward = 2 * 6 * (linear + 64 * 512 + linear) + 2 * attention;
        assert_eq!(flops.student_backward, backward as f64);
        let text = plan.to_string();
        assert!(text.contains(&format!("hidden {hidden}")), "{text}");
        let shared = text.contains("{0..4}.mlp.up_proj.right.w")
            && text.contains("shared with mlp.gate_proj.right.w");
        assert_eq!(shared, hidden == "shared", "{text}");
    }
    // Layers without maps have units of the teacher's as they are.
    let plan = plan(&[
        units,
        "lti.start=grouped",
        "lti.layers=[1]",
        "lti.map={ hidden = 'shared' }",
        "lti.train=maps",
        "student.heads=8",
        "student.kv_heads=4",
    ]);
    let origin = |name: &str| &tensor(&plan, &format!("model.layers.{name}")).origin;
    assert!(matches!(
        origin("0.mlp.up_proj.weight"),
        Origin::Start { .. }
    ));
    assert!(matches!(
        origin("1.mlp.up_proj.right.w"),
        Origin::Shared { .. }
    ));
    assert!(matches!(
        origin("1.mlp.up_proj.c"),
        Origin::TeacherKernel { .. }
    ));
}

#[test]
fn one_map_of_the_width_serves_every_weight() {
    let width = "student.hidden_size=48";
    let map = "lti.map={ hidden = 'shared', width = 'shared' }";
    let units = "student.intermediate_size=129";
    let plan = plan(&[width, map, units]);
    assert_eq!(plan.trained, Trained::Maps);
    for (name, shape) in [
        ("embed_tokens.c", &[512, 64][..]),
        ("embed_tokens.right.w", &[64, 48]),
        ("layers.0.self_attn.q_proj.left.w", &[64, 48]),
        ("layers.0.self_attn.o_proj.right.w", &[64, 48]),
        ("layers.4.mlp.up_proj.left.w", &[64, 48]),
        ("layers.4.mlp.up_proj.right.w", &[172, 129]),
        ("layers.4.mlp.down_proj.c", &[172, 64]),
        ("layers.4.input_layernorm.weight", &[48]),
        ("norm.weight", &[48]),
    ] {
        let found = tensor(&plan, &format!("model.{name}"));
        assert_eq!(found.shape, shape, "{name}");
        assert_eq!(found.trained, name.ends_with(".w"), "{name}");
    }
    let origin = |name: &str| &tensor(&plan, name).origin;
    let with = "model.embed_tokens.right.w".to_owned();
    let shared = Origin::Shared { with };
    assert_eq!(origin("model.layers.3.mlp.down_proj.right.w"), &shared);
    // The head is the embedding: the gains before it stay, those of the features that the map takes.
    let from = "model.norm.weight".to_owned();
    assert_eq!(origin("model.norm.weight"), &Origin::Start { from });
    let of_attention = 2 * 64 * 32 + 2 * 32 * 16;
    let maps = 64 * 48 + 5 * (172 * 129 + of_attention);
    assert_eq!(plan.totals.map_parameters, maps);
    let text = plan.to_string();
    assert!(
        text.contains("width    48 of 64, by maps (shared)"),
        "{text}"
    );
    // Query: its outputs first, 64 x 64 x 32, then its inputs, 64 x 48 x 32, whose gradient goes on.
    let query = 2 * 64 * 64 * 32 + 3 * 64 * 48 * 32;
    let key = 2 * 64 * 32 * 16 + 3 * 64 * 48 * 16;
    let up = 2 * 64 * 172 * 129 + 3 * 64 * 48 * 129;
    let up_by_width_first = 2 * 64 * 48 * 172 + 3 * 172 * 129 * 48;
    // The forward products alone say which comes first.
    let up = match 64 * 48 * 172 + 172 * 129 * 48 < 64 * 172 * 129 + 64 * 48 * 129 {
        true => up_by_width_first,
        false => up,
    };
    let table = 2 * 2 * 512 * 64 * 48;
    let expected = 2 * (5 * (2 * query + 2 * key + 3 * up) + table);
    let found = plan.totals.step_flops.kernel_contraction;
    assert_eq!(found, expected as f64);

    // A head of its own takes the gains.
    let untied = LlamaConfig {
        tie_word_embeddings: false,
        ..teacher()
    };
    let plan = Plan::new(&recipe(&[width, map]), &untied).unwrap();
    assert_eq!(tensor(&plan, "lm_head.left.w").origin, shared);
    assert_eq!(tensor(&plan, "lm_head.c").shape, [64, 512]);
}

#[test]
fn maps_of_the_width_are_refused_where_they_cannot_be() {
    let map = "lti.map={ width = 'shared' }";
    assert_refused(
        &[map, "student.intermediate_size=129"],
        "lti.map",
        &["none of the units", "hidden = \"general\""],
    );
    assert_refused(
        &[map, "lti.layers=[0, 1]"],
        "lti.layers",
        &["take width out"],
    );
    assert_refused(
        &[
            map,
            "lti.start=calibrated",
            "calibration.feed_forward=refit",
        ],
        "lti.map",
        &["hidden = \"general\""],
    );
    // Of another width, a start fits the units too.
    assert_refused(
        &[map, "lti.start=calibrated", "student.hidden_size=48"],
        "lti.map",
        &["whose weights become others", "hidden = \"general\""],
    );
    // Of the teacher's width, it goes.
    plan(&[map, "lti.start=calibrated"]);
    let normed = LlamaConfig {
        output_norms: true,
        ..teacher()
    };
    let error = Plan::new(&recipe(&[map]), &normed).unwrap_err();
    assert!(
        error.to_string().contains("norms what its blocks put out"),
        "{error}"
    );
}

#[test]
fn a_calibrated_start_of_another_width_has_maps() {
    let narrow = ["lti.start=calibrated", "student.hidden_size=48"];
    let of = |map: &str| plan(&[&narrow[..], &[map]].concat());
    for (map, of_up) in [
        ("lti.map={ hidden = 'shared' }", None),
        (
            "lti.map={ hidden = 'general', width = 'general' }",
            Some(64),
        ),
        ("lti.map={ hidden = 'shared', width = 'shared' }", Some(64)),
    ] {
        let plan = of(map);
        assert_eq!(plan.trained, Trained::Maps);
        let up = |leaf: &str| format!("model.layers.4.mlp.up_proj.{leaf}");
        let kernel = tensor(&plan, &up("c"));
        assert_eq!(kernel.shape, [of_up.unwrap_or(48), 172], "{map}");
        assert_eq!(tensor(&plan, &up("right.w")).shape, [172, 172]);
        let of_width = plan.tensors.iter().find(|it| it.name == up("left.w"));
        let shape = of_width.map(|it| it.shape.clone());
        assert_eq!(shape, of_up.map(|width| vec![width, 48]), "{map}");
        // The gains before a head that is the embedding are those of the start.
        let gains = tensor(&plan, "model.norm.weight");
        assert!(matches!(gains.origin, Origin::Start { .. }));
        assert_eq!(gains.shape, [48]);
    }
}

#[test]
fn a_pattern_about_one_use_of_a_shared_map_is_about_the_map() {
    let map = "lti.map={ hidden = 'shared' }";
    let plan = plan(&[map, r"weights.freeze=['layers\.2\.mlp\.down_proj\.left']"]);
    for (layer, trains) in [(2, false), (3, true)] {
        for name in ["gate_proj.right.w", "up_proj.right.w", "down_proj.left.w"] {
            let name = format!("model.layers.{layer}.mlp.{name}");
            assert_eq!(tensor(&plan, &name).trained, trains, "{name}");
        }
    }
    // What the recipe shares and what its maps share are one, where they come to the same.
    let share = r"weights.share={ 'model\.layers\.0\.mlp\.(.*)' = 'model.layers.1.mlp.$1' }";
    let plan = super::tests::plan(&["lti.start=grouped", map, share]);
    for name in ["gate_proj.right.w", "up_proj.right.w", "down_proj.left.w"] {
        let with = "model.layers.0.mlp.gate_proj.right.w".to_owned();
        let name = format!("model.layers.1.mlp.{name}");
        assert_eq!(tensor(&plan, &name).origin, Origin::Shared { with });
    }
    assert_refused(
        &[
            map,
            "lti.start=calibrated",
            "calibration.feed_forward=refit",
        ],
        "calibration.feed_forward",
        &["one map of all three", "hidden = \"general\""],
    );
}

#[test]
fn sums_of_pairs_stand_one_below_the_other_and_have_a_largest_number() {
    let plan = plan(&["lti.map={ kronecker = 3 }"]);
    let shape = |name: &str| {
        let name = format!("model.layers.0.self_attn.{name}");
        let mut tensors = plan.tensors.iter();
        let tensor = tensors.find(|tensor| tensor.name == name);
        tensor.expect("a tensor").shape.clone()
    };
    assert_eq!(shape("q_proj.right.a"), [3 * 8, 4]);
    assert_eq!(shape("o_proj.left.b"), [3 * 8, 8]);
    assert!(plan.to_string().contains("kronecker 3"));
    // 4 heads to 2: no more than 8 entries in A.
    assert_refused(
        &["lti.map={ kronecker = 9 }"],
        "lti.map",
        &[
            "rank 9 in the key projection, whose largest is 8",
            "key = { kronecker = 8 }",
        ],
    );
}

/// Of query and key, from 8 heads of 8 to 4 of 8, and from 4 to 2: two numbers for each pair and each two heads.
#[test]
fn maps_of_query_and_key_are_the_rotary_embeddings() {
    let general = ["lti.map=general", "lti.start=calibrated"];
    let keeping = [&general[..], &["lti.rotary=kept"]].concat();
    let (kept, free) = (plan(&keeping), plan(&general));
    let shape = |plan: &Plan, name: &str| {
        let name = format!("model.layers.0.self_attn.{name}");
        let mut tensors = plan.tensors.iter();
        tensors
            .find(|tensor| tensor.name == name)
            .map(|tensor| tensor.shape.clone())
    };
    assert_eq!(shape(&kept, "q_proj.right.r"), Some(vec![4, 2 * 8, 4]));
    assert_eq!(shape(&kept, "k_proj.right.r"), Some(vec![4, 2 * 4, 2]));
    assert_eq!(shape(&kept, "q_proj.right.w"), None);
    assert_eq!(shape(&free, "q_proj.right.w"), Some(vec![64, 32]));
    assert_eq!(shape(&kept, "v_proj.right.w"), Some(vec![32, 16]));
    let of = |heads: usize| 2 * 4 * heads;
    let others = 64 * 32 + 32 * 16;
    assert_eq!(
        kept.totals.map_parameters,
        5 * (of(8 * 4) + of(4 * 2) + others)
    );
    assert_eq!(free.totals.map_parameters, 5 * 2 * others);
    // Real products of 2 x by 2 u for each pair, and the gradient of the map as much again.
    let flops =
        |of_query: usize, of_key: usize| (2 * 5 * 64 * 2 * (of_query + of_key + others)) as f64;
    let counted = |plan: &Plan| plan.totals.step_flops.kernel_contraction;
    assert_eq!(counted(&kept), flops(4 * 16 * 8, 4 * 8 * 4));
    assert_eq!(counted(&free), flops(64 * 32, 32 * 16));
    let line = |plan: &Plan| {
        let text = plan.to_string();
        let mut lines = text.lines();
        let found = lines.find(|line| line.starts_with("rotary"));
        found.unwrap_or_default().to_owned()
    };
    assert!(
        line(&kept).contains("kept: maps of query and key mix heads"),
        "{}",
        line(&kept)
    );
    assert!(!line(&kept).contains("none does"));
    assert_eq!(line(&free), "");

    // Without a rotary embedding a map is free of it; where a head turns in part, what does not turn is mixed by any
    // numbers.
    let mut some = teacher();
    some.turned[3] = false;
    some.rope.partial = 0.5;
    let plan = Plan::new(&recipe(&keeping), &some).unwrap();
    assert_eq!(shape(&plan, "q_proj.right.r"), Some(vec![2, 2 * 8, 4]));
    assert_eq!(shape(&plan, "q_proj.right.w"), Some(vec![8 * 4, 4 * 4]));
    assert_eq!(
        tensor(&plan, "model.layers.3.self_attn.q_proj.right.w").shape,
        [64, 32]
    );
    assert!(
        line(&plan).contains("none does in 3, where they mix anything"),
        "{}",
        line(&plan)
    );
    let folded = plan.without_maps.tensors.iter();
    let mut folded = folded.filter(|tensor| tensor.name.ends_with("q_proj.weight"));
    assert!(folded.all(|tensor| tensor.shape == [64, 32]));
}

#[test]
fn the_contraction_takes_the_cheaper_order() {
    let (teacher, student) = (HeadGrid::new(2, 10), HeadGrid::new(2, 4));
    // Heads first 40 + 80, head size first 80 + 16.
    let cost = |form| {
        contraction_with_gradients(&AppliedMap {
            form,
            teacher,
            student,
            rows: 7,
            is_on_teacher: true,
            cost: contraction_cost(form, teacher, student),
        })
    };
    assert_eq!(cost(MapKind::Factored), 7.0 * (2.0 * 80.0 + 3.0 * 16.0));
    assert_eq!(cost(MapKind::General), 7.0 * 2.0 * 160.0);
    // Two pairs cost more than their sum, which is made once.
    let sum = 3.0 * 2.0 * 160.0;
    assert_eq!(cost(MapKind::Kronecker(2)), 7.0 * 2.0 * 160.0 + sum);
}

#[test]
fn training_all_counts_every_kernel() {
    let gradient = |teacher: LlamaConfig| {
        let recipe = recipe(&["lti.train=all", "train.batch_size=1"]);
        let plan = Plan::new(&recipe, &teacher).unwrap();
        let (flops, student) = (&plan.totals.step_flops, &plan.student);
        let given = student.linear_flops(128) + 2.0 * student.attention_flops(128, 128);
        assert_eq!(flops.student_backward - given, student.linear_flops(128));
    };
    gradient(teacher());
    gradient(LlamaConfig {
        tie_word_embeddings: false,
        ..teacher()
    });
}

#[test]
fn the_report_groups_layers_and_aligns() {
    let text = plan(&[]).to_string();
    let line = |part: &str| text.lines().find(|line| line.contains(part)).unwrap();
    let a = line("q_proj.right.a");
    for part in [
        "model.layers.{0..4}.self_attn.q_proj.right.a",
        "[8, 4]",
        "160",
        "map (grouped)",
    ] {
        assert!(a.contains(part), "{a}");
    }
    assert_eq!(a.find("trained"), line("q_proj.c").find("frozen"));
    assert!(line("teacher  ").contains("8 heads x 8, 4 key/value heads"));
    assert!(line("parameters, teacher").contains("260,032"));
    assert!(!text.contains("NEW"));

    let some = plan(&["lti.layers=[0, 1, 3]"]).to_string();
    assert!(
        some.contains("model.layers.{0..1, 3}.self_attn.q_proj.right.a"),
        "{some}"
    );
    assert!(
        some.contains("model.layers.{2, 4}.self_attn.q_proj.weight"),
        "{some}"
    );
}

#[test]
fn serializes() {
    let json = serde_json::to_value(plan(&["lti.map=general"])).unwrap();
    assert_eq!(json["start"], "grouped");
    assert_eq!(json["tensors"][0]["origin"]["kind"], "copied");
    assert_eq!(json["totals"]["teacher_parameters"], 260_032);
    assert_eq!(json["student"]["num_attention_heads"], 4);
}

#[test]
fn the_report_says_how_training_goes_on() {
    let text = plan(&["train.precision=float32"]).to_string();
    let short = "train    maps\nloss     alpha 1, temperature 1\nsteps    9 of 16 x 128 tokens\n\
                 watches  held-out KL every 1 step\n\n";
    assert!(text.contains(short), "{text}");

    let text = plan(&[
        "loss.divergence={ skewed_kl = 0.1 }",
        "loss.alpha={ start = 0.9, end = 0.5, schedule = 'linear' }",
        "loss.temperature={ start = 4, end = 1, schedule = 'cosine' }",
        "loss.feature={ weight = 0.5, kind = 'l2', projector = true }",
        "train.steps=2000",
        "train.accumulate=4",
        "train.checkpoint_every=500",
        "train.patience=3",
        "phase2.steps=100",
        "phase2.plateau={}",
    ])
    .to_string();
    for line in [
        "loss     skewed_kl 0.1, alpha 0.9 -> 0.5 (linear), temperature 4 -> 1 (cosine)",
        "feature  l2, weight 0.5, 5 pairs of layers, projector",
        "steps    2,000 of 16 x 128 tokens, in 4 micro-batches of 4",
        "watches  held-out KL every 200 steps; ends after 3 evaluations without a better one",
        "keeps    a checkpoint every 500 steps, the last 2",
        "phase 2  projections, 100 steps: 20 tensors, 30,720 parameters; phase 1 ends early once \
         50 steps improve its loss by less than 0.01",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    // The reason is of the processor.
    let products = "products in float32 on this CPU: ";
    assert!(text.contains(products), "{text}");
    for part in [
        "parameters, trained in phase 2",
        "a step of phase 2, student backward",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn the_report_says_what_the_start_is_calculated_from() {
    let text = |set: &[&str]| plan(&[&["lti.start=calibrated"], set].concat()).to_string();
    for (set, line) in [
        (
            &[][..],
            "text     256 sequences of 128 tokens to calibrate on: training text, or the \
             teacher's own where that is less than 4",
        ),
        (
            &["calibration.text=teacher", "calibration.sequences=8"],
            "text     8 sequences of 128 tokens to calibrate on: the teacher's own",
        ),
        (
            &["calibration.text=train"],
            "text     256 sequences of 128 tokens to calibrate on: training text",
        ),
    ] {
        let text = text(set);
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(!plan(&[]).to_string().contains("to calibrate on"));
}

#[test]
fn serializes_how_training_goes_on() {
    let json = serde_json::to_value(plan(&[])).unwrap();
    assert_eq!(json["loss"]["divergence"], "forward_kl");
    assert_eq!(json["loss"]["alpha"], 1.0);
    assert_eq!(json["training"]["accumulate"], 1);
    for absent in [
        &json["loss"]["feature"],
        &json["training"]["checkpoints"],
        &json["phase2"],
    ] {
        assert!(absent.is_null());
    }
    let json = serde_json::to_value(plan(&[
        "loss.divergence={ jensen_shannon = 0.5 }",
        "loss.alpha={ start = 0.9, end = 0.5, schedule = 'linear' }",
        "loss.feature={ weight = 1, pairs = [[0, 1]] }",
        "train.checkpoint_every=3",
        "phase2.steps=4",
        "phase2.train=all",
    ]))
    .unwrap();
    assert_eq!(json["loss"]["divergence"]["jensen_shannon"], 0.5);
    assert_eq!(json["loss"]["alpha"]["end"], 0.5);
    assert_eq!(json["loss"]["feature"]["pairs"][0][1], 1);
    assert_eq!(json["training"]["checkpoints"]["keep"], 2);
    assert_eq!(json["phase2"]["train"], "all");
    assert_eq!(json["phase2"]["trained"][0], "model.embed_tokens.weight");
}

#[test]
fn same_pairs_every_layer() {
    let pairs = |choice: &str| {
        let feature = format!("loss.feature={{ weight = 1, pairs = {choice} }}");
        let feature = plan(&[&feature]).loss.feature.unwrap();
        feature
            .pairs
            .into_iter()
            .map(Into::into)
            .collect::<Vec<[usize; 2]>>()
    };
    assert_eq!(pairs("'same'"), [[0, 0], [1, 1], [2, 2], [3, 3], [4, 4]]);
    assert_eq!(pairs("[[4, 0], [1, 4]]"), [[4, 0], [1, 4]]);
    for (choice, expected) in [("[[0, 5]]", "teacher"), ("[[0, 0], [7, 9]]", "student")] {
        assert_refused(
            &[&format!("loss.feature={{ weight = 1, pairs = {choice} }}")],
            "loss.feature.pairs",
            &[expected, "which has 5", "from 0 to 4"],
        );
    }
}

#[test]
fn phase_2_trains_what_would_train_without_maps() {
    let teacher = LlamaConfig {
        qkv_bias: true,
        out_bias: true,
        ..teacher()
    };
    let with = |overrides: &[&str]| Plan::new(&recipe(overrides), &teacher).unwrap();
    // Layer 0 has maps, the others have heads that do not fit: all of these are new.
    let layers = "lti.layers=[0]";
    for train in ["projections", "all"] {
        let phase2 = ["phase2.steps=3", &format!("phase2.train={train}")];
        let plan = with(&[&[layers], &phase2[..]].concat());
        let alone = with(&[layers, &format!("lti.train={train}")]);
        let phase = plan.phase2.as_ref().unwrap();
        let expected = alone.tensors.iter().filter(|tensor| tensor.trained);
        let expected: Vec<_> = expected.map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(phase.trained, expected);
        assert_eq!(phase.trainable_parameters, alone.totals.trained_parameters);
        assert_eq!(phase.step_flops, alone.totals.step_flops);
        assert_eq!(phase.step_flops.kernel_contraction, 0.0);

        // No name is that of a map, and what phase 1 trained trains on.
        let student = plan.student.tensors();
        for name in &phase.trained {
            assert!(student.iter().any(|(known, _)| known == name), "{name}");
        }
        let in_phase_1 = plan.tensors.iter().filter(|tensor| tensor.trained);
        for tensor in in_phase_1.filter(|tensor| tensor.origin != Origin::Map) {
            assert!(phase.trained.contains(&tensor.name), "{}", tensor.name);
        }
        let all = phase.trained.len() == student.len();
        assert_eq!(all, train == "all");
    }
    let phase = with(&[layers, "phase2.steps=3"]).phase2.unwrap();
    let of_layer_0 = ["q_proj", "k_proj", "v_proj", "o_proj"].map(|projection| {
        ["weight", "bias"].map(|leaf| format!("model.layers.0.self_attn.{projection}.{leaf}"))
    });
    for name in of_layer_0.as_flattened() {
        assert!(phase.trained.contains(name), "{name}");
    }
    // Of the others everything but the bias of the output projection, which fits.
    assert_eq!(phase.trained.len(), 8 + 4 * 7);
}

#[test]
fn a_step_without_its_teacher_or_in_parts() {
    let flops = |overrides: &[&str]| plan(overrides).totals.step_flops;
    let whole = flops(&[]);
    let parts = flops(&["train.accumulate=4"]);
    assert_eq!(parts.kernel_contraction, 4.0 * whole.kernel_contraction);
    assert_eq!(parts.student_backward, whole.student_backward);
    let cached = flops(&["teacher.cache=k"]);
    assert_eq!(cached.teacher_forward, 0.0);
    assert_eq!(cached.student_forward, whole.student_forward);
    let with_layers = flops(&["teacher.cache=k", "loss.feature={ weight = 1 }"]);
    assert_eq!(with_layers.teacher_forward, whole.teacher_forward);
}

#[test]
fn phase_2_needs_a_teacher_in_float32() {
    for (train, first) in [
        ("projections", q_proj("weight")),
        ("all", "model.embed_tokens.weight".to_owned()),
    ] {
        let phase2 = ["phase2.steps=3", &format!("phase2.train={train}")];
        for dtype in ["bfloat16", "float16"] {
            let tensor = format!("[phase2] would train {first} in it");
            assert_refused(
                &[&phase2[..], &[&format!("teacher.dtype={dtype}")]].concat(),
                "teacher.dtype",
                &[&tensor, "teacher.dtype = \"float32\"", "leave [phase2] out"],
            );
        }
        plan(&phase2);
    }
}

#[test]
fn small_words() {
    assert_eq!(
        [0, 999, 1000, 1_234_567].map(thousands),
        ["0", "999", "1,000", "1,234,567"]
    );
    assert_eq!(runs(&[0, 1, 2, 4, 6, 7]), "0..2, 4, 6..7");
    let steps = [1, 2000].map(|number| count(number, "step", "steps"));
    assert_eq!(steps, ["1 step", "2,000 steps"]);
}

#[test]
fn refuses_layers_that_are_not_there() {
    assert_refused(
        &["lti.layers=[0, 5]"],
        "lti.layers",
        &["layer 5, but the student has 5 layers", "from 0 to 4"],
    );
    assert_refused(&["lti.layers=[]"], "lti.layers", &["is empty"]);
}

#[test]
fn refuses_heads_that_make_no_llama() {
    for key in ["student.heads", "student.kv_heads", "student.head_dim"] {
        assert_refused(&[&format!("{key}=0")], key, &["is 0"]);
    }
    assert_refused(
        &["student.kv_heads=3"],
        "student.heads",
        &["is 4", "student.kv_heads, which is 3", "1, 2, 4"],
    );
    assert_refused(
        &["student.head_dim=7"],
        "student.head_dim",
        &["is 7: make it even"],
    );
    let huge = ["student.heads=4611686018427387904", "lti.start=lecun"];
    assert!(matches!(refused(&huge), PlanError::Student { .. }));
}

#[test]
fn refuses_heads_that_do_not_group() {
    assert_refused(&["student.heads=6"], "student.heads", &["1, 2, 4, 8"]);
    assert_refused(
        &["student.heads=8", "student.kv_heads=8"],
        "student.kv_heads",
        &["does not divide the teacher's 4"],
    );
    assert_refused(
        &["student.head_dim=4"],
        "student.head_dim",
        &["is 4", "keeps the teacher's 8"],
    );
    plan(&["student.heads=6", "student.head_dim=4", "lti.start=lecun"]);
}

#[test]
fn a_calibrated_start_takes_any_heads_and_says_what_it_fits() {
    plan(&[
        "student.heads=6",
        "student.head_dim=4",
        "lti.start=calibrated",
    ]);
    let refit = plan(&[
        "lti.start=calibrated",
        "calibration.feed_forward=refit",
        "lti.layers=[0]",
        "student.heads=8",
        "student.kv_heads=4",
    ]);
    let origin = |layer: usize| {
        let name = format!("model.layers.{layer}.mlp.down_proj.weight");
        tensor(&refit, &name).origin.clone()
    };
    assert!(matches!(origin(0), Origin::Start { .. }));
    assert!(matches!(origin(1), Origin::Copied { .. }));
    // Layers without maps would begin at random, which no fit of the others can know.
    let error = refused(&["lti.start=calibrated", "lti.layers=[0]"]);
    assert!(matches!(error, PlanError::CalibratedLayers { .. }));
    assert!(
        error.to_string().contains("lti.layers = \"all\""),
        "{error}"
    );
    for key in ["weights.copy", "weights.share"] {
        let rule = format!("{key}={{ 'model\\.layers\\.1\\.(.*)' = 'model.layers.0.$1' }}");
        let take_it_out = format!("take {key} out");
        assert_refused(&["lti.start=calibrated", &rule], key, &[&take_it_out]);
    }
}

#[test]
fn only_maps_train_beside_a_teacher_in_half_precision() {
    for dtype in ["bfloat16", "float16"] {
        let dtype = format!("teacher.dtype={dtype}");
        plan(&[&dtype]);
        for (set, first) in [
            ("lti.train=projections", q_proj("weight")),
            ("lti.train=all", "model.embed_tokens.weight".to_owned()),
            ("lti.layers=[1]", q_proj("weight")),
        ] {
            let starts_anywhere = ["lti.start=lecun", "student.heads=2", "student.kv_heads=1"];
            let would_train = format!("but {first} would train in it");
            assert_refused(
                &[&starts_anywhere[..], &[&dtype, set]].concat(),
                "teacher.dtype",
                &[&would_train, "teacher.dtype = \"float32\""],
            );
        }
    }
}

#[test]
fn what_is_frozen_by_name_does_not_train() {
    let plan = plan(&[
        "weights.freeze=['layers.0.', 'q_proj.right.b$']",
        "phase2.steps=3",
    ]);
    assert!(!tensor(&plan, &q_proj("right.a")).trained);
    assert!(tensor(&plan, "model.layers.1.self_attn.q_proj.right.a").trained);
    assert!(!tensor(&plan, "model.layers.1.self_attn.q_proj.right.b").trained);
    let second = plan.phase2.unwrap().trained;
    assert!(!second.contains(&q_proj("weight")));
    assert!(second.contains(&"model.layers.1.self_attn.q_proj.weight".to_owned()));

    let error = refused(&["weights.freeze=['q_prj']"]);
    assert!(matches!(&error, PlanError::FreezesNothing { pattern } if pattern == "q_prj"));
    assert_refused(
        &["weights.freeze=['']"],
        "weights.freeze",
        &["leaves nothing to train"],
    );
}

#[test]
fn refuses_sequences_beyond_the_teacher() {
    assert_refused(
        &["train.seq_len=513"],
        "train.seq_len",
        &["is 513", "max_position_embeddings is 512"],
    );
    plan(&["train.seq_len=512"]);
    assert_refused(
        &["train.seq_len=[256, 1024]"],
        "train.seq_len",
        &["is 256, 1024", "max_position_embeddings is 512"],
    );
}

#[test]
fn several_lengths_cost_their_mean_and_hold_the_longest() {
    let [short, long, both] = [
        &["train.seq_len=128"][..],
        &["train.seq_len=512", "train.batch_size=4"],
        &[
            "train.seq_len=[128, 512]",
            "train.accumulate=2",
            "lti.start=calibrated",
        ],
    ]
    .map(plan);
    let flops = |plan: &Plan| plan.totals.step_flops.student_forward;
    assert_eq!(flops(&both), (flops(&short) + flops(&long)) / 2.0);
    let activations = |plan: &Plan| plan.costs.memory.activations;
    assert_eq!(activations(&both), activations(&long) / 2.0);
    let text = both.to_string();
    for line in [
        "text     32,768 tokens in sequences of 128, 512 to calibrate on: ",
        "steps    9 of 16 x 128 or 4 x 512 tokens, in 2 micro-batches of 8 or 2\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

/// What a training may bring is said of those that are like the ones measured, and of no other.
#[test]
fn what_may_be_expected_is_what_was_measured() {
    let like = ["lti.start=calibrated", "lti.train=all", "train.steps=100"];
    let expected = |more: &[&str]| plan(&[&like[..], more].concat()).expectation;
    let short = expected(&[]).unwrap();
    assert_eq!(short.tokens, 204_800);
    let long = expected(&["train.steps=1000"]).unwrap();
    for (more, fewer) in long.kl_left.iter().zip(short.kl_left) {
        assert!(*more > 0.0 && *more <= fewer && fewer < 1.0);
    }
    assert!(short.kl_left[0] <= short.kl_left[1] && long.kl_left[0] < short.kl_left[0]);
    for other in [
        "train.steps=49",
        "train.optimizer=adam",
        "train.rate=10",
        "train.learning_rate=1e-3",
        "lti.train=maps",
        "lti.start=grouped",
    ] {
        assert_eq!(expected(&[other]), None, "{other}");
    }
    let line = "expect   after 204,800 tokens ";
    let said = |overrides: &[&str]| plan(overrides).to_string().contains(line);
    assert!(said(&like) && !said(&[]));
}

#[test]
fn a_student_whose_heads_do_not_divide_its_width_has_a_name_that_opens() {
    let odd = [
        "student.heads=5",
        "student.kv_heads=1",
        "lti.start=calibrated",
    ];
    let plan = plan(&odd);
    let written = plan.student.to_json();
    assert_eq!(
        written["architectures"],
        serde_json::json!(["MistralForCausalLM"])
    );
    assert!(written["sliding_window"].is_null() && written.get("attention_bias").is_none());
    let text = plan.to_string();
    assert!(text.contains("exports  as a mistral"), "{text}");
    let again = LlamaConfig::from_json_str(&written.to_string(), Path::new("c")).unwrap();
    assert_eq!(again, plan.student);

    let biased = LlamaConfig {
        qkv_bias: true,
        out_bias: true,
        ..teacher()
    };
    let plan = Plan::new(&recipe(&odd), &biased).unwrap();
    let text = plan.to_string();
    assert!(
        text.contains("exports  what transformers 4 opens"),
        "{text}"
    );
}

#[test]
fn gains_of_all_heads_are_of_the_start_and_new_where_no_map_is() {
    let normed = LlamaConfig {
        qk_norm: QkNorm::AllHeads,
        ..teacher()
    };
    let plan = Plan::new(&recipe(&["lti.layers=[0]", "lti.start=grouped"]), &normed).unwrap();
    let gain = |layer: usize, norm: &str| {
        let name = format!("model.layers.{layer}.self_attn.{norm}.weight");
        tensor(&plan, &name).clone()
    };
    let (query, key) = (gain(0, "q_norm"), gain(0, "k_norm"));
    let from = query.name.clone();
    assert_eq!(
        (&query.shape[..], query.origin),
        (&[32][..], Origin::Start { from })
    );
    assert_eq!((&key.shape[..], key.trained), (&[16][..], false));
    let new = gain(1, "k_norm");
    assert_eq!((&new.shape[..], new.origin), (&[16][..], Origin::New));

    let smaller = recipe(&["student.head_dim=4", "lti.start=lecun"]);
    let error = Plan::new(&smaller, &normed).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("norms the queries and keys of all heads"),
        "{error}"
    );
}

#[test]
fn what_is_normed_is_not_refitted() {
    let normed = LlamaConfig {
        output_norms: true,
        ..teacher()
    };
    let refit = recipe(&["lti.start=calibrated", "calibration.feed_forward=refit"]);
    let error = Plan::new(&refit, &normed).unwrap_err();
    assert!(matches!(&error, PlanError::Refused { key, .. } if *key == "calibration.feed_forward"));
    assert!(
        error
            .to_string()
            .contains("take calibration.feed_forward out"),
        "{error}"
    );
    Plan::new(&recipe(&["lti.start=calibrated"]), &normed).unwrap();
}

#[test]
fn heads_that_are_normed_keep_their_size() {
    let normed = LlamaConfig {
        qk_norm: QkNorm::EachHead,
        ..teacher()
    };
    let error =
        Plan::new(&recipe(&["student.head_dim=4", "lti.start=lecun"]), &normed).unwrap_err();
    assert!(error.to_string().contains("norms each head"), "{error}");
}

#[test]
fn units_are_made_by_the_start_and_layers_keep_their_names_in_the_teacher() {
    let plan = plan(&[
        "student.intermediate_size=129",
        "student.layers=[0, 1, 3, 4]",
    ]);
    let student = &plan.student;
    assert_eq!(
        (student.num_hidden_layers, student.intermediate_size),
        (4, 129)
    );
    assert_eq!((student.num_attention_heads, student.head_dim), (4, 8));
    assert_eq!(plan.layers, [0, 1, 2, 3]);
    assert_eq!(plan.kept_layers.as_deref(), Some(&[0, 1, 3, 4][..]));
    assert!(!plan.chooses_layers && plan.expectation.is_none());
    let from = |name: &str| format!("model.layers.3.{name}");
    let own = |name: &str| tensor(&plan, &format!("model.layers.2.{name}"));
    let up = own("mlp.up_proj.weight");
    let of_up = from("mlp.up_proj.weight");
    assert_eq!((up.shape.as_slice(), up.trained), (&[129, 64][..], false));
    assert_eq!(up.origin, Origin::Start { from: of_up });
    let kernel = own("self_attn.q_proj.c");
    let of_query = from("self_attn.q_proj.weight");
    assert_eq!(kernel.origin, Origin::TeacherKernel { from: of_query });
    let norm = own("input_layernorm.weight");
    let of_norm = from("input_layernorm.weight");
    assert_eq!(norm.origin, Origin::Copied { from: of_norm });
    // No more than the teacher without what is gone.
    let gone = plan.totals.teacher_parameters - plan.totals.student_parameters;
    let (attention, of_layer) = (64 * (64 + 32 + 32 + 64), 3 * 64 * 172 + 2 * 64);
    assert_eq!(
        gone,
        attention + of_layer + 4 * (attention / 2 + 3 * 64 * 43)
    );
    let text = plan.to_string();
    assert!(text.contains("depth    layers 0..1, 3..4 of 5"), "{text}");
    assert!(text.contains("129 units"), "{text}");
}

#[test]
fn a_number_of_layers_is_chosen_by_the_run() {
    let provisional = plan(&["student.layers=3"]);
    assert!(provisional.chooses_layers);
    assert_eq!(provisional.student.num_hidden_layers, 3);
    assert!(provisional.to_string().contains("depth    3 of 5 layers"));
    let chosen = Plan::with_layers(&recipe(&["student.layers=3"]), &teacher(), Some(&[0, 2, 4]));
    let chosen = chosen.unwrap();
    assert!(!chosen.chooses_layers);
    assert_eq!(chosen.kept_layers.as_deref(), Some(&[0, 2, 4][..]));
    // Those that were chosen of another teacher are no choice of this one.
    let of_another =
        Plan::with_layers(&recipe(&["student.layers=3"]), &teacher(), Some(&[0, 2, 9]));
    assert_eq!(
        of_another.unwrap().kept_layers.map(|kept| kept.len()),
        Some(3)
    );
    // All of them: nothing is chosen, and nothing is gone.
    let all = plan(&["student.layers=5"]);
    assert!(!all.chooses_layers && all.kept_layers.is_none());
    // Attention of layers that are paired is that of the layer kept.
    let feature = ["student.layers=[0, 2, 4]", "loss.feature={ weight = 1 }"];
    let pairs = plan(&feature).loss.feature.unwrap().pairs;
    assert_eq!(pairs, [[0, 0], [1, 2], [2, 4]].map(LayerPair::from));
}

#[test]
fn a_student_of_another_width_has_the_teacher_at_that_width() {
    let plan = plan(&["student.hidden_size=48", "student.tie_embeddings=false"]);
    let student = &plan.student;
    assert_eq!((student.hidden_size, student.head_dim), (48, 8));
    assert_eq!(plan.spec.teacher.d_model, 48);
    assert!(!student.tie_word_embeddings && plan.expectation.is_none());
    // Heads are the teacher's, what reads and writes is as wide as the student.
    let kernel = tensor(&plan, &q_proj("c"));
    let of_query = q_proj("weight");
    assert_eq!(kernel.shape, [48, 64]);
    assert_eq!(kernel.origin, Origin::TeacherKernel { from: of_query });
    for (name, shape) in [
        ("model.embed_tokens.weight", &[512, 48][..]),
        ("lm_head.weight", &[512, 48]),
        ("model.layers.4.mlp.down_proj.weight", &[48, 172]),
        ("model.layers.4.input_layernorm.weight", &[48]),
        ("model.norm.weight", &[48]),
    ] {
        let found = tensor(&plan, name);
        assert_eq!(found.shape, shape, "{name}");
        let from = name.to_owned();
        assert_eq!(found.origin, Origin::Start { from }, "{name}");
    }
    let counted = |config: &LlamaConfig| config.num_parameters();
    assert_eq!(plan.totals.student_parameters, counted(student));
    // Nothing of it is the teacher's: it is held beside.
    let frozen: usize = plan.tensors.iter().map(PlannedTensor::num_elements).sum();
    let of_both = counted(&teacher()) + frozen - plan.totals.map_parameters;
    assert_eq!(plan.costs.memory.weights, 4.0 * of_both as f64);
    let text = plan.to_string();
    assert!(text.contains("width    48 of 64 features"), "{text}");
    assert!(text.contains("start (grouped)"), "{text}");
    // Blocks of quantizers, with what is near.
    let blocks = "rows of what reads the stream have 48 numbers, which blocks of 32 (Q4_0 to Q8_0) do not divide: 32 \
                  or 64 features would do";
    assert!(text.contains(blocks), "{text}");
    let calibrated = super::tests::plan(&["student.hidden_size=32", "lti.start=calibrated"]);
    let text = calibrated.to_string();
    assert!(text.contains("width    32 of 64 directions"), "{text}");
    assert!(!text.contains("what reads the stream have"), "{text}");
    // A head of its own alone changes nothing else.
    let untied = super::tests::plan(&["student.tie_embeddings=false"]);
    assert!(!untied.to_string().contains("width    "));
    let norm = "model.norm.weight".to_owned();
    assert_eq!(tensor(&untied, &norm).origin, Origin::Copied { from: norm });
}

#[test]
fn widths_that_cannot_be_are_refused() {
    assert_refused(
        &["student.hidden_size=65"],
        "student.hidden_size",
        &["65", "64"],
    );
    assert_refused(
        &["student.hidden_size=0"],
        "student.hidden_size",
        &["at least one"],
    );
    let some_layers = [
        "student.hidden_size=48",
        "lti.layers=[0, 1]",
        "lti.start=calibrated",
    ];
    assert_refused(
        &some_layers,
        "lti.layers",
        &["student.hidden_size", "lti.layers = \"all\""],
    );
    let feature = ["student.hidden_size=48", "loss.feature={ weight = 1 }"];
    assert_refused(
        &feature,
        "loss.feature.projector",
        &["48", "64", "projector = true"],
    );
    let projected = [
        "student.hidden_size=48",
        "loss.feature={ weight = 1, projector = true }",
    ];
    assert!(plan(&projected).loss.feature.is_some());
    let of = |teacher: &LlamaConfig, overrides: &[&str]| {
        let error = Plan::new(&recipe(overrides), teacher).unwrap_err();
        error.to_string()
    };
    let untied = LlamaConfig {
        tie_word_embeddings: false,
        ..teacher()
    };
    let message = of(&untied, &["student.tie_embeddings=true"]);
    assert!(
        message.contains("student.tie_embeddings is true") && message.contains("calibrated"),
        "{message}"
    );
    let normed = LlamaConfig {
        output_norms: true,
        ..teacher()
    };
    let message = of(&normed, &["student.hidden_size=48", "lti.start=calibrated"]);
    assert!(
        message.contains("student.hidden_size") && message.contains("grouped"),
        "{message}"
    );
}

#[test]
fn a_gemma_of_another_width_multiplies_by_that_width() {
    let text = r#"{ "model_type": "gemma2", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4 }"#;
    let gemma = LlamaConfig::from_json_str(text, Path::new("config.json")).unwrap();
    assert_eq!(gemma.multipliers.embedding, 4.0);
    let student = gemma.at_width(9, true);
    assert_eq!(student.multipliers.embedding, 3.0);
    // So a file says, which is read the same.
    let file = student.to_json().to_string();
    let read = LlamaConfig::from_json_str(&file, Path::new("config.json")).unwrap();
    assert_eq!(read, student);
}

#[test]
fn a_vocabulary_is_cut_before_it_is_planned() {
    let recipe = recipe(&["student.vocabulary=text"]);
    let error = Plan::new(&recipe, &teacher()).unwrap_err();
    assert!(
        matches!(&error, PlanError::Refused { key: "student.vocabulary", reason }
            if reason.contains("to be found first")),
        "{error}"
    );
    let whole = teacher();
    let kept: Vec<u32> = (0..100).map(|id| 5 * id).collect();
    let cut = LlamaConfig {
        bos_token_id: Some(10),
        eos_token_ids: vec![3, 495],
        ..whole.clone()
    };
    let cut = cut.with_vocabulary(&kept);
    assert_eq!((cut.vocab_size, cut.bos_token_id), (100, Some(2)));
    assert_eq!(cut.eos_token_ids, [99]);
    let plan = Plan::new(&recipe, &cut).unwrap();
    assert_eq!(plan.totals.teacher_parameters, whole.num_parameters());
    let embedding = tensor(&plan, "model.embed_tokens.weight");
    assert_eq!(embedding.shape, [100, 64]);
    let text = plan.to_string();
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap();
    assert!(line("teacher").ends_with("vocabulary 512"), "{text}");
    assert!(line("student").ends_with("vocabulary 100"), "{text}");
}

#[test]
fn shapes_that_cannot_be_are_refused() {
    assert_refused(
        &["student.intermediate_size=173"],
        "student.intermediate_size",
        &["173", "172"],
    );
    assert_refused(
        &["student.intermediate_size=0"],
        "student.intermediate_size",
        &["at least one"],
    );
    assert_refused(&["student.layers=6"], "student.layers", &["from 1 to 5"]);
    assert_refused(&["student.layers=0"], "student.layers", &["from 1 to 5"]);
    assert_refused(
        &["student.layers=[0, 5]"],
        "student.layers",
        &["layer 5", "0 to 4"],
    );
    let some_layers = [
        "student.layers=4",
        "lti.layers=[0, 1]",
        "lti.start=calibrated",
    ];
    assert_refused(
        &some_layers,
        "lti.layers",
        &["student.layers", "lti.layers = \"all\""],
    );
    let copies = [
        "student.layers=4",
        "weights.copy={ 'model\\.layers\\.4\\.mlp\\.(.*)' = 'model.layers.3.mlp.$1' }",
    ];
    assert_refused(&copies, "weights.copy", &["student.layers"]);
}
