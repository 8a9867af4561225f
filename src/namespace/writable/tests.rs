//! Random sequences of what programs do, against a simple model in memory.

use std::{
    collections::{BTreeSet, VecDeque},
    ffi::OsStr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

mod model;

use model::{Meaning, Model, Outcome, meaning};

use super::*;
use crate::{
    backend::images_dir::Linking,
    image::Platform,
    namespace::{Caller, Changes, ROOT, Settings},
    rootfs::Profiles,
    transfer::Options,
    util::Budget,
};

const CALLER: Caller = Caller { thread: 0 };

/// Directories of manifests of two repositories.
const DIRS: [&str; 2] = ["a.io/one/manifests", "b.io/two/manifests"];

/// What is written.
struct Contents {
    /// Three blobs, a manifest of the first two, an index of it, a manifest of the third, and what is none.
    all: Vec<Bytes>,
}

impl Contents {
    fn new() -> Self {
        let blobs = [Bytes::from_static(b"config"), Bytes::from_static(b"layer"), Bytes::new()];
        let descriptor = |kind: &str, content: &Bytes| {
            let digest = Digest::sha256(content);
            format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":{}}}"#, content.len())
        };
        let image = |layers: &[&Bytes]| {
            let layer = |blob: &&Bytes| descriptor("application/vnd.oci.image.layer.v1.tar", blob);
            let layers: Vec<String> = layers.iter().map(layer).collect();
            let config = descriptor("application/vnd.oci.image.config.v1+json", &blobs[0]);
            let layers = layers.join(",");
            Bytes::from(format!(
                r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{config},"layers":[{layers}]}}"#
            ))
        };
        let (first, second) = (image(&[&blobs[1]]), image(&[&blobs[2]]));
        let child = descriptor("application/vnd.oci.image.manifest.v1+json", &first);
        let index = Bytes::from(format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{child}]}}"#
        ));
        let mut all = blobs.to_vec();
        all.extend([first, index, second, Bytes::from_static(b"{}")]);
        Self { all }
    }

    /// All names that are written to.
    fn paths(&self) -> Vec<String> {
        let mut paths = vec!["blobs/.x".to_owned()];
        paths.extend(self.all[..3].iter().map(|blob| format!("blobs/{}", Digest::sha256(blob))));
        for dir in DIRS {
            paths.extend(["v1", "v2", ".y"].map(|name| format!("{dir}/{name}")));
            let manifests = self.all[3..5].iter();
            paths.extend(manifests.map(|manifest| format!("{dir}/{}", Digest::sha256(manifest))));
        }
        paths
    }
}

/// How a file is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Closing {
    /// Its only descriptor, after all has been written.
    Once,
    /// Copies of the descriptor before anything has been written, and after each piece.
    Often,
    /// By somebody who is told nothing, as the kernel says only that nobody has it open any more.
    Unheard,
}

/// A mount without a kernel, which does what the kernel does.
struct Mount {
    writable: Arc<Writable>,
    /// What has been closed and not been let go yet.
    closed: Mutex<VecDeque<Arc<Handle>>>,
}

fn outcome<T>(result: Result<T>) -> std::result::Result<T, &'static str> {
    result.map_err(|error| match error {
        ViewError::Refused(refusal, _) => match refusal {
            Refusal::Content => "EIO",
            Refusal::Busy => "EBUSY",
            Refusal::NotPermitted => "EPERM",
            Refusal::Exists => "EEXIST",
            Refusal::Invalid => "EINVAL",
            _ => "another refusal",
        },
        ViewError::Wrong(io::ErrorKind::NotFound) => "ENOENT",
        ViewError::Stale => "ESTALE",
        other => panic!("{other}"),
    })
}

