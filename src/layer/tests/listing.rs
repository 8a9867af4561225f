//! What archives say: a table of every format and rule.

use proptest::prelude::*;

use super::{
    archive::{Archive, Header},
    index, index_with, inline, limited,
};
use crate::layer::{
    Kind, LayerIndex, Limits, Time,
    tar::{Parser, TarEvent},
};

/// One entry in words: path, kind, mode, owner, size, time, target, attributes.
pub(super) fn describe(index: &LayerIndex, number: u32) -> String {
    let table = index.table();
    let e = table.entry(number).unwrap();
    let mut text = format!(
        "{:?} {} {:o} {}:{} {}b {}",
        e.kind,
        table.full_path(e.path).escape_ascii(),
        e.mode,
        e.uid,
        e.gid,
        e.size,
        e.mtime.secs
    );
    if e.mtime.nanos > 0 {
        text += &format!(".{:09}", e.mtime.nanos);
    }
    if let Some(target) = table.link_path(&e) {
        text += &format!(" => {}", table.full_path(target).escape_ascii());
    }
    if let Some(target) = table.symlink_target(&e) {
        text += &format!(" -> {}", target.escape_ascii());
    }
    if matches!(e.kind, Kind::Char | Kind::Block) {
        text += &format!(" {}:{}", e.device.0, e.device.1);
    }
    for (name, value) in table.xattrs(number) {
        text += &format!(" {}={}", name.escape_ascii(), value.escape_ascii());
    }
    text
}

pub(super) fn list(archive: &[u8]) -> Vec<String> {
    let index = index(archive);
    let mut lines: Vec<_> = (0..index.table().len()).map(|n| describe(&index, n)).collect();
    lines.extend(index.notes().iter().map(|note| format!("! {}", note.kind)));
    lines
}

#[track_caller]
fn check(archive: Archive, expected: &[&str]) {
    let bytes = archive.end();
    assert_eq!(list(&bytes), expected);
    // Pieces of any size say the same.
    for piece in [1, 7, 511, 513] {
        let index_of_pieces = index_with(&bytes, inline(), piece).unwrap();
        assert_eq!(index_of_pieces, index(&bytes), "in pieces of {piece}");
    }
}

#[test]
fn types_of_entries() {
    let file = |flag: u8| {
        let mut header = Header::new(&[b'f', flag.max(b'+')], flag);
        header.size(3).clone()
    };
    check(
        Archive::new()
            .entry(&file(b'0'), b"abc")
            .entry(&file(0), b"abc")
            .entry(&file(b'7'), b"abc")
            .link("l", "./f0")
            .symlink("s", "../x//y/")
            .entry(Header::new(b"c", b'3').device(1, 3), b"")
            .entry(Header::new(b"b", b'4').device(0xfff, 0xf_ffff), b"")
            .dir("d/")
            .entry(&Header::new(b"p", b'6'), b"")
            .entry(Header::new(b"odd", b'V').size(3), b"abc")
            .file("last", b"z"),
        &[
            "File f0 644 0:0 3b 0",
            "File f+ 644 0:0 3b 0",
            "File f7 644 0:0 3b 0",
            "Link l 644 0:0 0b 0 => f0",
            "Symlink s 644 0:0 0b 0 -> ../x//y/",
            "Char c 644 0:0 0b 0 1:3",
            "Block b 644 0:0 0b 0 4095:1048575",
            "Dir d 755 0:0 0b 0",
            "Fifo p 644 0:0 0b 0",
            "File last 644 0:0 1b 0",
            "! its type is 0x56, which is unknown",
        ],
    );
}

#[test]
fn sizes_of_entries_without_data_are_ignored() {
    let sized = |name: &[u8], flag| Header::new(name, flag).size(4000).clone();
    check(
        Archive::new()
            .raw(&sized(b"d", b'5').bytes(false))
            .raw(&sized(b"l", b'1').bytes(false))
            .raw(&sized(b"s", b'2').bytes(false))
            .raw(&sized(b"p", b'6').bytes(false))
            .file("f", b"f"),
        &[
            "Dir d 755 0:0 0b 0",
            "Link l 644 0:0 0b 0 => ",
            "Symlink s 644 0:0 0b 0 -> ",
            "Fifo p 644 0:0 0b 0",
            "File f 644 0:0 1b 0",
        ],
    );
}

