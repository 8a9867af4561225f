//! The receiving role of the support's registries: what is taken, what is refused, what is recorded.

use crate::support::client::{Client, with_digest};
use crate::support::content::{Content, digest};
use crate::support::hostile::{Access, Bearer, Checks, Hostile, Locations, basic};
use crate::support::image::{Artifact, Image, Index, OCI_MANIFEST, application};
use crate::support::registry::{Registry, Tokens};
use crate::support::skopeo::{Place, Skopeo};
use std::time::Duration;

fn start() -> (Hostile, Client) {
    let hostile = Hostile::start();
    let client = Client::new(&hostile.host());
    (hostile, client)
}

#[test]
fn a_blob_goes_up_whole_or_in_chunks() {
    let (hostile, client) = start();
    let bytes = Content::Generated { seed: 1, size: 1000 }.to_vec();
    let wanted = digest(&bytes);
    let path = format!("/v2/a/b/blobs/{wanted}");
    assert_eq!(client.head(&path).status, 404);

    let begun = client.ask("POST", "/v2/a/b/blobs/uploads/", b"");
    assert_eq!((begun.status, begun.header("range")), (202, "0-0"));
    assert_eq!(begun.header("docker-upload-uuid").len(), 36);
    let location = begun.header("location");
    assert!(location.starts_with("/v2/a/b/blobs/uploads/") && location.contains("?_state="));
    assert!(location.ends_with("%3D"), "{location}");
    let put = client.put(location, &bytes).expect("a response");
    assert_eq!(put.status, 201);
    assert_eq!(put.header("docker-content-digest"), wanted);
    assert_eq!(put.header("location"), path);
    assert_eq!(client.get(&path).body, bytes);
    assert_eq!(client.head(&path).header("content-length"), "1000");

    let location = client.begin("c");
    let first = client.patch(&location, 0, &bytes[..400]).expect("a response");
    assert_eq!((first.status, first.header("range")), (202, "0-399"));
    let status = client.get(first.header("location"));
    assert_eq!((status.status, status.header("range")), (204, "0-399"));
    let early = client.patch(status.header("location"), 500, &bytes[500..]).expect("a response");
    assert_eq!((early.status, early.header("range")), (416, "0-399"));
    let second = client.patch(status.header("location"), 400, &bytes[400..900]).expect("one");
    assert_eq!(second.header("range"), "0-899");
    let target = with_digest(second.header("location"), &wanted);
    let last = client.send("PUT", &target, &[("Content-Range", "900-999")], &bytes[900..]);
    assert_eq!(last.expect("a response").status, 201);
    assert_eq!(client.get(&format!("/v2/c/blobs/{wanted}")).body, bytes);

    assert_eq!(hostile.blob_puts(&wanted), 2);
    assert_eq!(hostile.uploaded_bytes(), 2000);
    assert_eq!(hostile.count("PATCH", "/v2/c/"), 3);
    assert_eq!(hostile.repositories().into_iter().collect::<Vec<_>>(), ["a/b", "c"]);
    let log = hostile.log();
    let patch = log.iter().find(|served| served.method == "PATCH").expect("one is there");
    assert_eq!(patch.content_range.as_deref(), Some("0-399"));
    assert_eq!((patch.content_length, patch.received), (Some(400), 400));
    assert_eq!(patch.repository.as_deref(), Some("c"));
}

