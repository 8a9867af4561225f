//! The body: table, spans and notes. Columns stand together, because that compresses well.

use super::{
    StoredError,
    varint::{Reader, Writer},
};
use crate::layer::{
    Extent, Kind,
    index::{
        LayerIndex, Note, NoteKind, Origin, Table,
        span::{MAX_BYTES, MAX_REACH_BYTES, MAX_SKIP_BYTES, Span, Start},
        table::{NONE, PathPart, ROOT, Row, kind_of},
    },
    tar::BLOCK_BYTES,
};

type Result<T> = std::result::Result<T, StoredError>;

/// The longest path, as the parser of archives accepts it, with a `/` before it.
const MAX_PATH_BYTES: usize = 4097;

const fn wrong<T>(what: &'static str) -> Result<T> {
    Err(StoredError::Content(what))
}

/// What [`parse_body`] reads; `is_old` only in tests.
pub(super) fn write(index: &LayerIndex, is_old: bool) -> Vec<u8> {
    let mut out = Writer::default();
    write_paths(&index.table, &mut out);
    write_rows(&index.table, &mut out);
    write_extras(&index.table, &mut out);
    out.number(index.blob_bytes - index.used_bytes);
    write_spans(index, &mut out, is_old);
    write_notes(index, &mut out);
    out.0
}

/// Fills in what the body says of an index whose head is known; it may be one of version 2.
pub(super) fn parse_body(index: &mut LayerIndex, body: &[u8], is_old: bool) -> Result<()> {
    let mut from = Reader(body);
    let mut table = Table::default();
    read_paths(&mut table, &mut from)?;
    read_rows(&mut table, &mut from)?;
    read_extras(&mut table, &mut from)?;
    index.table = table
        .with_links_followed()
        .map_err(|_| StoredError::Content("its entries in symbolic links are too many"))?;
    index.used_bytes = match index.blob_bytes.checked_sub(from.number()?) {
        Some(used) => used,
        None => return wrong("more of the blob is unused than there is"),
    };
    read_spans(index, &mut from, is_old)?;
    read_notes(index, &mut from)?;
    if from.0.is_empty() { Ok(()) } else { wrong("there is something after the body") }
}

fn write_paths(table: &Table, out: &mut Writer) {
    out.bytes(&table.names);
    // The root is always there.
    out.number(table.paths.len() as u64 - 1);
    for (path, part) in (0_u32..).zip(&table.paths).skip(1) {
        out.number(u64::from(path - part.parent));
    }
    // Names are kept in the order in which paths need them.
    let mut new = 1;
    for part in &table.paths[1..] {
        if part.name == new {
            out.number(0);
            new += 1 + u32::from(table.names[new as usize]);
        } else {
            out.number(u64::from(part.name) + 1);
        }
    }
}

fn read_paths(table: &mut Table, from: &mut Reader<'_>) -> Result<()> {
    table.names = from.bytes()?.to_vec();
    if u32::try_from(table.names.len()).is_err() {
        return wrong("there are too many names");
    }
    let mut is_name = vec![false; table.names.len()];
    let mut at = 0;
    while let Some(length) = table.names.get(at) {
        let end = at + 1 + usize::from(*length);
        let Some(name) = table.names.get(at + 1..end) else {
            return wrong("a name is not complete");
        };
        let is_bad = name.contains(&0) || name.contains(&b'/') || name == b"." || name == b"..";
        if is_bad || name.is_empty() != (at == 0) {
            return wrong("a name is not allowed");
        }
        is_name[at] = at > 0;
        at = end;
    }
    if table.names.is_empty() {
        return wrong("the root has no name");
    }
    let count = from.count()?;
    if count >= NONE as usize {
        return wrong("there are too many paths");
    }
    table.paths = Vec::with_capacity(count + 1);
    table.paths.push(PathPart { parent: ROOT, name: 0, last: NONE });
    for path in 1..=count as u32 {
        match path.checked_sub(from.number_u32()?) {
            Some(parent) if parent < path => {
                table.paths.push(PathPart { parent, name: 0, last: NONE });
            }
            _ => return wrong("a path is not in an earlier one"),
        }
    }
    let mut new = 1;
    let mut lengths = vec![0_u16; count + 1];
    for path in 1..=count {
        let name = match from.number_u32()? {
            0 => new,
            other => other - 1,
        };
        if is_name.get(name as usize) != Some(&true) {
            return wrong("a path has no name");
        }
        let bytes = table.names[name as usize];
        if name == new {
            new += 1 + u32::from(bytes);
        }
        let part = &mut table.paths[path];
        part.name = name;
        let length = usize::from(lengths[part.parent as usize]) + 1 + usize::from(bytes);
        if length > MAX_PATH_BYTES {
            return wrong("a path is too long");
        }
        lengths[path] = length as u16;
    }
    Ok(())
}

