//! Archives of layers, written entry by entry, and the ways in which they are packed.
//!
//! ```ignore
//! let base = Archive::new().dir("etc").file("etc/hosts", b"...").entry(Entry::file("su", b"").mode(0o4755));
//! let top = Archive::new().whiteout("etc/hosts");
//! Image::new().step("ADD base /", &base.gzip()).step("RUN rm", &top.pack(Packing::Zstd)).build();
//! ```
//!
//! What an archive says is kept beside its bytes, for [`super::model`].

use super::content::{Content, digest};
use super::image::{OCI_GZIP, OCI_TAR, OCI_ZSTD};
use std::collections::BTreeMap;
use std::io::Write as _;

/// What a layer is called that is encrypted.
pub(crate) const OCI_ENCRYPTED: &str = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";

const BLOCK: usize = 512;

/// When everything was modified that does not say when.
pub(crate) const MTIME: i64 = 1_700_000_000;

/// What an entry is.
#[derive(Debug, Clone)]
pub(crate) enum What {
    File(Content),
    Dir,
    Symlink(Vec<u8>),
    /// A hard link.
    Link(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
    Sparse(Sparse),
}

/// The ways in which archives say where the holes of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SparseForm {
    OldGnu,
    Pax00,
    Pax01,
    Pax10,
}

/// A file with holes.
#[derive(Debug, Clone)]
pub(crate) struct Sparse {
    pub(crate) form: SparseForm,
    pub(crate) size: u64,
    /// Offset and bytes of what is no hole.
    pub(crate) parts: Vec<(u64, Vec<u8>)>,
}

impl Sparse {
    /// The file as a reader has to see it.
    pub(crate) fn content(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.size).expect("fits into memory")];
        for (offset, part) in &self.parts {
            let at = usize::try_from(*offset).expect("fits into memory");
            bytes[at..at + part.len()].copy_from_slice(part);
        }
        bytes
    }

    /// Offsets and lengths, as GNU tar writes them: a hole at the end is followed by a part of no bytes.
    fn map(&self) -> Vec<(u64, u64)> {
        let mut map: Vec<_> =
            self.parts.iter().map(|(offset, part)| (*offset, part.len() as u64)).collect();
        if map.last().is_none_or(|(offset, length)| offset + length < self.size) {
            map.push((self.size, 0));
        }
        map
    }
}

/// One entry of an archive.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) what: What,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds; of times before 1970, too, the latter count forwards.
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Entry {
    pub(crate) fn new(name: impl AsRef<[u8]>, what: What) -> Self {
        let mode = match what {
            What::Dir => 0o755,
            What::Symlink(_) => 0o777,
            _ => 0o644,
        };
        let name = name.as_ref().to_vec();
        Self { name, what, mode, uid: 0, gid: 0, mtime: (MTIME, 0), xattrs: BTreeMap::new() }
    }

    pub(crate) fn file(name: impl AsRef<[u8]>, bytes: impl AsRef<[u8]>) -> Self {
        Self::new(name, What::File(bytes.as_ref().to_vec().into()))
    }

    pub(crate) fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    pub(crate) fn owner(mut self, uid: u32, gid: u32) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    pub(crate) fn mtime(mut self, seconds: i64, nanoseconds: u32) -> Self {
        self.mtime = (seconds, nanoseconds);
        self
    }

    pub(crate) fn xattr(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.xattrs.insert(name.into(), value.as_ref().to_vec());
        self
    }
}

/// Which extensions an archive uses for what does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Pax,
    Gnu,
}

#[derive(Debug, Clone)]
enum Part {
    Entry(Box<Entry>),
    Raw(Vec<u8>),
}

/// An archive.
#[derive(Debug, Clone)]
pub(crate) struct Archive {
    dialect: Dialect,
    parts: Vec<Part>,
    ends: bool,
}

impl Archive {
    /// With PAX headers where they are needed.
    pub(crate) fn new() -> Self {
        Self { dialect: Dialect::Pax, parts: Vec::new(), ends: true }
    }

    /// With the extensions of GNU tar.
    pub(crate) fn gnu() -> Self {
        Self { dialect: Dialect::Gnu, ..Self::new() }
    }

    pub(crate) fn entry(mut self, entry: Entry) -> Self {
        self.parts.push(Part::Entry(Box::new(entry)));
        self
    }

