//! Object stores: which requests are made, what happens when they fail, and many writers at once.

use crate::places::{Bed, listed};
use crate::support::cli::{Imgfs, Output, Running};
use crate::support::hostile::{Hostile, Served};
use crate::support::image::{
    Artifact, Built, Image, digest_tag, push_referrers_with_fallback_tag, single, two_platforms,
};
use crate::support::s3::{Dialect, Fault, LOST, S3};
use crate::support::tree::{self, assert_tree_sound};
use crate::support::{text, wait_for};
use std::collections::BTreeSet;
use std::time::Duration;

fn client(store: &S3) -> Imgfs {
    Imgfs::scratch().envs(store.environment())
}

fn bed() -> (S3, Bed) {
    bed_of(Dialect::S3)
}

fn bed_of(dialect: Dialect) -> (S3, Bed) {
    let store = S3::like(dialect);
    let imgfs = client(&store);
    (store, Bed::with(imgfs))
}

/// One of each kind.
fn beds() -> impl Iterator<Item = (S3, Bed)> {
    Dialect::ALL.into_iter().map(bed_of)
}

/// A directory with an image that has a layer of so many bytes.
fn image_of(bed: &Bed, bytes: u64) -> String {
    let dir = bed.path("large");
    tree::kubekey_g1(&dir, "quay.io", "x/large", "1", &Image::new().layer(5, bytes).build());
    text(&dir).to_owned()
}

#[test]
fn keys_are_the_paths_of_a_directory_of_images() {
    let (store, bed) = bed();
    let (from, app, other) = bed.images();
    bed.copy(&from, &store.place("some/prefix"), &["--all"]).success();
    let keys = store.keys();
    let mut expected: BTreeSet<String> = app
        .blobs
        .keys()
        .chain(other.blobs.keys())
        .map(|digest| format!("some/prefix/blobs/{digest}"))
        .collect();
    for (image, repository, tag) in [(&app, "team/app", "v1"), (&other, "team/other", "v2")] {
        let dir = format!("some/prefix/quay.io/{repository}/manifests");
        expected
            .extend(image.manifests.iter().map(|manifest| format!("{dir}/{}", manifest.digest)));
        expected.insert(format!("{dir}/{tag}"));
    }
    expected.insert("some/prefix/blobs/.imgfs/probe".to_owned());
    assert_eq!(keys, expected);
    assert_eq!(
        store.object("some/prefix/quay.io/team/app/manifests/v1"),
        Some(app.root().bytes.clone())
    );
}

#[test]
fn a_blob_is_one_get_or_one_head_and_one_put_and_nothing_is_listed() {
    let (store, bed) = bed();
    let (from, app, other) = bed.images();
    let place = store.place("p");
    let blobs: Vec<&String> = app.blobs.keys().chain(other.blobs.keys()).collect();
    let images = ["quay.io/team/app:v1", "quay.io/team/other:v2"];
    bed.copy(&from, &place, &images).success();
    for blob in &blobs {
        assert_eq!(store.requests("HEAD", blob), 1, "{}", store.log());
        // In its manifest's key there is no blob's digest.
        assert_eq!(store.requests("PUT", &format!("blobs/{blob}")), 1, "{}", store.log());
    }
    assert_eq!(store.requests("POST", ""), 0, "small blobs are not sent in parts: {}", store.log());
    assert_eq!(store.requests("GET", "list-type"), 0, "{}", store.log());

    store.clear_log();
    bed.copy(&place, text(&bed.path("to")), &images).success();
    assert_tree_sound(&bed.path("to"));
    for blob in &blobs {
        assert_eq!(store.requests("GET", &format!("blobs/{blob}")), 1, "{}", store.log());
    }
    // Besides, the tags and the children of the index; and one list of the tags of each repository, which says what is
    // attached to its images.
    let manifests = app.manifests.len() + other.manifests.len();
    let lists =
        ["team/app", "team/other"].map(|name| format!("prefix=p/quay.io/{name}/manifests/"));
    for list in &lists {
        assert_eq!(store.requests("GET", list), 1, "{}", store.log());
    }
    assert_eq!(store.all_requests(), blobs.len() + manifests + lists.len(), "{}", store.log());

    // What is there already costs a request an image.
    store.clear_log();
    let output = bed.copy(&from, &place, &images).success();
    assert!(
        output.images().iter().all(|image| image["status"] == "unchanged"),
        "{output}\n{}",
        store.log()
    );
    assert_eq!(store.requests("PUT", "sha256"), 0, "{}", store.log());
    assert_eq!(store.all_requests(), images.len(), "{}", store.log());

    // One that is sent in parts is looked for once, begun once, and completed once.
    let large = image_of(&bed, 17_000_000);
    store.clear_log();
    bed.copy(&large, &place, &["--all"]).success();
    for (method, part, count) in
        [("POST", "uploads", 1), ("PUT", "partNumber", 4), ("POST", "uploadId", 1)]
    {
        assert_eq!(store.requests(method, part), count, "{}", store.log());
    }
    assert_eq!(store.requests("HEAD", ""), 2, "its layer and its configuration: {}", store.log());
    // The tag before and when it is written, two blobs looked for, seven requests to store them, the probe, and the
    // manifest under its two names.
    assert_eq!(store.all_requests(), 14, "{}", store.log());
}

