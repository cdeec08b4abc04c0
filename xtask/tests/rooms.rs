//! That imports point one way: no circle of files, and no room of a library (a module of its root) that
//! uses one behind it in the list. Tests of a file do not count, nor does what a module and those inside
//! it have of one another.

#![allow(clippy::unwrap_used)] // a test

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use syn::visit::{self, Visit};
use syn::{File, ItemMod, ItemUse, UseTree};

const LTI: &str = "compat backend tensors files geometry kernels map parameters blueprint decoder inject \
                   calibration loss top_k train collapse";
const LLAMA: &str = "gguf config family tokenizer data model hf hashes convert recipe corpus eval plan distill demo compare report";
/// Programs have no rooms, only files.
const NONE: &str = "";

#[test]
fn imports_point_one_way() {
    let mut wrong = Vec::new();
    for (source, rooms) in [
        ("burn-lti/src", LTI),
        ("burn-lti-llama/src", LLAMA),
        ("burn-lti-llama/src/bin/burn-lti", NONE),
        ("xtask/src", NONE),
        ("benches/src", NONE),
        ("fuzz/src", NONE),
    ] {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("..")
            .join(source);
        let uses = uses(&modules(&root, ""));
        let rooms: Vec<&str> = rooms.split_whitespace().collect();
        for (file, others) in &uses {
            for other in others {
                if leads_to(&uses, other, file) {
                    wrong.push(format!(
                        "{source}: a circle leads from {file} through {other}"
                    ));
                }
                let room = |path: &str| {
                    rooms
                        .iter()
                        .position(|room| path.split("::").next() == Some(room))
                };
                if room(file) < room(other) {
                    wrong.push(format!(
                        "{source}: {file} uses {other}, a room behind its own"
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The files below `folder` by their module's path, parsed.
fn modules(folder: &Path, path: &str) -> BTreeMap<String, File> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let (entry, name) = (entry.path(), entry.file_name().into_string().unwrap());
        let name = name.trim_end_matches(".rs");
        let inner = match (path, name) {
            (_, "mod" | "lib" | "main") => path.to_owned(),
            ("", _) => name.to_owned(),
            _ => format!("{path}::{name}"),
        };
        match entry.is_dir() {
            true => found.extend(modules(&entry, &inner)),
            false if name == "tests" => {}
            false if entry.extension().is_none_or(|end| end != "rs") => {} // a template
            false => {
                let text = fs::read_to_string(&entry).unwrap();
                found.insert(inner, syn::parse_file(&text).unwrap());
            }
        }
    }
    found
}

/// The files that each file imports from, but those around it and inside it.
fn uses(modules: &BTreeMap<String, File>) -> BTreeMap<String, BTreeSet<String>> {
    let of = |(path, file): (&String, &File)| {
        let mut paths = Paths(Vec::new());
        paths.visit_file(file);
        let absolute = paths.0.iter().filter_map(|import| absolute(path, import));
        let defining = absolute.filter_map(|import| defining(modules, &import, 8));
        let others = defining.filter(|other| !inside(path, other) && !inside(other, path));
        (path.clone(), others.collect())
    };
    modules.iter().map(of).collect()
}

fn inside(inner: &str, outer: &str) -> bool {
    inner == outer || outer.is_empty() || inner.starts_with(&format!("{outer}::"))
}

/// The imports of a file, each a list of names; tests are passed over.
struct Paths(Vec<Vec<String>>);

impl<'a> Visit<'a> for Paths {
    fn visit_item_mod(&mut self, item: &'a ItemMod) {
        if !item.attrs.iter().any(|it| it.path().is_ident("cfg")) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'a ItemUse) {
        names(&item.tree, &mut Vec::new(), &mut self.0);
    }
}

fn names(tree: &UseTree, before: &mut Vec<String>, all: &mut Vec<Vec<String>>) {
    let with = |name: &syn::Ident| [&before[..], &[name.to_string()]].concat();
    match tree {
        UseTree::Path(path) => names(&path.tree, &mut with(&path.ident), all),
        UseTree::Name(name) => all.push(with(&name.ident)),
        UseTree::Rename(name) => all.push(with(&name.ident)),
        UseTree::Group(group) => group.items.iter().for_each(|item| names(item, before, all)),
        UseTree::Glob(_) => all.push(before.clone()),
    }
}

/// An import in the module `path` as names from the root; `None` for those of another crate.
fn absolute(path: &str, import: &[String]) -> Option<Vec<String>> {
    let mut base: Vec<String> = path.split("::").map(str::to_owned).collect();
    let supers = import.iter().take_while(|name| *name == "super").count();
    match import.first()?.as_str() {
        "crate" => return Some(import[1..].to_vec()),
        "self" => return Some([&base[..], &import[1..]].concat()),
        "super" => base.truncate(base.len() - supers),
        _ => return None,
    }
    Some([&base[..], &import[supers..]].concat())
}

/// The file that defines what an import names, through the re-exports of the modules on its way.
fn defining(modules: &BTreeMap<String, File>, import: &[String], depth: usize) -> Option<String> {
    let length = (0..=import.len())
        .rev()
        .find(|n| modules.contains_key(&import[..*n].join("::")))?;
    let (path, rest) = (import[..length].join("::"), &import[length..]);
    let mut reexports = Paths(Vec::new());
    reexports.visit_file(&modules[&path]);
    let named = reexports
        .0
        .iter()
        .find(|it| !rest.is_empty() && it.last() == rest.first());
    let inner = named.map(|it| match it[0].as_str() {
        "crate" | "super" | "self" => absolute(&path, it),
        _ => Some([&import[..length], it].concat()),
    });
    match inner.flatten().filter(|inner| depth > 0 && inner != import) {
        Some(inner) => defining(modules, &inner, depth - 1).or(Some(path)),
        None => Some(path),
    }
}

fn leads_to(uses: &BTreeMap<String, BTreeSet<String>>, from: &str, to: &str) -> bool {
    let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
    while let Some(file) = next.pop() {
        if file == to {
            return true;
        }
        if seen.insert(file) {
            next.extend(uses.get(file).into_iter().flatten().map(String::as_str));
        }
    }
    false
}
