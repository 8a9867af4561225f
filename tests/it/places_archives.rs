//! Archives: what other tools write and what hostile ones could, and what imgfs writes.

use crate::places::{Bed, listed};
use crate::support::image::{Built, Image, single};
use crate::support::need::require;
use crate::support::tree::assert_tree_sound;
use crate::support::{text, tree};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// An archive in the making, member by member.
#[derive(Default)]
struct Archive {
    members: Vec<(tar::Header, String, Vec<u8>)>,
}

impl Archive {
    fn file(mut self, name: &str, content: impl AsRef<[u8]>) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.as_ref().len() as u64);
        header.set_mode(0o644);
        self.members.push((header, name.to_owned(), content.as_ref().to_vec()));
        self
    }

    fn json(self, name: &str, value: &Value) -> Self {
        self.file(name, value.to_string())
    }

    fn link(mut self, name: &str, target: &str) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_link_name(target).expect("a target");
        self.members.push((header, name.to_owned(), Vec::new()));
        self
    }

    fn dir(mut self, name: &str) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_entry_type(tar::EntryType::Directory);
        self.members.push((header, name.to_owned(), Vec::new()));
        self
    }

    fn bytes(self) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (mut header, name, content) in self.members {
            if name.contains("..") {
                // The builder refuses what a hostile archive has.
                header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
                header.set_cksum();
                builder.append(&header, content.as_slice()).expect("adding");
            } else {
                builder.append_data(&mut header, name, content.as_slice()).expect("adding");
            }
        }
        builder.into_inner().expect("ending")
    }

    fn write(self, path: &Path) {
        fs::write(path, self.bytes()).expect("writing");
    }
}

/// A layer, its diff ID and a configuration of some of them.
fn layer(name: &str) -> (Vec<u8>, String) {
    let bytes = Archive::default().file(name, format!("content of {name}")).bytes();
    let digest = digest(&bytes);
    (bytes, digest)
}

fn digest(bytes: &[u8]) -> String {
    crate::support::content::digest(bytes)
}

fn config(diff_ids: &[&str]) -> Value {
    json!({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}})
}

fn saved(config: &str, tags: &[&str], layers: &[&str]) -> Value {
    json!({"Config": config, "RepoTags": tags, "Layers": layers})
}

/// What `docker save` wrote before version 25.
fn classic() -> Archive {
    let ((one, one_id), (two, two_id)) = (layer("etc/one"), layer("etc/two"));
    Archive::default()
        .dir("aaaa/")
        .file("aaaa/VERSION", "1.0")
        .file("aaaa/layer.tar", one)
        .file("bbbb/layer.tar", two)
        .json("config.json", &config(&[&one_id, &two_id]))
        .json(
            "manifest.json",
            &json!([saved("config.json", &["app:1"], &["aaaa/layer.tar", "bbbb/layer.tar"])]),
        )
        .json("repositories", &json!({"app": {"1": "bbbb"}}))
}

/// Members of an OCI image layout with this image, without `index.json`.
fn oci(image: &Built) -> Archive {
    let name = |digest: &str| format!("blobs/{}", digest.replace(':', "/"));
    let mut archive = Archive::default().file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
    for blob in image.blobs.values() {
        let mut content = Vec::new();
        std::io::copy(&mut blob.content.reader(), &mut content).expect("reading");
        archive = archive.file(&name(&blob.digest), content);
    }
    for manifest in &image.manifests {
        archive = archive.file(&name(&manifest.digest), &manifest.bytes);
    }
    archive
}

fn index(entries: &[(&Built, Value)]) -> Value {
    let entries = entries.iter().map(|(image, annotations)| {
        let root = image.root();
        json!({"mediaType": root.media_type, "digest": root.digest, "size": root.bytes.len(), "annotations": annotations})
    });
    json!({"schemaVersion": 2, "manifests": entries.collect::<Vec<_>>()})
}

