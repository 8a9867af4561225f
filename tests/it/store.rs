//! `imgfs mount --store`, `imgfs store` and `imgfs-store-helper`, without a container runtime: what containers/image
//! would do is done by the tests. What podman, buildah and skopeo make of it is in `store_podman`.

use crate::support::hostile::{Access, Fault, Hostile, Match, PASSWORD, USER};
use crate::support::image::{Artifact, Image, Index, OCI_TAR};
use crate::support::layers::{Archive, OCI_ENCRYPTED, Packing};
use crate::support::mount::Mounted;
use crate::support::need::require;
use crate::support::store::{StoreBed, chains};
use crate::support::{text, wait_for};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

/// An image of two layers, the upper of which replaces a file and removes one.
fn image(variant: &str) -> crate::support::image::Built {
    let base = Archive::new().dir("etc").file("etc/a", "lower\n").file("etc/gone", "x\n");
    let top = Archive::new().file("etc/a", "upper\n").whiteout("etc/gone").file("v", variant);
    Image::new().step("ADD base", &base.gzip()).step("RUN", &top.gzip()).build()
}

#[test]
fn a_chain_of_layers_is_shown_by_its_content_and_nothing_else_is_asked_for() {
    require!(Mounts);
    let hostile = Hostile::start();
    let image = image("1");
    image.push_to(&hostile, "team/app", "1");
    let chains = chains(&image);
    let imgfs = crate::support::cli::Imgfs::scratch();
    let mount = Mounted::start(imgfs.images_dir(), &[] as &[&str]);
    hostile.clear_log();
    // Of what nobody has looked into nothing is known, and no registry is asked.
    for name in [chains[1].as_str(), "diff1", "x", &"0".repeat(64), "../.trees/y"] {
        mount
            .run("stat", &[mount.path(&format!(".imgfs/.trees/{name}"))])
            .fails_with("No such file");
    }
    assert_eq!(hostile.requests(), 0);
    let rootfs = format!(".imgfs/{}/team/app:1/rootfs", hostile.host());
    mount.run("ls", &[mount.path(&format!("{rootfs}/etc"))]).success();
    hostile.clear_log();
    let tree = |chain: &str, below: &str| mount.cat(&format!(".imgfs/.trees/{chain}/{below}"));
    assert_eq!(tree(&chains[0], "etc/a").success().text(), "lower\n");
    assert_eq!(tree(&chains[0], "etc/gone").success().text(), "x\n");
    assert_eq!(tree(&chains[1], "etc/a").success().text(), "upper\n");
    tree(&chains[1], "etc/gone").fails_with("No such file");
    // No file of a chain has attributes of imgfs: they would get into images that are made of it.
    let dump =
        mount.run("getfattr", &["-d", &mount.path(&format!(".imgfs/.trees/{}/v", chains[1]))]);
    assert!(!dump.success().text().contains("imgfs"));
    let listed = mount.run("ls", &[mount.path(".imgfs/.trees")]).success().text();
    let mut expected = chains.clone();
    expected.sort();
    assert_eq!(listed.lines().collect::<Vec<_>>(), expected);
    assert!(hostile.log().iter().all(|served| !served.path.contains("/manifests/")));
}

