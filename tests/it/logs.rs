//! What is logged: in which form, about what, and what never is.

use crate::support::cli::Imgfs;
use crate::support::hostile::{Access, Fault, Hostile, Match};
use crate::support::image::Image;
use crate::support::mount::Mounted;
use crate::support::text;
use serde_json::Value;

#[test]
fn a_failure_of_a_mount_names_the_image_and_the_digest_in_json() {
    let hostile = Hostile::start();
    let image = Image::new().layer(1, 100_000).build();
    image.push_to(&hostile, "app", "1");
    let name = format!("{}/app:1", hostile.host());
    let imgfs = Imgfs::scratch();
    let args = ["--log-format", "json", "--manifests", &name];
    let mount = Mounted::start(imgfs.images_dir(), &args);
    let digest = &image.layers()[0];
    hostile.on(Match::blobs().about(digest)).fault(Fault::status(401));
    mount.cat(&format!("blobs/{digest}")).fails_with("Permission denied");
    hostile.on(Match::any()).fault(Fault::status(401));
    let other = format!("{}/other/manifests/2", hostile.host());
    mount.cat(&other).fails_with("Permission denied");
    let lines: Vec<Value> =
        mount.log().iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    for line in &lines {
        assert_eq!(line["level"], "WARN", "{line}");
        assert_eq!(line["span"]["mountpoint"], text(&mount.at()), "{line}");
        assert!(line["message"].as_str().is_some_and(|m| m.contains("not authorised")), "{line}");
    }
    assert_eq!(lines[0]["digest"], **digest, "{lines:#?}");
    assert_eq!(lines[1]["image"], format!("{}/other:2", hostile.host()), "{lines:#?}");
}

#[test]
fn a_log_has_every_request_and_no_credential() {
    let hostile = Hostile::start();
    let image = Image::new().layer(1, 100_000).build();
    image.push_to(&hostile, "app", "1");
    hostile.set_access(Access::Basic { user: "bed".to_owned(), password: "secret".to_owned() });
    let storage = Hostile::start();
    let signed = format!("{}/elsewhere?signature=hidden&of=", storage.url());
    hostile.on(Match::blobs()).fault(Fault::RedirectTo(signed));
    let imgfs = Imgfs::scratch().stdin("secret\n");
    let name = format!("{}/app:1", hostile.host());
    let log = imgfs.home().join("log");
    let args = ["--username", "bed", "--password-stdin", "--log-level", "trace", "--log-file"];
    imgfs.pull(&[&args[..], &[text(&log), &name]].concat());
    let log = std::fs::read_to_string(&log).expect("reading the log");
    let requests = log.lines().filter(|line| line.contains("status=")).count();
    assert!(requests >= 3, "{log}");
    for hidden in ["secret", "hidden", "Basic", "elsewhere", "YmVkOnNlY3JldA"] {
        assert!(!log.contains(hidden), "{hidden}: {log}");
    }
}

#[test]
fn nothing_is_logged_unless_somebody_asks_for_it() {
    let hostile = Hostile::start();
    Image::new().layer(1, 1000).build().push_to(&hostile, "app", "1");
    let name = format!("{}/app:1", hostile.host());
    let output = Imgfs::scratch().pull(&[&name]).success();
    assert!(!output.stderr.contains("imgfs: "), "{output}");
    let output = Imgfs::scratch().pull(&[&name, "--log-level", "debug"]).success();
    assert!(output.stderr.contains("imgfs: DEBUG "), "{output}");
    assert!(output.stderr.contains("status=200"), "{output}");
}
