//! Sparse files in archives, in each of their formats.

use super::{
    archive::{Archive, Header},
    index,
    listing::{describe, list},
};
use crate::layer::Extent;

// The same sparse file in every format: "AAA" at 0, "BB" at 1000, 5000 bytes in all.
const PARTS: [(u64, u64); 3] = [(0, 3), (1000, 2), (5000, 0)];

fn extents(at: u64) -> Vec<Extent> {
    vec![
        Extent { file_offset: 0, stream_offset: at, length: 3 },
        Extent { file_offset: 1000, stream_offset: at + 3, length: 2 },
    ]
}

fn sparse(archive: Archive) -> (String, Vec<Extent>) {
    let index = index(&archive.file("next", b"").end());
    assert_eq!(index.notes(), []);
    assert_eq!(describe(&index, 1), "File next 644 0:0 0b 0");
    (describe(&index, 0), index.table().extents(0))
}

#[test]
fn sparse_files_of_every_format() {
    let data = b"AAABB";
    let old = Archive::new()
        .entry(Header::new(b"s", b'S').gnu().size(5).sparse(&PARTS, false, 5000), data);
    let pax00 = Archive::new()
        .pax(
            b'x',
            &[
                ("GNU.sparse.size", b"5000"),
                ("GNU.sparse.numblocks", b"3"),
                ("GNU.sparse.offset", b"0"),
                ("GNU.sparse.numbytes", b"3"),
                ("GNU.sparse.offset", b"1000"),
                ("GNU.sparse.numbytes", b"2"),
                ("GNU.sparse.offset", b"5000"),
                ("GNU.sparse.numbytes", b"0"),
            ],
        )
        .file("s", data);
    let pax01 = Archive::new()
        .pax(
            b'x',
            &[
                ("GNU.sparse.size", b"5000"),
                ("GNU.sparse.numblocks", b"3"),
                ("GNU.sparse.name", b"s"),
                ("GNU.sparse.map", b"0,3,1000,2,5000,0"),
            ],
        )
        .file("GNUSparseFile.1/s", data);
    let mut stored = b"3\n0\n3\n1000\n2\n5000\n0\n".to_vec();
    stored.resize(512, 0);
    stored.extend_from_slice(data);
    let pax10 = Archive::new()
        .pax(
            b'x',
            &[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"s"),
                ("GNU.sparse.realsize", b"5000"),
            ],
        )
        .file("GNUSparseFile.1/s", &stored);
    let line = "File s 644 0:0 5000b 0".to_owned();
    for (archive, at) in [(old, 512), (pax10, 2048)] {
        assert_eq!(sparse(archive), (line.clone(), extents(at)));
    }
    for archive in [pax00, pax01] {
        assert_eq!(sparse(archive), (line.clone(), extents(1536)));
    }
}

