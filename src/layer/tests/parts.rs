//! Reading little: what it takes, and that what is read is right whatever was read before.

use proptest::prelude::*;

use super::{archive::Archive, gzip, index, sample, zstd};
use crate::layer::{DecodeError, LayerIndex, SpanDecoder, Work};

const SPAN: u64 = 128 << 10;

/// An archive that compresses about as images do, of `bytes`.
fn archive(bytes: usize) -> Vec<u8> {
    let (mut archive, mut left, mut number) = (Archive::new(), bytes, 0);
    while left > 0 {
        let size = left.min(2_000 + number * 7_919 % 90_000);
        archive = archive.file(&format!("dir/file{number}"), &near(size, number as u64 + 1));
        (left, number) = (left - size, number + 1);
    }
    archive.end()
}

/// Bytes that refer to what is near rather than to what is far, as those of programs and texts do: of a window,
/// what follows needs a tenth. They become a third, as layers do.
fn near(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 8
    };
    let mut out = Vec::with_capacity(bytes + 64);
    while out.len() < bytes {
        let random = next();
        if random % 3 == 0 || out.len() < 64 {
            out.extend_from_slice(&next().to_le_bytes());
        } else {
            // As many from 16 to 32 bytes before as from 16 to 32 KiB.
            let scale = 4 + (random >> 8) % 11;
            let back = ((1 << scale) + next() as usize % (1 << scale)).min(out.len());
            let from = out.len() - back;
            let length = (4 + (random >> 40) as usize % 24).min(back);
            out.extend_from_within(from..from + length);
        }
    }
    out.truncate(bytes);
    out
}

fn slice(blob: &[u8], range: std::ops::Range<u64>) -> &[u8] {
    &blob[range.start as usize..range.end as usize]
}

/// Reads one span as a small read does; its bytes, and what that took.
fn read(index: &LayerIndex, blob: &[u8], span: u32) -> (Vec<u8>, Work, u64) {
    let wanted = span..span + 1;
    let range = index.fetch_range(wanted.clone());
    let mut decoder = SpanDecoder::new(index, span, None).unwrap();
    let mut found = None;
    let done = decoder.push(index, &wanted, slice(blob, range.clone()), &mut |one| {
        assert_eq!(one.is_checked, one.span == span);
        found = Some(one.bytes);
    });
    assert_eq!(done, Ok(true));
    (found.unwrap(), decoder.work(), range.end - range.start)
}

#[test]
fn a_small_read_inflates_and_hashes_little() {
    let stream = archive(24 << 20);
    for (level, is_synced) in [(6, false), (9, false), (6, true)] {
        let blob = match is_synced {
            false => gzip(&stream, level),
            true => super::spans::pigz_like(&stream),
        };
        let index = index(&blob);
        let mut all = Work::default();
        let mut fetched = 0;
        for span in 0..index.span_count() {
            let (bytes, work, compressed) = read(&index, &blob, span);
            assert!(bytes == slice(&stream, index.stream_range(span)));
            all.inflated_bytes += work.inflated_bytes;
            all.hashed_bytes += work.hashed_bytes;
            fetched += compressed;
        }
        // A place at random is in each of them with the same probability.
        let spans = u64::from(index.span_count());
        let (inflated, hashed) = (all.inflated_bytes / spans, all.hashed_bytes / spans);
        let stored = index.to_bytes().unwrap().len();
        eprintln!(
            "level {level}: {inflated} inflated, {hashed} hashed, {} fetched for each; index {stored} of {}",
            fetched / spans,
            blob.len()
        );
        assert!(inflated <= 384 << 10, "level {level}: {inflated}");
        assert!(hashed <= SPAN, "level {level}: {hashed}");
        assert!(fetched / spans <= 256 << 10, "level {level}: {fetched}");
        assert!(stored * 50 <= blob.len(), "level {level}: {stored} of {}", blob.len());
    }
}

#[test]
fn reading_on_does_nothing_twice() {
    let stream = archive(6 << 20);
    let frames: Vec<u8> = stream.chunks(900_000).flat_map(|piece| zstd(piece, 3)).collect();
    for blob in [gzip(&stream, 6), frames, zstd(&stream, 3), stream.clone()] {
        let index = index(&blob);
        let mut decoder = SpanDecoder::new(&index, 0, None).unwrap();
        let mut found = Vec::new();
        for span in 0..index.span_count() {
            assert_eq!(decoder.next_span(), span);
            let range = decoder.fetch_range(&index, span + 1);
            let wanted = span..span + 1;
            let done = decoder.push(&index, &wanted, slice(&blob, range), &mut |one| {
                assert!(one.is_checked);
                found.extend(one.bytes);
            });
            assert_eq!(done, Ok(true), "span {span}");
        }
        assert!(found == stream);
        let bytes = stream.len() as u64;
        assert_eq!(decoder.work(), Work { inflated_bytes: bytes, hashed_bytes: bytes });
    }
}

