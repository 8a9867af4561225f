//! Directories of skopeo's `dir:` transport: one image, flat, for looking at and for tools that take it apart.
//!
//! ```text
//! DIR/
//!   version              the line `Directory Transport Version: 1.1`
//!   manifest.json        the manifest or index of the image
//!   <hex>.manifest.json  the manifests that an index names
//!   <hex>                configurations and layers
//!   signature-<n>        simple signatures, which are left alone
//! ```

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Write},
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;

use super::{
    BoxStream, Collection, ConfinedDir, Content, Error, FileStream, FileType, Kind, NameBelow,
    PackedImage, Packer, Received, Result, Tally,
    collection::{BlobSource, Labels, Listed, Parts},
};
use crate::image::{Algorithm, Descriptor, Digest, MAX_MANIFEST_BYTES, Manifest};

const VERSION: &str = "version";
const VERSION_TEXT: &[u8] = b"Directory Transport Version: 1.1\n";
const MANIFEST: &str = "manifest.json";

/// Behind the hash of a manifest that an index names.
const CHILD: &str = ".manifest.json";

/// The end of the names of files on their way, which begin with a dot.
const NEW: &str = ".new";

/// The beginning of files that have signatures.
const SIGNATURE: &str = "signature-";

fn side(root: &Path) -> String {
    format!("dir {}", root.display())
}

fn failed(root: &Path, doing: &str, error: io::Error) -> Error {
    Error::new(side(root), doing, error)
}

/// Opens the directory `root` to read its image, which is named below `below`.
pub async fn open(root: &Path, below: Option<&NameBelow>) -> Result<Collection> {
    let path = root.to_owned();
    let opened = tokio::task::spawn_blocking(move || {
        let dir = ConfinedDir::open(&path).map_err(|e| failed(&path, "opening it", e))?;
        let text = dir.read(&path.join(MANIFEST), MAX_MANIFEST_BYTES as u64 + 1);
        let text = text.map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                let reason = "it is no directory of skopeo's: it has no manifest.json";
                Error::new(side(&path), "opening it", Kind::Config(reason.to_owned()))
            }
            _ => failed(&path, "reading manifest.json", e),
        })?;
        let manifest = Manifest::parse(text.into(), None)
            .map_err(|e| Error::new(side(&path), "reading manifest.json", e))?;
        let entries = dir.open_dir(&path).and_then(|dir| dir.entries());
        let entries = entries.map_err(|e| failed(&path, "reading it", e))?;
        let is_signature = |entry: &super::DirEntry| {
            entry.kind == FileType::RegularFile
                && entry.name.to_str().is_some_and(|name| name.contains(SIGNATURE))
        };
        let signatures = entries.iter().filter(|entry| is_signature(entry)).count();
        Ok((dir, manifest, signatures))
    });
    let opened = opened.await.map_err(|e| failed(root, "opening it", io::Error::other(e)))?;
    let (dir, manifest, signatures) = opened?;
    let descriptor =
        Descriptor::new(manifest.media_type(), manifest.digest(), manifest.bytes().len() as u64);
    let warnings = match signatures {
        0 => Vec::new(),
        count => vec![format!(
            "{}: its simple signatures ({count}) are not carried: registries and layouts have no place for them",
            side(root)
        )],
    };
    Collection::new(Parts {
        side: side(root),
        listed: vec![Listed { manifest: descriptor, labels: Labels::default() }],
        made: vec![manifest],
        blobs: Arc::new(Files(dir)),
        warnings,
        below: below.cloned(),
        only: None,
    })
    .await
}

/// The files of such a directory.
struct Files(ConfinedDir);

impl Files {
    /// Where a blob or manifest is. Names do not say which algorithm made the hash, and its length does.
    fn open(&self, digest: &Digest) -> io::Result<(File, u64, PathBuf)> {
        let names = [digest.to_hex(), format!("{}{CHILD}", digest.to_hex())];
        let mut missing = io::Error::from(io::ErrorKind::NotFound);
        for name in names {
            let path = self.0.path().join(name);
            match self.0.open_file(&path) {
                Ok((file, meta)) => return Ok((file, meta.len(), path)),
                Err(e) => missing = e,
            }
        }
        Err(missing)
    }
}