fn write_rows(table: &Table, out: &mut Writer) {
    out.number(table.owners.len() as u64);
    for (uid, gid) in &table.owners {
        out.number(u64::from(*uid));
        out.number(u64::from(*gid));
    }
    let rows = &table.rows;
    out.number(rows.len() as u64);
    let mut last = 0;
    for row in rows {
        out.signed(i64::from(row.path) - last);
        last = i64::from(row.path);
    }
    for row in rows {
        out.number(u64::from(row.kind_and_mode));
    }
    for row in rows {
        out.number(u64::from(row.owner));
    }
    for row in rows {
        out.number(row.size);
    }
    let mut last = 0;
    for row in rows {
        out.signed(i64::from(row.block) - last);
        last = i64::from(row.block);
    }
    let mut last = 0_i64;
    for row in rows {
        out.signed(row.secs.wrapping_sub(last));
        last = row.secs;
    }
    for row in rows {
        // Targets of symbolic links stand in the order of their entries.
        let kind = kind_of(row.kind_and_mode >> 12);
        if matches!(kind, Some(Kind::Link | Kind::Char | Kind::Block)) {
            out.number(u64::from(row.extra));
        }
    }
    out.bytes(&table.targets);
}

fn read_rows(table: &mut Table, from: &mut Reader<'_>) -> Result<()> {
    for _ in 0..from.count()? {
        let owner = (from.number_u32()?, from.number_u32()?);
        table.owners.push(owner);
    }
    let count = from.count()?;
    if count >= NONE as usize {
        return wrong("there are too many entries");
    }
    table.rows = Vec::with_capacity(count);
    let mut last = 0_i64;
    for number in 0..count as u32 {
        last = last.wrapping_add(from.signed()?);
        let path = u32::try_from(last).unwrap_or(NONE);
        let Some(part) = table.paths.get_mut(path as usize) else {
            return wrong("an entry has no path");
        };
        part.last = number;
        table.rows.push(Row {
            path,
            size: 0,
            block: 0,
            secs: 0,
            owner: 0,
            kind_and_mode: 0,
            extra: 0,
        });
    }
    for row in &mut table.rows {
        let number = from.number()?;
        row.kind_and_mode = match u16::try_from(number) {
            Ok(number) if kind_of(number >> 12).is_some() => number,
            _ => return wrong("the kind of an entry is unknown"),
        };
        if row.path == ROOT && kind_of(row.kind_and_mode >> 12) != Some(Kind::Dir) {
            return wrong("the root is no directory");
        }
    }
    for row in &mut table.rows {
        row.owner = match u16::try_from(from.number()?) {
            Ok(owner) if usize::from(owner) < table.owners.len() => owner,
            _ => return wrong("an entry has no owner"),
        };
    }
    for row in &mut table.rows {
        row.size = from.number()?;
        if row.size > 1 << 62 {
            return wrong("a file is too large");
        }
    }
    let mut last = 0_i64;
    for row in &mut table.rows {
        last = last.wrapping_add(from.signed()?);
        row.block = match u32::try_from(last) {
            Ok(block) => block,
            Err(_) => return wrong("an entry is nowhere"),
        };
    }
    let mut last = 0_i64;
    for row in &mut table.rows {
        last = last.wrapping_add(from.signed()?);
        row.secs = last;
    }
    for row in &mut table.rows {
        let kind = kind_of(row.kind_and_mode >> 12);
        if matches!(kind, Some(Kind::Link | Kind::Char | Kind::Block)) {
            row.extra = from.number_u32()?;
            if kind == Some(Kind::Link) && row.extra as usize >= table.paths.len() {
                return wrong("a hard link has no target");
            }
        }
    }
    table.targets = from.bytes()?.to_vec();
    let mut at = 0_usize;
    for row in &mut table.rows {
        if kind_of(row.kind_and_mode >> 12) == Some(Kind::Symlink) {
            row.extra = at as u32;
            let rest = table.targets.get(at..).unwrap_or_default();
            match rest.split_first_chunk() {
                Some((length, _)) => at += 2 + usize::from(u16::from_le_bytes(*length)),
                None => return wrong("a symbolic link has no target"),
            }
        }
    }
    if at == table.targets.len() && u32::try_from(at).is_ok() {
        Ok(())
    } else {
        wrong("the targets of links are not those of entries")
    }
}