fn packed(tool: &str, args: &[&str], bytes: &[u8]) -> Vec<u8> {
    let mut child = Command::new(tool)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{tool}: {e}"));
    let mut stdin = child.stdin.take().expect("a pipe");
    let bytes = bytes.to_vec();
    let feeder = std::thread::spawn(move || stdin.write_all(&bytes).expect("writing"));
    let output = child.wait_with_output().expect("waiting");
    feeder.join().expect("feeding");
    output.stdout
}

#[test]
fn a_file_or_a_layout_that_is_listed_is_recognised_by_its_content() {
    let bed = Bed::new();
    let image = single(1);
    let named = json!({"io.containerd.image.name": "docker.io/library/app:1"});
    let archive = oci(&image).json("index.json", &index(&[(&image, named)])).bytes();
    for name in ["backup", "image.oci", "backup.2024-01-01"] {
        let path = bed.path(name);
        fs::write(&path, &archive).expect("writing");
        let output = bed.imgfs.run(&["ls", text(&path)]).success();
        assert!(output.stdout.contains("docker.io/library/app:1"), "{name}: {}", output.stdout);
    }
    let layout = bed.path("images-2024");
    image.write_oci_layout(&layout, "docker.io/library/app:2");
    let output = bed.imgfs.run(&["ls", text(&layout)]).success();
    assert!(output.stdout.contains("docker.io/library/app:2"), "{}", output.stdout);
    // A directory of images, too, if it is written as a path.
    let images = bed.path("images");
    let source = format!("oci:{}", text(&layout));
    bed.copy(&source, text(&images), &["--all"]).success();
    let output = bed.imgfs.run(&["ls", text(&images)]).success();
    assert!(output.stdout.contains("docker.io/library/app:2"), "{}", output.stdout);
    bed.imgfs.run(&["ls", "-R", text(&images)]).expect_code(2).stderr_has("--recursive");
    fs::write(bed.path("notes"), "text").expect("writing");
    bed.imgfs.run(&["ls", text(&bed.path("notes"))]).expect_code(2).stderr_has("archive");
}

#[test]
fn a_bare_file_is_recognised_by_its_content() {
    let bed = Bed::new();
    let plain = classic().bytes();
    let expected = "docker.io/library/app:1";
    let mut digests = Vec::new();
    for (name, bytes) in [
        ("plain.bin", plain.clone()),
        ("gzip.bin", packed("gzip", &["-c"], &plain)),
        ("zstd.bin", packed("zstd", &["-q", "-c"], &plain)),
    ] {
        let path = bed.path(name);
        fs::write(&path, bytes).expect("writing");
        for place in
            [text(&path).to_owned(), bed.at("docker-archive", name), bed.at("oci-archive", name)]
        {
            let target = bed.path(&format!("target-{name}"));
            let output = bed.copy(&place, text(&target), &["--all"]).success();
            assert_eq!(output.images()[0]["image"], expected, "{place}");
            digests.push(output.images()[0]["digest"].clone());
            assert_tree_sound(&target);
        }
        let args = ["cat", "--from", text(&path), "app:1", "/etc/two"];
        assert_eq!(bed.imgfs.run(&args).success().stdout, "content of etc/two");
    }
    assert!(
        digests.iter().all(|digest| *digest == digests[0]),
        "the manifest is made the same way: {digests:?}"
    );
    for (name, bytes) in
        [("text", &b"no archive at all, but long enough to have been one"[..]), ("empty", b"")]
    {
        fs::write(bed.path(name), bytes).expect("writing");
        bed.copy(text(&bed.path(name)), text(&bed.path("no")), &["--all"]).expect_code(2);
    }
    let bzip2 = packed("bzip2", &["-c"], &plain);
    fs::write(bed.path("bzip2"), bzip2).expect("writing");
    bed.copy(text(&bed.path("bzip2")), text(&bed.path("no")), &["--all"])
        .expect_code(2)
        .stderr_has("bzip2");
}

