//! The files of a platform or of a single layer.

use std::{borrow::Cow, ops::Range, sync::Arc};

use bytes::Bytes;

use super::{
    SIDE,
    starts::{Noting, Start},
    stream::Stream,
};
use crate::{
    backend::{Error, Kind, Result},
    image::Digest,
    layer::{Extent, Kind as FileKind, LayerIndex, Node, ProfiledStream, Rootfs},
    util::{Reservation, joined},
};

/// The name of the attribute that says which layer a file comes from: number and digest.
const LAYER_XATTR: &[u8] = b"user.imgfs.layer";

/// The name of the attribute that says what made that layer: its line of the image's history.
const CREATED_BY_XATTR: &[u8] = b"user.imgfs.created_by";

/// Opens the stream of a layer.
pub(super) type OpenStream = Box<dyn Fn() -> Result<Stream> + Send + Sync>;

/// What a tree knows of each of its layers besides the index.
pub(super) struct Origin {
    /// Whether files say that they come from it.
    pub is_told: bool,
    /// From 0 for the lowest of the image.
    pub number: usize,
    pub digest: Digest,
    /// How profiles name its stream.
    pub stream: ProfiledStream,
    pub created_by: Option<String>,
    pub open: OpenStream,
}

/// Files that can be looked at and read. What it shows has been checked against the manifest, but for
/// those that [`super::Files::find`] gives while a layer is scanned.
pub struct Tree {
    rootfs: Rootfs,
    origins: Vec<Origin>,
    /// Why names may be missing.
    damage: Option<Error>,
    /// Wants to know what is read.
    start: Option<Arc<Start>>,
    /// For the nodes; each index has its own.
    _memory: Reservation,
}

impl Tree {
    /// `memory` is what the nodes take; who opens a layer holds what its index takes.
    pub(super) fn new(
        rootfs: Rootfs,
        origins: Vec<Origin>,
        memory: Reservation,
        start: Option<Arc<Start>>,
    ) -> Arc<Self> {
        let damage = rootfs.layers().iter().find_map(|layer| damage_of(layer));
        Arc::new(Self { rootfs, origins, damage, start, _memory: memory })
    }

    /// Why there may be more files than can be seen: a layer is damaged, though it is the one that
    /// the manifest means. What is not there is an error then.
    pub fn damage(&self) -> Option<&Error> {
        self.damage.as_ref()
    }

    /// Why there may be more in the layer with this number than can be seen.
    pub(super) fn damage_of(&self, layer: usize) -> Option<Error> {
        damage_of(self.rootfs.layers().get(layer)?)
    }

    /// Why `node` may not be what the image has at its path: a layer above the one that it comes from is damaged,
    /// and may have had something else there, or a whiteout.
    pub fn damage_above(&self, node: Node) -> Option<Error> {
        self.damage.as_ref()?;
        let above = self.rootfs.content_layer(node) + 1;
        self.rootfs.layers().get(above..)?.iter().rev().find_map(|layer| damage_of(layer))
    }

    /// Entries of its layers that are not shown, or not as they stand there, from the lowest layer up: the digest
    /// of the layer, the name of the entry, and the reason. For each layer the first 256 of them.
    pub fn notes(&self) -> impl Iterator<Item = (Digest, &[u8], String)> {
        self.rootfs.layers().iter().flat_map(|layer| {
            let notes = layer.notes().iter().filter(|note| note.entry.is_some());
            notes.map(|note| (layer.blob(), &note.name[..], note.kind.to_string()))
        })
    }

    /// Names and attributes.
    pub fn rootfs(&self) -> &Rootfs {
        &self.rootfs
    }

    /// Bytes that it takes in memory, with the tables of its layers.
    pub fn memory_bytes(&self) -> u64 {
        let layers = self.rootfs.layers().iter().map(|layer| layer.memory_bytes());
        self.rootfs.memory_bytes() + layers.sum::<u64>()
    }

