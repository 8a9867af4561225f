//! The support itself: a judge that sees nothing and a fault that does nothing would make every test pass.

use crate::support::content::{Content, digest, fill};
use crate::support::hostile::{Access, Bearer, Fault, Hostile, Kinds, Match, basic};
use crate::support::image::{
    Artifact, Image, Index, cosign_signature, digest_tag, push_referrers_with_fallback_tag,
};
use crate::support::registry::{Registry, Tokens};
use crate::support::skopeo;
use crate::support::tree::{self, Indexes};
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// One request on a connection of its own: status, head, body as far as it came, and whether the end was clean.
struct Raw {
    status: u16,
    head: String,
    body: Vec<u8>,
    error: Option<std::io::ErrorKind>,
}

fn get(hostile: &Hostile, path: &str, headers: &str) -> Raw {
    request(hostile, "GET", path, headers)
}

fn request(hostile: &Hostile, method: &str, path: &str, headers: &str) -> Raw {
    let mut stream = TcpStream::connect(hostile.host()).expect("connecting");
    stream.set_read_timeout(Some(Duration::from_millis(300))).expect("setting a timeout");
    let text = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
    stream.write_all(text.as_bytes()).expect("sending");
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    let error = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break None,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(error) => break Some(error.kind()),
        }
        if let Some((head, body)) = split(&bytes)
            && content_length(&head).is_some_and(|length| length <= body.len())
        {
            break None;
        }
    };
    let (head, body) = split(&bytes).unwrap_or_default();
    Raw {
        status: head.get(9..12).and_then(|code| code.parse().ok()).unwrap_or(0),
        head,
        body,
        error,
    }
}

fn split(bytes: &[u8]) -> Option<(String, Vec<u8>)> {
    let at = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..at]).into_owned();
    Some((head, bytes[at + 4..].to_vec()))
}

fn content_length(head: &str) -> Option<usize> {
    let line = head.lines().find_map(|line| line.strip_prefix("Content-Length: "))?;
    line.parse().ok()
}

#[test]
fn generated_content_is_the_same_from_any_offset() {
    let content = Content::Generated { seed: 7, size: 1000 };
    let whole = content.to_vec();
    for (offset, length) in [(0, 10), (3, 1), (5, 20), (8, 8), (993, 7)] {
        let mut part = vec![0; length];
        fill(7, offset as u64, &mut part);
        assert_eq!(part, whole[offset..offset + length], "at {offset}");
    }
    assert_eq!(content.digest(), digest(&whole));
    assert_ne!(Content::Generated { seed: 8, size: 1000 }.to_vec(), whole);
}

