//! Registries to an `images_dir` when nothing goes wrong.

use crate::support::cli::Imgfs;
use crate::support::hostile::{Access, Fault, Hostile, Match};
use crate::support::image::{
    Artifact, Built, Image, Index, OCI_INDEX, Receiver as _, application, cosign_signature,
    digest_tag, push_referrers_with_fallback_tag,
};
use crate::support::registry::Registry;
use crate::support::tree::{self, assert_modes_and_times, assert_tree_sound};
use crate::support::{content, scale, skopeo, text};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn manifests(imgfs: &Imgfs, image: &str) -> PathBuf {
    imgfs.images_dir().join(image).join("manifests")
}

fn read_json(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).expect("a manifest is JSON")
}

fn platforms_of(index: &Value) -> BTreeSet<String> {
    let children = index["manifests"].as_array().expect("an index");
    children
        .iter()
        .map(|child| {
            let part = |key: &str| child["platform"][key].as_str().unwrap_or_default().to_owned();
            format!("{}/{}/{}", part("os"), part("architecture"), part("variant"))
                .trim_end_matches('/')
                .to_owned()
        })
        .collect()
}

#[test]
fn an_image_arrives_whole_and_skopeo_agrees() {
    let registry = Registry::plain();
    let index = application();
    let layout = tempfile::tempdir().expect("making a temporary directory");
    index.write_oci_layout(layout.path(), "1");
    let source = format!("{}/team/app:1", registry.host());
    skopeo::push_oci_layout(layout.path(), "1", &source);

    let imgfs = Imgfs::scratch();
    let output = imgfs.pull(&[&source]).success();
    let entry = output.image(&source);
    assert_eq!(entry["status"], "pulled");
    assert_eq!(entry["digest"], index.digest());
    assert_eq!(output.number("fetched_blobs"), index.blobs.len() as u64);
    assert_eq!(output.number("fetched_bytes"), index.blob_bytes());
    assert_tree_sound(imgfs.images_dir());
    assert_modes_and_times(imgfs.images_dir());
    let known: BTreeSet<String> = index.blobs.keys().cloned().collect();
    assert_eq!(tree::blobs(imgfs.images_dir()), known);

    // Another program reads what was written, through another registry.
    let other = Registry::plain();
    let host = registry.host();
    let image = format!("{host}/team/app");
    tree::push_from_tree(imgfs.images_dir(), &image, "1", &other, "copy/app", "1");
    let copy = format!("{}/copy/app:1", other.host());
    assert_eq!(skopeo::fetch(&copy), skopeo::fetch(&source));
    assert_eq!(content::digest(&skopeo::raw_manifest(&copy)), index.digest());
}

#[test]
fn a_second_run_moves_nothing_and_asks_little() {
    let registry = Registry::plain();
    let names: Vec<String> = (0..12)
        .map(|number| {
            let image = Image::new().layer(1, 20_000).layer(100 + number, 5000).build();
            let repository = format!("team/app-{number}");
            image.push_to(&registry, &repository, "1");
            format!("{}/{repository}:1", registry.host())
        })
        .collect();
    let imgfs = Imgfs::scratch();
    let first = imgfs.pull(&names).success();
    let blobs: Vec<_> = registry.requests();
    let gets = blobs.iter().filter(|entry| entry.is_blob_get()).count();
    assert_eq!(gets, 25, "12 configs, 12 layers and one that all share");
    assert_eq!(first.number("fetched_blobs"), 25);
    let before = tree::snapshot(imgfs.images_dir());

    registry.forget_requests();
    let second = imgfs.pull(&names).success();
    let requests = registry.requests();
    assert!(requests.len() <= 24, "{} requests: {requests:?}", requests.len());
    assert!(!requests.iter().any(|entry| entry.path.contains("/blobs/")), "{requests:?}");
    assert_eq!(second.number("fetched_bytes"), 0);
    assert!(second.images().iter().all(|image| image["status"] == "unchanged"));
    assert_eq!(tree::snapshot(imgfs.images_dir()), before);
}

