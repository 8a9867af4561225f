//! Each fault of the receiving role does what it says, and nothing else.

use crate::support::client::{Client, Reply};
use crate::support::content::{Content, Random, digest};
use crate::support::hostile::{Access, Bearer, Fault, Hostile, Kinds, Match};
use crate::support::image::{Image, Index};
use crate::support::seed;
use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const BYTES: [u8; 5000] = [7; 5000];

fn start() -> (Hostile, Client) {
    let hostile = Hostile::start();
    let client = Client::new(&hostile.host());
    (hostile, client)
}

/// One upload whose PUT goes wrong: what was answered, and whether the blob is there.
fn put_with(fault: Fault) -> (Option<Reply>, bool, Hostile) {
    let (hostile, client) = start();
    hostile.on(Match::put_blob().nth(1)).fault(fault);
    let reply = client.put(&client.begin("r"), &BYTES);
    let stored = hostile.blob("r", &digest(&BYTES)).is_some();
    assert!(hostile.log()[1].fault.is_some());
    let again = client.upload("r", &BYTES);
    assert_eq!(again.status, 201, "the second time nothing is wrong");
    (reply, stored, hostile)
}

fn status(reply: Option<&Reply>) -> u16 {
    reply.map_or(0, |reply| reply.status)
}

#[test]
fn refusals_store_nothing() {
    for code in [401, 403, 405, 413, 429, 500, 502, 503] {
        let (reply, stored, hostile) = put_with(Fault::status(code));
        assert_eq!((status(reply.as_ref()), stored), (code, false));
        assert_eq!(hostile.log()[1].received, 5000, "the body was read first");
    }
    let (reply, stored, _) = put_with(Fault::status_with(429, "Retry-After", "3"));
    assert_eq!((reply.expect("a response").header("retry-after"), stored), ("3", false));
    let (reply, stored, _) = put_with(Fault::Refusal(400, "DIGEST_INVALID"));
    assert_eq!((reply.expect("a response").code().as_str(), stored), ("DIGEST_INVALID", false));
    let (reply, stored, _) = put_with(Fault::captive_portal());
    assert_eq!((status(reply.as_ref()), stored), (200, false));
    let (reply, stored, hostile) = put_with(Fault::RefuseEarly(413));
    assert_eq!((status(reply.as_ref()), stored), (413, false));
    assert_eq!(hostile.log()[1].received, 0);
}

#[test]
fn a_limit_holds_for_longer_bodies_only() {
    let (reply, stored, hostile) = put_with(Fault::TooLarge(4999));
    assert_eq!((status(reply.as_ref()), stored), (413, false));
    assert_eq!(hostile.log()[1].received, 0);
    let (reply, stored, _) = put_with(Fault::TooLarge(5000));
    assert_eq!((status(reply.as_ref()), stored), (201, true));

    // The session is as it was, and chunks get through.
    let (hostile, client) = start();
    hostile.on(Match::any().path("/uploads/")).fault(Fault::TooLarge(3000));
    let location = client.begin("r");
    assert_eq!(status(client.put(&location, &BYTES).as_ref()), 413);
    let first = client.patch(&location, 0, &BYTES[..3000]).expect("a response");
    let second = client.patch(first.header("location"), 3000, &BYTES[3000..]).expect("one");
    let end = client.put_as(second.header("location"), &digest(&BYTES), b"");
    assert_eq!(status(end.as_ref()), 201);

    // A length that is not announced is seen when it is there.
    let location = client.begin("r");
    let path = format!("{location}&digest={}", digest(&BYTES));
    let head =
        format!("PUT {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1388\r\n");
    let mut stream = TcpStream::connect(hostile.host()).expect("connecting");
    stream.write_all(&[head.as_bytes(), &BYTES, b"\r\n0\r\n\r\n"].concat()).expect("sending");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 413");
}