impl Mount {
    fn open(root: &std::path::Path) -> Self {
        let dir = ImagesDir::create(root, None, Linking::Auto).unwrap();
        let settings = Settings {
            options: Options::default(),
            tag_ttl: Duration::from_secs(60),
            platform: "linux/amd64".parse::<Platform>().unwrap(),
            patience: Duration::from_secs(60),
            verify_first: false,
            budget: Budget::unlimited(),
            profiles: Profiles::Off,
            trusted_indexes: Vec::new(),
        };
        drop(dir);
        let dir = ImagesDir::open(root).unwrap();
        let view = View::new(dir, None, None, &settings);
        let mount =
            Self { writable: Writable::new(view, None).unwrap(), closed: Default::default() };
        for dir in DIRS {
            let mut ino = ROOT;
            for part in dir.split('/') {
                let name = OsStr::new(part);
                ino = match mount.writable.lookup_for(ino, name, CALLER).unwrap() {
                    Found::Entry(entry) => entry.attributes.ino,
                    _ => mount.writable.make_directory(ino, name).unwrap().attributes.ino,
                };
            }
        }
        mount
    }

    fn parent<'a>(&self, path: &'a str) -> (u64, &'a OsStr) {
        let (dir, name) = path.rsplit_once('/').unwrap();
        let ino = dir.split('/').fold(ROOT, |ino, part| {
            match self.writable.lookup_for(ino, OsStr::new(part), CALLER).unwrap() {
                Found::Entry(entry) => entry.attributes.ino,
                found => panic!("{dir}: {found:?}"),
            }
        });
        (ino, OsStr::new(name))
    }

    fn lookup(&self, path: &str) -> std::result::Result<u64, &'static str> {
        let (parent, name) = self.parent(path);
        match outcome(self.writable.lookup_for(parent, name, CALLER))? {
            Found::Entry(entry) => Ok(entry.attributes.ino),
            _ => Err("ENOENT"),
        }
    }

    /// Opens a file as `>` in a shell does.
    async fn open_empty(&self, path: &str) -> std::result::Result<Arc<Handle>, &'static str> {
        let (parent, name) = self.parent(path);
        let handle = match self.lookup(path) {
            Err(_) => outcome(self.writable.create(parent, name, false, CALLER))?.1,
            Ok(ino) => {
                let mut ino = ino;
                let opened = match self.open_to_write(ino).await {
                    Err("ESTALE") => {
                        ino = self.lookup(path)?;
                        self.open_to_write(ino).await?
                    }
                    opened => opened?,
                };
                let cut = Changes { size: Some(0), mtime: None };
                let writable = self.writable.clone();
                let cut = move || writable.change(ino, cut).map(drop);
                outcome(tokio::task::spawn_blocking(cut).await.unwrap())?;
                opened
            }
        };
        Ok(Arc::new(handle))
    }

    /// Writes a file in this many pieces, the last ones first if they are even, and closes it as `closing` says.
    async fn write(&self, path: &str, content: &Bytes, pieces: usize, closing: Closing) -> Outcome {
        let handle = self.open_empty(path).await?;
        if closing == Closing::Often {
            outcome(self.writable.flush(&handle, CALLER).await).unwrap();
        }
        let length = content.len().div_ceil(pieces.max(1)).max(1);
        let mut chunks: Vec<(usize, Bytes)> = (0..content.len())
            .step_by(length)
            .map(|at| (at, content.slice(at..(at + length).min(content.len()))))
            .collect();
        if pieces.is_multiple_of(2) {
            chunks.reverse();
        }
        let mut flushed = Ok(());
        for (at, chunk) in chunks {
            let to_write = handle.clone();
            let written = move || {
                let Handle::Pending(file) = &*to_write else { panic!("it is not pending") };
                file.write(at as u64, &chunk)
            };
            tokio::task::spawn_blocking(written).await.unwrap().unwrap();
            if closing == Closing::Often {
                // What is not whole yet may be found wrong here, and nothing is lost by that.
                flushed = outcome(self.writable.flush(&handle, CALLER).await);
            }
        }
        if closing == Closing::Unheard {
            self.let_go_but(0).await;
            self.writable.release(&handle).await;
            return Ok(());
        }
        if closing == Closing::Once {
            flushed = outcome(self.writable.flush(&handle, CALLER).await);
        }
        self.closed.lock().unwrap().push_back(handle);
        flushed
    }

    async fn touch(&self, path: &str, time: i64) -> Outcome {
        let ino = self.lookup(path)?;
        let changes = Changes { size: None, mtime: Some((time, 0)) };
        let writable = self.writable.clone();
        let changed = tokio::task::spawn_blocking(move || writable.change(ino, changes).map(drop));
        outcome(changed.await.unwrap())
    }

    fn time(&self, path: &str) -> i64 {
        let ino = self.lookup(path).unwrap();
        self.writable.attributes_now(ino).unwrap().unwrap().attributes.mtime.0
    }

    fn status(&self) -> String {
        String::from_utf8(self.writable.status().to_vec()).unwrap()
    }

    async fn write_blobs(&self, blobs: &[Bytes]) {
        for blob in blobs {
            let path = format!("blobs/{}", Digest::sha256(blob));
            self.write(&path, blob, 1, Closing::Once).await.unwrap();
        }
    }

    /// Lets go what has been closed, but for so many files: the kernel says so some time after close(2).
    async fn let_go_but(&self, number: usize) {
        loop {
            let handle = {
                let mut closed = self.closed.lock().unwrap();
                match closed.len() > number {
                    true => closed.pop_front(),
                    false => None,
                }
            };
            let Some(handle) = handle else { return };
            self.writable.release(&handle).await;
        }
    }

    /// Ends it. Whoever looks what others have brought holds it for a moment.
    async fn end(self) {
        self.let_go_but(0).await;
        while Arc::strong_count(&self.writable) > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn open_to_write(&self, ino: u64) -> std::result::Result<Handle, &'static str> {
        let writable = self.writable.clone();
        let opened = tokio::task::spawn_blocking(move || writable.open_to_write(ino, CALLER));
        outcome(opened.await.unwrap())
    }

    async fn read(&self, path: &str) -> std::result::Result<Option<Bytes>, &'static str> {
        let ino = self.lookup(path)?;
        let opened = match self.writable.open_now(ino) {
            Ok(None) => self.writable.open(ino).await,
            opened => opened.map(|handle| handle.unwrap()),
        };
        let handle = match outcome(opened) {
            Err("EBUSY") => return Ok(None),
            opened => opened?,
        };
        let size = usize::try_from(handle.size().unwrap()).unwrap();
        let read = handle.read(0, size).await.unwrap();
        self.writable.release(&handle).await;
        Ok(Some(read))
    }

    async fn listed(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for dir in DIRS.iter().copied().chain(["blobs"]) {
            let ino = self.parent(&format!("{dir}/x")).0;
            let listing = self.writable.list_now(ino).unwrap().unwrap();
            for at in 0..listing.len() {
                let (name, _) = listing.entry(at).unwrap();
                let entry = self.writable.listed(&listing, at).unwrap();
                assert!(entry.is_some(), "{name:?}");
                assert!(found.insert(format!("{dir}/{}", name.to_str().unwrap())));
            }
        }
        found
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % end
    }
}

