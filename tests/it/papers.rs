//! The pages for users, README.md and docs/: their examples are what happens, and their links lead somewhere.

use crate::support::{need::require, process};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The pages, how many commands at least are run of each, and how many blocks are marked as not to be run. A page
/// with fewer commands has lost its examples, most likely because their blocks do not begin with `$ ` any more.
const PAGES: &[(&str, usize, usize)] = &[
    ("README.md", 22, 0),
    ("docs/benchmarks.md", 0, 0),
    ("docs/compared.md", 0, 0),
    ("docs/containers.md", 2, 0),
    ("docs/faq.md", 3, 0),
    ("docs/inside-images.md", 27, 0),
    ("docs/kubekey.md", 22, 0),
    ("docs/layer-index.md", 0, 0),
    ("docs/mount.md", 26, 0),
    ("docs/moving-images.md", 34, 0),
    ("docs/places.md", 14, 0),
    ("docs/registries.md", 23, 0),
    ("docs/profiles.md", 0, 0),
    ("docs/security.md", 0, 0),
    ("docs/serve.md", 0, 0),
    ("docs/troubleshooting.md", 6, 0),
];

/// The longest that README.md may be, in lines: what is longer is not read.
const MAX_README_LINES: usize = 250;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(page: &str) -> String {
    std::fs::read_to_string(root().join(page)).unwrap()
}

/// Runs `scripts/papers` with the binary under test.
fn papers(pages: &[&Path]) -> Output {
    let _ = process::require_program("docker-registry", "docker-registry");
    let mut command = Command::new(root().join("scripts/papers"));
    command.args(["--imgfs", env!("CARGO_BIN_EXE_imgfs")]).args(pages).current_dir(root());
    command.output().unwrap()
}

/// The examples of `page` are run, and as many as there should be.
fn is_what_happens(page: &str) {
    let Some((_, least, left_out)) = PAGES.iter().find(|(name, ..)| *name == page) else {
        panic!("{page} is not among PAGES");
    };
    let output = papers(&[Path::new(page)]);
    let said = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complaints}");
    let prefix = format!("{page}: ");
    let count = said.lines().find_map(|line| line.strip_prefix(&prefix));
    let words: Vec<&str> = count.unwrap().split(' ').collect();
    let run: usize = words[0].parse().unwrap();
    assert!(run >= *least, "{page}: {run} commands were run, expected at least {least}");
    assert!(count.unwrap().ends_with(&format!(", {left_out} blocks not run")), "{said}");
}

macro_rules! examples {
    ($($test:ident: $page:literal,)*) => {
        $(
            #[test]
            fn $test() {
                require!(Mounts);
                is_what_happens($page);
            }
        )*

        /// The pages whose examples are run.
        const RUN: &[&str] = &[$($page),*];
    };
}

examples! {
    examples_of_the_readme: "README.md",
    examples_about_containers: "docs/containers.md",
    examples_about_questions: "docs/faq.md",
    examples_about_inside_images: "docs/inside-images.md",
    examples_about_kubekey: "docs/kubekey.md",
    examples_about_mounts: "docs/mount.md",
    examples_about_moving_images: "docs/moving-images.md",
    examples_about_places: "docs/places.md",
    examples_about_registries: "docs/registries.md",
    examples_about_trouble: "docs/troubleshooting.md",
}

#[test]
fn all_pages_are_known_and_none_is_skipped() {
    let mut found: BTreeSet<String> = std::fs::read_dir(root().join("docs"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| Path::new(name).extension().is_some_and(|end| end == "md"))
        .map(|name| format!("docs/{name}"))
        .collect();
    found.insert("README.md".to_owned());
    let known: BTreeSet<String> = PAGES.iter().map(|(name, ..)| (*name).to_owned()).collect();
    assert_eq!(found, known);
    for (page, least, _) in PAGES {
        assert_eq!(*least > 0, RUN.contains(page), "{page}");
        let has_sessions = read(page).contains("\n$ ");
        assert_eq!(has_sessions, RUN.contains(page), "{page}");
        assert!(*page == "README.md" || read("README.md").contains(&format!("({page})")), "{page}");
    }
}

#[test]
fn an_example_that_is_not_true_is_found() {
    require!(Mounts);
    let directory = tempfile::tempdir().unwrap();
    let page = |name: &str, text: &str| -> PathBuf {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let wrong =
        page("wrong.md", "```console\n$ echo 'one two'\none ...\n$ echo three\nfour\n```\n");
    let fails = page("fails.md", "```console\n$ echo one\n$ false\n$ echo two\n```\n");
    let right = page(
        "right.md",
        "```console\n$ printf 'a 12 MB\\nsha256:0123456789ab\\n'\nsha256:ba9876543210\na 1.5 GB\n$ false\n$ echo $?\n1\n\
         $ echo a \\\n>   b\na b\n$ seq 9\n1\n...\n9\n```\n\n```sh\n$no-session\n```\n\n```console no-run\n$ false\n```\n",
    );
    let output = papers(&[&wrong, &fails, &right]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("wrong.md:4: $ echo three"), "{said}");
    assert!(said.contains("-four\n+three"), "{said}");
    assert!(said.contains("fails.md:3: $ false\n  ended with status 1"), "{said}");
    assert!(said.contains("right.md: 5 commands in 1 blocks, 1 blocks not run"), "{said}");
}

#[test]
fn links_lead_somewhere() {
    let pages = PAGES.iter().map(|(page, ..)| (*page).to_owned());
    let internals = std::fs::read_dir(root().join("docs/internals")).unwrap();
    let internals = internals.map(|entry| {
        format!("docs/internals/{}", entry.unwrap().file_name().into_string().unwrap())
    });
    let mut links = 0;
    for page in pages.chain(internals).chain(["ARCHITECTURE.md".to_owned()]) {
        let text = read(&page);
        let directory = Path::new(&page).parent().unwrap();
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().unwrap();
            if target.contains("://") || target.contains(char::is_whitespace) {
                continue;
            }
            links += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() {
                root().join(&page)
            } else {
                root().join(directory).join(file)
            };
            assert!(file.exists(), "{page}: {target} leads nowhere");
            if !anchor.is_empty() {
                let there = anchors(&std::fs::read_to_string(&file).unwrap());
                assert!(there.contains(anchor), "{page}: {target}: there is no such heading");
            }
        }
    }
    assert!(links > 100, "only {links} links were found");
}

/// The anchors of the headings in a page, made as forges make them.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let mut found = BTreeSet::new();
    for line in page.lines() {
        fenced ^= line.trim_start().starts_with("```");
        if !fenced && line.starts_with('#') {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            found.insert(kept.map(|c| if c == ' ' { '-' } else { c }).collect());
        }
    }
    found
}

#[test]
fn the_readme_is_short_and_agrees_with_the_comparison() {
    let readme = read("README.md");
    let lines = readme.lines().count();
    assert!(lines <= MAX_README_LINES, "README.md has {lines} lines");
    let table = |page: &str| -> Vec<String> {
        let rows = page.lines().skip_while(|line| !line.starts_with("| | imgfs | skopeo"));
        rows.take_while(|line| line.starts_with('|')).map(str::to_owned).collect()
    };
    let compared = table(&read("docs/compared.md"));
    assert!(compared.len() > 10, "{compared:?}");
    assert_eq!(table(&readme), compared);
}
