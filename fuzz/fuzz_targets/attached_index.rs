//! Indexes that were attached to an image: whatever is in them, only one that is fit for the layer is taken.
#![no_main]

use imgfs::rootfs::fuzzing;

libfuzzer_sys::fuzz_target!(|stored: &[u8]| {
    fuzzing::attached_index(stored);
});
