//! Stored indexes of layers, of both versions that are read, with digests that are right.
#![no_main]

use imgfs::layer::{Origin, fuzzing};

libfuzzer_sys::fuzz_target!(|input: (u8, u32, u32, &[u8])| {
    let (form, blob_bytes, stream_bytes, body) = input;
    let (origin, is_old) = match form % 4 {
        0 => (Origin::Toc, false),
        1 => (Origin::Pass, false),
        2 => (Origin::Ztoc, false),
        _ => (Origin::Pass, true),
    };
    fuzzing::body(origin, is_old, body, blob_bytes.into(), stream_bytes.into());
});
