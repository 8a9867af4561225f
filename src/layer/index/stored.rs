//! The stored form of an index: `docs/layer-index.md`.
//!
//! A head of fixed size, the compressed body with the table and the spans, and the windows, which
//! can be read one by one. What is read is checked so far that nothing it says can lead out of
//! bounds; that it is the truth about the layer is what the digest in the head is for.

mod body;
mod varint;

use sha2::{Digest as _, Sha256};

use super::{LayerIndex, Origin, Table, span::Span};
use crate::{image::Digest, layer::Compression};

use body::parse_body;

const MAGIC: &[u8; 8] = b"imgfslyr";
const VERSION: u32 = 3;

/// What is still read: its spans have up to 8 MiB, and begin where decompressing does.
const OLD_VERSION: u32 = 2;

/// Where in the head its digest is, which covers what is before it and the body.
const DIGEST_AT: usize = 184;

/// The most that a body may have decompressed. A table takes more room in memory than here.
const MAX_BODY_BYTES: u64 = 1 << 30;

/// 100,000 entries take a tenth of a second with that.
const BODY_LEVEL: i32 = 6;

/// Why an index cannot be read from its stored form, or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoredError {
    /// It is something else.
    #[error("it is no layer index")]
    Magic,
    /// Another imgfs has written it.
    #[error(
        "it is a layer index of version {0}; this imgfs reads versions {OLD_VERSION} to {VERSION}"
    )]
    Version(u32),
    /// It ends too early.
    #[error("the layer index has {found} bytes instead of {expected}")]
    Length {
        /// Bytes that it should have.
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// It is damaged.
    #[error("the layer index is damaged")]
    Digest,
    /// It is not damaged, but says what cannot be.
    #[error("the layer index makes no sense: {0}")]
    Content(&'static str),
    /// The windows are not in memory, so it cannot be written.
    #[error("the index has no windows in memory")]
    NoWindows,
    /// It cannot be compressed.
    #[error("the index cannot be compressed: {0}")]
    Compress(String),
}

/// What the head of a stored index says: how much there is to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredHead {
    body_bytes: u64,
    raw_bytes: u64,
    windows_bytes: u64,
}

impl StoredHead {
    /// Bytes of the head.
    pub const BYTES: usize = DIGEST_AT + 32;

    /// Reads it. `head` has at least [`StoredHead::BYTES`] bytes.
    pub fn parse(head: &[u8]) -> Result<Self, StoredError> {
        if head.get(..8).is_none_or(|magic| magic != MAGIC) {
            return Err(StoredError::Magic);
        }
        let length = StoredError::Length { expected: Self::BYTES as u64, found: head.len() as u64 };
        let version = u32_at(head, 8).ok_or(length.clone())?;
        if !(OLD_VERSION..=VERSION).contains(&version) {
            return Err(StoredError::Version(version));
        }
        let number = |at| head.get(..Self::BYTES).and_then(|head| u64_at(head, at));
        match (number(160), number(168), number(176)) {
            (Some(body_bytes), Some(raw_bytes), Some(windows_bytes)) => {
                if raw_bytes > MAX_BODY_BYTES || body_bytes > MAX_BODY_BYTES {
                    return Err(StoredError::Content("the body is too large"));
                }
                if windows_bytes > 1 << 40 {
                    return Err(StoredError::Content("the windows are too large"));
                }
                Ok(Self { body_bytes, raw_bytes, windows_bytes })
            }
            _ => Err(length),
        }
    }

    /// Bytes of head and body: everything but the windows.
    pub fn table_bytes(&self) -> u64 {
        Self::BYTES as u64 + self.body_bytes
    }

    /// Memory that it takes to read it without its windows, in bytes; the index takes less when it has been
    /// read.
    pub fn reading_bytes(&self) -> u64 {
        // A row has 32 bytes in memory and about 8 in the body, before that is compressed.
        self.body_bytes.saturating_add(self.raw_bytes.saturating_mul(6))
    }

