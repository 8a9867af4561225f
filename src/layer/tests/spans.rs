//! Reading by spans: every compression, every way to make files of it.

use std::{io::Write, ops::Range};

use proptest::prelude::*;

use super::{
    archive::Archive, gzip, index, index_with, inline, limited, read_span, read_stream, sample,
    zstd,
};
use crate::{
    image::Digest,
    layer::{
        Compression, Decoded, Expected, Indexer, LayerIndex, Limits, Options, SpanDecoder,
        StoredHead,
    },
};

/// An archive with files of `bytes` bytes in all.
fn archive(bytes: usize) -> Vec<u8> {
    let mut archive = Archive::new();
    let mut left = bytes;
    let mut number = 0;
    while left > 0 {
        let size = left.min(300_000 + number * 7_919 % 500_000);
        archive = archive.file(&format!("dir/file{number}"), &sample(size, number as u64));
        left -= size;
        number += 1;
    }
    archive.end()
}

/// The blob in pieces, each compressed for itself.
fn members(stream: &[u8], piece: usize, compress: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    stream.chunks(piece).flat_map(compress).collect()
}

fn bgzip_like(stream: &[u8]) -> Vec<u8> {
    members(stream, 65_280, |piece| {
        let mut encoder = flate2::GzBuilder::new()
            .extra(vec![b'B', b'C', 2, 0, 1, 2])
            .write(Vec::new(), flate2::Compression::new(1));
        encoder.write_all(piece).unwrap();
        encoder.finish().unwrap()
    })
}

/// With a sync point every 128 KiB, as pigz makes them.
pub(super) fn pigz_like(stream: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    for piece in stream.chunks(128 << 10) {
        encoder.write_all(piece).unwrap();
        encoder.flush().unwrap();
    }
    encoder.finish().unwrap()
}

/// All that a layer must do, whatever it is compressed with.
fn check(name: &str, blob: &[u8], stream: &[u8], compression: Compression) -> LayerIndex {
    let index = index(blob);
    assert_eq!(index.notes(), [], "{name}");
    assert_eq!(index.compression(), compression, "{name}");
    assert_eq!(index.diff_id(), Some(Digest::sha256(stream)), "{name}");
    assert_eq!(index.stream_bytes(), stream.len() as u64, "{name}");
    assert!(read_stream(&index, blob) == stream, "{name}: spans");
    // In pieces and on a thread, it is the same, but for the last few bytes that a span takes of the blob.
    let pieces = index_with(blob, Options::default(), 999).unwrap();
    assert!(read_stream(&pieces, blob) == stream, "{name}: pieces");
    assert!(pieces.without_ends() == index.clone().without_ends(), "{name}: pieces");
    // All in order, from pieces.
    let spans = 0..index.span_count();
    if !spans.is_empty() {
        let mut decoder = SpanDecoder::new(&index, 0, None).unwrap();
        let mut found = Vec::new();
        let mut is_done = false;
        for piece in blob[to_usize(index.fetch_range(spans.clone()))].chunks(10_007) {
            let mut keep = |one: Decoded| found.extend(one.bytes);
            is_done = decoder.push(&index, &spans, piece, &mut keep).unwrap();
        }
        assert!(is_done, "{name}");
        assert!(found == stream, "{name}: in order");
    }
    // Stored and read again, with its windows and without.
    let stored = index.to_bytes().unwrap();
    let again = LayerIndex::from_bytes(&stored).unwrap();
    assert_eq!(again.to_bytes().unwrap(), stored, "{name}");
    assert!(read_stream(&again, blob) == stream, "{name}: stored");
    let head = StoredHead::parse(&stored).unwrap();
    let table = LayerIndex::from_table(&stored[..head.table_bytes() as usize]).unwrap();
    for span in 0..table.span_count() {
        let window = table.window_range(span).map(|range| &stored[to_usize(range)]);
        let compressed = &blob[to_usize(table.fetch_range(span..span + 1))];
        let bytes = table.decode_with(span, window, compressed).unwrap();
        assert!(bytes == stream[to_usize(table.stream_range(span))], "{name}: span {span}");
    }
    index
}

/// How many spans there are at which decompressing can begin.
fn groups(index: &LayerIndex) -> u32 {
    (0..index.span_count()).filter(|span| index.group(*span).start == *span).count() as u32
}

fn to_usize(range: Range<u64>) -> Range<usize> {
    range.start as usize..range.end as usize
}

