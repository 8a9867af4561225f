//! `imgfs serve --upstream`: what is not here comes through, once for all, and stays.

use crate::support::cli::Imgfs;
use crate::support::content::digest;
use crate::support::hostile::{Access, Fault, Hostile, Match};
use crate::support::image::{Artifact, Image, single, two_platforms};
use crate::support::serving::Serving;
use crate::support::tree::assert_sparse_tree_sound;
use serde_json::json;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// A server that pulls through `upstream`, and what the repository `team/app` is called there.
fn through(upstream: &Hostile, args: &[&str]) -> (Serving, String) {
    let host = upstream.host();
    let mut all = vec!["--upstream", &host];
    all.extend(args);
    (Serving::fresh(&all), format!("{}/team/app", host.replace(':', "__")))
}

#[test]
fn eight_clients_fetch_one_uncached_blob_and_its_registry_sends_it_once() {
    let upstream = Hostile::start();
    let image = Image::new().layer(1, 6_000_000).build();
    image.push_to(&upstream, "team/app", "v1");
    upstream.set_pace(256 << 10, Duration::from_millis(5));
    let (serving, name) = through(&upstream, &[]);
    let blob = image.layers()[0].clone();
    let target = format!("/v2/{name}/blobs/{blob}");
    serving.client().get(&format!("/v2/{name}/manifests/v1"));
    let expected = image.blobs[&blob].content.to_vec();
    std::thread::scope(|scope| {
        for number in 0..8_usize {
            let (serving, target, expected) = (&serving, &target, &expected);
            scope.spawn(move || {
                let client = serving.client();
                if number % 2 == 0 {
                    assert!(client.get(target).body == *expected);
                    return;
                }
                let (first, last) = (number * 500_000, number * 500_000 + 99_999);
                let range = format!("bytes={first}-{last}");
                let part = client.send("GET", target, &[("Range", &range)], b"");
                assert!(part.expect("a response").body == expected[first..=last]);
            });
        }
    });
    upstream.no_pace();
    assert_eq!(upstream.blob_bytes_sent()[&blob], expected.len() as u64);
    // And never again.
    upstream.clear_log();
    assert_eq!(digest(&serving.client().get(&target).body), blob);
    assert_eq!(upstream.requests(), 0);
}

#[test]
fn a_new_repository_can_be_pushed_to_while_the_registry_of_names_without_one_is_away() {
    let upstream = Hostile::start();
    let host = upstream.host();
    let args = ["--upstream", &*host, "--default-registry", &*host, "--upstream-wait", "1s"];
    let serving = Serving::fresh(&args);
    drop(upstream);
    let image = single(1);
    let blob = image.layers()[0].clone();
    let client = serving.client();
    let target = format!("/v2/team/new/blobs/{blob}");
    // It may be there, for all that is known; but whoever only asks is about to push it.
    assert_eq!(client.get(&target).status, 502);
    assert_eq!(client.ask("HEAD", &target, b"").status, 404);
    image.push_to(&client, "team/new", "v1");
    assert_eq!(client.get("/v2/team/new/manifests/v1").body, image.root().bytes);
    assert_eq!(digest(&client.get(&target).body), blob);
}

#[test]
fn a_docker_list_pulled_twice_moves_nothing_the_second_time() {
    let upstream = Hostile::start();
    let image = crate::support::image::Index::new()
        .docker()
        .child(&Image::new().docker().platform("linux/amd64").layer(2, 9000).build())
        .child(&Image::new().docker().platform("linux/arm64").layer(3, 9000).build())
        .build();
    image.push_to(&upstream, "team/app", "v1");
    let (serving, name) = through(&upstream, &["--tag-ttl", "0s"]);
    let pull = || {
        let client = serving.client();
        assert_eq!(client.get(&format!("/v2/{name}/manifests/v1")).body, image.root().bytes);
        for manifest in &image.manifests {
            let reply = client.get(&format!("/v2/{name}/manifests/{}", manifest.digest));
            assert_eq!(reply.body, manifest.bytes);
            assert_eq!(reply.header("content-type"), manifest.media_type);
        }
        for blob in image.blobs.keys() {
            assert_eq!(&digest(&client.get(&format!("/v2/{name}/blobs/{blob}")).body), blob);
        }
    };
    pull();
    upstream.clear_log();
    pull();
    let log = upstream.log();
    let asked: Vec<_> = log.iter().map(|served| served.method.as_str()).collect();
    assert_eq!(asked, ["HEAD"], "one HEAD a tag, and nothing else: {log:?}");
}

