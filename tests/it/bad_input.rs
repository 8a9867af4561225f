//! What bad input gets: a clear error that names the thing and the way out; never a panic, never a partial
//! result that looks whole.

use crate::support::cli::{Imgfs, Output};
use crate::support::content::digest;
use crate::support::hostile::Hostile;
use crate::support::image::{
    Built, Image, Index, OCI_CONFIG, OCI_GZIP, OCI_INDEX, OCI_MANIFEST, Receiver as _,
};
use crate::support::text;
use crate::support::tree::{self, assert_tree_sound};
use serde_json::{Value, json};
use std::net::TcpListener;

fn image() -> Built {
    Image::new().layer(1, 100).build()
}

#[test]
fn arguments_that_cannot_be_meant() {
    let good = "registry.invalid/app:1";
    let cases: &[(&[&str], &str)] = &[
        (&["pull"], "image"),
        (&["pull", good, "--no-such-option"], "--no-such-option"),
        (&["pull", good, "--policy", "lax"], "lax"),
        (&["pull", good, "--index", "drop"], "drop"),
        (&["pull", good, "--layout", "oci"], "oci"),
        (&["pull", good, "--concurrency", "0"], "concurrency"),
        (&["pull", good, "--concurrency", "many"], "many"),
        (&["pull", good, "--max-wait", "soon"], "soon"),
        (&["pull", good, "--stall-timeout=-1s"], "stall-timeout"),
        (&["pull", good, "--platform", "linux/"], "linux/"),
        (&["pull", good, "--platform", "a/b/c/d"], "a/b/c/d"),
        (&["pull", good, "--platform", ""], "platform"),
        (&["pull", good, "--username", "x"], "password"),
        (&["pull", good, "--password-stdin"], "username"),
        (&["pull", good, "--file", "/nowhere/list.txt"], "/nowhere/list.txt"),
        (&["pull", good, "--auths", "/nowhere/auths.yaml"], "/nowhere/auths.yaml"),
        (&["pull", good, "--ca-file", "/nowhere/ca.pem"], "/nowhere/ca.pem"),
        (&["ls", "--images-dir", "/nowhere/images"], "/nowhere/images"),
        (&["verify", "--images-dir", "/nowhere/images"], "/nowhere/images"),
        (&["prune", "--images-dir", "/nowhere/images"], "/nowhere/images"),
        (&["ls", "--images-dir", "/dev/null"], "/dev/null"),
        (&["verify", "--images-dir", "/dev/null"], "/dev/null"),
        (&["prune", "--images-dir", "/dev/null"], "/dev/null"),
        (&["pull", good, "--images-dir", "/dev/null"], "/dev/null"),
        (&["completions", "no-such-shell"], "no-such-shell"),
        (&["no-such-command"], "no-such-command"),
        (&[], "Usage"),
    ];
    let mut wrong = Vec::new();
    for (args, named) in cases {
        let imgfs = Imgfs::scratch();
        let output = imgfs.run(args);
        let said = output.stderr.to_lowercase();
        if output.code() != 2 || !said.contains(&named.to_lowercase()) || !output.stdout.is_empty()
        {
            wrong.push(format!("{named:?} is to be named\n{output}"));
        }
    }
    assert_none(&wrong);
}

