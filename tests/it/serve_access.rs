//! `imgfs serve`: who may do what, TLS, and what is refused at the start.

use crate::support::cli::Imgfs;
use crate::support::content::digest;
use crate::support::hostile::basic;
use crate::support::image::{OCI_CONFIG, OCI_MANIFEST, single};
use crate::support::serving::Serving;
use crate::support::text;
use crate::support::tls::{Authority, Certificate};
use serde_json::json;
use std::process::Command;

/// A file of htpasswd's for alice (secret) and bob (other).
fn htpasswd(directory: &std::path::Path) -> String {
    let path = directory.join("users");
    // Made with `htpasswd -nbB -C 4`.
    let hash = |password: &str| bcrypt::hash(password, 4).expect("hashing");
    let lines = format!("alice:{}\nbob:{}\n", hash("secret"), hash("other"));
    std::fs::write(&path, lines).expect("writing");
    text(&path).to_owned()
}

#[test]
fn anonymous_pull_beside_authenticated_push() {
    let files = tempfile::tempdir().expect("a directory");
    let users = htpasswd(files.path());
    let args = ["--htpasswd", &users, "--anonymous", "pull", "--allow-delete"];
    let serving = Serving::fresh(&args);
    let alice = serving.client().authorization(basic("alice", "secret"));
    let image = single(1);
    image.push_to(&alice, "team/app", "v1");
    let anybody = serving.client();
    // A client that is not asked here never says who it is.
    let base = anybody.get("/v2/");
    assert_eq!((base.status, base.code()), (401, "UNAUTHORIZED".into()));
    assert!(base.header("www-authenticate").starts_with("Basic realm="), "{base:?}");
    assert_eq!(alice.get("/v2/").status, 200);
    for client in [&anybody, &serving.client().authorization(basic("", ""))] {
        assert_eq!(client.get("/v2/team/app/manifests/v1").status, 200);
        assert_eq!(client.get("/v2/_catalog").status, 200);
        let push = client.ask("POST", "/v2/team/app/blobs/uploads/", b"");
        assert_eq!(push.status, 401);
        assert_ne!(push.header("www-authenticate"), "");
        assert_eq!(client.ask("DELETE", "/v2/team/app/manifests/v1", b"").status, 401);
    }
    let wrong = serving.client().authorization(basic("alice", "wrong"));
    assert_eq!(wrong.get("/v2/team/app/manifests/v1").status, 401);
    assert_eq!(serving.client().get("/healthz").status, 200);
}

#[test]
fn a_blob_is_mounted_from_wherever_its_user_may_pull_it() {
    let files = tempfile::tempdir().expect("a directory");
    let users = htpasswd(files.path());
    let serving = Serving::fresh(&["--htpasswd", &users]);
    let alice = serving.client().authorization(basic("alice", "secret"));
    // No manifest names it yet.
    alice.upload("team/source", b"shared");
    let mount = format!("/v2/team/app/blobs/uploads/?mount={}", digest(b"shared"));
    assert_eq!(alice.ask("POST", &mount, b"").status, 201);
    let other = format!("/v2/team/app/blobs/uploads/?mount={}", digest(b"another"));
    assert_eq!(alice.ask("POST", &other, b"").status, 202);
}

#[test]
fn without_a_password_nothing_is_told() {
    let files = tempfile::tempdir().expect("a directory");
    let users = htpasswd(files.path());
    let serving = Serving::fresh(&["--htpasswd", &users]);
    let client = serving.client();
    for target in ["/v2/", "/v2/_catalog", "/v2/a/tags/list", "/v2/a/manifests/b", "/v2/nonsense"] {
        assert_eq!(client.get(target).status, 401, "{target}");
    }
    let bob = serving.client().authorization(basic("bob", "other"));
    assert_eq!(bob.get("/v2/a/manifests/b").status, 404);
    // A new password counts without a restart.
    let hash = bcrypt::hash("newer", 4).expect("hashing");
    std::fs::write(&users, format!("bob:{hash}\n")).expect("writing");
    let newer = serving.client().authorization(basic("bob", "newer"));
    crate::support::wait_for("the new password", std::time::Duration::from_secs(10), || {
        newer.get("/v2/").status == 200
    });
    assert_eq!(bob.get("/v2/").status, 401);
}

