//! Manifests: the bytes that arrived, which are their identity, and a parsed view of them.
//!
//! Reads OCI image manifests and indexes (image specification 1.1) and Docker's schema 2
//! manifests and lists. A document without `mediaType` is told by its structure and by the
//! `Content-Type` it came with; one that could be read as two kinds is refused. `null` is read as Go
//! reads it: as what is not there.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::{Digest, MediaType, Platform, PlatformFilter, digest::Algorithm, nulls};

/// The largest manifest that is read, in bytes: what the distribution specification asks
/// registries to take, and what the others (containerd, oras, KubeKey) stop at.
pub const MAX_MANIFEST_BYTES: usize = 4 << 20;

/// A reference to content by its digest (OCI image specification, `descriptor.md`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is; any text, since artifacts have types of their own.
    #[serde(default, deserialize_with = "nulls::absent")]
    pub media_type: String,
    /// Digest of the content.
    pub digest: Digest,
    /// Size of the content in bytes.
    pub size: u64,
    /// In an index: what the child runs on.
    #[serde(default, deserialize_with = "nulls::platform")]
    pub platform: Option<Platform>,
    /// In an index: what the child is if it is no image but an artifact.
    #[serde(default)]
    pub artifact_type: Option<String>,
    /// Other places that have the content (foreign layers).
    #[serde(default, deserialize_with = "nulls::texts")]
    pub urls: Vec<String>,
    /// Free-form annotations.
    #[serde(default, deserialize_with = "nulls::map")]
    pub annotations: BTreeMap<String, String>,
    /// What is said to be the content; [`Descriptor::embedded`] is what it is.
    #[serde(default, deserialize_with = "nulls::base64")]
    pub data: Option<Bytes>,
}

impl Descriptor {
    /// One that says no more than it must.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            platform: None,
            artifact_type: None,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            data: None,
        }
    }

    /// The content, if the descriptor itself has it (`data`): what has its digest and its size.
    pub fn embedded(&self) -> Option<&Bytes> {
        let data = self.data.as_ref().filter(|data| data.len() as u64 == self.size)?;
        (Digest::of(self.digest.algorithm(), data) == self.digest).then_some(data)
    }

    /// Whether an index that has it means a blob, and not a manifest.
    pub(crate) fn is_blob(&self) -> bool {
        MediaType::is_of_blob(&self.media_type)
    }

    /// Whether this child of an index is no image. An image may say so with the type of its
    /// configuration.
    pub fn is_artifact(&self) -> bool {
        self.artifact_type
            .as_deref()
            .is_some_and(|kind| !["", "application/vnd.oci.image.config.v1+json"].contains(&kind))
    }

    /// Whether it is the configuration of an image. That of an artifact may be anything.
    pub fn is_image_config(&self) -> bool {
        matches!(
            self.media_type.as_str(),
            "application/vnd.oci.image.config.v1+json"
                | "application/vnd.docker.container.image.v1+json"
        )
    }

    /// If this child of an index is a BuildKit attestation: the digest of what it attests.
    pub fn attests(&self) -> Option<Digest> {
        let kind = self.annotations.get("vnd.docker.reference.type")?;
        let subject = self.annotations.get("vnd.docker.reference.digest")?;
        (kind == "attestation-manifest").then(|| subject.parse().ok()).flatten()
    }
}

/// What a manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum View {
    /// One image or artifact.
    Image {
        /// The configuration blob.
        config: Box<Descriptor>,
        /// The layers, lowest first; for an artifact its blobs.
        layers: Vec<Descriptor>,
    },
    /// A list of manifests.
    Index {
        /// The children, in their order.
        children: Vec<Descriptor>,
        /// What it lists besides that are blobs, as BuildKit does in the index of a cache.
        blobs: Vec<Descriptor>,
    },
}