#[test]
fn maps_that_go_on_in_more_blocks() {
    // 4 in the header, 21 in each block: 60 parts need three blocks.
    let parts: Vec<(u64, u64)> = (0..60).map(|n| (n * 100, 1)).collect();
    let mut archive = Archive::new()
        .raw(&Header::new(b"s", b'S').gnu().size(60).sparse(&parts[..4], true, 6000).bytes(false));
    for chunk in parts[4..].chunks(21) {
        let mut block = [0; 512];
        for (at, (offset, length)) in chunk.iter().enumerate() {
            let text = format!("{offset:011o}\0{length:011o}\0");
            block[at * 24..at * 24 + 24].copy_from_slice(text.as_bytes());
        }
        block[504] = u8::from(chunk.last() != parts.last());
        archive = archive.raw(&block);
    }
    let mut text = format!("{}\n", parts.len());
    for (offset, length) in &parts {
        text += &format!("{offset}\n{length}\n");
    }
    let mut stored = text.into_bytes();
    stored.resize(stored.len().next_multiple_of(512), 0);
    let map_bytes = stored.len() as u64;
    stored.extend_from_slice(&[b'x'; 60]);
    let pax = Archive::new()
        .pax(
            b'x',
            &[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.realsize", b"6000"),
            ],
        )
        .file("s", &stored);
    let archive = archive.raw(&[b'x'; 512]);
    for (archive, at) in [(archive, 512 * 4), (pax, 1536 + map_bytes)] {
        let (line, found) = sparse(archive);
        assert_eq!(line, "File s 644 0:0 6000b 0");
        let expected: Vec<Extent> = (0..60)
            .map(|n| Extent { file_offset: n * 100, stream_offset: at + n, length: 1 })
            .collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn wrong_maps_are_refused_and_the_next_entry_is_read() {
    let old = |parts: &[(u64, u64)], size| {
        Archive::new()
            .entry(Header::new(b"s", b'S').gnu().size(5).sparse(parts, false, size), b"AAABB")
    };
    let pax10 = |map: &str| {
        let mut stored = map.as_bytes().to_vec();
        stored.resize(512, 0);
        stored.extend_from_slice(b"AAABB");
        Archive::new()
            .pax(
                b'x',
                &[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.realsize", b"50"),
                ],
            )
            .file("s", &stored)
    };
    let table = [
        (old(&[(10, 3), (5, 2)], 50), "its parts overlap"),
        (old(&[(0, 3), (49, 2)], 50), "a part is behind the end of the file"),
        (old(&[(0, 30)], 50), "its parts have more bytes than are stored"),
        (old(&[(0, 3)], 50), "its parts have fewer bytes than are stored"),
        (pax10("2\n0\n3\n"), "it is not made of numbers"),
        (pax10("x"), "it is not made of numbers"),
        (pax10("99999999999999999999999\n"), "a number is too large"),
        (pax10("300000\n"), "it has too many parts"),
        (
            Archive::new()
                .pax(b'x', &[("GNU.sparse.map", b"0,3,4"), ("GNU.sparse.size", b"9")])
                .file("s", b"x"),
            "it is not complete",
        ),
        (
            Archive::new()
                .pax(b'x', &[("GNU.sparse.map", b"0,3"), ("GNU.sparse.size", b"x")])
                .file("s", b"x"),
            "its size is no number",
        ),
    ];
    for (archive, what) in table {
        let lines = list(&archive.file("next", b"").end());
        assert_eq!(
            lines,
            ["File next 644 0:0 0b 0", &format!("! its sparse map is wrong: {what}")]
        );
    }
}

/// Go takes a length that is blank for 0, and so goes on behind it.
#[test]
fn parts_of_no_bytes_and_files_of_nothing_else() {
    let mut blank = Header::new(b"s", b'S');
    blank.gnu().size(5).sparse(&[(0, 3), (500, 0), (1000, 2), (5000, 0)], false, 5000);
    blank.put(386 + 24 + 12, &[0; 12]);
    assert_eq!(sparse(Archive::new().entry(&blank, b"AAABB")).1, extents(512));
    let size = 1_970_000_000 * 292_u64;
    let mut hole = Header::new(b"lastlog", b'S');
    hole.gnu().size(0).sparse(&[(0, 0), (4096, 0)], false, 5000);
    hole.base256(483, 12, size as i64);
    let (line, found) = sparse(Archive::new().entry(&hole, b""));
    assert_eq!((line, found), (format!("File lastlog 644 0:0 {size}b 0"), Vec::new()));
    let size = size.to_string();
    let pax = |more: &[(&str, &[u8])], content: &[u8]| {
        let name: (&str, &[u8]) = ("GNU.sparse.name", b"lastlog");
        let records = [&[name, ("GNU.sparse.realsize", size.as_bytes())], more].concat();
        sparse(Archive::new().pax(b'x', &records).file("x", content))
    };
    let mut map = b"1\n0\n0\n".to_vec();
    map.resize(512, 0);
    for (line, found) in [
        pax(&[("GNU.sparse.map", b"")], b""),
        pax(&[("GNU.sparse.map", b"0,0")], b""),
        pax(&[("GNU.sparse.numblocks", b"0")], b""),
        pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")], &map),
        pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")], b""),
    ] {
        assert_eq!((line, found), (format!("File lastlog 644 0:0 {size}b 0"), Vec::new()));
    }
}

#[test]
fn wrong_maps_in_headers_hide_nothing() {
    let mut size = Header::new(b"s", b'S');
    size.gnu().size(5).sparse(&PARTS, false, 5000).put(483, b"x");
    let mut part = Header::new(b"s", b'S');
    part.gnu().size(5).sparse(&PARTS, false, 5000).put(386, b"x");
    let mut more = Header::new(b"s", b'S');
    more.gnu().size(5).sparse(&PARTS, true, 5000).put(386, b"x");
    let endless = |blocks: usize| {
        let mut header = Header::new(b"s", b'S');
        header.gnu().size(0).sparse(&[(0, 0); 4], true, 5000);
        let mut block = [b'0'; 512];
        (0..blocks).fold(Archive::new().raw(&header.bytes(false)), |archive, at| {
            block[504] = u8::from(at + 1 < blocks);
            archive.raw(&block)
        })
    };
    let wide = [
        (Archive::new().entry(&size, b"AAABB"), "its size is no number"),
        (Archive::new().entry(&part, b"AAABB"), "it is not made of numbers"),
        (
            Archive::new().raw(&more.bytes(false)).raw(&[0; 512]).raw(&[b'x'; 512]),
            "it is not made of numbers",
        ),
        (endless(2200), "it has more than 1 MiB"),
    ];
    for (archive, what) in wide {
        let lines = list(&archive.file("next", b"").end());
        let note = format!("! its sparse map is wrong: {what}");
        assert_eq!(lines, ["File next 644 0:0 0b 0", &note]);
    }
}

#[test]
fn refused_sparse_files_with_more_blocks() {
    let extension = [0; 512];
    let archive = Archive::new()
        .raw(&Header::new(b"../s", b'S').gnu().size(5).sparse(&[(0, 5)], true, 50).bytes(false))
        .raw(&extension)
        .raw(&[b'x'; 512])
        .file("next", b"");
    assert_eq!(
        list(&archive.end()),
        ["File next 644 0:0 0b 0", "! its name leads out of the root with `..`"]
    );
}
