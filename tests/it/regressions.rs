//! Faults that were found by reading and by trying, each with the test that would have shown it.

use crate::support::cli::Imgfs;
use crate::support::hostile::{Fault, Hostile, Match};
use crate::support::image::{Artifact, Built, Image, Index};
use crate::support::text;
use crate::support::tree::{self, assert_sparse_tree_sound, assert_tree_sound};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

fn two_platforms() -> Built {
    let image = |platform: &str, seed| Image::new().platform(platform).layer(seed, 4000).build();
    Index::new().child(&image("linux/amd64", 1)).child(&image("linux/arm64", 2)).build()
}

fn single(seed: u64) -> Built {
    Image::new().platform("linux/amd64").layer(seed, 4000).build()
}

fn manifests(imgfs: &Imgfs, hostile: &Hostile, repository: &str) -> PathBuf {
    imgfs.images_dir().join(hostile.host()).join(repository).join("manifests")
}

/// A second tag of the same filtered index was taken for done, since the index was there.
#[test]
fn regression_every_tag_of_a_filtered_index_is_written() {
    for layout in ["documented", "kubekey"] {
        let hostile = Hostile::start();
        for tag in ["a", "b"] {
            two_platforms().push_to(&hostile, "app", tag);
        }
        let imgfs = Imgfs::scratch();
        for tag in ["a", "b"] {
            let name = format!("{}/app:{tag}", hostile.host());
            imgfs.pull(&["--layout", layout, "--platform", "linux/amd64", &name]).success();
        }
        assert_eq!(imgfs.ls().success().images().len(), 2, "{layout}");
        // And a tag that moves back moves here, too.
        single(7).push_to(&hostile, "app", "a");
        let name = format!("{}/app:a", hostile.host());
        imgfs.pull(&["--platform", "linux/amd64", &name]).success();
        two_platforms().push_to(&hostile, "app", "a");
        imgfs.pull(&["--platform", "linux/amd64", &name]).success();
        let images = imgfs.ls().success();
        let digest =
            |tag: &str| images.image(&format!("{}/app:{tag}", hostile.host()))["digest"].clone();
        assert_eq!(digest("a"), digest("b"), "{layout}");
    }
}

/// Signatures of the original index were orphans of the filtered one.
#[test]
fn regression_prune_keeps_signatures_of_a_filtered_image() {
    let hostile = Hostile::start();
    hostile.set_referrers_api(true);
    let image = two_platforms();
    image.push_to(&hostile, "app", "1");
    let signature = Artifact::new("application/vnd.test.signature")
        .subject(&image)
        .blob("text/plain", b"signed");
    signature.build().push_by_digest(&hostile, "app");
    let imgfs = Imgfs::scratch();
    let name = format!("{}/app:1", hostile.host());
    let report = imgfs.pull(&["--platform", "linux/amd64", &name]).success();
    assert_eq!(report.image(&name)["attached"].as_array().map(Vec::len), Some(1), "{report}");
    let before = tree::blobs(imgfs.images_dir());
    assert_eq!(imgfs.prune().success().number("removed_bytes"), 0);
    assert_eq!(tree::blobs(imgfs.images_dir()), before);
}

/// What a lost manifest needs is not known, so nothing may be removed.
#[test]
fn regression_prune_refuses_while_a_manifest_is_lost() {
    for keep in [false, true] {
        let hostile = Hostile::start();
        let image = two_platforms();
        image.push_to(&hostile, "app", "1");
        let imgfs = Imgfs::scratch();
        let name = format!("{}/app:1", hostile.host());
        let mut args = vec![name.as_str()];
        if keep {
            args.extend(["--index", "keep", "--platform", "linux/amd64"]);
        }
        imgfs.pull(&args).success();
        let dir = manifests(&imgfs, &hostile, "app");
        let amd64 = Image::new().platform("linux/amd64").layer(1, 4000).build();
        fs::remove_file(dir.join(amd64.digest())).expect("the child is there");
        let before = tree::blobs(imgfs.images_dir());
        imgfs.prune().expect_code(2).stderr_has("repair it first");
        assert_eq!(tree::blobs(imgfs.images_dir()), before);
        imgfs.repair().success();
        imgfs.prune().success();
        assert_sparse_tree_sound(imgfs.images_dir());
    }
}

/// A manifest under a name that imgfs cannot read was a stray file, and its blobs were removed.
#[test]
fn regression_prune_refuses_manifests_of_names_it_does_not_know() {
    let imgfs = Imgfs::scratch();
    tree::kubekey_g1(imgfs.images_dir(), "my_registry:5000", "team/app", "v1", &single(1));
    tree::kubekey_g1(imgfs.images_dir(), "quay.io", "team/app", "v1", &single(2));
    let before = tree::blobs(imgfs.images_dir());
    imgfs.prune().expect_code(2).stderr_has("my_registry:5000");
    assert_eq!(tree::blobs(imgfs.images_dir()), before);
}

