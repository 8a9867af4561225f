//! Registries, token servers and way stations whose answers are not quite what the specifications say: what is
//! meant is done, what cannot be had is an error, and the reason that they give is told.

use crate::support::cli::{Imgfs, Output, SAME};
use crate::support::content;
use crate::support::hostile::{
    Access, Answer, Bearer, Fault, Front, Hostile, Match, PASSWORD, Served, USER,
};
use crate::support::http::Request;
use crate::support::image::{
    Artifact, Built, Image, Index, cosign_signature, digest_tag, single, two_platforms,
};
use crate::support::layers::Archive;
use crate::support::text;
use crate::support::tree::{self, assert_tree_sound};
use serde_json::{Value, json};
use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Answers some requests in a way of its own, before the registry is asked.
struct Quirk<F>(F);

impl<F: Fn(&Request) -> Option<Answer> + Send + Sync> Front for Quirk<F> {
    fn answer(&self, request: &Request) -> Option<Answer> {
        (self.0)(request)
    }

    fn grants(&self, _: &str) -> bool {
        true
    }
}

fn quirk(answer: impl Fn(&Request) -> Option<Answer> + Send + Sync + 'static) -> Hostile {
    Hostile::with_front(Quirk(answer))
}

fn redirect(status: u16, location: impl Into<String>) -> Option<Answer> {
    Some(Answer::empty(status).with("Location", location))
}

/// `localhost:PORT`, which is another origin than the registries have.
fn by_name(hostile: &Hostile) -> String {
    hostile.host().replace("127.0.0.1", "localhost")
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).expect("compressing");
    encoder.finish().expect("compressing")
}

/// Pulls `repository:1`, each time into a directory of its own.
fn pull(hostile: &Hostile, repository: &str, args: &[&str]) -> (Imgfs, Output) {
    let imgfs = Imgfs::scratch();
    let name = format!("{}/{repository}:1", hostile.host());
    let output = imgfs.pull(&[args, &[&name]].concat());
    (imgfs, output)
}

/// Copies all tags of `repository` into a directory of its own.
fn copy_all(hostile: &Hostile, repository: &str) -> (tempfile::TempDir, Output) {
    let place = tempfile::tempdir().expect("making a temporary directory");
    let from = format!("registry://{}/{repository}", hostile.host());
    let to = text(&place.path().join("images")).to_owned();
    let output = Imgfs::scratch().copy(&["--from", &from, "--to", &to, "--all"]);
    (place, output)
}

// --- lists in pages ---

#[test]
fn all_tags_are_copied_or_it_is_an_error() {
    let tags = |names: &[&str]| Answer::json(&json!({"name": "app", "tags": names}));
    for (link, is_whole) in [
        ("</v2/app/tags/list?n=2&last=v1>; rel=\"next\"", true),
        ("<?last=v1>; rel=next", true),
        ("/v2/app/tags/list?last=v1", true),
        (
            "<http://registry.internal:8081/repository/proxy/v2/app/tags/list?last=v1>; rel=\"next\"",
            true,
        ),
        ("<https://registry.internal/v2/app/tags/list?last=v1>; rel=\"prev next\"", true),
        ("</other?last=v1>; rel=prev, </v2/app/tags/list?last=v1>; rel=next", true),
        ("<http://elsewhere.internal/pages/2>; rel=\"next\"", false),
        ("<broken; rel=\"next\"", false),
        ("<http://[>; rel=next", false),
    ] {
        let hostile = quirk(move |request| {
            let is_list = request.path == "/v2/app/tags/list";
            is_list.then(|| match request.query("last") {
                Some("v1") => tags(&["v2", "v3"]),
                _ => tags(&["v0", "v1"]).with("Link", link),
            })
        });
        let image = single(1);
        for tag in ["v0", "v1", "v2", "v3"] {
            image.push_to(&hostile, "app", tag);
        }
        let (_place, output) = copy_all(&hostile, "app");
        match is_whole {
            true => assert_eq!(output.success().images().len(), 4, "{link}"),
            false => drop(output.expect_code(2).stderr_has("listing the tags")),
        }
    }
}

