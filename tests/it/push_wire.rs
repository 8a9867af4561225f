//! What goes over the wire between real registries, and what a copy needs of memory.

use crate::support::cli::Imgfs;
use crate::support::hostile::{Access, Bearer, Fault, Hostile, Match};
use crate::support::image::{Artifact, Built, Image, digest_tag};
use crate::support::registry::{Registry, Tokens};
use crate::support::skopeo;
use crate::support::tree;
use crate::support::wait_for;
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
fn a_target_that_takes_no_attachments_is_told_with_the_object() {
    let image = Image::new().layer(1, 3000).build();
    let sbom = Artifact::new("application/spdx+json").subject(&image).build();
    let (from, to) = (Hostile::start(), Hostile::start());
    from.set_referrers_api(true);
    image.push_to(&from, "team/app", "1");
    sbom.push_by_digest(&from, "team/app");
    let refusal = Fault::Refusal(400, "MANIFEST_INVALID");
    to.on(Match::put_manifest().about(sbom.digest())).fault(refusal);
    let (source, target) =
        (format!("registry://{}", from.host()), format!("registry://{}", to.host()));
    let args = ["--from", &source, "--to", &target, "team/app:1"];
    let output = Imgfs::scratch().copy(&args);
    to.assert_complete();
    output.stderr_has("writing manifest").stderr_has(sbom.digest());
    Imgfs::scratch().copy(&[&args[..], &["--referrers=false"]].concat()).success();
    assert_eq!(to.tags("team/app")["1"], image.digest());
}