#[test]
fn rules_say_who_may_do_what_where() {
    let files = tempfile::tempdir().expect("a directory");
    let users = htpasswd(files.path());
    let rules = files.path().join("rules");
    std::fs::write(&rules, "team-a/** alice pull,push\nshared/** * pull\nshared/** alice push\n")
        .expect("writing");
    let args = ["--htpasswd", &users, "--access", text(&rules), "--allow-delete"];
    let serving = Serving::fresh(&args);
    let alice = serving.client().authorization(basic("alice", "secret"));
    let bob = serving.client().authorization(basic("bob", "other"));
    let image = single(2);
    for name in ["team-a/app", "shared/app"] {
        image.push_to(&alice, name, "v1");
    }
    assert_eq!(bob.get("/v2/shared/app/manifests/v1").status, 200);
    let denied = bob.get("/v2/team-a/app/manifests/v1");
    assert_eq!((denied.status, denied.code()), (403, "DENIED".into()));
    assert_eq!(bob.ask("POST", "/v2/shared/app/blobs/uploads/", b"").status, 403);
    assert_eq!(alice.ask("DELETE", "/v2/team-a/app/manifests/v1", b"").status, 403);
    assert_eq!(bob.get("/v2/_catalog").json()["repositories"], serde_json::json!(["shared/app"]));
    // What somebody may not pull he does not get by a mount either.
    std::fs::write(&rules, "team-a/** alice pull,push\nbob/** bob pull,push\n").expect("writing");
    let blob = image.layers()[0].clone();
    crate::support::wait_for("the new rules", std::time::Duration::from_secs(10), || {
        bob.ask("POST", "/v2/bob/x/blobs/uploads/", b"").status == 202
    });
    for query in [format!("mount={blob}&from=team-a/app"), format!("mount={blob}")] {
        let reply = bob.ask("POST", &format!("/v2/bob/x/blobs/uploads/?{query}"), b"");
        assert_eq!(reply.status, 202, "{query}");
    }
}

#[test]
fn a_repository_that_is_not_there_yet_is_not_there_for_whom_it_is() {
    let files = tempfile::tempdir().expect("a directory");
    let users = htpasswd(files.path());
    let rules = files.path().join("rules");
    std::fs::write(&rules, "team-b/** bob pull,push\ndocker.io/** alice pull\n").expect("writing");
    // Names without a registry may be those of docker.io, too, where bob may read nothing.
    let serving = Serving::fresh(&["--htpasswd", &users, "--access", text(&rules)]);
    let bob = serving.client().authorization(basic("bob", "other"));
    let nothing = digest(b"nothing");
    assert_eq!(bob.head(&format!("/v2/team-b/app/blobs/{nothing}")).status, 404);
    for what in ["manifests/v1", "tags/list"] {
        assert_eq!(bob.get(&format!("/v2/team-b/app/{what}")).status, 404, "{what}");
    }
    single(2).push_to(&bob, "team-b/app", "v1");
    assert_eq!(bob.get("/v2/team-b/app/manifests/v1").status, 200);
    assert_eq!(bob.get("/v2/team-c/app/manifests/v1").status, 403);
    let alice = serving.client().authorization(basic("alice", "secret"));
    assert_eq!(alice.get("/v2/team-c/app/manifests/v1").status, 404);
}

#[test]
fn what_was_named_and_not_brought_does_not_come_by_another_name() {
    let serving = Serving::fresh(&[] as &[&str]);
    let client = serving.client();
    let layer = b"their layer";
    for (repository, bytes) in [("team-a/app", &layer[..]), ("team-b/app", b"{}")] {
        assert_eq!(client.upload(repository, bytes).status, 201);
    }
    let kind = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": digest(b"{}"), "size": 2},
        "layers": [{"mediaType": kind, "digest": digest(layer), "size": layer.len(),
            "urls": ["https://example.com/layer"]}],
    });
    let (target, bytes) = ("/v2/team-b/app/manifests/1", manifest.to_string().into_bytes());
    let put = client.send("PUT", target, &[("Content-Type", OCI_MANIFEST)], &bytes);
    assert_eq!(put.expect("a response").status, 201);
    let (imgfs, other) = (Imgfs::new(serving.images()), Imgfs::scratch());
    let tag =
        || imgfs.on_tree("tag", &["registry.local/team-b/app:1", "registry.local/team-b/new:1"]);
    tag().expect_code(1).stderr_has("was pushed without it");
    let (from, to) = (text(serving.images()), text(other.images_dir()));
    imgfs.run(&["copy", "--from", from, "--to", to, "--all"]).expect_code(1);
    let path = |name: &str| format!("/v2/{name}/blobs/{}", digest(layer));
    for name in ["team-b/app", "team-b/new"] {
        assert_eq!(client.get(&path(name)).status, 404, "{name}");
    }
    // Whoever brings it has it.
    assert_eq!(client.upload("team-b/app", layer).status, 201);
    tag().success();
    assert_eq!(client.get(&path("team-b/new")).body, layer);
}