#[test]
fn bodies_are_broken_off_where_they_should_be() {
    for fault in [Fault::DropBody(1000), Fault::ResetBody(1000)] {
        let (reply, stored, hostile) = put_with(fault);
        assert!(reply.is_none() && !stored);
        assert_eq!(hostile.log()[1].received, 1000);
    }
    let (reply, stored, _) = put_with(Fault::DropBody(1 << 20));
    assert!(reply.is_none() && !stored, "a body that ends before is not let through either");

    // What came stays, and the upload can go on from there.
    let (hostile, client) = start();
    hostile.on(Match::patch_blob().nth(1)).fault(Fault::DropBody(1000));
    let location = client.begin("r");
    assert!(client.patch(&location, 0, &BYTES).is_none());
    let state = client.get(&location);
    assert_eq!((state.status, state.header("range")), (204, "0-999"));
    let rest = client.patch(state.header("location"), 1000, &BYTES[1000..]).expect("a response");
    let end = client.put_as(rest.header("location"), &digest(&BYTES), b"");
    assert_eq!(status(end.as_ref()), 201);
    assert_eq!(hostile.uploaded_bytes(), 5000);
}

#[test]
fn silence_lasts_until_the_client_goes() {
    for fault in [Fault::StallBody(1000), Fault::HangBefore, Fault::HangAnswer] {
        let (hostile, _) = start();
        let client = Client::impatient(&hostile.host(), Duration::from_millis(200));
        hostile.on(Match::put_blob()).fault(fault.clone());
        let begun = Instant::now();
        assert!(client.put(&client.begin("r"), &BYTES).is_none());
        assert!(begun.elapsed() >= Duration::from_millis(190), "{fault:?}");
        let stored = hostile.blob("r", &digest(&BYTES)).is_some();
        assert_eq!(stored, matches!(fault, Fault::HangAnswer), "{fault:?}");
        let expected = if matches!(fault, Fault::StallBody(_)) { 1000 } else { 5000 };
        assert_eq!(hostile.log()[1].received, expected);
    }
}

#[test]
fn answers_are_lost_after_the_deed() {
    let (reply, stored, hostile) = put_with(Fault::LostAnswer);
    assert!(reply.is_none() && stored);
    assert_eq!(hostile.blob_puts(&digest(&BYTES)), 2);
    let (reply, stored, _) = put_with(Fault::LostConnection);
    assert!(reply.is_none() && !stored);
    let (reply, stored, _) = put_with(Fault::DoneBut(502));
    assert_eq!((status(reply.as_ref()), stored), (502, true));

    let (hostile, client) = start();
    let image = Image::new().build();
    client.upload("r", &image.blobs.values().next().expect("a config").content.to_vec());
    hostile.on(Match::put_tag().nth(1)).fault(Fault::LostAnswer);
    let root = image.root();
    let put = || client.manifest("r", "1", &root.media_type, &root.bytes);
    assert!(put().is_none());
    assert_eq!(hostile.tags("r")["1"], image.digest());
    assert_eq!(status(put().as_ref()), 201);
}

#[test]
fn addresses_and_digests_are_wrong() {
    let (hostile, client) = start();
    hostile.on(Match::uploads().nth(1)).fault(Fault::NoLocation);
    hostile.on(Match::uploads().nth(2)).fault(Fault::WrongLocation("http://[".to_owned()));
    let begin = || client.ask("POST", "/v2/r/blobs/uploads/", b"");
    assert_eq!(begin().headers.get("location"), None);
    assert_eq!(begin().header("location"), "http://[");
    let other = format!("{}/v2/", Hostile::start().url());
    hostile.behave();
    hostile.on(Match::uploads()).fault(Fault::WrongLocation(other.clone()));
    assert_eq!(begin().header("location"), other);
    assert_eq!(hostile.open_uploads(), 3);

    let (reply, stored, _) = put_with(Fault::WrongContentDigest);
    let reply = reply.expect("a response");
    assert_eq!((reply.status, stored), (201, true));
    assert_ne!(reply.header("docker-content-digest"), digest(&BYTES));
}

#[test]
fn lies_are_told_about_blobs_mounts_and_manifests() {
    let (reply, stored, _) = put_with(Fault::Lie);
    assert_eq!((status(reply.as_ref()), stored), (201, false));

    let (hostile, client) = start();
    let image = Image::new().build();
    let root = image.root();
    let config = image.blobs.keys().next().expect("a config").clone();
    hostile.on(Match::mount().nth(1)).fault(Fault::Lie);
    assert_eq!(status(client.mount("r", &config, "s").as_ref()), 201);
    assert_eq!(client.head(&format!("/v2/r/blobs/{config}")).status, 404);
    let put = || client.manifest("r", "1", &root.media_type, &root.bytes).expect("a response");
    assert_eq!(put().code(), "MANIFEST_BLOB_UNKNOWN");
    client.upload("r", &image.blobs[&config].content.to_vec());
    hostile.on(Match::put_manifest().nth(1)).fault(Fault::Lie);
    assert_eq!(put().status, 201);
    assert!(hostile.tags("r").is_empty());
    assert_eq!(put().status, 201);
    assert_eq!(hostile.tags("r").len(), 1);
    assert!(hostile.violations().is_empty());
}

