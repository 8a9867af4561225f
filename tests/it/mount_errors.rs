//! A mount whose registry fails: what programs get, what is told, and that it ends.

use crate::support::cli::Imgfs;
use crate::support::content::{Content, Random};
use crate::support::hostile::{Fault, Hostile, Kinds, Match};
use crate::support::image::{Built, Image};
use crate::support::mount::Mounted;
use crate::support::need::require;
use crate::support::{content, scale, seed, wait_for};
use std::time::Duration;

/// Short enough for a test.
const PATIENCE: [&str; 4] = ["--stall-timeout", "1s", "--connect-timeout", "1s"];

/// Two images in one mount: the first is there in the directory, the second at the registry.
struct Pair {
    hostile: Hostile,
    mount: Mounted,
    local: Built,
    remote: Built,
    _imgfs: Imgfs,
}

impl Pair {
    fn start() -> Self {
        Self::patient(&PATIENCE)
    }

    fn patient(patience: &[&str]) -> Self {
        let hostile = Hostile::start();
        let [local, remote] = [1, 2].map(|seed| Image::new().layer(seed, 2_000_000).build());
        local.push_to(&hostile, "local", "1");
        remote.push_to(&hostile, "remote", "1");
        let [near, far] = ["local", "remote"].map(|name| format!("{}/{name}:1", hostile.host()));
        let imgfs = Imgfs::scratch();
        imgfs.pull(&[near]).success();
        let args = [patience, &["--manifests", &far]].concat();
        let mount = Mounted::start(imgfs.images_dir(), &args);
        Self { hostile, mount, local, remote, _imgfs: imgfs }
    }

    /// Reads the blob of the local image, which must not be delayed by anything.
    #[track_caller]
    fn local_is_read(&self) {
        let layer = &self.local.layers()[0];
        let read = self.mount.cat(&format!("blobs/{layer}")).success();
        assert_eq!(content::digest(&read.stdout), *layer);
        assert!(read.elapsed < Duration::from_secs(2), "it took {:?}", read.elapsed);
    }

    fn layer(&self) -> String {
        format!("blobs/{}", self.remote.layers()[0])
    }

    /// The path of a manifest that nobody has asked for yet.
    fn tag(&self, name: &str) -> String {
        format!("{}/{name}/manifests/1", self.hostile.host())
    }

    /// The registry recovers, and so does the same read.
    #[track_caller]
    fn recovers(&self) {
        self.hostile.behave();
        let read = self.mount.cat(&self.layer()).success();
        assert_eq!(content::digest(&read.stdout), self.remote.layers()[0]);
        assert!(read.stdout == Content::Generated { seed: 2, size: 2_000_000 }.to_vec());
    }
}

#[test]
fn reads_that_fail_say_how_and_succeed_later() {
    require!(Mounts);
    let pair = Pair::start();
    let digest = &pair.remote.layers()[0];
    for (fault, errno, cause) in [
        (Fault::status(401), "Permission denied", "not authorised"),
        (Fault::status(403), "Permission denied", ""),
        (Fault::status(404), "No such file or directory", ""),
        (Fault::status(418), "Input/output error", "418"),
        (Fault::HangBefore, "Connection timed out", ""),
    ] {
        let before = pair.mount.log().len();
        let shown = format!("{fault:?}");
        pair.hostile.on(Match::blobs().about(digest)).fault(fault);
        let reading = pair.mount.begin("cat", &[pair.mount.path(&pair.layer())]);
        pair.local_is_read();
        let failed = reading.wait().fails_with(errno);
        assert!(failed.elapsed < Duration::from_secs(9), "{shown}: {:?}", failed.elapsed);
        let lines = pair.mount.log();
        if !cause.is_empty() {
            let told = lines[before..].iter().filter(|line| line.contains(digest)).count();
            assert_eq!(told, 1, "{shown}: {lines:?}");
            assert!(lines[before..].iter().all(|line| line.contains(cause)), "{shown}: {lines:?}");
        }
        pair.hostile.behave();
    }
    pair.recovers();
}

