//! Random sequences of what programs do, against a simple model in memory.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ffi::OsStr,
    sync::{Arc, Mutex},
    time::Duration,
};

use super::*;
use crate::{
    backend::images_dir::Linking,
    image::{Manifest, Platform},
    namespace::{Changes, ROOT, Settings},
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

/// What a name is, worked out plainly.
enum Meaning {
    Dot,
    Blob(String),
    Tag,
    Digest(String),
}

fn meaning(path: &str) -> Meaning {
    let (dir, name) = path.rsplit_once('/').unwrap();
    match (dir, name) {
        (_, name) if name.starts_with('.') => Meaning::Dot,
        ("blobs", name) => Meaning::Blob(name.to_owned()),
        (_, name) if name.contains(':') => Meaning::Digest(name.to_owned()),
        _ => Meaning::Tag,
    }
}

fn dir_of(path: &str) -> &str {
    path.rsplit_once('/').unwrap().0
}

fn manifest(content: &Bytes) -> Option<Manifest> {
    Manifest::parse(content.clone(), None).ok()
}

fn digest(content: &Bytes) -> String {
    Digest::sha256(content).to_string()
}

/// The model: what has been published, what waits, and what begins with a dot.
#[derive(Clone, Default, Debug)]
struct Model {
    published: BTreeMap<String, Bytes>,
    waiting: BTreeMap<String, Bytes>,
    dots: BTreeMap<String, Bytes>,
}

type Outcome = std::result::Result<(), &'static str>;

impl Model {
    fn lacks(&self, content: &Bytes, dir: &str) -> bool {
        let manifest = manifest(content).unwrap();
        let lacks = |path: String| !self.published.contains_key(&path);
        let mut children = manifest.children().iter();
        manifest.blobs().any(|blob| lacks(format!("blobs/{}", blob.digest)))
            || children.any(|child| lacks(format!("{dir}/{}", child.digest)))
    }

    fn settle(&mut self) {
        loop {
            let ready = self.waiting.iter().find(|(path, c)| !self.lacks(c, dir_of(path)));
            let Some((path, content)) = ready.map(|(p, c)| (p.clone(), c.clone())) else { return };
            self.waiting.remove(&path);
            self.published.insert(path, content);
        }
    }

    /// Whether `content` may have this name.
    fn fits(path: &str, content: &Bytes) -> bool {
        match meaning(path) {
            Meaning::Dot => true,
            Meaning::Blob(name) => digest(content) == name,
            Meaning::Tag => manifest(content).is_some(),
            Meaning::Digest(name) => manifest(content).is_some() && digest(content) == name,
        }
    }

    /// `content` is whole under this name.
    fn put(&mut self, path: &str, content: &Bytes) {
        match meaning(path) {
            Meaning::Dot => drop(self.dots.insert(path.to_owned(), content.clone())),
            Meaning::Blob(_) => drop(self.published.insert(path.to_owned(), content.clone())),
            Meaning::Tag | Meaning::Digest(_) => {
                // Children that another repository has come with it.
                let dir = dir_of(path);
                for child in manifest(content).unwrap().children() {
                    let found = DIRS.iter().find_map(|other| {
                        self.published.get(&format!("{other}/{}", child.digest)).cloned()
                    });
                    if let Some(found) = found.filter(|found| !self.lacks(found, dir)) {
                        let path = format!("{dir}/{}", child.digest);
                        self.published.entry(path).or_insert(found);
                    }
                }
                self.waiting.insert(path.to_owned(), content.clone());
            }
        }
        self.settle();
    }

    fn write(&mut self, path: &str, content: &Bytes) -> Outcome {
        // Without a byte it is not written at all, unless it has been before.
        if !Self::fits(path, content) {
            self.waiting.remove(path);
            return Err("EIO");
        }
        self.waiting.remove(path);
        self.put(path, content);
        Ok(())
    }

    /// What is read under a name; `None` if it waits.
    fn read(&self, path: &str) -> std::result::Result<Option<Bytes>, &'static str> {
        let found = self.dots.get(path).or_else(|| self.published.get(path));
        match (found, self.waiting.contains_key(path)) {
            (Some(found), _) => Ok(Some(found.clone())),
            (None, true) => Ok(None),
            (None, false) => Err("ENOENT"),
        }
    }

    fn is_named(&self, path: &str) -> bool {
        let names = |content: &Bytes, name: &str| {
            manifest(content).is_some_and(|m| {
                let mut children = m.children().iter();
                m.blobs().any(|blob| blob.digest.to_string() == name)
                    || children.any(|child| child.digest.to_string() == name)
            })
        };
        let by_waiting = |name: &str| self.waiting.values().any(|content| names(content, name));
        match meaning(path) {
            Meaning::Dot | Meaning::Tag => false,
            Meaning::Blob(name) => {
                by_waiting(&name) || self.published.values().any(|content| names(content, &name))
            }
            Meaning::Digest(name) => {
                let mut here = self.published.iter().filter(|(p, _)| dir_of(p) == dir_of(path));
                by_waiting(&name)
                    || here.any(|(other, content)| {
                        names(content, &name)
                            || matches!(meaning(other), Meaning::Tag) && digest(content) == name
                    })
            }
        }
    }

    fn unlink(&mut self, path: &str) -> Outcome {
        self.read(path)?;
        self.dots.remove(path);
        let was_waiting = self.waiting.remove(path).is_some();
        if !self.published.contains_key(path) {
            assert!(was_waiting || matches!(meaning(path), Meaning::Dot));
            return Ok(());
        }
        if self.is_named(path) {
            return Err("EBUSY");
        }
        self.published.remove(path);
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> Outcome {
        if from == to {
            return Ok(());
        }
        self.read(from)?;
        if let Some(published) = self.published.get(from).cloned() {
            if !matches!(meaning(from), Meaning::Tag) {
                return Err("EPERM");
            }
            if !Self::fits(to, &published) {
                return Err("EIO");
            }
            self.waiting.remove(to);
            self.put(to, &published);
            return self.unlink(from);
        }
        let (content, was_waiting) = match self.waiting.get(from) {
            Some(content) => (content.clone(), true),
            None => (self.dots[from].clone(), false),
        };
        if !Self::fits(to, &content) {
            return Err("EIO");
        }
        if was_waiting {
            self.waiting.remove(from);
        } else {
            self.dots.remove(from);
        }
        self.waiting.remove(to);
        self.put(to, &content);
        Ok(())
    }

    fn link(&mut self, from: &str, to: &str) -> Outcome {
        self.read(from)?;
        if self.read(to).is_ok() {
            return Err("EEXIST");
        }
        if matches!(meaning(from), Meaning::Blob(_)) {
            return Err("EPERM");
        }
        let content = self.published.get(from).or_else(|| self.waiting.get(from));
        let content = content.or_else(|| self.dots.get(from)).unwrap().clone();
        if !Self::fits(to, &content) {
            return Err("EIO");
        }
        self.put(to, &content);
        Ok(())
    }
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

    async fn write(&self, path: &str, content: &Bytes, pieces: usize) -> Outcome {
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
        let handle = Arc::new(handle);
        let length = content.len().div_ceil(pieces.max(1)).max(1);
        let mut chunks: Vec<(usize, Bytes)> = (0..content.len())
            .step_by(length)
            .map(|at| (at, content.slice(at..(at + length).min(content.len()))))
            .collect();
        if pieces.is_multiple_of(2) {
            chunks.reverse();
        }
        let to_write = handle.clone();
        let written = move || {
            let Handle::Pending(file) = &*to_write else { panic!("it is not pending") };
            chunks.iter().try_for_each(|(at, chunk)| file.write(*at as u64, chunk))
        };
        tokio::task::spawn_blocking(written).await.unwrap().unwrap();
        let flushed = outcome(self.writable.flush(&handle, CALLER).await);
        self.closed.lock().unwrap().push_back(handle);
        flushed
    }

    async fn write_blobs(&self, blobs: &[Bytes]) {
        for blob in blobs {
            let path = format!("blobs/{}", Digest::sha256(blob));
            self.write(&path, blob, 1).await.unwrap();
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
        let what = random.below(20);
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
                done.push(format!("write {path} {:?}", &content[..content.len().min(60)]));
                let pieces = random.below(4) + 1;
                (model.write(&path, content), mount.write(&path, content, pieces).await)
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
                mount.let_go_but(0).await;
                drop(mount);
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
        waiting.write(&path, &contents.all[3], 1).await.unwrap();
        let other = Mount::open(place.path());
        other.write_blobs(&contents.all[..2]).await;
        other.write(&path, &contents.all[3], 1).await.unwrap();
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
        mount.write(&path, &contents.all[3], 1).await.unwrap();
        let [file] = &kept()[..] else { panic!("{:?}", kept()) };
        let content = std::fs::read(file).unwrap();
        mount.write_blobs(&contents.all[..2]).await;
        assert_eq!(kept(), Vec::<std::path::PathBuf>::new());
        mount.let_go_but(0).await;
        drop(mount);
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
