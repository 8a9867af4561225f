//! Databases of rpm in images: whatever the bytes, packages or an error.
#![no_main]

libfuzzer_sys::fuzz_target!(|file: &[u8]| imgfs::ops::fuzzing::rpm_database(file));
