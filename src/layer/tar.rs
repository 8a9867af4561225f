//! A push parser of tar archives: ustar, GNU, PAX, and what star and libarchive add to them.
//!
//! Headers come out with the offset of their data in the stream; the data itself is passed over.
//! What one entry is refused for (a name that leads out of the root, a damaged PAX header) is told and the next one is read.
//! What leaves unclear where the next entry begins ends the archive: [`TarError`].
//!
//! Sources: POSIX.1-2017 `pax`, the GNU tar manual ("Basic Tar Format", "Sparse Formats"), star(5),
//! libarchive-formats(5). Where implementations differ, Go's `archive/tar` is followed, which is
//! what makes and reads most images.

mod block;
mod entry;
mod name;
mod pax;
mod sparse;

pub(super) use block::BLOCK_BYTES;

use std::sync::Arc;

use block::Block;
pub(super) use entry::{Claim, TarEntry, TarEvent, Xattr};
pub use entry::{Extent, Kind, Refusal, TarError, Time};
pub(super) use name::{MAX_COMPONENT_BYTES, MAX_NAME_BYTES};
pub(super) use pax::xattrs_of;
use pax::{Attributes, Records};
use sparse::{MapText, OldMap};

/// The longest PAX header or GNU long name that is accepted, in bytes.
pub(super) const MAX_HEADER_BYTES: u64 = 1 << 20;

/// The most that global PAX headers may say. It is read again for every entry.
const MAX_GLOBAL_BYTES: u64 = 16 << 10;

/// What is wrong with a header that says more than that.
const TOO_LONG: &str = "it is too long";

/// What comes next in the stream.
enum State {
    Header,
    /// The body of a header that says something of another one, and bytes of it that are left.
    Meta(Meta, Vec<u8>, u64),
    /// Data or padding.
    Skip(u64),
    /// The extension headers of a sparse file of GNU's old format.
    OldSparse(Box<Draft>, OldMap),
    /// The map before the data of a sparse file of PAX format 1.0, and the file's stored bytes
    /// that are left with it.
    MapText(Box<Draft>, MapText, u64),
    End,
}

#[derive(Clone, Copy)]
enum Meta {
    Local,
    Global,
    LongName,
    LongTarget,
}

/// An entry whose sparse map is still being read.
struct Draft {
    entry: TarEntry,
    raw_name: Vec<u8>,
    number: u64,
    /// Bytes in the archive, with those of a map.
    stored: u64,
}

/// The parser.
pub(super) struct Parser {
    max_entries: u32,
    state: State,
    /// Stream offset of the next byte.
    at: u64,
    /// What is here of the next block.
    block: Box<[u8; BLOCK_BYTES]>,
    filled: usize,
    zero_blocks: u8,
    /// Entries so far, with those that were refused.
    entries: u64,
    local: Option<Records>,
    global: Arc<Records>,
    long_name: Option<Vec<u8>>,
    long_target: Option<Vec<u8>>,
    /// Why the next entry is refused: what stands before it makes no sense.
    refusal: Option<Refusal>,
    /// What is wrong with a global header that has been passed over.
    wrong_global: Option<&'static str>,
}

impl Parser {
    pub(super) fn new(max_entries: u32) -> Self {
        Self {
            max_entries,
            state: State::Header,
            at: 0,
            block: Box::new([0; BLOCK_BYTES]),
            filled: 0,
            zero_blocks: 0,
            entries: 0,
            local: None,
            global: Arc::default(),
            long_name: None,
            long_target: None,
            refusal: None,
            wrong_global: None,
        }
    }