#[async_trait]
impl BlobSource for Files {
    fn size(&self, digest: &Digest) -> Option<u64> {
        self.open(digest).ok().map(|(_, size, _)| size)
    }

    async fn read(&self, blob: &Descriptor, range: Range<u64>) -> Result<BoxStream> {
        let doing = format!("reading blob {}", blob.digest);
        let opened = self.open(&blob.digest);
        let (file, _, path) = opened.map_err(|e| failed(self.0.path(), &doing, e))?;
        Ok(Box::new(FileStream::start(Arc::new(file), path, range)))
    }
}

/// Such a directory that is being written.
///
/// What is new comes beside what is there, since all but the manifest is named by its hash, and the manifest takes its
/// place last. Only then what belonged to the image before goes: until then, that image can be read.
pub struct SkopeoDirPacker {
    root: PathBuf,
    dir: ConfinedDir,
    /// The files of the new image but for its manifest, and whether they were not there before.
    written: HashMap<String, bool>,
}

impl SkopeoDirPacker {
    /// Creates the directory `root`, or takes one that is empty or such a directory, whose image is replaced.
    pub fn create(root: &Path) -> Result<Self> {
        let io = |e| failed(root, "creating it", e);
        let dir = ConfinedDir::create(root).map_err(io)?;
        let entries = dir.open_dir(root).and_then(|dir| dir.entries()).map_err(io)?;
        let is_own = dir
            .read(&root.join(VERSION), 64)
            .is_ok_and(|text| text.starts_with(b"Directory Transport"));
        if !entries.is_empty() && !is_own {
            let reason =
                "it is not empty and no directory of skopeo's `dir:`; give another directory";
            return Err(Error::new(side(root), "creating it", Kind::Config(reason.to_owned())));
        }
        if !is_own {
            dir.write(&root.join(VERSION), VERSION_TEXT).map_err(io)?;
        }
        Ok(Self { root: root.to_owned(), dir, written: HashMap::new() })
    }

    /// Gives a file its name.
    fn place(&mut self, temporary: &Path, name: String) -> io::Result<()> {
        let path = self.root.join(&name);
        let is_new = self.dir.stat(&path).is_err();
        self.dir.rename(temporary, &path)?;
        self.written.entry(name).or_insert(is_new);
        Ok(())
    }

    /// Removes what belongs to another image than that of the files that have been `written`, or was on its way to
    /// become one.
    fn clear(&self, written: &HashMap<String, bool>) -> io::Result<()> {
        for entry in self.dir.open_dir(&self.root)?.entries()? {
            let Some(name) = entry.name.to_str() else { continue };
            let stem = name.strip_prefix('.').filter(|_| name.ends_with(NEW)).unwrap_or(name);
            let is_hex = stem.len() >= 64 && stem.bytes().take(64).all(|b| b.is_ascii_hexdigit());
            let is_own = is_hex || name.starts_with(SIGNATURE);
            if is_own && !written.contains_key(name) {
                self.dir.remove_if_there(&self.root.join(name))?;
            }
        }
        Ok(())
    }

    fn error(&self, doing: impl std::fmt::Display, kind: impl Into<Kind>) -> Error {
        Error::new(side(&self.root), doing, kind)
    }

    /// Writes a file beside its place.
    fn write(&self, name: &str, content: &[u8]) -> Result<PathBuf> {
        let failed = |e: io::Error| self.error(format_args!("writing {name}"), e);
        let temporary = self.root.join(format!(".{name}{NEW}"));
        let mut file = self.dir.create_file(&temporary).map_err(failed)?;
        file.write_all(content).and_then(|()| file.sync_all()).map_err(failed)?;
        Ok(temporary)
    }