#[test]
fn a_registry_that_is_broken_for_long_is_an_error_in_time() {
    require!(Mounts);
    // Whoever waits long enough for all attempts to fail learns why; whoever does not, when it was.
    for (patience, limit, errno, cause) in [
        (&PATIENCE[..], 10, "Connection timed out", "no answer within 3 s"),
        (&["--stall-timeout", "9s"], 40, "Input/output error", "500"),
    ] {
        let pair = Pair::patient(patience);
        pair.hostile.on(Match::any()).fault(Fault::status(500));
        let reading = pair.mount.begin("cat", &[pair.mount.path(&pair.layer())]);
        let looking = pair.mount.begin("cat", &[pair.mount.path(&pair.tag("broken"))]);
        pair.local_is_read();
        for failing in [reading, looking] {
            let failed = failing.wait().fails_with(errno);
            assert!(failed.elapsed < Duration::from_secs(limit), "{:?}", failed.elapsed);
        }
        for what in [pair.remote.layers()[0].as_str(), "broken:1"] {
            let told = pair.mount.logged(&[what, cause]);
            assert_eq!(told.len(), 1, "{what}: {:?}", pair.mount.log());
        }
        pair.recovers();
    }
}

#[test]
fn whoever_has_read_a_wrong_beginning_does_not_get_to_the_end() {
    require!(Mounts);
    // Reads a little, waits, reads the rest; in the meantime the fault is noticed, and cured.
    const SLOW: &str = "import os, sys, time\n\
        f = os.open(sys.argv[1], os.O_RDONLY)\n\
        size = len(os.read(f, 100000))\n\
        open(sys.argv[2], 'w').close()\n\
        while os.path.exists(sys.argv[2]): time.sleep(0.02)\n\
        while piece := os.read(f, 100000): size += len(piece)\n\
        print(size)";
    let pair = Pair::start();
    let digest = &pair.remote.layers()[0];
    pair.hostile.on(Match::blobs().about(digest)).fault(Fault::FlipByte(70_000));
    let gates = tempfile::tempdir().expect("making a temporary directory");
    let gate = gates.path().join("gate").display().to_string();
    let path = pair.mount.path(&pair.layer());
    let slow = pair.mount.begin("python3", &["-c", SLOW, &path, &gate]);
    wait_for("the first bytes", Duration::from_secs(10), || std::path::Path::new(&gate).exists());
    pair.mount.cat(&pair.layer()).fails_with("Input/output error");
    pair.hostile.behave();
    // Another reader has it fetched again, so that the right end is there.
    pair.recovers();
    std::fs::remove_file(&gate).expect("removing");
    slow.wait().fails_with("Input/output error");
    pair.recovers();
}

#[test]
fn names_that_cannot_be_looked_up_say_why() {
    require!(Mounts);
    let pair = Pair::start();
    for (name, fault, errno) in [
        ("refused", Fault::status(401), "Permission denied"),
        ("denied", Fault::status(403), "Permission denied"),
        ("hanging", Fault::HangBefore, "Connection timed out"),
        ("odd", Fault::captive_portal(), "Input/output error"),
    ] {
        pair.hostile.on(Match::manifests().path(&format!("/v2/{name}/"))).fault(fault);
        let reading = pair.mount.begin("cat", &[pair.mount.path(&pair.tag(name))]);
        pair.local_is_read();
        reading.wait().fails_with(errno);
        let told = pair.mount.logged(&[&format!("{name}:1")]);
        assert_eq!(told.len(), 1, "{name}: {:?}", pair.mount.log());
    }
    // Nobody listens at this port.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("binding");
    let address = closed.local_addr().expect("an address");
    drop(closed);
    let path = format!("{address}/team/app/manifests/1");
    pair.mount.cat(&path).fails_with("Input/output error");
    assert_eq!(pair.mount.logged(&[&address.to_string()]).len(), 1, "{:?}", pair.mount.log());

    // What was not there, or not to be had, is found as soon as it is.
    pair.hostile.behave();
    let later = Image::new().layer(3, 1000).build();
    for name in ["refused", "denied", "hanging", "odd"] {
        later.push_to(&pair.hostile, name, "1");
        assert_eq!(pair.mount.cat(&pair.tag(name)).success().stdout, later.root().bytes);
    }
}

#[test]
fn wrong_bytes_are_never_read_to_the_end() {
    require!(Mounts);
    let pair = Pair::start();
    let digest = &pair.remote.layers()[0];
    pair.hostile.on(Match::blobs().about(digest)).fault(Fault::FlipByte(70_000));
    for _ in 0..2 {
        let failed = pair.mount.cat(&pair.layer()).fails_with("Input/output error");
        assert!(failed.stdout.len() < 2_000_000, "{} bytes", failed.stdout.len());
    }
    let told = pair.mount.logged(&[digest, "digest"]);
    assert!(!told.is_empty(), "{:?}", pair.mount.log());
    pair.local_is_read();
    pair.recovers();
}

