//! Records: what it takes to show an image again without asking any registry.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{LayerEntry, StoreDir, entries};
use crate::{
    backend::{Error, Kind, Result},
    image::{ChainId, Digest, ImageConfig, Manifest, Reference, Repository, View},
    rootfs::{CONFIG_FILE, MANIFEST_FILE, Record, read_record},
};

/// What a record says of where its image comes from.
const SOURCE_FILE: &str = "source";

/// What stands before the name of a record that has been set aside.
const DAMAGED: &str = "damaged-";

/// The largest file of that kind that is read, in bytes.
const MAX_SOURCE: u64 = 1 << 20;

/// Where an image comes from, and what has become of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The name that it was asked for by.
    pub reference: String,
    /// The repository that its layers are in.
    pub repository: String,
    /// What the name led to: the image itself, or an index that has it.
    pub root: Digest,
    /// What it runs on, as in `linux/amd64`.
    pub platform: String,
    /// When it was recorded, in seconds since 1970.
    pub recorded: i64,
    /// The names that it was added by; it is kept as long as it has one.
    #[serde(default)]
    pub added: Vec<String>,
    /// Why it is not served any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withdrawn: Option<String>,
    /// It has been removed, and is only shown because somebody needs some of its lower layers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forgotten: bool,
}

impl Source {
    /// Whether the image is served.
    pub(crate) fn is_lazy(&self) -> bool {
        self.withdrawn.is_none()
    }

    /// The names that it is known by: the one that it was first asked for by, and those that it was added by.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let added = self.added.iter().filter(|name| **name != self.reference);
        std::iter::once(&self.reference).chain(added).map(String::as_str)
    }

    /// Takes a name away from it. `false` if it has no other.
    pub(super) fn remove_name(&mut self, name: &str) -> bool {
        let Some(other) = self.names().find(|other| *other != name).map(str::to_owned) else {
            return false;
        };
        self.added.retain(|added| added != name);
        if self.reference == name {
            self.reference = other;
        }
        true
    }
}

/// An image that is recorded.
#[derive(Clone, Debug)]
pub struct StoredRecord {
    /// Where it comes from.
    pub source: Source,
    /// Where its layers are.
    pub repository: Repository,
    /// Its manifest.
    pub manifest: Manifest,
    /// Its configuration.
    pub config: Bytes,
    /// The chains of its layers, the lowest first.
    pub chains: Vec<ChainId>,
    /// Their entries.
    pub layers: Vec<LayerEntry>,
}

impl StoredRecord {
    /// What is to be recorded of an image. [`Kind::Unfit`] if it is not one that can be shown: a layer is
    /// encrypted, kept elsewhere or of an unknown type, or its configuration does not tell what its layers are.
    pub fn new(source: Source, manifest: Manifest, config: Bytes) -> Result<Self> {
        let unfit = |reason: String| {
            let doing = format_args!("recording {}", source.reference);
            Error::new("store", doing, Kind::Unfit(reason))
        };
        let name: Reference = format!("{}:x", source.repository)
            .parse()
            .map_err(|_| unfit(format!("`{}` is no repository", source.repository)))?;
        let repository = name.repository().clone();
        let View::Image { config: described, layers } = manifest.view() else {
            return Err(unfit("it is an index, and not an image".into()));
        };
        if !described.is_image_config() {
            return Err(unfit("it is an artifact, and not an image".into()));
        }
        if layers.is_empty() {
            return Err(unfit("it has no layers".into()));
        }
        let parsed = ImageConfig::parse(&config)
            .map_err(|e| unfit(format!("its configuration is malformed: {e}")))?;
        if parsed.diff_ids.len() != layers.len() {
            let (told, count) = (parsed.diff_ids.len(), layers.len());
            return Err(unfit(format!(
                "its configuration names {told} layers, and its manifest {count}"
            )));
        }
        let is_sha256 = |digest: &Digest| matches!(digest, Digest::Sha256(_));
        let mut named = [manifest.digest(), described.digest].into_iter();
        let chains = ChainId::of_layers(&parsed.diff_ids)
            .filter(|_| named.all(|digest| is_sha256(&digest)))
            .ok_or_else(|| unfit("it is named by other digests than SHA-256".into()))?;
        let mut entries = Vec::with_capacity(layers.len());
        for (number, (layer, diff_id)) in layers.iter().zip(&parsed.diff_ids).enumerate() {
            let compression = entries::compression(&layer.media_type)
                .filter(|_| layer.urls.is_empty() && is_sha256(&layer.digest));
            let Some(compression) = compression else {
                let media_type: String = layer.media_type.chars().take(100).collect();
                return Err(unfit(format!(
                    "layer {number} is of the type `{media_type}`, which is not shown"
                )));
            };
            let parent = number.checked_sub(1).map(|below| chains[below]);
            entries.push(LayerEntry::new(chains[number], parent, layer, *diff_id, compression));
        }
        Ok(Self { source, repository, manifest, config, chains, layers: entries })
    }

