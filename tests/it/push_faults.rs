//! A registry that refuses, breaks off, lies and forgets while it is written to: a push ends with everything in
//! its place or with a clear error and nothing half done, and the run after it finishes.

use crate::support::cli::{Imgfs, Output, SAME};
use crate::support::content::Random;
use crate::support::faults::Outcome::{self, Any, Failure, Success};
use crate::support::faults::{side_by_side, small_images};
use crate::support::hostile::{Access, Bearer, Fault, Hostile, Kinds, Locations, Match, Served};
use crate::support::image::{Built, Image, Index};
use crate::support::tree;
use crate::support::{scale, seed};
use std::time::{Duration, SystemTime};

const SIZE: u64 = 3_000_000;
/// Waits are for real registries; here nobody comes back.
const IMPATIENT: [&str; 4] = ["--max-wait", "3s", "--stall-timeout", "1s"];
fn image() -> Built {
    let amd64 = Image::new().layer(1, SIZE).layer(2, 5000).build();
    Index::new().child(&amd64).build()
}

/// Its largest layer.
fn layer() -> String {
    let image = image();
    image.blobs.values().max_by_key(|blob| blob.size()).expect("blobs").digest.clone()
}

fn directory() -> Imgfs {
    let imgfs = Imgfs::scratch();
    tree::kubekey_g1(imgfs.images_dir(), "source.example", "team/app", "1", &image());
    // A second repository, which wants to have the same by mounting.
    tree::kubekey_g1(imgfs.images_dir(), "source.example", "team/copy", "1", &image());
    imgfs
}

fn push(imgfs: &Imgfs, hostile: &Hostile, args: &[&str]) -> Output {
    let dest = format!("{}/{SAME}", hostile.host());
    imgfs.push(&[&["--dest", &dest], &IMPATIENT[..], args].concat())
}

/// Nothing is named that is not whole, whatever has been said to the client.
#[track_caller]
fn assert_sound(what: &str, hostile: &Hostile, output: &Output) {
    let problems = [hostile.violations(), hostile.problems()].concat();
    assert!(problems.is_empty(), "{what}: {problems:#?}\n{output}");
}

/// Each image is at the target, or has failed with a reason that names side, operation and object.
#[track_caller]
fn assert_told(what: &str, hostile: &Hostile, output: &Output) {
    let code = output.code();
    assert!(code == 0 || code == 1, "{what}\n{output}");
    let mut failed = 0;
    for repository in ["team/app", "team/copy"] {
        let entry = output.image(&format!("source.example/{repository}:1"));
        if entry["status"] == "failed" {
            failed += 1;
            let error = entry["error"].as_str().expect("a reason");
            let side = format!("registry {}: ", hostile.host());
            assert!(error.starts_with(&side), "{what}\n{output}");
            assert!(error.contains("team/") || error.contains("sha256:"), "{what}\n{output}");
            assert!(output.stderr.contains(error), "{what}\n{output}");
        } else {
            let tags = hostile.tags(repository);
            assert_eq!(
                tags.get("1").map(String::as_str),
                Some(image().digest()),
                "{what}\n{output}"
            );
        }
    }
    assert_eq!(code == 1, failed > 0, "{what}\n{output}");
}

/// One push under faults, then one without.
fn check(what: &str, prepare: impl FnOnce(&Hostile), expected: Outcome) -> (Hostile, Output) {
    let hostile = Hostile::start();
    prepare(&hostile);
    let imgfs = directory();
    let first = push(&imgfs, &hostile, &[]);
    assert_sound(what, &hostile, &first);
    assert_told(what, &hostile, &first);
    expected.check(what, &first);
    hostile.behave();
    let again = push(&imgfs, &hostile, &[]).success();
    assert_sound(what, &hostile, &again);
    assert_told(what, &hostile, &again);
    (hostile, first)
}

fn check_all(cases: &[(&str, Match, Fault, Outcome)]) {
    side_by_side(cases, |(name, matches, fault, expected)| {
        let what = format!("{name}: {fault:?}");
        let prepare = |hostile: &Hostile| {
            hostile.on(matches.clone()).fault(fault.clone());
        };
        check(&what, prepare, *expected);
    });
}

