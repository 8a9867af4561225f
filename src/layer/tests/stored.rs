//! The stored form of an index.

use std::sync::Arc;

use proptest::prelude::*;

use super::{
    archive::{Archive, Header},
    gzip, index, sample,
};
use crate::layer::{LayerIndex, Origin, Rootfs, SpanDecoder, StoredError, StoredHead};

/// A layer that has something of everything.
fn blob() -> Vec<u8> {
    let archive = Archive::new()
        .dir("./")
        .pax(b'x', &[("mtime", b"-7.5"), ("SCHILY.xattr.user.a", b"1"), ("uid", b"9")])
        .file("etc/passwd", &sample(1_100_000, 1))
        .link("etc/link", "./missing/target")
        .symlink("etc/symlink", "../x")
        .entry(Header::new(b"null", b'3').device(1, 3), b"")
        .entry(
            Header::new(b"s", b'S').gnu().size(5).sparse(&[(7, 3), (99, 2)], false, 200),
            b"AAABB",
        )
        .pax(b'x', &[("SCHILY.xattr.user.a", b"1"), ("mtime", b"8.5")])
        .file("etc/.wh.gone", b"")
        .file("../bad", b"")
        .file("etc/passwd", b"again");
    gzip(&archive.end(), 6)
}

#[test]
fn it_is_read_as_it_was_written() {
    let index = index(&blob());
    assert_eq!(index.table().len(), 8);
    let stored = index.to_bytes().unwrap();
    let again = LayerIndex::from_bytes(&stored).unwrap();
    assert_eq!(again.table(), index.table());
    assert_eq!(again.notes(), index.notes());
    assert_eq!(again.to_bytes().unwrap(), stored);
    let head = StoredHead::parse(&stored).unwrap();
    assert_eq!(head.total_bytes(), stored.len() as u64);
    let table = LayerIndex::from_table(&stored[..head.table_bytes() as usize]).unwrap();
    assert_eq!(table, again.clone().without_windows());
    assert_eq!(table, again.with_windows_stored(&head));
    assert_eq!(table.to_bytes(), Err(StoredError::NoWindows));
}

#[test]
fn what_reading_takes_is_known_before() {
    let mut archive = Archive::new();
    for number in 0..20_000 {
        archive = archive.file(&format!("usr/share/doc/package-{number}/copyright-{number}"), b"");
    }
    let index = index(&archive.end());
    let head = StoredHead::parse(&index.to_bytes().unwrap()).unwrap();
    assert!(head.reading_bytes() >= index.memory_bytes(), "{head:?} {}", index.memory_bytes());
    let few = index_of_one();
    let head = StoredHead::parse(&few.to_bytes().unwrap()).unwrap();
    assert!(head.reading_bytes() < 2000, "{head:?}");
    let merging = Rootfs::merging_bytes([&index, &few]);
    let rootfs = Rootfs::new(vec![Arc::new(index), Arc::new(few)]).unwrap();
    assert!(merging >= rootfs.memory_bytes() && merging < 64 * rootfs.memory_bytes());
}

fn index_of_one() -> LayerIndex {
    index(&Archive::new().file("a", b"").end())
}

#[test]
fn the_form_stays_as_it_is() {
    let stored = index(&Archive::new().file("a", b"b").end()).to_bytes().unwrap();
    // Magic, version, plain, sha256 twice; sizes of blob, stream and body.
    assert_eq!(hex::encode(&stored[..16]), "696d6766736c79720300000000010100");
    let sizes = "0008000000000000".to_owned() + "0008000000000000";
    assert_eq!(hex::encode(&stored[144..160]), sizes);
    let raw = zstd::bulk::decompress(&stored[216..], 1000).unwrap();
    // Names, paths, owners, the row, targets and lists, the only span with where it ends in the blob.
    let body = [
        "03000161",
        "010100",
        "010000",
        "0102a4030001020000",
        "0000000000",
        "00",
        "01000100008010",
    ];
    assert_eq!(hex::encode(&raw[..raw.len() - 34]), body.concat());
}

#[test]
fn damage_is_found() {
    let stored = index(&blob()).to_bytes().unwrap();
    let table_bytes = StoredHead::parse(&stored).unwrap().table_bytes() as usize;
    for cut in [0, 7, 8, 12, 100, 215, 216, 300, table_bytes - 1, table_bytes, stored.len() - 1] {
        assert!(LayerIndex::from_bytes(&stored[..cut]).is_err(), "cut to {cut}");
    }
    assert!(LayerIndex::from_bytes(&[&stored[..], b"x"].concat()).is_err());
    for at in 0..table_bytes {
        let mut bad = stored.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(LayerIndex::from_bytes(&bad).is_err(), "byte {at} is damaged");
    }
    let mut other = stored;
    other[8] = 1;
    assert_eq!(LayerIndex::from_bytes(&other), Err(StoredError::Version(1)));
    other[0] = 0;
    assert_eq!(LayerIndex::from_bytes(&other), Err(StoredError::Magic));
}

