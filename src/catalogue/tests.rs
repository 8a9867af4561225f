//! What is asked of a source, and for how long an answer holds.

use std::{
    collections::HashMap,
    fs,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;

use super::{Catalogue, Settings};
use crate::{
    backend::{
        Attachments, Backend, Blobs, BoxStream, Capabilities, Error, Kind, Names, Result, Tags,
        images_dir::ImagesDir,
    },
    image::{Descriptor, Digest, Manifest, Reference, Repository},
    transfer::Options,
    util::{Budget, locked},
};

const LONG: Duration = Duration::from_secs(3600);

const IMAGE: &str = "quay.io/a/b:1";

/// A registry of manifests, which counts what it is asked.
#[derive(Default)]
struct Source {
    manifests: Mutex<HashMap<Reference, Manifest>>,
    is_down: AtomicBool,
    heads: AtomicUsize,
    gets: AtomicUsize,
}

impl Source {
    fn error(&self, reference: &Reference) -> Error {
        let kind = match self.is_down.load(Ordering::Relaxed) {
            true => Kind::Connect("it is down".into()),
            false => Kind::NotFound(String::new()),
        };
        Error::new("registry r", format_args!("looking up {reference}"), kind)
    }

    fn find(&self, reference: &Reference) -> Result<Manifest> {
        if self.is_down.load(Ordering::Relaxed) {
            return Err(self.error(reference));
        }
        let found = locked(&self.manifests).get(reference).cloned();
        found.ok_or_else(|| self.error(reference))
    }

    /// What it has been asked since it was asked this last: heads and manifests.
    fn asked(&self) -> (usize, usize) {
        (self.heads.swap(0, Ordering::Relaxed), self.gets.swap(0, Ordering::Relaxed))
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
        self.heads.fetch_add(1, Ordering::Relaxed);
        self.find(reference).map(|manifest| Some(manifest.digest()))
    }

    async fn manifest(&self, reference: &Reference) -> Result<Manifest> {
        self.gets.fetch_add(1, Ordering::Relaxed);
        self.find(reference)
    }
}

#[async_trait]
impl Blobs for Source {
    async fn read(&self, _: &Repository, blob: &Descriptor, _: Range<u64>) -> Result<BoxStream> {
        let kind = Kind::NotFound(String::new());
        Err(Error::new("registry r", format_args!("reading blob {}", blob.digest), kind))
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

/// An index of nothing, which is the smallest image.
fn index(comment: &str) -> Manifest {
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[],"annotations":{{"c":"{comment}"}}}}"#
    );
    Manifest::parse(text.into(), None).unwrap()
}

struct Scene {
    source: Arc<Source>,
    catalogue: Catalogue,
    home: tempfile::TempDir,
}

fn scene(tag_ttl: Duration, absent_ttl: Duration) -> Scene {
    let home = tempfile::tempdir().unwrap();
    let source = Arc::new(Source::default());
    let settings = Settings { options: Options::default(), tag_ttl, absent_ttl };
    let dir = ImagesDir::open(home.path()).unwrap();
    let given = Some(source.clone() as Arc<dyn Backend>);
    let catalogue = Catalogue::new(dir, given, settings, &Budget::unlimited());
    Scene { source, catalogue, home }
}

impl Scene {
    fn put(&self, name: &str, manifest: &Manifest) {
        locked(&self.source.manifests).insert(name.parse().unwrap(), manifest.clone());
    }

    /// Puts an image into the directory in the layout of KubeKey 4.0.5, which has no registry in its paths.
    fn put_local(&self, repository: &str, tag: &str, manifest: &Manifest) {
        let dir = self.home.path().join(repository).join("manifests");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(tag), manifest.bytes()).unwrap();
    }
}

#[tokio::test]
async fn asking_for_a_tag_does_not_make_it_hold_longer() {
    let scene = scene(LONG, Duration::ZERO);
    let name: Reference = IMAGE.parse().unwrap();
    let manifest = index("");
    scene.put(IMAGE, &manifest);
    let holds_until = || locked(&scene.catalogue.inner.known).holds_until(&name);
    assert_eq!(scene.catalogue.resolve(&name).await.unwrap().digest, manifest.digest());
    let first = holds_until();
    assert!(first.is_some());
    assert_eq!(scene.source.asked(), (0, 1));
    for _ in 0..3 {
        assert_eq!(scene.catalogue.resolve(&name).await.unwrap().digest, manifest.digest());
        assert_eq!(scene.catalogue.resolved(&name), Some(manifest.digest()));
        assert_eq!(scene.source.asked(), (0, 0));
        assert_eq!(holds_until(), first, "it was asked for, and not looked up");
    }
}

#[tokio::test]
async fn a_tag_whose_time_is_over_is_looked_up_with_one_head() {
    let scene = scene(Duration::ZERO, Duration::ZERO);
    let name: Reference = IMAGE.parse().unwrap();
    let (old, new) = (index("old"), index("new"));
    scene.put(IMAGE, &old);
    assert_eq!(scene.catalogue.resolve(&name).await.unwrap().digest, old.digest());
    assert_eq!(scene.source.asked(), (0, 1));
    assert_eq!(scene.catalogue.resolve(&name).await.unwrap().digest, old.digest());
    assert_eq!(scene.source.asked(), (1, 0));
    scene.put(IMAGE, &new);
    assert_eq!(scene.catalogue.resolve(&name).await.unwrap().digest, new.digest());
    assert_eq!(scene.source.asked(), (1, 1));
}

#[tokio::test]
async fn what_is_not_there_is_not_asked_for_again_at_once() {
    let scene = scene(LONG, LONG);
    let name: Reference = IMAGE.parse().unwrap();
    for expected in [1, 0, 0] {
        assert!(scene.catalogue.look_up(&name).await.unwrap_err().is_not_found());
        assert_eq!(scene.source.asked().1, expected);
    }
}

#[tokio::test]
async fn an_image_that_only_another_layout_has_is_found_whatever_the_registry_says() {
    for is_down in [false, true] {
        let scene = scene(LONG, LONG);
        let name: Reference = "docker.io/a/b:1".parse().unwrap();
        let manifest = index("");
        scene.put_local("a/b", "1", &manifest);
        scene.source.is_down.store(is_down, Ordering::Relaxed);
        scene.catalogue.look_up(&name).await.unwrap();
        let known = scene.catalogue.manifest(&name).unwrap();
        assert_eq!(known.manifest.digest(), manifest.digest());
        assert_eq!(scene.catalogue.resolved(&name), Some(manifest.digest()));
        // And when its time is over, too.
        scene.catalogue.look_up(&name).await.unwrap();
    }
}