#[test]
fn every_compression() {
    let stream = archive(9_000_000);
    let half = stream.len() / 2;
    let plain = check("plain", &stream, &stream, Compression::Plain);
    assert_eq!(plain.span_count(), 69);
    assert_eq!(groups(&plain), 69);
    for level in [0, 1, 6, 9] {
        let blob = gzip(&stream, level);
        let index = check(&format!("gzip -{level}"), &blob, &stream, Compression::Gzip);
        // At level 1, zlib-ng and zlib-rs make one block of everything.
        let expected = if level == 1 { 1..=1 } else { 2..=36 };
        let found = groups(&index);
        assert!(expected.contains(&found), "gzip -{level}: {found} groups");
        let stored = index.to_bytes().unwrap().len();
        assert!(stored * 50 < blob.len(), "gzip -{level}: {stored} of {}", blob.len());
        assert!((0..index.span_count()).all(|span| !index.needs_sequential(span)));
    }
    check("pigz", &pigz_like(&stream), &stream, Compression::Gzip);
    let bgzip = check("bgzip", &bgzip_like(&stream), &stream, Compression::Gzip);
    assert_eq!(groups(&bgzip), bgzip.span_count());
    // Beginnings of members need no windows.
    assert!((0..bgzip.span_count()).all(|span| bgzip.window_range(span).is_none()));
    let two = [gzip(&stream[..half], 6), gzip(&stream[half..], 9)].concat();
    check("two members", &two, &stream, Compression::Gzip);
    // The last block of each member is empty: what comes before it could be a beginning, too.
    let flushed = members(&stream, 1_300_000, pigz_like);
    let flushed = check("flushed members", &flushed, &stream, Compression::Gzip);
    assert!(groups(&flushed) >= 7);
    let empty = gzip(b"", 6);
    let with_empty =
        [&empty[..], &gzip(&stream[..half], 6), &empty, &empty, &gzip(&stream[half..], 6), &empty]
            .concat();
    check("empty members", &with_empty, &stream, Compression::Gzip);
    let padded = [gzip(&stream, 6), vec![0; 70_000]].concat();
    check("zeros after the end", &padded, &stream, Compression::Gzip);

    let single = check("zstd", &zstd(&stream, 3), &stream, Compression::Zstd);
    assert_eq!(single.group(3), 0..single.span_count());
    let frames = members(&stream, 400_000, |piece| zstd(piece, 3));
    let multi = check("zstd frames", &frames, &stream, Compression::Zstd);
    // One that begins within a span serves the next one.
    assert_eq!((multi.group(3), multi.group(4)), (0..4, 4..7));
    let skippable = b"\x5e\x2a\x4d\x18\x05\0\0\0hello";
    let with_skippable = [
        &skippable[..],
        &zstd(&stream[..half], 1),
        skippable,
        b"\x50\x2a\x4d\x18\0\0\0\0",
        &zstd(b"", 1),
        &zstd(&stream[half..], 19),
        skippable,
    ]
    .concat();
    check("skippable frames", &with_skippable, &stream, Compression::Zstd);
    let mut no_size = zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
    no_size.include_contentsize(false).unwrap();
    no_size.include_checksum(true).unwrap();
    no_size.write_all(&stream).unwrap();
    check("no content size", &no_size.finish().unwrap(), &stream, Compression::Zstd);
    let large = members(&stream, 5_000_000, |piece| zstd(piece, 3));
    let large = check("large frames", &large, &stream, Compression::Zstd);
    assert_eq!(large.group(1), 0..39);
}

#[test]
fn header_fields_of_gzip() {
    let stream = archive(10_000);
    let body = &gzip(&stream, 6)[10..];
    let crc = |header: &[u8]| (crc32fast::hash(header) as u16).to_le_bytes();
    let mut all = b"\x1f\x8b\x08\x1e\0\0\0\0\0\x03\x03\0abcname\0comment\0".to_vec();
    all.extend(crc(&all));
    let mut check_only = b"\x1f\x8b\x08\x02\0\0\0\0\0\x03".to_vec();
    check_only.extend(crc(&check_only));
    let headers: [&[u8]; 6] = [
        b"\x1f\x8b\x08\0\0\0\0\0\0\x03",
        b"\x1f\x8b\x08\x08\0\0\0\0\0\x03name\0",
        b"\x1f\x8b\x08\x10\0\0\0\0\0\x03\0",
        b"\x1f\x8b\x08\x04\0\0\0\0\0\x03\0\0",
        &check_only,
        &all,
    ];
    for header in headers {
        let blob = [header, body].concat();
        check(&header.escape_ascii().to_string(), &blob, &stream, Compression::Gzip);
    }
    let text = |header: &[u8]| {
        let index = index(&[header, body].concat());
        assert_eq!(index.stream_bytes(), 0);
        index.damage().unwrap().kind.to_string()
    };
    all[12] ^= 1;
    assert!(text(&all).ends_with("the checksum of a gzip header is wrong"));
    assert!(text(b"\x1f\x8b\x07\0\0\0\0\0\0\x03").contains("not compressed with deflate"));
    assert!(text(b"\x1f\x8b\x08\x80\0\0\0\0\0\x03").contains("unknown flags"));
}