/// Pulling all platforms left the note that only one was wanted.
#[test]
fn regression_a_full_pull_ends_a_sparse_one() {
    let hostile = Hostile::start();
    two_platforms().push_to(&hostile, "app", "1");
    let imgfs = Imgfs::scratch();
    let name = format!("{}/app:1", hostile.host());
    imgfs.pull(&["--index", "keep", "--platform", "linux/amd64", &name]).success();
    assert_eq!(imgfs.ls().success().image(&name)["complete"], true);
    imgfs.pull(&[&name]).success();
    assert_tree_sound(imgfs.images_dir());
    let arm64 = Image::new().platform("linux/arm64").layer(2, 4000).build();
    fs::remove_file(manifests(&imgfs, &hostile, "app").join(arm64.digest())).expect("it is there");
    assert_eq!(imgfs.ls().expect_code(1).image(&name)["complete"], false);
}

/// A repaired tag of a kept index came back as a rewritten one, with another digest.
#[test]
fn regression_repair_keeps_the_mode_of_an_index() {
    let hostile = Hostile::start();
    let image = two_platforms();
    image.push_to(&hostile, "app", "1");
    let imgfs = Imgfs::scratch();
    let name = format!("{}/app:1", hostile.host());
    imgfs.pull(&["--index", "keep", "--platform", "linux/arm64", &name]).success();
    fs::write(manifests(&imgfs, &hostile, "app").join("1"), "").expect("emptying");
    assert_eq!(imgfs.ls().expect_code(1).image(&name)["complete"], false, "it is not hidden");
    imgfs.repair().success();
    assert_eq!(imgfs.ls().success().image(&name)["digest"], image.digest());
}

/// What a platform filter has made is in no registry, and could not be repaired.
#[test]
fn regression_a_lost_filtered_index_is_made_again() {
    let hostile = Hostile::start();
    two_platforms().push_to(&hostile, "app", "1");
    let imgfs = Imgfs::scratch();
    let name = format!("{}/app:1", hostile.host());
    imgfs.pull(&["--layout", "kubekey", "--platform", "linux/arm64", &name]).success();
    let digest = imgfs.ls().success().image(&name)["digest"].clone();
    let file = manifests(&imgfs, &hostile, "app").join(digest.as_str().expect("a digest"));
    fs::remove_file(file).expect("the index is there");
    imgfs.repair().success();
    assert_eq!(imgfs.ls().success().image(&name)["digest"], digest);
}

/// The tags of filtered images were forgotten when a damaged map was mended.
#[test]
fn regression_a_mended_map_has_its_filtered_tags() {
    let hostile = Hostile::start();
    two_platforms().push_to(&hostile, "app", "1");
    let imgfs = Imgfs::scratch();
    let name = format!("{}/app:1", hostile.host());
    imgfs.pull(&["--layout", "kubekey", "--platform", "linux/arm64", &name]).success();
    let before = imgfs.ls().success().images();
    let map = manifests(&imgfs, &hostile, "app").join("layout");
    fs::write(&map, "{ damaged").expect("damaging");
    imgfs.prune().expect_code(2);
    imgfs.repair().success();
    assert_eq!(imgfs.ls().success().images(), before);
    // Without the registry nothing is mended, and nothing is lost.
    fs::write(&map, "{ damaged").expect("damaging");
    hostile.on(Match::any()).fault(Fault::status(404));
    imgfs.repair().expect_code(1);
    assert_eq!(fs::read(&map).expect("reading"), b"{ damaged");
}

/// What `--full` had found to be rotten was trusted again afterwards.
#[test]
fn regression_what_is_found_rotten_stays_so() {
    let hostile = Hostile::start();
    let image = single(1);
    image.push_to(&hostile, "app", "1");
    let imgfs = Imgfs::scratch();
    let name = format!("{}/app:1", hostile.host());
    imgfs.pull(&[&name]).success();
    let blob = imgfs.images_dir().join("blobs").join(&image.layers()[0]);
    tree::flip_byte_quietly(&blob, 100);
    imgfs.on_tree("verify", &["--full"]).expect_code(1);
    imgfs.verify().expect_code(1);
    assert_eq!(imgfs.pull(&[&name]).success().image(&name)["status"], "pulled");
    imgfs.verify().success();
}

/// A pull that put up with a missing platform switched strictness off for the next one.
#[test]
fn regression_warn_does_not_silence_strict() {
    let hostile = Hostile::start();
    two_platforms().push_to(&hostile, "app", "1");
    let imgfs = Imgfs::scratch();
    let name = format!("{}/app:1", hostile.host());
    let platforms = ["--platform", "linux/amd64,linux/s390x"];
    imgfs.pull(&[&platforms[..], &["--policy", "warn", &name]].concat()).success();
    imgfs.pull(&[&platforms[..], &[&name]].concat()).expect_code(1).stderr_has("linux/s390x");
}

/// A registry that answers 416 to a resumed download made it fail for ever.
#[test]
fn regression_a_refused_range_starts_over() {
    let hostile = Hostile::start();
    Image::new().layer(3, 200_000).build().push_to(&hostile, "app", "1");
    hostile.on(Match::blobs().first(1)).fault(Fault::TruncateAt(50_000));
    hostile.on(Match::blobs().ranged(true)).fault(Fault::status(416));
    let imgfs = Imgfs::scratch();
    imgfs.pull(&[&format!("{}/app:1", hostile.host())]).success();
    assert_tree_sound(imgfs.images_dir());
}

