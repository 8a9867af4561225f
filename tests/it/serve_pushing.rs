//! `imgfs serve`: what is pushed and deleted, by the sentences of the distribution specification and of
//! docs/serve.md.

use crate::support::cli::Imgfs;
use crate::support::client::{Client, Reply, with_digest};
use crate::support::content::digest;
use crate::support::disk::SmallDisk;
use crate::support::image::{
    Artifact, Image, Index, OCI_CONFIG, OCI_EMPTY, OCI_GZIP, OCI_INDEX, OCI_MANIFEST,
    Receiver as _, single, two_platforms,
};
use crate::support::need::require;
use crate::support::serving::Serving;
use crate::support::tree::assert_tree_sound;
use crate::support::{content, text};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha512};
use std::io::Write as _;
use std::net::TcpStream;

fn serving(args: &[&str]) -> Serving {
    let mut all = vec!["--allow-delete"];
    all.extend(args);
    Serving::fresh(&all)
}

fn sha512(bytes: &[u8]) -> String {
    format!("sha512:{}", hex::encode(Sha512::digest(bytes)))
}

/// A manifest of these blobs, as bytes.
fn manifest(config: &[u8], layers: &[Value]) -> Vec<u8> {
    let config = json!({"mediaType": OCI_CONFIG, "digest": digest(config), "size": config.len()});
    json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers})
        .to_string()
        .into_bytes()
}

fn put_with(client: &Client, target: &str, headers: &[(&str, &str)], bytes: &[u8]) -> Reply {
    let mut all = vec![("Content-Type", OCI_MANIFEST)];
    all.extend(headers);
    client.send("PUT", target, &all, bytes).expect("a response")
}

#[test]
fn an_image_that_was_pushed_is_one_that_was_pulled() {
    let mut serving = serving(&[]);
    let image = two_platforms(1);
    image.push_to(&serving.client(), "team/app", "v1");
    for manifest in &image.manifests {
        let target = format!("/v2/team/app/manifests/{}", manifest.digest);
        assert_eq!(serving.client().get(&target).body, manifest.bytes);
    }
    assert!(serving.stop().success());
    assert_tree_sound(serving.images());
    let listed = Imgfs::new(serving.images()).ls().success();
    assert!(listed.stdout.contains("registry.local/team/app:v1"), "{}", listed.stdout);
    // Children of an index are no images of their own.
    assert_eq!(listed.stdout.matches("\"image\":").count(), 1, "{}", listed.stdout);
    let verified = Imgfs::new(serving.images()).verify().success();
    assert_eq!(verified.number("hashed_bytes"), 0, "nothing is hashed twice");
}

#[test]
fn an_upload_in_each_of_the_ways() {
    let serving = serving(&[]);
    let client = serving.client();
    let check = |name: &str, bytes: &[u8], reply: Reply| {
        assert_eq!(reply.status, 201, "{name}: {reply:?}");
        assert_eq!(reply.header("docker-content-digest"), digest(bytes), "{name}");
        let location = reply.header("location").to_owned();
        assert_eq!(location, format!("/v2/team/app/blobs/{}", digest(bytes)));
        assert_eq!(client.get(&location).body, bytes, "{name}");
    };
    let post = client.send(
        "POST",
        &format!("/v2/team/app/blobs/uploads/?digest={}", digest(b"post only")),
        &[("Content-Type", "application/octet-stream")],
        b"post only",
    );
    check("post only", b"post only", post.expect("a response"));
    check("post and put", b"post and put", client.upload("team/app", b"post and put"));
    check("nothing at all", b"", client.upload("team/app", b""));

    // As docker and podman do: one PATCH without a range, then an empty PUT.
    let begun = client.ask("POST", "/v2/team/app/blobs/uploads/", b"");
    assert_eq!((begun.status, begun.header("range")), (202, "0-0"));
    let location = begun.header("location").to_owned();
    assert!(location.starts_with("/v2/team/app/blobs/uploads/"), "{location}");
    let patched = client.ask("PATCH", &location, b"streamed");
    assert_eq!((patched.status, patched.header("range")), (202, "0-7"));
    assert_eq!(patched.header("docker-upload-uuid"), begun.header("docker-upload-uuid"));
    let location = patched.header("location").to_owned();
    let put = client.ask("PUT", &with_digest(&location, &digest(b"streamed")), b"");
    check("streamed", b"streamed", put);
    assert_eq!(client.get(&location).status, 404, "the upload has ended");
}

