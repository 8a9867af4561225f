//! Makes blobs with tables of contents from archives, chunk by chunk as the authors of both forms do.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

use super::super::{archive::Archive, gzip, index, zstd};
use crate::{
    image::{Descriptor, Digest},
    layer::Kind,
};

/// Which table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Form {
    Stargz,
    /// With the footer of stargz.
    LegacyStargz,
    Chunked,
}

/// A blob that was made.
#[derive(Clone)]
pub(super) struct Built {
    pub(super) blob: Vec<u8>,
    pub(super) layer: Descriptor,
    pub(super) toc_offset: u64,
    form: Form,
    /// What comes before the table.
    pub(super) members: Vec<u8>,
    toc: Value,
}

/// Members one after the other.
struct Members {
    form: Form,
    blob: Vec<u8>,
    /// What is in the next one so far.
    pending: Vec<u8>,
}

impl Members {
    fn cut(&mut self) {
        if !self.pending.is_empty() {
            let member = match self.form {
                Form::Stargz | Form::LegacyStargz => gzip(&self.pending, 6),
                Form::Chunked => zstd(&self.pending, 3),
            };
            self.blob.extend(member);
            self.pending.clear();
        }
    }
}

impl Built {
    /// The blob of an archive without an end. Its files are cut into chunks of `chunk` bytes; a
    /// member is ended before a chunk if there are `member` bytes in it.
    pub(super) fn new(form: Form, archive: &[u8], chunk: usize, member: usize) -> Self {
        let plain = index(archive);
        let table = plain.table();
        let mut members = Members { form, blob: Vec::new(), pending: Vec::new() };
        let mut entries = Vec::new();
        let mut at = 0;
        for (number, entry) in (0..).zip(table.entries()) {
            let mut listed = Map::new();
            let path = String::from_utf8(table.full_path(entry.path)).unwrap();
            let slash = if entry.kind == Kind::Dir { "/" } else { "" };
            listed.insert("name".into(), json!(format!("{path}{slash}")));
            listed.insert("type".into(), json!(type_of(entry.kind)));
            listed.insert("mode".into(), json!(entry.mode));
            listed.insert("uid".into(), json!(entry.uid));
            listed.insert("gid".into(), json!(entry.gid));
            listed.insert("modtime".into(), json!(humantime_of(entry.mtime.secs)));
            listed.insert("devMajor".into(), json!(entry.device.0));
            listed.insert("devMinor".into(), json!(entry.device.1));
            let target = match table.link_path(&entry) {
                Some(path) => Some(table.full_path(path)),
                None => table.symlink_target(&entry).map(<[u8]>::to_vec),
            };
            if let Some(target) = target {
                listed.insert("linkName".into(), json!(String::from_utf8(target).unwrap()));
            }
            let xattrs: Map<_, _> = table
                .xattrs(number)
                .map(|(name, value)| {
                    let name = String::from_utf8(name.to_vec()).unwrap();
                    (name, json!(STANDARD.encode(value)))
                })
                .collect();
            listed.insert("xattrs".into(), Value::Object(xattrs));
            if entry.size == 0 {
                entries.push(Value::Object(listed));
                continue;
            }
            let begin = entry.data_offset as usize;
            let data = &archive[begin..begin + entry.size as usize];
            members.pending.extend_from_slice(&archive[at..begin]);
            at = begin + data.len();
            listed.insert("size".into(), json!(data.len()));
            listed.insert("digest".into(), json!(Digest::sha256(data).to_string()));
            let first = entries.len();
            entries.extend(chunks(&mut members, data, chunk, member, &listed));
            if form == Form::Chunked {
                members.cut();
                entries[first]["endOffset"] = json!(members.blob.len());
            }
        }
        members.pending.extend_from_slice(&archive[at..]);
        if form == Form::Chunked {
            members.pending.extend_from_slice(&[0; 1024]);
        }
        members.cut();
        Self::of(form, members.blob, json!({"version": 1, "entries": entries}))
    }

    /// A blob with this table behind `members`.
    pub(super) fn of(form: Form, members: Vec<u8>, toc: Value) -> Self {
        let text = serde_json::to_vec_pretty(&toc).unwrap();
        Self::of_text(form, members, toc, &text)
    }

