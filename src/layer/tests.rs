//! Tests of whole layers: archives of every format, spans, the stored form, merged trees.

mod archive;
mod damage;
mod listing;
mod merging;
mod model;
mod old;
mod parts;
mod reading;
mod spans;
mod sparse;
mod stored;
mod toc;

use std::sync::Arc;

use super::{
    Expected, Hashing, IndexError, Indexer, LayerIndex, Limits, Options, Origin, Rootfs,
    SpanDecoder,
};
use crate::image::Digest;

#[test]
fn they_go_from_thread_to_thread() {
    fn send<T: Send>() {}
    fn sync<T: Send + Sync>() {}
    send::<Indexer>();
    send::<SpanDecoder>();
    sync::<LayerIndex>();
    sync::<Rootfs>();
}

fn expected(blob: &[u8]) -> Expected {
    Expected { blob: Digest::sha256(blob), blob_bytes: blob.len() as u64, diff_id: None }
}

fn inline() -> Options {
    Options { hashing: Hashing::Inline, ..Options::default() }
}

fn index_with(blob: &[u8], options: Options, piece: usize) -> Result<LayerIndex, IndexError> {
    let mut indexer = Indexer::new(options);
    for bytes in blob.chunks(piece) {
        indexer.push(bytes)?;
    }
    indexer.finish(&expected(blob))
}

/// The index of a blob that is what it should be.
fn index(blob: &[u8]) -> LayerIndex {
    index_with(blob, inline(), 100_000).unwrap()
}

fn layer(archive: &[u8]) -> Arc<LayerIndex> {
    Arc::new(index(archive))
}

fn limited(limits: Limits) -> Options {
    Options { limits, ..inline() }
}

/// The bytes of the stream that an index knows, read in one go.
fn read_stream(index: &LayerIndex, blob: &[u8]) -> Vec<u8> {
    let (all, mut bytes) = (0..index.span_count(), Vec::new());
    if index.origin() == Origin::Pass && !all.is_empty() {
        let range = index.fetch_range(all.clone());
        let compressed = &blob[range.start as usize..range.end as usize];
        let mut decoder = SpanDecoder::new(index, 0, None).unwrap();
        let found = decoder.push(index, &all, compressed, &mut |one| bytes.extend(one.bytes));
        assert_eq!(found, Ok(true));
    } else {
        bytes.extend(all.flat_map(|span| read_span(index, blob, span)));
    }
    bytes
}

fn read_span(index: &LayerIndex, blob: &[u8], span: u32) -> Vec<u8> {
    let range = index.fetch_range(span..span + 1);
    index.decode(span, &blob[range.start as usize..range.end as usize]).unwrap()
}

/// Bytes that compress about as well as files do, and are the same every time.
fn sample(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut out = Vec::with_capacity(bytes + 64);
    while out.len() < bytes {
        let random = next();
        if random % 4 == 0 || out.len() < 100 {
            out.extend_from_slice(&next().to_le_bytes());
        } else {
            let back = 8 + (random >> 8) as usize % out.len().min(30_000).saturating_sub(8).max(1);
            let from = out.len() - back.min(out.len());
            let length = (4 + (random >> 40) as usize % 24).min(out.len() - from);
            out.extend_from_within(from..from + length);
        }
    }
    out.truncate(bytes);
    out
}

fn gzip(bytes: &[u8], level: u32) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8], level: i32) -> Vec<u8> {
    zstd::bulk::compress(bytes, level).unwrap()
}
