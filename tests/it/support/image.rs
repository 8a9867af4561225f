//! Builders of what registries hold: images, indexes, artifacts, signatures.
//!
//! ```ignore
//! let amd64 = Image::new().platform("linux/amd64").layer(1, 50_000).build();
//! let arm = Image::new().platform("linux/arm/v7").layer_gzip_tar(&[("etc/hosts", b"...")]).build();
//! let index = Index::new().child(&amd64).child(&arm).attest().build();
//! index.push_to(&registry, "team/app", "1.0");
//! ```

use super::content::{Content, digest};
use super::layers::Packed;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
pub(crate) const OCI_TAR: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const OCI_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const OCI_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub(crate) const DOCKER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// A config, a layer or anything else that a manifest refers to by digest.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    pub(crate) digest: String,
    pub(crate) media_type: String,
    pub(crate) content: Content,
}

impl Blob {
    pub(crate) fn new(media_type: &str, content: Content) -> Self {
        Self { digest: content.digest(), media_type: media_type.to_owned(), content }
    }

    pub(crate) fn size(&self) -> u64 {
        self.content.len()
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.size()})
    }
}

/// The raw bytes of a manifest or an index.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    pub(crate) digest: String,
    pub(crate) media_type: String,
    pub(crate) bytes: Vec<u8>,
}

impl Manifest {
    fn new(media_type: &str, value: &Value) -> Self {
        let bytes = serde_json::to_vec_pretty(value).expect("values serialise");
        Self { digest: digest(&bytes), media_type: media_type.to_owned(), bytes }
    }
}

/// A graph that is ready to be pushed.
#[derive(Debug, Clone)]
pub(crate) struct Built {
    /// What refers comes after what it refers to; the root is the last one.
    pub(crate) manifests: Vec<Manifest>,
    pub(crate) blobs: BTreeMap<String, Blob>,
    /// The `platform` of a descriptor that points here; null for an index and for artifacts.
    platform: Value,
}

impl Built {
    pub(crate) fn root(&self) -> &Manifest {
        self.manifests.last().expect("a graph has a root")
    }

    pub(crate) fn digest(&self) -> &str {
        &self.root().digest
    }

