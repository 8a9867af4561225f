//! Chains of layers: the merge of the lowest layers of an image, up to one of them, by a name that tells its
//! content.
//!
//! There are two such names, both made of the digests of the decompressed layers (diff IDs). A [`ChainId`] is
//! what containers/storage, and so podman, CRI-O and buildah, call a layer. [`oci_chain_ids`] are those of the
//! OCI image specification (`config.md`, "Layer ChainID"), which containerd uses.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Digest;

/// The name of a chain of layers as containers/storage makes it: for the lowest layer the hash of its diff ID,
/// for each other the SHA-256 of `<name of the chain below>+<hash of its diff ID>`, all in hexadecimal digits.
///
/// Its text has 64 lower-case hexadecimal digits, and is safe as a file name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChainId([u8; 32]);

/// A text is not the name of a chain of layers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it is not the name of a chain of layers: 64 lower-case hexadecimal digits")]
pub struct ChainIdError;

impl ChainId {
    /// The names of all chains of the layers with these diff IDs, the lowest first. `None` if one of the diff
    /// IDs is no SHA-256.
    ///
    /// ```
    /// use imgfs::image::{ChainId, Digest};
    ///
    /// let diff_ids = [Digest::sha256(b"base"), Digest::sha256(b"upper")];
    /// let chains = ChainId::of_layers(&diff_ids).unwrap();
    /// assert_eq!(chains[0].to_string(), diff_ids[0].to_hex());
    /// let upper = format!("{}+{}", diff_ids[0].to_hex(), diff_ids[1].to_hex());
    /// assert_eq!(chains[1].to_string(), Digest::sha256(upper.as_bytes()).to_hex());
    /// ```
    pub fn of_layers(diff_ids: &[Digest]) -> Option<Vec<Self>> {
        let mut chains: Vec<Self> = Vec::with_capacity(diff_ids.len());
        for diff_id in diff_ids {
            let Digest::Sha256(own) = diff_id else { return None };
            let hash = match chains.last() {
                None => *own,
                Some(below) => sha256(format!("{below}+{}", diff_id.to_hex()).as_bytes()),
            };
            chains.push(Self(hash));
        }
        Some(chains)
    }

    /// The hash itself.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The chain IDs of the OCI image specification of the layers with these diff IDs, the lowest first.
pub fn oci_chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chains: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chains.push(match chains.last() {
            None => *diff_id,
            Some(below) => Digest::sha256(format!("{below} {diff_id}").as_bytes()),
        });
    }
    chains
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(Digest::sha256(bytes).as_bytes());
    hash
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChainId({self})")
    }
}

impl FromStr for ChainId {
    type Err = ChainIdError;

    fn from_str(text: &str) -> Result<Self, ChainIdError> {
        let mut hash = [0; 32];
        let is_lower = !text.bytes().any(|b| b.is_ascii_uppercase());
        hex::decode_to_slice(text, &mut hash).ok().filter(|()| is_lower).ok_or(ChainIdError)?;
        Ok(Self(hash))
    }
}

impl Serialize for ChainId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ChainId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_named_as_others_name_them() {
        // As containers/storage 1.43 and containerd 1.6 have named the layers of one image.
        let digest =
            |digit: &str| format!("sha256:{}", digit.repeat(64)).parse::<Digest>().unwrap();
        let diff_ids = [digest("1"), digest("2"), digest("3")];
        let chains = ChainId::of_layers(&diff_ids).unwrap();
        let ones = "1".repeat(64);
        let second = Digest::sha256(format!("{ones}+{}", "2".repeat(64)).as_bytes()).to_hex();
        let third = Digest::sha256(format!("{second}+{}", "3".repeat(64)).as_bytes()).to_hex();
        let named: Vec<String> = chains.iter().map(ChainId::to_string).collect();
        assert_eq!(named, [ones, second, third]);
        let oci = oci_chain_ids(&diff_ids);
        assert_eq!(oci[0], diff_ids[0]);
        let text = format!("{} {}", diff_ids[0], diff_ids[1]);
        assert_eq!(oci[1], Digest::sha256(text.as_bytes()));
        assert!(oci.len() == 3 && ChainId::of_layers(&[]).unwrap().is_empty());
        let other = format!("sha512:{}", "0".repeat(128)).parse().unwrap();
        assert_eq!(ChainId::of_layers(&[other]), None);
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        let chain = ChainId::of_layers(&[Digest::sha256(b"x")]).unwrap()[0];
        assert_eq!(chain.to_string().parse(), Ok(chain));
        for text in ["", "x", &"A".repeat(64), &"0".repeat(63), &format!("{chain}1"), "../etc"] {
            assert_eq!(text.parse::<ChainId>(), Err(ChainIdError), "{text}");
        }
    }
}
