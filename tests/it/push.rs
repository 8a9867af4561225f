//! `imgfs push`: what a directory holds comes to registries unchanged, and nothing is sent that is there.

use crate::support::cli::{Imgfs, Output, SAME};
use crate::support::harbor::{Harbor, Visibility};
use crate::support::hostile::{Access, Bearer, Fault, Hostile, Match};
use crate::support::image::{
    Artifact, Built, Image, Index, Receiver, cosign_signature, digest_tag,
    push_referrers_with_fallback_tag, single, two_platforms,
};
use crate::support::registry::{Registry, Tokens};
use crate::support::skopeo::{self, Skopeo};
use crate::support::tree;
use crate::support::{text, wait_for};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;

fn dest(host: &str) -> String {
    format!("{host}/{SAME}")
}

/// A directory with these images, as `source.example/REPOSITORY:TAG`.
fn directory(images: &[(&str, &Built)]) -> Imgfs {
    let imgfs = Imgfs::scratch();
    for (name, image) in images {
        let (repository, tag) = name.rsplit_once(':').expect("a tag");
        tree::kubekey_g1(imgfs.images_dir(), "source.example", repository, tag, image);
    }
    imgfs
}

fn push(imgfs: &Imgfs, target: &Hostile, args: &[&str]) -> Output {
    imgfs.push(&[&["--dest", &dest(&target.host())], args].concat())
}

/// One of every kind that is out there.
fn zoo() -> Vec<(&'static str, Built)> {
    let files: &[(&str, &[u8])] = &[("etc/motd", b"hello"), ("bin/sh", b"#!")];
    let image = Image::new().layer_gzip_tar(files).layer(7, 50_000);
    let arm = image.clone().platform("linux/arm64").layer_gzip_tar(&[("arm", b"64")]).build();
    let nested = Index::new().child(&Index::new().child(&image.build()).build()).build();
    let helm =
        Artifact::with_config("application/vnd.cncf.helm.config.v1+json", b"{\"name\":\"x\"}")
            .blob("application/vnd.cncf.helm.chart.content.v1.tar+gzip", b"a chart")
            .build();
    let odd = Artifact::new("application/vnd.example.thing").blob("text/plain", b"a thing").build();
    vec![
        ("team/app:1", Index::new().child(&image.build()).child(&arm).attest().build()),
        ("team/docker:2", image.clone().docker().build()),
        ("team/list:2", Index::new().docker().child(&image.clone().docker().build()).build()),
        ("team/zstd:1", Image::new().layer_zstd(files).build()),
        ("team/untyped:1", image.clone().without_media_type().build()),
        ("team/untyped-index:1", Index::new().without_media_type().child(&arm).build()),
        ("team/empty:1", Image::new().empty_layer().zero_byte_layer().build()),
        ("deep/er/nested:1", nested),
        ("charts/helm:0.1.0", helm),
        ("things/odd:1", odd),
    ]
}

#[test]
fn whatever_was_pulled_is_pushed_with_the_same_digests_through_all_kinds_of_doors() {
    let source = Registry::plain();
    let zoo = zoo();
    // The first is written by a program that is not ours; the others are stranger than it would write.
    let layout = tempfile::tempdir().expect("making a temporary directory");
    zoo[0].1.write_oci_layout(layout.path(), "1");
    skopeo::push_oci_layout(layout.path(), "1", &format!("{}/{}", source.host(), zoo[0].0));
    for (name, image) in &zoo[1..] {
        let (repository, tag) = name.rsplit_once(':').expect("a tag");
        image.push_to(&source, repository, tag);
    }
    let imgfs = Imgfs::scratch().stdin("secret");
    let names: Vec<String> =
        zoo.iter().map(|(name, _)| format!("{}/{name}", source.host())).collect();
    imgfs.pull(&names).success();

    let (plain, tls) = (Registry::plain(), Registry::tls_basic());
    let token = Registry::token(Tokens::default());
    let ca = tls.ca_file();
    let login = ["--username", "bed", "--password-stdin"];
    for (target, args) in [
        (&plain, vec!["--plain-http"]),
        (&tls, [&login[..], &["--ca-file", text(&ca)]].concat()),
        (&token, [&login[..], &["--plain-http"]].concat()),
    ] {
        let host = dest(&format!("{}/mirror", target.host()));
        let output = imgfs.on_tree("push", &[&["--dest", &host], &args[..]].concat()).success();
        assert_eq!(output.images().len(), zoo.len());
        for (name, image) in &zoo {
            let entry = output.image(&format!("{}/{name}", source.host()));
            assert_eq!(
                (&entry["status"], &entry["digest"]),
                (&json!("pushed"), &json!(image.digest()))
            );
            let place = target.place(&format!("mirror/{name}"));
            assert_eq!(Skopeo::new().inspect_raw(&place), image.root().bytes, "{name}");
            if name.contains("nested") {
                continue; // That is too much for skopeo.
            }
            let there = skopeo::fetch(&format!("{}/mirror/{name}", target.open_host()));
            assert_eq!(there, skopeo::fetch(&format!("{}/{name}", source.host())), "{name}");
        }
        target.forget_requests();
        let output = imgfs.on_tree("push", &[&["--dest", &host], &args[..]].concat()).success();
        assert_eq!(output.number("moved_bytes"), 0);
        assert!(output.images().iter().all(|image| image["status"] == "unchanged"), "{output}");
        let requests = target.requests();
        let heads = requests.iter().filter(|entry| entry.method == "HEAD" && entry.status == 200);
        assert_eq!(heads.count(), zoo.len(), "one question an image: {requests:?}");
        assert!(requests.iter().all(|entry| entry.method == "HEAD" || entry.status == 401));
    }
}

