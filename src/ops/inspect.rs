//! What an image is, from the outside: its index, manifest, configuration and layers, as the documents
//! say it. Of layers, nothing is fetched.

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;

use super::{Error, NamedImage, Opener, Result};
use crate::{
    backend::Names,
    image::{Descriptor, Digest, Manifest, View},
    rootfs::{Image, Variant},
};

/// An image from the outside.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// What it was called.
    pub image: String,
    /// Its name, by its digest.
    pub name: String,
    /// The digest of its index, or of its manifest if it is for one platform only.
    pub digest: Digest,
    /// The media type of that.
    pub media_type: String,
    /// The size of that, in bytes.
    pub bytes: u64,
    /// What the index lists, in its order; none without an index.
    pub children: Vec<Child>,
    /// The index as it is, if there is one.
    pub index: Option<Value>,
    /// The image for the platform that was wanted. `None` if the index has none for it, and it was not
    /// asked for.
    #[serde(flatten)]
    pub selected: Option<Selected>,
    /// The bytes of the index or manifest, as they are.
    #[serde(skip)]
    pub raw: Bytes,
}

/// What an index lists.
#[derive(Clone, Debug, Serialize)]
pub struct Child {
    /// What it runs on, as far as the index says it.
    pub platform: Option<String>,
    /// The digest of its manifest.
    pub digest: Digest,
    /// The media type of its manifest.
    pub media_type: String,
    /// The size of its manifest, in bytes.
    pub bytes: u64,
    /// What it is if it is no image but an artifact or an attestation.
    pub artifact_type: Option<String>,
}

/// An image for one platform.
#[derive(Clone, Debug, Serialize)]
pub struct Selected {
    /// What it runs on, as in `linux/arm64/v8`; `unknown` if nothing says it.
    pub platform: String,
    /// The digest of its manifest.
    pub manifest_digest: Digest,
    /// The manifest as it is.
    pub manifest: Value,
    /// The digest of its configuration.
    pub config_digest: Digest,
    /// The configuration as it is; `None` if it is no JSON, which an artifact may have.
    pub config: Option<Value>,
    /// Its layers, the lowest first.
    pub layers: Vec<LayerReport>,
    /// The size of all layers together, in bytes as they are stored.
    pub layer_bytes: u64,
    /// How it was made, the first step first.
    pub history: Vec<Step>,
    /// The bytes of the manifest, as they are.
    #[serde(skip)]
    pub raw_manifest: Bytes,
    /// The bytes of the configuration, as they are.
    #[serde(skip)]
    pub raw_config: Bytes,
}

/// A layer as the manifest and the configuration describe it.
#[derive(Clone, Debug, Serialize)]
pub struct LayerReport {
    /// From 0 for the lowest.
    pub number: usize,
    /// The digest of the blob.
    pub digest: Digest,
    /// The media type of the blob.
    pub media_type: String,
    /// The size of the blob, in bytes.
    pub bytes: u64,
    /// The digest of what is in it, decompressed.
    pub diff_id: Option<Digest>,
    /// The step that made it.
    pub created_by: Option<String>,
}

/// A step of an image's history.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// When it was done, as it is written there (RFC 3339).
    pub created: Option<String>,
    /// What was done.
    pub created_by: Option<String>,
    /// What somebody has noted of it.
    pub comment: Option<String>,
    /// The number of the layer that it made; `None` if it made none, or nobody can tell.
    pub layer: Option<usize>,
}

