//! `WWW-Authenticate`, `Content-Range`, `Link`, and answers of token servers.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| imgfs::backend::registry::fuzzing::headers(text));
