//! Tests of the recipe.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use burn_lti::calibration::{Budget, FeedForward};
use burn_lti::geometry::Role;
use burn_lti::loss::{Curve, Divergence, FeatureDistance, Schedule, SparseForm};
use burn_lti::map::{KernelPrecision, MapKind, Start};

use super::*;
use crate::data::{Documents, LossOn};

/// The least that a recipe can say.
const LEAST: &str = r#"
        [teacher]
        path = "../teacher"
        [student]
        heads = 4
        kv_heads = 2
        [train]
        steps = 200
        [data]
        train = ["train.txt", "/abs/more.txt"]
        valid = ["../valid.txt"]
    "#;

const FULL: &str = r#"
        [teacher]
        path = "../../shared/teachers/stories260k"
        dtype = "bfloat16"
        cache = "../top-k"
        [student]
        heads = 4
        kv_heads = 2
        head_dim = 6
        [lti]
        start = "lecun"
        map = { default = "general", query = "factored" }
        layers = [0, 2]
        train = "projections"
        precision = "high"
        [calibration]
        text = "teacher"
        sequences = 32
        budget = "long"
        rounds = 3
        feed_forward = "keep"
        refine_steps = 100
        refine_learning_rate = 1e-3
        [loss]
        alpha = { start = 0.9, end = 0.5, schedule = "linear" }
        temperature = 2
        divergence = { jensen_shannon = 0.5 }
        sparse = "renormalised"
        chunk_tokens = 64
        [loss.feature]
        weight = { start = 1, end = 0, schedule = "cosine" }
        kind = "l2"
        pairs = [[0, 1], [2, 3]]
        projector = true
        [train]
        steps = 200
        batch_size = 8
        accumulate = 4
        seq_len = 64
        learning_rate = "auto"
        rate = 0.5
        warmup_fraction = 0.2
        optimizer = "adam"
        decay = "linear"
        final_lr_fraction = 0
        betas = [0.8, 0.99]
        eps = 1e-6
        weight_decay = 0.1
        grad_clip = inf
        seed = 5
        log_every = 10
        eval_sequences = 20
        eval_every = 25
        checkpoint_every = 50
        keep_checkpoints = 3
        patience = 4
        tensorboard = true
        [weights]
        freeze = ['model\.norm\.weight']
        copy = { 'model\.layers\.1\.mlp\.(.*)' = 'model.layers.0.mlp.$1' }
        share = { 'model\.layers\.2\.(.*)' = 'model.layers.3.$1' }
        [data]
        train = ["train.txt"]
        valid = ["valid.txt"]
        documents = "joined"
        loss_on = "assistant"
    "#;

/// A map that grows.
const GROWING: &str = r#"
        teacher.path = "teacher"
        student = { heads = 4, kv_heads = 2 }
        train.steps = 200
        data = { train = ["train.txt"], valid = ["valid.txt"] }
        lti.map = { default = { kronecker = 3 }, out = "general" }
        lti.grow.every = 50
    "#;

/// Every key of a second phase.
const TWO_PHASES: &str = r#"
        teacher.path = "teacher"
        student = { heads = 4, kv_heads = 2 }
        train.steps = 200
        data = { train = ["train.txt"], valid = ["valid.txt"] }
        [phase2]
        train = "all"
        steps = 50
        learning_rate = 1e-4
        warmup_fraction = 0
        final_lr_fraction = 0.5
        plateau = { window = 20, improvement = 0.05 }
    "#;

fn parse(text: &str, overrides: &[&str]) -> Result<Recipe, RecipeError> {
    let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
    Recipe::parse(text, Path::new("/recipes/half.toml"), &overrides)
}

fn rule(pattern: &str, template: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(pattern.to_owned(), template.to_owned())])
}

/// The error of the least recipe with one override.
fn refused(setting: &str) -> RecipeError {
    parse(LEAST, &[setting]).unwrap_err()
}

/// Asserts that the error is of a value of `key` that is out of its range.
fn assert_out_of_range(error: &RecipeError, key: &str) {
    let text = error.to_string();
    let begins = format!("/recipes/half.toml: `{key}` is ");
    assert!(
        text.starts_with(&begins) && text.contains(": it must "),
        "{text}"
    );
}

/// What an error says of the nearest name, or of all.
fn way_out(what: &str, nearest: Option<&str>) -> String {
    match nearest {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("the {what} are "),
    }
}