#[test]
fn a_range_of_a_blob_is_a_range_of_the_object() {
    let (store, bed) = bed();
    let (from, place) = (image_of(&bed, 12_000_000), store.place("p"));
    let dir = bed.path("with-files");
    let image = Image::new().layer_gzip_tar(&[("etc/x", b"content")]).layer(5, 12_000_000).build();
    tree::kubekey_g1(&dir, "quay.io", "x/files", "1", &image);
    bed.copy(&from, &place, &["--all"]).success();
    bed.copy(text(&dir), &place, &["--all"]).success();
    let output = bed.imgfs.run(&["inspect", "--from", &place, "quay.io/x/files:1"]).success();
    assert!(output.stdout.contains("linux/amd64"), "{output}");
    assert_eq!(store.requests("GET", "list-type"), 0, "{}", store.log());
}

#[test]
fn a_large_blob_is_sent_in_parts_and_a_failed_one_leaves_nothing() {
    let (store, bed) = bed();
    let (from, place) = (image_of(&bed, 17_000_000), store.place("p"));
    // All attempts of one part fail, for good.
    store.fail(Fault { method: "PUT", part: "partNumber=2", status: 403, code: "AccessDenied" });
    bed.copy(&from, &place, &["--all"]).expect_code(1);
    assert_eq!(store.open_uploads(), 0, "the upload is aborted: {}", store.log());
    assert!(!store.keys().iter().any(|key| key.contains("manifests")), "{:?}", store.keys());
    let large = |keys: BTreeSet<String>| {
        keys.into_iter().filter(|key| key.contains("blobs/sha256")).count()
    };
    assert_eq!(large(store.keys()), 1, "only the configuration is there");

    store.clear_log();
    bed.copy(&from, &place, &["--all"]).success();
    assert_eq!(store.requests("POST", "uploads"), 1, "{}", store.log());
    // A part of the upload that was aborted may still have been on its way.
    let log = store.log();
    let completed = log.lines().filter(|line| line.starts_with("POST"));
    let mut upload = completed.filter_map(|line| line.split_once("?uploadId=")).map(|(_, id)| id);
    let upload = format!("uploadId={}", upload.next_back().expect("one that was completed"));
    assert_eq!(store.requests("PUT", &upload), 4, "{log}");
    bed.copy(&place, text(&bed.path("to")), &["--all"]).success();
    assert_tree_sound(&bed.path("to"));
}

/// Begins to send a blob in parts, of which the third does not get through, and waits until it is there.
fn stuck_between_parts(store: &S3, bed: &Bed, from: &str, place: &str) -> Running {
    for _ in 0..50 {
        let part = "partNumber=3";
        store.fail(Fault { method: "PUT", part, status: 503, code: "SlowDown" });
    }
    let run = bed.imgfs.spawn(&["copy", "--json", "--from", from, "--to", place, "--all"]);
    wait_for("the third part", Duration::from_secs(20), || store.seen("PUT", "partNumber=3") > 0);
    run
}

#[test]
fn a_run_that_is_killed_between_the_parts_names_nothing_and_the_next_one_completes() {
    let (store, bed) = bed();
    let (from, place) = (image_of(&bed, 17_000_000), store.place("p"));
    let run = stuck_between_parts(&store, &bed, &from, &place);
    run.kill9();
    store.heal();
    assert_eq!(store.open_uploads(), 1, "nobody is left to abort it: {}", store.log());
    let large = |keys: BTreeSet<String>| {
        keys.into_iter().filter(|key| key.contains("blobs/sha256")).count()
    };
    assert!(large(store.keys()) <= 1, "at most the configuration is there: {:?}", store.keys());
    assert!(!store.keys().iter().any(|key| key.contains("manifests")), "{:?}", store.keys());

    bed.copy(&from, &place, &["--all"]).success();
    // The store's rules remove the one that was left; it is in nobody's way.
    assert_eq!(store.open_uploads(), 1, "the second run leaves none: {}", store.log());
    bed.imgfs.run(&["verify", &place]).success();
    bed.copy(&place, text(&bed.path("to")), &["--all"]).success();
    assert_tree_sound(&bed.path("to"));
}