/// The wait that a registry asks for is bounded wherever it is asked for.
#[test]
fn regression_no_wait_is_longer_than_allowed() {
    let hostile = Hostile::start();
    single(1).push_to(&hostile, "app", "1");
    hostile.on(Match::any()).fault(Fault::status_with(503, "Retry-After", "3600"));
    let started = Instant::now();
    let imgfs = Imgfs::scratch();
    let output = imgfs.pull(&["--max-wait", "1s", &format!("{}/app:1", hostile.host())]);
    output.expect_code(1).stderr_has("3600");
    assert!(started.elapsed() < Duration::from_secs(30));
}

/// One registry that hangs held up the images of all the others.
#[test]
fn regression_a_silent_registry_does_not_hold_up_others() {
    let (good, bad) = (Hostile::start(), Hostile::start());
    single(1).push_to(&good, "app", "1");
    single(2).push_to(&bad, "app", "1");
    bad.on(Match::any()).fault(Fault::HangBefore);
    let imgfs = Imgfs::scratch();
    let names = [format!("{}/app:1", bad.host()), format!("{}/app:1", good.host())];
    let running = imgfs.spawn_pull(&[&names[0], &names[1]]);
    let published = manifests(&imgfs, &good, "app").join("1");
    crate::support::wait_for("the other image", Duration::from_secs(30), || published.exists());
    running.kill9();
}

/// One signature that cannot be had took all the others with it.
#[test]
fn regression_a_lost_signature_spares_the_others() {
    let hostile = Hostile::start();
    let image = single(1);
    image.push_to(&hostile, "app", "1");
    let artifact = |text: &'static [u8]| {
        Artifact::new("application/vnd.test.sbom").subject(&image).blob("text/plain", text).build()
    };
    let (kept, lost) = (artifact(b"kept"), artifact(b"lost"));
    hostile.set_referrers_api(true);
    kept.push_by_digest(&hostile, "app");
    lost.push_by_digest(&hostile, "app");
    hostile.on(Match::manifests().path(lost.digest())).fault(Fault::status(404));
    let imgfs = Imgfs::scratch();
    let name = format!("{}/app:1", hostile.host());
    // It is a loss, and a run with losses does not end with success.
    let report = imgfs.pull(&[&name]).expect_code(1);
    let entry = report.image(&name);
    assert_eq!(
        (&entry["status"], entry["losses"][1].is_null()),
        (&"pulled".into(), true),
        "{report}"
    );
    assert_eq!(entry["attached"], serde_json::json!([kept.digest()]), "{report}");
    assert!(entry["losses"].to_string().contains(lost.digest()), "{report}");
    report.stderr_has(lost.digest());
    assert_tree_sound(imgfs.images_dir());
}

/// Links to a directory above were followed for ever.
#[test]
fn regression_links_upwards_end() {
    let imgfs = Imgfs::scratch();
    tree::kubekey_g1(imgfs.images_dir(), "quay.io", "team/app", "v1", &single(1));
    for link in ["current", "latest"] {
        std::os::unix::fs::symlink(".", imgfs.images_dir().join(link)).expect("linking");
    }
    assert_eq!(imgfs.ls().success().images().len(), 1);
}

/// Output that is lost is a failure; an error in a file of secrets does not show them.
#[test]
fn regression_scripts_and_logs() {
    let imgfs = Imgfs::scratch();
    tree::kubekey_g1(imgfs.images_dir(), "quay.io", "team/app", "v1", &single(1));
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("there is /dev/full");
    let status = std::process::Command::new(env!("CARGO_BIN_EXE_imgfs"))
        .args(["ls", "--images-dir"])
        .arg(imgfs.images_dir())
        .stdout(full)
        .stderr(std::process::Stdio::null())
        .status();
    assert_eq!(status.expect("it runs").code(), Some(1));

    let auths = imgfs.home().join("auths.yaml");
    fs::write(&auths, "- repo: a.io\n  password: hunter2\n  plain_http: maybe\n").expect("writing");
    let output = imgfs.pull(&["--auths", text(&auths), "a.io/x:1"]).expect_code(2);
    assert!(output.stderr.contains("line 3") && !output.stderr.contains("hunter2"), "{output}");
}

/// Records that make no sense stopped every command, and blamed a newer version.
#[test]
fn regression_damaged_records_are_made_anew() {
    let hostile = Hostile::start();
    single(1).push_to(&hostile, "app", "1");
    let imgfs = Imgfs::scratch();
    let name = format!("{}/app:1", hostile.host());
    imgfs.pull(&[&name]).success();
    let records = imgfs.images_dir().join("blobs/.imgfs/records");
    fs::write(&records, b"\x00\x01\xff garbage\n\n").expect("damaging");
    assert_eq!(imgfs.pull(&[&name]).success().number("fetched_bytes"), 0);
    imgfs.verify().success();
    assert!(fs::read_to_string(&records).expect("text again").starts_with("imgfs records 1\n"));
}