#[test]
fn what_is_wrong_with_an_upload_is_refused() {
    let (hostile, client) = start();
    let reply = client.put_as(&client.begin("r"), &digest(b"other"), b"bytes").expect("a response");
    assert_eq!((reply.status, reply.code().as_str()), (400, "DIGEST_INVALID"));
    let location = client.begin("r");
    let reply = client.ask("PUT", &location, b"bytes");
    assert_eq!((reply.status, reply.code().as_str()), (400, "DIGEST_INVALID"));
    let without_query = location.split('?').next().expect("a path");
    let reply = client.put(without_query, b"bytes").expect("a response");
    assert_eq!((reply.status, reply.code().as_str()), (400, "BLOB_UPLOAD_INVALID"));
    let patched = client.patch(&location, 0, b"by").expect("a response");
    let reply = client.put(&location, b"tes").expect("a response");
    assert_eq!(reply.code(), "BLOB_UPLOAD_INVALID", "the address before the last one");
    let reply = client.put(&location.replace("/r/", "/s/"), b"bytes").expect("a response");
    assert_eq!((reply.status, reply.code().as_str()), (404, "BLOB_UPLOAD_UNKNOWN"));
    let target = patched.header("location");
    let reply = client.send("PATCH", target, &[("Content-Range", "bytes 2-4/5")], b"tes");
    assert_eq!(reply.expect("a response").code(), "BLOB_UPLOAD_INVALID");
    let reply = client.send("PATCH", target, &[("Content-Range", "2-9")], b"tes");
    assert_eq!(reply.expect("a response").code(), "SIZE_INVALID");
    assert_eq!(hostile.open_uploads(), 1);
    assert_eq!(client.ask("DELETE", target, b"").status, 204);
    assert_eq!(client.get(target).status, 404);
    assert_eq!(hostile.open_uploads(), 0);
    assert_eq!(client.ask("POST", "/v2/Upper/blobs/uploads/", b"").code(), "NAME_INVALID");
    assert_eq!(hostile.repositories().len(), 0);
}

#[test]
fn one_post_may_be_enough() {
    let (hostile, client) = start();
    let target = format!("/v2/r/blobs/uploads/?digest={}", digest(b"bytes"));
    let begun = client.ask("POST", &target, b"bytes");
    assert_eq!(begun.status, 202);
    assert_eq!(client.put(begun.header("location"), b"bytes").expect("a response").status, 201);
    hostile.set_single_post(true);
    assert_eq!(client.ask("POST", &target, b"bytes").status, 201);
    assert_eq!(client.ask("POST", &target, b"other").code(), "DIGEST_INVALID");
}

#[test]
fn chunks_may_have_a_shortest_length() {
    let (hostile, client) = start();
    hostile.set_shortest_chunk(4);
    let begun = client.ask("POST", "/v2/r/blobs/uploads/", b"");
    assert_eq!(begun.header("oci-chunk-min-length"), "4");
    let first = client.patch(begun.header("location"), 0, b"1234").expect("a response");
    let short = client.patch(first.header("location"), 4, b"56").expect("a response");
    assert_eq!(short.status, 202, "it may have been the last");
    let next = client.patch(short.header("location"), 6, b"78").expect("a response");
    assert_eq!((next.status, next.code().as_str()), (400, "SIZE_INVALID"));
    let end = client.put_as(short.header("location"), &digest(b"123456"), b"");
    assert_eq!(end.expect("a response").status, 201);
}

#[test]
fn a_blob_is_in_a_repository_when_it_was_put_or_mounted_there() {
    let (hostile, client) = start();
    client.upload("a", b"bytes");
    let wanted = digest(b"bytes");
    assert!(hostile.blob("a", &wanted).is_some() && hostile.blob("b", &wanted).is_none());
    assert_eq!(client.get(&format!("/v2/b/blobs/{wanted}")).status, 404);
    let declined = client.mount("b", &wanted, "c").expect("a response");
    assert_eq!((declined.status, declined.header("location").is_empty()), (202, false));
    let won = client.mount("b", &wanted, "a").expect("a response");
    assert_eq!((won.status, won.header("docker-content-digest")), (201, wanted.as_str()));
    assert_eq!(client.get(&format!("/v2/b/blobs/{wanted}")).body, b"bytes");
    assert_eq!((hostile.mounts_asked(), hostile.mounts_won()), (2, 1));
    hostile.decline_mounts();
    assert_eq!(client.mount("d", &wanted, "a").expect("a response").status, 202);
    assert_eq!(hostile.blob_puts(&wanted), 1);
}

