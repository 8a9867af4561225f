//! What differs between images, and what of them is hidden or shared: compared with what is plain to see in
//! the trees that they make.

use crate::support::cli::{Imgfs, Output};
use crate::support::hostile::Hostile;
use crate::support::image::{Built, Image};
use crate::support::layers::{Archive, Entry, Packing, SparseForm, What};
use crate::support::need::require;
use crate::support::snapshot::{Item, Kind, Snapshot, snapshot};
use crate::support::umoci::Unpacked;
use crate::support::{model, scale, seed};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;

/// What differs, by path: `added`, `removed`, or what is not the same.
type Differences = BTreeMap<String, Vec<String>>;

/// Images in a registry, and no directory of images.
struct Bench {
    hostile: Hostile,
    imgfs: Imgfs,
}

impl Bench {
    fn start(images: &[(&str, &Built)]) -> Self {
        let hostile = Hostile::start();
        for (tag, image) in images {
            image.push_to(&hostile, "team/app", tag);
        }
        Self { hostile, imgfs: Imgfs::scratch() }
    }

    fn name(&self, tag: &str) -> String {
        format!("{}/team/app:{tag}", self.hostile.host())
    }

    /// `imgfs COMMAND --plain-http --platform linux/amd64 ARGS... IMAGES...`
    fn run(&self, command: &str, args: &[&str], tags: &[&str]) -> Output {
        let mut all: Vec<String> =
            [command, "--plain-http", "--platform", "linux/amd64"].map(str::to_owned).into();
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        all.extend(tags.iter().map(|tag| self.name(tag)));
        self.imgfs.run(&all)
    }

    /// What `imgfs diff` says of the images `a` and `b`.
    #[track_caller]
    fn diff(&self, args: &[&str]) -> Differences {
        let output = self.run("diff", &[args, &["--json"]].concat(), &["a", "b"]);
        let report = output.report();
        let changes = report["changes"].as_array().expect("a list");
        assert_eq!(output.code(), i32::from(!changes.is_empty()), "{output}");
        let described = changes.iter().map(|change| {
            let what = match change["change"].as_str().expect("text") {
                "changed" => texts(&change["aspects"]),
                other => vec![other.to_owned()],
            };
            (change["path"].as_str().expect("text").to_owned(), what)
        });
        described.collect()
    }
}

fn texts(list: &Value) -> Vec<String> {
    let list = list.as_array().expect("a list");
    list.iter().map(|text| text.as_str().expect("text").to_owned()).collect()
}

fn shown(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}

/// The paths of each file, by the first of them.
fn names(of: &Snapshot) -> BTreeMap<&[u8], BTreeSet<&[u8]>> {
    let mut names: BTreeMap<&[u8], BTreeSet<&[u8]>> = BTreeMap::new();
    for (path, item) in of.iter().filter(|(_, item)| item.kind != Kind::Dir) {
        names.entry(&item.first_name).or_default().insert(path);
    }
    names
}

/// What differs between two trees, worked out plainly.
fn expected(a: &Snapshot, b: &Snapshot) -> Differences {
    let (names_a, names_b) = (names(a), names(b));
    let paths: BTreeSet<_> = a.keys().chain(b.keys()).collect();
    let mut all = Differences::new();
    for path in paths {
        let what: Vec<&str> = match (a.get(path), b.get(path)) {
            (Some(_), None) => vec!["removed"],
            (None, _) => vec!["added"],
            (Some(one), Some(other)) => {
                let linked = |names: &BTreeMap<&[u8], BTreeSet<&[u8]>>, item: &Item| {
                    names
                        .get(&item.first_name[..])
                        .map(|n| n.iter().map(|n| n.to_vec()).collect::<Vec<_>>())
                };
                let is_same_kind = one.kind == other.kind;
                let checks = [
                    ("type", !is_same_kind),
                    ("content", is_same_kind && one.content != other.content),
                    ("mode", is_same_kind && one.kind != Kind::Symlink && one.mode != other.mode),
                    ("owner", (one.uid, one.gid) != (other.uid, other.gid)),
                    ("target", is_same_kind && one.target != other.target),
                    (
                        "links",
                        is_same_kind
                            && one.kind != Kind::Dir
                            && linked(&names_a, one) != linked(&names_b, other),
                    ),
                    ("device", is_same_kind && one.device != other.device),
                    ("xattrs", one.xattrs != other.xattrs),
                ];
                checks.iter().filter(|(_, differs)| *differs).map(|(what, _)| *what).collect()
            }
        };
        if !what.is_empty() {
            all.insert(shown(path), what.into_iter().map(str::to_owned).collect());
        }
    }
    all
}