    /// The root manifest, parsed.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.root().bytes).expect("what was built parses")
    }

    /// Bytes of all distinct blobs.
    pub(crate) fn blob_bytes(&self) -> u64 {
        self.blobs.values().map(Blob::size).sum()
    }

    /// The layers' digests of a manifest, in their order.
    pub(crate) fn layers(&self) -> Vec<String> {
        let root = self.json();
        let layers = root["layers"].as_array().cloned().unwrap_or_default();
        layers.iter().map(|layer| layer["digest"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Blobs, then children, then the root under `tag`.
    pub(crate) fn push_to(&self, receiver: &dyn Receiver, repository: &str, tag: &str) {
        self.push_by_digest(receiver, repository);
        let root = self.root();
        receiver.put_manifest(repository, tag, &root.media_type, &root.bytes);
    }

    /// Everything, the root by its digest alone.
    pub(crate) fn push_by_digest(&self, receiver: &dyn Receiver, repository: &str) {
        for blob in self.blobs.values() {
            receiver.put_blob(repository, blob);
        }
        for manifest in &self.manifests {
            receiver.put_manifest(
                repository,
                &manifest.digest,
                &manifest.media_type,
                &manifest.bytes,
            );
        }
    }

    /// An OCI image layout with this graph under `tag`, for tools that read one.
    pub(crate) fn write_oci_layout(&self, directory: &Path, tag: &str) {
        let store = directory.join("blobs/sha256");
        std::fs::create_dir_all(&store).expect("creating a layout");
        let hex = |digest: &str| digest.trim_start_matches("sha256:").to_owned();
        for blob in self.blobs.values() {
            let mut file = std::fs::File::create(store.join(hex(&blob.digest))).expect("creating");
            std::io::copy(&mut blob.content.reader(), &mut file).expect("writing a blob");
        }
        for manifest in &self.manifests {
            std::fs::write(store.join(hex(&manifest.digest)), &manifest.bytes).expect("writing");
        }
        let mut root = descriptor_of(self);
        root["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [root]});
        std::fs::write(directory.join("index.json"), index.to_string()).expect("writing");
        let version = json!({"imageLayoutVersion": "1.0.0"});
        std::fs::write(directory.join("oci-layout"), version.to_string()).expect("writing");
    }

    fn absorb(&mut self, other: &Self) {
        for manifest in &other.manifests {
            if !self.manifests.iter().any(|known| known.digest == manifest.digest) {
                self.manifests.push(manifest.clone());
            }
        }
        self.blobs.extend(other.blobs.iter().map(|(digest, blob)| (digest.clone(), blob.clone())));
    }
}

fn descriptor_of(built: &Built) -> Value {
    let root = built.root();
    json!({"mediaType": root.media_type, "digest": root.digest, "size": root.bytes.len()})
}

/// Something that images can be pushed to.
pub(crate) trait Receiver {
    fn put_blob(&self, repository: &str, blob: &Blob);
    /// `reference` is a tag or a digest.
    fn put_manifest(&self, repository: &str, reference: &str, media_type: &str, bytes: &[u8]);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Oci,
    Docker,
}

#[derive(Debug, Clone)]
enum Layer {
    Generated { seed: u64, size: u64 },
    GzipTar(Vec<(String, Vec<u8>)>),
    ZstdTar(Vec<(String, Vec<u8>)>),
    Raw(String, Vec<u8>),
    Packed(Packed),
}

/// One image for one platform.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    platform: String,
    os_version: Option<String>,
    layers: Vec<Layer>,
    history: Vec<Value>,
    style: Style,
    with_media_type: bool,
    annotations: Map<String, Value>,
    platform_in_config: bool,
}

impl Image {
    /// A `linux/amd64` OCI image without layers.
    pub(crate) fn new() -> Self {
        Self {
            platform: "linux/amd64".to_owned(),
            os_version: None,
            layers: Vec::new(),
            history: Vec::new(),
            style: Style::Oci,
            with_media_type: true,
            annotations: Map::new(),
            platform_in_config: true,
        }
    }

    /// `os/architecture[/variant]`.
    pub(crate) fn platform(mut self, platform: &str) -> Self {
        platform.clone_into(&mut self.platform);
        self
    }

    pub(crate) fn os_version(mut self, version: &str) -> Self {
        self.os_version = Some(version.to_owned());
        self
    }

    /// `size` incompressible bytes under the media type of a gzipped tar; nobody here unpacks them.
    pub(crate) fn layer(mut self, seed: u64, size: u64) -> Self {
        self.layers.push(Layer::Generated { seed, size });
        self
    }

    /// A real layer that tools can unpack.
    pub(crate) fn layer_gzip_tar(mut self, files: &[(&str, &[u8])]) -> Self {
        self.layers.push(Layer::GzipTar(own(files)));
        self
    }

    pub(crate) fn layer_zstd(mut self, files: &[(&str, &[u8])]) -> Self {
        self.layers.push(Layer::ZstdTar(own(files)));
        self
    }

    pub(crate) fn layer_raw(mut self, media_type: &str, bytes: &[u8]) -> Self {
        self.layers.push(Layer::Raw(media_type.to_owned(), bytes.to_vec()));
        self
    }

    /// A layer, and the line of the history that has made it.
    pub(crate) fn step(mut self, created_by: &str, layer: &Packed) -> Self {
        self.layers.push(Layer::Packed(layer.clone()));
        self.history.push(json!({"created_by": created_by}));
        self
    }

    /// A line of the history that has made no layer.
    pub(crate) fn empty_step(mut self, created_by: &str) -> Self {
        self.history.push(json!({"created_by": created_by, "empty_layer": true}));
        self
    }

    /// A line of the history that is null.
    pub(crate) fn null_step(mut self) -> Self {
        self.history.push(Value::Null);
        self
    }

    /// The layer that a builder makes of a step without changes: an empty tar, gzipped.
    pub(crate) fn empty_layer(self) -> Self {
        self.layer_gzip_tar(&[])
    }

    /// A layer of no bytes at all.
    pub(crate) fn zero_byte_layer(self) -> Self {
        self.layer_raw(OCI_TAR, b"")
    }

    /// Docker's schema 2 instead of OCI.
    pub(crate) fn docker(mut self) -> Self {
        self.style = Style::Docker;
        self
    }

    /// As older builders write it: no `mediaType` in the manifest itself.
    pub(crate) fn without_media_type(mut self) -> Self {
        self.with_media_type = false;
        self
    }

    pub(crate) fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.into());
        self
    }

    /// A config that does not say which platform it is for.
    pub(crate) fn without_platform_in_config(mut self) -> Self {
        self.platform_in_config = false;
        self
    }

    pub(crate) fn build(&self) -> Built {
        let (manifest_type, config_type) = match self.style {
            Style::Oci => (OCI_MANIFEST, OCI_CONFIG),
            Style::Docker => (DOCKER_MANIFEST, DOCKER_CONFIG),
        };
        let mut diff_ids = Vec::new();
        let mut layers = Vec::new();
        for layer in &self.layers {
            let (blob, diff_id) = self.build_layer(layer);
            diff_ids.push(diff_id);
            layers.push(blob);
        }
        let mut parts = self.platform.split('/');
        let mut platform = Map::new();
        platform.insert("architecture".to_owned(), Value::Null);
        platform.insert("os".to_owned(), parts.next().unwrap_or_default().into());
        platform["architecture"] = parts.next().unwrap_or_default().into();
        if let Some(variant) = parts.next() {
            platform.insert("variant".to_owned(), variant.into());
        }
        if let Some(version) = &self.os_version {
            platform.insert("os.version".to_owned(), version.as_str().into());
        }
        let mut config = json!({
            "created": "2024-01-01T00:00:00Z",
            "config": {"Env": ["PATH=/usr/bin:/bin"], "Cmd": ["/bin/true"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        if self.platform_in_config {
            let object = config.as_object_mut().expect("made as an object");
            object.extend(platform.clone());
        }
        if !self.history.is_empty() {
            config["history"] = self.history.clone().into();
        }
        let config = Blob::new(config_type, Content::from(config.to_string().into_bytes()));
        let mut manifest = json!({"schemaVersion": 2});
        if self.with_media_type {
            manifest["mediaType"] = manifest_type.into();
        }
        manifest["config"] = config.descriptor();
        manifest["layers"] = layers.iter().map(Blob::descriptor).collect();
        if !self.annotations.is_empty() {
            manifest["annotations"] = self.annotations.clone().into();
        }
        let blobs = std::iter::once(config).chain(layers);
        Built {
            manifests: vec![Manifest::new(manifest_type, &manifest)],
            blobs: blobs.map(|blob| (blob.digest.clone(), blob)).collect(),
            platform: platform.into(),
        }
    }

    fn build_layer(&self, layer: &Layer) -> (Blob, String) {
        let gzip_type = match self.style {
            Style::Oci => OCI_GZIP,
            Style::Docker => DOCKER_GZIP,
        };
        let (blob, plain) = match layer {
            Layer::Generated { seed, size } => {
                let (seed, size) = (*seed, *size);
                let blob = Blob::new(gzip_type, Content::Generated { seed, size });
                let diff_id = blob.digest.clone();
                return (blob, diff_id);
            }
            Layer::GzipTar(files) => {
                let plain = tar_of(files);
                let mut encoder =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(&plain).expect("writing to memory");
                let packed = encoder.finish().expect("writing to memory");
                (Blob::new(gzip_type, packed.into()), plain)
            }
            Layer::ZstdTar(files) => {
                let plain = tar_of(files);
                let packed = zstd::encode_all(plain.as_slice(), 3).expect("compressing memory");
                (Blob::new(OCI_ZSTD, packed.into()), plain)
            }
            Layer::Raw(media_type, bytes) => {
                (Blob::new(media_type, bytes.clone().into()), bytes.clone())
            }
            Layer::Packed(packed) => {
                let blob = Blob::new(&packed.media_type, packed.bytes.clone().into());
                return (blob, packed.diff_id.clone());
            }
        };
        (blob, digest(&plain))
    }
}

fn own(files: &[(&str, &[u8])]) -> Vec<(String, Vec<u8>)> {
    files.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.to_vec())).collect()
}

fn tar_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        archive.append_data(&mut header, path, bytes.as_slice()).expect("writing to memory");
    }
    archive.into_inner().expect("writing to memory")
}