#[test]
fn chunks_have_to_fit_together() {
    let serving = serving(&[]);
    let client = serving.client();
    let location = client.begin("team/app");
    assert_eq!(client.patch(&location, 0, b"0123").expect("a response").status, 202);
    for (first, bytes) in [(0, &b"0123"[..]), (5, b"5"), (3, b"3456")] {
        let reply = client.patch(&location, first, bytes).expect("a response");
        assert_eq!((reply.status, reply.header("range")), (416, "0-3"), "{first}");
        assert_eq!(reply.header("location"), location);
    }
    let status = client.get(&location);
    assert_eq!((status.status, status.header("range")), (204, "0-3"));
    let out = with_digest(&location, &digest(b"x"));
    let reply = client.send("PUT", &out, &[("Content-Range", "9-9")], b"x").expect("a response");
    assert_eq!(reply.status, 416);
    for range in ["x", "4", "8-4", "bytes 4-5-6"] {
        let reply = client.send("PATCH", &location, &[("Content-Range", range)], b"45");
        assert_eq!(reply.expect("a response").status, 416, "{range}");
    }
    let reply = client.send("PATCH", &location, &[("Content-Range", "4-9")], b"45");
    assert_eq!(reply.expect("a response").code(), "SIZE_INVALID");
    assert_eq!(client.patch(&location, 4, b"45").expect("a response").header("range"), "0-5");
    let put = with_digest(&location, &digest(b"01234567"));
    let put = client.send("PUT", &put, &[("Content-Range", "6-7")], b"67").expect("a response");
    assert_eq!(put.status, 201);
}

#[test]
fn what_is_not_what_it_is_called_is_refused() {
    let serving = serving(&[]);
    let client = serving.client();
    let other = digest(b"other");
    let wrong = client.put_as(&client.begin("team/app"), &other, b"content").expect("a response");
    assert_eq!((wrong.status, wrong.code()), (400, "DIGEST_INVALID".into()));
    for bad in ["sha256:abc", "md5:d41d8cd98f00b204e9800998ecf8427e", ""] {
        let reply = client.put_as(&client.begin("team/app"), bad, b"x").expect("a response");
        assert_eq!((reply.status, reply.code()), (400, "DIGEST_INVALID".into()), "{bad}");
    }
    assert_eq!(client.head(&format!("/v2/team/app/blobs/{other}")).status, 404);
    for location in ["/v2/team/app/blobs/uploads/nothing", "/v2/team/app/blobs/uploads/..%2Fx"] {
        let reply = client.ask("PATCH", location, b"x");
        assert_eq!(reply.status, 404, "{location}");
    }
    // An upload belongs to the repository that it was begun in.
    let location = client.begin("team/app").replace("team/app", "team/other");
    assert_eq!(client.ask("PATCH", &location, b"x").status, 404);
    let location = client.begin("team/app");
    assert_eq!(client.ask("DELETE", &location, b"").status, 204);
    assert_eq!(client.get(&location).status, 404);
}

#[test]
fn mounts_with_and_without_from() {
    let serving = serving(&[]);
    let client = serving.client();
    client.upload("team/source", b"shared");
    let shared = digest(b"shared");
    let mounted = client.mount("team/app", &shared, "team/source").expect("a response");
    assert_eq!(mounted.status, 201);
    assert_eq!(mounted.header("location"), format!("/v2/team/app/blobs/{shared}"));
    assert_eq!(client.get(&format!("/v2/team/app/blobs/{shared}")).body, b"shared");
    let uploads = "/v2/team/third/blobs/uploads/";
    let anonymous = client.ask("POST", &format!("{uploads}?mount={shared}"), b"");
    assert_eq!(anonymous.status, 201);
    // As crane does, with more than is needed.
    let crane = format!("{uploads}?mount={shared}&from=team%2Fsource&origin=x.example.com");
    assert_eq!(client.ask("POST", &crane, b"").status, 201);
    for target in [
        format!("{uploads}?mount={}&from=team/source", digest(b"missing")),
        format!("{uploads}?mount={}", digest(b"missing")),
        format!("{uploads}?mount={shared}&from=team/empty"),
    ] {
        let reply = client.ask("POST", &target, b"");
        assert_eq!(reply.status, 202, "{target}");
        assert_ne!(reply.header("location"), "");
    }
}

