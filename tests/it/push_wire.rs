//! What goes over the wire between real registries, and what a copy needs of memory.

use crate::support::cli::Imgfs;
use crate::support::hostile::{Access, Bearer, Fault, Hostile, Match, Served};
use crate::support::image::{
    Artifact, Built, Image, cosign_signature, digest_tag, push_referrers_with_fallback_tag,
};
use crate::support::registry::{Registry, Tokens};
use crate::support::skopeo;
use crate::support::tree;
use crate::support::wait_for;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// Images that share two layers.
fn images() -> Vec<(String, Built)> {
    (0..6)
        .map(|number| {
            let image = Image::new().layer(1, 30_000).layer(2, 10_000);
            let image = (0..4).fold(image, |image, at| image.layer(100 * (number + 1) + at, 2000));
            (format!("team/app{number}"), image.annotation("n", &number.to_string()).build())
        })
        .collect()
}

#[test]
fn a_real_registry_gets_each_blob_once_and_mounts_the_rest() {
    let (from, to) = (Registry::plain(), Registry::plain());
    let images = images();
    let mut distinct = BTreeSet::new();
    for (name, image) in &images {
        image.push_to(&from, name, "1");
        distinct.extend(image.blobs.keys().cloned());
    }
    let names: Vec<String> = images.iter().map(|(name, _)| format!("{name}:1")).collect();
    let args = |to: &str| {
        let ends =
            ["--from".into(), format!("registry://{}", from.host()), "--to".into(), to.into()];
        [&ends[..], &names].concat()
    };
    let output = Imgfs::scratch().copy(&args(&format!("registry://{}", to.host()))).success();
    assert_eq!((output.number("mounted_blobs"), output.number("moved_blobs")), (10, 32));
    let requests = to.requests();
    for digest in &distinct {
        let puts = requests.iter().filter(|entry| entry.is_put_of(digest) && entry.status == 201);
        assert_eq!(puts.count(), 1, "{digest}: {requests:?}");
    }
    assert!(requests.len() <= 130, "{} requests: {requests:?}", requests.len());
    for (name, image) in &images {
        let there = format!("{}/{name}:1", to.host());
        assert_eq!(skopeo::raw_manifest(&there), image.root().bytes);
        assert_eq!(skopeo::fetch(&there), skopeo::fetch(&format!("{}/{name}:1", from.host())));
    }
    // Within one registry.
    from.forget_requests();
    let inside = format!("registry://{}/copies", from.host());
    let output = Imgfs::scratch().copy(&args(&inside)).success();
    assert_eq!((output.number("mounted_blobs"), output.number("sent_bytes")), (42, 0));
    let requests = from.requests();
    assert!(requests.iter().all(|entry| !entry.is_blob_get()), "{requests:?}");
    assert_eq!(from.tags("copies/team/app5"), ["1"]);
}

#[test]
fn within_a_registry_with_tokens_the_scopes_are_just_what_is_needed() {
    let login = ["--username", "bed", "--password-stdin", "--referrers=false"];
    let image = Image::new().layer(1, 3000).build();
    let wanted = ["repository:new/team/app:pull,push", "repository:team/app:pull"];
    let run = |host: &str| {
        let from = format!("registry://{host}");
        let to = format!("{from}/new");
        let args = ["--from", &from, "--to", &to, "team/app:1"];
        let imgfs = Imgfs::scratch().stdin("secret");
        let output = imgfs.copy(&[&args[..], &login].concat()).success();
        assert_eq!((output.number("mounted_blobs"), output.number("sent_bytes")), (2, 0));
    };
    let hostile = Hostile::with_access(Access::Bearer(Bearer::new()));
    image.push_to(&hostile, "team/app", "1");
    run(&hostile.host());
    hostile.assert_complete();
    let asked: BTreeSet<String> = hostile.scopes_asked().into_iter().collect();
    assert_eq!(asked, wanted.map(String::from).into());
    let registry = Registry::token(Tokens::default());
    image.push_to(&registry, "team/app", "1");
    run(&registry.host());
    let asked = registry.scopes_asked().join(" ");
    assert_eq!(asked.split(' ').collect::<BTreeSet<_>>(), wanted.into());
}

#[test]
fn large_blobs_stream_through_little_memory() {
    let image = Image::new().layer(3, 150 * MIB).layer(4, 100 * MIB).build();
    let (from, to, last) = (Registry::plain(), Hostile::start(), Hostile::start());
    image.push_to(&from, "team/app", "1");
    let source = format!("registry://{}", from.host());
    let target = format!("registry://{}", to.host());
    let imgfs = Imgfs::scratch();
    let over = imgfs.copy(&["--from", &source, "--to", &target, "team/app:1"]).success();
    tree::kubekey_g1(imgfs.images_dir(), "quay.io", "team/app", "1", &image);
    let dest = format!("{}/app:1", last.host());
    let pushed = imgfs.push(&["--dest", &dest]).success();
    for output in [over, pushed] {
        assert_eq!(output.number("sent_bytes"), image.blob_bytes());
        let peak = output.peak_rss.expect("Linux tells");
        assert!(peak < 64 * MIB, "peak of resident memory {} MiB\n{output}", peak / MIB);
    }
    to.assert_complete();
    last.assert_complete();
}