#[test]
fn before_posix_a_name_with_a_slash_is_a_directory() {
    check(
        Archive::new()
            .entry(Header::new(b"old/", 0).v7(), b"")
            .entry(Header::new(b"new/", b'0').size(1), b"x"),
        &["Dir old 644 0:0 0b 0", "File new 644 0:0 1b 0"],
    );
}

#[test]
fn names() {
    let part = "n".repeat(255);
    let prefix = "p".repeat(155);
    let name = "q".repeat(100);
    let long = format!("{part}/{part}");
    check(
        Archive::new()
            .file("./a", b"")
            .file("/abs//b", b"")
            .dir("././")
            .entry(Header::new(name.as_bytes(), b'0').put(345, prefix.as_bytes()), b"")
            // GNU has other things where ustar has the prefix.
            .entry(Header::new(b"gnu", b'0').gnu().put(345, b"12345670123 "), b"")
            .entry(
                Header::new(b"star", b'0').put(345, b"sp").put(476, b"12345").put(508, b"tar\0"),
                b"",
            )
            .entry(Header::new(b"v7", b'0').v7().put(345, b"junk"), b"")
            .long(b'L', long.as_bytes())
            .file("short", b"")
            .long(b'K', b"t/\xff")
            .long(b'L', b"n\xfe")
            .symlink("short", "short")
            .pax(b'x', &[("path", b"pax\xff"), ("linkpath", b"pt")])
            .symlink("short", "short")
            .file("../up", b"x")
            .file("a/../b", b"")
            .link("inner", "c/d/../../b")
            .link("evil", "a/../../etc/passwd")
            .pax(b'x', &[("path", format!("{part}n").as_bytes())])
            .file("x", b"")
            .pax(b'x', &[("path", [&part[..]; 17].join("/").as_bytes())])
            .file("x", b"")
            .pax(b'x', &[("path", b"a\0b")])
            .file("x", b"")
            .file("/", b"")
            .file("z", b""),
        &[
            "File a 644 0:0 0b 0",
            "File abs/b 644 0:0 0b 0",
            "Dir  755 0:0 0b 0",
            &format!("File {prefix}/{name} 644 0:0 0b 0"),
            "File gnu 644 0:0 0b 0",
            "File sp/star 644 0:0 0b 0",
            "File v7 644 0:0 0b 0",
            &format!("File {long} 644 0:0 0b 0"),
            "Symlink n\\xfe 644 0:0 0b 0 -> t/\\xff",
            "Symlink pax\\xff 644 0:0 0b 0 -> pt",
            "File b 644 0:0 0b 0",
            "Link inner 644 0:0 0b 0 => b",
            "File z 644 0:0 0b 0",
            "! its name leads out of the root with `..`",
            "! its name leads out of the root with `..`",
            "! a part of its name is longer than 255 bytes",
            "! its name is longer than 4096 bytes",
            "! its name has a zero byte in it",
            "! it has the name of the root but is no directory",
        ],
    );
}

#[test]
fn what_is_refused_is_told_with_number_and_name() {
    let index = index(&Archive::new().file("ok", b"").file("../up", b"x").end());
    let note = &index.notes()[0];
    assert_eq!((note.entry, &note.name[..]), (Some(1), &b"../up"[..]));
    assert!(index.damage().is_none());
}

#[test]
fn numbers_and_times() {
    check(
        Archive::new()
            .entry(Header::new(b"a", b'0').mode(0o104_755).owner(1000, 0o777_7777).mtime(7), b"")
            .entry(
                Header::new(b"b", b'0')
                    .gnu()
                    .base256(108, 8, 3_000_000_000)
                    .base256(116, 8, 5)
                    .base256(136, 12, -5),
                b"",
            )
            .pax(b'x', &[("mtime", b"-1.25"), ("uid", b"4294967294"), ("gid", b"2147483648")])
            .file("c", b"")
            .pax(b'x', &[("mtime", b"1700000000.000000001"), ("atime", b"x"), ("comment", b"x")])
            .file("d", b"")
            .entry(Header::new(b"f", b'3').device(0o10000, 0), b""),
        &[
            "File a 4755 1000:2097151 0b 7",
            "File b 644 3000000000:5 0b -5",
            "File c 644 4294967294:2147483648 0b -2.750000000",
            "File d 644 0:0 0b 1700000000.000000001",
            "! its device number 4096:0 is too large",
        ],
    );
}