    async fn receive(
        &self,
        blob: &Descriptor,
        content: &Arc<dyn Content>,
        path: &Path,
    ) -> Result<u64> {
        let doing = format!("storing blob {}", blob.digest);
        let mut file = self.dir.create_file(path).map_err(|e| self.error(&doing, e))?;
        let (mut tally, mut stream) = (Tally::of(blob), content.read(0).await?);
        while let Some(piece) = stream.next().await? {
            let count = piece.len() as u64;
            tally.count(count).map_err(|kind| self.error(&doing, *kind))?;
            let written = tokio::task::spawn_blocking(move || {
                tally.hash(&piece);
                file.write_all(&piece).map(|()| (file, tally))
            });
            let written = written.await.map_err(|e| self.error(&doing, io::Error::other(e)))?;
            (file, tally) = written.map_err(|e| self.error(&doing, e))?;
            content.moved(count);
        }
        tally.check().map_err(|kind| self.error(&doing, *kind))?;
        file.sync_all().map_err(|e| self.error(&doing, e))?;
        Ok(tally.bytes())
    }
}

#[async_trait]
impl Packer for SkopeoDirPacker {
    fn keeps_manifests(&self) -> bool {
        true
    }

    fn keeps_attachments(&self) -> bool {
        false
    }

    async fn blob(&mut self, blob: &Descriptor, content: &Arc<dyn Content>) -> Result<Received> {
        let name = blob.digest.to_hex();
        let temporary = self.root.join(format!(".{name}{NEW}"));
        match self.receive(blob, content, &temporary).await {
            Ok(bytes) => {
                let placed = self.place(&temporary, name);
                placed.map_err(|e| self.error(format_args!("storing blob {}", blob.digest), e))?;
                Ok(Received { bytes, linked: false })
            }
            Err(error) => {
                let _ = self.dir.remove_if_there(&temporary);
                Err(error)
            }
        }
    }

    async fn manifest(&mut self, manifest: &Manifest) -> Result<()> {
        if manifest.digest().algorithm() != Algorithm::Sha256 {
            let reason = "a manifest there is named by SHA-256".to_owned();
            return Err(
                self.error(format_args!("storing {}", manifest.digest()), Kind::Unfit(reason))
            );
        }
        let name = format!("{}{CHILD}", manifest.digest().to_hex());
        let temporary = self.write(&name, manifest.bytes())?;
        let placed = self.place(&temporary, name);
        placed.map_err(|e| self.error(format_args!("storing {}", manifest.digest()), e))
    }

    async fn finish(&mut self, images: &[PackedImage]) -> Result<()> {
        let Some(image) = images.last() else { return Ok(()) };
        let temporary = self.write(MANIFEST, image.manifest.bytes())?;
        // What it names is on the disk before it is.
        self.dir.sync_dir(&self.root).map_err(|e| self.error("flushing it", e))?;
        let renamed = self.dir.rename(&temporary, &self.root.join(MANIFEST));
        renamed.map_err(|e| self.error("writing manifest.json", e))?;
        // From here on it is the new image that is there, whatever fails.
        let mut written = std::mem::take(&mut self.written);
        self.dir.sync_dir(&self.root).map_err(|e| self.error("flushing it", e))?;
        // It has the name of its own, and not that of a child.
        written.remove(&format!("{}{CHILD}", image.manifest.digest().to_hex()));
        self.clear(&written).map_err(|e| self.error("removing the image that was there", e))?;
        self.dir.sync_dir(&self.root).map_err(|e| self.error("flushing it", e))
    }

    async fn abandon(&mut self) {
        // What was there before belongs to the image that was there.
        let new = self.written.drain().filter(|(_, is_new)| *is_new);
        for name in new.map(|(name, _)| name).chain([format!(".{MANIFEST}{NEW}")]) {
            let _ = self.dir.remove_if_there(&self.root.join(name));
        }
    }
}