    /// Opens a file for reading. An error if it is a hard link that leads nowhere; `None` if it is
    /// no file.
    pub fn open(&self, node: Node) -> Result<Option<TreeFile>> {
        if self.rootfs.attributes(node).kind != FileKind::File {
            return Ok(None);
        }
        let data = self.rootfs.data(node).map_err(|broken| {
            let path = String::from_utf8_lossy(&self.rootfs.path(node)).into_owned();
            Error::new(SIDE, format_args!("opening /{path}"), Kind::Layer(broken.to_string()))
        })?;
        let index = self.rootfs.layers().get(data.layer);
        let origin = self.origins.get(data.layer);
        let (Some(index), Some(origin)) = (index, origin) else { return Ok(None) };
        Ok(Some(TreeFile {
            size: data.size,
            // An empty file has nothing to read.
            stream: if data.extents.is_empty() { None } else { Some((origin.open)()?) },
            extents: data.extents,
            readable: index.stream_bytes(),
            damage: index.damage().map(|note| note.kind.to_string()),
            layer: origin.digest,
            noting: self.start.as_ref().and_then(|start| start.noting(origin.stream)),
        }))
    }

    /// Whether all of a node's content can be read.
    pub(super) fn has_all_of(&self, node: Node) -> bool {
        let Ok(data) = self.rootfs.data(node) else { return false };
        let readable = self.rootfs.layers().get(data.layer).map_or(0, |of| of.stream_bytes());
        data.extents.iter().all(|extent| extent.stream_offset + extent.length <= readable)
    }

    /// The extended attributes of a node, with those that say where it comes from.
    pub fn xattrs(&self, node: Node) -> Vec<(&[u8], Cow<'_, [u8]>)> {
        let own = self.rootfs.xattrs(node);
        let mut all: Vec<_> = own.map(|(name, value)| (name, Cow::Borrowed(value))).collect();
        // Linux has attributes of this kind for these two only.
        let kind = self.rootfs.attributes(node).kind;
        if matches!(kind, FileKind::File | FileKind::Dir)
            && let Some(origin) = self.origins.get(self.rootfs.content_layer(node))
            && origin.is_told
        {
            let layer = format!("{} {}", origin.number, origin.digest);
            all.push((LAYER_XATTR, Cow::Owned(layer.into_bytes())));
            if let Some(created_by) = &origin.created_by {
                all.push((CREATED_BY_XATTR, Cow::Borrowed(created_by.as_bytes())));
            }
        }
        all
    }
}

fn damage_of(layer: &LayerIndex) -> Option<Error> {
    let note = layer.damage()?;
    let doing = format!("reading layer {}", layer.blob());
    Some(Error::new(SIDE, doing, Kind::Layer(note.kind.to_string())))
}

/// An open file of a [`Tree`].
pub struct TreeFile {
    size: u64,
    extents: Vec<Extent>,
    stream: Option<Stream>,
    /// Bytes of the stream that can be read.
    readable: u64,
    /// Why no more.
    damage: Option<String>,
    layer: Digest,
    /// Wants to know what is read.
    noting: Option<Noting>,
}

/// A piece of a file.
enum Piece {
    Zeros(usize),
    /// Of the stream of a layer, in which what it is part of ends at the byte `end`.
    Stream {
        offset: u64,
        length: usize,
        end: u64,
    },
}

impl TreeFile {
    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether what is read is known to be right: not as long as its layer is still being scanned.
    pub fn is_certain(&self) -> bool {
        self.stream.as_ref().is_none_or(Stream::is_certain)
    }

    /// Waits until it is known whether what was read is right.
    pub async fn verified(&self) -> Result<()> {
        match &self.stream {
            Some(stream) => stream.verified().await,
            None => Ok(()),
        }
    }

    /// The digest of the layer that it is in.
    pub fn layer(&self) -> Digest {
        self.layer
    }

    /// Where the first byte from `offset` on is that is stored; `None` if there are only holes up to the end.
    pub fn next_data(&self, offset: u64) -> Option<u64> {
        let extent = self.extents.get(self.first_behind(offset))?;
        Some(extent.file_offset.max(offset))
    }