fn built(layers: &[&Archive], packing: Packing) -> Built {
    let mut image = Image::new();
    for (number, layer) in layers.iter().enumerate() {
        image = image.step(&format!("RUN step {number}"), &layer.pack(packing));
    }
    image.build()
}

/// Numbers that are the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// A layer of files with few names and few contents, so that much of it is the same in others.
fn random_layer(numbers: &mut Numbers, is_first: bool) -> Archive {
    let mut archive = Archive::new();
    let mut files: Vec<String> = Vec::new();
    let mut used: BTreeSet<String> = BTreeSet::new();
    for _ in 0..numbers.below(14) {
        let dir = ["", "d/", "d/e/", "f/"][numbers.below(4) as usize];
        let name = format!("{dir}{}", ["x", "y", "z", "e"][numbers.below(4) as usize]);
        // A name once, and nothing in what is no directory: what else it could mean is tested elsewhere.
        let is_taken = used.iter().any(|other| {
            *other == name
                || other.starts_with(&format!("{name}/"))
                || name.starts_with(&format!("{other}/"))
        });
        if is_taken {
            continue;
        }
        let mode = [0o644, 0o600, 0o4755][numbers.below(3) as usize];
        let owner = numbers.below(2) as u32;
        let entry = |what| Entry::new(&name, what).owner(owner, 0);
        let text = ["", "one", "two", "six"][numbers.below(4) as usize];
        archive = match numbers.below(10) {
            0..=4 => {
                files.push(name.clone());
                let entry = Entry::file(&name, text).mode(mode).owner(owner, 0);
                match numbers.below(3) {
                    0 => archive.entry(entry.xattr("user.note", text)),
                    _ => archive.entry(entry),
                }
            }
            5 => archive.symlink(&name, ["x", "d/y"][numbers.below(2) as usize]),
            6 => match files.last() {
                Some(target) => archive.link(&name, target.clone()),
                None => continue,
            },
            7 if !is_first => archive.whiteout(&name),
            8 => archive.entry(entry(What::Char(1, numbers.below(3) as u32))),
            _ => archive.entry(entry(What::Dir)),
        };
        used.insert(name);
    }
    if !is_first && numbers.below(5) == 0 {
        archive = archive.opaque("d");
    }
    archive
}

#[test]
fn what_differs_is_what_the_trees_of_random_layers_differ_in() {
    let mut numbers = Numbers(seed());
    for round in 0..scale(12, 200) {
        let shared = random_layer(&mut numbers, true);
        let packings = [Packing::Gzip, Packing::Zstd, Packing::Plain];
        let mut side = || {
            let own = [0; 2].map(|_| random_layer(&mut numbers, false));
            let layers = [&shared, &own[0], &own[1]];
            let packing = packings[numbers.below(3) as usize];
            (model::merged(&layers), built(&layers, packing))
        };
        let ((tree_a, a), (tree_b, b)) = (side(), side());
        let bench = Bench::start(&[("a", &a), ("b", &b)]);
        assert_eq!(bench.diff(&[]), expected(&tree_a, &tree_b), "round {round}");
    }
}