    pub(crate) fn dir(self, name: impl AsRef<[u8]>) -> Self {
        self.entry(Entry::new(name, What::Dir))
    }

    pub(crate) fn file(self, name: impl AsRef<[u8]>, bytes: impl AsRef<[u8]>) -> Self {
        self.entry(Entry::file(name, bytes))
    }

    /// A file of bytes that do not compress.
    pub(crate) fn noise(self, name: impl AsRef<[u8]>, seed: u64, size: u64) -> Self {
        self.entry(Entry::new(name, What::File(Content::Generated { seed, size })))
    }

    pub(crate) fn symlink(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(Entry::new(name, What::Symlink(target.as_ref().to_vec())))
    }

    pub(crate) fn link(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(Entry::new(name, What::Link(target.as_ref().to_vec())))
    }

    pub(crate) fn sparse(
        self,
        name: impl AsRef<[u8]>,
        form: SparseForm,
        size: u64,
        parts: &[(u64, &[u8])],
    ) -> Self {
        let parts = parts.iter().map(|(offset, part)| (*offset, part.to_vec())).collect();
        self.entry(Entry::new(name, What::Sparse(Sparse { form, size, parts })))
    }

    /// Hides what lower layers have at `path`.
    pub(crate) fn whiteout(self, path: &str) -> Self {
        let (parent, name) = path.rsplit_once('/').map_or(("", path), |(dir, name)| (dir, name));
        let separator = if parent.is_empty() { "" } else { "/" };
        self.file(format!("{parent}{separator}.wh.{name}"), b"")
    }

    /// Hides all that lower layers have in `dir`.
    pub(crate) fn opaque(self, dir: &str) -> Self {
        self.file(format!("{dir}/.wh..wh..opq"), b"")
    }

    /// Bytes that are none of an entry's.
    pub(crate) fn raw(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.parts.push(Part::Raw(bytes.as_ref().to_vec()));
        self
    }

    /// Without the zeros at the end.
    pub(crate) fn without_end(mut self) -> Self {
        self.ends = false;
        self
    }

    /// What it says, in its order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.parts.iter().filter_map(|part| match part {
            Part::Entry(entry) => Some(&**entry),
            Part::Raw(_) => None,
        })
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for part in &self.parts {
            match part {
                Part::Entry(entry) => write_entry(&mut bytes, self.dialect, entry),
                Part::Raw(raw) => bytes.extend_from_slice(raw),
            }
        }
        if self.ends {
            bytes.resize(bytes.len() + 2 * BLOCK, 0);
        }
        bytes
    }

    pub(crate) fn pack(&self, packing: Packing) -> Packed {
        pack(&self.to_bytes(), packing)
    }

    pub(crate) fn gzip(&self) -> Packed {
        self.pack(Packing::Gzip)
    }
}