#[test]
fn everything_that_registries_hold_is_carried_bit_for_bit() {
    let hostile = Hostile::start();
    let amd64 = Image::new().layer(1, 3000).build();
    let many = (0..200).fold(Image::new(), |image, seed| image.layer(1000 + seed, 50));
    let windows = Image::new()
        .platform("windows/amd64")
        .os_version("10.0.17763.1")
        .layer_raw("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", b"foreign");
    let mut cases = vec![
        ("docker", Image::new().docker().layer(2, 3000).build()),
        (
            "list",
            Index::new().docker().child(&Image::new().docker().layer(2, 3000).build()).build(),
        ),
        ("bare", Image::new().without_media_type().layer(3, 10).build()),
        ("bare-index", Index::new().without_media_type().child(&amd64).build()),
        ("zstd", Image::new().layer_zstd(&[("a", b"zstd")]).build()),
        ("empty-layer", Image::new().empty_layer().zero_byte_layer().build()),
        ("no-layers", Image::new().build()),
        ("many-layers", many.build()),
        ("windows", windows.build()),
        ("nested", Index::new().child(&application()).child(&amd64).build()),
        ("empty-index", Index::new().build()),
        (
            "helm",
            Artifact::with_config("application/vnd.cncf.helm.config.v1+json", b"{\"name\":\"x\"}")
                .blob("application/vnd.cncf.helm.chart.content.v1.tar+gzip", b"chart")
                .build(),
        ),
        (
            "artifact",
            Artifact::new("application/x.unheard-of")
                .blob("application/x.unheard-of", b"payload")
                .annotation("a", "b")
                .build(),
        ),
    ];
    // Same layer twice in one image, and a layer that is also another image's.
    cases.push(("twice", Image::new().layer(1, 3000).layer(1, 3000).build()));
    let names: Vec<String> = cases
        .iter()
        .map(|(repository, image)| {
            image.push_to(&hostile, repository, "v1");
            format!("{}/{repository}:v1", hostile.host())
        })
        .collect();
    let imgfs = Imgfs::scratch();
    let output = imgfs.pull(&names).success();
    assert_tree_sound(imgfs.images_dir());
    for ((repository, image), name) in cases.iter().zip(&names) {
        assert_eq!(output.image(name)["digest"], image.digest(), "{repository}");
        let directory = manifests(&imgfs, &format!("{}/{repository}", hostile.host()));
        let stored = std::fs::read(directory.join("v1")).expect("the tag's file");
        assert_eq!(stored, image.root().bytes, "{repository}");
        for child in &image.manifests[..image.manifests.len() - 1] {
            let stored = std::fs::read(directory.join(&child.digest)).expect("a child's file");
            assert_eq!(stored, child.bytes, "{repository}");
        }
    }
    for (digest, sent) in hostile.blob_bytes_sent() {
        let size = cases.iter().find_map(|(_, image)| image.blobs.get(&digest));
        assert_eq!(
            Some(sent),
            size.map(crate::support::image::Blob::size),
            "{digest} was fetched once"
        );
    }
}

/// An image with a layer that is at `urls` only.
fn foreign(urls: &[&str]) -> (Built, String) {
    let kind = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let mut image = Image::new().layer_raw(kind, b"foreign").build();
    let mut manifest = image.json();
    manifest["layers"][0]["urls"] = json!(urls);
    let root = image.manifests.last_mut().expect("a root");
    root.bytes = manifest.to_string().into_bytes();
    root.digest = content::digest(&root.bytes);
    let layer = image.layers().remove(0);
    (image, layer)
}

#[test]
fn foreign_layers_come_from_their_urls() {
    let (registry, maker) = (Hostile::start(), Hostile::start());
    let digest = content::digest(b"foreign");
    let at_maker = format!("http://{}/v2/far/blobs/{digest}", maker.host());
    let nowhere = "http://localhost:1/layer";
    let (image, layer) = foreign(&["nonsense", "ftp://ftp.example/x", nowhere, &at_maker]);
    image.push_to(&registry, "app", "1");
    image.push_to(&maker, "far", "1");
    registry.remove_blob(&layer);
    let name = format!("{}/app:1", registry.host());
    let imgfs = Imgfs::scratch();
    imgfs.pull(&[&name]).success();
    assert_tree_sound(imgfs.images_dir());
    assert_eq!(maker.blob_gets().len(), 1);
    // What has been asked is told when none has it.
    maker.remove_blob(&layer);
    let failed = Imgfs::scratch().pull(&[&name]).expect_code(1);
    let failed = failed.stderr_has("urls").stderr_has("is none").stderr_has("`ftp:`");
    failed.stderr_has("localhost").stderr_has("not found");
}

