//! A push decoder of Zstandard (RFC 8878) that says where frames begin.

use std::ops::ControlFlow;

use zstd::stream::raw::{DParameter, Decoder as Raw, InBuffer, Operation, OutBuffer};

use super::compressed::{Boundary, CodecError, Output, Progress};

/// The largest window that is accepted, as a power of two: 128 MiB, what `zstd -d` accepts without
/// being asked.
const MAX_WINDOW_LOG: u32 = 27;

/// Output that is made at most before it is handed on.
const CHUNK_BYTES: usize = 256 << 10;

const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// What zstd asks for in advance together with a block: the header of the next one. If that is
/// damaged, what has been decompressed in the same call is lost.
const BLOCK_HEADER_BYTES: usize = 3;

/// The longest header of a frame.
const MAX_HEADER_BYTES: usize = 18;

enum Phase {
    /// Between frames, with what is here of the next header.
    Header,
    /// A frame that has nothing in it for us, and how many bytes of it are left.
    Skipped(u64),
    Frame,
    /// What follows is no frame.
    Behind(u64),
}

/// The decoder.
pub(super) struct Decoder {
    phase: Phase,
    raw: Raw<'static>,
    at: u64,
    header: Vec<u8>,
    buffer: Box<[u8]>,
    has_frame: bool,
    /// The largest window of a frame so far: what zstd has allocated.
    window_bytes: u64,
    /// How many bytes zstd wants next. It gets just these: one block at a time, so that what comes
    /// before a damaged one is written, however the input is cut into pieces.
    wanted: usize,
    /// What is here of them.
    pending: Vec<u8>,
    /// The output was full: there may be more without further input.
    was_full: bool,
}

/// What the header of a frame says.
#[derive(Debug, PartialEq, Eq)]
enum Header {
    Incomplete,
    Skippable(u64),
    Frame { window_bytes: u64, dictionary: u32 },
    Other,
}