#[test]
fn damaged_windows_are_found_when_they_are_used() {
    let blob = blob();
    let index = index(&blob);
    let stored = index.to_bytes().unwrap();
    let span = (0..index.span_count()).find(|span| index.window_range(*span).is_some()).unwrap();
    let table_bytes = StoredHead::parse(&stored).unwrap().table_bytes() as usize;
    let compressed = index.fetch_range(span..span + 1);
    let compressed = &blob[compressed.start as usize..compressed.end as usize];
    let right = index.decode(span, compressed).unwrap();
    let mut found = 0;
    for at in (table_bytes..stored.len()).step_by(97) {
        let mut bad = stored.clone();
        bad[at] ^= 0x10;
        match LayerIndex::from_bytes(&bad).unwrap().decode(span, compressed) {
            // A part of the window that is not needed.
            Ok(bytes) => assert!(bytes == right),
            Err(_) => found += 1,
        }
    }
    assert!(found > 10, "{found}");
}

/// A stored index whose body is `change`d, with a digest that is right.
pub(super) fn with_body(stored: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    use sha2::{Digest, Sha256};
    let head = StoredHead::parse(stored).unwrap();
    let windows = &stored[head.table_bytes() as usize..];
    let body = &stored[StoredHead::BYTES..head.table_bytes() as usize];
    let mut raw = zstd::bulk::decompress(body, 1 << 24).unwrap();
    change(&mut raw);
    let body = zstd::bulk::compress(&raw, 1).unwrap();
    let mut out = stored[..184].to_vec();
    out[160..168].copy_from_slice(&(body.len() as u64).to_le_bytes());
    out[168..176].copy_from_slice(&(raw.len() as u64).to_le_bytes());
    let digest = Sha256::new().chain_update(&out).chain_update(&body).finalize();
    [&out[..], &digest, &body, windows].concat()
}

#[test]
fn bodies_that_lie_lead_nowhere() {
    let blob = blob();
    let stored = index(&blob).to_bytes().unwrap();
    let same = with_body(&stored, |_| {});
    assert_eq!(
        LayerIndex::from_bytes(&same).unwrap(),
        LayerIndex::from_bytes(&stored).unwrap().tap(&same)
    );
    let length = {
        let mut length = 0;
        with_body(&stored, |raw| length = raw.len());
        length
    };
    let mut accepted = 0;
    for at in 0..length {
        let flip = [0x01, 0x80, 0xff][at % 3];
        let bad = with_body(&stored, |raw| raw[at] ^= flip);
        // Most are refused; what is accepted can be used without harm.
        if let Ok(index) = LayerIndex::from_bytes(&bad) {
            accepted += 1;
            use_all(&index, &blob);
        }
        let cut = with_body(&stored, |raw| raw.truncate(at));
        assert!(LayerIndex::from_bytes(&cut).is_err(), "cut to {at}");
    }
    assert!(accepted > 0);
}

trait Tap {
    fn tap(self, stored: &[u8]) -> Self;
}

impl Tap for LayerIndex {
    /// With the place of windows that `stored` has.
    fn tap(mut self, stored: &[u8]) -> Self {
        self.set_windows_offset(StoredHead::parse(stored).unwrap().table_bytes());
        self
    }
}

/// Calls everything that an index has.
pub(super) fn use_all(index: &LayerIndex, blob: &[u8]) {
    let table = index.table();
    for number in 0..table.len() {
        let entry = table.entry(number).unwrap();
        table.full_path(entry.path);
        table.link_path(&entry).map(|path| table.full_path(path));
        table.symlink_target(&entry);
        table.xattrs(number).count();
        table.extents(number);
    }
    let at = |offset: u64| usize::try_from(offset).unwrap().min(blob.len());
    let all = 0..index.span_count();
    for span in all.clone() {
        index.needs_sequential(span);
        index.window_range(span);
        let group = index.group(span);
        assert!(group.contains(&span));
        if span + 1 == group.end || index.origin() != Origin::Pass {
            let range = index.fetch_range(span..span + 1);
            let _ = index.decode(span, &blob[at(range.start)..at(range.end)]);
        }
    }
    if let Ok(mut decoder) = SpanDecoder::new(index, 0, None) {
        let range = index.fetch_range(all.clone());
        let _ = decoder.push(index, &all, &blob[at(range.start)..at(range.end)], &mut |_| {});
    }
    let tree = crate::layer::Rootfs::new(vec![std::sync::Arc::new(index.clone())]).unwrap();
    for number in 0..tree.node_count() {
        let node = tree.node(number).unwrap();
        tree.attributes(node);
        assert_eq!(tree.find(&tree.path(node)), Some(node));
    }
}

proptest! {
    #[test]
    fn any_bytes_are_an_index_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = LayerIndex::from_bytes(&bytes);
        let stored = index(&Archive::new().file("a", b"b").end()).to_bytes().unwrap();
        let with = with_body(&stored, |raw| *raw = bytes);
        let _ = LayerIndex::from_bytes(&with);
    }
}
