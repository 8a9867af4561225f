//! What every backend has to do, whatever its medium: one suite, run against all of them.
//!
//! Sources are filled with the same image, in the way of each medium, and asked the same questions. Sinks get the same
//! image piece by piece, wrong pieces among them, and from many sides at once.

use std::{ops::Range, path::Path, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    Backend, BoxStream, ByteStream, Content, Error, Kind, Lister, LocalFile, ManifestName,
    NameBelow, Opened, PackedImage, Packer, Result, Sink,
    archive::{self, ArchivePacker, PackFormat},
    images_dir::{ImagesDir, Linking},
    object_store::ObjectTree,
    oci_layout::{self, OciLayout},
    skopeo_dir::{self, SkopeoDirPacker},
};
use crate::image::{Descriptor, Digest, Manifest, Reference, Repository};

/// A blob that is at hand.
struct Given {
    bytes: Bytes,
    /// Where it breaks off, if it does.
    end: Option<usize>,
}

#[async_trait]
impl Content for Given {
    async fn read(&self, offset: u64) -> Result<BoxStream> {
        let pieces =
            self.bytes.slice(offset as usize..).chunks(1000).map(Bytes::copy_from_slice).collect();
        Ok(Box::new(Pieces { pieces, end: self.end, read: 0 }))
    }

    async fn file(&self) -> Result<Option<LocalFile>> {
        Ok(None)
    }

    fn side(&self) -> String {
        "the test".to_owned()
    }

    fn moved(&self, _: u64) {}

    fn retransmitted(&self, _: u64) {}
}

struct Pieces {
    pieces: std::collections::VecDeque<Bytes>,
    end: Option<usize>,
    read: usize,
}

#[async_trait]
impl ByteStream for Pieces {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        if self.end.is_some_and(|end| self.read >= end) {
            return Err(Error::new("the test", "reading", Kind::Interrupted("on purpose".into())));
        }
        let piece = self.pieces.pop_front();
        self.read += piece.as_ref().map_or(0, Bytes::len);
        Ok(piece)
    }
}

/// An image: its blobs and its manifest.
struct Sample {
    blobs: Vec<(Descriptor, Bytes)>,
    manifest: Manifest,
}

fn blob(media_type: &str, bytes: impl Into<Bytes>) -> (Descriptor, Bytes) {
    let bytes = bytes.into();
    (Descriptor::new(media_type, Digest::sha256(&bytes), bytes.len() as u64), bytes)
}

fn sample() -> Sample {
    let layers: Vec<(Descriptor, Bytes)> = (0..3u8)
        .map(|at| {
            let content: Vec<u8> =
                (0..20_000u32).map(|n| (n * (u32::from(at) + 1) / 7) as u8).collect();
            blob("application/vnd.oci.image.layer.v1.tar", content)
        })
        .collect();
    let diff_ids: Vec<String> =
        layers.iter().map(|(layer, _)| format!("\"{}\"", layer.digest)).collect();
    let config = format!(
        r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        diff_ids.join(",")
    );
    let config = blob("application/vnd.oci.image.config.v1+json", config);
    let text = |d: &Descriptor| {
        format!(r#"{{"mediaType":"{}","digest":"{}","size":{}}}"#, d.media_type, d.digest, d.size)
    };
    let listed: Vec<String> = layers.iter().map(|(layer, _)| text(layer)).collect();
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[{}]}}"#,
        text(&config.0),
        listed.join(",")
    );
    let manifest = Manifest::parse(manifest.into_bytes().into(), None).unwrap();
    Sample { blobs: std::iter::once(config).chain(layers).collect(), manifest }
}

fn repository() -> Repository {
    Repository::new("quay.io", "team/app").unwrap()
}

async fn fill(sink: &dyn Sink, sample: &Sample, tag: &str) {
    for (descriptor, bytes) in &sample.blobs {
        if let Opened::Receive(receiver) = sink.open(&repository(), descriptor, &[]).await.unwrap()
        {
            let content = Arc::new(Given { bytes: bytes.clone(), end: None });
            receiver.receive(content).await.unwrap();
        }
    }
    // Children of indexes, and what is asked for by its digest.
    for name in [ManifestName::Tag(tag.to_owned()), ManifestName::Pinned, ManifestName::Digest] {
        sink.put(&repository(), &sample.manifest, &name).await.unwrap();
    }
}