/// Two images with something of everything, on a layer that both have.
fn versions() -> [Vec<Archive>; 2] {
    let base = Archive::new()
        .dir("etc")
        .file("etc/same", b"same\n")
        .file("etc/gone", b"gone\n")
        .dir("lib")
        .noise("lib/big", 7, 3_000_000)
        .file("lib/rebuilt", b"the same bytes in another layer")
        .entry(Entry::file("lib/tool", b"tool").mode(0o755))
        .entry(Entry::file("lib/noted", b"noted").xattr("user.note", b"1"))
        .symlink("link", "etc/same")
        .file("dir-or-file", b"file");
    let one = Archive::new()
        .file("version", b"version 1\n")
        .entry(Entry::new("null", What::Char(1, 3)))
        .link("tool", "lib/tool");
    let two = Archive::new()
        .file("version", b"version 2\n")
        .file("lib/rebuilt", b"the same bytes in another layer")
        .entry(Entry::new("null", What::Char(1, 5)))
        .whiteout("etc/gone")
        .whiteout("link")
        .file("etc/new", b"new\n")
        .whiteout("dir-or-file")
        .entry(Entry::file("lib/noted", b"noted").xattr("user.note", b"2").owner(1, 2));
    let three =
        Archive::new().dir("dir-or-file").file("dir-or-file/x", b"x").symlink("link", "etc/new");
    [vec![base.clone(), one], vec![base, two, three]]
}

fn build_versions() -> [Built; 2] {
    versions().map(|layers| built(&layers.iter().collect::<Vec<_>>(), Packing::Gzip))
}

#[test]
fn what_differs_is_what_two_unpacked_images_differ_in() {
    require!(Root);
    let [a, b] = build_versions();
    let bench = Bench::start(&[("a", &a), ("b", &b)]);
    let [tree_a, tree_b] = [&a, &b].map(|image| snapshot(&Unpacked::built(image).rootfs()));
    let wanted = expected(&tree_a, &tree_b);
    assert!(wanted.len() > 8, "{wanted:?}");
    assert_eq!(bench.diff(&[]), wanted);
    // A part of it.
    let part = wanted.keys().filter(|path| path.starts_with("/etc/")).collect::<Vec<_>>();
    let args = ["diff", "--plain-http", "--platform", "linux/amd64", "--json"];
    let names = [bench.name("a"), bench.name("b")];
    let below =
        bench.imgfs.run(&[&args[..], &[&names[0], &names[1], "etc/"]].concat()).expect_code(1);
    let paths: Vec<Value> = below.report()["changes"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|c| c["path"].clone())
        .collect();
    let part: Vec<Value> = part.into_iter().map(|path| path.as_str().into()).collect();
    assert_eq!(paths, part);
}

#[test]
fn what_differs_is_told_with_sizes_and_layers() {
    let [a, b] = build_versions();
    let bench = Bench::start(&[("a", &a), ("b", &b)]);
    let listed = bench.run("diff", &[], &["a", "b"]).expect_code(1).stdout;
    let line = |path: &str| {
        let found = listed
            .lines()
            .find(|line| line.split("  ").any(|part| part.trim().split(" (").next() == Some(path)));
        let found = found.unwrap_or_else(|| panic!("{path}: {listed}"));
        found.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("/etc/new"), "A 4 B 1 /etc/new");
    assert_eq!(line("/etc/gone"), "D 5 B 0 /etc/gone");
    assert_eq!(line("/version"), "C 10 B 1 -> 1 /version (content)");
    assert_eq!(line("/link"), "C - 0 -> 2 /link (target etc/same -> etc/new)");
    assert_eq!(line("/lib/tool"), "C 4 B 0 -> 0 /lib/tool (links 2 -> 1)");
    assert_eq!(line("/null"), "C - 1 -> 1 /null (device 1, 3 -> 1, 5)");
    let noted = "C 5 B 0 -> 1 /lib/noted (owner 0:0 -> 1:2, xattrs user.note)";
    assert_eq!(line("/lib/noted"), noted);
    assert_eq!(line("/dir-or-file"), "C 4 B -> - 0 -> 2 /dir-or-file (type file -> directory)");
    assert!(!listed.contains("rebuilt") && !listed.contains("big"), "{listed}");
    let last = listed.lines().last().expect("a summary");
    assert_eq!(last, "2 added (5 B), 2 deleted (5 B), 6 changed");

    let stat = bench.run("diff", &["--stat"], &["a", "b"]).expect_code(1).stdout;
    for part in ["A  0", "B  1", "B  2", "RUN step 1", last] {
        assert!(stat.contains(part), "{part}: {stat}");
    }
    assert!(!stat.contains("/etc/new"), "{stat}");
    bench.run("diff", &["--times"], &["a", "a"]).success();
}