/// A manifest or index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    bytes: Bytes,
    digest: Digest,
    media_type: String,
    view: View,
    subject: Option<Descriptor>,
    annotations: BTreeMap<String, String>,
}

/// Why some bytes are not a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Larger than [`MAX_MANIFEST_BYTES`].
    #[error("the manifest is larger than {MAX_MANIFEST_BYTES} bytes")]
    TooLarge,
    /// Not JSON, or a field is missing or malformed.
    #[error("the manifest is malformed: {0}")]
    Malformed(#[from] serde_json::Error),
    /// A retired format.
    #[error(
        "the image is in Docker's schema 1 format, which is not supported: push it again with a builder of this decade"
    )]
    Schema1,
    /// It has the fields of an image and of an index, or its type contradicts its fields.
    #[error(
        "the manifest can be read as an image and as an index; such documents are refused (CVE-2021-41190)"
    )]
    Ambiguous,
    /// It says that it is an image, and has no configuration.
    #[error("the image manifest has no configuration")]
    NoConfig,
    /// Neither an image nor an index.
    #[error("the document is neither an image manifest nor an index (media type `{0}`)")]
    Unknown(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    schema_version: Option<u64>,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    /// `Some(None)` where it is null, which is an index without children.
    #[serde(default, deserialize_with = "nulls::named")]
    manifests: Option<Option<Vec<Descriptor>>>,
    #[serde(default)]
    subject: Option<Descriptor>,
    #[serde(default, deserialize_with = "nulls::map")]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    fs_layers: Option<serde::de::IgnoredAny>,
}

impl Manifest {
    /// Reads `bytes`; `content_type` is what came with them, if anything did.
    ///
    /// The digest is SHA-256; a manifest that is named by another algorithm goes through
    /// [`Manifest::parse_as`].
    pub fn parse(bytes: Bytes, content_type: Option<&str>) -> Result<Self, ManifestError> {
        Self::parse_as(Algorithm::Sha256, bytes, content_type)
    }

    /// As [`Manifest::parse`], with the digest by `algorithm`.
    pub fn parse_as(
        algorithm: Algorithm,
        bytes: Bytes,
        content_type: Option<&str>,
    ) -> Result<Self, ManifestError> {
        if bytes.len() > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLarge);
        }
        // serde would take an array for an object's fields in their order.
        if bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'[') {
            return Err(ManifestError::Unknown("a JSON array".into()));
        }
        let document: Document = serde_json::from_slice(&bytes)?;
        let declared = document.media_type.clone().unwrap_or_default();
        if MediaType::is_schema1(&declared)
            || document.schema_version == Some(1)
            || document.fs_layers.is_some()
            || (declared.is_empty() && content_type.is_some_and(MediaType::is_schema1))
        {
            return Err(ManifestError::Schema1);
        }
        let said = content_type.filter(|_| declared.is_empty()).unwrap_or(&declared);
        let says_index = MediaType::parse(said).map(MediaType::is_index);
        let is_named = document.manifests.is_some();
        let view = match (document.manifests.flatten(), document.config, document.layers) {
            (Some(_), Some(_), _) | (Some(_), _, Some(_)) => return Err(ManifestError::Ambiguous),
            (Some(listed), None, None) => {
                let (blobs, children) = listed.into_iter().partition(Descriptor::is_blob);
                View::Index { children, blobs }
            }
            (None, Some(config), layers) => {
                View::Image { config: Box::new(config), layers: layers.unwrap_or_default() }
            }
            (None, None, None) if is_named || says_index == Some(true) => {
                View::Index { children: Vec::new(), blobs: Vec::new() }
            }
            (None, None, _) if says_index == Some(false) => return Err(ManifestError::NoConfig),
            (None, None, _) => {
                return Err(ManifestError::Unknown(said.chars().take(200).collect()));
            }
        };
        let media_type = match MediaType::parse(&declared) {
            Some(known) if known.is_index() != view.is_index() => {
                return Err(ManifestError::Ambiguous);
            }
            _ if !declared.is_empty() => declared,
            _ => view.infer_type(content_type).as_str().to_owned(),
        };
        Ok(Self {
            digest: Digest::of(algorithm, &bytes),
            bytes,
            media_type,
            view,
            subject: document.subject,
            annotations: document.annotations,
        })
    }

    /// The bytes as they arrived.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Digest of the bytes.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The media type that it declares, or else the one that was inferred.
    pub fn media_type(&self) -> &str {
        &self.media_type
    }

    /// What it says.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The manifest that this one is about, if it is a referrer (OCI 1.1 `subject`).
    pub fn subject(&self) -> Option<&Descriptor> {
        self.subject.as_ref()
    }

    /// Annotations of the manifest itself.
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.annotations
    }

    /// The manifests in an index; none for an image.
    pub fn children(&self) -> &[Descriptor] {
        match &self.view {
            View::Index { children, .. } => children,
            View::Image { .. } => &[],
        }
    }

    /// The blobs that it names directly: configuration first, then layers. Few indexes name any.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        let (config, layers) = match &self.view {
            View::Image { config, layers } => (Some(config.as_ref()), layers.as_slice()),
            View::Index { blobs, .. } => (None, blobs.as_slice()),
        };
        config.into_iter().chain(layers)
    }
}

