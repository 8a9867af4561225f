//! Tables of contents against the ordinary pass over the same blobs.

mod builder;
mod hostile;
mod ztoc;

use std::{collections::BTreeMap, sync::Arc};

use proptest::prelude::*;
use serde_json::json;

use super::{
    archive::{Archive, Header},
    index, listing, model, read_span, sample,
};
use crate::{
    image::{Descriptor, Digest, Manifest, View},
    layer::{
        Attributes, Compression, Decoded, Kind, LayerIndex, Limits, Origin, Rootfs, SpanDecoder,
        StoredHead, Time, TocError, TocReader,
    },
};
use builder::{Built, Form};

/// The index of a blob's table, and the ranges that were asked for.
fn read_toc(
    blob: &[u8],
    layer: &Descriptor,
    limits: Limits,
) -> Result<(LayerIndex, Vec<std::ops::Range<u64>>), TocError> {
    let mut reader = TocReader::new(layer, limits)?.expect("it says that there is a table");
    let mut wanted = Vec::new();
    loop {
        let range = reader.wanted();
        let bytes = &blob[range.start as usize..range.end as usize];
        wanted.push(range);
        if let Some(index) = reader.push(bytes)? {
            return Ok((index, wanted));
        }
    }
}

/// The content of a file through spans, each of which is read by its own range.
fn content(tree: &Rootfs, blob: &[u8], node: crate::layer::Node) -> Vec<u8> {
    let data = tree.data(node).unwrap();
    let index = &tree.layers()[data.layer];
    let mut bytes = vec![0; data.size as usize];
    for extent in data.extents {
        let end = extent.stream_offset + extent.length;
        let mut at = extent.stream_offset;
        while at < end {
            let span = index.span_of(at).unwrap();
            let range = index.stream_range(span);
            let content = read_span(index, blob, span);
            assert_eq!(content.len() as u64, range.end - range.start);
            let part = &content[(at - range.start) as usize..];
            let part = &part[..part.len().min((end - at) as usize)];
            let to = (extent.file_offset + at - extent.stream_offset) as usize;
            bytes[to..to + part.len()].copy_from_slice(part);
            at += part.len() as u64;
        }
    }
    bytes
}

/// What is seen of a file.
#[derive(Debug, PartialEq)]
struct Seen {
    attributes: Attributes,
    target: Option<Vec<u8>>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    content: Result<Vec<u8>, crate::layer::Broken>,
    /// A name that its inode has, too.
    inode: Vec<u8>,
}

fn see(index: &Arc<LayerIndex>, blob: &[u8]) -> BTreeMap<Vec<u8>, Seen> {
    let tree = Rootfs::raw(Arc::clone(index)).unwrap();
    let nodes = (0..tree.node_count()).filter_map(|number| tree.node(number));
    let seen = nodes.map(|node| {
        let mut attributes = tree.attributes(node);
        // A table of contents tells of zeros that an archive has as data.
        attributes.stored_bytes = 0;
        if tree.is_implied(node) {
            // It depends on the time of the table's own entry.
            attributes.mtime = Time::default();
        }
        let xattrs = tree.xattrs(node).map(|(name, value)| (name.to_vec(), value.to_vec()));
        let seen = Seen {
            attributes,
            target: tree.symlink_target(node).map(<[u8]>::to_vec),
            xattrs: xattrs.collect(),
            content: tree.data(node).map(|_| content(&tree, blob, node)),
            inode: tree.path(tree.inode(node)),
        };
        (tree.path(node), seen)
    });
    seen.filter(|(path, _)| path != b"stargz.index.json").collect()
}