    /// Bytes of the whole index.
    pub fn total_bytes(&self) -> u64 {
        self.table_bytes() + self.windows_bytes
    }
}

impl LayerIndex {
    /// Its stored form.
    pub fn to_bytes(&self) -> Result<Vec<u8>, StoredError> {
        self.to_version(VERSION)
    }

    /// The stored form of version 2 that an earlier imgfs would have written, of which `stream` is the stream: a
    /// span from each place where decompressing can begin to the next.
    #[cfg(test)]
    pub(in crate::layer) fn to_old_bytes(&self, stream: &[u8]) -> Result<Vec<u8>, StoredError> {
        let mut old = self.clone();
        old.spans.retain(Span::is_start);
        for at in 0..old.spans.len() {
            let begin = |at: usize| {
                let span = old.spans.get(at)?;
                Some((span.stream_offset - u64::from(span.skip)) as usize)
            };
            let range = begin(at).unwrap_or(0)..begin(at + 1).unwrap_or(stream.len());
            let digest = Sha256::digest(&stream[range]).into();
            old.spans[at].digest = digest;
        }
        for span in &mut old.spans {
            span.stream_offset -= u64::from(span.skip);
            span.skip = 0;
        }
        old.to_version(OLD_VERSION)
    }

    fn to_version(&self, version: u32) -> Result<Vec<u8>, StoredError> {
        let windows = self.windows.as_ref().ok_or(StoredError::NoWindows)?;
        let raw = body::write(self, version == OLD_VERSION);
        let body = zstd::bulk::compress(&raw, BODY_LEVEL)
            .map_err(|e| StoredError::Compress(e.to_string()))?;
        let mut out = Vec::with_capacity(StoredHead::BYTES + body.len() + windows.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&version.to_le_bytes());
        out.push(match self.compression {
            Compression::Plain => 0,
            Compression::Gzip => 1,
            Compression::Zstd => 2,
        });
        out.push(algorithm(Some(&self.blob)));
        out.push(algorithm(self.diff_id.as_ref()));
        out.push(match self.origin {
            Origin::Pass => 0,
            Origin::Toc => 1,
            Origin::Ztoc => 2,
        });
        for digest in [Some(&self.blob), self.diff_id.as_ref()] {
            let hash = digest.map_or(&[][..], Digest::as_bytes);
            out.extend_from_slice(hash);
            out.resize(out.len() + 64 - hash.len(), 0);
        }
        for number in [
            self.blob_bytes,
            self.stream_bytes,
            body.len() as u64,
            raw.len() as u64,
            windows.len() as u64,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let digest = Sha256::new().chain_update(&out).chain_update(&body).finalize();
        out.extend_from_slice(&digest);
        out.extend_from_slice(&body);
        out.extend_from_slice(windows);
        Ok(out)
    }

    /// Reads an index from all of its stored form.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StoredError> {
        let head = StoredHead::parse(bytes)?;
        let (expected, found) = (head.total_bytes(), bytes.len() as u64);
        if expected != found {
            return Err(StoredError::Length { expected, found });
        }
        let mut index = Self::from_table(bytes)?;
        // It is as long as the windows are said to be, so the offset fits.
        index.windows = Some(bytes[head.table_bytes() as usize..].to_vec());
        Ok(index)
    }