#[test]
fn fills_in_the_defaults() {
    let recipe = parse(LEAST, &[]).unwrap();
    assert_eq!(recipe.student.head_dim, None);
    let data = &recipe.data;
    assert_eq!((data.on_policy, data.on_policy_temperature), (0.0, 1.0));
    assert_eq!((data.on_policy_prompt, data.on_policy_every), (None, 1));
    assert_eq!(recipe.lti.start, Start::Calibrated);
    assert_eq!(recipe.lti.map, MapChoice::uniform(MapKind::General));
    assert_eq!((recipe.trained(), recipe.lti.train), (Trained::All, None));
    assert_eq!(recipe.lti.layers, Layers::All);
    assert_eq!(
        recipe.loss,
        LossSection {
            alpha: Schedule::constant(1.0),
            temperature: Schedule::constant(1.0),
            divergence: Divergence::ForwardKl,
            sparse: SparseForm::Tail,
            chunk_tokens: 512,
            feature: None,
        }
    );
    assert_eq!(
        recipe.train,
        TrainSection {
            steps: 200,
            batch_size: 16,
            accumulate: 1,
            seq_len: SeqLens::new([128]),
            precision: Precision::Auto,
            learning_rate: LearningRate::Auto,
            rate: None,
            optimizer: None,
            warmup_fraction: 0.1,
            decay: None,
            final_lr_fraction: None,
            betas: [0.9, 0.95],
            eps: None,
            weight_decay: 0.0,
            grad_clip: None,
            seed: 0,
            log_every: 1,
            eval_sequences: 200,
            eval_every: None,
            checkpoint_every: None,
            keep_checkpoints: 2,
            patience: None,
            tensorboard: false,
        }
    );
    assert_eq!((recipe.teacher.cache, recipe.phase2), (None, None));
    assert_eq!(recipe.weights, WeightsSection::default());
    let calibration = recipe.calibration;
    assert_eq!(recipe.data.documents, Documents::Apart);
    assert_eq!(recipe.data.loss_on, LossOn::All);
    assert_eq!(calibration.text, None);
    assert_eq!((calibration.sequences, calibration.rounds), (256, 2));
    assert_eq!(calibration.feed_forward, FeedForward::Keep);
    assert_eq!(calibration.refine_steps, 0);
}

#[test]
fn fills_in_the_defaults_of_sections_that_may_be_absent() {
    let recipe = parse(LEAST, &["loss.feature={ weight = 2 }"]).unwrap();
    assert_eq!(
        recipe.loss.feature,
        Some(FeatureSection {
            weight: Schedule::constant(2.0),
            kind: FeatureDistance::Cosine,
            pairs: LayerPairs::Same,
            projector: false,
        })
    );
    let recipe = parse(LEAST, &["phase2.steps=7", "phase2.plateau={}"]).unwrap();
    assert_eq!(
        recipe.phase2,
        Some(Phase2Section {
            train: Phase2Trained::Projections,
            steps: 7,
            learning_rate: None,
            warmup_fraction: 0.1,
            final_lr_fraction: None,
            plateau: Some(Plateau {
                window: 50,
                improvement: 0.01
            }),
        })
    );
}

#[test]
fn trains_maps_where_the_recipe_has_what_only_maps_can_have() {
    for setting in [
        "phase2.steps=7",
        "lti.grow={ every = 10 }",
        "lti.coordinates=plain",
        "teacher.dtype=float16",
        "lti.train=maps",
    ] {
        let recipe = parse(LEAST, &["lti.map={ kronecker = 2 }", setting]).unwrap();
        assert_eq!(recipe.trained(), Trained::Maps, "{setting}");
    }
    let error = parse(LEAST, &["lti.coordinates=plain", "lti.train=all"]).unwrap_err();
    let expected = "`lti.coordinates` needs lti.train = \"maps\": ";
    assert!(error.to_string().contains(expected), "{error}");
}