#[test]
fn what_both_have_in_the_same_layer_is_never_read() {
    let [a, b] = build_versions();
    let bench = Bench::start(&[("a", &a), ("b", &b), ("copy", &a)]);
    // The same layers: nothing of them is looked at.
    let same = bench.run("diff", &[], &["a", "copy"]).expect_code(0);
    assert_eq!(same.stdout, "");
    let of_layers = || {
        let mut gets = bench.hostile.blob_gets();
        gets.retain(|get| {
            a.layers().contains(&get.digest().to_owned())
                || b.layers().contains(&get.digest().to_owned())
        });
        gets
    };
    assert_eq!(of_layers().len(), 0);
    // Each layer is read once, whichever image has it.
    bench.run("diff", &[], &["a", "b"]).expect_code(1);
    let sizes = |layers: &BTreeSet<String>| -> u64 {
        layers
            .iter()
            .map(|digest| a.blobs.get(digest).or(b.blobs.get(digest)).expect("a layer").size())
            .sum()
    };
    let distinct: BTreeSet<String> = a.layers().into_iter().chain(b.layers()).collect();
    assert_eq!(of_layers().iter().map(|get| get.sent).sum::<u64>(), sizes(&distinct));
    // From then on, only what has to be compared.
    bench.hostile.clear_log();
    let report = bench.run("diff", &["--json"], &["a", "b"]).expect_code(1).report();
    let fetched: u64 = of_layers().iter().map(|get| get.sent).sum();
    // The bytes in `lib/rebuilt`, `lib/noted` and `version`, which are in spans of at most 1 MiB.
    assert!(fetched < 1 << 21, "{fetched}");
    assert_eq!(report["compared_bytes"], 2 * (31 + 5 + 10));
}

/// A layer of the same files with other contents and attributes.
fn rebuilt(numbers: &mut Numbers, layer: &Archive) -> Archive {
    layer.entries().fold(Archive::new(), |all, entry| {
        let mut entry = entry.clone();
        if numbers.below(2) == 0 {
            (entry.mode, entry.uid) = (0o700, 3);
            if let What::File(content) = &mut entry.what
                && content.len() > 0
            {
                *content = format!("again {}", numbers.below(2)).into_bytes().into();
            }
        }
        all.entry(entry)
    })
}

#[test]
fn what_is_below_the_same_paths_need_not_be_known() {
    let mut numbers = Numbers(seed().wrapping_add(1));
    let mut spared = 0;
    for round in 0..scale(12, 200) {
        let shared = random_layer(&mut numbers, true);
        let own = [0; 2].map(|_| random_layer(&mut numbers, false));
        let again = [0, 1].map(|number: usize| rebuilt(&mut numbers, &own[number]));
        let side = |own: &[Archive; 2]| {
            let layers = [&shared, &own[0], &own[1]];
            (model::merged(&layers), built(&layers, Packing::Gzip))
        };
        let ((tree_a, a), (tree_b, b)) = (side(&own), side(&again));
        let bench = Bench::start(&[("a", &a), ("b", &b)]);
        assert_eq!(bench.diff(&[]), expected(&tree_a, &tree_b), "round {round}");
        let base = &a.layers()[0];
        let is_fetched = bench.hostile.blob_gets().iter().any(|get| get.digest() == base);
        spared += usize::from(!is_fetched && !a.layers()[1..].contains(base));
    }
    assert!(spared > 0, "nothing was spared");
    // And in a case that everybody has: the program is built again.
    let base = Archive::new().dir("usr").noise("usr/system", 3, 2_000_000).file("app/lib", b"lib");
    let program = |version: &str| Archive::new().dir("app").file("app/run", version);
    let images = ["1", "2"].map(|version| built(&[&base, &program(version)], Packing::Gzip));
    let bench = Bench::start(&[("a", &images[0]), ("b", &images[1])]);
    let listed = bench.run("diff", &[], &["a", "b"]).expect_code(1).stdout;
    assert!(listed.contains("1 -> 1  /app/run (content)"), "{listed}");
    assert!(bench.hostile.blob_gets().iter().all(|get| get.sent < 10_000));
}

