//! Makes tables of contents of SOCI ("ztocs") as its own program does, with the library of the format and without
//! anything of imgfs.

use flatbuffers::{FlatBufferBuilder, TableFinishedWIPOffset, VOffsetT, WIPOffset};
use flate2::{Compress, Compression, FlushCompress};
use sha2::{Digest, Sha256};
use std::io::Read;

/// A place where decompressing can begin.
pub(crate) struct Point {
    pub(crate) stream_offset: u64,
    pub(crate) blob_offset: u64,
    /// Bits of the byte before that belong to it.
    pub(crate) bits: u8,
}

/// How the access points are written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Form {
    Gzip,
    /// The archive is not compressed, and cut into spans of so many bytes.
    Plain(usize),
}

/// Compresses `archive` so that one can begin anew after each `each` bytes of it.
pub(crate) fn gzip(archive: &[u8], each: usize) -> (Vec<u8>, Vec<Point>) {
    let mut blob = b"\x1f\x8b\x08\0\0\0\0\0\0\xff".to_vec();
    let mut deflate = Compress::new(Compression::new(6), false);
    let mut points = Vec::new();
    for (number, piece) in archive.chunks(each).enumerate() {
        let (stream_offset, blob_offset) = ((number * each) as u64, blob.len() as u64);
        points.push(Point { stream_offset, blob_offset, bits: 0 });
        let is_last = (number + 1) * each >= archive.len();
        let flush = if is_last { FlushCompress::Finish } else { FlushCompress::Full };
        blob.reserve(piece.len() + piece.len() / 8 + 1024);
        let before = deflate.total_in();
        deflate.compress_vec(piece, &mut blob, flush).unwrap();
        assert_eq!(deflate.total_in() - before, piece.len() as u64);
    }
    let mut crc = flate2::Crc::new();
    crc.update(archive);
    blob.extend(crc.sum().to_le_bytes());
    blob.extend(crc.amount().to_le_bytes());
    (blob, points)
}