#[test]
fn tokens_are_asked_for_what_is_needed_and_for_no_more() {
    let images = [("team/a:1", &single(2)), ("team/b:1", &single(3))];
    let wanted =
        ["repository:team/a:pull", "repository:team/a:pull,push", "repository:team/b:pull,push"];
    let imgfs = directory(&images).stdin("secret");
    let login = ["--username", "bed", "--password-stdin"];
    let hostile = Hostile::with_access(Access::Bearer(Bearer::new()));
    let output = push(&imgfs, &hostile, &login).success();
    assert_eq!(output.number("mounted_blobs"), 1, "the layer that both have");
    hostile.assert_complete();
    assert_eq!(
        hostile.scopes_asked().into_iter().collect::<BTreeSet<_>>(),
        BTreeSet::from(wanted.map(String::from))
    );
    assert_eq!(hostile.token_requests(), 3, "each token is asked for once");

    let registry = Registry::token(Tokens::default());
    let host = dest(&registry.host());
    imgfs.push(&[&["--dest", &host], &login[..]].concat()).success();
    let asked = registry.scopes_asked().join(" ");
    let asked: BTreeSet<&str> = asked.split(' ').collect();
    assert_eq!(asked, BTreeSet::from(wanted));
}

#[test]
fn a_second_push_asks_once_an_image_and_sends_nothing() {
    let (a, b) = (single(9), two_platforms(1));
    let imgfs = directory(&[("a:1", &a), ("b:1", &b), ("b:also", &b)]);
    let hostile = Hostile::start();
    let output = push(&imgfs, &hostile, &[]).success();
    hostile.assert_complete();
    assert_eq!(hostile.open_uploads(), 0, "nothing was begun and left");
    let bytes: u64 = a.blob_bytes() + b.blob_bytes();
    assert_eq!(output.number("moved_bytes"), bytes, "{output}");
    assert_eq!(output.number("sent_bytes"), bytes);
    assert_eq!(hostile.uploaded_bytes(), bytes);
    assert_eq!(
        hostile.tags("b"),
        [("1", b.digest()), ("also", b.digest())].map(|(t, d)| (t.to_owned(), d.to_owned())).into()
    );
    hostile.clear_log();
    let output = push(&imgfs, &hostile, &[]).success();
    let log = hostile.log();
    assert!(log.len() == 3 && log.iter().all(|served| served.method == "HEAD"), "{log:?}");
    assert_eq!(output.number("moved_bytes") + output.number("moved_blobs"), 0);
    assert_eq!(output.number("requests"), 3);
}

