//! The floors of the architecture: an upper one may use any lower one, never the other way round.

use std::fs;
use std::path::{Path, PathBuf};

/// From the ground up. Room is kept for the floors to come.
const FLOORS: [&str; 10] = [
    "image",
    "backend",
    "layer",
    "cache",
    "rootfs",
    "transfer",
    "namespace",
    "template",
    "task",
    "fuse",
];

/// Floors that may use the one before the colon although they stand side by side or far apart
/// would be listed here; there are none.
fn floor_of(name: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| *floor == name)
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

#[test]
fn lower_floors_do_not_use_upper_ones() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut checked = 0;
    let mut wrong = Vec::new();
    for path in &files {
        let inside = path.strip_prefix(&src).unwrap();
        let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
        let Some(own) = floor_of(first.trim_end_matches(".rs")) else { continue };
        checked += 1;
        for used in used_floors(&fs::read_to_string(path).unwrap()) {
            if used == "cli" || floor_of(&used).is_some_and(|floor| floor > own) {
                wrong.push(format!("{} uses {used}", inside.display()));
            }
        }
    }
    assert!(checked > 20, "only {checked} files were checked");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn uses_are_found() {
    let text = "use crate::{\n    image::{Digest, Reference}, // crate::fuse\n    tree,\n};\nlet x = crate::namespace::open();\n";
    assert_eq!(used_floors(text), ["image", "tree", "", "namespace"]);
}