/// Tells what an image is. If `is_platform_required`, an index without the platform that is wanted is
/// an error.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// # use imgfs::{
/// #     backend::{ManifestName, Sink, images_dir::{ImagesDir, Linking}, registry::RegistryConfig},
/// #     image::{Digest, Manifest, Repository},
/// # };
/// use imgfs::ops::{OpenOptions, Opener, inspect, this_machine};
///
/// let temporary = tempfile::tempdir()?;
/// # let dir = ImagesDir::create(temporary.path(), None, Linking::Auto)?;
/// # let config = br#"{"config": {"User": "nobody"}}"#;
/// # let (digest, size) = (Digest::sha256(config), config.len());
/// # std::fs::write(temporary.path().join(format!("blobs/{digest}")), config)?;
/// # let manifest = format!(
/// #     r#"{{"schemaVersion": 2, "config": {{"digest": "{digest}", "size": {size}}}, "layers": []}}"#
/// # );
/// # let manifest = Manifest::parse(manifest.into_bytes().into(), None)?;
/// # let repository = Repository::new("registry.example.com", "team/app")?;
/// # dir.put(&repository, &manifest, &ManifestName::Tag("v1".to_owned())).await?;
/// // There is an image `registry.example.com/team/app:v1`.
/// let options = OpenOptions {
///     images_dir: temporary.path().to_owned(),
///     index_cache: None,
///     platform: this_machine()?,
///     any_single_platform: true,
///     offline: true,
/// };
/// let opener = Opener::new(options, RegistryConfig::default())?;
/// let found = inspect(&opener, &"registry.example.com/team/app:v1".parse()?, true).await?;
/// let selected = found.selected.unwrap();
/// assert_eq!(selected.config.unwrap()["config"]["User"], "nobody");
/// assert!(selected.layers.is_empty() && found.children.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
pub async fn inspect(
    opener: &Opener,
    name: &NamedImage,
    is_platform_required: bool,
) -> Result<Inspection> {
    let image = opener.image(name).await?;
    let selected = match opener.platform_of(&image, name) {
        Ok(_) => {
            let opened = opener.open(name).await?;
            Some(Selected::new(opened.platform, &opened.variant))
        }
        Err(Error::NotForPlatform { .. }) if !is_platform_required => None,
        Err(error) => return Err(error),
    };
    Ok(Inspection::new(name, &image, selected))
}

impl Inspection {
    fn new(name: &NamedImage, image: &Image, selected: Option<Selected>) -> Self {
        let manifest = image.manifest();
        let is_index = matches!(manifest.view(), View::Index { .. });
        Self {
            image: name.shown.clone(),
            name: image.name().to_string(),
            digest: manifest.digest(),
            media_type: manifest.media_type().to_owned(),
            bytes: manifest.bytes().len() as u64,
            children: manifest.children().iter().map(Child::new).collect(),
            index: is_index.then(|| json(manifest)),
            selected,
            raw: manifest.bytes().clone(),
        }
    }
}

impl Child {
    fn new(child: &Descriptor) -> Self {
        let attests = child.attests().map(|_| "attestation".to_owned());
        let artifact_type = child.artifact_type.clone().filter(|_| child.is_artifact());
        Self {
            platform: child.platform.as_ref().map(ToString::to_string),
            digest: child.digest,
            media_type: child.media_type.clone(),
            bytes: child.size,
            artifact_type: artifact_type.or(attests),
        }
    }
}

impl Selected {
    fn new(platform: String, variant: &Variant) -> Self {
        let manifest = variant.manifest();
        let config: Option<Value> = serde_json::from_slice(variant.config()).ok();
        let diff_id = |number: usize| {
            let listed = config.as_ref()?.get("rootfs")?.get("diff_ids")?.get(number)?;
            listed.as_str()?.parse().ok()
        };
        let layers = variant.layers().iter().enumerate().map(|(number, layer)| LayerReport {
            number,
            digest: layer.digest,
            media_type: layer.media_type.clone(),
            bytes: layer.size,
            diff_id: diff_id(number),
            created_by: variant.created_by(number).map(str::to_owned),
        });
        let layers: Vec<LayerReport> = layers.collect();
        Self {
            platform,
            manifest_digest: manifest.digest(),
            manifest: json(manifest),
            // A manifest that is no index has one.
            config_digest: manifest.blobs().next().map_or(manifest.digest(), |blob| blob.digest),
            layer_bytes: layers.iter().map(|layer| layer.bytes).sum(),
            history: history(config.as_ref(), layers.len()),
            config,
            layers,
            raw_manifest: manifest.bytes().clone(),
            raw_config: variant.config().clone(),
        }
    }
}