#[test]
fn a_tag_is_asked_for_when_its_time_is_over_and_a_new_digest_is_fetched_by_digest() {
    let upstream = Hostile::start();
    let (first, second) = (single(4), single(5));
    first.push_to(&upstream, "team/app", "v1");
    let (serving, name) = through(&upstream, &["--tag-ttl", "1h"]);
    let (quick, _) = through(&upstream, &["--tag-ttl", "0s"]);
    let target = format!("/v2/{name}/manifests/v1");
    for server in [&serving, &quick] {
        assert_eq!(server.client().get(&target).body, first.root().bytes);
    }
    second.push_to(&upstream, "team/app", "v1");
    upstream.clear_log();
    assert_eq!(serving.client().get(&target).body, first.root().bytes, "it still holds");
    assert_eq!(upstream.requests(), 0);
    assert_eq!(quick.client().get(&target).body, second.root().bytes);
    let gets: Vec<_> = upstream.log().into_iter().filter(|s| s.method == "GET").collect();
    assert!(gets.iter().all(|served| served.path.contains(second.digest())), "{gets:?}");
    // A client that asks for the tag with HEAD, and for the digest with GET.
    let head = quick.client().head(&target);
    assert_eq!(head.header("docker-content-digest"), second.digest());
    let by_digest = format!("/v2/{name}/manifests/{}", second.digest());
    assert_eq!(quick.client().get(&by_digest).body, second.root().bytes);
}

#[test]
fn without_its_upstream_it_starts_and_serves_what_has_come_through() {
    let upstream = Hostile::start();
    let image = two_platforms(6);
    image.push_to(&upstream, "team/app", "v1");
    let signature = Artifact::new("application/x-sig").blob("text/plain", b"s").subject(&image);
    signature.build().push_by_digest(&upstream, "team/app");
    upstream.set_referrers_api(true);
    let (mut serving, name) = through(&upstream, &["--tag-ttl", "0s", "--upstream-wait", "1s"]);
    let client = serving.client();
    let (tag, list) = (format!("/v2/{name}/manifests/v1"), format!("/v2/{name}/tags/list"));
    let referrers = format!("/v2/{name}/referrers/{}", image.digest());
    let fresh = client.get(&tag);
    assert_eq!((fresh.status, fresh.header("warning")), (200, ""));
    assert_eq!(client.get(&list).json()["tags"], json!(["v1"]));
    assert_eq!(client.get(&referrers).json()["manifests"].as_array().map(Vec::len), Some(1));
    for blob in image.blobs.keys() {
        client.get(&format!("/v2/{name}/blobs/{blob}"));
    }
    assert!(serving.stop().success());
    drop(upstream);
    serving.restart();
    let client = serving.client();
    let stale = client.get(&tag);
    assert_eq!((stale.status, &stale.body), (200, &image.root().bytes));
    assert!(stale.header("warning").starts_with("299 - \""), "{stale:?}");
    assert!(stale.header("age").parse::<u64>().is_ok(), "{stale:?}");
    assert_eq!(client.get(&list).json()["tags"], json!(["v1"]));
    assert_eq!(client.get(&referrers).json()["manifests"].as_array().map(Vec::len), Some(1));
    for blob in image.blobs.keys() {
        assert_eq!(&digest(&client.get(&format!("/v2/{name}/blobs/{blob}")).body), blob);
    }
    let missing = client.get(&format!("/v2/{name}/manifests/v2")).status;
    assert!([502, 504].contains(&missing), "{missing}");
    assert_eq!(client.get("/readyz").status, 200);
}

#[test]
fn offline_what_is_not_here_is_not_there() {
    let upstream = Hostile::start();
    let image = single(7);
    image.push_to(&upstream, "team/app", "v1");
    let (mut serving, name) = through(&upstream, &[]);
    serving.client().get(&format!("/v2/{name}/manifests/v1"));
    let layer = image.layers()[0].clone();
    serving.client().get(&format!("/v2/{name}/blobs/{layer}"));
    assert!(serving.stop().success());
    upstream.clear_log();
    let host = upstream.host();
    let offline = Serving::start(serving.images(), &["--upstream", &host, "--offline"]);
    let client = offline.client();
    for (target, status) in [
        (format!("manifests/{}", image.digest()), 200),
        ("manifests/v1".to_owned(), 200),
        ("manifests/v2".to_owned(), 404),
        ("tags/list".to_owned(), 200),
        (format!("blobs/{layer}"), 200),
        (format!("blobs/{}", digest(b"x")), 404),
        (format!("manifests/{}", digest(b"x")), 404),
    ] {
        assert_eq!(client.get(&format!("/v2/{name}/{target}")).status, status, "{target}");
    }
    assert_eq!(upstream.requests(), 0);
}

