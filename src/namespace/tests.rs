//! The view without a kernel, over a source that counts what it is asked.

mod model;

use std::{
    collections::HashMap,
    ffi::OsStr,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use proptest::prelude::*;

use super::{
    Attributes, Entry, Found, Handle, Listing, Namespace, ROOT, Settings, View, ViewError,
};
use crate::{
    backend::{
        Attachments, Backend, Blobs, BoxStream, ByteStream, Capabilities, Error, Kind, Names,
        Result, Tags, images_dir::ImagesDir,
    },
    cache::{Cache, CacheConfig},
    image::{Descriptor, Digest, Manifest, Reference, Repository},
    layer::Kind as FileKind,
    rootfs::Profiles,
    transfer::Options,
    util::Budget,
};

const CONFIG: &[u8] = br#"{"os":"linux","architecture":"amd64"}"#;
const LAYER: &[u8] = b"a layer";

/// A registry in memory.
#[derive(Default)]
struct Source {
    tags: Mutex<Vec<(Reference, Manifest)>>,
    blobs: Mutex<HashMap<Digest, Bytes>>,
    asked: AtomicUsize,
    broken: Mutex<bool>,
}

struct Whole(Option<Bytes>);

#[async_trait]
impl ByteStream for Whole {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        Ok(self.0.take().filter(|content| !content.is_empty()))
    }
}

impl Source {
    fn put(&self, name: &str, comment: &str) -> Manifest {
        self.put_with(name, comment, LAYER)
    }

    /// An image of its own for each comment, with this layer.
    fn put_with(&self, name: &str, comment: &str, layer: &'static [u8]) -> Manifest {
        let descriptor = |kind: &str, content: &'static [u8]| {
            let digest = Digest::sha256(content);
            self.blobs.lock().unwrap().insert(digest, Bytes::from_static(content));
            format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":{}}}"#, content.len())
        };
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","annotations":{{"c":"{comment}"}},"config":{},"layers":[{}]}}"#,
            descriptor("application/vnd.oci.image.config.v1+json", CONFIG),
            descriptor("application/vnd.oci.image.layer.v1.tar", layer),
        );
        let manifest = Manifest::parse(text.into(), None).unwrap();
        self.remove(name);
        self.tags.lock().unwrap().push((name.parse().unwrap(), manifest.clone()));
        manifest
    }

    fn remove(&self, name: &str) {
        let name: Reference = name.parse().unwrap();
        self.tags.lock().unwrap().retain(|(known, _)| *known != name);
    }

    fn asked(&self) -> usize {
        self.asked.swap(0, Ordering::Relaxed)
    }
}

#[async_trait]
impl Names for Source {
    fn capabilities(&self) -> Capabilities {
        Capabilities::REGISTRY
    }

    fn side(&self, _: &Repository) -> String {
        "registry r".to_owned()
    }

    async fn head(&self, reference: &Reference) -> Result<Option<Digest>> {
        Ok(Some(self.manifest(reference).await?.digest()))
    }

    async fn manifest(&self, reference: &Reference) -> Result<Manifest> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let error = |kind| Error::new("registry r", format_args!("looking up {reference}"), kind);
        if *self.broken.lock().unwrap() {
            return Err(error(Kind::Connect("it is down".into())));
        }
        let tags = self.tags.lock().unwrap();
        let found = tags.iter().find(|(name, manifest)| {
            name == reference
                || (name.repository() == reference.repository()
                    && reference.digest() == Some(manifest.digest()))
        });
        found.map(|(_, manifest)| manifest.clone()).ok_or(error(Kind::NotFound(String::new())))
    }
}

#[async_trait]
impl Blobs for Source {
    async fn read(
        &self,
        _: &Repository,
        blob: &Descriptor,
        range: Range<u64>,
    ) -> Result<BoxStream> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let content = self.blobs.lock().unwrap()[&blob.digest].clone();
        let range = range.start as usize..range.end as usize;
        Ok(Box::new(Whole(Some(content.slice(range)))))
    }
}

#[async_trait]
impl Attachments for Source {
    async fn referrers(&self, _: &Repository, _: Digest) -> Result<Option<Vec<Descriptor>>> {
        Ok(None)
    }

    async fn tags(&self, _: &Repository) -> Result<Tags> {
        Ok(Tags { names: Vec::new(), complete: true })
    }
}

fn settings(tag_ttl: Duration) -> Settings {
    Settings {
        profiles: Profiles::Off,
        trusted_indexes: Vec::new(),
        options: Options::default(),
        tag_ttl,
        platform: "linux/amd64".parse().unwrap(),
        patience: Duration::from_secs(10),
        verify_first: false,
        budget: Budget::unlimited(),
    }
}

/// Whether what was found is a directory.
fn is_directory(attributes: &Attributes) -> bool {
    attributes.kind == FileKind::Dir
}

