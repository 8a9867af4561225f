//! A mount under readers while things go wrong: it is killed, its registry fails, its cache is too small.

use crate::support::cli::Imgfs;
use crate::support::content::{Random, digest_of_reader};
use crate::support::disk::used_below;
use crate::support::hostile::Hostile;
use crate::support::image::{Built, Image};
use crate::support::mount::Mounted;
use crate::support::readers::{Known, Manner, Readers};
use crate::support::{content, scale, seed, wait_for};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(15);

/// 8 MB/s a connection: so there is a middle in which something can happen.
const PACE: (u64, Duration) = (32 * 1024, Duration::from_millis(4));

/// What a program gets while a mount is dead, freed or being made.
const DEAD: [&str; 4] = ["ENOTCONN", "ECONNABORTED", "ENOENT", "EIO"];

/// An image with layers of these sizes at the registry, and its name.
fn image(hostile: &Hostile, seed: u64, sizes: &[u64]) -> (Built, String) {
    let mut image = Image::new();
    for (seed, size) in (seed..).zip(sizes) {
        image = image.layer(seed, *size);
    }
    let image = image.build();
    image.push_to(hostile, "app", &seed.to_string());
    (image, format!("{}/app:{seed}", hostile.host()))
}

/// The digests of the blobs that a cache has wholly, which have to be right.
#[track_caller]
fn whole(cache: &Path) -> BTreeSet<String> {
    let files = std::fs::read_dir(cache.join("whole")).into_iter().flatten().flatten();
    files
        .map(|file| {
            let name = file.file_name().into_string().expect("a digest");
            let mut content = std::fs::File::open(file.path()).expect("opening");
            assert_eq!(digest_of_reader(&mut content).expect("reading"), name);
            name
        })
        .collect()
}

/// Bytes of the disk that the cache has of each blob in parts.
fn held(cache: &Path, image: &Built) -> BTreeMap<String, u64> {
    use std::os::unix::fs::MetadataExt as _;
    let size = |digest: &String| {
        let part = std::fs::metadata(cache.join("part").join(digest));
        part.map_or(0, |meta| meta.blocks() * 512)
    };
    image.blobs.keys().map(|digest| (digest.clone(), size(digest))).collect()
}

#[test]
fn a_mount_that_is_killed_again_and_again_loses_next_to_nothing() {
    let hostile = Hostile::start();
    let sizes = [5 * MIB, 3 * MIB, 2_000_000, 700_000, 131_072, 1];
    let (image, name) = image(&hostile, 20, &sizes);
    hostile.set_pace(PACE.0, PACE.1);
    let backing = Imgfs::scratch();
    let cache = backing.images_dir().join("blobs/.imgfs/cache");
    let mut mount = Mounted::start(backing.images_dir(), &["--manifests", &name]);
    let known = Known::blobs_of(&[&image]);
    let manner = Manner { tolerate: &DEAD, wander: &["blobs"], ..Manner::default() };
    let readers = Readers::start(&mount, None, &known, 0..4, &manner);
    let mut random = Random::new(seed() ^ 2);
    let (mut complete, mut before) = (BTreeSet::new(), held(&cache, &image));
    let (mut was_partial, mut was_complete) = (0, 0);
    for _ in 0..scale(12, 50) {
        std::thread::sleep(Duration::from_millis(random.below(400)));
        mount.kill9();
        for get in hostile.blob_gets() {
            assert!(!complete.contains(get.digest()), "it was complete: {get:?}");
        }
        // What was on the disk when the last one began was not fetched again, but for what was
        // being written when its predecessor was killed.
        for (digest, sent) in hostile.blob_bytes_sent() {
            let missing = image.blobs[&digest].size().saturating_sub(before[&digest]);
            assert!(
                sent <= missing + MIB / 2,
                "{digest}: {sent} were sent, {missing} were missing"
            );
        }
        complete = whole(&cache);
        was_complete += complete.len();
        if complete.len() == image.blobs.len() {
            std::fs::remove_dir_all(&cache).expect("removing the cache");
            complete.clear();
        }
        before = held(&cache, &image);
        was_partial += before.values().filter(|held| **held > 0).count();
        hostile.clear_log();
        mount.restart();
        let told = mount.stderr();
        assert!(told.contains("a killed imgfs has left its mount"), "{told}");
    }
    let seen = readers.stop();
    assert!(seen.reads > 100 && seen.errors > 0, "{seen:?}");
    assert!(was_partial > 0 && was_complete > 0, "{was_partial} {was_complete}");

    // The last one is left alone. Then everything is there, and the next one fetches nothing.
    hostile.no_pace();
    for _ in 0..2 {
        for digest in image.blobs.keys() {
            let read = mount.cat(&format!("blobs/{digest}")).success();
            assert_eq!(content::digest(&read.stdout), *digest);
        }
        wait_for("all blobs to be complete", SOON, || whole(&cache).len() == image.blobs.len());
        mount.kill9();
        hostile.clear_log();
        mount.restart();
    }
    assert_eq!(hostile.blob_gets().len(), 0, "{:?}", hostile.blob_gets());
    assert!(used_below(&cache) < image.blob_bytes() + MIB, "{:?}", held(&cache, &image));
    assert_eq!(mount.stop().code(), Some(0));
    assert_eq!(mount.log(), Vec::<String>::new());
}