/// What umoci 0.4 and containerd make of them, as root: `os.Lchown` takes the lower 32 bits, and the last of these
/// numbers leaves the owner what it is, which is root.
#[test]
fn owners_out_of_the_ordinary() {
    let header = |number: i64| {
        let mut header = Header::new(b"h", b'0');
        header.gnu().base256(108, 8, number).base256(116, 8, number).clone()
    };
    for (number, expected) in [
        (-2, 4_294_967_294_u32),
        (-1, 0),
        (-(1 << 40) + 7, 7),
        (4_294_967_295, 0),
        (4_294_967_301, 5),
        ((1 << 33) - 1, 0),
    ] {
        let line = |name| format!("File {name} 644 {expected}:{expected} 0b 0");
        let text = number.to_string();
        let pax = Archive::new()
            .entry(&header(number), b"")
            .pax(b'x', &[("uid", text.as_bytes()), ("gid", text.as_bytes())])
            .file("p", b"")
            .file("last", b"");
        check(pax, &[&line("h"), &line("p"), "File last 644 0:0 0b 0"]);
    }
    check(
        Archive::new()
            .pax(b'x', &[("uid", b"+7"), ("gid", b"9223372036854775807")])
            .file("a", b"")
            .pax(b'g', &[("gid", b"-2")])
            .file("b", b""),
        &["File a 644 7:0 0b 0", "File b 644 0:4294967294 0b 0"],
    );
}

#[test]
fn modes_and_times_out_of_the_ordinary() {
    let raw = |name: &[u8], at: usize, bytes: &[u8]| Header::new(name, b'0').put(at, bytes).clone();
    check(
        Archive::new()
            .entry(Header::new(b"all", b'0').mode(0o177_777), b"")
            .entry(Header::new(b"negative", b'0').gnu().base256(100, 8, -1), b"")
            .entry(Header::new(b"late", b'0').gnu().base256(136, 12, i64::MAX), b"")
            .entry(Header::new(b"early", b'0').gnu().base256(136, 12, i64::MIN), b"")
            .entry(&raw(b"blank", 100, &[b' '; 24]), b"")
            .pax(b'x', &[("mtime", b"-0.5")])
            .file("half", b"")
            .pax(b'x', &[("mtime", b"-9223372036854775808")])
            .file("first", b""),
        &[
            "File all 7777 0:0 0b 0",
            "File negative 7777 0:0 0b 0",
            "File late 644 0:0 0b 9223372036854775807",
            "File early 644 0:0 0b -9223372036854775808",
            "File blank 0 0:0 0b 0",
            "File half 644 0:0 0b -1.500000000",
            "File first 644 0:0 0b -9223372036854775808",
        ],
    );
}

