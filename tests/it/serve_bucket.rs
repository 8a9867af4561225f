//! `imgfs serve` over a bucket: which requests it makes, what happens when they fail, and several servers at once.

use crate::support::cli::Imgfs;
use crate::support::client::{Client, Reply};
use crate::support::content::digest;
use crate::support::hostile::Hostile;
use crate::support::image::{Image, OCI_CONFIG, OCI_GZIP, OCI_MANIFEST, single};
use crate::support::s3::{BROKEN, Fault, S3};
use crate::support::serving::Serving;
use crate::support::wait_for;
use serde_json::json;
use sha2::{Digest as _, Sha512};
use std::time::Duration;

const PREFIX: &str = "some/prefix";

fn serving(store: &S3, args: &[&str]) -> Serving {
    Serving::bucket(&store.place(PREFIX), store.environment(), args)
}

fn blob_key(digest: &str) -> String {
    format!("{PREFIX}/blobs/{digest}")
}

/// Bytes for which one part does not suffice.
fn large(seed: u8) -> Vec<u8> {
    (0..8 << 20).map(|at: u32| (at / 251) as u8 ^ seed).collect()
}

/// A manifest of an image with one layer.
fn manifest(layer: &[u8]) -> Vec<u8> {
    let config = json!({"mediaType": OCI_CONFIG, "digest": digest(b"{}"), "size": 2});
    let layer = json!({"mediaType": OCI_GZIP, "digest": digest(layer), "size": layer.len()});
    json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]})
        .to_string()
        .into_bytes()
}

#[track_caller]
fn push_manifest(client: &Client, repository: &str, tag: &str, bytes: &[u8]) -> Reply {
    client.manifest(repository, tag, OCI_MANIFEST, bytes).expect("a response")
}

fn slow_down(method: &'static str, part: &'static str) -> Fault {
    Fault { method, part, status: 503, code: "SlowDown" }
}

#[test]
fn a_blob_is_one_get_or_one_head_and_a_tag_one_get() {
    let store = S3::start();
    let writer = serving(&store, &[]);
    let image = single(1);
    image.push_to(&writer.client(), "team/app", "v1");
    let reader = serving(&store, &["--read-only"]);
    let client = reader.client();
    let manifest = "/v2/team/app/manifests/v1";
    assert_eq!(client.get(manifest).body, image.root().bytes);
    let blobs: Vec<&String> = image.blobs.keys().collect();
    // What the repository lacks is looked for once.
    assert_eq!(client.head(&format!("/v2/team/app/blobs/{}", blobs[0])).status, 200);
    for blob in &blobs {
        let target = format!("/v2/team/app/blobs/{blob}");
        store.clear_log();
        assert_eq!(client.get(&target).status, 200);
        let log = store.log();
        assert_eq!((store.all_requests(), store.requests("GET", blob)), (1, 1), "{log}");
        store.clear_log();
        assert_eq!(client.head(&target).status, 200);
        assert_eq!((store.all_requests(), store.requests("HEAD", blob)), (1, 1), "{}", store.log());
        store.clear_log();
        let reply =
            client.send("GET", &target, &[("Range", "bytes=0-0")], b"").expect("a response");
        assert_eq!((reply.status, reply.body.len()), (206, 1));
        assert_eq!((store.all_requests(), store.requests("GET", blob)), (1, 1), "{}", store.log());
    }
    store.clear_log();
    assert_eq!(client.get(manifest).body, image.root().bytes);
    assert_eq!(client.head(manifest).status, 200);
    assert_eq!(store.all_requests(), 2, "{}", store.log());
    store.clear_log();
    assert_eq!(client.get(&format!("/v2/team/app/manifests/{}", image.digest())).status, 200);
    assert!(store.all_requests() <= 1, "{}", store.log());
    store.clear_log();
    assert_eq!(client.get(&format!("/v2/team/app/manifests/{}", image.digest())).status, 200);
    assert_eq!(store.all_requests(), 0, "{}", store.log());
}

#[test]
fn a_bucket_that_was_filled_by_a_copy_is_served() {
    let store = S3::start();
    let dir = tempfile::tempdir().expect("a directory");
    let image = Image::new().layer(5, 100_000).build();
    crate::support::tree::kubekey_g1(dir.path(), "quay.io", "x/app", "1", &image);
    let imgfs = Imgfs::scratch().envs(store.environment());
    let from = dir.path().to_str().expect("a path");
    imgfs.run(&["copy", "--from", from, "--to", &store.place(PREFIX), "--all"]).success();
    let reader = serving(&store, &["--read-only"]);
    let client = reader.client();
    // A blob comes also to those who have not asked for its manifest here.
    for (blob, content) in &image.blobs {
        let reply = client.get(&format!("/v2/quay.io/x/app/blobs/{blob}"));
        assert_eq!((reply.status, digest(&reply.body)), (200, content.digest.clone()));
        assert_eq!(client.get(&format!("/v2/quay.io/x/other/blobs/{blob}")).status, 404);
    }
    let catalog = client.get("/v2/_catalog").json();
    assert_eq!(catalog["repositories"], json!(["quay.io/x/app"]));
    let tags = client.get("/v2/quay.io/x/app/tags/list?n=1").json();
    assert_eq!(tags["tags"], json!(["1"]));
}