#[test]
fn packages_are_compared() {
    let status = |packages: &[(&str, &str)]| -> String {
        packages
            .iter()
            .map(|(name, version)| {
                format!("Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {version}\n\n")
            })
            .collect()
    };
    let path = "var/lib/dpkg/status";
    let base =
        Archive::new().file(path, status(&[("libc6", "2.36"), ("gone", "1"), ("same", "1")]));
    let top = Archive::new().file(path, status(&[("libc6", "2.37"), ("same", "1"), ("new", "3")]));
    let distroless = Archive::new()
        .dir("var/lib/dpkg/status.d")
        .file("var/lib/dpkg/status.d/libc6", "Package: libc6\nVersion: 2.37\nArchitecture: amd64\n")
        .file("var/lib/dpkg/status.d/libc6.md5sums", "0  usr/lib/libc.so.6\n");
    let alpine = |version: &str| {
        let text = format!("P:musl\nV:{version}\nA:x86_64\n\nP:busybox\nV:1\nA:x86_64\n\n");
        Archive::new()
            .dir("usr/lib/apk/db")
            .file("usr/lib/apk/db/installed", text)
            .symlink("lib", "usr/lib")
    };
    let mut database = Vec::new();
    let packed: &[u8] = include_bytes!("../../src/ops/diff/rpm/fixtures/rpmdb.sqlite.gz");
    flate2::read::GzDecoder::new(packed).read_to_end(&mut database).unwrap();
    let rpm = Archive::new().file("usr/lib/sysimage/rpm/rpmdb.sqlite", &database);
    let unmerged = Archive::new().file("usr/lib/sysimage/rpm/rpmdb.sqlite-wal", b"newer");
    let cut = Archive::new().file("var/lib/rpm/rpmdb.sqlite", &database[..5000]);
    let images = [
        ("1", built(&[&base], Packing::Gzip)),
        ("2", built(&[&base, &top], Packing::Gzip)),
        ("distroless", built(&[&distroless], Packing::Gzip)),
        ("alpine1", built(&[&alpine("1.2.4")], Packing::Gzip)),
        ("alpine2", built(&[&alpine("1.2.5")], Packing::Gzip)),
        ("rpm", built(&[&rpm], Packing::Gzip)),
        ("unmerged", built(&[&rpm, &unmerged], Packing::Gzip)),
        ("cut", built(&[&cut], Packing::Gzip)),
        ("none", built(&[&Archive::new().file("x", b"x")], Packing::Gzip)),
    ];
    let images: Vec<(&str, &Built)> = images.iter().map(|(tag, image)| (*tag, image)).collect();
    let bench = Bench::start(&images);
    let lines = |a: &str, b: &str| -> Vec<String> {
        let listed = bench.run("diff", &["--packages"], &[a, b]).expect_code(1).stdout;
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        listed.lines().skip(1).map(words).collect()
    };
    let changed = ["D gone:amd64 1 -", "C libc6:amd64 2.36 2.37", "A new:amd64 - 3"];
    assert_eq!(lines("1", "2"), changed);
    assert_eq!(lines("2", "distroless"), ["D new:amd64 3 -", "D same:amd64 1 -"]);
    assert_eq!(lines("alpine1", "alpine2"), ["C musl:x86_64 1.2.4 1.2.5"]);
    assert_eq!(lines("none", "alpine1"), ["A busybox:x86_64 - 1", "A musl:x86_64 - 1.2.4"]);
    assert_eq!(bench.run("diff", &["--packages"], &["1", "1"]).expect_code(0).stdout, "");
    let rpm = lines("none", "rpm");
    assert_eq!(rpm.len(), 42, "{rpm:?}");
    assert!(rpm.contains(&"A beta:noarch - 2:2.0~rc1-1".to_owned()), "{rpm:?}");
    for (tag, why) in [("unmerged", "newest changes"), ("cut", "ends in the middle")] {
        let failed = bench.run("diff", &["--packages"], &["1", tag]).expect_code(2);
        failed.stderr_has("rpmdb.sqlite").stderr_has(why).stderr_has("hint:");
    }
    bench.run("diff", &["--packages"], &["none", "none"]).expect_code(2).stderr_has("dpkg");
    let report = bench.run("diff", &["--packages", "--json"], &["1", "2"]).expect_code(1).report();
    assert_eq!(report["packages"][1]["before"][0], "2.36");
}