/// What has been read as a manifest is JSON.
fn json(manifest: &Manifest) -> Value {
    serde_json::from_slice(manifest.bytes()).unwrap_or_default()
}

/// The history that a configuration has. Layers are only told if there are as many of them as `layers`.
fn history(config: Option<&Value>, layers: usize) -> Vec<Step> {
    let lines = config.and_then(|config| config.get("history")?.as_array());
    let lines = lines.map(Vec::as_slice).unwrap_or_default();
    let is_empty = |line: &Value| line.get("empty_layer").and_then(Value::as_bool) == Some(true);
    let made = lines.iter().filter(|line| !is_empty(line)).count();
    let mut next = 0;
    let steps = lines.iter().map(|line| {
        let text = |key: &str| line.get(key)?.as_str().map(str::to_owned);
        let layer = (made == layers && !is_empty(line)).then(|| {
            next += 1;
            next - 1
        });
        let (created, created_by) = (text("created"), text("created_by"));
        Step { created, created_by, comment: text("comment"), layer }
    });
    steps.collect()
}

/// Finds out the digest that `name` leads to: that of the index, or if `is_platform_required` that of
/// the manifest for the platform that is wanted. A registry that tells digests is asked for no more.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// # use imgfs::{
/// #     backend::{ManifestName, Sink, images_dir::{ImagesDir, Linking}, registry::RegistryConfig},
/// #     image::{Manifest, Repository},
/// # };
/// use imgfs::ops::{OpenOptions, Opener, digest, this_machine};
///
/// let temporary = tempfile::tempdir()?;
/// # let dir = ImagesDir::create(temporary.path(), None, Linking::Auto)?;
/// # let index = br#"{"schemaVersion": 2, "manifests": []}"#;
/// # let index = Manifest::parse(index.to_vec().into(), None)?;
/// # let repository = Repository::new("registry.example.com", "team/app")?;
/// # dir.put(&repository, &index, &ManifestName::Tag("v1".to_owned())).await?;
/// // There is an index `registry.example.com/team/app:v1`, with nothing in it.
/// let options = OpenOptions {
///     images_dir: temporary.path().to_owned(),
///     index_cache: None,
///     platform: this_machine()?,
///     any_single_platform: false,
///     offline: true,
/// };
/// let opener = Opener::new(options, RegistryConfig::default())?;
/// let name = "registry.example.com/team/app:v1".parse()?;
/// assert_eq!(digest(&opener, &name, false).await?, index.digest());
/// assert!(digest(&opener, &name, true).await.is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
pub async fn digest(
    opener: &Opener,
    name: &NamedImage,
    is_platform_required: bool,
) -> Result<Digest> {
    if is_platform_required {
        let image = opener.image(name).await?;
        let platform = opener.platform_of(&image, name)?;
        let image_name = name.shown.clone();
        return image
            .manifest_of(&platform)
            .ok_or(Error::NoVariant { image: image_name, platform });
    }
    let (reference, catalogue) = (&name.reference, opener.catalogue());
    // Of a digest, only the manifest tells whether it is there.
    if reference.digest().is_none() {
        if let Ok(manifest) = catalogue.dir().manifest(reference).await {
            return Ok(manifest.digest());
        }
        if let Some(source) = catalogue.source()
            && let Some(digest) = source.head(reference).await.map_err(Error::Image)?
        {
            return Ok(digest);
        }
    }
    Ok(opener.manifest(name).await?.digest())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn steps_are_told_apart_from_layers() {
        let config = json!({"history": [
            {"created_by": "ADD a"},
            {"created_by": "ENV x=y", "empty_layer": true},
            {"created_by": "RUN b", "empty_layer": null, "comment": "buildkit"},
            null,
        ]});
        let layers = |count| {
            let steps = history(Some(&config), count);
            steps.iter().map(|step| step.layer).collect::<Vec<_>>()
        };
        assert_eq!(layers(3), [Some(0), None, Some(1), Some(2)]);
        assert_eq!(layers(2), [None; 4]);
        assert!(history(Some(&json!({"history": null})), 0).is_empty());
        assert!(history(None, 1).is_empty());
    }
}