#[test]
fn a_fault_that_happens_once_is_got_over() {
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(1));
    let faults = [
        (Fault::status(408), Success),
        (Fault::status_with(429, "Retry-After", "1"), Success),
        (Fault::status_with(429, "Retry-After", &date), Success),
        (Fault::status(429), Success),
        (Fault::status(500), Success),
        (Fault::status(502), Success),
        (Fault::status_with(503, "Retry-After", "0"), Success),
        (Fault::status(504), Success),
        (Fault::RefuseEarly(503), Success),
        (Fault::DoneBut(502), Success),
        (Fault::LostConnection, Success),
        (Fault::LostAnswer, Success),
        (Fault::HangAnswer, Success),
        (Fault::HangBefore, Success),
        (Fault::WrongContentDigest, Any),
        (Fault::captive_portal(), Any),
        (Fault::status(401), Any),
        (Fault::status(403), Any),
        (Fault::status(404), Any),
        (Fault::status(405), Any),
        (Fault::status(418), Any),
    ];
    let mut cases = Vec::new();
    for (fault, expected) in faults {
        let layer = layer();
        let to = |matches: Match| matches.nth(1);
        cases.push(("begin", to(Match::uploads()), fault.clone(), expected));
        cases.push(("blob", to(Match::put_blob().about(&layer)), fault.clone(), expected));
        cases.push(("mount", to(Match::mount()), fault.clone(), expected));
        cases.push(("child", to(Match::put_manifest()), fault.clone(), expected));
        cases.push(("tag", to(Match::put_tag()), fault.clone(), expected));
        cases.push(("name", to(Match::any().method("HEAD").path("/manifests/")), fault, expected));
    }
    check_all(&cases);
}

#[test]
fn a_blob_that_is_broken_off_goes_on() {
    let put = || Match::put_blob().about(&layer()).nth(1);
    check_all(&[
        ("drop", put(), Fault::DropBody(0), Success),
        ("drop", put(), Fault::DropBody(1), Success),
        ("drop", put(), Fault::DropBody(SIZE - 1), Success),
        ("drop", put(), Fault::DropBody(SIZE), Success),
        ("reset", put(), Fault::ResetBody(SIZE / 2), Success),
        ("stall", put(), Fault::StallBody(SIZE / 2), Success),
        ("forget", put(), Fault::ForgetSession, Success),
        ("lie", put(), Fault::Lie, Success),
        ("mismatch", put(), Fault::Refusal(400, "DIGEST_INVALID"), Success),
        ("unknown", put(), Fault::Refusal(404, "BLOB_UPLOAD_UNKNOWN"), Success),
        ("mount", Match::mount().nth(1), Fault::Lie, Success),
        ("mount", Match::mount().nth(2), Fault::Lie, Success),
        ("mount", Match::mount(), Fault::Lie, Success),
        ("mount", Match::mount(), Fault::DeclineMount, Success),
        ("mount", Match::mount(), Fault::status(405), Success),
        ("mount", Match::mount(), Fault::status(404), Success),
        ("mount", Match::mount(), Fault::status(409), Success),
        ("mount", Match::mount(), Fault::status(412), Success),
        ("mount", Match::mount(), Fault::status(422), Success),
        ("mount", Match::mount(), Fault::status(500), Success),
        ("mount", Match::mount(), Fault::status(502), Success),
        ("mount", Match::mount(), Fault::LostConnection, Success),
        ("mount", Match::mount(), Fault::captive_portal(), Success),
        ("head", Match::blob_exists(), Fault::status(405), Success),
        ("location", Match::uploads().nth(2), Fault::NoLocation, Any),
        ("location", Match::uploads(), Fault::NoLocation, Failure),
        ("location", Match::uploads(), Fault::WrongLocation("http://[".to_owned()), Failure),
        ("location", Match::uploads(), Fault::WrongLocation("ftp://x/".to_owned()), Failure),
        ("lie", Match::put_blob().about(&layer()), Fault::Lie, Failure),
        ("status", Match::put_blob(), Fault::status(500), Failure),
        ("refused", Match::uploads(), Fault::status(403), Failure),
        ("refused", Match::uploads(), Fault::status(405), Failure),
        ("drop", Match::put_blob(), Fault::DropBody(0), Any),
        ("wait", Match::put_tag(), Fault::status_with(429, "Retry-After", "3600"), Failure),
        ("manifest", Match::put_tag(), Fault::Refusal(400, "MANIFEST_INVALID"), Failure),
        ("portal", Match::put_tag(), Fault::captive_portal(), Failure),
        ("portal", Match::put_blob(), Fault::captive_portal(), Failure),
    ]);
}

