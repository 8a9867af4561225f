//! Raw deflate by zlib-rs, through the interface that zlib has.
//!
//! The safe interface of zlib-rs (0.6) tells neither how many bits of the last byte are unused at
//! the end of a block nor can it begin in the middle of a byte. So this is the one module of imgfs
//! with `unsafe` in it. All of it is calls with a stream that is initialised in [`Inflate::new`],
//! ended in `drop`, and never seen outside.
#![allow(unsafe_code)]

use std::{ffi::CStr, mem};

use libz_rs_sys as zlib;

/// The most that deflate looks back, in bytes.
pub(in crate::layer) const WINDOW_BYTES: usize = 32 << 10;

/// A decompressor of one deflate stream.
pub(super) struct Inflate {
    stream: Box<zlib::z_stream>,
}

// SAFETY: the pointers in a `z_stream` are its own state, allocated by Rust's global allocator,
// which frees from any thread, and `next_in`, `next_out`, which are null but during a call.
// zlib-rs has no state of threads.
unsafe impl Send for Inflate {}

/// What one call has done.
pub(super) struct Step {
    /// Bytes of the input that are used up.
    pub(super) consumed: usize,
    /// Bytes of the output that are written.
    pub(super) produced: usize,
    /// Where it stands now, or why it cannot go on.
    pub(super) at: Result<At, String>,
}

/// Where in a deflate stream a decompressor stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// Somewhere in it.
    Middle,
    /// Between two blocks. The last `unused_bits` bits of the consumed bytes belong to the next.
    Boundary {
        /// At most 7.
        unused_bits: u8,
    },
    /// Behind its last block; what is left of the last byte is padding.
    End,
}

impl Inflate {
    /// One that begins with the first bit of the first byte.
    pub(super) fn new() -> Result<Self, &'static str> {
        let mut stream = Box::new(zlib::z_stream::default());
        let size = mem::size_of::<zlib::z_stream>() as i32;
        // SAFETY: the stream is a valid `z_stream` whose allocator `default` has set, the size is
        // its own, and the version is a C string of the library.
        let result = unsafe { zlib::inflateInit2_(&mut *stream, -15, zlib::zlibVersion(), size) };
        // A stream that could not be initialised must not be ended: it is dropped as it is.
        if result == zlib::Z_OK { Ok(Self { stream }) } else { Err("there is no memory for it") }
    }

    /// Lets it begin with another stream.
    pub(super) fn reset(&mut self) -> Result<(), &'static str> {
        // SAFETY: the stream is initialised.
        let result = unsafe { zlib::inflateReset(&mut *self.stream) };
        if result == zlib::Z_OK { Ok(()) } else { Err("it cannot begin again") }
    }

    /// Tells it what came before the first byte that it decompresses.
    pub(super) fn set_window(&mut self, window: &[u8]) -> Result<(), &'static str> {
        // At most `WINDOW_BYTES` matter, so the length fits.
        let window = &window[window.len().saturating_sub(WINDOW_BYTES)..];
        // SAFETY: the stream is initialised; pointer and length are those of a live slice, which
        // is copied.
        let result = unsafe {
            zlib::inflateSetDictionary(&mut *self.stream, window.as_ptr(), window.len() as u32)
        };
        if result == zlib::Z_OK { Ok(()) } else { Err("its window is not accepted") }
    }

    /// Gives it the last `bits` bits, 1 to 7, of a byte, as if the others had been read.
    pub(super) fn begin_within(&mut self, byte: u8, bits: u8) -> Result<(), &'static str> {
        let bits = bits.clamp(1, 7);
        let value = i32::from(byte >> (8 - bits));
        // SAFETY: the stream is initialised.
        let result = unsafe { zlib::inflatePrime(&mut *self.stream, i32::from(bits), value) };
        if result == zlib::Z_OK { Ok(()) } else { Err("it cannot begin within a byte") }
    }

    /// Decompresses up to the end of `input` or of `output`, or of a block if it `stops_at_blocks`,
    /// whichever comes first. What comes before damage is written, however the input is cut into pieces.
    pub(super) fn step(&mut self, input: &[u8], output: &mut [u8], stops_at_blocks: bool) -> Step {
        // What is beyond 4 GiB comes with the next call.
        let given = u32::try_from(input.len()).unwrap_or(u32::MAX);
        let room = u32::try_from(output.len()).unwrap_or(u32::MAX);
        let flush = if stops_at_blocks { zlib::Z_BLOCK } else { zlib::Z_NO_FLUSH };
        let stream = &mut *self.stream;
        stream.next_in = input.as_ptr();
        stream.avail_in = given;
        stream.next_out = output.as_mut_ptr();
        stream.avail_out = room;
        // SAFETY: the stream is initialised; `next_in` and `next_out` point at as many readable
        // and writable bytes as is said, in slices that outlive the call and do not overlap.
        let result = unsafe { zlib::inflate(stream, flush) };
        let consumed = (given - stream.avail_in) as usize;
        let produced = (room - stream.avail_out) as usize;
        stream.next_in = std::ptr::null();
        stream.avail_in = 0;
        stream.next_out = std::ptr::null_mut();
        stream.avail_out = 0;
        let at = match result {
            zlib::Z_STREAM_END => Ok(At::End),
            // Z_BUF_ERROR: it could not go on for want of input or room, which is no error here.
            // 128: between blocks; 64: the block was the last one, so there is no next.
            zlib::Z_OK | zlib::Z_BUF_ERROR if stops_at_blocks && stream.data_type & 0xc0 == 128 => {
                Ok(At::Boundary { unused_bits: (stream.data_type & 63) as u8 })
            }
            zlib::Z_OK | zlib::Z_BUF_ERROR => Ok(At::Middle),
            _ => Err(self.message()),
        };
        Step { consumed, produced, at }
    }

    fn message(&self) -> String {
        if self.stream.msg.is_null() {
            return "it is no deflate stream".to_owned();
        }
        // SAFETY: zlib-rs sets `msg` to null or to a static C string.
        let text = unsafe { CStr::from_ptr(self.stream.msg) };
        text.to_string_lossy().into_owned()
    }
}

impl Drop for Inflate {
    fn drop(&mut self) {
        // SAFETY: the stream is initialised and not used after this.
        unsafe { zlib::inflateEnd(&mut *self.stream) };
    }
}
