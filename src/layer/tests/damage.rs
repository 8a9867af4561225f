//! Layers that are not what they should be.

use super::{
    archive::Archive, expected, gzip, index, index_with, inline, read_stream, sample, zstd,
};
use crate::{
    image::{Algorithm, Digest},
    layer::{CodecError, Compression, DecodeError, Expected, IndexError, Indexer, Options},
};

fn stream() -> Vec<u8> {
    let mut archive = Archive::new();
    for number in 0..12 {
        archive = archive.file(&format!("file{number}"), &sample(500_000, number));
    }
    archive.end()
}

fn finish(blob: &[u8], expected: &Expected) -> IndexError {
    let mut indexer = Indexer::new(inline());
    indexer.push(blob).unwrap();
    indexer.finish(expected).unwrap_err()
}

#[test]
fn a_layer_that_is_another_one() {
    let stream = stream();
    let blob = gzip(&stream, 6);
    let right = expected(&blob);
    let other = Digest::sha256(b"other");
    let found = right.blob;
    let bytes = blob.len() as u64;
    assert_eq!(
        finish(&blob, &Expected { blob: other, ..right }),
        IndexError::Digest { expected: other, found: Box::new(found) }
    );
    assert_eq!(
        finish(&blob[..1000], &right),
        IndexError::Size { blob: found, expected: bytes, found: 1000 }
    );
    assert_eq!(
        finish(&blob, &Expected { diff_id: Some(other), ..right }),
        IndexError::DiffId {
            blob: found,
            expected: Box::new(other),
            found: Box::new(Digest::sha256(&stream))
        }
    );
    let long = Digest::of(Algorithm::Sha512, &blob);
    assert_eq!(finish(&blob, &Expected { blob: long, ..right }), IndexError::Algorithm(long));
    assert_eq!(
        finish(&blob, &Expected { diff_id: Some(long), ..right }),
        IndexError::Algorithm(long)
    );
    // One bit is enough.
    let mut flipped = blob;
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    assert!(matches!(finish(&flipped, &right), IndexError::Digest { .. }));
}

#[test]
fn truncated_layers_are_readable_up_to_there() {
    let stream = stream();
    for (blob, what) in [(gzip(&stream, 6), "gzip member"), (zstd(&stream, 3), "zstd frame")] {
        let half = &blob[..blob.len() / 2];
        let index = index(half);
        let text = index.damage().unwrap().kind.to_string();
        let at = half.len();
        assert_eq!(
            text,
            format!("the compressed data ends at byte {at}, in the middle of a {what}")
        );
        assert_eq!(index.diff_id(), None);
        let bytes = read_stream(&index, half);
        assert!(bytes.len() > stream.len() / 3 && stream.starts_with(&bytes));
        assert_eq!(bytes.len() as u64, index.stream_bytes());
        assert!(index.table().len() > 3);
    }
    let blob = gzip(&stream, 6);
    for cut in 1..=7 {
        let index = index(&blob[..blob.len() - cut]);
        assert!(index.damage().unwrap().kind.to_string().ends_with("gzip trailer"));
        assert_eq!((index.table().len(), index.diff_id()), (12, None));
    }
}

#[test]
fn corrupted_layers_are_readable_up_to_there() {
    let stream = stream();
    for (blob, options) in [(gzip(&stream, 6), inline()), (zstd(&stream, 3), Options::default())] {
        let mut bad = blob;
        let middle = bad.len() / 2;
        bad[middle..middle + 64].fill(0xa5);
        // The registry has it like that: its digest is right.
        let mut indexer = Indexer::new(options);
        indexer.push(&bad).unwrap();
        let index = indexer.finish(&expected(&bad)).unwrap();
        assert!(index.damage().is_some());
        assert_eq!(index.diff_id(), None);
        let bytes = read_stream(&index, &bad);
        let same = bytes.iter().zip(&stream).take_while(|(a, b)| a == b).count();
        assert!(same > stream.len() / 3, "{same}");
        // The damaged rest need not be fetched, unless only a checksum at the end shows it.
        let text = format!("{:?}", index.notes());
        let end = index.fetch_range(0..index.span_count()).end;
        assert!(end < bad.len() as u64 || text.contains("CRC"), "{text}");
        let readable = |e: &crate::layer::Entry| e.data_offset + e.size <= index.stream_bytes();
        assert!(index.table().entries().filter(readable).count() >= 4);
    }
}