#[test]
fn a_store_that_is_killed_between_the_parts_and_comes_back_gets_the_rest_or_all_of_them() {
    for is_lost in [false, true] {
        let (store, bed) = bed();
        let (from, place) = (image_of(&bed, 17_000_000), store.place("p"));
        let run = stuck_between_parts(&store, &bed, &from, &place);
        if is_lost {
            store.lose_uploads();
        }
        store.heal();
        let output = run.wait();
        assert_eq!(store.open_uploads(), 0, "{}", store.log());
        match is_lost {
            false => drop(output.success()),
            true => {
                let output = output.expect_code(1).stderr_has("NoSuchUpload");
                assert!(output.stderr.contains("hint: run the same command again"), "{output}");
                let keys = store.keys();
                assert!(!keys.iter().any(|key| key.contains("manifests")), "{keys:?}");
                bed.copy(&from, &place, &["--all"]).success();
            }
        }
        bed.imgfs.run(&["verify", &place]).success();
    }
}

#[test]
fn a_key_appears_only_when_the_digest_was_right() {
    let (store, bed) = bed();
    for bytes in [5_000, 6_000_000] {
        let dir = bed.path(&format!("damaged-{bytes}"));
        let image = Image::new().layer(6, bytes).build();
        tree::kubekey_g1(&dir, "quay.io", "x/y", "1", &image);
        let hostile = Hostile::start();
        image.push_to(&hostile, "x/y", "1");
        let layer = image.layers()[0].clone();
        let file = dir.join("blobs").join(&layer);
        tree::flip_byte_quietly(&file, 100);
        bed.copy(text(&dir), &store.place("p"), &["--all"])
            .expect_code(1)
            .stderr_has("digest mismatch");
        assert!(!store.keys().iter().any(|key| key.contains(&layer)), "{:?}", store.keys());
        assert_eq!(store.open_uploads(), 0);
    }
}

#[test]
fn what_fails_for_a_moment_is_repeated() {
    let (store, bed) = bed();
    let (from, ..) = bed.images();
    let place = store.place("p");
    for (method, part, status, code) in [
        ("PUT", "blobs/sha256", 500, "InternalError"),
        ("PUT", "blobs/sha256", 503, "SlowDown"),
        ("PUT", "manifests", 503, "SlowDown"),
        ("HEAD", "blobs", 500, ""),
        ("PUT", "manifests/v1", 412, "PreconditionFailed"),
    ] {
        store.fail(Fault { method, part, status, code });
    }
    bed.copy(&from, &place, &["--all"]).success();
    assert_eq!(store.faults_left(), 0);
    for (part, status) in [("blobs/sha256", 500), ("manifests", 503), ("blobs/sha256", 0)] {
        store.fail(Fault { method: "GET", part, status, code: "SlowDown" });
    }
    bed.copy(&place, text(&bed.path("to")), &["--all"]).success();
    assert_eq!(store.faults_left(), 0);
    assert_tree_sound(&bed.path("to"));
}

#[test]
fn credentials_that_do_not_hold_are_told() {
    let (store, bed) = bed();
    let (from, ..) = bed.images();
    for (status, code) in
        [(403, "RequestTimeTooSkewed"), (403, "ExpiredToken"), (401, "Unauthorized")]
    {
        store.fail(Fault { method: "PUT", part: "probe", status, code });
        let output = bed.copy(&from, &store.place("p"), &["quay.io/team/app:v1"]).expect_code(1);
        assert!(output.stderr.contains(code) || output.stderr.contains("credentials"), "{output}");
    }
    assert_eq!(store.keys().len(), 0, "{:?}", store.keys());
    // In the middle: what was there before stays, and a later run goes on.
    store.fail(Fault { method: "PUT", part: "manifests/v1", status: 403, code: "ExpiredToken" });
    bed.copy(&from, &store.place("p"), &["--all"]).expect_code(1);
    bed.copy(&from, &store.place("p"), &["--all"]).success();
    bed.imgfs.run(&["verify", &store.place("p")]).success();
}

#[test]
fn a_store_without_conditions_is_refused_unless_there_is_one_writer() {
    for (store, bed) in beds() {
        store.ignore_conditions();
        let (from, ..) = bed.images();
        let place = store.place("p");
        let output = bed.copy(&from, &place, &["--all"]).expect_code(1);
        assert!(
            output.stderr.contains("does not write on conditions")
                && output.stderr.contains("--single-writer"),
            "{output}"
        );
        assert!(!store.keys().iter().any(|key| key.contains("manifests")), "{:?}", store.keys());
        bed.copy(&from, &place, &["--all", "--single-writer"]).success();
        assert_eq!(listed(&bed.imgfs, &place).len(), 2);
    }
}

