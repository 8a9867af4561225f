//! Writing an archive: the same bytes for the same images, into a file or a pipe.
//!
//! All members are in the order of their names, have the time 1 (second) and the owner 0, and nothing says when or
//! by whom they were written. Blobs come before the lists that name them, so a reader that gets the archive through
//! a pipe has seen everything when it learns what there is.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{MANIFEST, beside, side};
use crate::{
    backend::{
        BoxStream, Content, Error, Kind, LocalFile, PackedImage, Packer, Received, Result, Tally,
        oci_layout::{INDEX, MARK, MARK_TEXT, NewEntry, merge},
        writeback::{self, Writeback},
    },
    image::{Descriptor, Digest, Manifest},
    util::directory_of,
};

/// The mtime of all members, in seconds: 0 is taken by some tools for "unknown".
const TIME: u64 = 1;

/// Symbolic links in a row that are followed: as many as Linux follows.
const MAX_LINKS: usize = 40;

/// Bytes that are hashed and written at once.
const BATCH_BYTES: usize = 1 << 20;

/// Both blocks of zeros at the end of an archive.
const END: [u8; 1024] = [0; 1024];

/// How images are written into an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackFormat {
    /// As an OCI image layout, with a `manifest.json` for `docker load`.
    Oci,
    /// As `docker save` does: configurations, layers and `manifest.json`.
    Docker,
}

/// Where the bytes of an archive go.
pub(in crate::backend) enum Output {
    /// A new file beside its place, which it takes in the end.
    File(NewFile),
    /// A pipe, or whatever else standard output is.
    Pipe(File),
    /// Somebody who takes pieces.
    Channel(mpsc::Sender<Bytes>),
}

/// A file that is flushed when it is whole. What is written is begun to be brought to the disk meanwhile.
pub(in crate::backend) struct NewFile {
    file: Arc<File>,
    /// Its name until it takes its place.
    temporary: PathBuf,
    /// Its place.
    target: PathBuf,
    /// Bytes that have been written.
    written: u64,
    /// Of these, the kernel has begun to write so many to the disk.
    begun: u64,
    writeback: Writeback,
}

impl NewFile {
    fn create(target: &Path) -> io::Result<Self> {
        let (file, temporary) = beside::create(target)?;
        Ok(Self {
            file: Arc::new(file),
            temporary,
            target: target.to_owned(),
            written: 0,
            begun: 0,
            writeback: Writeback::default(),
        })
    }

    fn has_written(&mut self, bytes: u64) {
        self.written += bytes;
        while self.written >= self.begun + writeback::STEP {
            self.writeback.begin(&self.file, self.begun);
            self.begun += writeback::STEP;
        }
    }

    /// Takes all of `reader`, within the kernel where that can be.
    fn take(&mut self, reader: &mut io::Take<&File>) -> io::Result<u64> {
        let size = reader.limit();
        while reader.limit() > 0 {
            // So much at once that it can be begun.
            let mut step = reader.by_ref().take(writeback::STEP);
            match io::copy(&mut step, &mut &*self.file)? {
                0 => break,
                copied => self.has_written(copied),
            }
        }
        Ok(size - reader.limit())
    }

    /// Takes back what was written from byte `at` on.
    fn take_back(&mut self, at: u64) -> io::Result<()> {
        self.file.set_len(at)?;
        (&*self.file).seek(SeekFrom::Start(at))?;
        (self.written, self.begun) = (at, self.begun.min(at));
        Ok(())
    }

    /// Gives the file, which is whole, its place.
    fn publish(&self) -> io::Result<()> {
        self.file.sync_all()?;
        std::fs::rename(&self.temporary, &self.target)?;
        File::open(directory_of(&self.target)).and_then(|dir| dir.sync_all())
    }

