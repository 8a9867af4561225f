//! What a registry has, what an image is from the outside, and what is kept of that for the next time.

use crate::support::cli::{Imgfs, Output};
use crate::support::hostile::Hostile;
use crate::support::http::Server;
use crate::support::image::{Artifact, Built, Image, Index, single};
use crate::support::inside::{REPOSITORY, debians};
use crate::support::layers::Archive;
use crate::support::registry::{Registry, Tokens};
use crate::support::text;
use serde_json::{Value, json};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::{Arc, Mutex};

/// `imgfs COMMAND --plain-http ARGS...` with no directory of images.
fn look(imgfs: &Imgfs, args: &[&str]) -> Output {
    imgfs.run(&[&args[..1], &["--plain-http"], &args[1..]].concat())
}

fn image() -> Built {
    let base = Archive::new().dir("etc").file("etc/name", b"base\n").noise("noise", 1, 300_000);
    let top = Archive::new().file("etc/name", b"top\n").file("new", b"new\n");
    Image::new()
        .step("ADD base", &base.gzip())
        .empty_step("ENV x=y")
        .step("RUN something\n  --long", &top.gzip())
        .build()
}

#[test]
fn a_registry_lists_its_repositories_and_tags() {
    let [a, b] = [1, 2].map(single);
    let images = [("team/app", "1", &a), ("team/app", "2", &b), ("team/tools/x", "v1", &a)];
    let (registry, host) = debians(&images);
    b.push_to(&registry, "other", "latest");
    let imgfs = Imgfs::scratch();
    let list = |args: &[&str], name: &str| {
        let name = format!("registry://{host}{name}");
        look(&imgfs, &[&["ls"], args, &[name.as_str()]].concat())
    };
    let lines = |names: &[&str]| -> String {
        names.iter().map(|name| format!("{host}/{name}\n")).collect()
    };
    let all = ["other:latest", "team/app:1", "team/app:2", "team/tools/x:v1"];
    assert_eq!(list(&[], "").success().stdout, lines(&all));
    assert_eq!(list(&[], "/").success().stdout, lines(&all));
    let names = list(&["--repositories"], "").success().stdout;
    assert_eq!(names, lines(&["other", "team/app", "team/tools/x"]));
    assert_eq!(list(&[], "/team/app").success().stdout, lines(&["team/app:1", "team/app:2"]));
    // What is no repository may be what the names of some begin with.
    let below = list(&[], "/team").success().stdout;
    assert_eq!(below, lines(&["team/app:1", "team/app:2", "team/tools/x:v1"]));
    list(&[], "/tea").expect_code(1).stderr_has("/tea").stderr_has("not found");
    let report = list(&["--json"], "/team/app").success().report();
    let found = &report["repositories"][0];
    assert_eq!(found["repository"], format!("{host}/team/app"));
    assert_eq!(found["tags"], json!(["1", "2"]));
}

/// A registry that has little more than lists, of which each page has one name.
struct Lists {
    server: Server,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Lists {
    /// `link` makes the address of the next page of what the query says.
    fn start(names: &'static [&'static str], link: fn(&str) -> String) -> Self {
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = asked.clone();
        let server = Server::start(move |request, connection| {
            log.lock().expect("never poisoned").push(request.target.clone());
            let (key, list) = match request.path.as_str() {
                "/v2/_catalog" => ("repositories", names),
                path if path.ends_with("/tags/list") => ("tags", &["1", "2", "3"][..]),
                _ => return connection.respond(200, &[], b"{}"),
            };
            let last = request.query("last").unwrap_or_default();
            let mut rest = list.iter().filter(|name| **name > last);
            let page: Vec<&str> = rest.by_ref().take(1).copied().collect();
            let mut headers = Vec::new();
            let next = rest
                .next()
                .and(page.first())
                .map(|last| link(&format!("{}?last={last}", request.path)));
            if let Some(next) = &next {
                headers.push(("Link", next.as_str()));
            }
            connection.respond(200, &headers, json!({ key: page }).to_string().as_bytes())
        });
        Self { server, asked }
    }