/// A view of an empty directory.
struct Scene {
    source: Arc<Source>,
    view: Arc<View>,
    _home: tempfile::TempDir,
}

fn scene(tag_ttl: Duration, offline: bool) -> Scene {
    scene_with_cache(tag_ttl, offline, 1 << 20)
}

fn scene_with_cache(tag_ttl: Duration, offline: bool, bytes: u64) -> Scene {
    let home = tempfile::tempdir().unwrap();
    let root = home.path().join("images");
    std::fs::create_dir(&root).unwrap();
    let cache = Cache::open(CacheConfig::new(home.path().join("cache"), bytes)).unwrap();
    let source = Arc::new(Source::default());
    let settings = settings(tag_ttl);
    let given = (!offline).then(|| source.clone() as Arc<dyn Backend>);
    let view = View::new(ImagesDir::open(&root).unwrap(), given, Some(cache), &settings);
    Scene { source, view, _home: home }
}

impl Scene {
    /// Walks to `path`, as the kernel does.
    async fn walk(&self, path: &str) -> std::result::Result<Option<Entry>, ViewError> {
        let root = Attributes::dot(ROOT);
        let mut entry = Entry { attributes: root, ttl: Duration::ZERO };
        for name in path.split('/') {
            let found = match self.view.lookup(entry.attributes.ino, OsStr::new(name))? {
                Found::Ask(question) => self.view.find_out(&question).await?,
                found => found,
            };
            match found {
                Found::Entry(found) => entry = found,
                Found::Absent(_) => return Ok(None),
                Found::Ask(_) => panic!("it has been found out"),
            }
        }
        Ok(Some(entry))
    }

    async fn read(&self, ino: u64) -> Bytes {
        let handle = self.view.open(ino).await.unwrap();
        read(&handle).await
    }

    fn names(&self, ino: u64) -> Vec<String> {
        let listing = self.view.list_now(ino).unwrap().unwrap();
        names(&listing).into_iter().map(|(name, _)| name).collect()
    }
}

/// The entries of a directory: names, and which are directories.
fn names(listing: &Listing) -> Vec<(String, bool)> {
    let entries = (0..listing.len()).map(|at| listing.entry(at).unwrap());
    entries.map(|(name, kind)| (name.to_str().unwrap().into(), kind == FileKind::Dir)).collect()
}

async fn read(handle: &Handle) -> Bytes {
    match handle.read_now(0, 1 << 20) {
        Some(content) => content.unwrap(),
        None => handle.read(0, 1 << 20).await.unwrap(),
    }
}

const LONG: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn what_is_looked_up_is_there_and_listed() {
    let scene = scene(LONG, false);
    let manifest = scene.source.put("r.io/a/b:1", "");
    assert_eq!(scene.names(ROOT), ["blobs"]);
    let entry = scene.walk("r.io/a/b/manifests/1").await.unwrap().unwrap();
    assert_eq!(entry.attributes.size, manifest.bytes().len() as u64);
    assert_eq!(scene.read(entry.attributes.ino).await, manifest.bytes());
    scene.source.asked();

    // Now nothing has to be asked any more.
    assert_eq!(scene.names(ROOT), ["blobs", "r.io"]);
    let blobs = scene.walk("blobs").await.unwrap().unwrap().attributes.ino;
    assert_eq!(scene.names(blobs).len(), 2);
    let layer = format!("blobs/{}", Digest::sha256(LAYER));
    let layer = scene.walk(&layer).await.unwrap().unwrap();
    assert_eq!((layer.attributes.size, layer.attributes.mtime), (LAYER.len() as u64, (1, 0)));
    let again = scene.walk("r.io/a/b/manifests/1").await.unwrap().unwrap();
    assert_eq!(again.attributes, entry.attributes);
    assert_eq!(scene.source.asked(), 0);
    assert_eq!(scene.read(layer.attributes.ino).await, LAYER);
    assert_eq!(scene.read(layer.attributes.ino).await, LAYER);
    assert_eq!(scene.source.asked(), 1, "the second time it is in the cache");
}

#[tokio::test]
async fn what_no_registry_can_have_is_asked_of_none() {
    let scene = scene(LONG, false);
    for path in [
        ".git",
        "Trash",
        "images",
        "r.io/.git",
        "r.io/UP/x",
        "r.io/a/manifests/.swp",
        "blobs/x",
        ".imgfs/.git",
        ".imgfs/r.io/a/manifests",
        "blobs/.imgfs",
        "r.io/a/manifests/-",
        "blobs/sha256:0",
    ] {
        assert!(scene.walk(path).await.unwrap().is_none(), "{path}");
    }
    let unknown = format!("blobs/{}", Digest::sha256(b"nobody's"));
    assert!(scene.walk(&unknown).await.unwrap().is_none());
    assert_eq!(scene.source.asked(), 0);
    assert!(scene.walk("r.io/a/manifests/none").await.unwrap().is_none());
    assert_eq!(scene.source.asked(), 1);
}