async fn run(seed: u64, steps: usize) {
    let place = tempfile::tempdir().unwrap();
    let contents = Contents::new();
    let paths = contents.paths();
    let mut mount = Mount::open(place.path());
    let mut model = Model::default();
    let mut random = Random(seed);
    let mut done = Vec::new();
    for _ in 0..steps {
        let path = paths[random.below(paths.len())].clone();
        let other = paths[random.below(paths.len())].clone();
        let what = random.below(24);
        let (expected, found) = match what {
            0..=9 => {
                // Mostly what fits, so that something comes of it.
                let fitting = contents.all.iter().filter(|c| Model::fits(&path, c));
                let fitting: Vec<&Bytes> = fitting.collect();
                let content = match random.below(5) {
                    0 => &contents.all[random.below(contents.all.len())],
                    _ => fitting[random.below(fitting.len())],
                };
                // Of what is empty nothing is written, and that is another matter.
                if content.is_empty() && !matches!(meaning(&path), Meaning::Blob(_)) {
                    continue;
                }
                if content.is_empty() && !Model::fits(&path, content) {
                    continue;
                }
                let pieces = random.below(4) + 1;
                let closing = match random.below(4) {
                    _ if content.is_empty() => Closing::Once,
                    0 => Closing::Often,
                    1 => Closing::Unheard,
                    _ => Closing::Once,
                };
                let start = content.slice(..content.len().min(60));
                done.push(format!("write {path} {start:?} in {pieces}, {closing:?}"));
                if closing == Closing::Often
                    && Model::fits(&path, &Bytes::new())
                    && !matches!(meaning(&path), Meaning::Dot)
                {
                    // It is whole as soon as it is there.
                    model.write(&path, &Bytes::new()).unwrap();
                }
                let expected = match (model.write(&path, content), closing) {
                    (_, Closing::Unheard) => Ok(()),
                    (expected, _) => expected,
                };
                (expected, mount.write(&path, content, pieces, closing).await)
            }
            18 | 19 => {
                let time = 1_600_000_000 + i64::try_from(done.len()).unwrap();
                done.push(format!("touch {path} {time}"));
                (model.touch(&path, time), mount.touch(&path, time).await)
            }
            20 | 21 => {
                // Cut by an open, and closed with nothing written.
                if !model.published.contains_key(&path) {
                    continue;
                }
                done.push(format!("empty {path}"));
                model.stop_waiting(&path);
                mount.let_go_but(0).await;
                let opened = mount.open_empty(&path).await;
                if let Ok(handle) = &opened {
                    outcome(mount.writable.flush(handle, CALLER).await).unwrap();
                    mount.writable.release(handle).await;
                }
                (Ok(()), opened.map(drop))
            }
            10..=12 => {
                done.push(format!("rename {path} {other}"));
                let (from, to) = (mount.parent(&path), mount.parent(&other));
                let renamed = mount.writable.rename(from, to, true).await;
                (model.rename(&path, &other), outcome(renamed))
            }
            13 | 14 => {
                done.push(format!("link {path} {other}"));
                let linked = match mount.lookup(&path) {
                    Ok(ino) => {
                        let (parent, name) = mount.parent(&other);
                        outcome(mount.writable.link(ino, parent, name).await).map(drop)
                    }
                    Err(error) => Err(error),
                };
                (model.link(&path, &other), linked)
            }
            15..=17 => {
                done.push(format!("unlink {path}"));
                let (parent, name) = mount.parent(&path);
                let removed = match mount.lookup(&path) {
                    Ok(_) => outcome(mount.writable.unlink(parent, name).await),
                    Err(error) => Err(error),
                };
                (model.unlink(&path), removed)
            }
            _ => {
                done.push("restart".to_owned());
                model.dots.clear();
                model.times.retain(|path, _| !matches!(meaning(path), Meaning::Dot));
                mount.end().await;
                mount = Mount::open(place.path());
                (Ok(()), Ok(()))
            }
        };
        mount.let_go_but(random.below(4)).await;
        let story = || format!("seed {seed}:\n{}", done.join("\n"));
        assert_eq!(found, expected, "{}", story());
        for path in &paths {
            let (expected, found) = (model.read(path), mount.read(path).await);
            assert_eq!(found, expected, "{path}, {}", story());
            if let Some(time) = model.time(path) {
                assert_eq!(mount.time(path), time, "{path}, {}", story());
            }
        }
        let named = paths.iter().filter(|path| model.read(path).is_ok()).cloned();
        assert_eq!(mount.listed().await, named.collect::<BTreeSet<_>>(), "{}", story());
    }
    let dir = ImagesDir::open(place.path()).unwrap();
    let verified = dir.verify(true, &|_| ()).unwrap();
    assert!(verified.problems.is_empty(), "{:?}", verified.problems);
}