/// Tables are checked to their end, so that one run shows all that is wrong.
#[track_caller]
fn assert_none(wrong: &[String]) {
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn references_that_are_none() {
    let long = format!("registry.invalid/app:{}", "x".repeat(129));
    let cases = [
        "",
        " ",
        ":tag",
        "@sha256:abc",
        "registry.invalid/UPPER:1",
        "registry.invalid/App:1",
        "registry.invalid/app:1:2",
        "registry.invalid/app:-1",
        "registry.invalid/app@sha256:abc",
        "registry.invalid/app@md5:d41d8cd98f00b204e9800998ecf8427e",
        "registry.invalid/app@sha256:ZZ7c0d0c6a2f3a1e0f4b3c2d1e0f9a8b7c6d5e4f3a2b1c0d9e8f7a6b5c4d3e2f",
        "registry.invalid/../etc/passwd",
        "registry.invalid/a/../../b:1",
        "../../etc:1",
        "registry.invalid//app:1",
        "registry.invalid/app/:1",
        "registry.invalid/app:../x",
        "registry.invalid:port/app:1",
        "registry.invalid:99999/app:1",
        "http://registry.invalid/app:1",
        "registry.invalid/a b:1",
        long.as_str(),
    ];
    let mut wrong = Vec::new();
    for given in cases {
        let imgfs = Imgfs::scratch();
        let output = imgfs.pull(&[given, "--max-wait", "1s"]);
        let named = output.stderr.contains("error: ") && output.stderr.contains(given.trim());
        let left = tree::everything_under(imgfs.images_dir());
        if output.code() != 2 || !named || !left.is_empty() {
            wrong.push(format!("{given:?} left {left:?}\n{output}"));
        }
    }
    assert_none(&wrong);
}

#[test]
fn a_bad_line_in_a_list_is_named_and_nothing_is_fetched() {
    let hostile = Hostile::start();
    image().push_to(&hostile, "app", "1");
    let imgfs = Imgfs::scratch();
    let list = imgfs.home().join("list.txt");
    let good = format!("{}/app:1", hostile.host());
    std::fs::write(&list, format!("{good}\n\nregistry.invalid/UPPER:1\n")).expect("writing");
    let output = imgfs.pull(&["--file", text(&list)]).expect_code(2);
    let output = output.stderr_has("list.txt").stderr_has("registry.invalid/UPPER:1");
    assert!(
        output.stderr.contains(":3") || output.stderr.contains("line 3"),
        "the line is named\n{output}"
    );
    assert!(hostile.log().is_empty());
    std::fs::write(&list, b"\xff\xfe\x00binary").expect("writing");
    imgfs.pull(&["--file", text(&list)]).expect_code(2).stderr_has("list.txt");
}

#[test]
fn an_auths_file_that_cannot_be_read_names_the_place() {
    let cases = [
        ("- registry: [\n", "auths.yaml"),
        ("- registry: a.example\n  username: x\n  password: [1, 2]\n", "password"),
        ("- username: x\n  password: y\n", "registry"),
        ("just a text\n", "auths.yaml"),
        ("- registry: a.example\n  insecure: perhaps\n", "insecure"),
        ("- registry: a.example\n\tusername: x\n", "auths.yaml"),
        ("- registry: a.example\n  ca_file: /nowhere/ca.pem\n", "/nowhere/ca.pem"),
    ];
    let mut wrong = Vec::new();
    for (content, named) in cases {
        let imgfs = Imgfs::scratch();
        let file = imgfs.home().join("auths.yaml");
        std::fs::write(&file, content).expect("writing");
        let output = imgfs.pull(&["--auths", text(&file), "a.example/app:1"]);
        if output.code() != 2 || !output.stderr.contains(named) {
            wrong.push(format!("{content:?}, {named:?} is to be named\n{output}"));
        }
    }
    assert_none(&wrong);
}

#[test]
fn an_images_dir_that_is_a_file() {
    let hostile = Hostile::start();
    image().push_to(&hostile, "app", "1");
    let imgfs = Imgfs::scratch();
    std::fs::write(imgfs.images_dir(), "a file").expect("writing");
    let name = format!("{}/app:1", hostile.host());
    imgfs.pull(&[&name]).expect_code(2).stderr_has(text(imgfs.images_dir()));
    for command in ["ls", "verify", "prune"] {
        let output = imgfs.on_tree::<&str>(command, &[]).expect_code(2);
        output.stderr_has(text(imgfs.images_dir()));
    }
    assert_eq!(std::fs::read(imgfs.images_dir()).expect("reading"), b"a file");
}

#[test]
fn an_empty_images_dir() {
    let imgfs = Imgfs::scratch();
    std::fs::create_dir(imgfs.images_dir()).expect("making a directory");
    assert_eq!(imgfs.ls().expect_code(3).images().len(), 0);
    imgfs.prune().expect_code(3);
    imgfs.verify().expect_code(3);
    let left = std::fs::read_dir(imgfs.images_dir()).expect("reading").count();
    assert_eq!(left, 0, "nothing is written into a directory that holds no images");
}

#[test]
fn registries_that_are_not_there() {
    let imgfs = Imgfs::scratch();
    let patience = ["--max-wait", "1s", "--connect-timeout", "2s"];
    let output = imgfs.pull(&[&patience[..], &["registry.invalid/app:1"]].concat()).expect_code(1);
    output.stderr_has("registry.invalid").stderr_has("app");
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let host = port.expect("a free port").to_string();
    let name = format!("{host}/app:1");
    let output = imgfs.pull(&[&patience[..], &[&name]].concat()).expect_code(1);
    output.stderr_has(&host).stderr_has("refused");
}

#[test]
fn what_is_not_there_is_named() {
    let hostile = Hostile::start();
    image().push_to(&hostile, "app", "1");
    let host = hostile.host();
    let cases = [
        (format!("{host}/app:2"), "app:2"),
        (format!("{host}/nothing:1"), "nothing"),
        (format!("{host}/app@{}", digest(b"something else")), &digest(b"something else")[7..]),
    ];
    for (name, named) in cases {
        let imgfs = Imgfs::scratch();
        imgfs.pull(&[&name]).expect_code(1).stderr_has(named).stderr_has("not found");
        assert_tree_sound(imgfs.images_dir());
    }
}

/// Serves these bytes as `app:1`, and everything of a good image beside them.
fn serve(media_type: &str, bytes: &[u8]) -> (Hostile, String) {
    let hostile = Hostile::start();
    image().push_to(&hostile, "app", "good");
    hostile.put_manifest("app", "1", media_type, bytes);
    let name = format!("{}/app:1", hostile.host());
    (hostile, name)
}

#[track_caller]
fn refused(what: &str, media_type: &str, bytes: &[u8]) -> Output {
    let (_hostile, name) = serve(media_type, bytes);
    let imgfs = Imgfs::scratch();
    let patience = ["--max-wait", "1s", "--stall-timeout", "2s"];
    let output = imgfs.pull(&[&patience[..], &[&name]].concat());
    assert_eq!(output.code(), 1, "{what}\n{output}");
    assert!(output.stderr.contains("app"), "{what}\n{output}");
    assert_eq!(output.image(&name)["status"], "failed", "{what}\n{output}");
    assert_tree_sound(imgfs.images_dir());
    let outside = imgfs.home().join("escaped");
    assert!(!outside.exists(), "{what}: a file outside the tree");
    output
}

/// A good manifest after `edit`.
fn edited(edit: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut manifest = image().json();
    edit(&mut manifest);
    manifest.to_string().into_bytes()
}

#[test]
fn manifests_that_are_none() {
    let manifest = |edit: fn(&mut Value)| edited(edit);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("no bytes", Vec::new()),
        ("no JSON", b"<html></html>".to_vec()),
        ("cut JSON", image().root().bytes[..100].to_vec()),
        ("not UTF-8", b"{\"schemaVersion\": 2, \"a\": \"\xff\"}".to_vec()),
        ("a list", b"[]".to_vec()),
        ("nothing in it", b"{}".to_vec()),
        ("deep nesting", [vec![b'['; 100_000], vec![b']'; 100_000]].concat()),
        (
            "schema 1",
            br#"{"schemaVersion": 1, "name": "app", "tag": "1", "fsLayers": []}"#.to_vec(),
        ),
        ("no config", manifest(|m| drop(m.as_object_mut().map(|m| m.remove("config"))))),
        ("layers are no list", manifest(|m| m["layers"] = json!({}))),
        ("digest is a number", manifest(|m| m["layers"][0]["digest"] = json!(5))),
        ("digest is empty", manifest(|m| m["layers"][0]["digest"] = json!(""))),
        ("digest is short", manifest(|m| m["layers"][0]["digest"] = json!("sha256:abc"))),
        (
            "md5",
            manifest(|m| m["layers"][0]["digest"] = json!("md5:d41d8cd98f00b204e9800998ecf8427e")),
        ),
        ("unknown algorithm", manifest(|m| m["config"]["digest"] = json!("blake3:00"))),
        (
            "path in a digest",
            manifest(|m| m["layers"][0]["digest"] = json!("sha256:../../escaped")),
        ),
        ("path as a digest", manifest(|m| m["config"]["digest"] = json!("../../../escaped"))),
        ("path in an algorithm", manifest(|m| m["config"]["digest"] = json!("../escaped:00"))),
        ("negative size", manifest(|m| m["layers"][0]["size"] = json!(-1))),
        ("size is a text", manifest(|m| m["layers"][0]["size"] = json!("100"))),
        ("size is too small", manifest(|m| m["layers"][0]["size"] = json!(99))),
        ("size is too large", manifest(|m| m["layers"][0]["size"] = json!(101))),
        ("size is enormous", manifest(|m| m["layers"][0]["size"] = json!(i64::MAX))),
        ("config is not there", manifest(|m| m["config"]["digest"] = json!(digest(b"nothing")))),
    ];
    for (what, bytes) in cases {
        refused(what, OCI_MANIFEST, &bytes);
    }
    let old = br#"{"schemaVersion": 1, "name": "app", "tag": "1", "fsLayers": []}"#;
    let media_type = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    refused("schema 1", media_type, old).stderr_has("schema 1");
}