/// A manifest whose config and layers are anything but an image.
#[derive(Debug, Clone)]
pub(crate) struct Artifact {
    kind: Option<String>,
    config: Blob,
    blobs: Vec<(Blob, Map<String, Value>)>,
    subject: Option<Value>,
    annotations: Map<String, Value>,
}

impl Artifact {
    /// With the empty config that OCI 1.1 prescribes.
    pub(crate) fn new(artifact_type: &str) -> Self {
        Self {
            kind: Some(artifact_type.to_owned()),
            config: Blob::new(OCI_EMPTY, b"{}".to_vec().into()),
            blobs: Vec::new(),
            subject: None,
            annotations: Map::new(),
        }
    }

    /// As before OCI 1.1: the type is the media type of the config (Helm charts, cosign).
    pub(crate) fn with_config(media_type: &str, bytes: &[u8]) -> Self {
        Self { kind: None, config: Blob::new(media_type, bytes.to_vec().into()), ..Self::new("") }
    }

    pub(crate) fn blob(self, media_type: &str, bytes: &[u8]) -> Self {
        self.annotated_blob(media_type, bytes, &[])
    }

    pub(crate) fn annotated_blob(
        mut self,
        media_type: &str,
        bytes: &[u8],
        annotations: &[(&str, &str)],
    ) -> Self {
        let annotations = annotations
            .iter()
            .map(|(key, value)| ((*key).to_owned(), Value::from(*value)))
            .collect();
        self.blobs.push((Blob::new(media_type, bytes.to_vec().into()), annotations));
        self
    }

