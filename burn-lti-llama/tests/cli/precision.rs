//! Products in bfloat16: of a run, of a text that is written.

use std::fs;

use crate::runs::{distill, kill_after, metrics, student};
use crate::workshop::Workshop;

const BFLOAT16: [&str; 2] = ["--set", "train.precision=bfloat16"];

#[test]
fn a_run_in_bfloat16_goes_on_after_a_kill_and_is_no_other() {
    let workshop = Workshop::new();
    let plan = workshop.succeed(&[&["plan", "recipe.toml"], &BFLOAT16[..]].concat());
    assert!(plan.contains("products in bfloat16"), "{plan}");
    let plan = workshop.succeed(&["plan", "recipe.toml"]);
    // Narrow as it is, on any processor.
    assert!(plan.contains("products in float32 on this CPU"), "{plan}");

    workshop.succeed(&distill("whole", &BFLOAT16));
    kill_after(&workshop, &distill("killed", &BFLOAT16), 400);
    let resume = [&BFLOAT16[..], &["--resume"]].concat();
    if !workshop.path("killed/summary.json").exists() {
        workshop.succeed(&distill("killed", &resume));
    }
    assert!(student(&workshop, "whole") == student(&workshop, "killed"));
    assert_eq!(metrics(&workshop, "killed"), metrics(&workshop, "whole"));

    workshop.succeed(&distill("float32", &[]));
    assert!(student(&workshop, "float32") != student(&workshop, "whole"));
    let errors = workshop.fail(&distill("whole", &["--resume"]));
    assert!(errors.contains("train.precision"), "{errors}");
    let errors = workshop.fail(&distill("out", &["--set", "train.precision=tf32"]));
    for named in ["train.precision", "tf32", "auto", "float32", "bfloat16"] {
        assert!(errors.contains(named), "{errors}");
    }
}

#[test]
fn a_text_in_bfloat16_is_that_of_its_seed() {
    let workshop = Workshop::new();
    let written = |out: &str, more: &[&str]| {
        let sample = ["sample-corpus", "--model", "teacher", "--out", out];
        let order = ["--tokens", "400", "--temperature", "2"];
        workshop.succeed(&[&sample[..], &order, more].concat());
        fs::read_to_string(workshop.path(out)).unwrap()
    };
    let precision = ["--precision", "bfloat16"];
    let one = written(
        "one.jsonl",
        &[&precision[..], &["--batch-size", "1"]].concat(),
    );
    assert_eq!(written("all.jsonl", &precision), one);
    assert_ne!(written("float32.jsonl", &[]), one);

    let generate = ["generate", "--model", "teacher", "--prompt", "w"];
    let tokens = ["--max-tokens", "8"];
    workshop.succeed(&[&generate[..], &tokens, &precision].concat());
    let errors = workshop.fail(&[&generate[..], &["--precision", "int8"]].concat());
    assert!(errors.contains("bfloat16"), "{errors}");
}