#[test]
fn a_refused_method_says_which_ones_are_allowed() {
    let image = single(3);
    let serving = Serving::fresh(&[] as &[&str]);
    image.push_to(&serving.client(), "team/app", "v1");
    let blob = image.layers()[0].clone();
    let manifest = "/v2/team/app/manifests/v1".to_owned();
    let blob = format!("/v2/team/app/blobs/{blob}");
    let check = |serving: &Serving, method: &str, target: &str, allowed: &str| {
        let reply = serving.client().ask(method, target, b"");
        assert_eq!((reply.status, reply.code()), (405, "UNSUPPORTED".into()), "{method} {target}");
        assert_eq!(reply.header("allow"), allowed, "{method} {target}");
    };
    check(&serving, "DELETE", &manifest, "GET, HEAD, PUT");
    check(&serving, "DELETE", &blob, "GET, HEAD");
    check(&serving, "POST", &manifest, "GET, HEAD, PUT, DELETE");
    let pages = serving.client().get("/v2/team/app/tags/list?n=x");
    assert_eq!((pages.status, pages.code()), (400, "UNSUPPORTED".into()));
    let deleting = Serving::start(serving.images(), &["--allow-delete"]);
    check(&deleting, "DELETE", &blob, "GET, HEAD");
    let reading = Serving::start(serving.images(), &["--read-only"]);
    check(&reading, "DELETE", &manifest, "GET, HEAD");
    check(&reading, "PUT", &manifest, "GET, HEAD");
    check(&reading, "POST", "/v2/team/app/blobs/uploads/", "");
}

#[test]
fn a_manifest_is_taken_when_all_is_there_that_it_names() {
    let serving = serving(&[]);
    let client = serving.client();
    let layer = json!({"mediaType": OCI_GZIP, "digest": digest(b"layer"), "size": 5});
    let bytes = manifest(b"{}", std::slice::from_ref(&layer));
    let target = "/v2/team/app/manifests/v1";
    let reply = put_with(&client, target, &[], &bytes);
    assert_eq!((reply.status, reply.code()), (404, "MANIFEST_BLOB_UNKNOWN".into()));
    let missing = reply.json()["errors"][0]["detail"]["digests"].clone();
    assert_eq!(missing.as_array().map(Vec::len), Some(2), "{missing}");
    client.upload("team/app", b"{}");
    // In another repository is not here.
    client.upload("team/other", b"layer");
    assert_eq!(put_with(&client, target, &[], &bytes).status, 404);
    client.upload("team/app", b"layer");
    let wrong = json!({"mediaType": OCI_GZIP, "digest": digest(b"layer"), "size": 6});
    assert_eq!(put_with(&client, target, &[], &manifest(b"{}", &[wrong])).status, 404);
    let reply = put_with(&client, target, &[], &bytes);
    assert_eq!(reply.status, 201, "{reply:?}");
    assert_eq!(reply.header("docker-content-digest"), digest(&bytes));
    assert_eq!(client.get(reply.header("location")).body, bytes);
    // What others distribute need not be here.
    let kind = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    let foreign = json!({"mediaType": kind, "digest": digest(b"far"), "size": 3,
        "urls": ["https://example.com/far"]});
    assert_eq!(put_with(&client, target, &[], &manifest(b"{}", &[layer, foreign])).status, 201);
}

#[test]
fn what_is_no_manifest_is_refused() {
    let serving = serving(&[]);
    let client = serving.client();
    client.upload("team/app", b"{}");
    let good = manifest(b"{}", &[]);
    let target = "/v2/team/app/manifests/v1";
    let put = |kind: &str, bytes: &[u8]| {
        client.send("PUT", target, &[("Content-Type", kind)], bytes).expect("a response")
    };
    for (kind, bytes) in [
        (OCI_MANIFEST, &b"not json"[..]),
        (OCI_MANIFEST, b"{}"),
        (OCI_INDEX, &good),
        ("application/json", &good),
        (OCI_MANIFEST, b"[]"),
    ] {
        let reply = put(kind, bytes);
        assert_eq!((reply.status, reply.code()), (400, "MANIFEST_INVALID".into()), "{kind}");
    }
    let large = [&good[..good.len() - 1], b",\"x\":\"", &vec![b'a'; 4 << 20], b"\"}"].concat();
    assert_eq!(put(OCI_MANIFEST, &large).status, 413);
    let by_digest = format!("/v2/team/app/manifests/{}", digest(b"other"));
    let reply = put_with(&client, &by_digest, &[], &good);
    assert_eq!((reply.status, reply.code()), (400, "DIGEST_INVALID".into()));
    let bad = put_with(&client, "/v2/team/app/manifests/sha256:baddigeststring", &[], &good);
    assert_eq!((bad.status, bad.code()), (400, "DIGEST_INVALID".into()));
    assert_eq!(put_with(&client, "/v2/team/app/manifests/.x", &[], &good).status, 400);
    assert_eq!(client.get(target).status, 404);
    assert_eq!(put(OCI_MANIFEST, &good).status, 201);
}