#[tokio::test]
async fn a_moved_tag_is_another_file() {
    let scene = scene(Duration::ZERO, false);
    let old = scene.source.put("r.io/a:1", "one");
    let before = scene.walk("r.io/a/manifests/1").await.unwrap().unwrap();
    let open = scene.view.open(before.attributes.ino).await.unwrap();
    let new = scene.source.put("r.io/a:1", "two");
    let after = scene.walk("r.io/a/manifests/1").await.unwrap().unwrap();
    assert_eq!(before.attributes.size, after.attributes.size);
    assert_ne!(before.attributes.ino, after.attributes.ino);
    assert_ne!(before.attributes.mtime, after.attributes.mtime, "rsync must see it");
    assert_eq!(read(&open).await, old.bytes(), "who has it open keeps it");
    assert_eq!(scene.read(after.attributes.ino).await, new.bytes());
}

#[tokio::test]
async fn what_was_declared_is_listed_before_anybody_has_looked() {
    let scene = scene(LONG, false);
    scene.view.declare(&"r.io/a:1".parse().unwrap());
    let manifests = scene.walk("r.io/a/manifests").await.unwrap().unwrap().attributes.ino;
    assert_eq!(scene.names(manifests), ["1"]);
    let listing = scene.view.list_now(manifests).unwrap().unwrap();
    let entry = scene.view.listed(&listing, 0).unwrap().unwrap();
    assert_eq!(entry.ttl, Duration::ZERO, "so that it is looked up when it matters");
    assert_eq!(scene.source.asked(), 0);
    scene.source.put("r.io/a:1", "");
    assert!(scene.walk("r.io/a/manifests/1").await.unwrap().unwrap().attributes.size > 0);
}

#[tokio::test]
async fn failures_pass() {
    let scene = scene(LONG, false);
    scene.source.put("r.io/a:1", "");
    *scene.source.broken.lock().unwrap() = true;
    let failed = scene.walk("r.io/a/manifests/1").await;
    assert!(matches!(failed, Err(ViewError::Tree(_))), "{failed:?}");
    *scene.source.broken.lock().unwrap() = false;
    assert!(scene.walk("r.io/a/manifests/1").await.unwrap().is_some());
}

#[tokio::test]
async fn offline_only_what_is_here_is_there() {
    let scene = scene(LONG, true);
    let failed = scene.walk("r.io/a/manifests/1").await;
    assert!(matches!(failed, Err(ViewError::Offline(_))), "{failed:?}");
    let local = scene.view.dir().root().join("r.io/a/manifests");
    std::fs::create_dir_all(&local).unwrap();
    std::fs::write(local.join("2"), "{}").unwrap();
    let entry = scene.walk("r.io/a/manifests/2").await.unwrap().unwrap();
    assert_eq!(scene.read(entry.attributes.ino).await, "{}");
    assert_eq!(scene.source.asked(), 0);
}

proptest! {
    /// Whatever is looked up, listed and forgotten in whatever order: in the end the kernel knows
    /// just what it was told of and has not forgotten, and a name always has the same number.
    #[test]
    fn inodes_are_counted(steps in proptest::collection::vec((0..6usize, 0..4u64), 1..60)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let _entered = runtime.enter();
        let scene = scene(LONG, false);
        scene.source.put("r.io/a:1", "");
        let names = ["r.io", "blobs", "other.io", "localhost", "no", ".git"];
        let mut told = std::collections::HashMap::<u64, (usize, u64)>::new();
        for (at, times) in steps {
            if let Found::Entry(entry) = scene.view.lookup(ROOT, OsStr::new(names[at])).unwrap() {
                let known = told.entry(entry.attributes.ino).or_insert((at, 0));
                prop_assert_eq!(known.0, at);
                known.1 += 1;
                let forget = times.min(known.1);
                known.1 -= forget;
                scene.view.forget(entry.attributes.ino, forget);
            }
        }
        let left = told.values().filter(|(_, count)| *count > 0).count();
        prop_assert_eq!(scene.view.known_inodes(), left);
    }
}

#[test]
fn nobody_is_shown_more_than_he_may_do() {
    // The mode, whether the group is the one that is shown, and what is shown of a file.
    for (mode, same, shown) in [
        (0o644, true, 0o644),
        (0o644, false, 0o644),
        (0o600, false, 0o600),
        (0o640, true, 0o640),
        (0o640, false, 0o600),
        (0o604, true, 0o604),
        (0o604, false, 0o600),
        (0o7777, false, 0o644),
        (0o000, true, 0o000),
    ] {
        let access = super::LocalAccess::new(mode, 5);
        let of = if same { 5 } else { 6 };
        assert_eq!(access.shown(0o644, of), shown, "{mode:o} {same}");
    }
}
