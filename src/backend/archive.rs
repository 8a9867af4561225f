//! Tar archives of images: OCI image layouts in an archive, and what `docker save` writes, in all its generations.
//!
//! An archive is indexed in one pass and then read in place; nothing is extracted. Of one that is not compressed,
//! the pass reads the headers only. One that is compressed with gzip or zstd is decompressed once, and from then
//! on read by spans as layers are ([`crate::layer`]). What comes through a pipe is kept in a file without a name
//! first, since it cannot be read twice.
//!
//! Names in an archive are keys and nothing else (`members.rs`): whatever they say, nothing outside of the archive
//! is ever opened.

mod beside;
mod content;
mod docker;
mod members;
mod pack;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;

use content::Archive;
pub(super) use content::unnamed_file;
use members::Members;
pub(super) use pack::Output;
pub use pack::{ArchivePacker, PackFormat};

use super::{
    BoxStream, Collection, Error, Kind, NameBelow, Result,
    collection::{BlobSource, Listed, Parts, read_whole},
    oci_layout::{INDEX, MARK, MAX_INDEX, listed_of},
};
use crate::image::{Descriptor, Digest, ImageConfig, Manifest, View};

/// The list of images of `docker save`.
const MANIFEST: &str = "manifest.json";

/// The largest configuration or `manifest.json` that is read, in bytes.
const MAX_DOCUMENT: u64 = 16 << 20;

/// What is to be used, or why it cannot be.
type Checked<T> = std::result::Result<T, String>;

/// What errors call the archive.
fn side(path: &Path) -> String {
    match path == Path::new("-") {
        true => "archive on standard input".to_owned(),
        false => format!("archive {}", path.display()),
    }
}

fn failed(path: &Path, doing: &str, error: io::Error) -> Error {
    Error::new(side(path), doing, error)
}

/// Entry points of the fuzz targets.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    use super::members::Members;
    use crate::{
        backend::oci_layout::listed_of,
        layer::{Limits, MemberReader},
    };

    /// Reads an archive as it is indexed, and looks for the lists of images in it and for `name`.
    pub fn index(archive: &[u8], name: &str) {
        let limits = Limits { max_entries: 10_000, max_table_bytes: 1 << 20, ..Limits::default() };
        let mut reader = MemberReader::new(limits);
        let (mut at, mut is_right) = (0, true);
        while is_right && at < archive.len() && !reader.is_at_end() {
            let end = (at + MemberReader::PIECE_BYTES).min(archive.len());
            is_right = reader.push(&archive[at..end]).is_ok();
            let passed = usize::try_from(reader.pass_over()).unwrap_or(usize::MAX);
            at = end.saturating_add(passed);
        }
        let Ok((members, refused)) = reader.finish() else { return };
        let members = Members::new(members, refused);
        for name in ["index.json", "manifest.json", "oci-layout", name] {
            let Ok(found) = members.find(name) else { continue };
            assert!(!found.is_sparse);
            let (from, size) = (found.data_offset as usize, found.size as usize);
            if let Some(text) = archive.get(from..from.saturating_add(size)) {
                let _ = listed_of(text);
                let _ = super::docker::is_saved(text);
            }
        }
    }
}

/// Opens the archive in the file `path`, or on standard input if that is `-`, to read it: all its images, or the
/// one that it calls `only`. Images that it does not name in full are named below `below`. Indexes of compressed
/// archives are kept in the directory `kept`, if there is one.
pub async fn open(
    path: &Path,
    only: Option<&str>,
    below: Option<&NameBelow>,
    kept: Option<PathBuf>,
) -> Result<Collection> {
    let opened = {
        let path = path.to_owned();
        tokio::task::spawn_blocking(move || {
            let file = match path == Path::new("-") {
                true => content::standard_input().map_err(|e| failed(&path, "reading it", e))?,
                false => open_file(&path)?,
            };
            Archive::index(file, &path, kept.as_deref())
        })
        .await
    };
    let opened = opened.map_err(|e| failed(path, "reading it", io::Error::other(e)))?;
    let (archive, members) = opened?;
    of_members(Arc::new(archive), members, path, only, below).await
}

