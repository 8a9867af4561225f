//! Buffers for what is read at once, used again.
//!
//! A daemon's C library maps a buffer of 512 KiB anew each time (`cli/daemon.rs`), and the system clears each page of it
//! when it is touched: for reads of 1 MiB, which is what the kernel asks for, that takes as long as copying the bytes.

use std::{io, sync::Mutex};

use bytes::Bytes;

use super::locked;

/// What is shorter comes from the heap, in bytes.
const WORTHWHILE: usize = 512 << 10;

/// The length of a buffer, and the most that is read into one, in bytes.
const LENGTH: usize = 1 << 20;

/// So many are kept for later.
const KEPT: usize = 4;

static BUFFERS: Buffers = Buffers(Mutex::new(Vec::new()));

/// Bytes that `fill` has put at the beginning of a buffer of `length` bytes; it says how many. What it leaves alone in
/// there may be anything.
pub(crate) fn filled(
    length: usize,
    fill: impl FnOnce(&mut [u8]) -> io::Result<usize>,
) -> io::Result<Bytes> {
    BUFFERS.filled(length, fill)
}

/// What is in `parts`, one after the other.
pub(crate) fn joined(mut parts: Vec<Bytes>) -> Bytes {
    match (parts.len(), parts.pop()) {
        (_, None) => Bytes::new(),
        (1, Some(only)) => only,
        (_, Some(last)) => {
            parts.push(last);
            let mut buffer = BUFFERS.take(parts.iter().map(Bytes::len).sum());
            let mut rest = buffer.bytes();
            for part in &parts {
                let (to, behind) = rest.split_at_mut(part.len());
                to.copy_from_slice(part);
                rest = behind;
            }
            Bytes::from_owner(buffer)
        }
    }
}

/// Buffers of [`LENGTH`] bytes that nobody uses now.
struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    fn filled(
        &'static self,
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<Bytes> {
        let mut buffer = self.take(length);
        let filled = fill(buffer.bytes())?;
        buffer.length = buffer.length.min(filled);
        Ok(Bytes::from_owner(buffer))
    }

    fn take(&'static self, length: usize) -> Buffer {
        let bytes = match length {
            WORTHWHILE..=LENGTH => locked(&self.0).pop().unwrap_or_else(|| vec![0; LENGTH]),
            _ => vec![0; length],
        };
        Buffer { bytes, length, home: self }
    }
}

/// A buffer that goes back when it is dropped.
struct Buffer {
    bytes: Vec<u8>,
    /// What of it counts.
    length: usize,
    home: &'static Buffers,
}

impl Buffer {
    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.length]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes.len() == LENGTH {
            let mut spare = locked(&self.home.0);
            if spare.len() < KEPT {
                spare.push(std::mem::take(&mut self.bytes));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_buffer_is_used_again_and_shows_nothing_of_before() {
        static OWN: Buffers = Buffers(Mutex::new(Vec::new()));
        let fill = |length: usize, byte: u8, filled: usize| {
            let filling = |buffer: &mut [u8]| {
                assert_eq!(buffer.len(), length);
                buffer[..filled].fill(byte);
                Ok(filled)
            };
            OWN.filled(length, filling).unwrap()
        };
        let first = fill(LENGTH, 1, LENGTH);
        let address = first.as_ptr();
        assert!(first.iter().all(|byte| *byte == 1));
        drop(first);
        let second = fill(WORTHWHILE, 2, 7);
        assert_eq!((second.as_ptr(), &second[..]), (address, &[2; 7][..]));
        // It is in use, so another one is needed.
        assert_ne!(fill(LENGTH, 3, 1).as_ptr(), address);
        assert_eq!(second, &[2; 7][..]);
        // A reading that fails gives it back, too.
        drop(second);
        let kept = locked(&OWN.0).len();
        assert!(OWN.filled(LENGTH, |_| Err(io::ErrorKind::Other.into())).is_err());
        assert_eq!(locked(&OWN.0).len(), kept);
    }

    #[test]
    fn few_are_kept_and_none_that_is_small_or_huge() {
        static OWN: Buffers = Buffers(Mutex::new(Vec::new()));
        for length in [0, 1, WORTHWHILE - 1, LENGTH + 1] {
            assert_eq!(OWN.filled(length, |buffer| Ok(buffer.len())).unwrap().len(), length);
        }
        assert!(locked(&OWN.0).is_empty());
        let many: Vec<Buffer> = (0..3 * KEPT).map(|_| OWN.take(LENGTH)).collect();
        drop(many);
        assert_eq!(locked(&OWN.0).len(), KEPT);
    }

    #[test]
    fn parts_are_joined_in_their_order() {
        let part = |byte: u8, length| Bytes::from(vec![byte; length]);
        assert!(joined(Vec::new()).is_empty());
        assert_eq!(joined(vec![part(1, 3)]), [1; 3][..]);
        let all = joined(vec![part(1, WORTHWHILE), part(2, 0), part(3, 9)]);
        let expected = [vec![1; WORTHWHILE], vec![3; 9]].concat();
        assert_eq!(all, expected);
    }
}
