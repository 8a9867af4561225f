//! Unpacking tables.

use std::ops::ControlFlow;

use super::{MAX_TOC_BYTES, TocError};
use crate::layer::{
    CodecError, Compression, Kind,
    codec::{Boundary, Decoder, Output},
    tar::{Parser, TarEvent},
};

/// The name of the file with the table in the archive of an eStargz.
pub(super) const STARGZ_NAME: &[u8] = b"stargz.index.json";

/// What the archive may have beside the table: headers, padding, its end.
const MAX_PACKING_BYTES: u64 = 1 << 20;

/// The decompressed bytes so far.
struct Collected(Vec<u8>);

impl Output for Collected {
    fn bytes(&mut self, bytes: &[u8], _: u64) -> ControlFlow<()> {
        self.0.extend_from_slice(bytes);
        match self.0.len() as u64 > MAX_TOC_BYTES + MAX_PACKING_BYTES {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    fn boundary(&mut self, _: Boundary<'_>) {}
}

/// The JSON in an eStargz's table: the first file of an archive, compressed by gzip. `toc_offset` is
/// where in the blob that begins.
pub(super) fn unpack(member: &[u8], toc_offset: u64) -> Result<Vec<u8>, TocError> {
    let mut archive = Collected(Vec::new());
    let mut decoder = Decoder::new(Compression::Gzip, toc_offset)?;
    if decoder.push(member, &mut archive)?.is_break() {
        return Err(TocError::TooLarge);
    }
    let Collected(mut archive) = archive;
    let mut first = None;
    // What comes after the file is of no interest, nor what is wrong with it.
    let _ = Parser::new(1).push(&archive, &mut |event| {
        first.get_or_insert(event);
    });
    let file = match first {
        Some(TarEvent::Entry(file)) if file.name == STARGZ_NAME => file,
        _ => return Err(TocError::Packing("it does not begin with `stargz.index.json`")),
    };
    if file.kind != Kind::File || file.sparse.is_some() {
        return Err(TocError::Packing("`stargz.index.json` is no ordinary file"));
    }
    if file.size > MAX_TOC_BYTES {
        return Err(TocError::TooLarge);
    }
    // Both are not larger than 64 MiB and a bit.
    let (begin, size) = (file.data_offset as usize, file.size as usize);
    if archive.len() < begin + size {
        return Err(TocError::Packing("`stargz.index.json` is not complete"));
    }
    archive.truncate(begin + size);
    archive.drain(..begin);
    Ok(archive)
}

/// The JSON in zstd:chunked's table, which has `raw_bytes` bytes, at most 64 MiB. `toc_offset` is
/// where in the blob it begins.
pub(super) fn decompress_frame(
    frame: &[u8],
    raw_bytes: u64,
    toc_offset: u64,
) -> Result<Vec<u8>, TocError> {
    let damaged = |what: String| CodecError::Damaged { at: toc_offset, what };
    let json = zstd::bulk::decompress(frame, raw_bytes as usize)
        .map_err(|error| damaged(error.to_string()))?;
    match json.len() as u64 == raw_bytes {
        true => Ok(json),
        false => Err(TocError::Packing("it has not as many bytes as the manifest says")),
    }
}