    pub(crate) fn subject(mut self, of: &Built) -> Self {
        self.subject = Some(descriptor_of(of));
        self
    }

    pub(crate) fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.into());
        self
    }

    pub(crate) fn build(&self) -> Built {
        let mut manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST});
        if let Some(kind) = &self.kind {
            manifest["artifactType"] = kind.as_str().into();
        }
        manifest["config"] = self.config.descriptor();
        let layers = self.blobs.iter().map(|(blob, annotations)| {
            let mut descriptor = blob.descriptor();
            if !annotations.is_empty() {
                descriptor["annotations"] = annotations.clone().into();
            }
            descriptor
        });
        manifest["layers"] = layers.collect();
        if let Some(subject) = &self.subject {
            manifest["subject"] = subject.clone();
        }
        if !self.annotations.is_empty() {
            manifest["annotations"] = self.annotations.clone().into();
        }
        let blobs = std::iter::once(&self.config).chain(self.blobs.iter().map(|(blob, _)| blob));
        Built {
            manifests: vec![Manifest::new(OCI_MANIFEST, &manifest)],
            blobs: blobs.map(|blob| (blob.digest.clone(), blob.clone())).collect(),
            platform: Value::Null,
        }
    }
}

/// An index (or a Docker manifest list) over other graphs.
#[derive(Debug, Clone)]
pub(crate) struct Index {
    children: Vec<(Value, Built)>,
    style: Style,
    with_media_type: bool,
    annotations: Map<String, Value>,
    attested: bool,
}

