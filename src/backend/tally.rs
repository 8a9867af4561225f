//! What has come of a blob: counted and hashed, and compared with what its descriptor says.

use super::Kind;
use crate::image::{Descriptor, Digest, Hasher};

/// What has come of a blob so far.
pub(crate) struct Tally {
    digest: Digest,
    size: u64,
    found: u64,
    hasher: Hasher,
}

impl Tally {
    /// Nothing yet of `blob`.
    pub(crate) fn of(blob: &Descriptor) -> Self {
        let hasher = Hasher::new(blob.digest.algorithm());
        Self { digest: blob.digest, size: blob.size, found: 0, hasher }
    }

    /// Counts what comes next, before anything is done with it: more than the blob has is an error.
    pub(crate) fn count(&mut self, bytes: u64) -> Result<(), Box<Kind>> {
        self.found += bytes;
        match self.found > self.size {
            true => Err(Box::new(Kind::Size { expected: self.size, found: self.found })),
            false => Ok(()),
        }
    }

    /// Hashes what has been counted.
    pub(crate) fn hash(&mut self, piece: &[u8]) {
        self.hasher.update(piece);
    }

    /// Bytes that have been counted.
    pub(crate) fn bytes(&self) -> u64 {
        self.found
    }

    /// Fails unless all has come, and is what it should be.
    pub(crate) fn check(&self) -> Result<(), Box<Kind>> {
        if self.found != self.size {
            return Err(Box::new(Kind::Size { expected: self.size, found: self.found }));
        }
        let (expected, found) = (self.digest, self.hasher.clone().finish());
        match expected == found {
            true => Ok(()),
            false => Err(Box::new(Kind::Digest { expected, found })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_is_compared_with_what_should() {
        let blob = Descriptor::new("", Digest::sha256(b"blob"), 4);
        let after = |pieces: &[&[u8]]| {
            let mut tally = Tally::of(&blob);
            for piece in pieces {
                tally.count(piece.len() as u64)?;
                tally.hash(piece);
            }
            tally.check().map(|()| tally.bytes())
        };
        let error = |pieces: &[&[u8]]| *after(pieces).expect_err("an error");
        assert_eq!(after(&[b"bl", b"ob"]).unwrap(), 4);
        assert!(matches!(error(&[b"bl"]), Kind::Size { expected: 4, found: 2 }));
        assert!(matches!(error(&[b"bl", b"ob?"]), Kind::Size { expected: 4, found: 5 }));
        assert!(matches!(error(&[b"glob"]), Kind::Digest { .. }));
        assert!(matches!(error(&[]), Kind::Size { expected: 4, found: 0 }));
    }
}