#[test]
fn what_a_manifest_has_in_it_need_not_be_at_the_registry() {
    let (registry, target) = (Hostile::start(), Hostile::start());
    let mut chart = Artifact::with_config("application/vnd.oci.empty.v1+json", b"{}")
        .blob("text/plain", b"chart")
        .build();
    let mut manifest = chart.json();
    manifest["config"]["data"] = json!("e30=");
    let root = chart.manifests.last_mut().expect("a root");
    root.bytes = manifest.to_string().into_bytes();
    root.digest = content::digest(&root.bytes);
    chart.push_to(&registry, "chart", "1");
    registry.remove_blob(&content::digest(b"{}"));
    let name = format!("{}/chart:1", registry.host());
    let imgfs = Imgfs::scratch();
    imgfs.pull(&[&name]).success();
    assert_tree_sound(imgfs.images_dir());
    let places = [registry.url(), target.url()].map(|url| url.replace("http://", "registry://"));
    imgfs.copy(&["--from", &places[0], "--to", &places[1], "chart:1"]).success();
    target.assert_complete();
    assert!(target.blob("chart", &content::digest(b"{}")).is_some());
}

#[test]
fn a_big_layer_needs_little_memory() {
    let size = scale(64 << 20, 300 << 20) as u64;
    let hostile = Hostile::start();
    Image::new().layer(9, size).build().push_to(&hostile, "big", "1");
    let imgfs = Imgfs::scratch();
    let output = imgfs.pull(&[format!("{}/big:1", hostile.host())]).success();
    assert!(output.number("fetched_bytes") > size);
    assert_tree_sound(imgfs.images_dir());
    let peak = output.peak_rss.expect("the run was long enough to be looked at");
    assert!(peak <= 24 << 20, "peak of memory {} MiB", peak >> 20);
}

#[test]
fn a_blob_is_fetched_once_however_many_images_share_it() {
    let hostile = Hostile::start();
    let names: Vec<String> = (0..8)
        .map(|number| {
            let image =
                Image::new().layer(1, 50_000).layer(2, 50_000).annotation("n", &number.to_string());
            let repository = format!("r{number}");
            image.build().push_to(&hostile, &repository, "1");
            format!("{}/{repository}:1", hostile.host())
        })
        .collect();
    let imgfs = Imgfs::scratch();
    let output = imgfs.pull(&names).success();
    assert_eq!(output.number("fetched_blobs"), 3);
    assert_eq!(hostile.blob_bytes_sent().values().sum::<u64>(), output.number("fetched_bytes"));
    assert_tree_sound(imgfs.images_dir());
}

#[test]
fn references_are_understood_in_all_their_forms() {
    let hostile = Hostile::start();
    let image = Image::new().layer(1, 100).build();
    for tag in ["latest", "1.25"] {
        image.push_to(&hostile, "a/b", tag);
    }
    let host = hostile.host();
    let digest = image.digest();
    let cases = [
        (format!("{host}/a/b"), "latest"),
        (format!("{host}/a/b:latest"), "latest"),
        (format!("{host}/a/b:1.25"), "1.25"),
        (format!("{host}/a/b@{digest}"), digest),
        (format!("{host}/a/b:{digest}"), digest),
        (format!("{host}/a/b:1.25@{digest}"), digest),
    ];
    for (given, file) in cases {
        let imgfs = Imgfs::scratch();
        let output = imgfs.pull(&[&given]).success();
        assert_eq!(output.images().len(), 1, "{output}");
        assert_eq!(output.images()[0]["digest"], digest);
        let path = manifests(&imgfs, &format!("{host}/a/b")).join(file);
        let stored =
            std::fs::read(&path).unwrap_or_else(|error| panic!("{given}: {error}\n{output}"));
        assert_eq!(stored, image.root().bytes);
        assert_tree_sound(imgfs.images_dir());
    }
    // Without --images-dir: the environment, then ./images.
    let imgfs = Imgfs::scratch();
    imgfs.run(&["pull", "--plain-http", &format!("{host}/a/b")]).success();
    assert_tree_sound(&imgfs.home().join("images"));
    assert!(imgfs.home().join("images").join(&host).is_dir());
    let elsewhere = imgfs.home().join("elsewhere");
    let imgfs = imgfs.env("IMGFS_IMAGES_DIR", &elsewhere);
    imgfs.run(&["pull", "--plain-http", &format!("{host}/a/b")]).success();
    assert!(elsewhere.join(&host).is_dir());
}