impl Index {
    pub(crate) fn new() -> Self {
        Self {
            children: Vec::new(),
            style: Style::Oci,
            with_media_type: true,
            annotations: Map::new(),
            attested: false,
        }
    }

    /// An image is entered with its platform, an index (nested) or artifact without.
    pub(crate) fn child(mut self, child: &Built) -> Self {
        let mut descriptor = descriptor_of(child);
        if !child.platform.is_null() {
            descriptor["platform"] = child.platform.clone();
        }
        self.children.push((descriptor, child.clone()));
        self
    }

    /// `edit` may change the descriptor: annotations, artifactType, a platform that differs from the config's.
    pub(crate) fn child_with(self, child: &Built, edit: impl FnOnce(&mut Value)) -> Self {
        let mut changed = self.child(child);
        if let Some((descriptor, _)) = changed.children.last_mut() {
            edit(descriptor);
        }
        changed
    }

    /// Adds, for each image so far and to come, the attestation that `BuildKit` adds.
    pub(crate) fn attest(mut self) -> Self {
        self.attested = true;
        self
    }

    pub(crate) fn docker(mut self) -> Self {
        self.style = Style::Docker;
        self
    }

    pub(crate) fn without_media_type(mut self) -> Self {
        self.with_media_type = false;
        self
    }

    pub(crate) fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.into());
        self
    }

    pub(crate) fn build(&self) -> Built {
        let media_type = match self.style {
            Style::Oci => OCI_INDEX,
            Style::Docker => DOCKER_LIST,
        };
        let mut children = self.children.clone();
        if self.attested {
            for (_, child) in &self.children {
                if !child.platform.is_null() {
                    children.push(attestation(child));
                }
            }
        }
        let mut index = json!({"schemaVersion": 2});
        if self.with_media_type {
            index["mediaType"] = media_type.into();
        }
        index["manifests"] = children.iter().map(|(descriptor, _)| descriptor.clone()).collect();
        if !self.annotations.is_empty() {
            index["annotations"] = self.annotations.clone().into();
        }
        let mut built =
            Built { manifests: Vec::new(), blobs: BTreeMap::new(), platform: Value::Null };
        for (_, child) in &children {
            built.absorb(child);
        }
        built.manifests.push(Manifest::new(media_type, &index));
        built
    }
}

/// What BuildKit exports as its cache with `type=registry` and without `image-manifest`: an index of layers, and of
/// what it says of them.
pub(crate) fn buildkit_cache(seed: u64) -> Built {
    let layers = Image::new().layer_gzip_tar(&[("a", b"a")]).layer(seed, 5000).build();
    let layers = layers.blobs.values().filter(|blob| blob.media_type.contains(".layer."));
    let config =
        br#"{"layers":[{"blob":"sha256:0","parent":-1}],"records":[{"digest":"sha256:1"}]}"#;
    let config =
        Blob::new("application/vnd.buildkit.cacheconfig.v0", Content::from(config.to_vec()));
    let blobs: Vec<Blob> = layers.cloned().chain([config]).collect();
    let listed: Vec<Value> = blobs.iter().map(Blob::descriptor).collect();
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed});
    Built {
        manifests: vec![Manifest::new(OCI_INDEX, &index)],
        blobs: blobs.into_iter().map(|blob| (blob.digest.clone(), blob)).collect(),
        platform: Value::Null,
    }
}