#[test]
fn an_oci_manifest_without_layers_beside_a_good_manifest_json() {
    let bed = Bed::new();
    let ((one, one_id), image) = (layer("etc/one"), Image::new().build());
    let mut broken = image.json();
    let good = config(&[&one_id]).to_string();
    broken["config"]["digest"] = digest(good.as_bytes()).into();
    broken["config"]["size"] = good.len().into();
    let manifest = broken.to_string();
    let name =
        |bytes: &[u8]| format!("blobs/sha256/{}", digest(bytes).trim_start_matches("sha256:"));
    let (config_name, layer_name) = (name(good.as_bytes()), name(&one));
    Archive::default()
        .file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)
        .file(&name(manifest.as_bytes()), &manifest)
        .file(&config_name, &good)
        .file(&layer_name, &one)
        .json("index.json", &json!({"schemaVersion": 2, "manifests": [
            {"mediaType": image.root().media_type, "digest": digest(manifest.as_bytes()), "size": manifest.len(),
             "annotations": {"io.containerd.image.name": "docker.io/library/app:1"}}]}))
        .json("manifest.json", &json!([saved(&config_name, &["app:1"], &[&layer_name])]))
        .write(&bed.path("a.tar"));
    let output =
        bed.copy(&bed.at("oci-archive", "a.tar"), text(&bed.path("to")), &["--all"]).success();
    assert!(output.stderr.contains("its manifest.json is taken instead"), "{output}");
    assert!(output.stderr.contains("0 of 1 layers"), "{output}");
    assert_tree_sound(&bed.path("to"));
    let to = bed.path("to");
    let args = ["cat", "--images-dir", text(&to), "app:1", "/etc/one"];
    assert_eq!(bed.imgfs.run(&args).success().stdout, "content of etc/one");
}

/// Docker with containerd's store saves images without the layers whose snapshots were there when it pulled them.
#[test]
fn of_an_archive_in_which_one_image_lacks_blobs_the_others_can_be_had() {
    let bed = Bed::new();
    let whole = Image::new().layer_gzip_tar(&[("etc/x", b"whole")]).build();
    let part = Image::new().layer_gzip_tar(&[("etc/x", b"part")]).build();
    let name = |of: &str| json!({"io.containerd.image.name": format!("quay.io/x/{of}:1")});
    let saved_as = |image: &Built, of: &str| {
        let manifest = image.json();
        let path = |blob: &Value| {
            format!("blobs/{}", blob["digest"].as_str().expect("a digest").replace(':', "/"))
        };
        let config = path(&manifest["config"]);
        saved(&config, &[&format!("quay.io/x/{of}:1")], &[&path(&manifest["layers"][0])])
    };
    let mut archive = oci(&whole);
    for manifest in &part.manifests {
        let name = format!("blobs/{}", manifest.digest.replace(':', "/"));
        archive = archive.file(&name, &manifest.bytes);
    }
    archive
        .json("index.json", &index(&[(&part, name("part")), (&whole, name("whole"))]))
        .json("manifest.json", &json!([saved_as(&part, "part"), saved_as(&whole, "whole")]))
        .write(&bed.path("a.tar"));
    let output = bed.imgfs.run(&["ls", text(&bed.path("a.tar"))]);
    let line = |of: &str| output.stdout.lines().find(|line| line.contains(of)).map(str::to_owned);
    assert!(line("x/whole:1").is_some_and(|line| line.contains("complete")), "{output}");
    assert!(line("x/part:1").is_some_and(|line| line.contains("lacks 2 parts")), "{output}");
    for place in ["docker-archive", "oci-archive"] {
        let to = bed.path(place);
        let output = bed.copy(&bed.at(place, "a.tar"), text(&to), &["--all"]).expect_code(1);
        assert!(output.stderr.contains("quay.io/x/part:1"), "{output}");
        assert_tree_sound(&to);
        let names: Vec<String> =
            listed(&bed.imgfs, text(&to)).into_iter().map(|(n, _)| n).collect();
        assert_eq!(names, ["quay.io/x/whole:1"], "{output}");
    }
}