async fn pack(packer: &mut dyn Packer, sample: &Sample, tag: &str) {
    let mut blobs: Vec<&(Descriptor, Bytes)> = sample.blobs.iter().collect();
    blobs.sort_by_key(|(descriptor, _)| descriptor.digest);
    for (descriptor, bytes) in blobs {
        let content: Arc<dyn Content> = Arc::new(Given { bytes: bytes.clone(), end: None });
        packer.blob(descriptor, &content).await.unwrap();
    }
    packer.manifest(&sample.manifest).await.unwrap();
    let image = PackedImage {
        name: Some(repository().tagged(tag)),
        manifest: sample.manifest.clone(),
        single: Some(sample.manifest.clone()),
    };
    packer.finish(&[image]).await.unwrap();
}

async fn bytes_of(backend: &dyn Backend, blob: &Descriptor, range: Range<u64>) -> Vec<u8> {
    let mut stream = backend.read(&repository(), blob, range).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next().await.unwrap() {
        assert!(!piece.is_empty(), "an empty piece would look like the end");
        bytes.extend_from_slice(&piece);
    }
    bytes
}

/// What every source answers to the same questions.
async fn answers(name: &str, backend: &dyn Backend, sample: &Sample, tag: &Reference) {
    let digest = sample.manifest.digest();
    let found = backend.manifest(tag).await.unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(found.bytes(), sample.manifest.bytes(), "{name}");
    assert_eq!(found.media_type(), sample.manifest.media_type(), "{name}");
    assert!(matches!(backend.head(tag).await.unwrap(), None | Some(_)), "{name}");
    let pinned = backend.manifest(&repository().pinned(digest)).await.unwrap();
    assert_eq!(pinned.digest(), digest, "{name}");
    for missing in [repository().tagged("missing"), repository().pinned(Digest::sha256(b"missing"))]
    {
        let error = backend.manifest(&missing).await.unwrap_err();
        assert!(error.is_not_found(), "{name}: {error}");
        assert!(!error.to_string().is_empty() && !backend.side(&repository()).is_empty());
    }
    for (blob, bytes) in &sample.blobs {
        let size = blob.size;
        backend.check(&repository(), blob).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        for range in [
            0..size,
            0..1,
            1..size,
            size / 2..size / 2 + 1,
            size - 1..size,
            0..size + 100,
            size..size,
        ] {
            let expected = &bytes[range.start as usize..range.end.min(size) as usize];
            assert_eq!(bytes_of(backend, blob, range.clone()).await, expected, "{name}: {range:?}");
        }
    }
    let (absent, _) = blob("x/y", "not there");
    let read = backend.read(&repository(), &absent, 0..absent.size).await;
    assert!(read.is_err(), "{name}: a blob that is not there cannot be read");
    let tags = backend.tags(&repository()).await.unwrap();
    assert!(
        tags.complete && tags.names.iter().any(|own| Some(own.as_str()) == tag.tag()),
        "{name}: {tags:?}"
    );
}

fn compressed(path: &Path, to: &Path, level: Option<u32>) {
    let bytes = std::fs::read(path).unwrap();
    let packed = match level {
        Some(level) => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
            std::io::Write::write_all(&mut encoder, &bytes).unwrap();
            encoder.finish().unwrap()
        }
        None => zstd::bulk::compress(&bytes, 1).unwrap(),
    };
    std::fs::write(to, packed).unwrap();
}