#[test]
fn a_blob_that_breaks_off_or_ignores_ranges_is_read_all_the_same() {
    require!(Mounts);
    for fault in [
        Fault::TruncateAt(100_000),
        Fault::ResetAfter(100_000),
        Fault::IgnoreRange,
        Fault::Chunked,
        Fault::HangAfter(100_000),
    ] {
        let pair = Pair::start();
        let digest = &pair.remote.layers()[0];
        let matches = Match::blobs().about(digest);
        let always = matches!(fault, Fault::IgnoreRange | Fault::Chunked);
        pair.hostile.on(if always { matches } else { matches.nth(1) }).fault(fault.clone());
        let read = pair.mount.cat(&pair.layer());
        assert_eq!(content::digest(&read.success().stdout), *digest, "{fault:?}");
    }
}

/// Reads pieces at random until time is up, tries again what fails, and complains of wrong bytes.
const READER: &str = "import os, random, sys, time\n\
    seed, rounds, tries = int(sys.argv[1]), int(sys.argv[2]), 0\n\
    choose = random.Random(seed)\n\
    pairs = [(sys.argv[i], sys.argv[i + 1]) for i in range(3, len(sys.argv), 2)]\n\
    for _ in range(rounds):\n\
    \x20   path, right = choose.choice(pairs)\n\
    \x20   right = open(right, 'rb').read()\n\
    \x20   length = choose.choice([1, 4096, 100000, 1000000])\n\
    \x20   at = choose.randrange(len(right))\n\
    \x20   while True:\n\
    \x20       try:\n\
    \x20           f = os.open(path, os.O_RDONLY)\n\
    \x20           try: got = os.pread(f, length, at)\n\
    \x20           finally: os.close(f)\n\
    \x20           break\n\
    \x20       except OSError as e:\n\
    \x20           tries += 1\n\
    \x20           if tries > 200: raise\n\
    \x20           time.sleep(0.05)\n\
    \x20   want = right[at:at + length]\n\
    \x20   if got != want[:len(got)] or (not got): sys.exit('wrong bytes at %d of %s' % (at, path))\n";

#[test]
fn many_readers_under_random_faults_get_the_right_bytes() {
    require!(Mounts);
    let hostile = Hostile::start();
    let backing = Imgfs::scratch();
    let sizes = [3_000_000, 700_000, 65_536, 1_048_577];
    let mut image = Image::new();
    for (seed, size) in (50..).zip(sizes) {
        image = image.layer(seed, size);
    }
    let image = image.build();
    image.push_to(&hostile, "app", "1");
    let name = format!("{}/app:1", hostile.host());
    let args = [&PATIENCE[..], &["--manifests", &name, "--cache-size", "3M"]].concat();
    let mut mount = Mounted::start(backing.images_dir(), &args);
    let files = tempfile::tempdir().expect("making a temporary directory");
    let mut pairs = Vec::new();
    for ((seed, size), digest) in (50..).zip(sizes).zip(image.layers()) {
        let right = files.path().join(seed.to_string());
        std::fs::write(&right, Content::Generated { seed, size }.to_vec()).expect("writing");
        pairs.push(mount.path(&format!("blobs/{digest}")));
        pairs.push(right.display().to_string());
    }
    let mut random = Random::new(seed());
    let mut injected = 0;
    for _ in 0..scale(3, 40) {
        // With nothing in the cache, neither here nor in the kernel.
        assert_eq!(mount.stop().code(), Some(0));
        let cache = backing.images_dir().join("blobs/.imgfs/cache");
        std::fs::remove_dir_all(&cache).expect("removing the cache");
        mount.restart();
        hostile.faults_random(random.next(), 400, Kinds::Retryable, 2);
        let readers: Vec<_> = (0..16)
            .map(|_| {
                let seed = random.below(1 << 30).to_string();
                let head = ["-c", READER, &seed, "12"].map(str::to_owned);
                mount.begin("python3", &[&head[..], &pairs].concat())
            })
            .collect();
        for reader in readers {
            reader.wait().success();
        }
        injected += hostile.injected();
        hostile.behave();
    }
    assert!(injected > 0);
    for digest in image.layers() {
        let read = mount.cat(&format!("blobs/{digest}")).success();
        assert_eq!(content::digest(&read.stdout), digest);
    }
    assert_eq!(mount.stop().code(), Some(0));
}
