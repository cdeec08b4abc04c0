//! That imports point one way: no circle of files, and each room of a library (a module of its root)
//! uses only rooms above it in a list.
//!
//! A file uses another if it names what is defined there, through however many re-exports. A module and
//! those inside it may use one another, and tests do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use syn::punctuated::Punctuated;
use syn::visit::{self, Visit};
use syn::{
    Attribute, Expr, Ident, ImplItemFn, Item, ItemConst, ItemEnum, ItemFn, ItemImpl, ItemMacro,
    ItemMod, ItemStatic, ItemStruct, ItemTrait, ItemType, ItemUnion, ItemUse, Macro, Token,
    UseTree,
};

/// The rooms of `burn-lti`.
const LTI: &str =
    "compat backend tensors files geometry cast host fused dense decoder loss cache train";

/// The rooms of `burn-lti-llama`.
const LLAMA: &str =
    "hashes config tokenizer data recipe model corpus eval plan distill demo compare";

/// What is still to be untangled: rooms without a place in their list, and files in a circle.
const TANGLED: &str = "inject start collapse hf \
    distill/hook.rs distill/training.rs \
    distill/start.rs distill/student.rs \
    plan/cost.rs plan/planner.rs \
    inject/rules.rs inject/share.rs \
    loss/chunk.rs loss/host.rs loss/distillation.rs loss/row.rs loss/sums.rs \
    start/calibrated/fit.rs start/calibrated/out.rs start/calibrated/spectrum.rs \
    start/calibrated/heads.rs start/calibrated/select.rs \
    cache/error.rs cache/format.rs cache/read.rs cache/rows.rs cache/verify.rs \
    geometry/axes.rs geometry/site.rs \
    model/generate.rs model/sampling.rs";

/// Names from the root of a crate inwards; none of the root itself.
type Names = Vec<String>;

#[derive(Default)]
struct Module {
    /// The file that it lies in.
    path: String,
    /// The module that this file is.
    file: Names,
    items: BTreeSet<String>,
    /// What the names stand for that a `use` brings in.
    imports: BTreeMap<String, Names>,
    /// The paths that are written here.
    named: BTreeSet<Names>,
}

/// The modules of a crate.
struct Modules(BTreeMap<Names, Module>);

impl Modules {
    /// The modules from the file `root` inwards; `source` is the text of a file, if there is one.
    fn read(root: &str, source: &dyn Fn(&str) -> Option<String>) -> Self {
        let mut reader = Reader {
            source,
            all: BTreeMap::new(),
            at: Names::new(),
        };
        reader.read([format!("{root}.rs")]);
        Self(reader.all)
    }

    /// The file, by its module, that defines what `path` names: `None` for a module and for what is of
    /// another crate.
    fn definition(&self, path: &[String]) -> Option<&Names> {
        // The innermost module on the way, and the name that is looked up in it.
        let is_module = |length: &usize| self.0.contains_key(&path[..*length]);
        let length = (0..path.len()).take_while(is_module).last()?;
        let (name, module) = (path.get(length)?, &self.0[&path[..length]]);
        if module.items.contains(name) {
            return Some(&module.file);
        }
        let (here, rest) = path.split_at(length + 1);
        let import = module.imports.get(name)?;
        // `use half::f16` stands for `half::f16` here if `half` is a module, else for that of a crate.
        let is_foreign = import.starts_with(here) && !self.0.contains_key(here);
        match is_foreign {
            true => None,
            false => self.definition(&[import, rest].concat()),
        }
    }

    /// What each file uses of other files, and by which path. Not of those around it and inside it.
    fn uses(&self) -> BTreeMap<&Names, BTreeMap<&Names, &Names>> {
        let mut uses = BTreeMap::<_, BTreeMap<_, _>>::new();
        for module in self.0.values() {
            for path in &module.named {
                if let Some(other) = self.definition(path)
                    && !other.starts_with(&module.file)
                    && !module.file.starts_with(other)
                {
                    let uses = uses.entry(&module.file).or_default();
                    uses.entry(other).or_insert(path);
                }
            }
        }
        uses
    }

    /// A line for each use that is part of a circle of files.
    fn circles(&self) -> Vec<String> {
        let (uses, mut lines) = (self.uses(), Vec::new());
        for (&file, others) in &uses {
            for (&other, path) in others {
                // Whether the other one leads back.
                let (mut seen, mut next) = (BTreeSet::new(), vec![other]);
                while let Some(file) = next.pop() {
                    if seen.insert(file) {
                        next.extend(uses.get(file).into_iter().flat_map(BTreeMap::keys));
                    }
                }
                let [name, other] = [file, other].map(|file| self.0[file].path.as_str());
                if seen.contains(file) && !is_tangled(name) {
                    let path = path.join("::");
                    lines.push(format!(
                        "{name} and {other} are in one circle: crate::{path}"
                    ));
                }
            }
        }
        lines
    }