#[test]
fn large_blobs_come_in_each_of_the_ways() {
    let store = S3::start();
    let server = serving(&store, &[]);
    let client = server.client();
    for (number, seed) in (1..=4).enumerate() {
        let bytes = large(seed);
        let sha512 = format!("sha512:{}", hex::encode(Sha512::digest(&bytes)));
        let is_known = matches!(number, 0 | 1);
        let name = if number == 3 { sha512.clone() } else { digest(&bytes) };
        let reply = match number {
            // In one request, in two, and in pieces.
            0 => {
                let target = format!("/v2/team/app/blobs/uploads/?digest={name}");
                client.ask("POST", &target, &bytes)
            }
            1 => client.put_as(&client.begin("team/app"), &name, &bytes).expect("a response"),
            _ => {
                let mut location = client.begin("team/app");
                for (at, piece) in bytes.chunks(5_000_000).enumerate() {
                    let reply = client.patch(&location, at * 5_000_000, piece).expect("a response");
                    assert_eq!(reply.status, 202, "{reply:?}");
                    location = reply.header("location").to_owned();
                }
                client.put_as(&location, &name, b"").expect("a response")
            }
        };
        assert_eq!(reply.status, 201, "{number}: {reply:?}");
        assert_eq!(store.object(&blob_key(&name)).as_ref(), Some(&bytes), "{number}");
        let uploads = store.keys().into_iter().filter(|key| key.contains("/uploads/")).count();
        assert_eq!((uploads, store.open_uploads()), (0, 0), "{number}");
        // Where the digest is known from the beginning, nothing is copied.
        assert_eq!(store.requests("POST", "/uploads/") > 0, !is_known, "{}", store.log());
        store.clear_log();
        let got = client.get(&format!("/v2/team/app/blobs/{name}"));
        assert!(got.body == bytes, "{number}");
    }
}

#[test]
fn a_wrong_digest_leaves_no_key() {
    let store = S3::start();
    let server = serving(&store, &[]);
    let client = server.client();
    let before = store.keys();
    let (small, large) = (b"small".to_vec(), large(9));
    let wrong = digest(b"something else");
    for bytes in [&small, &large] {
        let target = format!("/v2/team/app/blobs/uploads/?digest={wrong}");
        let reply = client.ask("POST", &target, bytes);
        assert_eq!((reply.status, reply.code()), (400, "DIGEST_INVALID".to_owned()));
        let location = client.begin("team/app");
        let location = client.patch(&location, 0, bytes).expect("a response");
        let location = location.header("location").to_owned();
        let reply = client.put_as(&location, &wrong, b"").expect("a response");
        assert_eq!((reply.status, reply.code()), (400, "DIGEST_INVALID".to_owned()));
        assert_eq!(client.get(&location).status, 404, "it has ended");
    }
    assert_eq!((store.keys(), store.open_uploads()), (before, 0), "{}", store.log());
    assert_eq!(client.head(&format!("/v2/team/app/blobs/{wrong}")).status, 404);
}

#[test]
fn several_servers_over_one_bucket() {
    let store = S3::start();
    let servers = [serving(&store, &["--allow-delete"]), serving(&store, &["--allow-delete"])];
    let clients = || servers.iter().map(Serving::client);
    // What one has taken, the other gives at once.
    let image = single(1);
    image.push_to(&servers[0].client(), "team/app", "v1");
    let other = servers[1].client();
    assert_eq!(other.get("/v2/team/app/manifests/v1").body, image.root().bytes);
    let newer = single(2);
    newer.push_to(&servers[0].client(), "team/app", "v1");
    assert_eq!(other.get("/v2/team/app/manifests/v1").body, newer.root().bytes);
    for blob in newer.blobs.keys() {
        assert_eq!(other.get(&format!("/v2/team/app/blobs/{blob}")).status, 200);
    }
    // All at once: one blob, and many tags.
    let layer = large(3);
    let bytes = manifest(&layer);
    std::thread::scope(|scope| {
        for (number, client) in clients().enumerate() {
            let (layer, bytes) = (&layer, &bytes);
            scope.spawn(move || {
                assert_eq!(client.upload("team/many", layer).status, 201);
                assert_eq!(client.upload("team/many", b"{}").status, 201);
                for tag in 0..10 {
                    let tag = format!("t{tag}-{number}");
                    let reply = push_manifest(&client, "team/many", &tag, bytes);
                    assert_eq!(reply.status, 201, "{reply:?}");
                }
            });
        }
    });
    for client in clients() {
        let tags = client.get("/v2/team/many/tags/list").json();
        assert_eq!(tags["tags"].as_array().map(Vec::len), Some(20), "{tags}");
        assert!(client.get(&format!("/v2/team/many/blobs/{}", digest(&layer))).body == layer);
    }
    // An upload is known to the server that began it.
    let location = servers[0].client().begin("team/app");
    let reply = other.put(&location, b"x").expect("a response");
    assert_eq!((reply.status, reply.code()), (404, "BLOB_UPLOAD_UNKNOWN".to_owned()));
    assert_eq!(servers[0].client().put(&location, b"x").expect("a response").status, 201);
    assert_eq!(other.ask("DELETE", "/v2/team/app/manifests/v1", b"").status, 202);
    assert_eq!(servers[0].client().get("/v2/team/app/manifests/v1").status, 404);
}

