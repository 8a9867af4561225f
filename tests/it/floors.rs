//! The floors of the architecture: a floor uses those that the table in ARCHITECTURE.md says, and no others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What each floor may use.
type Edges = BTreeMap<String, BTreeSet<String>>;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The words in backticks of a text.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The edges that the table draws: its first column uses what the third one has.
fn drawn(text: &str) -> Edges {
    let (_, table) = text.split_once("| floor | what it knows | uses |").expect("there is a table");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let edges = rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        let [floor, _, uses] = cells[..] else { panic!("three columns: {row}") };
        let floor = quoted(floor).next().expect("a floor has a name").to_owned();
        (floor, quoted(uses).map(str::to_owned).collect())
    });
    edges.collect()
}

fn architecture() -> Edges {
    drawn(&fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap())
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The floors that a source names: `crate::backend`, and `{tree, image}` or nested lists of
/// `use crate::{...}`.
fn used_floors(text: &str) -> Vec<String> {
    let code: String = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n");
    let mut used = Vec::new();
    for root in ["crate::", "imgfs::"] {
        for (at, _) in code.match_indices(root) {
            let rest = &code[at + root.len()..];
            let Some(list) = rest.strip_prefix('{') else {
                used.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
                continue;
            };
            let (mut depth, mut name) = (0, String::new());
            for c in list.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => used.push(std::mem::take(&mut name)),
                    _ if depth == 0 => name.push(c),
                    _ => {}
                }
            }
            used.push(name);
        }
    }
    used.iter().map(|u| u.trim().split("::").next().unwrap_or_default().trim().to_owned()).collect()
}

/// The uses of `own` in `text` that are not drawn.
fn not_drawn(own: &str, text: &str, edges: &Edges) -> Vec<String> {
    let mut used = used_floors(text);
    used.retain(|used| {
        let is_floor = edges.contains_key(used);
        is_floor && used != own && !edges[own].contains(used)
    });
    used
}

#[test]
fn floors_use_what_is_drawn_and_nothing_else() {
    let edges = architecture();
    let src = root().join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut wrong = Vec::new();
    for path in &files {
        let inside = path.strip_prefix(&src).unwrap();
        let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
        let own = first.trim_end_matches(".rs");
        if own == "lib" || own == "main" {
            continue;
        }
        if !edges.contains_key(own) {
            wrong.push(format!("{own} is not in the table"));
            continue;
        }
        for used in not_drawn(own, &fs::read_to_string(path).unwrap(), &edges) {
            wrong.push(format!("{} uses {used}", inside.display()));
        }
    }
    assert!(files.len() > 100, "only {} files were found", files.len());
    wrong.dedup();
    assert!(wrong.is_empty(), "not drawn in ARCHITECTURE.md: {wrong:#?}");
}

#[test]
fn no_floor_uses_itself_by_way_of_others() {
    let edges = architecture();
    for (floor, direct) in &edges {
        let mut reached = BTreeSet::new();
        let mut open: Vec<&String> = direct.iter().collect();
        while let Some(next) = open.pop() {
            if reached.insert(next) {
                open.extend(edges.get(next).unwrap_or_else(|| panic!("{next} has no line")));
            }
        }
        assert!(!reached.contains(floor), "{floor} uses itself");
    }
}

#[test]
fn the_crate_and_the_table_list_the_same_floors() {
    let text = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let modules = text.lines().filter_map(|line| {
        let name = line.trim_start_matches("pub ").strip_prefix("mod ")?;
        Some(name.trim_end_matches(';').to_owned())
    });
    let modules: BTreeSet<String> = modules.collect();
    let edges = architecture();
    let listed = text.lines().filter(|line| line.starts_with("//! | "));
    let listed: BTreeSet<&str> = listed.filter_map(|line| quoted(line).next()).collect();
    for module in &modules {
        assert!(edges.contains_key(module), "{module} is not in ARCHITECTURE.md");
        assert!(listed.contains(module.as_str()), "{module} is not in the table of lib.rs");
    }
    for floor in listed.iter().filter(|floor| **floor != "cli") {
        assert!(modules.contains(*floor), "lib.rs lists {floor}, which does not exist");
    }
}

#[test]
fn uses_that_are_not_drawn_are_found() {
    let text = "use crate::{\n    image::{Digest, Reference}, // crate::fuse\n    backend,\n};\nlet x = crate::namespace::open();\n";
    assert_eq!(used_floors(text), ["image", "backend", "", "namespace"]);
    let edges = drawn(
        "| floor | what it knows | uses |\n|---|---|---|\n| `image` | | |\n| `backend` | `x` | `image` |\n\
         | `cache` | | `backend` `image` |\n| `namespace` | | `cache` |\n\n| `other` | | |\n",
    );
    assert_eq!(edges.len(), 4);
    assert_eq!(not_drawn("cache", text, &edges), ["namespace"]);
    assert_eq!(not_drawn("image", text, &edges), ["backend", "namespace"]);
    // Whatever stands in the middle column is no use.
    assert_eq!(edges["backend"].len(), 1);
}