/// Small blobs and large ones, names, and lists, there and back.
#[test]
fn stores_of_each_kind_give_back_what_they_are_given() {
    for (store, bed) in beds() {
        let ((from, app, other), place) = (bed.images(), store.place("some/prefix"));
        let large = image_of(&bed, 17_000_000);
        bed.copy(&from, &place, &["--all"]).success();
        bed.copy(&large, &place, &["--all"]).success();
        assert_eq!(store.requests("PUT", store.of_parts()), 4, "{}", store.log());
        assert_eq!(store.open_uploads(), 0, "{}", store.log());
        assert_eq!(listed(&bed.imgfs, &place).len(), 3);
        bed.imgfs.run(&["verify", &place]).success();
        let output = bed.copy(&from, &place, &["--all"]).success();
        assert!(output.images().iter().all(|image| image["status"] == "unchanged"), "{output}");
        let to = bed.path("to");
        bed.copy(&place, text(&to), &["--all"]).success();
        assert_tree_sound(&to);
        for digest in app.blobs.keys().chain(other.blobs.keys()) {
            assert!(to.join("blobs").join(digest).is_file(), "{digest}");
        }
        // A tag moves, and does so only from where it was.
        let (dir, moved) = (bed.path("moved"), single(77));
        tree::kubekey_g1(&dir, "quay.io", "team/other", "v2", &moved);
        let (method, part) = ("PUT", "manifests/v2");
        store.fail(Fault { method, part, status: 412, code: "PreconditionFailed" });
        bed.copy(text(&dir), &place, &["--all"]).success();
        assert_eq!(store.faults_left(), 0);
        let key = "some/prefix/quay.io/team/other/manifests/v2";
        assert_eq!(store.object(key), Some(moved.root().bytes.clone()));
    }
}

#[test]
fn a_failed_part_takes_the_others_with_it_in_stores_of_each_kind() {
    for (store, bed) in beds() {
        let (from, place) = (image_of(&bed, 17_000_000), store.place("p"));
        let part = store.of_parts();
        store.fail(Fault { method: "PUT", part, status: 403, code: "AccessDenied" });
        bed.copy(&from, &place, &["--all"]).expect_code(1);
        assert!(!store.keys().iter().any(|key| key.contains("manifests")), "{:?}", store.keys());
        // Azure cannot be told to forget blocks that may have come; they go with the next list, or after a week.
        let left = usize::from(store.dialect() == Dialect::Azure);
        assert!(store.open_uploads() <= left, "{}", store.log());
        bed.copy(&from, &place, &["--all"]).success();
        assert_eq!(store.open_uploads(), 0, "{}", store.log());
        bed.imgfs.run(&["verify", &place]).success();
    }
}

/// The store has done it, and the answer is lost; the second time there is nothing left to complete. Two writers of one
/// blob look the same in Azure.
#[test]
fn a_large_blob_whose_completion_nobody_has_confirmed_is_looked_for() {
    for (store, bed) in beds() {
        let (from, place) = (image_of(&bed, 17_000_000), store.place("p"));
        let (method, part) = match store.dialect() {
            Dialect::S3 | Dialect::Gcs => ("POST", "uploadId="),
            Dialect::Azure => ("PUT", "comp=blocklist"),
        };
        store.fail(Fault { method, part, status: LOST, code: "" });
        bed.copy(&from, &place, &["--all"]).success();
        assert_eq!(store.faults_left(), 0);
        assert_eq!(store.requests("PUT", store.of_parts()), 4, "{}", store.log());
        bed.imgfs.run(&["verify", &place]).success();
    }
}

#[test]
fn writers_of_one_list_of_referrers_lose_nothing() {
    for (store, bed) in beds() {
        writers_of_one_list(&store, &bed);
    }
}