    /// The digest of its manifest.
    pub fn digest(&self) -> Digest {
        self.manifest.digest()
    }

    /// Whether it is served.
    pub fn is_lazy(&self) -> bool {
        self.source.is_lazy()
    }
}

impl StoreDir {
    /// The directory of the record of an image, by the digest of its manifest.
    pub fn record_dir(&self, manifest: &Digest) -> PathBuf {
        self.root.join(".imgfs").join(manifest.to_hex())
    }

    /// Writes a record, and flushes it. Nothing stays of a new one that could not be written.
    pub fn write_record(&self, record: &StoredRecord) -> Result<()> {
        let dir = self.record_dir(&record.digest());
        let is_new = !dir.exists();
        let written = self.write_record_in(&dir, record);
        if written.is_err() && is_new {
            // The failure is what counts.
            let _ = fs::remove_dir_all(&dir);
        }
        written
    }

    fn write_record_in(&self, dir: &Path, record: &StoredRecord) -> Result<()> {
        self.create_dirs(dir)?;
        self.write_whole(&dir.join(MANIFEST_FILE), record.manifest.bytes())?;
        self.write_whole(&dir.join(CONFIG_FILE), &record.config)?;
        self.write_source(&record.digest(), &record.source)?;
        self.sync_dir(&self.root.join(".imgfs"))
    }

    /// Writes what is said of where the image of a record comes from.
    pub fn write_source(&self, manifest: &Digest, source: &Source) -> Result<()> {
        let dir = self.record_dir(manifest);
        let path = dir.join(SOURCE_FILE);
        let text = serde_json::to_vec_pretty(source)
            .map_err(|e| self.error("writing", &path, e.into()))?;
        self.write_whole(&path, &text)?;
        self.sync_dir(&dir)
    }

    /// Removes a record.
    pub fn remove_record(&self, manifest: &Digest) -> Result<()> {
        self.remove(&self.record_dir(manifest), |path| fs::remove_dir_all(path))
    }

