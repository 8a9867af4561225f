//! A push decoder of gzip (RFC 1952) that says where one can begin again.
//!
//! A file is one or more members, as pigz and bgzip make them, perhaps with zeros after the last.
//! At the end of each deflate block the bit at which the next one begins and the last 32 KiB of
//! output are enough to go on from there; at the beginning of a member it takes nothing at all.

mod header;
mod thinning;
mod zlib;

use std::ops::ControlFlow;

use super::compressed::{Boundary, CodecError, Output, Progress};
use header::HeaderParser;
use zlib::{At, Inflate};

pub(super) use thinning::{FOLLOWING_BYTES, THINNER_BYTES, Thinner};
pub(super) use zlib::WINDOW_BYTES;

/// Output that is made at most before it is handed on.
const CHUNK_BYTES: usize = 256 << 10;

/// The same where only a part is read: it stays in the processor's cache.
const PART_CHUNK_BYTES: usize = 64 << 10;

/// Memory that zlib takes.
const INFLATE_BYTES: u64 = 64 << 10;

/// Bytes of CRC-32 and length after each member.
const TRAILER_BYTES: usize = 8;

/// Where in the file a decoder stands.
enum Phase {
    Header(HeaderParser),
    Body,
    Trailer([u8; TRAILER_BYTES], usize),
    /// After a member: there may be another, zeros, or nothing.
    Between,
    /// The first byte of a member has followed, as it seems.
    Magic,
    /// What follows is neither a member nor zeros. Everybody ignores that.
    Behind(u64),
}

/// The decoder.
pub(super) struct Decoder {
    phase: Phase,
    inflate: Inflate,
    /// Offset in the blob of the next byte to be pushed.
    at: u64,
    /// Bits of the next byte that belong to the block before, if it begins in the middle of one.
    skipped_bits: u8,
    /// The last output, in a pass at least [`WINDOW_BYTES`] of it, and room for more.
    buffer: Vec<u8>,
    filled: usize,
    /// There was no more room for output: there may be more without further input.
    was_full: bool,
    member: Member,
}

/// What is known of the member that is being read.
struct Member {
    crc: crc32fast::Hasher,
    bytes: u64,
    /// Whether all of it is seen, so that its checksum can be compared.
    is_whole: bool,
}

impl Decoder {
    /// One that begins at a member, which is at `blob_offset`.
    pub(super) fn new(blob_offset: u64) -> Result<Self, CodecError> {
        let damaged = |what: &str| CodecError::Damaged { at: blob_offset, what: what.to_owned() };
        Ok(Self {
            phase: Phase::Header(HeaderParser::new()),
            inflate: Inflate::new().map_err(damaged)?,
            at: blob_offset,
            skipped_bits: 0,
            buffer: Vec::new(),
            filled: 0,
            was_full: false,
            member: Member { crc: crc32fast::Hasher::new(), bytes: 0, is_whole: true },
        })
    }

    /// One that begins at a block, whose first bit is `blob_bits` of the blob; `window` is what of
    /// the output came before. The first byte to be pushed is the one with that bit.
    pub(super) fn resume(blob_bits: u64, window: &[u8]) -> Result<Self, CodecError> {
        let mut decoder = Self::new(blob_bits / 8)?;
        let at = decoder.at;
        decoder
            .inflate
            .set_window(window)
            .map_err(|what| CodecError::Damaged { at, what: what.to_owned() })?;
        decoder.phase = Phase::Body;
        decoder.skipped_bits = (blob_bits % 8) as u8;
        decoder.member.is_whole = false;
        Ok(decoder)
    }

    /// Lets it begin again at a member, which is at `blob_offset`.
    pub(super) fn restart(&mut self, blob_offset: u64) {
        self.phase = Phase::Header(HeaderParser::new());
        self.at = blob_offset;
        self.skipped_bits = 0;
        self.filled = 0;
        self.was_full = false;
    }

    /// Bytes of memory that it takes: what comes out of it, and what zlib has.
    pub(super) fn memory_bytes(&self) -> u64 {
        INFLATE_BYTES + self.buffer.capacity() as u64
    }

    /// Offset in the blob of the next byte to be pushed.
    pub(super) fn next_byte(&self) -> u64 {
        self.at
    }

