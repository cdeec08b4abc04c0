//! What rules make of a small student: sharing, copying through maps, folding.

use burn::module::ParamId;
use burn::tensor::DType;

use super::*;

fn listed(name: &str, part: Part, shape: &[usize]) -> Listed {
    Listed {
        name: name.to_owned(),
        part,
        projection: None,
        shape: shape.to_vec(),
        dtype: Some(DType::F32),
        id: ParamId::new(),
    }
}

/// The tensors of a factored map of outputs, 4 features to 2, over inputs of 3, with a bias.
fn mapped(projection: &str) -> Vec<Listed> {
    [
        ("c", Part::TeacherKernel, &[3, 4][..]),
        ("right.a", Part::Map(Side::Right), &[2, 1]),
        ("right.b", Part::Map(Side::Right), &[2, 2]),
        ("bias", Part::Bias, &[2]),
    ]
    .map(|(leaf, part, shape)| Listed {
        projection: Some(projection.to_owned()),
        ..listed(&format!("{projection}.{leaf}"), part, shape)
    })
    .into()
}

fn student() -> Vec<Listed> {
    let plain = |name: &str| listed(name, Part::Plain, &[2, 3]);
    let mut student: Vec<Listed> = ["a", "b", "c", "d"].map(plain).into();
    student.push(Listed {
        dtype: Some(DType::F16),
        ..plain("half")
    });
    student.push(Listed {
        dtype: None,
        ..plain("lazy")
    });
    student.push(listed("turned", Part::Plain, &[3, 2]));
    student.extend(mapped("q"));
    student.extend(mapped("k"));
    student
}

/// A teacher that has what this student asks for by name.
fn teacher() -> BTreeMap<String, Vec<usize>> {
    let of_maps = ["q", "k"].into_iter().flat_map(|projection| {
        [("weight", vec![3, 4]), ("bias", vec![4])]
            .map(|(leaf, shape)| (format!("{projection}.{leaf}"), shape))
    });
    let plain = student().into_iter().filter(|it| it.part == Part::Plain);
    plain.map(|it| (it.name, it.shape)).chain(of_maps).collect()
}

fn blueprint(rules: Rules) -> Result<Blueprint, BlueprintError> {
    Blueprint::new(&student(), &teacher(), &rules)
}

fn shared(pairs: &[(&str, &str)]) -> Result<Blueprint, BlueprintError> {
    let rules = pairs.iter().map(|(p, t)| ShareRule::new(p, t).unwrap());
    blueprint(Rules::by_name().with_shares(rules))
}

fn refusal(pairs: &[(&str, &str)]) -> (BlueprintError, String) {
    let error = shared(pairs).expect_err("wrong rules");
    let message = error.to_string();
    (error, message)
}

fn tensor<'a>(blueprint: &'a Blueprint, name: &str) -> &'a StudentTensor {
    let mut tensors = blueprint.tensors.iter();
    tensors.find(|tensor| tensor.name == name).unwrap()
}

fn source(blueprint: &Blueprint, name: &str) -> Source {
    tensor(blueprint, name).source.clone()
}

#[test]
fn by_name_a_kernel_takes_the_weight_and_a_bias_goes_through_the_map() {
    let blueprint = blueprint(Rules::by_name()).unwrap();
    assert_eq!(source(&blueprint, "a"), Source::Teacher("a".to_owned()));
    let weight = Source::Teacher("q.weight".to_owned());
    assert_eq!(source(&blueprint, "q.c"), weight);
    assert_eq!(source(&blueprint, "q.right.a"), Source::Start);
    let bias = Source::Mapped("q.bias".to_owned());
    assert_eq!(source(&blueprint, "q.bias"), bias);
    assert!(blueprint.unused.is_empty());
    let trained: Vec<&str> = blueprint.trained().collect();
    let of = |projection: &str| {
        ["right.a", "right.b", "bias"].map(|leaf| format!("{projection}.{leaf}"))
    };
    assert_eq!(trained, [of("q"), of("k")].concat());
}

