//! The JSON of a table, which is read entry by entry: it is larger than what is made of it.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::{TocError, kind_of, member::STARGZ_NAME, shorten, time};
use crate::{
    image::Digest,
    layer::{
        Kind,
        index::{Assembler, AssemblyError, Piece},
        tar::{Claim, MAX_HEADER_BYTES},
    },
};

/// The version of tables that there is.
const VERSION: u64 = 1;

/// Files that are there for those who read the table, and not in the image. They are in the root.
const NOT_SHOWN: [&[u8]; 3] = [STARGZ_NAME, b".prefetch.landmark", b".no.prefetch.landmark"];

/// Gives the entries of the table `json` to `assembler`.
pub(super) fn read(json: &[u8], assembler: &mut Assembler) -> Result<(), TocError> {
    let mut reader = Reader { assembler, file: None, refused: None };
    let mut from = serde_json::Deserializer::from_slice(json);
    let result = TocSeed(&mut reader).deserialize(&mut from).and_then(|()| from.end());
    match (reader.refused, result) {
        (Some(error), _) => Err(error),
        (None, Err(error)) => Err(TocError::Json(shorten(&error.to_string()))),
        (None, Ok(())) => Ok(()),
    }
}

/// One element of the list of entries. Fields that say nothing are not there.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(default)]
    size: u64,
    #[serde(borrow, default)]
    modtime: Cow<'a, str>,
    #[serde(borrow, default)]
    link_name: Cow<'a, str>,
    #[serde(default)]
    mode: u64,
    #[serde(default)]
    uid: i64,
    #[serde(default)]
    gid: i64,
    #[serde(default)]
    dev_major: u64,
    #[serde(default)]
    dev_minor: u64,
    /// Values are in base 64.
    #[serde(default)]
    xattrs: BTreeMap<String, String>,
    /// Of all of a file.
    #[serde(borrow, default)]
    digest: Cow<'a, str>,
    /// Where in the blob the member or frame of the chunk begins.
    #[serde(default)]
    offset: u64,
    /// Where in the blob the last chunk of a file ends. Only zstd:chunked has it.
    #[serde(default)]
    end_offset: u64,
    /// What stands in the member before the chunk. Only eStargz has it.
    #[serde(default)]
    inner_offset: u64,
    /// 0 if the chunk goes to the end of the file.
    #[serde(default)]
    chunk_size: u64,
    #[serde(default)]
    chunk_offset: u64,
    /// May be missing if the file is one chunk.
    #[serde(borrow, default)]
    chunk_digest: Cow<'a, str>,
    /// `zeros`, or nothing.
    #[serde(borrow, default)]
    chunk_type: Cow<'a, str>,
}

/// The last file that is not empty.
struct File {
    name: String,
    size: u64,
    /// Where in the blob it ends, if that is known.
    end_offset: Option<u64>,
}

struct Reader<'a> {
    assembler: &'a mut Assembler,
    /// The last entry, if it can have chunks.
    file: Option<File>,
    /// Why it goes no further.
    refused: Option<TocError>,
}