#[test]
fn maps_of_query_and_key_keep_rotary_pairs_where_the_recipe_says_so() {
    for (settings, rotary) in [
        (&[][..], Rotary::Free),
        (&["lti.rotary=free", "lti.map=factored"], Rotary::Free),
        (&["lti.rotary=kept"], Rotary::Kept),
        (
            &[
                "lti.map={ value = 'factored', out = { kronecker = 2 } }",
                "lti.rotary=kept",
            ],
            Rotary::Kept,
        ),
    ] {
        let recipe = parse(LEAST, settings).unwrap();
        assert_eq!(recipe.lti.rotary, rotary, "{settings:?}");
        let text = recipe.to_toml().unwrap();
        // What a run of before wrote, which said nothing of it, is what is written now.
        assert_eq!(text.contains("rotary"), rotary == Rotary::Kept, "{text}");
        assert_eq!(parse(&text, &[]).unwrap(), recipe);
    }
    for map in ["lti.map=factored", "lti.map={ query = { kronecker = 2 } }"] {
        let error = parse(LEAST, &[map, "lti.rotary=kept"])
            .unwrap_err()
            .to_string();
        for part in [
            "`lti.rotary = \"kept\"` needs lti.map.query and lti.map.key = \"general\": ",
            "lti.rotary = \"free\"",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }
    let error = parse(LEAST, &["lti.rotary=some"]).unwrap_err().to_string();
    assert!(error.contains("kept") && error.contains("free"), "{error}");
}

#[test]
fn a_start_is_made_for_the_tokens_that_all_weights_learn_from() {
    let budget = |more: &[&str]| parse(LEAST, more).unwrap().budget(204_800);
    // Steps have 16 x 128 tokens.
    assert_eq!(budget(&["train.steps=100"]), Budget::Long);
    assert_eq!(budget(&["train.steps=99"]), Budget::Short);
    assert_eq!(budget(&["train.steps=10"]), Budget::Short);
    assert_eq!(budget(&["train.steps=9"]), Budget::None);
    for trained in ["lti.train=maps", "lti.train=projections"] {
        assert_eq!(budget(&[trained]), Budget::None);
    }
    let asked = ["train.steps=9", "calibration.budget=long"];
    assert_eq!(budget(&asked), Budget::Long);
    let error = parse(LEAST, &["calibration.budget=middling"]).unwrap_err();
    let error = error.to_string();
    for known in ["none", "short", "long"] {
        assert!(error.contains(known), "{error}");
    }
}

#[test]
fn reads_every_key() {
    let recipe = parse(FULL, &[]).unwrap();
    assert_eq!(recipe.student.head_dim, Some(6));
    assert_eq!(recipe.lti.map.kind(Role::Query), Some(MapKind::Factored));
    assert_eq!(recipe.lti.map.kind(Role::Out), Some(MapKind::General));
    assert_eq!(recipe.lti.map.kind(Role::Up), None);
    assert_eq!(recipe.lti.layers, Layers::These(vec![0, 2]));
    assert_eq!(recipe.lti.train, Some(Trained::Projections));
    assert_eq!(recipe.lti.precision, KernelPrecision::High);
    let calibration = CalibrationSection {
        text: Some(CalibrationText::Teacher),
        sequences: 32,
        budget: Some(Budget::Long),
        rounds: 3,
        feed_forward: FeedForward::Keep,
        refine_steps: 100,
        refine_learning_rate: 1e-3,
    };
    assert_eq!(recipe.calibration, calibration);
    let LossSection {
        alpha,
        temperature,
        divergence,
        sparse,
        chunk_tokens,
        feature,
    } = recipe.loss;
    assert_eq!(alpha, Schedule::new(Curve::Linear, 0.9, 0.5));
    assert_eq!(temperature, Schedule::constant(2.0));
    assert_eq!(divergence, Divergence::JensenShannon { beta: 0.5 });
    assert_eq!((sparse, chunk_tokens), (SparseForm::Renormalised, 64));
    assert_eq!(
        feature,
        Some(FeatureSection {
            weight: Schedule::new(Curve::Cosine, 1.0, 0.0),
            kind: FeatureDistance::L2,
            pairs: LayerPairs::These(vec![[0, 1].into(), [2, 3].into()]),
            projector: true,
        })
    );
    assert_eq!(recipe.train.grad_clip, Some(f64::INFINITY));
    assert_eq!(recipe.train.betas, [0.8, 0.99]);
    let TrainSection {
        accumulate,
        checkpoint_every,
        keep_checkpoints,
        patience,
        tensorboard,
        ..
    } = recipe.train;
    assert_eq!((accumulate, checkpoint_every), (4, Some(50)));
    assert_eq!((keep_checkpoints, patience), (3, Some(4)));
    assert!(tensorboard);
    assert_eq!(recipe.data.documents, Documents::Joined);
    assert_eq!(recipe.data.loss_on, LossOn::Assistant);
    assert_eq!(
        recipe.weights,
        WeightsSection {
            freeze: vec![r"model\.norm\.weight".to_owned()],
            copy: rule(r"model\.layers\.1\.mlp\.(.*)", "model.layers.0.mlp.$1"),
            share: rule(r"model\.layers\.2\.(.*)", "model.layers.3.$1"),
        }
    );
}

#[test]
fn a_student_writes_only_what_it_can_learn_from() {
    let on = |more: &[&str]| parse(LEAST, &[&["data.on_policy=0.25"], more].concat());
    let every = ["data.on_policy_prompt=16", "data.on_policy_every=8"];
    let recipe = on(&every).unwrap();
    let data = &recipe.data;
    assert_eq!((data.on_policy_prompt, data.on_policy_every), (Some(16), 8));
    for share in ["-0.1", "1.1", "nan"] {
        let error = refused(&format!("data.on_policy={share}"));
        assert_out_of_range(&error, "data.on_policy");
    }
    for setting in ["temperature=0", "prompt=0", "prompt=128", "every=0"] {
        let error = refused(&format!("data.on_policy_{setting}"));
        let key = setting.split('=').next().unwrap();
        assert_out_of_range(&error, &format!("data.on_policy_{key}"));
    }
    for (setting, way_out) in [
        ("teacher.cache=k", "leave teacher.cache out"),
        ("loss.alpha=0.9", "leave loss.alpha out"),
    ] {
        parse(LEAST, &[setting]).unwrap();
        let text = on(&[setting]).unwrap_err().to_string();
        assert!(
            text.contains("data.on_policy") && text.contains(way_out),
            "{text}"
        );
    }
}

#[test]
fn reads_every_key_of_phase_2() {
    assert_eq!(
        parse(TWO_PHASES, &[]).unwrap().phase2,
        Some(Phase2Section {
            train: Phase2Trained::All,
            steps: 50,
            learning_rate: Some(LearningRate::Number(1e-4)),
            warmup_fraction: 0.0,
            final_lr_fraction: Some(0.5),
            plateau: Some(Plateau {
                window: 20,
                improvement: 0.05
            }),
        })
    );
}

#[test]
fn resolves_paths_against_the_folder_of_the_file() {
    let recipe = parse(LEAST, &["data.valid=['v.txt']", "teacher.cache=k"]).unwrap();
    assert_eq!(recipe.teacher.path, Path::new("/recipes/../teacher"));
    assert_eq!(
        recipe.data.train,
        [Path::new("/recipes/train.txt"), Path::new("/abs/more.txt")]
    );
    assert_eq!(recipe.data.valid, [Path::new("/recipes/v.txt")]);
    assert_eq!(recipe.teacher.cache, Some(PathBuf::from("/recipes/k")));
}

#[test]
fn reads_what_it_writes() {
    for (text, overrides) in [
        (LEAST, &[][..]),
        (LEAST, &["train.seq_len=[128, 512]"]),
        (LEAST, &["report=false"]),
        (FULL, &[]),
        (TWO_PHASES, &[]),
    ] {
        let recipe = parse(text, overrides).unwrap();
        assert_eq!(parse(&recipe.to_toml().unwrap(), &[]).unwrap(), recipe);
    }
}

#[test]
#[cfg(unix)]
fn cannot_write_a_path_that_is_no_unicode() {
    use std::os::unix::ffi::OsStringExt;

    let mut recipe = parse(LEAST, &[]).unwrap();
    recipe.teacher.path = std::ffi::OsString::from_vec(vec![0xff]).into();
    assert!(matches!(recipe.to_toml(), Err(RecipeError::Write { .. })));
}

#[test]
fn overrides_win_over_the_file() {
    let overrides = [
        "lti.start=lecun",
        "loss.alpha=0.5",
        "train.steps = 7",
        "train.steps=8",
    ];
    let recipe = parse(LEAST, &overrides).unwrap();
    assert_eq!(recipe.lti.start, Start::Lecun);
    assert_eq!(recipe.loss.alpha, Schedule::constant(0.5));
    assert_eq!(recipe.train.steps, 8);
    assert!(matches!(refused("steps=3"), RecipeError::Override { .. }));
}

#[test]
fn a_page_is_made_unless_the_recipe_says_otherwise() {
    assert!(parse(LEAST, &[]).unwrap().report);
    assert!(!parse(LEAST, &["report=false"]).unwrap().report);
    let text = format!("report = false\n{LEAST}");
    assert!(!parse(&text, &[]).unwrap().report);
    let error = refused("report=no");
    assert!(matches!(&error, RecipeError::WrongType { key, .. } if key == "report"));
}

#[test]
fn loads_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("half.toml");
    assert!(matches!(
        Recipe::load(&path, &[]),
        Err(RecipeError::Read { .. })
    ));
    fs::write(&path, LEAST).unwrap();
    let recipe = Recipe::load(&path, &[]).unwrap();
    assert_eq!(recipe.data.train[0], dir.path().join("train.txt"));
    fs::write(&path, "[teacher").unwrap();
    assert!(matches!(
        Recipe::load(&path, &[]),
        Err(RecipeError::Syntax { .. })
    ));
}