#[test]
fn what_a_registry_has_lost_is_sent_again_where_that_is_asked_for() {
    let (a, b) = (single(9), two_platforms(1));
    let imgfs = directory(&[("a:1", &a), ("b:1", &b)]);
    let hostile = Hostile::start();
    push(&imgfs, &hostile, &[]).success();
    let (layer, child) = (&a.layers()[0], &b.manifests[0].digest);
    hostile.remove_blob(layer);
    hostile.remove_manifest("b", child);
    let output = push(&imgfs, &hostile, &[]).success();
    assert_eq!(output.number("requests"), 2, "its names are all that is looked at: {output}");
    hostile.clear_log();
    push(&imgfs, &hostile, &["--recheck"]).success();
    let log = hostile.log();
    let puts = log.iter().filter(|served| served.method == "PUT").collect::<Vec<_>>();
    assert!(puts.iter().any(|served| served.path.contains(child.as_str())), "{puts:?}");
    let blobs = puts.iter().filter(|served| served.path.contains("/blobs/uploads/")).count();
    assert_eq!(blobs, 1, "{puts:?}");
    hostile.assert_complete();
}

#[test]
fn which_images_are_pushed_is_read_from_a_list() {
    let (a, b) = (single(9), single(10));
    let imgfs = directory(&[("a:1", &a), ("b:1", &b)]);
    let hostile = Hostile::start();
    let list = imgfs.images_dir().join("../list.txt");
    std::fs::write(&list, "# ours\nsource.example/b:1\n").expect("writing a list");
    let output = push(&imgfs, &hostile, &["--file", text(&list)]).success();
    assert_eq!(output.images().len(), 1, "{output}");
    assert!(hostile.tags("a").is_empty() && hostile.tags("b").contains_key("1"));
}

#[test]
fn a_tag_moves_with_its_image() {
    let hostile = Hostile::start();
    for image in [single(2), two_platforms(1), single(3), single(2)] {
        let imgfs = directory(&[("team/app:1", &image)]);
        let output = push(&imgfs, &hostile, &[]).success();
        assert_eq!(output.image("source.example/team/app:1")["status"], "pushed");
        hostile.assert_complete();
        assert_eq!(hostile.tags("team/app")["1"], image.digest());
    }
}

#[test]
fn blobs_that_the_repository_has_are_not_sent() {
    let image = (10..16).fold(Image::new(), |image, seed| image.layer(seed, 3000)).build();
    for declines in [false, true] {
        let hostile = Hostile::start();
        if declines {
            hostile.decline_mounts();
        }
        let there = &image.layers()[..4];
        for digest in there {
            hostile.put_blob("team/app", &image.blobs[digest]);
        }
        let imgfs = directory(&[("team/app:1", &image), ("team/other:1", &image)]);
        let output = push(&imgfs, &hostile, &[]).success();
        hostile.assert_complete();
        for (digest, blob) in &image.blobs {
            let known = there.contains(digest);
            // Where nothing is mounted, the second repository needs everything.
            let expected = usize::from(!known) + usize::from(declines);
            assert_eq!(hostile.blob_puts(digest), expected, "{declines} {} {known}", blob.size());
        }
        assert_eq!(hostile.open_uploads(), 0);
        let won = if declines { 0 } else { image.blobs.len() as u64 };
        assert_eq!(output.number("mounted_blobs"), won, "{output}");
    }
}

#[test]
fn what_a_killed_push_has_sent_is_not_sent_again() {
    let image = (10..18).fold(Image::new(), |image, seed| image.layer(seed, 1 << 20)).build();
    let imgfs = directory(&[("team/app:1", &image)]);
    let hostile = Hostile::start();
    hostile.set_pace(32 * 1024, Duration::from_millis(4));
    let host = dest(&hostile.host());
    let running = imgfs.spawn_push(&["--dest", &host, "--concurrency", "2"]);
    wait_for("half of it", Duration::from_secs(30), || hostile.uploaded_bytes_now() > 4 << 20);
    assert_eq!(running.kill9().code(), -9);
    hostile.clear_log();
    hostile.assert_complete();
    assert!(hostile.tags("team/app").is_empty(), "nothing has a name before it is whole");
    let there = |digest: &str| hostile.blob("team/app", digest).is_some();
    let sent: Vec<&String> = image.blobs.keys().filter(|digest| there(digest)).collect();
    assert!(sent.len() >= 2, "{sent:?}");
    hostile.no_pace();
    let output = push(&imgfs, &hostile, &[]).success();
    hostile.assert_complete();
    for digest in image.blobs.keys() {
        assert_eq!(hostile.blob_puts(digest), usize::from(!sent.contains(&digest)));
    }
    let before: u64 = sent.iter().map(|digest| image.blobs[*digest].size()).sum();
    assert_eq!(output.number("reused_bytes"), before, "{output}");
    assert_eq!(output.number("moved_bytes"), image.blob_bytes() - before);
}