/// An index of three platforms with attestations, unpackable layers and one layer shared by all.
pub(crate) fn application() -> Built {
    let platform = |platform: &str| {
        Image::new()
            .platform(platform)
            .layer_gzip_tar(&[("etc/os-release", b"ID=test\n")])
            .layer_gzip_tar(&[("app", platform.as_bytes())])
    };
    Index::new()
        .child(&platform("linux/amd64").build())
        .child(&platform("linux/arm64/v8").build())
        .child(&platform("linux/arm/v7").empty_layer().build())
        .attest()
        .annotation("org.opencontainers.image.title", "application")
        .build()
}

/// An image with a layer of its own and one that is in all of these.
pub(crate) fn single(seed: u64) -> Built {
    Image::new().layer(seed, 4000).layer(1, 20_000).build()
}

/// An index of two small images with attestations, of this seed and the next.
pub(crate) fn two_platforms(seed: u64) -> Built {
    let image = |platform: &str, seed| Image::new().platform(platform).layer(seed, 4000).build();
    let arm64 = image("linux/arm64", seed + 1);
    Index::new().child(&image("linux/amd64", seed)).child(&arm64).attest().build()
}

/// What `docker buildx` puts beside an image: a manifest of in-toto statements for platform unknown/unknown.
fn attestation(of: &Built) -> (Value, Built) {
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v0.1",
        "predicateType": "https://slsa.dev/provenance/v0.2",
        "subject": [{"digest": {"sha256": of.digest().trim_start_matches("sha256:")}}],
    });
    let config = json!({
        "architecture": "unknown", "os": "unknown", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest(statement.to_string().as_bytes())]},
    });
    let built = Artifact::with_config(OCI_CONFIG, config.to_string().as_bytes())
        .annotated_blob(
            "application/vnd.in-toto+json",
            statement.to_string().as_bytes(),
            &[("in-toto.io/predicate-type", "https://slsa.dev/provenance/v0.2")],
        )
        .build();
    let mut descriptor = descriptor_of(&built);
    descriptor["platform"] = json!({"architecture": "unknown", "os": "unknown"});
    descriptor["annotations"] = json!({
        "vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": of.digest(),
    });
    (descriptor, built)
}

/// The tag under which cosign and others put what belongs to a digest: `sha256-<hex><suffix>`.
pub(crate) fn digest_tag(of: &str, suffix: &str) -> String {
    format!("{}{suffix}", of.replace(':', "-"))
}

/// A signature as cosign stores it; push it under `digest_tag(of.digest(), ".sig")`.
pub(crate) fn cosign_signature(of: &Built) -> Built {
    let payload = json!({"critical": {
        "identity": {"docker-reference": ""},
        "image": {"docker-manifest-digest": of.digest()},
        "type": "cosign container image signature",
    }, "optional": null});
    let config = json!({"architecture": "", "config": {}, "os": "", "rootfs": {"type": "layers", "diff_ids": []}});
    Artifact::with_config(OCI_CONFIG, config.to_string().as_bytes())
        .annotated_blob(
            "application/vnd.dev.cosign.simplesigning.v1+json",
            payload.to_string().as_bytes(),
            &[("dev.cosignproject.cosign/signature", "bm90IGEgc2lnbmF0dXJl")],
        )
        .build()
}

/// Pushes referrers of `subject` and, as OCI 1.1 demands where a registry has no referrers API, the index
/// of them under the tag `sha256-<hex>`.
pub(crate) fn push_referrers_with_fallback_tag(
    receiver: &dyn Receiver,
    repository: &str,
    subject: &str,
    referrers: &[&Built],
) -> Built {
    let mut index = Index::new();
    for referrer in referrers {
        let manifest = referrer.json();
        let kind = match &manifest["artifactType"] {
            Value::Null => manifest["config"]["mediaType"].clone(),
            kind => kind.clone(),
        };
        index = index.child_with(referrer, |descriptor| {
            descriptor["artifactType"] = kind;
            if !manifest["annotations"].is_null() {
                descriptor["annotations"] = manifest["annotations"].clone();
            }
        });
    }
    let built = index.build();
    built.push_to(receiver, repository, &digest_tag(subject, ""));
    built
}