#[test]
fn manifest_json_beside_oci_layout() {
    let bed = Bed::new();
    let image = Image::new().layer_gzip_tar(&[("etc/x", b"x")]).build();
    let names = json!({"io.containerd.image.name": "quay.io/x/y:1", "org.opencontainers.image.ref.name": "1"});
    oci(&image)
        .json("index.json", &index(&[(&image, names)]))
        .json("manifest.json", &json!([saved("no/such/config", &["other:1"], &[])]))
        .write(&bed.path("a.tar"));
    let expected = ("quay.io/x/y:1".to_owned(), image.digest().to_owned());
    assert_eq!(listed(&bed.imgfs, &bed.at("docker-archive", "a.tar")), [expected].into());
}

#[test]
fn a_link_of_layer_tar_to_the_archives_root() {
    let bed = Bed::new();
    let ((one, one_id), (two, two_id)) = (layer("etc/one"), layer("etc/two"));
    Archive::default()
        .file("1111.tar", one)
        .file("2222.tar", two)
        .link("aaaa/layer.tar", "../1111.tar")
        .link("bbbb/layer.tar", "2222.tar")
        .json("config.json", &config(&[&one_id, &two_id]))
        .json(
            "manifest.json",
            &json!([saved("config.json", &["app:1"], &["aaaa/layer.tar", "bbbb/layer.tar"])]),
        )
        .write(&bed.path("a.tar"));
    bed.copy(&bed.at("docker-archive", "a.tar"), text(&bed.path("to")), &["--all"]).success();
    assert_tree_sound(&bed.path("to"));
}

