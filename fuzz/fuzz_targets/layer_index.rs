//! Stored indexes of layers, with digests that are right.
#![no_main]

use imgfs::layer::{Origin, fuzzing};

libfuzzer_sys::fuzz_target!(|input: (bool, u32, u32, &[u8])| {
    let (is_toc, blob_bytes, stream_bytes, body) = input;
    let origin = if is_toc { Origin::Toc } else { Origin::Pass };
    fuzzing::body(origin, body, blob_bytes.into(), stream_bytes.into());
});
