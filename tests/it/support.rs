//! What the integration tests stand on, with no line of imgfs in it.
//!
//! ```text
//! cli       runs the imgfs binary: arguments in, exit status, output and report out
//! client    a client of registries, to test them by hand
//! tree      judges an images_dir, writes the trees that KubeKey leaves behind
//! registry  Debian's docker-registry in a child process (plain, TLS with basic auth, tokens)
//! faults    what tests of faults share
//! hostile   a registry inside the test process that counts, waits, lies and breaks off, for pulls and pushes
//! harbor    the same behind an imitation of Harbor's projects
//! s3        an imitation of an object store that counts and fails
//! image     builders of images, indexes, artifacts, and whatever can receive them
//! inside    a mount and an image in it that is looked into
//! layers    archives of layers, entry by entry, and how they are packed
//! model     what a container sees of layers, worked out plainly
//! store     a store under podman
//! snapshot  trees of files with all their attributes, and what differs between two
//! umoci     the independent unpacker
//! containerd  containerd with the snapshotter, and a client of its CRI
//! content   deterministic bytes that can be produced from any offset
//! http      the small HTTP/1.1 server under `hostile` and under the token server
//! mount     a mount, and programs that look at it
//! written   directories and images to be written through mounts
//! readers   processes that look at a mount at random and know what they have to see
//! disk      small disks, and how much of a disk is in use
//! tls       certificates
//! serving   `imgfs serve` in a child process
//! skopeo    the independent reader and writer
//! process   child processes that do not outlive the tests
//! ```
//!
//! Environment: `IMGFS_TEST_LONG=1` runs the long form of the randomised tests, `IMGFS_TEST_SEED=N`
//! repeats a run whose seed was printed.
#![allow(dead_code, reason = "helpers are shared by test modules that come and go")]

pub(crate) mod cli;
pub(crate) mod client;
pub(crate) mod containerd;
pub(crate) mod content;
pub(crate) mod disk;
pub(crate) mod faults;
pub(crate) mod harbor;
pub(crate) mod hostile;
pub(crate) mod http;
pub(crate) mod image;
pub(crate) mod inside;
pub(crate) mod layers;
pub(crate) mod model;
pub(crate) mod mount;
pub(crate) mod need;
pub(crate) mod process;
pub(crate) mod readers;
pub(crate) mod registry;
pub(crate) mod s3;
pub(crate) mod seaweed;
pub(crate) mod serving;
pub(crate) mod skopeo;
pub(crate) mod snapshot;
pub(crate) mod store;
pub(crate) mod tls;
pub(crate) mod tree;
pub(crate) mod umoci;
pub(crate) mod written;
pub(crate) mod ztoc;

use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// `usual` in the everyday run, `long` when the long form was asked for.
pub(crate) fn scale(usual: usize, long: usize) -> usize {
    match std::env::var("IMGFS_TEST_LONG") {
        Ok(value) if value != "0" && !value.is_empty() => long,
        _ => usual,
    }
}

/// The seed of all randomised tests in this run. Printed once, so that a failure can be repeated.
pub(crate) fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| {
        let seed = match std::env::var("IMGFS_TEST_SEED") {
            Ok(text) => text.parse().expect("IMGFS_TEST_SEED is a number"),
            // Everyday runs are repeatable; the long form looks somewhere new each time.
            Err(_) if scale(0, 1) == 0 => 20_260_101,
            Err(_) => std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(1, |since| since.as_secs()),
        };
        eprintln!("IMGFS_TEST_SEED={seed}");
        seed
    })
}

/// A path as an argument or in what is printed.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// Polls `condition` until it holds; panics with `what` when it does not within `limit`.
pub(crate) fn wait_for(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {limit:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
