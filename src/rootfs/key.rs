//! What layers are known by.

use super::index_store::Indexed;
use crate::{
    backend::images_dir::cached::StreamId,
    image::{Descriptor, Digest, Reference},
    layer::{Origin, TocReader},
};

/// What a layer is known by, and all that is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct LayerKey {
    pub digest: Digest,
    /// Of several sizes that manifests give a digest, one can be right.
    pub size: u64,
    /// Stands for what an image says of a table of contents of the layer, and for the image whose attached
    /// indexes are trusted. Nothing in the layer vouches for either, so what is said by one image, or of
    /// one, must not become what another one shows. `None` if there is nothing of the kind, and for what a
    /// scan has found, which is true for all.
    pub toc: Option<Digest>,
}

/// Who says what an index of a layer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// This machine has found it in a pass over the layer: it is the truth.
    Pass,
    /// A table of contents that the image names by its digest.
    Toc,
    /// The same of SOCI.
    Ztoc,
    /// Somebody who has made a pass and attached the index to the image.
    Attached,
}

impl Source {
    /// That of an index that is not attached to anything.
    pub(super) fn of(origin: Origin) -> Self {
        match origin {
            Origin::Pass => Self::Pass,
            Origin::Toc => Self::Toc,
            Origin::Ztoc => Self::Ztoc,
        }
    }
}

impl LayerKey {
    /// That of a layer of an image with this SOCI index, and whose manifest is `attached` if the indexes that
    /// are attached to that are trusted.
    pub(super) fn new(
        blob: &Descriptor,
        soci_index: Option<&Reference>,
        attached: Option<&Reference>,
    ) -> Self {
        let mut claims: Vec<String> = TocReader::claims(blob).map(str::to_owned).collect();
        // Which repository it is read from says nothing of it.
        claims.extend(soci_index.and_then(Reference::digest).map(|digest| digest.to_string()));
        let attached = attached.and_then(Reference::digest);
        claims.extend(attached.map(|digest| format!("attached to {digest}")));
        let toc = (!claims.is_empty()).then(|| Digest::sha256(claims.join("\n").as_bytes()));
        Self { digest: blob.digest, size: blob.size, toc }
    }

    /// The name of the layer's stream by `index`: of all on which its bytes depend.
    pub(super) fn stream_id(&self, index: &Indexed) -> StreamId {
        let by = match (index.source(), &self.toc) {
            (Source::Pass, _) => "scan".to_owned(),
            (Source::Toc, Some(toc)) => format!("toc {toc}"),
            (Source::Ztoc, Some(toc)) => format!("ztoc {toc}"),
            (Source::Attached, Some(toc)) => format!("attached {toc} {}", index.claim()),
            (Source::Toc, None) => "toc".to_owned(),
            (Source::Ztoc, None) => "ztoc".to_owned(),
            (Source::Attached, None) => format!("attached {}", index.claim()),
        };
        let (from, to) = (self.size, index.stream_bytes());
        StreamId::new(self.digest, &format!("{from} bytes compressed, {to} decompressed, by {by}"))
    }

    /// That of what a scan finds.
    pub(super) fn without_toc(self) -> Self {
        Self { toc: None, ..self }
    }

    /// That of an index of this layer by `source`, and of all that is read by it.
    pub(super) fn of(self, source: Source) -> Self {
        match source {
            Source::Pass => self.without_toc(),
            Source::Toc | Source::Ztoc | Source::Attached => self,
        }
    }
}