#[test]
fn a_digest_that_does_not_match_the_tag_wins() {
    let hostile = Hostile::start();
    let (old, new) = (Image::new().layer(1, 10).build(), Image::new().layer(2, 10).build());
    old.push_to(&hostile, "a", "1");
    new.push_to(&hostile, "a", "1");
    let imgfs = Imgfs::scratch();
    let output = imgfs.pull(&[format!("{}/a:1@{}", hostile.host(), old.digest())]).success();
    assert_eq!(output.images()[0]["digest"], old.digest());
    let stored = manifests(&imgfs, &format!("{}/a", hostile.host())).join(old.digest());
    assert!(stored.is_file());
}

#[test]
fn lists_come_from_files_and_from_stdin() {
    let hostile = Hostile::start();
    let image = Image::new().layer(1, 10).build();
    for name in ["a", "b", "c"] {
        image.push_to(&hostile, name, "1");
    }
    let host = hostile.host();
    let imgfs = Imgfs::scratch();
    let list = imgfs.home().join("list.txt");
    let lines = format!("# what we need\n\n{host}/a:1\n  {host}/b:1  # beside it\n{host}/a:1\n");
    std::fs::write(&list, &lines).expect("writing");
    let list = text(&list);
    let output = imgfs.pull(&["--file", list, &format!("{host}/c:1")]).success();
    let names: BTreeSet<String> = output
        .images()
        .iter()
        .map(|image| image["image"].as_str().unwrap_or_default().to_owned())
        .collect();
    let expected = ["a", "b", "c"].map(|name| format!("{host}/{name}:1"));
    assert_eq!(names, expected.into());

    let imgfs = Imgfs::scratch().stdin(&lines);
    let output = imgfs.pull(&["--file", "-"]).success();
    assert_eq!(output.images().len(), 2);

    // Nothing in it is nothing done, and that is never silent.
    let imgfs = Imgfs::scratch().stdin("# nothing\n");
    let output = imgfs.pull(&["--file", "-"]).expect_code(3);
    assert!(!output.stderr.is_empty(), "{output}");
}

#[test]
fn a_platform_filter_writes_an_index_of_what_was_chosen() {
    let hostile = Hostile::start();
    let index = application();
    index.push_to(&hostile, "app", "1");
    let name = format!("{}/app:1", hostile.host());
    let imgfs = Imgfs::scratch();
    let output = imgfs.pull(&[&name, "--platform", "linux/arm64", "--platform", "linux/arm/v7"]);
    let output = output.success();
    let path = manifests(&imgfs, &format!("{}/app", hostile.host())).join("1");
    let stored = read_json(&path);
    let expected = ["linux/arm64/v8", "linux/arm/v7", "unknown/unknown"].map(str::to_owned);
    assert_eq!(platforms_of(&stored), expected.into());
    let kept = stored["manifests"].as_array().expect("an index").len();
    assert_eq!(kept, 4, "two images and their two attestations");
    let annotations = &stored["annotations"];
    assert_eq!(annotations["io.imgfs.original.digest"], index.digest());
    assert_eq!(annotations["org.opencontainers.image.title"], "application");
    let entry = output.image(&name);
    let new_digest = tree::digest_of_file(&path);
    assert_eq!(entry["digest"], new_digest);
    assert_ne!(entry["digest"], index.digest());
    assert_eq!(entry["original_digest"], index.digest());
    assert_tree_sound(imgfs.images_dir());
    // The unwanted image's own layer is not there.
    let amd64: Built = Image::new().layer_gzip_tar(&[("app", b"linux/amd64")]).build();
    assert!(!tree::blobs(imgfs.images_dir()).contains(&amd64.layers()[0]));

    // The same again changes nothing, and the digest does not depend on when it was made.
    let before = tree::snapshot(imgfs.images_dir());
    let again = imgfs.pull(&[&name, "--platform", "arm64", "--platform", "linux/arm/v7"]).success();
    assert_eq!(again.image(&name)["digest"], new_digest);
    assert_eq!(again.number("fetched_bytes"), 0);
    assert_eq!(tree::snapshot(imgfs.images_dir()), before);
}

#[test]
fn a_platform_filter_can_keep_the_index_as_it_was() {
    let hostile = Hostile::start();
    let index = application();
    index.push_to(&hostile, "app", "1");
    let name = format!("{}/app:1", hostile.host());
    let imgfs = Imgfs::scratch();
    let output = imgfs.pull(&[&name, "--platform", "linux/amd64", "--index", "keep"]).success();
    assert_eq!(output.image(&name)["digest"], index.digest());
    let directory = manifests(&imgfs, &format!("{}/app", hostile.host()));
    let stored = std::fs::read(directory.join("1")).expect("the tag's file");
    assert_eq!(stored, index.root().bytes);
    assert!(directory.join(&index.manifests[0].digest).is_file());
    assert!(!directory.join(&index.manifests[1].digest).exists());
    tree::assert_sparse_tree_sound(imgfs.images_dir());
    // Not all is there, and that is as it was wanted.
    imgfs.verify().success();

    for all in ["all", "*"] {
        let imgfs = Imgfs::scratch();
        let output = imgfs.pull(&[&name, "--platform", all]).success();
        assert_eq!(output.image(&name)["digest"], index.digest());
        assert_tree_sound(imgfs.images_dir());
    }
}