#[test]
fn a_manifest_is_taken_when_all_its_parts_are_there() {
    let (hostile, client) = start();
    let index = application();
    let child = &index.manifests[0];
    let put = |reference: &str, manifest: &crate::support::image::Manifest| {
        let (kind, bytes) = (&manifest.media_type, &manifest.bytes);
        client.manifest("r", reference, kind, bytes).expect("a response")
    };
    let refused = put("1", child);
    assert_eq!((refused.status, refused.code().as_str()), (400, "MANIFEST_BLOB_UNKNOWN"));
    assert_eq!(refused.json()["errors"].as_array().map(Vec::len), Some(3), "{refused:?}");
    for blob in index.blobs.values() {
        client.upload("r", &blob.content.to_vec());
    }
    assert_eq!(put("1", index.root()).code(), "MANIFEST_BLOB_UNKNOWN");
    for manifest in &index.manifests {
        let taken = put(&manifest.digest, manifest);
        assert_eq!((taken.status, taken.header("docker-content-digest")), (201, &*manifest.digest));
    }
    assert_eq!(put("1", index.root()).header("location").rsplit('/').next(), Some(index.digest()));
    assert_eq!(put(&digest(b"other"), child).code(), "DIGEST_INVALID");
    assert_eq!(put(".bad", child).code(), "TAG_INVALID");
    let reply = client.manifest("r", "2", OCI_MANIFEST, &index.root().bytes).expect("a response");
    assert_eq!(reply.code(), "MANIFEST_INVALID", "another type than it says itself");
    let reply = client.manifest("r", "2", OCI_MANIFEST, b"{").expect("a response");
    assert_eq!(reply.code(), "MANIFEST_INVALID");
    let got = client.get("/v2/r/manifests/1");
    assert_eq!(digest(&got.body), index.digest());
    assert_eq!(got.header("content-type"), index.root().media_type);
    assert_eq!(hostile.tags("r")["1"], index.digest());
    assert_eq!(hostile.manifest("r", "1").as_deref(), Some(&*index.root().bytes));
    assert_eq!(hostile.manifest_type("r", "1").as_deref(), Some(&*index.root().media_type));
    let taken = hostile.manifest_puts().iter().filter(|served| served.status == 201).count();
    assert_eq!(taken, index.manifests.len() + 1);
    hostile.assert_complete();
}

#[test]
fn a_subject_is_confirmed_where_there_are_referrers() {
    let (hostile, client) = start();
    let image = Image::new().build();
    let sbom = Artifact::new("application/spdx+json").subject(&image).build();
    for (on, expected) in [(false, ""), (true, image.digest())] {
        hostile.set_referrers_api(on);
        sbom.push_by_digest(&client, "r");
        let root = sbom.root();
        let reply = client.manifest("r", &root.digest, &root.media_type, &root.bytes);
        assert_eq!(reply.expect("a response").header("oci-subject"), expected);
    }
    let list = client.get(&format!("/v2/r/referrers/{}", image.digest())).json();
    assert_eq!(list["manifests"][0]["digest"], sbom.digest());
}

#[test]
fn the_judge_of_a_registry_sees_what_is_wrong() {
    let image = Image::new().layer(1, 100).build();
    let index = Index::new().child(&image).build();
    let root = index.root();
    let (hostile, client) = start();
    hostile.set_checks(Checks::Blobs);
    let reply = client.manifest("r", "sparse", &root.media_type, &root.bytes);
    assert_eq!(reply.expect("a response").status, 201);
    hostile.assert_complete();
    hostile.set_checks(Checks::All);
    assert_eq!(hostile.problems().len(), 2, "under its digest and its tag");

    let (hostile, client) = start();
    hostile.set_checks(Checks::Nothing);
    let reply = client.manifest("r", "1", &image.root().media_type, &image.root().bytes);
    assert_eq!(reply.expect("a response").status, 201);
    assert_eq!(hostile.violations().len(), 2, "config and layer");
    assert!(hostile.violations()[0].contains("r 1 was accepted without blob"));
    image.push_to(&client, "r", "1");
    assert!(hostile.problems().is_empty());
    assert_eq!(hostile.violations().len(), 2, "whole now, but it was not then");
    let judge = std::panic::AssertUnwindSafe(|| hostile.assert_complete());
    assert!(std::panic::catch_unwind(judge).is_err());

    let (hostile, client) = start();
    image.push_to(&client, "r", "1");
    hostile.assert_complete();
    hostile.remove_blob(&image.layers()[0]);
    assert!(hostile.problems()[0].contains(&image.layers()[0]));
    hostile.remove_manifest("r", image.digest());
    assert!(hostile.problems().iter().any(|problem| problem.contains("under its digest")));
}