    fn list(&self, args: &[&str]) -> Output {
        let name = format!("registry://{}", self.server.address());
        look(&Imgfs::scratch(), &[&["ls"], args, &[name.as_str()]].concat())
    }
}

#[test]
fn all_pages_of_a_list_are_read_and_only_at_the_registry() {
    let relative = |next: &str| format!("<{next}>; rel=\"next\"");
    // Behind a proxy, registries know themselves by another name.
    let internal = |next: &str| format!("<http://registry.internal:5000{next}>; rel=\"next\"");
    for link in [relative, internal] {
        let lists = Lists::start(&["a", "b/c", "d"], link);
        let listed = lists.list(&["--repositories"]).success().stdout;
        let host = lists.server.address();
        assert_eq!(listed, format!("{host}/a\n{host}/b/c\n{host}/d\n"));
        let asked = lists.asked.lock().expect("never poisoned").clone();
        assert_eq!(
            asked.iter().filter(|target| target.contains("_catalog")).count(),
            3,
            "{asked:?}"
        );
    }
}

#[test]
fn a_list_that_cannot_be_followed_is_an_error() {
    let elsewhere = |_: &str| "<http://elsewhere.example.com/v2/other>; rel=\"next\"".to_owned();
    let same = |_: &str| "</v2/_catalog?n=1000>; rel=\"next\"".to_owned();
    let nothing = |_: &str| "<>; rel=\"next\"".to_owned();
    for link in [elsewhere, same, nothing] {
        let lists = Lists::start(&["a", "b"], link);
        let failed = lists.list(&["--repositories"]).expect_code(1);
        failed.stderr_has("listing the repositories");
    }
}

#[test]
fn names_that_no_reference_can_have_are_told_and_hide_no_others() {
    let lists = Lists::start(&["UPPER", "fine"], |next| format!("<{next}>; rel=\"next\""));
    let output = lists.list(&["--repositories"]).expect_code(1);
    assert_eq!(output.stdout, format!("{}/fine\n", lists.server.address()));
    output.stderr_has("UPPER");
}

#[test]
fn what_is_no_tag_is_told_and_hides_no_tags() {
    let server = Server::start(|request, connection| {
        let other = format!("sha256:{}", "1".repeat(64));
        let tags = json!({"name": "a/b", "tags": ["1", other, "-beta", "2"]});
        match request.path.ends_with("/tags/list") {
            true => connection.respond(200, &[], tags.to_string().as_bytes()),
            false => connection.respond(200, &[], b"{}"),
        }
    });
    let name = format!("{}/a/b", server.address());
    let list = |args: &[&str]| {
        let place = format!("registry://{name}");
        look(&Imgfs::scratch(), &[&["ls"], args, &[place.as_str()]].concat()).expect_code(1)
    };
    let output = list(&[]);
    assert_eq!(output.stdout, format!("{name}:1\n{name}:2\n"));
    output.stderr_has(&name).stderr_has("-beta").stderr_has("no tag");
    let report = list(&["--json"]).report();
    assert_eq!(report["repositories"][0]["tags"], json!(["1", "2"]));
}

#[test]
fn an_image_without_files_has_an_empty_root() {
    let hostile = Hostile::start();
    let name = |tag: &str| format!("{}/{REPOSITORY}:{tag}", hostile.host());
    Image::new().build().push_to(&hostile, REPOSITORY, "none");
    Image::new().empty_layer().build().push_to(&hostile, REPOSITORY, "empty");
    Image::new().zero_byte_layer().build().push_to(&hostile, REPOSITORY, "nothing");
    let imgfs = Imgfs::scratch();
    for tag in ["none", "empty", "nothing"] {
        for path in ["", ":/"] {
            let listed = look(&imgfs, &["ls", &(name(tag) + path)]).success().stdout;
            assert_eq!(listed.trim(), "", "{tag}{path}");
        }
        let report = look(&imgfs, &["ls", "--json", &name(tag)]).success().report();
        assert_eq!(report["entries"], json!([]), "{tag}");
        look(&imgfs, &["ls", &(name(tag) + ":/etc")]).expect_code(1).stderr_has("no such file");
    }
}

