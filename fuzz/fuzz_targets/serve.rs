//! What clients of `imgfs serve` send: paths, queries, `Range`, `Content-Range`, `Authorization`, certificates.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| imgfs::serve::fuzzing::request(bytes));