#[test]
fn other_registries_do_not_exist_and_client_credentials_stay_here() {
    let upstream = Hostile::start();
    single(8).push_to(&upstream, "team/app", "v1");
    let (serving, name) = through(&upstream, &[]);
    let client = serving.client().login();
    assert_eq!(client.get(&format!("/v2/{name}/manifests/v1")).status, 200);
    assert!(upstream.log().iter().all(|served| served.auth_scheme().is_none()));
    let other = client.get("/v2/team/app/manifests/v1?ns=quay.io");
    assert_eq!(other.status, 404);
}

#[test]
fn refusals_name_the_upstream_and_are_not_remembered() {
    let upstream = Hostile::with_access(Access::basic());
    let image = single(9);
    image.push_to(&upstream, "team/app", "v1");
    let files = tempfile::tempdir().expect("a directory");
    let auths = files.path().join("auths.yaml");
    let write = |password: &str| {
        let (host, user) = (upstream.host(), crate::support::hostile::USER);
        let text = format!(
            "auths:\n  - repo: {host}\n    username: {user}\n    password: {password}\n    plain_http: true\n"
        );
        std::fs::write(&auths, text).expect("writing");
    };
    write("wrong");
    let (serving, name) = through(&upstream, &["--auths", crate::support::text(&auths)]);
    let target = format!("/v2/{name}/manifests/v1");
    let refused = serving.client().get(&target);
    assert_eq!((refused.status, refused.code()), (403, "DENIED".into()));
    assert!(String::from_utf8_lossy(&refused.body).contains(&upstream.host()), "{refused:?}");
    // Corrected without a restart.
    write(crate::support::hostile::PASSWORD);
    assert_eq!(serving.client().get(&target).body, image.root().bytes);
}

#[test]
fn a_refusal_at_an_upstream_breaks_no_push_and_a_pushed_tag_is_never_asked_for() {
    let upstream = Hostile::start();
    upstream.on(Match::any()).fault(Fault::status(403));
    let (serving, name) = through(&upstream, &["--tag-ttl", "0s"]);
    let image = single(10);
    image.push_to(&serving.client(), &name, "v1");
    upstream.clear_log();
    assert_eq!(serving.client().get(&format!("/v2/{name}/manifests/v1")).body, image.root().bytes);
    for blob in image.blobs.keys() {
        assert_eq!(serving.client().get(&format!("/v2/{name}/blobs/{blob}")).status, 200);
    }
    assert_eq!(upstream.requests(), 0);
}

#[test]
fn pause_under_its_own_name() {
    let upstream = Hostile::start();
    let (own, hub) = (single(11), single(12));
    hub.push_to(&upstream, "hub/library/pause", "1");
    let place = format!("docker.io=http://{}/hub", upstream.host());
    let serving = Serving::fresh(&["--upstream", &place]);
    let client = serving.client();
    // Nobody has pushed one: it is the default registry's.
    assert_eq!(client.get("/v2/pause/manifests/1").body, hub.root().bytes);
    assert_eq!(client.get("/v2/library/pause/manifests/1").body, hub.root().bytes);
    assert_eq!(client.get("/v2/pause/manifests/1?ns=docker.io").body, hub.root().bytes);
    own.push_to(&client, "pause", "1");
    assert_eq!(client.get("/v2/pause/manifests/1").body, own.root().bytes);
    assert_eq!(client.get("/v2/pause/manifests/1?ns=docker.io").body, hub.root().bytes);
    assert!(serving.images().join("registry.local/pause/manifests/1").is_file());
}

#[test]
fn what_an_upstream_says_when_it_is_busy_is_passed_on() {
    let upstream = Hostile::start();
    single(13).push_to(&upstream, "team/app", "v1");
    let (serving, name) = through(&upstream, &[]);
    upstream.on(Match::any()).fault(Fault::status_with(429, "Retry-After", "77"));
    let busy = serving.client().get(&format!("/v2/{name}/manifests/v1"));
    assert_eq!((busy.status, busy.code()), (429, "TOOMANYREQUESTS".into()));
    assert_eq!(busy.header("retry-after"), "77");
}