#[test]
fn a_registry_without_a_list_of_repositories_says_so() {
    let hostile = Hostile::start();
    single(1).push_to(&hostile, REPOSITORY, "1");
    let imgfs = Imgfs::scratch();
    let failed = look(&imgfs, &["ls", &format!("registry://{}", hostile.host())]).expect_code(1);
    failed.stderr_has("_catalog").stderr_has("hint:").stderr_has("registry://HOST/REPOSITORY");
    // The tags of a repository can be listed all the same.
    let name = format!("{}/{REPOSITORY}", hostile.host());
    let listed = look(&imgfs, &["ls", &format!("registry://{name}")]).success().stdout;
    assert_eq!(listed, format!("{name}:1\n"));
    look(&imgfs, &["ls", "registry://"]).expect_code(2).stderr_has("registry://HOST");
    for (args, reason) in [
        (&["ls", "https://quay.io/a"][..], "registry://"),
        (&["ls", "-R", "registry://127.0.0.1:1"], "--recursive"),
        (&["ls", "--repositories", "a/b:1"], "--repositories"),
        // Without a directory of images, what needs none is told.
        (&["ls"], "imgfs ls IMAGE"),
    ] {
        look(&imgfs, args).expect_code(2).stderr_has(reason);
    }
}

#[test]
fn the_list_of_repositories_has_a_right_of_its_own() {
    let tokens = Tokens { anonymous_pull: true, ..Tokens::default() };
    let registry = Registry::token(tokens);
    single(1).push_to(&registry, REPOSITORY, "1");
    let name = format!("registry://{}", registry.host());
    // Whoever may pull need not be one who may list what there is.
    let refused = look(&Imgfs::scratch(), &["ls", &name]).expect_code(1);
    refused.stderr_has("_catalog").stderr_has("hint:");
    assert!(registry.scopes_asked().contains(&"registry:catalog:*".to_owned()));
    let imgfs = Imgfs::scratch().stdin("secret\n");
    let args = ["ls", "--username", "bed", "--password-stdin", &name];
    let listed = look(&imgfs, &args).success().stdout;
    assert_eq!(listed, format!("{}/{REPOSITORY}:1\n", registry.host()));
}

#[test]
fn an_image_without_a_path_lists_its_root() {
    let hostile = Hostile::start();
    image().push_to(&hostile, REPOSITORY, "1");
    let name = format!("{}/{REPOSITORY}:1", hostile.host());
    let imgfs = Imgfs::scratch();
    for name in [name.clone(), format!("registry://{name}"), format!("{name}:/")] {
        let listed = look(&imgfs, &["ls", &name]).success().stdout;
        let names: Vec<&str> = listed.lines().filter_map(|line| line.rsplit(' ').next()).collect();
        assert_eq!(names, ["etc", "new", "noise"], "{listed}");
    }
    let report = look(&imgfs, &["ls", "--json", "-R", &name]).success().report();
    let paths: Vec<_> =
        report["entries"].as_array().expect("a list").iter().map(|e| &e["path"]).collect();
    assert_eq!(paths, ["etc", "etc/name", "new", "noise"]);
    // Also of an image that is in the directory of images.
    imgfs.pull(&[&name]).success();
    let hosts_own = ["ls", "--images-dir", text(imgfs.images_dir()), "--offline", &name];
    assert!(imgfs.run(&hosts_own).success().stdout.contains("noise"));
    // A part of a name chooses among those in the directory, as ever.
    let listed = imgfs.run(&["ls", "--images-dir", text(imgfs.images_dir()), "team/"]);
    assert!(listed.success().stdout.starts_with("REFERENCE"));
}