/// Opens a file that was written here, whose name says nothing.
pub(super) async fn open_unnamed(
    file: File,
    shown: &Path,
    only: Option<&str>,
    below: Option<&NameBelow>,
) -> Result<Collection> {
    let path = shown.to_owned();
    let opened = tokio::task::spawn_blocking(move || Archive::index(file, &path, None)).await;
    let opened = opened.map_err(|e| failed(shown, "reading it", io::Error::other(e)))?;
    let (archive, members) = opened?;
    of_members(Arc::new(archive), members, shown, only, below).await
}

async fn of_members(
    archive: Arc<Archive>,
    members: Members,
    path: &Path,
    only: Option<&str>,
    below: Option<&NameBelow>,
) -> Result<Collection> {
    let (side, members) = (side(path), Arc::new(members));
    let mut warnings =
        members.warnings().iter().map(|text| format!("{side}: {text}")).collect::<Vec<_>>();
    let reader = Reader { archive, members, side };
    let is_oci = reader.has(INDEX);
    let is_docker = reader.has(MANIFEST);
    let parts = match (is_oci, is_docker) {
        (false, false) => return Err(reader.nothing()),
        (false, true) => docker::parts(&reader).await?,
        (true, false) => reader.oci_parts().await?,
        (true, true) => match reader.complete_oci_parts().await {
            Ok(parts) => parts,
            Err(why) => match docker::parts(&reader).await {
                Ok(parts) => {
                    warnings.push(format!(
                        "{}: its index.json cannot be used ({why}); its manifest.json is taken instead",
                        reader.side
                    ));
                    parts
                }
                // Docker leaves out what it has not fetched itself, since a snapshot was there. By index.json the
                // others can be had.
                Err(worse) => {
                    let parts = reader.oci_parts().await?;
                    if parts.listed.is_empty() {
                        return Err(worse);
                    }
                    warnings.push(format!("{}: not all is there ({why})", reader.side));
                    parts
                }
            },
        },
    };
    warnings.extend(parts.warnings);
    let (below, only) = (below.cloned(), only.map(str::to_owned));
    Collection::new(Parts { warnings, below, only, ..parts }).await
}

fn open_file(path: &Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    // A named pipe with nobody at its other end must not hang this process.
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = File::options().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|e| failed(path, "opening it", e))?;
    let meta = file.metadata().map_err(|e| failed(path, "opening it", e))?;
    if meta.is_file() {
        return Ok(file);
    }
    let reason = match meta.is_dir() {
        true => "it is a directory, not an archive; oci:DIR is an OCI image layout",
        false => {
            "it is no regular file; what comes through a pipe is read from standard input, with - as the file"
        }
    };
    Err(Error::new(side(path), "opening it", Kind::Config(reason.to_owned())))
}

/// What reads the documents of an archive.
struct Reader {
    archive: Arc<Archive>,
    members: Arc<Members>,
    side: String,
}

impl Reader {
    fn has(&self, name: &str) -> bool {
        self.members.find(name).is_ok()
    }

    fn error(&self, doing: impl std::fmt::Display, kind: impl Into<Kind>) -> Error {
        Error::new(&self.side, doing, kind)
    }

    /// The error for an archive that is none of images.
    fn nothing(&self) -> Error {
        let is_old = self.has("repositories");
        let reason = match is_old {
            true => {
                "it has no manifest.json: it was written by a Docker before 1.10, and has to be loaded and saved again"
            }
            false => "it is no archive of images: it has neither index.json nor manifest.json",
        };
        self.error("reading it", Kind::Config(reason.to_owned()))
    }