/// Checks all that an index of a table promises.
fn check_index(index: &LayerIndex, blob: &[u8]) {
    assert_eq!((index.origin(), index.diff_id()), (Origin::Toc, None));
    let spans: Vec<_> =
        (0..index.span_count()).map(|span| (span, read_span(index, blob, span))).collect();
    let mut end = 0;
    for (span, bytes) in &spans {
        let range = index.stream_range(*span);
        assert_eq!(bytes.len() as u64, range.end - range.start);
        // There is nothing between spans.
        assert!((end..range.start).all(|at| index.span_of(at).is_none()));
        assert!([range.start, range.end - 1].iter().all(|at| index.span_of(*at) == Some(*span)));
        end = range.end;
    }
    assert_eq!(end, index.stream_bytes());
    // Several of them in order, with what is between them.
    let count = index.span_count();
    for (from, to) in [(0, count), (count / 3, count), (count / 2, count / 2 + count / 4)] {
        if from == to {
            continue;
        }
        let range = index.fetch_range(from..to);
        let mut decoder = SpanDecoder::new(index, from, None).unwrap();
        let (mut found, mut is_done) = (Vec::new(), false);
        for piece in blob[range.start as usize..range.end as usize].chunks(997) {
            let mut keep = |one: Decoded| {
                if one.is_checked {
                    found.push((one.span, one.bytes));
                }
            };
            is_done = decoder.push(index, &(from..to), piece, &mut keep).unwrap();
        }
        assert!(is_done);
        assert!(found == spans[from as usize..to as usize], "spans {from} to {to}");
    }
    let stored = index.to_bytes().unwrap();
    let again = LayerIndex::from_bytes(&stored).unwrap();
    assert_eq!(again.origin(), Origin::Toc);
    assert_eq!(again.to_bytes().unwrap(), stored);
    let head = StoredHead::parse(&stored).unwrap();
    assert_eq!(head.table_bytes(), head.total_bytes());
    for (span, bytes) in &spans {
        assert_eq!(again.fetch_range(*span..span + 1), index.fetch_range(*span..span + 1));
        assert!(read_span(&again, blob, *span) == *bytes);
    }
}

/// The table says the same as the blob.
#[track_caller]
fn check(what: &str, built: &Built) -> LayerIndex {
    let (index, _) = read_toc(&built.blob, &built.layer, Limits::default()).expect(what);
    assert_eq!(index.notes(), [], "{what}");
    check_index(&index, &built.blob);
    let listed = see(&Arc::new(index.clone()), &built.blob);
    let passed = see(&Arc::new(super::index(&built.blob)), &built.blob);
    assert_eq!(listed.keys().collect::<Vec<_>>(), passed.keys().collect::<Vec<_>>(), "{what}");
    for (path, seen) in &listed {
        assert_eq!(*seen, passed[path], "{what}: {}", path.escape_ascii());
    }
    index
}

/// Something of everything.
fn everything() -> Archive {
    Archive::new()
        .dir("./")
        .entry(Header::new(b"etc/", b'5').mode(0o1777).owner(3, 4).mtime(1_566_297_043), b"")
        .file("etc/small", b"small")
        .file("etc/empty", b"")
        .file("large", &sample(300_000, 7))
        .link("etc/link", "./large")
        .link("broken", "nowhere")
        .symlink("etc/symlink", "../x//y")
        .entry(Header::new(b"null", b'3').device(1, 3), b"")
        .entry(Header::new(b"disk", b'4').device(8, 1), b"")
        .entry(&Header::new(b"pipe", b'6'), b"")
        // Go takes those without a value for ones that are not there.
        .pax(b'x', &[("SCHILY.xattr.user.a", b"\0\xff"), ("SCHILY.xattr.security.b", b"b")])
        .file("with xattrs", b"x")
        .file("etc/.wh.gone", b"")
        .file("var/.wh..wh..opq", b"")
        .file("later/in/implied", &sample(70_000, 9))
        .file("again", b"first")
        .file("again", b"second, and what a link means")
        .link("to again", "again")
        .file("again", b"third")
        .file(&format!("{}\u{e9}\"\\", "long".repeat(20)), b"odd name")
}

#[test]
fn it_is_what_the_pass_finds() {
    for form in [Form::Stargz, Form::LegacyStargz, Form::Chunked] {
        for (chunk, member) in
            [(4 << 20, 0), (100_000, 0), (1 << 20, 1 << 20), (1000, 3000), (1, 900_000), (70, 512)]
        {
            // A byte for a chunk is a lot of chunks.
            let archive = match chunk {
                1 => Archive::new().file("a", &sample(800, 1)).file("b", &sample(700, 2)),
                _ => everything(),
            };
            let built = Built::new(form, &archive.open(), chunk, member);
            let index = check(&format!("{form:?} {chunk} {member}"), &built);
            let expected = match form {
                Form::Stargz | Form::LegacyStargz => Compression::Gzip,
                Form::Chunked => Compression::Zstd,
            };
            assert_eq!(index.compression(), expected);
            assert_eq!(index.blob(), built.layer.digest);
        }
    }
}