    /// Reads an index without its windows from the beginning of its stored form, of which the first
    /// [`StoredHead::table_bytes`] bytes are needed.
    pub fn from_table(bytes: &[u8]) -> Result<Self, StoredError> {
        let head = StoredHead::parse(bytes)?;
        let (expected, found) = (head.table_bytes(), bytes.len() as u64);
        let length = StoredError::Length { expected, found };
        let end = usize::try_from(expected).map_err(|_| length.clone())?;
        let body = bytes.get(StoredHead::BYTES..end).ok_or(length)?;
        let digest = Sha256::new().chain_update(&bytes[..DIGEST_AT]).chain_update(body).finalize();
        if digest[..] != bytes[DIGEST_AT..StoredHead::BYTES] {
            return Err(StoredError::Digest);
        }
        let raw_bytes = usize::try_from(head.raw_bytes).map_err(|_| StoredError::Digest)?;
        let raw = zstd::bulk::decompress(body, raw_bytes)
            .map_err(|_| StoredError::Content("the body cannot be decompressed"))?;
        let compression = match bytes[12] {
            0 => Compression::Plain,
            1 => Compression::Gzip,
            2 => Compression::Zstd,
            _ => return Err(StoredError::Content("the compression is unknown")),
        };
        let origin = match bytes[15] {
            0 => Origin::Pass,
            1 if compression != Compression::Plain => Origin::Toc,
            2 if compression != Compression::Zstd => Origin::Ztoc,
            _ => return Err(StoredError::Content("what it was made of is unknown")),
        };
        let blob = read_digest(bytes[13], &bytes[16..80])?
            .ok_or(StoredError::Content("the digest is missing"))?;
        let diff_id = read_digest(bytes[14], &bytes[80..144])?;
        if origin != Origin::Pass && diff_id.is_some() {
            return Err(StoredError::Content("nobody has computed its diff ID"));
        }
        let number = |at| u64_at(bytes, at).ok_or(StoredError::Digest);
        let mut index = Self {
            origin,
            blob,
            blob_bytes: number(144)?,
            used_bytes: 0,
            diff_id,
            stream_bytes: number(152)?,
            compression,
            table: Table::default(),
            spans: Vec::new(),
            windows: None,
            windows_offset: head.table_bytes(),
            notes: Vec::new(),
            more_notes: 0,
        };
        let is_old = u32_at(bytes, 8) == Some(OLD_VERSION);
        parse_body(&mut index, &raw, is_old)?;
        let windows = index.spans.iter().rev().find_map(Span::window).map_or(0, |w| w.end);
        if windows != head.windows_bytes {
            return Err(StoredError::Content("the windows have another length"));
        }
        Ok(index)
    }
}

#[cfg(feature = "fuzzing")]
impl LayerIndex {
    /// An index with this body, of a gzip blob.
    pub(in crate::layer) fn from_body(
        origin: Origin,
        is_old: bool,
        body: &[u8],
        blob_bytes: u64,
        stream_bytes: u64,
    ) -> Result<Self, StoredError> {
        let mut index = Self {
            origin,
            blob: Digest::sha256(b""),
            blob_bytes,
            used_bytes: 0,
            diff_id: None,
            stream_bytes,
            compression: Compression::Gzip,
            table: Table::default(),
            spans: Vec::new(),
            windows: None,
            windows_offset: 0,
            notes: Vec::new(),
            more_notes: 0,
        };
        parse_body(&mut index, body, is_old)?;
        Ok(index)
    }

    /// The index with these windows.
    pub(in crate::layer) fn with_windows(mut self, windows: &[u8]) -> Self {
        self.windows = Some(windows.to_vec());
        self
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The little-endian number at `at`.
pub(in crate::layer) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn algorithm(digest: Option<&Digest>) -> u8 {
    match digest {
        None => 0,
        Some(Digest::Sha256(_)) => 1,
        Some(Digest::Sha512(_)) => 2,
    }
}

fn read_digest(algorithm: u8, bytes: &[u8]) -> Result<Option<Digest>, StoredError> {
    let unknown = StoredError::Content("the algorithm of a digest is unknown");
    match algorithm {
        0 => Ok(None),
        1 => Ok(bytes.first_chunk().map(|hash| Digest::Sha256(*hash))),
        2 => Ok(bytes.first_chunk().map(|hash| Digest::Sha512(*hash))),
        _ => Err(unknown),
    }
}
