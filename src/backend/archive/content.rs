//! The bytes of an archive, compressed or not.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    ops::Range,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::{Members, failed, side};
use crate::{
    backend::{BoxStream, ByteStream, Error, FileStream, Kind, Result},
    image::Digest,
    layer::{
        Compression, IndexError, Indexer, LayerIndex, Limits, MemberReader, Options, SpanDecoder,
    },
    util::read_at_most,
};

/// Bytes of the file that are read at once.
const READ_BYTES: usize = 256 << 10;

/// Indexes of compressed archives that are kept, and how long.
const MAX_KEPT: usize = 64;
const LONGEST_KEPT: Duration = Duration::from_secs(30 * 86_400);

/// What is accepted of an archive: less than of a layer in names, more in bytes.
fn limits() -> Limits {
    Limits {
        max_entries: 1_000_000,
        max_table_bytes: 128 << 20,
        max_stream_bytes: 2 << 40,
        ..Limits::default()
    }
}

/// An archive that is open.
pub(super) struct Archive {
    file: Arc<File>,
    path: PathBuf,
    /// How to read it if it is compressed.
    index: Option<Arc<LayerIndex>>,
}

impl Archive {
    /// Reads an archive once, and finds its members. The index of a compressed one is kept in the directory `kept`.
    pub(super) fn index(file: File, path: &Path, kept: Option<&Path>) -> Result<(Self, Members)> {
        let io = |e| failed(path, "reading it", e);
        let mut magic = [0; Compression::MAGIC_BYTES];
        let count = read_at_most(&file, &mut magic, 0).map_err(io)?;
        let compression = Compression::detect(&magic[..count]).map_err(|e| {
            let reason =
                format!("{}; decompress it first", e.to_string().replace("the layer", "it"));
            Error::new(side(path), "reading it", Kind::Config(reason))
        })?;
        let archive = |file, index| Self { file: Arc::new(file), path: path.to_owned(), index };
        if compression == Compression::Plain {
            let members = plain_members(&file, path)?;
            return Ok((archive(file, None), members));
        }
        let place = kept.map(|dir| Kept { dir: dir.to_owned(), name: name_of(&file) });
        let index = match place.as_ref().and_then(Kept::read) {
            Some(index) => index,
            None => {
                let index = pass(&file, path)?;
                if let Some(place) = &place {
                    place.write(&index);
                }
                index
            }
        };
        if let Some(damage) = index.damage() {
            let reason = damage.kind.to_string().replace("the layer", "it");
            return Err(Error::new(side(path), "reading it", Kind::Layer(reason)));
        }
        let notes = index.notes().iter().filter(|note| !note.name.is_empty());
        let refused = notes.map(|note| (note.name.clone(), note.kind.to_string()));
        let members = Members::new(index.members(), []).with_notes(refused);
        Ok((archive(file, Some(Arc::new(index))), members))
    }

    /// Reads the bytes `range` of the decompressed archive.
    pub(super) fn read(&self, range: Range<u64>) -> Result<BoxStream> {
        match &self.index {
            None => Ok(Box::new(FileStream::start(self.file.clone(), self.path.clone(), range))),
            Some(index) => Ok(Box::new(Spans::start(
                self.file.clone(),
                index.clone(),
                self.path.clone(),
                range,
            ))),
        }
    }

    /// The error for a blob that is not in it.
    pub(super) fn missing(&self, digest: &Digest) -> Error {
        let doing = format!("reading blob {digest}");
        Error::new(side(&self.path), doing, Kind::NotFound(String::new()))
    }
}

/// Reads the headers of an archive that is not compressed, and passes over what is between them.
fn plain_members(file: &File, path: &Path) -> Result<Members> {
    let io = |e| failed(path, "reading it", e);
    let damaged = |what: String| Error::new(side(path), "reading it", Kind::Layer(what));
    let end = file.metadata().map_err(io)?.len();
    let mut reader = MemberReader::new(limits());
    let mut buffer = vec![0; MemberReader::PIECE_BYTES];
    let mut at = 0;
    while at < end && !reader.is_at_end() {
        let count = read_at_most(file, &mut buffer, at).map_err(io)?;
        if count == 0 {
            break;
        }
        reader
            .push(&buffer[..count])
            .map_err(|e| damaged(format!("it is no tar archive, or damaged: {e}")))?;
        at = at.saturating_add(count as u64).saturating_add(reader.pass_over());
    }
    if at > end {
        return Err(damaged("it ends in the middle of a file: it has been cut off".to_owned()));
    }
    let (members, refused) = reader.finish().map_err(|e| damaged(e.to_string()))?;
    Ok(Members::new(members, refused))
}

/// Decompresses all of an archive once, to find out how to decompress any part of it later.
fn pass(file: &File, path: &Path) -> Result<LayerIndex> {
    let mut indexer = Indexer::new(Options { limits: limits(), ..Options::default() });
    let mut buffer = vec![0; READ_BYTES];
    let mut at = 0;
    let broken = |e: IndexError| Error::new(side(path), "reading it", Kind::Layer(e.to_string()));
    loop {
        let count =
            read_at_most(file, &mut buffer, at).map_err(|e| failed(path, "reading it", e))?;
        if count == 0 {
            return indexer.finish_as_found().map_err(broken);
        }
        at += count as u64;
        indexer.push(&buffer[..count]).map_err(broken)?;
    }
}