    /// Reads what comes next of the stream and tells `sink` what it finds. After an error nothing
    /// more must be pushed.
    pub(super) fn push(
        &mut self,
        mut input: &[u8],
        sink: &mut dyn FnMut(TarEvent),
    ) -> Result<(), TarError> {
        while !input.is_empty() {
            match &mut self.state {
                State::End => {
                    self.at += input.len() as u64;
                    break;
                }
                State::Skip(left) => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                    *left -= count as u64;
                    if *left == 0 {
                        self.state = State::Header;
                    }
                    input = &input[count..];
                    self.at += count as u64;
                }
                State::Meta(_, body, left) => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                    body.extend_from_slice(&input[..count]);
                    *left -= count as u64;
                    let is_done = *left == 0;
                    input = &input[count..];
                    self.at += count as u64;
                    if is_done {
                        self.finish_meta();
                    }
                }
                State::Header | State::OldSparse(..) | State::MapText(..) => {
                    let count = (BLOCK_BYTES - self.filled).min(input.len());
                    self.block[self.filled..self.filled + count].copy_from_slice(&input[..count]);
                    self.filled += count;
                    input = &input[count..];
                    self.at += count as u64;
                    if self.filled == BLOCK_BYTES {
                        self.filled = 0;
                        self.take_block(sink)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Checks that the archive may end here.
    pub(super) fn finish(&self) -> Result<(), TarError> {
        match self.state {
            State::Header if self.filled == 0 && !self.has_pending() => Ok(()),
            // What is left of a block of zeros is zeros.
            State::Header
                if !self.has_pending()
                    && self.block[..self.filled] == [0; BLOCK_BYTES][..self.filled] =>
            {
                Ok(())
            }
            State::End => Ok(()),
            _ => Err(TarError::Truncated { offset: self.at }),
        }
    }

    /// How many bytes follow that are data or padding. They count as passed then, and are not to be pushed.
    pub(super) fn pass_over(&mut self) -> u64 {
        let State::Skip(left) = self.state else { return 0 };
        self.state = State::Header;
        self.at += left;
        left
    }

    /// Whether the end of the archive has passed.
    pub(super) fn is_at_end(&self) -> bool {
        matches!(self.state, State::End)
    }

    fn has_pending(&self) -> bool {
        self.local.is_some()
            || self.long_name.is_some()
            || self.long_target.is_some()
            || self.refusal.is_some()
    }

    fn take_block(&mut self, sink: &mut dyn FnMut(TarEvent)) -> Result<(), TarError> {
        match std::mem::replace(&mut self.state, State::Header) {
            State::OldSparse(draft, mut map) => {
                if map.push_extension(&self.block) {
                    self.finish_old_sparse(*draft, map, sink);
                } else {
                    self.state = State::OldSparse(draft, map);
                }
                Ok(())
            }
            State::MapText(draft, mut map, left) => {
                let is_last = map.push(&self.block[..]);
                // The block was part of the stored bytes.
                let left = left.saturating_sub(BLOCK_BYTES as u64);
                if is_last || left == 0 {
                    let stored = left;
                    let data_offset = self.at;
                    let extents = map.finish(data_offset, stored, draft.entry.size);
                    self.finish_sparse(*draft, extents, sink);
                    self.skip(left);
                } else {
                    self.state = State::MapText(draft, map, left);
                }
                Ok(())
            }
            _ => self.take_header(sink),
        }
    }

    fn take_header(&mut self, sink: &mut dyn FnMut(TarEvent)) -> Result<(), TarError> {
        let offset = self.at - BLOCK_BYTES as u64;
        let bytes = self.block.clone();
        let block = Block::new(&bytes, offset);
        if block.is_zero() {
            self.zero_blocks += 1;
            if self.zero_blocks == 2 {
                self.state = State::End;
            }
            return Ok(());
        }
        // GNU tar, too, goes on after a single block of zeros.
        self.zero_blocks = 0;
        block.check()?;
        let meta = match block.type_flag() {
            b'x' | b'X' => Some(Meta::Local),
            b'g' => Some(Meta::Global),
            b'L' => Some(Meta::LongName),
            b'K' => Some(Meta::LongTarget),
            _ => None,
        };
        if let Some(meta) = meta {
            let bytes = block.size()?;
            if bytes > MAX_HEADER_BYTES {
                if !self.has_end(bytes) {
                    return Err(TarError::Number { offset, field: "size" });
                }
                self.refuse_meta(meta, TOO_LONG);
                self.skip(bytes + padding(bytes));
                return Ok(());
            }
            self.state = State::Meta(meta, Vec::new(), bytes);
            if bytes == 0 {
                self.finish_meta();
            }
            return Ok(());
        }
        self.take_entry(&block, sink)
    }

    /// Whether `bytes` bytes from here on end where offsets can be.
    fn has_end(&self, bytes: u64) -> bool {
        self.at.checked_add(bytes).is_some_and(|end| end < 1 << 62)
    }

    /// Notes that a header makes no sense. What it is about is refused; what follows is read all the same.
    fn refuse_meta(&mut self, meta: Meta, what: &'static str) {
        match meta {
            Meta::Global => self.wrong_global = Some(what),
            Meta::Local => self.refusal = Some(Refusal::Pax(what)),
            Meta::LongName | Meta::LongTarget => self.refusal = Some(Refusal::LongName),
        }
    }

    fn finish_meta(&mut self) {
        let State::Meta(meta, body, _) = std::mem::replace(&mut self.state, State::Header) else {
            return;
        };
        let pad = padding(body.len() as u64);
        let text = |mut body: Vec<u8>| {
            body.truncate(body.iter().position(|b| *b == 0).unwrap_or(body.len()));
            body
        };
        match meta {
            Meta::Local => {
                let records = self.local.get_or_insert_default();
                let read = records.read(&body);
                let is_too_long = records.bytes() as u64 > MAX_HEADER_BYTES;
                if is_too_long {
                    self.local = None;
                }
                if let Err(what) = if is_too_long { Err(TOO_LONG) } else { read } {
                    self.refuse_meta(meta, what);
                }
            }
            Meta::Global => {
                let mut records = Records::clone(&self.global);
                match records.read(&body) {
                    Ok(()) if records.bytes() as u64 <= MAX_GLOBAL_BYTES => {
                        self.global = Arc::new(records);
                    }
                    Ok(()) => self.refuse_meta(meta, TOO_LONG),
                    Err(what) => self.refuse_meta(meta, what),
                }
            }
            Meta::LongName => self.long_name = Some(text(body)),
            Meta::LongTarget => self.long_target = Some(text(body)),
        }
        self.skip(pad);
    }

    fn skip(&mut self, bytes: u64) {
        self.state = if bytes == 0 { State::Header } else { State::Skip(bytes) };
    }

    fn take_entry(
        &mut self,
        block: &Block<'_>,
        sink: &mut dyn FnMut(TarEvent),
    ) -> Result<(), TarError> {
        let number = self.entries;
        if number >= u64::from(self.max_entries) {
            return Err(TarError::TooManyEntries { limit: self.max_entries });
        }
        self.entries += 1;
        let offset = block.offset;
        let local = self.local.take().unwrap_or_default();
        let global = Arc::clone(&self.global);
        let pax =
            Attributes::new(&global, &local).map_err(|what| TarError::Pax { offset, what })?;
        let long_target = self.long_target.take();
        let mut raw_name = match (self.long_name.take(), pax.name()) {
            (Some(name), _) => name,
            (None, Some(name)) => name.to_vec(),
            (None, None) => block.name(),
        };
        let mut flag = block.type_flag();
        if flag == 0 {
            // Before POSIX, a directory was a file whose name ends so.
            flag = if raw_name.ends_with(b"/") { b'5' } else { b'0' };
        }
        let kind = match flag {
            b'0' | b'7' | b'S' => Ok(Kind::File),
            b'1' => Ok(Kind::Link),
            b'2' => Ok(Kind::Symlink),
            b'3' => Ok(Kind::Char),
            b'4' => Ok(Kind::Block),
            b'5' => Ok(Kind::Dir),
            b'6' => Ok(Kind::Fifo),
            other => Err(Refusal::UnknownType(other)),
        };
        // As in Go: only files, and what we do not know, are followed by data.
        let stored = match kind {
            Ok(Kind::File) | Err(_) => match pax.size {
                Some(size) => size,
                None => block.size()?,
            },
            Ok(_) => 0,
        };
        if !self.has_end(stored) {
            return Err(TarError::Number { offset, field: "size" });
        }
        // What of a header does not tell where the next one is, need not be right.
        let mut unreadable = pax.unreadable.clone();
        let time = || block.mtime().map(|secs| Time { secs, nanos: 0 });
        let mtime = or_nothing(pax.mtime.or_else(time), "time", &mut unreadable);
        let uid = or_nothing(pax.uid.or_else(|| block.uid()), "owner", &mut unreadable);
        let gid = or_nothing(pax.gid.or_else(|| block.gid()), "group", &mut unreadable);
        let device = match kind {
            Ok(Kind::Char | Kind::Block) => {
                or_nothing(block.device(), "device number", &mut unreadable)
            }
            _ => (0, 0),
        };
        let mode = or_nothing(block.mode(), "mode", &mut unreadable);
        let old_map = if flag == b'S' { Some(block.old_sparse()) } else { None };
        let target = match (long_target, pax.target) {
            (Some(target), _) => target,
            (None, Some(target)) => target.to_vec(),
            (None, None) => block.target(),
        };
        let is_pax_sparse = matches!(kind, Ok(Kind::File)) && old_map.is_none() && pax.is_sparse();
        if is_pax_sparse && let Some(name) = pax.sparse_name() {
            raw_name = name.to_vec();
        }
        let mut refused = |why| sink(TarEvent::Refused { number, name: raw_name.clone(), why });
        if let Some(what) = self.wrong_global.take() {
            refused(Refusal::Pax(what));
        }
        let checked = self.refusal.take().map_or(kind, Err).and_then(|kind| {
            let name = &raw_name;
            let target = &target;
            let data_offset = self.at;
            let size = stored;
            Claim { name, kind, mode, uid, gid, size, mtime, target, device, data_offset }.check()
        });
        let mut entry = match checked {
            Ok(entry) => entry,
            Err(why) => {
                refused(why);
                if let Some(map) = old_map.filter(OldMap::is_extended) {
                    // Its extension headers have to be passed over before its data.
                    let entry = TarEntry::nameless(self.at);
                    let draft = Draft { entry, raw_name: Vec::new(), number, stored };
                    self.state = State::OldSparse(Box::new(draft), map);
                } else {
                    self.skip(stored + padding(stored));
                }
                return Ok(());
            }
        };
        for why in entry.take_xattrs(pax.xattrs()) {
            refused(why);
        }
        for field in unreadable {
            refused(Refusal::Unreadable(field));
        }
        let draft = Draft { entry, raw_name, number, stored };
        if let Some(map) = old_map {
            if map.is_extended() {
                self.state = State::OldSparse(Box::new(draft), map);
            } else {
                self.finish_old_sparse(draft, map, sink);
            }
            return Ok(());
        }
        if is_pax_sparse {
            self.begin_pax_sparse(draft, &pax, sink)?;
            return Ok(());
        }
        sink(TarEvent::Entry(Box::new(draft.entry)));
        self.skip(stored + padding(stored));
        Ok(())
    }

    fn begin_pax_sparse(
        &mut self,
        mut draft: Draft,
        pax: &Attributes<'_>,
        sink: &mut dyn FnMut(TarEvent),
    ) -> Result<(), TarError> {
        let stored = draft.stored;
        draft.entry.size = match pax.sparse_size() {
            Ok(size) => size.unwrap_or(stored),
            Err(why) => {
                self.finish_sparse(draft, Err(why), sink);
                self.skip(stored + padding(stored));
                return Ok(());
            }
        };
        if pax.has_map_in_data() && stored > 0 {
            // The map takes whole blocks, and so does what is stored together with it.
            let left = stored + padding(stored);
            self.state = State::MapText(Box::new(draft), MapText::new(stored), left);
            return Ok(());
        }
        let extents = pax
            .sparse_map()
            .and_then(|map| sparse::place(map, draft.entry.data_offset, stored, draft.entry.size));
        self.finish_sparse(draft, extents, sink);
        self.skip(stored + padding(stored));
        Ok(())
    }

    fn finish_old_sparse(&mut self, mut draft: Draft, map: OldMap, sink: &mut dyn FnMut(TarEvent)) {
        let stored = draft.stored;
        draft.entry.data_offset = self.at;
        draft.entry.size = map.size;
        if !draft.entry.is_nameless() {
            let extents = map.finish(self.at, stored);
            self.finish_sparse(draft, extents, sink);
        }
        self.skip(stored + padding(stored));
    }

    fn finish_sparse(
        &mut self,
        draft: Draft,
        extents: Result<Vec<Extent>, &'static str>,
        sink: &mut dyn FnMut(TarEvent),
    ) {
        let Draft { mut entry, raw_name, number, .. } = draft;
        match extents {
            Ok(extents) => {
                entry.sparse = Some(extents);
                sink(TarEvent::Entry(Box::new(entry)));
            }
            Err(what) => {
                let why = Refusal::Sparse(what);
                sink(TarEvent::Refused { number, name: raw_name, why });
            }
        }
    }
}

/// `value`; if there is none, nothing in its place, and `field` among what is unreadable.
fn or_nothing<T: Default>(
    value: Option<T>,
    field: &'static str,
    unreadable: &mut Vec<&'static str>,
) -> T {
    value.unwrap_or_else(|| {
        if !unreadable.contains(&field) {
            unreadable.push(field);
        }
        T::default()
    })
}

/// Bytes that fill up the last block of `bytes` bytes.
fn padding(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK_BYTES as u64) - bytes
}
