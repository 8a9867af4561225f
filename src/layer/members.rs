//! The members of an archive that is no layer: names and places only, so that most of it need not be read.

use super::{
    LayerIndex, Limits,
    tar::{BLOCK_BYTES, Kind, Parser, Refusal, TarError, TarEvent},
};

/// A member of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its path without `/` at the ends and without `.` and `..`; empty for the root.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// The path of a hard link's target, or a symbolic link's target as it stands there.
    pub target: Vec<u8>,
    /// Bytes of a file.
    pub size: u64,
    /// Where in the decompressed stream its content begins.
    pub data_offset: u64,
    /// Whether its content has holes, and so is not in one piece.
    pub is_sparse: bool,
}

/// Reads the headers of an archive that is not compressed. What is between them can be passed over.
pub struct MemberReader {
    parser: Parser,
    members: Vec<Member>,
    refused: Vec<Refused>,
    name_bytes: u64,
    limits: Limits,
}

/// The name of a member that is refused, as it stands there, and why.
pub type Refused = (Vec<u8>, Refusal);

/// More of what is refused is not kept.
const MAX_REFUSED: usize = 64;

impl MemberReader {
    /// The most that is useful to push at once, in bytes: what is behind a header may be passed over.
    pub const PIECE_BYTES: usize = 8 * BLOCK_BYTES;

    /// Begins to read an archive.
    pub fn new(limits: Limits) -> Self {
        Self {
            parser: Parser::new(limits.max_entries),
            members: Vec::new(),
            refused: Vec::new(),
            name_bytes: 0,
            limits,
        }
    }

    /// Takes the next bytes. After an error nothing more must be pushed.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), TarError> {
        let (members, refused, name_bytes) =
            (&mut self.members, &mut self.refused, &mut self.name_bytes);
        self.parser.push(bytes, &mut |event| match event {
            TarEvent::Entry(entry) => {
                *name_bytes += (entry.name.len() + entry.target.len()) as u64;
                members.push(Member {
                    is_sparse: entry.sparse.is_some(),
                    name: entry.name,
                    kind: entry.kind,
                    target: entry.target,
                    size: entry.size,
                    data_offset: entry.data_offset,
                });
            }
            TarEvent::Refused { name, why, .. } if refused.len() < MAX_REFUSED => {
                refused.push((name, why));
            }
            TarEvent::Refused { .. } => {}
        })?;
        match self.name_bytes > self.limits.max_table_bytes {
            true => Err(TarError::TooManyEntries { limit: self.limits.max_entries }),
            false => Ok(()),
        }
    }

    /// How many bytes follow that need not be pushed. They count as pushed.
    pub fn pass_over(&mut self) -> u64 {
        self.parser.pass_over()
    }

    /// Whether the end of the archive has been seen.
    pub fn is_at_end(&self) -> bool {
        self.parser.is_at_end()
    }

    /// The members in their order, and what was refused with the reasons. An error if the archive must not end
    /// here.
    pub fn finish(self) -> Result<(Vec<Member>, Vec<Refused>), TarError> {
        self.parser.finish()?;
        Ok((self.members, self.refused))
    }
}

impl LayerIndex {
    /// The members of an archive that has been indexed as if it were a layer.
    pub fn members(&self) -> impl Iterator<Item = Member> + '_ {
        let table = self.table();
        (0..table.len()).filter_map(move |number| {
            let entry = table.entry(number)?;
            let target = match entry.kind {
                Kind::Link => table.link_path(&entry).map(|path| table.full_path(path)),
                Kind::Symlink => table.symlink_target(&entry).map(<[u8]>::to_vec),
                _ => None,
            };
            let extents = table.extents(number);
            let is_whole = match extents.as_slice() {
                [] => entry.size == 0,
                [one] => one.file_offset == 0 && one.length == entry.size,
                _ => false,
            };
            Some(Member {
                name: table.full_path(entry.path),
                kind: entry.kind,
                target: target.unwrap_or_default(),
                size: entry.size,
                data_offset: entry.data_offset,
                is_sparse: entry.kind == Kind::File && !is_whole,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{Indexer, Options};

    fn archive() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |name: &str, content: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, content).unwrap();
        };
        add("index.json", b"{}");
        add("blobs/sha256/large", &[7; 100_000]);
        add("oci-layout", b"x");
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, "id/layer.tar", "../other/layer.tar").unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn only_headers_have_to_be_read() {
        let archive = archive();
        let mut reader = MemberReader::new(Limits::default());
        let (mut at, mut read) = (0, 0);
        while at < archive.len() && !reader.is_at_end() {
            let end = (at + MemberReader::PIECE_BYTES).min(archive.len());
            reader.push(&archive[at..end]).unwrap();
            read += end - at;
            at = end + reader.pass_over() as usize;
        }
        let (members, refused) = reader.finish().unwrap();
        assert!(read < 20_000, "{read} bytes of {} were read", archive.len());
        assert!(refused.is_empty());
        let names: Vec<_> = members.iter().map(|m| (m.name.as_slice(), m.kind, m.size)).collect();
        assert_eq!(
            names,
            [
                (&b"index.json"[..], Kind::File, 2),
                (b"blobs/sha256/large", Kind::File, 100_000),
                (b"oci-layout", Kind::File, 1),
                (b"id/layer.tar", Kind::Symlink, 0),
            ]
        );
        let large = members[1].data_offset as usize;
        assert_eq!(archive[large..large + 100_000], [7; 100_000]);

        // The index of a pass says the same.
        let mut indexer = Indexer::new(Options::default());
        indexer.push(&archive).unwrap();
        let index = indexer.finish_as_found().unwrap();
        assert_eq!(index.members().collect::<Vec<_>>(), members);
    }

    #[test]
    fn an_archive_that_is_cut_off_is_no_archive() {
        let archive = archive();
        for end in [100, 700, 1024 + 512 + 10] {
            let mut reader = MemberReader::new(Limits::default());
            reader.push(&archive[..end]).unwrap();
            assert!(reader.finish().is_err(), "{end}");
        }
    }
}