#[test]
fn a_mount_that_is_answered_without_an_address_is_none() {
    let (hostile, output) = check(
        "no address",
        |hostile| {
            hostile.decline_mounts();
            hostile.on(Match::mount()).fault(Fault::NoLocation);
        },
        Success,
    );
    let asked = hostile.mounts_asked();
    assert!((1..=3).contains(&asked), "once for each blob, or less: {asked}\n{output}");
    assert_eq!(output.number("mounted_blobs"), 0, "{output}");
}

#[test]
fn what_is_whole_at_the_registry_needs_the_end_of_its_upload_only() {
    let drop = |hostile: &Hostile| {
        let put = Match::put_blob().about(&layer()).nth(1);
        hostile.on(put).fault(Fault::DropBody(SIZE));
    };
    let (hostile, output) = check("whole", drop, Success);
    assert_eq!(hostile.blob_puts(&layer()), 1);
    assert_eq!(hostile.uploaded_bytes(), image().blob_bytes(), "nothing is sent again\n{output}");
    assert!(hostile.log().iter().all(|served| served.method != "PATCH"), "{output}");
}

#[test]
fn connections_that_were_closed_unannounced_cost_no_waiting() {
    // As load balancers close connections that have been idle: nobody knows before the next request.
    let hostile = Hostile::start();
    hostile.on(Match::any().reuse()).fault(Fault::LostConnection);
    let imgfs = directory();
    let output = push(&imgfs, &hostile, &[]).success();
    hostile.assert_complete();
    assert_eq!(output.number("retries"), 0, "{output}");
    assert_eq!(hostile.blob_puts(&layer()), 1, "{output}");
    let names = ["team/app:1", "team/copy:1"].map(|name| format!("{}/{name}", hostile.host()));
    let output = Imgfs::scratch().pull(&names).success();
    assert_eq!(output.number("retries"), 0, "{output}");
    assert!(hostile.log().iter().any(|served| served.fault.is_some()), "{output}");
}

#[test]
fn a_registry_that_takes_content_by_patch_only_gets_it_so() {
    for fault in [
        // It says so, or does not look at the body and finds the digest of nothing.
        Fault::Refusal(400, "UNSUPPORTED"),
        Fault::Refusal(400, "DIGEST_INVALID"),
        Fault::status(405),
        Fault::status(501),
    ] {
        let what = format!("{fault:?}");
        let refuse = |hostile: &Hostile| {
            hostile.on(Match::put_blob().filled()).fault(fault.clone());
        };
        let (hostile, output) = check(&what, refuse, Success);
        let log = hostile.log();
        let whole =
            |served: &&Served| served.fault.is_some() && served.query("digest") == Some(&layer());
        let refused = log.iter().filter(whole).count();
        assert!(refused <= 1, "{what}: {refused} times, and once is enough\n{output}");
        assert_eq!(hostile.blob_puts(&layer()), 1, "{what}: {output}");
    }
}

#[test]
fn what_was_sent_before_the_break_is_not_sent_again() {
    let half = SIZE / 2;
    let drop = |hostile: &Hostile| {
        let put = Match::put_blob().about(&layer()).nth(1);
        hostile.on(put).fault(Fault::DropBody(half));
    };
    let (hostile, output) = check("half", drop, Success);
    let log = hostile.log();
    let resumed = log.iter().find(|served| served.method == "PATCH").expect("a chunk");
    let expected = format!("{half}-{}", SIZE - 1);
    assert_eq!(resumed.content_range.as_deref(), Some(&*expected));
    assert_eq!(hostile.blob_puts(&layer()), 1);
    assert_eq!(hostile.uploaded_bytes(), image().blob_bytes());
    assert_eq!(output.number("moved_bytes"), image().blob_bytes(), "{output}");
}

#[test]
fn blobs_that_are_too_large_whole_go_in_chunks_that_fit() {
    // As nginx has it: 413 to everything that is longer.
    for limit in [1_000_000, 300_000] {
        let prepare = |hostile: &Hostile| {
            hostile.on(Match::any().path("/uploads/")).fault(Fault::TooLarge(limit));
        };
        let (hostile, output) = check("too large", prepare, Success);
        let log = hostile.log();
        assert!(log.iter().all(|served| served.received <= limit), "{output}");
        assert_eq!(hostile.uploaded_bytes(), image().blob_bytes(), "nothing was sent in vain");
    }
    let azure = |hostile: &Hostile| {
        hostile.on(Match::any().path("/uploads/")).fault(Fault::TooLargeRange(1_000_000));
    };
    let (hostile, output) = check("too large a range", azure, Success);
    assert_eq!(hostile.uploaded_bytes(), image().blob_bytes(), "{output}");
    let tiny = |hostile: &Hostile| {
        hostile.on(Match::any().path("/uploads/")).fault(Fault::TooLarge(5000));
    };
    let (_, output) = check("tiny", tiny, Failure);
    output.stderr_has("413").stderr_has("sending blob");
    let early = |hostile: &Hostile| {
        let put = Match::put_blob().about(&layer());
        hostile.on(put.nth(1)).fault(Fault::RefuseEarly(413));
    };
    check("early", early, Success);
}