fn write_entry(out: &mut Vec<u8>, dialect: Dialect, entry: &Entry) {
    let mut pax = Vec::new();
    let mut header = match dialect {
        Dialect::Pax => tar::Header::new_ustar(),
        Dialect::Gnu => tar::Header::new_gnu(),
    };
    header.set_mode(entry.mode);
    header.set_uid(entry.uid.into());
    header.set_gid(entry.gid.into());
    let (seconds, nanoseconds) = entry.mtime;
    match u64::try_from(seconds) {
        Ok(seconds) => header.set_mtime(seconds),
        Err(_) if dialect == Dialect::Gnu => {
            // Base 256 in two's complement.
            let mut field = [0xff; 12];
            field[4..].copy_from_slice(&seconds.to_be_bytes());
            header.as_old_mut().mtime = field;
        }
        Err(_) => header.set_mtime(0),
    }
    if dialect == Dialect::Pax && (nanoseconds != 0 || seconds < 0) {
        pax_record(&mut pax, b"mtime", decimal(seconds, nanoseconds).as_bytes());
    }
    for (name, value) in &entry.xattrs {
        let key = [b"SCHILY.xattr.".as_slice(), name].concat();
        pax_record(&mut pax, &key, value);
    }

    let mut name = entry.name.clone();
    let mut target: &[u8] = b"";
    let mut flag = b'0';
    // What stands behind the header: further headers, then data.
    let mut behind = Vec::new();
    let mut data: Content = Vec::new().into();
    match &entry.what {
        What::File(content) => data = content.clone(),
        What::Dir => flag = b'5',
        What::Symlink(to) => (flag, target) = (b'2', to),
        What::Link(to) => (flag, target) = (b'1', to),
        What::Char(major, minor) | What::Block(major, minor) => {
            flag = if matches!(entry.what, What::Char(..)) { b'3' } else { b'4' };
            header.set_device_major(*major).expect("a device's number");
            header.set_device_minor(*minor).expect("a device's number");
        }
        What::Fifo => flag = b'6',
        What::Sparse(sparse) => {
            let joined: Vec<u8> = sparse.parts.iter().flat_map(|(_, part)| part.clone()).collect();
            if sparse.form == SparseForm::OldGnu {
                flag = b'S';
                header = tar::Header::new_gnu();
                header.set_mode(entry.mode);
                header.set_mtime(seconds.unsigned_abs());
                header.set_uid(entry.uid.into());
                header.set_gid(entry.gid.into());
                behind = old_sparse(&mut header, sparse);
                data = joined.into();
            } else {
                data = pax_sparse(&mut pax, &mut name, sparse, joined).into();
            }
        }
    }
    header.set_size(data.len());
    header.set_entry_type(tar::EntryType::new(flag));

    let fits = |bytes: &[u8]| bytes.len() <= 100;
    if !fits(&name) {
        match dialect {
            Dialect::Gnu => gnu_long(out, b'L', &name),
            Dialect::Pax => pax_record(&mut pax, b"path", &name),
        }
    }
    if !fits(target) {
        match dialect {
            Dialect::Gnu => gnu_long(out, b'K', target),
            Dialect::Pax => pax_record(&mut pax, b"linkpath", target),
        }
    }
    if !pax.is_empty() {
        let mut extended = tar::Header::new_ustar();
        extended.set_entry_type(tar::EntryType::XHeader);
        extended.set_size(pax.len() as u64);
        extended.set_mode(0o644);
        put(&mut extended.as_old_mut().name, b"PaxHeaders/x");
        finish(out, extended);
        padded(out, &pax);
    }
    put(&mut header.as_old_mut().name, &name);
    put(&mut header.as_old_mut().linkname, target);
    finish(out, header);
    out.extend_from_slice(&behind);
    padded(out, &data.to_vec());
}

/// A header with its checksum.
fn finish(out: &mut Vec<u8>, mut header: tar::Header) {
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
}

/// As much of a text as fits into a field.
fn put(field: &mut [u8], text: &[u8]) {
    let count = text.len().min(field.len());
    field[..count].copy_from_slice(&text[..count]);
}

fn padded(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}

/// A name that is too long for a header, in an entry before it.
fn gnu_long(out: &mut Vec<u8>, flag: u8, text: &[u8]) {
    let mut header = tar::Header::new_gnu();
    put(&mut header.as_old_mut().name, b"././@LongLink");
    header.set_entry_type(tar::EntryType::new(flag));
    header.set_size(text.len() as u64 + 1);
    finish(out, header);
    padded(out, &[text, b"\0"].concat());
}

/// `LENGTH KEY=VALUE\n`; the length counts itself.
pub(crate) fn pax_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(format!("{length} ").as_bytes());
    out.extend_from_slice(&[key, b"=", value, b"\n"].concat());
}

fn decimal(seconds: i64, nanoseconds: u32) -> String {
    let all = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let (sign, all) = (if all < 0 { "-" } else { "" }, all.unsigned_abs());
    format!("{sign}{}.{:09}", all / 1_000_000_000, all % 1_000_000_000)
}