    /// Where the first byte from `offset` on is that is in a hole, which may be the end of the file; `None` if
    /// `offset` is not in the file.
    pub fn next_hole(&self, offset: u64) -> Option<u64> {
        let mut hole = offset;
        for extent in &self.extents[self.first_behind(offset)..] {
            if extent.file_offset > hole {
                break;
            }
            hole = extent.file_offset + extent.length;
        }
        (offset < self.size).then_some(hole)
    }

    /// The first extent that ends behind `offset`.
    fn first_behind(&self, offset: u64) -> usize {
        self.extents.partition_point(|e| e.file_offset + e.length <= offset)
    }

    /// Reads without waiting for a registry, if that can be. At most `length` bytes; fewer only at
    /// the end.
    pub fn read_now(&self, offset: u64, length: usize) -> Option<Result<Bytes>> {
        let pieces = match self.pieces(offset, length) {
            Ok(pieces) => pieces,
            Err(error) => return Some(Err(error)),
        };
        self.note(&pieces);
        let mut parts = Vec::with_capacity(pieces.len());
        for piece in pieces {
            parts.push(match (piece, &self.stream) {
                (Piece::Stream { offset, length, end }, Some(stream)) => {
                    match stream.try_read(end, offset, length)? {
                        Ok(bytes) => bytes,
                        Err(error) => return Some(Err(error)),
                    }
                }
                (Piece::Zeros(length) | Piece::Stream { length, .. }, _) => zeros(length),
            });
        }
        Some(Ok(joined(parts)))
    }

    /// Reads, however long that takes. It ends by itself when nothing comes.
    pub async fn read(&self, offset: u64, length: usize) -> Result<Bytes> {
        let mut parts = Vec::new();
        let pieces = self.pieces(offset, length)?;
        self.note(&pieces);
        let _reading = self.noting.as_ref().map(Noting::reading);
        for piece in pieces {
            parts.push(match (piece, &self.stream) {
                (Piece::Stream { offset, length, end }, Some(stream)) => {
                    stream.read(end, offset, length).await?
                }
                (Piece::Zeros(length) | Piece::Stream { length, .. }, _) => zeros(length),
            });
        }
        Ok(joined(parts))
    }

    /// Notes what is read, for the next start of the image.
    fn note(&self, pieces: &[Piece]) {
        let Some(noting) = &self.noting else { return };
        for piece in pieces {
            if let Piece::Stream { offset, length, .. } = piece {
                noting.note(*offset..offset + *length as u64);
            }
        }
    }

    fn pieces(&self, offset: u64, length: usize) -> Result<Vec<Piece>> {
        let end = offset.saturating_add(length as u64).min(self.size);
        let mut pieces = Vec::new();
        let mut at = offset;
        for extent in
            self.extents[self.first_behind(offset)..].iter().take_while(|e| e.file_offset < end)
        {
            if extent.file_offset > at {
                // No longer than what was asked for.
                pieces.push(Piece::Zeros((extent.file_offset - at) as usize));
                at = extent.file_offset;
            }
            let stop = end.min(extent.file_offset + extent.length);
            let offset = extent.stream_offset + (at - extent.file_offset);
            self.check(offset..offset + (stop - at))?;
            let (length, end) = ((stop - at) as usize, extent.stream_offset + extent.length);
            pieces.push(Piece::Stream { offset, length, end });
            at = stop;
        }
        if at < end {
            pieces.push(Piece::Zeros((end - at) as usize));
        }
        Ok(pieces)
    }

    /// What lies behind the place where a layer is damaged is an error, and not the end of a file.
    fn check(&self, range: Range<u64>) -> Result<()> {
        if range.end <= self.readable {
            return Ok(());
        }
        let why = self.damage.as_deref().unwrap_or("the layer ends before the file does");
        let doing = format!("reading layer {}", self.layer);
        Err(Error::new(SIDE, doing, Kind::Layer(why.to_owned())))
    }
}

fn zeros(length: usize) -> Bytes {
    vec![0; length].into()
}
