//! Tables of contents of eStargz, zstd:chunked and SOCI, with digests that are right: what they say of a
//! blob never leads out of it, and their indexes are read as they were written.
#![no_main]

use imgfs::{image::Digest, layer::fuzzing};

libfuzzer_sys::fuzz_target!(|input: (u8, u16, &[u8], &[u8])| {
    let (form, blob_bytes, members, json) = input;
    match form % 5 {
        0 => fuzzing::toc(true, members, json),
        1 => fuzzing::toc(false, members, json),
        // A list of entries is enough.
        2 => fuzzing::toc(false, members, &[br#"{"version":1,"entries":["#, json, b"]}"].concat()),
        3 => fuzzing::ztoc(members, json),
        _ => fuzzing::tail(blob_bytes.into(), Digest::sha256(members), json),
    }
});