    /// All records that can be read, in the order of their digests. The directories of the others come second.
    pub fn records(&self) -> Result<(Vec<StoredRecord>, Vec<PathBuf>)> {
        let dir = self.root.join(".imgfs");
        let failed = |e| self.error("reading", &dir, e);
        let (mut records, mut damaged) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let digest = format!("sha256:{name}").parse::<Digest>();
            match digest.ok().map(|digest| read(&path, &digest)) {
                Some(Some(record)) => records.push(record),
                Some(None) => damaged.push(path),
                // It is none of ours, or has been set aside.
                None => {}
            }
        }
        records.sort_by_key(StoredRecord::digest);
        Ok((records, damaged))
    }

    /// All records that can be read. The others are set aside and logged; second, whether there were any.
    pub(crate) fn take_records(&self) -> Result<(Vec<StoredRecord>, bool)> {
        let (records, damaged) = self.records()?;
        for record in &damaged {
            tracing::warn!("the record {} is damaged, and set aside", record.display());
            self.set_aside(record)?;
        }
        Ok((records, !damaged.is_empty()))
    }

    /// The record of an image, if there is one that can be read.
    pub(crate) fn record(&self, manifest: &Digest) -> Option<StoredRecord> {
        read(&self.record_dir(manifest), manifest)
    }

    /// What has to be known of a record for its trees to be shown.
    pub(crate) fn to_show(&self, record: &StoredRecord) -> Record {
        Record {
            repository: record.repository.clone(),
            manifest: record.manifest.clone(),
            config: record.config.clone(),
            kept_in: self.record_dir(&record.digest()),
        }
    }

    /// Sets a record aside that cannot be read.
    pub fn set_aside(&self, record: &Path) -> Result<()> {
        let mut name = std::ffi::OsString::from(DAMAGED);
        name.push(record.file_name().unwrap_or_default());
        let aside = record.with_file_name(name);
        self.remove(&aside, |path| fs::remove_dir_all(path))?;
        let moved = fs::rename(record, &aside);
        moved.map_err(|e| self.error("setting aside", record, e))
    }
}

