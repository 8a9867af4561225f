//! `imgfs login` and `imgfs logout`.

use crate::support::cli::{Imgfs, Output};
use crate::support::hostile::{Access, Bearer, Hostile};
use crate::support::image::single;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

fn login(imgfs: &Imgfs, host: &str, args: &[&str]) -> Output {
    let all = ["login", "--plain-http", "--username", "bed", "--password-stdin", host];
    imgfs.run(&[&all, args].concat())
}

fn config(imgfs: &Imgfs) -> Value {
    let text = fs::read_to_string(imgfs.home().join(".docker/config.json")).expect("reading");
    serde_json::from_str(&text).expect("it is JSON")
}

#[track_caller]
fn assert_discreet(output: &Output) {
    let all = format!("{}{}", output.stdout, output.stderr);
    for secret in ["secret", "wrong-password", "YmVkOnNlY3JldA=="] {
        assert!(!all.contains(secret), "{secret} was printed\n{output}");
    }
}

fn registries() -> Vec<Hostile> {
    vec![
        Hostile::with_access(Access::basic()),
        Hostile::with_access(Access::Bearer(Bearer::new())),
        Hostile::with_access(Access::Bearer(Bearer { anonymous: true, ..Bearer::new() })),
    ]
}

#[test]
fn what_is_right_is_stored_and_found_and_what_is_wrong_is_not() {
    for hostile in registries() {
        single(1).push_to(&hostile, "app", "1");
        let host = hostile.host();
        let name = format!("{host}/app:1");
        let imgfs = Imgfs::scratch().docker_config(
            &json!({"detachKeys": "ctrl-x", "auths": {"quay.io": {"auth": "dTpw"}}}),
        );
        let before = config(&imgfs);
        let imgfs = imgfs.stdin("wrong-password\n");
        let refused = login(&imgfs, &host, &[]).expect_code(1).stderr_has("nothing was stored");
        assert_discreet(&refused);
        assert_eq!(config(&imgfs), before);

        let imgfs = imgfs.stdin("secret\n");
        assert_discreet(&login(&imgfs, &host, &[]).success());
        let after = config(&imgfs);
        assert_eq!(after["auths"][&host]["auth"], "YmVkOnNlY3JldA==");
        assert_eq!(
            (&after["detachKeys"], &after["auths"]["quay.io"]),
            (&before["detachKeys"], &before["auths"]["quay.io"])
        );
        let file = imgfs.home().join(".docker/config.json");
        assert_eq!(fs::metadata(&file).expect("it is there").permissions().mode() & 0o7777, 0o600);
        imgfs.pull(&[&name]).success();

        imgfs.run(&["logout", &host]).success();
        assert_eq!(config(&imgfs), before);
        imgfs.run(&["logout", &host]).expect_code(3);
    }
}

#[test]
fn without_a_check_nobody_is_asked() {
    let imgfs = Imgfs::scratch().stdin("secret");
    assert_discreet(&login(&imgfs, "registry.invalid:1", &["--no-check"]).success());
    assert_eq!(config(&imgfs)["auths"]["registry.invalid:1"]["auth"], "YmVkOnNlY3JldA==");
    let imgfs = Imgfs::scratch().stdin("secret");
    login(&imgfs, "127.0.0.1:1", &[]).expect_code(1).stderr_has("cannot connect");
    assert!(!imgfs.home().join(".docker").exists());
    // Nobody can say whether they are right.
    let hostile = Hostile::start();
    login(&imgfs, &hostile.host(), &[]).success().stderr_has("could not be checked");
}

#[test]
fn docker_config_says_where() {
    let imgfs = Imgfs::scratch();
    let elsewhere = imgfs.home().join("else/where");
    let imgfs = imgfs.env("DOCKER_CONFIG", &elsewhere).stdin("secret");
    login(&imgfs, "a.io", &["--no-check"]).success();
    assert!(elsewhere.join("config.json").exists() && !imgfs.home().join(".docker").exists());
    imgfs.run(&["logout", "a.io"]).success();
}

/// A helper that keeps what it is given in files beside it, and notes what it is asked.
fn helper(directory: &Path) {
    let program = directory.join("docker-credential-bed");
    let text = r#"#!/bin/sh
dir=$(dirname "$0")
echo "$1" >> "$dir/asked"
case $1 in
store) cat > "$dir/kept" ;;
get) cat > /dev/null; [ -f "$dir/kept" ] && exec cat "$dir/kept"; echo "credentials not found in native keychain"; exit 1 ;;
erase) cat > "$dir/erased"; rm -f "$dir/kept" ;;
esac
"#;
    fs::create_dir_all(directory).expect("making a directory");
    fs::write(&program, text).expect("writing");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("it is a program");
}

#[test]
fn a_helper_keeps_the_password_out_of_the_file() {
    let hostile = Hostile::with_access(Access::basic());
    single(1).push_to(&hostile, "app", "1");
    let host = hostile.host();
    for given in [json!({"credsStore": "bed"}), json!({"credHelpers": {host.clone(): "bed"}})] {
        let imgfs = Imgfs::scratch().docker_config(&given).stdin("secret");
        let bin = imgfs.home().join("bin");
        helper(&bin);
        let imgfs = imgfs.path_prefix(&bin);
        assert_discreet(&login(&imgfs, &host, &[]).success());
        let kept: Value =
            serde_json::from_slice(&fs::read(bin.join("kept")).expect("stored")).expect("JSON");
        assert_eq!(kept, json!({"ServerURL": host, "Username": "bed", "Secret": "secret"}));
        let stored = config(&imgfs);
        assert_eq!(stored["auths"][&host], json!({}), "as docker does");
        assert!(!stored.to_string().contains("YmVk"));
        imgfs.pull(&[format!("{host}/app:1")]).success();
        imgfs.run(&["logout", &host]).success();
        assert_eq!(fs::read_to_string(bin.join("erased")).expect("erased"), host);
        assert!(config(&imgfs)["auths"].get(&host).is_none());
        imgfs.run(&["logout", &host]).expect_code(3);
    }
    let imgfs = Imgfs::scratch().docker_config(&json!({"credsStore": "nowhere"})).stdin("secret");
    let failed = login(&imgfs, &host, &[]).expect_code(1).stderr_has("docker-credential-nowhere");
    assert_discreet(&failed);
    assert_eq!(config(&imgfs), json!({"credsStore": "nowhere"}));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let imgfs = Imgfs::scratch().stdin("");
    login(&imgfs, "a.io", &["--no-check"]).expect_code(2).stderr_has("empty");
    let imgfs = imgfs.stdin("secret");
    for host in ["quay.io/team", "nothing", "", "user:hunter2@quay.io"] {
        let refused = login(&imgfs, host, &["--no-check"]).expect_code(2);
        assert!(!refused.stderr.contains("hunter2"), "{refused}");
    }
    // Without a terminal, nobody can be asked.
    imgfs.run(&["login", "a.io"]).expect_code(2).stderr_has("--password-stdin");
    fs::create_dir(imgfs.home().join(".docker")).expect("making a directory");
    let file = imgfs.home().join(".docker/config.json");
    fs::write(&file, "{\"auths\": {\"a.io\": {\"auth\": \"c2Vj").expect("writing");
    let refused = login(&imgfs, "b.io", &["--no-check"]).expect_code(1);
    refused.stderr_has("left as it is");
    assert!(fs::read_to_string(&file).expect("reading").ends_with("c2Vj"));
}