#[test]
fn a_wrong_blob_of_an_upstream_never_ends_well() {
    let upstream = Hostile::start();
    let image = Image::new().layer(14, 2_000_000).build();
    image.push_to(&upstream, "team/app", "v1");
    let (serving, name) = through(&upstream, &[]);
    serving.client().get(&format!("/v2/{name}/manifests/v1"));
    let blob = image.layers()[0].clone();
    upstream.on(Match::blobs()).fault(Fault::FlipByte(1000));
    let mut stream = TcpStream::connect(serving.host()).expect("connecting");
    let target = format!("/v2/{name}/blobs/{blob}");
    write!(stream, "GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").expect("asking");
    let mut all = Vec::new();
    let ended = stream.read_to_end(&mut all);
    let is_refused = all.starts_with(b"HTTP/1.1 502");
    assert!(
        is_refused || (ended.is_err() && all.len() < 2_000_000),
        "{} bytes, {ended:?}",
        all.len()
    );
    // Nothing of it is kept.
    upstream.behave();
    assert_eq!(digest(&serving.client().get(&target).body), blob);
}

#[test]
fn an_upstream_that_breaks_off_is_resumed() {
    let upstream = Hostile::start();
    let image = Image::new().layer(15, 3_000_000).build();
    image.push_to(&upstream, "team/app", "v1");
    let (serving, name) = through(&upstream, &[]);
    serving.client().get(&format!("/v2/{name}/manifests/v1"));
    upstream.on(Match::blobs().nth(1)).fault(Fault::TruncateAt(1_000_000));
    let blob = image.layers()[0].clone();
    let got = serving.client().get(&format!("/v2/{name}/blobs/{blob}"));
    assert_eq!(digest(&got.body), blob);
}

#[test]
fn a_whole_blob_is_fetched_to_its_end_though_its_client_leaves() {
    let upstream = Hostile::start();
    let image = Image::new().layer(16, 4_000_000).build();
    image.push_to(&upstream, "team/app", "v1");
    let (serving, name) = through(&upstream, &[]);
    serving.client().get(&format!("/v2/{name}/manifests/v1"));
    upstream.set_pace(256 << 10, Duration::from_millis(20));
    let blob = image.layers()[0].clone();
    let target = format!("/v2/{name}/blobs/{blob}");
    let mut stream = TcpStream::connect(serving.host()).expect("connecting");
    write!(stream, "GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").expect("asking");
    stream.read_exact(&mut [0; 1000]).expect("a beginning");
    drop(stream);
    let whole = serving.images().join("blobs/.imgfs/cache/whole").join(blob.replace(':', "-"));
    crate::support::wait_for("the blob to be whole", Duration::from_secs(20), || whole.is_file());
    upstream.clear_log();
    assert_eq!(digest(&serving.client().get(&target).body), blob);
    assert_eq!(upstream.requests(), 0);
}

#[test]
fn what_is_kept_is_what_a_pull_would_have_made() {
    let upstream = Hostile::start();
    let image = two_platforms(17);
    image.push_to(&upstream, "team/app", "v1");
    let (mut serving, name) = through(&upstream, &["--keep", "--tag-ttl", "0s"]);
    let client = serving.client();
    client.get(&format!("/v2/{name}/manifests/v1"));
    // One platform of two.
    let child = &image.manifests[0];
    client.get(&format!("/v2/{name}/manifests/{}", child.digest));
    let parsed: serde_json::Value = serde_json::from_slice(&child.bytes).expect("a manifest");
    let layers = parsed["layers"].as_array().into_iter().flatten();
    for blob in layers.chain([&parsed["config"]]) {
        let digest = blob["digest"].as_str().expect("a digest");
        client.get(&format!("/v2/{name}/blobs/{digest}"));
    }
    let repository = serving.images().join(format!("{}/team/app/manifests", upstream.host()));
    crate::support::wait_for("the image to be kept", Duration::from_secs(20), || {
        repository.join("v1").is_file()
    });
    // It is still what came through: asked for again.
    let other = single(18);
    other.push_to(&upstream, "team/app", "v1");
    assert_eq!(client.get(&format!("/v2/{name}/manifests/v1")).body, other.root().bytes);
    assert!(serving.stop().success());
    assert_sparse_tree_sound(serving.images());
    Imgfs::new(serving.images()).prune().success();
}