#[test]
fn the_second_look_costs_one_request() {
    let hostile = Hostile::start();
    let (amd, arm) = (image(), Image::new().platform("linux/arm64").layer(1, 100).build());
    Index::new().child(&amd).child(&arm).build().push_to(&hostile, REPOSITORY, "1");
    let name = format!("{}/{REPOSITORY}:1", hostile.host());
    let imgfs = Imgfs::scratch();
    let amd64 = ["--platform", "linux/amd64"];
    for command in [&["ls"][..], &["du"], &["inspect"], &["diff", &name]] {
        let args = [command, &amd64[..], &[name.as_str()]].concat();
        look(&imgfs, &args).success();
        hostile.clear_log();
        look(&imgfs, &args).success();
        let log: Vec<String> =
            hostile.log().iter().map(|s| format!("{} {}", s.method, s.path)).collect();
        assert_eq!(log, [format!("GET /v2/{REPOSITORY}/manifests/1")], "{command:?}");
        assert!(hostile.log()[0].sent < 2000);
    }
    // A file is fetched, and no layer anew.
    hostile.clear_log();
    let args = [&["cat"], &amd64[..], &[name.as_str(), "/etc/name"]].concat();
    assert_eq!(look(&imgfs, &args).success().stdout, "top\n");
    assert_eq!(hostile.requests(), 2);
    assert!(hostile.blob_gets()[0].sent < 1000);
    // Of a digest, nothing has to be asked.
    hostile.clear_log();
    let pinned = format!("{}/{REPOSITORY}@{}", hostile.host(), amd.digest());
    look(&imgfs, &["ls", &pinned, "--platform", "linux/amd64"]).success();
    assert_eq!(hostile.requests(), 0);
}

#[test]
fn indexes_are_kept_for_their_user_alone_and_within_a_bound() {
    let hostile = Hostile::start();
    image().push_to(&hostile, REPOSITORY, "1");
    let name = format!("{}/{REPOSITORY}:1", hostile.host());
    let blob_gets = |imgfs: &Imgfs, args: &[&str]| {
        hostile.clear_log();
        look(imgfs, &[&["ls"], args, &[name.as_str(), "--platform", "linux/amd64"]].concat())
            .success();
        hostile.blob_gets().len()
    };
    let imgfs = Imgfs::scratch();
    let cache = imgfs.home().join(".cache/imgfs");
    assert_eq!(blob_gets(&imgfs, &["--index-cache-size", "0"]), 3);
    assert!(!cache.exists());
    assert_eq!(blob_gets(&imgfs, &[]), 3);
    assert_eq!(std::fs::metadata(&cache).expect("it is there").mode() & 0o7777, 0o700);
    assert_eq!(blob_gets(&imgfs, &[]), 0);
    // Others could have put something there.
    std::fs::set_permissions(&cache, std::fs::Permissions::from_mode(0o777))
        .expect("changing a mode");
    assert_eq!(blob_gets(&imgfs, &[]), 3);
    std::fs::set_permissions(&cache, std::fs::Permissions::from_mode(0o700))
        .expect("changing a mode");
    assert_eq!(blob_gets(&imgfs, &[]), 0);
    // What does not fit is not kept.
    std::fs::remove_dir_all(&cache).expect("removing a directory");
    let bound = ["--index-cache-size", "1K"];
    assert_eq!(blob_gets(&imgfs, &bound), 3);
    let held: u64 = ["layers", "documents"]
        .iter()
        .flat_map(|kind| std::fs::read_dir(cache.join(kind)).into_iter().flatten())
        .map(|entry| entry.expect("an entry").metadata().expect("its metadata").len())
        .sum();
    assert!(held <= 1024, "{held}");
    // Where the specification of base directories says so.
    let place = tempfile::tempdir().expect("making a temporary directory");
    let elsewhere = Imgfs::scratch().env("XDG_CACHE_HOME", place.path());
    assert_eq!(blob_gets(&elsewhere, &[]), 3);
    assert!(
        place.path().join("imgfs/layers").exists() && !elsewhere.home().join(".cache").exists()
    );
    // A damaged index is made anew.
    for file in std::fs::read_dir(place.path().join("imgfs/layers")).expect("listing") {
        std::fs::write(file.expect("an entry").path(), b"damaged").expect("writing");
    }
    assert_eq!(blob_gets(&elsewhere, &[]), 2);
    assert_eq!(blob_gets(&elsewhere, &[]), 0);
}