#[test]
fn what_programs_do_at_random_is_what_the_model_says() {
    for seed in 0..20 {
        in_runtime(run(seed, 40));
    }
}

fn in_runtime(work: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(work);
}

#[test]
fn what_another_has_brought_meanwhile_is_removed_with_what_waits() {
    in_runtime(async {
        let place = tempfile::tempdir().unwrap();
        let contents = Contents::new();
        let path = format!("{}/v1", DIRS[0]);
        let waiting = Mount::open(place.path());
        waiting.write(&path, &contents.all[3], 1, Closing::Once).await.unwrap();
        let other = Mount::open(place.path());
        other.write_blobs(&contents.all[..2]).await;
        other.write(&path, &contents.all[3], 1, Closing::Once).await.unwrap();
        assert!(place.path().join(&path).is_file());
        let (parent, name) = waiting.parent(&path);
        waiting.writable.unlink(parent, name).await.unwrap();
        assert!(!place.path().join(&path).exists());
        assert_eq!(waiting.lookup(&path), Err("ENOENT"));
    });
}

#[test]
fn what_was_published_just_before_a_kill_does_not_wait() {
    in_runtime(async {
        let place = tempfile::tempdir().unwrap();
        let contents = Contents::new();
        let path = format!("{}/v1", DIRS[0]);
        let kept = || {
            let pending = place.path().join("blobs/.imgfs/pending/1");
            let entries = std::fs::read_dir(pending).unwrap().map(|entry| entry.unwrap().path());
            entries.filter(|path| path.to_str().unwrap().contains("waiting")).collect::<Vec<_>>()
        };
        let mount = Mount::open(place.path());
        mount.write(&path, &contents.all[3], 1, Closing::Once).await.unwrap();
        let [file] = &kept()[..] else { panic!("{:?}", kept()) };
        let content = std::fs::read(file).unwrap();
        mount.write_blobs(&contents.all[..2]).await;
        assert_eq!(kept(), Vec::<std::path::PathBuf>::new());
        mount.end().await;
        // As if it had been killed before it removed this.
        std::fs::write(file, content).unwrap();
        let mount = Mount::open(place.path());
        assert!(mount.writable.table.is_empty());
        assert_eq!(kept(), Vec::<std::path::PathBuf>::new());
        let (parent, name) = mount.parent(&path);
        mount.writable.unlink(parent, name).await.unwrap();
        assert_eq!(mount.lookup(&path), Err("ENOENT"));
    });
}

