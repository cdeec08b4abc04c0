//! Tests of the choices of a recipe.

use super::*;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Both {
    map: MapChoice,
    layers: Layers,
}

fn read(map: &str, layers: &str) -> Result<Both, toml::de::Error> {
    toml::from_str(&format!("map = {map}\nlayers = {layers}"))
}

#[test]
fn reads_every_form_and_what_it_writes() {
    let factored = MapChoice::uniform(MapKind::Factored);
    let general_out = MapChoice {
        out: MapKind::General,
        ..factored
    };
    for (map, layers, choice, expected) in [
        ("'factored'", "'all'", factored, Layers::All),
        ("{}", "'all'", MapChoice::default(), Layers::All),
        (
            "'general'",
            "[]",
            MapChoice::uniform(MapKind::General),
            Layers::These(vec![]),
        ),
        (
            "{ query = 'factored', key = 'factored', value = 'factored' }",
            "[2, 0]",
            general_out,
            Layers::These(vec![2, 0]),
        ),
        (
            "{ default = 'general', query = 'factored', key = 'factored', value = 'factored' }",
            "[1]",
            general_out,
            Layers::These(vec![1]),
        ),
        (
            "{ kronecker = 3 }",
            "[1]",
            MapChoice::uniform(MapKind::Kronecker(3)),
            Layers::These(vec![1]),
        ),
        (
            "{ hidden = 'shared' }",
            "[1]",
            MapChoice {
                hidden: AxisMaps::Shared,
                ..MapChoice::default()
            },
            Layers::These(vec![1]),
        ),
        (
            "{ kronecker = 3, hidden = 'general', width = 'shared' }",
            "[1]",
            MapChoice {
                hidden: AxisMaps::General,
                width: AxisMaps::Shared,
                ..MapChoice::uniform(MapKind::Kronecker(3))
            },
            Layers::These(vec![1]),
        ),
        (
            "{ default = { kronecker = 3 }, out = 'general' }",
            "[1]",
            MapChoice {
                out: MapKind::General,
                ..MapChoice::uniform(MapKind::Kronecker(3))
            },
            Layers::These(vec![1]),
        ),
    ] {
        let both = read(map, layers).unwrap();
        assert_eq!(
            both,
            Both {
                map: choice,
                layers: expected
            }
        );
        assert_eq!(
            toml::from_str::<Both>(&toml::to_string(&both).unwrap()).unwrap(),
            both
        );
    }
}

#[test]
fn names_the_form_of_each_projection() {
    let choice = MapChoice {
        query: MapKind::Factored,
        key: MapKind::Factored,
        ..MapChoice::default()
    };
    assert_eq!(
        Role::ATTENTION.map(|role| choice.kind(role) == Some(MapKind::General)),
        [false, false, true, true]
    );
    let text = "query factored, key factored, value general, out general";
    assert_eq!(choice.to_string(), text);
    let factored = MapChoice::uniform(MapKind::Factored);
    assert_eq!(factored.to_string(), "factored");
    let sum = MapChoice::uniform(MapKind::Kronecker(4));
    assert_eq!(sum.to_string(), "kronecker 4");
    assert_eq!(choice.kind(Role::Gate), None);
    let hidden = MapChoice {
        hidden: AxisMaps::Shared,
        ..choice
    };
    assert_eq!(hidden.to_string(), format!("{text}, hidden shared"));
    assert_eq!(hidden.kind(Role::Gate), Some(MapKind::General));
    assert_eq!(hidden.kinds().count(), 7);
    let width = MapChoice {
        width: AxisMaps::General,
        ..hidden
    };
    assert_eq!(width.to_string(), format!("{hidden}, width general"));
    assert!(width.has_other_axes() && !width.of_heads().has_other_axes());
}

#[test]
fn says_what_is_wrong() {
    for (map, layers, part) in [
        ("'factord'", "'all'", "unknown variant `factord`"),
        ("{ quer = 'general' }", "'all'", "unknown field `quer`"),
        ("{ query = 'x' }", "'all'", "unknown variant `x`"),
        (
            "{ hidden = 'factored' }",
            "'all'",
            "unknown variant `factored`, expected one of `weights`, `general`, `shared`",
        ),
        (
            "3",
            "'all'",
            "\"factored\", \"general\", { kronecker = 4 } or a table",
        ),
        ("'kronecker'", "'all'", "needs a number of pairs"),
        ("{ out = 'kronecker' }", "'all'", "needs a number of pairs"),
        ("{ kronecker = -1 }", "'all'", "integer `-1`"),
        (
            "{ out = { kroneker = 2 } }",
            "'all'",
            "unknown field `kroneker`",
        ),
        ("{ out = 3 }", "'all'", "\"general\" or { kronecker = 4 }"),
        (
            "{ kronecker = 2, out = 'general' }",
            "'all'",
            "something else for some",
        ),
        ("'factored'", "'al'", "unknown variant `al`"),
        ("'factored'", "[-1]", "integer `-1`"),
        ("'factored'", "3", "\"all\" or a list"),
    ] {
        let error = read(map, layers).unwrap_err();
        assert!(error.message().contains(part), "{error}");
    }
}
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Feature {
    pairs: LayerPairs,
}

#[test]
fn pairs_of_layers() {
    let read = |text: &str| toml::from_str::<Feature>(&format!("pairs = {text}"));
    let these = |pairs: &[[usize; 2]]| {
        LayerPairs::These(pairs.iter().copied().map(LayerPair::from).collect())
    };
    for (text, pairs) in [
        ("'same'", LayerPairs::Same),
        ("[]", these(&[])),
        ("[[0, 1], [2, 1]]", these(&[[0, 1], [2, 1]])),
    ] {
        let feature = read(text).unwrap();
        assert_eq!(feature, Feature { pairs });
        let written = toml::to_string(&feature).unwrap();
        assert_eq!(toml::from_str(&written), Ok(feature));
    }
    for (text, part) in [
        ("'all'", "unknown variant `all`"),
        ("3", "\"same\" or a list of [student layer, teacher layer]"),
        ("[3]", "invalid type: integer `3`"),
        ("[[3]]", "invalid length 1"),
        ("[[-1, 0]]", "integer `-1`"),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.message().contains(part), "{text}: {error}");
    }
}

#[test]
fn phase_2_trains_without_maps() {
    for (phase_2, alone) in [
        (Phase2Trained::Projections, Trained::Projections),
        (Phase2Trained::All, Trained::All),
    ] {
        assert_eq!(Trained::from(phase_2), alone);
        assert_eq!(phase_2.to_string(), alone.to_string());
    }
}