#[test]
fn addresses_of_uploads_are_relative_absolute_or_elsewhere() {
    let (hostile, client) = start();
    hostile.set_locations(Locations::Absolute);
    let location = client.begin("r");
    assert!(location.starts_with(&hostile.url()), "{location}");
    assert_eq!(client.put(&location, b"1").expect("a response").status, 201);

    let storage = Hostile::start();
    hostile.set_access(Access::basic());
    hostile.send_uploads_to(&storage);
    let client = Client::new(&hostile.host()).login();
    let location = client.begin("r");
    assert!(location.starts_with(&storage.url()), "{location}");
    let stranger = Client::new(&storage.host());
    let patched = stranger.patch(&location, 0, b"1234").expect("a response");
    assert!(patched.header("location").starts_with(&storage.url()));
    let target = patched.header("location");
    let put = stranger.put_as(target, &digest(b"12345"), b"5").expect("a response");
    assert_eq!(put.status, 201);
    assert!(hostile.blob("r", &digest(b"12345")).is_some());
    assert!(storage.log().iter().all(|served| served.authorization.is_none()));
    assert_eq!(storage.uploaded_bytes(), 5);
}

#[test]
fn a_token_is_good_for_what_it_was_asked_for() {
    let hostile = Hostile::with_access(Access::Bearer(Bearer::new()));
    let client = Client::new(&hostile.host());
    let refused = client.ask("POST", "/v2/r/blobs/uploads/", b"");
    assert_eq!(refused.status, 401);
    let challenge = refused.header("www-authenticate");
    assert!(challenge.contains("scope=\"repository:r:pull,push\""), "{challenge}");
    let token = |scopes: &str| {
        let client = Client::new(&hostile.host()).login();
        let reply = client.get(&format!("/token?service=hostile&{scopes}"));
        let token = reply.json()["token"].as_str().expect("a token").to_owned();
        Client::new(&hostile.host()).authorization(format!("Bearer {token}"))
    };
    let reader = token("scope=repository:r:pull");
    let refused = reader.ask("POST", "/v2/r/blobs/uploads/", b"");
    assert!(refused.header("www-authenticate").contains("insufficient_scope"));
    let writer = token("scope=repository:r:pull,push");
    assert_eq!(writer.upload("r", b"1").status, 201);
    assert_eq!(writer.ask("POST", "/v2/s/blobs/uploads/", b"").status, 401);
    let refused = writer.mount("r", &digest(b"1"), "s").expect("a response");
    let challenge = refused.header("www-authenticate");
    assert!(challenge.contains("repository:r:pull,push repository:s:pull"), "{challenge}");
    let both = token("scope=repository:s:pull,push&scope=repository:r:pull");
    assert_eq!(both.mount("s", &digest(b"1"), "r").expect("a response").status, 201);
    assert_eq!(hostile.scopes_asked().len(), 4);
    assert_eq!(hostile.scopes_asked()[1], "repository:r:pull,push");

    hostile.set_access(Access::Bearer(Bearer { pull_only: true, ..Bearer::new() }));
    let limited = token("scope=repository:r:pull,push");
    assert_eq!(limited.ask("POST", "/v2/r/blobs/uploads/", b"").status, 401);
    assert_eq!(limited.head(&format!("/v2/r/blobs/{}", digest(b"1"))).status, 200);

    hostile.set_access(Access::basic());
    assert_eq!(client.ask("POST", "/v2/r/blobs/uploads/", b"").status, 401);
    let client = Client::new(&hostile.host()).authorization(basic("bed", "secret"));
    assert_eq!(client.upload("r", b"2").status, 201);
}

#[test]
fn a_large_blob_is_hashed_and_not_kept() {
    let (hostile, client) = start();
    let bytes = Content::Generated { seed: 1, size: 9 << 20 }.to_vec();
    assert_eq!(client.upload("r", &bytes).status, 201);
    let kept = hostile.blob("r", &digest(&bytes)).expect("it is there");
    assert_eq!((kept.len(), kept.is_kept()), (9 << 20, false));
    let path = format!("/v2/r/blobs/{}", digest(&bytes));
    assert_eq!(client.head(&path).header("content-length"), (9 << 20).to_string());
    assert_eq!(client.get(&path).status, 501);
    hostile.assert_complete();
}

#[test]
fn a_pace_holds_for_uploads_too() {
    let (hostile, client) = start();
    hostile.set_pace(100, Duration::from_millis(20));
    let begun = std::time::Instant::now();
    assert_eq!(client.upload("r", &[0; 500]).status, 201);
    assert!(begun.elapsed() >= Duration::from_millis(100));
}