    /// A line for each use of a room that is not above the one that uses it, and for each room that
    /// `order` lacks.
    fn upward(&self, order: &str) -> Vec<String> {
        let place = |room: &String| order.split_whitespace().position(|name| name == room);
        let mut lines = Vec::new();
        for (names, module) in &self.0 {
            let Some(room) = names.first() else { continue };
            let Some(here) = place(room) else {
                if names.len() == 1 && !is_tangled(room) {
                    lines.push(format!("the room {room} has no place in the list"));
                }
                continue;
            };
            for path in &module.named {
                if path
                    .first()
                    .and_then(place)
                    .is_some_and(|there| there > here)
                {
                    let (file, other, path) = (&module.path, &path[0], path.join("::"));
                    lines.push(format!(
                        "{room} must not use {other}, which is after it: crate::{path} in {file}"
                    ));
                }
            }
        }
        lines
    }
}

/// Reads the modules of a crate, one inside another.
struct Reader<'a> {
    source: &'a dyn Fn(&str) -> Option<String>,
    all: BTreeMap<Names, Module>,
    /// The module that is read.
    at: Names,
}

impl Reader<'_> {
    /// Reads the module `at` from the first of `paths` that is a file.
    fn read<const N: usize>(&mut self, paths: [String; N]) {
        let source = |path: String| Some(((self.source)(&path)?, path));
        let found = paths.into_iter().find_map(source);
        let (text, path) = found.unwrap_or_else(|| panic!("no file has the module {:?}", self.at));
        let file = syn::parse_file(&text).unwrap_or_else(|error| panic!("{path}: {error}"));
        self.enter(path, self.at.clone());
        self.visit_file(&file);
    }

    fn enter(&mut self, path: String, file: Names) {
        let module = Module {
            path,
            file,
            ..Module::default()
        };
        self.all.insert(self.at.clone(), module);
    }

    fn module(&mut self) -> &mut Module {
        self.all.get_mut(&self.at).expect("the module is entered")
    }

    /// What `path`, written in the module `at`, is from the root.
    fn from_root(&self, path: &[String]) -> Names {
        let mut names = self.at.clone();
        for name in path {
            match name.as_str() {
                "crate" => names.clear(),
                "super" => drop(names.pop()),
                "self" => {}
                _ => names.push(name.clone()),
            }
        }
        names
    }

    fn import(&mut self, tree: &UseTree, mut path: Names) {
        let (ident, name) = match tree {
            UseTree::Path(tree) => {
                path.push(tree.ident.to_string());
                return self.import(&tree.tree, path);
            }
            UseTree::Group(group) => {
                return group
                    .items
                    .iter()
                    .for_each(|tree| self.import(tree, path.clone()));
            }
            // Of other crates alone.
            UseTree::Glob(_) => return,
            UseTree::Name(tree) => (&tree.ident, &tree.ident),
            UseTree::Rename(tree) => (&tree.ident, &tree.rename),
        };
        path.push(ident.to_string());
        let path = self.from_root(&path);
        let name = match name == "self" {
            true => path.last().cloned().unwrap_or_default(),
            false => name.to_string(),
        };
        self.module().named.insert(path.clone());
        self.module().imports.insert(name, path);
    }
}

impl Visit<'_> for Reader<'_> {
    fn visit_item(&mut self, item: &Item) {
        let (attributes, name) = head(item);
        if attributes.iter().any(is_test) {
            return;
        }
        let Item::Mod(module) = item else {
            self.module().items.extend(name.map(Ident::to_string));
            return visit::visit_item(self, item);
        };
        let (path, file) = (self.module().path.clone(), self.module().file.clone());
        self.at.push(module.ident.to_string());
        match &module.content {
            Some((_, items)) => {
                self.enter(path, file);
                items.iter().for_each(|item| self.visit_item(item));
            }
            // A file of another package.
            None if attributes
                .iter()
                .any(|attribute| attribute.path().is_ident("path")) => {}
            None => {
                let path = self.at.join("/");
                self.read([format!("{path}.rs"), format!("{path}/mod.rs")]);
            }
        }
        self.at.pop();
    }