/// A registry with an image, its SBOM, and a signature in cosign's way; all of it pulled.
fn signed() -> (Imgfs, Built, Built, Built) {
    let image = two_platforms(1);
    let sbom = Artifact::new("application/spdx+json").subject(&image).blob("text/spdx", b"sbom");
    let sbom = sbom.annotation("made.by", "a test").build();
    let signature = cosign_signature(&image);
    let source = Hostile::start();
    source.set_referrers_api(true);
    image.push_to(&source, "team/app", "1");
    sbom.push_by_digest(&source, "team/app");
    signature.push_to(&source, "team/app", &digest_tag(image.digest(), ".sig"));
    let imgfs = Imgfs::scratch();
    imgfs.pull(&[format!("{}/team/app:1", source.host())]).success();
    (imgfs, image, sbom, signature)
}

#[test]
fn signatures_and_referrers_travel_with_their_images() {
    let (imgfs, image, sbom, signature) = signed();
    for api in [true, false] {
        let hostile = Hostile::start();
        hostile.set_referrers_api(api);
        let output = push(&imgfs, &hostile, &[]).success();
        hostile.assert_complete();
        assert_eq!(output.images()[0]["attached"].as_array().map(Vec::len), Some(2), "{output}");
        let tags = hostile.tags("team/app");
        assert_eq!(tags[&digest_tag(image.digest(), ".sig")], signature.digest());
        assert!(hostile.manifest("team/app", sbom.digest()).is_some());
        let list = hostile.manifest("team/app", &digest_tag(image.digest(), ""));
        assert_eq!(list.is_none(), api, "where the registry lists them, no tag has to");
        if let Some(list) = list {
            let list: serde_json::Value = serde_json::from_slice(&list).expect("JSON");
            let entry = json!({
                "mediaType": sbom.root().media_type, "digest": sbom.digest(),
                "size": sbom.root().bytes.len(), "artifactType": "application/spdx+json",
                "annotations": {"made.by": "a test"},
            });
            assert_eq!(list["manifests"], json!([entry]));
        }
        hostile.clear_log();
        let output = push(&imgfs, &hostile, &[]).success();
        assert!(hostile.writes().is_empty(), "{:?}", hostile.writes());
        assert_eq!(output.images()[0]["status"], "unchanged", "{output}");
        // Without them on demand.
        let hostile = Hostile::start();
        push(&imgfs, &hostile, &["--referrers=false"]).success();
        assert_eq!(hostile.tags("team/app").len(), 1);
    }
}

#[test]
fn what_others_have_attached_at_the_target_stays() {
    let (imgfs, image, sbom, _) = signed();
    let hostile = Hostile::start();
    image.push_to(&hostile, "team/app", "1");
    let others = Artifact::new("application/vnd.other").subject(&image).build();
    push_referrers_with_fallback_tag(&hostile, "team/app", image.digest(), &[&others]);
    for _ in 0..2 {
        push(&imgfs, &hostile, &[]).success();
        hostile.assert_complete();
        let tag = digest_tag(image.digest(), "");
        let list = hostile.manifest("team/app", &tag).expect("the list");
        let list: serde_json::Value = serde_json::from_slice(&list).expect("JSON");
        let listed = list["manifests"].as_array().expect("a list").iter();
        let listed: Vec<_> = listed.map(|entry| entry["digest"].as_str().expect("one")).collect();
        assert_eq!(listed, [others.digest(), sbom.digest()]);
        assert!(hostile.manifest("team/app", sbom.digest()).is_some());
    }
}