#[test]
fn what_cannot_be_compared_is_trouble() {
    let [a, _] = build_versions();
    let whole = Archive::new().file("x", b"x");
    let damaged = Archive::new().file("x", b"x").raw([b'?'; 512]).file("y", b"y");
    let damaged = Image::new().step("x", &damaged.gzip()).build();
    let whole = Image::new().step("x", &whole.gzip()).build();
    let bench = Bench::start(&[("a", &a), ("damaged", &damaged), ("whole", &whole)]);
    bench.run("diff", &[], &["whole", "damaged"]).expect_code(2).stderr_has("damaged");
    bench.run("diff", &[], &["a", "none"]).expect_code(2).stderr_has("none");
    bench.run("diff", &["--platform", "linux/arm64"], &["a", "a"]).expect_code(2);
    bench.run("diff", &["--stat", "--packages"], &["a", "a"]).expect_code(2);
    bench.run("diff", &[], &["a"]).expect_code(2);
    let names = [bench.name("a"), bench.name("whole")];
    let args =
        ["diff", "--plain-http", "--platform", "linux/amd64", &names[0], &names[1], "/no/such"];
    bench.imgfs.run(&args).expect_code(2).stderr_has("/no/such");
}

#[test]
fn names_cannot_move_the_cursor() {
    let layer = |name: &str| built(&[&Archive::new().file(name, b"x")], Packing::Gzip);
    let (a, b) = (layer("plain"), layer("a\x1b[2Jb\nA  1 B  0  fake"));
    let bench = Bench::start(&[("a", &a), ("b", &b)]);
    let listed = bench.run("diff", &[], &["a", "b"]).expect_code(1).stdout;
    assert_eq!(listed.lines().count(), 4, "{listed}");
    assert!(!listed.contains('\x1b'), "{listed}");
}

/// What of the content of each layer is not in the tree, worked out by contents that are all different.
fn hidden(layers: &[&Archive]) -> Vec<(u64, u64)> {
    let tree = model::merged(layers);
    let seen: BTreeSet<&str> = tree.values().map(|item| item.content.as_str()).collect();
    let of_layer = |layer: &&Archive| {
        let files = layer.entries().filter_map(|entry| match &entry.what {
            What::File(content) if content.len() > 0 => Some(content),
            _ => None,
        });
        let hidden = files.filter(|content| !seen.contains(content.digest().as_str()));
        hidden.fold((0, 0), |(files, bytes), content| (files + 1, bytes + content.len()))
    };
    layers.iter().map(of_layer).collect()
}