#[test]
fn names_unknown_keys_and_the_nearest_known() {
    let text = refused("train.batchsize=3").to_string();
    for part in [
        "/recipes/half.toml",
        "`batchsize`",
        "[train]",
        "`batch_size`",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let text = refused("lti.zzz=3").to_string();
    assert!(
        text.contains(
            "the keys are start, map, rotary, grow, layers, train, coordinates, precision"
        ),
        "{text}"
    );
    // Known, but in another section.
    let text = refused("loss.steps=3").to_string();
    assert!(
        text.contains("there is no key `steps` in [loss]: "),
        "{text}"
    );
    for (setting, place, name) in [
        ("lti.map={ quer = 'general' }", "lti.map", Some("query")),
        (
            "loss.alpha={ begin = 1, end = 0, schedule = 'linear' }",
            "loss.alpha",
            None,
        ),
        (
            "loss.divergence={ skew_kl = 0.1 }",
            "loss.divergence",
            Some("skewed_kl"),
        ),
        (
            "loss.feature={ weight = 1, pair = 'same' }",
            "loss.feature",
            Some("pairs"),
        ),
        ("train.acumulate=2", "train", Some("accumulate")),
        ("phase2.step=2", "phase2", Some("steps")),
        (
            "phase2.plateau={ windows = 2 }",
            "phase2.plateau",
            Some("window"),
        ),
        ("weights.freez=['a']", "weights", Some("freeze")),
    ] {
        let text = refused(setting).to_string();
        assert!(
            text.contains(&format!(" in [{place}]: {}", way_out("keys", name))),
            "{text}"
        );
    }
    let text = refused("trian.steps=3").to_string();
    assert!(
        text.contains("there is no section [trian]: did you mean `train`?"),
        "{text}"
    );
}

#[test]
fn names_unknown_values() {
    for (setting, key, nearest) in [
        ("lti.start=group", "lti.start", Some("grouped")),
        ("lti.start=calibrate", "lti.start", Some("calibrated")),
        (
            "calibration.feed_forward=refi",
            "calibration.feed_forward",
            Some("refit"),
        ),
        ("lti.map=factord", "lti.map", Some("factored")),
        ("lti.train=everything", "lti.train", None),
        ("lti.layers=al", "lti.layers", Some("all")),
        ("lti.precision=hi", "lti.precision", Some("high")),
        (
            "loss.divergence=reverse",
            "loss.divergence",
            Some("reverse_kl"),
        ),
        ("loss.sparse=tails", "loss.sparse", Some("tail")),
        (
            "loss.alpha={ start = 1, end = 0, schedule = 'line' }",
            "loss.alpha.schedule",
            Some("linear"),
        ),
        (
            "loss.feature={ weight = 1, kind = 'cos' }",
            "loss.feature.kind",
            Some("cosine"),
        ),
        (
            "loss.feature={ weight = 1, pairs = 'all' }",
            "loss.feature.pairs",
            None,
        ),
        ("phase2.train=maps", "phase2.train", None),
        ("data.documents=join", "data.documents", Some("joined")),
        ("data.loss_on=asistant", "data.loss_on", Some("assistant")),
    ] {
        let text = refused(setting).to_string();
        assert!(text.contains(&format!(": `{key}` cannot be \"")), "{text}");
        assert!(
            text.contains(&format!("\": {}", way_out("values", nearest))),
            "{text}"
        );
    }
}

#[test]
fn maps_grow_from_one_pair_as_far_as_the_steps_reach() {
    let grow = parse(GROWING, &[]).unwrap().lti.grow.unwrap();
    assert_eq!((grow.from, grow.every), (1, 50));
    for (setting, key, part) in [
        ("lti.map={ kronecker = 0 }", "lti.map", "at least 1"),
        (
            "lti.grow={ every = 50, from = 0 }",
            "lti.grow.from",
            "at least 1",
        ),
        ("lti.grow={ every = 0 }", "lti.grow.every", "at least 1"),
        (
            "lti.grow={ every = 100 }",
            "lti.grow.every",
            "the last pair join",
        ),
    ] {
        let error = parse(GROWING, &[setting]).unwrap_err();
        assert_out_of_range(&error, key);
        assert!(error.to_string().contains(part), "{setting}: {error}");
    }
    for (setting, way_out) in [
        ("lti.map=general", "{ kronecker = R }"),
        ("lti.grow={ every = 50, from = 3 }", "leave [lti.grow] out"),
        ("lti.train=all", "lti.train = \"maps\""),
    ] {
        let error = parse(GROWING, &[setting]).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(": `lti.grow` needs ") && text.contains(way_out),
            "{setting}: {text}"
        );
    }
    assert!(matches!(refused("lti.grow={ from = 2 }"),
            RecipeError::Missing { key, .. } if key == "lti.grow.every"));
    assert!(matches!(refused("lti.map=kronecker"),
            RecipeError::Refused { key, rule, .. }
            if key == "lti.map" && rule.contains("{ kronecker = 4 }")));
}