#[tokio::test]
async fn sources_answer_alike() {
    let (place, sample) = (tempfile::tempdir().unwrap(), sample());
    let at = |name: &str| place.path().join(name);
    let tag = repository().tagged("v1");
    let below: NameBelow = "quay.io/team/app:v1".parse().unwrap();

    let dir = ImagesDir::create(&at("images"), None, Linking::Auto).unwrap();
    fill(&dir, &sample, "v1").await;
    answers("images_dir", &dir, &sample, &tag).await;

    fill(&OciLayout::create(&at("layout"), None, Linking::Auto).unwrap(), &sample, "v1").await;
    let layout = oci_layout::open(&at("layout"), None, None).await.unwrap();
    answers("layout", &layout, &sample, &tag).await;

    let archive_path = at("archive.tar");
    let mut packer = ArchivePacker::create(&archive_path, PackFormat::Oci, None).unwrap();
    pack(&mut packer, &sample, "v1").await;
    compressed(&archive_path, &at("archive.tar.gz"), Some(6));
    compressed(&archive_path, &at("archive.tar.zst"), None);
    for name in ["archive.tar", "archive.tar.gz", "archive.tar.zst"] {
        let kept = (name != "archive.tar").then(|| at("kept"));
        // The second time, the index of a compressed one has been kept.
        for _ in 0..2 {
            let archive = archive::open(&at(name), None, None, kept.clone()).await.unwrap();
            answers(name, &archive, &sample, &tag).await;
        }
    }
    assert_eq!(std::fs::read_dir(at("kept")).unwrap().count(), 2);

    let mut packer = SkopeoDirPacker::create(&at("dir")).unwrap();
    pack(&mut packer, &sample, "v1").await;
    let dir = skopeo_dir::open(&at("dir"), Some(&below)).await.unwrap();
    answers("dir", &dir, &sample, &tag).await;

    let store = ObjectTree::in_memory("a/prefix");
    fill(&store, &sample, "v1").await;
    answers("store", &store, &sample, &tag).await;
}

#[tokio::test]
async fn listers_list_alike() {
    let (place, sample) = (tempfile::tempdir().unwrap(), sample());
    let at = |name: &str| place.path().join(name);
    fill(&OciLayout::create(&at("layout"), None, Linking::Auto).unwrap(), &sample, "v1").await;
    let mut packer = ArchivePacker::create(&at("a.tar"), PackFormat::Oci, None).unwrap();
    pack(&mut packer, &sample, "v1").await;
    let store = ObjectTree::in_memory("");
    fill(&store, &sample, "v1").await;
    let listers: [(&str, Box<dyn Lister>); 3] = [
        ("layout", Box::new(oci_layout::open(&at("layout"), None, None).await.unwrap())),
        ("archive", Box::new(archive::open(&at("a.tar"), None, None, None).await.unwrap())),
        ("store", Box::new(store)),
    ];
    for (name, lister) in listers {
        let listing = lister.images().await.unwrap();
        assert_eq!(listing.warnings, [] as [String; 0], "{name}");
        let [image] = &listing.images[..] else { panic!("{name}: {listing:?}") };
        assert_eq!(image.name, Some(repository().tagged("v1")), "{name}");
        assert_eq!(image.manifest.digest, sample.manifest.digest(), "{name}");
        assert!(!image.is_attachment, "{name}");
    }
}