#[test]
fn a_missing_platform_is_an_error_or_a_warning_as_the_policy_says() {
    let hostile = Hostile::start();
    application().push_to(&hostile, "app", "1");
    Image::new().platform("linux/arm64").layer(1, 10).build().push_to(&hostile, "single", "1");
    let app = format!("{}/app:1", hostile.host());
    let single = format!("{}/single:1", hostile.host());
    let wanted = ["--platform", "linux/amd64", "--platform", "linux/s390x"];

    let imgfs = Imgfs::scratch();
    let output = imgfs.pull(&[&[app.as_str()], &wanted[..]].concat()).expect_code(1);
    assert_eq!(output.image(&app)["status"], "failed");
    output.stderr_has("linux/s390x");
    assert!(hostile.blob_gets().is_empty(), "refused before a byte moves");

    let warn = ["--policy", "warn"];
    let output = imgfs.pull(&[&[app.as_str()], &wanted[..], &warn[..]].concat()).success();
    let entry = output.image(&app);
    assert_eq!(entry["status"], "pulled");
    assert!(entry["warnings"].to_string().contains("linux/s390x"), "{entry}");
    assert_tree_sound(imgfs.images_dir());

    // An image for one platform is held against its config.
    let output = imgfs.pull(&[&single, "--platform", "linux/amd64"]).expect_code(1);
    output.stderr_has("linux/amd64");
    imgfs.pull(&[&single, "--platform", "arm64"]).success();

    // Nothing at all is right for s390x: with a warning that is a skip, and a skip has its own status.
    let output =
        imgfs.pull(&[&app, "--platform", "linux/s390x", "--policy", "warn"]).expect_code(3);
    assert_eq!(output.image(&app)["status"], "skipped");
}

#[test]
fn what_is_attached_to_an_image_comes_with_it() {
    for with_api in [false, true] {
        let hostile = Hostile::start();
        let index = application();
        index.push_to(&hostile, "app", "1");
        let signature = cosign_signature(&index);
        signature.push_to(&hostile, "app", &digest_tag(index.digest(), ".sig"));
        let sbom = Artifact::new("application/spdx+json")
            .blob("application/spdx+json", b"{\"spdx\":1}")
            .subject(&index)
            .build();
        if with_api {
            hostile.set_referrers_api(true);
            sbom.push_by_digest(&hostile, "app");
        } else {
            push_referrers_with_fallback_tag(&hostile, "app", index.digest(), &[&sbom]);
        }
        let name = format!("{}/app:1", hostile.host());
        let imgfs = Imgfs::scratch();
        let output = imgfs.pull(&[name.as_str(), "--referrers"]).success();
        let directory = manifests(&imgfs, &format!("{}/app", hostile.host()));
        let stored = std::fs::read(directory.join(digest_tag(index.digest(), ".sig")));
        assert_eq!(stored.ok(), Some(signature.root().bytes.clone()), "{output}");
        let stored = std::fs::read(directory.join(sbom.digest()));
        assert_eq!(stored.ok(), Some(sbom.root().bytes.clone()), "{output}");
        assert!(tree::blobs(imgfs.images_dir()).contains(&sbom.layers()[0]));
        let attached = output.image(&name)["attached"].to_string();
        assert!(attached.contains(&digest_tag(index.digest(), ".sig")), "{attached}");
        assert_tree_sound(imgfs.images_dir());
        // Whatever is attached is in use.
        assert_eq!(imgfs.prune().success().report()["removed"], json!([]));

        let imgfs = Imgfs::scratch();
        imgfs.pull(&[name.as_str(), "--referrers=false"]).success();
        let directory = manifests(&imgfs, &format!("{}/app", hostile.host()));
        assert!(!directory.join(digest_tag(index.digest(), ".sig")).exists());
        assert!(!directory.join(sbom.digest()).exists());
    }
}