#[test]
fn an_image_that_is_prepared_is_in_the_store_and_survives_a_restart_without_its_registry() {
    require!(Mounts);
    let hostile = Hostile::start();
    let built = image("1");
    let index = Index::new()
        .child(&built)
        .child(&Image::new().platform("linux/s390x").layer(1, 1000).build())
        .build();
    index.push_to(&hostile, "team/app", "1");
    let name = format!("{}/team/app:1", hostile.host());
    let mut bed = StoreBed::start(&[]);
    assert!(bed.store().join("overlay-layers/layers.lock").exists(), "it is valid from the start");
    hostile.clear_log();
    bed.prepare(&name).success();
    let asked = |what: &str| hostile.log().iter().filter(|s| s.path.contains(what)).count();
    // The index, or that its name leads there; the manifest; the configuration, and one pass through each layer.
    assert!((2..=3).contains(&asked("/manifests/")), "{:?}", hostile.log());
    let indexed = || bed.listed(&name)["indexed"] == true;
    wait_for("the passes", PATIENCE, indexed);
    assert_eq!(asked("/blobs/"), 3, "{:?}", hostile.log());

    let chains = chains(&built);
    let layers = bed.layers();
    assert_eq!(layers.iter().map(|l| l["id"].as_str().unwrap()).collect::<Vec<_>>(), chains);
    assert_eq!(layers[1]["parent"], layers[0]["id"]);
    assert_eq!(layers[0]["compressed-diff-digest"], built.json()["layers"][0]["digest"]);
    assert_eq!(layers[0]["compression"], 2);
    let size =
        Archive::new().dir("etc").file("etc/a", "lower\n").file("etc/gone", "x\n").to_bytes().len();
    wait_for("the size", PATIENCE, || bed.layers()[0]["diff-size"] == size);
    assert_eq!(std::fs::read(bed.store().join("overlay-images/images.json")).unwrap(), b"[]");
    let dir = bed.store().join("overlay").join(&chains[1]);
    assert!(!dir.join("lower").exists());
    assert_eq!(bed.mount.run("cat", &[dir.join("diff/etc/a")]).success().text(), "upper\n");
    let blob = bed.mount.run("sha256sum", &[dir.join("als/blob")]).success().text();
    let digest = built.json()["layers"][1]["digest"].as_str().unwrap().to_owned();
    assert!(digest.ends_with(blob.split(' ').next().unwrap()), "{blob}");

    // Once more: where the name leads, and nothing else.
    hostile.clear_log();
    bed.prepare(&name).success();
    assert_eq!(hostile.requests(), 1, "{:?}", hostile.log());
    bed.prepare(&format!("{}/team/app@{}", hostile.host(), built.digest())).success();
    assert_eq!(hostile.requests(), 1, "what is recorded by its digest needs no request");

    drop(hostile);
    bed.mount.kill9();
    bed.mount.restart();
    assert_eq!(bed.mount.run("cat", &[dir.join("diff/etc/a")]).success().text(), "upper\n");
    assert_eq!(bed.listed(&name)["state"], "lazy");
}

/// `podman push --add-compression zstd` makes such indexes, and containers/image prefers zstd.
#[test]
fn of_an_image_in_two_compressions_that_is_recorded_which_podman_chooses() {
    require!(Mounts);
    let hostile = Hostile::start();
    let archive = Archive::new().dir("etc").file("etc/a", "lower\n");
    let packed = |packing| Image::new().step("ADD", &archive.pack(packing)).build();
    let (gzip, zstd) = (packed(Packing::Gzip), packed(Packing::Zstd));
    let other = Image::new().platform("linux/s390x").layer(1, 1000).build();
    let mark = |descriptor: &mut Value| {
        descriptor["annotations"] = json!({ "io.github.containers.compression.zstd": "true" });
    };
    let index = Index::new().child(&gzip).child_with(&other, mark).child_with(&zstd, mark).build();
    index.push_to(&hostile, "team/app", "1");
    let bed = StoreBed::start(&[]);
    bed.prepare(&format!("{}/team/app:1", hostile.host())).success();
    let layers = bed.layers();
    assert_eq!(layers.len(), 1);
    assert_eq!(layers[0]["compressed-diff-digest"], zstd.json()["layers"][0]["digest"]);
}