#[test]
fn a_shape_is_the_teachers_where_nothing_is_said() {
    let text = LEAST.replace("kv_heads = 2", "").replace("heads = 4", "");
    let recipe = parse(&text, &[]).unwrap();
    assert_eq!(recipe.student, StudentSection::default());
    let shape = ["student.intermediate_size=129", "student.layers=4"];
    let student = parse(LEAST, &shape).unwrap().student;
    assert_eq!(student.intermediate_size, Some(129));
    assert_eq!(student.layers, Some(KeptLayers::Count(4)));
    let list = parse(LEAST, &["student.layers=[0, 2, 3]"]).unwrap();
    assert_eq!(list.student.layers, Some(KeptLayers::These(vec![0, 2, 3])));
    for setting in [
        "student.layers=[2, 0]",
        "student.layers=[1, 1]",
        "student.layers=[]",
    ] {
        assert_out_of_range(&refused(setting), "student.layers");
    }
    assert!(
        refused("student.layers=most")
            .to_string()
            .contains("a number of layers, or a list")
    );
}

#[test]
fn a_vocabulary_is_that_of_the_text_a_number_or_a_list() {
    for (setting, expected) in [
        ("text", KeptVocabulary::OfText(OfText::Text)),
        ("3000", KeptVocabulary::Count(3000)),
        ("[7, 3]", KeptVocabulary::These(vec![7, 3])),
    ] {
        let recipe = parse(LEAST, &[&format!("student.vocabulary={setting}")]).unwrap();
        assert_eq!(recipe.student.vocabulary, Some(expected));
        let again = Recipe::parse(&recipe.to_toml().unwrap(), Path::new("/a.toml"), &[]);
        assert_eq!(again.unwrap().student, recipe.student);
    }
    for setting in ["[]", "[1, 1]", "0"] {
        let setting = format!("student.vocabulary={setting}");
        assert_out_of_range(&refused(&setting), "student.vocabulary");
    }
    let error = refused("student.vocabulary=texts").to_string();
    assert!(
        error.contains("\"text\", a number of tokens, or a list"),
        "{error}"
    );
}