fn write_extras(table: &Table, out: &mut Writer) {
    let list = |out: &mut Writer, list: &[(u32, u32)]| {
        out.number(list.len() as u64);
        let mut last = 0;
        for (entry, value) in list {
            out.number(u64::from(*entry - last));
            out.number(u64::from(*value));
            last = *entry;
        }
    };
    list(out, &table.nanos);
    list(out, &table.xattrs);
    out.bytes(&table.xattr_sets);
    list(out, &table.sparse);
    out.number(table.extents.len() as u64);
    for extent in &table.extents {
        out.number(extent.file_offset);
        out.number(extent.stream_offset);
        out.number(extent.length);
    }
}

fn read_extras(table: &mut Table, from: &mut Reader<'_>) -> Result<()> {
    let entries = table.len();
    let list = |from: &mut Reader<'_>| {
        let count = from.count()?;
        let mut list: Vec<(u32, u32)> = Vec::with_capacity(count);
        for _ in 0..count {
            let step = from.number_u32()?;
            let last = list.last().map_or(0, |(entry, _)| *entry);
            match last.checked_add(step) {
                Some(entry) if entry < entries && (step > 0 || list.is_empty()) => {
                    list.push((entry, from.number_u32()?));
                }
                _ => return wrong("a list of entries has no order"),
            }
        }
        Ok(list)
    };
    table.nanos = list(from)?;
    if table.nanos.iter().any(|(_, nanos)| *nanos >= 1_000_000_000) {
        return wrong("a second has too many nanoseconds");
    }
    table.xattrs = list(from)?;
    table.xattr_sets = from.bytes()?.to_vec();
    if u32::try_from(table.xattr_sets.len()).is_err() {
        return wrong("there are too many extended attributes");
    }
    table.sparse = list(from)?;
    let count = from.count()?;
    table.extents = Vec::with_capacity(count);
    for _ in 0..count {
        let (file_offset, stream_offset, length) = (from.number()?, from.number()?, from.number()?);
        table.extents.push(Extent { file_offset, stream_offset, length });
    }
    if table.sparse.first().is_some_and(|(_, first)| *first != 0)
        || !table.sparse.is_sorted_by_key(|(_, first)| *first)
        || table.sparse.last().map_or(0, |(_, first)| *first as usize) > count
        || (table.sparse.is_empty() && count > 0)
    {
        return wrong("extents belong to no entry");
    }
    for (number, _) in &table.sparse {
        let size = table.entry(*number).map_or(0, |entry| entry.size);
        let mut end = 0;
        for extent in table.extents(*number) {
            let next = extent.file_offset.checked_add(extent.length);
            let is_far = extent.stream_offset > 1 << 62;
            match next {
                Some(next)
                    if extent.file_offset >= end
                        && next <= size
                        && extent.length > 0
                        && !is_far =>
                {
                    end = next;
                }
                _ => return wrong("an extent is not within its file"),
            }
        }
    }
    Ok(())
}

fn write_spans(index: &LayerIndex, out: &mut Writer, is_old: bool) {
    out.number(index.spans.len() as u64);
    let (mut last, mut last_bits, mut last_end) = (0, 0, 0);
    for span in &index.spans {
        out.number(span.stream_offset - last);
        last = span.stream_offset;
        let (kind, bytes) = match span.start {
            Start::No => (0, None),
            Start::Clean { .. } => (1, None),
            Start::Window { bytes, .. } => (2, Some(bytes)),
        };
        out.number(kind);
        if let Some(bits) = span.blob_bits() {
            out.number(bits - last_bits);
            last_bits = bits;
        }
        if let Some(bytes) = bytes {
            out.number(u64::from(bytes));
        }
        if index.origin == Origin::Toc || (index.origin == Origin::Pass && kind > 0 && !is_old) {
            out.number(u64::from(span.skip));
        }
        match index.origin {
            Origin::Toc => out.number(u64::from(span.padding)),
            // Of those that were read of version 2 it is not known.
            Origin::Pass if !is_old => {
                let end = span.blob_end.max(last_end);
                out.number(end - last_end);
                last_end = end;
            }
            Origin::Pass | Origin::Ztoc => {}
        }
        out.0.extend_from_slice(&span.digest);
    }
}