#[test]
fn what_is_passed_over_is_not_right_before_it_has_been_checked() {
    let stream = archive(1 << 20);
    let blob = gzip(&stream, 6);
    let index = index(&blob);
    let span = (0..index.span_count()).find(|span| index.group(*span).start < *span).unwrap();
    let range = index.fetch_range(span..span + 1);
    let mut passed = Vec::new();
    let mut decoder = SpanDecoder::new(&index, span, None).unwrap();
    let done = decoder.push(&index, &(span..span + 1), slice(&blob, range.clone()), &mut |one| {
        passed.push(one);
    });
    assert_eq!(done, Ok(true));
    let first = &passed[0];
    assert!(!first.is_checked && index.is_right(first.span, &first.bytes));
    let mut bytes = first.bytes.clone();
    bytes[17] ^= 1;
    assert!(!index.is_right(first.span, &bytes));
    assert!(!index.is_right(first.span + 1, &first.bytes));
    assert!(!index.is_right(index.span_count(), &first.bytes));
    // Damage before the span that is wanted is found out, since that is made of it, or does not matter.
    let right = slice(&stream, index.stream_range(span));
    let mut wrong = 0;
    for at in (0..range.end - range.start).step_by(401) {
        let mut bad = slice(&blob, range.clone()).to_vec();
        bad[at as usize] ^= 0x10;
        match index.decode(span, &bad) {
            Ok(bytes) => assert!(bytes == right, "byte {at}"),
            Err(DecodeError::Digest(_) | DecodeError::Codec(_) | DecodeError::Short(_)) => {
                wrong += 1;
            }
            Err(other) => panic!("byte {at}: {other:?}"),
        }
    }
    assert!(wrong > 10);
}

#[test]
fn a_read_allocates_little() {
    let stream = archive(3 << 20);
    let blob = gzip(&stream, 6);
    let index = index(&blob);
    let in_group = |span: &u32| index.group(*span).start < *span;
    let span = (0..index.span_count()).rev().find(in_group).unwrap();
    let compressed = slice(&blob, index.fetch_range(span..span + 1));
    // Whatever is only made once has been made.
    index.decode(span, compressed).unwrap();
    let one = allocation_counter::measure(|| drop(index.decode(span, compressed).unwrap()));
    let spans = u64::from(span - index.group(span).start + 1);
    // The window and what decompresses it, the decoder, its buffer, and the bytes of each span.
    assert!(one.count_total <= 12 + spans, "{one:?}");
    assert!(one.bytes_total <= (spans + 3) * SPAN, "{one:?}");
    // Whoever reads on allocates the span that he gets.
    let mut decoder = SpanDecoder::new(&index, 0, None).unwrap();
    let mut next = |span: u32| {
        let range = decoder.fetch_range(&index, span + 1);
        let wanted = span..span + 1;
        let done = decoder.push(&index, &wanted, slice(&blob, range), &mut drop);
        assert_eq!(done, Ok(true));
    };
    next(0);
    for span in 1..index.span_count() {
        let one = allocation_counter::measure(|| next(span));
        assert!(one.count_total <= 2 && one.bytes_total <= SPAN + 1024, "{one:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn any_order_of_reads_gives_the_same(
        size in 1_usize..3_000_000,
        seed in any::<u64>(),
        form in 0..5,
        reads in proptest::collection::vec((0.0..1.0, 1_u32..5, any::<bool>()), 12),
    ) {
        let stream = Archive::new().file("f", &sample(size, seed)).end();
        let blob: Vec<u8> = match form {
            0 => stream.clone(),
            1 => gzip(&stream, 1),
            2 => gzip(&stream, 6),
            3 => stream.chunks(300_000).flat_map(|piece| gzip(piece, 4)).collect(),
            _ => stream.chunks(500_000).flat_map(|piece| zstd(piece, 1)).collect(),
        };
        let index = index(&blob);
        let mut kept: Option<SpanDecoder> = None;
        for (from, count, goes_on) in reads {
            let first = (from * f64::from(index.span_count())) as u32;
            let wanted = first..(first + count).min(index.span_count());
            let is_behind = |kept: &SpanDecoder| goes_on && kept.next_span() <= first;
            let mut decoder = match kept.take().filter(is_behind) {
                Some(decoder) => decoder,
                None => SpanDecoder::new(&index, first, None).unwrap(),
            };
            let range = decoder.fetch_range(&index, wanted.end);
            let mut next = decoder.next_span();
            let done = decoder.push(&index, &wanted, slice(&blob, range), &mut |one| {
                assert_eq!((one.span, one.is_checked), (next, wanted.contains(&next)));
                assert!(one.bytes == slice(&stream, index.stream_range(next)));
                next += 1;
            });
            prop_assert_eq!((done, next), (Ok(true), wanted.end));
            kept = Some(decoder);
        }
    }
}