    /// Decompresses what comes next.
    pub(super) fn push(&mut self, mut input: &[u8], output: &mut dyn Output) -> Progress {
        loop {
            let Some(&first) = input.first() else {
                if !self.was_full {
                    break;
                }
                if self.inflate(&mut input, output)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                continue;
            };
            match &mut self.phase {
                Phase::Header(parser) => {
                    if parser.is_new() {
                        output.boundary(Boundary { blob_bits: self.at * 8, window: None });
                    }
                    let is_done = parser
                        .push(first)
                        .map_err(|what| CodecError::Damaged { at: self.at, what: what.into() })?;
                    if is_done {
                        self.begin_member()?;
                    }
                    self.advance(&mut input, 1);
                }
                Phase::Body => {
                    if self.inflate(&mut input, output)?.is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                Phase::Trailer(bytes, filled) => {
                    bytes[*filled] = first;
                    *filled += 1;
                    if *filled == TRAILER_BYTES {
                        let bytes = *bytes;
                        self.check(bytes)?;
                        self.phase = Phase::Between;
                    }
                    self.advance(&mut input, 1);
                }
                Phase::Between => match first {
                    0 => {
                        let zeros = input.iter().take_while(|b| **b == 0).count();
                        self.advance(&mut input, zeros);
                    }
                    0x1f => {
                        self.phase = Phase::Magic;
                        self.advance(&mut input, 1);
                    }
                    _ => self.phase = Phase::Behind(self.at),
                },
                Phase::Magic if first == 0x8b => {
                    let mut parser = HeaderParser::new();
                    let begun = parser.push(0x1f);
                    begun.map_err(|what| CodecError::Damaged { at: self.at, what: what.into() })?;
                    output.boundary(Boundary { blob_bits: (self.at - 1) * 8, window: None });
                    self.phase = Phase::Header(parser);
                }
                Phase::Magic => self.phase = Phase::Behind(self.at - 1),
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
        let truncated = |what| Err(CodecError::Truncated { at: self.at, what });
        match &self.phase {
            Phase::Header(_) => truncated("gzip header"),
            Phase::Body => truncated("gzip member"),
            Phase::Trailer(..) => truncated("gzip trailer"),
            Phase::Between => Ok(None),
            Phase::Magic => Ok(Some(self.at - 1)),
            Phase::Behind(at) => Ok(Some(*at)),
        }
    }

    fn advance(&mut self, input: &mut &[u8], count: usize) {
        *input = &input[count..];
        self.at += count as u64;
    }

    fn damaged(&self, what: impl Into<String>) -> CodecError {
        CodecError::Damaged { at: self.at, what: what.into() }
    }

    fn wrong(&self, what: &str) -> CodecError {
        CodecError::Wrong { at: self.at, what: what.to_owned() }
    }

    fn begin_member(&mut self) -> Result<(), CodecError> {
        self.inflate.reset().map_err(|what| self.damaged(what))?;
        self.member = Member { crc: crc32fast::Hasher::new(), bytes: 0, is_whole: true };
        self.phase = Phase::Body;
        Ok(())
    }

    fn inflate(&mut self, input: &mut &[u8], output: &mut dyn Output) -> Progress {
        if self.skipped_bits > 0 && !input.is_empty() {
            let bits = 8 - self.skipped_bits;
            self.skipped_bits = 0;
            self.inflate.begin_within(input[0], bits).map_err(|what| self.damaged(what))?;
            self.advance(input, 1);
        }
        let is_pass = output.is_pass();
        if self.buffer.is_empty() {
            let bytes = if is_pass { WINDOW_BYTES + CHUNK_BYTES } else { PART_CHUNK_BYTES };
            self.buffer = vec![0; bytes];
        }
        if !is_pass {
            self.filled = 0;
            self.member.is_whole = false;
        } else if self.filled == self.buffer.len() {
            self.buffer.copy_within(self.filled - WINDOW_BYTES.., 0);
            self.filled = WINDOW_BYTES;
        }
        let room = output.room().min(self.buffer.len() - self.filled);
        let step =
            self.inflate.step(input, &mut self.buffer[self.filled..self.filled + room], is_pass);
        self.was_full = step.produced == room && !matches!(step.at, Ok(At::End));
        let produced = self.filled..self.filled + step.produced;
        self.filled = produced.end;
        self.member.bytes += step.produced as u64;
        self.advance(input, step.consumed);
        let produced = &self.buffer[produced];
        if self.member.is_whole {
            self.member.crc.update(produced);
        }
        let mut flow = ControlFlow::Continue(());
        if !produced.is_empty() {
            flow = output.bytes(produced, self.at);
        }
        let at = match step.at {
            Ok(at) => at,
            // What was wanted has come before that.
            Err(_) if flow.is_break() => return Ok(flow),
            Err(what) => return Err(self.damaged(what)),
        };
        match at {
            At::Boundary { unused_bits } if flow.is_continue() => {
                let length = self.filled.min(WINDOW_BYTES);
                // A member that began less than 32 KiB ago does not look back beyond that; one
                // that was resumed may.
                let length = match usize::try_from(self.member.bytes) {
                    Ok(bytes) if self.member.is_whole => length.min(bytes),
                    _ => length,
                };
                let window = &self.buffer[self.filled - length..self.filled];
                let blob_bits = self.at * 8 - u64::from(unused_bits);
                output.boundary(Boundary { blob_bits, window: Some(window) });
            }
            At::End => self.phase = Phase::Trailer([0; TRAILER_BYTES], 0),
            // It cannot be: there was input and there was room.
            At::Middle if step.consumed == 0 && step.produced == 0 && !input.is_empty() => {
                return Err(self.damaged("inflating does not go on"));
            }
            _ => {}
        }
        Ok(flow)
    }

    fn check(&mut self, [a, b, c, d, length @ ..]: [u8; TRAILER_BYTES]) -> Result<(), CodecError> {
        if !self.member.is_whole {
            return Ok(());
        }
        let crc = std::mem::take(&mut self.member.crc).finalize();
        if crc != u32::from_le_bytes([a, b, c, d]) {
            return Err(self.wrong("the CRC-32 of a gzip member is another"));
        }
        // The length is that modulo 4 GiB.
        if self.member.bytes as u32 != u32::from_le_bytes(length) {
            return Err(self.wrong("the length of a gzip member is another"));
        }
        Ok(())
    }
}