#[test]
fn tags_by_parameter_and_sha512() {
    let serving = serving(&[]);
    let client = serving.client();
    client.upload("team/app", b"{}");
    let bytes = manifest(b"{}", &[]);
    let target = format!("/v2/team/app/manifests/{}?tag=a&tag=b", digest(&bytes));
    let reply = put_with(&client, &target, &[], &bytes);
    assert_eq!((reply.status, reply.header("oci-tag")), (201, "a, b"));
    for tag in ["a", "b"] {
        let head = client.head(&format!("/v2/team/app/manifests/{tag}"));
        assert_eq!(head.header("docker-content-digest"), digest(&bytes));
    }
    assert_eq!(put_with(&client, &format!("{target}&tag=.x"), &[], &bytes).status, 400);

    // Another algorithm, which the tag remembers.
    let blob = sha512(b"blob");
    let put = client.put_as(&client.begin("team/long"), &blob, b"blob").expect("a response");
    assert_eq!((put.status, put.header("docker-content-digest")), (201, blob.as_str()));
    client.upload("team/long", b"{}");
    let layer = json!({"mediaType": OCI_GZIP, "digest": blob, "size": 4});
    let bytes = manifest(b"{}", &[layer]);
    let own = sha512(&bytes);
    let reply = put_with(&client, &format!("/v2/team/long/manifests/{own}?tag=v1"), &[], &bytes);
    assert_eq!((reply.status, reply.header("docker-content-digest")), (201, own.as_str()));
    for reference in ["v1", &own] {
        let reply = client.get(&format!("/v2/team/long/manifests/{reference}"));
        assert_eq!(reply.header("docker-content-digest"), own, "{reference}");
        assert_eq!(reply.body, bytes);
    }
    let stated = format!("/v2/team/long/manifests/v2?digest={own}");
    assert_eq!(put_with(&client, &stated, &[], &bytes).header("docker-content-digest"), own);
    assert_eq!(client.get(&format!("/v2/team/long/blobs/{blob}")).body, b"blob");
}

#[test]
fn subjects_need_not_be_there_and_are_told() {
    let serving = serving(&[]);
    let client = serving.client();
    let image = single(2);
    let artifact = Artifact::new("application/x").blob("text/plain", b"x").subject(&image).build();
    for blob in artifact.blobs.values() {
        client.put_blob("team/app", blob);
    }
    let root = artifact.root();
    let reply = client.manifest("team/app", &root.digest, OCI_MANIFEST, &root.bytes);
    let reply = reply.expect("a response");
    assert_eq!((reply.status, reply.header("oci-subject")), (201, image.digest()));
    let list = client.get(&format!("/v2/team/app/referrers/{}", image.digest())).json();
    assert_eq!(list["manifests"][0]["digest"], root.digest);
    assert_eq!(list["manifests"][0]["artifactType"], "application/x");
    assert_eq!(OCI_EMPTY, "application/vnd.oci.empty.v1+json");
}

#[test]
fn a_tag_is_changed_only_under_a_condition() {
    let serving = serving(&[]);
    let client = serving.client();
    client.upload("team/app", b"{}");
    client.upload("team/app", b"layer");
    let first = manifest(b"{}", &[]);
    let layer = json!({"mediaType": OCI_GZIP, "digest": digest(b"layer"), "size": 5});
    let second = manifest(b"{}", &[layer]);
    let put = |header: (&str, &str), bytes: &[u8]| {
        put_with(&client, "/v2/team/app/manifests/v1", &[header], bytes).status
    };
    let tag = format!("\"{}\"", digest(&first));
    assert_eq!(put(("If-Match", &tag), &first), 412, "it is not there");
    assert_eq!(put(("If-None-Match", "*"), &first), 201);
    assert_eq!(put(("If-None-Match", "*"), &second), 412);
    assert_eq!(put(("If-Match", "\"other\""), &second), 412);
    assert_eq!(put(("If-Match", &tag), &second), 201);
}