#[test]
fn layers_without_files() {
    for form in [Form::Stargz, Form::Chunked] {
        for archive in [Archive::new(), Archive::new().dir("d").file("d/empty", b"")] {
            let index = check("no content", &Built::new(form, &archive.open(), 100, 0));
            assert_eq!((index.span_count(), index.stream_bytes()), (0, 0));
            assert_eq!((index.span_of(0), index.fetch_range(0..1)), (None, 0..0));
        }
    }
    // What Go makes of a list that was never begun.
    let built = Built::new(Form::Chunked, &[], 1, 0).with(|toc| toc["entries"] = json!(null));
    let (index, _) = read_toc(&built.blob, &built.layer, Limits::default()).unwrap();
    assert!(index.table().is_empty());
}

#[test]
fn holes_of_zeros_are_not_fetched() {
    let mut sparse = vec![0; 3 << 20];
    sparse[1 << 20..(1 << 20) + 1000].copy_from_slice(&sample(1000, 3));
    sparse[(2 << 20) + 5] = 1;
    let archive = Archive::new()
        .file("before", b"before")
        .file("sparse", &sparse)
        .file("zeros", &vec![0; 5000])
        .file("after", b"after");
    let built = Built::new(Form::Chunked, &archive.open(), 1000, 0);
    let index = check("zeros", &built);
    assert!(index.stream_bytes() < 20_000, "{}", index.stream_bytes());
    let tree = Rootfs::raw(Arc::new(index)).unwrap();
    assert_eq!(tree.data(tree.find(b"zeros").unwrap()).unwrap().extents, []);
    // Holes are longer than chunks; one may be larger than what is fetched at once.
    let built = built.with(|toc| {
        let zeros =
            toc["entries"].as_array_mut().unwrap().iter_mut().find(|e| e["name"] == "zeros");
        let zeros = zeros.unwrap();
        zeros["size"] = json!(1_u64 << 40);
        zeros["chunkSize"] = json!(0);
    });
    let built = built.with(|toc| {
        let entries = toc["entries"].as_array_mut().unwrap();
        entries.retain(|e| e["name"] != "zeros" || e["type"] != "chunk");
    });
    let (index, _) = read_toc(&built.blob, &built.layer, Limits::default()).unwrap();
    let tree = Rootfs::raw(Arc::new(index)).unwrap();
    let zeros = tree.attributes(tree.find(b"zeros").unwrap());
    assert_eq!((zeros.size, zeros.stored_bytes), (1 << 40, 0));
}

#[test]
fn the_order_of_the_table_is_not_that_of_the_blob() {
    let archive = Archive::new()
        .file("a", &sample(5000, 1))
        .file("b", &sample(5000, 2))
        .file("c", &sample(5000, 3));
    for (form, member) in [(Form::Stargz, 0), (Form::Stargz, 3000), (Form::Chunked, 0)] {
        let built = Built::new(form, &archive.clone().open(), 1500, member);
        let plain = check("in order", &built);
        // File by file from the last to the first.
        let turned = built.with(|toc| {
            let entries = toc["entries"].as_array_mut().unwrap();
            let name = |e: &serde_json::Value| e["name"].as_str().unwrap().to_owned();
            entries.sort_by_key(|e| std::cmp::Reverse(name(e)));
        });
        let index = check("turned", &turned);
        assert_eq!(index.span_count(), plain.span_count());
        assert_eq!(listing::describe(&index, 0), "File c 644 0:0 5000b 0");
        // Its chunks are where they were.
        let ranges = |index: &LayerIndex| -> Vec<_> {
            (0..index.span_count()).map(|span| index.fetch_range(span..span + 1)).collect()
        };
        assert_eq!(ranges(&index), ranges(&plain));
    }
    // The chunks of a file need not stand in order, either.
    let built = Built::new(Form::Stargz, &archive.clone().open(), 2500, 0);
    let swapped = built.with(|toc| {
        let entries = toc["entries"].as_array_mut().unwrap();
        let (first, second) = (entries[0].clone(), entries[1].clone());
        for field in ["offset", "chunkDigest"] {
            entries[0][field] = second[field].clone();
            entries[1][field] = first[field].clone();
        }
    });
    let (index, _) = read_toc(&swapped.blob, &swapped.layer, Limits::default()).unwrap();
    check_index(&index, &swapped.blob);
    let tree = Rootfs::raw(Arc::new(index)).unwrap();
    let a = content(&tree, &swapped.blob, tree.find(b"a").unwrap());
    let whole = sample(5000, 1);
    assert!(a == [&whole[2500..], &whole[..2500]].concat());
}