#[test]
fn layers_with_nothing_in_them() {
    let index = index(b"");
    assert_eq!((index.compression(), index.span_count()), (Compression::Plain, 0));
    assert_eq!((index.span_of(0), index.fetch_range(0..1)), (None, 0..0));
    assert!(LayerIndex::from_bytes(&index.to_bytes().unwrap()).is_ok());
    for blob in [gzip(b"", 6), zstd(b"", 3), b"\x5e\x2a\x4d\x18\0\0\0\0".to_vec()] {
        let index = super::index(&blob);
        assert_eq!((index.span_count(), index.stream_bytes()), (0, 0));
        assert_eq!(index.diff_id(), Some(Digest::sha256(b"")));
        assert_eq!(index.notes(), []);
    }
}

#[test]
fn a_block_that_does_not_end() {
    // One stored block is at most 64 KiB, but one with fixed codes may be of any length: 24 MiB of
    // zeros in matches of 258 bytes.
    let mut bits = Vec::new();
    let mut push = |value: u32, count: u32| {
        for bit in 0..count {
            bits.push(value >> bit & 1 == 1);
        }
    };
    push(1, 1);
    push(1, 2);
    // The literal 0, code 0x30 of 8 bits, then length 258 (0xc5, 8 bits) and distance 1 (5 bits),
    // codes with their highest bit first.
    let code = |value: u32, count: u32| value.reverse_bits() >> (32 - count);
    push(code(0x30, 8), 8);
    let matches = 100_000;
    for _ in 0..matches {
        push(code(0xc5, 8), 8);
        push(0, 5);
    }
    push(0, 7);
    let mut blob = b"\x1f\x8b\x08\0\0\0\0\0\0\x03".to_vec();
    for byte in bits.chunks(8) {
        blob.push(byte.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit)));
    }
    let stream = vec![0; 1 + 258 * matches];
    blob.extend(crc32fast::hash(&stream).to_le_bytes());
    blob.extend((stream.len() as u32).to_le_bytes());
    let index = check("one block", &blob, &stream, Compression::Gzip);
    // Spans are bounded all the same; they are decompressed together.
    assert_eq!((index.span_count(), index.group(2)), (25, 0..25));
    assert!(index.needs_sequential(0));
}

#[test]
fn the_stream_is_shown_as_it_passes() {
    let stream = archive(5_000_000);
    let blob = gzip(&stream, 6);
    let mut indexer = Indexer::new(inline());
    let mut seen = Vec::new();
    let mut spans = Vec::new();
    for piece in blob.chunks(20_000) {
        let mut entries = Vec::new();
        indexer
            .push_with(piece, &mut |chunk| {
                assert_eq!(chunk.stream_offset, seen.len() as u64);
                seen.extend_from_slice(chunk.bytes);
                spans.push((chunk.span, chunk.stream_offset));
            })
            .unwrap();
        entries.extend(indexer.table().entries());
        assert_eq!(indexer.stream_bytes(), seen.len() as u64);
        for (number, entry) in (0..).zip(&entries) {
            let path = indexer.table().full_path(entry.path);
            assert_eq!(indexer.find(&path), Some(entry.path));
            assert!(indexer.table().last_entry(entry.path) >= Some(number));
        }
        assert_eq!(indexer.find(b"dir/no"), None);
        // All that has come is known, and what is known has come.
        let known = entries.last().map_or(0, |e| e.data_offset);
        assert!(known <= indexer.stream_bytes());
        let full = entries.iter().filter(|e| e.data_offset + e.size <= indexer.stream_bytes());
        assert!(full.count() + 1 >= entries.len());
    }
    assert!(seen == stream);
    let index = indexer.finish(&super::expected(&blob)).unwrap();
    assert!(spans.iter().all(|(span, at)| index.span_of(*at) == Some(*span)));
}

