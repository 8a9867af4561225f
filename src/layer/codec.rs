//! The decoder of a layer, however that is compressed.

use std::ops::ControlFlow;

pub(super) use super::compressed::{Boundary, Output, Progress};
pub use super::compressed::{CodecError, Compression};
use super::{gzip, zstd};

/// A decoder of any kind.
pub(super) enum Decoder {
    Plain(Plain),
    Gzip(Box<gzip::Decoder>),
    Zstd(Box<zstd::Decoder>),
}

impl Decoder {
    /// One that begins with the first byte of a member, a frame or a plain archive, which is at
    /// `blob_offset`.
    pub(super) fn new(compression: Compression, blob_offset: u64) -> Result<Self, CodecError> {
        Ok(match compression {
            Compression::Plain => Self::Plain(Plain { at: blob_offset, has_begun: false }),
            Compression::Gzip => Self::Gzip(Box::new(gzip::Decoder::new(blob_offset)?)),
            Compression::Zstd => Self::Zstd(Box::new(zstd::Decoder::new(blob_offset)?)),
        })
    }

    /// Lets it begin again with a member, a frame or a plain archive, which is at `blob_offset`.
    pub(super) fn restart(&mut self, blob_offset: u64) {
        match self {
            Self::Plain(decoder) => *decoder = Plain { at: blob_offset, has_begun: false },
            Self::Gzip(decoder) => decoder.restart(blob_offset),
            Self::Zstd(decoder) => decoder.restart(blob_offset),
        }
    }

    /// Decompresses what comes next of the blob.
    pub(super) fn push(&mut self, input: &[u8], output: &mut dyn Output) -> Progress {
        match self {
            Self::Plain(decoder) => Ok(decoder.push(input, output)),
            Self::Gzip(decoder) => decoder.push(input, output),
            Self::Zstd(decoder) => decoder.push(input, output),
        }
    }

    /// Offset in the blob of the next byte to be pushed. After an output has wanted no more that is the
    /// first one which has not been used up, and may have been pushed already.
    pub(super) fn next_byte(&self) -> u64 {
        match self {
            Self::Plain(decoder) => decoder.at,
            Self::Gzip(decoder) => decoder.next_byte(),
            Self::Zstd(decoder) => decoder.next_byte(),
        }
    }

    /// Bytes of memory that it takes.
    pub(super) fn memory_bytes(&self) -> u64 {
        match self {
            Self::Plain(_) => 0,
            Self::Gzip(decoder) => decoder.memory_bytes(),
            Self::Zstd(decoder) => decoder.memory_bytes(),
        }
    }

    /// Checks that the blob may end here. Returns the blob offset of what stands after the
    /// compressed data and is neither that nor padding, if there is such a thing.
    pub(super) fn finish(&self) -> Result<Option<u64>, CodecError> {
        match self {
            Self::Plain(_) => Ok(None),
            Self::Gzip(decoder) => decoder.finish(),
            Self::Zstd(decoder) => decoder.finish(),
        }
    }
}

/// The decoder of what is not compressed.
pub(super) struct Plain {
    at: u64,
    has_begun: bool,
}

impl Plain {
    fn push(&mut self, mut input: &[u8], output: &mut dyn Output) -> ControlFlow<()> {
        // One can begin again at any byte; the output knows that by itself.
        if !self.has_begun {
            output.boundary(Boundary { blob_bits: self.at * 8, window: None });
            self.has_begun = true;
        }
        while !input.is_empty() {
            let (piece, rest) = input.split_at(input.len().min(output.room()));
            input = rest;
            self.at += piece.len() as u64;
            output.bytes(piece, self.at)?;
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_decide() {
        let table: [(&[u8], Result<Compression, CodecError>); 9] = [
            (b"", Ok(Compression::Plain)),
            (b"etc/\0\0", Ok(Compression::Plain)),
            (&[0; 6], Ok(Compression::Plain)),
            (b"\x1f\x8b\x08\0\0\0", Ok(Compression::Gzip)),
            (b"\x1f", Ok(Compression::Plain)),
            (b"\x28\xb5\x2f\xfd\0\0", Ok(Compression::Zstd)),
            (b"\x5e\x2a\x4d\x18\0\0", Ok(Compression::Zstd)),
            (b"\xfd7zXZ\0", Err(CodecError::Unsupported("xz"))),
            (b"BZh91A", Err(CodecError::Unsupported("bzip2"))),
        ];
        for (magic, expected) in table {
            assert_eq!(Compression::detect(magic), expected, "{magic:?}");
        }
    }
}