#[test]
fn a_list_of_tags_that_does_not_end_is_an_error() {
    for (what, links) in [("circle", false), ("nothing new", true)] {
        let pages = AtomicUsize::new(0);
        let hostile = quirk(move |request| {
            let page = pages.fetch_add(1, Ordering::SeqCst);
            let next = if links { page } else { 7 };
            let link = format!("</v2/app/tags/list?page={next}>; rel=\"next\"");
            let is_list = request.path == "/v2/app/tags/list";
            is_list.then(|| Answer::json(&json!({"tags": ["1"]})).with("Link", link))
        });
        single(1).push_to(&hostile, "app", "1");
        copy_all(&hostile, "app").1.expect_code(2).stderr_has(what);
        assert!(hostile.count("GET", "/tags/list") < 30);
    }
}

#[test]
fn pages_may_be_empty() {
    let hostile = quirk(|request| {
        (request.path == "/v2/app/tags/list").then(|| match request.query("page") {
            None => Answer::json(&json!({"tags": null})).with("Link", "<?page=2>; rel=next"),
            Some("2") => Answer::json(&json!({"tags": []})).with("Link", "<?page=3>; rel=next"),
            _ => Answer::json(&json!({"tags": ["1", null]})),
        })
    });
    single(1).push_to(&hostile, "app", "1");
    assert_eq!(copy_all(&hostile, "app").1.success().images().len(), 1);
}

#[test]
fn a_registry_may_say_how_much_it_gives_at_a_time() {
    let hostile = quirk(|request| {
        let wants_more = request.path == "/v2/app/tags/list" && request.query("n") == Some("1000");
        wants_more.then(|| Answer::error(400, "PAGINATION_NUMBER_INVALID", "at most 2"))
    });
    hostile.set_page_limit(2);
    for tag in ["1", "2", "3", "4", "5"] {
        single(1).push_to(&hostile, "app", tag);
    }
    assert_eq!(copy_all(&hostile, "app").1.success().images().len(), 5);
}

#[test]
fn what_is_no_list_of_tags_is_not_an_empty_one() {
    for (answer, said, code) in [
        (
            json!({"errors": [{"code": "X", "message": "the index is being rebuilt"}]}),
            "being rebuilt",
            2,
        ),
        (json!(["1"]), "no list of tags", 2),
        (json!({"tags": "1"}), "no list of tags", 2),
        (json!({"tags": ["1", "no/tag"]}), "no/tag", 1),
    ] {
        let hostile = quirk(move |request| {
            (request.path == "/v2/app/tags/list").then(|| Answer::json(&answer))
        });
        single(1).push_to(&hostile, "app", "1");
        copy_all(&hostile, "app").1.expect_code(code).stderr_has(said);
    }
}

#[test]
fn referrers_that_are_listed_in_part_are_a_loss() {
    for (what, link, rest) in [
        ("refused", "<?page=2>; rel=next", 404),
        ("broken", "<?page=2>; rel=next", 200),
        ("not the registry", "<http://elsewhere.internal/x>; rel=next", 200),
    ] {
        let image = single(1);
        let signature = Artifact::new("application/vnd.test").subject(&image).build();
        let listed = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{"mediaType": signature.root().media_type, "digest": signature.digest(),
                           "size": signature.root().bytes.len()}]});
        let hostile = quirk(move |request| {
            request.path.starts_with("/v2/app/referrers/").then(|| match request.query("page") {
                None => Answer::json(&listed).with("Link", link),
                Some(_) if rest == 200 => Answer::json(&json!({"manifests": "none"})),
                Some(_) => Answer::error(rest, "UNKNOWN", "no such page"),
            })
        });
        image.push_to(&hostile, "app", "1");
        signature.push_by_digest(&hostile, "app");
        let (imgfs, output) = pull(&hostile, "app", &[]);
        let output = output.expect_code(1).stderr_has("listing the referrers");
        let losses = output.image(&format!("{}/app:1", hostile.host()))["losses"].clone();
        assert_eq!(losses.as_array().map(Vec::len), Some(1), "{what}: {output}");
        assert_tree_sound(imgfs.images_dir());
    }
}

