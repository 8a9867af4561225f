//! Tables of contents of SOCI.

use std::{ops::ControlFlow, sync::Arc};

use super::{everything, see};
use crate::{
    image::Descriptor,
    layer::{
        Compression, DecodeError, Decoded, LayerIndex, Limits, Origin, SpanDecoder, StoredHead,
        TocError,
        codec::{Boundary, Decoder, Output},
        tests::{
            archive::{Archive, Header},
            read_span, read_stream, sample,
        },
    },
};

#[path = "../../../../tests/it/support/ztoc.rs"]
mod builder;

use builder::{Form, Point, ztoc};

fn descriptor(blob: &[u8]) -> Descriptor {
    Descriptor::new("", crate::image::Digest::sha256(blob), blob.len() as u64)
}

fn read(blob: &[u8], ztoc: &[u8]) -> Result<LayerIndex, TocError> {
    LayerIndex::of_ztoc(&descriptor(blob), ztoc, &Limits::default())
}

/// Finds places where decompressing can begin, at least `each` bytes apart, as zran does.
struct Places {
    each: u64,
    at: u64,
    points: Vec<Point>,
}

impl Output for Places {
    fn bytes(&mut self, bytes: &[u8], _: u64) -> ControlFlow<()> {
        self.at += bytes.len() as u64;
        ControlFlow::Continue(())
    }

    fn boundary(&mut self, at: Boundary<'_>) {
        let last = self.points.last().map(|point| point.stream_offset);
        if at.window.is_some() && last.is_none_or(|last| self.at > last + self.each) {
            let bits = (8 - at.blob_bits % 8) % 8;
            let blob_offset = at.blob_bits.div_ceil(8);
            self.points.push(Point { stream_offset: self.at, blob_offset, bits: bits as u8 });
        }
    }
}

/// A blob as compressors write it, and where one can begin.
fn gzip(archive: &[u8], level: u32, each: u64) -> (Vec<u8>, Vec<Point>) {
    let blob = crate::layer::tests::gzip(archive, level);
    let first = Point { stream_offset: 0, blob_offset: 10, bits: 0 };
    let mut places = Places { each, at: 0, points: vec![first] };
    let mut decoder = Decoder::new(Compression::Gzip, 0).unwrap();
    assert!(decoder.push(&blob, &mut places).is_ok());
    (blob, places.points)
}

/// What the ztoc says is what the pass finds, and all of it can be read.
#[track_caller]
fn check(archive: &[u8], blob: &[u8], points: &[Point], form: Form) -> LayerIndex {
    let index = read(blob, &ztoc(archive, blob, points, form)).unwrap();
    assert_eq!((index.origin(), index.diff_id()), (Origin::Ztoc, None));
    assert_eq!(index.notes(), []);
    assert!(read_stream(&index, blob) == archive);
    let listed = see(&Arc::new(index.clone()), blob);
    let passed = see(&Arc::new(super::index(blob)), blob);
    assert_eq!(listed, passed);
    // In one go, in pieces.
    let count = index.span_count();
    for (from, to) in [(0, count), (count / 3, count), (count / 2, count / 2 + 1)] {
        let range = index.fetch_range(from..to);
        let mut decoder = SpanDecoder::new(&index, from, None).unwrap();
        let (mut found, mut is_done) = (Vec::new(), false);
        for piece in blob[range.start as usize..range.end as usize].chunks(9973) {
            let mut keep = |one: Decoded| found.push((one.span, one.bytes));
            is_done = decoder.push(&index, &(from..to), piece, &mut keep).unwrap();
        }
        assert!(is_done);
        let expected = (from..to).map(|span| (span, read_span(&index, blob, span)));
        assert!(found == expected.collect::<Vec<_>>(), "spans {from} to {to}");
    }
    let stored = index.to_bytes().unwrap();
    let again = LayerIndex::from_bytes(&stored).unwrap();
    assert_eq!(again.to_bytes().unwrap(), stored);
    assert!(read_stream(&again, blob) == archive);
    index
}

/// As archives have it that SOCI takes: without broken names.
fn archive() -> Archive {
    everything().file("large", &sample(3_000_000, 5)).file("zeros", &vec![0; 400_000])
}

#[test]
fn it_is_what_the_pass_finds() {
    let archive = archive().end();
    for (level, each) in [(1, 100_000), (6, 1 << 20), (9, 50_000), (0, 70_000), (6, 8 << 20)] {
        let (blob, points) = gzip(&archive, level, each);
        assert!(each > 1 << 20 || points.len() > 1, "{level}: {}", points.len());
        assert!(level == 0 || points.len() < 4 || points.iter().any(|point| point.bits > 0));
        let index = check(&archive, &blob, &points, Form::Gzip);
        assert_eq!(index.span_count() as usize, points.len());
        assert_eq!(index.compression(), Compression::Gzip);
    }
    for each in [100_000, 4 << 20] {
        let index = check(&archive, &archive, &[], Form::Plain(each));
        assert_eq!(index.compression(), Compression::Plain);
    }
    let (blob, points) = builder::gzip(&archive, 300_000);
    check(&archive, &blob, &points, Form::Gzip);
    let nothing = Archive::new().dir("d").end();
    let (blob, points) = gzip(&nothing, 6, 1);
    check(&nothing, &blob, &points[..1], Form::Gzip);
}