#[test]
fn indexes_that_are_none() {
    let child = image();
    let descriptor = |digest: &str, size: usize| json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": size});
    let index = |children: Value| {
        json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children}).to_string()
    };
    let size = child.root().bytes.len();
    let cases = [
        ("child is not there", index(json!([descriptor(&digest(b"nothing"), 5)]))),
        ("child has another size", index(json!([descriptor(child.digest(), size + 1)]))),
        ("path as a child", index(json!([descriptor("sha256:../../../escaped", 5)]))),
        ("manifests is no list", index(json!("all"))),
        ("manifests and layers", {
            let mut both = child.json();
            both["manifests"] = json!([descriptor(child.digest(), size)]);
            both.to_string()
        }),
    ];
    for (what, text) in cases {
        refused(what, OCI_INDEX, text.as_bytes());
    }
}

#[test]
fn an_index_that_points_at_itself() {
    // Such a digest cannot be computed, but a registry can claim it.
    let claimed = digest(b"whatever");
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        {"mediaType": OCI_INDEX, "digest": claimed, "size": 300},
    ]});
    let mut bytes = index.to_string().into_bytes();
    bytes.resize(300, b' ');
    let (hostile, name) = serve(OCI_INDEX, &bytes);
    hostile.put_manifest("app", &claimed, OCI_INDEX, &bytes);
    let imgfs = Imgfs::scratch();
    imgfs.pull(&[name.as_str(), "--max-wait", "1s"]).expect_code(1).stderr_has("app");
    assert_tree_sound(imgfs.images_dir());
    assert!(hostile.log().len() < 50, "it went round and round");
}