#[test]
fn a_first_listing_takes_one_range_or_two() {
    let files = |count: u64| {
        (0..count).fold(Archive::new(), |archive, number| {
            archive.file(&format!("file{number}"), &sample(20, number))
        })
    };
    let requests = |form, count| {
        let built = Built::new(form, &files(count).open(), 1 << 20, 0);
        let (index, ranges) = read_toc(&built.blob, &built.layer, Limits::default()).unwrap();
        assert_eq!(index.table().len(), count as u32);
        (built, ranges)
    };
    let (small, ranges) = requests(Form::Stargz, 10);
    assert_eq!((ranges.len(), &ranges[0]), (1, &(0..small.blob.len() as u64)));
    let (large, ranges) = requests(Form::Stargz, 8000);
    let end = large.blob.len() as u64;
    let tail = end - (256 << 10);
    assert_eq!(ranges, [tail..end, large.toc_offset..tail]);
    let (chunked, ranges) = requests(Form::Chunked, 8000);
    assert_eq!(ranges.len(), 1);
    assert_eq!(ranges[0].start, chunked.toc_offset);
}

/// As in `docs/estargz.md`, and as `estargz.Build` adds landmarks.
#[test]
fn a_table_of_stargz_snapshotter() {
    let toc = json!({
        "version": 1,
        "entries": [
            {"name": ".no.prefetch.landmark", "type": "reg", "size": 1, "offset": 90,
             "digest": "sha256:dc0e9c3658a1a3ed1ec94274d8b19925c93e1abb7ddba294923ad9bde30f8cb8",
             "chunkDigest": "sha256:dc0e9c3658a1a3ed1ec94274d8b19925c93e1abb7ddba294923ad9bde30f8cb8"},
            {"name": "bin/", "type": "dir", "modtime": "2019-08-20T10:30:43Z", "mode": 16877, "NumLink": 0},
            {"name": "bin/busybox", "type": "reg", "size": 833104, "modtime": "2019-06-12T17:52:45Z",
             "mode": 33261, "offset": 126, "NumLink": 0, "userName": "root",
             "digest": "sha256:8b7c559b8cccca0d30d01bc4b5dc944766208a53d18a03aa8afe97252207521f",
             "chunkDigest": "sha256:8b7c559b8cccca0d30d01bc4b5dc944766208a53d18a03aa8afe97252207521f"},
            {"name": "bin/sh", "type": "hardlink", "linkName": "bin/busybox", "mode": 493, "uid": 1, "gid": 2},
            {"name": "lib", "type": "symlink", "linkName": "usr/lib", "mode": 511},
            {"name": "dev/null", "type": "char", "devMajor": 1, "devMinor": 3, "mode": 438,
             "xattrs": {"user.b": "AAE=", "user.a": "", "user.bad": "A"}},
            {"name": "../up", "type": "dir"},
            {"name": "big", "type": "reg", "size": 10, "chunkSize": 4, "offset": 900,
             "chunkDigest": "sha256:8b7c559b8cccca0d30d01bc4b5dc944766208a53d18a03aa8afe97252207521f"},
            {"name": "", "type": "chunk", "chunkOffset": 4, "chunkSize": 4, "offset": 950,
             "chunkDigest": "sha256:8b7c559b8cccca0d30d01bc4b5dc944766208a53d18a03aa8afe97252207521f"},
            {"name": "big", "type": "chunk", "chunkOffset": 8, "offset": 970,
             "chunkDigest": "sha256:8b7c559b8cccca0d30d01bc4b5dc944766208a53d18a03aa8afe97252207521f"},
        ]
    });
    let built = Built::of(Form::Stargz, vec![0; 1000], toc);
    let (index, _) = read_toc(&built.blob, &built.layer, Limits::default()).unwrap();
    let mut lines: Vec<_> =
        (0..index.table().len()).map(|n| listing::describe(&index, n)).collect();
    lines.extend(index.notes().iter().map(|note| format!("! {:?} {}", note.entry, note.kind)));
    assert_eq!(
        lines,
        [
            "Dir bin 755 0:0 0b 1566297043",
            "File bin/busybox 755 0:0 833104b 1560361965",
            "Link bin/sh 755 1:2 0b 0 => bin/busybox",
            "Symlink lib 777 0:0 0b 0 -> usr/lib",
            "Char dev/null 666 0:0 0b 0 1:3 user.a= user.b=\\x00\\x01",
            "File big 0 0:0 10b 0",
            "! Some(5) its extended attribute `user.bad` is not valid",
            "! Some(6) its name leads out of the root with `..`",
        ]
    );
    let ranges: Vec<_> = (0..4).map(|span| index.fetch_range(span..span + 1)).collect();
    // Up to the next one; the last ends where the table begins.
    assert_eq!(ranges, [126..900, 900..950, 950..970, 970..1000]);
    let streams: Vec<_> = (0..4).map(|span| index.stream_range(span)).collect();
    assert_eq!(streams, [0..833_104, 833_536..833_540, 833_540..833_544, 833_544..833_546]);
}