#[test]
fn bombs_are_stopped() {
    let limits = Limits { max_stream_bytes: 5 << 20, ..Limits::default() };
    let stream = Archive::new().file("bomb", &vec![0; 20 << 20]).end();
    for blob in [gzip(&stream, 9), zstd(&stream, 19), stream.clone()] {
        let index = index_with(&blob, limited(limits), 64 << 10).unwrap();
        assert_eq!(index.stream_bytes(), 5 << 20);
        assert_eq!(index.diff_id(), None);
        let text = index.damage().unwrap().kind.to_string();
        assert_eq!(text, "the layer has more than 5242880 decompressed bytes; see its limits");
        assert!(read_stream(&index, &blob) == stream[..5 << 20]);
    }
    assert_eq!(Limits::default().stream_bytes(10), 1 << 30);
    assert_eq!(Limits::default().stream_bytes(1 << 20), 2000 << 20);
    assert_eq!(Limits::default().stream_bytes(u64::MAX), 256 << 30);
}

#[test]
fn what_zstd_frames_must_not_ask_for() {
    let text = |blob: &[u8]| index(blob).damage().unwrap().kind.to_string();
    // A window of 256 MiB.
    assert_eq!(
        text(b"\x28\xb5\x2f\xfd\x00\x90\x01\0\0"),
        "the zstd frame at byte 0 needs a window of 268435456 bytes; at most 134217728 are accepted"
    );
    assert_eq!(
        text(b"\x28\xb5\x2f\xfd\x21\x07\x00\x01\0\0"),
        "the zstd frame at byte 0 needs the dictionary 7"
    );
    let largest = b"\x28\xb5\x2f\xfd\x00\x88\x01\0\0";
    assert_eq!(index(largest).notes(), []);
}

#[test]
fn what_stands_behind_is_ignored_and_told() {
    let stream = archive(100_000);
    for good in [gzip(&stream, 6), zstd(&stream, 3)] {
        for junk in [&b"junk"[..], b"j", b"\x1f", b"\x1f\x8a"] {
            let index = index(&[&good, junk].concat());
            let at = good.len();
            let text = format!("what begins at byte {at} is not compressed data and is ignored");
            assert_eq!(index.notes()[0].kind.to_string(), text);
            assert!(index.damage().is_none());
            assert_eq!(index.diff_id(), Some(Digest::sha256(&stream)));
        }
    }
}

#[test]
fn spans_of_offsets() {
    let stream = archive(3_000_000);
    let index = index(&stream);
    let at = |offset| index.span_of(offset);
    assert_eq!((at(0), at((1 << 17) - 1), at(1 << 17)), (Some(0), Some(0), Some(1)));
    let last = index.stream_bytes() - 1;
    assert_eq!((at(last), at(last + 1), at(u64::MAX)), (Some(22), None, None));
    assert_eq!(index.stream_range(1), 1 << 17..2 << 17);
    assert!(index.stream_range(23).is_empty());
    assert!(index.decode(23, &[]).is_err());
    assert!(SpanDecoder::new(&index, index.span_count(), None).is_err());
}

#[test]
fn digests_of_both_algorithms() {
    use crate::image::Algorithm::Sha512;
    let stream = archive(10_000);
    let blob = gzip(&stream, 6);
    let options = Options { blob: Sha512, diff_id: Sha512, ..Options::default() };
    let expected = Expected {
        blob: Digest::of(Sha512, &blob),
        blob_bytes: blob.len() as u64,
        diff_id: Some(Digest::of(Sha512, &stream)),
    };
    let mut indexer = Indexer::new(options);
    indexer.push(&blob).unwrap();
    let index = indexer.finish(&expected).unwrap();
    let again = LayerIndex::from_bytes(&index.to_bytes().unwrap()).unwrap();
    assert_eq!((again.blob(), again.diff_id()), (expected.blob, expected.diff_id));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn random_reads_of_random_layers(
        size in 1_usize..6_000_000,
        seed in any::<u64>(),
        form in 0..6,
        piece in 100_000_usize..3_000_000,
        reads in proptest::collection::vec((0.0..1.0, 1_usize..200_000), 8),
    ) {
        let stream = Archive::new().file("f", &sample(size, seed)).end();
        let blob = match form {
            0 => stream.clone(),
            1 => gzip(&stream, 1),
            2 => gzip(&stream, 6),
            3 => members(&stream, piece, |piece| gzip(piece, 4)),
            4 => zstd(&stream, 3),
            _ => members(&stream, piece, |piece| zstd(piece, 1)),
        };
        let index = index(&blob);
        for (from, length) in reads {
            let from = (from * stream.len() as f64) as usize;
            let end = (from + length).min(stream.len());
            let (first, last) =
                (index.span_of(from as u64).unwrap(), index.span_of(end as u64 - 1).unwrap());
            let bytes: Vec<u8> =
                (first..=last).flat_map(|span| read_span(&index, &blob, span)).collect();
            let start = from - index.stream_range(first).start as usize;
            prop_assert!(bytes[start..start + end - from] == stream[from..end]);
        }
    }
}