    fn of_text(form: Form, members: Vec<u8>, toc: Value, text: &[u8]) -> Self {
        let mut blob = members.clone();
        let mut annotations = Vec::new();
        let toc_offset;
        if form == Form::Chunked {
            let frame = zstd(text, 3);
            let skippable = |blob: &mut Vec<u8>, bytes: &[u8]| {
                blob.extend(b"\x50\x2a\x4d\x18");
                blob.extend((bytes.len() as u32).to_le_bytes());
                blob.extend(bytes);
            };
            toc_offset = blob.len() + 8;
            skippable(&mut blob, &frame);
            skippable(&mut blob, b"what is called tar-split");
            skippable(&mut blob, &[7; 64]);
            let position = format!("{toc_offset}:{}:{}:1", frame.len(), text.len());
            annotations.push(("io.github.containers.zstd-chunked.manifest-position", position));
            let digest = Digest::sha256(&frame).to_string();
            annotations.push(("io.github.containers.zstd-chunked.manifest-checksum", digest));
        } else {
            toc_offset = blob.len();
            blob.extend(gzip(&Archive::new().file("stargz.index.json", text).end(), 9));
            blob.extend(b"\x1f\x8b\x08\x04\0\0\0\0\0\xff");
            let form: &[u8] = if form == Form::Stargz { b"\x1a\0SG\x16\0" } else { b"\x16\0" };
            blob.extend(form);
            blob.extend(format!("{toc_offset:016x}STARGZ").bytes());
            blob.extend(b"\x01\0\0\xff\xff\0\0\0\0\0\0\0\0");
            let digest = Digest::sha256(text).to_string();
            annotations.push(("containerd.io/snapshot/stargz/toc.digest", digest));
        }
        let mut layer = Descriptor::new("", Digest::sha256(&blob), blob.len() as u64);
        layer.annotations =
            annotations.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Self { blob, layer, toc_offset: toc_offset as u64, form, members, toc }
    }

    /// The same files with another table, whose digest is right.
    pub(super) fn with(&self, change: impl FnOnce(&mut Value)) -> Self {
        let mut toc = self.toc.clone();
        change(&mut toc);
        Self::of(self.form, self.members.clone(), toc)
    }

    /// The same files with this text for a table, whose digest is right.
    pub(super) fn with_text(&self, text: &[u8]) -> Self {
        Self::of_text(self.form, self.members.clone(), Value::Null, text)
    }

    /// The text of the table.
    pub(super) fn text(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(&self.toc).unwrap()
    }
}

/// The elements of the list for a file that is not empty.
fn chunks(
    members: &mut Members,
    data: &[u8],
    chunk: usize,
    member: usize,
    listed: &Map<String, Value>,
) -> Vec<Value> {
    let mut parts: Vec<(usize, &[u8])> = Vec::new();
    let mut at = 0;
    while at < data.len() {
        // Holes are chunks of any length.
        let zeros = data[at..].iter().take_while(|b| **b == 0).count();
        let bytes = match members.form {
            Form::Chunked if zeros >= 1000 => zeros,
            _ => chunk.min(data.len() - at),
        };
        parts.push((at, &data[at..at + bytes]));
        at += bytes;
    }
    let count = parts.len();
    let mut entries = Vec::new();
    for (number, (at, bytes)) in parts.into_iter().enumerate() {
        if members.pending.len() >= member {
            members.cut();
        }
        let mut entry = match number {
            0 => listed.clone(),
            _ => [("name", listed["name"].clone()), ("type", json!("chunk"))]
                .map(|(field, value)| (field.to_owned(), value))
                .into_iter()
                .collect(),
        };
        entry.insert("offset".into(), json!(members.blob.len()));
        if !members.pending.is_empty() {
            entry.insert("innerOffset".into(), json!(members.pending.len()));
        }
        // eStargz leaves the size of the last one out, zstd:chunked the digest of an only one.
        if number + 1 < count || members.form == Form::Chunked && count > 1 {
            entry.insert("chunkSize".into(), json!(bytes.len()));
        }
        if at > 0 {
            entry.insert("chunkOffset".into(), json!(at));
        }
        let is_zeros = bytes.iter().all(|b| *b == 0);
        if members.form == Form::Chunked && is_zeros && (count > 1 || bytes.len() >= 1000) {
            entry.insert("chunkType".into(), json!("zeros"));
        }
        if members.form != Form::Chunked || count > 1 {
            entry.insert("chunkDigest".into(), json!(Digest::sha256(bytes).to_string()));
        }
        members.pending.extend_from_slice(bytes);
        entries.push(Value::Object(entry));
    }
    entries
}

fn type_of(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "reg",
        Kind::Link => "hardlink",
        Kind::Symlink => "symlink",
        Kind::Char => "char",
        Kind::Block => "block",
        Kind::Dir => "dir",
        Kind::Fifo => "fifo",
    }
}

fn humantime_of(secs: i64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(secs as u64);
    humantime::format_rfc3339(time).to_string()
}