#[test]
fn what_is_removed_or_renamed_while_it_is_published_is_not_there_afterwards() {
    in_runtime(async {
        let contents = Contents::new();
        for round in 0..60 {
            let place = tempfile::tempdir().unwrap();
            let mount = Mount::open(place.path());
            let (path, renamed) = (format!("{}/v1", DIRS[0]), format!("{}/v2", DIRS[0]));
            mount.write(&path, &contents.all[3], 1, Closing::Once).await.unwrap();
            mount.write_blobs(&contents.all[..1]).await;
            let (from, to) = (mount.parent(&path), mount.parent(&renamed));
            // The last of what it waits for comes now, and it is published a moment later or earlier.
            let change = async {
                let moment = Duration::from_micros(200 * (round / 2));
                tokio::task::spawn_blocking(move || std::thread::sleep(moment)).await.unwrap();
                match round % 2 {
                    0 => mount.writable.unlink(from.0, from.1).await,
                    _ => mount.writable.rename(from, to, true).await,
                }
            };
            let (changed, ()) = tokio::join!(change, mount.write_blobs(&contents.all[1..2]));
            changed.unwrap();
            mount.end().await;
            assert!(!place.path().join(&path).exists(), "round {round}");
            assert_eq!(place.path().join(&renamed).exists(), round % 2 == 1, "round {round}");
            // Nor does it come back.
            let mount = Mount::open(place.path());
            assert_eq!(mount.lookup(&path), Err("ENOENT"), "round {round}");
            assert_eq!(mount.lookup(&renamed).is_ok(), round % 2 == 1, "round {round}");
        }
    });
}

