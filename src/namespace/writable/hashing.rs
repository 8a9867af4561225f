//! The digest of a file that is being written, found out while it is written where that is in order.
//!
//! What has been written without a gap from the beginning on is hashed on a thread of its own, which reads it back
//! from the memory of the system. When the file is closed, only the rest has to be hashed. Whoever writes once more
//! what has been hashed already makes all of it be read again at the end.

use std::{fs::File, io, os::unix::fs::FileExt, sync::Mutex};

use crate::{
    image::{Algorithm, Digest, Hasher},
    util::locked,
};

/// What is read at a time, in bytes.
const STEP: usize = 512 << 10;

/// So much is written before it is worth starting to hash it, in bytes.
const WORTHWHILE: u64 = 4 << 20;

/// How far a file has been written in order.
#[derive(Default)]
pub(super) struct Hashing {
    /// The end of what was written in order, from the beginning on.
    end: u64,
    /// Whether something of that was written once more.
    is_spoiled: bool,
    is_following: bool,
}

/// The hash of the beginning of a file.
pub(super) struct Prefix {
    algorithm: Algorithm,
    hasher: Hasher,
    hashed: u64,
    /// How often it was started over, as the file is another one or has been emptied.
    restarts: u64,
}

impl Prefix {
    pub(super) fn new(algorithm: Algorithm) -> Self {
        Self { algorithm, hasher: Hasher::new(algorithm), hashed: 0, restarts: 0 }
    }

    /// Forgets what has been hashed.
    fn clear(&mut self, algorithm: Algorithm) {
        *self = Self { restarts: self.restarts, ..Self::new(algorithm) };
    }

