//! `imgfs serve --sparse`: manifests that are taken without all that they name, what other commands say of such images,
//! and what a repository that lacks a blob must not give out.

use crate::support::cli::{Imgfs, SAME};
use crate::support::client::Client;
use crate::support::content::digest;
use crate::support::hostile::{Hostile, basic};
use crate::support::image::{
    Built, Image, OCI_CONFIG, OCI_GZIP, OCI_MANIFEST, Receiver as _, two_platforms,
};
use crate::support::mount::{Mounted, require_fuse};
use crate::support::serving::Serving;
use crate::support::text;
use serde_json::{Value, json};

#[test]
fn incomplete_indexes_where_they_are_wanted() {
    let image = two_platforms(3);
    let index = image.root();
    let child = &image.manifests[0];
    let push = |serving: &Serving| {
        let client = serving.client();
        for blob in image.blobs.values() {
            client.put_blob("team/app", blob);
        }
        client.put_manifest("team/app", &child.digest, &child.media_type, &child.bytes);
        client.manifest("team/app", "v1", &index.media_type, &index.bytes).expect("a response")
    };
    let strict = Serving::fresh::<&str>(&[]);
    let reply = push(&strict);
    assert_eq!((reply.status, reply.code()), (404, "MANIFEST_BLOB_UNKNOWN".into()));
    let mut sparse = Serving::fresh(&["--sparse"]);
    assert_eq!(push(&sparse).status, 201);
    assert_eq!(sparse.client().get("/v2/team/app/manifests/v1").body, index.bytes);
    assert!(sparse.stop().success());
    // What is missing on purpose keeps nobody from pruning.
    Imgfs::new(sparse.images()).prune().success();
    Imgfs::new(sparse.images()).verify().success();
}

/// An image of two layers, the second of which nobody brings. Its digest, and that of this layer.
fn push_without_a_layer(client: &Client, tag: &str) -> (Built, String) {
    let image = Image::new().layer(11, 1000).layer(12, 2000).build();
    let missing = image.layers()[1].clone();
    for blob in image.blobs.values().filter(|blob| blob.digest != missing) {
        client.put_blob("team/app", blob);
    }
    let root = image.root();
    let reply = client.manifest("team/app", tag, &root.media_type, &root.bytes);
    assert_eq!(reply.expect("a response").status, 201);
    (image, missing)
}

#[test]
fn images_that_lack_a_layer_where_they_are_wanted() {
    let serving = Serving::fresh(&["--sparse"]);
    let client = serving.client();
    let (image, missing) = push_without_a_layer(&client, "v1");
    let blob = format!("/v2/team/app/blobs/{missing}");
    assert_eq!(client.get("/v2/team/app/manifests/v1").body, image.root().bytes);
    assert_eq!(client.get("/v2/team/app/tags/list").json()["tags"], json!(["v1"]));
    let reply = client.get(&blob);
    assert_eq!((reply.status, reply.code()), (404, "BLOB_UNKNOWN".into()));
    assert_eq!(client.head(&blob).status, 404);
    // What is missing is known by its digest: it keeps nobody from pruning, and nothing else goes.
    let imgfs = Imgfs::new(serving.images());
    imgfs.prune().success();
    assert_eq!(client.get(&format!("/v2/team/app/blobs/{}", image.layers()[0])).status, 200);
    let listed = imgfs.ls();
    assert!(listed.stdout.contains("team/app:v1"), "{}", listed.stdout);
    // Every command that needs it says which blob is missing, and fails.
    let name = "registry.local/team/app:v1";
    let verified = imgfs.verify();
    assert_ne!(verified.code(), 0, "{}", verified.stdout);
    let problems = verified.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0]["kind"], "missing");
    assert!(problems[0].to_string().contains(&missing), "{problems:?}");
    let other = Serving::fresh::<&str>(&[]);
    let dest = format!("{}/{SAME}", other.host());
    let pushed = imgfs.push(&["--dest", &dest, name]);
    assert_ne!(pushed.code(), 0, "{}", pushed.stdout);
    assert!(pushed.stdout.contains(&missing) || pushed.stderr.contains(&missing), "{pushed}");
    let layout = format!("oci:{}", text(&serving.place().join("layout")));
    let copied = imgfs.run(&["copy", "--from", text(serving.images()), "--to", &layout, name]);
    assert_ne!(copied.status.code(), Some(0), "{copied}");
    assert!(copied.stdout.contains(&missing) || copied.stderr.contains(&missing), "{copied}");
    // The layer comes, and all is well.
    client.upload("team/app", &image.blobs[&missing].content.to_vec());
    assert_eq!(client.get(&blob).status, 200);
    imgfs.verify().success();
    imgfs.push(&["--dest", &dest, name]).success();
}