// --- other hosts ---

#[test]
fn another_host_does_not_hold_up_the_registry() {
    for (status, wait) in
        [(429, Some("3600")), (429, Some("2")), (503, Some("60")), (429, None), (404, None)]
    {
        for leads in [301, 303, 307] {
            let other = quirk(move |_| {
                let page = Answer::new(status, "text/html", b"<html>slow down</html>".to_vec());
                Some(match wait {
                    Some(wait) => page.with("Retry-After", wait),
                    None => page,
                })
            });
            let busy = format!("http://{}/busy", by_name(&other));
            let hostile = quirk(move |request| {
                let asks = request.path.contains("/referrers/");
                asks.then(|| redirect(leads, busy.clone())).flatten()
            });
            let names = [1, 2, 3].map(|seed| {
                single(seed).push_to(&hostile, &format!("app{seed}"), "1");
                format!("{}/app{seed}:1", hostile.host())
            });
            let imgfs = Imgfs::scratch();
            let output = imgfs.pull(&names).success();
            assert_eq!(output.images().len(), 3);
            assert_eq!(other.requests(), 1, "it is asked once, and not again for other images");
        }
    }
}

#[test]
fn storage_that_is_busy_is_asked_again_and_named_if_it_stays_so() {
    for (refusals, wait) in [(1, "1"), (usize::MAX, "3600")] {
        let asked = AtomicUsize::new(0);
        let image = Image::new().layer(1, 1000).build();
        let contents = image.blobs.clone();
        let busy = quirk(move |request| {
            if asked.fetch_add(1, Ordering::SeqCst) < refusals {
                let refusal = Answer::error(429, "TOOMANYREQUESTS", "the bucket is full");
                return Some(refusal.with("Retry-After", wait));
            }
            let digest = request.path.trim_start_matches('/');
            Some(Answer::new(200, "application/octet-stream", contents[digest].content.clone()))
        });
        let base = format!("http://{}", by_name(&busy));
        let hostile = quirk(move |request| {
            let digest = request.path.strip_prefix("/v2/app/blobs/")?;
            redirect(307, format!("{base}/{digest}?signature=x"))
        });
        image.push_to(&hostile, "app", "1");
        let (_imgfs, output) = pull(&hostile, "app", &[]);
        if refusals == 1 {
            output.success();
        } else {
            let output =
                output.expect_code(1).stderr_has("localhost, to which it leads, asks to wait");
            output.stderr_has("the bucket is full");
        }
    }
}

#[test]
fn a_refusal_of_storage_is_not_one_of_the_registry() {
    let storage = quirk(|_| {
        let xml = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>";
        Some(Answer::new(401, "application/xml", xml.to_vec()))
    });
    let base = format!("http://{}", by_name(&storage));
    let hostile = quirk(move |request| {
        let is_blob = request.path.contains("/blobs/");
        is_blob.then(|| redirect(307, format!("{base}/x?signature=hidden"))).flatten()
    });
    single(1).push_to(&hostile, "app", "1");
    let (_imgfs, output) = pull(&hostile, "app", &[]);
    let output = output.expect_code(1).stderr_has("at localhost, to which it leads");
    assert!(!output.stderr.contains("hidden") && !output.stderr.contains("--auths"), "{output}");
    output.stderr_has("Request has expired");
}

// --- token servers ---

/// A registry whose token server is at `realm`, or at itself.
fn guarded(
    realm: Option<String>,
    answer: impl Fn(&Request) -> Option<Answer> + Send + Sync + 'static,
) -> Hostile {
    let hostile = quirk(answer);
    hostile.set_access(Access::Bearer(Bearer { realm, ..Bearer::new() }));
    single(1).push_to(&hostile, "app", "1");
    hostile
}