#[test]
fn every_fault_does_what_its_name_says() {
    let image = Image::new().layer(1, 10_000).build();
    let layer = image.layers()[0].clone();
    let bytes = image.blobs[&layer].content.to_vec();
    let path = format!("/v2/a/b/blobs/{layer}");
    let with = |fault: Fault, headers: &str| {
        let hostile = Hostile::start();
        image.push_to(&hostile, "a/b", "1");
        hostile.on(Match::blobs().nth(1)).fault(fault);
        let answer = get(&hostile, &path, headers);
        assert_eq!(hostile.log().len(), 1);
        assert!(hostile.log()[0].fault.is_some());
        let second = get(&hostile, &path, headers);
        assert_eq!(second.body.len(), 10_000 - if headers.is_empty() { 0 } else { 4000 });
        answer
    };
    let range = "Range: bytes=4000-\r\n";

    let cut = with(Fault::TruncateAt(100), "");
    assert_eq!((cut.body, cut.error), (bytes[..100].to_vec(), None));
    let reset = with(Fault::ResetAfter(100), "");
    assert_eq!(reset.body, bytes[..100]);
    assert_eq!(reset.error, Some(std::io::ErrorKind::ConnectionReset));
    let hang = with(Fault::HangAfter(100), "");
    assert_eq!(hang.error, Some(std::io::ErrorKind::WouldBlock));
    assert_eq!(hang.body.len(), 100);
    assert_eq!(with(Fault::LostConnection, "").head, "");
    let flipped = with(Fault::FlipByte(10_005), "").body;
    assert_eq!((flipped[5] ^ 1, &flipped[6..]), (bytes[5], &bytes[6..]));
    let short = with(Fault::WrongContentLength(-10), "");
    assert!(short.head.contains("Content-Length: 9990"));
    assert!(with(Fault::Chunked, "").head.contains("Transfer-Encoding: chunked"));
    let busy = with(Fault::status_with(429, "Retry-After", "3"), "");
    assert_eq!(busy.status, 429);
    assert!(busy.head.contains("Retry-After: 3"));
    let ignored = with(Fault::IgnoreRange, range);
    assert_eq!((ignored.status, ignored.body), (200, bytes.clone()));
    let wrong = with(Fault::WrongRange, range);
    assert!(wrong.head.contains("Content-Range: bytes 2000-9999/10000"), "{}", wrong.head);
    assert_eq!(wrong.body, bytes[2000..]);
    let lying = with(Fault::LyingRange, range);
    assert!(lying.head.contains("Content-Range: bytes 4000-9999/10000"));
    assert_eq!(lying.body, bytes[2000..8000]);
    let away = with(Fault::RedirectTo("http://elsewhere".to_owned()), "");
    assert!(away.head.contains(&format!("Location: http://elsewhere{path}")));
    assert!(!with(Fault::NoContentDigest, "").head.contains("Docker-Content-Digest"));
    assert!(!with(Fault::WrongContentDigest, "").head.contains(&layer));
    assert!(!with(Fault::NoContentType, "").head.contains("Content-Type"));
    assert_eq!(with(Fault::EmptyBody, "").body, b"");
    assert!(with(Fault::captive_portal(), "").body.starts_with(b"<html>"));
    let huge = with(Fault::HugeManifest { bytes: 50_000, chunked: false }, "");
    assert_eq!(huge.body.len(), 50_000);
    let interval = Duration::from_millis(20);
    let before = Instant::now();
    let slow = with(Fault::Drip { bytes: 5000, interval }, "");
    assert_eq!(slow.body, bytes);
    assert!(before.elapsed() >= 2 * interval);
}

#[test]
fn ranges_heads_and_errors_are_answered_as_registries_do() {
    let hostile = Hostile::start();
    let image = Image::new().layer(1, 1000).build();
    image.push_to(&hostile, "a/b", "1");
    let layer = &image.layers()[0];
    let path = format!("/v2/a/b/blobs/{layer}");
    let part = get(&hostile, &path, "Range: bytes=10-19\r\n");
    assert_eq!((part.status, part.body.len()), (206, 10));
    assert_eq!(get(&hostile, &path, "Range: bytes=1000-\r\n").status, 416);
    let encoded = path.replace(':', "%3A");
    assert_eq!(get(&hostile, &encoded, "").body.len(), 1000);
    let head = request(&hostile, "HEAD", "/v2/a/b/manifests/1", "");
    assert!(head.head.contains(image.digest()) && head.body.is_empty());
    assert_eq!(get(&hostile, "/v2/a/b/manifests/2", "").status, 404);
    assert_eq!(get(&hostile, "/v2/c/manifests/1", "").status, 404);
    let log = hostile.log();
    assert_eq!(log[0].range_start(), 10);
    assert_eq!((log[0].sent, log[0].status), (10, 206));
}