#[test]
fn skopeo_pushes_everything_and_mounts_what_it_pushed_before() {
    let hostile = Hostile::start();
    let index = application();
    let layout = tempfile::tempdir().expect("making a temporary directory");
    index.write_oci_layout(layout.path(), "1");
    let skopeo = Skopeo::new();
    let source = Place::layout(layout.path(), "1");
    let target = Place::plain(&format!("{}/team/app:1", hostile.host()));
    skopeo.copy(&source, &target);
    hostile.assert_complete();
    assert_eq!(hostile.tags("team/app")["1"], index.digest());
    assert!(index.blobs.keys().all(|digest| hostile.blob_puts(digest) == 1));
    assert_eq!(digest(&skopeo.inspect_raw(&target)), index.digest());

    hostile.clear_log();
    let copy = Place::plain(&format!("{}/other/app:2", hostile.host()));
    skopeo.copy(&target, &copy);
    hostile.assert_complete();
    assert_eq!(hostile.tags("other/app")["2"], index.digest());
    assert!(hostile.mounts_won() >= 3, "{:?}", hostile.log());
    let layers = index.manifests[..2].iter().flat_map(|manifest| {
        let manifest: serde_json::Value = serde_json::from_slice(&manifest.bytes).expect("JSON");
        manifest["layers"].as_array().cloned().unwrap_or_default()
    });
    for layer in layers {
        let layer = layer["digest"].as_str().expect("a digest");
        assert_eq!(hostile.blob_puts(layer), 0, "{layer} was uploaded again");
    }
    // Out again, to a directory that somebody else judges.
    let out = tempfile::tempdir().expect("making a temporary directory");
    skopeo.copy(&copy, &Place::layout(out.path(), "1"));
    assert!(out.path().join("blobs/sha256").join(&index.digest()[7..]).is_file());
}

#[test]
fn skopeo_pushes_where_a_password_or_a_token_is_asked_for() {
    let image = Image::new().layer_gzip_tar(&[("a", b"b")]).build();
    let layout = tempfile::tempdir().expect("making a temporary directory");
    image.write_oci_layout(layout.path(), "1");
    for access in [Access::basic(), Access::Bearer(Bearer::new())] {
        let hostile = Hostile::with_access(access);
        let target = Place::plain(&format!("{}/team/app:1", hostile.host())).login();
        Skopeo::new().copy(&Place::layout(layout.path(), "1"), &target);
        hostile.assert_complete();
        assert_eq!(hostile.tags("team/app")["1"], image.digest());
    }
}

#[test]
fn real_registries_take_pushes_with_all_kinds_of_guards() {
    let index = application();
    let layout = tempfile::tempdir().expect("making a temporary directory");
    index.write_oci_layout(layout.path(), "1");
    let source = Place::layout(layout.path(), "1");
    let registries = [Registry::plain(), Registry::tls_basic(), Registry::token(Tokens::default())];
    for pair in registries.windows(2) {
        let (from, to) = (pair[0].place("team/app:1"), pair[1].place("copy/app:1"));
        let skopeo = Skopeo::new();
        skopeo.copy(&source, &from);
        skopeo.copy(&from, &to);
        assert_eq!(skopeo.inspect_raw(&to), index.root().bytes);
        assert_eq!(pair[1].tags("copy/app"), ["1"]);
        let requests = pair[1].requests();
        assert!(requests.iter().filter(|entry| entry.is_manifest_put()).count() >= 5);
        for digest in index.blobs.keys() {
            assert!(pair[1].has_blob("copy/app", digest));
            let puts = requests.iter().filter(|entry| entry.is_put_of(digest));
            assert_eq!(puts.filter(|entry| entry.status == 201).count(), 1, "{requests:?}");
        }
    }
    let scopes = registries[2].scopes_asked();
    assert!(scopes.iter().any(|scope| scope == "repository:copy/app:pull,push"), "{scopes:?}");

    let reader = Registry::token(Tokens { pull_only: true, ..Tokens::default() });
    let target = format!("docker://{}", reader.host()) + "/team/app:1";
    let source = format!("oci:{}:1", layout.path().display());
    let login = ["--dest-tls-verify=false", "--dest-creds=bed:secret"];
    let output = Skopeo::new().try_run(&["copy", login[0], login[1], &source, &target]);
    assert!(!output.status.success());
    assert!(reader.tags("team/app").is_empty());
}
