//! Content digests (OCI image specification, `descriptor.md`, section "Digests").

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};

/// A hash algorithm that imgfs trusts: the two that the OCI specification registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, what everybody uses.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// The name that stands before the colon.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

/// The digest of some content: an algorithm and the hash, always complete and valid.
///
/// Its text form, `sha256:<64 hex digits>`, is also a safe file name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    /// A SHA-256 hash.
    Sha256([u8; 32]),
    /// A SHA-512 hash.
    Sha512([u8; 64]),
}

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// The algorithm is unknown or not trusted any more.
    #[error("digest algorithm `{0}` is not supported (sha256 and sha512 are)")]
    Algorithm(String),
    /// The text has no colon, or the hash is not lower-case hexadecimal of the right length.
    #[error(
        "`{0}` is not a digest: expected `sha256:` and 64, or `sha512:` and 128, lower-case hexadecimal digits"
    )]
    Form(String),
}

impl Digest {
    /// Whether content with this digest may have `bytes` bytes: nothing is the content of one digest only.
    ///
    /// ```
    /// use imgfs::image::Digest;
    ///
    /// assert!(Digest::sha256(b"").may_have(0));
    /// assert!(Digest::sha256(b"a").may_have(1) && !Digest::sha256(b"a").may_have(0));
    /// ```
    pub fn may_have(&self, bytes: u64) -> bool {
        bytes > 0 || *self == Self::of(self.algorithm(), b"")
    }

    /// The digest of `bytes` by `algorithm`.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The SHA-256 digest of `bytes`.
    pub fn sha256(bytes: &[u8]) -> Self {
        Self::of(Algorithm::Sha256, bytes)
    }

    /// Which algorithm made it.
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The hash itself.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(hash) => hash,
            Self::Sha512(hash) => hash,
        }
    }

    /// The hash as lower-case hexadecimal digits.
    pub fn to_hex(&self) -> String {
        hex::encode(self.as_bytes())
    }

    /// The first digits, for people to tell digests apart: `sha256:0123456789ab`.
    pub fn short(&self) -> String {
        format!("{}:{}", self.algorithm().as_str(), hex::encode(&self.as_bytes()[..6]))
    }

    /// Whether `name` looks like a digest of any algorithm: `<letters and digits>:<hexadecimal>`.
    ///
    /// For directory listings, where such a name is never a tag (tags have no colon).
    pub fn looks_like(name: &str) -> bool {
        name.split_once(':').is_some_and(|(algorithm, hex)| {
            !algorithm.is_empty()
                && algorithm.bytes().all(|b| b.is_ascii_alphanumeric() || b"+._-".contains(&b))
                && hex.len() >= 32
                && hex.bytes().all(|b| b.is_ascii_hexdigit())
        })
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let form = || DigestError::Form(shorten(text));
        let (algorithm, digits) = text.split_once(':').ok_or_else(form)?;
        if digits.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(form());
        }
        match algorithm {
            "sha256" => {
                let mut hash = [0; 32];
                hex::decode_to_slice(digits, &mut hash).map_err(|_| form())?;
                Ok(Self::Sha256(hash))
            }
            "sha512" => {
                let mut hash = [0; 64];
                hex::decode_to_slice(digits, &mut hash).map_err(|_| form())?;
                Ok(Self::Sha512(hash))
            }
            "" => Err(form()),
            other => Err(DigestError::Algorithm(shorten(other))),
        }
    }
}

/// Hostile input is quoted in messages, but never at length.
fn shorten(text: &str) -> String {
    match text.char_indices().nth(160) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text.to_owned(),
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm().as_str(), self.to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Computes a [`Digest`] from bytes that come piece by piece.
#[derive(Clone)]
pub enum Hasher {
    /// For SHA-256.
    Sha256(Sha256),
    /// For SHA-512.
    Sha512(Box<Sha512>),
}

impl Hasher {
    /// Starts a hash by `algorithm`.
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Box::default()),
        }
    }

    /// Takes the next bytes of the content.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(state) => state.update(bytes),
            Self::Sha512(state) => state.update(bytes),
        }
    }

    /// The digest of everything taken so far.
    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(state) => Digest::Sha256(state.finalize().into()),
            Self::Sha512(state) => Digest::Sha512(state.finalize().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn known_digests() {
        assert_eq!(Digest::sha256(b"").to_string(), EMPTY);
        assert!(
            Digest::of(Algorithm::Sha512, b"abc")
                .to_string()
                .starts_with("sha512:ddaf35a193617aba")
        );
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), Digest::sha256(b""));
    }

    #[test]
    fn what_is_not_a_digest() {
        let upper = EMPTY.replace('e', "E");
        let long = format!("{EMPTY}0");
        let path = format!("sha256:../../{}", "a".repeat(58));
        for text in
            ["", "sha256", "sha256:", "sha256:abc", ":abc", &upper, &long, &path, &EMPTY[..70]]
        {
            assert!(matches!(text.parse::<Digest>(), Err(DigestError::Form(_))), "{text}");
        }
        for text in ["md5:d41d8cd98f00b204e9800998ecf8427e", "sha1:da39a3ee", "SHA256:00"] {
            assert!(matches!(text.parse::<Digest>(), Err(DigestError::Algorithm(_))), "{text}");
        }
    }

    #[test]
    fn names_that_look_like_digests() {
        assert!(Digest::looks_like(EMPTY));
        assert!(Digest::looks_like("md5:d41d8cd98f00b204e9800998ecf8427e"));
        for tag in ["latest", "sha256-abc.sig", "v1", "sha256:zz", ""] {
            assert!(!Digest::looks_like(tag), "{tag}");
        }
    }
}