/// The ztoc of `blob`, which is `archive`.
pub(crate) fn ztoc(archive: &[u8], blob: &[u8], points: &[Point], form: Form) -> Vec<u8> {
    let spans: Vec<(usize, usize)> = match form {
        Form::Plain(each) => {
            (0..blob.len()).step_by(each).map(|at| (at, blob.len().min(at + each))).collect()
        }
        Form::Gzip => {
            let ends = points.iter().skip(1).map(|next| next.blob_offset as usize);
            let begins =
                points.iter().map(|point| point.blob_offset as usize - usize::from(point.bits > 0));
            begins.zip(ends.chain([blob.len()])).collect()
        }
    };
    let digests: Vec<String> = spans
        .iter()
        .map(|(begin, end)| {
            let hash = Sha256::digest(blob.get(*begin..*end).unwrap_or_default());
            format!("sha256:{}", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
        })
        .collect();
    let mut to = FlatBufferBuilder::new();
    let toc = toc(&mut to, archive);
    let checkpoints = to.create_vector(&checkpoints(archive, points, form));
    let digests: Vec<_> = digests.iter().map(|digest| to.create_string(digest)).collect();
    let count = digests.len();
    let digests = to.create_vector(&digests);
    let compression = table(&mut to, |to| {
        if let Form::Plain(_) = form {
            to.push_slot::<i8>(slot(0), 2, 1);
        }
        to.push_slot::<i32>(slot(1), count as i32 - 1, 0);
        to.push_slot_always(slot(2), digests);
        to.push_slot_always(slot(3), checkpoints);
    });
    let (version, tool) = (to.create_string("0.9"), to.create_string("imgfs tests"));
    let root = table(&mut to, |to| {
        to.push_slot_always(slot(0), version);
        to.push_slot_always(slot(1), tool);
        to.push_slot::<i64>(slot(2), blob.len() as i64, 0);
        to.push_slot::<i64>(slot(3), archive.len() as i64, 0);
        to.push_slot_always(slot(4), toc);
        to.push_slot_always(slot(5), compression);
    });
    to.finish_minimal(root);
    to.finished_data().to_vec()
}

/// Where a table says where its field of this number is.
fn slot(number: VOffsetT) -> VOffsetT {
    4 + 2 * number
}

fn table<'a>(
    to: &mut FlatBufferBuilder<'a>,
    fields: impl FnOnce(&mut FlatBufferBuilder<'a>),
) -> WIPOffset<TableFinishedWIPOffset> {
    let start = to.start_table();
    fields(to);
    to.end_table(start)
}

fn checkpoints(archive: &[u8], points: &[Point], form: Form) -> Vec<u8> {
    const WINDOW: usize = 32 << 10;
    let mut bytes = Vec::new();
    if let Form::Plain(each) = form {
        bytes.extend(2_u32.to_le_bytes());
        bytes.extend((each as u64).to_le_bytes());
        bytes.extend((archive.len() as u64).to_le_bytes());
        return bytes;
    }
    bytes.extend((points.len() as u32).to_le_bytes());
    bytes.extend((4_u64 << 20).to_le_bytes());
    for point in points {
        bytes.extend(point.blob_offset.to_le_bytes());
        bytes.extend(point.stream_offset.to_le_bytes());
        bytes.push(point.bits);
        let at = point.stream_offset as usize;
        let window = &archive[at.saturating_sub(WINDOW)..at];
        bytes.resize(bytes.len() + WINDOW - window.len(), 0);
        bytes.extend(window);
    }
    bytes
}

fn toc(to: &mut FlatBufferBuilder<'_>, archive: &[u8]) -> WIPOffset<TableFinishedWIPOffset> {
    let mut files = Vec::new();
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let pax: Vec<(Vec<u8>, Vec<u8>)> = match entry.pax_extensions().unwrap() {
            None => Vec::new(),
            Some(records) => records
                .map(|record| record.unwrap())
                .map(|record| (record.key_bytes().to_vec(), record.value_bytes().to_vec()))
                .collect(),
        };
        let records: Vec<_> = pax
            .iter()
            .map(|(key, value)| {
                let (key, value) = (to.create_byte_string(key), to.create_byte_string(value));
                table(to, |to| {
                    to.push_slot_always(slot(0), key);
                    to.push_slot_always(slot(1), value);
                })
            })
            .collect();
        let records = to.create_vector(&records);
        let kind = match entry.header().entry_type() {
            tar::EntryType::Regular => "reg",
            tar::EntryType::Link => "hardlink",
            tar::EntryType::Symlink => "symlink",
            tar::EntryType::Directory => "dir",
            tar::EntryType::Char => "char",
            tar::EntryType::Block => "block",
            tar::EntryType::Fifo => "fifo",
            other => panic!("SOCI makes no ztoc with {other:?}"),
        };
        let header = entry.header().clone();
        let mtime = time_of(header.mtime().unwrap());
        let name = to.create_byte_string(&entry.path_bytes());
        let target = to.create_byte_string(&entry.link_name_bytes().unwrap_or_default());
        let (kind, mtime) = (to.create_string(kind), to.create_string(&mtime));
        files.push(table(to, |to| {
            to.push_slot_always(slot(0), name);
            to.push_slot_always(slot(1), kind);
            to.push_slot::<i64>(slot(2), entry.raw_file_position() as i64, 0);
            to.push_slot::<i64>(slot(3), entry.size() as i64, 0);
            to.push_slot_always(slot(4), target);
            to.push_slot::<i64>(slot(5), i64::from(header.mode().unwrap()), 0);
            to.push_slot::<u32>(slot(6), header.uid().unwrap() as u32, 0);
            to.push_slot::<u32>(slot(7), header.gid().unwrap() as u32, 0);
            to.push_slot_always(slot(10), mtime);
            let device = |number: std::io::Result<Option<u32>>| {
                i64::from(number.ok().flatten().unwrap_or(0))
            };
            to.push_slot::<i64>(slot(11), device(header.device_major()), 0);
            to.push_slot::<i64>(slot(12), device(header.device_minor()), 0);
            to.push_slot_always(slot(13), records);
        }));
        std::io::copy(&mut entry.by_ref(), &mut std::io::sink()).unwrap();
    }
    let files = to.create_vector(&files);
    table(to, |to| to.push_slot_always(slot(0), files))
}

/// As Go writes it.
fn time_of(seconds: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    humantime::format_rfc3339_seconds(time).to_string()
}
