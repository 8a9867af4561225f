//! A registry that lies, breaks off and falls silent: a pull ends in a sound tree or in a clear error, and the
//! run after it finishes.

use crate::support::cli::{Imgfs, Output};
use crate::support::content::Random;
use crate::support::faults::Outcome::{self, Any, Failure, Success};
use crate::support::faults::{side_by_side, small_images};
use crate::support::hostile::{Fault, Hostile, Kinds, Match};
use crate::support::image::{Built, Image, Index};
use crate::support::tree::{self, assert_tree_sound};
use crate::support::{scale, seed};
use std::time::{Duration, SystemTime};

const SIZE: u64 = 200_000;
/// Waits are for real registries; here nobody comes back.
const IMPATIENT: [&str; 4] = ["--max-wait", "2s", "--stall-timeout", "1s"];

fn image() -> Built {
    let amd64 = Image::new().layer(1, SIZE).layer(2, 10).build();
    Index::new().child(&amd64).build()
}

fn pull(imgfs: &Imgfs, name: &str) -> Output {
    imgfs.pull(&[&IMPATIENT[..], &[name]].concat())
}

/// One pull under faults, then one without.
fn check(what: &str, prepare: impl FnOnce(&Hostile), expected: Outcome) -> Hostile {
    let hostile = Hostile::start();
    let image = image();
    image.push_to(&hostile, "app", "1");
    prepare(&hostile);
    let name = format!("{}/app:1", hostile.host());
    let imgfs = Imgfs::scratch();
    let output = pull(&imgfs, &name);
    expected.check(what, &output);
    assert_clear(what, &output, &name);
    assert_tree_sound(imgfs.images_dir());
    if output.code() == 0 {
        assert_eq!(tree::blobs(imgfs.images_dir()).len(), image.blobs.len(), "{what}");
    }
    hostile.behave();
    let output = pull(&imgfs, &name).success();
    assert_eq!(output.image(&name)["digest"], image.digest());
    assert_tree_sound(imgfs.images_dir());
    assert_eq!(tree::blobs(imgfs.images_dir()).len(), image.blobs.len(), "{what}");
    hostile
}

/// A failure is in the report and on stderr, and names the image.
fn assert_clear(what: &str, output: &Output, name: &str) {
    if output.code() == 0 {
        return;
    }
    let entry = output.image(name);
    assert_eq!(entry["status"], "failed", "{what}\n{output}");
    assert!(entry["error"].as_str().is_some_and(|error| error.len() > 10), "{what}\n{output}");
    assert!(output.stderr.contains("error: "), "{what}\n{output}");
    assert!(output.stderr.contains("app"), "{what}\n{output}");
}

/// What can happen to any response.
fn common_faults() -> Vec<(Fault, Outcome)> {
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(1));
    vec![
        (Fault::TruncateAt(0), Success),
        (Fault::TruncateAt(100), Success),
        (Fault::ResetAfter(0), Success),
        (Fault::ResetAfter(100), Success),
        (Fault::LostConnection, Success),
        (Fault::HangBefore, Success),
        (Fault::HangAfter(100), Success),
        (Fault::status(408), Success),
        (Fault::status_with(429, "Retry-After", "1"), Success),
        (Fault::status_with(429, "Retry-After", &date), Success),
        (Fault::status(429), Success),
        (Fault::status(500), Success),
        (Fault::status(502), Success),
        (Fault::status(503), Success),
        (Fault::status_with(503, "Retry-After", "0"), Success),
        (Fault::status(504), Success),
        (Fault::status(401), Any),
        (Fault::status(403), Any),
        (Fault::status(404), Any),
        (Fault::FlipByte(50), Any),
        (Fault::WrongContentLength(10), Any),
        (Fault::WrongContentLength(-10), Any),
        (Fault::EmptyBody, Any),
        (Fault::captive_portal(), Any),
        (Fault::Chunked, Success),
        (Fault::NoContentDigest, Success),
        (Fault::NoContentType, Success),
        (Fault::WrongContentDigest, Any),
        (Fault::Drip { bytes: 64 * 1024, interval: Duration::from_millis(5) }, Success),
    ]
}

#[test]
fn a_fault_in_a_blob_that_happens_once() {
    for (fault, expected) in common_faults() {
        let what = format!("once, blob: {fault:?}");
        check(&what, |hostile| hostile.on(Match::blobs().nth(1)).fault(fault), expected);
    }
}

#[test]
fn a_fault_in_a_manifest_that_happens_once() {
    for (fault, expected) in common_faults() {
        let what = format!("once, manifest: {fault:?}");
        check(&what, |hostile| hostile.on(Match::get("/manifests/").nth(1)).fault(fault), expected);
    }
}

#[test]
fn a_fault_that_does_not_go_away() {
    let faults = [
        Fault::TruncateAt(5),
        Fault::ResetAfter(0),
        Fault::LostConnection,
        Fault::HangAfter(5),
        Fault::status(401),
        Fault::status(403),
        Fault::status(404),
        Fault::status_with(429, "Retry-After", "3600"),
        Fault::status(500),
        Fault::FlipByte(3),
        Fault::WrongContentLength(-3),
        Fault::EmptyBody,
        Fault::captive_portal(),
    ];
    let cases: Vec<(&str, Fault)> = faults
        .into_iter()
        .flat_map(|fault| [("/blobs/", fault.clone()), ("/manifests/", fault)])
        .collect();
    side_by_side(&cases, |(path, fault)| {
        let what = format!("always, {path}: {fault:?}");
        let matches = Match::any().path(path);
        check(&what, |hostile| hostile.on(matches).fault(fault.clone()), Failure);
    });
}

