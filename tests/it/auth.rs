//! Who may pull, with what, and who gets to see it.

use crate::support::cli::{Imgfs, Output};
use crate::support::hostile::{Access, Bearer, Hostile, Served};
use crate::support::image::{Built, Image};
use crate::support::registry::{Registry, Tokens};
use crate::support::text;
use crate::support::tree::assert_tree_sound;
use base64::Engine as _;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

const PASSWORD: &str = "secret";
/// How a refusal may be called.
const UNAUTHORISED: [&str; 3] = ["401", "not authorised", "unauthorized"];

fn image() -> Built {
    Image::new().layer(1, 1000).layer(2, 1000).build()
}

fn basic() -> (Hostile, String) {
    guarded(Access::basic())
}

fn guarded(access: Access) -> (Hostile, String) {
    let hostile = Hostile::with_access(access);
    image().push_to(&hostile, "team/app", "1");
    let name = format!("{}/team/app:1", hostile.host());
    (hostile, name)
}

fn encode(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// `{"auths": {HOST: {"auth": ...}}}`
fn docker_config(host: &str) -> Value {
    json!({"auths": {host: {"auth": encode("bed:secret")}}})
}

/// Neither the password nor the header made of it is in what a run printed.
#[track_caller]
fn assert_discreet(output: &Output) {
    let all = format!("{}{}", output.stdout, output.stderr);
    for secret in [PASSWORD, &encode("bed:secret"), "identity-token"] {
        assert!(!all.contains(secret), "{secret} was printed\n{output}");
    }
}

fn auths_file(imgfs: &Imgfs, content: &str) -> String {
    let path = imgfs.home().join("auths.yaml");
    std::fs::write(&path, content).expect("writing");
    text(&path).to_owned()
}

#[test]
fn a_password_comes_from_stdin() {
    let (hostile, name) = basic();
    let imgfs = Imgfs::scratch().stdin("secret\n");
    let output = imgfs.pull(&[&name, "--username", "bed", "--password-stdin"]).success();
    assert_discreet(&output);
    assert_tree_sound(imgfs.images_dir());
    assert!(hostile.log().iter().any(|served| served.auth_scheme() == Some("Basic")));
}

#[test]
fn a_password_comes_from_an_auths_file_in_any_of_its_forms() {
    for entry in [
        "- registry: HOST\n  username: bed\n  password: secret\n  plain_http: true\n",
        "- repo: HOST\n  username: bed\n  password: secret\n  plain_http: true\n",
        "auths:\n  - repo: HOST\n    username: bed\n    password: secret\n    plain_http: true\n",
        r#"[{"registry": "HOST", "username": "bed", "password": "secret", "plain_http": true}]"#,
    ] {
        let (hostile, name) = basic();
        let imgfs = Imgfs::scratch();
        let file = auths_file(&imgfs, &entry.replace("HOST", &hostile.host()));
        let dir = text(imgfs.images_dir());
        let args = ["pull", "--json", "--images-dir", dir, "--auths", &file, &name];
        let output = imgfs.run(&args).success();
        assert_discreet(&output);
        assert_tree_sound(imgfs.images_dir());
    }
}

#[test]
fn a_number_is_a_password_too() {
    let (hostile, name) =
        guarded(Access::Basic { user: "1000".to_owned(), password: "123456".to_owned() });
    let imgfs = Imgfs::scratch();
    let text = format!("- registry: {}\n  username: 1000\n  password: 123456\n", hostile.host());
    let file = auths_file(&imgfs, &text);
    imgfs.pull(&["--auths", &file, &name]).success();
}

#[test]
fn an_unknown_key_is_warned_about_with_its_line() {
    let (hostile, name) = basic();
    let imgfs = Imgfs::scratch();
    let text = format!(
        "- registry: {}\n  username: bed\n  passwrod: secret\n  password: secret\n",
        hostile.host()
    );
    let file = auths_file(&imgfs, &text);
    let output = imgfs.pull(&["--auths", &file, &name]).success();
    let output = output.stderr_has("passwrod");
    assert!(output.stderr.contains('3'), "the line is named\n{output}");
    assert_discreet(&output);
}

#[test]
fn the_longest_prefix_wins() {
    let (hostile, name) = basic();
    let host = hostile.host();
    let imgfs = Imgfs::scratch();
    let entry = |registry: &str, password: &str| {
        format!("- registry: {registry}\n  username: bed\n  password: {password}\n")
    };
    let right = [
        entry(&host, "wrong"),
        entry(&format!("{host}/team"), "secret"),
        entry(&format!("{host}/te"), "wrong"),
        entry(&format!("{host}/team/app/more"), "wrong"),
    ];
    let file = auths_file(&imgfs, &right.concat());
    imgfs.pull(&["--auths", &file, &name]).success();

    let imgfs = Imgfs::scratch();
    let wrong = [entry(&host, "secret"), entry(&format!("{host}/team/app"), "wrong")];
    let file = auths_file(&imgfs, &wrong.concat());
    let output = imgfs.pull(&["--auths", &file, &name]).expect_code(1);
    assert_discreet(&output);
    output.stderr_has_one_of(&UNAUTHORISED).stderr_has("hint:");
}

#[test]
fn docker_config_files_are_read_where_they_lie() {
    let (hostile, name) = basic();
    let config = docker_config(&hostile.host());

    let imgfs = Imgfs::scratch().docker_config(&config);
    let output = imgfs.pull(&[&name]).success();
    assert_discreet(&output);

    let imgfs = Imgfs::scratch();
    let file = imgfs.home().join("auth.json");
    std::fs::write(&file, config.to_string()).expect("writing");
    let wrong = json!({"auths": {hostile.host(): {"auth": encode("bed:wrong")}}});
    let imgfs = imgfs.docker_config(&wrong).env("REGISTRY_AUTH_FILE", &file);
    imgfs.pull(&[&name]).success();

    let imgfs = Imgfs::scratch();
    let runtime = imgfs.home().join("run");
    std::fs::create_dir_all(runtime.join("containers")).expect("making a directory");
    std::fs::write(runtime.join("containers/auth.json"), config.to_string()).expect("writing");
    let imgfs = imgfs.env("XDG_RUNTIME_DIR", &runtime);
    imgfs.pull(&[&name]).success();

    // Where podman keeps it for good.
    for (set, directory) in [(None, ".config"), (Some("XDG_CONFIG_HOME"), "configurations")] {
        let imgfs = Imgfs::scratch();
        let place = imgfs.home().join(directory);
        std::fs::create_dir_all(place.join("containers")).expect("making a directory");
        std::fs::write(place.join("containers/auth.json"), config.to_string()).expect("writing");
        let imgfs = match set {
            Some(name) => imgfs.env(name, &place),
            None => imgfs,
        };
        imgfs.pull(&[&name]).success();
    }

    // An auths file that has the registry goes before all of them.
    let imgfs = Imgfs::scratch().docker_config(&wrong);
    let text = format!("- registry: {}\n  username: bed\n  password: secret\n", hostile.host());
    let file = auths_file(&imgfs, &text);
    imgfs.pull(&["--auths", &file, &name]).success();
}

/// A program as Docker's credential helpers are: the registry on stdin, JSON on stdout.
fn write_helper(directory: &Path, answer: &Value) {
    std::fs::create_dir_all(directory).expect("making a directory");
    let path = directory.join("docker-credential-bed");
    let script =
        format!("#!/bin/sh\nread host\necho \"$1 $host\" >> \"$0.log\"\necho '{answer}'\n");
    std::fs::write(&path, script).expect("writing");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
        .expect("setting a mode");
}

#[test]
fn credential_helpers_are_asked() {
    let (hostile, name) = basic();
    let host = hostile.host();
    for config in [json!({"credHelpers": {host.clone(): "bed"}}), json!({"credsStore": "bed"})] {
        let imgfs = Imgfs::scratch().docker_config(&config);
        let bin = imgfs.home().join("bin");
        write_helper(&bin, &json!({"ServerURL": host, "Username": "bed", "Secret": "secret"}));
        let imgfs = imgfs.path_prefix(&bin);
        let output = imgfs.pull(&[&name]).success();
        assert_discreet(&output);
        let asked =
            std::fs::read_to_string(bin.join("docker-credential-bed.log")).expect("it was asked");
        assert!(asked.lines().all(|line| line == format!("get {host}")), "{asked}");
    }
    // A helper that is not there is a clear error or a clear warning, not silence.
    let imgfs = Imgfs::scratch().docker_config(&json!({"credHelpers": {host: "nowhere"}}));
    let output = imgfs.pull(&[&name]).expect_code(1);
    output.stderr_has("docker-credential-nowhere");
}

#[test]
fn credentials_of_nobody_are_none() {
    let (hostile, name) = guarded(Access::Bearer(Bearer { anonymous: true, ..Bearer::new() }));
    let host = hostile.host();
    for config in [
        json!({"auths": {host.clone(): {"auth": encode(":")}}}),
        json!({"credHelpers": {host.clone(): "bed"}}),
        json!({"credsStore": "bed"}),
    ] {
        let imgfs = Imgfs::scratch().docker_config(&config);
        let bin = imgfs.home().join("bin");
        write_helper(&bin, &json!({"ServerURL": "", "Username": "", "Secret": ""}));
        imgfs.path_prefix(&bin).pull(&[&name]).success();
    }
    let imgfs = Imgfs::scratch();
    let entry = format!("- repo: {host}\n  username: \"\"\n  password: \"\"\n");
    let file = auths_file(&imgfs, &entry);
    imgfs.pull(&["--auths", &file, &name]).success();
    assert!(hostile.log().iter().all(|served| served.auth_scheme() != Some("Basic")));
}

#[test]
fn a_real_registry_with_tokens() {
    let registry = Registry::token(Tokens::default());
    image().push_to(&registry, "team/app", "1");
    let name = format!("{}/team/app:1", registry.host());
    let imgfs = Imgfs::scratch().docker_config(&docker_config(&registry.host()));
    let output = imgfs.pull(&[&name]).success();
    assert_discreet(&output);
    assert_tree_sound(imgfs.images_dir());
    // One scope, one token, however many blobs.
    assert!(registry.token_requests() <= 2, "{} tokens", registry.token_requests());

    let imgfs = Imgfs::scratch();
    let output = imgfs.pull(&[&name]).expect_code(1);
    output.stderr_has_one_of(&UNAUTHORISED).stderr_has("hint:");

    let registry = Registry::token(Tokens { anonymous_pull: true, ..Tokens::default() });
    image().push_to(&registry, "team/app", "1");
    let imgfs = Imgfs::scratch();
    imgfs.pull(&[format!("{}/team/app:1", registry.host())]).success();
}

#[test]
fn a_token_that_runs_out_in_mid_run_is_replaced() {
    let short = [
        // Good for a few requests only, whatever was promised.
        Bearer { uses: Some(4), ..Bearer::new() },
        // Good for less time than the pull takes, and the server says nothing about it.
        Bearer { lifetime: Duration::from_millis(150), advertised: None, ..Bearer::new() },
        Bearer { lifetime: Duration::from_millis(150), advertised: Some(300), ..Bearer::new() },
    ];
    for bearer in short {
        let what = format!("{bearer:?}");
        let hostile = Hostile::with_access(Access::Bearer(bearer));
        let image = (0..20).fold(Image::new(), |image, seed| image.layer(seed, 50_000)).build();
        image.push_to(&hostile, "app", "1");
        hostile.set_pace(25_000, Duration::from_millis(20));
        let imgfs = Imgfs::scratch().docker_config(&docker_config(&hostile.host()));
        let name = format!("{}/app:1", hostile.host());
        let output = imgfs.pull(&[name.as_str(), "--concurrency", "2"]).success();
        assert_tree_sound(imgfs.images_dir());
        assert!(hostile.token_requests() >= 2, "{what}\n{output}");
        let refused = hostile.log().iter().filter(|served| served.status == 401).count();
        assert!(refused <= 2 * hostile.token_requests(), "{what}: {refused} refusals");
        let sent: u64 = hostile.blob_bytes_sent().values().sum();
        assert_eq!(sent, image.blob_bytes(), "{what}: nothing was fetched twice");
    }
}

#[test]
fn tokens_are_asked_for_once_by_all_who_wait() {
    let (hostile, _) = guarded(Access::Bearer(Bearer::new()));
    let image = (0..30).fold(Image::new(), |image, seed| image.layer(seed, 1000)).build();
    image.push_to(&hostile, "team/app", "1");
    let imgfs = Imgfs::scratch().docker_config(&docker_config(&hostile.host()));
    imgfs.pull(&[format!("{}/team/app:1", hostile.host())]).success();
    assert_eq!(hostile.token_requests(), 1, "{:?}", hostile.log());
}

#[test]
fn an_identity_token_is_exchanged_and_not_shown() {
    let identity_token = Some("identity-token".to_owned());
    let bearer = Bearer { identity_token, ..Bearer::new() };
    let (hostile, name) = guarded(Access::Bearer(bearer));
    let host = hostile.host();
    let config = json!({"auths": {host.clone(): {
        "auth": encode("00000000-0000-0000-0000-000000000000:"), "identitytoken": "identity-token",
    }}});
    let imgfs = Imgfs::scratch().docker_config(&config);
    let output = imgfs.pull(&[&name]).success();
    assert_discreet(&output);
    let posts =
        |hostile: &Hostile| hostile.log().iter().filter(|served| served.method == "POST").count();
    assert!(posts(&hostile) >= 1);

    // A helper gives such a token under the user name `<token>`.
    let before = posts(&hostile);
    let imgfs = Imgfs::scratch().docker_config(&json!({"credHelpers": {host.clone(): "bed"}}));
    let bin = imgfs.home().join("bin");
    let answer = json!({"ServerURL": host, "Username": "<token>", "Secret": "identity-token"});
    write_helper(&bin, &answer);
    let imgfs = imgfs.path_prefix(&bin);
    let output = imgfs.pull(&[&name]).success();
    assert_discreet(&output);
    assert!(posts(&hostile) > before);
}

#[test]
fn anonymous_tokens_are_enough_where_they_are_given() {
    let (hostile, name) = guarded(Access::Bearer(Bearer { anonymous: true, ..Bearer::new() }));
    let imgfs = Imgfs::scratch();
    imgfs.pull(&[&name]).success();
    assert!(hostile.log().iter().all(|served| served.auth_scheme() != Some("Basic")));
}

#[test]
fn credentials_stay_with_their_registry() {
    let (guarded, name) = basic();
    let other = Hostile::start();
    image().push_to(&other, "team/app", "1");
    let storage = Hostile::start();
    guarded.redirect_blobs_to(&storage, 100);
    let imgfs = Imgfs::scratch().docker_config(&docker_config(&guarded.host()));
    let second = format!("{}/team/app:1", other.host());
    let output = imgfs.pull(&[&name, &second]).success();
    assert_discreet(&output);
    let given = |served: &Served| served.authorization.is_some();
    assert!(guarded.log().iter().any(given));
    assert!(!other.log().iter().any(given), "another registry saw credentials");
    assert!(!storage.log().is_empty());
    assert!(!storage.log().iter().any(given), "the redirect's target saw credentials");
}

#[test]
fn a_refusal_says_what_to_do() {
    let (_hostile, name) = basic();
    let imgfs = Imgfs::scratch();
    let output = imgfs.pull(&[&name]).expect_code(1);
    output.stderr_has_one_of(&UNAUTHORISED).stderr_has("hint:").stderr_has("team/app");
    let imgfs = Imgfs::scratch().stdin("wrong-password");
    let output = imgfs.pull(&[&name, "--username", "bed", "--password-stdin"]).expect_code(1);
    assert!(!output.stderr.contains("wrong-password") && !output.stdout.contains("wrong-password"));
}