#[test]
fn mounts_are_declined_and_refused() {
    let (hostile, client) = start();
    client.upload("a", &BYTES);
    let wanted = digest(&BYTES);
    hostile.on(Match::mount().nth(1)).fault(Fault::DeclineMount);
    hostile.on(Match::mount().nth(2)).fault(Fault::status(405));
    hostile.on(Match::mount().nth(3)).fault(Fault::LostAnswer);
    assert_eq!(status(client.mount("b", &wanted, "a").as_ref()), 202);
    assert_eq!(status(client.mount("b", &wanted, "a").as_ref()), 405);
    assert!(hostile.blob("b", &wanted).is_none());
    assert!(client.mount("b", &wanted, "a").is_none());
    assert!(hostile.blob("b", &wanted).is_some());
    assert_eq!((hostile.mounts_asked(), hostile.mounts_won()), (3, 0));
}

#[test]
fn sessions_and_tokens_are_forgotten() {
    let (hostile, client) = start();
    hostile.on(Match::put_blob().nth(1)).fault(Fault::ForgetSession);
    hostile.on(Match::patch_blob().nth(1)).fault(Fault::ForgetSession);
    let reply = client.put(&client.begin("r"), &BYTES).expect("a response");
    assert_eq!((reply.status, reply.code().as_str()), (404, "BLOB_UPLOAD_UNKNOWN"));
    let reply = client.patch(&client.begin("r"), 0, &BYTES).expect("a response");
    assert_eq!(reply.code(), "BLOB_UPLOAD_UNKNOWN");
    assert_eq!(hostile.open_uploads(), 0);

    hostile.set_access(Access::Bearer(Bearer::new()));
    let login = Client::new(&hostile.host()).login();
    let token = login.get("/token?scope=repository:r:pull,push").json()["token"].clone();
    let bearer = format!("Bearer {}", token.as_str().expect("a token"));
    let client = Client::new(&hostile.host()).authorization(bearer);
    hostile.on(Match::put_blob().nth(1)).fault(Fault::RevokeTokens);
    let reply = client.put(&client.begin("r"), &BYTES).expect("a response");
    assert_eq!(reply.status, 401);
    assert!(reply.header("www-authenticate").contains("repository:r:pull,push"));
}

#[test]
fn matches_tell_requests_apart() {
    let (hostile, client) = start();
    let image = Image::new().layer(1, 10).build();
    image.push_to(&client, "r", "1");
    let (layer, other) = (image.layers()[0].clone(), digest(b"another"));
    let at = client.begin("r");
    let requests = [
        ("begin", "POST", "/v2/r/blobs/uploads/".to_owned()),
        ("mount", "POST", format!("/v2/s/blobs/uploads/?mount={layer}&from=r")),
        ("mount other", "POST", format!("/v2/s/blobs/uploads/?mount={other}&from=r")),
        ("patch", "PATCH", at.clone()),
        ("put", "PUT", format!("{at}&digest={layer}")),
        ("put other", "PUT", format!("{at}&digest={other}")),
        ("status", "GET", at.clone()),
        ("head", "HEAD", format!("/v2/r/blobs/{layer}")),
        ("head other", "HEAD", format!("/v2/r/blobs/{other}")),
        ("manifest", "PUT", format!("/v2/r/manifests/{other}")),
        ("tag", "PUT", "/v2/r/manifests/1".to_owned()),
        ("cancel", "DELETE", at),
    ];
    let table: [(Match, &[&str]); 12] = [
        (Match::uploads(), &["begin"]),
        (Match::mount(), &["mount", "mount other"]),
        (Match::mount().about(&layer), &["mount"]),
        (Match::patch_blob(), &["patch"]),
        (Match::put_blob(), &["put", "put other"]),
        (Match::put_blob().about(&layer), &["put"]),
        (Match::upload_status(), &["status"]),
        (Match::blob_exists(), &["head", "head other"]),
        (Match::blob_exists().about(&layer), &["head"]),
        (Match::put_manifest(), &["manifest", "tag"]),
        (Match::put_tag(), &["tag"]),
        (Match::cancel(), &["cancel"]),
    ];
    for (matches, expected) in table {
        let shown = format!("{matches:?}");
        hostile.behave();
        // Nothing that is asked here changes anything.
        hostile.on(matches).fault(Fault::status(418));
        hostile.on(Match::any()).fault(Fault::status(500));
        let hit = requests
            .iter()
            .filter(|(_, method, target)| client.ask(method, target, b"").status == 418)
            .map(|(name, ..)| *name)
            .collect::<Vec<_>>();
        assert_eq!(hit, expected, "{shown}");
    }
}

