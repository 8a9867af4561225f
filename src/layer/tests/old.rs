//! Stored indexes of version 2, which earlier releases have written.

use super::{archive::Archive, gzip, index, read_span, sample, zstd};
use crate::layer::LayerIndex;

#[test]
fn they_are_read_and_written_as_new_ones() {
    let stream = Archive::new().file("a", &sample(2_500_000, 7)).end();
    let pieces = |piece: usize| stream.chunks(piece).flat_map(|piece| zstd(piece, 3)).collect();
    for blob in [gzip(&stream, 6), pieces(700_000), stream.clone()] {
        let index = index(&blob);
        let old = LayerIndex::from_bytes(&index.to_old_bytes(&stream).unwrap()).unwrap();
        assert!(old.span_count() > 1);
        assert_eq!(old.table(), index.table());
        let again = LayerIndex::from_bytes(&old.to_bytes().unwrap()).unwrap();
        for old in [&old, &again] {
            // Each is a beginning, and where it ends follows from the next one.
            let read = |span| {
                assert_eq!(old.group(span), span..span + 1);
                read_span(old, &blob, span)
            };
            let found: Vec<u8> = (0..old.span_count()).flat_map(read).collect();
            assert!(found == stream);
        }
    }
}

#[test]
fn the_oldest_ones_are_not() {
    use crate::layer::StoredError;
    let mut stored = index(&Archive::new().file("a", b"b").end()).to_bytes().unwrap();
    for version in [0, 1, 4] {
        stored[8] = version;
        let error = LayerIndex::from_bytes(&stored).unwrap_err();
        assert_eq!(error, StoredError::Version(version.into()));
        assert!(error.to_string().ends_with("this imgfs reads versions 2 to 3"));
    }
}