    fn follow(&mut self, file: &File, end: u64, buffer: &mut [u8]) -> io::Result<()> {
        while self.hashed < end {
            let wanted = usize::try_from(end - self.hashed).unwrap_or(STEP).min(STEP);
            match file.read_at(&mut buffer[..wanted], self.hashed) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    self.hasher.update(&buffer[..read]);
                    self.hashed += read as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

impl Hashing {
    /// Notes that `length` bytes at `offset` have been written: only then may they be hashed, as there may be others in
    /// their place until then. Whether there is enough to follow that nobody follows yet; whoever is told so follows.
    pub(super) fn written(&mut self, offset: u64, length: u64, hashed: u64) -> bool {
        if offset == self.end {
            self.end += length;
        } else if offset < self.end {
            self.is_spoiled = true;
        }
        let starts =
            !self.is_spoiled && !self.is_following && self.end.saturating_sub(hashed) >= WORTHWHILE;
        self.is_following |= starts;
        starts
    }

    /// Notes that what is from `offset` on has changed, or gone.
    pub(super) fn changed(&mut self, offset: u64) {
        if offset < self.end {
            self.is_spoiled = true;
        }
    }

    /// Up to where it can be hashed now; `None` if there is no more to follow.
    fn next(&mut self, hashed: u64) -> Option<u64> {
        if self.is_spoiled || self.end <= hashed {
            self.is_following = false;
            return None;
        }
        Some(self.end.min(hashed + 2 * STEP as u64))
    }

    /// Whether the beginning has to be hashed once more. It counts as hashed up to its end from now on.
    fn take_spoiled(&mut self) -> bool {
        std::mem::take(&mut self.is_spoiled)
    }
}

/// How often the hash was started over; who follows says it.
pub(super) fn restarts(prefix: &Mutex<Prefix>) -> u64 {
    locked(prefix).restarts
}

/// Starts over, as the content becomes another one by `change`. Nobody hashes meanwhile, and who has followed what was
/// there before does not go on.
pub(super) fn start_over<T>(
    hashing: &Mutex<Hashing>,
    prefix: &Mutex<Prefix>,
    change: impl FnOnce() -> T,
) -> T {
    let mut prefix = locked(prefix);
    let changed = change();
    prefix.clear(Algorithm::Sha256);
    prefix.restarts += 1;
    *locked(hashing) = Hashing::default();
    changed
}

/// Hashes what is written, as long as there is something, and until it is started over once more than `restarts` times.
pub(super) fn follow(file: &File, restarts: u64, hashing: &Mutex<Hashing>, prefix: &Mutex<Prefix>) {
    let mut buffer = vec![0; STEP];
    loop {
        let mut prefix = locked(prefix);
        if prefix.restarts != restarts {
            return;
        }
        let Some(end) = locked(hashing).next(prefix.hashed) else { return };
        if prefix.follow(file, end, &mut buffer).is_err() {
            // What cannot be read now is read again when the file is closed.
            let mut hashing = locked(hashing);
            hashing.is_spoiled = true;
            hashing.is_following = false;
            return;
        }
    }
}

/// The digest of the first `size` bytes of a file, which nobody writes to now.
pub(super) fn digest(
    file: &File,
    size: u64,
    algorithm: Algorithm,
    hashing: &Mutex<Hashing>,
    prefix: &Mutex<Prefix>,
) -> io::Result<Digest> {
    let mut prefix = locked(prefix);
    let is_spoiled = locked(hashing).take_spoiled();
    if is_spoiled || prefix.algorithm != algorithm || prefix.hashed > size {
        prefix.clear(algorithm);
    }
    let mut buffer = vec![0; STEP];
    prefix.follow(file, size, &mut buffer)?;
    let mut state = locked(hashing);
    state.end = state.end.max(size);
    Ok(prefix.hasher.clone().finish())
}

/// How much of a file has been hashed.
pub(super) fn hashed(prefix: &Mutex<Prefix>) -> u64 {
    // Whoever hashes now is following already.
    prefix.try_lock().map_or(u64::MAX, |prefix| prefix.hashed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_order_of_writing_gives_the_digest_of_what_is_there() {
        let file = tempfile::tempfile().unwrap();
        let (hashing, prefix) =
            (Mutex::new(Hashing::default()), Mutex::new(Prefix::new(Algorithm::Sha256)));
        let mut content = Vec::new();
        let write = |content: &mut Vec<u8>, offset: usize, bytes: &[u8]| {
            file.write_all_at(bytes, offset as u64).unwrap();
            locked(&hashing).written(offset as u64, bytes.len() as u64, hashed(&prefix));
            let end = content.len().max(offset + bytes.len());
            content.resize(end, 0);
            content[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        let check = |content: &[u8]| {
            let size = content.len() as u64;
            for algorithm in [Algorithm::Sha256, Algorithm::Sha512, Algorithm::Sha256] {
                let found = digest(&file, size, algorithm, &hashing, &prefix).unwrap();
                assert_eq!(found, Digest::of(algorithm, content));
            }
        };
        check(&content);
        let pieces: [(usize, &[u8]); 9] = [
            (0, b"abc"),
            (3, b"def"),
            (10, b"gap before"),
            (6, b"gapfill"),
            (0, b"X"),
            (20, b"end"),
            (1 << 20, b"far"),
            (5, b"again"),
            (23, &[7; 5000]),
        ];
        for (offset, bytes) in pieces {
            write(&mut content, offset, bytes);
            follow(&file, 0, &hashing, &prefix);
            check(&content);
        }
        file.set_len(4).unwrap();
        locked(&hashing).changed(4);
        content.truncate(4);
        check(&content);
        write(&mut content, 4, b"more");
        check(&content);
    }

    #[test]
    fn who_follows_what_was_there_before_does_not_go_on() {
        let (old, new) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let (hashing, prefix) =
            (Mutex::new(Hashing::default()), Mutex::new(Prefix::new(Algorithm::Sha256)));
        old.write_all_at(b"old content", 0).unwrap();
        locked(&hashing).written(0, 11, 0);
        let before = restarts(&prefix);
        start_over(&hashing, &prefix, || new.write_all_at(b"new content", 0).unwrap());
        locked(&hashing).written(0, 11, 0);
        follow(&old, before, &hashing, &prefix);
        assert_eq!(hashed(&prefix), 0);
        let found = digest(&new, 11, Algorithm::Sha256, &hashing, &prefix).unwrap();
        assert_eq!(found, Digest::sha256(b"new content"));
    }

    #[test]
    fn what_is_long_is_followed_once() {
        let mut hashing = Hashing::default();
        assert!(!hashing.written(0, WORTHWHILE - 1, 0));
        assert!(hashing.written(WORTHWHILE - 1, 10, 0));
        assert!(!hashing.written(WORTHWHILE + 9, 10 * WORTHWHILE, 0));
        assert!(hashing.next(u64::MAX).is_none());
        assert!(hashing.written(11 * WORTHWHILE + 9, 1, 0));
    }
}