/// Go's reader gives up there; everything behind it is in the image all the same.
#[test]
fn what_cannot_be_read_of_a_header_hides_nothing() {
    let raw = |at: usize, bytes: &[u8]| Header::new(b"f", b'0').put(at, bytes).clone();
    let too_long = &[0xff_u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let plain = "File f 644 0:0 0b 0";
    for (header, shown, field) in [
        (raw(108, b"garbage"), plain, "owner"),
        (raw(116, b"99"), plain, "group"),
        (raw(100, b"rw-r--r"), "File f 0 0:0 0b 0", "mode"),
        (raw(136, b"yesterday"), plain, "time"),
        (raw(136, too_long), plain, "time"),
        (
            Header::new(b"c", b'3').put(329, b"x").clone(),
            "Char c 644 0:0 0b 0 0:0",
            "device number",
        ),
    ] {
        let note = format!("! its {field} is not a number and is ignored");
        let archive = Archive::new().entry(&header, b"").file("last", b"");
        check(archive, &[shown, "File last 644 0:0 0b 0", &note]);
    }
    for (keyword, value, field) in [
        ("uid", &b"x"[..], "owner"),
        ("uid", b"9223372036854775808", "owner"),
        ("gid", b"1 ", "group"),
        ("mtime", b"1e3", "time"),
        ("mtime", b".5", "time"),
        ("mtime", b"9223372036854775808", "time"),
    ] {
        let note = format!("! its {field} is not a number and is ignored");
        // What its header says counts then.
        let header = Header::new(b"f", b'0').owner(3, 4).mtime(5).clone();
        let archive = Archive::new().pax(b'x', &[(keyword, value)]).entry(&header, b"");
        let last = "File last 644 0:0 0b 0";
        check(archive.file("last", b""), &["File f 644 3:4 0b 5", last, &note]);
    }
}

#[test]
fn damaged_headers_before_an_entry_refuse_only_that() {
    let long = vec![b'x'; (1 << 20) + 1];
    let damaged = |flag: u8, body: &[u8]| {
        let header = Header::new(b"x", flag).size(body.len() as u64).clone();
        Archive::new().entry(&header, body)
    };
    let next = "File next 644 0:0 1b 0";
    for (archive, why) in [
        (damaged(b'x', b"3 x"), "its PAX header is damaged: a record has no end"),
        (damaged(b'x', b"99 a=b\n"), "its PAX header is damaged: the length of a record is wrong"),
        (damaged(b'x', &long), "its PAX header is damaged: it is too long"),
        (damaged(b'L', &long), "its name is longer than 4096 bytes"),
        (damaged(b'K', &long), "its name is longer than 4096 bytes"),
    ] {
        let archive = archive.file("f", b"data").file("next", b"n").end();
        assert_eq!(list(&archive), [next, &format!("! {why}")]);
        assert!(index(&archive).damage().is_none(), "{why}");
    }
    // Of a global one nobody knows what it would have been about.
    let values = vec![b'x'; 20_000];
    let wide = Archive::new().pax(b'g', &[("SCHILY.xattr.user.x", &values)]);
    for (archive, why) in [(damaged(b'g', b"3 x"), "a record has no end"), (wide, "it is too long")]
    {
        let archive = archive.file("next", b"n").end();
        assert_eq!(list(&archive), [next, &format!("! its PAX header is damaged: {why}")]);
    }
}

#[test]
fn global_headers_last_until_they_are_taken_back() {
    check(
        Archive::new()
            .pax(b'g', &[("uid", b"7"), ("mtime", b"9"), ("comment", b"a commit")])
            .file("a", b"")
            .pax(b'x', &[("uid", b"8")])
            .file("b", b"")
            .file("c", b"")
            .pax(b'x', &[("uid", b"")])
            .file("d", b"")
            .pax(b'g', &[("uid", b"")])
            .file("e", b""),
        &[
            "File a 644 7:0 0b 9",
            "File b 644 8:0 0b 9",
            "File c 644 7:0 0b 9",
            "File d 644 0:0 0b 9",
            "File e 644 0:0 0b 9",
        ],
    );
}

#[test]
fn extended_attributes() {
    let long = vec![b'v'; 65_537];
    check(
        Archive::new()
            .pax(
                b'x',
                &[
                    ("SCHILY.xattr.user.b", b"\0=\n\xff"),
                    ("SCHILY.xattr.user.a", b""),
                    ("LIBARCHIVE.xattr.user.c%3d", b"AAEC"),
                    ("LIBARCHIVE.xattr.user.d", b"AA=="),
                    ("LIBARCHIVE.xattr.user.b", b"AA"),
                    ("LIBARCHIVE.xattr.user.bad", b"*"),
                    ("SCHILY.xattr.user.long", &long),
                    ("SCHILY.xattr.", b"x"),
                ],
            )
            .file("a", b"")
            .file("b", b""),
        &[
            "File a 644 0:0 0b 0 user.a= user.b=\\x00=\\n\\xff user.c==\\x00\\x01\\x02 user.d=\\x00",
            "File b 644 0:0 0b 0",
            "! its extended attribute `` is not valid",
            "! its extended attribute `user.bad` is not valid",
            "! its extended attribute `user.long` is not valid",
        ],
    );
}

#[test]
fn sizes_over_8_gib() {
    // Only headers: the parser need not see the data to know where it is.
    let huge = 9_u64 << 30;
    let gnu = Header::new(b"gnu", b'0').gnu().base256(124, 12, huge as i64).bytes(false);
    let pax = Archive::new()
        .pax(b'x', &[("size", huge.to_string().as_bytes())])
        .raw(&Header::new(b"pax", b'0').bytes(false))
        .open();
    for (header, data_offset) in [(&gnu[..], 512), (&pax[..], 1536)] {
        let mut found = Vec::new();
        let mut parser = Parser::new(10);
        parser.push(header, &mut |event| found.push(event)).unwrap();
        let [TarEvent::Entry(entry)] = &found[..] else { panic!("{found:?}") };
        assert_eq!((entry.size, entry.data_offset), (huge, data_offset));
        // The next header is found behind it.
        let zeros = vec![0; 1 << 20];
        for _ in 0..9 << 10 {
            parser.push(&zeros, &mut |_| panic!("in data")).unwrap();
        }
        let next = Archive::new().file("next", b"").end();
        let mut name = Vec::new();
        parser
            .push(&next, &mut |event| {
                if let TarEvent::Entry(entry) = event {
                    name = entry.name;
                }
            })
            .unwrap();
        assert_eq!(name, b"next");
        parser.finish().unwrap();
    }
}

#[test]
fn checksums_of_signed_bytes() {
    let header = Header::new(b"\xff\xfe", b'0');
    assert_ne!(header.bytes(true), header.bytes(false));
    check(Archive::new().raw(&header.bytes(true)), &["File \\xff\\xfe 644 0:0 0b 0"]);
}

#[test]
fn ends_of_archives() {
    let one = || Archive::new().file("a", b"a");
    let block = [0; 512];
    let a = "File a 644 0:0 1b 0";
    let b = "File b 644 0:0 0b 0";
    let table: [(Vec<u8>, &[&str]); 7] = [
        (one().open(), &[a]),
        (one().raw(&block).open(), &[a]),
        (one().raw(&block).raw(&[0; 100]).open(), &[a]),
        (one().end(), &[a]),
        (one().raw(&[0; 1024]).raw(b"anything at all").open(), &[a]),
        (one().raw(&block).file("b", b"").end(), &[a, b]),
        (Vec::new(), &[]),
    ];
    for (archive, expected) in table {
        assert_eq!(list(&archive), expected);
        assert_eq!(index(&archive).stream_bytes(), archive.len() as u64);
    }
}

#[test]
fn damaged_archives_are_readable_up_to_there() {
    let a = "File a 644 0:0 1b 0";
    let one = || Archive::new().file("a", b"a");
    let mut flipped = one().file("b", b"").end();
    flipped[1024] ^= 1;
    let number = |field: usize, text: &[u8]| {
        one().raw(&Header::new(b"b", b'0').put(field, text).bytes(false)).end()
    };
    let table: [(Vec<u8>, &str); 9] = [
        (flipped, "! the tar header at 1024 has a wrong checksum"),
        (
            one().raw(b"junk").raw(&[b'x'; 600]).open(),
            "! the tar header at 1024 has a wrong checksum",
        ),
        (number(124, b"nonsense"), "! the tar header at 1024 has an unreadable size"),
        (number(124, &[0xff; 12]), "! the tar header at 1024 has an unreadable size"),
        (
            one().pax(b'x', &[("size", b"-1")]).file("b", b"").end(),
            "! the PAX header at 2048 is damaged: size is no number",
        ),
        (
            one().entry(Header::new(b"x", b'L').size(1 << 32), b"").open(),
            "! the archive ends at 1536, in the middle of an entry",
        ),
        (
            one().raw(&Header::new(b"b", b'0').size(5).bytes(false)).raw(b"abc").open(),
            "! the archive ends at 1539, in the middle of an entry",
        ),
        (
            one().raw(&Header::new(b"b", b'0').bytes(false)[..300]).open(),
            "! the archive ends at 1324, in the middle of an entry",
        ),
        (one().long(b'L', b"b").open(), "! the archive ends at 2048, in the middle of an entry"),
    ];
    for (archive, expected) in table {
        let lines = list(&archive);
        assert_eq!(lines[0], a);
        assert_eq!(lines.last().unwrap(), expected);
        assert!(index(&archive).damage().is_some(), "{expected}");
        assert!(index(&archive).diff_id().is_some(), "its digest is right: {expected}");
    }
}

#[test]
fn limits_of_entries_and_of_the_table() {
    let mut archive = Archive::new();
    for n in 0..100 {
        archive = archive.file(&format!("file{n}"), b"");
    }
    let archive = archive.end();
    let few = index_with(&archive, limited(Limits { max_entries: 10, ..Limits::default() }), 1000);
    let few = few.unwrap();
    assert_eq!(few.table().len(), 10);
    assert_eq!(few.damage().unwrap().kind.to_string(), "the archive has more than 10 entries");
    let small =
        index_with(&archive, limited(Limits { max_table_bytes: 2000, ..Limits::default() }), 1000);
    let small = small.unwrap();
    assert!((20..60).contains(&small.table().len()), "{}", small.table().len());
    let text = small.damage().unwrap().kind.to_string();
    assert_eq!(text, "the table of the archive would take more than 2000 bytes");
}

#[test]
fn notes_are_counted_when_there_are_too_many() {
    let mut archive = Archive::new();
    for _ in 0..300 {
        archive = archive.file("..", b"");
    }
    let index = index(&archive.raw(b"junk").raw(&[1; 600]).open());
    assert_eq!((index.notes().len(), index.more_notes()), (257, 44));
    assert!(index.damage().is_some());
}

#[test]
fn archives_of_gnu_tar() {
    use std::{fs, os::unix::fs::FileExt, process::Command};
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let deep = format!("{}/{}", "d".repeat(120), "e".repeat(130));
    fs::create_dir_all(root.join(&deep)).unwrap();
    fs::write(root.join(&deep).join("file"), b"deep").unwrap();
    fs::hard_link(root.join(&deep).join("file"), root.join("link")).unwrap();
    std::os::unix::fs::symlink("x".repeat(150), root.join("symlink")).unwrap();
    let holes = fs::File::create(root.join("holes")).unwrap();
    holes.set_len(20 << 20).unwrap();
    for n in 0..40_u64 {
        holes.write_all_at(&[n as u8 + 1; 4096], n * 400 * 1024).unwrap();
    }
    let formats: [&[&str]; 6] = [
        &["--format=gnu"],
        &["--format=posix"],
        &["--format=gnu", "--sparse"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
    ];
    for options in formats {
        let out = dir.path().join("out.tar");
        let status = Command::new("tar")
            .args(options)
            .args(["--sort=name", "--owner=12", "--group=34", "-C"])
            .arg(&root)
            .arg("-cf")
            .arg(&out)
            .arg(".")
            .status()
            .unwrap();
        assert!(status.success());
        let archive = fs::read(&out).unwrap();
        let index = index(&archive);
        assert_eq!(index.notes(), [], "{options:?}");
        let table = index.table();
        let find = |path: &str| {
            let is_it = |n: &u32| table.full_path(table.entry(*n).unwrap().path) == path.as_bytes();
            (0..table.len()).find(is_it).unwrap()
        };
        let file = table.entry(find(&format!("{deep}/file"))).unwrap();
        let link = table.entry(find("link")).unwrap();
        // Which of the two is the link depends on their order.
        assert_eq!((file.kind, link.kind), (Kind::File, Kind::Link), "{options:?}");
        assert_eq!((file.uid, file.gid, file.size), (12, 34, 4));
        assert_eq!(
            table.full_path(table.link_path(&link).unwrap()),
            format!("{deep}/file").as_bytes()
        );
        let symlink = table.entry(find("symlink")).unwrap();
        assert_eq!(table.symlink_target(&symlink).unwrap(), "x".repeat(150).as_bytes());
        let number = find("holes");
        assert_eq!(table.entry(number).unwrap().size, 20 << 20);
        let mut content = vec![0; 20 << 20];
        for extent in table.extents(number) {
            let (to, from) = (extent.file_offset as usize, extent.stream_offset as usize);
            let length = extent.length as usize;
            content[to..to + length].copy_from_slice(&archive[from..from + length]);
        }
        assert!(content == fs::read(root.join("holes")).unwrap(), "{options:?}");
        let mtime = fs::metadata(root.join("holes")).unwrap().modified().unwrap();
        let mtime = mtime.duration_since(std::time::UNIX_EPOCH).unwrap();
        let nanos = if options[0] == "--format=posix" { mtime.subsec_nanos() } else { 0 };
        let time = Time { secs: mtime.as_secs() as i64, nanos };
        assert_eq!(table.entry(number).unwrap().mtime, time, "{options:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(
        mut blocks in proptest::collection::vec((any::<u8>(), 0_usize..500, any::<u8>(), 0_u64..2000), 0..20),
        piece in 1_usize..700,
    ) {
        let mut archive = Archive::new();
        for (flag, at, byte, size) in blocks.drain(..) {
            let flags = b"0123457xgLKS";
            let flag = flags.get(usize::from(flag) % 16).copied().unwrap_or(flag);
            let mut header = Header::new(b"some/name", flag);
            archive = archive.entry(header.size(size).put(at, &[byte]), &vec![byte; size as usize]);
        }
        let bytes = archive.end();
        let whole = index(&bytes);
        prop_assert_eq!(index_with(&bytes, inline(), piece).unwrap(), whole);
    }
}