impl Decoder {
    /// One that begins at a frame, which is at `blob_offset`.
    pub(super) fn new(blob_offset: u64) -> Result<Self, CodecError> {
        let raw = || {
            let mut raw = Raw::new()?;
            raw.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG))?;
            Ok(raw)
        };
        let raw = raw().map_err(|e: std::io::Error| CodecError::Damaged {
            at: blob_offset,
            what: e.to_string(),
        })?;
        Ok(Self {
            phase: Phase::Header,
            raw,
            at: blob_offset,
            header: Vec::new(),
            buffer: vec![0; CHUNK_BYTES].into_boxed_slice(),
            has_frame: false,
            window_bytes: 0,
            wanted: 1,
            pending: Vec::new(),
            was_full: false,
        })
    }

    /// Lets it begin again at a frame, which is at `blob_offset`.
    pub(super) fn restart(&mut self, blob_offset: u64) {
        self.phase = Phase::Header;
        self.at = blob_offset;
        self.header.clear();
        self.has_frame = false;
        self.wanted = 1;
        self.pending.clear();
        self.was_full = false;
    }

    /// Offset in the blob of the next byte to be pushed.
    pub(super) fn next_byte(&self) -> u64 {
        self.at + self.pending.len() as u64
    }

    /// Bytes of memory that it takes.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.window_bytes + (self.buffer.len() + self.pending.capacity()) as u64
    }

    /// Decompresses what comes next.
    pub(super) fn push(&mut self, mut input: &[u8], output: &mut dyn Output) -> Progress {
        if self.was_full && self.decode(&mut &[][..], output)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        loop {
            match self.phase {
                Phase::Header => {
                    let Some((&first, rest)) = input.split_first() else { break };
                    self.header.push(first);
                    input = rest;
                    self.at += 1;
                    if self.begin_frame(output)? && self.decode_header(output)?.is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                Phase::Skipped(0) => self.phase = Phase::Header,
                Phase::Skipped(left) => {
                    if input.is_empty() {
                        break;
                    }
                    let count = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                    input = &input[count..];
                    self.at += count as u64;
                    self.phase = Phase::Skipped(left - count as u64);
                }
                Phase::Frame => {
                    if input.is_empty() {
                        break;
                    }
                    let missing = self.wanted - self.pending.len();
                    let (taken, rest) = input.split_at(missing.min(input.len()));
                    input = rest;
                    let flow = if self.pending.is_empty() && taken.len() == missing {
                        self.decode_all(taken, output)?
                    } else {
                        self.pending.extend_from_slice(taken);
                        if taken.len() < missing {
                            break;
                        }
                        let pending = std::mem::take(&mut self.pending);
                        self.decode_all(&pending, output)?
                    };
                    if flow.is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                Phase::Behind(_) => {
                    self.at += input.len() as u64;
                    break;
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Checks that the blob may end here.
    pub(super) fn finish(&self) -> Result<Option<u64>, CodecError> {
        let at = self.at + self.pending.len() as u64;
        let truncated = |what| Err(CodecError::Truncated { at, what });
        match self.phase {
            // What is too short to be a frame is not one, like `Behind`.
            Phase::Header if self.header.is_empty() => Ok(None),
            Phase::Header if !self.has_frame || MAGIC.starts_with(self.magic()) => {
                truncated("zstd frame header")
            }
            Phase::Header => Ok(Some(self.at - self.header.len() as u64)),
            Phase::Skipped(0) => Ok(None),
            Phase::Skipped(_) => truncated("skippable zstd frame"),
            Phase::Frame => truncated("zstd frame"),
            Phase::Behind(at) => Ok(Some(at)),
        }
    }

    fn magic(&self) -> &[u8] {
        &self.header[..self.header.len().min(MAGIC.len())]
    }

    /// Looks at the header; says whether a frame with content begins.
    fn begin_frame(&mut self, output: &mut dyn Output) -> Result<bool, CodecError> {
        let start = self.at - self.header.len() as u64;
        match parse_header(&self.header) {
            Header::Incomplete => return Ok(false),
            Header::Skippable(bytes) => {
                if !self.has_frame {
                    // So that the stream has a beginning whatever it begins with.
                    output.boundary(Boundary { blob_bits: start * 8, window: None });
                }
                self.header.clear();
                self.phase = Phase::Skipped(bytes);
                self.has_frame = true;
                return Ok(false);
            }
            Header::Other if self.has_frame => {
                self.phase = Phase::Behind(start);
                return Ok(false);
            }
            Header::Other => {
                let what = "it does not begin as a zstd frame".to_owned();
                return Err(CodecError::Damaged { at: start, what });
            }
            Header::Frame { dictionary, .. } if dictionary != 0 => {
                return Err(CodecError::Dictionary { at: start, id: dictionary });
            }
            Header::Frame { window_bytes, .. } if window_bytes > 1 << MAX_WINDOW_LOG => {
                return Err(CodecError::Window { at: start, window_bytes });
            }
            Header::Frame { window_bytes, .. } => {
                self.window_bytes = self.window_bytes.max(window_bytes);
            }
        }
        output.boundary(Boundary { blob_bits: start * 8, window: None });
        self.raw.reinit().map_err(|e| CodecError::Damaged { at: start, what: e.to_string() })?;
        self.phase = Phase::Frame;
        self.has_frame = true;
        Ok(true)
    }

    /// Gives the header, which has been collected, to zstd.
    fn decode_header(&mut self, output: &mut dyn Output) -> Progress {
        let header = std::mem::take(&mut self.header);
        self.at -= header.len() as u64;
        self.decode_all(&header, output)
    }

    fn decode_all(&mut self, mut input: &[u8], output: &mut dyn Output) -> Progress {
        while !input.is_empty() {
            if self.decode(&mut input, output)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn decode(&mut self, input: &mut &[u8], output: &mut dyn Output) -> Progress {
        loop {
            let room = output.room().min(CHUNK_BYTES);
            let mut from = InBuffer::around(input);
            let mut to = OutBuffer::around(&mut self.buffer[..room]);
            let hint = self.raw.run(&mut from, &mut to).map_err(|e| failed(self.at, &e))?;
            let (consumed, produced) = (from.pos(), to.pos());
            *input = &input[consumed..];
            self.at += consumed as u64;
            self.wanted = match hint.checked_sub(BLOCK_HEADER_BYTES) {
                None | Some(0) => hint.max(1),
                Some(without_next_header) => without_next_header,
            };
            if hint == 0 {
                self.phase = Phase::Header;
            }
            // A full buffer may mean that there is more without further input.
            self.was_full = produced == room && hint > 0;
            let bytes = &self.buffer[..produced];
            // zstd gives the last byte of a frame back as long as there is more output.
            let blob_end = self.at + input.len() as u64;
            if !bytes.is_empty() && output.bytes(bytes, blob_end).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            if hint == 0 {
                break;
            }
            if !self.was_full {
                if consumed == 0 && produced == 0 && !input.is_empty() {
                    let what = "decompressing does not go on".to_owned();
                    return Err(CodecError::Damaged { at: self.at, what });
                }
                if input.is_empty() {
                    break;
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// RFC 8878, sections 3.1.1.1 and 3.1.2.
fn parse_header(bytes: &[u8]) -> Header {
    let number = |from: usize, count: usize| {
        let bytes = bytes.get(from..from + count)?;
        Some(bytes.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte)))
    };
    let Some(magic) = bytes.get(..4) else {
        return Header::Incomplete;
    };
    if (0x50..=0x5f).contains(&magic[0]) && magic[1..] == [0x2a, 0x4d, 0x18] {
        return number(4, 4).map_or(Header::Incomplete, Header::Skippable);
    }
    if magic != MAGIC {
        return Header::Other;
    }
    let frame = || {
        let descriptor = *bytes.get(4)?;
        let is_single = descriptor & 0x20 != 0;
        let dictionary_bytes = [0, 1, 2, 4][usize::from(descriptor & 3)];
        let size_bytes = match descriptor >> 6 {
            0 => usize::from(is_single),
            size => 1 << size,
        };
        let dictionary_at = if is_single { 5 } else { 6 };
        let size_at = dictionary_at + dictionary_bytes;
        // The numbers of dictionaries have four bytes at most.
        let dictionary = number(dictionary_at, dictionary_bytes)? as u32;
        let size = number(size_at, size_bytes)? + if size_bytes == 2 { 256 } else { 0 };
        let window_bytes = if is_single {
            size
        } else {
            let window = u64::from(*bytes.get(5)?);
            let base = 1_u64 << (10 + (window >> 3));
            base + base / 8 * (window & 7)
        };
        debug_assert!(size_at + size_bytes <= MAX_HEADER_BYTES);
        Some(Header::Frame { window_bytes, dictionary })
    };
    frame().unwrap_or(Header::Incomplete)
}

/// What the library says of a frame. It has errors as texts only.
fn failed(at: u64, error: &std::io::Error) -> CodecError {
    let what = error.to_string();
    match what.contains("checksum") {
        true => CodecError::Wrong { at, what },
        false => CodecError::Damaged { at, what },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let frame = |window_bytes, dictionary| Header::Frame { window_bytes, dictionary };
        let table: [(&str, Header); 11] = [
            ("", Header::Incomplete),
            ("28b52ffd", Header::Incomplete),
            ("28b52ffd00", Header::Incomplete),
            ("28b52ffd0058", frame(2 << 20, 0)),
            ("28b52ffd0089", frame((1 << 27) + (1 << 24), 0)),
            ("28b52ffd2005", frame(5, 0)),
            ("28b52ffd600001", frame(512, 0)),
            ("28b52ffd21aa05", frame(5, 0xaa)),
            ("28b52ffde00000000001000000", frame(1 << 32, 0)),
            ("5f2a4d1805000000", Header::Skippable(5)),
            ("7573746172", Header::Other),
        ];
        for (hex, expected) in table {
            assert_eq!(parse_header(&hex::decode(hex).unwrap()), expected, "{hex}");
        }
    }
}