#[test]
fn an_index_that_is_nested_100_deep() {
    let hostile = Hostile::start();
    let deep = (0..100).fold(image(), |inner, _| Index::new().child(&inner).build());
    deep.push_to(&hostile, "app", "1");
    let imgfs = Imgfs::scratch();
    let name = format!("{}/app:1", hostile.host());
    let output = imgfs.pull(&[&name]).expect_code(1);
    output.stderr_has("nest");
    assert_tree_sound(imgfs.images_dir());
    // A few levels are fine.
    (0..4)
        .fold(image(), |inner, _| Index::new().child(&inner).build())
        .push_to(&hostile, "app", "1");
    imgfs.pull(&[&name]).success();
    assert_tree_sound(imgfs.images_dir());
}

#[test]
fn a_registry_that_gives_another_manifest_than_was_pinned() {
    let hostile = Hostile::start();
    let (good, bad) = (image(), Image::new().layer(2, 100).build());
    bad.push_to(&hostile, "app", good.digest());
    let imgfs = Imgfs::scratch();
    let output =
        imgfs.pull(&[&format!("{}/app@{}", hostile.host(), good.digest()), "--max-wait", "1s"]);
    output.expect_code(1).stderr_has(good.digest()).stderr_has(bad.digest());
    assert_tree_sound(imgfs.images_dir());
    assert!(tree::blobs(imgfs.images_dir()).is_empty());
}

#[test]
fn a_blob_that_is_not_what_its_name_says() {
    let hostile = Hostile::start();
    image().push_to(&hostile, "app", "1");
    let mut blob = image().blobs[&image().layers()[0]].clone();
    let mut bytes = blob.content.to_vec();
    bytes[50] ^= 1;
    let found = digest(&bytes);
    blob.content = bytes.into();
    hostile.put_blob("app", &blob);
    let imgfs = Imgfs::scratch();
    let name = format!("{}/app:1", hostile.host());
    let output = imgfs.pull(&[name.as_str(), "--max-wait", "1s"]).expect_code(1);
    // The evidence: expected and found.
    output.stderr_has(&blob.digest).stderr_has(&found);
    assert_tree_sound(imgfs.images_dir());
    assert!(!imgfs.images_dir().join("blobs").join(&blob.digest).exists());
}

#[test]
fn a_path_in_the_tree_that_leads_outside() {
    // Somebody put a link where a repository's directory should be.
    let hostile = Hostile::start();
    image().push_to(&hostile, "app", "1");
    let imgfs = Imgfs::scratch();
    let name = format!("{}/app:1", hostile.host());
    imgfs.pull(&[&name]).success();
    let link = imgfs.images_dir().join("blobs").join(digest(b"x"));
    std::os::unix::fs::symlink("/etc/passwd", &link).expect("making a link");
    let output = imgfs.verify().expect_code(1);
    assert_eq!(output.problems().len(), 1, "{output}");
    imgfs.prune();
    assert!(std::path::Path::new("/etc/passwd").exists());
}

#[test]
fn configs_that_lie_about_the_platform() {
    let hostile = Hostile::start();
    Image::new().without_platform_in_config().layer(1, 10).build().push_to(&hostile, "none", "1");
    let not_an_image = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": digest(b"no json"), "size": 7},
        "layers": [{"mediaType": OCI_GZIP, "digest": digest(b"no json"), "size": 7}],
    });
    let blob = crate::support::image::Blob::new(OCI_CONFIG, b"no json".to_vec().into());
    hostile.put_blob("odd", &blob);
    hostile.put_manifest("odd", "1", OCI_MANIFEST, not_an_image.to_string().as_bytes());
    for repository in ["none", "odd"] {
        let name = format!("{}/{repository}:1", hostile.host());
        let imgfs = Imgfs::scratch();
        // Nobody asked: it is carried as it is.
        imgfs.pull(&[&name]).success();
        assert_tree_sound(imgfs.images_dir());
        let imgfs = Imgfs::scratch();
        let output = imgfs.pull(&[&name, "--platform", "linux/amd64"]).expect_code(1);
        output.stderr_has("platform");
        imgfs.ls();
    }
}