#[test]
fn one_image_that_fails_does_not_stop_the_others() {
    let hostile = Hostile::start();
    let image = |seed| Image::new().layer(seed, 1000).build();
    for seed in 1..=3 {
        image(seed).push_to(&hostile, &format!("r{seed}"), "1");
    }
    hostile.remove_blob(&image(2).layers()[0]);
    let host = hostile.host();
    let names = ["r1:1", "r2:1", "nothing:1", "r3:1"].map(|name| format!("{host}/{name}"));
    let imgfs = Imgfs::scratch();
    let output = imgfs.pull(&names).expect_code(1);
    let statuses = names.clone().map(|name| output.image(&name)["status"].clone());
    assert_eq!(statuses, ["pulled", "failed", "failed", "pulled"].map(Value::from));
    let error = output.image(&names[1])["error"].to_string();
    assert!(error.contains(&image(2).layers()[0]), "{error}");
    output.stderr_has("r2").stderr_has("nothing");
    assert_tree_sound(imgfs.images_dir());
    assert!(!manifests(&imgfs, &format!("{host}/r2")).join("1").exists());

    image(2).push_to(&hostile, "r2", "1");
    image(2).push_to(&hostile, "nothing", "1");
    imgfs.pull(&names).success();
    assert_tree_sound(imgfs.images_dir());
}

#[test]
fn a_dry_run_says_what_it_would_do_and_does_nothing() {
    let hostile = Hostile::start();
    let index = application();
    index.push_to(&hostile, "app", "1");
    let name = format!("{}/app:1", hostile.host());
    let imgfs = Imgfs::scratch();
    let output = imgfs.pull(&[name.as_str(), "--dry-run"]).success();
    let entry = output.image(&name);
    assert_eq!(entry["status"], "planned");
    assert!(entry["bytes"].as_u64() >= Some(index.blob_bytes()), "{output}");
    assert!(hostile.blob_gets().is_empty());
    let left = tree::everything_under(imgfs.images_dir());
    assert!(!left.iter().any(|path| path.is_file()), "{left:?}");
}

#[test]
fn a_tag_that_moves_is_followed_and_rsync_can_see_it() {
    let hostile = Hostile::start();
    let [one, two] = [1, 2].map(|seed| Image::new().layer(seed, 1000).build());
    assert_eq!(one.root().bytes.len(), two.root().bytes.len());
    let name = format!("{}/app:1", hostile.host());
    let imgfs = Imgfs::scratch();
    let tag = manifests(&imgfs, &format!("{}/app", hostile.host())).join("1");
    let look = || {
        let relative = tag.strip_prefix(imgfs.images_dir()).expect("inside");
        tree::snapshot(imgfs.images_dir())[&*relative.to_string_lossy()].clone()
    };
    one.push_to(&hostile, "app", "1");
    imgfs.pull(&[&name]).success();
    let first = look();
    two.push_to(&hostile, "app", "1");
    let output = imgfs.pull(&[&name]).success();
    assert_eq!(output.image(&name)["status"], "pulled");
    let second = look();
    assert_eq!(second.digest, two.digest());
    assert_eq!(first.size, second.size);
    assert_ne!(first.mtime, second.mtime);
    one.push_to(&hostile, "app", "1");
    imgfs.pull(&[&name]).success();
    assert_eq!(look(), first, "the time depends on the digest alone");
    assert_tree_sound(imgfs.images_dir());
    // The second one's manifest was replaced, not kept: its own blobs are what prune finds.
    let removed = imgfs.prune().success().report()["removed"].to_string();
    assert!(removed.contains(&two.layers()[0]), "{removed}");
    assert!(!removed.contains(&one.layers()[0]), "{removed}");
    assert_tree_sound(imgfs.images_dir());
    assert_eq!(tree::blobs(imgfs.images_dir()), tree::referenced_blobs(imgfs.images_dir()));
}