#[test]
fn what_is_not_safe_is_refused_at_the_start() {
    let files = tempfile::tempdir().expect("a directory");
    let users = htpasswd(files.path());
    let imgfs = Imgfs::scratch();
    let refused = |args: &[&str], reason: &str| {
        let mut all = vec!["serve", "--images-dir", text(imgfs.images_dir())];
        all.extend(args);
        let output = imgfs.run(&all);
        assert_eq!(output.status.code(), Some(2), "{output}");
        assert!(output.stderr.contains(reason), "{output}");
    };
    refused(&["--listen", "0.0.0.0:0"], "--htpasswd");
    refused(&["--listen", "0.0.0.0:0", "--htpasswd", &users], "--insecure-auth");
    refused(&["--client-ca", &users], "--tls-cert");
    refused(&["--keep"], "--upstream");
    std::fs::create_dir_all(imgfs.images_dir()).expect("making a directory");
    let elsewhere = files.path().join("cache");
    refused(&["--keep", "--upstream", "*", "--cache-dir", text(&elsewhere)], "--cache-dir");
    refused(&["--listen", "nonsense"], "address");
    refused(&["--local-name", "nodots"], "dot");
    refused(&["--upstream", "a b"], "pattern");
    let args = ["--listen", "0.0.0.0:0", "--read-only"];
    std::fs::create_dir_all(imgfs.images_dir()).expect("making a directory");
    let open = Serving::start(imgfs.images_dir(), &args);
    assert_eq!(open.said("stderr"), "");
}

/// What `curl` says: the status of the answer, or none.
fn curl(args: &[&str]) -> Option<(u16, String)> {
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "20", "-w", "\n%{http_code} %{http_version}"])
        .args(args)
        .output()
        .expect("running curl");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let (_, last) = said.trim_end().rsplit_once('\n')?;
    let (status, version) = last.split_once(' ')?;
    output.status.success().then(|| (status.parse().unwrap_or(0), version.to_owned()))
}

#[test]
fn tls_with_http_2_and_certificates_of_clients() {
    crate::support::process::require_program("curl", "curl");
    let files = tempfile::tempdir().expect("a directory");
    let authority = Authority::new("imgfs test");
    let ca = authority.write(files.path(), "ca");
    let (cert, key) = authority.server(Certificate::Good).write(files.path(), "server");
    let (own, own_key) = authority.client("node-7").write(files.path(), "client");
    let rules = files.path().join("rules");
    std::fs::write(&rules, "** node-7 pull,push\n").expect("writing");
    let tls = ["--tls-cert", text(&cert), "--tls-key", text(&key)];
    let mut args = tls.to_vec();
    args.extend(["--client-ca", text(&ca), "--access", text(&rules)]);
    let serving = Serving::fresh(&args);
    let url = format!("https://{}/v2/a/manifests/b", serving.host());
    let client = ["--cacert", text(&ca), "--cert", text(&own), "--key", text(&own_key)];
    let mut all = client.to_vec();
    all.push(&url);
    assert_eq!(curl(&all), Some((404, "2".into())), "{}", serving.said("stderr"));
    assert_eq!(curl(&["--cacert", text(&ca), &url]), None, "without a certificate");

    let open = Serving::fresh(&tls);
    let url = format!("https://{}/v2/", open.host());
    assert_eq!(curl(&["--cacert", text(&ca), &url]), Some((200, "2".into())));
    assert_eq!(curl(&["--cacert", text(&ca), "--http1.1", &url]), Some((200, "1.1".into())));
    // A blob that is large enough for several frames, both ways.
    let body = files.path().join("blob");
    let bytes = vec![5; 3_000_000];
    std::fs::write(&body, &bytes).expect("writing");
    let post = format!("{url}x/blobs/uploads/?digest={}", digest(&bytes));
    let data = format!("@{}", body.display());
    assert_eq!(
        curl(&["--cacert", text(&ca), "--data-binary", &data, &post]).map(|r| r.0),
        Some(201)
    );
    let back = files.path().join("back");
    let blob = format!("{url}x/blobs/{}", digest(&bytes));
    curl(&["--cacert", text(&ca), "-o", text(&back), &blob]);
    assert!(std::fs::read(&back).expect("reading") == bytes);
}
