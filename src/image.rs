//! What images are made of: references, digests, platforms, media types and manifests.
//!
//! Plain values and parsers; nothing here does I/O.

mod attachment;
mod chain;
mod config;
mod digest;
mod manifest;
mod media_type;
mod nulls;
mod platform;
mod reference;

pub use attachment::{
    is_attached_to, is_attachment_tag, is_referrers_tag, listed_json, listed_referrer,
    referrers_index, referrers_tag,
};
pub use chain::{ChainId, ChainIdError, oci_chain_ids};
pub use config::{HistoryLine, ImageConfig};
pub use digest::{Algorithm, Digest, DigestError, Hasher};
pub use manifest::{
    Descriptor, FilteredIndex, MAX_MANIFEST_BYTES, Manifest, ManifestError, View, choose,
    filter_index,
};
pub use media_type::{ACCEPT_MANIFESTS, MediaType};
pub use platform::{Platform, PlatformError, PlatformFilter, Selection};
pub use reference::{Reference, ReferenceError, Repository, is_tag};