#[test]
fn a_shape_that_does_not_fit_is_told_with_both() {
    for (name, wrong) in [
        ("a", vec![3, 3]),
        ("q.weight", vec![4, 3]),
        ("q.bias", vec![2]),
    ] {
        let mut teacher = teacher();
        teacher.insert(name.to_owned(), wrong.clone());
        let error = Blueprint::new(&student(), &teacher, &Rules::by_name()).unwrap_err();
        let BlueprintError::Shape {
            found, expected, ..
        } = &error
        else {
            panic!("{error}");
        };
        assert_eq!(found, &wrong);
        let message = error.to_string();
        for part in [
            format!("`{name}`"),
            format!("{wrong:?}"),
            format!("{expected:?}"),
        ] {
            assert!(message.contains(&part), "{message}");
        }
    }
}

#[test]
fn a_copy_to_the_weight_of_a_map_is_one_to_its_kernel() {
    let rules = Rules::by_name().with_copies([("k\\.(weight|bias)", "q.$1")]);
    let blueprint = blueprint(rules.unwrap()).unwrap();
    let weight = Source::Teacher("k.weight".to_owned());
    assert_eq!(source(&blueprint, "q.c"), weight);
    assert_eq!(source(&blueprint, "k.c"), weight);
    assert_eq!(blueprint.unused, ["q.bias", "q.weight"]);
}

#[test]
fn chains_end_at_one_source_in_any_order_of_the_rules() {
    for rules in [
        [("a", "b"), ("b", "c"), ("a", "d")],
        [("b", "c"), ("a", "d"), ("a", "b")],
    ] {
        let blueprint = shared(&rules).unwrap();
        let variables = ["a", "b", "c", "d", "half"];
        let variables = variables.map(|name| tensor(&blueprint, name).variable().to_owned());
        assert_eq!(variables, ["a", "a", "a", "a", "half"]);
        assert_eq!(source(&blueprint, "c"), Source::Teacher("a".to_owned()));
    }
    shared(&[("a", "lazy")]).expect("a lazy tensor takes any float type");
}

#[test]
fn the_weight_of_a_map_is_shared_with_all_its_parts_and_folds_to_one() {
    let blueprint = shared(&[("q\\.weight", "k.weight")]).unwrap();
    for leaf in ["c", "right.a", "right.b"] {
        let shared = &tensor(&blueprint, &format!("k.{leaf}")).shared_with;
        assert_eq!(shared.as_deref(), Some(format!("q.{leaf}").as_str()));
    }
    let folded = blueprint.folded();
    let weight = tensor(&folded, "k.weight");
    assert_eq!(weight.shape, [3, 2]);
    assert_eq!(weight.shared_with.as_deref(), Some("q.weight"));
    assert_eq!(weight.source, Source::Mapped("q.weight".to_owned()));
    assert!(tensor(&folded, "k.bias").shared_with.is_none());
    assert!(folded.tensors.iter().all(|it| it.part == Part::Plain));

    // One map for both leaves the kernels alone, and so the weights.
    let maps = shared(&[("q\\.right\\.(a|b)", "k.right.$1")]).unwrap();
    assert_eq!(
        maps.tensors
            .iter()
            .filter(|it| it.shared_with.is_some())
            .count(),
        2
    );
    assert!(tensor(&maps.folded(), "k.weight").shared_with.is_none());
}

#[test]
fn what_is_one_variable_trains_as_its_source_does() {
    let mut blueprint = shared(&[("a", "b")]).unwrap();
    blueprint.train(|tensor| ["a", "q.c", "q.right.a"].contains(&tensor.name.as_str()));
    let trained: Vec<&str> = blueprint.trained().collect();
    assert_eq!(trained, ["a", "b", "q.right.a"]);
}

#[test]
fn what_cannot_be_one_variable_is_refused_by_name() {
    for (pattern, suggestion) in [("e.*", None), ("turne", Some("nearest: `turned`"))] {
        let (error, message) = refusal(&[(pattern, "b")]);
        let is_it = matches!(error, BlueprintError::NoMatch { of: "student", .. });
        assert!(
            is_it && message.contains(&format!("`{pattern}`")),
            "{message}"
        );
        assert!(
            suggestion.is_none_or(|it| message.contains(it)),
            "{message}"
        );
    }
    let (error, message) = refusal(&[("a", "tur")]);
    assert!(
        matches!(error, BlueprintError::UnknownTarget { .. }),
        "{message}"
    );
    assert!(message.contains("`a` to `tur`"), "{message}");

    let (error, message) = refusal(&[("(a|b)", "a")]);
    let is_it = matches!(&error, BlueprintError::SharedWithItself { name, .. } if name == "a");
    assert!(is_it && message.contains("`(a|b)`"), "{message}");

    let (error, message) = refusal(&[("(a|b)", "c")]);
    assert!(
        matches!(&error, BlueprintError::SharedTwice { to, first, second }
            if (to.as_str(), first.as_str(), second.as_str()) == ("c", "a", "b")),
        "{message}"
    );
    let (error, message) = refusal(&[("d", "a"), ("a", "b"), ("b", "d"), ("d", "c")]);
    let is_it = matches!(&error, BlueprintError::ShareLoop { names } if names.len() == 3);
    assert!(is_it && !message.contains("`c`"), "{message}");
}

