//! Tables that are not what they should be.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    Archive, Built, Descriptor, Digest, Form, LayerIndex, Limits, TocError, TocReader, read_toc,
    sample,
};
use crate::layer::{DecodeError, Decoded, Rootfs, SpanDecoder, tests::stored};

/// Two files: the first in three chunks, the second in one.
fn built(form: Form) -> Built {
    let archive = Archive::new().file("a", &sample(250, 1)).file("b", &sample(80, 2));
    Built::new(form, &archive.open(), 100, 0)
}

fn error(built: &Built, limits: Limits) -> String {
    match read_toc(&built.blob, &built.layer, limits) {
        Ok((index, _)) => panic!("{:?}", index.table()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn entries_that_make_no_sense() {
    // Which entry, which field, what it says instead (or nothing), and what comes of it.
    let rows: [(usize, &str, Value, &str); 34] = [
        (0, "type", json!("socket"), "`a`: it is of a type that is unknown"),
        (0, "type", json!("chunk"), "`a`: it is a chunk that follows no file of its name"),
        (0, "type", json!("dir"), "`a`: it is a chunk that follows no file of its name"),
        (1, "name", json!("b"), "`b`: it is a chunk that follows no file of its name"),
        (0, "modtime", json!("yesterday"), "`a`: its time is none"),
        (0, "size", json!(0), "`a`: it is a chunk that follows no file of its name"),
        (0, "size", json!(249), "`a`: its chunks are not within it"),
        (0, "size", json!(1 << 20), "`a`: its chunks are fewer bytes than it has"),
        (0, "size", json!((1_u64 << 62) + 1), "`a`: it is too large"),
        (3, "size", json!(81), "`b`: it has a chunk without a SHA-256"),
        (0, "chunkSize", json!(101), "`a`: its chunks are not one after the other"),
        (0, "chunkSize", json!(0), "`a`: its chunks are not one after the other"),
        (0, "chunkSize", json!(u64::MAX), "`a`: its chunks are not within it"),
        (0, "chunkOffset", json!(1), "`a`: its chunks are not one after the other"),
        (1, "chunkOffset", json!(0), "`a`: its chunks are not one after the other"),
        (1, "chunkOffset", json!(99), "`a`: its chunks are not one after the other"),
        (1, "chunkOffset", json!(u64::MAX), "`a`: its chunks are not one after the other"),
        (2, "chunkSize", json!(51), "`a`: its chunks are not within it"),
        (2, "chunkSize", json!(49), "`a`: its chunks are fewer bytes than it has"),
        (1, "chunkType", json!("holes"), "`a`: it has a chunk of an unknown type"),
        (1, "chunkDigest", json!(""), "`a`: it has a chunk without a SHA-256"),
        (1, "chunkDigest", json!("sha256:12"), "`a`: it has a chunk without a SHA-256"),
        (
            1,
            "chunkDigest",
            json!(Digest::of(crate::image::Algorithm::Sha512, b"").to_string()),
            "`a`: it has a chunk without a SHA-256",
        ),
        (1, "offset", json!(u64::MAX), "`a`: it is not within the layer"),
        (1, "offset", json!(1_u64 << 40), "`a`: it is not within the layer"),
        (
            1,
            "innerOffset",
            json!((64 << 20) + 1),
            "`a`: it is more than 64 MiB behind the place where decompressing begins",
        ),
        (0, "size", json!(-1), "invalid value: integer `-1`, expected u64"),
        (0, "size", json!(-1), "invalid value: integer `-1`, expected u64"),
        (0, "mode", json!(1.5), "invalid type: floating point `1.5`, expected u64"),
        (0, "name", Value::Null, "invalid type: null, expected a string"),
        (0, "xattrs", json!({"a": 1}), "invalid type: integer `1`, expected a string"),
        (0, "xattrs", json!(xattrs(70_000)), "`a`: it has more than 1 MiB of extended attributes"),
        (
            0,
            "xattrs",
            json!({"user.a": "A".repeat(1 << 20)}),
            "`a`: it has more than 1 MiB of extended attributes",
        ),
        (0, "name", json!("x".repeat(500)), "`a`: it is a chunk that follows no file of its name"),
    ];
    for form in [Form::Stargz, Form::Chunked] {
        for (entry, field, value, what) in &rows {
            let bad = built(form).with(|toc| {
                // What either form leaves out or has beside it: the same for both.
                for entry in toc["entries"].as_array_mut().unwrap() {
                    entry.as_object_mut().unwrap().remove("endOffset");
                }
                toc["entries"][2]["chunkSize"] = json!(50);
                toc["entries"][3]["chunkSize"] = json!(80);
                toc["entries"][3].as_object_mut().unwrap().remove("chunkDigest");
                toc["entries"][*entry][*field] = value.clone();
            });
            let text = error(&bad, Limits::default());
            assert!(text.contains(what), "{form:?} {entry} {field}: {text}");
            assert!(text.len() < 300, "{text}");
        }
    }
}

fn xattrs(count: usize) -> serde_json::Map<String, Value> {
    (0..count).map(|number| (number.to_string(), json!(""))).collect()
}

#[test]
fn chunks_that_overlap_or_do_not_end() {
    let two_in_one = |inner: u64| {
        let archive = Archive::new().file("a", &sample(250, 1)).file("b", &sample(80, 2));
        let built = Built::new(Form::Stargz, &archive.open(), 1000, 100_000);
        built.with(|toc| {
            assert_eq!(toc["entries"][1]["innerOffset"], 512 + 512 + 512);
            toc["entries"][1]["innerOffset"] = json!(inner);
        })
    };
    for inner in [433, 511, 512, 513, 761] {
        let text = error(&two_in_one(inner), Limits::default());
        assert!(text.ends_with("it overlaps another file"), "{inner}: {text}");
    }
    // It only touches, so it is possible; that it is not so is seen when it is read.
    let (index, _) = {
        let built = two_in_one(762);
        read_toc(&built.blob, &built.layer, Limits::default()).unwrap()
    };
    let built = two_in_one(762);
    let range = index.fetch_range(1..2);
    let bytes = &built.blob[range.start as usize..range.end as usize];
    assert_eq!(index.decode(1, bytes), Err(DecodeError::Digest(1)));
    let same = built.with(|toc| toc["entries"][1] = toc["entries"][0].clone());
    assert!(error(&same, Limits::default()).ends_with("it overlaps another file"));
    let end = |offset: u64| {
        let built = super::hostile::built(Form::Chunked);
        built.with(|toc| toc["entries"][0]["endOffset"] = json!(offset))
    };
    assert!(error(&end(1), Limits::default()).ends_with("it ends before it begins"));
}

#[test]
fn large_chunks_are_refused() {
    let large = vec![7; (8 << 20) + 1];
    for form in [Form::Stargz, Form::Chunked] {
        let built = Built::new(form, &Archive::new().file("a", &large).open(), 16 << 20, 0);
        let text = error(&built, Limits::default());
        assert!(text.ends_with("`a`: it has a chunk of more than 8 MiB"), "{text}");
        let built = Built::new(form, &Archive::new().file("a", &large[1..]).open(), 16 << 20, 0);
        let (index, _) = read_toc(&built.blob, &built.layer, Limits::default()).unwrap();
        super::check_index(&index, &built.blob);
    }
}

#[test]
fn texts_that_are_no_table() {
    let table = [
        ("", "EOF while parsing"),
        ("[]", "expected a table of contents"),
        ("{}", "missing field `version`"),
        (r#"{"version":1}"#, "missing field `entries`"),
        (r#"{"entries":[]}"#, "missing field `version`"),
        (r#"{"version":2,"entries":[]}"#, "is of version 2; only 1 is known"),
        (r#"{"version":1,"version":1,"entries":[]}"#, "duplicate field `version`"),
        (r#"{"version":1,"entries":[],"entries":[]}"#, "duplicate field `entries`"),
        (r#"{"version":1,"entries":{}}"#, "expected a list of entries"),
        (r#"{"version":1,"entries":[]} x"#, "trailing characters"),
        (r#"{"version":1,"entries":[{"name":"a"}]}"#, "missing field `type`"),
        (r#"{"version":1,"entries":[{"type":"dir"}]}"#, "missing field `name`"),
        (
            r#"{"version":1,"entries":[{"name":"a","name":"b","type":"dir"}]}"#,
            "duplicate field `name`",
        ),
    ];
    for form in [Form::Stargz, Form::Chunked] {
        for (text, what) in table {
            let found = error(&built(form).with_text(text.as_bytes()), Limits::default());
            assert!(found.contains(what), "{text}: {found}");
        }
        for place in ["x", "version", "entries"] {
            let deep = format!(r#"{{"{place}":{}"#, "[".repeat(100_000));
            error(&built(form).with_text(deep.as_bytes()), Limits::default());
        }
        let text = r#"{"version":1,"entries":[],"x":[{"y":null}]} "#;
        let built = built(form).with_text(text.as_bytes());
        assert!(read_toc(&built.blob, &built.layer, Limits::default()).is_ok());
    }
}

#[test]
fn limits_are_kept() {
    let limits = Limits { max_entries: 1, ..Limits::default() };
    assert!(error(&built(Form::Stargz), limits).ends_with("more than 1 entries"));
    let limits = Limits { max_table_bytes: 100, ..Limits::default() };
    let text = "the table of the archive would take more than 100 bytes";
    assert_eq!(error(&built(Form::Stargz), limits), text);
    // Spans count, too.
    let limits = Limits { max_table_bytes: 500, ..Limits::default() };
    assert!(error(&built(Form::Stargz), limits).contains("more than 500 bytes"));
    let limits = Limits { max_stream_bytes: 600, ..Limits::default() };
    assert!(error(&built(Form::Stargz), limits).ends_with("have more than 600 bytes"));
}

#[test]
fn blobs_that_are_others() {
    let push = |layer: &Descriptor, blob: &[u8]| {
        let mut reader = TocReader::new(layer, Limits::default())?.unwrap();
        let range = reader.wanted();
        reader.push(&blob[range.start as usize..(range.end as usize).min(blob.len())]).map(|_| ())
    };
    for form in [Form::Stargz, Form::Chunked] {
        let built = built(form);
        assert_eq!(push(&built.layer, &built.blob), Ok(()));
        // One bit anywhere in the table or in what says where it is.
        let end = match form {
            Form::Chunked => built.layer.annotations.values().find_map(|value| {
                let bytes: usize = value.split(':').nth(1)?.parse().ok()?;
                Some(built.toc_offset as usize + bytes)
            }),
            _ => Some(built.blob.len()),
        };
        let mut harmless = 0;
        for at in built.toc_offset as usize..end.unwrap() {
            let mut bad = built.blob.clone();
            bad[at] ^= 1 << (at % 8);
            match push(&built.layer, &bad) {
                // Of gzip's header and the archive's headers and padding, only the JSON matters.
                Ok(()) => harmless += 1,
                Err(error) => assert!(!matches!(error, TocError::Entry { .. }), "{at}: {error}"),
            }
        }
        assert!(harmless < 20 && (form == Form::Stargz || harmless == 0), "{harmless}");
        let short = &built.blob[..built.blob.len() - 1];
        let expected = TocReader::new(&built.layer, Limits::default()).unwrap().unwrap().wanted();
        let length = push(&Descriptor { size: built.layer.size + 1, ..built.layer.clone() }, short);
        if form == Form::Stargz {
            let expected = built.blob.len() as u64 + 1;
            assert_eq!(length, Err(TocError::Length { expected, found: expected - 2 }));
        } else {
            assert!(expected.end < built.layer.size);
        }
    }
}

#[test]
fn a_table_with_another_digest_is_not_looked_at() {
    for form in [Form::Stargz, Form::Chunked] {
        let right = built(form);
        // It makes no sense, but nobody gets to know.
        let other = right.with_text(b"nonsense");
        let blob = match form {
            Form::Chunked => {
                let mut blob = right.blob.clone();
                blob[right.toc_offset as usize + 9] ^= 1;
                blob
            }
            _ => other.blob,
        };
        let layer = Descriptor { size: blob.len() as u64, ..right.layer.clone() };
        let found = read_toc(&blob, &layer, Limits::default());
        assert!(matches!(found, Err(TocError::Digest { .. })), "{found:?}");
    }
}

#[test]
fn annotations_that_are_malformed() {
    let blob = built(Form::Chunked);
    let position = "io.github.containers.zstd-chunked.manifest-position";
    let checksum = "io.github.containers.zstd-chunked.manifest-checksum";
    let stargz = "containerd.io/snapshot/stargz/toc.digest";
    let table = [
        (position, "", "is malformed"),
        (position, "1:2:3", "is malformed"),
        (position, "1:2:3:1:5", "is malformed"),
        (position, "1:2:3:2", "is malformed"),
        (position, "1:2:+3:1", "is malformed"),
        (position, "1:2:-3:1", "is malformed"),
        (position, "1: 2:3:1", "is malformed"),
        (position, "99999999999999999999:2:3:1", "is malformed"),
        (position, "18446744073709551615:2:3:1", "should be at byte 18446744073709551615"),
        (position, "100000:2:3:1", "should be at byte 100000"),
        (position, "8:67108865:3:1", "more than 67108864 bytes"),
        (position, "8:3:67108865:1", "more than 67108864 bytes"),
        (checksum, "sha256:12", "is malformed"),
        (checksum, "", "is malformed"),
        (stargz, "md5:d41d8cd98f00b204e9800998ecf8427e", "is malformed"),
    ];
    for (name, value, what) in table {
        let mut layer = blob.layer.clone();
        if name == stargz {
            layer.annotations.clear();
        }
        layer.annotations.insert(name.to_owned(), value.to_owned());
        let text = TocReader::new(&layer, Limits::default()).unwrap_err().to_string();
        assert!(text.contains(what), "{value}: {text}");
    }
    let mut layer = blob.layer.clone();
    layer.annotations.insert(position.to_owned(), "x".repeat(5000));
    let text = TocReader::new(&layer, Limits::default()).unwrap_err().to_string();
    assert!(text.len() < 400, "{text}");
    // What zstd:chunked says of the length when it is decompressed.
    let right = blob.layer.annotations[position].clone();
    let parts: Vec<u64> = right.split(':').map(|part| part.parse().unwrap()).collect();
    for raw in [0, parts[2] - 1, parts[2] + 1, 64 << 20] {
        let mut layer = blob.layer.clone();
        let value = format!("{}:{}:{raw}:1", parts[0], parts[1]);
        layer.annotations.insert(position.to_owned(), value);
        assert!(read_toc(&blob.blob, &layer, Limits::default()).is_err(), "{raw}");
    }
}

#[test]
fn footers_that_lead_elsewhere() {
    let right = built(Form::Stargz);
    let with_offset = |offset: u64, bytes: usize| {
        let mut blob = vec![0; bytes];
        blob.extend(&right.blob);
        let digits = blob.len() - 51 + 16;
        blob[digits..digits + 16].copy_from_slice(format!("{offset:016x}").as_bytes());
        let layer = Descriptor { size: blob.len() as u64, ..right.layer.clone() };
        read_toc(&blob, &layer, Limits::default()).unwrap_err()
    };
    let end = right.blob.len() as u64;
    for offset in [end - 51, end, u64::MAX] {
        assert_eq!(with_offset(offset, 0), TocError::Position { offset, blob_bytes: end });
    }
    // The beginning of the layer is a member, too, but not that one.
    let text = with_offset(0, 0).to_string();
    assert!(text.ends_with("it does not begin with `stargz.index.json`"), "{text}");
    assert!(matches!(with_offset(right.toc_offset + 1, 0), TocError::Codec(_)));
    assert_eq!(with_offset(0, 64 << 20), TocError::TooLarge);
    let none = Descriptor { size: 40, ..right.layer.clone() };
    assert_eq!(read_toc(&right.blob, &none, Limits::default()).unwrap_err(), TocError::Footer);
    let empty = Descriptor { size: 0, ..right.layer.clone() };
    assert_eq!(read_toc(&[], &empty, Limits::default()).unwrap_err(), TocError::Footer);
}

#[test]
fn tables_that_are_bombs() {
    // 80 MiB of spaces are not much when they are compressed.
    let text = format!(r#"{{"version":1,"entries":[]{}}}"#, " ".repeat(80 << 20));
    for form in [Form::Stargz, Form::Chunked] {
        assert_eq!(
            error(&built(form).with_text(text.as_bytes()), Limits::default()),
            TocError::TooLarge.to_string()
        );
    }
}

#[test]
fn other_bytes_of_a_file_are_found_out() {
    for (form, member) in [(Form::Stargz, 0), (Form::Stargz, 2000), (Form::Chunked, 0)] {
        let archive = Archive::new()
            .file("a", &sample(2500, 1))
            .file("b", &sample(800, 2))
            .file("c", &sample(800, 3));
        let built = Built::new(form, &archive.open(), 1000, member);
        let (index, _) = read_toc(&built.blob, &built.layer, Limits::default()).unwrap();
        let all = |blob: &[u8]| -> Vec<_> {
            let range = |span| {
                let range = index.fetch_range(span..span + 1);
                &blob[range.start as usize..range.end as usize]
            };
            (0..index.span_count()).map(|span| index.decode(span, range(span))).collect()
        };
        let right = all(&built.blob);
        let mut found = 0;
        for at in 0..built.members.len() {
            let mut bad = built.blob.clone();
            bad[at] ^= 1 << (at % 8);
            for (span, bytes) in all(&bad).into_iter().enumerate() {
                match bytes {
                    Ok(bytes) => assert_eq!(Ok(bytes), right[span]),
                    Err(_) => found += 1,
                }
            }
        }
        assert!(found > built.members.len() / 2, "{found}");
    }
}

/// Between two chunks there is as much as somebody likes.
#[test]
fn what_is_between_files_is_passed_over() {
    let bomb = super::super::zstd(&vec![0; 80 << 20], 19);
    let a = super::super::zstd(b"a", 1);
    let members = [&a[..], &bomb, &a].concat();
    let far = a.len() + bomb.len();
    let digest = Digest::sha256(b"a").to_string();
    let file = |name: &str, offset: usize| json!({"name": name, "type": "reg", "size": 1, "offset": offset, "chunkDigest": digest});
    let built = Built::of(
        Form::Chunked,
        members,
        json!({"version": 1, "entries": [file("a", 0), file("b", far)]}),
    );
    let (index, _) = read_toc(&built.blob, &built.layer, Limits::default()).unwrap();
    let mut decoder = SpanDecoder::new(&index, 0, None).unwrap();
    let mut seen = Vec::new();
    for piece in built.members.chunks(7) {
        let mut keep = |one: Decoded| seen.push((one.span, one.bytes));
        decoder.push(&index, &(0..2), piece, &mut keep).unwrap();
    }
    assert_eq!(seen, [(0, b"a".to_vec()), (1, b"a".to_vec())]);
    // Not even decompressed: it may be damaged.
    let damaged = [&a[..], &vec![0xff; bomb.len()], &a].concat();
    let mut decoder = SpanDecoder::new(&index, 0, None).unwrap();
    assert_eq!(decoder.push(&index, &(0..2), &damaged, &mut |_| {}), Ok(true));
    // Each by itself needs none of it.
    assert_eq!(super::read_span(&index, &built.blob, 1), b"a");
    // One that begins within another is no member, or comes too late.
    let within = Built::of(
        Form::Chunked,
        built.members.clone(),
        json!({"version": 1, "entries": [file("a", 0), file("b", 1)]}),
    );
    let (index, _) = read_toc(&within.blob, &within.layer, Limits::default()).unwrap();
    let mut decoder = SpanDecoder::new(&index, 0, None).unwrap();
    let whole = decoder.push(&index, &(0..2), &within.blob, &mut |_| {});
    assert!(matches!(whole, Err(DecodeError::Codec(_))), "{whole:?}");
    let mut decoder = SpanDecoder::new(&index, 0, None).unwrap();
    let mut push = |byte: &[u8]| decoder.push(&index, &(0..2), byte, &mut |_| {}).err();
    let pieces = within.blob.chunks(1).find_map(&mut push);
    assert_eq!(pieces, Some(DecodeError::Overlap(1)));
    // Nor is much fetched for a little file with nothing after it.
    let far = Built::of(
        Form::Chunked,
        [&a[..], &vec![0; 5 << 20]].concat(),
        json!({"version": 1, "entries": [file("a", 0)]}),
    );
    let (index, _) = read_toc(&far.blob, &far.layer, Limits::default()).unwrap();
    assert_eq!(index.fetch_range(0..1), 0..(64 << 10) + 1);
}

#[test]
fn stored_forms_that_lie_lead_nowhere() {
    let archive = Archive::new().file("a", &sample(2500, 1)).file("b", &sample(800, 2));
    let built = Built::new(Form::Stargz, &archive.open(), 700, 2000);
    let (index, _) = read_toc(&built.blob, &built.layer, Limits::default()).unwrap();
    let stored = index.to_bytes().unwrap();
    let (mut length, mut accepted) = (0, 0);
    stored::with_body(&stored, |raw| length = raw.len());
    for at in 0..length {
        for flip in [0x01, 0x80, 0xff] {
            let bad = stored::with_body(&stored, |raw| raw[at] ^= flip);
            if let Ok(index) = LayerIndex::from_bytes(&bad) {
                accepted += 1;
                stored::use_all(&index, &built.blob);
            }
        }
    }
    assert!(accepted > 0);
    // As a pass would have made it, it has other fields.
    let mut other = stored.clone();
    other[15] = 0;
    assert!(LayerIndex::from_bytes(&stored::with_body(&other, |_| {})).is_err());
    for (byte, value) in [(15, 2), (12, 0), (14, 1)] {
        let mut other = stored.clone();
        other[byte] = value;
        let other = stored::with_body(&other, |_| {});
        assert!(LayerIndex::from_bytes(&other).is_err(), "byte {byte}");
    }
    assert!(LayerIndex::from_bytes(&stored::with_body(&stored, |_| {})).is_ok());
}

/// A table may say that anything is in the root; it is not, and says nothing of what is below.
#[test]
fn landmarks_are_not_shown_but_only_in_the_root() {
    let archive = Archive::new()
        .file(".prefetch.landmark", b"\x0f")
        .file(".no.prefetch.landmark", b"\x0f")
        .file("a/.no.prefetch.landmark", b"\x0f")
        .file("a/stargz.index.json", b"{}");
    for form in [Form::Stargz, Form::Chunked] {
        let built = Built::new(form, &archive.clone().open(), 10, 0);
        let (index, _) = read_toc(&built.blob, &built.layer, Limits::default()).unwrap();
        let tree = Rootfs::raw(std::sync::Arc::new(index)).unwrap();
        let paths: Vec<_> =
            (1..tree.node_count()).map(|n| tree.path(tree.node(n).unwrap())).collect();
        assert_eq!(paths, [&b"a"[..], b"a/.no.prefetch.landmark", b"a/stargz.index.json"]);
    }
}

#[test]
fn a_reader_takes_just_what_it_wants() {
    let built = built(Form::Stargz);
    let mut reader = TocReader::new(&built.layer, Limits::default()).unwrap().unwrap();
    let expected = built.blob.len() as u64;
    for bytes in [&[][..], &built.blob[1..], &[&built.blob[..], b"x"].concat()] {
        let found = bytes.len() as u64;
        let result = reader.push(bytes);
        assert_eq!(result.unwrap_err(), TocError::Length { expected, found });
    }
    assert!(matches!(reader.push(&built.blob), Ok(Some(_))));
}

proptest! {
    /// Numbers that are others, and bytes of the text that are: most are refused, and what is
    /// accepted can be used without harm.
    #[test]
    fn random_changes_lead_nowhere(
        form in prop_oneof![Just(Form::Stargz), Just(Form::Chunked)],
        member in prop_oneof![Just(0_usize), Just(700)],
        numbers in proptest::collection::vec((0_usize..60, numbers()), 0..4),
        bytes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    ) {
        let archive = Archive::new()
            .file("a", &sample(900, 1))
            .dir("d")
            .link("d/l", "a")
            .file("d/b", &[&[0; 1500][..], b"x"].concat());
        let built = Built::new(form, &archive.open(), 300, member);
        let built = built.with(|toc| {
            let entries = toc["entries"].as_array_mut().unwrap();
            let mut fields: Vec<_> = entries
                .iter_mut()
                .flat_map(|entry| entry.as_object_mut().unwrap().values_mut())
                .filter(|value| value.is_u64())
                .collect();
            for (at, number) in numbers {
                let count = fields.len();
                *fields[at % count] = json!(number);
            }
        });
        let mut text = built.text();
        for (at, byte) in bytes {
            let at = at.index(text.len());
            text[at] = byte;
        }
        let built = built.with_text(&text);
        if let Ok((index, _)) = read_toc(&built.blob, &built.layer, Limits::default()) {
            stored::use_all(&index, &built.blob);
            let again = LayerIndex::from_bytes(&index.to_bytes().unwrap()).unwrap();
            prop_assert_eq!(again.table(), index.table());
            prop_assert_eq!(again.span_count(), index.span_count());
            let spans = 0..index.span_count();
            let range = index.fetch_range(spans.clone());
            if let Ok(mut decoder) = SpanDecoder::new(&index, 0, None) {
                let bytes = &built.blob[range.start as usize..range.end as usize];
                let _ = decoder.push(&index, &spans, bytes, &mut |_| {});
            }
        }
    }
}

fn numbers() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0_u64..2000,
        1 => any::<u64>(),
        1 => (0_u32..64).prop_map(|bits| 1 << bits),
        1 => (0_u32..64).prop_map(|bits| (1 << bits) - 1),
    ]
}
