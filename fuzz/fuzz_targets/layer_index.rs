//! Stored indexes of layers, with digests that are right.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: (u32, u32, &[u8])| {
    let (blob_bytes, stream_bytes, body) = input;
    imgfs::layer::fuzzing::body(body, blob_bytes.into(), stream_bytes.into());
});
