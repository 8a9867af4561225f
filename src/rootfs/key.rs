//! What layers are known by.

use crate::{
    backend::images_dir::cached::StreamId,
    image::{Descriptor, Digest, Reference},
    layer::{LayerIndex, Origin, TocReader},
};

/// What a layer is known by, and all that is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct LayerKey {
    pub digest: Digest,
    /// Of several sizes that manifests give a digest, one can be right.
    pub size: u64,
    /// Stands for what an image says of a table of contents of the layer. Nothing in the layer vouches
    /// for that, so what one image says must not become what another one shows. `None` if it says
    /// nothing, and for what a scan has found, which is true for all.
    pub toc: Option<Digest>,
}

impl LayerKey {
    /// That of a layer of an image with this SOCI index.
    pub(super) fn new(blob: &Descriptor, soci_index: Option<&Reference>) -> Self {
        let mut claims: Vec<String> = TocReader::claims(blob).map(str::to_owned).collect();
        // Which repository it is read from says nothing of it.
        claims.extend(soci_index.and_then(Reference::digest).map(|digest| digest.to_string()));
        let toc = (!claims.is_empty()).then(|| Digest::sha256(claims.join("\n").as_bytes()));
        Self { digest: blob.digest, size: blob.size, toc }
    }

    /// The name of the layer's stream by `index`: of all on which its bytes depend.
    pub(super) fn stream_id(&self, index: &LayerIndex) -> StreamId {
        let by = match (index.origin(), &self.toc) {
            (Origin::Pass, _) => "scan".to_owned(),
            (Origin::Toc, Some(toc)) => format!("toc {toc}"),
            (Origin::Ztoc, Some(toc)) => format!("ztoc {toc}"),
            (Origin::Toc, None) => "toc".to_owned(),
            (Origin::Ztoc, None) => "ztoc".to_owned(),
        };
        let (from, to) = (self.size, index.stream_bytes());
        StreamId::new(self.digest, &format!("{from} bytes compressed, {to} decompressed, by {by}"))
    }

    /// That of what a scan finds.
    pub(super) fn without_toc(self) -> Self {
        Self { toc: None, ..self }
    }

    /// That of `index` of this layer, and of all that is read by it.
    pub(super) fn of(self, index: &LayerIndex) -> Self {
        match index.origin() {
            Origin::Pass => self.without_toc(),
            Origin::Toc | Origin::Ztoc => self,
        }
    }
}