fn login(hostile: &Hostile, imgfs: &Imgfs) -> String {
    let path = imgfs.home().join("auths.yaml");
    let host = hostile.host();
    let entry = format!("- repo: {host}\n  username: {USER}\n  password: {PASSWORD}\n");
    std::fs::write(&path, entry).expect("writing");
    text(&path).to_owned()
}

fn pull_as_user(hostile: &Hostile) -> Output {
    let imgfs = Imgfs::scratch();
    let name = format!("{}/app:1", hostile.host());
    imgfs.pull(&["--auths", &login(hostile, &imgfs), &name])
}

#[test]
fn redirects_of_a_token_server_are_followed() {
    for status in [301, 302, 303, 307, 308] {
        let hostile = guarded(None, move |request| {
            let leads = request.path == "/token" && request.query("led").is_none();
            let target = request.target.replacen("/token?", "/service/token?led=1&", 1);
            leads.then(|| redirect(status, target)).flatten()
        });
        pull_as_user(&hostile).success();
        let led = hostile.log().into_iter().find(|served| served.path == "/service/token");
        assert_eq!(led.expect("followed").auth_scheme(), Some("Basic"), "{status}");
    }
    let circle = guarded(None, |request| {
        (request.path == "/token").then(|| redirect(302, request.target.clone())).flatten()
    });
    pull_as_user(&circle).expect_code(1).stderr_has("redirects");
    assert!(circle.count("GET", "/token") < 20);
}

#[test]
fn credentials_do_not_follow_a_token_server_to_another_origin() {
    let other = quirk(|_| Some(Answer::error(401, "UNAUTHORIZED", "who are you?")));
    for base in [format!("http://{}", by_name(&other)), other.url()] {
        let hostile = guarded(None, move |request| {
            let is_server = request.path == "/token";
            is_server.then(|| redirect(307, format!("{base}{}", request.target))).flatten()
        });
        let output = pull_as_user(&hostile).expect_code(1);
        output.stderr_has("who are you?").stderr_has("gets no credentials");
    }
    let log = other.log();
    assert!(!log.is_empty() && log.iter().all(|served| served.authorization.is_none()), "{log:#?}");

    // An identity token stands in the body.
    let target = other.url();
    let hostile = guarded(None, move |request| {
        (request.path == "/token").then(|| redirect(307, format!("{target}/token"))).flatten()
    });
    let asked = other.requests();
    let config =
        json!({"auths": {hostile.host(): {"auth": "", "identitytoken": "an-identity-token"}}});
    let imgfs = Imgfs::scratch().docker_config(&config);
    let output = imgfs.pull(&[format!("{}/app:1", hostile.host())]).expect_code(1);
    output.stderr_has("identity token is not sent there");
    assert_eq!(other.requests(), asked);
}

#[test]
fn the_reason_of_a_token_server_is_told() {
    let expired = "the access token has expired";
    for answer in [
        json!({"errors": [{"code": "UNAUTHORIZED", "message": expired}]}),
        json!({"errors": [{"code": "UNAUTHORIZED", "message": null, "detail": expired}]}),
        json!({"details": expired}),
        json!({"error": "invalid_grant", "error_description": expired}),
        json!({"message": expired, "errors": null}),
        json!(expired),
    ] {
        for status in [400, 401, 403, 404] {
            let answer = answer.clone();
            let hostile = guarded(None, move |request| {
                (request.path == "/token").then(|| Answer::json_with(status, &answer))
            });
            pull_as_user(&hostile).expect_code(1).stderr_has(expired);
        }
    }
}

#[test]
fn challenges_are_read_as_they_come() {
    for challenge in [
        "Bearer  realm = \"REALM\" ,\tservice=\"hostile\"",
        "bearer realm=REALM,service=hostile",
        "Negotiate, Bearer service=\"hostile\";realm=\"REALM\"",
        "Basic realm=\"x\", Bearer realm=\"REALM\" service=\"hostile\"",
    ] {
        let hostile = guarded(None, |request| {
            let is_asked =
                request.path.starts_with("/v2/") && request.header("authorization").is_none();
            is_asked.then(|| {
                let realm = format!("http://{}/token", request.header("host").unwrap_or_default());
                let refusal = Answer::error(401, "UNAUTHORIZED", "who are you?");
                refusal.with("WWW-Authenticate", challenge.replace("REALM", &realm))
            })
        });
        pull_as_user(&hostile).success();
    }
}