#[test]
fn chunks_are_as_long_as_the_registry_wants_them() {
    let shortest = 40 << 20;
    let hostile = Hostile::start();
    hostile.set_shortest_chunk(shortest);
    let large = Image::new().layer(3, 90 << 20).build();
    hostile.on(Match::put_blob().about(&large.layers()[0]).nth(1)).fault(Fault::RefuseEarly(413));
    let imgfs = Imgfs::scratch();
    tree::kubekey_g1(imgfs.images_dir(), "source.example", "team/app", "1", &large);
    let output = push(&imgfs, &hostile, &[]).success();
    hostile.assert_complete();
    let log = hostile.log();
    let chunks = log.iter().filter(|served| served.method == "PATCH");
    let chunks: Vec<u64> = chunks.map(|served| served.received).collect();
    assert_eq!(chunks, [shortest, shortest, (90 << 20) - 2 * shortest], "{output}");
}

#[test]
fn addresses_of_uploads_are_followed_without_giving_anything_away() {
    let imgfs = directory().stdin("secret");
    let login = ["--username", "bed", "--password-stdin"];
    for access in [Access::basic(), Access::Bearer(Bearer::new())] {
        let (hostile, storage) = (Hostile::with_access(access), Hostile::start());
        hostile.send_uploads_to(&storage);
        let output = push(&imgfs, &hostile, &login).success();
        hostile.assert_complete();
        let log = storage.log();
        assert!(!log.is_empty() && log.iter().all(|served| served.authorization.is_none()));
        assert_eq!(storage.uploaded_bytes(), image().blob_bytes(), "{output}");
    }
    for locations in [Locations::Relative, Locations::Absolute] {
        let hostile = Hostile::with_access(Access::basic());
        hostile.set_locations(locations);
        push(&imgfs, &hostile, &login).success();
        hostile.assert_complete();
        let patched = hostile.log();
        assert!(
            patched.iter().filter(|served| served.is_upload()).any(|served| served.status == 201)
        );
    }
}

#[test]
fn tokens_may_end_in_the_middle() {
    let imgfs = directory().stdin("secret");
    let login = ["--username", "bed", "--password-stdin"];
    for (what, matches) in [
        ("begin", Match::uploads()),
        ("blob", Match::put_blob().about(&layer())),
        ("mount", Match::mount()),
        ("child", Match::put_manifest()),
        ("tag", Match::put_tag()),
    ] {
        let hostile = Hostile::with_access(Access::Bearer(Bearer::new()));
        hostile.on(matches.nth(1)).fault(Fault::RevokeTokens);
        let output = push(&imgfs, &hostile, &login).success();
        assert_sound(what, &hostile, &output);
        assert_told(what, &hostile, &output);
    }
    // And every few requests.
    let uses = Some(3);
    let hostile = Hostile::with_access(Access::Bearer(Bearer { uses, ..Bearer::new() }));
    let output = push(&imgfs, &hostile, &login).success();
    assert_told("three uses", &hostile, &output);
    // Whoever may only read is told so before anything is sent.
    let hostile = Hostile::with_access(Access::Bearer(Bearer { pull_only: true, ..Bearer::new() }));
    let output = push(&imgfs, &hostile, &login).expect_code(1).stderr_has("not authorised");
    assert_told("may only read", &hostile, &output);
    assert_eq!(hostile.uploaded_bytes(), 0);
}