#[test]
fn harbor_gets_the_projects_that_are_missing() {
    let images = [("team/a:1", &single(2)), ("team/b:1", &single(3)), ("infra/c:1", &single(4))];
    let imgfs = directory(&images).stdin("secret");
    let login = ["--username", "bed", "--password-stdin"];
    let harbor = Harbor::start();
    harbor.add_project("infra");
    let output = push(&imgfs, &harbor, &login).expect_code(1);
    let output = output.stderr_has("project team not found").stderr_has("--create-projects");
    assert_eq!(output.image("source.example/infra/c:1")["status"], "pushed", "{output}");
    assert_eq!(harbor.repositories(), BTreeSet::from(["infra/c".to_owned()]));
    assert_eq!(harbor.creations_asked(), 0);

    let output = push(&imgfs, &harbor, &[&login[..], &["--create-projects"]].concat()).success();
    harbor.assert_complete();
    assert_eq!(harbor.creations_asked(), 1, "once, and only what is missing");
    assert_eq!(harbor.projects()["team"], Visibility::Private);
    assert_eq!(output.image("source.example/team/a:1")["status"], "pushed");
    push(&imgfs, &harbor, &[&login[..], &["--create-projects"]].concat()).success();
    assert_eq!(harbor.creations_asked(), 1);

    // Whoever may not create is told so; a dry run creates nothing.
    let harbor = Harbor::start();
    push(&imgfs, &harbor, &[&login[..], &["--create-projects", "--dry-run"]].concat());
    assert_eq!(harbor.creations_asked(), 0);
    harbor.only_admins_create();
    let output = push(&imgfs, &harbor, &[&login[..], &["--create-projects"]].concat());
    assert_ne!(output.code(), 0);
    output.stderr_has("creating the project").stderr_has("Only system admin can create project");
    assert_eq!(harbor.uploaded_bytes(), 0);

    let hostile = Hostile::start();
    let output = push(&imgfs, &hostile, &["--create-projects"]);
    assert_ne!(output.code(), 0);
    output.stderr_has("no API of Harbor").stderr_has("--create-projects");
    assert_eq!(hostile.uploaded_bytes(), 0);
}

#[test]
fn a_dry_run_says_what_would_be_sent_where_and_sends_nothing() {
    let (a, b) = (single(2), single(3));
    let imgfs = directory(&[("team/a:1", &a), ("team/b:1", &b)]);
    let hostile = Hostile::start();
    let before = tree::snapshot(imgfs.images_dir());
    // The layer that both have, and that one repository has already, is mounted and not sent.
    hostile.put_blob("team/a", &a.blobs[&a.layers()[1]]);
    let output = push(&imgfs, &hostile, &["--dry-run"]).success();
    assert!(hostile.writes().is_empty(), "{:?}", hostile.writes());
    assert_eq!(tree::snapshot(imgfs.images_dir()), before);
    let missing = output.number("missing_bytes");
    let shared = a.blobs[&a.layers()[1]].size();
    assert_eq!(missing, a.blob_bytes() + b.blob_bytes() - 2 * shared, "{output}");
    assert_eq!(output.number("missing_blobs"), 4);
    assert_eq!(output.number("reused_bytes"), shared);
    assert_eq!(output.number("moved_bytes") + output.number("sent_bytes"), 0);
    let entry = output.image("source.example/team/a:1");
    assert_eq!(entry["status"], "planned");
    assert_eq!(entry["target"], format!("{}/team/a:1", hostile.host()));
    let dir = text(imgfs.images_dir());
    let host = dest(&hostile.host());
    let args = ["push", "--plain-http", "--dry-run", "--images-dir", dir, "--dest", &host];
    let said = imgfs.run(&args).success();
    let arrow = format!("source.example/team/a:1 -> {}/team/a:1", hostile.host());
    assert!(said.stdout.contains(&arrow) && said.stdout.contains("to send"), "{said}");

    // And it was right.
    let output = push(&imgfs, &hostile, &[]).success();
    assert_eq!(output.number("moved_bytes"), missing);
    assert_eq!(output.number("moved_blobs"), 4);
    assert_eq!(output.number("mounted_blobs"), 1);
    let output = push(&imgfs, &hostile, &["--dry-run"]).success();
    assert_eq!((output.number("missing_bytes"), output.number("missing_blobs")), (0, 0));
}

#[test]
fn only_what_matches_is_pushed_and_a_tree_may_be_of_any_age() {
    let imgfs = Imgfs::scratch();
    let (a, b, c) = (single(2), two_platforms(1), single(4));
    tree::kubekey_g0(imgfs.images_dir(), "library/old", "1", &a);
    tree::kubekey_g1(imgfs.images_dir(), "registry-1.docker.io", "library/mid", "1", &b);
    tree::kubekey_g2(imgfs.images_dir(), "quay.io", "team/new", "1", &c);
    let hostile = Hostile::start();
    push(&imgfs, &hostile, &["--src-pattern", "^docker.io/library/mid:1$"]).success();
    assert_eq!(hostile.repositories(), BTreeSet::from(["library/mid".to_owned()]));
    push(&imgfs, &hostile, &["quay.io/team/new:1"]).success();
    assert_eq!(hostile.tags("team/new")["1"], c.digest());
    let output = push(&imgfs, &hostile, &[]).success();
    hostile.assert_complete();
    assert_eq!(output.images().len(), 3, "{output}");
    assert_eq!(hostile.tags("library/old")["1"], a.digest());
    assert_eq!(hostile.tags("library/mid")["1"], b.digest());
}