#[test]
fn the_scope_that_a_challenge_names_is_asked_for() {
    // A name of one's own before a registry that calls its repositories in another way.
    let scope = "repository:organisation/real:pull";
    let hostile = quirk(move |request| {
        if request.path == "/token" {
            let is_real = request.queries("scope").contains(&scope);
            let token = format!("{}-{}", request.queries("scope").len(), is_real);
            return Some(Answer::json(&json!({"token": token})));
        }
        let is_good = request.header("authorization") == Some("Bearer 2-true");
        (!is_good).then(|| {
            let realm = format!("http://{}/token", request.header("host").unwrap_or_default());
            let challenge = format!("Bearer realm=\"{realm}\",service=\"s\",scope=\"{scope}\"");
            let refusal = Answer::error(401, "UNAUTHORIZED", "who are you?");
            refusal.with("WWW-Authenticate", challenge)
        })
    });
    single(1).push_to(&hostile, "app", "1");
    let (_imgfs, output) = pull(&hostile, "app", &[]);
    output.success();
    let log = hostile.log();
    let tokens: Vec<_> = log.iter().filter(|served| served.path == "/token").collect();
    assert!(tokens.len() <= 2, "the token is kept: {tokens:#?}");
    let own = ("scope".to_owned(), "repository:app:pull".to_owned());
    assert!(tokens.iter().all(|served| served.query.contains(&own)), "{tokens:#?}");
}

#[test]
fn a_registry_behind_another_name_gives_the_tokens_that_everybody_gets() {
    let bearer = Bearer { anonymous: true, ..Bearer::new() };
    let real = Hostile::with_access(Access::Bearer(bearer));
    single(1).push_to(&real, "app", "1");
    let front = Hostile::start();
    front.on(Match::any().path("/v2/")).fault(Fault::RedirectTo(real.url()));
    pull(&front, "app", &[]).1.success();
    let asked = real.token_requests();
    assert_eq!(asked, 1, "the token is kept: {:#?}", real.log());
    // Whoever has credentials for the name does not take them there.
    pull_as_user(&front).success();
    real.set_access(Access::Bearer(Bearer::new()));
    let output = pull_as_user(&front).expect_code(1);
    output.stderr_has("to which it leads");
    let log = real.log();
    let given = |served: &&Served| served.auth_scheme() == Some("Basic");
    assert!(real.token_requests() > asked && log.iter().find(given).is_none(), "{log:#?}");
}

#[test]
fn a_token_for_the_registry_itself_is_sent_as_it_is() {
    let hostile = quirk(|request| {
        let is_good = request.header("authorization") == Some("Bearer registry-token");
        (request.path != "/token" && !is_good).then(|| {
            let realm = format!("http://{}/token", request.header("host").unwrap_or_default());
            let refusal = Answer::error(401, "UNAUTHORIZED", "who are you?");
            refusal.with("WWW-Authenticate", format!("Bearer realm=\"{realm}\""))
        })
    });
    single(1).push_to(&hostile, "app", "1");
    let name = format!("{}/app:1", hostile.host());
    let config = |token: &str| json!({"auths": {hostile.host(): {"registrytoken": token}}});
    let imgfs = Imgfs::scratch().docker_config(&config("registry-token"));
    imgfs.pull(&[&name]).success();
    let imgfs = Imgfs::scratch().docker_config(&config("another-token"));
    let output = imgfs.pull(&[&name]).expect_code(1).stderr_has("the registry token is refused");
    assert!(!output.stderr.contains("another-token"), "{output}");
    assert_eq!(hostile.token_requests(), 0);
}

// --- HEAD ---