/// As containers/storage writes them, with times of a zone.
#[test]
fn a_table_of_podman() {
    let digest = "sha256:8b7c559b8cccca0d30d01bc4b5dc944766208a53d18a03aa8afe97252207521f";
    let toc = json!({
        "version": 1,
        "entries": [
            {"type": "dir", "name": "etc/", "mode": 493, "modtime": "2022-11-03T14:05:06+01:00",
             "accesstime": "0001-01-01T00:00:00Z", "changetime": "0001-01-01T00:00:00Z"},
            {"type": "reg", "name": "etc/one", "mode": 420, "size": 7, "digest": digest,
             "modtime": "2022-11-03T13:05:06.123456789Z", "offset": 150, "endOffset": 170},
            {"type": "reg", "name": "etc/two", "mode": 420, "size": 30, "digest": digest,
             "modtime": "0001-01-01T00:00:00Z", "offset": 200, "endOffset": 300,
             "chunkSize": 10, "chunkDigest": digest},
            {"type": "chunk", "name": "etc/two", "offset": 220, "chunkSize": 15, "chunkOffset": 10,
             "chunkDigest": digest, "chunkType": "zeros"},
            {"type": "chunk", "name": "etc/two", "offset": 240, "chunkSize": 5, "chunkOffset": 25,
             "chunkDigest": digest},
            {"type": "hardlink", "name": "etc/three", "linkName": "etc/two", "size": 30},
            {"type": "reg", "name": "etc/none", "mode": 420}
        ],
        "tarSplitDigest": digest
    });
    let built = Built::of(Form::Chunked, vec![0; 500], toc);
    let (index, _) = read_toc(&built.blob, &built.layer, Limits::default()).unwrap();
    let lines: Vec<_> = (0..index.table().len()).map(|n| listing::describe(&index, n)).collect();
    assert_eq!(
        lines,
        [
            "Dir etc 755 0:0 0b 1667480706",
            "File etc/one 644 0:0 7b 1667480706.123456789",
            "File etc/two 644 0:0 30b 0",
            "Link etc/three 0 0:0 0b 0 => etc/two",
            "File etc/none 644 0:0 0b 0",
        ]
    );
    assert_eq!(index.notes(), []);
    let extents: Vec<_> =
        index.table().extents(2).iter().map(|e| (e.file_offset, e.length)).collect();
    assert_eq!(extents, [(0, 10), (25, 5)]);
}