#[test]
fn tensors_that_are_not_alike_are_refused_by_what_they_are() {
    for (from, to, words) in [
        ("a", "turned", "`a` is an ordinary tensor [2, 3]"),
        ("a", "turned", "`turned` an ordinary tensor [3, 2]"),
        ("a", "half", "F16"),
        ("q\\.c", "a", "`q.c` is a teacher kernel `C`"),
        ("q\\.right\\.b", "k.right.a", "`q.right.b` is part of a map"),
        ("a", "q.bias", "`q.bias` the bias beside a map"),
        ("a", "q.weight", "`a` is an ordinary tensor"),
        ("q\\.weight", "a", "`a` an ordinary tensor"),
    ] {
        let (error, message) = refusal(&[(from, to)]);
        assert!(matches!(error, BlueprintError::Unlike { .. }), "{message}");
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn one_id_without_a_rule_is_refused() {
    let mut student = student();
    student[1].id = student[0].id;
    let error = Blueprint::new(&student, &teacher(), &Rules::by_name()).unwrap_err();
    assert!(
        matches!(&error, BlueprintError::OneId { first, second } if first == "a" && second == "b"),
        "{error}"
    );
    let rules = Rules::by_name().with_shares([ShareRule::new("a", "b").unwrap()]);
    Blueprint::new(&student, &teacher(), &rules).expect("shared by a rule");
}

/// `student` with a gain along the outputs of `q`, of `length` numbers; and its teacher, whose gain has four.
fn with_gain(length: usize) -> (Vec<Listed>, BTreeMap<String, Vec<usize>>) {
    let (mut student, mut teacher) = (student(), teacher());
    student.push(listed("norm.gamma", Part::Plain, &[length]));
    teacher.insert("norm.gamma".to_owned(), vec![4]);
    (student, teacher)
}

#[test]
fn a_gain_goes_along_the_map_of_its_projection() {
    let gain = |name: &str, of: &str| Rules::by_name().with_gains([(name.into(), of.into())]);
    let (student, teacher) = with_gain(2);
    let blueprint = Blueprint::new(&student, &teacher, &gain("norm.gamma", "q")).unwrap();
    let along = Source::Along {
        teacher: "norm.gamma".to_owned(),
        projection: "q".to_owned(),
    };
    assert_eq!(source(&blueprint, "norm.gamma"), along);
    assert_eq!(along.teacher(), Some("norm.gamma"));
    assert!(!tensor(&blueprint, "norm.gamma").trains);
    // Without maps it is what it was made of, by its own name.
    let folded = blueprint.folded();
    assert_eq!(source(&folded, "norm.gamma"), along);
    let own = Source::Teacher("norm.gamma".to_owned());
    assert_eq!(source(&folded.of_its_own(), "norm.gamma"), own);
    let renamed = blueprint.renamed(|name| name.replace("gamma", "weight"));
    assert_eq!(
        source(&renamed, "norm.weight").teacher(),
        Some("norm.weight")
    );

    // Where no map is, it is as long as the teacher's.
    let error = Blueprint::new(&student, &teacher, &gain("norm.gamma", "a")).unwrap_err();
    assert!(matches!(error, BlueprintError::Shape { .. }), "{error}");
    let error = Blueprint::new(&student, &teacher, &gain("norm.gama", "q")).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("no such tensor (nearest: `norm.gamma`)"),
        "{message}"
    );
    let (student, mut teacher) = with_gain(2);
    teacher.insert("norm.gamma".to_owned(), vec![3]);
    let error = Blueprint::new(&student, &teacher, &gain("norm.gamma", "q")).unwrap_err();
    assert!(error.to_string().contains("[3] does not fit"), "{error}");
}