#[test]
fn what_is_refused_when_nobody_listens_is_told_until_the_name_is_written_well() {
    in_runtime(async {
        let place = tempfile::tempdir().unwrap();
        let contents = Contents::new();
        let mount = Mount::open(place.path());
        mount.write_blobs(&contents.all[..2]).await;
        let path = format!("{}/v1", DIRS[0]);
        mount.write(&path, &contents.all[3], 1, Closing::Once).await.unwrap();
        let wrong = Bytes::from_static(b"no manifest");
        mount.write(&path, &wrong, 1, Closing::Unheard).await.unwrap();
        assert_eq!(mount.read(&path).await, Ok(Some(contents.all[3].clone())));
        let status = mount.status();
        assert!(status.contains("refused") && status.contains("malformed"), "{status}");
        assert_eq!(mount.writable.waiting(), 1);
        mount.write(&path, &contents.all[3], 1, Closing::Unheard).await.unwrap();
        assert!(!mount.status().contains("refused"), "{}", mount.status());
        assert_eq!(mount.writable.waiting(), 0);
        // What is empty is as if nothing had been written.
        let path = format!("{}/v2", DIRS[0]);
        for _ in 0..2 {
            let handle = mount.open_empty(&path).await.unwrap();
            mount.writable.flush(&handle, CALLER).await.unwrap();
            mount.writable.release(&handle).await;
            assert!(mount.status().contains("empty"), "{}", mount.status());
        }
    });
}

#[test]
fn what_was_refused_and_is_written_further_does_not_push_out_what_came_after_it() {
    in_runtime(async {
        let place = tempfile::tempdir().unwrap();
        let contents = Contents::new();
        let mount = Mount::open(place.path());
        let path = format!("blobs/{}", Digest::sha256(&contents.all[0]));
        let write = |handle: &Arc<Handle>, at: u64, bytes: &'static [u8]| {
            let Handle::Pending(file) = &**handle else { panic!("it is not pending") };
            file.write(at, bytes).unwrap();
        };
        let first = mount.open_empty(&path).await.unwrap();
        write(&first, 0, b"con");
        assert_eq!(outcome(mount.writable.flush(&first, CALLER).await), Err("EIO"));
        assert_eq!(mount.lookup(&path), Err("ENOENT"));
        mount.write_blobs(&contents.all[..1]).await;
        write(&first, 3, b"rupt");
        mount.writable.release(&first).await;
        assert_eq!(mount.read(&path).await, Ok(Some(contents.all[0].clone())));
        assert!(mount.writable.table.is_empty());
    });
}

#[test]
fn the_inode_of_a_renamed_tag_leads_to_its_new_name() {
    in_runtime(async {
        let place = tempfile::tempdir().unwrap();
        let contents = Contents::new();
        let mount = Mount::open(place.path());
        mount.write_blobs(&contents.all[..3]).await;
        let [old, new] = ["v1", "v2"].map(|name| format!("{}/{name}", DIRS[0]));
        mount.write(&old, &contents.all[3], 1, Closing::Once).await.unwrap();
        mount.write(&new, &contents.all[5], 1, Closing::Once).await.unwrap();
        mount.let_go_but(0).await;
        let ino = mount.lookup(&old).unwrap();
        mount.writable.rename(mount.parent(&old), mount.parent(&new), true).await.unwrap();
        // The kernel knows what it has renamed by this inode, and looks it up again when it is told so.
        assert!(matches!(mount.writable.open_now(ino), Err(ViewError::Stale)));
        assert!(matches!(mount.writable.attributes_now(ino), Err(ViewError::Stale)));
        assert_eq!(mount.open_to_write(ino).await.map(drop), Err("ESTALE"));
        let opened = mount.lookup(&new).unwrap();
        let handle = mount.open_to_write(opened).await.unwrap();
        assert_eq!(handle.size().unwrap(), contents.all[3].len() as u64);
        mount.writable.release(&handle).await;
        assert!(mount.writable.table.is_empty());
        assert_eq!(mount.lookup(&old), Err("ENOENT"));
    });
}