#[test]
fn tags_come_in_pages_and_referrers_when_asked() {
    let hostile = Hostile::start();
    let image = Image::new().build();
    for tag in ["a", "b", "c"] {
        image.push_to(&hostile, "r", tag);
    }
    hostile.set_page_limit(2);
    let first = get(&hostile, "/v2/r/tags/list", "");
    assert!(first.head.contains("</v2/r/tags/list?last=b&n=2>; rel=\"next\""));
    let rest = get(&hostile, "/v2/r/tags/list?last=b&n=2", "");
    assert_eq!(rest.body, br#"{"name":"r","tags":["c"]}"#);
    assert!(!rest.head.contains("Link"));

    let sbom = Artifact::new("application/spdx+json")
        .blob("application/spdx+json", b"{}")
        .subject(&image)
        .build();
    sbom.push_by_digest(&hostile, "r");
    let path = format!("/v2/r/referrers/{}", image.digest());
    assert_eq!(get(&hostile, &path, "").status, 404);
    hostile.set_referrers_api(true);
    let list: Value = serde_json::from_slice(&get(&hostile, &path, "").body).expect("JSON");
    assert_eq!(list["manifests"][0]["digest"], sbom.digest());
    assert_eq!(list["manifests"].as_array().map(Vec::len), Some(1));
}

#[test]
fn passwords_and_tokens_are_asked_for() {
    let hostile = Hostile::with_access(Access::basic());
    assert_eq!(get(&hostile, "/v2/", "").status, 401);
    let header = format!("Authorization: {}\r\n", basic("bed", "secret"));
    assert_eq!(get(&hostile, "/v2/", &header).status, 200);

    hostile.set_access(Access::Bearer(Bearer { uses: Some(1), ..Bearer::new() }));
    Image::new().build().push_to(&hostile, "r", "1");
    let refused = get(&hostile, "/v2/r/manifests/1", "");
    assert!(refused.head.contains("scope=\"repository:r:pull\""), "{}", refused.head);
    assert_eq!(get(&hostile, "/token?scope=repository:r:pull", "").status, 401);
    let answer = get(&hostile, "/token?scope=repository:r:pull", &header);
    let answer: Value = serde_json::from_slice(&answer.body).expect("JSON");
    let token = answer["token"].as_str().expect("a token");
    let header = format!("Authorization: Bearer {token}\r\n");
    assert_eq!(get(&hostile, "/v2/other/manifests/1", &header).status, 401);
    assert_eq!(get(&hostile, "/v2/r/manifests/1", &header).status, 200);
    assert_eq!(get(&hostile, "/v2/r/manifests/1", &header).status, 401);
}

#[test]
fn redirect_addresses_wear_out() {
    let (hostile, storage) = (Hostile::start(), Hostile::start());
    let image = Image::new().layer(1, 1000).build();
    image.push_to(&hostile, "r", "1");
    hostile.redirect_blobs_to(&storage, 2);
    let path = format!("/v2/r/blobs/{}", image.layers()[0]);
    let away = get(&hostile, &path, "");
    assert_eq!(away.status, 307);
    let location = away.head.lines().find_map(|line| line.strip_prefix("Location: "));
    let location = location.and_then(|url| url.strip_prefix(&storage.url())).expect("a location");
    let statuses = [0; 3].map(|_| get(&storage, location, "").status);
    assert_eq!(statuses, [200, 200, 403]);
    assert_eq!(get(&storage, &path, "").status, 403);
}

#[test]
fn random_faults_relent() {
    let hostile = Hostile::start();
    Image::new().build().push_to(&hostile, "r", "1");
    hostile.faults_random(1, 1000, Kinds::Retryable, 3);
    let good = (0..8)
        .map(|_| get(&hostile, "/v2/r/manifests/1", ""))
        .zip(1..)
        .filter(|(answer, _)| answer.status == 200 && answer.error.is_none())
        .map(|(_, number)| number)
        .collect::<Vec<_>>();
    assert!(good.contains(&4) && good.contains(&8), "{good:?}");
    assert_eq!(hostile.injected(), 6);
}

#[test]
fn a_server_ends_while_it_hangs() {
    let hostile = Hostile::start();
    hostile.on(Match::any()).fault(Fault::HangBefore);
    let mut stream = TcpStream::connect(hostile.host()).expect("connecting");
    stream.write_all(b"GET /v2/ HTTP/1.1\r\n\r\n").expect("sending");
    std::thread::sleep(Duration::from_millis(20));
    let before = Instant::now();
    drop(hostile);
    assert!(before.elapsed() < Duration::from_secs(1));
}

type Damage<'a> = &'a dyn Fn(&std::path::Path);

#[test]
fn the_judge_sees_what_is_wrong() {
    let image = Index::new()
        .child(&Image::new().layer(1, 100).build())
        .child(&Image::new().platform("linux/arm64").layer(2, 100).build())
        .build();
    let layer = image.blobs.keys().next().expect("there are blobs").clone();
    let child = &image.manifests[0].digest;
    let manifests = "quay.io/a/b/manifests";
    let write = |path: &std::path::Path| std::fs::write(path, "{}").expect("writing");
    let remove = |path: &std::path::Path| std::fs::remove_file(path).expect("removing");
    let damages: [(&str, Damage<'_>); 7] = [
        ("content has another digest", &|dir| {
            tree::flip_byte_quietly(&dir.join("blobs").join(&layer), 3);
        }),
        ("another size", &|dir| tree::truncate(&dir.join("blobs").join(&layer), 3)),
        ("another size", &|dir| remove(&dir.join("blobs").join(&layer))),
        ("another size", &|dir| remove(&dir.join(manifests).join(child))),
        ("stray", &|dir| write(&dir.join("blobs/x"))),
        ("stray", &|dir| write(&dir.join("quay.io/x"))),
        ("EOF", &|dir| tree::truncate(&dir.join(manifests).join("1"), 0)),
    ];
    for (expected, damage) in damages {
        let dir = tempfile::tempdir().expect("making a temporary directory");
        tree::kubekey_g1(dir.path(), "quay.io", "a/b", "1", &image);
        assert_eq!(tree::problems(dir.path(), Indexes::Whole), [""; 0]);
        damage(dir.path());
        let found = tree::problems(dir.path(), Indexes::Whole).join("\n");
        assert!(found.contains(expected), "expected {expected}, found {found}");
    }
    let dir = tempfile::tempdir().expect("making a temporary directory");
    tree::kubekey_g2(dir.path(), "quay.io", "a/b", "1", &image);
    assert_eq!(tree::problems(dir.path(), Indexes::Whole), [""; 0]);
    remove(&dir.path().join(manifests).join(image.digest()));
    assert_eq!(tree::problems(dir.path(), Indexes::Whole).len(), 1);
}

#[test]
fn a_real_registry_takes_and_logs_everything() {
    let registry = Registry::plain();
    let amd64 = Image::new().layer_gzip_tar(&[("etc/hostname", b"here\n")]).empty_layer().build();
    let arm = Image::new().platform("linux/arm/v7").layer_zstd(&[("a", b"b")]).build();
    let index = Index::new().child(&amd64).child(&arm).attest().build();
    index.push_to(&registry, "team/app", "1");
    let nested = Index::new().child(&index).child(&amd64).build();
    nested.push_to(&registry, "team/app", "nested");
    let docker = Image::new().docker().layer(3, 5000).build();
    docker.push_to(&registry, "team/app", "docker");
    let list = Index::new().docker().child(&docker).build();
    list.push_to(&registry, "team/app", "list");
    let bare = Image::new().without_media_type().layer(4, 10).build();
    bare.push_to(&registry, "team/app", "bare");
    let signature = cosign_signature(&index);
    signature.push_to(&registry, "team/app", &digest_tag(index.digest(), ".sig"));
    let sbom = Artifact::new("application/spdx+json")
        .blob("application/spdx+json", b"{}")
        .subject(&index)
        .build();
    push_referrers_with_fallback_tag(&registry, "team/app", index.digest(), &[&sbom]);

    let image = format!("{}/team/app:1", registry.host());
    assert_eq!(digest(&skopeo::raw_manifest(&image)), index.digest());
    registry.forget_requests();
    let files = skopeo::fetch(&image);
    assert!(files.values().any(|digest| digest == index.digest()));
    let requests = registry.requests();
    let blobs = requests.iter().filter(|entry| entry.is_blob_get()).count();
    assert_eq!(blobs, index.blobs.len(), "{requests:?}");
}

#[test]
fn guarded_registries_refuse_strangers_and_let_friends_in() {
    let image = Image::new().layer(1, 100).build();
    let token = Registry::token(Tokens::default());
    image.push_to(&token, "r", "1");
    let url = format!("docker://{}/r:1", token.host());
    let raw =
        skopeo::skopeo(&["inspect", "--raw", "--tls-verify=false", "--creds=bed:secret", &url]);
    assert_eq!(digest(&raw), image.digest());
    assert!(token.token_requests() >= 1);
    assert!(token.requests().iter().any(|entry| entry.status == 401));

    let secure = Registry::tls_basic();
    image.push_to(&secure, "r", "1");
    let dir = tempfile::tempdir().expect("making a temporary directory");
    std::fs::copy(secure.ca_file(), dir.path().join("ca.crt")).expect("copying a certificate");
    let certs = format!("--cert-dir={}", dir.path().display());
    let url = format!("docker://{}/r:1", secure.host());
    let raw = skopeo::skopeo(&["inspect", "--raw", &certs, "--creds=bed:secret", &url]);
    assert_eq!(digest(&raw), image.digest());
    assert!(secure.requests().iter().any(|entry| entry.status == 401));
}