#[test]
fn link_loops_and_ways_out_are_refused() {
    let bed = Bed::new();
    fs::write(bed.path("secret.tar"), "secret").expect("writing");
    let (_, one_id) = layer("etc/one");
    let outside = text(&bed.path("secret.tar")).to_owned();
    for (at, (link, target, part)) in [
        ("a/layer.tar", "../b/layer.tar", "more than 8 links"),
        ("a/layer.tar", "../../../etc/passwd", "leads out of the archive"),
        ("a/layer.tar", outside.as_str(), "it has no"),
        ("a/layer.tar", "nowhere", "it has no `nowhere`"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("{at}.tar");
        Archive::default()
            .link(link, target)
            .link("b/layer.tar", "../a/layer.tar")
            .json("config.json", &config(&[&one_id]))
            .json("manifest.json", &json!([saved("config.json", &["app:1"], &["a/layer.tar"])]))
            .write(&bed.path(&name));
        bed.copy(&bed.at("docker-archive", &name), text(&bed.path("to")), &["--all"])
            .expect_code(2)
            .stderr_has(part);
    }
    for config in ["../secret.tar", "/../secret.tar", outside.as_str()] {
        classic()
            .json("manifest.json", &json!([saved(config, &["app:1"], &[])]))
            .write(&bed.path("b.tar"));
        bed.copy(&bed.at("docker-archive", "b.tar"), text(&bed.path("to")), &["--all"])
            .expect_code(2);
    }
    let hostile = classic().file("../escape", "x");
    hostile.write(&bed.path("c.tar"));
    let output =
        bed.copy(&bed.at("docker-archive", "c.tar"), text(&bed.path("to")), &["--all"]).success();
    assert!(output.stderr.contains("`../escape` is ignored"), "{output}");
    assert!(!bed.path("escape").exists() && !bed.path("../escape").exists());
}

#[test]
fn an_archive_without_names() {
    let bed = Bed::new();
    let ((one, one_id), image) = (layer("etc/one"), single(4));
    for (name, tags) in [("null", Value::Null), ("none", json!([]))] {
        let mut entry = saved("config.json", &[], &["layer.tar"]);
        entry["RepoTags"] = tags;
        Archive::default()
            .file("layer.tar", &one)
            .json("config.json", &config(&[&one_id]))
            .json("manifest.json", &json!([entry]))
            .write(&bed.path(name));
    }
    oci(&image).json("index.json", &index(&[(&image, Value::Null)])).write(&bed.path("oci"));
    for name in ["null", "none", "oci"] {
        let place = bed.at("docker-archive", name);
        let to = bed.path("to");
        bed.copy(&place, text(&to), &["--all"])
            .expect_code(2)
            .stderr_has("an image has no full name");
        let output = bed.copy(&place, text(&to), &["--all", "--name", "quay.io/x/y"]).success();
        let image = output.images()[0].clone();
        assert_eq!(
            image["image"],
            format!("quay.io/x/y@{}", image["digest"].as_str().expect("a digest"))
        );
        bed.copy(&place, text(&to), &["--all", "--name", "quay.io/x/y:v1"]).success();
        let digest = listed(&bed.imgfs, &place).into_iter().next().expect("one").1;
        let output = bed.imgfs.run(&["digest", "--from", &place, &digest]).success();
        assert_eq!(output.stdout.trim(), digest);
    }
    assert_tree_sound(&bed.path("to"));
}

#[test]
fn the_same_layer_twice() {
    let bed = Bed::new();
    let (one, id) = layer("etc/one");
    Archive::default()
        .file("a/layer.tar", &one)
        .link("b/layer.tar", "../a/layer.tar")
        .file("c/layer.tar", &one)
        .json("config.json", &config(&[&id, &id, &id]))
        .json(
            "manifest.json",
            &json!([saved(
                "config.json",
                &["app:1"],
                &["a/layer.tar", "b/layer.tar", "c/layer.tar"]
            )]),
        )
        .write(&bed.path("a.tar"));
    let place = bed.at("docker-archive", "a.tar");
    for to in
        [bed.at("oci", "layout"), bed.at("oci-archive", "b.tar"), bed.at("docker-archive", "c.tar")]
    {
        bed.copy(&place, &to, &["--all"]).success();
        bed.imgfs.run(&["verify", &to]).success();
        bed.copy(&to, text(&bed.path("to")), &["--all"]).success();
    }
    assert_tree_sound(&bed.path("to"));
    assert_eq!(tree::blobs(&bed.path("to")).len(), 2);
}

#[test]
fn several_names_of_one_digest_are_several_tags() {
    let bed = Bed::new();
    let image = single(8);
    let named = |name: &str| (&image, json!({"io.containerd.image.name": name}));
    oci(&image)
        .json(
            "index.json",
            &index(&[named("quay.io/x/y:1"), named("quay.io/x/y:latest"), named("ghcr.io/z:2")]),
        )
        .write(&bed.path("a.tar"));
    let place = bed.at("oci-archive", "a.tar");
    let target = bed.at("oci-archive", "b.tar");
    bed.copy(&place, &target, &["--all"]).success();
    let names: Vec<String> =
        listed(&bed.imgfs, &target).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["ghcr.io/z:2", "quay.io/x/y:1", "quay.io/x/y:latest"]);
    let manifest: Value =
        serde_json::from_slice(&member(&bed.path("b.tar"), "manifest.json")).expect("JSON");
    assert_eq!(manifest.as_array().map(Vec::len), Some(1));
    assert_eq!(
        manifest[0]["RepoTags"],
        json!(["ghcr.io/z:2", "quay.io/x/y:1", "quay.io/x/y:latest"])
    );
}

#[test]
fn doubled_blobs_sha256() {
    let bed = Bed::new();
    let image = single(6);
    let mut archive =
        Archive::default().dir("blobs/").dir("blobs/sha256/").dir("blobs/").dir("blobs/sha256/");
    for (header, name, content) in oci(&image).members {
        let name = name.replace("blobs/sha256/", "blobs/sha256/blobs/sha256/");
        archive.members.push((header, name, content));
    }
    archive
        .json(
            "index.json",
            &index(&[(&image, json!({"org.opencontainers.image.ref.name": "quay.io/x/y:1"}))]),
        )
        .write(&bed.path("a.tar"));
    let output =
        bed.copy(&bed.at("oci-archive", "a.tar"), text(&bed.path("to")), &["--all"]).success();
    assert_eq!(output.stderr, "", "directories are no members that count twice");
    assert_tree_sound(&bed.path("to"));
}