#[test]
fn a_damaged_blob_holds_up_its_images_only_and_is_never_published() {
    for (what, damage, said) in tree::DAMAGES {
        let (bad, good) = (Image::new().layer(5, 300_000).build(), single(3));
        let imgfs = directory(&[("team/bad:1", &bad), ("team/good:1", &good)]);
        let blob = imgfs.images_dir().join("blobs").join(&bad.layers()[0]);
        damage(&blob);
        let hostile = Hostile::start();
        let output = push(&imgfs, &hostile, &[]).expect_code(1);
        let output = output.stderr_has(said).stderr_has(text(&blob)).stderr_has("--repair");
        assert_eq!(output.image("source.example/team/bad:1")["status"], "failed", "{what}");
        assert_eq!(output.image("source.example/team/good:1")["status"], "pushed", "{what}");
        hostile.assert_complete();
        assert!(hostile.tags("team/bad").is_empty(), "{what}");
        assert_eq!(hostile.blob_puts(&bad.layers()[0]), 0, "{what}");
    }
}

#[test]
fn an_image_that_may_not_be_pushed_is_found_out_before_the_first_byte() {
    for status in [401, 403, 404, 405] {
        let hostile = Hostile::start();
        hostile.on(Match::any().method("POST").path("/shut/")).fault(Fault::status(status));
        // The large layer is in all of them.
        let images = [("shut/a:1", &single(2)), ("open/b:1", &single(3)), ("shut/c:1", &single(4))];
        let imgfs = directory(&images);
        let output = push(&imgfs, &hostile, &[]).expect_code(1).stderr_has("shut/a");
        hostile.assert_complete();
        assert_eq!(hostile.repositories(), BTreeSet::from(["open/b".to_owned()]), "{status}");
        assert_eq!(output.image("source.example/open/b:1")["status"], "pushed");
        let sent: u64 = hostile
            .log()
            .iter()
            .filter(|served| served.path.contains("/shut/"))
            .map(|served| served.received)
            .sum();
        assert_eq!(sent, 0, "{status}");
        // And where nothing may be pushed, nothing is sent.
        let hostile = Hostile::start();
        hostile.on(Match::any().method("POST")).fault(Fault::status(status));
        push(&imgfs, &hostile, &[]).expect_code(1).stderr_has("beginning an upload");
        assert_eq!(hostile.uploaded_bytes(), 0);
    }
}