/// Each sink in its turn.
fn sinks(place: &Path) -> [(&'static str, Arc<dyn Sink>); 3] {
    [
        (
            "images_dir",
            Arc::new(ImagesDir::create(&place.join("images"), None, Linking::Auto).unwrap()),
        ),
        (
            "layout",
            Arc::new(OciLayout::create(&place.join("layout"), None, Linking::Auto).unwrap()),
        ),
        ("store", Arc::new(ObjectTree::in_memory("p"))),
    ]
}

#[tokio::test]
async fn a_blob_is_there_when_all_of_it_is_right_and_not_before() {
    let (place, sample) = (tempfile::tempdir().unwrap(), sample());
    for (name, sink) in sinks(place.path()) {
        let (blob, bytes) = &sample.blobs[1];
        let mut wrong = bytes.to_vec();
        wrong[777] ^= 1;
        let longer = [&bytes[..], b"x"].concat();
        for (content, end) in [
            (Bytes::from(wrong), None),
            (bytes.clone(), Some(3000)),
            (bytes.slice(..500), None),
            (Bytes::from(longer), None),
        ] {
            let opened = sink.open(&repository(), blob, &[]).await.unwrap();
            let Opened::Receive(receiver) = opened else { panic!("{name}: it is not there") };
            // What an interrupted attempt has left is right, as far as it goes.
            let given = Given { bytes: content, end };
            if (receiver.offset() as usize) < given.bytes.len() {
                assert!(receiver.receive(Arc::new(given)).await.is_err(), "{name}");
            }
            assert!(!sink.has(&repository(), blob).await.unwrap(), "{name}");
        }
        let mut attempts = 0;
        loop {
            match sink.open(&repository(), blob, &[]).await.unwrap() {
                Opened::Present => break,
                Opened::Receive(receiver) => {
                    let content = Arc::new(Given { bytes: bytes.clone(), end: None });
                    // A rest that was wrong is thrown away by the attempt that finds it out.
                    let _ = receiver.receive(content).await;
                }
                _ => panic!("{name}: nobody else has it"),
            }
            attempts += 1;
            assert!(attempts < 4, "{name}");
        }
        assert!(sink.has(&repository(), blob).await.unwrap(), "{name}");
    }
}

#[tokio::test]
async fn names_lead_where_they_were_put_last() {
    let (place, sample) = (tempfile::tempdir().unwrap(), sample());
    let text = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
    let other = Manifest::parse(text.as_bytes().to_vec().into(), None).unwrap();
    for (name, sink) in sinks(place.path()) {
        fill(&*sink, &sample, "v1").await;
        let tag = ManifestName::Tag("v1".to_owned());
        let digest = sample.manifest.digest();
        assert!(sink.resolves_to(&repository(), &tag, digest).await, "{name}");
        // The same once more changes nothing.
        sink.put(&repository(), &sample.manifest, &tag).await.unwrap();
        sink.put(&repository(), &other, &tag).await.unwrap();
        let found = sink.manifest(&repository().tagged("v1")).await.unwrap();
        assert_eq!(found.digest(), other.digest(), "{name}");
        assert!(!sink.resolves_to(&repository(), &tag, digest).await, "{name}");
        let error = sink.manifest(&repository().tagged("v2")).await.unwrap_err();
        assert!(error.is_not_found(), "{name}: {error}");
        assert_eq!(sink.manifest(&repository().pinned(digest)).await.unwrap().digest(), digest);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_writers_lose_nothing() {
    const WRITERS: usize = 40;
    let (place, sample) = (tempfile::tempdir().unwrap(), Arc::new(sample()));
    for (name, sink) in sinks(place.path()) {
        let writers = (0..WRITERS).map(|at| {
            let (sink, sample) = (sink.clone(), sample.clone());
            tokio::spawn(async move {
                for (descriptor, bytes) in &sample.blobs {
                    loop {
                        match sink.open(&repository(), descriptor, &[]).await.unwrap() {
                            Opened::Busy => {
                                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                            }
                            Opened::Receive(receiver) => {
                                let content = Arc::new(Given { bytes: bytes.clone(), end: None });
                                receiver.receive(content).await.unwrap();
                                break;
                            }
                            _ => break,
                        }
                    }
                }
                let tag = ManifestName::Tag(format!("v{at}"));
                sink.put(&repository(), &sample.manifest, &tag).await.unwrap();
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.unwrap();
        }
        for at in 0..WRITERS {
            let found = sink.manifest(&repository().tagged(&format!("v{at}"))).await;
            let found = found.unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(found.digest(), sample.manifest.digest(), "{name}");
        }
    }
}

#[tokio::test]
async fn an_archive_takes_back_a_blob_that_is_wrong() {
    let (place, sample) = (tempfile::tempdir().unwrap(), sample());
    let [good, bad] = ["good.tar", "bad.tar"].map(|name| place.path().join(name));
    let mut packer = ArchivePacker::create(&good, PackFormat::Oci, None).unwrap();
    pack(&mut packer, &sample, "v1").await;
    let mut packer = ArchivePacker::create(&bad, PackFormat::Oci, None).unwrap();
    for (content, end) in [("wrong", None), ("this is too long", None), ("broken off", Some(0))] {
        let (descriptor, _) = blob("x/y", "right");
        let given: Arc<dyn Content> = Arc::new(Given { bytes: content.into(), end });
        assert!(packer.blob(&descriptor, &given).await.is_err());
    }
    pack(&mut packer, &sample, "v1").await;
    assert!(std::fs::read(&good).unwrap() == std::fs::read(&bad).unwrap());

    let gone = place.path().join("gone.tar");
    drop(ArchivePacker::create(&gone, PackFormat::Oci, None).unwrap());
    assert_eq!(
        std::fs::read_dir(place.path()).unwrap().count(),
        2,
        "nothing is left of one that was given up"
    );
}
