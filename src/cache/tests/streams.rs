//! Decompressed streams of layers beside blobs: neither is ever taken for the other.

use std::{fs, path::Path, sync::Arc, time::Duration};

use super::{
    super::{Cache, CachedBlob},
    fake::*,
};
use crate::{
    backend::{
        Kind,
        images_dir::cached::{self, ContentId, StreamId},
    },
    image::Digest,
};

fn open_stream(cache: &Cache, fake: &Arc<Fake>, id: StreamId) -> CachedBlob {
    cache.stream(fake.clone(), repository("a"), fake.blob(), id, fake.size())
}

fn files(dir: &Path, below: &str) -> Vec<String> {
    let entries = fs::read_dir(dir.join("cache").join(below)).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_cannot_take_the_place_of_a_stream() {
    let dir = tempfile::tempdir().unwrap();
    let stream = Fake::new(8 * MIB, 1);
    let id = StreamId::new(stream.blob().digest, "by a test");
    // What an attacker could know of the stream: the layer's digest, its size, and how it is named.
    let names = [
        stream.blob().digest,
        Digest::sha256(b"by a test"),
        Digest::sha256(id.to_string().as_bytes()),
    ];
    let attackers = names.map(|digest| Fake::with(noise(8 * MIB, 2), 8 * MIB, digest, 40_000));
    let mut cache = super::fake::cache(dir.path(), 64 * MIB);
    for _ in 0..2 {
        let begun = attackers.each_ref().map(|attacker| attacker.open_in(&cache));
        for (blob, attacker) in begun.iter().zip(&attackers) {
            assert_eq!(blob.read(0, 100_000).await.unwrap(), attacker.part(0, 100_000));
        }
        let opened = open_stream(&cache, &stream, id);
        assert_eq!(opened.read(0, 100_000).await.unwrap(), stream.part(0, 100_000));
        let end = 8 * MIB - 10;
        assert_eq!(opened.read(end, 10).await.unwrap(), stream.part(end, 10));
        // Nobody finds the end of the blob to be right because the stream is.
        for blob in &begun {
            let error = blob.read(end, 10).await.unwrap_err();
            assert!(matches!(error.kind(), Kind::Digest { .. }), "{error}");
            assert!(blob.try_read(end, 10).is_none());
            blob.read(0, 10).await.unwrap();
        }
        drop((begun, opened));
        close(cache).await;
        cache = super::fake::cache(dir.path(), 64 * MIB);
    }
    let opened = open_stream(&cache, &stream, id);
    assert_eq!(read_held(&stream, &opened, 0, 100_000).await, stream.part(0, 100_000));
    assert_eq!(files(dir.path(), "part").len(), 6, "three attackers, each with a map");
    assert_eq!(files(dir.path(), "streams/part").len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_cannot_take_the_place_of_a_blob() {
    let dir = tempfile::tempdir().unwrap();
    let stream = Fake::new(2 * MIB, 1);
    let layer = Fake::with(noise(2 * MIB, 2), 2 * MIB, Digest::sha256(&noise(2 * MIB, 2)), 40_000);
    let id = StreamId::new(layer.blob().digest, "by a test");
    let first = cache(dir.path(), 64 * MIB);
    let opened = open_stream(&first, &stream, id);
    read_all(&stream, &opened, 100_000).await.unwrap();
    until("the stream is whole", || opened.is_whole()).await;
    read_all(&layer, &layer.open_in(&first), 100_000).await.unwrap();
    until("both are whole", || first.stats().complete == 2).await;
    drop(opened);
    close(first).await;
    assert_eq!(files(dir.path(), "whole"), [ContentId::Blob(layer.blob().digest).file_name()]);
    assert_eq!(files(dir.path(), "streams/whole"), [id.to_string()]);
    let second = cache(dir.path(), 64 * MIB);
    assert_eq!(second.stats().complete, 2);
    let (opened, blob) = (open_stream(&second, &stream, id), layer.open_in(&second));
    assert_eq!(read_held(&stream, &opened, 5, 10).await, stream.part(5, 10));
    assert_eq!(read_held(&layer, &blob, 5, 10).await, layer.part(5, 10));
}

/// Version 1 kept streams among the blobs, also in `whole/`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_an_older_version_only_what_is_right_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, parts) = (Fake::new(MIB, 1), Fake::new(4 * MIB, 2));
    let named = Digest::sha256(b"imgfs: the decompressed stream of something");
    let attacked = Fake::with(noise(MIB, 3), MIB, named, 40_000);
    let first = cache(dir.path(), 64 * MIB);
    read_all(&whole, &whole.open_in(&first), 100_000).await.unwrap();
    until("it is sealed", || first.stats().complete == 1).await;
    parts.open_in(&first).read(0, 100).await.unwrap();
    rest(&first).await;
    close(first).await;
    let path = |digest| ContentId::Blob(digest).whole_path(&dir.path().join("cache"));
    let old = fs::File::create(path(named)).unwrap();
    std::io::Write::write_all(&mut &old, &attacked.part(0, usize::MAX)).unwrap();
    cached::seal(&old).unwrap();
    name_as_before(&dir.path().join("cache"));
    fs::write(dir.path().join("cache/version"), cached::VERSION_WITHOUT_STREAMS).unwrap();
    let second = cache(dir.path(), 64 * MIB);
    assert_eq!(fs::read(dir.path().join("cache/version")).unwrap(), cached::VERSION.as_bytes());
    assert_eq!((second.stats().complete, second.stats().blobs), (1, 2));
    read_held(&whole, &whole.open_in(&second), MIB - 5, 5).await;
    read_held(&parts, &parts.open_in(&second), 0, 100).await;
    let error = attacked.open_in(&second).read(MIB - 5, 5).await.unwrap_err();
    assert!(matches!(error.kind(), Kind::Digest { .. }), "{error}");
    assert!(path(whole.blob().digest).exists() && !path(named).exists());
}

/// Gives all files the names that they had before version 3.
fn name_as_before(cache: &std::path::Path) {
    for dir in ["part", "whole", "streams/part", "streams/whole"].map(|dir| cache.join(dir)) {
        for entry in fs::read_dir(&dir).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap().replacen('-', ":", 1);
            fs::rename(entry.path(), dir.join(name)).unwrap();
        }
    }
}

#[tokio::test]
async fn files_whose_names_have_colons_are_renamed() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, parts) = (Fake::new(MIB, 1), Fake::new(4 * MIB, 2));
    let first = cache(dir.path(), 64 * MIB);
    read_all(&whole, &whole.open_in(&first), 100_000).await.unwrap();
    until("it is sealed", || first.stats().complete == 1).await;
    parts.open_in(&first).read(0, 100).await.unwrap();
    rest(&first).await;
    close(first).await;
    let cache_dir = dir.path().join("cache");
    name_as_before(&cache_dir);
    fs::write(cache_dir.join("version"), cached::VERSION_WITH_COLONS).unwrap();
    let second = cache(dir.path(), 64 * MIB);
    assert_eq!(fs::read(cache_dir.join("version")).unwrap(), cached::VERSION.as_bytes());
    assert_eq!((second.stats().complete, second.stats().blobs), (1, 2));
    read_held(&whole, &whole.open_in(&second), MIB - 5, 5).await;
    read_held(&parts, &parts.open_in(&second), 0, 100).await;
}

/// What comes from the beginning only is not begun anew for each file that is opened in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_sends_everything_goes_on_between_two_files() {
    let dir = tempfile::tempdir().unwrap();
    let cache = super::fake::cache(dir.path(), 256 * MIB);
    let fake = Fake::new(16 * MIB, 7);
    fake.faults(|f| (f.ignores_ranges, f.rate) = (true, Some(64e6)));
    let id = StreamId::new(fake.blob().digest, "in one piece");
    for at in (0..16).map(|file| file * MIB) {
        let file = open_stream(&cache, &fake, id);
        assert_eq!(file.read(at, 100_000).await.unwrap(), fake.part(at, 100_000));
    }
    let all = 0..fake.size();
    assert_eq!(fake.ranges().iter().filter(|range| **range == all).count(), 1);
    // When nobody opens another one it ends.
    let other = Fake::new(64 * MIB, 8);
    other.faults(|f| (f.ignores_ranges, f.rate) = (true, Some(16e6)));
    let id = StreamId::new(other.blob().digest, "in one piece");
    open_stream(&cache, &other, id).read(0, 100).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let sent = other.sent();
    assert!(sent < 32 * MIB, "{sent}");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(other.sent(), sent);
}