/// Fills the map in the header, and gives the blocks with the rest of it.
fn old_sparse(header: &mut tar::Header, sparse: &Sparse) -> Vec<u8> {
    // In base 256 what is too large for digits.
    let field = |number: u64| match number {
        0..=0o777_7777_7777 => format!("{number:011o}\0").into_bytes(),
        _ => [&[0x80, 0, 0, 0][..], &number.to_be_bytes()].concat(),
    };
    let part = |(offset, length): &(u64, u64)| [field(*offset), field(*length)].concat();
    let map = sparse.map();
    let (here, rest) = map.split_at(map.len().min(4));
    let bytes = header.as_mut_bytes();
    for (at, entry) in here.iter().enumerate() {
        bytes[386 + 24 * at..][..24].copy_from_slice(&part(entry));
    }
    bytes[482] = u8::from(!rest.is_empty());
    bytes[483..495].copy_from_slice(&field(sparse.size));
    let mut blocks = Vec::new();
    for (number, entries) in rest.chunks(21).enumerate() {
        let begin = blocks.len();
        blocks.extend(entries.iter().flat_map(part));
        blocks.resize(begin + BLOCK, 0);
        blocks[begin + 504] = u8::from((number + 1) * 21 < rest.len());
    }
    blocks
}

/// Writes the records, moves the name into one where the form wants that, and gives the data.
fn pax_sparse(pax: &mut Vec<u8>, name: &mut Vec<u8>, sparse: &Sparse, joined: Vec<u8>) -> Vec<u8> {
    let map = sparse.map();
    let size = sparse.size.to_string();
    let mut record = |key: &str, value: &[u8]| pax_record(pax, key.as_bytes(), value);
    if sparse.form != SparseForm::Pax10 {
        record("GNU.sparse.size", size.as_bytes());
        record("GNU.sparse.numblocks", map.len().to_string().as_bytes());
    }
    if sparse.form == SparseForm::Pax00 {
        for (offset, length) in &map {
            record("GNU.sparse.offset", offset.to_string().as_bytes());
            record("GNU.sparse.numbytes", length.to_string().as_bytes());
        }
        return joined;
    }
    let real = std::mem::replace(name, b"GNUSparseFile.1/x".to_vec());
    record("GNU.sparse.name", &real);
    let numbers = map.iter().flat_map(|(offset, length)| [offset.to_string(), length.to_string()]);
    if sparse.form == SparseForm::Pax01 {
        record("GNU.sparse.map", numbers.collect::<Vec<_>>().join(",").as_bytes());
        return joined;
    }
    record("GNU.sparse.major", b"1");
    record("GNU.sparse.minor", b"0");
    record("GNU.sparse.realsize", size.as_bytes());
    let mut data = format!("{}\n", map.len()).into_bytes();
    for number in numbers {
        data.extend_from_slice(format!("{number}\n").as_bytes());
    }
    data.resize(data.len().next_multiple_of(BLOCK), 0);
    data.extend(joined);
    data
}

/// How an archive becomes a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    /// A member for so many bytes each, with an empty one in between and zeros behind the last.
    GzipMembers(usize),
    /// One frame.
    Zstd,
    /// A frame for so many bytes each, with skippable ones in between.
    ZstdFrames(usize),
}

impl Packing {
    fn media_type(self) -> &'static str {
        match self {
            Self::Plain => OCI_TAR,
            Self::Gzip | Self::GzipMembers(_) => OCI_GZIP,
            Self::Zstd | Self::ZstdFrames(_) => OCI_ZSTD,
        }
    }
}

/// The blob of a layer. Tests change what they want to be wrong.
#[derive(Debug, Clone)]
pub(crate) struct Packed {
    pub(crate) media_type: String,
    pub(crate) bytes: Vec<u8>,
    /// What the configuration says of the archive.
    pub(crate) diff_id: String,
}

pub(crate) fn pack(plain: &[u8], packing: Packing) -> Packed {
    let bytes = match packing {
        Packing::Plain => plain.to_vec(),
        Packing::Gzip => gzip(plain),
        Packing::GzipMembers(each) => {
            let mut bytes = gzip(b"");
            for piece in plain.chunks(each) {
                bytes.extend(gzip(piece));
            }
            bytes.extend([0; 700]);
            bytes
        }
        Packing::Zstd => zstd::encode_all(plain, 3).expect("compressing memory"),
        Packing::ZstdFrames(each) => {
            let mut bytes = Vec::new();
            for piece in plain.chunks(each) {
                bytes.extend(zstd::encode_all(piece, 3).expect("compressing memory"));
                // Magic number, length, and whatever somebody keeps there.
                bytes.extend([0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
            }
            bytes
        }
    };
    Packed { media_type: packing.media_type().to_owned(), bytes, diff_id: digest(plain) }
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(plain).expect("writing to memory");
    encoder.finish().expect("writing to memory")
}