#[test]
fn a_slow_server_takes_a_body_piece_by_piece() {
    let begun = Instant::now();
    let interval = Duration::from_millis(20);
    let (reply, stored, _) = put_with(Fault::Drip { bytes: 1000, interval });
    assert_eq!((status(reply.as_ref()), stored), (201, true));
    assert!(begun.elapsed() >= 5 * interval);
}

/// A client that begins anew whatever goes wrong.
fn stubborn(what: &str, mut attempt: impl FnMut() -> Option<u16>) {
    let done = (0..100).any(|_| attempt() == Some(201));
    assert!(done, "{what} never came through");
}

#[test]
fn random_faults_of_pushes_are_of_all_kinds_and_relent() {
    let mut random = Random::new(seed());
    let mut kinds = BTreeSet::new();
    let mut injected = 0;
    for round in 0..25 {
        let (hostile, client) = start();
        let child = Image::new().layer(round, 3000).layer(round + 1000, 100).build();
        let image = Index::new().child(&child).build();
        let kind = if round % 2 == 0 { Kinds::Retryable } else { Kinds::All };
        hostile.faults_random(random.next(), 400, kind, 2);
        for blob in image.blobs.values() {
            let bytes = blob.content.to_vec();
            let path = format!("/v2/r/blobs/{}", blob.digest);
            stubborn("a blob", || {
                let begun = client.send("POST", "/v2/r/blobs/uploads/", &[], b"")?;
                let location = Some(begun.header("location")).filter(|at| at.starts_with('/'))?;
                let patched = client.patch(location, 0, &bytes)?;
                let location = Some(patched.header("location")).filter(|at| at.starts_with('/'))?;
                client.put_as(location, &blob.digest, b"")?;
                let head = client.send("HEAD", &path, &[], b"")?;
                Some(if head.status == 200 { 201 } else { head.status })
            });
        }
        for manifest in &image.manifests {
            let (kind, bytes) = (&manifest.media_type, &manifest.bytes);
            stubborn("a manifest", || {
                Some(client.manifest("r", &manifest.digest, kind, bytes)?.status)
            });
            stubborn("a tag", || Some(client.manifest("r", "1", kind, bytes)?.status));
        }
        hostile.assert_complete();
        assert_eq!(hostile.tags("r")["1"], image.digest());
        injected += hostile.injected();
        for served in hostile.log() {
            let name = served.fault.unwrap_or_default();
            kinds.insert(name.split(['(', ' ']).next().unwrap_or_default().to_owned());
        }
    }
    assert!(injected >= 100, "{injected}");
    for kind in ["DropBody", "ResetBody", "LostAnswer", "DoneBut", "ForgetSession", "NoLocation"] {
        assert!(kinds.contains(kind), "{kind} is not among {kinds:?}");
    }
}

#[test]
fn three_hundred_megabytes_pass_without_being_held() {
    let (hostile, client) = start();
    let content = Content::Generated { seed: 3, size: 300_000_000 };
    let before = resident_bytes();
    let location = client.begin("r");
    let mut stream = TcpStream::connect(hostile.host()).expect("connecting");
    let head = format!(
        "PUT {location}&digest={} HTTP/1.1\r\nHost: x\r\nContent-Length: 300000000\r\n\r\n",
        content.digest()
    );
    stream.write_all(head.as_bytes()).expect("sending");
    std::io::copy(&mut content.reader(), &mut stream).expect("sending");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 201");
    assert_eq!(hostile.blob("r", &content.digest()).map(|blob| blob.len()), Some(300_000_000));
    // Other tests run in this process, too.
    assert!(resident_bytes().saturating_sub(before) < 250_000_000);
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.expect("a number") * 4096
}