#[test]
fn deleting() {
    let image = single(4);
    let kept = Serving::fresh(&[] as &[&str]);
    image.push_to(&kept.client(), "team/app", "v1");
    for target in [
        "manifests/v1",
        &format!("manifests/{}", image.digest()),
        &format!("blobs/{}", image.layers()[0]),
    ] {
        let reply = kept.client().ask("DELETE", &format!("/v2/team/app/{target}"), b"");
        assert_eq!((reply.status, reply.code()), (405, "UNSUPPORTED".into()), "{target}");
    }
    let serving = serving(&[]);
    let client = serving.client();
    image.push_to(&client, "team/app", "v1");
    image.push_to(&client, "team/app", "v2");
    let layer = format!("/v2/team/app/blobs/{}", image.layers()[0]);
    let refused = client.ask("DELETE", &layer, b"");
    assert_eq!(refused.status, 405);
    assert!(String::from_utf8_lossy(&refused.body).contains(image.digest()), "{refused:?}");
    assert_eq!(client.ask("DELETE", "/v2/team/app/manifests/v1", b"").status, 202);
    assert_eq!(client.get("/v2/team/app/manifests/v1").status, 404);
    assert_eq!(client.get("/v2/team/app/manifests/v2").status, 200);
    let by_digest = format!("/v2/team/app/manifests/{}", image.digest());
    assert_eq!(client.ask("DELETE", &by_digest, b"").status, 202);
    for gone in ["/v2/team/app/manifests/v2", by_digest.as_str()] {
        assert_eq!(client.get(gone).status, 404, "{gone}");
    }
    assert_eq!(client.ask("DELETE", &by_digest, b"").status, 404);
    assert_eq!(client.ask("DELETE", &layer, b"").status, 202);
    assert_eq!(client.head(&layer).status, 404);
    assert_eq!(client.ask("DELETE", &layer, b"").status, 404);
    assert_eq!(client.ask("DELETE", "/v2/team/app/manifests/v9", b"").status, 404);
}

#[test]
fn a_blob_of_two_repositories_removed_through_one_stays_in_the_other() {
    let mut serving = serving(&[]);
    let client = serving.client();
    let image = single(5);
    image.push_to(&client, "team/one", "v1");
    image.push_to(&client, "team/two", "v1");
    let delete = |target: &str| client.ask("DELETE", &format!("/v2/team/one/{target}"), b"").status;
    assert_eq!(delete(&format!("manifests/{}", image.digest())), 202);
    for blob in image.blobs.keys() {
        assert_eq!(delete(&format!("blobs/{blob}")), 202);
    }
    Imgfs::new(serving.images()).prune().success();
    for blob in image.blobs.values() {
        assert_eq!(client.get(&format!("/v2/team/one/blobs/{}", blob.digest)).status, 404);
        let other = client.get(&format!("/v2/team/two/blobs/{}", blob.digest));
        assert_eq!(content::digest(&other.body), blob.digest);
    }
    assert!(serving.stop().success());
    assert_tree_sound(serving.images());
}

#[test]
fn children_of_indexes_and_fresh_uploads_survive_prune() {
    let serving = serving(&[]);
    let client = serving.client();
    let image = two_platforms(6);
    let prune = || Imgfs::new(serving.images()).prune().success();
    for blob in image.blobs.values() {
        client.put_blob("team/app", blob);
        prune();
    }
    for manifest in &image.manifests {
        client.put_manifest("team/app", &manifest.digest, &manifest.media_type, &manifest.bytes);
        prune();
    }
    let root = image.root();
    client.put_manifest("team/app", "v1", &root.media_type, &root.bytes);
    prune();
    for manifest in &image.manifests {
        let reply = client.get(&format!("/v2/team/app/manifests/{}", manifest.digest));
        assert_eq!(reply.body, manifest.bytes);
    }
    assert_tree_sound(serving.images());
}