impl View {
    fn is_index(&self) -> bool {
        matches!(self, Self::Index { .. })
    }

    fn infer_type(&self, content_type: Option<&str>) -> MediaType {
        let sent = content_type.and_then(MediaType::parse);
        match (self, sent) {
            (view, Some(sent)) if sent.is_index() == view.is_index() => sent,
            (Self::Image { config, .. }, _)
                if config.media_type.starts_with("application/vnd.docker.") =>
            {
                MediaType::DockerManifest
            }
            (Self::Image { .. }, _) => MediaType::OciManifest,
            (Self::Index { .. }, _) => MediaType::OciIndex,
        }
    }
}

/// Chooses from an index's children. First, each chosen one's place, and whether the filter is
/// still to be applied inside, because the index does not say what the child runs on. Second, the
/// platforms that no child serves by what the index says. Attestations go with what they attest.
pub fn choose(
    children: &[Descriptor],
    filter: &PlatformFilter,
) -> (Vec<(usize, bool)>, Vec<Platform>) {
    if filter == &PlatformFilter::All {
        return ((0..children.len()).map(|at| (at, false)).collect(), Vec::new());
    }
    let platforms: Vec<_> = children.iter().map(|child| child.platform.clone()).collect();
    let selection = filter.select(&platforms);
    let chosen: HashSet<Digest> = selection.kept.iter().map(|&at| children[at].digest).collect();
    let mut kept = Vec::new();
    for (at, child) in children.iter().enumerate() {
        let attested = child.attests().is_some_and(|subject| chosen.contains(&subject));
        if selection.kept.contains(&at) || attested {
            kept.push((at, false));
        } else if child.platform.is_none() && child.attests().is_none() {
            kept.push((at, true));
        }
    }
    (kept, selection.missing)
}

/// An index that a platform filter has made from another one.
#[derive(Clone, Debug)]
pub struct FilteredIndex<'a> {
    /// The index as it was.
    pub original: &'a Manifest,
    /// For each of the original's [children](Manifest::children): `None` drops it, `Some` keeps it under this digest and
    /// size (which differ from the original's where a nested index was filtered itself).
    pub keep: &'a [Option<(Digest, u64)>],
    /// The request, in canonical form, for the annotation.
    pub platforms: String,
}

impl FilteredIndex<'_> {
    /// Annotation with the digest of the index that was filtered.
    pub const ORIGINAL: &'static str = "io.imgfs.original.digest";
    /// Annotation with the platforms that were asked for.
    pub const PLATFORMS: &'static str = "io.imgfs.platforms";
}