#[test]
fn what_cannot_be_meant_is_refused_before_anything_is_asked() {
    let (a, b) = (single(2), single(3));
    let imgfs = directory(&[("team/a:1", &a), ("team/b:1", &b)]);
    let hostile = Hostile::start();
    let host = hostile.host();
    let dir = text(imgfs.images_dir());
    let file = imgfs.home().join("file");
    std::fs::write(&file, "a file").expect("writing");
    let same = dest(&host);
    let one = format!("{host}/one:1");
    let dest =
        |text: &str| vec!["--images-dir".into(), dir.to_owned(), "--dest".into(), text.to_owned()];
    let with =
        |more: &[&str]| [dest(&same), more.iter().map(|arg| (*arg).to_owned()).collect()].concat();
    let at =
        |path: &str| vec!["--images-dir".into(), path.to_owned(), "--dest".into(), same.clone()];
    let cases: Vec<(Vec<String>, i32, Vec<&str>)> = vec![
        (vec!["--images-dir".into(), dir.to_owned()], 2, vec!["--dest"]),
        (dest("h.io/{{ .module.image }"), 2, vec!["--dest", "1:"]),
        (dest("h.io/x:{{ if }}"), 2, vec!["--dest", "1:"]),
        (dest("h.io/{{ .no.such }}:1"), 2, vec!["team/a:1", "no"]),
        (dest("h.io/Upper:1"), 2, vec!["h.io/Upper:1", "lower case"]),
        (dest(""), 2, vec!["empty"]),
        (dest(&one), 2, vec!["source.example/team/a:1", "source.example/team/b:1", &one]),
        (with(&["--src-pattern", "("]), 2, vec!["--src-pattern", "regular expression"]),
        (with(&["--src-pattern", "^nothing$"]), 3, vec!["no image matches"]),
        (with(&["--platform", "linux/"]), 2, vec!["linux/"]),
        (with(&["UPPER/x:1"]), 2, vec!["UPPER/x:1"]),
        (with(&["source.example/team/none:1"]), 1, vec!["source.example/team/none:1", "not found"]),
        (at("/nowhere/images"), 2, vec!["/nowhere/images"]),
        (at(text(&file)), 2, vec![text(&file)]),
        (with(&["--auths", "/nowhere/auths.yaml"]), 2, vec!["/nowhere/auths.yaml"]),
        (
            [dest("{{ if contains \"a:\" (toString .module.image.reference.repository) }}h.io{{ else }}{{ trimPrefix \"team/\" .module.image.reference.repository }}.io{{ end }}/x:1"), vec!["--username".into(), "bed".into(), "--password-stdin".into()]].concat(),
            2,
            vec!["--username"],
        ),
    ];
    let mut wrong = Vec::new();
    for (args, code, named) in cases {
        let args = [vec!["push".to_owned(), "--plain-http".to_owned()], args].concat();
        let output = imgfs.run(&args);
        let said = named.iter().all(|part| output.stderr.contains(part));
        if output.code() != code || !said {
            wrong.push(format!("{code} and {named:?}\n{output}"));
        }
    }
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
    assert!(hostile.log().iter().all(|served| served.method == "HEAD"), "{:?}", hostile.log());
    let empty = Imgfs::scratch();
    std::fs::create_dir(empty.images_dir()).expect("making a directory");
    push(&empty, &hostile, &[]).expect_code(3).stderr_has("no image");
}

#[test]
fn targets_that_cannot_be_reached_are_named() {
    let imgfs = directory(&[("team/a:1", &single(2))]);
    let patience = ["--max-wait", "1s", "--connect-timeout", "2s"];
    let output = imgfs.push(&[&["--dest", &dest("registry.invalid")], &patience[..]].concat());
    output.expect_code(1).stderr_has("registry.invalid").stderr_has("cannot connect");
    let registry = Registry::tls_basic();
    let output = imgfs.on_tree("push", &["--dest", &dest(&registry.host())]).expect_code(1);
    output.stderr_has(&registry.host()).stderr_has("--ca-file");
    let registry = Registry::plain();
    let output = imgfs.on_tree("push", &["--dest", &dest(&registry.host())]).expect_code(1);
    output.stderr_has(&registry.host()).stderr_has("--plain-http");
}

#[test]
fn a_part_of_an_index_is_pushed_as_an_index_of_its_own() {
    let image = two_platforms(1);
    let source = Hostile::start();
    image.push_to(&source, "team/app", "1");
    let imgfs = Imgfs::scratch();
    let name = format!("{}/team/app:1", source.host());
    imgfs.pull(&["--index", "keep", "--platform", "linux/amd64", &name]).success();
    let hostile = Hostile::start();
    let output = push(&imgfs, &hostile, &[]).expect_code(1);
    let _ = output.stderr_has("linux/amd64").stderr_has("--platform linux/amd64");
    assert!(hostile.writes().is_empty(), "{:?}", hostile.writes());
    let output = push(&imgfs, &hostile, &["--platform", "linux/amd64"]).success();
    hostile.assert_complete();
    assert_eq!(output.image(&name)["original_digest"], image.digest());
    let list = hostile.manifest("team/app", "1").expect("the index");
    let list: serde_json::Value = serde_json::from_slice(&list).expect("JSON");
    assert_eq!(list["annotations"]["io.imgfs.original.digest"], image.digest());
    assert_eq!(
        list["manifests"].as_array().map(Vec::len),
        Some(2),
        "the image and its attestation"
    );
    // Again: what the filter made is known.
    hostile.clear_log();
    let output = push(&imgfs, &hostile, &["--platform", "linux/amd64"]).success();
    assert_eq!(output.image(&name)["status"], "unchanged", "{output}");
    assert!(hostile.writes().is_empty(), "{:?}", hostile.writes());
}