#[test]
fn an_image_is_inspected() {
    let image = image();
    let arm = Image::new().platform("linux/arm64/v8").layer(2, 100).build();
    let index = Index::new().child(&image).child(&arm).attest().build();
    let hostile = Hostile::start();
    index.push_to(&hostile, REPOSITORY, "1");
    let name = format!("{}/{REPOSITORY}:1", hostile.host());
    let imgfs = Imgfs::scratch();
    let inspect = |args: &[&str]| look(&imgfs, &[&["inspect"], args, &[name.as_str()]].concat());

    let shown = inspect(&["--platform", "linux/amd64"]).success().stdout;
    for part in [
        index.digest(),
        image.digest(),
        "linux/arm64 ",
        "attestation",
        "PATH=/usr/bin:/bin",
        "[\"/bin/true\"]",
        "RUN something --long",
        "ENV x=y",
        &image.layers()[1],
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let report = inspect(&["--json", "--platform", "linux/amd64"]).success().report();
    assert_eq!(report["digest"], index.digest());
    assert_eq!(report["manifest_digest"], image.digest());
    assert_eq!(report["index"], index.json());
    assert_eq!(report["manifest"], image.json());
    assert_eq!(report["config"]["config"]["Cmd"], json!(["/bin/true"]));
    let of_layers = |key: &str| -> Vec<Value> {
        report["layers"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|layer| layer[key].clone())
            .collect()
    };
    assert_eq!(of_layers("digest"), image.layers());
    assert_eq!(of_layers("created_by"), ["ADD base", "RUN something\n  --long"]);
    let steps: Vec<_> =
        report["history"].as_array().expect("a list").iter().map(|step| &step["layer"]).collect();
    assert_eq!(steps, [&json!(0), &Value::Null, &json!(1)]);
    assert!(
        hostile.blob_gets().iter().all(|get| !image.layers().contains(&get.digest().to_owned()))
    );

    let bytes = |of: &Built| String::from_utf8(of.root().bytes.clone()).expect("text");
    assert_eq!(inspect(&["--raw"]).success().stdout, bytes(&index));
    let raw = inspect(&["--raw", "--platform", "linux/amd64"]).success().stdout;
    assert_eq!(raw, bytes(&image));
    let raw = inspect(&["--raw", "--config", "--platform", "linux/amd64"]).success().stdout;
    assert_eq!(serde_json::from_str::<Value>(&raw).expect("JSON"), report["config"]);
    inspect(&["--platform", "linux/s390x"]).expect_code(1).stderr_has("linux/arm64");
    inspect(&["--raw", "--json"]).expect_code(2);
}

#[test]
fn what_is_no_image_is_inspected_too() {
    let hostile = Hostile::start();
    let artifact = Artifact::new("application/vnd.example.thing").blob("text/plain", b"x").build();
    artifact.push_to(&hostile, REPOSITORY, "thing");
    let name = format!("{}/{REPOSITORY}:thing", hostile.host());
    let shown = look(&Imgfs::scratch(), &["inspect", &name]).success().stdout;
    assert!(shown.contains(artifact.digest()) && shown.contains("text/plain"), "{shown}");
}

/// A copy of a mount has no note of what was asked for by its digest.
#[test]
fn a_repository_without_a_name_is_told() {
    let hostile = Hostile::start();
    let (pinned, other) = (single(4), single(5));
    pinned.push_to(&hostile, "team/pinned", "1");
    other.push_to(&hostile, "team/other", "1");
    let (host, imgfs) = (hostile.host(), Imgfs::scratch());
    let name = format!("{host}/team/pinned@{}", pinned.digest());
    imgfs.pull(&[&name, &format!("{host}/team/other:1")]).success();
    let dir = imgfs.images_dir();
    std::fs::remove_dir_all(dir.join("blobs/.imgfs")).expect("removing the notes");
    let told = format!("{host}/team/pinned: left out");
    let list = |args: &[&str]| imgfs.run(&[&["ls", "--images-dir", text(dir)], args].concat());
    list(&[]).success().stderr_has(&told);
    let to = tempfile::tempdir().expect("making a temporary directory");
    let copy = ["copy", "--from", text(dir), "--to", text(to.path())];
    imgfs.run(&[&copy[..], &["--all"]].concat()).success().stderr_has(&told);
    imgfs.run(&[&copy[..], &[&name]].concat()).success();
    assert!(imgfs.run(&["ls", text(to.path())]).success().stdout.contains(pinned.digest()));
    // Named once more, it is an image again.
    imgfs.pull(&[&name]).success();
    assert!(!list(&[]).success().stderr.contains("left out"));

    // Without any image there is nothing to verify, whatever blobs there are.
    for repository in ["team/pinned", "team/other"] {
        std::fs::remove_dir_all(dir.join(&host).join(repository)).expect("removing it");
    }
    imgfs.run(&["verify", "--images-dir", text(dir)]).expect_code(3).stderr_has("no images");
}

#[test]
fn a_digest_takes_one_question() {
    let image = image();
    let index = Index::new().child(&image).build();
    let hostile = Hostile::start();
    index.push_to(&hostile, REPOSITORY, "1");
    let name = format!("{}/{REPOSITORY}:1", hostile.host());
    let imgfs = Imgfs::scratch();
    hostile.clear_log();
    let digest = look(&imgfs, &["digest", &name]).success().stdout;
    assert_eq!(digest, format!("{}\n", index.digest()));
    assert_eq!((hostile.count("HEAD", "/manifests/1"), hostile.requests()), (1, 1));
    hostile.clear_log();
    let digest = look(&imgfs, &["digest", "--platform", "linux/amd64", &name]).success().stdout;
    assert_eq!(digest, format!("{}\n", image.digest()));
    assert_eq!(hostile.requests(), 1);
    let report = look(&imgfs, &["digest", "--json", &name]).success().report();
    assert_eq!(report["digest"], index.digest());
    for (args, code) in [
        (&["digest", "--platform", "linux/riscv64", &name][..], 1),
        (&["digest", &format!("{name}x")], 1),
        (&["digest", "Not/A/Name"], 2),
    ] {
        assert_eq!(look(&imgfs, args).expect_code(code).stdout, "");
    }
    // And of what is local, none.
    imgfs.pull(&[&name]).success();
    hostile.clear_log();
    let dir = text(imgfs.images_dir());
    let local = look(&imgfs, &["digest", "--images-dir", dir, &name]).success().stdout;
    assert_eq!((local, hostile.requests()), (format!("{}\n", index.digest()), 0));
}

#[test]
fn help_ends_with_examples() {
    for command in ["ls", "cat", "inspect", "digest", "diff", "du"] {
        let help = Imgfs::scratch().run(&[command, "--help"]).success().stdout;
        let (_, examples) = help.split_once("\nExamples:\n").unwrap_or_else(|| panic!("{help}"));
        let start = format!("  imgfs {command} ");
        assert!(examples.lines().filter(|line| line.starts_with(&start)).count() >= 2, "{help}");
    }
}