#[test]
fn a_source_that_lies_is_named_and_nothing_wrong_arrives() {
    let app = Image::new().layer(1, 300_000).build();
    let blob = &app.layers()[0];
    for (fault, once) in [
        (Fault::FlipByte(1000), false),
        (Fault::FlipByte(1000), true),
        (Fault::TruncateAt(1000), false),
        (Fault::TruncateAt(1000), true),
        (Fault::EmptyBody, false),
        (Fault::status(404), false),
        (Fault::captive_portal(), false),
    ] {
        let (source, target) = (Hostile::start(), Hostile::start());
        app.push_to(&source, "team/app", "1");
        let get = Match::get(blob);
        source.on(if once { get.nth(1) } else { get }).fault(fault.clone());
        let from = format!("registry://{}", source.host());
        let to = format!("registry://{}", target.host());
        let args = ["--from", &from, "--to", &to, "team/app:1"];
        let output = Imgfs::scratch().copy(&[&args[..], &IMPATIENT].concat());
        target.assert_complete();
        assert_eq!(output.code(), i32::from(!once), "{fault:?}\n{output}");
        assert_eq!(target.blob("team/app", blob).is_some(), once, "{fault:?}\n{output}");
        assert_eq!(target.tags("team/app").len(), usize::from(once), "{fault:?}\n{output}");
        if !once {
            let name = format!("{}/team/app:1", source.host());
            let error = output.image(&name)["error"].clone();
            let side = format!("registry {}: fetching blob {blob}", source.host());
            assert!(error.as_str().is_some_and(|error| error.starts_with(&side)), "{output}");
        }
    }
}

#[test]
fn two_pushes_of_the_same_do_not_disturb_each_other() {
    let hostile = Hostile::start();
    let imgfs = directory();
    let dest = format!("{}/{SAME}", hostile.host());
    let running: Vec<_> = (0..3).map(|_| imgfs.spawn_push(&["--dest", &dest])).collect();
    for running in running {
        let output = running.wait().success();
        assert_told("side by side", &hostile, &output);
    }
    hostile.assert_complete();
    assert_eq!(hostile.open_uploads(), 0);
}

fn small_layer(random: &mut Random) -> (u64, u64) {
    let layer = 2 + random.below(8);
    (layer, 1000 * layer)
}

/// Runs of `transfer` under random faults until enough were injected. It gives what it printed.
fn random_faults(goal: usize, from_registry: bool) {
    let mut random = Random::new(seed() ^ u64::from(from_registry));
    let (mut injected, mut rounds, mut failures) = (0, 0, 0);
    while injected < goal {
        rounds += 1;
        assert!(rounds < 10 * goal, "faults are not injected");
        let images = small_images(&mut random, small_layer);
        let (source, target) = (Hostile::start(), Hostile::start());
        let imgfs = Imgfs::scratch();
        for (name, image) in &images {
            image.push_to(&source, name, "1");
            tree::kubekey_g1(imgfs.images_dir(), &source.host(), name, "1", image);
        }
        let to = format!("registry://{}", target.host());
        let from = match from_registry {
            true => format!("registry://{}", source.host()),
            false => imgfs.images_dir().display().to_string(),
        };
        let names: Vec<String> =
            images.iter().map(|(name, _)| format!("{}/{name}:1", source.host())).collect();
        let mut args = vec!["--from", &from, "--to", &to];
        args.extend(names.iter().map(String::as_str));
        let kinds = if random.chance(500) { Kinds::Retryable } else { Kinds::All };
        target.faults_random(random.next(), 200, kinds, 2);
        if from_registry {
            source.faults_random(random.next(), 200, kinds, 2);
        }
        let output = imgfs.copy(&[&args[..], &IMPATIENT].concat());
        injected += target.injected() + source.injected();
        let code = output.code();
        let what = format!("round {rounds}, {kinds:?}");
        assert!(code == 0 || (code == 1 && kinds == Kinds::All), "{what}\n{output}");
        assert_sound(&what, &target, &output);
        for ((repository, image), name) in images.iter().zip(&names) {
            let entry = output.image(name);
            let there = target.tags(repository).get("1").cloned();
            if entry["status"] == "failed" {
                assert!(entry["error"].is_string() && code == 1, "{what}\n{output}");
                assert!(there.is_none_or(|there| there == image.digest()), "{what}\n{output}");
                failures += 1;
            } else {
                assert_eq!(there.as_deref(), Some(image.digest()), "{what} {name}\n{output}");
            }
        }
        source.behave();
        target.behave();
        let output = imgfs.copy(&args).success();
        assert_sound(&what, &target, &output);
        for (repository, image) in &images {
            assert_eq!(target.tags(repository)["1"], image.digest(), "{what}\n{output}");
        }
    }
    eprintln!("{injected} faults in {rounds} copies, {failures} images failed at first");
}

#[test]
fn random_faults_on_the_way_from_a_directory() {
    random_faults(scale(50, 500), false);
}

#[test]
fn random_faults_on_both_sides() {
    random_faults(scale(50, 500), true);
}