#[test]
fn kubekey_layouts_are_what_kubekey_reads() {
    let hostile = Hostile::start();
    let index = application();
    index.push_to(&hostile, "team/app", "v1");
    let host = hostile.host();
    let name = format!("{host}/team/app:v1");

    let imgfs = Imgfs::scratch();
    imgfs.pull(&[name.as_str(), "--layout", "kubekey"]).success();
    let expected = Imgfs::scratch();
    tree::kubekey_g2(expected.images_dir(), &host, "team/app", "v1", &index);
    assert_same_files(imgfs.images_dir(), expected.images_dir());
    // A later pull stays with what the tree has.
    index.push_to(&hostile, "team/app", "v2");
    imgfs.pull(&[format!("{host}/team/app:v2")]).success();
    let map = tree::layout(&manifests(&imgfs, &format!("{host}/team/app")));
    assert_eq!(map.keys().collect::<Vec<_>>(), ["v1", "v2"]);
    assert_tree_sound(imgfs.images_dir());
    let listed = imgfs.ls().success();
    assert_eq!(listed.image(&name)["complete"], true);

    let imgfs = Imgfs::scratch();
    imgfs.pull(&[name.as_str(), "--layout", "kubekey-4.0.3"]).success();
    let expected = Imgfs::scratch();
    tree::kubekey_g1(expected.images_dir(), &host, "team/app", "v1", &index);
    assert_same_files(imgfs.images_dir(), expected.images_dir());
    index.push_to(&hostile, "team/app", "v2");
    imgfs.pull(&[format!("{host}/team/app:v2")]).success();
    assert!(manifests(&imgfs, &format!("{host}/team/app")).join("v2").is_file());
}

/// The same paths with the same bytes; modes and times may differ.
#[track_caller]
fn assert_same_files(left: &Path, right: &Path) {
    let bytes = |dir: &Path| {
        let looks = tree::snapshot(dir).into_iter();
        let files = looks.filter(|(_, look)| !look.digest.is_empty());
        files.map(|(path, look)| (path, look.digest)).collect::<Vec<_>>()
    };
    assert_eq!(bytes(left), bytes(right));
}

#[test]
fn a_broken_download_goes_on_where_it_stopped() {
    let hostile = Hostile::start();
    let image = Image::new().layer(1, 4_000_000).build();
    image.push_to(&hostile, "app", "1");
    let layer = image.layers()[0].clone();
    hostile.on(Match::get(&layer).nth(1)).fault(Fault::TruncateAt(3_000_000));
    let imgfs = Imgfs::scratch();
    let output = imgfs.pull(&[format!("{}/app:1", hostile.host())]).success();
    let gets: Vec<_> =
        hostile.blob_gets().into_iter().filter(|get| get.digest() == layer).collect();
    assert_eq!(gets.len(), 2, "{gets:?}");
    assert_eq!((gets[1].range_start(), gets[1].sent), (3_000_000, 1_000_000));
    assert!(output.number("retries") >= 1);
    assert_tree_sound(imgfs.images_dir());
}

#[test]
fn a_redirect_is_used_again_and_asked_for_again_when_it_has_expired() {
    let (hostile, storage) = (Hostile::with_access(Access::basic()), Hostile::start());
    let image = Image::new().layer(1, 1_000_000).layer(2, 1_000_000).build();
    image.push_to(&hostile, "app", "1");
    hostile.redirect_blobs_to(&storage, 1);
    // The second request for a blob's rest finds the address used up.
    storage.on(Match::get(&image.layers()[0]).nth(1)).fault(Fault::TruncateAt(400_000));
    let imgfs = Imgfs::scratch().stdin("secret");
    let name = format!("{}/app:1", hostile.host());
    imgfs.pull(&[&name, "--username", "bed", "--password-stdin"]).success();
    assert_tree_sound(imgfs.images_dir());
    assert!(storage.log().iter().all(|served| served.authorization.is_none()));
    let sent = storage.blob_bytes_sent();
    assert_eq!(sent[&image.layers()[0]], 1_000_000, "nothing was fetched twice");
}

#[test]
fn a_proxy_is_used_where_one_is_set() {
    let hostile = Hostile::start();
    let image = Image::new().layer(1, 100).build();
    image.push_to(&hostile, "app", "1");
    // The hostile registry plays the proxy: it is asked for whole URLs of a host that does not exist.
    let imgfs = Imgfs::scratch().env("http_proxy", hostile.url());
    imgfs.pull(&["registry.invalid/app:1"]).success();
    let log = hostile.log();
    let whole = |served: &crate::support::hostile::Served| {
        served.target.starts_with("http://registry.invalid/")
    };
    assert!(log.iter().all(whole), "{log:?}");
    assert_tree_sound(imgfs.images_dir());

    let imgfs =
        Imgfs::scratch().env("http_proxy", "http://127.0.0.1:9").env("no_proxy", "127.0.0.1");
    imgfs.pull(&[format!("{}/app:1", hostile.host())]).success();
}