/// The record in `dir` of the image with this digest, if it is whole.
fn read(dir: &Path, digest: &Digest) -> Option<StoredRecord> {
    let (manifest, config) = read_record(dir, digest)?;
    let mut text = Vec::new();
    let file = fs::File::open(dir.join(SOURCE_FILE)).ok()?;
    io::Read::read_to_end(&mut io::Read::take(file, MAX_SOURCE), &mut text).ok()?;
    StoredRecord::new(serde_json::from_slice(&text).ok()?, manifest, config).ok()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A record of an image with these layers, which need not exist.
    pub(crate) fn record(name: &str, layers: &[&str]) -> StoredRecord {
        let diff_ids: Vec<String> = layers
            .iter()
            .map(|layer| format!("\"{}\"", Digest::sha256(layer.as_bytes())))
            .collect();
        let config = format!(
            r#"{{"os":"linux","architecture":"amd64","name":"{name}","rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            diff_ids.join(",")
        );
        let blobs: Vec<String> = layers
            .iter()
            .map(|layer| {
                let digest = Digest::sha256(format!("{layer} compressed").as_bytes());
                format!(
                    r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{digest}","size":100}}"#
                )
            })
            .collect();
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
                "config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},"layers":[{}]}}"#,
            Digest::sha256(config.as_bytes()),
            config.len(),
            blobs.join(",")
        );
        let manifest = Manifest::parse(manifest.into_bytes().into(), None).unwrap();
        let source = Source {
            reference: format!("quay.io/team/{name}:1"),
            repository: format!("quay.io/team/{name}"),
            root: manifest.digest(),
            platform: "linux/amd64".into(),
            recorded: 1,
            added: Vec::new(),
            withdrawn: None,
            forgotten: false,
        };
        StoredRecord::new(source, manifest, config.into_bytes().into()).unwrap()
    }

    #[test]
    fn a_damaged_record_does_not_hinder_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let store = StoreDir::create(dir.path()).unwrap();
        let records = ["a", "b", "c", "d"].map(|name| record(name, &["base", name]));
        for record in &records {
            store.write_record(record).unwrap();
        }
        let path = |number: usize| store.record_dir(&records[number].digest());
        fs::write(path(0).join("config"), "{}").unwrap();
        fs::write(path(1).join("source"), "{").unwrap();
        fs::remove_file(path(2).join("manifest")).unwrap();
        let (whole, mut damaged) = store.records().unwrap();
        assert_eq!(whole.len(), 1);
        assert_eq!(
            (whole[0].digest(), &whole[0].source),
            (records[3].digest(), &records[3].source)
        );
        damaged.sort();
        let mut expected = [path(0), path(1), path(2)];
        expected.sort();
        assert_eq!(damaged, expected);
        for record in &damaged {
            store.set_aside(record).unwrap();
        }
        let (whole, damaged) = store.records().unwrap();
        assert!(whole.len() == 1 && damaged.is_empty());
    }

    #[test]
    fn layers_and_images_are_listed_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = StoreDir::create(&dir.path().join("store")).unwrap();
        let mount = Path::new("/mnt/imgfs");
        let (one, other) = (record("a", &["base", "a"]), record("b", &["base", "b"]));
        for record in [&one, &other, &one] {
            store.write_record(record).unwrap();
            store.add_layers(mount, &record.layers).unwrap();
        }
        let layers = store.layers().unwrap();
        assert_eq!(layers.len(), 3);
        let layer = store.root().join("overlay").join(one.chains[1].to_string());
        let target = fs::read_link(layer.join("diff")).unwrap();
        assert_eq!(target, mount.join(".imgfs/.trees").join(one.chains[1].to_string()));
        assert!(!target.to_str().unwrap().contains(':'));
        assert!(!layer.join("lower").exists());
        let als = fs::read_to_string(layer.join("additionallayer")).unwrap();
        assert_eq!(als, layer.join("als").to_str().unwrap());
        let blob = mount.join("blobs").join(one.layers[1].compressed_diff_digest.to_string());
        assert_eq!(fs::read_link(layer.join("als/blob")).unwrap(), blob);
        let link = fs::read_to_string(layer.join("link")).unwrap();
        let short = store.root().join("overlay/l").join(&link);
        assert_eq!(
            fs::read_link(short).unwrap(),
            Path::new("..").join(one.chains[1].to_string()).join("diff")
        );

        store.set_sizes(&[(one.chains[1], 4321)]).unwrap();
        let info = fs::read_to_string(layer.join("als/info")).unwrap();
        assert!(info.contains("\"diff-size\":4321"), "{info}");
        assert_eq!(store.layers().unwrap().iter().filter(|l| l.diff_size == 4321).count(), 1);

        let names = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        store.add_image(&one, &names(&["quay.io/x:1", "quay.io/x:2"])).unwrap();
        store.add_image(&other, &names(&["quay.io/x:2"])).unwrap();
        store.add_image(&one, &names(&["quay.io/x:3"])).unwrap();
        let images = store.images().unwrap();
        assert_eq!(images.len(), 2, "no id occurs twice");
        assert_eq!(images[0].names, names(&["quay.io/x:3", "quay.io/x:1"]));
        assert_eq!(images[1].names, names(&["quay.io/x:2"]));
        assert_eq!(
            store.remove_names(&names(&["quay.io/x:2", "none"])).unwrap(),
            names(&["quay.io/x:2"])
        );
        assert_eq!(store.images().unwrap().len(), 1);

        let gone = store.remove_layers(|layer| layer.id == one.chains[0]).unwrap();
        assert_eq!(gone.len(), 2);
        assert!(store.images().unwrap().is_empty(), "an image goes with its layers");
        assert!(!layer.exists() && store.layers().unwrap().len() == 1);
    }

    #[test]
    fn what_cannot_be_shown_is_not_recorded() {
        let whole = record("a", &["base"]);
        let edit = |from: &str, to: &str| {
            let text = String::from_utf8(whole.manifest.bytes().to_vec()).unwrap();
            assert!(text.contains(from));
            let manifest =
                Manifest::parse(text.replace(from, to).into_bytes().into(), None).unwrap();
            StoredRecord::new(whole.source.clone(), manifest, whole.config.clone())
        };
        for (from, to, reason) in [
            ("tar+gzip", "tar+gzip+encrypted", "encrypted"),
            ("v1.tar+gzip", "v2.other", "v2.other"),
            ("\"size\":100", "\"size\":100,\"urls\":[\"https://example.com/x\"]", "not shown"),
            ("image.config.v1", "artifact.v1", "artifact"),
        ] {
            let error = edit(from, to).unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
        }
        let two = record("b", &["base", "b"]);
        let error = StoredRecord::new(two.source, two.manifest, whole.config).unwrap_err();
        assert!(error.to_string().contains("names 1 layers, and its manifest 2"), "{error}");
    }
}