impl Reader<'_> {
    fn take(&mut self, listed: &Listed<'_>) -> Result<(), TocError> {
        let result = match &listed.kind[..] {
            "chunk" => self.take_chunk(listed),
            _ => self.take_entry(listed),
        };
        result.map_err(|error| TocError::assembly(error, &listed.name))
    }

    fn take_entry(&mut self, listed: &Listed<'_>) -> Result<(), AssemblyError> {
        let wrong = AssemblyError::Entry;
        let kind = kind_of(&listed.kind).ok_or(wrong("it is of a type that is unknown"))?;
        let mtime = time::parse(&listed.modtime).ok_or(wrong("its time is none"))?;
        let is_device = matches!(kind, Kind::Char | Kind::Block);
        let claim = Claim {
            name: listed.name.as_bytes(),
            kind,
            // Some put the type of the file into the bits above.
            mode: (listed.mode & 0o7777) as u16,
            uid: listed.uid,
            gid: listed.gid,
            size: listed.size,
            mtime,
            target: listed.link_name.as_bytes(),
            device: if is_device { (listed.dev_major, listed.dev_minor) } else { (0, 0) },
            data_offset: 0,
        };
        let mut entry = claim.check();
        let mut refused = Vec::new();
        if let Ok(entry) = &mut entry {
            refused = entry.take_xattrs(xattrs(&listed.xattrs).map_err(wrong)?);
        }
        let is_shown = !entry.as_ref().is_ok_and(|entry| NOT_SHOWN.contains(&&entry.name[..]));
        if is_shown {
            self.assembler.entry(listed.name.as_bytes(), entry.as_ref())?;
            for why in refused {
                self.assembler.refuse(listed.name.as_bytes(), &why);
            }
        } else {
            self.assembler.pass_over()?;
        }
        self.file = None;
        if kind == Kind::File && listed.size > 0 {
            let end_offset = (listed.end_offset > 0).then_some(listed.end_offset);
            let (name, size) = (listed.name.clone().into_owned(), listed.size);
            self.file = Some(File { name, size, end_offset });
            self.take_data(listed)?;
        }
        Ok(())
    }

    fn take_chunk(&mut self, listed: &Listed<'_>) -> Result<(), AssemblyError> {
        match &self.file {
            // The older form has no name here.
            Some(file) if listed.name.is_empty() || listed.name == file.name => {
                self.take_data(listed)
            }
            _ => Err(AssemblyError::Entry("it is a chunk that follows no file of its name")),
        }
    }

    fn take_data(&mut self, listed: &Listed<'_>) -> Result<(), AssemblyError> {
        let Some(file) = &self.file else { return Ok(()) };
        let wrong = |what| Err(AssemblyError::Entry(what));
        let file_offset = listed.chunk_offset;
        let bytes = match listed.chunk_size {
            0 => file.size.saturating_sub(file_offset),
            bytes => bytes,
        };
        match &listed.chunk_type[..] {
            "" => {}
            "zeros" => return self.assembler.zeros(file_offset, bytes),
            _ => return wrong("it has a chunk of an unknown type"),
        }
        if file.end_offset.is_some_and(|end| listed.offset >= end) {
            return wrong("it ends before it begins");
        }
        let digest = match &listed.chunk_digest[..] {
            "" if bytes == file.size => &listed.digest,
            digest => digest,
        };
        let Ok(Digest::Sha256(digest)) = digest.parse() else {
            return wrong("it has a chunk without a SHA-256");
        };
        let (blob_offset, inner_offset) = (listed.offset, listed.inner_offset);
        self.assembler.piece(Piece { file_offset, bytes, blob_offset, inner_offset, digest })
    }
}

/// The extended attributes by name, with `None` for a value that is none.
fn xattrs(
    listed: &BTreeMap<String, String>,
) -> Result<impl Iterator<Item = (Vec<u8>, Option<Vec<u8>>)>, &'static str> {
    let bytes: usize = listed.iter().map(|(name, value)| name.len() + value.len()).sum();
    // What archives can have at most.
    if bytes as u64 > MAX_HEADER_BYTES || listed.len() > usize::from(u16::MAX) {
        return Err("it has more than 1 MiB of extended attributes");
    }
    Ok(listed.iter().map(|(name, value)| (name.as_bytes().to_vec(), STANDARD.decode(value).ok())))
}

/// The table as a whole.
struct TocSeed<'a, 'b>(&'a mut Reader<'b>);

impl<'de> DeserializeSeed<'de> for TocSeed<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TocSeed<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of contents")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (mut version, mut has_entries) = (None, false);
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            match &key[..] {
                "version" => {
                    let number = map.next_value()?;
                    if number != VERSION {
                        self.0.refused = Some(TocError::Version(number));
                        return Err(A::Error::custom("the version is unknown"));
                    }
                    if version.replace(number).is_some() {
                        return Err(A::Error::duplicate_field("version"));
                    }
                }
                "entries" if has_entries => return Err(A::Error::duplicate_field("entries")),
                "entries" => {
                    map.next_value_seed(EntriesSeed(&mut *self.0))?;
                    has_entries = true;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        match version {
            None => Err(A::Error::missing_field("version")),
            Some(_) if !has_entries => Err(A::Error::missing_field("entries")),
            Some(_) => Ok(()),
        }
    }
}

/// Its list of entries.
struct EntriesSeed<'a, 'b>(&'a mut Reader<'b>);

impl<'de> DeserializeSeed<'de> for EntriesSeed<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for EntriesSeed<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of entries")
    }

    /// What Go writes for a list that it has never put anything into.
    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(listed) = list.next_element::<Listed<'de>>()? {
            if let Err(error) = self.0.take(&listed) {
                self.0.refused = Some(error);
                return Err(A::Error::custom("an entry makes no sense"));
            }
        }
        Ok(())
    }
}
