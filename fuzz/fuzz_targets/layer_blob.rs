//! Blobs of layers: whatever they are, what has passed can be read again by spans.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: (u16, u8, &[u8])| {
    let (piece, magic, bytes) = input;
    // Most start as compressed data.
    let magic: &[u8] = match magic % 4 {
        0 => b"",
        1 => b"\x1f\x8b\x08\0\0\0\0\0\0\x03",
        2 => b"\x28\xb5\x2f\xfd",
        _ => b"\x50\x2a\x4d\x18\x02\0\0\0ab\x28\xb5\x2f\xfd",
    };
    imgfs::layer::fuzzing::blob(&[magic, bytes].concat(), piece);
});
