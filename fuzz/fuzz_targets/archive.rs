//! Archives of images: whatever they are, their members are found within bounds, and no name leads out of them.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: (&str, &[u8])| {
    let (name, archive) = input;
    imgfs::backend::archive::fuzzing::index(archive, name);
});
