//! Tests of the output folder.

use super::*;

/// A folder in which a run has written its list, a recipe and a student of this text.
fn run(dir: &Path, text: &str) {
    fs::create_dir_all(dir.join(STUDENT)).unwrap();
    fs::write(dir.join(STUDENT).join("config.json"), text).unwrap();
    fs::write(dir.join(RECIPE), text).unwrap();
    let mut list = FileList::default();
    list.add_text(RECIPE, text.as_bytes());
    list.add_folder(&dir.join(STUDENT), STUDENT).unwrap();
    list.write(dir).unwrap();
}

fn student(dir: &Path) -> String {
    fs::read_to_string(dir.join(STUDENT).join("config.json")).unwrap()
}

#[test]
fn only_a_finished_run_has_figures() {
    let folder = tempfile::tempdir().unwrap();
    let out = OutputDir::of_run(folder.path());
    assert!(out.summary().unwrap().is_none());
    let path = folder.path().join(SUMMARY);
    for (text, state) in [
        ("", SummaryState::Damaged),
        (
            r#"{"ending": "interrupted", "steps": 3}"#,
            SummaryState::Ended(PhaseEnd::Interrupted, 3),
        ),
    ] {
        fs::write(&path, text).unwrap();
        assert!(out.summary().unwrap().is_none(), "{text}");
        assert_eq!(out.summary_state().unwrap(), state);
    }
    // It was written by a program that knew other figures.
    fs::write(&path, r#"{"ending": "finished", "steps": 3}"#).unwrap();
    let error = out.summary().unwrap_err();
    assert!(matches!(&error, DistillError::Foreign { file, .. } if *file == path));
    assert!(error.to_string().contains("summary.json"), "{error}");
}

#[test]
fn a_finished_run_takes_the_place_of_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    run(root, "old");
    fs::write(root.join("notes.txt"), "mine").unwrap();
    let out = OutputDir::prepare(root, true).unwrap();
    assert!(out.is_inside());
    run(out.path(), "new");
    assert_eq!(student(root), "old");
    assert_eq!(out.accept_run().unwrap(), None);
    assert_eq!(student(root), "new");
    let mut names = names_in(root).unwrap();
    names.sort();
    assert_eq!(names, [LIST, "notes.txt", RECIPE, STUDENT]);
}

#[test]
fn what_no_run_wrote_is_kept_when_runs_change_places() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    run(root, "old");
    let out = OutputDir::prepare(root, true).unwrap();
    run(out.path(), "new");
    // After it was checked.
    fs::write(root.join("student/notes.md"), "mine").unwrap();
    fs::write(root.join(RECIPE), "edited").unwrap();
    let kept = out.accept_run().unwrap().unwrap();
    assert_eq!(kept, root.join("run.kept-1"));
    assert_eq!(
        fs::read_to_string(kept.join("student/notes.md")).unwrap(),
        "mine"
    );
    assert_eq!(fs::read_to_string(kept.join(RECIPE)).unwrap(), "edited");
    assert!(!kept.join("student/config.json").exists());
    assert_eq!(student(root), "new");
}

/// Wherever the exchange is cut off, the next run ends it.
#[test]
fn an_exchange_that_was_cut_off_is_ended() {
    let moves = |root: &Path| {
        let [accepted, replaced] = [ACCEPTED_RUN, REPLACED_RUN].map(|name| root.join(name));
        let down = [RECIPE, STUDENT, LIST].map(|name| (root.join(name), replaced.join(name)));
        let up = [RECIPE, STUDENT, LIST].map(|name| (accepted.join(name), root.join(name)));
        down.into_iter().chain(up)
    };
    for cut in 0..=6 {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        run(root, "old");
        run(&root.join(ACCEPTED_RUN), "new");
        fs::create_dir(root.join(REPLACED_RUN)).unwrap();
        for (from, to) in moves(root).take(cut) {
            fs::rename(from, to).unwrap();
        }
        let out = OutputDir::resume(root).unwrap();
        assert_eq!(out.settle().unwrap(), None, "{cut}");
        assert_eq!(student(root), "new", "{cut}");
        let mut names = names_in(root).unwrap();
        names.sort();
        assert_eq!(names, [LIST, RECIPE, STUDENT], "{cut}");
    }
}

/// Nothing is known of a run whose list is gone: it stays as a whole.
#[test]
fn a_run_without_its_list_is_put_aside_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    run(root, "old");
    run(&root.join(ACCEPTED_RUN), "new");
    fs::remove_file(root.join(LIST)).unwrap();
    let out = OutputDir::resume(root).unwrap();
    let kept = out.settle().unwrap().expect("a folder");
    assert_eq!(student(root), "new");
    assert_eq!(student(&kept), "old");
}

#[test]
fn a_new_student_takes_the_place_of_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    run(root, "old");
    let out = OutputDir::of_run(root);
    let write = |text| {
        fs::create_dir_all(out.unchecked_student_dir()).unwrap();
        fs::write(out.unchecked_student_dir().join("config.json"), text).unwrap();
    };
    write("new");
    assert_eq!(out.accept_student().unwrap(), None);
    assert_eq!(student(root), "new");
    assert!(!root.join(REPLACED_STUDENT).exists());
    let list = FileList::read(root).unwrap().unwrap();
    assert_eq!(list.foreign_in(root).unwrap(), None);
    // With something of the user's in it.
    fs::write(root.join("student/notes.md"), "mine").unwrap();
    write("newer");
    let kept = out.accept_student().unwrap().unwrap();
    assert_eq!(names_in(&kept).unwrap(), ["notes.md"]);
    // Cut off between the two.
    fs::rename(out.student_dir(), root.join(REPLACED_STUDENT)).unwrap();
    assert_eq!(out.take_up().unwrap(), None);
    assert_eq!(student(root), "newer");
}

#[test]
fn a_rescued_student_has_a_name_of_its_own_beside_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let out = OutputDir::of_run(&folder.path().join("out"));
    let first = out.rescue_dir();
    assert_eq!(first, folder.path().join("out.rescued-1"));
    fs::create_dir(&first).unwrap();
    assert_eq!(out.rescue_dir(), folder.path().join("out.rescued-2"));
}