#[test]
fn what_comes_is_compared_with_its_digest() {
    let archive = archive().end();
    let (blob, points) = gzip(&archive, 6, 300_000);
    let index = read(&blob, &ztoc(&archive, &blob, &points, Form::Gzip)).unwrap();
    for span in 0..index.span_count() {
        let range = index.fetch_range(span..span + 1);
        let mut bytes = blob[range.start as usize..range.end as usize].to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        assert_eq!(index.decode(span, &bytes), Err(DecodeError::Digest(span)));
        bytes[middle] ^= 1;
        bytes.pop();
        assert_eq!(index.decode(span, &bytes), Err(DecodeError::Short(span)));
    }
    // The digest is right, but that is no deflate stream of that length.
    let mut wrong = points;
    wrong[2].stream_offset -= 512;
    let index = read(&blob, &ztoc(&archive, &blob, &wrong, Form::Gzip)).unwrap();
    let range = index.fetch_range(2..3);
    let bytes = &blob[range.start as usize..range.end as usize];
    assert!(index.decode(2, bytes).is_err());
}

#[test]
fn what_makes_no_sense_is_refused() {
    let archive = archive().end();
    let (blob, points) = gzip(&archive, 6, 300_000);
    let good = ztoc(&archive, &blob, &points, Form::Gzip);
    let refused = |blob: &[u8], ztoc: &[u8]| read(blob, ztoc).unwrap_err().to_string();
    assert!(refused(&blob[1..], &good).contains("another size"));
    for (change, what) in [
        (
            (&|points: &mut Vec<Point>| points[0].stream_offset = 512) as &dyn Fn(&mut Vec<Point>),
            "the stream does not begin with it",
        ),
        (&|points| points.swap(1, 2), "it ends before it begins"),
        (&|points| points[1].stream_offset = archive.len() as u64, "it ends before it begins"),
        (&|points| points[1].bits = 8, "its access points are malformed"),
        (&|points| points[2].blob_offset = 11, "it ends in the blob before it begins there"),
        (&|points| points.truncate(1), ""),
    ] {
        let (_, mut points) = gzip(&archive, 6, 300_000);
        change(&mut points);
        let read = read(&blob, &ztoc(&archive, &blob, &points, Form::Gzip));
        match what {
            "" => assert!(read.is_ok(), "{read:?}"),
            what => assert!(
                read.as_ref().is_err_and(|e| e.to_string().contains(what)),
                "{what}: {read:?}"
            ),
        }
    }
    // One span of too much.
    let large = Archive::new().file("large", &vec![0; 9 << 20]).end();
    let (blob, points) = gzip(&large, 6, 1 << 30);
    assert!(refused(&blob, &ztoc(&large, &blob, &points, Form::Gzip)).contains("more than 8 MiB"));
    let noise = vec![0; 3 << 20];
    let small = Archive::new().file("a", b"a").end();
    let shown = refused(
        &noise,
        &ztoc(&small, &noise, &[Point { stream_offset: 0, blob_offset: 10, bits: 0 }], Form::Gzip),
    );
    assert!(shown.contains("more bytes than can be in it"), "{shown}");
    // A stream that ends before its last file does.
    let length = (archive.len() as u64).to_le_bytes();
    let at = good.windows(8).position(|bytes| bytes == length).unwrap();
    let mut cut = good.clone();
    cut[at..at + 8].copy_from_slice(&(archive.len() as u64 - 300_000).to_le_bytes());
    let (blob, _) = gzip(&archive, 6, 300_000);
    assert!(refused(&blob, &cut).contains("it is not within the layer"));
    // Whatever else is wrong is no panic, and no index that leads out of the blob.
    let try_all = |ztoc: &[u8]| {
        let Ok(index) = read(&blob, ztoc) else { return false };
        for span in 0..index.span_count() {
            let range = index.fetch_range(span..span + 1);
            let _ = index.decode(span, &blob[range.start as usize..range.end as usize]);
        }
        true
    };
    let mut changed = good.clone();
    let mut accepted = 0;
    for at in (0..changed.len().min(4000)).step_by(11) {
        let from_end = changed.len() - 1 - at;
        for (at, bit) in [(at, 0), (at, 7), (from_end, 3), (from_end, 7)] {
            changed[at] ^= 1 << bit;
            accepted += u32::from(try_all(&changed));
            changed[at] ^= 1 << bit;
        }
    }
    assert!(accepted > 100, "{accepted}");
    for end in (0..good.len()).step_by(1009) {
        try_all(&good[..end]);
    }
}

#[test]
fn a_sparse_file_is_left_to_the_pass() {
    let archive = Archive::new()
        .pax(b'x', &[("GNU.sparse.size", b"5"), ("GNU.sparse.map", b"0,5")])
        .entry(Header::new(b"sparse", b'0').size(5), b"12345")
        .end();
    let (blob, points) = gzip(&archive, 6, 1 << 20);
    let error = read(&blob, &ztoc(&archive, &blob, &points, Form::Gzip)).unwrap_err();
    assert!(error.to_string().contains("it is sparse"), "{error}");
}

#[test]
fn damaged_windows_are_found_when_they_are_used() {
    let archive = archive().end();
    let (blob, points) = gzip(&archive, 6, 300_000);
    let index = read(&blob, &ztoc(&archive, &blob, &points, Form::Gzip)).unwrap();
    let stored = index.to_bytes().unwrap();
    let (last, mut found) = (index.span_count() - 1, 0);
    let begin = StoredHead::parse(&stored).unwrap().table_bytes() as usize;
    let range = index.fetch_range(last..last + 1);
    let compressed = &blob[range.start as usize..range.end as usize];
    for at in (begin..stored.len()).step_by(37) {
        let mut damaged = stored.clone();
        damaged[at] ^= 0x10;
        match LayerIndex::from_bytes(&damaged).unwrap().decode(last, compressed) {
            Ok(bytes) => assert!(bytes == read_span(&index, &blob, last), "byte {at}"),
            Err(error) => {
                assert_eq!(error, DecodeError::Window(last));
                found += 1;
            }
        }
    }
    assert!(found > 100, "{found}");
}