#[test]
fn to_name_a_blob_gives_nobody_the_blob_of_another_repository() {
    let store = S3::start();
    let servers = [serving(&store, &["--sparse"]), serving(&store, &["--sparse"])];
    let [first, second] = [servers[0].client(), servers[1].client()];
    let layer = b"a secret of others";
    for blob in [&layer[..], b"{}"] {
        assert_eq!(first.upload("team/theirs", blob).status, 201);
    }
    assert_eq!(push_manifest(&first, "team/theirs", "v1", &manifest(layer)).status, 201);
    assert_eq!(push_manifest(&second, "team/ours", "v1", &manifest(layer)).status, 201);
    let target = format!("/v2/team/ours/blobs/{}", digest(layer));
    for client in [&first, &second] {
        assert_eq!(client.get("/v2/team/ours/manifests/v1").status, 200);
        assert_eq!(client.get(&target).status, 404);
        assert_eq!(client.get(&target.replace("ours", "theirs")).status, 200);
    }
    // Whoever has it may bring it.
    assert_eq!(first.upload("team/ours", layer).status, 201);
    for client in [&first, &second] {
        assert_eq!(client.get(&target).status, 200);
    }
}

#[test]
fn conditions_guard_tags() {
    let store = S3::start();
    let server = serving(&store, &[]);
    let client = server.client();
    let (one, two) = (manifest(b"one"), manifest(b"two"));
    for blob in [&b"one"[..], b"two", b"{}"] {
        assert_eq!(client.upload("team/app", blob).status, 201);
    }
    let put = |bytes: &[u8], condition: (&str, &str)| {
        let headers = [("Content-Type", OCI_MANIFEST), condition];
        client.send("PUT", "/v2/team/app/manifests/v1", &headers, bytes).expect("a response").status
    };
    assert_eq!(put(&one, ("If-None-Match", "*")), 201);
    assert_eq!(put(&two, ("If-None-Match", "*")), 412);
    assert_eq!(put(&two, ("If-Match", &format!("\"{}\"", digest(&two)))), 412);
    assert_eq!(client.get("/v2/team/app/manifests/v1").body, one);
    assert_eq!(put(&two, ("If-Match", &format!("\"{}\"", digest(&one)))), 201);
    assert_eq!(client.get("/v2/team/app/manifests/v1").body, two);
}

#[test]
fn a_store_that_dies_in_the_middle_breaks_the_answer() {
    let store = S3::start();
    let server = serving(&store, &[]);
    let client = server.client();
    let bytes = large(5);
    assert_eq!(client.upload("team/app", &bytes).status, 201);
    let target = format!("/v2/team/app/blobs/{}", digest(&bytes));
    store.fail(Fault { method: "GET", part: "/blobs/sha256", status: BROKEN, code: "" });
    assert!(
        client.send("GET", &target, &[], b"").is_none(),
        "half of a blob ended as if all was well"
    );
    assert!(client.get(&target).body == bytes);
}

#[test]
fn a_store_that_is_busy_is_asked_again_and_then_so_is_the_client() {
    let store = S3::start();
    let server = serving(&store, &[]);
    let client = server.client();
    assert_eq!(client.upload("team/app", b"blob").status, 201);
    let target = format!("/v2/team/app/blobs/{}", digest(b"blob"));
    store.fail(slow_down("GET", "/blobs/sha256"));
    assert_eq!(client.get(&target).body, b"blob");
    for _ in 0..20 {
        store.fail(slow_down("GET", "/blobs/sha256"));
    }
    let reply = client.get(&target);
    assert_eq!(reply.status, 503, "{reply:?}");
    assert_ne!(reply.header("retry-after"), "");
    store.heal();
    assert_eq!(client.get(&target).body, b"blob");
}