#[test]
fn a_registry_that_answers_head_with_an_error_is_asked_with_get() {
    for status in [400, 401, 403, 404, 405, 500, 501] {
        let hostile = quirk(move |request| {
            let is_asked = request.method == "HEAD" && request.path.contains("/manifests/");
            is_asked.then(|| Answer::empty(status))
        });
        single(1).push_to(&hostile, "app", "1");
        let imgfs = Imgfs::scratch();
        let name = format!("{}/app:1", hostile.host());
        imgfs.pull(&[&name]).success();
        let again = imgfs.pull(&[&name]).success();
        assert_eq!(again.image(&name)["status"], "unchanged", "{status}: {again}");
        // And at the target of a push.
        let target = quirk(move |request| {
            let is_asked = request.method == "HEAD" && request.path.contains("/manifests/");
            is_asked.then(|| Answer::empty(status))
        });
        let dest = format!("{}/{SAME}", target.host());
        imgfs.push(&["--dest", &dest]).success();
        target.assert_complete();
    }
}

#[test]
fn the_reason_behind_a_refused_head_is_told() {
    let hostile = quirk(|request| {
        let is_manifest = request.path.contains("/manifests/");
        is_manifest.then(|| Answer::error(403, "DENIED", "this project is over its quota"))
    });
    let source = Hostile::start();
    single(1).push_to(&source, "app", "1");
    let (imgfs, output) = pull(&source, "app", &[]);
    output.success();
    let dest = format!("{}/{SAME}", hostile.host());
    let output = imgfs.push(&["--dest", &dest]).expect_code(1);
    output.stderr_has("over its quota");
}

#[test]
fn an_address_that_is_good_for_get_only_says_nothing_of_a_blob() {
    for there in [false, true] {
        let storage = quirk(move |request| match (request.method.as_str(), there) {
            ("HEAD", _) => Some(Answer::error(403, "DENIED", "")),
            (_, true) => Some(
                Answer::new(206, "application/octet-stream", b"x".to_vec())
                    .with("Content-Range", "bytes 0-0/*"),
            ),
            _ => Some(Answer::error(404, "BLOB_UNKNOWN", "")),
        });
        let base = format!("http://{}", by_name(&storage));
        let target = quirk(move |request| {
            let asks = matches!(request.method.as_str(), "HEAD" | "GET")
                && request.path.contains("/blobs/sha256:");
            asks.then(|| redirect(307, format!("{base}/x?signature=1"))).flatten()
        });
        let source = Hostile::start();
        let image = single(1);
        image.push_to(&source, "app", "1");
        if there {
            image.push_to(&target, "app", "old");
        }
        let (imgfs, output) = pull(&source, "app", &[]);
        output.success();
        let dest = format!("{}/{SAME}", target.host());
        imgfs.push(&["--dest", &dest]).success();
        target.assert_complete();
        let uploads = target.count("PUT", "/blobs/uploads/");
        assert_eq!(uploads, if there { 0 } else { image.blobs.len() });
    }
}

// --- content that is compressed on its way ---