#[test]
fn what_has_come_between_two_mounts_is_found_at_once() {
    in_runtime(async {
        let place = tempfile::tempdir().unwrap();
        let contents = Contents::new();
        let path = format!("{}/v1", DIRS[0]);
        let mount = Mount::open(place.path());
        mount.write(&path, &contents.all[3], 1, Closing::Once).await.unwrap();
        mount.end().await;
        for blob in &contents.all[..2] {
            let blobs = place.path().join("blobs");
            std::fs::write(blobs.join(Digest::sha256(blob).to_string()), blob).unwrap();
        }
        let mount = Mount::open(place.path());
        let status = mount.status();
        assert!(!status.contains("waiting"), "it waits for nothing: {status}");
        mount.writable.look_again().await;
        assert_eq!(mount.writable.waiting(), 0, "{}", mount.status());
        assert!(place.path().join(&path).is_file());
    });
}

#[test]
fn space_that_was_set_aside_is_not_taken_for_what_is_written_into_it() {
    in_runtime(async {
        let place = tempfile::tempdir().unwrap();
        let mount = Mount::open(place.path());
        // Enough to be hashed while it is written.
        let content = Bytes::from_iter(
            (0..12_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8),
        );
        let path = format!("blobs/{}", Digest::sha256(&content));
        for round in 0..8 {
            let handle = mount.open_empty(&path).await.unwrap();
            let (to_write, content) = (handle.clone(), content.clone());
            let written = move || {
                let Handle::Pending(file) = &*to_write else { panic!("it is not pending") };
                file.allocate(0, 0, content.len() as u64).unwrap();
                let length = (64 << 10) << (round % 4);
                for (number, chunk) in content.chunks(length).enumerate() {
                    file.write((number * length) as u64, chunk).unwrap();
                }
            };
            tokio::task::spawn_blocking(written).await.unwrap();
            outcome(mount.writable.flush(&handle, CALLER).await).unwrap();
            mount.writable.release(&handle).await;
            let (parent, name) = mount.parent(&path);
            mount.writable.unlink(parent, name).await.unwrap();
        }
    });
}

#[test]
fn a_link_of_what_waits_is_a_copy() {
    in_runtime(async {
        let place = tempfile::tempdir().unwrap();
        let contents = Contents::new();
        let mount = Mount::open(place.path());
        let [path, linked] = ["v1", ".y"].map(|name| format!("{}/{name}", DIRS[0]));
        mount.write(&path, &contents.all[3], 1, Closing::Once).await.unwrap();
        let (parent, name) = mount.parent(&linked);
        mount.writable.link(mount.lookup(&path).unwrap(), parent, name).await.unwrap();
        mount.write(&path, &contents.all[5], 1, Closing::Once).await.unwrap();
        assert_eq!(mount.read(&linked).await, Ok(Some(contents.all[3].clone())));
    });
}

#[test]
fn a_full_disk_is_told_once() {
    let full = std::io::Error::from_raw_os_error(28);
    let error = backend::Error::io(Path::new("images/blobs/x"), "writing", full);
    assert_eq!(
        super::publish::failed(&error).to_string(),
        "images_dir: writing images/blobs/x: No space left on device (os error 28)"
    );
}