#[test]
fn names_missing_keys() {
    for (line, expected) in [
        ("path = \"../teacher\"", "teacher.path"),
        ("steps = 200", "train.steps"),
        ("valid = [\"../valid.txt\"]", "data.valid"),
    ] {
        let error = parse(&LEAST.replacen(line, "\n", 1), &[]).unwrap_err();
        assert!(matches!(&error, RecipeError::Missing { key, .. } if key == expected));
    }
    for (setting, expected) in [
        (
            "loss.temperature={ start = 2, schedule = 'linear' }",
            "loss.temperature.end",
        ),
        ("loss.alpha={ start = 1, end = 0 }", "loss.alpha.schedule"),
        ("loss.feature={}", "loss.feature.weight"),
        ("phase2.train=all", "phase2.steps"),
    ] {
        let error = refused(setting);
        assert!(
            matches!(&error, RecipeError::Missing { key, .. } if key == expected),
            "{setting}: {error}"
        );
    }
    assert!(matches!(parse("", &[]), Err(RecipeError::Missing { key, .. }) if key == "teacher"));
}

#[test]
fn names_values_of_the_wrong_type() {
    for (setting, expected) in [
        ("train.steps=many", "train.steps"),
        ("train.steps=-1", "train.steps"),
        ("train.seq_len=-1", "train.seq_len"),
        ("train.seq_len=long", "train.seq_len"),
        ("train.seq_len=[128, 'long']", "train.seq_len"),
        ("train.betas=[0.9]", "train.betas"),
        ("lti.layers=3", "lti.layers"),
        ("data.train=train.txt", "data.train"),
        ("loss.alpha=warm", "loss.alpha"),
        (
            "loss.alpha={ start = 'a', schedule = 'constant' }",
            "loss.alpha.start",
        ),
        ("loss.divergence=3", "loss.divergence"),
        (
            "loss.divergence={ skewed_kl = 'a' }",
            "loss.divergence.skewed_kl",
        ),
        ("loss.feature=1", "loss.feature"),
        (
            "loss.feature={ weight = 1, pairs = [[0]] }",
            "loss.feature.pairs",
        ),
        (
            "loss.feature={ weight = 1, projector = 1 }",
            "loss.feature.projector",
        ),
        ("train.checkpoint_every=-1", "train.checkpoint_every"),
        ("train.tensorboard=1", "train.tensorboard"),
        ("phase2=3", "phase2"),
        ("phase2.plateau=3", "phase2.plateau"),
        ("weights.freeze=a", "weights.freeze"),
    ] {
        let error = match setting.contains('.') {
            true => refused(setting),
            false => parse(&format!("{setting}\n{LEAST}"), &[]).unwrap_err(),
        };
        assert!(
            matches!(&error, RecipeError::WrongType { key, .. } if key == expected),
            "{setting}: {error}"
        );
    }
}

