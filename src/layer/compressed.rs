//! What the decoders of gzip, zstd and plain archives have in common.

use std::ops::ControlFlow;

/// How a layer is compressed, as its first bytes say. What its media type says does not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    Plain,
    /// gzip (RFC 1952).
    Gzip,
    /// Zstandard (RFC 8878).
    Zstd,
}

/// Why compressed bytes cannot be decompressed. `at` is an offset into the blob.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// They are damaged.
    #[error("the compressed data is damaged at byte {at}: {what}")]
    Damaged {
        /// Where that was noticed.
        at: u64,
        /// What is wrong.
        what: String,
    },
    /// They decompress to something else than what was compressed, as a checksum says. Where it is
    /// wrong nobody knows.
    #[error("what comes of the compressed data before byte {at} is wrong: {what}")]
    Wrong {
        /// Where the checksum stands.
        at: u64,
        /// Which one it is.
        what: String,
    },
    /// They end too early.
    #[error("the compressed data ends at byte {at}, in the middle of a {what}")]
    Truncated {
        /// Where they end.
        at: u64,
        /// What is not complete.
        what: &'static str,
    },
    /// A zstd frame wants more memory than we give it.
    #[error(
        "the zstd frame at byte {at} needs a window of {window_bytes} bytes; at most 134217728 are accepted"
    )]
    Window {
        /// Where the frame begins.
        at: u64,
        /// What it asks for.
        window_bytes: u64,
    },
    /// A zstd frame was made with a dictionary, which nobody has.
    #[error("the zstd frame at byte {at} needs the dictionary {id}")]
    Dictionary {
        /// Where the frame begins.
        at: u64,
        /// The number of the dictionary.
        id: u32,
    },
    /// It is compressed in a way that images do not use.
    #[error("the layer is compressed with {0}, which is not supported (gzip and zstd are)")]
    Unsupported(&'static str),
}

impl Compression {
    /// How many of the first bytes it takes to know.
    pub const MAGIC_BYTES: usize = 6;

    /// What a blob that begins with `magic` is compressed with. `magic` may be shorter than
    /// [`Compression::MAGIC_BYTES`] only if the blob is.
    pub fn detect(magic: &[u8]) -> Result<Self, CodecError> {
        match magic {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err(CodecError::Unsupported("xz")),
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, ..] => {
                Err(CodecError::Unsupported("bzip2"))
            }
            _ => Ok(Self::Plain),
        }
    }

    /// Its name: `plain`, `gzip` or `zstd`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

/// Where a decoder can begin again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Boundary<'a> {
    /// The first bit of the blob that is still to be read; whole bytes but within gzip members.
    pub(super) blob_bits: u64,
    /// What of the stream before it deflate needs; `None` where a member or frame begins.
    pub(super) window: Option<&'a [u8]>,
}

/// What decoders give their output to.
pub(super) trait Output {
    /// How many bytes it takes at a time, at least 1: a decoder makes no more before it hands them over.
    fn room(&self) -> usize {
        usize::MAX
    }

    /// Whether it wants to be told of boundaries, and checksums are to be compared: so it is for a pass.
    /// One who reads a part compares a digest of his own.
    fn is_pass(&self) -> bool {
        true
    }

    /// Takes the next bytes of the stream; says whether more of them are wanted. Whoever pushes the blob up
    /// to the byte `blob_end` gets them, wherever decompressing has begun.
    fn bytes(&mut self, bytes: &[u8], blob_end: u64) -> ControlFlow<()>;

    /// Is told that the decoder could begin again here. Also called where the stream begins.
    fn boundary(&mut self, at: Boundary<'_>);
}

/// How it went on.
pub(super) type Progress = Result<ControlFlow<()>, CodecError>;
