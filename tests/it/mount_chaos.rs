//! A mount under readers while things go wrong: it is killed, its registry fails, its cache is too small.

use crate::support::cli::Imgfs;
use crate::support::content::{Random, cached_name, digest_of_reader};
use crate::support::disk::used_below;
use crate::support::hostile::{Fault, Hostile, Kinds, Match};
use crate::support::image::{Built, Image};
use crate::support::mount::Mounted;
use crate::support::need::require;
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
            let digest = digest_of_reader(&mut content).expect("reading");
            assert_eq!(cached_name(&digest), name);
            digest
        })
        .collect()
}

/// Bytes of the disk that the cache has of each blob in parts.
fn held(cache: &Path, image: &Built) -> BTreeMap<String, u64> {
    use std::os::unix::fs::MetadataExt as _;
    let size = |digest: &String| {
        let part = std::fs::metadata(cache.join("part").join(cached_name(digest)));
        part.map_or(0, |meta| meta.blocks() * 512)
    };
    image.blobs.keys().map(|digest| (digest.clone(), size(digest))).collect()
}

#[test]
fn a_mount_that_is_killed_again_and_again_loses_next_to_nothing() {
    require!(Mounts);
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

#[test]
fn after_many_faults_nothing_is_left_behind() {
    require!(Mounts);
    let hostile = Hostile::start();
    // More than the cache and the memory beside it hold.
    let sizes: Vec<u64> = (0..14).map(|n| 100_000 * (n * n + 1)).chain([131_072, 1]).collect();
    let (image, name) = image(&hostile, 40, &sizes);
    let backing = Imgfs::scratch();
    let patience = ["--stall-timeout", "1s", "--connect-timeout", "1s"];
    let args = [&patience[..], &["--manifests", &name, "--cache-size", "3M"]].concat();
    let mut mount = Mounted::start(backing.images_dir(), &args);
    let (threads, (files, sockets)) = (mount.threads(), mount.open_files());

    let known = Known::blobs_of(&[&image]);
    let mut random = Random::new(seed() ^ 3);
    let (mut injected, mut reads, enough) = (0, 0, scale(100, 500));
    while injected < enough {
        hostile.faults_random(random.next(), 400, Kinds::Retryable, 3);
        // And some that take the whole patience.
        hostile.on(Match::blobs().every(100)).fault(Fault::HangBefore);
        hostile.on(Match::blobs().every(110)).fault(Fault::HangAfter(100_000));
        let seeds = random.below(1 << 30);
        let manner =
            Manner { tolerate: &["EIO", "ETIMEDOUT"], wander: &["", "blobs"], ..Manner::default() };
        let mut readers =
            Readers::start(&mount, Some(mount.id()), &known, seeds..seeds + 16, &manner);
        wait_for("faults", Duration::from_mins(2), || {
            readers.are_running();
            hostile.injected() >= enough.min(injected + 100)
        });
        reads += readers.stop().reads;
        injected += hostile.injected();
        hostile.behave();
    }
    assert!(reads > 100, "{reads}");
    for digest in image.blobs.keys() {
        let read = mount.cat(&format!("blobs/{digest}")).success();
        assert_eq!(content::digest(&read.stdout), *digest);
    }

    // Nobody looks at it any more. What is only kept for a while, such as connections, goes with the
    // registry.
    drop(hostile);
    assert!(mount.known_inodes() > 0);
    wait_for("files to be closed", SOON, || mount.open_files().0 == files);
    wait_for("connections to be closed", SOON, || mount.open_files().1 <= sockets);
    mount.forget();
    wait_for("inodes to be forgotten", SOON, || mount.known_inodes() == 0);
    wait_for("threads to end", 2 * SOON, || mount.threads() <= threads);
    assert_eq!(mount.stop().code(), Some(0));
}

#[test]
fn many_readers_see_nothing_wrong_while_tags_move_and_the_cache_is_too_small() {
    require!(Mounts);
    let hostile = Hostile::start();
    let (image, name) = image(&hostile, 60, &[9 * MIB, 6 * MIB, 4 * MIB, 900_000, 131_073, 7]);
    // Of one size, and of different ones.
    let tags: Vec<Built> = (0..4)
        .map(|seed| Image::new().annotation("a", &"x".repeat(seed / 2)).layer(70 + seed as u64, 9))
        .map(|image| image.build())
        .collect();
    tags[0].push_to(&hostile, "moving", "1");
    let moving = format!("{}/moving", hostile.host());
    let backing = Imgfs::scratch();
    let args = ["--manifests", &name, "--cache-size", "4M", "--tag-ttl", "100ms"];
    let mut mount = Mounted::start(backing.images_dir(), &args);
    let mut known = Known::blobs_of(&[&image]);
    let contents: Vec<&[u8]> = tags.iter().map(|tag| tag.root().bytes.as_slice()).collect();
    known.add_moving(&format!("{moving}/manifests/1"), &contents);
    mount.cat(&format!("{moving}/manifests/1")).success();
    let wander = ["", "blobs", &moving, &format!("{moving}/manifests")];
    let manner = Manner { wander: &wander, ..Manner::default() };
    let mut readers = Readers::start(&mount, Some(mount.id()), &known, 0..16, &manner);
    let mut random = Random::new(seed() ^ 4);
    for _ in 0..scale(100, 1200) {
        let tag = usize::try_from(random.below(4)).expect("small");
        tags[tag].push_to(&hostile, "moving", "1");
        std::thread::sleep(Duration::from_millis(50));
        readers.are_running();
    }
    let seen = readers.stop();
    // On a machine that has something else to do as well.
    assert!(seen.reads > 100 && seen.listings > 10 && seen.moving > 10, "{seen:?}");
    mount.forget();
    wait_for("inodes to be forgotten", SOON, || mount.known_inodes() == 0);
    assert_eq!(mount.stop().code(), Some(0));
    assert_eq!(mount.log(), Vec::<String>::new());
}

/// Reads a directory to the end, goes on from random places in it, and compares.
const SEEKER: &str = r"
import ctypes, os, random, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.opendir.restype = libc.readdir64.restype = ctypes.c_void_p
libc.telldir.restype = ctypes.c_long
def entry(of):
    at = libc.readdir64(ctypes.c_void_p(of))
    return ctypes.string_at(at + 19) if at else None
def place(of): return libc.telldir(ctypes.c_void_p(of))
def go(of, to): libc.seekdir(ctypes.c_void_p(of), ctypes.c_long(to))
choose = random.Random(int(sys.argv[2]))
first = libc.opendir(sys.argv[1].encode())
places, names = [place(first)], []
while name := entry(first):
    names.append(name)
    places.append(place(first))
if len(names) != len(set(names)): sys.exit('a name comes twice')
# Another one, that has not been read to the end, and the same once more.
for of in [libc.opendir(sys.argv[1].encode()), first]:
    for _ in range(100):
        start = choose.randrange(len(places))
        go(of, places[start])
        length = choose.choice([1, 3, 200])
        got = [entry(of) for _ in range(min(length, len(names) - start))]
        if got != names[start:start + length]: sys.exit('another list from %d on' % start)
print(len(names))
";

#[test]
fn a_directory_is_read_from_anywhere() {
    require!(Mounts);
    let imgfs = Imgfs::scratch();
    let blobs = imgfs.images_dir().join("blobs");
    std::fs::create_dir_all(&blobs).expect("making a directory");
    for number in 0..1500u32 {
        let content = number.to_le_bytes();
        std::fs::write(blobs.join(content::digest(&content)), content).expect("writing");
    }
    let mut mount = Mounted::start(imgfs.images_dir(), &["--offline"]);
    let readers: Vec<_> = (0..4)
        .map(|number: u32| {
            let seed = number.to_string();
            mount.begin("python3", &["-c", SEEKER, &mount.path("blobs"), &seed])
        })
        .collect();
    for reader in readers {
        assert_eq!(reader.wait().success().text(), "1502\n", "with . and ..");
    }
    mount.forget();
    wait_for("inodes to be forgotten", SOON, || mount.known_inodes() == 0);
    assert_eq!(mount.stop().code(), Some(0));
}