#[test]
fn a_file_in_a_layer_that_is_lacking_is_an_error_and_no_empty_file() {
    require_fuse();
    let serving = Serving::fresh(&["--sparse"]);
    let client = serving.client();
    let image = Image::new()
        .layer_gzip_tar(&[("here", b"this is here")])
        .layer_gzip_tar(&[("away", b"this is away")])
        .build();
    let missing = &image.layers()[1];
    for blob in image.blobs.values().filter(|blob| blob.digest != *missing) {
        client.put_blob("team/app", blob);
    }
    let root = image.root();
    client.put_manifest("team/app", "v1", &root.media_type, &root.bytes);
    let mount = Mounted::start::<&str>(serving.images(), &[]);
    let read = mount.cat(".imgfs/registry.local/team/app:v1/rootfs/away");
    assert!(!read.status.success(), "the file is not there");
    assert!(!mount.logged(&[missing]).is_empty(), "{:?}", mount.log());
}

#[test]
fn a_pull_brings_what_a_sparse_push_left_out() {
    let upstream = Hostile::start();
    let image = Image::new().layer(13, 1000).layer(14, 2000).build();
    image.push_to(&upstream, "team/app", "v1");
    let serving = Serving::fresh(&["--sparse"]);
    let client = serving.client();
    let host = upstream.host().replace(':', "__");
    let name = format!("{host}/team/app");
    let root = image.root();
    let reply = client.manifest(&name, "v1", &root.media_type, &root.bytes);
    assert_eq!(reply.expect("a response").status, 201);
    let blobs = || image.blobs.keys().map(|blob| format!("/v2/{name}/blobs/{blob}"));
    assert!(blobs().all(|blob| client.head(&blob).status == 404));
    let imgfs = Imgfs::new(serving.images());
    imgfs.pull(&[format!("{}/team/app:v1", upstream.host())]).success();
    assert!(blobs().all(|blob| client.head(&blob).status == 200));
    imgfs.verify().success();
}

#[test]
fn nobody_gets_the_blobs_of_others_by_naming_them() {
    let files = tempfile::tempdir().expect("a directory");
    let users = files.path().join("users");
    let hash = |password: &str| bcrypt::hash(password, 4).expect("hashing");
    std::fs::write(&users, format!("alice:{}\nbob:{}\n", hash("secret"), hash("other")))
        .expect("writing");
    let rules = files.path().join("rules");
    std::fs::write(&rules, "alice/** alice pull,push\nbob/** bob pull,push\n").expect("writing");
    let secret = b"what alice does not show";
    let name = digest(secret);
    let layer = |more: Value| {
        let mut layer = json!({"mediaType": OCI_GZIP, "digest": name, "size": secret.len()});
        layer
            .as_object_mut()
            .expect("an object")
            .extend(more.as_object().cloned().unwrap_or_default());
        let config = json!({"mediaType": OCI_CONFIG, "digest": digest(b"{}"), "size": 2});
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer],
        });
        manifest.to_string().into_bytes()
    };
    let sparse = layer(json!({}));
    // With this one the server need not even be told to take what is incomplete.
    let foreign = layer(json!({"urls": ["https://example.com/layer"]}));
    for (option, manifest) in [(Some("--sparse"), &sparse), (None, &foreign)] {
        for alice_first in [true, false] {
            let mut args = vec!["--htpasswd", text(&users), "--access", text(&rules)];
            args.extend(option);
            let serving = Serving::fresh(&args);
            let alice = serving.client().authorization(basic("alice", "secret"));
            let bob = serving.client().authorization(basic("bob", "other"));
            if alice_first {
                alice.upload("alice/app", secret);
            }
            bob.upload("bob/app", b"{}");
            for _ in 0..2 {
                let put = bob.manifest("bob/app", "v1", OCI_MANIFEST, manifest);
                assert_eq!(put.expect("a response").status, 201);
            }
            if !alice_first {
                alice.upload("alice/app", secret);
            }
            let blob = format!("/v2/bob/app/blobs/{name}");
            assert_eq!(bob.get(&blob).status, 404, "{option:?}");
            assert_eq!(bob.head(&blob).status, 404, "{option:?}");
            let mounted = bob.mount("bob/other", &name, "bob/app").expect("a response");
            assert_eq!(mounted.status, 202, "{option:?}");
            let mount = format!("/v2/bob/other/blobs/uploads/?mount={name}");
            assert_eq!(bob.ask("POST", &mount, b"").status, 202, "{option:?}");
            // Whoever has it may bring it himself, and has it from then on.
            bob.upload("bob/app", secret);
            assert_eq!(bob.get(&blob).body, secret);
        }
    }
}

#[test]
fn a_size_that_is_not_true_hides_no_blob() {
    let serving = Serving::fresh(&["--sparse", "--allow-delete"]);
    let client = serving.client();
    client.upload("team/app", b"{}");
    let put = |tag: &str, size: usize| {
        let config = json!({"mediaType": OCI_CONFIG, "digest": digest(b"{}"), "size": 2});
        let layer = json!({"mediaType": OCI_GZIP, "digest": digest(b"layer"), "size": size});
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer],
        });
        let bytes = manifest.to_string().into_bytes();
        client.manifest("team/app", tag, OCI_MANIFEST, &bytes).expect("a response").status
    };
    assert_eq!(put("early", 99), 201, "nobody knows better");
    client.upload("team/app", b"layer");
    assert_eq!(put("right", 5), 201);
    assert_eq!(client.get(&format!("/v2/team/app/blobs/{}", digest(b"layer"))).body, b"layer");
    assert_eq!(put("late", 98), 404);
}