#[test]
fn regression_damage_is_at_the_same_place_in_pieces_of_any_size() {
    let stream = stream();
    for blob in [gzip(&stream, 6), gzip(&stream, 1), zstd(&stream, 3)] {
        for at in (1..20).map(|n| blob.len() / 20 * n) {
            let mut bad = blob.clone();
            bad[at..at + 16].fill(0xff);
            let whole = index(&bad);
            // Frames without a checksum may decompress all the same.
            assert!(whole.damage().is_some() || whole.compression() == Compression::Zstd);
            read_stream(&whole, &bad);
            for piece in [1013, 100_003] {
                let pieces = index_with(&bad, inline(), piece).unwrap();
                assert_eq!(
                    pieces.stream_bytes(),
                    whole.stream_bytes(),
                    "byte {at}, pieces of {piece}"
                );
                read_stream(&pieces, &bad);
            }
        }
    }
}

#[test]
fn regression_a_damaged_block_header_after_a_raw_block() {
    // A raw block of two bytes, then one of the reserved type, or one after which the size of the
    // frame is wrong.
    let reserved = &b"\x28\xb5\x2f\xfd\x00\x00\x10\0\0ab\x06\0\0rest"[..];
    let size = &b"\x28\xb5\x2f\xfd\x40\x00\x00\x01\x10\0\0ab\x19\0\0abc"[..];
    for (blob, piece) in [reserved, size].into_iter().flat_map(|b| [(b, 1), (b, 3), (b, 100)]) {
        let index = index_with(blob, inline(), piece).unwrap();
        assert_eq!(read_stream(&index, blob), b"ab", "pieces of {piece}");
        assert!(index.damage().is_some());
    }
}

#[test]
fn wrong_checksums_of_members() {
    let stream = stream();
    let blob = gzip(&stream, 6);
    for (at, what) in [(8, "CRC-32"), (1, "length")] {
        let mut bad = blob.clone();
        let at = bad.len() - at;
        bad[at] ^= 1;
        let index = index(&bad);
        assert!(index.damage().unwrap().kind.to_string().contains(what));
        assert_eq!((index.table().len(), index.stream_bytes()), (12, stream.len() as u64));
        assert!(read_stream(&index, &bad) == stream);
    }
}

#[test]
fn ranges_with_other_bytes_are_found_out() {
    let stream = stream();
    for blob in [stream.clone(), gzip(&stream, 6), zstd(&stream, 3)] {
        let index = index(&blob);
        let range = index.fetch_range(1..2);
        let good = &blob[range.start as usize..range.end as usize];
        assert!(index.decode(1, good).is_ok());
        let short = index.decode(1, &good[..good.len() / 3]);
        assert_eq!(short, Err(DecodeError::Short(1)));
        assert_eq!(index.decode(1, &[]), Err(DecodeError::Short(1)));
        for at in (0..good.len()).step_by(good.len() / 50) {
            let mut bad = good.to_vec();
            bad[at] ^= 0x20;
            match index.decode(1, &bad) {
                Err(DecodeError::Digest(_) | DecodeError::Codec(CodecError::Damaged { .. })) => {}
                Err(DecodeError::Short(_)) => {}
                // What is behind the end of the span.
                Ok(bytes) => assert!(bytes == index.decode(1, good).unwrap()),
                other => panic!("byte {at}: {other:?}"),
            }
        }
    }
}

#[test]
fn an_index_without_windows_says_so() {
    let blob = gzip(&stream(), 6);
    let index = index(&blob);
    let span = (0..index.span_count()).find(|s| index.window_range(*s).is_some()).unwrap();
    let bare = index.without_windows();
    assert_eq!(bare.decode(span, &blob), Err(DecodeError::NoWindow(span)));
    assert_eq!(bare.decode_with(span, Some(b"junk"), &blob), Err(DecodeError::Window(span)));
    assert!(bare.decode(0, &blob).is_ok());
}