#[test]
fn refuses_what_says_too_little_or_two_things() {
    for (setting, expected, way_out) in [
        (
            "loss.alpha={ start = 1, end = 0, schedule = 'constant' }",
            "loss.alpha",
            "\"linear\" or \"cosine\"",
        ),
        (
            "loss.divergence=jensen_shannon",
            "loss.divergence",
            "{ jensen_shannon = 0.5 }",
        ),
        (
            "loss.divergence={ jensen_shannon = 0.5, skewed_kl = 0.1 }",
            "loss.divergence",
            "one divergence",
        ),
    ] {
        let error = refused(setting);
        assert!(
            matches!(&error, RecipeError::Refused { key, .. } if key == expected),
            "{setting}: {error}"
        );
        let text = error.to_string();
        assert!(
            text.contains(way_out) && text.contains("/recipes/half.toml"),
            "{text}"
        );
    }
}

#[test]
fn refuses_what_another_key_rules_out() {
    let error = refused("train.accumulate=3");
    let expected = "`train.accumulate` is 3, which does not divide train.batch_size, 16: ";
    assert!(error.to_string().contains(expected), "{error}");
    parse(LEAST, &["train.accumulate=16"]).unwrap();

    let error = parse(
        LEAST,
        &["calibration.feed_forward=refit", "lti.start=grouped"],
    )
    .unwrap_err();
    let expected = "`calibration.feed_forward` needs lti.start = \"calibrated\": ";
    assert!(error.to_string().contains(expected), "{error}");
    parse(LEAST, &["calibration.feed_forward=refit"]).unwrap();

    let error = parse(LEAST, &["train.rate=2", "train.learning_rate=1e-3"]).unwrap_err();
    let expected = "`train.rate` needs train.learning_rate = \"auto\": ";
    assert!(error.to_string().contains(expected), "{error}");
    let second = [
        "train.rate=2",
        "train.learning_rate=1e-3",
        "phase2.learning_rate=auto",
    ];
    for (text, settings) in [(LEAST, &second[..1]), (TWO_PHASES, &second)] {
        assert_eq!(parse(text, settings).unwrap().train.rate, Some(2.0));
    }

    for train in ["projections", "all"] {
        let error = parse(TWO_PHASES, &[&format!("lti.train={train}")]).unwrap_err();
        for part in [
            "`phase2` needs ",
            "lti.train = \"maps\"",
            "leave [phase2] out",
        ] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}

#[test]
fn refuses_lengths_whose_steps_would_differ() {
    for (settings, part) in [
        (
            &["train.seq_len=[128, 512]", "train.batch_size=6"][..],
            "`train.seq_len` is [128, 512], but the 6 x 128 tokens of a step make no whole number of \
             sequences of 512, and every length has as many tokens: set train.batch_size to a multiple of 4",
        ),
        (
            &["train.seq_len=[128, 512]", "train.accumulate=8"],
            "the 2 x 128 tokens of a micro-batch make no whole number of sequences of 512, and every \
             length has as many tokens: set train.batch_size to a multiple of 32",
        ),
        (
            &["train.seq_len=[128, 192, 320]"],
            "set train.batch_size to a multiple of 15",
        ),
        (
            &["train.seq_len=[128, 512]", "teacher.cache='top-k'"],
            "`teacher.cache` needs one train.seq_len: ",
        ),
    ] {
        let error = parse(LEAST, settings).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
    let settings = ["train.seq_len=[128, 192, 320]", "train.batch_size=15"];
    let train = parse(LEAST, &settings).unwrap().train;
    assert_eq!(train.tokens_per_step(), 15 * 128);
}

#[test]
fn checks_patterns() {
    assert!(matches!(
        refused("weights.freeze=['a', '(']"),
        RecipeError::Pattern { key: "weights.freeze", pattern, .. } if pattern == "("
    ));
}

#[test]
fn checks_every_range() {
    for setting in [
        "teacher.path=",
        "lti.layers=[1, 0, 1]",
        "loss.alpha=1.1",
        "loss.alpha=-0.1",
        "loss.alpha=nan",
        "loss.temperature=0",
        "loss.temperature=inf",
        "loss.temperature=nan",
        "loss.alpha={ start = 1.1, end = 0, schedule = 'linear' }",
        "loss.alpha={ start = 1, end = -0.1, schedule = 'linear' }",
        "loss.alpha={ start = nan, end = 1, schedule = 'cosine' }",
        "loss.alpha={ start = 1, end = nan, schedule = 'cosine' }",
        "loss.alpha={ start = nan, schedule = 'constant' }",
        "loss.temperature={ start = 0, end = 1, schedule = 'linear' }",
        "loss.temperature={ start = 1, end = inf, schedule = 'linear' }",
        "loss.temperature={ start = 1, end = nan, schedule = 'linear' }",
        "loss.divergence={ jensen_shannon = 0 }",
        "loss.divergence={ jensen_shannon = 1 }",
        "loss.divergence={ skewed_kl = nan }",
        "loss.divergence={ skewed_kl = -0.1 }",
        "loss.chunk_tokens=0",
        "calibration.sequences=3",
        "calibration.refine_learning_rate=0",
        "train.steps=0",
        "train.batch_size=0",
        "train.accumulate=0",
        "train.seq_len=1",
        "train.seq_len=[]",
        "train.seq_len=[1, 128]",
        "train.seq_len=[128, 128]",
        "train.seq_len=[512, 128]",
        "train.learning_rate=0",
        "train.rate=0",
        "train.rate=inf",
        "train.learning_rate=inf",
        "train.warmup_fraction=1.5",
        "train.final_lr_fraction=nan",
        "train.betas=[0.9, 1.0]",
        "train.betas=[nan, 0.9]",
        "train.eps=0",
        "train.eps=nan",
        "train.weight_decay=-1",
        "train.weight_decay=inf",
        "train.grad_clip=0",
        "train.grad_clip=nan",
        "train.log_every=0",
        "train.eval_sequences=0",
        "train.checkpoint_every=0",
        "train.keep_checkpoints=0",
        "train.patience=0",
        "teacher.cache=",
        "data.train=[]",
        "data.valid=['']",
    ] {
        let error = refused(setting);
        let (expected, _) = setting.split_once('=').unwrap();
        assert_out_of_range(&error, expected);
    }
}
#[test]
fn checks_every_range_of_a_table_in_a_section() {
    for (key, table) in [
        ("weight", "weight = 0"),
        ("weight", "weight = -1"),
        ("weight", "weight = inf"),
        ("weight", "weight = nan"),
        (
            "weight",
            "weight = { start = 0, end = 0, schedule = 'linear' }",
        ),
        (
            "weight",
            "weight = { start = 1, end = -1, schedule = 'linear' }",
        ),
        (
            "weight",
            "weight = { start = nan, end = 1, schedule = 'linear' }",
        ),
        ("pairs", "weight = 1, pairs = []"),
        ("pairs", "weight = 1, pairs = [[0, 1], [1, 0], [0, 1]]"),
    ] {
        let error = refused(&format!("loss.feature={{ {table} }}"));
        let expected = format!("loss.feature.{key}");
        assert_out_of_range(&error, &expected);
    }
    for table in [
        "weight = { start = 0, end = 1, schedule = 'linear' }",
        "weight = 1, pairs = [[0, 1], [0, 0], [1, 0]]",
    ] {
        parse(LEAST, &[&format!("loss.feature={{ {table} }}")]).unwrap();
    }
    for setting in [
        "phase2.steps=0",
        "phase2.learning_rate=0",
        "phase2.learning_rate=nan",
        "phase2.warmup_fraction=1.1",
        "phase2.final_lr_fraction=nan",
    ] {
        let error = parse(TWO_PHASES, &[setting]).unwrap_err();
        let (expected, _) = setting.split_once('=').unwrap();
        assert_out_of_range(&error, expected);
    }
    for (key, table) in [
        ("window", "window = 0"),
        ("improvement", "improvement = 1"),
        ("improvement", "improvement = -0.1"),
        ("improvement", "improvement = nan"),
    ] {
        let setting = format!("phase2.plateau={{ {table} }}");
        let error = parse(TWO_PHASES, &[&setting]).unwrap_err();
        let expected = format!("phase2.plateau.{key}");
        assert_out_of_range(&error, &expected);
    }
}

#[test]
fn a_schedule_out_of_range_is_shown_whole() {
    let text = refused("loss.alpha={ start = 0.9, end = 2, schedule = 'cosine' }").to_string();
    assert!(
        text.contains("`loss.alpha` is 0.9 -> 2 (cosine): it must be from 0 to 1"),
        "{text}"
    );
}