#[test]
fn uploads_survive_a_restart_and_a_kill() {
    let mut serving = serving(&[]);
    let location = serving.client().begin("team/app");
    assert_eq!(serving.client().ask("PATCH", &location, b"before ").status, 202);
    serving.kill9();
    serving.restart();
    assert_eq!(serving.client().get(&location).header("range"), "0-6");
    assert_eq!(serving.client().patch(&location, 7, b"between ").expect("a response").status, 202);
    assert!(serving.stop().success());
    serving.restart();
    let all = b"before between after";
    let put = with_digest(&location, &digest(all));
    assert_eq!(serving.client().ask("PUT", &put, b"after").status, 201);
    let target = format!("/v2/team/app/blobs/{}", digest(all));
    assert_eq!(serving.client().get(&target).body, all);
}

#[test]
fn what_a_broken_patch_has_brought_stays() {
    let serving = serving(&[]);
    let location = serving.client().begin("team/app");
    let mut stream = TcpStream::connect(serving.host()).expect("connecting");
    let head = format!("PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("asking");
    stream.write_all(&[7; 600]).expect("sending");
    // While this writer is there, another one is one too many.
    let client = serving.client();
    crate::support::wait_for(
        "a second writer to be refused",
        std::time::Duration::from_secs(10),
        || client.ask("PATCH", &location, b"").status == 409,
    );
    drop(stream);
    crate::support::wait_for("what has come", std::time::Duration::from_secs(10), || {
        client.get(&location).header("range") == "0-599"
    });
    let rest = client.patch(&location, 600, &[8; 400]);
    assert_eq!(rest.expect("a response").status, 202);
    let all = [vec![7; 600], vec![8; 400]].concat();
    assert_eq!(client.ask("PUT", &with_digest(&location, &digest(&all)), b"").status, 201);
}

#[test]
fn a_full_disk_is_said_and_damages_nothing() {
    require!(Root);
    let Some(disk) = SmallDisk::mount(8) else { return };
    let images = disk.path().join("images");
    let serving = Serving::start(&images, &["--allow-delete"]);
    let client = serving.client();
    let small = single(7);
    small.push_to(&client, "team/app", "v1");
    let large = content::Content::Generated { seed: 8, size: 20 << 20 }.to_vec();
    let location = client.begin("team/app");
    let reply = client.send("PATCH", &location, &[], &large);
    assert!(reply.is_none_or(|reply| reply.status == 507), "there is no room for it");
    assert_eq!(client.ask("DELETE", &location, b"").status, 204);
    assert_eq!(client.get("/v2/team/app/manifests/v1").body, small.root().bytes);
    let next = Image::new().layer(9, 1000).build();
    next.push_to(&client, "team/app", "v2");
    assert_tree_sound(&images);
    drop(serving);
}

#[test]
fn nothing_that_a_client_says_is_a_path() {
    let serving = serving(&[]);
    let client = serving.client();
    for target in [
        "/v2/../../etc/passwd",
        "/v2/team/app/blobs/uploads/..%2f..%2frecords",
        "/v2/..%2f..%2fetc/manifests/passwd",
        "/v2/team%2f..%2f..%2fetc/manifests/passwd",
        "/v2/blobs/manifests/.imgfs",
        "/v2/a/manifests/..%2f..%2fblobs",
        "//v2/a/manifests/b",
    ] {
        for method in ["GET", "PUT", "DELETE"] {
            let reply = client.send(method, target, &[], b"x").expect("a response");
            assert!([400, 404, 405].contains(&reply.status), "{method} {target}: {}", reply.status);
        }
    }
    let top = std::fs::read_dir(serving.images()).expect("listing").flatten();
    let top: Vec<_> = top.map(|entry| entry.file_name()).collect();
    assert_eq!(top, ["blobs"], "{}", text(serving.images()));
}

#[test]
fn an_index_that_loses_a_child_on_purpose_keeps_nobody_from_pruning() {
    let serving = serving(&[]);
    let client = serving.client();
    let image = two_platforms(8);
    image.push_to(&client, "team/app", "v1");
    let child = format!("/v2/team/app/manifests/{}", image.manifests[0].digest);
    assert_eq!(client.ask("DELETE", &child, b"").status, 202);
    assert_eq!(client.get(&child).status, 404);
    assert_eq!(client.get("/v2/team/app/manifests/v1").status, 200);
    Imgfs::new(serving.images()).prune().success();
    let nested = Index::new().child(&image).build();
    assert_ne!(nested.digest(), image.digest());
}