#[test]
fn output_is_for_people_unless_json_is_asked_for() {
    let hostile = Hostile::start();
    Image::new().layer(1, 100).build().push_to(&hostile, "app", "1");
    let name = format!("{}/app:1", hostile.host());
    let imgfs = Imgfs::scratch();
    let dir = text(imgfs.images_dir()).to_owned();
    let args = ["pull", "--plain-http", "--images-dir", &dir, &name];
    let output = imgfs.run(&args).success();
    let all = format!("{}{}", output.stdout, output.stderr);
    assert!(all.contains(&name), "{output}");
    assert!(!all.contains('\u{1b}'), "no escapes where nobody looks at a terminal\n{output}");
    let output = imgfs.run(&[&args[..], &["--quiet"]].concat()).success();
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("", ""));
    let output = imgfs.run(&["ls", "--images-dir", &dir]).success();
    assert!(output.stdout.contains(&name), "{output}");
    // A pattern chooses; one that chooses nothing is not a success.
    imgfs.on_tree("ls", &["app"]).success().image(&name);
    imgfs.on_tree("ls", &["no-such-thing"]).expect_code(3);
}

#[test]
fn an_index_that_is_also_someones_child_stays() {
    let hostile = Hostile::start();
    let inner = application();
    let outer = Index::new().child(&inner).build();
    inner.push_to(&hostile, "app", "inner");
    outer.push_to(&hostile, "app", "outer");
    let host = hostile.host();
    let imgfs = Imgfs::scratch();
    let names = ["outer", "inner"].map(|tag| format!("{host}/app:{tag}"));
    imgfs.pull(&names).success();
    assert_tree_sound(imgfs.images_dir());
    let directory = manifests(&imgfs, &format!("{host}/app"));
    assert!(directory.join(inner.digest()).is_file());
    let types: BTreeSet<_> = outer.manifests.iter().map(|one| one.media_type.as_str()).collect();
    assert!(types.contains(OCI_INDEX));
    let listed = imgfs.ls().success();
    assert!(listed.images().iter().all(|image| image["complete"] == true), "{listed}");
}

#[test]
fn manifests_with_other_digests_than_sha256_are_carried() {
    use sha2::Digest as _;
    let hostile = Hostile::start();
    let layer = b"a layer".to_vec();
    let config = Image::new().build();
    let config_blob = config.blobs.values().next().expect("there is a config");
    let name = format!("sha512:{}", hex::encode(sha2::Sha512::digest(&layer)));
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": config_blob.media_type, "digest": config_blob.digest, "size": config_blob.size()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": name, "size": layer.len()}],
    });
    hostile.put_blob("app", config_blob);
    hostile.put_blob(
        "app",
        &crate::support::image::Blob {
            digest: name.clone(),
            media_type: String::new(),
            content: layer.clone().into(),
        },
    );
    let bytes = manifest.to_string().into_bytes();
    hostile.put_manifest("app", "1", "application/vnd.oci.image.manifest.v1+json", &bytes);
    let imgfs = Imgfs::scratch();
    imgfs.pull(&[format!("{}/app:1", hostile.host())]).success();
    let stored = std::fs::read(imgfs.images_dir().join("blobs").join(&name));
    assert_eq!(stored.ok(), Some(layer));
    imgfs.verify().success();
}

#[test]
fn docker_hub_is_the_same_under_all_its_names() {
    let hostile = Hostile::start();
    let image = Image::new().layer(1, 100).build();
    image.push_to(&hostile, "library/nginx", "latest");
    let names = [
        "nginx",
        "docker.io/nginx",
        "docker.io/library/nginx:latest",
        "index.docker.io/library/nginx",
        "registry-1.docker.io/library/nginx",
    ];
    // The hostile registry is the proxy through which everything goes.
    for (layout, directory) in [
        ("documented", "docker.io"),
        ("kubekey", "registry-1.docker.io"),
        ("kubekey-4.0.3", "registry-1.docker.io"),
    ] {
        for name in names {
            let imgfs = Imgfs::scratch().env("http_proxy", hostile.url());
            let output = imgfs.pull(&[name, "--layout", layout]).success();
            output.image("docker.io/library/nginx:latest");
            let manifests = manifests(&imgfs, &format!("{directory}/library/nginx"));
            assert!(manifests.is_dir(), "{layout}, {name}\n{output}");
            assert_eq!(imgfs.ls().success().images().len(), 1);
        }
    }
    let imgfs = Imgfs::scratch().env("http_proxy", hostile.url());
    assert_eq!(imgfs.pull(&names).success().images().len(), 1, "one image under five names");
    let foreign = |target: &str| !target.starts_with("http://registry-1.docker.io/v2/");
    let log = hostile.log();
    assert!(!log.iter().any(|served| foreign(&served.target)), "{log:?}");
}