#[test]
fn of_duplicate_members_the_last_wins_with_a_warning() {
    let bed = Bed::new();
    let (wrong, _) = layer("etc/wrong");
    let mut archive = Archive::default().file("aaaa/layer.tar", wrong);
    archive.members.extend(classic().members);
    archive.write(&bed.path("a.tar"));
    let output =
        bed.copy(&bed.at("docker-archive", "a.tar"), text(&bed.path("to")), &["--all"]).success();
    assert!(
        output.stderr.contains("`aaaa/layer.tar` more than once; the last one counts"),
        "{output}"
    );
    assert_tree_sound(&bed.path("to"));
}

#[test]
fn each_diff_id_is_checked() {
    let bed = Bed::new();
    let ((one, one_id), (two, _)) = (layer("etc/one"), layer("etc/two"));
    for (name, stored, part) in [
        ("plain", two.clone(), "digest mismatch"),
        ("gzip", packed("gzip", &["-nc"], &two), "digest mismatch"),
        ("cut", packed("gzip", &["-nc"], &one)[..40].to_vec(), "ends"),
    ] {
        Archive::default()
            .file("layer.tar", stored)
            .json("config.json", &config(&[&one_id]))
            .json("manifest.json", &json!([saved("config.json", &["app:1"], &["layer.tar"])]))
            .write(&bed.path(name));
        let output = bed.copy(&bed.at("docker-archive", name), text(&bed.path("to")), &["--all"]);
        assert!(output.code() != 0 && output.stderr.contains(part), "{name}: {output}");
    }
    // Layers stay as they are stored.
    let stored = packed("gzip", &["-nc"], &one);
    Archive::default()
        .file("layer.tar", &stored)
        .json("config.json", &config(&[&one_id]))
        .json("manifest.json", &json!([saved("config.json", &["app:1"], &["layer.tar"])]))
        .write(&bed.path("good"));
    bed.copy(&bed.at("docker-archive", "good"), text(&bed.path("ok")), &["--all"]).success();
    assert!(tree::blobs(&bed.path("ok")).contains(&digest(&stored)));
    let short = saved("config.json", &["app:1"], &[]);
    classic().json("manifest.json", &json!([short])).write(&bed.path("short"));
    bed.copy(&bed.at("docker-archive", "short"), text(&bed.path("to")), &["--all"])
        .expect_code(2)
        .stderr_has("it lists 0 layers");
}

#[test]
fn a_damaged_layer_takes_no_other_image_with_it() {
    let bed = Bed::new();
    let (one, one_id) = layer("etc/one");
    // Of several files.
    let two = Archive::default().file("a", "a").file("b", "b").file("c", vec![7; 4000]).bytes();
    let good = packed("gzip", &["-nc"], &one);
    let mut damaged = packed("gzip", &["-nc"], &two);
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    let two_id = digest(&two);
    Archive::default()
        .file("good.tar.gz", &good)
        .file("bad.tar.gz", &damaged)
        .json("good.json", &config(&[&one_id]))
        .json("bad.json", &config(&[&one_id, &two_id]))
        .json("other.json", &config(&[&two_id]))
        .json(
            "manifest.json",
            &json!([
                saved("bad.json", &["bad:1"], &["good.tar.gz", "bad.tar.gz"]),
                saved("other.json", &["other:1"], &["good.tar.gz"]),
                saved("good.json", &["good:1"], &["good.tar.gz"]),
            ]),
        )
        .write(&bed.path("saved"));
    let place = bed.at("docker-archive", "saved");
    let of = |name: &str| format!("docker.io/library/{name}:1");
    // All are listed, with what is wrong.
    let output = bed.imgfs.run(&["ls", "--json", &place]).expect_code(1);
    let is_whole = |name: &str| output.image(&of(name))["complete"] == true;
    assert!(is_whole("good") && !is_whole("bad") && !is_whole("other"), "{output}");
    let to = text(&bed.path("to")).to_owned();
    bed.copy(&place, &to, &[&of("good")]).success();
    let output = bed.copy(&place, &to, &[&of("bad")]).expect_code(1);
    assert!(output.stderr.contains("reading the layer bad.tar.gz"), "{output}");
    assert!(!output.stderr.contains("more than"), "{output}");
    let output = bed.copy(&place, &to, &[&of("other")]).expect_code(1);
    assert!(output.stderr.contains("reading the layer good.tar.gz"), "{output}");
    assert!(output.stderr.contains("digest mismatch"), "{output}");
    bed.imgfs.run(&["verify", &place]).expect_code(1);
    assert_tree_sound(&bed.path("to"));
}