    fn visit_impl_item_fn(&mut self, function: &ImplItemFn) {
        if !function.attrs.iter().any(is_test) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_item_use(&mut self, item: &ItemUse) {
        self.import(&item.tree, Names::new());
    }

    fn visit_path(&mut self, path: &syn::Path) {
        let names: Names = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string())
            .collect();
        if names.len() > 1 {
            let names = self.from_root(&names);
            self.module().named.insert(names);
        }
        visit::visit_path(self, path);
    }

    /// Of the arguments of a macro those that are expressions.
    fn visit_macro(&mut self, call: &Macro) {
        let arguments = call.parse_body_with(Punctuated::<Expr, Token![,]>::parse_terminated);
        for argument in arguments.iter().flatten() {
            self.visit_expr(argument);
        }
    }
}

/// Attributes and name of `item`.
fn head(item: &Item) -> (&[Attribute], Option<&Ident>) {
    match item {
        Item::Const(ItemConst { attrs, ident, .. })
        | Item::Enum(ItemEnum { attrs, ident, .. })
        | Item::Mod(ItemMod { attrs, ident, .. })
        | Item::Static(ItemStatic { attrs, ident, .. })
        | Item::Struct(ItemStruct { attrs, ident, .. })
        | Item::Trait(ItemTrait { attrs, ident, .. })
        | Item::Type(ItemType { attrs, ident, .. })
        | Item::Union(ItemUnion { attrs, ident, .. }) => (attrs, Some(ident)),
        Item::Fn(ItemFn { attrs, sig, .. }) => (attrs, Some(&sig.ident)),
        Item::Macro(ItemMacro { attrs, ident, .. }) => (attrs, ident.as_ref()),
        Item::Impl(ItemImpl { attrs, .. }) | Item::Use(ItemUse { attrs, .. }) => (attrs, None),
        _ => (&[], None),
    }
}

fn is_test(attribute: &Attribute) -> bool {
    let is_cfg = attribute.path().is_ident("cfg");
    is_cfg
        && attribute
            .parse_args::<Ident>()
            .is_ok_and(|cfg| cfg == "test")
}

fn is_tangled(name: &str) -> bool {
    TANGLED.split_whitespace().any(|tangled| tangled == name)
}

/// Asserts that `wrong` has no line about any of `crates`, each the folder and the root of one.
fn assert_each<const N: usize>(
    crates: [(&str, &str); N],
    wrong: impl Fn(&str, &Modules) -> Vec<String>,
) {
    let repository = crate::repository().unwrap();
    let mut lines = String::new();
    for (folder, root) in crates {
        let source = |path: &str| fs::read_to_string(repository.join(folder).join(path)).ok();
        for line in wrong(folder, &Modules::read(root, &source)) {
            lines += &format!("{folder}: {line}\n");
        }
    }
    assert!(lines.is_empty(), "\n{lines}");
}

#[test]
fn no_file_is_in_a_circle() {
    let crates = [
        ("burn-lti/src", "lib"),
        ("burn-lti-llama/src", "lib"),
        ("burn-lti-llama/src/bin/burn-lti", "main"),
        ("xtask/src", "main"),
        ("benches/src", "lib"),
    ];
    assert_each(crates, |_, modules| modules.circles());
}

#[test]
fn each_room_uses_those_above_it_alone() {
    let crates = [("burn-lti/src", "lib"), ("burn-lti-llama/src", "lib")];
    assert_each(crates, |folder, modules| {
        modules.upward(if folder == "burn-lti/src" { LTI } else { LLAMA })
    });
}

#[test]
fn a_circle_through_a_re_export_and_an_upward_use_are_found() {
    let files = BTreeMap::from([
        ("lib.rs", "mod above; mod below;"),
        (
            "above/mod.rs",
            "mod one; mod two; pub use {one::One, two::Two};",
        ),
        (
            "above/one.rs",
            "use super::Two; #[cfg(test)] mod tests { use crate::below::Below; } struct One;",
        ),
        (
            "above/two.rs",
            "struct Two; fn one() { vec![crate::above::One] }",
        ),
        ("below.rs", "use crate::above; struct Below;"),
    ]);
    let modules = Modules::read("lib", &|path| files.get(path).map(|text| text.to_string()));
    let circles = [
        "above/one.rs and above/two.rs are in one circle: crate::above::Two",
        "above/two.rs and above/one.rs are in one circle: crate::above::One",
    ];
    assert_eq!(modules.circles(), circles);
    assert_eq!(modules.upward("above below"), [""; 0]);
    let upward = ["below must not use above, which is after it: crate::above in below.rs"];
    assert_eq!(modules.upward("below above"), upward);
}