#[test]
fn content_that_is_compressed_on_its_way_is_what_it_was() {
    let image = Image::new().layer(1, 300_000).layer_gzip_tar(&[("etc/a", b"one")]).build();
    for what in ["/manifests/", "/blobs/", "/tags/"] {
        let contents = image.clone();
        let hostile = quirk(move |request| {
            if request.method != "GET" || !request.path.contains(what) {
                return None;
            }
            let name = request.path.rsplit('/').next().unwrap_or_default();
            let (kind, bytes) = match (what, contents.blobs.get(name)) {
                ("/tags/", _) => ("application/json".to_owned(), br#"{"tags":["1"]}"#.to_vec()),
                ("/blobs/", Some(blob)) => {
                    ("application/octet-stream".into(), blob.content.to_vec())
                }
                ("/blobs/", None) => return None,
                _ => (contents.root().media_type.clone(), contents.root().bytes.clone()),
            };
            Some(Answer::new(200, &kind, gzip(&bytes)).with("Content-Encoding", "gzip"))
        });
        image.push_to(&hostile, "app", "1");
        let (place, output) = copy_all(&hostile, "app");
        output.success();
        assert_tree_sound(&place.path().join("images"));
        assert_eq!(tree::blobs(&place.path().join("images")).len(), image.blobs.len());
    }
}

#[test]
fn content_that_only_says_to_be_compressed_is_taken_as_it_is() {
    for encoding in ["gzip", "aws-chunked", "br"] {
        let image = Image::new().layer_gzip_tar(&[("etc/a", b"one")]).build();
        let contents = image.clone();
        let hostile = quirk(move |request| {
            let blob = contents.blobs.get(request.path.rsplit('/').next()?)?;
            let answer = Answer::new(200, "application/octet-stream", blob.content.clone());
            Some(answer.with("Content-Encoding", encoding))
        });
        image.push_to(&hostile, "app", "1");
        let (imgfs, output) = pull(&hostile, "app", &[]);
        output.success();
        assert_tree_sound(imgfs.images_dir());
    }
}

#[test]
fn an_encoding_that_cannot_be_undone_is_named() {
    for what in ["/manifests/", "/blobs/"] {
        let hostile = quirk(move |request| {
            let is_asked = request.method == "GET" && request.path.contains(what);
            let body = b"\x0b\x02\x80\x00\x01".to_vec();
            is_asked.then(|| Answer::new(200, "x/y", body).with("Content-Encoding", "br"))
        });
        single(1).push_to(&hostile, "app", "1");
        let (_imgfs, output) = pull(&hostile, "app", &["--max-wait", "1s"]);
        output.expect_code(1).stderr_has("`br`").stderr_has("proxy");
    }
}

// --- attachments ---

/// A registry that takes the tag `sha256-<hex>` for the digest, as GitLab's does; `many` have more tags than
/// are listed.
fn digest_tags_are_digests(image: &Built, many: bool) -> Hostile {
    let manifests = image.manifests.clone();
    quirk(move |request| {
        if many && request.path.ends_with("/tags/list") {
            let names: Vec<String> = (0..1000).map(|n| format!("t{n}")).collect();
            let list = Answer::json(&json!({"tags": names}));
            return Some(list.with("Link", "</v2/app/tags/list?last=t999>; rel=\"next\""));
        }
        let tag = request.path.strip_prefix("/v2/app/manifests/sha256-")?;
        if request.is_write() {
            return None;
        }
        let digest = format!("sha256:{tag}");
        let manifest = manifests.iter().find(|manifest| manifest.digest == digest)?;
        let answer = Answer::new(200, &manifest.media_type, manifest.bytes.clone());
        Some(answer.with("Docker-Content-Digest", digest))
    })
}

#[test]
fn an_image_is_not_attached_to_itself() {
    for many in [false, true] {
        let image = two_platforms(1);
        let hostile = digest_tags_are_digests(&image, many);
        image.push_to(&hostile, "app", "1");
        let (imgfs, output) = pull(&hostile, "app", &["--platform", "linux/amd64"]);
        let output = output.success();
        let entry = output.image(&format!("{}/app:1", hostile.host()));
        assert_eq!((&entry["attached"], &entry["losses"]), (&json!([]), &json!([])), "{output}");
        let strange = tree::everything_under(imgfs.images_dir());
        let strange = strange.iter().any(|path| text(path).contains("manifests/sha256-"));
        assert!(!strange && tree::blobs(imgfs.images_dir()).len() < image.blobs.len());
        assert_tree_sound(imgfs.images_dir());
    }
}

#[test]
fn without_lists_what_is_attached_is_found_by_its_name() {
    for (path, status) in [
        ("/tags/list", 404),
        ("/tags/list", 405),
        ("/tags/list", 501),
        ("/referrers/", 404),
        ("/referrers/", 405),
        ("/referrers/", 410),
    ] {
        let image = single(1);
        let hostile = quirk(move |request| {
            request.path.contains(path).then(|| Answer::error(status, "UNSUPPORTED", "no list"))
        });
        image.push_to(&hostile, "app", "1");
        let tag = digest_tag(image.digest(), ".sig");
        cosign_signature(&image).push_to(&hostile, "app", &tag);
        let (_imgfs, output) = pull(&hostile, "app", &[]);
        let output = output.success();
        let entry = output.image(&format!("{}/app:1", hostile.host()));
        assert_eq!(entry["attached"], json!([tag]), "{path} {status}: {output}");
    }
}

#[test]
fn children_of_an_index_are_no_referrers_of_it() {
    let image = two_platforms(1);
    let signature = Artifact::new("application/vnd.test").subject(&image).build();
    let source = Hostile::start();
    source.set_referrers_api(true);
    image.push_to(&source, "app", "1");
    signature.push_by_digest(&source, "app");
    let (imgfs, output) = pull(&source, "app", &[]);
    output.success();
    let target = digest_tags_are_digests(&image, false);
    let dest = format!("{}/{SAME}", target.host());
    imgfs.push(&["--dest", &dest]).success();
    target.assert_complete();
    let list =
        target.manifest("app", &digest_tag(image.digest(), "")).expect("a list of referrers");
    let list: Value = serde_json::from_slice(&list).expect("JSON");
    let listed: Vec<&Value> = list["manifests"].as_array().expect("a list").iter().collect();
    assert_eq!(listed.len(), 1, "{list}");
    assert_eq!(listed[0]["digest"], signature.digest());
}

// --- indexes and configurations ---

fn cat(hostile: &Hostile, platform: &str, path: &str) -> Output {
    let name = format!("{}/app:1", hostile.host());
    let imgfs = Imgfs::scratch();
    let dir = text(imgfs.images_dir()).to_owned();
    imgfs.run(&["cat", "--plain-http", "--images-dir", &dir, "--platform", platform, &name, path])
}

fn which(platform: &str, content: &str) -> Image {
    Image::new().platform(platform).layer_gzip_tar(&[("etc/which", content.as_bytes())])
}

#[test]
fn what_an_index_does_not_say_is_in_the_configurations() {
    let without = |child: &mut Value| child["platform"] = Value::Null;
    let (amd, arm) = (which("linux/amd64", "amd").build(), which("linux/arm64", "arm").build());
    let flat = Index::new().child_with(&arm, without).child_with(&amd, without).build();
    let single = Index::new().child_with(&amd, without).build();
    let nested = Index::new().child(&arm).child_with(&single, without).build();
    let silent = which("linux/amd64", "amd").without_platform_in_config().build();
    let silent = Index::new().child(&arm).child_with(&silent, without).build();
    for image in [&flat, &single, &nested, &silent] {
        let hostile = Hostile::start();
        image.push_to(&hostile, "app", "1");
        let output = cat(&hostile, "linux/amd64", "/etc/which").success();
        assert_eq!(output.stdout, "amd");
        let (imgfs, output) = pull(&hostile, "app", &["--platform", "linux/amd64"]);
        output.success();
        assert_tree_sound(imgfs.images_dir());
    }
    let hostile = Hostile::start();
    flat.push_to(&hostile, "app", "1");
    assert_eq!(cat(&hostile, "linux/arm64", "/etc/which").success().stdout, "arm");
    cat(&hostile, "linux/s390x", "/etc/which").expect_code(1).stderr_has("linux/arm64");
    let (imgfs, output) = pull(&hostile, "app", &[]);
    output.success();
    let listed = imgfs.ls().success().images()[0]["platforms"].clone();
    assert_eq!(listed, json!(["linux/arm64", "linux/amd64"]));
}

#[test]
fn a_null_in_a_history_hides_no_wrong_layer() {
    for is_right in [true, false] {
        let mut layer = Archive::new().file("which", "layer").gzip();
        if !is_right {
            layer.diff_id = content::digest(b"something else");
        }
        let hostile = Hostile::start();
        let image = Image::new().null_step().step("COPY which /", &layer).build();
        image.push_to(&hostile, "app", "1");
        let output = cat(&hostile, "linux/amd64", "/which");
        match is_right {
            true => assert_eq!(output.success().stdout, "layer"),
            false => drop(output.expect_code(1).stderr_has(&layer.diff_id)),
        }
    }
}