    fn remove(&self) {
        let _ = std::fs::remove_file(&self.temporary);
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(new) => {
                let written = (&*new.file).write(bytes)?;
                new.has_written(written as u64);
                Ok(written)
            }
            Self::Pipe(file) => file.write(bytes),
            Self::Channel(sender) => {
                let sent = sender.blocking_send(Bytes::copy_from_slice(bytes));
                sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
                Ok(bytes.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output {
    /// Takes all of a file that has `size` bytes, within the kernel where that can be.
    fn take_file(&mut self, source: &File, size: u64) -> io::Result<u64> {
        let mut reader: &File = source;
        reader.seek(SeekFrom::Start(0))?;
        let mut reader = reader.take(size);
        match self {
            Self::File(new) => new.take(&mut reader),
            Self::Pipe(file) => io::copy(&mut reader, file),
            Self::Channel(_) => {
                let mut buffer = vec![0; BATCH_BYTES];
                let mut copied = 0;
                loop {
                    match reader.read(&mut buffer)? {
                        0 => return Ok(copied),
                        count => self.write_all(&buffer[..count])?,
                    }
                    copied = size - reader.limit();
                }
            }
        }
    }

    /// Takes back what was written from byte `at` of the archive on; `false` if that cannot be done.
    fn take_back(&mut self, at: u64) -> bool {
        match self {
            Self::File(new) => new.take_back(at).is_ok(),
            Self::Pipe(_) | Self::Channel(_) => false,
        }
    }
}

/// Where a file is that is written at `path`: what a symbolic link leads to, whether it is there or not.
fn followed(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(target) = std::fs::read_link(&path) else { break };
        path = directory_of(&path).join(target);
    }
    path
}

/// An archive that is being written.
pub struct ArchivePacker {
    side: String,
    format: PackFormat,
    /// What an image is called in `org.opencontainers.image.ref.name`, or as a tag for Docker, if not by its name.
    label: Option<String>,
    /// `None` while a thread has it, and for good once it cannot be written any more.
    output: Option<Output>,
    /// Bytes that have been written.
    at: u64,
    has_dirs: bool,
    broken: Option<Error>,
}

impl ArchivePacker {
    /// Begins to write the archive `path`, or to standard output if that is `-`. The file takes its place when it
    /// is whole.
    pub fn create(path: &Path, format: PackFormat, label: Option<&str>) -> Result<Self> {
        let side = match path == Path::new("-") {
            true => "archive on standard output".to_owned(),
            false => side(path),
        };
        let failed = |e: io::Error| Error::new(&side, "creating it", e);
        let output = match path == Path::new("-") {
            true => {
                let stdout = rustix::stdio::stdout();
                if rustix::termios::isatty(stdout) {
                    let reason =
                        "standard output is a terminal; give a file, or a program that reads it";
                    return Err(Error::new(&side, "creating it", Kind::Config(reason.to_owned())));
                }
                let dup = rustix::io::dup(stdout).map_err(|e| failed(e.into()))?;
                Output::Pipe(File::from(dup))
            }
            false => {
                if path.is_dir() {
                    let reason = "it is a directory; oci:DIR is an OCI image layout";
                    return Err(Error::new(&side, "creating it", Kind::Config(reason.to_owned())));
                }
                if path.metadata().is_ok_and(|meta| !meta.is_file()) {
                    // A named pipe or a device stays what it is.
                    let file = File::options().write(true).open(path).map_err(failed)?;
                    return Ok(Self::new(side, format, label, Output::Pipe(file)));
                }
                Output::File(NewFile::create(&followed(path)).map_err(failed)?)
            }
        };
        Ok(Self::new(side, format, label, output))
    }

    pub(in crate::backend) fn new(
        side: String,
        format: PackFormat,
        label: Option<&str>,
        output: Output,
    ) -> Self {
        let label = label.map(str::to_owned);
        Self { side, format, label, output: Some(output), at: 0, has_dirs: false, broken: None }
    }

    fn error(&self, doing: impl std::fmt::Display, kind: impl Into<Kind>) -> Error {
        Error::new(&self.side, doing, kind)
    }

    /// Does something with the output on another thread.
    async fn with_output<T: Send + 'static>(
        &mut self,
        doing: &str,
        work: impl FnOnce(&mut Output) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        let Some(mut output) = self.output.take() else {
            return Err(self.error(doing, io::Error::other("it has ended")));
        };
        let done = tokio::task::spawn_blocking(move || {
            let done = work(&mut output);
            (output, done)
        });
        match done.await {
            Ok((output, done)) => {
                self.output = Some(output);
                done.map_err(|e| {
                    let error = self.error(doing, e);
                    self.broken = Some(error.clone());
                    error
                })
            }
            Err(panic) => Err(self.error(doing, io::Error::other(panic))),
        }
    }

    async fn write(&mut self, bytes: impl Into<Bytes>) -> Result<()> {
        let bytes = bytes.into();
        let count = bytes.len() as u64;
        self.with_output("writing it", move |output| output.write_all(&bytes)).await?;
        self.at += count;
        Ok(())
    }

    /// Writes the header of the member `name`, after those of the directories that blobs are in.
    async fn begin(&mut self, name: &str, size: u64) -> Result<()> {
        let mut headers = Vec::new();
        if !self.has_dirs && name.starts_with("blobs/") {
            for dir in ["blobs/", "blobs/sha256/"] {
                headers.extend(header(dir, 0, true).map_err(|e| self.error("writing it", e))?);
            }
            self.has_dirs = true;
        }
        headers.extend(header(name, size, false).map_err(|e| self.error("writing it", e))?);
        self.write(headers).await
    }

    async fn end(&mut self, size: u64) -> Result<()> {
        let padding = size.next_multiple_of(512) - size;
        self.write(vec![0; padding as usize]).await
    }

    async fn document(&mut self, name: &str, text: Vec<u8>) -> Result<()> {
        let size = text.len() as u64;
        self.begin(name, size).await?;
        self.write(text).await?;
        self.end(size).await
    }

    /// Takes back what was written since `at`, after `error`.
    fn take_back(&mut self, at: u64, error: Error) -> Error {
        let is_back = self.broken.is_none()
            && self.output.as_mut().is_some_and(|output| output.take_back(at));
        match is_back {
            true => {
                self.at = at;
                // The directories go with the first blob.
                self.has_dirs &= at > 0;
            }
            false if self.broken.is_none() => self.broken = Some(error.clone()),
            false => {}
        }
        error
    }

    async fn content(&mut self, blob: &Descriptor, content: &Arc<dyn Content>) -> Result<u64> {
        if let Some(file) = content.file().await? {
            return self.local(blob, file, content).await;
        }
        let mut stream = content.read(0).await?;
        let mut tally = Tally::of(blob);
        let failed =
            |own: &Self, kind| own.error(format_args!("storing blob {}", blob.digest), kind);
        loop {
            let (batch, is_end) = collect(&mut stream).await?;
            let count = batch.iter().map(|piece| piece.len() as u64).sum::<u64>();
            tally.count(count).map_err(|kind| failed(self, *kind))?;
            let written = self.with_output("writing it", move |output| {
                for piece in &batch {
                    tally.hash(piece);
                    output.write_all(piece)?;
                }
                Ok(tally)
            });
            tally = written.await?;
            self.at += count;
            content.moved(count);
            if is_end {
                break;
            }
        }
        tally.check().map_err(|kind| failed(self, *kind))?;
        Ok(tally.bytes())
    }

    /// Takes a file that has been verified.
    async fn local(
        &mut self,
        blob: &Descriptor,
        file: LocalFile,
        content: &Arc<dyn Content>,
    ) -> Result<u64> {
        let size = blob.size;
        let copied =
            self.with_output("writing it", move |output| output.take_file(file.file(), size));
        let found = copied.await?;
        self.at += found;
        content.moved(found);
        match found == size {
            true => Ok(size),
            false => {
                let kind = Kind::Size { expected: size, found };
                Err(self.error(format_args!("storing blob {}", blob.digest), kind))
            }
        }
    }

    /// `manifest.json` as `docker load` reads it.
    fn docker_manifest(&self, images: &[PackedImage]) -> Vec<u8> {
        let mut entries: Vec<(Digest, Value)> = Vec::new();
        for image in images {
            let Some(single) = &image.single else { continue };
            let mut blobs = single.blobs().map(|blob| path_of(&blob.digest));
            let config = blobs.next().unwrap_or_default();
            let name = image.name.as_ref().filter(|name| name.tag().is_some());
            let tag = name.map(|name| match &self.label {
                Some(label) if self.format == PackFormat::Docker => label.clone(),
                _ => format!("{}:{}", name.repository(), name.tag().unwrap_or_default()),
            });
            let place = entries.iter().position(|(digest, _)| *digest == single.digest());
            let entry = match place {
                Some(place) => &mut entries[place].1,
                None => {
                    let layers: Vec<String> = blobs.collect();
                    let entry = json!({"Config": config, "RepoTags": [], "Layers": layers});
                    entries.push((single.digest(), entry));
                    let last = entries.len() - 1;
                    &mut entries[last].1
                }
            };
            if let (Some(tag), Value::Array(tags)) = (tag, &mut entry["RepoTags"]) {
                tags.push(tag.into());
            }
        }
        Value::Array(entries.into_iter().map(|(_, entry)| entry).collect()).to_string().into_bytes()
    }

    fn oci_index(&self, images: &[PackedImage]) -> std::result::Result<Vec<u8>, String> {
        let mut text = Vec::new();
        for image in images {
            let new = NewEntry {
                manifest: &image.manifest,
                name: image.name.as_ref(),
                label: self.label.as_deref(),
            };
            text = merge(&text, &new)?.unwrap_or(text);
        }
        Ok(text)
    }

    async fn write_lists(&mut self, images: &[PackedImage]) -> Result<()> {
        // Whatever the order in which they were asked for.
        let mut images = images.to_vec();
        images.sort_by(|a, b| (&a.name, a.manifest.digest()).cmp(&(&b.name, b.manifest.digest())));
        let docker = self.docker_manifest(&images);
        if self.format == PackFormat::Oci {
            let index = self.oci_index(&images);
            let index =
                index.map_err(|reason| self.error("writing index.json", Kind::Unfit(reason)))?;
            self.document(INDEX, index).await?;
        }
        self.document(MANIFEST, docker).await?;
        if self.format == PackFormat::Oci {
            self.document(MARK, MARK_TEXT.to_vec()).await?;
        }
        self.write(END.to_vec()).await
    }
}

/// The name of a blob in an archive.
fn path_of(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.to_hex())
}

/// The header of a member.
fn header(name: &str, size: u64, is_dir: bool) -> io::Result<Vec<u8>> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name)?;
    header.set_size(size);
    header.set_mtime(TIME);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mode(if is_dir { 0o755 } else { 0o644 });
    header.set_entry_type(if is_dir { tar::EntryType::Directory } else { tar::EntryType::Regular });
    header.set_cksum();
    Ok(header.as_bytes().to_vec())
}

