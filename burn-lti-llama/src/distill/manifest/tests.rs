//! Tests of the manifest.

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::hf::{NewTensor, WeightType, write_weights};

const RECIPE: &str = r#"
        [teacher]
        path = "teacher"
        [student]
        heads = 4
        kv_heads = 2
        [train]
        steps = 200
        [data]
        train = ["1.txt", "2.txt"]
        valid = ["3.txt"]
    "#;

/// A folder with all that the recipe names.
struct Workshop(TempDir);

impl Workshop {
    fn new() -> Self {
        let workshop = Self(TempDir::new().unwrap());
        fs::create_dir(workshop.path("teacher")).unwrap();
        workshop.write("teacher/config.json", "{}");
        workshop.write("teacher/tokenizer.json", "words");
        workshop.write_tensors(&["a", "b"], 0.5);
        for text in ["1.txt", "2.txt", "3.txt"] {
            workshop.write(text, text);
        }
        workshop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// The value is that of the last tensor.
    fn write_tensors(&self, names: &[&str], last: f32) {
        let tensors = names.iter().enumerate().map(|(index, name)| {
            let value = if index + 1 == names.len() { last } else { 1.0 };
            NewTensor::new(*name, [1], move || Ok(vec![value]))
        });
        let path = self.path("teacher/model.safetensors");
        write_weights(&path, WeightType::F32, tensors).unwrap();
    }

    fn recipe(&self, overrides: &[&str]) -> Recipe {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        Recipe::parse(RECIPE, &self.path("recipe.toml"), &overrides).unwrap()
    }

    fn manifest_of(&self, overrides: &[&str]) -> Manifest {
        let command = ["burn-lti", "distill"].map(str::to_owned).into();
        Manifest::new(&self.recipe(overrides), command, on_flex()).unwrap()
    }

    fn manifest(&self) -> Manifest {
        self.manifest_of(&[])
    }

    /// What comes of a resumption after `change`, with these overrides.
    fn resume(
        &self,
        overrides: &[&str],
        change: impl FnOnce(&Self),
    ) -> Result<Vec<Note>, ManifestError> {
        let then = self.manifest();
        change(self);
        let now = self.manifest_of(overrides);
        then.check_resumable(&now, &self.recipe(&[]), &self.recipe(overrides))
    }
}

/// What happens to a workshop between a run and its resumption.
type Edit = fn(&Workshop);

fn on_flex() -> Compute {
    Compute {
        backend: "flex".to_owned(),
        device: "cpu".to_owned(),
    }
}

/// The error of a resumption after a change.
fn refused(overrides: &[&str], change: impl FnOnce(&Workshop)) -> ManifestError {
    Workshop::new().resume(overrides, change).unwrap_err()
}

#[test]
fn reads_what_it_writes() {
    let workshop = Workshop::new();
    let path = workshop.path("manifest.json");
    let manifest = workshop.manifest();
    manifest.write(&path).unwrap();
    assert_eq!(Manifest::read(&path).unwrap(), manifest);
    let names: Vec<&String> = manifest.teacher.files.keys().collect();
    assert_eq!(names, ["config.json", "tokenizer.json"]);
    assert_eq!(manifest.data.train[1].path, workshop.path("2.txt"));
}

#[test]
fn what_is_unknown_is_absent() {
    let workshop = Workshop::new();
    let path = workshop.path("manifest.json");
    let mut manifest = workshop.manifest();
    manifest.program.rustc = None;
    manifest.program.source = None;
    manifest.write(&path).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert!(
        !text.contains("rustc") && !text.contains("source"),
        "{text}"
    );
    assert_eq!(Manifest::read(&path).unwrap(), manifest);
}

#[test]
fn burn_is_that_of_the_lock_file() {
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.lock");
    let lock: Table = fs::read_to_string(lock).unwrap().parse().unwrap();
    let packages = lock["package"].as_array().unwrap();
    let burn = packages
        .iter()
        .find(|package| package["name"].as_str() == Some("burn"))
        .unwrap();
    assert_eq!(burn["version"].as_str(), Some(BURN));
}

#[test]
fn the_program_says_what_it_was_built_from() {
    let program = Program::this();
    assert!(program.rustc.unwrap().starts_with("rustc 1."));
    if let Some(source) = program.source {
        let is_hash = |text: &str| text.len() >= 40 && text.chars().all(|c| c.is_ascii_hexdigit());
        assert!(is_hash(&source.revision), "{source}");
    }
}

#[test]
fn an_unchanged_run_can_be_resumed_without_a_note() {
    let notes = Workshop::new().resume(&[], |_| {}).unwrap();
    assert_eq!(notes, []);
}

#[test]
fn what_has_moved_is_the_same_and_what_is_logged_may_change() {
    let overrides = [
        "teacher.path=elsewhere",
        "data.train=['1.txt', 'moved.txt']",
        "train.log_every=7",
        "report=false",
    ];
    let notes = Workshop::new().resume(&overrides, |workshop| {
        for (from, to) in [("teacher", "elsewhere"), ("2.txt", "moved.txt")] {
            fs::rename(workshop.path(from), workshop.path(to)).unwrap();
        }
    });
    assert_eq!(notes.unwrap(), []);
}

#[test]
fn another_file_of_the_teacher_is_named() {
    let changes: [(&str, Change, Edit); 4] = [
        ("config.json", Change::Replaced, |workshop| {
            workshop.write("teacher/config.json", "{ }");
        }),
        ("tokenizer.json", Change::Replaced, |workshop| {
            workshop.write("teacher/tokenizer.json", "other words");
        }),
        ("tokenizer.json", Change::Removed, |workshop| {
            fs::remove_file(workshop.path("teacher/tokenizer.json")).unwrap();
        }),
        ("tokenizer_config.json", Change::Added, |workshop| {
            workshop.write("teacher/tokenizer_config.json", "{}");
        }),
    ];
    for (name, what, change) in changes {
        let error = refused(&[], change);
        let text = error.to_string();
        assert!(
            text.contains(name) && text.contains("begin a new run"),
            "{text}"
        );
        let begins = format!("the teacher's {name} {what}: ");
        assert!(text.starts_with(&begins), "{text}");
    }
}

#[test]
fn another_tensor_of_the_teacher_is_named() {
    let changes: [(&str, Change, Edit); 3] = [
        ("b", Change::Replaced, |workshop| {
            workshop.write_tensors(&["a", "b"], 0.75);
        }),
        ("a", Change::Removed, |workshop| {
            workshop.write_tensors(&["b"], 0.5);
        }),
        ("c", Change::Added, |workshop| {
            let path = workshop.path("teacher/model.safetensors");
            let tensors = [("a", 1.0), ("b", 0.5), ("c", 2.0)]
                .map(|(name, value)| NewTensor::new(name, [1], move || Ok(vec![value])));
            write_weights(&path, WeightType::F32, tensors).unwrap();
        }),
    ];
    for (name, what, change) in changes {
        let error = refused(&[], change);
        let text = error.to_string();
        let begins = format!("the teacher's tensor {name} {what}: ");
        assert!(text.starts_with(&begins), "{text}");
    }
}

#[test]
fn another_text_is_named() {
    let error = refused(&[], |workshop| workshop.write("3.txt", "other"));
    let text = error.to_string();
    assert!(
        text.contains("3.txt of `data.valid` is not the one"),
        "{text}"
    );
    for (train, name, what) in [
        ("['2.txt', '1.txt']", "2.txt", Change::Replaced),
        ("['1.txt']", "2.txt", Change::Removed),
        ("['1.txt', '2.txt', '3.txt']", "3.txt", Change::Added),
    ] {
        let error = refused(&[&format!("data.train={train}")], |_| {});
        let says = format!("{name} of `data.train` {what}: ");
        assert!(error.to_string().contains(&says), "{error}");
    }
}

#[test]
fn another_key_of_the_recipe_is_named_with_both_values() {
    for (overrides, expected) in [
        (
            "train.learning_rate=1e-3",
            "`train.learning_rate` was \"auto\" and is now 0.001: ",
        ),
        (
            "student.head_dim=6",
            "`student.head_dim` was absent and is now 6: ",
        ),
        (
            "train.betas=[0.9, 0.99]",
            "`train.betas` was [0.9, 0.95] and is now [0.9, 0.99]: ",
        ),
        (
            "lti.start=lecun",
            "`lti.start` was \"calibrated\" and is now \"lecun\": ",
        ),
    ] {
        let error = refused(&[overrides], |_| {});
        let text = error.to_string();
        assert!(text.starts_with(expected), "{text}");
    }
}

#[test]
fn keys_are_compared_at_any_depth() {
    let parse = |text: &str| text.parse::<Table>().unwrap();
    let then = parse("[a]\nb = { c = 1, d = 2 }\n[train]\ntensorboard = true");
    let now = parse("[a]\nb = { c = 1, d = 3 }\n[train]\nkeep_checkpoints = 3");
    let (key, was, is) = first_changed_key("", &then, &now).unwrap();
    assert_eq!(key, "a.b.d");
    assert_eq!((was, is), (Some(2.into()), Some(3.into())));
}

#[test]
fn another_program_or_backend_is_noted() {
    let workshop = Workshop::new();
    let (then, mut now) = (workshop.manifest(), workshop.manifest());
    now.program.burn_lti_llama = "9.0.0".to_owned();
    now.program.rustc = None;
    now.compute.backend = "tch".to_owned();
    let recipe = workshop.recipe(&[]);
    let notes = then.check_resumable(&now, &recipe, &recipe).unwrap();
    let what: Vec<&str> = notes.iter().map(|note| note.what).collect();
    assert_eq!(what, ["burn-lti-llama", "rustc", "the backend"]);
    let text = notes[2].to_string();
    assert!(text.starts_with("the backend was flex"), "{text}");
    assert!(text.contains("will differ in the last bits"), "{text}");
    assert!(
        notes[1].to_string().contains("is now unknown"),
        "{}",
        notes[1]
    );
}

#[test]
fn other_sources_are_noted() {
    let workshop = Workshop::new();
    let mut then = workshop.manifest();
    then.program.source = Some(Source {
        revision: "abc".to_owned(),
        uncommitted_changes: false,
    });
    let mut now = then.clone();
    now.program.source = Some(Source {
        revision: "abc".to_owned(),
        uncommitted_changes: true,
    });
    let recipe = workshop.recipe(&[]);
    let notes = then.check_resumable(&now, &recipe, &recipe).unwrap();
    assert_eq!(notes.len(), 1);
    assert_eq!(notes[0].now.as_deref(), Some("abc with changes"));
}

#[test]
fn what_is_no_manifest_is_refused_by_name() {
    let workshop = Workshop::new();
    let path = workshop.path("manifest.json");
    let error = Manifest::read(&path).unwrap_err();
    assert!(matches!(&error, ManifestError::Read { file, .. } if *file == path));

    for text in [
        "[".to_owned(),
        json!({}).to_string(),
        json!({"schema": 1}).to_string(),
    ] {
        fs::write(&path, text).unwrap();
        let error = Manifest::read(&path).unwrap_err();
        assert!(matches!(&error, ManifestError::Syntax { file, .. } if *file == path));
        assert!(
            error.to_string().contains("--resume takes the teacher"),
            "{error}"
        );
    }

    fs::write(&path, json!({"schema": 2, "new": true}).to_string()).unwrap();
    let error = Manifest::read(&path).unwrap_err();
    assert!(matches!(&error, ManifestError::Schema { file, found: 2 } if *file == path));
}

#[test]
fn what_cannot_be_hashed_ends_in_an_error() {
    let workshop = Workshop::new();
    fs::remove_file(workshop.path("3.txt")).unwrap();
    let error = Manifest::new(&workshop.recipe(&[]), Vec::new(), on_flex()).unwrap_err();
    assert!(
        matches!(&error, ManifestError::Hash(HashError::Read { file, .. })
                if file.ends_with("3.txt"))
    );
}

#[test]
fn a_folder_that_is_not_there_cannot_be_written_to() {
    let workshop = Workshop::new();
    let error = workshop
        .manifest()
        .write(&workshop.path("nowhere/manifest.json"));
    assert!(matches!(error, Err(ManifestError::Write(_))));
}

#[test]
#[cfg(unix)]
fn a_path_that_is_no_unicode_is_refused() {
    use std::os::unix::ffi::OsStringExt;

    let workshop = Workshop::new();
    let path = PathBuf::from(std::ffi::OsString::from_vec(vec![0xff]));
    let mut manifest = workshop.manifest();
    let good = manifest.clone();
    manifest.data.train[0].path.clone_from(&path);
    let error = manifest.write(&workshop.path("manifest.json")).unwrap_err();
    assert!(matches!(error, ManifestError::Unicode { .. }));

    let recipe = workshop.recipe(&[]);
    let mut odd = recipe.clone();
    odd.teacher.path = path;
    let error = good.check_resumable(&good, &recipe, &odd).unwrap_err();
    assert!(matches!(
        error,
        ManifestError::Recipe(RecipeError::Write { .. })
    ));
}

#[test]
fn a_shape_that_was_searched_goes_on_with_what_it_was_searched_by() {
    let workshop = Workshop::new();
    let of = |given: Option<&str>| Manifest {
        searched: given.map(|given| workshop.recipe(&[given]).student),
        ..workshop.manifest()
    };
    let check = |then: Option<&str>, now: Option<&str>| {
        let recipe = workshop.recipe(&[]);
        of(then).check_resumable(&of(now), &recipe, &recipe)
    };
    let half = Some("student.target={ parameters = 0.5, train_steps = 20 }");
    assert!(check(half, half).unwrap().is_empty());
    // The shape itself is as good.
    assert!(check(half, None).unwrap().is_empty());
    for (then, now, what) in [
        (
            half,
            "student.target={ parameters = 0.25, train_steps = 20 }",
            "`student.target.parameters`",
        ),
        (
            half,
            "student.target={ parameters = 0.5 }",
            "`student.target.train_steps`",
        ),
        (None, "student.target={ parameters = 0.5 }", "`student."),
    ] {
        let message = check(then, Some(now)).unwrap_err().to_string();
        assert!(
            message.starts_with(what) && message.contains("its recipe.toml has in [student]"),
            "{message}"
        );
    }
    let path = workshop.path("manifest.json");
    of(half).write(&path).unwrap();
    assert_eq!(Manifest::read(&path).unwrap(), of(half));
}