#[test]
fn what_is_cut_off_or_old_is_told() {
    let bed = Bed::new();
    let bytes = classic().bytes();
    fs::write(bed.path("cut"), &bytes[..bytes.len() / 2]).expect("writing");
    bed.copy(text(&bed.path("cut")), text(&bed.path("to")), &["--all"]).expect_code(2);
    let zipped = packed("gzip", &["-c"], &bytes);
    fs::write(bed.path("cut.gz"), &zipped[..zipped.len() - 20]).expect("writing");
    bed.copy(text(&bed.path("cut.gz")), text(&bed.path("to")), &["--all"]).expect_code(2);
    Archive::default().json("repositories", &json!({})).write(&bed.path("old"));
    bed.copy(text(&bed.path("old")), text(&bed.path("to")), &["--all"])
        .expect_code(2)
        .stderr_has("before 1.10");
    assert!(!bed.path("to").exists());
    bed.copy("oci-archive:no-such-file", text(&bed.path("to")), &["--all"])
        .expect_code(2)
        .stderr_has("No such file");
}

/// The content of a member of an archive.
pub(crate) fn member(path: &Path, name: &str) -> Vec<u8> {
    let mut archive = tar::Archive::new(File::open(path).expect("opening"));
    for entry in archive.entries().expect("reading") {
        let mut entry = entry.expect("reading");
        if entry.path().expect("a name").as_os_str() == name {
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content).expect("reading");
            return content;
        }
    }
    panic!("{} has no {name}", path.display());
}

#[test]
fn what_is_written_is_sorted_nobodys_and_always_the_same() {
    let bed = Bed::new();
    let (from, ..) = bed.images();
    let (a, b) = (bed.at("oci-archive", "a.tar"), bed.at("oci-archive", "b.tar"));
    bed.copy(&from, &a, &["quay.io/team/app:v1", "quay.io/team/other:v2"]).success();
    bed.copy(&from, &b, &["quay.io/team/other:v2", "quay.io/team/app:v1"]).success();
    assert_eq!(
        fs::read(bed.path("a.tar")).expect("reading"),
        fs::read(bed.path("b.tar")).expect("reading")
    );
    let again = bed.at("oci-archive", "again.tar");
    bed.copy(&a, &again, &["--all"]).success();
    assert_eq!(
        fs::read(bed.path("a.tar")).expect("reading"),
        fs::read(bed.path("again.tar")).expect("reading")
    );

    let mut archive = tar::Archive::new(File::open(bed.path("a.tar")).expect("opening"));
    let mut names = Vec::new();
    for entry in archive.entries().expect("reading") {
        let entry = entry.expect("reading");
        let header = entry.header();
        assert_eq!((header.mtime().expect("a time"), header.uid().expect("an owner")), (1, 0));
        assert_eq!(header.gid().expect("a group"), 0);
        names.push(entry.path().expect("a name").display().to_string());
    }
    let mut sorted = names.clone();
    sorted.sort();
    assert_eq!(names, sorted);
    assert_eq!(names.iter().filter(|name| *name == "manifest.json").count(), 1);
    assert!(names.iter().any(|name| name == "oci-layout"));
    assert_eq!(
        fs::read_dir(bed.path("")).expect("listing").count(),
        4,
        "no temporary file is left"
    );
}

