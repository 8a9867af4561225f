//! Certificates, good and bad.

use crate::support::cli::Imgfs;
use crate::support::image::{Built, Image};
use crate::support::registry::{Registry, Tls};
use crate::support::text;
use crate::support::tls::{Authority, Certificate};
use crate::support::tree::assert_tree_sound;
use serde_json::json;

fn image() -> Built {
    Image::new().layer(1, 100_000).build()
}

fn registry(certificate: Certificate, client_certificate: bool) -> (Registry, String) {
    let registry = Registry::tls(&Tls { certificate, basic: false, client_certificate });
    image().push_to(&registry, "app", "1");
    let name = format!("{}/app:1", registry.host());
    (registry, name)
}

/// `imgfs pull --images-dir DIR --json ARGS...`, over TLS.
fn pull(imgfs: &Imgfs, args: &[&str]) -> crate::support::cli::Output {
    imgfs.on_tree("pull", args)
}

#[test]
fn a_private_authority_is_trusted_when_it_is_named() {
    let registry = Registry::tls_basic();
    image().push_to(&registry, "app", "1");
    let ca = registry.ca_file();
    let name = format!("{}/app:1", registry.host());
    let with_auth = || Imgfs::scratch().stdin("secret");
    let auth = ["--username", "bed", "--password-stdin"];
    let imgfs = with_auth();
    pull(&imgfs, &[&auth[..], &["--ca-file", text(&ca), &name]].concat()).success();
    assert_tree_sound(imgfs.images_dir());
    // By its other name.
    let imgfs = with_auth();
    let local = format!("{}/app:1", registry.localhost());
    pull(&imgfs, &[&auth[..], &["--ca-file", text(&ca), &local]].concat()).success();

    let imgfs = Imgfs::scratch();
    let auths = imgfs.home().join("auths.json");
    let entry = json!([{
        "registry": registry.host(), "username": "bed", "password": "secret", "ca_file": ca,
    }]);
    std::fs::write(&auths, entry.to_string()).expect("writing");
    pull(&imgfs, &["--auths", text(&auths), &name]).success();
    assert_tree_sound(imgfs.images_dir());
}

/// The commonest private registry: one certificate, signed by itself, named by the user.
#[test]
fn a_self_signed_certificate_is_trusted_when_it_is_named() {
    let (registry, name) = registry(Certificate::SelfSigned, false);
    let imgfs = Imgfs::scratch();
    pull(&imgfs, &[&name]).expect_code(1).stderr_has("--ca-file");
    pull(&imgfs, &["--ca-file", text(&registry.server_certificate()), &name]).success();
    assert_tree_sound(imgfs.images_dir());
    // Another of its kind does not help, and its name must be right.
    let (_other, name) = self::registry(Certificate::SelfSigned, false);
    pull(&Imgfs::scratch(), &["--ca-file", text(&registry.server_certificate()), &name])
        .expect_code(1);
    let (registry, name) = self::registry(Certificate::SelfSignedForAnother, false);
    let output =
        pull(&Imgfs::scratch(), &["--ca-file", text(&registry.server_certificate()), &name]);
    output.expect_code(1).stderr_has("not valid for");
}

#[test]
fn a_bad_certificate_is_refused_with_the_reason() {
    let cases = [
        (Certificate::Good, false, "unknown issuer"),
        (Certificate::WrongHost, true, "not valid for name"),
        (Certificate::Expired, true, "expired"),
    ];
    for (certificate, named, reason) in cases {
        let (registry, name) = registry(certificate, false);
        let ca = registry.ca_file();
        let imgfs = Imgfs::scratch();
        let mut args = vec![name.as_str()];
        if named {
            args.extend(["--ca-file", text(&ca)]);
        }
        let output = pull(&imgfs, &args).expect_code(1);
        // The words are the TLS library's; some of them must be there.
        let said = output.stderr.to_lowercase().replace("unknownissuer", "unknown issuer");
        let synonyms: &[&str] = match certificate {
            Certificate::Good => &["unknown issuer", "unknown authority", "not trusted"],
            Certificate::WrongHost => &["not valid for", "name"],
            Certificate::Expired => &["expired"],
            Certificate::SelfSigned | Certificate::SelfSignedForAnother => &[],
        };
        let found = synonyms.iter().any(|word| said.contains(word));
        assert!(found, "{certificate:?}: expected something like {reason:?}\n{output}");
        output.stderr_has("hint:").stderr_has("certificate");
        // Nobody asks ten times for another certificate.
        let output = pull(&imgfs, &[&args[..], &["--insecure"]].concat()).success();
        assert_eq!(output.image(&name)["digest"], image().digest());
        assert_tree_sound(imgfs.images_dir());
    }
}

#[test]
fn another_authority_does_not_help() {
    let (_registry, name) = registry(Certificate::Good, false);
    let imgfs = Imgfs::scratch();
    let other = Authority::new("somebody else").write(imgfs.home(), "other");
    pull(&imgfs, &[&name, "--ca-file", text(&other)]).expect_code(1).stderr_has("certificate");
}

#[test]
fn an_authority_file_that_is_none() {
    let (_registry, name) = registry(Certificate::Good, false);
    let imgfs = Imgfs::scratch();
    let missing = imgfs.home().join("missing.pem");
    pull(&imgfs, &[&name, "--ca-file", text(&missing)]).expect_code(2).stderr_has("missing.pem");
    let garbage = imgfs.home().join("garbage.pem");
    std::fs::write(&garbage, "not a certificate").expect("writing");
    pull(&imgfs, &[&name, "--ca-file", text(&garbage)]).expect_code(2).stderr_has("garbage.pem");
}

#[test]
fn a_client_certificate_is_shown_where_it_is_wanted() {
    let (registry, name) = registry(Certificate::Good, true);
    let ca = registry.ca_file();
    let imgfs = Imgfs::scratch();
    let (certificate, key) = registry.authority().client("somebody").write(imgfs.home(), "client");
    let auths = imgfs.home().join("auths.json");
    let write = |entry: serde_json::Value| {
        std::fs::write(&auths, json!([entry]).to_string()).expect("writing");
    };
    let host = registry.host();
    write(json!({"registry": host, "ca_file": ca, "cert_file": certificate, "key_file": key}));
    pull(&imgfs, &["--auths", text(&auths), &name]).success();
    assert_tree_sound(imgfs.images_dir());

    // Half of a pair is a mistake, not a wish for anonymity.
    write(json!({"registry": host, "ca_file": ca, "cert_file": certificate}));
    pull(&imgfs, &["--auths", text(&auths), &name]).expect_code(2).stderr_has("key_file");

    let imgfs = Imgfs::scratch();
    let output = pull(&imgfs, &[&name, "--ca-file", text(&ca)]).expect_code(1);
    output.stderr_has("certificate");
}

#[test]
fn tls_and_plain_http_are_not_confused() {
    let (_registry, name) = registry(Certificate::Good, false);
    let imgfs = Imgfs::scratch();
    imgfs.pull(&[name.as_str(), "--max-wait", "1s"]).expect_code(1);
    let plain = Registry::plain();
    image().push_to(&plain, "app", "1");
    let name = format!("{}/app:1", plain.host());
    let output = pull(&imgfs, &[&name, "--max-wait", "1s"]).expect_code(1);
    output.stderr_has("--plain-http");
}
