//! The content of sparse and linked files through an index and a merged tree.

use super::{
    archive::{Archive, Header},
    gzip, layer, read_stream,
};
use crate::layer::{Kind, Rootfs};

#[test]
fn a_file_is_read_from_its_layer() {
    let lower = gzip(&Archive::new().file("a", b"lower").file("b", b"below").end(), 6);
    let holes = Header::new(b"s", b'S').gnu().size(5).sparse(&[(2, 3), (8, 2)], false, 12).clone();
    let upper = Archive::new()
        .entry(&holes, b"AAABB")
        .link("l", "b")
        .pax(b'x', &[("SCHILY.xattr.security.capability", b"\x01\0\0\x02"), ("mtime", b"5.5")])
        .file("a", b"upper")
        .symlink("k", "a/b")
        .end();
    let blobs = [lower, upper];
    let tree = Rootfs::new(blobs.iter().map(|blob| layer(blob)).collect()).unwrap();
    let streams: Vec<_> =
        tree.layers().iter().zip(&blobs).map(|(index, blob)| read_stream(index, blob)).collect();
    let read = |path: &[u8]| {
        let data = tree.data(tree.find(path).unwrap()).unwrap();
        let mut bytes = vec![b'.'; data.size as usize];
        for extent in data.extents {
            let length = extent.length as usize;
            let (to, from) = (extent.file_offset as usize, extent.stream_offset as usize);
            bytes[to..to + length].copy_from_slice(&streams[data.layer][from..from + length]);
        }
        String::from_utf8(bytes).unwrap()
    };
    assert_eq!(read(b"a"), "upper");
    assert_eq!(read(b"b"), "below");
    assert_eq!(read(b"l"), "below");
    assert_eq!(read(b"s"), "..AAA...BB..");
    assert_eq!(read(b"k"), "");
    let a = tree.find(b"a").unwrap();
    let xattrs: Vec<_> = tree.xattrs(a).collect();
    assert_eq!(xattrs, [(&b"security.capability"[..], &b"\x01\0\0\x02"[..])]);
    assert_eq!(tree.attributes(a).mtime.nanos, 500_000_000);
    let k = tree.attributes(tree.find(b"k").unwrap());
    assert_eq!((k.kind, k.size), (Kind::Symlink, 3));
}
