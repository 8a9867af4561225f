//! KubeKey's map of tags: what is accepted is written in a form that is accepted as the same.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| imgfs::backend::images_dir::fuzzing::layout_map(text));