#[test]
fn clients_are_sent_to_the_store_where_that_is_wanted() {
    let store = S3::start();
    let server = serving(&store, &["--redirect"]);
    let client = server.client();
    let image = single(1);
    image.push_to(&client, "team/app", "v1");
    for (blob, content) in &image.blobs {
        let target = format!("/v2/team/app/blobs/{blob}");
        let reply = client.get(&target);
        assert_eq!((reply.status, reply.header("docker-content-digest")), (307, blob.as_str()));
        let url = reply.header("location").to_owned();
        assert!(url.contains("X-Amz-Signature=") && !url.contains("secret"), "{url}");
        let url = url.split_once("://").and_then(|(_, rest)| rest.split_once('/')).expect("a URL");
        let got = Client::new(url.0).get(&format!("/{}", url.1));
        assert_eq!((got.status, digest(&got.body)), (200, content.digest.clone()));
        assert_eq!(client.head(&target).status, 200);
        let several = [("Range", "bytes=0-0,2-2")];
        assert_eq!(client.send("GET", &target, &several, b"").expect("a response").status, 206);
    }
    assert_eq!(client.get("/v2/team/app/manifests/v1").status, 200);
    let missing = format!("/v2/team/app/blobs/{}", digest(b"not here"));
    assert_eq!(client.get(&missing).status, 404);
}

#[test]
fn what_comes_through_lies_in_the_cache_and_not_in_the_bucket() {
    let store = S3::start();
    let upstream = Hostile::start();
    let image = single(1);
    image.push_to(&upstream, "team/app", "v1");
    let cache = tempfile::tempdir().expect("a directory");
    let cache = cache.path().to_str().expect("a path");
    let server = serving(&store, &["--upstream", &upstream.host(), "--cache-dir", cache]);
    let name = format!("{}/team/app", upstream.host().replace(':', "__"));
    let client = server.client();
    assert_eq!(client.get(&format!("/v2/{name}/manifests/v1")).body, image.root().bytes);
    for blob in image.blobs.keys() {
        let reply = client.get(&format!("/v2/{name}/blobs/{blob}"));
        assert_eq!((reply.status, &digest(&reply.body)), (200, blob));
        assert_eq!(store.object(&blob_key(blob)), None);
    }
}

#[test]
fn credentials_that_may_only_read_suffice_for_reading() {
    let store = S3::start();
    let image = single(1);
    image.push_to(&serving(&store, &[]).client(), "team/app", "v1");
    store.make_read_only();
    let reader = serving(&store, &["--read-only"]);
    assert_eq!(reader.client().get("/v2/team/app/manifests/v1").body, image.root().bytes);
    for blob in image.blobs.keys() {
        assert_eq!(reader.client().get(&format!("/v2/team/app/blobs/{blob}")).status, 200);
    }
    assert_eq!(reader.client().get("/readyz").status, 200);
    assert_eq!(reader.client().ask("POST", "/v2/team/app/blobs/uploads/", b"").status, 405);
}

#[test]
fn what_cannot_be_done_over_a_bucket_is_refused_at_the_start() {
    let store = S3::start();
    let imgfs = Imgfs::scratch().envs(store.environment());
    let place = store.place(PREFIX);
    for (args, said) in [
        (&["--prune-every", "1h"][..], "--prune-every"),
        (&["--upstream", "quay.io"], "--cache-dir"),
        (&["--upstream", "quay.io", "--cache-dir", "/tmp/x", "--keep"], "--keep"),
    ] {
        let mut all = vec!["serve", "--listen", "127.0.0.1:0", "--images-dir", &place];
        all.extend(args);
        let output = imgfs.run(&all);
        assert_ne!(output.code(), 0, "{args:?}");
        assert!(output.stderr.contains(said), "{args:?}: {}", output.stderr);
    }
    store.make_read_only();
    let output = imgfs.run(&["serve", "--listen", "127.0.0.1:0", "--images-dir", &place]);
    assert_ne!(output.code(), 0);
    assert!(output.stderr.contains("AccessDenied"), "{}", output.stderr);
    let output = Imgfs::scratch().run(&["serve", "--redirect"]);
    assert_ne!(output.code(), 0);
    assert!(output.stderr.contains("--redirect"), "{}", output.stderr);
}

#[test]
fn what_an_upload_that_ended_in_the_middle_has_left_is_removed_when_it_is_old() {
    let store = S3::start();
    let keys = ["old", "new"].map(|name| format!("{PREFIX}/blobs/.imgfs/serve/uploads/{name}"));
    for key in &keys {
        store.put(key, b"some of a blob");
    }
    store.make_old([keys[0].clone()]);
    let _server = serving(&store, &[]);
    wait_for("the old one to go", Duration::from_secs(20), || store.object(&keys[0]).is_none());
    assert!(store.object(&keys[1]).is_some());
}