/// Standard input as a file that can be read at any place: itself if it is one, or else a copy without a name.
pub(super) fn standard_input() -> io::Result<File> {
    let input = File::from(rustix::io::dup(rustix::stdio::stdin())?);
    let is_at_start = || rustix::fs::tell(&input).is_ok_and(|at| at == 0);
    if input.metadata()?.is_file() && is_at_start() {
        return Ok(input);
    }
    unnamed_copy(input)
}

/// A file without a name that has what `input` gives.
pub(super) fn unnamed_copy(mut input: impl Read) -> io::Result<File> {
    let mut file = unnamed_file()?;
    io::copy(&mut input, &mut file)?;
    file.flush()?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

/// A file without a name in the directory for temporary files.
pub(in crate::backend) fn unnamed_file() -> io::Result<File> {
    use rustix::fs::{CWD, Mode, OFlags};
    let dir = std::env::temp_dir();
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(CWD, &dir, flags, Mode::RUSR | Mode::WUSR);
    opened.map(File::from).map_err(|e| {
        let e = io::Error::from(e);
        io::Error::new(e.kind(), format!("a temporary file in {}: {e}", dir.display()))
    })
}

/// Where the index of a compressed archive is kept.
struct Kept {
    dir: PathBuf,
    name: Option<String>,
}

/// A name that the same file has as long as nobody changes it.
fn name_of(file: &File) -> Option<String> {
    let meta = file.metadata().ok()?;
    let text = format!(
        "imgfs archive 1 {} {} {} {} {} {} {}",
        meta.dev(),
        meta.ino(),
        meta.size(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec()
    );
    Some(format!("archive-{}", Digest::sha256(text.as_bytes()).to_hex()))
}

impl Kept {
    fn path(&self) -> Option<PathBuf> {
        Some(self.dir.join(self.name.as_ref()?))
    }

    fn read(&self) -> Option<LayerIndex> {
        let bytes = std::fs::read(self.path()?).ok()?;
        LayerIndex::from_bytes(&bytes).ok()
    }

    /// Removes what has not been written for long, and the oldest if there are many.
    fn tidy(&self) {
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return };
        let mut kept: Vec<(SystemTime, PathBuf)> = entries
            .flatten()
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        kept.sort();
        let many = kept.len().saturating_sub(MAX_KEPT - 1);
        for (at, (time, path)) in kept.iter().enumerate() {
            if at < many || time.elapsed().is_ok_and(|age| age > LONGEST_KEPT) {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    /// What cannot be kept is made again the next time.
    fn write(&self, index: &LayerIndex) {
        let Some(path) = self.path() else { return };
        let Ok(bytes) = index.to_bytes() else { return };
        self.tidy();
        let fresh = path.with_extension(format!("{}.new", std::process::id()));
        let written = std::fs::create_dir_all(&self.dir)
            .and_then(|()| std::fs::write(&fresh, bytes))
            .and_then(|()| std::fs::rename(&fresh, &path));
        if written.is_err() {
            let _ = std::fs::remove_file(&fresh);
        }
    }
}

/// A part of a compressed archive, decompressed on a thread of its own.
struct Spans {
    pieces: mpsc::Receiver<Result<Bytes>>,
}

impl Spans {
    fn start(file: Arc<File>, index: Arc<LayerIndex>, path: PathBuf, range: Range<u64>) -> Self {
        // Spans are small: one is here, one is on its way.
        let (sender, pieces) = mpsc::channel(1);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = decompress(&file, &index, &path, range, &sender) {
                // Whoever does not want to know has gone.
                let _ = sender.blocking_send(Err(error));
            }
        });
        Self { pieces }
    }
}

fn decompress(
    file: &File,
    index: &LayerIndex,
    path: &Path,
    range: Range<u64>,
    sender: &mpsc::Sender<Result<Bytes>>,
) -> Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    let damaged = |what: String| Error::new(side(path), "reading it", Kind::Layer(what));
    let outside = || damaged("it ends before what it lists".to_owned());
    let first = index.span_of(range.start).ok_or_else(outside)?;
    let last = index.span_of(range.end - 1).ok_or_else(outside)?;
    let spans = first..last + 1;
    let mut decoder = SpanDecoder::new(index, first, None).map_err(|e| damaged(e.to_string()))?;
    let compressed = index.fetch_range(spans.clone());
    let mut buffer = vec![0; READ_BYTES];
    let (mut at, mut is_wanted) = (compressed.start, true);
    while at < compressed.end && is_wanted {
        let most = usize::try_from(compressed.end - at).unwrap_or(usize::MAX).min(READ_BYTES);
        let count = read_at_most(file, &mut buffer[..most], at);
        let count = count.map_err(|e| failed(path, "reading it", e))?;
        if count == 0 {
            return Err(outside());
        }
        at += count as u64;
        let done = decoder.push(index, &spans, &buffer[..count], &mut |decoded| {
            // What lies before them in their group is decompressed on the way.
            if decoded.span < first {
                return;
            }
            let (known, bytes) = (index.stream_range(decoded.span), Bytes::from(decoded.bytes));
            let from = range.start.saturating_sub(known.start).min(bytes.len() as u64);
            let to = range.end.saturating_sub(known.start).min(bytes.len() as u64);
            let piece = bytes.slice(from as usize..to as usize);
            is_wanted &= piece.is_empty() || sender.blocking_send(Ok(piece)).is_ok();
        });
        if done.map_err(|e| damaged(format!("{e}: it has changed since it was opened")))? {
            return Ok(());
        }
    }
    match is_wanted {
        true => Err(outside()),
        false => Ok(()),
    }
}

#[async_trait]
impl ByteStream for Spans {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        self.pieces.recv().await.transpose()
    }
}