#[test]
fn what_a_killed_copy_has_sent_is_not_sent_again() {
    let image = (10..18).fold(Image::new(), |image, seed| image.layer(seed, MIB)).build();
    let (from, to) = (Hostile::start(), Hostile::start());
    image.push_to(&from, "team/app", "1");
    to.set_pace(32 * 1024, Duration::from_millis(4));
    let ends = ["registry://", "registry://"].map(String::from);
    let (source, target) = (ends[0].clone() + &from.host(), ends[1].clone() + &to.host());
    let args = ["--from", &source, "--to", &target, "team/app:1", "--concurrency", "2"];
    let imgfs = Imgfs::scratch();
    let running = imgfs.spawn_copy(&args);
    wait_for("half of it", Duration::from_secs(30), || to.uploaded_bytes_now() > 4 * MIB);
    assert_eq!(running.kill9().code(), -9);
    to.clear_log();
    from.clear_log();
    to.assert_complete();
    let before: BTreeMap<&String, bool> =
        image.blobs.keys().map(|blob| (blob, to.blob("team/app", blob).is_some())).collect();
    assert!(before.values().any(|there| *there));
    to.no_pace();
    imgfs.copy(&args).success();
    to.assert_complete();
    let read = from.blob_bytes_sent();
    for (blob, there) in before {
        assert_eq!(to.blob_puts(blob), usize::from(!there), "{blob}");
        assert_eq!(read.contains_key(blob), !there, "{blob}");
    }
}

#[test]
fn what_is_attached_and_broken_is_left_out_aloud() {
    let image = Image::new().layer(1, 3000).build();
    let sbom = Artifact::new("application/spdx+json").subject(&image).blob("text/spdx", b"sbom");
    let sbom = sbom.build();
    let source = Hostile::start();
    source.set_referrers_api(true);
    image.push_to(&source, "team/app", "1");
    sbom.push_by_digest(&source, "team/app");
    let imgfs = Imgfs::scratch();
    let name = format!("{}/team/app:1", source.host());
    imgfs.pull(&[&name]).success();
    let blob = imgfs.images_dir().join("blobs").join(&sbom.layers()[0]);
    std::fs::remove_file(blob).expect("removing");
    let hostile = Hostile::start();
    let dest = format!("{}/app:1", hostile.host());
    let output = imgfs.push(&["--dest", &dest]).expect_code(1);
    let output = output.stderr_has("left out").stderr_has(sbom.digest());
    assert_eq!(output.image(&name)["status"], "pushed", "{output}");
    hostile.assert_complete();
    assert_eq!(hostile.tags("app")["1"], image.digest());
    assert!(hostile.manifest("app", &digest_tag(image.digest(), "")).is_none());
}

#[test]
fn a_target_that_takes_no_attachments_gets_the_image_and_the_loss_is_told() {
    let image = Image::new().layer(1, 3000).build();
    let sbom = Artifact::new("application/spdx+json").subject(&image).build();
    let signature = cosign_signature(&image);
    let from = Hostile::start();
    from.set_referrers_api(true);
    image.push_to(&from, "team/app", "1");
    sbom.push_by_digest(&from, "team/app");
    signature.push_to(&from, "team/app", &digest_tag(image.digest(), ".sig"));
    let source = format!("registry://{}", from.host());
    let refusals = [400, 403, 404, 405, 415].map(Fault::status);
    for refusal in refusals.into_iter().chain([Fault::Refusal(400, "MANIFEST_INVALID")]) {
        let to = Hostile::start();
        to.on(Match::put_manifest().about(sbom.digest())).fault(refusal);
        let target = format!("registry://{}", to.host());
        let args = ["--from", &source, "--to", &target, "team/app:1"];
        let output = Imgfs::scratch().copy(&args).expect_code(1);
        let output = output.stderr_has("writing manifest").stderr_has(sbom.digest());
        let output = output.stderr_has("left out").stderr_has("--referrers=false");
        to.assert_complete();
        let tags = to.tags("team/app");
        assert_eq!(tags["1"], image.digest(), "{output}");
        let signed = digest_tag(image.digest(), ".sig");
        assert_eq!(tags[&signed], signature.digest(), "the rest of it is there\n{output}");
        let entry = output.image(&format!("{}/team/app:1", from.host()));
        assert_eq!((&entry["status"], &entry["attached"]), (&json!("copied"), &json!([signed])));
        assert_eq!(entry["losses"].as_array().map(Vec::len), Some(1), "{output}");
        assert!(to.manifest("team/app", &digest_tag(image.digest(), "")).is_none());
        Imgfs::scratch().copy(&[&args[..], &["--referrers=false"]].concat()).success();
    }
}

