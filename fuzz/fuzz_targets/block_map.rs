//! The map of a partly cached blob: what is accepted is just what would be written.
#![no_main]

libfuzzer_sys::fuzz_target!(|map: &[u8]| imgfs::backend::images_dir::fuzzing::block_map(map));