#[test]
fn a_range_that_is_not_what_was_asked_for() {
    for (fault, expected) in [
        (Fault::IgnoreRange, Success),
        (Fault::WrongRange, Any),
        (Fault::LyingRange, Any),
        (Fault::status(416), Any),
        (Fault::TruncateAt(10), Success),
        (Fault::FlipByte(10), Any),
    ] {
        let what = format!("range: {fault:?}");
        let layer =
            image().blobs.values().max_by_key(|blob| blob.size()).expect("blobs").digest.clone();
        check(
            &what,
            |hostile| {
                hostile.on(Match::get(&layer).nth(1)).fault(Fault::TruncateAt(SIZE / 2));
                hostile.on(Match::get(&layer).nth(2)).fault(fault);
            },
            expected,
        );
    }
}

#[test]
fn a_refusal_is_not_repeated() {
    for status in [401, 403, 404] {
        let hostile = Hostile::start();
        image().push_to(&hostile, "app", "1");
        hostile.on(Match::any().path("/manifests/")).fault(Fault::status(status));
        let imgfs = Imgfs::scratch();
        pull(&imgfs, &format!("{}/app:1", hostile.host())).expect_code(1);
        let log = hostile.log();
        let asked = log.iter().filter(|served| served.path.contains("/manifests/")).count();
        assert!(asked <= 2, "{status} was asked for {asked} times: {log:?}");
    }
}

#[test]
fn a_wait_that_is_asked_for_is_kept() {
    let hostile = Hostile::start();
    image().push_to(&hostile, "app", "1");
    hostile.on(Match::get("/manifests/").nth(1)).fault(Fault::status_with(429, "Retry-After", "2"));
    let imgfs = Imgfs::scratch();
    let name = format!("{}/app:1", hostile.host());
    let output = imgfs.pull(&[name.as_str(), "--max-wait", "30s"]).success();
    let log = hostile.log();
    let manifests: Vec<_> =
        log.iter().filter(|served| served.path.contains("/manifests/1")).collect();
    let refused = manifests.iter().position(|served| served.status == 429).expect("a refusal");
    let pause = manifests[refused + 1].at - manifests[refused].at;
    assert!(pause >= Duration::from_millis(1950), "{pause:?}\n{output}");
}

#[test]
fn a_manifest_of_100_megabytes_is_refused_and_not_held() {
    for chunked in [false, true] {
        let hostile = Hostile::start();
        image().push_to(&hostile, "app", "1");
        let bytes = 100_000_000;
        hostile.on(Match::get("/manifests/")).fault(Fault::HugeManifest { bytes, chunked });
        let imgfs = Imgfs::scratch();
        let name = format!("{}/app:1", hostile.host());
        let output = pull(&imgfs, &name).expect_code(1);
        assert_clear("huge manifest", &output, &name);
        if let Some(peak) = output.peak_rss {
            assert!(peak < 64 << 20, "peak of resident memory {} MiB", peak >> 20);
        }
        let sent: u64 = hostile.log().iter().map(|served| served.sent).sum();
        assert!(sent < 40_000_000, "{sent} bytes were taken");
    }
}

/// The seed decides about the size, so that equal layers are equal.
fn layer(random: &mut Random) -> (u64, u64) {
    let (layer, size) = (2 + random.below(8), 1 + random.below(20_000));
    (layer * 100_000 + size % 3, 1000 * layer + size % 3)
}

#[test]
fn random_faults_over_many_pulls() {
    let goal = scale(100, 1000);
    let mut random = Random::new(seed());
    let (mut injected, mut rounds, mut failures) = (0, 0, 0);
    while injected < goal {
        rounds += 1;
        assert!(rounds < 10 * goal, "faults are not injected");
        let hostile = Hostile::start();
        let mut images = small_images(&mut random, layer);
        for (name, image) in &mut images {
            image.push_to(&hostile, name, "1");
            *name = format!("{}/{name}:1", hostile.host());
        }
        let names: Vec<&str> = images.iter().map(|(name, _)| name.as_str()).collect();
        let kinds = if random.chance(500) { Kinds::Retryable } else { Kinds::All };
        hostile.faults_random(random.next(), 250, kinds, 2);
        let imgfs = Imgfs::scratch();
        let args = [&IMPATIENT[..], &names].concat();
        let output = imgfs.pull(&args);
        injected += hostile.injected();
        let code = output.code();
        assert!(code == 0 || (code == 1 && kinds == Kinds::All), "{kinds:?}\n{output}");
        assert_tree_sound(imgfs.images_dir());
        for (name, image) in &images {
            let entry = output.image(name);
            if entry["status"] == "failed" {
                assert_eq!(code, 1, "{output}");
                assert!(entry["error"].is_string(), "{output}");
                failures += 1;
            } else {
                assert_eq!(entry["digest"], image.digest(), "{output}");
            }
        }
        hostile.behave();
        let output = imgfs.pull(&names).success();
        assert_tree_sound(imgfs.images_dir());
        for (name, image) in &images {
            assert_eq!(output.image(name)["digest"], image.digest());
        }
        imgfs.verify().success();
    }
    eprintln!("{injected} faults in {rounds} pulls, {failures} images failed at first");
}
