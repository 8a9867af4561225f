//! `kill -9` at random moments.

use crate::support::cli::Imgfs;
use crate::support::content::Random;
use crate::support::hostile::Hostile;
use crate::support::image::{Built, Image, Index};
use crate::support::tree::{self, assert_tree_sound};
use crate::support::{scale, seed, wait_for};
use std::collections::BTreeMap;
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// 8 MB/s a connection: what the server has sent, the client has read within a moment.
const PACE: (u64, Duration) = (32 * 1024, Duration::from_millis(4));

fn images(hostile: &Hostile) -> Vec<(String, Built)> {
    let base = Image::new().layer(1, 3 * MIB);
    let app = base.clone().layer(2, 2 * MIB).layer(3, 500_000).build();
    let arm = base.clone().platform("linux/arm64").layer(4, 3 * MIB).build();
    let multi = Index::new().child(&app).child(&arm).attest().build();
    let other = base.layer(5, 2 * MIB).build();
    [("app", multi), ("other", other)]
        .into_iter()
        .map(|(repository, image)| {
            image.push_to(hostile, repository, "1");
            (format!("{}/{repository}:1", hostile.host()), image)
        })
        .collect()
}

#[test]
fn a_killed_pull_leaves_nothing_wrong_and_little_to_do_again() {
    let hostile = Hostile::start();
    let images = images(&hostile);
    let names: Vec<&str> = images.iter().map(|(name, _)| name.as_str()).collect();
    let sizes: BTreeMap<String, u64> = images
        .iter()
        .flat_map(|(_, image)| image.blobs.values())
        .map(|blob| (blob.digest.clone(), blob.size()))
        .collect();
    hostile.set_pace(PACE.0, PACE.1);
    let mut random = Random::new(seed());
    let mut imgfs = Imgfs::scratch();
    // What each unfinished blob's next request must start at.
    let mut resumed: BTreeMap<String, u64> = BTreeMap::new();
    let mut kills = 0;
    let mut checked = 0;
    while kills < scale(10, 100) {
        hostile.clear_log();
        let running = imgfs.spawn_pull(&names);
        std::thread::sleep(Duration::from_millis(random.below(500)));
        let output = running.kill9();
        let gets = hostile.blob_gets();
        for (digest, start) in &resumed {
            if let Some(first) = gets.iter().find(|get| get.digest() == digest) {
                assert_eq!(first.range_start(), *start, "{digest} goes on where it stopped");
                checked += 1;
            }
        }
        if output.code() == 0 {
            // It was faster: start over.
            assert_tree_sound(imgfs.images_dir());
            imgfs = Imgfs::scratch();
            resumed.clear();
            continue;
        }
        assert_eq!(output.code(), -9, "{output}");
        kills += 1;
        assert_tree_sound(imgfs.images_dir());
        let published = tree::blobs(imgfs.images_dir());
        let mut reached: BTreeMap<String, u64> = resumed.clone();
        for get in &gets {
            let end = reached.entry(get.digest().to_owned()).or_default();
            *end = (*end).max(get.range_start() + get.sent);
        }
        resumed.clear();
        for (digest, end) in reached {
            if published.contains(&digest) {
                continue;
            }
            let kept = tree::partial_len(imgfs.images_dir(), &digest);
            assert!(kept + MIB >= end, "{digest}: {end} bytes were sent, {kept} were kept");
            assert!(kept <= sizes[&digest], "{digest}: more was kept than there is");
            if kept < sizes[&digest] {
                resumed.insert(digest, kept);
            }
        }
    }
    assert!(checked > 0, "no download was ever continued");

    // The last one is left alone, finishes, and fetches no more than is missing.
    hostile.no_pace();
    hostile.clear_log();
    let published = tree::blobs(imgfs.images_dir());
    let missing: u64 = sizes
        .iter()
        .filter(|(digest, _)| !published.contains(*digest))
        .map(|(digest, size)| size - resumed.get(digest).copied().unwrap_or(0))
        .sum();
    let output = imgfs.pull(&names).success();
    assert!(output.number("fetched_bytes") <= missing, "{missing} bytes were missing\n{output}");
    assert_tree_sound(imgfs.images_dir());
    for (name, image) in &images {
        assert_eq!(output.image(name)["digest"], image.digest());
    }
    imgfs.verify().success();
    let left = tree::everything_under(&imgfs.images_dir().join("blobs/.imgfs/partial"));
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_kill_between_blobs_and_tags_publishes_no_tag_too_early() {
    // Many small images: most of the time is spent publishing.
    let hostile = Hostile::start();
    let names: Vec<String> = (0..40)
        .map(|number| {
            let image = Image::new().layer(1000 + number, 2000).build();
            image.push_to(&hostile, &format!("r{number}"), "1");
            format!("{}/r{number}:1", hostile.host())
        })
        .collect();
    let mut random = Random::new(seed() ^ 1);
    for _ in 0..scale(10, 100) {
        let imgfs = Imgfs::scratch();
        let mut running = imgfs.spawn_pull(&names);
        wait_for("the first blob", Duration::from_secs(20), || {
            !tree::blobs(imgfs.images_dir()).is_empty() || !running.is_running()
        });
        std::thread::sleep(Duration::from_micros(random.below(30_000)));
        running.kill9();
        assert_tree_sound(imgfs.images_dir());
        imgfs.pull(&names).success();
        assert_tree_sound(imgfs.images_dir());
        assert_eq!(tree::blobs(imgfs.images_dir()).len(), 80);
    }
}

#[test]
fn a_partial_download_that_was_tampered_with_is_noticed() {
    let hostile = Hostile::start();
    let image = Image::new().layer(1, 4 * MIB).build();
    image.push_to(&hostile, "app", "1");
    let name = format!("{}/app:1", hostile.host());
    let layer = image.layers()[0].clone();
    hostile.set_pace(PACE.0, PACE.1);
    let imgfs = Imgfs::scratch();
    let mut running = imgfs.spawn_pull(&[&name]);
    wait_for("a partial download", Duration::from_secs(20), || {
        assert!(running.is_running(), "the pull ended too early");
        tree::partial_len(imgfs.images_dir(), &layer) > MIB
    });
    running.kill9();
    let partial = imgfs.images_dir().join("blobs/.imgfs/partial").join(&layer);
    tree::flip_byte_quietly(&partial, 1000);
    hostile.no_pace();
    imgfs.pull(&[&name]).success();
    assert_tree_sound(imgfs.images_dir());
}

#[test]
fn an_interrupt_ends_a_pull_cleanly_and_soon() {
    let hostile = Hostile::start();
    let image = Image::new().layer(1, 20 * MIB).build();
    image.push_to(&hostile, "app", "1");
    hostile.set_pace(PACE.0, PACE.1);
    let imgfs = Imgfs::scratch().timeout(Duration::from_secs(10));
    let running = imgfs.spawn_pull(&[format!("{}/app:1", hostile.host())]);
    wait_for("the download", Duration::from_secs(20), || !hostile.blob_gets_now().is_empty());
    running.signal(rustix::process::Signal::TERM);
    let output = running.wait();
    assert_ne!(output.code(), 0, "{output}");
    assert!(output.elapsed < Duration::from_secs(8), "{output}");
    assert_tree_sound(imgfs.images_dir());
}