#[test]
fn archives_go_through_pipes() {
    let bed = Bed::new();
    let (from, app, other) = bed.images();
    let to = bed.path("to");
    let script = format!(
        "set -o pipefail; \"$IMGFS\" copy --from '{from}' --to oci-archive:- --all | tee '{}' | \"$IMGFS\" copy --from oci-archive:- --to '{}' --all",
        bed.path("tee.tar").display(),
        to.display()
    );
    let output = Command::new("bash")
        .args(["-c", &script])
        .env("IMGFS", env!("CARGO_BIN_EXE_imgfs"))
        .env("HOME", bed.imgfs.home())
        .output()
        .expect("starting a shell");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_tree_sound(&to);
    assert_eq!(tree::blobs(&to).len(), app.blobs.len() + other.blobs.len());
    // What goes into a pipe is the archive and nothing else.
    bed.copy(&from, &bed.at("oci-archive", "file.tar"), &["--all"]).success();
    assert_eq!(
        fs::read(bed.path("tee.tar")).expect("reading"),
        fs::read(bed.path("file.tar")).expect("reading")
    );
    // A file on standard input is read in place.
    let stdin = File::open(bed.path("file.tar")).expect("opening");
    let output = Command::new(env!("CARGO_BIN_EXE_imgfs"))
        .args(["ls", "--json", "docker-archive:-"])
        .env("HOME", bed.imgfs.home())
        .env("TMPDIR", "/nowhere")
        .stdin(stdin)
        .output()
        .expect("starting");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_reader_that_goes_away_is_a_failure() {
    let bed = Bed::new();
    let image = Image::new().layer(3, 3_000_000).build();
    tree::kubekey_g1(&bed.path("images"), "quay.io", "x/y", "1", &image);
    let script = format!(
        "\"$IMGFS\" copy --from '{}' --to oci-archive:- --all | head -c 100 > /dev/null; exit ${{PIPESTATUS[0]}}",
        bed.path("images").display()
    );
    let output = Command::new("bash")
        .args(["-c", &script])
        .env("IMGFS", env!("CARGO_BIN_EXE_imgfs"))
        .env("HOME", bed.imgfs.home())
        .output()
        .expect("starting a shell");
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Bytes that a process has read from files, as the kernel counts them.
#[test]
fn looking_into_an_image_of_a_large_archive_reads_little_of_it() {
    require!(Strace);
    let bed = Bed::new();
    let large = Image::new().layer(1, 60_000_000).layer_gzip_tar(&[("etc/x", b"small")]).build();
    let path = bed.path("layout");
    large.write_oci_layout(&path, "quay.io/x/y:1");
    bed.copy(&bed.at("oci", "layout"), &bed.at("oci-archive", "a.tar"), &["--all"]).success();
    let image = "quay.io/x/y:1";
    let archive = text(&bed.path("a.tar")).to_owned();
    let output = bed.imgfs.run(&["inspect", "--from", &archive, image]).success();
    assert!(output.stdout.contains("linux/amd64"), "{output}");
    let trace = bed.path("trace");
    let done = Command::new(crate::support::process::program("strace"))
        .args(["-f", "-e", "trace=read,pread64", "-o", text(&trace), env!("CARGO_BIN_EXE_imgfs")])
        .args(["ls", &archive])
        .env("HOME", bed.imgfs.home())
        .output()
        .expect("starting strace");
    assert!(done.status.success());
    let read: u64 = fs::read_to_string(&trace)
        .expect("reading")
        .lines()
        .filter_map(|line| line.rsplit_once("= ")?.1.trim().parse::<u64>().ok())
        .sum();
    assert!(read < 5 << 20, "{read} bytes were read");
}

#[test]
fn an_image_that_fails_is_not_in_the_archive() {
    let bed = Bed::new();
    let (from, app, other) = bed.images();
    let layer = other.layers()[0].clone();
    tree::flip_byte_quietly(&Path::new(&from).join("blobs").join(&layer), 7);
    let place = bed.at("oci-archive", "a.tar");
    let output = bed.copy(&from, &place, &["--all"]).expect_code(1);
    assert!(output.stderr.contains("digest mismatch"), "{output}");
    let expected: BTreeMap<String, String> =
        [("quay.io/team/app:v1".to_owned(), app.digest().to_owned())].into();
    assert_eq!(listed(&bed.imgfs, &place).into_iter().collect::<BTreeMap<_, _>>(), expected);
    bed.imgfs.run(&["verify", &place]).success();
}