fn writers_of_one_list(store: &S3, bed: &Bed) {
    let subject = single(3);
    let place = store.place("p");
    let mut runs = Vec::new();
    let clients: Vec<Imgfs> = (0..8).map(|_| client(store)).collect();
    let hostiles: Vec<Hostile> = (0..8)
        .map(|at: usize| {
            let hostile = Hostile::start();
            subject.push_to(&hostile, "team/app", "1");
            let referrer = Artifact::new("application/x-test")
                .blob("text/plain", format!("referrer {at}").as_bytes())
                .subject(&subject)
                .build();
            referrer.push_by_digest(&hostile, "team/app");
            push_referrers_with_fallback_tag(&hostile, "team/app", subject.digest(), &[&referrer]);
            hostile
        })
        .collect();
    for (imgfs, hostile) in clients.iter().zip(&hostiles) {
        let from = format!("registry://{}", hostile.host());
        let dest = "quay.io/team/app:1";
        runs.push(imgfs.spawn(&[
            "copy",
            "--json",
            "--plain-http",
            "--referrers",
            "--from",
            &from,
            "--to",
            &place,
            "--dest",
            dest,
            "team/app:1",
        ]));
    }
    for run in runs {
        run.wait().success();
    }
    let key = format!("p/quay.io/team/app/manifests/{}", digest_tag(subject.digest(), ""));
    let list = store.object(&key).expect("there is a list of referrers");
    let list: serde_json::Value = serde_json::from_slice(&list).expect("JSON");
    assert_eq!(list["manifests"].as_array().map(Vec::len), Some(8), "{list:#}");
    let output =
        bed.copy(&place, text(&bed.path("to")), &["quay.io/team/app:1", "--referrers"]).success();
    assert_eq!(output.images()[0]["losses"], serde_json::json!([]), "{output}");
}

/// The registry was asked once for each blob, and for nothing else.
#[track_caller]
fn assert_fetched_once(hostile: &Hostile, images: [&Built; 2]) {
    let expected: BTreeSet<&str> =
        images.iter().flat_map(|image| image.blobs.keys()).map(String::as_str).collect();
    let gets = hostile.blob_gets();
    let mut fetched: Vec<&str> = gets.iter().map(Served::digest).collect();
    fetched.sort_unstable();
    assert_eq!(fetched, expected.into_iter().collect::<Vec<_>>());
}

/// The same into a directory that all of them mount.
#[test]
fn shards_of_one_directory_fetch_every_blob_once() {
    let (hostile, bed) = (Hostile::start(), Bed::new());
    let (image, other) = (two_platforms(62), two_platforms(63));
    image.push_to(&hostile, "team/app", "1");
    other.push_to(&hostile, "team/other", "2");
    let names = ["team/app:1", "team/other:2"].map(|name| format!("{}/{name}", hostile.host()));
    let dir = bed.path("images");
    let runs = ["1/4", "2/4", "3/4", "4/4"].map(|shard| {
        let args = ["pull", "--plain-http", "--images-dir", text(&dir), "--shard", shard];
        bed.imgfs.spawn(&[&args[..], &[&*names[0], &*names[1]]].concat())
    });
    for run in runs {
        run.wait().success();
    }
    assert_fetched_once(&hostile, [&image, &other]);
    assert_tree_sound(&dir);
}

/// Each of four workers fetches its own blobs, and all of them together fetch each once.
#[test]
fn shards_fetch_every_blob_once() {
    let (store, bed) = bed();
    let hostile = Hostile::start();
    let mut image = Image::new();
    for seed in 0..12 {
        image = image.layer(100 + seed, 3000);
    }
    let image = image.build();
    image.push_to(&hostile, "team/app", "1");
    let other = two_platforms(61);
    other.push_to(&hostile, "team/other", "2");
    let names = ["team/app:1", "team/other:2"].map(|name| format!("{}/{name}", hostile.host()));
    let clients: Vec<Imgfs> = (0..4).map(|_| client(&store)).collect();
    let place = store.place("p");
    let runs: Vec<_> = clients
        .iter()
        .enumerate()
        .map(|(at, imgfs)| {
            let shard = format!("{}/4", at + 1);
            imgfs.spawn(&[
                "pull",
                "--json",
                "--plain-http",
                "--images-dir",
                &place,
                "--shard",
                &shard,
                &names[0],
                &names[1],
            ])
        })
        .collect();
    let outputs: Vec<Output> = runs.into_iter().map(|run| run.wait().success()).collect();
    let blobs = image.blobs.len() + other.blobs.len();
    assert_fetched_once(&hostile, [&image, &other]);
    let moved: u64 = outputs.iter().map(|output| output.number("fetched_blobs")).sum();
    assert_eq!(moved, blobs as u64);
    for blob in image.blobs.keys().chain(other.blobs.keys()) {
        assert_eq!(store.requests("PUT", &format!("blobs/{blob}")), 1, "{}", store.log());
    }
    bed.copy(&place, text(&bed.path("to")), &["--all"]).success();
    assert_tree_sound(&bed.path("to"));
    for wrong in ["0/4", "5/4", "1", "a/b"] {
        bed.imgfs.run(&["pull", "--shard", wrong, "x:1"]).expect_code(2);
    }
}