    /// A document of at most `limit` bytes.
    async fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let doing = format!("reading {name}");
        let member =
            self.members.find(name).map_err(|reason| self.error(&doing, Kind::Unfit(reason)))?;
        if member.size > limit {
            let reason = format!("it has {} bytes, and at most {limit} are read", member.size);
            return Err(self.error(&doing, Kind::Unfit(reason)));
        }
        let range = member.data_offset..member.data_offset + member.size;
        read_whole(self.archive.read(range)?, member.size).await
    }

    async fn oci_parts(&self) -> Result<Parts> {
        let text = self.read(INDEX, MAX_INDEX).await?;
        let listed = listed_of(&text)
            .map_err(|reason| self.error("reading index.json", Kind::Unfit(reason)))?;
        if !self.has(MARK) && listed.is_empty() {
            return Err(self.nothing());
        }
        let blobs = OciBlobs { archive: self.archive.clone(), members: self.members.clone() };
        Ok(Parts {
            side: self.side.clone(),
            listed,
            made: Vec::new(),
            blobs: Arc::new(blobs),
            warnings: Vec::new(),
            below: None,
            only: None,
        })
    }

    /// The same if all its images are whole: they have as many layers as diff IDs. Docker 25 and others have
    /// written an OCI manifest that lacks layers beside a good `manifest.json`.
    async fn complete_oci_parts(&self) -> Checked<Parts> {
        let parts = self.oci_parts().await.map_err(|e| e.to_string())?;
        if parts.listed.is_empty() {
            return Err("it lists no images".to_owned());
        }
        for Listed { manifest, .. } in &parts.listed {
            self.check(&parts, manifest, 4).await?;
        }
        Ok(parts)
    }

    async fn check(&self, parts: &Parts, root: &Descriptor, depth: usize) -> Checked<()> {
        let manifest = self.manifest(parts, root).await?;
        let mut blobs = manifest.blobs();
        if let Some(missing) = blobs.find(|blob| parts.blobs.size(&blob.digest).is_none()) {
            return Err(format!("the blob {} is not there", missing.digest));
        }
        match manifest.view() {
            View::Index { children, .. } => {
                let mut here =
                    children.iter().filter(|c| parts.blobs.size(&c.digest).is_some()).peekable();
                if here.peek().is_none() && !children.is_empty() {
                    return Err(format!("nothing of {} is there", root.digest));
                }
                for child in here.filter(|_| depth > 0) {
                    Box::pin(self.check(parts, child, depth - 1)).await?;
                }
            }
            View::Image { config, layers } => {
                if !config.is_image_config() || config.size > MAX_DOCUMENT {
                    return Ok(());
                }
                let text = self.blob(parts, config).await?;
                let diff_ids = ImageConfig::parse(&text).map_err(|e| e.to_string())?.diff_ids.len();
                // Signatures and statements have layers that are in no file system.
                if diff_ids > 0 && diff_ids != layers.len() {
                    return Err(format!(
                        "the manifest {} has {} of {diff_ids} layers",
                        root.digest,
                        layers.len()
                    ));
                }
            }
        }
        Ok(())
    }

    async fn manifest(&self, parts: &Parts, root: &Descriptor) -> Checked<Manifest> {
        if parts.blobs.size(&root.digest).is_none() {
            return Err(format!("the manifest {} is not there", root.digest));
        }
        let text = self.blob(parts, root).await?;
        let media_type = Some(root.media_type.as_str()).filter(|text| !text.is_empty());
        Manifest::parse_as(root.digest.algorithm(), text.into(), media_type)
            .map_err(|e| e.to_string())
    }

    async fn blob(&self, parts: &Parts, blob: &Descriptor) -> Checked<Vec<u8>> {
        let size = parts.blobs.size(&blob.digest).filter(|size| *size <= MAX_DOCUMENT);
        let Some(size) = size else { return Err(format!("{} is too large", blob.digest)) };
        let whole = Descriptor::new("", blob.digest, size);
        let stream = parts.blobs.read(&whole, 0..size).await.map_err(|e| e.to_string())?;
        read_whole(stream, size).await.map_err(|e| e.to_string())
    }
}

/// The blobs of an OCI image layout in an archive.
struct OciBlobs {
    archive: Arc<Archive>,
    members: Arc<Members>,
}

impl OciBlobs {
    fn member(&self, digest: &Digest) -> Option<(u64, u64)> {
        let dir = format!("blobs/{}", digest.algorithm().as_str());
        let name = format!("{dir}/{}", digest.to_hex());
        // Some tools have put one directory of this name into another.
        let found =
            self.members.find(&name).or_else(|_| self.members.find(&format!("{dir}/{name}")));
        found.ok().map(|member| (member.data_offset, member.size))
    }
}

#[async_trait]
impl BlobSource for OciBlobs {
    fn size(&self, digest: &Digest) -> Option<u64> {
        self.member(digest).map(|(_, size)| size)
    }

    async fn read(&self, blob: &Descriptor, range: std::ops::Range<u64>) -> Result<BoxStream> {
        let (offset, _) =
            self.member(&blob.digest).ok_or_else(|| self.archive.missing(&blob.digest))?;
        self.archive.read(offset + range.start..offset + range.end)
    }
}