/// Collects about a batch; second, whether these are the last pieces.
async fn collect(stream: &mut BoxStream) -> Result<(Vec<Bytes>, bool)> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while bytes < BATCH_BYTES {
        match stream.next().await? {
            Some(piece) => {
                bytes += piece.len();
                batch.push(piece);
            }
            None => return Ok((batch, true)),
        }
    }
    Ok((batch, false))
}

#[async_trait]
impl Packer for ArchivePacker {
    fn keeps_manifests(&self) -> bool {
        self.format == PackFormat::Oci
    }

    fn keeps_attachments(&self) -> bool {
        self.format == PackFormat::Oci
    }

    async fn blob(&mut self, blob: &Descriptor, content: &Arc<dyn Content>) -> Result<Received> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        let at = self.at;
        self.begin(&path_of(&blob.digest), blob.size).await?;
        let packed = match self.content(blob, content).await {
            Ok(bytes) => self.end(blob.size).await.map(|()| bytes),
            failed => failed,
        };
        match packed {
            Ok(bytes) => Ok(Received { bytes, linked: false }),
            Err(error) => Err(self.take_back(at, error)),
        }
    }

    async fn manifest(&mut self, manifest: &Manifest) -> Result<()> {
        let size = manifest.bytes().len() as u64;
        self.begin(&path_of(&manifest.digest()), size).await?;
        self.write(manifest.bytes().clone()).await?;
        self.end(size).await
    }

    async fn finish(&mut self, images: &[PackedImage]) -> Result<()> {
        self.write_lists(images).await?;
        let done = self.with_output("writing it", |output| match output {
            Output::File(new) => new.publish(),
            Output::Pipe(_) | Output::Channel(_) => Ok(()),
        });
        done.await?;
        // Whoever takes pieces learns by this that there are no more.
        self.output = None;
        Ok(())
    }

    async fn abandon(&mut self) {
        if let Some(Output::File(new)) = self.output.take() {
            new.remove();
        }
    }
}

impl Drop for ArchivePacker {
    fn drop(&mut self) {
        if let Some(Output::File(new)) = &self.output {
            new.remove();
        }
    }
}