// --- the list of referrers of a registry without the API ---

/// A registry with an image that has something attached, and the names of both.
fn source_with_referrer(number: u64) -> (Hostile, Built, Built) {
    let image = Image::new().layer(1, 3000).build();
    let kind = format!("application/vnd.test.{number}");
    let referrer = Artifact::new(&kind).subject(&image).build();
    let source = Hostile::start();
    source.set_referrers_api(true);
    image.push_to(&source, "team/app", "1");
    referrer.push_by_digest(&source, "team/app");
    (source, image, referrer)
}

fn ends(from: &Hostile, to: &Hostile) -> Vec<String> {
    let place = |hostile: &Hostile| format!("registry://{}", hostile.host());
    ["--from", &place(from), "--to", &place(to), "team/app:1"].map(str::to_owned).into()
}

/// What is listed as attached to `image`, by digest.
fn listed(hostile: &Hostile, image: &Built) -> BTreeSet<String> {
    let list = hostile.manifest("team/app", &digest_tag(image.digest(), "")).expect("a list");
    let list: Value = serde_json::from_slice(&list).expect("JSON");
    let entries = list["manifests"].as_array().expect("a list").iter();
    entries.map(|entry| entry["digest"].as_str().expect("a digest").to_owned()).collect()
}

#[test]
fn a_list_of_referrers_that_others_write_over_is_written_again() {
    let (from, image, referrer) = source_with_referrer(1);
    let to = Hostile::start();
    let list = || Match::put_manifest().about(&digest_tag(image.digest(), ""));
    // To whoever looks afterwards, somebody else has written over it.
    to.on(list().first(2)).fault(Fault::Lie);
    let output = Imgfs::scratch().copy(&ends(&from, &to)).success();
    assert_eq!(listed(&to, &image), BTreeSet::from([referrer.digest().to_owned()]), "{output}");
    let is_list = |served: &&Served| served.path.ends_with(&digest_tag(image.digest(), ""));
    assert_eq!(to.manifest_puts().iter().filter(is_list).count(), 3, "{output}");

    let to = Hostile::start();
    to.on(list()).fault(Fault::Lie);
    let output = Imgfs::scratch().copy(&ends(&from, &to)).expect_code(1);
    let output = output.stderr_has(referrer.digest()).stderr_has("adding to the list");
    assert_eq!(to.tags("team/app")["1"], image.digest(), "{output}");
    assert!(to.manifest_puts().len() < 20, "it comes to an end\n{output}");
}

#[test]
fn several_who_attach_something_at_a_time_do_not_lose_any_of_it() {
    let to = Hostile::start();
    to.set_versions(true);
    let sources: Vec<_> = (0..4).map(source_with_referrer).collect();
    let image = &sources[0].1;
    // So that there is a version to begin with.
    let first = Artifact::new("application/vnd.test.first").subject(image).build();
    image.push_to(&to, "team/app", "1");
    push_referrers_with_fallback_tag(&to, "team/app", image.digest(), &[&first]);
    let running: Vec<(Imgfs, _)> = sources
        .iter()
        .map(|(from, ..)| {
            let imgfs = Imgfs::scratch();
            let running = imgfs.spawn_copy(&ends(from, &to));
            (imgfs, running)
        })
        .collect();
    for (_imgfs, running) in running {
        running.wait().success();
    }
    let referrers = sources.iter().map(|(_, _, referrer)| referrer).chain([&first]);
    let expected: BTreeSet<String> = referrers.map(|built| built.digest().to_owned()).collect();
    assert_eq!(listed(&to, image), expected);
    let puts = to.manifest_puts();
    let lists = puts.iter().filter(|put| put.path.ends_with(&digest_tag(image.digest(), "")));
    assert!(lists.clone().count() >= 4 && lists.clone().all(|put| put.if_match.is_some()));
}

#[test]
fn a_registry_that_does_not_know_conditions_is_written_to_without() {
    let (from, image, referrer) = source_with_referrer(1);
    let to = Hostile::start();
    to.set_versions(true);
    let first = Artifact::new("application/vnd.test.first").subject(&image).build();
    image.push_to(&to, "team/app", "1");
    push_referrers_with_fallback_tag(&to, "team/app", image.digest(), &[&first]);
    let list = Match::put_manifest().about(&digest_tag(image.digest(), ""));
    to.on(list.nth(1)).fault(Fault::status(412));
    let output = Imgfs::scratch().copy(&ends(&from, &to)).success();
    let expected = [&first, &referrer].map(|built| built.digest().to_owned());
    assert_eq!(listed(&to, &image), BTreeSet::from(expected), "{output}");
}