/// Writes the filtered index: every field and every kept descriptor as it was, in its order,
/// and the two annotations of [`FilteredIndex`]. If nothing is dropped, the original is returned.
pub fn filter_index(filtered: &FilteredIndex<'_>) -> Result<Manifest, ManifestError> {
    let original = filtered.original;
    let unchanged = original
        .children()
        .iter()
        .zip(filtered.keep)
        .all(|(child, keep)| keep.is_some_and(|(digest, _)| digest == child.digest));
    if unchanged {
        return Ok(original.clone());
    }
    let mut document: Value = serde_json::from_slice(original.bytes())?;
    if let Some(Value::Array(listed)) = document.get_mut("manifests") {
        let mut keep = filtered.keep.iter();
        *listed = std::mem::take(listed)
            .into_iter()
            .filter_map(|mut child| {
                // Of blobs nobody has said anything.
                if child["mediaType"].as_str().is_some_and(MediaType::is_of_blob) {
                    return Some(child);
                }
                let (digest, size) = (*keep.next()?)?;
                child["digest"] = digest.to_string().into();
                child["size"] = size.into();
                Some(child)
            })
            .collect();
    }
    let annotations = &mut document["annotations"];
    if !annotations.is_object() {
        *annotations = Value::Object(serde_json::Map::new());
    }
    annotations[FilteredIndex::ORIGINAL] = original.digest().to_string().into();
    annotations[FilteredIndex::PLATFORMS] = filtered.platforms.clone().into();
    Manifest::parse(serde_json::to_vec(&document)?.into(), Some(original.media_type()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(content: &str, extra: &str) -> String {
        let digest = Digest::sha256(content.as_bytes());
        format!(r#"{{"mediaType":"a/b","digest":"{digest}","size":{}{extra}}}"#, content.len())
    }

    fn parse(text: &str, content_type: Option<&str>) -> Result<Manifest, ManifestError> {
        Manifest::parse(Bytes::from(text.to_owned()), content_type)
    }

    #[test]
    fn an_index_may_list_blobs_which_no_filter_drops() {
        let typed = |content: &str, kind: &str| descriptor(content, "").replace("a/b", kind);
        let (manifest, layer) =
            (MediaType::OciManifest, "application/vnd.oci.image.layer.v1.tar+gzip");
        let listed = [
            typed("layer", layer),
            typed("child", manifest.as_str()),
            typed("config", "application/vnd.buildkit.cacheconfig.v0"),
            typed("other", manifest.as_str()),
            descriptor("of no known type", ""),
        ];
        let text = format!(r#"{{"manifests":[{}]}}"#, listed.join(","));
        let index = parse(&text, None).unwrap();
        let digests = |found: Vec<&Descriptor>| found.iter().map(|d| d.digest).collect::<Vec<_>>();
        let expected = |texts: &[&str]| -> Vec<Digest> {
            texts.iter().map(|text| Digest::sha256(text.as_bytes())).collect()
        };
        assert_eq!(digests(index.blobs().collect()), expected(&["layer", "config"]));
        let children = ["child", "other", "of no known type"];
        assert_eq!(digests(index.children().iter().collect()), expected(&children));

        let other = &index.children()[1];
        let keep = [None, Some((other.digest, other.size)), None];
        let platforms = "linux/amd64".to_owned();
        let filtered = FilteredIndex { original: &index, keep: &keep, platforms };
        let filtered = filter_index(&filtered).unwrap();
        assert_eq!(digests(filtered.blobs().collect()), expected(&["layer", "config"]));
        assert_eq!(digests(filtered.children().iter().collect()), expected(&["other"]));
    }

    #[test]
    fn kinds_are_told_apart_without_a_media_type() {
        let d = descriptor("x", "");
        let docker_config = d.replace("a/b", "application/vnd.docker.container.image.v1+json");
        let docker = MediaType::DockerManifest.as_str();
        for (text, content_type, expected) in [
            (format!(r#"{{"config":{d},"layers":[{d}]}}"#), None, MediaType::OciManifest),
            (format!(r#"{{"config":{d},"layers":[]}}"#), Some(docker), MediaType::DockerManifest),
            (
                format!(r#"{{"config":{docker_config},"layers":[]}}"#),
                None,
                MediaType::DockerManifest,
            ),
            (
                format!(r#"{{"config":{d},"layers":[]}}"#),
                Some("text/plain"),
                MediaType::OciManifest,
            ),
            (r#"{"manifests":[]}"#.into(), None, MediaType::OciIndex),
            (r#"{"manifests":[]}"#.into(), Some(docker), MediaType::OciIndex),
        ] {
            let manifest = parse(&text, content_type).unwrap();
            assert_eq!(manifest.media_type(), expected.as_str(), "{text}");
            assert_eq!(manifest.digest(), Digest::sha256(text.as_bytes()));
            assert_eq!(manifest.bytes(), text.as_bytes());
        }
    }

    #[test]
    fn content_in_a_descriptor_counts_if_it_is_the_content() {
        let digest = Digest::sha256(b"{}");
        for (data, size, expected) in [
            (r#""e30=""#, 2, Some(&b"{}"[..])),
            (r#""e30""#, 2, None),
            (r#""e31=""#, 2, None),
            (r#""e30=""#, 3, None),
            (r#""""#, 2, None),
            ("null", 2, None),
        ] {
            let text =
                format!(r#"{{"mediaType":"a","digest":"{digest}","size":{size},"data":{data}}}"#);
            let descriptor: Descriptor = serde_json::from_str(&text).unwrap();
            assert_eq!(descriptor.embedded().map(|data| &data[..]), expected, "{data} {size}");
        }
    }

    #[test]
    fn null_is_what_is_not_there() {
        let d = descriptor("x", "");
        let odd = descriptor(
            "x",
            r#","urls":[null,"https://a"],"annotations":{"a":null,"b":"c"},"platform":null,"data":null"#,
        )
        .replace(r#""mediaType":"a/b""#, r#""mediaType":null"#);
        let text = format!(
            r#"{{"schemaVersion":null,"mediaType":null,"artifactType":null,"config":{d},
                "layers":[{odd}],"manifests":null,"subject":null,"annotations":{{"x":null,"y":"z"}}}}"#
        );
        let manifest = parse(&text, None).unwrap();
        assert_eq!(manifest.annotations().keys().collect::<Vec<_>>(), ["y"]);
        let layer = manifest.blobs().last().unwrap();
        assert_eq!(
            (layer.media_type.as_str(), &layer.urls[..]),
            ("", &["https://a".to_owned()][..])
        );
        assert_eq!(layer.annotations.keys().collect::<Vec<_>>(), ["b"]);

        for none in [r#"{"config":D,"layers":null,"annotations":null}"#, r#"{"config":D}"#] {
            let manifest = parse(&none.replace('D', &d), None).unwrap();
            assert_eq!(manifest.blobs().count(), 1, "{none}");
        }
        let index = MediaType::OciIndex.as_str();
        for (text, content_type) in [
            (r#"{"manifests":null}"#.to_owned(), None),
            (format!(r#"{{"mediaType":"{index}"}}"#), None),
            ("{}".to_owned(), Some(index)),
        ] {
            let manifest = parse(&text, content_type).unwrap();
            assert_eq!(manifest.media_type(), index, "{text}");
            assert!(manifest.children().is_empty());
        }
        for (platform, known) in [
            ("null", None),
            ("{}", None),
            (r#"{"os":null,"architecture":null}"#, None),
            (
                r#"{"os":"linux","architecture":"arm64","variant":null,"os.version":null,"os.features":null,"features":null}"#,
                Some("linux/arm64"),
            ),
        ] {
            let child = descriptor("x", &format!(r#","platform":{platform}"#));
            let child: Descriptor = serde_json::from_str(&child).unwrap();
            assert_eq!(child.platform.map(|p| p.to_string()).as_deref(), known, "{platform}");
        }
    }

    #[test]
    fn what_is_refused() {
        let d = descriptor("x", "");
        let index_type = MediaType::OciIndex;
        let traversal = d.replace("sha256:", "sha256:../../etc/");
        for (text, part) in [
            (String::new(), "malformed"),
            ("[]".into(), "JSON array"),
            ("\0\0\0".into(), "malformed"),
            ("{}".into(), "neither"),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#.into(), "schema 1"),
            (format!(r#"{{"manifests":[],"config":{d}}}"#), "as an image and as an index"),
            (
                format!(r#"{{"mediaType":"{}","config":null}}"#, MediaType::OciManifest),
                "no configuration",
            ),
            (r#"{"manifests":[null]}"#.into(), "malformed"),
            (
                format!(r#"{{"mediaType":"{index_type}","config":{d},"layers":[]}}"#),
                "as an image and as an index",
            ),
            (format!(r#"{{"config":{traversal},"layers":[]}}"#), "not a digest"),
            (format!(r#"{{"config":{d},"layers":[{d}],"layers":[]}}"#), "duplicate field"),
            (
                format!(r#"{{"config":{},"layers":[]}}"#, d.replace(r#""size":1"#, r#""size":-1"#)),
                "malformed",
            ),
            (format!(r#"{{"config":{},"layers":[]}}"#, d.replace("sha256:", "md5:")), "md5"),
            ("{\"a\":".to_owned() + &"[".repeat(100_000), "malformed"),
        ] {
            let error = parse(&text, None).unwrap_err().to_string();
            assert!(error.contains(part), "{}: {error}", &text[..text.len().min(100)]);
        }
        let big = format!("{{\"manifests\":[],\"x\":\"{}\"}}", "x".repeat(MAX_MANIFEST_BYTES));
        assert!(matches!(parse(&big, None), Err(ManifestError::TooLarge)));
    }

    #[test]
    fn filtering_keeps_everything_else() {
        let (a, b) = (descriptor("a", r#","x-own":{"z":1,"a":2}"#), descriptor("b", ""));
        let text =
            format!(r#"{{"zzz":1,"manifests":[{a},{b}],"annotations":{{"k":"v"}},"aaa":[1.5]}}"#);
        let original = parse(&text, None).unwrap();
        let keep = [Some((Digest::sha256(b"a"), 1)), None];
        let filtered =
            FilteredIndex { original: &original, keep: &keep, platforms: "linux/amd64".into() };
        let made = filter_index(&filtered).unwrap();
        let expected = format!(
            r#"{{"zzz":1,"manifests":[{a}],"annotations":{{"k":"v","io.imgfs.original.digest":"{}","io.imgfs.platforms":"linux/amd64"}},"aaa":[1.5]}}"#,
            original.digest()
        );
        assert_eq!(made.bytes(), expected.as_bytes());

        let all = [Some((Digest::sha256(b"a"), 1)), Some((Digest::sha256(b"b"), 1))];
        let whole = filter_index(&FilteredIndex { keep: &all, ..filtered }).unwrap();
        assert_eq!(whole, original);
    }

    #[test]
    fn attestations_name_their_subject() {
        let subject = Digest::sha256(b"image");
        let extra = format!(
            r#","annotations":{{"vnd.docker.reference.type":"attestation-manifest","vnd.docker.reference.digest":"{subject}"}}"#
        );
        let child: Descriptor = serde_json::from_str(&descriptor("x", &extra)).unwrap();
        assert_eq!(child.attests(), Some(subject));
        let plain: Descriptor = serde_json::from_str(&descriptor("x", "")).unwrap();
        assert_eq!(plain.attests(), None);
    }
}