fn read_spans(index: &mut LayerIndex, from: &mut Reader<'_>, is_old: bool) -> Result<()> {
    let count = from.count()?;
    let (is_toc, is_ztoc) = (index.origin == Origin::Toc, index.origin == Origin::Ztoc);
    let has_ends = index.origin == Origin::Pass && !is_old;
    let (mut at, mut bits, mut window_at, mut first, mut blob_end) = (0_u64, 0_u64, 0_u64, 0, 0);
    // Of the span before, and how much is decompressed to get to its beginning.
    let (mut padding, mut reach) = (0, 0);
    let blob_bits = index.used_bytes.saturating_mul(8);
    for number in 0..count {
        let step = from.number()?;
        let bytes = step.checked_sub(u64::from(padding));
        match bytes {
            Some(0) if number == 0 => {}
            Some(1..=MAX_BYTES) if number > 0 => {}
            _ => return wrong("a span has a wrong length"),
        }
        reach += bytes.unwrap_or(0);
        at += step;
        let kind = from.number()?;
        if kind > 0 {
            bits = match bits.checked_add(from.number()?) {
                Some(bits) if bits <= blob_bits => bits,
                _ => return wrong("a span is not in the blob"),
            };
        }
        let start = match kind {
            0 if number > 0 && !is_ztoc => Start::No,
            1 => Start::Clean { blob_bits: bits },
            2 if (number > 0 || is_ztoc) && !is_toc => {
                let (offset, bytes) = (window_at, from.number_u32()?);
                window_at += u64::from(bytes);
                Start::Window { blob_bits: bits, offset, bytes }
            }
            _ => return wrong("the kind of a span is unknown"),
        };
        if kind > 0 {
            first = number as u32;
        }
        let mut skip = 0;
        if is_toc || (has_ends && kind > 0) {
            skip = from.number_u32()?;
        }
        if has_ends {
            blob_end = match u64::checked_add(blob_end, from.number()?) {
                Some(0) => 0,
                Some(end) if end <= index.used_bytes && end >= bits.div_ceil(8) => end,
                _ => return wrong("a span ends where it cannot"),
            };
            if u64::from(skip) > MAX_SKIP_BYTES {
                return wrong("a span is too far from its start");
            }
        }
        if is_toc {
            padding = match u16::try_from(from.number()?) {
                Ok(padding) if padding < BLOCK_BYTES as u16 => padding,
                _ => return wrong("there is too much between two spans"),
            };
            // As much as any span has may still come.
            reach = if kind > 0 { 0 } else { reach } + u64::from(skip);
            if reach > MAX_REACH_BYTES {
                return wrong("a span is too far from its start");
            }
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(from.take(32)?);
        index.spans.push(Span { stream_offset: at, blob_end, digest, start, first, skip, padding });
    }
    if padding > 0 {
        return wrong("there is nothing after the last span");
    }
    match index.stream_bytes.checked_sub(at) {
        Some(0) if count == 0 => Ok(()),
        Some(1..=MAX_BYTES) if count > 0 => Ok(()),
        _ => wrong("the spans are not the stream"),
    }
}

fn write_notes(index: &LayerIndex, out: &mut Writer) {
    out.number(index.notes.len() as u64);
    for note in &index.notes {
        out.number(note.entry.map_or(0, |entry| entry.saturating_add(1)));
        out.bytes(&note.name);
        let (kind, text) = match &note.kind {
            NoteKind::Refused(text) => (0, text),
            NoteKind::Damaged(text) => (1, text),
            NoteKind::Unreadable(text) => (2, text),
            NoteKind::Trailing(text) => (3, text),
            NoteKind::Wrong(text) => (4, text),
        };
        out.number(kind);
        out.bytes(text.as_bytes());
    }
    out.number(index.more_notes);
}

fn read_notes(index: &mut LayerIndex, from: &mut Reader<'_>) -> Result<()> {
    for _ in 0..from.count()? {
        let entry = from.number()?.checked_sub(1);
        let name = from.bytes()?.to_vec();
        let kind = from.number()?;
        let Ok(text) = String::from_utf8(from.bytes()?.to_vec()) else {
            return wrong("a note is not readable");
        };
        let kind = match kind {
            0 => NoteKind::Refused(text),
            1 => NoteKind::Damaged(text),
            2 => NoteKind::Unreadable(text),
            3 => NoteKind::Trailing(text),
            4 => NoteKind::Wrong(text),
            _ => return wrong("the kind of a note is unknown"),
        };
        index.notes.push(Note { entry, name, kind });
    }
    index.more_notes = from.number()?;
    Ok(())
}