#[test]
fn what_layers_hide_of_each_other_is_counted() {
    let mut numbers = Numbers(seed());
    for round in 0..scale(8, 100) {
        let mut next = 0;
        let mut unique = |layer: Archive| -> Archive {
            layer.entries().fold(Archive::new(), |all, entry| {
                let mut entry = entry.clone();
                if let What::File(bytes) = &entry.what
                    && bytes.len() > 0
                {
                    next += 1;
                    entry.what = What::File(format!("content {next:0>20}").into_bytes().into());
                }
                all.entry(entry)
            })
        };
        let layers = [0, 1, 2, 3].map(|number| unique(random_layer(&mut numbers, number == 0)));
        let layers: Vec<&Archive> = layers.iter().collect();
        let image = built(&layers, Packing::Gzip);
        let bench = Bench::start(&[("a", &image)]);
        let report = bench.run("du", &["--json"], &["a"]).success().report();
        let found: Vec<(u64, u64)> = report["images"][0]["layers"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|layer| {
                let number = |key: &str| layer[key].as_u64().expect("a number");
                (number("hidden_entries"), number("hidden_bytes"))
            })
            .collect();
        assert_eq!(found, hidden(&layers), "round {round}");
        for (number, layer) in layers.iter().enumerate() {
            let listed = &report["images"][0]["layers"][number];
            let files = layer.entries().filter_map(|entry| match &entry.what {
                What::File(content) => Some(content.len()),
                _ => None,
            });
            assert_eq!(listed["unpacked_bytes"], files.sum::<u64>(), "round {round}");
            assert_eq!(listed["entries"], layer.entries().count(), "round {round}");
            assert_eq!(listed["compressed_bytes"], image.blobs[&image.layers()[number]].size());
        }
    }
}

#[test]
fn what_images_share_is_counted_once() {
    let [a, b] = build_versions();
    let bench = Bench::start(&[("a", &a), ("b", &b)]);
    let size = |of: &Built, number: usize| of.blobs[&of.layers()[number]].size();
    let usage = bench.run("du", &["--json"], &["a", "b"]).success().report();
    let shared = size(&a, 0);
    assert_eq!(usage["shared_bytes"], shared);
    assert_eq!(usage["distinct_bytes"], shared + size(&a, 1) + size(&b, 1) + size(&b, 2));
    assert_eq!(usage["images"][1]["shared_bytes"], shared);
    assert_eq!(usage["images"][1]["layers"][0]["images"], 2);
    assert_eq!(usage["images"][1]["layers"][1]["images"], 1);
    let hidden = &usage["images"][1]["hidden_files"];
    let largest = (
        &hidden[0]["path"],
        &hidden[0]["bytes"],
        &hidden[0]["layer"],
        &hidden[0]["overwritten_by"],
    );
    assert_eq!(largest, (&"/lib/rebuilt".into(), &31.into(), &0.into(), &1.into()));

    let shown = bench.run("du", &["--top", "1"], &["a", "b"]).success().stdout;
    for part in
        ["COMPRESSED", "HIDDEN", "RUN step 1", "/lib/rebuilt (overwritten in layer 1)", "2 images"]
    {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(!shown.contains("/etc/gone"), "{shown}");
    // One that is not there takes nothing from the others.
    let failed = bench.run("du", &[], &["a", "none"]).expect_code(1);
    assert!(failed.stdout.contains("RUN step 1"), "{failed}");
    failed.stderr_has("none");
}

#[test]
fn holes_take_nothing_and_are_not_compared() {
    let lastlog = |text: &[u8]| {
        let size = 400 << 30;
        let parts = [(0, text), (size - 512, &b"end"[..])];
        let archive = Archive::new().sparse("lastlog", SparseForm::Pax10, size, &parts);
        built(&[&archive], Packing::Gzip)
    };
    let bench = Bench::start(&[("a", &lastlog(b"one")), ("b", &lastlog(b"two"))]);
    assert_eq!(
        bench.diff(&[]),
        Differences::from([("/lastlog".to_owned(), vec!["content".to_owned()])])
    );
    let usage = bench.run("du", &["--json"], &["a"]).success().report();
    assert!(usage["images"][0]["total"]["unpacked_bytes"].as_u64().expect("a number") < 1 << 20);
}