#[test]
fn an_image_that_was_ordinary_once_is_listed_as_lazy_alone_when_it_is() {
    require!(Mounts);
    let hostile = Hostile::start();
    let name = format!("{}/team/app:1", hostile.host());
    let bed = StoreBed::start(&[]);
    Artifact::new("application/x-thing")
        .blob("text/plain", b"x")
        .build()
        .push_to(&hostile, "team/app", "1");
    bed.prepare(&name).success();
    assert_eq!(bed.listed(&name)["reason"], "it is an artifact, and not an image");
    image("1").push_to(&hostile, "team/app", "1");
    bed.prepare(&name).success();
    let listed = bed.imgfs_store(&["ls"]).success().text();
    let lines: Vec<&str> = listed.lines().filter(|line| line.contains(&name)).collect();
    assert!(lines.len() == 1 && lines[0].contains("lazy"), "{listed}");
}

/// The table of the documentation, as far as no container is needed.
#[test]
fn whatever_goes_wrong_means_an_ordinary_pull_and_one_line_in_the_log() {
    require!(Mounts);
    let hostile = Hostile::start();
    let host = hostile.host();
    image("1").push_to(&hostile, "team/app", "1");
    let plain = Archive::new().file("x", "x");
    Image::new().layer_raw(OCI_ENCRYPTED, b"secret").build().push_to(
        &hostile,
        "team/encrypted",
        "1",
    );
    Image::new().layer_raw("application/x-other", b"x").build().push_to(
        &hostile,
        "team/unknown",
        "1",
    );
    Image::new().layer_raw(OCI_TAR, &plain.to_bytes()).build().push_to(&hostile, "team/plain", "1");
    Image::new().platform("linux/s390x").layer(1, 5000).build().push_to(
        &hostile,
        "team/other",
        "1",
    );
    image("2").push_to(&hostile, "elsewhere/app", "1");
    let patterns = format!("{host}/team");
    let mut bed = StoreBed::start(&["--store-images", &patterns, "--store-min-size", "200"]);
    for (name, why) in [
        ("team/encrypted:1", "encrypted"),
        ("team/unknown:1", "application/x-other"),
        ("elsewhere/app:1", "--store-images"),
        ("team/other:1", "not for linux/"),
    ] {
        let name = format!("{host}/{name}");
        let done = bed.prepare(&name).success();
        assert!(done.stderr.contains("ordinary way"), "{}", done.stderr);
        assert_eq!(
            bed.mount.logged(&[&name, "ordinary way", why]).len(),
            1,
            "{:?}",
            bed.mount.log()
        );
        let listed = bed.listed(&name);
        assert_eq!(listed["state"], "ordinary");
        assert!(listed["reason"].as_str().unwrap().contains(why), "{listed}");
    }
    let missing = format!("{host}/team/missing:1");
    bed.prepare(&missing).fails_with("not found");
    assert_eq!(bed.mount.logged(&[&missing, "ordinary way"]).len(), 1);
    for request in ["", "{}", "[]", "{\"x\":{}", "{\"UPPER/x:1:2\":{}}"] {
        assert!(!bed.prepare_with(request).status.success(), "{request}");
    }
    assert!(bed.layers().is_empty());
    bed.prepare(&format!("{host}/team/plain:1")).success();
    assert_eq!(bed.layers()[0]["compression"], 0);
    // The daemon is down at the pull.
    let name = format!("{host}/team/app:1");
    bed.mount.kill9();
    bed.prepare(&name).fails_with("store.sock");
    assert_eq!(bed.layers().len(), 1, "the store stays what it was");
    let listed = bed.listed(&format!("{host}/team/plain:1"));
    assert_eq!(listed["last_error"], "no mount serves the store");
}