#[test]
fn layers_that_announce_nothing() {
    let layer = |annotations: &[(&str, &str)]| {
        let mut layer = Descriptor::new("", Digest::sha256(b""), 5000);
        let pairs =
            annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        layer.annotations = pairs.collect();
        TocReader::new(&layer, Limits::default()).map(|reader| reader.map(|r| r.wanted()))
    };
    let digest = "sha256:8b7c559b8cccca0d30d01bc4b5dc944766208a53d18a03aa8afe97252207521f";
    let stargz = ("containerd.io/snapshot/stargz/toc.digest", digest);
    let checksum = ("io.github.containers.zstd-chunked.manifest-checksum", digest);
    let position = ("io.github.containers.zstd-chunked.manifest-position", "1000:20:300:1");
    assert_eq!(layer(&[]), Ok(None));
    assert_eq!(layer(&[("other", digest)]), Ok(None));
    // One of them alone says either where it is or what it is.
    assert_eq!(layer(&[checksum]), Ok(None));
    assert_eq!(layer(&[position]), Ok(None));
    assert_eq!(layer(&[stargz]), Ok(Some(0..5000)));
    assert_eq!(layer(&[stargz, checksum, position]), Ok(Some(1000..1020)));
    let older = [
        ("io.containers.zstd-chunked.manifest-checksum", digest),
        ("io.containers.zstd-chunked.manifest-position", "1000:20:300:1"),
    ];
    assert_eq!(layer(&older), Ok(Some(1000..1020)));
    assert_eq!(layer(&[older[0], position]), Ok(None));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn random_layers_are_what_the_pass_finds(
        items in proptest::collection::vec(model::items(), 0..20),
        form in prop_oneof![Just(Form::Stargz), Just(Form::Chunked)],
        chunk in 1_usize..300,
        member in prop_oneof![Just(0_usize), 1_usize..3000],
    ) {
        let archive = model::archive(&items).open();
        check("random", &Built::new(form, &archive, chunk, member));
    }
}

/// What containers/storage makes of an archive.
#[test]
fn layers_of_skopeo() {
    use std::{fs, process::Command};
    let dir = tempfile::tempdir().unwrap();
    let archive = everything().file("holes", &[&[0; 70_000][..], b"x", &[0; 3000]].concat());
    let archive = archive.file("huge", &sample(2_000_000, 5)).end();
    let blobs = dir.path().join("from/blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8], name: &str| {
        let digest = Digest::sha256(bytes);
        fs::write(blobs.join(digest.to_hex()), bytes).unwrap();
        let media_type = format!("application/vnd.oci.image.{name}");
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
    };
    let layer = put(&archive, "layer.v1.tar");
    let config = json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}});
    let config = put(config.to_string().as_bytes(), "config.v1+json");
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer],
        "mediaType": "application/vnd.oci.image.manifest.v1+json"});
    let manifest = put(manifest.to_string().as_bytes(), "manifest.v1+json");
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(dir.path().join("from/index.json"), index.to_string()).unwrap();
    fs::write(dir.path().join("from/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let out = Command::new("skopeo")
        .args(["copy", "--insecure-policy", "--dest-compress"])
        .args(["--dest-compress-format", "zstd:chunked", "oci:from", "dir:to"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let manifest = fs::read(dir.path().join("to/manifest.json")).unwrap();
    let manifest = Manifest::parse(manifest.into(), None).unwrap();
    let View::Image { layers, .. } = manifest.view() else { panic!("it is an image") };
    let blob = fs::read(dir.path().join("to").join(layers[0].digest.to_hex())).unwrap();
    let (index, ranges) = read_toc(&blob, &layers[0], Limits::default()).unwrap();
    assert_eq!((index.notes(), ranges.len()), (&[][..], 1));
    assert!(index.span_count() > 10);
    check_index(&index, &blob);
    let passed = see(&Arc::new(super::index(&blob)), &blob);
    let listed = see(&Arc::new(index), &blob);
    for (path, seen) in &passed {
        assert_eq!(Some(seen), listed.get(path), "{}", path.escape_ascii());
    }
    assert_eq!(listed.len(), passed.len());
}

/// Unlike in the other form, a table's own entry is in the archive.
#[test]
fn the_pass_over_an_estargz_shows_its_table() {
    let built = Built::new(Form::Stargz, &Archive::new().file("a", b"a").open(), 10, 0);
    let index = index(&built.blob);
    let table = index.table();
    assert_eq!(table.full_path(table.entry(1).unwrap().path), b"stargz.index.json");
    assert_eq!(table.entry(1).unwrap().kind, Kind::File);
}