#[test]
fn whatever_an_upstream_does_it_is_right_bytes_or_no_answer() {
    let size = 1_500_000;
    let image = Image::new().layer(19, size).build();
    let blob = image.layers()[0].clone();
    let faults = [
        Fault::TruncateAt(0),
        Fault::TruncateAt(700_000),
        Fault::ResetAfter(300_000),
        Fault::LostConnection,
        Fault::FlipByte(0),
        Fault::FlipByte(size - 1),
        Fault::WrongContentLength(-1),
        Fault::WrongContentLength(1),
        Fault::Chunked,
        Fault::status(404),
        Fault::status(500),
        Fault::status_with(429, "Retry-After", "0"),
        Fault::captive_portal(),
    ];
    // Each with a server of its own, since some of them take a while.
    std::thread::scope(|scope| {
        for (number, fault) in faults.into_iter().enumerate() {
            let (image, blob) = (&image, &blob);
            scope.spawn(move || suffer(image, blob, &fault, number % 4 == 0));
        }
    });
}

/// Fetches a blob of an upstream with this fault, once or for ever, and then of one that behaves.
fn suffer(image: &crate::support::image::Built, blob: &str, fault: &Fault, for_ever: bool) {
    let upstream = Hostile::start();
    image.push_to(&upstream, "team/app", "v1");
    let (serving, name) = through(&upstream, &["--stall-timeout", "2s"]);
    assert_eq!(serving.client().get(&format!("/v2/{name}/manifests/v1")).status, 200);
    let rule = if for_ever { Match::blobs() } else { Match::blobs().first(1) };
    upstream.on(rule).fault(fault.clone());
    let target = format!("/v2/{name}/blobs/{blob}");
    let patience = Duration::from_secs(40);
    let client = crate::support::client::Client::impatient(&serving.host(), patience);
    if let Some(reply) = client.send("GET", &target, &[], b"") {
        let is_right = reply.status == 200 && digest(&reply.body) == blob;
        assert!(is_right || reply.status >= 400, "{fault:?}: {}", reply.status);
    }
    upstream.behave();
    let reply = client.get(&target);
    assert_eq!((reply.status, digest(&reply.body).as_str()), (200, blob), "after {fault:?}");
}

#[test]
fn killed_while_something_comes_through_it_goes_on() {
    let upstream = Hostile::start();
    let image = Image::new().layer(20, 4_000_000).build();
    image.push_to(&upstream, "team/app", "v1");
    let (mut serving, name) = through(&upstream, &["--tag-ttl", "0s"]);
    let blob = image.layers()[0].clone();
    upstream.set_pace(512 << 10, Duration::from_millis(10));
    let mut random = crate::support::content::Random::new(crate::support::seed());
    for _ in 0..crate::support::scale(5, 50) {
        let target = format!("/v2/{name}/blobs/{blob}");
        let client =
            crate::support::client::Client::impatient(&serving.host(), Duration::from_secs(5));
        let tag = format!("/v2/{name}/manifests/v1");
        let reading = std::thread::spawn(move || {
            let _ = client.send("GET", &tag, &[], b"");
            let _ = client.send("GET", &target, &[], b"");
        });
        std::thread::sleep(Duration::from_millis(random.below(90)));
        serving.kill9();
        reading.join().expect("a reader");
        serving.restart();
    }
    upstream.no_pace();
    let client = serving.client();
    assert_eq!(client.get(&format!("/v2/{name}/manifests/v1")).body, image.root().bytes);
    assert_eq!(digest(&client.get(&format!("/v2/{name}/blobs/{blob}")).body), blob);
}

#[test]
fn a_size_that_an_upstream_gets_wrong_is_not_believed_for_long() {
    let image = Image::new().layer(21, 300_000).build();
    let blob = image.layers()[0].clone();
    for wrong in [-300_000, 7] {
        let upstream = Hostile::start();
        image.push_to(&upstream, "team/app", "v1");
        let (serving, name) = through(&upstream, &["--stall-timeout", "2s"]);
        let head = Match::blobs().method("HEAD");
        upstream.on(head).fault(Fault::WrongContentLength(wrong));
        // No manifest has come through that says how large it is.
        let target = format!("/v2/{name}/blobs/{blob}");
        let is_right = || {
            let reply = serving.client().send("GET", &target, &[], b"");
            reply.is_some_and(|reply| {
                let is_right = reply.status == 200 && digest(&reply.body) == blob;
                assert!(is_right || reply.status >= 400, "{wrong}: {reply:?}");
                is_right
            })
        };
        is_right();
        upstream.behave();
        crate::support::wait_for("the right size", Duration::from_secs(60), is_right);
    }
}