#[test]
fn a_wrong_blob_withdraws_the_image() {
    require!(Mounts);
    let hostile = Hostile::start();
    let host = hostile.host();
    let (good, bad) = (image("good"), image("bad"));
    good.push_to(&hostile, "team/good", "1");
    bad.push_to(&hostile, "team/bad", "1");
    let layer = bad.layers()[1].clone();
    hostile.on(Match::blobs().about(&layer)).fault(Fault::FlipByte(40));
    let mut bed = StoreBed::start(&[]);
    let names = ["good", "bad"].map(|name| format!("{host}/team/{name}:1"));
    names.iter().for_each(|name| drop(bed.prepare(name).success()));
    wait_for("the withdrawal", PATIENCE, || bed.listed(&names[1])["state"] == "ordinary");
    assert_eq!(bed.mount.logged(&[&names[1], "is withdrawn"]).len(), 1);
    let listed = || -> Vec<String> {
        let layers = bed.layers();
        layers.iter().map(|layer| layer["id"].as_str().unwrap().to_owned()).collect()
    };
    // What another image has, too, stays.
    wait_for("the lists", PATIENCE, || listed() == chains(&good));
    let tree = bed.mount.at().join(".imgfs/.trees").join(&chains(&bad)[1]);
    bed.mount.run("ls", &[tree.join("etc")]).fails_with("No such file");
    let again = bed.prepare(&names[1]).success();
    assert!(again.stderr.contains("withdrawn"), "{}", again.stderr);
    let table = bed.imgfs_store(&["ls"]).success().text();
    assert_eq!(table.lines().filter(|line| line.contains(&names[1])).count(), 1, "{table}");
    bed.mount.kill9();
    bed.mount.restart();
    assert_eq!(bed.listed(&names[1])["state"], "ordinary", "that is remembered");
    assert_eq!(bed.listed(&names[0])["state"], "lazy");
    // podman has pulled it in the ordinary way, so the layers are its own.
    let graph = bed.path("graph/overlay-layers");
    std::fs::create_dir_all(&graph).unwrap();
    let own = format!(r#"[{{"id":"{}"}}]"#, chains(&bad)[1]);
    std::fs::write(graph.join("layers.json"), own).unwrap();
    bed.imgfs_store(&["rm", &names[1]]).success();
    assert_eq!(bed.listed(&names[1]), Value::Null);
    hostile.behave();
    bed.prepare(&names[1]).success();
    assert_eq!(
        bed.listed(&names[1])["state"],
        "lazy",
        "after it has been removed it is tried anew"
    );
}

#[test]
fn one_damaged_record_is_set_aside() {
    require!(Mounts);
    let hostile = Hostile::start();
    let images = ["a", "b"].map(image);
    let mut bed = StoreBed::start(&[]);
    for (name, image) in ["a", "b"].iter().zip(&images) {
        image.push_to(&hostile, &format!("team/{name}"), "1");
        bed.prepare(&format!("{}/team/{name}:1", hostile.host())).success();
    }
    bed.mount.kill9();
    let record = bed.store().join(".imgfs").join(images[0].digest().trim_start_matches("sha256:"));
    std::fs::write(record.join("config"), "{").unwrap();
    bed.mount.restart();
    assert_eq!(bed.mount.logged(&["damaged"]).len(), 1);
    assert!(!record.exists());
    let cat = |image, below: &str| {
        let tree = format!(".imgfs/.trees/{}/{below}", chains(image)[1]);
        bed.mount.cat(&tree)
    };
    assert_eq!(cat(&images[1], "v").success().text(), "b");
    assert_eq!(bed.layers().len(), 2, "what cannot be shown is listed no longer");
    bed.prepare(&format!("{}/team/a:1", hostile.host())).success();
    assert_eq!(cat(&images[0], "v").success().text(), "a");
}

#[test]
fn credentials_that_come_with_an_image_are_used_and_nowhere_written() {
    require!(Mounts);
    let hostile = Hostile::start();
    let image = image("1");
    image.push_to(&hostile, "team/app", "1");
    hostile.set_access(Access::basic());
    let name = format!("{}/team/app:1", hostile.host());
    let bed = StoreBed::start(&["--log-level", "debug"]);
    let login = |user: &str, password: &str| {
        format!(r#"{{"{name}":{{"username":"{user}","password":"{password}"}}}}"#)
    };
    bed.prepare(&name).fails_with("not authorised");
    bed.prepare_with(&login(USER, "hunter2")).fails_with("not authorised");
    bed.prepare_with(&login(USER, PASSWORD)).success();
    let tree = format!(".imgfs/.trees/{}/etc/a", chains(&image)[1]);
    assert_eq!(bed.mount.cat(&tree).success().text(), "upper\n");
    let written = bed
        .mount
        .run("grep", &["-rl", "hunter2", text(&bed.store()), text(bed.imgfs.images_dir())]);
    assert!(!written.status.success() && !bed.mount.log().join("\n").contains("hunter2"));
}

#[test]
fn images_are_added_listed_removed_and_pruned() {
    require!(Mounts);
    let hostile = Hostile::start();
    let host = hostile.host();
    let bed = StoreBed::start(&[]);
    let images = ["a", "b"].map(image);
    for (name, image) in ["a", "b"].iter().zip(&images) {
        image.push_to(&hostile, &format!("team/{name}"), "1");
    }
    let names = ["a", "b"].map(|name| format!("{host}/team/{name}:1"));
    bed.imgfs_store(&["add", &names[0], &format!("{host}/none:1")]).fails_with("none:1");
    bed.imgfs_store(&["add", &names[0]]).success();
    bed.prepare(&names[1]).success();
    let read = |path: &str| -> Value {
        serde_json::from_slice(&std::fs::read(bed.store().join(path)).unwrap()).unwrap()
    };
    let listed = read("overlay-images/images.json");
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    let config = images[0].json()["config"]["digest"].as_str().unwrap().to_owned();
    let id = config.trim_start_matches("sha256:");
    assert_eq!(listed[0]["id"], id);
    assert_eq!(listed[0]["names"], serde_json::json!([names[0]]));
    assert_eq!(listed[0]["digest"], images[0].digest());
    assert_eq!(listed[0]["layer"], chains(&images[0])[1]);
    let manifest =
        std::fs::read(bed.store().join("overlay-images").join(id).join("manifest")).unwrap();
    assert_eq!(manifest, images[0].root().bytes);

    let graph = bed.path("graphroot");
    std::fs::create_dir_all(graph.join("overlay-layers")).unwrap();
    let graphroot = ["--graphroot", text(&graph)];
    let pruned = bed.imgfs_store(&[&["prune"][..], &graphroot].concat()).success().text();
    assert!(pruned.contains("3 kept"), "nothing is a day old: {pruned}");
    make_old(&bed.store());
    let missing = bed.path("missing");
    bed.imgfs_store(&["prune", "--graphroot", text(&missing)]).fails_with("missing");
    let layers = format!(r#"[{{"id":"c","parent":"{}"}}]"#, chains(&images[1])[1]);
    std::fs::write(graph.join("overlay-layers/layers.json"), layers).unwrap();
    bed.imgfs_store(&[&["rm", &names[1]][..], &graphroot].concat()).fails_with("needs its layers");
    let dry = bed.imgfs_store(&[&["prune", "--dry-run"][..], &graphroot].concat()).success().text();
    assert!(dry.contains("would remove 0 layers"), "{dry}");
    std::fs::write(graph.join("overlay-layers/layers.json"), "[]").unwrap();
    let pruned = bed.imgfs_store(&[&["prune"][..], &graphroot].concat()).success().text();
    assert!(pruned.contains("removed 1 layer "), "what was added stays: {pruned}");
    let tree = format!(".imgfs/.trees/{}/v", chains(&images[0])[1]);
    assert_eq!(bed.mount.cat(&tree).success().text(), "a");
    bed.imgfs_store(&[&["rm", &names[0]][..], &graphroot].concat()).success();
    assert!(bed.layers().is_empty());
    assert_eq!(read("overlay-images/images.json"), serde_json::json!([]));
    let shown = bed.mount.run("ls", &[bed.mount.path(".imgfs/.trees")]).success().text();
    assert_eq!(shown, "");
    assert_eq!(bed.imgfs_store(&["rm", "quay.io/none:1"]).status.code(), Some(1));
    let setup = bed.imgfs_store(&["setup"]).success().text();
    assert!(
        setup.contains(&format!("additionalimagestores = [\"{}\"]", bed.store().display())),
        "{setup}"
    );
    assert!(setup.contains("additional-layer-store-auth-helper"), "{setup}");
}

/// Makes everything in a store two days old.
fn make_old(store: &Path) {
    let path = store.join("overlay-layers/layers.json");
    let mut layers: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for layer in layers.as_array_mut().unwrap() {
        layer["created"] = "2024-01-01T00:00:00Z".into();
    }
    std::fs::write(&path, layers.to_string()).unwrap();
    for record in std::fs::read_dir(store.join(".imgfs")).unwrap() {
        let path = record.unwrap().path().join("source");
        if !path.exists() {
            continue;
        }
        let mut source: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        source["recorded"] = 1.into();
        std::fs::write(&path, source.to_string()).unwrap();
    }
}

#[test]
fn a_store_has_one_mount() {
    require!(Mounts);
    let hostile = Hostile::start();
    let image = image("1");
    image.push_to(&hostile, "team/app", "1");
    let mut bed = StoreBed::start(&[]);
    bed.prepare(&format!("{}/team/app:1", hostile.host())).success();
    let other = bed.path("other");
    std::fs::create_dir(&other).unwrap();
    let imgfs = crate::support::cli::Imgfs::scratch();
    let socket = bed.path("other.sock");
    let args = ["mount", "--foreground", "--images-dir", text(imgfs.images_dir())];
    let store = bed.store();
    let more = ["--store-socket", text(&socket), "--store", text(&store), text(&other)];
    let refused = imgfs.run(&[&args[..], &more].concat()).expect_code(2);
    refused.stderr_has(text(&bed.mount.at())).stderr_has("has it to itself");
    let upper = format!("overlay/{}/diff/etc/a", chains(&image)[1]);
    let shown = || bed.mount.run("cat", &[bed.store().join(&upper)]).success().text();
    assert_eq!(shown(), "upper\n", "it has not been turned to the other mount");
    // Nor is it changed by a command that asks another socket.
    let env = [("IMGFS_STORE_SOCKET", text(&socket)), ("IMGFS_STORE", text(&store))];
    let conf = bed.path("storage.conf");
    let mut prune = std::process::Command::new(env!("CARGO_BIN_EXE_imgfs"));
    prune.args(["store", "prune"]).envs(env).env("CONTAINERS_STORAGE_CONF", &conf);
    let pruned = prune.output().unwrap();
    let said = String::from_utf8(pruned.stderr).unwrap();
    assert!(pruned.status.code() == Some(2) && said.contains("--store-socket"), "{said}");
    bed.mount.kill9();
    assert!(prune.output().unwrap().status.success());
    bed.mount.restart();
}

#[test]
fn a_configuration_that_cannot_be_read_stops_rm_and_prune() {
    require!(Mounts);
    let hostile = Hostile::start();
    image("1").push_to(&hostile, "team/app", "1");
    let name = format!("{}/team/app:1", hostile.host());
    let bed = StoreBed::start(&[]);
    bed.prepare(&name).success();
    std::fs::remove_file(bed.path("storage.conf")).unwrap();
    for args in [&["rm", &name][..], &["prune"]] {
        let stopped = bed.imgfs_store(args).fails_with("storage.conf");
        assert!(stopped.stderr.contains("CONTAINERS_STORAGE_CONF"), "{}", stopped.stderr);
        assert_eq!(stopped.status.code(), Some(2));
    }
    assert_eq!(bed.layers().len(), 2);
}

#[test]
fn an_image_goes_but_for_lower_layers_that_somebody_needs() {
    require!(Mounts);
    let hostile = Hostile::start();
    let image = image("1");
    image.push_to(&hostile, "team/app", "1");
    let name = format!("{}/team/app:1", hostile.host());
    let chains = chains(&image);
    let mut bed = StoreBed::start(&[]);
    bed.imgfs_store(&["add", &name]).success();
    let list = bed.path("graph/overlay-images/images.json");
    std::fs::create_dir_all(list.parent().unwrap()).unwrap();
    let needed = |chain: &str| {
        let images = format!(r#"[{{"id":"i","names":["quay.io/other:1"],"layer":"{chain}"}}]"#);
        std::fs::write(&list, images).unwrap();
    };
    needed(&chains[1]);
    let refused = bed.imgfs_store(&["rm", &name]).fails_with("the image quay.io/other:1 in ");
    let graph = bed.path("graph");
    let told = [text(&graph), &chains[1], "podman rmi"];
    assert!(told.iter().all(|text| refused.stderr.contains(text)), "{}", refused.stderr);
    needed(&chains[0]);
    let removed = bed.imgfs_store(&["rm", &name]).success().text();
    assert!(removed.contains("1 image removed"), "{removed}");
    let ids = || -> Vec<String> {
        bed.layers().iter().map(|layer| layer["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(), [&chains[0][..]]);
    assert_eq!(bed.listed(&name), Value::Null);
    assert_eq!(std::fs::read(bed.store().join("overlay-images/images.json")).unwrap(), b"[]");
    let base = bed.store().join("overlay").join(&chains[0]).join("diff/etc/a");
    assert_eq!(bed.mount.run("cat", &[&base]).success().text(), "lower\n");
    bed.mount.kill9();
    bed.mount.restart();
    assert_eq!(bed.mount.run("cat", &[&base]).success().text(), "lower\n");
    assert_eq!(bed.listed(&name), Value::Null);
    bed.prepare(&name).success();
    assert_eq!(bed.listed(&name)["state"], "lazy");
    assert_eq!(bed.layers().len(), 2);
}

#[test]
fn what_is_listed_can_be_removed_by_its_name() {
    require!(Mounts);
    let hostile = Hostile::start();
    let host = hostile.host();
    let image = image("1");
    image.push_to(&hostile, "team/app", "1");
    image.push_to(&hostile, "other/name", "2");
    let bed = StoreBed::start(&[]);
    let names = ["team/app:1", "other/name:2"].map(|name| format!("{host}/{name}"));
    let missing = format!("{host}/team/missing:1");
    bed.imgfs_store(&["add", &names[0], &names[1]]).success();
    bed.imgfs_store(&["add", &missing]).fails_with("not found");
    bed.imgfs_store(&["add", "T/Upper:1"]).fails_with("T/Upper:1");
    assert!(bed.mount.logged(&["ordinary way"]).is_empty(), "nobody pulls it");
    assert_eq!(bed.mount.logged(&[&missing, "is not added"]).len(), 1);
    let has = |name: &str| bed.imgfs_store(&["ls"]).success().text().contains(name);
    let all = [&names[0][..], &names[1], &missing, "T/Upper:1"];
    assert!(all.iter().all(|name| has(name)));
    // The one by which the image became known goes first.
    for name in [&names[0][..], &missing, "T/Upper:1"] {
        let removed = bed.imgfs_store(&["rm", name]).success().text();
        assert!(removed.contains("1 name removed") && !has(name), "{removed}");
    }
    assert!(has(&names[1]));
    let removed = bed.imgfs_store(&["rm", &names[1]]).success().text();
    assert!(removed.contains("1 image removed") && !has(&names[1]), "{removed}");
    assert!(bed.layers().is_empty());
}

#[test]
fn a_directory_that_imgfs_has_not_made_is_no_store() {
    require!(Mounts);
    let imgfs = crate::support::cli::Imgfs::scratch();
    let place = tempfile::tempdir().unwrap();
    let (at, graph) = (place.path().join("at"), place.path().join("graph"));
    std::fs::create_dir(&at).unwrap();
    std::fs::create_dir_all(graph.join("overlay-layers")).unwrap();
    let list = graph.join("overlay-layers/layers.json");
    std::fs::write(&list, r#"[{"id":"x"}]"#).unwrap();
    let socket = place.path().join("socket");
    let args = ["mount", "--foreground", "--offline", "--images-dir", text(imgfs.images_dir())];
    let more = ["--store-socket", text(&socket), "--store", text(&graph), text(&at)];
    let refused = imgfs.run(&[&args[..], &more].concat()).expect_code(2);
    refused.stderr_has("layers.json is not imgfs's").stderr_has("--store DIR");
    assert_eq!(std::fs::read(&list).unwrap(), br#"[{"id":"x"}]"#);
    assert_eq!(std::fs::read_dir(&graph).unwrap().count(), 1);
}

#[test]
fn a_store_is_not_in_its_mount_and_its_mount_has_no_colon() {
    require!(Mounts);
    let imgfs = crate::support::cli::Imgfs::scratch();
    let place = tempfile::tempdir().unwrap();
    let at = place.path().join("at");
    let colon = place.path().join("a:b");
    for dir in [&at, &colon] {
        std::fs::create_dir(dir).unwrap();
    }
    let socket = place.path().join("socket");
    let mount = |at: &Path, store: &Path| {
        let args = ["mount", "--foreground", "--offline", "--images-dir", text(imgfs.images_dir())];
        let more = ["--store-socket", text(&socket), "--store", text(store), text(at)];
        imgfs.run(&[&args[..], &more].concat())
    };
    mount(&at, &at.join("store")).expect_code(2).stderr_has("in one another");
    mount(&colon, &place.path().join("store")).expect_code(2).stderr_has("colon");
}

#[test]
fn what_a_mount_does_is_counted() {
    require!(Mounts);
    let hostile = Hostile::start();
    image("1").push_to(&hostile, "team/app", "1");
    let socket = tempfile::tempdir().unwrap();
    let address = format!("unix:{}", socket.path().join("metrics").display());
    let bed = StoreBed::start(&["--metrics", &address]);
    let name = format!("{}/team/app:1", hostile.host());
    bed.prepare(&name).success();
    wait_for("the passes", PATIENCE, || bed.listed(&name)["indexed"] == true);
    let tree = format!(".imgfs/.trees/{}/etc/a", chains(&image("1"))[1]);
    bed.mount.cat(&tree).success();
    let path = socket.path().join("metrics");
    let args = ["-sf", "--unix-socket", text(&path), "http://localhost/metrics"];
    let text = bed.mount.run("curl", &args).success().text();
    let value = |name: &str| -> f64 {
        let line =
            text.lines().find(|line| line.rsplit_once(' ').is_some_and(|(of, _)| of == name));
        let line = line.unwrap_or_else(|| panic!("{name} is not in:\n{text}"));
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    };
    for (name, least) in [
        ("imgfs_cache_requests_total", 2.0),
        ("imgfs_cache_fetched_bytes_total", 100.0),
        ("imgfs_cache_reads_total", 1.0),
        ("imgfs_inflated_bytes_total", 1000.0),
        ("imgfs_layers_indexed_total", 2.0),
        ("imgfs_fuse_requests_total{kind=\"lookup\"}", 3.0),
        ("imgfs_fuse_requests_total{kind=\"read\"}", 1.0),
        ("imgfs_fuse_read_bytes_total", 6.0),
        ("imgfs_store_images", 1.0),
        ("imgfs_store_prepared_total{outcome=\"lazy\"}", 1.0),
        ("imgfs_store_passes_total{outcome=\"done\"}", 2.0),
        ("imgfs_fuse_wait_seconds_count{kind=\"lookup\"}", 1.0),
    ] {
        assert!(value(name) >= least, "{name}: {}", value(name));
    }
}
